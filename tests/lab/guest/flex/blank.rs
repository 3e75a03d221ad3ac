//! `blank`: a file system is made on a device that is proven blank, and on nothing else. Devices are real ones, and broken as real
//! ones break: through the driver on what the fabric gives, and on devices of the device mapper that cannot be read or hang.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_plugin::filesystem::{self, Content, Error, FsType};
use berth_plugin::limits::Limits;
use berth_tests::process::wait_for;
use berth_tests::{programs, tool};

use super::{Node, is_mounted, options};
use crate::Options;

const DEADLINE: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;
/// Sectors of a device of the device mapper; XFS wants 300 MiB.
const SECTORS: u64 = 400 * MIB / 512;

pub(crate) fn run(_options: &Options) -> Result<()> {
    let node = Node::start()?;
    let result = through_the_driver(&node);
    let _ = std::fs::copy(node.driver_log(), "/mnt/logs/driver");
    let _ = std::fs::write("/mnt/logs/berthd", node.daemon.log());
    result?;
    node.daemon.stop()?;
    broken_devices()
}

/// Puts something on a device.
type Writer = fn(&Path) -> Result<()>;

/// What others left on a volume stays there, byte for byte.
fn through_the_driver(node: &Node) -> Result<()> {
    let writers: [(&str, &str, Writer); 7] = [
        ("ext4", "file system of type ext4", |device| {
            run_on("mkfs.ext4", &["-q", "-F"], device)
        }),
        ("btrfs", "file system of type btrfs", |device| {
            run_on("mkfs.btrfs", &["-q", "-f"], device)
        }),
        ("swap", "something else (swap)", |device| {
            run_on("mkswap", &[], device)
        }),
        ("table", "partition table (gpt)", |device| {
            let script = format!(
                "echo 'label: gpt' | sfdisk -q --no-reread {}",
                device.display()
            );
            tool::run("sh", &["-c", &script], DEADLINE).map(drop)
        }),
        ("luks", "encrypted volume (LUKS)", |device| {
            let script = format!(
                "echo -n key | cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 {} -",
                device.display()
            );
            tool::run("sh", &["-c", &script], DEADLINE).map(drop)
        }),
        // Formatted before, and its beginning lost: the copies of the superblock tell.
        ("wiped", "unknown data", |device| {
            run_on("mkfs.ext4", &["-q", "-F"], device)?;
            zero(device, MIB)
        }),
        ("raw", "unknown data", |device| {
            write_at(device, b"x", (1 << 30) - 1)
        }),
    ];
    for (name, says, write) in writers {
        let volume = format!("used-{name}");
        let json = options(&volume, "xfs");
        let answer = node.ok(&["attach", &json])?;
        let device = PathBuf::from(answer["device"].as_str().context("a device")?);
        write(&device)?;
        let before = ends(&device)?;
        let dir = node.path(&volume);
        let dir = dir.to_str().context("path is text")?;
        for _ in 0..2 {
            let message = node.fails(&["mount", dir, &json], says)?;
            println!("{name}: {message}");
        }
        // It took back what it could not use.
        ensure!(node.attached()?.is_empty() && !is_mounted(Path::new(dir))?);
        let answer = node.ok(&["attach", &json])?;
        let device = PathBuf::from(answer["device"].as_str().context("a device")?);
        ensure!(ends(&device)? == before, "{name}: it was changed");
        node.daemon.detach(&format!("flex.{volume}"))?;
    }
    // Formatted before by this very driver: its file system and what is in it.
    for fs in ["ext4", "xfs", "btrfs"] {
        let volume = format!("ours-{fs}");
        let json = options(&volume, fs);
        let dir = node.path(&volume);
        let words = ["mount", dir.to_str().context("path is text")?, &json];
        node.ok(&words)?;
        std::fs::write(dir.join("file"), fs)?;
        node.ok(&["unmount", words[1]])?;
        ensure!(node.attached()?.is_empty());
        node.ok(&words)?;
        ensure!(std::fs::read_to_string(dir.join("file"))? == fs);
        node.ok(&["unmount", words[1]])?;
        println!("{fs}: made once, found again");
    }
    Ok(())
}

/// Devices that fail as real ones do.
fn broken_devices() -> Result<()> {
    tool::run(
        "modprobe",
        &["-a", "brd", "dm_mod", "dm_delay", "loop"],
        DEADLINE,
    )?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let dir = tempfile::tempdir()?;
    let disk = disk(&dir.path().join("image"))?;
    let limits = Limits {
        helper: programs::ours("berth-flexvolume")?,
        ..Limits::default()
    };
    let middle = SECTORS / 2;
    let end = SECTORS - 8;
    let tables = [
        (
            "first",
            "cannot read bytes 0",
            format!("0 8 error\n8 {} linear {disk} 8", SECTORS - 8),
        ),
        (
            "middle",
            "cannot read",
            format!(
                "0 {middle} linear {disk} 0\n{middle} 8 error\n{} {} linear {disk} {}",
                middle + 8,
                middle - 8,
                middle + 8
            ),
        ),
        // The device says that it has more than there is.
        (
            "truncated",
            "cannot read",
            format!("0 {end} linear {disk} 0\n{end} 8 error"),
        ),
        ("dead", "cannot", format!("0 {SECTORS} error")),
    ];
    for (name, says, table) in tables {
        let mapped = Mapped::new(name, &table)?;
        for fs in [FsType::Ext4, FsType::Xfs, FsType::Btrfs] {
            let made = runtime.block_on(filesystem::make(&mapped.path, fs, &[], &limits));
            let error = made.err().context("a file system was made")?;
            ensure!(
                matches!(error, Error::Device { .. }) && error.to_string().contains(says),
                "{name}: {error}"
            );
        }
        let probed = runtime.block_on(filesystem::probe(&mapped.path, &limits));
        println!(
            "{name}: {}",
            probed.err().context("it is known what is on it")?
        );
    }
    // Slow, but there: blank in the end. Slower than the deadline: not known, and not blank.
    let table = format!("0 {SECTORS} delay {disk} 0 20");
    let slow = Mapped::new("slow", &table)?;
    let content = runtime.block_on(filesystem::probe(&slow.path, &limits))?;
    ensure!(content == Content::Blank, "{content}");
    drop(slow);
    let table = format!("0 {SECTORS} delay {disk} 0 20000");
    let slower = Mapped::new("slower", &table)?;
    let short = Limits {
        make: Duration::from_secs(4),
        ..limits.clone()
    };
    let began = Instant::now();
    let made = runtime.block_on(filesystem::make(&slower.path, FsType::Ext4, &[], &short));
    let error = made.err().context("a file system was made")?;
    ensure!(error.is_timeout(), "{error}");
    ensure!(
        began.elapsed() < Duration::from_secs(16),
        "{:?}",
        began.elapsed()
    );
    println!("slower: {error}");
    drop(slower);
    // In use by something else, though nothing is mounted.
    let holder = Mapped::new("holder", &format!("0 {SECTORS} linear {disk} 0"))?;
    let made = runtime.block_on(filesystem::make(
        Path::new(&disk),
        FsType::Ext4,
        &[],
        &limits,
    ));
    ensure!(matches!(made, Err(Error::InUse { .. })), "{made:?}");
    drop(holder);
    tool::run("losetup", &["--detach", &disk], DEADLINE)?;
    for fs in [FsType::Ext4, FsType::Xfs, FsType::Btrfs] {
        let disk = self::disk(&dir.path().join(fs.as_str()))?;
        let made = runtime.block_on(filesystem::make(Path::new(&disk), fs, &[], &limits));
        made?;
        let content = runtime.block_on(filesystem::probe(Path::new(&disk), &limits))?;
        ensure!(content.is(fs), "{content}");
        tool::run("losetup", &["--detach", &disk], DEADLINE)?;
        println!("{fs}: made on a disk with which nothing is wrong");
    }
    Ok(())
}

/// A device of the device mapper; it goes with the value.
#[derive(Debug)]
struct Mapped {
    name: String,
    path: PathBuf,
}

impl Mapped {
    fn new(name: &str, table: &str) -> Result<Self> {
        let name = format!("lab-{name}");
        let words = [
            "create",
            &name,
            "--noudevsync",
            "--noudevrules",
            "--table",
            table,
        ];
        if table.contains('\n') {
            let file = tempfile::NamedTempFile::new()?;
            std::fs::write(file.path(), table)?;
            let words = [
                words[0],
                words[1],
                words[2],
                words[3],
                file.path().to_str().context("path is text")?,
            ];
            tool::run("dmsetup", &words, DEADLINE)?;
        } else {
            tool::run("dmsetup", &words, DEADLINE)?;
        }
        // No udev here: what is there is the kernel's own name for it.
        let words = ["info", "--columns", "--noheadings", "-o", "minor", &name];
        let minor = tool::run("dmsetup", &words, DEADLINE)?.text;
        let path = PathBuf::from(format!("/dev/dm-{}", minor.trim()));
        Ok(Self { name, path })
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let words = ["remove", "--noudevsync", &self.name];
        // Who was given up still waits for the answer of the device, and holds it until then.
        let removed = wait_for("removal", DEADLINE, || {
            let output = tool::try_run("dmsetup", &words, DEADLINE)?;
            Ok(output.status.success().then_some(()))
        });
        if let Err(error) = removed {
            println!("{}: {error:#}", self.name);
        }
    }
}

/// A new disk of zeros.
fn disk(image: &Path) -> Result<String> {
    std::fs::File::create(image)?.set_len(SECTORS * 512)?;
    let words = ["--find".as_ref(), "--show".as_ref(), image.as_os_str()];
    let output = tool::run("losetup", &words, DEADLINE)?;
    Ok(output.text.trim().to_owned())
}

fn run_on(program: &str, words: &[&str], device: &Path) -> Result<()> {
    let mut words: Vec<_> = words.iter().map(std::ffi::OsStr::new).collect();
    words.push(device.as_os_str());
    tool::run(program, &words, DEADLINE).map(drop)
}

fn write_at(device: &Path, bytes: &[u8], at: u64) -> Result<()> {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::options().write(true).open(device)?;
    file.write_all_at(bytes, at)?;
    Ok(file.sync_all()?)
}

/// What every mkfs writes to.
fn ends(device: &Path) -> Result<Vec<u8>> {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::open(device)?;
    let mut bytes = vec![0; usize::try_from(5 * MIB)?];
    let (head, tail) = bytes.split_at_mut(usize::try_from(4 * MIB)?);
    file.read_exact_at(head, 0)?;
    file.read_exact_at(tail, (1 << 30) - MIB)?;
    Ok(bytes)
}

fn zero(device: &Path, len: u64) -> Result<()> {
    let zeros = vec![0; usize::try_from(MIB)?];
    for at in (0..len).step_by(zeros.len()) {
        let len = usize::try_from((len - at).min(MIB))?;
        write_at(device, &zeros[..len], at)?;
    }
    Ok(())
}

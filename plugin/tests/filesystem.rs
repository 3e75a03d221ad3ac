//! File systems are made on blank devices and on nothing else. Devices are files here; the lab does it with real ones.

#![allow(clippy::unwrap_used, reason = "this is all test code")]

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use berth_plugin::filesystem::{self, Content, Error, FsType};
use berth_plugin::limits::Limits;
use rustix::fs::FlockOperation;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

fn limits() -> Limits {
    Limits {
        helper: PathBuf::from(env!("CARGO_BIN_EXE_berth-flexvolume")),
        ..Limits::default()
    }
}

struct Disk {
    _dir: TempDir,
    path: PathBuf,
}

impl Disk {
    fn blank(size: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        File::create(&path).unwrap().set_len(size).unwrap();
        Self { _dir: dir, path }
    }

    fn with(size: u64, at: u64, bytes: &[u8]) -> Self {
        let disk = Self::blank(size);
        disk.file().write_all_at(bytes, at).unwrap();
        disk
    }

    fn file(&self) -> File {
        File::options().write(true).open(&self.path).unwrap()
    }

    /// Changes with every write.
    fn last_written(&self) -> (i64, i64) {
        let metadata = fs::metadata(&self.path).unwrap();
        (metadata.mtime(), metadata.mtime_nsec())
    }

    async fn content(&self) -> Content {
        filesystem::probe(&self.path, &limits()).await.unwrap()
    }

    async fn make(&self, fs: FsType) -> Result<(), Error> {
        filesystem::make(&self.path, fs, &[], &limits()).await
    }

    /// No file system is made, and not a byte is changed.
    async fn stays_as_it_is(&self, expected: Content) {
        let before = self.last_written();
        assert_eq!(self.content().await, expected);
        for fs in [FsType::Ext4, FsType::Xfs, FsType::Btrfs] {
            match self.make(fs).await.unwrap_err() {
                Error::NotBlank { content, .. } => assert_eq!(content, expected),
                other => panic!("{other}"),
            }
        }
        assert_eq!(self.last_written(), before, "{expected}");
    }
}

fn run(program: &str, arguments: &[&str], disk: &Path) {
    let output = Command::new(program)
        .args(arguments)
        .arg(disk)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .unwrap();
    assert!(output.status.success(), "{program}: {output:?}");
}

#[tokio::test]
async fn a_blank_device_gets_a_file_system_once() {
    let disk = Disk::blank(64 * MIB);
    assert_eq!(disk.content().await, Content::Blank);
    assert_eq!(
        filesystem::size(&disk.path, &limits()).await.unwrap(),
        64 * MIB
    );
    disk.make(FsType::Ext4).await.unwrap();
    assert!(disk.content().await.is(FsType::Ext4));
    filesystem::check(&disk.path, FsType::Ext4, &limits())
        .await
        .unwrap();
    disk.stays_as_it_is(Content::FileSystem("ext4".into()))
        .await;
}

#[tokio::test]
async fn options_reach_mkfs() {
    let disk = Disk::blank(64 * MIB);
    let limits = limits();
    let make = async |options: &[&str]| {
        let options: Vec<_> = options.iter().map(|&option| option.to_owned()).collect();
        filesystem::make(&disk.path, FsType::Ext4, &options, &limits).await
    };
    let error = make(&["--no-such-option"]).await.unwrap_err().to_string();
    assert!(error.contains("mkfs.ext4 failed"), "{error}");
    assert_eq!(disk.content().await, Content::Blank);
    make(&["-L", "a label"]).await.unwrap();
    let mut label = [0; 7];
    File::open(&disk.path)
        .unwrap()
        .read_exact_at(&mut label, 1024 + 0x78)
        .unwrap();
    assert_eq!(&label, b"a label");
}

#[tokio::test]
async fn what_others_left_is_never_overwritten() {
    let size = 32 * MIB;
    let mut table = [0; 512];
    table[446..462].copy_from_slice(&[0, 0, 2, 0, 0x83, 0, 3, 0, 0, 8, 0, 0, 0, 0x10, 0, 0]);
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    let disk = Disk::with(size, 0, &table);
    disk.stays_as_it_is(Content::PartitionTable("dos".into()))
        .await;
    let disk = Disk::with(size, 0, b"LUKS\xba\xbe\0\x01");
    disk.stays_as_it_is(Content::Luks).await;
    let disk = Disk::blank(size);
    run("mkswap", &[], &disk.path);
    disk.stays_as_it_is(Content::Other("swap".into())).await;
    let disk = Disk::blank(size);
    run("mkfs.ext3", &["-q"], &disk.path);
    disk.stays_as_it_is(Content::FileSystem("ext3".into()))
        .await;
}

/// Data without a mark, wherever it is likely: at the ends, and where the first superblock was wiped, its copies are found.
#[tokio::test]
async fn data_without_a_name_is_data() {
    let size = 256 * MIB;
    for at in [
        0,
        511,
        65536,
        MIB - 1,
        64 * MIB,
        size / 2,
        size - MIB,
        size - 1,
    ] {
        let disk = Disk::with(size, at, &[1]);
        disk.stays_as_it_is(Content::Unknown { at_bytes: at }).await;
    }
    let disk = Disk::blank(size);
    run("mkfs.ext4", &["-q", "-b", "4096"], &disk.path);
    disk.file().write_all_at(&vec![0; MIB as usize], 0).unwrap();
    let content = disk.content().await;
    assert!(
        matches!(content, Content::Unknown { at_bytes } if at_bytes >= MIB),
        "{content}"
    );
    disk.stays_as_it_is(content).await;
}

#[tokio::test]
async fn what_cannot_be_read_is_not_blank() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty");
    File::create(&empty).unwrap();
    for (path, why) in [
        (dir.path().join("none"), "No such file"),
        (dir.path().to_owned(), "neither a block device"),
        (PathBuf::from("/dev/zero"), "neither a block device"),
        (empty, "has no size"),
    ] {
        for error in [
            filesystem::probe(&path, &limits()).await.unwrap_err(),
            filesystem::make(&path, FsType::Ext4, &[], &limits())
                .await
                .unwrap_err(),
            filesystem::size(&path, &limits()).await.unwrap_err(),
        ] {
            assert!(matches!(error, Error::Device { .. }), "{error:?}");
            let text = error.to_string();
            assert!(
                text.contains(why) && text.contains(path.to_str().unwrap()),
                "{text}"
            );
        }
    }
}

/// Two at a time: one makes the file system, the other finds it.
#[tokio::test]
async fn whoever_comes_second_finds_a_file_system() {
    let disk = Disk::blank(64 * MIB);
    let (one, two) = tokio::join!(disk.make(FsType::Ext4), disk.make(FsType::Ext4));
    let ways = [one, two];
    assert_eq!(ways.iter().filter(|way| way.is_ok()).count(), 1, "{ways:?}");
    for way in ways.into_iter().filter_map(Result::err) {
        assert!(matches!(way, Error::NotBlank { .. }), "{way}");
    }
}

/// Whoever has the lock of the device is waited for, up to the deadline.
#[tokio::test]
async fn a_locked_device_is_left_alone() {
    let disk = Disk::blank(64 * MIB);
    let held = disk.file();
    rustix::fs::flock(&held, FlockOperation::LockExclusive).unwrap();
    let limits = Limits {
        make: Duration::from_secs(1),
        ..limits()
    };
    let started = Instant::now();
    let made = filesystem::make(&disk.path, FsType::Ext4, &[], &limits).await;
    let error = made.unwrap_err();
    assert!(error.is_timeout(), "{error}");
    assert!(
        error.to_string().contains("waiting for the lock"),
        "{error}"
    );
    assert!(started.elapsed() < Duration::from_secs(30));
    drop(held);
    assert_eq!(disk.content().await, Content::Blank);
    disk.make(FsType::Ext4).await.unwrap();
}

#[tokio::test]
async fn a_check_mends_what_is_safe_and_stops_at_the_rest() {
    let disk = Disk::blank(64 * MIB);
    disk.make(FsType::Ext4).await.unwrap();
    let check = || async { filesystem::check(&disk.path, FsType::Ext4, &limits()).await };
    check().await.unwrap();
    // The count of free blocks is wrong: mended without a question.
    run(
        "debugfs",
        &["-w", "-R", "set_super_value free_blocks_count 7"],
        &disk.path,
    );
    run(
        "debugfs",
        &["-w", "-R", "set_super_value state 0"],
        &disk.path,
    );
    check().await.unwrap();
    // Not a directory any more: where its entries belong is a question.
    run("debugfs", &["-w", "-R", "clri <2>"], &disk.path);
    run(
        "debugfs",
        &["-w", "-R", "set_super_value state 0"],
        &disk.path,
    );
    let error = check().await.unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    assert!(error.to_string().contains("repair"), "{error}");
}

/// Only a report of the very kind that was asked for counts.
#[tokio::test]
async fn a_helper_that_says_nonsense_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::blank(MIB);
    for (script, says) in [
        ("echo hello", "left no report"),
        ("exit 0", "left no report"),
        ("echo '{\"size\":5}'", "another answer"),
        ("kill -9 $$", "left no report"),
    ] {
        let helper = dir.path().join("helper");
        let mut file = File::create(&helper).unwrap();
        writeln!(file, "#!/bin/sh\n{script}").unwrap();
        drop(file);
        fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let limits = Limits { helper, ..limits() };
        let error = filesystem::probe(&disk.path, &limits).await.unwrap_err();
        assert!(error.to_string().contains(says), "{script}: {error}");
    }
}

//! `detach`: nobody loses a device in use by accident; who forces it away gets errors and no hang; a number that is given to
//! another volume shows nothing of the one before. All of it beside a file system under load.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use berth_tests::Berthd;
use berth_tests::berthd::DEADLINE as ANSWER;
use berth_tests::peers::{Peer as _, Portal, Spec, Tgt};
use berth_tests::process::wait_for;

use crate::load::Load;
use crate::volume::{Kind, Mounted, Volume};
use crate::{Options, figures, kernel};

const LOAD_BYTES: u64 = 320 << 20;
/// Two volumes that get the same number in turn. Their sizes tell them apart too.
const REUSED_BYTES: [u64; 2] = [64 << 20, 48 << 20];
const BLOCK: usize = 64 << 10;
/// Where each round leaves its mark.
const MARK_AT: u64 = 1 << 20;
/// From the forced detach to the holder's error.
const ERROR: Duration = Duration::from_secs(30);

pub(crate) fn run(options: &Options) -> Result<()> {
    kernel::load_nbd()?;
    let mut log = kernel::Log::follow()?;
    let tgt = Tgt::start(Spec::open(LOAD_BYTES))?;
    let portals = [
        Portal::start(Spec::open(REUSED_BYTES[0]))?,
        Portal::start(Spec::open(REUSED_BYTES[1]))?,
    ];
    let daemon = Berthd::start()?;
    let result = (|| {
        let busy = Volume::attach(&daemon, "busy", &tgt)?;
        let mut mounted = Mounted::new(&busy, Kind::Xfs)?;
        let mut load = Load::start(&mounted.folder, options.seed)?;
        refused(&daemon, &portals[0])?;
        log.check()?;
        forced(&daemon, &portals[0])?;
        // The complaints were about the device that was taken away; the other one has to go on.
        let device = busy.device.file_name().context("name")?.to_string_lossy();
        let about_others: Vec<_> = log
            .take(&device)?
            .into_iter()
            .filter(|line| line.contains("rror"))
            .collect();
        ensure!(about_others.is_empty(), "{}", about_others.join("\n"));
        load.check()?;
        reused(options, &daemon, &portals, &mut load, &mut log)?;
        let done = load.finish()?;
        println!("beside it: {}", done.fio);
        mounted.check()?;
        log.check()?;
        daemon.detach(&busy.name)
    })();
    result.with_context(|| format!("log of berthd:\n{}", daemon.log()))?;
    daemon.stop()
}

/// The file system stays as it is, and whoever asked learns where it is mounted.
fn refused(daemon: &Berthd, portal: &Portal) -> Result<()> {
    let volume = Volume::attach(daemon, "mounted", portal)?;
    let mut mounted = Mounted::new(&volume, Kind::Ext4)?;
    let answer = daemon.request("DELETE", "/v1/attachments/mounted", None, ANSWER)?;
    let folder = mounted.folder.display().to_string();
    ensure!(
        answer.status == 412 && answer.text().contains(&folder),
        "status {}: {}",
        answer.status,
        answer.text()
    );
    println!("mounted: refused: {}", answer.json()?["detail"]);
    fs::write(mounted.folder.join("still"), "here")?;
    mounted.check()?;
    daemon.detach("mounted")
}

fn forced(daemon: &Berthd, portal: &Portal) -> Result<()> {
    let volume = Volume::attach(daemon, "forced", portal)?;
    let mut mounted = Mounted::new(&volume, Kind::Ext4)?;
    let path = mounted.folder.join("file");
    let mut file = File::create(&path)?;
    let (sender, failed) = sync_channel(1);
    // Not scoped: what hangs cannot be waited for.
    std::thread::spawn(move || {
        let error = loop {
            if let Err(error) = file.write_all(&[7; 4096]).and_then(|()| file.sync_all()) {
                break error;
            }
        };
        let _ = sender.send(error);
    });
    let path = "/v1/attachments/forced?force=true";
    let asked = Instant::now();
    let answer = daemon.request("DELETE", path, None, ANSWER)?;
    ensure!(
        answer.status == 204,
        "status {}: {}",
        answer.status,
        answer.text()
    );
    let answered = asked.elapsed();
    let error = failed
        .recv_timeout(ERROR)
        .map_err(|_| anyhow!("the holder of a device that was forced away hangs"))?;
    println!(
        "forced: answered after {:.2} s, the writer got {error:?} after {:.2} s",
        answered.as_secs_f64(),
        asked.elapsed().as_secs_f64()
    );
    mounted.unmount()?;
    gone(&volume.device)
}

/// Nothing is behind the device any more.
fn gone(device: &Path) -> Result<()> {
    let sys = Path::new("/sys/block").join(device.file_name().context("name")?);
    wait_for("the device is released", ERROR, || {
        Ok((!sys.join("pid").exists()).then_some(()))
    })
}

fn reused(
    options: &Options,
    daemon: &Berthd,
    portals: &[Portal; 2],
    load: &mut Load,
    log: &mut kernel::Log,
) -> Result<()> {
    let mut numbers: BTreeMap<PathBuf, u32> = BTreeMap::new();
    let (mut attach, mut detach) = (Vec::new(), Vec::new());
    for (which, portal) in portals.iter().enumerate() {
        let file = File::options()
            .write(true)
            .open(portal.backing().context("a file")?)?;
        file.write_all_at(&pattern(which), 0)?;
    }
    for round in 1..=options.rounds {
        let which = round as usize % 2;
        let portal = &portals[which];
        let name = format!("reused-{which}");
        let started = Instant::now();
        let volume = Volume::attach(daemon, &name, portal)?;
        attach.push(started.elapsed());
        *numbers.entry(volume.device.clone()).or_default() += 1;
        use_once(&volume, portal, which, round).with_context(|| format!("round {round}"))?;
        let started = Instant::now();
        daemon.detach(&name)?;
        detach.push(started.elapsed());
        load.check()?;
        log.check().with_context(|| format!("round {round}"))?;
    }
    let used: Vec<_> = numbers
        .iter()
        .map(|(device, count)| format!("{} {count} times", device.display()))
        .collect();
    println!(
        "reused: {} attachments: {}",
        options.rounds,
        used.join(", ")
    );
    ensure!(
        numbers.values().any(|&count| count > options.rounds / 4),
        "numbers are not used again"
    );
    figures::print("attach", attach);
    figures::print("detach", detach);
    Ok(())
}

/// Reads through the page cache, where a device before may have left something, and writes through it.
fn use_once(volume: &Volume, portal: &Portal, which: usize, round: u32) -> Result<()> {
    let size = volume.size_bytes()?;
    ensure!(size == REUSED_BYTES[which], "{size} bytes");
    let device = File::options()
        .read(true)
        .write(true)
        .open(&volume.device)
        .with_context(|| volume.device.display().to_string())?;
    let mut found = vec![0; BLOCK];
    device.read_exact_at(&mut found, 0)?;
    ensure!(found == pattern(which), "the device shows another volume");
    let mark = round.to_le_bytes().repeat(1024);
    device.write_all_at(&mark, MARK_AT)?;
    device.sync_all()?;
    drop(device);
    let backing = File::open(portal.backing().context("a file")?)?;
    let mut found = vec![0; mark.len()];
    backing.read_exact_at(&mut found, MARK_AT)?;
    ensure!(found == mark, "the target does not have what was synced");
    Ok(())
}

fn pattern(which: usize) -> Vec<u8> {
    vec![0xa0 + which as u8; BLOCK]
}

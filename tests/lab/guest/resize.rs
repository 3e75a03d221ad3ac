//! `resize`: the target's LUN grows, and so do the device and the file system on it, while it is written to.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_tests::Berthd;
use berth_tests::peers::{Portal, Spec};
use berth_tests::process::wait_for;
use berth_tests::tool;

use crate::load::Load;
use crate::volume::{DEADLINE, Kind, Mounted, Volume};
use crate::{Options, kernel, tree};

/// XFS wants 300 MiB.
const START_BYTES: u64 = 320 << 20;
/// A round adds so much; not a power of two, so that no size comes out right by chance.
const STEP_BYTES: u64 = 37 << 20;
/// From the target's change to the device's: the change is noticed with the next command or keep-alive.
const NOTICED: Duration = Duration::from_secs(60);

pub(crate) fn run(options: &Options) -> Result<()> {
    kernel::load_nbd()?;
    for kind in [Kind::Ext4, Kind::Xfs] {
        let mut log = kernel::Log::follow()?;
        let mut portal = Portal::start(Spec::open(START_BYTES))?;
        let daemon = Berthd::start()?;
        grow(options, kind, &mut portal, &daemon, &mut log)
            .with_context(|| format!("{}\n{}", kind.name(), daemon.log()))?;
        daemon.stop()?;
    }
    Ok(())
}

fn grow(
    options: &Options,
    kind: Kind,
    portal: &mut Portal,
    daemon: &Berthd,
    log: &mut kernel::Log,
) -> Result<()> {
    let volume = Volume::attach(daemon, kind.name(), portal)?;
    ensure!(
        volume.size_bytes()? == START_BYTES,
        "{} bytes",
        volume.size_bytes()?
    );
    let mut mounted = Mounted::new(&volume, kind)?;
    let mut load = Load::start(&mounted.folder, options.seed)?;
    let mut size = START_BYTES;
    for round in 1..=options.rounds {
        size += STEP_BYTES;
        let before = room_bytes(&mounted)?;
        portal.resize(size)?;
        let asked = Instant::now();
        wait_for("the device grows", NOTICED, || {
            load.check()?;
            let now = volume.size_bytes()?;
            ensure!(now == size || now == size - STEP_BYTES, "{now} bytes");
            Ok((now == size).then_some(()))
        })?;
        let noticed = asked.elapsed();
        let output = tool::run(
            "blockdev",
            &["--getsize64".as_ref(), volume.device.as_os_str()],
            DEADLINE,
        )?;
        ensure!(output.text.trim() == size.to_string(), "{}", output.text);
        match kind {
            Kind::Ext4 => tool::run("resize2fs", &[&volume.device], DEADLINE)?,
            Kind::Xfs => tool::run("xfs_growfs", &[&mounted.folder], DEADLINE)?,
        };
        let grown = room_bytes(&mounted)? - before;
        // What the file system takes for itself of the new space.
        ensure!(
            grown > STEP_BYTES / 10 * 8,
            "the file system grew by {grown} bytes only"
        );
        println!(
            "{} round {round}: device {} MiB after {:.2} s, file system grew by {} MiB",
            kind.name(),
            size >> 20,
            noticed.as_secs_f64(),
            grown >> 20
        );
    }
    let seed = load.seed();
    let done = load.finish()?;
    println!("{}: {}", kind.name(), done.fio);
    mounted.check()?;
    mounted.mount()?;
    tree::compare_last(&mounted.folder, seed)?;
    mounted.unmount()?;
    log.check()?;
    daemon.detach(&volume.name)
}

/// All the space of a file system, used or not.
fn room_bytes(mounted: &Mounted) -> Result<u64> {
    let room = rustix::fs::statvfs(&mounted.folder)?;
    Ok(room.f_blocks * room.f_frsize)
}

//! What most scenarios begin with: two file systems of different kinds on devices of different targets, both under load.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_tests::Berthd;
use berth_tests::peers::{Portal, Spec, Tgt};
use berth_tests::prober::Probe;
use berth_tests::process::wait_for;

use crate::load::Load;
use crate::volume::{Kind, Mounted, Volume};
use crate::{Options, figures, kernel, tree};

/// XFS wants 300 MiB.
const LUN_BYTES: u64 = 320 << 20;
/// From the daemon's start to the first answer, on one busy processor.
pub(crate) const RECOVERY: Duration = Duration::from_secs(120);
/// How long beyond its time a wait for nothing but time may take.
const LATE: Duration = Duration::from_secs(60);

/// The two targets, the daemon, and all that is on top.
#[derive(Debug)]
pub(crate) struct Scene {
    // In the order in which they have to go.
    loads: Vec<Load>,
    mounts: Vec<Mounted>,
    pub(crate) daemon: Berthd,
    volumes: Vec<Volume>,
    log: kernel::Log,
    lives: u32,
    _portal: Portal,
    _tgt: Tgt,
}

impl Scene {
    /// Everything is mounted, and the load runs.
    pub(crate) fn start(options: &Options) -> Result<Self> {
        kernel::load_nbd()?;
        let log = kernel::Log::follow()?;
        let portal = Portal::start(Spec::open(LUN_BYTES))?;
        let tgt = Tgt::start(Spec::open(LUN_BYTES))?;
        let daemon = Berthd::start_managed()?;
        let mut scene = Self {
            loads: Vec::new(),
            mounts: Vec::new(),
            volumes: Vec::new(),
            daemon,
            log,
            lives: 0,
            _portal: portal,
            _tgt: tgt,
        };
        let result = scene.build(options.seed);
        scene.keep_log();
        result.map(|()| scene)
    }

    fn build(&mut self, seed: u64) -> Result<()> {
        let ext4 = Volume::attach(&self.daemon, "ext4", &self._portal)?;
        let xfs = Volume::attach(&self.daemon, "xfs", &self._tgt)?;
        for (number, (volume, kind)) in (1..).zip([(&ext4, Kind::Ext4), (&xfs, Kind::Xfs)]) {
            let mounted = Mounted::new(volume, kind)?;
            self.loads
                .push(Load::start(&mounted.folder, seed + number * 1_000_000)?);
            self.mounts.push(mounted);
        }
        self.volumes = vec![ext4, xfs];
        println!(
            "ext4 on {} (portal), xfs on {} (tgt), under load",
            self.volumes[0].device.display(),
            self.volumes[1].device.display()
        );
        Ok(())
    }

    /// Saves what the daemon has logged in this life, and fails if it has panicked.
    pub(crate) fn end_of_life(&mut self) -> Result<()> {
        self.lives += 1;
        self.keep_log();
        let log = self.daemon.log();
        ensure!(!log.contains("panicked"), "berthd panicked:\n{log}");
        Ok(())
    }

    fn keep_log(&self) {
        let path = format!("/mnt/logs/berthd-{:04}.log", self.lives);
        // Nobody is there to read it outside of the lab.
        let _ = std::fs::write(path, self.daemon.log());
    }

    /// Fails when a load or the kernel has seen an error.
    pub(crate) fn check(&mut self) -> Result<()> {
        for load in &mut self.loads {
            load.check()?;
        }
        self.log.check()
    }

    /// Lets time pass under load.
    pub(crate) fn go_on_for(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        wait_for("load", time + LATE, || {
            self.check()?;
            Ok((Instant::now() >= end).then_some(()))
        })
    }

    /// Waits until both file systems have answered something that was asked at `time` or later.
    pub(crate) fn wait_answered_since(&mut self, time: Instant) -> Result<()> {
        let result = wait_for("an answer of both file systems", RECOVERY, || {
            self.check()?;
            for load in &self.loads {
                if !load.answered_since(time)? {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        });
        result.with_context(|| format!("log of berthd:\n{}", self.daemon.log()))
    }

    /// The longest that a small request had to wait that was due since `time`.
    pub(crate) fn longest_since(&self, time: Instant) -> Duration {
        let longest = self.loads.iter().map(|load| load.longest_since(time));
        longest.max().unwrap_or_default()
    }

    /// Ends the load and looks at everything once more: file systems, what is on them, the kernel's log, the daemon.
    pub(crate) fn finish(mut self) -> Result<()> {
        let result = self.finish_and_compare();
        self.keep_log();
        result?;
        for volume in &self.volumes {
            self.daemon.detach(&volume.name)?;
        }
        self.log.check()?;
        self.daemon.stop()
    }

    fn finish_and_compare(&mut self) -> Result<()> {
        let mut probes: Vec<Probe> = Vec::new();
        for (load, mounted) in self.loads.drain(..).zip(&mut self.mounts) {
            let seed = load.seed();
            let done = load.finish()?;
            println!(
                "{}: {}; {} files written, {} compared",
                mounted.kind.name(),
                done.fio,
                done.tree.written,
                done.tree.compared
            );
            ensure!(done.fio.passes > 0 && done.tree.compared > 0, "no load");
            probes.extend(done.probes);
            mounted.check()?;
            mounted.mount()?;
            let count = tree::compare_last(&mounted.folder, seed)?;
            ensure!(count > 0, "nothing to compare");
            mounted.unmount()?;
            println!(
                "{}: clean, {count} files compared after a new mount",
                mounted.kind.name()
            );
        }
        figures::print(
            "small requests, 20 a second on each file system",
            probes.iter().map(|probe| probe.took).collect(),
        );
        self.log.check()
    }
}

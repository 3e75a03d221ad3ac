//! All that happens on one file system at a time: fio, a tree of files, and a prober. Each checks what it reads.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use berth_tests::fio::{self, Pass, Place, Verify};
use berth_tests::prober::{Probe, Prober};

use crate::tree::{self, Tree};

/// Of each of fio's four jobs.
const AREA_BYTES: u64 = 8 << 20;
const WRITE_RATE_BYTES: u64 = 512 << 10;
const PROBE_INTERVAL: Duration = Duration::from_millis(50);
/// A pass takes 20 s undisturbed, and daemons are away for minutes.
const PASS: Duration = Duration::from_secs(600);

/// The load of one file system.
#[derive(Debug)]
pub(crate) struct Load {
    folder: PathBuf,
    seed: u64,
    prober: Prober,
    tree: Tree,
    verify: Verify,
    pass: Option<Pass>,
    done: fio::Done,
}

/// What a load has done.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) fio: fio::Done,
    pub(crate) tree: tree::Done,
    pub(crate) probes: Vec<Probe>,
}

impl Load {
    /// Starts on a mounted file system.
    pub(crate) fn start(folder: &std::path::Path, seed: u64) -> Result<Self> {
        let files = folder.join("fio");
        std::fs::create_dir_all(&files)?;
        let verify = Verify {
            place: Place::Folder(files),
            seed,
            area_bytes: AREA_BYTES,
            write_rate_bytes: WRITE_RATE_BYTES,
        };
        Ok(Self {
            folder: folder.to_owned(),
            seed,
            prober: Prober::start_in(&folder.join("prober"), PROBE_INTERVAL)?,
            tree: Tree::start(folder, seed)?,
            pass: Some(verify.start()?),
            verify,
            done: fio::Done::default(),
        })
    }

    /// Fails when the load has seen an error; starts the next pass of fio when one is over.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.prober
            .answered_since(Instant::now())
            .with_context(|| self.folder.display().to_string())?;
        self.tree.check()?;
        if let Some(mut pass) = self.pass.take() {
            if !pass.is_over()? {
                self.pass = Some(pass);
                return Ok(());
            }
            self.note(pass)?;
            self.verify.seed += 1;
            self.pass = Some(self.verify.start()?);
        }
        Ok(())
    }

    /// Whether the prober was answered something that it asked at `time` or later.
    pub(crate) fn answered_since(&self, time: Instant) -> Result<bool> {
        self.prober.answered_since(time)
    }

    /// The longest of the requests that were due since `time`.
    pub(crate) fn longest_since(&self, time: Instant) -> Duration {
        let probes = self.prober.probes_since(time);
        probes
            .iter()
            .map(|probe| probe.took)
            .max()
            .unwrap_or_default()
    }

    fn note(&mut self, pass: Pass) -> Result<()> {
        self.done += pass
            .finish(PASS)
            .with_context(|| format!("{}, pass {}", self.folder.display(), self.done.passes))?;
        Ok(())
    }

    /// Lets the last pass end, verification included, and stops the rest.
    pub(crate) fn finish(mut self) -> Result<Done> {
        if let Some(pass) = self.pass.take() {
            self.note(pass)?;
        }
        Ok(Done {
            tree: self.tree.finish()?,
            probes: self.prober.finish()?,
            fio: self.done,
        })
    }

    /// Its seed, for [`tree::compare_last`] after a new mount.
    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }
}

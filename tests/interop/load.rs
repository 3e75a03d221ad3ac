//! A load that checks all it reads, and a prober beside it, for tests that break things.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use berth_tests::Berthd;
use berth_tests::fio::{Done, Pass, Place, Verify};
use berth_tests::prober::{AREA_BYTES, Prober};
use berth_tests::process::wait_for;

/// Bytes that each of fio's four jobs writes and reads in a pass.
const AREA_EACH_BYTES: u64 = 40 << 20;
const PROBE_INTERVAL: Duration = Duration::from_millis(50);
/// From the end of a trouble to the first answer: backoff, login, and room for a busy machine.
const RECOVERY: Duration = Duration::from_secs(60);
/// A pass takes about 25 s, and what is left of it runs without trouble.
pub(crate) const PASS: Duration = Duration::from_secs(120);
const DEADLINE: Duration = Duration::from_secs(20);
/// What the load uses of the export, from its start on.
pub(crate) const USED_BYTES: u64 = 4 * AREA_EACH_BYTES + AREA_BYTES;

/// The load: pass after pass of fio, and the prober.
pub(crate) struct Load {
    pub(crate) prober: Prober,
    verify: Verify,
    pub(crate) pass: Option<Pass>,
    done: Done,
}

impl Load {
    pub(crate) fn start(daemon: &Berthd, seed: u64, write_rate_bytes: u64) -> Result<Self> {
        let verify = Verify {
            place: Place::Nbd(daemon.nbd_uri("disk")),
            seed,
            area_bytes: AREA_EACH_BYTES,
            write_rate_bytes,
        };
        let area = verify.all_areas_bytes();
        Ok(Self {
            prober: Prober::start(&daemon.nbd_socket(), "disk", area, PROBE_INTERVAL)?,
            pass: Some(verify.start()?),
            verify,
            done: Done::default(),
        })
    }

    /// Fails when the load has seen an error; starts the next pass when one is over.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.prober.answered_since(Instant::now())?;
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

    fn note(&mut self, pass: Pass) -> Result<()> {
        self.done += pass
            .finish(PASS)
            .with_context(|| format!("pass {}", self.done.passes))?;
        Ok(())
    }

    /// Lets time pass under load.
    pub(crate) fn go_on_for(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        wait_for("load", time + DEADLINE, || {
            self.check()?;
            Ok((Instant::now() >= end).then_some(()))
        })
    }

    pub(crate) fn wait_answered_since(&mut self, time: Instant) -> Result<()> {
        wait_for("an answer after the end of the trouble", RECOVERY, || {
            self.check()?;
            Ok(self.prober.answered_since(time)?.then_some(()))
        })
    }

    /// Lets the last pass end, verification included.
    pub(crate) fn finish(mut self) -> Result<Done> {
        if let Some(pass) = self.pass.take() {
            self.note(pass)?;
        }
        self.prober.finish()?;
        Ok(self.done)
    }
}

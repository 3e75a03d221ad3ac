//! `crash` and `restart`: the daemon ends again and again under two file systems, and nobody on them notices more than a stall.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::Signal;

use crate::figures::Random;
use crate::scene::Scene;
use crate::{Options, figures};

/// How the daemon ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// `kill -9`, at any moment: also while it is just starting.
    Kill,
    /// SIGTERM, as for an upgrade.
    Planned,
}

/// Undisturbed load between two ends, at most.
const PAUSE_MS: u64 = 1500;
/// Of a daemon that is killed before it is ready: within this time of its start.
const EARLY_MS: u64 = 600;
/// One of so many is killed so early.
const EARLY_EVERY: u64 = 4;
/// One of so many starts without what the service manager has kept, as after `systemctl stop`.
const FORGOTTEN_EVERY: u64 = 4;

pub(crate) fn run(options: &Options, end: End) -> Result<()> {
    let mut random = Random(options.seed);
    let mut scene = Scene::start(options)?;
    scene.go_on_for(Duration::from_secs(1))?;
    let mut stalls = Vec::new();
    let (mut early, mut kept) = (0, 0);
    let mut ended = Instant::now();
    let mut disturbed = false;
    for round in 1..=options.rounds {
        if !disturbed {
            scene.go_on_for(random.millis(PAUSE_MS))?;
            ended = Instant::now();
        }
        let forget = random.below(FORGOTTEN_EVERY) == 0;
        kept += u32::from(!forget);
        let started =
            end_and_begin(&mut scene, end, forget).with_context(|| format!("round {round}"))?;
        let kill_early =
            end == End::Kill && random.below(EARLY_EVERY) == 0 && round < options.rounds;
        disturbed = kill_early;
        if kill_early {
            early += 1;
            scene.go_on_for(random.millis(EARLY_MS))?;
            continue;
        }
        scene.daemon.wait_ready()?;
        scene
            .wait_answered_since(started)
            .with_context(|| format!("round {round}"))?;
        stalls.push(scene.longest_since(ended));
        if round % 10 == 0 {
            println!(
                "round {round}: last stall {:.2} s",
                stalls.last().copied().unwrap_or_default().as_secs_f64()
            );
        }
    }
    println!(
        "berthd ended {} times ({end:?}), {early} of them within {EARLY_MS} ms of its start; its descriptors were kept {kept} times",
        options.rounds
    );
    figures::print("longest stall after an end", stalls);
    scene.finish()
}

/// Returns when the next life began.
fn end_and_begin(scene: &mut Scene, end: End, forget: bool) -> Result<Instant> {
    scene.daemon.end(match end {
        End::Kill => Signal::KILL,
        End::Planned => Signal::TERM,
    })?;
    scene.end_of_life()?;
    let manager = scene.daemon.manager().context("has a manager")?;
    if forget {
        manager.forget()?;
    }
    let started = Instant::now();
    scene.daemon.begin()?;
    Ok(started)
}

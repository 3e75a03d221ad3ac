//! `absent`: the daemon is away for minutes under two mounted file systems with load, and comes back.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use crate::Options;
use crate::scene::Scene;

/// A round is so long.
const ROUND: Duration = Duration::from_secs(9);

pub(crate) fn run(options: &Options) -> Result<()> {
    let absence = ROUND * options.rounds;
    let mut scene = Scene::start(options)?;
    scene.go_on_for(Duration::from_secs(2))?;
    let ended = Instant::now();
    scene.daemon.end(Signal::KILL)?;
    scene.end_of_life()?;
    // Nobody keeps the kernel's connections alive either.
    scene.daemon.manager().context("has a manager")?.forget()?;
    scene.go_on_for(absence)?;
    let started = Instant::now();
    scene.daemon.begin()?;
    scene.daemon.wait_ready()?;
    scene.wait_answered_since(started)?;
    let stall = scene.longest_since(ended);
    println!(
        "berthd was away for {:.1} s; longest stall {:.1} s, answered {:.1} s after its start",
        (started - ended).as_secs_f64(),
        stall.as_secs_f64(),
        started.elapsed().as_secs_f64()
    );
    // Else something has answered in its place.
    ensure!(stall >= absence, "requests were answered without a daemon");
    scene.go_on_for(Duration::from_secs(5))?;
    scene.finish()
}

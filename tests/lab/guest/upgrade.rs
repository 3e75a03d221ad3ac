//! `upgrade`: packages are installed over each other under a mounted file system, and none is removed while it is needed.
//! At the end the drivers of Kubernetes, whose package is upgraded, removed and purged, too.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use berth_tests::tool;

use crate::load::Load;
use crate::machine::{DEADLINE, Event, FOLDER, Machine, PACKAGES, main_pid};
use crate::{Options, figures, kubernetes, tree};

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut machine = Machine::install(PACKAGES[0])?;
    machine.attach()?;
    machine.mount()?;
    let mut load = Load::start(Path::new(FOLDER), options.seed)?;
    refused("--remove", &mut load)?;
    let mut stalls = Vec::new();
    for round in 1..=options.rounds {
        let package = PACKAGES[round as usize % 2];
        let stall = machine
            .disturb(Event::Upgrade(package), &mut load)
            .with_context(|| format!("round {round}"))?;
        stalls.push(stall);
        runs_what_is_installed()?;
    }
    figures::print("stalls of an upgrade", stalls);
    refused("--purge", &mut load)?;
    let done = load.finish()?;
    println!(
        "{}; {} files written, {} compared",
        done.fio, done.tree.written, done.tree.compared
    );
    ensure!(done.fio.passes > 0 && done.tree.compared > 0, "no load");
    let count = tree::compare_last(Path::new(FOLDER), options.seed)?;
    ensure!(count > 0, "nothing to compare");
    machine.unmount()?;
    // Attached is enough to refuse.
    let output = tool::try_run("dpkg", &["--remove", "berth"], DEADLINE)?;
    ensure!(!output.status.success(), "removed while attached");
    machine.detach()?;
    machine.check()?;
    tool::run("dpkg", &["--remove", "berth"], DEADLINE)?;
    ensure!(main_pid()? == 0, "a daemon without its package");
    // What is wanted and who the node is stay until a purge, and a new installation goes on with it.
    ensure!(
        Path::new("/var/lib/berth/initiator_name").exists(),
        "the state is gone"
    );
    tool::run("dpkg", &["-i", PACKAGES[1]], DEADLINE)?;
    machine.wait_ready()?;
    kubernetes::upgrade()?;
    tool::run("dpkg", &["--purge", "berth"], DEADLINE)?;
    println!("removed when nothing was attached, installed again, purged");
    Ok(())
}

/// The package says no, names what is attached, and nothing has changed for it.
fn refused(how: &str, load: &mut Load) -> Result<()> {
    let before = main_pid()?;
    let output = tool::try_run("dpkg", &[how, "berth"], DEADLINE)?;
    ensure!(
        !output.status.success() && output.text.contains("not removed"),
        "dpkg {how}: {}",
        output.text
    );
    ensure!(main_pid()? == before && before != 0, "the daemon has ended");
    load.check()
}

/// The daemon is the program of the package, not the one before.
fn runs_what_is_installed() -> Result<()> {
    let program = std::fs::read_link(format!("/proc/{}/exe", main_pid()?))?;
    ensure!(
        program == Path::new("/usr/bin/berthd"),
        "{} runs",
        program.display()
    );
    Ok(())
}

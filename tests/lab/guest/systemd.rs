//! `systemd`: the service as its package installs it. It is what it claims to be; a mounted file system under load outlives its restarts,
//! its end by SIGKILL and a hang of its data plane; after a reboot the device and the mount are back. So does a volume of berth-csi, whose
//! package is installed beside it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use berth_tests::process::wait_for;
use berth_tests::tool;

use crate::load::Load;
use crate::machine::{
    DEADLINE, DEVICE, Event, FOLDER, Machine, PACKAGES, journal, main_pid, property,
};
use crate::{Next, Options, figures, kubernetes, tree};

/// Lasts over the reboot.
const MARK: &str = "/var/lib/lab-rebooted";
/// Of `systemd-analyze security`: what an own user with few capabilities reaches.
const EXPOSURE_BELOW: f64 = 3.0;

pub(crate) fn run(options: &Options) -> Result<Next> {
    let first = fs::read_to_string("/proc/1/comm")?;
    ensure!(first.trim() == "systemd", "PID 1 is {first}");
    if Path::new(MARK).exists() {
        return after_reboot(options).map(|()| Next::End);
    }
    let mut machine = Machine::install(PACKAGES[0])?;
    check_service()?;
    let volume = kubernetes::begin(&machine)?;
    machine.attach()?;
    machine.mount()?;
    println!("installed, attached over HTTP, mounted by fstab");
    let mut load = Load::start(Path::new(FOLDER), options.seed)?;
    for event in [Event::Restart, Event::Kill, Event::Hang] {
        let mut stalls = Vec::new();
        // A hang takes the watchdog's patience each time.
        let rounds = match event {
            Event::Hang => options.rounds.div_ceil(4),
            _ => options.rounds,
        };
        for round in 1..=rounds {
            let stall = machine
                .disturb(event, &mut load)
                .with_context(|| format!("{event:?}, round {round}"))?;
            stalls.push(stall);
        }
        figures::print(&format!("stalls of {event:?}"), stalls);
        volume.check(&format!("after {event:?}"))?;
    }
    check_hang_was_found()?;
    let done = load.finish()?;
    println!(
        "{}; {} files written, {} compared",
        done.fio, done.tree.written, done.tree.compared
    );
    ensure!(done.fio.passes > 0 && done.tree.compared > 0, "no load");
    volume.check("before the reboot")?;
    machine.check()?;
    // Mounted and attached: all of this is up to the service manager now.
    fs::write(MARK, "")?;
    println!("rebooting");
    Ok(Next::Reboot)
}

/// The user, the capabilities, the memory and the rest, as they are in force.
fn check_service() -> Result<()> {
    let pid = main_pid()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_whitespace().nth(1))
            .unwrap_or_default()
            .to_owned()
    };
    ensure!(field("Uid:") != "0", "berthd runs as root");
    // SYS_ADMIN, SYS_RESOURCE, SYS_PTRACE, DAC_OVERRIDE and nothing else.
    ensure!(
        field("CapBnd:") == "0000000001280002" && field("CapEff:") == field("CapBnd:"),
        "capabilities: {status}"
    );
    ensure!(field("NoNewPrivs:") == "1", "{status}");
    ensure!(field("VmLck:") != "0", "memory is not locked: {status}");
    let said = tool::run("journalctl", &["--no-pager", "-u", "berthd"], DEADLINE)?.text;
    ensure!(said.contains("io_flusher=true locked=true"), "{said}");
    let group = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    ensure!(
        group.trim() == "0::/berth.slice/berthd.service",
        "cgroup {group}"
    );

    let words = ["security", "--no-pager", "berthd.service"];
    let said = tool::run("systemd-analyze", &words, DEADLINE)?.text;
    let level = said
        .lines()
        .find_map(|line| line.split_once("Overall exposure level for berthd.service:"))
        .and_then(|(_, rest)| rest.split_whitespace().next()?.parse::<f64>().ok())
        .with_context(|| format!("no exposure level in:\n{said}"))?;
    println!("systemd-analyze security: {level}");
    ensure!(level < EXPOSURE_BELOW, "systemd-analyze security:\n{said}");
    let units = ["verify", "berthd.service", "berthd.socket", "berth.slice"];
    let said = tool::run("systemd-analyze", &units, DEADLINE)?.text;
    ensure!(!said.contains("berth"), "systemd-analyze verify:\n{said}");
    Ok(())
}

/// It was the watchdog that ended the daemon, and the data plane that did not feed it.
fn check_hang_was_found() -> Result<()> {
    let said = tool::run("journalctl", &["--no-pager", "-u", "berthd"], DEADLINE)?.text;
    for words in ["Watchdog timeout", "the watchdog is not fed"] {
        ensure!(said.contains(words), "no {words:?} in:\n{said}");
    }
    Ok(())
}

/// Unmount, then the daemon, in good time and of its own accord: what the service manager and the daemon said of it.
fn check_shutdown() -> Result<()> {
    let words = ["--no-pager", "-b", "-1", "-o", "short-monotonic"];
    let said = tool::run("journalctl", &words, DEADLINE)?.text;
    let last = || {
        let lines: Vec<_> = said.lines().collect();
        lines[lines.len().saturating_sub(120)..].join("\n")
    };
    ensure!(!said.contains("ordering cycle"), "{said}");
    let mut rest = said.as_str();
    for words in [
        "Unmounted srv-vol0.mount",
        "Stopping berthd.service",
        "berthd.service: Deactivated successfully",
        "Stopped berthd.service",
        "Stopped lab-target.service",
    ] {
        let (_, after) = rest
            .split_once(words)
            .with_context(|| format!("no {words:?} in its place at shutdown:\n{}", last()))?;
        rest = after;
    }
    kubernetes::check_shutdown(&said).with_context(last)
}

fn after_reboot(options: &Options) -> Result<()> {
    wait_for("the mount", DEADLINE, || {
        let mounts = fs::read_to_string("/proc/mounts")?;
        let mounted = mounts
            .lines()
            .any(|line| line.split(' ').nth(1) == Some(FOLDER));
        Ok(mounted.then_some(()))
    })
    .with_context(journal)?;
    println!("mounted again after the reboot");
    check_shutdown()?;
    // The file system was unmounted before the daemon went.
    let said = tool::run("dmesg", &[] as &[&str], DEADLINE)?.text;
    ensure!(!said.contains("recovery complete"), "not clean:\n{said}");
    let failed = property("srv-vol0.mount", "Result")?;
    ensure!(failed == "success", "srv-vol0.mount: {failed}");
    let count = tree::compare_last(Path::new(FOLDER), options.seed)?;
    ensure!(count > 0, "nothing to compare");
    println!("clean, {count} files compared");

    let mut machine = Machine::as_it_is()?;
    machine.wait_ready()?;
    kubernetes::end()?;
    machine.unmount()?;
    machine.detach()?;
    machine.check()?;
    tool::run("dpkg", &["--purge", "berth"], Duration::from_secs(180))?;
    for path in ["/var/lib/berth", "/etc/berth", "/usr/bin/berthd", DEVICE] {
        ensure!(!Path::new(path).exists(), "{path} is left");
    }
    println!("removed, nothing is left");
    Ok(())
}

//! Boots the guest that a scenario asks for, and runs the scenario's program in it.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use berth_tests::guest::Booted;
use berth_tests::guest::debian::Debian;
use berth_tests::guest::qemu::Qemu;
use berth_tests::guest::run::to_end;
use berth_tests::guest::uml::{HOST, Tap, Uml};
use berth_tests::peers::{Peer as _, Portal, Spec};
use berth_tests::programs;
use tempfile::TempDir;

use crate::STOP;
use crate::scenario::{Place, Scenario};

/// Programs of ours that guests need.
const PROGRAMS: [&str; 5] = ["lab-guest", "berthd", "berthctl", "berth-csi", "portal"];
/// Where folders are that are shared with guests, which write much and sync it.
const MEMORY: &str = "/dev/shm";
/// Of their names; the process id of the lab follows.
const PREFIX: &str = "berth-lab-";
/// Folder of logs, in the folder that is shared with the guest.
const LOGS: &str = "logs";
/// Folders of the nodes of a cluster begin so; their logs are in a folder in them.
pub(crate) const NODE: &str = "node-";

/// Runs a scenario to its end, in a guest of its own.
///
/// # Errors
/// When it falls short or does not come to its end; says where its logs are.
pub(crate) fn run(scenario: &Scenario, rounds: u32, seed: u64) -> Result<()> {
    remove_stale();
    let prefix = format!("{PREFIX}{}-", std::process::id());
    let folder = TempDir::with_prefix_in(prefix, MEMORY)?;
    std::fs::create_dir(folder.path().join(LOGS))?;
    let status = in_place(scenario, rounds, seed, folder.path());
    match status {
        Ok(0) => Ok(()),
        result => {
            let kept = keep(scenario, folder.path())?;
            let status = result.with_context(|| format!("logs are in {}", kept.display()))?;
            ensure!(
                status == 0,
                "exit status {status}; logs are in {}",
                kept.display()
            );
            Ok(())
        }
    }
}

fn in_place(scenario: &Scenario, rounds: u32, seed: u64, folder: &Path) -> Result<i32> {
    let limit = scenario.limit(rounds);
    let mut words = format!("{}\n--rounds\n{rounds}\n--seed\n{seed}\n", scenario.name);
    let boot_uml = |words: &str, tap: Option<&Tap>| {
        std::fs::write(folder.join("arguments"), words)?;
        let programs = programs::ours(PROGRAMS[0])?;
        let programs = programs.parent().context("is in a folder")?;
        Uml {
            name: scenario.name,
            memory_mib: scenario.memory_mib,
            main: include_str!("uml-main.sh"),
            folder,
            environment: &[("BERTH_PROGRAMS", programs.to_str().context("path is text")?)],
            tap,
        }
        .boot()
    };
    match &scenario.place {
        Place::Nodes(lead) => lead(folder, rounds, seed).map(|()| 0),
        Place::Uml => to_its_end(boot_uml(&words, None)?, folder, limit),
        Place::UmlWith { prepare } => {
            prepare(folder)?;
            to_its_end(boot_uml(&words, None)?, folder, limit)
        }
        Place::UmlTargetOutside { lun_mib } => {
            let tap = Tap::new("lab")?;
            let portal = Portal::start_in(Spec::open(lun_mib << 20), HOST, tap.netns())?;
            words += &format!(
                "--portal\n{}\n--target\n{}\n",
                portal.portal(),
                portal.target()
            );
            let guest = boot_uml(&words, Some(&tap))?;
            to_its_end(guest, folder, limit)
        }
        Place::Debian { prepare } => {
            let debian = Debian::get()?;
            // Not in memory: the programs with all their symbols are large.
            let payload = TempDir::with_prefix("payload-")?;
            let main = payload.path().join("main");
            std::fs::write(payload.path().join("arguments"), &words)?;
            std::fs::write(&main, include_str!("debian-main.sh"))?;
            make_executable(&main)?;
            for name in PROGRAMS {
                std::fs::copy(programs::ours(name)?, payload.path().join(name))?;
            }
            prepare(payload.path())?;
            let guest = Qemu {
                debian: &debian,
                memory_mib: scenario.memory_mib,
                payload: payload.path(),
                folder,
            }
            .boot()?;
            to_its_end(guest, folder, limit)
        }
    }
}

fn to_its_end(mut guest: Booted, folder: &Path, limit: Duration) -> Result<i32> {
    let stop = || STOP.load(Ordering::Relaxed);
    let result = to_end(
        &mut guest.process,
        folder,
        limit,
        &stop,
        &mut std::io::stdout(),
    );
    // What the kernel said is worth having beside the rest.
    std::fs::write(folder.join(LOGS).join("console"), guest.process.log())?;
    result
}

/// Folders outlive a lab that was killed, and they are memory.
fn remove_stale() {
    for entry in std::fs::read_dir(MEMORY).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next())
            .filter(|owner| owner.bytes().all(|byte| byte.is_ascii_digit()));
        if owner.is_some_and(|owner| !Path::new("/proc").join(owner).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn make_executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    Ok(std::fs::set_permissions(
        path,
        std::fs::Permissions::from_mode(0o755),
    )?)
}

/// Saves the logs of a run that failed beside the programs it ran.
fn keep(scenario: &Scenario, folder: &Path) -> Result<PathBuf> {
    let program = programs::ours(PROGRAMS[0])?;
    let kept = program
        .parent()
        .context("is in a folder")?
        .join("lab-logs")
        .join(scenario.name);
    if kept.exists() {
        std::fs::remove_dir_all(&kept)?;
    }
    std::fs::create_dir_all(&kept)?;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == LOGS {
            copy_files(&entry.path(), &kept)?;
        } else if name.starts_with(NODE) {
            copy_files(&entry.path().join(LOGS), &kept.join(name))?;
        }
    }
    Ok(kept)
}

fn copy_files(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

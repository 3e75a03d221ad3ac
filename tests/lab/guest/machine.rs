//! A machine with systemd on which berth is installed by its package: what an operator does, and what happens to the service.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_tests::http::{self, Answer};
use berth_tests::process::wait_for;
use berth_tests::tool;
use serde_json::{Value, json};

use crate::kernel;
use crate::load::Load;

/// Packages of the same program, as the host has made them.
pub(crate) const PACKAGES: [&str; 2] = ["/lab/berth-1.deb", "/lab/berth-2.deb"];
/// Name of the attachment.
pub(crate) const NAME: &str = "vol0";
/// The device of that name, whatever its number is.
pub(crate) const DEVICE: &str = "/dev/disk/by-berth/vol0";
/// Where it is mounted.
pub(crate) const FOLDER: &str = "/srv/vol0";

const TARGET: &str = "iqn.2026-11.io.berth.lab:vol0";
const LUN_BYTES: u64 = 256 << 20;
const API: &str = "/run/berth/api.sock";
/// A step of the service manager, dpkg or mkfs on an emulated processor, under load.
pub(crate) const DEADLINE: Duration = Duration::from_secs(180);
/// From the end of one life to I/O in the next one; a watchdog's patience comes before it.
const RECOVERY: Duration = Duration::from_secs(180);

/// The target, in place of a storage array: it comes before berthd and goes after it.
const TARGET_UNIT: &str = "\
[Unit]
Description=The target of the scenario
Before=berthd.service
[Service]
Type=notify
ExecStart=/usr/sbin/tgtd -f
ExecStartPost=/usr/sbin/tgtadm --lld iscsi --op new --mode target --tid 1 -T @TARGET@
ExecStartPost=/usr/sbin/tgtadm --lld iscsi --op new --mode logicalunit --tid 1 --lun 1 -b /var/lib/lab.lun
ExecStartPost=/usr/sbin/tgtadm --lld iscsi --op bind --mode target --tid 1 -I ALL
# It does not listen to anything softer.
KillSignal=SIGKILL
";
/// What differs on this machine, as an administrator would say it.
const DROP_IN: &str = "\
[Unit]
Wants=lab-target.service
After=lab-target.service
[Service]
# SIGUSR2 makes the data plane hang.
Environment=BERTH_FAULT_SIGNALS=true
";
/// As docs/installation.md has it.
const FSTAB: &str = "/dev/disk/by-berth/vol0 /srv/vol0 ext4 \
     _netdev,nofail,x-systemd.after=berthd.service,x-systemd.device-timeout=5min 0 2\n";

/// What happens to the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// `systemctl restart`.
    Restart,
    /// `systemctl kill -s KILL`.
    Kill,
    /// A thread of the data plane hangs: the watchdog has to find it.
    Hang,
    /// A package is installed over the other one.
    Upgrade(&'static str),
}

/// The machine, once the package is installed.
#[derive(Debug)]
pub(crate) struct Machine {
    log: kernel::Log,
}

impl Machine {
    /// Sets up the target and installs the package.
    pub(crate) fn install(package: &str) -> Result<Self> {
        fs::File::create("/var/lib/lab.lun")?.set_len(LUN_BYTES)?;
        // What is said while the machine goes down is read after the reboot.
        fs::create_dir_all("/var/log/journal")?;
        tool::run("journalctl", &["--flush"], DEADLINE)?;
        let units = Path::new("/etc/systemd/system");
        fs::write(
            units.join("lab-target.service"),
            TARGET_UNIT.replace("@TARGET@", TARGET),
        )?;
        fs::create_dir_all(units.join("berthd.service.d"))?;
        fs::write(units.join("berthd.service.d/lab.conf"), DROP_IN)?;
        let machine = Self::as_it_is()?;
        tool::run("dpkg", &["-i", package], DEADLINE)?;
        // The machine of the lab starts no others of those that are wanted at boot.
        systemctl(&["add-wants", "lab.target", "berthd.service"])?;
        machine.wait_ready()?;
        Ok(machine)
    }

    /// After a reboot.
    pub(crate) fn as_it_is() -> Result<Self> {
        Ok(Self {
            log: kernel::Log::follow()?,
        })
    }

    /// Fails when the kernel has complained.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.log.check()
    }

    /// One request to the API.
    pub(crate) fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
        http::request(Path::new(API), method, path, body, DEADLINE)
    }

    /// Waits until the daemon answers that it is ready.
    pub(crate) fn wait_ready(&self) -> Result<()> {
        wait_for("berthd to be ready", DEADLINE, || {
            let answer = self.request("GET", "/readyz", None);
            Ok(answer
                .is_ok_and(|answer| answer.status == 200)
                .then_some(()))
        })
        .with_context(journal)
    }

    /// Attaches the LUN over HTTP, with the kernel's device.
    pub(crate) fn attach(&self) -> Result<()> {
        let body = json!({
            "source": { "iscsi": { "portals": ["127.0.0.1:3260"], "target": TARGET, "lun": 1 } },
            "device": "kernel",
            "recovery_timeout_seconds": "forever",
        });
        let answer = self.request("PUT", &format!("/v1/attachments/{NAME}"), Some(&body))?;
        ensure!(
            answer.status == 201,
            "attach: status {}: {}\n{}",
            answer.status,
            answer.text(),
            journal()
        );
        Self::wait_device(true)
    }

    /// Detaches, and waits until the device of that name is gone.
    pub(crate) fn detach(&self) -> Result<()> {
        let answer = self.request("DELETE", &format!("/v1/attachments/{NAME}"), None)?;
        ensure!(
            answer.status == 204,
            "detach: status {}: {}\n{}",
            answer.status,
            answer.text(),
            journal()
        );
        Self::wait_device(false)
    }

    fn wait_device(there: bool) -> Result<()> {
        wait_for(&format!("{DEVICE}: {there}"), DEADLINE, || {
            Ok((Path::new(DEVICE).exists() == there).then_some(()))
        })
        .with_context(|| tool_text("udevadm", &["info", "--query=all", "/dev/nbd0"]))
    }

    /// Makes a file system and mounts it by a line in fstab, with something else mounted inside of it.
    pub(crate) fn mount(&self) -> Result<()> {
        let lazy = "lazy_itable_init=0,lazy_journal_init=0";
        tool::run("mkfs.ext4", &["-q", "-E", lazy, DEVICE], DEADLINE)?;
        let fstab = fs::read_to_string("/etc/fstab").unwrap_or_default();
        fs::write("/etc/fstab", fstab + FSTAB)?;
        fs::create_dir_all(FOLDER)?;
        systemctl(&["daemon-reload"])?;
        tool::run("mount", &[FOLDER], DEADLINE)?;
        // The service gets a mount namespace each time it is started, and must not wait for its own device in that.
        let inner = format!("{FOLDER}/inner");
        fs::create_dir(&inner)?;
        // Without _netdev the manager takes it for a local file system, which is to be there before any service.
        let words = ["-t", "tmpfs", "-o", "_netdev", "tmpfs", &inner];
        tool::run("mount", &words, DEADLINE).map(drop)
    }

    /// Unmounts what [`Machine::mount`] has mounted.
    pub(crate) fn unmount(&self) -> Result<()> {
        tool::run("umount", &["--recursive", FOLDER], DEADLINE)?;
        tool::run("e2fsck", &["-f", "-n", DEVICE], DEADLINE).map(drop)
    }

    /// Lets something happen to the daemon, waits until another one serves, and gives the longest that a small
    /// request had to wait.
    pub(crate) fn disturb(&mut self, event: Event, load: &mut Load) -> Result<Duration> {
        let (before, started) = (main_pid()?, Instant::now());
        let mount = mount_line()?;
        match event {
            Event::Restart => systemctl(&["restart", "berthd"])?,
            Event::Kill => systemctl(&["kill", "-s", "KILL", "berthd"])?,
            Event::Hang => systemctl(&["kill", "-s", "USR2", "berthd"])?,
            Event::Upgrade(package) => drop(tool::run("dpkg", &["-i", package], DEADLINE)?),
        }
        wait_for("another daemon", RECOVERY, || {
            self.log.check()?;
            load.check()?;
            Ok(main_pid().ok().filter(|&pid| pid != before && pid != 0))
        })
        .with_context(journal)?;
        self.wait_ready()?;
        let back = Instant::now();
        wait_for("I/O", RECOVERY, || {
            self.log.check()?;
            load.check()?;
            Ok(load.answered_since(back)?.then_some(()))
        })
        .with_context(journal)?;
        // Not unmounted and mounted again in between: a new mount has a new number.
        let after = mount_line()?;
        ensure!(after == mount, "the mount was {mount}, and is {after}");
        Ok(load.longest_since(started))
    }
}

/// What the kernel says of the mount.
fn mount_line() -> Result<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let line = mounts
        .lines()
        .find(|line| line.split(' ').nth(4) == Some(FOLDER));
    line.map(str::to_owned)
        .with_context(|| format!("{FOLDER} is not mounted:\n{mounts}"))
}

/// Runs systemctl.
pub(crate) fn systemctl(words: &[&str]) -> Result<()> {
    tool::run("systemctl", words, DEADLINE).map(drop)
}

/// A property of a unit.
pub(crate) fn property(unit: &str, name: &str) -> Result<String> {
    let words = ["show", "--value", "-p", name, unit];
    Ok(tool::run("systemctl", &words, DEADLINE)?
        .text
        .trim()
        .to_owned())
}

/// The daemon's process; 0 when there is none.
pub(crate) fn main_pid() -> Result<u32> {
    property("berthd.service", "MainPID")?
        .parse()
        .context("MainPID")
}

/// What the daemon and the manager have said of it, for errors.
pub(crate) fn journal() -> String {
    tool_text(
        "journalctl",
        &["--no-pager", "-n", "60", "-u", "berthd.service"],
    )
}

fn tool_text(name: &str, words: &[&str]) -> String {
    match tool::try_run(name, words, DEADLINE) {
        Ok(output) => output.text,
        Err(error) => format!("{error:#}"),
    }
}

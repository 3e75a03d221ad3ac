//! A machine that becomes a node of Kubernetes by the package berth-kubernetes: the drivers are installed and enabled as the
//! documentation says, stay off where nobody asked for them, and are restarted, stopped and removed with their package.
//!
//! - [`fabric`]: a simulated fabric beside berthd.
//! - [`volume`]: a volume of it, used by the calls of kubelet and of the controller's sidecars.

mod fabric;
mod volume;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use berth_tests::process::wait_for;
use berth_tests::tool;

use crate::machine::{self, DEADLINE, Machine, main_pid, property, systemctl};

pub(crate) use volume::{InUse, check_shutdown};

/// Packages of the same drivers, as the host has made them.
const PACKAGES: [&str; 2] = ["/lab/berth-kubernetes-1.deb", "/lab/berth-kubernetes-2.deb"];
const PACKAGE: &str = "berth-kubernetes";
const UNIT: &str = "berth-csi.service";
/// The node's driver, where the unit has it.
const SOCKET: &str = "/var/lib/kubelet/plugins/csi.berth.io/csi.sock";
/// Where kubelet learns of it.
const REGISTRATION: &str = "/var/lib/kubelet/plugins_registry/csi.berth.io-reg.sock";
/// Of `systemd-analyze security`: what is left to a service whose mounts everybody sees.
const EXPOSURE_BELOW: f64 = 4.5;

/// The FlexVolume driver of the package.
const FLEXVOLUME: &str = "/usr/libexec/berth/berth-flexvolume";
/// Where kubelet looks for drivers.
const PLUGINS: &str = "/usr/libexec/kubernetes/kubelet-plugins/volume/exec";
/// The FlexVolume driver in there, by both of its names.
const COPIES: [&str; 2] = ["datera~iscsi/iscsi", "berth~volume/volume"];

/// Makes a node of the machine, and uses a volume on it.
pub(crate) fn begin(machine: &Machine) -> Result<InUse> {
    fabric::start(machine)?;
    install_disabled()?;
    enable()?;
    // The machine of the lab starts no others of those that are wanted at boot.
    systemctl(&["add-wants", "lab.target", UNIT])?;
    check_service()?;
    install_flexvolume()?;
    let volume = InUse::begin()?;
    volume.check("through the host")?;
    stays_while_it_is_needed()?;
    restart()?;
    volume.check("after a restart of the driver")?;
    println!("berth-csi and berth-flexvolume installed, enabled, a volume is in use");
    Ok(volume)
}

/// After a reboot: the driver is back by itself, and so is the volume once kubelet asks for it. Then everything goes.
pub(crate) fn end() -> Result<()> {
    wait_serving()?;
    InUse::begin_again()?.end()?;
    let pid = pid()?;
    tool::run("dpkg", &["--purge", PACKAGE], DEADLINE)?;
    check_gone(&pid)?;
    fabric::stop()
}

/// Packages over each other, of the drivers and of the daemon below them, and what is left in the end.
pub(crate) fn upgrade() -> Result<()> {
    install_disabled()?;
    enable()?;
    install_flexvolume()?;
    // The packages have the same programs in them: what looks like an older one is put there.
    let old = "#!/bin/sh\necho old\n";
    let copies = COPIES.map(|copy| Path::new(PLUGINS).join(copy));
    fs::write(FLEXVOLUME, old)?;
    fs::write(&copies[0], old)?;
    let foreign = Path::new(PLUGINS).join("other~driver/driver");
    fs::create_dir_all(foreign.parent().context("in a folder")?)?;
    fs::write(&foreign, "of somebody else")?;
    let before = pid()?;
    tool::run("dpkg", &["-i", PACKAGES[1]], DEADLINE)?;
    ensure!(pid()? != before, "an upgrade has not restarted {UNIT}");
    wait_serving()?;
    answers_init()?;
    let program = fs::read(FLEXVOLUME)?;
    for copy in &copies {
        let there = fs::read(copy)?;
        ensure!(there == program, "{} is not renewed", copy.display());
    }
    let (driver, daemon) = (pid()?, main_pid()?);
    tool::run("dpkg", &["-i", machine::PACKAGES[0]], DEADLINE)?;
    ensure!(main_pid()? != daemon, "an upgrade has not restarted berthd");
    ensure!(pid()? == driver, "an upgrade of berth has restarted {UNIT}");
    let output = tool::try_run("dpkg", &["--remove", "berth"], DEADLINE)?;
    ensure!(!output.status.success(), "removed below {PACKAGE}");

    tool::run("dpkg", &["--remove", PACKAGE], DEADLINE)?;
    ensure!(
        property(UNIT, "ActiveState")? == "inactive" && !is_alive(&driver),
        "{UNIT} runs without its package"
    );
    for path in copies.iter().map(|copy| copy.as_path()) {
        ensure!(!path.exists(), "{} is left", path.display());
    }
    let there = fs::read_to_string(&foreign)?;
    ensure!(there == "of somebody else", "a foreign driver was changed");
    fs::remove_dir_all(foreign.parent().context("in a folder")?)?;
    // Twice, as a purge does not need what a removal has taken.
    tool::run("dpkg", &["--purge", PACKAGE], DEADLINE)?;
    check_gone(&driver)?;
    println!("{PACKAGE}: upgraded, removed, purged");
    Ok(())
}

/// Installed, and off.
fn install_disabled() -> Result<()> {
    tool::run("dpkg", &["-i", PACKAGES[0]], DEADLINE)?;
    let states = (
        property(UNIT, "UnitFileState")?,
        property(UNIT, "ActiveState")?,
    );
    ensure!(
        states == ("disabled".to_owned(), "inactive".to_owned()),
        "{UNIT} after its installation: {states:?}"
    );
    Ok(())
}

/// As docs/csi.md has it.
fn enable() -> Result<()> {
    systemctl(&["enable", "--now", UNIT])?;
    wait_serving()
}

fn restart() -> Result<()> {
    let before = pid()?;
    systemctl(&["restart", UNIT])?;
    ensure!(pid()? != before, "{UNIT} was not restarted");
    wait_serving()
}

/// Both sockets answer, those of this life.
fn wait_serving() -> Result<()> {
    wait_for(&format!("{UNIT} to serve"), DEADLINE, || {
        let answers = |path| std::os::unix::net::UnixStream::connect(path).is_ok();
        Ok((answers(SOCKET) && answers(REGISTRATION)).then_some(()))
    })
    .with_context(journal)
}

/// The service sees what PID 1 sees, has few rights, and the manager finds nothing wrong with it.
fn check_service() -> Result<()> {
    let pid = pid()?;
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt"));
    for other in ["1", "self"] {
        let (ours, theirs) = (namespace(&pid)?, namespace(other)?);
        ensure!(
            ours == theirs,
            "{UNIT} has mounts of its own, not of {other}"
        );
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let has = |line: &str| status.lines().any(|found| found == line);
    // CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, SYS_ADMIN, SYS_RESOURCE and nothing else.
    ensure!(
        has("CapBnd:\t000000000120000f") && has("NoNewPrivs:\t1") && has("Seccomp:\t2"),
        "{status}"
    );
    let words = ["security", "--no-pager", UNIT];
    let said = tool::run("systemd-analyze", &words, DEADLINE)?.text;
    let level = said
        .lines()
        .find_map(|line| line.split_once(&format!("Overall exposure level for {UNIT}:")))
        .and_then(|(_, rest)| rest.split_whitespace().next()?.parse::<f64>().ok())
        .with_context(|| format!("no exposure level in:\n{said}"))?;
    println!("systemd-analyze security {UNIT}: {level}");
    ensure!(level < EXPOSURE_BELOW, "systemd-analyze security:\n{said}");
    let said = tool::run("systemd-analyze", &["verify", UNIT], DEADLINE)?.text;
    ensure!(!said.contains("berth"), "systemd-analyze verify:\n{said}");
    Ok(())
}

/// As docs/flexvolume.md has it.
fn install_flexvolume() -> Result<()> {
    tool::run(FLEXVOLUME, &["install"], DEADLINE)?;
    answers_init()
}

fn answers_init() -> Result<()> {
    for copy in COPIES {
        let program = format!("{PLUGINS}/{copy}");
        let said = tool::run(&program, &["init"], DEADLINE)?.text;
        let answer: serde_json::Value =
            serde_json::from_str(&said).with_context(|| format!("{program}: {said}"))?;
        ensure!(
            answer["status"] == "Success" && answer["capabilities"]["attach"] == false,
            "{program} init: {said}"
        );
    }
    Ok(())
}

/// With a volume staged the package says no, names the device, and nothing has changed for it.
fn stays_while_it_is_needed() -> Result<()> {
    let before = pid()?;
    let output = tool::try_run("dpkg", &["--remove", PACKAGE], DEADLINE)?;
    ensure!(
        !output.status.success() && output.text.contains("kubelet uses volumes: /dev/nbd"),
        "dpkg --remove {PACKAGE}: {}",
        output.text
    );
    ensure!(pid()? == before, "{UNIT} has been stopped");
    answers_init()
}

/// Nothing of the package is left, nor of its process.
fn check_gone(pid: &str) -> Result<()> {
    ensure!(!is_alive(pid), "the driver runs on");
    let state = property(UNIT, "LoadState")?;
    ensure!(state == "not-found", "{UNIT}: {state}");
    let links = [
        "/etc/systemd/system/multi-user.target.wants/berth-csi.service",
        "/etc/systemd/system/berth-csi.service",
    ];
    let copies = COPIES.map(|copy| format!("{PLUGINS}/{copy}"));
    for path in [
        FLEXVOLUME,
        SOCKET,
        REGISTRATION,
        "/usr/bin/berth-csi",
        "/run/berth-csi",
    ]
    .into_iter()
    .chain(links)
    .chain(copies.iter().map(String::as_str))
    {
        // A link that leads nowhere is there, too.
        ensure!(fs::symlink_metadata(path).is_err(), "{path} is left");
    }
    Ok(())
}

/// The driver's process; fails when there is none.
fn pid() -> Result<String> {
    let pid = property(UNIT, "MainPID")?;
    ensure!(pid != "0", "{UNIT} does not run\n{}", journal());
    Ok(pid)
}

fn is_alive(pid: &str) -> bool {
    Path::new("/proc").join(pid).exists()
}

/// What driver and daemon have said, for errors.
fn journal() -> String {
    let words = ["--no-pager", "-n", "80", "-u", UNIT, "-u", "berthd.service"];
    match tool::try_run("journalctl", &words, DEADLINE) {
        Ok(output) => output.text,
        Err(error) => format!("{error:#}"),
    }
}

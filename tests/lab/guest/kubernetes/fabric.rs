//! A simulated fabric as a service of the machine, and berthd told of it as an administrator would.

use std::fs;
use std::io::Write as _;

use anyhow::{Result, ensure};

use crate::machine::{Machine, systemctl};

const UNIT: &str = "lab-fabric.service";
/// Portals of their own port, because the machine's other target has the usual one on all addresses.
const UNIT_TEXT: &str = "\
[Unit]
Description=The fabric of the scenario
Before=berthd.service
[Service]
ExecStart=/usr/bin/berthd sim --state-dir /var/lib/lab-fabric --http 127.0.0.1:7717 --https 127.0.0.1:7718 \
    --portal 127.0.0.11:3270 --portal 127.0.0.12:3270
";
/// It comes before berthd and goes after it.
const DROP_IN: &str = "\
[Unit]
Wants=lab-fabric.service
After=lab-fabric.service
";
/// Goes to the end of the configuration.
const CONFIG: &str = "
[fabric]
url = \"http://127.0.0.1:7717\"
user = \"admin\"
password_file = \"$CREDENTIALS_DIRECTORY/secrets_fabric\"
iscsi_port = 3270
";

/// Starts the fabric, and the daemon anew with what it has to know.
pub(super) fn start(machine: &Machine) -> Result<()> {
    let units = std::path::Path::new("/etc/systemd/system");
    fs::write(units.join(UNIT), UNIT_TEXT)?;
    fs::write(units.join("berthd.service.d/fabric.conf"), DROP_IN)?;
    fs::write("/etc/berth/secrets/fabric", "password")?;
    let mut config = fs::File::options()
        .append(true)
        .open("/etc/berth/berth.toml")?;
    config.write_all(CONFIG.as_bytes())?;
    systemctl(&["daemon-reload"])?;
    systemctl(&["restart", "berthd"])?;
    machine.wait_ready()
}

/// Ends it, and leaves no volume behind.
pub(super) fn stop() -> Result<()> {
    let left = fs::read_dir("/var/lib/lab-fabric/app_instances")?.count();
    ensure!(left == 0, "{left} volumes are left on the fabric");
    systemctl(&["stop", UNIT])
}

//! LIO, the target of the Linux kernel, in a guest kernel (user-mode Linux) behind a tap device in a network namespace.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use tempfile::TempDir;

use super::{Mortal, Peer, Spec, remove_stale};
use crate::berthd::{INITIATOR, OTHER_INITIATOR};
use crate::guest::Booted;
use crate::guest::uml::{GUEST, Tap, Uml};
use crate::net::{Netns, Network};
use crate::process::wait_for;

const TARGET: &str = "iqn.2026-11.example:lio";
/// A boot takes 5 to 8 s on two idle cores.
const DEADLINE: Duration = Duration::from_secs(90);
/// For a command to the guest, which looks for one ten times a second.
const COMMAND_DEADLINE: Duration = Duration::from_secs(60);

/// A guest kernel with one LIO target and one LUN.
#[derive(Debug)]
pub struct Lio {
    // The guest goes before its network and its folder.
    guest: Booted,
    /// Routes between the guest and the links of a network.
    tap: Tap,
    /// Where berth runs, when that is not the namespace of the tap device.
    node: Option<Arc<Netns>>,
    spec: Spec,
    backing: PathBuf,
    commands: u32,
    /// The guest sees it as /mnt.
    lab: TempDir,
}

impl Lio {
    /// Boots the guest and waits until its target serves. Needs root (a namespace and a tap device).
    ///
    /// # Errors
    /// When user-mode Linux is not installed or the guest does not get ready; with its log.
    pub fn start(spec: Spec) -> Result<Self> {
        // What a durable guest writes it also syncs: memory is the quickest place for that.
        let memory = Path::new("/dev/shm");
        let lab = if spec.durable && memory.is_dir() {
            TempDir::with_prefix_in("lio-", memory)?
        } else {
            TempDir::with_prefix("lio-")?
        };
        let backing = lab.path().join("lun");
        std::fs::File::create(&backing)?.set_len(spec.size_bytes)?;
        std::fs::write(lab.path().join("target.sh"), configuration(&spec))?;
        let tap = Tap::new("lio")?;
        let guest = boot(lab.path(), &tap)?;
        let mut lio = Self {
            guest,
            tap,
            node: None,
            spec,
            backing,
            commands: 0,
            lab,
        };
        lio.wait_ready()?;
        Ok(lio)
    }

    /// Puts a network between the guest and the node: the links lead to the namespace of the tap device, which routes.
    ///
    /// # Errors
    /// As [`Network::new`].
    pub fn move_behind(&mut self, links: u8) -> Result<Network> {
        let network = Network::to(self.tap.netns(), links)?;
        let gateway = network.links[0].target_address();
        network
            .node
            .ip(&format!("route add {GUEST} via {gateway}"))?;
        self.node = Some(Arc::clone(&network.node));
        Ok(network)
    }

    fn enable(&mut self, on: bool) -> Result<()> {
        let enable = format!("/sys/kernel/config/target/iscsi/{TARGET}/tpgt_1/enable");
        self.command(&format!("echo {} > {enable}", u8::from(on)))
    }

    /// Runs a line of shell in the guest.
    fn command(&mut self, line: &str) -> Result<()> {
        self.commands += 1;
        let lab = self.lab.path();
        // The number makes sure that the answer is to this command, the renaming that it is read whole.
        let (new, done) = (lab.join("command.new"), lab.join("done"));
        std::fs::write(
            &new,
            format!("{line}\necho {} $? > /mnt/done\n", self.commands),
        )?;
        std::fs::rename(&new, lab.join("command"))?;
        let answer = format!("{} ", self.commands);
        let status = wait_for(&format!("guest: {line}"), COMMAND_DEADLINE, || {
            let text = std::fs::read_to_string(&done).unwrap_or_default();
            let status = text
                .strip_suffix('\n')
                .and_then(|text| text.strip_prefix(&answer));
            Ok(status.map(str::to_owned))
        })?;
        ensure!(status == "0", "guest: {line}: status {status}");
        Ok(())
    }

    fn wait_ready(&mut self) -> Result<()> {
        let lab = self.lab.path();
        self.guest
            .process
            .wait_ready("target in the guest", DEADLINE, || {
                if let Ok(step) = std::fs::read_to_string(lab.join("failed")) {
                    let log = std::fs::read_to_string(lab.join("guest.log")).unwrap_or_default();
                    bail!("the guest failed at {}\n{log}", step.trim());
                }
                Ok(lab.join("ready").exists().then_some(()))
            })
    }
}

fn boot(lab: &Path, tap: &Tap) -> Result<Booted> {
    Uml {
        name: "lio",
        memory_mib: 512,
        main: include_str!("lio-main.sh"),
        folder: lab,
        environment: &[],
        tap: Some(tap),
    }
    .boot()
}

impl Mortal for Lio {
    /// Kills the guest kernel: nobody closes its connections, the network is just silent.
    fn kill(&mut self) -> Result<()> {
        self.guest.process.kill_all()
    }

    fn revive(&mut self) -> Result<()> {
        let lab = self.lab.path();
        for stale in ["ready", "command", "done"] {
            remove_stale(&lab.join(stale))?;
        }
        self.guest = boot(self.lab.path(), &self.tap)?;
        self.wait_ready()
    }

    /// LIO ends all sessions and refuses logins.
    fn suspend(&mut self) -> Result<()> {
        self.enable(false)
    }

    fn resume(&mut self) -> Result<()> {
        self.enable(true)
    }

    fn suspension(&self) -> &'static str {
        "disable"
    }
}

/// Plain configfs: quicker than targetcli, and the guest needs neither Python nor D-Bus.
fn configuration(spec: &Spec) -> String {
    // Without the option LIO opens the file with O_DSYNC, and what it has acknowledged is with the host.
    let (buffered, cache) = if spec.durable {
        ("", 0)
    } else {
        (",fd_buffered_io=1", 1)
    };
    let mut script = format!(
        "D=$C/core/fileio_0/lun; mkdir -p $D\n\
         echo fd_dev_name=/mnt/lun,fd_dev_size={}{buffered} > $D/control\n\
         echo 11111111-2222-3333-4444-555555555555 > $D/wwn/vpd_unit_serial\n\
         echo 1 > $D/enable\n\
         echo {cache} > $D/attrib/emulate_write_cache\n\
         mkdir -p $C/iscsi; mkdir $C/iscsi/{TARGET}; T=$C/iscsi/{TARGET}/tpgt_1; mkdir $T $T/np/{GUEST}:3260\n\
         mkdir $T/lun/lun_0; ln -s $D $T/lun/lun_0/lun\n",
        spec.size_bytes
    );
    let _ = writeln!(
        script,
        "echo {} > $T/attrib/authentication",
        u8::from(spec.chap.is_some())
    );
    for initiator in [INITIATOR, OTHER_INITIATOR] {
        script += &admit(spec, initiator);
    }
    if spec.digests_required {
        script += "echo CRC32C > $T/param/HeaderDigest; echo CRC32C > $T/param/DataDigest\n";
    }
    script + "echo 1 > $T/enable\n"
}

/// An initiator that may log in, and the LUN that it sees.
fn admit(spec: &Spec, initiator: &str) -> String {
    let acl = format!("$T/acls/{initiator}");
    let mut script = format!(
        "mkdir {acl}; mkdir {acl}/lun_0; ln -s $T/lun/lun_0 {acl}/lun_0/lun\n\
         echo 0 > {acl}/lun_0/write_protect\n"
    );
    // printf, not echo: a newline would become part of the secret.
    if let Some(chap) = &spec.chap {
        let _ = writeln!(script, "printf '{}' > {acl}/auth/userid", chap.user);
        let _ = writeln!(script, "printf '{}' > {acl}/auth/password", chap.secret);
    }
    if let Some(mutual) = &spec.mutual {
        let _ = writeln!(
            script,
            "printf '{}' > {acl}/auth/userid_mutual",
            mutual.user
        );
        let _ = writeln!(
            script,
            "printf '{}' > {acl}/auth/password_mutual",
            mutual.secret
        );
    }
    script
}

impl Peer for Lio {
    fn portal(&self) -> String {
        format!("{GUEST}:3260")
    }
    fn target(&self) -> &str {
        TARGET
    }
    fn lun(&self) -> u64 {
        0
    }
    fn spec(&self) -> &Spec {
        &self.spec
    }
    fn backing(&self) -> Option<&Path> {
        Some(&self.backing)
    }
    fn netns(&self) -> Option<&str> {
        Some(self.node.as_ref().unwrap_or(self.tap.netns()).name())
    }
}

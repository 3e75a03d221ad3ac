//! Debian's tgt (STGT), a user-space target.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use tempfile::TempDir;

use super::{Account, Mortal, Peer, Spec, remove_stale};
use crate::net::{Netns, Network};
use crate::ports::free_port;
use crate::process::Process;
use crate::{programs, tool};

const TARGET: &str = "iqn.2026-11.example:tgt";
const DEADLINE: Duration = Duration::from_secs(60);

/// A running `tgtd` with one target; LUN 1 holds the data (LUN 0 is its controller).
#[derive(Debug)]
pub struct Tgt {
    process: Process,
    place: Place,
    spec: Spec,
    backing: PathBuf,
    dir: TempDir,
}

/// Where it listens.
#[derive(Debug)]
struct Place {
    /// All of them in portal group 1: tgt knows no other.
    portals: Vec<String>,
    /// The namespace it runs in and the one it is reached from.
    network: Option<(Arc<Netns>, Arc<Netns>)>,
}

impl Place {
    fn accepts(&self, portal: &str) -> Result<bool> {
        let connect = || TcpStream::connect(portal).is_ok();
        match &self.network {
            None => Ok(connect()),
            Some((target, _)) => target.within(connect),
        }
    }
}

impl Tgt {
    /// Starts tgtd on a free port with a fresh, sparse file as its LUN.
    ///
    /// # Errors
    /// When tgt is not installed or does not come up; with its log.
    pub fn start(spec: Spec) -> Result<Self> {
        let portals = vec![format!("127.0.0.1:{}", free_port())];
        let network = None;
        Self::start_at(spec, Place { portals, network })
    }

    /// The same at the far end of a network, with a portal on each link.
    ///
    /// # Errors
    /// As [`Tgt::start`].
    pub fn start_on(spec: Spec, network: &Network) -> Result<Self> {
        let portals = network.links.iter().map(|link| link.portal()).collect();
        let network = Some((Arc::clone(&network.target), Arc::clone(&network.node)));
        Self::start_at(spec, Place { portals, network })
    }

    fn start_at(spec: Spec, place: Place) -> Result<Self> {
        let dir = TempDir::with_prefix("tgt-")?;
        let backing = dir.path().join("lun");
        std::fs::File::create(&backing)?.set_len(spec.size_bytes)?;
        let process = launch(dir.path(), &place)?;
        let mut tgt = Self {
            process,
            place,
            spec,
            backing,
            dir,
        };
        tgt.come_up()?;
        Ok(tgt)
    }

    fn come_up(&mut self) -> Result<()> {
        self.wait_ready()?;
        self.set_up()
    }

    /// The daemon's log.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Process id of tgtd.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    fn wait_ready(&mut self) -> Result<()> {
        let control = control_socket(self.dir.path());
        let place = &self.place;
        self.process
            .wait_ready("portals and control port", DEADLINE, || {
                for portal in &place.portals {
                    if !place.accepts(portal)? {
                        return Ok(None);
                    }
                }
                Ok(control.exists().then_some(()))
            })
    }

    /// tgtd forgets everything when it ends, so this is all of its configuration.
    fn set_up(&self) -> Result<()> {
        self.admin("target", "new", &["-T", TARGET])?;
        let backing = self.backing.to_string_lossy().into_owned();
        self.admin("logicalunit", "new", &["--lun", "1", "-b", &backing])?;
        let thin = ["--lun", "1", "--params", "thin_provisioning=1"];
        self.admin("logicalunit", "update", &thin)?;
        // The defaults are no digests and 8 KiB segments.
        self.admin(
            "target",
            "update",
            &["-n", "MaxRecvDataSegmentLength", "-v", "262144"],
        )?;
        if self.spec.digests_required {
            self.admin("target", "update", &["-n", "HeaderDigest", "-v", "CRC32C"])?;
            self.admin("target", "update", &["-n", "DataDigest", "-v", "CRC32C"])?;
        }
        if let Some(account) = &self.spec.chap {
            self.account(account, &[])?;
        }
        if let Some(account) = &self.spec.mutual {
            self.account(account, &["--outgoing"])?;
        }
        self.admin("target", "bind", &["-I", "ALL"])
    }

    fn account(&self, account: &Account, direction: &[&str]) -> Result<()> {
        let Account { user, secret } = account;
        self.control(&[
            "--op",
            "new",
            "--mode",
            "account",
            "--user",
            user,
            "--password",
            secret,
        ])?;
        let bind = [
            "--op", "bind", "--mode", "account", "--tid", "1", "--user", user,
        ];
        self.control(&[&bind, direction].concat())
    }

    fn admin(&self, mode: &str, op: &str, args: &[&str]) -> Result<()> {
        self.control(&[&["--op", op, "--mode", mode, "--tid", "1"], args].concat())
    }

    fn control(&self, args: &[&str]) -> Result<()> {
        // Through `env`, because tools get no environment of their own.
        let socket = format!(
            "TGT_IPC_SOCKET={}",
            self.dir.path().join("control").display()
        );
        let tgtadm = programs::system("tgtadm")?.to_string_lossy().into_owned();
        let command = [socket.as_str(), &tgtadm, "-C", "0", "--lld", "iscsi"];
        tool::run("env", &[&command, args].concat(), DEADLINE)
            .map(drop)
            .with_context(|| format!("log of tgtd:\n{}", self.process.log()))
    }
}

/// Where tgtadm finds control port 0, for `TGT_IPC_SOCKET=DIR/control`.
fn control_socket(dir: &Path) -> PathBuf {
    dir.join("control.0")
}

fn launch(dir: &Path, place: &Place) -> Result<Process> {
    // Left there by one that was killed, and it would look as if the new one were ready.
    remove_stale(&control_socket(dir))?;
    let portals: Vec<_> = place
        .portals
        .iter()
        .map(|p| format!("portal={p}"))
        .collect();
    let mut command = match &place.network {
        None => Vec::new(),
        Some((target, _)) => target.prefix()?,
    };
    let tgtd = programs::system("tgtd")?;
    command.push(tgtd.to_string_lossy().into_owned());
    command.extend(["-f", "-C", "0", "--iscsi"].map(str::to_owned));
    command.push(portals.join(","));
    Process::start(
        "tgtd",
        Path::new(&command[0]),
        &command[1..],
        // Its control socket, else under /var/run and shared by all.
        &[("TGT_IPC_SOCKET", &dir.join("control"))],
        &dir.join("log"),
    )
}

impl Mortal for Tgt {
    fn kill(&mut self) -> Result<()> {
        self.process.stop(Signal::KILL, DEADLINE).map(drop)
    }

    fn revive(&mut self) -> Result<()> {
        self.process = launch(self.dir.path(), &self.place)?;
        self.come_up()
    }

    /// Stopped by signal: its kernel goes on to acknowledge what arrives, and it executes all of it later.
    fn suspend(&mut self) -> Result<()> {
        self.process.signal(Signal::STOP)
    }

    fn resume(&mut self) -> Result<()> {
        self.process.signal(Signal::CONT)
    }

    fn suspension(&self) -> &'static str {
        "freeze"
    }
}

impl Peer for Tgt {
    fn portal(&self) -> String {
        self.place.portals[0].clone()
    }
    fn portals(&self) -> Vec<String> {
        self.place.portals.clone()
    }
    fn target(&self) -> &str {
        TARGET
    }
    fn lun(&self) -> u64 {
        1
    }
    fn spec(&self) -> &Spec {
        &self.spec
    }
    fn backing(&self) -> Option<&Path> {
        Some(&self.backing)
    }
    fn netns(&self) -> Option<&str> {
        let (_, node) = self.place.network.as_ref()?;
        Some(node.name())
    }
}

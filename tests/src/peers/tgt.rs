//! Debian's tgt (STGT), a user-space target.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use super::{Account, Peer, Spec};
use crate::ports::{accepts, free_port};
use crate::process::Process;
use crate::{programs, tool};

const TARGET: &str = "iqn.2026-11.example:tgt";
const DEADLINE: Duration = Duration::from_secs(20);

/// A running `tgtd` with one target; LUN 1 holds the data (LUN 0 is its controller).
#[derive(Debug)]
pub struct Tgt {
    process: Process,
    port: u16,
    spec: Spec,
    backing: PathBuf,
    dir: TempDir,
}

impl Tgt {
    /// Starts tgtd on a free port with a fresh, sparse file as its LUN.
    ///
    /// # Errors
    /// When tgt is not installed or does not come up; with its log.
    pub fn start(spec: Spec) -> Result<Self> {
        let dir = TempDir::with_prefix("tgt-")?;
        let backing = dir.path().join("lun");
        std::fs::File::create(&backing)?.set_len(spec.size_bytes)?;
        let port = free_port();
        let process = launch(dir.path(), port)?;
        let mut tgt = Self {
            process,
            port,
            spec,
            backing,
            dir,
        };
        tgt.wait_ready()?;
        tgt.set_up()?;
        Ok(tgt)
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
        let port = self.port;
        let dir = self.dir.path().to_owned();
        self.process
            .wait_ready("portal and control port", DEADLINE, || {
                let ready = accepts(port) && dir.join("control.0").exists();
                Ok(ready.then_some(()))
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

fn launch(dir: &Path, port: u16) -> Result<Process> {
    Process::start(
        "tgtd",
        &programs::system("tgtd")?,
        [
            "-f",
            "-C",
            "0",
            "--iscsi",
            &format!("portal=127.0.0.1:{port}"),
        ],
        // Its control socket, else under /var/run and shared by all.
        &[("TGT_IPC_SOCKET", &dir.join("control"))],
        &dir.join("log"),
    )
}

impl Peer for Tgt {
    fn portal(&self) -> String {
        format!("127.0.0.1:{}", self.port)
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
}

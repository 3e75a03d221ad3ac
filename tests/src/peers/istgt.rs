//! Debian's istgt, a user-space target of FreeBSD descent.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use tempfile::TempDir;

use super::{Peer, Spec};
use crate::ports::{accepts, free_port};
use crate::process::Process;
use crate::programs;

const TARGET: &str = "iqn.2026-11.example:istgt";
const DEADLINE: Duration = Duration::from_secs(60);

/// A running `istgt` with one target and one LUN.
#[derive(Debug)]
pub struct Istgt {
    process: Process,
    port: u16,
    spec: Spec,
    backing: PathBuf,
    // Last: the folder goes after the process.
    _dir: TempDir,
}

impl Istgt {
    /// Starts istgt on a free port with a fresh, sparse file as its LUN.
    ///
    /// # Errors
    /// When istgt is not installed or does not come up; with its log.
    pub fn start(spec: Spec) -> Result<Self> {
        let dir = TempDir::with_prefix("istgt-")?;
        let backing = dir.path().join("lun");
        std::fs::File::create(&backing)?.set_len(spec.size_bytes)?;
        let port = free_port();
        let auth = dir.path().join("auth.conf");
        std::fs::write(&auth, accounts(&spec))?;
        std::fs::set_permissions(&auth, std::fs::Permissions::from_mode(0o600))?;
        let config = dir.path().join("istgt.conf");
        std::fs::write(&config, configuration(&spec, dir.path(), port, free_port()))?;
        let process = Process::start(
            "istgt",
            &programs::system("istgt")?,
            [Path::new("-D"), Path::new("-c"), &config],
            &[],
            &dir.path().join("log"),
        )?;
        let mut istgt = Self {
            process,
            port,
            spec,
            backing,
            _dir: dir,
        };
        istgt
            .process
            .wait_ready("portal", DEADLINE, || Ok(accepts(port).then_some(())))?;
        Ok(istgt)
    }

    /// The daemon's log.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }
}

fn accounts(spec: &Spec) -> String {
    let quote = |account: &super::Account| format!("\"{}\" \"{}\"", account.user, account.secret);
    let auth: Vec<_> = spec.chap.iter().chain(&spec.mutual).map(quote).collect();
    let auth = if auth.is_empty() {
        String::new()
    } else {
        format!("  Auth {}\n", auth.join(" "))
    };
    format!("[AuthGroup1]\n{auth}")
}

fn configuration(spec: &Spec, dir: &Path, port: u16, control_port: u16) -> String {
    let method = match (&spec.chap, &spec.mutual) {
        (None, _) => "None",
        (Some(_), None) => "CHAP",
        (Some(_), Some(_)) => "CHAP Mutual",
    };
    let digest = if spec.digests_required {
        "Header Data"
    } else {
        "Auto"
    };
    let dir = dir.display();
    format!(
        "[Global]\n  NodeBase \"iqn.2026-11.example\"\n  PidFile {dir}/pid\n  AuthFile {dir}/auth.conf\n  \
         MediaDirectory {dir}\n  LogFacility \"local7\"\n  Timeout 30\n  NopInInterval 20\n  \
         DiscoveryAuthMethod None\n  MaxSessions 16\n  MaxConnections 4\n  MaxR2T 32\n  \
         MaxOutstandingR2T 16\n  DefaultTime2Wait 2\n  DefaultTime2Retain 60\n  \
         FirstBurstLength 262144\n  MaxBurstLength 1048576\n  MaxRecvDataSegmentLength 262144\n  \
         InitialR2T Yes\n  ImmediateData Yes\n  DataPDUInOrder Yes\n  DataSequenceInOrder Yes\n  \
         ErrorRecoveryLevel 0\n\
         [UnitControl]\n  AuthMethod None\n  AuthGroup None\n  Portal UC1 127.0.0.1:{control_port}\n  \
         Netmask 127.0.0.1\n\
         [PortalGroup1]\n  Portal DA1 127.0.0.1:{port}\n\
         [InitiatorGroup1]\n  InitiatorName \"ALL\"\n  Netmask 127.0.0.1\n\
         [LogicalUnit1]\n  TargetName istgt\n  Mapping PortalGroup1 InitiatorGroup1\n  \
         AuthMethod {method}\n  AuthGroup AuthGroup1\n  UseDigest {digest}\n  UnitType Disk\n  \
         LUN0 Storage {dir}/lun Auto\n"
    )
}

impl Peer for Istgt {
    fn portal(&self) -> String {
        format!("127.0.0.1:{}", self.port)
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
}

//! berth's own target role as a program, `portal`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use tempfile::TempDir;

use super::{Account, Peer, Spec};
use crate::net::{Netns, Network};
use crate::process::{Process, wait_for};
use crate::programs;

const TARGET: &str = "iqn.2026-11.example:portal";
const DEADLINE: Duration = Duration::from_secs(60);

/// A running `portal` with one target and one LUN in a sparse file.
#[derive(Debug)]
pub struct Portal {
    process: Process,
    addresses: Vec<String>,
    /// The namespace it is reached from, if only one.
    node: Option<Arc<Netns>>,
    spec: Spec,
    backing: PathBuf,
    // Last: the folder goes after the process.
    _dir: TempDir,
}

impl Portal {
    /// Starts a portal on a port that the kernel chooses.
    ///
    /// # Errors
    /// When it does not come up; with its log.
    pub fn start(spec: Spec) -> Result<Self> {
        Self::start_with(spec, &[])
    }

    /// The same with more options.
    ///
    /// # Errors
    /// As [`Portal::start`].
    pub fn start_with(spec: Spec, more: &[&str]) -> Result<Self> {
        Self::start_at(spec, more, &["127.0.0.1:0".to_owned()], None)
    }

    /// The same at the far end of a network, with a portal on each link and a portal group for each portal.
    ///
    /// # Errors
    /// As [`Portal::start`].
    pub fn start_on(spec: Spec, network: &Network) -> Result<Self> {
        let addresses: Vec<_> = network.links.iter().map(|link| link.portal()).collect();
        Self::start_at(
            spec,
            &[],
            &addresses,
            Some((&network.target, &network.node)),
        )
    }

    /// The same in a namespace, on a free port of `address`.
    ///
    /// # Errors
    /// As [`Portal::start`].
    pub fn start_in(spec: Spec, address: &str, netns: &Arc<Netns>) -> Result<Self> {
        Self::start_at(spec, &[], &[format!("{address}:0")], Some((netns, netns)))
    }

    fn start_at(
        spec: Spec,
        more: &[&str],
        addresses: &[String],
        // The namespace it runs in and the one it is reached from.
        network: Option<(&Arc<Netns>, &Arc<Netns>)>,
    ) -> Result<Self> {
        let dir = TempDir::with_prefix("portal-")?;
        let backing = dir.path().join("lun");
        let mut command = match network {
            None => Vec::new(),
            Some((target, _)) => target.prefix()?,
        };
        command.push(programs::ours("portal")?.to_string_lossy().into_owned());
        for address in addresses {
            command.extend(["--listen".to_owned(), address.clone()]);
        }
        command.extend(["--target", TARGET, "--lun"].map(str::to_owned));
        command.push(format!("file:{}:{}", backing.display(), spec.size_bytes));
        let accounts = [("chap", &spec.chap), ("mutual", &spec.mutual)];
        for (kind, account) in accounts {
            if let Some(account) = account {
                command.extend(secret(kind, account, dir.path())?);
            }
        }
        if spec.digests_required {
            command.extend(
                ["--header-digest", "require", "--data-digest", "require"].map(str::to_owned),
            );
        }
        command.extend(more.iter().map(|&word| word.to_owned()));
        let log = dir.path().join("log");
        let program = Path::new(&command[0]);
        let mut process = Process::start("portal", program, &command[1..], &[], &log)?;
        let count = addresses.len();
        let addresses = process.wait_ready("addresses", DEADLINE, || {
            let log = std::fs::read_to_string(&log).context("log")?;
            // Whole lines only: the program may be in the middle of one.
            let lines = log
                .split_inclusive('\n')
                .filter(|line| line.ends_with('\n'));
            let found: Vec<_> = lines
                .filter_map(|line| line.trim_end().strip_prefix("listening on "))
                .map(str::to_owned)
                .collect();
            Ok((found.len() == count).then_some(found))
        })?;
        Ok(Self {
            process,
            addresses,
            node: network.map(|(_, node)| Arc::clone(node)),
            spec,
            backing,
            _dir: dir,
        })
    }

    /// Gives the LUN another size, and tells the initiators.
    ///
    /// # Errors
    /// When the portal does not take it.
    pub fn resize(&mut self, size_bytes: u64) -> Result<()> {
        let file = File::options().write(true).open(&self.backing)?;
        file.set_len(size_bytes)?;
        self.process.signal(Signal::HUP)?;
        self.spec.size_bytes = size_bytes;
        let line = format!("{} has {size_bytes} bytes\n", self.backing.display());
        wait_for("the portal's LUN is resized", DEADLINE, || {
            Ok(self.process.log().contains(&line).then_some(()))
        })
        .with_context(|| self.process.log())
    }

    /// The program's log.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// Secrets go through files: the command line of a process is for everybody to read.
fn secret(kind: &str, account: &Account, dir: &Path) -> Result<[String; 4]> {
    let file = dir.join(format!("{kind}-secret"));
    std::fs::write(&file, &account.secret)?;
    Ok([
        format!("--{kind}-user"),
        account.user.clone(),
        format!("--{kind}-secret-file"),
        file.to_string_lossy().into_owned(),
    ])
}

impl Peer for Portal {
    fn portal(&self) -> String {
        self.addresses[0].clone()
    }
    fn portals(&self) -> Vec<String> {
        self.addresses.clone()
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
        Some(self.node.as_ref()?.name())
    }
}

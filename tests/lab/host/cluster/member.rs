//! A node, which is a guest: berthd and the node's part of the driver, and a cable that can be cut.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use berth_tests::fabric::Sim;
use berth_tests::guest::Booted;
use berth_tests::guest::control::{CSI_SOCKET, Node};
use berth_tests::guest::uml::{Tap, Uml};
use berth_tests::process::wait_for;
use berth_tests::programs;
use serde_json::Value;

use super::{DEADLINE, FABRIC, PORTALS, configuration, initiator, names};
use crate::guest::NODE;

/// Memory in MiB.
const MEMORY_MIB: u32 = 1024;
/// Where its daemon listens.
const API_SOCKET: &str = "/run/lab/run/api.sock";

/// A node.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) node: Arc<Node>,
    /// What the node sees as /mnt.
    pub(crate) folder: PathBuf,
    /// Its name to the fabric.
    pub(crate) initiator: String,
    tap: Tap,
    // It ends with the value.
    _guest: Booted,
}

/// A guest that boots: its folder, its cable and its name.
pub(super) struct Booting {
    guest: Booted,
    folder: PathBuf,
    tap: Tap,
    initiator: String,
}

impl Member {
    /// Boots a guest.
    pub(super) fn boot(
        name: &str,
        number: usize,
        tap: Tap,
        folder: &Path,
        fabric: &Sim,
    ) -> Result<Booting> {
        let own = format!("{NODE}{number}");
        let folder = folder.join(&own);
        std::fs::create_dir_all(folder.join("logs"))?;
        // The guest's root is the host's, but its /tmp is its own.
        let password = fabric.password_file();
        let config = fabric
            .config()
            .replace(password.to_str().context("path is text")?, "/mnt/password");
        std::fs::copy(&password, folder.join("password"))?;
        std::fs::write(
            folder.join("berth.toml"),
            configuration(&own, "/run/lab", &config),
        )?;
        std::fs::write(folder.join("arguments"), "node\n--rounds\n0\n--seed\n0\n")?;
        let programs = programs::ours("lab-guest")?;
        let programs = programs.parent().context("is in a folder")?;
        let guest = Uml {
            name: &format!("{name}-{number}"),
            memory_mib: MEMORY_MIB,
            main: include_str!("../uml-main.sh"),
            folder: &folder,
            environment: &[("BERTH_PROGRAMS", programs.to_str().context("path is text")?)],
            tap: Some(&tap),
        }
        .boot()?;
        Ok(Booting {
            guest,
            folder,
            tap,
            initiator: initiator(&own),
        })
    }

    /// Waits until it is up, and starts what runs on a node.
    pub(super) fn join(booting: Booting) -> Result<Self> {
        let Booting {
            mut guest,
            folder,
            tap,
            initiator,
        } = booting;
        let node = Node::connect(tap.netns(), tap.address(), || {
            match guest.process.status()? {
                None => Ok(()),
                Some(status) => bail!("the guest has ended: {status}\n{}", guest.process.log()),
            }
        })?;
        let member = Self {
            node: Arc::new(node),
            folder,
            initiator,
            tap,
            _guest: guest,
        };
        member.launch("berthd", &["--config", "/mnt/berth.toml"], || {
            member.berthctl(&["node"])
        })?;
        let endpoint = format!("unix://{CSI_SOCKET}");
        let words = ["--mode", "node", "--csi-endpoint", &endpoint];
        let more = ["--socket", API_SOCKET, "--run-dir", "/run/lab/csi"];
        member.launch("berth-csi", &[&words[..], &more].concat(), || {
            let test = ["-S", CSI_SOCKET];
            member.node.run("test", &test, DEADLINE)
        })?;
        Ok(member)
    }

    /// Starts a program of ours and waits until `ready` succeeds.
    fn launch<T>(&self, name: &str, args: &[&str], ready: impl Fn() -> Result<T>) -> Result<()> {
        let program = self.program(name)?;
        self.node
            .start(name, &[&[program.as_str()][..], args].concat())?;
        wait_for("a program of a node", DEADLINE, || {
            let (ended, log) = self.node.look(name)?;
            ensure!(ended.is_none(), "{name} has ended: {log}");
            Ok(ready().ok())
        })?;
        Ok(())
    }

    /// A program of ours, as the node sees it.
    pub(crate) fn program(&self, name: &str) -> Result<String> {
        // The guest's root is the host's.
        Ok(programs::ours(name)?.to_string_lossy().into_owned())
    }

    fn berthctl(&self, words: &[&str]) -> Result<Value> {
        let words = [&["--socket", API_SOCKET, "-o", "json"][..], words].concat();
        let text = self
            .node
            .run(&self.program("berthctl")?, &words, DEADLINE)?;
        serde_json::from_str(&text).with_context(|| text.clone())
    }

    /// The names of its attachments.
    pub(crate) fn attachments(&self) -> Result<Vec<String>> {
        names(&self.berthctl(&["list"])?)
    }

    /// From now on nothing passes between the node and the fabric, neither REST nor iSCSI.
    pub(crate) fn cut_off(&self) -> Result<()> {
        self.tap.cut_from(&[FABRIC, PORTALS[0], PORTALS[1]])
    }

    /// Ends that.
    pub(crate) fn heal(&self) -> Result<()> {
        self.tap.heal()
    }
}

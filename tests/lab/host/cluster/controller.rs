//! What is beside the nodes, on the host: the controller's part of the driver, with its daemon.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use berth_tests::fabric::Sim;
use berth_tests::net::Netns;
use berth_tests::process::{Process, wait_for};
use berth_tests::{programs, tool};
use rustix::process::Signal;
use serde_json::Value;

use super::{DEADLINE, configuration};

/// A daemon that has the fabric and no devices, and the driver in mode `controller`.
#[derive(Debug)]
pub(super) struct Controller {
    netns: Arc<Netns>,
    folder: PathBuf,
    logs: PathBuf,
    daemon: Option<Process>,
    driver: Option<Process>,
}

impl Controller {
    /// Starts both.
    pub(super) fn start(netns: Arc<Netns>, folder: &Path, fabric: &Sim) -> Result<Self> {
        let logs = folder.join("logs");
        let folder = folder.join("controller");
        std::fs::create_dir_all(&folder)?;
        let mut controller = Self {
            netns,
            folder,
            logs,
            daemon: None,
            driver: None,
        };
        let path = |name: &str| controller.folder.join(name).to_string_lossy().into_owned();
        let (dir, file) = (path(""), path("berth.toml"));
        let config = configuration("controller", dir.trim_end_matches('/'), &fabric.config());
        std::fs::write(&file, config + "[nbd]\nkernel = \"never\"\n")?;
        let endpoint = format!("unix://{}", controller.csi_socket().display());
        let socket = path("run/api.sock");
        controller.daemon = Some(controller.launch("berthd", &["--config", &file])?);
        wait_for("berthd of the controller", DEADLINE, || {
            Ok(controller.berthctl(&["node"]).ok())
        })?;
        let words = ["--mode", "controller", "--csi-endpoint", &endpoint];
        let more = ["--socket", &socket];
        controller.driver = Some(controller.launch("berth-csi", &[&words[..], &more].concat())?);
        wait_for("the controller of the driver", DEADLINE, || {
            Ok(UnixStream::connect(controller.csi_socket()).ok())
        })?;
        Ok(controller)
    }

    /// Where the driver listens.
    pub(super) fn csi_socket(&self) -> PathBuf {
        self.folder.join("csi.sock")
    }

    /// A program of ours on the host's side of the cables.
    fn launch(&self, name: &str, args: &[&str]) -> Result<Process> {
        let mut command = self.netns.prefix()?;
        command.push(programs::ours(name)?.to_string_lossy().into_owned());
        command.extend(args.iter().map(|&arg| arg.to_owned()));
        let log = self.logs.join(format!("controller-{name}.log"));
        Process::start(name, Path::new(&command[0]), &command[1..], &[], &log)
    }

    /// What berthctl says, asking the controller's daemon.
    pub(super) fn berthctl(&self, words: &[&str]) -> Result<Value> {
        let socket = self.folder.join("run/api.sock");
        let (berthctl, socket) = (programs::ours("berthctl")?, socket.to_string_lossy());
        let words = [&["--socket", &*socket, "-o", "json"][..], words].concat();
        let output = tool::run(&berthctl.to_string_lossy(), &words, DEADLINE)?;
        serde_json::from_str(&output.text).with_context(|| output.text.clone())
    }

    /// Ends both, and fails if they do not end in order.
    pub(super) fn finish(&mut self) -> Result<()> {
        for process in [&mut self.driver, &mut self.daemon].into_iter().flatten() {
            let status = process.stop(Signal::TERM, DEADLINE)?;
            ensure!(status.success(), "{status}: {}", process.log());
        }
        Ok(())
    }
}

//! A simulated fabric and nodes that use it, each with its daemon and its driver: all of it processes.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

use super::files::Files;
use crate::berthd::{Berthd, DEADLINE};
use crate::fabric::Sim;
use crate::process::Process;
use crate::programs;

/// Whether nodes have kernel devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// They do: mounts are real.
    Real,
    /// They do not: mounts are pretended.
    Pretended,
}

/// A node: its daemon and its driver.
#[derive(Debug)]
pub struct Node {
    /// The daemon.
    pub berthd: Berthd,
    driver: Process,
    kernel: Kernel,
    // Last: the folder goes after the processes.
    dir: TempDir,
}

impl Node {
    /// Starts the node of this name.
    ///
    /// # Errors
    /// When daemon or driver do not get ready.
    pub fn start(name: &str, sim: &Sim, kernel: Kernel) -> Result<Self> {
        let dir = TempDir::with_prefix("csi-")?;
        let initiator = format!("iqn.2026-11.io.berth:{name}");
        let berthd = Berthd::start_node(&initiator, &sim.config())?;
        let driver = launch(&berthd, dir.path(), kernel)?;
        let mut node = Self {
            berthd,
            driver,
            kernel,
            dir,
        };
        node.wait_ready()?;
        Ok(node)
    }

    fn wait_ready(&mut self) -> Result<()> {
        // Not by connecting: what a killed driver has left may take connections for a moment.
        let log = self.dir.path().join("log");
        self.driver.wait_ready("serving", DEADLINE, || {
            let text = std::fs::read_to_string(&log)?;
            Ok(text.contains(": serving ").then_some(()))
        })
    }

    /// The driver's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("csi.sock")
    }

    /// A folder for staging and target paths.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// How its paths are reached.
    #[must_use]
    pub fn files(&self) -> Files {
        match self.kernel {
            Kernel::Real => Files::Real,
            Kernel::Pretended => Files::Pretended(self.dir.path().join("run/pretended")),
        }
    }

    /// Kills the driver and starts it again.
    ///
    /// # Errors
    /// When it does not get ready again.
    pub fn kill_driver(&mut self) -> Result<()> {
        self.driver.stop(Signal::KILL, DEADLINE)?;
        self.start_driver()
    }

    fn start_driver(&mut self) -> Result<()> {
        ensure!(
            !self.log().contains("panicked"),
            "the driver panicked:\n{}",
            self.log()
        );
        self.driver = launch(&self.berthd, self.dir.path(), self.kernel)?;
        self.wait_ready()
    }

    /// Stops the driver as systemd would, and starts it again.
    ///
    /// # Errors
    /// When it does not stop cleanly or does not get ready again.
    pub fn restart_driver(&mut self) -> Result<()> {
        let status = self.driver.stop(Signal::TERM, DEADLINE)?;
        ensure!(
            status.success(),
            "the driver ended with {status}\n{}",
            self.log()
        );
        self.start_driver()
    }

    /// Kills the daemon and starts it again.
    ///
    /// # Errors
    /// When it does not get ready again.
    pub fn kill_daemon(&mut self) -> Result<()> {
        self.berthd.restart(Signal::KILL)
    }

    /// What the driver has logged in this life.
    #[must_use]
    pub fn log(&self) -> String {
        self.driver.log()
    }
}

fn launch(berthd: &Berthd, dir: &Path, kernel: Kernel) -> Result<Process> {
    let program = programs::ours(match kernel {
        Kernel::Real => "berth-csi",
        Kernel::Pretended => "csi-host",
    })?;
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    let words = [
        "--mode".to_owned(),
        "all".to_owned(),
        "--csi-endpoint".to_owned(),
        format!("unix://{}", text(dir.join("csi.sock"))),
        "--socket".to_owned(),
        text(berthd.api_socket()),
        "--run-dir".to_owned(),
        text(dir.join("run")),
        "--topology".to_owned(),
        "topology.berth.io/fabric=east".to_owned(),
        "--detach-timeout".to_owned(),
        "5".to_owned(),
        "--log".to_owned(),
        "debug,h2=warn,hyper=warn,hyper_util=warn,tower=warn".to_owned(),
    ];
    Process::start("berth-csi", &program, words, &[], &dir.join("log"))
}

/// A fabric and two nodes.
#[derive(Debug)]
pub struct Site {
    /// In the order in which they have to go.
    pub nodes: Vec<Node>,
    /// The fabric.
    pub sim: Sim,
}

impl Site {
    /// Starts all of it.
    ///
    /// # Errors
    /// When a part does not get ready.
    pub fn start(kernel: Kernel) -> Result<Self> {
        let sim = Sim::start(&["--settle-ms", "0"])?;
        let nodes = ["a", "b"]
            .into_iter()
            .map(|name| Node::start(name, &sim, kernel))
            .collect::<Result<_>>()?;
        Ok(Self { nodes, sim })
    }

    /// Everything that was logged, for a report.
    #[must_use]
    pub fn logs(&self) -> String {
        let mut all = format!("--- fabric\n{}\n", tail(&self.sim.log()));
        for (at, node) in self.nodes.iter().enumerate() {
            let (driver, daemon) = (tail(&node.log()), tail(&node.berthd.log()));
            all += &format!("--- driver {at}\n{driver}\n--- daemon {at}\n{daemon}\n");
        }
        all
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

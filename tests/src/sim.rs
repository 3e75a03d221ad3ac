//! `berthd sim`, the simulated fabric, as a process.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::process::{Process, wait_for};
use crate::programs;

/// For the fabric to get ready.
const READY: Duration = Duration::from_secs(60);

/// A simulated fabric on free ports; it ends with the value.
#[derive(Debug)]
pub struct Sim {
    process: Process,
    url: String,
    // Last: the folder goes after the process.
    dir: TempDir,
}

impl Sim {
    /// Starts it.
    ///
    /// # Errors
    /// When it does not get ready; with its log.
    pub fn start() -> Result<Self> {
        let dir = TempDir::with_prefix("sim-")?;
        let state = dir.path().join("state");
        let words = [
            "sim",
            "--http",
            "127.0.0.1:0",
            "--https",
            "127.0.0.1:0",
            "--state-dir",
            state.to_str().context("path is text")?,
        ];
        let log = dir.path().join("log");
        let program = programs::ours("berthd")?;
        let process = Process::start("berthd sim", &program, words, &[], &log)?;
        let said = || process.log();
        let url = wait_for("the simulated fabric gets ready", READY, || {
            let log = said();
            let ready = log.lines().any(|line| line == "ready");
            let mut words = log.split_whitespace();
            let url = words.find(|word| word.starts_with("http://"));
            Ok(url.filter(|_| ready).map(str::to_owned))
        })
        .with_context(said)?;
        std::fs::write(dir.path().join("password"), "password")?;
        Ok(Self { process, url, dir })
    }

    /// What a daemon's configuration says to use it.
    #[must_use]
    pub fn config(&self) -> String {
        format!(
            "[fabric]\nurl = \"{}\"\nuser = \"admin\"\npassword_file = \"{}\"\n",
            self.url,
            self.password_file().display()
        )
    }

    /// What it has printed.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    fn password_file(&self) -> PathBuf {
        self.dir.path().join("password")
    }
}

//! A node with berthd, a simulated fabric, and `berth-flexvolume` installed where kubelets look.

pub(crate) mod blank;
mod early;
pub(crate) mod kubelet;
pub(crate) mod teardown;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use berth_tests::Berthd;
use berth_tests::fabric::Sim;
use berth_tests::process::Process;
use berth_tests::programs;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::kernel;

/// A call of the driver, which bounds itself to less.
const CALL: Duration = Duration::from_secs(150);

/// The node. What it consists of ends with the value.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) daemon: Berthd,
    pub(crate) sim: Sim,
    dir: TempDir,
}

impl Node {
    /// Starts all of it and installs the driver.
    pub(crate) fn start() -> Result<Self> {
        kernel::load_nbd()?;
        let sim = Sim::start(&[])?;
        let daemon = Berthd::start_with(&sim.config(), None).with_context(|| sim.log())?;
        let node = Self {
            daemon,
            sim,
            dir: TempDir::with_prefix("flex-")?,
        };
        node.configure(false, "")?;
        let plugins = node.plugins();
        let dir = plugins.to_str().context("path is text")?;
        node.ok(&["install", "--dir", dir])?;
        Ok(node)
    }

    /// Writes the driver's configuration.
    pub(crate) fn configure(&self, attach: bool, more: &str) -> Result<()> {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let config = format!(
            "socket = '{}'\nstate_dir = '{}'\nlog = '{}'\nattach = {attach}\n{more}\n",
            self.daemon.api_socket().display(),
            path("state"),
            path("log"),
        );
        std::fs::write(self.config(), config)?;
        Ok(())
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.dir.path().join("flexvolume.toml")
    }

    /// Where the driver keeps its notes.
    pub(crate) fn driver_state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub(crate) fn driver_log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// The directory that kubelets are told to look in.
    pub(crate) fn plugins(&self) -> PathBuf {
        self.dir.path().join("plugins/volume/exec")
    }

    /// A path for something to be mounted at.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("kubelet").join(name)
    }

    /// One call of the driver, as kubelet makes it: its output must be one JSON document.
    pub(crate) fn call(&self, words: &[&str]) -> Result<Value> {
        let installed = self.plugins().join("datera~iscsi/iscsi");
        let program = if words.first() == Some(&"install") {
            programs::ours("berth-flexvolume")?
        } else {
            installed
        };
        let log = tempfile::NamedTempFile::new()?;
        let config = self.config();
        let envs = [("BERTH_FLEXVOLUME_CONFIG", config.as_path())];
        let mut process = Process::start("driver", &program, words, &envs, log.path())?;
        let status = process.wait_end(CALL)?;
        let text = process.log();
        let answer: Value =
            serde_json::from_str(&text).with_context(|| format!("{words:?}: {text:?}"))?;
        let failed = answer["status"] == "Failure";
        ensure!(
            status.code() == Some(i32::from(failed)),
            "{words:?}: {status}, {answer}"
        );
        Ok(answer)
    }

    /// A call that succeeds.
    pub(crate) fn ok(&self, words: &[&str]) -> Result<Value> {
        let answer = self.call(words)?;
        ensure!(answer["status"] == "Success", "{words:?}: {answer}");
        Ok(answer)
    }

    /// A call that fails with a message that says this; gives the message.
    pub(crate) fn fails(&self, words: &[&str], says: &str) -> Result<String> {
        let answer = self.call(words)?;
        let message = answer["message"].as_str().unwrap_or_default().to_owned();
        ensure!(
            answer["status"] == "Failure" && message.contains(says),
            "{words:?}: {answer}, expected a failure that says {says:?}"
        );
        Ok(message)
    }

    /// Deletes all volumes of the fabric, which is in this guest's memory, when none is attached any more.
    pub(crate) fn delete_volumes(&self) -> Result<()> {
        let list = self
            .daemon
            .request("GET", "/v1/volumes", None, CALL)?
            .json()?;
        let volumes = list["volumes"].as_array().context("a list")?;
        for name in volumes.iter().filter_map(|volume| volume["name"].as_str()) {
            let path = format!("/v1/volumes/{name}");
            let answer = self.daemon.request("DELETE", &path, None, CALL)?;
            ensure!(answer.status < 300, "DELETE {path}: {}", answer.status);
        }
        Ok(())
    }

    /// Names of all attachments.
    pub(crate) fn attached(&self) -> Result<Vec<String>> {
        let answer = self
            .daemon
            .request("GET", "/v1/attachments", None, CALL)?
            .json()?;
        let list = answer["attachments"].as_array().context("a list")?;
        let names = list.iter().filter_map(|one| one["name"].as_str());
        Ok(names.map(str::to_owned).collect())
    }
}

/// Options of a volume of 1 GiB, as in the manifests of 2016.
pub(crate) fn options(volume: &str, fs: &str) -> String {
    json!({
        "volumeID": volume, "size": "1", "replica": "1", "backstoreServer": "127.0.0.1:7717",
        "kubernetes.io/fsType": fs, "kubernetes.io/readwrite": "rw",
    })
    .to_string()
}

/// What is mounted from where, line by line: `(device, path)`.
pub(crate) fn mounts() -> Result<Vec<(String, PathBuf)>> {
    let table = std::fs::read_to_string("/proc/self/mounts")?;
    let lines = table.lines().filter_map(|line| {
        let mut words = line.split(' ');
        Some((words.next()?.to_owned(), PathBuf::from(words.next()?)))
    });
    Ok(lines.collect())
}

pub(crate) fn is_mounted(path: &Path) -> Result<bool> {
    Ok(mounts()?.iter().any(|(_, target)| target == path))
}

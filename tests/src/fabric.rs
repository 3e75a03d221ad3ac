//! The simulated fabric as a process, and a REST client that knows nothing of the product's types.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http;
use crate::process::{Process, Usage, wait_for};
use crate::programs;

/// To get ready, to stop, and for one request.
const DEADLINE: Duration = Duration::from_secs(60);
/// What the fabric takes unless it is told otherwise.
const PASSWORD: &str = "password";

/// A running `berthd sim` on free addresses of this machine.
#[derive(Debug)]
pub struct Sim {
    process: Process,
    http: SocketAddr,
    https: SocketAddr,
    fingerprint: String,
    portals: [SocketAddr; 2],
    options: Vec<String>,
    // Last: the folder goes after the process.
    dir: TempDir,
}

impl Sim {
    /// Starts one with more options and waits until it is ready.
    ///
    /// # Errors
    /// When it does not get ready; the error holds its log.
    pub fn start(options: &[&str]) -> Result<Self> {
        let dir = TempDir::with_prefix("sim-")?;
        let options: Vec<String> = options.iter().map(|&word| word.to_owned()).collect();
        let mut words = vec!["--http".to_owned(), "127.0.0.1:0".to_owned()];
        words.extend(["--https".to_owned(), "127.0.0.1:0".to_owned()]);
        words.extend(options.iter().cloned());
        Self::launch(dir, options, &words)
    }

    fn launch(dir: TempDir, options: Vec<String>, more: &[String]) -> Result<Self> {
        let mut words = vec!["sim".to_owned(), "--state-dir".to_owned()];
        words.push(dir.path().join("state").to_string_lossy().into_owned());
        words.extend(more.iter().cloned());
        let log = dir.path().join("log");
        let mut process =
            Process::start("berthd sim", &programs::ours("berthd")?, words, &[], &log)?;
        wait_for("the simulated fabric gets ready", DEADLINE, || {
            if let Some(status) = process.status()? {
                anyhow::bail!("it has ended with {status}");
            }
            Ok(process
                .log()
                .lines()
                .any(|line| line == "ready")
                .then_some(()))
        })
        .with_context(|| process.log())?;
        let log = process.log();
        let said = |name: &str| {
            let mut lines = log.lines().filter_map(|line| line.split_once(' '));
            let found = lines.find(|(word, _)| *word == name);
            found.map(|(_, rest)| rest.trim().to_owned())
        };
        let address = |name: &str, scheme: &str| -> Result<SocketAddr> {
            let text = said(name).with_context(|| log.clone())?;
            Ok(text.trim_start_matches(scheme).parse()?)
        };
        let portals = log.lines().filter_map(|line| line.strip_prefix("portal"));
        let portals: Vec<SocketAddr> = portals
            .map(|rest| Ok(rest.trim().parse()?))
            .collect::<Result<_>>()?;
        let sim = Self {
            http: address("http", "http://")?,
            https: address("https", "https://")?,
            fingerprint: said("fingerprint").with_context(|| log.clone())?,
            portals: portals
                .try_into()
                .map_err(|_| anyhow::anyhow!(log.clone()))?,
            process,
            options,
            dir,
        };
        Ok(sim)
    }

    /// Kills it and starts it again where it was.
    ///
    /// # Errors
    /// When it does not get ready again.
    pub fn kill_and_restart(mut self) -> Result<Self> {
        self.process.stop(Signal::KILL, DEADLINE)?;
        let Self {
            http,
            https,
            portals,
            options,
            dir,
            process,
            ..
        } = self;
        drop(process);
        let mut words = vec!["--http".to_owned(), http.to_string()];
        words.extend(["--https".to_owned(), https.to_string()]);
        for portal in portals {
            words.extend(["--portal".to_owned(), portal.to_string()]);
        }
        words.extend(options.iter().cloned());
        Self::launch(dir, options, &words)
    }

    /// Lines of configuration with which a daemon finds it, over HTTPS with the fingerprint pinned.
    ///
    /// # Errors
    /// When the file with the password cannot be written.
    pub fn config(&self) -> Result<String> {
        let password = self.dir.path().join("password");
        std::fs::write(&password, PASSWORD)?;
        Ok(format!(
            "[fabric]\nurl = \"https://{}\"\nuser = \"admin\"\npassword_file = \"{}\"\n\
             fingerprint = \"{}\"\niscsi_port = {}\npoll_interval = \"50ms\"\n",
            self.https,
            password.display(),
            self.fingerprint,
            self.portals[0].port(),
        ))
    }

    /// Where plain HTTP is.
    #[must_use]
    pub const fn http(&self) -> SocketAddr {
        self.http
    }

    /// The iSCSI portals.
    #[must_use]
    pub const fn portals(&self) -> [SocketAddr; 2] {
        self.portals
    }

    /// The state directory.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// What it has printed.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Its descriptors, memory and time.
    ///
    /// # Errors
    /// When it has ended.
    pub fn usage(&self) -> Result<Usage> {
        self.process.usage()
    }

    /// Logs in.
    ///
    /// # Errors
    /// When it refuses.
    pub fn log_in(&self) -> Result<Rest> {
        let mut rest = Rest {
            http: self.http,
            key: String::new(),
        };
        let answer = rest.ok(
            "PUT",
            "/login",
            Some(&json!({"name": "admin", "password": PASSWORD})),
        )?;
        answer["key"]
            .as_str()
            .context("no key")?
            .clone_into(&mut rest.key);
        Ok(rest)
    }

    /// Stops it and fails unless it ends by itself with exit code 0.
    ///
    /// # Errors
    /// When it hangs or fails.
    pub fn stop(mut self) -> Result<()> {
        let status = self.process.stop(Signal::TERM, DEADLINE)?;
        ensure!(
            status.success(),
            "berthd sim ended with {status}\n{}",
            self.log()
        );
        Ok(())
    }
}

/// A REST session.
#[derive(Debug, Clone)]
pub struct Rest {
    http: SocketAddr,
    key: String,
}

impl Rest {
    /// Status and JSON of an answer.
    ///
    /// # Errors
    /// When there is none in time, or it is no JSON.
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, Value)> {
        let path = format!("/v2.2{path}");
        let key = [("Auth-Token", self.key.as_str())];
        let headers = if self.key.is_empty() { &[][..] } else { &key };
        let answer = http::request_tcp(self.http, method, &path, headers, body, DEADLINE)?;
        Ok((answer.status, answer.json()?))
    }

    /// The whole answer of a request that succeeds.
    ///
    /// # Errors
    /// With the answer when it is a refusal.
    pub fn ok(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let (status, answer) = self.call(method, path, body)?;
        ensure!(status == 200, "{method} {path}: {status} {answer}");
        Ok(answer)
    }
}

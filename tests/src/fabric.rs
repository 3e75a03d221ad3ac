//! The simulated fabric as a process, and a REST client that knows nothing of the product's types.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http;
use crate::net::Netns;
use crate::process::{Process, Usage};
use crate::programs;

/// To get ready, to stop, and for one request.
const DEADLINE: Duration = Duration::from_secs(60);
/// What the fabric takes unless it is told otherwise.
const PASSWORD: &str = "password";
/// Where that is, for daemons.
const PASSWORD_FILE: &str = "password";

/// A running `berthd sim`.
#[derive(Debug)]
pub struct Sim {
    process: Process,
    addresses: Addresses,
    fingerprint: String,
    netns: Option<Arc<Netns>>,
    options: Vec<String>,
    // Last: the folder goes after the process.
    dir: TempDir,
}

/// Where a fabric serves.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// REST without encryption.
    pub http: SocketAddr,
    /// REST.
    pub https: SocketAddr,
    /// The iSCSI portals, two; none: free ones.
    pub portals: Vec<SocketAddr>,
}

impl Addresses {
    /// Free ones of this machine.
    fn free() -> Self {
        let any = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
        Self {
            http: any,
            https: any,
            portals: Vec::new(),
        }
    }

    fn words(&self) -> Vec<String> {
        let mut words = vec!["--http".to_owned(), self.http.to_string()];
        words.extend(["--https".to_owned(), self.https.to_string()]);
        for portal in &self.portals {
            words.extend(["--portal".to_owned(), portal.to_string()]);
        }
        words
    }
}

impl Sim {
    /// Starts one with more options on free addresses of this machine and waits until it is ready.
    ///
    /// # Errors
    /// When it does not get ready; the error holds its log.
    pub fn start(options: &[&str]) -> Result<Self> {
        Self::launch(
            TempDir::with_prefix("sim-")?,
            None,
            &Addresses::free(),
            owned(options),
        )
    }

    /// Starts one on these addresses of a network namespace.
    ///
    /// # Errors
    /// As [`Sim::start`].
    pub fn start_in(netns: &Arc<Netns>, addresses: &Addresses, options: &[&str]) -> Result<Self> {
        let netns = Some(Arc::clone(netns));
        Self::launch(
            TempDir::with_prefix("sim-")?,
            netns,
            addresses,
            owned(options),
        )
    }

    fn launch(
        dir: TempDir,
        netns: Option<Arc<Netns>>,
        addresses: &Addresses,
        options: Vec<String>,
    ) -> Result<Self> {
        let mut words = match &netns {
            Some(netns) => netns.prefix()?,
            None => Vec::new(),
        };
        words.push(programs::ours("berthd")?.to_string_lossy().into_owned());
        words.extend(["sim", "--state-dir"].map(str::to_owned));
        words.push(dir.path().join("state").to_string_lossy().into_owned());
        words.extend(addresses.words());
        words.extend(options.iter().cloned());
        let log = dir.path().join("log");
        let mut process =
            Process::start("berthd sim", Path::new(&words[0]), &words[1..], &[], &log)?;
        process.wait_line("ready", DEADLINE)?;
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
        ensure!(portals.len() == 2, "two portals: {log}");
        let addresses = Addresses {
            http: address("http", "http://")?,
            https: address("https", "https://")?,
            portals,
        };
        let fingerprint = said("fingerprint").with_context(|| log.clone())?;
        std::fs::write(dir.path().join(PASSWORD_FILE), PASSWORD)?;
        Ok(Self {
            process,
            addresses,
            fingerprint,
            netns,
            options,
            dir,
        })
    }

    /// Kills it and starts it again where it was.
    ///
    /// # Errors
    /// When it does not get ready again.
    pub fn kill_and_restart(mut self) -> Result<Self> {
        self.process.stop(Signal::KILL, DEADLINE)?;
        let Self {
            addresses,
            netns,
            options,
            dir,
            process,
            ..
        } = self;
        drop(process);
        Self::launch(dir, netns, &addresses, options)
    }

    /// Lines of configuration with which a daemon finds it, over HTTPS with the fingerprint pinned.
    #[must_use]
    pub fn config(&self) -> String {
        format!(
            "[fabric]\nurl = \"https://{}\"\nuser = \"admin\"\npassword_file = \"{}\"\n\
             fingerprint = \"{}\"\niscsi_port = {}\npoll_interval = \"50ms\"\n",
            self.addresses.https,
            self.password_file().display(),
            self.fingerprint,
            self.addresses.portals[0].port(),
        )
    }

    /// The file with the password of its user.
    #[must_use]
    pub fn password_file(&self) -> PathBuf {
        self.dir.path().join(PASSWORD_FILE)
    }

    /// Where plain HTTP is.
    #[must_use]
    pub const fn http(&self) -> SocketAddr {
        self.addresses.http
    }

    /// The iSCSI portals.
    #[must_use]
    pub fn portals(&self) -> [SocketAddr; 2] {
        [self.addresses.portals[0], self.addresses.portals[1]]
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
            http: self.addresses.http,
            netns: self.netns.clone(),
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
    netns: Option<Arc<Netns>>,
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
        let request = || http::request_tcp(self.http, method, &path, headers, body, DEADLINE);
        let answer = match &self.netns {
            Some(netns) => netns.within(request)??,
            None => request()?,
        };
        Ok((answer.status, answer.json()?))
    }

    /// Whether the target of a volume serves: without, its sessions end and none is made.
    ///
    /// # Errors
    /// With the answer when it is a refusal.
    pub fn set_online(&self, volume: &str, online: bool) -> Result<()> {
        let state = if online { "online" } else { "offline" };
        let body = json!({ "admin_state": state, "force": !online });
        self.ok("PUT", &format!("/app_instances/{volume}"), Some(&body))?;
        Ok(())
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

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

//! The daemon under test, with its configuration in a folder of its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http::{self, Answer};
use crate::manager::Manager;
use crate::peers::{Digests, Peer};
use crate::process::{Process, Usage, wait_for};
use crate::programs;

/// How long a daemon may take to get ready or to stop. Generous: CI has two busy cores.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The initiator name that every daemon under test logs in with; the peers admit it.
pub const INITIATOR: &str = "iqn.2026-11.io.berth:test";

/// The initiator name of a second node; peers admit it too.
pub const OTHER_INITIATOR: &str = "iqn.2026-11.io.berth:other";

/// A running `berthd`.
#[derive(Debug)]
pub struct Berthd {
    process: Process,
    netns: Option<String>,
    manager: Option<Manager>,
    // Last: the folder goes after the process.
    dir: TempDir,
}

impl Berthd {
    /// Starts a daemon and waits until it is ready.
    ///
    /// # Errors
    /// When it does not get ready; the error holds its log.
    pub fn start() -> Result<Self> {
        Self::start_with("", None)
    }

    /// The same in a network namespace: where the peer can only be reached from there.
    ///
    /// # Errors
    /// As [`Berthd::start`].
    pub fn start_for(peer: &dyn Peer) -> Result<Self> {
        Self::start_with("", peer.netns())
    }

    /// The same with more lines of configuration.
    ///
    /// # Errors
    /// As [`Berthd::start`].
    pub fn start_with(more_config: &str, netns: Option<&str>) -> Result<Self> {
        let dir = TempDir::with_prefix("berthd-")?;
        let config = format!("{}{more_config}", basic_config(dir.path()));
        Self::start_in(dir, &config, netns)
    }

    /// The daemon of another node: with another initiator name.
    ///
    /// # Errors
    /// As [`Berthd::start`].
    pub fn start_as(initiator: &str, peer: &dyn Peer) -> Result<Self> {
        let dir = TempDir::with_prefix("berthd-")?;
        let config = basic_config(dir.path()).replace(INITIATOR, initiator);
        Self::start_in(dir, &config, peer.netns())
    }

    /// The daemon of a node of this initiator name, with more lines of configuration.
    ///
    /// # Errors
    /// As [`Berthd::start`].
    pub fn start_node(initiator: &str, more_config: &str) -> Result<Self> {
        let dir = TempDir::with_prefix("berthd-")?;
        let config = basic_config(dir.path()).replace(INITIATOR, initiator);
        Self::start_in(dir, &format!("{config}{more_config}"), None)
    }

    /// The daemon with a service manager that keeps its descriptors while it is away.
    ///
    /// # Errors
    /// As [`Berthd::start`].
    pub fn start_managed() -> Result<Self> {
        let dir = TempDir::with_prefix("berthd-")?;
        std::fs::write(dir.path().join("berth.toml"), basic_config(dir.path()))?;
        let manager = Manager::new()?;
        let mut daemon = Self {
            process: launch(dir.path(), None, Some(&manager))?,
            netns: None,
            manager: Some(manager),
            dir,
        };
        daemon.wait_ready()?;
        Ok(daemon)
    }

    /// Its service manager, if it has one.
    #[must_use]
    pub fn manager(&self) -> Option<&Manager> {
        self.manager.as_ref()
    }

    fn start_in(dir: TempDir, config: &str, netns: Option<&str>) -> Result<Self> {
        std::fs::write(dir.path().join("berth.toml"), config)?;
        let process = launch(dir.path(), netns, None)?;
        let mut daemon = Self {
            process,
            netns: netns.map(str::to_owned),
            manager: None,
            dir,
        };
        daemon.wait_ready()?;
        Ok(daemon)
    }

    /// Waits until the daemon says that it is ready.
    ///
    /// # Errors
    /// When it ends before, or takes longer than [`DEADLINE`]; with its log.
    pub fn wait_ready(&mut self) -> Result<()> {
        let socket = self.api_socket();
        self.process.wait_ready("ready", DEADLINE, || {
            let answer = http::request(&socket, "GET", "/readyz", None, DEADLINE);
            Ok(answer.ok().filter(|answer| answer.status == 200))
        })?;
        Ok(())
    }

    /// Stops the daemon as systemd would and starts it again on the same state.
    ///
    /// # Errors
    /// When it does not stop cleanly or does not get ready again.
    pub fn restart(&mut self, signal: Signal) -> Result<()> {
        self.end(signal)?;
        self.begin()?;
        self.wait_ready()
    }

    /// Ends the daemon by a signal and waits for its end.
    ///
    /// # Errors
    /// When it has ended before; after SIGTERM also when its exit code is not 0.
    pub fn end(&mut self, signal: Signal) -> Result<()> {
        let status = self.process.stop(signal, DEADLINE)?;
        ensure!(
            signal != Signal::TERM || status.success(),
            "berthd ended with {status}\n{}",
            self.log()
        );
        Ok(())
    }

    /// Starts the daemon again on the same state after [`Berthd::end`]; does not wait until it is ready. Its log begins anew.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn begin(&mut self) -> Result<()> {
        let (dir, netns) = (self.dir.path(), self.netns.as_deref());
        self.process = launch(dir, netns, self.manager.as_ref())?;
        Ok(())
    }

    /// Stops the daemon and fails unless it ends by itself with exit code 0.
    ///
    /// # Errors
    /// When it hangs or fails.
    pub fn stop(mut self) -> Result<()> {
        let status = self.process.stop(Signal::TERM, DEADLINE)?;
        ensure!(
            status.success(),
            "berthd ended with {status}\n{}",
            self.log()
        );
        Ok(())
    }

    /// Socket of the HTTP API.
    #[must_use]
    pub fn api_socket(&self) -> PathBuf {
        self.dir.path().join("run/api.sock")
    }

    /// Socket of the NBD server.
    #[must_use]
    pub fn nbd_socket(&self) -> PathBuf {
        self.dir.path().join("run/nbd.sock")
    }

    /// NBD URI of an attachment.
    #[must_use]
    pub fn nbd_uri(&self, name: &str) -> String {
        format!("nbd+unix:///{name}?socket={}", self.nbd_socket().display())
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its descriptors, memory and time.
    ///
    /// # Errors
    /// When it has ended: a daemon that died shows here.
    pub fn usage(&self) -> Result<Usage> {
        self.process.usage()
    }

    /// One request to the API.
    ///
    /// # Errors
    /// When there is no answer within `within`.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        within: Duration,
    ) -> Result<Answer> {
        http::request(&self.api_socket(), method, path, body, within)
    }

    /// Attaches the first LUN of `peer` and fails unless the answer is the attachment.
    ///
    /// # Errors
    /// With the answer's body and the daemon's log.
    pub fn attach(&self, name: &str, peer: &dyn Peer, digests: Digests) -> Result<Value> {
        self.attach_with(name, &attach_body(peer, digests))
    }

    /// The same with a body of one's own.
    ///
    /// # Errors
    /// As [`Berthd::attach`].
    pub fn attach_with(&self, name: &str, body: &Value) -> Result<Value> {
        let path = format!("/v1/attachments/{name}");
        let answer = self.request("PUT", &path, Some(body), DEADLINE)?;
        ensure!(
            matches!(answer.status, 200 | 201),
            "attach: status {}: {}\n{}",
            answer.status,
            answer.text(),
            self.log()
        );
        let attachment = answer.json()?;
        ensure!(attachment["state"] == "attached", "{attachment:#}");
        Ok(attachment)
    }

    /// The attachment as it is now.
    ///
    /// # Errors
    /// With the answer's body, unless the answer is 200.
    pub fn attachment(&self, name: &str) -> Result<Value> {
        let answer = self.request("GET", &format!("/v1/attachments/{name}"), None, DEADLINE)?;
        ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
        answer.json()
    }

    /// Detaches, waiting as a plugin would while the daemon says `in-use`: a client's last connection is closed by the
    /// client first and seen by the daemon a moment later.
    ///
    /// # Errors
    /// With the answer's body and the daemon's log, unless the answer is 204.
    pub fn detach(&self, name: &str) -> Result<()> {
        let path = format!("/v1/attachments/{name}");
        let answer = wait_for("end of in-use", DEADLINE, || {
            let answer = self.request("DELETE", &path, None, DEADLINE)?;
            Ok((answer.status != 412).then_some(answer))
        })?;
        ensure!(
            answer.status == 204,
            "detach: status {}: {}\n{}",
            answer.status,
            answer.text(),
            self.log()
        );
        Ok(())
    }
}

/// What a user sends to attach the first LUN of `peer`.
#[must_use]
pub fn attach_body(peer: &dyn Peer, digests: Digests) -> Value {
    let spec = peer.spec();
    let mut source = json!({
        "portals": peer.portals(), "target": peer.target(), "lun": peer.lun(),
    });
    if let Some(chap) = &spec.chap {
        let mut auth = json!({ "user": chap.user, "secret": chap.secret });
        if let Some(mutual) = &spec.mutual {
            auth["mutual"] = json!({ "user": mutual.user, "secret": mutual.secret });
        }
        source["auth"] = json!({ "chap": auth });
    }
    let word = digests.word();
    json!({
        "source": { "iscsi": source },
        "device": "socket",
        "digests": { "header": word, "data": word },
    })
}

/// A configuration that keeps everything inside `dir`.
#[must_use]
pub fn basic_config(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "[node]\nname = \"test\"\ninitiator_name = \"{INITIATOR}\"\n\
         state_dir = \"{dir}/state\"\nruntime_dir = \"{dir}/run\"\n\
         [api]\nsocket = \"{dir}/run/api.sock\"\n\
         [nbd]\nsocket = \"{dir}/run/nbd.sock\"\n"
    )
}

fn launch(dir: &Path, netns: Option<&str>, manager: Option<&Manager>) -> Result<Process> {
    let berthd = programs::ours("berthd")?;
    let config = dir.join("berth.toml");
    let log = dir.join("log");
    let config = [Path::new("--config"), &config];
    if let Some(manager) = manager {
        let (command, _fds) = manager.command(&berthd, &config)?;
        let socket = manager.socket();
        let envs = [("NOTIFY_SOCKET", socket.as_path())];
        return Process::start("berthd", &command[0], &command[1..], &envs, &log);
    }
    match netns {
        None => Process::start("berthd", &berthd, config, &[], &log),
        Some(netns) => {
            let ip = programs::system("ip")?;
            let inside = ["netns", "exec", netns].map(Path::new);
            let command = inside.into_iter().chain([berthd.as_path()]).chain(config);
            Process::start("berthd", &ip, command, &[], &log)
        }
    }
}

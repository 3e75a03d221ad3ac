//! A daemon that only pretends, and `berthctl` run against it.

#![allow(clippy::unwrap_used, reason = "this is all test code")]
#![allow(dead_code, reason = "each test binary uses its part")]

#[path = "../../../api/tests/common/fake.rs"]
mod fake;

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use berth_api::server::{Api, Listener, UnixSocket};
use fake::Fake;
use serde_json::Value;
use tokio::task::JoinHandle;

pub(crate) struct Daemon {
    pub(crate) fake: Arc<Fake>,
    pub(crate) api: Api<Fake>,
    pub(crate) serving: JoinHandle<()>,
    pub(crate) dir: tempfile::TempDir,
}

pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {:?} {:?}", self.stdout, self.stderr))
    }

    /// Everything that was said, for messages of asserts.
    pub(crate) fn said(&self) -> String {
        format!("{} {} {}", self.code, self.stdout, self.stderr)
    }
}

impl Daemon {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fake = Fake::new();
        let api = Api::new(Arc::clone(&fake));
        let socket = UnixSocket::bind(&dir.path().join("api.sock"), 0o660).unwrap();
        let serving = tokio::spawn({
            let api = api.clone();
            async move { api.serve(Listener::Unix(socket)).await }
        });
        Self {
            fake,
            api,
            serving,
            dir,
        }
    }

    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    pub(crate) async fn run(&self, line: &str) -> Ran {
        self.run_with(line, &[]).await
    }

    pub(crate) async fn run_with(
        &self,
        line: &str,
        environment: &[(&'static str, &'static str)],
    ) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_berthctl"));
        command
            .args(line.split_whitespace())
            .env_remove("BERTH_URL")
            .env_remove("BERTH_TOKEN_FILE")
            .env_remove("BERTH_CHAP_SECRET")
            .env_remove("BERTH_MUTUAL_SECRET")
            .env("BERTH_SOCKET", self.dir.path().join("api.sock"))
            .envs(environment.iter().copied())
            .stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || command.output().unwrap())
            .await
            .unwrap();
        Ran {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    pub(crate) async fn stop(self) {
        self.api.stop();
        self.serving.await.unwrap();
    }
}

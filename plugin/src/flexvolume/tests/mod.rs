//! The calls of kubelet, in the order in which it makes them, against a berthd and a node that only pretend.

mod calls;
mod safety;
mod service;
mod world;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::call::Call;
use super::config::Config;
use super::driver::{Budget, Driver};
use super::record::{Record, Store};
use super::reply::{Reply, Status, chain};
use service::{Served, Service};
use world::World;

struct Rig {
    _dir: tempfile::TempDir,
    world: World,
    service: Arc<Service>,
    served: Option<Served>,
    config: Config,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let world = World::default();
        let service = Service::new(&world);
        let config = Config {
            socket: dir.path().join("api.sock"),
            state_dir: dir.path().join("state"),
            connect_retry_seconds: 0,
            resize_wait_seconds: 0,
            ..Config::default()
        };
        let mut rig = Self {
            _dir: dir,
            world,
            service,
            served: None,
            config,
        };
        rig.start();
        rig
    }

    /// berthd begins.
    fn start(&mut self) {
        self.served = Some(self.service.serve(&self.config.socket));
    }

    /// berthd ends.
    async fn stop(&mut self) {
        let served = self.served.take().unwrap();
        let task = Arc::clone(&served.service);
        drop(served);
        drop(task);
        let _ = std::fs::remove_file(&self.config.socket);
        tokio::task::yield_now().await;
    }

    fn store(&self) -> Store {
        Store::open(&self.config.state_dir).unwrap()
    }

    fn records(&self) -> Vec<Record> {
        self.store().all().unwrap()
    }

    /// One process of kubelet's: everything anew but what is on the node.
    async fn call(&self, words: &[&str]) -> Reply {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        let call = Call::parse(&words).unwrap();
        let budget = Budget::of(Duration::from_secs(60));
        let driver = Driver::new(
            self.config.clone(),
            self.world.clone(),
            self.store(),
            "flex-test",
            budget,
        );
        driver
            .answer(call)
            .await
            .unwrap_or_else(|error| Reply::failure(chain(&error)))
    }

    async fn ok(&self, words: &[&str]) -> Reply {
        let reply = self.call(words).await;
        assert_eq!(reply.status, Status::Success, "{words:?}: {reply:?}");
        reply
    }

    /// The message of a call that fails.
    async fn fails(&self, words: &[&str]) -> String {
        let reply = self.call(words).await;
        assert_eq!(reply.status, Status::Failure, "{words:?}: {reply:?}");
        reply.message.unwrap()
    }
}

/// The options of a volume, as kubelet gives them.
fn options(volume: &str, more: &Value) -> String {
    let mut options = json!({
        "volumeID": volume, "size": "1", "replica": "3", "backstoreServer": "192.0.2.9:7717",
        "kubernetes.io/fsType": "xfs", "kubernetes.io/readwrite": "rw",
    });
    for (key, value) in more.as_object().unwrap() {
        options[key] = value.clone();
    }
    options.to_string()
}

fn xfs(volume: &str) -> String {
    options(volume, &json!({}))
}

fn paths(paths: &[&str]) -> Vec<PathBuf> {
    paths.iter().map(PathBuf::from).collect()
}

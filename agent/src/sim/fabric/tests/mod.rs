//! The fabric as its clients see it: REST over sockets, and iSCSI at its portals.
#![allow(
    clippy::needless_pass_by_value,
    reason = "bodies are written where they are used"
)]

mod clients;
mod data_path;
mod faults;
mod hostile;
mod lifecycle;
mod observe;
mod portal_faults;
mod rules;
mod shapes;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::options::DEFAULT_PASSWORD;
use super::{Fabric, Options, SwVersion};

/// Longest wait for an answer.
const DEADLINE: Duration = Duration::from_secs(60);
/// The initiator of most tests.
const NODE: &str = "iqn.1993-08.org.debian:01:a1b2c3d4e5f6";

/// A fabric in a folder of its own, and a client of it.
struct Rig {
    fabric: Fabric,
    client: Client,
    // Last: the folder goes after the fabric.
    dir: TempDir,
}

impl Rig {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Options)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut options = Options::new(dir.path());
        options.settle = Duration::ZERO;
        change(&mut options);
        let fabric = Fabric::start(options).unwrap();
        let client = Client::login(fabric.http().unwrap());
        Self {
            fabric,
            client,
            dir,
        }
    }

    fn version(version: &str) -> Self {
        let version: SwVersion = version.parse().unwrap();
        Self::with(|options| options.sw_version = version)
    }

    /// Stops the fabric and starts it again over the same folder.
    fn restart(self) -> Self {
        let Self { fabric, dir, .. } = self;
        let portals = fabric.portals();
        fabric.stop();
        let mut options = Options::new(dir.path());
        options.settle = Duration::ZERO;
        options.portals = Some(portals);
        let fabric = Fabric::start(options).unwrap();
        let client = Client::login(fabric.http().unwrap());
        Self {
            fabric,
            client,
            dir,
        }
    }
}

/// An HTTP client that knows nothing of the fabric's types.
struct Client {
    address: SocketAddr,
    key: String,
    tenant: Option<String>,
    version: &'static str,
}

impl Client {
    fn login(address: SocketAddr) -> Self {
        let mut client = Self {
            address,
            key: String::new(),
            tenant: None,
            version: "v2.2",
        };
        let body = json!({"name": "admin", "password": DEFAULT_PASSWORD});
        let answer = client.ok("PUT", "/login", body);
        client.key = answer["key"].as_str().unwrap().to_owned();
        client
    }

    /// Sends bytes, and gives what came back before the connection was closed.
    fn raw(&self, request: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(request).unwrap();
        let mut answer = Vec::new();
        // A connection that breaks is one of the things to see.
        let _ = stream.read_to_end(&mut answer);
        answer
    }

    /// Status and bytes of the body; `None` without an answer.
    fn exchange(&self, method: &str, path: &str, kind: &str, body: &str) -> Option<(u16, Vec<u8>)> {
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nhost: fabric\r\nconnection: close\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n",
            body.len()
        );
        if !self.key.is_empty() {
            head.push_str(&format!("Auth-Token: {}\r\n", self.key));
        }
        if let Some(tenant) = &self.tenant {
            head.push_str(&format!("tenant: {tenant}\r\n"));
        }
        let answer = self.raw(format!("{head}\r\n{body}").as_bytes());
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = std::str::from_utf8(&answer[..end]).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Some((status, answer[end + 4..].to_vec()))
    }

    fn call(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let path = format!("/{}{path}", self.version);
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let (status, bytes) = self
            .exchange(method, &path, "application/json", &body)
            .expect("an answer");
        (status, serde_json::from_slice(&bytes).unwrap())
    }

    /// The whole answer of a request that succeeds.
    fn ok(&self, method: &str, path: &str, body: Value) -> Value {
        let (status, answer) = self.call(method, path, body.clone());
        assert_eq!(status, 200, "{method} {path} {body}: {answer}");
        answer
    }

    /// The `data` of it.
    fn get(&self, path: &str) -> Value {
        self.ok("GET", path, Value::Null)["data"].clone()
    }

    fn post(&self, path: &str, body: Value) -> Value {
        self.ok("POST", path, body)["data"].clone()
    }

    fn put(&self, path: &str, body: Value) -> Value {
        self.ok("PUT", path, body)["data"].clone()
    }

    fn delete(&self, path: &str) -> Value {
        self.ok("DELETE", path, Value::Null)["data"].clone()
    }

    /// Status, name and code of a refusal.
    fn refused(&self, method: &str, path: &str, body: Value) -> (u16, String, u64) {
        let (status, answer) = self.call(method, path, body);
        assert_eq!(answer["http"], status, "{answer}");
        let name = answer["name"].as_str().expect("a name").to_owned();
        (status, name, answer["code"].as_u64().expect("a code"))
    }

    /// Makes a volume of 1 GiB; gives the app instance.
    fn volume(&self, name: &str) -> Value {
        self.post(
            "/app_instances",
            json!({"name": name, "create_mode": "kubernetes", "storage_instances": [
                {"name": "storage-1", "volumes": [{"name": "volume-1", "size": 1, "replica_count": 1}]},
            ]}),
        )
    }

    /// Makes an initiator known and lets it use the first storage instance.
    fn grant(&self, instance: &str, initiator: &str) {
        let body = json!({"id": initiator, "name": "node-1"});
        let (status, answer) = self.call("POST", "/initiators", body);
        assert!(status == 200 || status == 409, "{answer}");
        let path = format!("/app_instances/{instance}/storage_instances/storage-1/acl_policy");
        let body = json!({"initiators": [{"path": format!("/initiators/{initiator}")}]});
        self.put(&path, body);
    }
}

/// The first storage instance of an app instance.
fn storage(instance: &Value) -> &Value {
    &instance["storage_instances"][0]
}

/// The path of an object.
fn path(object: &Value) -> &str {
    object["path"].as_str().unwrap()
}

//! A simulated fabric with real portals, and daemons that use it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use berth_agent::sim::fabric::{DEFAULT_PASSWORD, DEFAULT_USER, Fabric, Options};
use berth_tests::Berthd;
use berth_tests::http::Answer;
use berth_tests::raw_nbd::{CMD_READ, CMD_WRITE, RawClient};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Generous: CI has two busy cores.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
pub(crate) const GIB: u64 = 1 << 30;
const BLOCK_BYTES: u32 = 4096;

/// The fabric, and a folder for passwords and certificates.
pub(crate) struct Site {
    pub(crate) fabric: Fabric,
    pub(crate) dir: TempDir,
}

impl Site {
    pub(crate) fn start() -> Result<Self> {
        let dir = TempDir::with_prefix("site-")?;
        std::fs::write(dir.path().join("password"), DEFAULT_PASSWORD)?;
        let options = Options {
            // Nobody looks twice, so that every run asks the same.
            settle: Duration::ZERO,
            ..Options::new(dir.path().join("fabric"))
        };
        let fabric = Fabric::start(options)?;
        Ok(Self { fabric, dir })
    }

    /// The `[fabric]` of a daemon, with more lines of its own.
    pub(crate) fn config(&self, url: &str, more: &str) -> String {
        let password = self.dir.path().join("password");
        format!(
            "[fabric]\nurl = \"{url}\"\nuser = \"{DEFAULT_USER}\"\npassword_file = \"{}\"\n\
             poll_interval = \"20ms\"\nretry_first = \"20ms\"\nretry_max = \"200ms\"\n{more}\n",
            password.display()
        )
    }

    /// One request to the REST API, in a session of its own; the status.
    pub(crate) fn rest(&self, method: &str, path: &str, body: &Value) -> Result<u16> {
        let credentials = json!({ "name": DEFAULT_USER, "password": DEFAULT_PASSWORD });
        let (status, login) = self.send("PUT", "/v2.2/login", "", &credentials)?;
        ensure!(status == 200, "login: {status}");
        let key = login["key"].as_str().context("a key")?;
        let headers = format!("Auth-Token: {key}\r\ntenant: /root\r\n");
        Ok(self.send(method, path, &headers, body)?.0)
    }

    fn send(&self, method: &str, path: &str, headers: &str, body: &Value) -> Result<(u16, Value)> {
        let address = self.fabric.http().context("HTTP is served")?;
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let body = body.to_string();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: fabric\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n{headers}\r\n",
            body.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer")?;
        let status = head.split(' ').nth(1).context("a status")?.parse()?;
        Ok((status, serde_json::from_str(body)?))
    }

    /// Address of plain HTTP.
    pub(crate) fn http(&self) -> Result<String> {
        let address = self.fabric.http().context("HTTP is served")?;
        Ok(format!("http://{address}"))
    }
}

/// A request that has to succeed with one of these.
pub(crate) fn call(
    node: &Berthd,
    method: &str,
    path: &str,
    body: Option<&Value>,
    status: &[u16],
) -> Result<Answer> {
    let answer = node.request(method, path, body, DEADLINE)?;
    ensure!(
        status.contains(&answer.status),
        "{method} {path}: status {}: {}\n{}",
        answer.status,
        answer.text(),
        node.log()
    );
    Ok(answer)
}

/// A volume as the daemon tells of it.
pub(crate) fn volume(node: &Berthd, name: &str) -> Result<Value> {
    call(node, "GET", &format!("/v1/volumes/{name}"), None, &[200])?.json()
}

/// Names of all volumes on the fabric.
pub(crate) fn volumes(node: &Berthd) -> Result<Vec<String>> {
    let list = call(node, "GET", "/v1/volumes", None, &[200])?.json()?;
    let rows = list["volumes"].as_array().context("a list")?;
    let name = |row: &Value| row["name"].as_str().unwrap_or_default().to_owned();
    Ok(rows.iter().map(name).collect())
}

/// The body that attaches a volume of the fabric.
pub(crate) fn attach_body(source: &Value) -> Value {
    json!({ "source": { "fabric": source }, "device": "socket" })
}

/// An NBD client of an attachment.
pub(crate) struct Disk(RawClient);

impl Disk {
    pub(crate) fn open(node: &Berthd, name: &str) -> Result<Self> {
        let mut client = RawClient::connect(&node.nbd_socket(), DEADLINE)?;
        client.go(name)?;
        Ok(Self(client))
    }

    /// Writes a block full of `byte`; the NBD error.
    pub(crate) fn write(&mut self, block: u64, byte: u8) -> Result<u32> {
        let offset = block * u64::from(BLOCK_BYTES);
        self.0.request(CMD_WRITE, block, offset, BLOCK_BYTES)?;
        self.0.0.write_all(&[byte; BLOCK_BYTES as usize])?;
        Ok(self.0.reply()?.0)
    }

    /// Reads a block; the byte that it is full of.
    pub(crate) fn read(&mut self, block: u64) -> Result<u8> {
        let offset = block * u64::from(BLOCK_BYTES);
        self.0.request(CMD_READ, block, offset, BLOCK_BYTES)?;
        let (error, _) = self.0.reply()?;
        ensure!(error == 0, "NBD error {error}");
        let mut data = [0; BLOCK_BYTES as usize];
        self.0.0.read_exact(&mut data)?;
        ensure!(data.iter().all(|byte| *byte == data[0]), "a torn block");
        Ok(data[0])
    }
}

/// What is written is read: the data path works.
pub(crate) fn check_data(node: &Berthd, name: &str, byte: u8) -> Result<()> {
    let mut disk = Disk::open(node, name)?;
    let error = disk.write(3, byte)?;
    ensure!(error == 0, "NBD error {error}\n{}", node.log());
    let read = disk.read(3)?;
    ensure!(read == byte, "{read} is read, {byte} was written");
    Ok(())
}

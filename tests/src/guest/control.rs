//! A guest that is told what to do while it runs: programs started, stopped and run to their end, and sockets of its programs
//! reached from the host. One JSON object a line over TCP, each answered by one; one caller at a time is what it is for.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::net::Netns;
use crate::process::{Process, wait_for};
use crate::tool;

/// Where a guest listens for orders.
pub const PORT: u16 = 7000;
/// Where a guest passes calls on to its CSI driver.
pub const CSI_PORT: u16 = 7001;
/// Where that driver listens in the guest.
pub const CSI_SOCKET: &str = "/run/lab/csi.sock";
/// Where the guest keeps what programs print that were started; the host sees it.
const LOGS: &str = "/mnt/logs";
/// From the guest's start until it listens.
const BOOT: Duration = Duration::from_secs(120);
/// One attempt to connect; a busy guest may let a first packet wait, or lose it.
const CONNECT: Duration = Duration::from_secs(20);
/// What a guest needs besides the time that an order allows.
const MARGIN: Duration = Duration::from_secs(60);
/// How long a program may take to end.
const END: Duration = Duration::from_secs(60);

/// Takes orders until the caller has gone, one caller after the other. Does not return.
///
/// # Errors
/// When it cannot listen.
pub fn serve() -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
    let started = Arc::new(Mutex::new(HashMap::new()));
    for stream in listener.incoming() {
        let (stream, started) = (stream?, Arc::clone(&started));
        std::thread::spawn(move || obey(&stream, &started));
    }
    Ok(())
}

/// Passes what arrives on `port` on to a socket of a program of this guest, and back.
///
/// # Errors
/// When it cannot listen.
pub fn relay(port: u16, socket: &Path) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    let socket = socket.to_owned();
    std::thread::spawn(move || {
        for outside in listener.incoming().flatten() {
            // Without the program the caller sees what it would see: a connection that ends.
            if let Ok(inside) = UnixStream::connect(&socket) {
                let _ = join(outside, inside);
            }
        }
    });
    Ok(())
}

fn join(outside: TcpStream, inside: UnixStream) -> Result<()> {
    let (mut from, mut to) = (outside.try_clone()?, inside.try_clone()?);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
    let (mut from, mut to) = (inside, outside);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
    Ok(())
}

type Started = Mutex<HashMap<String, Process>>;

fn obey(stream: &TcpStream, started: &Started) {
    let Ok(mut answers) = stream.try_clone() else {
        return;
    };
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { return };
        let answer = order(&line, started).unwrap_or_else(|error| {
            let text = format!("{error:#}");
            json!({ "error": text })
        });
        if writeln!(answers, "{answer}").is_err() {
            return;
        }
    }
}

fn order(line: &str, started: &Started) -> Result<Value> {
    let order: Value = serde_json::from_str(line)?;
    let argv: Vec<&str> = order["argv"]
        .as_array()
        .map(|words| words.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    let word = |key: &str| order[key].as_str().map(str::to_owned);
    if let Some(program) = word("run") {
        let within = Duration::from_secs(order["seconds"].as_u64().context("seconds")?);
        let output = tool::try_run(&program, &argv, within)?;
        return Ok(json!({ "status": output.status.code(), "text": output.text }));
    }
    let mut started = started.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(name) = word("start") {
        let program = argv.first().context("argv is empty")?;
        let log = PathBuf::from(format!("{LOGS}/{name}.log"));
        let process = Process::start(&name, Path::new(program), &argv[1..], &[], &log)?;
        let pid = process.pid();
        started.insert(name, process);
        return Ok(json!({ "pid": pid }));
    }
    let Some(name) = word("name") else {
        bail!("no such order: {line}");
    };
    let process = started
        .get_mut(&name)
        .with_context(|| format!("{name} was not started"))?;
    let signal = match word("signal").as_deref() {
        Some("KILL") => Some(Signal::KILL),
        Some("TERM") => Some(Signal::TERM),
        Some(other) => bail!("signal {other}"),
        None => None,
    };
    let status = match signal {
        Some(signal) => Some(process.stop(signal, END)?),
        None => process.status()?,
    };
    let status = status.map(|status| status.to_string());
    Ok(json!({ "ended": status, "text": process.log() }))
}

/// A guest that takes orders, seen from the host.
#[derive(Debug)]
pub struct Node {
    netns: Arc<Netns>,
    address: IpAddr,
}

impl Node {
    /// Waits until the guest at `address` of the namespace listens.
    ///
    /// # Errors
    /// When it does not, or `alive` says why it never will.
    pub fn connect(
        netns: &Arc<Netns>,
        address: &str,
        mut alive: impl FnMut() -> Result<()>,
    ) -> Result<Self> {
        let node = Self {
            netns: Arc::clone(netns),
            address: address.parse()?,
        };
        wait_for("a guest that takes orders", BOOT, || {
            alive()?;
            Ok(node.stream(PORT).ok())
        })?;
        Ok(node)
    }

    /// A connection to a port of the guest.
    ///
    /// # Errors
    /// When there is none within 20 seconds.
    pub fn stream(&self, port: u16) -> Result<TcpStream> {
        let address = SocketAddr::new(self.address, port);
        let stream = self
            .netns
            .within(|| TcpStream::connect_timeout(&address, CONNECT))?;
        stream.with_context(|| format!("connection to {address}"))
    }

    /// Runs a program of the guest to its end and gives what it has printed.
    ///
    /// # Errors
    /// Unless its exit code is 0, with what it has printed.
    pub fn run(&self, program: &str, argv: &[&str], within: Duration) -> Result<String> {
        let (status, text) = self.try_run(program, argv, within)?;
        ensure!(
            status == Some(0),
            "{program} {}: exit {status:?}\n{text}",
            argv.join(" ")
        );
        Ok(text)
    }

    /// The same, whatever its exit code is; that is missing when a signal has ended it.
    ///
    /// # Errors
    /// When it is not there or does not end in time.
    pub fn try_run(
        &self,
        program: &str,
        argv: &[&str],
        within: Duration,
    ) -> Result<(Option<i64>, String)> {
        let order = json!({ "run": program, "argv": argv, "seconds": within.as_secs().max(1) });
        let answer = self.order(&order, within)?;
        Ok((answer["status"].as_i64(), text(&answer)))
    }

    /// Starts a program, under a name, that runs until it is stopped.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, name: &str, argv: &[&str]) -> Result<()> {
        self.order(&json!({ "start": name, "argv": argv }), Duration::ZERO)
            .map(drop)
    }

    /// Ends a program that was started, by `TERM` or `KILL`, and gives what it has printed.
    ///
    /// # Errors
    /// When it was not started, or does not end.
    pub fn stop(&self, name: &str, signal: &str) -> Result<String> {
        let answer = self.order(&json!({ "name": name, "signal": signal }), END)?;
        Ok(text(&answer))
    }

    /// How a program that was started has ended, if it has, and what it has printed so far.
    ///
    /// # Errors
    /// When it was not started.
    pub fn look(&self, name: &str) -> Result<(Option<String>, String)> {
        let answer = self.order(&json!({ "name": name }), Duration::ZERO)?;
        Ok((answer["ended"].as_str().map(str::to_owned), text(&answer)))
    }

    fn order(&self, order: &Value, within: Duration) -> Result<Value> {
        let mut stream = self.stream(PORT)?;
        stream.set_read_timeout(Some(within + MARGIN))?;
        writeln!(stream, "{order}")?;
        let mut line = String::new();
        BufReader::new(&stream)
            .read_line(&mut line)
            .with_context(|| format!("no answer to {order}"))?;
        let answer: Value = serde_json::from_str(&line).with_context(|| format!("{line:?}"))?;
        match answer["error"].as_str() {
            Some(error) => Err(anyhow!("{error}").context(format!("{order}"))),
            None => Ok(answer),
        }
    }
}

fn text(answer: &Value) -> String {
    answer["text"].as_str().unwrap_or_default().to_owned()
}

//! Between the daemon and the REST API of a fabric: counts requests, and holds one of them back.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// Where a request is held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hold {
    /// Before the fabric gets it: it is not carried out.
    Request,
    /// When the fabric has answered: it was carried out, and nobody learns of it.
    Answer,
}

#[derive(Debug, Default)]
struct State {
    /// Requests since it was armed or disarmed last, as `PUT /v2.2/login`.
    seen: Vec<String>,
    armed: Option<(usize, Hold)>,
    held: bool,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
    fabric: SocketAddr,
}

/// The proxy; it and its connections end when it is dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    pub(crate) fn start(fabric: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
            fabric,
        });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let mut open: Vec<(TcpStream, JoinHandle<Result<()>>)> = Vec::new();
            for stream in listener.incoming().flatten() {
                if theirs.stop.load(Ordering::Acquire) {
                    break;
                }
                open.retain(|(_, thread)| !thread.is_finished());
                if let Ok(ours) = stream.try_clone() {
                    let shared = Arc::clone(&theirs);
                    open.push((ours, std::thread::spawn(move || serve(stream, &shared))));
                }
            }
            for (stream, thread) in open {
                let _ = stream.shutdown(Shutdown::Both);
                let _ = thread.join();
            }
        });
        Ok(Self {
            address,
            shared,
            thread: Some(thread),
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Counts from now on, and holds the request of this number (from 0) back.
    pub(crate) fn arm(&self, number: usize, hold: Hold) {
        *self.shared.lock() = State {
            armed: Some((number, hold)),
            ..State::default()
        };
    }

    /// Waits until the request is held; what it is.
    pub(crate) fn wait_held(&self, within: Duration) -> Result<String> {
        let state = self.shared.lock();
        let (state, timeout) = self
            .shared
            .changed
            .wait_timeout_while(state, within, |state| !state.held)
            .unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            bail!("the request did not come: {:?}", state.seen);
        }
        let last = state.armed.map(|(number, _)| number);
        let what = last.and_then(|number| state.seen.get(number).cloned());
        what.context("it is held, so it was seen")
    }

    /// Lets go of what is held, and counts from now on.
    pub(crate) fn disarm(&self) {
        *self.shared.lock() = State::default();
        self.shared.changed.notify_all();
    }

    /// Requests since [`Proxy::arm`] or [`Proxy::disarm`].
    pub(crate) fn seen(&self) -> Vec<String> {
        self.shared.lock().seen.clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.disarm();
        // Wakes the listener up.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request; whether it is to be held, and where.
    fn count(&self, what: String) -> Option<Hold> {
        let mut state = self.lock();
        let number = state.seen.len();
        state.seen.push(what);
        let (_, hold) = state.armed.filter(|(armed, _)| *armed == number)?;
        Some(hold)
    }

    /// Holds on until somebody lets go.
    fn hold(&self) {
        let mut state = self.lock();
        state.held = true;
        self.changed.notify_all();
        let stop = || self.stop.load(Ordering::Acquire);
        let armed = |state: &mut State| state.armed.is_some() && !stop();
        drop(self.changed.wait_while(state, armed));
    }
}

/// One connection of the daemon, with one of its own to the fabric.
fn serve(daemon: TcpStream, shared: &Shared) -> Result<()> {
    let fabric = TcpStream::connect(shared.fabric)?;
    let (mut requests, mut answers) = (
        BufReader::new(daemon.try_clone()?),
        BufReader::new(fabric.try_clone()?),
    );
    let (mut daemon, mut fabric) = (daemon, fabric);
    while let Some((line, request)) = message(&mut requests)? {
        let words: Vec<&str> = line.split(' ').collect();
        let path = words.get(1).copied().unwrap_or_default();
        let path = path.split('?').next().unwrap_or_default();
        let hold = shared.count(format!("{} {path}", words[0]));
        if hold == Some(Hold::Request) {
            shared.hold();
            return Ok(());
        }
        fabric.write_all(&request)?;
        let Some((_, answer)) = message(&mut answers)? else {
            return Ok(());
        };
        if hold == Some(Hold::Answer) {
            shared.hold();
            return Ok(());
        }
        daemon.write_all(&answer)?;
    }
    Ok(())
}

/// The next message: its first line, and all of it. Nothing when the peer hung up.
fn message(from: &mut BufReader<TcpStream>) -> Result<Option<(String, Vec<u8>)>> {
    let (mut whole, mut first, mut length) = (Vec::new(), None, 0);
    loop {
        let mut line = Vec::new();
        if from.read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        whole.extend_from_slice(&line);
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().context("content-length")?;
        }
        first.get_or_insert(line);
    }
    let head = whole.len();
    whole.resize(head + length, 0);
    from.read_exact(&mut whole[head..])?;
    Ok(Some((first.context("a message has a first line")?, whole)))
}

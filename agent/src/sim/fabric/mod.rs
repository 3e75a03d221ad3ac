//! A simulated storage fabric: the REST API of Datera's fabric (v2.1 and v2.2) with real iSCSI portals behind it.
//!
//! ```text
//! HTTP, HTTPS -> server (faults, session, log) -> routes -> world (catalogue, app instances) -> store (files, synced)
//! iSCSI portals <- backend (targets, ACLs, CHAP, LUNs) <--------'          `-> data (sparse files)
//! ```
//!
//! It is there for tests, rehearsals and demos: volumes are thin sparse files, state survives a restart, and faults
//! can be switched on. Clients nobody here wrote must be content with it, so nothing of its JSON is shared with the
//! node's own client.
//!
//! Snapshots and clones share data where the file system can (a reflink: XFS, Btrfs); elsewhere the extents that are
//! no holes are copied while the portals wait, so that a snapshot is of one moment also over several volumes.
//!
//! Not simulated: v2, users and roles but for the one administrator, remote providers, and what nodes do among
//! themselves. Snapshot policies are kept and shown, but nothing acts on them.

mod answer;
mod backend;
mod body;
mod call;
mod check;
mod control;
mod data;
mod defaults;
mod describe;
mod faults;
mod log;
mod meter;
mod mode;
mod model;
mod options;
mod portal_faults;
mod range;
mod routes;
mod server;
mod session;
mod store;
mod telemetry;
mod tls;
mod view;
mod world;

#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

pub use faults::{FaultAction, FaultRule, WrongRule};
pub use log::LoggedRequest;
pub use mode::{SimOptions, run};
pub use options::{
    CAPACITY_BYTES, DEFAULT_PASSWORD, DEFAULT_SW_VERSION, DEFAULT_USER, METRICS_INTERVAL, Options,
    QOS_BURST, SESSION_LIFETIME, SETTLE, SwVersion, WrongVersion,
};

use backend::Backend;
use log::RequestLog;
use server::Shared;
use session::Sessions;
use store::Store;
use world::{Facts, World};

/// Port of iSCSI portals, which clients take without being told.
const ISCSI_PORT: u16 = 3260;
/// Shortest interval of metrics.
const METRICS_INTERVAL_MIN: Duration = Duration::from_millis(10);
/// Tries for a pair of loopback addresses that nobody else listens on.
const ADDRESS_TRIES: usize = 64;

/// A running fabric; dropping it stops it. What it knows stays in its state directory.
pub struct Fabric {
    addresses: Addresses,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Fabric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Fabric").field(&self.addresses).finish()
    }
}

/// Where a fabric is.
#[derive(Debug, Clone)]
struct Addresses {
    http: Option<SocketAddr>,
    https: Option<SocketAddr>,
    portals: [SocketAddr; 2],
    fingerprint: Option<String>,
}

impl Fabric {
    /// Starts a fabric on threads of its own; returns when it serves.
    ///
    /// # Errors
    /// When the state directory is in use or damaged, or an address cannot be had.
    pub fn start(options: Options) -> io::Result<Self> {
        let (started, starts) = std::sync::mpsc::sync_channel(1);
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = std::thread::Builder::new()
            .name("sim-fabric".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    match prepare(options).await {
                        Ok((running, addresses, shared)) => {
                            let _ = started.send(Ok((addresses, shared)));
                            // An error means that the fabric was dropped.
                            let _ = stopped.await;
                            drop(running);
                        }
                        Err(error) => {
                            let _ = started.send(Err(error));
                        }
                    }
                });
            })?;
        let result = starts
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the simulated fabric has panicked")));
        match result {
            Ok((addresses, shared)) => Ok(Self {
                addresses,
                shared,
                stop: Some(stop),
                thread: Some(thread),
            }),
            Err(error) => {
                let _ = thread.join();
                Err(error)
            }
        }
    }

    /// Address of HTTP, if it is served.
    #[must_use]
    pub fn http(&self) -> Option<SocketAddr> {
        self.addresses.http
    }

    /// Address of HTTPS, if it is served.
    #[must_use]
    pub fn https(&self) -> Option<SocketAddr> {
        self.addresses.https
    }

    /// SHA-256 of the certificate of HTTPS, in hexadecimal digits.
    #[must_use]
    pub fn fingerprint(&self) -> Option<&str> {
        self.addresses.fingerprint.as_deref()
    }

    /// The iSCSI portals.
    #[must_use]
    pub fn portals(&self) -> [SocketAddr; 2] {
        self.addresses.portals
    }

    /// Requests so far, oldest first, without those to `/sim`.
    #[must_use]
    pub fn requests(&self) -> Vec<LoggedRequest> {
        self.shared.log().since(0)
    }

    /// Replaces the fault rules.
    ///
    /// # Errors
    /// When a path is no regular expression.
    pub fn set_faults(&self, rules: Vec<FaultRule>) -> Result<(), WrongRule> {
        self.shared.faults().set(rules)
    }

    /// Ends all REST sessions, as when they had expired.
    pub fn end_sessions(&self) {
        self.shared.sessions().end_all();
    }

    /// Stops it: connections end, iSCSI sessions too.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Fabric {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        // Everything that is served ends before the portals do.
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn prepare(options: Options) -> io::Result<(JoinSet<()>, Addresses, Arc<Shared>)> {
    let store = Store::open(&options.state_dir)?;
    let (listeners, portals) = match options.portals {
        Some(portals) => bind(portals)?,
        None => bind_anywhere()?,
    };
    let facts = Arc::new(Facts {
        sw_version: options.sw_version,
        ips: portals.map(|portal| portal.ip().to_string()),
        settle: options.settle,
        qos_burst: options.qos_burst,
        capacity_bytes: options.capacity_bytes,
        started: Instant::now(),
    });
    let backend = Backend::start(listeners.into(), store.data()?)?;
    let listen = |address: Option<SocketAddr>| async move {
        match address {
            None => io::Result::Ok(None),
            Some(address) => {
                let listener = tokio::net::TcpListener::bind(address)
                    .await
                    .map_err(|error| at(address, &error))?;
                Ok(Some((listener.local_addr()?, listener)))
            }
        }
    };
    let http = listen(options.http).await?;
    let https = listen(options.https).await?;
    let tls = match &https {
        Some((address, _)) => Some(tls::load(&store.tls(), *address)?),
        None => None,
    };
    let addresses = Addresses {
        http: http.as_ref().map(|(address, _)| *address),
        https: https.as_ref().map(|(address, _)| *address),
        portals,
        fingerprint: tls.as_ref().map(|tls| tls.fingerprint.clone()),
    };
    let info = json!({
        "http": addresses.http, "https": addresses.https, "portals": portals,
        "fingerprint_sha256": addresses.fingerprint,
        "sw_version": options.sw_version.to_string(), "user": options.user,
    });
    let log = if options.request_log {
        RequestLog::with_file(&options.state_dir.join("requests.jsonl"))?
    } else {
        RequestLog::default()
    };
    let world = World::load(facts, store, backend, || defaults::catalogue(&portals)).await?;
    let shared = Arc::new(Shared::new(
        world,
        Sessions::new(options.session_lifetime),
        log,
        (options.user, options.password),
        info,
    ));
    let mut running = JoinSet::new();
    running.spawn(sample(Arc::clone(&shared), options.metrics_interval));
    if let Some((_, listener)) = http {
        running.spawn(server::listen(listener, None, Arc::clone(&shared)));
    }
    if let (Some((_, listener)), Some(tls)) = (https, tls) {
        let acceptor = TlsAcceptor::from(tls.config);
        running.spawn(server::listen(
            listener,
            Some(acceptor),
            Arc::clone(&shared),
        ));
    }
    Ok((running, addresses, shared))
}

async fn sample(shared: Arc<Shared>, interval: Duration) {
    let mut ticks = tokio::time::interval(interval.max(METRICS_INTERVAL_MIN));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // The first one is at once.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        shared.world.lock().await.sample();
    }
}

fn at(address: SocketAddr, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
}

type Bound = ([TcpListener; 2], [SocketAddr; 2]);

fn bind(portals: [SocketAddr; 2]) -> io::Result<Bound> {
    let [first, second] = portals;
    if first.ip() == second.ip() {
        let why = format!(
            "both portals have the address {}, clients could not tell them apart",
            first.ip()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    let listen = |address| TcpListener::bind(address).map_err(|error| at(address, &error));
    let listeners = [listen(first)?, listen(second)?];
    let bound = [listeners[0].local_addr()?, listeners[1].local_addr()?];
    Ok((listeners, bound))
}

/// Two addresses of the loopback network (127/8) whose iSCSI port is free.
fn bind_anywhere() -> io::Result<Bound> {
    let mut last = None;
    for _ in 0..ADDRESS_TRIES {
        let [a, b, c] = world::random::<3>();
        // 127.0 is left to others; the last number is no network or broadcast address.
        let address = |last: u8| {
            let ip = Ipv4Addr::new(127, a.max(1), b, last);
            SocketAddr::new(IpAddr::V4(ip), ISCSI_PORT)
        };
        let number = c.clamp(1, 253);
        match bind([address(number), address(number + 1)]) {
            Ok(bound) => return Ok(bound),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()))
}

//! The daemon: its parts in order, and their end in reverse.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use berth_api::events::EventLog;
use berth_api::server::{Api, Listener, UnixSocket};
use berth_api::types::{EventKind, NewEvent, unix_ms_now};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use crate::config::{Config, KernelDevices};
use crate::discovery::Discoverer;
use crate::initiator::Initiator;
use crate::nbd;
use crate::nbd::kernel::{KernelNbd, LinuxDriver};
use crate::node;
use crate::plane::DataPlane;
use crate::service::{NodeFacts, Service, Volumes};
use crate::service_manager::{Inherited, Notifier, ServiceManager, watchdog};
use crate::volume::intent::Intents;
use crate::volume::left::Leftovers;
use crate::volume::{Manager, ManagerOptions};

/// Events kept for readers that come back.
const EVENTS_KEPT: usize = 1024;
/// Most attachments of a node. Each costs a session, some buffers and a place in every answer; CSI
/// reports the number to the scheduler.
const ATTACHMENTS_MAX: usize = 1024;
/// Mode of the API socket and of the NBD socket: the daemon's group may use them.
const SOCKET_MODE: u32 = 0o660;
/// Time for the last I/O and the logouts when the daemon stops.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// How often `systemctl status` gets a new line, at most.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);

/// A daemon that is up. Dropping it does not end it; [`Daemon::stop`] does.
pub struct Daemon {
    api: Api<Service>,
    servers: Vec<JoinHandle<()>>,
    nbd: JoinHandle<()>,
    manager: Arc<Manager>,
    plane: Arc<DataPlane>,
    events: Arc<EventLog>,
    api_socket: PathBuf,
    nbd_socket: PathBuf,
}

/// Runs the daemon until SIGTERM or SIGINT. `fault_signals`: SIGUSR2 makes a data-plane thread hang.
///
/// # Errors
/// When a part cannot be started; the message names it.
pub async fn run(
    config: Config,
    service_manager: ServiceManager,
    fault_signals: bool,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let notifier = service_manager.notifier.clone();
    let daemon = Daemon::start_under(&config, service_manager).await?;
    tracing::info!(
        api = %daemon.api_socket.display(), nbd = %daemon.nbd_socket.display(),
        version = env!("CARGO_PKG_VERSION"), "berthd is ready"
    );
    notifier.ready(&daemon.status());
    let supervision = async {
        tokio::join!(
            async {
                if let Some(period) = watchdog::period() {
                    watchdog::feed(&notifier, &daemon.plane, period).await;
                }
            },
            daemon.tell_status(&notifier),
            hang_on_signal(&daemon.plane, fault_signals),
        )
    };
    tokio::select! {
        biased;
        _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
        _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
        _ = supervision => {}
    }
    notifier.stopping("finishing the I/O in flight");
    daemon.stop().await;
    Ok(())
}

impl Daemon {
    /// Starts every part, without a service manager; see [`Daemon::start_under`].
    ///
    /// # Errors
    /// When a part cannot be started; what was started before is ended.
    pub async fn start(config: &Config) -> anyhow::Result<Self> {
        Self::start_under(config, ServiceManager::none()).await
    }

    /// Starts every part on this machine. Nothing is reachable before all state is loaded. Where the service
    /// manager listens for us, its sockets are served: clients that came while there was no daemon are
    /// waiting there. The kernel's NBD module is asked for, once.
    ///
    /// # Errors
    /// When a part cannot be started; what was started before is ended.
    pub async fn start_under(
        config: &Config,
        service_manager: ServiceManager,
    ) -> anyhow::Result<Self> {
        let wanted = config.nbd.kernel != KernelDevices::Never;
        let driver = tokio::task::spawn_blocking(move || LinuxDriver::open(wanted)).await?;
        Self::start_with(config, service_manager, Arc::new(driver)).await
    }

    /// Starts every part with a kernel of choice.
    ///
    /// # Errors
    /// As [`Daemon::start_under`].
    pub async fn start_with(
        config: &Config,
        service_manager: ServiceManager,
        kernel: Arc<dyn nbd::kernel::Driver>,
    ) -> anyhow::Result<Self> {
        let mut inherited = service_manager.inherited;
        let state_dir = &config.node.state_dir;
        let intents = Intents::open(state_dir).context("node.state_dir")?;
        let left = Leftovers::open(state_dir).context("node.state_dir")?;
        std::fs::create_dir_all(&config.node.runtime_dir).with_context(|| {
            format!(
                "node.runtime_dir: cannot make {}",
                config.node.runtime_dir.display()
            )
        })?;
        let name = config.node.name.clone().unwrap_or_else(node::host_name);
        let initiator_name = match &config.node.initiator_name {
            Some(name) => name.parse()?,
            None => node::initiator_name(state_dir, &name)?,
        };
        let volumes = match &config.fabric {
            Some(fabric) => Some(Volumes::new(fabric, &name).map_err(anyhow::Error::msg)?),
            None => None,
        };
        let token = config
            .token()
            .map_err(|message| anyhow::anyhow!("api.token_file: {message}"))?;
        let api_socket = api_listener(&config.api_socket(), &mut inherited)?;
        let tcp = match config.api.listen {
            Some(address) => Some(
                tokio::net::TcpListener::bind(address)
                    .await
                    .with_context(|| format!("api.listen: cannot listen on {address}"))?,
            ),
            None => None,
        };
        let initiator = Arc::new(Initiator::new(initiator_name, config));
        let plane = Arc::new(DataPlane::start(config.data_plane_threads())?);
        let events = Arc::new(EventLog::new(EVENTS_KEPT));
        let manager = Manager::new(ManagerOptions {
            intents,
            left,
            plane: Arc::clone(&plane),
            events: Arc::clone(&events),
            spec: {
                let initiator = Arc::clone(&initiator);
                Box::new(move |name, intent, terms| initiator.volume_spec(name, intent, terms))
            },
            kernel: KernelNbd::new(
                kernel,
                service_manager.store,
                config.nbd.device.settings(config.nbd.kernel),
            ),
            node_id: initiator.node_id(),
            fabric: volumes
                .as_ref()
                .map(|volumes| volumes.access(initiator.name())),
            recovery_timeout: config.iscsi.recovery.timeout_seconds,
            attachments_max: ATTACHMENTS_MAX,
        });
        let nbd_socket = config.nbd_socket();
        let limits = nbd_limits(config);
        let nbd_server = match inherited.take_listener(&nbd_socket) {
            Some(listener) => nbd::server::Server::from_listener(listener, &nbd_socket, limits),
            None => nbd::server::Server::bind(&nbd_socket, SOCKET_MODE, limits),
        }
        .map_err(|error| with_cause("nbd.socket", &error))?;
        for path in inherited.unused_listeners() {
            tracing::warn!(
                socket = %path.display(),
                "the service manager listens here for us, but the configuration has another path"
            );
        }
        restore(&manager, &events)?;
        let nbd = tokio::spawn({
            let manager = Arc::clone(&manager);
            async move {
                let exports = Arc::clone(&manager);
                nbd_server
                    .run(exports, move |handover| manager.serve(handover))
                    .await;
            }
        });
        let facts = NodeFacts {
            name,
            initiator_name: initiator.name().to_owned(),
            nbd_socket: nbd_socket.clone(),
            data_threads: plane.thread_count(),
            attachments_max: ATTACHMENTS_MAX,
            started_unix_ms: unix_ms_now(),
        };
        let discoverer = Discoverer::new(initiator, Arc::clone(&plane));
        let recovery_timeout = config.iscsi.recovery.timeout_seconds;
        let service = Service::new(Arc::clone(&manager), Arc::clone(&events), facts, discoverer)
            .with_recovery_timeout(recovery_timeout)
            .with_fabric(volumes);
        let api = Api::new(Arc::new(service));
        let mut listeners = vec![api_socket];
        if let (Some(tcp), Some(token)) = (tcp, token) {
            listeners.push(Listener::Tcp(tcp, token));
        }
        let servers = listeners
            .into_iter()
            .map(|listener| {
                let api = api.clone();
                tokio::spawn(async move { api.serve(listener).await })
            })
            .collect();
        Ok(Self {
            api,
            servers,
            nbd,
            manager,
            plane,
            events,
            api_socket: config.api_socket(),
            nbd_socket,
        })
    }

    /// Path of the API socket.
    #[must_use]
    pub fn api_socket(&self) -> &Path {
        &self.api_socket
    }

    /// Path of the NBD socket.
    #[must_use]
    pub fn nbd_socket(&self) -> &Path {
        &self.nbd_socket
    }

    /// One line for people: how many attachments there are, and how they are.
    fn status(&self) -> String {
        use std::collections::BTreeMap;
        let mut states = BTreeMap::new();
        for known in self.manager.list() {
            *states.entry(known.state().0.to_string()).or_insert(0) += 1;
        }
        if states.is_empty() {
            return "no attachments".to_owned();
        }
        let parts = states
            .iter()
            .map(|(state, count)| format!("{count} {state}"));
        format!("attachments: {}", parts.collect::<Vec<_>>().join(", "))
    }

    /// Keeps the service manager's status line true. Ends never.
    async fn tell_status(&self, notifier: &Notifier) {
        let mut told = self.status();
        loop {
            tokio::time::sleep(STATUS_INTERVAL).await;
            let status = self.status();
            if status != told {
                notifier.status(&status);
                told = status;
            }
        }
    }

    /// Stops every part in reverse order: no new calls, no new NBD clients, I/O in flight is finished,
    /// sessions are closed. Attachments stay wanted: the next start takes them on again.
    pub async fn stop(self) {
        self.events
            .publish(NewEvent::new(EventKind::Notice, "the daemon is stopping"));
        self.nbd.abort();
        let _ = self.nbd.await;
        self.manager.stop(STOP_LIMIT).await;
        self.events.close();
        self.api.stop();
        for server in self.servers {
            let _ = server.await;
        }
        drop(self.manager);
        // Threads end when their volumes are gone; waiting for them would block this runtime.
        if let Some(plane) = Arc::into_inner(self.plane) {
            let _ = tokio::task::spawn_blocking(move || plane.stop()).await;
        }
    }
}

/// At SIGUSR2, if wanted, the data plane hangs as a bug would make it: for tests of the watchdog.
async fn hang_on_signal(plane: &DataPlane, wanted: bool) {
    if !wanted {
        return;
    }
    let mut request = match signal(SignalKind::user_defined2()) {
        Ok(request) => request,
        Err(error) => return tracing::error!(%error, "SIGUSR2 cannot be waited for"),
    };
    while request.recv().await.is_some() {
        tracing::error!("SIGUSR2: the data plane hangs from now on");
        for thread in plane.threads() {
            let forever = || async {
                loop {
                    std::thread::park();
                }
            };
            // It does not answer any more, so nothing can be learned from it.
            let _ = thread.spawn(forever).await;
        }
    }
}

/// The service manager's listening socket at this path, or a new one.
fn api_listener(path: &Path, inherited: &mut Inherited) -> anyhow::Result<Listener> {
    let Some(listener) = inherited.take_listener(path) else {
        return UnixSocket::bind(path, SOCKET_MODE)
            .map(Listener::Unix)
            .map_err(|error| with_cause("api.socket", &error));
    };
    listener
        .set_nonblocking(true)
        .and_then(|()| tokio::net::UnixListener::from_std(listener))
        .map(Listener::InheritedUnix)
        .with_context(|| format!("api.socket: cannot serve the inherited {}", path.display()))
}

fn restore(manager: &Manager, events: &EventLog) -> anyhow::Result<()> {
    let (count, unreadable) = manager.restore().context("node.state_dir")?;
    if count > 0 {
        tracing::info!(count, "attachments of the last run are taken on");
    }
    for (name, error) in unreadable {
        tracing::error!(volume = name, %error, "an attachment cannot be taken on");
        events.publish(NewEvent::new(EventKind::Notice, format!("{name}: {error}")));
    }
    Ok(())
}

fn nbd_limits(config: &Config) -> nbd::server::ServerLimits {
    nbd::server::ServerLimits {
        connections_max: config.nbd.connections_max,
        handshake_timeout: config.nbd.handshake_timeout.0,
        ..nbd::server::ServerLimits::default()
    }
}

fn with_cause(key: &str, error: &dyn std::error::Error) -> anyhow::Error {
    match error.source() {
        Some(source) => anyhow::anyhow!("{key}: {error}: {source}"),
        None => anyhow::anyhow!("{key}: {error}"),
    }
}

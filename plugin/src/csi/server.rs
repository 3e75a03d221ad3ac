//! The sockets: opened, served until the end is asked for, and taken away.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use super::controller::ControllerService;
use super::host::Host;
use super::identity::IdentityService;
use super::node::NodeService;
use super::options::Options;
use super::proto::registration::registration_server::RegistrationServer;
use super::proto::v1::controller_server::ControllerServer;
use super::proto::v1::identity_server::IdentityServer;
use super::proto::v1::node_server::NodeServer;
use super::registration::RegistrationService;
use super::{Driver, ServiceMode};

/// Mode of the sockets: callers are kubelet and sidecars, which are root.
const SOCKET_MODE: u32 = 0o600;
/// Longest request, in bytes: names and maps of some KiB.
const REQUEST_LEN_MAX: usize = 1 << 20;
/// Calls of one connection that are worked on at a time; more wait.
const CALLS_PER_CONNECTION: usize = 128;
/// How long calls have to come to their end when the driver stops. What they have begun is found by the next ones.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// Threads: calls mostly wait.
const WORKERS: usize = 2;
/// Time for what is left at the end; threads that wait for dead devices are left behind.
const END_LIMIT: Duration = Duration::from_secs(2);
/// How long a socket that is in the way may still be connected to before that counts as served: a child that a killed driver has
/// just forked holds its sockets for a moment.
const STALE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often that is looked at.
const STALE_POLL: Duration = Duration::from_millis(20);

/// Logs as the options say, and serves the driver until the process is told to end.
///
/// # Errors
/// As [`serve`], and when the options say nonsense of the log.
pub fn run(options: &Options, driver: Driver, host: Arc<dyn Host>) -> anyhow::Result<()> {
    use tracing_subscriber::{EnvFilter, fmt};
    let filter = EnvFilter::try_new(&options.log)
        .with_context(|| format!("--log: {:?} is not a filter", options.log))?;
    let log = fmt().with_env_filter(filter).with_writer(io::stderr);
    if options.log_json {
        log.json().init();
    } else {
        log.with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
            .init();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()?;
    let result = runtime.block_on(async {
        let (stop, stopping) = watch::channel(false);
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let signalled = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("told to end");
            stop.send_replace(true);
        };
        tokio::spawn(signalled);
        serve(Arc::new(driver), host, stopping).await
    });
    runtime.shutdown_timeout(END_LIMIT);
    result
}

/// Serves the driver until `stop` is true.
///
/// # Errors
/// When a socket cannot be opened, or kubelet does not take the driver: whoever starts it again has it tried again.
pub async fn serve(
    driver: Arc<Driver>,
    host: Arc<dyn Host>,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let settings = &driver.settings;
    let (refuse, refused) = watch::channel(false);
    let node = match settings.mode {
        ServiceMode::Controller => None,
        ServiceMode::Node | ServiceMode::All => {
            let service = NodeService::new(Arc::clone(&driver), host);
            Some(service.with_context(|| settings.run_dir.display().to_string())?)
        }
    };
    let controller = match settings.mode {
        ServiceMode::Node => None,
        ServiceMode::Controller | ServiceMode::All => Some(ControllerService(Arc::clone(&driver))),
    };
    let socket = Socket::open(&settings.endpoint).await?;
    let identity = IdentityServer::new(IdentityService(Arc::clone(&driver)));
    let router = server()
        .add_service(identity.max_decoding_message_size(REQUEST_LEN_MAX))
        .add_optional_service(controller.map(|service| {
            ControllerServer::new(service).max_decoding_message_size(REQUEST_LEN_MAX)
        }))
        .add_optional_service(
            node.map(|service| NodeServer::new(service).max_decoding_message_size(REQUEST_LEN_MAX)),
        );
    tracing::info!(
        driver = settings.driver_name,
        mode = ?settings.mode,
        socket = %settings.endpoint.display(),
        "serving"
    );
    let (listener, driver_socket) = socket.into_parts();
    let main = router.serve_with_incoming_shutdown(listener, stopped(stop.clone()));
    let register = async {
        let Some(registration) = &settings.registration else {
            return Ok(());
        };
        // Only now: kubelet asks the driver at once.
        let socket = Socket::open(&registration.socket).await?;
        let endpoint = registration.endpoint.to_string_lossy().into_owned();
        let service = RegistrationService::new(Arc::clone(&driver), endpoint, refuse.clone());
        tracing::info!(socket = %registration.socket.display(), "known to kubelet");
        let (listener, _guard) = socket.into_parts();
        server()
            .add_service(
                RegistrationServer::new(service).max_decoding_message_size(REQUEST_LEN_MAX),
            )
            .serve_with_incoming_shutdown(listener, stopped(stop.clone()))
            .await
            .context("registration socket")
    };
    let ended = async {
        stopped(stop.clone()).await;
        tokio::time::sleep(STOP_GRACE).await;
    };
    let result = tokio::select! {
        (served, registered) = async { tokio::join!(main, register) } => {
            served.context("CSI socket").and(registered)
        }
        () = ended => {
            tracing::warn!("calls are still under way and are left to their repetition");
            Ok(())
        }
        () = stopped(refused) => bail!("kubelet does not take the driver, see above"),
    };
    drop(driver_socket);
    result
}

fn server() -> Server {
    Server::builder().concurrency_limit_per_connection(CALLS_PER_CONNECTION)
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    // Nobody can ask any more: it goes on for ever.
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Whether somebody serves the socket, and goes on doing so.
async fn is_served(path: &Path) -> bool {
    let refused = async {
        while UnixStream::connect(path).await.is_ok() {
            tokio::time::sleep(STALE_POLL).await;
        }
    };
    tokio::time::timeout(STALE_TIMEOUT, refused).await.is_err()
}

/// A socket that is served.
#[derive(Debug)]
struct Socket {
    listener: UnixListener,
    guard: Guard,
}

/// Takes the socket away at the end, unless it is another one's by then.
#[derive(Debug)]
struct Guard {
    path: PathBuf,
    inode: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|now| now.ino() == self.inode);
        if ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Socket {
    /// Opens it; one that nobody serves any more is taken away before.
    async fn open(path: &Path) -> anyhow::Result<Self> {
        Self::try_open(path)
            .await
            .with_context(|| format!("cannot open the socket {}", path.display()))
    }

    async fn try_open(path: &Path) -> anyhow::Result<Self> {
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
            Ok(found) if !found.file_type().is_socket() => {
                bail!("something else is there, which is no socket")
            }
            Ok(_) => {
                if is_served(path).await {
                    bail!("another process serves it");
                }
                std::fs::remove_file(path)?;
            }
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))?;
        let inode = std::fs::symlink_metadata(path)?.ino();
        let guard = Guard {
            path: path.to_owned(),
            inode,
        };
        Ok(Self { listener, guard })
    }

    fn into_parts(self) -> (UnixListenerStream, Guard) {
        (UnixListenerStream::new(self.listener), self.guard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stale_sockets_go_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("csi.sock");
        let first = Socket::open(&path).await.unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, SOCKET_MODE);
        let second = Socket::open(&path).await.unwrap_err();
        assert!(
            format!("{second:#}").contains("another process"),
            "{second:#}"
        );
        // Its owner died without taking it away.
        let (listener, guard) = first.into_parts();
        drop(listener);
        std::mem::forget(guard);
        assert!(path.exists());
        drop(Socket::open(&path).await.unwrap());
        assert!(!path.exists());
        std::fs::write(&path, "data").unwrap();
        assert!(Socket::open(&path).await.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
    }

    /// What is left of a killed driver for a moment: a child between fork and exec.
    #[tokio::test]
    async fn a_socket_that_ends_in_a_moment_is_stale() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("csi.sock");
        let (listener, guard) = Socket::open(&path).await.unwrap().into_parts();
        std::mem::forget(guard);
        tokio::spawn(async move {
            tokio::time::sleep(5 * STALE_POLL).await;
            drop(listener);
        });
        drop(Socket::open(&path).await.unwrap());
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_successor_keeps_its_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("csi.sock");
        let first = Socket::open(&path).await.unwrap();
        std::fs::remove_file(&path).unwrap();
        let second = Socket::open(&path).await.unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }
}

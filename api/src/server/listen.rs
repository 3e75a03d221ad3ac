//! Sockets: a Unix socket that replaces a stale one safely, the accept loop with its limits, drain.

use std::fs::{File, Permissions};
use std::future::Future;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tower_service::Service as _;

use super::Api;
use crate::secret::Secret;
use crate::service::{NodeService, Peer};

/// Most connections of one listener; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 256;
/// How long a client may take to send the header of a request, also of the next one.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest header of a request, in bytes (also the size of the read buffer).
const HEADER_LEN_MAX: usize = 32 * 1024;
/// How long answers may take to leave after [`Api::stop`].
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after an accept that failed for want of resources: trying at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections that the kernel keeps before they are accepted.
const BACKLOG: i32 = 1024;

/// Something to accept connections from.
pub enum Listener {
    /// A Unix socket: who may connect is a matter of its mode.
    Unix(UnixSocket),
    /// A Unix socket that somebody else made and keeps (socket activation).
    InheritedUnix(UnixListener),
    /// A TCP socket: every call needs the token.
    Tcp(TcpListener, Secret),
}

/// Why a Unix socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process holds the lock beside the socket, or answers on it.
    #[error("another daemon serves {}", .0.display())]
    Busy(PathBuf),
    /// There is something else under this name.
    #[error("{} exists and is not a socket; remove it or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A listening Unix socket with its file, which is removed on drop.
///
/// A lock file beside it (`PATH.lock`) tells a socket that a crash left from one that is served: who
/// has the lock may replace the socket. The new socket gets its mode before it listens and its name
/// by a rename, so there is no moment with wider access or without a socket.
pub struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket, so that the drop removes no other's.
    file: (u64, u64),
    _lock: File,
}

impl UnixSocket {
    /// Listens on `path` with this mode, as 0o660. To be called in a tokio runtime.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn bind(path: &Path, mode: u32) -> Result<Self, SocketError> {
        let io = |what, path: &Path| {
            let path = path.to_owned();
            move |source| SocketError::Io { what, path, source }
        };
        let lock_path = with_suffix(path, ".lock");
        let lock = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(io("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(SocketError::Busy(path.to_owned()));
            }
            Err(std::fs::TryLockError::Error(source)) => {
                return Err(io("lock", &lock_path)(source));
            }
        }
        check_replaceable(path)?;
        let new_path = with_suffix(path, ".new");
        match std::fs::remove_file(&new_path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io("remove", &new_path)(error));
            }
            _ => {}
        }
        let listener = (|| {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            socket.bind(&SockAddr::unix(&new_path)?)?;
            std::fs::set_permissions(&new_path, Permissions::from_mode(mode))?;
            socket.listen(BACKLOG)?;
            UnixListener::from_std(socket.into())
        })()
        .map_err(io("listen on", path))?;
        let metadata = std::fs::symlink_metadata(&new_path).map_err(io("look at", &new_path))?;
        std::fs::rename(&new_path, path).map_err(io("replace", path))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            file: (metadata.dev(), metadata.ino()),
            _lock: lock,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.file)
        {
            // Nothing depends on it: the next start replaces what is left.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Whether nothing is at `path`, or a socket that nobody serves.
fn check_replaceable(path: &Path) -> Result<(), SocketError> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(SocketError::Io {
            what: "look at",
            path: path.to_owned(),
            source,
        }),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            Err(SocketError::NotASocket(path.to_owned()))
        }
        // Whoever answers there holds no lock of ours, so it is another program: not ours to take.
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            Err(SocketError::Busy(path.to_owned()))
        }
        Ok(_) => Ok(()),
    }
}

impl<S: NodeService> Api<S> {
    /// Accepts and answers until [`Api::stop`], then lets answers leave for a few seconds.
    pub async fn serve(&self, listener: Listener) {
        match listener {
            Listener::Unix(socket) => {
                let accept = async || accept_unix(&socket.listener).await;
                self.accept_loop(self.router(None), accept).await;
            }
            Listener::InheritedUnix(listener) => {
                let accept = async || accept_unix(&listener).await;
                self.accept_loop(self.router(None), accept).await;
            }
            Listener::Tcp(listener, token) => {
                let accept = async || {
                    let (stream, address) = listener.accept().await?;
                    stream.set_nodelay(true)?;
                    Ok((stream, Peer::Tcp(address)))
                };
                self.accept_loop(self.router(Some(token)), accept).await;
            }
        }
    }

    async fn accept_loop<I, F>(&self, router: Router, mut accept: impl FnMut() -> F)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Future<Output = io::Result<(I, Peer)>>,
    {
        let graceful = GracefulShutdown::new();
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut stop = self.shared.stop.subscribe();
        loop {
            let next = async {
                let slot = Arc::clone(&slots)
                    .acquire_owned()
                    .await
                    .expect("the semaphore is never closed");
                (slot, accept().await)
            };
            let (slot, accepted) = tokio::select! {
                biased;
                _ = stop.wait_for(|&stop| stop) => break,
                next = next => next,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection of the API");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let router = router.clone();
            let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
                let mut request = request.map(Body::new);
                request.extensions_mut().insert(peer.clone());
                router.clone().call(request)
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(HEADER_LEN_MAX)
                .serve_connection(TokioIo::new(stream), service);
            let connection = graceful.watch(connection);
            tokio::spawn(async move {
                let _slot = slot;
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a connection of the API ended");
                }
            });
        }
        if tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown())
            .await
            .is_err()
        {
            tracing::warn!("some answers of the API did not leave in time");
        }
    }
}

async fn accept_unix(listener: &UnixListener) -> io::Result<(UnixStream, Peer)> {
    let (stream, _) = listener.accept().await?;
    let credentials = stream.peer_cred()?;
    let peer = Peer::Unix {
        uid: credentials.uid(),
        gid: credentials.gid(),
        pid: credentials.pid(),
    };
    Ok((stream, peer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_has_its_mode_and_goes_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let socket = UnixSocket::bind(&path, 0o660).unwrap();
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        assert!(metadata.file_type().is_socket());
        assert_eq!(metadata.permissions().mode() & 0o777, 0o660);
        assert_eq!(socket.path(), path);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves the file behind, as a crash does");
        let socket = UnixSocket::bind(&path, 0o600).unwrap();
        let client = UnixStream::connect(&path);
        let (client, server) = tokio::join!(client, socket.listener.accept());
        client.unwrap();
        server.unwrap();
    }

    #[tokio::test]
    async fn a_socket_in_use_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let first = UnixSocket::bind(&path, 0o660).unwrap();
        assert!(matches!(
            UnixSocket::bind(&path, 0o660),
            Err(SocketError::Busy(_))
        ));
        drop(first);
        let _foreign = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(matches!(
            UnixSocket::bind(&path, 0o660),
            Err(SocketError::Busy(_))
        ));
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_file_or_link_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(
            UnixSocket::bind(&path, 0o660),
            Err(SocketError::NotASocket(_))
        ));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        let link = dir.path().join("link.sock");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(
            UnixSocket::bind(&link, 0o660),
            Err(SocketError::NotASocket(_))
        ));
        let missing = dir.path().join("no/such/dir/api.sock");
        let error = UnixSocket::bind(&missing, 0o660).err().unwrap();
        assert!(error.to_string().contains("no/such/dir"), "{error}");
    }
}

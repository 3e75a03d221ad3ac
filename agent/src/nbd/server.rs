//! The listening Unix socket: accepts, negotiates within a deadline, hands over.
//!
//! Runs on the control runtime; a client that is slow to negotiate can delay nobody's I/O. Access is
//! guarded by the mode of the socket.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_iobuf::{ReceiveBuffer, SendQueue};
use rustix::fs::FlockOperation;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::connection::{Handover, Stream};
use super::export::Exports;
use super::handshake::{self, Handshake, Negotiated, Progress};

/// Connections that the kernel keeps for us while we accept others.
const BACKLOG: i32 = 128;

/// Pause after a failed accept (no file descriptor left): the connection stays in the backlog, so
/// trying again at once would spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Bounds of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerLimits {
    /// Connections that negotiate at one time. These clients have shown nothing yet, so they are the
    /// ones to be kept few.
    pub handshakes_max: usize,
    /// Connections in all. Above it new ones are closed at once, which the client sees, rather than
    /// left waiting, which it does not.
    pub connections_max: usize,
    /// Time for a whole negotiation.
    pub handshake_timeout: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            handshakes_max: 100,
            connections_max: 1000,
            handshake_timeout: Duration::from_secs(10),
        }
    }
}

/// Why the socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process serves this socket.
    #[error("{} is served by another process", .0.display())]
    InUse(PathBuf),
    /// There is something else at the path; it is left alone.
    #[error("{} exists and is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// The path is too long for a socket address (107 bytes).
    #[error("{} is too long for a Unix socket; at most 107 bytes are possible", .0.display())]
    PathTooLong(PathBuf),
    /// The operating system refused.
    #[error("cannot {step} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        step: &'static str,
        /// On which file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// Why one negotiation led to nothing; only for the log.
#[derive(Debug, thiserror::Error)]
enum NegotiationError {
    #[error(transparent)]
    Protocol(#[from] handshake::Error),
    #[error("the client closed the connection during the negotiation")]
    Closed,
    #[error("the negotiation was not over in time")]
    TimedOut,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A bound socket. Dropping it removes the socket file, if it still is ours.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of our socket file, to tell it from a successor's.
    identity: Option<(u64, u64)>,
    limits: ServerLimits,
    /// Held as long as we live: says that the socket is served, without a race.
    _lock: Option<File>,
}

impl Server {
    /// Binds `path` with the permissions `mode` (such as `0o660`), replacing a socket that nobody
    /// serves any more. Needs a runtime.
    ///
    /// A lock file beside the socket (`PATH.lock`, left in place) decides between two servers that start
    /// at the same time; a socket that accepts connections is respected also without a lock.
    ///
    /// # Errors
    /// If somebody serves the path, if it is not a socket, or if the system refuses.
    pub fn bind(path: &Path, mode: u32, limits: ServerLimits) -> Result<Self, BindError> {
        let address =
            SocketAddrUnix::new(path).map_err(|_| BindError::PathTooLong(path.to_owned()))?;
        let lock = lock(path)?;
        remove_stale(path)?;
        let failed = |step| {
            move |error: rustix::io::Errno| BindError::Io {
                step,
                path: path.to_owned(),
                source: error.into(),
            }
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(failed("make a socket for"))?;
        rustix::net::bind(&socket, &address).map_err(failed("bind"))?;
        // Nobody can connect before `listen`, so there is no moment with the wrong permissions.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(
            |source| BindError::Io {
                step: "set the permissions of",
                path: path.to_owned(),
                source,
            },
        )?;
        rustix::net::listen(&socket, BACKLOG).map_err(failed("listen on"))?;
        let mut server = Self::from_listener(StdUnixListener::from(socket), path, limits)?;
        server.identity = identity(path);
        server._lock = Some(lock);
        Ok(server)
    }

    /// Serves a socket that was opened by somebody else (systemd, a predecessor); its file is theirs.
    /// Needs a runtime.
    ///
    /// # Errors
    /// If the runtime does not take it.
    pub fn from_listener(
        listener: StdUnixListener,
        path: &Path,
        limits: ServerLimits,
    ) -> Result<Self, BindError> {
        let listener = listener
            .set_nonblocking(true)
            .and_then(|()| UnixListener::from_std(listener))
            .map_err(|source| BindError::Io {
                step: "register",
                path: path.to_owned(),
                source,
            })?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            identity: None,
            limits,
            _lock: None,
        })
    }

    /// Where the socket is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Accepts until the future is dropped. Each negotiation is a task of its own; its outcome is
    /// given to `serve`, which must not block: it sends the handover to the thread of the volume, or
    /// drops it to close the connection.
    pub async fn run<E, F>(&self, exports: Arc<E>, serve: F)
    where
        E: Exports + Send + Sync + 'static,
        F: Fn(Handover) + Clone + Send + Sync + 'static,
    {
        let handshakes = Arc::new(Semaphore::new(self.limits.handshakes_max));
        let connections = Arc::new(Semaphore::new(self.limits.connections_max));
        let mut full = false;
        // Ends negotiations with the server.
        let mut negotiations = tokio::task::JoinSet::new();
        loop {
            // Negotiations are bounded in time, so waiting for a place is, too.
            let place = Arc::clone(&handshakes).acquire_owned().await;
            let place = place.expect("the semaphore is never closed");
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an NBD connection");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            while negotiations.try_join_next().is_some() {}
            let Ok(permit) = Arc::clone(&connections).try_acquire_owned() else {
                if !full {
                    let max = self.limits.connections_max;
                    tracing::warn!(max, "too many NBD connections, closing new ones");
                }
                full = true;
                continue;
            };
            full = false;
            let (exports, serve) = (Arc::clone(&exports), serve.clone());
            let timeout = self.limits.handshake_timeout;
            negotiations.spawn(async move {
                let negotiation = negotiate(stream, &*exports);
                let outcome = match tokio::time::timeout(timeout, negotiation).await {
                    Ok(outcome) => outcome,
                    Err(_) => Err(NegotiationError::TimedOut),
                };
                drop(place);
                match outcome {
                    Ok(Some(agreed)) => hand_over(agreed, permit, &serve),
                    Ok(None) => {}
                    Err(error) => tracing::debug!(%error, "NBD negotiation failed"),
                }
            });
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.identity.is_some() && self.identity == identity(&self.path) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

type Agreed = (UnixStream, ReceiveBuffer, Negotiated);

fn hand_over(
    (stream, input, negotiated): Agreed,
    permit: OwnedSemaphorePermit,
    serve: &impl Fn(Handover),
) {
    tracing::debug!(
        export = negotiated.export,
        mode = ?negotiated.mode,
        flags = ?negotiated.flags,
        base_allocation = negotiated.base_allocation,
        "NBD connection negotiated"
    );
    match stream.into_std() {
        Ok(stream) => serve(Handover {
            stream: Stream::Unix(stream),
            input,
            negotiated,
            permit: Some(permit),
            resends: false,
        }),
        Err(error) => tracing::warn!(%error, "cannot hand over an NBD connection"),
    }
}

/// The negotiation of one connection. `None`: the client ended it in good order.
async fn negotiate(
    mut stream: UnixStream,
    exports: &impl Exports,
) -> Result<Option<Agreed>, NegotiationError> {
    let mut input = ReceiveBuffer::new();
    let mut out = SendQueue::new();
    let mut handshake = Handshake::new(&mut out);
    loop {
        let progress = handshake.handle_input(&mut input, &mut out, exports)?;
        // Options that are still unread wait for room, which there is once this was sent.
        let more = out.len() >= handshake::REPLY_BACKLOG_MAX_BYTES;
        let bytes = out.to_vec();
        out.clear();
        let sent = stream.write_all(&bytes).await;
        match progress {
            // A client may leave without reading the answer to ABORT.
            Progress::Aborted => return Ok(None),
            Progress::Negotiated(negotiated) => {
                sent?;
                return Ok(Some((stream, input, *negotiated)));
            }
            Progress::Continue => sent?,
        }
        if !more && stream.read_buf(input.room()).await? == 0 {
            return Err(NegotiationError::Closed);
        }
    }
}

fn lock(path: &Path) -> Result<File, BindError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock_path = PathBuf::from(name);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock_path)
        .map_err(|source| BindError::Io {
            step: "open",
            path: lock_path.clone(),
            source,
        })?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(BindError::InUse(path.to_owned())),
        Err(error) => Err(BindError::Io {
            step: "lock",
            path: lock_path,
            source: error.into(),
        }),
    }
}

/// Removes a socket file that nobody listens on; nothing else.
fn remove_stale(path: &Path) -> Result<(), BindError> {
    let io = |step, source| BindError::Io {
        step,
        path: path.to_owned(),
        source,
    };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io("look at", error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(BindError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match StdUnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|error| io("remove", error))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // A full backlog, or no permission, still means that somebody is there.
        _ => Err(BindError::InUse(path.to_owned())),
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = std::fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;

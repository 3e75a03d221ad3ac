//! Messages to the service manager: one datagram each, over the socket that it named.

use std::fmt::Write as _;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use sd_notify::NotifyState;

/// How long a message may wait for a manager that does not read. The manager is quick unless the
/// machine is in trouble, and then nobody here should be stuck behind it.
const SEND_LIMIT: Duration = Duration::from_secs(2);
/// Most descriptors of one message; systemd takes up to 768, and we send them one by one.
const FDS_MAX: usize = 1;

/// Tells the service manager how the daemon is. Without a manager nothing is sent.
///
/// A socket is opened for each message: they are few, and a manager that was replaced meanwhile
/// (`systemctl daemon-reexec`) is found again.
#[derive(Debug, Clone)]
pub struct Notifier {
    socket: Option<Arc<PathBuf>>,
}

impl Notifier {
    /// Speaks to the manager that started this process (`NOTIFY_SOCKET`), or to nobody.
    ///
    /// Sockets in the abstract namespace (`@...`) are for containers of older managers; they are not
    /// supported, and said to be so in the log.
    #[must_use]
    pub fn from_environment() -> Self {
        let path = std::env::var_os("NOTIFY_SOCKET").map(PathBuf::from);
        if let Some(path) = path.as_ref().filter(|path| !path.is_absolute()) {
            tracing::warn!(
                socket = %path.display(),
                "NOTIFY_SOCKET is not an absolute path; the service manager is told nothing"
            );
            return Self::none();
        }
        Self {
            socket: path.map(Arc::new),
        }
    }

    /// Speaks to whoever reads from this socket.
    #[must_use]
    pub fn to(socket: PathBuf) -> Self {
        Self {
            socket: Some(Arc::new(socket)),
        }
    }

    /// Speaks to nobody.
    #[must_use]
    pub fn none() -> Self {
        Self { socket: None }
    }

    /// Whether there is a manager.
    #[must_use]
    pub fn has_manager(&self) -> bool {
        self.socket.is_some()
    }

    /// Everything is up.
    pub fn ready(&self, status: &str) {
        self.tell(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// The end has begun.
    pub fn stopping(&self, status: &str) {
        self.tell(&[NotifyState::Stopping, NotifyState::Status(status)]);
    }

    /// One line for `systemctl status`.
    pub fn status(&self, status: &str) {
        self.tell(&[NotifyState::Status(status)]);
    }

    /// The daemon works: the watchdog starts to count anew.
    pub fn feed_watchdog(&self) {
        self.tell(&[NotifyState::Watchdog]);
    }

    /// For what is not worth more than a line in the log when it cannot be told.
    fn tell(&self, states: &[NotifyState<'_>]) {
        if let Err(error) = self.send(states, None) {
            tracing::warn!(%error, message = ?states, "the service manager cannot be told");
        }
    }

    /// Sends one message, with a descriptor or without. It is over when the manager's socket has it; the
    /// manager acts on it later, but on all messages in their order.
    ///
    /// # Errors
    /// When the manager's socket is gone, or takes nothing for two seconds.
    pub(super) fn send(
        &self,
        states: &[NotifyState<'_>],
        fd: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let Some(path) = &self.socket else {
            return Ok(());
        };
        let mut message = String::new();
        for state in states {
            writeln!(message, "{state}").expect("writing to a string succeeds");
        }
        let socket = UnixDatagram::unbound()?;
        socket.connect(&**path)?;
        socket.set_write_timeout(Some(SEND_LIMIT))?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<_> = fd.into_iter().collect();
        if !fds.is_empty() {
            let pushed = ancillary.push(SendAncillaryMessage::ScmRights(&fds));
            assert!(pushed, "the buffer has room for one descriptor");
        }
        let text = io::IoSlice::new(message.as_bytes());
        // A datagram is sent whole or not at all.
        rustix::net::sendmsg(&socket, &[text], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

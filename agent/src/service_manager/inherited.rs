//! Descriptors that the service manager handed over at start.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::FileType;
use rustix::net::sockopt;

/// What was handed over: listening sockets of socket units, and what [`super::FdStore`] had stored.
///
/// Descriptors that nobody takes are closed with it.
#[derive(Debug, Default)]
pub struct Inherited {
    /// Listening Unix sockets, with the path they are bound to.
    listeners: Vec<(PathBuf, UnixListener)>,
    /// Everything else, with its name.
    stored: Vec<(String, OwnedFd)>,
}

/// Why what was handed over cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InheritedError {
    /// LISTEN_PID, LISTEN_FDS or LISTEN_FDNAMES make no sense.
    #[error("the service manager's LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES cannot be understood")]
    Malformed,
    /// A descriptor that was announced cannot be used, most likely because it is not open.
    #[error("descriptor {index} of LISTEN_FDS ({name:?}) cannot be used: {source}")]
    Descriptor {
        /// Which one, from 0.
        index: usize,
        /// Its name in LISTEN_FDNAMES.
        name: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// They can be taken only once.
    #[error("what the service manager handed over was taken before")]
    TakenBefore,
}

impl Inherited {
    /// Takes what was handed over to this process. To be called once, before anything else opens a
    /// descriptor.
    ///
    /// # Errors
    /// When the environment makes no sense, or at the second call.
    pub fn from_environment() -> Result<Self, InheritedError> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        if TAKEN.swap(true, Ordering::Relaxed) {
            return Err(InheritedError::TakenBefore);
        }
        let fds = sd_listen_fds::get().map_err(|_| InheritedError::Malformed)?;
        Self::new(
            fds.into_iter()
                .map(|(name, fd)| (name.unwrap_or_default(), fd.into_std())),
        )
    }

    /// Sorts descriptors into listening sockets and others.
    ///
    /// # Errors
    /// When one of them is not open.
    pub fn new(fds: impl IntoIterator<Item = (String, OwnedFd)>) -> Result<Self, InheritedError> {
        let mut inherited = Self::default();
        for (index, (name, fd)) in fds.into_iter().enumerate() {
            match prepare(&fd) {
                Ok(Some(path)) => inherited.listeners.push((path, fd.into())),
                Ok(None) => inherited.stored.push((name, fd)),
                Err(source) => {
                    let source = source.into();
                    return Err(InheritedError::Descriptor {
                        index,
                        name,
                        source,
                    });
                }
            }
        }
        Ok(inherited)
    }

    /// The listening socket that is bound to `path`, if the manager made it (`berthd.socket`).
    #[must_use]
    pub fn take_listener(&mut self, path: &Path) -> Option<UnixListener> {
        let index = self.listeners.iter().position(|(bound, _)| bound == path)?;
        Some(self.listeners.swap_remove(index).1)
    }

    /// Where the listening sockets are that nobody took.
    #[must_use]
    pub fn unused_listeners(&self) -> Vec<&Path> {
        self.listeners.iter().map(|(path, _)| &**path).collect()
    }

    /// Everything that is no listening socket, with its name.
    pub(super) fn take_stored(&mut self) -> Vec<(String, OwnedFd)> {
        std::mem::take(&mut self.stored)
    }
}

/// Keeps the descriptor from child processes; gives the path if it is a listening Unix socket.
fn prepare(fd: &OwnedFd) -> rustix::io::Result<Option<PathBuf>> {
    rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC)?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode);
    if kind != FileType::Socket || !sockopt::socket_acceptconn(fd)? {
        return Ok(None);
    }
    let address = rustix::net::getsockname(fd)?;
    let path = rustix::net::SocketAddrUnix::try_from(address)
        .ok()
        .and_then(|unix| unix.path_bytes().map(<[u8]>::to_vec))
        .map(|bytes| PathBuf::from(OsString::from_vec(bytes)));
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn listening_sockets_are_found_by_their_path() {
        let dir = tempfile::tempdir().unwrap();
        let (api, nbd) = (dir.path().join("api.sock"), dir.path().join("nbd.sock"));
        let (one, _other) = UnixStream::pair().unwrap();
        let fds = [
            (
                "berthd.socket",
                OwnedFd::from(UnixListener::bind(&nbd).unwrap()),
            ),
            ("berthd.socket", UnixListener::bind(&api).unwrap().into()),
            ("nbd.disk0.0", one.into()),
        ];
        let mut inherited = Inherited::new(fds.map(|(name, fd)| (name.to_owned(), fd))).unwrap();
        let listener = inherited.take_listener(&api).unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(address.as_pathname(), Some(&*api));
        assert!(inherited.take_listener(&api).is_none(), "taken once");
        assert_eq!(inherited.unused_listeners(), [&*nbd]);
        let stored = inherited.take_stored();
        let names: Vec<_> = stored.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["nbd.disk0.0"], "a connection is not a listener");
        let flags = rustix::io::fcntl_getfd(&stored[0].1).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[test]
    fn a_second_call_gets_nothing() {
        // The first call gets what the tests were started with, if anything.
        let _ = Inherited::from_environment();
        assert!(matches!(
            Inherited::from_environment(),
            Err(InheritedError::TakenBefore)
        ));
    }
}

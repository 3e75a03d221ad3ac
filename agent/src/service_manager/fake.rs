//! A service manager for tests: reads messages and keeps descriptors as systemd does.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use tempfile::TempDir;

/// Longest wait for a message that must come.
const RECEIVE_LIMIT: Duration = Duration::from_secs(30);

pub(crate) struct FakeManager {
    socket: UnixDatagram,
    dir: TempDir,
    stored: Vec<(String, OwnedFd)>,
}

impl FakeManager {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let socket = UnixDatagram::bind(dir.path().join("notify")).expect("binds");
        Self {
            socket,
            dir,
            stored: Vec::new(),
        }
    }

    /// What NOTIFY_SOCKET is for the daemon.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("notify")
    }

    /// The next message, after acting on it.
    pub(crate) fn receive(&mut self) -> String {
        self.receive_within(RECEIVE_LIMIT).expect("a message comes")
    }

    /// Reads what has come so far.
    pub(crate) fn drain(&mut self) {
        while self.receive_within(Duration::from_millis(1)).is_some() {}
    }

    /// The next message, if it comes within `limit`, after acting on it.
    pub(crate) fn receive_within(&mut self, limit: Duration) -> Option<String> {
        self.socket
            .set_read_timeout(Some(limit))
            .expect("takes a timeout");
        let mut text = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::net::recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(&mut text)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        );
        let len = match received {
            Ok(received) => received.bytes,
            Err(rustix::io::Errno::AGAIN) => return None,
            Err(error) => panic!("cannot receive: {error}"),
        };
        let message = String::from_utf8(text[..len].to_vec()).expect("UTF-8");
        let fds: Vec<_> = ancillary
            .drain()
            .flat_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
                _ => Vec::new(),
            })
            .collect();
        let name = message
            .lines()
            .find_map(|line| line.strip_prefix("FDNAME="))
            .unwrap_or("stored")
            .to_owned();
        if message.lines().any(|line| line == "FDSTORE=1") {
            self.stored
                .extend(fds.into_iter().map(|fd| (name.clone(), fd)));
        } else if message.lines().any(|line| line == "FDSTOREREMOVE=1") {
            self.stored.retain(|(stored, _)| *stored != name);
        }
        Some(message)
    }

    /// Duplicates of what is stored, as the next life gets them.
    pub(crate) fn stored(&self) -> Vec<(String, OwnedFd)> {
        self.stored
            .iter()
            .map(|(name, fd)| (name.clone(), fd.try_clone().expect("duplicates")))
            .collect()
    }
}

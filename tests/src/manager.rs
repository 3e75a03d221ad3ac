//! The part of a service manager that outlives a daemon: it keeps descriptors, and hands them to the next life.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use tempfile::TempDir;

/// Ends the wait for what was sent before it.
const SETTLE: &[u8] = b"SETTLE";
/// Ends the thread.
const END: &[u8] = b"END";
/// For the thread to read what is there.
const DEADLINE: Duration = Duration::from_secs(60);
/// Descriptors on their way to the daemon have numbers from here on, apart from those it is to find them under.
const ON_THE_WAY: i32 = 200;
/// Gives the descriptors the numbers from 3 on (`sd_listen_fds(3)`), to which they come as 200 and so on. Words: how many, their
/// names, the program and its arguments.
const HAND_OVER: &str = r#"
count=$1; export LISTEN_PID=$$ LISTEN_FDS=$1 LISTEN_FDNAMES=$2; shift 2
for ((n = 0; n < count; n++)); do
    from=$((200 + n)) to=$((3 + n))
    eval "exec $to<&$from $from<&-"
done
exec "$@"
"#;

/// A store of descriptors (`systemd.service(5)`, `FileDescriptorStoreMax=`) behind a notification socket.
#[derive(Debug)]
pub struct Manager {
    stored: Arc<Mutex<Vec<(String, OwnedFd)>>>,
    settled: Mutex<Receiver<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    // Last: the socket goes after those who use it.
    dir: TempDir,
}

impl Manager {
    /// An empty one.
    ///
    /// # Errors
    /// When its socket cannot be made.
    pub fn new() -> Result<Self> {
        let dir = TempDir::with_prefix("manager-")?;
        let socket = UnixDatagram::bind(dir.path().join("notify"))?;
        let stored = Arc::new(Mutex::new(Vec::new()));
        let theirs = Arc::clone(&stored);
        let (sender, settled) = sync_channel(1);
        let thread = std::thread::spawn(move || serve(&socket, &theirs, &sender));
        Ok(Self {
            stored,
            settled: Mutex::new(settled),
            thread: Some(thread),
            dir,
        })
    }

    /// What NOTIFY_SOCKET is for the daemon.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("notify")
    }

    /// Closes everything that it keeps, as `systemctl stop` does.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn forget(&self) -> Result<()> {
        self.settle()?;
        lock(&self.stored).clear();
        Ok(())
    }

    /// How many descriptors it keeps.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn count(&self) -> Result<usize> {
        self.settle()?;
        Ok(lock(&self.stored).len())
    }

    /// The command that starts `program` with what is kept, and the descriptors, which have to live until it is started.
    ///
    /// # Errors
    /// When it does not answer, or there are no descriptors left.
    pub fn command(&self, program: &Path, args: &[&Path]) -> Result<(Vec<PathBuf>, Vec<OwnedFd>)> {
        self.settle()?;
        let stored = lock(&self.stored);
        let mut fds = Vec::new();
        let mut names = Vec::new();
        for (number, (name, fd)) in (ON_THE_WAY..).zip(stored.iter()) {
            let copy = fcntl_dupfd_cloexec(fd.as_fd(), number)?;
            anyhow::ensure!(copy.as_raw_fd() == number, "descriptor {number} is taken");
            fcntl_setfd(&copy, FdFlags::empty())?;
            fds.push(copy);
            names.push(name.as_str());
        }
        let mut command = ["/bin/bash", "-c", HAND_OVER, "manager"]
            .map(PathBuf::from)
            .to_vec();
        command.push(fds.len().to_string().into());
        command.push(names.join(":").into());
        command.push(program.to_owned());
        command.extend(args.iter().map(|&arg| arg.to_owned()));
        Ok((command, fds))
    }

    /// Waits until everything that was sent before has been acted on.
    fn settle(&self) -> Result<()> {
        let settled = self.settled.lock().unwrap_or_else(PoisonError::into_inner);
        UnixDatagram::unbound()?.send_to(SETTLE, self.socket())?;
        settled
            .recv_timeout(DEADLINE)
            .context("the manager does not answer")
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let ended = UnixDatagram::unbound().and_then(|end| end.send_to(END, self.socket()));
        if ended.is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

fn lock(stored: &Mutex<Vec<(String, OwnedFd)>>) -> MutexGuard<'_, Vec<(String, OwnedFd)>> {
    stored.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(socket: &UnixDatagram, stored: &Mutex<Vec<(String, OwnedFd)>>, settled: &SyncSender<()>) {
    loop {
        let mut text = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::net::recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut text)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        );
        let message = match received {
            Ok(received) => &text[..received.bytes],
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
        };
        let fds = ancillary.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
            _ => Vec::new(),
        });
        match message {
            END => return,
            SETTLE => {
                let _ = settled.send(());
            }
            _ => act(&String::from_utf8_lossy(message), fds.collect(), stored),
        }
    }
}

fn act(message: &str, fds: Vec<OwnedFd>, stored: &Mutex<Vec<(String, OwnedFd)>>) {
    let has = |line: &str| message.lines().any(|found| found == line);
    let name = message
        .lines()
        .find_map(|line| line.strip_prefix("FDNAME="))
        .unwrap_or("stored");
    if has("FDSTORE=1") {
        lock(stored).extend(fds.into_iter().map(|fd| (name.to_owned(), fd)));
    } else if has("FDSTOREREMOVE=1") {
        lock(stored).retain(|(stored, _)| stored != name);
    }
    // What came with any other message is closed: that is the answer to a barrier.
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Read as _, Write as _};
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

    use super::*;
    use crate::process::Process;

    fn store(manager: &Manager, name: &str, fd: &UnixStream) {
        let socket = UnixDatagram::unbound().unwrap();
        socket.connect(manager.socket()).unwrap();
        let message = format!("FDSTORE=1\nFDNAME={name}");
        let fds = [fd.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        let text = [IoSlice::new(message.as_bytes())];
        rustix::net::sendmsg(&socket, &text, &mut ancillary, SendFlags::empty()).unwrap();
    }

    #[test]
    fn a_stored_descriptor_reaches_the_next_life_under_its_number() -> Result<()> {
        let manager = Manager::new()?;
        let (mut ours, theirs) = UnixStream::pair()?;
        store(&manager, "first", &theirs);
        store(&manager, "second", &theirs);
        drop(theirs);
        assert_eq!(manager.count()?, 2);
        let dir = TempDir::new()?;
        let script = dir.path().join("life");
        std::fs::write(
            &script,
            "[ $LISTEN_PID = $$ ] && echo $LISTEN_FDS $LISTEN_FDNAMES >&4\n",
        )?;
        let (command, fds) = manager.command(Path::new("/bin/bash"), &[&script])?;
        let log = dir.path().join("log");
        let mut life = Process::start("life", &command[0], &command[1..], &[], &log)?;
        drop(fds);
        life.wait_end(DEADLINE)?;
        // Both ends of the pair: the manager's are the last ones.
        manager.forget()?;
        let mut said = String::new();
        ours.read_to_string(&mut said)?;
        assert_eq!(said, "2 first:second\n");
        ours.write_all(b"x").unwrap_err();
        Ok(())
    }
}

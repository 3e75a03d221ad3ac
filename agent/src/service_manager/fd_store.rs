//! Descriptors that outlive the daemon, in the service manager's store.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sd_notify::NotifyState;

use super::inherited::Inherited;
use super::notify::Notifier;

/// Most entries; `FileDescriptorStoreMax=` of the unit says the same. Beyond it the manager would drop
/// new entries in silence.
const ENTRIES_MAX: usize = 4096;
/// Longest name (`sd_notify(3)`, FDNAME).
const NAME_LEN_MAX: usize = 255;
/// Most bytes of all names, with one separator each. The next life gets them in one environment
/// variable, and execve(2) takes no longer one than 128 KiB: with more the daemon could not be started
/// again. The rest is for the names of the socket units.
const NAMES_LEN_MAX: usize = 127 * 1024;

/// Descriptors that the service manager keeps while the daemon is away (`systemd.service(5)`,
/// `FileDescriptorStoreMax=`).
///
/// The manager holds a duplicate of each stored descriptor over a restart, a crash and an upgrade, and hands all
/// of them to the next life; `systemctl stop` and a reboot drop them. A duplicate keeps the other end of
/// a socket from seeing its end: whoever wants it to end must [`FdStore::remove`] it or shut it down.
///
/// Clones are the same store. Without a service manager entries are accepted and forgotten.
///
/// ```no_run
/// # use berth_agent::service_manager::{FdStore, Inherited, Notifier};
/// # use std::os::{fd::AsFd, unix::net::UnixStream};
/// # fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let mut inherited = Inherited::from_environment()?;
/// let store = FdStore::new(&mut inherited, Notifier::from_environment());
/// for socket in store.take("nbd.disk0.0") {
///     // from the last life; still stored
/// #   drop(socket);
/// }
/// let (ours, kernels) = UnixStream::pair()?;
/// store.put("nbd.disk0.1", ours.as_fd())?;
/// store.remove("nbd.disk0.1");
/// # drop(kernels);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct FdStore {
    shared: Arc<Mutex<State>>,
    notifier: Notifier,
}

#[derive(Debug, Default)]
struct State {
    /// From the last life, not taken yet.
    inherited: BTreeMap<String, Vec<OwnedFd>>,
    /// Entries of the manager under each name.
    stored: BTreeMap<String, usize>,
}

/// Why a descriptor was not stored.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// Not a name that the manager takes.
    #[error(
        "{0:?} cannot name a stored descriptor; use 1 to 255 printable ASCII characters without spaces and ':'"
    )]
    Name(String),
    /// The manager would drop it.
    #[error(
        "the descriptor store is full ({ENTRIES_MAX} entries, or {NAMES_LEN_MAX} bytes of names)"
    )]
    Full,
    /// The manager cannot be reached.
    #[error("the service manager does not take the descriptor: {0}")]
    Manager(#[from] io::Error),
}

impl FdStore {
    /// The store, with what the last life had put there.
    #[must_use]
    pub fn new(inherited: &mut Inherited, notifier: Notifier) -> Self {
        let mut state = State::default();
        for (name, fd) in inherited.take_stored() {
            *state.stored.entry(name.clone()).or_default() += 1;
            state.inherited.entry(name).or_default().push(fd);
        }
        Self {
            shared: Arc::new(Mutex::new(state)),
            notifier,
        }
    }

    /// A store that keeps nothing.
    #[must_use]
    pub fn none() -> Self {
        Self::new(&mut Inherited::default(), Notifier::none())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Changed by single inserts and removes: whole even after a panic.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a manager keeps what is put here.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.notifier.has_manager()
    }

    /// Stores a duplicate of `fd` under `name`. Several descriptors may have one name. The manager does not
    /// watch it (`FDPOLL=0`): a hang-up does not remove it.
    ///
    /// When this returns, the manager's socket has the entry: it is kept whatever happens to this process
    /// from now on. Blocks for two seconds at most, usually not at all.
    ///
    /// # Errors
    /// When the name is not possible, the store is full, or the manager takes nothing. The descriptor is not
    /// stored then.
    pub fn put(&self, name: &str, fd: BorrowedFd<'_>) -> Result<(), PutError> {
        let printable = |byte: u8| byte.is_ascii_graphic() && byte != b':';
        if name.is_empty() || name.len() > NAME_LEN_MAX || !name.bytes().all(printable) {
            return Err(PutError::Name(name.to_owned()));
        }
        let mut state = self.lock();
        let (entries, bytes) = state.size();
        if entries >= ENTRIES_MAX || bytes + name.len() + 1 > NAMES_LEN_MAX {
            return Err(PutError::Full);
        }
        // Under the lock, so that the manager sees changes of one name in our order.
        let name_line = format!("FDNAME={name}");
        let states = ["FDSTORE=1", &name_line, "FDPOLL=0"].map(NotifyState::Custom);
        self.notifier.send(&states, Some(fd))?;
        *state.stored.entry(name.to_owned()).or_default() += 1;
        Ok(())
    }

    /// Drops every entry of this name, also what was inherited and not taken. A name without entries is
    /// fine. When the manager cannot be reached, the entries stay and the log says so; the next life
    /// finds them and drops them with [`FdStore::remove_rest`].
    pub fn remove(&self, name: &str) {
        let mut state = self.lock();
        state.inherited.remove(name);
        if !state.stored.contains_key(name) {
            return;
        }
        let name_line = format!("FDNAME={name}");
        let states = ["FDSTOREREMOVE=1", &name_line].map(NotifyState::Custom);
        match self.notifier.send(&states, None) {
            Ok(()) => drop(state.stored.remove(name)),
            Err(error) => tracing::warn!(
                name, %error, "the service manager does not drop a stored descriptor"
            ),
        }
    }

    /// The descriptors of this name that the last life had stored, in the order in which they were put.
    /// They stay stored, too, until [`FdStore::remove`]. A second call gives nothing.
    #[must_use]
    pub fn take(&self, name: &str) -> Vec<OwnedFd> {
        self.lock().inherited.remove(name).unwrap_or_default()
    }

    /// Names of what the last life had stored and nobody has taken, sorted.
    #[must_use]
    pub fn inherited_names(&self) -> Vec<String> {
        self.lock().inherited.keys().cloned().collect()
    }

    /// Removes what was inherited, begins with `prefix` and was not taken: nobody wants it any more.
    /// Gives the names.
    pub fn remove_rest(&self, prefix: &str) -> Vec<String> {
        let mut names = self.inherited_names();
        names.retain(|name| name.starts_with(prefix));
        for name in &names {
            self.remove(name);
        }
        names
    }
}

impl State {
    /// Entries, and bytes of their names with separators.
    fn size(&self) -> (usize, usize) {
        self.stored
            .iter()
            .fold((0, 0), |(entries, bytes), (name, count)| {
                (entries + count, bytes + count * (name.len() + 1))
            })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::service_manager::fake::FakeManager;

    /// The store of the next life: with what the manager hands over.
    fn next_life(manager: &FakeManager) -> FdStore {
        let mut inherited = Inherited::new(manager.stored()).expect("all are open");
        FdStore::new(&mut inherited, Notifier::to(manager.socket()))
    }

    #[test]
    fn what_is_put_is_there_in_the_next_life() {
        let mut manager = FakeManager::new();
        let store = next_life(&manager);
        let (ours, mut kernels) = UnixStream::pair().unwrap();
        store.put("nbd.disk0.0", ours.as_fd()).unwrap();
        assert_eq!(
            manager.receive(),
            "FDSTORE=1\nFDNAME=nbd.disk0.0\nFDPOLL=0\n"
        );
        drop((ours, store)); // A crash.
        kernels.write_all(b"request").unwrap();

        let store = next_life(&manager);
        assert_eq!(store.inherited_names(), ["nbd.disk0.0"]);
        assert!(store.take("nbd.disk0.1").is_empty());
        let taken = store.take("nbd.disk0.0");
        assert_eq!(taken.len(), 1);
        assert!(store.take("nbd.disk0.0").is_empty(), "taken once");
        let mut ours = UnixStream::from(taken.into_iter().next().unwrap());
        let mut request = [0; 7];
        ours.read_exact(&mut request).unwrap();
        assert_eq!(&request, b"request", "nothing was lost in between");

        // Taken is not removed: the next life gets it, too.
        drop((ours, store));
        assert_eq!(next_life(&manager).inherited_names(), ["nbd.disk0.0"]);
    }

    #[test]
    fn what_is_removed_ends_for_the_other_side() {
        let mut manager = FakeManager::new();
        let store = next_life(&manager);
        let (ours, mut kernels) = UnixStream::pair().unwrap();
        store.put("nbd.disk0.0", ours.as_fd()).unwrap();
        manager.receive();
        drop(ours);
        kernels.set_nonblocking(true).unwrap();
        let mut buffer = [0; 1];
        let error = kernels.read(&mut buffer).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "it is kept open");
        store.remove("nbd.disk0.0");
        assert_eq!(manager.receive(), "FDSTOREREMOVE=1\nFDNAME=nbd.disk0.0\n");
        assert_eq!(kernels.read(&mut buffer).unwrap(), 0, "it has ended");
        store.remove("nbd.disk0.0");
        Notifier::to(manager.socket()).status("up");
        assert_eq!(manager.receive(), "STATUS=up\n", "removed once, told once");
    }

    #[test]
    fn the_rest_is_removed_by_prefix() {
        let mut manager = FakeManager::new();
        let store = next_life(&manager);
        let (socket, _other) = UnixStream::pair().unwrap();
        for name in ["nbd.a.0", "nbd.b.0", "nbd.b.0", "else"] {
            store.put(name, socket.as_fd()).unwrap();
            manager.receive();
        }
        let store = next_life(&manager);
        assert_eq!(store.take("nbd.a.0").len(), 1);
        assert_eq!(store.remove_rest("nbd."), ["nbd.b.0"]);
        manager.receive();
        let store = next_life(&manager);
        assert_eq!(store.inherited_names(), ["else", "nbd.a.0"]);
    }

    #[test]
    fn names_and_numbers_have_bounds() {
        let store = FdStore::none();
        let (socket, _other) = UnixStream::pair().unwrap();
        let long = "n".repeat(256);
        for name in ["", "a:b", "a b", "a\nb", "\u{e4}", long.as_str()] {
            let error = store.put(name, socket.as_fd()).unwrap_err();
            assert!(matches!(error, PutError::Name(_)), "{name:?}");
        }
        for index in 0..ENTRIES_MAX {
            store.put(&format!("{index}"), socket.as_fd()).unwrap();
        }
        assert!(matches!(
            store.put("one.more", socket.as_fd()),
            Err(PutError::Full)
        ));
        store.remove("0");
        store.put("one.more", socket.as_fd()).unwrap();

        // The names of the next life go through one environment variable.
        let store = FdStore::none();
        let name = "n".repeat(255);
        while store.put(&name, socket.as_fd()).is_ok() {}
        let (entries, bytes) = store.lock().size();
        assert!(entries < ENTRIES_MAX && bytes <= NAMES_LEN_MAX);
        assert!(bytes + 256 > NAMES_LEN_MAX, "but all of it can be used");
    }

    #[test]
    fn without_its_manager_nothing_is_taken_for_stored() {
        let dir = tempfile::tempdir().unwrap();
        let notifier = Notifier::to(dir.path().join("nobody"));
        let store = FdStore::new(&mut Inherited::default(), notifier);
        let (socket, _other) = UnixStream::pair().unwrap();
        let error = store.put("nbd.a.0", socket.as_fd()).unwrap_err();
        assert!(matches!(error, PutError::Manager(_)), "{error}");
        assert_eq!(store.lock().size(), (0, 0));
    }
}

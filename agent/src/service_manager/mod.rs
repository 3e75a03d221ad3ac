//! The service manager (systemd): what it is told, and what it keeps for the next life of the daemon.
//!
//! ```text
//!            LISTEN_FDS, LISTEN_FDNAMES                       NOTIFY_SOCKET
//!  manager ------------------------------> Inherited    Notifier ----------------> manager
//!                                           |      |       ^  READY, STOPPING, STATUS, WATCHDOG
//!                        sockets of         |      |       |  FDSTORE, FDSTOREREMOVE
//!                        berthd.socket <----+      +--> FdStore
//! ```
//!
//! All of it does nothing, without an error, when the daemon was started by hand. References:
//! `sd_notify(3)`, `sd_listen_fds(3)`, `systemd.service(5)`.

#[cfg(test)]
pub(crate) mod fake;
mod fd_store;
mod inherited;
mod notify;
pub mod watchdog;

pub use fd_store::{FdStore, PutError};
pub use inherited::{Inherited, InheritedError};
pub use notify::Notifier;

/// What the daemon has from its service manager.
#[derive(Debug)]
pub struct ServiceManager {
    /// Tells it how the daemon is.
    pub notifier: Notifier,
    /// The sockets that it listens on for us.
    pub inherited: Inherited,
    /// Keeps descriptors for the next life.
    pub store: FdStore,
}

impl ServiceManager {
    /// The manager that started this process; see [`Inherited::from_environment`] for when to call it.
    ///
    /// # Errors
    /// When what it handed over cannot be understood.
    pub fn from_environment() -> Result<Self, InheritedError> {
        let mut inherited = Inherited::from_environment()?;
        let notifier = Notifier::from_environment();
        Ok(Self {
            store: FdStore::new(&mut inherited, notifier.clone()),
            inherited,
            notifier,
        })
    }

    /// Nobody.
    #[must_use]
    pub fn none() -> Self {
        Self {
            notifier: Notifier::none(),
            inherited: Inherited::default(),
            store: FdStore::none(),
        }
    }
}

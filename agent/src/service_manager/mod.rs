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

pub use fd_store::{FdStore, PutError};
pub use inherited::{Inherited, InheritedError};
pub use notify::Notifier;

//! Sockets, clocks and the task that pumps one session; the only part that needs tokio.
//!
//! ```text
//! discover ─> connect (resolve, TCP, login, redirects; one deadline) ─> Connected
//!                                                                        │
//! user <──── Handle (Rc, same thread) <────── Driver (one task) <────────┘
//!   submit, events, commit                    read all · events · one vectored write
//! ```
//!
//! A session, its driver and its user live on one thread: between a request of the user and its
//! command on the wire there is no lock, no channel and no other thread.

mod connect;
mod discover;
mod driver;
#[cfg(feature = "target")]
pub mod listener;
mod options;
mod socket;
mod tcp;
pub mod transport;

#[cfg(test)]
mod tests;

pub use connect::{ConnectError, Connected, connect};
pub use discover::discover;
pub use driver::{Driver, Handle, OnEvents};
pub use options::{ConnectOptions, DriverOptions, SocketOptions};
pub use socket::{Dialed, Dialing, Network, Socket};
pub use tcp::{TcpNetwork, resolve};

//! The NBD server: exports block devices to the kernel, QEMU and libnbd.
//!
//! ```text
//! server (accept, deadline) -> handshake -> Handover -> connection -> transmission -> block::Client
//!                                                       connection <- reply        <- block::Client
//! ```
//!
//! - [`wire`]: every message of the protocol, parsed and emitted; no state.
//! - [`export`]: what an export looks like to clients; transmission flags and block sizes.
//! - [`handshake`]: the server's side of the negotiation, without sockets.
//! - [`kernel`]: `/dev/nbdN`, whose connections need no negotiation.
//! - [`transmission`]: requests and replies after it, without sockets.
//!
//! Left out: oldstyle negotiation (nothing that is alive needs it), TLS (the socket is local and
//! guarded by its mode; `STARTTLS` is refused as the protocol asks), `RESIZE` (experimental).

mod check;
pub mod client;
pub mod connection;
pub mod export;
pub mod handshake;
pub mod kernel;
pub mod reply;
pub mod server;
mod socket;
pub mod status;
pub mod transmission;
pub mod uri;
pub mod wire;

//! iSCSI (RFC 7143) in both roles, as a sans-I/O core.
//!
//! Outside of `net` (feature `tokio`) nothing here awaits, reads a clock or owns a socket.
//!
//! ```text
//! submit -> session (task, CmdSN window) -> pdu (header + payload slices, digests) -> SendQueue
//! event  <- session <----------------------- pdu <- frame <------------------------- ReceiveBuffer
//! ```

pub mod discovery;
pub mod error;
pub mod login;
pub mod mutation;
pub mod name;
#[cfg(feature = "tokio")]
pub mod net;
pub mod pdu;
pub mod scsi;
pub mod session;
#[cfg(feature = "target")]
pub mod target;
pub mod types;

pub use berth_iobuf::Payload;
pub use error::Error;

//! The target role (feature `target`): the demo's portal, the peer of benchmarks and tests.
//!
//! A conformant target of RFC 7143 over the same codec as the initiator, sans-I/O, light enough to serve
//! every connection of a portal on one thread, and able to misbehave on request ([`faults`]).
//!
//! ```text
//! bytes -> connection (login, commands, write data, management, text) -> [limits] -> executor (logical unit)
//! bytes <- transmit (order, numbers, digests, faults) <- task answers <-------------'
//! ```
//!
//! Not built, and negotiated down or refused: several connections per session (MaxConnections=1), error
//! recovery levels 1 and 2 (ErrorRecoveryLevel=0; SNACK is rejected, TASK REASSIGN refused), data out of
//! order (both InOrder keys stay Yes), bidirectional commands, ACA, TARGET COLD RESET (it would end the
//! sessions of every initiator), the task management functions of RFC 7144.

mod commands;
mod config;
mod connection;
mod counters;
pub mod disk;
mod executor;
pub mod faults;
mod login;
pub mod lu;
mod lun_map;
mod management;
mod pace;
mod paced;
mod portal;
mod session;
mod task;
mod text;
mod transmit;
mod window;
mod write;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use config::{Access, PortalGroup, PortalSettings, TargetConfig, UnitId};
pub use connection::{CloseReason, ConnectionId};
pub use counters::Counters;
pub use executor::{Nexus, ScsiExecutor, ScsiReply};
pub use pace::{Direction, Limits, Load, Rate};
pub use portal::{AsyncNotice, Link, Portal, TargetExists};
pub use session::{SessionInfo, SessionKind};
pub use write::DataOutViolation;

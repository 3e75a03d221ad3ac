//! The berth node agent.
//!
//! ```text
//! flexvolume, csi --HTTP/unix--> api::server -> service -> volume (intent) -> plane, fabric
//! kernel, qemu ---NBD--> nbd -> block layers -> block::lun -> iscsi session -> driver --TCP--> target
//! ```

pub mod app;
pub mod block;
pub mod cli;
pub mod config;
pub mod discovery;
pub mod fabric;
pub mod initiator;
mod metrics;
pub mod nbd;
pub mod node;
pub mod plane;
pub mod reclaim;
pub mod service;
pub mod service_manager;
#[cfg(feature = "sim")]
pub mod sim;
pub mod volume;

/// Planted bugs, for tests only; under a name that says nothing of a protocol.
use berth_iscsi::mutation;

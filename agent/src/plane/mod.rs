//! The data plane: a fixed pool of threads, each with volumes of its own.
//!
//! One volume's NBD connections and iSCSI sessions live together on one thread with a
//! single-threaded runtime. Between an NBD request and its SCSI command there is no lock, no channel
//! and no other thread. The control plane has a runtime of its own and talks to a volume by
//! commands.

mod backoff;
mod board;
mod context;
mod handle;
mod keeper;
mod local;
mod path;
mod session;
pub mod spec;
mod thread;
mod timers;
mod transport;
mod volume;

pub use spec::{SessionView, VolumeSpec};
pub use thread::{DataPlane, Place, Stopped, ThreadHandle};
pub use volume::{Ended, InUse, PathGroup, Ready, Snapshot, Volume};

//! Block devices and the layers over them.
//!
//! A [`BlockDevice`] takes [`Request`]s and gives [`Completion`]s, each exactly once and in any order.
//! Layers are devices over the next one down; nothing here awaits: a request goes down by
//! [`BlockDevice::submit`], its completion comes up by [`BlockDevice::poll_complete`].
//!
//! ```text
//! nbd connection -> Hub -> stats -> align -> split -> fault -> lun -> iscsi session
//!                <- Hub <- ............ poll_complete ........... <-
//! ```

pub mod align;
mod device;
pub mod fault;
pub mod hub;
pub mod lun;
#[cfg(test)]
mod model;
pub mod ram;
pub mod split;
pub mod stats;

pub use berth_iobuf::Payload;
pub use device::{
    BlockDevice, Completion, Error, Extent, Geometry, Op, Output, Request, RequestId, ZeroLimits,
};
pub use hub::{Client, Hub};

/// The runtime's clock, which tests and the simulation can stop.
pub(crate) fn now() -> std::time::Instant {
    tokio::time::Instant::now().into_std()
}

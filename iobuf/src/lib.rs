//! Bytes on their way through berth, from one socket to another, without copies.
//!
//! - [`Payload`]: a scatter list of reference-counted slices: the data of one request.
//! - [`SendQueue`]: what one socket shall send next: headers written inline, payload by reference;
//!   drained by one vectored write per wake-up.
//! - [`ReceiveBuffer`]: large receive chunks that are cut into slices and reused while they are hot.
//!
//! Nothing here does I/O or knows a protocol, so both sides of the data path (NBD and iSCSI) share it.

mod payload;
mod receive;
mod send;

pub use payload::Payload;
pub use receive::ReceiveBuffer;
pub use send::SendQueue;

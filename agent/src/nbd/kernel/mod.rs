//! Kernel devices: `/dev/nbdN` over a connection that the daemon serves.
//!
//! ```text
//! volume::device (one attachment's device: when)
//!    |  KernelNbd::connect, adopt, replace, resize, release (how)
//!    v
//! kernel::device --> Driver (trait) --> LinuxDriver: netlink, sysfs, users
//!    |  pair of sockets
//!    v
//! nbd::connection on the thread of the volume, without a handshake
//! ```
//!
//! There is one connection for each device, with up to 128 requests in flight. More would help on nodes with
//! many cores, but the driver then sends requests of a connection that died again on another one, by a timer
//! and without asking: an older write that is still under way in the daemon could land after a newer one.
//! With one connection the daemon decides when requests come back, by handing in the next socket:
//! never before everything that was taken from the last one has come to its end.
//!
//! - [`driver`]: what is asked of the kernel's driver; its pitfalls.
//! - `netlink`, `sysfs`, [`users`]: how it is asked on Linux.
//! - [`link`]: one connection, and how it ended.
//! - [`device`]: the steps of a device's life; [`release`]: the last of them.
//!
//! Left out: the ioctl interface (no identifiers, no replacement of sockets), several connections (above),
//! swap on a device (the iSCSI connection may need the memory that swapping is to free).

pub mod device;
pub mod driver;
pub mod error;
#[cfg(test)]
pub(crate) mod fake;
pub mod link;
mod linux;
mod netlink;
pub mod release;
mod sysfs;
pub mod users;

pub use device::{Device, KernelNbd, Settings};
pub use driver::{Driver, Unavailable};
pub use error::DeviceError;
pub use linux::LinuxDriver;

//! What berth asks of the NBD driver of the kernel, as a trait: the real one is [`super::LinuxDriver`], tests
//! use one that imitates its pitfalls.
//!
//! Everything here may block: requests of generic netlink are carried out while the caller waits, and some
//! of them wait for I/O. Callers on a runtime go through [`super::KernelNbd`].

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::io::Errno;
use tokio::sync::broadcast;

use super::users::User;

/// The NBD driver of the kernel. Requests are carried out one at a time, those of other programs too.
pub trait Driver: fmt::Debug + Send + Sync {
    /// Whether the kernel has NBD, and we may use it.
    ///
    /// # Errors
    /// What is missing, and what would help.
    fn available(&self) -> Result<(), Unavailable>;

    /// Makes a device of an idle one, or of a new one. I/O may arrive before this returns.
    ///
    /// # Errors
    /// What the driver said; nothing has changed then.
    fn connect(&self, device: &Connect<'_>) -> Result<u32, DriverError>;

    /// Puts a socket into the first slot that is dead. **Succeeds without one**, and then drops the socket:
    /// our end of the pair reads end-of-file as soon as our copy of theirs is closed.
    ///
    /// # Errors
    /// What the driver said; `EINVAL` when the device is not there, is going away or is another's.
    fn replace(&self, replace: &Replace<'_>) -> Result<(), DriverError>;

    /// Gives the device another size. Waits for all I/O in flight on newer kernels.
    ///
    /// # Errors
    /// As for [`Driver::replace`].
    fn resize(&self, index: u32, backend: &str, size: Size) -> Result<(), DriverError>;

    /// Takes the device away: I/O in flight fails, and so does all that comes later, until everybody has
    /// closed the node. Flushes nothing.
    ///
    /// # Errors
    /// `EINVAL` when it is not there any more.
    fn disconnect(&self, index: u32) -> Result<(), DriverError>;

    /// All devices that are connected, or still held by somebody.
    ///
    /// # Errors
    /// When sysfs cannot be read.
    fn devices(&self) -> io::Result<Vec<Facts>>;

    /// How one device stands; without `pid` and `backend` when it is not there.
    ///
    /// # Errors
    /// When sysfs or the driver cannot be read.
    fn facts(&self, index: u32) -> io::Result<Facts>;

    /// Who has the device open, as far as it can be known.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    fn users(&self, index: u32) -> io::Result<Vec<User>>;

    /// Opens the node so that nobody can mount it; `None` when somebody has done so before.
    ///
    /// # Errors
    /// When there is no such node.
    fn claim(&self, index: u32) -> io::Result<Option<Claim>>;

    /// Writes out what the kernel holds of the device, and flushes it.
    ///
    /// # Errors
    /// When a write failed.
    fn flush(&self, index: u32) -> io::Result<()>;

    /// Reads the first block, through everything.
    ///
    /// # Errors
    /// What the read met.
    fn probe(&self, index: u32) -> io::Result<()>;

    /// Sets what cannot be set over netlink.
    ///
    /// # Errors
    /// When sysfs is not writable.
    fn tune(&self, index: u32, tuning: &Tuning) -> io::Result<()>;

    /// Indices of devices of which a connection died, from now on.
    fn dead_links(&self) -> broadcast::Receiver<u32>;

    /// The device node.
    fn node(&self, index: u32) -> String {
        format!("/dev/nbd{index}")
    }
}

/// A device node that is held open, so that nobody mounts it. Dropping it gives it back.
#[derive(Debug)]
pub struct Claim(#[allow(dead_code, reason = "held, not used")] Option<std::fs::File>);

impl Claim {
    /// Holds the open node, if there is a real one.
    pub(super) fn new(node: Option<std::fs::File>) -> Self {
        Self(node)
    }
}

/// A size, as the driver takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Bytes; a multiple of the block.
    pub size_bytes: u64,
    /// Logical block in bytes: a power of two from 512 to the page size.
    pub block_bytes: u32,
}

/// A device to be made.
#[derive(Debug)]
pub struct Connect<'a> {
    /// Tells the device from others for as long as it lives.
    pub backend: &'a str,
    /// Its size.
    pub size: Size,
    /// Transmission flags of the export; kept by the kernel for as long as the device lives.
    pub flags: u16,
    /// What is decided by configuration.
    pub limits: LinkLimits,
    /// The kernel's end of the connection; already served at the other end.
    pub socket: BorrowedFd<'a>,
}

/// A new socket for a device.
#[derive(Debug)]
pub struct Replace<'a> {
    /// Which device.
    pub index: u32,
    /// Who it must be.
    pub backend: &'a str,
    /// What is decided by configuration.
    pub limits: LinkLimits,
    /// The kernel's end of the connection.
    pub socket: BorrowedFd<'a>,
}

/// Timers of a device that netlink sets; the driver counts in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkLimits {
    /// A request that is not answered in this time costs the connection its life, and is sent again on the
    /// next. Zero: never.
    pub request_timeout: Duration,
    /// I/O waits for so long for a new connection, then it fails and the device is over.
    pub dead_conn_timeout: Duration,
}

/// Settings of the block queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// After so long the kernel looks whether the connection of a request was replaced, and sends it again
    /// if it was.
    pub resend_interval: Duration,
    /// Longest request in bytes.
    pub request_max_bytes: u64,
}

/// How a device stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// Its number.
    pub index: u32,
    /// Who connected it; there for as long as it is connected or held open afterwards.
    pub pid: Option<u32>,
    /// Its identifier.
    pub backend: Option<String>,
    /// Size in bytes; 0 when it is not connected.
    pub size_bytes: u64,
    /// Somebody holds it: the connection, or whoever has the node open.
    pub held: bool,
}

/// Why kernel devices cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// The kernel does not know the netlink family.
    #[error(
        "the kernel has no NBD: load the module (modprobe nbd), and run berthd in the initial network namespace"
    )]
    NoFamily,
    /// Not enough rights, or netlink failed.
    #[error("the kernel's NBD cannot be used: {0}")]
    Failed(String),
    /// The kernel is too old.
    #[error("the kernel's NBD is too old: {0}; Linux 5.14 is needed")]
    TooOld(&'static str),
    /// The configuration says so.
    #[error("nbd.kernel is \"never\" in the configuration")]
    SwitchedOff,
}

/// What the driver said to a request.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// It refused.
    #[error("{what} was refused: {errno}")]
    Refused {
        /// The request.
        what: &'static str,
        /// Its errno.
        errno: Errno,
    },
    /// The request could not be brought to it.
    #[error("{what} failed: {detail}")]
    Failed {
        /// The request.
        what: &'static str,
        /// Why.
        detail: String,
    },
}

impl DriverError {
    /// The errno, if the driver gave one.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::Failed { .. } => None,
        }
    }
}

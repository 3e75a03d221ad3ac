//! Why a step of a device's life failed.

use std::fmt;
use std::io;
use std::time::Duration;

use super::driver::{DriverError, Unavailable};
use super::users::User;

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The kernel has no NBD.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The driver refused.
    #[error("the kernel's NBD driver: {0}")]
    Driver(#[from] DriverError),
    /// A system call failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What it met.
        source: io::Error,
    },
    /// A step was not over in time.
    #[error("{what} was not over after {} s", .limit.as_secs())]
    TimedOut {
        /// The step.
        what: &'static str,
        /// Its time.
        limit: Duration,
    },
    /// The device is not there any more, or it is somebody else's.
    #[error("{node} is not ours any more: it was disconnected from outside")]
    Lost {
        /// Its node.
        node: String,
    },
    /// Somebody has it open.
    #[error("{node} is {}", Users(.users))]
    InUse {
        /// Its node.
        node: String,
        /// Who.
        users: Vec<User>,
    },
}

struct Users<'a>(&'a [User]);

impl fmt::Display for Users<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, user) in self.0.iter().enumerate() {
            let comma = if at > 0 { ", " } else { "" };
            write!(f, "{comma}{user}")?;
        }
        Ok(())
    }
}

/// A system call failed while this was tried.
pub(super) fn failed(what: &'static str) -> impl FnOnce(io::Error) -> DeviceError {
    move |source| DeviceError::Io { what, source }
}

//! How long things may take, in one place.

use std::path::PathBuf;
use std::time::Duration;

/// How long what concerns a device may take. A call of Kubernetes has two minutes, and most of these steps only one round
/// trip to the storage: the limits are for devices that do not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Reading what is on a device: some hundred small reads.
    pub probe: Duration,
    /// Proving that a device is blank and making a file system on it.
    pub make: Duration,
    /// Checking a file system. Journals are replayed in seconds; a full check, which ext4 may ask for after errors, can take
    /// longer, and then belongs into the hands of a person.
    pub check: Duration,
    /// Growing a file system.
    pub grow: Duration,
    /// One mount. A file system replays its journal then.
    pub mount: Duration,
    /// One unmount. What is not written yet is written then.
    pub unmount: Duration,
    /// How long an unmount is tried again while something has the mount open: udev and monitors look at mounts for moments.
    pub busy: Duration,
    /// The program that reads devices in a process of its own: this one, see [`crate::filesystem::helper`].
    pub helper: PathBuf,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            probe: Duration::from_secs(20),
            make: Duration::from_secs(75),
            check: Duration::from_secs(75),
            grow: Duration::from_secs(75),
            mount: Duration::from_secs(45),
            unmount: Duration::from_secs(60),
            busy: Duration::from_secs(3),
            helper: PathBuf::from("/proc/self/exe"),
        }
    }
}

impl Limits {
    /// The same, but nothing takes longer than `remaining`: for what is left of a call's own time.
    #[must_use]
    pub fn within(&self, remaining: Duration) -> Self {
        Self {
            probe: self.probe.min(remaining),
            make: self.make.min(remaining),
            check: self.check.min(remaining),
            grow: self.grow.min(remaining),
            mount: self.mount.min(remaining),
            unmount: self.unmount.min(remaining),
            busy: self.busy.min(remaining),
            helper: self.helper.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_remains_bounds_all() {
        let limits = Limits::default().within(Duration::from_secs(2));
        assert_eq!(limits.make, Duration::from_secs(2));
        assert_eq!(limits.busy, Duration::from_secs(2));
        assert_eq!(Limits::default().within(Duration::MAX), Limits::default());
    }
}

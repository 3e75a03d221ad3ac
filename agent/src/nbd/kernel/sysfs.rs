//! What sysfs says of NBD devices, and the settings that only it takes.

use std::io;
use std::path::{Path, PathBuf};

use super::driver::{Facts, Tuning};

/// The part of sysfs that lists block devices.
#[derive(Debug, Clone)]
pub(super) struct Sysfs {
    block: PathBuf,
}

impl Sysfs {
    /// The system's own.
    pub(super) fn system() -> Self {
        Self::at("/sys/block")
    }

    /// Another directory that looks the same.
    pub(super) fn at(block: impl Into<PathBuf>) -> Self {
        Self {
            block: block.into(),
        }
    }

    fn device(&self, index: u32) -> PathBuf {
        self.block.join(format!("nbd{index}"))
    }

    /// Numbers of all NBD devices, connected or not.
    pub(super) fn indices(&self) -> io::Result<Vec<u32>> {
        let mut indices = Vec::new();
        let entries = match std::fs::read_dir(&self.block) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(indices),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("nbd"));
            indices.extend(number.and_then(|number| number.parse::<u32>().ok()));
        }
        indices.sort_unstable();
        Ok(indices)
    }

    /// What is known of one device; who holds it is not.
    pub(super) fn facts(&self, index: u32) -> io::Result<Facts> {
        let dir = self.device(index);
        let number = |text: Option<String>| text.and_then(|text| text.parse::<u64>().ok());
        let pid = number(read(&dir.join("pid"))?).and_then(|pid| u32::try_from(pid).ok());
        // In sectors of 512 bytes, whatever the block size is.
        let sectors = number(read(&dir.join("size"))?).unwrap_or(0);
        Ok(Facts {
            index,
            pid,
            backend: read(&dir.join("backend"))?.filter(|backend| !backend.is_empty()),
            size_bytes: sectors.saturating_mul(512),
            held: pid.is_some(),
        })
    }

    /// Major and minor number of the device and of its partitions, as `43:0`.
    pub(super) fn numbers(&self, index: u32) -> io::Result<Vec<String>> {
        let dir = self.device(index);
        let mut numbers: Vec<String> = read(&dir.join("dev"))?.into_iter().collect();
        let prefix = format!("nbd{index}p");
        for entry in list(&dir)? {
            if entry.starts_with(&prefix) {
                numbers.extend(read(&dir.join(entry).join("dev"))?);
            }
        }
        Ok(numbers)
    }

    /// Block devices that are built on it (device mapper, md), by name.
    pub(super) fn holders(&self, index: u32) -> io::Result<Vec<String>> {
        let dir = self.device(index);
        let mut holders = list(&dir.join("holders"))?;
        let prefix = format!("nbd{index}p");
        for entry in list(&dir)? {
            if entry.starts_with(&prefix) {
                holders.extend(list(&dir.join(entry).join("holders"))?);
            }
        }
        holders.sort();
        holders.dedup();
        Ok(holders)
    }

    /// Sets up the queue. A setting that this kernel does not have is passed over.
    pub(super) fn tune(&self, index: u32, tuning: &Tuning) -> io::Result<()> {
        let queue = self.device(index).join("queue");
        let resend_ms = tuning.resend_interval.as_millis().max(1);
        write(&queue.join("io_timeout"), &resend_ms.to_string())?;
        // The kernel takes no more than the driver can.
        let ceiling = read(&queue.join("max_hw_sectors_kb"))?.and_then(|text| text.parse().ok());
        let wanted = (tuning.request_max_bytes / 1024).max(4);
        let kib = wanted.min(ceiling.unwrap_or(u64::MAX));
        write(&queue.join("max_sectors_kb"), &kib.to_string())?;
        // What is behind us schedules for itself.
        write(&queue.join("scheduler"), "none")?;
        // Throttling of write-back guesses a disk's speed from its latency, and a restart looks like a slow one.
        write(&queue.join("wbt_lat_usec"), "0").or_else(ignore_invalid)
    }

    /// Makes an event for udev. The kernel makes its own one a moment before `backend` is there, by which rules know
    /// our devices: whoever was quicker would miss it.
    pub(super) fn announce(&self, index: u32) -> io::Result<()> {
        write(&self.device(index).join("uevent"), "change")
    }
}

/// Kernels refuse the setting where they were built without the feature.
fn ignore_invalid(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::InvalidInput => Ok(()),
        _ => Err(error),
    }
}

/// The trimmed contents; `None` when there is no such file. An attribute vanishes while it is read when the
/// device goes away.
fn read(path: &Path) -> io::Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(named(path, &error)),
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    match std::fs::write(path, text) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(named(path, &error)),
        Ok(()) => Ok(()),
    }
}

fn list(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    match std::fs::read_dir(dir) {
        Ok(entries) => {
            for entry in entries {
                names.extend(entry?.file_name().into_string());
            }
        }
        Err(error) if is_gone(&error) => {}
        Err(error) => return Err(named(dir, &error)),
    }
    names.sort();
    Ok(names)
}

fn is_gone(error: &io::Error) -> bool {
    let gone = [rustix::io::Errno::NODEV, rustix::io::Errno::NXIO];
    error.kind() == io::ErrorKind::NotFound
        || gone
            .map(|errno| Some(errno.raw_os_error()))
            .contains(&error.raw_os_error())
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

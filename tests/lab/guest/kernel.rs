//! The guest's kernel: modules, and its complaints.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use berth_tests::tool;
use rustix::fs::OFlags;

const DEADLINE: Duration = Duration::from_secs(60);

/// Loads the NBD driver without a device: berth gets those it asks for.
pub(crate) fn load_nbd() -> Result<()> {
    tool::run("modprobe", &["nbd", "nbds_max=0", "max_part=0"], DEADLINE).map(drop)
}

/// Words of a kernel that has lost or refused data.
const COMPLAINTS: [&str; 12] = [
    "I/O error",
    "Buffer I/O",
    "lost async page write",
    "lost sync page write",
    "EXT4-fs error",
    "Aborting journal",
    "Remounting filesystem read-only",
    "Corruption",
    "Log I/O Error",
    "metadata I/O",
    "Filesystem has been shut down",
    "BUG:",
];

/// The kernel's log from one moment on.
#[derive(Debug)]
pub(crate) struct Log {
    file: File,
    complaints: Vec<String>,
    lines: Vec<String>,
}

impl Log {
    /// From now on.
    pub(crate) fn follow() -> Result<Self> {
        let flags = i32::try_from(OFlags::NONBLOCK.bits()).context("O_NONBLOCK")?;
        let file = File::options()
            .read(true)
            .custom_flags(flags)
            .open("/dev/kmsg")
            .context("/dev/kmsg")?;
        let mut log = Self {
            file,
            complaints: Vec::new(),
            lines: Vec::new(),
        };
        log.read()?;
        log.complaints.clear();
        log.lines.clear();
        Ok(log)
    }

    fn read(&mut self) -> Result<()> {
        let mut record = [0; 8192];
        loop {
            // One record a call: "priority,number,time,flags;text".
            let length = match self.file.read(&mut record) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // Old records were overwritten before they were read: too late to know what they said.
                Err(error) => return Err(error).context("log of the kernel"),
            };
            let text = String::from_utf8_lossy(&record[..length]);
            let text = text.split_once(';').map_or(&*text, |(_, text)| text);
            let line = text.lines().next().unwrap_or_default().to_owned();
            if COMPLAINTS.iter().any(|word| line.contains(word)) {
                self.complaints.push(line.clone());
            }
            self.lines.push(line);
        }
    }

    /// Fails if the kernel has complained since [`Log::follow`].
    pub(crate) fn check(&mut self) -> Result<()> {
        self.read()?;
        ensure!(
            self.complaints.is_empty(),
            "the kernel complains:\n{}",
            self.complaints.join("\n")
        );
        Ok(())
    }

    /// The lines since the last call that contain a word, complaints or not; what was a complaint counts no longer.
    pub(crate) fn take(&mut self, word: &str) -> Result<Vec<String>> {
        self.read()?;
        self.complaints.clear();
        let lines = std::mem::take(&mut self.lines);
        Ok(lines
            .into_iter()
            .filter(|line| line.contains(word))
            .collect())
    }
}

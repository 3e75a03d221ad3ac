//! Reading and writing what is published, as the program in a pod would.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::host::{self, DATA_OFFSET, Device};

/// Length of what is written.
pub const LEN: usize = 4096;

/// How the node's paths are reached.
#[derive(Debug, Clone)]
pub enum Files {
    /// By the kernel.
    Real,
    /// On a pretended host that keeps its mounts in this folder.
    Pretended(PathBuf),
}

/// `LEN` bytes that tell of this word.
#[must_use]
pub fn data(word: &str) -> Vec<u8> {
    word.bytes().chain([b'|']).cycle().take(LEN).collect()
}

impl Files {
    /// Whether something is mounted there.
    ///
    /// # Errors
    /// When that cannot be found out.
    pub fn is_mounted(&self, at: &Path) -> Result<bool> {
        match self {
            Self::Real => Ok(!berth_plugin::mount::at(at)?.is_empty()),
            Self::Pretended(dir) => Ok(host::entries(dir)?.iter().any(|entry| entry.at == at)),
        }
    }

    /// Writes, so that it is on the volume afterwards.
    ///
    /// # Errors
    /// Those of the file system or the device; when nothing is mounted there.
    pub fn write(&self, at: &Path, data: &[u8]) -> Result<()> {
        ensure!(
            self.is_mounted(at)?,
            "nothing is mounted at {}",
            at.display()
        );
        match self {
            Self::Real => {
                let (mut file, is_device) = self.open(at, true)?;
                if is_device {
                    file.seek(SeekFrom::Start(DATA_OFFSET))?;
                }
                file.write_all(data)?;
                file.sync_all()?;
                Ok(())
            }
            Self::Pretended(dir) => {
                let entry = entry(dir, at)?;
                ensure!(!entry.read_only, "read-only");
                Device::open(&entry.device)?.write(DATA_OFFSET, data)
            }
        }
    }

    /// Reads what was written, from the volume and from no cache where that can be avoided.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn read(&self, at: &Path) -> Result<Vec<u8>> {
        ensure!(
            self.is_mounted(at)?,
            "nothing is mounted at {}",
            at.display()
        );
        match self {
            Self::Real => {
                let (mut file, is_device) = self.open(at, false)?;
                if is_device {
                    file.seek(SeekFrom::Start(DATA_OFFSET))?;
                }
                let mut bytes = vec![0; LEN];
                file.read_exact(&mut bytes)?;
                Ok(bytes)
            }
            Self::Pretended(dir) => {
                let entry = entry(dir, at)?;
                Device::open(&entry.device)?.read(DATA_OFFSET, u32::try_from(LEN)?)
            }
        }
    }

    fn open(&self, at: &Path, write: bool) -> Result<(File, bool)> {
        let metadata = fs::metadata(at)?;
        let is_device = metadata.file_type().is_block_device();
        let path = if is_device {
            at.to_owned()
        } else {
            at.join("data")
        };
        let mut options = OpenOptions::new();
        options
            .read(!write)
            .write(write)
            .create(write && !is_device);
        if is_device && write {
            options.custom_flags(rustix::fs::OFlags::DSYNC.bits() as i32);
        }
        let file = options
            .open(&path)
            .with_context(|| path.display().to_string())?;
        Ok((file, is_device))
    }
}

fn entry(dir: &Path, at: &Path) -> Result<host::Entry> {
    let mut all = host::entries(dir)?;
    all.retain(|entry| entry.at == at);
    all.pop().context("nothing is mounted there")
}

//! A disk in a sparse file; holes are what is not mapped.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{FallocateFlags, SeekFrom};

use super::{Disk, DiskError, DiskExtent, ReadSink, check};

/// File systems give holes of this size.
const GRANULE_BYTES: u32 = 4096;

/// Zeroes are written in pieces of this size where a hole cannot be punched.
static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// A disk in a sparse file. Reads and writes block the caller.
#[derive(Debug)]
pub struct FileDisk {
    file: File,
    size_bytes: u64,
    /// Written since the last flush.
    dirty: bool,
}

impl FileDisk {
    /// Opens or creates the file at `path`; a file that is smaller is grown to `size_bytes`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(path: &Path, size_bytes: u64) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let size_bytes = size_bytes.max(file.metadata()?.len());
        file.set_len(size_bytes)?;
        Ok(Self {
            file,
            size_bytes,
            dirty: false,
        })
    }

    /// A disk in an open file, as large as the file.
    ///
    /// # Errors
    /// What the file system says.
    pub fn from_file(file: File) -> io::Result<Self> {
        let size_bytes = file.metadata()?.len();
        Ok(Self {
            file,
            size_bytes,
            dirty: false,
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        let mut at = offset;
        while at < offset + len {
            let n = (offset + len - at).min(ZEROES.len() as u64) as usize;
            self.file.write_all_at(&ZEROES[..n], at)?;
            at += n as u64;
        }
        Ok(())
    }
}

impl Disk for FileDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn granule_bytes(&self) -> u32 {
        GRANULE_BYTES
    }

    fn read(&mut self, offset: u64, len: usize, out: &mut ReadSink) -> Result<(), DiskError> {
        check(offset, len as u64, self.size_bytes)?;
        out.fill(len, |at, piece| {
            Ok(self.file.read_exact_at(piece, offset + at as u64)?)
        })
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        check(offset, data.len() as u64, self.size_bytes)?;
        self.dirty = true;
        Ok(self.file.write_all_at(data, offset)?)
    }

    fn unmap(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        check(offset, len, self.size_bytes)?;
        if len == 0 {
            return Ok(());
        }
        self.dirty = true;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, flags, offset, len) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::OPNOTSUPP) => self.write_zeroes(offset, len),
            Err(error) => Err(io::Error::from(error).into()),
        }
    }

    fn extent(&mut self, offset: u64) -> Result<DiskExtent, DiskError> {
        check(offset, 1, self.size_bytes)?;
        let seek = |from| match rustix::fs::seek(&self.file, from) {
            Ok(at) => Ok(Some(at.min(self.size_bytes))),
            // No data behind this offset.
            Err(rustix::io::Errno::NXIO) => Ok(None),
            Err(error) => Err(DiskError::from(io::Error::from(error))),
        };
        let data = seek(SeekFrom::Data(offset))?.unwrap_or(self.size_bytes);
        if data > offset {
            return Ok(DiskExtent {
                len_bytes: data - offset,
                mapped: false,
            });
        }
        let hole = seek(SeekFrom::Hole(offset))?.unwrap_or(self.size_bytes);
        Ok(DiskExtent {
            len_bytes: hole.max(offset + 1) - offset,
            mapped: true,
        })
    }

    fn flush(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        check(offset, len, self.size_bytes)?;
        if self.dirty {
            self.file.sync_data()?;
            self.dirty = false;
        }
        Ok(())
    }

    fn resize(&mut self, size_bytes: u64) -> Result<(), DiskError> {
        self.file.set_len(size_bytes)?;
        self.file.sync_all()?;
        self.size_bytes = size_bytes;
        Ok(())
    }

    fn power_cut(&mut self, _survives: &mut dyn FnMut(u64) -> bool) -> Result<(), DiskError> {
        Ok(())
    }
}

//! Storage behind a logical unit of the target role: RAM, sparse files, and a write cache that can
//! lose what was not flushed.

mod cache;
mod file;
mod ram;
mod sink;

pub use cache::WriteCache;
pub use file::FileDisk;
pub use ram::RamDisk;
pub use sink::ReadSink;

/// Why storage failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// The range is not inside the disk.
    #[error("{len_bytes} bytes at {offset_bytes} are not inside a disk of {size_bytes} bytes")]
    OutOfRange {
        /// Start of the range in bytes.
        offset_bytes: u64,
        /// Length of the range in bytes.
        len_bytes: u64,
        /// Size of the disk in bytes.
        size_bytes: u64,
    },
    /// No space is left for data.
    #[error("no space is left behind the disk")]
    NoSpace,
    /// The file failed.
    #[error("the file behind the disk failed: {0}")]
    Io(std::io::ErrorKind),
}

impl From<std::io::Error> for DiskError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::NoSpace,
            kind => Self::Io(kind),
        }
    }
}

/// A run of bytes that are all mapped or all unmapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskExtent {
    /// Length in bytes, not 0; the run may go on behind it.
    pub len_bytes: u64,
    /// Whether there is storage for it; if not, it reads as zeroes.
    pub mapped: bool,
}

/// Bytes that can be read and written at any offset. Offsets and lengths are in bytes; a length of 0
/// does nothing.
///
/// # Errors
/// All methods: [`DiskError::OutOfRange`] when the range is not inside the disk.
#[allow(clippy::missing_errors_doc, reason = "said once for all of them")]
pub trait Disk: Send {
    /// Size in bytes.
    fn size_bytes(&self) -> u64;

    /// Smallest range that [`Disk::unmap`] gives back, in bytes, a power of two.
    fn granule_bytes(&self) -> u32;

    /// Appends `len` bytes to `out`.
    fn read(&mut self, offset: u64, len: usize, out: &mut ReadSink) -> Result<(), DiskError>;

    /// Writes `data`; durable after the next [`Disk::flush`].
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), DiskError>;

    /// Makes the range read as zeroes and gives its storage back where it is a whole granule.
    fn unmap(&mut self, offset: u64, len: u64) -> Result<(), DiskError>;

    /// The run of equal mapping that starts at `offset`, which is inside the disk.
    fn extent(&mut self, offset: u64) -> Result<DiskExtent, DiskError>;

    /// Makes what was written to the range durable.
    fn flush(&mut self, offset: u64, len: u64) -> Result<(), DiskError>;

    /// Changes the size; new bytes read as zeroes, bytes beyond a smaller size are gone.
    fn resize(&mut self, size_bytes: u64) -> Result<(), DiskError>;

    /// The power fails: what was not flushed is lost, but for blocks (named by their offset) that
    /// `survives` picks, as a real cache writes some back in any order.
    fn power_cut(&mut self, survives: &mut dyn FnMut(u64) -> bool) -> Result<(), DiskError>;
}

/// Fails unless the range is inside a disk of `size_bytes`.
fn check(offset: u64, len: u64, size_bytes: u64) -> Result<(), DiskError> {
    match offset.checked_add(len) {
        Some(end) if end <= size_bytes => Ok(()),
        _ => Err(DiskError::OutOfRange {
            offset_bytes: offset,
            len_bytes: len,
            size_bytes,
        }),
    }
}

#[cfg(test)]
mod tests;

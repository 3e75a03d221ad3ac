//! A volatile write cache over a disk: the durability test.

use std::collections::HashMap;

use super::{Disk, DiskError, DiskExtent, ReadSink, check};

/// Blocks that are not flushed, at most; beyond it the cache is written back, as a real one would be.
const DIRTY_MAX: usize = 32 * 1024;

/// A write cache that forgets what was not flushed when the power is cut.
///
/// Writes go to the disk below at once; what they replaced is kept until it is flushed, and put back
/// by a power cut. A block is the unit of what is lost: a torn write loses some blocks, never part of
/// one.
#[derive(Debug)]
pub struct WriteCache<D> {
    disk: D,
    block_bytes: u32,
    /// Block number to what it held when it was last durable; `None`: it was not mapped.
    before: HashMap<u64, Option<Box<[u8]>>>,
    scratch: ReadSink,
}

impl<D: Disk> WriteCache<D> {
    /// A cache of blocks of `block_bytes`, which is not 0.
    #[must_use]
    pub fn new(disk: D, block_bytes: u32) -> Self {
        Self {
            disk,
            block_bytes: block_bytes.max(1),
            before: HashMap::new(),
            scratch: ReadSink::new(),
        }
    }

    /// Blocks that a power cut would lose.
    #[must_use]
    pub fn dirty_blocks(&self) -> usize {
        self.before.len()
    }

    /// Keeps what the blocks of the range hold now.
    fn remember(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        check(offset, len, self.disk.size_bytes())?;
        if len == 0 {
            return Ok(());
        }
        let size = u64::from(self.block_bytes);
        for block in offset / size..=(offset + len - 1) / size {
            if self.before.contains_key(&block) {
                continue;
            }
            if self.before.len() >= DIRTY_MAX {
                let whole = self.disk.size_bytes();
                self.flush(0, whole)?;
            }
            let at = block * size;
            let len = size.min(self.disk.size_bytes() - at);
            let extent = self.disk.extent(at)?;
            let old = if !extent.mapped && extent.len_bytes >= len {
                None
            } else {
                self.disk.read(at, len as usize, &mut self.scratch)?;
                Some(self.scratch.take().to_bytes().to_vec().into_boxed_slice())
            };
            self.before.insert(block, old);
        }
        Ok(())
    }
}

impl<D: Disk> Disk for WriteCache<D> {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn granule_bytes(&self) -> u32 {
        self.disk.granule_bytes()
    }

    fn read(&mut self, offset: u64, len: usize, out: &mut ReadSink) -> Result<(), DiskError> {
        self.disk.read(offset, len, out)
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.remember(offset, data.len() as u64)?;
        self.disk.write(offset, data)
    }

    fn unmap(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.remember(offset, len)?;
        self.disk.unmap(offset, len)
    }

    fn extent(&mut self, offset: u64) -> Result<DiskExtent, DiskError> {
        self.disk.extent(offset)
    }

    fn flush(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.disk.flush(offset, len)?;
        if offset == 0 && len >= self.disk.size_bytes() {
            self.before.clear();
        } else if len > 0 {
            let size = u64::from(self.block_bytes);
            let blocks = offset / size..=(offset + len - 1) / size;
            if blocks.end() - blocks.start() < self.before.len() as u64 {
                for block in blocks {
                    self.before.remove(&block);
                }
            } else {
                self.before.retain(|block, _| !blocks.contains(block));
            }
        }
        Ok(())
    }

    fn resize(&mut self, size_bytes: u64) -> Result<(), DiskError> {
        // A new size is made durable with all that was written before.
        let whole = self.disk.size_bytes();
        self.flush(0, whole)?;
        self.disk.resize(size_bytes)
    }

    fn power_cut(&mut self, survives: &mut dyn FnMut(u64) -> bool) -> Result<(), DiskError> {
        let size = u64::from(self.block_bytes);
        let mut lost: Vec<_> = self.before.drain().collect();
        // In a fixed order, so that `survives` can be a seeded generator.
        lost.sort_unstable_by_key(|(block, _)| *block);
        for (block, old) in lost {
            let at = block * size;
            if survives(at) {
                continue;
            }
            match old {
                Some(old) => self.disk.write(at, &old)?,
                None => {
                    let len = size.min(self.disk.size_bytes() - at);
                    self.disk.unmap(at, len)?;
                }
            }
        }
        self.disk.power_cut(survives)
    }
}

//! A disk in memory that takes memory only for what was written.

use bytes::{Bytes, BytesMut};

use super::{Disk, DiskError, DiskExtent, ReadSink, check};

/// What is mapped is known by chunks of this size.
const CHUNK_BYTES: usize = 1 << 20;
/// Memory is taken in pieces of this size. A write to a piece that is still being sent copies the
/// piece, so it is not larger.
const PIECE_BYTES: usize = 64 * 1024;
const CHUNK_PIECES: usize = CHUNK_BYTES / PIECE_BYTES;
/// Chunks in one table, which then covers 1 GiB.
const TABLE_CHUNKS: usize = 1024;
/// Mapping is known for runs of this many bytes: the smallest logical block.
const GRANULE_BYTES: usize = 512;
const CHUNK_WORDS: usize = CHUNK_BYTES / GRANULE_BYTES / 64;

/// An extent query looks at no more chunks (or tables) than this, so its time is bounded.
const EXTENT_STEPS_MAX: u32 = 4096;

struct Chunk {
    /// Each is empty, which reads as zeroes, or of full length.
    pieces: [Bytes; CHUNK_PIECES],
    /// One bit for each granule; what is not mapped holds zeroes.
    mapped: [u64; CHUNK_WORDS],
}

impl Chunk {
    fn new() -> Box<Self> {
        Box::new(Self {
            pieces: [const { Bytes::new() }; CHUNK_PIECES],
            mapped: [0; CHUNK_WORDS],
        })
    }

    /// Appends the bytes `at..at + len` of this chunk by reference: a later write leaves them alone.
    fn read(&self, at: usize, len: usize, out: &mut ReadSink) {
        by_piece(at, len, |piece, at, n| match &self.pieces[piece] {
            bytes if bytes.is_empty() => out.put_zeroes(n),
            bytes => out.put_shared(bytes.slice(at..at + n)),
        });
    }

    fn write(&mut self, at: usize, data: &[u8]) {
        let mut data = data;
        by_piece(at, data.len(), |piece, at, n| {
            let (now, later) = data.split_at(n);
            change(&mut self.pieces[piece], |bytes| {
                bytes[at..at + n].copy_from_slice(now);
            });
            data = later;
        });
    }

    fn zero(&mut self, at: usize, len: usize) {
        by_piece(at, len, |piece, at, n| {
            let bytes = &mut self.pieces[piece];
            if n == PIECE_BYTES {
                *bytes = Bytes::new();
            } else if !bytes.is_empty() {
                change(bytes, |bytes| bytes[at..at + n].fill(0));
            }
        });
    }

    /// Marks the granules `first..=last`.
    fn mark(&mut self, first: usize, last: usize, mapped: bool) {
        for word in first / 64..=last / 64 {
            let low = if word == first / 64 { first % 64 } else { 0 };
            let high = if word == last / 64 { last % 64 } else { 63 };
            let mask = (u64::MAX >> (63 - high)) & (u64::MAX << low);
            if mapped {
                self.mapped[word] |= mask;
            } else {
                self.mapped[word] &= !mask;
            }
        }
    }

    fn is_mapped(&self, granule: usize) -> bool {
        self.mapped[granule / 64] >> (granule % 64) & 1 == 1
    }

    fn count(&self) -> u64 {
        self.mapped
            .iter()
            .map(|word| u64::from(word.count_ones()))
            .sum()
    }

    /// Length in granules of the run of equal mapping that starts at `granule`.
    fn run(&self, granule: usize) -> usize {
        let mapped = self.is_mapped(granule);
        let mut at = granule;
        while at < CHUNK_WORDS * 64 {
            let word = if mapped {
                !self.mapped[at / 64]
            } else {
                self.mapped[at / 64]
            };
            // Bits that differ from the start's, from `at` on.
            let rest = word >> (at % 64);
            if rest != 0 {
                return at + rest.trailing_zeros() as usize - granule;
            }
            at = (at / 64 + 1) * 64;
        }
        CHUNK_WORDS * 64 - granule
    }
}

/// Lets `edit` change a piece of full length. Whoever still holds bytes of it keeps the old ones.
fn change(piece: &mut Bytes, edit: impl FnOnce(&mut [u8])) {
    let mut bytes = match std::mem::take(piece).try_into_mut() {
        Ok(bytes) if bytes.is_empty() => BytesMut::zeroed(PIECE_BYTES),
        Ok(bytes) => bytes,
        Err(shared) if shared.is_empty() => BytesMut::zeroed(PIECE_BYTES),
        Err(shared) => BytesMut::from(&shared[..]),
    };
    edit(&mut bytes);
    *piece = bytes.freeze();
}

/// Calls `each` with the part of every piece that a range of a chunk touches: number of the piece,
/// offset in it, and length.
fn by_piece(at: usize, len: usize, mut each: impl FnMut(usize, usize, usize)) {
    let end = at + len;
    let mut at = at;
    while at < end {
        let n = (PIECE_BYTES - at % PIECE_BYTES).min(end - at);
        each(at / PIECE_BYTES, at % PIECE_BYTES, n);
        at += n;
    }
}

type Table = Box<[Option<Box<Chunk>>]>;

/// A disk in memory.
pub struct RamDisk {
    size_bytes: u64,
    tables: Vec<Option<Table>>,
    /// Granules that are mapped.
    mapped: u64,
    /// Granules that may be mapped.
    mapped_max: u64,
}

impl RamDisk {
    /// A disk that reads as zeroes.
    #[must_use]
    pub fn new(size_bytes: u64) -> Self {
        let mut disk = Self {
            size_bytes: 0,
            tables: Vec::new(),
            mapped: 0,
            mapped_max: u64::MAX,
        };
        disk.set_size(size_bytes);
        disk
    }

    /// The same disk with room for `bytes` only: writes beyond that fail with [`DiskError::NoSpace`].
    #[must_use]
    pub fn with_space(mut self, bytes: u64) -> Self {
        self.mapped_max = bytes / GRANULE_BYTES as u64;
        self
    }

    /// Bytes that are mapped.
    #[must_use]
    pub fn mapped_bytes(&self) -> u64 {
        self.mapped * GRANULE_BYTES as u64
    }

    fn set_size(&mut self, size_bytes: u64) {
        self.size_bytes = size_bytes;
        let tables = size_bytes.div_ceil((TABLE_CHUNKS * CHUNK_BYTES) as u64) as usize;
        self.tables.resize_with(tables, || None);
    }

    /// The chunk that holds `offset`.
    fn chunk(&self, offset: u64) -> Option<&Chunk> {
        let (table, chunk, _) = place(offset);
        self.tables.get(table)?.as_deref()?[chunk].as_deref()
    }

    fn slot(&mut self, offset: u64) -> Option<&mut Option<Box<Chunk>>> {
        let (table, chunk, _) = place(offset);
        self.tables.get_mut(table)?.as_deref_mut()?.get_mut(chunk)
    }

    fn chunk_or_new(&mut self, offset: u64) -> &mut Chunk {
        let (table, chunk, _) = place(offset);
        let table = self.tables[table]
            .get_or_insert_with(|| std::iter::repeat_with(|| None).take(TABLE_CHUNKS).collect());
        table[chunk].get_or_insert_with(Chunk::new)
    }
}

/// Table, chunk in the table and byte in the chunk of an offset.
const fn place(offset: u64) -> (usize, usize, usize) {
    let chunk = (offset / CHUNK_BYTES as u64) as usize;
    (
        chunk / TABLE_CHUNKS,
        chunk % TABLE_CHUNKS,
        (offset % CHUNK_BYTES as u64) as usize,
    )
}

/// Calls `each` with the part of every chunk that the range touches: offset and length.
fn by_chunk<E>(
    offset: u64,
    len: u64,
    mut each: impl FnMut(u64, usize) -> Result<(), E>,
) -> Result<(), E> {
    let mut at = offset;
    let end = offset + len;
    while at < end {
        let in_chunk = CHUNK_BYTES as u64 - at % CHUNK_BYTES as u64;
        let n = in_chunk.min(end - at);
        each(at, n as usize)?;
        at += n;
    }
    Ok(())
}

impl Disk for RamDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn granule_bytes(&self) -> u32 {
        GRANULE_BYTES as u32
    }

    fn read(&mut self, offset: u64, len: usize, out: &mut ReadSink) -> Result<(), DiskError> {
        check(offset, len as u64, self.size_bytes)?;
        by_chunk(offset, len as u64, |at, n| {
            let (_, _, byte) = place(at);
            match self.chunk(at) {
                Some(chunk) => chunk.read(byte, n, out),
                None => out.put_zeroes(n),
            }
            Ok(())
        })
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        check(offset, data.len() as u64, self.size_bytes)?;
        let mut done = 0;
        by_chunk(offset, data.len() as u64, |at, n| {
            let (_, _, byte) = place(at);
            let (first, last) = (byte / GRANULE_BYTES, (byte + n - 1) / GRANULE_BYTES);
            if self.mapped_max == u64::MAX {
                let chunk = self.chunk_or_new(at);
                chunk.mark(first, last, true);
                chunk.write(byte, &data[done..done + n]);
            } else {
                // Counting costs time, and matters only where space can run out.
                let new = match self.chunk(at) {
                    Some(chunk) => (first..=last).filter(|g| !chunk.is_mapped(*g)).count(),
                    None => last - first + 1,
                } as u64;
                if self.mapped + new > self.mapped_max {
                    return Err(DiskError::NoSpace);
                }
                self.mapped += new;
                let chunk = self.chunk_or_new(at);
                chunk.mark(first, last, true);
                chunk.write(byte, &data[done..done + n]);
            }
            done += n;
            Ok(())
        })
    }

    fn unmap(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        check(offset, len, self.size_bytes)?;
        let limited = self.mapped_max != u64::MAX;
        let mut at = offset;
        let end = offset + len;
        while at < end {
            let (table, _, byte) = place(at);
            if self.tables[table].is_none() {
                // A table that is not there is skipped as a whole.
                at = (table as u64 + 1) * (TABLE_CHUNKS * CHUNK_BYTES) as u64;
                continue;
            }
            let n = (CHUNK_BYTES as u64 - byte as u64).min(end - at) as usize;
            let mut freed = 0;
            if let Some(slot) = self.slot(at)
                && let Some(chunk) = slot
            {
                let before = if limited { chunk.count() } else { 0 };
                chunk.zero(byte, n);
                // Only whole granules lose their storage.
                let first = byte.div_ceil(GRANULE_BYTES);
                let end = (byte + n) / GRANULE_BYTES;
                if first < end {
                    chunk.mark(first, end - 1, false);
                }
                let after = chunk.count();
                freed = before.saturating_sub(after);
                if after == 0 {
                    *slot = None;
                }
            }
            self.mapped -= freed;
            at += n as u64;
        }
        Ok(())
    }

    fn extent(&mut self, offset: u64) -> Result<DiskExtent, DiskError> {
        check(offset, 1, self.size_bytes)?;
        let mapped = self
            .chunk(offset)
            .is_some_and(|chunk| chunk.is_mapped(place(offset).2 / GRANULE_BYTES));
        let mut at = offset;
        for _ in 0..EXTENT_STEPS_MAX {
            if at >= self.size_bytes {
                break;
            }
            let (table, _, byte) = place(at);
            let granule = byte / GRANULE_BYTES;
            match (&self.tables[table], self.chunk(at)) {
                (None, _) if !mapped => {
                    at = (table as u64 + 1) * (TABLE_CHUNKS * CHUNK_BYTES) as u64;
                }
                (Some(_), None) if !mapped => at += (CHUNK_BYTES - byte) as u64,
                (_, Some(chunk)) if chunk.is_mapped(granule) == mapped => {
                    let run = chunk.run(granule);
                    at += (run * GRANULE_BYTES - byte % GRANULE_BYTES) as u64;
                    if granule + run < CHUNK_WORDS * 64 {
                        break;
                    }
                }
                _ => break,
            }
        }
        Ok(DiskExtent {
            len_bytes: at.min(self.size_bytes) - offset,
            mapped,
        })
    }

    fn flush(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        check(offset, len, self.size_bytes)
    }

    fn resize(&mut self, size_bytes: u64) -> Result<(), DiskError> {
        if size_bytes < self.size_bytes {
            // What comes back when it grows again must be zeroes.
            self.unmap(size_bytes, self.size_bytes - size_bytes)?;
        }
        self.set_size(size_bytes);
        Ok(())
    }

    fn power_cut(&mut self, _survives: &mut dyn FnMut(u64) -> bool) -> Result<(), DiskError> {
        Ok(())
    }
}

impl std::fmt::Debug for RamDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RamDisk({} bytes)", self.size_bytes)
    }
}

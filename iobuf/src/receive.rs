//! Receive chunks, cut into slices and reused while they are hot.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Size of one receive chunk in bytes. 64 KiB costs 8 to 58 % more CPU for large transfers, and
/// 1 MiB gains nothing over this.
const CHUNK_BYTES: usize = 256 * 1024;

/// Below this much room a new chunk is started, so that one read can take a batch of small messages.
const ROOM_MIN_BYTES: usize = 16 * 1024;

/// Retired chunks that are kept in the hope that their slices are dropped soon; beyond this they
/// belong to their slices alone.
const RETIRED_MAX: usize = 32;

/// Where a socket's bytes arrive: read into [`ReceiveBuffer::room`], look at [`ReceiveBuffer::bytes`],
/// cut with [`ReceiveBuffer::take`].
///
/// Slices share the chunk. A chunk whose slices are all gone is filled again, so in steady state
/// nothing is allocated and the same memory stays in the cache.
#[derive(Debug, Default)]
pub struct ReceiveBuffer {
    current: BytesMut,
    retired: VecDeque<BytesMut>,
    /// Chunks that were made beforehand, `current` among them; 0: as many as it takes are made when needed.
    pool: usize,
}

impl ReceiveBuffer {
    /// An empty buffer; the first chunk is allocated by the first [`ReceiveBuffer::room`].
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A buffer that has at least `bytes` from the start, resident, in whole chunks; [`ReceiveBuffer::has_room`]
    /// tells whether some of them are free. For who must not ask for memory while it receives.
    #[must_use]
    pub fn with_pool(bytes: usize) -> Self {
        let pool = bytes.div_ceil(CHUNK_BYTES).max(2);
        let chunk = || {
            let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
            // Not with zeros: those would be the kernel's to give at the first touch.
            chunk.resize(CHUNK_BYTES, 0xa5);
            chunk.clear();
            chunk
        };
        Self {
            current: chunk(),
            retired: std::iter::repeat_with(chunk).take(pool - 1).collect(),
            pool,
        }
    }

    /// Whether [`ReceiveBuffer::room`] can be had of the pool. Always true without one.
    pub fn has_room(&mut self) -> bool {
        if self.pool == 0 {
            return true;
        }
        self.start_over();
        if self.room_left() >= ROOM_MIN_BYTES {
            return true;
        }
        let want = self.chunk_wanted();
        match self.reclaimable(want) {
            // Where it is looked for first the next time.
            Some(at) => {
                self.retired.swap(at, self.retired.len() - 1);
                true
            }
            None => false,
        }
    }

    /// Received bytes that were not taken yet; always contiguous.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.current
    }

    /// Number of received bytes that were not taken yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.current.len()
    }

    /// Whether every received byte was taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.current.is_empty()
    }

    /// Cuts off the first `len` bytes, sharing the chunk.
    ///
    /// # Panics
    /// If fewer than `len` bytes are there.
    pub fn take(&mut self, len: usize) -> Bytes {
        self.current.split_to(len).freeze()
    }

    /// Drops the first `len` bytes; for headers that were read in place.
    ///
    /// # Panics
    /// If fewer than `len` bytes are there.
    pub fn skip(&mut self, len: usize) {
        use bytes::Buf as _;
        self.current.advance(len);
    }

    /// Drops everything that was not taken.
    pub fn clear(&mut self) {
        self.skip(self.len());
    }

    /// The buffer to read into: append to it (`read_buf`); it has spare capacity of at least 16 KiB.
    ///
    /// Leftover bytes are moved to the new chunk when one is started; callers take all payload that
    /// has arrived before they ask for room, so what is left is a partial header.
    pub fn room(&mut self) -> &mut BytesMut {
        self.start_over();
        if self.room_left() < ROOM_MIN_BYTES {
            self.next_chunk();
        }
        &mut self.current
    }

    /// Appends received bytes by copy; for tests and for peers without sockets.
    pub fn extend(&mut self, bytes: &[u8]) {
        let mut left = bytes;
        while !left.is_empty() {
            if self.current.capacity() - self.current.len() < left.len().min(ROOM_MIN_BYTES) {
                self.next_chunk();
            }
            let n = left
                .len()
                .min((self.current.capacity() - self.current.len()).max(1));
            self.current.extend_from_slice(&left[..n]);
            left = &left[n..];
        }
    }

    /// A chunk of which no slice is left is filled from its start again, where the memory is in the cache.
    fn start_over(&mut self) {
        if self.current.is_empty() {
            let _ = self.current.try_reclaim(CHUNK_BYTES);
        }
    }

    fn room_left(&self) -> usize {
        self.current.capacity() - self.current.len()
    }

    /// What is unread must stay contiguous, so a new chunk has room for it and more.
    fn chunk_wanted(&self) -> usize {
        CHUNK_BYTES.max(self.current.len() + ROOM_MIN_BYTES)
    }

    fn next_chunk(&mut self) {
        let want = self.chunk_wanted();
        let mut next = match self.reclaimable(want) {
            Some(at) => self.retired.remove(at).expect("was just found"),
            None => BytesMut::with_capacity(want),
        };
        next.extend_from_slice(&self.current);
        let mut old = std::mem::replace(&mut self.current, next);
        old.clear();
        if self.retired.len() >= RETIRED_MAX.max(self.pool) {
            // Prefer young chunks: they are the warm ones.
            self.retired.pop_front();
        }
        self.retired.push_back(old);
    }

    /// A retired chunk that nobody refers to any more; the youngest one, which is most likely still in
    /// the cache. Taking the oldest would walk through all of them, and through the cache, in a circle.
    fn reclaimable(&mut self, want: usize) -> Option<usize> {
        self.retired
            .iter_mut()
            .rposition(|chunk| chunk.try_reclaim(want))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_without_slices_is_filled_again() {
        let mut buffer = ReceiveBuffer::new();
        let mut addresses = std::collections::HashSet::new();
        for _ in 0..64 {
            let room = buffer.room();
            addresses.insert(room.as_ptr() as usize / CHUNK_BYTES);
            let n = room.capacity() - room.len();
            room.resize(room.len() + n, 7);
            let len = buffer.len();
            drop(buffer.take(len));
        }
        assert!(
            addresses.len() <= 6,
            "{} places used for 64 fills",
            addresses.len()
        );
        assert!(buffer.retired.len() <= 2);
    }

    #[test]
    fn a_held_slice_keeps_its_bytes() {
        let mut buffer = ReceiveBuffer::new();
        let mut held = Vec::new();
        for i in 0..100u8 {
            let room = buffer.room();
            let n = room.capacity() - room.len();
            room.resize(room.len() + n, i);
            let len = buffer.len();
            held.push((i, buffer.take(len)));
        }
        assert!(held.iter().all(|(i, bytes)| bytes.iter().all(|b| b == i)));
        assert!(buffer.retired.len() <= RETIRED_MAX);
    }

    #[test]
    fn a_partial_header_moves_to_the_next_chunk() {
        let mut buffer = ReceiveBuffer::new();
        let total = CHUNK_BYTES + 100;
        let data: Vec<u8> = (0..total).map(|i| (i % 251) as u8).collect();
        buffer.extend(&data[..CHUNK_BYTES - 10]);
        buffer.skip(CHUNK_BYTES - 40);
        buffer.extend(&data[CHUNK_BYTES - 10..]);
        assert_eq!(buffer.bytes(), &data[CHUNK_BYTES - 40..]);
    }

    /// Fills the buffer and keeps what was read, as long as there is room in the pool.
    fn fill(buffer: &mut ReceiveBuffer) -> Vec<Bytes> {
        let mut held = Vec::new();
        while buffer.has_room() {
            let room = buffer.room();
            let n = room.capacity();
            room.resize(n, 1);
            held.push(buffer.take(n));
        }
        held
    }

    #[test]
    fn a_pool_is_all_there_is_until_a_slice_goes() {
        let mut buffer = ReceiveBuffer::with_pool(4 * CHUNK_BYTES);
        let mut held = fill(&mut buffer);
        assert_eq!(held.iter().map(Bytes::len).sum::<usize>(), 4 * CHUNK_BYTES);
        let addresses = |held: &[Bytes]| {
            let mut all: Vec<_> = held.iter().map(|bytes| bytes.as_ptr() as usize).collect();
            all.sort_unstable();
            all
        };
        let first = addresses(&held);
        let middle = held.remove(1);
        assert!(!buffer.has_room());
        drop(middle);
        assert_eq!(fill(&mut buffer).len(), 1, "one chunk is free");
        for _ in 0..10 {
            held.clear();
            held = fill(&mut buffer);
            assert_eq!(addresses(&held), first, "and the memory stays the same");
        }
    }

    #[test]
    fn who_needs_more_than_the_pool_can_have_it() {
        let mut buffer = ReceiveBuffer::with_pool(2 * CHUNK_BYTES);
        let held = fill(&mut buffer);
        assert!(!buffer.has_room());
        assert!(buffer.room().capacity() >= ROOM_MIN_BYTES);
        drop(held);
    }
}

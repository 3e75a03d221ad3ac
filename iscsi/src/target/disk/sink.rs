//! Where a disk puts what it reads.

use berth_iobuf::{Payload, ReceiveBuffer};
use bytes::Bytes;

use super::DiskError;

/// Collects read data: by reference where the disk has it in memory, else as slices of chunks that are
/// used again when the slices are gone: one copy from the disk and, in steady state, no allocation.
/// What is not mapped costs no copy either.
#[derive(Debug, Default)]
pub struct ReadSink {
    buffer: ReceiveBuffer,
    payload: Payload,
}

impl ReadSink {
    /// An empty sink.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a copy of `bytes`.
    pub fn put(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = self.buffer.room();
            let n = bytes.len().min(room.capacity() - room.len());
            room.extend_from_slice(&bytes[..n]);
            self.payload.push(self.buffer.take(n));
            bytes = &bytes[n..];
        }
    }

    /// Appends `bytes` by reference.
    pub fn put_shared(&mut self, bytes: Bytes) {
        self.payload.push(bytes);
    }

    /// Appends `len` zeroes.
    pub fn put_zeroes(&mut self, len: usize) {
        self.payload.append(Payload::zeroes(len));
    }

    /// Appends `len` bytes that `fill` reads, in pieces; `fill` is told where a piece starts.
    ///
    /// # Errors
    /// The first error of `fill`.
    pub fn fill(
        &mut self,
        len: usize,
        mut fill: impl FnMut(usize, &mut [u8]) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let mut done = 0;
        while done < len {
            let room = self.buffer.room();
            let start = room.len();
            let n = (len - done).min(room.capacity() - start);
            room.resize(start + n, 0);
            let result = fill(done, &mut room[start..]);
            let piece = self.buffer.take(n);
            result?;
            self.payload.push(piece);
            done += n;
        }
        Ok(())
    }

    /// Takes what was collected.
    pub fn take(&mut self) -> Payload {
        std::mem::take(&mut self.payload)
    }
}

//! What one socket shall send next.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::Bytes;

use crate::Payload;

/// Most slices handed to one vectored write; Linux refuses more than `UIO_MAXIOV` (1024).
const SLICES_MAX: usize = 1024;

/// Payload at or below this length is copied inline: copying is cheaper than one more slice.
const INLINE_PAYLOAD_MAX_BYTES: usize = 256;

#[derive(Debug)]
enum Segment {
    /// The next `len` bytes of the inline arena.
    Inline {
        len: usize,
    },
    Shared(Bytes),
}

/// Bytes to send, in order: headers are written inline into one arena, payload stays shared.
///
/// Neighbouring inline writes become one slice, so thirty-two read commands leave as one buffer.
#[derive(Debug, Default)]
pub struct SendQueue {
    arena: Vec<u8>,
    /// Start of the unsent part of the arena.
    arena_at: usize,
    segments: VecDeque<Segment>,
    len: usize,
}

impl SendQueue {
    /// An empty queue.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes not yet sent.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether everything was sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends a copy of `bytes`; meant for headers, digests and padding.
    pub fn put(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.arena.extend_from_slice(bytes);
        self.len += bytes.len();
        if let Some(Segment::Inline { len }) = self.segments.back_mut() {
            *len += bytes.len();
        } else {
            self.segments
                .push_back(Segment::Inline { len: bytes.len() });
        }
    }

    /// Appends `bytes` by reference (tiny ones are copied inline).
    pub fn put_shared(&mut self, bytes: Bytes) {
        if bytes.len() <= INLINE_PAYLOAD_MAX_BYTES {
            self.put(&bytes);
        } else {
            self.len += bytes.len();
            self.segments.push_back(Segment::Shared(bytes));
        }
    }

    /// Appends all bytes of `payload` by reference.
    pub fn put_payload(&mut self, payload: &Payload) {
        for segment in payload.segments() {
            self.put_shared(segment.clone());
        }
    }

    /// Fills `slices` with the next bytes to send, at most 1024 slices (`UIO_MAXIOV`).
    pub fn io_slices<'a>(&'a self, slices: &mut Vec<IoSlice<'a>>) {
        let mut at = self.arena_at;
        for segment in self.segments.iter().take(SLICES_MAX) {
            match segment {
                Segment::Inline { len } => {
                    slices.push(IoSlice::new(&self.arena[at..at + len]));
                    at += len;
                }
                Segment::Shared(bytes) => slices.push(IoSlice::new(bytes)),
            }
        }
    }

    /// Forgets the first `sent` bytes: they are on the wire.
    ///
    /// # Panics
    /// If `sent` is larger than [`SendQueue::len`].
    pub fn advance(&mut self, sent: usize) {
        assert!(sent <= self.len, "{sent} bytes sent of {}", self.len);
        self.len -= sent;
        let mut left = sent;
        while left > 0 {
            let segment = self
                .segments
                .front_mut()
                .expect("length counts the segments");
            match segment {
                Segment::Inline { len } => {
                    let n = left.min(*len);
                    self.arena_at += n;
                    *len -= n;
                    left -= n;
                    if *len > 0 {
                        break;
                    }
                }
                Segment::Shared(bytes) => {
                    if left < bytes.len() {
                        let _ = bytes.split_to(left);
                        break;
                    }
                    left -= bytes.len();
                }
            }
            self.segments.pop_front();
        }
        if self.segments.is_empty() {
            self.arena.clear();
            self.arena_at = 0;
        } else if self.arena_at > self.arena.len() / 2 && self.arena_at > 64 * 1024 {
            // A peer that never lets us drain completely must not grow the arena for ever.
            self.arena.drain(..self.arena_at);
            self.arena_at = 0;
        }
    }

    /// Forgets everything; for a connection that is gone.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// All unsent bytes as one vector; for tests and for peers without sockets.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut slices = Vec::new();
        let mut out = Vec::with_capacity(self.len);
        let mut at = self.arena_at;
        for segment in &self.segments {
            match segment {
                Segment::Inline { len } => {
                    out.extend_from_slice(&self.arena[at..at + len]);
                    at += len;
                }
                Segment::Shared(bytes) => slices.push(bytes),
            }
            for bytes in slices.drain(..) {
                out.extend_from_slice(bytes);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn neighbouring_headers_leave_as_one_slice() {
        let mut queue = SendQueue::new();
        queue.put(&[1; 48]);
        queue.put(&[2; 48]);
        queue.put_shared(Bytes::from(vec![3; 4096]));
        queue.put(&[4; 4]);
        let mut slices = Vec::new();
        queue.io_slices(&mut slices);
        assert_eq!(
            slices.iter().map(|s| s.len()).collect::<Vec<_>>(),
            [96, 4096, 4]
        );
    }

    proptest! {
        #[test]
        fn any_partial_writes_send_the_same_bytes(
            parts in proptest::collection::vec((any::<bool>(), proptest::collection::vec(any::<u8>(), 0..600)), 0..8),
            steps in proptest::collection::vec(1usize..700, 1..40),
        ) {
            let mut queue = SendQueue::new();
            let mut expected = Vec::new();
            for (inline, bytes) in parts {
                expected.extend_from_slice(&bytes);
                if inline { queue.put(&bytes) } else { queue.put_shared(Bytes::from(bytes)) }
            }
            prop_assert_eq!(queue.to_vec(), expected.clone());
            let mut sent = Vec::new();
            for step in steps.into_iter().cycle() {
                let mut slices = Vec::new();
                queue.io_slices(&mut slices);
                let flat: Vec<u8> = slices.iter().flat_map(|s| s.iter().copied()).collect();
                drop(slices);
                if flat.is_empty() { break }
                let n = step.min(flat.len());
                sent.extend_from_slice(&flat[..n]);
                queue.advance(n);
            }
            prop_assert!(queue.is_empty());
            prop_assert_eq!(sent, expected);
        }
    }
}

//! The data of one request as reference-counted slices.

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;

/// Length of the shared page of zeroes that [`Payload::zeroes`] refers to, in bytes.
const ZERO_PAGE_BYTES: usize = 64 * 1024;
static ZERO_PAGE: [u8; ZERO_PAGE_BYTES] = [0; ZERO_PAGE_BYTES];

/// A scatter list of reference-counted byte slices.
///
/// Cloning and slicing cost reference counts, never copies. Empty segments are not kept.
#[derive(Clone, Default)]
pub struct Payload {
    segments: SmallVec<[Bytes; 1]>,
    len: usize,
}

impl Payload {
    /// An empty payload.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// `len` zero bytes, without allocating them: all segments refer to one static page.
    #[must_use]
    pub fn zeroes(len: usize) -> Self {
        let mut payload = Self::new();
        let mut left = len;
        while left > 0 {
            let n = left.min(ZERO_PAGE_BYTES);
            payload.push(Bytes::from_static(&ZERO_PAGE[..n]));
            left -= n;
        }
        payload
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The slices in order; none is empty.
    #[must_use]
    pub fn segments(&self) -> &[Bytes] {
        &self.segments
    }

    /// Adds a slice at the end.
    pub fn push(&mut self, segment: Bytes) {
        if !segment.is_empty() {
            self.len += segment.len();
            self.segments.push(segment);
        }
    }

    /// Moves all slices of `other` to the end of this payload.
    pub fn append(&mut self, other: Self) {
        self.len += other.len;
        self.segments.extend(other.segments);
    }

    /// The bytes `offset..offset + len`, sharing storage.
    ///
    /// # Panics
    /// If the range is not inside the payload; callers validate ranges before they cut.
    #[must_use]
    pub fn slice(&self, offset: usize, len: usize) -> Self {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "slice {offset}+{len} of a payload of {} bytes",
            self.len
        );
        let mut out = Self::new();
        let mut skip = offset;
        let mut want = len;
        for segment in &self.segments {
            if want == 0 {
                break;
            }
            if skip >= segment.len() {
                skip -= segment.len();
                continue;
            }
            let n = want.min(segment.len() - skip);
            out.push(segment.slice(skip..skip + n));
            want -= n;
            skip = 0;
        }
        out
    }

    /// Copies all bytes to the start of `out`.
    ///
    /// # Panics
    /// If `out` is shorter than the payload.
    pub fn copy_to(&self, out: &mut [u8]) {
        let mut at = 0;
        for segment in &self.segments {
            out[at..at + segment.len()].copy_from_slice(segment);
            at += segment.len();
        }
    }

    /// The payload as one contiguous slice; copies only when there are several segments.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        match self.segments.as_slice() {
            [] => Bytes::new(),
            [one] => one.clone(),
            many => {
                let mut out = BytesMut::with_capacity(self.len);
                for segment in many {
                    out.extend_from_slice(segment);
                }
                out.freeze()
            }
        }
    }

    /// Whether every byte is zero.
    #[must_use]
    pub fn is_all_zero(&self) -> bool {
        self.segments.iter().all(|segment| {
            // Whole blocks are folded, so that the compiler can use vector registers; a search byte
            // by byte would cost more than sending the data.
            let (blocks, tail) = segment.as_chunks::<128>();
            blocks
                .iter()
                .all(|b| b.iter().fold(0, |any, byte| any | byte) == 0)
                && tail.iter().all(|byte| *byte == 0)
        })
    }
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Contents are user data and do not belong in logs.
        write!(
            f,
            "Payload({} bytes in {} segments)",
            self.len,
            self.segments.len()
        )
    }
}

impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len
            && self
                .segments
                .iter()
                .flat_map(|s| s.iter())
                .eq(other.segments.iter().flat_map(|s| s.iter()))
    }
}

impl Eq for Payload {}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        let mut payload = Self::new();
        payload.push(bytes);
        payload
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Self::from(Bytes::from(bytes))
    }
}

impl From<&'static [u8]> for Payload {
    fn from(bytes: &'static [u8]) -> Self {
        Self::from(Bytes::from_static(bytes))
    }
}

impl FromIterator<Bytes> for Payload {
    fn from_iter<I: IntoIterator<Item = Bytes>>(iter: I) -> Self {
        let mut payload = Self::new();
        for segment in iter {
            payload.push(segment);
        }
        payload
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn zeroes_span_pages_without_storage() {
        let payload = Payload::zeroes(ZERO_PAGE_BYTES * 2 + 5);
        assert_eq!(payload.len(), ZERO_PAGE_BYTES * 2 + 5);
        assert_eq!(payload.segments().len(), 3);
        assert!(payload.is_all_zero());
    }

    proptest! {
        #[test]
        fn slices_agree_with_a_flat_copy(
            parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 0..6),
            cut in any::<(prop::sample::Index, prop::sample::Index)>(),
        ) {
            let flat: Vec<u8> = parts.concat();
            let payload: Payload = parts.into_iter().map(Bytes::from).collect();
            prop_assert_eq!(payload.to_bytes(), &flat[..]);
            let (a, b) = (cut.0.index(flat.len() + 1), cut.1.index(flat.len() + 1));
            let (start, end) = (a.min(b), a.max(b));
            let slice = payload.slice(start, end - start);
            prop_assert_eq!(slice.to_bytes(), &flat[start..end]);
            let mut copy = vec![0xa5; end - start];
            slice.copy_to(&mut copy);
            prop_assert_eq!(&copy[..], &flat[start..end]);
        }
    }
}

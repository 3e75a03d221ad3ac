//! Payloads of structured and extended reply chunks (NBD `proto.md`, Structured reply types).

use berth_iobuf::SendQueue;

use super::reply::{ChunkType, Errno};
use super::{Cursor, STRING_MAX_BYTES, be32, be64};

/// Payload of an `OFFSET_HOLE` chunk: 12 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hole {
    /// Absolute offset in bytes.
    pub offset_bytes: u64,
    /// Length in bytes, not 0.
    pub len_bytes: u32,
}

impl Hole {
    /// Length on the wire.
    pub const BYTES: usize = 12;

    /// Parses the payload; `None` when it is not 12 bytes or the hole is empty.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        (bytes.len() == Self::BYTES && be32(bytes, 8) != 0).then(|| Self {
            offset_bytes: be64(bytes, 0),
            len_bytes: be32(bytes, 8),
        })
    }

    /// The payload's bytes.
    #[must_use]
    pub fn emit(&self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[0..8].copy_from_slice(&self.offset_bytes.to_be_bytes());
        out[8..12].copy_from_slice(&self.len_bytes.to_be_bytes());
        out
    }
}

/// Payload of an `ERROR` or `ERROR_OFFSET` chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorChunk {
    /// The error, not 0.
    pub errno: Errno,
    /// Text for people; may be empty.
    pub message: String,
    /// Where it happened (`ERROR_OFFSET` only), absolute, in bytes.
    pub offset_bytes: Option<u64>,
}

impl ErrorChunk {
    /// Parses the payload of an error chunk of any type: unknown types share the first two fields.
    /// `None` when lengths disagree or the error is 0. Text that is not UTF-8 is mended.
    #[must_use]
    pub fn parse(chunk_type: ChunkType, bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(bytes);
        let errno = Errno(cursor.u32()?);
        let len = usize::from(cursor.u16()?);
        let message = String::from_utf8_lossy(cursor.take(len)?).into_owned();
        let offset_bytes = match chunk_type {
            ChunkType::ERROR_OFFSET => Some(cursor.u64()?),
            _ => None,
        };
        let known = matches!(chunk_type, ChunkType::ERROR | ChunkType::ERROR_OFFSET);
        if errno == Errno::OK || (known && !cursor.rest().is_empty()) {
            return None;
        }
        Some(Self {
            errno,
            message,
            offset_bytes,
        })
    }

    /// The type that goes with this payload.
    #[must_use]
    pub fn chunk_type(&self) -> ChunkType {
        match self.offset_bytes {
            Some(_) => ChunkType::ERROR_OFFSET,
            None => ChunkType::ERROR,
        }
    }

    /// Appends the payload; a text above 4096 bytes is cut.
    pub fn emit(&self, out: &mut Vec<u8>) {
        emit_error(self.errno, &self.message, out);
        if let Some(offset) = self.offset_bytes {
            out.extend_from_slice(&offset.to_be_bytes());
        }
    }
}

/// Appends error and text, the payload of an `ERROR` chunk, without owning the text.
pub fn emit_error(errno: Errno, message: &str, out: &mut Vec<u8>) {
    let mut len = message.len().min(STRING_MAX_BYTES);
    while !message.is_char_boundary(len) {
        len -= 1;
    }
    out.extend_from_slice(&errno.0.to_be_bytes());
    out.extend_from_slice(&u16::try_from(len).expect("cut at 4096").to_be_bytes());
    out.extend_from_slice(&message.as_bytes()[..len]);
}

bitflags::bitflags! {
    /// State of an extent in `base:allocation`; 0 is always a safe answer.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct AllocationFlags: u32 {
        /// Not backed by storage.
        const HOLE = 1 << 0;
        /// Reads as zeroes.
        const ZERO = 1 << 1;
        const _ = !0;
    }
}

/// One extent of a block status reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusExtent {
    /// Length in bytes, not 0.
    pub len_bytes: u64,
    /// State.
    pub flags: AllocationFlags,
}

/// Payload of a `BLOCK_STATUS` or `BLOCK_STATUS_EXT` chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusChunk {
    /// Which context.
    pub context_id: u32,
    /// Extents in order, at least one.
    pub extents: Vec<StatusExtent>,
}

impl StatusChunk {
    /// Parses the payload of either type. `None` when lengths disagree, there is no extent, an
    /// extent is empty, or its state does not fit 32 bits.
    #[must_use]
    pub fn parse(chunk_type: ChunkType, bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(bytes);
        let context_id = cursor.u32()?;
        let wide = chunk_type == ChunkType::BLOCK_STATUS_EXT;
        let count = wide
            .then(|| cursor.u32())
            .map_or(Some(None), |n| n.map(Some))?;
        let mut extents = Vec::with_capacity(cursor.rest().len() / if wide { 16 } else { 8 });
        while !cursor.rest().is_empty() {
            let (len_bytes, flags) = if wide {
                (cursor.u64()?, u32::try_from(cursor.u64()?).ok()?)
            } else {
                (u64::from(cursor.u32()?), cursor.u32()?)
            };
            if len_bytes == 0 {
                return None;
            }
            let flags = AllocationFlags::from_bits_retain(flags);
            extents.push(StatusExtent { len_bytes, flags });
        }
        let counted = count.is_none_or(|n| n as usize == extents.len());
        (counted && !extents.is_empty()).then_some(Self {
            context_id,
            extents,
        })
    }

    /// Length of a payload with `count` extents, in bytes.
    #[must_use]
    pub const fn len_bytes(chunk_type: ChunkType, count: usize) -> usize {
        if chunk_type.0 == ChunkType::BLOCK_STATUS_EXT.0 {
            8 + 16 * count
        } else {
            4 + 8 * count
        }
    }

    /// Appends the payload in the form of `chunk_type`.
    ///
    /// # Panics
    /// If a length does not fit the 32 bits of a `BLOCK_STATUS` chunk.
    pub fn emit(&self, chunk_type: ChunkType, out: &mut SendQueue) {
        out.put(&self.context_id.to_be_bytes());
        if chunk_type == ChunkType::BLOCK_STATUS_EXT {
            let count = u32::try_from(self.extents.len()).expect("bounded by EXTENTS_MAX");
            out.put(&count.to_be_bytes());
            for extent in &self.extents {
                out.put(&extent.len_bytes.to_be_bytes());
                out.put(&u64::from(extent.flags.bits()).to_be_bytes());
            }
        } else {
            for extent in &self.extents {
                let len = u32::try_from(extent.len_bytes).expect("cut to 32 bits before");
                out.put(&len.to_be_bytes());
                out.put(&extent.flags.bits().to_be_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn emitted(emit: impl FnOnce(&mut SendQueue)) -> Vec<u8> {
        let mut out = SendQueue::new();
        emit(&mut out);
        out.to_vec()
    }

    #[test]
    fn hole_known_bytes() {
        let hole = Hole {
            offset_bytes: 0x200,
            len_bytes: 0x1000,
        };
        assert_eq!(hole.emit(), [0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0x10, 0]);
        assert_eq!(Hole::parse(&hole.emit()), Some(hole));
        assert_eq!(Hole::parse(&[0; 12]), None, "an empty hole is not a hole");
        assert_eq!(Hole::parse(&[1; 11]), None);
    }

    #[test]
    fn error_known_bytes() {
        let error = ErrorChunk {
            errno: Errno::EIO,
            message: "bad".into(),
            offset_bytes: Some(7),
        };
        let mut bytes = Vec::new();
        error.emit(&mut bytes);
        assert_eq!(
            bytes,
            [0, 0, 0, 5, 0, 3, b'b', b'a', b'd', 0, 0, 0, 0, 0, 0, 0, 7]
        );
        assert_eq!(
            ErrorChunk::parse(ChunkType::ERROR_OFFSET, &bytes),
            Some(error)
        );
        assert_eq!(
            ErrorChunk::parse(ChunkType::ERROR, &bytes),
            None,
            "eight bytes too many"
        );
        assert_eq!(
            ErrorChunk::parse(ChunkType::ERROR, &[0; 6]),
            None,
            "error 0 is no error"
        );
        assert!(
            ErrorChunk::parse(ChunkType(0x8123), &bytes).is_some(),
            "unknown error type"
        );
    }

    #[test]
    fn long_messages_are_cut_at_a_character() {
        let mut bytes = Vec::new();
        emit_error(Errno::EINVAL, &"ä".repeat(4000), &mut bytes);
        let parsed = ErrorChunk::parse(ChunkType::ERROR, &bytes).unwrap();
        assert_eq!(parsed.message, "ä".repeat(2048));
        let mut bytes = Vec::new();
        emit_error(Errno::EINVAL, &format!("x{}", "ä".repeat(4000)), &mut bytes);
        assert_eq!(
            ErrorChunk::parse(ChunkType::ERROR, &bytes)
                .unwrap()
                .message
                .len(),
            4095
        );
    }

    #[test]
    fn status_known_bytes() {
        let chunk = StatusChunk {
            context_id: 1,
            extents: vec![StatusExtent {
                len_bytes: 512,
                flags: AllocationFlags::HOLE,
            }],
        };
        let compact = emitted(|out| chunk.emit(ChunkType::BLOCK_STATUS, out));
        assert_eq!(compact, [0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 0, 1]);
        let wide = emitted(|out| chunk.emit(ChunkType::BLOCK_STATUS_EXT, out));
        assert_eq!(
            wide,
            [
                0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 1
            ]
        );
        assert_eq!(
            StatusChunk::parse(ChunkType::BLOCK_STATUS, &compact[..4]),
            None
        );
        assert_eq!(
            StatusChunk::parse(ChunkType::BLOCK_STATUS_EXT, &wide[..8]),
            None
        );
    }

    proptest! {
        #[test]
        fn errors_round_trip(errno in 1u32.., message in ".{0,300}", offset_bytes: Option<u64>) {
            let chunk = ErrorChunk { errno: Errno(errno), message, offset_bytes };
            let mut bytes = Vec::new();
            chunk.emit(&mut bytes);
            prop_assert_eq!(ErrorChunk::parse(chunk.chunk_type(), &bytes), Some(chunk));
        }

        #[test]
        fn statuses_round_trip(
            context_id: u32,
            extents in proptest::collection::vec((1..=u64::from(u32::MAX), any::<u32>()), 1..20),
        ) {
            let extents: Vec<_> = extents
                .into_iter()
                .map(|(len_bytes, flags)| StatusExtent {
                    len_bytes,
                    flags: AllocationFlags::from_bits_retain(flags),
                })
                .collect();
            let chunk = StatusChunk { context_id, extents };
            for chunk_type in [ChunkType::BLOCK_STATUS, ChunkType::BLOCK_STATUS_EXT] {
                let bytes = emitted(|out| chunk.emit(chunk_type, out));
                prop_assert_eq!(
                    bytes.len(),
                    StatusChunk::len_bytes(chunk_type, chunk.extents.len())
                );
                prop_assert_eq!(StatusChunk::parse(chunk_type, &bytes), Some(chunk.clone()));
            }
        }

        #[test]
        fn parsers_survive_anything(chunk_type: u16, bytes: Vec<u8>) {
            let chunk_type = ChunkType(chunk_type);
            let _ = ErrorChunk::parse(chunk_type, &bytes);
            let _ = StatusChunk::parse(chunk_type, &bytes);
            let _ = StatusChunk::parse(ChunkType::BLOCK_STATUS_EXT, &bytes);
            let _ = Hole::parse(&bytes);
        }

    }
}

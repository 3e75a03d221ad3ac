//! Replies: simple, structured and extended (NBD `proto.md`, Simple reply message, Structured reply
//! chunk message, Extended reply chunk message).

use berth_iobuf::SendQueue;

use super::{
    ChunkFlags, EXTENDED_REPLY_MAGIC, MagicError, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, be16,
    be32, be64,
};

/// Length of a simple reply header in bytes.
pub const SIMPLE_BYTES: usize = 16;
/// Length of a structured chunk header in bytes.
pub const STRUCTURED_BYTES: usize = 20;
/// Length of an extended chunk header in bytes.
pub const EXTENDED_BYTES: usize = 32;

/// An error number on the wire; 0 is success (`proto.md`, Error values).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub u32);

impl Errno {
    /// No error.
    pub const OK: Self = Self(0);
    /// Not permitted: the export is read-only.
    pub const EPERM: Self = Self(1);
    /// The medium failed.
    pub const EIO: Self = Self(5);
    /// Out of memory; never sent by us, we wait for memory instead.
    pub const ENOMEM: Self = Self(12);
    /// The request is not valid.
    pub const EINVAL: Self = Self(22);
    /// No space, or a write past the end.
    pub const ENOSPC: Self = Self(28);
    /// The answer does not fit.
    pub const EOVERFLOW: Self = Self(75);
    /// Not supported, or not fast.
    pub const ENOTSUP: Self = Self(95);
    /// The server is stopping; the client must disconnect.
    pub const ESHUTDOWN: Self = Self(108);
}

impl std::fmt::Debug for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match *self {
            Self::OK => "OK",
            Self::EPERM => "EPERM",
            Self::EIO => "EIO",
            Self::ENOMEM => "ENOMEM",
            Self::EINVAL => "EINVAL",
            Self::ENOSPC => "ENOSPC",
            Self::EOVERFLOW => "EOVERFLOW",
            Self::ENOTSUP => "ENOTSUP",
            Self::ESHUTDOWN => "ESHUTDOWN",
            Self(other) => return write!(f, "error {other}"),
        })
    }
}

/// A simple reply header; the data of a successful READ follows.
///
/// Bytes: 0 magic, 4 error, 8 cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimpleReply {
    /// 0 for success.
    pub errno: Errno,
    /// The cookie of the request.
    pub cookie: u64,
}

impl SimpleReply {
    /// Parses a header.
    ///
    /// # Errors
    /// If the magic number is wrong.
    ///
    /// # Panics
    /// If fewer than 16 bytes are given.
    pub fn parse(bytes: &[u8]) -> Result<Self, MagicError> {
        match be32(bytes, 0) {
            SIMPLE_REPLY_MAGIC => Ok(Self {
                errno: Errno(be32(bytes, 4)),
                cookie: be64(bytes, 8),
            }),
            other => Err(MagicError::Reply(other)),
        }
    }

    /// The header's bytes.
    #[must_use]
    pub fn emit(&self) -> [u8; SIMPLE_BYTES] {
        let mut out = [0; SIMPLE_BYTES];
        out[0..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        out[4..8].copy_from_slice(&self.errno.0.to_be_bytes());
        out[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        out
    }
}

/// What a chunk carries. Numbers with bit 15 set are errors.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChunkType(pub u16);

impl ChunkType {
    /// Nothing; must be the last chunk.
    pub const NONE: Self = Self(0);
    /// `u64` offset, then data.
    pub const OFFSET_DATA: Self = Self(1);
    /// `u64` offset, `u32` length of a range of zeroes.
    pub const OFFSET_HOLE: Self = Self(2);
    /// Context and extents of 32 bits.
    pub const BLOCK_STATUS: Self = Self(5);
    /// Context and extents of 64 bits; only with extended headers.
    pub const BLOCK_STATUS_EXT: Self = Self(6);
    /// An error and its text.
    pub const ERROR: Self = Self(0x8001);
    /// An error, its text and where it happened.
    pub const ERROR_OFFSET: Self = Self(0x8002);

    /// Whether this is an error chunk, known or not.
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.0 & 0x8000 != 0
    }
}

impl std::fmt::Debug for ChunkType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match *self {
            Self::NONE => "NONE",
            Self::OFFSET_DATA => "OFFSET_DATA",
            Self::OFFSET_HOLE => "OFFSET_HOLE",
            Self::BLOCK_STATUS => "BLOCK_STATUS",
            Self::BLOCK_STATUS_EXT => "BLOCK_STATUS_EXT",
            Self::ERROR => "ERROR",
            Self::ERROR_OFFSET => "ERROR_OFFSET",
            Self(other) => return write!(f, "ChunkType({other:#x})"),
        })
    }
}

/// A chunk header, structured (20 bytes) or extended (32 bytes).
///
/// | structured | extended | field |
/// |---|---|---|
/// | 0 | 0 | magic |
/// | 4 | 4 | flags |
/// | 6 | 6 | type |
/// | 8 | 8 | cookie |
/// | - | 16 | offset of the request |
/// | 16, 4 bytes | 24, 8 bytes | payload length |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkHeader {
    /// Flags, unknown bits included.
    pub flags: ChunkFlags,
    /// What the payload is.
    pub chunk_type: ChunkType,
    /// The cookie of the request.
    pub cookie: u64,
    /// Offset of the request in bytes; not on the wire in structured form, 0 after parsing one.
    pub offset_bytes: u64,
    /// Length of the payload in bytes.
    pub len_bytes: u64,
}

impl ChunkHeader {
    /// Parses a structured chunk header.
    ///
    /// # Errors
    /// If the magic number is wrong.
    ///
    /// # Panics
    /// If fewer than 20 bytes are given.
    pub fn parse_structured(bytes: &[u8]) -> Result<Self, MagicError> {
        match be32(bytes, 0) {
            STRUCTURED_REPLY_MAGIC => Ok(Self {
                flags: ChunkFlags::from_bits_retain(be16(bytes, 4)),
                chunk_type: ChunkType(be16(bytes, 6)),
                cookie: be64(bytes, 8),
                offset_bytes: 0,
                len_bytes: u64::from(be32(bytes, 16)),
            }),
            other => Err(MagicError::Reply(other)),
        }
    }

    /// Parses an extended chunk header.
    ///
    /// # Errors
    /// If the magic number is wrong.
    ///
    /// # Panics
    /// If fewer than 32 bytes are given.
    pub fn parse_extended(bytes: &[u8]) -> Result<Self, MagicError> {
        match be32(bytes, 0) {
            EXTENDED_REPLY_MAGIC => Ok(Self {
                flags: ChunkFlags::from_bits_retain(be16(bytes, 4)),
                chunk_type: ChunkType(be16(bytes, 6)),
                cookie: be64(bytes, 8),
                offset_bytes: be64(bytes, 16),
                len_bytes: be64(bytes, 24),
            }),
            other => Err(MagicError::Reply(other)),
        }
    }

    /// Appends the structured form.
    ///
    /// # Panics
    /// If the payload length does not fit 32 bits; our bounds keep it far below.
    pub fn emit_structured(&self, out: &mut SendQueue) {
        let len = u32::try_from(self.len_bytes).expect("payload bounds are below 4 GiB");
        let mut bytes = [0; STRUCTURED_BYTES];
        self.emit_fields(&mut bytes, STRUCTURED_REPLY_MAGIC);
        bytes[16..20].copy_from_slice(&len.to_be_bytes());
        out.put(&bytes);
    }

    /// Appends the extended form.
    pub fn emit_extended(&self, out: &mut SendQueue) {
        let mut bytes = [0; EXTENDED_BYTES];
        self.emit_fields(&mut bytes, EXTENDED_REPLY_MAGIC);
        bytes[16..24].copy_from_slice(&self.offset_bytes.to_be_bytes());
        bytes[24..32].copy_from_slice(&self.len_bytes.to_be_bytes());
        out.put(&bytes);
    }

    fn emit_fields(&self, out: &mut [u8], magic: u32) {
        out[0..4].copy_from_slice(&magic.to_be_bytes());
        out[4..6].copy_from_slice(&self.flags.bits().to_be_bytes());
        out[6..8].copy_from_slice(&self.chunk_type.0.to_be_bytes());
        out[8..16].copy_from_slice(&self.cookie.to_be_bytes());
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
    fn simple_known_bytes() {
        let reply = SimpleReply {
            errno: Errno::ENOSPC,
            cookie: 0xab,
        };
        let bytes = [
            0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 0, 0, 0, 0, 0, 0, 0, 0xab,
        ];
        assert_eq!(reply.emit(), bytes);
        assert_eq!(SimpleReply::parse(&bytes), Ok(reply));
        assert_eq!(
            SimpleReply::parse(&[0; 16]),
            Err(MagicError::Reply(0)),
            "zeroes are no reply"
        );
    }

    #[test]
    fn structured_known_bytes() {
        let header = ChunkHeader {
            flags: ChunkFlags::DONE,
            chunk_type: ChunkType::OFFSET_DATA,
            cookie: 2,
            offset_bytes: 0,
            len_bytes: 0x1008,
        };
        let bytes = emitted(|out| header.emit_structured(out));
        assert_eq!(
            bytes,
            [
                0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0x10, 8
            ]
        );
        assert_eq!(ChunkHeader::parse_structured(&bytes), Ok(header));
        assert!(ChunkHeader::parse_extended(&[0; 32]).is_err());
    }

    #[test]
    fn extended_known_bytes() {
        let header = ChunkHeader {
            flags: ChunkFlags::empty(),
            chunk_type: ChunkType::ERROR,
            cookie: 2,
            offset_bytes: 3,
            len_bytes: 4,
        };
        let bytes = emitted(|out| header.emit_extended(out));
        let mut expected = vec![0x6e, 0x8a, 0x27, 0x8c, 0, 0, 0x80, 1];
        for number in [2u64, 3, 4] {
            expected.extend_from_slice(&number.to_be_bytes());
        }
        assert_eq!(bytes, expected);
        assert_eq!(ChunkHeader::parse_extended(&bytes), Ok(header));
    }

    proptest! {
        #[test]
        fn chunk_headers_round_trip(
            flags: u16, chunk_type: u16, cookie: u64, offset_bytes: u64, len_bytes: u64,
        ) {
            let header = ChunkHeader {
                flags: ChunkFlags::from_bits_retain(flags),
                chunk_type: ChunkType(chunk_type),
                cookie,
                offset_bytes,
                len_bytes,
            };
            let bytes = emitted(|out| header.emit_extended(out));
            prop_assert_eq!(ChunkHeader::parse_extended(&bytes), Ok(header));
            let short = ChunkHeader { offset_bytes: 0, len_bytes: len_bytes >> 32, ..header };
            let bytes = emitted(|out| short.emit_structured(out));
            prop_assert_eq!(ChunkHeader::parse_structured(&bytes), Ok(short));
        }
    }
}

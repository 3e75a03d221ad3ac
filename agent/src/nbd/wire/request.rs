//! Request headers (NBD `proto.md`, Request message).

use super::{CommandFlags, EXTENDED_REQUEST_MAGIC, MagicError, REQUEST_MAGIC, be16, be32, be64};

/// Length of a compact request header in bytes.
pub const COMPACT_BYTES: usize = 28;
/// Length of an extended request header in bytes.
pub const EXTENDED_BYTES: usize = 32;

/// What a request asks for. An open set: unknown numbers are answered with `EINVAL`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Command(pub u16);

impl Command {
    /// Read; the length is what comes back.
    pub const READ: Self = Self(0);
    /// Write; the length is that of the payload.
    pub const WRITE: Self = Self(1);
    /// End of the connection, without a reply.
    pub const DISC: Self = Self(2);
    /// Make durable what was answered before.
    pub const FLUSH: Self = Self(3);
    /// The range is no longer needed.
    pub const TRIM: Self = Self(4);
    /// Prefetch hint.
    pub const CACHE: Self = Self(5);
    /// The range shall read as zeroes.
    pub const WRITE_ZEROES: Self = Self(6);
    /// How the range is provisioned.
    pub const BLOCK_STATUS: Self = Self(7);
    /// Experimental; not served.
    pub const RESIZE: Self = Self(8);
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match *self {
            Self::READ => "READ",
            Self::WRITE => "WRITE",
            Self::DISC => "DISC",
            Self::FLUSH => "FLUSH",
            Self::TRIM => "TRIM",
            Self::CACHE => "CACHE",
            Self::WRITE_ZEROES => "WRITE_ZEROES",
            Self::BLOCK_STATUS => "BLOCK_STATUS",
            Self::RESIZE => "RESIZE",
            Self(other) => return write!(f, "Command({other})"),
        })
    }
}

/// A request header, compact (28 bytes) or extended (32 bytes).
///
/// | compact | extended | field |
/// |---|---|---|
/// | 0 | 0 | magic |
/// | 4 | 4 | flags |
/// | 6 | 6 | command |
/// | 8 | 8 | cookie |
/// | 16 | 16 | offset |
/// | 24, 4 bytes | 24, 8 bytes | length |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestHeader {
    /// Flags, unknown bits included.
    pub flags: CommandFlags,
    /// What is asked for.
    pub command: Command,
    /// Chosen by the client, returned unchanged.
    pub cookie: u64,
    /// Start of the range in bytes.
    pub offset_bytes: u64,
    /// Length of the range, or of the payload, in bytes.
    pub len_bytes: u64,
}

impl RequestHeader {
    /// Parses a compact header.
    ///
    /// # Errors
    /// If the magic number is wrong: the stream is lost.
    ///
    /// # Panics
    /// If fewer than 28 bytes are given.
    pub fn parse_compact(bytes: &[u8]) -> Result<Self, MagicError> {
        Self::expect_magic(bytes, REQUEST_MAGIC)?;
        Ok(Self::parse_fields(bytes, u64::from(be32(bytes, 24))))
    }

    /// Parses an extended header.
    ///
    /// # Errors
    /// If the magic number is wrong: the stream is lost.
    ///
    /// # Panics
    /// If fewer than 32 bytes are given.
    pub fn parse_extended(bytes: &[u8]) -> Result<Self, MagicError> {
        Self::expect_magic(bytes, EXTENDED_REQUEST_MAGIC)?;
        Ok(Self::parse_fields(bytes, be64(bytes, 24)))
    }

    fn expect_magic(bytes: &[u8], expected: u32) -> Result<(), MagicError> {
        match be32(bytes, 0) {
            found if found == expected => Ok(()),
            found => Err(MagicError::Request { found, expected }),
        }
    }

    fn parse_fields(bytes: &[u8], len_bytes: u64) -> Self {
        Self {
            flags: CommandFlags::from_bits_retain(be16(bytes, 4)),
            command: Command(be16(bytes, 6)),
            cookie: be64(bytes, 8),
            offset_bytes: be64(bytes, 16),
            len_bytes,
        }
    }

    /// The header in compact form; `None` when the length does not fit 32 bits.
    #[must_use]
    pub fn emit_compact(&self) -> Option<[u8; COMPACT_BYTES]> {
        let len = u32::try_from(self.len_bytes).ok()?;
        let mut out = [0; COMPACT_BYTES];
        self.emit_fields(&mut out, REQUEST_MAGIC);
        out[24..28].copy_from_slice(&len.to_be_bytes());
        Some(out)
    }

    /// The header in extended form.
    #[must_use]
    pub fn emit_extended(&self) -> [u8; EXTENDED_BYTES] {
        let mut out = [0; EXTENDED_BYTES];
        self.emit_fields(&mut out, EXTENDED_REQUEST_MAGIC);
        out[24..32].copy_from_slice(&self.len_bytes.to_be_bytes());
        out
    }

    fn emit_fields(&self, out: &mut [u8], magic: u32) {
        out[0..4].copy_from_slice(&magic.to_be_bytes());
        out[4..6].copy_from_slice(&self.flags.bits().to_be_bytes());
        out[6..8].copy_from_slice(&self.command.0.to_be_bytes());
        out[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        out[16..24].copy_from_slice(&self.offset_bytes.to_be_bytes());
    }
}

/// The payload of a BLOCK_STATUS request with a list of contexts: 8 + 4n bytes (`proto.md`,
/// `NBD_FLAG_BLOCK_STATUS_PAYLOAD`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusPayload {
    /// Length of the range in bytes; the header's length is that of the payload.
    pub effect_len_bytes: u64,
    /// Context numbers, in the order sent.
    pub context_ids: Vec<u32>,
}

impl StatusPayload {
    /// Parses the payload; `None` when its length is not 8 + 4n.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (head, ids) = bytes.split_at_checked(8)?;
        let (ids, rest) = ids.as_chunks::<4>();
        rest.is_empty().then(|| Self {
            effect_len_bytes: be64(head, 0),
            context_ids: ids.iter().map(|id| u32::from_be_bytes(*id)).collect(),
        })
    }

    /// Appends the payload.
    pub fn emit(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.effect_len_bytes.to_be_bytes());
        for id in &self.context_ids {
            out.extend_from_slice(&id.to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const COMPACT: [u8; 28] = [
        0x25, 0x60, 0x95, 0x13, 0x00, 0x01, 0x00, 0x01, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0,
        0x10, 0, 0, 0, 2, 0,
    ];

    #[test]
    fn compact_known_bytes() {
        let header = RequestHeader::parse_compact(&COMPACT).unwrap();
        assert_eq!(
            header,
            RequestHeader {
                flags: CommandFlags::FUA,
                command: Command::WRITE,
                cookie: 0x0102_0304_0506_0708,
                offset_bytes: 4096,
                len_bytes: 512,
            }
        );
        assert_eq!(header.emit_compact(), Some(COMPACT));
    }

    #[test]
    fn extended_known_bytes() {
        let mut bytes = vec![0x21, 0xe4, 0x1c, 0x71, 0x00, 0x20, 0x00, 0x07];
        bytes.extend_from_slice(&[9; 8]);
        bytes.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0x10, 0]);
        bytes.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0]);
        let header = RequestHeader::parse_extended(&bytes).unwrap();
        assert_eq!(header.flags, CommandFlags::PAYLOAD_LEN);
        assert_eq!(header.command, Command::BLOCK_STATUS);
        assert_eq!(header.len_bytes, 1 << 32);
        assert_eq!(&header.emit_extended()[..], &bytes[..]);
        assert_eq!(header.emit_compact(), None, "4 GiB needs extended headers");
    }

    #[test]
    fn a_wrong_magic_names_both_numbers() {
        let mut bytes = COMPACT;
        bytes[3] = 0x14;
        assert_eq!(
            RequestHeader::parse_compact(&bytes)
                .unwrap_err()
                .to_string(),
            "request starts with 0x25609514, not with 0x25609513"
        );
    }

    #[test]
    fn status_payload_length_is_checked() {
        let payload = StatusPayload {
            effect_len_bytes: 77,
            context_ids: vec![1, 9],
        };
        let mut bytes = Vec::new();
        payload.emit(&mut bytes);
        assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 0, 77, 0, 0, 0, 1, 0, 0, 0, 9]);
        assert_eq!(StatusPayload::parse(&bytes), Some(payload));
        assert_eq!(StatusPayload::parse(&bytes[..15]), None);
        assert_eq!(StatusPayload::parse(&bytes[..7]), None);
    }

    proptest! {
        #[test]
        fn headers_round_trip(
            flags: u16, command: u16, cookie: u64, offset_bytes: u64, len_bytes: u64,
        ) {
            let header = RequestHeader {
                flags: CommandFlags::from_bits_retain(flags),
                command: Command(command),
                cookie,
                offset_bytes,
                len_bytes,
            };
            prop_assert_eq!(RequestHeader::parse_extended(&header.emit_extended()), Ok(header));
            let short = RequestHeader { len_bytes: len_bytes & 0xffff_ffff, ..header };
            let bytes = short.emit_compact().unwrap();
            prop_assert_eq!(RequestHeader::parse_compact(&bytes), Ok(short));
        }

        #[test]
        fn status_payloads_round_trip(effect_len_bytes: u64, context_ids: Vec<u32>) {
            let payload = StatusPayload { effect_len_bytes, context_ids };
            let mut bytes = Vec::new();
            payload.emit(&mut bytes);
            prop_assert_eq!(StatusPayload::parse(&bytes), Some(payload));
        }
    }
}

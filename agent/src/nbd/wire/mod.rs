//! Messages of the NBD protocol (NBD `proto.md`), all numbers big-endian.
//!
//! - this file: magic numbers, flags and bounds;
//! - [`option`]: handshake: greeting, options and their replies;
//! - [`request`]: request headers of the transmission phase;
//! - [`reply`]: simple replies, headers of structured and extended chunks, error numbers;
//! - [`chunk`]: what chunks carry.

pub mod chunk;
pub mod option;
pub mod reply;
pub mod request;

/// First eight bytes of a server: `NBDMAGIC`.
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Announces newstyle negotiation and starts every option: `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Starts every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Starts a compact request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Starts a request with extended headers.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Starts a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Starts a structured reply chunk.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// Starts a reply chunk with extended headers.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Longest string (export name, meta context, message) in bytes (`proto.md`, Values).
pub const STRING_MAX_BYTES: usize = 4096;
/// Longest payload of a request or a read in bytes; what every portable client may assume to work.
pub const PAYLOAD_MAX_BYTES: u32 = 32 * 1024 * 1024;
/// Most extents of one block status chunk.
pub const EXTENTS_MAX: usize = 1 << 20;
/// Zeroes after the answer to `EXPORT_NAME`, unless both sides agreed to leave them out.
pub const EXPORT_NAME_PADDING_BYTES: usize = 124;
/// The one meta context that the protocol itself defines.
pub const BASE_ALLOCATION: &str = "base:allocation";

bitflags::bitflags! {
    /// Handshake flags, in the server's greeting.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct HandshakeFlags: u16 {
        /// Fixed newstyle: errors have replies, options may follow each other.
        const FIXED_NEWSTYLE = 1 << 0;
        /// The padding after `EXPORT_NAME` may be left out.
        const NO_ZEROES = 1 << 1;
    }

    /// Client flags, the answer to [`HandshakeFlags`].
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct ClientFlags: u32 {
        /// The client speaks fixed newstyle.
        const FIXED_NEWSTYLE = 1 << 0;
        /// The client does not want the padding after `EXPORT_NAME`.
        const NO_ZEROES = 1 << 1;
    }

    /// Transmission flags: what an export can do.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct TransmissionFlags: u16 {
        /// Always set.
        const HAS_FLAGS = 1 << 0;
        /// Writing commands fail.
        const READ_ONLY = 1 << 1;
        /// FLUSH is understood.
        const SEND_FLUSH = 1 << 2;
        /// The FUA flag is understood on every command.
        const SEND_FUA = 1 << 3;
        /// Spinning medium.
        const ROTATIONAL = 1 << 4;
        /// TRIM is understood.
        const SEND_TRIM = 1 << 5;
        /// WRITE_ZEROES is understood.
        const SEND_WRITE_ZEROES = 1 << 6;
        /// The DF flag of READ is understood; needs structured or extended replies.
        const SEND_DF = 1 << 7;
        /// A flush on one connection covers all; reads see what other connections wrote.
        const CAN_MULTI_CONN = 1 << 8;
        /// Experimental RESIZE; never set by us.
        const SEND_RESIZE = 1 << 9;
        /// CACHE is understood.
        const SEND_CACHE = 1 << 10;
        /// The FAST_ZERO flag of WRITE_ZEROES is understood.
        const SEND_FAST_ZERO = 1 << 11;
        /// BLOCK_STATUS may carry a list of contexts; needs extended headers.
        const BLOCK_STATUS_PAYLOAD = 1 << 12;
    }

    /// Flags of one request.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct CommandFlags: u16 {
        /// Answer only when the data of this command is durable.
        const FUA = 1 << 0;
        /// WRITE_ZEROES: do not give space back.
        const NO_HOLE = 1 << 1;
        /// READ: at most one content chunk.
        const DF = 1 << 2;
        /// BLOCK_STATUS: one extent per context, not longer than asked.
        const REQ_ONE = 1 << 3;
        /// WRITE_ZEROES: fail at once rather than write zeroes slowly.
        const FAST_ZERO = 1 << 4;
        /// The length is that of a payload (extended headers).
        const PAYLOAD_LEN = 1 << 5;
        // What the peer sends stays visible, so that an unknown flag can be refused.
        const _ = !0;
    }

    /// Flags of one reply chunk.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct ChunkFlags: u16 {
        /// The last chunk of its reply.
        const DONE = 1 << 0;
        const _ = !0;
    }
}

/// A message that breaks the protocol so that the byte stream cannot be trusted any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MagicError {
    /// An option does not start with `IHAVEOPT`.
    #[error("option starts with {0:#018x}, not with IHAVEOPT")]
    Option(u64),
    /// An option reply does not start with its magic number.
    #[error("option reply starts with {0:#018x}, not with 0x0003e889045565a9")]
    OptionReply(u64),
    /// A server does not start with `NBDMAGIC`.
    #[error("server starts with {0:#018x}, not with NBDMAGIC")]
    Init(u64),
    /// A server does not speak newstyle negotiation.
    #[error("server speaks oldstyle or unknown negotiation {0:#018x}; newstyle is needed")]
    Style(u64),
    /// A request does not start with the magic number that was agreed.
    #[error("request starts with {found:#010x}, not with {expected:#010x}")]
    Request {
        /// What came.
        found: u32,
        /// What the negotiated header style asks for.
        expected: u32,
    },
    /// A reply does not start with a magic number that was agreed.
    #[error("reply starts with {0:#010x}, which was not agreed")]
    Reply(u32),
}

/// The two bytes at `at`.
pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

/// The four bytes at `at`.
pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

/// The eight bytes at `at`.
pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array(bytes, at))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N]
        .try_into()
        .expect("the slice has the length of the array")
}

/// Reads fields of variable messages in order; every read says whether the bytes were there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(head)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|b| be16(b, 0))
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.take(4).map(|b| be32(b, 0))
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.take(8).map(|b| be64(b, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn magic_numbers_are_their_texts() {
        assert_eq!(&INIT_MAGIC.to_be_bytes(), b"NBDMAGIC");
        assert_eq!(&OPTION_MAGIC.to_be_bytes(), b"IHAVEOPT");
    }

    #[test]
    fn unknown_command_flags_stay_visible() {
        let flags = CommandFlags::from_bits_retain(0x8001);
        assert!(flags.contains(CommandFlags::FUA));
        assert!(!CommandFlags::FUA.contains(flags));
    }

    #[test]
    fn a_cursor_never_reads_past_the_end() {
        let mut cursor = Cursor::new(&[0, 1, 2, 3, 4]);
        assert_eq!(cursor.u32(), Some(0x0001_0203));
        assert_eq!(cursor.u16(), None);
        assert_eq!(cursor.rest(), &[4]);
        assert_eq!(cursor.u64(), None);
    }
}

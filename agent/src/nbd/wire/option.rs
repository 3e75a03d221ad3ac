//! Handshake messages: greeting, options and their replies (NBD `proto.md`, Newstyle negotiation,
//! Option types, Option reply types).

use super::{
    Cursor, HandshakeFlags, INIT_MAGIC, MagicError, OPTION_MAGIC, OPTION_REPLY_MAGIC,
    STRING_MAX_BYTES, TransmissionFlags, be16, be32, be64,
};

/// Length of the server's greeting in bytes.
pub const GREETING_BYTES: usize = 18;
/// Length of an option header in bytes.
pub const OPTION_BYTES: usize = 16;
/// Length of an option reply header in bytes.
pub const OPTION_REPLY_BYTES: usize = 20;

/// The server's greeting: `NBDMAGIC`, `IHAVEOPT`, handshake flags.
#[must_use]
pub fn emit_greeting(flags: HandshakeFlags) -> [u8; GREETING_BYTES] {
    let mut out = [0; GREETING_BYTES];
    out[0..8].copy_from_slice(&INIT_MAGIC.to_be_bytes());
    out[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    out[16..18].copy_from_slice(&flags.bits().to_be_bytes());
    out
}

/// Parses a server's greeting; unknown flags are kept.
///
/// # Errors
/// If it is not an NBD server, or one that speaks only oldstyle.
///
/// # Panics
/// If fewer than 18 bytes are given.
pub fn parse_greeting(bytes: &[u8]) -> Result<HandshakeFlags, MagicError> {
    if be64(bytes, 0) != INIT_MAGIC {
        return Err(MagicError::Init(be64(bytes, 0)));
    }
    if be64(bytes, 8) != OPTION_MAGIC {
        return Err(MagicError::Style(be64(bytes, 8)));
    }
    Ok(HandshakeFlags::from_bits_retain(be16(bytes, 16)))
}

/// An option's number. An open set: unknown ones are answered with `ERR_UNSUP`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct OptionType(pub u32);

impl OptionType {
    /// Choose an export, without a way to say no.
    pub const EXPORT_NAME: Self = Self(1);
    /// End the negotiation.
    pub const ABORT: Self = Self(2);
    /// List the exports.
    pub const LIST: Self = Self(3);
    /// Withdrawn.
    pub const PEEK_EXPORT: Self = Self(4);
    /// Upgrade to TLS.
    pub const STARTTLS: Self = Self(5);
    /// Ask about an export.
    pub const INFO: Self = Self(6);
    /// Choose an export.
    pub const GO: Self = Self(7);
    /// Ask for structured replies.
    pub const STRUCTURED_REPLY: Self = Self(8);
    /// List meta contexts.
    pub const LIST_META_CONTEXT: Self = Self(9);
    /// Choose meta contexts.
    pub const SET_META_CONTEXT: Self = Self(10);
    /// Ask for extended headers.
    pub const EXTENDED_HEADERS: Self = Self(11);
}

impl std::fmt::Debug for OptionType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Display for OptionType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match *self {
            Self::EXPORT_NAME => "EXPORT_NAME",
            Self::ABORT => "ABORT",
            Self::LIST => "LIST",
            Self::PEEK_EXPORT => "PEEK_EXPORT",
            Self::STARTTLS => "STARTTLS",
            Self::INFO => "INFO",
            Self::GO => "GO",
            Self::STRUCTURED_REPLY => "STRUCTURED_REPLY",
            Self::LIST_META_CONTEXT => "LIST_META_CONTEXT",
            Self::SET_META_CONTEXT => "SET_META_CONTEXT",
            Self::EXTENDED_HEADERS => "EXTENDED_HEADERS",
            Self(other) => return write!(f, "option {other}"),
        })
    }
}

/// An option header: 0 `IHAVEOPT`, 8 option, 12 length of the data that follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHeader {
    /// Which option.
    pub option: OptionType,
    /// Length of its data in bytes.
    pub len_bytes: u32,
}

impl OptionHeader {
    /// Parses a header.
    ///
    /// # Errors
    /// If the magic number is wrong: the stream is lost.
    ///
    /// # Panics
    /// If fewer than 16 bytes are given.
    pub fn parse(bytes: &[u8]) -> Result<Self, MagicError> {
        match be64(bytes, 0) {
            OPTION_MAGIC => Ok(Self {
                option: OptionType(be32(bytes, 8)),
                len_bytes: be32(bytes, 12),
            }),
            other => Err(MagicError::Option(other)),
        }
    }

    /// The header's bytes.
    #[must_use]
    pub fn emit(&self) -> [u8; OPTION_BYTES] {
        let mut out = [0; OPTION_BYTES];
        out[0..8].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        out[8..12].copy_from_slice(&self.option.0.to_be_bytes());
        out[12..16].copy_from_slice(&self.len_bytes.to_be_bytes());
        out
    }
}

/// The kind of a reply to an option. Numbers with bit 31 set are errors.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReplyType(pub u32);

impl ReplyType {
    const ERROR_BIT: u32 = 1 << 31;
    /// Done.
    pub const ACK: Self = Self(1);
    /// One export of a list.
    pub const SERVER: Self = Self(2);
    /// One piece of information.
    pub const INFO: Self = Self(3);
    /// One meta context.
    pub const META_CONTEXT: Self = Self(4);
    /// The option is not known.
    pub const ERR_UNSUP: Self = Self(Self::ERROR_BIT + 1);
    /// Not allowed here.
    pub const ERR_POLICY: Self = Self(Self::ERROR_BIT + 2);
    /// Malformed, or wrong in this state.
    pub const ERR_INVALID: Self = Self(Self::ERROR_BIT + 3);
    /// Not in this build.
    pub const ERR_PLATFORM: Self = Self(Self::ERROR_BIT + 4);
    /// TLS first.
    pub const ERR_TLS_REQD: Self = Self(Self::ERROR_BIT + 5);
    /// No such export.
    pub const ERR_UNKNOWN: Self = Self(Self::ERROR_BIT + 6);
    /// The server is stopping.
    pub const ERR_SHUTDOWN: Self = Self(Self::ERROR_BIT + 7);
    /// Ask for the block size.
    pub const ERR_BLOCK_SIZE_REQD: Self = Self(Self::ERROR_BIT + 8);
    /// The option, or its answer, is too large.
    pub const ERR_TOO_BIG: Self = Self(Self::ERROR_BIT + 9);
    /// Extended headers are on, or needed.
    pub const ERR_EXT_HEADER_REQD: Self = Self(Self::ERROR_BIT + 10);

    /// Whether this is an error, known or not.
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.0 & Self::ERROR_BIT != 0
    }
}

impl std::fmt::Debug for ReplyType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Display for ReplyType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match *self {
            Self::ACK => "ACK",
            Self::SERVER => "SERVER",
            Self::INFO => "INFO",
            Self::META_CONTEXT => "META_CONTEXT",
            Self::ERR_UNSUP => "ERR_UNSUP",
            Self::ERR_POLICY => "ERR_POLICY",
            Self::ERR_INVALID => "ERR_INVALID",
            Self::ERR_PLATFORM => "ERR_PLATFORM",
            Self::ERR_TLS_REQD => "ERR_TLS_REQD",
            Self::ERR_UNKNOWN => "ERR_UNKNOWN",
            Self::ERR_SHUTDOWN => "ERR_SHUTDOWN",
            Self::ERR_BLOCK_SIZE_REQD => "ERR_BLOCK_SIZE_REQD",
            Self::ERR_TOO_BIG => "ERR_TOO_BIG",
            Self::ERR_EXT_HEADER_REQD => "ERR_EXT_HEADER_REQD",
            Self(other) => return write!(f, "reply {other:#x}"),
        })
    }
}

/// An option reply header: 0 magic, 8 option, 12 reply type, 16 length of the data that follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionReplyHeader {
    /// The option that is answered.
    pub option: OptionType,
    /// What the answer is.
    pub reply: ReplyType,
    /// Length of its data in bytes.
    pub len_bytes: u32,
}

impl OptionReplyHeader {
    /// Parses a header.
    ///
    /// # Errors
    /// If the magic number is wrong.
    ///
    /// # Panics
    /// If fewer than 20 bytes are given.
    pub fn parse(bytes: &[u8]) -> Result<Self, MagicError> {
        match be64(bytes, 0) {
            OPTION_REPLY_MAGIC => Ok(Self {
                option: OptionType(be32(bytes, 8)),
                reply: ReplyType(be32(bytes, 12)),
                len_bytes: be32(bytes, 16),
            }),
            other => Err(MagicError::OptionReply(other)),
        }
    }

    /// The header's bytes.
    #[must_use]
    pub fn emit(&self) -> [u8; OPTION_REPLY_BYTES] {
        let mut out = [0; OPTION_REPLY_BYTES];
        out[0..8].copy_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
        out[8..12].copy_from_slice(&self.option.0.to_be_bytes());
        out[12..16].copy_from_slice(&self.reply.0.to_be_bytes());
        out[16..20].copy_from_slice(&self.len_bytes.to_be_bytes());
        out
    }
}

/// What is wrong with the data of an option; becomes the text of `ERR_INVALID`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// Lengths inside the data do not add up to the data's length.
    #[error("the lengths inside the option do not add up to its data length")]
    Length,
    /// A string is longer than 4096 bytes.
    #[error("a string of {0} bytes; at most 4096 are allowed")]
    StringTooLong(usize),
    /// A string is not UTF-8 or contains NUL.
    #[error("a string is not UTF-8 or contains NUL")]
    NotText,
}

/// Checks a string of the protocol: UTF-8 without NUL, at most 4096 bytes (`proto.md`, Values).
///
/// # Errors
/// If it is none.
pub fn parse_string(bytes: &[u8]) -> Result<&str, OptionError> {
    if bytes.len() > STRING_MAX_BYTES {
        return Err(OptionError::StringTooLong(bytes.len()));
    }
    std::str::from_utf8(bytes)
        .ok()
        .filter(|text| !text.contains('\0'))
        .ok_or(OptionError::NotText)
}

fn parse_counted_string<'a>(cursor: &mut Cursor<'a>) -> Result<&'a str, OptionError> {
    let len = cursor.u32().ok_or(OptionError::Length)? as usize;
    parse_string(cursor.take(len).ok_or(OptionError::Length)?)
}

fn emit_counted_string(text: &str, out: &mut Vec<u8>) {
    let len = u32::try_from(text.len()).expect("strings are at most 4096 bytes");
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Number of a piece of information about an export.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct InfoType(pub u16);

impl InfoType {
    /// Size and transmission flags.
    pub const EXPORT: Self = Self(0);
    /// Canonical name.
    pub const NAME: Self = Self(1);
    /// Text for people.
    pub const DESCRIPTION: Self = Self(2);
    /// Block size constraints.
    pub const BLOCK_SIZE: Self = Self(3);
}

/// Data of `INFO` and `GO`: `u32` name length, name, `u16` count, that many `u16` requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InfoRequest {
    /// Export name; empty for the default export.
    pub name: String,
    /// What the client wants to be told; unknown numbers included.
    pub wants: Vec<InfoType>,
}

impl InfoRequest {
    /// Parses the data.
    ///
    /// # Errors
    /// If lengths disagree or the name is no string.
    pub fn parse(bytes: &[u8]) -> Result<Self, OptionError> {
        let mut cursor = Cursor::new(bytes);
        let name = parse_counted_string(&mut cursor)?.to_owned();
        let count = usize::from(cursor.u16().ok_or(OptionError::Length)?);
        let (wants, odd) = cursor.rest().as_chunks::<2>();
        if wants.len() != count || !odd.is_empty() {
            return Err(OptionError::Length);
        }
        let wants = wants
            .iter()
            .map(|n| InfoType(u16::from_be_bytes(*n)))
            .collect();
        Ok(Self { name, wants })
    }

    /// Appends the data.
    pub fn emit(&self, out: &mut Vec<u8>) {
        emit_counted_string(&self.name, out);
        let count = u16::try_from(self.wants.len()).expect("a handful of information types");
        out.extend_from_slice(&count.to_be_bytes());
        for want in &self.wants {
            out.extend_from_slice(&want.0.to_be_bytes());
        }
    }
}

/// Data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`: `u32` name length, name, `u32` count, that
/// many queries of `u32` length and text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaContextRequest {
    /// Export name.
    pub name: String,
    /// Context names or patterns.
    pub queries: Vec<String>,
}

impl MetaContextRequest {
    /// Parses the data.
    ///
    /// # Errors
    /// If lengths disagree or a string is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, OptionError> {
        let mut cursor = Cursor::new(bytes);
        let name = parse_counted_string(&mut cursor)?.to_owned();
        let count = cursor.u32().ok_or(OptionError::Length)?;
        // The count is not trusted with memory: each query takes at least four bytes of the data.
        let mut queries = Vec::new();
        for _ in 0..count {
            queries.push(parse_counted_string(&mut cursor)?.to_owned());
        }
        if !cursor.rest().is_empty() {
            return Err(OptionError::Length);
        }
        Ok(Self { name, queries })
    }

    /// Appends the data.
    pub fn emit(&self, out: &mut Vec<u8>) {
        emit_counted_string(&self.name, out);
        let count = u32::try_from(self.queries.len()).expect("a handful of queries");
        out.extend_from_slice(&count.to_be_bytes());
        for query in &self.queries {
            emit_counted_string(query, out);
        }
    }
}

/// Data of a `SERVER` reply: `u32` name length, name, description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerReply {
    /// Export name.
    pub name: String,
    /// Text for people; may be empty.
    pub description: String,
}

impl ServerReply {
    /// Parses the data.
    ///
    /// # Errors
    /// If lengths disagree or a string is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, OptionError> {
        let mut cursor = Cursor::new(bytes);
        let name = parse_counted_string(&mut cursor)?.to_owned();
        let description = parse_string(cursor.rest())?.to_owned();
        Ok(Self { name, description })
    }

    /// Appends the data.
    pub fn emit(&self, out: &mut Vec<u8>) {
        emit_counted_string(&self.name, out);
        out.extend_from_slice(self.description.as_bytes());
    }
}

/// Block size constraints of an export, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSizes {
    /// Smallest unit and alignment of a request.
    pub minimum: u32,
    /// Unit below which requests are slow.
    pub preferred: u32,
    /// Longest payload of a request or a read.
    pub maximum_payload: u32,
}

impl BlockSizes {
    /// Whether the three numbers obey the protocol (`proto.md`, Block size constraints).
    #[must_use]
    pub const fn is_valid(&self) -> bool {
        let floor = if self.minimum > 512 {
            self.minimum
        } else {
            512
        };
        self.minimum.is_power_of_two()
            && self.minimum <= 65536
            && self.preferred.is_power_of_two()
            && self.preferred >= floor
            && self.maximum_payload >= self.preferred
    }
}

/// Data of an `INFO` reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InfoReply {
    /// Size and flags: 12 bytes.
    Export {
        /// Size in bytes.
        size_bytes: u64,
        /// Transmission flags.
        flags: TransmissionFlags,
    },
    /// Canonical name.
    Name(String),
    /// Text for people.
    Description(String),
    /// Block size constraints: 14 bytes.
    BlockSize(BlockSizes),
    /// A kind that we do not know; clients ignore it.
    Other(InfoType),
}

impl InfoReply {
    /// Parses the data.
    ///
    /// # Errors
    /// If the length is not that of the type, or a string is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, OptionError> {
        let mut cursor = Cursor::new(bytes);
        let info_type = InfoType(cursor.u16().ok_or(OptionError::Length)?);
        let rest = cursor.rest();
        match info_type {
            InfoType::EXPORT if rest.len() == 10 => Ok(Self::Export {
                size_bytes: be64(rest, 0),
                flags: TransmissionFlags::from_bits_retain(be16(rest, 8)),
            }),
            InfoType::NAME => Ok(Self::Name(parse_string(rest)?.to_owned())),
            InfoType::DESCRIPTION => Ok(Self::Description(parse_string(rest)?.to_owned())),
            InfoType::BLOCK_SIZE if rest.len() == 12 => Ok(Self::BlockSize(BlockSizes {
                minimum: be32(rest, 0),
                preferred: be32(rest, 4),
                maximum_payload: be32(rest, 8),
            })),
            InfoType::EXPORT | InfoType::BLOCK_SIZE => Err(OptionError::Length),
            other => Ok(Self::Other(other)),
        }
    }

    /// Appends the data.
    pub fn emit(&self, out: &mut Vec<u8>) {
        match self {
            Self::Export { size_bytes, flags } => {
                out.extend_from_slice(&InfoType::EXPORT.0.to_be_bytes());
                out.extend_from_slice(&size_bytes.to_be_bytes());
                out.extend_from_slice(&flags.bits().to_be_bytes());
            }
            Self::Name(name) => {
                out.extend_from_slice(&InfoType::NAME.0.to_be_bytes());
                out.extend_from_slice(name.as_bytes());
            }
            Self::Description(text) => {
                out.extend_from_slice(&InfoType::DESCRIPTION.0.to_be_bytes());
                out.extend_from_slice(text.as_bytes());
            }
            Self::BlockSize(sizes) => {
                out.extend_from_slice(&InfoType::BLOCK_SIZE.0.to_be_bytes());
                for size in [sizes.minimum, sizes.preferred, sizes.maximum_payload] {
                    out.extend_from_slice(&size.to_be_bytes());
                }
            }
            Self::Other(info_type) => out.extend_from_slice(&info_type.0.to_be_bytes()),
        }
    }
}

/// Data of a `META_CONTEXT` reply: `u32` number, name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaContextReply {
    /// Number that block status chunks carry; 0 in the answer to a LIST.
    pub id: u32,
    /// Context name.
    pub name: String,
}

impl MetaContextReply {
    /// Parses the data.
    ///
    /// # Errors
    /// If it is too short or the name is no string.
    pub fn parse(bytes: &[u8]) -> Result<Self, OptionError> {
        let mut cursor = Cursor::new(bytes);
        let id = cursor.u32().ok_or(OptionError::Length)?;
        let name = parse_string(cursor.rest())?.to_owned();
        Ok(Self { id, name })
    }

    /// Appends the data.
    pub fn emit(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.to_be_bytes());
        out.extend_from_slice(self.name.as_bytes());
    }
}

#[cfg(test)]
#[path = "option_tests.rs"]
mod tests;

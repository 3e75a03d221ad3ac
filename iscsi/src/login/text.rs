//! `key=value` text: pairs, values, and logical segments that span PDUs (RFC 7143 6.1, 6.2).
//!
//! Everything here is bounded: bytes and exchanges of one negotiation, length of a key, length of a
//! decoded binary value.

use std::fmt::Write as _;

use bytes::Bytes;
use nom::IResult;
use nom::Parser as _;
use nom::branch::alt;
use nom::bytes::complete::{tag, take_while, take_while_m_n, take_while1};
use nom::character::complete::{char, digit1, hex_digit0, hex_digit1};
use nom::combinator::{all_consuming, recognize, rest, verify};
use nom::multi::many0;
use nom::sequence::{pair, preceded, separated_pair, terminated};

use crate::Payload;

/// Longest key name in bytes (RFC 7143 6.1, standard-label).
pub const KEY_BYTES_MAX: usize = 63;
/// Longest value in bytes of a key that names no other limit (RFC 7143 6.1).
pub const VALUE_BYTES_MAX: usize = 255;
/// Longest decoded binary value in bytes (RFC 7143 12.1.3).
pub const BINARY_BYTES_MAX: usize = 1024;
/// Longest text of a binary value: `0x` and two digits a byte.
pub const BINARY_TEXT_BYTES_MAX: usize = 2 + 2 * BINARY_BYTES_MAX;

/// What is wrong with a text segment or a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// A segment is not a sequence of `key=value` pairs that each end with NUL.
    #[error("byte {at} of the text is not the start of a `key=value` pair that ends with NUL")]
    NotPairs {
        /// Offset of the first byte that fits no pair.
        at: usize,
    },
    /// A key or value is not UTF-8.
    #[error("the text at byte {at} is not UTF-8")]
    NotUtf8 {
        /// Offset of the pair.
        at: usize,
    },
    /// One negotiation carried more text than its bound.
    #[error("more than {max} bytes of text in one negotiation")]
    TooManyBytes {
        /// The bound in bytes.
        max: usize,
    },
    /// One negotiation took more exchanges than its bound.
    #[error("more than {max} exchanges in one negotiation")]
    TooManyExchanges {
        /// The bound.
        max: u32,
    },
    /// A value is longer than its key allows.
    #[error("the value has {len} bytes, at most {max} are allowed")]
    ValueTooLong {
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// Not a number (decimal without leading zeros, or `0x` and hex digits, below 2^64).
    #[error("not a number: decimal without leading zeros, or 0x and hex digits, below 2^64")]
    NotANumber,
    /// A number outside of the key's range.
    #[error("the number {value} is not in {min}..={max}")]
    OutOfRange {
        /// What was sent.
        value: u64,
        /// Smallest legal value.
        min: u64,
        /// Largest legal value.
        max: u64,
    },
    /// Not `Yes` or `No`.
    #[error("not a boolean: `Yes` or `No`")]
    NotABoolean,
    /// Not `low~high`.
    #[error("not a range: two numbers with `~` between them, the smaller one first")]
    NotARange,
    /// Not `0x` hex and not `0b` Base64.
    #[error("not a binary value: 0x and hex digits, or 0b and Base64")]
    NotBinary,
}

/// Bounds of one negotiation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextLimits {
    /// Text bytes over all PDUs.
    pub bytes_max: usize,
    /// Request and response pairs.
    pub exchanges_max: u32,
}

impl TextLimits {
    /// For a login: RFC 7143 asks for at least 8192 bytes and a handful of exchanges.
    pub const LOGIN: Self = Self {
        bytes_max: 64 * 1024,
        exchanges_max: 32,
    };
    /// For SendTargets: room for some ten thousand targets.
    pub const DISCOVERY: Self = Self {
        bytes_max: 4 * 1024 * 1024,
        exchanges_max: 4096,
    };
}

/// One `key=value` pair.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    /// The key, with valid characters and length.
    pub key: String,
    /// The value as it was sent.
    pub value: String,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A response together with its challenge allows guessing the secret offline.
        if self.key.starts_with("CHAP_") {
            write!(f, "{}=({} bytes)", self.key, self.value.len())
        } else {
            write!(f, "{}={:?}", self.key, self.value)
        }
    }
}

/// A label (RFC 7143 6.1). That section wants a capital letter first; `iSCSIProtocolLevel` and
/// `iSERHelloRequired` of RFC 7144 and 7145 have none, so any letter will do.
fn key_name(input: &[u8]) -> IResult<&[u8], &[u8]> {
    let label = |b: u8| b.is_ascii_alphanumeric() || b".-+@_#".contains(&b);
    recognize(pair(
        take_while_m_n(1, 1, |b: u8| b.is_ascii_alphabetic()),
        take_while_m_n(0, KEY_BYTES_MAX - 1, label),
    ))
    .parse(input)
}

fn raw_pair(input: &[u8]) -> IResult<&[u8], (&[u8], &[u8])> {
    terminated(
        separated_pair(key_name, tag(&b"="[..]), take_while(|b| b != 0)),
        tag(&b"\0"[..]),
    )
    .parse(input)
}

/// Splits a whole logical segment into its pairs.
///
/// Zero bytes after the last pair are tolerated: some targets count their padding as data.
///
/// # Errors
/// [`TextError::NotPairs`] or [`TextError::NotUtf8`], with the offset.
pub fn parse_pairs(segment: &[u8]) -> Result<Vec<Pair>, TextError> {
    // `many0` stops at the first byte that starts no pair.
    let (tail, raw) = many0(raw_pair)
        .parse(segment)
        .map_err(|_: nom::Err<nom::error::Error<&[u8]>>| TextError::NotPairs { at: 0 })?;
    if tail.iter().any(|byte| *byte != 0) {
        return Err(TextError::NotPairs {
            at: segment.len() - tail.len(),
        });
    }
    let mut at = 0;
    raw.into_iter()
        .map(|(key, value)| {
            let utf8 = |bytes: &[u8]| {
                std::str::from_utf8(bytes)
                    .map(str::to_owned)
                    .map_err(|_| TextError::NotUtf8 { at })
            };
            let pair = Pair {
                key: utf8(key)?,
                value: utf8(value)?,
            };
            at += key.len() + value.len() + 2;
            Ok(pair)
        })
        .collect()
}

/// Joins the PDUs of a peer to logical segments and counts what one negotiation costs.
#[derive(Debug)]
pub struct Assembler {
    limits: TextLimits,
    partial: Vec<u8>,
    more: bool,
    bytes: usize,
    exchanges: u32,
}

impl Assembler {
    /// An assembler for one negotiation.
    #[must_use]
    pub fn new(limits: TextLimits) -> Self {
        Self {
            limits,
            partial: Vec::new(),
            more: false,
            bytes: 0,
            exchanges: 0,
        }
    }

    /// Takes the data of the next PDU. With `more` (the C bit, or F=0 of a long answer) the segment
    /// is not over and the result is `None`; else all bytes since the last whole segment.
    ///
    /// # Errors
    /// When a bound of the negotiation is passed.
    pub fn push(&mut self, data: &Payload, more: bool) -> Result<Option<Vec<u8>>, TextError> {
        self.exchanges += 1;
        if self.exchanges > self.limits.exchanges_max {
            return Err(TextError::TooManyExchanges {
                max: self.limits.exchanges_max,
            });
        }
        // `bytes` never passes `bytes_max`, so the difference does not wrap.
        if data.len() > self.limits.bytes_max - self.bytes {
            return Err(TextError::TooManyBytes {
                max: self.limits.bytes_max,
            });
        }
        self.bytes += data.len();
        self.more = more;
        for segment in data.segments() {
            self.partial.extend_from_slice(segment);
        }
        Ok((!more).then(|| std::mem::take(&mut self.partial)))
    }

    /// Whether the peer's segment is not over yet.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.more
    }
}

/// Text to send, cut into PDUs.
#[derive(Default)]
pub struct Outgoing {
    text: Vec<u8>,
    at: usize,
}

impl std::fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Outgoing({} bytes)", self.text.len() - self.at)
    }
}

impl Outgoing {
    /// Nothing to send.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a pair. Callers own both strings, so neither holds a NUL.
    pub fn push(&mut self, key: &str, value: &str) {
        debug_assert!(!key.contains(['=', '\0']) && !value.contains('\0'));
        self.text.extend_from_slice(key.as_bytes());
        self.text.push(b'=');
        self.text.extend_from_slice(value.as_bytes());
        self.text.push(0);
    }

    /// Whether everything was cut off.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.at == self.text.len()
    }

    /// Whether a PDU was cut off and more must follow.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.at > 0 && !self.is_empty()
    }

    /// Unsent bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.text.len() - self.at
    }

    /// Cuts off the data of the next PDU and tells whether more follows (the C bit).
    pub fn take(&mut self, pdu_bytes_max: usize) -> (Payload, bool) {
        let n = self.len().min(pdu_bytes_max.max(1));
        let data = Bytes::copy_from_slice(&self.text[self.at..self.at + n]);
        self.at += n;
        let more = !self.is_empty();
        if !more {
            *self = Self::new();
        }
        (Payload::from(data), more)
    }
}

fn whole<'a, T>(
    parser: impl nom::Parser<&'a str, Output = T, Error = nom::error::Error<&'a str>>,
    input: &'a str,
    error: TextError,
) -> Result<T, TextError> {
    all_consuming(parser)
        .parse(input)
        .map(|(_, value)| value)
        .map_err(|_| error)
}

fn hex_prefix(input: &str) -> IResult<&str, &str> {
    alt((tag("0x"), tag("0X"))).parse(input)
}

fn number(input: &str) -> IResult<&str, u64> {
    let hex = preceded(hex_prefix, hex_digit1).map_res(|d| u64::from_str_radix(d, 16));
    let decimal = verify(digit1, |d: &str| d == "0" || !d.starts_with('0'))
        .map_res(|d: &str| d.parse::<u64>());
    alt((hex, decimal)).parse(input)
}

/// A number: decimal without leading zeros or `0x` hex, below 2^64 (RFC 7143 6.1).
///
/// # Errors
/// [`TextError::NotANumber`].
pub fn parse_number(value: &str) -> Result<u64, TextError> {
    whole(number, value, TextError::NotANumber)
}

/// A number inside of `min..=max`.
///
/// # Errors
/// [`TextError::NotANumber`], [`TextError::OutOfRange`].
pub fn parse_number_in(value: &str, min: u64, max: u64) -> Result<u64, TextError> {
    let value = parse_number(value)?;
    if value < min || value > max {
        return Err(TextError::OutOfRange { value, min, max });
    }
    Ok(value)
}

/// A range `low~high` (RFC 7143 6.1).
///
/// # Errors
/// [`TextError::NotARange`], also when the bounds are in the wrong order.
pub fn parse_range(value: &str) -> Result<(u64, u64), TextError> {
    let range = verify(separated_pair(number, char('~'), number), |(low, high)| {
        low <= high
    });
    whole(range, value, TextError::NotARange)
}

/// `Yes` or `No`, in exactly this case (RFC 7143 6.1).
///
/// # Errors
/// [`TextError::NotABoolean`].
pub fn parse_boolean(value: &str) -> Result<bool, TextError> {
    match value {
        "Yes" => Ok(true),
        "No" => Ok(false),
        _ => Err(TextError::NotABoolean),
    }
}

/// `Yes` or `No`.
#[must_use]
pub const fn emit_boolean(value: bool) -> &'static str {
    if value { "Yes" } else { "No" }
}

enum BinaryText<'a> {
    Hex(&'a str),
    Base64(&'a str),
}

fn binary_text(input: &str) -> IResult<&str, BinaryText<'_>> {
    let base64 = |c: char| c.is_ascii_alphanumeric() || "+/=".contains(c);
    alt((
        preceded(hex_prefix, hex_digit0).map(BinaryText::Hex),
        preceded(alt((tag("0b"), tag("0B"))), take_while(base64)).map(BinaryText::Base64),
    ))
    .parse(input)
}

/// Decodes a binary value: `0x` hex, where an odd first digit is a half byte, or `0b` Base64 with or
/// without padding (RFC 7143 6.1).
///
/// # Errors
/// [`TextError::NotBinary`]; [`TextError::ValueTooLong`] above `bytes_max`, found before decoding.
pub fn parse_binary(value: &str, bytes_max: usize) -> Result<Vec<u8>, TextError> {
    let too_long = |len| TextError::ValueTooLong {
        len,
        max: bytes_max,
    };
    match whole(binary_text, value, TextError::NotBinary)? {
        BinaryText::Hex(digits) => {
            let len = digits.len().div_ceil(2);
            if len > bytes_max {
                return Err(too_long(len));
            }
            let mut out = Vec::with_capacity(len);
            let (half, pairs) = digits.as_bytes().split_at(digits.len() % 2);
            out.extend(half.iter().map(|d| hex_value(*d)));
            let (pairs, _) = pairs.as_chunks::<2>();
            out.extend(
                pairs
                    .iter()
                    .map(|[h, l]| hex_value(*h) << 4 | hex_value(*l)),
            );
            Ok(out)
        }
        BinaryText::Base64(text) => {
            // An upper bound before allocation, the exact length after it.
            let most = text.len() / 4 * 3;
            if most > bytes_max + 3 {
                return Err(too_long(most));
            }
            let out = decode_base64(text).ok_or(TextError::NotBinary)?;
            if out.len() > bytes_max {
                return Err(too_long(out.len()));
            }
            Ok(out)
        }
    }
}

/// Value of a digit that the parser has already checked.
const fn hex_value(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => digit - b'A' + 10,
    }
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64_value(c: u8) -> Option<u32> {
    Some(u32::from(match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    }))
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    let padding = text.len() - digits.len();
    // Padding, when there is any, fills the last group of four exactly.
    if padding > 2 || (padding > 0 && !text.len().is_multiple_of(4)) || digits.len() % 4 == 1 {
        return None;
    }
    let mut out = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    for group in digits.as_bytes().chunks(4) {
        let mut bits = 0;
        for c in group {
            bits = bits << 6 | base64_value(*c)?;
        }
        let bytes = group.len() * 6 / 8;
        let unused = group.len() * 6 - bytes * 8;
        if bits & ((1 << unused) - 1) != 0 {
            return None;
        }
        out.extend_from_slice(&(bits >> unused).to_be_bytes()[4 - bytes..]);
    }
    Some(out)
}

/// A binary value as `0x` and hex digits.
#[must_use]
pub fn emit_hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(2 + bytes.len() * 2);
    out.push_str("0x");
    for byte in bytes {
        write!(out, "{byte:02x}").expect("writing to a String cannot fail");
    }
    out
}

/// A binary value as `0b` and padded Base64.
#[must_use]
pub fn emit_base64(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(2 + bytes.len().div_ceil(3) * 4);
    out.push_str("0b");
    for group in bytes.chunks(3) {
        let mut padded = [0; 4];
        padded[1..=group.len()].copy_from_slice(group);
        let bits = u32::from_be_bytes(padded);
        for i in 0..4 {
            if i <= group.len() {
                out.push(BASE64[(bits >> (18 - 6 * i)) as usize & 63] as char);
            } else {
                out.push('=');
            }
        }
    }
    out
}

/// The items of a comma-separated list; empty items are errors.
///
/// # Errors
/// [`TextError::NotPairs`] never; an empty list or item gives `None`.
pub(super) fn parse_list(value: &str) -> Option<Vec<&str>> {
    let item = take_while1(|c: char| c != ',');
    let list = nom::multi::separated_list1(char(','), item);
    let parsed: Result<_, nom::Err<nom::error::Error<&str>>> =
        all_consuming(terminated(list, verify(rest, |r: &str| r.is_empty()))).parse(value);
    parsed.ok().map(|(_, items)| items)
}

#[cfg(test)]
mod tests;

//! The TransportID of an iSCSI initiator port (SPC-4 7.6.4.6).

use std::fmt;

use super::super::ParseError;
use super::super::field::{be16, byte};
use crate::types::Isid;

/// Longest iSCSI name in bytes (RFC 7143 4.2.7.1).
const NAME_MAX_BYTES: usize = 223;

/// Separates the name from the ISID in the initiator port form.
const SEPARATOR: &str = ",i,0x";

/// An iSCSI initiator, with the ISID when one port of it is meant.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct TransportId {
    /// iSCSI name, at most 223 bytes.
    pub name: String,
    /// The session's ISID; `None` names all ports of the initiator.
    pub isid: Option<Isid>,
}

impl TransportId {
    /// Parses a TransportID at the start of `bytes`; also gives its length there.
    ///
    /// # Errors
    /// [`ParseError`] when it is cut off, of another transport, or not a name.
    pub fn parse(bytes: &[u8]) -> Result<(Self, usize), ParseError> {
        const WHAT: &str = "iSCSI TransportID";
        let wrong = |field, value: u64, expected| {
            Err(ParseError::Value {
                what: WHAT,
                field,
                value,
                expected,
            })
        };
        super::super::need(WHAT, bytes, 4)?;
        let (protocol, format) = (bytes[0] & 0x0f, bytes[0] >> 6);
        if protocol != 5 {
            return wrong("protocol identifier", protocol.into(), "5");
        }
        let len = usize::from(be16(bytes, 2));
        super::super::need(WHAT, bytes, 4 + len)?;
        let raw = &bytes[4..4 + len];
        let end = raw.iter().position(|byte| *byte == 0).unwrap_or(len);
        let text = match std::str::from_utf8(&raw[..end]) {
            Ok(text) if !text.is_empty() && !text.contains(char::is_control) => text,
            _ => return wrong("name length", end as u64, "a name in UTF-8"),
        };
        let (name, isid) = match format {
            0 => (text, None),
            1 => match text.split_once(SEPARATOR).map(|(n, i)| (n, parse_isid(i))) {
                Some((name, Some(isid))) => (name, Some(isid)),
                _ => {
                    return wrong(
                        "name length",
                        end as u64,
                        "a name, `,i,0x` and 12 hex digits",
                    );
                }
            },
            _ => return wrong("format code", format.into(), "0 or 1"),
        };
        if name.is_empty() || name.len() > NAME_MAX_BYTES {
            return wrong("name length", name.len() as u64, "1 to 223");
        }
        let id = Self {
            name: name.to_owned(),
            isid,
        };
        Ok((id, 4 + len))
    }

    /// The TransportID as bytes: NUL-ended and padded to a multiple of four, at least 24 in all.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let format = u8::from(self.isid.is_some());
        let mut out = vec![format << 6 | 5, 0, 0, 0];
        let end = self.name.floor_char_boundary(NAME_MAX_BYTES);
        out.extend_from_slice(&self.name.as_bytes()[..end]);
        if let Some(isid) = self.isid {
            out.extend_from_slice(SEPARATOR.as_bytes());
            out.extend_from_slice(isid.to_string().as_bytes());
        }
        let len = (out.len() + 1).next_multiple_of(4).max(24);
        out.resize(len, 0);
        // At most 4 + 223 + 17 + 4.
        out[2..4].copy_from_slice(&((len - 4) as u16).to_be_bytes());
        out
    }
}

fn parse_isid(hex: &str) -> Option<Isid> {
    if hex.len() != 12 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let value = u64::from_str_radix(hex, 16).ok()?.to_be_bytes();
    let mut isid = [0; 6];
    for (i, out) in isid.iter_mut().enumerate() {
        *out = byte(&value, i + 2);
    }
    Some(Isid(isid))
}

impl fmt::Display for TransportId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.isid {
            Some(isid) => write!(f, "{}{SEPARATOR}{isid}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

impl fmt::Debug for TransportId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TransportId({self})")
    }
}

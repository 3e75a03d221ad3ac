//! Names that come from outside: of attachments and of iSCSI targets.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The name of an attachment: path segment of the API, NBD export name, file name in the state
/// directory and label of metrics.
///
/// One rule serves all four: 1 to 128 characters out of letters, digits, `.`, `_` and `-`, of which
/// the first is a letter or a digit. Such a name is never `..`, a hidden file or an option, needs no
/// escaping, and leaves room for suffixes in a 255-byte file name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AttachmentName(String);

impl AttachmentName {
    /// Longest name, in characters (all of them ASCII).
    pub const LEN_MAX: usize = 128;

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AttachmentName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        check_attachment_name(text)?;
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for AttachmentName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        check_attachment_name(&text)?;
        Ok(Self(text))
    }
}

fn check_attachment_name(text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > AttachmentName::LEN_MAX {
        return Err(NameError::TooLong { len: text.len() });
    }
    let bad = |c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    if let Some(character) = text.chars().find(|&c| bad(c)) {
        return Err(NameError::Character { character });
    }
    if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err(NameError::Start);
    }
    Ok(())
}

/// Why a text is not a name of an attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing there.
    #[error("an attachment name must not be empty")]
    Empty,
    /// More than [`AttachmentName::LEN_MAX`] bytes.
    #[error(
        "an attachment name has at most {} characters, this one has {len}",
        AttachmentName::LEN_MAX
    )]
    TooLong {
        /// Length of the text in bytes.
        len: usize,
    },
    /// A character outside the set.
    #[error(
        "an attachment name is made of letters, digits, '.', '_' and '-', not of {character:?}"
    )]
    Character {
        /// The first one that does not fit.
        character: char,
    },
    /// The first character is a sign.
    #[error("an attachment name begins with a letter or a digit")]
    Start,
}

impl From<AttachmentName> for String {
    fn from(name: AttachmentName) -> Self {
        name.0
    }
}

impl AsRef<str> for AttachmentName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AttachmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for AttachmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The name of a volume on the fabric, or of a snapshot of it: 3 to 64 letters, digits, `.`, `_` and `-`, of
/// which the first is a letter or `_`; or a UUID in lower case. What fabrics allow, and nothing that needs
/// escaping in a path.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeName(String);

impl VolumeName {
    /// Shortest name, in characters.
    pub const LEN_MIN: usize = 3;
    /// Longest name, in characters (all of them ASCII).
    pub const LEN_MAX: usize = 64;

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VolumeName {
    type Err = VolumeNameError;

    fn from_str(text: &str) -> Result<Self, VolumeNameError> {
        Self::try_from(text.to_owned())
    }
}

impl TryFrom<String> for VolumeName {
    type Error = VolumeNameError;

    fn try_from(text: String) -> Result<Self, VolumeNameError> {
        if !(Self::LEN_MIN..=Self::LEN_MAX).contains(&text.len()) {
            return Err(VolumeNameError::Length { len: text.len() });
        }
        let bad = |c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
        if let Some(character) = text.chars().find(|&c| bad(c)) {
            return Err(VolumeNameError::Character { character });
        }
        if !text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && !is_uuid(&text) {
            return Err(VolumeNameError::Start);
        }
        Ok(Self(text))
    }
}

/// Whether this is a UUID in lower case.
#[must_use]
pub fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        })
}

/// Why a text is not a name of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VolumeNameError {
    /// Too short or too long.
    #[error(
        "a volume or snapshot name has {} to {} characters, this one has {len}",
        VolumeName::LEN_MIN,
        VolumeName::LEN_MAX
    )]
    Length {
        /// Length of the text in bytes.
        len: usize,
    },
    /// A character outside the set.
    #[error(
        "a volume or snapshot name is made of letters, digits, '.', '_' and '-', not of {character:?}"
    )]
    Character {
        /// The first one that does not fit.
        character: char,
    },
    /// The first character is a digit or a sign, and it is no UUID.
    #[error("a volume or snapshot name begins with a letter or '_', or is a UUID in lower case")]
    Start,
}

impl From<VolumeName> for String {
    fn from(name: VolumeName) -> Self {
        name.0
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The name of an iSCSI node: `iqn.`, `eui.` or `naa.` (RFC 7143 4.2.7), in lower case as they are
/// compared (RFC 3722).
///
/// Here it is only checked for its form. Names outside ASCII are refused: none are seen in the field,
/// and their normalisation is where two programs differ.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TargetName(String);

impl TargetName {
    /// Longest name in bytes (RFC 7143 4.2.7.1).
    pub const LEN_MAX: usize = 223;

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TargetName {
    type Err = TargetNameError;

    fn from_str(text: &str) -> Result<Self, TargetNameError> {
        let name = text.to_ascii_lowercase();
        if name.len() > Self::LEN_MAX {
            return Err(TargetNameError::TooLong { len: name.len() });
        }
        let all_hex = |digits: &str| digits.bytes().all(|b| b.is_ascii_hexdigit());
        if let Some(rest) = name.strip_prefix("iqn.") {
            let bad = |c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '_'));
            if let Some(character) = rest.chars().find(|&c| bad(c)) {
                return Err(TargetNameError::Character { character });
            }
            if !is_iqn_tail(rest) {
                return Err(TargetNameError::Iqn);
            }
        } else if let Some(digits) = name.strip_prefix("eui.") {
            if digits.len() != 16 || !all_hex(digits) {
                return Err(TargetNameError::Eui);
            }
        } else if let Some(digits) = name.strip_prefix("naa.") {
            if !matches!(digits.len(), 16 | 32) || !all_hex(digits) {
                return Err(TargetNameError::Naa);
            }
        } else {
            return Err(TargetNameError::Type);
        }
        Ok(Self(name))
    }
}

/// `YYYY-MM.` and a naming authority that is not empty.
fn is_iqn_tail(rest: &str) -> bool {
    let bytes = rest.as_bytes();
    let Some((date, authority)) = bytes.split_at_checked(8) else {
        return false;
    };
    let digits = |range: &[u8]| range.iter().all(u8::is_ascii_digit);
    digits(&date[..4])
        && date[4] == b'-'
        && digits(&date[5..7])
        && (b"01"..=b"12").contains(&&[date[5], date[6]])
        && date[7] == b'.'
        && authority.first().is_some_and(u8::is_ascii_alphanumeric)
}

impl TryFrom<String> for TargetName {
    type Error = TargetNameError;

    fn try_from(text: String) -> Result<Self, TargetNameError> {
        text.parse()
    }
}

impl From<TargetName> for String {
    fn from(name: TargetName) -> Self {
        name.0
    }
}

impl fmt::Display for TargetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TargetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Why a text is not the name of an iSCSI target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TargetNameError {
    /// None of the three name types.
    #[error("a target name begins with 'iqn.', 'eui.' or 'naa.'")]
    Type,
    /// More than [`TargetName::LEN_MAX`] bytes.
    #[error(
        "a target name has at most {} bytes, this one has {len}",
        TargetName::LEN_MAX
    )]
    TooLong {
        /// Length of the text in bytes.
        len: usize,
    },
    /// A character outside the set.
    #[error("an iqn is made of letters, digits, '.', '-', ':' and '_', not of {character:?}")]
    Character {
        /// The first one that does not fit.
        character: char,
    },
    /// Date or authority is missing.
    #[error("an iqn has the form iqn.YYYY-MM.reversed.domain[:anything]")]
    Iqn,
    /// Wrong number or kind of digits.
    #[error("an eui name has the form eui. and 16 hexadecimal digits")]
    Eui,
    /// Wrong number or kind of digits.
    #[error("a naa name has the form naa. and 16 or 32 hexadecimal digits")]
    Naa,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attachment_names() {
        for good in ["a", "0", "pvc-0b1c_2.x", "Disk0", &"x".repeat(128)] {
            let name: AttachmentName = good.parse().unwrap();
            assert_eq!(name.as_str(), good);
        }
        assert_eq!("".parse::<AttachmentName>(), Err(NameError::Empty));
        assert_eq!(
            "x".repeat(129).parse::<AttachmentName>(),
            Err(NameError::TooLong { len: 129 })
        );
        for (bad, character) in [("a/b", '/'), ("a b", ' '), ("ä", 'ä'), ("a\0", '\0')] {
            assert_eq!(
                bad.parse::<AttachmentName>(),
                Err(NameError::Character { character })
            );
        }
        for bad in ["..", ".hidden", "-o", "_x"] {
            assert_eq!(bad.parse::<AttachmentName>(), Err(NameError::Start));
        }
    }

    /// RFC 7143 4.2.7: the three types of names; compared without regard to case.
    #[test]
    fn target_names() {
        for (good, kept) in [
            ("iqn.2026-11.example:disk0", "iqn.2026-11.example:disk0"),
            ("IQN.2001-04.com.Example", "iqn.2001-04.com.example"),
            ("eui.02004567A425678D", "eui.02004567a425678d"),
            ("naa.52004567BA64678D", "naa.52004567ba64678d"),
            (
                "naa.62004567BA64678D0123456789ABCDEF",
                "naa.62004567ba64678d0123456789abcdef",
            ),
        ] {
            assert_eq!(good.parse::<TargetName>().unwrap().as_str(), kept);
        }
        use TargetNameError as E;
        for (bad, error) in [
            ("disk0", E::Type),
            ("", E::Type),
            ("iqn.", E::Iqn),
            ("iqn.2026-11", E::Iqn),
            ("iqn.2026-11.", E::Iqn),
            ("iqn.2026-13.example", E::Iqn),
            ("iqn.2026-00.example", E::Iqn),
            ("iqn.26-11.example.com", E::Iqn),
            ("iqn.2026-11.example:a b", E::Character { character: ' ' }),
            ("iqn.2026-11.example:a/b", E::Character { character: '/' }),
            ("iqn.2026-11.exämple", E::Character { character: 'ä' }),
            ("eui.0200", E::Eui),
            ("eui.02004567A425678G", E::Eui),
            ("naa.5200", E::Naa),
        ] {
            assert_eq!(bad.parse::<TargetName>(), Err(error), "{bad:?}");
        }
        let long = format!("iqn.2026-11.example:{}", "x".repeat(204));
        assert_eq!(long.parse::<TargetName>(), Err(E::TooLong { len: 224 }));
    }
}

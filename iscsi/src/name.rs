//! Names of initiators and targets (RFC 7143 4.2.7, RFC 3722), and portal addresses (RFC 7143 13.8).
//!
//! Names and addresses from discovery are data of a stranger: nothing gets through here that could
//! steer a terminal, a log or a file path.

mod portal;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use nom::branch::alt;
use nom::bytes::complete::{tag_no_case, take_while_m_n, take_while1};
use nom::character::complete::char;
use nom::combinator::{all_consuming, opt, rest, verify};
use nom::multi::separated_list1;
use nom::sequence::preceded;
use nom::{IResult, Parser as _};

pub use portal::{Host, PORT_DEFAULT, Portal, TargetAddress};

/// Longest iSCSI name in bytes (RFC 7143 4.2.7.1).
pub const NAME_MAX_BYTES: usize = 223;

/// Why a text is not a name or an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Too long or empty.
    #[error("{what} of {len_bytes} bytes; 1 to {max_bytes} are allowed")]
    Length {
        /// Name or address.
        what: &'static str,
        /// Its length.
        len_bytes: usize,
        /// The limit.
        max_bytes: usize,
    },
    /// A control character, space, slash or similar.
    #[error("character {found:?} at byte {at_byte} is not allowed in {what}")]
    Character {
        /// Name or address.
        what: &'static str,
        /// The character.
        found: char,
        /// Its place.
        at_byte: usize,
    },
    /// The text has none of the known forms.
    #[error("{text:?} is not {expected}")]
    Form {
        /// The text; at most as long as the limit of its kind.
        text: String,
        /// What would be right.
        expected: &'static str,
    },
}

/// The three kinds of names (RFC 7143 4.2.7.3 to 4.2.7.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NameKind {
    /// `iqn.YYYY-MM.reversed.domain[:anything]`
    Iqn,
    /// `eui.` and 16 hexadecimal digits
    Eui,
    /// `naa.` and 16 or 32 hexadecimal digits
    Naa,
}

/// The name of an initiator or target.
///
/// Keeps the spelling it was made from, because some targets compare bytes; equality, order and hash
/// ignore case, as RFC 3722 asks. Cloning is cheap.
#[derive(Clone)]
pub struct IscsiName {
    text: Arc<str>,
    /// Lower case; the same allocation when the text is lower case already.
    normal: Arc<str>,
    kind: NameKind,
}

impl IscsiName {
    /// Checks and takes a name.
    ///
    /// Besides the letters, digits, `-`, `.` and `:` of RFC 3722 we take `_ + @ = % ~`, which targets
    /// in the field use, and letters and digits outside ASCII. We do not apply NFKC: two spellings of
    /// one accented letter are two names.
    ///
    /// # Errors
    /// [`NameError`] when the text is too long, has forbidden characters or none of the three forms.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        const WHAT: &str = "an iSCSI name";
        check_length(WHAT, text, NAME_MAX_BYTES)?;
        check_characters(WHAT, text, |c| {
            c.is_alphanumeric() || "-.:_+@=%~".contains(c)
        })?;
        let (_, kind) = all_consuming(alt((iqn, eui, naa)))
            .parse(text)
            .map_err(|_| NameError::Form {
                text: text.to_owned(),
                expected: "an iSCSI name: iqn.YYYY-MM.reversed.domain[:anything], \
                           eui. and 16 hex digits, or naa. and 16 or 32 hex digits",
            })?;
        let normal = text.to_lowercase();
        let text: Arc<str> = Arc::from(text);
        let normal = if normal == *text {
            Arc::clone(&text)
        } else {
            Arc::from(normal)
        };
        Ok(Self { text, normal, kind })
    }

    /// The name as it was given; what goes on the wire.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The name in lower case; what to use as a key.
    #[must_use]
    pub fn normalized(&self) -> &str {
        &self.normal
    }

    /// Which of the three forms the name has.
    #[must_use]
    pub fn kind(&self) -> NameKind {
        self.kind
    }
}

fn iqn(input: &str) -> IResult<&str, NameKind> {
    let digits = |n: usize| take_while_m_n(n, n, |c: char| c.is_ascii_digit());
    let month = verify(digits(2), |m: &str| ("01"..="12").contains(&m));
    let label = take_while1(|c: char| c != '.' && c != ':');
    let (input, _) = (
        tag_no_case("iqn."),
        digits(4),
        char('-'),
        month,
        char('.'),
        separated_list1(char('.'), label),
        opt(preceded(char(':'), rest)),
    )
        .parse(input)?;
    Ok((input, NameKind::Iqn))
}

fn hex_digits(input: &str, count: usize) -> IResult<&str, &str> {
    take_while_m_n(count, count, |c: char| c.is_ascii_hexdigit()).parse(input)
}

fn eui(input: &str) -> IResult<&str, NameKind> {
    let (input, _) = preceded(tag_no_case("eui."), |i| hex_digits(i, 16)).parse(input)?;
    Ok((input, NameKind::Eui))
}

fn naa(input: &str) -> IResult<&str, NameKind> {
    let digits = alt((|i| hex_digits(i, 32), |i| hex_digits(i, 16)));
    let (input, _) = preceded(tag_no_case("naa."), digits).parse(input)?;
    Ok((input, NameKind::Naa))
}

fn check_length(what: &'static str, text: &str, max_bytes: usize) -> Result<(), NameError> {
    if text.is_empty() || text.len() > max_bytes {
        return Err(NameError::Length {
            what,
            len_bytes: text.len(),
            max_bytes,
        });
    }
    Ok(())
}

fn check_characters(
    what: &'static str,
    text: &str,
    allowed: impl Fn(char) -> bool,
) -> Result<(), NameError> {
    match text.char_indices().find(|(_, c)| !allowed(*c)) {
        None => Ok(()),
        Some((at_byte, found)) => Err(NameError::Character {
            what,
            found,
            at_byte,
        }),
    }
}

impl FromStr for IscsiName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

impl fmt::Display for IscsiName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl fmt::Debug for IscsiName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IscsiName({})", self.text)
    }
}

impl AsRef<str> for IscsiName {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

impl PartialEq for IscsiName {
    fn eq(&self, other: &Self) -> bool {
        self.normal == other.normal
    }
}

impl Eq for IscsiName {}

impl std::hash::Hash for IscsiName {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.normal.hash(state);
    }
}

impl PartialOrd for IscsiName {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for IscsiName {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.normal.cmp(&other.normal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> IscsiName {
        IscsiName::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn the_three_forms_are_taken() {
        // RFC 7143 4.2.7
        for (text, kind) in [
            (
                "iqn.2001-04.com.example:storage.disk2.sys1.xyz",
                NameKind::Iqn,
            ),
            ("iqn.2001-04.com.example", NameKind::Iqn),
            (
                "iqn.2013-05.com.daterainc:tc:01:sn:3c4ac2cb3d0a8d3b",
                NameKind::Iqn,
            ),
            ("iqn.1994-05.com.redhat:worker_1", NameKind::Iqn),
            ("iqn.2020-12.de.beispiel:größe", NameKind::Iqn),
            ("eui.02004567A425678D", NameKind::Eui),
            ("naa.52004567BA64678D", NameKind::Naa),
            ("naa.62004567BA64678D0123456789ABCDEF", NameKind::Naa),
        ] {
            assert_eq!(name(text).kind(), kind);
            assert_eq!(name(text).as_str(), text);
        }
    }

    #[test]
    fn case_does_not_count_but_is_kept() {
        // RFC 7143 4.2.7.1, RFC 3722
        let (a, b) = (
            name("iqn.2001-04.com.Example:Disk"),
            name("IQN.2001-04.com.example:disk"),
        );
        assert_eq!(a, b);
        assert_eq!(a.cmp(&b), std::cmp::Ordering::Equal);
        assert_eq!(a.to_string(), "iqn.2001-04.com.Example:Disk");
        assert_eq!(a.normalized(), "iqn.2001-04.com.example:disk");
        let set: std::collections::HashSet<_> = [a, b].into();
        assert_eq!(set.len(), 1);
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "iqn.",
            "iqn.2001-13.com.example",
            "iqn.2001-00.com.example",
            "iqn.201-01.com.example",
            "iqn.2001-04.",
            "iqn.2001-04.:disk",
            "iqn.2001-04.com..example:x",
            "iqn.2001-04.com.example/../../etc:x",
            "iqn.2001-04.com.example:a b",
            "iqn.2001-04.com.example:a\x1b[2J",
            "iqn.2001-04.com.example:a\nb",
            "iqn.2001-04.com.example:a\0",
            "iqn.2001-04.com.example:\u{202e}x",
            "eui.02004567A425678",
            "eui.02004567A425678DE",
            "eui.02004567A425678G",
            "naa.52004567BA64678D0",
            "wwn.52004567BA64678D",
        ] {
            assert!(IscsiName::parse(text).is_err(), "{text:?}");
        }
        let longest = format!(
            "iqn.2001-04.com.example:{}",
            "x".repeat(NAME_MAX_BYTES - 24)
        );
        assert_eq!(name(&longest).as_str().len(), NAME_MAX_BYTES);
        assert!(matches!(
            IscsiName::parse(&format!("{longest}x")),
            Err(NameError::Length { len_bytes: 224, .. })
        ));
    }

    #[test]
    fn errors_do_not_carry_control_characters_raw() {
        let error = IscsiName::parse("iqn.2001-04.com.example:\x1b[2J").unwrap_err();
        assert!(!error.to_string().contains('\x1b'), "{error}");
        assert!(error.to_string().contains("byte 24"), "{error}");
    }

    proptest! {
        #[test]
        fn any_text_is_taken_or_refused(text in "\\PC{0,300}") {
            if let Ok(name) = IscsiName::parse(&text) {
                prop_assert_eq!(name.as_str(), &text);
                prop_assert!(!text.contains(['/', ' ', '\0', '\n']));
                prop_assert!(text.len() <= NAME_MAX_BYTES);
            }
        }

        #[test]
        fn iqn_names_round_trip(
            text in "(iqn|IQN)\\.[0-9]{4}-(0[1-9]|1[0-2])\\.[a-zA-Z0-9-]{1,10}(\\.[a-zA-Z0-9-]{1,10}){0,4}(:[a-zA-Z0-9:._-]{0,40})?"
        ) {
            let name = IscsiName::parse(&text).unwrap();
            prop_assert_eq!(name.to_string(), text);
            prop_assert_eq!(IscsiName::parse(name.normalized()).unwrap(), name);
        }
    }
}

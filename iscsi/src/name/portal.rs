//! Portal addresses (RFC 7143 13.8).

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use nom::branch::alt;
use nom::bytes::complete::{tag, take_while_m_n, take_while1};
use nom::character::complete::{char, satisfy};
use nom::combinator::{all_consuming, map_opt, opt, recognize, verify};
use nom::multi::separated_list1;
use nom::sequence::{delimited, preceded, terminated};
use nom::{IResult, Parser as _};

use super::{NameError, check_characters, check_length};

/// Port of a target portal when none is given (RFC 7143 13.8).
pub const PORT_DEFAULT: u16 = 3260;
/// The system port of iSCSI; only used when it is written out.
const PORT_SYSTEM: u16 = 860;
/// Longest DNS name in its text form, in bytes (RFC 1035 2.3.4).
const DNS_NAME_MAX_BYTES: usize = 253;
/// Longest text that is looked at as an address, in bytes.
const ADDRESS_MAX_BYTES: usize = 512;

/// Where a portal listens: an address, or a DNS name in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// An IP address.
    Ip(IpAddr),
    /// A DNS name, not resolved.
    Name(Arc<str>),
}

impl fmt::Display for Host {
    /// IPv6 addresses appear without brackets, as resolvers want them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Name(name) => f.pad(name),
        }
    }
}

/// Host and port of a target portal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Portal {
    /// Where it listens.
    pub host: Host,
    /// TCP port, never 0.
    pub port: u16,
}

/// A portal and the portal group it belongs to: the value of TargetAddress (RFC 7143 13.8).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TargetAddress {
    /// The portal.
    pub portal: Portal,
    /// Target portal group tag; given in SendTargets answers, not in redirects.
    pub tpgt: Option<u16>,
}

impl Portal {
    /// Takes `host[:port]`.
    ///
    /// The host is an IPv4 address, an IPv6 address in brackets, or a DNS name; the port is 3260 unless
    /// given. Some targets leave the brackets out: such a text is an IPv6 address, unless it ends in
    /// `:3260` or `:860` after what is an address already; then that is the port.
    ///
    /// # Errors
    /// [`NameError`] when the text has another form. Link-local addresses with a zone are refused:
    /// the zone is a matter of the host that wrote it.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let address = TargetAddress::parse(text)?;
        match address.tpgt {
            None => Ok(address.portal),
            Some(_) => Err(NameError::Form {
                text: text.to_owned(),
                expected: "host[:port] without a portal group",
            }),
        }
    }
}

impl TargetAddress {
    /// Takes `host[:port][,tpgt]`; the host as in [`Portal::parse`].
    ///
    /// # Errors
    /// [`NameError`] when the text has another form.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        const WHAT: &str = "a portal address";
        check_length(WHAT, text, ADDRESS_MAX_BYTES)?;
        check_characters(WHAT, text, |c| {
            c.is_ascii_alphanumeric() || "-._:[],%".contains(c)
        })?;
        let form = |expected| NameError::Form {
            text: text.to_owned(),
            expected,
        };
        if text.contains('%') {
            return Err(form("an address without a zone (%)"));
        }
        let (_, (portal, tpgt)) = all_consuming((portal, opt(preceded(char(','), number))))
            .parse(text)
            .map_err(|_| form("an address: host[:port][,portal group], IPv6 in brackets"))?;
        Ok(Self { portal, tpgt })
    }
}

fn number(input: &str) -> IResult<&str, u16> {
    map_opt(
        take_while_m_n(1, 5, |c: char| c.is_ascii_digit()),
        |digits: &str| digits.parse().ok(),
    )
    .parse(input)
}

fn port(input: &str) -> IResult<&str, u16> {
    verify(preceded(char(':'), number), |port| *port != 0).parse(input)
}

fn portal(input: &str) -> IResult<&str, Portal> {
    alt((bracketed, bare_v6, named)).parse(input)
}

fn with_port(host: Host, port: Option<u16>) -> Portal {
    Portal {
        host,
        port: port.unwrap_or(PORT_DEFAULT),
    }
}

fn v6_characters(input: &str) -> IResult<&str, &str> {
    // A dot is for the IPv4 tail of mapped addresses.
    take_while1(|c: char| c.is_ascii_hexdigit() || c == ':' || c == '.').parse(input)
}

fn bracketed(input: &str) -> IResult<&str, Portal> {
    let address = map_opt(v6_characters, |text: &str| text.parse::<Ipv6Addr>().ok());
    let (input, (ip, port)) = (delimited(char('['), address, char(']')), opt(port)).parse(input)?;
    Ok((input, with_port(Host::Ip(ip.into()), port)))
}

/// An IPv6 address without brackets, with or without a port.
fn bare_v6(input: &str) -> IResult<&str, Portal> {
    map_opt(v6_characters, |text: &str| {
        let split = text.rsplit_once(':').and_then(|(head, tail)| {
            let ip = head.parse::<Ipv6Addr>().ok()?;
            let port = tail.parse::<u16>().ok().filter(|port| *port != 0)?;
            Some((ip, port))
        });
        let whole = text.parse::<Ipv6Addr>().ok();
        match (split, whole) {
            (Some((ip, port)), whole)
                if whole.is_none() || port == PORT_DEFAULT || port == PORT_SYSTEM =>
            {
                Some(with_port(Host::Ip(ip.into()), Some(port)))
            }
            (_, Some(ip)) => Some(with_port(Host::Ip(ip.into()), None)),
            _ => None,
        }
    })
    .parse(input)
}

fn named(input: &str) -> IResult<&str, Portal> {
    let label = recognize((
        satisfy(|c| c.is_ascii_alphanumeric() || c == '_'),
        opt(take_while1(|c: char| {
            c.is_ascii_alphanumeric() || c == '-' || c == '_'
        })),
    ));
    let name = terminated(recognize(separated_list1(char('.'), label)), opt(tag(".")));
    let host = map_opt(name, |text: &str| {
        if let Ok(ip) = text.parse::<Ipv4Addr>() {
            return Some(Host::Ip(ip.into()));
        }
        let labels_fit = text
            .split('.')
            .all(|label| label.len() <= 63 && !label.ends_with('-'));
        // A name whose last part is a number is an IPv4 address with a mistake.
        let last_is_number = text
            .rsplit('.')
            .next()
            .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
        (labels_fit && !last_is_number && text.len() <= DNS_NAME_MAX_BYTES)
            .then(|| Host::Name(lower(text)))
    });
    let (input, (host, port)) = (host, opt(port)).parse(input)?;
    Ok((input, with_port(host, port)))
}

fn lower(text: &str) -> Arc<str> {
    let lowered: Cow<'_, str> = if text.bytes().any(|b| b.is_ascii_uppercase()) {
        text.to_ascii_lowercase().into()
    } else {
        text.into()
    };
    Arc::from(lowered)
}

impl fmt::Display for Portal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            host => write!(f, "{host}:{}", self.port),
        }
    }
}

impl fmt::Display for TargetAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.portal.fmt(f)?;
        self.tpgt.map_or(Ok(()), |tpgt| write!(f, ",{tpgt}"))
    }
}

impl FromStr for Portal {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

impl FromStr for TargetAddress {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

impl From<std::net::SocketAddr> for Portal {
    fn from(address: std::net::SocketAddr) -> Self {
        Self {
            host: Host::Ip(address.ip()),
            port: address.port(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_of_all_forms() {
        // RFC 7143 13.8; the last five are what sloppy targets send.
        for (text, shown) in [
            ("192.0.2.10", "192.0.2.10:3260"),
            ("192.0.2.10:860", "192.0.2.10:860"),
            ("192.0.2.10:3260,1", "192.0.2.10:3260,1"),
            ("192.0.2.10,0", "192.0.2.10:3260,0"),
            ("[2001:db8::1]", "[2001:db8::1]:3260"),
            ("[2001:DB8::1]:5000,65535", "[2001:db8::1]:5000,65535"),
            ("[::ffff:192.0.2.1]:3260", "[::ffff:192.0.2.1]:3260"),
            ("Array.Example.com", "array.example.com:3260"),
            ("array-1.example.com.:3261,7", "array-1.example.com:3261,7"),
            ("localhost:3260", "localhost:3260"),
            ("2001:db8::1", "[2001:db8::1]:3260"),
            ("2001:db8::1,2", "[2001:db8::1]:3260,2"),
            ("2001:db8::1:3260,2", "[2001:db8::1]:3260,2"),
            ("2001:db8:1:2:3:4:5:6:5000", "[2001:db8:1:2:3:4:5:6]:5000"),
            ("2001:db8::5000", "[2001:db8::5000]:3260"),
        ] {
            let address = TargetAddress::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(address.to_string(), shown, "{text}");
        }
    }

    #[test]
    fn other_addresses_are_refused() {
        for text in [
            "",
            ":",
            ":3260",
            "host:",
            "host:0",
            "host:65536",
            "host:99999",
            "host:-1",
            "host,",
            "host,65536",
            "host:1:2",
            "256.1.1.1",
            "1.2.3",
            "1.2.3.4.5",
            "-host",
            "host-",
            "a..b",
            "[::1",
            "::1]",
            "[]",
            "[192.0.2.1]",
            "[::1]3260",
            "[fe80::1%eth0]:3260",
            "fe80::1%2",
            "a b",
            "a/b",
            "host\n",
            "1::2::3",
            "a,1,2",
            "h\u{f6}st",
        ] {
            assert!(TargetAddress::parse(text).is_err(), "{text:?}");
        }
        assert!(TargetAddress::parse(&"a".repeat(64)).is_err());
        assert!(TargetAddress::parse(&"a.".repeat(200)).is_err());
        assert!(TargetAddress::parse(&"a".repeat(100_000)).is_err());
        assert!(Portal::parse("192.0.2.1:3260,1").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_taken_or_refused(text in "\\PC{0,300}") {
            if let Ok(address) = TargetAddress::parse(&text) {
                prop_assert_eq!(TargetAddress::parse(&address.to_string()), Ok(address));
            }
        }

        #[test]
        fn portals_round_trip(ip in any::<IpAddr>(), port in 1u16.., tpgt in any::<Option<u16>>()) {
            let address = TargetAddress { portal: Portal { host: Host::Ip(ip), port }, tpgt };
            prop_assert_eq!(TargetAddress::parse(&address.to_string()), Ok(address));
        }

        #[test]
        fn a_text_of_address_characters_never_panics(text in "[0-9a-f:.,%\\[\\]-]{0,60}") {
            if let Ok(address) = TargetAddress::parse(&text) {
                prop_assert_eq!(TargetAddress::parse(&address.to_string()), Ok(address));
            }
        }
    }
}

//! The address of an iSCSI portal.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a target listens: `host:port` or `[v6]:port`; the port may be left out and is then 3260.
///
/// The host is a name, an IPv4 or an IPv6 address (with a zone: `[fe80::1%eth0]:3260`). Names are
/// resolved at each login, not here.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Portal {
    host: String,
    port: u16,
}

impl Portal {
    /// The port that IANA gave to iSCSI targets (RFC 7143 15).
    pub const DEFAULT_PORT: u16 = 3260;

    /// A portal of a host and a port.
    ///
    /// # Errors
    /// The host is neither a name nor an address, or the port is 0.
    pub fn new(host: &str, port: u16) -> Result<Self, PortalError> {
        if port == 0 {
            return Err(PortalError::Port);
        }
        if host.contains(':') {
            check_v6(host)?;
        } else {
            check_name(host)?;
        }
        Ok(Self {
            host: host.to_ascii_lowercase(),
            port,
        })
    }

    /// The host without brackets, in lower case, as a resolver takes it.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The TCP port, never 0.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for Portal {
    type Err = PortalError;

    fn from_str(text: &str) -> Result<Self, PortalError> {
        if text.is_empty() {
            return Err(PortalError::Empty);
        }
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, tail) = rest.split_once(']').ok_or(PortalError::Bracket)?;
            if !host.contains(':') {
                return Err(PortalError::Ipv6);
            }
            match tail.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if tail.is_empty() => (host, None),
                None => return Err(PortalError::Bracket),
            }
        } else {
            match text.split_once(':') {
                Some((_, rest)) if rest.contains(':') => return Err(PortalError::BareIpv6),
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            }
        };
        let port = match port {
            None => Self::DEFAULT_PORT,
            // `u16::from_str` would take "+3260".
            Some(digits) if !digits.bytes().all(|b| b.is_ascii_digit()) => {
                return Err(PortalError::Port);
            }
            Some(digits) => digits.parse().map_err(|_| PortalError::Port)?,
        };
        Self::new(host, port)
    }
}

fn check_v6(host: &str) -> Result<(), PortalError> {
    let (address, zone) = match host.split_once('%') {
        Some((address, zone)) => (address, Some(zone)),
        None => (host, None),
    };
    // An interface name has at most 15 bytes, and no blank or slash.
    let zone_fits = |zone: &str| {
        (1..=15).contains(&zone.len())
            && zone
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-@".contains(&b))
    };
    if address.parse::<Ipv6Addr>().is_err() || !zone.is_none_or(zone_fits) {
        return Err(PortalError::Ipv6);
    }
    Ok(())
}

/// A host name (RFC 1123 2.1, and the underscore that is seen in the field) or an IPv4 address.
fn check_name(host: &str) -> Result<(), PortalError> {
    if host.is_empty() {
        return Err(PortalError::Empty);
    }
    let label_fits = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let labels = host.strip_suffix('.').unwrap_or(host);
    if host.len() > 253 || !labels.split('.').all(label_fits) {
        return Err(PortalError::Host);
    }
    // All digits and dots is an address or a mistake ("10.0.0.256"), never a name.
    if host.bytes().all(|b| b.is_ascii_digit() || b == b'.')
        && host.parse::<std::net::Ipv4Addr>().is_err()
    {
        return Err(PortalError::Ipv4);
    }
    Ok(())
}

impl fmt::Display for Portal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Debug for Portal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Portal({self})")
    }
}

impl TryFrom<String> for Portal {
    type Error = PortalError;

    fn try_from(text: String) -> Result<Self, PortalError> {
        text.parse()
    }
}

impl From<Portal> for String {
    fn from(portal: Portal) -> Self {
        portal.to_string()
    }
}

/// Why a text is not the address of a portal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PortalError {
    /// No host.
    #[error("a portal must name a host, as in 192.0.2.10:3260")]
    Empty,
    /// Port 0, above 65535 or not a number.
    #[error("the port of a portal is a number from 1 to 65535, as in 192.0.2.10:3260")]
    Port,
    /// `[` without `]`, or something else than a port after it.
    #[error("an IPv6 portal is written [2001:db8::1]:3260")]
    Bracket,
    /// Not an IPv6 address.
    #[error("what stands in brackets must be an IPv6 address, as in [2001:db8::1]:3260")]
    Ipv6,
    /// IPv6 without brackets: the port could not be told from the address.
    #[error("an IPv6 address of a portal stands in brackets: [2001:db8::1]:3260")]
    BareIpv6,
    /// Digits and dots that are no address.
    #[error("an IPv4 address has four numbers from 0 to 255, as in 192.0.2.10")]
    Ipv4,
    /// Not a host name.
    #[error("a host name is made of letters, digits, '-', '_' and '.', and has at most 253 bytes")]
    Host,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portals_are_kept_in_one_form() {
        for (text, kept) in [
            ("192.0.2.10:3260", "192.0.2.10:3260"),
            ("192.0.2.10", "192.0.2.10:3260"),
            ("Array-1.Example.:860", "array-1.example.:860"),
            ("[2001:DB8::1]:3261", "[2001:db8::1]:3261"),
            ("[::1]", "[::1]:3260"),
            ("[fe80::1%eth0]:3260", "[fe80::1%eth0]:3260"),
        ] {
            let portal: Portal = text.parse().unwrap();
            assert_eq!(portal.to_string(), kept);
            assert_eq!(kept.parse::<Portal>().unwrap(), portal);
        }
    }

    #[test]
    fn what_is_no_portal() {
        use PortalError as E;
        for (text, error) in [
            ("", E::Empty),
            (":3260", E::Empty),
            ("host:", E::Port),
            ("host:0", E::Port),
            ("host:65536", E::Port),
            ("host:+3260", E::Port),
            ("host:iscsi", E::Port),
            ("2001:db8::1", E::BareIpv6),
            ("2001:db8::1:3260", E::BareIpv6),
            ("[2001:db8::1", E::Bracket),
            ("[2001:db8::1]3260", E::Bracket),
            ("[192.0.2.1]:3260", E::Ipv6),
            ("[2001:db8::g]:3260", E::Ipv6),
            ("[fe80::1%]:3260", E::Ipv6),
            ("[fe80::1%a/b]:3260", E::Ipv6),
            ("10.0.0.256:3260", E::Ipv4),
            ("10.0.0:3260", E::Ipv4),
            ("a b:3260", E::Host),
            ("-a:3260", E::Host),
            ("a..b", E::Host),
            ("user@host:3260", E::Host),
        ] {
            assert_eq!(text.parse::<Portal>(), Err(error), "{text:?}");
        }
    }
}

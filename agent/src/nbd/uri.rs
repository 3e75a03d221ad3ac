//! NBD URIs (NBD `uri.md`): `nbd+unix:///export?socket=PATH`, `nbd://host[:port]/export`, and both with
//! `nbds` for TLS.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nom::branch::alt;
use nom::bytes::complete::{tag, take_till, take_while1};
use nom::character::complete::{char, digit1};
use nom::combinator::{all_consuming, map_res, opt, rest};
use nom::multi::separated_list0;
use nom::sequence::{delimited, preceded, separated_pair};
use nom::{IResult, Parser};

/// Port of NBD over TCP.
pub const DEFAULT_PORT: u16 = 10809;

/// Where an NBD server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// A Unix socket.
    Unix(PathBuf),
    /// Host (IPv6 without brackets) and port.
    Tcp(String, u16),
}

/// An export and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uri {
    /// Where the server is.
    pub transport: Transport,
    /// TLS must be used.
    pub tls: bool,
    /// Export name; empty for the default export.
    pub export: String,
}

/// Why a text is no NBD URI that we understand.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// The scheme is unknown.
    #[error("an NBD URI starts with nbd://, nbds://, nbd+unix:// or nbds+unix://, not {0:?}")]
    Scheme(String),
    /// Host or port cannot be parsed.
    #[error("{0:?} is not a host with an optional port")]
    Authority(String),
    /// A Unix URI names a host, or no socket.
    #[error("a Unix socket is named by ?socket=PATH, and there is no host")]
    Socket,
    /// An escape is not `%` and two hexadecimal digits, or the result is not UTF-8 or contains NUL.
    #[error("{0:?} is not percent-encoded UTF-8 text")]
    Escape(String),
    /// A query part that is no `key=value`.
    #[error("{0:?} is not key=value")]
    Query(String),
    /// A key that is not part of the specification.
    #[error("unknown key {0:?}; known are socket, tls-type, tls-hostname, tls-verify-peer and x-*")]
    UnknownKey(String),
}

impl Uri {
    /// The URI of an export on a Unix socket.
    #[must_use]
    pub fn unix(socket: impl Into<PathBuf>, export: impl Into<String>) -> Self {
        Self {
            transport: Transport::Unix(socket.into()),
            tls: false,
            export: export.into(),
        }
    }

    /// The Unix socket, if it is one.
    #[must_use]
    pub fn socket(&self) -> Option<&Path> {
        match &self.transport {
            Transport::Unix(path) => Some(path),
            Transport::Tcp(..) => None,
        }
    }
}

struct Parts<'a> {
    tls: bool,
    unix: bool,
    authority: &'a str,
    path: Option<&'a str>,
    query: Option<&'a str>,
}

fn parts(text: &str) -> IResult<&str, Parts<'_>> {
    let scheme = alt((
        tag("nbds+unix").map(|_| (true, true)),
        tag("nbd+unix").map(|_| (false, true)),
        tag("nbds").map(|_| (true, false)),
        tag("nbd").map(|_| (false, false)),
    ));
    (
        scheme,
        tag("://"),
        take_till(|c| c == '/' || c == '?'),
        opt(preceded(char('/'), take_till(|c| c == '?'))),
        opt(preceded(char('?'), rest)),
    )
        .map(|((tls, unix), _, authority, path, query)| Parts {
            tls,
            unix,
            authority,
            path,
            query,
        })
        .parse(text)
}

fn authority(text: &str) -> IResult<&str, (&str, Option<u16>)> {
    let bracketed = delimited(
        char('['),
        take_while1(|c: char| c.is_ascii_hexdigit() || c == ':' || c == '.'),
        char(']'),
    );
    let name = take_while1(|c: char| c.is_ascii_alphanumeric() || "-._~".contains(c));
    let port = map_res(digit1, str::parse::<u16>);
    all_consuming((alt((bracketed, name)), opt(preceded(char(':'), port)))).parse(text)
}

fn query(text: &str) -> IResult<&str, Vec<(&str, &str)>> {
    let pair = separated_pair(
        take_while1(|c| c != '=' && c != '&'),
        char('='),
        take_till(|c| c == '&'),
    );
    all_consuming(separated_list0(char('&'), pair)).parse(text)
}

/// Undoes percent-encoding.
fn decode(text: &str) -> Result<String, UriError> {
    let wrong = || UriError::Escape(text.to_owned());
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
        let (high, low) = (digit(bytes.next()), digit(bytes.next()));
        let (Some(high), Some(low)) = (high, low) else {
            return Err(wrong());
        };
        // Two hexadecimal digits are one byte.
        out.push((high << 4 | low) as u8);
    }
    String::from_utf8(out)
        .ok()
        .filter(|text| !text.contains('\0'))
        .ok_or_else(wrong)
}

impl FromStr for Uri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let (_, parts) = parts(text).map_err(|_| {
            let scheme = text.split("://").next().unwrap_or(text);
            UriError::Scheme(scheme.chars().take(32).collect())
        })?;
        let mut socket = None;
        if let Some(text) = parts.query.filter(|text| !text.is_empty()) {
            let (_, pairs) = query(text).map_err(|_| UriError::Query(text.to_owned()))?;
            for (key, value) in pairs {
                match decode(key)?.as_str() {
                    "socket" => socket = Some(decode(value)?),
                    "tls-type" | "tls-hostname" | "tls-verify-peer" => {}
                    key if key.starts_with("x-") => {}
                    key => return Err(UriError::UnknownKey(key.to_owned())),
                }
            }
        }
        let transport = if parts.unix {
            match socket {
                Some(path) if parts.authority.is_empty() && !path.is_empty() => {
                    Transport::Unix(path.into())
                }
                _ => return Err(UriError::Socket),
            }
        } else {
            let (_, (host, port)) = authority(parts.authority)
                .map_err(|_| UriError::Authority(parts.authority.to_owned()))?;
            if socket.is_some() {
                return Err(UriError::Socket);
            }
            Transport::Tcp(host.to_owned(), port.unwrap_or(DEFAULT_PORT))
        };
        Ok(Self {
            transport,
            tls: parts.tls,
            export: decode(parts.path.unwrap_or_default())?,
        })
    }
}

/// Percent-encodes what is neither unreserved nor harmless in a path or a query value.
struct Encoded<'a>(&'a str);

impl fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~/:@,".contains(&byte) {
                write!(f, "{}", char::from(byte))?;
            } else {
                write!(f, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.tls { "nbds" } else { "nbd" })?;
        let export = Encoded(&self.export);
        match &self.transport {
            Transport::Unix(path) => {
                let path = path.to_string_lossy();
                write!(f, "+unix:///{export}?socket={}", Encoded(&path))
            }
            Transport::Tcp(host, port) => {
                if host.contains(':') {
                    write!(f, "://[{host}]")?;
                } else {
                    write!(f, "://{host}")?;
                }
                if *port != DEFAULT_PORT {
                    write!(f, ":{port}")?;
                }
                write!(f, "/{export}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn unix_uris() {
        let uri: Uri = "nbd+unix:///disk0?socket=/run/berth/nbd.sock"
            .parse()
            .unwrap();
        assert_eq!(uri, Uri::unix("/run/berth/nbd.sock", "disk0"));
        assert_eq!(
            uri.to_string(),
            "nbd+unix:///disk0?socket=/run/berth/nbd.sock"
        );
        let uri: Uri = "nbd+unix://?socket=a%20b&x-mark=1".parse().unwrap();
        assert_eq!(uri, Uri::unix("a b", ""));
    }

    // uri.md: the path without its first slash is the export name.
    #[test]
    fn export_names() {
        for (text, export) in [
            ("nbd://h", ""),
            ("nbd://h/", ""),
            ("nbd://h/disk", "disk"),
            ("nbd://h//disk", "/disk"),
            ("nbd://h/a%2Fb%3f", "a/b?"),
            ("nbd://h/%C3%A4", "ä"),
        ] {
            assert_eq!(text.parse::<Uri>().unwrap().export, export, "{text}");
        }
    }

    #[test]
    fn hosts() {
        for (text, host, port) in [
            ("nbd://example.org/", "example.org", 10809),
            ("nbds://192.0.2.1:4/", "192.0.2.1", 4),
            ("nbd://[2001:db8::1]:5/x", "2001:db8::1", 5),
            ("nbd://[::1]", "::1", 10809),
        ] {
            let uri: Uri = text.parse().unwrap();
            assert_eq!(uri.transport, Transport::Tcp(host.into(), port), "{text}");
            assert_eq!(uri.tls, text.starts_with("nbds"));
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, error) in [
            ("http://h/", UriError::Scheme("http".into())),
            ("disk0", UriError::Scheme("disk0".into())),
            ("nbd:///x", UriError::Authority(String::new())),
            ("nbd://h:99999/", UriError::Authority("h:99999".into())),
            ("nbd+unix:///x", UriError::Socket),
            ("nbd+unix://h/x?socket=/s", UriError::Socket),
            ("nbd+unix:///x?socket=%00a", UriError::Escape("%00a".into())),
            ("nbd://h/%4", UriError::Escape("%4".into())),
            ("nbd://h/%ff", UriError::Escape("%ff".into())),
            ("nbd+unix:///x?socket", UriError::Query("socket".into())),
            (
                "nbd+unix:///x?sokcet=/s",
                UriError::UnknownKey("sokcet".into()),
            ),
        ] {
            assert_eq!(text.parse::<Uri>(), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn uris_round_trip(path in "/[^\\x00]{1,40}", export in "[^\\x00]{0,40}", port: u16, tls: bool) {
            let unix = Uri { tls, ..Uri::unix(path, export.clone()) };
            prop_assert_eq!(unix.to_string().parse(), Ok(unix));
            for host in ["host-1.example", "::1"] {
                let transport = Transport::Tcp(host.into(), port);
                let tcp = Uri { transport, tls, export: export.clone() };
                prop_assert_eq!(tcp.to_string().parse(), Ok(tcp));
            }
        }

        #[test]
        fn anything_is_survived(text in ".{0,80}") {
            let _ = text.parse::<Uri>();
            let _ = format!("nbd+unix://{text}").parse::<Uri>();
        }
    }
}

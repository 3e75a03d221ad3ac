//! HTTP as a stranger would speak it: written against the published contract, not with the product's own types, so that
//! client and server cannot agree on a mistake.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Header lines, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body as it came.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("status {}, body {:?}", self.status, self.text()))
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// Sends one request over the socket and reads the whole answer.
///
/// # Errors
/// When the connection fails, nothing comes within the time, or the answer is not HTTP/1.1.
pub fn request(
    socket: &Path,
    method: &str,
    path: &str,
    body: Option<&Value>,
    within: Duration,
) -> Result<Answer> {
    let stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
    stream.set_read_timeout(Some(within))?;
    exchange(stream, method, path, &[], body)
}

/// The same over TCP, with more header lines.
///
/// # Errors
/// As [`request`].
pub fn request_tcp(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<&Value>,
    within: Duration,
) -> Result<Answer> {
    let stream = TcpStream::connect(address).with_context(|| address.to_string())?;
    stream.set_read_timeout(Some(within))?;
    exchange(stream, method, path, headers, body)
}

fn exchange(
    mut stream: impl Read + Write,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<&Value>,
) -> Result<Answer> {
    let body = body.map(Value::to_string).unwrap_or_default();
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: berth\r\nConnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() {
        head += &format!(
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        );
    }
    stream.write_all(format!("{head}\r\n{body}").as_bytes())?;
    let mut bytes = Vec::new();
    stream
        .read_to_end(&mut bytes)
        .with_context(|| format!("answer to {method} {path}"))?;
    parse(&bytes).with_context(|| format!("answer to {method} {path}"))
}

fn parse(bytes: &[u8]) -> Result<Answer> {
    let end = bytes
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .context("no end of the header")?;
    let head = std::str::from_utf8(&bytes[..end]).context("header")?;
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let mut words = first.split(' ');
    ensure!(words.next() == Some("HTTP/1.1"), "status line {first:?}");
    let status = words
        .next()
        .unwrap_or_default()
        .parse()
        .with_context(|| first.to_owned())?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let find = |name: &str| {
        headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, v)| v.as_str())
    };
    let rest = &bytes[end + 4..];
    let body = if find("transfer-encoding") == Some("chunked") {
        unchunk(rest)?
    } else if let Some(len) = find("content-length") {
        let len: usize = len.parse().context("content-length")?;
        ensure!(
            rest.len() == len,
            "{} bytes of body instead of {len}",
            rest.len()
        );
        rest.to_vec()
    } else {
        rest.to_vec()
    };
    Ok(Answer {
        status,
        headers,
        body,
    })
}

fn unchunk(mut rest: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest
            .windows(2)
            .position(|w| w == b"\r\n")
            .context("chunk size")?;
        let len = usize::from_str_radix(std::str::from_utf8(&rest[..end])?.trim(), 16)?;
        let data = rest
            .get(end + 2..end + 2 + len)
            .context("chunk is cut off")?;
        if len == 0 {
            return Ok(body);
        }
        body.extend_from_slice(data);
        match rest.get(end + 2 + len..) {
            Some([b'\r', b'\n', next @ ..]) => rest = next,
            _ => bail!("chunk without an end"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_and_chunked_answers_are_read() {
        let plain =
            parse(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\nX-A: b\r\n\r\n{}").unwrap();
        assert_eq!((plain.status, plain.text().as_str()), (201, "{}"));
        assert_eq!(plain.header("x-a"), Some("b"));
        let chunked =
            parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
                .unwrap();
        assert_eq!(chunked.text(), "abcde");
    }

    #[test]
    fn an_answer_that_was_cut_off_is_an_error() {
        parse(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc").unwrap_err();
        parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc").unwrap_err();
        parse(b"garbage").unwrap_err();
    }
}

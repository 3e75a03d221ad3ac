//! Reading server-sent events (WHATWG HTML, 9.2.6 Interpreting an event stream).

use std::time::Duration;

use http_body_util::BodyExt as _;

use super::ClientError;
use super::transport::Streaming;
use crate::types::Event;

/// Longest event that is taken, in bytes.
const EVENT_LEN_MAX: usize = 1024 * 1024;
/// Silence after which the connection counts as dead: three of the server's keep-alives.
const SILENCE_MAX: Duration = Duration::from_secs(45);

/// A stream of events. Ends when the daemon stops; go on with [`EventReader::last_id`] after that.
pub struct EventReader {
    stream: Streaming,
    parser: Parser,
    last_id: Option<u64>,
}

impl EventReader {
    pub(super) fn new(stream: Streaming) -> Self {
        Self {
            stream,
            parser: Parser::default(),
            last_id: None,
        }
    }

    /// The next event; `None` when the daemon has ended the stream. Safe to cancel.
    ///
    /// # Errors
    /// The connection broke, or was silent for longer than the daemon's keep-alives allow.
    pub async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        loop {
            if let Some(data) = self.parser.next()? {
                let event: Event =
                    serde_json::from_str(&data).map_err(|error| ClientError::Protocol {
                        what: "an event does not fit; is the daemon another version?".to_owned(),
                        source: Some(error.into()),
                    })?;
                self.last_id = Some(event.id);
                return Ok(Some(event));
            }
            let frame = tokio::time::timeout(SILENCE_MAX, self.stream.body.frame())
                .await
                .map_err(|_| ClientError::Timeout(SILENCE_MAX))?;
            match frame {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.parser.feed(data);
                    }
                }
                Some(Err(error)) => {
                    return Err(ClientError::Protocol {
                        what: "the stream of events broke".to_owned(),
                        source: Some(error.into()),
                    });
                }
            }
        }
    }

    /// Id of the last event that was returned.
    #[must_use]
    pub fn last_id(&self) -> Option<u64> {
        self.last_id
    }
}

/// Takes bytes, gives the data of events. Ids and names are repeated in the data, so they are skipped.
#[derive(Default)]
struct Parser {
    buffer: Vec<u8>,
    /// Bytes of the buffer that are used up.
    taken: usize,
    data: String,
    /// The last line ended with CR: an LF that follows belongs to it.
    after_cr: bool,
}

impl Parser {
    fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The data of the next whole event.
    fn next(&mut self) -> Result<Option<String>, ClientError> {
        loop {
            if self.after_cr && self.taken < self.buffer.len() {
                self.after_cr = false;
                if self.buffer[self.taken] == b'\n' {
                    self.taken += 1;
                }
            }
            let rest = &self.buffer[self.taken..];
            if rest.len() + self.data.len() > EVENT_LEN_MAX {
                return Err(ClientError::protocol(format!(
                    "an event has more than {EVENT_LEN_MAX} bytes"
                )));
            }
            let Some(end) = rest.iter().position(|b| matches!(b, b'\n' | b'\r')) else {
                return Ok(None);
            };
            let line = &rest[..end];
            self.after_cr = rest[end] == b'\r';
            if let Some(value) = line.strip_prefix(b"data:") {
                let value = value.strip_prefix(b" ").unwrap_or(value);
                self.data.push_str(&String::from_utf8_lossy(value));
                self.data.push('\n');
            }
            let is_end = line.is_empty();
            self.taken += end + 1;
            if is_end && !self.data.is_empty() {
                self.data.pop();
                return Ok(Some(std::mem::take(&mut self.data)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(parser: &mut Parser) -> Vec<String> {
        std::iter::from_fn(|| parser.next().unwrap()).collect()
    }

    /// WHATWG HTML 9.2.6: lines end with LF, CR or CRLF; comments; data over several lines.
    #[test]
    fn events_are_found_wherever_the_bytes_are_cut() {
        let text = "id: 1\nevent: state\ndata: a\n\n: keep-alive\n\ndata:b\r\ndata: c\r\n\r\ndata: d\r\rdata: e";
        for step in 1..text.len() {
            let mut parser = Parser::default();
            let mut events = Vec::new();
            for chunk in text.as_bytes().chunks(step) {
                parser.feed(chunk);
                events.extend(all(&mut parser));
            }
            assert_eq!(events, ["a", "b\nc", "d"], "in steps of {step}");
        }
    }

    #[test]
    fn an_event_without_end_is_refused() {
        let mut parser = Parser::default();
        parser.feed(&vec![b'x'; EVENT_LEN_MAX]);
        assert!(parser.next().unwrap().is_none());
        parser.feed(b"x");
        assert!(parser.next().is_err());

        let mut parser = Parser::default();
        let line = format!("data: {}\n", "x".repeat(1000));
        let refused = (0..2000).any(|_| {
            parser.feed(line.as_bytes());
            parser.next().is_err()
        });
        assert!(refused);
    }
}

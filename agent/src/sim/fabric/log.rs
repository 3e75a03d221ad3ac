//! The log of requests, for tests and for people who wonder what a client does.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

/// Requests that are remembered; older ones are forgotten.
const ENTRIES_MAX: usize = 100_000;
/// Bodies with more bytes are not remembered.
const BODY_MAX_BYTES: usize = 64 * 1024;

/// One request.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoggedRequest {
    /// Number of the request since the start, from 1; the `api_req_id` of errors.
    pub number: u64,
    /// When it came, in milliseconds since 1970.
    pub unix_ms: u64,
    /// Method.
    pub method: String,
    /// Path with the version, without the query.
    pub path: String,
    /// Query, decoded, in the order it came in.
    pub query: Vec<(String, String)>,
    /// Header `tenant`.
    pub tenant: Option<String>,
    /// Header `Datera-Driver`.
    pub driver: Option<String>,
    /// The JSON body, with passwords hidden.
    pub body: Option<Value>,
    /// Whether it came over TLS.
    pub tls: bool,
    /// Status of the answer; `None` when there was none.
    pub status: Option<u16>,
    /// Name of the error.
    pub error: Option<String>,
    /// How long it took in milliseconds.
    pub duration_ms: u64,
    /// A fault rule hit it.
    pub fault: bool,
}

/// The last requests, and a file with all of them.
#[derive(Debug, Default)]
pub(super) struct RequestLog {
    entries: VecDeque<LoggedRequest>,
    file: Option<File>,
}

impl RequestLog {
    /// A log that is also appended to a file.
    pub(super) fn with_file(path: &Path) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        Ok(Self {
            entries: VecDeque::new(),
            file: Some(file),
        })
    }

    pub(super) fn push(&mut self, entry: LoggedRequest) {
        if let Some(file) = &mut self.file {
            let written = serde_json::to_vec(&entry)
                .map_err(io::Error::other)
                .and_then(|mut line| {
                    line.push(b'\n');
                    file.write_all(&line)
                });
            if let Err(error) = written {
                tracing::warn!(%error, "the log of requests cannot be written");
            }
        }
        if self.entries.len() >= ENTRIES_MAX {
            self.entries.pop_front();
        }
        self.entries.push_back(entry);
    }

    /// Requests after the one with that number.
    pub(super) fn since(&self, number: u64) -> Vec<LoggedRequest> {
        let entries = self.entries.iter();
        entries
            .filter(|entry| entry.number > number)
            .cloned()
            .collect()
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }
}

/// A body as it may be remembered.
pub(super) fn redacted(body: &Value, len_bytes: usize) -> Option<Value> {
    if body.is_null() || len_bytes > BODY_MAX_BYTES {
        return None;
    }
    let mut body = body.clone();
    hide(&mut body);
    Some(body)
}

fn hide(value: &mut Value) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let secret = ["password", "pswd", "secret"]
                    .iter()
                    .any(|word| name.to_ascii_lowercase().contains(word));
                if secret {
                    *member = Value::from("(hidden)");
                } else {
                    hide(member);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(hide),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn passwords_are_hidden_wherever_they_are() {
        let body = json!({"name": "admin", "password": "p", "storage_instances": [{"auth": {"target_pswd": "x"}}]});
        let shown = redacted(&body, 10).unwrap();
        assert_eq!(shown["password"], "(hidden)");
        assert_eq!(
            shown["storage_instances"][0]["auth"]["target_pswd"],
            "(hidden)"
        );
        assert_eq!(shown["name"], "admin");
        assert_eq!(redacted(&body, BODY_MAX_BYTES + 1), None);
    }
}

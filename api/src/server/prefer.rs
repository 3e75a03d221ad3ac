//! The `Prefer` header (RFC 7240), as far as we have preferences.

use std::time::Duration;

use axum::http::HeaderMap;

use crate::error::{Code, Error};

/// How a caller wants to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Prefer {
    /// `respond-async`: rather 202 than waiting.
    pub(super) respond_async: bool,
    /// `wait=SECONDS`: no longer than this.
    pub(super) wait: Option<Duration>,
}

impl Prefer {
    /// Longest wait that is honoured.
    const WAIT_MAX: Duration = Duration::from_secs(600);

    /// Reads all `Prefer` headers. Preferences that we do not know are ignored, as RFC 7240 2 asks;
    /// of repeated ones the first counts.
    ///
    /// # Errors
    /// `wait` is not a number of seconds: ignoring that would make a caller with a deadline wait
    /// without one.
    pub(super) fn parse(headers: &HeaderMap) -> Result<Self, Error> {
        let mut prefer = Self::default();
        for value in headers.get_all("prefer") {
            let Ok(text) = value.to_str() else { continue };
            for preference in text.split(',') {
                let token = preference.split(';').next().unwrap_or_default();
                let (name, value) = match token.split_once('=') {
                    Some((name, value)) => (name.trim(), value.trim().trim_matches('"')),
                    None => (token.trim(), ""),
                };
                if name.eq_ignore_ascii_case("respond-async") {
                    prefer.respond_async = true;
                } else if name.eq_ignore_ascii_case("wait") && prefer.wait.is_none() {
                    let seconds: u32 = value.parse().map_err(|_| {
                        Error::new(
                            Code::InvalidArgument,
                            "Prefer: wait takes whole seconds, as in Prefer: wait=10",
                        )
                        .with_field("Prefer")
                    })?;
                    prefer.wait = Some(Duration::from_secs(seconds.into()).min(Self::WAIT_MAX));
                }
            }
        }
        Ok(prefer)
    }

    /// How long to wait for an outcome before answering without one; `None`: until it is there.
    pub(super) fn limit(self) -> Option<Duration> {
        match self {
            Self {
                wait: Some(wait), ..
            } => Some(wait),
            Self {
                respond_async: true,
                ..
            } => Some(Duration::ZERO),
            Self { .. } => None,
        }
    }

    /// What `Preference-Applied` says of an answer that did not wait for the outcome.
    pub(super) fn applied(self) -> &'static str {
        if self.respond_async {
            "respond-async"
        } else {
            "wait"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(values: &[&str]) -> Result<Prefer, Error> {
        Prefer::parse(
            &values
                .iter()
                .map(|value| ("prefer".parse().unwrap(), value.parse().unwrap()))
                .collect(),
        )
    }

    /// RFC 7240 2 and 4.1, 4.3.
    #[test]
    fn preferences() {
        let seconds = Duration::from_secs;
        for (values, respond_async, wait) in [
            (&[][..], false, None),
            (&["respond-async"], true, None),
            (&["Respond-Async, WAIT=10"], true, Some(seconds(10))),
            (&["respond-async", "wait=\"5\""], true, Some(seconds(5))),
            (&["wait=5; x=y, wait=7"], false, Some(seconds(5))),
            (&["wait=0"], false, Some(seconds(0))),
            (&["wait=99999"], false, Some(seconds(600))),
            (&["handling=lenient, return=minimal"], false, None),
        ] {
            assert_eq!(
                parse(values).unwrap(),
                Prefer {
                    respond_async,
                    wait
                },
                "{values:?}"
            );
        }
        for bad in ["wait", "wait=", "wait=soon", "wait=-1", "wait=1.5"] {
            assert_eq!(
                parse(&[bad]).unwrap_err().code(),
                Code::InvalidArgument,
                "{bad}"
            );
        }
    }

    #[test]
    fn limits() {
        assert_eq!(parse(&[]).unwrap().limit(), None);
        assert_eq!(
            parse(&["respond-async"]).unwrap().limit(),
            Some(Duration::ZERO)
        );
        assert_eq!(
            parse(&["respond-async, wait=3"]).unwrap().limit(),
            Some(Duration::from_secs(3))
        );
    }
}

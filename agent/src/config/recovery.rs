//! `[iscsi.recovery]`: what is done when paths are lost, and how much is sent at a time.

use std::time::Duration;

use berth_api::types::RecoveryTimeout;
use serde::Deserialize;
use serde::de::{self, Deserializer};

use super::units::Span;
use crate::plane::spec::CacheLossPolicy;

/// `[iscsi.recovery]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recovery {
    /// How long I/O waits while no path works, for attachments that do not say: seconds or
    /// `"forever"`. Default 120, the time that Linux initiators wait: longer than the restart of a
    /// target, shorter than the patience of most applications.
    pub timeout_seconds: RecoveryTimeout,
    /// Pause before a lost path is tried again; doubled with each failure, with jitter. Default 500 ms:
    /// a portal that restarts is found soon, one that is gone is not hammered.
    pub retry_first: Span,
    /// The longest such pause. Default 30 s: what a path may take to be noticed when it comes back.
    pub retry_max: Span,
    /// After so long a session whose target cannot be reached is taken for gone, and its writes are
    /// sent on another path; `"forever"`: never. Default 60 s: targets end a silent connection sooner.
    pub stale_session_timeout: Limit,
    /// `"report"` or `"fail-flush"`: what is done when a unit lost its write cache with writes that were
    /// not flushed. Default report: a client that did not flush was promised nothing.
    #[serde(deserialize_with = "cache_loss")]
    pub cache_loss: CacheLossPolicy,
    /// Most commands in flight on one path. Default 128, the depth of target queues in the field; a
    /// target that is full lowers it for a while.
    pub queue_depth_max: u32,
}

impl Default for Recovery {
    fn default() -> Self {
        Self {
            timeout_seconds: RecoveryTimeout::default(),
            retry_first: Span(Duration::from_millis(500)),
            retry_max: Span(Duration::from_secs(30)),
            stale_session_timeout: Limit(Some(Duration::from_secs(60))),
            cache_loss: CacheLossPolicy::Report,
            queue_depth_max: 128,
        }
    }
}

impl Recovery {
    /// Checks what types cannot; the key and what is wrong with it.
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        let seconds = |key, span: Duration, least: Duration, most: u64| {
            if span < least || span > Duration::from_secs(most) {
                let message =
                    format!("{span:?} is out of range; use {least:?} to {most}s, with its unit");
                return Err((key, message));
            }
            Ok(())
        };
        let (first, max) = (self.retry_first.0, self.retry_max.0);
        let least = Duration::from_millis(10);
        seconds("iscsi.recovery.retry_first", first, least, 600)?;
        seconds("iscsi.recovery.retry_max", max, first, 3600)?;
        if let Some(limit) = self.stale_session_timeout.0 {
            let key = "iscsi.recovery.stale_session_timeout";
            seconds(key, limit, Duration::from_secs(1), 86_400)?;
        }
        if !(1..=4096).contains(&self.queue_depth_max) {
            let message = format!(
                "{} is out of range; use 1 to 4096 commands",
                self.queue_depth_max
            );
            return Err(("iscsi.recovery.queue_depth_max", message));
        }
        Ok(())
    }
}

/// A duration, or `"forever"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit(pub Option<Duration>);

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "forever" {
            return Ok(Self(None));
        }
        let wrong = || {
            let hint = "a duration such as \"60s\", or \"forever\"";
            de::Error::invalid_value(de::Unexpected::Str(&text), &hint)
        };
        Span::parse(&text)
            .map(|span| Self(Some(span.0)))
            .ok_or_else(wrong)
    }
}

fn cache_loss<'de, D: Deserializer<'de>>(deserializer: D) -> Result<CacheLossPolicy, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "report" => Ok(CacheLossPolicy::Report),
        "fail-flush" => Ok(CacheLossPolicy::FailFlush),
        other => Err(de::Error::invalid_value(
            de::Unexpected::Str(other),
            &"\"report\" or \"fail-flush\"",
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Config;
    use super::*;

    fn parse(text: &str) -> Result<Recovery, String> {
        Config::parse(text, Path::new("berth.toml"))
            .map(|config| config.iscsi.recovery)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_written_is_read() {
        let recovery = parse(
            "[iscsi.recovery]\ntimeout_seconds = \"forever\"\nretry_first = \"100ms\"\n\
             retry_max = \"2s\"\nstale_session_timeout = \"forever\"\ncache_loss = \"fail-flush\"\n\
             queue_depth_max = 32\n",
        )
        .expect("valid");
        assert_eq!(recovery.timeout_seconds, RecoveryTimeout::Forever);
        assert_eq!(recovery.retry_first.0, Duration::from_millis(100));
        assert_eq!(recovery.stale_session_timeout, Limit(None));
        assert_eq!(recovery.cache_loss, CacheLossPolicy::FailFlush);
        assert_eq!(recovery.queue_depth_max, 32);
        let recovery =
            parse("[iscsi.recovery]\ntimeout_seconds = 5\nstale_session_timeout = \"5s\"")
                .expect("valid");
        assert_eq!(recovery.timeout_seconds, RecoveryTimeout::Seconds(5));
        assert_eq!(
            recovery.stale_session_timeout,
            Limit(Some(Duration::from_secs(5)))
        );
    }

    #[test]
    fn what_cannot_work_is_refused_by_line_and_key() {
        for (line, key) in [
            ("retry_first = \"0s\"", "iscsi.recovery.retry_first"),
            ("retry_max = \"100ms\"", "iscsi.recovery.retry_max"),
            (
                "stale_session_timeout = \"0s\"",
                "iscsi.recovery.stale_session_timeout",
            ),
            ("queue_depth_max = 0", "iscsi.recovery.queue_depth_max"),
            ("stale_session_timeout = \"never\"", "forever"),
            ("cache_loss = \"ignore\"", "fail-flush"),
        ] {
            let message = parse(&format!("[iscsi.recovery]\n{line}\n")).expect_err(line);
            assert!(message.contains(key), "{line}: {message}");
            assert!(
                message.contains(":2: ") || message.contains("line 2"),
                "{message}"
            );
        }
    }
}

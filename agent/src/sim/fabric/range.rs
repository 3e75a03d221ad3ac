//! Spans of time in queries: `since=1d2h`, `from` and `to` as UNIX seconds or ISO 8601.

use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::{Iso8601, Rfc3339};

use super::answer::ApiError;
use super::call::Call;

/// From when to when, in milliseconds since 1970, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    from_ms: u64,
    to_ms: u64,
}

impl Range {
    /// What the query says; everything when it says nothing.
    pub(super) fn of(call: &Call, now_ms: u64) -> Result<Self, ApiError> {
        let mut range = Self {
            from_ms: 0,
            to_ms: u64::MAX,
        };
        if let Some(text) = call.param("since") {
            let since = span(text).ok_or_else(|| wrong("since", text, "a span such as 1d2h"))?;
            range.from_ms = now_ms.saturating_sub(millis(since));
        }
        for (name, end) in [("from", &mut range.from_ms), ("to", &mut range.to_ms)] {
            if let Some(text) = call.param(name) {
                let moment = "UNIX seconds or a time of ISO 8601";
                *end = moment_ms(text).ok_or_else(|| wrong(name, text, moment))?;
            }
        }
        Ok(range)
    }

    /// Whether a moment is in it.
    pub(super) fn holds(&self, unix_ms: u64) -> bool {
        (self.from_ms..=self.to_ms).contains(&unix_ms)
    }
}

/// How long the points of a metric are, as the query says.
pub(super) fn interval(call: &Call) -> Result<Duration, ApiError> {
    match call.param("ival") {
        None => Ok(Duration::ZERO),
        Some(text) => span(text).ok_or_else(|| wrong("ival", text, "a span such as 1m")),
    }
}

fn wrong(name: &str, text: &str, right: &str) -> ApiError {
    ApiError::validation(vec![format!("{name}: {text:?} is not {right}")])
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// `1d2h`, `3m22s`, or seconds.
fn span(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let mut seconds: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let at = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..at].parse().ok()?;
        let unit = match rest.as_bytes()[at] {
            b's' => 1,
            b'm' => 60,
            b'h' => 60 * 60,
            b'd' => 24 * 60 * 60,
            b'w' => 7 * 24 * 60 * 60,
            _ => return None,
        };
        seconds = seconds.checked_add(number.checked_mul(unit)?)?;
        rest = &rest[at + 1..];
    }
    (!text.is_empty()).then(|| Duration::from_secs(seconds))
}

fn moment_ms(text: &str) -> Option<u64> {
    if let Ok(seconds) = text.parse::<f64>() {
        // Saturates; times before 1970 are its beginning.
        return seconds.is_finite().then_some((seconds * 1e3) as u64);
    }
    let moment = OffsetDateTime::parse(text, &Rfc3339)
        .or_else(|_| OffsetDateTime::parse(text, &Iso8601::DEFAULT))
        .or_else(|_| {
            time::PrimitiveDateTime::parse(text, &Iso8601::DEFAULT).map(|local| local.assume_utc())
        });
    let nanos = moment.ok()?.unix_timestamp_nanos();
    Some(u64::try_from(nanos / 1_000_000).unwrap_or_default())
}

/// A moment as ISO 8601 in UTC.
pub(super) fn iso(unix_ms: u64) -> String {
    let nanos = i128::from(unix_ms) * 1_000_000;
    OffsetDateTime::from_unix_timestamp_nanos(nanos)
        .ok()
        .and_then(|moment| moment.format(&Rfc3339).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_sums() {
        let seconds = |text| span(text).map(|span| span.as_secs());
        assert_eq!(seconds("1d2h"), Some(26 * 3600));
        assert_eq!(seconds("3m22s"), Some(202));
        assert_eq!(seconds("15"), Some(15));
        for wrong in [
            "",
            "d",
            "3",
            "1x",
            "1d2",
            "-1s",
            "99999999999999999999s",
            "1ä",
        ] {
            assert_eq!(seconds(wrong), wrong.parse().ok(), "{wrong}");
        }
        assert_eq!(seconds("999999999999999999w"), None);
    }

    #[test]
    fn moments_come_in_several_forms() {
        assert_eq!(moment_ms("1600000000"), Some(1_600_000_000_000));
        assert_eq!(moment_ms("1600000000.5"), Some(1_600_000_000_500));
        let iso = [
            "2020-09-13T12:26:40Z",
            "2020-09-13T14:26:40+02:00",
            "2020-09-13T12:26:40",
        ];
        for text in iso {
            assert_eq!(moment_ms(text), Some(1_600_000_000_000), "{text}");
        }
        for wrong in ["", "NaN", "inf", "yesterday", "2020-13-01T00:00:00Z"] {
            assert_eq!(moment_ms(wrong), None, "{wrong}");
        }
        assert_eq!(super::iso(1_600_000_000_500), "2020-09-13T12:26:40.5Z");
    }
}

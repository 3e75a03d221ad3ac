//! Durations and sizes as people write them: `"15s"`, `"500ms"`, `"256KiB"`.

use std::fmt;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// A duration in a configuration file: a whole number and `ms`, `s`, `m` or `h`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

/// A size in a configuration file: a whole number and `B`, `KiB`, `MiB` or `GiB`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

const SPAN_HINT: &str = "a duration such as \"15s\", \"500ms\", \"2m\" or \"1h\"";
const SIZE_HINT: &str = "a size such as \"512B\", \"256KiB\", \"16MiB\" or \"1GiB\"";

fn split_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    Some((text[..digits].parse().ok()?, text[digits..].trim_start()))
}

impl Span {
    /// Parses `"15s"` and the like; `None` when it is not a duration.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (number, unit) = split_unit(text.trim())?;
        let ms = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        number
            .checked_mul(ms)
            .map(|ms| Self(Duration::from_millis(ms)))
    }
}

impl Size {
    /// Parses `"256KiB"` and the like; `None` when it is not a size.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (number, unit) = split_unit(text.trim())?;
        let shift = match unit {
            "B" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            "TiB" => 40,
            _ => return None,
        };
        number.checked_mul(1 << shift).map(Self)
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} B", self.0)
    }
}

struct TextVisitor<T> {
    parse: fn(&str) -> Option<T>,
    hint: &'static str,
}

impl<T> Visitor<'_> for TextVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.hint)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor {
            parse: Self::parse,
            hint: SPAN_HINT,
        })
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor {
            parse: Self::parse,
            hint: SIZE_HINT,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read_and_wrong_ones_refused() {
        assert_eq!(Span::parse("15s"), Some(Span(Duration::from_secs(15))));
        assert_eq!(
            Span::parse("500 ms"),
            Some(Span(Duration::from_millis(500)))
        );
        assert_eq!(Size::parse("256KiB"), Some(Size(262_144)));
        for wrong in [
            "",
            "15",
            "s",
            "15 sec",
            "-1s",
            "1.5s",
            "99999999999999999999s",
        ] {
            assert_eq!(Span::parse(wrong), None, "{wrong}");
        }
        for wrong in ["", "15", "KB", "1kb", "1KB", "18446744073709551615KiB"] {
            assert_eq!(Size::parse(wrong), None, "{wrong}");
        }
    }
}

//! Output: tables for people, JSON for programs, nothing of a target's making for the terminal.

use std::borrow::Cow;
use std::io::{self, IsTerminal as _, Write as _};

use berth_api::client::ClientError;
use berth_api::types::AttachmentState;
use clap::ValueEnum;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::json;

use super::error::{Failure, with_sources};

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people
    Table,
    /// For people with wide screens
    Wide,
    /// For programs: the objects of the API
    Json,
}

/// Where output goes and in which form.
pub(super) struct Output {
    format: Format,
    colour: bool,
    terminal: bool,
}

impl Output {
    pub(super) fn new(format: Format) -> Self {
        let terminal = io::stdout().is_terminal();
        Self {
            format,
            colour: terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
            terminal,
        }
    }

    pub(super) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    pub(super) fn is_wide(&self) -> bool {
        self.format == Format::Wide
    }

    /// Whether a person looks at a terminal.
    pub(super) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Writes text and a line break.
    pub(super) fn text(&self, text: &str) -> Result<(), Failure> {
        self.bytes(format!("{}\n", text.trim_end_matches('\n')).as_bytes())
    }

    /// Writes an object of the API.
    pub(super) fn json(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|error| Failure::local("cannot write JSON", error.into()))?;
        self.text(&text)
    }

    /// Writes an object of the API on one line, for streams of them.
    pub(super) fn json_line(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(value)
            .map_err(|error| Failure::local("cannot write JSON", error.into()))?;
        self.text(&text)
    }

    pub(super) fn bytes(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        stdout
            .write_all(bytes)
            .and_then(|()| stdout.flush())
            .map_err(|error| match error.kind() {
                io::ErrorKind::BrokenPipe => Failure::OutputClosed,
                _ => Failure::local("cannot write the output", error),
            })
    }

    /// Tells a failure on standard error: to people with a hint, to programs as a problem document.
    pub(super) fn failure(&self, failure: &Failure) {
        if self.is_json() {
            let document = match failure {
                Failure::Client(ClientError::Problem(problem)) => json!(problem),
                other => json!({
                    "code": other.word(),
                    "detail": with_sources(other),
                    "retryable": matches!(other, Failure::Client(error) if error.is_retryable()),
                }),
            };
            eprintln!("{document:#}");
            return;
        }
        eprintln!("berthctl: {}", clean(&failure.text()));
        if let Some(hint) = failure.hint() {
            eprintln!("  {}", clean(&hint));
        }
    }

    /// A state in its colour.
    pub(super) fn state(&self, state: AttachmentState) -> String {
        let colour = match state {
            AttachmentState::Attached => "32",
            AttachmentState::Connecting | AttachmentState::Detaching => "36",
            AttachmentState::Recovering => "33",
            AttachmentState::Failed => "31",
        };
        self.styled(colour, state.as_str())
    }

    pub(super) fn bold(&self, text: &str) -> String {
        self.styled("1", text)
    }

    pub(super) fn dim(&self, text: &str) -> String {
        self.styled("2", text)
    }

    fn styled(&self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Text without characters that could move the cursor or change the terminal: targets choose theirs.
pub(super) fn clean(text: &str) -> Cow<'_, str> {
    // Bidirectional marks would let a name show as another.
    let bad = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if text.contains(bad) {
        Cow::Owned(text.replace(bad, "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

/// A table without lines; the columns named in `right` are numbers.
pub(super) fn table(header: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header.iter().copied());
    for row in rows {
        table.add_row(row.iter().map(|cell| clean(cell).into_owned()));
    }
    let last = header.len().saturating_sub(1);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if index == last { 0 } else { 3 }));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// `–` for what is not there.
pub(super) fn or_dash(text: Option<impl ToString>) -> String {
    text.map_or_else(|| "–".to_owned(), |text| text.to_string())
}

/// Bytes in the largest fitting binary unit, as `1.5 GiB`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0;
    let mut value = bytes as f64;
    while value >= 1024.0 && unit < UNITS.len() - 1 {
        value /= 1024.0;
        unit += 1;
    }
    if value >= 100.0 || value.fract() == 0.0 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// A time span in its two largest units, as `3 h 5 min`.
pub(super) fn span(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => match seconds % 60 {
            0 => format!("{} min", seconds / 60),
            rest => format!("{} min {rest} s", seconds / 60),
        },
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86400, seconds % 86400 / 3600),
    }
}

/// How long ago that was.
pub(super) fn age(unix_ms: u64) -> String {
    span(berth_api::types::unix_ms_now().saturating_sub(unix_ms))
}

/// Microseconds in a unit that fits, as `1.25 ms`.
pub(super) fn micros(us: f64) -> String {
    if us < 1000.0 {
        format!("{us:.0} µs")
    } else if us < 1_000_000.0 {
        format!("{:.2} ms", us / 1000.0)
    } else {
        format!("{:.2} s", us / 1_000_000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        for (bytes, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (107_374_182_400, "100 GiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        for (ms, text) in [
            (999, "0 s"),
            (59_000, "59 s"),
            (60_000, "1 min"),
            (61_000, "1 min 1 s"),
            (3_700_000, "1 h 1 min"),
            (90_000_000, "1 d 1 h"),
        ] {
            assert_eq!(span(ms), text);
        }
        assert_eq!(micros(87.4), "87 µs");
        assert_eq!(micros(1250.0), "1.25 ms");
        assert_eq!(micros(2_500_000.0), "2.50 s");
    }

    #[test]
    fn tables_line_up() {
        let rows = vec![
            vec!["a".to_owned(), "1".to_owned(), "x\x1b[2Jy".to_owned()],
            vec!["long".to_owned(), "100".to_owned(), "z".to_owned()],
        ];
        let text = table(&["NAME", "N", "TEXT"], &[1], rows);
        assert_eq!(
            text,
            "NAME     N   TEXT\na        1   x\u{fffd}[2Jy\nlong   100   z"
        );
    }

    #[test]
    fn terminals_are_safe_from_targets() {
        assert_eq!(clean("plain – text"), "plain – text");
        assert_eq!(clean("a\u{202e}b\r\n"), "a\u{fffd}b\u{fffd}\u{fffd}");
    }
}

//! What clients asked for and what they were told, in one order.

use super::plan::{CELL_BYTES, Kind, PlannedRequest};
use super::trace;

/// A value of a cell: 0 is zeroes, else the number of the write that wrote it.
pub type Value = u64;

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Not yet.
    Pending,
    /// With success.
    Done,
    /// With an error number.
    Failed(u32),
    /// The connection ended first: nobody knows.
    Cut,
}

/// A request of the run.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The request.
    pub request: PlannedRequest,
    /// What a write wrote; unique.
    pub value: Value,
    /// When it was issued, in ticks.
    pub start: u64,
    /// When it was issued, in milliseconds.
    pub start_ms: u64,
    /// When its outcome was known, in ticks; `u64::MAX` while it is pending.
    pub end: u64,
    /// When its outcome was known, in milliseconds.
    pub end_ms: u64,
    /// Its outcome.
    pub outcome: Outcome,
    /// What a read found, cell by cell.
    pub found: Vec<Value>,
}

/// The history of a run.
#[derive(Debug, Default)]
pub struct History {
    /// All requests in the order in which they were issued.
    pub entries: Vec<Entry>,
    /// Power cuts that lost unflushed data, in ticks.
    pub power_cuts: Vec<u64>,
    /// When the second node had the volume, in ticks: nothing of the first may come later.
    pub fenced_at: Option<u64>,
    /// What went wrong so badly that it is known at once.
    pub violations: Vec<String>,
}

impl History {
    /// A request is issued; its number in the history.
    pub fn begin(&mut self, request: PlannedRequest) -> usize {
        let index = self.entries.len();
        let start = trace::tick();
        self.entries.push(Entry {
            request,
            value: index as u64 + 1,
            start,
            start_ms: trace::now_ms(),
            end: u64::MAX,
            end_ms: u64::MAX,
            outcome: Outcome::Pending,
            found: Vec::new(),
        });
        trace::note("begin", &[index as u64, request.number as u64]);
        if trace::is_kept() {
            trace::line(format_args!(
                "#{} {:?}{} cells {}+{} (client {}, request {})",
                index + 1,
                request.kind,
                if request.fua { " FUA" } else { "" },
                request.cell,
                request.cells,
                request.client,
                request.number
            ));
        }
        index
    }

    /// It ended.
    pub fn end(&mut self, index: usize, outcome: Outcome) {
        let entry = &mut self.entries[index];
        if entry.outcome != Outcome::Pending {
            let text = format!("request #{} was answered twice", index + 1);
            return self.violate(text);
        }
        entry.end = trace::tick();
        entry.end_ms = trace::now_ms();
        let code = match &outcome {
            Outcome::Pending => 0,
            Outcome::Done => 1,
            Outcome::Cut => 2,
            Outcome::Failed(errno) => 3 + u64::from(*errno),
        };
        if trace::is_kept() {
            let found = Runs(&entry.found);
            trace::line(format_args!("#{} {outcome:?}{found}", index + 1));
        }
        entry.outcome = outcome;
        trace::note("end", &[index as u64, code]);
    }

    /// A read brought these bytes.
    pub fn found(&mut self, index: usize, bytes: &[u8]) {
        let entry = &self.entries[index];
        let cells = entry.request.cells;
        if bytes.len() as u64 != cells * CELL_BYTES {
            let text = format!(
                "read #{} of {cells} cells brought {} bytes",
                index + 1,
                bytes.len()
            );
            return self.violate(text);
        }
        let mut found = Vec::with_capacity(cells as usize);
        for (cell, bytes) in (entry.request.cell..).zip(bytes.chunks(CELL_BYTES as usize)) {
            match parse_cell(cell, bytes) {
                Some(value) => found.push(value),
                None => {
                    let text = format!(
                        "read #{}: cell {cell} holds what nobody wrote there: {:02x?}",
                        index + 1,
                        &bytes[..16]
                    );
                    return self.violate(text);
                }
            }
        }
        self.entries[index].found = found;
    }

    /// Something that must not be.
    pub fn violate(&mut self, text: String) {
        trace::note("violation", &[]);
        trace::line(format_args!("VIOLATION: {text}"));
        self.violations.push(text);
    }
}

struct Runs<'a>(&'a [Value]);

impl std::fmt::Display for Runs<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for run in self.0.chunk_by(|a, b| a == b) {
            write!(f, " {}x#{}", run.len(), run[0])?;
        }
        Ok(())
    }
}

/// The bytes of a write.
#[must_use]
pub fn bytes_of(value: Value, cell: u64, cells: u64) -> Vec<u8> {
    (cell..cell + cells)
        .flat_map(|cell| {
            let word = (value << 24 | cell).to_be_bytes();
            std::iter::repeat_n(word, CELL_BYTES as usize / 8).flatten()
        })
        .collect()
}

/// Which write wrote this cell; `None` when no write did, or not all of it.
#[must_use]
pub fn parse_cell(cell: u64, bytes: &[u8]) -> Option<Value> {
    let mut words = bytes
        .chunks_exact(8)
        .map(|word| u64::from_be_bytes(word.try_into().expect("they have 8 bytes")));
    let first = words.next()?;
    if words.any(|word| word != first) {
        return None;
    }
    match first {
        0 => Some(0),
        word if word & 0xff_ffff == cell && word >> 24 != 0 => Some(word >> 24),
        _ => None,
    }
}

/// Whether a request changes what is on the disk, and how.
#[must_use]
pub fn is_write(kind: Kind) -> bool {
    matches!(kind, Kind::Write | Kind::Trim | Kind::WriteZeroes { .. })
}

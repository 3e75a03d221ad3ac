//! The model disk: judges a history, cell by cell.
//!
//! Each cell is a register whose writes have unique values. The history must be linearizable (Gibbons and
//! Korach: with unique values it is enough to look at pairs of values), with two additions:
//!
//! - A write without an answer, or with an error, may take effect at any later time, but never after a
//!   write that was issued when its end was known, overlaps it and was acknowledged.
//! - A power cut may take back what no acknowledged flush or FUA covers. What is read after it may be any
//!   value since the last durable one; from then on the disk must not change by itself.
//!
//! Zeroes are not unique: what reads as zero must have one write of zeroes, trim or the fresh disk that explains
//! it.

use super::history::{Entry, History, Outcome, Value, is_write};
use super::plan::{CELL_BYTES, Kind};

/// Cells of the largest logical block.
const CELLS_OF_BLOCK_MAX: u64 = 4096 / CELL_BYTES;

/// A write of one cell.
#[derive(Debug, Clone, Copy)]
struct Write {
    value: Value,
    start: u64,
    /// When it was acknowledged; `u64::MAX` if it was not.
    acknowledged: u64,
    /// When its end was known, whatever it was.
    known: u64,
    fua: bool,
    /// A trim: it may have done nothing.
    optional: bool,
}

#[derive(Debug, Clone, Copy)]
struct Read {
    value: Value,
    start: u64,
    end: u64,
    index: usize,
}

/// Everything about one value in one epoch.
#[derive(Debug, Clone, Copy)]
struct Cluster {
    write: Write,
    /// Written before this epoch, and its outcome was known before it.
    is_base: bool,
    /// The earliest end and the latest start of its write and its reads.
    first_end: u64,
    last_start: u64,
    was_read: bool,
}

/// Looks for what must not be; `violations` of the history gets it.
pub fn check(history: &mut History, cells: u64) {
    let mut found = Vec::new();
    for cell in 0..cells {
        check_cell(history, cell, &mut found);
        if found.len() > 4 {
            break;
        }
    }
    for (index, entry) in history.entries.iter().enumerate() {
        // A trim may do nothing at all.
        let is_late = entry.start > fence_of(history, entry) && entry.request.kind != Kind::Trim;
        if is_late && is_write(entry.request.kind) && entry.outcome == Outcome::Done {
            found.push(format!(
                "#{} of the node that had been fenced was acknowledged",
                index + 1
            ));
        }
    }
    history.violations.append(&mut found);
}

/// From when on nothing of this request may be carried out any more.
fn fence_of(history: &History, entry: &Entry) -> u64 {
    match history.fenced_at {
        Some(at) if entry.request.node == 0 => at,
        _ => u64::MAX,
    }
}

fn touches(entry: &Entry, cell: u64) -> bool {
    let request = &entry.request;
    (request.cell..request.cell + request.cells).contains(&cell)
}

fn check_cell(history: &History, cell: u64, violations: &mut Vec<String>) {
    let mut writes = vec![Write {
        value: 0,
        start: 0,
        acknowledged: 0,
        known: 0,
        fua: true,
        optional: false,
    }];
    let mut reads = Vec::new();
    for (index, entry) in history.entries.iter().enumerate() {
        if entry.request.kind == Kind::Flush || !touches(entry, cell) {
            continue;
        }
        let done = entry.outcome == Outcome::Done;
        if is_write(entry.request.kind) {
            writes.push(Write {
                value: if entry.request.kind == Kind::Write {
                    entry.value
                } else {
                    0
                },
                start: entry.start,
                acknowledged: if done { entry.end } else { u64::MAX },
                known: entry.end.min(fence_of(history, entry)),
                fua: entry.request.fua,
                optional: entry.request.kind == Kind::Trim,
            });
        } else if done && !entry.found.is_empty() {
            reads.push(Read {
                value: entry.found[(cell - entry.request.cell) as usize],
                start: entry.start,
                end: entry.end,
                index,
            });
        }
    }
    let mut epochs: Vec<u64> = vec![0];
    epochs.extend(&history.power_cuts);
    for (number, begin) in epochs.iter().enumerate() {
        let end = epochs.get(number + 1).copied().unwrap_or(u64::MAX);
        let epoch = Epoch {
            cell,
            begin: *begin,
            history,
            writes: &writes,
        };
        let inside: Vec<Read> = reads
            .iter()
            .filter(|read| read.start >= *begin && read.end < end)
            .copied()
            .collect();
        epoch.check(&inside, violations);
    }
    // Those that were under way at a power cut: at least nothing from the future, and nothing from nowhere.
    for read in &reads {
        let known = writes
            .iter()
            .any(|write| write.value == read.value && write.start < read.end);
        if !known {
            violations.push(format!(
                "cell {cell}: read #{} found #{}, which was not written before",
                read.index + 1,
                read.value
            ));
        }
    }
}

struct Epoch<'a> {
    cell: u64,
    begin: u64,
    history: &'a History,
    writes: &'a [Write],
}

impl Epoch<'_> {
    fn check(&self, reads: &[Read], violations: &mut Vec<String>) {
        let mut clusters: Vec<Cluster> = Vec::new();
        for write in self.writes {
            let of_old = write.start < self.begin;
            let mut cluster = Cluster {
                write: *write,
                is_base: of_old && write.acknowledged < self.begin,
                first_end: if of_old { u64::MAX } else { write.acknowledged },
                last_start: write.start,
                was_read: false,
            };
            if write.value != 0 {
                for read in reads.iter().filter(|read| read.value == write.value) {
                    cluster.first_end = cluster.first_end.min(read.end);
                    cluster.last_start = cluster.last_start.max(read.start);
                    cluster.was_read = true;
                }
            }
            let is_required = !of_old && write.acknowledged != u64::MAX && !write.optional;
            if cluster.was_read || is_required {
                clusters.push(cluster);
            }
            if cluster.was_read
                && of_old
                && let Some(durable) = self.durable_after(write)
            {
                violations.push(format!(
                    "cell {}: #{} was read after a power cut, but #{} had replaced it durably",
                    self.cell, write.value, durable.value
                ));
            }
        }
        self.check_pairs(&clusters, violations);
        for read in reads.iter().filter(|read| read.value == 0) {
            if !self.zero_is_explained(read, &clusters) {
                violations.push(format!(
                    "cell {}: read #{} found zeroes, but something else had been written and acknowledged",
                    self.cell,
                    read.index + 1
                ));
            }
        }
    }

    fn check_pairs(&self, clusters: &[Cluster], violations: &mut Vec<String>) {
        for (at, a) in clusters.iter().enumerate() {
            for b in &clusters[at + 1..] {
                if a.write.value == 0 && b.write.value == 0 {
                    continue;
                }
                if a.is_base && b.is_base && a.was_read && b.was_read && !self.was_merged() {
                    violations.push(format!(
                        "cell {}: both #{} and #{} were read after a power cut, and neither was written again",
                        self.cell, a.write.value, b.write.value
                    ));
                }
                if precedes(a, b) && precedes(b, a) {
                    let (old, new) = if a.write.start < b.write.start {
                        (a, b)
                    } else {
                        (b, a)
                    };
                    violations.push(format!(
                        "cell {}: #{} came back although #{} had replaced it",
                        self.cell, old.write.value, new.write.value
                    ));
                }
            }
        }
    }

    /// Whether a write that was under way at the power cut may have put back what its blocks held before: one
    /// that is finer than a block is merged with its neighbours before it is sent, and sent again as it is.
    fn was_merged(&self) -> bool {
        self.history.entries.iter().any(|entry| {
            let request = &entry.request;
            is_write(request.kind)
                && entry.start < self.begin
                && entry.end > self.begin
                && request.cell < self.cell + CELLS_OF_BLOCK_MAX
                && self.cell < request.cell + request.cells + CELLS_OF_BLOCK_MAX
        })
    }

    /// A write that surely came after `write` and was durable when this epoch began.
    fn durable_after(&self, write: &Write) -> Option<&Write> {
        self.writes.iter().find(|later| {
            !later.optional
                && later.acknowledged < self.begin
                && write.known < later.start
                && self.is_durable(later)
        })
    }

    fn is_durable(&self, write: &Write) -> bool {
        let cuts = &self.history.power_cuts;
        // It may have been carried out before a cut and answered after it.
        let lost_before = |at: u64| cuts.iter().any(|cut| write.start < *cut && *cut <= at);
        if write.fua && write.acknowledged < self.begin {
            return true;
        }
        self.history.entries.iter().any(|entry| {
            entry.request.kind == Kind::Flush
                && entry.outcome == Outcome::Done
                && write.acknowledged < entry.start
                && entry.end < self.begin
                && !lost_before(entry.end)
        })
    }

    fn zero_is_explained(&self, read: &Read, clusters: &[Cluster]) -> bool {
        self.writes
            .iter()
            .filter(|write| write.value == 0 && write.start < read.end)
            .any(|zero| {
                let replaced = clusters.iter().any(|other| {
                    other.write.value != 0
                        && other.write.start >= self.begin
                        && other.write.acknowledged != u64::MAX
                        && zero.known < other.write.start
                        && other.first_end < read.start
                });
                let undone = zero.start < self.begin && self.durable_after(zero).is_some();
                !replaced && !undone
            })
    }
}

/// Whether `a` must come before `b`.
fn precedes(a: &Cluster, b: &Cluster) -> bool {
    let by_time = a.first_end < b.last_start;
    // Nothing that overlaps may overtake a write whose end was known when it was issued.
    let by_rule = a.write.known < b.write.start && b.write.acknowledged != u64::MAX;
    by_time || by_rule
}

#[cfg(test)]
mod tests {
    use super::super::plan::PlannedRequest;
    use super::*;
    use std::time::Duration;

    /// `(kind, value found or written, start, end, outcome)` on one cell.
    fn history(events: &[(Kind, Value, u64, u64, Outcome)]) -> History {
        let entries = events
            .iter()
            .map(|(kind, value, start, end, outcome)| Entry {
                request: PlannedRequest {
                    number: 0,
                    at: Duration::ZERO,
                    node: 0,
                    client: 0,
                    kind: *kind,
                    cell: 0,
                    cells: 1,
                    fua: false,
                },
                value: *value,
                start: *start,
                start_ms: 0,
                end: *end,
                end_ms: 0,
                outcome: outcome.clone(),
                found: if *kind == Kind::Read {
                    vec![*value]
                } else {
                    Vec::new()
                },
            })
            .collect();
        History {
            entries,
            ..History::default()
        }
    }

    fn is_fine(mut history: History) -> bool {
        check(&mut history, 1);
        history.violations.is_empty()
    }

    use Kind::{Flush, Read as R, Trim, Write as W};
    use Outcome::{Cut, Done, Failed};
    const ZERO: Kind = Kind::WriteZeroes { may_unmap: true };

    #[test]
    fn a_read_sees_the_last_write() {
        assert!(is_fine(history(&[(W, 1, 1, 2, Done), (R, 1, 3, 4, Done)])));
        assert!(!is_fine(history(&[(W, 1, 1, 2, Done), (R, 0, 3, 4, Done)])));
        let lost = [(W, 1, 1, 2, Done), (W, 2, 3, 4, Done), (R, 1, 5, 6, Done)];
        assert!(!is_fine(history(&lost)));
    }

    #[test]
    fn concurrent_writes_may_come_in_any_order_but_only_one() {
        let both = |last| {
            history(&[
                (W, 1, 1, 4, Done),
                (W, 2, 2, 3, Done),
                (R, 1, 5, 6, Done),
                (R, last, 7, 8, Done),
            ])
        };
        assert!(is_fine(both(1)));
        assert!(!is_fine(both(2)), "it must not change by itself");
    }

    #[test]
    fn nothing_is_read_before_it_is_written() {
        assert!(!is_fine(history(&[(R, 1, 1, 2, Done), (W, 1, 3, 4, Done)])));
        assert!(is_fine(history(&[(W, 1, 1, 4, Done), (R, 1, 2, 3, Done)])));
    }

    #[test]
    fn new_then_old_is_an_inversion() {
        let inversion = [
            (W, 1, 1, 2, Done),
            (W, 2, 3, 8, Done),
            (R, 2, 4, 5, Done),
            (R, 1, 6, 7, Done),
        ];
        assert!(!is_fine(history(&inversion)));
    }

    #[test]
    fn a_failed_write_may_come_late_but_not_over_a_later_one() {
        for unknown in [Cut, Failed(5)] {
            let late = [
                (W, 1, 1, 2, Done),
                (W, 2, 3, 4, unknown.clone()),
                (R, 1, 5, 6, Done),
                (R, 2, 7, 8, Done),
            ];
            assert!(is_fine(history(&late)));
            let over = [
                (W, 2, 3, 4, unknown),
                (W, 3, 5, 6, Done),
                (R, 2, 7, 8, Done),
            ];
            assert!(!is_fine(history(&over)));
        }
    }

    #[test]
    fn zeroes_need_an_explanation() {
        let explained = [
            (W, 1, 1, 2, Done),
            (ZERO, 9, 3, 4, Done),
            (R, 0, 5, 6, Done),
        ];
        assert!(is_fine(history(&explained)));
        let ignored = [
            (W, 1, 1, 2, Done),
            (ZERO, 9, 3, 4, Done),
            (R, 1, 5, 6, Done),
        ];
        assert!(!is_fine(history(&ignored)));
        let a_hint = [
            (W, 1, 1, 2, Done),
            (Trim, 9, 3, 4, Done),
            (R, 1, 5, 6, Done),
        ];
        assert!(is_fine(history(&a_hint)));
        let too_late = [
            (Trim, 9, 1, 2, Done),
            (W, 1, 3, 4, Done),
            (R, 0, 5, 6, Done),
        ];
        assert!(!is_fine(history(&too_late)));
    }

    #[test]
    fn a_power_cut_takes_back_what_was_not_flushed() {
        let mut lost = history(&[(W, 1, 1, 2, Done), (R, 0, 11, 12, Done)]);
        lost.power_cuts = vec![10];
        assert!(is_fine(lost));
        let mut flushed = history(&[
            (W, 1, 1, 2, Done),
            (Flush, 9, 3, 4, Done),
            (R, 0, 11, 12, Done),
        ]);
        flushed.power_cuts = vec![10];
        assert!(!is_fine(flushed));
        let mut too_early = history(&[
            (Flush, 9, 1, 4, Done),
            (W, 1, 2, 3, Done),
            (R, 0, 11, 12, Done),
        ]);
        too_early.power_cuts = vec![10];
        assert!(
            is_fine(too_early),
            "the flush came before the write was answered"
        );
        let mut older = history(&[
            (W, 1, 1, 2, Done),
            (W, 2, 3, 4, Done),
            (Flush, 9, 5, 6, Done),
            (R, 1, 11, 12, Done),
        ]);
        older.power_cuts = vec![10];
        assert!(!is_fine(older));
    }

    #[test]
    fn after_a_power_cut_the_disk_does_not_change_by_itself() {
        let mut changing = history(&[
            (W, 1, 1, 2, Done),
            (W, 2, 3, 4, Done),
            (R, 1, 11, 12, Done),
            (R, 2, 13, 14, Done),
        ]);
        changing.power_cuts = vec![10];
        assert!(!is_fine(changing));
    }
}

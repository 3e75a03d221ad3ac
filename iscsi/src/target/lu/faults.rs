//! Fault switches at SCSI level: how an operator or a test makes one logical unit fail.

use std::collections::VecDeque;
use std::ops::Range;

use super::refusal::Refusal;
use crate::scsi::{Code, ScsiStatus, Sense};

/// What a logical unit shall do wrong. INQUIRY, REPORT LUNS and REQUEST SENSE always work.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LuFaults {
    /// The next so many commands end with this status (BUSY, TASK SET FULL, RESERVATION CONFLICT).
    pub status: Option<(ScsiStatus, u32)>,
    /// Each of the next commands ends with one of these, in order.
    pub senses: VecDeque<Sense>,
    /// Blocks that cannot be read: MEDIUM ERROR 11/00 with the first bad LBA. Writing repairs them, as a
    /// disk does that has spare blocks.
    pub unreadable: Vec<Range<u64>>,
    /// Blocks that cannot be written: MEDIUM ERROR 0C/00 with the first bad LBA.
    pub unwritable: Vec<Range<u64>>,
    /// Thin provisioning is out of space: writes to blocks that are not mapped fail with 27/07.
    pub space_full: bool,
}

impl LuFaults {
    /// Ends the next command with this code.
    pub fn once(&mut self, code: Code) {
        self.senses.push_back(Sense::new(code));
    }

    /// Ends the next `times` commands with this status.
    pub const fn status(&mut self, status: ScsiStatus, times: u32) {
        self.status = Some((status, times));
    }

    pub(super) fn command(&mut self) -> Result<(), Refusal> {
        if let Some((status, times)) = &mut self.status {
            let status = *status;
            *times = times.saturating_sub(1);
            if *times == 0 {
                self.status = None;
            }
            return Err(Refusal::Status(status));
        }
        match self.senses.pop_front() {
            Some(sense) => Err(sense.into()),
            None => Ok(()),
        }
    }

    pub(super) fn read(&self, lba: u64, blocks: u64) -> Result<(), Refusal> {
        bad(&self.unreadable, lba, blocks, Code::UNRECOVERED_READ_ERROR)
    }

    pub(super) fn write(&mut self, lba: u64, blocks: u64) -> Result<(), Refusal> {
        bad(&self.unwritable, lba, blocks, Code::WRITE_ERROR)?;
        if !self.unreadable.is_empty() {
            self.repair(lba..lba + blocks);
        }
        Ok(())
    }

    fn repair(&mut self, written: Range<u64>) {
        self.unreadable = std::mem::take(&mut self.unreadable)
            .into_iter()
            .flat_map(|bad| {
                [
                    bad.start..bad.end.min(written.start),
                    bad.start.max(written.end)..bad.end,
                ]
            })
            .filter(|rest| !rest.is_empty())
            .collect();
    }
}

fn bad(ranges: &[Range<u64>], lba: u64, blocks: u64, code: Code) -> Result<(), Refusal> {
    let first = ranges
        .iter()
        .filter(|bad| bad.start < lba + blocks && lba < bad.end)
        .map(|bad| bad.start.max(lba))
        .min();
    match first {
        Some(first) => Err(Sense::new(code).with_information(first).into()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_repairs_what_it_covers() {
        let mut faults = LuFaults {
            unreadable: std::iter::once(10..20).collect(),
            ..LuFaults::default()
        };
        let error = Refusal::from(Sense::new(Code::UNRECOVERED_READ_ERROR).with_information(10));
        assert_eq!(faults.read(0, 11), Err(error));
        assert_eq!(faults.read(0, 10), Ok(()));
        faults.write(12, 3).unwrap();
        assert_eq!(faults.unreadable, [10..12, 15..20]);
        assert_eq!(faults.read(12, 3), Ok(()));
        faults.write(0, 100).unwrap();
        assert!(faults.unreadable.is_empty());
    }
}

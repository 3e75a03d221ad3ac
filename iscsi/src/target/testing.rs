//! A logical unit of a few commands in memory, for the tests of the protocol alone.

use std::collections::VecDeque;
use std::time::Duration;

use berth_iobuf::Payload;

use super::{Direction, Load, Nexus, ScsiExecutor, ScsiReply};
use crate::scsi::Command;

pub(crate) const BLOCK_BYTES: usize = 512;

#[derive(Debug, Default)]
pub(crate) struct RamUnit {
    pub(crate) bytes: Vec<u8>,
    /// Every write executed: LBA and length in bytes.
    pub(crate) writes: Vec<(u64, usize)>,
    /// Commands that had to wait for limits.
    pub(crate) waited: Vec<(Load, Duration)>,
    pub(crate) resets: u32,
    pub(crate) begun: Vec<(Nexus, bool)>,
    pub(crate) ended: u32,
    attentions: Vec<(Nexus, VecDeque<(u8, u8)>)>,
}

impl RamUnit {
    pub(crate) fn new(blocks: usize) -> Self {
        Self {
            bytes: (0..blocks * BLOCK_BYTES)
                .map(|i| (i / BLOCK_BYTES) as u8 ^ i as u8)
                .collect(),
            ..Self::default()
        }
    }

    fn range(&self, lba: u64, blocks: u32) -> Option<std::ops::Range<usize>> {
        let start = usize::try_from(lba).ok()?.checked_mul(BLOCK_BYTES)?;
        let end = start.checked_add(blocks as usize * BLOCK_BYTES)?;
        (end <= self.bytes.len()).then_some(start..end)
    }
}

fn good(data: Vec<u8>) -> ScsiReply {
    ScsiReply {
        data_in: Payload::from(data),
        ..ScsiReply::status(0)
    }
}

impl ScsiExecutor for RamUnit {
    fn data_out_len_bytes(&self, cdb: &[u8]) -> Option<u64> {
        match Command::parse(cdb).ok()? {
            Command::Write(transfer) => Some(u64::from(transfer.blocks) * BLOCK_BYTES as u64),
            _ => Some(0),
        }
    }

    fn load(&self, cdb: &[u8]) -> Option<Load> {
        let (direction, blocks) = match Command::parse(cdb).ok()? {
            Command::Read(transfer) => (Direction::Read, transfer.blocks),
            Command::Write(transfer) => (Direction::Write, transfer.blocks),
            _ => return None,
        };
        let bytes = u64::from(blocks) * BLOCK_BYTES as u64;
        Some(Load { direction, bytes })
    }

    fn waited(&mut self, load: Load, time: Duration) {
        self.waited.push((load, time));
    }

    fn execute(&mut self, nexus: &Nexus, cdb: &[u8], data_out: &Payload) -> ScsiReply {
        if cdb[0] != 0x12
            && let Some((_, queue)) = self.attentions.iter_mut().find(|(n, _)| n == nexus)
            && let Some((asc, ascq)) = queue.pop_front()
        {
            return ScsiReply::check_condition(6, asc, ascq);
        }
        match Command::parse(cdb) {
            Ok(Command::TestUnitReady) => good(Vec::new()),
            Ok(Command::Inquiry { allocation_len, .. }) => {
                good(vec![0; 36.min(allocation_len as usize)])
            }
            Ok(Command::Read(transfer)) => match self.range(transfer.lba, transfer.blocks) {
                Some(range) => good(self.bytes[range].to_vec()),
                None => ScsiReply::check_condition(5, 0x21, 0),
            },
            Ok(Command::Write(transfer)) => match self.range(transfer.lba, transfer.blocks) {
                Some(range) => {
                    assert_eq!(range.len(), data_out.len(), "partial data reached the disk");
                    data_out.copy_to(&mut self.bytes[range]);
                    self.writes.push((transfer.lba, data_out.len()));
                    good(Vec::new())
                }
                None => ScsiReply::check_condition(5, 0x21, 0),
            },
            _ => ScsiReply::check_condition(5, 0x20, 0),
        }
    }

    fn nexus_begins(&mut self, nexus: &Nexus, reinstated: bool) {
        self.begun.push((nexus.clone(), reinstated));
        self.attentions.retain(|(n, _)| n != nexus);
        self.attentions.push((nexus.clone(), VecDeque::new()));
    }

    fn nexus_ends(&mut self, nexus: &Nexus) {
        self.ended += 1;
        self.attentions.retain(|(n, _)| n != nexus);
    }

    fn reset(&mut self) {
        self.resets += 1;
        self.unit_attention(0x29, 0x03, None);
    }

    fn unit_attention(&mut self, asc: u8, ascq: u8, except: Option<&Nexus>) {
        for (nexus, queue) in &mut self.attentions {
            if Some(&*nexus) != except {
                queue.push_back((asc, ascq));
            }
        }
    }
}

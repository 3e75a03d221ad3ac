//! Thin provisioning: UNMAP, WRITE SAME, GET LBA STATUS (SBC-3 4.7).

use berth_iobuf::Payload;

use super::refusal::{PARAMETER_LIST_LENGTH, field_in_cdb, field_in_parameters};
use super::{Answer, LogicalUnit, cut};
use crate::scsi::cdb::WriteSame;
use crate::scsi::provisioning::{BlockRange, LbaStatus, LbaStatusList, Provisioning, UnmapList};
use crate::scsi::{Code, Sense};

/// Runs in one GET LBA STATUS answer, at most; the initiator asks on from where it ends.
const RUNS_MAX: usize = 256;

/// WRITE SAME writes in pieces of about this size in bytes.
const SAME_PIECE_BYTES: usize = 64 * 1024;

impl LogicalUnit {
    pub(super) fn unmap(&mut self, anchor: bool, data_out: &Payload) -> Answer {
        if !self.config.thin {
            return Err(Sense::new(Code::INVALID_OPCODE).into());
        }
        if anchor {
            return Err(field_in_cdb(1, 0));
        }
        if data_out.is_empty() {
            return Ok(Payload::new());
        }
        let list = UnmapList::parse(&data_out.to_bytes()).map_err(|_| PARAMETER_LIST_LENGTH)?;
        if list.ranges.len() > self.config.unmap_descriptors_max as usize {
            return Err(field_in_parameters(2));
        }
        let total: u64 = list
            .ranges
            .iter()
            .map(|range| u64::from(range.blocks))
            .sum();
        if total > u64::from(self.config.unmap_blocks_max) {
            return Err(field_in_parameters(8));
        }
        // All ranges are checked before the first one is touched.
        for range in &list.ranges {
            self.check_range(range.lba, range.blocks.into())?;
            self.faults.write(range.lba, range.blocks.into())?;
        }
        for range in &list.ranges {
            self.disk
                .unmap(self.bytes(range.lba), self.bytes(range.blocks.into()))?;
        }
        Ok(Payload::new())
    }

    pub(super) fn write_same(&mut self, same: WriteSame, data_out: &Payload) -> Answer {
        if same.protect != 0 {
            return Err(field_in_cdb(1, 7));
        }
        if same.obsolete {
            return Err(field_in_cdb(1, 2));
        }
        // Blocks are not anchored here; ANCHOR without UNMAP is wrong anyway.
        if same.anchor {
            return Err(field_in_cdb(1, 4));
        }
        if same.unmap && !self.config.thin {
            return Err(field_in_cdb(1, 3));
        }
        self.check_range(same.lba, same.blocks.into())?;
        // WSNZ: "to the end of the medium" is not offered; it hides mistakes.
        if same.blocks == 0 || same.blocks > self.config.write_same_max_blocks() {
            return Err(field_in_cdb(10, 7));
        }
        let block = self.bytes(1) as usize;
        if !same.no_data && data_out.len() < block {
            return Err(Sense::new(Code::INVALID_FIELD_IN_CDB).into());
        }
        let (offset, len) = (self.bytes(same.lba), self.bytes(same.blocks.into()));
        let zero = same.no_data || data_out.is_all_zero();
        if zero && same.unmap {
            self.faults.write(same.lba, same.blocks.into())?;
            self.disk.unmap(offset, len)?;
            return Ok(Payload::new());
        }
        self.admit_write(same.lba, same.blocks.into())?;
        let copies = (SAME_PIECE_BYTES / block).max(1).min(same.blocks as usize);
        let piece = if zero {
            vec![0; copies * block]
        } else {
            data_out.slice(0, block).to_bytes().repeat(copies)
        };
        let mut at = offset;
        while at < offset + len {
            let n = (offset + len - at).min(piece.len() as u64);
            self.disk.write(at, &piece[..n as usize])?;
            at += n;
        }
        Ok(Payload::new())
    }

    pub(super) fn lba_status(&mut self, lba: u64, allocation_len: u32) -> Answer {
        self.check_range(lba, 1)?;
        let room = (allocation_len.saturating_sub(8) / 16) as usize;
        let mut runs: Vec<LbaStatus> = Vec::new();
        let mut at = lba;
        // One run is looked for even if there is no room: the length says so.
        while at < self.blocks && runs.len() < room.clamp(1, RUNS_MAX) {
            let blocks = if self.config.thin {
                self.run_at(at)?
            } else {
                (self.blocks - at, true)
            };
            let blocks_here = u32::try_from(blocks.0).unwrap_or(u32::MAX);
            runs.push(LbaStatus {
                range: BlockRange {
                    lba: at,
                    blocks: blocks_here,
                },
                provisioning: if blocks.1 {
                    Provisioning::Mapped
                } else {
                    Provisioning::Deallocated
                },
            });
            at += u64::from(blocks_here);
        }
        Ok(cut(LbaStatusList { runs }.emit(), allocation_len))
    }

    /// Length in blocks and mapping of the run at a block. A block that is partly mapped is mapped.
    fn run_at(&mut self, lba: u64) -> Result<(u64, bool), super::Refusal> {
        let block = self.bytes(1);
        let start = self.bytes(lba);
        let extent = self.disk.extent(start)?;
        let blocks = if extent.mapped {
            extent.len_bytes.div_ceil(block)
        } else {
            extent.len_bytes / block
        };
        let left = self.blocks - lba;
        Ok(match blocks.min(left) {
            // A hole smaller than a block.
            0 => (1, true),
            blocks => (blocks, extent.mapped),
        })
    }
}

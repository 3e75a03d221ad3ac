//! Commands that move or check blocks (SBC-3 5).

use berth_iobuf::Payload;

use super::refusal::{DATA_OUT_LENGTH, Refusal, field_in_cdb};
use super::{Answer, LogicalUnit};
use crate::scsi::cdb::Transfer;
use crate::scsi::{Code, Sense};

impl LogicalUnit {
    /// Bytes of so many blocks.
    pub(super) const fn bytes(&self, blocks: u64) -> u64 {
        blocks * self.config.block_bytes as u64
    }

    /// Bytes that a transfer takes; one that is too long is refused, so it takes nothing.
    pub(super) const fn transfer_len_bytes(&self, blocks: u32) -> u64 {
        if blocks > self.config.transfer_max_blocks() {
            return 0;
        }
        self.bytes(blocks as u64)
    }

    /// Fails unless the blocks are there. An LBA right behind the end is fine for no blocks.
    pub(super) fn check_range(&self, lba: u64, blocks: u64) -> Result<(), Refusal> {
        match lba.checked_add(blocks) {
            Some(end) if end <= self.blocks => Ok(()),
            _ => {
                // INFORMATION: the first block that is not there.
                let first = lba.max(self.blocks);
                Err(Sense::new(Code::LBA_OUT_OF_RANGE)
                    .with_information(first)
                    .into())
            }
        }
    }

    /// Protection, range and length of a transfer.
    fn check(&self, transfer: &Transfer, len_at: u16) -> Result<(), Refusal> {
        if transfer.protect != 0 {
            return Err(field_in_cdb(1, 7));
        }
        self.check_range(transfer.lba, transfer.blocks.into())?;
        if transfer.blocks > self.config.transfer_max_blocks() {
            return Err(field_in_cdb(len_at, 7));
        }
        Ok(())
    }

    /// All of the data that `blocks` blocks need, or a refusal: a check or an update with less is not
    /// what was asked for.
    fn whole<'a>(&self, data_out: &'a Payload, bytes: u64) -> Result<&'a Payload, Refusal> {
        if (data_out.len() as u64) < bytes {
            return Err(DATA_OUT_LENGTH);
        }
        Ok(data_out)
    }

    pub(super) fn read(&mut self, transfer: Transfer) -> Answer {
        self.check(&transfer, 10)?;
        self.read_blocks(transfer.lba, transfer.blocks.into())
    }

    fn read_blocks(&mut self, lba: u64, blocks: u64) -> Answer {
        self.faults.read(lba, blocks)?;
        let len = self.bytes(blocks) as usize;
        self.disk.read(self.bytes(lba), len, &mut self.sink)?;
        Ok(self.sink.take())
    }

    pub(super) fn write(&mut self, transfer: Transfer, data_out: &Payload) -> Answer {
        self.check(&transfer, 10)?;
        // With a shorter EDTL there is less data than blocks: what is there is written, and the session
        // reports the overflow (SAM-5 5.4.3.3 leaves it to the transport; FCP-4 9.4.2 says it so).
        self.write_payload(transfer.lba, transfer.blocks.into(), data_out)?;
        if transfer.caching.fua {
            self.flush(transfer.lba, transfer.blocks.into())?;
        }
        Ok(Payload::new())
    }

    /// Writes `data`, at most `blocks` blocks, at `lba`.
    fn write_payload(&mut self, lba: u64, blocks: u64, data: &Payload) -> Result<(), Refusal> {
        self.admit_write(lba, blocks)?;
        let start = self.bytes(lba);
        let end = start + self.bytes(blocks);
        let mut at = start;
        for segment in data.segments() {
            let n = segment.len().min((end - at) as usize);
            self.disk.write(at, &segment[..n])?;
            at += n as u64;
        }
        Ok(())
    }

    /// Faults that concern a write.
    pub(super) fn admit_write(&mut self, lba: u64, blocks: u64) -> Result<(), Refusal> {
        self.faults.write(lba, blocks)?;
        if self.faults.space_full {
            let (mut at, end) = (self.bytes(lba), self.bytes(lba + blocks));
            while at < end {
                let extent = self.disk.extent(at)?;
                if !extent.mapped {
                    return Err(Sense::new(Code::SPACE_ALLOCATION_FAILED).into());
                }
                at += extent.len_bytes;
            }
        }
        Ok(())
    }

    pub(super) fn flush(&mut self, lba: u64, blocks: u64) -> Result<(), Refusal> {
        Ok(self.disk.flush(self.bytes(lba), self.bytes(blocks))?)
    }

    pub(super) fn flush_all(&mut self) -> Result<(), Refusal> {
        Ok(self.disk.flush(0, self.disk.size_bytes())?)
    }

    pub(super) fn write_and_verify(&mut self, transfer: Transfer, data_out: &Payload) -> Answer {
        if transfer.byte_check > 1 {
            return Err(field_in_cdb(1, 2));
        }
        self.check(&transfer, 10)?;
        self.write_payload(transfer.lba, transfer.blocks.into(), data_out)?;
        // Verifying means that the medium has it.
        self.flush(transfer.lba, transfer.blocks.into())?;
        if transfer.byte_check == 1 {
            self.compare(transfer.lba, transfer.blocks.into(), data_out)?;
        }
        Ok(Payload::new())
    }

    pub(super) fn verify(&mut self, transfer: Transfer, data_out: &Payload) -> Answer {
        if transfer.protect != 0 {
            return Err(field_in_cdb(1, 7));
        }
        self.check_range(transfer.lba, transfer.blocks.into())?;
        let blocks = u64::from(transfer.blocks);
        match transfer.byte_check {
            // Without comparison nothing is transferred, so no transfer limit applies.
            0 => self.faults.read(transfer.lba, blocks)?,
            1 => {
                self.check(&transfer, 10)?;
                let data = self.whole(data_out, self.bytes(blocks))?;
                self.compare(transfer.lba, blocks, data)?;
            }
            3 => {
                self.check(&transfer, 10)?;
                if blocks > 0 {
                    let block = self.whole(data_out, self.bytes(1))?;
                    for i in 0..blocks {
                        self.compare(transfer.lba + i, 1, block)?;
                    }
                }
            }
            _ => return Err(field_in_cdb(1, 2)),
        }
        Ok(Payload::new())
    }

    /// MISCOMPARE with the offset of the first byte that differs, unless the medium holds `data`.
    fn compare(&mut self, lba: u64, blocks: u64, data: &Payload) -> Result<(), Refusal> {
        let medium = self.read_blocks(lba, blocks)?;
        let theirs = data.segments().iter().flat_map(|bytes| bytes.iter());
        let ours = medium.segments().iter().flat_map(|bytes| bytes.iter());
        match ours.zip(theirs).position(|(a, b)| a != b) {
            Some(at) => Err(Sense::new(Code::MISCOMPARE)
                .with_information(at as u64)
                .into()),
            None => Ok(()),
        }
    }

    pub(super) fn or_write(&mut self, transfer: Transfer, data_out: &Payload) -> Answer {
        self.check(&transfer, 10)?;
        let blocks = u64::from(transfer.blocks);
        let data = self.whole(data_out, self.bytes(blocks))?.to_bytes();
        let mut medium = vec![0; self.bytes(blocks) as usize];
        self.read_blocks(transfer.lba, blocks)?.copy_to(&mut medium);
        for (ours, theirs) in medium.iter_mut().zip(data.iter()) {
            *ours |= theirs;
        }
        self.write_payload(transfer.lba, blocks, &Payload::from(medium))?;
        if transfer.caching.fua {
            self.flush(transfer.lba, blocks)?;
        }
        Ok(Payload::new())
    }

    pub(super) fn compare_and_write(&mut self, transfer: Transfer, data_out: &Payload) -> Answer {
        if self.config.compare_and_write_max == 0 {
            return Err(Sense::new(Code::INVALID_OPCODE).into());
        }
        self.check(&transfer, 13)?;
        if transfer.blocks > u32::from(self.config.compare_and_write_max) {
            return Err(field_in_cdb(13, 7));
        }
        let blocks = u64::from(transfer.blocks);
        let half = self.bytes(blocks) as usize;
        let data = self.whole(data_out, 2 * half as u64)?;
        self.compare(transfer.lba, blocks, &data.slice(0, half))?;
        self.write_payload(transfer.lba, blocks, &data.slice(half, half))?;
        if transfer.caching.fua {
            self.flush(transfer.lba, blocks)?;
        }
        Ok(Payload::new())
    }

    pub(super) fn synchronize(&mut self, lba: u64, blocks: u32) -> Answer {
        self.check_range(lba, blocks.into())?;
        let blocks = match blocks {
            0 => self.blocks - lba,
            blocks => blocks.into(),
        };
        if lba == 0 && blocks == self.blocks {
            self.flush_all()?;
        } else {
            self.flush(lba, blocks)?;
        }
        Ok(Payload::new())
    }

    /// There is nothing slower to fetch from, but the range is checked (SBC-3 5.8).
    pub(super) fn prefetch(&mut self, lba: u64, blocks: u32) -> Answer {
        self.check_range(lba, blocks.into())?;
        Ok(Payload::new())
    }
}

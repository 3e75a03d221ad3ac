//! What is known about a logical unit, and what follows from it.

use berth_iscsi::scsi::inquiry::{BlockLimits, Identity};

use crate::block::{Geometry, ZeroLimits};

/// Longest transfer when the LUN states none, in bytes. Longer ones gain nothing and let one request
/// hold the connection.
const TRANSFER_MAX_BYTES: u64 = 4 << 20;
/// Longest WRITE SAME when the LUN states no limit, in bytes; halved when it is refused.
const WRITE_SAME_MAX_BYTES: u64 = 32 << 20;
/// Longest WRITE SAME in any case, in bytes: a longer one keeps some targets from answering pings.
const WRITE_SAME_CAP_BYTES: u64 = 256 << 20;
/// Preferred request size when the LUN states none, in bytes.
const OPTIMAL_IO_BYTES: u64 = 4096;

/// Facts about a logical unit, as bring-up found them and as refusals corrected them.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// What the unit says it is.
    pub identity: Option<Identity>,
    /// T10 vendor identification.
    pub vendor: String,
    /// Product identification.
    pub product: String,
    /// Product revision.
    pub revision: String,
    /// Unit serial number (VPD page 80h).
    pub serial: Option<String>,
    /// Logical block length in bytes.
    pub block_bytes: u32,
    /// Number of logical blocks.
    pub blocks: u64,
    /// Physical block length in bytes.
    pub physical_block_bytes: u32,
    /// Thin provisioned: GET LBA STATUS tells something (LBPME).
    pub thin: bool,
    /// Unmapped blocks read as zeroes (LBPRZ).
    pub unmapped_reads_zero: bool,
    /// UNMAP is supported (LBPU).
    pub unmap: bool,
    /// WRITE SAME(16) or (10) with the UNMAP bit is supported (LBPWS, LBPWS10).
    pub write_same_unmap: bool,
    /// WRITE SAME has not been refused.
    pub write_same: bool,
    /// GET LBA STATUS has not been refused.
    pub lba_status: bool,
    /// VPD page B0h.
    pub limits: BlockLimits,
    /// Writes are refused by the unit.
    pub write_protected: bool,
    /// There is a volatile write cache that is on (WCE).
    pub write_cache: bool,
    /// READ and WRITE take the FUA bit (DPOFUA).
    pub fua: bool,
    /// Spinning medium.
    pub rotational: bool,
    /// Use READ(10) and its kin where the address fits: the unit lacks the 16-byte forms.
    pub ten_byte_forms: bool,
    /// Longest WRITE SAME that was not refused, in blocks.
    pub write_same_learned_blocks: Option<u64>,
}

impl Profile {
    /// This profile as it was read anew, with what refusals taught about the unit before.
    #[must_use]
    pub fn refreshed(&self, fresh: Self) -> Self {
        Self {
            unmap: fresh.unmap && self.unmap,
            write_same: self.write_same,
            lba_status: self.lba_status,
            write_same_unmap: fresh.write_same_unmap && self.write_same_unmap,
            ten_byte_forms: self.ten_byte_forms,
            write_same_learned_blocks: self.write_same_learned_blocks,
            ..fresh
        }
    }

    /// Longest READ or WRITE in blocks.
    #[must_use]
    pub fn transfer_max_blocks(&self) -> u32 {
        let own = TRANSFER_MAX_BYTES / u64::from(self.block_bytes);
        let stated = match self.limits.transfer_max {
            0 => own,
            stated => u64::from(stated).min(own),
        };
        let form = if self.ten_byte_forms {
            stated.min(0xffff)
        } else {
            stated
        };
        u32::try_from(form.max(1)).unwrap_or(u32::MAX)
    }

    /// Longest UNMAP in blocks; `None`: not supported.
    #[must_use]
    pub fn unmap_max_blocks(&self) -> Option<u64> {
        let stated = u64::from(self.limits.unmap_blocks_max);
        (self.unmap && stated > 0).then_some(stated)
    }

    /// Longest WRITE SAME in blocks; `None`: not supported.
    #[must_use]
    pub fn write_same_max_blocks(&self) -> Option<u64> {
        if !self.write_same {
            return None;
        }
        let block = u64::from(self.block_bytes);
        let stated = match self.limits.write_same_max {
            0 => WRITE_SAME_MAX_BYTES / block,
            stated => stated.min(WRITE_SAME_CAP_BYTES / block),
        };
        let learned = self.write_same_learned_blocks.unwrap_or(u64::MAX);
        let form = if self.ten_byte_forms {
            0xffff
        } else {
            u64::from(u32::MAX)
        };
        Some(stated.min(learned).min(form).max(1))
    }

    /// Whether WRITE SAME may give space back and still make zeroes.
    #[must_use]
    pub fn unmap_by_write_same(&self) -> bool {
        self.write_same_unmap && self.unmapped_reads_zero
    }

    /// Size in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.blocks.saturating_mul(u64::from(self.block_bytes))
    }

    /// The profile as a block device's geometry. `read_only`: asked for, whatever the unit allows.
    #[must_use]
    pub fn geometry(&self, read_only: bool) -> Geometry {
        let block = u64::from(self.block_bytes);
        let granularity = u64::from(self.limits.unmap_granularity.max(1)) * block;
        let alignment = u64::from(self.limits.unmap_alignment.unwrap_or(0)) * block;
        let optimal = u64::from(self.limits.transfer_optimal) * block;
        let optimal = optimal
            .max(OPTIMAL_IO_BYTES)
            .max(u64::from(self.physical_block_bytes))
            .next_power_of_two()
            .min(TRANSFER_MAX_BYTES);
        Geometry {
            size_bytes: self.size_bytes(),
            logical_block_bytes: self.block_bytes,
            physical_block_bytes: self.physical_block_bytes,
            optimal_io_bytes: optimal as u32,
            transfer_max_bytes: self.transfer_max_blocks() * self.block_bytes,
            read_only: read_only || self.write_protected,
            write_cache: self.write_cache,
            rotational: self.rotational,
            trim: self.unmap_max_blocks().map(|blocks| ZeroLimits {
                max_bytes: blocks.saturating_mul(block),
                granularity_bytes: granularity,
                alignment_bytes: alignment,
            }),
            write_zeroes: self.write_same_max_blocks().map(|blocks| ZeroLimits {
                max_bytes: blocks.saturating_mul(block),
                granularity_bytes: block,
                alignment_bytes: 0,
            }),
            provisioning_map: self.thin && self.lba_status,
        }
    }
}

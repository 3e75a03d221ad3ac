//! Command descriptor blocks: built here by the initiator, taken apart by [`Command::parse`].

mod command;
mod opcode;

use std::fmt;

pub use command::{
    CdbError, Command, ModePage, PageControl, PrInAction, PrOutAction, ReportingOption, StartStop,
    Transfer, WriteSame,
};
pub use opcode::{OPCODES, OpcodeInfo, opcode_name};

use super::field::flag;

/// A CDB of up to 16 bytes, the size every command here has; built without allocation.
///
/// Longer CDBs (variable length, operation code 7Fh) exist in iSCSI as an AHS, but no command that a
/// block device needs has one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cdb {
    bytes: [u8; 16],
    len: u8,
}

/// Cache hints of a READ or WRITE (SBC-3 5.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Caching {
    /// Force unit access: from the medium, or on the medium before the status.
    pub fua: bool,
    /// Disable page out: the data is not worth caching.
    pub dpo: bool,
}

impl Caching {
    /// No hint.
    pub const NONE: Self = Self {
        fua: false,
        dpo: false,
    };
    /// Force unit access.
    pub const FUA: Self = Self {
        fua: true,
        dpo: false,
    };

    const fn bits(self) -> u8 {
        flag(self.dpo, 4) | flag(self.fua, 3)
    }
}

impl Cdb {
    /// The CDB as the 16-byte field of the SCSI Command PDU, padded with zeroes.
    #[must_use]
    pub const fn padded(&self) -> [u8; 16] {
        self.bytes
    }

    /// The CDB without padding.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// The operation code.
    #[must_use]
    pub const fn opcode(&self) -> u8 {
        self.bytes[0]
    }

    const fn six(bytes: [u8; 6]) -> Self {
        let [a, b, c, d, e, f] = bytes;
        Self {
            bytes: [a, b, c, d, e, f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            len: 6,
        }
    }

    /// Ten bytes: operation code, byte 1, 32 bits at 2, byte 6, 16 bits at 7.
    const fn ten(opcode: u8, byte1: u8, at2: u32, byte6: u8, at7: u16) -> Self {
        let [a, b, c, d] = at2.to_be_bytes();
        let [e, f] = at7.to_be_bytes();
        Self {
            bytes: [opcode, byte1, a, b, c, d, byte6, e, f, 0, 0, 0, 0, 0, 0, 0],
            len: 10,
        }
    }

    /// Twelve bytes: operation code, byte 1, 32 bits at 2, 32 bits at 6.
    const fn twelve(opcode: u8, byte1: u8, at2: u32, at6: u32) -> Self {
        let [a, b, c, d] = at2.to_be_bytes();
        let [e, f, g, h] = at6.to_be_bytes();
        Self {
            bytes: [opcode, byte1, a, b, c, d, e, f, g, h, 0, 0, 0, 0, 0, 0],
            len: 12,
        }
    }

    /// Sixteen bytes: operation code, byte 1, 64 bits at 2, 32 bits at 10.
    const fn sixteen(opcode: u8, byte1: u8, at2: u64, at10: u32) -> Self {
        let [a, b, c, d, e, f, g, h] = at2.to_be_bytes();
        let [i, j, k, l] = at10.to_be_bytes();
        Self {
            bytes: [opcode, byte1, a, b, c, d, e, f, g, h, i, j, k, l, 0, 0],
            len: 16,
        }
    }

    /// TEST UNIT READY (SPC-4 6.47).
    #[must_use]
    pub const fn test_unit_ready() -> Self {
        Self::six([0; 6])
    }

    /// REQUEST SENSE (SPC-4 6.39). `descriptor` asks for descriptor format.
    #[must_use]
    pub const fn request_sense(descriptor: bool, allocation_len: u8) -> Self {
        Self::six([0x03, flag(descriptor, 0), 0, 0, allocation_len, 0])
    }

    /// INQUIRY for the standard data (SPC-4 6.6). Some devices answer only 36 bytes well: ask for 36
    /// first.
    #[must_use]
    pub const fn inquiry(allocation_len: u16) -> Self {
        let [a, b] = allocation_len.to_be_bytes();
        Self::six([0x12, 0, 0, a, b, 0])
    }

    /// INQUIRY for a vital product data page (SPC-4 6.6).
    #[must_use]
    pub const fn inquiry_vpd(page: u8, allocation_len: u16) -> Self {
        let [a, b] = allocation_len.to_be_bytes();
        Self::six([0x12, 1, page, a, b, 0])
    }

    /// REPORT LUNS, all but well-known ones (SPC-4 6.33). `allocation_len` is at least 16.
    #[must_use]
    pub const fn report_luns(allocation_len: u32) -> Self {
        Self::twelve(0xa0, 0, 0, allocation_len)
    }

    /// READ CAPACITY (10) (SBC-3 5.15).
    #[must_use]
    pub const fn read_capacity10() -> Self {
        Self::ten(0x25, 0, 0, 0, 0)
    }

    /// READ CAPACITY (16) (SBC-3 5.16).
    #[must_use]
    pub const fn read_capacity16(allocation_len: u32) -> Self {
        Self::sixteen(0x9e, 0x10, 0, allocation_len)
    }

    /// READ (10) (SBC-3 5.11). `blocks` 0 reads nothing.
    #[must_use]
    pub const fn read10(lba: u32, blocks: u16, caching: Caching) -> Self {
        Self::ten(0x28, caching.bits(), lba, 0, blocks)
    }

    /// READ (16) (SBC-3 5.13). `blocks` 0 reads nothing.
    #[must_use]
    pub const fn read16(lba: u64, blocks: u32, caching: Caching) -> Self {
        Self::sixteen(0x88, caching.bits(), lba, blocks)
    }

    /// WRITE (10) (SBC-3 5.29). `blocks` 0 writes nothing.
    #[must_use]
    pub const fn write10(lba: u32, blocks: u16, caching: Caching) -> Self {
        Self::ten(0x2a, caching.bits(), lba, 0, blocks)
    }

    /// WRITE (16) (SBC-3 5.31). `blocks` 0 writes nothing.
    #[must_use]
    pub const fn write16(lba: u64, blocks: u32, caching: Caching) -> Self {
        Self::sixteen(0x8a, caching.bits(), lba, blocks)
    }

    /// SYNCHRONIZE CACHE (10) (SBC-3 5.22), status after the blocks are on the medium. LBA 0 and
    /// `blocks` 0 mean the whole medium.
    #[must_use]
    pub const fn synchronize_cache10(lba: u32, blocks: u16) -> Self {
        Self::ten(0x35, 0, lba, 0, blocks)
    }

    /// SYNCHRONIZE CACHE (16) (SBC-3 5.23), status after the blocks are on the medium. LBA 0 and
    /// `blocks` 0 mean the whole medium.
    #[must_use]
    pub const fn synchronize_cache16(lba: u64, blocks: u32) -> Self {
        Self::sixteen(0x91, 0, lba, blocks)
    }

    /// UNMAP (SBC-3 5.28); the parameter list is built by
    /// [`super::provisioning::UnmapList`].
    #[must_use]
    pub const fn unmap(parameter_len: u16) -> Self {
        Self::ten(0x42, 0, 0, 0, parameter_len)
    }

    /// WRITE SAME (10) (SBC-3 5.45). `blocks` 0 means "to the end" on some devices: never send it.
    #[must_use]
    pub const fn write_same10(lba: u32, blocks: u16, unmap: bool) -> Self {
        Self::ten(0x41, flag(unmap, 3), lba, 0, blocks)
    }

    /// WRITE SAME (16) (SBC-3 5.46). `blocks` 0 means "to the end" on some devices: never send it.
    /// With `no_data` (NDOB) there is no data-out and zeroes are written.
    #[must_use]
    pub const fn write_same16(lba: u64, blocks: u32, unmap: bool, no_data: bool) -> Self {
        Self::sixteen(0x93, flag(unmap, 3) | flag(no_data, 0), lba, blocks)
    }

    /// COMPARE AND WRITE (SBC-3 5.2); data-out is the verify part, then the write part.
    #[must_use]
    pub const fn compare_and_write(lba: u64, blocks: u8, caching: Caching) -> Self {
        Self::sixteen(0x89, caching.bits(), lba, blocks as u32)
    }

    /// VERIFY (16) (SBC-3 5.26) of the medium, without data-out.
    #[must_use]
    pub const fn verify16(lba: u64, blocks: u32) -> Self {
        Self::sixteen(0x8f, 0, lba, blocks)
    }

    /// VERIFY (16) that compares the blocks with the data-out (BYTCHK = 01b).
    #[must_use]
    pub const fn verify16_compare(lba: u64, blocks: u32) -> Self {
        Self::sixteen(0x8f, 1 << 1, lba, blocks)
    }

    /// GET LBA STATUS (SBC-3 5.5).
    #[must_use]
    pub const fn get_lba_status(lba: u64, allocation_len: u32) -> Self {
        Self::sixteen(0x9e, 0x12, lba, allocation_len)
    }

    /// PRE-FETCH (10) (SBC-3 5.8). With `immediate` the status comes at once.
    #[must_use]
    pub const fn prefetch10(lba: u32, blocks: u16, immediate: bool) -> Self {
        Self::ten(0x34, flag(immediate, 1), lba, 0, blocks)
    }

    /// PRE-FETCH (16) (SBC-3 5.9). With `immediate` the status comes at once.
    #[must_use]
    pub const fn prefetch16(lba: u64, blocks: u32, immediate: bool) -> Self {
        Self::sixteen(0x90, flag(immediate, 1), lba, blocks)
    }

    /// MODE SENSE (6) of current values (SPC-4 6.11), block descriptors disabled.
    #[must_use]
    pub const fn mode_sense6(page: u8, allocation_len: u8) -> Self {
        Self::six([0x1a, 1 << 3, page & 0x3f, 0, allocation_len, 0])
    }

    /// MODE SENSE (10) of current values (SPC-4 6.12), block descriptors disabled.
    #[must_use]
    pub const fn mode_sense10(page: u8, allocation_len: u16) -> Self {
        let at2 = (page as u32 & 0x3f) << 24;
        Self::ten(0x5a, 1 << 3, at2, 0, allocation_len)
    }

    /// MODE SELECT (6) in page format, not saved (SPC-4 6.9).
    #[must_use]
    pub const fn mode_select6(parameter_len: u8) -> Self {
        Self::six([0x15, 1 << 4, 0, 0, parameter_len, 0])
    }

    /// MODE SELECT (10) in page format, not saved (SPC-4 6.10).
    #[must_use]
    pub const fn mode_select10(parameter_len: u16) -> Self {
        Self::ten(0x55, 1 << 4, 0, 0, parameter_len)
    }

    /// REPORT TARGET PORT GROUPS (SPC-4 6.37). `extended` asks for the extended header, which tells
    /// the transition time; not all targets have it.
    #[must_use]
    pub const fn report_target_port_groups(extended: bool, allocation_len: u32) -> Self {
        Self::twelve(0xa3, 0x0a | flag(extended, 5), 0, allocation_len)
    }

    /// SET TARGET PORT GROUPS (SPC-4 6.45); explicit ALUA only.
    #[must_use]
    pub const fn set_target_port_groups(parameter_len: u32) -> Self {
        Self::twelve(0xa4, 0x0a, 0, parameter_len)
    }

    /// REPORT SUPPORTED OPERATION CODES of one command (SPC-4 6.35). Without a service action the
    /// command must not have one.
    #[must_use]
    pub const fn report_supported_opcode(
        opcode: u8,
        service_action: Option<u16>,
        allocation_len: u32,
    ) -> Self {
        let (option, action) = match service_action {
            None => (1, 0),
            Some(action) => (2, action),
        };
        let [a, b] = action.to_be_bytes();
        let at2 = u32::from_be_bytes([option, opcode, a, b]);
        Self::twelve(0xa3, 0x0c, at2, allocation_len)
    }

    /// REPORT SUPPORTED OPERATION CODES of all commands (SPC-4 6.35). `timeouts` asks for timeouts
    /// descriptors.
    #[must_use]
    pub const fn report_supported_opcodes(timeouts: bool, allocation_len: u32) -> Self {
        let at2 = (flag(timeouts, 7) as u32) << 24;
        Self::twelve(0xa3, 0x0c, at2, allocation_len)
    }

    /// PERSISTENT RESERVE IN (SPC-4 6.15).
    #[must_use]
    pub const fn persistent_reserve_in(action: PrInAction, allocation_len: u16) -> Self {
        Self::ten(0x5e, action as u8, 0, 0, allocation_len)
    }

    /// PERSISTENT RESERVE OUT (SPC-4 6.16) of logical unit scope; `kind` is the reservation type and
    /// ignored by the actions that need none.
    #[must_use]
    pub const fn persistent_reserve_out(action: PrOutAction, kind: u8, parameter_len: u32) -> Self {
        let [a, b, c, d] = parameter_len.to_be_bytes();
        let at2 = u32::from_be_bytes([kind & 0x0f, 0, 0, a]);
        Self::ten(0x5f, action as u8, at2, b, u16::from_be_bytes([c, d]))
    }

    /// START STOP UNIT that starts (`true`) or stops the unit (SBC-3 5.21), status when done.
    #[must_use]
    pub const fn start_stop_unit(start: bool) -> Self {
        Self::six([0x1b, 0, 0, 0, flag(start, 0), 0])
    }
}

impl fmt::Display for Cdb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(opcode_name(self.as_bytes()).unwrap_or("unknown command"))
    }
}

impl fmt::Debug for Cdb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cdb({self}:")?;
        for byte in self.as_bytes() {
            write!(f, " {byte:02x}")?;
        }
        f.write_str(")")
    }
}

//! A CDB taken apart, for the target role and for logs.

use super::super::field::{be16, be32, be64, bit, byte};
use super::super::sense::{Code, Sense};
use super::Caching;

/// Why a CDB is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CdbError {
    /// No such command.
    #[error("operation code {0:#04x} is not known")]
    InvalidOpcode(u8),
    /// A field has a value that is not allowed.
    #[error("field at byte {byte}, bit {bit} of the CDB is not valid")]
    InvalidField {
        /// Offset of the byte.
        byte: u16,
        /// Highest bit of the field in that byte.
        bit: u8,
    },
    /// The CDB is shorter than its operation code says.
    #[error("CDB of {got} bytes, its operation code asks for {need}")]
    Truncated {
        /// Bytes that are needed.
        need: usize,
        /// Bytes that are there.
        got: usize,
    },
}

impl CdbError {
    /// The sense data that answers such a CDB, with a field pointer where there is a field.
    #[must_use]
    pub fn sense(self) -> Sense {
        match self {
            Self::InvalidOpcode(_) => Sense::new(Code::INVALID_OPCODE).with_field(true, 0, Some(7)),
            Self::InvalidField { byte, bit } => {
                Sense::new(Code::INVALID_FIELD_IN_CDB).with_field(true, byte, Some(bit))
            }
            Self::Truncated { .. } => Sense::new(Code::INVALID_FIELD_IN_CDB),
        }
    }
}

const fn invalid(byte: u16, bit: u8) -> CdbError {
    CdbError::InvalidField { byte, bit }
}

/// Address and length of a command that moves or checks blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// First logical block.
    pub lba: u64,
    /// Number of blocks; 0 moves nothing.
    pub blocks: u32,
    /// FUA and DPO.
    pub caching: Caching,
    /// RDPROTECT, WRPROTECT, VRPROTECT or ORPROTECT: 0 without protection information.
    pub protect: u8,
    /// BYTCHK of the VERIFY family (0 to 3), else 0.
    pub byte_check: u8,
}

/// WRITE SAME (10) or (16).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteSame {
    /// First logical block.
    pub lba: u64,
    /// Number of blocks; 0 means to the end, or is refused when WSNZ is set.
    pub blocks: u32,
    /// WRPROTECT.
    pub protect: u8,
    /// The blocks may be unmapped instead.
    pub unmap: bool,
    /// Unmapped blocks shall be anchored.
    pub anchor: bool,
    /// There is no data-out: zeroes are written (16 only).
    pub no_data: bool,
    /// Obsolete PBDATA or LBDATA was asked for.
    pub obsolete: bool,
}

/// START STOP UNIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartStop {
    /// Status comes before the action is done.
    pub immediate: bool,
    /// POWER CONDITION; START and LOEJ count only when it is 0.
    pub power_condition: u8,
    /// Do not flush the cache first.
    pub no_flush: bool,
    /// Load or eject the medium.
    pub load_eject: bool,
    /// Start (or load), else stop (or eject).
    pub start: bool,
}

/// Which values MODE SENSE asks for (SPC-4 6.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageControl {
    /// Values in force.
    Current,
    /// A mask: bits that can be changed.
    Changeable,
    /// Values after a reset without saved ones.
    Default,
    /// Saved values.
    Saved,
}

/// The page that MODE SENSE asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModePage {
    /// Values asked for.
    pub control: PageControl,
    /// Page code; 3Fh for all.
    pub page: u8,
    /// Subpage code; FFh for all.
    pub subpage: u8,
}

/// Service action of PERSISTENT RESERVE IN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum PrInAction {
    /// All registered keys.
    ReadKeys = 0,
    /// The reservation.
    ReadReservation = 1,
    /// What the device can do.
    ReportCapabilities = 2,
    /// Keys, holders and their names.
    ReadFullStatus = 3,
}

/// Service action of PERSISTENT RESERVE OUT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum PrOutAction {
    /// Register, change or remove this nexus' key.
    Register = 0,
    /// Take the reservation.
    Reserve = 1,
    /// Give it up.
    Release = 2,
    /// Remove the reservation and every key.
    Clear = 3,
    /// Remove other registrants, and take over the reservation.
    Preempt = 4,
    /// The same, and abort their tasks.
    PreemptAndAbort = 5,
    /// Register whatever key was registered before.
    RegisterAndIgnoreExistingKey = 6,
    /// Hand the reservation to another nexus.
    RegisterAndMove = 7,
}

/// What REPORT SUPPORTED OPERATION CODES asks about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportingOption {
    /// All commands.
    All,
    /// One operation code that has no service actions.
    Opcode(u8),
    /// One operation code with a service action.
    ServiceAction(u8, u16),
    /// One operation code, with the service action if it has them.
    Either(u8, u16),
}

/// A command with its fields. LBAs and lengths are in logical blocks, allocation and parameter lengths
/// in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "variants are named for the commands, fields for the CDB fields"
)]
pub enum Command {
    TestUnitReady,
    RequestSense {
        descriptor: bool,
        allocation_len: u32,
    },
    /// `vpd` is the page when EVPD is set.
    Inquiry {
        vpd: Option<u8>,
        allocation_len: u32,
    },
    ReportLuns {
        select: u8,
        allocation_len: u32,
    },
    ReadCapacity10,
    ReadCapacity16 {
        allocation_len: u32,
    },
    Read(Transfer),
    Write(Transfer),
    WriteAndVerify(Transfer),
    Verify(Transfer),
    OrWrite(Transfer),
    /// `blocks` 0 means to the end of the medium.
    SynchronizeCache {
        lba: u64,
        blocks: u32,
        immediate: bool,
    },
    Prefetch {
        lba: u64,
        blocks: u32,
        immediate: bool,
    },
    Unmap {
        anchor: bool,
        parameter_len: u32,
    },
    WriteSame(WriteSame),
    CompareAndWrite(Transfer),
    GetLbaStatus {
        lba: u64,
        allocation_len: u32,
    },
    ModeSense6 {
        page: ModePage,
        no_block_descriptor: bool,
        allocation_len: u32,
    },
    ModeSense10 {
        page: ModePage,
        no_block_descriptor: bool,
        allocation_len: u32,
    },
    ModeSelect6 {
        page_format: bool,
        save: bool,
        parameter_len: u32,
    },
    ModeSelect10 {
        page_format: bool,
        save: bool,
        parameter_len: u32,
    },
    ReportTargetPortGroups {
        extended: bool,
        allocation_len: u32,
    },
    SetTargetPortGroups {
        parameter_len: u32,
    },
    ReportSupportedOpcodes {
        timeouts: bool,
        option: ReportingOption,
        allocation_len: u32,
    },
    PersistentReserveIn {
        action: PrInAction,
        allocation_len: u32,
    },
    /// `scope_and_type` is byte 2: scope in bits 7..4, reservation type in bits 3..0.
    PersistentReserveOut {
        action: PrOutAction,
        scope_and_type: u8,
        parameter_len: u32,
    },
    Reserve6,
    Release6,
    StartStopUnit(StartStop),
    /// `prevent` is 1 to prevent, 0 to allow.
    PreventAllowMediumRemoval {
        prevent: u8,
    },
}

/// The length that the group code of an operation code prescribes (SPC-4 4.2.5.1).
const fn cdb_len(opcode: u8) -> Option<usize> {
    match opcode >> 5 {
        0 => Some(6),
        1 | 2 => Some(10),
        4 => Some(16),
        5 => Some(12),
        _ => None,
    }
}

impl Command {
    /// Takes a CDB apart. Padding after it, as in the 16-byte field of the PDU, is not looked at.
    ///
    /// # Errors
    /// [`CdbError`] for an unknown operation code or service action, a field value that no device
    /// could accept, NACA (which we do not offer), or a CDB that is too short. What depends on the
    /// device (ranges, protection, pages) is not judged here.
    pub fn parse(cdb: &[u8]) -> Result<Self, CdbError> {
        let Some(&opcode) = cdb.first() else {
            return Err(CdbError::Truncated { need: 6, got: 0 });
        };
        let need = cdb_len(opcode).ok_or(CdbError::InvalidOpcode(opcode))?;
        let cdb = cdb.get(..need).ok_or(CdbError::Truncated {
            need,
            got: cdb.len(),
        })?;
        if bit(cdb, need - 1, 2) {
            return Err(invalid((need - 1) as u16, 2));
        }
        Ok(match opcode {
            0x28 | 0x08 | 0x88 | 0xa8 => Self::Read(transfer(cdb)),
            0x2a | 0x0a | 0x8a | 0xaa => Self::Write(transfer(cdb)),
            0x2e | 0x8e | 0xae => Self::WriteAndVerify(checked_transfer(cdb)),
            0x2f | 0x8f | 0xaf => Self::Verify(checked_transfer(cdb)),
            0x8b => Self::OrWrite(transfer(cdb)),
            0x89 => Self::CompareAndWrite(Transfer {
                blocks: u32::from(cdb[13]),
                ..transfer(cdb)
            }),
            0x35 | 0x91 => {
                let Transfer { lba, blocks, .. } = transfer(cdb);
                Self::SynchronizeCache {
                    lba,
                    blocks,
                    immediate: bit(cdb, 1, 1),
                }
            }
            0x34 | 0x90 => {
                let Transfer { lba, blocks, .. } = transfer(cdb);
                Self::Prefetch {
                    lba,
                    blocks,
                    immediate: bit(cdb, 1, 1),
                }
            }
            0x41 | 0x93 => Self::WriteSame(write_same(cdb)),
            0x42 => Self::Unmap {
                anchor: bit(cdb, 1, 0),
                parameter_len: be16(cdb, 7).into(),
            },
            0x00 => Self::TestUnitReady,
            0x03 => Self::RequestSense {
                descriptor: bit(cdb, 1, 0),
                allocation_len: cdb[4].into(),
            },
            0x12 => inquiry(cdb)?,
            0xa0 => Self::ReportLuns {
                select: cdb[2],
                allocation_len: be32(cdb, 6),
            },
            0x25 => Self::ReadCapacity10,
            0x9e => service_action_in16(cdb)?,
            0x1a => Self::ModeSense6 {
                page: mode_page(cdb),
                no_block_descriptor: bit(cdb, 1, 3),
                allocation_len: cdb[4].into(),
            },
            0x5a => Self::ModeSense10 {
                page: mode_page(cdb),
                no_block_descriptor: bit(cdb, 1, 3),
                allocation_len: be16(cdb, 7).into(),
            },
            0x15 => Self::ModeSelect6 {
                page_format: bit(cdb, 1, 4),
                save: bit(cdb, 1, 0),
                parameter_len: cdb[4].into(),
            },
            0x55 => Self::ModeSelect10 {
                page_format: bit(cdb, 1, 4),
                save: bit(cdb, 1, 0),
                parameter_len: be16(cdb, 7).into(),
            },
            0xa3 => maintenance_in(cdb)?,
            0xa4 if cdb[1] & 0x1f == 0x0a => Self::SetTargetPortGroups {
                parameter_len: be32(cdb, 6),
            },
            0xa4 => return Err(invalid(1, 4)),
            0x5e => Self::PersistentReserveIn {
                action: pr_in_action(cdb[1] & 0x1f)?,
                allocation_len: be16(cdb, 7).into(),
            },
            0x5f => Self::PersistentReserveOut {
                action: pr_out_action(cdb[1] & 0x1f)?,
                scope_and_type: cdb[2],
                parameter_len: be32(cdb, 5),
            },
            // The third-party and extent forms went with SPC-2's successors.
            0x16 if cdb[1] & 0x1f == 0 => Self::Reserve6,
            0x17 if cdb[1] & 0x1f == 0 => Self::Release6,
            0x16 | 0x17 => return Err(invalid(1, 4)),
            0x1b => Self::StartStopUnit(StartStop {
                immediate: bit(cdb, 1, 0),
                power_condition: cdb[4] >> 4,
                no_flush: bit(cdb, 4, 2),
                load_eject: bit(cdb, 4, 1),
                start: bit(cdb, 4, 0),
            }),
            0x1e => Self::PreventAllowMediumRemoval {
                prevent: cdb[4] & 3,
            },
            _ => return Err(CdbError::InvalidOpcode(opcode)),
        })
    }
}

/// LBA, length and flags by the CDB's size; the fields stand at the same places in all READ-like
/// commands of one size.
fn transfer(cdb: &[u8]) -> Transfer {
    let flags = byte(cdb, 1);
    let (lba, blocks) = match cdb.len() {
        // READ (6) and WRITE (6) have 21 bits of LBA, no flags, and 0 means 256 blocks.
        6 => {
            let blocks = byte(cdb, 4);
            return Transfer {
                lba: u64::from(be32(cdb, 0) & 0x1f_ffff),
                blocks: if blocks == 0 { 256 } else { blocks.into() },
                caching: Caching::NONE,
                protect: 0,
                byte_check: 0,
            };
        }
        10 => (be32(cdb, 2).into(), be16(cdb, 7).into()),
        12 => (be32(cdb, 2).into(), be32(cdb, 6)),
        _ => (be64(cdb, 2), be32(cdb, 10)),
    };
    Transfer {
        lba,
        blocks,
        caching: Caching {
            fua: flags & 1 << 3 != 0,
            dpo: flags & 1 << 4 != 0,
        },
        protect: flags >> 5,
        byte_check: 0,
    }
}

/// The VERIFY family has BYTCHK where others have FUA's neighbours, and no FUA.
fn checked_transfer(cdb: &[u8]) -> Transfer {
    let plain = transfer(cdb);
    Transfer {
        caching: Caching {
            fua: false,
            ..plain.caching
        },
        byte_check: byte(cdb, 1) >> 1 & 3,
        ..plain
    }
}

fn write_same(cdb: &[u8]) -> WriteSame {
    let Transfer {
        lba,
        blocks,
        protect,
        ..
    } = transfer(cdb);
    WriteSame {
        lba,
        blocks,
        protect,
        anchor: bit(cdb, 1, 4),
        unmap: bit(cdb, 1, 3),
        no_data: cdb.len() == 16 && bit(cdb, 1, 0),
        obsolete: byte(cdb, 1) & 0x06 != 0,
    }
}

fn inquiry(cdb: &[u8]) -> Result<Command, CdbError> {
    let vpd = bit(cdb, 1, 0);
    // CMDDT is obsolete; a page code without EVPD is an error (SPC-4 6.6.1).
    if bit(cdb, 1, 1) {
        return Err(invalid(1, 1));
    }
    if !vpd && cdb[2] != 0 {
        return Err(invalid(2, 7));
    }
    Ok(Command::Inquiry {
        vpd: vpd.then_some(cdb[2]),
        allocation_len: be16(cdb, 3).into(),
    })
}

fn service_action_in16(cdb: &[u8]) -> Result<Command, CdbError> {
    let allocation_len = be32(cdb, 10);
    match cdb[1] & 0x1f {
        0x10 => Ok(Command::ReadCapacity16 { allocation_len }),
        0x12 => Ok(Command::GetLbaStatus {
            lba: be64(cdb, 2),
            allocation_len,
        }),
        _ => Err(invalid(1, 4)),
    }
}

fn maintenance_in(cdb: &[u8]) -> Result<Command, CdbError> {
    let allocation_len = be32(cdb, 6);
    match cdb[1] & 0x1f {
        0x0a => match cdb[1] >> 5 {
            format @ (0 | 1) => Ok(Command::ReportTargetPortGroups {
                extended: format == 1,
                allocation_len,
            }),
            _ => Err(invalid(1, 7)),
        },
        0x0c => {
            let (opcode, action) = (cdb[3], be16(cdb, 4));
            Ok(Command::ReportSupportedOpcodes {
                timeouts: bit(cdb, 2, 7),
                option: match cdb[2] & 7 {
                    0 => ReportingOption::All,
                    1 => ReportingOption::Opcode(opcode),
                    2 => ReportingOption::ServiceAction(opcode, action),
                    3 => ReportingOption::Either(opcode, action),
                    _ => return Err(invalid(2, 2)),
                },
                allocation_len,
            })
        }
        _ => Err(invalid(1, 4)),
    }
}

fn mode_page(cdb: &[u8]) -> ModePage {
    ModePage {
        control: match byte(cdb, 2) >> 6 {
            0 => PageControl::Current,
            1 => PageControl::Changeable,
            2 => PageControl::Default,
            _ => PageControl::Saved,
        },
        page: byte(cdb, 2) & 0x3f,
        subpage: byte(cdb, 3),
    }
}

fn pr_in_action(action: u8) -> Result<PrInAction, CdbError> {
    Ok(match action {
        0 => PrInAction::ReadKeys,
        1 => PrInAction::ReadReservation,
        2 => PrInAction::ReportCapabilities,
        3 => PrInAction::ReadFullStatus,
        _ => return Err(invalid(1, 4)),
    })
}

fn pr_out_action(action: u8) -> Result<PrOutAction, CdbError> {
    Ok(match action {
        0 => PrOutAction::Register,
        1 => PrOutAction::Reserve,
        2 => PrOutAction::Release,
        3 => PrOutAction::Clear,
        4 => PrOutAction::Preempt,
        5 => PrOutAction::PreemptAndAbort,
        6 => PrOutAction::RegisterAndIgnoreExistingKey,
        7 => PrOutAction::RegisterAndMove,
        _ => return Err(invalid(1, 4)),
    })
}

#[cfg(test)]
#[path = "command_tests.rs"]
mod tests;

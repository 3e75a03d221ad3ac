//! A logical unit of the target role: a block device of SBC-3 over a [`Disk`].
//!
//! ```text
//! CDB -> parse -> unit attention -> faults -> reservations, access state, readiness -> command -> Disk
//! ```
//!
//! What it leaves out, and says so with INVALID COMMAND OPERATION CODE or INVALID FIELD IN CDB: protection
//! information, third-party copy, sanitize, format, defect lists, atomic writes, logs, diagnostics, and
//! reservations that persist through power loss or name initiator ports (APTPL, SPEC_I_PT, ALL_TG_PT).

mod access;
mod alua;
mod attention;
mod blocks;
mod config;
mod describe;
mod faults;
mod mode;
mod persistent;
mod provisioning;
mod refusal;

use berth_iobuf::Payload;
use bytes::Bytes;

pub use config::{LuConfig, LuIdentity};
pub use faults::LuFaults;

use self::access::{Access, Spc2Reservation};
use self::attention::Nexuses;
use self::mode::ModeState;
use self::persistent::PersistentReservations;
use self::refusal::Refusal;
use super::disk::{Disk, DiskError, ReadSink};
use super::executor::{Nexus, ScsiExecutor, ScsiReply};
use super::pace::{Direction, Load};
use crate::scsi::alua::{AccessState, PortGroup};
use crate::scsi::{CdbError, Code, Command, Sense};

/// What a command gives back: data, or why there is none.
type Answer = Result<Payload, Refusal>;

/// A logical unit.
pub struct LogicalUnit {
    config: LuConfig,
    disk: Box<dyn Disk>,
    /// Size in logical blocks; a rest of the disk that is no whole block is not used.
    blocks: u64,
    nexuses: Nexuses,
    reservations: PersistentReservations,
    spc2: Spc2Reservation,
    groups: Vec<PortGroup>,
    mode: ModeState,
    /// START STOP UNIT stopped it.
    stopped: bool,
    faults: LuFaults,
    sink: ReadSink,
}

impl LogicalUnit {
    /// A logical unit over `disk`.
    #[must_use]
    pub fn new(config: LuConfig, disk: Box<dyn Disk>) -> Self {
        let blocks = disk.size_bytes() / u64::from(config.block_bytes);
        Self {
            blocks,
            nexuses: Nexuses::default(),
            reservations: PersistentReservations::default(),
            spc2: Spc2Reservation::default(),
            groups: config.port_groups.clone(),
            mode: ModeState::new(&config),
            stopped: false,
            faults: LuFaults::default(),
            sink: ReadSink::new(),
            config,
            disk,
        }
    }

    /// Its configuration.
    #[must_use]
    pub const fn config(&self) -> &LuConfig {
        &self.config
    }

    /// Size in logical blocks.
    #[must_use]
    pub const fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Fault switches.
    pub const fn faults(&mut self) -> &mut LuFaults {
        &mut self.faults
    }

    /// The storage behind it; for tests that look past the SCSI commands.
    pub fn disk(&mut self) -> &mut dyn Disk {
        &mut *self.disk
    }

    /// Changes the size and tells every nexus (2A/09).
    ///
    /// # Errors
    /// What the disk says.
    pub fn resize(&mut self, size_bytes: u64) -> Result<(), DiskError> {
        self.disk.resize(size_bytes)?;
        self.blocks = size_bytes / u64::from(self.config.block_bytes);
        self.nexuses.attention_all(Code::CAPACITY_CHANGED, None);
        Ok(())
    }

    /// Puts another unit's identity in place, as an array does that maps a LUN to another volume. Tells
    /// every nexus 3F/0E if `tell`; a bad array does not.
    pub fn remap(&mut self, identity: LuIdentity, tell: bool) {
        self.config.identity = identity;
        if tell {
            self.nexuses
                .attention_all(Code::REPORTED_LUNS_CHANGED, None);
        }
    }

    /// Sets or clears write protection and tells every nexus (2A/01).
    pub fn set_read_only(&mut self, read_only: bool) {
        self.config.read_only = read_only;
        self.nexuses
            .attention_all(Code::MODE_PARAMETERS_CHANGED, None);
    }

    /// Changes the access state of a port group and tells every nexus (2A/06); whether there is such a
    /// group.
    pub fn set_access_state(&mut self, group: u16, state: AccessState) -> bool {
        let Some(found) = self.groups.iter_mut().find(|found| found.id == group) else {
            return false;
        };
        found.state = state;
        found.status_code = alua::CHANGED_IMPLICITLY;
        self.nexuses.attention_all(Code::ALUA_STATE_CHANGED, None);
        true
    }

    /// The power fails and comes back: writes that were not flushed are lost, but for blocks (named by
    /// their offset in bytes) that `survives` picks; reservations and mode parameters are gone; every
    /// nexus is told 29/00. The sessions are the caller's to end.
    ///
    /// # Errors
    /// What the disk says.
    pub fn power_cycle(&mut self, survives: &mut dyn FnMut(u64) -> bool) -> Result<(), DiskError> {
        self.disk.power_cut(survives)?;
        self.reservations = PersistentReservations::default();
        self.spc2 = Spc2Reservation::default();
        self.mode = ModeState::new(&self.config);
        self.stopped = false;
        self.nexuses.reset_all(Code::POWER_ON_OR_RESET);
        Ok(())
    }

    /// Whether this nexus is registered for persistent reservations, and its key.
    #[must_use]
    pub fn registered_key(&self, nexus: &Nexus) -> Option<u64> {
        self.reservations.key_of(nexus)
    }

    fn run(&mut self, nexus: &Nexus, cdb: &[u8], data_out: &Payload) -> Answer {
        let parsed = Command::parse(cdb);
        // These three neither report nor clear a unit attention (SAM-5 5.14), but REQUEST SENSE, which
        // does both in its own way.
        let inquiring = matches!(
            parsed,
            Ok(Command::Inquiry { .. } | Command::ReportLuns { .. } | Command::RequestSense { .. })
        );
        if !inquiring {
            if let Some(code) = self.nexuses.take_attention(nexus) {
                return Err(Sense::new(code).into());
            }
            self.faults.command()?;
        }
        let command = parsed.map_err(CdbError::sense)?;
        let access = Access::of(&command);
        self.spc2.admit(nexus, access)?;
        self.reservations.admit(nexus, access)?;
        self.admit_through_port(nexus, access)?;
        if self.stopped && access.needs_medium() {
            return Err(Sense::new(Code::START_UNIT_REQUIRED).into());
        }
        if access == Access::Write && self.is_write_protected() {
            return Err(Sense::new(self.write_protection()).into());
        }
        self.dispatch(nexus, &command, cdb, data_out)
    }

    fn dispatch(
        &mut self,
        nexus: &Nexus,
        command: &Command,
        cdb: &[u8],
        data_out: &Payload,
    ) -> Answer {
        match *command {
            Command::Read(transfer) => self.read(transfer),
            Command::Write(transfer) => self.write(transfer, data_out),
            Command::WriteAndVerify(transfer) => self.write_and_verify(transfer, data_out),
            Command::Verify(transfer) => self.verify(transfer, data_out),
            Command::OrWrite(transfer) => self.or_write(transfer, data_out),
            Command::CompareAndWrite(transfer) => self.compare_and_write(transfer, data_out),
            Command::SynchronizeCache { lba, blocks, .. } => self.synchronize(lba, blocks),
            Command::Prefetch { lba, blocks, .. } => self.prefetch(lba, blocks),
            Command::Unmap { anchor, .. } => self.unmap(anchor, data_out),
            Command::WriteSame(same) => self.write_same(same, data_out),
            Command::GetLbaStatus {
                lba,
                allocation_len,
            } => self.lba_status(lba, allocation_len),
            Command::TestUnitReady => Ok(Payload::new()),
            Command::RequestSense {
                descriptor,
                allocation_len,
            } => Ok(self.request_sense(nexus, descriptor, allocation_len)),
            Command::Inquiry {
                vpd,
                allocation_len,
            } => self.inquiry(nexus, vpd, allocation_len),
            // The target answers this one: it knows the other units.
            Command::ReportLuns { .. } => Err(Sense::new(Code::INVALID_OPCODE).into()),
            Command::ReadCapacity10 => self.read_capacity10(cdb),
            Command::ReadCapacity16 { allocation_len } => {
                Ok(cut(self.capacity().emit16(), allocation_len))
            }
            Command::ModeSense6 {
                page,
                no_block_descriptor,
                allocation_len,
            } => self.mode_sense6(page, no_block_descriptor, allocation_len),
            Command::ModeSense10 {
                page,
                no_block_descriptor,
                allocation_len,
            } => self.mode_sense10(page, no_block_descriptor, allocation_len),
            Command::ModeSelect6 { .. } | Command::ModeSelect10 { .. } => {
                self.mode_select(nexus, command, data_out)
            }
            Command::ReportTargetPortGroups {
                extended,
                allocation_len,
            } => self.report_port_groups(extended, allocation_len),
            Command::SetTargetPortGroups { .. } => self.set_port_groups(nexus, data_out),
            Command::ReportSupportedOpcodes {
                timeouts,
                option,
                allocation_len,
            } => self.supported_opcodes(timeouts, option, allocation_len),
            Command::PersistentReserveIn {
                action,
                allocation_len,
            } => Ok(cut(self.reservations.report(action), allocation_len)),
            Command::PersistentReserveOut {
                action,
                scope_and_type,
                parameter_len,
            } => {
                if self.spc2.is_held() {
                    return Err(Refusal::CONFLICT);
                }
                self.reservations.change(
                    nexus,
                    action,
                    scope_and_type,
                    parameter_len,
                    data_out,
                    &mut self.nexuses,
                )?;
                Ok(Payload::new())
            }
            Command::Reserve6 | Command::Release6 if self.reservations.has_registrations() => {
                Err(Refusal::CONFLICT)
            }
            Command::Reserve6 => {
                self.spc2.take(nexus);
                Ok(Payload::new())
            }
            Command::Release6 => {
                self.spc2.release(nexus);
                Ok(Payload::new())
            }
            Command::StartStopUnit(start_stop) => self.start_stop(start_stop),
            // The medium cannot be removed, so there is nothing to prevent.
            Command::PreventAllowMediumRemoval { .. } => Ok(Payload::new()),
        }
    }

    fn start_stop(&mut self, start_stop: crate::scsi::cdb::StartStop) -> Answer {
        if start_stop.power_condition != 0 {
            return Ok(Payload::new());
        }
        if start_stop.load_eject {
            return Err(refusal::field_in_cdb(4, 1));
        }
        if !start_stop.start && !start_stop.no_flush {
            self.flush_all()?;
        }
        self.stopped = !start_stop.start;
        Ok(Payload::new())
    }
}

impl ScsiExecutor for LogicalUnit {
    fn data_out_len_bytes(&self, cdb: &[u8]) -> Option<u64> {
        let block = u64::from(self.config.block_bytes);
        let command = Command::parse(cdb).ok()?;
        Some(match command {
            Command::Write(transfer)
            | Command::WriteAndVerify(transfer)
            | Command::OrWrite(transfer) => self.transfer_len_bytes(transfer.blocks),
            Command::CompareAndWrite(transfer) => 2 * block * u64::from(transfer.blocks),
            Command::Verify(transfer) => match transfer.byte_check {
                1 => self.transfer_len_bytes(transfer.blocks),
                3 if transfer.blocks > 0 => block,
                _ => 0,
            },
            Command::WriteSame(same) if same.no_data => 0,
            Command::WriteSame(_) => block,
            Command::Unmap { parameter_len, .. }
            | Command::ModeSelect6 { parameter_len, .. }
            | Command::ModeSelect10 { parameter_len, .. }
            | Command::SetTargetPortGroups { parameter_len }
            | Command::PersistentReserveOut { parameter_len, .. } => parameter_len.into(),
            _ => 0,
        })
    }

    /// READ-like and WRITE commands move what fits and leave the rest to the residual, as initiators that
    /// test for residuals expect. COMPARE AND WRITE and WRITE SAME with a length other than the CDB's mean
    /// something else than they say.
    fn check_data_out(
        &self,
        cdb: &[u8],
        offered_bytes: u64,
        wanted_bytes: u64,
    ) -> Option<ScsiReply> {
        let parsed = Command::parse(cdb);
        // Write protection is the better answer, and execution gives it.
        let is_write = |command: &Command| Access::of(command) == Access::Write;
        if self.is_write_protected() && parsed.as_ref().is_ok_and(is_write) {
            return None;
        }
        let refusal = match parsed {
            Ok(Command::CompareAndWrite(_)) => refusal::field_in_cdb(13, 7),
            Ok(Command::WriteSame(same)) if !same.no_data => {
                Sense::new(Code::INVALID_FIELD_IN_CDB).into()
            }
            Ok(Command::Write(_) | Command::WriteAndVerify(_)) | Err(_) => return None,
            Ok(_) if offered_bytes >= wanted_bytes => return None,
            Ok(_) => refusal::DATA_OUT_LENGTH,
        };
        Some(refusal.reply(self.mode.sense_format()))
    }

    fn load(&self, cdb: &[u8]) -> Option<Load> {
        let command = Command::parse(cdb).ok()?;
        let direction = match Access::of(&command) {
            Access::Read => Direction::Read,
            Access::Write => Direction::Write,
            _ => return None,
        };
        let bytes = match command {
            Command::Read(transfer) => self.transfer_len_bytes(transfer.blocks),
            _ => self.data_out_len_bytes(cdb).unwrap_or(0),
        };
        Some(Load { direction, bytes })
    }

    fn execute(&mut self, nexus: &Nexus, cdb: &[u8], data_out: &Payload) -> ScsiReply {
        match self.run(nexus, cdb, data_out) {
            Ok(data_in) => ScsiReply {
                status: 0,
                sense: Bytes::new(),
                data_in,
            },
            Err(refusal) => {
                // What a failed read collected must not show up in the next one.
                drop(self.sink.take());
                refusal.reply(self.mode.sense_format())
            }
        }
    }

    fn nexus_begins(&mut self, nexus: &Nexus, reinstated: bool) {
        let code = if reinstated {
            Code::NEXUS_LOSS
        } else {
            Code::POWER_ON_OR_RESET
        };
        self.spc2.release(nexus);
        self.nexuses.begin(nexus, code);
    }

    fn nexus_ends(&mut self, nexus: &Nexus) {
        self.spc2.release(nexus);
        self.nexuses.end(nexus);
    }

    fn reset(&mut self) {
        self.spc2 = Spc2Reservation::default();
        self.mode = ModeState::new(&self.config);
        self.stopped = false;
        self.nexuses.reset_all(Code::DEVICE_RESET);
    }

    fn unit_attention(&mut self, asc: u8, ascq: u8, except: Option<&Nexus>) {
        let code = Code::new(crate::scsi::SenseKey::UnitAttention, asc, ascq);
        self.nexuses.attention_all(code, except);
    }
}

/// Parameter data cut at the allocation length.
fn cut(data: impl Into<Vec<u8>>, allocation_len: u32) -> Payload {
    let mut data = data.into();
    data.truncate(allocation_len as usize);
    Payload::from(data)
}

#[cfg(test)]
mod tests;

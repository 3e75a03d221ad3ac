//! What the unit says about itself: INQUIRY, capacity, commands, sense.

use berth_iobuf::Payload;

use super::super::executor::Nexus;
use super::refusal::field_in_cdb;
use super::{Answer, LogicalUnit, cut};
use crate::scsi::capacity::Capacity;
use crate::scsi::cdb::{OPCODES, OpcodeInfo, ReportingOption};
use crate::scsi::inquiry::{
    Association, BlockCharacteristics, BlockLimits, Designator, DeviceIdentification, Inquiry,
    LogicalBlockProvisioning, ProvisioningType, SupportedPages, Tpgs, UnitSerialNumber, padded,
};
use crate::scsi::opcodes::{ListedOpcode, OpcodeSupport};
use crate::scsi::{Code, Sense, SenseFormat};

/// SAM-5, iSCSI, SPC-4, SBC-3, no version claimed (SPC-4 annex D).
const VERSION_DESCRIPTORS: [u16; 4] = [0x00a0, 0x0960, 0x0460, 0x04c0];

const PAGES: [u8; 6] = [0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2];

impl LogicalUnit {
    pub(super) fn inquiry(&self, nexus: &Nexus, vpd: Option<u8>, allocation_len: u32) -> Answer {
        let data = match vpd {
            None => self.standard_inquiry(),
            Some(0x00) => SupportedPages {
                pages: PAGES.to_vec(),
            }
            .emit(),
            Some(0x80) => UnitSerialNumber {
                serial: self.config.identity.serial.clone(),
            }
            .emit(),
            Some(0x83) => self.identification(nexus).emit(),
            Some(0xb0) => self.limits().emit(),
            Some(0xb1) => BlockCharacteristics {
                rotation: if self.config.rotating { 7200 } else { 1 },
                fua_behavior: true,
                ..BlockCharacteristics::default()
            }
            .emit(),
            Some(0xb2) => LogicalBlockProvisioning {
                unmap: self.config.thin,
                write_same16_unmap: self.config.thin,
                write_same10_unmap: self.config.thin,
                reads_zeroes: self.config.thin,
                provisioning: if self.config.thin {
                    ProvisioningType::Thin
                } else {
                    ProvisioningType::Full
                },
                ..LogicalBlockProvisioning::default()
            }
            .emit(),
            Some(_) => return Err(field_in_cdb(2, 7)),
        };
        Ok(cut(data, allocation_len))
    }

    fn standard_inquiry(&self) -> Vec<u8> {
        Inquiry {
            qualifier: 0,
            device_type: 0,
            removable: false,
            version: 6,
            tpgs: match (self.groups.is_empty(), self.config.explicit_alua) {
                (true, _) => Tpgs::None,
                (false, false) => Tpgs::Implicit,
                (false, true) => Tpgs::Both,
            },
            third_party_copy: false,
            protect: false,
            multi_port: self.groups.len() > 1,
            command_queue: true,
            vendor: padded(self.config.vendor.as_bytes()),
            product: padded(self.config.product.as_bytes()),
            revision: padded(self.config.revision.as_bytes()),
            version_descriptors: VERSION_DESCRIPTORS.to_vec(),
        }
        .emit()
    }

    fn identification(&self, nexus: &Nexus) -> DeviceIdentification {
        let identity = &self.config.identity;
        let mut t10 = padded::<8>(self.config.vendor.as_bytes()).to_vec();
        t10.extend_from_slice(identity.serial.as_bytes());
        let mut designators = vec![
            Designator::of_unit(1, Designator::NAA, identity.naa.clone()),
            Designator::of_unit(2, Designator::T10, t10),
            Designator::of_port(Designator::RELATIVE_PORT, nexus.portal_group),
        ];
        if !self.groups.is_empty() {
            designators.push(Designator::of_port(
                Designator::PORT_GROUP,
                nexus.portal_group,
            ));
        }
        // SPC-4 7.8.6.11: the target device's name, UTF-8, NUL-ended, a multiple of four.
        let mut name = nexus.target.as_bytes().to_vec();
        name.resize((name.len() + 1).next_multiple_of(4), 0);
        designators.push(Designator {
            association: Association::TargetDevice,
            code_set: 3,
            kind: Designator::SCSI_NAME,
            protocol: Some(5),
            bytes: name,
        });
        DeviceIdentification { designators }
    }

    fn limits(&self) -> BlockLimits {
        let granule = (self.disk.granule_bytes() / self.config.block_bytes)
            .max(1 << self.config.physical_exponent);
        let mut limits = BlockLimits {
            write_same_nonzero: true,
            compare_and_write_max: self.config.compare_and_write_max,
            transfer_granularity: 1 << self.config.physical_exponent,
            transfer_max: self.config.transfer_max_blocks(),
            transfer_optimal: self.config.transfer_max_blocks(),
            write_same_max: self.config.write_same_max_blocks().into(),
            ..BlockLimits::default()
        };
        if self.config.thin {
            limits.unmap_blocks_max = self.config.unmap_blocks_max;
            limits.unmap_descriptors_max = self.config.unmap_descriptors_max;
            limits.unmap_granularity = granule;
            limits.unmap_alignment = Some(0);
        }
        limits
    }

    pub(super) fn capacity(&self) -> Capacity {
        Capacity {
            physical_exponent: self.config.physical_exponent,
            provisioning: self.config.thin,
            reads_zeroes: self.config.thin,
            ..Capacity::new(self.blocks, self.config.block_bytes)
        }
    }

    pub(super) fn read_capacity10(&self, cdb: &[u8]) -> Answer {
        // SBC-3 5.15.2: an LBA without PMI is an error; PMI is obsolete and asks for the same here.
        let lba = cdb.get(2..6).is_some_and(|lba| lba != [0; 4]);
        let pmi = cdb.get(8).is_some_and(|byte| byte & 1 == 1);
        if lba && !pmi {
            return Err(field_in_cdb(2, 7));
        }
        Ok(Payload::from(self.capacity().emit10().to_vec()))
    }

    pub(super) fn request_sense(
        &mut self,
        nexus: &Nexus,
        descriptor: bool,
        allocation_len: u32,
    ) -> Payload {
        let code = self.nexuses.take_attention(nexus).unwrap_or(Code::NO_SENSE);
        let format = if descriptor {
            SenseFormat::Descriptor
        } else {
            SenseFormat::Fixed
        };
        cut(Sense::new(code).emit(format), allocation_len)
    }

    /// Whether this unit, as it is configured, has the command.
    fn supports(&self, info: &OpcodeInfo) -> bool {
        match (info.opcode, info.service_action) {
            (0x42, _) => self.config.thin,
            (0x89, _) => self.config.compare_and_write_max > 0,
            (0xa3, Some(0x0a)) => !self.groups.is_empty(),
            (0xa4, _) => !self.groups.is_empty() && self.config.explicit_alua,
            _ => true,
        }
    }

    pub(super) fn supported_opcodes(
        &self,
        timeouts: bool,
        option: ReportingOption,
        allocation_len: u32,
    ) -> Answer {
        let supported = || OPCODES.iter().filter(|info| self.supports(info));
        // SPC-4 6.35.3: asking in the wrong way for a command that is there is an error.
        let of_opcode = |opcode: u8| supported().find(|info| info.opcode == opcode);
        let of_action = |opcode: u8, action: u16| {
            supported().find(|info| info.opcode == opcode && info.service_action == Some(action))
        };
        let found = match option {
            ReportingOption::All => {
                let data = ListedOpcode::emit_all(supported(), timeouts);
                return Ok(cut(data, allocation_len));
            }
            ReportingOption::Opcode(opcode) => match of_opcode(opcode) {
                Some(info) if info.service_action.is_some() => return Err(field_in_cdb(2, 2)),
                found => found,
            },
            ReportingOption::ServiceAction(opcode, action) => match of_opcode(opcode) {
                Some(info) if info.service_action.is_none() => return Err(field_in_cdb(2, 2)),
                _ => of_action(opcode, action),
            },
            ReportingOption::Either(opcode, action) => match of_opcode(opcode) {
                Some(info) if info.service_action.is_none() => Some(info).filter(|_| action == 0),
                _ => of_action(opcode, action),
            },
        };
        Ok(cut(OpcodeSupport::emit(found, timeouts), allocation_len))
    }
}

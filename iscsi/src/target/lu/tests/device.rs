//! What the unit says about itself, mode parameters, unit attentions, access states.

use super::*;
use crate::scsi::alua::{AccessState, PortGroup, SetTargetPortGroups, TargetPortGroups};
use crate::scsi::capacity::Capacity;
use crate::scsi::cdb::{Caching, OPCODES};
use crate::scsi::inquiry::{
    BlockLimits, DeviceIdentification, Identity, Inquiry, LogicalBlockProvisioning, SupportedPages,
    Tpgs, UnitSerialNumber,
};
use crate::scsi::mode::{ModeHeader, ModeParameters};
use crate::scsi::opcodes::{ListedOpcode, OpcodeSupport};
use crate::target::lu::LuIdentity;

#[test]
fn it_introduces_itself() {
    let mut rig = Rig::new();
    let inquiry = Inquiry::parse(&rig.good(&Cdb::inquiry(255), &[])).unwrap();
    assert!(inquiry.is_connected() && inquiry.is_block_device() && inquiry.command_queue);
    assert_eq!((inquiry.version, inquiry.tpgs), (6, Tpgs::None));
    assert_eq!(inquiry.vendor_text(), "BERTH");
    assert_eq!(rig.good(&Cdb::inquiry(36), &[]).len(), 36);
    let pages = SupportedPages::parse(&rig.good(&Cdb::inquiry_vpd(0, 255), &[])).unwrap();
    for page in &pages.pages {
        let data = rig.good(&Cdb::inquiry_vpd(*page, 0xffff), &[]);
        assert_eq!((data[1], data.len()), (*page, 4 + usize::from(data[3])));
    }
    assert!(pages.pages.is_sorted());
    assert_eq!(
        rig.bad(&Cdb::inquiry_vpd(0xb9, 255), &[]).field(),
        Some((true, 2))
    );
    let serial = UnitSerialNumber::parse(&rig.good(&Cdb::inquiry_vpd(0x80, 255), &[])).unwrap();
    assert_eq!(serial.serial, "serial-1");
    let page = DeviceIdentification::parse(&rig.good(&Cdb::inquiry_vpd(0x83, 255), &[])).unwrap();
    assert_eq!(page.relative_port(), Some(1));
    let identity = Identity::choose(Some(&page), None).unwrap();
    assert!(identity.as_str().starts_with("naa.3"), "{identity}");
    rig.unit.remap(LuIdentity::from_serial("serial-2"), true);
    assert_eq!(rig.tur(&rig.a.clone()), Err(Code::REPORTED_LUNS_CHANGED));
    let page = DeviceIdentification::parse(&rig.good(&Cdb::inquiry_vpd(0x83, 255), &[])).unwrap();
    assert_ne!(Identity::choose(Some(&page), None), Some(identity));
}

#[test]
fn limits_and_capacity_agree_with_the_configuration() {
    let mut rig = Rig::with(LuConfig {
        physical_exponent: 3,
        ..LuConfig::new("x")
    });
    let capacity = Capacity::parse16(&rig.good(&Cdb::read_capacity16(32), &[])).unwrap();
    assert_eq!((capacity.blocks, capacity.block_len_bytes), (BLOCKS, 512));
    assert!(capacity.provisioning && capacity.reads_zeroes);
    assert_eq!(capacity.physical_exponent, 3);
    let ten = Capacity::parse10(&rig.good(&Cdb::read_capacity10(), &[])).unwrap();
    assert_eq!(ten.map(|ten| ten.blocks), Some(BLOCKS));
    assert_eq!(rig.good(&Cdb::read_capacity16(12), &[]).len(), 12);
    assert_eq!(
        rig.code(&[0x25, 0, 0, 0, 0, 1, 0, 0, 0, 0], &[]),
        Some(Code::INVALID_FIELD_IN_CDB)
    );
    let limits = BlockLimits::parse(&rig.good(&Cdb::inquiry_vpd(0xb0, 255), &[])).unwrap();
    assert!(limits.write_same_nonzero);
    assert_eq!(limits.transfer_max, 32768);
    assert_eq!(
        (limits.unmap_granularity, limits.unmap_alignment),
        (8, Some(0))
    );
    let thin =
        LogicalBlockProvisioning::parse(&rig.good(&Cdb::inquiry_vpd(0xb2, 255), &[])).unwrap();
    assert!(thin.unmap && thin.write_same16_unmap && thin.reads_zeroes);
}

/// SPC-4 6.35: what is listed can be asked for, and only in the right way.
#[test]
fn supported_opcodes_are_told() {
    let mut rig = Rig::new();
    let all = rig.good(&Cdb::report_supported_opcodes(false, 65535), &[]);
    let listed = ListedOpcode::parse_all(&all).unwrap();
    assert!(listed.len() < OPCODES.len() && listed.len() > 40);
    for entry in listed {
        let right = Cdb::report_supported_opcode(entry.opcode, entry.service_action, 512);
        let answer = OpcodeSupport::parse(&rig.good(&right, &[])).unwrap();
        let OpcodeSupport::Supported { usage, standard } = answer else {
            panic!("{:#x}: {answer:?}", entry.opcode);
        };
        assert!(standard && usage[0] == entry.opcode && usage.len() == usize::from(entry.cdb_len));
        let other = entry.service_action.xor(Some(0));
        let wrong = Cdb::report_supported_opcode(entry.opcode, other, 512);
        assert_eq!(
            rig.bad(&wrong, &[]).code,
            Code::INVALID_FIELD_IN_CDB,
            "{entry:?}"
        );
    }
    // Without port groups there is no such command.
    let answer = rig.good(&Cdb::report_supported_opcode(0xa3, Some(0x0a), 512), &[]);
    assert_eq!(
        OpcodeSupport::parse(&answer),
        Ok(OpcodeSupport::NotSupported)
    );
}

#[test]
fn mode_parameters_can_be_read_and_changed() {
    let mut rig = Rig::with(LuConfig {
        write_cache: true,
        ..LuConfig::new("x")
    });
    let mut list = ModeParameters::parse(
        ModeHeader::Six,
        &rig.good(&Cdb::mode_sense6(0x3f, 255), &[]),
    )
    .unwrap();
    assert!(list.dpo_fua && !list.write_protected);
    assert!(list.caching().unwrap().write_cache);
    // SWP and D_SENSE on.
    let control = list
        .pages
        .iter_mut()
        .find(|page| page.page == 0x0a)
        .unwrap();
    control.data[0] |= 1 << 2;
    control.data[2] |= 1 << 3;
    list.pages.retain(|page| page.page == 0x0a);
    let parameters = list.emit(ModeHeader::Ten);
    rig.good(&Cdb::mode_select10(parameters.len() as u16), &parameters);
    assert_eq!(rig.tur(&rig.a.clone()), Ok(()));
    let b = rig.b.clone();
    let reply = rig.send(&b, &Cdb::test_unit_ready(), &[]);
    assert_eq!(reply.sense[0], 0x72, "descriptor format");
    assert_eq!(
        sense_of(&reply).unwrap().code,
        Code::MODE_PARAMETERS_CHANGED
    );
    let sense = rig.bad(&Cdb::write10(0, 1, Caching::NONE), &[0; 512]);
    assert_eq!((sense.code.asc, sense.code.ascq), (0x27, 0x02));
    let bytes = rig.good(&Cdb::mode_sense10(0x0a, 255), &[]);
    assert!(
        ModeParameters::parse(ModeHeader::Ten, &bytes)
            .unwrap()
            .write_protected
    );
    // What cannot be changed is refused as a whole.
    let control = &mut list.pages[0];
    control.data[2] = 0;
    control.data[3] = 0x40;
    let parameters = list.emit(ModeHeader::Six);
    let sense = rig.bad(&Cdb::mode_select6(parameters.len() as u8), &parameters);
    assert_eq!(sense.code, Code::INVALID_FIELD_IN_PARAMETER_LIST);
    assert_eq!(
        rig.code(&[0x1a, 0, 0xff, 0, 255, 0], &[]),
        Some(Code::SAVING_NOT_SUPPORTED)
    );
    assert_eq!(
        rig.code(&[0x1a, 0, 0x19, 0, 255, 0], &[]),
        Some(Code::INVALID_FIELD_IN_CDB)
    );
    // A reset brings the defaults back.
    rig.unit.reset();
    assert_eq!(rig.tur(&b), Err(Code::DEVICE_RESET));
    assert_eq!(rig.tur(&rig.a.clone()), Err(Code::DEVICE_RESET));
    rig.good(&Cdb::write10(0, 1, Caching::NONE), &[0; 512]);
}

#[test]
fn unit_attentions_are_told_once_to_each_nexus() {
    let mut rig = Rig::new();
    let (a, b) = (rig.a.clone(), rig.b.clone());
    rig.unit.resize(BLOCKS * 1024).unwrap();
    rig.unit.resize(BLOCKS * 1024).unwrap();
    // INQUIRY does not clear it, REQUEST SENSE tells and clears it.
    rig.good(&Cdb::inquiry(36), &[]);
    let sense = Sense::parse(&rig.good(&Cdb::request_sense(false, 252), &[])).unwrap();
    assert_eq!(sense.code, Code::CAPACITY_CHANGED);
    assert_eq!(rig.tur(&a), Ok(()));
    assert_eq!(rig.tur(&b), Err(Code::CAPACITY_CHANGED));
    assert_eq!(rig.tur(&b), Ok(()));
    let capacity = Capacity::parse16(&rig.good(&Cdb::read_capacity16(32), &[])).unwrap();
    assert_eq!(capacity.blocks, 2 * BLOCKS);
    rig.unit.unit_attention(0x3f, 0x0e, Some(&a));
    assert_eq!(rig.tur(&a), Ok(()));
    assert_eq!(rig.tur(&b), Err(Code::REPORTED_LUNS_CHANGED));
    rig.unit.nexus_begins(&a, true);
    assert_eq!(rig.tur(&a), Err(Code::NEXUS_LOSS));
    let sense = Sense::parse(&rig.good(&Cdb::request_sense(true, 252), &[])).unwrap();
    assert_eq!(sense.code, Code::NO_SENSE);
}

fn group(id: u16, state: AccessState) -> PortGroup {
    PortGroup {
        id,
        preferred: id == 1,
        state,
        supported: 0x8f,
        status_code: 0,
        ports: vec![id],
    }
}

/// SPC-4 5.15.
#[test]
fn access_states_decide_what_works() {
    let mut rig = Rig::with(LuConfig {
        port_groups: vec![
            group(1, AccessState::ActiveOptimized),
            group(2, AccessState::Standby),
        ],
        explicit_alua: true,
        transition_seconds: 7,
        ..LuConfig::new("x")
    });
    let second = Nexus {
        portal_group: 2,
        ..rig.a.clone()
    };
    assert_eq!(rig.tur(&rig.a.clone()), Ok(()));
    assert_eq!(rig.tur(&second), Err(Code::ALUA_STANDBY));
    let report = rig.send(&second, &Cdb::report_target_port_groups(true, 256), &[]);
    let groups = TargetPortGroups::parse(&report.data_in.to_bytes()).unwrap();
    assert_eq!(
        (groups.transition_seconds, groups.groups.len()),
        (Some(7), 2)
    );
    assert_eq!(
        rig.send(&second, &Cdb::mode_sense6(0x3f, 255), &[]).status,
        0
    );
    assert!(rig.unit.set_access_state(1, AccessState::Transitioning));
    assert!(!rig.unit.set_access_state(9, AccessState::Offline));
    assert_eq!(rig.tur(&rig.a.clone()), Err(Code::ALUA_STATE_CHANGED));
    assert_eq!(rig.tur(&rig.a.clone()), Err(Code::ALUA_TRANSITION));
    let list = SetTargetPortGroups {
        states: vec![
            (1, AccessState::Unavailable),
            (2, AccessState::ActiveOptimized),
        ],
    };
    let reply = rig.send(&second, &Cdb::set_target_port_groups(12), &list.emit());
    assert_eq!(reply.status, 0);
    assert_eq!(rig.tur(&second), Ok(()));
    assert_eq!(rig.tur(&rig.a.clone()), Err(Code::ALUA_STATE_CHANGED));
    assert_eq!(rig.tur(&rig.a.clone()), Err(Code::ALUA_UNAVAILABLE));
    rig.good(&Cdb::inquiry(36), &[]);
    rig.good(&Cdb::report_target_port_groups(false, 256), &[]);
}

#[test]
fn a_stopped_unit_wants_to_be_started() {
    let mut rig = Rig::new();
    rig.good(&Cdb::start_stop_unit(false), &[]);
    assert_eq!(rig.tur(&rig.b.clone()), Err(Code::START_UNIT_REQUIRED));
    assert_eq!(
        rig.bad(&Cdb::read10(0, 1, Caching::NONE), &[]).code,
        Code::START_UNIT_REQUIRED
    );
    rig.good(&Cdb::start_stop_unit(true), &[]);
    assert_eq!(rig.tur(&rig.b.clone()), Ok(()));
    // The medium cannot be ejected.
    assert_eq!(
        rig.code(&[0x1b, 0, 0, 0, 2, 0], &[]),
        Some(Code::INVALID_FIELD_IN_CDB)
    );
}

#[test]
fn what_is_not_there_says_so() {
    let mut rig = Rig::new();
    // SANITIZE, EXTENDED COPY, READ DEFECT DATA (10), WRITE ATOMIC (16), LOG SENSE.
    for opcode in [0x48, 0x83, 0x37, 0x9c, 0x4d, 0x7f, 0xff] {
        let mut cdb = [0; 16];
        cdb[0] = opcode;
        assert_eq!(
            rig.code(&cdb, &[]),
            Some(Code::INVALID_OPCODE),
            "{opcode:#x}"
        );
    }
}

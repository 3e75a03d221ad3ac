use proptest::prelude::*;

use super::super::Cdb;
use super::*;

fn parsed(cdb: Cdb) -> Command {
    // As it travels: padded to the 16 bytes of the PDU.
    Command::parse(&cdb.padded()).expect("our own commands parse")
}

/// SBC-3 5.11 and 5.31: places of FUA, DPO, LBA and length.
#[test]
fn read_and_write_known_bytes() {
    let cdb = Cdb::write10(8, 1, Caching::NONE);
    assert_eq!(cdb.as_bytes(), [0x2a, 0, 0, 0, 0, 8, 0, 0, 1, 0]);
    let both = Caching {
        fua: true,
        dpo: true,
    };
    let cdb = Cdb::read16(0x0102_0304_0506_0708, 0x1122_3344, both);
    assert_eq!(
        cdb.as_bytes(),
        [
            0x88, 0x18, 1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x22, 0x33, 0x44, 0, 0
        ]
    );
}

/// SPC-4 6.16: the parameter list length stands at bytes 5 to 8.
#[test]
fn persistent_reserve_out_known_bytes() {
    let cdb = Cdb::persistent_reserve_out(PrOutAction::Preempt, 5, 0x0102_0318);
    assert_eq!(cdb.as_bytes(), [0x5f, 4, 5, 0, 0, 1, 2, 3, 0x18, 0]);
}

#[test]
fn other_known_bytes() {
    let cases: [(Cdb, &[u8]); 10] = [
        (Cdb::test_unit_ready(), &[0; 6]),
        (Cdb::inquiry_vpd(0x83, 0x1ff), &[0x12, 1, 0x83, 1, 0xff, 0]),
        (
            Cdb::report_luns(0x1000),
            &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0],
        ),
        (
            Cdb::read_capacity16(32),
            &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0],
        ),
        (Cdb::mode_sense6(0x3f, 192), &[0x1a, 8, 0x3f, 0, 192, 0]),
        (
            Cdb::mode_sense10(8, 0x102),
            &[0x5a, 8, 8, 0, 0, 0, 0, 1, 2, 0],
        ),
        (Cdb::unmap(24), &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0]),
        (
            Cdb::report_target_port_groups(true, 256),
            &[0xa3, 0x2a, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0],
        ),
        (
            Cdb::report_supported_opcode(0x9e, Some(0x12), 512),
            &[0xa3, 0x0c, 2, 0x9e, 0, 0x12, 0, 0, 2, 0, 0, 0],
        ),
        (Cdb::start_stop_unit(true), &[0x1b, 0, 0, 0, 1, 0]),
    ];
    for (cdb, bytes) in cases {
        assert_eq!(cdb.as_bytes(), bytes, "{cdb}");
    }
}

#[test]
fn six_byte_transfers_have_their_own_rules() {
    // SBC-2 5.5: 21-bit LBA, 0 means 256 blocks.
    let command = Command::parse(&[0x08, 0xff, 0x12, 0x34, 0, 0]);
    let Ok(Command::Read(transfer)) = command else {
        panic!("{command:?}");
    };
    assert_eq!((transfer.lba, transfer.blocks), (0x1f_1234, 256));
    assert_eq!(transfer.protect, 0);
}

#[test]
fn refusals_point_at_the_field() {
    let field = |byte, bit| Err(CdbError::InvalidField { byte, bit });
    assert_eq!(
        Command::parse(&[0xc0; 16]),
        Err(CdbError::InvalidOpcode(0xc0))
    );
    assert_eq!(
        Command::parse(&[0x02; 6]),
        Err(CdbError::InvalidOpcode(0x02))
    );
    // Page code without EVPD.
    assert_eq!(Command::parse(&[0x12, 0, 0x80, 0, 36, 0]), field(2, 7));
    // NACA.
    assert_eq!(Command::parse(&[0, 0, 0, 0, 0, 4]), field(5, 2));
    // Service actions.
    assert_eq!(
        Command::parse(&[0x5e, 9, 0, 0, 0, 0, 0, 0, 8, 0]),
        field(1, 4)
    );
    assert_eq!(
        Command::parse(&[0x88; 15]),
        Err(CdbError::Truncated { need: 16, got: 15 })
    );
    assert_eq!(
        Command::parse(&[]),
        Err(CdbError::Truncated { need: 6, got: 0 })
    );
}

#[test]
fn refusals_as_sense() {
    let sense = CdbError::InvalidField { byte: 2, bit: 7 }.sense();
    assert_eq!(sense.code, Code::INVALID_FIELD_IN_CDB);
    // SPC-4 4.5.2.4.2: SKSV, C/D, BPV, bit pointer; then the byte.
    assert_eq!(sense.key_specific, Some([0xcf, 0, 2]));
    assert_eq!(
        CdbError::InvalidOpcode(2).sense().code,
        Code::INVALID_OPCODE
    );
}

proptest! {
    #[test]
    fn transfers_round_trip(lba: u64, blocks: u32, fua: bool, dpo: bool) {
        let caching = Caching { fua, dpo };
        let transfer = Transfer { lba, blocks, caching, protect: 0, byte_check: 0 };
        prop_assert_eq!(parsed(Cdb::read16(lba, blocks, caching)), Command::Read(transfer));
        prop_assert_eq!(parsed(Cdb::write16(lba, blocks, caching)), Command::Write(transfer));
        let (lba, blocks) = (lba as u32, blocks as u16);
        let transfer = Transfer { lba: lba.into(), blocks: blocks.into(), ..transfer };
        prop_assert_eq!(parsed(Cdb::read10(lba, blocks, caching)), Command::Read(transfer));
        prop_assert_eq!(parsed(Cdb::write10(lba, blocks, caching)), Command::Write(transfer));
        let compare = Transfer { blocks: (blocks & 0xff).into(), ..transfer };
        prop_assert_eq!(
            parsed(Cdb::compare_and_write(lba.into(), blocks as u8, caching)),
            Command::CompareAndWrite(compare)
        );
    }

    #[test]
    fn block_commands_round_trip(lba: u64, blocks: u32, unmap: bool, no_data: bool, immediate: bool) {
        let same = WriteSame {
            lba, blocks, protect: 0, unmap, anchor: false, no_data, obsolete: false,
        };
        prop_assert_eq!(
            parsed(Cdb::write_same16(lba, blocks, unmap, no_data)), Command::WriteSame(same));
        prop_assert_eq!(parsed(Cdb::synchronize_cache16(lba, blocks)),
            Command::SynchronizeCache { lba, blocks, immediate: false });
        prop_assert_eq!(parsed(Cdb::prefetch16(lba, blocks, immediate)),
            Command::Prefetch { lba, blocks, immediate });
        prop_assert_eq!(parsed(Cdb::get_lba_status(lba, blocks)),
            Command::GetLbaStatus { lba, allocation_len: blocks });
        let Command::Verify(verify) = parsed(Cdb::verify16_compare(lba, blocks)) else {
            panic!("not VERIFY");
        };
        prop_assert_eq!((verify.lba, verify.blocks, verify.byte_check), (lba, blocks, 1));
        let (short, few) = (lba as u32, blocks as u16);
        prop_assert_eq!(parsed(Cdb::write_same10(short, few, unmap)), Command::WriteSame(WriteSame {
            lba: short.into(), blocks: few.into(), no_data: false, ..same }));
        prop_assert_eq!(parsed(Cdb::synchronize_cache10(short, few)),
            Command::SynchronizeCache { lba: short.into(), blocks: few.into(), immediate: false });
        prop_assert_eq!(parsed(Cdb::prefetch10(short, few, immediate)),
            Command::Prefetch { lba: short.into(), blocks: few.into(), immediate });
    }

    #[test]
    fn parameter_commands_round_trip(len: u32, page: u8, opcode: u8, action: u16, flag: bool) {
        let (short, tiny) = (len as u16, len as u8);
        prop_assert_eq!(parsed(Cdb::inquiry(short)),
            Command::Inquiry { vpd: None, allocation_len: short.into() });
        prop_assert_eq!(parsed(Cdb::inquiry_vpd(page, short)),
            Command::Inquiry { vpd: Some(page), allocation_len: short.into() });
        prop_assert_eq!(parsed(Cdb::report_luns(len)),
            Command::ReportLuns { select: 0, allocation_len: len });
        prop_assert_eq!(parsed(Cdb::request_sense(flag, tiny)),
            Command::RequestSense { descriptor: flag, allocation_len: tiny.into() });
        let page = ModePage { control: PageControl::Current, page: page & 0x3f, subpage: 0 };
        prop_assert_eq!(parsed(Cdb::mode_sense6(page.page, tiny)),
            Command::ModeSense6 { page, no_block_descriptor: true, allocation_len: tiny.into() });
        prop_assert_eq!(parsed(Cdb::mode_sense10(page.page, short)),
            Command::ModeSense10 { page, no_block_descriptor: true, allocation_len: short.into() });
        prop_assert_eq!(parsed(Cdb::mode_select10(short)),
            Command::ModeSelect10 { page_format: true, save: false, parameter_len: short.into() });
        prop_assert_eq!(parsed(Cdb::mode_select6(tiny)),
            Command::ModeSelect6 { page_format: true, save: false, parameter_len: tiny.into() });
        prop_assert_eq!(parsed(Cdb::unmap(short)),
            Command::Unmap { anchor: false, parameter_len: short.into() });
        prop_assert_eq!(parsed(Cdb::report_target_port_groups(flag, len)),
            Command::ReportTargetPortGroups { extended: flag, allocation_len: len });
        prop_assert_eq!(parsed(Cdb::set_target_port_groups(len)),
            Command::SetTargetPortGroups { parameter_len: len });
        prop_assert_eq!(parsed(Cdb::report_supported_opcodes(flag, len)),
            Command::ReportSupportedOpcodes {
                timeouts: flag, option: ReportingOption::All, allocation_len: len });
        prop_assert_eq!(parsed(Cdb::report_supported_opcode(opcode, Some(action), len)),
            Command::ReportSupportedOpcodes {
                timeouts: false,
                option: ReportingOption::ServiceAction(opcode, action),
                allocation_len: len,
            });
        prop_assert_eq!(parsed(Cdb::persistent_reserve_in(PrInAction::ReadFullStatus, short)),
            Command::PersistentReserveIn {
                action: PrInAction::ReadFullStatus, allocation_len: short.into() });
        prop_assert_eq!(
            parsed(Cdb::persistent_reserve_out(PrOutAction::RegisterAndMove, opcode, len)),
            Command::PersistentReserveOut {
                action: PrOutAction::RegisterAndMove,
                scope_and_type: opcode & 0x0f,
                parameter_len: len,
            });
        prop_assert_eq!(parsed(Cdb::start_stop_unit(flag)), Command::StartStopUnit(StartStop {
            immediate: false, power_condition: 0, no_flush: false, load_eject: false, start: flag }));
    }

    /// Whatever comes, the answer is a command or a typed refusal, and every command that parses has a
    /// name for the log.
    #[test]
    fn any_bytes_are_safe(bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
        if Command::parse(&bytes).is_ok() {
            prop_assert!(super::super::opcode_name(&bytes).is_some());
        }
    }
}

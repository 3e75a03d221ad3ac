//! Reads, writes, checks and provisioning.

use proptest::prelude::*;

use super::*;
use crate::scsi::cdb::Caching;
use crate::scsi::provisioning::{BlockRange, LbaStatusList, Provisioning, UnmapList};
use crate::target::lu::LuFaults;

fn read(rig: &mut Rig, lba: u64, blocks: u32) -> Vec<u8> {
    rig.good(&Cdb::read16(lba, blocks, Caching::NONE), &[])
}

fn write(rig: &mut Rig, lba: u64, byte: u8, blocks: usize) {
    let data = vec![byte; blocks * 512];
    rig.good(&Cdb::write16(lba, blocks as u32, Caching::NONE), &data);
}

#[test]
fn what_is_written_is_read_in_every_cdb_size() {
    let mut rig = Rig::new();
    let data = vec![0xa5; 1024];
    let writes: [&[u8]; 4] = [
        &[0x0a, 0, 0, 8, 2, 0],
        &[0x2a, 0, 0, 0, 0, 8, 0, 0, 2, 0],
        &[0xaa, 0, 0, 0, 0, 8, 0, 0, 0, 2, 0, 0],
        &[0x8a, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 2, 0, 0],
    ];
    let reads: [&[u8]; 4] = [
        &[0x08, 0, 0, 8, 2, 0],
        &[0x28, 0, 0, 0, 0, 8, 0, 0, 2, 0],
        &[0xa8, 0, 0, 0, 0, 8, 0, 0, 0, 2, 0, 0],
        &[0x88, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 2, 0, 0],
    ];
    for (i, cdb) in writes.iter().enumerate() {
        let mut data = data.clone();
        data[0] = i as u8;
        assert_eq!(rig.unit.data_out_len_bytes(cdb), Some(1024));
        assert_eq!(rig.code(cdb, &data), None);
        for cdb in reads {
            let reply = rig.raw(&rig.a.clone(), cdb, &[]);
            assert_eq!(reply.data_in.to_bytes(), &data[..]);
        }
    }
}

/// SBC-3 5.11 and 4.5: LOGICAL BLOCK ADDRESS OUT OF RANGE, protection without support, and lengths.
#[test]
fn ranges_lengths_and_protection_are_checked() {
    let mut rig = Rig::new();
    for (lba, blocks) in [
        (BLOCKS, 1),
        (BLOCKS - 1, 2),
        (u64::MAX, 1),
        (BLOCKS + 1, 0),
        (1 << 63, 0),
    ] {
        let sense = rig.bad(&Cdb::read16(lba, blocks, Caching::NONE), &[]);
        assert_eq!(sense.code, Code::LBA_OUT_OF_RANGE, "{lba} {blocks}");
        assert_eq!(
            sense.information,
            u32::try_from(lba.max(BLOCKS)).ok().map(u64::from)
        );
    }
    assert!(
        rig.good(&Cdb::read16(BLOCKS, 0, Caching::NONE), &[])
            .is_empty()
    );
    for opcode in [
        0x28, 0x2a, 0x2e, 0x2f, 0x41, 0x88, 0x89, 0x8a, 0x8b, 0x8e, 0x8f, 0x93, 0xa8, 0xaa,
    ] {
        let mut cdb = [0; 16];
        (cdb[0], cdb[1], cdb[8], cdb[9], cdb[13]) = (opcode, 1 << 5, 0, 0, 0);
        assert_eq!(
            rig.code(&cdb, &[0; 512]),
            Some(Code::INVALID_FIELD_IN_CDB),
            "{opcode:#x}"
        );
    }
    rig.unit.config.transfer_max_bytes = 1 << 20;
    let sense = rig.bad(&Cdb::read16(0, 2049, Caching::NONE), &[]);
    assert_eq!(sense.code, Code::INVALID_FIELD_IN_CDB);
    assert_eq!(sense.field(), Some((true, 10)));
    assert_eq!(read(&mut rig, 0, 2048).len(), 1 << 20);
    // A length that is refused asks for no data.
    let long = Cdb::write16(0, u32::MAX, Caching::NONE);
    assert_eq!(rig.unit.data_out_len_bytes(long.as_bytes()), Some(0));
}

#[test]
fn a_flush_and_fua_are_what_a_power_cut_respects() {
    let mut rig = Rig::new();
    let survive = &mut |_: u64| false;
    write(&mut rig, 0, 1, 4);
    rig.good(&Cdb::synchronize_cache16(0, 0), &[]);
    write(&mut rig, 0, 2, 1);
    rig.good(&Cdb::write16(1, 1, Caching::FUA), &[3; 512]);
    write(&mut rig, 2, 4, 1);
    rig.good(&Cdb::synchronize_cache10(2, 1), &[]);
    rig.unit.power_cycle(survive).unwrap();
    assert_eq!(rig.tur(&rig.a.clone()), Err(Code::POWER_ON_OR_RESET));
    let data = read(&mut rig, 0, 4);
    let first: Vec<u8> = data.chunks(512).map(|block| block[0]).collect();
    assert_eq!(first, [1, 3, 4, 1]);
}

/// SBC-3 5.2.
#[test]
fn compare_and_write_is_all_or_nothing() {
    let mut rig = Rig::new();
    write(&mut rig, 5, 7, 2);
    let cdb = Cdb::compare_and_write(5, 2, Caching::NONE);
    assert_eq!(rig.unit.data_out_len_bytes(cdb.as_bytes()), Some(2048));
    let mut data = [vec![7; 1024], vec![8; 1024]].concat();
    data[700] = 0;
    let sense = rig.bad(&cdb, &data);
    assert_eq!(
        (sense.code, sense.information),
        (Code::MISCOMPARE, Some(700))
    );
    assert_eq!(read(&mut rig, 5, 2), [7; 1024]);
    data[700] = 7;
    rig.good(&cdb, &data);
    assert_eq!(read(&mut rig, 5, 2), [8; 1024]);
    // Half of the data is no comparison.
    let sense = rig.bad(&cdb, &data[..1024]);
    assert_eq!((sense.code.asc, sense.code.ascq), (0x0e, 0x03));
    rig.unit.config.compare_and_write_max = 1;
    assert_eq!(rig.bad(&cdb, &data).code, Code::INVALID_FIELD_IN_CDB);
}

#[test]
fn verify_compares_what_it_is_asked_to() {
    let mut rig = Rig::new();
    write(&mut rig, 0, 1, 4);
    let mut data = vec![1; 2048];
    rig.good(&Cdb::verify16_compare(0, 4), &data);
    data[1999] = 2;
    let sense = rig.bad(&Cdb::verify16_compare(0, 4), &data);
    assert_eq!(
        (sense.code, sense.information),
        (Code::MISCOMPARE, Some(1999))
    );
    rig.good(&Cdb::verify16(0, 4), &data);
    let mut one_block = Cdb::verify16(0, 4).padded();
    one_block[1] = 3 << 1;
    assert_eq!(rig.unit.data_out_len_bytes(&one_block), Some(512));
    assert_eq!(rig.code(&one_block, &[1; 512]), None);
    assert_eq!(rig.code(&one_block, &[2; 512]), Some(Code::MISCOMPARE));
    one_block[1] = 2 << 1;
    assert_eq!(
        rig.code(&one_block, &[1; 512]),
        Some(Code::INVALID_FIELD_IN_CDB)
    );
}

#[test]
fn orwrite_and_write_and_verify() {
    let mut rig = Rig::new();
    write(&mut rig, 9, 0x0f, 1);
    let mut cdb = [0; 16];
    (cdb[0], cdb[9], cdb[13]) = (0x8b, 9, 1);
    assert_eq!(rig.code(&cdb, &[0xf0; 512]), None);
    assert_eq!(read(&mut rig, 9, 1), [0xff; 512]);
    (cdb[0], cdb[1]) = (0x8e, 1 << 1);
    assert_eq!(rig.code(&cdb, &[0x11; 512]), None);
    assert_eq!(read(&mut rig, 9, 1), [0x11; 512]);
}

/// SBC-3 5.45: WSNZ, NDOB, UNMAP, and data that is repeated.
#[test]
fn write_same() {
    let mut rig = Rig::new();
    let pattern: Vec<u8> = (0..512).map(|i| i as u8).collect();
    rig.good(&Cdb::write_same16(1, 300, false, false), &pattern);
    assert_eq!(read(&mut rig, 1, 300), pattern.repeat(300));
    assert_eq!(read(&mut rig, 301, 1), [0; 512]);
    assert_eq!(
        rig.bad(&Cdb::write_same16(0, 0, false, false), &pattern)
            .code,
        Code::INVALID_FIELD_IN_CDB
    );
    // Zeroes with UNMAP give the storage back, without UNMAP they take it.
    rig.good(&Cdb::write_same16(1, 100, true, true), &[]);
    rig.good(&Cdb::write_same10(101, 100, false), &[0; 512]);
    assert_eq!(read(&mut rig, 1, 200), vec![0; 200 * 512]);
    assert!(!rig.unit.disk().extent(512).unwrap().mapped);
    assert!(rig.unit.disk().extent(101 * 512).unwrap().mapped);
    // Data that is not zero is written even with UNMAP, since LBPRZ promises zeroes.
    rig.good(&Cdb::write_same16(1, 1, true, false), &pattern);
    assert_eq!(read(&mut rig, 1, 1), pattern);
    assert_eq!(
        rig.bad(&Cdb::write_same16(0, 1, false, false), &[]).code,
        Code::INVALID_FIELD_IN_CDB
    );
}

/// SBC-3 5.28 and 5.5.
#[test]
fn unmap_and_its_map() {
    let mut rig = Rig::new();
    write(&mut rig, 0, 1, 64);
    let range = |lba, blocks| BlockRange { lba, blocks };
    let list = UnmapList {
        ranges: vec![range(8, 8), range(BLOCKS, 0)],
    }
    .emit();
    rig.good(&Cdb::unmap(list.len() as u16), &list);
    assert_eq!(
        read(&mut rig, 7, 10),
        [vec![1; 512], vec![0; 4096], vec![1; 512]].concat()
    );
    let status = LbaStatusList::parse(&rig.good(&Cdb::get_lba_status(0, 1000), &[])).unwrap();
    let runs: Vec<_> = status
        .runs
        .iter()
        .map(|run| (run.range, run.provisioning))
        .collect();
    assert_eq!(
        runs,
        [
            (range(0, 8), Provisioning::Mapped),
            (range(8, 8), Provisioning::Deallocated),
            (range(16, 48), Provisioning::Mapped),
            (range(64, BLOCKS as u32 - 64), Provisioning::Deallocated),
        ]
    );
    // Asked with room for one.
    let status = LbaStatusList::parse(&rig.good(&Cdb::get_lba_status(12, 24), &[])).unwrap();
    assert_eq!(status.runs.len(), 1);
    assert_eq!(status.runs[0].range, range(12, 4));
    assert_eq!(
        rig.bad(&Cdb::get_lba_status(BLOCKS, 24), &[]).code,
        Code::LBA_OUT_OF_RANGE
    );
    // One bad range: none is touched.
    let list = UnmapList {
        ranges: vec![range(0, 1), range(BLOCKS, 1)],
    }
    .emit();
    assert_eq!(rig.bad(&Cdb::unmap(40), &list).code, Code::LBA_OUT_OF_RANGE);
    assert_eq!(read(&mut rig, 0, 1), [1; 512]);
    assert_eq!(
        rig.bad(&Cdb::unmap(7), &[0; 7]).code,
        Code::PARAMETER_LIST_LENGTH_ERROR
    );
    rig.good(&Cdb::unmap(0), &[]);
    rig.unit.config.unmap_descriptors_max = 1;
    let list = UnmapList {
        ranges: vec![range(0, 1), range(1, 1)],
    }
    .emit();
    assert_eq!(
        rig.bad(&Cdb::unmap(40), &list).code,
        Code::INVALID_FIELD_IN_PARAMETER_LIST
    );
    rig.unit.config.thin = false;
    assert_eq!(rig.bad(&Cdb::unmap(40), &list).code, Code::INVALID_OPCODE);
}

#[test]
fn a_short_write_writes_what_is_there() {
    let mut rig = Rig::new();
    write(&mut rig, 0, 1, 2);
    rig.good(&Cdb::write16(0, 2, Caching::NONE), &[2; 512]);
    assert_eq!(read(&mut rig, 0, 2), [[2; 512], [1; 512]].concat());
}

/// What the session asks about lengths that do not agree.
#[test]
fn lengths_that_do_not_agree() {
    let mut rig = Rig::new();
    let code = |cdb: Cdb, offered| {
        let wanted = rig.unit.data_out_len_bytes(cdb.as_bytes()).unwrap();
        let reply = rig.unit.check_data_out(cdb.as_bytes(), offered, wanted);
        reply.map(|reply| sense_of(&reply).unwrap().code)
    };
    let field = Some(Code::INVALID_FIELD_IN_CDB);
    assert_eq!(code(Cdb::write16(0, 2, Caching::NONE), 512), None);
    assert_eq!(code(Cdb::write16(0, 2, Caching::NONE), 2048), None);
    assert_eq!(
        code(Cdb::compare_and_write(0, 0, Caching::NONE), 512),
        field
    );
    assert_eq!(code(Cdb::write_same16(0, 1, false, false), 1024), field);
    assert_eq!(code(Cdb::write_same16(0, 1, false, false), 256), field);
    assert_eq!(code(Cdb::write_same16(0, 1, false, true), 512), None);
    assert_eq!(code(Cdb::unmap(24), 32), None);
    assert!(code(Cdb::unmap(24), 16).is_some_and(|code| code.asc == 0x0e));
    assert_eq!(rig.unit.data_out_len_bytes(&[0xff; 16]), None);
    rig.unit.set_read_only(true);
    let same = Cdb::write_same16(0, 1, true, false);
    assert_eq!(rig.unit.check_data_out(same.as_bytes(), 0, 512), None);
}

#[test]
fn write_protection_stops_every_write() {
    let mut rig = Rig::new();
    rig.unit.set_read_only(true);
    assert_eq!(rig.tur(&rig.a.clone()), Err(Code::MODE_PARAMETERS_CHANGED));
    let unmap = UnmapList {
        ranges: vec![BlockRange { lba: 0, blocks: 1 }],
    }
    .emit();
    for (cdb, data) in [
        (Cdb::write16(0, 1, Caching::NONE), vec![0; 512]),
        (Cdb::write_same16(0, 1, true, true), vec![]),
        (Cdb::unmap(24), unmap),
        (Cdb::compare_and_write(0, 1, Caching::NONE), vec![0; 1024]),
    ] {
        assert_eq!(rig.bad(&cdb, &data).code, Code::WRITE_PROTECTED, "{cdb}");
    }
    assert_eq!(read(&mut rig, 0, 1), [0; 512]);
}

#[test]
fn faults_do_what_they_say() {
    let mut rig = Rig::new();
    write(&mut rig, 0, 1, 1);
    rig.unit.faults().status(ScsiStatus::BUSY, 2);
    for expected in [8, 8, 0] {
        let a = rig.a.clone();
        assert_eq!(rig.send(&a, &Cdb::test_unit_ready(), &[]).status, expected);
    }
    rig.unit.faults().once(Code::INTERNAL_TARGET_FAILURE);
    assert_eq!(rig.tur(&rig.a.clone()), Err(Code::INTERNAL_TARGET_FAILURE));
    *rig.unit.faults() = LuFaults {
        unreadable: std::iter::once(40..41).collect(),
        space_full: true,
        ..LuFaults::default()
    };
    let sense = rig.bad(&Cdb::read16(0, 100, Caching::NONE), &[]);
    assert_eq!(
        (sense.code, sense.information),
        (Code::UNRECOVERED_READ_ERROR, Some(40))
    );
    write(&mut rig, 0, 2, 1);
    let sense = rig.bad(&Cdb::write16(0, 2, Caching::NONE), &[0; 1024]);
    assert_eq!(sense.code, Code::SPACE_ALLOCATION_FAILED);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// No CDB and no data-out makes the unit panic, answer more than it may, or change its size.
    #[test]
    fn any_command_is_answered(
        opcode in prop_oneof![
            any::<u8>(),
            prop::sample::select(crate::scsi::cdb::OPCODES).prop_map(|info| info.opcode),
        ],
        mut tail in proptest::collection::vec(prop_oneof![3 => Just(0u8), 1 => any::<u8>()], 0..16),
        data in proptest::collection::vec(any::<u8>(), 0..2048),
    ) {
        let mut rig = Rig::new();
        tail.insert(0, opcode);
        let wanted = rig.unit.data_out_len_bytes(&tail).unwrap_or(data.len() as u64);
        let data = &data[..data.len().min(wanted as usize)];
        let reply = rig.raw(&rig.a.clone(), &tail, data);
        prop_assert!(reply.data_in.len() <= rig.unit.config().transfer_max_bytes as usize);
        prop_assert_eq!(reply.status == 2, !reply.sense.is_empty());
        prop_assert_eq!(rig.unit.blocks(), BLOCKS);
    }
}

#[test]
fn what_a_command_costs() {
    use super::super::super::{Direction, Load};
    let rig = Rig::new();
    let load = |cdb: Cdb| rig.unit.load(cdb.as_bytes());
    let cost = |direction, bytes| Some(Load { direction, bytes });
    let none = Caching::NONE;
    assert_eq!(load(Cdb::read10(0, 8, none)), cost(Direction::Read, 4096));
    assert_eq!(load(Cdb::read16(1, 1, none)), cost(Direction::Read, 512));
    assert_eq!(
        load(Cdb::write10(0, 16, none)),
        cost(Direction::Write, 8192)
    );
    assert_eq!(load(Cdb::test_unit_ready()), None);
    // An operation, but no transfer to speak of.
    let unmap = rig.unit.load(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0]);
    assert_eq!(unmap, cost(Direction::Write, 24));
    assert_eq!(rig.unit.load(&[0xff; 16]), None);
}

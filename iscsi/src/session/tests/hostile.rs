//! A target that sends anything at all: no panic, no hang, and a defined result (RFC 7143 7.6, 7.7).

use proptest::prelude::*;

use super::*;

/// A session with something of every kind under way.
fn busy(digests: bool) -> Rig {
    let mut rig = Rig::new(
        |keys| {
            keys.immediate_data = false;
            keys.header_digest = digests;
            keys.data_digest = digests;
            keys.max_recv_data_segment_bytes = 4096;
        },
        |_| {},
    );
    for tag in 0..3 {
        rig.session.submit(read(tag, 4096)).unwrap();
        rig.session.submit(write(10 + tag, &pattern(4096))).unwrap();
        rig.session.submit(no_data(20 + tag)).unwrap();
    }
    rig.session
        .text(rig.now, b"SendTargets=\0".to_vec())
        .unwrap();
    rig.session.ping(rig.now).unwrap();
    rig.session
        .task_management(1, TaskManagement::AbortTaskSet, Lun::default())
        .unwrap();
    rig.session.abort(rig.now, 2).unwrap();
    rig.sent();
    rig.exp_cmd_sn += 9;
    rig
}

/// Whatever happened, the session is in order: it takes calls, and each command has one end.
fn still_sound(mut rig: Rig) {
    let mut tags = Vec::new();
    rig.sent();
    for _ in 0..20 {
        rig.advance(Duration::from_secs(5));
        rig.sent();
    }
    let mut closed = 0;
    tags.extend(rig.session.take_unfinished().iter().map(|u| u.command.tag));
    for event in rig.events() {
        match event {
            Event::TaskDone { tag, .. } => tags.push(tag),
            Event::Closed(_) => closed += 1,
            _ => {}
        }
    }
    tags.sort_unstable();
    assert_eq!(tags, [0, 1, 2, 10, 11, 12, 20, 21, 22]);
    assert_eq!(closed, 1);
}

/// A header that looks like a target's, with tags and numbers near the real ones.
fn pdu() -> impl Strategy<Value = Vec<u8>> {
    let opcode = prop_oneof![
        Just(0x20u8),
        Just(0x21),
        Just(0x22),
        Just(0x24),
        Just(0x25),
        Just(0x26),
        Just(0x31),
        Just(0x32),
        Just(0x3f),
        any::<u8>(),
    ];
    let small = prop_oneof![0u32..16, Just(0xffff_ffff), 4000u32..4100, any::<u32>()];
    let data = proptest::collection::vec(any::<u8>(), 0..200);
    (
        (
            opcode,
            any::<u8>(),
            any::<u8>(),
            prop_oneof![Just(0u8), any::<u8>()],
        ),
        (small.clone(), small.clone(), 0u32..4, any::<bool>()),
        (small.clone(), small.clone(), small),
        data,
    )
        .prop_map(
            |((opcode, flags, b2, b3), (itt, ttt, sn, shift), (a, b, c), data)| {
                let mut bytes = vec![0; 48];
                bytes[0] = opcode;
                bytes[1] = flags;
                bytes[2] = b2;
                bytes[3] = b3;
                bytes[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
                bytes[16..20].copy_from_slice(&itt.to_be_bytes());
                bytes[20..24].copy_from_slice(&ttt.to_be_bytes());
                let stat_sn = FIRST_STAT_SN + if shift { sn } else { 0 };
                bytes[24..28].copy_from_slice(&stat_sn.to_be_bytes());
                bytes[28..32].copy_from_slice(&(FIRST_CMD_SN + 9).to_be_bytes());
                bytes[32..36].copy_from_slice(&(FIRST_CMD_SN + 40).to_be_bytes());
                bytes[36..40].copy_from_slice(&a.to_be_bytes());
                bytes[40..44].copy_from_slice(&b.to_be_bytes());
                bytes[44..48].copy_from_slice(&c.to_be_bytes());
                bytes.extend(&data);
                bytes.resize(bytes.len().next_multiple_of(4), 0);
                bytes
            },
        )
}

/// Gives bytes in pieces, and checks that an error ends the session for good.
fn feed(rig: &mut Rig, bytes: &[u8], piece: usize) {
    for part in bytes.chunks(piece.max(1)) {
        rig.input.extend(part);
        let result = rig.session.handle_input(rig.now, &mut rig.input);
        assert_eq!(
            result.is_err(),
            result.is_err() && rig.session.is_closed(),
            "an error without an end"
        );
        rig.session.poll_transmit(rig.now, &mut rig.out);
        rig.out.clear();
        if rig.session.is_closed() {
            return;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn noise(bytes in proptest::collection::vec(any::<u8>(), 0..2000), piece in 1usize..300, digests: bool) {
        let mut rig = busy(digests);
        feed(&mut rig, &bytes, piece);
        still_sound(rig);
    }

    #[test]
    fn plausible_pdus(pdus in proptest::collection::vec(pdu(), 1..20), piece in 1usize..300) {
        let mut rig = busy(false);
        feed(&mut rig, &pdus.concat(), piece);
        still_sound(rig);
    }

    #[test]
    fn plausible_pdus_while_leaving(pdus in proptest::collection::vec(pdu(), 1..20), drained: bool) {
        let mut rig = busy(false);
        rig.session.logout(rig.now);
        if drained {
            rig.advance(Duration::from_secs(5));
            rig.sent();
        }
        feed(&mut rig, &pdus.concat(), 100);
        still_sound(rig);
    }
}

#[test]
fn initiator_pdus_and_login_have_no_place_here() {
    // RFC 7143 11.2.1.2
    let nop = Pdu::NopOut(NopOut {
        immediate: true,
        lun: lun(),
        itt: Itt::NONE,
        ttt: Ttt(1),
        cmd_sn: CmdSn(0),
        exp_stat_sn: StatSn(0),
        data: Payload::new(),
    });
    let data = Pdu::DataOut(DataOut {
        final_: true,
        lun: lun(),
        itt: Itt(0),
        ttt: Ttt::NONE,
        exp_stat_sn: StatSn(0),
        data_sn: 0,
        buffer_offset_bytes: 0,
        data: Payload::new(),
    });
    for pdu in [nop, data] {
        let mut rig = rig();
        let result = rig.give(&pdu);
        assert_eq!(
            rig.closed_with(result),
            Error::TargetMisbehaved(Misbehaviour::UnexpectedPdu {
                opcode: pdu.opcode() as u8,
                state: "full feature phase"
            })
        );
    }
}

#[test]
fn a_bad_digest_ends_the_session() {
    // RFC 7143 7.8: at ERL 0 nothing is asked for again.
    for (header, at) in [(true, 20), (false, 60)] {
        let mut rig = Rig::new(
            |keys| {
                keys.header_digest = true;
                keys.data_digest = true;
            },
            |_| {},
        );
        let itt = rig.start_read(1, 512).itt;
        let pdu = rig.last_data_in(itt, 0, 0, &pattern(512), Residual::None);
        let mut queue = SendQueue::new();
        pdu.emit(&mut queue, Digests::BOTH);
        let mut bytes = queue.to_vec();
        bytes[at] ^= 1;
        rig.input.extend(&bytes);
        let result = rig.session.handle_input(rig.now, &mut rig.input);
        let error = rig.closed_with(result);
        use crate::error::DigestError;
        assert!(match error {
            Error::Digest(DigestError::Header { .. }) => header,
            Error::Digest(DigestError::Data { .. }) => !header,
            _ => false,
        });
    }
}

#[test]
fn a_segment_longer_than_declared_is_refused_before_it_is_stored() {
    // RFC 7143 13.12
    let mut rig = rig();
    rig.start_read(1, 1 << 20);
    let mut header = [0; 48];
    header[0] = 0x25;
    header[5..8].copy_from_slice(&262_145u32.to_be_bytes()[1..]);
    rig.input.extend(&header);
    let result = rig.session.handle_input(rig.now, &mut rig.input);
    assert!(matches!(rig.closed_with(result), Error::Malformed { .. }));
}

#[test]
fn a_read_in_single_bytes_holds_no_more_memory_than_it_must() {
    let mut rig = rig();
    let len = 20_000;
    let itt = rig.start_read(1, len).itt;
    let data = pattern(len as usize);
    for (at, byte) in data.iter().enumerate() {
        let pdu = rig.data_in(itt, at as u32, at as u32, &[*byte]);
        rig.give(&Pdu::DataIn(pdu)).unwrap();
    }
    let good = rig.good(itt);
    rig.give(&good).unwrap();
    let TaskOutcome::Completed { data: got, .. } = rig.outcome() else {
        panic!();
    };
    assert_eq!(got.to_bytes(), data);
    assert!(got.segments().len() < 400, "{}", got.segments().len());
}

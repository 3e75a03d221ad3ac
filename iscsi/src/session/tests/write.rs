//! Immediate, unsolicited and solicited data (RFC 7143 4.2.5.2, 11.7, 11.8).

use super::*;

/// What left for a write: the command, then its Data-Out.
fn start_write(rig: &mut Rig, tag: u64, data: &[u8]) -> (ScsiCommand, Vec<DataOut>) {
    rig.session.submit(write(tag, data)).unwrap();
    let mut pdus = rig.sent().into_iter();
    let Some(Pdu::ScsiCommand(command)) = pdus.next() else {
        panic!("no command");
    };
    (command, pdus.map(data_out).collect())
}

fn data_out(pdu: Pdu) -> DataOut {
    match pdu {
        Pdu::DataOut(pdu) => pdu,
        other => panic!("{other:?}"),
    }
}

fn sent_data(rig: &mut Rig) -> Vec<DataOut> {
    rig.sent().into_iter().map(data_out).collect()
}

#[test]
fn a_short_write_leaves_whole() {
    // RFC 7143 11.3.1: F=1 as nothing unsolicited follows.
    let mut rig = rig();
    let data = pattern(4096);
    let (command, rest) = start_write(&mut rig, 1, &data);
    assert!(command.final_ && command.write && !command.read);
    assert_eq!(command.expected_len_bytes, 4096);
    assert_eq!(command.data.to_bytes(), data);
    assert_eq!(rest, []);
    let good = rig.good(command.itt);
    rig.give(&good).unwrap();
    assert_eq!(rig.outcome(), completed(&[]));
}

#[test]
fn payload_is_sent_by_reference() {
    let mut rig = rig();
    let data = Bytes::from(pattern(4096));
    let command = Command::new(1, lun(), [0; 16], Transfer::Write(data.clone().into()));
    rig.session.submit(command).unwrap();
    rig.session.poll_transmit(rig.now, &mut rig.out);
    let mut slices = Vec::new();
    rig.out.io_slices(&mut slices);
    assert_eq!(slices.len(), 2);
    assert_eq!(slices[1].as_ptr(), data.as_ptr());
}

#[test]
fn what_may_leave_unasked_in_every_combination() {
    // RFC 7143 13.10, 13.11, 13.14; target limit 1024, first burst 4096, 6000 bytes to write.
    for (initial_r2t, immediate_data, immediate, unsolicited) in [
        (true, false, 0, 0),
        (true, true, 1024, 0),
        (false, false, 0, 4096),
        (false, true, 1024, 3072),
    ] {
        let mut rig = Rig::new(
            |keys| {
                keys.initial_r2t = initial_r2t;
                keys.immediate_data = immediate_data;
                keys.first_burst_bytes = 4096;
                keys.peer_max_recv_data_segment_bytes = 1024;
            },
            |_| {},
        );
        let data = pattern(6000);
        let (command, rest) = start_write(&mut rig, 1, &data);
        assert_eq!(command.data.to_bytes(), &data[..immediate]);
        assert_eq!(command.final_, unsolicited == 0);
        let mut at = immediate;
        for (sn, pdu) in rest.iter().enumerate() {
            assert!(pdu.ttt.is_none());
            assert_eq!(pdu.itt, command.itt);
            assert_eq!(pdu.data_sn, sn as u32);
            assert_eq!(pdu.buffer_offset_bytes, at as u32);
            assert_eq!(pdu.data.to_bytes(), &data[at..at + pdu.data.len()]);
            at += pdu.data.len();
            assert_eq!(pdu.final_, at == immediate + unsolicited);
        }
        assert_eq!(at, immediate + unsolicited);
    }
}

#[test]
fn an_r2t_is_answered_in_full() {
    // RFC 7143 11.7, 11.8: TTT and LUN are copied, DataSN starts at 0 for each R2T, F on the last.
    let mut rig = Rig::new(|keys| keys.peer_max_recv_data_segment_bytes = 1024, |_| {});
    let data = pattern(5000);
    let (command, _) = start_write(&mut rig, 1, &data);
    let itt = command.itt;
    for (r2t_sn, ttt, offset, len) in [(0, 0xa5, 1024, 2500), (1, 0xa6, 3524, 1476)] {
        let pdu = rig.r2t(itt, ttt, r2t_sn, offset, len);
        rig.give(&Pdu::R2t(pdu)).unwrap();
        let pdus = sent_data(&mut rig);
        let mut at = offset as usize;
        for (sn, pdu) in pdus.iter().enumerate() {
            assert_eq!((pdu.ttt, pdu.itt), (Ttt(ttt), itt));
            assert_eq!(pdu.lun, Lun([0, 1, 0, 0, 0, 0, 0, 0]));
            assert_eq!(
                (pdu.data_sn, pdu.buffer_offset_bytes),
                (sn as u32, at as u32)
            );
            assert_eq!(pdu.data.to_bytes(), &data[at..at + pdu.data.len()]);
            at += pdu.data.len();
            assert_eq!(pdu.final_, sn + 1 == pdus.len());
            assert!(pdu.final_ || pdu.data.len().is_multiple_of(4));
        }
        assert_eq!(at, (offset + len) as usize);
    }
    // R2T does not consume a StatSN (RFC 7143 11.8.3).
    rig.exp_cmd_sn += 1;
    let good = rig.good(itt);
    rig.give(&good).unwrap();
    assert_eq!(rig.outcome(), completed(&[]));
    assert_eq!(rig.session.counters().written_bytes, 5000);
}

#[test]
fn several_r2ts_of_a_task_are_served_in_order() {
    // RFC 7143 13.17
    let mut rig = Rig::new(
        |keys| {
            keys.immediate_data = false;
            keys.max_outstanding_r2t = 3;
        },
        |_| {},
    );
    let (command, _) = start_write(&mut rig, 1, &pattern(3000));
    for n in 0..3 {
        let pdu = rig.r2t(command.itt, 10 + n, n, n * 1000, 1000);
        rig.give(&Pdu::R2t(pdu)).unwrap();
    }
    let ttts: Vec<u32> = sent_data(&mut rig).iter().map(|pdu| pdu.ttt.0).collect();
    assert_eq!(ttts, [10, 11, 12]);
}

#[test]
fn tasks_take_turns_with_their_data() {
    let mut rig = Rig::new(
        |keys| {
            keys.immediate_data = false;
            keys.peer_max_recv_data_segment_bytes = 1024;
        },
        |_| {},
    );
    let (a, _) = start_write(&mut rig, 1, &pattern(3072));
    let (b, _) = start_write(&mut rig, 2, &pattern(3072));
    rig.exp_cmd_sn += 2;
    for (command, ttt) in [(&a, 1), (&b, 2)] {
        let pdu = rig.r2t(command.itt, ttt, 0, 0, 3072);
        rig.give(&Pdu::R2t(pdu)).unwrap();
    }
    let ttts: Vec<u32> = sent_data(&mut rig).iter().map(|pdu| pdu.ttt.0).collect();
    assert_eq!(ttts, [1, 2, 1, 2, 1, 2]);
}

#[test]
fn unsolicited_data_of_one_command_precedes_the_next_command() {
    let mut rig = Rig::new(
        |keys| {
            keys.initial_r2t = false;
            keys.immediate_data = false;
            keys.peer_max_recv_data_segment_bytes = 512;
        },
        |_| {},
    );
    rig.session.submit(write(1, &pattern(1500))).unwrap();
    rig.session.submit(write(2, &pattern(600))).unwrap();
    rig.session.submit(read(3, 512)).unwrap();
    let opcodes: Vec<u8> = rig.sent().iter().map(|pdu| pdu.opcode() as u8).collect();
    assert_eq!(opcodes, [1, 5, 5, 5, 1, 5, 5, 1]);
}

#[test]
fn control_pdus_get_in_between_large_data() {
    // Fairness: a ping reply waits for one queue bound at most, not for the whole burst.
    let mut rig = Rig::new(
        |keys| {
            keys.immediate_data = false;
            keys.max_burst_bytes = 0xff_ffff;
            keys.peer_max_recv_data_segment_bytes = 0xff_ffff;
        },
        |options| options.transmit_queue_bytes = 1 << 20,
    );
    let len = 8 << 20;
    rig.session
        .submit(Command::new(
            1,
            lun(),
            [0; 16],
            Transfer::Write(Payload::zeroes(len)),
        ))
        .unwrap();
    let itt = rig.sent_command().itt;
    let r2t = rig.r2t(itt, 1, 0, 0, len as u32);
    rig.give(&Pdu::R2t(r2t)).unwrap();
    rig.session.poll_transmit(rig.now, &mut rig.out);
    let before = rig.out.len();
    assert!(before < (1 << 20) + (256 << 10) + 100, "{before}");
    let ping = rig.nop_in(Itt::NONE, Ttt(3));
    rig.give(&ping).unwrap();
    rig.session.poll_transmit(rig.now, &mut rig.out);
    let first = rig.out.to_vec();
    assert_eq!(first[before] & 0x3f, 0, "NOP-Out is next in line");
    let rest = rig.sent();
    let data: usize = rest
        .iter()
        .map(|pdu| match pdu {
            Pdu::DataOut(pdu) => pdu.data.len(),
            _ => 0,
        })
        .sum();
    assert_eq!(data, len);
}

#[test]
fn a_bad_r2t_ends_the_session() {
    // RFC 7143 11.8; 5000 bytes, of which 1024 were sent.
    let cases: [(u32, u32, u32, u32); 8] = [
        (0xffff_ffff, 0, 1024, 100), // reserved tag
        (1, 0, 1024, 0),             // nothing
        (1, 0, 1024, 2001),          // beyond MaxBurstLength
        (1, 0, 4000, 1001),          // beyond the end
        (1, 0, u32::MAX, 1),         // sum needs 64 bits
        (1, 0, 0, 1024),             // again
        (1, 0, 2048, 1000),          // with a hole
        (1, 1, 1024, 1000),          // R2TSN
    ];
    for (ttt, r2t_sn, offset, len) in cases {
        let mut rig = Rig::new(
            |keys| {
                keys.peer_max_recv_data_segment_bytes = 1024;
                keys.max_burst_bytes = 2000;
                keys.first_burst_bytes = 2000;
            },
            |_| {},
        );
        let (command, _) = start_write(&mut rig, 1, &pattern(5000));
        let pdu = rig.r2t(command.itt, ttt, r2t_sn, offset, len);
        let result = rig.give(&Pdu::R2t(pdu));
        let error = rig.closed_with(result);
        let what = (ttt, r2t_sn, offset, len);
        // What no target may ever ask for is refused by the codec already.
        let never = ttt == 0xffff_ffff || len == 0 || offset == u32::MAX;
        let expected = match &error {
            Error::Malformed { .. } => never,
            Error::TargetMisbehaved(Misbehaviour::R2tSnGap { .. }) => r2t_sn == 1,
            Error::TargetMisbehaved(Misbehaviour::BadR2t { .. }) => !never && r2t_sn == 0,
            _ => false,
        };
        assert!(expected, "{what:?}: {error}");
    }
}

#[test]
fn more_r2ts_than_negotiated_end_the_session() {
    // RFC 7143 13.17
    let mut rig = Rig::new(|keys| keys.immediate_data = false, |_| {});
    let (command, _) = start_write(&mut rig, 1, &pattern(5000));
    let pdu = rig.r2t(command.itt, 1, 0, 0, 1000);
    rig.give(&Pdu::R2t(pdu)).unwrap();
    let pdu = rig.r2t(command.itt, 2, 1, 1000, 1000);
    let result = rig.give(&Pdu::R2t(pdu));
    assert!(matches!(
        rig.closed_with(result),
        Error::TargetMisbehaved(Misbehaviour::BadR2t { .. })
    ));
}

#[test]
fn an_r2t_belongs_to_a_write() {
    let mut rig = rig();
    let itt = rig.start_read(1, 1000).itt;
    let pdu = rig.r2t(itt, 1, 0, 0, 1000);
    let result = rig.give(&Pdu::R2t(pdu));
    assert!(matches!(
        rig.closed_with(result),
        Error::TargetMisbehaved(Misbehaviour::WrongTask { opcode: 0x31, .. })
    ));
}

#[test]
fn good_status_for_data_that_was_never_asked_for_is_no_write() {
    // RFC 7143 11.4.5
    let mut rig = Rig::new(|keys| keys.immediate_data = false, |_| {});
    let (command, _) = start_write(&mut rig, 1, &pattern(5000));
    let good = rig.good(command.itt);
    rig.give(&good).unwrap();
    assert_eq!(
        rig.outcome(),
        TaskOutcome::DataMismatch {
            expected_bytes: 5000,
            moved_bytes: 0,
            residual: Residual::None
        }
    );
}

#[test]
fn good_status_for_data_that_is_still_in_the_queue_is_no_write() {
    let mut rig = Rig::new(|keys| keys.immediate_data = false, |_| {});
    let (command, _) = start_write(&mut rig, 1, &pattern(5000));
    let pdu = rig.r2t(command.itt, 1, 0, 0, 5000);
    rig.give(&Pdu::R2t(pdu)).unwrap();
    let good = rig.good(command.itt);
    rig.give(&good).unwrap();
    assert!(matches!(rig.outcome(), TaskOutcome::DataMismatch { .. }));
    // The Data-Out that was due is dropped, and the next task is not mistaken for this one.
    rig.exp_cmd_sn += 1;
    let (next, rest) = start_write(&mut rig, 2, &pattern(5000));
    assert_ne!(next.itt, command.itt);
    assert_eq!(rest, []);
}

#[test]
fn an_early_error_stops_the_data() {
    let mut rig = Rig::new(|keys| keys.immediate_data = false, |_| {});
    let (command, _) = start_write(&mut rig, 1, &pattern(5000));
    let pdu = rig.r2t(command.itt, 1, 0, 0, 5000);
    rig.give(&Pdu::R2t(pdu)).unwrap();
    let response = rig.response(command.itt, CHECK_CONDITION, Residual::Underflow(5000));
    rig.give(&Pdu::ScsiResponse(response)).unwrap();
    assert!(matches!(
        rig.outcome(),
        TaskOutcome::Completed {
            status: CHECK_CONDITION,
            ..
        }
    ));
    assert_eq!(rig.sent(), []);
}

#[test]
fn underflow_on_a_write_is_passed_on() {
    let mut rig = rig();
    let (command, _) = start_write(&mut rig, 1, &pattern(4096));
    let response = rig.response(command.itt, GOOD, Residual::Underflow(512));
    rig.give(&Pdu::ScsiResponse(response)).unwrap();
    assert!(matches!(
        rig.outcome(),
        TaskOutcome::Completed {
            residual: Residual::Underflow(512),
            ..
        }
    ));
}

#[test]
fn an_empty_write_is_a_command_without_data() {
    // RFC 7143 11.3.1: R and W are 0 when nothing is expected.
    let mut rig = rig();
    let (command, rest) = start_write(&mut rig, 1, &[]);
    assert!(!command.read && !command.write && command.final_);
    assert_eq!(rest, []);
    let good = rig.good(command.itt);
    rig.give(&good).unwrap();
    assert_eq!(rig.outcome(), completed(&[]));
}

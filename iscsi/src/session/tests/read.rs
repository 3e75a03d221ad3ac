//! Data-In and the end of reads (RFC 7143 11.4, 11.7).

use super::*;

#[test]
fn the_command_carries_what_the_user_said() {
    // RFC 7143 11.3
    let mut rig = rig();
    let pdu = rig.start_read(1, 1024);
    assert!(pdu.final_ && pdu.read && !pdu.write && !pdu.immediate);
    assert_eq!(pdu.attribute, TaskAttribute::Simple);
    assert_eq!((pdu.lun, pdu.cdb), (lun(), [0x88; 16]));
    assert_eq!(pdu.expected_len_bytes, 1024);
    assert_eq!(pdu.cmd_sn, CmdSn(FIRST_CMD_SN));
    assert_eq!(pdu.exp_stat_sn, StatSn(FIRST_STAT_SN));
    assert!(pdu.data.is_empty());
}

#[test]
fn data_comes_in_several_pdus_and_status_apart() {
    let mut rig = rig();
    let itt = rig.start_read(7, 2048).itt;
    let data = pattern(2048);
    for (sn, at) in [(0, 0), (1, 512), (2, 1536)] {
        let end = [512, 1536, 2048][sn as usize];
        let pdu = rig.data_in(itt, sn, at as u32, &data[at..end]);
        rig.give(&Pdu::DataIn(pdu)).unwrap();
    }
    assert_eq!(rig.events(), []);
    rig.exp_cmd_sn += 1;
    let good = rig.good(itt);
    rig.give(&good).unwrap();
    assert_eq!(
        rig.event(),
        Event::TaskDone {
            tag: 7,
            outcome: completed(&data)
        }
    );
    assert_eq!(
        (rig.session.running(), rig.session.counters().completed),
        (0, 1)
    );
    assert_eq!(rig.session.counters().read_bytes, 2048);
}

#[test]
fn status_may_ride_on_the_last_data() {
    // RFC 7143 11.7.3
    let mut rig = rig();
    let itt = rig.start_read(7, 1024).itt;
    let data = pattern(1024);
    let first = rig.data_in(itt, 0, 0, &data[..1000]);
    rig.give(&Pdu::DataIn(first)).unwrap();
    let last = rig.last_data_in(itt, 1, 1000, &data[1000..], Residual::None);
    rig.give(&last).unwrap();
    assert_eq!(rig.outcome(), completed(&data));
    // It consumed a StatSN (RFC 7143 4.2.2.2), which the next request acknowledges.
    rig.exp_cmd_sn += 1;
    assert_eq!(rig.start_read(8, 1).exp_stat_sn, StatSn(FIRST_STAT_SN + 1));
}

#[test]
fn received_slices_are_not_copied() {
    let mut rig = rig();
    let itt = rig.start_read(7, 8192).itt;
    let data = pattern(8192);
    let pdu = rig.last_data_in(itt, 0, 0, &data, Residual::None);
    let mut queue = SendQueue::new();
    pdu.emit(&mut queue, Digests::NONE);
    rig.input.extend(&queue.to_vec());
    let arrived_at = rig.input.bytes()[48..].as_ptr();
    rig.session.handle_input(rig.now, &mut rig.input).unwrap();
    let TaskOutcome::Completed { data, .. } = rig.outcome() else {
        panic!();
    };
    assert_eq!(data.segments().len(), 1);
    assert_eq!(data.segments()[0].as_ptr(), arrived_at);
}

#[test]
fn a_pdu_may_arrive_byte_by_byte() {
    let mut rig = Rig::new(
        |keys| {
            keys.header_digest = true;
            keys.data_digest = true;
        },
        |_| {},
    );
    let itt = rig.start_read(7, 601).itt;
    let data = pattern(601);
    let pdu = rig.last_data_in(itt, 0, 0, &data, Residual::None);
    let mut queue = SendQueue::new();
    pdu.emit(&mut queue, Digests::BOTH);
    for byte in queue.to_vec() {
        assert_eq!(rig.events(), []);
        rig.input.extend(&[byte]);
        rig.session.handle_input(rig.now, &mut rig.input).unwrap();
    }
    assert_eq!(rig.outcome(), completed(&data));
}

#[test]
fn underflow_hands_out_what_came() {
    // RFC 7143 11.4.5.1
    let mut rig = rig();
    let itt = rig.start_read(7, 255).itt;
    let data = pattern(36);
    let last = rig.last_data_in(itt, 0, 0, &data, Residual::Underflow(255 - 36));
    rig.give(&last).unwrap();
    assert_eq!(
        rig.outcome(),
        TaskOutcome::Completed {
            status: GOOD,
            status_qualifier: 0,
            sense: Bytes::new(),
            data: Payload::from(data),
            residual: Residual::Underflow(219),
        }
    );
}

#[test]
fn good_status_without_all_the_data_is_never_a_read() {
    // RFC 7143 11.4.5: what is neither there nor reported as residual is lost.
    for (len, residual) in [
        (1023, Residual::None),
        (0, Residual::None),
        (1023, Residual::Overflow(1)),
        (1000, Residual::Underflow(23)),
        (1000, Residual::Underflow(25)),
        (1024, Residual::Underflow(1)),
        (512, Residual::Underflow(u32::MAX)),
    ] {
        for collapsed in [true, false] {
            let mut rig = rig();
            let itt = rig.start_read(7, 1024).itt;
            let data = pattern(len);
            if collapsed {
                let last = rig.last_data_in(itt, 0, 0, &data, residual);
                rig.give(&last).unwrap();
            } else {
                let pdu = rig.data_in(itt, 0, 0, &data);
                rig.give(&Pdu::DataIn(pdu)).unwrap();
                let response = rig.response(itt, GOOD, residual);
                rig.give(&Pdu::ScsiResponse(response)).unwrap();
            }
            assert_eq!(
                rig.outcome(),
                TaskOutcome::DataMismatch {
                    expected_bytes: 1024,
                    moved_bytes: len as u32,
                    residual,
                }
            );
            assert_eq!(rig.session.counters().short_transfers, 1);
            assert!(!rig.session.is_closed());
        }
    }
}

#[test]
fn check_condition_brings_sense() {
    // RFC 7143 11.4.7
    let mut rig = rig();
    let itt = rig.start_read(7, 1024).itt;
    let sense = [0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x2a, 9, 0, 0, 0, 0];
    let response = ScsiResponse {
        data: sense_data(&sense),
        status_qualifier: 3,
        ..rig.response(itt, CHECK_CONDITION, Residual::Underflow(1024))
    };
    rig.give(&Pdu::ScsiResponse(response)).unwrap();
    assert_eq!(
        rig.outcome(),
        TaskOutcome::Completed {
            status: CHECK_CONDITION,
            status_qualifier: 3,
            sense: Bytes::copy_from_slice(&sense),
            data: Payload::new(),
            residual: Residual::Underflow(1024),
        }
    );
}

#[test]
fn target_failure_is_not_a_status() {
    // RFC 7143 11.4.3
    let mut rig = rig();
    let itt = rig.start_read(7, 1024).itt;
    let response = ScsiResponse {
        response: 1,
        ..rig.response(itt, GOOD, Residual::None)
    };
    rig.give(&Pdu::ScsiResponse(response)).unwrap();
    assert_eq!(rig.outcome(), TaskOutcome::TargetFailure { response: 1 });
}

#[test]
fn an_exp_data_sn_that_disagrees_is_counted_only() {
    // RFC 7143 11.4.8; the bytes are what counts, and some targets leave it 0.
    let mut rig = rig();
    let itt = rig.start_read(7, 512).itt;
    let data = pattern(512);
    let pdu = rig.data_in(itt, 0, 0, &data);
    rig.give(&Pdu::DataIn(pdu)).unwrap();
    let good = rig.good(itt);
    rig.give(&good).unwrap();
    assert_eq!(rig.outcome(), completed(&data));
    assert_eq!(rig.session.counters().data_sn_mismatches, 1);
}

#[test]
fn data_sn_must_be_the_next() {
    // RFC 7143 4.2.2.4
    let mut rig = rig();
    let itt = rig.start_read(7, 1024).itt;
    let pdu = rig.data_in(itt, 1, 0, &[0; 512]);
    let result = rig.give(&Pdu::DataIn(pdu));
    assert_eq!(
        rig.closed_with(result),
        Error::TargetMisbehaved(Misbehaviour::DataSnGap {
            itt,
            expected: 0,
            got: 1
        })
    );
}

#[test]
fn data_must_follow_on_and_stay_inside() {
    // RFC 7143 11.7.5, 13.18: DataPDUInOrder=Yes
    for (offset, len) in [(512, 512), (0, 1025), (1, 4), (u32::MAX - 3, 3)] {
        let mut rig = rig();
        let itt = rig.start_read(7, 1024).itt;
        let pdu = rig.data_in(itt, 0, offset, &vec![0; len]);
        let result = rig.give(&Pdu::DataIn(pdu));
        assert_eq!(
            rig.closed_with(result),
            Error::TargetMisbehaved(Misbehaviour::DataRange {
                itt,
                offset_bytes: offset,
                len_bytes: len as u32,
                expected_offset_bytes: 0,
                expected_len_bytes: 1024,
            })
        );
    }
}

#[test]
fn data_in_belongs_to_reads() {
    let mut rig = rig();
    rig.session.submit(write(1, &pattern(100))).unwrap();
    let itt = rig.sent_command().itt;
    let pdu = rig.data_in(itt, 0, 0, &[]);
    let result = rig.give(&Pdu::DataIn(pdu));
    assert!(matches!(
        rig.closed_with(result),
        Error::TargetMisbehaved(Misbehaviour::WrongTask { opcode: 0x25, .. })
    ));
}

#[test]
fn nothing_comes_after_the_end() {
    // RFC 7143 11.2.1.8: the tag is free; its next owner has another one.
    for late in [false, true] {
        let mut rig = rig();
        let old = rig.start_read(7, 512).itt;
        let last = rig.last_data_in(old, 0, 0, &pattern(512), Residual::None);
        rig.give(&last).unwrap();
        rig.events();
        rig.exp_cmd_sn += 1;
        let new = rig.start_read(8, 512).itt;
        assert_ne!(old, new);
        let result = if late {
            let pdu = rig.data_in(old, 1, 0, &[0; 4]);
            rig.give(&Pdu::DataIn(pdu))
        } else {
            let good = rig.good(old);
            rig.give(&good)
        };
        assert!(matches!(
            rig.closed_with(result),
            Error::TargetMisbehaved(Misbehaviour::UnknownTask { itt, .. }) if itt == old
        ));
        let unfinished = rig.session.take_unfinished();
        assert_eq!(unfinished.len(), 1);
        assert_eq!((unfinished[0].command.tag, unfinished[0].sent), (8, true));
    }
}

#[test]
fn a_command_in_the_queue_has_no_answer_yet() {
    let mut rig = rig();
    let first = rig.start_read(1, 512).itt;
    rig.session.submit(read(2, 512)).unwrap();
    // The tag of the second command can be guessed, but it was not sent.
    let guessed = Itt(first.0 + 1);
    let good = rig.good(guessed);
    let result = rig.give(&good);
    assert!(matches!(
        rig.closed_with(result),
        Error::TargetMisbehaved(Misbehaviour::UnknownTask { .. })
    ));
}

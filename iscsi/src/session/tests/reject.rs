//! Rejects (RFC 7143 11.17).

use super::*;
use crate::error::RejectReason;

#[test]
fn a_refused_command_is_over_when_its_number_is_filled() {
    // RFC 7143 11.17.1: no response follows, and the CmdSN counts as not received; ABORT TASK plugs it.
    let mut rig = rig();
    let command = rig.start_read(5, 512);
    let reject = rig.reject(5, &Pdu::ScsiCommand(command.clone()));
    rig.give(&reject).unwrap();
    assert_eq!(rig.events(), []);
    let Pdu::TaskManagementRequest(abort) = rig.sent_one() else {
        panic!("no abort");
    };
    assert_eq!(
        (abort.function, abort.referenced_task, abort.ref_cmd_sn),
        (1, command.itt, command.cmd_sn)
    );
    let answer = rig.management_response(abort.itt, 1);
    rig.give(&answer).unwrap();
    assert_eq!(rig.outcome(), TaskOutcome::Rejected { reason: 5 });
    assert!(!rig.session.is_closed());
    assert_eq!(rig.session.counters().rejects, 1);
}

#[test]
fn a_refused_command_was_not_executed_even_if_the_session_ends() {
    let mut rig = rig();
    let command = rig.start_read(5, 512);
    let reject = rig.reject(0x0c, &Pdu::ScsiCommand(command));
    rig.give(&reject).unwrap();
    let unfinished = rig.session.take_unfinished();
    assert_eq!(unfinished.len(), 1);
    assert!(!unfinished[0].sent);
}

#[test]
fn a_refused_immediate_command_left_no_hole() {
    // RFC 7143 4.2.2.1: it has no CmdSN of its own, so nothing needs to be filled; reason 6 would hit the
    // immediate abort too.
    let mut rig = rig();
    rig.session
        .submit(Command {
            immediate: true,
            ..no_data(5)
        })
        .unwrap();
    let command = rig.sent_command();
    let reject = rig.reject(6, &Pdu::ScsiCommand(command));
    rig.give(&reject).unwrap();
    assert_eq!(rig.outcome(), TaskOutcome::Rejected { reason: 6 });
    assert_eq!(rig.sent(), []);
    assert_eq!(rig.session.table.len(), 0);
}

#[test]
fn every_reason_for_refusing_a_command_has_its_reaction() {
    // RFC 7143 11.17.1. 2, 3, 5, 6, 8 to 0b: over when the number is filled. 7: the target has a task of
    // ours that we do not know. 0c: for the next session.
    for reason in 0..=0x10 {
        let mut rig = rig();
        let command = rig.start_read(5, 512);
        let reject = rig.reject(reason, &Pdu::ScsiCommand(command));
        let result = rig.give(&reject);
        match reason {
            7 => {
                assert_eq!(
                    rig.closed_with(result),
                    Error::Rejected(RejectReason::TASK_IN_PROGRESS)
                );
                assert!(rig.session.take_unfinished()[0].sent);
            }
            0x0c => {
                result.unwrap();
                assert!(matches!(
                    rig.event(),
                    Event::LogoutRequested {
                        cause: LogoutCause::Target,
                        ..
                    }
                ));
                // Nothing is left to wait for.
                assert!(matches!(rig.sent_one(), Pdu::LogoutRequest(_)));
                let unfinished = rig.session.take_unfinished();
                assert_eq!((unfinished.len(), unfinished[0].sent), (1, false));
            }
            _ => {
                result.unwrap();
                let Pdu::TaskManagementRequest(abort) = rig.sent_one() else {
                    panic!("no abort");
                };
                let answer = rig.management_response(abort.itt, 0);
                rig.give(&answer).unwrap();
                assert_eq!(rig.outcome(), TaskOutcome::Rejected { reason });
            }
        }
    }
}

#[test]
fn a_hole_that_is_not_filled_ends_the_session() {
    // RFC 7143 11.6.1: the number of an aborted command counts as received. A target that waits for it all
    // the same would never take another command; one that does not know ABORT TASK neither.
    for (response, fills) in [(0, false), (1, false), (5, true)] {
        let mut rig = rig();
        let command = rig.start_read(5, 512);
        let reject = rig.reject(2, &Pdu::ScsiCommand(command));
        rig.give(&reject).unwrap();
        let Pdu::TaskManagementRequest(abort) = rig.sent_one() else {
            panic!("no abort");
        };
        let mut answer = rig.management_response(abort.itt, response);
        if let Pdu::TaskManagementResponse(pdu) = &mut answer
            && !fills
        {
            pdu.sn.exp_cmd_sn = CmdSn(FIRST_CMD_SN);
        }
        let result = rig.give(&answer);
        assert!(matches!(
            rig.closed_with(result),
            Error::TargetMisbehaved(Misbehaviour::Exchange(_))
        ));
        assert!(!rig.session.take_unfinished()[0].sent, "it was refused");
    }
}

#[test]
fn an_abort_and_a_reject_make_one_request() {
    let mut rig = rig();
    let command = rig.start_read(5, 512);
    let reject = rig.reject(5, &Pdu::ScsiCommand(command));
    rig.give(&reject).unwrap();
    rig.session.abort(rig.now, 5).unwrap();
    let Pdu::TaskManagementRequest(abort) = rig.sent_one() else {
        panic!("no abort");
    };
    let answer = rig.management_response(abort.itt, 0);
    rig.give(&answer).unwrap();
    assert_eq!(rig.outcome(), TaskOutcome::Rejected { reason: 5 });
    assert_eq!(rig.sent(), []);
}

#[test]
fn a_refused_data_out_still_gets_a_response() {
    // RFC 7143 11.17.1: reason 2, data digest error; CHECK CONDITION follows at ERL 0.
    let mut rig = Rig::new(|keys| keys.immediate_data = false, |_| {});
    rig.session.submit(write(1, &pattern(512))).unwrap();
    let itt = rig.sent_command().itt;
    let r2t = rig.r2t(itt, 1, 0, 0, 512);
    rig.give(&Pdu::R2t(r2t)).unwrap();
    let data = rig.sent_one();
    let reject = rig.reject(2, &data);
    rig.give(&reject).unwrap();
    let Event::Rejected { reason: 2, header } = rig.event() else {
        panic!();
    };
    assert_eq!(header.len(), 48);
    let response = rig.response(itt, CHECK_CONDITION, Residual::None);
    rig.give(&Pdu::ScsiResponse(response)).unwrap();
    assert!(matches!(rig.outcome(), TaskOutcome::Completed { .. }));
}

#[test]
fn a_refused_ping_is_an_answer() {
    let mut rig = rig();
    rig.session.ping(rig.now).unwrap();
    let ping = rig.sent_one();
    let reject = rig.reject(5, &ping);
    rig.give(&reject).unwrap();
    assert!(matches!(rig.event(), Event::Rejected { reason: 5, .. }));
    assert_eq!(rig.session.table.len(), 0);
    rig.advance(Duration::from_secs(5));
    assert!(matches!(rig.sent_one(), Pdu::NopOut(_)));
}

#[test]
fn a_refused_ping_reply_is_of_no_consequence() {
    let mut rig = rig();
    let ping = rig.nop_in(Itt::NONE, Ttt(5));
    rig.give(&ping).unwrap();
    let reply = rig.sent_one();
    let reject = rig.reject(4, &reply);
    rig.give(&reject).unwrap();
    assert!(matches!(rig.event(), Event::Rejected { reason: 4, .. }));
    assert!(!rig.session.is_closed());
}

#[test]
fn a_refused_task_management_request_is_told() {
    let mut rig = rig();
    rig.session
        .task_management(7, TaskManagement::LogicalUnitReset, lun())
        .unwrap();
    let pdu = rig.sent_one();
    let reject = rig.reject(6, &pdu);
    rig.give(&reject).unwrap();
    assert!(matches!(
        rig.event(),
        Event::TaskManagementDone {
            tag: 7,
            outcome: TaskManagementOutcome::Rejected(6),
            ..
        }
    ));
    assert_eq!(rig.session.table.len(), 0);
}

#[test]
fn a_refused_text_request_is_told() {
    let mut rig = rig();
    rig.session
        .text(rig.now, b"SendTargets=All\0".to_vec())
        .unwrap();
    let pdu = rig.sent_one();
    let reject = rig.reject(5, &pdu);
    rig.give(&reject).unwrap();
    assert_eq!(rig.event(), Event::TextDone { answer: Err(5) });
    rig.session.text(rig.now, Vec::new()).unwrap();
}

#[test]
fn a_refused_logout_ends_the_session_all_the_same() {
    let mut rig = rig();
    rig.session.logout(rig.now);
    let pdu = rig.sent_one();
    let reject = rig.reject(4, &pdu);
    let result = rig.give(&reject);
    assert_eq!(
        rig.closed_with(result),
        Error::Rejected(RejectReason::PROTOCOL_ERROR)
    );
}

#[test]
fn a_reject_of_something_unknown_is_reported() {
    // Of a task that is done, or of a header that never left here.
    let mut rig = rig();
    rig.session.submit(no_data(1)).unwrap();
    let command = rig.sent_command();
    let good = rig.good(command.itt);
    rig.give(&good).unwrap();
    rig.events();
    let reject = rig.reject(9, &Pdu::ScsiCommand(command));
    rig.give(&reject).unwrap();
    assert!(matches!(rig.event(), Event::Rejected { reason: 9, .. }));
    assert!(!rig.session.is_closed());
}

#[test]
fn a_reject_of_a_command_in_the_queue_changes_nothing() {
    let mut rig = rig();
    let command = rig.start_read(1, 512);
    rig.session.submit(read(2, 512)).unwrap();
    let forged = ScsiCommand {
        itt: Itt(command.itt.0 + 1),
        ..command
    };
    let reject = rig.reject(9, &Pdu::ScsiCommand(forged));
    rig.give(&reject).unwrap();
    assert!(matches!(rig.event(), Event::Rejected { .. }));
    assert_eq!(rig.sent_command().cmd_sn, CmdSn(FIRST_CMD_SN + 1));
}

#[test]
fn a_reject_without_a_whole_header_is_malformed() {
    let mut rig = rig();
    let pdu = Pdu::Reject(Reject {
        reason: 4,
        sn: rig.sn(),
        data_sn: 0,
        data: Payload::from(vec![1; 47]),
    });
    let result = rig.give(&pdu);
    assert!(matches!(rig.closed_with(result), Error::Malformed { .. }));
}

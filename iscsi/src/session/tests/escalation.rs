//! From a deadline to the end of the session: ABORT TASK, LOGICAL UNIT RESET (RFC 7143 4.2.3, 11.5, 11.6).

use super::management::{aborted, sent_management};
use super::*;
use crate::error::{RejectReason, Waiting};

const SECOND: Duration = Duration::from_secs(1);
const DEADLINE: AbortCause = AbortCause::Deadline;
const LUN_RESET: u8 = 5;

/// Without pings, which would end the session first.
fn quiet(options: impl FnOnce(&mut SessionOptions)) -> Rig {
    Rig::new(
        |_| {},
        |all| {
            all.ping_interval = None;
            options(all);
        },
    )
}

/// Sends commands with these deadlines, in seconds from now.
fn start(rig: &mut Rig, deadlines: &[u32]) {
    for (tag, seconds) in deadlines.iter().enumerate() {
        rig.session
            .submit(Command {
                deadline: Some(rig.now + SECOND * *seconds),
                ..no_data(tag as u64)
            })
            .unwrap();
    }
    assert_eq!(rig.sent().len(), deadlines.len());
}

fn closed(error: Error) -> Event {
    Event::Closed(CloseReason::Failed(error))
}

fn done(tag: u64, cause: AbortCause) -> Event {
    Event::TaskDone {
        tag,
        outcome: aborted(cause, true),
    }
}

#[test]
fn an_abort_without_answer_resets_the_lun() {
    let mut rig = quiet(|_| {});
    start(&mut rig, &[3, 60]);
    rig.advance(3 * SECOND);
    assert_eq!(sent_management(&mut rig).function, 1);
    rig.advance(15 * SECOND - Duration::from_millis(1));
    assert_eq!(rig.sent(), []);
    rig.advance(Duration::from_millis(1));
    let reset = sent_management(&mut rig);
    assert_eq!((reset.function, reset.lun), (LUN_RESET, lun()));
    assert!(reset.immediate && reset.referenced_task.is_none());
    assert_eq!(rig.events(), []);
    let answer = rig.management_response(reset.itt, 0);
    rig.give(&answer).unwrap();
    // It took the other command of the LUN along.
    let cause = AbortCause::TaskManagement(TaskManagement::LogicalUnitReset);
    assert_eq!(rig.events(), [done(0, DEADLINE), done(1, cause)]);
    let counters = rig.session.counters();
    assert_eq!(
        (
            counters.aborts,
            counters.failed_aborts,
            counters.logical_unit_resets
        ),
        (1, 1, 1)
    );
    assert_eq!(rig.session.running(), 0);
}

#[test]
fn an_abort_that_is_refused_resets_the_lun_at_once() {
    // RFC 7143 11.6.1: 2 no such LUN, 5 not supported, 6 not authorised, 255 rejected; and a Reject.
    for response in [2, 3, 4, 5, 6, 7, 255, 1000] {
        let mut rig = quiet(|_| {});
        start(&mut rig, &[3]);
        rig.advance(3 * SECOND);
        let abort = sent_management(&mut rig);
        let answer = match u8::try_from(response) {
            Ok(response) => rig.management_response(abort.itt, response),
            Err(_) => rig.reject(5, &Pdu::TaskManagementRequest(abort)),
        };
        rig.give(&answer).unwrap();
        let reset = sent_management(&mut rig);
        assert_eq!(reset.function, LUN_RESET);
        let answer = rig.management_response(reset.itt, 0);
        rig.give(&answer).unwrap();
        assert_eq!(rig.event(), done(0, DEADLINE));
        assert_eq!(rig.session.table.len(), 0);
    }
}

#[test]
fn a_reset_that_fails_ends_the_session() {
    for step in ["silent", "not supported", "rejected"] {
        let mut rig = quiet(|_| {});
        start(&mut rig, &[3]);
        rig.advance(3 * SECOND);
        sent_management(&mut rig);
        rig.advance(15 * SECOND);
        let reset = sent_management(&mut rig);
        match step {
            "silent" => {
                rig.advance(30 * SECOND - Duration::from_millis(1));
                assert!(!rig.session.is_closed());
                rig.advance(Duration::from_millis(1));
                let error = Error::TimedOut(Waiting::LogicalUnitReset(lun()));
                assert_eq!(rig.event(), closed(error));
            }
            "not supported" => {
                let answer = rig.management_response(reset.itt, 5);
                let result = rig.give(&answer);
                rig.closed_with(result);
            }
            _ => {
                let answer = rig.reject(6, &Pdu::TaskManagementRequest(reset));
                let result = rig.give(&answer);
                assert_eq!(
                    rig.closed_with(result),
                    Error::Rejected(RejectReason::IMMEDIATE_COMMAND)
                );
            }
        }
        // Its fate is not known before the reinstatement.
        let unfinished = rig.session.take_unfinished();
        assert_eq!((unfinished.len(), unfinished[0].sent), (1, true));
    }
}

#[test]
fn without_the_reset_the_session_ends_when_the_abort_fails() {
    let mut rig = quiet(|options| options.lun_reset = false);
    start(&mut rig, &[3]);
    rig.advance(3 * SECOND);
    let abort = sent_management(&mut rig);
    rig.advance(15 * SECOND);
    let error = Error::TimedOut(Waiting::Abort(abort.referenced_task));
    assert_eq!(rig.event(), closed(error));
    rig.is_dead();
    assert!(rig.session.take_unfinished()[0].sent);
}

#[test]
fn many_commands_that_are_overdue_make_one_reset() {
    let mut rig = quiet(|_| {});
    start(&mut rig, &[3; 100]);
    rig.advance(3 * SECOND);
    // One abort at a time; the target answers none.
    sent_management(&mut rig);
    rig.advance(15 * SECOND);
    let reset = sent_management(&mut rig);
    assert_eq!(reset.function, LUN_RESET);
    rig.advance(29 * SECOND);
    assert_eq!(rig.sent(), []);
    let answer = rig.management_response(reset.itt, 0);
    rig.give(&answer).unwrap();
    let expected: Vec<Event> = (0..100).map(|tag| done(tag, DEADLINE)).collect();
    assert_eq!(rig.events(), expected);
    assert_eq!(rig.session.counters().logical_unit_resets, 1);
}

#[test]
fn aborts_that_wait_for_their_turn_have_the_same_time() {
    // A target that takes its time for each abort does not stretch the end of the last command.
    let mut rig = quiet(|_| {});
    start(&mut rig, &[3, 3, 3]);
    rig.advance(3 * SECOND);
    let first = sent_management(&mut rig);
    rig.advance(14 * SECOND);
    let answer = rig.management_response(first.itt, 0);
    rig.give(&answer).unwrap();
    assert_eq!(rig.event(), done(0, DEADLINE));
    assert_eq!(sent_management(&mut rig).function, 1);
    rig.advance(SECOND);
    assert_eq!(sent_management(&mut rig).function, LUN_RESET);
}

#[test]
fn a_late_answer_to_the_abort_still_counts() {
    // RFC 7143 11.6.1: nothing of the task comes after it, however late it is.
    let mut rig = quiet(|_| {});
    start(&mut rig, &[3]);
    rig.advance(3 * SECOND);
    let abort = sent_management(&mut rig);
    rig.advance(15 * SECOND);
    let reset = sent_management(&mut rig);
    let answer = rig.management_response(abort.itt, 0);
    rig.give(&answer).unwrap();
    assert_eq!(rig.event(), done(0, DEADLINE));
    let answer = rig.management_response(reset.itt, 0);
    rig.give(&answer).unwrap();
    assert_eq!(rig.events(), []);
    assert_eq!(rig.session.table.len(), 0);
}

#[test]
fn a_reset_that_nobody_needs_any_more_is_not_sent() {
    // It would end the commands of other initiators for nothing.
    let mut rig = quiet(|_| {});
    start(&mut rig, &[3]);
    rig.advance(3 * SECOND);
    let abort = sent_management(&mut rig);
    rig.advance(15 * SECOND);
    let answer = rig.management_response(abort.itt, 1);
    rig.give(&answer).unwrap();
    assert_eq!(rig.event(), done(0, DEADLINE));
    assert_eq!(rig.sent(), []);
    assert_eq!(rig.session.counters().logical_unit_resets, 0);
    assert_eq!(rig.session.table.len(), 0);
}

#[test]
fn a_command_sent_behind_the_reset_gets_its_own() {
    let mut rig = quiet(|_| {});
    start(&mut rig, &[3]);
    rig.advance(3 * SECOND);
    sent_management(&mut rig);
    rig.advance(15 * SECOND);
    let first = sent_management(&mut rig);
    start(&mut rig, &[1]);
    rig.advance(SECOND);
    assert_eq!(sent_management(&mut rig).function, 1);
    rig.advance(15 * SECOND);
    assert_eq!(rig.sent(), [], "a reset of this LUN is under way");
    let answer = rig.management_response(first.itt, 0);
    rig.give(&answer).unwrap();
    assert_eq!(rig.event(), done(0, DEADLINE));
    let second = sent_management(&mut rig);
    assert_eq!(second.function, LUN_RESET);
    let answer = rig.management_response(second.itt, 0);
    rig.give(&answer).unwrap();
    assert_eq!(rig.event(), done(0, DEADLINE));
    assert_eq!(rig.session.running(), 0);
}

#[test]
fn each_lun_is_reset_for_itself() {
    let mut rig = quiet(|_| {});
    for number in [1, 2] {
        rig.session
            .submit(Command {
                lun: Lun::from_number(number).unwrap(),
                deadline: Some(rig.now + SECOND),
                ..no_data(number.into())
            })
            .unwrap();
    }
    rig.sent();
    rig.advance(SECOND);
    assert_eq!(sent_management(&mut rig).function, 1);
    rig.advance(15 * SECOND);
    let resets: Vec<_> = rig
        .sent()
        .into_iter()
        .map(|pdu| match pdu {
            Pdu::TaskManagementRequest(pdu) => (pdu.function, pdu.lun.number(), pdu.itt),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(resets.len(), 2);
    for (function, number, itt) in resets {
        assert_eq!(function, LUN_RESET);
        let answer = rig.management_response(itt, 0);
        rig.give(&answer).unwrap();
        assert_eq!(rig.event(), done(number.unwrap().into(), DEADLINE));
    }
}

#[test]
fn a_target_that_answers_no_abort_ever_is_given_up() {
    // Each reset works, each abort stays open: that many tags cannot be kept.
    let mut rig = quiet(|_| {});
    let mut resets = 0;
    while !rig.session.is_closed() {
        start(&mut rig, &[1]);
        rig.advance(SECOND);
        sent_management(&mut rig);
        rig.advance(15 * SECOND);
        if rig.session.is_closed() {
            break;
        }
        let reset = sent_management(&mut rig);
        let answer = rig.management_response(reset.itt, 0);
        rig.give(&answer).unwrap();
        assert_eq!(rig.event(), done(0, DEADLINE));
        resets += 1;
        assert!(resets < 100, "no bound");
    }
    assert_eq!(resets, 8);
}

#[test]
fn with_fast_abort_data_stops_with_the_request() {
    // RFC 7143 4.2.3.2 wants R2Ts answered until the abort is (FastAbort off); 4.2.3.4 the opposite.
    for fast in [false, true] {
        let mut rig = Rig::new(
            |keys| keys.immediate_data = false,
            |options| options.fast_abort = fast,
        );
        rig.session.submit(write(5, &pattern(100))).unwrap();
        let itt = rig.sent_command().itt;
        rig.session.abort(rig.now, 5).unwrap();
        let abort = sent_management(&mut rig);
        let r2t = rig.r2t(itt, 1, 0, 0, 100);
        rig.give(&Pdu::R2t(r2t)).unwrap();
        let data = rig.sent();
        assert_eq!(data.len(), usize::from(!fast), "{data:?}");
        let answer = rig.management_response(abort.itt, 0);
        rig.give(&answer).unwrap();
        assert_eq!(rig.outcome(), aborted(AbortCause::Requested, true));
    }
}

#[test]
fn with_fast_abort_a_reset_stops_all_data_of_the_lun() {
    let mut rig = Rig::new(
        |keys| keys.immediate_data = false,
        |options| {
            options.fast_abort = true;
            options.transmit_queue_bytes = 1;
            options.data_out_max_bytes = 512;
        },
    );
    rig.session.submit(write(5, &pattern(5000))).unwrap();
    let itt = rig.sent_command().itt;
    let r2t = rig.r2t(itt, 1, 0, 0, 5000);
    rig.give(&Pdu::R2t(r2t)).unwrap();
    let mut out = SendQueue::new();
    rig.session.poll_transmit(rig.now, &mut out);
    assert_eq!(out.len(), 48 + 512, "one Data-Out of ten");
    rig.session
        .task_management(7, TaskManagement::LogicalUnitReset, lun())
        .unwrap();
    let reset = sent_management(&mut rig);
    let answer = rig.management_response(reset.itt, 0);
    rig.give(&answer).unwrap();
    assert_eq!(rig.events().len(), 2);
}

#[test]
fn a_command_that_waits_for_the_window_is_never_escalated() {
    let mut rig = quiet(|_| {});
    rig.max_cmd_sn = FIRST_CMD_SN - 1;
    let mut login = rig.session.login().clone();
    login.max_cmd_sn = CmdSn(FIRST_CMD_SN - 1);
    let options = SessionOptions {
        ping_interval: None,
        ..SessionOptions::default()
    };
    rig.session = Session::new(login, &normal(), options, rig.now);
    rig.session
        .submit(Command {
            deadline: Some(rig.now + SECOND),
            ..no_data(1)
        })
        .unwrap();
    assert_eq!(rig.sent(), []);
    rig.advance(SECOND);
    assert_eq!(rig.outcome(), aborted(DEADLINE, false));
    assert_eq!(rig.sent(), []);
}

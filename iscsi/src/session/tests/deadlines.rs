//! Commands that are not done in time; what follows when an abort fails is in `escalation`.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn quiet() -> Rig {
    Rig::new(|_| {}, |options| options.ping_interval = None)
}

fn until(rig: &Rig, seconds: u32, command: Command) -> Command {
    Command {
        deadline: Some(rig.now + SECOND * seconds),
        ..command
    }
}

fn overdue(sent: bool) -> TaskOutcome {
    TaskOutcome::Aborted {
        cause: AbortCause::Deadline,
        sent,
    }
}

#[test]
fn a_queued_command_is_dropped_at_its_deadline() {
    let mut rig = quiet();
    let command = until(&rig, 3, no_data(1));
    rig.session.submit(command).unwrap();
    rig.session.submit(no_data(2)).unwrap();
    assert_eq!(rig.session.poll_timeout(), Some(rig.now + 3 * SECOND));
    rig.advance(3 * SECOND);
    assert_eq!(rig.outcome(), overdue(false));
    assert_eq!(rig.session.poll_timeout(), None);
    // It took no CmdSN with it.
    assert_eq!(rig.sent_command().cmd_sn, CmdSn(FIRST_CMD_SN));
}

#[test]
fn a_running_command_is_aborted_at_its_deadline() {
    // RFC 7143 11.5: ABORT TASK, and its answer is the end of the task.
    let mut rig = quiet();
    let command = until(&rig, 3, no_data(1));
    rig.session.submit(command).unwrap();
    let itt = rig.sent_command().itt;
    rig.advance(3 * SECOND);
    let Pdu::TaskManagementRequest(abort) = rig.sent_one() else {
        panic!("no abort");
    };
    assert_eq!(abort.referenced_task, itt);
    let counters = rig.session.counters();
    assert_eq!((counters.overdue, counters.aborts), (1, 1));
    let answer = rig.management_response(abort.itt, 0);
    rig.give(&answer).unwrap();
    assert_eq!(rig.outcome(), overdue(true));
}

#[test]
fn the_answer_before_the_deadline_wins() {
    let mut rig = quiet();
    let command = until(&rig, 3, no_data(1));
    rig.session.submit(command).unwrap();
    let itt = rig.sent_command().itt;
    rig.advance(2 * SECOND);
    rig.exp_cmd_sn += 1;
    let good = rig.good(itt);
    rig.give(&good).unwrap();
    assert_eq!(rig.outcome(), completed(&[]));
    // The old timer fires for nothing, and is gone then.
    rig.advance(SECOND);
    assert_eq!(rig.events(), []);
    assert_eq!(rig.session.poll_timeout(), None);
    assert_eq!(rig.session.counters().overdue, 0);
}

#[test]
fn deadlines_are_met_in_any_order() {
    let mut rig = quiet();
    for (tag, seconds) in [(1, 5), (2, 2), (3, 9), (4, 2)] {
        let command = until(&rig, seconds, no_data(tag));
        rig.session.submit(command).unwrap();
    }
    let mut ends = Vec::new();
    let start = rig.now;
    while let Some(due) = rig.session.poll_timeout() {
        rig.now = due;
        rig.session.handle_timeout(due);
        for event in rig.events() {
            let Event::TaskDone { tag, outcome } = event else {
                panic!();
            };
            assert_eq!(outcome, overdue(false));
            ends.push((tag, (due - start).as_secs()));
        }
    }
    assert_eq!(ends, [(2, 2), (4, 2), (1, 5), (3, 9)]);
}

#[test]
fn times_may_be_as_long_as_one_likes() {
    let mut rig = Rig::new(
        |_| {},
        |options| {
            options.ping_interval = Some(Duration::MAX);
            options.ping_timeout = Duration::MAX;
            options.task_management_timeout = Duration::MAX;
            options.abort_timeout = Duration::MAX;
            options.logical_unit_reset_timeout = Duration::MAX;
            options.drain_timeout = Duration::MAX;
            options.logout_timeout = Duration::MAX;
            options.text_timeout = Duration::MAX;
        },
    );
    rig.start_read(1, 512);
    rig.session.ping(rig.now).unwrap();
    rig.session.abort(rig.now, 1).unwrap();
    rig.session
        .text(rig.now, b"SendTargets=\0".to_vec())
        .unwrap();
    assert_eq!(rig.sent().len(), 3);
    rig.session.logout(rig.now);
    rig.advance(Duration::from_secs(1 << 31));
    assert!(!rig.session.is_closed());
}

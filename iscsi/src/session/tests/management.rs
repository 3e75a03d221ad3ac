//! Aborts and task management (RFC 7143 4.2.3, 11.5, 11.6).

use super::*;

pub(super) fn sent_management(rig: &mut Rig) -> TaskManagementRequest {
    match rig.sent_one() {
        Pdu::TaskManagementRequest(pdu) => pdu,
        other => panic!("{other:?}"),
    }
}

pub(super) fn aborted(cause: AbortCause, sent: bool) -> TaskOutcome {
    TaskOutcome::Aborted { cause, sent }
}

#[test]
fn abort_task_names_tag_lun_and_number() {
    // RFC 7143 11.5.4, 11.5.5
    for response in [0, 1] {
        let mut rig = rig();
        let command = rig.start_read(5, 512);
        rig.session.abort(rig.now, 5).unwrap();
        let pdu = sent_management(&mut rig);
        assert!(pdu.immediate);
        assert_eq!((pdu.function, pdu.lun), (1, lun()));
        assert_eq!(pdu.referenced_task, command.itt);
        assert_eq!(pdu.ref_cmd_sn, command.cmd_sn);
        assert_eq!(pdu.cmd_sn, CmdSn(FIRST_CMD_SN + 1));
        assert_eq!(rig.events(), []);
        let answer = rig.management_response(pdu.itt, response);
        rig.give(&answer).unwrap();
        assert_eq!(rig.outcome(), aborted(AbortCause::Requested, true));
        assert_eq!((rig.session.running(), rig.session.table.len()), (0, 0));
    }
}

#[test]
fn the_own_answer_of_an_aborted_task_counts_if_it_is_first() {
    // RFC 7143 11.6.1: "task does not exist" because it was done.
    let mut rig = rig();
    rig.session.submit(no_data(5)).unwrap();
    let itt = rig.sent_command().itt;
    rig.session.abort(rig.now, 5).unwrap();
    let pdu = sent_management(&mut rig);
    rig.exp_cmd_sn += 1;
    let good = rig.good(itt);
    rig.give(&good).unwrap();
    assert_eq!(rig.outcome(), completed(&[]));
    let answer = rig.management_response(pdu.itt, 1);
    rig.give(&answer).unwrap();
    assert_eq!(rig.events(), []);
    assert_eq!(rig.session.table.len(), 0);
}

#[test]
fn an_abort_that_is_overtaken_is_not_sent() {
    let mut rig = rig();
    rig.session.submit(no_data(5)).unwrap();
    let itt = rig.sent_command().itt;
    rig.session.abort(rig.now, 5).unwrap();
    rig.exp_cmd_sn += 1;
    let good = rig.good(itt);
    rig.give(&good).unwrap();
    assert_eq!(rig.outcome(), completed(&[]));
    assert_eq!(rig.sent(), []);
    assert_eq!(rig.session.table.len(), 0);
}

#[test]
fn a_queued_command_is_aborted_without_the_target() {
    let mut rig = rig();
    rig.session.submit(no_data(5)).unwrap();
    rig.session.submit(no_data(6)).unwrap();
    rig.session.abort(rig.now, 5).unwrap();
    assert_eq!(rig.outcome(), aborted(AbortCause::Requested, false));
    assert_eq!(rig.sent_command().cmd_sn, CmdSn(FIRST_CMD_SN));
    assert!(matches!(
        rig.session.abort(rig.now, 5),
        Err(Misuse::Command(_))
    ));
}

#[test]
fn a_task_under_abort_still_gets_its_data() {
    // RFC 7143 4.2.3.3: R2Ts of affected tasks are answered until the abort is.
    let mut rig = Rig::new(|keys| keys.immediate_data = false, |_| {});
    rig.session.submit(write(5, &pattern(100))).unwrap();
    let itt = rig.sent_command().itt;
    rig.session.abort(rig.now, 5).unwrap();
    sent_management(&mut rig);
    let r2t = rig.r2t(itt, 1, 0, 0, 100);
    rig.give(&Pdu::R2t(r2t)).unwrap();
    assert!(matches!(rig.sent_one(), Pdu::DataOut(_)));
}

#[test]
fn aborts_go_out_one_at_a_time() {
    // RFC 7143 4.2.2.1: a target takes few immediate requests at once.
    let mut rig = rig();
    for tag in 0..3 {
        rig.session.submit(no_data(tag)).unwrap();
    }
    rig.sent();
    for tag in 0..3 {
        rig.session.abort(rig.now, tag).unwrap();
    }
    for _ in 0..3 {
        let pdu = sent_management(&mut rig);
        let answer = rig.management_response(pdu.itt, 0);
        rig.give(&answer).unwrap();
        assert_eq!(rig.outcome(), aborted(AbortCause::Requested, true));
    }
    assert_eq!(rig.sent(), []);
}

#[test]
fn a_lun_reset_ends_the_tasks_of_that_lun_that_were_sent_before() {
    // RFC 7143 4.2.3, 11.5.1
    let mut rig = rig();
    let other_lun = Lun::from_number(2).unwrap();
    for tag in 0..4 {
        rig.session
            .submit(Command {
                lun: if tag == 1 { other_lun } else { lun() },
                ..no_data(tag)
            })
            .unwrap();
    }
    rig.sent();
    rig.session
        .task_management(77, TaskManagement::LogicalUnitReset, lun())
        .unwrap();
    let pdu = sent_management(&mut rig);
    assert_eq!((pdu.function, pdu.lun), (5, lun()));
    assert_eq!((pdu.referenced_task, pdu.ref_cmd_sn), (Itt::NONE, CmdSn(0)));
    rig.session.submit(no_data(9)).unwrap();
    rig.sent_command();
    let answer = rig.management_response(pdu.itt, 0);
    rig.give(&answer).unwrap();
    let cause = AbortCause::TaskManagement(TaskManagement::LogicalUnitReset);
    let mut expected: Vec<Event> = [0, 2, 3]
        .map(|tag| Event::TaskDone {
            tag,
            outcome: aborted(cause, true),
        })
        .into();
    expected.push(Event::TaskManagementDone {
        tag: 77,
        function: TaskManagement::LogicalUnitReset,
        outcome: TaskManagementOutcome::Response(0),
    });
    assert_eq!(rig.events(), expected);
    assert_eq!(rig.session.running(), 2);
}

#[test]
fn a_target_reset_reaches_every_lun_and_clear_aca_no_task() {
    for (function, code, ends) in [
        (TaskManagement::AbortTaskSet, 2, 1),
        (TaskManagement::ClearAca, 3, 0),
        (TaskManagement::ClearTaskSet, 4, 1),
        (TaskManagement::TargetWarmReset, 6, 2),
    ] {
        let mut rig = rig();
        rig.session.submit(no_data(0)).unwrap();
        rig.session
            .submit(Command {
                lun: Lun::default(),
                ..no_data(1)
            })
            .unwrap();
        rig.sent();
        rig.session.task_management(7, function, lun()).unwrap();
        let pdu = sent_management(&mut rig);
        assert_eq!(pdu.function, code);
        let answer = rig.management_response(pdu.itt, 0);
        rig.give(&answer).unwrap();
        assert_eq!(rig.events().len(), ends + 1);
        assert_eq!(rig.session.running(), 2 - ends);
    }
}

#[test]
fn a_function_that_failed_ends_no_task() {
    let mut rig = rig();
    rig.start_read(1, 512);
    rig.session
        .task_management(7, TaskManagement::LogicalUnitReset, lun())
        .unwrap();
    let pdu = sent_management(&mut rig);
    let answer = rig.management_response(pdu.itt, 5);
    rig.give(&answer).unwrap();
    assert!(matches!(
        rig.event(),
        Event::TaskManagementDone {
            outcome: TaskManagementOutcome::Response(5),
            ..
        }
    ));
    assert_eq!(rig.session.running(), 1);
}

#[test]
fn a_function_of_the_user_without_answer_ends_the_session() {
    let mut rig = Rig::new(|_| {}, |options| options.ping_interval = None);
    rig.start_read(5, 512);
    rig.session
        .task_management(7, TaskManagement::AbortTaskSet, lun())
        .unwrap();
    sent_management(&mut rig);
    rig.advance(Duration::from_secs(14));
    assert!(!rig.session.is_closed());
    rig.advance(Duration::from_secs(1));
    assert_eq!(
        rig.event(),
        Event::Closed(CloseReason::Failed(Error::TimedOut(
            crate::error::Waiting::TaskManagement
        )))
    );
}

#[test]
fn an_answer_to_nothing_ends_the_session() {
    let mut rig = rig();
    let itt = rig.start_read(5, 512).itt;
    let answer = rig.management_response(itt, 0);
    let result = rig.give(&answer);
    assert!(matches!(
        rig.closed_with(result),
        Error::TargetMisbehaved(Misbehaviour::UnknownTask { opcode: 0x22, .. })
    ));
}

//! Commands that are not done in time, and task management (RFC 7143 4.2.3, 11.5, 11.6).

use tokio::time::Instant;

use super::rig::since;
use super::*;

const ABORT_TASK: u8 = 1;
const LUN_RESET: u8 = 5;

#[test]
fn a_command_past_its_deadline_is_aborted_rfc7143_11_5() {
    run(async |mut rig: Rig| {
        for response in [0, 1] {
            let (client, mut peer) = rig.session().await;
            let start = Instant::now();
            client.submit_within(30 * SECOND, read(1, 512));
            let command = peer.command().await;
            let abort = peer.management().await;
            assert_eq!(since(start).as_secs(), 30);
            assert!(abort.immediate);
            assert_eq!((abort.function, abort.lun), (ABORT_TASK, lun()));
            assert_eq!(abort.referenced_task, command.itt);
            assert_eq!(abort.ref_cmd_sn, command.cmd_sn);
            let answer = peer.management_response(abort.itt, response);
            peer.send(answer).await;
            assert_eq!(client.outcome().await, aborted(AbortCause::Deadline));
        }
    });
}

#[test]
fn the_answer_of_the_command_counts_when_it_comes_first_rfc7143_11_6_1() {
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        client.submit_within(SECOND, no_data(1));
        let itt = peer.command().await.itt;
        let abort = peer.management().await;
        let good = peer.good(itt);
        peer.send(good).await;
        let answer = peer.management_response(abort.itt, 1);
        peer.send(answer).await;
        assert_eq!(client.outcome().await, completed(&[]));
    });
}

#[test]
fn nothing_may_come_after_the_answer_to_the_abort_rfc7143_11_6_1() {
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        client.submit_within(SECOND, no_data(1));
        let itt = peer.command().await.itt;
        let abort = peer.management().await;
        let answer = peer.management_response(abort.itt, 0);
        peer.send(answer).await;
        let good = peer.good(itt);
        peer.send(good).await;
        assert_eq!(client.outcome().await, aborted(AbortCause::Deadline));
        assert!(matches!(
            client.failed().await,
            Error::TargetMisbehaved(Misbehaviour::UnknownTask { .. })
        ));
    });
}

#[test]
fn an_abort_that_does_not_help_resets_the_lun_once_rfc7143_11_5_1() {
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        let start = Instant::now();
        for tag in 0..10 {
            client.submit_within(30 * SECOND, no_data(tag));
            peer.command().await;
        }
        assert_eq!(peer.management().await.function, ABORT_TASK);
        let reset = peer.management().await;
        assert_eq!(since(start).as_secs(), 45);
        assert_eq!((reset.function, reset.lun), (LUN_RESET, lun()));
        let answer = peer.management_response(reset.itt, 0);
        peer.send(answer).await;
        for tag in 0..10 {
            let expected = (tag, aborted(AbortCause::Deadline));
            assert_eq!(client.done().await, expected);
        }
        client.submit(no_data(99));
        peer.command().await;
    });
}

#[test]
fn a_target_that_knows_no_aborts_is_reset_and_then_left_rfc7143_11_6_1() {
    // 5: function not supported, to both.
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        client.submit_within(SECOND, no_data(1));
        peer.command().await;
        for function in [ABORT_TASK, LUN_RESET] {
            let request = peer.management().await;
            assert_eq!(request.function, function);
            let answer = peer.management_response(request.itt, 5);
            peer.send(answer).await;
        }
        let (reason, unfinished) = client.closed().await;
        assert!(matches!(reason, CloseReason::Failed(_)));
        assert!(unfinished[0].sent, "its fate is not known");
        assert_eq!(peer.until_closed().await, []);
    });
}

#[test]
fn shared_luns_are_not_reset_rfc7143_11_5_1() {
    run(async |mut rig: Rig| {
        rig.options.session = SessionOptions {
            lun_reset: false,
            abort_timeout: 3 * SECOND,
            ..SessionOptions::default()
        };
        let (client, mut peer) = rig.session().await;
        let start = Instant::now();
        client.submit_within(SECOND, no_data(1));
        peer.command().await;
        let said = tokio::join!(client.failed(), peer.until_closed());
        assert!(matches!(said.0, Error::TimedOut(Waiting::Abort(_))));
        assert_eq!(said.1.len(), 1, "{:?}", said.1);
        assert_eq!(since(start).as_secs(), 4);
    });
}

#[test]
fn data_goes_on_until_the_abort_is_answered_rfc7143_4_2_3_2() {
    run(async |mut rig: Rig| {
        for fast_abort in [false, true] {
            rig.target.immediate_data = false;
            rig.target.initial_r2t = true;
            rig.options.session.fast_abort = fast_abort;
            let (client, mut peer) = rig.session().await;
            client.submit_within(SECOND, write(1, &pattern(512)));
            let itt = peer.command().await.itt;
            let abort = peer.management().await;
            let r2t = peer.r2t(itt, 3, 0, 0, 512);
            peer.send(r2t).await;
            let data = peer.within(SECOND).await;
            assert_eq!(data.is_none(), fast_abort, "{data:?}");
            let answer = peer.management_response(abort.itt, 0);
            peer.send(answer).await;
            assert_eq!(client.outcome().await, aborted(AbortCause::Deadline));
        }
    });
}

#[test]
fn what_waits_for_the_window_ends_without_the_target_rfc7143_4_2_2_1() {
    run(async |mut rig: Rig| {
        rig.window = 1;
        let (client, mut peer) = rig.session().await;
        client.submit(no_data(1));
        client.submit_within(SECOND, no_data(2));
        peer.command().await;
        let outcome = TaskOutcome::Aborted {
            cause: AbortCause::Deadline,
            sent: false,
        };
        assert_eq!(client.done().await, (2, outcome));
        assert_eq!(peer.within(SECOND / 2).await, None);
    });
}

#[test]
fn a_reset_of_the_user_ends_the_commands_of_its_lun_rfc7143_4_2_3() {
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        client.submit(no_data(1));
        client.submit(Command {
            lun: Lun::default(),
            ..no_data(2)
        });
        peer.command().await;
        let other = peer.command().await.itt;
        let function = TaskManagement::LogicalUnitReset;
        client
            .handle
            .with_session(|session, _| session.task_management(7, function, lun()))
            .expect("it is logged in");
        let request = peer.management().await;
        assert_eq!(request.function, LUN_RESET);
        let answer = peer.management_response(request.itt, 0);
        peer.send(answer).await;
        let cause = AbortCause::TaskManagement(function);
        assert_eq!(client.done().await, (1, aborted(cause)));
        assert!(matches!(
            client.event().await,
            Event::TaskManagementDone { tag: 7, outcome, .. } if outcome.is_complete()
        ));
        let good = peer.good(other);
        peer.send(good).await;
        assert_eq!(client.done().await, (2, completed(&[])));
    });
}

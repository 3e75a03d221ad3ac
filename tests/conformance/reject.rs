//! Rejects (RFC 7143 11.17): the refused header decides what follows.

use super::*;

#[test]
fn a_refused_command_ends_when_its_number_is_filled_rfc7143_11_17_1() {
    run(async |mut rig: Rig| {
        for reason in [0x02, 0x03, 0x04, 0x05, 0x06, 0x08, 0x09, 0x0a, 0x0b, 0x55] {
            let (client, mut peer) = rig.session().await;
            client.submit(no_data(1));
            let command = peer.command().await;
            // It counts as not received.
            peer.exp_cmd_sn = command.cmd_sn.0;
            let reject = peer.reject(reason, command.clone());
            peer.send(reject).await;
            let abort = peer.management().await;
            assert_eq!(
                (abort.function, abort.referenced_task, abort.ref_cmd_sn),
                (1, command.itt, command.cmd_sn)
            );
            peer.exp_cmd_sn = command.cmd_sn.0 + 1;
            let answer = peer.management_response(abort.itt, 0);
            peer.send(answer).await;
            assert_eq!(client.outcome().await, TaskOutcome::Rejected { reason });
            client.submit(no_data(2));
            peer.command().await;
        }
    });
}

#[test]
fn a_number_that_stays_missing_ends_the_session_rfc7143_11_6_1() {
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        client.submit(no_data(1));
        let command = peer.command().await;
        peer.exp_cmd_sn = command.cmd_sn.0;
        let reject = peer.reject(2, command);
        peer.send(reject).await;
        let abort = peer.management().await;
        let answer = peer.management_response(abort.itt, 1);
        peer.send(answer).await;
        let (reason, unfinished) = client.closed().await;
        assert!(matches!(
            reason,
            CloseReason::Failed(Error::TargetMisbehaved(Misbehaviour::Exchange(_)))
        ));
        assert!(
            !unfinished[0].sent,
            "the target said that it did not take it"
        );
    });
}

#[test]
fn a_task_in_progress_means_that_the_sides_disagree_rfc7143_11_17_1() {
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        client.submit(no_data(1));
        let command = peer.command().await;
        let reject = peer.reject(7, command);
        peer.send(reject).await;
        assert_eq!(
            client.failed().await,
            Error::Rejected(RejectReason::TASK_IN_PROGRESS)
        );
    });
}

#[test]
fn waiting_for_logout_ends_the_session_in_order_rfc7143_11_17_1() {
    // Also when the request itself was never seen.
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        client.submit(no_data(1));
        let command = peer.command().await;
        let reject = peer.reject(0x0c, command);
        peer.send(reject).await;
        let logout = peer.logout().await;
        let answer = peer.logout_response(logout.itt, 0, 0);
        peer.send(answer).await;
        assert!(matches!(
            client.event().await,
            Event::LogoutRequested { .. }
        ));
        let (_, unfinished) = client.closed().await;
        assert_eq!((unfinished.len(), unfinished[0].sent), (1, false));
    });
}

#[test]
fn a_refused_immediate_command_is_over_at_once_rfc7143_11_17_1() {
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        client.submit(Command {
            immediate: true,
            ..no_data(1)
        });
        let command = peer.command().await;
        let reject = peer.reject(6, command);
        peer.send(reject).await;
        assert_eq!(client.outcome().await, TaskOutcome::Rejected { reason: 6 });
        client.submit(no_data(2));
        peer.command().await;
    });
}

#[test]
fn refused_data_is_followed_by_a_status_rfc7143_11_17_1() {
    // A data digest error on Data-Out at level 0: Reject, then CHECK CONDITION 0B/47/05; the command is
    // tried again as a whole.
    let sense = [
        0x70, 0, 0x0b, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x47, 0x05, 0, 0, 0, 0,
    ];
    run(async |mut rig: Rig| {
        rig.target.immediate_data = false;
        rig.target.initial_r2t = true;
        let (client, mut peer) = rig.session().await;
        client.submit(write(1, &pattern(512)));
        let itt = peer.command().await.itt;
        let r2t = peer.r2t(itt, 1, 0, 0, 512);
        peer.send(r2t).await;
        let data = peer.data_out().await;
        let reject = peer.reject(2, data);
        peer.send(reject).await;
        let answer = peer.check_condition(itt, &sense);
        peer.send(answer).await;
        assert!(matches!(
            client.event().await,
            Event::Rejected { reason: 2, .. }
        ));
        assert!(matches!(
            client.outcome().await,
            TaskOutcome::Completed {
                status: CHECK_CONDITION,
                ..
            }
        ));
    });
}

#[test]
fn what_matches_nothing_is_told_and_harmless_rfc7143_11_17() {
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        let ping = peer.nop_in(Itt::NONE, Ttt(5));
        peer.send(ping).await;
        let Some(reply) = peer.next().await else {
            panic!("no reply");
        };
        let reject = peer.reject(4, reply);
        peer.send(reject).await;
        assert!(matches!(
            client.event().await,
            Event::Rejected { reason: 4, .. }
        ));
        client.submit(no_data(1));
        peer.command().await;
    });
}

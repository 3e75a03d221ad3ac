//! CmdSN, StatSN and the command window (RFC 7143 4.2.2).

use super::*;

#[test]
fn commands_leave_in_order_and_within_the_window_rfc7143_4_2_2_1() {
    run(async |mut rig: Rig| {
        rig.window = 4;
        let (client, mut peer) = rig.session().await;
        for tag in 0..20 {
            client.submit(no_data(tag));
        }
        let mut itts = Vec::new();
        for _ in 0..4 {
            itts.push(peer.command().await.itt);
        }
        assert_eq!(peer.within(SECOND).await, None, "the window is closed");
        // Each answer moves the window by one; `Peer::any` checks that CmdSN has no gap.
        for tag in 0..20 {
            let good = peer.good(itts[tag as usize]);
            peer.send(good).await;
            assert_eq!(client.done().await, (tag, completed(&[])));
            if tag < 16 {
                itts.push(peer.command().await.itt);
            }
        }
    });
}

#[test]
fn an_immediate_command_takes_no_number_and_no_window_rfc7143_4_2_2_1() {
    run(async |mut rig: Rig| {
        rig.window = 1;
        let (client, mut peer) = rig.session().await;
        client.submit(no_data(1));
        client.submit(no_data(2));
        let first = peer.command().await;
        client.submit(Command {
            immediate: true,
            ..no_data(3)
        });
        let urgent = peer.command().await;
        assert!(urgent.immediate);
        assert_eq!(urgent.cmd_sn, first.cmd_sn.next());
        let good = peer.good(first.itt);
        peer.send(good).await;
        assert_eq!(peer.command().await.cmd_sn, first.cmd_sn.next());
    });
}

#[test]
fn every_status_is_acknowledged_rfc7143_4_2_2_2() {
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        for tag in 0..5 {
            client.submit(no_data(tag));
            let command = peer.command().await;
            assert_eq!(command.exp_stat_sn.0, peer.stat_sn);
            let good = peer.good(command.itt);
            peer.send(good).await;
            client.outcome().await;
        }
        // Asynchronous messages and rejects take a StatSN too, though their tag is the reserved one.
        let message = peer.async_message(0, [0; 3], &[]);
        peer.send(message).await;
        client.event().await;
        client.submit(no_data(9));
        assert_eq!(peer.command().await.exp_stat_sn.0, peer.stat_sn);
    });
}

#[test]
fn a_lost_status_ends_the_session_rfc7143_4_2_2_2() {
    // At level 0 nobody asks for it again: no SNACK, whatever is missing.
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        client.submit(no_data(1));
        let command = peer.command().await;
        peer.stat_sn += 1;
        let good = peer.good(command.itt);
        peer.send(good).await;
        assert!(matches!(
            client.failed().await,
            Error::TargetMisbehaved(Misbehaviour::StatSnGap { .. })
        ));
        assert_eq!(peer.until_closed().await, []);
    });
}

#[test]
fn a_status_that_came_before_is_ignored_rfc7143_4_2_2_2() {
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        client.submit(no_data(1));
        let itt = peer.command().await.itt;
        let good = peer.good(itt);
        peer.send(good.clone()).await;
        peer.send(good).await;
        assert_eq!(client.outcome().await, completed(&[]));
        client.submit(no_data(2));
        let itt = peer.command().await.itt;
        let good = peer.good(itt);
        peer.send(good).await;
        assert_eq!(client.done().await.0, 2);
        assert_eq!(client.counters().duplicates, 1);
    });
}

#[test]
fn old_numbers_do_not_shrink_the_window_rfc7143_4_2_2_1() {
    run(async |mut rig: Rig| {
        rig.window = 8;
        let (client, mut peer) = rig.session().await;
        peer.window = 2;
        let nop = peer.nop_in(Itt::NONE, Ttt::NONE);
        peer.send(nop).await;
        for tag in 0..8 {
            client.submit(no_data(tag));
            peer.command().await;
        }
    });
}

#[test]
fn a_pair_that_contradicts_itself_is_ignored_rfc7143_4_2_2_1() {
    // MaxCmdSN below ExpCmdSN - 1.
    run(async |mut rig: Rig| {
        rig.window = 1;
        let (client, mut peer) = rig.session().await;
        client.submit(no_data(1));
        client.submit(no_data(2));
        peer.command().await;
        let Pdu::NopIn(mut nop) = peer.nop_in(Itt::NONE, Ttt::NONE) else {
            unreachable!("that is what it makes");
        };
        nop.sn.exp_cmd_sn = CmdSn(peer.exp_cmd_sn + 100);
        nop.sn.max_cmd_sn = CmdSn(peer.exp_cmd_sn + 98);
        peer.send(nop).await;
        assert_eq!(peer.within(SECOND).await, None);
    });
}

#[test]
fn a_target_that_acknowledges_the_future_is_left_rfc7143_4_2_2_1() {
    // It would ignore what comes next, silently.
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        peer.exp_cmd_sn += 1;
        let nop = peer.nop_in(Itt::NONE, Ttt::NONE);
        peer.send(nop).await;
        assert!(matches!(
            client.failed().await,
            Error::TargetMisbehaved(Misbehaviour::Exchange(_))
        ));
    });
}

#[test]
fn a_closed_window_holds_commands_and_nothing_else_rfc7143_4_2_2_1() {
    run(async |mut rig: Rig| {
        rig.window = 1;
        rig.target.immediate_data = false;
        rig.target.initial_r2t = true;
        let (client, mut peer) = rig.session().await;
        client.submit(write(1, &pattern(100)));
        client.submit(no_data(2));
        let itt = peer.command().await.itt;
        peer.window = 0;
        let r2t = peer.r2t(itt, 5, 0, 0, 100);
        peer.send(r2t).await;
        assert_eq!(peer.data_out().await.data.len(), 100);
        let ping = peer.nop_in(Itt::NONE, Ttt(77));
        peer.send(ping).await;
        assert!(matches!(peer.next().await, Some(Pdu::NopOut(_))));
        client
            .handle
            .with_session(|session, now| session.abort(now, 1))
            .expect("it runs");
        let abort = peer.management().await;
        assert_eq!(abort.function, 1);
        peer.window = 1;
        let answer = peer.management_response(abort.itt, 0);
        peer.send(answer).await;
        assert_eq!(client.outcome().await, aborted(AbortCause::Requested));
        assert_eq!(peer.command().await.cdb, [0; 16]);
    });
}

#[test]
fn a_bare_nop_in_opens_the_window_rfc7143_11_19() {
    run(async |mut rig: Rig| {
        rig.window = 1;
        let (client, mut peer) = rig.session().await;
        client.submit(no_data(1));
        client.submit(no_data(2));
        peer.command().await;
        assert_eq!(peer.within(SECOND).await, None);
        let nop = peer.nop_in(Itt::NONE, Ttt::NONE);
        peer.send(nop).await;
        peer.command().await;
    });
}

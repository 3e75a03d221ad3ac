//! Pings in both directions, and what they find out (RFC 7143 11.18, 11.19).

use tokio::time::Instant;

use super::rig::since;
use super::*;

#[test]
fn a_ping_of_the_target_is_answered_with_its_lun_and_tag_rfc7143_11_18() {
    run(async |mut rig: Rig| {
        let (_client, mut peer) = rig.session().await;
        let ping = peer.nop_in(Itt::NONE, Ttt(0x1122_3344));
        peer.send(ping).await;
        let Some(Pdu::NopOut(reply)) = peer.next().await else {
            panic!("no reply");
        };
        assert!(reply.immediate && reply.itt.is_none() && reply.data.is_empty());
        assert_eq!(reply.ttt, Ttt(0x1122_3344));
        assert_eq!(reply.lun, Lun([0, 7, 0, 0, 0, 0, 0, 9]), "all eight bytes");
        assert_eq!(reply.cmd_sn.0, peer.exp_cmd_sn);
    });
}

#[test]
fn a_ping_of_ours_has_its_own_tag_and_takes_no_number_rfc7143_11_18() {
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        peer.answers_pings = false;
        let Some(Pdu::NopOut(ping)) = peer.next().await else {
            panic!("no ping");
        };
        assert!(ping.immediate && !ping.itt.is_none() && ping.ttt.is_none());
        let pong = peer.nop_in(ping.itt, Ttt::NONE);
        peer.send(pong).await;
        client.submit(no_data(1));
        assert_eq!(peer.command().await.cmd_sn, ping.cmd_sn);
    });
}

#[test]
fn a_stalled_link_is_found_in_time_with_commands_in_flight_rfc7143_11_18() {
    // The defaults: a ping after 2 s of silence, the end 5 s later, together less than 1.5 times 5 s.
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        client.submit(no_data(1));
        peer.command().await;
        let start = Instant::now();
        let (reason, unfinished) = client.closed().await;
        assert_eq!(reason, CloseReason::Failed(Error::TimedOut(Waiting::Ping)));
        assert!(since(start) <= 7 * SECOND, "{:?}", since(start));
        assert_eq!((unfinished.len(), unfinished[0].sent), (1, true));
    });
}

#[test]
fn a_link_that_stalls_while_we_send_is_found_too_rfc7143_11_18() {
    // The peer reads nothing: pings and data wait in the socket, and no byte comes back.
    run(async |mut rig: Rig| {
        rig.target.max_recv_data_segment_bytes = 1 << 20;
        rig.target.first_burst_bytes = 1 << 20;
        rig.target.max_burst_bytes = 1 << 20;
        rig.offer.first_burst_bytes = 1 << 20;
        let (client, _peer) = rig.session().await;
        for tag in 0..8 {
            client.submit(write(tag, &pattern(1 << 20)));
        }
        let start = Instant::now();
        let (reason, unfinished) = client.closed().await;
        assert_eq!(reason, CloseReason::Failed(Error::TimedOut(Waiting::Ping)));
        assert!(since(start) <= 7 * SECOND, "{:?}", since(start));
        // The wire took a quarter of the first command, which the target therefore cannot have executed.
        let sent: Vec<bool> = unfinished.iter().map(|command| command.sent).collect();
        assert_eq!(sent, [false; 8]);
    });
}

#[test]
fn a_busy_link_is_never_killed_rfc7143_11_18() {
    // The target is busy sending a long read and answers no ping meanwhile: every byte is life.
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        peer.answers_pings = false;
        let data = pattern(120 * 512);
        client.submit(read(1, data.len() as u32));
        let itt = peer.command().await.itt;
        for (at, part) in data.chunks(512).enumerate() {
            let mut pdu = peer.data_in(itt, at as u32, at as u32 * 512, part);
            pdu.final_ = at == 119;
            let bytes = peer.encode(pdu);
            // Half a PDU at a time, just before the time is over.
            for half in bytes.chunks(bytes.len().div_ceil(2)) {
                tokio::time::sleep(4 * SECOND).await;
                peer.send_bytes(half).await;
            }
        }
        let good = peer.good(itt);
        peer.send(good).await;
        assert_eq!(client.outcome().await, completed(&data));
    });
}

#[test]
fn a_window_that_stays_closed_is_asked_about_rfc7143_4_2_2_1() {
    // The link is alive, for the target pings; but it forgot to say that the window is open again.
    run(async |mut rig: Rig| {
        rig.window = 1;
        let (client, mut peer) = rig.session().await;
        client.submit(no_data(1));
        client.submit(no_data(2));
        peer.command().await;
        peer.window = 0;
        for _ in 0..10 {
            tokio::time::sleep(SECOND).await;
            let ping = peer.nop_in(Itt::NONE, Ttt(1));
            peer.send(ping).await;
            assert!(matches!(peer.next().await, Some(Pdu::NopOut(_))));
        }
        assert!((3..=5).contains(&peer.pings), "{} pings", peer.pings);
        peer.window = 1;
        peer.command().await;
    });
}

#[test]
fn a_target_that_answers_pings_and_nothing_else_is_found_by_deadlines_rfc7143_11_5() {
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        let start = Instant::now();
        client.submit_within(30 * SECOND, no_data(1));
        peer.command().await;
        let mut functions = Vec::new();
        let said = tokio::join!(client.closed(), peer.until_closed());
        for pdu in said.1 {
            match pdu {
                Pdu::TaskManagementRequest(pdu) => functions.push(pdu.function),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(functions, [1, 5], "ABORT TASK, LOGICAL UNIT RESET");
        assert_eq!(
            said.0.0,
            CloseReason::Failed(Error::TimedOut(Waiting::LogicalUnitReset(lun())))
        );
        assert_eq!(since(start).as_secs(), 30 + 15 + 30);
        assert!(peer.pings > 30);
    });
}

#[test]
fn a_ping_with_both_tags_is_a_format_error_rfc7143_11_19_1() {
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        let nop = peer.nop_in(Itt(1), Ttt(2));
        peer.send(nop).await;
        assert!(matches!(client.failed().await, Error::Malformed { .. }));
    });
}

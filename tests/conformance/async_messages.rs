//! Asynchronous messages (RFC 7143 11.9).

use berth_iscsi::scsi::Code;
use tokio::time::Instant;

use super::rig::since;
use super::*;

#[test]
fn a_scsi_event_is_a_unit_attention_of_its_lun_rfc7143_11_9_1_event_0() {
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        for (asc, ascq, code) in [
            (0x2a, 0x09, Code::CAPACITY_CHANGED),
            (0x3f, 0x0e, Code::REPORTED_LUNS_CHANGED),
        ] {
            let sense = [
                0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc, ascq, 0, 0, 0, 0,
            ];
            let message = peer.async_message(0, [0; 3], &sense);
            peer.send(message).await;
            let Event::Async(event) = client.event().await else {
                panic!("not told");
            };
            let (unit, sense) = event.unit_attention().expect("it has sense data");
            assert_eq!((unit, sense.code), (lun(), code));
        }
        // The session goes on.
        client.submit(no_data(1));
        peer.command().await;
    });
}

#[test]
fn a_request_to_log_out_is_followed_in_time_rfc7143_11_9_1_event_1() {
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        client.submit(no_data(1));
        let itt = peer.command().await.itt;
        let message = peer.async_message(1, [0, 0, 10], &[]);
        peer.send(message).await;
        assert_eq!(
            client.event().await,
            Event::LogoutRequested {
                cause: LogoutCause::Target,
                within: 10 * SECOND
            }
        );
        assert!(client.handle.submit(no_data(2)).is_err(), "nothing new");
        // What runs may end.
        assert_eq!(peer.within(SECOND).await, None);
        let good = peer.good(itt);
        peer.send(good).await;
        assert_eq!(client.outcome().await, completed(&[]));
        let logout = peer.logout().await;
        assert_eq!(logout.reason, 0);
        let answer = peer.logout_response(logout.itt, 0, 3);
        peer.send(answer).await;
        assert_eq!(
            client.closed().await.0,
            CloseReason::LoggedOut {
                cause: LogoutCause::Target,
                response: Some(0),
                time2wait_s: 3
            }
        );
    });
}

#[test]
fn a_command_that_does_not_end_does_not_hold_the_logout_rfc7143_11_9_1_event_1() {
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        client.submit(no_data(1));
        peer.command().await;
        let message = peer.async_message(1, [0, 0, 10], &[]);
        peer.send(message).await;
        let start = Instant::now();
        let logout = peer.logout().await;
        assert!(since(start) < 10 * SECOND);
        let answer = peer.logout_response(logout.itt, 0, 0);
        peer.send(answer).await;
        assert!(matches!(
            client.event().await,
            Event::LogoutRequested { .. }
        ));
        let (_, unfinished) = client.closed().await;
        assert_eq!((unfinished.len(), unfinished[0].sent), (1, true));
    });
}

#[test]
fn between_request_and_logout_a_missing_lun_is_of_the_path_rfc7143_11_9_1_event_1() {
    let sense = [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x25, 0, 0, 0, 0, 0];
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        for tag in 0..2 {
            client.submit(no_data(tag));
        }
        let (first, second) = (peer.command().await, peer.command().await);
        let message = peer.async_message(1, [0, 0, 10], &[]);
        peer.send(message).await;
        let answer = peer.check_condition(first.itt, &sense);
        peer.send(answer).await;
        let reject = peer.reject(0x0c, second);
        peer.send(reject).await;
        let logout = peer.logout().await;
        let answer = peer.logout_response(logout.itt, 0, 0);
        peer.send(answer).await;
        assert!(matches!(
            client.event().await,
            Event::LogoutRequested { .. }
        ));
        let (_, unfinished) = client.closed().await;
        let left: Vec<_> = unfinished.iter().map(|u| (u.command.tag, u.sent)).collect();
        assert_eq!(left, [(0, false), (1, false)]);
    });
}

#[test]
fn an_announced_drop_is_believed_rfc7143_11_9_1_events_2_and_3() {
    run(async |mut rig: Rig| {
        for event in [2, 3] {
            let (client, mut peer) = rig.session().await;
            client.submit(no_data(1));
            peer.command().await;
            let message = peer.async_message(event, [0, 7, 20], &[]);
            peer.send(message).await;
            let (reason, unfinished) = client.closed().await;
            assert_eq!(
                reason,
                CloseReason::DroppedByTarget {
                    time2wait_s: 7,
                    time2retain_s: 20
                }
            );
            assert!(unfinished[0].sent);
        }
    });
}

#[test]
fn a_drop_of_another_connection_is_not_ours_rfc7143_11_9_1_event_2() {
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        let message = peer.async_message(2, [9, 7, 20], &[]);
        peer.send(message).await;
        client.submit(no_data(1));
        peer.command().await;
    });
}

#[test]
fn a_wish_to_negotiate_is_met_by_a_new_login_rfc7143_11_9_1_event_4() {
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        let message = peer.async_message(4, [0, 0, 3], &[]);
        peer.send(message).await;
        let start = Instant::now();
        let logout = peer.logout().await;
        assert!(since(start) < 3 * SECOND);
        let answer = peer.logout_response(logout.itt, 0, 0);
        peer.send(answer).await;
        assert!(matches!(
            client.event().await,
            Event::LogoutRequested {
                cause: LogoutCause::Negotiation,
                ..
            }
        ));
        assert!(matches!(
            client.closed().await.0,
            CloseReason::LoggedOut {
                cause: LogoutCause::Negotiation,
                ..
            }
        ));
    });
}

#[test]
fn a_task_termination_is_acknowledged_rfc7143_11_9_1_event_5() {
    run(async |mut rig: Rig| {
        let (_client, mut peer) = rig.session().await;
        let message = peer.async_message(5, [0; 3], &[]);
        peer.send(message).await;
        let Some(Pdu::NopOut(pdu)) = peer.next().await else {
            panic!("not acknowledged");
        };
        assert!(pdu.itt.is_none() && pdu.ttt.is_none());
        assert_eq!(pdu.lun, lun());
    });
}

#[test]
fn what_nobody_knows_is_told_and_harmless_rfc7143_11_9_1() {
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        for event in [6, 247, 248, 255] {
            let message = peer.async_message(event, [1, 2, 3], &[]);
            peer.send(message).await;
            assert!(matches!(client.event().await, Event::Async(_)));
        }
        client.submit(no_data(1));
        assert_eq!(peer.command().await.exp_stat_sn.0, peer.stat_sn);
    });
}

//! The end of a session (RFC 7143 11.14, 11.15).

use tokio::time::Instant;

use super::rig::since;
use super::*;

#[test]
fn a_logout_waits_for_what_runs_and_takes_nothing_new_rfc7143_11_14() {
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        client.submit(no_data(1));
        let itt = peer.command().await.itt;
        client
            .handle
            .with_session(|session, now| session.logout(now));
        assert!(client.handle.submit(no_data(2)).is_err());
        assert_eq!(peer.within(SECOND).await, None);
        let good = peer.good(itt);
        peer.send(good).await;
        let logout = peer.logout().await;
        assert!(logout.immediate);
        assert_eq!((logout.reason, logout.cid.0), (0, 0));
        let answer = peer.logout_response(logout.itt, 0, 5);
        peer.send(answer).await;
        assert_eq!(client.outcome().await, completed(&[]));
        assert_eq!(
            client.closed().await.0,
            CloseReason::LoggedOut {
                cause: LogoutCause::User,
                response: Some(0),
                time2wait_s: 5
            }
        );
        assert_eq!(peer.until_closed().await, []);
    });
}

#[test]
fn any_answer_to_a_logout_is_the_end_rfc7143_11_15_1() {
    run(async |mut rig: Rig| {
        for code in [0, 1, 2, 3, 0x77] {
            let (client, mut peer) = rig.session().await;
            client
                .handle
                .with_session(|session, now| session.logout(now));
            let logout = peer.logout().await;
            let answer = peer.logout_response(logout.itt, code, 0);
            peer.send(answer).await;
            assert!(matches!(
                client.closed().await.0,
                CloseReason::LoggedOut { response: Some(response), .. } if response == code
            ));
        }
    });
}

#[test]
fn nothing_follows_a_logout_rfc7143_11_14() {
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        client
            .handle
            .with_session(|session, now| session.logout(now));
        peer.logout().await;
        let ping = peer.nop_in(Itt::NONE, Ttt(4));
        peer.send(ping).await;
        assert_eq!(peer.until_closed().await, []);
        assert!(matches!(
            client.closed().await.0,
            CloseReason::LoggedOut { response: None, .. }
        ));
    });
}

#[test]
fn a_target_that_does_not_answer_is_left_in_time_rfc7143_11_15() {
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        client.submit(no_data(1));
        peer.command().await;
        let start = Instant::now();
        client
            .handle
            .with_session(|session, now| session.logout(now));
        let ended = tokio::join!(client.closed(), peer.until_closed());
        assert!(matches!(ended.0.0, CloseReason::LoggedOut { .. }));
        // 15 s to drain, 15 s for the answer.
        assert_eq!(since(start).as_secs(), 30);
        assert!(matches!(ended.1[..], [Pdu::LogoutRequest(_)]));
        assert_eq!(ended.0.1.len(), 1);
    });
}

#[test]
fn a_cut_after_the_logout_is_a_fair_end_rfc7143_11_14() {
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        client
            .handle
            .with_session(|session, now| session.logout(now));
        peer.logout().await;
        drop(peer);
        assert!(matches!(
            client.closed().await.0,
            CloseReason::LoggedOut { response: None, .. }
        ));
    });
}

#[test]
fn a_cut_without_a_logout_is_a_failure_rfc7143_7_1_1() {
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        client.submit(no_data(1));
        peer.command().await;
        drop(peer);
        let (reason, unfinished) = client.closed().await;
        assert!(matches!(reason, CloseReason::Failed(Error::Lost(_))));
        assert!(unfinished[0].sent);
    });
}

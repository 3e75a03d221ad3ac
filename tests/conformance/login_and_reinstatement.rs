//! Login, redirects, and what makes a reinstatement (RFC 7143 6.3, 11.12, 11.13, 13).

use berth_iscsi::error::{Incompatibility, LoginStatus, Recovery};
use berth_iscsi::login::Negotiated;
use berth_iscsi::types::Tsih;
use tokio::time::Instant;

use super::rig::{accept, since};
use super::*;

#[test]
fn every_login_has_the_isid_of_its_path_and_tsih_0_rfc7143_6_3_5() {
    // That is what makes the target end the old session, with all its commands, before the new one begins.
    run(async |mut rig: Rig| {
        for _ in 0..3 {
            let isid = rig.isid;
            let (connected, seen) = rig
                .connect(async |accepted| {
                    let mut peer = accept(accepted).await;
                    let request = peer.login_request().await;
                    let refusal = peer.login_status(&request, (3, 1), "");
                    peer.send(refusal).await;
                    (request.isid, request.tsih, request.cid.0)
                })
                .await;
            assert!(connected.is_err());
            assert_eq!(seen, (isid, Tsih(0), 0));
        }
    });
}

#[test]
fn the_first_request_says_who_and_what_rfc7143_6_3_1() {
    run(async |mut rig: Rig| {
        let (_, text) = rig
            .connect(async |accepted| {
                let request = accept(accepted).await.login_request().await;
                String::from_utf8(request.data.to_bytes().to_vec()).expect("text")
            })
            .await;
        let pairs: Vec<&str> = text.split_terminator('\0').collect();
        for wanted in [
            "InitiatorName=iqn.2026-11.example:i",
            "TargetName=iqn.2026-11.example:t",
            "SessionType=Normal",
        ] {
            assert!(pairs.contains(&wanted), "{wanted} in {pairs:?}");
        }
    });
}

#[test]
fn levels_and_connections_are_negotiated_down_rfc7143_13_1_13_20() {
    // ErrorRecoveryLevel is the minimum, MaxConnections too; what a target could do more is not used.
    run(async |mut rig: Rig| {
        rig.target = Offer {
            error_recovery_level: 2,
            max_connections: 8,
            ..Offer::default()
        };
        let (client, mut peer) = rig.session().await;
        let Negotiated {
            error_recovery_level,
            max_connections,
            ..
        } = client
            .handle
            .with_session(|session, _| session.negotiated().clone());
        assert_eq!((error_recovery_level, max_connections), (0, 1));
        client.submit(no_data(1));
        let itt = peer.command().await.itt;
        let good = peer.good(itt);
        peer.send(good).await;
        assert_eq!(client.outcome().await, completed(&[]));
    });
}

#[test]
fn a_redirect_is_followed_and_remembered_only_if_it_is_for_good_rfc7143_11_13_5() {
    run(async |mut rig: Rig| {
        for (detail, for_good) in [(1, false), (2, true)] {
            let (connected, portals) = rig
                .connect(async |accepted| {
                    let (first, end) = accepted.recv().await.expect("a connection");
                    let mut peer = Peer::new(end);
                    let request = peer.login_request().await;
                    let text = "TargetAddress=192.0.2.9:3261,1\0";
                    let response = peer.login_status(&request, (1, detail), text);
                    peer.send(response).await;
                    let (second, end) = accepted.recv().await.expect("a connection");
                    Peer::new(end).log_in(Offer::default()).await;
                    [first.to_string(), second.to_string()]
                })
                .await;
            assert_eq!(portals, ["192.0.2.2:3260", "192.0.2.9:3261"]);
            let moved = connected.expect("a session").moved_to;
            assert_eq!(moved.is_some(), for_good);
        }
    });
}

#[test]
fn a_circle_of_redirects_ends_rfc7143_11_13_5() {
    run(async |mut rig: Rig| {
        let (connected, ()) = rig
            .connect(async |accepted| {
                let mut peer = accept(accepted).await;
                let request = peer.login_request().await;
                let text = "TargetAddress=192.0.2.2:3260,1\0";
                let response = peer.login_status(&request, (1, 1), text);
                peer.send(response).await;
            })
            .await;
        let error = connected.expect_err("it leads nowhere").error;
        assert!(matches!(
            error,
            Error::TargetIncompatible(Incompatibility::RedirectLoop { .. })
        ));
    });
}

#[test]
fn a_status_says_whether_trying_again_can_help_rfc7143_11_13_5() {
    run(async |mut rig: Rig| {
        for (class, detail, may_help) in [
            (2, 1, false), // authentication failure
            (2, 2, false), // not authorised
            (2, 3, true),  // not found: it may be on its way
            (3, 0, true),  // target error
            (3, 1, true),  // service unavailable
            (3, 2, true),  // out of resources
        ] {
            let (connected, ()) = rig
                .connect(async |accepted| {
                    let mut peer = accept(accepted).await;
                    let request = peer.login_request().await;
                    let response = peer.login_status(&request, (class, detail), "");
                    peer.send(response).await;
                })
                .await;
            let error = connected.expect_err("refused").error;
            assert_eq!(error, Error::LoginRejected(LoginStatus { class, detail }));
            let helps = error.recovery() < Recovery::Fatal;
            assert_eq!(helps, may_help, "{class:02x}{detail:02x}");
        }
    });
}

#[test]
fn a_login_that_never_ends_is_ended_by_the_clock_rfc7143_7_6() {
    // T=0 and no keys, again and again.
    run(async |mut rig: Rig| {
        rig.options.deadline = 15 * SECOND;
        let start = Instant::now();
        let (connected, rounds) = rig
            .connect(async |accepted| {
                let mut peer = accept(accepted).await;
                let mut rounds = 0;
                loop {
                    let next = tokio::time::timeout(60 * SECOND, peer.any()).await;
                    let Ok(Some(Pdu::LoginRequest(request))) = next else {
                        return rounds;
                    };
                    rounds += 1;
                    let response = peer.login_status(&request, (0, 0), "");
                    tokio::time::sleep(SECOND / 2).await;
                    peer.send(response).await;
                }
            })
            .await;
        let error = connected.expect_err("it never ends").error;
        assert!(rounds > 1);
        assert!(since(start) <= 80 * SECOND);
        assert_ne!(error.recovery(), Recovery::Task);
    });
}

#[test]
fn a_target_that_says_nothing_costs_the_deadline_rfc7143_6_3() {
    run(async |mut rig: Rig| {
        rig.options.deadline = 7 * SECOND;
        let start = Instant::now();
        let (connected, took) = rig
            .connect(async |accepted| {
                let mut peer = accept(accepted).await;
                peer.login_request().await;
                // The connection is closed when the time is over.
                assert_eq!(peer.any().await, None);
                since(start)
            })
            .await;
        let error = connected.expect_err("no answer").error;
        assert_eq!(error, Error::TimedOut(Waiting::Login));
        assert_eq!(took, 7 * SECOND);
    });
}

#[test]
fn nothing_but_login_responses_belongs_into_a_login_rfc7143_11_13() {
    run(async |mut rig: Rig| {
        let (connected, ()) = rig
            .connect(async |accepted| {
                let mut peer = accept(accepted).await;
                peer.login_request().await;
                let nop = peer.nop_in(Itt::NONE, Ttt(1));
                peer.send(nop).await;
            })
            .await;
        assert!(matches!(
            connected.expect_err("no login").error,
            Error::TargetMisbehaved(Misbehaviour::UnexpectedPdu { .. })
        ));
    });
}

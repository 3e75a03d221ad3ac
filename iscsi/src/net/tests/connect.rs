//! Connecting: portals that work, refuse, redirect, talk nonsense or say nothing.

use std::io::ErrorKind;
use std::time::Duration;

use tokio::time::Instant;

use super::*;
use crate::error::{Error, Incompatibility, LoginStatus, Waiting};

#[tokio::test]
async fn a_login_gives_a_session() {
    let (listener, portal) = listen().await;
    let target = async {
        let mut peer = Peer::accept(&listener).await;
        peer.log_in("InitialR2T=No\0FirstBurstLength=8192\0").await;
        peer
    };
    let options = ConnectOptions::default();
    let (connected, _peer) = tokio::join!(
        connect(&TcpNetwork, slice::from_ref(&portal), normal(), &options),
        target
    );
    let connected = connected.unwrap();
    assert_eq!(portal_of(connected.address), portal);
    assert_eq!(connected.session.login().tsih, Tsih(9));
    assert!(!connected.session.negotiated().initial_r2t);
    assert_eq!(connected.session.negotiated().first_burst_bytes, 8192);
    assert_eq!(connected.session.window_room(), 64);
    assert_eq!(connected.moved_to, None);
    assert_eq!(connected.portal, portal);
}

#[tokio::test]
async fn a_closed_portal_refuses() {
    let (listener, portal) = listen().await;
    drop(listener);
    let options = ConnectOptions::default();
    let error = connect(&TcpNetwork, slice::from_ref(&portal), normal(), &options)
        .await
        .unwrap_err();
    assert_eq!(error.error, Error::Lost(ErrorKind::ConnectionRefused));
    assert_eq!(
        (error.portal.clone(), error.address),
        (portal.clone(), None)
    );
    assert!(error.to_string().contains(&portal.to_string()), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_portal_ends_at_the_deadline() {
    let (_listener, portal) = listen().await;
    let options = ConnectOptions::default();
    let start = Instant::now();
    let error = connect(&TcpNetwork, slice::from_ref(&portal), normal(), &options)
        .await
        .unwrap_err();
    assert_eq!(error.error, Error::TimedOut(Waiting::Login));
    assert_eq!(start.elapsed().as_secs(), options.deadline.as_secs());
    assert!(error.address.is_some());
}

#[tokio::test]
async fn a_portal_that_speaks_something_else_is_refused() {
    for garbage in [
        &b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"[..],
        &[0xff; 4096],
        &[0; 4096],
    ] {
        let (listener, portal) = listen().await;
        let target = async {
            let mut peer = Peer::accept(&listener).await;
            peer.stream.write_all(garbage).await.unwrap();
            peer
        };
        let options = ConnectOptions::default();
        let (result, _peer) = tokio::join!(
            connect(&TcpNetwork, slice::from_ref(&portal), normal(), &options),
            target
        );
        let error = result.unwrap_err().error;
        assert!(
            matches!(
                error,
                Error::Malformed { .. } | Error::TargetMisbehaved(_) | Error::Rejected(_)
            ),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_portal_that_hangs_up_is_lost() {
    let (listener, portal) = listen().await;
    let target = async { Peer::accept(&listener).await.login_request().await };
    let options = ConnectOptions::default();
    let (result, _) = tokio::join!(
        connect(&TcpNetwork, slice::from_ref(&portal), normal(), &options),
        target
    );
    assert!(matches!(result.unwrap_err().error, Error::Lost(_)));
}

#[tokio::test(start_paused = true)]
async fn a_login_that_never_ends_is_cut_off() {
    // RFC 7143 6.3: the target may hold back T for ever.
    let (listener, portal) = listen().await;
    let target = async {
        let mut peer = Peer::accept(&listener).await;
        loop {
            let Some(Pdu::LoginRequest(request)) = peer.next().await else {
                return;
            };
            tokio::time::sleep(Duration::from_secs(3)).await;
            let held_back = LoginRequest {
                transit: false,
                ..request
            };
            let mut queue = SendQueue::new();
            peer.login_response(&held_back, (0, 0), "")
                .emit(&mut queue, Digests::NONE);
            if peer.stream.write_all(&queue.to_vec()).await.is_err() {
                return;
            }
        }
    };
    let options = ConnectOptions::default();
    let (result, ()) = tokio::join!(
        connect(&TcpNetwork, slice::from_ref(&portal), normal(), &options),
        target
    );
    assert_eq!(result.unwrap_err().error, Error::TimedOut(Waiting::Login));
}

#[tokio::test]
async fn a_refused_login_says_why() {
    // RFC 7143 11.13.5
    let (listener, portal) = listen().await;
    let target = async {
        let mut peer = Peer::accept(&listener).await;
        peer.refuse_login((2, 3), "").await;
    };
    let options = ConnectOptions::default();
    let (result, ()) = tokio::join!(
        connect(&TcpNetwork, slice::from_ref(&portal), normal(), &options),
        target
    );
    assert_eq!(
        result.unwrap_err().error,
        Error::LoginRejected(LoginStatus::NOT_FOUND)
    );
}

fn redirection(portal: &Portal) -> String {
    format!("TargetAddress={portal}\0")
}

#[tokio::test]
async fn redirects_are_followed() {
    // RFC 7143 11.13.5: 0101 for this time, 0102 from now on.
    for (detail, permanent) in [(1, false), (2, true)] {
        let (group, portal) = listen().await;
        let (node, moved_to) = listen().await;
        let target = async {
            let mut peer = Peer::accept(&group).await;
            peer.refuse_login((1, detail), &redirection(&moved_to))
                .await;
            let mut peer = Peer::accept(&node).await;
            peer.log_in("").await;
            peer
        };
        let options = ConnectOptions::default();
        let (result, _peer) = tokio::join!(
            connect(&TcpNetwork, slice::from_ref(&portal), normal(), &options),
            target
        );
        let connected = result.unwrap();
        assert_eq!(portal_of(connected.address), moved_to);
        assert_eq!(connected.moved_to, permanent.then_some(moved_to));
    }
}

#[tokio::test]
async fn a_circle_of_redirects_ends() {
    let (a, portal) = listen().await;
    let (b, other) = listen().await;
    let target = async {
        let mut peer = Peer::accept(&a).await;
        peer.refuse_login((1, 1), &redirection(&other)).await;
        let mut peer = Peer::accept(&b).await;
        peer.refuse_login((1, 1), &redirection(&portal)).await;
    };
    let options = ConnectOptions::default();
    let (result, ()) = tokio::join!(
        connect(&TcpNetwork, slice::from_ref(&portal), normal(), &options),
        target
    );
    let error = result.unwrap_err();
    assert!(matches!(
        error.error,
        Error::TargetIncompatible(Incompatibility::RedirectLoop { hops: 2, .. })
    ));
    assert_eq!(error.portal, other);
}

#[tokio::test]
async fn a_long_chain_of_redirects_ends() {
    let mut portals = Vec::new();
    for _ in 0..7 {
        portals.push(listen().await);
    }
    let target = async {
        for at in 0..6 {
            let mut peer = Peer::accept(&portals[at].0).await;
            peer.refuse_login((1, 1), &redirection(&portals[at + 1].1))
                .await;
        }
    };
    let options = ConnectOptions::default();
    let (result, ()) = tokio::join!(
        connect(
            &TcpNetwork,
            slice::from_ref(&portals[0].1),
            normal(),
            &options
        ),
        target
    );
    assert!(matches!(
        result.unwrap_err().error,
        Error::TargetIncompatible(Incompatibility::RedirectLoop { hops: 6, .. })
    ));
}

#[tokio::test]
async fn the_address_that_answers_wins() {
    let (closed, closed_portal) = listen().await;
    drop(closed);
    let (listener, _) = listen().await;
    let open = listener.local_addr().unwrap();
    let Host::Ip(ip) = closed_portal.host else {
        panic!();
    };
    let addresses = vec![SocketAddr::new(ip, closed_portal.port), open];
    let options = ConnectOptions::default();
    let (stream, address) = tcp::connect(addresses, &options).await.unwrap();
    assert_eq!(address, open);
    assert!(stream.nodelay().unwrap());
    let socket = socket2::SockRef::from(&stream);
    assert!(socket.keepalive().unwrap());
    assert_eq!(
        socket.tcp_user_timeout().unwrap(),
        Some(Duration::from_secs(30))
    );
}

/// A network whose portals answer after a time of their own; `None`: they refuse.
#[derive(Debug)]
struct Paced(
    Vec<(Portal, Option<u64>)>,
    std::sync::Mutex<Vec<(u16, u64)>>,
);

impl Network for Paced {
    fn dial<'a>(&'a self, portal: &'a Portal, options: &'a ConnectOptions) -> Dialing<'a> {
        Box::pin(async move {
            let (real, after_ms) = self.0.iter().find(|(one, _)| one == portal).unwrap();
            let now_ms = u64::try_from(START.with(|start| *start).elapsed().as_millis()).unwrap();
            self.1.lock().unwrap().push((real.port, now_ms));
            match after_ms {
                Some(ms) => {
                    tokio::time::sleep(Duration::from_millis(*ms)).await;
                    TcpNetwork.dial(real, options).await
                }
                None => Err(ErrorKind::ConnectionRefused.into()),
            }
        })
    }
}

thread_local! {
    static START: Instant = Instant::now();
}

#[tokio::test(start_paused = true)]
async fn candidates_are_raced_and_one_login_is_done() {
    START.with(|start| start.elapsed());
    let mut listeners = Vec::new();
    let mut portals = Vec::new();
    for _ in 0..3 {
        let (listener, portal) = listen().await;
        listeners.push(listener);
        portals.push(portal);
    }
    // The first refuses, so the second starts at once; it is slow, so the third gets its chance.
    let times = [None, Some(10_000), Some(5)];
    let network = Paced(
        portals.iter().cloned().zip(times).collect(),
        Default::default(),
    );
    let target = async {
        let mut peer = Peer::accept(&listeners[2]).await;
        peer.log_in("").await;
        peer
    };
    let options = ConnectOptions::default();
    let start_ms = u64::try_from(START.with(|start| *start).elapsed().as_millis()).unwrap();
    let (result, _peer) = tokio::join!(connect(&network, &portals, normal(), &options), target);
    assert_eq!(result.unwrap().portal, portals[2]);
    let dialed: Vec<_> = network.1.into_inner().unwrap();
    let at = |i: usize, ms| (portals[i].port, start_ms + ms);
    assert_eq!(dialed, [at(0, 0), at(1, 0), at(2, 250)]);
}

#[tokio::test]
async fn when_no_candidate_answers_the_first_is_named() {
    let (first, a) = listen().await;
    let (second, b) = listen().await;
    drop((first, second));
    let options = ConnectOptions::default();
    let portals = [a.clone(), b];
    let error = connect(&TcpNetwork, &portals, normal(), &options)
        .await
        .unwrap_err();
    assert_eq!(error.error, Error::Lost(ErrorKind::ConnectionRefused));
    assert_eq!(error.portal, a);
}

/// Plays CHAP up to the proof; returns the proof, and the algorithms that were offered.
async fn chap(peer: &mut Peer, algorithm: &str) -> (LoginRequest, String) {
    let mut offered = String::new();
    loop {
        let request = peer.login_request().await;
        let text = String::from_utf8(request.data.to_bytes().to_vec()).unwrap();
        let pairs: Vec<&str> = text.split('\0').collect();
        if let Some(value) = pairs.iter().find_map(|p| p.strip_prefix("CHAP_A=")) {
            offered = value.to_owned();
        }
        if pairs.iter().any(|pair| pair.starts_with("CHAP_R=")) {
            return (request, offered);
        }
        let answer = if offered.is_empty() {
            "AuthMethod=CHAP\0TargetPortalGroupTag=1\0".to_owned()
        } else {
            format!("CHAP_A={algorithm}\0CHAP_I=7\0CHAP_C=0x000102030405060708090a0b0c0d0e0f\0")
        };
        let response = peer.login_response(&request, (0, 0), &answer);
        peer.send(response).await;
    }
}

#[tokio::test]
async fn a_target_that_takes_sha_256_for_sha_1_gets_md5() {
    // tgt computes SHA-1 under number 7: a refusal after 7 is worth one more try with 5.
    let (listener, portal) = listen().await;
    let target = async {
        let mut peer = Peer::accept(&listener).await;
        let (proof, offered) = chap(&mut peer, "7").await;
        assert!(offered.split(',').any(|number| number == "7"), "{offered}");
        let refusal = peer.login_response(&proof, (2, 1), "");
        peer.send(refusal).await;
        let mut peer = Peer::accept(&listener).await;
        let (proof, offered) = chap(&mut peer, "5").await;
        assert_eq!(offered, "5");
        let accepted = peer.login_response(&proof, (0, 0), "");
        peer.send(accepted).await;
        peer.log_in("").await;
        peer
    };
    let mut config = normal();
    let secret = crate::login::Secret::new(*b"0123456789abcdef");
    config.auth = crate::login::InitiatorAuth::Chap(crate::login::ChapConfig::new("user", secret));
    let options = ConnectOptions::default();
    let (result, _peer) = tokio::join!(
        connect(&TcpNetwork, slice::from_ref(&portal), config, &options),
        target
    );
    result.unwrap();
}

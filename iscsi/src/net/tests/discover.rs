//! Discovery (RFC 7143 4.3, Appendix C).

use std::time::Duration;

use super::*;
use crate::error::{Error, Waiting};

fn text_response(peer: &mut Peer, request: &TextRequest, more: bool, text: &str) -> TextResponse {
    TextResponse {
        final_: !more,
        continue_: false,
        lun: Lun::default(),
        itt: request.itt,
        ttt: if more { Ttt(0x77) } else { Ttt::NONE },
        sn: peer.sn(),
        data: Payload::from(text.as_bytes().to_vec()),
    }
}

async fn text_request(peer: &mut Peer) -> TextRequest {
    match peer.next().await {
        Some(Pdu::TextRequest(pdu)) => pdu,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_long_answer_is_joined_and_the_session_logged_out() {
    // RFC 7143 11.10.4, 11.11: F=0 with a TTT, which an empty request copies.
    let (listener, portal) = listen().await;
    let target = async {
        let mut peer = Peer::accept(&listener).await;
        peer.log_in("").await;
        let request = text_request(&mut peer).await;
        assert_eq!(request.data.to_bytes(), "SendTargets=All\0");
        assert!(request.immediate && request.final_ && request.ttt.is_none());
        let part = "TargetName=iqn.2026-11.example:a\0TargetAddr";
        let response = text_response(&mut peer, &request, true, part);
        peer.send(response).await;
        let next = text_request(&mut peer).await;
        assert_eq!((next.itt, next.ttt), (request.itt, Ttt(0x77)));
        assert!(next.data.is_empty() && next.final_);
        let part = "ess=192.0.2.1:3260,1\0TargetName=iqn.2026-11.example:b\0";
        let response = text_response(&mut peer, &request, false, part);
        peer.send(response).await;
        let Some(Pdu::LogoutRequest(logout)) = peer.next().await else {
            panic!("no logout");
        };
        assert_eq!(logout.reason, 0);
        let sn = peer.sn();
        peer.send(LogoutResponse {
            response: 0,
            itt: logout.itt,
            sn,
            time2wait_s: 0,
            time2retain_s: 0,
        })
        .await;
        assert_eq!(peer.next().await, None);
    };
    let options = ConnectOptions::default();
    let (result, ()) = tokio::join!(
        discover(
            &TcpNetwork,
            &portal,
            config(SessionKind::Discovery),
            &options
        ),
        target
    );
    let names: Vec<String> = result
        .unwrap()
        .targets
        .iter()
        .map(|target| target.name.to_string())
        .collect();
    assert_eq!(names, ["iqn.2026-11.example:a", "iqn.2026-11.example:b"]);
}

#[tokio::test]
async fn a_target_that_drops_instead_of_logging_out_does_not_spoil_the_answer() {
    let (listener, portal) = listen().await;
    let target = async {
        let mut peer = Peer::accept(&listener).await;
        peer.log_in("").await;
        let request = text_request(&mut peer).await;
        let response = text_response(&mut peer, &request, false, "");
        peer.send(response).await;
        peer.next().await;
    };
    let options = ConnectOptions::default();
    let (result, ()) = tokio::join!(
        discover(
            &TcpNetwork,
            &portal,
            config(SessionKind::Discovery),
            &options
        ),
        target
    );
    assert!(result.unwrap().targets.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_target_that_does_not_answer_is_given_up() {
    let (listener, portal) = listen().await;
    let target = async {
        let mut peer = Peer::accept(&listener).await;
        peer.log_in("").await;
        text_request(&mut peer).await;
        assert_eq!(peer.next().await, None);
    };
    let options = ConnectOptions {
        discovery_timeout: Duration::from_secs(7),
        ..ConnectOptions::default()
    };
    let (result, ()) = tokio::join!(
        discover(
            &TcpNetwork,
            &portal,
            config(SessionKind::Discovery),
            &options
        ),
        target
    );
    assert_eq!(result.unwrap_err().error, Error::TimedOut(Waiting::Text));
}

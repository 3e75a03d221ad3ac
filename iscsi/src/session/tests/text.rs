//! Text exchanges (RFC 7143 11.10, 11.11).

use super::*;
use crate::error::Waiting;

fn sent_text(rig: &mut Rig) -> TextRequest {
    match rig.sent_one() {
        Pdu::TextRequest(pdu) => pdu,
        other => panic!("{other:?}"),
    }
}

fn response(rig: &mut Rig, itt: Itt, bits: (bool, bool), ttt: Ttt, text: &str) -> Pdu {
    Pdu::TextResponse(TextResponse {
        final_: bits.0,
        continue_: bits.1,
        lun: lun(),
        itt,
        ttt,
        sn: rig.sn(),
        data: Payload::from(text.as_bytes().to_vec()),
    })
}

#[test]
fn an_answer_of_one_pdu() {
    let mut rig = Rig::of_kind(&SessionKind::Discovery, 1, |_| {}, |_| {});
    rig.session
        .text(rig.now, b"SendTargets=All\0".to_vec())
        .unwrap();
    assert!(matches!(
        rig.session.text(rig.now, Vec::new()),
        Err(Misuse::Command(_))
    ));
    let pdu = sent_text(&mut rig);
    assert!(pdu.immediate && pdu.final_ && !pdu.continue_ && pdu.ttt.is_none());
    assert_eq!(pdu.data.to_bytes(), "SendTargets=All\0");
    let answer = response(&mut rig, pdu.itt, (true, false), Ttt::NONE, "a=b\0");
    rig.give(&answer).unwrap();
    assert_eq!(
        rig.event(),
        Event::TextDone {
            answer: Ok(Bytes::from("a=b\0"))
        }
    );
    assert_eq!(rig.session.table.len(), 0);
}

#[test]
fn a_long_answer_is_fetched_piece_by_piece() {
    // RFC 7143 11.10.4: empty requests with the ITT, the TTT and the LUN of the answer.
    let mut rig = rig();
    rig.session
        .text(rig.now, b"SendTargets=All\0".to_vec())
        .unwrap();
    let itt = sent_text(&mut rig).itt;
    for (n, bits) in [(0, (false, false)), (1, (false, true)), (2, (false, true))] {
        let answer = response(&mut rig, itt, bits, Ttt(n), "part ");
        rig.give(&answer).unwrap();
        let next = sent_text(&mut rig);
        assert_eq!((next.itt, next.ttt, next.lun), (itt, Ttt(n), lun()));
        assert!(next.final_ && next.data.is_empty());
    }
    let answer = response(&mut rig, itt, (true, false), Ttt::NONE, "end");
    rig.give(&answer).unwrap();
    assert_eq!(
        rig.event(),
        Event::TextDone {
            answer: Ok(Bytes::from("part part part end"))
        }
    );
}

#[test]
fn more_to_come_needs_a_tag() {
    // RFC 7143 11.11.4
    let mut rig = rig();
    rig.session.text(rig.now, Vec::new()).unwrap();
    let itt = sent_text(&mut rig).itt;
    let answer = response(&mut rig, itt, (false, false), Ttt::NONE, "");
    let result = rig.give(&answer);
    assert!(matches!(rig.closed_with(result), Error::Malformed { .. }));
}

#[test]
fn an_endless_answer_is_cut_off_by_size_and_by_time() {
    let mut rig = Rig::new(|_| {}, |options| options.text_response_max_bytes = 1000);
    rig.session.text(rig.now, Vec::new()).unwrap();
    let itt = sent_text(&mut rig).itt;
    let text = "x".repeat(100);
    let mut result = Ok(());
    let mut pdus = 0;
    while result.is_ok() {
        let answer = response(&mut rig, itt, (false, false), Ttt(1), &text);
        result = rig.give(&answer);
        rig.sent();
        pdus += 1;
    }
    assert_eq!(pdus, 11);
    assert!(matches!(
        rig.closed_with(result),
        Error::TargetMisbehaved(Misbehaviour::TooMany { limit: 1000, .. })
    ));

    let mut rig = super::rig();
    rig.session.text(rig.now, Vec::new()).unwrap();
    let itt = sent_text(&mut rig).itt;
    for _ in 0..15 {
        assert!(!rig.session.is_closed());
        let answer = response(&mut rig, itt, (false, false), Ttt(1), "");
        rig.give(&answer).unwrap();
        rig.sent();
        rig.advance(Duration::from_secs(1));
    }
    let error = Error::TimedOut(Waiting::Text);
    assert_eq!(rig.event(), Event::Closed(CloseReason::Failed(error)));
}

#[test]
fn an_answer_to_nothing_ends_the_session() {
    let mut rig = rig();
    let answer = response(&mut rig, Itt(3), (true, false), Ttt::NONE, "");
    let result = rig.give(&answer);
    assert!(matches!(
        rig.closed_with(result),
        Error::TargetMisbehaved(Misbehaviour::UnknownTask { opcode: 0x24, .. })
    ));
}

#[test]
fn a_request_fits_into_one_pdu() {
    let mut rig = rig();
    assert!(matches!(
        rig.session.text(rig.now, vec![b'a'; 8193]),
        Err(Misuse::Command(_))
    ));
    rig.session.text(rig.now, vec![b'a'; 8192]).unwrap();
}

#[test]
fn a_logout_waits_for_the_exchange() {
    let mut rig = rig();
    rig.session.text(rig.now, Vec::new()).unwrap();
    let itt = sent_text(&mut rig).itt;
    rig.session.logout(rig.now);
    assert_eq!(rig.sent(), []);
    let answer = response(&mut rig, itt, (true, false), Ttt::NONE, "");
    rig.give(&answer).unwrap();
    assert!(matches!(rig.sent_one(), Pdu::LogoutRequest(_)));
}

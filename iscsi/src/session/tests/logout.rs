//! The end of a session: logout, and what asynchronous messages do (RFC 7143 8.1, 11.9, 11.14, 11.15).

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn sent_logout(rig: &mut Rig) -> LogoutRequest {
    match rig.sent_one() {
        Pdu::LogoutRequest(pdu) => pdu,
        other => panic!("{other:?}"),
    }
}

fn logout_response(rig: &mut Rig, itt: Itt, response: u8) -> Pdu {
    Pdu::LogoutResponse(LogoutResponse {
        response,
        itt,
        sn: rig.sn(),
        time2wait_s: 4,
        time2retain_s: 0,
    })
}

fn logged_out(cause: LogoutCause, response: Option<u8>, time2wait_s: u16) -> Event {
    Event::Closed(CloseReason::LoggedOut {
        cause,
        response,
        time2wait_s,
    })
}

#[test]
fn an_idle_session_logs_out_at_once() {
    // RFC 7143 11.14: reason 0 closes the session.
    for response in 0..=3 {
        let mut rig = rig();
        rig.session.logout(rig.now);
        rig.session.logout(rig.now);
        let pdu = sent_logout(&mut rig);
        assert!(pdu.immediate);
        assert_eq!((pdu.reason, pdu.cid), (0, Cid(0)));
        assert_eq!(rig.session.submit(no_data(1)), Err(Misuse::Closed));
        assert_eq!(rig.session.ping(rig.now), Err(Misuse::Closed));
        let answer = logout_response(&mut rig, pdu.itt, response);
        rig.give(&answer).unwrap();
        assert_eq!(
            rig.event(),
            logged_out(LogoutCause::User, Some(response), 4)
        );
        rig.is_dead();
    }
}

#[test]
fn what_was_submitted_before_a_logout_is_done_first() {
    let mut rig = rig();
    rig.max_cmd_sn = FIRST_CMD_SN;
    let mut login = rig.session.login().clone();
    login.max_cmd_sn = CmdSn(FIRST_CMD_SN);
    rig.session = Session::new(login, &normal(), SessionOptions::default(), rig.now);
    rig.session.submit(no_data(1)).unwrap();
    rig.session.submit(no_data(2)).unwrap();
    rig.session.logout(rig.now);
    for tag in 1..=2 {
        let itt = rig.sent_command().itt;
        rig.exp_cmd_sn += 1;
        rig.max_cmd_sn += 1;
        let good = rig.good(itt);
        rig.give(&good).unwrap();
        assert!(matches!(rig.event(), Event::TaskDone { tag: t, .. } if t == tag));
    }
    sent_logout(&mut rig);
}

#[test]
fn tasks_that_do_not_end_are_left_behind() {
    let mut rig = rig();
    rig.start_read(1, 512);
    rig.session.logout(rig.now);
    // The target stays alive, or the ping would end it first.
    for _ in 0..15 {
        assert_eq!(rig.sent(), []);
        rig.advance(SECOND);
        let nop = rig.nop_in(Itt::NONE, Ttt::NONE);
        rig.give(&nop).unwrap();
    }
    let pdu = sent_logout(&mut rig);
    let answer = logout_response(&mut rig, pdu.itt, 0);
    rig.give(&answer).unwrap();
    assert!(matches!(rig.event(), Event::Closed(_)));
    assert_eq!(rig.session.take_unfinished().len(), 1);
}

#[test]
fn an_answer_may_still_come_after_the_logout_was_sent() {
    let mut rig = Rig::new(|_| {}, |options| options.drain_timeout = Duration::ZERO);
    rig.session.submit(no_data(1)).unwrap();
    let itt = rig.sent_command().itt;
    rig.session.logout(rig.now);
    rig.advance(Duration::ZERO);
    sent_logout(&mut rig);
    // Nothing leaves after a Logout, not even a ping reply.
    let ping = rig.nop_in(Itt::NONE, Ttt(5));
    rig.give(&ping).unwrap();
    assert_eq!(rig.sent(), []);
    let good = rig.good(itt);
    rig.give(&good).unwrap();
    assert_eq!(rig.outcome(), completed(&[]));
}

#[test]
fn a_target_that_closes_or_stays_silent_has_logged_us_out_too() {
    for silent in [true, false] {
        let mut rig = rig();
        rig.session.logout(rig.now);
        sent_logout(&mut rig);
        if silent {
            rig.advance(14 * SECOND);
            assert!(!rig.session.is_closed());
            rig.advance(SECOND);
        } else {
            rig.session.handle_lost(std::io::ErrorKind::UnexpectedEof);
        }
        assert_eq!(rig.event(), logged_out(LogoutCause::User, None, 2));
        rig.is_dead();
    }
}

#[test]
fn a_cut_before_the_logout_is_a_failure() {
    let mut rig = rig();
    rig.start_read(1, 512);
    rig.session.logout(rig.now);
    let kind = std::io::ErrorKind::ConnectionReset;
    rig.session.handle_lost(kind);
    rig.session.handle_lost(kind);
    assert_eq!(
        rig.event(),
        Event::Closed(CloseReason::Failed(Error::Lost(kind)))
    );
    rig.is_dead();
}

#[test]
fn a_logout_response_without_request_ends_the_session() {
    let mut rig = rig();
    let itt = rig.start_read(1, 512).itt;
    let answer = logout_response(&mut rig, itt, 0);
    let result = rig.give(&answer);
    assert!(matches!(
        rig.closed_with(result),
        Error::TargetMisbehaved(Misbehaviour::UnknownTask { opcode: 0x26, .. })
    ));
}

#[test]
fn the_target_asks_for_a_logout() {
    // RFC 7143 11.9.1, event 1: no new commands, those that run may end, Logout within P3.
    let mut rig = rig();
    rig.session.submit(no_data(1)).unwrap();
    let itt = rig.sent_command().itt;
    rig.session.submit(no_data(2)).unwrap();
    let message = rig.async_message(1, [0, 0, 10], &[]);
    rig.give(&message).unwrap();
    assert_eq!(
        rig.event(),
        Event::LogoutRequested {
            cause: LogoutCause::Target,
            within: 10 * SECOND
        }
    );
    assert_eq!(rig.session.submit(no_data(3)), Err(Misuse::Closed));
    assert_eq!(rig.sent(), [], "the queued command stays");
    rig.exp_cmd_sn += 1;
    let good = rig.good(itt);
    rig.give(&good).unwrap();
    assert_eq!(rig.outcome(), completed(&[]));
    let pdu = sent_logout(&mut rig);
    let answer = logout_response(&mut rig, pdu.itt, 0);
    rig.give(&answer).unwrap();
    assert_eq!(rig.event(), logged_out(LogoutCause::Target, Some(0), 4));
    let unfinished = rig.session.take_unfinished();
    assert_eq!(unfinished.len(), 1);
    assert_eq!((unfinished[0].command.tag, unfinished[0].sent), (2, false));
}

#[test]
fn the_logout_leaves_within_the_time_that_the_target_gives() {
    let mut rig = rig();
    rig.start_read(1, 512);
    let message = rig.async_message(1, [0, 0, 4], &[]);
    rig.give(&message).unwrap();
    assert_eq!(rig.sent(), []);
    rig.advance(3 * SECOND);
    sent_logout(&mut rig);
}

#[test]
fn after_the_request_a_missing_lun_is_a_matter_of_the_path() {
    // Targets that are about to move a volume fail commands so between the request (RFC 7143 11.9.1,
    // event 1) and the logout, or reject them with 0c; neither was executed.
    let sense = [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x25, 0, 0, 0, 0, 0];
    let mut rig = rig();
    for tag in 0..3 {
        rig.session.submit(no_data(tag)).unwrap();
    }
    let commands: Vec<ScsiCommand> = rig
        .sent()
        .into_iter()
        .map(|pdu| match pdu {
            Pdu::ScsiCommand(pdu) => pdu,
            other => panic!("{other:?}"),
        })
        .collect();
    let answer = |rig: &mut Rig, itt| {
        let mut response = rig.response(itt, CHECK_CONDITION, Residual::None);
        response.data = sense_data(&sense);
        rig.give(&Pdu::ScsiResponse(response)).unwrap();
    };
    // Before the request it is an answer like any other.
    answer(&mut rig, commands[0].itt);
    assert!(matches!(
        rig.outcome(),
        TaskOutcome::Completed { status: 2, .. }
    ));
    let message = rig.async_message(1, [0, 0, 10], &[]);
    rig.give(&message).unwrap();
    answer(&mut rig, commands[1].itt);
    let reject = rig.reject(0x0c, &Pdu::ScsiCommand(commands[2].clone()));
    rig.give(&reject).unwrap();
    assert_eq!(rig.events().len(), 1, "only the request");
    let pdu = sent_logout(&mut rig);
    let answer = logout_response(&mut rig, pdu.itt, 0);
    rig.give(&answer).unwrap();
    assert_eq!(rig.event(), logged_out(LogoutCause::Target, Some(0), 4));
    let unfinished = rig.session.take_unfinished();
    let left: Vec<_> = unfinished.iter().map(|u| (u.command.tag, u.sent)).collect();
    assert_eq!(left, [(1, false), (2, false)]);
}

#[test]
fn a_second_answer_for_a_command_that_was_put_back_is_one_too_many() {
    let mut rig = rig();
    let command = rig.start_read(1, 512);
    let reject = rig.reject(0x0c, &Pdu::ScsiCommand(command.clone()));
    rig.give(&reject).unwrap();
    rig.events();
    let good = rig.good(command.itt);
    let result = rig.give(&good);
    assert!(matches!(
        rig.closed_with(result),
        Error::TargetMisbehaved(Misbehaviour::UnknownTask { .. })
    ));
}

#[test]
fn nothing_follows_the_logout_not_even_unsolicited_data() {
    // RFC 7143 11.14
    let mut rig = Rig::new(
        |keys| {
            keys.initial_r2t = false;
            keys.immediate_data = false;
            keys.peer_max_recv_data_segment_bytes = 512;
        },
        |options| {
            options.transmit_queue_bytes = 1;
            options.drain_timeout = Duration::ZERO;
        },
    );
    rig.session.submit(write(1, &pattern(4096))).unwrap();
    let mut out = SendQueue::new();
    rig.session.poll_transmit(rig.now, &mut out);
    assert_eq!(out.len(), 48, "the command alone");
    rig.session.logout(rig.now);
    rig.advance(Duration::ZERO);
    sent_logout(&mut rig);
}

#[test]
fn a_wish_to_negotiate_is_answered_by_a_new_login() {
    // RFC 7143 11.9.1, event 4
    let mut rig = rig();
    let message = rig.async_message(4, [0, 0, 3], &[]);
    rig.give(&message).unwrap();
    assert!(matches!(
        rig.event(),
        Event::LogoutRequested {
            cause: LogoutCause::Negotiation,
            ..
        }
    ));
    sent_logout(&mut rig);
}

#[test]
fn an_announced_drop_ends_the_session() {
    // RFC 7143 11.9.1, events 2 and 3: Time2Wait, Time2Retain
    for event in [2, 3] {
        let mut rig = rig();
        rig.start_read(1, 512);
        let message = rig.async_message(event, [0, 7, 8], &[]);
        rig.give(&message).unwrap();
        assert_eq!(
            rig.event(),
            Event::Closed(CloseReason::DroppedByTarget {
                time2wait_s: 7,
                time2retain_s: 8
            })
        );
        rig.is_dead();
        assert_eq!(rig.session.take_unfinished().len(), 1);
    }
}

#[test]
fn a_drop_of_another_connection_is_not_ours() {
    let mut rig = rig();
    let message = rig.async_message(2, [1, 7, 8], &[]);
    rig.give(&message).unwrap();
    assert_eq!(rig.events(), []);
    assert!(!rig.session.is_closed());
}

#[test]
fn a_scsi_event_brings_sense() {
    // RFC 7143 11.9.1, event 0: reported, and the session goes on.
    let mut rig = rig();
    let sense = [
        0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x3f, 0x0e, 0, 0, 0, 0,
    ];
    let data = sense_data(&sense).to_bytes();
    let message = rig.async_message(0, [0; 3], &data);
    rig.give(&message).unwrap();
    let Event::Async(event) = rig.event() else {
        panic!();
    };
    assert_eq!(
        event,
        AsyncEvent::Scsi {
            lun: lun(),
            sense: Bytes::copy_from_slice(&sense)
        }
    );
    let (unit, parsed) = event.unit_attention().unwrap();
    assert_eq!(
        (unit, parsed.code),
        (lun(), crate::scsi::Code::REPORTED_LUNS_CHANGED)
    );
    let nonsense = AsyncEvent::Scsi {
        lun: lun(),
        sense: Bytes::from_static(&[0x11]),
    };
    assert_eq!(nonsense.unit_attention(), None);
    // It is acknowledged by the next request.
    assert_eq!(
        rig.start_read(1, 512).exp_stat_sn,
        StatSn(FIRST_STAT_SN + 1)
    );
}

#[test]
fn task_termination_is_acknowledged_with_its_lun() {
    // RFC 7143 11.9.1, event 5
    let mut rig = rig();
    let message = rig.async_message(5, [0; 3], &[]);
    rig.give(&message).unwrap();
    assert_eq!(
        rig.event(),
        Event::Async(AsyncEvent::TaskTermination { lun: lun() })
    );
    let Pdu::NopOut(pdu) = rig.sent_one() else {
        panic!();
    };
    assert!(pdu.itt.is_none() && pdu.ttt.is_none() && pdu.immediate);
    assert_eq!(pdu.lun, lun());
}

#[test]
fn other_events_are_reported_and_harmless() {
    let mut rig = rig();
    for event in [6, 100, 248, 255] {
        let message = rig.async_message(event, [1, 2, 3], &[]);
        rig.give(&message).unwrap();
        assert_eq!(
            rig.event(),
            Event::Async(AsyncEvent::Other {
                event,
                vendor_code: 0,
                parameters: [1, 2, 3]
            })
        );
    }
    assert_eq!(rig.session.counters().async_messages, 4);
}

#[test]
fn events_that_nobody_fetches_are_bounded() {
    let mut rig = Rig::new(|_| {}, |options| options.events_max = 3);
    for _ in 0..10 {
        let message = rig.async_message(0, [0; 3], &[]);
        rig.give(&message).unwrap();
    }
    assert_eq!(rig.session.counters().async_dropped, 7);
    assert_eq!(rig.events().len(), 3);
}

//! NOP in both directions (RFC 7143 11.18, 11.19).

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn sent_ping(rig: &mut Rig) -> NopOut {
    match rig.sent_one() {
        Pdu::NopOut(pdu) => pdu,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_ping_of_the_target_is_answered_with_its_lun_and_tag() {
    // RFC 7143 11.18: I=1, ITT reserved, all eight LUN bytes and the TTT copied.
    let mut rig = rig();
    let ping = rig.nop_in(Itt::NONE, Ttt(0x1122_3344));
    rig.give(&ping).unwrap();
    assert_eq!(
        sent_ping(&mut rig),
        NopOut {
            immediate: true,
            lun: Lun([0, 7, 0, 0, 0, 0, 0, 9]),
            itt: Itt::NONE,
            ttt: Ttt(0x1122_3344),
            cmd_sn: CmdSn(FIRST_CMD_SN),
            exp_stat_sn: StatSn(FIRST_STAT_SN),
            data: Payload::new(),
        }
    );
    assert_eq!(rig.events(), []);
    assert_eq!(rig.session.counters().target_pings, 1);
}

#[test]
fn silence_is_broken_by_a_ping_and_its_answer_is_life() {
    let mut rig = rig();
    assert_eq!(rig.session.poll_timeout(), Some(rig.now + 2 * SECOND));
    rig.advance(2 * SECOND);
    let ping = sent_ping(&mut rig);
    assert!(ping.immediate && ping.ttt.is_none() && !ping.itt.is_none());
    assert_eq!(ping.cmd_sn, CmdSn(FIRST_CMD_SN));
    rig.advance(2 * SECOND);
    let pong = rig.nop_in(ping.itt, Ttt::NONE);
    rig.give(&pong).unwrap();
    assert_eq!(
        rig.event(),
        Event::Pong {
            round_trip: 2 * SECOND
        }
    );
    // Immediate: it took no CmdSN.
    assert_eq!(rig.start_read(1, 1).cmd_sn, CmdSn(FIRST_CMD_SN));
    rig.advance(SECOND);
    assert_eq!(rig.sent(), []);
    rig.advance(SECOND);
    assert_ne!(sent_ping(&mut rig).itt, ping.itt);
}

#[test]
fn no_answer_means_dead() {
    let mut rig = rig();
    // RFC 7143 11.18; with the defaults a stalled link is found within 7 s, commands in flight or not.
    rig.start_read(1, 512);
    rig.advance(2 * SECOND);
    sent_ping(&mut rig);
    rig.advance(5 * SECOND - Duration::from_millis(1));
    assert!(!rig.session.is_closed());
    rig.advance(Duration::from_millis(1));
    let error = Error::TimedOut(crate::error::Waiting::Ping);
    assert_eq!(rig.event(), Event::Closed(CloseReason::Failed(error)));
    rig.is_dead();
    assert_eq!(rig.session.take_unfinished().len(), 1);
}

#[test]
fn a_busy_link_is_never_pinged() {
    let mut rig = rig();
    for tag in 0..100 {
        rig.session.submit(no_data(tag)).unwrap();
        let itt = rig.sent_command().itt;
        rig.advance(SECOND);
        let good = rig.good(itt);
        rig.give(&good).unwrap();
        assert_eq!(rig.outcome(), completed(&[]));
    }
    assert_eq!(rig.session.counters().pings, 0);
}

#[test]
fn a_window_that_stays_closed_is_asked_about() {
    // RFC 7143 4.2.2.1: the target must tell when it opens the window again; one that forgets is asked.
    let mut rig = rig();
    rig.max_cmd_sn = FIRST_CMD_SN;
    let mut login = rig.session.login().clone();
    login.max_cmd_sn = CmdSn(FIRST_CMD_SN);
    rig.session = Session::new(login, &normal(), SessionOptions::default(), rig.now);
    rig.session.submit(no_data(1)).unwrap();
    rig.session.submit(no_data(2)).unwrap();
    rig.sent_command();
    // The link is alive all the time: the target pings, and its numbers stay as they are.
    let mut pings = Vec::new();
    for _ in 0..6 {
        rig.advance(SECOND);
        pings.extend(rig.sent());
        let nop = rig.nop_in(Itt::NONE, Ttt::NONE);
        rig.give(&nop).unwrap();
    }
    let [Pdu::NopOut(ping)] = &pings[..] else {
        panic!("{pings:?}");
    };
    rig.exp_cmd_sn += 1;
    rig.max_cmd_sn += 1;
    let pong = rig.nop_in(ping.itt, Ttt::NONE);
    rig.give(&pong).unwrap();
    assert_eq!(rig.sent_command().cmd_sn, CmdSn(FIRST_CMD_SN + 1));
    assert_eq!(rig.session.counters().window_closed, 1);
}

#[test]
fn a_target_that_answers_pings_and_nothing_else_is_found_by_the_deadline() {
    let mut rig = rig();
    rig.session
        .submit(Command {
            deadline: Some(rig.now + 30 * SECOND),
            ..read(1, 512)
        })
        .unwrap();
    rig.sent_command();
    let mut aborts = 0;
    for _ in 0..31 {
        rig.advance(SECOND);
        for pdu in rig.sent() {
            match pdu {
                Pdu::NopOut(ping) => {
                    let pong = rig.nop_in(ping.itt, Ttt::NONE);
                    rig.give(&pong).unwrap();
                }
                Pdu::TaskManagementRequest(_) => aborts += 1,
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!((aborts, rig.session.counters().overdue), (1, 1));
    assert!(!rig.session.is_closed());
}

#[test]
fn any_byte_is_life() {
    let mut rig = rig();
    let itt = rig.start_read(1, 4096).itt;
    rig.advance(5 * SECOND);
    let ping = sent_ping(&mut rig);
    // The answer is behind a slow Data-In, which trickles in.
    let mut queue = SendQueue::new();
    rig.last_data_in(itt, 0, 0, &pattern(4096), Residual::None)
        .emit(&mut queue, Digests::NONE);
    rig.nop_in(ping.itt, Ttt::NONE)
        .emit(&mut queue, Digests::NONE);
    for part in queue.to_vec().chunks(100) {
        rig.advance(4 * SECOND);
        assert!(!rig.session.is_closed());
        rig.input.extend(part);
        rig.session.handle_input(rig.now, &mut rig.input).unwrap();
    }
    assert_eq!(rig.events().len(), 2);
    assert_eq!(rig.session.counters().pings, 1);
}

#[test]
fn pings_can_be_switched_off_and_are_off_in_discovery() {
    // RFC 7143 4.3: a discovery session carries Text and Logout only.
    let mut rig = Rig::new(|_| {}, |options| options.ping_interval = None);
    assert_eq!(rig.session.poll_timeout(), None);
    rig.advance(1000 * SECOND);
    assert_eq!(rig.sent(), []);
    let rig = Rig::of_kind(&SessionKind::Discovery, 1, |_| {}, |_| {});
    assert_eq!(rig.session.poll_timeout(), None);
}

#[test]
fn the_user_may_ping_once_at_a_time() {
    let mut rig = rig();
    rig.session.ping(rig.now).unwrap();
    rig.session.ping(rig.now).unwrap();
    let ping = sent_ping(&mut rig);
    let pong = rig.nop_in(ping.itt, Ttt::NONE);
    rig.give(&pong).unwrap();
    assert!(matches!(rig.event(), Event::Pong { .. }));
    rig.session.ping(rig.now).unwrap();
    sent_ping(&mut rig);
}

#[test]
fn an_answer_to_no_ping_ends_the_session() {
    let mut rig = rig();
    let itt = rig.start_read(1, 512).itt;
    for itt in [itt, Itt(0x1234_5678)] {
        let mut login = rig.session.login().clone();
        login.exp_stat_sn = StatSn(rig.stat_sn);
        if itt == Itt(0x1234_5678) {
            rig.session = Session::new(login, &normal(), SessionOptions::default(), rig.now);
        }
        let pong = rig.nop_in(itt, Ttt::NONE);
        let result = rig.give(&pong);
        assert_eq!(
            rig.closed_with(result),
            Error::TargetMisbehaved(Misbehaviour::UnknownTask { opcode: 0x20, itt })
        );
    }
}

#[test]
fn a_ping_with_both_tags_is_a_format_error() {
    // RFC 7143 11.19.1
    let mut rig = rig();
    let nop = rig.nop_in(Itt(1), Ttt(2));
    let result = rig.give(&nop);
    assert!(matches!(rig.closed_with(result), Error::Malformed { .. }));
}

#[test]
fn a_target_that_asks_and_never_reads_is_dropped() {
    let mut rig = Rig::new(|_| {}, |options| options.control_queue_max = 16);
    let ping = rig.nop_in(Itt::NONE, Ttt(1));
    let mut result = Ok(());
    let mut pings = 0;
    while result.is_ok() {
        result = rig.give(&ping);
        // The socket takes nothing.
        rig.session.poll_transmit(rig.now, &mut rig.out);
        pings += 1;
        assert!(pings < 100_000, "no bound");
        assert!(rig.out.len() <= (1 << 20) + 16 * 1024 + 48);
    }
    assert!(matches!(
        result,
        Err(Error::TargetMisbehaved(Misbehaviour::TooMany {
            limit: 16,
            ..
        }))
    ));
}

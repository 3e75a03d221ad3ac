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
    assert_eq!(rig.session.poll_timeout(), Some(rig.now + 5 * SECOND));
    rig.advance(5 * SECOND);
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
    rig.advance(4 * SECOND);
    assert_eq!(rig.sent(), []);
    rig.advance(SECOND);
    assert_ne!(sent_ping(&mut rig).itt, ping.itt);
}

#[test]
fn no_answer_means_dead() {
    let mut rig = rig();
    rig.start_read(1, 512);
    rig.advance(5 * SECOND);
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

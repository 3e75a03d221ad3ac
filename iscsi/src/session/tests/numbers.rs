//! StatSN: who consumes one, and what a wrong one means (RFC 7143 4.2.2.2).

use super::*;

#[test]
fn these_consume_a_stat_sn_and_those_do_not() {
    // RFC 7143 11.4.8, 11.8.3, 11.9, 11.17, 11.19.3
    let mut rig = Rig::new(|keys| keys.immediate_data = false, |_| {});
    rig.session.submit(write(1, &pattern(512))).unwrap();
    let itt = rig.sent_command().itt;
    let start = rig.session.connection.exp_stat_sn;

    let r2t = rig.r2t(itt, 1, 0, 0, 512);
    rig.give(&Pdu::R2t(r2t)).unwrap();
    let ping = rig.nop_in(Itt::NONE, Ttt(9));
    rig.give(&ping).unwrap();
    let update = rig.nop_in(Itt::NONE, Ttt::NONE);
    rig.give(&update).unwrap();
    assert_eq!(rig.session.connection.exp_stat_sn, start);

    let async_message = rig.async_message(248, [0; 3], &[]);
    rig.give(&async_message).unwrap();
    assert_eq!(rig.session.connection.exp_stat_sn, start.next());
    let refused = Pdu::NopOut(NopOut {
        immediate: true,
        lun: lun(),
        itt: Itt::NONE,
        ttt: Ttt(9),
        cmd_sn: CmdSn(0),
        exp_stat_sn: StatSn(0),
        data: Payload::new(),
    });
    let reject = rig.reject(4, &refused);
    rig.give(&reject).unwrap();
    let good = rig.good(itt);
    // The data was not sent yet, but that is not the point here.
    rig.sent();
    rig.give(&good).unwrap();
    assert_eq!(rig.session.connection.exp_stat_sn, StatSn(start.0 + 3));
    // A gap anywhere would have ended the session.
    assert!(!rig.session.is_closed());
}

#[test]
fn a_gap_ends_the_session() {
    // RFC 7143 7.1.4.2: at ERL 0 a lost response is not asked for again.
    let mut rig = rig();
    let itt = rig.start_read(1, 512).itt;
    rig.stat_sn += 1;
    let good = rig.good(itt);
    let result = rig.give(&good);
    assert_eq!(
        rig.closed_with(result),
        Error::TargetMisbehaved(Misbehaviour::StatSnGap {
            expected: StatSn(FIRST_STAT_SN),
            got: StatSn(FIRST_STAT_SN + 1)
        })
    );
}

#[test]
fn a_duplicate_of_what_is_done_is_ignored() {
    let mut rig = rig();
    rig.session.submit(no_data(1)).unwrap();
    let itt = rig.sent_command().itt;
    let good = rig.good(itt);
    rig.give(&good).unwrap();
    assert_eq!(rig.outcome(), completed(&[]));
    rig.give(&good).unwrap();
    assert_eq!(rig.events(), []);
    assert_eq!(rig.session.counters().duplicates, 1);
}

#[test]
fn an_old_number_for_a_live_task_is_a_broken_sequence() {
    // Ignoring it would leave the task open for ever.
    let mut rig = rig();
    rig.session.submit(no_data(1)).unwrap();
    let itt = rig.sent_command().itt;
    rig.stat_sn = rig.stat_sn.wrapping_sub(1);
    let good = rig.good(itt);
    let result = rig.give(&good);
    assert!(matches!(
        rig.closed_with(result),
        Error::TargetMisbehaved(Misbehaviour::StatSnGap { .. })
    ));
}

#[test]
fn stat_sn_wraps() {
    let mut rig = rig();
    rig.stat_sn = u32::MAX;
    rig.session.connection.exp_stat_sn = StatSn(u32::MAX);
    for tag in 0..3 {
        rig.session.submit(no_data(tag)).unwrap();
        let itt = rig.sent_command().itt;
        rig.exp_cmd_sn += 1;
        let good = rig.good(itt);
        rig.give(&good).unwrap();
        assert_eq!(rig.outcome(), completed(&[]));
    }
    assert_eq!(rig.session.connection.exp_stat_sn, StatSn(2));
}

#[test]
fn tags_are_not_reused_at_once_and_never_reserved() {
    // RFC 7143 11.2.1.8
    let mut rig = rig();
    rig.session.table.age(1, 0xfffd);
    let mut seen = std::collections::HashSet::new();
    for tag in 0..6 {
        rig.session.submit(no_data(tag)).unwrap();
        let itt = rig.sent_command().itt;
        assert!(!itt.is_none());
        assert!(seen.insert(itt.0));
        rig.exp_cmd_sn += 1;
        let good = rig.good(itt);
        rig.give(&good).unwrap();
        rig.outcome();
    }
}

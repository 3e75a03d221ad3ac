//! Command numbering (RFC 7143 4.2.2.1).

use super::*;

#[test]
fn commands_take_numbers_in_order_of_submission() {
    let mut rig = rig();
    for tag in 0..3 {
        rig.session.submit(read(tag, 512)).unwrap();
    }
    let sns: Vec<u32> = rig
        .sent()
        .iter()
        .map(|pdu| match pdu {
            Pdu::ScsiCommand(pdu) => pdu.cmd_sn.0,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(sns, [FIRST_CMD_SN, FIRST_CMD_SN + 1, FIRST_CMD_SN + 2]);
    assert_eq!(rig.session.running(), 3);
}

#[test]
fn a_closed_window_holds_commands_and_nothing_else() {
    let mut rig = rig();
    rig.max_cmd_sn = FIRST_CMD_SN;
    let mut login = rig.session.login().clone();
    login.max_cmd_sn = CmdSn(FIRST_CMD_SN);
    rig.session = Session::new(login, &normal(), SessionOptions::default(), rig.now);
    for tag in 0..3 {
        rig.session.submit(read(tag, 512)).unwrap();
    }
    let first = rig.sent_command();
    assert_eq!((rig.session.queued(), rig.session.window_room()), (2, 0));
    assert_eq!(rig.session.counters().window_closed, 1);

    // A ping of the target is answered all the same, as immediate requests need no window.
    let ping = rig.nop_in(Itt::NONE, Ttt(77));
    rig.give(&ping).unwrap();
    match rig.sent_one() {
        Pdu::NopOut(pdu) => {
            assert!(pdu.immediate);
            assert_eq!(pdu.cmd_sn, CmdSn(FIRST_CMD_SN + 1));
        }
        other => panic!("{other:?}"),
    }

    // The response of the first one opens the window by one.
    rig.exp_cmd_sn += 1;
    rig.max_cmd_sn += 1;
    let sn = rig.sn();
    let data = pattern(512);
    rig.give(&Pdu::DataIn(DataIn {
        final_: true,
        status: Some(GOOD),
        sn,
        ..rig.data_in(first.itt, 0, 0, &data)
    }))
    .unwrap();
    assert_eq!(rig.outcome(), completed(&data));
    let second = rig.sent_command();
    assert_eq!(second.cmd_sn, CmdSn(FIRST_CMD_SN + 1));
    assert_eq!(second.exp_stat_sn, StatSn(FIRST_STAT_SN + 1));

    // A NOP-In with both tags reserved only carries the window (RFC 7143 11.19).
    rig.exp_cmd_sn += 1;
    rig.max_cmd_sn += 10;
    let update = rig.nop_in(Itt::NONE, Ttt::NONE);
    rig.give(&update).unwrap();
    assert_eq!(rig.sent_command().cmd_sn, CmdSn(FIRST_CMD_SN + 2));
}

#[test]
fn numbers_wrap() {
    let mut rig = Rig::of_kind(&normal(), 0xffff_fffe, |_| {}, |_| {});
    for tag in 0..4 {
        rig.session.submit(no_data(tag)).unwrap();
    }
    let sns: Vec<u32> = rig
        .sent()
        .iter()
        .map(|pdu| match pdu {
            Pdu::ScsiCommand(pdu) => pdu.cmd_sn.0,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(sns, [0xffff_fffe, 0xffff_ffff, 0, 1]);
}

#[test]
fn an_immediate_command_passes_the_window_and_takes_no_number() {
    let mut rig = rig();
    rig.session.submit(no_data(1)).unwrap();
    rig.session
        .submit(Command {
            immediate: true,
            ..no_data(2)
        })
        .unwrap();
    let pdus = rig.sent();
    let [Pdu::ScsiCommand(immediate), Pdu::ScsiCommand(normal)] = &pdus[..] else {
        panic!("{pdus:?}");
    };
    assert!(immediate.immediate && !normal.immediate);
    assert_eq!(immediate.cmd_sn, normal.cmd_sn);
}

#[test]
fn acknowledging_what_was_never_sent_ends_the_session() {
    let mut rig = rig();
    rig.exp_cmd_sn += 1;
    let nop = rig.nop_in(Itt::NONE, Ttt::NONE);
    let result = rig.give(&nop);
    assert!(matches!(
        rig.closed_with(result),
        Error::TargetMisbehaved(Misbehaviour::Exchange(_))
    ));
}

#[test]
fn the_queue_has_bounds_in_commands_and_bytes() {
    let mut rig = Rig::new(
        |_| {},
        |options| {
            options.tasks_max = 3;
            options.task_bytes_max = 4096;
        },
    );
    rig.session.submit(read(0, 4096)).unwrap();
    assert_eq!(
        rig.session.submit(read(1, 1)),
        Err(Misuse::QueueFull { limit: 3 })
    );
    rig.session.submit(no_data(2)).unwrap();
    rig.session.submit(no_data(3)).unwrap();
    assert_eq!(
        rig.session.submit(no_data(4)),
        Err(Misuse::QueueFull { limit: 3 })
    );
    let pdus = rig.sent();
    let Pdu::ScsiCommand(first) = &pdus[0] else {
        panic!("{pdus:?}");
    };
    let first = first.itt;
    rig.exp_cmd_sn += 3;
    let done = rig.last_data_in(first, 0, 0, &pattern(4096), Residual::None);
    rig.give(&done).unwrap();
    rig.session.submit(read(5, 4096)).unwrap();
}

#[test]
fn a_discovery_session_takes_no_commands() {
    // RFC 7143 4.3
    let mut rig = Rig::of_kind(&SessionKind::Discovery, 1, |_| {}, |_| {});
    assert!(matches!(
        rig.session.submit(no_data(1)),
        Err(Misuse::Command(_))
    ));
}

//! What is handed back when a session ends.

use super::*;

#[test]
fn unfinished_commands_come_back_in_order_with_their_data() {
    // RFC 7143 4.2.2.1: across the wrap of CmdSN too.
    let mut rig = Rig::of_kind(&normal(), 0xffff_fffe, |_| {}, |_| {});
    let mut commands = Vec::new();
    for tag in 0..5 {
        let command = write(tag, &pattern(100 + tag as usize));
        commands.push(command.clone());
        rig.session.submit(command).unwrap();
    }
    let sent: Vec<Itt> = rig
        .sent()
        .iter()
        .map(|pdu| match pdu {
            Pdu::ScsiCommand(pdu) => pdu.itt,
            other => panic!("{other:?}"),
        })
        .collect();
    // The third is done, the first two are acknowledged; two more are in the queue.
    rig.exp_cmd_sn = rig.exp_cmd_sn.wrapping_add(2);
    let good = rig.good(sent[2]);
    rig.give(&good).unwrap();
    for tag in 5..7 {
        rig.session.submit(no_data(tag)).unwrap();
    }
    rig.session.handle_lost(std::io::ErrorKind::ConnectionReset);
    let done = rig.events();
    assert_eq!(done.len(), 2);
    let unfinished = rig.session.into_unfinished();
    let summary: Vec<_> = unfinished
        .iter()
        .map(|u| {
            (
                u.command.tag,
                u.sent,
                u.acknowledged,
                u.cmd_sn.map(|sn| sn.0),
            )
        })
        .collect();
    assert_eq!(
        summary,
        [
            (0, true, true, Some(0xffff_fffe)),
            (1, true, true, Some(0xffff_ffff)),
            (3, true, false, Some(1)),
            (4, true, false, Some(2)),
            (5, false, false, None),
            (6, false, false, None),
        ]
    );
    for entry in &unfinished[..4] {
        assert_eq!(entry.command, commands[entry.command.tag as usize]);
    }
}

#[test]
fn every_command_has_one_end() {
    // Done, or handed back; never both, never neither.
    let mut rig = rig();
    for tag in 0..10 {
        rig.session.submit(no_data(tag)).unwrap();
    }
    let mut commands = rig.sent().into_iter();
    for _ in 0..4 {
        let Some(Pdu::ScsiCommand(command)) = commands.next() else {
            panic!();
        };
        let good = rig.good(command.itt);
        rig.give(&good).unwrap();
    }
    let unfinished = rig.session.take_unfinished();
    assert_eq!(rig.session.take_unfinished(), []);
    let mut tags: Vec<u64> = unfinished.iter().map(|u| u.command.tag).collect();
    for event in rig.events() {
        match event {
            Event::TaskDone { tag, .. } => tags.push(tag),
            Event::Closed(_) => {}
            other => panic!("{other:?}"),
        }
    }
    tags.sort_unstable();
    assert_eq!(tags, (0..10).collect::<Vec<_>>());
    assert_eq!((rig.session.running(), rig.session.queued()), (0, 0));
}

#[test]
fn a_command_that_did_not_leave_as_a_whole_was_not_sent() {
    // Three writes with immediate data are built; the socket takes all of the first, and of the second all
    // but one byte. Unsolicited data and R2Ts do not matter: the command PDU does.
    let mut rig = rig();
    for tag in 0..3 {
        rig.session.submit(write(tag, &pattern(600))).unwrap();
    }
    let mut out = SendQueue::new();
    rig.session.poll_transmit(rig.now, &mut out);
    let each = out.len() / 3;
    assert_eq!(each, 48 + 600);
    out.advance(each);
    rig.session.submit(write(3, &pattern(10))).unwrap();
    rig.session.poll_transmit(rig.now, &mut out);
    out.advance(each - 1);
    rig.session.submit(no_data(4)).unwrap();
    rig.session.discard_unwritten(out.len());
    assert!(rig.session.is_closed());
    let sent: Vec<_> = rig
        .session
        .take_unfinished()
        .iter()
        .map(|unfinished| (unfinished.command.tag, unfinished.sent))
        .collect();
    assert_eq!(
        sent,
        [(0, true), (1, false), (2, false), (3, false), (4, false)]
    );
}

#[test]
fn the_last_byte_makes_a_command_sent() {
    let mut rig = rig();
    rig.session.submit(write(0, &pattern(600))).unwrap();
    let mut out = SendQueue::new();
    rig.session.poll_transmit(rig.now, &mut out);
    out.advance(out.len());
    rig.session.discard_unwritten(0);
    assert!(rig.session.take_unfinished()[0].sent);
}

#[test]
fn what_the_target_acknowledged_was_sent_whatever_we_think() {
    let mut rig = rig();
    rig.start_read(0, 512);
    rig.exp_cmd_sn += 1;
    let nop = rig.nop_in(Itt::NONE, Ttt::NONE);
    rig.give(&nop).unwrap();
    rig.session.discard_unwritten(48);
    assert!(rig.session.take_unfinished()[0].sent);
}

#[test]
fn an_abort_without_an_answer_says_nothing_about_the_command() {
    // RFC 7143 11.6.1: only the answer to the abort does.
    let mut rig = rig();
    rig.start_read(0, 512);
    rig.session.abort(rig.now, 0).unwrap();
    rig.sent();
    rig.session.handle_lost(std::io::ErrorKind::ConnectionReset);
    let unfinished = rig.session.take_unfinished();
    assert_eq!((unfinished.len(), unfinished[0].sent), (1, true));
}

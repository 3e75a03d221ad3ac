//! CmdSN, the command window, pings (RFC 7143 4.2.2, 11.18, 11.19).

use std::time::Duration;

use super::*;
use crate::target::CloseReason;
use crate::target::faults::{CommandFault, FaultPlan, Filter, Rule};

fn small_window(window: u32) -> World {
    World::with(PortalSettings {
        window,
        ..PortalSettings::default()
    })
}

#[test]
fn commands_are_executed_in_cmd_sn_order() {
    let mut world = World::new();
    let mut client = world.login(Offer::default());
    let commands: Vec<_> = (0..4).map(|lba| client.read(lba, 1)).collect();
    for index in [3, 1, 2] {
        client.send(&mut world, commands[index].clone());
        assert!(client.recv(&mut world).is_none());
    }
    client.send(&mut world, commands[0].clone());
    for command in &commands {
        assert_eq!(client.recv_data(&mut world).itt, command.itt);
    }
    assert_eq!(world.portal.sessions().len(), 1);
}

/// Unsolicited data of a command that came early is kept for its turn.
#[test]
fn an_early_write_keeps_its_data() {
    let mut world = World::new();
    let mut client = world.login(Offer::default());
    let first = client.read(9, 1);
    let mut write = client.write(9, 2);
    let data = pattern(1024, 5);
    write.data = Payload::from(data[..512].to_vec());
    write.final_ = false;
    let itt = write.itt;
    client.send(&mut world, write);
    let rest = client.data_out(itt, Ttt::NONE, 0, 512, data[512..].to_vec(), true);
    client.send(&mut world, rest);
    assert!(client.recv(&mut world).is_none());
    assert!(world.unit().writes.is_empty());
    let before = world.unit().bytes[9 * 512..10 * 512].to_vec();
    client.send(&mut world, first);
    assert_eq!(client.recv_data(&mut world).data.to_bytes(), before);
    assert_eq!(client.recv_response(&mut world).status, 0);
    assert!(world.unit().bytes[9 * 512..11 * 512] == data[..]);
}

/// RFC 7143 4.2.2.1: silently ignored.
#[test]
fn commands_outside_of_the_window_are_ignored() {
    let mut world = small_window(4);
    let mut client = world.login(Offer::default());
    let mut beyond = client.read(0, 1);
    beyond.cmd_sn = client.max_cmd_sn.next();
    client.cmd_sn = CmdSn(client.cmd_sn.0 - 1);
    client.send(&mut world, beyond);
    assert!(client.recv(&mut world).is_none());
    let read = client.read(0, 1);
    client.send(&mut world, read.clone());
    assert_eq!(client.recv_data(&mut world).status, Some(0));
    client.send(&mut world, read);
    assert!(client.recv(&mut world).is_none(), "seen before");
    let id = client.id();
    assert_eq!(world.portal.counters(id).unwrap().ignored_commands, 2);
}

#[test]
fn unfinished_commands_close_the_window_and_responses_open_it() {
    let mut world = small_window(2);
    let mut client = world.login(Offer {
        initial_r2t: true,
        immediate_data: false,
        ..Offer::default()
    });
    let mut r2ts = Vec::new();
    for lba in [0, 1] {
        let write = client.write(lba, 1);
        client.send(&mut world, write);
        r2ts.push(client.recv_r2t(&mut world));
    }
    assert_eq!(client.max_cmd_sn.next(), client.cmd_sn, "closed");
    // Immediate commands need no room.
    let ping = client.ping(b"x");
    client.send(&mut world, ping);
    assert!(matches!(client.recv(&mut world), Some(Pdu::NopIn(_))));
    let data = vec![0; 512];
    client.serve(&mut world, &r2ts[0], &data);
    assert_eq!(client.recv_response(&mut world).status, 0);
    assert_eq!(client.max_cmd_sn, client.cmd_sn, "room for one");
}

/// A window that opens with nothing else to send is told by NOP-In (RFC 7143 4.2.2.1).
#[test]
fn a_frozen_window_closes_and_opens_again() {
    let mut world = small_window(2);
    let mut client = world.login(Offer::default());
    let id = client.id();
    world.portal.freeze_window(id, true);
    for lba in [0, 1] {
        let read = client.read(lba, 1);
        client.send(&mut world, read);
        client.recv_data(&mut world);
    }
    assert_eq!(client.max_cmd_sn.next(), client.cmd_sn);
    world.portal.freeze_window(id, false);
    match client.recv(&mut world) {
        Some(Pdu::NopIn(nop)) => assert!(nop.itt.is_none() && nop.ttt.is_none()),
        other => panic!("{other:?}"),
    }
    assert_eq!(client.max_cmd_sn, client.cmd_sn.next());
}

#[test]
fn immediate_commands_have_a_bound() {
    let mut world = World::with(PortalSettings {
        immediate_max: 2,
        ..PortalSettings::default()
    });
    let mut client = world.login(Offer::default());
    let id = client.id();
    let hold = Rule::new(
        Filter::any(),
        Rule::<()>::ALWAYS,
        CommandFault::HoldExecution,
    );
    world.portal.set_faults(
        id,
        FaultPlan {
            commands: vec![hold],
            ..FaultPlan::default()
        },
    );
    for _ in 0..3 {
        let mut read = client.read(0, 1);
        client.cmd_sn = CmdSn(client.cmd_sn.0 - 1);
        read.immediate = true;
        client.send(&mut world, read);
    }
    match client.recv(&mut world) {
        Some(Pdu::Reject(reject)) => assert_eq!(reject.reason, 6),
        other => panic!("{other:?}"),
    }
    let now = world.now;
    world.portal.release(id, now);
    for _ in 0..2 {
        assert_eq!(client.recv_data(&mut world).status, Some(0));
    }
}

#[test]
fn a_tag_in_use_is_rejected() {
    let mut world = World::new();
    let mut client = world.login(Offer {
        initial_r2t: true,
        immediate_data: false,
        ..Offer::default()
    });
    let write = client.write(0, 1);
    let itt = write.itt;
    client.send(&mut world, write);
    client.recv_r2t(&mut world);
    let mut read = client.read(0, 1);
    read.itt = itt;
    client.send(&mut world, read.clone());
    match client.recv(&mut world) {
        Some(Pdu::Reject(reject)) => {
            assert_eq!(reject.reason, 7);
            assert_eq!(reject.sn.exp_cmd_sn, read.cmd_sn, "not received");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn pings_of_the_initiator_are_echoed() {
    let mut world = World::new();
    let mut client = world.login(Offer {
        max_recv_data_segment_bytes: 512,
        ..Offer::default()
    });
    for len in [0, 5, 512, 600] {
        let data = pattern(len, 1);
        let ping = client.ping(&data);
        let Pdu::NopOut(NopOut { itt, .. }) = ping else {
            unreachable!()
        };
        client.send(&mut world, ping);
        match client.recv(&mut world) {
            Some(Pdu::NopIn(nop)) => {
                assert_eq!((nop.itt, nop.ttt), (itt, Ttt::NONE));
                assert_eq!(nop.data.to_bytes(), &data[..len.min(512)]);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn pings_of_the_target_want_an_answer() {
    let mut world = World::with(PortalSettings {
        ping_interval: Some(Duration::from_secs(5)),
        ping_timeout: Duration::from_secs(3),
        ..PortalSettings::default()
    });
    let mut client = world.login(Offer::default());
    let id = client.id();
    world.advance(id, Duration::from_secs(5));
    let nop = match client.recv(&mut world) {
        Some(Pdu::NopIn(nop)) => nop,
        other => panic!("{other:?}"),
    };
    assert!(nop.itt.is_none() && !nop.ttt.is_none());
    let answer = NopOut {
        immediate: true,
        lun: nop.lun,
        itt: Itt::NONE,
        ttt: nop.ttt,
        cmd_sn: client.cmd_sn,
        exp_stat_sn: client.exp_stat_sn,
        data: Payload::new(),
    };
    client.send(&mut world, answer);
    assert!(client.recv(&mut world).is_none());
    assert_eq!(world.portal.counters(id).unwrap().pings_answered, 1);
    world.advance(id, Duration::from_secs(5));
    assert!(matches!(client.recv(&mut world), Some(Pdu::NopIn(_))));
    world.advance(id, Duration::from_secs(3));
    assert_eq!(
        world.portal.close_reason(id),
        Some(&CloseReason::PingTimeout)
    );
}

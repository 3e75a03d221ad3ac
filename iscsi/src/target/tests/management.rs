//! Task management and logout (RFC 7143 11.5, 11.6, 11.14, 11.15, 4.2.3).

use std::time::Duration;

use super::*;
use crate::target::CloseReason;

fn solicited() -> Offer {
    Offer {
        initial_r2t: true,
        immediate_data: false,
        ..Offer::default()
    }
}

fn recv_management(world: &mut World, client: &mut Client) -> u8 {
    match client.recv(world) {
        Some(Pdu::TaskManagementResponse(response)) => response.response,
        other => panic!("{other:?}"),
    }
}

#[test]
fn abort_task_ends_a_task_that_waits_for_data() {
    let mut world = World::new();
    let mut client = world.login(solicited());
    let write = client.write(0, 1);
    let (itt, sn) = (write.itt, write.cmd_sn);
    client.send(&mut world, write);
    let r2t = client.recv_r2t(&mut world);
    let abort = client.management(1, Some((itt, sn)));
    client.send(&mut world, abort);
    assert_eq!(recv_management(&mut world, &mut client), 0);
    // Data that was on its way is dropped without a word.
    let data = client.data_out(itt, r2t.ttt, 0, 0, vec![1; 512], true);
    client.send(&mut world, data);
    assert!(client.recv(&mut world).is_none());
    assert!(world.unit().writes.is_empty());
    let abort = client.management(1, Some((itt, sn)));
    client.send(&mut world, abort);
    assert_eq!(recv_management(&mut world, &mut client), 1, "it is gone");
}

/// RFC 7143 11.6.1 b: a command that was never received counts as received after its abort.
#[test]
fn abort_task_plugs_a_hole() {
    let mut world = World::new();
    let mut client = world.login(Offer::default());
    let lost = client.read(0, 1);
    let later = client.read(1, 1);
    client.send(&mut world, later.clone());
    assert!(client.recv(&mut world).is_none());
    let abort = client.management(1, Some((lost.itt, lost.cmd_sn)));
    client.send(&mut world, abort);
    // The later command goes on, and the abort is answered.
    let mut seen = (false, false);
    while let Some(pdu) = client.recv(&mut world) {
        match pdu {
            Pdu::DataIn(data) => {
                assert_eq!(data.itt, later.itt);
                seen.0 = true;
            }
            Pdu::TaskManagementResponse(response) => {
                assert_eq!(response.response, 0);
                seen.1 = true;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, (true, true));
    // The lost command comes after all: outside of the window now, ignored.
    client.send(&mut world, lost);
    assert!(client.recv(&mut world).is_none());
}

#[test]
fn an_early_command_can_be_aborted_before_its_turn() {
    let mut world = World::new();
    let mut client = world.login(Offer::default());
    let first = client.read(0, 1);
    let early = client.read(1, 1);
    client.send(&mut world, early.clone());
    let abort = client.management(1, Some((early.itt, early.cmd_sn)));
    client.send(&mut world, abort);
    assert_eq!(recv_management(&mut world, &mut client), 0);
    client.send(&mut world, first.clone());
    assert_eq!(client.recv_data(&mut world).itt, first.itt);
    assert!(client.recv(&mut world).is_none());
    let next = client.read(2, 1);
    client.send(&mut world, next);
    assert_eq!(client.recv_data(&mut world).status, Some(0));
}

/// RFC 7143 4.2.3.2: the response waits for data of the affected tasks that is still owed.
#[test]
fn lun_reset_waits_for_owed_data_and_tells_the_others() {
    let mut world = World::new();
    let mut client = world.login(solicited());
    let mut other = world.login_as(solicited(), Isid::random([1, 2, 3], 2));
    let write = client.write(0, 1);
    client.send(&mut world, write);
    let r2t = client.recv_r2t(&mut world);
    let foreign = other.write(5, 1);
    let foreign_itt = foreign.itt;
    other.send(&mut world, foreign);
    let foreign_r2t = other.recv_r2t(&mut world);
    let reset = client.management(5, None);
    client.send(&mut world, reset);
    assert!(client.recv(&mut world).is_none(), "data is owed");
    let data = client.data_out(r2t.itt, r2t.ttt, 0, 0, vec![1; 512], true);
    client.send(&mut world, data);
    assert_eq!(recv_management(&mut world, &mut client), 0);
    assert_eq!(world.unit().resets, 1);
    // The other session's write is dead too; a unit attention tells it.
    let data = other.data_out(foreign_itt, foreign_r2t.ttt, 0, 0, vec![1; 512], true);
    other.send(&mut world, data);
    assert!(other.recv(&mut world).is_none());
    assert!(world.unit().writes.is_empty());
    for client in [&mut client, &mut other] {
        let read = client.read(0, 1);
        client.send(&mut world, read);
        let response = client.recv_response(&mut world);
        assert_eq!(sense(&response), (6, 0x29, 0x03));
    }
}

#[test]
fn a_reset_does_not_wait_for_ever() {
    let mut world = World::new();
    let mut client = world.login(solicited());
    let write = client.write(0, 1);
    client.send(&mut world, write);
    client.recv_r2t(&mut world);
    for function in [2, 6] {
        let reset = client.management(function, None);
        client.send(&mut world, reset);
    }
    let first = recv_management(&mut world, &mut client);
    assert_eq!(
        first, 0,
        "the second function found no task and is answered"
    );
    assert!(client.recv(&mut world).is_none());
    let id = client.id();
    let until = world.portal.poll_timeout(id).unwrap();
    world.now = until;
    world.portal.handle_timeout(id, until);
    assert_eq!(recv_management(&mut world, &mut client), 0);
}

#[test]
fn an_aborted_answer_is_not_sent() {
    let mut world = World::new();
    let mut client = world.login(Offer {
        max_recv_data_segment_bytes: 512,
        ..Offer::default()
    });
    let read = client.read(0, 4096);
    let (itt, sn) = (read.itt, read.cmd_sn);
    client.send(&mut world, read);
    let mut tx = SendQueue::new();
    let id = client.id();
    world.portal.poll_transmit(id, &mut tx);
    client.wire.received.extend(&tx.to_vec());
    let abort = client.management(1, Some((itt, sn)));
    client.send(&mut world, abort);
    let mut answered = false;
    while let Some(pdu) = client.recv(&mut world) {
        match pdu {
            Pdu::DataIn(data) => {
                assert!(data.status.is_none());
                assert!(!answered, "nothing comes after the response");
            }
            Pdu::TaskManagementResponse(response) => {
                assert_eq!(response.response, 0);
                answered = true;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(answered);
    let id = client.id();
    assert_eq!(world.portal.tasks(id), 0);
}

#[test]
fn what_is_not_offered_is_refused_by_name() {
    let mut world = World::new();
    let mut client = world.login(Offer::default());
    for (function, answer) in [(3, 5), (7, 5), (8, 4), (9, 5), (12, 5), (0, 5)] {
        let request = client.management(function, None);
        client.send(&mut world, request);
        assert_eq!(
            recv_management(&mut world, &mut client),
            answer,
            "{function}"
        );
    }
    let Pdu::TaskManagementRequest(mut request) = client.management(5, None) else {
        unreachable!()
    };
    request.lun = Lun::from_number(9).unwrap();
    client.send(&mut world, request);
    assert_eq!(recv_management(&mut world, &mut client), 2, "no such LUN");
}

#[test]
fn logout_by_reason() {
    for (reason, cid, response, over) in [
        (0, 0, 0, true),
        (1, 0, 0, true),
        (1, 5, 1, false),
        (2, 0, 2, false),
        (9, 0, 2, false),
    ] {
        let mut world = World::new();
        let mut client = world.login(Offer::default());
        let Pdu::LogoutRequest(mut request) = client.logout(reason) else {
            unreachable!()
        };
        request.cid = Cid(cid);
        client.send(&mut world, request);
        match client.recv(&mut world) {
            Some(Pdu::LogoutResponse(logout)) => {
                assert_eq!(logout.response, response, "{reason} {cid}");
                assert_eq!(logout.sn.exp_cmd_sn, client.cmd_sn);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(client.is_closed(&mut world), over);
        if over {
            let id = client.id();
            assert_eq!(world.portal.close_reason(id), Some(&CloseReason::Logout));
            assert!(world.portal.sessions().is_empty());
        }
    }
}

/// RFC 7143 11.9.1, event 1: the initiator has parameter 3 seconds to log out.
#[test]
fn a_logout_request_is_enforced() {
    let mut world = World::new();
    let mut client = world.login(Offer::default());
    let id = client.id();
    let now = world.now;
    let notice = crate::target::AsyncNotice::new(1, [0, 0, 3]);
    world.portal.send_async(id, now, &notice);
    match client.recv(&mut world) {
        Some(Pdu::AsyncMessage(message)) => {
            assert_eq!((message.event, message.parameter3), (1, 3));
        }
        other => panic!("{other:?}"),
    }
    world.advance(id, Duration::from_secs(3));
    assert_eq!(
        world.portal.close_reason(id),
        Some(&CloseReason::LogoutTimeout)
    );
}

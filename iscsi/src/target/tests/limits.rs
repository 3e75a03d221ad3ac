//! Limits of a logical unit, over virtual time.

use super::*;
use crate::target::{Limits, Rate};

fn limit(world: &mut World, operations: u64) {
    let total = Rate {
        operations,
        bytes: 0,
    };
    let limits = Limits {
        total,
        ..Limits::default()
    };
    assert!(world.portal.set_limits(world.now, world.unit, &limits));
}

/// Goes to when the connection wants to be called, and calls it; gives the milliseconds that it took.
fn wait(world: &mut World, id: ConnectionId) -> u128 {
    let due = world.portal.poll_timeout(id).expect("something waits");
    let time = due.saturating_duration_since(world.now);
    world.advance(id, time);
    time.as_millis()
}

#[test]
fn commands_wait_for_their_turn() {
    let mut world = World::new();
    let mut client = world.login(Offer::default());
    limit(&mut world, 10);
    for _ in 0..3 {
        let read = client.read(0, 1);
        client.send(&mut world, read);
    }
    assert_eq!(client.recv_data(&mut world).status, Some(0));
    assert!(client.recv(&mut world).is_none(), "the second has to wait");
    world.advance(client.id(), Duration::from_millis(99));
    assert!(client.recv(&mut world).is_none());
    assert_eq!(wait(&mut world, client.id()), 1);
    assert_eq!(client.recv_data(&mut world).status, Some(0));
    assert_eq!(wait(&mut world, client.id()), 100);
    assert_eq!(client.recv_data(&mut world).status, Some(0));
    assert_eq!(world.portal.poll_timeout(client.id()), None);
    let waited: Vec<u128> = world
        .unit()
        .waited
        .iter()
        .map(|w| w.1.as_millis())
        .collect();
    assert_eq!(waited, [100, 200]);
}

/// What is no read or write of the medium is answered whatever waits.
#[test]
fn other_commands_pass() {
    let mut world = World::new();
    let mut client = world.login(Offer::default());
    limit(&mut world, 1);
    for _ in 0..2 {
        let read = client.read(0, 1);
        client.send(&mut world, read);
    }
    let ready = client.command(&[0; 6]);
    client.send(&mut world, ready);
    assert_eq!(client.recv_data(&mut world).status, Some(0));
    assert_eq!(client.recv_response(&mut world).status, 0);
    assert!(client.recv(&mut world).is_none());
}

#[test]
fn a_write_that_waits_keeps_its_data() {
    let mut world = World::new();
    let mut client = world.login(Offer::default());
    limit(&mut world, 1);
    let read = client.read(0, 1);
    client.send(&mut world, read);
    client.recv_data(&mut world);
    let mut write = client.write(7, 2);
    let data = pattern(1024, 9);
    write.data = Payload::from(data.clone());
    client.send(&mut world, write);
    assert!(client.recv(&mut world).is_none());
    assert!(world.unit().writes.is_empty());
    assert_eq!(wait(&mut world, client.id()), 1000);
    assert_eq!(client.recv_response(&mut world).status, 0);
    assert_eq!(world.unit().writes, [(7, 1024)]);
    assert!(world.unit().bytes[7 * 512..9 * 512] == data);
}

#[test]
fn an_aborted_command_is_never_executed_and_pays_nothing() {
    let mut world = World::new();
    let mut client = world.login(Offer::default());
    limit(&mut world, 1);
    let read = client.read(0, 1);
    client.send(&mut world, read);
    client.recv_data(&mut world);
    let mut write = client.write(0, 1);
    write.data = Payload::from(vec![1; 512]);
    let (itt, sn) = (write.itt, write.cmd_sn);
    client.send(&mut world, write);
    let read = client.read(0, 1);
    client.send(&mut world, read);
    let abort = client.management(1, Some((itt, sn)));
    client.send(&mut world, abort);
    match client.recv(&mut world) {
        Some(Pdu::TaskManagementResponse(response)) => assert_eq!(response.response, 0),
        other => panic!("{other:?}"),
    }
    // The read behind it takes its place.
    assert_eq!(wait(&mut world, client.id()), 1000);
    assert_eq!(client.recv_data(&mut world).status, Some(0));
    assert!(world.unit().writes.is_empty());
    assert_eq!(world.portal.tasks(client.id()), 0);
}

/// Two sessions share a limit; when one goes, the other one is told that it is next.
#[test]
fn the_end_of_a_session_lets_others_pass() {
    let mut world = World::new();
    let mut first = world.login(Offer::default());
    let mut second = world.login_as(Offer::default(), Isid::random([1, 2, 3], 2));
    limit(&mut world, 1);
    for _ in 0..5 {
        let read = first.read(0, 1);
        first.send(&mut world, read);
    }
    first.recv_data(&mut world);
    let read = second.read(0, 1);
    second.send(&mut world, read);
    assert_eq!(world.portal.poll_timeout(second.id()), None, "not its turn");
    while world.portal.poll_wake().is_some() {}
    world.portal.remove(first.id());
    assert_eq!(world.portal.poll_wake(), Some(second.id()));
    assert_eq!(wait(&mut world, second.id()), 1000);
    assert_eq!(second.recv_data(&mut world).status, Some(0));
}

#[test]
fn a_change_counts_at_once() {
    let mut world = World::new();
    let mut client = world.login(Offer::default());
    limit(&mut world, 1);
    for _ in 0..4 {
        let read = client.read(0, 1);
        client.send(&mut world, read);
    }
    client.recv_data(&mut world);
    while world.portal.poll_wake().is_some() {}
    limit(&mut world, 1000);
    assert_eq!(world.portal.poll_wake(), Some(client.id()));
    assert_eq!(wait(&mut world, client.id()), 1);
    client.recv_data(&mut world);
    limit(&mut world, 0);
    assert_eq!(wait(&mut world, client.id()), 0);
    client.recv_data(&mut world);
    client.recv_data(&mut world);
    assert_eq!(world.portal.poll_timeout(client.id()), None);
}

/// A unit that is removed under commands that wait: they end, with an error.
#[test]
fn commands_of_a_unit_that_goes_do_not_hang() {
    let mut world = World::new();
    let mut client = world.login(Offer::default());
    limit(&mut world, 1);
    for _ in 0..2 {
        let read = client.read(0, 1);
        client.send(&mut world, read);
    }
    client.recv_data(&mut world);
    world.portal.map_lun(&name(TARGET), 0, None);
    let unit = world.unit;
    assert!(world.portal.remove_unit(unit));
    assert!(!world.portal.set_limits(world.now, unit, &Limits::default()));
    wait(&mut world, client.id());
    assert_eq!(client.recv_response(&mut world).status, 2);
}

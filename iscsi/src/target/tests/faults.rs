//! Every fault switch does what it says, and nothing else.

use std::time::Duration;

use super::*;
use crate::error::{DigestError, Error, LoginStatus};
use crate::login::{DigestPolicy, LoginFaults};
use crate::pdu::Residual;
use crate::target::faults::{CommandFault, FaultPlan, Filter, LoginFault, Rule, SendFault};
use crate::target::{AsyncNotice, CloseReason};

const READ10: u8 = 0x28;
const DATA_IN: u8 = 0x25;
const RESPONSE: u8 = 0x21;

fn with_plan(plan: FaultPlan) -> (World, Client) {
    let mut world = World::new();
    let client = world.login(Offer::default());
    assert!(world.portal.set_faults(client.id(), plan));
    (world, client)
}

fn read_ok(world: &mut World, client: &mut Client) {
    let read = client.read(0, 1);
    client.send(world, read);
    assert_eq!(client.recv_data(world).status, Some(0));
}

#[test]
fn a_status_or_sense_instead_of_execution() {
    let (mut world, mut client) = with_plan(FaultPlan {
        commands: vec![
            Rule::new(
                Filter::scsi(READ10).at(0..=0),
                1,
                CommandFault::Status(0x08),
            ),
            Rule::new(
                Filter::scsi(READ10).at(0..=0),
                1,
                CommandFault::Sense {
                    key: 3,
                    asc: 0x11,
                    ascq: 0,
                },
            ),
        ],
        ..FaultPlan::default()
    });
    let other = client.read(1, 1);
    client.send(&mut world, other);
    assert_eq!(client.recv_data(&mut world).status, Some(0), "another LBA");
    let read = client.read(0, 1);
    client.send(&mut world, read);
    let response = client.recv_response(&mut world);
    assert_eq!(
        (response.status, response.residual),
        (0x08, Residual::Underflow(512))
    );
    let read = client.read(0, 1);
    client.send(&mut world, read);
    assert_eq!(sense(&client.recv_response(&mut world)), (3, 0x11, 0));
    read_ok(&mut world, &mut client);
    let id = client.id();
    let counters = world.portal.counters(id).unwrap();
    assert_eq!(
        (counters.faults, counters.executed[usize::from(READ10)]),
        (2, 2)
    );
}

#[test]
fn delays_and_holds_let_others_overtake() {
    for (fault, executed) in [
        (CommandFault::DelayExecution(Duration::from_secs(2)), false),
        (CommandFault::DelayResponse(Duration::from_secs(2)), true),
        (CommandFault::HoldExecution, false),
        (CommandFault::HoldResponse, true),
    ] {
        let holds = matches!(
            fault,
            CommandFault::HoldExecution | CommandFault::HoldResponse
        );
        let (mut world, mut client) = with_plan(FaultPlan::command(Filter::scsi(0x2a), 1, fault));
        let mut write = client.write(0, 1);
        write.data = Payload::from(pattern(512, 7));
        client.send(&mut world, write);
        assert_eq!(world.unit().writes.len(), usize::from(executed));
        read_ok(&mut world, &mut client);
        let id = client.id();
        let now = world.now;
        world.advance(id, Duration::from_secs(1));
        assert!(client.recv(&mut world).is_none());
        if holds {
            assert_eq!(world.portal.poll_timeout(id), None);
            world.portal.release(id, now);
        } else {
            world.advance(id, Duration::from_secs(1));
        }
        assert_eq!(client.recv_response(&mut world).status, 0);
        assert_eq!(world.unit().writes.len(), 1);
    }
}

#[test]
fn a_held_command_dies_with_its_session() {
    let (mut world, mut client) = with_plan(FaultPlan::command(
        Filter::scsi(0x2a),
        1,
        CommandFault::HoldExecution,
    ));
    let mut write = client.write(0, 1);
    write.data = Payload::from(pattern(512, 7));
    client.send(&mut world, write);
    let id = client.id();
    let mut again = world.login_as(Offer::default(), client.isid);
    let now = world.now;
    world.portal.release(id, now);
    read_ok(&mut world, &mut again);
    assert!(
        world.unit().writes.is_empty(),
        "a late write of a dead session"
    );
}

#[test]
fn rejected_commands_leave_a_hole() {
    let (mut world, mut client) = with_plan(FaultPlan::command(
        Filter::any(),
        1,
        CommandFault::Reject(0x0a),
    ));
    let read = client.read(0, 1);
    client.send(&mut world, read.clone());
    match client.recv(&mut world) {
        Some(Pdu::Reject(reject)) => {
            assert_eq!(reject.reason, 0x0a);
            assert_eq!(reject.sn.exp_cmd_sn, read.cmd_sn);
        }
        other => panic!("{other:?}"),
    }
    client.send(&mut world, read);
    assert_eq!(client.recv_data(&mut world).status, Some(0));
}

#[test]
fn cuts_before_and_after_execution() {
    for (fault, writes) in [(CommandFault::Cut, 0), (CommandFault::ExecuteThenCut, 1)] {
        let (mut world, mut client) = with_plan(FaultPlan::command(Filter::any(), 1, fault));
        let mut write = client.write(0, 1);
        write.data = Payload::from(pattern(512, 7));
        client.send(&mut world, write);
        assert!(client.recv(&mut world).is_none());
        assert!(client.is_closed(&mut world));
        assert_eq!(world.unit().writes.len(), writes);
        let id = client.id();
        assert_eq!(world.portal.close_reason(id), Some(&CloseReason::Fault));
    }
}

#[test]
fn short_reads_with_and_without_residual() {
    for residual in [false, true] {
        let fault = CommandFault::ShortRead {
            missing_bytes: 100,
            residual,
        };
        let (mut world, mut client) = with_plan(FaultPlan::command(Filter::any(), 1, fault));
        let read = client.read(0, 1);
        client.send(&mut world, read);
        let data = client.recv_data(&mut world);
        assert_eq!(data.data.len(), 412);
        let expected = if residual {
            Residual::Underflow(100)
        } else {
            Residual::None
        };
        assert_eq!((data.status, data.residual), (Some(0), expected));
    }
}

#[test]
fn a_response_code() {
    let (mut world, mut client) = with_plan(FaultPlan::command(
        Filter::any(),
        1,
        CommandFault::Response(1),
    ));
    let read = client.read(0, 1);
    client.send(&mut world, read);
    assert!(client.recv_data(&mut world).status.is_none());
    assert_eq!(client.recv_response(&mut world).response, 1);
}

/// The next PDU as it is, without the client's own checks.
fn raw(world: &mut World, client: &mut Client) -> Option<Pdu> {
    client.wire.recv(world)
}

#[test]
fn wrong_numbers_tags_and_offsets() {
    let sn = Filter::opcode(DATA_IN);
    for (fault, check) in [
        (
            SendFault::data_sn(3),
            Box::new(|d: &DataIn| d.data_sn == 3) as Box<dyn Fn(&DataIn) -> bool>,
        ),
        (
            SendFault::stat_sn(5),
            Box::new(|d| d.sn.stat_sn == StatSn(0)),
        ),
        (
            SendFault::buffer_offset(4096),
            Box::new(|d| d.buffer_offset_bytes == 4096),
        ),
        (SendFault::itt(0xabcd), Box::new(|d| d.itt == Itt(0xabcd))),
        (SendFault::ttt(0x1234), Box::new(|d| d.ttt == Ttt(0x1234))),
    ] {
        let (mut world, mut client) = with_plan(FaultPlan::send(sn.clone(), 1, fault.clone()));
        let expected = StatSn(client.exp_stat_sn.0.wrapping_add(5));
        let read = client.read(0, 1);
        client.send(&mut world, read);
        match raw(&mut world, &mut client) {
            Some(Pdu::DataIn(data)) if fault == SendFault::stat_sn(5) => {
                assert_eq!(data.sn.stat_sn, expected);
            }
            Some(Pdu::DataIn(data)) => assert!(check(&data), "{fault:?} {data:?}"),
            other => panic!("{other:?}"),
        }
        client.exp_stat_sn = client.exp_stat_sn.next();
        read_ok(&mut world, &mut client);
    }
}

#[test]
fn omitted_and_doubled_pdus() {
    let (mut world, mut client) = with_plan(FaultPlan {
        sends: vec![
            Rule::new(Filter::scsi(READ10), 1, SendFault::Omit),
            Rule::new(Filter::scsi(READ10), 1, SendFault::Duplicate).after(1),
        ],
        ..FaultPlan::default()
    });
    let read = client.read(0, 1);
    client.send(&mut world, read);
    assert!(raw(&mut world, &mut client).is_none());
    let read = client.read(0, 1);
    client.send(&mut world, read);
    let first = raw(&mut world, &mut client);
    let Some(Pdu::DataIn(data)) = &first else {
        panic!("{first:?}")
    };
    assert_eq!(data.sn.stat_sn, client.exp_stat_sn.next(), "one is lost");
    assert_eq!(raw(&mut world, &mut client), first);
}

#[test]
fn damaged_headers_data_and_digests() {
    let offer = Offer {
        header_digest: DigestPolicy::Require,
        data_digest: DigestPolicy::Require,
        ..Offer::default()
    };
    // Offsets on the wire: header 0..48, its digest 48..52, data 52..564, its digest at the end.
    for (offset, in_header) in [(40, true), (50, true), (100, false), (-1, false)] {
        let mut world = World::with(PortalSettings {
            offer: offer.clone(),
            ..PortalSettings::default()
        });
        let mut client = world.login(offer.clone());
        let corrupt = SendFault::Corrupt { offset, mask: 0x10 };
        let plan = FaultPlan::send(Filter::opcode(DATA_IN), 1, corrupt);
        world.portal.set_faults(client.id(), plan);
        let read = client.read(0, 1);
        client.send(&mut world, read);
        match client.wire.try_recv(&mut world) {
            Err(Error::Digest(DigestError::Header { .. })) => assert!(in_header, "{offset}"),
            Err(Error::Digest(DigestError::Data { .. })) => assert!(!in_header, "{offset}"),
            other => panic!("{other:?}"),
        }
    }
    // A field that is wrong under a digest that is right.
    let mut world = World::with(PortalSettings {
        offer: offer.clone(),
        ..PortalSettings::default()
    });
    let mut client = world.login(offer);
    let plan = FaultPlan::send(Filter::opcode(DATA_IN), 1, SendFault::data_sn(1));
    world.portal.set_faults(client.id(), plan);
    let read = client.read(0, 1);
    client.send(&mut world, read);
    assert_eq!(client.recv_data(&mut world).data_sn, 1);
}

#[test]
fn cuts_after_and_inside_a_pdu() {
    for (fault, bytes) in [
        (SendFault::CutAfter, 48 + 512),
        (SendFault::CutInside(60), 60),
    ] {
        let (mut world, mut client) = with_plan(FaultPlan::send(Filter::opcode(DATA_IN), 1, fault));
        let read = client.read(0, 1);
        client.send(&mut world, read);
        assert_eq!(client.wire.drain(&mut world).len(), bytes);
        assert!(client.is_closed(&mut world));
    }
}

#[test]
fn asynchronous_messages_consume_a_stat_sn() {
    let (mut world, mut client) = with_plan(FaultPlan::default());
    let id = client.id();
    let now = world.now;
    let mut notice = AsyncNotice::new(0, [0; 3]);
    notice.sense = vec![
        0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x3f, 0x0e, 0, 0, 0, 0,
    ];
    world.portal.send_async(id, now, &notice);
    for event in [4, 250] {
        world
            .portal
            .send_async(id, now, &AsyncNotice::new(event, [0, 0, 9]));
    }
    world
        .portal
        .send_async(id, now, &AsyncNotice::new(2, [0, 1, 2]));
    let mut events = Vec::new();
    while let Some(Pdu::AsyncMessage(message)) = client.recv(&mut world) {
        if message.event == 0 {
            assert_eq!(message.data.to_bytes()[..2], [0, 18]);
        }
        events.push(message.event);
    }
    assert_eq!(events, [0, 4, 250, 2]);
    assert!(client.is_closed(&mut world), "event 2 drops the connection");
}

fn login_config() -> LoginConfig {
    let kind = SessionKind::Normal {
        target_name: name(TARGET),
    };
    LoginConfig::new(name(INITIATOR), kind, Isid::default())
}

#[test]
fn login_faults() {
    let mut world = World::new();
    let status = LoginStatus::TARGET_ERROR;
    for stage in [crate::pdu::Stage::Security, crate::pdu::Stage::Operational] {
        world
            .portal
            .push_faults(FaultPlan::login(LoginFault::Machine(LoginFaults {
                status: Some((stage, status)),
                ..LoginFaults::default()
            })));
        let error = world.try_login(login_config()).err();
        assert_eq!(error, Some(Error::LoginRejected(status)));
    }
    world
        .portal
        .push_faults(FaultPlan::login(LoginFault::Machine(LoginFaults {
            pdu_text_bytes: Some(16),
            ..LoginFaults::default()
        })));
    assert!(
        world.try_login(login_config()).is_ok(),
        "split keys are joined"
    );
    world
        .portal
        .push_faults(FaultPlan::login(LoginFault::Machine(LoginFaults {
            never_ending: true,
            ..LoginFaults::default()
        })));
    assert!(world.try_login(login_config()).is_err(), "and it ends");

    world
        .portal
        .push_faults(FaultPlan::login(LoginFault::Garbage(
            b"HTTP/1.1 400".to_vec(),
        )));
    let mut wire = world.connect();
    let mut machine = InitiatorLogin::new(login_config()).unwrap();
    let request = Pdu::LoginRequest(machine.poll_transmit().unwrap());
    wire.send(&mut world, &request);
    assert_eq!(wire.drain(&mut world), b"HTTP/1.1 400");
    assert!(world.portal.is_over(wire.id));
    world
        .portal
        .push_faults(FaultPlan::login(LoginFault::Silent));
    let mut wire = world.connect();
    wire.send(&mut world, &request);
    assert!(wire.drain(&mut world).is_empty());
    assert!(!world.portal.is_over(wire.id));
}

#[test]
fn a_plan_for_the_next_connection_is_used_once() {
    let mut world = World::new();
    world.portal.push_faults(FaultPlan::send(
        Filter::opcode(RESPONSE),
        Rule::<()>::ALWAYS,
        SendFault::Omit,
    ));
    let first = world.login(Offer::default());
    let second = world.login_as(Offer::default(), Isid::random([7, 7, 7], 7));
    for (mut client, answered) in [(first, false), (second, true)] {
        let out_of_range = client.read(1 << 30, 1);
        client.send(&mut world, out_of_range);
        assert_eq!(raw(&mut world, &mut client).is_some(), answered);
    }
}

//! Initiators that do what they like: no panic, no growth without bound, and the portal goes on.

use proptest::prelude::*;

use super::*;
use crate::pdu::Snack;

/// Most bytes that a few dozen small PDUs can make the target send.
const OUTPUT_BYTES_MAX: usize = 64 * 1024 * 1024;

fn any_tag() -> impl Strategy<Value = u32> {
    prop_oneof![0x100u32..0x108, Just(0xffff_ffff), Just(0), 1u32..5]
}

/// A PDU of any kind with fields that are close to plausible.
fn any_pdu() -> impl Strategy<Value = Vec<u8>> {
    (
        prop_oneof![
            (0u8..8),
            Just(0x41u8),
            Just(0x40),
            Just(0x42),
            Just(0x10),
            Just(0x25),
            any::<u8>()
        ],
        any::<u8>(),
        (any_tag(), any_tag()),
        (0u32..12, 0u32..12),
        (0u32..2000, 0u32..4),
        proptest::collection::vec(any::<u8>(), 0..80),
        prop_oneof![
            Just(vec![0x28, 0, 0, 0, 0, 1, 0, 0, 4]),
            Just(vec![0x2a, 0, 0, 0, 0, 1, 0, 0, 4]),
            Just(vec![0x2a, 0, 0, 0, 0, 1, 0, 0xff, 0xff]),
            proptest::collection::vec(any::<u8>(), 16)
        ],
    )
        .prop_map(
            |(opcode, flags, (itt, other), (sn, data_sn), (offset, lun), data, cdb)| {
                let mut header = [0u8; 48];
                header[0] = opcode;
                header[1] = flags;
                header[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
                header[9] = lun as u8;
                header[16..20].copy_from_slice(&itt.to_be_bytes());
                header[20..24].copy_from_slice(&other.to_be_bytes());
                header[24..28].copy_from_slice(&sn.to_be_bytes());
                header[36..40].copy_from_slice(&data_sn.to_be_bytes());
                header[40..44].copy_from_slice(&offset.to_be_bytes());
                if opcode & 0x3f == 1 {
                    header[20..24].copy_from_slice(&(offset * 4).to_be_bytes());
                    header[32..32 + cdb.len()].copy_from_slice(&cdb);
                }
                let mut bytes = header.to_vec();
                bytes.extend_from_slice(&data);
                bytes.resize(bytes.len().next_multiple_of(4), 0);
                bytes
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_pdus_in_full_feature_phase(
        pdus in proptest::collection::vec(any_pdu(), 1..60),
        solicited in any::<bool>(),
    ) {
        let mut world = World::with(PortalSettings { window: 8, ..PortalSettings::default() });
        let offer = Offer {
            initial_r2t: solicited,
            immediate_data: !solicited,
            ..Offer::default()
        };
        let mut client = world.login(offer);
        let id = client.id();
        let mut sent = 0;
        for pdu in pdus {
            client.wire.send_bytes(&mut world, &pdu);
            sent += client.wire.drain(&mut world).len();
            prop_assert!(sent < OUTPUT_BYTES_MAX);
            prop_assert!(world.portal.tasks(id) <= 8 + 16);
        }
        // Others are not disturbed.
        let mut other = world.login_as(Offer::default(), Isid::random([5, 5, 5], 5));
        let read = other.command(&[0x12, 0, 0, 0, 36]);
        other.send(&mut world, read);
        prop_assert!(other.recv(&mut world).is_some());
        world.portal.remove(id);
        prop_assert_eq!(world.portal.sessions().len(), 1);
    }

    #[test]
    fn any_bytes_before_login(bytes in proptest::collection::vec(any::<u8>(), 0..600), login in any::<bool>()) {
        let mut world = World::new();
        let mut wire = world.connect();
        let mut bytes = bytes;
        if login && bytes.len() >= 48 {
            bytes[0] = 0x43;
            bytes[1] = 0x87;
            bytes[4..8].copy_from_slice(&[0, 0, 1, 0]);
        }
        for chunk in bytes.chunks(37) {
            wire.send_bytes(&mut world, chunk);
            prop_assert!(wire.drain(&mut world).len() < 100_000);
        }
        world.portal.remove(wire.id);
        prop_assert!(world.portal.connections().next().is_none());
    }
}

/// An initiator that never takes what it asked for stops being read.
#[test]
fn a_deaf_initiator_is_held_back() {
    let mut world = World::new();
    let mut client = world.login(Offer::default());
    let id = client.id();
    let mut queue = SendQueue::new();
    for _ in 0..100 {
        Pdu::from(client.read(0, 4096)).emit(&mut queue, Digests::NONE);
    }
    for _ in 0..1000 {
        let ping = client.ping(&[7; 4000]);
        ping.emit(&mut queue, Digests::NONE);
    }
    client.wire.to_target.extend(&queue.to_vec());
    let now = world.now;
    world
        .portal
        .handle_input(id, now, &mut client.wire.to_target);
    assert!(!world.portal.wants_input(id));
    let executed = world.portal.counters(id).unwrap().executed[0x28];
    assert!(
        executed <= 17,
        "{executed} reads of 2 MiB are held in memory"
    );
    let mut seen = 0;
    while let Some(pdu) = client.recv(&mut world) {
        if let Pdu::DataIn(DataIn {
            status: Some(0), ..
        })
        | Pdu::NopIn(_) = pdu
        {
            seen += 1;
        }
    }
    assert_eq!(seen, 1100, "and goes on when it listens");
}

#[test]
fn endless_aborted_writes_leave_nothing() {
    let mut world = World::new();
    let mut client = world.login(Offer::default());
    for _ in 0..5000 {
        let mut write = client.write(0, 2);
        write.final_ = false;
        let (itt, sn) = (write.itt, write.cmd_sn);
        client.send(&mut world, write);
        let abort = client.management(1, Some((itt, sn)));
        client.send(&mut world, abort);
        assert!(matches!(
            client.recv(&mut world),
            Some(Pdu::TaskManagementResponse(_))
        ));
    }
    let id = client.id();
    assert_eq!(world.portal.tasks(id), 0);
}

#[test]
fn opcodes_that_are_not_for_a_target() {
    let mut world = World::new();
    let mut client = world.login(Offer::default());
    let snack = Snack {
        kind: 1,
        lun: Lun::default(),
        itt: Itt::NONE,
        ttt_or_tag: 0xffff_ffff,
        exp_stat_sn: client.exp_stat_sn,
        beg_run: 0,
        run_len: 0,
    };
    client.send(&mut world, snack);
    match client.recv(&mut world) {
        Some(Pdu::Reject(reject)) => assert_eq!(reject.reason, 5, "level 0 has no SNACK"),
        other => panic!("{other:?}"),
    }
    let mut vendor = [0u8; 48];
    (vendor[0], vendor[1]) = (0x1c, 0x80);
    client.wire.send_bytes(&mut world, &vendor);
    match client.recv(&mut world) {
        Some(Pdu::Reject(reject)) => {
            assert_eq!(reject.reason, 5);
            assert_eq!(reject.data.to_bytes()[0], 0x1c);
        }
        other => panic!("{other:?}"),
    }
    let read = client.read(0, 1);
    client.send(&mut world, read);
    assert_eq!(client.recv_data(&mut world).status, Some(0));
    // A target's own PDU is a protocol error: the Reject is still sent.
    let mut wrong = [0u8; 48];
    (wrong[0], wrong[1]) = (0x21, 0x80);
    client.wire.send_bytes(&mut world, &wrong);
    assert!(matches!(client.recv(&mut world), Some(Pdu::Reject(_))));
    assert!(client.is_closed(&mut world));
}

//! Data in both directions, residuals (RFC 7143 4.2.5.2, 11.3 to 11.8, 13.10 to 13.17).

use super::*;
use crate::login::DigestPolicy;
use crate::pdu::Residual;

/// Sends a write of `data` at LBA `lba` with as much unsolicited data as was negotiated, and serves R2Ts.
fn write_all(world: &mut World, client: &mut Client, lba: u32, data: &[u8]) -> ScsiResponse {
    let rules = client.negotiated.clone();
    let segment = rules.peer_max_recv_data_segment_bytes as usize;
    let burst = (rules.first_burst_bytes as usize).min(data.len());
    let immediate = if rules.immediate_data {
        burst.min(segment)
    } else {
        0
    };
    let unsolicited = if rules.initial_r2t { immediate } else { burst };
    let mut command = client.write(lba, (data.len() / BLOCK_BYTES) as u16);
    command.data = Payload::from(data[..immediate].to_vec());
    command.final_ = unsolicited == immediate;
    let itt = command.itt;
    client.send(world, command);
    let mut at = immediate;
    let mut sn = 0;
    while at < unsolicited {
        let n = segment.min(unsolicited - at);
        let last = at + n == unsolicited;
        let pdu = client.data_out(
            itt,
            Ttt::NONE,
            sn,
            at as u32,
            data[at..at + n].to_vec(),
            last,
        );
        client.send(world, pdu);
        at += n;
        sn += 1;
    }
    let mut open = std::collections::VecDeque::new();
    let mut next_r2t_sn = 0;
    loop {
        match client.recv(world) {
            Some(Pdu::R2t(r2t)) => {
                assert_eq!(r2t.itt, itt);
                assert_eq!(r2t.r2t_sn, next_r2t_sn);
                assert_eq!(r2t.buffer_offset_bytes as usize, at);
                assert!(r2t.desired_len_bytes <= rules.max_burst_bytes);
                at += r2t.desired_len_bytes as usize;
                next_r2t_sn += 1;
                open.push_back(r2t);
                assert!(open.len() <= rules.max_outstanding_r2t.into());
            }
            Some(Pdu::ScsiResponse(response)) => {
                assert!(open.is_empty());
                assert_eq!(response.itt, itt);
                return response;
            }
            None => {
                let r2t = open.pop_front().expect("the target waits for something");
                client.serve(world, &r2t, data);
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Reads and checks every Data-In rule on the way.
fn read_all(world: &mut World, client: &mut Client, lba: u32, blocks: u16) -> Vec<u8> {
    let rules = client.negotiated.clone();
    let command = client.read(lba, blocks);
    let itt = command.itt;
    client.send(world, command);
    let mut out = Vec::new();
    let mut burst = 0;
    let mut sn = 0;
    loop {
        match client.recv(world) {
            Some(Pdu::DataIn(data)) => {
                assert_eq!((data.itt, data.data_sn), (itt, sn));
                assert_eq!(data.buffer_offset_bytes as usize, out.len());
                assert!(data.data.len() <= rules.max_recv_data_segment_bytes as usize);
                sn += 1;
                burst += data.data.len();
                assert!(burst <= rules.max_burst_bytes as usize);
                out.extend_from_slice(&data.data.to_bytes());
                assert_eq!(
                    data.final_,
                    burst == rules.max_burst_bytes as usize
                        || out.len() == usize::from(blocks) * BLOCK_BYTES,
                    "F ends a sequence of MaxBurstLength, or the data"
                );
                if data.final_ {
                    burst = 0;
                }
                if data.status.is_some() {
                    assert_eq!(data.status, Some(0));
                    assert_eq!(data.residual, Residual::None);
                    return out;
                }
            }
            Some(Pdu::ScsiResponse(response)) => {
                assert_eq!((response.status, response.exp_data_sn), (0, sn));
                return out;
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Every combination of the keys that rule data, in both directions, with and without digests and collapsed
/// status.
#[test]
fn the_feature_matrix_moves_the_right_bytes() {
    let mut runs = 0;
    for initial_r2t in [false, true] {
        for immediate_data in [false, true] {
            for (first, max) in [(512, 512), (1024, 4096), (3000, 5000), (65_536, 262_144)] {
                for max_outstanding_r2t in [1, 3] {
                    for segment in [1000, 8192] {
                        for digests in [DigestPolicy::Off, DigestPolicy::Require] {
                            let offer = Offer {
                                initial_r2t,
                                immediate_data,
                                first_burst_bytes: first,
                                max_burst_bytes: max,
                                max_outstanding_r2t,
                                max_recv_data_segment_bytes: segment,
                                header_digest: digests,
                                data_digest: digests,
                                ..Offer::default()
                            };
                            let mut world = World::with(PortalSettings {
                                offer: Offer {
                                    initial_r2t: false,
                                    max_outstanding_r2t: 3,
                                    ..offer.clone()
                                },
                                phase_collapse: runs % 2 == 0,
                                ..PortalSettings::default()
                            });
                            let mut client = world.login(offer);
                            for blocks in [1, 23] {
                                let data = pattern(blocks * BLOCK_BYTES, runs as u8);
                                let response = write_all(&mut world, &mut client, 3, &data);
                                assert_eq!(
                                    (response.status, response.residual),
                                    (0, Residual::None)
                                );
                                let back = read_all(&mut world, &mut client, 3, blocks as u16);
                                assert!(back == data);
                            }
                            let id = client.id();
                            assert_eq!(world.portal.tasks(id), 0);
                            runs += 1;
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn several_writes_share_the_write_buffer() {
    let offer = Offer {
        initial_r2t: true,
        immediate_data: false,
        max_outstanding_r2t: 1,
        ..Offer::default()
    };
    let mut world = World::with(PortalSettings {
        write_buffer_bytes: 3 * 512,
        offer: offer.clone(),
        ..PortalSettings::default()
    });
    let mut client = world.login(offer);
    let data = pattern(4 * 512, 9);
    for lba in [0, 10, 20] {
        // The second waits: 2 + 2 blocks do not fit; one larger than the buffer goes alone.
        let blocks = if lba == 20 { 4 } else { 2 };
        let write = client.write(lba, blocks);
        client.send(&mut world, write);
    }
    for lba in [0, 10, 20] {
        let r2t = client.recv_r2t(&mut world);
        assert!(client.recv(&mut world).is_none(), "one at a time");
        client.serve(&mut world, &r2t, &data);
        assert_eq!(client.recv_response(&mut world).status, 0);
        assert_eq!(world.unit().writes.last().map(|(lba, _)| *lba), Some(lba));
    }
}

/// RFC 7143 11.4.5: the residual is exact, whatever EDTL says, and never more than EDTL is moved.
#[test]
fn residuals() {
    let mut world = World::new();
    let mut client = world.login(Offer::default());
    for (edtl, residual, moved) in [
        (512, Residual::None, 512),
        (0, Residual::Overflow(512), 0),
        (200, Residual::Overflow(312), 200),
        (10_000, Residual::Underflow(9488), 512),
    ] {
        let mut read = client.read(7, 1);
        read.expected_len_bytes = edtl;
        client.send(&mut world, read);
        match client.recv(&mut world) {
            Some(Pdu::DataIn(data)) => {
                assert_eq!((data.status, data.residual), (Some(0), residual));
                assert_eq!(data.data.len(), moved);
            }
            Some(Pdu::ScsiResponse(response)) => {
                assert_eq!(
                    (response.status, response.residual, 0),
                    (0, residual, moved)
                );
            }
            other => panic!("{other:?}"),
        }
    }
    // A write that wants less than it is offered asks only for what it wants.
    let mut write = client.write(7, 1);
    write.expected_len_bytes = 1024;
    let data = pattern(1024, 3);
    write.data = Payload::from(data);
    client.send(&mut world, write);
    let response = client.recv_response(&mut world);
    assert_eq!(
        (response.status, response.residual),
        (0, Residual::Underflow(512))
    );
    assert_eq!(world.unit().writes, [(7, 512)]);
    // A write that wants more than it is offered changes nothing.
    let mut write = client.write(7, 2);
    write.expected_len_bytes = 512;
    write.data = Payload::from(pattern(512, 4));
    client.send(&mut world, write);
    let response = client.recv_response(&mut world);
    assert_eq!(sense(&response), (5, 0x0e, 0x03));
    assert_eq!(response.residual, Residual::Overflow(512));
    assert_eq!(world.unit().writes.len(), 1);
}

/// RFC 7143 11.4.7.2: data that was not allowed, or not enough of it.
#[test]
fn wrong_unsolicited_data_ends_in_check_condition() {
    let offer = Offer {
        initial_r2t: true,
        immediate_data: false,
        ..Offer::default()
    };
    let mut world = World::with(PortalSettings {
        offer: offer.clone(),
        ..PortalSettings::default()
    });
    let mut client = world.login(offer);
    let mut write = client.write(0, 1);
    write.data = Payload::from(vec![1; 512]);
    client.send(&mut world, write);
    let response = client.recv_response(&mut world);
    assert_eq!(sense(&response), (0x0b, 0x0c, 0x0c));
    let mut write = client.write(0, 1);
    write.final_ = false;
    let itt = write.itt;
    client.send(&mut world, write);
    assert!(
        client.recv(&mut world).is_none(),
        "the response waits for the end of the data"
    );
    let data = client.data_out(itt, Ttt::NONE, 0, 0, vec![1; 512], true);
    client.send(&mut world, data);
    let response = client.recv_response(&mut world);
    assert_eq!(sense(&response), (0x0b, 0x0c, 0x0c));

    let mut world = World::new();
    let mut client = world.login(Offer::default());
    let mut write = client.write(0, 2);
    write.final_ = false;
    let itt = write.itt;
    client.send(&mut world, write);
    let data = client.data_out(itt, Ttt::NONE, 0, 0, vec![1; 512], true);
    client.send(&mut world, data);
    let response = client.recv_response(&mut world);
    assert_eq!(sense(&response), (0x0b, 0x0c, 0x0d));
    assert!(world.unit().writes.is_empty());
}

/// RFC 7143 7.9: a gap in DataSN or offset is treated as a digest error; the task ends after its data.
#[test]
fn data_out_of_order_ends_its_task() {
    for (sn, offset) in [(1, 0), (0, 512)] {
        let mut world = World::new();
        let mut client = world.login(Offer::default());
        let mut write = client.write(0, 2);
        write.final_ = false;
        let itt = write.itt;
        client.send(&mut world, write);
        let data = client.data_out(itt, Ttt::NONE, sn, offset, vec![1; 512], false);
        client.send(&mut world, data);
        assert!(client.recv(&mut world).is_none());
        let data = client.data_out(itt, Ttt::NONE, sn + 1, 512, vec![1; 512], true);
        client.send(&mut world, data);
        let response = client.recv_response(&mut world);
        assert_eq!(sense(&response), (0x0b, 0x47, 0x05));
        assert!(world.unit().writes.is_empty());
    }
}

/// A transfer tag that nobody gave out ends the session.
#[test]
fn data_for_an_unknown_r2t_ends_the_session() {
    let mut world = World::new();
    let mut client = world.login(Offer {
        initial_r2t: true,
        immediate_data: false,
        ..Offer::default()
    });
    let write = client.write(0, 1);
    client.send(&mut world, write);
    let r2t = client.recv_r2t(&mut world);
    let data = client.data_out(r2t.itt, Ttt(r2t.ttt.0 + 1), 0, 0, vec![1; 512], true);
    client.send(&mut world, data);
    assert!(client.is_closed(&mut world));
    assert!(world.portal.sessions().is_empty());
    assert!(world.unit().writes.is_empty());
}

#[test]
fn data_for_nobody_is_rejected_and_the_session_goes_on() {
    let mut world = World::new();
    let mut client = world.login(Offer::default());
    let data = client.data_out(Itt(0xdead), Ttt(9), 0, 0, vec![1; 512], true);
    client.send(&mut world, data);
    match client.recv(&mut world) {
        Some(Pdu::Reject(reject)) => {
            assert_eq!(reject.reason, 4);
            let header = reject.data.to_bytes();
            assert_eq!((header.len(), header[0]), (48, 0x05));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(read_all(&mut world, &mut client, 0, 1).len(), 512);
}

/// RFC 7143 7.8: the Data-Out is rejected (02) and its task ends with 47/05 after all its data.
#[test]
fn a_wrong_data_digest_is_rejected_and_ends_its_task() {
    let offer = Offer {
        data_digest: DigestPolicy::Require,
        initial_r2t: true,
        immediate_data: false,
        ..Offer::default()
    };
    let mut world = World::with(PortalSettings {
        offer: offer.clone(),
        ..PortalSettings::default()
    });
    let mut client = world.login(offer);
    let write = client.write(0, 2);
    client.send(&mut world, write);
    let r2t = client.recv_r2t(&mut world);
    let first = client.data_out(r2t.itt, r2t.ttt, 0, 0, vec![1; 512], false);
    let mut queue = SendQueue::new();
    first.emit(&mut queue, client.wire.digests);
    let mut bytes = queue.to_vec();
    bytes[100] ^= 0x40;
    client.wire.send_bytes(&mut world, &bytes);
    match client.recv(&mut world) {
        Some(Pdu::Reject(reject)) => assert_eq!(reject.reason, 2),
        other => panic!("{other:?}"),
    }
    assert!(client.recv(&mut world).is_none());
    let second = client.data_out(r2t.itt, r2t.ttt, 1, 512, vec![1; 512], true);
    client.send(&mut world, second);
    let response = client.recv_response(&mut world);
    assert_eq!(sense(&response), (0x0b, 0x47, 0x05));
    assert!(world.unit().writes.is_empty());
}

/// RFC 7143 7.8: a command with damaged immediate data was never received; the same CmdSN may come again.
#[test]
fn a_command_with_a_wrong_data_digest_leaves_a_hole() {
    let offer = Offer {
        data_digest: DigestPolicy::Require,
        ..Offer::default()
    };
    let mut world = World::with(PortalSettings {
        offer: offer.clone(),
        ..PortalSettings::default()
    });
    let mut client = world.login(offer);
    let mut write = client.write(0, 1);
    write.data = Payload::from(pattern(512, 1));
    let mut queue = SendQueue::new();
    Pdu::from(write.clone()).emit(&mut queue, client.wire.digests);
    let mut bytes = queue.to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    client.wire.send_bytes(&mut world, &bytes);
    match client.recv(&mut world) {
        Some(Pdu::Reject(reject)) => {
            assert_eq!(reject.reason, 2);
            assert_eq!(reject.sn.exp_cmd_sn, write.cmd_sn);
        }
        other => panic!("{other:?}"),
    }
    client.send(&mut world, write);
    assert_eq!(client.recv_response(&mut world).status, 0);
    assert_eq!(world.unit().writes, [(0, 512)]);
}

#[test]
fn a_wrong_header_digest_drops_the_connection() {
    let offer = Offer {
        header_digest: DigestPolicy::Require,
        ..Offer::default()
    };
    let mut world = World::with(PortalSettings {
        offer: offer.clone(),
        ..PortalSettings::default()
    });
    let mut client = world.login(offer);
    let read = Pdu::from(client.read(0, 1));
    let mut queue = SendQueue::new();
    read.emit(&mut queue, client.wire.digests);
    let mut bytes = queue.to_vec();
    bytes[35] ^= 1;
    client.wire.send_bytes(&mut world, &bytes);
    assert!(client.wire.drain(&mut world).is_empty());
    assert!(client.is_closed(&mut world));
}

/// Additional header segments that we do not know are covered by the header digest and otherwise ignored
/// (RFC 7143 11.2.2).
#[test]
fn additional_headers_are_tolerated() {
    let mut world = World::new();
    let mut client = world.login(Offer::default());
    let mut read = client.read(1, 1);
    read.extended_cdb = bytes::Bytes::from_static(&[1, 2, 3, 4, 5]);
    client.send(&mut world, read);
    assert_eq!(client.recv_data(&mut world).status, Some(0));
}

#[test]
fn control_pdus_go_between_the_data_of_a_long_read() {
    let offer = Offer {
        max_recv_data_segment_bytes: 512,
        ..Offer::default()
    };
    let mut world = World::new();
    let mut client = world.login(offer);
    let read = client.read(0, 4096);
    client.send(&mut world, read);
    let mut tx = SendQueue::new();
    let id = client.id();
    world.portal.poll_transmit(id, &mut tx);
    assert!(tx.len() < 2 * 1024 * 1024, "not the whole 2 MiB at once");
    client.wire.received.extend(&tx.to_vec());
    let ping = client.ping(b"quick");
    client.send(&mut world, ping);
    let mut before = 0;
    loop {
        match client.recv(&mut world) {
            Some(Pdu::DataIn(data)) => {
                assert!(data.status.is_none(), "the ping waited for all data");
                before += data.data.len();
            }
            Some(Pdu::NopIn(nop)) => {
                assert_eq!(nop.data.to_bytes(), &b"quick"[..]);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(before < 4096 * 512);
}

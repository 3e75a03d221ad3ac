//! Data in both directions (RFC 7143 4.2.5, 11.7, 11.8, 13.10 to 13.17).

use berth_iscsi::error::Recovery;

use super::*;

/// Makes a PDU wrong.
type Spoil<P> = fn(&mut P);

/// What a target says that wants no more than it must take.
fn modest() -> Offer {
    Offer {
        max_recv_data_segment_bytes: 1024,
        first_burst_bytes: 4096,
        max_burst_bytes: 8192,
        max_outstanding_r2t: 2,
        ..Offer::default()
    }
}

/// Takes one sequence of Data-Out: its data, checked for order, lengths, tag and LUN.
async fn sequence(peer: &mut Peer, ttt: Ttt, lun: Lun, offset: usize, len: usize) -> Vec<u8> {
    let mut data = Vec::new();
    for data_sn in 0.. {
        let pdu = peer.data_out().await;
        assert_eq!((pdu.data_sn, pdu.ttt, pdu.lun), (data_sn, ttt, lun));
        assert_eq!(pdu.buffer_offset_bytes as usize, offset + data.len());
        assert!(pdu.data.len() <= 1024, "MaxRecvDataSegmentLength");
        data.extend_from_slice(&pdu.data.to_bytes());
        assert_eq!(pdu.final_, data.len() == len, "F ends the sequence");
        if pdu.final_ {
            break;
        }
    }
    data
}

#[test]
fn what_may_leave_unasked_rfc7143_13_10_13_11() {
    // InitialR2T, ImmediateData: immediate bytes, end of the unsolicited ones.
    let table = [
        (true, false, 0, 0),
        (true, true, 1024, 1024),
        (false, false, 0, 4096),
        (false, true, 1024, 4096),
    ];
    run(async |mut rig: Rig| {
        for (initial_r2t, immediate_data, immediate, unsolicited) in table {
            rig.target = Offer {
                initial_r2t,
                immediate_data,
                ..modest()
            };
            let (client, mut peer) = rig.session().await;
            let data = pattern(10_000);
            client.submit(write(1, &data));
            let command = peer.command().await;
            assert_eq!(command.data.len(), immediate);
            assert_eq!(command.final_, unsolicited == immediate);
            assert_eq!(command.expected_len_bytes, 10_000);
            let mut got = command.data.to_bytes().to_vec();
            if unsolicited > immediate {
                let len = unsolicited - immediate;
                let lun = Lun::default();
                got.extend(sequence(&mut peer, Ttt::NONE, lun, immediate, len).await);
            }
            for r2t_sn in 0.. {
                let len = (10_000 - got.len()).min(8192);
                if len == 0 {
                    break;
                }
                let r2t = peer.r2t(
                    command.itt,
                    40 + r2t_sn,
                    r2t_sn,
                    got.len() as u32,
                    len as u32,
                );
                peer.send(r2t.clone()).await;
                let offset = got.len();
                got.extend(sequence(&mut peer, r2t.ttt, r2t.lun, offset, len).await);
            }
            assert!(got == data, "what arrived is what was written");
            let good = peer.good(command.itt);
            peer.send(good).await;
            assert_eq!(client.outcome().await, completed(&[]));
        }
    });
}

#[test]
fn several_r2ts_are_served_in_their_order_rfc7143_11_8() {
    run(async |mut rig: Rig| {
        rig.target = Offer {
            initial_r2t: true,
            immediate_data: false,
            ..modest()
        };
        let (client, mut peer) = rig.session().await;
        let data = pattern(4000);
        client.submit(write(1, &data));
        let itt = peer.command().await.itt;
        let first = peer.r2t(itt, 8, 0, 0, 3000);
        let second = peer.r2t(itt, 9, 1, 3000, 1000);
        peer.send(first.clone()).await;
        peer.send(second).await;
        let mut got = sequence(&mut peer, Ttt(8), first.lun, 0, 3000).await;
        got.extend(sequence(&mut peer, Ttt(9), first.lun, 3000, 1000).await);
        assert!(got == data);
    });
}

#[test]
fn an_r2t_beyond_the_rules_ends_the_session_rfc7143_11_8() {
    let table: [(&str, Spoil<R2t>); 8] = [
        ("nothing", |r2t| r2t.desired_len_bytes = 0),
        ("more than MaxBurstLength", |r2t| {
            r2t.desired_len_bytes = 8193;
        }),
        ("behind the end", |r2t| r2t.desired_len_bytes = 8191),
        ("an offset that overflows", |r2t| {
            r2t.buffer_offset_bytes = u32::MAX;
        }),
        ("a gap", |r2t| r2t.buffer_offset_bytes = 512),
        ("the reserved tag", |r2t| r2t.ttt = Ttt::NONE),
        ("a number too far", |r2t| r2t.r2t_sn = 1),
        ("a task that is not there", |r2t| r2t.itt = Itt(0x7777_7777)),
    ];
    run(async |mut rig: Rig| {
        for (what, spoil) in table {
            rig.target = Offer {
                initial_r2t: true,
                immediate_data: false,
                ..modest()
            };
            let (client, mut peer) = rig.session().await;
            client.submit(write(1, &pattern(8190)));
            let itt = peer.command().await.itt;
            let mut r2t = peer.r2t(itt, 8, 0, 0, 4096);
            spoil(&mut r2t);
            peer.send(r2t).await;
            let error = client.failed().await;
            assert_eq!(error.recovery(), Recovery::Session, "{what}: {error}");
            assert_eq!(peer.until_closed().await, [], "{what}");
        }
    });
}

#[test]
fn more_r2ts_than_agreed_end_the_session_rfc7143_13_17() {
    run(async |mut rig: Rig| {
        rig.target = Offer {
            initial_r2t: true,
            immediate_data: false,
            ..modest()
        };
        let (client, mut peer) = rig.session().await;
        client.submit(write(1, &pattern(8190)));
        let itt = peer.command().await.itt;
        let bytes: Vec<u8> = (0..3)
            .flat_map(|n| peer.encode(peer.r2t(itt, 8 + n, n, n * 100, 100)))
            .collect();
        peer.send_bytes(&bytes).await;
        assert!(matches!(
            client.failed().await,
            Error::TargetMisbehaved(Misbehaviour::BadR2t { .. })
        ));
    });
}

#[test]
fn a_read_is_put_together_from_its_parts_rfc7143_11_7() {
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        let data = pattern(5000);
        for phase_collapse in [false, true] {
            client.submit(read(1, 5000));
            let itt = peer.command().await.itt;
            for (n, part) in data.chunks(1000).enumerate() {
                let mut pdu = peer.data_in(itt, n as u32, n as u32 * 1000, part);
                if n == 4 {
                    pdu.final_ = true;
                    if phase_collapse {
                        pdu.status = Some(GOOD);
                        pdu.sn = peer.sn();
                    }
                }
                peer.send(pdu).await;
            }
            if !phase_collapse {
                let mut good = peer.response(itt, GOOD, Residual::None);
                good.exp_data_sn = 5;
                peer.send(good).await;
            }
            assert_eq!(client.outcome().await, completed(&data));
        }
    });
}

#[test]
fn data_beyond_the_rules_ends_the_session_rfc7143_11_7() {
    let table: [(&str, Spoil<DataIn>); 5] = [
        ("behind the end", |pdu| pdu.buffer_offset_bytes = 4000),
        ("an offset that overflows", |pdu| {
            pdu.buffer_offset_bytes = u32::MAX - 3;
        }),
        ("a gap", |pdu| pdu.buffer_offset_bytes = 4),
        ("a number too far", |pdu| pdu.data_sn = 1),
        ("a task that is not there", |pdu| pdu.itt = Itt(0x7777_7777)),
    ];
    run(async |mut rig: Rig| {
        for (what, spoil) in table {
            let (client, mut peer) = rig.session().await;
            client.submit(read(1, 4000));
            let itt = peer.command().await.itt;
            let mut pdu = peer.data_in(itt, 0, 0, &pattern(1000));
            spoil(&mut pdu);
            peer.send(pdu).await;
            let error = client.failed().await;
            assert_eq!(error.recovery(), Recovery::Session, "{what}: {error}");
        }
    });
}

#[test]
fn data_for_the_wrong_direction_ends_the_session_rfc7143_11_7() {
    run(async |mut rig: Rig| {
        rig.target.immediate_data = false;
        rig.target.initial_r2t = true;
        let (client, mut peer) = rig.session().await;
        client.submit(write(1, &pattern(512)));
        let itt = peer.command().await.itt;
        let pdu = peer.data_in(itt, 0, 0, &pattern(100));
        peer.send(pdu).await;
        assert!(matches!(
            client.failed().await,
            Error::TargetMisbehaved(Misbehaviour::WrongTask { .. })
        ));
    });
}

#[test]
fn a_segment_longer_than_declared_is_not_taken_rfc7143_13_12() {
    run(async |mut rig: Rig| {
        rig.offer.max_recv_data_segment_bytes = 4096;
        let (client, mut peer) = rig.session().await;
        client.submit(read(1, 65_536));
        let itt = peer.command().await.itt;
        let pdu = peer.data_in(itt, 0, 0, &pattern(4100));
        peer.send(pdu).await;
        assert!(matches!(client.failed().await, Error::Malformed { .. }));
    });
}

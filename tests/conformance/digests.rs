//! Header and data digests (RFC 7143 7.8, 13.1).

use berth_iscsi::error::DigestError;
use berth_iscsi::login::DigestPolicy;

use super::*;

fn with_digests(rig: &mut Rig) {
    for offer in [&mut rig.offer, &mut rig.target] {
        offer.header_digest = DigestPolicy::Require;
        offer.data_digest = DigestPolicy::Require;
    }
}

#[test]
fn what_is_sent_has_digests_that_fit_rfc7143_13_1() {
    // The decoder of the target checks each of them.
    run(async |mut rig: Rig| {
        with_digests(&mut rig);
        rig.target.first_burst_bytes = 1024;
        let (client, mut peer) = rig.session().await;
        assert!(peer.digests.header && peer.digests.data);
        let data = pattern(1001);
        client.submit(write(1, &data));
        let command = peer.command().await;
        let mut got = command.data.to_bytes().to_vec();
        while got.len() < data.len() {
            got.extend_from_slice(&peer.data_out().await.data.to_bytes());
        }
        assert!(got == data);
        let good = peer.good(command.itt);
        peer.send(good).await;
        assert_eq!(client.outcome().await, completed(&[]));
    });
}

/// A read whose only Data-In has one bit flipped at this offset of the PDU.
async fn damaged(rig: &mut Rig, at: usize) -> (CloseReason, Vec<Unfinished>, Vec<Pdu>) {
    let (client, mut peer) = rig.session().await;
    client.submit(read(1, 512));
    let itt = peer.command().await.itt;
    let mut bytes = peer.encode(peer.data_in(itt, 0, 0, &pattern(512)));
    bytes[at] ^= 0x10;
    peer.send_bytes(&bytes).await;
    let ((reason, unfinished), said) = tokio::join!(client.closed(), peer.until_closed());
    (reason, unfinished, said)
}

#[test]
fn a_damaged_header_ends_the_connection_rfc7143_7_8() {
    // Where the next PDU starts is not known any more.
    run(async |mut rig: Rig| {
        with_digests(&mut rig);
        for at in [16, 40, 48, 51] {
            let (reason, unfinished, said) = damaged(&mut rig, at).await;
            assert!(
                matches!(
                    reason,
                    CloseReason::Failed(Error::Digest(DigestError::Header { .. }))
                ),
                "{reason:?}"
            );
            assert!(unfinished[0].sent);
            assert_eq!(said, [], "no SNACK at level 0");
        }
    });
}

#[test]
fn damaged_data_is_never_handed_out_rfc7143_7_8() {
    // At level 0 it cannot be asked for again: the session ends, and the read is done anew.
    run(async |mut rig: Rig| {
        with_digests(&mut rig);
        for at in [52, 52 + 511, 52 + 512] {
            let (reason, unfinished, said) = damaged(&mut rig, at).await;
            assert!(
                matches!(
                    reason,
                    CloseReason::Failed(Error::Digest(DigestError::Data { .. }))
                ),
                "{reason:?}"
            );
            assert_eq!(unfinished.len(), 1);
            assert_eq!(said, [], "no SNACK at level 0");
        }
    });
}

#[test]
fn the_padding_is_under_the_digest_too_rfc7143_11_2_3() {
    run(async |mut rig: Rig| {
        with_digests(&mut rig);
        let (client, mut peer) = rig.session().await;
        client.submit(read(1, 5));
        let itt = peer.command().await.itt;
        let mut bytes = peer.encode(peer.data_in(itt, 0, 0, b"hello"));
        bytes[52 + 6] ^= 1;
        peer.send_bytes(&bytes).await;
        assert!(matches!(client.failed().await, Error::Digest(_)));
    });
}

#[test]
fn a_required_digest_that_is_refused_ends_the_login_rfc7143_13_1() {
    run(async |mut rig: Rig| {
        rig.offer.header_digest = DigestPolicy::Require;
        let (connected, ()) = rig
            .connect(async |accepted| {
                let mut peer = rig::accept(accepted).await;
                loop {
                    let Some(Pdu::LoginRequest(request)) = peer.any().await else {
                        return;
                    };
                    let security = request.current_stage == Stage::Security;
                    let text = if security {
                        "AuthMethod=None\0TargetPortalGroupTag=1\0"
                    } else {
                        "HeaderDigest=None\0TargetPortalGroupTag=1\0"
                    };
                    let Pdu::LoginResponse(mut response) =
                        peer.login_status(&request, (0, 0), text)
                    else {
                        unreachable!("that is what it makes");
                    };
                    response.transit = request.transit;
                    response.next_stage = request.next_stage;
                    response.tsih = berth_iscsi::types::Tsih(u16::from(!security));
                    peer.send(Pdu::LoginResponse(response)).await;
                }
            })
            .await;
        assert!(matches!(
            connected.expect_err("no digest, no session").error,
            Error::TargetIncompatible(_)
        ));
    });
}

//! Status, residuals and what a GOOD status is worth (RFC 7143 11.4).

use super::*;

/// A read of 1000 bytes of which `moved` came, with status GOOD and this residual.
async fn read_of(rig: &mut Rig, moved: usize, residual: Residual) -> TaskOutcome {
    let (client, mut peer) = rig.session().await;
    client.submit(read(1, 1000));
    let itt = peer.command().await.itt;
    if moved > 0 {
        let mut pdu = peer.data_in(itt, 0, 0, &pattern(moved));
        pdu.final_ = true;
        peer.send(pdu).await;
    }
    let mut response = peer.response(itt, GOOD, residual);
    response.exp_data_sn = u32::from(moved > 0);
    peer.send(response).await;
    client.outcome().await
}

#[test]
fn an_underflow_that_adds_up_is_an_answer_rfc7143_11_4_5() {
    run(async |mut rig: Rig| {
        for moved in [0, 1, 600, 999] {
            let left = 1000 - moved as u32;
            let outcome = read_of(&mut rig, moved, Residual::Underflow(left)).await;
            assert_eq!(
                outcome,
                TaskOutcome::Completed {
                    status: GOOD,
                    status_qualifier: 0,
                    sense: bytes::Bytes::new(),
                    data: Payload::from(pattern(moved)),
                    residual: Residual::Underflow(left),
                }
            );
        }
    });
}

#[test]
fn good_with_bytes_missing_is_not_good_rfc7143_11_4_5() {
    // Never hand out what did not come.
    run(async |mut rig: Rig| {
        for (moved, residual) in [
            (600, Residual::None),
            (600, Residual::Underflow(399)),
            (600, Residual::Underflow(401)),
            (600, Residual::Overflow(400)),
            (0, Residual::None),
            (1000, Residual::Underflow(1)),
        ] {
            let outcome = read_of(&mut rig, moved, residual).await;
            assert!(
                matches!(outcome, TaskOutcome::DataMismatch { expected_bytes: 1000, moved_bytes, .. }
                    if moved_bytes as usize == moved),
                "{outcome:?}"
            );
        }
    });
}

#[test]
fn an_overflow_beside_whole_data_is_told_rfc7143_11_4_5() {
    run(async |mut rig: Rig| {
        let outcome = read_of(&mut rig, 1000, Residual::Overflow(24)).await;
        assert!(
            matches!(outcome, TaskOutcome::Completed { residual: Residual::Overflow(24), ref data, .. }
                if data.len() == 1000)
        );
    });
}

#[test]
fn a_write_that_was_not_taken_whole_is_not_good_rfc7143_11_4_5() {
    run(async |mut rig: Rig| {
        rig.target.immediate_data = false;
        rig.target.initial_r2t = true;
        let (client, mut peer) = rig.session().await;
        client.submit(write(1, &pattern(1000)));
        let itt = peer.command().await.itt;
        let r2t = peer.r2t(itt, 1, 0, 0, 600);
        peer.send(r2t).await;
        peer.data_out().await;
        let good = peer.good(itt);
        peer.send(good).await;
        assert!(matches!(
            client.outcome().await,
            TaskOutcome::DataMismatch {
                expected_bytes: 1000,
                moved_bytes: 600,
                ..
            }
        ));
    });
}

#[test]
fn a_response_code_is_no_status_rfc7143_11_4_3() {
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        for response in [1, 0x80, 0xff] {
            client.submit(no_data(1));
            let itt = peer.command().await.itt;
            let mut pdu = peer.response(itt, GOOD, Residual::None);
            pdu.response = response;
            peer.send(pdu).await;
            assert_eq!(
                client.outcome().await,
                TaskOutcome::TargetFailure { response }
            );
        }
    });
}

#[test]
fn every_status_is_carried_rfc7143_11_4_2() {
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        for wanted in [0x00, 0x02, 0x04, 0x08, 0x18, 0x28, 0x30, 0x40, 0x99] {
            client.submit(no_data(1));
            let itt = peer.command().await.itt;
            let pdu = peer.response(itt, wanted, Residual::None);
            peer.send(pdu).await;
            assert!(matches!(
                client.outcome().await,
                TaskOutcome::Completed { status, .. } if status == wanted
            ));
        }
    });
}

#[test]
fn an_answer_to_nothing_ends_the_session_rfc7143_11_4() {
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        let good = peer.good(Itt(0x1234_5678));
        peer.send(good).await;
        assert!(matches!(
            client.failed().await,
            Error::TargetMisbehaved(Misbehaviour::UnknownTask { opcode: 0x21, .. })
        ));
    });
}

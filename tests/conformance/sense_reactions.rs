//! From the status on the wire to what is done about it (SAM-5 5.3, SPC-4 4.5, RFC 7143 11.4.7).
//!
//! The whole table of codes is tested beside `scsi::sense::action`; here it is the way there.

use berth_iscsi::scsi::sense::{Failure, Refresh, Verdict};
use berth_iscsi::scsi::status::StatusAction;
use berth_iscsi::scsi::{Code, ScsiStatus, Sense, SenseFormat, SenseKey};
use berth_iscsi::session::QueueDepth;

use super::*;

/// Sends a command and has it answered with this sense; what arrives.
async fn through_the_wire(client: &Client, peer: &mut Peer, sense: &[u8]) -> Sense {
    client.submit(no_data(1));
    let itt = peer.command().await.itt;
    let answer = peer.check_condition(itt, sense);
    peer.send(answer).await;
    match client.outcome().await {
        TaskOutcome::Completed {
            status: CHECK_CONDITION,
            sense,
            ..
        } => Sense::parse(&sense).expect("sense data"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn sense_in_either_format_leads_to_its_reaction_spc4_4_5() {
    let table = [
        (SenseKey::UnitAttention, 0x29, 0x00, Verdict::Retry),
        (SenseKey::UnitAttention, 0x2a, 0x09, Verdict::Retry),
        (
            SenseKey::NotReady,
            0x04,
            0x0a,
            Verdict::RetryFor { seconds: 60 },
        ),
        (
            SenseKey::NotReady,
            0x04,
            0x0b,
            Verdict::SwitchPath(Failure::NotReady),
        ),
        (
            SenseKey::MediumError,
            0x11,
            0x00,
            Verdict::Fail(Failure::Medium),
        ),
        (
            SenseKey::IllegalRequest,
            0x25,
            0x00,
            Verdict::SwitchPath(Failure::NoLogicalUnit),
        ),
        (
            SenseKey::DataProtect,
            0x27,
            0x07,
            Verdict::Fail(Failure::NoSpace),
        ),
        (SenseKey::AbortedCommand, 0x47, 0x05, Verdict::Retry),
        (SenseKey::AbortedCommand, 0x4e, 0x00, Verdict::DropSession),
    ];
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        for (key, asc, ascq, verdict) in table {
            for format in [SenseFormat::Fixed, SenseFormat::Descriptor] {
                let sent = Sense::new(Code::new(key, asc, ascq)).with_information(0x1234);
                let got = through_the_wire(&client, &mut peer, &sent.emit(format)).await;
                assert_eq!(got, sent);
                assert_eq!(got.classify().verdict, verdict, "{}", got.code);
            }
        }
    });
}

#[test]
fn a_deferred_error_is_not_the_commands_own_spc4_4_5_7() {
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        let sent = Sense {
            deferred: true,
            ..Sense::new(Code::WRITE_ERROR)
        };
        for format in [SenseFormat::Fixed, SenseFormat::Descriptor] {
            let got = through_the_wire(&client, &mut peer, &sent.emit(format)).await;
            let action = got.classify();
            assert!(got.deferred && action.alert);
            assert_eq!(action.verdict, Verdict::Retry);
            assert!(action.refresh.contains(Refresh::CACHE_LOSS));
        }
    });
}

#[test]
fn lying_sense_lengths_are_survived_rfc7143_11_4_7() {
    // SenseLength says more than there is, less than there is, nothing.
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        for data in [
            &[0xff, 0xff, 0x70, 0, 5][..],
            &[0, 1, 0x70, 0, 5],
            &[0, 0],
            &[0],
            &[],
        ] {
            client.submit(no_data(1));
            let itt = peer.command().await.itt;
            let mut response = peer.response(itt, CHECK_CONDITION, Residual::None);
            response.data = Payload::from(data.to_vec());
            peer.send(response).await;
            let TaskOutcome::Completed { sense, .. } = client.outcome().await else {
                panic!("no answer");
            };
            assert!(sense.len() <= data.len());
            let _ = Sense::parse(&sense);
        }
    });
}

#[test]
fn statuses_lead_to_their_reactions_sam5_5_3() {
    let table = [
        (ScsiStatus::BUSY, StatusAction::Backoff),
        (ScsiStatus::ACA_ACTIVE, StatusAction::Backoff),
        (ScsiStatus::TASK_SET_FULL, StatusAction::BackoffAndShrink),
        (ScsiStatus::TASK_ABORTED, StatusAction::Retry),
        (ScsiStatus::RESERVATION_CONFLICT, StatusAction::Fenced),
        (ScsiStatus(0x77), StatusAction::Unknown),
    ];
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        for (sent, action) in table {
            client.submit(no_data(1));
            let itt = peer.command().await.itt;
            let pdu = peer.response(itt, sent.0, Residual::None);
            peer.send(pdu).await;
            let TaskOutcome::Completed { status, .. } = client.outcome().await else {
                panic!("no answer");
            };
            assert_eq!(ScsiStatus(status).action(), action);
        }
    });
}

#[test]
fn a_full_task_set_teaches_the_depth_sam5_5_3_1() {
    // The target holds eight commands and refuses the others; the depth settles there.
    const HOLDS: usize = 8;
    run(async |mut rig: Rig| {
        let (client, mut peer) = rig.session().await;
        let mut depth = QueueDepth::new(berth_iscsi::session::QueueDepthOptions {
            depth_max: 32,
            ..Default::default()
        });
        let mut in_flight = 0;
        while depth.has_room(in_flight) {
            client.submit(no_data(in_flight as u64));
            in_flight += 1;
        }
        let mut held = Vec::new();
        for _ in 0..in_flight {
            let itt = peer.command().await.itt;
            if held.len() < HOLDS {
                held.push(itt);
            } else {
                let full = ScsiStatus::TASK_SET_FULL.0;
                let pdu = peer.response(itt, full, Residual::None);
                peer.send(pdu).await;
            }
        }
        let now = tokio::time::Instant::now().into_std();
        for _ in HOLDS..32 {
            let outcome = client.outcome().await;
            in_flight -= 1;
            assert!(matches!(outcome, TaskOutcome::Completed { status, .. }
                    if ScsiStatus(status) == ScsiStatus::TASK_SET_FULL));
            depth.on_task_set_full(now, in_flight);
        }
        assert_eq!((depth.limit(), in_flight), (HOLDS, HOLDS));
        assert!(!depth.has_room(in_flight));
    });
}

//! Our own initiator against our own target, joined in memory.

use proptest::prelude::*;

use super::*;
use crate::login::DigestPolicy;
use crate::session::{Command, Event, Session, SessionOptions, TaskOutcome, Transfer};

struct Pair {
    world: World,
    session: Session,
    id: ConnectionId,
    to_target: ReceiveBuffer,
    to_initiator: ReceiveBuffer,
}

impl Pair {
    fn new(settings: PortalSettings, offer: Offer) -> Self {
        let mut world = World::with(settings);
        let id = world.portal.accept(world.now, "127.0.0.1:3260", 1).unwrap();
        let kind = SessionKind::Normal {
            target_name: name(TARGET),
        };
        let mut config =
            LoginConfig::new(name(INITIATOR), kind.clone(), Isid::random([1, 2, 3], 1));
        config.offer = offer;
        let mut machine = InitiatorLogin::new(config).unwrap();
        let mut wire = Wire::new(id);
        let outcome = loop {
            if let Some(request) = machine.poll_transmit() {
                wire.send(&mut world, &Pdu::LoginRequest(request));
            }
            match wire.recv(&mut world) {
                Some(Pdu::LoginResponse(response)) => {
                    if let Step::Done(outcome) = machine.on_response(&response).unwrap() {
                        break outcome;
                    }
                }
                other => panic!("{other:?}"),
            }
        };
        let session = Session::new(*outcome, &kind, SessionOptions::default(), world.now);
        Self {
            world,
            session,
            id,
            to_target: wire.to_target,
            to_initiator: wire.received,
        }
    }

    /// Carries bytes both ways, `step` at a time, until nothing moves.
    fn run(&mut self, step: usize) -> Vec<(u64, TaskOutcome)> {
        let mut done = Vec::new();
        let (mut up, mut down) = (SendQueue::new(), SendQueue::new());
        loop {
            let now = self.world.now;
            self.session.poll_transmit(now, &mut up);
            let moved_up = carry(&mut up, &mut self.to_target, step);
            self.world
                .portal
                .handle_input(self.id, now, &mut self.to_target);
            self.world.portal.poll_transmit(self.id, &mut down);
            let moved_down = carry(&mut down, &mut self.to_initiator, step);
            self.session
                .handle_input(now, &mut self.to_initiator)
                .unwrap();
            while let Some(event) = self.session.poll_event() {
                match event {
                    Event::TaskDone { tag, outcome } => done.push((tag, outcome)),
                    other => panic!("{other:?}"),
                }
            }
            if !moved_up && !moved_down {
                return done;
            }
        }
    }
}

fn carry(from: &mut SendQueue, to: &mut ReceiveBuffer, step: usize) -> bool {
    if from.is_empty() {
        return false;
    }
    let n = from.len().min(step);
    to.extend(&from.to_vec()[..n]);
    from.advance(n);
    true
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever both sides negotiate and however the bytes are cut: every command ends, and the bytes are
    /// those of a model disk.
    #[test]
    fn both_roles_agree_with_a_model(
        (initial_r2t, immediate_data, header, data) in any::<(bool, bool, bool, bool)>(),
        (first, extra, segment, target_segment) in (512u32..9000, 0u32..20_000, 512u32..9000, 512u32..9000),
        (r2ts, window, collapse) in (1u16..5, 1u32..20, any::<bool>()),
        commands in proptest::collection::vec((any::<bool>(), 0u32..100, 1u16..40, any::<u8>()), 1..24),
        step in 1000usize..100_000,
    ) {
        let digest = |on| if on { DigestPolicy::Require } else { DigestPolicy::Off };
        let offer = Offer {
            initial_r2t,
            immediate_data,
            first_burst_bytes: first,
            max_burst_bytes: first + extra,
            max_recv_data_segment_bytes: segment,
            max_outstanding_r2t: r2ts,
            header_digest: digest(header),
            data_digest: digest(data),
            ..Offer::default()
        };
        let mut pair = Pair::new(PortalSettings {
            offer: Offer {
                initial_r2t: false,
                immediate_data: true,
                max_recv_data_segment_bytes: target_segment,
                ..offer.clone()
            },
            window,
            phase_collapse: collapse,
            write_buffer_bytes: 16 * 1024,
            ..PortalSettings::default()
        }, offer);
        let mut model = pair.world.unit().bytes.clone();
        // Several at a time; commands that overlap a write wait for it, as a client of ours would.
        for batch in commands.chunks(6) {
            let mut expected = Vec::new();
            let mut touched: Vec<std::ops::Range<u32>> = Vec::new();
            for (tag, (write, lba, blocks, seed)) in batch.iter().enumerate() {
                let range = *lba..lba + u32::from(*blocks);
                if touched.iter().any(|t| t.start < range.end && range.start < t.end) {
                    continue;
                }
                touched.push(range);
                let bytes = *lba as usize * BLOCK_BYTES..(*lba as usize + usize::from(*blocks)) * BLOCK_BYTES;
                let (cdb, transfer) = if *write {
                    let data = pattern(bytes.len(), *seed);
                    model[bytes].copy_from_slice(&data);
                    expected.push((tag as u64, Vec::new()));
                    (
                        crate::scsi::Cdb::write10(*lba, *blocks, crate::scsi::cdb::Caching::NONE),
                        Transfer::Write(Payload::from(data)),
                    )
                } else {
                    let len_bytes = bytes.len() as u32;
                    expected.push((tag as u64, model[bytes].to_vec()));
                    (
                        crate::scsi::Cdb::read10(*lba, *blocks, crate::scsi::cdb::Caching::NONE),
                        Transfer::Read { len_bytes },
                    )
                };
                pair.session.submit(Command::new(tag as u64, Lun::default(), cdb.padded(), transfer)).unwrap();
            }
            let mut done: Vec<(u64, Vec<u8>)> = pair.run(step).into_iter().map(|(tag, outcome)| match outcome {
                TaskOutcome::Completed { status: 0, data, .. } => (tag, data.to_bytes().to_vec()),
                other => panic!("{other:?}"),
            }).collect();
            done.sort();
            expected.sort();
            prop_assert!(done == expected);
        }
        prop_assert!(pair.world.unit().bytes == model);
        prop_assert_eq!(pair.world.portal.tasks(pair.id), 0);
        let counters = pair.world.portal.counters(pair.id).unwrap();
        prop_assert_eq!((counters.rejects, counters.ignored_commands, counters.data_digest_errors), (0, 0, 0));
    }
}

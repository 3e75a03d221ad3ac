//! The session against the target role of this package: no socket, one clock, all faults.

use berth_iobuf::{ReceiveBuffer, SendQueue};
use proptest::prelude::*;

use super::*;
use crate::login::{InitiatorLogin, LoginConfig, Offer, Step};
use crate::name::IscsiName;
use crate::target::faults::{CommandFault, FaultPlan, Filter, SendFault};
use crate::target::{
    ConnectionId, Nexus, Portal, PortalSettings, ScsiExecutor, ScsiReply, TargetConfig,
};

const BLOCK: usize = 512;
const REGION_BLOCKS: usize = 64;
const REGIONS: usize = 8;

/// A disk that reads and writes.
struct Disk(Vec<u8>);

impl Disk {
    fn range(cdb: &[u8]) -> Option<std::ops::Range<usize>> {
        if !matches!(cdb[0], 0x88 | 0x8a) {
            return None;
        }
        let lba = u64::from_be_bytes(*cdb[2..].first_chunk().unwrap()) as usize;
        let blocks = u32::from_be_bytes(*cdb[10..].first_chunk().unwrap()) as usize;
        Some(lba * BLOCK..(lba + blocks) * BLOCK)
    }
}

impl ScsiExecutor for Disk {
    fn data_out_len_bytes(&self, cdb: &[u8]) -> Option<u64> {
        let len = Self::range(cdb).map_or(0, |range| range.len());
        Some(if cdb[0] == 0x8a { len as u64 } else { 0 })
    }

    fn execute(&mut self, _: &Nexus, cdb: &[u8], data_out: &Payload) -> ScsiReply {
        let mut reply = ScsiReply::status(GOOD);
        match Self::range(cdb) {
            Some(range) if cdb[0] == 0x88 => reply.data_in = self.0[range].to_vec().into(),
            Some(range) => data_out.copy_to(&mut self.0[range]),
            None => {}
        }
        reply
    }

    fn nexus_begins(&mut self, _: &Nexus, _: bool) {}
    fn nexus_ends(&mut self, _: &Nexus) {}
    fn reset(&mut self) {}
    fn unit_attention(&mut self, _: u8, _: u8, _: Option<&Nexus>) {}
}

fn transfer_cdb(opcode: u8, lba: usize, blocks: usize) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = opcode;
    cdb[2..10].copy_from_slice(&(lba as u64).to_be_bytes());
    cdb[10..14].copy_from_slice(&(blocks as u32).to_be_bytes());
    cdb
}

fn disk_read(tag: u64, lba: usize, blocks: usize) -> Command {
    let len_bytes = (blocks * BLOCK) as u32;
    let cdb = transfer_cdb(0x88, lba, blocks);
    Command::new(tag, Lun::default(), cdb, Transfer::Read { len_bytes })
}

fn disk_write(tag: u64, lba: usize, data: &[u8]) -> Command {
    let cdb = transfer_cdb(0x8a, lba, data.len() / BLOCK);
    let data = Payload::from(data.to_vec());
    Command::new(tag, Lun::default(), cdb, Transfer::Write(data))
}

struct Pair {
    session: Session,
    portal: Portal,
    id: ConnectionId,
    now: Instant,
    to_target: ReceiveBuffer,
    to_initiator: ReceiveBuffer,
    /// Bytes that one step of the wire carries.
    step: usize,
    cut: bool,
}

impl Pair {
    fn new(
        ours: Offer,
        settings: PortalSettings,
        options: SessionOptions,
        faults: FaultPlan,
        step: usize,
    ) -> Self {
        let now = Instant::now();
        let target = IscsiName::parse("iqn.2026-11.example:t").unwrap();
        let mut portal = Portal::new(settings);
        let unit = portal.add_unit(Box::new(Disk(vec![0; REGIONS * REGION_BLOCKS * BLOCK])));
        portal
            .add_target(TargetConfig::new(target.clone()).with_lun(0, unit))
            .unwrap();
        let id = portal.accept(now, "192.0.2.1:3260", 1).unwrap();
        let kind = SessionKind::Normal {
            target_name: target,
        };
        let initiator = IscsiName::parse("iqn.2026-11.example:i").unwrap();
        let mut config = LoginConfig::new(initiator, kind.clone(), Isid::random([1, 2, 3], 0));
        config.offer = ours;
        let mut login = InitiatorLogin::new(config).unwrap();
        let mut decoder = Decoder::new(Digests::NONE, LOGIN_DATA_LEN_MAX_BYTES);
        let (mut to_target, mut to_initiator) = (ReceiveBuffer::new(), ReceiveBuffer::new());
        let outcome = loop {
            let mut queue = SendQueue::new();
            if let Some(request) = login.poll_transmit() {
                request.emit(&mut queue, Digests::NONE);
            }
            to_target.extend(&queue.to_vec());
            portal.handle_input(id, now, &mut to_target);
            let mut queue = SendQueue::new();
            portal.poll_transmit(id, &mut queue);
            to_initiator.extend(&queue.to_vec());
            let frame = decoder.next(&mut to_initiator).unwrap().expect("an answer");
            let response = LoginResponse::parse(frame).unwrap();
            match login.on_response(&response).unwrap() {
                Step::Done(outcome) => break *outcome,
                Step::Continue => {}
                Step::Redirect(redirect) => panic!("{redirect:?}"),
            }
        };
        assert!(portal.set_faults(id, faults));
        Self {
            session: Session::new(outcome, &kind, options, now),
            portal,
            id,
            now,
            to_target,
            to_initiator,
            step,
            cut: false,
        }
    }

    /// Carries bytes both ways until nothing moves any more.
    fn settle(&mut self) {
        let (mut ours, mut theirs) = (SendQueue::new(), SendQueue::new());
        loop {
            self.session.poll_transmit(self.now, &mut ours);
            self.portal.poll_transmit(self.id, &mut theirs);
            if ours.is_empty() && theirs.is_empty() {
                break;
            }
            let step = self.step;
            let part = |queue: &mut SendQueue| {
                let mut bytes = queue.to_vec();
                bytes.truncate(step);
                queue.advance(bytes.len());
                bytes
            };
            let bytes = part(&mut ours);
            if !bytes.is_empty() {
                self.to_target.extend(&bytes);
            }
            self.portal
                .handle_input(self.id, self.now, &mut self.to_target);
            let bytes = part(&mut theirs);
            if !bytes.is_empty() {
                self.to_initiator.extend(&bytes);
                let _ = self.session.handle_input(self.now, &mut self.to_initiator);
            }
            self.portal.on_moved(self.id, 0, bytes.len());
        }
        if self.portal.is_over(self.id) || self.portal.link(self.id).cut {
            self.cut = true;
            self.session.handle_lost(std::io::ErrorKind::UnexpectedEof);
        }
    }

    fn disk(&mut self) -> Vec<u8> {
        let unit = self
            .portal
            .target_mut(&IscsiName::parse("iqn.2026-11.example:t").unwrap())
            .unwrap()
            .luns
            .values()
            .next()
            .copied()
            .unwrap();
        self.portal.unit_mut::<Disk>(unit).unwrap().0.clone()
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.session.poll_event()).collect()
    }
}

fn offer() -> impl Strategy<Value = Offer> {
    (
        any::<(bool, bool)>(),
        512u32..30_000,
        512u32..30_000,
        512u32..20_000,
        1u16..5,
        any::<(bool, bool)>(),
    )
        .prop_map(|(bits, burst, other, recv, outstanding, digests)| {
            let policy = |on| {
                if on {
                    crate::login::DigestPolicy::Prefer
                } else {
                    crate::login::DigestPolicy::Off
                }
            };
            Offer {
                initial_r2t: bits.0,
                immediate_data: bits.1,
                first_burst_bytes: burst.min(other),
                max_burst_bytes: burst.max(other),
                max_recv_data_segment_bytes: recv,
                max_outstanding_r2t: outstanding,
                header_digest: policy(digests.0),
                data_digest: policy(digests.1),
                ..Offer::default()
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_was_written_is_there_and_is_read_back(
        ours in offer(),
        theirs in offer(),
        window in 1u32..8,
        collapse: bool,
        step in 20usize..40_000,
        lens in proptest::collection::vec(1usize..=REGION_BLOCKS, REGIONS),
    ) {
        let settings = PortalSettings {
            offer: theirs,
            window,
            phase_collapse: collapse,
            ..PortalSettings::default()
        };
        let mut pair = Pair::new(ours, settings, SessionOptions::default(), FaultPlan::default(), step);
        let mut model = vec![0; REGIONS * REGION_BLOCKS * BLOCK];
        for (region, blocks) in lens.iter().enumerate() {
            let lba = region * REGION_BLOCKS;
            let data = pattern(blocks * BLOCK + region)[region..].to_vec();
            model[lba * BLOCK..][..data.len()].copy_from_slice(&data);
            pair.session.submit(disk_write(region as u64, lba, &data)).unwrap();
        }
        pair.settle();
        let done = pair.events();
        prop_assert_eq!(done.len(), REGIONS);
        for event in done {
            let Event::TaskDone { outcome, .. } = event else { panic!("{event:?}") };
            prop_assert_eq!(outcome, completed(&[]));
        }
        prop_assert!(pair.disk() == model);
        for (region, blocks) in lens.iter().enumerate() {
            let command = disk_read(region as u64, region * REGION_BLOCKS, *blocks);
            pair.session.submit(command).unwrap();
        }
        pair.settle();
        let done = pair.events();
        prop_assert_eq!(done.len(), REGIONS);
        for event in done {
            let Event::TaskDone { tag, outcome } = event else { panic!("{event:?}") };
            let at = tag as usize * REGION_BLOCKS * BLOCK;
            prop_assert_eq!(outcome, completed(&model[at..at + lens[tag as usize] * BLOCK]));
        }
        pair.session.logout(pair.now);
        pair.settle();
        let events = pair.events();
        let logged_out = matches!(
            events[..],
            [Event::Closed(CloseReason::LoggedOut { response: Some(0), .. })]
        );
        prop_assert!(logged_out, "{events:?}");
    }

    /// Whatever the target does wrong: no wrong data, no write that is said to be done and is not, one
    /// end for each command, and an end at all.
    #[test]
    fn faults_never_make_a_lie(
        fault in send_fault(),
        opcode in prop_oneof![Just(0x21u8), Just(0x25), Just(0x31)],
        skip in 0u32..6,
        theirs in offer(),
        collapse: bool,
        step in 50usize..5000,
    ) {
        let settings = PortalSettings {
            offer: theirs,
            phase_collapse: collapse,
            ..PortalSettings::default()
        };
        let ours = Offer {
            header_digest: crate::login::DigestPolicy::Prefer,
            data_digest: crate::login::DigestPolicy::Prefer,
            ..Offer::default()
        };
        let mut plan = FaultPlan::send(Filter::opcode(opcode), 1, fault.clone());
        plan.sends = plan.sends.into_iter().map(|rule| rule.after(skip)).collect();
        let mut pair = Pair::new(ours, settings, SessionOptions::default(), plan, step);
        // Only a digest notices a changed byte.
        let negotiated = pair.session.negotiated();
        let digests = negotiated.header_digest && negotiated.data_digest;
        prop_assume!(digests || !matches!(fault, SendFault::Corrupt { .. }));
        let data = pattern(REGION_BLOCKS * BLOCK);
        for region in 0..4 {
            let command = disk_write(region, region as usize * REGION_BLOCKS, &data);
            pair.session.submit(command).unwrap();
            let command = disk_read(10 + region, 4 * REGION_BLOCKS, REGION_BLOCKS);
            pair.session.submit(command).unwrap();
        }
        // Long enough for pings and deadlines to find out what is missing.
        for _ in 0..20 {
            pair.settle();
            if pair.session.is_closed() {
                break;
            }
            pair.now += Duration::from_secs(5);
            pair.session.handle_timeout(pair.now);
        }
        let events = pair.events();
        let disk = pair.disk();
        let mut tags: Vec<u64> = pair
            .session
            .take_unfinished()
            .iter()
            .map(|u| u.command.tag)
            .collect();
        for event in events {
            let Event::TaskDone { tag, outcome } = event else { continue };
            tags.push(tag);
            let TaskOutcome::Completed { status: GOOD, data: got, residual: Residual::None, .. } = outcome else {
                continue;
            };
            if tag < 10 {
                let at = tag as usize * REGION_BLOCKS * BLOCK;
                prop_assert!(disk[at..at + data.len()] == data[..], "a write was lost");
            } else {
                prop_assert_eq!(got.len(), REGION_BLOCKS * BLOCK);
                prop_assert!(got.is_all_zero(), "wrong data");
            }
        }
        tags.sort_unstable();
        prop_assert_eq!(tags, [0, 1, 2, 3, 10, 11, 12, 13]);
    }
}

fn send_fault() -> impl Strategy<Value = SendFault> {
    prop_oneof![
        Just(SendFault::Omit),
        Just(SendFault::Duplicate),
        Just(SendFault::CutAfter),
        (0u32..60).prop_map(SendFault::CutInside),
        (0i32..60, 1u8..).prop_map(|(offset, mask)| SendFault::Corrupt { offset, mask }),
        prop_oneof![Just(-1i32), Just(1), Just(1 << 30)].prop_map(SendFault::stat_sn),
        prop_oneof![Just(-1i32), Just(1)].prop_map(SendFault::data_sn),
        prop_oneof![Just(-512i32), Just(512), Just(1 << 24)].prop_map(SendFault::buffer_offset),
        any::<u32>().prop_map(SendFault::itt),
    ]
}

fn faulty(fault: CommandFault, options: SessionOptions) -> Pair {
    Pair::new(
        Offer::default(),
        PortalSettings::default(),
        options,
        FaultPlan::command(Filter::scsi(0x88), 1, fault),
        1 << 20,
    )
}

#[test]
fn a_rejected_command_is_told_and_the_window_goes_on() {
    // RFC 7143 11.17.1: the hole in CmdSN is filled, or the next command would wait for ever.
    let mut pair = faulty(CommandFault::Reject(9), SessionOptions::default());
    pair.session.submit(disk_read(1, 0, 8)).unwrap();
    pair.session.submit(disk_read(2, 0, 8)).unwrap();
    pair.settle();
    let ends: Vec<_> = pair
        .events()
        .into_iter()
        .map(|event| match event {
            Event::TaskDone { tag, outcome } => (tag, outcome),
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(ends.contains(&(1, TaskOutcome::Rejected { reason: 9 })));
    assert!(ends.contains(&(2, completed(&[0; 8 * BLOCK]))));
    pair.session.submit(disk_read(3, 0, 8)).unwrap();
    pair.settle();
    assert_eq!(pair.events().len(), 1);
    assert!(!pair.session.is_closed());
}

#[test]
fn a_command_that_is_held_is_aborted_at_its_deadline() {
    let options = SessionOptions {
        ping_interval: None,
        ..SessionOptions::default()
    };
    let mut pair = faulty(CommandFault::HoldExecution, options);
    let deadline = Some(pair.now + Duration::from_secs(3));
    pair.session
        .submit(Command {
            deadline,
            ..disk_read(1, 0, 8)
        })
        .unwrap();
    pair.settle();
    assert_eq!(pair.events(), []);
    pair.now += Duration::from_secs(3);
    pair.session.handle_timeout(pair.now);
    pair.settle();
    assert_eq!(
        pair.events(),
        [Event::TaskDone {
            tag: 1,
            outcome: TaskOutcome::Aborted {
                cause: AbortCause::Deadline,
                sent: true
            }
        }]
    );
    assert!(!pair.session.is_closed());
}

#[test]
fn short_data_is_never_a_whole_read() {
    for residual in [false, true] {
        let fault = CommandFault::ShortRead {
            missing_bytes: 100,
            residual,
        };
        let mut pair = faulty(fault, SessionOptions::default());
        pair.session.submit(disk_read(1, 0, 8)).unwrap();
        pair.settle();
        let [Event::TaskDone { outcome, .. }] = &pair.events()[..] else {
            panic!();
        };
        match outcome {
            TaskOutcome::DataMismatch { moved_bytes, .. } => {
                assert!(!residual);
                assert_eq!(*moved_bytes, 8 * 512 - 100);
            }
            TaskOutcome::Completed { residual: told, .. } => {
                assert!(residual);
                assert_eq!(*told, Residual::Underflow(100));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_lun_reset_ends_held_tasks() {
    let mut pair = faulty(CommandFault::HoldExecution, SessionOptions::default());
    pair.session.submit(disk_read(1, 0, 8)).unwrap();
    pair.settle();
    pair.session
        .task_management(7, TaskManagement::LogicalUnitReset, Lun::default())
        .unwrap();
    pair.settle();
    let events = pair.events();
    assert!(
        matches!(
            events[..],
            [
                Event::TaskDone {
                    tag: 1,
                    outcome: TaskOutcome::Aborted { .. }
                },
                Event::TaskManagementDone { tag: 7, .. }
            ]
        ),
        "{events:?}"
    );
    pair.session.submit(disk_read(2, 0, 8)).unwrap();
    pair.settle();
    assert!(matches!(
        pair.events()[..],
        [Event::TaskDone { tag: 2, .. }]
    ));
}

#[test]
fn pings_pass_both_ways() {
    let mut pair = faulty(CommandFault::Cut, SessionOptions::default());
    pair.portal.ping(pair.id, pair.now, Duration::from_secs(1));
    pair.settle();
    assert_eq!(pair.session.counters().target_pings, 1);
    pair.session.ping(pair.now).unwrap();
    pair.settle();
    assert!(matches!(pair.events()[..], [Event::Pong { .. }]));
    assert!(!pair.cut);
}

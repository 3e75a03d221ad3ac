//! What a run does: the setting, the requests and the faults with their times, all from the seed.
//!
//! A plan is made before the run, so that single requests and faults can be left out while the rest stays
//! the same: that is how a failing run is made smaller.

mod kinds;
mod rare;
mod storm;

use std::collections::BTreeSet;
use std::time::Duration;

use berth_agent::nbd::handshake::ReplyMode;
use berth_iscsi::login::{DigestPolicy, Offer};
use berth_iscsi::mutation::Mutation;
use berth_iscsi::target::PortalSettings;

pub use self::kinds::{CommandFault, Fault, LoginFault, SendFault, acted};
use super::array::ArraySpec;
use super::rng::Rng;

/// The unit in which the model knows what is on the disk, in bytes: smaller than a block, so that what a
/// write does to its neighbours shows.
pub const CELL_BYTES: u64 = 64;
/// When a session may be taken for gone: its last bytes have arrived ([`super::net::LATE_MAX`]), its slowest
/// command has been executed.
pub const STALE_AFTER: Duration = Duration::from_secs(20);
/// Requests are issued, and faults happen, within this time.
pub const ACTIVE: Duration = Duration::from_secs(40);

/// Everything about one run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where it all comes from.
    pub seed: u64,
    /// The array.
    pub array: ArraySpec,
    /// Daemons.
    pub nodes: usize,
    /// NBD connections of each.
    pub clients: usize,
    /// How NBD requests and replies look.
    pub nbd_mode: ReplyMode,
    /// Buffer of the NBD stream in bytes; small ones cut requests into pieces.
    pub nbd_buffer_bytes: usize,
    /// What the initiator offers.
    pub offer: Offer,
    /// Time for one SCSI command.
    pub command_timeout: Duration,
    /// Time for ABORT TASK, and for the LUN RESET after it.
    pub abort_timeout: Duration,
    /// Silence after which a ping is sent, and after which a session without an answer is lost.
    pub ping: Duration,
    /// I/O waits so long for a path; `None`: for ever.
    pub recovery_timeout: Option<Duration>,
    /// A session whose target cannot be reached is taken for gone after this; `None`: never.
    pub stale_session_timeout: Option<Duration>,
    /// Commands in flight on one path.
    pub queue_depth_max: u32,
    /// When the second node takes the volume over by its fence; the first one goes on as if nothing was.
    pub takeover: Option<Duration>,
    /// Each command takes the array so long, so that there are always some under way.
    pub slow: Option<Duration>,
    /// A bug that is planted for this run.
    pub mutation: Option<Mutation>,
    /// The requests in the order of their times.
    pub requests: Vec<PlannedRequest>,
    /// The faults in the order of their times.
    pub faults: Vec<PlannedFault>,
}

/// A request.
#[derive(Debug, Clone, Copy)]
pub struct PlannedRequest {
    /// Its number in the plan.
    pub number: usize,
    /// When it is issued, from the start.
    pub at: Duration,
    /// By which node.
    pub node: usize,
    /// Over which of its NBD connections.
    pub client: usize,
    /// What it does.
    pub kind: Kind,
    /// First cell.
    pub cell: u64,
    /// Number of cells.
    pub cells: u64,
    /// Force unit access.
    pub fua: bool,
}

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "named like the NBD requests")]
pub enum Kind {
    Read,
    Write,
    Flush,
    Trim,
    WriteZeroes { may_unmap: bool },
}

/// A fault.
#[derive(Debug, Clone, Copy)]
pub struct PlannedFault {
    /// Its number in the plan.
    pub number: usize,
    /// When it happens, from the start.
    pub at: Duration,
    /// What happens.
    pub fault: Fault,
}

impl Plan {
    /// The plan of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let rng = &mut Rng::new(seed, 1);
        let two_portals = rng.percent(60);
        let two_groups = two_portals && rng.percent(60);
        let groups = match (two_portals, two_groups) {
            (false, _) => vec![1],
            (true, false) => vec![1, 1],
            (true, true) => vec![1, 2],
        };
        let block_bytes = if rng.percent(70) { 512 } else { 4096 };
        let blocks = if block_bytes == 512 {
            rng.pick(24..96)
        } else {
            rng.pick(8..24)
        };
        let array = ArraySpec {
            block_bytes,
            size_bytes: blocks * u64::from(block_bytes),
            write_cache: rng.percent(50),
            thin: rng.percent(70),
            alua: two_groups && rng.percent(80),
            groups,
            transfer_max_bytes: rng.one_of(&[16 << 20, 64 << 10, 4096]),
            settings: PortalSettings {
                window: rng.one_of(&[128, 128, 16, 3, 1]) as u32,
                phase_collapse: rng.percent(50),
                ..PortalSettings::default()
            },
        };
        let digest = |rng: &mut Rng| match rng.pick(0..3) {
            0 => DigestPolicy::Off,
            1 => DigestPolicy::Prefer,
            _ => DigestPolicy::Require,
        };
        let max_burst_bytes = rng.one_of(&[512, 4096, 262_144]) as u32;
        let offer = Offer {
            header_digest: digest(rng),
            data_digest: digest(rng),
            initial_r2t: rng.percent(50),
            immediate_data: rng.percent(70),
            max_recv_data_segment_bytes: rng.one_of(&[512, 4096, 262_144]) as u32,
            max_burst_bytes,
            first_burst_bytes: max_burst_bytes.min(rng.one_of(&[512, 4096, 65536]) as u32),
            max_outstanding_r2t: rng.one_of(&[1, 1, 4]) as u16,
            ..Offer::default()
        };
        let mut array = array;
        array.settings.offer.header_digest = DigestPolicy::Prefer;
        array.settings.offer.data_digest = DigestPolicy::Prefer;
        array.settings.offer.max_recv_data_segment_bytes = rng.one_of(&[512, 8192, 262_144]) as u32;
        let mut plan = Self {
            seed,
            array,
            nodes: 1,
            clients: rng.one_of(&[1, 1, 2, 3]) as usize,
            nbd_mode: match rng.pick(0..3) {
                0 => ReplyMode::Simple,
                1 => ReplyMode::Structured,
                _ => ReplyMode::Extended,
            },
            nbd_buffer_bytes: rng.one_of(&[64 << 10, 64 << 10, 4096, 100]) as usize,
            offer,
            command_timeout: rng.ms(4_000..12_000),
            abort_timeout: Duration::from_secs(15),
            ping: rng.ms(1_000..4_000),
            recovery_timeout: rng
                .percent(30)
                .then(|| Duration::from_millis(rng.skewed(16_000))),
            stale_session_timeout: rng.percent(50).then_some(STALE_AFTER),
            queue_depth_max: rng.one_of(&[128, 32, 2]) as u32,
            takeover: None,
            slow: rng
                .percent(35)
                .then(|| Duration::from_millis(10 + rng.skewed(1_500))),
            mutation: None,
            requests: Vec::new(),
            faults: Vec::new(),
        };
        plan.add_requests(&mut Rng::new(seed, 2));
        plan.add_faults(&mut Rng::new(seed, 3));
        let rng = &mut Rng::new(seed, 6);
        if plan.array.groups.len() == 2 && rng.percent(45) {
            plan.make_storm(rng);
        }
        plan.add_rare(&mut Rng::new(seed, 7));
        let rng = &mut Rng::new(seed, 5);
        if rng.percent(20) {
            plan.add_takeover(rng);
        }
        plan
    }

    /// Cells of the disk.
    #[must_use]
    pub fn cells(&self) -> u64 {
        self.array.size_bytes / CELL_BYTES
    }

    /// The same with a planted bug.
    #[must_use]
    pub fn with_mutation(self, mutation: Option<Mutation>) -> Self {
        Self { mutation, ..self }
    }

    /// The same without some faults and requests.
    #[must_use]
    pub fn without(&self, faults: &BTreeSet<usize>, requests: &BTreeSet<usize>) -> Self {
        let mut plan = self.clone();
        plan.faults.retain(|fault| !faults.contains(&fault.number));
        plan.requests
            .retain(|request| !requests.contains(&request.number));
        plan
    }

    fn add_requests(&mut self, rng: &mut Rng) {
        let cells = self.cells();
        let per_block = u64::from(self.array.block_bytes) / CELL_BYTES;
        // A part of the disk is fought over.
        let hot = rng.pick(0..cells / per_block) * per_block;
        let sub_blocks = rng.percent(40);
        let total = rng.pick(60..260) as usize;
        let mut at = Duration::ZERO;
        while self.requests.len() < total {
            // Bursts, so that requests are in flight together.
            let burst = 1 + rng.skewed(24);
            for _ in 0..burst {
                let number = self.requests.len();
                let kind = match rng.pick(0..100) {
                    0..38 => Kind::Read,
                    38..84 => Kind::Write,
                    84..91 => Kind::Flush,
                    91..94 => Kind::Trim,
                    _ => Kind::WriteZeroes {
                        may_unmap: rng.percent(50),
                    },
                };
                let align = if sub_blocks && rng.percent(60) {
                    1
                } else {
                    per_block
                };
                let blocks = cells / align;
                let mut first = if rng.percent(50) {
                    (hot / align + rng.skewed(8 * per_block / align)).min(blocks - 1)
                } else {
                    rng.pick(0..blocks)
                };
                let mut len = 1 + rng.skewed((blocks / 2).max(1));
                if rng.percent(2) {
                    (first, len) = (0, blocks);
                }
                let len = len.min(blocks - first);
                self.requests.push(PlannedRequest {
                    number,
                    at,
                    node: 0,
                    client: rng.pick(0..self.clients as u64) as usize,
                    kind,
                    cell: first * align,
                    cells: len * align,
                    fua: rng.percent(20),
                });
            }
            let mean_ms = ACTIVE.as_millis() as u64 * burst / total as u64;
            at += rng.ms(0..2 * mean_ms.max(1));
        }
        // The last come while everything is still on.
        for request in &mut self.requests {
            request.at = request.at.min(ACTIVE);
        }
    }

    fn add_faults(&mut self, rng: &mut Rng) {
        let count = rng.skewed(28) as usize;
        // A few kinds per run, each several times, go deeper than all of them once.
        let kinds: Vec<u64> = (0..rng.pick(1..8)).map(|_| rng.pick(0..107)).collect();
        for _ in 0..count {
            // Mostly when something is under way.
            let at = if rng.percent(65) {
                let requests = self.requests.len() as u64;
                self.requests[rng.pick(0..requests) as usize].at + rng.ms(0..25)
            } else {
                rng.ms(0..ACTIVE.as_millis() as u64)
            };
            let kind = rng.one_of(&kinds);
            if let Some(fault) = self.fault(kind, rng) {
                self.faults.push(PlannedFault {
                    number: 0,
                    at,
                    fault,
                });
            }
        }
        self.number_faults();
    }

    /// Puts the faults into the order of their times and numbers them.
    fn number_faults(&mut self) {
        self.faults.sort_by_key(|fault| fault.at);
        for (number, fault) in self.faults.iter_mut().enumerate() {
            fault.number = number;
        }
    }

    /// Adds a fault; [`Plan::number_faults`] must follow.
    fn add_fault(&mut self, at: Duration, fault: Fault) {
        self.faults.push(PlannedFault {
            number: 0,
            at,
            fault,
        });
    }

    fn fault(&self, kind: u64, rng: &mut Rng) -> Option<Fault> {
        let portals = self.array.groups.len() as u64;
        let portal = rng.pick(0..portals) as usize;
        let some_or_all = if rng.percent(60) { Some(portal) } else { None };
        let long = |rng: &mut Rng| 1 + rng.skewed(15_000);
        let side = usize::from(rng.percent(50));
        Some(match kind {
            0..12 => Fault::Cut {
                portal,
                side: usize::from(rng.percent(25)),
                late_ms: rng.skewed(8_000),
            },
            12..18 => Fault::CutAtByte {
                portal,
                side,
                bytes: rng.skewed(20_000) as usize,
            },
            18..23 => Fault::HalfOpen {
                portal,
                both: rng.percent(60),
            },
            23..31 => Fault::Partition {
                portal: some_or_all,
                ms: long(rng),
            },
            31..34 => Fault::Refuse {
                portal: some_or_all,
                ms: long(rng),
            },
            34..37 => Fault::Ignore {
                portal: some_or_all,
                ms: long(rng),
            },
            37..40 => Fault::Throttle {
                portal,
                ms: long(rng),
                rate: 1 + rng.skewed(2_000),
            },
            40..43 => Fault::Delay {
                portal,
                ms: long(rng),
                by_ms: 1 + rng.skewed(3_000),
            },
            43..49 => Fault::Restart {
                ms: rng.skewed(10_000),
            },
            49..53 | 104..107 => Fault::PowerCycle {
                ms: rng.skewed(10_000),
                survive_percent: rng.one_of(&[0, 50, 90]),
            },
            53..57 if self.array.alua => Fault::Alua {
                group: rng.one_of(&[1, 2]) as u16,
                state: rng.one_of(&[1, 2, 3, 0xf]) as u8,
                ms: long(rng),
            },
            57..59 => Fault::Remap { ms: long(rng) },
            59..61 => Fault::Unmap {
                ms: rng.skewed(6_000),
            },
            61..63 => Fault::Resize {
                blocks: rng.pick(1..8),
            },
            63..67 => Fault::Status {
                status: rng.one_of(&[0x08, 0x28, 0x40]) as u8,
                times: 1 + rng.skewed(8) as u32,
            },
            67..71 => {
                let (key, asc, ascq) = rng.one_of(&[
                    (6, 0x29, 0x00),
                    (6, 0x29, 0x07),
                    (6, 0x2a, 0x01),
                    (6, 0x2f, 0x00),
                    (6, 0x3f, 0x03),
                    (2, 0x04, 0x01),
                    (2, 0x04, 0x07),
                    (0xb, 0x47, 0x03),
                    (0xb, 0x00, 0x00),
                    (4, 0x44, 0x00),
                    (3, 0x11, 0x00),
                ]);
                Fault::Sense { key, asc, ascq }
            }
            71..73 if self.array.thin => Fault::Full { ms: long(rng) },
            73..84 => Fault::Command {
                portal,
                which: match rng.pick(0..11) {
                    0..3 => CommandFault::DelayExecution(rng.skewed(5_000)),
                    3 => CommandFault::DelayResponse(rng.skewed(5_000)),
                    4 => CommandFault::HoldExecution,
                    5 => CommandFault::HoldResponse,
                    6 => CommandFault::Reject(rng.one_of(&[0x02, 0x04, 0x09])),
                    7 => CommandFault::Response(1),
                    8 => CommandFault::ShortRead {
                        admitted: rng.percent(50),
                    },
                    9 => CommandFault::Cut,
                    _ => CommandFault::ExecuteThenCut,
                },
                skip: rng.skewed(6) as u32,
            },
            84..93 => {
                let digests = self.offer.header_digest != DigestPolicy::Off
                    && self.offer.data_digest != DigestPolicy::Off;
                let (which, opcode) = match rng.pick(0..12) {
                    0 => (SendFault::Omit, rng.one_of(&[0x21, 0x25, 0x25, 0x31])),
                    1 => (SendFault::Duplicate, rng.one_of(&[0x21, 0x25, 0x31])),
                    2..5 if digests => (
                        SendFault::Corrupt {
                            offset: rng.one_of(&[-1, -6, -40, 50, 60, 20]),
                        },
                        rng.one_of(&[0x21, 0x25, 0x25]),
                    ),
                    5 | 6 => (SendFault::DataSn, 0x25),
                    7 => (SendFault::StatSn, 0x21),
                    8 => (SendFault::BufferOffset, rng.one_of(&[0x25, 0x31])),
                    9 => (SendFault::Itt, rng.one_of(&[0x21, 0x25, 0x31])),
                    10 => (SendFault::Ttt, 0x31),
                    11 => (SendFault::CutInside(rng.skewed(600) as u32), 0x25),
                    _ => (SendFault::CutAfter, rng.one_of(&[0x21, 0x25, 0x31])),
                };
                Fault::Send {
                    portal,
                    which,
                    opcode,
                    skip: rng.skewed(6) as u32,
                }
            }
            93..95 => Fault::Login {
                which: self.login_fault(rng),
            },
            95..98 => Fault::Async {
                portal,
                event: rng.pick(0..5) as u8,
            },
            98 => Fault::Freeze {
                portal,
                ms: long(rng),
            },
            99..104 => Fault::Crash {
                node: 0,
                ms: rng.skewed(3_000),
                late_ms: rng.skewed(8_000),
            },
            _ => return None,
        })
    }

    /// Whether some request may legitimately fail.
    #[must_use]
    pub fn may_fail_requests(&self) -> bool {
        self.recovery_timeout.is_some()
            || self
                .faults
                .iter()
                .any(|fault| fault.fault.may_fail_requests())
    }
}

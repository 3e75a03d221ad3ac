//! Adds what plans come to too seldom: kinds of faults that need a certain moment, and ways of recovery that
//! need several faults together. Most plans stay as they are.

use std::time::Duration;

use berth_iscsi::login::DigestPolicy;

use super::{ACTIVE, CommandFault, Fault, Kind, LoginFault, Plan, Rng, STALE_AFTER, SendFault};

impl Plan {
    pub(super) fn add_rare(&mut self, rng: &mut Rng) {
        match rng.pick(0..100) {
            0..15 => self.add_failed_aborts(rng),
            15..50 if self.array.groups == [1, 2] => self.add_long_outage(rng),
            50..60 if self.may_fail_requests() => self.add_other_unit(rng),
            60..68 => self.add_crashes(rng),
            15..86 => {
                for _ in 0..rng.pick(8..17) {
                    let at = self.busy_time(rng);
                    let fault = self.rare_fault(rng);
                    self.add_fault(at, fault);
                }
            }
            _ => return,
        }
        self.number_faults();
    }

    /// A time at which something is under way.
    fn busy_time(&self, rng: &mut Rng) -> Duration {
        let requests = self.requests.len() as u64;
        self.requests[rng.pick(0..requests) as usize].at + rng.ms(0..25)
    }

    /// One that gives no request a reason to fail which had none before.
    fn rare_fault(&self, rng: &mut Rng) -> Fault {
        let portals = self.array.groups.len() as u64;
        let portal = rng.pick(0..portals) as usize;
        let skip = rng.skewed(4) as u32;
        let command = |which| Fault::Command {
            portal,
            which,
            skip,
        };
        let send = |which, opcode| Fault::Send {
            portal,
            which,
            opcode,
            skip,
        };
        let digests = self.offer.header_digest != DigestPolicy::Off
            && self.offer.data_digest != DigestPolicy::Off;
        match rng.pick(0..45) {
            0 => command(CommandFault::DelayExecution(rng.skewed(5_000))),
            1 => command(CommandFault::DelayResponse(rng.skewed(5_000))),
            2 => command(CommandFault::HoldExecution),
            3 => command(CommandFault::HoldResponse),
            4 | 42 => command(CommandFault::Reject(0x02)),
            5 | 38 => command(CommandFault::Response(1)),
            6 | 36 | 37 => command(CommandFault::ShortRead {
                admitted: rng.percent(50),
            }),
            7 => command(CommandFault::Cut),
            8 => command(CommandFault::ExecuteThenCut),
            9 => send(SendFault::Omit, rng.one_of(&[0x21, 0x25])),
            10 => send(SendFault::Duplicate, rng.one_of(&[0x21, 0x25])),
            11 | 12 if digests => {
                let offset = rng.one_of(&[-1, -6, -40, 20]);
                send(
                    SendFault::Corrupt { offset },
                    rng.one_of(&[0x21, 0x25, 0x25]),
                )
            }
            11..14 => send(SendFault::DataSn, 0x25),
            14 | 41 => send(SendFault::StatSn, 0x21),
            15 => send(SendFault::BufferOffset, 0x25),
            16 | 32 => send(SendFault::Itt, rng.one_of(&[0x21, 0x25])),
            17..20 | 33 if self.offer.initial_r2t => send(SendFault::Ttt, 0x31),
            34 => Fault::Resize {
                blocks: rng.pick(1..8),
            },
            35 | 39 | 40 | 43 | 44 if self.may_fail_requests() => {
                let (key, asc) = rng.one_of(&[(3, 0x11), (3, 0x11), (4, 0x44)]);
                Fault::Sense { key, asc, ascq: 0 }
            }
            17..20 | 33 | 35 | 39 | 40 | 43 | 44 => {
                send(SendFault::CutInside(rng.skewed(600) as u32), 0x25)
            }
            20 => Fault::Freeze {
                portal,
                ms: 1 + rng.skewed(15_000),
            },
            21 => Fault::Status {
                status: rng.one_of(&[0x08, 0x28, 0x40]) as u8,
                times: 1 + rng.skewed(8) as u32,
            },
            22..25 if self.array.alua => Fault::Alua {
                group: rng.one_of(&[1, 2]) as u16,
                state: rng.one_of(&[1, 2, 3, 0xf]) as u8,
                ms: rng.pick(100..8_000),
            },
            22..25 if self.array.thin && self.may_fail_requests() => Fault::Full {
                ms: rng.pick(100..8_000),
            },
            22..28 => Fault::Login {
                which: self.login_fault(rng),
            },
            _ => Fault::Async {
                portal,
                event: rng.pick(0..5) as u8,
            },
        }
    }

    pub(super) fn login_fault(&self, rng: &mut Rng) -> LoginFault {
        let portals = self.array.groups.len() as u64;
        match rng.pick(0..4) {
            0 => LoginFault::Refused(3, rng.one_of(&[0, 1, 2]) as u8),
            1 => LoginFault::Silent,
            2 => LoginFault::Garbage,
            _ => LoginFault::Redirect {
                portal: rng.pick(0..portals) as usize,
                permanent: rng.percent(30),
            },
        }
    }

    /// Commands that hang and are not aborted when asked: LUN RESET, then the end of the session.
    fn add_failed_aborts(&mut self, rng: &mut Rng) {
        self.command_timeout = rng.ms(2_500..4_000);
        self.abort_timeout = rng.ms(800..2_000);
        let portals = self.array.groups.len() as u64;
        for _ in 0..rng.pick(1..5) {
            let at = self.busy_time(rng).min(ACTIVE * 3 / 4);
            self.add_fault(
                at,
                Fault::NoAbort {
                    portal: rng.pick(0..portals) as usize,
                    answered: rng.percent(55),
                    times: rng.one_of(&[1, 1, 2]) as u32,
                },
            );
        }
    }

    /// A portal group that cannot be reached for longer than an old session lives: what was under way there
    /// goes another way when the session may be taken for gone.
    fn add_long_outage(&mut self, rng: &mut Rng) {
        self.stale_session_timeout = Some(STALE_AFTER);
        self.slow.get_or_insert(rng.ms(50..400));
        // A target that holds a command back for ever, or is never told of the end, keeps its session for
        // longer than that: then the time was chosen badly, and nothing can be promised.
        self.faults.retain(|planned| {
            !matches!(
                planned.fault,
                Fault::HalfOpen { .. }
                    | Fault::Command {
                        which: CommandFault::HoldExecution | CommandFault::HoldResponse,
                        ..
                    }
            )
        });
        let portal = if self.array.alua {
            0
        } else {
            rng.pick(0..2) as usize
        };
        let early = self
            .requests
            .iter()
            .filter(|request| request.kind == Kind::Write && request.at < ACTIVE / 3);
        let writes: Vec<Duration> = early.map(|request| request.at).collect();
        let at = match writes.len() as u64 {
            0 => ACTIVE / 4,
            n => writes[rng.pick(0..n) as usize],
        };
        let ms = rng.pick(24_000..34_000);
        let closed = if rng.percent(50) {
            Fault::Refuse {
                portal: Some(portal),
                ms,
            }
        } else {
            Fault::Ignore {
                portal: Some(portal),
                ms,
            }
        };
        self.add_fault(at, closed);
        let side = usize::from(rng.percent(25));
        let late_ms = rng.skewed(8_000);
        let cut = Fault::Cut {
            portal,
            side,
            late_ms,
        };
        self.add_fault(at + rng.ms(5..60), cut);
        if rng.percent(40) {
            // The next daemon cannot know what was under way.
            let crash = Fault::Crash {
                node: 0,
                ms: rng.skewed(600),
                late_ms,
            };
            self.add_fault(at + rng.ms(0..60), crash);
        }
    }

    /// A daemon that dies again and again among writes, some of which arrive long after the next one has begun.
    fn add_crashes(&mut self, rng: &mut Rng) {
        for _ in 0..rng.pick(2..6) {
            let at = self.busy_time(rng);
            let crash = Fault::Crash {
                node: 0,
                ms: rng.skewed(300),
                late_ms: rng.pick(500..8_000),
            };
            self.add_fault(at, crash);
        }
    }

    /// The LUN leads to another unit for long enough that somebody looks.
    fn add_other_unit(&mut self, rng: &mut Rng) {
        for _ in 0..rng.pick(1..4) {
            let at = self.busy_time(rng);
            let ms = rng.pick(3_000..9_000);
            self.add_fault(at, Fault::Remap { ms });
        }
    }
}

//! Limits over virtual time.

use proptest::prelude::*;

use super::*;

const UNIT: usize = 3;
const FIRST: ConnectionId = ConnectionId(1);
const SECOND: ConnectionId = ConnectionId(2);

fn read(bytes: u64) -> Load {
    Load {
        direction: Direction::Read,
        bytes,
    }
}

fn write(bytes: u64) -> Load {
    Load {
        direction: Direction::Write,
        bytes,
    }
}

fn operations(operations: u64) -> Rate {
    Rate {
        operations,
        bytes: 0,
    }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Limits of one unit, and a clock that goes from one start to the next.
struct Bench {
    pacing: Pacing,
    begun: Instant,
    now: Instant,
    orders: Vec<(ConnectionId, Order)>,
}

impl Bench {
    fn new(limits: Limits) -> Self {
        let now = Instant::now();
        let mut bench = Self {
            pacing: Pacing::default(),
            begun: now,
            now,
            orders: Vec::new(),
        };
        bench.set(limits);
        bench
    }

    fn set(&mut self, limits: Limits) {
        self.pacing.set(self.now, UNIT, &limits, &mut self.orders);
    }

    fn ask(&mut self, connection: ConnectionId, load: Load) -> Option<u64> {
        self.pacing.ask(self.now, UNIT, connection, load)
    }

    /// Milliseconds since the beginning.
    fn at(&self) -> f64 {
        (self.now - self.begun).as_secs_f64() * 1e3
    }

    /// Goes on to the next start; gives the time in milliseconds, the owner and the ticket.
    fn next(&mut self) -> Option<(f64, ConnectionId, u64)> {
        let (due, owner) = [FIRST, SECOND].into_iter().find_map(|owner| {
            let due = self.pacing.due(UNIT, owner).ok().flatten()?;
            Some((due, owner))
        })?;
        if due > self.now {
            let early = self.now + (due - self.now) - Duration::from_nanos(1);
            assert_eq!(
                self.pacing.start(early, UNIT, owner, &mut self.orders),
                None
            );
            self.now = due;
        }
        let started = self.pacing.start(self.now, UNIT, owner, &mut self.orders);
        Some((self.at(), owner, started.unwrap().ticket))
    }
}

#[test]
fn without_limits_nothing_is_kept() {
    let mut bench = Bench::new(Limits::default());
    assert!(bench.pacing.is_empty());
    assert_eq!(bench.ask(FIRST, read(4096)), None);
    bench.set(Limits {
        total: operations(1),
        ..Limits::default()
    });
    bench.set(Limits::default());
    assert!(bench.pacing.is_empty(), "the last limit is gone");
}

#[test]
fn commands_start_at_the_rate_after_the_burst() {
    let mut bench = Bench::new(Limits {
        total: operations(100),
        burst: ms(50),
        ..Limits::default()
    });
    // 50 ms at 100 a second, and the one that is always free.
    for _ in 0..6 {
        assert_eq!(bench.ask(FIRST, read(1)), None);
    }
    for _ in 0..3 {
        bench.ask(FIRST, write(1)).unwrap();
    }
    let starts: Vec<f64> = std::iter::from_fn(|| bench.next().map(|(at, ..)| at)).collect();
    assert_eq!(starts, [10.0, 20.0, 30.0]);
    // A rest fills the burst and no more.
    bench.now += ms(10_000);
    let free = (0..20).filter(|_| bench.ask(FIRST, read(1)).is_none());
    assert_eq!(free.count(), 6);
}

#[test]
fn long_commands_pay_in_full() {
    let mut bench = Bench::new(Limits {
        read: Rate {
            operations: 0,
            bytes: 1 << 20,
        },
        ..Limits::default()
    });
    assert_eq!(bench.ask(FIRST, read(4 << 20)), None);
    bench.ask(FIRST, read(512 << 10)).unwrap();
    bench.ask(FIRST, read(1)).unwrap();
    assert_eq!(bench.ask(FIRST, write(64 << 20)), None, "not a read");
    assert_eq!(bench.next().unwrap().0, 4000.0);
    assert_eq!(bench.next().unwrap().0, 4500.0);
}

#[test]
fn reads_pass_writes_that_wait_for_their_own_limit() {
    let mut bench = Bench::new(Limits {
        total: operations(1000),
        write: operations(10),
        ..Limits::default()
    });
    assert_eq!(bench.ask(FIRST, write(1)), None);
    let waiting = bench.ask(FIRST, write(1)).unwrap();
    let reads: Vec<u64> = (0..3)
        .map(|_| bench.ask(SECOND, read(1)).unwrap())
        .collect();
    assert_eq!(bench.next().unwrap(), (1.0, SECOND, reads[0]));
    assert_eq!(bench.next().unwrap(), (2.0, SECOND, reads[1]));
    assert_eq!(bench.next().unwrap(), (3.0, SECOND, reads[2]));
    assert_eq!(bench.next().unwrap(), (100.0, FIRST, waiting));
}

#[test]
fn of_two_the_older_one_starts() {
    let mut bench = Bench::new(Limits {
        total: operations(10),
        ..Limits::default()
    });
    assert_eq!(bench.ask(FIRST, read(1)), None);
    let tickets = [
        bench.ask(FIRST, write(1)).unwrap(),
        bench.ask(SECOND, read(1)).unwrap(),
        bench.ask(FIRST, read(1)).unwrap(),
        bench.ask(SECOND, write(1)).unwrap(),
    ];
    for ticket in tickets {
        assert_eq!(bench.next().unwrap().2, ticket);
    }
    // Each time the turn went to the other one it was told.
    assert!(bench.orders.iter().any(|(to, _)| *to == SECOND));
}

#[test]
fn a_change_counts_for_what_waits() {
    let mut bench = Bench::new(Limits {
        total: operations(1),
        ..Limits::default()
    });
    assert_eq!(bench.ask(FIRST, read(1)), None);
    for _ in 0..4 {
        bench.ask(FIRST, read(1)).unwrap();
    }
    bench.now += ms(500);
    bench.orders.clear();
    bench.set(Limits {
        total: operations(100),
        ..Limits::default()
    });
    assert!(matches!(bench.orders[..], [(FIRST, Order::LookAtTheClock)]));
    // Half of the first command is left, at the new rate.
    assert_eq!(bench.next().unwrap().0, 505.0);
    assert_eq!(bench.next().unwrap().0, 515.0);
    bench.set(Limits::default());
    assert_eq!(bench.next().unwrap().0, 515.0);
    assert_eq!(bench.next().unwrap().0, 515.0);
    assert!(bench.pacing.is_empty());
}

#[test]
fn what_is_withdrawn_has_paid_nothing() {
    let mut bench = Bench::new(Limits {
        total: operations(10),
        ..Limits::default()
    });
    assert_eq!(bench.ask(FIRST, read(1)), None);
    for _ in 0..50 {
        bench.ask(FIRST, read(1)).unwrap();
    }
    let ticket = bench.ask(FIRST, write(1)).unwrap();
    let last = bench.ask(SECOND, read(1)).unwrap();
    bench.pacing.withdraw(UNIT, ticket, &mut bench.orders);
    bench.orders.clear();
    bench.pacing.forget(FIRST, &mut bench.orders);
    assert!(matches!(
        bench.orders[..],
        [(SECOND, Order::LookAtTheClock)]
    ));
    assert_eq!(bench.next().unwrap(), (100.0, SECOND, last));
    assert_eq!(bench.next(), None);
}

#[test]
fn a_limit_that_is_never_reached_again_does_not_overflow() {
    let mut bench = Bench::new(Limits {
        total: Rate {
            operations: 0,
            bytes: 1,
        },
        burst: Duration::MAX,
        ..Limits::default()
    });
    assert_eq!(bench.ask(FIRST, read(u64::MAX)), None);
    bench.set(Limits {
        total: Rate {
            operations: 0,
            bytes: 1,
        },
        ..Limits::default()
    });
    bench.ask(FIRST, read(1)).unwrap();
    bench.now += ms(1_000_000);
    assert!(bench.pacing.due(UNIT, FIRST).unwrap().unwrap() > bench.now);
}

proptest! {
    /// Whatever is asked: no span has more than its limits allow, and nothing waits while it could start.
    #[test]
    fn no_limit_is_ever_broken_and_none_is_wasted(
        (total, read_rate, write_rate) in (1u64..2000, 0u64..2000, 0u64..2000),
        bandwidth in 1u64..100_000,
        burst_ms in 0u64..200,
        asks in proptest::collection::vec((any::<bool>(), any::<bool>(), 0u64..9000, 0u64..20), 1..80),
    ) {
        let limits = Limits {
            total: Rate { operations: total, bytes: bandwidth },
            read: operations(read_rate),
            write: operations(write_rate),
            burst: ms(burst_ms),
        };
        let mut bench = Bench::new(limits);
        let mut started: Vec<(Duration, Load)> = Vec::new();
        let mut waiting: HashMap<u64, Load> = HashMap::new();
        let wanted = asks.len();
        let mut asks = asks.into_iter();
        let mut asked = 0;
        while started.len() < wanted {
            let ask = asks.next();
            if let Some((first, reads, bytes, pause)) = ask {
                // What is due in the pause starts in it.
                let until = bench.now + ms(pause);
                while let Some((due, owner)) = [FIRST, SECOND].into_iter()
                    .find_map(|o| Some((bench.pacing.due(UNIT, o).ok()??, o)))
                    && due <= until
                {
                    bench.now = bench.now.max(due);
                    let s = bench.pacing.start(bench.now, UNIT, owner, &mut bench.orders).unwrap();
                    waiting.remove(&s.ticket);
                    started.push((bench.now - bench.begun, s.load));
                }
                bench.now = until;
                let load = if reads { read(bytes) } else { write(bytes) };
                asked += 1;
                match bench.ask(if first { FIRST } else { SECOND }, load) {
                    None => started.push((bench.now - bench.begun, load)),
                    Some(ticket) => { waiting.insert(ticket, load); }
                }
            } else {
                let (_, _, ticket) = bench.next().expect("something waits");
                let load = waiting.remove(&ticket).unwrap();
                started.push((bench.now - bench.begun, load));
            }
        }
        prop_assert_eq!(asked, wanted);
        for from in 0..started.len() {
            let (mut count, mut bytes, mut reads) = (0u64, 0u64, 0u64);
            for (at, load) in &started[from..] {
                // What was started in the span before this one.
                let span = (*at - started[from].0).as_secs_f64() + burst_ms as f64 / 1e3;
                let allowed = |rate: u64| rate as f64 * span + 1e-3;
                prop_assert!(count.saturating_sub(0) as f64 <= allowed(total) + 1.0);
                prop_assert!(bytes.saturating_sub(9000) as f64 <= allowed(bandwidth));
                if read_rate > 0 {
                    prop_assert!(reads as f64 <= allowed(read_rate) + 1.0);
                }
                count += 1;
                bytes += load.bytes;
                reads += u64::from(load.direction == Direction::Read);
            }
        }
    }
}

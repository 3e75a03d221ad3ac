//! Limits of how much a logical unit does in a second, and the queue of commands that wait for them.
//!
//! A limit is a leaky bucket: a command puts in what it costs (one operation, or its bytes), a limit's worth a second
//! runs out, and a command may start when no more is left than the burst allows. It then pays in full, so a command that
//! is longer than a second's worth starts like any other and those behind it wait the longer. In any span of time at most
//! `limit x (span + burst)` is started, and one command more. All of it is exact: integers, no clock of its own.
//!
//! Reads and writes wait in queues of their own, each in the order of arrival. Of two that could start, the older one
//! does. What is withdrawn has paid nothing.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::connection::ConnectionId;
use super::portal::Order;

const NANOS: u128 = 1_000_000_000;

/// Whether a command reads or writes the medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// It reads.
    Read,
    /// It writes.
    Write,
}

/// What a command costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Which limits it counts against, besides those of the total.
    pub direction: Direction,
    /// Bytes that it moves.
    pub bytes: u64,
}

/// How much may be started in a second. 0 is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rate {
    /// Commands a second.
    pub operations: u64,
    /// Bytes a second.
    pub bytes: u64,
}

/// Limits of a logical unit; each holds by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Of reads and writes together.
    pub total: Rate,
    /// Of reads.
    pub read: Rate,
    /// Of writes.
    pub write: Rate,
    /// What may be started at once after a rest, as time at the limit.
    pub burst: Duration,
}

impl Limits {
    /// Whether nothing is limited.
    #[must_use]
    pub fn is_none(&self) -> bool {
        [self.total, self.read, self.write] == [Rate::default(); 3]
    }
}

/// One limit. What is left in it is counted in units (commands or bytes) times nanoseconds of a second.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    per_second: u64,
    left: u128,
}

impl Bucket {
    fn run_out(&mut self, passed: Duration) {
        let out = passed.as_nanos() * u128::from(self.per_second);
        self.left = self.left.saturating_sub(out);
    }

    /// How long until a command may start.
    fn wait(&self, burst: Duration) -> Duration {
        let rate = u128::from(self.per_second);
        let over = self.left.saturating_sub(burst.as_nanos() * rate);
        if rate == 0 || over == 0 {
            return Duration::ZERO;
        }
        Duration::from_nanos(u64::try_from(over.div_ceil(rate)).unwrap_or(u64::MAX))
    }

    fn pay(&mut self, units: u64) {
        if self.per_second > 0 {
            self.left += u128::from(units) * NANOS;
        }
    }

    fn set(&mut self, per_second: u64) {
        self.per_second = per_second;
        if per_second == 0 {
            self.left = 0;
        }
    }
}

/// A command that waits.
#[derive(Debug)]
struct Ticket {
    number: u64,
    connection: ConnectionId,
    load: Load,
    since: Instant,
}

/// The limits of one unit at work.
#[derive(Debug)]
struct Pacer {
    burst: Duration,
    /// Operations and bytes of total, read, write.
    buckets: [[Bucket; 2]; 3],
    /// What has run out of the buckets is counted up to here.
    as_of: Instant,
    /// Reads and writes.
    queues: [VecDeque<Ticket>; 2],
}

/// Buckets that a command of this direction pays to.
const fn buckets_of(direction: Direction) -> [usize; 2] {
    match direction {
        Direction::Read => [0, 1],
        Direction::Write => [0, 2],
    }
}

const fn queue_of(direction: Direction) -> usize {
    match direction {
        Direction::Read => 0,
        Direction::Write => 1,
    }
}

impl Pacer {
    fn new(now: Instant) -> Self {
        let bucket = Bucket {
            per_second: 0,
            left: 0,
        };
        Self {
            burst: Duration::ZERO,
            buckets: [[bucket; 2]; 3],
            as_of: now,
            queues: Default::default(),
        }
    }

    /// What is left stays left, and runs out at the new rate.
    fn set(&mut self, now: Instant, limits: &Limits) {
        self.run_out(now);
        self.burst = limits.burst;
        let rates = [limits.total, limits.read, limits.write];
        for (pair, rate) in self.buckets.iter_mut().zip(rates) {
            pair[0].set(rate.operations);
            pair[1].set(rate.bytes);
        }
    }

    fn run_out(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.as_of);
        self.as_of = self.as_of.max(now);
        for bucket in self.buckets.as_flattened_mut() {
            bucket.run_out(passed);
        }
    }

    /// When a command of this direction may start.
    fn due(&self, direction: Direction) -> Instant {
        let pairs = buckets_of(direction).map(|pair| &self.buckets[pair]);
        let waits = pairs
            .into_iter()
            .flatten()
            .map(|bucket| bucket.wait(self.burst));
        let wait = waits.max().unwrap_or_default();
        // Beyond what the clock can say is never.
        let never = Duration::from_secs(u32::MAX.into());
        self.as_of + wait.min(never)
    }

    fn pay(&mut self, load: Load) {
        for pair in buckets_of(load.direction) {
            self.buckets[pair][0].pay(1);
            self.buckets[pair][1].pay(load.bytes);
        }
    }

    /// The ticket that starts next, and when: the one that is due first, of several the oldest.
    fn next(&self) -> Option<(Instant, &Ticket)> {
        let heads = self.queues.iter().filter_map(VecDeque::front);
        heads
            .map(|ticket| (self.due(ticket.load.direction), ticket))
            .min_by_key(|(due, ticket)| (*due, ticket.number))
    }

    fn is_unlimited(&self) -> bool {
        let mut buckets = self.buckets.as_flattened().iter();
        buckets.all(|bucket| bucket.per_second == 0)
    }

    fn is_empty(&self) -> bool {
        self.queues.iter().all(VecDeque::is_empty)
    }
}

/// A command that may start now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Started {
    pub(super) ticket: u64,
    pub(super) load: Load,
    pub(super) waited: Duration,
}

/// The limits of all units that have some.
#[derive(Debug, Default)]
pub(super) struct Pacing {
    units: HashMap<usize, Pacer>,
    last_ticket: u64,
}

impl Pacing {
    /// Whether no unit has limits: then nothing has to be asked.
    pub(super) fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// Sets the limits of a unit. Commands that wait go by the new ones.
    pub(super) fn set(
        &mut self,
        now: Instant,
        unit: usize,
        limits: &Limits,
        orders: &mut Vec<(ConnectionId, Order)>,
    ) {
        if limits.is_none() && !self.units.contains_key(&unit) {
            return;
        }
        let pacer = self.units.entry(unit).or_insert_with(|| Pacer::new(now));
        pacer.set(now, limits);
        self.look(unit, None, orders);
    }

    /// Forgets the limits of a unit that goes.
    pub(super) fn remove(&mut self, unit: usize) {
        self.units.remove(&unit);
    }

    /// A command wants to start. Without a ticket it may, and has paid; with one it has to wait for it.
    pub(super) fn ask(
        &mut self,
        now: Instant,
        unit: usize,
        connection: ConnectionId,
        load: Load,
    ) -> Option<u64> {
        let pacer = self.units.get_mut(&unit)?;
        pacer.run_out(now);
        let queue = queue_of(load.direction);
        if pacer.queues[queue].is_empty() && pacer.due(load.direction) <= now {
            pacer.pay(load);
            return None;
        }
        self.last_ticket += 1;
        pacer.queues[queue].push_back(Ticket {
            number: self.last_ticket,
            connection,
            load,
            since: now,
        });
        Some(self.last_ticket)
    }

    /// When the next ticket of a unit is due, if it is this connection's. `Err` when the unit has no limits any more.
    pub(super) fn due(&self, unit: usize, connection: ConnectionId) -> Result<Option<Instant>, ()> {
        let pacer = self.units.get(&unit).ok_or(())?;
        let next = pacer.next();
        Ok(next.and_then(|(due, ticket)| (ticket.connection == connection).then_some(due)))
    }

    /// The next ticket of a unit, when it is this connection's and due; it has paid.
    pub(super) fn start(
        &mut self,
        now: Instant,
        unit: usize,
        connection: ConnectionId,
        orders: &mut Vec<(ConnectionId, Order)>,
    ) -> Option<Started> {
        let pacer = self.units.get_mut(&unit)?;
        pacer.run_out(now);
        let (due, ticket) = pacer.next()?;
        if ticket.connection != connection || due > now {
            return None;
        }
        let queue = queue_of(ticket.load.direction);
        let ticket = pacer.queues[queue].pop_front()?;
        pacer.pay(ticket.load);
        self.look(unit, Some(connection), orders);
        Some(Started {
            ticket: ticket.number,
            load: ticket.load,
            waited: now.saturating_duration_since(ticket.since),
        })
    }

    /// The command of a ticket is aborted.
    pub(super) fn withdraw(
        &mut self,
        unit: usize,
        ticket: u64,
        orders: &mut Vec<(ConnectionId, Order)>,
    ) {
        let Some(pacer) = self.units.get_mut(&unit) else {
            return;
        };
        for queue in &mut pacer.queues {
            queue.retain(|waiting| waiting.number != ticket);
        }
        self.look(unit, None, orders);
    }

    /// All commands of a connection are gone.
    pub(super) fn forget(
        &mut self,
        connection: ConnectionId,
        orders: &mut Vec<(ConnectionId, Order)>,
    ) {
        let units: Vec<usize> = self.units.keys().copied().collect();
        for unit in units {
            let Some(pacer) = self.units.get_mut(&unit) else {
                continue;
            };
            let mut gone = 0;
            for queue in &mut pacer.queues {
                let before = queue.len();
                queue.retain(|waiting| waiting.connection != connection);
                gone += before - queue.len();
            }
            if gone > 0 {
                self.look(unit, Some(connection), orders);
            }
        }
    }

    /// Tells the connection whose turn it is now to look at the clock, unless it is the one that is at work.
    fn look(
        &mut self,
        unit: usize,
        at_work: Option<ConnectionId>,
        orders: &mut Vec<(ConnectionId, Order)>,
    ) {
        let Some(pacer) = self.units.get(&unit) else {
            return;
        };
        if pacer.is_empty() && pacer.is_unlimited() {
            self.units.remove(&unit);
        } else if let Some((_, ticket)) = pacer.next()
            && at_work != Some(ticket.connection)
        {
            orders.push((ticket.connection, Order::LookAtTheClock));
        }
    }
}

#[cfg(test)]
mod tests;

//! What each volume does: its commands are counted and timed on their way to the logical unit.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use berth_iobuf::Payload;
use berth_iscsi::target::lu::LogicalUnit;
use berth_iscsi::target::{Direction, Load, Nexus, ScsiExecutor, ScsiReply};

/// Latencies keep so many leading bits: they are told to an eighth.
const LATENCY_BITS: u32 = 4;

/// Reads or writes since somebody looked last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Flow {
    pub(super) operations: u64,
    pub(super) bytes: u64,
    /// Sum of all latencies.
    pub(super) time: Duration,
    /// Commands by latency in microseconds.
    latencies: BTreeMap<u64, u64>,
}

impl Flow {
    fn record(&mut self, bytes: u64, time: Duration) {
        self.operations += 1;
        self.bytes += bytes;
        self.time += time;
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let cut = (u64::BITS - us.leading_zeros()).saturating_sub(LATENCY_BITS);
        *self.latencies.entry(us >> cut << cut).or_default() += 1;
    }

    /// Adds what another one counted.
    pub(super) fn add(&mut self, other: &Self) {
        self.operations += other.operations;
        self.bytes += other.bytes;
        self.time += other.time;
        for (us, count) in &other.latencies {
            *self.latencies.entry(*us).or_default() += count;
        }
    }

    /// Mean latency in microseconds; 0 when there was nothing.
    pub(super) fn mean_us(&self) -> f64 {
        match self.operations {
            0 => 0.0,
            n => self.time.as_secs_f64() * 1e6 / n as f64,
        }
    }

    /// The latency in microseconds that so many percent of the commands did not exceed; 0 when there was nothing.
    pub(super) fn percentile_us(&self, percent: u64) -> u64 {
        let rank = (self.operations * percent).div_ceil(100).max(1);
        let mut seen = 0;
        for (us, count) in &self.latencies {
            seen += count;
            if seen >= rank {
                return *us;
            }
        }
        0
    }
}

/// What a volume did since somebody looked last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    pub(super) reads: Flow,
    pub(super) writes: Flow,
}

impl Traffic {
    /// Whether there was nothing.
    pub(super) const fn is_empty(&self) -> bool {
        self.reads.operations == 0 && self.writes.operations == 0
    }

    /// Adds what another one counted.
    pub(super) fn add(&mut self, other: &Self) {
        self.reads.add(&other.reads);
        self.writes.add(&other.writes);
    }
}

/// What is behind the lock is consistent at every point.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The counts of all volumes, by the uuid of the volume.
#[derive(Debug, Clone, Default)]
pub(super) struct Meters {
    volumes: Arc<Mutex<HashMap<String, Arc<Mutex<Traffic>>>>>,
}

impl Meters {
    /// The unit of a volume, with its commands counted.
    pub(super) fn meter(&self, volume: &str, unit: LogicalUnit) -> Meter {
        let mut volumes = lock(&self.volumes);
        let traffic = volumes.entry(volume.to_owned()).or_default();
        Meter {
            unit,
            traffic: Arc::clone(traffic),
            waited: Duration::ZERO,
        }
    }

    /// What was counted since it was taken last; counting begins anew.
    pub(super) fn take(&self) -> HashMap<String, Traffic> {
        self.collect(std::mem::take)
    }

    /// The same, and counting goes on.
    pub(super) fn look(&self) -> HashMap<String, Traffic> {
        self.collect(|traffic| traffic.clone())
    }

    fn collect(&self, read: impl Fn(&mut Traffic) -> Traffic) -> HashMap<String, Traffic> {
        let volumes = lock(&self.volumes);
        let counted = volumes.iter().map(|(name, traffic)| {
            let traffic = read(&mut lock(traffic));
            (name.clone(), traffic)
        });
        counted.filter(|(_, traffic)| !traffic.is_empty()).collect()
    }

    /// Forgets volumes that are gone.
    pub(super) fn retain(&self, stays: impl Fn(&str) -> bool) {
        lock(&self.volumes).retain(|name, _| stays(name));
    }
}

/// A logical unit whose reads and writes are counted.
pub(super) struct Meter {
    unit: LogicalUnit,
    traffic: Arc<Mutex<Traffic>>,
    /// How long the next command waited for limits.
    waited: Duration,
}

impl Meter {
    /// The unit itself.
    pub(super) const fn unit(&mut self) -> &mut LogicalUnit {
        &mut self.unit
    }
}

impl ScsiExecutor for Meter {
    fn data_out_len_bytes(&self, cdb: &[u8]) -> Option<u64> {
        self.unit.data_out_len_bytes(cdb)
    }

    fn check_data_out(&self, cdb: &[u8], offered: u64, wanted: u64) -> Option<ScsiReply> {
        self.unit.check_data_out(cdb, offered, wanted)
    }

    fn load(&self, cdb: &[u8]) -> Option<Load> {
        self.unit.load(cdb)
    }

    fn waited(&mut self, _load: Load, time: Duration) {
        self.waited = time;
    }

    fn execute(&mut self, nexus: &Nexus, cdb: &[u8], data_out: &Payload) -> ScsiReply {
        let Some(load) = self.unit.load(cdb) else {
            return self.unit.execute(nexus, cdb, data_out);
        };
        let waited = std::mem::take(&mut self.waited);
        let begun = Instant::now();
        let reply = self.unit.execute(nexus, cdb, data_out);
        if reply.status == 0 {
            let time = waited + begun.elapsed();
            let mut traffic = lock(&self.traffic);
            match load.direction {
                Direction::Read => traffic.reads.record(load.bytes, time),
                Direction::Write => traffic.writes.record(load.bytes, time),
            }
        }
        reply
    }

    fn nexus_begins(&mut self, nexus: &Nexus, reinstated: bool) {
        self.unit.nexus_begins(nexus, reinstated);
    }

    fn nexus_ends(&mut self, nexus: &Nexus) {
        self.unit.nexus_ends(nexus);
    }

    fn reset(&mut self) {
        self.unit.reset();
    }

    fn unit_attention(&mut self, asc: u8, ascq: u8, except: Option<&Nexus>) {
        self.unit.unit_attention(asc, ascq, except);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_summed_up() {
        let mut flow = Flow::default();
        assert_eq!((flow.mean_us(), flow.percentile_us(50)), (0.0, 0));
        for us in 1..=100 {
            flow.record(512, Duration::from_micros(us));
        }
        assert_eq!((flow.operations, flow.bytes), (100, 51_200));
        assert_eq!(flow.mean_us(), 50.5);
        // 50 and 90 and 100, with four leading bits.
        let told = [50, 90, 100].map(|percent| flow.percentile_us(percent));
        assert_eq!(told, [48, 88, 96]);
        let mut other = Flow::default();
        other.record(1, Duration::from_secs(1));
        flow.add(&other);
        assert_eq!(flow.operations, 101);
        assert_eq!(flow.percentile_us(100), 983_040);
    }
}

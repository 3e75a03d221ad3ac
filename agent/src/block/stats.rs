//! Counts and times every request, for metrics and people.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use slab::Slab;

use super::{BlockDevice, Completion, Geometry, Op, Request, RequestId};

/// Kinds of requests that are counted apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "named like the operations")]
pub enum OpKind {
    Read,
    Write,
    Flush,
    Trim,
    WriteZeroes,
    BlockStatus,
    Cache,
}

impl OpKind {
    /// All kinds, in the order of their counters.
    pub const ALL: [Self; 7] = [
        Self::Read,
        Self::Write,
        Self::Flush,
        Self::Trim,
        Self::WriteZeroes,
        Self::BlockStatus,
        Self::Cache,
    ];

    /// The name used in metrics and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Trim => "trim",
            Self::WriteZeroes => "write_zeroes",
            Self::BlockStatus => "block_status",
            Self::Cache => "cache",
        }
    }
}

/// Number of buckets of a latency histogram: four for each doubling, from 1 us to over an hour.
const LATENCY_BUCKETS: usize = 128;

/// Counters of one device. Written by its data-plane thread alone, read by anybody.
#[derive(Debug, Default)]
pub struct IoStats {
    ops: [OpStats; 7],
    in_flight: AtomicU64,
    in_flight_bytes: AtomicU64,
}

/// Counters of one kind of request.
#[derive(Debug)]
pub struct OpStats {
    requests: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
    busy_ns: AtomicU64,
    latency: [AtomicU64; LATENCY_BUCKETS],
}

impl Default for OpStats {
    fn default() -> Self {
        Self {
            requests: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            busy_ns: AtomicU64::new(0),
            latency: [const { AtomicU64::new(0) }; LATENCY_BUCKETS],
        }
    }
}

/// One writer only, so a load and a store do: no locked instruction on the hot path.
fn add(counter: &AtomicU64, n: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(n),
        Ordering::Relaxed,
    );
}

/// Bucket of a latency: four per doubling of microseconds.
fn bucket_of(latency: Duration) -> usize {
    let us = latency.as_micros().max(1) as u64;
    let log2 = us.ilog2();
    let quarter = if log2 >= 2 {
        (us >> (log2 - 2)) & 3
    } else {
        (us << (2 - log2)) & 3
    };
    ((log2 * 4) as usize + quarter as usize).min(LATENCY_BUCKETS - 1)
}

/// Upper edge of a bucket in microseconds.
fn bucket_edge_us(bucket: usize) -> f64 {
    let (log2, quarter) = (bucket / 4, bucket % 4);
    (1u64 << log2) as f64 * (1.0 + (quarter + 1) as f64 / 4.0)
}

impl IoStats {
    /// Counters of one kind.
    #[must_use]
    pub fn op(&self, kind: OpKind) -> &OpStats {
        &self.ops[kind as usize]
    }

    /// Requests that are not answered yet.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Bytes that these requests read, write or name.
    #[must_use]
    pub fn in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes.load(Ordering::Relaxed)
    }
}

impl OpStats {
    /// Requests answered, with success or not.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Bytes of successful requests.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Requests answered with an error.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// Sum of all latencies.
    #[must_use]
    pub fn busy(&self) -> Duration {
        Duration::from_nanos(self.busy_ns.load(Ordering::Relaxed))
    }

    /// The latency that a fraction (0.0 to 1.0) of the requests did not exceed, in microseconds, to
    /// within a quarter; `None` before the first request.
    #[must_use]
    pub fn latency_us(&self, fraction: f64) -> Option<f64> {
        let counts: Vec<u64> = self
            .latency
            .iter()
            .map(|c| c.load(Ordering::Relaxed))
            .collect();
        let total: u64 = counts.iter().sum();
        let wanted = ((total as f64 * fraction).ceil() as u64).max(1);
        let mut seen = 0;
        let at = counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        })?;
        Some(bucket_edge_us(at))
    }

    /// The histogram: upper edge in seconds and the count of requests at or below it.
    pub fn latency_cumulative(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let mut seen = 0;
        self.latency.iter().enumerate().map(move |(bucket, count)| {
            seen += count.load(Ordering::Relaxed);
            (bucket_edge_us(bucket) / 1e6, seen)
        })
    }
}

/// The layer: counts requests, bytes, errors and latency.
pub struct Stats<D> {
    stats: Arc<IoStats>,
    pending: Slab<Pending>,
    device: D,
}

struct Pending {
    id: RequestId,
    kind: OpKind,
    bytes: u64,
    started: Instant,
}

impl<D: BlockDevice> Stats<D> {
    /// Puts the layer over `device`.
    pub fn new(device: D, stats: Arc<IoStats>) -> Self {
        Self {
            stats,
            pending: Slab::with_capacity(256),
            device,
        }
    }
}

impl<D: BlockDevice> BlockDevice for Stats<D> {
    fn geometry(&self) -> &Geometry {
        self.device.geometry()
    }

    fn submit(&mut self, request: Request) {
        let (kind, bytes) = match &request.op {
            Op::Read { len_bytes, .. } | Op::ReadToMerge { len_bytes, .. } => {
                (OpKind::Read, u64::from(*len_bytes))
            }
            Op::Write { data, .. } => (OpKind::Write, data.len() as u64),
            Op::Flush => (OpKind::Flush, 0),
            Op::Trim { len_bytes, .. } => (OpKind::Trim, *len_bytes),
            Op::WriteZeroes { len_bytes, .. } => (OpKind::WriteZeroes, *len_bytes),
            Op::BlockStatus { len_bytes, .. } => (OpKind::BlockStatus, *len_bytes),
            Op::Cache { len_bytes, .. } => (OpKind::Cache, *len_bytes),
        };
        let slot = self.pending.insert(Pending {
            id: request.id,
            kind,
            bytes,
            started: super::now(),
        });
        add(&self.stats.in_flight, 1);
        add(&self.stats.in_flight_bytes, bytes);
        self.device.submit(Request {
            id: slot as u64,
            op: request.op,
        });
    }

    fn commit(&mut self) {
        self.device.commit();
    }

    fn poll_complete(&mut self) -> Option<Completion> {
        let Completion { id, result } = self.device.poll_complete()?;
        let pending = self.pending.remove(id as usize);
        let latency = super::now() - pending.started;
        let op = &self.stats.ops[pending.kind as usize];
        add(&op.requests, 1);
        add(
            if result.is_ok() {
                &op.bytes
            } else {
                &op.errors
            },
            if result.is_ok() { pending.bytes } else { 1 },
        );
        add(&op.busy_ns, latency.as_nanos() as u64);
        add(&op.latency[bucket_of(latency)], 1);
        add(&self.stats.in_flight, u64::MAX);
        add(&self.stats.in_flight_bytes, pending.bytes.wrapping_neg());
        Some(Completion {
            id: pending.id,
            result,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::ModelDevice;
    use super::super::{Error, Payload};
    use super::*;

    #[test]
    fn requests_bytes_and_errors_are_counted_apart() {
        let stats = Arc::new(IoStats::default());
        let mut device = Stats::new(ModelDevice::new(8192, 512, 8192), Arc::clone(&stats));
        let data = Payload::from(vec![1; 1024]);
        device.submit(Request {
            id: 7,
            op: Op::Write {
                offset_bytes: 0,
                data,
                fua: false,
            },
        });
        device.submit(Request {
            id: 8,
            op: Op::Read {
                offset_bytes: 8192,
                len_bytes: 512,
            },
        });
        assert_eq!((stats.in_flight(), stats.in_flight_bytes()), (2, 1536));
        assert_eq!(device.poll_complete().map(|c| c.id), Some(7));
        let failed = device.poll_complete().expect("an answer");
        assert_eq!((failed.id, failed.result), (8, Err(Error::OutOfRange)));
        assert_eq!((stats.in_flight(), stats.in_flight_bytes()), (0, 0));
        let write = stats.op(OpKind::Write);
        assert_eq!(
            (write.requests(), write.bytes(), write.errors()),
            (1, 1024, 0)
        );
        let read = stats.op(OpKind::Read);
        assert_eq!((read.requests(), read.bytes(), read.errors()), (1, 0, 1));
        assert!(write.latency_us(0.5).is_some());
    }

    #[test]
    fn latency_buckets_are_ordered_and_within_a_quarter() {
        let mut last = 0;
        for us in 1..100_000u64 {
            let bucket = bucket_of(Duration::from_micros(us));
            assert!(bucket >= last, "{us} us");
            assert!(bucket_edge_us(bucket) >= us as f64, "{us} us in {bucket}");
            assert!(
                bucket_edge_us(bucket) <= us as f64 * 1.25 + 1.0,
                "{us} us in {bucket}"
            );
            last = bucket;
        }
        assert!(bucket_of(Duration::from_secs(1 << 40)) < LATENCY_BUCKETS);
    }
}

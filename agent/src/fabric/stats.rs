//! What a fabric was asked, and how that came out.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Upper edges of the histogram of durations, in milliseconds.
pub const EDGES_MS: [u64; 8] = [10, 50, 100, 500, 1000, 5000, 15_000, 60_000];

/// How one request came out. A closed set, so that metrics stay few.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Status 2xx.
    Ok,
    /// Status 401.
    Unauthenticated,
    /// Another status 4xx.
    Refused,
    /// Status 5xx.
    Failed,
    /// Something that is not understood.
    Malformed,
    /// No answer in time.
    TimedOut,
    /// No connection, or it broke.
    Lost,
}

impl Outcome {
    /// The word in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unauthenticated => "unauthenticated",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Malformed => "malformed",
            Self::TimedOut => "timeout",
            Self::Lost => "lost",
        }
    }
}

/// Counters of one fabric, since the daemon started.
#[derive(Debug, Default)]
pub struct Stats {
    requests: Mutex<BTreeMap<(&'static str, Outcome), u64>>,
    durations: [AtomicU64; EDGES_MS.len() + 1],
    busy_us: AtomicU64,
    /// Requests that were sent again.
    pub retries: AtomicU64,
    /// Logins that succeeded.
    pub logins: AtomicU64,
    /// Calls that were not sent because the fabric is left alone.
    pub rested: AtomicU64,
    /// Requests under way.
    pub in_flight: AtomicU64,
    /// 1 while nothing is sent.
    pub resting: AtomicU64,
}

impl Stats {
    /// Counts one request.
    pub fn count(&self, method: &'static str, outcome: Outcome, took: Duration) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((method, outcome)).or_default() += 1;
        drop(requests);
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let at = EDGES_MS.partition_point(|edge| *edge < ms);
        self.durations[at].fetch_add(1, Ordering::Relaxed);
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.busy_us.fetch_add(us, Ordering::Relaxed);
    }

    /// Requests by method and outcome.
    #[must_use]
    pub fn requests(&self) -> Vec<(&'static str, Outcome, u64)> {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests
            .iter()
            .map(|((method, outcome), count)| (*method, *outcome, *count))
            .collect()
    }

    /// Requests that took at most each of [`EDGES_MS`], all of them, and the seconds they took together.
    #[must_use]
    pub fn durations(&self) -> ([u64; EDGES_MS.len()], u64, f64) {
        let mut below = [0; EDGES_MS.len()];
        let mut sum = 0;
        for (at, count) in self.durations.iter().enumerate() {
            sum += count.load(Ordering::Relaxed);
            if let Some(below) = below.get_mut(at) {
                *below = sum;
            }
        }
        (
            below,
            sum,
            self.busy_us.load(Ordering::Relaxed) as f64 / 1e6,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_told() {
        let stats = Stats::default();
        stats.count("GET", Outcome::Ok, Duration::from_millis(10));
        stats.count("GET", Outcome::Ok, Duration::from_millis(70));
        stats.count("PUT", Outcome::TimedOut, Duration::from_secs(100));
        assert_eq!(
            stats.requests(),
            [("GET", Outcome::Ok, 2), ("PUT", Outcome::TimedOut, 1)]
        );
        let (below, all, seconds) = stats.durations();
        assert_eq!(below, [1, 1, 2, 2, 2, 2, 2, 2]);
        assert_eq!(all, 3);
        assert!((seconds - 100.08).abs() < 1e-6, "{seconds}");
    }
}

//! Numbers for people.

use std::time::Duration;

/// Prints median, 95th and 99th percentile and the longest of some times, and returns the longest.
pub(crate) fn print(what: &str, mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    let longest = times.last().copied().unwrap_or_default();
    let rank = |percent: usize| {
        let rank = (times.len() * percent).div_ceil(100).saturating_sub(1);
        times.get(rank).copied().unwrap_or_default().as_secs_f64()
    };
    println!(
        "{what}: {} values, p50 {:.3} s, p95 {:.3} s, p99 {:.3} s, longest {:.3} s",
        times.len(),
        rank(50),
        rank(95),
        rank(99),
        longest.as_secs_f64()
    );
    longest
}

/// SplitMix64: the same seed gives the same moments.
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// Any number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// A time shorter than so many milliseconds.
    pub(crate) fn millis(&mut self, end: u64) -> Duration {
        Duration::from_millis(self.below(end))
    }
}

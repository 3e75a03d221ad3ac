//! Pauses between attempts.

use std::time::Duration;

/// Doubles the pause with each failure, and spreads it, so that the nodes of a cluster do not all come back
/// in the same moment.
pub(super) struct Backoff {
    first: Duration,
    max: Duration,
    failures: u32,
    state: u64,
}

impl Backoff {
    /// Pauses from `first` to `max`. The spread is a function of `seed`.
    pub(super) fn new(first: Duration, max: Duration, seed: u64) -> Self {
        Self {
            first,
            max: max.max(first),
            failures: 0,
            state: seed,
        }
    }

    /// It worked: begins with the first pause again.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// The next pause: between a half and the whole of the doubled one.
    pub(super) fn next(&mut self) -> Duration {
        let doubled = self.first.saturating_mul(1 << self.failures.min(20));
        self.failures = self.failures.saturating_add(1);
        let pause = doubled.min(self.max);
        // SplitMix64 (Steele, Lea, Flood 2014).
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let part = (z >> 32) as u32;
        pause / 2 + (pause / 2).mul_f64(f64::from(part) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_are_spread() {
        let (first, max) = (Duration::from_millis(500), Duration::from_secs(30));
        let mut backoff = Backoff::new(first, max, 7);
        let mut whole = first;
        for _ in 0..40 {
            let pause = backoff.next();
            assert!(
                pause >= whole / 2 && pause <= whole,
                "{pause:?} of {whole:?}"
            );
            whole = (whole * 2).min(max);
        }
        backoff.reset();
        assert!(backoff.next() <= first);
        let (mut a, mut b) = (Backoff::new(first, max, 1), Backoff::new(first, max, 2));
        assert_ne!(a.next(), b.next());
        let mut again = Backoff::new(first, max, 1);
        assert_eq!(Backoff::new(first, max, 1).next(), again.next());
    }
}

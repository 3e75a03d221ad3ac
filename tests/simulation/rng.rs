//! The seeded generator: everything random in a run comes from one of these.

use std::ops::Range;
use std::time::Duration;

/// SplitMix64: small, fast, and the same on every machine.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// A stream of its own for each purpose, so that switching one fault off does not change the others.
    #[must_use]
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut rng = Self(seed ^ stream.wrapping_mul(0xa076_1d64_78bd_642f));
        rng.bits();
        rng.bits();
        rng
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number of the range, which is not empty.
    pub fn pick(&mut self, range: Range<u64>) -> u64 {
        range.start + self.bits() % (range.end - range.start)
    }

    /// True in so many of 100 cases.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.bits() % 100 < percent
    }

    /// One of these.
    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.pick(0..choices.len() as u64) as usize]
    }

    /// A time within the range, in milliseconds.
    pub fn ms(&mut self, range: Range<u64>) -> Duration {
        Duration::from_millis(self.pick(range))
    }

    /// Mostly small, sometimes as large as `max`: the number of digits is even, not the number.
    pub fn skewed(&mut self, max: u64) -> u64 {
        let bits = u64::from(64 - max.leading_zeros());
        let shift = self.pick(0..bits + 1);
        self.bits() % (max >> shift).max(1)
    }
}

//! Pauses between two tries: doubled each time, with a random part left out.

use std::time::Duration;

/// Pauses of one operation.
#[derive(Debug)]
pub struct Pauses {
    next: Duration,
    max: Duration,
}

impl Pauses {
    /// Begins with `first` and never exceeds `max`.
    #[must_use]
    pub fn new(first: Duration, max: Duration) -> Self {
        Self {
            next: first.min(max),
            max,
        }
    }

    /// The next pause: between half and all of what it could be, so that nodes that failed together do not come
    /// back together. `least`: what the fabric asked for.
    pub fn next(&mut self, least: Option<Duration>) -> Duration {
        let full = self.next;
        self.next = (self.next * 2).min(self.max);
        let pause = full / 2 + full.mul_f64(random_fraction() / 2.0);
        pause.max(least.map_or(Duration::ZERO, |least| least.min(self.max)))
    }
}

/// From 0 up to 1.
fn random_fraction() -> f64 {
    let mut bytes = [0; 4];
    if getrandom::fill(&mut bytes).is_err() {
        return 0.5; // Without randomness a fixed pause is still a pause.
    }
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_limit_and_differ() {
        let (first, max) = (Duration::from_millis(100), Duration::from_millis(350));
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..20 {
            let mut pauses = Pauses::new(first, max);
            for full in [100, 200, 350, 350] {
                let pause = pauses.next(None);
                let full = Duration::from_millis(full);
                assert!(pause >= full / 2 && pause <= full, "{pause:?} of {full:?}");
                seen.insert(pause);
            }
        }
        assert!(seen.len() > 20, "they are not all the same: {seen:?}");
        let mut pauses = Pauses::new(first, max);
        assert_eq!(
            pauses.next(Some(Duration::from_secs(60))),
            max,
            "what is asked for is bounded"
        );
    }
}

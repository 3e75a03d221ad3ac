//! What a big run must have come across: every kind of fault, every way of recovery. What never happens proves
//! nothing.

use std::collections::BTreeMap;

use super::plan::Fault;

/// From so many seeds on, what was never hit is a failure.
pub const SEEDS_MIN: u64 = 2_000;
/// What is hit less often than this is rare.
pub const HITS_MIN: u64 = 100;

/// Ways of recovery by the names of their counters; those that begin with `log:` are the words of a log message.
pub const RECOVERY: [&str; 31] = [
    "client: done after a stall of more than 1 s",
    "log: DATA PROTECT",
    "log: GOOD with bytes missing",
    "log: MEDIUM ERROR",
    "log: UNIT ATTENTION",
    "log: abort failed, the LUN is reset",
    "log: an old session could not be ended by a new login; after this time the target is taken to have ended it",
    "log: no path for the whole recovery timeout: I/O fails until one is back",
    "log: target refuses a login",
    "log: the LUN is another unit: nothing is sent to it",
    "log: the command was aborted: Deadline",
    "log: the old session was ended through another portal of its group",
    "log: the session is about to be logged out",
    "log: the target failed to deliver, response",
    "log: the target rejected the command, reason",
    "log: the unit has another size",
    "log: the unit's facts cannot be read",
    "log: the target reported something",
    "log: the volume cannot go on",
    "path: attach failed",
    "path: fenced",
    "recovery: LUN resets",
    "recovery: cache losses noticed",
    "recovery: commands aborted",
    "recovery: commands sent again",
    "recovery: requests timed out",
    "recovery: sessions lost",
    "recovery: sessions reinstated",
    "recovery: times without a path",
    "recovery: writes of unknown fate",
    "log: the reservation is held",
];

/// What was hit less often than [`HITS_MIN`] times, the rarest first.
#[must_use]
pub fn rare(counts: &BTreeMap<String, u64>) -> Vec<(&'static str, u64)> {
    let mut rare: Vec<_> = Fault::NAMES
        .iter()
        .chain(&RECOVERY)
        .map(|name| (*name, counts.get(*name).copied().unwrap_or(0)))
        .filter(|(_, n)| *n < HITS_MIN)
        .collect();
    rare.sort_by_key(|(name, n)| (*n, *name));
    rare
}

#[cfg(test)]
mod tests {
    use super::super::Plan;
    use super::*;

    #[test]
    fn every_fault_of_a_plan_is_expected() {
        for seed in 0..2_000 {
            for planned in Plan::new(seed).faults {
                let name = planned.fault.name();
                assert!(Fault::NAMES.contains(&name), "{name}");
            }
        }
    }

    #[test]
    fn what_is_missing_is_named_first() {
        let mut counts: BTreeMap<String, u64> = Fault::NAMES
            .iter()
            .chain(&RECOVERY)
            .map(|name| ((*name).to_owned(), HITS_MIN))
            .collect();
        assert_eq!(rare(&counts), []);
        counts.insert(Fault::NAMES[3].to_owned(), HITS_MIN - 1);
        counts.remove(RECOVERY[1]);
        assert_eq!(
            rare(&counts),
            [(RECOVERY[1], 0), (Fault::NAMES[3], HITS_MIN - 1)]
        );
    }
}

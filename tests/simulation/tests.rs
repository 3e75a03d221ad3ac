//! The simulation itself: it is deterministic, and it finds what it must find.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use berth_iscsi::mutation::Mutation;

use super::{Plan, run};

/// Seeds within which a planted bug must be found.
const SEEDS_MAX: u64 = 2_000;

#[test]
fn the_same_seed_does_the_same_thing_twice() {
    for seed in 0..20 {
        let plan = Plan::new(seed);
        let (once, again) = (run(&plan, false), run(&plan, true));
        assert_eq!(once.hash, again.hash, "seed {seed}");
        assert_eq!(once.requests, again.requests, "seed {seed}");
        assert_eq!(once.violations, again.violations, "seed {seed}");
    }
}

#[test]
fn different_seeds_do_different_things() {
    let hash = |seed| run(&Plan::new(seed), false).hash;
    assert_ne!(hash(1), hash(2));
}

/// The first seed that finds the bug, on all cores.
fn first_seed_that_finds(mutation: Mutation) -> Option<u64> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (next, found) = (AtomicU64::new(0), AtomicBool::new(false));
    let first = AtomicU64::new(u64::MAX);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !found.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= SEEDS_MAX {
                        return;
                    }
                    let plan = Plan::new(seed).with_mutation(Some(mutation));
                    if !run(&plan, false).violations.is_empty() {
                        first.fetch_min(seed, Ordering::Relaxed);
                        found.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    Some(first.into_inner()).filter(|seed| *seed != u64::MAX)
}

#[test]
fn every_planted_bug_is_found() {
    let mut missed = Vec::new();
    for mutation in Mutation::ALL {
        match first_seed_that_finds(mutation) {
            Some(seed) => {
                // It is the bug that was found, not something else.
                let without = run(&Plan::new(seed), false);
                assert_eq!(
                    without.violations, [""; 0],
                    "seed {seed} fails without a bug"
                );
                println!("{:<24} seed {seed}", mutation.name());
            }
            None => missed.push(mutation.name()),
        }
    }
    assert_eq!(missed, [""; 0], "not found within {SEEDS_MAX} seeds");
}

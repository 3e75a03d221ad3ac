//! The simulation itself: it is deterministic. That it finds planted bugs is shown by `simulate --mutate all`, which
//! `tests/run` runs.

use berth_iscsi::mutation::Mutation;

use super::{Plan, run};

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

#[test]
fn a_planted_bug_is_found_and_gone_afterwards() {
    let planted = |seed| Plan::new(seed).with_mutation(Some(Mutation::DropFlush));
    let found = (0..100).find(|seed| !run(&planted(*seed), false).violations.is_empty());
    let seed = found.expect("a dropped flush is found by nearly every seed");
    assert_eq!(run(&Plan::new(seed), false).violations, [""; 0]);
}

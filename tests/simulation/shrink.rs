//! Makes a failing plan smaller: leaves out faults and requests as long as it still fails.

use std::collections::BTreeSet;

use super::plan::Plan;
use super::run::run;

/// Runs spent on one failing seed.
const RUNS_MAX: usize = 1_500;

/// The smallest failing plan that was found, and how many runs it took.
#[must_use]
pub fn shrink(plan: &Plan) -> (Plan, usize) {
    let mut runs = 0;
    let mut best = plan.clone();
    let wanted = kind_of(plan);
    loop {
        let before = best.faults.len() + best.requests.len();
        let faults: Vec<usize> = best.faults.iter().map(|fault| fault.number).collect();
        reduce(&mut best, &faults, &wanted, &mut runs, |plan, out| {
            plan.without(out, &BTreeSet::new())
        });
        let requests: Vec<usize> = best.requests.iter().map(|request| request.number).collect();
        reduce(&mut best, &requests, &wanted, &mut runs, |plan, out| {
            plan.without(&BTreeSet::new(), out)
        });
        if best.faults.len() + best.requests.len() == before || runs >= RUNS_MAX {
            return (best, runs);
        }
    }
}

/// What kinds of violations a plan leads to: their words without their numbers.
fn kind_of(plan: &Plan) -> Vec<String> {
    let mut kinds: Vec<String> = run(plan, false)
        .violations
        .iter()
        .map(|text| {
            text.chars()
                .filter(|c| !c.is_ascii_digit())
                .take(60)
                .collect()
        })
        .collect();
    kinds.sort();
    kinds.dedup();
    kinds
}

/// Leaves out halves, quarters and so on down to single ones.
fn reduce(
    best: &mut Plan,
    numbers: &[usize],
    wanted: &[String],
    runs: &mut usize,
    without: impl Fn(&Plan, &BTreeSet<usize>) -> Plan,
) {
    let mut left: Vec<usize> = numbers.to_vec();
    let mut size = left.len();
    while size > 0 {
        let mut at = 0;
        while at < left.len() {
            if *runs >= RUNS_MAX {
                return;
            }
            let end = (at + size).min(left.len());
            let out: BTreeSet<usize> = left[at..end].iter().copied().collect();
            let candidate = without(best, &out);
            *runs += 1;
            let still = kind_of(&candidate);
            if !still.iter().any(|kind| wanted.contains(kind)) {
                at = end;
            } else {
                *best = candidate;
                left.drain(at..end);
            }
        }
        size /= 2;
    }
}

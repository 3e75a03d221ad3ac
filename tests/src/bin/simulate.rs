//! Runs seeds of the deterministic simulation on all cores.
//!
//! ```text
//! simulate --seeds 2000              seeds 0 to 1999
//! simulate --seed 17 --trace         one seed, with everything that happens
//! simulate --seeds 2000 --mutate all every planted bug, one at a time: each must be found
//! ```
//!
//! Exits with 1 when a seed fails; then the seed and a small version of what led to it are printed. A run of
//! many seeds also fails when a kind of fault or a way of recovery never came up. With `--mutate all` the exit
//! is 1 when a planted bug was not found.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use berth_iscsi::mutation::Mutation;
use berth_tests::simulation::{Plan, Report, coverage, run, shrink};
use clap::Parser;

/// Runs the deterministic simulation.
#[derive(Debug, Parser)]
struct Args {
    /// How many seeds.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Only this one.
    #[arg(long)]
    seed: Option<u64>,
    /// Print everything that happens (with --seed).
    #[arg(long)]
    trace: bool,
    /// Plant a bug, which must be found; `list` names them, `all` plants one after the other.
    #[arg(long, value_name = "NAME|list|all")]
    mutate: Option<String>,
    /// Threads; one for each core by default.
    #[arg(long)]
    threads: Option<usize>,
    /// Do not make the failing run smaller.
    #[arg(long)]
    no_shrink: bool,
    /// Go on after a failure; at the end the failing seeds are listed.
    #[arg(long)]
    keep_going: bool,
}

#[derive(Default)]
struct Totals {
    /// Seeds that were run.
    done: u64,
    counts: BTreeMap<String, u64>,
    requests: u64,
    failed: Vec<Report>,
}

impl Args {
    fn threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map(usize::from).ok();
        self.threads.or_else(cores).unwrap_or(1)
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mutation = match args.mutate.as_deref() {
        None => None,
        Some("list") => {
            for one in Mutation::ALL {
                println!("{:<24} {}", one.name(), one.what());
            }
            return ExitCode::SUCCESS;
        }
        Some("all") => return every_planted_bug(&args),
        Some(name) => match Mutation::from_name(name) {
            Some(mutation) => Some(mutation),
            None => {
                eprintln!("simulate: no mutation is called {name:?}; try --mutate list");
                return ExitCode::from(2);
            }
        },
    };
    if let Some(seed) = args.seed {
        return one(seed, mutation, &args);
    }
    let start = Instant::now();
    let totals = run_seeds(&args, mutation, |report| {
        println!("seed {}: {}", report.seed, report.violations[0]);
    });
    let took = start.elapsed().as_secs_f64();
    let rare = coverage::rare(&totals.counts);
    println!("\nhow often   what");
    for (name, n) in &totals.counts {
        let mark = if rare.iter().any(|(rare, _)| rare == name) {
            "  (rare)"
        } else {
            ""
        };
        println!("{n:>9}   {name}{mark}");
    }
    let never: Vec<&str> = rare
        .iter()
        .take_while(|(_, n)| *n == 0)
        .map(|(name, _)| *name)
        .collect();
    println!(
        "\n{} seeds ({} to {}) with {} requests in {took:.1} s: {:.0} seeds/s on {} threads, {} failed, \
         {} rare (less than {} times), {} never hit",
        totals.done,
        args.from,
        args.from + totals.done - 1,
        totals.requests,
        totals.done as f64 / took,
        args.threads(),
        totals.failed.len(),
        rare.len() - never.len(),
        coverage::HITS_MIN,
        never.len(),
    );
    if let Some(failed) = totals.failed.iter().min_by_key(|report| report.seed) {
        explain(failed.seed, mutation, &args);
        return ExitCode::FAILURE;
    }
    if totals.done < coverage::SEEDS_MIN {
        return ExitCode::SUCCESS;
    }
    for (name, n) in rare.iter().skip(never.len()) {
        println!("WARNING: only {n} times: {name}");
    }
    for name in &never {
        println!("NEVER HIT: {name}");
    }
    if never.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs the seeds on all threads; one that fails ends it, unless it shall go on.
fn run_seeds(
    args: &Args,
    mutation: Option<Mutation>,
    on_failure: impl Fn(&Report) + Sync,
) -> Totals {
    let next = AtomicU64::new(args.from);
    let end = args.from + args.seeds;
    let stop = AtomicBool::new(false);
    let totals = Mutex::new(Totals::default());
    std::thread::scope(|scope| {
        for _ in 0..args.threads() {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let report = run(&Plan::new(seed).with_mutation(mutation), false);
                    let mut totals = totals.lock().expect("a run does not panic");
                    totals.done += 1;
                    totals.requests += report.requests;
                    for (name, n) in &report.counts {
                        *totals.counts.entry(name.clone()).or_default() += n;
                    }
                    if !report.violations.is_empty() {
                        on_failure(&report);
                        totals.failed.push(report);
                        if !args.keep_going {
                            stop.store(true, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    totals.into_inner().expect("a run does not panic")
}

/// Plants one bug after the other. Each must be found, by a seed that finds nothing without it.
fn every_planted_bug(args: &Args) -> ExitCode {
    let mut failures = 0;
    for mutation in Mutation::ALL {
        let name = mutation.name();
        let totals = run_seeds(args, Some(mutation), |_| ());
        let Some(found) = totals.failed.iter().min_by_key(|report| report.seed) else {
            println!("{name:<24} NOT FOUND by {} seeds", totals.done);
            failures += 1;
            continue;
        };
        let seed = found.seed;
        let without = run(&Plan::new(seed), false).violations;
        if without.is_empty() {
            println!("{name:<24} seed {seed}: {}", found.violations[0]);
        } else {
            println!("{name:<24} seed {seed} FAILS WITHOUT IT: {}", without[0]);
            failures += 1;
        }
    }
    let planted = Mutation::ALL.len();
    println!("\n{} of {planted} planted bugs found", planted - failures);
    if failures == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn one(seed: u64, mutation: Option<Mutation>, args: &Args) -> ExitCode {
    let plan = Plan::new(seed).with_mutation(mutation);
    let report = run(&plan, args.trace);
    for line in &report.lines {
        println!("{line}");
    }
    println!("{:#?}", plan.faults);
    println!(
        "seed {seed}: {} requests, hash {:016x}",
        report.requests, report.hash
    );
    if report.violations.is_empty() {
        return ExitCode::SUCCESS;
    }
    for violation in &report.violations {
        println!("VIOLATION: {violation}");
    }
    if !args.trace {
        explain(seed, mutation, args);
    }
    ExitCode::FAILURE
}

/// Prints the smallest version of a failing seed.
fn explain(seed: u64, mutation: Option<Mutation>, args: &Args) {
    let plan = Plan::new(seed).with_mutation(mutation);
    if !args.no_shrink {
        let (small, runs) = shrink::shrink(&plan);
        let report = run(&small, true);
        println!(
            "\nseed {seed} still fails with {} of {} faults and {} of {} requests (found in {runs} runs):\n",
            small.faults.len(),
            plan.faults.len(),
            small.requests.len(),
            plan.requests.len(),
        );
        for line in &report.lines {
            println!("{line}");
        }
        for violation in &report.violations {
            println!("VIOLATION: {violation}");
        }
    }
    let mutate = mutation.map_or_else(String::new, |one| format!(" --mutate {}", one.name()));
    println!("\nreplay with: simulate --seed {seed} --trace{mutate}");
}

//! Runs seeds of the deterministic simulation on all cores.
//!
//! ```text
//! simulate --seeds 2000              seeds 0 to 1999
//! simulate --seed 17 --trace         one seed, with everything that happens
//! ```
//!
//! Exits with 1 when a seed fails; then the seed and a small version of what led to it are printed.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use berth_iscsi::mutation::Mutation;
use berth_tests::simulation::{Plan, Report, run, shrink};
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
    /// Plant a bug, which must be found; `list` names them.
    #[arg(long, value_name = "NAME|list")]
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

struct Totals {
    counts: BTreeMap<String, u64>,
    requests: u64,
    failed: Vec<Report>,
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
    let threads = args
        .threads
        .or_else(|| std::thread::available_parallelism().map(usize::from).ok())
        .unwrap_or(1);
    let next = AtomicU64::new(args.from);
    let end = args.from + args.seeds;
    let stop = AtomicBool::new(false);
    let totals = Mutex::new(Totals {
        counts: BTreeMap::new(),
        requests: 0,
        failed: Vec::new(),
    });
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let report = run(&Plan::new(seed).with_mutation(mutation), false);
                    let mut totals = totals.lock().expect("a run does not panic");
                    totals.requests += report.requests;
                    for (name, n) in &report.counts {
                        *totals.counts.entry(name.clone()).or_default() += n;
                    }
                    if !report.violations.is_empty() {
                        println!("seed {seed}: {}", report.violations[0]);
                        totals.failed.push(report);
                        if !args.keep_going {
                            stop.store(true, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    let totals = totals.into_inner().expect("a run does not panic");
    let took = start.elapsed().as_secs_f64();
    let done = next.load(Ordering::Relaxed).min(end) - args.from;
    println!("\nhow often   what");
    for (name, n) in &totals.counts {
        println!("{n:>9}   {name}");
    }
    println!(
        "\n{done} seeds ({} to {}) with {} requests in {took:.1} s: {:.0} seeds/s on {threads} threads, {} failed",
        args.from,
        args.from + done - 1,
        totals.requests,
        done as f64 / took,
        totals.failed.len(),
    );
    let Some(failed) = totals.failed.iter().min_by_key(|report| report.seed) else {
        return ExitCode::SUCCESS;
    };
    explain(failed.seed, mutation, &args);
    ExitCode::FAILURE
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

//! The host's side of the lab: boots a guest, runs a scenario in it, and gives its result.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};

mod cluster;
mod guest;
mod kubelet;
mod package;
mod scenario;

use scenario::{SCENARIOS, Scenario};

#[derive(Debug, Parser)]
#[command(name = "lab")]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Names the scenarios.
    List,
    /// Runs all of them, one after the other; one that fails does not stop the others.
    All(How),
    /// Runs the one of that name.
    #[command(external_subcommand)]
    One(Vec<String>),
}

/// How scenarios are run.
#[derive(Debug, Clone, Parser)]
struct How {
    /// How often the heart of the scenario is repeated; each scenario has a default.
    #[arg(long)]
    rounds: Option<u32>,
    /// Everything that is left to chance depends on it.
    #[arg(long, default_value_t = 20_261_123)]
    seed: u64,
    /// Few rounds: seconds instead of minutes.
    #[arg(long)]
    quick: bool,
}

/// Set by SIGTERM and SIGINT: whatever runs comes to its end and cleans up.
static STOP: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    match catch_signals().and_then(|()| run(Options::parse().command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn catch_signals() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut terminate, mut interrupt) = runtime.block_on(async {
        anyhow::Ok((
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        ))
    })?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                biased;
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        });
        STOP.store(true, Ordering::Relaxed);
    });
    Ok(())
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::List => {
            for scenario in SCENARIOS {
                println!("{:<8} {}", scenario.name, scenario.shows);
            }
            Ok(())
        }
        Command::All(how) => {
            let mut failed = Vec::new();
            for scenario in SCENARIOS {
                if let Err(error) = one(scenario, &how) {
                    eprintln!("lab {}: {error:#}", scenario.name);
                    failed.push(scenario.name);
                }
                if STOP.load(Ordering::Relaxed) {
                    bail!("stopped");
                }
            }
            if failed.is_empty() {
                return Ok(());
            }
            bail!("failed: {}", failed.join(" "))
        }
        Command::One(words) => {
            let name = &words[0];
            let Some(scenario) = SCENARIOS.iter().find(|scenario| scenario.name == name) else {
                let names: Vec<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
                bail!("there is no scenario {name:?}, only: {}", names.join(" "));
            };
            one(scenario, &How::parse_from(&words))
        }
    }
}

fn one(scenario: &Scenario, how: &How) -> Result<()> {
    let started = Instant::now();
    let rounds = how.rounds.unwrap_or(if how.quick {
        scenario.quick_rounds
    } else {
        scenario.rounds
    });
    println!(
        "==== lab {}: {rounds} rounds, seed {}",
        scenario.name, how.seed
    );
    guest::run(scenario, rounds, how.seed)?;
    println!(
        "---- lab {}: ok, {} s",
        scenario.name,
        started.elapsed().as_secs()
    );
    Ok(())
}

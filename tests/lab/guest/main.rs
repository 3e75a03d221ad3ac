//! The guest's side of the lab: one scenario, run as root on a kernel that may be broken.
//!
//! A scenario is a function in the module of its name; what several of them need is beside them:
//!
//! - [`kernel`]: modules, and what the kernel has complained about.
//! - [`volume`]: a target, an attachment with its kernel device, and a file system on it.
//! - [`machine`]: a machine with systemd on which berth is installed by its package.
//! - [`kubernetes`]: that machine as a node of Kubernetes, by the package of the drivers.
//! - [`flex`]: a node on which kubelet uses berth through the FlexVolume driver.
//! - [`load`]: fio, a tree of files and a prober, all of which check what they read.
//! - [`tree`]: the tree of files.
//! - [`figures`]: percentiles, printed.
//!
//! Scenarios with several nodes are led from the host; what they need in a guest are words like scenarios:
//!
//! - [`node`]: takes orders.
//! - [`marks`]: blocks that say who has written them.
//!
//! Exit status 0: it holds. 1: it falls short. [`REBOOT`]: the machine is to be rebooted and the scenario run again (machines
//! with systemd only).

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;

mod absent;
mod crash;
mod csi;
mod detach;
mod figures;
mod flex;
mod kernel;
mod kubernetes;
mod load;
mod machine;
mod marks;
mod memory;
mod node;
mod resize;
mod scene;
mod systemd;
mod tree;
mod upgrade;
mod volume;

/// What a scenario is told.
#[derive(Debug, Clone, Parser)]
pub(crate) struct Options {
    /// Which.
    scenario: String,
    /// How often its heart is repeated.
    #[arg(long)]
    rounds: u32,
    /// What is left to chance depends on it.
    #[arg(long)]
    seed: u64,
    /// A target outside the guest: address and port.
    #[arg(long)]
    portal: Option<String>,
    /// Its name; its LUN 0 is ours.
    #[arg(long)]
    target: Option<String>,
    /// A disk, or a file that is used as one, for those that are told one.
    #[arg(long)]
    device: Option<PathBuf>,
    /// How many of its first blocks of 4 KiB are used.
    #[arg(long, default_value_t = 256)]
    blocks: u64,
    /// Where it is kept how far the writing is.
    #[arg(long)]
    record: Option<PathBuf>,
}

/// Exit status that asks for a reboot.
const REBOOT: u8 = 100;

/// What shall happen after a program that has not failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// The scenario holds.
    End,
    /// The machine is rebooted and the program run again; what it keeps for then is on the disk.
    Reboot,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(Next::End) => ExitCode::SUCCESS,
        Ok(Next::Reboot) => ExitCode::from(REBOOT),
        Err(error) => {
            println!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<Next> {
    match options.scenario.as_str() {
        "crash" => crash::run(options, crash::End::Kill),
        "restart" => crash::run(options, crash::End::Planned),
        "absent" => absent::run(options),
        "resize" => resize::run(options),
        "memory" => memory::run(options),
        "detach" => detach::run(options),
        "blank" => flex::blank::run(options),
        "kubelet" => flex::kubelet::run(options),
        "teardown" => flex::teardown::run(options),
        "csi" => csi::run(options),
        "systemd" => return systemd::run(options),
        "upgrade" => upgrade::run(options),
        "node" => node::run(),
        "write-marks" => marks::write(options),
        "read-marks" => marks::read(options),
        other => bail!("the guest knows no scenario {other:?}"),
    }?;
    Ok(Next::End)
}

//! The CSI driver with kernel devices and real file systems: all rules of the suite, in mount mode and in block mode, and
//! with the driver and the daemon killed between any two calls.

use anyhow::Result;
use berth_tests::csi::rig::Access;
use berth_tests::csi::site::Kernel;
use berth_tests::csi::suite;

use crate::{Options, kernel};

/// Each round tries all rules in one of the modes, by turns.
pub(crate) fn run(options: &Options) -> Result<()> {
    kernel::load_nbd()?;
    for round in 0..options.rounds {
        let access = [Access::Mount, Access::Block][round as usize % 2];
        println!("round {round}, {access:?}");
        suite::run(Kernel::Real, access, "")?;
    }
    Ok(())
}

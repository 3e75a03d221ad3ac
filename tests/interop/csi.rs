//! The CSI driver, the daemon and the simulated fabric as processes, held to all rules; file systems and mounts are pretended, since
//! this kernel may have no NBD. With real ones: `tests/lab/run csi`.

use anyhow::Result;
use berth_tests::csi::rig::Access;
use berth_tests::csi::site::Kernel;
use berth_tests::csi::suite;

/// `CSI_RULES` is a part of the names of those that are tried.
fn filter() -> String {
    std::env::var("CSI_RULES").unwrap_or_default()
}

#[test]
fn all_rules_hold_for_file_systems() -> Result<()> {
    suite::run(Kernel::Pretended, Access::Mount, &filter())
}

#[test]
fn all_rules_hold_for_devices() -> Result<()> {
    suite::run(Kernel::Pretended, Access::Block, &filter())
}

//! A node of a cluster: the host says what runs here, and plays kubelet.

use std::path::Path;

use anyhow::Result;
use berth_tests::guest::control;

use crate::kernel;

/// Takes orders until the guest ends.
pub(crate) fn run() -> Result<()> {
    kernel::load_nbd()?;
    std::fs::create_dir_all("/run/lab")?;
    control::relay(control::CSI_PORT, Path::new(control::CSI_SOCKET))?;
    control::serve()
}

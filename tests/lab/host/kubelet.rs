//! The test of the FlexVolume driver against a real kubelet, built from the distribution's source package.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use berth_tests::tool;

/// Kubelet and all its libraries, the first time, on a busy machine.
const DEADLINE: Duration = Duration::from_secs(1200);

/// Builds `kubelet.test` into `folder`.
///
/// # Errors
/// When the source or Go are not installed, or it does not compile.
pub(crate) fn build(folder: &Path) -> Result<()> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("kubelet/build");
    let script = script.to_str().context("path is text")?;
    let program = folder.join("kubelet.test");
    let program = program.to_str().context("path is text")?;
    tool::run("bash", &[script, program], DEADLINE).map(drop)
}

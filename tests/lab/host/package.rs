//! The Debian packages, for machines that install them.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use berth_tests::{programs, tool};

/// cargo-deb on a busy machine; the programs are built before.
const DEADLINE: Duration = Duration::from_secs(600);

/// The packages, by name.
const NAMES: [&str; 2] = ["berth", "berth-kubernetes"];

/// Makes `berth-1.deb`, `berth-kubernetes-1.deb` and the same with 2 in `folder`: the programs under test, packed twice, the
/// second time as the later version.
///
/// # Errors
/// When cargo-deb is not installed, or fails.
pub(crate) fn make_two(folder: &Path) -> Result<()> {
    let programs = programs::ours("berthd")?;
    let programs = programs.parent().context("is in a folder")?;
    let target = programs.parent().context("the target folder")?;
    let profile = match programs.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some("release") => "release",
        other => bail!("the programs are in {other:?}, not in a folder of cargo"),
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("tests/ has a parent")?;
    let build = root.join("systemd/debian/build");
    for number in 1..=2 {
        let into = tempfile::TempDir::new_in(folder)?;
        let version = format!("0.0.{number}-1");
        let mut target_dir = std::ffi::OsString::from("CARGO_TARGET_DIR=");
        target_dir.push(target);
        let words = [
            target_dir.as_os_str(),
            build.as_os_str(),
            "--no-build".as_ref(),
            "--fast".as_ref(),
            "--profile".as_ref(),
            profile.as_ref(),
            "--version".as_ref(),
            version.as_ref(),
            "--into".as_ref(),
            into.path().as_os_str(),
        ];
        tool::run("env", &words, DEADLINE)?;
        for name in NAMES {
            // NAME_VERSION_ARCHITECTURE.deb
            let begins = format!("{name}_");
            let package = std::fs::read_dir(into.path())?
                .filter_map(Result::ok)
                .find(|entry| entry.file_name().to_string_lossy().starts_with(&begins))
                .with_context(|| format!("no package {name} was made"))?;
            std::fs::rename(package.path(), folder.join(format!("{name}-{number}.deb")))?;
        }
    }
    Ok(())
}

//! Where the programs under test come from.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, bail, ensure};

/// A program of this workspace, built now in the profile of the caller if it is not up to date.
///
/// `BERTH_PROGRAMS` names a folder of programs to test instead, for example those of a package.
///
/// # Errors
/// When it cannot be built or is not there.
pub fn ours(name: &str) -> Result<PathBuf> {
    static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let folder = FOLDER
        .get_or_init(|| folder().map_err(|error| format!("{error:#}")))
        .as_ref()
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    let program = folder.join(name);
    ensure!(program.is_file(), "{} is not there", program.display());
    Ok(program)
}

fn folder() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("BERTH_PROGRAMS") {
        return Ok(folder.into());
    }
    // target/PROFILE/deps/interop-0123: two up is where cargo puts programs.
    let test = std::env::current_exe().context("own path")?;
    let deps = test.parent().context("folder of the test program")?;
    let folder = if deps.ends_with("deps") {
        deps.parent().context("profile folder")?
    } else {
        deps
    };
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args([
        "build",
        "-q",
        "--locked",
        "-p",
        "berth-agent",
        "-p",
        "berth-plugin",
        "-p",
        "berth-tests",
        "--bins",
    ]);
    // What cargo told us about this package is no matter of that build: build scripts that look at it would run again, and
    // half of the programs' dependencies be compiled again, each time.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            build.env_remove(&name);
        }
    }
    build
        .arg("--target-dir")
        .arg(folder.parent().context("target folder")?);
    match folder.file_name().and_then(|profile| profile.to_str()) {
        Some("debug") => {}
        Some("release") => {
            build.arg("--release");
        }
        other => bail!("profile folder {other:?}: set BERTH_PROGRAMS"),
    }
    let status = build
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
        .status()
        .context("cargo build")?;
    ensure!(
        status.success(),
        "cargo build of the programs under test failed"
    );
    Ok(folder.to_owned())
}

/// A program of the system, also from the folders that only root has in PATH.
///
/// # Errors
/// When it is not installed: a missing peer is a failure, `tests/setup` installs them all.
pub fn system(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
        .with_context(|| format!("{name} is not installed: run tests/setup"))
}

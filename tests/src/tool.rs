//! A foreign program that is run to its end, within a deadline.

use std::ffi::OsStr;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::process::Process;
use crate::programs;

/// What a finished program said.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output and error, as they came.
    pub text: String,
    /// How long it ran.
    pub took: Duration,
}

/// Runs a program of the system and fails unless it ends with exit code 0 in time.
///
/// # Errors
/// Tells the command and everything it printed.
pub fn run<S: AsRef<OsStr>>(name: &str, args: &[S], within: Duration) -> Result<Output> {
    let output = try_run(name, args, within)?;
    if !output.status.success() {
        let args: Vec<_> = args
            .iter()
            .map(|arg| arg.as_ref().to_string_lossy())
            .collect();
        bail!(
            "{name} {}: {}\n{}",
            args.join(" "),
            output.status,
            output.text
        );
    }
    Ok(output)
}

/// Runs a program of the system to its end, whatever the end is.
///
/// # Errors
/// When it is not installed or does not end in time.
pub fn try_run<S: AsRef<OsStr>>(name: &str, args: &[S], within: Duration) -> Result<Output> {
    let log = tempfile::NamedTempFile::new()?;
    let started = Instant::now();
    let mut process = Process::start(name, &programs::system(name)?, args, &[], log.path())?;
    let status = process.wait_end(within)?;
    Ok(Output {
        status,
        text: process.log(),
        took: started.elapsed(),
    })
}

/// SHA-256 of a file or block device, by `sha256sum`: not by code that shares a fault with ours.
///
/// # Errors
/// When it cannot be read.
pub fn sha256(file: &std::path::Path, within: Duration) -> Result<String> {
    let output = run("sha256sum", &[file], within)?;
    let sum = output
        .text
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned();
    ensure!(sum.len() == 64, "sha256sum printed {:?}", output.text);
    Ok(sum)
}

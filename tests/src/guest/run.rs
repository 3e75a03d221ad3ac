//! A guest that runs one program to its end.

use std::fs::File;
use std::io::{Read as _, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use crate::process::{Process, wait_for};

/// What the program prints.
pub const OUTPUT: &str = "output";
/// The program's exit status, written when it has ended.
pub const STATUS: &str = "status";
/// The step of the guest's own start that failed.
pub const FAILED: &str = "failed";
/// From the program's end to the end of the guest.
const POWER_OFF: Duration = Duration::from_secs(60);

/// Passes on what the guest writes into `folder`/[`OUTPUT`], until the guest has powered off; gives the program's exit
/// status. A guest that is still there after `limit`, or when `stop` says so, has failed: drop its process.
///
/// # Errors
/// When the guest does not come to its end in time, or comes to it without an exit status; with its console.
pub fn to_end(
    guest: &mut Process,
    folder: &Path,
    limit: Duration,
    stop: &dyn Fn() -> bool,
    out: &mut impl Write,
) -> Result<i32> {
    let mut tail = Tail::new(folder.join(OUTPUT));
    let waited = wait_for("end of the scenario", limit, || {
        tail.pass_on(out)?;
        ensure!(!stop(), "stopped");
        Ok((ended(folder) || guest.status()?.is_some()).then_some(()))
    });
    tail.pass_on(out)?;
    waited.map_err(|error| anyhow!("{error:#}\n--- console\n{}", guest.log()))?;
    if let Ok(step) = std::fs::read_to_string(folder.join(FAILED)) {
        bail!("the guest failed at: {}\n{}", step.trim(), guest.log());
    }
    guest
        .wait_end(POWER_OFF)
        .context("power-off of the guest")?;
    tail.pass_on(out)?;
    let status = std::fs::read_to_string(folder.join(STATUS)).unwrap_or_default();
    status.trim().parse().map_err(|_| {
        anyhow!(
            "the guest has ended without an exit status ({status:?})\n{}",
            guest.log()
        )
    })
}

/// Reads what is appended to a file.
struct Tail {
    path: PathBuf,
    file: Option<File>,
}

impl Tail {
    fn new(path: PathBuf) -> Self {
        Self { path, file: None }
    }

    fn pass_on(&mut self, out: &mut impl Write) -> Result<()> {
        if self.file.is_none() {
            // Not there before the guest has made it.
            self.file = File::open(&self.path).ok();
        }
        if let Some(file) = &mut self.file {
            let mut new = Vec::new();
            file.read_to_end(&mut new)?;
            if !new.is_empty() {
                out.write_all(&new)?;
                out.flush()?;
            }
        }
        Ok(())
    }
}

/// A file that is there may be empty still.
fn ended(folder: &Path) -> bool {
    std::fs::metadata(folder.join(STATUS)).is_ok_and(|status| status.len() > 0)
}

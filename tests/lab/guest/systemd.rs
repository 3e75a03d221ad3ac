//! `systemd`: a machine with systemd as PID 1 comes up, has the kernel's NBD driver, and comes up again after a reboot.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};

use crate::{Next, kernel};

/// Lasts over the reboot.
const MARK: &str = "/var/lib/lab-rebooted";

pub(crate) fn run() -> Result<Next> {
    let first = fs::read_to_string("/proc/1/comm")?;
    ensure!(first.trim() == "systemd", "PID 1 is {first}");
    kernel::load_nbd()?;
    if !Path::new(MARK).exists() {
        fs::write(MARK, "")?;
        println!("up; rebooting");
        return Ok(Next::Reboot);
    }
    println!("up again after a reboot");
    Ok(Next::End)
}

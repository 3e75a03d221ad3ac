//! Guest kernels: what needs a kernel driver, kernel targets or systemd runs in one, and nothing of it outlives the value.
//!
//! - [`uml`]: user-mode Linux on the root of the host, which it cannot change. Ready in two seconds; one processor.
//! - [`qemu`]: a machine with a Debian of its own and systemd as PID 1 ([`debian`]), that can also reboot.
//!
//! Both run one program given by the host, and give back what it prints and its exit status ([`run`]); that program may take
//! orders from the host while it runs ([`control`]).

pub mod control;
pub mod debian;
pub mod qemu;
pub mod run;
pub mod uml;

use tempfile::TempDir;

use crate::process::Process;

/// A guest that has been started; it ends when the value goes. Its console is in the process's log.
#[derive(Debug)]
pub struct Booted {
    /// The guest with all processes of it.
    pub process: Process,
    // Last: what the guest was started from goes after the process.
    _home: TempDir,
}

impl Booted {
    fn new(process: Process, home: TempDir) -> Self {
        Self {
            process,
            _home: home,
        }
    }
}

//! `[memory]`: what keeps the daemon going while the machine is short of memory.

use serde::Deserialize;

/// `[memory]`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Memory {
    /// Whether the daemon's memory is kept from being swapped or dropped (mlockall).
    pub lock: Effort,
    /// Whether the kernel is told that we write back its dirty pages (`PR_SET_IO_FLUSHER`), so that it does
    /// not wait for us while we wait for its memory.
    pub io_flusher: Effort,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            lock: Effort::Auto,
            io_flusher: Effort::Auto,
        }
    }
}

/// How much is done for something that the system may refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effort {
    /// Where the system allows it; the log says when it does not.
    Auto,
    /// The daemon does not start without it.
    Always,
    /// Not even tried.
    Never,
}

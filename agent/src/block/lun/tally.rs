//! Whether I/O goes, and what recovery did: what others see of a unit's paths.

use super::Error;

/// Whether I/O goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// At least one path takes I/O.
    Up,
    /// No path takes I/O; it waits.
    Waiting,
    /// No path takes I/O, for longer than the recovery timeout: it fails.
    Failing,
    /// Everything fails, for this reason.
    Ended(Error),
}

/// What recovery did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Sessions lost while they were in use.
    pub sessions_lost: u64,
    /// Paths that came back into use.
    pub paths_back: u64,
    /// Old sessions that a login ended at the target.
    pub reinstated: u64,
    /// Old sessions that were taken for gone because their time was over.
    pub presumed_gone: u64,
    /// Commands that were sent again because their session was lost.
    pub resent: u64,
    /// Writes whose fate was unknown for a time.
    pub ghosts: u64,
    /// Requests that failed because there was no path for too long.
    pub timed_out: u64,
    /// Times without any path.
    pub outages: u64,
    /// The longest of them, in milliseconds.
    pub longest_outage_ms: u64,
    /// Times that the unit may have lost what was written and not flushed.
    pub cache_losses: u64,
    /// Commands that were not answered in time and aborted.
    pub aborted: u64,
    /// Commands that were tried again after an error.
    pub retried: u64,
    /// Times that a command was sent another way because the unit did not take it on its path.
    pub switched: u64,
    /// Commands refused because of another initiator's reservation.
    pub conflicts: u64,
    /// Ghosts that wait now.
    pub ghosts_waiting: u64,
}

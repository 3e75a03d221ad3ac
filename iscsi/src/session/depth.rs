//! How many commands a logical unit is given at a time.
//!
//! ```text
//!            TASK SET FULL: what it did hold, at least 1
//! maximum ─────────────────────────────────────────────> limit
//!    ^                                                     │
//!    └──── +1 per successes_per_step, +1 per step_time ────┘
//! ```

use std::time::{Duration, Instant};

/// How a [`QueueDepth`] moves. Every field has a working default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueDepthOptions {
    /// Commands in flight at most, and at the start. Default 128: the deepest queue of common targets. 0
    /// counts as 1.
    pub depth_max: usize,
    /// Successes after which one more is tried. Default 4096: should it be one too many, then one command
    /// in 4096 has to be sent again, which nobody notices. 0 counts as 1.
    pub successes_per_step: u32,
    /// Time after which one more is tried, however little succeeds. Default 5 s: a unit that was full
    /// because of others gets its depth back within minutes. Zero counts as 1 ms.
    pub step_time: Duration,
}

impl Default for QueueDepthOptions {
    fn default() -> Self {
        Self {
            depth_max: 128,
            successes_per_step: 4096,
            step_time: Duration::from_secs(5),
        }
    }
}

/// The adaptive depth of one logical unit on one path (SAM-5 5.3.1, TASK SET FULL).
///
/// It counts nothing itself: its owner knows what is in flight, asks [`QueueDepth::limit`] before it
/// sends, and tells what the unit answered. BUSY is not told: it asks for a pause, and says nothing about
/// how many commands there is room for.
#[derive(Debug, Clone)]
pub struct QueueDepth {
    options: QueueDepthOptions,
    limit: usize,
    successes: u32,
    /// When the limit moved last; of no meaning at the maximum.
    moved_at: Option<Instant>,
    shrinks: u64,
}

impl QueueDepth {
    /// The depth before anything is known: the maximum.
    #[must_use]
    pub fn new(mut options: QueueDepthOptions) -> Self {
        options.depth_max = options.depth_max.max(1);
        options.successes_per_step = options.successes_per_step.max(1);
        options.step_time = options.step_time.max(Duration::from_millis(1));
        Self {
            limit: options.depth_max,
            options,
            successes: 0,
            moved_at: None,
            shrinks: 0,
        }
    }

    /// Commands that may be in flight now; at least 1.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Whether one more may be sent beside `in_flight`.
    #[must_use]
    pub fn has_room(&self, in_flight: usize) -> bool {
        in_flight < self.limit
    }

    /// How often the unit was full.
    #[must_use]
    pub fn shrinks(&self) -> u64 {
        self.shrinks
    }

    /// A command succeeded at `now`.
    pub fn on_success(&mut self, now: Instant) {
        if self.limit >= self.options.depth_max {
            return;
        }
        self.successes += 1;
        let mut steps = 0;
        if self.successes >= self.options.successes_per_step {
            steps += 1;
        }
        if let Some(moved_at) = self.moved_at {
            let waited = now.saturating_duration_since(moved_at).as_nanos();
            let periods = waited / self.options.step_time.as_nanos();
            steps += usize::try_from(periods).unwrap_or(usize::MAX);
        }
        if steps > 0 {
            let room = self.options.depth_max - self.limit;
            self.limit += steps.min(room);
            self.successes = 0;
            self.moved_at = Some(now);
        }
    }

    /// The unit answered TASK SET FULL at `now`, while it held `others` more commands of this path: those
    /// that were sent and had no answer, without the refused one.
    pub fn on_task_set_full(&mut self, now: Instant, others: usize) {
        self.shrinks += 1;
        // Never up: what was in flight may have been sent before the limit came down.
        self.limit = self.limit.min(others.max(1));
        self.successes = 0;
        self.moved_at = Some(now);
    }

    /// Sets another maximum; what was learnt stays as far as it fits.
    pub fn set_max(&mut self, now: Instant, depth_max: usize) {
        let depth_max = depth_max.max(1);
        let was_at_max = self.limit == self.options.depth_max;
        self.options.depth_max = depth_max;
        if was_at_max || self.limit > depth_max {
            self.limit = depth_max;
        }
        self.moved_at = Some(now);
    }
}

#[cfg(test)]
#[path = "depth_tests.rs"]
mod tests;

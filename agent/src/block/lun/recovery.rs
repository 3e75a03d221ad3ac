//! What becomes of commands when a session is lost, and of I/O when no path is left.
//!
//! A write that was sent has an unknown fate: the old session may carry it out at the target at any time
//! until it is gone there too. Such a job is a *ghost* of its path. It is sent again only after the path
//! was reinstated (a login with the same ISID succeeded, RFC 7143 6.3.5), on whatever path. The align layer
//! above holds back every write that overlaps one without an answer, so nothing overtakes a ghost. A ghost
//! that must be answered before (with an error) leaves a *tomb*: its range, which stays closed to writes
//! until the same time.
//!
//! Reads and flushes change nothing: they are sent again at once.

use std::rc::Rc;
use std::time::{Duration, Instant};

use berth_iscsi::mutation::{Mutation, is_planted};
use berth_iscsi::scsi::sense::Refresh;

use super::core::{Core, Outage, Tomb};
use super::paths::Haunt;
use super::tally::{Counters, Health};
use super::{Error, Output, Port, Preference};
use crate::block::now;

impl Core {
    /// Whether the job must wait for an old session to be gone before it may be sent.
    pub(super) fn is_held_back(&self, slot: usize) -> bool {
        if self.tombs.is_empty() && !self.paths.haunted_anywhere() {
            return false;
        }
        let step = &self.jobs[slot].step;
        if !step.needs_settled_range() {
            return false;
        }
        let (start, end) = step.range();
        self.paths.haunted_anywhere()
            || self
                .tombs
                .iter()
                .any(|tomb| tomb.start < end && start < tomb.end)
    }

    /// The job's command was lost with its session.
    pub(super) fn on_lost(&mut self, slot: usize, path: usize, sent: bool) {
        if let Some(error) = self.fate {
            return self.finish(slot, Err(error));
        }
        let job = &self.jobs[slot];
        if is_planted(Mutation::LoseRequeued) && slot % 4 == 3 {
            return;
        }
        if is_planted(Mutation::SuccessOnLoss) && sent && job.step.changes_data() {
            return self.finish(slot, Ok(Output::Done));
        }
        if sent && job.step.changes_data() && !is_planted(Mutation::ResendAtOnce) {
            self.ghosts.push((path, slot));
            self.counters.ghosts += 1;
        } else {
            self.counters.resent += 1;
            self.requeue(slot);
        }
    }

    /// The path's session is over and all its endings were taken in.
    pub(super) fn on_path_down(&mut self, path: usize) {
        let has_ghosts = self.ghosts.iter().any(|(of, _)| *of == path);
        let it = self.paths.get_mut(path);
        it.port = None;
        it.preference = None;
        it.in_doubt = false;
        it.in_flight = 0;
        it.closed = true;
        let lost = u64::from(!std::mem::take(&mut it.leaving));
        it.counters.sessions_lost += lost;
        if has_ghosts && it.haunt.is_none() {
            it.haunt = Some(Haunt {
                since: now(),
                anywhere: false,
            });
        }
        it.wake();
        self.counters.sessions_lost += lost;
        if is_planted(Mutation::StaleAtOnce) {
            self.lay_ghosts(path);
        }
        self.note_paths_changed();
        if self.outage.given_up {
            // What this session gave back must not wait for a timeout that is over already.
            self.give_up_waiting();
        }
    }

    /// An earlier daemon may have left a session on the path.
    pub(super) fn haunt_anywhere(&mut self, path: usize) {
        if is_planted(Mutation::IgnoreUnclean) {
            return;
        }
        self.paths.get_mut(path).haunt = Some(Haunt {
            since: now(),
            anywhere: true,
        });
        self.note_changed();
    }

    pub(super) fn on_reinstated(&mut self, path: usize) {
        if self.paths.get(path).haunt.is_some() {
            self.counters.reinstated += 1;
        }
        self.lay_ghosts(path);
    }

    /// The path's old session is gone at the target: what it left is sent again, in the old order.
    fn lay_ghosts(&mut self, path: usize) {
        self.paths.get_mut(path).haunt = None;
        self.tombs.retain(|tomb| tomb.path != path);
        let (laid, others) = std::mem::take(&mut self.ghosts)
            .into_iter()
            .partition::<Vec<_>, _>(|(of, _)| *of == path);
        self.ghosts = others;
        self.counters.resent += laid.len() as u64;
        for (_, slot) in laid {
            self.requeue(slot);
        }
        self.send_backlog();
        self.note_changed();
    }

    pub(super) fn on_path_up(&mut self, path: usize, port: Rc<Port>, preference: Preference) {
        let it = self.paths.get_mut(path);
        it.port = Some(port);
        it.preference = preference;
        it.in_doubt = false;
        it.closed = false;
        it.leaving = false;
        it.drop_session = false;
        it.refresh = Refresh::NONE;
        let back = std::mem::replace(&mut it.was_up, true);
        self.counters.paths_back += u64::from(back);
        self.note_paths_changed();
        self.send_backlog();
    }

    pub(super) fn on_examined(&mut self, path: usize, preference: Preference) {
        let it = self.paths.get_mut(path);
        if it.port.is_none() {
            return; // It was lost meanwhile.
        }
        it.in_doubt = false;
        it.preference = preference;
        self.note_paths_changed();
        self.send_backlog();
    }

    /// The path was looked at and its unit takes no I/O there at present.
    pub(super) fn on_unusable(&mut self, path: usize) {
        self.paths.get_mut(path).preference = None;
        self.note_paths_changed();
    }

    pub(super) fn remove_path(&mut self, path: usize) {
        if self.paths.get(path).port.is_some() {
            self.on_path_down(path);
        }
        debug_assert!(
            self.paths.get(path).haunt.is_none(),
            "a path is kept until its old session is gone"
        );
        self.lay_ghosts(path);
        self.paths.remove(path);
        self.note_paths_changed();
    }

    /// Begins or ends the time without a path.
    pub(super) fn note_paths_changed(&mut self) {
        match (self.paths.any_serves(), self.outage.since) {
            (true, Some(since)) => {
                let ms = u64::try_from((now() - since).as_millis()).unwrap_or(u64::MAX);
                self.counters.longest_outage_ms = self.counters.longest_outage_ms.max(ms);
                self.outage = Outage::default();
            }
            (false, None) => {
                self.counters.outages += 1;
                self.outage.since = Some(now());
                if self
                    .options
                    .recovery_timeout
                    .is_some_and(|timeout| timeout.is_zero())
                {
                    self.give_up_waiting();
                }
            }
            _ => {}
        }
        self.note_changed();
    }

    pub(super) fn set_recovery_timeout(&mut self, timeout: Option<Duration>) {
        self.options.recovery_timeout = timeout;
        // A longer one does not bring back what failed, but what comes may wait again.
        if let Some(since) = self.outage.since
            && timeout.is_none_or(|timeout| since + timeout > now())
        {
            self.outage.given_up = false;
        }
        self.note_changed();
    }

    /// The recovery timeout is over: what waits is answered, what comes is answered at once.
    fn give_up_waiting(&mut self) {
        self.outage.given_up = true;
        let waiting: Vec<usize> = self.backlog.drain(..).collect();
        for slot in waiting {
            self.counters.timed_out += 1;
            self.finish(slot, Err(Error::Unavailable));
        }
        self.bury_ghosts(Error::Unavailable);
        self.note_changed();
    }

    /// Answers ghosts with an error; their blocks stay closed.
    fn bury_ghosts(&mut self, error: Error) {
        for (path, slot) in std::mem::take(&mut self.ghosts) {
            let (start, end) = self.jobs[slot].step.range();
            if !is_planted(Mutation::ForgetTombs) {
                self.tombs.push(Tomb { path, start, end });
            }
            self.counters.timed_out += 1;
            self.finish(slot, Err(error));
        }
    }

    pub(super) fn counters(&self) -> Counters {
        let waiting = self
            .outage
            .since
            .map_or(Duration::ZERO, |since| now() - since);
        let waiting_ms = u64::try_from(waiting.as_millis()).unwrap_or(u64::MAX);
        Counters {
            ghosts_waiting: self.ghosts.len() as u64,
            longest_outage_ms: self.counters.longest_outage_ms.max(waiting_ms),
            ..self.counters
        }
    }

    pub(super) fn health(&self) -> Health {
        match (self.fate, self.outage) {
            (Some(error), _) => Health::Ended(error),
            (None, Outage { since: None, .. }) => Health::Up,
            (
                None,
                Outage {
                    given_up: false, ..
                },
            ) => Health::Waiting,
            (None, Outage { given_up: true, .. }) => Health::Failing,
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let paused = self.paused.iter().map(|(at, _)| *at);
        let outage = match self.outage {
            Outage {
                since: Some(since),
                given_up: false,
            } => self.options.recovery_timeout.map(|t| since + t),
            _ => None,
        };
        let haunts = self
            .paths
            .iter()
            .filter_map(|(_, path)| Some(path.haunt?.since + self.options.stale_session_timeout?));
        paused.chain(outage).chain(haunts).min()
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        let mut due: Vec<usize> = Vec::new();
        self.paused.retain(|(at, slot)| {
            let is_due = *at <= now;
            if is_due {
                due.push(*slot);
            }
            !is_due
        });
        for slot in due {
            self.send(slot);
        }
        if let Some(timeout) = self.options.stale_session_timeout {
            for path in 0..self.paths.len() {
                if let Some(haunt) = self.paths.get(path).haunt
                    && haunt.since + timeout <= now
                {
                    tracing::warn!(
                        path,
                        "an old session could not be ended by a new login; after this time the target is \
                         taken to have ended it"
                    );
                    self.counters.presumed_gone += 1;
                    self.lay_ghosts(path);
                }
            }
        }
        if let Outage {
            since: Some(since),
            given_up: false,
        } = self.outage
            && let Some(timeout) = self.options.recovery_timeout
            && since + timeout <= now
        {
            tracing::error!("no path for the whole recovery timeout: I/O fails until one is back");
            self.give_up_waiting();
        }
    }

    /// The unit was reset: its volatile cache may be lost.
    pub(super) fn note_cache_loss(&mut self) {
        if !self.profile.write_cache {
            return;
        }
        self.flush.cache_losses += 1;
        if self.flush.written > self.flush.covered {
            self.counters.cache_losses += 1;
            self.flush.lost = true;
            self.note_changed();
        }
    }

    /// Nothing is sent any more; what waits is answered with `error`, what is in flight with its own
    /// answer, should it come.
    pub(super) fn end_with(&mut self, error: Error) {
        if self.fate.is_some() {
            return;
        }
        self.fate = Some(error);
        let waiting: Vec<usize> = self
            .backlog
            .drain(..)
            .chain(self.paused.drain(..).map(|(_, slot)| slot))
            .collect();
        for slot in waiting {
            self.finish(slot, Err(error));
        }
        self.bury_ghosts(error);
        self.note_changed();
    }

    /// Answers everything that has no answer, and takes nothing more.
    pub(super) fn fail_all(&mut self, error: Error) {
        self.end_with(error);
        let slots: Vec<usize> = self.jobs.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            // Finishing a flush starts the next one, which finds its own end the same way.
            if self.jobs.contains(slot) {
                self.finish(slot, Err::<Output, _>(error));
            }
        }
    }
}

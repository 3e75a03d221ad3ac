//! What becomes of a job when its command has ended: done, the next command, again, another way, or an error.

use std::time::Duration;

use berth_iscsi::mutation::{Mutation, is_planted};
use berth_iscsi::scsi::provisioning::{LbaStatusList, Provisioning};
use berth_iscsi::scsi::sense::Refresh;
use berth_iscsi::session::TaskOutcome;

use super::core::{Core, data_extent};
use super::job::{First, RangeKind, Step};
use super::profile::Profile;
use super::verdict::{Decision, History, judge};
use super::{Error, Extent, Output, Payload};
use crate::block::now;

impl Core {
    pub(super) fn on_outcome(&mut self, slot: usize, path: usize, outcome: TaskOutcome) {
        let job = &mut self.jobs[slot];
        let len_bytes = job.step.len_bytes(self.profile.block_bytes);
        // The common case first: success, with every byte moved.
        let outcome = match outcome {
            TaskOutcome::Completed {
                status: 0,
                data,
                residual,
                ..
            } if job.step.is_whole(&data, residual, self.profile.block_bytes) => {
                // The clock is read only where somebody wants to know.
                if let Some(sent_at) = job.sent_at.take() {
                    let now = now();
                    let took = now.saturating_duration_since(sent_at);
                    self.paths.note_success(path, len_bytes, now, took);
                }
                return self.on_success(slot, data);
            }
            TaskOutcome::Completed {
                status: 0x18, data, ..
            } if is_planted(Mutation::ConflictIsSuccess) && job.step.changes_data() => {
                return self.on_success(slot, data);
            }
            other => other,
        };
        let now = now();
        let failing_since = *job.failing_since.get_or_insert(now);
        let history = History {
            retries: job.retries,
            failing_for: now - failing_since,
            patience: self.options.recovery_timeout.unwrap_or(Duration::MAX),
        };
        job.retries += 1;
        let judgement = judge(&outcome, history);
        if let Some(notice) = &judgement.notice {
            tracing::warn!(command = ?job.step.name(), decision = ?judgement.decision, path, "{notice}");
        }
        if matches!(outcome, TaskOutcome::Aborted { .. }) {
            self.counters.aborted += 1;
        }
        if judgement.decision == Decision::Fail(Error::Fenced) {
            self.counters.conflicts += 1;
        }
        if judgement.shrink {
            self.paths.shrink(path, now);
        }
        self.note_refresh(path, judgement.refresh);
        match judgement.decision {
            Decision::Done => self.on_recovered(slot, outcome),
            Decision::Retry => {
                self.counters.retried += 1;
                self.send(slot);
            }
            Decision::RetryAfter(pause) => {
                self.counters.retried += 1;
                self.paused.push((now + pause, slot));
                self.note_changed();
            }
            Decision::SwitchPath => {
                self.counters.switched += 1;
                self.leave_path(path);
                self.send(slot);
            }
            Decision::DropSession => {
                let it = self.paths.get_mut(path);
                it.drop_session = true;
                it.in_doubt = true;
                it.preference = None;
                it.wake();
                self.note_paths_changed();
                self.send(slot);
            }
            Decision::Unsupported => self.on_unsupported(slot),
            Decision::TooMuch => self.on_too_much(slot),
            Decision::Fail(error) => self.finish(slot, Err(error)),
        }
    }

    /// Something about the unit has changed, or may have.
    pub(super) fn note_refresh(&mut self, path: usize, refresh: Refresh) {
        if refresh.is_empty() {
            return;
        }
        if refresh.contains(Refresh::CACHE_LOSS) {
            self.note_cache_loss();
        }
        // What is tried again must not go to another unit than it was meant for.
        let doubtful = [Refresh::INQUIRY, Refresh::LUNS];
        let doubtful = doubtful.into_iter().any(|one| refresh.contains(one));
        let it = self.paths.get_mut(path);
        it.refresh = it.refresh.and(refresh);
        it.in_doubt |= doubtful;
        it.wake();
        if doubtful {
            self.note_paths_changed();
        }
    }

    /// The unit does not take I/O on this path: it is looked at before it is used again.
    fn leave_path(&mut self, path: usize) {
        let it = self.paths.get_mut(path);
        it.counters.switched_away += 1;
        it.refresh = it.refresh.and(Refresh::PORT_GROUPS).and(Refresh::LUNS);
        it.in_doubt = true;
        it.preference = None;
        it.wake();
        self.note_paths_changed();
    }

    /// A status that is not GOOD and yet success: the data came with it.
    fn on_recovered(&mut self, slot: usize, outcome: TaskOutcome) {
        let job = &self.jobs[slot];
        match outcome {
            TaskOutcome::Completed { data, residual, .. }
                if job.step.is_whole(&data, residual, self.profile.block_bytes) =>
            {
                self.on_success(slot, data);
            }
            _ => self.finish(slot, Err(Error::Medium)),
        }
    }

    fn on_success(&mut self, slot: usize, data: Payload) {
        let job = &mut self.jobs[slot];
        job.retries = 0;
        job.failing_since = None;
        match &job.step {
            Step::Read { .. } => return self.finish(slot, Ok(Output::Data(data))),
            Step::LbaStatus { lba, blocks } => {
                let extents = extents(&self.profile, *lba, *blocks, &data);
                return self.finish(slot, Ok(Output::Extents(extents)));
            }
            Step::Write { fua, .. } => job.cached = self.profile.write_cache && !fua,
            Step::WriteZeroData { .. } | Step::WriteSame { .. } | Step::Unmap { .. } => {
                job.cached = self.profile.write_cache;
            }
            Step::SyncAll => {
                if let Some(first) = job.first.take()
                    && first.cache_losses != self.flush.cache_losses
                {
                    // What this made durable may be gone: from the beginning.
                    job.step = first.step;
                    job.rest = first.rest;
                    job.then_sync = true;
                    self.note_first(slot);
                    return self.send(slot);
                }
                job.cached = false;
            }
        }
        self.advance(slot);
    }

    /// The next command of a job, or its end.
    fn advance(&mut self, slot: usize) {
        let job = &mut self.jobs[slot];
        if let Some(rest) = &mut job.rest {
            if let Some(step) = rest.next_step(&self.profile) {
                job.step = step;
                return self.send(slot);
            }
            if rest.next < rest.end && rest.kind != RangeKind::Trim {
                return self.finish(slot, Err(Error::NotSupported));
            }
        }
        if std::mem::take(&mut job.then_sync) {
            job.rest = None;
            job.step = Step::SyncAll;
            return self.send(slot);
        }
        self.finish(slot, Ok(Output::Done));
    }

    /// The LUN does not know the command (5/20/00): another form, another command, or none.
    fn on_unsupported(&mut self, slot: usize) {
        let job = &mut self.jobs[slot];
        self.generation += 1;
        let two_forms = job.step.has_two_forms() && !job.form_switched;
        match &job.step {
            Step::Unmap { lba, .. } => {
                self.profile.unmap = false;
                let next = *lba;
                job.rewind(next);
                self.advance(slot);
            }
            Step::LbaStatus { blocks, .. } => {
                self.profile.lba_status = false;
                let len = blocks * u64::from(self.profile.block_bytes);
                self.finish(slot, Ok(Output::Extents(vec![data_extent(len)])));
            }
            _ if two_forms => {
                job.form_switched = true;
                // Another job may have found out before.
                self.profile.ten_byte_forms = !job.sent_ten_byte_form;
                self.send(slot);
            }
            Step::WriteSame { lba, .. } => {
                self.profile.write_same = false;
                let next = *lba;
                job.rewind(next);
                self.advance(slot);
            }
            // It is only sent with WCE=1, where success would be a lie.
            Step::SyncAll => self.finish(slot, Err(Error::NotSupported)),
            Step::Read { .. } | Step::Write { .. } | Step::WriteZeroData { .. } => {
                self.finish(slot, Err(Error::NotSupported));
            }
        }
    }

    /// The LUN refuses a field or the length (5/24/00): less of it, or another command.
    fn on_too_much(&mut self, slot: usize) {
        let job = &mut self.jobs[slot];
        self.generation += 1;
        match job.step {
            Step::WriteSame { lba, blocks, unmap } => {
                if unmap {
                    self.profile.write_same_unmap = false;
                } else if blocks > 1 {
                    self.profile.write_same_learned_blocks = Some(u64::from(blocks / 2));
                } else {
                    self.profile.write_same = false;
                }
                job.rewind(lba);
                self.advance(slot);
            }
            Step::Unmap { lba, .. } => {
                self.profile.unmap = false;
                job.rewind(lba);
                self.advance(slot);
            }
            Step::LbaStatus { blocks, .. } => {
                // Some targets refuse it for some LBAs only: this answer is unknown, the next may come.
                let len = blocks * u64::from(self.profile.block_bytes);
                self.finish(slot, Ok(Output::Extents(vec![data_extent(len)])));
            }
            _ => self.finish(slot, Err(Error::Invalid)),
        }
    }

    /// Notes how a job began that ends with a flush, so that it can begin again.
    pub(super) fn note_first(&mut self, slot: usize) {
        let cache_losses = self.flush.cache_losses;
        let job = &mut self.jobs[slot];
        if job.then_sync && job.first.is_none() {
            job.first = Some(Box::new(First {
                step: job.step.clone(),
                rest: job.rest,
                cache_losses,
            }));
        }
    }
}

/// The answer to GET LBA STATUS as extents from `lba` on; what it does not cover counts as data.
fn extents(profile: &Profile, lba: u64, blocks: u64, data: &Payload) -> Vec<Extent> {
    let block = u64::from(profile.block_bytes);
    let whole = || vec![data_extent(blocks * block)];
    let Ok(status) = LbaStatusList::parse(&data.to_bytes()) else {
        return whole();
    };
    let end = lba.saturating_add(blocks);
    let mut out: Vec<Extent> = Vec::new();
    let mut at = lba;
    for run in status.runs {
        let stop = run
            .range
            .lba
            .saturating_add(u64::from(run.range.blocks))
            .min(end);
        // A gap or a step back is not what the standard allows: the rest is unknown.
        if run.range.lba > at {
            break;
        }
        if stop <= at {
            continue;
        }
        let zero = profile.unmapped_reads_zero && run.provisioning != Provisioning::Mapped;
        let hole = run.provisioning == Provisioning::Deallocated;
        out.push(Extent {
            len_bytes: (stop - at) * block,
            hole,
            zero,
        });
        at = stop;
    }
    if out.is_empty() { whole() } else { out }
}

//! The bottom layer: block requests become SCSI commands of one logical unit.
//!
//! This is the one place that knows both. A request is a job: one command at a time, the next
//! one when it ended well; `verdict` decides what became of each.
//!
//! ```text
//! Request -> Job -> Step -> Cdb + Transfer -> Port -> session
//! Completion <- Job <- Decision <- verdict <- TaskOutcome <- Port
//! ```

mod job;
mod port;
pub mod probe;
mod profile;
pub mod reservation;
#[cfg(test)]
mod tests;
mod verdict;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Instant;

use berth_iscsi::scsi::provisioning::{LbaStatusList, Provisioning};
use berth_iscsi::scsi::sense::Refresh;
use berth_iscsi::session::TaskOutcome;
use slab::Slab;

pub use port::{Port, Refusal, Transport};
pub use profile::Profile;

use self::job::{Job, RangeKind, Rest, Step};
use self::verdict::{Decision, History, judge};
use super::{
    BlockDevice, Completion, Error, Extent, Geometry, Op, Output, Payload, Request, RequestId,
};

/// The bottom layer of a device's stack.
pub struct Lun {
    core: Rc<RefCell<Core>>,
    geometry: Geometry,
    generation: u64,
}

/// The control plane's end of a [`Lun`]: timers, refreshes and the news about it.
#[derive(Clone)]
pub struct LunControl {
    core: Rc<RefCell<Core>>,
}

struct Core {
    port: Rc<Port>,
    profile: Profile,
    read_only: bool,
    /// Counts changes of the geometry.
    generation: u64,
    jobs: Slab<Job>,
    done: VecDeque<Completion>,
    flush: Flush,
    /// Jobs whose command is to be sent again, with the time.
    paused: Vec<(Instant, usize)>,
    /// Jobs whose command the session had no room for.
    backlog: VecDeque<usize>,
    refresh: Refresh,
    /// The unit may have become another one: nothing is sent until it was looked at.
    held: bool,
    /// A pause has begun that the keeper was not told of.
    pause_began: bool,
    closed: bool,
    news: Option<std::task::Waker>,
}

/// SYNCHRONIZE CACHE covers every write that was answered before it was sent, so one command answers
/// all flushes that came before it started, and those that come meanwhile share the next one.
#[derive(Default)]
struct Flush {
    /// The job of the command in flight, and whom it answers.
    running: Option<usize>,
    answers: Vec<RequestId>,
    /// Whom the next one answers.
    next: Vec<RequestId>,
}

impl Lun {
    /// A device for the LUN behind `port`. `read_only`: asked for, whatever the LUN allows.
    #[must_use]
    pub fn new(port: Rc<Port>, profile: Profile, read_only: bool) -> (Self, LunControl) {
        let geometry = profile.geometry(read_only);
        let core = Rc::new(RefCell::new(Core {
            port,
            profile,
            read_only,
            generation: 0,
            jobs: Slab::with_capacity(256),
            done: VecDeque::with_capacity(256),
            flush: Flush::default(),
            paused: Vec::new(),
            backlog: VecDeque::new(),
            refresh: Refresh::NONE,
            held: false,
            pause_began: false,
            closed: false,
            news: None,
        }));
        let control = LunControl {
            core: Rc::clone(&core),
        };
        (
            Self {
                core,
                geometry,
                generation: 0,
            },
            control,
        )
    }
}

impl BlockDevice for Lun {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn submit(&mut self, request: Request) {
        let core = &mut *self.core.borrow_mut();
        core.submit(request);
        if core.generation != self.generation {
            self.generation = core.generation;
            self.geometry = core.profile.geometry(core.read_only);
        }
    }

    fn poll_complete(&mut self) -> Option<Completion> {
        let core = &mut *self.core.borrow_mut();
        if core.done.is_empty() {
            core.collect();
            if core.generation != self.generation {
                self.generation = core.generation;
                self.geometry = core.profile.geometry(core.read_only);
            }
        }
        core.done.pop_front()
    }
}

impl LunControl {
    /// When [`LunControl::handle_timeout`] is to be called, if at all.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.core.borrow().paused.iter().map(|(at, _)| *at).min()
    }

    /// Sends again what has paused long enough.
    pub fn handle_timeout(&self, now: Instant) {
        let core = &mut *self.core.borrow_mut();
        let mut at = 0;
        while at < core.paused.len() {
            if core.paused[at].0 <= now {
                let (_, slot) = core.paused.swap_remove(at);
                core.send(slot);
            } else {
                at += 1;
            }
        }
    }

    /// What must be read again from the LUN; empty afterwards. `Pending` until there is something, a
    /// pause begins, or the session is lost.
    pub fn poll_news(&self, cx: &mut std::task::Context<'_>) -> std::task::Poll<News> {
        let core = &mut *self.core.borrow_mut();
        let refresh = std::mem::replace(&mut core.refresh, Refresh::NONE);
        if core.closed {
            return std::task::Poll::Ready(News::Closed);
        }
        if !refresh.is_empty() {
            return std::task::Poll::Ready(News::Refresh(refresh));
        }
        if std::mem::take(&mut core.pause_began) {
            return std::task::Poll::Ready(News::PauseBegan);
        }
        core.news = Some(cx.waker().clone());
        std::task::Poll::Pending
    }

    /// What is known about the LUN.
    #[must_use]
    pub fn profile(&self) -> Profile {
        self.core.borrow().profile.clone()
    }

    /// Size, limits and abilities, as of now.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        let core = self.core.borrow();
        core.profile.geometry(core.read_only)
    }

    /// Takes over what was read again. What refusals taught about commands is kept.
    pub fn update_profile(&self, update: impl FnOnce(&mut Profile)) {
        let core = &mut *self.core.borrow_mut();
        update(&mut core.profile);
        core.generation += 1;
        core.held = false;
        core.send_backlog();
    }

    /// The port of the LUN, for control commands.
    #[must_use]
    pub fn port(&self) -> Rc<Port> {
        Rc::clone(&self.core.borrow().port)
    }

    /// Ends every request that has no answer yet with `error`; for a LUN that is taken away by force.
    pub fn fail_all(&self, error: Error) {
        self.core.borrow_mut().fail_all(error);
    }
}

/// What a LUN wants from its keeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// Read these again.
    Refresh(Refresh),
    /// Look at [`LunControl::poll_timeout`] again.
    PauseBegan,
    /// The session is over and all requests were answered.
    Closed,
}

impl Core {
    fn submit(&mut self, Request { id, op }: Request) {
        if self.closed {
            return self.answer(id, Err(Error::Unavailable));
        }
        let block = u64::from(self.profile.block_bytes);
        let blocks = |len: u64| (len / block) as u32;
        let job = match op {
            Op::Read {
                offset_bytes,
                len_bytes,
            } => {
                let step = Step::Read {
                    lba: offset_bytes / block,
                    blocks: blocks(u64::from(len_bytes)),
                };
                Job::new(id, step)
            }
            Op::Write {
                offset_bytes,
                data,
                fua,
            } => {
                let fua = fua && self.profile.write_cache;
                let step = Step::Write {
                    lba: offset_bytes / block,
                    blocks: blocks(data.len() as u64),
                    data,
                    fua: fua && self.profile.fua,
                };
                Job {
                    then_sync: fua && !self.profile.fua,
                    ..Job::new(id, step)
                }
            }
            Op::Flush => return self.submit_flush(id),
            Op::Trim {
                offset_bytes,
                len_bytes,
                fua,
            } => {
                return self.submit_range(id, RangeKind::Trim, (offset_bytes, len_bytes), fua);
            }
            Op::WriteZeroes {
                offset_bytes,
                len_bytes,
                may_unmap,
                fast_only,
                fua,
            } => {
                let kind = RangeKind::Zero {
                    may_unmap,
                    fast_only,
                };
                return self.submit_range(id, kind, (offset_bytes, len_bytes), fua);
            }
            Op::BlockStatus {
                offset_bytes,
                len_bytes,
            } => {
                if !(self.profile.thin && self.profile.lba_status) {
                    return self.answer(id, Ok(Output::Extents(vec![data_extent(len_bytes)])));
                }
                Job::new(
                    id,
                    Step::LbaStatus {
                        lba: offset_bytes / block,
                        blocks: len_bytes / block,
                    },
                )
            }
            // A hint. Prefetching over the network into a cache we do not own gains nothing.
            Op::Cache { .. } => return self.answer(id, Ok(Output::Done)),
        };
        self.start(job);
    }

    fn submit_range(&mut self, id: RequestId, kind: RangeKind, range: (u64, u64), fua: bool) {
        let block = u64::from(self.profile.block_bytes);
        let (next, end) = (range.0 / block, (range.0 + range.1) / block);
        let mut rest = Rest { kind, next, end };
        let Some(step) = rest.next_step(&self.profile) else {
            let result = match kind {
                // A hint to a device that cannot take it.
                RangeKind::Trim => Ok(Output::Done),
                RangeKind::Zero { .. } => Err(Error::NotSupported),
            };
            return self.answer(id, result);
        };
        // UNMAP and WRITE SAME have no FUA bit.
        let then_sync = fua && self.profile.write_cache;
        self.start(Job {
            rest: Some(rest),
            then_sync,
            ..Job::new(id, step)
        });
    }

    fn submit_flush(&mut self, id: RequestId) {
        if !self.profile.write_cache {
            return self.answer(id, Ok(Output::Done));
        }
        self.flush.next.push(id);
        if self.flush.running.is_none() {
            self.start_flush();
        }
    }

    fn start_flush(&mut self) {
        std::mem::swap(&mut self.flush.answers, &mut self.flush.next);
        if let Some(first) = self.flush.answers.first() {
            let slot = self.jobs.insert(Job::new(*first, Step::SyncAll));
            self.flush.running = Some(slot);
            self.send(slot);
        }
    }

    fn start(&mut self, job: Job) {
        let slot = self.jobs.insert(job);
        self.send(slot);
    }

    fn send(&mut self, slot: usize) {
        // Behind those that wait already: they came first.
        if self.held || !self.backlog.is_empty() {
            return self.backlog.push_back(slot);
        }
        self.try_send(slot);
    }

    fn try_send(&mut self, slot: usize) -> bool {
        let job = &mut self.jobs[slot];
        job.sent_ten_byte_form = self.profile.ten_byte_forms;
        let (cdb, transfer) = job.step.command(&self.profile);
        match self.port.submit_io(slot, &cdb, transfer) {
            Ok(()) => true,
            Err(Refusal::Full) => {
                self.backlog.push_back(slot);
                false
            }
            Err(Refusal::Closed) => {
                self.finish(slot, Err(Error::Unavailable));
                true
            }
        }
    }

    fn answer(&mut self, id: RequestId, result: Result<Output, Error>) {
        self.done.push_back(Completion { id, result });
    }

    /// Takes in what has ended.
    fn collect(&mut self) {
        while let Some((slot, outcome)) = self.port.poll_io() {
            self.on_outcome(slot, outcome);
        }
        self.send_backlog();
        if !self.closed && self.port.is_closed() {
            self.closed = true;
            self.port.wake_control();
            self.fail_all(Error::Unavailable);
        }
    }

    fn send_backlog(&mut self) {
        if self.held {
            return;
        }
        for _ in 0..self.backlog.len() {
            let Some(slot) = self.backlog.pop_front() else {
                break;
            };
            if !self.try_send(slot) {
                // It went to the end; it was the oldest.
                self.backlog.rotate_right(1);
                break;
            }
        }
    }

    fn fail_all(&mut self, error: Error) {
        // Nothing more is taken: a slot used again could be answered by what comes late for the old one.
        self.closed = true;
        self.backlog.clear();
        self.paused.clear();
        let slots: Vec<usize> = self.jobs.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            // Finishing a flush starts the next one, which finds its own end the same way.
            if self.jobs.contains(slot) {
                self.finish(slot, Err(error));
            }
        }
        self.wake_keeper();
    }

    fn wake_keeper(&mut self) {
        if let Some(waker) = self.news.take() {
            waker.wake();
        }
    }

    fn on_outcome(&mut self, slot: usize, outcome: TaskOutcome) {
        let Some(job) = self.jobs.get_mut(slot) else {
            return; // Failed by force; the target's answer came too late.
        };
        // The common case first: success, with every byte moved.
        let outcome = match outcome {
            TaskOutcome::Completed {
                status: 0,
                data,
                residual,
                ..
            } if job.step.is_whole(&data, residual, self.profile.block_bytes) => {
                return self.on_success(slot, data);
            }
            other => other,
        };
        let now = crate::block::now();
        let failing_since = *job.failing_since.get_or_insert(now);
        let history = History {
            retries: job.retries,
            failing_for: now - failing_since,
        };
        job.retries += 1;
        let judgement = judge(&outcome, history);
        if let Some(notice) = &judgement.notice {
            tracing::warn!(command = ?job.step.name(), decision = ?judgement.decision, "{notice}");
        }
        if !judgement.refresh.is_empty() {
            self.refresh = self.refresh.and(judgement.refresh);
            // The command that is tried again must not go to another unit than it was meant for.
            let doubtful = [Refresh::INQUIRY, Refresh::LUNS];
            self.held |= doubtful
                .into_iter()
                .any(|one| judgement.refresh.contains(one));
            self.wake_keeper();
        }
        match judgement.decision {
            Decision::Done => self.on_recovered(slot, outcome),
            Decision::Retry => self.send(slot),
            Decision::RetryAfter(pause) => {
                self.paused.push((now + pause, slot));
                self.pause_began = true;
                self.wake_keeper();
            }
            Decision::Unsupported => self.on_unsupported(slot),
            Decision::TooMuch => self.on_too_much(slot),
            Decision::Fail(error) => self.finish(slot, Err(error)),
        }
    }

    /// Success with a word (a recovered error): still only with every byte moved.
    fn on_recovered(&mut self, slot: usize, outcome: TaskOutcome) {
        let block_bytes = self.profile.block_bytes;
        match outcome {
            TaskOutcome::Completed { data, residual, .. }
                if self.jobs[slot].step.is_whole(&data, residual, block_bytes) =>
            {
                self.on_success(slot, data);
            }
            _ => self.finish(slot, Err(Error::Medium)),
        }
    }

    fn on_success(&mut self, slot: usize, data: Payload) {
        let Some(job) = self.jobs.get_mut(slot) else {
            return;
        };
        job.retries = 0;
        job.failing_since = None;
        match &job.step {
            Step::Read { .. } => self.finish(slot, Ok(Output::Data(data))),
            Step::LbaStatus { lba, blocks } => {
                let extents = extents(&self.profile, *lba, *blocks, &data);
                self.finish(slot, Ok(Output::Extents(extents)));
            }
            _ => self.advance(slot),
        }
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

    fn finish(&mut self, slot: usize, result: Result<Output, Error>) {
        let job = self.jobs.remove(slot);
        if self.flush.running == Some(slot) {
            self.flush.running = None;
            for id in std::mem::take(&mut self.flush.answers) {
                self.answer(id, result.clone());
            }
            if !self.flush.next.is_empty() {
                self.start_flush();
            }
        } else {
            self.answer(job.id, result);
        }
    }
}

const fn data_extent(len_bytes: u64) -> Extent {
    Extent {
        len_bytes,
        hole: false,
        zero: false,
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

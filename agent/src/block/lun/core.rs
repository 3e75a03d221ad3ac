//! Requests in, commands out: jobs, their queue, and the flush.

use std::collections::VecDeque;
use std::task::Waker;
use std::time::Instant;

use berth_iscsi::mutation::{Mutation, is_planted};
use slab::Slab;

use super::job::{Job, RangeKind, Rest, Step};
use super::paths::{Choice, PathSet};
use super::port::{Ending, Refusal};
use super::profile::Profile;
use super::tally::Counters;
use super::{
    CacheLossPolicy, Completion, Error, Extent, Geometry, LunOptions, Op, Output, Request,
    RequestId,
};
use crate::block::now;

pub(super) struct Core {
    pub(super) paths: PathSet,
    pub(super) profile: Profile,
    pub(super) options: LunOptions,
    /// Counts changes of the geometry.
    pub(super) generation: u64,
    pub(super) jobs: Slab<Job>,
    next_order: u64,
    pub(super) done: VecDeque<Completion>,
    pub(super) flush: Flush,
    /// Jobs whose command is to be sent again, with the time.
    pub(super) paused: Vec<(Instant, usize)>,
    /// Jobs whose command could not be sent yet, in the order of their requests.
    pub(super) backlog: VecDeque<usize>,
    /// Jobs whose command was lost with its session after it was sent, with the path. What it writes may
    /// still be written by the old session.
    pub(super) ghosts: Vec<(usize, usize)>,
    /// What ghosts that were answered with an error leave behind.
    pub(super) tombs: Vec<Tomb>,
    pub(super) outage: Outage,
    /// Why nothing is taken any more.
    pub(super) fate: Option<Error>,
    pub(super) counters: Counters,
    /// Commands were queued that [`Core::commit`] sends.
    uncommitted: bool,
    /// Timers, health or geometry have changed and the watcher was not told.
    pub(super) changed: bool,
    pub(super) watcher: Option<Waker>,
}

/// SYNCHRONIZE CACHE covers every write that was answered before it was sent, so one command answers
/// all flushes that came before it started, and those that come meanwhile share the next one.
#[derive(Default)]
pub(super) struct Flush {
    /// The job of the command in flight, and whom it answers.
    pub(super) running: Option<usize>,
    answers: Vec<RequestId>,
    /// Whom the next one answers.
    next: Vec<RequestId>,
    /// Writes that were answered, ever, and how many of them a flush has covered.
    pub(super) written: u64,
    pub(super) covered: u64,
    /// [`Flush::written`] when the running command was started.
    started_at: u64,
    /// Something that no flush had covered may be lost, and a flush has to say so.
    pub(super) lost: bool,
    /// Counts the times that the cache may have been lost.
    pub(super) cache_losses: u64,
}

/// Blocks that a command of unknown fate may still write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tomb {
    pub(super) path: usize,
    pub(super) start: u64,
    pub(super) end: u64,
}

/// The time without a path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Outage {
    pub(super) since: Option<Instant>,
    /// It was too long: I/O fails until there is a path.
    pub(super) given_up: bool,
}

/// What came of an attempt to send.
enum Sent {
    Yes,
    /// The paths have as much as they take, or there is none.
    NotNow,
}

impl Core {
    pub(super) fn new(profile: Profile, options: LunOptions) -> Self {
        Self {
            paths: PathSet::new(options.queue_depth_max),
            profile,
            options,
            generation: 0,
            jobs: Slab::with_capacity(256),
            next_order: 0,
            done: VecDeque::with_capacity(256),
            flush: Flush::default(),
            paused: Vec::new(),
            backlog: VecDeque::new(),
            ghosts: Vec::new(),
            tombs: Vec::new(),
            outage: Outage::default(),
            fate: None,
            counters: Counters::default(),
            uncommitted: false,
            changed: false,
            watcher: None,
        }
    }

    pub(super) fn geometry(&self) -> Geometry {
        self.profile.geometry(self.options.read_only)
    }

    pub(super) fn submit(&mut self, Request { id, op }: Request) {
        if let Some(fate) = self.fate {
            return self.answer(id, Err(fate));
        }
        let block = u64::from(self.profile.block_bytes);
        let blocks = |len: u64| (len / block) as u32;
        match op {
            Op::Read {
                offset_bytes,
                len_bytes,
            } => {
                let step = Step::Read {
                    lba: offset_bytes / block,
                    blocks: blocks(u64::from(len_bytes)),
                    to_merge: false,
                };
                self.start(Job::new(id, step));
            }
            Op::ReadToMerge {
                offset_bytes,
                len_bytes,
            } => {
                let step = Step::Read {
                    lba: offset_bytes / block,
                    blocks: blocks(u64::from(len_bytes)),
                    to_merge: true,
                };
                self.start(Job::new(id, step));
            }
            Op::Write {
                offset_bytes,
                data,
                fua,
            } => {
                let fua = fua && self.profile.write_cache && !is_planted(Mutation::DropFua);
                let step = Step::Write {
                    lba: offset_bytes / block,
                    blocks: blocks(data.len() as u64),
                    data,
                    fua: fua && self.profile.fua,
                };
                self.start(Job {
                    then_sync: fua && !self.profile.fua,
                    ..Job::new(id, step)
                });
            }
            Op::Flush => self.submit_flush(id),
            Op::Trim {
                offset_bytes,
                len_bytes,
                fua,
            } => self.submit_range(id, RangeKind::Trim, (offset_bytes, len_bytes), fua),
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
                self.submit_range(id, kind, (offset_bytes, len_bytes), fua);
            }
            Op::BlockStatus {
                offset_bytes,
                len_bytes,
            } => {
                if !(self.profile.thin && self.profile.lba_status) {
                    return self.answer(id, Ok(Output::Extents(vec![data_extent(len_bytes)])));
                }
                let step = Step::LbaStatus {
                    lba: offset_bytes / block,
                    blocks: len_bytes / block,
                };
                self.start(Job::new(id, step));
            }
            // A hint. Prefetching over the network into a cache we do not own gains nothing.
            Op::Cache { .. } => self.answer(id, Ok(Output::Done)),
        }
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
        if !self.profile.write_cache || is_planted(Mutation::DropFlush) {
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
            let job = Job::new(*first, Step::SyncAll);
            self.flush.started_at = self.flush.written;
            let slot = self.insert(job);
            self.flush.running = Some(slot);
            self.send(slot);
        }
    }

    fn insert(&mut self, mut job: Job) -> usize {
        job.order = self.next_order;
        self.next_order += 1;
        self.jobs.insert(job)
    }

    fn start(&mut self, job: Job) {
        let slot = self.insert(job);
        self.note_first(slot);
        self.send(slot);
    }

    /// Sends the job's command, now or when it can be sent.
    pub(super) fn send(&mut self, slot: usize) {
        if let Some(error) = self.fate {
            return self.finish(slot, Err(error));
        }
        let none_waits = self.backlog.is_empty();
        if none_waits && !self.is_held_back(slot) && matches!(self.try_send(slot), Sent::Yes) {
            return;
        }
        if self.outage.given_up {
            return self.finish(slot, Err(Error::Unavailable));
        }
        self.requeue(slot);
        if !none_waits {
            // Those that wait may all be held back by something that does not concern this one.
            self.send_backlog();
        }
    }

    /// Puts the job among those that wait, by the order of the requests.
    pub(super) fn requeue(&mut self, slot: usize) {
        let order = self.jobs[slot].order;
        let at = self
            .backlog
            .partition_point(|waiting| self.jobs[*waiting].order < order);
        self.backlog.insert(at, slot);
    }

    fn try_send(&mut self, slot: usize) -> Sent {
        loop {
            let Choice::Path(path) = self.paths.choose() else {
                return Sent::NotNow;
            };
            let job = &mut self.jobs[slot];
            job.sent_ten_byte_form = self.profile.ten_byte_forms;
            job.attempt = job.attempt.wrapping_add(1);
            let (cdb, transfer) = job.step.command(&self.profile);
            let len_bytes = job.step.len_bytes(self.profile.block_bytes);
            let port = self.paths.get(path).port.as_ref();
            let port = port.expect("a path that is chosen has a session");
            match port.submit_io(tag(slot, job.attempt), &cdb, transfer) {
                Ok(()) => {
                    job.path = Some(path);
                    if self.paths.measures(path) {
                        job.sent_at = Some(now());
                    }
                    self.paths.note_sent(path, len_bytes);
                    self.uncommitted = true;
                    return Sent::Yes;
                }
                Err(Refusal::Full) => return Sent::NotNow,
                Err(Refusal::Closed) => {
                    // Its endings are still to be collected, then it is down.
                    self.paths.get_mut(path).preference = None;
                    self.note_paths_changed();
                }
            }
        }
    }

    /// Sends the commands that were queued on any path.
    pub(super) fn commit(&mut self) {
        if std::mem::take(&mut self.uncommitted) {
            for (_, path) in self.paths.iter() {
                if let Some(port) = &path.port {
                    port.commit();
                }
            }
        }
    }

    pub(super) fn answer(&mut self, id: RequestId, result: Result<Output, Error>) {
        self.done.push_back(Completion { id, result });
    }

    /// Takes in what has ended.
    pub(super) fn collect(&mut self) {
        for path in 0..self.paths.len() {
            let Some(port) = self.paths.get(path).port.clone() else {
                continue;
            };
            while let Some((tag, ending)) = port.poll_io() {
                self.on_ending(path, tag, ending);
            }
            let reported = port.take_reported();
            self.note_refresh(path, reported);
            if port.is_closed() {
                port.wake_control();
                self.on_path_down(path);
            }
        }
        self.send_backlog();
    }

    fn on_ending(&mut self, path: usize, tag: u64, ending: Ending) {
        let (slot, attempt) = (tag as u32 as usize, (tag >> 32) as u32);
        let block_bytes = self.profile.block_bytes;
        let Some(job) = self
            .jobs
            .get_mut(slot)
            .filter(|job| job.path == Some(path) && job.attempt & ATTEMPT_MASK == attempt)
        else {
            return; // Answered by force; the target's answer came too late.
        };
        job.path = None;
        self.paths.note_ended(path, job.step.len_bytes(block_bytes));
        match ending {
            Ending::Outcome(outcome) => self.on_outcome(slot, path, outcome),
            Ending::Lost { sent } => self.on_lost(slot, path, sent),
            Ending::Managed(_) => debug_assert!(false, "I/O commands are no task management"),
        }
    }

    pub(super) fn send_backlog(&mut self) {
        let mut at = 0;
        while let Some(&slot) = self.backlog.get(at) {
            if self.is_held_back(slot) {
                at += 1;
                continue;
            }
            match self.try_send(slot) {
                Sent::Yes => {
                    self.backlog.remove(at);
                }
                Sent::NotNow => break,
            }
        }
    }

    pub(super) fn finish(&mut self, slot: usize, result: Result<Output, Error>) {
        let job = self.jobs.remove(slot);
        if self.flush.running == Some(slot) {
            self.finish_flush(result);
        } else {
            if job.cached {
                self.flush.written += 1;
            }
            self.answer(job.id, result);
        }
    }

    fn finish_flush(&mut self, mut result: Result<Output, Error>) {
        self.flush.running = None;
        if result.is_ok() {
            self.flush.covered = self.flush.started_at;
            if std::mem::take(&mut self.flush.lost)
                && self.options.cache_loss == CacheLossPolicy::FailFlush
            {
                result = Err(Error::Medium);
            }
        }
        for id in std::mem::take(&mut self.flush.answers) {
            self.answer(id, result.clone());
        }
        if !self.flush.next.is_empty() {
            self.start_flush();
        }
    }

    pub(super) fn note_changed(&mut self) {
        self.changed = true;
        if let Some(waker) = self.watcher.take() {
            waker.wake();
        }
    }
}

/// Bits of [`Job::attempt`] that fit a tag beside the slot and below the mark of control commands.
const ATTEMPT_MASK: u32 = u32::MAX >> 1;

/// Names one command: slots and with them tags would be used again, the attempt tells them apart.
fn tag(slot: usize, attempt: u32) -> u64 {
    u64::from(attempt & ATTEMPT_MASK) << 32 | slot as u64
}

/// An extent that is only known not to be a hole.
pub(super) const fn data_extent(len_bytes: u64) -> Extent {
    Extent {
        len_bytes,
        hole: false,
        zero: false,
    }
}

//! The bottom layer: block requests become SCSI commands of one logical unit, over one or several paths.
//!
//! This is the one place that knows both. A request is a job: one command at a time, the next
//! one when it ended well; `verdict` decides what became of each.
//!
//! ```text
//! Request -> Job -> Step -> Cdb + Transfer -> PathSet::choose -> Port -> session
//! Completion <- Job <- Decision <- verdict <- Outcome <------------+
//!                ^                              Lost <-------------+
//!                +-- requeued <- ghosts <- recovery
//! ```
//!
//! `core` queues and sends, `outcome` takes in what ended, `recovery` keeps what was lost with a session
//! until it may be sent again. No clock runs in here and no task: [`LunControl`] says when it wants to be
//! called, and what its keeper has to find out.

mod core;
mod job;
mod outcome;
mod paths;
mod port;
pub mod probe;
mod profile;
mod recovery;
pub mod reservation;
mod tally;
#[cfg(test)]
mod tests;
mod verdict;

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use berth_iscsi::scsi::sense::Refresh;

pub use paths::{PathCounters, PathId, Preference};
pub use port::{Ending, Port, Refusal, Transport};
pub use profile::Profile;
pub use tally::{Counters, Health};

use self::core::Core;
use super::{
    BlockDevice, Completion, Error, Extent, Geometry, Op, Output, Payload, Request, RequestId,
};

/// How a unit is used.
#[derive(Debug, Clone, Copy)]
pub struct LunOptions {
    /// Refuse writes whatever the unit allows.
    pub read_only: bool,
    /// I/O waits this long for a path; `None`: for ever. Zero fails at once.
    pub recovery_timeout: Option<Duration>,
    /// A session that cannot be ended by a new login counts as gone at the target after this time; `None`:
    /// never.
    pub stale_session_timeout: Option<Duration>,
    /// What to do when the unit may have lost what was written and not flushed.
    pub cache_loss: CacheLossPolicy,
    /// Most I/O commands in flight on one path.
    pub queue_depth_max: u32,
}

impl Default for LunOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            recovery_timeout: Some(Duration::from_secs(120)),
            stale_session_timeout: Some(Duration::from_secs(60)),
            cache_loss: CacheLossPolicy::Report,
            queue_depth_max: 1024,
        }
    }
}

/// What to do when a unit was reset with writes in its volatile cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheLossPolicy {
    /// Count and report it: many targets say "power on" at every login, and lose nothing.
    #[default]
    Report,
    /// Also fail the next flush, so that whoever relies on it knows.
    FailFlush,
}

/// The bottom layer of a device's stack.
pub struct Lun {
    core: Rc<RefCell<Core>>,
    geometry: Geometry,
    generation: u64,
}

/// The control plane's end of a [`Lun`]: paths, timers, and the news about them.
#[derive(Clone)]
pub struct LunControl {
    core: Rc<RefCell<Core>>,
}

impl Lun {
    /// A device of which `profile` is known. It has no paths yet: see [`LunControl::add_path`].
    #[must_use]
    pub fn new(profile: Profile, options: LunOptions) -> (Self, LunControl) {
        let geometry = profile.geometry(options.read_only);
        let core = Rc::new(RefCell::new(Core::new(profile, options)));
        let control = LunControl {
            core: Rc::clone(&core),
        };
        let lun = Self {
            core,
            geometry,
            generation: 0,
        };
        (lun, control)
    }

    fn note_geometry(&mut self) {
        let core = self.core.borrow();
        if core.generation != self.generation {
            self.generation = core.generation;
            self.geometry = core.geometry();
        }
    }
}

impl BlockDevice for Lun {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn submit(&mut self, request: Request) {
        self.core.borrow_mut().submit(request);
        self.note_geometry();
    }

    fn commit(&mut self) {
        self.core.borrow_mut().commit();
    }

    fn poll_complete(&mut self) -> Option<Completion> {
        let core = &mut *self.core.borrow_mut();
        if let Some(completion) = core.done.pop_front() {
            return Some(completion);
        }
        core.collect();
        let completion = core.done.pop_front();
        if core.generation != self.generation {
            self.generation = core.generation;
            self.geometry = core.geometry();
        }
        completion
    }
}

/// What a path wants from its keeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathNews {
    /// The session ended; what it had in flight was taken care of.
    Closed,
    /// The session must be ended: the two sides disagree about it.
    DropSession,
    /// Read these again. With `in_doubt`, the path is not used until [`LunControl::path_examined`].
    Examine {
        /// What.
        refresh: Refresh,
        /// I/O waits for it, or goes another way.
        in_doubt: bool,
    },
}

impl LunControl {
    /// Changes something, which may set requests free: their commands leave at once.
    fn change(&self, change: impl FnOnce(&mut Core)) {
        let core = &mut *self.core.borrow_mut();
        change(core);
        core.commit();
    }

    /// Adds a path without a session.
    ///
    /// `haunted`: a session of an earlier daemon may still have commands at the target. Until it is known
    /// to be gone nothing is written, on whatever path.
    #[must_use]
    pub fn add_path(&self, haunted: bool) -> PathId {
        let core = &mut *self.core.borrow_mut();
        let path = core.paths.add();
        if haunted {
            core.haunt_anywhere(path);
        }
        PathId(path)
    }

    /// Forgets a path whose session is closed. What it left behind unanswered is then no more certain to be
    /// gone than before: a path with ghosts must be reinstated before it is removed.
    pub fn remove_path(&self, path: PathId) {
        self.change(|core| core.remove_path(path.0));
    }

    /// A login with the path's ISID succeeded, on whichever portal of the group: the session before it
    /// is gone at the target with all its commands (RFC 7143 6.3.5), and what it left is sent again.
    pub fn path_reinstated(&self, path: PathId) {
        self.change(|core| core.on_reinstated(path.0));
    }

    /// The path has a session and its unit was found to be the right one: it takes I/O from now on,
    /// as far as `preference` lets it.
    pub fn path_up(&self, path: PathId, port: Rc<Port>, preference: Preference) {
        self.change(|core| core.on_path_up(path.0, port, preference));
    }

    /// The path's facts were read again, and its unit is still the right one.
    pub fn path_examined(&self, path: PathId, preference: Preference) {
        self.change(|core| core.on_examined(path.0, preference));
    }

    /// The path's facts could not be read: it takes no I/O until they were.
    pub fn path_unusable(&self, path: PathId) {
        self.change(|core| core.on_unusable(path.0));
    }

    /// Takes no more I/O on the path; what is in flight there goes on. The end of its session is no loss.
    pub fn path_quiesce(&self, path: PathId) {
        let core = &mut *self.core.borrow_mut();
        let it = core.paths.get_mut(path.0);
        it.preference = None;
        it.leaving = true;
        core.note_paths_changed();
    }

    /// I/O commands in flight on the path.
    #[must_use]
    pub fn path_in_flight(&self, path: PathId) -> u32 {
        self.core.borrow().paths.get(path.0).in_flight
    }

    /// What the path wants next.
    pub fn poll_path(&self, path: PathId, cx: &mut Context<'_>) -> Poll<PathNews> {
        let core = &mut *self.core.borrow_mut();
        let path = core.paths.get_mut(path.0);
        if std::mem::take(&mut path.closed) {
            return Poll::Ready(PathNews::Closed);
        }
        if std::mem::take(&mut path.drop_session) {
            return Poll::Ready(PathNews::DropSession);
        }
        let refresh = std::mem::replace(&mut path.refresh, Refresh::NONE);
        if !refresh.is_empty() {
            return Poll::Ready(PathNews::Examine {
                refresh,
                in_doubt: path.in_doubt,
            });
        }
        path.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Whether a session of the path may live on at the target with commands of ours.
    #[must_use]
    pub fn is_haunted(&self, path: PathId) -> bool {
        self.core.borrow().paths.get(path.0).haunt.is_some()
    }

    /// How the path stands, for people.
    #[must_use]
    pub fn path_view(&self, path: PathId) -> PathStanding {
        let core = self.core.borrow();
        let it = core.paths.get(path.0);
        PathStanding {
            usable: it.is_usable(),
            in_flight: it.in_flight,
            queue_depth: core.paths.depth(path.0),
            service_ns: core.paths.service_ns(path.0),
            counters: it.counters,
        }
    }

    /// When [`LunControl::handle_timeout`] is to be called, if at all.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.core.borrow().poll_timeout()
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&self, now: Instant) {
        self.change(|core| core.handle_timeout(now));
    }

    /// Ready when timers, health or geometry have changed since this was asked last.
    pub fn poll_changed(&self, cx: &mut Context<'_>) -> Poll<()> {
        let core = &mut *self.core.borrow_mut();
        if std::mem::take(&mut core.changed) {
            return Poll::Ready(());
        }
        core.watcher = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Whether I/O goes, waits or fails.
    #[must_use]
    pub fn health(&self) -> Health {
        self.core.borrow().health()
    }

    /// What recovery did so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.core.borrow().counters()
    }

    /// What is known about the LUN.
    #[must_use]
    pub fn profile(&self) -> Profile {
        self.core.borrow().profile.clone()
    }

    /// Size, limits and abilities, as of now.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.core.borrow().geometry()
    }

    /// Takes over what was read again. What refusals taught about commands is kept.
    pub fn update_profile(&self, update: impl FnOnce(&mut Profile)) {
        let core = &mut *self.core.borrow_mut();
        update(&mut core.profile);
        core.generation += 1;
        core.note_changed();
    }

    /// Whether a flush does anything: the unit has a write cache, which may hold what was written before our
    /// time too, and requests are still taken.
    #[must_use]
    pub fn can_flush(&self) -> bool {
        let core = self.core.borrow();
        core.profile.write_cache && core.fate.is_none()
    }

    /// The unit may have lost what was written and not flushed.
    pub fn note_cache_loss(&self) {
        self.change(Core::note_cache_loss);
    }

    /// Changes how long I/O waits for a path.
    pub fn set_recovery_timeout(&self, timeout: Option<Duration>) {
        self.change(|core| core.set_recovery_timeout(timeout));
    }

    /// A port that takes commands now, for control commands.
    #[must_use]
    pub fn port(&self) -> Option<Rc<Port>> {
        let core = self.core.borrow();
        let usable = core.paths.iter().find(|(_, path)| path.is_usable());
        usable.and_then(|(_, path)| path.port.clone())
    }

    /// Another initiator holds a reservation: everything fails from now on, and nothing is sent.
    pub fn fence_off(&self) {
        self.change(|core| core.end_with(Error::Fenced));
    }

    /// Ends every request that has no answer yet with `error`, and all that come; for a LUN that is taken
    /// away by force.
    pub fn fail_all(&self, error: Error) {
        self.change(|core| core.fail_all(error));
    }
}

/// How a path stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathStanding {
    /// It takes I/O.
    pub usable: bool,
    /// I/O commands in flight.
    pub in_flight: u32,
    /// I/O commands that it takes at a time.
    pub queue_depth: u32,
    /// Mean service time of a small command, in nanoseconds; 0 when it was not measured.
    pub service_ns: u64,
    /// What happened on it.
    pub counters: PathCounters,
}

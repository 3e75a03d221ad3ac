//! The paths of a logical unit: which of them may be used, and which is best for the next command.

use std::rc::Rc;
use std::task::Waker;
use std::time::{Duration, Instant};

use berth_iscsi::scsi::sense::Refresh;
use berth_iscsi::session::{QueueDepth, QueueDepthOptions};

use super::port::Port;

/// What a command costs a path besides its bytes, in bytes: so that many small requests weigh something.
const COMMAND_COST_BYTES: u64 = 16 << 10;
/// Weight of the past in the mean of service times, out of 16.
const SERVICE_PAST: u64 = 15;

/// Names a path of a logical unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PathId(pub(super) usize);

/// How good a path is to send to, smaller is better; `None`: not now (SPC-4 5.15.2).
pub type Preference = Option<u8>;

/// A session that is gone here and may live on at the target, with commands of ours.
#[derive(Debug, Clone, Copy)]
pub(super) struct Haunt {
    pub(super) since: Instant,
    /// It is not known which blocks its commands write: they were sent by a daemon before this one.
    pub(super) anywhere: bool,
}

/// What happened on one path since it was added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PathCounters {
    /// I/O commands sent.
    pub commands: u64,
    /// Sessions that were lost.
    pub sessions_lost: u64,
    /// Times that the path was left because the unit does not take I/O there.
    pub switched_away: u64,
    /// Times that TASK SET FULL made its queue shorter.
    pub queue_shrunk: u64,
}

/// One path.
pub(super) struct Path {
    /// While its session lives.
    pub(super) port: Option<Rc<Port>>,
    /// It had a session before.
    pub(super) was_up: bool,
    /// Its facts are being read again: no I/O meanwhile.
    pub(super) in_doubt: bool,
    pub(super) preference: Preference,
    pub(super) in_flight: u32,
    in_flight_cost: u64,
    /// Mean time for a unit of cost, in nanoseconds per [`COMMAND_COST_BYTES`].
    service_ns: u64,
    depth: QueueDepth,
    pub(super) haunt: Option<Haunt>,
    /// What its keeper must read again.
    pub(super) refresh: Refresh,
    /// It is being taken away, or changes its session on purpose.
    pub(super) leaving: bool,
    /// Its session is of no use any more.
    pub(super) drop_session: bool,
    /// Its session ended and its keeper was not told.
    pub(super) closed: bool,
    pub(super) waker: Option<Waker>,
    pub(super) counters: PathCounters,
    removed: bool,
}

impl Path {
    fn new(depth: QueueDepthOptions) -> Self {
        Self {
            port: None,
            in_doubt: false,
            preference: None,
            in_flight: 0,
            in_flight_cost: 0,
            service_ns: 0,
            depth: QueueDepth::new(depth),
            was_up: false,
            haunt: None,
            refresh: Refresh::NONE,
            leaving: false,
            drop_session: false,
            closed: false,
            waker: None,
            counters: PathCounters::default(),
            removed: false,
        }
    }

    fn has_room(&self) -> bool {
        self.depth.has_room(self.in_flight as usize)
    }

    pub(super) fn is_usable(&self) -> bool {
        self.port.is_some() && !self.in_doubt && self.preference.is_some()
    }

    pub(super) fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// What there is to send to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    Path(usize),
    /// The paths that may be used have as much as they take.
    Full,
    /// No path may be used.
    None,
}

/// All paths, in the order in which they were added.
pub(super) struct PathSet {
    paths: Vec<Path>,
    depth: QueueDepthOptions,
}

impl PathSet {
    pub(super) fn new(depth_max: u32) -> Self {
        Self {
            paths: Vec::new(),
            depth: QueueDepthOptions {
                depth_max: depth_max as usize,
                ..QueueDepthOptions::default()
            },
        }
    }

    pub(super) fn add(&mut self) -> usize {
        self.paths.push(Path::new(self.depth));
        self.paths.len() - 1
    }

    /// Forgets a path for good; its number is not used again.
    pub(super) fn remove(&mut self, path: usize) {
        let path = &mut self.paths[path];
        path.wake();
        *path = Path {
            removed: true,
            ..Path::new(self.depth)
        };
    }

    pub(super) fn len(&self) -> usize {
        self.paths.len()
    }

    pub(super) fn get(&self, path: usize) -> &Path {
        &self.paths[path]
    }

    pub(super) fn get_mut(&mut self, path: usize) -> &mut Path {
        &mut self.paths[path]
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Path)> {
        self.paths.iter().enumerate().filter(|(_, p)| !p.removed)
    }

    /// Whether a path takes I/O, or will as soon as it was looked at.
    pub(super) fn any_serves(&self) -> bool {
        self.paths
            .iter()
            .any(|path| path.port.is_some() && path.preference.is_some())
    }

    /// Whether commands of a daemon before this one may still be carried out.
    pub(super) fn haunted_anywhere(&self) -> bool {
        self.paths
            .iter()
            .any(|path| path.haunt.is_some_and(|haunt| haunt.anywhere))
    }

    /// The path for the next command: of the best access state, the one that is expected to be done
    /// first (service time: what is in flight times the mean time for it).
    pub(super) fn choose(&self) -> Choice {
        if let [only] = &self.paths[..] {
            return match only.is_usable() {
                false => Choice::None,
                true if only.has_room() => Choice::Path(0),
                true => Choice::Full,
            };
        }
        let usable = |path: &&Path| path.is_usable();
        let Some(best) = self
            .paths
            .iter()
            .filter(usable)
            .filter_map(|path| path.preference)
            .min()
        else {
            return Choice::None;
        };
        self.paths
            .iter()
            .enumerate()
            .filter(|(_, path)| path.is_usable() && path.preference == Some(best))
            .filter(|(_, path)| path.has_room())
            .min_by_key(|(_, path)| {
                let waiting = path.in_flight_cost + COMMAND_COST_BYTES;
                u128::from(waiting) * u128::from(path.service_ns.max(1))
            })
            .map_or(Choice::Full, |(at, _)| Choice::Path(at))
    }

    /// Whether the time of a command on this path is worth measuring: to choose among paths, or to let a queue
    /// grow again that was found too deep.
    pub(super) fn measures(&self, path: usize) -> bool {
        self.paths.len() > 1 || self.paths[path].depth.limit() < self.depth.depth_max
    }

    pub(super) fn note_sent(&mut self, path: usize, len_bytes: u64) {
        let path = &mut self.paths[path];
        path.in_flight += 1;
        path.in_flight_cost += cost(len_bytes);
        path.counters.commands += 1;
    }

    pub(super) fn note_ended(&mut self, path: usize, len_bytes: u64) {
        let path = &mut self.paths[path];
        path.in_flight = path.in_flight.saturating_sub(1);
        path.in_flight_cost = path.in_flight_cost.saturating_sub(cost(len_bytes));
    }

    /// A command succeeded that was measured.
    pub(super) fn note_success(
        &mut self,
        path: usize,
        len_bytes: u64,
        now: Instant,
        took: Duration,
    ) {
        let path = &mut self.paths[path];
        path.depth.on_success(now);
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX >> 8);
        let sample = ns.saturating_mul(COMMAND_COST_BYTES) / cost(len_bytes);
        path.service_ns = if path.service_ns == 0 {
            sample.max(1)
        } else {
            (path.service_ns * SERVICE_PAST + sample.min(u64::MAX >> 8)) / (SERVICE_PAST + 1)
        };
    }

    /// The unit has as many tasks as it takes.
    pub(super) fn shrink(&mut self, path: usize, now: Instant) {
        let path = &mut self.paths[path];
        path.depth.on_task_set_full(now, path.in_flight as usize);
        path.counters.queue_shrunk += 1;
    }

    /// Commands that the path takes at a time, at present.
    pub(super) fn depth(&self, path: usize) -> u32 {
        u32::try_from(self.paths[path].depth.limit()).unwrap_or(u32::MAX)
    }

    /// Mean service time of a small command, in nanoseconds; 0 when it was not measured.
    pub(super) fn service_ns(&self, path: usize) -> u64 {
        self.paths[path].service_ns
    }
}

fn cost(len_bytes: u64) -> u64 {
    COMMAND_COST_BYTES + len_bytes
}

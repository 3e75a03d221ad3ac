//! How a volume stands, for its owner: one place where paths report and the owner looks.

use std::cell::RefCell;

use berth_api::Error;
use berth_api::types::{PathState, unix_ms_now};
use tokio::sync::watch;

use super::spec::{PathSpec, PathStatus, VolumeHealth, VolumeStatus};
use crate::block::lun::Health;

/// The notice board of one volume.
pub(super) struct Board {
    state: RefCell<State>,
    status: watch::Sender<VolumeStatus>,
}

struct State {
    paths: Vec<PathStatus>,
    failures: Vec<(u16, u64)>,
    health: VolumeHealth,
    /// What went wrong last on a path.
    last_error: Option<Error>,
    cache_losses: u64,
}

impl Board {
    /// An empty board; the owner looks at the other end of `status`.
    pub(super) fn new(status: watch::Sender<VolumeStatus>) -> Self {
        Self {
            state: RefCell::new(State {
                paths: Vec::new(),
                failures: Vec::new(),
                health: VolumeHealth::Up,
                last_error: None,
                cache_losses: 0,
            }),
            status,
        }
    }

    /// Lists a path.
    pub(super) fn add(&self, path: &PathSpec) {
        let mut state = self.state.borrow_mut();
        state.paths.push(PathStatus {
            index: path.index,
            portal: path.portal.clone(),
            state: PathState::Connecting,
            since_unix_ms: unix_ms_now(),
            reason: None,
            portal_group: path.known_group,
            retired: path.retired,
        });
        state.paths.sort_by_key(|path| path.index);
        drop(state);
        self.publish();
    }

    /// Takes a path off the list.
    pub(super) fn remove(&self, index: u16) {
        self.state
            .borrow_mut()
            .paths
            .retain(|path| path.index != index);
        self.publish();
    }

    /// A path is in a new state, or for a new reason.
    pub(super) fn set(&self, index: u16, state: PathState, reason: Option<Error>) {
        self.change(index, |path| {
            if path.state != state {
                path.since_unix_ms = unix_ms_now();
            }
            path.state = state;
            path.reason.clone_from(&reason);
        });
        if let Some(reason) = reason {
            self.state.borrow_mut().last_error = Some(reason);
        }
        self.publish();
    }

    /// Counts a failure of the path.
    pub(super) fn count_failure(&self, index: u16) {
        let failures = &mut self.state.borrow_mut().failures;
        match failures.iter_mut().find(|(of, _)| *of == index) {
            Some((_, count)) => *count += 1,
            None => failures.push((index, 1)),
        }
    }

    pub(super) fn failures(&self, index: u16) -> u64 {
        let state = self.state.borrow();
        let count = state.failures.iter().find(|(of, _)| *of == index);
        count.map_or(0, |(_, count)| *count)
    }

    /// The path is taken away.
    pub(super) fn retire(&self, index: u16) {
        self.change(index, |path| {
            path.retired = true;
            path.state = PathState::Leaving;
        });
        self.publish();
    }

    /// The target named the portal group of a path.
    pub(super) fn set_group(&self, index: u16, group: u16) {
        self.change(index, |path| path.portal_group = Some(group));
        self.publish();
    }

    pub(super) fn path(&self, index: u16) -> Option<PathStatus> {
        let state = self.state.borrow();
        state.paths.iter().find(|path| path.index == index).cloned()
    }

    pub(super) fn paths(&self) -> Vec<PathStatus> {
        self.state.borrow().paths.clone()
    }

    /// Whether no path is left that could ever work.
    pub(super) fn all_failed(&self) -> bool {
        let state = self.state.borrow();
        state
            .paths
            .iter()
            .filter(|path| !path.retired)
            .all(|path| path.state == PathState::Failed)
    }

    /// Takes over how I/O stands.
    pub(super) fn set_health(&self, health: Health) {
        let mut state = self.state.borrow_mut();
        let reason = || {
            state
                .last_error
                .clone()
                .unwrap_or_else(|| crate::volume::failure::lost("no path takes I/O"))
        };
        let health = match (health, &state.health) {
            (_, VolumeHealth::Failed { .. }) | (Health::Ended(_), _) => return,
            (Health::Up, _) => VolumeHealth::Up,
            (waiting, before) => VolumeHealth::Recovering {
                since_unix_ms: match before {
                    VolumeHealth::Recovering { since_unix_ms, .. } => *since_unix_ms,
                    _ => unix_ms_now(),
                },
                reason: reason(),
                io_fails: waiting == Health::Failing,
            },
        };
        state.health = health;
        drop(state);
        self.publish();
    }

    /// So many resets of the unit may have lost writes that were not flushed.
    pub(super) fn set_cache_losses(&self, count: u64) {
        if std::mem::replace(&mut self.state.borrow_mut().cache_losses, count) != count {
            self.publish();
        }
    }

    /// It will never work again.
    pub(super) fn fail(&self, reason: Error) {
        self.state.borrow_mut().health = VolumeHealth::Failed { reason };
        self.publish();
    }

    /// Why it will never work again, if so.
    pub(super) fn failed(&self) -> Option<Error> {
        match &self.state.borrow().health {
            VolumeHealth::Failed { reason } => Some(reason.clone()),
            _ => None,
        }
    }

    fn change(&self, index: u16, change: impl FnOnce(&mut PathStatus)) {
        let mut state = self.state.borrow_mut();
        if let Some(path) = state.paths.iter_mut().find(|path| path.index == index) {
            change(path);
        }
    }

    fn publish(&self) {
        let state = self.state.borrow();
        self.status.send_replace(VolumeStatus {
            health: state.health.clone(),
            paths: state.paths.clone(),
            cache_losses: state.cache_losses,
        });
    }
}

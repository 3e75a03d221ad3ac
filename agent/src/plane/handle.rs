//! What a volume and the task of one of its paths have of each other.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use berth_iscsi::name::Portal;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::session::Session;
use super::spec::PathSpec;
use crate::block::lun::PathId;
use crate::block::lun::probe::Access;

/// One path, from the side of the volume.
pub(super) struct PathHandle {
    pub(super) spec: PathSpec,
    pub(super) id: PathId,
    pub(super) orders: Rc<Orders>,
    pub(super) live: Rc<Live>,
}

/// What the volume tells its path.
#[derive(Default)]
pub(super) struct Orders {
    stop_by: Cell<Option<Instant>>,
    stop: Notify,
    poke: Notify,
}

impl Orders {
    /// The path is to end; its session is logged out, by this time or never.
    pub(super) fn stop(&self, by: Instant) {
        self.stop_by.set(Some(by));
        self.stop.notify_one();
    }

    /// Try again now.
    pub(super) fn poke(&self) {
        self.poke.notify_one();
    }

    /// Waits until it is told to try again.
    pub(super) async fn poked(&self) {
        self.poke.notified().await;
    }

    /// Waits until it is told to end, and by when.
    pub(super) async fn stopped(&self) -> Instant {
        loop {
            if let Some(by) = self.stop_by.get() {
                return by;
            }
            self.stop.notified().await;
        }
    }
}

/// The session of a path and what it is, for those who look.
#[derive(Default)]
pub(super) struct Live {
    pub(super) session: RefCell<Option<Session>>,
    pub(super) access: Cell<Option<Access>>,
    /// Where its last session was, perhaps after a redirect.
    pub(super) landed: RefCell<Option<Portal>>,
}

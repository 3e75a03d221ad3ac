//! What the tasks of one volume share on their thread.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use berth_api::Error;
use berth_iscsi::name::Portal;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::board::Board;
use super::handle::PathHandle;
use super::session::{Old, Session};
use super::spec::{PathSpec, PathStatus, PathView, RecoveryCounters, VolumeSpec};
use super::volume::{Shared, Snapshot};
use crate::block::hub::DynHub;
use crate::block::lun::reservation::FenceError;
use crate::block::lun::{LunControl, PathId, Profile, reservation};

/// A volume, as its paths and its keeper see it.
pub(super) struct Context {
    pub(super) spec: VolumeSpec,
    pub(super) shared: Arc<Shared>,
    pub(super) lun: LunControl,
    pub(super) hub: Rc<RefCell<DynHub>>,
    pub(super) board: Board,
    pub(super) paths: RefCell<Vec<PathHandle>>,
    /// What sessions that are gone had counted.
    gone: Cell<Totals>,
    /// The volume cannot go on.
    pub(super) over: Notify,
    /// The reservation is still to be given back, by the first path that ends with a session.
    pub(super) give_back: Cell<bool>,
}

/// Sums over sessions.
#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    commands: u64,
    digests_checked: u64,
    digest_errors: u64,
    lun_resets: u64,
}

impl Totals {
    fn add(&mut self, session: &Session) {
        let (counters, decoder) = session
            .handle()
            .with_session(|session, _| (session.counters(), session.decoder_counters()));
        self.commands += counters.commands;
        self.lun_resets += counters.logical_unit_resets;
        self.digests_checked += decoder.header_digests + decoder.data_digests;
        self.digest_errors += decoder.header_digest_errors + decoder.data_digest_errors;
    }
}

impl Context {
    pub(super) fn new(
        spec: VolumeSpec,
        shared: Arc<Shared>,
        lun: LunControl,
        hub: Rc<RefCell<DynHub>>,
    ) -> Rc<Self> {
        let board = Board::new(shared.status.clone());
        Rc::new(Self {
            spec,
            shared,
            lun,
            hub,
            board,
            paths: RefCell::default(),
            gone: Cell::default(),
            over: Notify::new(),
            give_back: Cell::new(false),
        })
    }

    /// What a login on the path has to do about the session before it, which had `landed` there.
    pub(super) fn old_session(&self, path: &PathSpec, landed: Option<Portal>) -> Old {
        let paths = self.board.paths();
        let own = paths.iter().find(|other| other.index == path.index);
        let Some(group) = own.and_then(|own| own.portal_group) else {
            return Old::default();
        };
        // After a redirect the path's own portal may be of another group, which does not help.
        let first = landed.unwrap_or_else(|| path.portal.clone());
        let (mut there, elsewhere): (Vec<_>, Vec<_>) = paths
            .into_iter()
            .filter(|other| other.portal != first)
            .partition(|other| other.index != path.index && other.portal_group == Some(group));
        // Those that work come first.
        there.sort_by_key(|other| (other.state != berth_api::types::PathState::Up, other.index));
        let portals = |paths: Vec<PathStatus>| paths.into_iter().map(|path| path.portal);
        Old {
            group: Some(group),
            portals: std::iter::once(first).chain(portals(there)).collect(),
            elsewhere: portals(elsewhere).collect(),
        }
    }

    /// Takes over facts about the unit.
    pub(super) fn update_profile(&self, profile: Profile) {
        let (was, is) = (self.lun.profile().size_bytes(), profile.size_bytes());
        if was != is {
            tracing::info!(
                volume = self.spec.name,
                was_bytes = was,
                is_bytes = is,
                "the unit has another size"
            );
        }
        self.lun.update_profile(|current| *current = profile);
    }

    /// A path works: what keeps the others from it may be over too.
    pub(super) fn poke_others(&self, path: PathId) {
        for other in self.paths.borrow().iter().filter(|other| other.id != path) {
            other.orders.poke();
        }
    }

    /// The volume cannot go on: everything is answered with `error`, and `reason` is told.
    pub(super) fn end(&self, error: crate::block::Error, reason: Error) {
        if self.board.failed().is_some() {
            return;
        }
        tracing::error!(
            volume = self.spec.name,
            reason = reason.detail(),
            "the volume cannot go on"
        );
        self.board.fail(reason);
        self.lun.fail_all(error);
        self.hub.borrow_mut().pump();
        self.over.notify_one();
    }

    /// Gives the reservation back, by the deadline or not at all.
    pub(super) async fn release(&self, deadline: Instant) {
        let Some(fence) = self.spec.fence else {
            return;
        };
        // A path that is lost meanwhile is followed by the next one.
        while let Some(port) = self.lun.port() {
            let release = reservation::release(&*port, fence.key);
            match tokio::time::timeout_at(deadline, release).await {
                Ok(Ok(())) => return,
                Ok(Err(error @ FenceError::Lost { .. })) if port.is_closed() => {
                    tracing::debug!(volume = self.spec.name, %error, "the reservation is still held");
                    self.hub.borrow_mut().pump();
                }
                Ok(Err(error)) => {
                    tracing::warn!(
                        volume = self.spec.name, %error, "the reservation was not given back"
                    );
                    return;
                }
                Err(_) => {
                    tracing::warn!(
                        volume = self.spec.name,
                        "the reservation was not given back in time"
                    );
                    return;
                }
            }
        }
        // No path yet, or none any more: one that still gets its session does it.
        self.give_back.set(true);
    }

    /// Keeps what a session had counted.
    pub(super) fn note_gone(&self, session: &Session) {
        let mut totals = self.gone.get();
        totals.add(session);
        self.gone.set(totals);
    }

    /// How everything stands.
    pub(super) fn snapshot(&self, clients: u32) -> Snapshot {
        let mut totals = self.gone.get();
        let mut views = Vec::new();
        for path in self.paths.borrow().iter() {
            let session = path.live.session.borrow();
            if let Some(session) = &*session {
                totals.add(session);
            }
            let Some(status) = self.board.path(path.spec.index) else {
                continue;
            };
            let access = path.live.access.get();
            let standing = self.lun.path_view(path.id);
            views.push(PathView {
                status,
                access: access.and_then(|access| access.group.map(|_| access.state)),
                preferred: access.is_some_and(|access| access.preferred),
                in_flight: standing.in_flight,
                queue_depth: standing.queue_depth,
                service_time_us: standing.service_ns / 1000,
                failures: self.board.failures(path.spec.index),
                session: session.as_ref().map(|session| session.view.clone()),
            });
        }
        let counters = self.lun.counters();
        Snapshot {
            paths: views,
            clients,
            commands: totals.commands,
            digests_checked: totals.digests_checked,
            digest_errors: totals.digest_errors,
            recovery: RecoveryCounters {
                sessions_lost: counters.sessions_lost,
                sessions_reinstated: counters.paths_back,
                commands_resent: counters.resent,
                ghosts: counters.ghosts,
                ghosts_waiting: counters.ghosts_waiting,
                stalls: counters.outages,
                stall_longest_ms: counters.longest_outage_ms,
                cache_losses: counters.cache_losses,
                requests_timed_out: counters.timed_out,
                aborts: counters.aborted,
                lun_resets: totals.lun_resets,
                reservation_conflicts: counters.conflicts,
            },
        }
    }
}

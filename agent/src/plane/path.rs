//! One path: a task that keeps a session with one portal, from the attach until the volume or the path goes.
//!
//! ```text
//! connect -> log in (ends the old session) -> look at the unit -> is it the same? -> fence -> serve
//!    ^                                                                                      |
//!    +------- pause (Time2Wait, backoff; woken when the network seems to be back) <- lost --+
//! ```

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use berth_api::Error;
use berth_api::types::PathState;
use berth_iscsi::error::{Error as IscsiError, Waiting};
use berth_iscsi::mutation::{Mutation, is_planted};
use berth_iscsi::scsi::alua::AccessState;
use berth_iscsi::scsi::sense::Refresh;
use berth_iscsi::session::CloseReason;
use tokio::time::{Instant, sleep};

use super::backoff::Backoff;
use super::context::Context;
use super::handle::{Live, Orders};
use super::session::{self, Attempt, Old, Opened, Session};
use super::spec::PathSpec;
use crate::block::lun::probe::{self, Access, Found};
use crate::block::lun::{PathId, PathNews, Port, Profile, reservation};
use crate::volume::failure;

/// How often the access state of a path is asked for that takes no I/O: nothing else would tell that it may.
const STANDBY_POLL: Duration = Duration::from_secs(2);
/// How often it is asked for otherwise, on units with asymmetric access.
const ACTIVE_POLL: Duration = Duration::from_secs(60);
/// Pauses between looks at a unit that cannot be used although the session lives.
const EXAMINE_FIRST: Duration = Duration::from_millis(100);
const EXAMINE_MAX: Duration = Duration::from_secs(2);
/// Such looks that fail before the session is given up: perhaps it is the session that is wrong.
const EXAMINE_TRIES: u32 = 10;

/// The first attempt of a path; made before there is a volume.
pub(super) type FirstAttempt = Pin<Box<dyn Future<Output = Attempt>>>;

/// A path's task.
pub(super) struct PathTask {
    pub(super) volume: Rc<Context>,
    pub(super) spec: PathSpec,
    pub(super) id: PathId,
    pub(super) orders: Rc<Orders>,
    pub(super) live: Rc<Live>,
}

/// Why a path serves no more.
enum Left {
    /// It was told to stop.
    Stopped(Instant),
    /// Its session was lost.
    Lost,
    /// It can never be used again.
    Failed(Error),
}

impl PathTask {
    /// Keeps the path until it is told to stop or can never be used again. Returns whether nothing of it is
    /// left at the target.
    pub(super) async fn run(self, first: FirstAttempt) -> bool {
        let spec = &self.volume.spec;
        let seed = spec.seed ^ u64::from(self.spec.index);
        let mut backoff = Backoff::new(spec.retry_first, spec.retry_max, seed);
        let mut attempt = first;
        loop {
            let outcome = tokio::select! {
                biased;
                outcome = &mut attempt => outcome,
                by = self.orders.stopped() => return self.stop_without_session(by).await,
            };
            let (error, wait) = match self.take_in(outcome).await {
                Ok((session, refresh)) => {
                    backoff.reset();
                    match self.serve(session, refresh).await {
                        Left::Stopped(by) => return self.stop(by).await,
                        Left::Failed(error) => return self.fail(error).await,
                        Left::Lost => self.note_loss(),
                    }
                }
                Err(Refused::Final(error)) => return self.fail(error).await,
                Err(Refused::Passing(error)) => (error, Duration::ZERO),
            };
            self.volume.board.count_failure(self.spec.index);
            self.volume
                .board
                .set(self.spec.index, PathState::Down, Some(error));
            if self.spec.retired && !self.volume.lun.is_haunted(self.id) {
                return true; // All that it was kept for.
            }
            let pause = backoff.next().max(wait);
            let poked = async {
                sleep(wait).await;
                self.orders.poked().await;
            };
            tokio::select! {
                biased;
                by = self.orders.stopped() => return self.stop_without_session(by).await,
                () = sleep(pause) => {}
                () = poked => {}
            }
            attempt = self.attempt();
        }
    }

    fn attempt(&self) -> FirstAttempt {
        let (volume, spec) = (Rc::clone(&self.volume), self.spec.clone());
        let old = if self.volume.lun.is_haunted(self.id) {
            let landed = self.live.landed.borrow().clone();
            self.volume.old_session(&self.spec, landed)
        } else {
            Old::default()
        };
        Box::pin(async move { session::open(&volume.spec, &spec, old).await })
    }

    /// From an attempt to a session that may be used, and what has to be read again on it.
    async fn take_in(&self, attempt: Attempt) -> Result<(Session, Refresh), Refused> {
        let Opened { session, found } = match attempt {
            Attempt::Opened(opened) => *opened,
            Attempt::Detour => {
                self.reinstated();
                let detail = "its old session was ended through another portal of its group";
                return Err(Refused::Passing(failure::lost(detail)));
            }
            Attempt::Unusable(error) => {
                self.reinstated();
                return Err(Refused::Passing(error));
            }
            Attempt::Failed(error) => return Err(Refused::Passing(error)),
        };
        self.reinstated();
        if let Some(group) = session.view.portal_group_tag {
            self.volume.board.set_group(self.spec.index, group);
        }
        if self.spec.retired {
            let by = Instant::now() + self.volume.spec.logout_timeout;
            session.end(by).await;
            return Err(Refused::Passing(failure::lost("it was taken away")));
        }
        let admitted = async {
            self.accept(&found)?;
            self.join_fence(&session.port).await?;
            self.group_kept(session.view.portal_group_tag).await
        };
        if let Err(refused) = admitted.await {
            let by = Instant::now() + self.volume.spec.logout_timeout;
            session.end(by).await;
            return Err(refused);
        }
        session.serve(&self.volume.hub);
        self.live.landed.replace(Some(session.landed.clone()));
        self.live.access.set(Some(found.access));
        self.volume
            .lun
            .path_up(self.id, Rc::clone(&session.port), found.access.preference);
        self.volume.hub.borrow_mut().pump();
        self.show(&found.access);
        tracing::info!(
            volume = self.volume.spec.name, target = self.volume.spec.target, portal = session.view.portal,
            access = %found.access.state, "path is up"
        );
        self.volume.poke_others(self.id);
        // The fence is joined: what a reservation kept from a stranger can be read now.
        let withheld = found.mode_withheld && self.volume.spec.fence.is_some();
        Ok((
            session,
            if withheld {
                Refresh::MODE
            } else {
                Refresh::NONE
            },
        ))
    }

    fn reinstated(&self) {
        self.volume.lun.path_reinstated(self.id);
        self.volume.hub.borrow_mut().pump();
    }

    /// Compares the unit with what it was, and takes over what has changed.
    fn accept(&self, found: &Found) -> Result<(), Refused> {
        let lun = &self.volume.lun;
        let known = lun.profile();
        if known.identity.is_some() && found.profile.identity.is_none() {
            // It does not say that it is another unit; and nothing is sent before it says that it is this one.
            return Err(Refused::Passing(failure::identity_unknown(
                &self.volume.spec.target,
            )));
        }
        let is_another = found.profile.identity != known.identity
            || found.profile.block_bytes != known.block_bytes;
        if is_another && !is_planted(Mutation::SkipIdentityCheck) {
            tracing::error!(
                volume = self.volume.spec.name, portal = %self.spec.portal, was = ?known.identity,
                is = ?found.profile.identity, "the LUN is another unit: nothing is sent to it"
            );
            return Err(Refused::Final(failure::identity_changed(
                &self.volume.spec.target,
            )));
        }
        if found.attentions.contains(Refresh::CACHE_LOSS) {
            lun.note_cache_loss();
        }
        self.volume
            .update_profile(known.refreshed(found.profile.clone()));
        Ok(())
    }

    /// Registers with the reservation that the volume holds.
    async fn join_fence(&self, port: &Port) -> Result<(), Refused> {
        let Some(fence) = self.volume.spec.fence else {
            return Ok(());
        };
        reservation::readmit(port, fence.key)
            .await
            .map_err(|error| self.fence_refused(error))
    }

    /// Waits until it is written down which portal group the session is with. After a crash the next life has
    /// to end it there, and a login on the same portal may be redirected elsewhere then, or no more.
    async fn group_kept(&self, group: Option<u16>) -> Result<(), Refused> {
        let Some(group) = group else {
            return Ok(());
        };
        let mut kept = self.volume.shared.kept_groups.subscribe();
        let entry = (self.spec.index, group);
        tokio::select! {
            biased;
            Ok(_) = kept.wait_for(|groups| groups.contains(&entry)) => Ok(()),
            _ = self.orders.stopped() => {
                Err(Refused::Passing(failure::lost("it was told to stop")))
            }
        }
    }

    fn fence_refused(&self, error: reservation::FenceError) -> Refused {
        let is_final = error.is_final();
        let error = failure::from_fence(error, &self.volume.spec.target);
        if is_final {
            self.volume.end(crate::block::Error::Fenced, error.clone());
            Refused::Final(error)
        } else {
            Refused::Passing(error)
        }
    }

    /// Serves until the session is lost or the path is to end. The session stays in `live`.
    async fn serve(&self, session: Session, refresh: Refresh) -> Left {
        let port = Rc::clone(&session.port);
        self.live.session.replace(Some(session));
        let mut examine = (!refresh.is_empty()).then_some((refresh, false));
        loop {
            let next = async {
                match examine {
                    Some((refresh, in_doubt)) => self.examine(&port, refresh, in_doubt).await,
                    None => self.wait_for_news().await,
                }
            };
            let next = tokio::select! {
                biased;
                by = self.orders.stopped() => return Left::Stopped(by),
                next = next => next,
            };
            examine = match next {
                Next::Wait => None,
                Next::Examine(refresh, in_doubt) => Some((refresh, in_doubt)),
                Next::Leave(left) => return left,
            };
        }
    }

    async fn wait_for_news(&self) -> Next {
        let access = self.live.access.get();
        let poll = match access {
            Some(Access { group: None, .. }) | None => None,
            Some(Access {
                preference: Some(_),
                ..
            }) => Some(ACTIVE_POLL),
            Some(_) => Some(STANDBY_POLL),
        };
        let poll = async {
            match poll {
                Some(time) => sleep(time).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            news = poll_fn(|cx| self.volume.lun.poll_path(self.id, cx)) => match news {
                PathNews::Closed => Next::Leave(Left::Lost),
                PathNews::DropSession => {
                    if let Some(session) = &*self.live.session.borrow() {
                        session.cut();
                    }
                    Next::Wait
                }
                PathNews::Examine { refresh, in_doubt } => Next::Examine(refresh, in_doubt),
            },
            () = poll => Next::Examine(Refresh::PORT_GROUPS, false),
        }
    }

    /// Reads the unit's facts again, as often as it takes.
    async fn examine(&self, port: &Port, refresh: Refresh, in_doubt: bool) -> Next {
        if refresh.contains(Refresh::RESERVATION)
            && let Some(fence) = self.volume.spec.fence
            && let Err(error) = reservation::verify(port, fence.key).await
            && let Refused::Final(error) = self.fence_refused(error)
        {
            return Next::Leave(Left::Failed(error));
        }
        let mut backoff = Backoff::new(EXAMINE_FIRST, EXAMINE_MAX, u64::from(self.spec.index));
        for _ in 0..EXAMINE_TRIES {
            let found = probe::probe(port).await.map_err(|error| {
                failure::from_probe(error, self.volume.spec.lun, &self.volume.spec.target)
            });
            let accepted = found.and_then(|found| match self.accept(&found) {
                Ok(()) => Ok(Ok(found)),
                Err(Refused::Passing(error)) => Err(error),
                Err(Refused::Final(error)) => Ok(Err(error)),
            });
            match accepted {
                Ok(Ok(found)) => {
                    self.live.access.set(Some(found.access));
                    self.volume
                        .lun
                        .path_examined(self.id, found.access.preference);
                    self.volume.hub.borrow_mut().pump();
                    self.show(&found.access);
                    return Next::Wait;
                }
                Ok(Err(error)) => return Next::Leave(Left::Failed(error)),
                Err(error) => {
                    tracing::warn!(
                        volume = self.volume.spec.name, portal = %self.spec.portal,
                        error = error.detail(), "the unit's facts cannot be read"
                    );
                    if in_doubt {
                        self.volume.lun.path_unusable(self.id);
                        self.volume
                            .board
                            .set(self.spec.index, PathState::Down, Some(error));
                    }
                }
            }
            if port.is_closed() {
                return Next::Wait; // The news of it is there.
            }
            sleep(backoff.next()).await;
        }
        if let Some(session) = &*self.live.session.borrow() {
            session.cut();
        }
        Next::Wait
    }

    fn show(&self, access: &Access) {
        let state = match (access.preference, access.state) {
            (Some(_), _) => PathState::Up,
            (None, AccessState::Transitioning) => PathState::Transitioning,
            (None, _) => PathState::Standby,
        };
        self.volume.board.set(self.spec.index, state, None);
    }

    /// The session was lost: why, and how long the target wants to be left alone.
    fn note_loss(&self) -> (Error, Duration) {
        let session = self.live.session.take();
        self.live.access.set(None);
        let Some(session) = session else {
            return (failure::lost("it ended"), Duration::ZERO);
        };
        self.volume.note_gone(&session);
        let time2wait = Duration::from_secs(u64::from(
            session
                .handle()
                .with_session(|session, _| session.negotiated().time2wait_s),
        ));
        let Some(reason) = session.close_reason() else {
            return (failure::lost("it ended"), time2wait);
        };
        let wait = match &reason {
            CloseReason::LoggedOut { time2wait_s, .. }
            | CloseReason::DroppedByTarget { time2wait_s, .. } => {
                Duration::from_secs(u64::from(*time2wait_s))
            }
            // Time2Wait counts from when the connection failed (RFC 7143 13.15), and that was when the
            // target fell silent, a ping's patience ago.
            CloseReason::Failed(IscsiError::TimedOut(Waiting::Ping)) => {
                time2wait.saturating_sub(self.volume.spec.connect.session.ping_timeout)
            }
            CloseReason::Failed(_) => time2wait,
        };
        let error = session::lost(&self.volume.spec, reason);
        tracing::warn!(
            volume = self.volume.spec.name, portal = %self.spec.portal, error = error.detail(),
            "path is down"
        );
        (error, wait)
    }

    /// The path can never be used again.
    async fn fail(&self, error: Error) -> bool {
        self.volume
            .board
            .set(self.spec.index, PathState::Failed, Some(error.clone()));
        let by = Instant::now() + self.volume.spec.logout_timeout;
        let clean = self.log_out(by).await;
        if self.volume.board.all_failed() {
            self.volume.end(crate::block::Error::Gone, error);
        }
        clean
    }

    /// Ends the session in good order.
    async fn stop(&self, by: Instant) -> bool {
        let clean = self.log_out(by).await;
        if clean || !self.volume.lun.is_haunted(self.id) {
            return clean;
        }
        self.stop_without_session(by).await
    }

    async fn log_out(&self, by: Instant) -> bool {
        let has_session = self.live.session.borrow().is_some();
        if has_session && self.volume.give_back.take() {
            self.volume.release(by).await;
        }
        self.volume.lun.path_quiesce(self.id);
        let Some(mut session) = self.live.session.take() else {
            return !self.volume.lun.is_haunted(self.id);
        };
        let confirmed = session.log_out(by).await;
        self.volume.note_gone(&session);
        self.volume.hub.borrow_mut().pump();
        if confirmed {
            self.reinstated();
        } else {
            tracing::warn!(
                volume = self.volume.spec.name, portal = %self.spec.portal,
                "the target did not confirm the logout in time"
            );
        }
        confirmed
    }

    /// There is no session; but an old one may live on at the target, with commands of ours. Until the deadline
    /// it is tried to end it.
    async fn stop_without_session(&self, by: Instant) -> bool {
        while self.volume.lun.is_haunted(self.id) {
            let attempt = tokio::time::timeout_at(by, self.attempt()).await;
            match attempt {
                Err(_) => return false,
                Ok(Attempt::Opened(opened)) => {
                    self.reinstated();
                    opened.session.end(by).await;
                }
                Ok(Attempt::Detour | Attempt::Unusable(_)) => self.reinstated(),
                Ok(Attempt::Failed(_)) => {
                    if tokio::time::timeout_at(by, sleep(self.volume.spec.retry_first))
                        .await
                        .is_err()
                    {
                        return false;
                    }
                }
            }
        }
        true
    }
}

/// What a path does next.
enum Next {
    Wait,
    Examine(Refresh, bool),
    Leave(Left),
}

/// Why a session may not be used.
pub(super) enum Refused {
    /// It may pass.
    Passing(Error),
    /// It does not.
    Final(Error),
}

/// Whether two profiles are of one unit is for [`PathTask::accept`]; this is for the first path, before there
/// is a volume.
pub(super) fn is_expected(
    expected: Option<&crate::volume::intent::KnownIdentity>,
    profile: &Profile,
) -> bool {
    let Some(expected) = expected.filter(|_| !is_planted(Mutation::SkipIdentityCheck)) else {
        return true;
    };
    let designator = profile.identity.as_ref().map(|identity| identity.as_str());
    designator == Some(&expected.designator) && profile.block_bytes == expected.block_bytes
}

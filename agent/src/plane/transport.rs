//! A driven iSCSI session as the transport of one logical unit.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use berth_iscsi::error::Misuse;
use berth_iscsi::net::Handle;
use berth_iscsi::scsi::sense::{Refresh, Sense};
use berth_iscsi::session::{AsyncEvent, CloseReason, Command, Event, TaskManagement};
use berth_iscsi::types::Lun;

use crate::block::lun::{Ending, Refusal, Transport};

/// The session of a path, from the side of its LUN.
pub(super) struct SessionTransport {
    handle: Rc<Handle>,
    lun: Lun,
    /// Commands without an outcome when the session ended: tag, and whether it was sent.
    lost: RefCell<VecDeque<(u64, bool)>>,
    reported: Cell<Refresh>,
    closed: Cell<bool>,
    /// Why the session ended, once it has.
    reason: Rc<RefCell<Option<CloseReason>>>,
}

impl SessionTransport {
    /// The transport; `reason` is filled in when the session ends.
    pub(super) fn new(
        handle: Rc<Handle>,
        lun: Lun,
        reason: Rc<RefCell<Option<CloseReason>>>,
    ) -> Self {
        Self {
            handle,
            lun,
            lost: RefCell::default(),
            reported: Cell::new(Refresh::NONE),
            closed: Cell::new(false),
            reason,
        }
    }

    fn on_closed(&self, reason: CloseReason) {
        tracing::debug!(?reason, "session closed");
        self.reason.borrow_mut().get_or_insert(reason);
        self.closed.set(true);
        let unfinished = self.handle.take_unfinished();
        self.lost
            .borrow_mut()
            .extend(unfinished.into_iter().map(|it| (it.command.tag, it.sent)));
    }

    fn on_async(&self, event: &AsyncEvent) {
        tracing::info!(?event, "the target reported something");
        if let AsyncEvent::Scsi { lun, sense } = event
            && *lun == self.lun
            && let Ok(sense) = Sense::parse(sense)
        {
            let refresh = sense.classify().refresh;
            self.reported.set(self.reported.get().and(refresh));
        }
    }
}

impl Transport for SessionTransport {
    fn submit(&self, command: Command) -> Result<(), Refusal> {
        self.handle.queue(command).map_err(|misuse| match misuse {
            Misuse::QueueFull { .. } => Refusal::Full,
            _ => Refusal::Closed,
        })
    }

    fn commit(&self) {
        self.handle.commit();
    }

    fn manage(&self, tag: u64, function: TaskManagement) -> Result<(), Refusal> {
        self.handle
            .with_session(|session, _| session.task_management(tag, function, self.lun))
            .map_err(|misuse| match misuse {
                Misuse::QueueFull { .. } => Refusal::Full,
                _ => Refusal::Closed,
            })
    }

    fn poll_done(&self) -> Option<(u64, Ending)> {
        loop {
            match self.handle.poll_event() {
                Some(Event::TaskDone { tag, outcome }) => {
                    return Some((tag, Ending::Outcome(outcome)));
                }
                Some(Event::Closed(reason)) => self.on_closed(reason),
                Some(Event::Async(event)) => self.on_async(&event),
                Some(Event::LogoutRequested { cause, within }) => {
                    tracing::warn!(?cause, ?within, "the session is about to be logged out");
                }
                Some(Event::Rejected { reason, .. }) => {
                    tracing::warn!(reason, "the target rejected a PDU");
                }
                Some(Event::TaskManagementDone { tag, outcome, .. }) => {
                    return Some((tag, Ending::Managed(outcome)));
                }
                Some(Event::TextDone { .. } | Event::Pong { .. }) => {}
                None => break,
            }
        }
        let (tag, sent) = self.lost.borrow_mut().pop_front()?;
        Some((tag, Ending::Lost { sent }))
    }

    fn is_closed(&self) -> bool {
        self.closed.get() && self.lost.borrow().is_empty()
    }

    fn take_reported(&self) -> Refresh {
        self.reported.replace(Refresh::NONE)
    }
}

//! A driven iSCSI session as the transport of one logical unit.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use berth_iscsi::error::Misuse;
use berth_iscsi::net::Handle;
use berth_iscsi::session::{AbortCause, CloseReason, Command, Event, TaskOutcome};

use crate::block::lun::{Refusal, Transport};

/// The session of a volume, from the side of its LUN.
pub(super) struct SessionTransport {
    handle: Rc<Handle>,
    /// Commands without an outcome when the session ended; handed out as aborted, in order.
    leftover: RefCell<VecDeque<u64>>,
    closed: Cell<bool>,
    /// Why the session ended, once it has.
    reason: Rc<RefCell<Option<CloseReason>>>,
}

impl SessionTransport {
    /// The transport; `reason` is filled in when the session ends.
    pub(super) fn new(handle: Rc<Handle>, reason: Rc<RefCell<Option<CloseReason>>>) -> Self {
        Self {
            handle,
            leftover: RefCell::default(),
            closed: Cell::new(false),
            reason,
        }
    }

    fn on_closed(&self, reason: CloseReason) {
        tracing::debug!(?reason, "session closed");
        self.reason.borrow_mut().get_or_insert(reason);
        self.closed.set(true);
        let unfinished = self.handle.take_unfinished();
        self.leftover
            .borrow_mut()
            .extend(unfinished.into_iter().map(|task| task.command.tag));
    }
}

impl Transport for SessionTransport {
    fn submit(&self, command: Command) -> Result<(), Refusal> {
        self.handle.submit(command).map_err(|misuse| match misuse {
            Misuse::QueueFull { .. } => Refusal::Full,
            _ => Refusal::Closed,
        })
    }

    fn poll_done(&self) -> Option<(u64, TaskOutcome)> {
        loop {
            match self.handle.poll_event() {
                Some(Event::TaskDone { tag, outcome }) => return Some((tag, outcome)),
                Some(Event::Closed(reason)) => self.on_closed(reason),
                Some(Event::Async(event)) => {
                    tracing::info!(?event, "the target reported something");
                }
                Some(Event::LogoutRequested { cause, within }) => {
                    tracing::warn!(?cause, ?within, "the session is about to be logged out");
                }
                Some(Event::Rejected { reason, .. }) => {
                    tracing::warn!(reason, "the target rejected a PDU");
                }
                Some(
                    Event::TaskManagementDone { .. } | Event::TextDone { .. } | Event::Pong { .. },
                ) => {}
                None => break,
            }
        }
        let tag = self.leftover.borrow_mut().pop_front()?;
        Some((
            tag,
            TaskOutcome::Aborted {
                cause: AbortCause::Requested,
                sent: true,
            },
        ))
    }

    fn is_closed(&self) -> bool {
        self.closed.get() && self.leftover.borrow().is_empty()
    }
}

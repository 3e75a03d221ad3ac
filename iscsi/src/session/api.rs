//! What goes into a session and what comes out.

use std::time::{Duration, Instant};

use berth_iobuf::Payload;
use bytes::Bytes;

use crate::error::Error;
use crate::pdu::{Residual, TaskAttribute};
use crate::scsi::Sense;
use crate::types::Lun;

/// A SCSI command to be carried to the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The user's name for it, returned unchanged in [`Event::TaskDone`]; unique among its commands
    /// that are not done if [`super::Session::abort`] is to find the right one.
    pub tag: u64,
    /// Logical unit.
    pub lun: Lun,
    /// Command descriptor block, zero-padded.
    pub cdb: [u8; 16],
    /// Data that moves with it.
    pub transfer: Transfer,
    /// Queueing attribute; [`TaskAttribute::Simple`] unless there is a reason.
    pub attribute: TaskAttribute,
    /// Sent ahead of the command window, without a CmdSN of its own (RFC 7143 4.2.2.1). A target need
    /// not take more than one of these at a time.
    pub immediate: bool,
    /// When to give up: a queued command is dropped, a running one is aborted. `None`: never.
    pub deadline: Option<Instant>,
}

impl Command {
    /// A command with simple queueing and no deadline.
    #[must_use]
    pub fn new(tag: u64, lun: Lun, cdb: [u8; 16], transfer: Transfer) -> Self {
        Self {
            tag,
            lun,
            cdb,
            transfer,
            attribute: TaskAttribute::Simple,
            immediate: false,
            deadline: None,
        }
    }
}

/// Data phase of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transfer {
    /// No data.
    None,
    /// From the target, up to `len_bytes`.
    #[allow(missing_docs, reason = "named in the line above")]
    Read { len_bytes: u32 },
    /// To the target.
    Write(Payload),
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskOutcome {
    /// The target executed it and says how it went; a CHECK CONDITION is an answer too.
    Completed {
        /// SCSI status (SAM-5 5.3).
        status: u8,
        /// SCSI status qualifier (RFC 7144), 0 if the target sends none.
        status_qualifier: u16,
        /// Sense data, empty if there is none.
        sense: Bytes,
        /// What was read: exactly the bytes received, in order. With GOOD status and no underflow, all
        /// that was asked for.
        data: Payload,
        /// What the target says it moved too little or wanted to move more.
        residual: Residual,
    },
    /// iSCSI response code other than 0: the target failed to deliver the command; status is unknown
    /// (RFC 7143 11.4.3).
    TargetFailure {
        /// The code.
        response: u8,
    },
    /// GOOD status, but bytes moved and residual do not add up to the length asked for. The data is
    /// not handed out.
    DataMismatch {
        /// Length asked for.
        expected_bytes: u32,
        /// Bytes that came or went.
        moved_bytes: u32,
        /// What the target claims.
        residual: Residual,
    },
    /// The target refused the command PDU and did not execute it (RFC 7143 11.17).
    Rejected {
        /// Reason code of the Reject.
        reason: u8,
    },
    /// It was ended before it had an answer, and nothing of it comes later.
    Aborted {
        /// Why.
        cause: AbortCause,
        /// Whether it was sent; then the target may have executed it, wholly or in part.
        sent: bool,
    },
}

/// Why a task was aborted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AbortCause {
    /// It was not done at its deadline.
    Deadline,
    /// [`super::Session::abort`].
    Requested,
    /// A task management function for its LUN or target.
    TaskManagement(TaskManagement),
}

/// Task management functions that a user may ask for (RFC 7143 11.5.1). ABORT TASK is
/// [`super::Session::abort`]; TARGET COLD RESET is left out: it cuts off every initiator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskManagement {
    /// Aborts this session's tasks on the LUN.
    AbortTaskSet,
    /// Ends auto contingent allegiance on the LUN.
    ClearAca,
    /// Aborts all initiators' tasks on the LUN.
    ClearTaskSet,
    /// Resets the LUN, with all initiators' tasks on it.
    LogicalUnitReset,
    /// Resets all LUNs of the target.
    TargetWarmReset,
}

impl TaskManagement {
    pub(super) fn code(self) -> u8 {
        match self {
            Self::AbortTaskSet => 2,
            Self::ClearAca => 3,
            Self::ClearTaskSet => 4,
            Self::LogicalUnitReset => 5,
            Self::TargetWarmReset => 6,
        }
    }

    /// Whether its success ends tasks, and if of one LUN only.
    pub(super) fn ends_tasks(self) -> Option<Scope> {
        match self {
            Self::AbortTaskSet | Self::ClearTaskSet | Self::LogicalUnitReset => {
                Some(Scope::LogicalUnit)
            }
            Self::TargetWarmReset => Some(Scope::Target),
            Self::ClearAca => None,
        }
    }
}

/// What a task management function reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    LogicalUnit,
    Target,
}

/// Answer to a task management request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskManagementOutcome {
    /// Response code of the target (RFC 7143 11.6.1); 0 is "function complete".
    Response(u8),
    /// The request was refused with a Reject of this reason.
    Rejected(u8),
}

impl TaskManagementOutcome {
    /// Whether the function was carried out.
    #[must_use]
    pub fn is_complete(self) -> bool {
        self == Self::Response(0)
    }
}

/// What a session tells its user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A task is over. Each submitted command gets exactly one of these, or is handed back by
    /// [`super::Session::take_unfinished`].
    TaskDone {
        /// The user's name of the command.
        tag: u64,
        /// How it ended.
        outcome: TaskOutcome,
    },
    /// A task management request was answered.
    TaskManagementDone {
        /// The user's name of the request.
        tag: u64,
        /// What was asked.
        function: TaskManagement,
        /// The answer.
        outcome: TaskManagementOutcome,
    },
    /// A text exchange ended.
    TextDone {
        /// The whole answer (key=value pairs, each ended by NUL), or why there is none. The reason code
        /// is that of a Reject.
        answer: Result<Bytes, u8>,
    },
    /// The target reported something outside of any task.
    Async(AsyncEvent),
    /// The session is about to log out because the target asked for it; [`Event::Closed`] follows.
    LogoutRequested {
        /// Why.
        cause: LogoutCause,
        /// Time that the target gives.
        within: Duration,
    },
    /// The target refused a PDU that is no command; nothing needs to be done.
    Rejected {
        /// Reason code (RFC 7143 11.17.1).
        reason: u8,
        /// The refused header.
        header: Bytes,
    },
    /// The target answered a ping.
    Pong {
        /// Time from queueing the ping to its answer.
        round_trip: Duration,
    },
    /// The last event: the connection is of no use any more.
    Closed(CloseReason),
}

/// An asynchronous message that does not end the session (RFC 7143 11.9.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AsyncEvent {
    /// Sense data for a LUN, to be treated like a unit attention.
    Scsi {
        /// The LUN.
        lun: Lun,
        /// Sense data.
        sense: Bytes,
    },
    /// All tasks of a LUN are being terminated (FastAbort, which is never offered).
    TaskTermination {
        /// The LUN.
        lun: Lun,
    },
    /// Vendor-specific or unknown; acknowledged and otherwise ignored.
    Other {
        /// Event code.
        event: u8,
        /// Vendor code.
        vendor_code: u8,
        /// The three parameters.
        parameters: [u16; 3],
    },
}

impl AsyncEvent {
    /// The LUN and the parsed sense of a SCSI event: to be treated like a unit attention of that LUN (RFC 7143
    /// 11.9.1, event 0), whatever its sense key says. `None` for other events, and for sense data that
    /// cannot be understood.
    #[must_use]
    pub fn unit_attention(&self) -> Option<(Lun, Sense)> {
        match self {
            Self::Scsi { lun, sense } => Some((*lun, Sense::parse(sense).ok()?)),
            Self::TaskTermination { .. } | Self::Other { .. } => None,
        }
    }
}

/// Who wants a logout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogoutCause {
    /// The user.
    User,
    /// The target (asynchronous event 1).
    Target,
    /// The target wants to negotiate keys (asynchronous event 4); a new login does that.
    Negotiation,
}

/// Why a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CloseReason {
    /// After a Logout.
    LoggedOut {
        /// Who wanted it.
        cause: LogoutCause,
        /// The target's response code; `None` if it closed the connection or stayed silent instead.
        response: Option<u8>,
        /// Least time before the next login, in seconds.
        time2wait_s: u16,
    },
    /// The target announced that it drops the connection or the session (asynchronous events 2, 3).
    DroppedByTarget {
        /// Least time before the next login, in seconds.
        time2wait_s: u16,
        /// Time for which the target keeps the tasks (ERL 2), in seconds.
        time2retain_s: u16,
    },
    /// Something went wrong.
    Failed(Error),
}

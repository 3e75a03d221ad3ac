//! What belongs to one connection of a session: its numbers, limits, waiting control PDUs and state.
//!
//! ```text
//!                    logout()                       last task done, or deadline
//! LoggedIn ─────────────────────────> Draining ───────────────────────────────> InLogout
//!    │   async 1, 4 (target's wish)      │                                          │
//!    └──── async 2, 3 · error · lost ────┴───────────────> Closed <─────────────────┘
//!                                                      Logout Response · lost · deadline
//! ```
//!
//! `Draining` is LOGOUT_REQUESTED of RFC 7143 8.1.2 when the target asked; FREE, XPT_WAIT and IN_LOGIN are
//! before a session exists, CLEANUP_WAIT is after `Closed` and belongs to whoever reconnects.

use std::collections::VecDeque;
use std::time::Instant;

use super::api::LogoutCause;
use super::table::ManagementRequest;
use crate::error::{Error, Misbehaviour};
use crate::pdu::{Decoder, Digests};
use crate::types::{Cid, Itt, Lun, StatSn, Ttt};

/// State of the connection; see the drawing above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    LoggedIn,
    Draining {
        cause: LogoutCause,
        until: Instant,
    },
    InLogout {
        cause: LogoutCause,
        /// Set when the Logout was queued.
        until: Instant,
    },
    Closed,
}

impl Phase {
    /// When the state ends on its own.
    pub(super) fn until(self) -> Option<Instant> {
        match self {
            Self::Draining { until, .. } | Self::InLogout { until, .. } => Some(until),
            Self::LoggedIn | Self::Closed => None,
        }
    }
}

/// A PDU that goes ahead of commands and data.
#[derive(Debug)]
pub(super) enum Control {
    /// Answer to a ping of the target.
    PingReply {
        lun: Lun,
        ttt: Ttt,
    },
    /// NOP-Out that only acknowledges, naming a LUN (RFC 7143 11.9.1, event 5).
    Acknowledge {
        lun: Lun,
    },
    Ping {
        itt: Itt,
    },
    TaskManagement {
        itt: Itt,
    },
    Text {
        itt: Itt,
        ttt: Ttt,
        lun: Lun,
        data: Vec<u8>,
    },
    Logout {
        itt: Itt,
    },
}

/// What a StatSN says about its PDU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StatSnCheck {
    Next,
    /// Seen before; nothing of the PDU counts.
    Duplicate,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) cid: Cid,
    pub(super) phase: Phase,
    pub(super) decoder: Decoder,
    pub(super) digests: Digests,
    /// StatSN of the next response: acknowledges all before it.
    pub(super) exp_stat_sn: StatSn,
    /// Longest data segment that we send: the target's limit and ours.
    pub(super) data_out_max_bytes: u32,
    /// Longest data segment that the target takes.
    pub(super) target_recv_max_bytes: u32,
    pub(super) control: VecDeque<Control>,
    /// Task management requests that wait for their turn.
    pub(super) management: VecDeque<ManagementRequest>,
    pub(super) management_in_flight: usize,
    /// When bytes came last.
    pub(super) last_received: Instant,
    /// The ping that was not answered yet, and when it was queued.
    pub(super) ping: Option<(Itt, Instant)>,
    pub(super) text: Option<Itt>,
}

impl Connection {
    /// Takes in the StatSN of a PDU that consumes one (RFC 7143 4.2.2.2). A gap means that a response
    /// is lost, and at ERL 0 the session with it.
    pub(super) fn take_stat_sn(&mut self, got: StatSn) -> Result<StatSnCheck, Error> {
        if got == self.exp_stat_sn {
            self.exp_stat_sn = got.next();
            return Ok(StatSnCheck::Next);
        }
        if got.is_before(self.exp_stat_sn) {
            return Ok(StatSnCheck::Duplicate);
        }
        Err(Error::TargetMisbehaved(Misbehaviour::StatSnGap {
            expected: self.exp_stat_sn,
            got,
        }))
    }
}

//! A session of the target role: who it is with, and its command window.
//!
//! A session has one connection: MaxConnections is negotiated down to 1 and ErrorRecoveryLevel to 0, so a
//! session ends with its connection. What several connections would share lives here and not in the
//! connection: the identity, the nexus and the CmdSN order.

use std::sync::Arc;

use super::connection::ConnectionId;
use super::executor::Nexus;
use super::window::CommandWindow;
use crate::pdu::{Bhs, Pdu};
use crate::types::{Cid, Tsih};

/// Normal or discovery (RFC 7143 4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionKind {
    /// SCSI commands to one target.
    Normal,
    /// SendTargets and logout only.
    Discovery,
}

/// A command that came before its turn.
#[derive(Debug)]
pub(super) enum EarlyCommand {
    /// A SCSI command, known to its connection as this task.
    Task(usize),
    /// Another request.
    Pdu(Box<(Pdu, Bhs)>),
    /// A command that was aborted before its turn.
    Plug,
}

/// One session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) tsih: Tsih,
    pub(super) cid: Cid,
    pub(super) kind: SessionKind,
    /// Target of a normal session.
    pub(super) target: Option<usize>,
    pub(super) nexus: Arc<Nexus>,
    pub(super) window: CommandWindow<EarlyCommand>,
    pub(super) connection: ConnectionId,
}

/// A session as operators and tests see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionInfo {
    /// Its connection.
    pub connection: ConnectionId,
    /// Session handle.
    pub tsih: Tsih,
    /// Connection ID that the initiator chose.
    pub cid: Cid,
    /// Normal or discovery.
    pub kind: SessionKind,
    /// Initiator, ISID, target and portal group.
    pub nexus: Arc<Nexus>,
}

//! Codes of login responses and rejects, and what can time out, with what each costs.

use std::fmt;

use super::Recovery;
use crate::types::{Itt, Lun};

/// Status-Class and Status-Detail of a Login Response (RFC 7143 11.13.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LoginStatus {
    /// 0 success, 1 redirection, 2 initiator error, 3 target error.
    pub class: u8,
    /// Meaning depends on the class.
    pub detail: u8,
}

impl LoginStatus {
    /// The login goes on.
    pub const SUCCESS: Self = Self::new(0, 0);
    /// Follow TargetAddress this time.
    pub const MOVED_TEMPORARILY: Self = Self::new(1, 1);
    /// Follow TargetAddress from now on.
    pub const MOVED_PERMANENTLY: Self = Self::new(1, 2);
    /// Miscellaneous error of the initiator.
    pub const INITIATOR_ERROR: Self = Self::new(2, 0);
    /// Wrong user or secret.
    pub const AUTHENTICATION_FAILURE: Self = Self::new(2, 1);
    /// The initiator may not use this target.
    pub const AUTHORIZATION_FAILURE: Self = Self::new(2, 2);
    /// No such target here; also seen while a target restarts.
    pub const NOT_FOUND: Self = Self::new(2, 3);
    /// The target was removed for good.
    pub const TARGET_REMOVED: Self = Self::new(2, 4);
    /// No common version.
    pub const UNSUPPORTED_VERSION: Self = Self::new(2, 5);
    /// Too many connections on this session.
    pub const TOO_MANY_CONNECTIONS: Self = Self::new(2, 6);
    /// A key such as InitiatorName is missing.
    pub const MISSING_PARAMETER: Self = Self::new(2, 7);
    /// This portal cannot carry a connection of that session.
    pub const CANNOT_INCLUDE_IN_SESSION: Self = Self::new(2, 8);
    /// No such SessionType.
    pub const SESSION_TYPE_NOT_SUPPORTED: Self = Self::new(2, 9);
    /// The TSIH is not known.
    pub const SESSION_DOES_NOT_EXIST: Self = Self::new(2, 10);
    /// Not a login PDU, or not now.
    pub const INVALID_DURING_LOGIN: Self = Self::new(2, 11);
    /// Miscellaneous error of the target.
    pub const TARGET_ERROR: Self = Self::new(3, 0);
    /// The service is down at present.
    pub const SERVICE_UNAVAILABLE: Self = Self::new(3, 1);
    /// No resources for one more session.
    pub const OUT_OF_RESOURCES: Self = Self::new(3, 2);

    /// A status from its two bytes.
    #[must_use]
    pub const fn new(class: u8, detail: u8) -> Self {
        Self { class, detail }
    }

    /// Whether the login goes on.
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.class == 0
    }

    /// Whether the target sends us elsewhere.
    #[must_use]
    pub const fn is_redirect(self) -> bool {
        self.class == 1
    }

    pub(super) const fn recovery(self) -> Recovery {
        match (self.class, self.detail) {
            // Not found is what a restarting target says; a stale TSIH asks for a new session.
            (0 | 1 | 3, _) | (2, 3 | 6 | 8 | 10) => Recovery::Session,
            _ => Recovery::Fatal,
        }
    }
}

impl fmt::Display for LoginStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match *self {
            Self { class: 0, .. } => "success",
            Self::MOVED_TEMPORARILY => "target moved temporarily",
            Self::MOVED_PERMANENTLY => "target moved permanently",
            Self::AUTHENTICATION_FAILURE => "authentication failure (user or secret is wrong)",
            Self::AUTHORIZATION_FAILURE => {
                "authorization failure (the target does not admit this initiator name)"
            }
            Self::NOT_FOUND => "target not found",
            Self::TARGET_REMOVED => "target removed",
            Self::UNSUPPORTED_VERSION => "unsupported version",
            Self::TOO_MANY_CONNECTIONS => "too many connections",
            Self::MISSING_PARAMETER => "missing parameter",
            Self::CANNOT_INCLUDE_IN_SESSION => "cannot include in session",
            Self::SESSION_TYPE_NOT_SUPPORTED => "session type not supported",
            Self::SESSION_DOES_NOT_EXIST => "session does not exist",
            Self::INVALID_DURING_LOGIN => "invalid during login",
            Self::SERVICE_UNAVAILABLE => "service unavailable",
            Self::OUT_OF_RESOURCES => "target out of resources",
            Self { class: 1, .. } => "redirection of an unknown kind",
            Self { class: 2, .. } => "initiator error",
            Self { class: 3, .. } => "target error",
            _ => "unknown status",
        };
        write!(f, "{text} ({:02x}{:02x})", self.class, self.detail)
    }
}

/// Reason of a Reject PDU (RFC 7143 11.17.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RejectReason(pub u8);

impl RejectReason {
    /// The data digest of the refused PDU did not match; it may be sent again.
    pub const DATA_DIGEST_ERROR: Self = Self(0x02);
    /// The SNACK was refused.
    pub const SNACK_REJECT: Self = Self(0x03);
    /// Protocol error.
    pub const PROTOCOL_ERROR: Self = Self(0x04);
    /// Command not supported.
    pub const COMMAND_NOT_SUPPORTED: Self = Self(0x05);
    /// Too many immediate commands; may be sent again.
    pub const IMMEDIATE_COMMAND: Self = Self(0x06);
    /// The task is in progress already.
    pub const TASK_IN_PROGRESS: Self = Self(0x07);
    /// Invalid DataACK.
    pub const INVALID_DATA_ACK: Self = Self(0x08);
    /// A field of the PDU is invalid.
    pub const INVALID_PDU_FIELD: Self = Self(0x09);
    /// Out of resources for a long operation; may be sent again.
    pub const LONG_OPERATION: Self = Self(0x0a);
    /// Deprecated: negotiation failure.
    pub const NEGOTIATION_RESET: Self = Self(0x0b);
    /// The target waits for a logout and takes nothing new.
    pub const WAITING_FOR_LOGOUT: Self = Self(0x0c);

    pub(super) const fn recovery(self) -> Recovery {
        match self {
            Self::DATA_DIGEST_ERROR
            | Self::SNACK_REJECT
            | Self::COMMAND_NOT_SUPPORTED
            | Self::IMMEDIATE_COMMAND
            | Self::INVALID_DATA_ACK
            | Self::LONG_OPERATION => Recovery::Task,
            Self::WAITING_FOR_LOGOUT => Recovery::Connection,
            _ => Recovery::Session,
        }
    }
}

impl fmt::Display for RejectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match *self {
            Self::DATA_DIGEST_ERROR => "data digest error",
            Self::SNACK_REJECT => "SNACK refused",
            Self::PROTOCOL_ERROR => "protocol error",
            Self::COMMAND_NOT_SUPPORTED => "command not supported",
            Self::IMMEDIATE_COMMAND => "too many immediate commands",
            Self::TASK_IN_PROGRESS => "task in progress",
            Self::INVALID_DATA_ACK => "invalid data acknowledgement",
            Self::INVALID_PDU_FIELD => "invalid field in the PDU",
            Self::LONG_OPERATION => "out of resources",
            Self::NEGOTIATION_RESET => "negotiation failed",
            Self::WAITING_FOR_LOGOUT => "waiting for logout",
            _ => "unknown reason",
        };
        write!(f, "{text} ({:#04x})", self.0)
    }
}

/// What did not come in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Waiting {
    /// The TCP connection.
    Connect,
    /// The end of the login.
    Login,
    /// The answer to a text request.
    Text,
    /// The answer to a ping, or any other sign of life.
    Ping,
    /// The end of a command.
    Command(Itt),
    /// The answer to a task management request.
    TaskManagement,
    /// The answer to ABORT TASK for this task.
    Abort(Itt),
    /// The answer to LOGICAL UNIT RESET, which followed on an abort that failed.
    LogicalUnitReset(Lun),
    /// The answer to a logout.
    Logout,
    /// A session, while reconnecting.
    Reconnect,
}

impl Waiting {
    pub(super) const fn recovery(self) -> Recovery {
        match self {
            // The escalation starts with ABORT TASK.
            Self::Command(_) => Recovery::Task,
            Self::TaskManagement | Self::Abort(_) | Self::LogicalUnitReset(_) => Recovery::Session,
            Self::Connect | Self::Login | Self::Text | Self::Ping | Self::Logout => {
                Recovery::Connection
            }
            Self::Reconnect => Recovery::Fatal,
        }
    }
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect => f.write_str("the TCP connection"),
            Self::Login => f.write_str("the end of the login"),
            Self::Text => f.write_str("the answer to a text request"),
            Self::Ping => f.write_str("a sign of life"),
            Self::Command(itt) => write!(f, "the end of task {:#010x}", itt.0),
            Self::TaskManagement => f.write_str("the answer to a task management request"),
            Self::Abort(itt) => write!(f, "the answer to ABORT TASK for task {:#010x}", itt.0),
            Self::LogicalUnitReset(lun) => {
                write!(f, "the answer to LOGICAL UNIT RESET for LUN {lun}")
            }
            Self::Logout => f.write_str("the answer to a logout"),
            Self::Reconnect => f.write_str("the session to come back"),
        }
    }
}

//! What can go wrong in a session, sorted by who is at fault, and how much has to be dropped.
//!
//! A SCSI status that is not GOOD is an answer, not an [`Error`]: it travels as data.

use std::borrow::Cow;
use std::fmt;
use std::io;

use crate::name::NameError;
use crate::types::{Itt, StatSn};

/// A failure, by fault.
///
/// Act on [`Error::recovery`] and on the variant, never on the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Bytes that cannot be what they claim to be: a format error (RFC 7143 7.6) or a PDU beyond our limits.
    #[error("malformed {what}: {problem}")]
    Malformed {
        /// The PDU or part of it.
        what: &'static str,
        /// What is wrong, and what would be right.
        problem: Cow<'static, str>,
    },
    /// The peer sent well-formed PDUs that break the protocol (RFC 7143 7.7, 7.9).
    #[error("the target broke the protocol: {0}")]
    TargetMisbehaved(Misbehaviour),
    /// The target cannot or will not do what we insist on.
    #[error("the target does not fit: {0}")]
    TargetIncompatible(Incompatibility),
    /// The target answered the login with a status other than success (RFC 7143 11.13.5).
    #[error("login refused: {0}")]
    LoginRejected(LoginStatus),
    /// A CRC32C that does not match what arrived.
    #[error("{0}")]
    Digest(DigestError),
    /// The target sent a Reject PDU (RFC 7143 11.17).
    #[error("the target rejected a PDU: {0}")]
    Rejected(RejectReason),
    /// The connection is gone.
    #[error("connection lost: {0}")]
    Lost(io::ErrorKind),
    /// Nothing came in time.
    #[error("timed out waiting for {0}")]
    TimedOut(Waiting),
    /// Our own side asked for something impossible.
    #[error("{0}")]
    Misuse(Misuse),
}

/// The smallest thing that has to be dropped after an [`Error`], in rising order.
///
/// At error recovery level 0 a dropped connection takes its session with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Recovery {
    /// One task or request ends; the session goes on.
    Task,
    /// The connection is closed; connecting again may help.
    Connection,
    /// All connections of the session are closed; a new login may help.
    Session,
    /// Trying again with the same settings cannot help.
    Fatal,
}

impl Error {
    /// A [`Error::Malformed`].
    #[cold]
    pub fn malformed(what: &'static str, problem: impl Into<Cow<'static, str>>) -> Self {
        Self::Malformed {
            what,
            problem: problem.into(),
        }
    }

    /// What has to be dropped.
    #[must_use]
    pub const fn recovery(&self) -> Recovery {
        match self {
            // RFC 7143 7.6 and 7.7: format and protocol errors end all connections of the session.
            Self::Malformed { .. } | Self::TargetMisbehaved(_) => Recovery::Session,
            Self::TargetIncompatible(_) => Recovery::Fatal,
            Self::LoginRejected(status) => status.recovery(),
            Self::Digest(_) | Self::Lost(_) => Recovery::Connection,
            Self::Rejected(reason) => reason.recovery(),
            Self::TimedOut(waiting) => waiting.recovery(),
            Self::Misuse(misuse) => misuse.recovery(),
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Lost(error.kind())
    }
}

/// How a peer broke the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misbehaviour {
    /// A PDU that has no place in the present state.
    #[error("opcode {opcode:#04x} while {state}")]
    UnexpectedPdu {
        /// Opcode of the PDU.
        opcode: u8,
        /// What the connection was doing.
        state: &'static str,
    },
    /// A PDU for a task that does not exist, or not any more.
    #[error("opcode {opcode:#04x} for unknown task tag {:#010x}", itt.0)]
    UnknownTask {
        /// Opcode of the PDU.
        opcode: u8,
        /// The tag.
        itt: Itt,
    },
    /// A PDU that does not fit its task, such as Data-In for a write.
    #[error("opcode {opcode:#04x} does not fit task {:#010x}", itt.0)]
    WrongTask {
        /// Opcode of the PDU.
        opcode: u8,
        /// The tag.
        itt: Itt,
    },
    /// A StatSN other than the next one (RFC 7143 4.2.2.2): a response is lost.
    #[error("StatSN {:#x}, expected {:#x}", got.0, expected.0)]
    StatSnGap {
        /// The next StatSN.
        expected: StatSn,
        /// The one that came.
        got: StatSn,
    },
    /// A DataSN other than the next one (RFC 7143 4.2.2.4).
    #[error("DataSN {got} for task {:#010x}, expected {expected}", itt.0)]
    DataSnGap {
        /// The task.
        itt: Itt,
        /// The next DataSN.
        expected: u32,
        /// The one that came.
        got: u32,
    },
    /// An R2TSN other than the next one (RFC 7143 4.2.2.4).
    #[error("R2TSN {got} for task {:#010x}, expected {expected}", itt.0)]
    R2tSnGap {
        /// The task.
        itt: Itt,
        /// The next R2TSN.
        expected: u32,
        /// The one that came.
        got: u32,
    },
    /// Data outside of the command's buffer or not next in order (RFC 7143 11.7.5).
    #[error(
        "data at {offset_bytes}+{len_bytes} for task {:#010x}, expected {expected_offset_bytes} \
         within {expected_len_bytes} bytes",
        itt.0
    )]
    DataRange {
        /// The task.
        itt: Itt,
        /// Where the data starts.
        offset_bytes: u32,
        /// How long it is.
        len_bytes: u32,
        /// Where it should have started.
        expected_offset_bytes: u32,
        /// Length of the whole transfer.
        expected_len_bytes: u32,
    },
    /// An R2T for an impossible range or beyond what was negotiated (RFC 7143 11.8).
    #[error("R2T for {offset_bytes}+{len_bytes} of task {:#010x}: {problem}", itt.0)]
    BadR2t {
        /// The task.
        itt: Itt,
        /// Where the wanted data starts.
        offset_bytes: u32,
        /// How much is wanted.
        len_bytes: u32,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// GOOD status although bytes are missing and no residual says so (RFC 7143 11.4.5).
    #[error(
        "{received_bytes} bytes and residual {residual_bytes} for task {:#010x}, expected {expected_len_bytes}",
        itt.0
    )]
    ShortData {
        /// The task.
        itt: Itt,
        /// Data received.
        received_bytes: u32,
        /// Residual underflow reported.
        residual_bytes: u32,
        /// Expected data transfer length.
        expected_len_bytes: u32,
    },
    /// A login or text exchange out of order: wrong stage, bit, tag or number.
    #[error("{0}")]
    Exchange(Cow<'static, str>),
    /// A text key with an answer or offer that its rule forbids (RFC 7143 6.2, 13).
    #[error("key {key}: {problem}")]
    Key {
        /// The key.
        key: Cow<'static, str>,
        /// What is wrong, and what would be right.
        problem: Cow<'static, str>,
    },
    /// A limit of ours that a peer with good intentions does not reach.
    #[error("more than {limit} {what}")]
    TooMany {
        /// What there is too much of, as a plural.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
}

/// What we insist on and the target does not offer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Incompatibility {
    /// No common protocol version; only 0 exists (RFC 7143 11.12.4).
    #[error("it speaks version {active:#04x} only, not 0")]
    Version {
        /// Version-active of the target.
        active: u8,
    },
    /// Authentication was required and the target wants none, or another kind.
    #[error("authentication: {0}")]
    Authentication(Cow<'static, str>),
    /// The target did not prove who it is.
    #[error("the target did not authenticate itself: {0}")]
    TargetNotAuthenticated(Cow<'static, str>),
    /// A digest was required and refused.
    #[error("{key} was required and the target answered {answer}")]
    Digest {
        /// `HeaderDigest` or `DataDigest`.
        key: &'static str,
        /// The answer.
        answer: String,
    },
    /// Another key on which we cannot give way.
    #[error("key {key}: {problem}")]
    Key {
        /// The key.
        key: Cow<'static, str>,
        /// What is wrong, and what would be right.
        problem: Cow<'static, str>,
    },
    /// Too many redirects, or a circle of them (RFC 7143 11.13.5, class 1).
    #[error("login was redirected {hops} times, the last time to {last}")]
    RedirectLoop {
        /// Redirects followed.
        hops: u32,
        /// The last address.
        last: String,
    },
}

/// Which digest failed (RFC 7143 7.8), with what was expected and found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// The header cannot be trusted, and with it the framing: the connection is over.
    #[error("header digest {got:#010x}, computed {computed:#010x}")]
    Header {
        /// The digest that arrived.
        got: u32,
        /// The digest of what arrived.
        computed: u32,
    },
    /// The header is good and the framing holds; only this PDU's data is bad.
    #[error("data digest {got:#010x}, computed {computed:#010x}, opcode {opcode:#04x}, task {:#010x}", itt.0)]
    Data {
        /// The digest that arrived.
        got: u32,
        /// The digest of what arrived.
        computed: u32,
        /// Opcode of the PDU.
        opcode: u8,
        /// Its task tag.
        itt: Itt,
    },
}

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

    const fn recovery(self) -> Recovery {
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

    const fn recovery(self) -> Recovery {
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
    /// The answer to a logout.
    Logout,
    /// A session, while reconnecting.
    Reconnect,
}

impl Waiting {
    const fn recovery(self) -> Recovery {
        match self {
            // The escalation starts with ABORT TASK.
            Self::Command(_) => Recovery::Task,
            Self::TaskManagement => Recovery::Session,
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
            Self::Logout => f.write_str("the answer to a logout"),
            Self::Reconnect => f.write_str("the session to come back"),
        }
    }
}

/// What our own side asked for and cannot have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misuse {
    /// The session is closed, closing, or was never open.
    #[error("the session is closed")]
    Closed,
    /// The bounded queue is full; wait for a task to end.
    #[error("the queue is full ({limit} requests)")]
    QueueFull {
        /// Its bound.
        limit: usize,
    },
    /// A command whose parts contradict each other, or that no iSCSI PDU can carry.
    #[error("impossible command: {0}")]
    Command(Cow<'static, str>),
    /// A setting that cannot work.
    #[error("setting {setting}: {problem}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// What is wrong, and what would be right.
        problem: Cow<'static, str>,
    },
    /// A name or address that is not one.
    #[error(transparent)]
    Name(#[from] NameError),
}

impl Misuse {
    const fn recovery(&self) -> Recovery {
        match self {
            Self::QueueFull { .. } | Self::Command(_) => Recovery::Task,
            Self::Closed | Self::Setting { .. } | Self::Name(_) => Recovery::Fatal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn format_and_protocol_errors_end_the_session() {
        // RFC 7143 7.6, 7.7
        let malformed = Error::malformed("R2T", "transfer tag is reserved");
        assert_eq!(malformed.recovery(), Recovery::Session);
        assert_eq!(
            malformed.to_string(),
            "malformed R2T: transfer tag is reserved"
        );
        let gap = Error::TargetMisbehaved(Misbehaviour::StatSnGap {
            expected: StatSn(4),
            got: StatSn(9),
        });
        assert_eq!(gap.recovery(), Recovery::Session);
        assert_eq!(
            gap.to_string(),
            "the target broke the protocol: StatSN 0x9, expected 0x4"
        );
    }

    #[test]
    fn login_status_says_whether_to_come_back() {
        // RFC 7143 11.13.5: class 2 is not to be retried as it is, class 3 may be.
        for class in 0..=255 {
            for detail in 0..=255 {
                let status = LoginStatus::new(class, detail);
                let expected = match (class, detail) {
                    (0 | 1 | 3, _) => Recovery::Session,
                    (2, 3 | 6 | 8 | 10) => Recovery::Session,
                    _ => Recovery::Fatal,
                };
                assert_eq!(
                    Error::LoginRejected(status).recovery(),
                    expected,
                    "{status}"
                );
                assert!(
                    status
                        .to_string()
                        .ends_with(&format!("({class:02x}{detail:02x})"))
                );
            }
        }
        assert_eq!(
            Error::LoginRejected(LoginStatus::AUTHENTICATION_FAILURE).recovery(),
            Recovery::Fatal
        );
        assert_eq!(
            Error::LoginRejected(LoginStatus::SERVICE_UNAVAILABLE).recovery(),
            Recovery::Session
        );
    }

    #[test]
    fn reject_reasons_that_may_be_resent_end_a_task_only() {
        // RFC 7143 11.17.1: 02, 06 and 0a may be sent again.
        for reason in [0x02, 0x06, 0x0a] {
            assert_eq!(
                Error::Rejected(RejectReason(reason)).recovery(),
                Recovery::Task
            );
        }
        for reason in [0x04, 0x07, 0x09, 0x0b, 0x01, 0xff] {
            assert_eq!(
                Error::Rejected(RejectReason(reason)).recovery(),
                Recovery::Session
            );
        }
        assert_eq!(
            Error::Rejected(RejectReason::WAITING_FOR_LOGOUT).recovery(),
            Recovery::Connection
        );
        assert_eq!(RejectReason(0x77).to_string(), "unknown reason (0x77)");
    }

    #[test]
    fn a_bad_digest_or_a_cut_ends_the_connection() {
        // RFC 7143 7.8
        let header = Error::Digest(DigestError::Header {
            got: 1,
            computed: 2,
        });
        assert_eq!(header.recovery(), Recovery::Connection);
        assert_eq!(
            header.to_string(),
            "header digest 0x00000001, computed 0x00000002"
        );
        let lost = Error::from(io::Error::from(io::ErrorKind::ConnectionReset));
        assert_eq!(lost, Error::Lost(io::ErrorKind::ConnectionReset));
        assert_eq!(lost.recovery(), Recovery::Connection);
    }

    #[test]
    fn timeouts_escalate() {
        assert_eq!(
            Error::TimedOut(Waiting::Command(Itt(7))).recovery(),
            Recovery::Task
        );
        assert_eq!(
            Error::TimedOut(Waiting::TaskManagement).recovery(),
            Recovery::Session
        );
        for waiting in [
            Waiting::Connect,
            Waiting::Login,
            Waiting::Text,
            Waiting::Ping,
            Waiting::Logout,
        ] {
            assert_eq!(Error::TimedOut(waiting).recovery(), Recovery::Connection);
        }
        assert_eq!(
            Error::TimedOut(Waiting::Command(Itt(7))).to_string(),
            "timed out waiting for the end of task 0x00000007"
        );
    }

    #[test]
    fn a_full_queue_costs_one_request_and_a_bad_setting_everything() {
        let full = Error::Misuse(Misuse::QueueFull { limit: 128 });
        assert_eq!(full.recovery(), Recovery::Task);
        let setting = Error::Misuse(Misuse::Setting {
            setting: "chap secret",
            problem: "11 bytes; at least 12".into(),
        });
        assert_eq!(setting.recovery(), Recovery::Fatal);
        assert_eq!(
            Error::TargetIncompatible(Incompatibility::Version { active: 1 }).recovery(),
            Recovery::Fatal
        );
    }

    #[test]
    fn recovery_is_ordered_by_what_is_lost() {
        assert!(Recovery::Task < Recovery::Connection);
        assert!(Recovery::Connection < Recovery::Session);
        assert!(Recovery::Session < Recovery::Fatal);
    }
}

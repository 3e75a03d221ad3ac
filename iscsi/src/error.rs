//! What can go wrong in a session, sorted by who is at fault, and how much has to be dropped.
//!
//! A SCSI status that is not GOOD is an answer, not an [`Error`]: it travels as data.

mod status;

use std::borrow::Cow;
use std::io;

use crate::name::NameError;
use crate::types::{Itt, StatSn};

pub use status::{LoginStatus, RejectReason, Waiting};

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
mod tests;

//! Why a call to a fabric failed, and what the caller of the API gets of it.

use std::time::Duration;

use berth_api::{Code, Error};

/// Longest text of a fabric that is passed on, in characters.
const TEXT_LEN_MAX: usize = 300;

/// Why a call to a fabric failed. Texts of the fabric are cut and cleaned; none holds a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FabricError {
    /// It could not be reached, or failed, as often as it was tried.
    #[error("the fabric does not answer: {what}")]
    Unavailable {
        /// What happened last.
        what: String,
    },
    /// It failed so often lately that nothing is sent to it for a while.
    #[error("the fabric failed {failures} times in a row; it is tried again in {} s", retry_in.as_secs().max(1))]
    Resting {
        /// Failures in a row.
        failures: u32,
        /// When it is tried again.
        retry_in: Duration,
    },
    /// The operation's time is over.
    #[error("{}", deadline_text(last.as_deref()))]
    Deadline {
        /// What went wrong on the way, if anything did.
        last: Option<String>,
    },
    /// It does not accept our credentials.
    #[error(
        "the fabric does not accept user {user:?}: {message}; see fabric.user and fabric.password_file"
    )]
    LoginRefused {
        /// Who logged in.
        user: String,
        /// What it said.
        message: String,
    },
    /// Its certificate is not one that is trusted.
    #[error("the certificate of the fabric is not trusted: {message}")]
    Certificate {
        /// Why, and what would be right.
        message: String,
    },
    /// It answered something that cannot be meant.
    #[error("the fabric answers {what} with something that is not understood: {detail}")]
    Malformed {
        /// To what.
        what: String,
        /// What is wrong with the answer.
        detail: String,
    },
    /// It refused.
    #[error("the fabric refuses: {message} ({name}, status {status})")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Its name for the error, as `InvalidRequestError`.
        name: String,
        /// Its number for the error.
        code: Option<i64>,
        /// What it said.
        message: String,
    },
    /// There is no such thing.
    #[error("there is no {what}")]
    NotFound {
        /// What.
        what: String,
    },
    /// The name is taken by something else.
    #[error("{0}")]
    Conflict(String),
    /// Somebody uses it.
    #[error("{detail}")]
    InUse {
        /// What is in use, and what to do.
        detail: String,
        /// By whom.
        holder: Option<String>,
    },
    /// Another initiator holds what is to be held alone.
    #[error("{detail}")]
    HeldElsewhere {
        /// Who holds it, and what to do.
        detail: String,
        /// By whom.
        holder: Option<String>,
    },
    /// The initiator is not admitted, and is not to be.
    #[error("{0}")]
    NotAdmitted(String),
    /// A number is out of the fabric's range.
    #[error("{field}: {detail}")]
    OutOfRange {
        /// Field of the request.
        field: &'static str,
        /// What is wrong and what would be right.
        detail: String,
    },
    /// The request cannot be meant.
    #[error("{field}: {detail}")]
    Invalid {
        /// Field of the request.
        field: &'static str,
        /// What is wrong and what would be right.
        detail: String,
    },
    /// This fabric cannot do it.
    #[error("{0}")]
    Unsupported(String),
    /// The fabric says that it failed with the volume.
    #[error("{0}")]
    Failed(String),
}

fn deadline_text(last: Option<&str>) -> String {
    let hint = "see fabric.call_timeout";
    match last {
        Some(last) => format!("the fabric did not get it done in time ({hint}): {last}"),
        None => format!("the fabric did not answer in time ({hint})"),
    }
}

impl FabricError {
    /// Whether the fabric says that there is no such thing.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(
            self,
            Self::NotFound { .. } | Self::Refused { status: 404, .. }
        )
    }

    /// Whether the fabric says that it exists already.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { status: 409, .. })
    }

    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Unavailable { .. }
            | Self::Resting { .. }
            | Self::LoginRefused { .. }
            | Self::Certificate { .. }
            | Self::Malformed { .. }
            | Self::Failed(_) => Code::FabricUnavailable,
            Self::Deadline { .. } => Code::Deadline,
            Self::NotFound { .. } => Code::NotFound,
            Self::Conflict(_) => Code::ConflictIncompatible,
            Self::InUse { .. } => Code::InUse,
            Self::HeldElsewhere { .. } => Code::AttachedElsewhere,
            Self::NotAdmitted(_) => Code::AccessDenied,
            Self::OutOfRange { .. } => Code::OutOfRange,
            Self::Invalid { .. } => Code::InvalidArgument,
            Self::Unsupported(_) => Code::NotImplemented,
            Self::Refused { status, .. } => match status {
                403 => Code::Forbidden,
                404 => Code::NotFound,
                409 => Code::ConflictIncompatible,
                400..=499 => Code::InvalidArgument,
                _ => Code::FabricUnavailable,
            },
        }
    }
}

impl From<FabricError> for Error {
    fn from(error: FabricError) -> Self {
        let mut problem = Self::new(error.code(), error.to_string());
        match &error {
            FabricError::OutOfRange { field, .. } | FabricError::Invalid { field, .. } => {
                problem = problem.with_field(*field);
            }
            FabricError::InUse {
                holder: Some(holder),
                ..
            }
            | FabricError::HeldElsewhere {
                holder: Some(holder),
                ..
            } => problem = problem.with_holder(holder.clone()),
            _ => {}
        }
        problem.with_cause(error)
    }
}

/// A text of the fabric, for errors and logs: one line, of bounded length.
pub(super) fn text_of(text: &str) -> String {
    let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut short: String = clean.take(TEXT_LEN_MAX + 1).collect();
    if short.chars().count() > TEXT_LEN_MAX {
        short.pop();
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_has_its_code() {
        let refused = |status| FabricError::Refused {
            status,
            name: "X".into(),
            code: None,
            message: "no".into(),
        };
        for (error, code) in [
            (refused(400), Code::InvalidArgument),
            (refused(403), Code::Forbidden),
            (refused(404), Code::NotFound),
            (refused(409), Code::ConflictIncompatible),
            (refused(422), Code::InvalidArgument),
            (refused(500), Code::FabricUnavailable),
            (FabricError::Deadline { last: None }, Code::Deadline),
            (
                FabricError::Unavailable { what: "x".into() },
                Code::FabricUnavailable,
            ),
        ] {
            assert_eq!(Error::from(error.clone()).code(), code, "{error}");
        }
    }

    #[test]
    fn texts_of_the_fabric_are_cut_to_one_line() {
        assert_eq!(text_of("a\nb\u{1b}[2J"), "a b [2J");
        let long = text_of(&"é".repeat(5000));
        assert_eq!(long.chars().count(), TEXT_LEN_MAX + 1);
    }
}

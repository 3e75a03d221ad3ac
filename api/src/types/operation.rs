//! Calls that go on after they were answered.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::Problem;
use crate::name::AttachmentName;

/// An attach or detach that was asked for. Kept for a while after its end, and not over a restart of
/// the daemon: the attachment itself tells how it came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    /// Its identifier, the last segment of `/v1/operations/{id}`.
    pub id: String,
    /// What it does.
    pub kind: OperationKind,
    /// To which attachment.
    #[schema(value_type = String)]
    pub attachment: AttachmentName,
    /// How far it is.
    pub state: OperationState,
    /// When it began.
    pub started_unix_ms: u64,
    /// When it ended; null while it runs.
    pub finished_unix_ms: Option<u64>,
    /// Why it failed; null unless it did.
    pub error: Option<Problem>,
}

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    /// Attach.
    Attach,
    /// Detach.
    Detach,
}

impl OperationKind {
    /// The word that stands for it in JSON and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Attach => "attach",
            Self::Detach => "detach",
        }
    }
}

/// How far an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// Under way.
    Running,
    /// Done.
    Succeeded,
    /// Ended without its aim.
    Failed,
}

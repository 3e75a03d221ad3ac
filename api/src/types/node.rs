//! The node and its health.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Facts and limits of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Node {
    /// Name of the node.
    pub name: String,
    /// iSCSI name that it logs in with.
    pub initiator_name: String,
    /// Version of the daemon.
    pub version: String,
    /// When the daemon started.
    pub started_unix_ms: u64,
    /// Path of the NBD socket.
    pub nbd_socket: String,
    /// What the kernel can do.
    pub kernel_nbd: KernelNbd,
    /// What this node can take.
    pub limits: NodeLimits,
    /// Attachments there are, in whatever state.
    pub attachments: u32,
}

/// Whether `/dev/nbdN` can be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KernelNbd {
    /// `device: auto` gives a kernel device.
    pub available: bool,
    /// Why not, if not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What a node can take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeLimits {
    /// Most attachments at a time.
    pub attachments_max: u32,
    /// Threads that move data.
    pub data_threads: u32,
    /// Longest request that an NBD client may send, in bytes.
    pub request_max_bytes: u32,
}

/// The answer to `/readyz?verbose`: every check with its outcome.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// All checks, in the order in which they were made.
    pub checks: Vec<CheckResult>,
}

impl Health {
    /// Whether every check passed.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.checks.iter().all(|check| check.ok)
    }
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckResult {
    /// What was checked, one word (`state`, `nbd-socket`).
    pub name: String,
    /// Whether it is as it should be.
    pub ok: bool,
    /// What is wrong and what to do, if it is not; a fact worth knowing, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl CheckResult {
    /// A check that passed.
    #[must_use]
    pub fn pass(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ok: true,
            detail: None,
        }
    }

    /// A check that failed.
    #[must_use]
    pub fn fail(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ok: false,
            detail: Some(detail.into()),
        }
    }
}

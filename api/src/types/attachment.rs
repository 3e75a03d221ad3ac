//! What there is: the answer to `GET /v1/attachments/{name}`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::attach::{DeviceWish, Digests, Fence};
use super::recovery_timeout::RecoveryTimeout;
use crate::error::{Code, Error};
use crate::name::{AttachmentName, TargetName, VolumeName};
use crate::portal::Portal;

/// An attachment as it is now. Holds no secrets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Attachment {
    /// Its name, which is also the name of the NBD export.
    #[schema(value_type = String)]
    pub name: AttachmentName,
    /// Where it stands.
    pub state: AttachmentState,
    /// Since when it is in this state.
    pub since_unix_ms: u64,
    /// Why it is in this state, where that needs a word: always with `failed` and `recovering`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The kernel device, as `/dev/nbd3`; null without one.
    pub device: Option<String>,
    /// Why there is no kernel device, where `device_wish` is `auto` or it was taken away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_detail: Option<String>,
    /// Where an NBD client finds it, as `nbd+unix:///NAME?socket=/run/berth/nbd.sock`; null until
    /// attached for the first time.
    pub nbd_uri: Option<String>,
    /// Size in bytes; null until known.
    pub size_bytes: Option<u64>,
    /// Logical block size of the volume in bytes; null until known.
    pub block_size_bytes: Option<u32>,
    /// Unit in bytes below which the medium reads, modifies and writes; null until known.
    #[serde(default)]
    pub physical_block_size_bytes: Option<u32>,
    /// Writes are refused: asked for, or the volume is write-protected.
    pub read_only: bool,
    /// What the volume says it is; null until known.
    pub identity: Option<Identity>,
    /// What was asked for, without secrets.
    pub source: SourceSummary,
    /// As asked for.
    pub device_wish: DeviceWish,
    /// As asked for.
    pub fence: Fence,
    /// The reservation key of this attach, as `0x0123456789abcdef`; null without `fence: reservation`.
    #[serde(default)]
    pub reservation_key: Option<String>,
    /// As asked for; what is in use stands in the sessions.
    pub digests: Digests,
    /// As asked for or changed since, or as configured.
    pub recovery_timeout_seconds: RecoveryTimeout,
    /// One per portal; also one that was removed, until its session is gone.
    pub paths: Vec<Path>,
    /// iSCSI sessions that are logged in.
    pub sessions: Vec<Session>,
    /// NBD clients that have it open now (the kernel counts as one).
    pub nbd_clients: u32,
    /// What went through since the daemon took it on.
    pub counters: Counters,
}

/// The answer to `GET /v1/attachments`, ordered by name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AttachmentList {
    /// All attachments of this node.
    pub attachments: Vec<Attachment>,
}

/// Where an attachment stands. What is absent is not listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AttachmentState {
    /// Being attached for the first time, or after a restart of the daemon.
    Connecting,
    /// In use or ready for it.
    Attached,
    /// No path works: I/O waits.
    Recovering,
    /// Being taken away.
    Detaching,
    /// Given up; attach tries again, detach forgets it.
    Failed,
}

impl AttachmentState {
    /// The word that stands for it in JSON, tables and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Attached => "attached",
            Self::Recovering => "recovering",
            Self::Detaching => "detaching",
            Self::Failed => "failed",
        }
    }
}

impl std::fmt::Display for AttachmentState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why something is as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reason {
    /// For programs; the same codes as in problems.
    pub code: Code,
    /// For people.
    pub detail: String,
    /// Whether it may pass by itself.
    pub retryable: bool,
}

impl From<&Error> for Reason {
    fn from(error: &Error) -> Self {
        Self {
            code: error.code(),
            detail: error.detail().to_owned(),
            retryable: error.is_retryable(),
        }
    }
}

/// What a volume says it is (SPC-5, VPD pages 80h and 83h).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Identity {
    /// NAA identifier in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub naa: Option<String>,
    /// EUI-64 identifier in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eui: Option<String>,
    /// Unit serial number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// T10 vendor identification.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// Product identification.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
    /// Product revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
}

/// The source of an attachment, without secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SourceSummary {
    /// A logical unit of an iSCSI target.
    Iscsi(IscsiSummary),
    /// A volume of the storage fabric.
    Fabric(FabricSummary),
}

impl SourceSummary {
    /// The logical unit, as far as it is known.
    #[must_use]
    pub fn iscsi(&self) -> Option<&IscsiSummary> {
        match self {
            Self::Iscsi(source) => Some(source),
            Self::Fabric(source) => source.found.as_ref(),
        }
    }
}

/// A volume of the storage fabric, without secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FabricSummary {
    /// As asked for.
    #[schema(value_type = String)]
    pub volume: VolumeName,
    /// As asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// As asked for.
    pub revoke_on_detach: bool,
    /// Where the fabric said last that it is; null before.
    pub found: Option<IscsiSummary>,
}

/// An iSCSI source, without secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IscsiSummary {
    /// As asked for.
    #[schema(value_type = Vec<String>)]
    pub portals: Vec<Portal>,
    /// As asked for.
    #[schema(value_type = String)]
    pub target: TargetName,
    /// As asked for.
    pub lun: u16,
    /// Who we log in as; null without authentication.
    pub auth: Option<AuthSummary>,
}

/// Authentication, without secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AuthSummary {
    /// CHAP.
    Chap(ChapSummary),
}

/// CHAP, without secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChapSummary {
    /// Name that we log in with.
    pub user: String,
    /// Whether the target has to prove itself too.
    pub mutual: bool,
}

impl From<&super::Source> for SourceSummary {
    fn from(source: &super::Source) -> Self {
        match source {
            super::Source::Iscsi(source) => Self::Iscsi(source.into()),
            super::Source::Fabric(source) => Self::Fabric(FabricSummary {
                volume: source.volume.clone(),
                unit: source.unit.clone(),
                revoke_on_detach: source.revoke_on_detach,
                found: source.found.as_deref().map(IscsiSummary::from),
            }),
        }
    }
}

impl From<&super::IscsiSource> for IscsiSummary {
    fn from(source: &super::IscsiSource) -> Self {
        Self {
            portals: source.portals.clone(),
            target: source.target.clone(),
            lun: source.lun,
            auth: source.auth.as_ref().map(|super::Auth::Chap(chap)| {
                AuthSummary::Chap(ChapSummary {
                    user: chap.user.clone(),
                    mutual: chap.mutual.is_some(),
                })
            }),
        }
    }
}

/// A way to the volume: a portal, and a session of its own with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Path {
    /// The portal that was asked for.
    #[schema(value_type = String)]
    pub portal: Portal,
    /// Whether it works.
    pub state: PathState,
    /// Since when it is in this state.
    pub since_unix_ms: u64,
    /// Why it does not work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// What the target says of this way (ALUA, SPC-4 5.15), as `active/optimized`; missing for a target
    /// that makes no difference between its ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<String>,
    /// The target would rather be used through it.
    #[serde(default)]
    pub preferred: bool,
    /// Target portal group, as of the last login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub portal_group_tag: Option<u16>,
    /// Commands in flight on it.
    #[serde(default)]
    pub in_flight_commands: u32,
    /// Most commands that are sent over it at a time, as the target has shown that it takes.
    #[serde(default)]
    pub queue_depth: u32,
    /// Recent mean time from command to answer, in microseconds; 0 until there was one.
    #[serde(default)]
    pub service_time_us: u64,
    /// Times that it was lost or could not be brought up.
    #[serde(default)]
    pub failures: u64,
}

/// Whether a path works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PathState {
    /// Logged in, and the target takes I/O over it.
    Up,
    /// Logged in, but the target does not take I/O over it (ALUA standby, unavailable or offline).
    Standby,
    /// Logged in; the target is changing the state of this way to the volume (ALUA transitioning).
    Transitioning,
    /// Being connected for the first time.
    Connecting,
    /// Does not work; it is tried again and again.
    Down,
    /// Leads to another volume, or must not be used any more; it is not used again by itself.
    Failed,
    /// Taken away; its session is being ended.
    Leaving,
}

impl PathState {
    /// The word that stands for it in JSON and tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Standby => "standby",
            Self::Transitioning => "transitioning",
            Self::Connecting => "connecting",
            Self::Down => "down",
            Self::Failed => "failed",
            Self::Leaving => "leaving",
        }
    }
}

impl std::fmt::Display for PathState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// An iSCSI session that is logged in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Session {
    /// The portal whose path it is; missing from a daemon that did not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub portal: Option<Portal>,
    /// Our part of its identifier, 12 hexadecimal digits.
    pub isid: String,
    /// The target's part.
    pub tsih: u16,
    /// Target portal group that it is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub portal_group_tag: Option<u16>,
    /// Its TCP connections.
    pub connections: Vec<Connection>,
    /// What login settled, by the names of RFC 7143 13, as `{"MaxBurstLength": "262144"}`.
    pub negotiated: BTreeMap<String, String>,
}

/// A TCP connection of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Connection {
    /// Its number in the session.
    pub cid: u16,
    /// Our end, `address:port`.
    pub local: String,
    /// The target's end, `address:port`, after name resolution and redirection.
    pub peer: String,
    /// Since when it is logged in.
    pub since_unix_ms: u64,
}

/// What went through an attachment. Counts only grow while the daemon runs; `in_flight_` are of now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Counters {
    /// Reads.
    pub read: OpCounters,
    /// Writes.
    pub write: OpCounters,
    /// Flushes.
    pub flush: OpCounters,
    /// Trims.
    pub trim: OpCounters,
    /// Zeroing without data.
    pub write_zeroes: OpCounters,
    /// Requests that wait for their answer.
    pub in_flight_requests: u64,
    /// Bytes that they move.
    pub in_flight_bytes: u64,
    /// Sessions that were set up again.
    pub reconnects: u64,
    /// Digests that were checked, headers and data.
    #[serde(default)]
    pub digests_checked: u64,
    /// Digests that were wrong.
    pub digest_errors: u64,
    /// What recovery had to do.
    #[serde(default)]
    pub recovery: RecoveryCounters,
}

/// What recovery had to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct RecoveryCounters {
    /// Sessions that ended without being asked to.
    pub sessions_lost: u64,
    /// Sessions that were set up again.
    pub sessions_reinstated: u64,
    /// Commands that were sent again.
    pub commands_resent: u64,
    /// Writes whose fate was unknown, and which waited until their session was gone on the target.
    pub ghosts: u64,
    /// Such writes that wait now.
    pub ghosts_waiting: u64,
    /// Times that no path took I/O.
    pub stalls: u64,
    /// The longest of these times, in milliseconds; counts the present one too.
    pub stall_longest_ms: u64,
    /// Resets of a volume that had a volatile cache with unflushed writes.
    pub cache_losses: u64,
    /// Requests that failed because the recovery timeout was over.
    pub requests_timed_out: u64,
    /// Commands that were aborted because they took too long.
    pub aborts: u64,
    /// Resets of the logical unit because commands could not be aborted.
    pub lun_resets: u64,
    /// Commands that the target refused because another node holds a reservation.
    pub reservation_conflicts: u64,
}

/// What went through, of one kind of request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OpCounters {
    /// Requests that were answered, failed ones too.
    pub requests: u64,
    /// Bytes of those that succeeded.
    pub bytes: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Time from request to answer in microseconds, summed over all requests.
    pub busy_us: u64,
}

//! Requests and answers of the API, one file a resource.
//!
//! Requests refuse unknown fields, so that a typo is an error and not a silent default. Answers may
//! grow fields: a client ignores those it does not know. Units are in the names; times are
//! milliseconds since 1970 (UTC).

mod attach;
mod attachment;
mod discovery;
mod event;
mod fabric;
mod fabric_source;
mod node;
mod operation;
mod patch;
mod recovery_timeout;
mod volume;

pub use attach::{
    AttachRequest, Auth, Chap, ChapError, DeviceWish, DigestPolicy, Digests, Fence, IscsiSource,
    MutualChap, Source,
};
pub use attachment::{
    Attachment, AttachmentList, AttachmentState, AuthSummary, ChapSummary, Connection, Counters,
    FabricSummary, Identity, IscsiSummary, OpCounters, Path, PathState, Reason, RecoveryCounters,
    Session, SourceSummary,
};
pub use discovery::{DiscoveredPortal, DiscoveredTarget, Discovery, DiscoveryRequest};
pub use event::{Event, EventKind, NewEvent};
pub use fabric::{Breaker, BreakerState, FabricCapacity, FabricKind, FabricStatus, PageRequest};
pub use fabric_source::FabricSource;
pub use node::{CheckResult, Health, KernelNbd, Node, NodeLimits};
pub use operation::{Operation, OperationKind, OperationState};
pub use patch::{AttachmentPatch, IscsiPatch, SourcePatch};
pub use recovery_timeout::RecoveryTimeout;
pub use volume::{
    DeletePolicy, FabricChap, PlacementMode, Qos, Snapshot, SnapshotList, SnapshotPlace,
    SnapshotPlaceError, SnapshotRef, Template, TemplateList, TemplateVolume, Volume, VolumeList,
    VolumePatch, VolumeRequest, VolumeSource, VolumeState, VolumeUnit,
};

/// Milliseconds since 1970 (UTC), now.
#[must_use]
pub fn unix_ms_now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}

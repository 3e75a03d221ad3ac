//! What a node does for its callers.

use std::future::Future;
use std::pin::Pin;

use futures_core::Stream;

use crate::error::Error;
use crate::name::{AttachmentName, TargetName, VolumeName};
use crate::types::{
    AttachRequest, Attachment, AttachmentPatch, DeletePolicy, Discovery, DiscoveryRequest, Event,
    FabricStatus, Health, Node, Snapshot, Template, Volume, VolumePatch, VolumeRequest,
};

/// Events, oldest first. Ends when the service stops.
pub type EventStream = Pin<Box<dyn Stream<Item = Event> + Send>>;

/// Who calls, and under which identifiers, for logs and for calls further on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Call {
    /// Of this request; `X-Request-Id` of the answer.
    pub request_id: String,
    /// W3C trace context to pass on, checked for its form.
    pub traceparent: Option<String>,
    /// Who it came from.
    pub peer: Peer,
}

/// Who a request came from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Peer {
    /// This process itself (start-up, demo, tests).
    #[default]
    Local,
    /// A process on this node, over the Unix socket (`SO_PEERCRED` at the time it connected).
    Unix {
        /// User.
        uid: u32,
        /// Group.
        gid: u32,
        /// Process, if the kernel tells.
        pid: Option<i32>,
    },
    /// Someone with the token, over TCP.
    Tcp(std::net::SocketAddr),
}

/// The outcome of an attach that succeeded.
#[derive(Debug, Clone, PartialEq)]
pub struct Attached {
    /// The attachment, as it is now.
    pub attachment: Attachment,
    /// This call made it (201), rather than finding it there with the same request (200).
    pub created: bool,
}

/// What a node does for its callers. One implementation drives the real thing, tests have a fake.
///
/// The server runs `attach` and `detach` on tasks of their own, which go on when the caller hangs up:
/// the futures are polled to their end unless the runtime stops. Both may be called for one name any
/// number of times at once.
pub trait NodeService: Send + Sync + 'static {
    /// Makes the attachment exist and returns when it is attached.
    ///
    /// Idempotent: the same request (see [`AttachRequest::differences`]) finds the attachment, waits
    /// for it if it is on its way, and tries again if it had failed.
    ///
    /// # Errors
    /// `conflict-incompatible` for another request under the same name, `operation-pending` while it
    /// is being detached, `deadline` when `attach_timeout_seconds` are over, and whatever the target
    /// gives reason for.
    fn attach(
        &self,
        call: &Call,
        name: &AttachmentName,
        request: AttachRequest,
    ) -> impl Future<Output = Result<Attached, Error>> + Send;

    /// Makes the attachment not exist and returns when it is gone. Succeeds when it was not there.
    ///
    /// # Errors
    /// `in-use` while the device or the export is open, unless `force`: then I/O that waits fails.
    fn detach(
        &self,
        call: &Call,
        name: &AttachmentName,
        force: bool,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Changes the attachment while it is attached and returns how it is then. What was changed is kept
    /// over restarts. New paths are set up and removed ones drained afterwards; see the paths.
    ///
    /// # Errors
    /// `not-found`; `operation-pending` while it is being detached.
    fn change(
        &self,
        call: &Call,
        name: &AttachmentName,
        patch: AttachmentPatch,
    ) -> impl Future<Output = Result<Attachment, Error>> + Send;

    /// All attachments, ordered by name. Never waits for a target.
    fn attachments(&self) -> impl Future<Output = Result<Vec<Attachment>, Error>> + Send;

    /// One attachment. Never waits for a target.
    ///
    /// # Errors
    /// `not-found`, see [`Error::no_attachment`].
    fn attachment(
        &self,
        name: &AttachmentName,
    ) -> impl Future<Output = Result<Attachment, Error>> + Send;

    /// Asks a portal for its targets, within the request's timeout.
    ///
    /// # Errors
    /// What the portal gives reason for.
    fn discover(
        &self,
        call: &Call,
        request: DiscoveryRequest,
    ) -> impl Future<Output = Result<Discovery, Error>> + Send;

    /// How the fabric is. One that does not answer is told of, and no error.
    ///
    /// # Errors
    /// `not-implemented` without a fabric.
    fn fabric(&self, call: &Call) -> impl Future<Output = Result<FabricStatus, Error>> + Send;

    /// The AppTemplates of the fabric, by name.
    ///
    /// # Errors
    /// What the fabric gives reason for; `not-implemented` without a fabric.
    fn templates(&self, call: &Call) -> impl Future<Output = Result<Vec<Template>, Error>> + Send;

    /// All volumes on the fabric, by name.
    ///
    /// # Errors
    /// What the fabric gives reason for; `not-implemented` without a fabric.
    fn volumes(&self, call: &Call) -> impl Future<Output = Result<Vec<Volume>, Error>> + Send;

    /// One volume on the fabric.
    ///
    /// # Errors
    /// `not-found`, and as [`Self::volumes`].
    fn volume(
        &self,
        call: &Call,
        name: &VolumeName,
    ) -> impl Future<Output = Result<Volume, Error>> + Send;

    /// Makes the volume exist, available; `true` when this call made it. Idempotent.
    ///
    /// # Errors
    /// `conflict-incompatible` when the name is that of another volume, and as [`Self::volumes`].
    fn create_volume(
        &self,
        call: &Call,
        name: &VolumeName,
        request: VolumeRequest,
    ) -> impl Future<Output = Result<(Volume, bool), Error>> + Send;

    /// Changes the volume while it is in use.
    ///
    /// # Errors
    /// `not-found`, `out-of-range`, and as [`Self::volumes`].
    fn change_volume(
        &self,
        call: &Call,
        name: &VolumeName,
        patch: VolumePatch,
    ) -> impl Future<Output = Result<Volume, Error>> + Send;

    /// Takes the volume away; without a policy as configured. Succeeds when it was not there.
    ///
    /// # Errors
    /// `in-use` while somebody is logged in, and as [`Self::volumes`].
    fn delete_volume(
        &self,
        call: &Call,
        name: &VolumeName,
        policy: Option<DeletePolicy>,
        with_snapshots: bool,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Admits an initiator to the volume.
    ///
    /// # Errors
    /// `not-found`, and as [`Self::volumes`].
    fn grant(
        &self,
        call: &Call,
        name: &VolumeName,
        initiator: &TargetName,
    ) -> impl Future<Output = Result<Volume, Error>> + Send;

    /// Does not admit the initiator any more, and touches no other.
    ///
    /// # Errors
    /// As [`Self::volumes`].
    fn revoke(
        &self,
        call: &Call,
        name: &VolumeName,
        initiator: &TargetName,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Snapshots of the volume, oldest first.
    ///
    /// # Errors
    /// `not-found`, and as [`Self::volumes`].
    fn snapshots(
        &self,
        call: &Call,
        name: &VolumeName,
    ) -> impl Future<Output = Result<Vec<Snapshot>, Error>> + Send;

    /// Snapshots of all volumes, ordered by volume and then by age: by [`Snapshot::place`].
    ///
    /// # Errors
    /// As [`Self::volumes`].
    fn all_snapshots(
        &self,
        call: &Call,
    ) -> impl Future<Output = Result<Vec<Snapshot>, Error>> + Send;

    /// Takes a snapshot under this name, or finds it; `true` when this call took it.
    ///
    /// # Errors
    /// `not-found`, and as [`Self::volumes`].
    fn take_snapshot(
        &self,
        call: &Call,
        name: &VolumeName,
        snapshot: &str,
    ) -> impl Future<Output = Result<(Snapshot, bool), Error>> + Send;

    /// Takes a snapshot away. Succeeds when it was not there.
    ///
    /// # Errors
    /// As [`Self::volumes`].
    fn delete_snapshot(
        &self,
        call: &Call,
        name: &VolumeName,
        snapshot: &str,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Puts the volume back to what the snapshot holds.
    ///
    /// # Errors
    /// `not-found`, `in-use`, and as [`Self::volumes`].
    fn restore_snapshot(
        &self,
        call: &Call,
        name: &VolumeName,
        snapshot: &str,
    ) -> impl Future<Output = Result<Volume, Error>> + Send;

    /// Facts and limits of this node. Never waits for a target.
    fn node(&self) -> impl Future<Output = Result<Node, Error>> + Send;

    /// Events after the one with this id (0: all that are kept), or from now on. Events that happened
    /// before are ready at once. [`crate::events::EventLog`] implements it.
    fn events(&self, after: Option<u64>) -> EventStream;

    /// Whether the node can do its work: state loaded, NBD socket open, fabric reachable. Checks are
    /// cheap and bounded in time; liveness is not among them, `/livez` answers by itself.
    fn ready(&self) -> impl Future<Output = Health> + Send;

    /// Metrics in Prometheus text format 0.0.4.
    fn metrics(&self) -> impl Future<Output = String> + Send;
}

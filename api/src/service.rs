//! What a node does for its callers.

use std::future::Future;
use std::pin::Pin;

use futures_core::Stream;

use crate::error::Error;
use crate::name::AttachmentName;
use crate::types::{
    AttachRequest, Attachment, AttachmentPatch, Discovery, DiscoveryRequest, Event, Health, Node,
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

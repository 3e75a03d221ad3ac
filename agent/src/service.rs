//! The node as the API sees it: translate in, call, translate out.

mod view;
mod volumes;

use std::path::PathBuf;
use std::sync::Arc;

use berth_api::events::EventLog;
use berth_api::types::{
    AttachRequest, Attachment, AttachmentPatch, CheckResult, DeletePolicy, DeviceWish, Discovery,
    DiscoveryRequest, FabricStatus, Health, KernelNbd, Node, NodeLimits, RecoveryTimeout, Snapshot,
    Template, Volume, VolumePatch, VolumeRequest, unix_ms_now,
};
use berth_api::{
    Attached, AttachmentName, Call, Error, EventStream, NodeService, TargetName, VolumeName,
};

use crate::discovery::Discoverer;
use crate::metrics;
use crate::nbd::wire::PAYLOAD_MAX_BYTES;
use crate::volume::{Known, Manager, failure};

pub use view::nbd_uri;
pub use volumes::Volumes;
use volumes::no_fabric;

/// Facts about the node that do not change while the daemon runs.
#[derive(Debug, Clone)]
pub struct NodeFacts {
    /// Name of the node.
    pub name: String,
    /// iSCSI name of the initiator.
    pub initiator_name: String,
    /// Path of the NBD socket.
    pub nbd_socket: PathBuf,
    /// Threads of the data plane.
    pub data_threads: usize,
    /// Most attachments.
    pub attachments_max: usize,
    /// When the daemon started.
    pub started_unix_ms: u64,
}

/// The daemon behind its API.
pub struct Service {
    manager: Arc<Manager>,
    events: Arc<EventLog>,
    facts: NodeFacts,
    discoverer: Discoverer,
    recovery_timeout: RecoveryTimeout,
    volumes: Option<Volumes>,
}

impl Service {
    /// A service over the manager.
    #[must_use]
    pub fn new(
        manager: Arc<Manager>,
        events: Arc<EventLog>,
        facts: NodeFacts,
        discoverer: Discoverer,
    ) -> Self {
        Self {
            manager,
            events,
            facts,
            discoverer,
            recovery_timeout: RecoveryTimeout::default(),
            volumes: None,
        }
    }

    /// What holds for attachments that do not say how long I/O waits.
    #[must_use]
    pub fn with_recovery_timeout(mut self, timeout: RecoveryTimeout) -> Self {
        self.recovery_timeout = timeout;
        self
    }

    /// The storage fabric.
    #[must_use]
    pub fn with_fabric(mut self, volumes: Option<Volumes>) -> Self {
        self.volumes = volumes;
        self
    }

    fn volumes_or(&self) -> Result<&Volumes, Error> {
        self.volumes.as_ref().ok_or_else(no_fabric)
    }

    async fn view(&self, known: Known) -> Attachment {
        let snapshot = match known.volume() {
            Some(volume) => volume.snapshot().await,
            None => None,
        };
        let stats = known.volume().map(|volume| Arc::clone(volume.stats()));
        view::attachment(
            &known,
            snapshot.as_ref(),
            stats.as_deref(),
            &self.facts.nbd_socket,
            self.recovery_timeout,
        )
    }
}

impl NodeService for Service {
    async fn attach(
        &self,
        call: &Call,
        name: &AttachmentName,
        request: AttachRequest,
    ) -> Result<Attached, Error> {
        if request.device == DeviceWish::Kernel
            && self.manager.get(name).is_none()
            && let Err(reason) = self.manager.kernel_available().await
        {
            // Said before anything is done; nothing is kept of it.
            return Err(failure::no_device(&reason).with_attachment(name));
        }
        tracing::info!(volume = %name, peer = ?call.peer, request_id = call.request_id, takeover = request.takeover, "attach asked for");
        let created = self.manager.attach(name, request).await?;
        let known = self
            .manager
            .get(name)
            .ok_or_else(|| Error::no_attachment(name))?;
        Ok(Attached {
            attachment: self.view(known).await,
            created,
        })
    }

    async fn detach(&self, call: &Call, name: &AttachmentName, force: bool) -> Result<(), Error> {
        tracing::info!(volume = %name, force, peer = ?call.peer, request_id = call.request_id, "detach asked for");
        self.manager.detach(name, force).await
    }

    async fn change(
        &self,
        call: &Call,
        name: &AttachmentName,
        patch: AttachmentPatch,
    ) -> Result<Attachment, Error> {
        tracing::info!(volume = %name, peer = ?call.peer, request_id = call.request_id, ?patch, "change asked for");
        self.manager.change(name, patch).await?;
        self.attachment(name).await
    }

    async fn attachments(&self) -> Result<Vec<Attachment>, Error> {
        let mut all = Vec::new();
        for known in self.manager.list() {
            all.push(self.view(known).await);
        }
        Ok(all)
    }

    async fn attachment(&self, name: &AttachmentName) -> Result<Attachment, Error> {
        let known = self
            .manager
            .get(name)
            .ok_or_else(|| Error::no_attachment(name))?;
        Ok(self.view(known).await)
    }

    async fn discover(&self, _call: &Call, request: DiscoveryRequest) -> Result<Discovery, Error> {
        self.discoverer.discover(request).await
    }

    async fn fabric(&self, call: &Call) -> Result<FabricStatus, Error> {
        Ok(self.volumes_or()?.status(call).await)
    }

    async fn templates(&self, call: &Call) -> Result<Vec<Template>, Error> {
        self.volumes_or()?.templates(call).await
    }

    async fn volumes(&self, call: &Call) -> Result<Vec<Volume>, Error> {
        self.volumes_or()?.list(call).await
    }

    async fn volume(&self, call: &Call, name: &VolumeName) -> Result<Volume, Error> {
        self.volumes_or()?.show(call, name).await
    }

    async fn create_volume(
        &self,
        call: &Call,
        name: &VolumeName,
        request: VolumeRequest,
    ) -> Result<(Volume, bool), Error> {
        self.volumes_or()?.create(call, name, &request).await
    }

    async fn change_volume(
        &self,
        call: &Call,
        name: &VolumeName,
        patch: VolumePatch,
    ) -> Result<Volume, Error> {
        self.volumes_or()?.change(call, name, &patch).await
    }

    async fn delete_volume(
        &self,
        call: &Call,
        name: &VolumeName,
        policy: Option<DeletePolicy>,
        with_snapshots: bool,
    ) -> Result<(), Error> {
        self.volumes_or()?
            .delete(call, name, policy, with_snapshots)
            .await
    }

    async fn grant(
        &self,
        call: &Call,
        name: &VolumeName,
        initiator: &TargetName,
    ) -> Result<Volume, Error> {
        self.volumes_or()?.grant(call, name, initiator).await
    }

    async fn revoke(
        &self,
        call: &Call,
        name: &VolumeName,
        initiator: &TargetName,
    ) -> Result<(), Error> {
        self.volumes_or()?.revoke(call, name, initiator).await
    }

    async fn snapshots(&self, call: &Call, name: &VolumeName) -> Result<Vec<Snapshot>, Error> {
        self.volumes_or()?.snapshots(call, name).await
    }

    async fn all_snapshots(&self, call: &Call) -> Result<Vec<Snapshot>, Error> {
        self.volumes_or()?.all_snapshots(call).await
    }

    async fn take_snapshot(
        &self,
        call: &Call,
        name: &VolumeName,
        snapshot: &str,
    ) -> Result<(Snapshot, bool), Error> {
        self.volumes_or()?.take_snapshot(call, name, snapshot).await
    }

    async fn delete_snapshot(
        &self,
        call: &Call,
        name: &VolumeName,
        snapshot: &str,
    ) -> Result<(), Error> {
        self.volumes_or()?
            .delete_snapshot(call, name, snapshot)
            .await
    }

    async fn restore_snapshot(
        &self,
        call: &Call,
        name: &VolumeName,
        snapshot: &str,
    ) -> Result<Volume, Error> {
        self.volumes_or()?.restore(call, name, snapshot).await
    }

    async fn node(&self) -> Result<Node, Error> {
        let kernel = self.manager.kernel_available().await;
        Ok(Node {
            name: self.facts.name.clone(),
            initiator_name: self.facts.initiator_name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_unix_ms: self.facts.started_unix_ms,
            nbd_socket: self.facts.nbd_socket.display().to_string(),
            kernel_nbd: KernelNbd {
                available: kernel.is_ok(),
                detail: kernel.err().map(|reason| reason.to_string()),
            },
            limits: NodeLimits {
                attachments_max: u32::try_from(self.facts.attachments_max).unwrap_or(u32::MAX),
                data_threads: u32::try_from(self.facts.data_threads).unwrap_or(u32::MAX),
                request_max_bytes: PAYLOAD_MAX_BYTES,
            },
            attachments: u32::try_from(self.manager.count()).unwrap_or(u32::MAX),
        })
    }

    fn events(&self, after: Option<u64>) -> EventStream {
        self.events.subscribe(after)
    }

    async fn ready(&self) -> Health {
        // The sockets are bound and the state is loaded before the API answers at all; what is left to
        // check is that the data plane still takes work.
        let responsive = self.manager.data_plane_responds().await;
        let data_plane = if responsive {
            CheckResult::pass("data-plane")
        } else {
            CheckResult::fail(
                "data-plane",
                "a data-plane thread does not answer; see the log",
            )
        };
        let mut checks = vec![CheckResult::pass("state"), data_plane];
        checks.extend(self.volumes.as_ref().map(Volumes::check));
        Health { checks }
    }

    async fn metrics(&self) -> String {
        let mut all = Vec::new();
        for known in self.manager.list() {
            let snapshot = match known.volume() {
                Some(volume) => volume.snapshot().await,
                None => None,
            };
            all.push((known, snapshot));
        }
        let up = unix_ms_now().saturating_sub(self.facts.started_unix_ms);
        let fabric = self.volumes.as_ref().and_then(|v| v.fabric.stats());
        metrics::render(&all, fabric, up)
    }
}

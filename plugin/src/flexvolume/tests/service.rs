//! A berthd that only pretends, behind the real server of the API.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use berth_api::server::{Api, Listener, UnixSocket};
use berth_api::types::{
    AttachRequest, Attachment, AttachmentPatch, AttachmentState, Counters, DeletePolicy, Discovery,
    DiscoveryRequest, FabricStatus, Health, KernelNbd, Node, NodeLimits, Snapshot, Source,
    SourceSummary, Template, Volume, VolumePatch, VolumeRequest, VolumeState,
};
use berth_api::{
    Attached, AttachmentName, Call, Code, Error, EventStream, NodeService, TargetName, VolumeName,
};
use tokio::task::JoinHandle;

use super::world::{Disk, World};
use crate::filesystem::Content;

/// Size of a volume whose request names none.
const SIZE: u64 = 1 << 30;

pub(super) struct Service {
    world: World,
    attachments: Mutex<BTreeMap<AttachmentName, (AttachRequest, Attachment)>>,
    /// Request identifiers that came with calls.
    pub(super) requests: Mutex<Vec<String>>,
    /// The next attach, or detach, fails with this.
    pub(super) refuse: Mutex<Option<Code>>,
}

/// The fake on its socket, until dropped.
pub(super) struct Served {
    pub(super) service: Arc<Service>,
    task: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Service {
    pub(super) fn new(world: &World) -> Arc<Self> {
        Arc::new(Self {
            world: world.clone(),
            attachments: Mutex::default(),
            requests: Mutex::default(),
            refuse: Mutex::default(),
        })
    }

    pub(super) fn serve(self: &Arc<Self>, socket: &Path) -> Served {
        let api = Api::new(Arc::clone(self));
        let listener = Listener::Unix(UnixSocket::bind(socket, 0o600).unwrap());
        Served {
            service: Arc::clone(self),
            task: tokio::spawn(async move { api.serve(listener).await }),
        }
    }

    pub(super) fn names(&self) -> Vec<String> {
        let attachments = self.attachments.lock().unwrap();
        attachments.keys().map(ToString::to_string).collect()
    }

    pub(super) fn request(&self, name: &str) -> AttachRequest {
        let attachments = self.attachments.lock().unwrap();
        attachments[&name.parse().unwrap()].0.clone()
    }

    /// Takes an attachment away behind everybody's back.
    pub(super) fn lose(&self, name: &str) {
        let name = name.parse().unwrap();
        let (_, lost) = self.attachments.lock().unwrap().remove(&name).unwrap();
        let device = PathBuf::from(lost.device.unwrap());
        self.world.state().devices.remove(&device);
    }

    fn refused(&self) -> Result<(), Error> {
        match self.refuse.lock().unwrap().take() {
            Some(code) => Err(Error::new(code, "the test wants it")),
            None => Ok(()),
        }
    }

    fn free_device(&self) -> PathBuf {
        let state = self.world.state();
        (0..)
            .map(|number| PathBuf::from(format!("/dev/nbd{number}")))
            .find(|device| !state.devices.contains_key(device))
            .unwrap()
    }

    fn attach_now(&self, name: &AttachmentName, request: AttachRequest) -> Result<Attached, Error> {
        let Source::Fabric(source) = &request.source else {
            return Err(Error::new(Code::NotImplemented, "only fabric volumes"));
        };
        let mut attachments = self.attachments.lock().unwrap();
        if let Some((kept, attachment)) = attachments.get(name) {
            return if kept.differences(&request).is_empty() {
                Ok(Attached {
                    attachment: attachment.clone(),
                    created: false,
                })
            } else {
                Err(Error::new(Code::ConflictIncompatible, "it is another"))
            };
        }
        let volume = source.volume.to_string();
        if !self.world.state().disks.contains_key(&volume) {
            let Some(create) = &source.create else {
                return Err(Error::new(
                    Code::NotFound,
                    format!("there is no volume {volume}"),
                ));
            };
            let disk = Disk {
                content: Ok(Content::Blank),
                size: create.size_bytes.unwrap_or(SIZE),
                device_size: None,
            };
            self.world.state().disks.insert(volume.clone(), disk);
            self.step(format!("create {volume}"))?;
        }
        self.step(format!("attach {volume}"))?;
        let device = self.free_device();
        let size = self.world.state().disks[&volume].size;
        self.world.state().devices.insert(device.clone(), volume);
        let attachment = attachment(name, &request, &device, size);
        attachments.insert(name.clone(), (request, attachment.clone()));
        Ok(Attached {
            attachment,
            created: true,
        })
    }

    fn step(&self, line: String) -> Result<(), Error> {
        let step = self.world.step(line);
        step.map_err(|what| Error::new(Code::TargetUnreachable, what))
    }
}

fn attachment(
    name: &AttachmentName,
    request: &AttachRequest,
    device: &Path,
    size: u64,
) -> Attachment {
    Attachment {
        name: name.clone(),
        state: AttachmentState::Attached,
        since_unix_ms: 1,
        reason: None,
        device: Some(device.display().to_string()),
        device_detail: None,
        nbd_uri: None,
        size_bytes: Some(size),
        block_size_bytes: Some(512),
        physical_block_size_bytes: Some(4096),
        read_only: request.read_only,
        identity: None,
        source: SourceSummary::from(&request.source),
        device_wish: request.device,
        fence: request.fence,
        reservation_key: None,
        digests: request.digests,
        recovery_timeout_seconds: request.recovery_timeout_seconds.unwrap_or_default(),
        paths: Vec::new(),
        sessions: Vec::new(),
        nbd_clients: 0,
        counters: Counters::default(),
    }
}

fn nothing<T>() -> Result<T, Error> {
    Err(Error::new(Code::NotImplemented, "not needed here"))
}

impl NodeService for Service {
    async fn attach(
        &self,
        call: &Call,
        name: &AttachmentName,
        request: AttachRequest,
    ) -> Result<Attached, Error> {
        self.requests.lock().unwrap().push(call.request_id.clone());
        self.refused()?;
        self.attach_now(name, request)
    }

    async fn detach(&self, call: &Call, name: &AttachmentName, force: bool) -> Result<(), Error> {
        self.requests.lock().unwrap().push(call.request_id.clone());
        assert!(!force, "never by force");
        self.refused()?;
        let mut attachments = self.attachments.lock().unwrap();
        let Some((_, found)) = attachments.get(name) else {
            return Ok(());
        };
        let device = PathBuf::from(found.device.clone().unwrap());
        let mounted = |mount: &crate::mount::Mount| Path::new(&mount.source) == device;
        if self.world.state().mounts.iter().any(mounted) {
            return Err(Error::new(Code::InUse, "the device is open"));
        }
        let volume = self.world.state().devices[&device].clone();
        self.step(format!("detach {volume}"))?;
        self.world.state().devices.remove(&device);
        attachments.remove(name);
        Ok(())
    }

    async fn attachments(&self) -> Result<Vec<Attachment>, Error> {
        let attachments = self.attachments.lock().unwrap();
        Ok(attachments.values().map(|(_, one)| one.clone()).collect())
    }

    async fn attachment(&self, name: &AttachmentName) -> Result<Attachment, Error> {
        let attachments = self.attachments.lock().unwrap();
        let found = attachments.get(name).map(|(_, one)| one.clone());
        found.ok_or_else(|| Error::no_attachment(name))
    }

    async fn volume(&self, _: &Call, name: &VolumeName) -> Result<Volume, Error> {
        let state = self.world.state();
        let disk = state.disks.get(name.as_str());
        let disk = disk.ok_or_else(|| Error::new(Code::NotFound, "no such volume"))?;
        Ok(Volume {
            name: name.clone(),
            id: "1".into(),
            state: VolumeState::Available,
            health: None,
            size_bytes: disk.size,
            template: None,
            description: None,
            units: Vec::new(),
        })
    }

    async fn change_volume(
        &self,
        call: &Call,
        name: &VolumeName,
        patch: VolumePatch,
    ) -> Result<Volume, Error> {
        if let Some(disk) = self.world.state().disks.get_mut(name.as_str()) {
            disk.size = patch.size_bytes.unwrap_or(disk.size);
        }
        self.step(format!("resize {name}"))?;
        self.volume(call, name).await
    }

    async fn node(&self) -> Result<Node, Error> {
        Ok(Node {
            name: "storage-name".into(),
            initiator_name: "iqn.2026-11.io.berth:worker-1".into(),
            version: "0.1.0".into(),
            started_unix_ms: 1,
            nbd_socket: "/run/berth/nbd.sock".into(),
            kernel_nbd: KernelNbd {
                available: true,
                detail: None,
            },
            limits: NodeLimits {
                attachments_max: 256,
                data_threads: 2,
                request_max_bytes: 32 << 20,
            },
            attachments: 0,
        })
    }

    async fn change(
        &self,
        _: &Call,
        _: &AttachmentName,
        _: AttachmentPatch,
    ) -> Result<Attachment, Error> {
        nothing()
    }

    async fn discover(&self, _: &Call, _: DiscoveryRequest) -> Result<Discovery, Error> {
        nothing()
    }

    async fn templates(&self, _: &Call) -> Result<Vec<Template>, Error> {
        nothing()
    }

    async fn volumes(&self, _: &Call) -> Result<Vec<Volume>, Error> {
        nothing()
    }

    async fn create_volume(
        &self,
        _: &Call,
        _: &VolumeName,
        _: VolumeRequest,
    ) -> Result<(Volume, bool), Error> {
        nothing()
    }

    async fn delete_volume(
        &self,
        _: &Call,
        _: &VolumeName,
        _: Option<DeletePolicy>,
        _: bool,
    ) -> Result<(), Error> {
        nothing()
    }

    async fn grant(&self, _: &Call, _: &VolumeName, _: &TargetName) -> Result<Volume, Error> {
        nothing()
    }

    async fn revoke(&self, _: &Call, _: &VolumeName, _: &TargetName) -> Result<(), Error> {
        nothing()
    }

    async fn snapshots(&self, _: &Call, _: &VolumeName) -> Result<Vec<Snapshot>, Error> {
        nothing()
    }

    async fn fabric(&self, _: &Call) -> Result<FabricStatus, Error> {
        nothing()
    }

    async fn all_snapshots(&self, _: &Call) -> Result<Vec<Snapshot>, Error> {
        nothing()
    }

    async fn take_snapshot(
        &self,
        _: &Call,
        _: &VolumeName,
        _: &str,
    ) -> Result<(Snapshot, bool), Error> {
        nothing()
    }

    async fn delete_snapshot(&self, _: &Call, _: &VolumeName, _: &str) -> Result<(), Error> {
        nothing()
    }

    async fn restore_snapshot(&self, _: &Call, _: &VolumeName, _: &str) -> Result<Volume, Error> {
        nothing()
    }

    fn events(&self, _: Option<u64>) -> EventStream {
        Box::pin(tokio_stream::empty())
    }

    async fn ready(&self) -> Health {
        Health::default()
    }

    async fn metrics(&self) -> String {
        String::new()
    }
}

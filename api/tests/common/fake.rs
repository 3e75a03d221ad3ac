//! A node that only pretends, for tests of router, client and command line.

#![allow(clippy::unwrap_used, reason = "this is all test code")]
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use berth_api::events::EventLog;
use berth_api::types::{
    AttachRequest, Attachment, AttachmentPatch, AttachmentState, CheckResult, Counters,
    DeletePolicy, DiscoveredPortal, DiscoveredTarget, Discovery, DiscoveryRequest, EventKind,
    FabricKind, FabricStatus, Health, KernelNbd, NewEvent, Node, NodeLimits, Snapshot,
    SourceSummary, Template, TemplateVolume, Volume, VolumePatch, VolumeRequest, VolumeState,
    VolumeUnit,
};
use berth_api::{
    Attached, AttachmentName, Call, Code, Error, EventStream, NodeService, Portal, TargetName,
    VolumeName,
};
use tokio::sync::{Semaphore, watch};

/// Keeps attachments in memory. Names tell it what to do: `slow` attaches when [`Fake::release`] is
/// called, `busy` is in use, `panics` panics, and the word of a code fails with that code.
pub(crate) struct Fake {
    pub(crate) attachments: Mutex<BTreeMap<AttachmentName, (AttachRequest, Attachment)>>,
    pub(crate) calls: Mutex<Vec<Call>>,
    pub(crate) events: EventLog,
    pub(crate) ready: Mutex<Vec<CheckResult>>,
    pub(crate) volumes: Mutex<BTreeMap<VolumeName, Volume>>,
    pub(crate) volume_requests: Mutex<Vec<VolumeRequest>>,
    pub(crate) snapshots: Mutex<BTreeMap<String, Snapshot>>,
    gate: Semaphore,
    /// Attaches of `slow` that came to the gate.
    pub(crate) waiting: watch::Sender<usize>,
}

impl Fake {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            attachments: Mutex::default(),
            calls: Mutex::default(),
            events: EventLog::new(16),
            ready: Mutex::new(vec![CheckResult::pass("state")]),
            volumes: Mutex::default(),
            volume_requests: Mutex::default(),
            snapshots: Mutex::default(),
            gate: Semaphore::new(0),
            waiting: watch::Sender::new(0),
        })
    }

    /// Lets one attach of `slow` go on.
    pub(crate) fn release(&self) {
        self.gate.add_permits(1);
    }
}

pub(crate) fn attachment(name: &AttachmentName, request: &AttachRequest) -> Attachment {
    Attachment {
        name: name.clone(),
        state: AttachmentState::Attached,
        since_unix_ms: 1_795_000_000_000,
        reason: None,
        device: None,
        device_detail: None,
        nbd_uri: Some(format!("nbd+unix:///{name}?socket=/run/berth/nbd.sock")),
        size_bytes: Some(1 << 30),
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

fn no_volume(name: &VolumeName) -> Error {
    Error::new(Code::NotFound, format!("there is no volume {name}"))
}

pub(crate) fn volume(name: &VolumeName, size_bytes: u64) -> Volume {
    Volume {
        name: name.clone(),
        id: "1c0e0a52-53a4-4c0b-8f3f-6f3a1f5d9b01".into(),
        state: VolumeState::Available,
        health: Some("ok".into()),
        size_bytes,
        template: None,
        description: None,
        units: vec![VolumeUnit {
            name: "storage-1/volume-1".into(),
            serial: None,
            size_bytes,
            replicas: Some(3),
            placement: Some("hybrid".into()),
            qos: None,
            target: Some(
                "iqn.2013-05.com.daterainc:tc:01:sn:4a6f0c1d92e83b57"
                    .parse()
                    .unwrap(),
            ),
            portals: vec![Portal::new("172.28.10.21", 3260).unwrap()],
            lun: 0,
            chap: false,
            open: false,
            access: Vec::new(),
            access_groups: Vec::new(),
            sessions: Vec::new(),
        }],
    }
}

impl NodeService for Fake {
    async fn attach(
        &self,
        call: &Call,
        name: &AttachmentName,
        request: AttachRequest,
    ) -> Result<Attached, Error> {
        self.calls.lock().unwrap().push(call.clone());
        if name.as_str() == "slow" {
            self.waiting.send_modify(|waiting| *waiting += 1);
            self.gate.acquire().await.unwrap().forget();
        }
        assert_ne!(name.as_str(), "panics", "as it was told");
        if let Some(code) = Code::all().find(|code| code.as_str() == name.as_str()) {
            return Err(Error::new(code, format!("the fake was told to say {code}"))
                .with_cause(std::io::Error::other("not for callers")));
        }
        let mut attachments = self.attachments.lock().unwrap();
        if let Some((kept, attachment)) = attachments.get(name) {
            let differences = kept.differences(&request);
            if differences.is_empty() {
                return Ok(Attached {
                    attachment: attachment.clone(),
                    created: false,
                });
            }
            return Err(Error::new(
                Code::ConflictIncompatible,
                format!("{name} differs in {}", differences.join(", ")),
            )
            .with_attachment(name));
        }
        let attachment = attachment(name, &request);
        attachments.insert(name.clone(), (request, attachment.clone()));
        let mut event = NewEvent::new(EventKind::State, format!("{name} is attached"));
        event.attachment = Some(name.clone());
        event.state = Some(AttachmentState::Attached);
        self.events.publish(event);
        Ok(Attached {
            attachment,
            created: true,
        })
    }

    async fn detach(&self, call: &Call, name: &AttachmentName, force: bool) -> Result<(), Error> {
        self.calls.lock().unwrap().push(call.clone());
        if name.as_str() == "busy" && !force {
            return Err(Error::new(Code::InUse, "busy is open by 1 NBD client"));
        }
        self.attachments.lock().unwrap().remove(name);
        Ok(())
    }

    async fn change(
        &self,
        call: &Call,
        name: &AttachmentName,
        patch: AttachmentPatch,
    ) -> Result<Attachment, Error> {
        self.calls.lock().unwrap().push(call.clone());
        let mut attachments = self.attachments.lock().unwrap();
        let (_, attachment) = attachments
            .get_mut(name)
            .ok_or_else(|| Error::no_attachment(name))?;
        if let Some(timeout) = patch.recovery_timeout_seconds {
            attachment.recovery_timeout_seconds = timeout.unwrap_or_default();
        }
        if let Some(portals) = patch.portals()
            && let SourceSummary::Iscsi(source) = &mut attachment.source
        {
            source.portals = portals.to_vec();
        }
        Ok(attachment.clone())
    }

    async fn attachments(&self) -> Result<Vec<Attachment>, Error> {
        let attachments = self.attachments.lock().unwrap();
        Ok(attachments
            .values()
            .map(|(_, attachment)| attachment.clone())
            .collect())
    }

    async fn attachment(&self, name: &AttachmentName) -> Result<Attachment, Error> {
        let attachments = self.attachments.lock().unwrap();
        attachments
            .get(name)
            .map(|(_, attachment)| attachment.clone())
            .ok_or_else(|| Error::no_attachment(name))
    }

    async fn discover(&self, call: &Call, request: DiscoveryRequest) -> Result<Discovery, Error> {
        self.calls.lock().unwrap().push(call.clone());
        if request.portal.host() == "silent" {
            std::future::pending::<()>().await;
        }
        Ok(Discovery {
            portal: request.portal,
            targets: vec![DiscoveredTarget {
                target: match request.auth {
                    None => "iqn.2026-11.example:open".parse().unwrap(),
                    Some(_) => "iqn.2026-11.example:closed".parse().unwrap(),
                },
                portals: vec![DiscoveredPortal {
                    address: Portal::new("2001:db8::1", 3260).unwrap(),
                    portal_group_tag: 1,
                }],
            }],
        })
    }

    async fn fabric(&self, call: &Call) -> Result<FabricStatus, Error> {
        self.calls.lock().unwrap().push(call.clone());
        Ok(FabricStatus {
            kind: FabricKind::Declared,
            url: None,
            reachable: true,
            reason: None,
            name: Some("fake".into()),
            version: None,
            api_version: None,
            health: Some("ok".into()),
            capacity: None,
            breaker: None,
        })
    }

    async fn templates(&self, call: &Call) -> Result<Vec<Template>, Error> {
        self.calls.lock().unwrap().push(call.clone());
        Ok(vec![Template {
            name: "gold".into(),
            description: Some("fast".into()),
            units: vec![TemplateVolume {
                name: "storage-1/volume-1".into(),
                size_bytes: 10 << 30,
                replicas: Some(3),
                placement: Some("all_flash".into()),
                qos: None,
            }],
        }])
    }

    async fn volumes(&self, call: &Call) -> Result<Vec<Volume>, Error> {
        self.calls.lock().unwrap().push(call.clone());
        Ok(self.volumes.lock().unwrap().values().cloned().collect())
    }

    async fn volume(&self, _: &Call, name: &VolumeName) -> Result<Volume, Error> {
        let volumes = self.volumes.lock().unwrap();
        volumes.get(name).cloned().ok_or_else(|| no_volume(name))
    }

    async fn create_volume(
        &self,
        call: &Call,
        name: &VolumeName,
        request: VolumeRequest,
    ) -> Result<(Volume, bool), Error> {
        self.calls.lock().unwrap().push(call.clone());
        self.volume_requests.lock().unwrap().push(request.clone());
        if let Some(code) = Code::all().find(|code| code.as_str() == name.as_str()) {
            return Err(Error::new(code, format!("the fake was told to say {code}")));
        }
        let mut volumes = self.volumes.lock().unwrap();
        if let Some(volume) = volumes.get(name) {
            return Ok((volume.clone(), false));
        }
        let volume = volume(name, request.size_bytes.unwrap_or(10 << 30));
        volumes.insert(name.clone(), volume.clone());
        Ok((volume, true))
    }

    async fn change_volume(
        &self,
        _: &Call,
        name: &VolumeName,
        patch: VolumePatch,
    ) -> Result<Volume, Error> {
        let mut volumes = self.volumes.lock().unwrap();
        let volume = volumes.get_mut(name).ok_or_else(|| no_volume(name))?;
        if let Some(size) = patch.size_bytes {
            if size < volume.size_bytes {
                return Err(
                    Error::new(Code::OutOfRange, "it cannot shrink").with_field("size_bytes")
                );
            }
            volume.size_bytes = size;
        }
        if let Some(qos) = patch.qos {
            volume.units[0].qos = qos;
        }
        Ok(volume.clone())
    }

    async fn delete_volume(
        &self,
        _: &Call,
        name: &VolumeName,
        policy: Option<DeletePolicy>,
        _with_snapshots: bool,
    ) -> Result<(), Error> {
        let mut volumes = self.volumes.lock().unwrap();
        if policy == Some(DeletePolicy::Retain) {
            if let Some(volume) = volumes.get_mut(name) {
                volume.state = VolumeState::Offline;
            }
        } else {
            volumes.remove(name);
        }
        Ok(())
    }

    async fn grant(
        &self,
        _: &Call,
        name: &VolumeName,
        initiator: &TargetName,
    ) -> Result<Volume, Error> {
        let mut volumes = self.volumes.lock().unwrap();
        let volume = volumes.get_mut(name).ok_or_else(|| no_volume(name))?;
        volume.units[0].access.push(initiator.to_string());
        Ok(volume.clone())
    }

    async fn revoke(
        &self,
        _: &Call,
        name: &VolumeName,
        initiator: &TargetName,
    ) -> Result<(), Error> {
        if let Some(volume) = self.volumes.lock().unwrap().get_mut(name) {
            volume.units[0]
                .access
                .retain(|one| one != initiator.as_str());
        }
        Ok(())
    }

    async fn snapshots(&self, _: &Call, name: &VolumeName) -> Result<Vec<Snapshot>, Error> {
        if !self.volumes.lock().unwrap().contains_key(name) {
            return Err(no_volume(name));
        }
        Ok(self.snapshots.lock().unwrap().values().cloned().collect())
    }

    async fn all_snapshots(&self, _: &Call) -> Result<Vec<Snapshot>, Error> {
        let mut all: Vec<_> = self.snapshots.lock().unwrap().values().cloned().collect();
        all.sort_by_key(Snapshot::place);
        Ok(all)
    }

    async fn take_snapshot(
        &self,
        _: &Call,
        name: &VolumeName,
        snapshot: &str,
    ) -> Result<(Snapshot, bool), Error> {
        if !self.volumes.lock().unwrap().contains_key(name) {
            return Err(no_volume(name));
        }
        let taken = Snapshot {
            volume: name.clone(),
            id: format!("id-of-{snapshot}"),
            name: Some(snapshot.into()),
            taken_unix_ms: Some(1_600_000_000_123),
            ready: true,
        };
        let former = (self.snapshots.lock().unwrap()).insert(snapshot.to_owned(), taken.clone());
        Ok((taken, former.is_none()))
    }

    async fn delete_snapshot(&self, _: &Call, _: &VolumeName, snapshot: &str) -> Result<(), Error> {
        self.snapshots.lock().unwrap().remove(snapshot);
        Ok(())
    }

    async fn restore_snapshot(
        &self,
        call: &Call,
        name: &VolumeName,
        snapshot: &str,
    ) -> Result<Volume, Error> {
        if !self.snapshots.lock().unwrap().contains_key(snapshot) {
            return Err(Error::new(
                Code::NotFound,
                format!("there is no snapshot {snapshot}"),
            ));
        }
        self.volume(call, name).await
    }

    async fn node(&self) -> Result<Node, Error> {
        Ok(Node {
            name: "worker-1".into(),
            initiator_name: "iqn.2026-11.io.berth:worker-1".into(),
            version: "0.1.0".into(),
            started_unix_ms: 1,
            nbd_socket: "/run/berth/nbd.sock".into(),
            kernel_nbd: KernelNbd {
                available: false,
                detail: Some("no module".into()),
            },
            limits: NodeLimits {
                attachments_max: 256,
                data_threads: 2,
                request_max_bytes: 32 << 20,
            },
            attachments: 0,
        })
    }

    fn events(&self, after: Option<u64>) -> EventStream {
        self.events.subscribe(after)
    }

    async fn ready(&self) -> Health {
        Health {
            checks: self.ready.lock().unwrap().clone(),
        }
    }

    async fn metrics(&self) -> String {
        "# TYPE berth_build_info gauge\nberth_build_info 1\n".into()
    }
}

/// The body of an attach that is right.
pub(crate) fn body() -> serde_json::Value {
    serde_json::json!({
        "source": { "iscsi": {
            "portals": ["192.0.2.10:3260", "[2001:db8::1]:3260"],
            "target": "iqn.2026-11.example:disk0", "lun": 1,
            "auth": { "chap": { "user": "u", "secret": "hunter2hunter2",
                "mutual": { "user": "t", "secret": "sesamesesame" } } }
        } },
        "device": "auto", "read_only": false, "fence": "none",
        "digests": { "header": "prefer", "data": "require" }
    })
}

pub(crate) fn request() -> AttachRequest {
    serde_json::from_value(body()).unwrap()
}

pub(crate) fn name(text: &str) -> AttachmentName {
    text.parse().unwrap()
}

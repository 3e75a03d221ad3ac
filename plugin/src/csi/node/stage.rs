//! Staging: from a volume to a mounted file system, or a device that is ready, and back.

use std::path::Path;
use std::sync::Arc;

use berth_api::types::Auth;
use tonic::Status;

use super::attached::Ready;
use super::record::{Record, Terms};
use super::{Shared, path};
use crate::csi::calls::Call;
use crate::csi::capability::{Access, Usage};
use crate::csi::controller::context;
use crate::csi::names::VolumeId;
use crate::csi::params;
use crate::csi::proto::v1::{
    NodeStageVolumeRequest, NodeStageVolumeResponse, NodeUnstageVolumeRequest,
    NodeUnstageVolumeResponse,
};
use crate::csi::status::{self, is_uncertain};
use crate::filesystem::{Content, FsType};

pub(super) async fn stage(
    shared: Arc<Shared>,
    call: Call,
    request: NodeStageVolumeRequest,
) -> Result<NodeStageVolumeResponse, Status> {
    if request.volume_id.is_empty() {
        return Err(status::missing("volume_id"));
    }
    let staging = path("staging_target_path", &request.staging_target_path)?;
    let usage = Usage::parse(request.volume_capability.as_ref())?;
    let auth = params::auth(&request.secrets)?;
    let gone = || status::no_volume(&request.volume_id);
    let id: VolumeId = request.volume_id.parse().map_err(|_| gone())?;
    let read_only = request
        .publish_context
        .get(context::READ_ONLY)
        .is_some_and(|value| value == "true");
    let terms = Terms::new(&usage, read_only);
    let serial = request.publish_context.get(context::SERIAL).cloned();
    let staged = Stage {
        shared: Arc::clone(&shared),
        call: call.clone(),
        id: id.clone(),
        usage,
        terms,
        staging: staging.clone(),
    };
    let work = async move { staged.run(auth, serial.as_deref()).await };
    shared.alone(&call, &id, work).await
}

struct Stage {
    shared: Arc<Shared>,
    call: Call,
    id: VolumeId,
    usage: Usage,
    terms: Terms,
    staging: std::path::PathBuf,
}

impl Stage {
    async fn run(
        self,
        auth: Option<Auth>,
        serial: Option<&str>,
    ) -> Result<NodeStageVolumeResponse, Status> {
        let (shared, id) = (&self.shared, &self.id);
        let mut record = match shared.record(id)? {
            Some(record) if self.is_still_staged(&record).await? => {
                if record.terms != self.terms || record.staging != self.staging {
                    return Err(Status::already_exists(format!(
                        "{id} is staged at {} in another way; unstage it first",
                        record.staging.display()
                    )));
                }
                record
            }
            // Begun and not ended, or undone by a restart of the machine.
            Some(old) => {
                self.undo_begun(&old).await?;
                Record::new(id, &self.staging, self.terms.clone())
            }
            None => Record::new(id, &self.staging, self.terms.clone()),
        };
        let is_new = !record.staged;
        if is_new {
            shared.remember(id, &record)?;
        }
        let done = self.make_ready(auth, serial).await;
        match done {
            Ok(()) => {
                record.staged = true;
                shared.remember(id, &record)?;
                Ok(NodeStageVolumeResponse {})
            }
            Err(error) if is_new && !is_uncertain(error.code()) => {
                // The caller will take it for certain that nothing was done: see to that first.
                match self.roll_back().await {
                    Ok(()) => Err(error),
                    Err(stuck) => Err(Status::aborted(format!(
                        "{}; and what was done cannot be undone yet: {}",
                        error.message(),
                        stuck.message()
                    ))),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Whether what the record says is there.
    async fn is_still_staged(&self, record: &Record) -> Result<bool, Status> {
        if !record.staged {
            return Ok(false);
        }
        Ok(match record.terms.fs {
            Some(_) => self.shared.host.mounted(&record.staging, None)?.is_some(),
            None => self
                .shared
                .attachment(&self.call, &self.id)
                .await?
                .is_some(),
        })
    }

    /// What is left of a stage that was cut off, when another one is asked for.
    async fn undo_begun(&self, old: &Record) -> Result<(), Status> {
        let same = old.terms == self.terms && old.staging == self.staging;
        if same {
            return Ok(());
        }
        self.shared.host.unmount(&old.staging).await?;
        self.shared.detach(&self.call, &self.id).await
    }

    async fn make_ready(&self, auth: Option<Auth>, serial: Option<&str>) -> Result<(), Status> {
        let (shared, id) = (&self.shared, &self.id);
        let ready = shared
            .attach(&self.call, id, &self.terms, auth, serial)
            .await?;
        let Access::Mount { fs, flags } = &self.usage.access else {
            return Ok(());
        };
        let fs: FsType = fs
            .parse()
            .map_err(|error| Status::invalid_argument(format!("{error}")))?;
        match shared.host.mounted(&self.staging, Some(&ready.device))? {
            Some(mounted) if mounted.is_of_device => {}
            Some(mounted) => {
                return Err(Status::failed_precondition(format!(
                    "{}: something else ({}) is mounted there",
                    self.staging.display(),
                    mounted.fs
                )));
            }
            None => {
                self.fill(&ready, fs).await?;
                let read_only = self.terms.read_only;
                shared
                    .host
                    .mount(&ready.device, &self.staging, fs, flags, read_only)
                    .await?;
            }
        }
        if !self.terms.read_only {
            // A copy, or a volume that has grown, is larger than its file system.
            shared.host.grow(&ready.device, &self.staging, fs).await?;
        }
        Ok(())
    }

    /// Sees to it that there is a sound file system of this type on the device.
    async fn fill(&self, ready: &Ready, fs: FsType) -> Result<(), Status> {
        let (host, id) = (&self.shared.host, &self.id);
        let content = host.content(&ready.device).await?;
        match content {
            Content::Blank if self.terms.read_only || ready.attachment.read_only => {
                Err(Status::failed_precondition(format!(
                    "{id} holds nothing, and may only be read: there is no file system to mount"
                )))
            }
            Content::Blank => {
                tracing::info!(volume = %id, %fs, "the volume is blank; a file system is made on it");
                host.make(&ready.device, fs).await
            }
            found if found.is(fs) => {
                if self.terms.read_only || ready.attachment.read_only {
                    return Ok(());
                }
                host.check(&ready.device, fs).await
            }
            other => Err(Status::failed_precondition(format!(
                "{id} holds {other}, and {fs} is asked for: nothing is touched"
            ))),
        }
    }

    async fn roll_back(&self) -> Result<(), Status> {
        let shared = &self.shared;
        shared.host.unmount(&self.staging).await?;
        shared.detach(&self.call, &self.id).await?;
        shared
            .records
            .remove(&self.id)
            .map_err(|error| super::kept(&error))
    }
}

pub(super) async fn unstage(
    shared: Arc<Shared>,
    call: Call,
    request: NodeUnstageVolumeRequest,
) -> Result<NodeUnstageVolumeResponse, Status> {
    if request.volume_id.is_empty() {
        return Err(status::missing("volume_id"));
    }
    let staging = path("staging_target_path", &request.staging_target_path)?;
    let Ok(id) = request.volume_id.parse::<VolumeId>() else {
        // Nothing of that name was ever staged here.
        return Ok(NodeUnstageVolumeResponse {});
    };
    let (inner, owned, volume) = (call.clone(), Arc::clone(&shared), id.clone());
    let work = async move {
        let record = owned.record(&volume)?;
        if let Some(record) = &record {
            // Whoever is asked to take the floor away looks who stands on it.
            for target in record.published.keys() {
                if owned.host.mounted(target, None)?.is_some() {
                    return Err(Status::failed_precondition(format!(
                        "{volume} is still published at {}; unpublish it first",
                        target.display()
                    )));
                }
            }
        }
        unmount(&owned, &inner, &volume, &staging).await?;
        if let Some(record) = record.filter(|record| record.staging != staging) {
            unmount(&owned, &inner, &volume, &record.staging).await?;
        }
        owned.detach(&inner, &volume).await?;
        owned
            .records
            .remove(&volume)
            .map_err(|error| super::kept(&error))?;
        Ok(NodeUnstageVolumeResponse {})
    };
    shared.alone(&call, &id, work).await
}

/// Takes the mounts away. Where that waits for a volume that this node has lost, I/O is made to fail first.
pub(super) async fn unmount(
    shared: &Shared,
    call: &Call,
    id: &VolumeId,
    at: &Path,
) -> Result<(), Status> {
    if shared.host.mounted(at, None)?.is_none() {
        return Ok(());
    }
    if shared.is_lost(call, id).await.unwrap_or(false) {
        tracing::warn!(volume = %id, "this node has lost the volume: what it still had for it is given up");
        shared.force(call, id).await?;
    }
    shared.host.unmount(at).await
}

//! Publishing: showing a staged volume at the path of a pod, and taking it away.

use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;

use tonic::Status;

use super::record::{Record, Terms};
use super::{Shared, path};
use crate::csi::calls::Call;
use crate::csi::capability::{Mode, Usage};
use crate::csi::names::VolumeId;
use crate::csi::proto::v1::{
    NodePublishVolumeRequest, NodePublishVolumeResponse, NodeUnpublishVolumeRequest,
    NodeUnpublishVolumeResponse,
};
use crate::csi::status::{self, is_uncertain};

pub(super) async fn publish(
    shared: Arc<Shared>,
    call: Call,
    request: NodePublishVolumeRequest,
) -> Result<NodePublishVolumeResponse, Status> {
    if request.volume_id.is_empty() {
        return Err(status::missing("volume_id"));
    }
    let target = path("target_path", &request.target_path)?;
    let usage = Usage::parse(request.volume_capability.as_ref())?;
    if request.staging_target_path.is_empty() {
        return Err(Status::failed_precondition(
            "staging_target_path is missing: volumes are staged before they are published",
        ));
    }
    let staging = path("staging_target_path", &request.staging_target_path)?;
    let gone = || status::no_volume(&request.volume_id);
    let id: VolumeId = request.volume_id.parse().map_err(|_| gone())?;
    let terms = Terms::new(&usage, request.readonly);
    let (inner, owned, volume) = (call.clone(), Arc::clone(&shared), id.clone());
    let work = async move {
        let record = owned.record(&volume)?.filter(|record| record.staged);
        let record = record.ok_or_else(|| not_staged(&volume))?;
        if record.staging != staging {
            return Err(Status::failed_precondition(format!(
                "{volume} is staged at {}, not at {}",
                record.staging.display(),
                staging.display()
            )));
        }
        Publish {
            shared: owned,
            call: inner,
            id: volume,
            terms,
        }
        .run(record, &target)
        .await
    };
    shared.alone(&call, &id, work).await
}

fn not_staged(id: &VolumeId) -> Status {
    Status::failed_precondition(format!("{id} is not staged on this node"))
}

struct Publish {
    shared: Arc<Shared>,
    call: Call,
    id: VolumeId,
    terms: Terms,
}

impl Publish {
    async fn run(
        mut self,
        mut record: Record,
        target: &Path,
    ) -> Result<NodePublishVolumeResponse, Status> {
        let (host, id) = (Arc::clone(&self.shared.host), self.id.clone());
        if record.terms.fs != self.terms.fs {
            let shown =
                |fs: &Option<String>| fs.clone().unwrap_or_else(|| "a raw device".to_owned());
            return Err(Status::failed_precondition(format!(
                "{id} is staged as {}, and {} is asked for",
                shown(&record.terms.fs),
                shown(&self.terms.fs)
            )));
        }
        if self.terms.fs.is_none() && self.terms.read_only && !record.terms.read_only {
            return Err(Status::failed_precondition(format!(
                "{id} is staged writable, and a raw device cannot be read-only at one path alone: publish it read-only to the \
                 node (ControllerPublishVolume)"
            )));
        }
        self.terms.read_only |= record.terms.read_only;
        let terms = &self.terms;
        let mut is_there = false;
        for (path, others) in &record.published {
            if host.mounted(path, None)?.is_none() {
                continue;
            }
            if path == target {
                if others != terms {
                    return Err(Status::already_exists(format!(
                        "{id} is published at {} in another way; unpublish it first",
                        target.display()
                    )));
                }
                is_there = true;
            } else if [others.mode, terms.mode].contains(&Mode::SingleNodeSingleWriter) {
                return Err(Status::failed_precondition(format!(
                    "{id} is published at {}, and one of the two wants it for itself alone",
                    path.display()
                )));
            }
        }
        if is_there {
            return Ok(NodePublishVolumeResponse {});
        }
        if host.mounted(target, None)?.is_some() {
            return Err(Status::failed_precondition(format!(
                "{}: something else is mounted there",
                target.display()
            )));
        }
        record.published.insert(target.to_owned(), terms.clone());
        self.shared.remember(&id, &record)?;
        match self.show(&record, target).await {
            Ok(()) => Ok(NodePublishVolumeResponse {}),
            Err(error) if !is_uncertain(error.code()) => {
                if let Err(stuck) = take_away(&self.shared, target).await {
                    return Err(Status::aborted(format!(
                        "{}; and what was done cannot be undone yet: {}",
                        error.message(),
                        stuck.message()
                    )));
                }
                record.published.remove(target);
                self.shared.remember(&id, &record)?;
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    async fn show(&self, record: &Record, target: &Path) -> Result<(), Status> {
        let host = &self.shared.host;
        if record.terms.fs.is_some() {
            if host.mounted(&record.staging, None)?.is_none() {
                return Err(not_staged(&self.id));
            }
            match DirBuilder::new().mode(0o750).create(target) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                    return Err(cannot("make", target, &error));
                }
                _ => {}
            }
            return host
                .bind(&record.staging, target, self.terms.read_only)
                .await;
        }
        let ready = self.shared.ready(&self.call, &self.id).await?;
        let ready = ready.ok_or_else(|| not_staged(&self.id))?;
        host.bind_block(&ready.device, target).await
    }
}

fn cannot(what: &str, path: &Path, error: &std::io::Error) -> Status {
    Status::internal(format!("cannot {what} {}: {error}", path.display()))
}

pub(super) async fn unpublish(
    shared: Arc<Shared>,
    call: Call,
    request: NodeUnpublishVolumeRequest,
) -> Result<NodeUnpublishVolumeResponse, Status> {
    if request.volume_id.is_empty() {
        return Err(status::missing("volume_id"));
    }
    let target = path("target_path", &request.target_path)?;
    let Ok(id) = request.volume_id.parse::<VolumeId>() else {
        // Nothing of that name was ever published here.
        return Ok(NodeUnpublishVolumeResponse {});
    };
    let (inner, owned, volume) = (call.clone(), Arc::clone(&shared), id.clone());
    let work = async move {
        super::stage::unmount(&owned, &inner, &volume, &target).await?;
        take_away(&owned, &target).await?;
        if let Some(mut record) = owned.record(&volume)?
            && record.published.remove(&target).is_some()
        {
            owned.remember(&volume, &record)?;
        }
        Ok(NodeUnpublishVolumeResponse {})
    };
    shared.alone(&call, &id, work).await
}

/// Takes away what is mounted at a target, and the target. Never what is in it: a directory that is not empty with nothing mounted on it
/// holds somebody's data.
async fn take_away(shared: &Shared, target: &Path) -> Result<(), Status> {
    shared.host.unmount(target).await?;
    let removed = match std::fs::symlink_metadata(target) {
        Ok(found) if found.is_dir() => std::fs::remove_dir(target),
        Ok(found) if found.len() > 0 => {
            return Err(Status::failed_precondition(format!(
                "{} is a file with data in it, and nothing is mounted on it: it is left alone",
                target.display()
            )));
        }
        Ok(_) => std::fs::remove_file(target),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(cannot("remove", target, &error)),
        Ok(()) => Ok(()),
    }
}

//! Snapshots. The fabric keeps no names of them but lets the client choose the identifier, so the name gives it: alike for all
//! volumes, which is how the same name on another volume is seen.

use std::fmt::Display;
use std::sync::Arc;

use berth_api::types::{PageRequest, Snapshot, Volume};
use tonic::Status;

use crate::csi::Driver;
use crate::csi::calls::Call;
use crate::csi::names::{self, SnapshotId, VolumeId};
use crate::csi::proto::v1::{
    self, CreateSnapshotRequest, CreateSnapshotResponse, DeleteSnapshotRequest,
    DeleteSnapshotResponse, GetSnapshotRequest, GetSnapshotResponse, ListSnapshotsRequest,
    ListSnapshotsResponse, list_snapshots_response::Entry,
};
use crate::csi::size;
use crate::csi::status::{self, Told as _};

/// Before a place in a token.
const TOKEN: &str = "after:";

pub(super) fn no_snapshot(id: impl Display) -> Status {
    Status::not_found(format!("there is no snapshot {id}"))
}

/// The snapshot, if it is there.
pub(super) async fn find(call: &Call, id: &SnapshotId) -> Result<Option<Snapshot>, Status> {
    let all = status::found(call.client.snapshots(&id.volume).await)?;
    let found = |snapshot: &Snapshot| snapshot.id == id.id;
    Ok(all.unwrap_or_default().into_iter().find(found))
}

fn shown(snapshot: &Snapshot, size_bytes: u64) -> v1::Snapshot {
    let taken = snapshot.taken_unix_ms.unwrap_or_default();
    let id = SnapshotId {
        volume: snapshot.volume.clone(),
        id: snapshot.id.clone(),
    };
    v1::Snapshot {
        size_bytes: size::wire(size_bytes),
        snapshot_id: id.to_string(),
        source_volume_id: VolumeId::of(snapshot.volume.clone()).to_string(),
        creation_time: Some(prost_types::Timestamp {
            seconds: i64::try_from(taken / 1000).unwrap_or(i64::MAX),
            nanos: i32::try_from(taken % 1000 * 1_000_000).unwrap_or_default(),
        }),
        ready_to_use: snapshot.ready,
        group_snapshot_id: String::new(),
    }
}

pub(super) async fn create(
    driver: Arc<Driver>,
    call: Call,
    request: CreateSnapshotRequest,
) -> Result<CreateSnapshotResponse, Status> {
    super::create::check_name(&request.name)?;
    if request.source_volume_id.is_empty() {
        return Err(status::missing("source_volume_id"));
    }
    if let Some(key) = request
        .parameters
        .keys()
        .find(|key| !key.starts_with("csi.storage.k8s.io/"))
    {
        return Err(Status::invalid_argument(format!(
            "parameter {key:?}: snapshots have none"
        )));
    }
    let gone = status::no_volume(&request.source_volume_id);
    let source: VolumeId = request.source_volume_id.parse().map_err(|_| gone.clone())?;
    let uuid = names::snapshot_uuid(&request.name);
    let key = format!("snapshot {uuid}");
    let inner = call.clone();
    let work = async move {
        let volume = status::found(inner.client.volume(&source.volume).await)?.ok_or(gone)?;
        single(&volume)?;
        let there = inner.client.snapshots(&source.volume).await.told()?;
        if !there.iter().any(|snapshot| snapshot.id == uuid) {
            let all = inner.client.all_snapshots().await.told()?;
            if let Some(other) = all.iter().find(|snapshot| snapshot.id == uuid) {
                return Err(Status::already_exists(format!(
                    "a snapshot of this name exists of another volume, {}",
                    other.volume
                )));
            }
        }
        let (snapshot, created) = inner
            .client
            .take_snapshot(&source.volume, &uuid)
            .await
            .told()?;
        if created {
            tracing::info!(volume = %source, snapshot = uuid, "snapshot taken");
        }
        Ok(CreateSnapshotResponse {
            snapshot: Some(shown(&snapshot, volume.size_bytes)),
        })
    };
    driver.calls.alone(&call, key, work).await
}

fn single(volume: &Volume) -> Result<(), Status> {
    if volume.units.len() == 1 {
        return Ok(());
    }
    Err(Status::failed_precondition(format!(
        "volume {} has {} units; take its snapshots on the fabric, of all of them at one moment",
        volume.name,
        volume.units.len()
    )))
}

pub(super) async fn delete(
    driver: Arc<Driver>,
    call: Call,
    request: DeleteSnapshotRequest,
) -> Result<DeleteSnapshotResponse, Status> {
    if request.snapshot_id.is_empty() {
        return Err(status::missing("snapshot_id"));
    }
    let Ok(id) = request.snapshot_id.parse::<SnapshotId>() else {
        return Ok(DeleteSnapshotResponse {});
    };
    let key = format!("snapshot {}", id.id);
    let inner = call.clone();
    let work = async move {
        // Not there, or its volume is not there: nothing to do.
        if find(&inner, &id).await?.is_some() {
            inner
                .client
                .delete_snapshot(&id.volume, &id.id)
                .await
                .told()?;
        }
        Ok(DeleteSnapshotResponse {})
    };
    driver.calls.alone(&call, key, work).await
}

pub(super) async fn get(
    _: Arc<Driver>,
    call: Call,
    request: GetSnapshotRequest,
) -> Result<GetSnapshotResponse, Status> {
    if request.snapshot_id.is_empty() {
        return Err(status::missing("snapshot_id"));
    }
    let gone = || no_snapshot(&request.snapshot_id);
    let id: SnapshotId = request.snapshot_id.parse().map_err(|_| gone())?;
    let snapshot = find(&call, &id).await?.ok_or_else(gone)?;
    let volume = status::found(call.client.volume(&id.volume).await)?.ok_or_else(gone)?;
    Ok(GetSnapshotResponse {
        snapshot: Some(shown(&snapshot, volume.size_bytes)),
    })
}

/// By volume, then by age. A filter for what is not there gives nothing, and is no error.
pub(super) async fn list(
    _: Arc<Driver>,
    call: Call,
    request: ListSnapshotsRequest,
) -> Result<ListSnapshotsResponse, Status> {
    let limit = super::list::limit(request.max_entries)?;
    let after = match request.starting_token.as_str() {
        "" => None,
        token => Some(
            token
                .strip_prefix(TOKEN)
                .map(str::to_owned)
                .ok_or_else(|| {
                    Status::aborted(format!(
                        "starting_token {token:?} is none of ours; begin again"
                    ))
                })?,
        ),
    };
    let by_id = request.snapshot_id.as_str();
    let by_source = request.source_volume_id.as_str();
    let page = PageRequest { after, limit };
    let (found, next) = if by_id.is_empty() && by_source.is_empty() {
        let list = call.client.snapshots_page(&page).await.map_err(|error| {
            // The one thing that can be wrong with such a request is where it begins.
            match error.code() {
                Some(berth_api::Code::InvalidArgument) => {
                    Status::aborted("starting_token is none of ours; begin again")
                }
                _ => status::of(&error),
            }
        })?;
        (list.snapshots, list.next)
    } else {
        let found = filtered(&call, by_id, by_source).await?;
        let begin = page.after.as_deref().map(str::parse).transpose();
        let begin =
            begin.map_err(|_| Status::aborted("starting_token is none of ours; begin again"))?;
        let (found, next) = page.cut(found, begin.as_ref(), Snapshot::place);
        (found, next.map(|place| place.to_string()))
    };
    let mut sizes = std::collections::HashMap::new();
    let mut entries = Vec::with_capacity(found.len());
    for snapshot in &found {
        let size_bytes = match sizes.get(&snapshot.volume) {
            Some(size) => *size,
            None => {
                let volume = status::found(call.client.volume(&snapshot.volume).await)?;
                let size = volume.map_or(0, |volume| volume.size_bytes);
                sizes.insert(snapshot.volume.clone(), size);
                size
            }
        };
        entries.push(Entry {
            snapshot: Some(shown(snapshot, size_bytes)),
        });
    }
    Ok(ListSnapshotsResponse {
        entries,
        next_token: next
            .map(|next| format!("{TOKEN}{next}"))
            .unwrap_or_default(),
    })
}

async fn filtered(call: &Call, by_id: &str, by_source: &str) -> Result<Vec<Snapshot>, Status> {
    let source = match by_source {
        "" => None,
        text => match text.parse::<VolumeId>() {
            Ok(id) => Some(id.volume),
            Err(_) => return Ok(Vec::new()),
        },
    };
    if by_id.is_empty() {
        let Some(source) = source else {
            return Ok(Vec::new());
        };
        return Ok(status::found(call.client.snapshots(&source).await)?.unwrap_or_default());
    }
    let Ok(id) = by_id.parse::<SnapshotId>() else {
        return Ok(Vec::new());
    };
    if source.is_some_and(|source| source != id.volume) {
        return Ok(Vec::new());
    }
    Ok(find(call, &id).await?.into_iter().collect())
}

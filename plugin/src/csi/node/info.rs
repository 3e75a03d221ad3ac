//! What the node is, how volumes on it are, and growing them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use berth_api::types::{Attachment, AttachmentState};
use tonic::Status;

use super::record::Record;
use super::{Shared, path};
use crate::csi::calls::Call;
use crate::csi::names::VolumeId;
use crate::csi::proto::v1::node_service_capability::{Rpc, Type, rpc};
use crate::csi::proto::v1::{
    NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest,
    NodeGetCapabilitiesResponse, NodeGetInfoRequest, NodeGetInfoResponse,
    NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, NodeServiceCapability, VolumeCondition,
    VolumeUsage, volume_usage::Unit,
};
use crate::csi::size::{self, Range};
use crate::csi::status::{self, Told as _};
use crate::filesystem::FsType;

/// What the service can do.
const CAPABILITIES: [rpc::Type; 5] = [
    rpc::Type::StageUnstageVolume,
    rpc::Type::GetVolumeStats,
    rpc::Type::ExpandVolume,
    rpc::Type::VolumeCondition,
    rpc::Type::SingleNodeMultiWriter,
];
/// How often the daemon is asked whether it has seen a new size. A device is read each time: the target tells of a new size in its
/// answer to a command.
const SIZE_POLL: Duration = Duration::from_millis(200);

pub(super) async fn capabilities(
    _: Arc<Shared>,
    _: Call,
    _: NodeGetCapabilitiesRequest,
) -> Result<NodeGetCapabilitiesResponse, Status> {
    let capabilities = CAPABILITIES
        .map(|kind| NodeServiceCapability {
            r#type: Some(Type::Rpc(Rpc {
                r#type: kind.into(),
            })),
        })
        .to_vec();
    Ok(NodeGetCapabilitiesResponse { capabilities })
}

/// The node is known by the initiator that it logs in with: that is what a fabric admits, so the controller needs no list of nodes.
pub(super) async fn info(
    shared: Arc<Shared>,
    call: Call,
    _: NodeGetInfoRequest,
) -> Result<NodeGetInfoResponse, Status> {
    let node = call.client.node().await.told()?;
    let limit = shared.driver.settings.volumes_max;
    let limit = limit.unwrap_or(node.limits.attachments_max.into());
    Ok(NodeGetInfoResponse {
        node_id: node.initiator_name,
        max_volumes_per_node: limit,
        accessible_topology: shared.driver.topology(),
    })
}

/// What is remembered of a volume that is at this path.
fn volume_at(shared: &Shared, volume_id: &str, at: &str) -> Result<(VolumeId, Record), Status> {
    if volume_id.is_empty() {
        return Err(status::missing("volume_id"));
    }
    if at.is_empty() {
        return Err(status::missing("volume_path"));
    }
    let gone = || Status::not_found(format!("there is no volume {volume_id} at {at}"));
    let path = path("volume_path", at).map_err(|_| gone())?;
    let id: VolumeId = volume_id.parse().map_err(|_| gone())?;
    let record = shared.record(&id)?.filter(|record| record.staged);
    let record =
        record.filter(|record| record.staging == path || record.published.contains_key(&path));
    Ok((id, record.ok_or_else(gone)?))
}

pub(super) async fn stats(
    shared: Arc<Shared>,
    call: Call,
    request: NodeGetVolumeStatsRequest,
) -> Result<NodeGetVolumeStatsResponse, Status> {
    let (id, record) = volume_at(&shared, &request.volume_id, &request.volume_path)?;
    let path = Path::new(&request.volume_path);
    let gone = || Status::not_found(format!("{id} is not at {}", path.display()));
    let is_staging_of_block = record.terms.fs.is_none() && record.staging == path;
    if !is_staging_of_block && shared.host.mounted(path, None)?.is_none() {
        return Err(gone());
    }
    let attachment = shared.attachment(&call, &id).await?.ok_or_else(gone)?;
    let mut condition = condition(&attachment);
    let unit = |unit: Unit, [total, available, used]: [u64; 3]| VolumeUsage {
        available: size::wire(available),
        total: size::wire(total),
        used: size::wire(used),
        unit: unit.into(),
    };
    let usage = match &record.terms.fs {
        None => {
            let total = attachment.size_bytes.unwrap_or_default();
            vec![unit(Unit::Bytes, [total, 0, 0])]
        }
        Some(_) => match shared.host.usage(path).await? {
            Some(usage) => {
                let inodes = usage.inodes.map(|inodes| unit(Unit::Inodes, inodes));
                [unit(Unit::Bytes, usage.bytes)]
                    .into_iter()
                    .chain(inodes)
                    .collect()
            }
            None => {
                condition.abnormal = true;
                let told = std::mem::take(&mut condition.message);
                condition.message = format!("the file system does not answer; the volume: {told}");
                Vec::new()
            }
        },
    };
    Ok(NodeGetVolumeStatsResponse {
        usage,
        volume_condition: Some(condition),
    })
}

fn condition(attachment: &Attachment) -> VolumeCondition {
    let mut message = attachment.state.to_string();
    if let Some(reason) = &attachment.reason {
        message = format!("{message}: {}", reason.detail);
    }
    VolumeCondition {
        abnormal: attachment.state != AttachmentState::Attached,
        message,
    }
}

pub(super) async fn expand(
    shared: Arc<Shared>,
    call: Call,
    request: NodeExpandVolumeRequest,
) -> Result<NodeExpandVolumeResponse, Status> {
    let (id, record) = volume_at(&shared, &request.volume_id, &request.volume_path)?;
    let range = Range::parse(request.capacity_range.as_ref())?;
    let (inner, owned, volume) = (call.clone(), Arc::clone(&shared), id.clone());
    let work = async move {
        let gone = || Status::not_found(format!("{volume} is not attached to this node"));
        let wanted = match range.required {
            Some(bytes) => bytes,
            // As large as the fabric has made it.
            None => {
                let found =
                    status::found(inner.client.volume(&volume.volume).await)?.ok_or_else(gone)?;
                super::super::controller::unit_size(&volume, &found)?
            }
        };
        let (device, size) = loop {
            let ready = owned.ready(&inner, &volume).await?.ok_or_else(gone)?;
            let size = ready.attachment.size_bytes.unwrap_or_default();
            if size >= wanted {
                break (ready.device, size);
            }
            if inner.remaining() < 2 * SIZE_POLL {
                return Err(Status::deadline_exceeded(format!(
                    "{volume} has {size} bytes on this node, not yet {wanted}; repeat the call"
                )));
            }
            owned.host.content(&ready.device).await?;
            tokio::time::sleep(SIZE_POLL).await;
        };
        if let Some(fs) = record
            .terms
            .fs
            .as_deref()
            .filter(|_| !record.terms.read_only)
        {
            let fs: FsType = fs
                .parse()
                .map_err(|error| Status::internal(format!("{error}")))?;
            owned.host.grow(&device, &record.staging, fs).await?;
        }
        Ok(NodeExpandVolumeResponse {
            capacity_bytes: size::wire(size),
        })
    };
    shared.alone(&call, &id, work).await
}

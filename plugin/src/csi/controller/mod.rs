//! The Controller service: volumes, snapshots, and who may use them. It keeps nothing: all it knows is on the fabric.

mod create;
mod list;
mod modify;
mod publish;
mod snapshots;

use std::sync::Arc;

use tonic::Status;

use super::Driver;
use super::proto::v1::controller_server::Controller;
use super::proto::v1::controller_service_capability::{Rpc, Type, rpc};
use super::proto::v1::*;

pub(super) use publish::{Published, context};

/// The service.
#[derive(Debug, Clone)]
pub(super) struct ControllerService(pub(super) Arc<Driver>);

/// What it can do.
const CAPABILITIES: [rpc::Type; 14] = [
    rpc::Type::CreateDeleteVolume,
    rpc::Type::PublishUnpublishVolume,
    rpc::Type::ListVolumes,
    rpc::Type::ListVolumesPublishedNodes,
    rpc::Type::GetCapacity,
    rpc::Type::CreateDeleteSnapshot,
    rpc::Type::ListSnapshots,
    rpc::Type::GetSnapshot,
    rpc::Type::CloneVolume,
    rpc::Type::PublishReadonly,
    rpc::Type::ExpandVolume,
    rpc::Type::VolumeCondition,
    rpc::Type::GetVolume,
    rpc::Type::ModifyVolume,
];

super::service! { Controller for ControllerService:
    create_volume "CreateVolume" CreateVolumeRequest -> CreateVolumeResponse = create::create;
    delete_volume "DeleteVolume" DeleteVolumeRequest -> DeleteVolumeResponse = create::delete;
    controller_publish_volume "ControllerPublishVolume" ControllerPublishVolumeRequest -> ControllerPublishVolumeResponse = publish::publish;
    controller_unpublish_volume "ControllerUnpublishVolume" ControllerUnpublishVolumeRequest -> ControllerUnpublishVolumeResponse = publish::unpublish;
    validate_volume_capabilities "ValidateVolumeCapabilities" ValidateVolumeCapabilitiesRequest -> ValidateVolumeCapabilitiesResponse = modify::validate;
    list_volumes "ListVolumes" ListVolumesRequest -> ListVolumesResponse = list::volumes;
    get_capacity "GetCapacity" GetCapacityRequest -> GetCapacityResponse = list::capacity;
    controller_get_capabilities "ControllerGetCapabilities" ControllerGetCapabilitiesRequest -> ControllerGetCapabilitiesResponse = capabilities;
    create_snapshot "CreateSnapshot" CreateSnapshotRequest -> CreateSnapshotResponse = snapshots::create;
    delete_snapshot "DeleteSnapshot" DeleteSnapshotRequest -> DeleteSnapshotResponse = snapshots::delete;
    list_snapshots "ListSnapshots" ListSnapshotsRequest -> ListSnapshotsResponse = snapshots::list;
    get_snapshot "GetSnapshot" GetSnapshotRequest -> GetSnapshotResponse = snapshots::get;
    controller_expand_volume "ControllerExpandVolume" ControllerExpandVolumeRequest -> ControllerExpandVolumeResponse = modify::expand;
    controller_get_volume "ControllerGetVolume" ControllerGetVolumeRequest -> ControllerGetVolumeResponse = list::volume;
    controller_modify_volume "ControllerModifyVolume" ControllerModifyVolumeRequest -> ControllerModifyVolumeResponse = modify::modify;
}

/// The size of the unit that an identifier means.
pub(super) fn unit_size(
    id: &super::names::VolumeId,
    volume: &berth_api::types::Volume,
) -> Result<u64, Status> {
    Ok(publish::unit(id, volume)?.size_bytes)
}

async fn capabilities(
    _: Arc<Driver>,
    _: super::calls::Call,
    _: ControllerGetCapabilitiesRequest,
) -> Result<ControllerGetCapabilitiesResponse, Status> {
    let all = CAPABILITIES
        .into_iter()
        .chain([rpc::Type::SingleNodeMultiWriter]);
    let capabilities = all
        .map(|kind| ControllerServiceCapability {
            r#type: Some(Type::Rpc(Rpc {
                r#type: kind.into(),
            })),
        })
        .collect();
    Ok(ControllerGetCapabilitiesResponse { capabilities })
}

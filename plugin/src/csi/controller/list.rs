//! Showing volumes, and the space that is left.

use std::collections::HashMap;
use std::sync::Arc;

use berth_api::VolumeName;
use berth_api::types::{PageRequest, Volume, VolumeState};
use tonic::Status;

use crate::csi::Driver;
use crate::csi::calls::Call;
use crate::csi::capability::Usage;
use crate::csi::names::VolumeId;
use crate::csi::params::Parameters;
use crate::csi::proto::v1::{
    self, ControllerGetVolumeRequest, ControllerGetVolumeResponse, GetCapacityRequest,
    GetCapacityResponse, ListVolumesRequest, ListVolumesResponse, VolumeCondition,
    controller_get_volume_response, list_volumes_response,
};
use crate::csi::size;
use crate::csi::status::{self, Told as _};

/// How many entries a page has that says nothing; nothing: all of them.
pub(super) fn limit(max_entries: i32) -> Result<Option<u32>, Status> {
    match u32::try_from(max_entries) {
        Ok(0) => Ok(None),
        Ok(limit) => Ok(Some(limit)),
        Err(_) => Err(Status::invalid_argument(format!(
            "max_entries: {max_entries} is negative"
        ))),
    }
}

/// Volumes by name; a page ends with the name that the next one begins behind, so it does not matter what is deleted meanwhile.
pub(super) async fn volumes(
    driver: Arc<Driver>,
    call: Call,
    request: ListVolumesRequest,
) -> Result<ListVolumesResponse, Status> {
    let limit = limit(request.max_entries)?;
    let after = match request.starting_token.as_str() {
        "" => None,
        token => {
            let name = token
                .strip_prefix(TOKEN)
                .and_then(|name| name.parse::<VolumeName>().ok());
            let name = name.ok_or_else(|| {
                Status::aborted(format!(
                    "starting_token {token:?} is none of ours; begin again"
                ))
            })?;
            Some(name.to_string())
        }
    };
    let page = call
        .client
        .volumes_page(&PageRequest { after, limit })
        .await
        .told()?;
    let entries = page
        .volumes
        .into_iter()
        .map(|volume| list_volumes_response::Entry {
            status: Some(list_volumes_response::VolumeStatus {
                published_node_ids: published(&volume),
                volume_condition: Some(condition(&volume)),
            }),
            volume: Some(shown(&driver, &volume)),
        })
        .collect();
    let next_token = page.next.map(|name| format!("{TOKEN}{name}"));
    Ok(ListVolumesResponse {
        entries,
        next_token: next_token.unwrap_or_default(),
    })
}

/// Before a name in a token: a token is not just any name.
const TOKEN: &str = "after:";

fn shown(driver: &Driver, volume: &Volume) -> v1::Volume {
    v1::Volume {
        capacity_bytes: size::wire(volume.size_bytes),
        volume_id: VolumeId::of(volume.name.clone()).to_string(),
        volume_context: HashMap::new(),
        content_source: None,
        accessible_topology: driver.topology().into_iter().collect(),
    }
}

fn published(volume: &Volume) -> Vec<String> {
    let mut nodes: Vec<_> = volume
        .units
        .iter()
        .flat_map(|unit| unit.access.iter().cloned())
        .collect();
    nodes.sort();
    nodes.dedup();
    nodes
}

fn condition(volume: &Volume) -> VolumeCondition {
    let health = volume.health.as_deref().filter(|health| *health != "ok");
    let (abnormal, message) = match (volume.state, health) {
        (VolumeState::Failed, _) => (true, "the fabric failed with this volume".to_owned()),
        (VolumeState::Offline, _) => (true, "it was taken offline on the fabric".to_owned()),
        (VolumeState::Preparing, _) => (false, "the fabric is still preparing it".to_owned()),
        (VolumeState::Available, Some(health)) => (true, format!("the fabric says: {health}")),
        (VolumeState::Available, None) => (false, "available".to_owned()),
    };
    VolumeCondition { abnormal, message }
}

pub(super) async fn volume(
    driver: Arc<Driver>,
    call: Call,
    request: ControllerGetVolumeRequest,
) -> Result<ControllerGetVolumeResponse, Status> {
    if request.volume_id.is_empty() {
        return Err(status::missing("volume_id"));
    }
    let gone = || status::no_volume(&request.volume_id);
    let id: VolumeId = request.volume_id.parse().map_err(|_| gone())?;
    let volume = status::found(call.client.volume(&id.volume).await)?.ok_or_else(gone)?;
    let unit = super::publish::unit(&id, &volume)?;
    let mut found = shown(&driver, &volume);
    found.volume_id = request.volume_id.clone();
    found.capacity_bytes = size::wire(unit.size_bytes);
    Ok(ControllerGetVolumeResponse {
        volume: Some(found),
        status: Some(controller_get_volume_response::VolumeStatus {
            published_node_ids: published(&volume),
            volume_condition: Some(condition(&volume)),
        }),
    })
}

pub(super) async fn capacity(
    driver: Arc<Driver>,
    call: Call,
    request: GetCapacityRequest,
) -> Result<GetCapacityResponse, Status> {
    let none = GetCapacityResponse {
        available_capacity: 0,
        maximum_volume_size: None,
        minimum_volume_size: None,
    };
    Parameters::parse(&request.parameters, &HashMap::new())?;
    if !request.volume_capabilities.is_empty()
        && Usage::parse_all(&request.volume_capabilities).is_err()
    {
        return Ok(none);
    }
    if let Some(place) = &request.accessible_topology
        && !driver.is_reachable_from(place)
    {
        return Ok(none);
    }
    let fabric = call.client.fabric().await.told()?;
    if !fabric.reachable {
        let reason = fabric
            .reason
            .map(|reason| reason.detail)
            .unwrap_or_default();
        return Err(Status::unavailable(format!(
            "the fabric does not answer: {reason}"
        )));
    }
    let capacity = fabric
        .capacity
        .ok_or_else(|| Status::unimplemented("this fabric does not tell how much space it has"))?;
    Ok(GetCapacityResponse {
        available_capacity: size::wire(capacity.available_bytes),
        // A larger one would have no place, thin or not.
        maximum_volume_size: Some(size::wire(size::MAX.min(capacity.available_bytes))),
        minimum_volume_size: Some(size::wire(size::GIB)),
    })
}

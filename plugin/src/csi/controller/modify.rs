//! Growing a volume, changing its limits, and telling what it can be used for.

use std::sync::Arc;

use berth_api::types::{Volume, VolumePatch};
use tonic::Status;

use crate::csi::Driver;
use crate::csi::calls::Call;
use crate::csi::capability::Usage;
use crate::csi::names::VolumeId;
use crate::csi::params::{self, Parameters};
use crate::csi::proto::v1::{
    ControllerExpandVolumeRequest, ControllerExpandVolumeResponse, ControllerModifyVolumeRequest,
    ControllerModifyVolumeResponse, ValidateVolumeCapabilitiesRequest,
    ValidateVolumeCapabilitiesResponse, validate_volume_capabilities_response::Confirmed,
};
use crate::csi::size::{self, Range};
use crate::csi::status::{self, Told as _};

/// A volume with one unit: the fabric changes only those.
async fn single(call: &Call, id: &VolumeId) -> Result<Volume, Status> {
    let volume = status::found(call.client.volume(&id.volume).await)?
        .ok_or_else(|| status::no_volume(id))?;
    super::publish::unit(id, &volume)?;
    if volume.units.len() != 1 {
        return Err(Status::failed_precondition(format!(
            "volume {} has {} units, and only one with a single unit can be changed here; change it on the fabric",
            id.volume,
            volume.units.len()
        )));
    }
    Ok(volume)
}

fn id_of(text: &str) -> Result<VolumeId, Status> {
    if text.is_empty() {
        return Err(status::missing("volume_id"));
    }
    text.parse().map_err(|_| status::no_volume(text))
}

pub(super) async fn expand(
    driver: Arc<Driver>,
    call: Call,
    request: ControllerExpandVolumeRequest,
) -> Result<ControllerExpandVolumeResponse, Status> {
    if request.volume_id.is_empty() {
        return Err(status::missing("volume_id"));
    }
    let range = request
        .capacity_range
        .as_ref()
        .ok_or_else(|| status::missing("capacity_range"))?;
    let range = Range::parse(Some(range))?;
    if range.required.is_none() && range.limit.is_none() {
        return Err(status::missing("capacity_range.required_bytes"));
    }
    let id = id_of(&request.volume_id)?;
    let key = format!("volume {}", id.volume);
    let inner = call.clone();
    let work = async move {
        let volume = single(&inner, &id).await?;
        let now = volume.size_bytes;
        if range.limit.is_some_and(|limit| now > limit) {
            return Err(Status::out_of_range(format!(
                "volume {id} has {now} bytes already and never shrinks"
            )));
        }
        let wanted = range.choose(now)?;
        let reached = if wanted > now {
            let patch = VolumePatch {
                size_bytes: Some(wanted),
                qos: None,
            };
            let grown = inner
                .client
                .change_volume(&id.volume, &patch)
                .await
                .told()?;
            tracing::info!(volume = %id, from = now, to = grown.size_bytes, "volume grown");
            grown.size_bytes
        } else {
            now
        };
        Ok(ControllerExpandVolumeResponse {
            capacity_bytes: size::wire(reached),
            // The device has to learn it, and what is on it to fill it.
            node_expansion_required: true,
        })
    };
    driver.calls.alone(&call, key, work).await
}

pub(super) async fn modify(
    driver: Arc<Driver>,
    call: Call,
    request: ControllerModifyVolumeRequest,
) -> Result<ControllerModifyVolumeResponse, Status> {
    if request.volume_id.is_empty() {
        return Err(status::missing("volume_id"));
    }
    // All of it is checked before any of it is done, and before the volume is looked for.
    params::changed_limits(&request.mutable_parameters, None)?;
    let id = id_of(&request.volume_id)?;
    let key = format!("volume {}", id.volume);
    let inner = call.clone();
    let work = async move {
        let volume = single(&inner, &id).await?;
        let now = volume.units.first().and_then(|unit| unit.qos);
        let wanted = params::changed_limits(&request.mutable_parameters, now)?;
        if wanted.unwrap_or_default() != now.unwrap_or_default() {
            let patch = VolumePatch {
                size_bytes: None,
                qos: Some(wanted),
            };
            inner
                .client
                .change_volume(&id.volume, &patch)
                .await
                .told()?;
            tracing::info!(volume = %id, ?wanted, "limits changed");
        }
        Ok(ControllerModifyVolumeResponse {})
    };
    driver.calls.alone(&call, key, work).await
}

pub(super) async fn validate(
    _: Arc<Driver>,
    call: Call,
    request: ValidateVolumeCapabilitiesRequest,
) -> Result<ValidateVolumeCapabilitiesResponse, Status> {
    if request.volume_id.is_empty() {
        return Err(status::missing("volume_id"));
    }
    if request.volume_capabilities.is_empty() {
        return Err(status::missing("volume_capabilities"));
    }
    let id = id_of(&request.volume_id)?;
    let volume = status::found(call.client.volume(&id.volume).await)?
        .ok_or_else(|| status::no_volume(&id))?;
    super::publish::unit(&id, &volume)?;
    let usable = Usage::parse_all(&request.volume_capabilities).map(drop);
    let asked = Parameters::parse(&request.parameters, &request.mutable_parameters).map(drop);
    Ok(match usable.and(asked) {
        Err(status) => ValidateVolumeCapabilitiesResponse {
            confirmed: None,
            message: status.message().to_owned(),
        },
        Ok(()) => ValidateVolumeCapabilitiesResponse {
            confirmed: Some(Confirmed {
                volume_context: request.volume_context,
                volume_capabilities: request.volume_capabilities,
                parameters: request.parameters,
                mutable_parameters: request.mutable_parameters,
            }),
            message: String::new(),
        },
    })
}

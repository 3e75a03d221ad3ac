//! Making a volume and taking it away.
//!
//! The name is the key, and the fabric the only memory: what is there is compared with what is asked for, so a call that was
//! repeated, cut off, or that follows a restart comes to the same end. How large a volume was asked for stands in its
//! description where the fabric makes it smaller first and larger then (from a template).

use std::collections::HashMap;
use std::sync::Arc;

use berth_api::VolumeName;
use berth_api::types::{
    Qos, SnapshotRef, Template, Volume, VolumePatch, VolumeRequest, VolumeSource,
};
use tonic::Status;

use crate::csi::Driver;
use crate::csi::calls::Call;
use crate::csi::capability::Usage;
use crate::csi::names::{self, SnapshotId, VolumeId};
use crate::csi::params::{self, Parameters};
use crate::csi::proto::v1::volume_content_source::Type as Source;
use crate::csi::proto::v1::{
    self, CreateVolumeRequest, CreateVolumeResponse, DeleteVolumeRequest, DeleteVolumeResponse,
    VolumeContentSource,
};
use crate::csi::size::{self, Range};
use crate::csi::status::{self, Told as _};

/// Before the size that was asked for, in a description.
const ASKED: &str = "csi volume of ";

pub(super) async fn create(
    driver: Arc<Driver>,
    call: Call,
    request: CreateVolumeRequest,
) -> Result<CreateVolumeResponse, Status> {
    check_name(&request.name)?;
    Usage::parse_all(&request.volume_capabilities)?;
    let wish = Wish {
        name: names::on_fabric(&request.name),
        parameters: Parameters::parse(&request.parameters, &request.mutable_parameters)?,
        range: Range::parse(request.capacity_range.as_ref())?,
        source: request
            .volume_content_source
            .as_ref()
            .map(source)
            .transpose()?,
        chap: params::chap_of_new(&request.secrets)?,
    };
    if wish.source.is_some() && wish.parameters.template.is_some() {
        return Err(Status::invalid_argument(
            "parameter template: a copy is as its source; use a StorageClass without a template",
        ));
    }
    if wish.source.is_some() && wish.parameters.ip_pool.is_some() {
        return Err(Status::invalid_argument(
            "parameter ipPool: a copy is where its source is; use a StorageClass without it",
        ));
    }
    if let Some(wanted) = &request.accessibility_requirements
        && !wanted.requisite.is_empty()
        && !wanted
            .requisite
            .iter()
            .any(|place| driver.is_reachable_from(place))
    {
        return Err(Status::resource_exhausted(
            "the fabric is not reachable from any of the requisite topologies",
        ));
    }
    let content_source = request.volume_content_source;
    let accessible_topology = driver.topology().into_iter().collect();
    let key = format!("volume {}", wish.name);
    let inner = call.clone();
    let volume = driver
        .calls
        .alone(&call, key, async move { wish.fulfil(&inner).await })
        .await?;
    Ok(CreateVolumeResponse {
        volume: Some(v1::Volume {
            capacity_bytes: size::wire(volume.size_bytes),
            volume_id: VolumeId::of(volume.name).to_string(),
            volume_context: HashMap::new(),
            content_source,
            accessible_topology,
        }),
    })
}

/// Checks a name that a caller chose.
pub(super) fn check_name(name: &str) -> Result<(), Status> {
    let is_odd = |c: char| c.is_control() && !"\t\n\r".contains(c);
    if name.is_empty() {
        return Err(status::missing("name"));
    }
    if name.len() > 4 * names::NAME_LEN_MAX || name.chars().count() > names::NAME_LEN_MAX {
        return Err(Status::invalid_argument(format!(
            "name: has more than {} characters",
            names::NAME_LEN_MAX
        )));
    }
    if name.chars().any(is_odd) {
        return Err(Status::invalid_argument(
            "name: has control characters other than tab and line ends",
        ));
    }
    Ok(())
}

/// What a volume is to begin with.
#[derive(Debug, Clone, PartialEq, Eq)]
enum From {
    Volume(VolumeId),
    Snapshot(SnapshotId),
}

fn source(source: &VolumeContentSource) -> Result<From, Status> {
    match &source.r#type {
        None => Err(Status::invalid_argument(
            "volume_content_source: this kind of source is not supported",
        )),
        Some(Source::Volume(volume)) if volume.volume_id.is_empty() => {
            Err(status::missing("volume_content_source.volume.volume_id"))
        }
        Some(Source::Volume(volume)) => match volume.volume_id.parse::<VolumeId>() {
            Ok(id) if id.unit.is_some() => Err(Status::invalid_argument(format!(
                "volume {id} is a unit of a volume with several; the fabric copies whole volumes"
            ))),
            Ok(id) => Ok(From::Volume(id)),
            Err(_) => Err(status::no_volume(&volume.volume_id)),
        },
        Some(Source::Snapshot(snapshot)) if snapshot.snapshot_id.is_empty() => Err(
            status::missing("volume_content_source.snapshot.snapshot_id"),
        ),
        Some(Source::Snapshot(snapshot)) => snapshot
            .snapshot_id
            .parse()
            .map(From::Snapshot)
            .map_err(|_| super::snapshots::no_snapshot(&snapshot.snapshot_id)),
    }
}

/// A volume as it is asked for.
#[derive(Debug)]
struct Wish {
    name: VolumeName,
    parameters: Parameters,
    range: Range,
    source: Option<From>,
    chap: Option<berth_api::types::FabricChap>,
}

impl Wish {
    async fn fulfil(&self, call: &Call) -> Result<Volume, Status> {
        let at_least = match (&self.source, &self.parameters.template) {
            (Some(source), _) => self.source_size(call, source).await?,
            (None, Some(template)) => self.template_size(call, template).await?,
            (None, None) => 0,
        };
        let nothing = self.range.required.is_none() && at_least == 0;
        let asked = self
            .range
            .choose(if nothing { size::DEFAULT } else { at_least })?;
        if let Some(volume) = status::found(call.client.volume(&self.name).await)? {
            self.compare(&volume, asked)?;
        }
        let request = self.request(asked);
        let (volume, created) = call
            .client
            .create_volume(&self.name, &request)
            .await
            .told()?;
        if created {
            tracing::info!(volume = %self.name, size_bytes = volume.size_bytes, "volume made");
        }
        let volume = self.limit(call, volume).await?;
        if !self.range.contains(volume.size_bytes) {
            return Err(self.exists(&format!("with {} bytes", volume.size_bytes)));
        }
        Ok(volume)
    }

    fn request(&self, asked: u64) -> VolumeRequest {
        let source = self.source.as_ref().map(|source| match source {
            From::Volume(id) => VolumeSource::Volume(id.volume.clone()),
            From::Snapshot(id) => VolumeSource::Snapshot(SnapshotRef {
                volume: id.volume.clone(),
                snapshot: id.id.clone(),
            }),
        });
        let parameters = &self.parameters;
        VolumeRequest {
            size_bytes: Some(asked),
            template: parameters.template.clone(),
            // A copy's description is the daemon's.
            description: source.is_none().then(|| format!("{ASKED}{asked} bytes")),
            source,
            replicas: parameters.replicas,
            placement_mode: parameters.placement_mode,
            placement_policy: parameters.placement_policy.clone(),
            // Afterwards, for all kinds of volumes alike.
            qos: None,
            ip_pool: parameters.ip_pool.clone(),
            chap: self.chap.clone(),
        }
    }

    /// Whether the volume that is there can be the one that is asked for. The daemon compares the rest.
    fn compare(&self, volume: &Volume, asked: u64) -> Result<(), Status> {
        let [unit] = volume.units.as_slice() else {
            return Err(self.exists(&format!("with {} units", volume.units.len())));
        };
        let parameters = &self.parameters;
        if parameters.template.is_none()
            && let Some(template) = &volume.template
        {
            return Err(self.exists(&format!("made from template {template}")));
        }
        let is_copy = volume
            .description
            .as_ref()
            .is_some_and(|description| description.starts_with("copy of "));
        if self.source.is_none() && is_copy {
            return Err(self.exists("as a copy"));
        }
        // What is not large enough may be one that was being made when somebody died.
        let unfinished = self.source.is_some() || recorded_size(volume) == Some(asked);
        if volume.size_bytes < asked && !unfinished
            || self
                .range
                .limit
                .is_some_and(|limit| volume.size_bytes > limit)
        {
            return Err(self.exists(&format!("with {} bytes", volume.size_bytes)));
        }
        if let (Some(wanted), Some(now)) = (parameters.replicas, unit.replicas)
            && wanted != now
        {
            return Err(self.exists(&format!("with {now} replicas")));
        }
        Ok(())
    }

    fn exists(&self, how: &str) -> Status {
        Status::already_exists(format!(
            "volume {} exists {how}, which is not what is asked for",
            self.name
        ))
    }

    /// Sets the limits that are asked for.
    async fn limit(&self, call: &Call, volume: Volume) -> Result<Volume, Status> {
        let now = volume.units.first().and_then(|unit| unit.qos);
        let Some(wanted) = self.parameters.qos.filter(|wanted| Some(*wanted) != now) else {
            return Ok(volume);
        };
        if wanted == Qos::default() && now.is_none() {
            return Ok(volume);
        }
        let patch = VolumePatch {
            size_bytes: None,
            qos: Some(Some(wanted)),
        };
        call.client.change_volume(&self.name, &patch).await.told()
    }

    async fn source_size(&self, call: &Call, source: &From) -> Result<u64, Status> {
        let name = match source {
            From::Volume(id) => &id.volume,
            From::Snapshot(id) => {
                super::snapshots::find(call, id)
                    .await?
                    .ok_or_else(|| super::snapshots::no_snapshot(id))?;
                &id.volume
            }
        };
        let volume = status::found(call.client.volume(name).await)?
            .ok_or_else(|| status::no_volume(name))?;
        if volume.units.len() != 1 {
            return Err(Status::invalid_argument(format!(
                "volume {name} has {} units; only one with a single unit can be copied",
                volume.units.len()
            )));
        }
        let asked = self.range.required.map(|bytes| bytes.div_ceil(size::GIB));
        if asked.is_some_and(|gib| gib.saturating_mul(size::GIB) < volume.size_bytes) {
            return Err(Status::out_of_range(format!(
                "the source has {} bytes; a copy cannot be smaller",
                volume.size_bytes
            )));
        }
        Ok(volume.size_bytes)
    }

    async fn template_size(&self, call: &Call, name: &str) -> Result<u64, Status> {
        let templates = call.client.templates().await.told()?;
        let found = templates.iter().find(|template| template.name == name);
        let template = found.ok_or_else(|| {
            let known: Vec<_> = templates.iter().map(|t| t.name.as_str()).collect();
            Status::invalid_argument(format!(
                "parameter template: the fabric has no AppTemplate {name:?}; it has {}",
                known.join(", ")
            ))
        })?;
        template_size(template)
    }
}

fn template_size(template: &Template) -> Result<u64, Status> {
    let [unit] = template.units.as_slice() else {
        return Err(Status::invalid_argument(format!(
            "parameter template: {} makes {} units, and a volume here is one; make it on the fabric and use it by \
             PersistentVolumes with volumeHandle NAME/UNIT",
            template.name,
            template.units.len()
        )));
    };
    Ok(unit.size_bytes)
}

/// The size that a volume was asked with, as far as its description says.
fn recorded_size(volume: &Volume) -> Option<u64> {
    let text = volume.description.as_ref()?.strip_prefix(ASKED)?;
    text.strip_suffix(" bytes")?.parse().ok()
}

pub(super) async fn delete(
    driver: Arc<Driver>,
    call: Call,
    request: DeleteVolumeRequest,
) -> Result<DeleteVolumeResponse, Status> {
    if request.volume_id.is_empty() {
        return Err(status::missing("volume_id"));
    }
    let Ok(id) = request.volume_id.parse::<VolumeId>() else {
        return Ok(DeleteVolumeResponse {});
    };
    let key = format!("volume {}", id.volume);
    let inner = call.clone();
    let published = Arc::clone(&driver);
    let work = async move {
        let Some(volume) = status::found(inner.client.volume(&id.volume).await)? else {
            return Ok(DeleteVolumeResponse {});
        };
        if id.unit.is_some() && volume.units.len() > 1 {
            return Err(Status::failed_precondition(format!(
                "volume {} has {} units, and all of them would go; delete it on the fabric",
                id.volume,
                volume.units.len()
            )));
        }
        let admitted = volume.units.iter().flat_map(|unit| &unit.access).next();
        if let Some(node) = admitted {
            return Err(Status::failed_precondition(format!(
                "volume {} is published to {node}; unpublish it first",
                id.volume
            )));
        }
        inner
            .client
            .delete_volume(&id.volume, None, false)
            .await
            .told()?;
        published.published.forget(&id.volume);
        Ok(DeleteVolumeResponse {})
    };
    driver.calls.alone(&call, key, work).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_any_text_without_control_characters() {
        for good in ["a", "Größe", "a\tb\n", &"ä".repeat(128)] {
            assert!(check_name(good).is_ok(), "{good:?}");
        }
        for bad in ["", "a\0", "a\u{7}", &"x".repeat(129)] {
            let status = check_name(bad).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{bad:?}");
        }
    }
}

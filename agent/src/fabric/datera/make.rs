//! Making a volume, from options, an AppTemplate, another volume or a snapshot.
//!
//! One request makes it; the name is ours, so a second one finds it. What that request cannot say (the size of a
//! clone, the limits of a volume from a template) is done afterwards, each step by looking first, so that a call which
//! was cut off anywhere is finished by the next.

use berth_api::VolumeName;
use berth_api::types::{
    FabricChap, PlacementMode, Qos, Volume, VolumeRequest, VolumeSource, VolumeState,
};
use serde_json::{Map, Value, json};

use super::Datera;
use super::session::{Session, Software, Version};
use super::wire::{self, GIB};
use crate::fabric::{FabricError, Op};

/// Largest volume: 32 TiB.
pub(super) const SIZE_MAX_GIB: u64 = 32_768;
/// Copies, unless somebody says otherwise; as every client of the fabric has it.
const REPLICAS: u8 = 3;
/// Names of what a volume made by options consists of; other clients expect these.
pub(super) const STORAGE: &str = "storage-1";
pub(super) const VOLUME: &str = "volume-1";
/// The pool that every fabric has.
const IP_POOL: &str = "default";

impl Datera {
    /// See [`crate::fabric::Fabric::create`].
    pub(super) async fn create_volume(
        &self,
        op: &Op,
        name: &VolumeName,
        request: &VolumeRequest,
    ) -> Result<(Volume, bool), FabricError> {
        check(request)?;
        let mut created = false;
        let existing = match self.instance(op, name).await {
            Ok(instance) => Some(instance),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error),
        };
        if existing.is_none() {
            let mut body = self.creation(op, name, request).await?;
            let posted = self.rest.post(op, "/app_instances", &body).await;
            wire::wipe(&mut body);
            match posted {
                Ok(()) => created = true,
                // Another call made it, or ours did and the answer was lost; it is compared like any other.
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(error),
            }
        }
        let volume = self.wait_ready(op, name).await?;
        compare(&volume, request)?;
        let volume = self.complete(op, name, volume, request).await?;
        if volume.state == VolumeState::Offline {
            let detail = format!(
                "{name} exists and was taken offline on the fabric; bring it online there, or delete it"
            );
            return Err(FabricError::Conflict(detail));
        }
        Ok((volume, created))
    }

    /// The body that makes it.
    async fn creation(
        &self,
        op: &Op,
        name: &VolumeName,
        request: &VolumeRequest,
    ) -> Result<Value, FabricError> {
        let session = self.rest.session(op).await?;
        check_version(&session, request)?;
        let mut body = json!({ "name": name.as_str(), "access_control_mode": "deny_all" });
        if let Some(description) = description(request) {
            body["descr"] = description.into();
        }
        match (&request.template, &request.source) {
            (Some(template), _) => {
                body["app_template"] = json!({ "path": format!("/app_templates/{template}") });
                if let Some(overrides) = self.overrides(op, &session, template, request).await? {
                    body["template_override"] = overrides;
                }
            }
            (None, Some(VolumeSource::Volume(source))) => {
                let source = self.only_unit(op, source).await?;
                body["clone_volume_src"] = json!({ "path": source.path });
            }
            (None, Some(VolumeSource::Snapshot(source))) => {
                let unit = self.only_unit(op, &source.volume).await?;
                let snapshot = self
                    .find_snapshot(op, &source.volume, &unit, &source.snapshot)
                    .await?;
                body["clone_snapshot_src"] = json!({ "path": snapshot.path });
            }
            (None, None) => body["storage_instances"] = json!([self.storage(request)]),
        }
        Ok(body)
    }

    fn storage(&self, request: &VolumeRequest) -> Value {
        let size = request.size_bytes.unwrap_or_default().div_ceil(GIB);
        let mut volume = json!({
            "name": VOLUME, "size": size, "replica_count": request.replicas.unwrap_or(REPLICAS),
        });
        for (member, value) in placement(request) {
            volume[member] = value;
        }
        if let Some(qos) = &request.qos {
            volume["performance_policy"] = performance(qos);
        }
        let configured = self.rest.settings.ip_pool.as_deref();
        let pool = request.ip_pool.as_deref().or(configured).unwrap_or(IP_POOL);
        let mut storage = json!({
            "name": STORAGE, "ip_pool": { "path": format!("/access_network_ip_pools/{pool}") }, "volumes": [volume],
        });
        if let Some(chap) = &request.chap {
            storage["auth"] = auth(chap);
        }
        storage
    }

    /// What overrides a template; only the size, and only where the fabric can.
    async fn overrides(
        &self,
        op: &Op,
        session: &Session,
        template: &str,
        request: &VolumeRequest,
    ) -> Result<Option<Value>, FabricError> {
        let path = format!("/app_templates/{template}");
        let found: wire::Template = match self.rest.get(op, &path).await {
            Err(error) if error.is_not_found() => {
                return Err(FabricError::Invalid {
                    field: "template",
                    detail: format!("the fabric has no AppTemplate {template:?}"),
                });
            }
            other => other?,
        };
        let units = found.storage_templates.iter().flat_map(|storage| {
            storage
                .volume_templates
                .iter()
                .map(move |volume| (storage, volume))
        });
        let units: Vec<_> = units.collect();
        let changes_unit = request.size_bytes.is_some()
            || request.replicas.is_some()
            || request.qos.is_some()
            || !placement(request).is_empty();
        let [(storage, volume)] = units.as_slice() else {
            if changes_unit {
                let detail = format!(
                    "template {template} makes {} volumes; size, replicas, placement and limits are for one",
                    units.len()
                );
                return Err(FabricError::Invalid {
                    field: "template",
                    detail,
                });
            }
            return Ok(None);
        };
        let Some(size_bytes) = request.size_bytes else {
            return Ok(None);
        };
        let size = size_bytes.div_ceil(GIB);
        if size * GIB <= volume.size {
            return Ok(None);
        }
        let can =
            session.version >= Version::V22 && session.software >= Software::PLACEMENT_POLICIES;
        // Elsewhere it is made as the template says, and grown.
        Ok(can.then(|| {
            json!({ "storage_instances": { &storage.name: { "volumes": {
                &volume.name: { "size": size.to_string() } } } } })
        }))
    }

    /// Does what the request that made it could not say.
    async fn complete(
        &self,
        op: &Op,
        name: &VolumeName,
        volume: Volume,
        request: &VolumeRequest,
    ) -> Result<Volume, FabricError> {
        let derived = request.template.is_some() || request.source.is_some();
        let [unit] = volume.units.as_slice() else {
            return Ok(volume);
        };
        if !derived || volume.state == VolumeState::Offline {
            return Ok(volume);
        }
        let mut changed = false;
        let path = unit_path(name, &unit.name)?;
        let mut changes = Map::new();
        if let Some(size) = request.size_bytes.filter(|size| unit.size_bytes < *size) {
            changes.insert("size".to_owned(), size.div_ceil(GIB).into());
        }
        if let Some(replicas) = request.replicas
            && unit.replicas.is_some_and(|now| now < replicas)
        {
            changes.insert("replica_count".to_owned(), replicas.into());
        }
        if placement_name(request).is_some_and(|wanted| unit.placement.as_deref() != Some(wanted)) {
            changes.extend(
                placement(request)
                    .into_iter()
                    .map(|(k, v)| (k.to_owned(), v)),
            );
        }
        if !changes.is_empty() {
            self.rest.put(op, &path, &Value::Object(changes)).await?;
            changed = true;
        }
        if request.qos.is_some() && unit.qos.is_none() && request.qos != Some(Qos::default()) {
            self.put_performance(op, &path, request.qos).await?;
            changed = true;
        }
        if let Some(chap) = &request.chap
            && !unit.chap
        {
            let storage = unit.name.split('/').next().unwrap_or_default();
            let path = format!("/app_instances/{name}/storage_instances/{storage}/auth");
            let mut body = auth(chap);
            let put = self.rest.put(op, &path, &body).await;
            wire::wipe(&mut body);
            put?;
            changed = true;
        }
        if changed {
            return self.wait_ready(op, name).await;
        }
        Ok(volume)
    }

    /// Waits until the fabric is done with the volume.
    pub(super) async fn wait_ready(
        &self,
        op: &Op,
        name: &VolumeName,
    ) -> Result<Volume, FabricError> {
        loop {
            let volume = self.find(op, name).await?;
            match volume.state {
                VolumeState::Available | VolumeState::Offline => return Ok(volume),
                VolumeState::Failed => {
                    let detail = format!("the fabric says that volume {name} has failed");
                    return Err(FabricError::Failed(detail));
                }
                VolumeState::Preparing => {}
            }
            let pause = self.rest.settings.poll_interval.0;
            if pause >= op.left() {
                let last = Some(format!("volume {name} is not available yet"));
                return Err(FabricError::Deadline { last });
            }
            tokio::time::sleep(pause).await;
        }
    }
}

/// Checks what the fabric would refuse with fewer words, or not at all.
fn check(request: &VolumeRequest) -> Result<(), FabricError> {
    let invalid = |field, detail: &str| {
        Err(FabricError::Invalid {
            field,
            detail: detail.to_owned(),
        })
    };
    if request.template.is_some() && request.source.is_some() {
        return invalid(
            "template",
            "a volume is made from a template or from a source, not from both",
        );
    }
    match request.size_bytes {
        None if request.template.is_none() && request.source.is_none() => {
            return invalid("size_bytes", "is needed without template and source");
        }
        None => {}
        Some(bytes) => check_size(bytes)?,
    }
    if let Some(VolumeSource::Snapshot(source)) = &request.source {
        super::snapshots::check_id(&source.snapshot)?;
    }
    if request.placement_mode.is_some() && request.placement_policy.is_some() {
        return invalid(
            "placement_policy",
            "takes precedence over placement_mode; use either",
        );
    }
    if request.source.is_some() && request.description.is_some() {
        return invalid("description", "a copy's says what it was made from");
    }
    if request.ip_pool.is_some() && (request.template.is_some() || request.source.is_some()) {
        return invalid("ip_pool", "comes from the template or the source");
    }
    for (field, name) in [
        ("template", &request.template),
        ("placement_policy", &request.placement_policy),
        ("ip_pool", &request.ip_pool),
    ] {
        let fits = |name: &String| name.parse::<VolumeName>().is_ok();
        if name.as_ref().is_some_and(|name| !fits(name)) {
            return invalid(
                field,
                "names on the fabric have 3 to 64 letters, digits, '.', '_' and '-', a letter first",
            );
        }
    }
    if let Some(description) = &request.description {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b" _-.".contains(&b);
        let starts = description.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !(3..=128).contains(&description.len()) || !description.bytes().all(fits) || !starts {
            return invalid(
                "description",
                "expected 3 to 128 letters, digits, blanks, '_', '-' and '.', a letter first",
            );
        }
    }
    if let Some(chap) = &request.chap {
        check_chap(chap)?;
    }
    if let Some(qos) = &request.qos {
        check_qos(qos)?;
    }
    Ok(())
}

pub(super) fn check_size(bytes: u64) -> Result<(), FabricError> {
    if (1..=SIZE_MAX_GIB * GIB).contains(&bytes) {
        return Ok(());
    }
    Err(FabricError::OutOfRange {
        field: "size_bytes",
        detail: format!("{bytes} is out of range; a volume has 1 GiB to {SIZE_MAX_GIB} GiB"),
    })
}

fn check_chap(chap: &FabricChap) -> Result<(), FabricError> {
    let invalid = |detail: &str| {
        Err(FabricError::Invalid {
            field: "chap",
            detail: detail.to_owned(),
        })
    };
    if chap.mutual_user.is_some() != chap.mutual_secret.is_some() {
        return invalid("mutual_user and mutual_secret go together");
    }
    let users = std::iter::once(&chap.user).chain(&chap.mutual_user);
    if users
        .into_iter()
        .any(|user| user.parse::<VolumeName>().is_err())
    {
        return invalid(
            "the fabric takes user names of 3 to 64 letters, digits, '.', '_' and '-', a letter first",
        );
    }
    let mut secrets = std::iter::once(&chap.secret).chain(&chap.mutual_secret);
    if secrets.any(|secret| !(12..=16).contains(&secret.len())) {
        return invalid("the fabric takes secrets of 12 to 16 characters");
    }
    if chap.mutual_secret.as_ref() == Some(&chap.secret) {
        return invalid(
            "the secret of the target must differ from that of initiators (RFC 7143 9.2.1)",
        );
    }
    Ok(())
}

pub(super) fn check_qos(qos: &Qos) -> Result<(), FabricError> {
    const IOPS_MAX: u64 = 10_000_000;
    const BYTES_MAX: u64 = 10_240_000 * 1024;
    let iops = [qos.total_iops, qos.read_iops, qos.write_iops];
    let bytes = [
        qos.total_bytes_per_second,
        qos.read_bytes_per_second,
        qos.write_bytes_per_second,
    ];
    let above =
        |values: [Option<u64>; 3], max| values.into_iter().flatten().any(|value| value > max);
    if above(iops, IOPS_MAX) || above(bytes, BYTES_MAX) {
        let detail =
            format!("at most {IOPS_MAX} requests and {BYTES_MAX} bytes per second can be set");
        return Err(FabricError::OutOfRange {
            field: "qos",
            detail,
        });
    }
    Ok(())
}

fn check_version(session: &Session, request: &VolumeRequest) -> Result<(), FabricError> {
    if request.placement_policy.is_some() && session.software < Software::PLACEMENT_POLICIES {
        return Err(FabricError::Unsupported(format!(
            "placement policies need version {} of the fabric, this one has {}; use placement_mode",
            Software::PLACEMENT_POLICIES,
            session.software
        )));
    }
    Ok(())
}

/// What the fabric is to keep as description. That of a copy says what it was made from, since nothing else does.
fn description(request: &VolumeRequest) -> Option<String> {
    match &request.source {
        None => request.description.clone(),
        Some(VolumeSource::Volume(source)) => Some(format!("copy of {source}")),
        Some(VolumeSource::Snapshot(source)) => {
            let id = super::snapshots::id_of(source.volume.as_str(), &source.snapshot);
            Some(format!("copy of {} at {id}", source.volume))
        }
    }
}

fn placement_name(request: &VolumeRequest) -> Option<&str> {
    let mode = request.placement_mode.map(|mode| match mode {
        PlacementMode::Hybrid => "hybrid",
        PlacementMode::SingleFlash => "single_flash",
        PlacementMode::AllFlash => "all_flash",
    });
    request.placement_policy.as_deref().or(mode)
}

fn placement(request: &VolumeRequest) -> Vec<(&'static str, Value)> {
    if let Some(policy) = &request.placement_policy {
        let path = format!("/placement_policies/{policy}");
        return vec![("placement_policy", json!({ "path": path }))];
    }
    placement_name(request)
        .map(|mode| ("placement_mode", mode.into()))
        .into_iter()
        .collect()
}

/// Limits as the fabric has them: all six, 0 for none, KiB per second.
pub(super) fn performance(qos: &Qos) -> Value {
    let kib = |bytes: Option<u64>| bytes.unwrap_or_default().div_ceil(1024);
    json!({
        "total_iops_max": qos.total_iops.unwrap_or_default(),
        "read_iops_max": qos.read_iops.unwrap_or_default(),
        "write_iops_max": qos.write_iops.unwrap_or_default(),
        "total_bandwidth_max": kib(qos.total_bytes_per_second),
        "read_bandwidth_max": kib(qos.read_bytes_per_second),
        "write_bandwidth_max": kib(qos.write_bytes_per_second),
    })
}

/// Credentials as the fabric has them: `target_*` is what initiators show to the target, `initiator_*` what the target
/// shows in turn.
fn auth(chap: &FabricChap) -> Value {
    let mut auth = json!({
        "type": "chap", "target_user_name": chap.user, "target_pswd": chap.secret.expose(),
    });
    if let (Some(user), Some(secret)) = (&chap.mutual_user, &chap.mutual_secret) {
        auth["type"] = "mchap".into();
        auth["initiator_user_name"] = user.as_str().into();
        auth["initiator_pswd"] = secret.expose().into();
    }
    auth
}

/// The path of a unit, `storage-1/volume-1`.
pub(super) fn unit_path(name: &VolumeName, unit: &str) -> Result<String, FabricError> {
    let (storage, volume) = unit.split_once('/').ok_or_else(|| FabricError::Malformed {
        what: format!("app_instances/{name}"),
        detail: format!("unit {unit:?} has no volume"),
    })?;
    Ok(format!(
        "/app_instances/{name}/storage_instances/{storage}/volumes/{volume}"
    ))
}

/// Whether the volume that is there can be the one that is asked for.
fn compare(volume: &Volume, request: &VolumeRequest) -> Result<(), FabricError> {
    let conflict = |what: String| {
        let hint = "delete it first, or use another name";
        Err(FabricError::Conflict(format!(
            "volume {} exists {what}; {hint}",
            volume.name
        )))
    };
    if let Some(template) = &request.template
        && volume.template.as_ref() != Some(template)
    {
        let was = volume.template.as_deref().unwrap_or("none");
        return conflict(format!(
            "and was made from template {was}, not from {template}"
        ));
    }
    if request.source.is_some() && volume.description != description(request) {
        return conflict("and does not hold a copy of that source".to_owned());
    }
    if request.template.is_some() || request.source.is_some() {
        return Ok(()); // What differs is made so.
    }
    let [unit] = volume.units.as_slice() else {
        return conflict(format!("with {} units", volume.units.len()));
    };
    // A volume may have grown since.
    if request
        .size_bytes
        .is_some_and(|size| unit.size_bytes < size)
    {
        return conflict(format!("with {} bytes (it can be grown)", unit.size_bytes));
    }
    if let (Some(wanted), Some(now)) = (request.replicas, unit.replicas)
        && now < wanted
    {
        return conflict(format!("with {now} replicas"));
    }
    if let Some(wanted) = placement_name(request)
        && unit.placement.as_deref() != Some(wanted)
    {
        let now = unit.placement.as_deref().unwrap_or("unknown");
        return conflict(format!("with placement {now}"));
    }
    if request.chap.is_some() && !unit.chap {
        return conflict("and does not ask for CHAP credentials".to_owned());
    }
    Ok(())
}

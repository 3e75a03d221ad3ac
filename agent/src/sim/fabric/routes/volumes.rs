//! Volumes, their limits and their snapshots; snapshots of app instances.

use super::super::answer::{Answer, ApiError};
use super::super::body::{ChangedVolume, NewSnapshot, NewVolume};
use super::super::call::Call;
use super::super::check::Problems;
use super::super::model::{
    AdminState, AppInstance, InstanceSnapshot, Performance, SnapshotPart, StorageInstance, Volume,
    VolumeSnapshot,
};
use super::super::view::{self, si_path};
use super::super::world::{World, new_uuid};
use super::build::{Builder, Files};
use super::{instances, storage};

/// Where a volume is: app instance, storage instance, name.
#[derive(Debug, Clone, Copy)]
pub(super) struct At<'a> {
    pub(super) instance: &'a str,
    pub(super) si: &'a str,
    pub(super) volume: &'a str,
}

pub(super) fn find<'a>(si: &'a StorageInstance, name: &str) -> Result<&'a Volume, ApiError> {
    let mut volumes = si.volumes.iter();
    volumes
        .find(|volume| volume.name == name)
        .ok_or_else(|| ApiError::not_found("Volume", name))
}

fn find_mut<'a>(si: &'a mut StorageInstance, name: &str) -> Result<&'a mut Volume, ApiError> {
    let mut volumes = si.volumes.iter_mut();
    volumes
        .find(|volume| volume.name == name)
        .ok_or_else(|| ApiError::not_found("Volume", name))
}

pub(super) fn find_snapshot<'a>(
    volume: &'a Volume,
    ts: &str,
) -> Result<&'a VolumeSnapshot, ApiError> {
    let mut snapshots = volume.snapshots.iter();
    snapshots
        .find(|snapshot| snapshot.utc_ts == ts)
        .ok_or_else(|| ApiError::not_found("Snapshot", ts))
}

pub(super) fn must_be_offline(what: &str) -> ApiError {
    ApiError::invalid(format!(
        "It is online and cannot be {what}; take it offline first"
    ))
}

impl At<'_> {
    fn look<'w>(
        &self,
        world: &'w World,
        call: &Call,
    ) -> Result<(&'w AppInstance, &'w StorageInstance, &'w Volume), ApiError> {
        let instance = world.instance(&call.scope, self.instance)?;
        let si = World::storage_instance(instance, self.si)?;
        Ok((instance, si, find(si, self.volume)?))
    }

    /// A copy of the app instance to change.
    fn copy(&self, world: &World, call: &Call) -> Result<AppInstance, ApiError> {
        Ok(self.look(world, call)?.0.clone())
    }

    fn volume<'i>(&self, instance: &'i mut AppInstance) -> Result<&'i mut Volume, ApiError> {
        find_mut(storage::find_mut(instance, self.si)?, self.volume)
    }
}

pub(super) async fn list(
    world: &World,
    call: &Call,
    id: &str,
    si: &str,
) -> Result<Answer, ApiError> {
    let instance = world.instance(&call.scope, id)?;
    let si = World::storage_instance(instance, si)?;
    let view = world.view(call).await?;
    let path = si_path(instance, si);
    let rows = si.volumes.iter().map(|volume| view.volume(&path, volume));
    call.rows(rows.collect(), super::counts_all(world))
}

pub(super) async fn get(world: &World, call: &Call, at: At<'_>) -> Result<Answer, ApiError> {
    let (instance, si, volume) = at.look(world, call)?;
    let parent = si_path(instance, si);
    let data = world.view(call).await?.volume(&parent, volume);
    let path = format!("{parent}/volumes/{}", volume.name);
    Ok(Answer::entity(path, &instance.tenant, data))
}

pub(super) async fn create(
    world: &mut World,
    call: &Call,
    id: &str,
    si: &str,
) -> Result<Answer, ApiError> {
    let body: NewVolume = call.body()?;
    let mut instance = world.instance(&call.scope, id)?.clone();
    let name = body.name.clone();
    let tenant = instance.tenant.clone();
    let openstack = (instance.create_mode == "openstack").then(|| instance.uuid.clone());
    let mut volumes = instance.storage_instances.iter().flat_map(|si| &si.volumes);
    let first = volumes.next().is_none();
    let target = storage::find_mut(&mut instance, si)?;
    if find(target, &name).is_ok() {
        return Err(ApiError::conflict("Volume", &name));
    }
    let mut builder = Builder::new(world, &tenant, call.is_v22());
    let uuid = openstack.as_deref().filter(|_| first);
    let volume = builder.volume(body, "", uuid)?;
    builder.add_volume(target, volume, "");
    builder.finish()?.make(world).await?;
    world.commit(instance).await?;
    let at = At {
        instance: id,
        si,
        volume: &name,
    };
    get(world, call, at).await
}

pub(super) async fn update(world: &mut World, call: &Call, at: At<'_>) -> Result<Answer, ApiError> {
    let body: ChangedVolume = call.body()?;
    let mut instance = at.copy(world, call)?;
    let tenant = instance.tenant.clone();
    let offline = instance.admin_state == AdminState::Offline;
    let si = storage::find_mut(&mut instance, at.si)?;
    let offline = offline || si.admin_state == AdminState::Offline;
    let mut files = Files::default();
    change(
        world, call, &tenant, si, at.volume, body, offline, &mut files,
    )?;
    files.make(world).await?;
    world.commit(instance).await?;
    get(world, call, at).await
}

/// Changes a volume in an app instance that is not stored yet.
#[allow(clippy::too_many_arguments, reason = "two callers that know it all")]
pub(super) fn change(
    world: &World,
    call: &Call,
    tenant: &str,
    si: &mut StorageInstance,
    name: &str,
    body: ChangedVolume,
    offline: bool,
    files: &mut Files,
) -> Result<(), ApiError> {
    let volume = find_mut(si, name)?;
    let mut builder = Builder::new(world, tenant, call.is_v22());
    builder
        .problems
        .only_v22(call.is_v22(), "force", body.force.is_some());
    if let Some(point) = &body.restore_point {
        if !offline {
            return Err(must_be_offline("restored"));
        }
        let snapshot = find_snapshot(volume, point)?.clone();
        volume.data = files.copy(&snapshot.data);
        volume.size_gib = snapshot.size_gib;
        volume.restore_point = Some(point.clone());
    }
    if let Some(size) = body.size {
        builder.problems.size("size", size);
        if size < volume.size_gib {
            return Err(ApiError::invalid(format!(
                "Volume {name} has {} GiB and cannot shrink to {size}",
                volume.size_gib
            )));
        }
        volume.size_gib = size;
    }
    if let Some(count) = body.replica_count {
        builder.problems.replicas("replica_count", count);
        if count < volume.replica_count {
            return Err(ApiError::invalid(format!(
                "Volume {name} has {} replicas; the number can only grow",
                volume.replica_count
            )));
        }
        volume.replica_count = count;
    }
    if body.placement_mode.is_some() || body.placement_policy.is_some() {
        let mode = body
            .placement_mode
            .unwrap_or_else(|| volume.placement.mode.clone());
        let policy = body.placement_policy.as_ref();
        let mut placement = builder.placement("", Some(mode), policy)?;
        if policy.is_none() {
            placement.policy = volume.placement.policy.take();
        }
        volume.placement = placement;
    }
    if let Some(limits) = body.performance_policy {
        builder.problems.performance("performance_policy", &limits);
        volume.performance = Some(limits);
    }
    if let Some(policies) = body.snapshot_policies {
        builder
            .problems
            .snapshot_policies("snapshot_policies", &policies);
        volume.snapshot_policies = policies;
    }
    builder.finish().map(drop)
}

pub(super) async fn delete(world: &mut World, call: &Call, at: At<'_>) -> Result<Answer, ApiError> {
    let deletion = instances::deletion(call)?;
    let mut instance = at.copy(world, call)?;
    let answer = get(world, call, at).await?;
    let offline = instance.admin_state == AdminState::Offline;
    let si = storage::find_mut(&mut instance, at.si)?;
    if !offline && si.admin_state == AdminState::Online && !deletion.force {
        return Err(must_be_offline("deleted"));
    }
    si.volumes.retain(|volume| volume.name != at.volume);
    world.commit(instance).await?;
    Ok(answer)
}

fn performance_path(instance: &AppInstance, at: At<'_>) -> String {
    let (si, volume) = (at.si, at.volume);
    format!(
        "{}/storage_instances/{si}/volumes/{volume}",
        instance.path()
    )
}

/// The limits; absent until they are set.
pub(super) fn performance(world: &World, call: &Call, at: At<'_>) -> Result<Answer, ApiError> {
    let (instance, _, volume) = at.look(world, call)?;
    let limits = volume
        .performance
        .ok_or_else(|| ApiError::not_found("Performance policy of", at.volume))?;
    Ok(show_performance(instance, at, &limits))
}

fn show_performance(instance: &AppInstance, at: At<'_>, limits: &Performance) -> Answer {
    let parent = performance_path(instance, at);
    let data = view::performance(&parent, limits);
    Answer::entity(
        format!("{parent}/performance_policy"),
        &instance.tenant,
        data,
    )
}

/// Sets all limits (POST), or those that are given (PUT).
pub(super) async fn set_performance(
    world: &mut World,
    call: &Call,
    at: At<'_>,
    new: bool,
) -> Result<Answer, ApiError> {
    let limits: Performance = call.body()?;
    let mut problems = Problems::default();
    problems.performance("performance_policy", &limits);
    problems.into_result()?;
    let mut instance = at.copy(world, call)?;
    let volume = at.volume(&mut instance)?;
    match volume.performance {
        Some(_) if new => return Err(ApiError::conflict("Performance policy of", at.volume)),
        None if !new => return Err(ApiError::not_found("Performance policy of", at.volume)),
        Some(old) => {
            let merged = serde_json::json!(old);
            let mut merged = serde_json::from_value(merged).unwrap_or_default();
            merge(&mut merged, call);
            volume.performance = Some(
                serde_json::from_value(serde_json::Value::Object(merged))
                    .map_err(|error| ApiError::internal(error.to_string()))?,
            );
        }
        None => volume.performance = Some(limits),
    }
    world.commit(instance).await?;
    performance(world, call, at)
}

fn merge(members: &mut serde_json::Map<String, serde_json::Value>, call: &Call) {
    if let Some(given) = call.body.as_object() {
        members.extend(given.clone());
    }
}

pub(super) async fn delete_performance(
    world: &mut World,
    call: &Call,
    at: At<'_>,
) -> Result<Answer, ApiError> {
    let answer = performance(world, call, at)?;
    let mut instance = at.copy(world, call)?;
    at.volume(&mut instance)?.performance = None;
    world.commit(instance).await?;
    Ok(answer)
}

fn snapshot_uuid(world: &World, call: &Call) -> Result<String, ApiError> {
    let body: NewSnapshot = call.body()?;
    let mut problems = Problems::default();
    if let Some(uuid) = &body.uuid {
        problems.uuid("uuid", uuid);
    }
    problems.only_v22(call.is_v22(), "type", body.kind.is_some());
    problems.into_result()?;
    if body.kind.is_some_and(|kind| kind != "local")
        || body
            .remote_provider_uuid
            .is_some_and(|uuid| !uuid.is_empty())
    {
        return Err(ApiError::invalid("There are no remote providers"));
    }
    let uuid = body.uuid.unwrap_or_else(new_uuid);
    let mut volumes = world
        .instances
        .values()
        .flat_map(|i| &i.storage_instances)
        .flat_map(|si| &si.volumes);
    let of_volume = volumes.any(|v| v.snapshots.iter().any(|s| s.uuid == uuid));
    let mut instances = world.instances.values();
    if of_volume || instances.any(|i| i.snapshots.iter().any(|s| s.uuid == uuid)) {
        return Err(ApiError::snapshot_exists(&uuid));
    }
    Ok(uuid)
}

pub(super) async fn create_snapshot(
    world: &mut World,
    call: &Call,
    at: At<'_>,
) -> Result<Answer, ApiError> {
    let mut instance = at.copy(world, call)?;
    let uuid = snapshot_uuid(world, call)?;
    let utc_ts = world.timestamp();
    let volume = at.volume(&mut instance)?;
    let mut files = Files::default();
    volume.snapshots.push(VolumeSnapshot {
        utc_ts: utc_ts.clone(),
        uuid: uuid.clone(),
        size_gib: volume.size_gib,
        data: files.copy(&volume.data),
    });
    files.make(world).await?;
    world.settle(&uuid);
    world.commit(instance).await?;
    get_snapshot(world, call, at, &utc_ts).await
}

pub(super) async fn list_snapshots(
    world: &World,
    call: &Call,
    at: At<'_>,
) -> Result<Answer, ApiError> {
    let (instance, _, volume) = at.look(world, call)?;
    let view = world.view(call).await?;
    let parent = performance_path(instance, at);
    let rows = volume.snapshots.iter().map(|s| view.snapshot(&parent, s));
    call.rows(rows.collect(), super::counts_all(world))
}

pub(super) async fn get_snapshot(
    world: &World,
    call: &Call,
    at: At<'_>,
    ts: &str,
) -> Result<Answer, ApiError> {
    let (instance, _, volume) = at.look(world, call)?;
    let parent = performance_path(instance, at);
    let snapshot = find_snapshot(volume, ts)?;
    let data = world.view(call).await?.snapshot(&parent, snapshot);
    let path = format!("{parent}/snapshots/{ts}");
    Ok(Answer::entity(path, &instance.tenant, data))
}

pub(super) async fn delete_snapshot(
    world: &mut World,
    call: &Call,
    at: At<'_>,
    ts: &str,
) -> Result<Answer, ApiError> {
    instances::deletion(call)?;
    let answer = get_snapshot(world, call, at, ts).await?;
    let mut instance = at.copy(world, call)?;
    let volume = at.volume(&mut instance)?;
    volume.snapshots.retain(|snapshot| snapshot.utc_ts != ts);
    world.commit(instance).await?;
    Ok(answer)
}

/// A snapshot of all volumes of an app instance.
pub(super) async fn create_whole(
    world: &mut World,
    call: &Call,
    id: &str,
) -> Result<Answer, ApiError> {
    let mut instance = world.instance(&call.scope, id)?.clone();
    let uuid = snapshot_uuid(world, call)?;
    let utc_ts = world.timestamp();
    let mut files = Files::default();
    let mut parts = Vec::new();
    for si in &instance.storage_instances {
        for volume in &si.volumes {
            parts.push(SnapshotPart {
                storage_instance: si.name.clone(),
                volume: volume.name.clone(),
                size_gib: volume.size_gib,
                data: files.copy(&volume.data),
            });
        }
    }
    instance.snapshots.push(InstanceSnapshot {
        utc_ts: utc_ts.clone(),
        uuid: uuid.clone(),
        parts,
    });
    files.make(world).await?;
    world.settle(&uuid);
    world.commit(instance).await?;
    get_whole(world, call, id, &utc_ts).await
}

pub(super) async fn list_whole(world: &World, call: &Call, id: &str) -> Result<Answer, ApiError> {
    let instance = world.instance(&call.scope, id)?;
    let view = world.view(call).await?;
    let path = instance.path();
    let rows = instance.snapshots.iter();
    let rows = rows.map(|s| view.instance_snapshot(&path, s)).collect();
    call.rows(rows, super::counts_all(world))
}

pub(super) async fn get_whole(
    world: &World,
    call: &Call,
    id: &str,
    ts: &str,
) -> Result<Answer, ApiError> {
    let instance = world.instance(&call.scope, id)?;
    let snapshot = instance.snapshots.iter().find(|s| s.utc_ts == ts);
    let snapshot = snapshot.ok_or_else(|| ApiError::not_found("Snapshot", ts))?;
    let path = instance.path();
    let data = world.view(call).await?.instance_snapshot(&path, snapshot);
    Ok(Answer::entity(
        format!("{path}/snapshots/{ts}"),
        &instance.tenant,
        data,
    ))
}

pub(super) async fn delete_whole(
    world: &mut World,
    call: &Call,
    id: &str,
    ts: &str,
) -> Result<Answer, ApiError> {
    instances::deletion(call)?;
    let answer = get_whole(world, call, id, ts).await?;
    let mut instance = world.instance(&call.scope, id)?.clone();
    instance.snapshots.retain(|snapshot| snapshot.utc_ts != ts);
    world.commit(instance).await?;
    Ok(answer)
}

//! `/app_instances`, and metadata.

use serde_json::{Map, Value};

use super::super::answer::{Answer, ApiError};
use super::super::body::{ChangedInstance, Deletion, NewInstance};
use super::super::call::Call;
use super::super::check::Problems;
use super::super::model::{
    AccessMode, AdminState, AppInstance, Link, SnapshotPart, StorageInstance, Volume,
};
use super::super::store::FORMAT;
use super::super::view::{NO_UUID, View};
use super::super::world::{World, new_uuid};
use super::build::{Builder, Files};
use super::{storage, volumes};

/// Most characters of an instance's metadata as JSON.
const METADATA_MAX: usize = 2048;
/// Names that volume and storage instance of a clone have.
const CLONE_NAMES: (&str, &str) = ("storage-1", "volume-1");

pub(super) async fn list(world: &World, call: &Call) -> Result<Answer, ApiError> {
    let view = world.view(call).await?;
    let own = world
        .instances
        .values()
        .filter(|instance| call.scope.holds(&instance.tenant));
    call.list(
        own,
        super::counts_all(world),
        |instance| View::instance_brief(instance),
        |instance| view.instance(instance),
    )
}

pub(super) async fn get(world: &World, call: &Call, id: &str) -> Result<Answer, ApiError> {
    show(world, call, world.instance(&call.scope, id)?).await
}

async fn show(world: &World, call: &Call, instance: &AppInstance) -> Result<Answer, ApiError> {
    let data = world.view(call).await?.instance(instance);
    Ok(Answer::entity(instance.path(), &instance.tenant, data))
}

pub(super) async fn create(world: &mut World, call: &Call) -> Result<Answer, ApiError> {
    let body: NewInstance = call.body()?;
    let tenant = call.scope.owner().to_owned();
    let (instance, files) = build(world, call, &tenant, body)?;
    files.make(world).await?;
    for si in &instance.storage_instances {
        world.settle(&si.uuid);
    }
    let number = instance.number;
    world.commit(instance).await?;
    show(world, call, &world.instances[&number]).await
}

fn build(
    world: &World,
    call: &Call,
    tenant: &str,
    body: NewInstance,
) -> Result<(AppInstance, Files), ApiError> {
    let mut builder = Builder::new(world, tenant, call.is_v22());
    let problems = &mut builder.problems;
    problems.name_or_uuid("name", &body.name);
    problems.descr("descr", body.descr.as_deref().unwrap_or_default());
    let create_mode = body.create_mode.unwrap_or_else(|| "normal".to_owned());
    problems.create_mode(&create_mode);
    if let Some(uuid) = &body.uuid {
        problems.uuid("uuid", uuid);
    }
    let snapshot_policies = body.snapshot_policies.unwrap_or_default();
    problems.snapshot_policies("snapshot_policies", &snapshot_policies);
    let overridable = call.is_v22() && world.is_33();
    problems.only_v22(
        overridable,
        "template_override",
        body.template_override.is_some(),
    );
    problems.only_v22(
        call.is_v22(),
        "repair_priority",
        body.repair_priority.is_some(),
    );
    problems.only_v22(call.is_v22(), "storage_pool", body.storage_pool.is_some());
    let sources = [
        &body.app_template,
        &body.clone_src,
        &body.clone_volume_src,
        &body.clone_snapshot_src,
    ];
    let sources =
        sources.into_iter().flatten().count() + usize::from(body.storage_instances.is_some());
    problems.check(sources <= 1, || {
        "only one of app_template, clone_src, clone_volume_src, clone_snapshot_src and storage_instances may be given".to_owned()
    });
    problems.check(
        body.template_override.is_none() || body.app_template.is_some(),
        || "template_override: it needs an app_template".to_owned(),
    );
    let mut taken = world.instances.values();
    if taken.any(|other| other.tenant == tenant && other.name == body.name) {
        return Err(ApiError::conflict("App instance", &body.name));
    }
    let access = body.access_control_mode.unwrap_or_default();
    // The uuid of such a request also names the volume.
    let uuid = body.uuid.as_deref().filter(|_| create_mode == "openstack");
    let mut template = None;
    let mut clone_src = None;
    let mut policies = snapshot_policies;
    let storage_instances = if let Some(reference) = &body.app_template {
        let found = builder.template(&reference.path)?;
        template = Some(Link::to(found));
        if policies.is_empty() {
            policies.clone_from(&found.snapshot_policies);
        }
        builder.instantiate(found, body.template_override.as_ref(), access, uuid)?
    } else if let Some(source) = &body.clone_src {
        clone_src = Some(source.path.clone());
        clone_instance(&mut builder, call, &source.path)?
    } else if let Some(source) = body.clone_volume_src.or(body.clone_snapshot_src) {
        let made = clone_part(&mut builder, call, &source.path, uuid)?;
        clone_src = Some(source.path);
        made
    } else {
        let mut made: Vec<StorageInstance> = Vec::new();
        for (index, si) in body
            .storage_instances
            .unwrap_or_default()
            .into_iter()
            .enumerate()
        {
            let at = format!("storage_instances[{index}].");
            let twice = made.iter().any(|other| other.name == si.name);
            builder
                .problems
                .check(!twice, || format!("{at}name: {:?} is there twice", si.name));
            made.push(builder.storage_instance(si, &at, access, uuid)?);
        }
        made
    };
    let files = builder.finish()?;
    let instance = AppInstance {
        format: FORMAT,
        number: world.next_number(),
        id: new_uuid(),
        tenant: tenant.to_owned(),
        name: body.name,
        descr: body.descr.unwrap_or_default(),
        admin_state: AdminState::Online,
        create_mode,
        uuid: body.uuid.unwrap_or_else(|| NO_UUID.to_owned()),
        access_control_mode: access,
        template,
        clone_src,
        restore_point: None,
        repair_priority: body.repair_priority,
        snapshot_policies: policies,
        snapshots: Vec::new(),
        storage_instances,
        metadata: Map::new(),
    };
    Ok((instance, files))
}

/// Segments of a path behind `/app_instances/`.
fn instance_path(path: &str) -> Option<(&str, Vec<&str>)> {
    let mut segments = path.strip_prefix("/app_instances/")?.split('/');
    let id = segments.next()?;
    Some((id, segments.collect()))
}

fn clone_instance(
    builder: &mut Builder<'_>,
    call: &Call,
    path: &str,
) -> Result<Vec<StorageInstance>, ApiError> {
    let Some((id, rest)) = instance_path(path).filter(|(_, rest)| rest.is_empty()) else {
        return Err(ApiError::not_found("App instance", path));
    };
    debug_assert!(rest.is_empty());
    let source = builder.world.instance(&call.scope, id)?;
    let mut made = Vec::new();
    for si in &source.storage_instances {
        let mut copy = builder.like(si);
        for volume in &si.volumes {
            let volume = builder.clone_of(volume, &volume.data, volume.size_gib, None);
            builder.add_volume(&mut copy, volume, "");
        }
        made.push(copy);
    }
    Ok(made)
}

/// A clone of a volume, of a snapshot of one, or of a snapshot of an app instance.
fn clone_part(
    builder: &mut Builder<'_>,
    call: &Call,
    path: &str,
    uuid: Option<&str>,
) -> Result<Vec<StorageInstance>, ApiError> {
    let (id, rest) =
        instance_path(path).ok_or_else(|| ApiError::not_found("Clone source", path))?;
    let source = builder.world.instance(&call.scope, id)?;
    match rest.as_slice() {
        ["storage_instances", si, "volumes", volume, snapshot @ ..] => {
            let si = World::storage_instance(source, si)?;
            let volume = volumes::find(si, volume)?;
            let (data, size_gib) = match snapshot {
                [] => (&volume.data, volume.size_gib),
                ["snapshots", ts] => {
                    let snapshot = volumes::find_snapshot(volume, ts)?;
                    (&snapshot.data, snapshot.size_gib)
                }
                _ => return Err(ApiError::not_found("Clone source", path)),
            };
            let mut copy = builder.like(si);
            CLONE_NAMES.0.clone_into(&mut copy.name);
            let mut clone = builder.clone_of(volume, data, size_gib, uuid);
            CLONE_NAMES.1.clone_into(&mut clone.name);
            builder.add_volume(&mut copy, clone, "");
            Ok(vec![copy])
        }
        ["snapshots", ts] => {
            let snapshot = source.snapshots.iter().find(|s| s.utc_ts == *ts);
            let snapshot = snapshot.ok_or_else(|| ApiError::not_found("Snapshot", ts))?;
            let mut made: Vec<StorageInstance> = Vec::new();
            for SnapshotPart {
                storage_instance,
                volume,
                size_gib,
                data,
            } in &snapshot.parts
            {
                // Parts of objects that are gone since cannot be taken up.
                let Ok(si) = World::storage_instance(source, storage_instance) else {
                    continue;
                };
                let Ok(volume) = volumes::find(si, volume) else {
                    continue;
                };
                if made.last().is_none_or(|last| last.name != si.name) {
                    made.push(builder.like(si));
                }
                let clone = builder.clone_of(volume, data, *size_gib, None);
                if let Some(last) = made.last_mut() {
                    builder.add_volume(last, clone, "");
                }
            }
            Ok(made)
        }
        _ => Err(ApiError::not_found("Clone source", path)),
    }
}

pub(super) async fn update(world: &mut World, call: &Call, id: &str) -> Result<Answer, ApiError> {
    let body: ChangedInstance = call.body()?;
    let mut instance = world.instance(&call.scope, id)?.clone();
    let mut problems = Problems::default();
    problems.only_v22(
        call.is_v22(),
        "repair_priority",
        body.repair_priority.is_some(),
    );
    problems.only_v22(call.is_v22(), "storage_pool", body.storage_pool.is_some());
    if let Some(descr) = body.descr {
        problems.descr("descr", &descr);
        instance.descr = descr;
    }
    if let Some(policies) = body.snapshot_policies {
        problems.snapshot_policies("snapshot_policies", &policies);
        instance.snapshot_policies = policies;
    }
    if let Some(name) = body.name {
        problems.name_or_uuid("name", &name);
        let mut others = world.instances.values();
        if others.any(|o| o.id != instance.id && o.tenant == instance.tenant && o.name == name) {
            return Err(ApiError::conflict("App instance", &name));
        }
        instance.name = name;
    }
    problems.into_result()?;
    if body.repair_priority.is_some() {
        instance.repair_priority = body.repair_priority;
    }
    if let Some(mode) = body.access_control_mode {
        narrow(instance.access_control_mode, mode)?;
        instance.access_control_mode = mode;
        for si in &mut instance.storage_instances {
            si.access_control_mode = mode;
        }
    }
    if let Some(state) = body.admin_state {
        if state == AdminState::Offline && !body.force && world.is_in_use(&instance, None).await? {
            return Err(in_use(&instance.name));
        }
        instance.admin_state = state;
    }
    let mut files = Files::default();
    if let Some(point) = body.restore_point {
        restore(&mut instance, &point, &mut files)?;
    }
    for change in body.storage_instances.into_iter().flatten() {
        let name = change.name.clone().unwrap_or_default();
        storage::change(world, call, &mut instance, &name, change, &mut files).await?;
    }
    files.make(world).await?;
    let number = instance.number;
    world.commit(instance).await?;
    show(world, call, &world.instances[&number]).await
}

/// Everybody can be shut out, nobody can be let in again.
pub(super) fn narrow(from: AccessMode, to: AccessMode) -> Result<(), ApiError> {
    if from == AccessMode::DenyAll && to == AccessMode::AllowAll {
        return Err(ApiError::invalid(
            "access_control_mode can only change from allow_all to deny_all",
        ));
    }
    Ok(())
}

pub(super) fn in_use(name: &str) -> ApiError {
    ApiError::invalid(format!(
        "Initiators are logged in to {name}; use force to override this warning"
    ))
}

/// Puts the volumes of a snapshot back.
fn restore(instance: &mut AppInstance, ts: &str, files: &mut Files) -> Result<(), ApiError> {
    if instance.admin_state == AdminState::Online {
        return Err(volumes::must_be_offline("restored"));
    }
    let snapshot = instance.snapshots.iter().find(|s| s.utc_ts == ts);
    let snapshot = snapshot
        .ok_or_else(|| ApiError::not_found("Snapshot", ts))?
        .clone();
    for part in snapshot.parts {
        let mut sis = instance.storage_instances.iter_mut();
        let si = sis.find(|si| si.name == part.storage_instance);
        let volume: Option<&mut Volume> =
            si.and_then(|si| si.volumes.iter_mut().find(|v| v.name == part.volume));
        if let Some(volume) = volume {
            volume.data = files.copy(&part.data);
            volume.size_gib = part.size_gib;
        }
    }
    instance.restore_point = Some(ts.to_owned());
    Ok(())
}

pub(super) async fn delete(world: &mut World, call: &Call, id: &str) -> Result<Answer, ApiError> {
    let deletion = deletion(call)?;
    let instance = world.instance(&call.scope, id)?;
    if instance.admin_state == AdminState::Online && !deletion.force {
        return Err(volumes::must_be_offline("deleted"));
    }
    let answer = show(world, call, instance).await?;
    let number = instance.number;
    world.remove(number).await?;
    Ok(answer)
}

/// What a DELETE says in its body or in its query.
pub(super) fn deletion(call: &Call) -> Result<Deletion, ApiError> {
    let mut deletion: Deletion = call.body()?;
    deletion.force |= call.param("force") == Some("true");
    Ok(deletion)
}

/// Metadata of an app instance, or of a storage instance of it.
pub(super) fn metadata(
    world: &World,
    call: &Call,
    id: &str,
    si: Option<&str>,
) -> Result<Answer, ApiError> {
    let instance = world.instance(&call.scope, id)?;
    let data = match si {
        None => &instance.metadata,
        Some(si) => &World::storage_instance(instance, si)?.metadata,
    };
    let data = Value::Object(data.clone());
    Ok(Answer::entity(&call.path, &instance.tenant, data))
}

/// Merges the members of the body, or of its `data`, into the metadata.
pub(super) async fn set_metadata(
    world: &mut World,
    call: &Call,
    id: &str,
    si: Option<&str>,
    wrapped: bool,
) -> Result<Answer, ApiError> {
    let body = if wrapped {
        call.body.get("data")
    } else {
        Some(&call.body)
    };
    let Some(Value::Object(members)) = body else {
        let what = if wrapped {
            "data: it must be an object"
        } else {
            "the body must be an object"
        };
        return Err(ApiError::validation(vec![what.to_owned()]));
    };
    let mut instance = world.instance(&call.scope, id)?.clone();
    let metadata = match si {
        None => &mut instance.metadata,
        Some(name) => {
            World::storage_instance(&instance, name)?;
            let mut sis = instance.storage_instances.iter_mut();
            let found = sis.find(|si| si.name == name);
            &mut found.expect("it was looked up in the line before").metadata
        }
    };
    metadata.extend(members.clone());
    let len = Value::Object(metadata.clone()).to_string().chars().count();
    if len > METADATA_MAX {
        return Err(ApiError::invalid(format!(
            "Metadata would have {len} characters; at most {METADATA_MAX} are kept"
        )));
    }
    world.commit(instance).await?;
    metadata_of(world, call, id, si)
}

fn metadata_of(world: &World, call: &Call, id: &str, si: Option<&str>) -> Result<Answer, ApiError> {
    metadata(world, call, id, si)
}

/// Metadata of all instances.
pub(super) fn all_metadata(world: &World, call: &Call) -> Result<Answer, ApiError> {
    let rows = world
        .instances
        .values()
        .filter(|instance| call.scope.holds(&instance.tenant))
        .map(|i| serde_json::json!({ "name": i.name, "path": i.path(), "data": i.metadata }))
        .collect();
    call.rows(rows, super::counts_all(world))
}

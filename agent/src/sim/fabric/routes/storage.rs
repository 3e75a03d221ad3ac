//! Storage instances: targets, their access lists and credentials.

use serde_json::Value;

use super::super::answer::{Answer, ApiError};
use super::super::body::{
    AclPolicy, ChangedAuth, ChangedStorageInstance, ListChange, ListOp, NewStorageInstance,
};
use super::super::call::Call;
use super::super::model::{AdminState, AppInstance, Link, Owned, StorageInstance};
use super::super::view::{self, si_path};
use super::super::world::World;
use super::build::{Builder, Files};
use super::{instances, volumes};

pub(super) async fn list(world: &World, call: &Call, id: &str) -> Result<Answer, ApiError> {
    let instance = world.instance(&call.scope, id)?;
    let view = world.view(call).await?;
    let rows = instance.storage_instances.iter();
    let rows = rows.map(|si| view.storage_instance(instance, si)).collect();
    call.rows(rows, super::counts_all(world))
}

pub(super) async fn get(
    world: &World,
    call: &Call,
    id: &str,
    name: &str,
) -> Result<Answer, ApiError> {
    let instance = world.instance(&call.scope, id)?;
    let si = World::storage_instance(instance, name)?;
    show(world, call, instance, si).await
}

async fn show(
    world: &World,
    call: &Call,
    instance: &AppInstance,
    si: &StorageInstance,
) -> Result<Answer, ApiError> {
    let data = world.view(call).await?.storage_instance(instance, si);
    let path = si_path(instance, si);
    Ok(Answer::entity(path, &instance.tenant, data))
}

pub(super) async fn create(world: &mut World, call: &Call, id: &str) -> Result<Answer, ApiError> {
    let body: NewStorageInstance = call.body()?;
    let mut instance = world.instance(&call.scope, id)?.clone();
    let name = body.name.clone();
    if World::storage_instance(&instance, &name).is_ok() {
        return Err(ApiError::conflict("Storage instance", &name));
    }
    let tenant = instance.tenant.clone();
    let mut builder = Builder::new(world, &tenant, call.is_v22());
    let uuid = (instance.create_mode == "openstack").then(|| instance.uuid.clone());
    let first = instance.storage_instances.is_empty();
    let uuid = uuid.as_deref().filter(|_| first);
    let si = builder.storage_instance(body, "", instance.access_control_mode, uuid)?;
    builder.finish()?.make(world).await?;
    world.settle(&si.uuid);
    instance.storage_instances.push(si);
    commit(world, call, instance, &name).await
}

/// Stores the instance and shows one of its storage instances.
async fn commit(
    world: &mut World,
    call: &Call,
    instance: AppInstance,
    name: &str,
) -> Result<Answer, ApiError> {
    let number = instance.number;
    world.commit(instance).await?;
    let instance = &world.instances[&number];
    show(
        world,
        call,
        instance,
        World::storage_instance(instance, name)?,
    )
    .await
}

pub(super) async fn update(
    world: &mut World,
    call: &Call,
    id: &str,
    name: &str,
) -> Result<Answer, ApiError> {
    let body: ChangedStorageInstance = call.body()?;
    let mut instance = world.instance(&call.scope, id)?.clone();
    let mut files = Files::default();
    change(world, call, &mut instance, name, body, &mut files).await?;
    files.make(world).await?;
    commit(world, call, instance, name).await
}

/// Changes a storage instance in an app instance that is not stored yet.
pub(super) async fn change(
    world: &World,
    call: &Call,
    instance: &mut AppInstance,
    name: &str,
    body: ChangedStorageInstance,
    files: &mut Files,
) -> Result<(), ApiError> {
    let templated = instance.template.is_some();
    if body.admin_state == Some(AdminState::Offline)
        && !body.force
        && world.is_in_use(instance, Some(name)).await?
    {
        return Err(instances::in_use(name));
    }
    let offline = instance.admin_state == AdminState::Offline;
    let tenant = instance.tenant.clone();
    let si = find_mut(instance, name)?;
    if let Some(state) = body.admin_state {
        si.admin_state = state;
    }
    if let Some(mode) = body.access_control_mode {
        instances::narrow(si.access_control_mode, mode)?;
        si.access_control_mode = mode;
    }
    let mut builder = Builder::new(world, &tenant, call.is_v22());
    if let Some(pool) = body.ip_pool {
        let pool = builder.pool(&pool.path)?;
        if templated && pool != si.ip_pool {
            return Err(ApiError::invalid(
                "The ip_pool of an app instance with a template cannot be changed",
            ));
        }
        si.ip_pool = pool;
    }
    if let Some(auth) = body.auth {
        builder.auth(&mut si.auth, auth, "");
    }
    if let Some(policy) = body.acl_policy {
        builder.acl(si, policy)?;
    }
    builder.finish()?;
    let offline = offline || si.admin_state == AdminState::Offline;
    for change in body.volumes.into_iter().flatten() {
        let name = change.name.clone().unwrap_or_default();
        volumes::change(world, call, &tenant, si, &name, change, offline, files)?;
    }
    Ok(())
}

pub(super) fn find_mut<'a>(
    instance: &'a mut AppInstance,
    name: &str,
) -> Result<&'a mut StorageInstance, ApiError> {
    instance
        .storage_instances
        .iter_mut()
        .find(|si| si.name == name)
        .ok_or_else(|| ApiError::not_found("Storage instance", name))
}

pub(super) async fn delete(
    world: &mut World,
    call: &Call,
    id: &str,
    name: &str,
) -> Result<Answer, ApiError> {
    let deletion = instances::deletion(call)?;
    let mut instance = world.instance(&call.scope, id)?.clone();
    let si = World::storage_instance(&instance, name)?;
    let offline =
        instance.admin_state == AdminState::Offline || si.admin_state == AdminState::Offline;
    if !offline && !deletion.force {
        return Err(volumes::must_be_offline("deleted"));
    }
    let answer = show(world, call, &instance, si).await?;
    instance.storage_instances.retain(|si| si.name != name);
    world.commit(instance).await?;
    Ok(answer)
}

/// `acl_policy`, `auth` and `access` as objects.
pub(super) async fn part(
    world: &World,
    call: &Call,
    id: &str,
    name: &str,
    part: &str,
) -> Result<Answer, ApiError> {
    let instance = world.instance(&call.scope, id)?;
    let si = World::storage_instance(instance, name)?;
    let path = si_path(instance, si);
    let data = match part {
        "acl_policy" => view::acl_policy(instance, si),
        "auth" => view::auth(&path, &si.auth),
        _ => world.view(call).await?.access(instance, si),
    };
    Ok(Answer::entity(
        format!("{path}/{part}"),
        &instance.tenant,
        data,
    ))
}

pub(super) async fn set_acl(
    world: &mut World,
    call: &Call,
    id: &str,
    name: &str,
) -> Result<Answer, ApiError> {
    let body: AclPolicy = call.body()?;
    let mut instance = world.instance(&call.scope, id)?.clone();
    let tenant = instance.tenant.clone();
    let builder = Builder::new(world, &tenant, call.is_v22());
    builder.acl(find_mut(&mut instance, name)?, body)?;
    world.commit(instance).await?;
    part(world, call, id, name, "acl_policy").await
}

pub(super) async fn set_auth(
    world: &mut World,
    call: &Call,
    id: &str,
    name: &str,
) -> Result<Answer, ApiError> {
    let body: ChangedAuth = call.body()?;
    let mut instance = world.instance(&call.scope, id)?.clone();
    let tenant = instance.tenant.clone();
    let mut builder = Builder::new(world, &tenant, call.is_v22());
    builder.auth(&mut find_mut(&mut instance, name)?.auth, body, "");
    builder.finish()?;
    world.commit(instance).await?;
    part(world, call, id, name, "auth").await
}

/// One of the two lists, its elements whole.
pub(super) fn acl_list(
    world: &World,
    call: &Call,
    id: &str,
    name: &str,
    groups: bool,
) -> Result<Answer, ApiError> {
    let instance = world.instance(&call.scope, id)?;
    let si = World::storage_instance(instance, name)?;
    let rows = if groups {
        let items = &world.catalogue.groups;
        whole(&si.initiator_groups, items, view::group)
    } else {
        let items = &world.catalogue.initiators;
        whole(&si.initiators, items, view::initiator)
    };
    call.rows(rows, super::counts_all(world))
}

fn whole<T: Owned>(links: &[Link], items: &[T], render: impl Fn(&T) -> Value) -> Vec<Value> {
    links
        .iter()
        .filter_map(|link| items.iter().find(|item| link.is(*item)))
        .map(render)
        .collect()
}

pub(super) async fn change_acl_list(
    world: &mut World,
    call: &Call,
    id: &str,
    name: &str,
    groups: bool,
) -> Result<Answer, ApiError> {
    let body: ListChange = call.body()?;
    let mut instance = world.instance(&call.scope, id)?.clone();
    let tenant = instance.tenant.clone();
    let builder = Builder::new(world, &tenant, call.is_v22());
    let (what, link) = if groups {
        ("Initiator group", builder.group(&body.path)?)
    } else {
        ("Initiator", builder.initiator(&body.path)?)
    };
    // Clients make an object of the answer, so it is the element and not the list.
    let data = if groups {
        let items = &world.catalogue.groups;
        whole(std::slice::from_ref(&link), items, view::group).pop()
    } else {
        let items = &world.catalogue.initiators;
        whole(std::slice::from_ref(&link), items, view::initiator).pop()
    };
    let si = find_mut(&mut instance, name)?;
    let list = if groups {
        &mut si.initiator_groups
    } else {
        &mut si.initiators
    };
    change_links(list, body.op, link, what)?;
    world.commit(instance).await?;
    Ok(Answer::entity(
        &call.path,
        &tenant,
        data.unwrap_or_default(),
    ))
}

/// Adds to a list what is not in it, or removes what is.
pub(super) fn change_links(
    list: &mut Vec<Link>,
    op: ListOp,
    link: Link,
    what: &str,
) -> Result<(), ApiError> {
    match (op, list.contains(&link)) {
        (ListOp::Add, false) => list.push(link),
        (ListOp::Remove, true) => list.retain(|other| *other != link),
        (ListOp::Add, true) => return Err(ApiError::conflict(what, &link.key)),
        (ListOp::Remove, false) => return Err(ApiError::not_found(what, &link.key)),
    }
    Ok(())
}

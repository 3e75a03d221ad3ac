//! Initiators, their groups, IP pools and tenants.

use serde_json::{Value, json};

use super::super::answer::{Answer, ApiError};
use super::super::body::{
    Group, ListChange, NetworkPath, NewInitiator, NewPool, NewTenant, Reference, Renamed,
};
use super::super::call::{Call, ROOT, is_within};
use super::super::check::Problems;
use super::super::model::{
    Initiator, InitiatorGroup, IpPool, Link, Owned, StorageInstance, Tenant, visible,
};
use super::super::view;
use super::super::world::World;
use super::build::{Builder, DEFAULT_POOL};
use super::counts_all;
use super::storage::change_links;

/// Objects that the request sees, its own and those of tenants above.
pub(super) fn seen<'a, T: Owned>(items: &'a [T], call: &'a Call) -> impl Iterator<Item = &'a T> {
    items.iter().filter(|item| call.scope.sees(item.tenant()))
}

/// The one with that key.
pub(super) fn one<'a, T: Owned>(
    items: &'a [T],
    call: &Call,
    what: &str,
    key: &str,
) -> Result<&'a T, ApiError> {
    let all = || items.iter().find(|item| item.key() == key);
    let found = match &call.scope {
        super::super::call::Scope::All => all(),
        super::super::call::Scope::Tenant(tenant) => visible(items, tenant, key),
    };
    found.ok_or_else(|| ApiError::not_found(what, key))
}

/// Fails when the tenant of the request has one with that key.
pub(super) fn free<T: Owned>(
    items: &[T],
    call: &Call,
    what: &str,
    key: &str,
) -> Result<(), ApiError> {
    let owner = call.scope.owner();
    let taken = items
        .iter()
        .any(|item| item.tenant() == owner && item.key() == key);
    if taken {
        return Err(ApiError::conflict(what, key));
    }
    Ok(())
}

fn rows<T: Owned>(
    world: &World,
    call: &Call,
    items: &[T],
    render: impl Fn(&T) -> Value,
) -> Result<Answer, ApiError> {
    call.rows(seen(items, call).map(render).collect(), counts_all(world))
}

fn entity<T: Owned>(item: &T, data: Value) -> Answer {
    let path = data["path"].as_str().unwrap_or_default().to_owned();
    Answer::entity(path, item.tenant(), data)
}

pub(super) fn initiators(world: &World, call: &Call) -> Result<Answer, ApiError> {
    rows(world, call, &world.catalogue.initiators, view::initiator)
}

pub(super) fn initiator(world: &World, call: &Call, id: &str) -> Result<Answer, ApiError> {
    let found = one(&world.catalogue.initiators, call, "Initiator", id)?;
    Ok(entity(found, view::initiator(found)))
}

pub(super) fn create_initiator(world: &mut World, call: &Call) -> Result<Answer, ApiError> {
    let body: NewInitiator = call.body()?;
    let mut problems = Problems::default();
    problems.initiator_id("id", &body.id);
    problems.descr("name", &body.name);
    problems.only_v22(call.is_v22(), "force", body.force.is_some());
    problems.into_result()?;
    let tenant = call.scope.owner().to_owned();
    free(&world.catalogue.initiators, call, "Initiator", &body.id)?;
    let first = !world
        .catalogue
        .initiators
        .iter()
        .any(|i| i.tenant == tenant);
    if tenant != ROOT && first && call.is_v22() && body.force != Some(true) {
        return Err(ApiError::invalid(format!(
            "The first initiator of {tenant} hides those of tenants above; use force to override this warning"
        )));
    }
    let made = Initiator {
        tenant,
        id: body.id,
        name: body.name,
    };
    let answer = entity(&made, view::initiator(&made));
    world.change_catalogue(|catalogue| {
        catalogue.initiators.push(made);
        Ok(answer)
    })
}

pub(super) fn rename_initiator(
    world: &mut World,
    call: &Call,
    id: &str,
) -> Result<Answer, ApiError> {
    let body: Renamed = call.body()?;
    let link = Link::to(one(&world.catalogue.initiators, call, "Initiator", id)?);
    if let Some(name) = body.name {
        let mut problems = Problems::default();
        problems.descr("name", &name);
        problems.into_result()?;
        world.change_catalogue(|catalogue| {
            let mut initiators = catalogue.initiators.iter_mut();
            if let Some(found) = initiators.find(|i| link.is(*i)) {
                found.name = name;
            }
            Ok(())
        })?;
    }
    initiator(world, call, id)
}

pub(super) fn delete_initiator(
    world: &mut World,
    call: &Call,
    id: &str,
) -> Result<Answer, ApiError> {
    let answer = initiator(world, call, id)?;
    let link = Link::to(one(&world.catalogue.initiators, call, "Initiator", id)?);
    let listed = targets(world).any(|si| si.initiators.contains(&link));
    let mut groups = world.catalogue.groups.iter();
    if listed || groups.any(|group| group.members.contains(&link)) {
        return Err(ApiError::invalid(format!(
            "Initiator {id} is in an access list or a group; remove it there first"
        )));
    }
    world.change_catalogue(|catalogue| {
        catalogue.initiators.retain(|i| !link.is(i));
        Ok(answer)
    })
}

fn targets(world: &World) -> impl Iterator<Item = &StorageInstance> {
    let instances = world.instances.values();
    instances.flat_map(|instance| &instance.storage_instances)
}

pub(super) fn groups(world: &World, call: &Call) -> Result<Answer, ApiError> {
    rows(world, call, &world.catalogue.groups, view::group)
}

pub(super) fn group(world: &World, call: &Call, name: &str) -> Result<Answer, ApiError> {
    let found = one(&world.catalogue.groups, call, "Initiator group", name)?;
    Ok(entity(found, view::group(found)))
}

fn members(
    world: &World,
    call: &Call,
    list: Option<Vec<Reference>>,
) -> Result<Vec<Link>, ApiError> {
    let builder = Builder::new(world, call.scope.owner(), call.is_v22());
    let list = list.unwrap_or_default();
    list.iter()
        .map(|item| builder.initiator(&item.path))
        .collect()
}

pub(super) fn create_group(world: &mut World, call: &Call) -> Result<Answer, ApiError> {
    let body: Group = call.body()?;
    let name = body.name.unwrap_or_default();
    let mut problems = Problems::default();
    problems.name("name", &name);
    problems.into_result()?;
    free(&world.catalogue.groups, call, "Initiator group", &name)?;
    let made = InitiatorGroup {
        tenant: call.scope.owner().to_owned(),
        members: members(world, call, body.members)?,
        name,
    };
    let answer = entity(&made, view::group(&made));
    world.change_catalogue(|catalogue| {
        catalogue.groups.push(made);
        Ok(answer)
    })
}

pub(super) async fn change_group(
    world: &mut World,
    call: &Call,
    name: &str,
) -> Result<Answer, ApiError> {
    let body: Group = call.body()?;
    if body.members.is_some() {
        let members = members(world, call, body.members)?;
        set_members(world, call, name, |list| {
            *list = members;
            Ok(())
        })
        .await?;
    }
    group(world, call, name)
}

/// Changes the members of a group; access lists with the group follow.
async fn set_members(
    world: &mut World,
    call: &Call,
    name: &str,
    change: impl FnOnce(&mut Vec<Link>) -> Result<(), ApiError>,
) -> Result<(), ApiError> {
    let link = Link::to(one(&world.catalogue.groups, call, "Initiator group", name)?);
    world.change_catalogue(|catalogue| {
        let mut groups = catalogue.groups.iter_mut();
        match groups.find(|group| link.is(*group)) {
            Some(group) => change(&mut group.members),
            None => Err(ApiError::not_found("Initiator group", name)),
        }
    })?;
    let affected = world.instances.values().filter(|instance| {
        let mut sis = instance.storage_instances.iter();
        sis.any(|si| si.initiator_groups.contains(&link))
    });
    let affected: Vec<u64> = affected.map(|instance| instance.number).collect();
    for number in affected {
        world.expose(number).await?;
    }
    Ok(())
}

pub(super) fn group_members(world: &World, call: &Call, name: &str) -> Result<Answer, ApiError> {
    let group = one(&world.catalogue.groups, call, "Initiator group", name)?;
    let initiators = &world.catalogue.initiators;
    let rows = group
        .members
        .iter()
        .filter_map(|link| initiators.iter().find(|i| link.is(*i)))
        .map(view::initiator);
    call.rows(rows.collect(), counts_all(world))
}

pub(super) async fn change_members(
    world: &mut World,
    call: &Call,
    name: &str,
) -> Result<Answer, ApiError> {
    let body: ListChange = call.body()?;
    let link = Builder::new(world, call.scope.owner(), call.is_v22()).initiator(&body.path)?;
    set_members(world, call, name, |list| {
        change_links(list, body.op, link, "Initiator")
    })
    .await?;
    group(world, call, name)
}

pub(super) fn delete_group(world: &mut World, call: &Call, name: &str) -> Result<Answer, ApiError> {
    let answer = group(world, call, name)?;
    let link = Link::to(one(&world.catalogue.groups, call, "Initiator group", name)?);
    if targets(world).any(|si| si.initiator_groups.contains(&link)) {
        return Err(ApiError::invalid(format!(
            "Initiator group {name} is in an access list; remove it there first"
        )));
    }
    world.change_catalogue(|catalogue| {
        catalogue.groups.retain(|group| !link.is(group));
        Ok(answer)
    })
}

fn show_pool(pool: &IpPool) -> Value {
    let path = format!("/access_network_ip_pools/{}", pool.name);
    let paths = pool.network_paths.iter().enumerate().map(|(index, block)| {
        let mut block = Value::Object(block.clone());
        let name = block["name"]
            .as_str()
            .map_or_else(|| index.to_string(), str::to_owned);
        view::extend(
            &mut block,
            json!({ "path": format!("{path}/network_paths/{name}") }),
        );
        block
    });
    json!({
        "tenant": pool.tenant, "path": path, "name": pool.name, "descr": pool.descr,
        "network_paths": paths.collect::<Vec<_>>(),
    })
}

pub(super) fn pools(world: &World, call: &Call) -> Result<Answer, ApiError> {
    rows(world, call, &world.catalogue.pools, show_pool)
}

pub(super) fn pool(world: &World, call: &Call, name: &str) -> Result<Answer, ApiError> {
    let found = one(&world.catalogue.pools, call, "IP pool", name)?;
    Ok(entity(found, show_pool(found)))
}

pub(super) fn network_paths(world: &World, call: &Call, name: &str) -> Result<Answer, ApiError> {
    let found = show_pool(one(&world.catalogue.pools, call, "IP pool", name)?);
    let rows = found["network_paths"].as_array().cloned();
    call.rows(rows.unwrap_or_default(), counts_all(world))
}

pub(super) fn create_pool(world: &mut World, call: &Call) -> Result<Answer, ApiError> {
    let body: NewPool = call.body()?;
    let mut problems = Problems::default();
    problems.name("name", &body.name);
    let descr = body.descr.unwrap_or_default();
    problems.descr("descr", &descr);
    for (index, block) in body.network_paths.iter().enumerate() {
        check_block(&mut problems, &format!("network_paths[{index}]"), block);
    }
    problems.into_result()?;
    free(&world.catalogue.pools, call, "IP pool", &body.name)?;
    let blocks = body.network_paths.iter().map(|block| match json!(block) {
        Value::Object(members) => members,
        _ => serde_json::Map::new(),
    });
    let made = IpPool {
        tenant: call.scope.owner().to_owned(),
        name: body.name,
        descr,
        network_paths: blocks.collect(),
    };
    let answer = entity(&made, show_pool(&made));
    world.change_catalogue(|catalogue| {
        catalogue.pools.push(made);
        Ok(answer)
    })
}

fn check_block(problems: &mut Problems, at: &str, block: &NetworkPath) {
    problems.range(&format!("{at}.netmask"), block.netmask, 16, 29);
    problems.range(&format!("{at}.range"), block.range, 6, 254);
    problems.range(&format!("{at}.vlan"), block.vlan.unwrap_or(0), 0, 4094);
    problems.range(&format!("{at}.mtu"), block.mtu.unwrap_or(1500), 1500, 9198);
}

pub(super) fn delete_pool(world: &mut World, call: &Call, name: &str) -> Result<Answer, ApiError> {
    let answer = pool(world, call, name)?;
    let link = Link::to(one(&world.catalogue.pools, call, "IP pool", name)?);
    let by_template = world
        .catalogue
        .templates
        .iter()
        .flat_map(|template| &template.storage_templates)
        .any(|st| st.ip_pool == link);
    let in_use = by_template || targets(world).any(|si| si.ip_pool == link);
    if in_use || name == DEFAULT_POOL {
        return Err(ApiError::invalid(format!("IP pool {name} is in use")));
    }
    world.change_catalogue(|catalogue| {
        catalogue.pools.retain(|pool| !link.is(pool));
        Ok(answer)
    })
}

fn show_tenant(world: &World, tenant: &Tenant) -> Value {
    let (parent, name) = tenant.path.rsplit_once('/').unwrap_or(("", &tenant.path));
    let below = world.catalogue.tenants.iter().filter(|other| {
        let rest = other.path.strip_prefix(&tenant.path);
        rest.and_then(|rest| rest.strip_prefix('/'))
            .is_some_and(|rest| !rest.contains('/'))
    });
    json!({
        "path": format!("/tenants{}", tenant.path), "name": name, "descr": tenant.descr,
        "parent_path": parent,
        "subtenants": below.map(|other| json!({ "path": format!("/tenants{}", other.path) }))
            .collect::<Vec<_>>(),
    })
}

pub(super) fn tenants(world: &World, call: &Call) -> Result<Answer, ApiError> {
    let mut seen: Vec<&Tenant> = world.catalogue.tenants.iter().collect();
    // Root comes first, parents before children.
    seen.sort_by(|a, b| a.path.cmp(&b.path));
    let rows = seen.into_iter().map(|tenant| show_tenant(world, tenant));
    call.rows(rows.collect(), counts_all(world))
}

fn find_tenant<'a>(world: &'a World, segments: &[&str]) -> Result<&'a Tenant, ApiError> {
    let path = format!("/{}", segments.join("/"));
    let mut tenants = world.catalogue.tenants.iter();
    tenants
        .find(|tenant| tenant.path == path)
        .ok_or_else(|| ApiError::not_found("Tenant", &path))
}

pub(super) fn tenant(world: &World, segments: &[&str]) -> Result<Answer, ApiError> {
    let found = find_tenant(world, segments)?;
    let path = format!("/tenants{}", found.path);
    Ok(Answer::entity(path, ROOT, show_tenant(world, found)))
}

pub(super) fn create_tenant(world: &mut World, call: &Call) -> Result<Answer, ApiError> {
    let body: NewTenant = call.body()?;
    let mut problems = Problems::default();
    problems.name_or_uuid("name", &body.name);
    let descr = body.descr.unwrap_or_default();
    problems.descr("descr", &descr);
    problems.into_result()?;
    if body.name == "root" && body.parent_path.is_none() {
        return Err(ApiError::conflict("Tenant", ROOT));
    }
    let parent = body.parent_path.as_deref().unwrap_or(ROOT);
    let parent = parent.strip_prefix("/tenants").unwrap_or(parent);
    let segments: Vec<&str> = parent.trim_matches('/').split('/').collect();
    let parent = find_tenant(world, &segments)?.path.clone();
    let made = Tenant {
        path: format!("{parent}/{}", body.name),
        descr,
    };
    if world.catalogue.tenants.iter().any(|t| t.path == made.path) {
        return Err(ApiError::conflict("Tenant", &made.path));
    }
    let path = made.path.clone();
    world.change_catalogue(|catalogue| {
        catalogue.tenants.push(made);
        Ok(())
    })?;
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    tenant(world, &segments)
}

pub(super) fn change_tenant(
    world: &mut World,
    call: &Call,
    segments: &[&str],
) -> Result<Answer, ApiError> {
    let body: Renamed = call.body()?;
    let path = find_tenant(world, segments)?.path.clone();
    let mut problems = Problems::default();
    problems.check(body.name.is_none(), || {
        "name: a tenant keeps its name".to_owned()
    });
    let descr = body.descr.unwrap_or_default();
    problems.descr("descr", &descr);
    problems.into_result()?;
    world.change_catalogue(|catalogue| {
        let mut tenants = catalogue.tenants.iter_mut();
        if let Some(tenant) = tenants.find(|tenant| tenant.path == path) {
            tenant.descr = descr;
        }
        Ok(())
    })?;
    tenant(world, segments)
}

pub(super) fn delete_tenant(world: &mut World, segments: &[&str]) -> Result<Answer, ApiError> {
    let answer = tenant(world, segments)?;
    let path = find_tenant(world, segments)?.path.clone();
    let catalogue = &world.catalogue;
    let has = |tenant: &str| is_within(tenant, &path);
    let below = catalogue
        .tenants
        .iter()
        .any(|t| t.path != path && has(&t.path));
    if path == ROOT
        || below
        || world.instances.values().any(|i| has(&i.tenant))
        || catalogue.initiators.iter().any(|i| has(&i.tenant))
        || catalogue.templates.iter().any(|t| has(&t.tenant))
    {
        return Err(ApiError::invalid(format!("Tenant {path} is not empty")));
    }
    world.change_catalogue(|catalogue| {
        catalogue.tenants.retain(|tenant| tenant.path != path);
        Ok(answer)
    })
}

//! App templates, placement and media policies.

use serde_json::{Value, json};

use super::super::answer::{Answer, ApiError};
use super::super::body::{
    ChangedTemplate, NewMediaPolicy, NewPlacementPolicy, NewStorageTemplate, NewTemplate,
};
use super::super::call::Call;
use super::super::check::Problems;
use super::super::model::{
    AppInstance, AppTemplate, Link, MediaPolicy, Owned, PlacementPolicy, StorageTemplate,
};
use super::super::view;
use super::super::world::World;
use super::build::Builder;
use super::catalogue::{free, one, seen};
use super::counts_all;

fn policies(world: &World, call: &Call) -> bool {
    call.is_v22() && world.is_33()
}

fn show(world: &World, call: &Call, template: &AppTemplate) -> Value {
    let instances: Vec<&AppInstance> = world.instances.values().collect();
    view::template(template, &instances, policies(world, call))
}

pub(super) fn list(world: &World, call: &Call) -> Result<Answer, ApiError> {
    let rows = seen(&world.catalogue.templates, call).map(|template| show(world, call, template));
    call.rows(rows.collect(), counts_all(world))
}

fn find<'a>(world: &'a World, call: &Call, name: &str) -> Result<&'a AppTemplate, ApiError> {
    one(&world.catalogue.templates, call, "App template", name)
}

pub(super) fn get(world: &World, call: &Call, name: &str) -> Result<Answer, ApiError> {
    let template = find(world, call, name)?;
    let path = format!("/app_templates/{name}");
    Ok(Answer::entity(
        path,
        &template.tenant,
        show(world, call, template),
    ))
}

fn storage_templates(
    builder: &mut Builder<'_>,
    bodies: Vec<NewStorageTemplate>,
) -> Result<Vec<StorageTemplate>, ApiError> {
    let mut made: Vec<StorageTemplate> = Vec::new();
    for (index, body) in bodies.into_iter().enumerate() {
        let at = format!("storage_templates[{index}].");
        let twice = made.iter().any(|st| st.name == body.name);
        builder.problems.check(!twice, || {
            format!("{at}name: {:?} is there twice", body.name)
        });
        made.push(builder.storage_template(body, &at)?);
    }
    Ok(made)
}

pub(super) fn create(world: &mut World, call: &Call) -> Result<Answer, ApiError> {
    let body: NewTemplate = call.body()?;
    let tenant = call.scope.owner().to_owned();
    let mut builder = Builder::new(world, &tenant, call.is_v22());
    builder.problems.name("name", &body.name);
    let descr = body.descr.unwrap_or_default();
    builder.problems.descr("descr", &descr);
    free(&world.catalogue.templates, call, "App template", &body.name)?;
    let mut made = match &body.copy_from {
        Some(source) => builder.template(&source.path)?.clone(),
        None => AppTemplate {
            tenant: String::new(),
            name: String::new(),
            descr: String::new(),
            snapshot_policies: Vec::new(),
            storage_templates: Vec::new(),
        },
    };
    if let Some(policies) = body.snapshot_policies {
        builder
            .problems
            .snapshot_policies("snapshot_policies", &policies);
        made.snapshot_policies = policies;
    }
    if let Some(bodies) = body.storage_templates {
        made.storage_templates = storage_templates(&mut builder, bodies)?;
    }
    builder.finish()?;
    made.tenant.clone_from(&tenant);
    made.name.clone_from(&body.name);
    made.descr = descr;
    world.change_catalogue(|catalogue| {
        catalogue.templates.push(made);
        Ok(())
    })?;
    get(world, call, &body.name)
}

pub(super) fn update(world: &mut World, call: &Call, name: &str) -> Result<Answer, ApiError> {
    let body: ChangedTemplate = call.body()?;
    let template = find(world, call, name)?;
    let link = Link::to(template);
    let mut changed = template.clone();
    let tenant = changed.tenant.clone();
    let mut builder = Builder::new(world, &tenant, call.is_v22());
    builder
        .problems
        .check(body.name.is_none_or(|new| new == name), || {
            "name: a template keeps its name".to_owned()
        });
    if let Some(descr) = body.descr {
        builder.problems.descr("descr", &descr);
        changed.descr = descr;
    }
    if let Some(policies) = body.snapshot_policies {
        builder
            .problems
            .snapshot_policies("snapshot_policies", &policies);
        changed.snapshot_policies = policies;
    }
    if let Some(bodies) = body.storage_templates {
        changed.storage_templates = storage_templates(&mut builder, bodies)?;
    }
    builder.finish()?;
    replace(world, &link, changed)?;
    get(world, call, name)
}

fn replace(world: &mut World, link: &Link, changed: AppTemplate) -> Result<(), ApiError> {
    world.change_catalogue(|catalogue| {
        let mut templates = catalogue.templates.iter_mut();
        if let Some(template) = templates.find(|template| link.is(*template)) {
            *template = changed;
        }
        Ok(())
    })
}

pub(super) fn delete(world: &mut World, call: &Call, name: &str) -> Result<Answer, ApiError> {
    let answer = get(world, call, name)?;
    let link = Link::to(find(world, call, name)?);
    let mut instances = world.instances.values();
    if instances.any(|instance| instance.template.as_ref() == Some(&link)) {
        return Err(ApiError::invalid(format!(
            "App template {name} has app instances; delete them first"
        )));
    }
    world.change_catalogue(|catalogue| {
        catalogue.templates.retain(|template| !link.is(template));
        Ok(answer)
    })
}

/// What is below a template: storage templates, volume templates and their parts.
pub(super) fn part(
    world: &World,
    call: &Call,
    name: &str,
    rest: &[&str],
) -> Result<Answer, ApiError> {
    let template = find(world, call, name)?;
    let mut at = show(world, call, template);
    for segment in rest {
        let next = match &at {
            Value::Array(items) => items.iter().find(|item| item["name"] == **segment),
            object => object.get(*segment),
        };
        at = next
            .cloned()
            .ok_or_else(|| ApiError::not_found("App template part", &call.path))?;
    }
    match at {
        Value::Array(rows) => call.rows(rows, counts_all(world)),
        data => Ok(Answer::entity(&call.path, &template.tenant, data)),
    }
}

/// A new storage template in a template that is there.
pub(super) fn add_storage(world: &mut World, call: &Call, name: &str) -> Result<Answer, ApiError> {
    let body: NewStorageTemplate = call.body()?;
    let template = find(world, call, name)?;
    let link = Link::to(template);
    let mut changed = template.clone();
    if changed
        .storage_templates
        .iter()
        .any(|st| st.name == body.name)
    {
        return Err(ApiError::conflict("Storage template", &body.name));
    }
    let tenant = changed.tenant.clone();
    let mut builder = Builder::new(world, &tenant, call.is_v22());
    let made = builder.storage_template(body, "")?;
    builder.finish()?;
    let st = made.name.clone();
    changed.storage_templates.push(made);
    replace(world, &link, changed)?;
    let found = find(world, call, name)?;
    let data = show(world, call, found);
    let rows = data["storage_templates"].as_array();
    let row = rows.and_then(|rows| rows.iter().find(|row| row["name"] == *st));
    let path = format!("/app_templates/{name}/storage_templates/{st}");
    Ok(Answer::entity(
        path,
        &tenant,
        row.cloned().unwrap_or_default(),
    ))
}

fn show_placement(policy: &PlacementPolicy) -> Value {
    json!({
        "tenant": policy.tenant, "path": format!("/placement_policies/{}", policy.name),
        "name": policy.name, "descr": policy.descr, "max": policy.max, "min": policy.min,
    })
}

fn show_media(policy: &MediaPolicy) -> Value {
    json!({
        "tenant": policy.tenant, "path": format!("/media_policies/{}", policy.name),
        "name": policy.name, "priority": policy.priority,
    })
}

fn entity<T: Owned>(item: &T, data: Value) -> Answer {
    let path = data["path"].as_str().unwrap_or_default().to_owned();
    Answer::entity(path, item.tenant(), data)
}

pub(super) fn placements(world: &World, call: &Call) -> Result<Answer, ApiError> {
    let items = seen(&world.catalogue.placement_policies, call);
    call.rows(items.map(show_placement).collect(), counts_all(world))
}

pub(super) fn placement(world: &World, call: &Call, name: &str) -> Result<Answer, ApiError> {
    let items = &world.catalogue.placement_policies;
    let found = one(items, call, "Placement policy", name)?;
    Ok(entity(found, show_placement(found)))
}

pub(super) fn create_placement(world: &mut World, call: &Call) -> Result<Answer, ApiError> {
    let body: NewPlacementPolicy = call.body()?;
    let mut problems = Problems::default();
    problems.name("name", &body.name);
    problems.into_result()?;
    let items = &world.catalogue.placement_policies;
    free(items, call, "Placement policy", &body.name)?;
    let media = |list: &[super::super::body::LooseReference]| {
        list.iter()
            .map(|reference| {
                let path = reference.path();
                let key = path.strip_prefix("/media_policies/").unwrap_or(path);
                one(&world.catalogue.media_policies, call, "Media policy", key)?;
                Ok(path.to_owned())
            })
            .collect::<Result<Vec<_>, ApiError>>()
    };
    let made = PlacementPolicy {
        tenant: call.scope.owner().to_owned(),
        descr: body.descr.unwrap_or_default(),
        max: media(&body.max)?,
        min: media(&body.min)?,
        name: body.name,
    };
    let answer = entity(&made, show_placement(&made));
    world.change_catalogue(|catalogue| {
        catalogue.placement_policies.push(made);
        Ok(answer)
    })
}

pub(super) fn delete_placement(
    world: &mut World,
    call: &Call,
    name: &str,
) -> Result<Answer, ApiError> {
    let answer = placement(world, call, name)?;
    let items = &world.catalogue.placement_policies;
    let link = Link::to(one(items, call, "Placement policy", name)?);
    let mut volumes = world
        .instances
        .values()
        .flat_map(|instance| &instance.storage_instances)
        .flat_map(|si| &si.volumes);
    if volumes.any(|volume| volume.placement.policy.as_ref() == Some(&link)) || name == "default" {
        return Err(ApiError::invalid(format!(
            "Placement policy {name} is in use"
        )));
    }
    world.change_catalogue(|catalogue| {
        catalogue.placement_policies.retain(|p| !link.is(p));
        Ok(answer)
    })
}

pub(super) fn media_policies(world: &World, call: &Call) -> Result<Answer, ApiError> {
    let items = seen(&world.catalogue.media_policies, call);
    call.rows(items.map(show_media).collect(), counts_all(world))
}

pub(super) fn media_policy(world: &World, call: &Call, name: &str) -> Result<Answer, ApiError> {
    let items = &world.catalogue.media_policies;
    let found = one(items, call, "Media policy", name)?;
    Ok(entity(found, show_media(found)))
}

pub(super) fn create_media(world: &mut World, call: &Call) -> Result<Answer, ApiError> {
    let body: NewMediaPolicy = call.body()?;
    let mut problems = Problems::default();
    problems.name("name", &body.name);
    problems.descr("descr", body.descr.as_deref().unwrap_or_default());
    problems.into_result()?;
    free(
        &world.catalogue.media_policies,
        call,
        "Media policy",
        &body.name,
    )?;
    let made = MediaPolicy {
        tenant: call.scope.owner().to_owned(),
        name: body.name,
        priority: body.priority,
    };
    let answer = entity(&made, show_media(&made));
    world.change_catalogue(|catalogue| {
        catalogue.media_policies.push(made);
        Ok(answer)
    })
}

//! Which request does what.

mod build;
mod catalogue;
mod instances;
mod observe;
mod storage;
mod system;
mod templates;
mod volumes;

pub(super) use build::DEFAULT_POOL;
pub(super) use observe::note;

use super::answer::{Answer, ApiError, Verb};
use super::call::{Call, Scope};
use super::describe;
use super::telemetry::EventKind;
use super::world::World;
use volumes::At;

/// Below 3.3.0.0 the total of a list forgets the filter.
fn counts_all(world: &World) -> bool {
    !world.is_33()
}

/// Carries out one request of a user who is logged in.
pub(super) async fn handle(world: &mut World, call: &Call) -> Result<Answer, ApiError> {
    use Verb::{Create, Delete, Read, Update};
    check_tenant(world, call)?;
    let segments: Vec<&str> = call.segments.iter().map(String::as_str).collect();
    match (call.verb, segments.as_slice()) {
        (Read, ["api"]) => Ok(Answer::Bare(describe::api(call.version, world.is_33()))),
        (Read, ["system"]) => Ok(system::system(world)),
        (Update, ["system"]) => Ok(system::system(world)),
        (Read, ["storage_nodes"]) => system::nodes(world, call),
        (Read, ["storage_nodes", uuid]) => system::one_node(world, uuid),
        (Read, ["metrics", kind, metric]) => observe::metrics(world, call, kind, metric, false),
        (Read, ["metrics", kind, metric, "latest"]) => {
            observe::metrics(world, call, kind, metric, true)
        }
        (Read, ["events", "user"]) => observe::events(world, call, EventKind::User),
        (Read, ["events", "system"]) => observe::events(world, call, EventKind::System),
        (
            Read,
            ["events", "debug"]
            | ["alerts"]
            | ["monitoring", "alerts"]
            | ["event_logs" | "fault_logs" | "audit_logs"]
            | ["remote_providers"]
            | ["initiator_groups", _, "app_instances"]
            | ["users" | "roles"],
        ) => system::nothing(world, call),
        (Read, ["events", uuid]) => observe::event(world, call, uuid),
        (Update, ["logs_upload"]) => Ok(Answer::entity("/logs_upload", "", serde_json::json!({}))),

        (verb, ["app_instances", rest @ ..]) => app_instances(world, call, verb, rest).await,
        (Read, ["app_instance_int_ecosystem_data"]) if world.is_33() => {
            instances::all_metadata(world, call)
        }

        (Read, ["initiators"]) => catalogue::initiators(world, call),
        (Create, ["initiators"]) => catalogue::create_initiator(world, call),
        (Read, ["initiators", id]) => catalogue::initiator(world, call, id),
        (Update, ["initiators", id]) => catalogue::rename_initiator(world, call, id),
        (Delete, ["initiators", id]) => catalogue::delete_initiator(world, call, id),

        (Read, ["initiator_groups"]) => catalogue::groups(world, call),
        (Create, ["initiator_groups"]) => catalogue::create_group(world, call),
        (Read, ["initiator_groups", name]) => catalogue::group(world, call, name),
        (Update, ["initiator_groups", name]) => catalogue::change_group(world, call, name).await,
        (Delete, ["initiator_groups", name]) => catalogue::delete_group(world, call, name),
        (Read, ["initiator_groups", name, "members"]) => {
            catalogue::group_members(world, call, name)
        }
        (Update, ["initiator_groups", name, "members"]) => {
            catalogue::change_members(world, call, name).await
        }

        (Read, ["access_network_ip_pools"]) => catalogue::pools(world, call),
        (Create, ["access_network_ip_pools"]) => catalogue::create_pool(world, call),
        (Read, ["access_network_ip_pools", name]) => catalogue::pool(world, call, name),
        (Delete, ["access_network_ip_pools", name]) => catalogue::delete_pool(world, call, name),
        (Read, ["access_network_ip_pools", name, "network_paths"]) => {
            catalogue::network_paths(world, call, name)
        }

        (Read, ["tenants"]) => catalogue::tenants(world, call),
        (Create, ["tenants"]) => catalogue::create_tenant(world, call),
        (Read, ["tenants", path @ ..]) => catalogue::tenant(world, path),
        (Update, ["tenants", path @ ..]) => catalogue::change_tenant(world, call, path),
        (Delete, ["tenants", path @ ..]) => catalogue::delete_tenant(world, path),

        (Read, ["app_templates"]) => templates::list(world, call),
        (Create, ["app_templates"]) => templates::create(world, call),
        (Read, ["app_templates", name]) => templates::get(world, call, name),
        (Update, ["app_templates", name]) => templates::update(world, call, name),
        (Delete, ["app_templates", name]) => templates::delete(world, call, name),
        (Create, ["app_templates", name, "storage_templates"]) => {
            templates::add_storage(world, call, name)
        }
        (Read, ["app_templates", name, rest @ ..]) => templates::part(world, call, name, rest),

        (verb, ["placement_policies" | "media_policies", ..]) if call.is_v22() && world.is_33() => {
            policies(world, call, verb, &segments)
        }
        _ => Err(no_route(world, call)),
    }
}

/// The path may be right and the verb wrong.
fn no_route(world: &World, call: &Call) -> ApiError {
    if describe::is_route(&call.segments, call.version, world.is_33()) {
        ApiError::wrong_verb(call.verb, &call.path)
    } else {
        ApiError::no_route(&call.path)
    }
}

fn check_tenant(world: &World, call: &Call) -> Result<(), ApiError> {
    let Scope::Tenant(tenant) = &call.scope else {
        return match call.verb {
            Verb::Read => Ok(()),
            _ => Err(ApiError::invalid("The tenant all is for reading only")),
        };
    };
    let first = call.segments.first().map(String::as_str);
    let of_no_tenant = matches!(first, Some("api" | "system" | "tenants" | "logs_upload"));
    if of_no_tenant || world.catalogue.tenants.iter().any(|t| t.path == *tenant) {
        return Ok(());
    }
    Err(ApiError::not_found("Tenant", tenant))
}

async fn app_instances(
    world: &mut World,
    call: &Call,
    verb: Verb,
    rest: &[&str],
) -> Result<Answer, ApiError> {
    use Verb::{Create, Delete, Read, Update};
    match (verb, rest) {
        (Read, []) => instances::list(world, call).await,
        (Create, []) => instances::create(world, call).await,
        (Read, [id]) => instances::get(world, call, id).await,
        (Update, [id]) => instances::update(world, call, id).await,
        (Delete, [id]) => instances::delete(world, call, id).await,
        (Read, [id, "metadata"]) => instances::metadata(world, call, id, None),
        (Update, [id, "metadata"]) => instances::set_metadata(world, call, id, None, false).await,
        (Read, [id, "int_ecosystem_data"]) if world.is_33() => {
            instances::metadata(world, call, id, None)
        }
        (Update, [id, "int_ecosystem_data"]) if world.is_33() => {
            instances::set_metadata(world, call, id, None, true).await
        }
        (Read, [id, "snapshots"]) => volumes::list_whole(world, call, id).await,
        (Create, [id, "snapshots"]) => volumes::create_whole(world, call, id).await,
        (Read, [id, "snapshots", ts]) => volumes::get_whole(world, call, id, ts).await,
        (Delete, [id, "snapshots", ts]) => volumes::delete_whole(world, call, id, ts).await,

        (Read, [id, "storage_instances"]) => storage::list(world, call, id).await,
        (Create, [id, "storage_instances"]) => storage::create(world, call, id).await,
        (Read, [id, "storage_instances", si]) => storage::get(world, call, id, si).await,
        (Update, [id, "storage_instances", si]) => storage::update(world, call, id, si).await,
        (Delete, [id, "storage_instances", si]) => storage::delete(world, call, id, si).await,
        (Read, [id, "storage_instances", si, "metadata"]) => {
            instances::metadata(world, call, id, Some(si))
        }
        (Update, [id, "storage_instances", si, "metadata"]) => {
            instances::set_metadata(world, call, id, Some(si), false).await
        }
        (
            Read,
            [
                id,
                "storage_instances",
                si,
                part @ ("acl_policy" | "auth" | "access"),
            ],
        ) => storage::part(world, call, id, si, part).await,
        (Update, [id, "storage_instances", si, "acl_policy"]) => {
            storage::set_acl(world, call, id, si).await
        }
        (Update, [id, "storage_instances", si, "auth"]) => {
            storage::set_auth(world, call, id, si).await
        }
        (
            Read,
            [
                id,
                "storage_instances",
                si,
                "acl_policy",
                list @ ("initiators" | "initiator_groups"),
            ],
        ) => storage::acl_list(world, call, id, si, *list == "initiator_groups"),
        (
            Update,
            [
                id,
                "storage_instances",
                si,
                "acl_policy",
                list @ ("initiators" | "initiator_groups"),
            ],
        ) => {
            let groups = *list == "initiator_groups";
            storage::change_acl_list(world, call, id, si, groups).await
        }
        (Read, [id, "storage_instances", si, "volumes"]) => {
            volumes::list(world, call, id, si).await
        }
        (Create, [id, "storage_instances", si, "volumes"]) => {
            volumes::create(world, call, id, si).await
        }
        (_, [id, "storage_instances", si, "volumes", volume, below @ ..]) => {
            let at = At {
                instance: id,
                si,
                volume,
            };
            volume_routes(world, call, at, below).await
        }
        _ => Err(no_route(world, call)),
    }
}

async fn volume_routes(
    world: &mut World,
    call: &Call,
    at: At<'_>,
    below: &[&str],
) -> Result<Answer, ApiError> {
    use Verb::{Create, Delete, Read, Update};
    match (call.verb, below) {
        (Read, []) => volumes::get(world, call, at).await,
        (Update, []) => volumes::update(world, call, at).await,
        (Delete, []) => volumes::delete(world, call, at).await,
        (Read, ["performance_policy"]) => volumes::performance(world, call, at),
        (Create, ["performance_policy"]) => volumes::set_performance(world, call, at, true).await,
        (Update, ["performance_policy"]) => volumes::set_performance(world, call, at, false).await,
        (Delete, ["performance_policy"]) => volumes::delete_performance(world, call, at).await,
        (Read, ["snapshots"]) => volumes::list_snapshots(world, call, at).await,
        (Create, ["snapshots"]) => volumes::create_snapshot(world, call, at).await,
        (Read, ["snapshots", ts]) => volumes::get_snapshot(world, call, at, ts).await,
        (Delete, ["snapshots", ts]) => volumes::delete_snapshot(world, call, at, ts).await,
        _ => Err(no_route(world, call)),
    }
}

fn policies(
    world: &mut World,
    call: &Call,
    verb: Verb,
    segments: &[&str],
) -> Result<Answer, ApiError> {
    use Verb::{Create, Delete, Read};
    match (verb, segments) {
        (Read, ["placement_policies"]) => templates::placements(world, call),
        (Create, ["placement_policies"]) => templates::create_placement(world, call),
        (Read, ["placement_policies", name]) => templates::placement(world, call, name),
        (Delete, ["placement_policies", name]) => templates::delete_placement(world, call, name),
        (Read, ["media_policies"]) => templates::media_policies(world, call),
        (Create, ["media_policies"]) => templates::create_media(world, call),
        (Read, ["media_policies", name]) => templates::media_policy(world, call, name),
        _ => Err(no_route(world, call)),
    }
}

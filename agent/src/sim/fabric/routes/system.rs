//! The system itself: health, capacity, nodes, metrics, events.

use serde_json::{Value, json};

use super::super::answer::{Answer, ApiError};
use super::super::call::{Call, ROOT};
use super::super::describe;
use super::super::model::GIB;
use super::super::world::World;
use super::counts_all;

/// Bytes that the fabric says it has: far more than the machine below it.
const CAPACITY_BYTES: u64 = 100 * 1024 * GIB;

/// `/system`.
pub(super) fn system(world: &World) -> Answer {
    let volumes = || {
        let instances = world.instances.values();
        instances
            .flat_map(|instance| &instance.storage_instances)
            .flat_map(|si| &si.volumes)
    };
    let provisioned: u64 = volumes().map(|volume| volume.size_gib * GIB).sum();
    let used: u64 = volumes()
        .map(|volume| world.data.used_bytes(&volume.data))
        .sum();
    let available = CAPACITY_BYTES.saturating_sub(used);
    let uptime = world.facts.started.elapsed().as_millis();
    let mut data = json!({
        "path": "/system", "name": world.catalogue.name, "uuid": world.catalogue.uuid,
        "sw_version": world.facts.sw_version.to_string(),
        "build_version": world.facts.sw_version.to_string(),
        "health": "ok", "op_state": "running", "causes": [],
        "total_capacity": CAPACITY_BYTES, "available_capacity": available,
        "total_provisioned_capacity": provisioned,
        "compression_enabled": false, "compression_ratio": "1.0", "l3_enabled": false,
        "callhome_enabled": false, "timezone": "UTC",
        "uptime": u64::try_from(uptime).unwrap_or(u64::MAX),
    });
    // Half of it is flash, half is mixed.
    for kind in ["hybrid", "all_flash"] {
        let members = json!({
            format!("{kind}_total_capacity"): CAPACITY_BYTES / 2,
            format!("{kind}_available_capacity"): available / 2,
            format!("{kind}_provisioned_capacity"): provisioned / 2,
        });
        super::super::view::extend(&mut data, members);
    }
    Answer::entity("/system", ROOT, data)
}

fn node(uuid: &str) -> Value {
    json!({
        "path": format!("/storage_nodes/{uuid}"), "uuid": uuid, "name": format!("node-{}", &uuid[..8.min(uuid.len())]),
        "health": "ok", "admin_state": "online", "op_state": "online",
    })
}

pub(super) fn nodes(world: &World, call: &Call) -> Result<Answer, ApiError> {
    let rows = world.catalogue.nodes.iter().map(|uuid| node(uuid));
    call.rows(rows.collect(), counts_all(world))
}

pub(super) fn one_node(world: &World, uuid: &str) -> Result<Answer, ApiError> {
    if !world.catalogue.nodes.iter().any(|node| node == uuid) {
        return Err(ApiError::not_found("Storage node", uuid));
    }
    Ok(Answer::entity(
        format!("/storage_nodes/{uuid}"),
        ROOT,
        node(uuid),
    ))
}

/// `/metrics/...`: the metrics are known, nothing is measured.
pub(super) fn metrics(
    world: &World,
    call: &Call,
    kind: &str,
    metric: &str,
) -> Result<Answer, ApiError> {
    let known = match kind {
        "io" => &describe::IO_METRICS[..],
        "hw" => &describe::HW_METRICS[..],
        _ => &[],
    };
    if !known.contains(&metric) {
        return Err(ApiError::not_found("Metric", metric));
    }
    call.rows(Vec::new(), counts_all(world))
}

/// A collection that is always empty.
pub(super) fn nothing(world: &World, call: &Call) -> Result<Answer, ApiError> {
    call.rows(Vec::new(), counts_all(world))
}

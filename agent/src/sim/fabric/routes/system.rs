//! The system itself: health, capacity, nodes.

use serde_json::{Value, json};

use super::super::answer::{Answer, ApiError};
use super::super::call::{Call, ROOT};
use super::super::model::GIB;
use super::super::world::World;
use super::counts_all;

/// Bytes of one kind of storage.
#[derive(Debug, Clone, Copy, Default)]
struct Space {
    /// What the volumes are large, together.
    provisioned: u64,
    /// What they and their snapshots take.
    used: u64,
}

/// `/system`.
pub(super) fn system(world: &World) -> Answer {
    let mut spaces = [Space::default(); 2];
    for instance in world.instances.values() {
        let volumes = instance.storage_instances.iter().flat_map(|si| &si.volumes);
        for volume in volumes {
            let space = &mut spaces[usize::from(volume.placement.mode == "all_flash")];
            space.provisioned += volume.size_gib * GIB;
            space.used += world.data.used_bytes(&volume.data);
            for snapshot in &volume.snapshots {
                space.used += world.data.used_bytes(&snapshot.data);
            }
        }
        // Those of a whole instance may be of both kinds; they count as the first.
        for part in instance
            .snapshots
            .iter()
            .flat_map(|snapshot| &snapshot.parts)
        {
            spaces[0].used += world.data.used_bytes(&part.data);
        }
    }
    let [hybrid, flash] = spaces;
    let capacity = world.facts.capacity_bytes;
    let available = capacity.saturating_sub(hybrid.used + flash.used);
    let provisioned = hybrid.provisioned + flash.provisioned;
    let uptime = world.facts.started.elapsed().as_millis();
    let mut data = json!({
        "path": "/system", "name": world.catalogue.name, "uuid": world.catalogue.uuid,
        "sw_version": world.facts.sw_version.to_string(),
        "build_version": world.facts.sw_version.to_string(),
        "health": "ok", "op_state": "running", "causes": [],
        "total_capacity": capacity, "available_capacity": available,
        "total_provisioned_capacity": provisioned,
        "compression_enabled": false, "compression_ratio": "1.0", "l3_enabled": false,
        "callhome_enabled": false, "timezone": "UTC",
        "uptime": u64::try_from(uptime).unwrap_or(u64::MAX),
    });
    // Half of it is flash, half is mixed.
    for (kind, space) in [("hybrid", hybrid), ("all_flash", flash)] {
        let members = json!({
            format!("{kind}_total_capacity"): capacity / 2,
            format!("{kind}_available_capacity"): (capacity / 2).saturating_sub(space.used),
            format!("{kind}_provisioned_capacity"): space.provisioned,
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

/// A collection that is always empty.
pub(super) fn nothing(world: &World, call: &Call) -> Result<Answer, ApiError> {
    call.rows(Vec::new(), counts_all(world))
}

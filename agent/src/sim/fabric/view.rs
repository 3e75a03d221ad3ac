//! JSON of the provisioning objects, member by member.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::model::{AdminState, Owned};
use super::model::{
    AppInstance, AppTemplate, Auth, AuthKind, GIB, Initiator, InitiatorGroup, InstanceSnapshot,
    Link, Performance, Placement, StorageInstance, StorageTemplate, Volume, VolumeSnapshot,
    VolumeTemplate,
};
use super::world::World;

/// The uuid of what nobody gave one.
pub(super) const NO_UUID: &str = "00000000-0000-0000-0000-000000000000";
/// What a password reads back as.
const HIDDEN: &str = "(hidden)";

/// What the answers need to know besides the object.
pub(super) struct View<'a> {
    pub(super) world: &'a World,
    /// v2.2 or later.
    pub(super) v22: bool,
    /// Initiators that are logged in, by target name.
    pub(super) sessions: HashMap<String, Vec<String>>,
}

impl View<'_> {
    /// What filters and sort look at: no embedded objects.
    pub(super) fn instance_brief(instance: &AppInstance) -> Value {
        json!({
            "tenant": instance.tenant, "path": instance.path(), "name": instance.name,
            "id": instance.id, "health": "ok", "descr": instance.descr,
            "admin_state": instance.admin_state, "create_mode": instance.create_mode,
            "uuid": instance.uuid, "access_control_mode": instance.access_control_mode,
            "deployment_state": "deployed",
        })
    }

    pub(super) fn instance(&self, instance: &AppInstance) -> Value {
        let mut data = Self::instance_brief(instance);
        let path = instance.path();
        let rest = json!({
            "app_template": resolved(instance.template.as_ref(), "/app_templates"),
            "storage_instances": instance.storage_instances.iter()
                .map(|si| self.storage_instance(instance, si)).collect::<Vec<_>>(),
            "snapshots": instance.snapshots.iter()
                .map(|snapshot| self.instance_snapshot(&path, snapshot)).collect::<Vec<_>>(),
            "snapshot_policies": snapshot_policies(&path, &instance.snapshot_policies),
            "causes": [],
        });
        extend(&mut data, rest);
        if let Some(source) = &instance.clone_src {
            extend(&mut data, json!({ "clone_src": { "path": source } }));
        }
        if let Some(point) = &instance.restore_point {
            extend(&mut data, json!({ "restore_point": point }));
        }
        if self.v22
            && let Some(priority) = &instance.repair_priority
        {
            extend(&mut data, json!({ "repair_priority": priority }));
        }
        data
    }

    pub(super) fn storage_instance(&self, instance: &AppInstance, si: &StorageInstance) -> Value {
        let path = si_path(instance, si);
        let online =
            instance.admin_state == AdminState::Online && si.admin_state == AdminState::Online;
        let op_state = if online && self.world.is_ready(&si.uuid) {
            "available"
        } else {
            "unavailable"
        };
        let active = self
            .sessions
            .get(&si.iqn)
            .map_or(&[][..], |names| names.as_slice());
        json!({
            "health": "ok", "path": path, "name": si.name, "admin_state": si.admin_state,
            "op_state": op_state,
            "volumes": si.volumes.iter()
                .map(|volume| self.volume(&path, volume)).collect::<Vec<_>>(),
            "access_control_mode": si.access_control_mode,
            "acl_policy": acl_policy(instance, si),
            "ip_pool": resolved(Some(&si.ip_pool), "/access_network_ip_pools"),
            "access": self.access(instance, si),
            "auth": auth(&path, &si.auth),
            "active_initiators": active,
            "active_storage_nodes": [self.node_path()],
            "uuid": si.uuid, "deployment_state": "deployed", "causes": [],
        })
    }

    /// Where the target is.
    pub(super) fn access(&self, instance: &AppInstance, si: &StorageInstance) -> Value {
        let path = format!("{}/access", si_path(instance, si));
        json!({ "path": path, "ips": self.world.facts.ips, "iqn": si.iqn })
    }

    /// A volume of the storage instance at `parent`.
    pub(super) fn volume(&self, parent: &str, volume: &Volume) -> Value {
        let path = format!("{parent}/volumes/{}", volume.name);
        let used = self.world.data.used_bytes(&volume.data);
        let mut data = json!({
            "path": path, "name": volume.name, "replica_count": volume.replica_count,
            "uuid": volume.uuid, "size": volume.size_gib, "capacity_in_use": used.div_ceil(GIB),
            "snapshot_policies": snapshot_policies(&path, &volume.snapshot_policies),
            "snapshots": volume.snapshots.iter()
                .map(|snapshot| self.snapshot(&path, snapshot)).collect::<Vec<_>>(),
            "placement_mode": volume.placement.mode, "op_state": "available", "op_status": "none",
            "active_storage_nodes": [self.node_path()], "health": "ok",
            "deployment_state": "deployed", "causes": [],
        });
        if let Some(limits) = &volume.performance {
            extend(
                &mut data,
                json!({ "performance_policy": performance(&path, limits) }),
            );
        }
        if let Some(point) = &volume.restore_point {
            extend(&mut data, json!({ "restore_point": point }));
        }
        if self.v22 {
            extend(
                &mut data,
                json!({
                    "effective_size": used, "exclusive_size": used, "physical_size": used,
                    "logical_size": volume.size_gib * GIB,
                }),
            );
        }
        if self.v22
            && self.world.is_33()
            && let Some(policy) = &volume.placement.policy
        {
            let policy = resolved(Some(policy), "/placement_policies");
            extend(&mut data, json!({ "placement_policy": policy }));
        }
        data
    }

    /// A snapshot of the volume at `parent`.
    pub(super) fn snapshot(&self, parent: &str, snapshot: &VolumeSnapshot) -> Value {
        let used = || self.world.data.used_bytes(&snapshot.data);
        self.any_snapshot(
            parent,
            &snapshot.utc_ts,
            &snapshot.uuid,
            snapshot.size_gib,
            &used,
        )
    }

    /// A snapshot of the app instance at `parent`.
    pub(super) fn instance_snapshot(&self, parent: &str, snapshot: &InstanceSnapshot) -> Value {
        let used = || {
            let parts = snapshot.parts.iter();
            parts
                .map(|part| self.world.data.used_bytes(&part.data))
                .sum()
        };
        let size = snapshot.parts.iter().map(|part| part.size_gib).sum();
        self.any_snapshot(parent, &snapshot.utc_ts, &snapshot.uuid, size, &used)
    }

    fn any_snapshot(
        &self,
        parent: &str,
        utc_ts: &str,
        uuid: &str,
        size_gib: u64,
        used: &dyn Fn() -> u64,
    ) -> Value {
        let op_state = if self.world.is_ready(uuid) {
            "available"
        } else {
            "creating"
        };
        let mut data = json!({
            "path": format!("{parent}/snapshots/{utc_ts}"), "timestamp": utc_ts, "utc_ts": utc_ts,
            "uuid": uuid, "op_state": op_state,
        });
        if self.v22 {
            let used = used();
            extend(
                &mut data,
                json!({
                    "physical_size": used, "exclusive_size": used, "effective_size": used,
                    "logical_size": size_gib * GIB,
                }),
            );
        }
        data
    }

    fn node_path(&self) -> Value {
        json!({ "path": format!("/storage_nodes/{}", self.world.node()) })
    }
}

/// Path of a storage instance.
pub(super) fn si_path(instance: &AppInstance, si: &StorageInstance) -> String {
    format!("{}/storage_instances/{}", instance.path(), si.name)
}

/// A reference that tells what it leads to; all members are empty when there is none.
fn resolved(link: Option<&Link>, collection: &str) -> Value {
    let (path, tenant) = link.map_or_else(Default::default, |link| {
        (format!("{collection}/{}", link.key), link.tenant.clone())
    });
    json!({ "path": path, "resolved_path": path, "resolved_tenant": tenant })
}

/// The access list of a storage instance.
pub(super) fn acl_policy(instance: &AppInstance, si: &StorageInstance) -> Value {
    let list = |links: &[Link], collection: &str| -> Vec<Value> {
        let element = |link: &Link| {
            let mut element = json!({ "path": format!("{collection}/{}", link.key) });
            if link.tenant != instance.tenant {
                extend(&mut element, json!({ "tenant": link.tenant }));
            }
            element
        };
        links.iter().map(element).collect()
    };
    json!({
        "path": format!("{}/acl_policy", si_path(instance, si)),
        "initiators": list(&si.initiators, "/initiators"),
        "initiator_groups": list(&si.initiator_groups, "/initiator_groups"),
    })
}

/// CHAP of the storage instance or template at `parent`.
pub(super) fn auth(parent: &str, auth: &Auth) -> Value {
    let kind = match auth.kind {
        AuthKind::None => "none",
        AuthKind::Chap => "chap",
        AuthKind::Mchap => "mchap",
    };
    json!({
        "path": format!("{parent}/auth"), "type": kind,
        "initiator_user_name": auth.initiator_user_name, "initiator_pswd": HIDDEN,
        "target_user_name": auth.target_user_name, "target_pswd": HIDDEN,
    })
}

/// Limits of the volume or template at `parent`.
pub(super) fn performance(parent: &str, limits: &Performance) -> Value {
    let mut data = json!({ "path": format!("{parent}/performance_policy") });
    extend(&mut data, json!(limits));
    data
}

/// Snapshot policies of the object at `parent`.
pub(super) fn snapshot_policies(parent: &str, policies: &[super::model::SnapshotPolicy]) -> Value {
    let policy = |policy: &super::model::SnapshotPolicy| {
        let mut data = json!({ "path": format!("{parent}/snapshot_policies/{}", policy.name) });
        extend(&mut data, json!(policy));
        data
    };
    policies.iter().map(policy).collect()
}

/// An initiator.
pub(super) fn initiator(initiator: &Initiator) -> Value {
    json!({
        "tenant": initiator.tenant, "path": format!("/initiators/{}", initiator.id),
        "id": initiator.id, "name": initiator.name,
    })
}

/// A group of initiators.
pub(super) fn group(group: &InitiatorGroup) -> Value {
    let members = group.members.iter();
    let members: Vec<Value> = members
        .map(|link| json!({ "path": format!("/initiators/{}", link.key) }))
        .collect();
    json!({
        "tenant": group.tenant, "path": format!("/initiator_groups/{}", group.name),
        "name": group.name, "members": members,
    })
}

/// A template, with the instances made from it.
pub(super) fn template(
    template: &AppTemplate,
    instances: &[&AppInstance],
    policies: bool,
) -> Value {
    let path = format!("/app_templates/{}", template.name);
    let users = instances
        .iter()
        .filter(|instance| instance.template.as_ref().is_some_and(|l| l.is(template)));
    json!({
        "tenant": template.tenant(), "path": path, "name": template.name, "descr": template.descr,
        "snapshot_policies": snapshot_policies(&path, &template.snapshot_policies),
        "storage_templates": template.storage_templates.iter()
            .map(|st| storage_template(&path, st, policies)).collect::<Vec<_>>(),
        "app_instances": users.map(|instance| json!({ "path": instance.path() }))
            .collect::<Vec<_>>(),
    })
}

/// A storage template of the template at `parent`.
pub(super) fn storage_template(parent: &str, st: &StorageTemplate, policies: bool) -> Value {
    let path = format!("{parent}/storage_templates/{}", st.name);
    json!({
        "path": path, "name": st.name, "auth": auth(&path, &st.auth),
        "ip_pool": format!("/access_network_ip_pools/{}", st.ip_pool.key),
        "volume_templates": st.volume_templates.iter()
            .map(|vt| volume_template(&path, vt, policies)).collect::<Vec<_>>(),
    })
}

/// A volume template of the storage template at `parent`.
pub(super) fn volume_template(parent: &str, vt: &VolumeTemplate, policies: bool) -> Value {
    let path = format!("{parent}/volume_templates/{}", vt.name);
    let Placement { mode, policy } = &vt.placement;
    let mut data = json!({
        "path": path, "name": vt.name, "size": vt.size_gib, "replica_count": vt.replica_count,
        "placement_mode": mode,
        "snapshot_policies": snapshot_policies(&path, &vt.snapshot_policies),
    });
    if let Some(limits) = &vt.performance {
        extend(
            &mut data,
            json!({ "performance_policy": performance(&path, limits) }),
        );
    }
    if policies && let Some(policy) = policy {
        let policy = resolved(Some(policy), "/placement_policies");
        extend(&mut data, json!({ "placement_policy": policy }));
    }
    data
}

/// Puts the members of one object into another.
pub(super) fn extend(data: &mut Value, more: Value) {
    if let (Value::Object(data), Value::Object(more)) = (data, more) {
        data.extend::<Map<String, Value>>(more);
    }
}

//! The fabric's objects as ours.

use berth_api::types::{Qos, Snapshot, Template, TemplateVolume, Volume, VolumeState, VolumeUnit};
use berth_api::{Portal, TargetName, VolumeName};

use super::wire;

/// A volume whose portals listen on `port`; `None` when its name is none of ours (another API made it).
pub(super) fn volume(instance: &wire::Instance, port: u16) -> Option<Volume> {
    let units: Vec<VolumeUnit> = instance
        .storage_instances
        .iter()
        .flat_map(|storage| units(storage, port))
        .collect();
    Some(Volume {
        name: instance.name.parse().ok()?,
        id: instance.id.clone(),
        state: state(instance),
        health: instance.health.clone(),
        size_bytes: units.iter().map(|unit| unit.size_bytes).sum(),
        template: filled(wire::last_segment(&instance.app_template)),
        description: filled(&instance.descr),
        units,
    })
}

fn filled(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn state(instance: &wire::Instance) -> VolumeState {
    let is = |state: &Option<String>, word: &str| state.as_deref() == Some(word);
    let storages = &instance.storage_instances;
    if is(&instance.admin_state, "offline") {
        return VolumeState::Offline;
    }
    let failed =
        |op: &Option<String>, deployed: &Option<String>| is(op, "failed") || is(deployed, "failed");
    if is(&instance.deployment_state, "failed")
        || storages
            .iter()
            .any(|s| failed(&s.op_state, &s.deployment_state))
    {
        return VolumeState::Failed;
    }
    let ready = |storage: &wire::Storage| {
        is(&storage.op_state, "available")
            && !storage.access.ips.is_empty()
            && storage
                .access
                .iqn
                .as_ref()
                .is_some_and(|iqn| !iqn.is_empty())
            && !storage.volumes.is_empty()
            && storage.volumes.iter().all(|v| is(&v.op_state, "available"))
    };
    // `op_state` of an instance is there only while it is being cloned.
    if storages.is_empty() || !storages.iter().all(ready) || is(&instance.op_state, "cloning") {
        return VolumeState::Preparing;
    }
    VolumeState::Available
}

/// The units of a target: the n-th volume is LUN n.
fn units(storage: &wire::Storage, port: u16) -> Vec<VolumeUnit> {
    let target = storage
        .access
        .iqn
        .as_deref()
        .and_then(|iqn| iqn.parse::<TargetName>().ok());
    let portals: Vec<Portal> = (storage.access.ips.iter())
        .filter_map(|ip| Portal::new(ip, port).ok())
        .collect();
    let access: Vec<String> = admitted(&storage.acl_policy);
    let groups = wire::names_of(&storage.acl_policy.initiator_groups);
    let sessions: Vec<String> = sessions(storage);
    (0u16..)
        .zip(&storage.volumes)
        .map(|(lun, volume)| VolumeUnit {
            name: format!("{}/{}", storage.name, volume.name),
            serial: volume.uuid.clone(),
            size_bytes: volume.size,
            replicas: volume.replica_count,
            placement: placement(volume),
            qos: volume.performance_policy.as_ref().and_then(qos),
            target: target.clone(),
            portals: portals.clone(),
            lun,
            chap: matches!(storage.auth.kind.as_deref(), Some("chap" | "mchap")),
            open: storage.access_control_mode.as_deref() == Some("allow_all"),
            access: access.clone(),
            access_groups: groups.clone(),
            sessions: sessions.clone(),
        })
        .collect()
}

fn placement(volume: &wire::Volume) -> Option<String> {
    // A policy takes precedence over the mode.
    filled(wire::last_segment(&volume.placement_policy)).or_else(|| volume.placement_mode.clone())
}

/// Who is admitted.
pub(super) fn admitted(acl: &wire::Acl) -> Vec<String> {
    wire::names_of(&acl.initiators)
}

/// Who is logged in.
pub(super) fn sessions(storage: &wire::Storage) -> Vec<String> {
    wire::names_of(&storage.active_initiators)
}

/// Limits; `None` when there are none.
fn qos(policy: &wire::Performance) -> Option<Qos> {
    let limit = |value: Option<u64>| value.filter(|value| *value > 0);
    let bytes = |value: Option<u64>| limit(value).map(|kib| kib.saturating_mul(1024));
    let qos = Qos {
        total_iops: limit(policy.total_iops_max),
        read_iops: limit(policy.read_iops_max),
        write_iops: limit(policy.write_iops_max),
        total_bytes_per_second: bytes(policy.total_bandwidth_max),
        read_bytes_per_second: bytes(policy.read_bandwidth_max),
        write_bytes_per_second: bytes(policy.write_bandwidth_max),
    };
    (qos != Qos::default()).then_some(qos)
}

/// An AppTemplate.
pub(super) fn template(template: &wire::Template) -> Template {
    let units = template.storage_templates.iter().flat_map(|storage| {
        storage
            .volume_templates
            .iter()
            .map(|volume| TemplateVolume {
                name: format!("{}/{}", storage.name, volume.name),
                size_bytes: volume.size,
                replicas: volume.replica_count,
                placement: placement(volume),
                qos: volume.performance_policy.as_ref().and_then(qos),
            })
    });
    Template {
        name: template.name.clone(),
        description: filled(&template.descr),
        units: units.collect(),
    }
}

/// A snapshot of a volume; `name`: what it was asked for by.
pub(super) fn snapshot(
    volume: &VolumeName,
    snapshot: &wire::Snapshot,
    name: Option<&str>,
) -> Snapshot {
    let id = if snapshot.uuid.is_empty() {
        &snapshot.utc_ts
    } else {
        &snapshot.uuid
    };
    Snapshot {
        volume: volume.clone(),
        id: id.clone(),
        name: name.filter(|name| name != id).map(str::to_owned),
        taken_unix_ms: taken_unix_ms(&snapshot.utc_ts),
        ready: snapshot.op_state.as_deref() == Some("available"),
    }
}

/// Milliseconds from `SECONDS.NANOSECONDS`, where the nanoseconds are a number that need not be padded.
fn taken_unix_ms(utc_ts: &str) -> Option<u64> {
    let (seconds, nanoseconds) = utc_ts.split_once('.').unwrap_or((utc_ts, "0"));
    let seconds: u64 = seconds.parse().ok()?;
    let nanoseconds: u64 = nanoseconds.parse().ok().filter(|n| *n < 1_000_000_000)?;
    seconds
        .checked_mul(1000)?
        .checked_add(nanoseconds / 1_000_000)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn fixture(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    fn instance() -> Value {
        fixture(include_str!("../fixtures/app_instance.json"))["data"].take()
    }

    fn seen(value: Value) -> Volume {
        volume(&serde_json::from_value(value).unwrap(), 3260).unwrap()
    }

    #[test]
    fn an_instance_is_a_volume() {
        let volume = seen(instance());
        assert_eq!(volume.name.as_str(), "kube-pv-datera-0");
        assert_eq!(volume.state, VolumeState::Available);
        assert_eq!((volume.size_bytes, volume.template), (100 << 30, None));
        let unit = &volume.units[0];
        assert_eq!((unit.name.as_str(), unit.lun), ("storage-1/volume-1", 0));
        assert_eq!(unit.portals.len(), 2);
        assert_eq!(unit.portals[0].to_string(), "172.28.10.21:3260");
        assert_eq!(
            unit.target.as_ref().unwrap().as_str(),
            "iqn.2013-05.com.daterainc:tc:01:sn:4a6f0c1d92e83b57"
        );
        assert_eq!(unit.replicas, Some(3));
        assert!(!unit.chap && !unit.open && unit.access.is_empty());
    }

    #[test]
    fn states() {
        let with = |path: &str, value: Value| {
            let mut changed = instance();
            *changed.pointer_mut(path).unwrap() = value;
            seen(changed).state
        };
        for (path, value, state) in [
            ("/admin_state", json!("offline"), VolumeState::Offline),
            ("/deployment_state", json!("failed"), VolumeState::Failed),
            ("/storage_instances", json!([]), VolumeState::Preparing),
            (
                "/storage_instances/0/op_state",
                json!("unavailable"),
                VolumeState::Preparing,
            ),
            (
                "/storage_instances/0/op_state",
                json!("failed"),
                VolumeState::Failed,
            ),
            (
                "/storage_instances/0/access/ips",
                json!([]),
                VolumeState::Preparing,
            ),
            (
                "/storage_instances/0/access/iqn",
                json!(""),
                VolumeState::Preparing,
            ),
            (
                "/storage_instances/0/volumes/0/op_state",
                json!("resizing"),
                VolumeState::Preparing,
            ),
        ] {
            assert_eq!(with(path, value.clone()), state, "{path} {value}");
        }
    }

    #[test]
    fn sizes_come_as_numbers_or_text_and_nothing_else() {
        let size = |value: Value| {
            serde_json::from_value::<wire::Volume>(json!({ "size": value })).map(|v| v.size)
        };
        assert_eq!(size(json!(20)).unwrap(), 20 << 30);
        assert_eq!(size(json!("20")).unwrap(), 20 << 30);
        assert_eq!(size(json!(0.5)).unwrap(), 1 << 29);
        for wrong in [json!(-1), json!(1e300), json!("x"), json!([])] {
            assert!(size(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_of_snapshots_are_not_padded() {
        assert_eq!(
            taken_unix_ms("1600000000.123456789"),
            Some(1_600_000_000_123)
        );
        assert_eq!(
            taken_unix_ms("1446076384.00607846"),
            Some(1_446_076_384_000)
        );
        assert_eq!(taken_unix_ms("1446076384"), Some(1_446_076_384_000));
        for wrong in ["", "x", "1.9999999999", "99999999999999999999.1"] {
            assert_eq!(taken_unix_ms(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn names_of_others_are_left_out() {
        let mut strange = instance();
        strange["name"] = json!("a b/c");
        assert!(volume(&serde_json::from_value(strange).unwrap(), 3260).is_none());
    }
}

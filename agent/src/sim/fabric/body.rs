//! Bodies of requests. Unknown members are refused.

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::model::{AccessMode, AdminState, AuthKind, Password, Performance, SnapshotPolicy};

/// A reference: a path and nothing else.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Reference {
    pub(super) path: String,
}

/// A reference that also may come as it was in an answer, or as a bare path.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum LooseReference {
    Bare(String),
    Object(Reference),
}

impl LooseReference {
    pub(super) fn path(&self) -> &str {
        match self {
            Self::Bare(path) => path,
            Self::Object(reference) => &reference.path,
        }
    }
}

/// POST `/app_instances`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewInstance {
    pub(super) name: String,
    pub(super) descr: Option<String>,
    pub(super) create_mode: Option<String>,
    pub(super) uuid: Option<String>,
    pub(super) access_control_mode: Option<AccessMode>,
    pub(super) app_template: Option<Reference>,
    pub(super) template_override: Option<Value>,
    pub(super) clone_src: Option<Reference>,
    pub(super) clone_volume_src: Option<Reference>,
    pub(super) clone_snapshot_src: Option<Reference>,
    pub(super) storage_instances: Option<Vec<NewStorageInstance>>,
    pub(super) snapshot_policies: Option<Vec<SnapshotPolicy>>,
    pub(super) repair_priority: Option<String>,
    pub(super) storage_pool: Option<Vec<Value>>,
}

/// PUT of an app instance.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChangedInstance {
    pub(super) name: Option<String>,
    pub(super) descr: Option<String>,
    pub(super) admin_state: Option<AdminState>,
    #[serde(default)]
    pub(super) force: bool,
    #[serde(rename = "provisioned")]
    pub(super) _provisioned: Option<bool>,
    pub(super) access_control_mode: Option<AccessMode>,
    pub(super) restore_point: Option<String>,
    pub(super) storage_instances: Option<Vec<ChangedStorageInstance>>,
    pub(super) snapshot_policies: Option<Vec<SnapshotPolicy>>,
    pub(super) repair_priority: Option<String>,
    pub(super) storage_pool: Option<Vec<Value>>,
}

/// The body of a DELETE.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Deletion {
    #[serde(default)]
    pub(super) force: bool,
    #[serde(rename = "remote_provider_uuid")]
    pub(super) _remote_provider_uuid: Option<String>,
}

/// A storage instance in a POST.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewStorageInstance {
    pub(super) name: String,
    pub(super) admin_state: Option<AdminState>,
    pub(super) access_control_mode: Option<AccessMode>,
    pub(super) acl_policy: Option<AclPolicy>,
    pub(super) ip_pool: Option<Reference>,
    pub(super) auth: Option<ChangedAuth>,
    #[serde(default)]
    pub(super) volumes: Vec<NewVolume>,
    #[serde(rename = "access")]
    pub(super) _access: Option<Value>,
    pub(super) service_configuration: Option<String>,
}

/// PUT of a storage instance; with its name in PUTs of the app instance.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChangedStorageInstance {
    pub(super) name: Option<String>,
    pub(super) admin_state: Option<AdminState>,
    pub(super) access_control_mode: Option<AccessMode>,
    pub(super) acl_policy: Option<AclPolicy>,
    pub(super) ip_pool: Option<Reference>,
    pub(super) auth: Option<ChangedAuth>,
    pub(super) volumes: Option<Vec<ChangedVolume>>,
    #[serde(default)]
    pub(super) force: bool,
}

/// An access list; a list that is not there stays as it is.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AclPolicy {
    pub(super) initiators: Option<Vec<Reference>>,
    pub(super) initiator_groups: Option<Vec<Reference>>,
}

/// One element into or out of a list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListChange {
    pub(super) op: ListOp,
    pub(super) path: String,
}

/// What to do with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ListOp {
    Add,
    Remove,
}

/// Credentials; what is not given stays as it is.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChangedAuth {
    #[serde(rename = "type")]
    pub(super) kind: Option<AuthKind>,
    pub(super) initiator_user_name: Option<String>,
    pub(super) initiator_pswd: Option<Password>,
    pub(super) target_user_name: Option<String>,
    pub(super) target_pswd: Option<Password>,
}

/// A volume in a POST.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewVolume {
    pub(super) name: String,
    #[serde(deserialize_with = "whole")]
    pub(super) size: u64,
    pub(super) replica_count: Option<u64>,
    pub(super) placement_mode: Option<String>,
    pub(super) placement_policy: Option<LooseReference>,
    pub(super) performance_policy: Option<Performance>,
    pub(super) snapshot_policies: Option<Vec<SnapshotPolicy>>,
    #[serde(rename = "force")]
    pub(super) force: Option<bool>,
}

/// PUT of a volume; with its name in PUTs of the storage instance.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChangedVolume {
    pub(super) name: Option<String>,
    #[serde(default, deserialize_with = "maybe_whole")]
    pub(super) size: Option<u64>,
    pub(super) replica_count: Option<u64>,
    pub(super) placement_mode: Option<String>,
    pub(super) placement_policy: Option<LooseReference>,
    pub(super) performance_policy: Option<Performance>,
    pub(super) snapshot_policies: Option<Vec<SnapshotPolicy>>,
    pub(super) restore_point: Option<String>,
    pub(super) force: Option<bool>,
}

/// POST of a snapshot.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewSnapshot {
    pub(super) uuid: Option<String>,
    pub(super) remote_provider_uuid: Option<String>,
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
}

/// POST `/initiators`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewInitiator {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) force: Option<bool>,
}

/// PUT of an initiator, a pool or anything with a name and a description.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Renamed {
    pub(super) name: Option<String>,
    pub(super) descr: Option<String>,
}

/// POST and PUT of initiator groups.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Group {
    pub(super) name: Option<String>,
    pub(super) members: Option<Vec<Reference>>,
}

/// POST `/tenants`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewTenant {
    pub(super) name: String,
    pub(super) descr: Option<String>,
    pub(super) parent_path: Option<String>,
}

/// POST `/app_templates`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewTemplate {
    pub(super) name: String,
    pub(super) descr: Option<String>,
    pub(super) copy_from: Option<Reference>,
    pub(super) snapshot_policies: Option<Vec<SnapshotPolicy>>,
    pub(super) storage_templates: Option<Vec<NewStorageTemplate>>,
}

/// PUT of a template.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChangedTemplate {
    pub(super) name: Option<String>,
    pub(super) descr: Option<String>,
    pub(super) snapshot_policies: Option<Vec<SnapshotPolicy>>,
    pub(super) storage_templates: Option<Vec<NewStorageTemplate>>,
}

/// A storage template.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewStorageTemplate {
    pub(super) name: String,
    pub(super) auth: Option<ChangedAuth>,
    pub(super) ip_pool: Option<LooseReference>,
    #[serde(default)]
    pub(super) volume_templates: Vec<NewVolume>,
}

/// POST `/access_network_ip_pools`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewPool {
    pub(super) name: String,
    pub(super) descr: Option<String>,
    #[serde(default)]
    pub(super) network_paths: Vec<NetworkPath>,
}

/// A block of addresses.
#[derive(Debug, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NetworkPath {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    pub(super) start_ip: std::net::IpAddr,
    pub(super) netmask: u64,
    pub(super) range: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) vlan: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mtu: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) gateway: Option<String>,
}

/// POST `/placement_policies`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewPlacementPolicy {
    pub(super) name: String,
    pub(super) descr: Option<String>,
    #[serde(default)]
    pub(super) max: Vec<LooseReference>,
    #[serde(default)]
    pub(super) min: Vec<LooseReference>,
}

/// POST `/media_policies`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewMediaPolicy {
    pub(super) name: String,
    pub(super) priority: i64,
    pub(super) descr: Option<String>,
}

/// A whole number that may be written as `20.0`.
fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let number = serde_json::Number::deserialize(deserializer)?;
    let whole = number.as_u64().or_else(|| {
        let float = number.as_f64()?;
        // Larger ones are no sizes anyway.
        (float.fract() == 0.0 && (0.0..=1e9).contains(&float)).then_some(float as u64)
    });
    whole.ok_or_else(|| serde::de::Error::custom(format!("{number} is no whole number")))
}

fn maybe_whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    whole(deserializer).map(Some)
}

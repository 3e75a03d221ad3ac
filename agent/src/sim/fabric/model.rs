//! What the fabric remembers, as it is stored. Wire JSON is made from it in [`super::view`].

use berth_api::Secret;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Bytes of a GiB, the unit of sizes.
pub(super) const GIB: u64 = 1 << 30;

/// Everything but the app instances.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Catalogue {
    /// Format of the stored documents.
    pub(super) format: u32,
    pub(super) name: String,
    pub(super) uuid: String,
    /// UUIDs of the storage nodes.
    pub(super) nodes: Vec<String>,
    pub(super) tenants: Vec<Tenant>,
    pub(super) initiators: Vec<Initiator>,
    pub(super) groups: Vec<InitiatorGroup>,
    pub(super) pools: Vec<IpPool>,
    pub(super) templates: Vec<AppTemplate>,
    pub(super) media_policies: Vec<MediaPolicy>,
    pub(super) placement_policies: Vec<PlacementPolicy>,
}

/// Something that a tenant has, by a key.
pub(super) trait Owned {
    fn tenant(&self) -> &str;
    fn key(&self) -> &str;
}

macro_rules! owned {
    ($($type:ty => $key:ident),* $(,)?) => {
        $(impl Owned for $type {
            fn tenant(&self) -> &str {
                &self.tenant
            }
            fn key(&self) -> &str {
                &self.$key
            }
        })*
    };
}
owned! {
    Initiator => id, InitiatorGroup => name, IpPool => name, AppTemplate => name,
    MediaPolicy => name, PlacementPolicy => name,
}

/// A tenant.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tenant {
    /// `/root`, `/root/x` and so on.
    pub(super) path: String,
    pub(super) descr: String,
}

/// An initiator that is known.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Initiator {
    pub(super) tenant: String,
    /// Its iSCSI name.
    pub(super) id: String,
    pub(super) name: String,
}

/// An object of a tenant that another one names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Link {
    pub(super) tenant: String,
    pub(super) key: String,
}

/// A group of initiators.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InitiatorGroup {
    pub(super) tenant: String,
    pub(super) name: String,
    pub(super) members: Vec<Link>,
}

/// Addresses that targets are given.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct IpPool {
    pub(super) tenant: String,
    pub(super) name: String,
    pub(super) descr: String,
    pub(super) network_paths: Vec<Map<String, Value>>,
}

/// A kind of medium.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MediaPolicy {
    pub(super) tenant: String,
    pub(super) name: String,
    pub(super) priority: i64,
}

/// Which media the replicas are on.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PlacementPolicy {
    pub(super) tenant: String,
    pub(super) name: String,
    pub(super) descr: String,
    pub(super) max: Vec<String>,
    pub(super) min: Vec<String>,
}

/// A template of app instances.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AppTemplate {
    pub(super) tenant: String,
    pub(super) name: String,
    pub(super) descr: String,
    pub(super) snapshot_policies: Vec<SnapshotPolicy>,
    pub(super) storage_templates: Vec<StorageTemplate>,
}

/// A template of a storage instance.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StorageTemplate {
    pub(super) name: String,
    pub(super) auth: Auth,
    /// Name of the pool.
    pub(super) ip_pool: Link,
    pub(super) volume_templates: Vec<VolumeTemplate>,
}

/// A template of a volume.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VolumeTemplate {
    pub(super) name: String,
    pub(super) size_gib: u64,
    pub(super) replica_count: u64,
    pub(super) placement: Placement,
    pub(super) performance: Option<Performance>,
    pub(super) snapshot_policies: Vec<SnapshotPolicy>,
}

/// Where the replicas of a volume are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Placement {
    pub(super) mode: String,
    pub(super) policy: Option<Link>,
}

/// Limits of a volume; 0 is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Performance {
    #[serde(default)]
    pub(super) total_iops_max: u64,
    #[serde(default)]
    pub(super) read_iops_max: u64,
    #[serde(default)]
    pub(super) write_iops_max: u64,
    /// KiB/s, as the next two.
    #[serde(default)]
    pub(super) total_bandwidth_max: u64,
    #[serde(default)]
    pub(super) read_bandwidth_max: u64,
    #[serde(default)]
    pub(super) write_bandwidth_max: u64,
}

/// When snapshots are to be made. Kept and shown; nothing makes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SnapshotPolicy {
    pub(super) name: String,
    pub(super) retention_count: u64,
    pub(super) interval: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) start_time: Option<String>,
}

/// CHAP of a storage instance. Clients put what the initiator presents into `target_*` and what the target
/// proves itself by into `initiator_*`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Auth {
    pub(super) kind: AuthKind,
    pub(super) initiator_user_name: String,
    pub(super) initiator_pswd: Option<Password>,
    pub(super) target_user_name: String,
    pub(super) target_pswd: Option<Password>,
}

/// A secret that is stored, in a file that only the owner reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Password(pub(super) Secret);

impl Serialize for Password {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.expose())
    }
}

impl<'de> Deserialize<'de> for Password {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(Secret::new(String::deserialize(deserializer)?)))
    }
}

/// Whether initiators have to authenticate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum AuthKind {
    #[default]
    None,
    Chap,
    /// The target proves itself, too.
    Mchap,
}

/// Who may use a target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum AccessMode {
    AllowAll,
    /// Only those in the list.
    #[default]
    DenyAll,
}

/// Whether an object is in use or at rest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum AdminState {
    #[default]
    Online,
    Offline,
}

/// An app instance.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AppInstance {
    pub(super) format: u32,
    /// Order of creation.
    pub(super) number: u64,
    pub(super) id: String,
    pub(super) tenant: String,
    pub(super) name: String,
    pub(super) descr: String,
    pub(super) admin_state: AdminState,
    pub(super) create_mode: String,
    pub(super) uuid: String,
    pub(super) access_control_mode: AccessMode,
    pub(super) template: Option<Link>,
    /// Path of what it was cloned from.
    pub(super) clone_src: Option<String>,
    pub(super) restore_point: Option<String>,
    pub(super) repair_priority: Option<String>,
    pub(super) snapshot_policies: Vec<SnapshotPolicy>,
    pub(super) snapshots: Vec<InstanceSnapshot>,
    pub(super) storage_instances: Vec<StorageInstance>,
    pub(super) metadata: Map<String, Value>,
}

/// A storage instance: one target.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StorageInstance {
    pub(super) name: String,
    pub(super) uuid: String,
    pub(super) iqn: String,
    pub(super) admin_state: AdminState,
    pub(super) access_control_mode: AccessMode,
    pub(super) initiators: Vec<Link>,
    pub(super) initiator_groups: Vec<Link>,
    pub(super) ip_pool: Link,
    pub(super) auth: Auth,
    /// In the order of their LUNs.
    pub(super) volumes: Vec<Volume>,
    pub(super) metadata: Map<String, Value>,
}

/// A volume: one LUN.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Volume {
    pub(super) name: String,
    /// Number of its LUN, which it keeps when others go.
    pub(super) lun: u16,
    /// Also its serial number.
    pub(super) uuid: String,
    pub(super) size_gib: u64,
    /// Name of the file with its bytes.
    pub(super) data: String,
    pub(super) replica_count: u64,
    pub(super) placement: Placement,
    pub(super) performance: Option<Performance>,
    pub(super) snapshot_policies: Vec<SnapshotPolicy>,
    pub(super) snapshots: Vec<VolumeSnapshot>,
    pub(super) restore_point: Option<String>,
}

/// A snapshot of a volume.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VolumeSnapshot {
    /// `seconds.nanoseconds`, the key.
    pub(super) utc_ts: String,
    pub(super) uuid: String,
    pub(super) size_gib: u64,
    pub(super) data: String,
}

/// A snapshot of all volumes of an app instance at one moment.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InstanceSnapshot {
    pub(super) utc_ts: String,
    pub(super) uuid: String,
    pub(super) parts: Vec<SnapshotPart>,
}

/// One volume of such a snapshot.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SnapshotPart {
    pub(super) storage_instance: String,
    pub(super) volume: String,
    pub(super) size_gib: u64,
    pub(super) data: String,
}

impl AppInstance {
    /// Its path.
    pub(super) fn path(&self) -> String {
        format!("/app_instances/{}", self.id)
    }

    /// Files with bytes of it.
    pub(super) fn data(&self) -> Vec<String> {
        let mut files = Vec::new();
        for volume in self.storage_instances.iter().flat_map(|si| &si.volumes) {
            files.extend(volume.files());
        }
        for part in self.snapshots.iter().flat_map(|snapshot| &snapshot.parts) {
            files.push(part.data.clone());
        }
        files
    }
}

impl Volume {
    /// Files with bytes of it and of its snapshots.
    pub(super) fn files(&self) -> Vec<String> {
        let mut files = vec![self.data.clone()];
        files.extend(self.snapshots.iter().map(|snapshot| snapshot.data.clone()));
        files
    }
}

/// The object with `key` that a tenant sees: its own, else that of the nearest tenant above.
pub(super) fn visible<'a, T: Owned>(items: &'a [T], tenant: &str, key: &str) -> Option<&'a T> {
    items
        .iter()
        .filter(|item| item.key() == key && super::call::is_within(tenant, item.tenant()))
        .max_by_key(|item| item.tenant().len())
}

impl Link {
    /// A link to an object.
    pub(super) fn to<T: Owned>(item: &T) -> Self {
        Self {
            tenant: item.tenant().to_owned(),
            key: item.key().to_owned(),
        }
    }

    /// Whether it leads to that object.
    pub(super) fn is<T: Owned>(&self, item: &T) -> bool {
        self.tenant == item.tenant() && self.key == item.key()
    }
}

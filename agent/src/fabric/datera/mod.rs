//! The Datera REST API, versions 2.2 and 2.1.
//!
//! - `http`: one request and its answer; `call`: tries, session, breaker; `session`: login and versions; `list`: paging
//! - `wire`: the fabric's JSON; `view`: its objects as ours
//! - `make`, `change`, `access`, `snapshots`: the operations
//!
//! What we call a volume is an app instance there, with all its targets (storage instances) and logical units (volumes).

mod access;
mod call;
mod change;
mod http;
mod list;
mod make;
mod session;
mod snapshots;
#[cfg(test)]
pub(crate) mod tests;
mod view;
mod wire;

use berth_api::VolumeName;
use berth_api::types::{
    Chap, DeletePolicy, FabricCapacity, FabricKind, Qos, Snapshot, Template, Volume, VolumeRequest,
};

use super::error::text_of;
use super::{Doing, Fabric, FabricError, FabricHealth, Facts, Hold, Op, Stats};
use crate::config;
use call::Rest;

/// A fabric that speaks the Datera REST API.
#[derive(Debug)]
pub struct Datera {
    rest: Rest,
}

/// The unit of a volume that has one.
#[derive(Debug)]
struct Unit {
    /// As `storage-1/volume-1`.
    name: String,
    /// The fabric's path of it.
    path: String,
    /// In bytes.
    size: u64,
}

impl Datera {
    /// A client; nothing is sent before the first operation. `driver` tells the fabric who we are.
    ///
    /// # Errors
    /// When the configuration cannot work.
    pub fn new(settings: &config::Fabric, driver: &str) -> Result<Self, String> {
        let rest = Rest::new(settings, driver)?;
        Ok(Self { rest })
    }

    /// The app instance of this name.
    async fn instance(&self, op: &Op, name: &VolumeName) -> Result<wire::Instance, FabricError> {
        let instance: wire::Instance =
            match self.rest.get(op, &format!("/app_instances/{name}")).await {
                Err(error) if error.is_not_found() => {
                    let what = format!("volume {name} on the fabric");
                    return Err(FabricError::NotFound { what });
                }
                other => other?,
            };
        // Names are also looked up as UUIDs, and an answer may belong to another request.
        if instance.name != name.as_str() {
            return Err(FabricError::Malformed {
                what: format!("app_instances/{name}"),
                detail: format!("it is about {:?}", text_of(&instance.name)),
            });
        }
        Ok(instance)
    }

    async fn find(&self, op: &Op, name: &VolumeName) -> Result<Volume, FabricError> {
        let instance = self.instance(op, name).await?;
        self.shown(name, &instance)
    }

    /// An app instance as a volume.
    fn shown(&self, name: &VolumeName, instance: &wire::Instance) -> Result<Volume, FabricError> {
        view::volume(instance, self.rest.settings.iscsi_port).ok_or_else(|| {
            FabricError::Malformed {
                what: format!("app_instances/{name}"),
                detail: "its name is no name of a volume".to_owned(),
            }
        })
    }

    /// The unit of a volume that has one.
    async fn only_unit(&self, op: &Op, name: &VolumeName) -> Result<Unit, FabricError> {
        let instance = self.instance(op, name).await?;
        let units = instance.storage_instances.iter().flat_map(|storage| {
            storage.volumes.iter().map(|volume| Unit {
                name: format!("{}/{}", storage.name, volume.name),
                path: volume.path.clone(),
                size: volume.size,
            })
        });
        let mut units: Vec<Unit> = units.collect();
        match (units.pop(), units.len()) {
            (Some(unit), 0) => Ok(unit),
            (_, more) => Err(FabricError::Unsupported(format!(
                "volume {name} has {} units; this is done for volumes with one",
                if more == 0 { 0 } else { more + 1 }
            ))),
        }
    }

    async fn instances(&self, op: &Op) -> Result<Vec<wire::Instance>, FabricError> {
        fn key(instance: &wire::Instance) -> String {
            format!("{} {}", instance.path, instance.name)
        }
        self.list(op, "/app_instances", key).await
    }

    async fn all(&self, op: &Op) -> Result<Vec<Volume>, FabricError> {
        let instances = self.instances(op).await?;
        let mut volumes: Vec<Volume> = instances
            .iter()
            .filter_map(|instance| view::volume(instance, self.rest.settings.iscsi_port))
            .collect();
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        // Two tenants may show us the same name.
        volumes.dedup_by(|a, b| a.name == b.name);
        Ok(volumes)
    }

    async fn all_templates(&self, op: &Op) -> Result<Vec<Template>, FabricError> {
        let all: Vec<wire::Template> = self
            .list(op, "/app_templates", |template: &wire::Template| {
                template.name.clone()
            })
            .await?;
        let mut templates: Vec<Template> = all.iter().map(view::template).collect();
        templates.sort_by(|a, b| a.name.cmp(&b.name));
        templates.dedup_by(|a, b| a.name == b.name);
        Ok(templates)
    }

    async fn system(&self, op: &Op) -> Result<FabricHealth, FabricError> {
        let api_version = self.rest.session(op).await?.version.as_str().to_owned();
        let system: wire::System = self.rest.get(op, "/system").await?;
        let bytes = |number: Option<f64>| {
            number
                .filter(|n| n.is_finite() && *n >= 0.0)
                .map(|n| n as u64)
        };
        let capacity = match (
            bytes(system.total_capacity),
            bytes(system.available_capacity),
        ) {
            (Some(total_bytes), Some(available_bytes)) => Some(FabricCapacity {
                total_bytes,
                available_bytes,
                provisioned_bytes: bytes(system.total_provisioned_capacity),
            }),
            _ => None,
        };
        Ok(FabricHealth {
            name: text_of(&system.name.unwrap_or_default()),
            version: text_of(&system.sw_version.unwrap_or_default()),
            api_version,
            health: text_of(&system.health.or(system.op_state).unwrap_or_default()),
            capacity,
        })
    }
}

impl Fabric for Datera {
    fn health<'a>(&'a self, op: &'a Op) -> Doing<'a, FabricHealth> {
        Box::pin(self.system(op))
    }

    fn templates<'a>(&'a self, op: &'a Op) -> Doing<'a, Vec<Template>> {
        Box::pin(self.all_templates(op))
    }

    fn volumes<'a>(&'a self, op: &'a Op) -> Doing<'a, Vec<Volume>> {
        Box::pin(self.all(op))
    }

    fn volume<'a>(&'a self, op: &'a Op, name: &'a VolumeName) -> Doing<'a, Volume> {
        Box::pin(self.find(op, name))
    }

    fn create<'a>(
        &'a self,
        op: &'a Op,
        name: &'a VolumeName,
        request: &'a VolumeRequest,
    ) -> Doing<'a, (Volume, bool)> {
        Box::pin(self.create_volume(op, name, request))
    }

    fn grow<'a>(&'a self, op: &'a Op, name: &'a VolumeName, size_bytes: u64) -> Doing<'a, Volume> {
        Box::pin(self.enlarge(op, name, size_bytes))
    }

    fn set_qos<'a>(
        &'a self,
        op: &'a Op,
        name: &'a VolumeName,
        qos: Option<Qos>,
    ) -> Doing<'a, Volume> {
        Box::pin(self.limit(op, name, qos))
    }

    fn delete<'a>(
        &'a self,
        op: &'a Op,
        name: &'a VolumeName,
        policy: DeletePolicy,
        with_snapshots: bool,
    ) -> Doing<'a, ()> {
        Box::pin(self.remove(op, name, policy, with_snapshots))
    }

    fn grant<'a>(
        &'a self,
        op: &'a Op,
        name: &'a VolumeName,
        initiator: &'a str,
    ) -> Doing<'a, Volume> {
        Box::pin(self.admit(op, name, initiator))
    }

    fn hold<'a>(
        &'a self,
        op: &'a Op,
        name: &'a VolumeName,
        initiator: &'a str,
        terms: Hold,
    ) -> Doing<'a, Volume> {
        Box::pin(self.claim(op, name, initiator, terms))
    }

    fn revoke<'a>(&'a self, op: &'a Op, name: &'a VolumeName, initiator: &'a str) -> Doing<'a, ()> {
        Box::pin(self.dismiss(op, name, initiator))
    }

    fn snapshot<'a>(
        &'a self,
        op: &'a Op,
        name: &'a VolumeName,
        snapshot: &'a str,
    ) -> Doing<'a, (Snapshot, bool)> {
        Box::pin(self.take_snapshot(op, name, snapshot))
    }

    fn snapshots<'a>(&'a self, op: &'a Op, name: &'a VolumeName) -> Doing<'a, Vec<Snapshot>> {
        Box::pin(self.all_snapshots(op, name))
    }

    fn all_snapshots<'a>(&'a self, op: &'a Op) -> Doing<'a, Vec<Snapshot>> {
        Box::pin(self.snapshots_of_all(op))
    }

    fn delete_snapshot<'a>(
        &'a self,
        op: &'a Op,
        name: &'a VolumeName,
        snapshot: &'a str,
    ) -> Doing<'a, ()> {
        Box::pin(self.drop_snapshot(op, name, snapshot))
    }

    fn restore<'a>(
        &'a self,
        op: &'a Op,
        name: &'a VolumeName,
        snapshot: &'a str,
    ) -> Doing<'a, Volume> {
        Box::pin(self.roll_back(op, name, snapshot))
    }

    fn credentials(&self, _name: &VolumeName) -> Option<Chap> {
        None
    }

    fn facts(&self) -> Facts {
        Facts {
            kind: FabricKind::Datera,
            url: self.rest.settings.url.clone(),
            breaker: Some(self.rest.breaker()),
        }
    }

    fn stats(&self) -> Option<&Stats> {
        Some(&self.rest.stats)
    }
}

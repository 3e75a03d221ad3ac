//! The Datera REST API, versions 2.2 and 2.1.
//!
//! - `http`: one request and its answer; `call`: tries, session, breaker; `session`: login and versions
//! - `wire`: the fabric's JSON; `view`: its objects as ours
//! - `make`, `change`, `access`, `snapshots`: the operations
//!
//! What we call a volume is an app instance there, with all its targets (storage instances) and logical units (volumes).

mod access;
mod call;
mod change;
mod http;
mod make;
mod session;
mod snapshots;
#[cfg(test)]
pub(crate) mod tests;
mod view;
mod wire;

use berth_api::VolumeName;
use berth_api::types::{Chap, DeletePolicy, Qos, Snapshot, Template, Volume, VolumeRequest};
use serde::de::DeserializeOwned;

use super::{Capacity, Doing, Fabric, FabricError, FabricHealth, Op, Stats};
use crate::config;
use call::Rest;

/// Most entries of one list; beyond, something is wrong with the paging.
const LIST_MAX: usize = 100_000;

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
                detail: format!("it is about {:?}", super::error::text_of(&instance.name)),
            });
        }
        Ok(instance)
    }

    async fn find(&self, op: &Op, name: &VolumeName) -> Result<Volume, FabricError> {
        let instance = self.instance(op, name).await?;
        view::volume(&instance, self.rest.settings.iscsi_port).ok_or_else(|| {
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

    /// A whole list, page by page.
    async fn list<T: DeserializeOwned>(&self, op: &Op, path: &str) -> Result<Vec<T>, FabricError> {
        let limit = self.rest.settings.page_size as usize;
        let mut all = Vec::new();
        loop {
            let query = [
                ("limit", limit.to_string()),
                ("offset", all.len().to_string()),
            ];
            let mut envelope = match self.rest.get_with(op, path, &query).await {
                // An empty sub-resource may be an error.
                Err(FabricError::Refused { message, .. }) if message.starts_with("No data at ") => {
                    return Ok(all);
                }
                other => other?,
            };
            let page: wire::Page = envelope
                .get_mut("metadata")
                .and_then(|metadata| serde_json::from_value(metadata.take()).ok())
                .unwrap_or_default();
            let rows: Vec<T> = wire::data(envelope, path).map_err(|failed| failed.error)?;
            let got = rows.len();
            all.extend(rows);
            if all.len() > LIST_MAX {
                return Err(FabricError::Malformed {
                    what: path.to_owned(),
                    detail: format!("more than {LIST_MAX} entries"),
                });
            }
            // Without a number a full page may have another one behind it.
            let complete = match page.total_count.or(page.total) {
                Some(total) => all.len() as u64 >= total,
                None => got < limit,
            };
            if complete || got == 0 {
                return Ok(all);
            }
        }
    }

    async fn all(&self, op: &Op) -> Result<Vec<Volume>, FabricError> {
        let instances: Vec<wire::Instance> = self.list(op, "/app_instances").await?;
        let mut volumes: Vec<Volume> = instances
            .iter()
            .filter_map(|instance| view::volume(instance, self.rest.settings.iscsi_port))
            .collect();
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        // One that is made or deleted between two pages moves the others.
        volumes.dedup_by(|a, b| a.name == b.name);
        Ok(volumes)
    }

    async fn all_templates(&self, op: &Op) -> Result<Vec<Template>, FabricError> {
        let all: Vec<wire::Template> = self.list(op, "/app_templates").await?;
        let mut templates: Vec<Template> = all.iter().map(view::template).collect();
        templates.sort_by(|a, b| a.name.cmp(&b.name));
        templates.dedup_by(|a, b| a.name == b.name);
        Ok(templates)
    }

    async fn system(&self, op: &Op) -> Result<FabricHealth, FabricError> {
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
            (Some(total_bytes), Some(available_bytes)) => Some(Capacity {
                total_bytes,
                available_bytes,
                provisioned_bytes: bytes(system.total_provisioned_capacity),
            }),
            _ => None,
        };
        Ok(FabricHealth {
            name: system.name.unwrap_or_default(),
            version: system.sw_version.unwrap_or_default(),
            health: system.health.or(system.op_state).unwrap_or_default(),
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

    fn stats(&self) -> Option<&Stats> {
        Some(&self.rest.stats)
    }
}

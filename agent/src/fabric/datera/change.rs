//! Changing a volume, and taking it away.

use berth_api::VolumeName;
use berth_api::types::{DeletePolicy, Qos, Volume, VolumeState};
use serde_json::{Value, json};

use super::Datera;
use super::make::{self, unit_path};
use super::view;
use super::wire::{self, GIB};
use crate::fabric::{FabricError, Op};

impl Datera {
    /// See [`crate::fabric::Fabric::grow`].
    pub(super) async fn enlarge(
        &self,
        op: &Op,
        name: &VolumeName,
        size_bytes: u64,
    ) -> Result<Volume, FabricError> {
        make::check_size(size_bytes)?;
        let unit = self.only_unit(op, name).await?;
        let size = size_bytes.div_ceil(GIB);
        if size * GIB < unit.size {
            return Err(FabricError::OutOfRange {
                field: "size_bytes",
                detail: format!(
                    "volume {name} has {} bytes and cannot shrink to {size_bytes}: what lies behind would be lost",
                    unit.size
                ),
            });
        }
        if size * GIB > unit.size {
            let path = unit_path(name, &unit.name)?;
            self.rest.put(op, &path, &json!({ "size": size })).await?;
        }
        self.wait_ready(op, name).await
    }

    /// See [`crate::fabric::Fabric::set_qos`].
    pub(super) async fn limit(
        &self,
        op: &Op,
        name: &VolumeName,
        qos: Option<Qos>,
    ) -> Result<Volume, FabricError> {
        if let Some(qos) = &qos {
            make::check_qos(qos)?;
        }
        let unit = self.only_unit(op, name).await?;
        let path = unit_path(name, &unit.name)?;
        let qos = qos.filter(|qos| *qos != Qos::default());
        self.put_performance(op, &path, qos).await?;
        self.find(op, name).await
    }

    /// Sets or removes all limits of the unit at `path`.
    pub(super) async fn put_performance(
        &self,
        op: &Op,
        path: &str,
        qos: Option<Qos>,
    ) -> Result<(), FabricError> {
        let path = format!("{path}/performance_policy");
        let Some(qos) = qos else {
            return self.rest.delete(op, &path).await;
        };
        let body = make::performance(&qos);
        let there = match self.rest.get::<Value>(op, &path).await {
            Ok(_) => true,
            Err(error) if error.is_not_found() => false,
            Err(error) => return Err(error),
        };
        if !there {
            match self.rest.post(op, &path, &body).await {
                Err(error) if error.is_conflict() => {}
                other => return other,
            }
        }
        self.rest.put(op, &path, &body).await
    }

    /// See [`crate::fabric::Fabric::delete`].
    pub(super) async fn remove(
        &self,
        op: &Op,
        name: &VolumeName,
        policy: DeletePolicy,
        with_snapshots: bool,
    ) -> Result<(), FabricError> {
        let instance = match self.instance(op, name).await {
            Err(error) if error.is_not_found() => return Ok(()),
            other => other?,
        };
        refuse_in_use(name, &instance)?;
        let mut volumes = instance
            .storage_instances
            .iter()
            .flat_map(|storage| &storage.volumes);
        if policy == DeletePolicy::Delete
            && !with_snapshots
            && volumes.any(|volume| !volume.snapshots.is_empty())
        {
            return Err(FabricError::InUse {
                detail: format!(
                    "volume {name} has snapshots, which would go with it; delete them first, or say so"
                ),
                holder: None,
            });
        }
        let was_online = instance.admin_state.as_deref() != Some("offline");
        // Offline first: from then on nobody can log in, so that the second look is the last word.
        self.set_online(op, name, false).await?;
        let instance = match self.instance(op, name).await {
            Err(error) if error.is_not_found() => return Ok(()),
            other => other?,
        };
        if let Err(in_use) = refuse_in_use(name, &instance) {
            self.back_online(op, name).await?;
            return Err(in_use);
        }
        match policy {
            DeletePolicy::Delete => {
                let path = format!("/app_instances/{name}");
                let deleted = self.rest.delete(op, &path).await;
                if was_online
                    && deleted.is_err()
                    && let Err(error) = self.back_online(op, name).await
                    && !error.is_not_found()
                {
                    tracing::warn!(volume = %name, %error, "it could not be deleted, and stays offline");
                }
                deleted
            }
            DeletePolicy::Retain => {
                for storage in &instance.storage_instances {
                    for initiator in view::admitted(&storage.acl_policy) {
                        self.dismiss(op, name, &initiator).await?;
                    }
                }
                Ok(())
            }
        }
    }

    /// Has a volume online again that was taken offline for something that came to nothing. It takes its own time: that of
    /// the operation may be over.
    async fn back_online(&self, op: &Op, name: &VolumeName) -> Result<(), FabricError> {
        let limit = self.rest.settings.request_timeout.0;
        let op = Op::within(op.request_id.clone(), limit.max(op.left()));
        self.set_online(&op, name, true).await
    }

    /// Takes the volume offline, or online again. Never by force: who is logged in keeps it.
    pub(super) async fn set_online(
        &self,
        op: &Op,
        name: &VolumeName,
        online: bool,
    ) -> Result<(), FabricError> {
        let state = if online { "online" } else { "offline" };
        let path = format!("/app_instances/{name}");
        self.rest
            .put(op, &path, &json!({ "admin_state": state }))
            .await
    }

    /// See [`crate::fabric::Fabric::restore`].
    pub(super) async fn roll_back(
        &self,
        op: &Op,
        name: &VolumeName,
        snapshot: &str,
    ) -> Result<Volume, FabricError> {
        let unit = self.only_unit(op, name).await?;
        let snapshot = self.find_snapshot(op, name, &unit, snapshot).await?;
        let instance = self.instance(op, name).await?;
        refuse_in_use(name, &instance)?;
        self.set_online(op, name, false).await?;
        let instance = self.instance(op, name).await?;
        let in_use = refuse_in_use(name, &instance);
        if in_use.is_ok() {
            let path = unit_path(name, &unit.name)?;
            // Whatever comes of it, the volume goes online again.
            let restored = self
                .rest
                .put(op, &path, &json!({ "restore_point": snapshot.utc_ts }))
                .await;
            self.back_online(op, name).await?;
            restored?;
        } else {
            self.back_online(op, name).await?;
            in_use?;
        }
        let volume = self.wait_ready(op, name).await?;
        if volume.state == VolumeState::Offline {
            return Err(FabricError::Failed(format!(
                "volume {name} did not come online again"
            )));
        }
        Ok(volume)
    }
}

/// Refuses while initiators are logged in.
fn refuse_in_use(name: &VolumeName, instance: &wire::Instance) -> Result<(), FabricError> {
    let mut sessions: Vec<String> = instance
        .storage_instances
        .iter()
        .flat_map(view::sessions)
        .collect();
    sessions.sort();
    sessions.dedup();
    if sessions.is_empty() {
        return Ok(());
    }
    Err(FabricError::InUse {
        detail: format!(
            "volume {name} is in use: {} logged in; detach it there first",
            sessions.join(", ")
        ),
        holder: sessions.into_iter().next(),
    })
}

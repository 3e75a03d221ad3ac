//! Who may log in to a volume.
//!
//! One initiator is added to or removed from the list at a time, by the fabric itself: two nodes that do so at once
//! cannot undo each other, as they would by writing whole lists.

use berth_api::types::Volume;
use berth_api::{TargetName, VolumeName};
use serde_json::json;

use super::Datera;
use super::session::Version;
use super::{view, wire};
use crate::fabric::{FabricError, Op};

/// Longest name that the fabric keeps beside an initiator; it is for people.
const LABEL: &str = "berth";

impl Datera {
    /// See [`crate::fabric::Fabric::grant`].
    pub(super) async fn admit(
        &self,
        op: &Op,
        name: &VolumeName,
        initiator: &str,
    ) -> Result<Volume, FabricError> {
        let initiator = checked(initiator)?;
        let instance = self.instance(op, name).await?;
        let waiting: Vec<_> = instance
            .storage_instances
            .iter()
            .filter(|storage| !holds(&storage.acl_policy, &initiator))
            .collect();
        if !waiting.is_empty() {
            self.know(op, &initiator).await?;
        }
        for storage in waiting {
            let path = format!("{}/initiators", acl_path(name, &storage.name));
            let body = json!({ "op": "add", "path": format!("/initiators/{initiator}") });
            match self.rest.put(op, &path, &body).await {
                // It is there already: added meanwhile, or by us with the answer lost.
                Err(error) if error.is_conflict() => {}
                other => other?,
            }
            let acl = self.acl(op, name, &storage.name).await?;
            if !holds(&acl, &initiator) {
                return Err(FabricError::Failed(format!(
                    "the fabric took {initiator} for {name}, and does not list it there"
                )));
            }
        }
        self.find(op, name).await
    }

    /// See [`crate::fabric::Fabric::revoke`].
    pub(super) async fn dismiss(
        &self,
        op: &Op,
        name: &VolumeName,
        initiator: &str,
    ) -> Result<(), FabricError> {
        let initiator = checked(initiator)?;
        let instance = match self.instance(op, name).await {
            Err(error) if error.is_not_found() => return Ok(()),
            other => other?,
        };
        for storage in &instance.storage_instances {
            if !holds(&storage.acl_policy, &initiator) {
                continue;
            }
            let path = format!("{}/initiators", acl_path(name, &storage.name));
            let body = json!({ "op": "remove", "path": format!("/initiators/{initiator}") });
            let removed = self.rest.put(op, &path, &body).await;
            // How a repeated removal is answered differs; what counts is that it is not there.
            let acl = match self.acl(op, name, &storage.name).await {
                Err(error) if error.is_not_found() => continue,
                other => other?,
            };
            if holds(&acl, &initiator) {
                removed?;
                return Err(FabricError::Failed(format!(
                    "the fabric was told not to admit {initiator} to {name}, and still lists it there"
                )));
            }
        }
        Ok(())
    }

    async fn acl(
        &self,
        op: &Op,
        name: &VolumeName,
        storage: &str,
    ) -> Result<wire::Acl, FabricError> {
        self.rest.get(op, &acl_path(name, storage)).await
    }

    /// Has the fabric know the initiator, in our tenant.
    async fn know(&self, op: &Op, initiator: &str) -> Result<(), FabricError> {
        let path = format!("/initiators/{initiator}");
        match self.rest.get::<wire::Initiator>(op, &path).await {
            // That of a parent tenant is no use to us.
            Ok(known)
                if known
                    .tenant
                    .as_ref()
                    .is_none_or(|tenant| *tenant == self.rest.settings.tenant) =>
            {
                return Ok(());
            }
            Ok(_) => {}
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        let mut body = json!({ "id": initiator, "name": label(initiator) });
        if self.rest.session(op).await?.version >= Version::V22 {
            // The first one of a tenant hides those of its parents, which is what we want.
            body["force"] = true.into();
        }
        match self.rest.post(op, "/initiators", &body).await {
            Err(error) if error.is_conflict() => Ok(()),
            other => other,
        }
    }
}

fn acl_path(name: &VolumeName, storage: &str) -> String {
    format!("/app_instances/{name}/storage_instances/{storage}/acl_policy")
}

fn holds(acl: &wire::Acl, initiator: &str) -> bool {
    view::admitted(acl)
        .iter()
        .any(|admitted| admitted.eq_ignore_ascii_case(initiator))
}

/// A name for people: who made the entry, and the last part of the initiator's own name.
fn label(initiator: &str) -> String {
    let last = initiator.rsplit(':').next().unwrap_or_default();
    let fits = |c: &char| c.is_ascii_alphanumeric() || "_.-".contains(*c);
    let last: String = last.chars().filter(fits).take(100).collect();
    format!("{LABEL}-{last}")
}

/// An initiator's name as it is compared; nothing that could lead to another path.
fn checked(initiator: &str) -> Result<String, FabricError> {
    let name: TargetName = initiator.parse().map_err(|error| FabricError::Invalid {
        field: "initiator",
        detail: format!("{error}, as names of initiators do"),
    })?;
    Ok(name.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_keep_to_the_rules_of_the_fabric() {
        assert_eq!(label("iqn.2026-11.io.berth:worker-1"), "berth-worker-1");
        assert_eq!(label("iqn.2026-11.io.berth"), "berth-iqn.2026-11.io.berth");
        assert!(label(&format!("iqn.2026-11.a:{}", "x".repeat(300))).len() <= 128);
    }

    #[test]
    fn initiators_are_checked() {
        assert_eq!(
            checked("IQN.2026-11.io.berth:A").unwrap(),
            "iqn.2026-11.io.berth:a"
        );
        for wrong in ["", "worker", "iqn.2026-11.a/../..", "../system"] {
            assert!(
                matches!(checked(wrong), Err(FabricError::Invalid { .. })),
                "{wrong}"
            );
        }
    }
}

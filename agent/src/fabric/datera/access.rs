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
use crate::fabric::{FabricError, Hold, Op};

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

    /// See [`crate::fabric::Fabric::hold`].
    pub(super) async fn claim(
        &self,
        op: &Op,
        name: &VolumeName,
        initiator: &str,
        terms: Hold,
    ) -> Result<Volume, FabricError> {
        let initiator = checked(initiator)?;
        let claimed = self.try_claim(op, name, &initiator, terms).await;
        if terms.grant && matches!(claimed, Err(FabricError::HeldElsewhere { .. })) {
            // Two that claim at once see each other, and both step back: nobody stays admitted by a claim that failed.
            if let Err(error) = self.dismiss(op, name, &initiator).await {
                tracing::warn!(volume = %name, initiator, %error, "a claim that failed may have left this node admitted");
            }
        }
        claimed
    }

    /// Whoever is admitted and then finds nobody else on the list has it: of two that do so at once, at least one finds
    /// the other.
    async fn try_claim(
        &self,
        op: &Op,
        name: &VolumeName,
        initiator: &str,
        terms: Hold,
    ) -> Result<Volume, FabricError> {
        let instance = self.instance(op, name).await?;
        refuse_open(name, &instance)?;
        let others = Others::of(&instance, initiator);
        if let Some(holder) = others.admitted() {
            if !(terms.takeover && terms.grant) {
                return Err(held(name, holder, terms));
            }
            for other in &others.initiators {
                tracing::info!(volume = %name, initiator = other, request_id = op.request_id, "taken over: not admitted any more");
                self.dismiss(op, name, other).await?;
            }
            self.dismiss_groups(op, name, &instance).await?;
        }
        if terms.grant {
            self.admit(op, name, initiator).await?;
        }
        loop {
            let instance = self.instance(op, name).await?;
            let others = Others::of(&instance, initiator);
            if let Some(holder) = others.admitted() {
                return Err(held(name, holder, terms));
            }
            if !instance
                .storage_instances
                .iter()
                .all(|storage| holds(&storage.acl_policy, initiator))
            {
                return Err(not_admitted(name, initiator, terms.grant));
            }
            let Some(session) = others.sessions.first() else {
                return self.shown(name, &instance);
            };
            // The fabric ends the sessions of whom it does not admit any more; that may take a moment.
            if let Err(FabricError::Deadline { .. }) = self.pause(op, "the volume").await {
                return Err(FabricError::HeldElsewhere {
                    detail: format!(
                        "volume {name}: {session} is not admitted any more, and the fabric has not ended its session yet"
                    ),
                    holder: Some(session.clone()),
                });
            }
        }
    }

    /// Takes all groups off the list of the volume.
    async fn dismiss_groups(
        &self,
        op: &Op,
        name: &VolumeName,
        instance: &wire::Instance,
    ) -> Result<(), FabricError> {
        for storage in &instance.storage_instances {
            for group in wire::names_of(&storage.acl_policy.initiator_groups) {
                let path = format!("{}/initiator_groups", acl_path(name, &storage.name));
                let body = json!({ "op": "remove", "path": format!("/initiator_groups/{group}") });
                match self.rest.put(op, &path, &body).await {
                    Err(error) if error.is_not_found() => {}
                    other => other?,
                }
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

/// Who besides one initiator is on the lists of a volume, or logged in to it.
struct Others {
    initiators: Vec<String>,
    groups: Vec<String>,
    sessions: Vec<String>,
}

impl Others {
    fn of(instance: &wire::Instance, initiator: &str) -> Self {
        let others = |names: fn(&wire::Storage) -> Vec<String>| {
            let mut names: Vec<String> =
                instance.storage_instances.iter().flat_map(names).collect();
            names.retain(|name| !name.eq_ignore_ascii_case(initiator));
            names.sort();
            names.dedup();
            names
        };
        Self {
            initiators: others(|storage| view::admitted(&storage.acl_policy)),
            // Who is in a group can change any time.
            groups: others(|storage| wire::names_of(&storage.acl_policy.initiator_groups)),
            sessions: others(view::sessions),
        }
    }

    fn admitted(&self) -> Option<&str> {
        let first = self.initiators.first().or(self.groups.first());
        first.map(String::as_str)
    }
}

fn held(name: &VolumeName, holder: &str, terms: Hold) -> FabricError {
    let hint = if terms.grant {
        "detach it there, or attach with takeover if that node is gone"
    } else {
        "the list is not this node's to change (source.fabric.grant is false)"
    };
    FabricError::HeldElsewhere {
        detail: format!("volume {name} admits {holder}: {hint}"),
        holder: Some(holder.to_owned()),
    }
}

/// The error of a node that is not admitted, and has not been just now.
fn not_admitted(name: &VolumeName, initiator: &str, granted: bool) -> FabricError {
    if granted {
        return FabricError::HeldElsewhere {
            detail: format!(
                "volume {name}: {initiator} was admitted and is not any more; somebody else has claimed it"
            ),
            holder: None,
        };
    }
    FabricError::NotAdmitted(format!(
        "volume {name} does not admit {initiator}, and source.fabric.grant is false: whoever publishes it has to admit \
         this node first"
    ))
}

/// Refuses a volume that admits everybody: nobody can hold it alone.
fn refuse_open(name: &VolumeName, instance: &wire::Instance) -> Result<(), FabricError> {
    let open =
        |storage: &wire::Storage| storage.access_control_mode.as_deref() == Some("allow_all");
    if instance.storage_instances.iter().any(open) {
        return Err(FabricError::Conflict(format!(
            "volume {name} admits everybody (access_control_mode is allow_all), so nobody can hold it alone; set it to \
             deny_all on the fabric"
        )));
    }
    Ok(())
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

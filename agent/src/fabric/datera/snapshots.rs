//! Snapshots of a volume.
//!
//! The fabric keeps no names of snapshots, only UUIDs that the client may choose. So a name gives the UUID: who asks
//! again by the same name, after a lost answer or a crash, finds the same snapshot.

use berth_api::VolumeName;
use berth_api::types::Snapshot;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::make::unit_path;
use super::{Datera, Unit, view, wire};
use crate::fabric::{FabricError, Op};

/// The fabric's code for a snapshot whose UUID is taken.
const EXISTS: i64 = 15;

impl Datera {
    /// See [`crate::fabric::Fabric::snapshot`].
    pub(super) async fn take_snapshot(
        &self,
        op: &Op,
        name: &VolumeName,
        snapshot: &str,
    ) -> Result<(Snapshot, bool), FabricError> {
        check_id(snapshot)?;
        if is_time(snapshot) {
            return Err(FabricError::Invalid {
                field: "snapshot",
                detail: format!(
                    "{snapshot} is the time of a snapshot, which the fabric gives; use a name"
                ),
            });
        }
        let unit = self.only_unit(op, name).await?;
        let path = format!("{}/snapshots", unit_path(name, &unit.name)?);
        let wanted = id_of(name.as_str(), snapshot);
        let mut created = false;
        let mut found = self
            .list_snapshots(op, &path)
            .await?
            .into_iter()
            .find(|s| s.uuid == wanted);
        if found.is_none() {
            match self.rest.post(op, &path, &json!({ "uuid": wanted })).await {
                Ok(()) => created = true,
                Err(FabricError::Refused {
                    code: Some(EXISTS), ..
                }) => {}
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(error),
            }
        }
        loop {
            if let Some(found) = found.take() {
                let shown = view::snapshot(name, &found, Some(snapshot));
                match found.op_state.as_deref() {
                    Some("available") => return Ok((shown, created)),
                    Some("failed") => {
                        return Err(FabricError::Failed(format!(
                            "the fabric failed to take snapshot {snapshot}"
                        )));
                    }
                    _ => {}
                }
                self.pause(op, &format!("snapshot {snapshot}")).await?;
            }
            found = self
                .list_snapshots(op, &path)
                .await?
                .into_iter()
                .find(|s| s.uuid == wanted);
            if found.is_none() {
                self.pause(op, &format!("snapshot {snapshot}")).await?;
            }
        }
    }

    /// See [`crate::fabric::Fabric::snapshots`].
    pub(super) async fn all_snapshots(
        &self,
        op: &Op,
        name: &VolumeName,
    ) -> Result<Vec<Snapshot>, FabricError> {
        let unit = self.only_unit(op, name).await?;
        let path = format!("{}/snapshots", unit_path(name, &unit.name)?);
        let found = self.list_snapshots(op, &path).await?;
        let mut all: Vec<_> = found
            .iter()
            .map(|found| view::snapshot(name, found, None))
            .collect();
        all.sort_by_key(Snapshot::place);
        Ok(all)
    }

    /// See [`crate::fabric::Fabric::all_snapshots`]. They are part of their volumes, so the list of these has them all.
    pub(super) async fn snapshots_of_all(&self, op: &Op) -> Result<Vec<Snapshot>, FabricError> {
        let mut all = Vec::new();
        for instance in self.instances(op).await? {
            let Ok(name) = instance.name.parse::<VolumeName>() else {
                continue; // Another API made it.
            };
            for storage in &instance.storage_instances {
                for unit in &storage.volumes {
                    let unit_name = format!("{}/{}", storage.name, unit.name);
                    let found = if unit.snapshots.iter().all(is_whole) {
                        unit.snapshots.clone()
                    } else {
                        let path = format!("{}/snapshots", unit_path(&name, &unit_name)?);
                        match self.list_snapshots(op, &path).await {
                            Err(error) if error.is_not_found() => continue, // Deleted meanwhile.
                            other => other?,
                        }
                    };
                    all.extend(found.iter().map(|found| view::snapshot(&name, found, None)));
                }
            }
        }
        all.sort_by_key(Snapshot::place);
        Ok(all)
    }

    /// See [`crate::fabric::Fabric::delete_snapshot`].
    pub(super) async fn drop_snapshot(
        &self,
        op: &Op,
        name: &VolumeName,
        snapshot: &str,
    ) -> Result<(), FabricError> {
        check_id(snapshot)?;
        let unit = match self.only_unit(op, name).await {
            Err(error) if error.is_not_found() => return Ok(()),
            other => other?,
        };
        let found = match self.find_snapshot(op, name, &unit, snapshot).await {
            Err(error) if error.is_not_found() => return Ok(()),
            other => other?,
        };
        let path = format!(
            "{}/snapshots/{}",
            unit_path(name, &unit.name)?,
            found.utc_ts
        );
        self.rest.delete(op, &path).await
    }

    /// The snapshot of this name, UUID or time.
    pub(super) async fn find_snapshot(
        &self,
        op: &Op,
        name: &VolumeName,
        unit: &Unit,
        snapshot: &str,
    ) -> Result<wire::Snapshot, FabricError> {
        check_id(snapshot)?;
        let path = format!("{}/snapshots", unit_path(name, &unit.name)?);
        let wanted = id_of(name.as_str(), snapshot);
        let all = self.list_snapshots(op, &path).await?;
        let is_it = |s: &wire::Snapshot| s.uuid == wanted || s.utc_ts == snapshot;
        all.into_iter()
            .find(is_it)
            .ok_or_else(|| FabricError::NotFound {
                what: format!("snapshot {snapshot} of volume {name}"),
            })
    }

    async fn list_snapshots(
        &self,
        op: &Op,
        path: &str,
    ) -> Result<Vec<wire::Snapshot>, FabricError> {
        let all: Vec<wire::Snapshot> = self
            .list(op, path, |s: &wire::Snapshot| s.utc_ts.clone())
            .await?;
        let usable = |s: &wire::Snapshot| is_time(&s.utc_ts);
        Ok(all.into_iter().filter(usable).collect())
    }

    /// Waits a little for something that the fabric is not done with.
    pub(super) async fn pause(&self, op: &Op, what: &str) -> Result<(), FabricError> {
        let pause = self.rest.settings.poll_interval.0;
        if pause >= op.left() {
            let last = Some(format!("{what} is not available yet"));
            return Err(FabricError::Deadline { last });
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// Whether a snapshot that stands in its volume has all that we tell of it.
fn is_whole(snapshot: &wire::Snapshot) -> bool {
    is_time(&snapshot.utc_ts) && !snapshot.uuid.is_empty() && snapshot.op_state.is_some()
}

/// `SECONDS.NANOSECONDS`, the fabric's key of a snapshot.
fn is_time(text: &str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    text.len() <= 40
        && text
            .split_once('.')
            .is_some_and(|(a, b)| digits(a) && digits(b))
}

/// Checks that it is a name, a UUID or a time.
pub(super) fn check_id(snapshot: &str) -> Result<(), FabricError> {
    if is_time(snapshot) {
        return Ok(());
    }
    snapshot
        .parse::<VolumeName>()
        .map(drop)
        .map_err(|error| FabricError::Invalid {
            field: "snapshot",
            detail: error.to_string(),
        })
}

/// The identifier of the snapshot of this name: itself when it is one, else a UUID that follows from volume and name
/// (version 8, RFC 9562 5.8).
pub(super) fn id_of(volume: &str, snapshot: &str) -> String {
    if is_time(snapshot) || berth_api::name::is_uuid(snapshot) {
        return snapshot.to_owned();
    }
    let mut hash = Sha256::new();
    for part in ["berth snapshot", volume, snapshot] {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    let mut bytes: [u8; 32] = hash.finalize().into();
    bytes[6] = (bytes[6] & 0x0f) | 0x80;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex: String = bytes[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_gives_one_identifier() {
        let id = id_of("vol-1", "nightly");
        assert!(berth_api::name::is_uuid(&id), "{id}");
        assert_eq!(id, id_of("vol-1", "nightly"));
        assert_ne!(id, id_of("vol-2", "nightly"));
        assert_ne!(id_of("ab", "cnightly"), id_of("abc", "nightly"));
        assert_eq!(id_of("vol-1", &id), id, "an identifier is its own");
        assert_eq!(
            id_of("vol-1", "1600000000.123456789"),
            "1600000000.123456789"
        );
    }

    #[test]
    fn what_is_none_of_these_is_refused() {
        for good in [
            "nightly",
            "1446076384.00607846",
            "5d0c4a7e-2f61-4b8e-9a53-1c7be0d2f944",
        ] {
            assert!(check_id(good).is_ok(), "{good}");
        }
        for bad in ["", "..", "a/b", "1.", ".1", "16 00.1", "x?y"] {
            assert!(check_id(bad).is_err(), "{bad}");
        }
    }
}

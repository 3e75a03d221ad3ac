//! Volumes that the configuration declares: any iSCSI array, without an API. They are looked at and attached; what
//! would change the array is refused.

use std::collections::BTreeMap;

use berth_api::VolumeName;
use berth_api::types::{
    Chap, DeletePolicy, FabricKind, Qos, Snapshot, Template, Volume, VolumeRequest, VolumeState,
    VolumeUnit,
};

use super::{Doing, Fabric, FabricError, FabricHealth, Facts, Hold, Op, Stats};
use crate::config::DeclaredVolume;

/// The declared volumes.
#[derive(Debug)]
pub struct Declared {
    volumes: BTreeMap<VolumeName, (Volume, Option<Chap>)>,
}

impl Declared {
    /// The volumes of the configuration.
    ///
    /// # Errors
    /// When a secret cannot be read.
    pub fn new(declared: &[DeclaredVolume]) -> Result<Self, String> {
        let mut volumes = BTreeMap::new();
        for one in declared {
            let chap = one
                .chap()
                .map_err(|message| format!("{}: {message}", one.name))?;
            let size_bytes = one.size.map_or(0, |size| size.0);
            let unit = VolumeUnit {
                name: format!("target/{}", one.lun),
                serial: None,
                size_bytes,
                replicas: None,
                placement: None,
                qos: None,
                target: Some(one.target.clone()),
                portals: one.portals.clone(),
                lun: one.lun,
                chap: chap.is_some(),
                open: true,
                access: Vec::new(),
                access_groups: Vec::new(),
                sessions: Vec::new(),
            };
            let volume = Volume {
                name: one.name.clone(),
                id: one.name.to_string(),
                state: VolumeState::Available,
                health: None,
                size_bytes,
                template: None,
                description: None,
                units: vec![unit],
            };
            volumes.insert(one.name.clone(), (volume, chap));
        }
        Ok(Self { volumes })
    }

    fn find(&self, name: &VolumeName) -> Result<Volume, FabricError> {
        let found = self.volumes.get(name).map(|(volume, _)| volume.clone());
        found.ok_or_else(|| FabricError::NotFound {
            what: format!("volume {name} in the configuration ([[fabric.volume]])"),
        })
    }
}

fn refused<'a, T: Send + 'a>(what: &str) -> Doing<'a, T> {
    let detail = format!(
        "{what} needs a fabric with a REST API (fabric.url); volumes that are declared in the configuration are \
         managed on their array"
    );
    Box::pin(std::future::ready(Err(FabricError::Unsupported(detail))))
}

fn ready<'a, T: Send + 'a>(result: Result<T, FabricError>) -> Doing<'a, T> {
    Box::pin(std::future::ready(result))
}

impl Fabric for Declared {
    fn health<'a>(&'a self, _op: &'a Op) -> Doing<'a, FabricHealth> {
        ready(Ok(FabricHealth {
            name: "declared".to_owned(),
            version: String::new(),
            api_version: String::new(),
            health: "ok".to_owned(),
            capacity: None,
        }))
    }

    fn templates<'a>(&'a self, _op: &'a Op) -> Doing<'a, Vec<Template>> {
        ready(Ok(Vec::new()))
    }

    fn volumes<'a>(&'a self, _op: &'a Op) -> Doing<'a, Vec<Volume>> {
        ready(Ok(self
            .volumes
            .values()
            .map(|(volume, _)| volume.clone())
            .collect()))
    }

    fn volume<'a>(&'a self, _op: &'a Op, name: &'a VolumeName) -> Doing<'a, Volume> {
        ready(self.find(name))
    }

    fn create<'a>(
        &'a self,
        _op: &'a Op,
        name: &'a VolumeName,
        request: &'a VolumeRequest,
    ) -> Doing<'a, (Volume, bool)> {
        // What exists need not be made; whether it is what was asked for cannot be told but for its size.
        match self.find(name) {
            Ok(volume)
                if request
                    .size_bytes
                    .is_none_or(|size| size <= volume.size_bytes) =>
            {
                ready(Ok((volume, false)))
            }
            _ => refused("making a volume"),
        }
    }

    fn grow<'a>(
        &'a self,
        _op: &'a Op,
        _name: &'a VolumeName,
        _size_bytes: u64,
    ) -> Doing<'a, Volume> {
        refused("growing a volume")
    }

    fn set_qos<'a>(
        &'a self,
        _op: &'a Op,
        _name: &'a VolumeName,
        _qos: Option<Qos>,
    ) -> Doing<'a, Volume> {
        refused("setting limits")
    }

    fn delete<'a>(
        &'a self,
        _op: &'a Op,
        _name: &'a VolumeName,
        _policy: DeletePolicy,
        _with_snapshots: bool,
    ) -> Doing<'a, ()> {
        refused("deleting a volume")
    }

    fn grant<'a>(
        &'a self,
        _op: &'a Op,
        name: &'a VolumeName,
        _initiator: &'a str,
    ) -> Doing<'a, Volume> {
        // The array decides by itself whom it admits.
        ready(self.find(name))
    }

    fn hold<'a>(
        &'a self,
        _op: &'a Op,
        _name: &'a VolumeName,
        _initiator: &'a str,
        _terms: Hold,
    ) -> Doing<'a, Volume> {
        refused("fence \"acl\"")
    }

    fn revoke<'a>(
        &'a self,
        _op: &'a Op,
        _name: &'a VolumeName,
        _initiator: &'a str,
    ) -> Doing<'a, ()> {
        ready(Ok(()))
    }

    fn snapshot<'a>(
        &'a self,
        _op: &'a Op,
        _name: &'a VolumeName,
        _snapshot: &'a str,
    ) -> Doing<'a, (Snapshot, bool)> {
        refused("taking a snapshot")
    }

    fn snapshots<'a>(&'a self, _op: &'a Op, _name: &'a VolumeName) -> Doing<'a, Vec<Snapshot>> {
        refused("listing snapshots")
    }

    fn all_snapshots<'a>(&'a self, _op: &'a Op) -> Doing<'a, Vec<Snapshot>> {
        refused("listing snapshots")
    }

    fn delete_snapshot<'a>(
        &'a self,
        _op: &'a Op,
        _name: &'a VolumeName,
        _snapshot: &'a str,
    ) -> Doing<'a, ()> {
        refused("deleting a snapshot")
    }

    fn restore<'a>(
        &'a self,
        _op: &'a Op,
        _name: &'a VolumeName,
        _snapshot: &'a str,
    ) -> Doing<'a, Volume> {
        refused("restoring a snapshot")
    }

    fn credentials(&self, name: &VolumeName) -> Option<Chap> {
        self.volumes.get(name).and_then(|(_, chap)| chap.clone())
    }

    fn facts(&self) -> Facts {
        Facts {
            kind: FabricKind::Declared,
            url: None,
            breaker: None,
        }
    }

    fn stats(&self) -> Option<&Stats> {
        None
    }
}

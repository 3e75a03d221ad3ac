//! Who may use a volume: granting and revoking, with the fabric as the fence.
//!
//! A node is published to when the fabric admits its initiator. Unpublishing is answered when the fabric neither admits it nor has a
//! session of it any more: then no write of that node can land, whether the node knows or not.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_api::types::{Volume, VolumeUnit};
use berth_api::{TargetName, VolumeName};
use tokio::time::Instant;
use tonic::Status;

use crate::csi::Driver;
use crate::csi::calls::Call;
use crate::csi::capability::Usage;
use crate::csi::names::{self, VolumeId};
use crate::csi::proto::v1::{
    ControllerPublishVolumeRequest, ControllerPublishVolumeResponse,
    ControllerUnpublishVolumeRequest, ControllerUnpublishVolumeResponse,
};
use crate::csi::status::{self, Told as _};

/// Keys of a publish context: what the node compares before it touches the volume.
pub(in crate::csi) mod context {
    /// Serial number that the unit has to have.
    pub(in crate::csi) const SERIAL: &str = "serial";
    /// Name of the target, for people.
    pub(in crate::csi) const TARGET: &str = "target";
    /// `true`: no writes from this node.
    pub(in crate::csi) const READ_ONLY: &str = "readOnly";
}

/// How often the fabric is asked whether a session has ended; it ends within a round trip as a rule.
const SESSION_POLL: Duration = Duration::from_millis(100);
/// Publications that are remembered, for the comparison of repeated calls.
const REMEMBERED_MAX: usize = 65_536;

/// How volumes were published, as far as this process did it: the fabric keeps who is admitted and not on what terms.
#[derive(Debug, Default)]
pub(in crate::csi) struct Published(Mutex<Remembered>);

#[derive(Debug, Default)]
struct Remembered {
    terms: HashMap<(VolumeId, TargetName), Terms>,
    order: VecDeque<(VolumeId, TargetName)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Terms {
    usage: Usage,
    read_only: bool,
}

impl Published {
    fn terms(&self, volume: &VolumeId, node: &TargetName) -> Option<Terms> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.terms.get(&(volume.clone(), node.clone())).cloned()
    }

    fn remember(&self, volume: &VolumeId, node: &TargetName, terms: Terms) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (volume.clone(), node.clone());
        if all.terms.insert(key.clone(), terms).is_none() {
            all.order.push_back(key);
        }
        while all.order.len() > REMEMBERED_MAX {
            if let Some(oldest) = all.order.pop_front() {
                all.terms.remove(&oldest);
            }
        }
    }

    fn drop_node(&self, volume: &VolumeName, node: &TargetName) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let other = |(id, name): &(VolumeId, TargetName)| id.volume != *volume || name != node;
        all.order.retain(other);
        all.terms.retain(|key, _| other(key));
    }

    /// Another unit of the same volume that is published: the fabric admits to all units together.
    fn other_unit(&self, id: &VolumeId) -> Option<VolumeId> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut others = all.terms.keys().map(|(other, _)| other);
        let found = others.find(|other| other.volume == id.volume && *other != id);
        found.cloned()
    }

    /// Forgets a volume that is gone.
    pub(in crate::csi) fn forget(&self, volume: &VolumeName) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.order.retain(|(id, _)| id.volume != *volume);
        all.terms.retain(|(id, _), _| id.volume != *volume);
    }
}

/// The unit that an identifier means.
pub(super) fn unit<'a>(id: &VolumeId, volume: &'a Volume) -> Result<&'a VolumeUnit, Status> {
    match &id.unit {
        Some(name) => volume
            .units
            .iter()
            .find(|unit| unit.name == *name)
            .ok_or_else(|| status::no_volume(id)),
        None => match volume.units.as_slice() {
            [unit] => Ok(unit),
            units => {
                let names: Vec<_> = units.iter().map(|unit| unit.name.as_str()).collect();
                Err(Status::failed_precondition(format!(
                    "volume {id} has {} units; name one, as {id}/UNIT with UNIT one of {}",
                    units.len(),
                    names.join(", ")
                )))
            }
        },
    }
}

fn is(node: &TargetName, name: &str) -> bool {
    name.eq_ignore_ascii_case(node.as_str())
}

pub(super) async fn publish(
    driver: Arc<Driver>,
    call: Call,
    request: ControllerPublishVolumeRequest,
) -> Result<ControllerPublishVolumeResponse, Status> {
    if request.volume_id.is_empty() {
        return Err(status::missing("volume_id"));
    }
    if request.node_id.is_empty() {
        return Err(status::missing("node_id"));
    }
    let usage = Usage::parse(request.volume_capability.as_ref())?;
    let id: VolumeId =
        (request.volume_id.parse()).map_err(|_| status::no_volume(&request.volume_id))?;
    let terms = Terms {
        read_only: request.readonly || usage.mode.is_read_only(),
        usage,
    };
    let node = names::initiator(&request.node_id);
    let node_id = request.node_id;
    let key = format!("volume {}", id.volume);
    let (inner, shared) = (call.clone(), Arc::clone(&driver));
    let work = async move {
        let volume = status::found(inner.client.volume(&id.volume).await)?
            .ok_or_else(|| status::no_volume(&id))?;
        let node = node.ok_or_else(|| {
            Status::not_found(format!(
                "there is no node {node_id:?}: a node is known by the name of its initiator (iqn.…)"
            ))
        })?;
        let was = unit(&id, &volume)?;
        refuse_others(&id, was, &node, &terms)?;
        if let Some(other) = shared.published.other_unit(&id) {
            return Err(Status::failed_precondition(format!(
                "{other} of the same volume is published, and the fabric admits to all units of a volume together; unpublish \
                 it first"
            )));
        }
        let before = shared.published.terms(&id, &node);
        if let Some(before) = before.filter(|before| *before != terms)
            && was.access.iter().any(|admitted| is(&node, admitted))
        {
            return Err(Status::already_exists(format!(
                "volume {id} is published to {node} already, {}; unpublish it first",
                if before.read_only == terms.read_only {
                    "with another capability"
                } else if before.read_only {
                    "read-only"
                } else {
                    "writable"
                }
            )));
        }
        let volume = inner.client.grant(&id.volume, &node).await.told()?;
        // Two controllers that did this at once see each other here, and at least one of them gives way.
        if let Err(others) = refuse_others(&id, unit(&id, &volume)?, &node, &terms) {
            inner.client.revoke(&id.volume, &node).await.told()?;
            return Err(others);
        }
        let publish_context = describe(unit(&id, &volume)?, &terms);
        shared.published.remember(&id, &node, terms);
        Ok(ControllerPublishVolumeResponse { publish_context })
    };
    driver.calls.alone(&call, key, work).await
}

/// Refuses where another node has the volume, or the fabric admits whomever it likes.
fn refuse_others(
    id: &VolumeId,
    unit: &VolumeUnit,
    node: &TargetName,
    terms: &Terms,
) -> Result<(), Status> {
    if unit.open {
        return Err(Status::failed_precondition(format!(
            "volume {id} admits everybody, so nobody could be kept from it; set its access control to a list on the fabric"
        )));
    }
    if !terms.usage.mode.is_single_node() {
        return Ok(());
    }
    let others = unit.access.iter().chain(&unit.sessions);
    let mut others = others.filter(|name| !is(node, name));
    match others.next() {
        None => Ok(()),
        Some(holder) => Err(Status::failed_precondition(format!(
            "volume {id} is published to {holder}; it has to be unpublished there first"
        ))),
    }
}

/// What does not change while the volume is published.
fn describe(unit: &VolumeUnit, terms: &Terms) -> HashMap<String, String> {
    let mut all = HashMap::new();
    let mut add = |key: &str, value: &str| all.insert(key.to_owned(), value.to_owned());
    if let Some(serial) = &unit.serial {
        add(context::SERIAL, serial);
    }
    if let Some(target) = &unit.target {
        add(context::TARGET, target.as_str());
    }
    if terms.read_only {
        add(context::READ_ONLY, "true");
    }
    all
}

pub(super) async fn unpublish(
    driver: Arc<Driver>,
    call: Call,
    request: ControllerUnpublishVolumeRequest,
) -> Result<ControllerUnpublishVolumeResponse, Status> {
    if request.volume_id.is_empty() {
        return Err(status::missing("volume_id"));
    }
    let Ok(id) = request.volume_id.parse::<VolumeId>() else {
        return Ok(ControllerUnpublishVolumeResponse {});
    };
    let node = match request.node_id.as_str() {
        "" => None,
        // Nobody has ever been admitted under a name that is none.
        other => match names::initiator(other) {
            None => return Ok(ControllerUnpublishVolumeResponse {}),
            node => node,
        },
    };
    let key = format!("volume {}", id.volume);
    let (inner, shared) = (call.clone(), Arc::clone(&driver));
    let work = async move {
        shut_out(&inner, &shared, &id, node.as_ref()).await?;
        Ok(ControllerUnpublishVolumeResponse {})
    };
    driver.calls.alone(&call, key, work).await
}

/// Revokes a node, or all of them, and waits until none of their sessions is left.
async fn shut_out(
    call: &Call,
    driver: &Driver,
    id: &VolumeId,
    node: Option<&TargetName>,
) -> Result<(), Status> {
    let deadline = Instant::now() + driver.settings.unpublish_timeout;
    loop {
        let Some(volume) = status::found(call.client.volume(&id.volume).await)? else {
            driver.published.forget(&id.volume);
            return Ok(());
        };
        let meant = |name: &&String| node.is_none_or(|node| is(node, name));
        let names = |of: fn(&VolumeUnit) -> &Vec<String>| -> Vec<String> {
            volume
                .units
                .iter()
                .flat_map(of)
                .filter(meant)
                .cloned()
                .collect()
        };
        let mut admitted = names(|unit| &unit.access);
        admitted.sort();
        admitted.dedup();
        let revoked = !admitted.is_empty();
        for name in admitted {
            // What the fabric lists and is no name cannot be taken off by it.
            let initiator: TargetName = name.parse().map_err(|error| {
                Status::internal(format!("the fabric admits {name:?} to {id}: {error}"))
            })?;
            call.client.revoke(&id.volume, &initiator).await.told()?;
            driver.published.drop_node(&id.volume, &initiator);
        }
        let sessions = names(|unit| &unit.sessions);
        if sessions.is_empty() && !revoked {
            return Ok(());
        }
        if Instant::now() + SESSION_POLL > deadline {
            return Err(Status::deadline_exceeded(format!(
                "{} is not admitted to volume {id} any more and was still logged in after {} s: the fabric has not ended its \
                 session; repeat the call",
                sessions.join(", "),
                driver.settings.unpublish_timeout.as_secs()
            )));
        }
        if sessions.is_empty() {
            // The list is from before the revoke: one more look.
            continue;
        }
        tokio::time::sleep(SESSION_POLL).await;
    }
}

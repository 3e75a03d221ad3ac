//! Volumes on the storage fabric, for the API.

use std::sync::Arc;
use std::time::Duration;

use berth_api::types::{
    BreakerState, CheckResult, DeletePolicy, FabricStatus, Reason, Snapshot, Template, Volume,
    VolumePatch, VolumeRequest,
};
use berth_api::{Call, Code, Error, TargetName, VolumeName};

use crate::config;
use crate::fabric::{Fabric, FabricError, Op};
use crate::volume::FabricAccess;

/// The fabric of this node, with what the configuration says about calls.
#[derive(Clone)]
pub struct Volumes {
    pub(super) fabric: Arc<dyn Fabric>,
    call_timeout: Duration,
    request_timeout: Duration,
    delete_policy: DeletePolicy,
}

impl Volumes {
    /// The configured fabric; `node` tells it who we are.
    ///
    /// # Errors
    /// What is wrong with the configuration.
    pub fn new(settings: &config::Fabric, node: &str) -> Result<Self, String> {
        let node: String = node
            .chars()
            .filter(char::is_ascii_graphic)
            .take(64)
            .collect();
        let driver = format!("berth-{}-{node}", env!("CARGO_PKG_VERSION"));
        Ok(Self {
            fabric: crate::fabric::from_config(settings, &driver)?,
            call_timeout: settings.call_timeout.0,
            request_timeout: settings.request_timeout.0,
            delete_policy: settings.delete_policy,
        })
    }

    /// The fabric for attachments of this node.
    #[must_use]
    pub fn access(&self, initiator: &str) -> FabricAccess {
        FabricAccess {
            fabric: Arc::clone(&self.fabric),
            initiator: initiator.to_owned(),
            call_timeout: self.call_timeout,
        }
    }

    /// One operation of this call.
    pub(super) fn op(&self, call: &Call) -> Op {
        Op::within(call.request_id.clone(), self.call_timeout)
    }

    /// How the fabric is; asked once, no longer than for the time of one request.
    pub(super) async fn status(&self, call: &Call) -> FabricStatus {
        let limit = self.request_timeout.min(self.call_timeout);
        let op = Op::within(call.request_id.clone(), limit);
        let health = self.fabric.health(&op).await;
        let reason = health.as_ref().err().map(|error| {
            tracing::info!(%error, request_id = call.request_id, "the fabric was asked how it is");
            Reason::from(&Error::from(error.clone()))
        });
        // After the question: it may have changed the breaker.
        let facts = self.fabric.facts();
        let mut status = FabricStatus {
            kind: facts.kind,
            url: facts.url,
            reachable: health.is_ok(),
            reason,
            name: None,
            version: None,
            api_version: None,
            health: None,
            capacity: None,
            breaker: facts.breaker,
        };
        if let Ok(health) = health {
            let filled = |text: String| (!text.is_empty()).then_some(text);
            status.name = filled(health.name);
            status.version = filled(health.version);
            status.api_version = filled(health.api_version);
            status.health = filled(health.health);
            status.capacity = health.capacity;
        }
        status
    }

    /// What is known of the fabric, as a fact among the checks of readiness. It never fails: attachments go on without
    /// the fabric, and a node that is taken out of service for it would help nobody.
    pub(super) fn check(&self) -> CheckResult {
        let detail = self.fabric.facts().breaker.and_then(|breaker| {
            let failures = breaker.failures;
            match breaker.state {
                BreakerState::Closed if failures == 0 => None,
                BreakerState::Closed => Some(format!(
                    "{failures} requests in a row failed; attached volumes go on"
                )),
                BreakerState::Open | BreakerState::Trying => Some(format!(
                    "it does not answer ({failures} requests in a row failed) and is left alone for a while; attached \
                     volumes go on, calls about volumes fail"
                )),
            }
        });
        CheckResult {
            detail,
            ..CheckResult::pass("fabric")
        }
    }

    pub(super) async fn templates(&self, call: &Call) -> Result<Vec<Template>, Error> {
        told(
            "list templates",
            None,
            self.fabric.templates(&self.op(call)).await,
        )
    }

    pub(super) async fn list(&self, call: &Call) -> Result<Vec<Volume>, Error> {
        told(
            "list volumes",
            None,
            self.fabric.volumes(&self.op(call)).await,
        )
    }

    pub(super) async fn show(&self, call: &Call, name: &VolumeName) -> Result<Volume, Error> {
        told(
            "show",
            Some(name),
            self.fabric.volume(&self.op(call), name).await,
        )
    }

    pub(super) async fn create(
        &self,
        call: &Call,
        name: &VolumeName,
        request: &VolumeRequest,
    ) -> Result<(Volume, bool), Error> {
        let made = self.fabric.create(&self.op(call), name, request).await;
        if let Ok((_, true)) = &made {
            tracing::info!(volume = %name, request_id = call.request_id, peer = ?call.peer, "volume made on the fabric");
        }
        told("create", Some(name), made)
    }

    pub(super) async fn change(
        &self,
        call: &Call,
        name: &VolumeName,
        patch: &VolumePatch,
    ) -> Result<Volume, Error> {
        let op = self.op(call);
        if let Some(size_bytes) = patch.size_bytes {
            told(
                "grow",
                Some(name),
                self.fabric.grow(&op, name, size_bytes).await,
            )?;
        }
        if let Some(qos) = patch.qos {
            told("qos", Some(name), self.fabric.set_qos(&op, name, qos).await)?;
        }
        told("show", Some(name), self.fabric.volume(&op, name).await)
    }

    pub(super) async fn delete(
        &self,
        call: &Call,
        name: &VolumeName,
        policy: Option<DeletePolicy>,
        with_snapshots: bool,
    ) -> Result<(), Error> {
        let policy = policy.unwrap_or(self.delete_policy);
        tracing::info!(volume = %name, ?policy, request_id = call.request_id, peer = ?call.peer, "volume to be deleted on the fabric");
        let deleted = self
            .fabric
            .delete(&self.op(call), name, policy, with_snapshots)
            .await;
        told("delete", Some(name), deleted)
    }

    pub(super) async fn grant(
        &self,
        call: &Call,
        name: &VolumeName,
        initiator: &TargetName,
    ) -> Result<Volume, Error> {
        tracing::info!(volume = %name, %initiator, request_id = call.request_id, peer = ?call.peer, "initiator to be admitted");
        let granted = self
            .fabric
            .grant(&self.op(call), name, initiator.as_str())
            .await;
        told("grant", Some(name), granted)
    }

    pub(super) async fn revoke(
        &self,
        call: &Call,
        name: &VolumeName,
        initiator: &TargetName,
    ) -> Result<(), Error> {
        tracing::info!(volume = %name, %initiator, request_id = call.request_id, peer = ?call.peer, "initiator not to be admitted");
        let revoked = self
            .fabric
            .revoke(&self.op(call), name, initiator.as_str())
            .await;
        told("revoke", Some(name), revoked)
    }

    pub(super) async fn snapshots(
        &self,
        call: &Call,
        name: &VolumeName,
    ) -> Result<Vec<Snapshot>, Error> {
        told(
            "list snapshots",
            Some(name),
            self.fabric.snapshots(&self.op(call), name).await,
        )
    }

    pub(super) async fn all_snapshots(&self, call: &Call) -> Result<Vec<Snapshot>, Error> {
        told(
            "list snapshots",
            None,
            self.fabric.all_snapshots(&self.op(call)).await,
        )
    }

    pub(super) async fn take_snapshot(
        &self,
        call: &Call,
        name: &VolumeName,
        snapshot: &str,
    ) -> Result<(Snapshot, bool), Error> {
        let taken = self.fabric.snapshot(&self.op(call), name, snapshot).await;
        told("snapshot", Some(name), taken)
    }

    pub(super) async fn delete_snapshot(
        &self,
        call: &Call,
        name: &VolumeName,
        snapshot: &str,
    ) -> Result<(), Error> {
        tracing::info!(volume = %name, snapshot, request_id = call.request_id, peer = ?call.peer, "snapshot to be deleted");
        let deleted = self
            .fabric
            .delete_snapshot(&self.op(call), name, snapshot)
            .await;
        told("delete snapshot", Some(name), deleted)
    }

    pub(super) async fn restore(
        &self,
        call: &Call,
        name: &VolumeName,
        snapshot: &str,
    ) -> Result<Volume, Error> {
        tracing::info!(volume = %name, snapshot, request_id = call.request_id, peer = ?call.peer, "volume to be put back to a snapshot");
        let restored = self.fabric.restore(&self.op(call), name, snapshot).await;
        told("restore", Some(name), restored)
    }
}

/// The error of a node without fabric.
pub(super) fn no_fabric() -> Error {
    Error::new(
        Code::NotImplemented,
        "no storage fabric is configured; see [fabric] in berth.toml",
    )
}

/// Says in the log what failed.
fn told<T>(
    what: &str,
    name: Option<&VolumeName>,
    result: Result<T, FabricError>,
) -> Result<T, Error> {
    result.map_err(|error| {
        let name = name.map(VolumeName::as_str);
        tracing::warn!(what, volume = name, %error, "the fabric did not do it");
        Error::from(error)
    })
}

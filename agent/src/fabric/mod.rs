//! The storage fabric: where volumes are made, changed and taken away, and who may use them.
//!
//! ```text
//! service, attach --> trait Fabric --+--> datera: operations -> call (retry, breaker, session) -> http, tls --REST--> fabric
//!                                    +--> declared: volumes of the configuration
//! ```
//!
//! Everything here belongs to the control plane: it runs on that runtime, every call has a deadline, and no I/O ever
//! waits for it. Operations name what is wanted and can be repeated after a lost answer or a crash at any point.

pub mod breaker;
pub mod datera;
pub mod declared;
pub mod error;
pub mod retry;
pub mod stats;
pub mod tls;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use berth_api::VolumeName;
use berth_api::types::{
    Breaker, Chap, DeletePolicy, FabricCapacity, FabricKind, Qos, Snapshot, Template, Volume,
    VolumeRequest,
};
use tokio::time::Instant;

use crate::config;
pub use error::FabricError;
pub use stats::Stats;

/// A call to a fabric under way.
pub type Doing<'a, T> = Pin<Box<dyn Future<Output = Result<T, FabricError>> + Send + 'a>>;

/// One operation asked for: under which identifier it stands in the logs, and until when it must have ended.
#[derive(Debug, Clone)]
pub struct Op {
    /// Identifier of the request that it belongs to.
    pub request_id: String,
    /// When it is over, whatever the fabric does.
    pub deadline: Instant,
}

impl Op {
    /// An operation that may take so long from now on.
    #[must_use]
    pub fn within(request_id: impl Into<String>, limit: Duration) -> Self {
        Self {
            request_id: request_id.into(),
            deadline: Instant::now() + limit,
        }
    }

    /// What is left of its time.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

/// How a fabric is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FabricHealth {
    /// Its name.
    pub name: String,
    /// Version of its software, as `3.3.0.0`.
    pub version: String,
    /// Version of the API that is spoken with it, as `v2.2`; empty without an API.
    pub api_version: String,
    /// What it says of itself, as `ok`.
    pub health: String,
    /// Its space, if it tells.
    pub capacity: Option<FabricCapacity>,
}

/// What is known of a fabric without asking it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its kind.
    pub kind: FabricKind,
    /// Where its REST API is, if it has one.
    pub url: Option<String>,
    /// Whether anything is sent to it; `None` when nothing ever is.
    pub breaker: Option<Breaker>,
}

/// How a volume is claimed for one initiator alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    /// Admit the initiator; else it has to be admitted already, and the list stays as it is.
    pub grant: bool,
    /// Do not admit anybody else any more; else the claim fails while somebody else is.
    pub takeover: bool,
}

/// A storage fabric. Sizes are in bytes. Every operation may be repeated: what is done already is not done twice.
pub trait Fabric: Send + Sync + 'static {
    /// How it is; fails when it cannot be reached.
    fn health<'a>(&'a self, op: &'a Op) -> Doing<'a, FabricHealth>;

    /// Its AppTemplates, by name.
    fn templates<'a>(&'a self, op: &'a Op) -> Doing<'a, Vec<Template>>;

    /// All volumes that it shows us, by name.
    fn volumes<'a>(&'a self, op: &'a Op) -> Doing<'a, Vec<Volume>>;

    /// One volume.
    fn volume<'a>(&'a self, op: &'a Op, name: &'a VolumeName) -> Doing<'a, Volume>;

    /// Makes the volume exist, available, as the request says; `true` when this call made it. One that exists is
    /// compared, and what a former call left undone is done.
    fn create<'a>(
        &'a self,
        op: &'a Op,
        name: &'a VolumeName,
        request: &'a VolumeRequest,
    ) -> Doing<'a, (Volume, bool)>;

    /// Makes the volume at least so large. Never shrinks it.
    fn grow<'a>(&'a self, op: &'a Op, name: &'a VolumeName, size_bytes: u64) -> Doing<'a, Volume>;

    /// Sets all limits of the volume; `None`: it has none any more. Takes effect on I/O under way.
    fn set_qos<'a>(
        &'a self,
        op: &'a Op,
        name: &'a VolumeName,
        qos: Option<Qos>,
    ) -> Doing<'a, Volume>;

    /// Takes the volume away; one that is not there is fine. Refused while an initiator is logged in, and while it
    /// has snapshots unless `with_snapshots`.
    fn delete<'a>(
        &'a self,
        op: &'a Op,
        name: &'a VolumeName,
        policy: DeletePolicy,
        with_snapshots: bool,
    ) -> Doing<'a, ()>;

    /// Admits an initiator to every unit of the volume.
    fn grant<'a>(
        &'a self,
        op: &'a Op,
        name: &'a VolumeName,
        initiator: &'a str,
    ) -> Doing<'a, Volume>;

    /// Makes sure that this initiator is admitted to every unit of the volume and nobody else is, and that nobody else
    /// is logged in any more. When it fails with `grant`, the initiator is not admitted, unless the fabric could not be
    /// told so.
    fn hold<'a>(
        &'a self,
        op: &'a Op,
        name: &'a VolumeName,
        initiator: &'a str,
        terms: Hold,
    ) -> Doing<'a, Volume>;

    /// Does not admit this initiator any more, and touches no other. A volume that is not there is fine.
    fn revoke<'a>(&'a self, op: &'a Op, name: &'a VolumeName, initiator: &'a str) -> Doing<'a, ()>;

    /// Takes a snapshot under this name, or finds the one that was taken under it; `true` when this call took it.
    fn snapshot<'a>(
        &'a self,
        op: &'a Op,
        name: &'a VolumeName,
        snapshot: &'a str,
    ) -> Doing<'a, (Snapshot, bool)>;

    /// All snapshots of the volume, oldest first.
    fn snapshots<'a>(&'a self, op: &'a Op, name: &'a VolumeName) -> Doing<'a, Vec<Snapshot>>;

    /// Snapshots of all volumes, by volume and then by age.
    fn all_snapshots<'a>(&'a self, op: &'a Op) -> Doing<'a, Vec<Snapshot>>;

    /// Takes the snapshot away; one that is not there is fine.
    fn delete_snapshot<'a>(
        &'a self,
        op: &'a Op,
        name: &'a VolumeName,
        snapshot: &'a str,
    ) -> Doing<'a, ()>;

    /// Puts the volume back to what the snapshot holds. Refused while an initiator is logged in.
    fn restore<'a>(
        &'a self,
        op: &'a Op,
        name: &'a VolumeName,
        snapshot: &'a str,
    ) -> Doing<'a, Volume>;

    /// CHAP credentials that a declared volume is used with; a fabric with REST API never tells them.
    fn credentials(&self, name: &VolumeName) -> Option<Chap>;

    /// What is known of it without asking.
    fn facts(&self) -> Facts;

    /// What it was asked, and how that came out.
    fn stats(&self) -> Option<&Stats>;
}

/// The fabric that the configuration names; `driver` tells the fabric who we are.
///
/// # Errors
/// When it cannot be made from the configuration: what is wrong.
pub fn from_config(settings: &config::Fabric, driver: &str) -> Result<Arc<dyn Fabric>, String> {
    if settings.url.is_some() {
        return Ok(Arc::new(datera::Datera::new(settings, driver)?));
    }
    Ok(Arc::new(declared::Declared::new(&settings.volumes)?))
}

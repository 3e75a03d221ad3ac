//! The CSI driver: Kubernetes (or any other caller of CSI 1.x) uses volumes of the fabric.
//!
//! ```text
//! sidecars, kubelet --gRPC, Unix socket--> server --> identity, controller, node
//!                                                       |            |        |
//!                                       calls (ids, deadline, lock)  |       host (file systems, mounts)
//!                                                       v            v        v
//!                                                 berth_api::client --HTTP--> berthd
//! ```
//! The controller keeps nothing; the node keeps one small record a volume. Everything may be killed at any time and called again.

/// A gRPC service: for each method its name, its types, and the function that does it, which gets what the service shares.
macro_rules! service {
    ($trait:ident for $service:ty: $($name:ident $rpc:literal $request:ident -> $response:ident = $handle:path;)*) => {
        #[tonic::async_trait]
        impl $trait for $service {
            $(async fn $name(
                &self,
                request: tonic::Request<$request>,
            ) -> Result<tonic::Response<$response>, tonic::Status> {
                let shared = &self.0;
                let handle = |call, request| $handle(std::sync::Arc::clone(shared), call, request);
                shared.calls().answer($rpc, request, handle).await
            })*
        }
    };
}
use service;

pub mod calls;
pub mod capability;
mod controller;
pub mod host;
mod identity;
pub mod migrate;
pub mod names;
mod node;
pub mod options;
pub mod params;
pub mod proto;
mod registration;
pub mod server;
pub mod size;
pub mod status;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::Duration;

use calls::Calls;
use controller::Published;
use proto::v1::Topology;

/// How the driver is run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Which services are served.
    pub mode: ServiceMode,
    /// Name of the driver; it is kept in every PersistentVolume.
    pub driver_name: String,
    /// Socket that is served.
    pub endpoint: PathBuf,
    /// The same for kubelet, and where it looks for new plugins; nothing: somebody else tells it.
    pub registration: Option<Registration>,
    /// Labels of the nodes that reach the fabric; none: all nodes do.
    pub topology: BTreeMap<String, String>,
    /// Most volumes on a node, 0 for no limit; nothing: what the daemon can take.
    pub volumes_max: Option<i64>,
    /// Folder of what the node service remembers; it is emptied when the machine starts.
    pub run_dir: PathBuf,
    /// When a call is answered at the latest, if the caller does not want it sooner.
    pub answer_within: Duration,
    /// How long an attach may take.
    pub attach_timeout: Duration,
    /// How long a detach may take before the state of the volume is looked at.
    pub detach_timeout: Duration,
    /// How long the fabric may take to end the sessions of a node that is shut out.
    pub unpublish_timeout: Duration,
    /// Calls that may change something at a time.
    pub calls_max: usize,
}

/// Which services are served, besides Identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ServiceMode {
    /// What is done on a node.
    Node,
    /// What concerns the fabric.
    Controller,
    /// Both.
    All,
}

/// How kubelet is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// Socket in kubelet's folder `plugins_registry`.
    pub socket: PathBuf,
    /// Where kubelet finds the driver's socket.
    pub endpoint: PathBuf,
}

/// What the services share.
#[derive(Debug)]
pub struct Driver {
    /// How the driver is run.
    pub settings: Settings,
    calls: Calls,
    published: Published,
}

impl Driver {
    /// A driver of the daemon that `client` reaches.
    #[must_use]
    pub fn new(settings: Settings, client: berth_api::client::Client) -> Self {
        let calls = Calls::new(client, settings.answer_within, settings.calls_max);
        Self {
            settings,
            calls,
            published: Published::default(),
        }
    }

    fn calls(&self) -> &Calls {
        &self.calls
    }

    /// Where volumes can be reached from; nothing: from everywhere.
    fn topology(&self) -> Option<Topology> {
        let segments: HashMap<_, _> = self.settings.topology.clone().into_iter().collect();
        (!segments.is_empty()).then_some(Topology { segments })
    }

    /// Whether nodes of this place reach the fabric: no label of theirs contradicts ours.
    fn is_reachable_from(&self, place: &Topology) -> bool {
        self.settings
            .topology
            .iter()
            .all(|(key, value)| place.segments.get(key).is_none_or(|other| other == value))
    }
}

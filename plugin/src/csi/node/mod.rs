//! The Node service: what is done on the node that uses a volume.
//!
//! ```text
//! stage     attach, look what is there, make or check the file system, mount it at the staging path
//! publish   bind that, or the device node, to the path of a pod
//! ```
//! A volume's record is written before anything is done, and what was really done is seen from the mounts and the daemon: whoever
//! is killed between two steps and called again goes on from there.

mod attached;
mod info;
mod publish;
mod record;
mod stage;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tonic::Status;

use super::Driver;
use super::calls::Call;
use super::host::Host;
use super::names::VolumeId;
use super::proto::v1::node_server::Node;
use super::proto::v1::*;
use super::status;
use record::{Record, Records};

/// The service.
#[derive(Debug, Clone)]
pub(super) struct NodeService(Arc<Shared>);

/// What its methods share.
#[derive(Debug)]
struct Shared {
    driver: Arc<Driver>,
    host: Arc<dyn Host>,
    records: Records,
}

impl NodeService {
    /// A service that keeps its records in the driver's `run_dir`.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub(super) fn new(driver: Arc<Driver>, host: Arc<dyn Host>) -> std::io::Result<Self> {
        let records = Records::open(&driver.settings.run_dir.join("volumes"))?;
        Ok(Self(Arc::new(Shared {
            driver,
            host,
            records,
        })))
    }
}

super::service! { Node for NodeService:
    node_stage_volume "NodeStageVolume" NodeStageVolumeRequest -> NodeStageVolumeResponse = stage::stage;
    node_unstage_volume "NodeUnstageVolume" NodeUnstageVolumeRequest -> NodeUnstageVolumeResponse = stage::unstage;
    node_publish_volume "NodePublishVolume" NodePublishVolumeRequest -> NodePublishVolumeResponse = publish::publish;
    node_unpublish_volume "NodeUnpublishVolume" NodeUnpublishVolumeRequest -> NodeUnpublishVolumeResponse = publish::unpublish;
    node_get_volume_stats "NodeGetVolumeStats" NodeGetVolumeStatsRequest -> NodeGetVolumeStatsResponse = info::stats;
    node_expand_volume "NodeExpandVolume" NodeExpandVolumeRequest -> NodeExpandVolumeResponse = info::expand;
    node_get_capabilities "NodeGetCapabilities" NodeGetCapabilitiesRequest -> NodeGetCapabilitiesResponse = info::capabilities;
    node_get_info "NodeGetInfo" NodeGetInfoRequest -> NodeGetInfoResponse = info::info;
}

impl Shared {
    fn calls(&self) -> &super::calls::Calls {
        self.driver.calls()
    }

    /// What is remembered of a volume.
    fn record(&self, id: &VolumeId) -> Result<Option<Record>, Status> {
        self.records.read(id).map_err(|error| kept(&error))
    }

    /// Remembers, synced.
    fn remember(&self, id: &VolumeId, record: &Record) -> Result<(), Status> {
        self.records.write(id, record).map_err(|error| kept(&error))
    }

    /// Does `work` alone for the volume.
    async fn alone<T: Send + 'static>(
        &self,
        call: &Call,
        id: &VolumeId,
        work: impl Future<Output = Result<T, Status>> + Send + 'static,
    ) -> Result<T, Status> {
        let key = format!("node volume {id}");
        self.driver.calls.alone(call, key, work).await
    }
}

/// The node's own disk or memory failed: what was to be done was not begun.
fn kept(error: &std::io::Error) -> Status {
    Status::unavailable(format!("the record of the volume: {error}"))
}

/// A path that a caller gives: absolute, and no way around.
fn path(field: &'static str, text: &str) -> Result<PathBuf, Status> {
    if text.is_empty() {
        return Err(status::missing(field));
    }
    let path = Path::new(text);
    let odd = |part: std::path::Component<'_>| {
        !matches!(
            part,
            std::path::Component::RootDir | std::path::Component::Normal(_)
        )
    };
    if !path.is_absolute() || path.components().any(odd) || text.contains('\0') {
        return Err(Status::invalid_argument(format!(
            "{field}: {text:?} is not an absolute path"
        )));
    }
    Ok(path.to_owned())
}

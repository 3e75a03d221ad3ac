//! The calls of an orchestrator, in short.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use berth_api::client::Client;
use berth_plugin::csi::proto::v1::controller_client::ControllerClient;
use berth_plugin::csi::proto::v1::identity_client::IdentityClient;
use berth_plugin::csi::proto::v1::node_client::NodeClient;
use berth_plugin::csi::proto::v1::volume_capability::access_mode::Mode;
use berth_plugin::csi::proto::v1::volume_capability::{
    AccessMode, AccessType, BlockVolume, MountVolume,
};
use berth_plugin::csi::proto::v1::*;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use super::connect::channel;
use super::files::Files;
use super::site::Site;

/// 1 GiB.
pub const GIB: i64 = 1 << 30;

/// Whether volumes are used as file systems or as devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// As file systems.
    Mount,
    /// As devices.
    Block,
}

impl Access {
    /// A capability of this kind; file systems are ext4.
    #[must_use]
    pub fn capability(self, mode: Mode) -> VolumeCapability {
        let access_type = match self {
            Self::Mount => AccessType::Mount(MountVolume {
                fs_type: "ext4".to_owned(),
                ..MountVolume::default()
            }),
            Self::Block => AccessType::Block(BlockVolume {}),
        };
        VolumeCapability {
            access_mode: Some(AccessMode { mode: mode.into() }),
            access_type: Some(access_type),
        }
    }
}

/// A site, and how volumes are used on it.
#[derive(Debug)]
pub struct Rig {
    /// The site.
    pub site: Site,
    /// How volumes are used.
    pub access: Access,
    count: AtomicU32,
}

/// The clients of one driver.
#[derive(Debug, Clone)]
pub struct Clients {
    /// Identity.
    pub identity: IdentityClient<Channel>,
    /// Controller.
    pub controller: ControllerClient<Channel>,
    /// Node.
    pub node: NodeClient<Channel>,
}

/// A volume and where it is used on a node.
#[derive(Debug, Clone)]
pub struct Used {
    /// Its identifier.
    pub id: String,
    /// What publishing gave.
    pub context: HashMap<String, String>,
    /// Number of the node.
    pub node: usize,
    /// Where it is staged.
    pub staging: PathBuf,
    /// Where it is published.
    pub target: PathBuf,
    /// How it is used.
    pub capability: VolumeCapability,
}

/// Fails unless a call failed with this code.
///
/// # Errors
/// Says what was answered instead.
pub fn expect<T: std::fmt::Debug>(
    what: &str,
    code: Code,
    answer: Result<Response<T>, Status>,
) -> Result<Status> {
    match answer {
        Err(status) if status.code() == code => {
            ensure!(
                !status.message().is_empty(),
                "{what}: {code:?} without a word"
            );
            ensure!(status.details().is_empty(), "{what}: details");
            Ok(status)
        }
        other => bail!("{what}: expected {code:?}, got {other:?}"),
    }
}

impl Rig {
    /// A rig on this site.
    #[must_use]
    pub fn new(site: Site, access: Access) -> Self {
        Self {
            site,
            access,
            count: AtomicU32::new(0),
        }
    }

    /// A name that no other call has given.
    #[must_use]
    pub fn name(&self, word: &str) -> String {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let access = match self.access {
            Access::Mount => "mount",
            Access::Block => "block",
        };
        format!("{word}-{access}-{count}")
    }

    /// Clients of the driver of a node.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn clients(&self, node: usize) -> Result<Clients> {
        let channel = channel(&self.site.nodes[node].socket()).await?;
        Ok(Clients {
            identity: IdentityClient::new(channel.clone()),
            controller: ControllerClient::new(channel.clone()),
            node: NodeClient::new(channel),
        })
    }

    /// The daemon of a node, behind the driver's back.
    #[must_use]
    pub fn daemon(&self, node: usize) -> Client {
        Client::unix(self.site.nodes[node].berthd.api_socket())
    }

    /// How the paths of a node are reached.
    #[must_use]
    pub fn files(&self, node: usize) -> Files {
        self.site.nodes[node].files()
    }

    /// The identifier of a node.
    ///
    /// # Errors
    /// Those of the call.
    pub async fn node_id(&self, node: usize) -> Result<String> {
        let mut clients = self.clients(node).await?;
        let info = clients.node.node_get_info(NodeGetInfoRequest {}).await?;
        Ok(info.into_inner().node_id)
    }

    /// A capability of the rig's kind.
    #[must_use]
    pub fn capability(&self, mode: Mode) -> VolumeCapability {
        self.access.capability(mode)
    }

    /// What kubelet asks for a ReadWriteOnce volume.
    #[must_use]
    pub fn writer(&self) -> VolumeCapability {
        self.capability(Mode::SingleNodeMultiWriter)
    }

    /// A request for a volume.
    #[must_use]
    pub fn wish(&self, name: &str, gib: i64) -> CreateVolumeRequest {
        CreateVolumeRequest {
            name: name.to_owned(),
            capacity_range: Some(CapacityRange {
                required_bytes: gib * GIB,
                limit_bytes: 0,
            }),
            volume_capabilities: vec![self.writer()],
            parameters: HashMap::from([("replicas".to_owned(), "1".to_owned())]),
            ..CreateVolumeRequest::default()
        }
    }

    /// Makes a volume of 1 GiB.
    ///
    /// # Errors
    /// Those of the call.
    pub async fn create(&self, word: &str) -> Result<Volume> {
        let wish = self.wish(&self.name(word), 1);
        let mut clients = self.clients(0).await?;
        let made = clients.controller.create_volume(wish).await?.into_inner();
        made.volume.context("an answer without a volume")
    }

    /// Publishes to a node; nothing is done on it yet.
    ///
    /// # Errors
    /// Those of the call.
    pub async fn publish(
        &self,
        id: &str,
        node: usize,
        capability: VolumeCapability,
    ) -> Result<Used, Status> {
        let failed = |error: anyhow::Error| Status::internal(format!("{error:#}"));
        let node_id = self.node_id(node).await.map_err(failed)?;
        let mut clients = self.clients(node).await.map_err(failed)?;
        let request = ControllerPublishVolumeRequest {
            volume_id: id.to_owned(),
            node_id,
            volume_capability: Some(capability.clone()),
            ..ControllerPublishVolumeRequest::default()
        };
        let published = clients
            .controller
            .controller_publish_volume(request)
            .await?;
        let dir = self.site.nodes[node].dir();
        let word = id.replace('/', "_");
        let staging = dir.join(format!("staging-{word}"));
        std::fs::create_dir_all(&staging).map_err(|error| failed(error.into()))?;
        Ok(Used {
            id: id.to_owned(),
            context: published.into_inner().publish_context,
            node,
            target: dir.join(format!("target-{word}")),
            staging,
            capability,
        })
    }

    /// Publishes, stages and publishes on the node.
    ///
    /// # Errors
    /// Those of the calls.
    pub async fn mount(&self, id: &str, node: usize) -> Result<Used> {
        let used = self.publish(id, node, self.writer()).await?;
        let mut clients = self.clients(node).await?;
        clients.node.node_stage_volume(used.stage()).await?;
        clients.node.node_publish_volume(used.show()).await?;
        Ok(used)
    }

    /// Undoes what [`Self::mount`] did.
    ///
    /// # Errors
    /// Those of the calls.
    pub async fn unmount(&self, used: &Used) -> Result<()> {
        let mut clients = self.clients(used.node).await?;
        clients.node.node_unpublish_volume(used.hide()).await?;
        clients.node.node_unstage_volume(used.unstage()).await?;
        clients
            .controller
            .controller_unpublish_volume(self.unpublish(used).await?)
            .await?;
        Ok(())
    }

    /// The request that takes a node's right away.
    ///
    /// # Errors
    /// When the node does not say who it is.
    pub async fn unpublish(&self, used: &Used) -> Result<ControllerUnpublishVolumeRequest> {
        Ok(ControllerUnpublishVolumeRequest {
            volume_id: used.id.clone(),
            node_id: self.node_id(used.node).await?,
            ..ControllerUnpublishVolumeRequest::default()
        })
    }

    /// Deletes a volume.
    ///
    /// # Errors
    /// Those of the call.
    pub async fn delete(&self, id: &str) -> Result<(), Status> {
        let failed = |error: anyhow::Error| Status::internal(format!("{error:#}"));
        let mut clients = self.clients(0).await.map_err(failed)?;
        clients.controller.delete_volume(delete(id)).await?;
        Ok(())
    }

    /// The volumes that the driver lists, on one page.
    ///
    /// # Errors
    /// Those of the call.
    pub async fn list(&self) -> Result<Vec<list_volumes_response::Entry>> {
        let mut clients = self.clients(0).await?;
        let list = clients
            .controller
            .list_volumes(ListVolumesRequest::default())
            .await?;
        Ok(list.into_inner().entries)
    }
}

/// The request that deletes a volume.
#[must_use]
pub fn delete(id: &str) -> DeleteVolumeRequest {
    DeleteVolumeRequest {
        volume_id: id.to_owned(),
        ..DeleteVolumeRequest::default()
    }
}

impl Used {
    fn text(path: &std::path::Path) -> String {
        path.to_string_lossy().into_owned()
    }

    /// NodeStageVolume.
    #[must_use]
    pub fn stage(&self) -> NodeStageVolumeRequest {
        NodeStageVolumeRequest {
            volume_id: self.id.clone(),
            publish_context: self.context.clone(),
            staging_target_path: Self::text(&self.staging),
            volume_capability: Some(self.capability.clone()),
            ..NodeStageVolumeRequest::default()
        }
    }

    /// NodePublishVolume.
    #[must_use]
    pub fn show(&self) -> NodePublishVolumeRequest {
        NodePublishVolumeRequest {
            volume_id: self.id.clone(),
            publish_context: self.context.clone(),
            staging_target_path: Self::text(&self.staging),
            target_path: Self::text(&self.target),
            volume_capability: Some(self.capability.clone()),
            ..NodePublishVolumeRequest::default()
        }
    }

    /// NodeUnpublishVolume.
    #[must_use]
    pub fn hide(&self) -> NodeUnpublishVolumeRequest {
        NodeUnpublishVolumeRequest {
            volume_id: self.id.clone(),
            target_path: Self::text(&self.target),
        }
    }

    /// NodeUnstageVolume.
    #[must_use]
    pub fn unstage(&self) -> NodeUnstageVolumeRequest {
        NodeUnstageVolumeRequest {
            volume_id: self.id.clone(),
            staging_target_path: Self::text(&self.staging),
        }
    }

    /// NodeGetVolumeStats at the target.
    #[must_use]
    pub fn stats(&self) -> NodeGetVolumeStatsRequest {
        NodeGetVolumeStatsRequest {
            volume_id: self.id.clone(),
            volume_path: Self::text(&self.target),
            ..NodeGetVolumeStatsRequest::default()
        }
    }
}

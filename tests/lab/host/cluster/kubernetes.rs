//! The calls that Kubernetes makes of a CSI driver, in its order: the provisioner and the attacher to the controller,
//! kubelet to a node.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use berth_plugin::csi::proto::v1::controller_client::ControllerClient;
use berth_plugin::csi::proto::v1::node_client::NodeClient;
use berth_plugin::csi::proto::v1::volume_capability::access_mode::Mode;
use berth_plugin::csi::proto::v1::{
    CapacityRange, ControllerPublishVolumeRequest, ControllerUnpublishVolumeRequest,
    CreateVolumeRequest, NodeGetInfoRequest, Volume,
};
use berth_tests::csi::connect;
use berth_tests::csi::rig::{Access, Used, delete};
use berth_tests::guest::control::{CSI_PORT, Node};
use tokio::runtime::Runtime;
use tonic::transport::Channel;
use tonic::{Response, Status};

use super::DEADLINE;

/// Where kubelet has its folders, in a guest.
const KUBELET: &str = "/run/lab/kubelet";

/// The clients of a cluster's drivers.
#[derive(Debug)]
pub(crate) struct Kubernetes {
    // The channels live in the runtime.
    controller: ControllerClient<Channel>,
    kubelets: Vec<Kubelet>,
    runtime: Runtime,
}

#[derive(Debug)]
struct Kubelet {
    node: Arc<Node>,
    client: NodeClient<Channel>,
    id: String,
}

impl Kubernetes {
    /// Connects to the driver at `controller` and to those of the nodes.
    pub(crate) fn connect(controller: &Path, nodes: &[Arc<Node>]) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let controller = runtime.block_on(connect::channel(controller))?;
        let join = |node: &Arc<Node>| {
            let dialled = Arc::clone(node);
            runtime.block_on(async {
                let dial = move || dialled.stream(CSI_PORT);
                let mut client = NodeClient::new(connect::channel_over(dial).await?);
                let info = client.node_get_info(NodeGetInfoRequest {}).await?;
                anyhow::Ok(Kubelet {
                    node: Arc::clone(node),
                    client,
                    id: info.into_inner().node_id,
                })
            })
        };
        let kubelets = nodes.iter().map(join).collect::<Result<_>>()?;
        Ok(Self {
            controller: ControllerClient::new(controller),
            kubelets,
            runtime,
        })
    }

    /// A claim is made a volume, with the parameters of its StorageClass and at least so many bytes.
    pub(crate) fn provision(
        &self,
        name: &str,
        bytes: i64,
        parameters: &[(&str, &str)],
        access: Access,
    ) -> Result<Volume> {
        let parameters = parameters.iter();
        let request = CreateVolumeRequest {
            name: name.to_owned(),
            capacity_range: Some(CapacityRange {
                required_bytes: bytes,
                limit_bytes: 0,
            }),
            volume_capabilities: vec![access.capability(Mode::SingleNodeMultiWriter)],
            parameters: parameters
                .map(|&(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
            ..CreateVolumeRequest::default()
        };
        let mut controller = self.controller.clone();
        let made = self.call("CreateVolume", name, controller.create_volume(request))?;
        made.volume.context("an answer without a volume")
    }

    /// A claim and its volume are deleted.
    pub(crate) fn delete(&self, volume: &str) -> Result<()> {
        let mut controller = self.controller.clone();
        let deleting = controller.delete_volume(delete(volume));
        self.call("DeleteVolume", volume, deleting).map(drop)
    }

    /// A pod that uses the volume is placed on a node: attached, staged and published there.
    pub(crate) fn place(&self, volume: &str, node: usize, access: Access) -> Result<Used> {
        let used = self.attach(volume, node, access)?;
        self.mount(&used)?;
        Ok(used)
    }

    /// That pod ends, and nothing of the volume is left on the node.
    pub(crate) fn remove(&self, used: &Used) -> Result<()> {
        self.unmount(used)?;
        self.detach(used)
    }

    /// The attacher's part of placing a pod.
    fn attach(&self, volume: &str, node: usize, access: Access) -> Result<Used> {
        let capability = access.capability(Mode::SingleNodeMultiWriter);
        let request = ControllerPublishVolumeRequest {
            volume_id: volume.to_owned(),
            node_id: self.kubelets[node].id.clone(),
            volume_capability: Some(capability.clone()),
            ..ControllerPublishVolumeRequest::default()
        };
        let mut controller = self.controller.clone();
        let publishing = controller.controller_publish_volume(request);
        let answer = self.call(
            "ControllerPublishVolume",
            &format!("{volume}, {node}"),
            publishing,
        )?;
        Ok(Used {
            id: volume.to_owned(),
            node,
            context: answer.publish_context,
            capability,
            staging: format!("{KUBELET}/staging/{volume}").into(),
            target: format!("{KUBELET}/pods/{volume}").into(),
        })
    }

    /// The attacher's part of a pod's end; also without kubelet's, when its node does not answer.
    pub(crate) fn detach(&self, used: &Used) -> Result<()> {
        let request = ControllerUnpublishVolumeRequest {
            volume_id: used.id.clone(),
            node_id: self.kubelets[used.node].id.clone(),
            ..ControllerUnpublishVolumeRequest::default()
        };
        let mut controller = self.controller.clone();
        let unpublishing = controller.controller_unpublish_volume(request);
        let what = format!("{}, {}", used.id, used.node);
        self.call("ControllerUnpublishVolume", &what, unpublishing)
            .map(drop)
    }

    /// Kubelet's part of placing a pod.
    fn mount(&self, used: &Used) -> Result<()> {
        let Kubelet { node, client, .. } = &self.kubelets[used.node];
        let mut client = client.clone();
        let (staging, pods) = (used.staging.to_string_lossy(), format!("{KUBELET}/pods"));
        node.run("mkdir", &["-p", &staging, &pods], DEADLINE)?;
        let staging = client.node_stage_volume(used.stage());
        self.call("NodeStageVolume", &used.id, staging)?;
        let showing = client.node_publish_volume(used.show());
        self.call("NodePublishVolume", &used.id, showing).map(drop)
    }

    /// Kubelet's part of a pod's end.
    pub(crate) fn unmount(&self, used: &Used) -> Result<()> {
        let mut client = self.kubelets[used.node].client.clone();
        let hiding = client.node_unpublish_volume(used.hide());
        self.call("NodeUnpublishVolume", &used.id, hiding)?;
        let unstaging = client.node_unstage_volume(used.unstage());
        self.call("NodeUnstageVolume", &used.id, unstaging)
            .map(drop)
    }

    /// Waits for the answer of a driver; a refusal names the call and what it was about.
    fn call<T>(
        &self,
        name: &str,
        about: &str,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T> {
        let answer = self.runtime.block_on(answer);
        let answer = answer.with_context(|| format!("{name} {about}"))?;
        Ok(answer.into_inner())
    }
}

//! A volume that is made, staged and published by the calls of the controller's sidecars and of kubelet, and looked at from where
//! kubelet and pods would.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use berth_plugin::csi::proto::v1::controller_client::ControllerClient;
use berth_plugin::csi::proto::v1::node_client::NodeClient;
use berth_plugin::csi::proto::v1::volume_capability::access_mode::Mode;
use berth_plugin::csi::proto::v1::{
    CapacityRange, ControllerPublishVolumeRequest, ControllerUnpublishVolumeRequest,
    CreateVolumeRequest, NodeGetInfoRequest,
};
use berth_tests::csi::connect::channel;
use berth_tests::csi::rig::{Access, GIB, Used, delete};
use berth_tests::process::{Process, wait_for};
use berth_tests::tool;
use tempfile::TempDir;
use tonic::transport::Channel;

use super::{SOCKET, journal};
use crate::machine::DEADLINE;

/// Name of the PersistentVolume.
const NAME: &str = "pvc-lab";
/// Where kubelet of 1.26 and later stages it.
const STAGING: &str = "/var/lib/kubelet/plugins/kubernetes.io/csi/csi.berth.io/lab/globalmount";
/// Where it publishes it, to a pod.
const TARGET: &str = "/var/lib/kubelet/pods/lab/volumes/kubernetes.io~csi/pvc-lab/mount";
/// A file on the volume.
const FILE: &str = "words";

/// A volume in use.
#[derive(Debug)]
pub(crate) struct InUse {
    used: Used,
    controller: Controller,
}

impl InUse {
    /// Makes the volume, and uses it.
    pub(super) fn begin() -> Result<Self> {
        let volume = block_on(Self::publish())?;
        fs::write(volume.used.target.join(FILE), "first")?;
        Ok(volume)
    }

    /// Uses it once more on a machine that has rebooted meanwhile: what was written is there.
    pub(super) fn begin_again() -> Result<Self> {
        for path in [STAGING, TARGET] {
            ensure!(
                !is_mounted(path)?,
                "{path} is mounted before it was asked for"
            );
        }
        let volume = block_on(Self::publish())?;
        let there = fs::read_to_string(volume.used.target.join(FILE))?;
        ensure!(there == "before the reboot", "after the reboot: {there:?}");
        println!("volume used again after the reboot");
        Ok(volume)
    }

    /// Fails unless PID 1 has both mounts, and the file is what was written last; writes it anew.
    pub(crate) fn check(&self, when: &str) -> Result<()> {
        for path in [STAGING, TARGET] {
            ensure!(
                is_mounted(path)?,
                "{when}: {path} is not mounted\n{}",
                journal()
            );
        }
        let staged = Path::new(STAGING).join(FILE);
        let before = fs::read_to_string(&staged).context(when.to_owned())?;
        let published = self.used.target.join(FILE);
        fs::write(&published, when)?;
        fs::File::open(&published)?.sync_all()?;
        let after = fs::read_to_string(&staged)?;
        ensure!(
            after == when && before != when,
            "{when}: {before:?}, then {after:?}"
        );
        block_on(async {
            let mut node = NodeClient::new(channel(Path::new(SOCKET)).await?);
            let stats = node
                .node_get_volume_stats(self.used.stats())
                .await?
                .into_inner();
            let total = stats.usage.first().map_or(0, |usage| usage.total);
            ensure!(total > GIB / 2, "{when}: {stats:?}");
            Ok(())
        })
    }

    /// Undoes all of it, down to the volume on the fabric.
    pub(super) fn end(mut self) -> Result<()> {
        let used = &self.used;
        block_on(async {
            let mut node = NodeClient::new(channel(Path::new(SOCKET)).await?);
            node.node_unpublish_volume(used.hide()).await?;
            node.node_unstage_volume(used.unstage()).await?;
            for path in [STAGING, TARGET] {
                ensure!(!is_mounted(path)?, "{path} is mounted");
            }
            let node_id = node_id(&mut node).await?;
            let mut controller = self.controller.client().await?;
            let request = ControllerUnpublishVolumeRequest {
                volume_id: used.id.clone(),
                node_id,
                ..ControllerUnpublishVolumeRequest::default()
            };
            controller.controller_unpublish_volume(request).await?;
            controller.delete_volume(delete(&used.id)).await?;
            Ok(())
        })
        .with_context(journal)?;
        let status = self
            .controller
            .process
            .stop(rustix::process::Signal::TERM, DEADLINE)?;
        ensure!(status.success(), "the controller: {status}");
        println!("volume unpublished, unstaged, deleted");
        Ok(())
    }

    async fn publish() -> Result<Self> {
        let controller = Controller::start()?;
        let mut client = controller.client().await?;
        let capability = Access::Mount.capability(Mode::SingleNodeWriter);
        let request = CreateVolumeRequest {
            name: NAME.to_owned(),
            capacity_range: Some(CapacityRange {
                required_bytes: GIB,
                limit_bytes: 0,
            }),
            volume_capabilities: vec![capability.clone()],
            parameters: HashMap::from([("replicas".to_owned(), "1".to_owned())]),
            ..CreateVolumeRequest::default()
        };
        let made = client.create_volume(request).await.with_context(journal)?;
        let id = made.into_inner().volume.context("no volume")?.volume_id;
        let mut node = NodeClient::new(channel(Path::new(SOCKET)).await?);
        let request = ControllerPublishVolumeRequest {
            volume_id: id.clone(),
            node_id: node_id(&mut node).await?,
            volume_capability: Some(capability.clone()),
            ..ControllerPublishVolumeRequest::default()
        };
        let published = client.controller_publish_volume(request).await;
        let used = Used {
            id,
            context: published
                .with_context(journal)?
                .into_inner()
                .publish_context,
            node: 0,
            staging: STAGING.into(),
            target: TARGET.into(),
            capability,
        };
        // What kubelet makes: the staging path, and the folder of the target.
        fs::create_dir_all(STAGING)?;
        fs::create_dir_all(used.target.parent().context("in a folder")?)?;
        let staged = node.node_stage_volume(used.stage()).await;
        staged.with_context(journal)?;
        let published = node.node_publish_volume(used.show()).await;
        published.with_context(journal)?;
        Ok(Self { used, controller })
    }
}

/// Both mounts were undone before the daemon stopped: what a machine's journal says of its shutdown, at its end.
pub(crate) fn check_shutdown(said: &str) -> Result<()> {
    let stopping = said
        .rfind("Stopping berthd.service")
        .context("berthd was not stopped")?;
    for path in [STAGING, TARGET] {
        let words = ["--path", "--suffix=mount", path];
        let unit = tool::run("systemd-escape", &words, DEADLINE)?.text;
        let unmounted = said.rfind(&format!("Unmounted {}", unit.trim()));
        ensure!(
            unmounted.is_some_and(|at| at < stopping),
            "{path} was not unmounted before berthd was stopped"
        );
    }
    Ok(())
}

/// Whether PID 1 has something mounted there.
fn is_mounted(path: &str) -> Result<bool> {
    let mounts = fs::read_to_string("/proc/1/mountinfo")?;
    Ok(mounts
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(path)))
}

async fn node_id(node: &mut NodeClient<Channel>) -> Result<String> {
    let info = node.node_get_info(NodeGetInfoRequest {}).await?;
    Ok(info.into_inner().node_id)
}

fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work)
}

/// The controller's driver, which a cluster has in a pod.
#[derive(Debug)]
struct Controller {
    process: Process,
    // Last: the folder goes after the process.
    dir: TempDir,
}

impl Controller {
    fn start() -> Result<Self> {
        let dir = TempDir::with_prefix("controller-")?;
        let endpoint = format!("unix://{}", dir.path().join("csi.sock").display());
        let words = ["--mode", "controller", "--csi-endpoint", &endpoint];
        let program = Path::new("/usr/bin/berth-csi");
        let log = dir.path().join("log");
        let process = Process::start("controller", program, words, &[], &log)?;
        wait_for("the controller to serve", DEADLINE, || {
            Ok(process.log().contains(": serving ").then_some(()))
        })
        .with_context(|| process.log())?;
        Ok(Self { process, dir })
    }

    async fn client(&self) -> Result<ControllerClient<Channel>> {
        let channel = channel(&self.dir.path().join("csi.sock")).await?;
        Ok(ControllerClient::new(channel))
    }
}

//! Whole lives of volumes, with processes that die on the way.

use std::time::Duration;

use anyhow::{Result, ensure};
use berth_plugin::csi::proto::v1::*;

use super::concurrency::persist;
use crate::csi::files::data;
use crate::csi::rig::{Rig, Used};

/// A volume goes from node to node with what is on it, and the node that it left has nothing of it.
pub(super) async fn move_between_nodes(rig: &mut Rig) -> Result<()> {
    let volume = rig.create("move").await?;
    let mut last: Option<String> = None;
    for round in 0..4 {
        let node = round % 2;
        let used = rig.mount(&volume.volume_id, node).await?;
        let files = rig.files(node);
        if let Some(last) = &last {
            ensure!(files.read(&used.target)? == data(last), "round {round}");
        }
        let word = format!("round {round}");
        files.write(&used.target, &data(&word))?;
        last = Some(word);
        rig.unmount(&used).await?;
        ensure!(
            rig.daemon(node).attachments().await?.is_empty(),
            "round {round}: left attached"
        );
    }
    rig.delete(&volume.volume_id).await?;
    Ok(())
}

/// What dies between two calls.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Driver,
    Daemon,
}

impl Victim {
    fn die(self, rig: &mut Rig) -> Result<()> {
        match self {
            Self::Driver => rig.site.nodes[0].kill_driver(),
            Self::Daemon => rig.site.nodes[0].kill_daemon(),
        }
    }
}

/// The driver is killed between any two calls, each of which is made once before and once after.
pub(super) async fn driver_killed_between_calls(rig: &mut Rig) -> Result<()> {
    life_with(rig, Victim::Driver).await
}

/// The same with the daemon.
pub(super) async fn daemon_killed_between_calls(rig: &mut Rig) -> Result<()> {
    life_with(rig, Victim::Daemon).await
}

async fn life_with(rig: &mut Rig, victim: Victim) -> Result<()> {
    let wish = rig.wish(&rig.name("killed"), 1);
    let mut id = String::new();
    for _ in 0..2 {
        let made = rig
            .clients(0)
            .await?
            .controller
            .create_volume(wish.clone())
            .await?
            .into_inner();
        let made = made.volume.unwrap_or_default().volume_id;
        ensure!(id.is_empty() || id == made, "{id} and {made}");
        id = made;
        victim.die(rig)?;
    }
    let mut contexts = Vec::new();
    for _ in 0..2 {
        contexts.push(rig.publish(&id, 0, rig.writer()).await?.context);
        victim.die(rig)?;
    }
    ensure!(contexts[0] == contexts[1], "{contexts:?}");
    let used = rig.publish(&id, 0, rig.writer()).await?;
    for _ in 0..2 {
        rig.clients(0)
            .await?
            .node
            .node_stage_volume(used.stage())
            .await?;
        victim.die(rig)?;
    }
    for _ in 0..2 {
        rig.clients(0)
            .await?
            .node
            .node_publish_volume(used.show())
            .await?;
        victim.die(rig)?;
    }
    let files = rig.files(0);
    files.write(&used.target, &data("kept"))?;
    victim.die(rig)?;
    ensure!(files.read(&used.target)? == data("kept"), "lost");
    grow(rig, &used, victim).await?;
    ensure!(files.read(&used.target)? == data("kept"), "lost");
    for _ in 0..2 {
        rig.clients(0)
            .await?
            .node
            .node_unpublish_volume(used.hide())
            .await?;
        victim.die(rig)?;
    }
    for _ in 0..2 {
        rig.clients(0)
            .await?
            .node
            .node_unstage_volume(used.unstage())
            .await?;
        victim.die(rig)?;
    }
    for _ in 0..2 {
        let unpublish = rig.unpublish(&used).await?;
        rig.clients(0)
            .await?
            .controller
            .controller_unpublish_volume(unpublish)
            .await?;
        victim.die(rig)?;
    }
    let moved = rig.mount(&id, 1).await?;
    ensure!(
        rig.files(1).read(&moved.target)? == data("kept"),
        "lost on the way"
    );
    rig.unmount(&moved).await?;
    for _ in 0..2 {
        rig.delete(&id).await?;
        victim.die(rig)?;
    }
    Ok(())
}

async fn grow(rig: &mut Rig, used: &Used, victim: Victim) -> Result<()> {
    let range = Some(CapacityRange {
        required_bytes: 2 << 30,
        limit_bytes: 0,
    });
    for _ in 0..2 {
        let request = ControllerExpandVolumeRequest {
            volume_id: used.id.clone(),
            capacity_range: range,
            ..ControllerExpandVolumeRequest::default()
        };
        rig.clients(0)
            .await?
            .controller
            .controller_expand_volume(request)
            .await?;
        victim.die(rig)?;
        let request = NodeExpandVolumeRequest {
            volume_id: used.id.clone(),
            volume_path: used.show().target_path,
            capacity_range: range,
            ..NodeExpandVolumeRequest::default()
        };
        let grown = rig
            .clients(0)
            .await?
            .node
            .node_expand_volume(request)
            .await?
            .into_inner();
        ensure!(grown.capacity_bytes == 2 << 30, "{grown:?}");
        victim.die(rig)?;
    }
    Ok(())
}

/// The driver is killed a little later in each call, at some moment of its work; the call is made again, and all is well.
pub(super) async fn driver_killed_during_calls(rig: &mut Rig) -> Result<()> {
    for after_ms in [1, 3, 7, 15, 30, 60] {
        let after = Duration::from_millis(after_ms);
        let volume = rig.create("cut").await?;
        let used = rig.publish(&volume.volume_id, 0, rig.writer()).await?;
        for step in ["stage", "publish", "unpublish", "unstage"] {
            let node = rig.clients(0).await?.node;
            let (mut cut, what) = (node.clone(), used.clone());
            let call = tokio::spawn(async move { step_of(&mut cut, step, &what).await });
            // Not a wait for something: the moment of the kill is what differs.
            tokio::time::sleep(after).await;
            rig.site.nodes[0].kill_driver()?;
            // Answered or cut off.
            let _ = call.await?;
            let node = rig.clients(0).await?.node;
            persist(|| {
                let (mut node, used) = (node.clone(), used.clone());
                async move { step_of(&mut node, step, &used).await }
            })
            .await
            .map_err(|status| {
                anyhow::anyhow!("{step} again, killed after {after_ms} ms: {status:?}")
            })?;
            if step == "publish" {
                let files = rig.files(0);
                files.write(&used.target, &data("cut"))?;
                ensure!(files.read(&used.target)? == data("cut"), "something else");
            }
        }
        ensure!(
            rig.daemon(0).attachments().await?.is_empty(),
            "left attached"
        );
        ensure!(
            !used.target.exists() && !rig.files(0).is_mounted(&used.staging)?,
            "left mounted"
        );
        rig.unmount(&used).await?;
        rig.delete(&volume.volume_id).await?;
    }
    Ok(())
}

async fn step_of(
    node: &mut node_client::NodeClient<tonic::transport::Channel>,
    step: &str,
    used: &Used,
) -> Result<tonic::Response<()>, tonic::Status> {
    let done = match step {
        "stage" => node.node_stage_volume(used.stage()).await.map(drop),
        "publish" => node.node_publish_volume(used.show()).await.map(drop),
        "unpublish" => node.node_unpublish_volume(used.hide()).await.map(drop),
        _ => node.node_unstage_volume(used.unstage()).await.map(drop),
    };
    done.map(tonic::Response::new)
}

/// A driver that is stopped in order takes its socket away, leaves mounts alone, and is there again.
pub(super) async fn stopped_in_order(rig: &mut Rig) -> Result<()> {
    let volume = rig.create("stopped").await?;
    let used = rig.mount(&volume.volume_id, 0).await?;
    let files = rig.files(0);
    files.write(&used.target, &data("before"))?;
    rig.site.nodes[0].restart_driver()?;
    ensure!(files.read(&used.target)? == data("before"), "lost");
    rig.unmount(&used).await?;
    rig.delete(&volume.volume_id).await?;
    Ok(())
}

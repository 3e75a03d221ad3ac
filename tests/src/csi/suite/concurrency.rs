//! Many calls at once.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tonic::{Code, Response, Status};

use crate::csi::files::data;
use crate::csi::rig::{Rig, Used};

/// For a call that is told to come again.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two of its tries; a caller backs off as well.
const BACK_OFF: Duration = Duration::from_millis(50);

/// Repeats a call as an orchestrator does, while it is told that another one is under way.
///
/// # Errors
/// What the call gives at last.
pub(super) async fn persist<T, F>(mut call: impl FnMut() -> F) -> Result<T, Status>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let until = Instant::now() + PATIENCE;
    loop {
        match call().await {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(status)
                if matches!(
                    status.code(),
                    Code::Aborted | Code::Unavailable | Code::DeadlineExceeded
                ) && Instant::now() < until =>
            {
                tokio::time::sleep(BACK_OFF).await;
            }
            Err(status) => return Err(status),
        }
    }
}

/// Sixteen calls with one name, through two drivers, make one volume.
pub(super) async fn one_name(rig: &mut Rig) -> Result<()> {
    let before = rig.list().await?.len();
    let wish = rig.wish(&rig.name("at-once"), 1);
    let clients = [rig.clients(0).await?, rig.clients(1).await?];
    let calls = (0..16).map(|number| {
        let (mut c, wish) = (clients[number % 2].controller.clone(), wish.clone());
        tokio::spawn(async move { c.create_volume(wish).await })
    });
    let calls: Vec<_> = calls.collect();
    let mut ids = Vec::new();
    for call in calls {
        match call.await? {
            Ok(answer) => ids.extend(answer.into_inner().volume.map(|volume| volume.volume_id)),
            Err(status) => ensure!(status.code() == Code::Aborted, "{status:?}"),
        }
    }
    ids.sort();
    ids.dedup();
    ensure!(ids.len() == 1, "{ids:?}");
    ensure!(rig.list().await?.len() == before + 1, "not one volume");
    rig.delete(&ids[0]).await?;
    Ok(())
}

/// Eight volumes go through their whole lives at once: no lock but that of each volume.
pub(super) async fn many_volumes(rig: &mut Rig) -> Result<()> {
    let node_id = rig.node_id(0).await?;
    let clients = rig.clients(0).await?;
    let lives = (0..8).map(|_| {
        let (mut clients, files) = (clients.clone(), rig.files(0));
        let (wish, node_id) = (rig.wish(&rig.name("life"), 1), node_id.clone());
        let (capability, dir) = (rig.writer(), rig.site.nodes[0].dir().to_owned());
        tokio::spawn(async move {
            use berth_plugin::csi::proto::v1::*;
            let made = clients.controller.create_volume(wish).await?.into_inner();
            let id = made.volume.unwrap_or_default().volume_id;
            let publish = ControllerPublishVolumeRequest {
                volume_id: id.clone(),
                node_id: node_id.clone(),
                volume_capability: Some(capability.clone()),
                ..ControllerPublishVolumeRequest::default()
            };
            let published = clients
                .controller
                .controller_publish_volume(publish)
                .await?;
            let used = Used {
                context: published.into_inner().publish_context,
                node: 0,
                staging: dir.join(format!("staging-{id}")),
                target: dir.join(format!("target-{id}")),
                capability,
                id,
            };
            std::fs::create_dir_all(&used.staging)?;
            clients.node.node_stage_volume(used.stage()).await?;
            clients.node.node_publish_volume(used.show()).await?;
            files.write(&used.target, &data(&used.id))?;
            ensure!(
                files.read(&used.target)? == data(&used.id),
                "{}: another's data",
                used.id
            );
            clients.node.node_unpublish_volume(used.hide()).await?;
            clients.node.node_unstage_volume(used.unstage()).await?;
            let unpublish = ControllerUnpublishVolumeRequest {
                volume_id: used.id.clone(),
                node_id,
                ..ControllerUnpublishVolumeRequest::default()
            };
            clients
                .controller
                .controller_unpublish_volume(unpublish)
                .await?;
            clients
                .controller
                .delete_volume(crate::csi::rig::delete(&used.id))
                .await?;
            anyhow::Ok(())
        })
    });
    for life in lives.collect::<Vec<_>>() {
        life.await??;
    }
    Ok(())
}

/// Calls for one volume that come at once are answered or told to come again, and all come to the same end.
pub(super) async fn one_volume(rig: &mut Rig) -> Result<()> {
    let volume = rig.create("busy").await?;
    let used = rig.publish(&volume.volume_id, 0, rig.writer()).await?;
    let clients = rig.clients(0).await?;
    let calls = (0..8).map(|number| {
        let (node, mut used) = (clients.node.clone(), used.clone());
        used.target = used.target.with_extension(number.to_string());
        tokio::spawn(async move {
            persist(|| {
                let (mut node, stage) = (node.clone(), used.stage());
                async move { node.node_stage_volume(stage).await }
            })
            .await?;
            persist(|| {
                let (mut node, show) = (node.clone(), used.show());
                async move { node.node_publish_volume(show).await }
            })
            .await?;
            Ok::<_, Status>(used)
        })
    });
    let mut targets = Vec::new();
    for call in calls.collect::<Vec<_>>() {
        targets.push(call.await??);
    }
    let files = rig.files(0);
    files.write(&targets[0].target, &data("shared"))?;
    for used in &targets {
        ensure!(files.read(&used.target)? == data("shared"), "{used:?}");
    }
    let calls = targets.iter().map(|used| {
        let (node, used) = (clients.node.clone(), used.clone());
        tokio::spawn(async move {
            persist(|| {
                let (mut node, hide) = (node.clone(), used.hide());
                async move { node.node_unpublish_volume(hide).await }
            })
            .await
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await??;
    }
    rig.unmount(&used).await?;
    rig.delete(&volume.volume_id).await?;
    Ok(())
}

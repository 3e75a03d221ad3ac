//! Nobody writes to a volume that is another's.

use anyhow::{Result, ensure};
use berth_api::types::{AttachmentPatch, RecoveryTimeout};
use berth_plugin::csi::proto::v1::*;
use tonic::Code;

use crate::csi::files::data;
use crate::csi::rig::{Rig, expect};

/// A second node is refused, with the name of the first, also when it tries on its own.
pub(super) async fn one_node(rig: &mut Rig) -> Result<()> {
    let volume = rig.create("one").await?;
    let used = rig.mount(&volume.volume_id, 0).await?;
    let status = rig.publish(&volume.volume_id, 1, rig.writer()).await;
    let status = status.expect_err("published to a second node");
    ensure!(status.code() == Code::FailedPrecondition, "{status:?}");
    ensure!(
        status.message().contains(&rig.node_id(0).await?),
        "{status}"
    );
    let mut n = rig.clients(1).await?.node;
    let staging = rig.site.nodes[1].dir().join("staging-by-itself");
    let by_itself = NodeStageVolumeRequest {
        staging_target_path: staging.to_string_lossy().into_owned(),
        ..used.stage()
    };
    let status = n
        .node_stage_volume(by_itself)
        .await
        .expect_err("staged by itself");
    ensure!(
        matches!(
            status.code(),
            Code::PermissionDenied | Code::FailedPrecondition
        ),
        "{status:?}"
    );
    ensure!(
        rig.daemon(1).attachments().await?.is_empty(),
        "left attached"
    );
    rig.unmount(&used).await?;
    rig.delete(&volume.volume_id).await?;
    Ok(())
}

/// A node that is shut out without a word cannot write any more, and what the next one writes stays. Then the first one comes back, and
/// all it has to undo can be undone.
pub(super) async fn late_writes(rig: &mut Rig) -> Result<()> {
    let volume = rig.create("late").await?;
    let old = rig.mount(&volume.volume_id, 0).await?;
    rig.files(0).write(&old.target, &data("old"))?;
    // As Kubernetes does with a node that it has lost.
    let mut c = rig.clients(1).await?.controller;
    c.controller_unpublish_volume(rig.unpublish(&old).await?)
        .await?;
    let found = rig.daemon(1).volume(&volume.volume_id.parse()?).await?;
    let node = rig.node_id(0).await?;
    let has = |names: &[String]| names.contains(&node);
    ensure!(
        !found
            .units
            .iter()
            .any(|unit| has(&unit.sessions) || has(&unit.access)),
        "{found:?}"
    );
    let new = rig.mount(&volume.volume_id, 1).await?;
    rig.files(1).write(&new.target, &data("new"))?;
    let (files, target) = (rig.files(0), old.target.clone());
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let _ = tell.send(files.write(&target, &data("late")).is_err());
    });
    ensure!(
        rig.files(1).read(&new.target)? == data("new"),
        "a late write landed"
    );
    // Whether the node knows or not: everything that it is asked to undo is undone.
    let mut n = rig.clients(0).await?.node;
    n.node_unpublish_volume(old.hide()).await?;
    n.node_unstage_volume(old.unstage()).await?;
    ensure!(
        told.recv_timeout(crate::berthd::DEADLINE)?,
        "a late write was answered with success"
    );
    ensure!(
        rig.daemon(0).attachments().await?.is_empty(),
        "still attached"
    );
    ensure!(
        rig.files(1).read(&new.target)? == data("new"),
        "a late write landed"
    );
    c.controller_unpublish_volume(rig.unpublish(&old).await?)
        .await?;
    rig.files(1).write(&new.target, &data("newer"))?;
    rig.unmount(&new).await?;
    rig.delete(&volume.volume_id).await?;
    Ok(())
}

/// A volume that the node has attached in another way, by FlexVolume or by hand, is not attached a second time.
pub(super) async fn attached_in_another_way(rig: &mut Rig) -> Result<()> {
    use berth_api::types::{AttachRequest, DeviceWish, FabricSource, Source};
    let volume = rig.create("twice").await?;
    let used = rig.publish(&volume.volume_id, 0, rig.writer()).await?;
    let source = Source::Fabric(FabricSource::new(volume.volume_id.parse()?));
    let by_hand = AttachRequest {
        device: DeviceWish::Socket,
        ..AttachRequest::new(source)
    };
    let name = "by-hand".parse()?;
    rig.daemon(0).attach(&name, &by_hand).await?;
    let mut n = rig.clients(0).await?.node;
    let status = expect(
        "stage",
        Code::FailedPrecondition,
        n.node_stage_volume(used.stage()).await,
    )?;
    ensure!(status.message().contains("by-hand"), "{status}");
    rig.daemon(0).detach(&name, false).await?;
    n.node_stage_volume(used.stage()).await?;
    rig.unmount(&used).await?;
    rig.delete(&volume.volume_id).await?;
    Ok(())
}

/// Without a node, unpublishing means all of them.
pub(super) async fn everybody_out(rig: &mut Rig) -> Result<()> {
    use berth_plugin::csi::proto::v1::volume_capability::access_mode::Mode;
    let volume = rig.create("out").await?;
    for node in 0..2 {
        rig.publish(
            &volume.volume_id,
            node,
            rig.capability(Mode::MultiNodeReaderOnly),
        )
        .await?;
    }
    let mut c = rig.clients(0).await?.controller;
    let all = ControllerUnpublishVolumeRequest {
        volume_id: volume.volume_id.clone(),
        ..ControllerUnpublishVolumeRequest::default()
    };
    c.controller_unpublish_volume(all).await?;
    let found = rig.daemon(0).volume(&volume.volume_id.parse()?).await?;
    ensure!(
        found.units.iter().all(|unit| unit.access.is_empty()),
        "{found:?}"
    );
    rig.delete(&volume.volume_id).await?;
    Ok(())
}

/// Every undoing call succeeds when what it undoes is gone: right, volume, attachment, target, or the daemon for a moment.
pub(super) async fn teardown_of_what_is_gone(rig: &mut Rig) -> Result<()> {
    for gone in [
        "right",
        "session",
        "volume",
        "attachment",
        "target",
        "daemon",
        "record",
    ] {
        let volume = rig.create("gone").await?;
        let used = rig.mount(&volume.volume_id, 0).await?;
        let name = volume.volume_id.parse()?;
        let node = rig.node_id(0).await?.parse()?;
        let daemon = rig.daemon(1);
        match gone {
            "right" => daemon.revoke(&name, &node).await?,
            "session" => {
                // Else I/O of the file system waits for the target to come back.
                let all = rig.daemon(0).attachments().await?;
                let soon = AttachmentPatch {
                    recovery_timeout_seconds: Some(Some(RecoveryTimeout::Seconds(3))),
                    ..AttachmentPatch::default()
                };
                rig.daemon(0).change(&all[0].name, &soon).await?;
                rig.site
                    .sim
                    .log_in()?
                    .set_online(&volume.volume_id, false)?;
            }
            "volume" => {
                daemon.revoke(&name, &node).await?;
                daemon.delete_volume(&name, None, true).await?;
            }
            "attachment" => {
                let all = rig.daemon(0).attachments().await?;
                rig.daemon(0).detach(&all[0].name, true).await?;
            }
            "target" => {
                let mut n = rig.clients(0).await?.node;
                n.node_unpublish_volume(used.hide()).await?;
            }
            "daemon" => rig.site.nodes[0].kill_daemon()?,
            _ => std::fs::remove_dir_all(rig.site.nodes[0].dir().join("run/volumes"))?,
        }
        if gone == "record" {
            // The folder is made at the start.
            rig.site.nodes[0].kill_driver()?;
        }
        for round in 0..3 {
            let undone = rig.unmount(&used).await;
            ensure!(undone.is_ok(), "{gone}, round {round}: {undone:?}");
        }
        let files = rig.files(0);
        ensure!(
            !files.is_mounted(&used.target)? && !files.is_mounted(&used.staging)?,
            "{gone}"
        );
        ensure!(!used.target.exists(), "{gone}: the target is there");
        ensure!(
            rig.daemon(0).attachments().await?.is_empty(),
            "{gone}: attached"
        );
        if gone == "session" {
            rig.site.sim.log_in()?.set_online(&volume.volume_id, true)?;
        }
        rig.delete(&volume.volume_id).await?;
    }
    let mut n = rig.clients(0).await?.node;
    let nothing = NodeGetVolumeStatsRequest {
        volume_id: "gone".to_owned(),
        volume_path: "/gone".to_owned(),
        ..NodeGetVolumeStatsRequest::default()
    };
    expect(
        "stats",
        Code::NotFound,
        n.node_get_volume_stats(nothing).await,
    )?;
    Ok(())
}

//! What is done on a node.

use anyhow::{Context as _, Result, ensure};
use berth_plugin::csi::proto::v1::volume_capability::AccessType;
use berth_plugin::csi::proto::v1::volume_capability::access_mode::Mode;
use berth_plugin::csi::proto::v1::*;
use tonic::Code;

use super::controller::UNKNOWN;
use crate::csi::files::data;
use crate::csi::rig::{Access, GIB, Rig, Used, expect};

/// A node has an identifier that stays, a limit, and a place.
pub(super) async fn info(rig: &mut Rig) -> Result<()> {
    let mut all = Vec::new();
    for round in 0..2 {
        for node in 0..2 {
            let mut clients = rig.clients(node).await?;
            let info = clients
                .node
                .node_get_info(NodeGetInfoRequest {})
                .await?
                .into_inner();
            ensure!((1..=256).contains(&info.node_id.len()), "{info:?}");
            ensure!(info.max_volumes_per_node >= 0, "{info:?}");
            ensure!(info.accessible_topology.is_some(), "{info:?}");
            all.push(info);
        }
        if round == 0 {
            rig.site.nodes[0].kill_daemon()?;
            rig.site.nodes[0].kill_driver()?;
        }
    }
    ensure!(
        all[..2] == all[2..] && all[0].node_id != all[1].node_id,
        "{all:?}"
    );
    Ok(())
}

/// A required field that is missing is INVALID_ARGUMENT; what does not exist is NOT_FOUND, and done already where it would be undone.
pub(super) async fn what_is_missing(rig: &mut Rig) -> Result<()> {
    let mut n = rig.clients(0).await?.node;
    let used = Used {
        id: UNKNOWN.to_owned(),
        context: std::collections::HashMap::new(),
        node: 0,
        staging: rig.site.nodes[0].dir().join("staging-unknown"),
        target: rig.site.nodes[0].dir().join("target-unknown"),
        capability: rig.writer(),
    };
    let invalid = Code::InvalidArgument;
    for request in [
        NodeStageVolumeRequest {
            volume_id: String::new(),
            ..used.stage()
        },
        NodeStageVolumeRequest {
            staging_target_path: String::new(),
            ..used.stage()
        },
        NodeStageVolumeRequest {
            staging_target_path: "a/b".to_owned(),
            ..used.stage()
        },
        NodeStageVolumeRequest {
            staging_target_path: "/a/../b".to_owned(),
            ..used.stage()
        },
        NodeStageVolumeRequest {
            volume_capability: None,
            ..used.stage()
        },
    ] {
        expect("stage", invalid, n.node_stage_volume(request).await)?;
    }
    for request in [
        NodePublishVolumeRequest {
            volume_id: String::new(),
            ..used.show()
        },
        NodePublishVolumeRequest {
            target_path: String::new(),
            ..used.show()
        },
        NodePublishVolumeRequest {
            volume_capability: None,
            ..used.show()
        },
    ] {
        expect("publish", invalid, n.node_publish_volume(request).await)?;
    }
    let request = NodePublishVolumeRequest {
        staging_target_path: String::new(),
        ..used.show()
    };
    expect(
        "no staging path",
        Code::FailedPrecondition,
        n.node_publish_volume(request).await,
    )?;
    expect(
        "not staged",
        Code::FailedPrecondition,
        n.node_publish_volume(used.show()).await,
    )?;
    for request in [
        NodeUnpublishVolumeRequest {
            volume_id: String::new(),
            ..used.hide()
        },
        NodeUnpublishVolumeRequest {
            target_path: String::new(),
            ..used.hide()
        },
    ] {
        expect("unpublish", invalid, n.node_unpublish_volume(request).await)?;
    }
    for request in [
        NodeUnstageVolumeRequest {
            volume_id: String::new(),
            ..used.unstage()
        },
        NodeUnstageVolumeRequest {
            staging_target_path: String::new(),
            ..used.unstage()
        },
    ] {
        expect("unstage", invalid, n.node_unstage_volume(request).await)?;
    }
    for request in [
        NodeGetVolumeStatsRequest {
            volume_id: String::new(),
            ..used.stats()
        },
        NodeGetVolumeStatsRequest {
            volume_path: String::new(),
            ..used.stats()
        },
    ] {
        expect("stats", invalid, n.node_get_volume_stats(request).await)?;
    }
    expect(
        "stats",
        Code::NotFound,
        n.node_get_volume_stats(used.stats()).await,
    )?;
    let expand = NodeExpandVolumeRequest {
        volume_id: UNKNOWN.to_owned(),
        volume_path: "/no/such/path".to_owned(),
        ..NodeExpandVolumeRequest::default()
    };
    for request in [
        NodeExpandVolumeRequest {
            volume_id: String::new(),
            ..expand.clone()
        },
        NodeExpandVolumeRequest {
            volume_path: String::new(),
            ..expand.clone()
        },
    ] {
        expect("expand", invalid, n.node_expand_volume(request).await)?;
    }
    expect("expand", Code::NotFound, n.node_expand_volume(expand).await)?;
    for id in [UNKNOWN, "no such id", "../.."] {
        let unknown = Used {
            id: id.to_owned(),
            ..used.clone()
        };
        n.node_unpublish_volume(unknown.hide()).await?;
        n.node_unstage_volume(unknown.unstage()).await?;
        expect(
            "stage",
            Code::NotFound,
            n.node_stage_volume(unknown.stage()).await,
        )?;
    }
    Ok(())
}

/// Each call may come ten times; a target is there after publishing and gone after unpublishing.
pub(super) async fn again_and_again(rig: &mut Rig) -> Result<()> {
    let volume = rig.create("again").await?;
    let files = rig.files(0);
    let mut clients = rig.clients(0).await?;
    let mut contexts = Vec::new();
    for _ in 0..10 {
        contexts.push(
            rig.publish(&volume.volume_id, 0, rig.writer())
                .await?
                .context,
        );
    }
    ensure!(
        contexts.windows(2).all(|two| two[0] == two[1]),
        "{contexts:?}"
    );
    let used = rig.publish(&volume.volume_id, 0, rig.writer()).await?;
    for _ in 0..10 {
        clients.node.node_stage_volume(used.stage()).await?;
    }
    ensure!(
        rig.access == Access::Block || files.is_mounted(&used.staging)?,
        "nothing is mounted"
    );
    for round in 0..10 {
        clients.node.node_publish_volume(used.show()).await?;
        ensure!(files.is_mounted(&used.target)?, "round {round}");
    }
    ensure!(
        used.target.is_dir() == (rig.access == Access::Mount),
        "{used:?}"
    );
    files.write(&used.target, &data("again"))?;
    ensure!(files.read(&used.target)? == data("again"), "something else");
    // Another path of the same node, as a second pod has it.
    let second = Used {
        target: used.target.with_extension("second"),
        ..used.clone()
    };
    clients.node.node_publish_volume(second.show()).await?;
    ensure!(
        files.read(&second.target)? == data("again"),
        "something else"
    );
    let early = clients.node.node_unstage_volume(used.unstage()).await;
    let early = early.expect_err("the floor was taken away below two pods");
    ensure!(
        matches!(early.code(), Code::FailedPrecondition | Code::Aborted),
        "{early:?}"
    );
    ensure!(
        files.read(&second.target)? == data("again"),
        "something else"
    );
    for used in [&second, &used] {
        for _ in 0..10 {
            clients.node.node_unpublish_volume(used.hide()).await?;
            ensure!(
                !used.target.exists() && !files.is_mounted(&used.target)?,
                "{used:?}"
            );
        }
    }
    for _ in 0..10 {
        clients.node.node_unstage_volume(used.unstage()).await?;
    }
    ensure!(!files.is_mounted(&used.staging)?, "still staged");
    ensure!(
        rig.daemon(0).attachments().await?.is_empty(),
        "still attached"
    );
    for _ in 0..10 {
        clients
            .controller
            .controller_unpublish_volume(rig.unpublish(&used).await?)
            .await?;
    }
    rig.delete(&volume.volume_id).await?;
    Ok(())
}

/// The same volume in another way is refused while it is used in this one.
pub(super) async fn another_way(rig: &mut Rig) -> Result<()> {
    let volume = rig.create("way").await?;
    let used = rig.mount(&volume.volume_id, 0).await?;
    let mut clients = rig.clients(0).await?;
    let other = rig.capability(Mode::SingleNodeSingleWriter);
    let stage = NodeStageVolumeRequest {
        volume_capability: Some(other.clone()),
        ..used.stage()
    };
    expect(
        "stage",
        Code::AlreadyExists,
        clients.node.node_stage_volume(stage).await,
    )?;
    let show = NodePublishVolumeRequest {
        volume_capability: Some(other),
        ..used.show()
    };
    expect(
        "publish",
        Code::AlreadyExists,
        clients.node.node_publish_volume(show).await,
    )?;
    if rig.access == Access::Mount {
        let show = NodePublishVolumeRequest {
            readonly: true,
            ..used.show()
        };
        expect(
            "read-only",
            Code::AlreadyExists,
            clients.node.node_publish_volume(show).await,
        )?;
    }
    let request = ControllerPublishVolumeRequest {
        volume_id: used.id.clone(),
        node_id: rig.node_id(0).await?,
        volume_capability: Some(rig.writer()),
        readonly: true,
        ..ControllerPublishVolumeRequest::default()
    };
    let answer = clients.controller.controller_publish_volume(request).await;
    expect("controller publish", Code::AlreadyExists, answer)?;
    let files = rig.files(0);
    files.write(&used.target, &data("still there"))?;
    rig.unmount(&used).await?;
    rig.delete(&volume.volume_id).await?;
    Ok(())
}

/// A volume for a single writer has one path.
pub(super) async fn single_writer(rig: &mut Rig) -> Result<()> {
    let volume = rig.create("single").await?;
    let used = rig
        .publish(
            &volume.volume_id,
            0,
            rig.capability(Mode::SingleNodeSingleWriter),
        )
        .await?;
    let mut n = rig.clients(0).await?.node;
    n.node_stage_volume(used.stage()).await?;
    n.node_publish_volume(used.show()).await?;
    n.node_publish_volume(used.show()).await?;
    let second = Used {
        target: used.target.with_extension("second"),
        ..used.clone()
    };
    expect(
        "second",
        Code::FailedPrecondition,
        n.node_publish_volume(second.show()).await,
    )?;
    ensure!(!second.target.exists(), "the target was left behind");
    rig.site.nodes[0].kill_driver()?;
    let mut n = rig.clients(0).await?.node;
    expect(
        "second",
        Code::FailedPrecondition,
        n.node_publish_volume(second.show()).await,
    )?;
    n.node_unpublish_volume(used.hide()).await?;
    n.node_publish_volume(second.show()).await?;
    rig.unmount(&second).await?;
    rig.delete(&volume.volume_id).await?;
    Ok(())
}

/// What is published read-only cannot be written: at one path, or by the whole node.
pub(super) async fn read_only(rig: &mut Rig) -> Result<()> {
    let volume = rig.create("read-only").await?;
    let files = rig.files(0);
    let used = rig.mount(&volume.volume_id, 0).await?;
    files.write(&used.target, &data("written"))?;
    let mut clients = rig.clients(0).await?;
    let second = Used {
        target: used.target.with_extension("ro"),
        ..used.clone()
    };
    let show = NodePublishVolumeRequest {
        readonly: true,
        ..second.show()
    };
    match rig.access {
        Access::Mount => {
            clients.node.node_publish_volume(show).await?;
            ensure!(
                files.read(&second.target)? == data("written"),
                "something else"
            );
            ensure!(files.write(&second.target, &data("no")).is_err(), "written");
            files.write(&used.target, &data("yes"))?;
            clients.node.node_unpublish_volume(second.hide()).await?;
        }
        // A device node cannot be read-only at one place.
        Access::Block => {
            expect(
                "read-only",
                Code::FailedPrecondition,
                clients.node.node_publish_volume(show).await,
            )?;
            files.write(&used.target, &data("yes"))?;
        }
    }
    rig.unmount(&used).await?;
    let request = ControllerPublishVolumeRequest {
        volume_id: volume.volume_id.clone(),
        node_id: rig.node_id(0).await?,
        volume_capability: Some(rig.writer()),
        readonly: true,
        ..ControllerPublishVolumeRequest::default()
    };
    let published = clients
        .controller
        .controller_publish_volume(request)
        .await?
        .into_inner();
    let used = Used {
        context: published.publish_context,
        ..used
    };
    clients.node.node_stage_volume(used.stage()).await?;
    let show = NodePublishVolumeRequest {
        readonly: true,
        ..used.show()
    };
    clients.node.node_publish_volume(show).await?;
    ensure!(files.read(&used.target)? == data("yes"), "something else");
    ensure!(files.write(&used.target, &data("no")).is_err(), "written");
    rig.unmount(&used).await?;
    rig.delete(&volume.volume_id).await?;
    Ok(())
}

/// Several nodes may read one volume; one that is blank cannot be made a file system of by readers.
pub(super) async fn many_readers(rig: &mut Rig) -> Result<()> {
    let volume = rig.create("readers").await?;
    let readers = rig.capability(Mode::MultiNodeReaderOnly);
    if rig.access == Access::Mount {
        let used = rig.publish(&volume.volume_id, 0, readers.clone()).await?;
        let mut n = rig.clients(0).await?.node;
        expect(
            "blank",
            Code::FailedPrecondition,
            n.node_stage_volume(used.stage()).await,
        )?;
        ensure!(
            rig.daemon(0).attachments().await?.is_empty(),
            "left attached"
        );
        rig.unmount(&used).await?;
    }
    let used = rig.mount(&volume.volume_id, 0).await?;
    rig.files(0).write(&used.target, &data("for all"))?;
    rig.unmount(&used).await?;
    let mut all = Vec::new();
    for node in 0..2 {
        let used = rig
            .publish(&volume.volume_id, node, readers.clone())
            .await?;
        let mut n = rig.clients(node).await?.node;
        n.node_stage_volume(used.stage()).await?;
        n.node_publish_volume(used.show()).await?;
        all.push(used);
    }
    for used in &all {
        let files = rig.files(used.node);
        ensure!(
            files.read(&used.target)? == data("for all"),
            "something else"
        );
        ensure!(files.write(&used.target, &data("no")).is_err(), "written");
    }
    for used in &all {
        rig.unmount(used).await?;
    }
    rig.delete(&volume.volume_id).await?;
    Ok(())
}

/// How full a volume is, at each of its paths and at no other.
pub(super) async fn stats(rig: &mut Rig) -> Result<()> {
    let volume = rig.create("stats").await?;
    let used = rig.mount(&volume.volume_id, 0).await?;
    let mut n = rig.clients(0).await?.node;
    let stats = n.node_get_volume_stats(used.stats()).await?.into_inner();
    let bytes = stats.usage.first().context("usage")?;
    ensure!(bytes.unit() == volume_usage::Unit::Bytes, "{stats:?}");
    ensure!(
        bytes.total > GIB / 10 * 8 && bytes.total <= GIB,
        "{stats:?}"
    );
    ensure!(
        stats.usage.len() == if rig.access == Access::Mount { 2 } else { 1 },
        "{stats:?}"
    );
    ensure!(
        stats.volume_condition.as_ref().is_some_and(|c| !c.abnormal),
        "{stats:?}"
    );
    for path in ["some/path", "/", "/no/such/path"] {
        let request = NodeGetVolumeStatsRequest {
            volume_path: path.to_owned(),
            ..used.stats()
        };
        expect(path, Code::NotFound, n.node_get_volume_stats(request).await)?;
    }
    rig.unmount(&used).await?;
    expect(
        "gone",
        Code::NotFound,
        n.node_get_volume_stats(used.stats()).await,
    )?;
    rig.delete(&volume.volume_id).await?;
    Ok(())
}

/// A file system is made on nothing but nothing; what is there is used if it is of the right kind, and never touched if not.
pub(super) async fn contents(rig: &mut Rig) -> Result<()> {
    let volume = rig.create("contents").await?;
    let mut block = rig.writer();
    block.access_type = Some(AccessType::Block(volume_capability::BlockVolume {}));
    let mut xfs = rig.writer();
    xfs.access_type = Some(AccessType::Mount(volume_capability::MountVolume {
        fs_type: "btrfs".to_owned(),
        ..volume_capability::MountVolume::default()
    }));
    let files = rig.files(0);
    let as_block = rig.publish(&volume.volume_id, 0, block.clone()).await?;
    let mut clients = rig.clients(0).await?;
    clients.node.node_stage_volume(as_block.stage()).await?;
    clients.node.node_publish_volume(as_block.show()).await?;
    files.write(&as_block.target, &data("mine"))?;
    rig.unmount(&as_block).await?;
    let as_files = rig.publish(&volume.volume_id, 0, xfs).await?;
    let status = expect(
        "foreign",
        Code::FailedPrecondition,
        clients.node.node_stage_volume(as_files.stage()).await,
    )?;
    ensure!(status.message().contains(&volume.volume_id), "{status}");
    ensure!(!files.is_mounted(&as_files.staging)?, "mounted");
    ensure!(
        rig.daemon(0).attachments().await?.is_empty(),
        "left attached"
    );
    rig.unmount(&as_files).await?;
    let as_block = rig.publish(&volume.volume_id, 0, block).await?;
    clients.node.node_stage_volume(as_block.stage()).await?;
    clients.node.node_publish_volume(as_block.show()).await?;
    ensure!(
        files.read(&as_block.target)? == data("mine"),
        "it was touched"
    );
    rig.unmount(&as_block).await?;
    rig.delete(&volume.volume_id).await?;
    Ok(())
}

//! Identity, and what the controller says and changes.

use std::collections::HashMap;

use anyhow::{Result, ensure};
use berth_plugin::csi::proto::v1::volume_capability::access_mode::Mode;
use berth_plugin::csi::proto::v1::*;
use tonic::Code;

use crate::csi::rig::{GIB, Rig, delete, expect};

/// An identifier that no driver has ever given.
pub(super) const UNKNOWN: &str = "fake-vol-id-4711";

/// A driver has a name of at most 63 characters, is ready while its daemon answers, and says what it can do.
pub(super) async fn identity(rig: &mut Rig) -> Result<()> {
    let mut clients = rig.clients(0).await?;
    let info = clients
        .identity
        .get_plugin_info(GetPluginInfoRequest {})
        .await?
        .into_inner();
    ensure!(
        (1..=63).contains(&info.name.len()) && info.name.contains('.'),
        "{info:?}"
    );
    ensure!(!info.vendor_version.is_empty(), "{info:?}");
    let probe = clients.identity.probe(ProbeRequest {}).await?.into_inner();
    ensure!(probe.ready == Some(true), "{probe:?}");
    let mut all = Vec::new();
    for node in 0..2 {
        let mut clients = rig.clients(node).await?;
        let request = GetPluginCapabilitiesRequest {};
        all.push(
            clients
                .identity
                .get_plugin_capabilities(request)
                .await?
                .into_inner(),
        );
    }
    ensure!(
        all[0] == all[1] && all[0].capabilities.len() == 3,
        "{all:?}"
    );
    let request = ControllerGetCapabilitiesRequest {};
    let can = clients
        .controller
        .controller_get_capabilities(request)
        .await?
        .into_inner();
    ensure!(can.capabilities.len() == 15, "{can:?}");
    let can = clients
        .node
        .node_get_capabilities(NodeGetCapabilitiesRequest {})
        .await?
        .into_inner();
    ensure!(can.capabilities.len() == 5, "{can:?}");
    Ok(())
}

/// A required field that is missing is INVALID_ARGUMENT, before anything else is looked at.
pub(super) async fn what_is_missing(rig: &mut Rig) -> Result<()> {
    let mut c = rig.clients(0).await?.controller;
    let (id, node) = (UNKNOWN.to_owned(), "no-such-node".to_owned());
    let invalid = Code::InvalidArgument;
    let wish = rig.wish(&rig.name("missing"), 1);
    let without = CreateVolumeRequest {
        name: String::new(),
        ..wish.clone()
    };
    expect("create: name", invalid, c.create_volume(without).await)?;
    let without = CreateVolumeRequest {
        volume_capabilities: Vec::new(),
        ..wish
    };
    expect(
        "create: capabilities",
        invalid,
        c.create_volume(without).await,
    )?;
    expect(
        "delete: id",
        invalid,
        c.delete_volume(DeleteVolumeRequest::default()).await,
    )?;
    let publish = ControllerPublishVolumeRequest {
        volume_id: id.clone(),
        node_id: node,
        volume_capability: Some(rig.writer()),
        ..ControllerPublishVolumeRequest::default()
    };
    for (what, request) in [
        (
            "id",
            ControllerPublishVolumeRequest {
                volume_id: String::new(),
                ..publish.clone()
            },
        ),
        (
            "node",
            ControllerPublishVolumeRequest {
                node_id: String::new(),
                ..publish.clone()
            },
        ),
        (
            "capability",
            ControllerPublishVolumeRequest {
                volume_capability: None,
                ..publish
            },
        ),
    ] {
        expect(
            &format!("publish: {what}"),
            invalid,
            c.controller_publish_volume(request).await,
        )?;
    }
    let request = ControllerUnpublishVolumeRequest::default();
    expect(
        "unpublish: id",
        invalid,
        c.controller_unpublish_volume(request).await,
    )?;
    let request = ValidateVolumeCapabilitiesRequest {
        volume_capabilities: vec![rig.writer()],
        ..ValidateVolumeCapabilitiesRequest::default()
    };
    expect(
        "validate: id",
        invalid,
        c.validate_volume_capabilities(request).await,
    )?;
    let request = ValidateVolumeCapabilitiesRequest {
        volume_id: id.clone(),
        ..ValidateVolumeCapabilitiesRequest::default()
    };
    expect(
        "validate: capabilities",
        invalid,
        c.validate_volume_capabilities(request).await,
    )?;
    let request = ControllerGetVolumeRequest::default();
    expect("get: id", invalid, c.controller_get_volume(request).await)?;
    let request = ControllerExpandVolumeRequest {
        capacity_range: Some(CapacityRange {
            required_bytes: GIB,
            limit_bytes: 0,
        }),
        ..ControllerExpandVolumeRequest::default()
    };
    expect(
        "expand: id",
        invalid,
        c.controller_expand_volume(request).await,
    )?;
    let request = ControllerExpandVolumeRequest {
        volume_id: id.clone(),
        ..ControllerExpandVolumeRequest::default()
    };
    expect(
        "expand: range",
        invalid,
        c.controller_expand_volume(request).await,
    )?;
    let request = ControllerModifyVolumeRequest::default();
    expect(
        "modify: id",
        invalid,
        c.controller_modify_volume(request).await,
    )?;
    let request = CreateSnapshotRequest {
        source_volume_id: id,
        ..CreateSnapshotRequest::default()
    };
    expect("snapshot: name", invalid, c.create_snapshot(request).await)?;
    let request = CreateSnapshotRequest {
        name: "s".to_owned(),
        ..CreateSnapshotRequest::default()
    };
    expect(
        "snapshot: source",
        invalid,
        c.create_snapshot(request).await,
    )?;
    let request = DeleteSnapshotRequest::default();
    expect(
        "delete snapshot: id",
        invalid,
        c.delete_snapshot(request).await,
    )?;
    let request = GetSnapshotRequest::default();
    expect("get snapshot: id", invalid, c.get_snapshot(request).await)?;
    Ok(())
}

/// What does not exist is NOT_FOUND, and done already where it would be taken away.
pub(super) async fn what_is_unknown(rig: &mut Rig) -> Result<()> {
    let mut c = rig.clients(0).await?.controller;
    let node_id = rig.node_id(0).await?;
    for unknown in [UNKNOWN, "no such thing", "../..", "a@b@c", &"x".repeat(128)] {
        let id = unknown.to_owned();
        let publish = ControllerPublishVolumeRequest {
            volume_id: id.clone(),
            node_id: node_id.clone(),
            volume_capability: Some(rig.writer()),
            ..ControllerPublishVolumeRequest::default()
        };
        expect(
            "publish",
            Code::NotFound,
            c.controller_publish_volume(publish).await,
        )?;
        let request = ValidateVolumeCapabilitiesRequest {
            volume_id: id.clone(),
            volume_capabilities: vec![rig.writer()],
            ..ValidateVolumeCapabilitiesRequest::default()
        };
        expect(
            "validate",
            Code::NotFound,
            c.validate_volume_capabilities(request).await,
        )?;
        let request = ControllerGetVolumeRequest {
            volume_id: id.clone(),
        };
        expect(
            "get",
            Code::NotFound,
            c.controller_get_volume(request).await,
        )?;
        let request = ControllerExpandVolumeRequest {
            volume_id: id.clone(),
            capacity_range: Some(CapacityRange {
                required_bytes: GIB,
                limit_bytes: 0,
            }),
            ..ControllerExpandVolumeRequest::default()
        };
        expect(
            "expand",
            Code::NotFound,
            c.controller_expand_volume(request).await,
        )?;
        let request = ControllerModifyVolumeRequest {
            volume_id: id.clone(),
            mutable_parameters: HashMap::from([("maxIops".to_owned(), "1".to_owned())]),
            ..ControllerModifyVolumeRequest::default()
        };
        expect(
            "modify",
            Code::NotFound,
            c.controller_modify_volume(request).await,
        )?;
        let request = CreateSnapshotRequest {
            name: rig.name("snapshot"),
            source_volume_id: id.clone(),
            ..CreateSnapshotRequest::default()
        };
        expect("snapshot", Code::NotFound, c.create_snapshot(request).await)?;
        let request = GetSnapshotRequest {
            snapshot_id: id.clone(),
            ..GetSnapshotRequest::default()
        };
        expect(
            "get snapshot",
            Code::NotFound,
            c.get_snapshot(request).await,
        )?;
        c.delete_volume(delete(unknown)).await?;
        let request = DeleteSnapshotRequest {
            snapshot_id: id.clone(),
            ..DeleteSnapshotRequest::default()
        };
        c.delete_snapshot(request).await?;
        let request = ControllerUnpublishVolumeRequest {
            volume_id: id,
            node_id: node_id.clone(),
            ..ControllerUnpublishVolumeRequest::default()
        };
        c.controller_unpublish_volume(request).await?;
    }
    let volume = rig.create("unknown-node").await?;
    for node in ["fake-node", "worker-1"] {
        let publish = ControllerPublishVolumeRequest {
            volume_id: volume.volume_id.clone(),
            node_id: node.to_owned(),
            volume_capability: Some(rig.writer()),
            ..ControllerPublishVolumeRequest::default()
        };
        expect(
            "publish",
            Code::NotFound,
            c.controller_publish_volume(publish).await,
        )?;
        let request = ControllerUnpublishVolumeRequest {
            volume_id: volume.volume_id.clone(),
            node_id: node.to_owned(),
            ..ControllerUnpublishVolumeRequest::default()
        };
        c.controller_unpublish_volume(request).await?;
    }
    rig.delete(&volume.volume_id).await?;
    Ok(())
}

/// What can be done is confirmed with what was asked; what cannot is told in words.
pub(super) async fn validate(rig: &mut Rig) -> Result<()> {
    let volume = rig.create("validate").await?;
    let mut c = rig.clients(0).await?.controller;
    let request = |mode| ValidateVolumeCapabilitiesRequest {
        volume_id: volume.volume_id.clone(),
        volume_capabilities: vec![rig.capability(mode)],
        volume_context: volume.volume_context.clone(),
        ..ValidateVolumeCapabilitiesRequest::default()
    };
    for mode in [
        Mode::SingleNodeWriter,
        Mode::SingleNodeMultiWriter,
        Mode::MultiNodeReaderOnly,
    ] {
        let request = request(mode);
        let asked = request.volume_capabilities.clone();
        let answer = c.validate_volume_capabilities(request).await?.into_inner();
        let confirmed = answer
            .confirmed
            .map(|confirmed| confirmed.volume_capabilities);
        ensure!(
            confirmed == Some(asked),
            "{mode:?}: {confirmed:?} {}",
            answer.message
        );
    }
    let answer = c
        .validate_volume_capabilities(request(Mode::MultiNodeMultiWriter))
        .await?
        .into_inner();
    ensure!(
        answer.confirmed.is_none() && !answer.message.is_empty(),
        "{answer:?}"
    );
    rig.delete(&volume.volume_id).await?;
    Ok(())
}

/// The list grows and shrinks by what is made and deleted, and says where a volume is published.
pub(super) async fn list(rig: &mut Rig) -> Result<()> {
    let before = rig.list().await?.len();
    let volume = rig.create("list").await?;
    let all = rig.list().await?;
    ensure!(all.len() == before + 1, "{} after {before}", all.len());
    let published = |all: &[list_volumes_response::Entry]| {
        let is_it = |entry: &&list_volumes_response::Entry| {
            entry
                .volume
                .as_ref()
                .is_some_and(|v| v.volume_id == volume.volume_id)
        };
        let status = all
            .iter()
            .find(is_it)
            .and_then(|entry| entry.status.clone());
        status.map(|status| status.published_node_ids)
    };
    ensure!(published(&all) == Some(Vec::new()), "{:?}", published(&all));
    let used = rig.publish(&volume.volume_id, 1, rig.writer()).await?;
    let node = rig.node_id(1).await?;
    ensure!(
        published(&rig.list().await?) == Some(vec![node.clone()]),
        "not published to {node}"
    );
    let mut c = rig.clients(0).await?.controller;
    let request = ControllerGetVolumeRequest {
        volume_id: volume.volume_id.clone(),
    };
    let got = c.controller_get_volume(request).await?.into_inner();
    let status = got.status.unwrap_or_default();
    ensure!(status.published_node_ids == [node], "{status:?}");
    ensure!(
        status
            .volume_condition
            .is_some_and(|condition| !condition.abnormal),
        "abnormal"
    );
    c.controller_unpublish_volume(rig.unpublish(&used).await?)
        .await?;
    ensure!(
        published(&rig.list().await?) == Some(Vec::new()),
        "still published"
    );
    rig.delete(&volume.volume_id).await?;
    ensure!(rig.list().await?.len() == before, "not shorter");
    Ok(())
}

/// Pages give each volume once, also when the volume that a page ended with is deleted before the next is asked for.
pub(super) async fn paging(rig: &mut Rig) -> Result<()> {
    let mut made = Vec::new();
    for _ in 0..5 {
        made.push(rig.create("page").await?.volume_id);
    }
    let mut c = rig.clients(0).await?.controller;
    let mut token = String::new();
    let mut seen = Vec::new();
    let mut deleted = None;
    loop {
        let request = ListVolumesRequest {
            max_entries: 2,
            starting_token: token.clone(),
        };
        let page = c.list_volumes(request).await?.into_inner();
        ensure!(page.entries.len() <= 2, "{} entries", page.entries.len());
        let ids = page.entries.into_iter().filter_map(|entry| entry.volume);
        seen.extend(ids.map(|volume| volume.volume_id));
        if page.next_token.is_empty() {
            break;
        }
        token = page.next_token;
        let last = seen.last().cloned().unwrap_or_default();
        if deleted.is_none() && made.contains(&last) {
            rig.delete(&last).await?;
            deleted = Some(last);
        }
    }
    let mut sorted = seen.clone();
    sorted.sort();
    sorted.dedup();
    ensure!(sorted.len() == seen.len(), "twice: {seen:?}");
    ensure!(
        made.iter().all(|id| seen.contains(id)),
        "{made:?} in {seen:?}"
    );
    ensure!(deleted.is_some(), "nothing was deleted: {seen:?}");
    for token in ["invalid-token", "after:", "after:a b"] {
        let request = ListVolumesRequest {
            max_entries: 0,
            starting_token: token.to_owned(),
        };
        expect("token", Code::Aborted, c.list_volumes(request).await)?;
    }
    let request = ListVolumesRequest {
        max_entries: -1,
        starting_token: String::new(),
    };
    expect(
        "max_entries",
        Code::InvalidArgument,
        c.list_volumes(request).await,
    )?;
    for id in made {
        rig.delete(&id).await?;
    }
    Ok(())
}

/// There is space, for what can be made at all and where the fabric can be reached.
pub(super) async fn capacity(rig: &mut Rig) -> Result<()> {
    let mut c = rig.clients(0).await?.controller;
    let some = c
        .get_capacity(GetCapacityRequest::default())
        .await?
        .into_inner();
    ensure!(some.available_capacity >= GIB, "{some:?}");
    ensure!(some.minimum_volume_size == Some(GIB), "{some:?}");
    let elsewhere = GetCapacityRequest {
        accessible_topology: Some(place("west")),
        ..GetCapacityRequest::default()
    };
    ensure!(
        c.get_capacity(elsewhere)
            .await?
            .into_inner()
            .available_capacity
            == 0,
        "in the west"
    );
    let many = GetCapacityRequest {
        volume_capabilities: vec![rig.capability(Mode::MultiNodeMultiWriter)],
        ..GetCapacityRequest::default()
    };
    ensure!(
        c.get_capacity(many).await?.into_inner().available_capacity == 0,
        "for many writers"
    );
    Ok(())
}

fn place(fabric: &str) -> Topology {
    let label = ("topology.berth.io/fabric".to_owned(), fabric.to_owned());
    Topology {
        segments: HashMap::from([label]),
    }
}

/// Volumes are made where the fabric can be reached from, and say so.
pub(super) async fn topology(rig: &mut Rig) -> Result<()> {
    let mut c = rig.clients(0).await?.controller;
    let at = |fabric| {
        Some(TopologyRequirement {
            requisite: vec![place(fabric)],
            preferred: Vec::new(),
        })
    };
    let wish = rig.wish(&rig.name("topology"), 1);
    let west = CreateVolumeRequest {
        accessibility_requirements: at("west"),
        ..wish.clone()
    };
    expect("west", Code::ResourceExhausted, c.create_volume(west).await)?;
    let east = CreateVolumeRequest {
        accessibility_requirements: at("east"),
        ..wish
    };
    let volume = c
        .create_volume(east)
        .await?
        .into_inner()
        .volume
        .unwrap_or_default();
    ensure!(volume.accessible_topology == [place("east")], "{volume:?}");
    rig.delete(&volume.volume_id).await?;
    Ok(())
}

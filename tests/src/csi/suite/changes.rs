//! Volumes that grow, and limits that change.

use anyhow::{Result, ensure};
use berth_plugin::csi::proto::v1::*;
use tonic::Code;

use crate::csi::files::data;
use crate::csi::rig::{GIB, Rig, expect};

/// A volume grows to just what is said, once, and never shrinks.
pub(super) async fn expand(rig: &mut Rig) -> Result<()> {
    let volume = rig.create("expand").await?;
    let mut c = rig.clients(0).await?.controller;
    let request = |required_bytes, limit_bytes| ControllerExpandVolumeRequest {
        volume_id: volume.volume_id.clone(),
        capacity_range: Some(CapacityRange {
            required_bytes,
            limit_bytes,
        }),
        volume_capability: Some(rig.writer()),
        ..ControllerExpandVolumeRequest::default()
    };
    for _ in 0..10 {
        let grown = c
            .controller_expand_volume(request(2 * GIB, 0))
            .await?
            .into_inner();
        ensure!(
            grown.capacity_bytes == 2 * GIB && grown.node_expansion_required,
            "{grown:?}"
        );
    }
    let same = c
        .controller_expand_volume(request(GIB, 0))
        .await?
        .into_inner();
    ensure!(same.capacity_bytes == 2 * GIB, "{same:?}");
    for (required, limit) in [
        (0, GIB),
        (1 << 50, 0),
        (3 * GIB, 2 * GIB),
        (-1, 0),
        (2 * GIB + 1, 3 * GIB - 1),
    ] {
        let answer = c.controller_expand_volume(request(required, limit)).await;
        expect(&format!("{required} {limit}"), Code::OutOfRange, answer)?;
    }
    rig.delete(&volume.volume_id).await?;
    Ok(())
}

/// Limits change while others stay, and a change with anything wrong in it changes nothing.
pub(super) async fn modify(rig: &mut Rig) -> Result<()> {
    let volume = rig.create("modify").await?;
    let mut c = rig.clients(0).await?.controller;
    let request = |pairs: &[(&str, &str)]| ControllerModifyVolumeRequest {
        volume_id: volume.volume_id.clone(),
        mutable_parameters: pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
        ..ControllerModifyVolumeRequest::default()
    };
    for _ in 0..10 {
        c.controller_modify_volume(request(&[("maxIops", "500"), ("maxReadIops", "300")]))
            .await?;
    }
    c.controller_modify_volume(request(&[
        ("maxReadIops", "0"),
        ("maxBandwidthKiB", "1024"),
    ]))
    .await?;
    let wrong = request(&[("maxIops", "7"), ("replicas", "2")]);
    expect(
        "modify",
        Code::InvalidArgument,
        c.controller_modify_volume(wrong).await,
    )?;
    let name = volume.volume_id.parse()?;
    let found = rig.daemon(0).volume(&name).await?;
    let qos = found.units[0].qos.unwrap_or_default();
    ensure!(
        (qos.total_iops, qos.read_iops, qos.total_bytes_per_second)
            == (Some(500), None, Some(1 << 20)),
        "{qos:?}"
    );
    rig.delete(&volume.volume_id).await?;
    Ok(())
}

/// A volume that is published grows, with what is on it.
pub(super) async fn online(rig: &mut Rig) -> Result<()> {
    let volume = rig.create("expand").await?;
    let used = rig.mount(&volume.volume_id, 0).await?;
    let files = rig.files(0);
    files.write(&used.target, &data("before"))?;
    let mut clients = rig.clients(0).await?;
    let range = Some(CapacityRange {
        required_bytes: 2 * GIB,
        limit_bytes: 0,
    });
    let request = ControllerExpandVolumeRequest {
        volume_id: used.id.clone(),
        capacity_range: range,
        volume_capability: Some(used.capability.clone()),
        ..ControllerExpandVolumeRequest::default()
    };
    let grown = clients
        .controller
        .controller_expand_volume(request)
        .await?
        .into_inner();
    ensure!(
        grown.capacity_bytes == 2 * GIB && grown.node_expansion_required,
        "{grown:?}"
    );
    let request = NodeExpandVolumeRequest {
        volume_id: used.id.clone(),
        volume_path: used.show().target_path,
        capacity_range: range,
        staging_target_path: used.stage().staging_target_path,
        volume_capability: Some(used.capability.clone()),
        ..NodeExpandVolumeRequest::default()
    };
    for path in [used.show().target_path, used.stage().staging_target_path] {
        let request = NodeExpandVolumeRequest {
            volume_path: path,
            ..request.clone()
        };
        let grown = clients.node.node_expand_volume(request).await?.into_inner();
        ensure!(grown.capacity_bytes == 2 * GIB, "{grown:?}");
    }
    let whole = NodeExpandVolumeRequest {
        capacity_range: None,
        ..request.clone()
    };
    let grown = clients.node.node_expand_volume(whole).await?.into_inner();
    ensure!(grown.capacity_bytes == 2 * GIB, "{grown:?}");
    let stats = clients
        .node
        .node_get_volume_stats(used.stats())
        .await?
        .into_inner();
    let total = stats.usage.first().map_or(0, |usage| usage.total);
    ensure!(total > 2 * GIB / 10 * 8, "{stats:?}");
    ensure!(
        files.read(&used.target)? == data("before"),
        "something else"
    );
    rig.unmount(&used).await?;
    rig.delete(&volume.volume_id).await?;
    Ok(())
}

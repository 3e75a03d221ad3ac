//! Making and deleting volumes.

use std::collections::HashMap;

use anyhow::{Context as _, Result, ensure};
use berth_plugin::csi::proto::v1::volume_capability::access_mode::Mode;
use berth_plugin::csi::proto::v1::*;
use tonic::Code;

use crate::csi::rig::{GIB, Rig, expect};

fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    pairs.iter().map(owned).collect()
}

async fn make(rig: &Rig, wish: CreateVolumeRequest) -> Result<Volume> {
    let mut clients = rig.clients(0).await?;
    let made = clients.controller.create_volume(wish).await?.into_inner();
    made.volume.context("an answer without a volume")
}

/// The same request finds the same volume, from another driver and after a restart, too; another one under the name is refused.
pub(super) async fn again_and_again(rig: &mut Rig) -> Result<()> {
    let wish = rig.wish(&rig.name("again"), 2);
    let first = make(rig, wish.clone()).await?;
    ensure!(
        first.capacity_bytes == 2 * GIB && !first.volume_id.is_empty(),
        "{first:?}"
    );
    for round in 0..10 {
        if round == 5 {
            rig.site.nodes[0].kill_driver()?;
        }
        let again = make(rig, wish.clone()).await?;
        ensure!(again == first, "{again:?} after {first:?}");
    }
    let before = rig.list().await?.len();
    let mut clients = rig.clients(1).await?;
    let larger = |required_bytes, limit_bytes| CreateVolumeRequest {
        capacity_range: Some(CapacityRange {
            required_bytes,
            limit_bytes,
        }),
        ..wish.clone()
    };
    for other in [
        larger(4 * GIB, 4 * GIB),
        larger(3 * GIB, 0),
        larger(GIB, GIB),
        CreateVolumeRequest {
            parameters: map(&[("replicas", "2")]),
            ..wish.clone()
        },
        CreateVolumeRequest {
            parameters: map(&[("template", "gold")]),
            ..wish.clone()
        },
    ] {
        expect(
            "other",
            Code::AlreadyExists,
            clients.controller.create_volume(other).await,
        )?;
    }
    // Within the range is compatible.
    let same = clients
        .controller
        .create_volume(larger(GIB, 3 * GIB))
        .await?
        .into_inner();
    ensure!(
        same.volume
            .as_ref()
            .is_some_and(|v| v.volume_id == first.volume_id),
        "{same:?}"
    );
    ensure!(rig.list().await?.len() == before, "another volume was made");
    rig.delete(&first.volume_id).await?;
    Ok(())
}

/// Sizes are within what is asked for, or OUT_OF_RANGE.
pub(super) async fn sizes(rig: &mut Rig) -> Result<()> {
    let mut clients = rig.clients(0).await?;
    let wish = |rig: &Rig, required_bytes, limit_bytes| CreateVolumeRequest {
        capacity_range: Some(CapacityRange {
            required_bytes,
            limit_bytes,
        }),
        ..rig.wish(&rig.name("size"), 1)
    };
    for (required, limit) in [
        (2 * GIB, GIB),
        (0, GIB - 1),
        (GIB + 1, 2 * GIB - 1),
        (1 << 50, 0),
        (-1, 0),
    ] {
        let answer = clients
            .controller
            .create_volume(wish(rig, required, limit))
            .await;
        expect(&format!("{required} {limit}"), Code::OutOfRange, answer)?;
    }
    for (required, limit, got) in [
        (1, 0, GIB),
        (GIB + 1, 0, 2 * GIB),
        (0, 5 * GIB, GIB),
        (0, 0, GIB),
    ] {
        let volume = make(rig, wish(rig, required, limit)).await?;
        ensure!(
            volume.capacity_bytes == got,
            "{required} {limit}: {volume:?}"
        );
        rig.delete(&volume.volume_id).await?;
    }
    let none = CreateVolumeRequest {
        capacity_range: None,
        ..rig.wish(&rig.name("size"), 1)
    };
    let volume = make(rig, none).await?;
    ensure!(volume.capacity_bytes == GIB, "{volume:?}");
    rig.delete(&volume.volume_id).await?;
    Ok(())
}

/// A name is any text of up to 128 characters, and two of them are two volumes.
pub(super) async fn names(rig: &mut Rig) -> Result<()> {
    let unique = rig.name("");
    let long = |c: &str| c.repeat(128 - unique.len()) + &unique;
    let mut ids = Vec::new();
    for name in [
        long("x"),
        long("X"),
        long("ß"),
        format!("{unique}/../..\t\n"),
        format!("{unique} ?&%#"),
        format!("1{unique}"),
    ] {
        let volume = make(rig, rig.wish(&name, 1)).await?;
        let again = make(rig, rig.wish(&name, 1)).await?;
        ensure!(volume.volume_id == again.volume_id, "{name}");
        ensure!(!ids.contains(&volume.volume_id), "{name}: {ids:?}");
        ids.push(volume.volume_id);
    }
    let mut clients = rig.clients(0).await?;
    for name in ["x".repeat(129), "a\0b".to_owned(), "a\u{1b}b".to_owned()] {
        let answer = clients.controller.create_volume(rig.wish(&name, 1)).await;
        expect("name", Code::InvalidArgument, answer)?;
    }
    for id in ids {
        rig.delete(&id).await?;
    }
    Ok(())
}

/// A template says how a volume is; its size is the least, and what contradicts it is refused.
pub(super) async fn templates(rig: &mut Rig) -> Result<()> {
    let template = rig
        .daemon(0)
        .templates()
        .await?
        .into_iter()
        .find(|t| t.units.len() == 1);
    let template = template.context("the fabric has a template with one unit")?;
    let size = i64::try_from(template.units[0].size_bytes)?;
    let wish = CreateVolumeRequest {
        parameters: map(&[("template", &template.name)]),
        capacity_range: None,
        ..rig.wish(&rig.name("template"), 1)
    };
    let volume = make(rig, wish.clone()).await?;
    ensure!(
        volume.capacity_bytes == size,
        "{volume:?}, template {template:?}"
    );
    ensure!(make(rig, wish.clone()).await? == volume, "another one");
    let larger = CreateVolumeRequest {
        name: rig.name("template"),
        capacity_range: Some(CapacityRange {
            required_bytes: size + GIB,
            limit_bytes: 0,
        }),
        ..wish.clone()
    };
    let second = make(rig, larger).await?;
    ensure!(second.capacity_bytes == size + GIB, "{second:?}");
    let mut c = rig.clients(0).await?.controller;
    for other in [map(&[]), map(&[("template", "no-such-template")])] {
        let other = CreateVolumeRequest {
            parameters: other,
            ..wish.clone()
        };
        let status = c
            .create_volume(other)
            .await
            .expect_err("another volume under the name");
        ensure!(
            matches!(status.code(), Code::AlreadyExists | Code::InvalidArgument),
            "{status:?}"
        );
    }
    let both = CreateVolumeRequest {
        parameters: map(&[("template", &template.name), ("replicas", "1")]),
        ..rig.wish(&rig.name("template"), 1)
    };
    let status = expect("both", Code::InvalidArgument, c.create_volume(both).await)?;
    ensure!(status.message().contains("replicas"), "{status}");
    let many = CreateVolumeRequest {
        parameters: map(&[("template", "database")]),
        ..rig.wish(&rig.name("template"), 1)
    };
    expect(
        "two units",
        Code::InvalidArgument,
        c.create_volume(many).await,
    )?;
    for id in [volume.volume_id, second.volume_id] {
        rig.delete(&id).await?;
    }
    Ok(())
}

/// Parameters do what they say; one that is not known is refused, except those that callers add.
pub(super) async fn parameters(rig: &mut Rig) -> Result<()> {
    let wish = CreateVolumeRequest {
        parameters: map(&[
            ("replicas", "2"),
            ("placement", "all_flash"),
            ("maxIops", "100"),
            ("csi.storage.k8s.io/pvc/name", "data"),
        ]),
        mutable_parameters: map(&[("maxIops", "200"), ("maxBandwidthKiB", "4096")]),
        ..rig.wish(&rig.name("parameters"), 1)
    };
    let volume = make(rig, wish).await?;
    let found = rig.daemon(0).volume(&volume.volume_id.parse()?).await?;
    let unit = &found.units[0];
    ensure!(unit.replicas == Some(2), "{unit:?}");
    ensure!(unit.placement.as_deref() == Some("all_flash"), "{unit:?}");
    let qos = unit.qos.unwrap_or_default();
    ensure!(
        (qos.total_iops, qos.total_bytes_per_second) == (Some(200), Some(4 << 20)),
        "{qos:?}"
    );
    let mut c = rig.clients(0).await?.controller;
    for (key, value) in [
        ("tenant", "/root"),
        ("replicas", "9"),
        ("maxIops", "many"),
        ("fsType", "xfs"),
    ] {
        let wish = CreateVolumeRequest {
            parameters: map(&[(key, value)]),
            ..rig.wish(&rig.name("parameters"), 1)
        };
        let status = expect(key, Code::InvalidArgument, c.create_volume(wish).await)?;
        ensure!(status.message().contains(key), "{status}");
    }
    let wish = CreateVolumeRequest {
        mutable_parameters: map(&[("replicas", "1")]),
        ..rig.wish(&rig.name("parameters"), 1)
    };
    expect(
        "mutable",
        Code::InvalidArgument,
        c.create_volume(wish).await,
    )?;
    rig.delete(&volume.volume_id).await?;
    Ok(())
}

/// Several writing nodes, other file systems and unknown sources are refused.
pub(super) async fn what_cannot_be(rig: &mut Rig) -> Result<()> {
    use volume_content_source::{SnapshotSource, Type, VolumeSource};
    let mut c = rig.clients(0).await?.controller;
    for mode in [
        Mode::MultiNodeMultiWriter,
        Mode::MultiNodeSingleWriter,
        Mode::Unknown,
    ] {
        let wish = CreateVolumeRequest {
            volume_capabilities: vec![rig.capability(mode)],
            ..rig.wish(&rig.name("refused"), 1)
        };
        expect("mode", Code::InvalidArgument, c.create_volume(wish).await)?;
    }
    for (source, code) in [
        (
            Type::Volume(VolumeSource {
                volume_id: "no-such-volume".to_owned(),
            }),
            Code::NotFound,
        ),
        (
            Type::Volume(VolumeSource {
                volume_id: "no such".to_owned(),
            }),
            Code::NotFound,
        ),
        (
            Type::Snapshot(SnapshotSource {
                snapshot_id: "no-such".to_owned(),
            }),
            Code::NotFound,
        ),
        (
            Type::Snapshot(SnapshotSource {
                snapshot_id: "no-such@4711".to_owned(),
            }),
            Code::NotFound,
        ),
        (
            Type::Snapshot(SnapshotSource {
                snapshot_id: String::new(),
            }),
            Code::InvalidArgument,
        ),
    ] {
        let wish = CreateVolumeRequest {
            volume_content_source: Some(VolumeContentSource {
                r#type: Some(source),
            }),
            ..rig.wish(&rig.name("refused"), 1)
        };
        expect("source", code, c.create_volume(wish).await)?;
    }
    Ok(())
}

/// Deleting is done once and again; what is published stays.
pub(super) async fn delete(rig: &mut Rig) -> Result<()> {
    let volume = rig.create("delete").await?;
    let used = rig.publish(&volume.volume_id, 0, rig.writer()).await?;
    let mut c = rig.clients(0).await?.controller;
    let request = crate::csi::rig::delete(&volume.volume_id);
    let status = expect(
        "published",
        Code::FailedPrecondition,
        c.delete_volume(request).await,
    )?;
    ensure!(
        status.message().contains(&rig.node_id(0).await?),
        "{status}"
    );
    c.controller_unpublish_volume(rig.unpublish(&used).await?)
        .await?;
    for _ in 0..10 {
        rig.delete(&volume.volume_id).await?;
    }
    Ok(())
}

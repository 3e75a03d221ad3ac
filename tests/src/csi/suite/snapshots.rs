//! Snapshots, and volumes that begin as copies.

use anyhow::{Context as _, Result, ensure};
use berth_plugin::csi::proto::v1::volume_content_source::{SnapshotSource, Type, VolumeSource};
use berth_plugin::csi::proto::v1::*;
use tonic::Code;

use crate::csi::files::data;
use crate::csi::rig::{GIB, Rig, expect};

async fn take(rig: &Rig, name: &str, volume: &str) -> Result<Snapshot> {
    let mut c = rig.clients(0).await?.controller;
    let request = CreateSnapshotRequest {
        name: name.to_owned(),
        source_volume_id: volume.to_owned(),
        ..CreateSnapshotRequest::default()
    };
    let taken = c.create_snapshot(request).await?.into_inner();
    taken.snapshot.context("an answer without a snapshot")
}

async fn remove(rig: &Rig, id: &str) -> Result<()> {
    let mut c = rig.clients(0).await?.controller;
    let request = DeleteSnapshotRequest {
        snapshot_id: id.to_owned(),
        ..DeleteSnapshotRequest::default()
    };
    c.delete_snapshot(request).await?;
    Ok(())
}

async fn list(rig: &Rig, by_id: &str, by_source: &str) -> Result<Vec<Snapshot>> {
    let mut c = rig.clients(0).await?.controller;
    let request = ListSnapshotsRequest {
        snapshot_id: by_id.to_owned(),
        source_volume_id: by_source.to_owned(),
        ..ListSnapshotsRequest::default()
    };
    let all = c.list_snapshots(request).await?.into_inner().entries;
    Ok(all.into_iter().filter_map(|entry| entry.snapshot).collect())
}

/// A snapshot is taken once, found by its identifier and its volume, and keeps its volume from being deleted.
pub(super) async fn life(rig: &mut Rig) -> Result<()> {
    let volume = rig.create("snapped").await?;
    let name = rig.name("snapshot");
    let first = take(rig, &name, &volume.volume_id).await?;
    ensure!(
        first.ready_to_use && first.source_volume_id == volume.volume_id,
        "{first:?}"
    );
    ensure!(
        first
            .creation_time
            .is_some_and(|time| time.seconds > 1_600_000_000),
        "{first:?}"
    );
    for round in 0..10 {
        if round == 5 {
            rig.site.nodes[0].kill_driver()?;
        }
        let again = take(rig, &name, &volume.volume_id).await?;
        ensure!(again == first, "{again:?} after {first:?}");
    }
    let second = take(rig, &rig.name("snapshot"), &volume.volume_id).await?;
    ensure!(
        list(rig, &first.snapshot_id, "").await? == std::slice::from_ref(&first),
        "by id"
    );
    let both = list(rig, "", &volume.volume_id).await?;
    ensure!(
        both.len() == 2 && both.contains(&first) && both.contains(&second),
        "{both:?}"
    );
    for unknown in ["none", "none@1", "a b"] {
        ensure!(list(rig, unknown, "").await?.is_empty(), "{unknown}");
        ensure!(list(rig, "", unknown).await?.is_empty(), "{unknown}");
    }
    let mut c = rig.clients(0).await?.controller;
    let got = c.get_snapshot(GetSnapshotRequest {
        snapshot_id: first.snapshot_id.clone(),
        ..GetSnapshotRequest::default()
    });
    ensure!(
        got.await?.into_inner().snapshot.as_ref() == Some(&first),
        "get"
    );
    for source in ["", volume.volume_id.as_str()] {
        let mut token = String::new();
        let mut seen = Vec::new();
        loop {
            let request = ListSnapshotsRequest {
                max_entries: 1,
                starting_token: token,
                source_volume_id: source.to_owned(),
                ..ListSnapshotsRequest::default()
            };
            let page = c.list_snapshots(request).await?.into_inner();
            ensure!(page.entries.len() <= 1, "{page:?}");
            seen.extend(page.entries.into_iter().filter_map(|entry| entry.snapshot));
            token = page.next_token;
            if token.is_empty() {
                break;
            }
        }
        ensure!(
            seen.contains(&first) && seen.contains(&second),
            "{source:?}: {seen:?}"
        );
    }
    let wrong = ListSnapshotsRequest {
        starting_token: "invalid-token".to_owned(),
        ..ListSnapshotsRequest::default()
    };
    expect("token", Code::Aborted, c.list_snapshots(wrong).await)?;
    let wrong = ListSnapshotsRequest {
        max_entries: -1,
        ..ListSnapshotsRequest::default()
    };
    expect(
        "max_entries",
        Code::InvalidArgument,
        c.list_snapshots(wrong).await,
    )?;
    let request = crate::csi::rig::delete(&volume.volume_id);
    expect(
        "delete",
        Code::FailedPrecondition,
        c.delete_volume(request).await,
    )?;
    for snapshot in [&first, &second] {
        for _ in 0..10 {
            remove(rig, &snapshot.snapshot_id).await?;
        }
    }
    ensure!(
        list(rig, "", &volume.volume_id).await?.is_empty(),
        "still there"
    );
    rig.delete(&volume.volume_id).await?;
    Ok(())
}

/// A name is that of one snapshot, of one volume; it may be any text.
pub(super) async fn names_of_snapshots(rig: &mut Rig) -> Result<()> {
    let one = rig.create("named").await?;
    let other = rig.create("named").await?;
    let unique = rig.name("");
    for name in [
        "ä".repeat(128 - unique.len()) + &unique,
        format!("{unique}/.."),
    ] {
        let snapshot = take(rig, &name, &one.volume_id).await?;
        let mut c = rig.clients(1).await?.controller;
        let request = CreateSnapshotRequest {
            name,
            source_volume_id: other.volume_id.clone(),
            ..CreateSnapshotRequest::default()
        };
        expect(
            "of another volume",
            Code::AlreadyExists,
            c.create_snapshot(request).await,
        )?;
        remove(rig, &snapshot.snapshot_id).await?;
    }
    rig.delete(&one.volume_id).await?;
    rig.delete(&other.volume_id).await?;
    Ok(())
}

/// A copy holds what its source held then, can be larger and not smaller, and lives on its own.
pub(super) async fn copies(rig: &mut Rig) -> Result<()> {
    let source = rig.create("source").await?;
    let used = rig.mount(&source.volume_id, 0).await?;
    let files = rig.files(0);
    files.write(&used.target, &data("before"))?;
    let snapshot = take(rig, &rig.name("snapshot"), &source.volume_id).await?;
    files.write(&used.target, &data("after"))?;
    rig.unmount(&used).await?;
    let of_snapshot = Type::Snapshot(SnapshotSource {
        snapshot_id: snapshot.snapshot_id.clone(),
    });
    let of_volume = Type::Volume(VolumeSource {
        volume_id: source.volume_id.clone(),
    });
    for (from, held, gib) in [(of_snapshot, "before", 1), (of_volume, "after", 2)] {
        let content = Some(VolumeContentSource { r#type: Some(from) });
        let wish = CreateVolumeRequest {
            volume_content_source: content.clone(),
            parameters: std::collections::HashMap::new(),
            ..rig.wish(&rig.name("copy"), gib)
        };
        let mut c = rig.clients(0).await?.controller;
        let copy = c
            .create_volume(wish.clone())
            .await?
            .into_inner()
            .volume
            .unwrap_or_default();
        ensure!(
            copy.content_source == content && copy.capacity_bytes == gib * GIB,
            "{copy:?}"
        );
        let again = c
            .create_volume(wish.clone())
            .await?
            .into_inner()
            .volume
            .unwrap_or_default();
        ensure!(again == copy, "{again:?} after {copy:?}");
        let empty = CreateVolumeRequest {
            volume_content_source: None,
            ..wish
        };
        expect(
            "not a copy",
            Code::AlreadyExists,
            c.create_volume(empty).await,
        )?;
        let used = rig.mount(&copy.volume_id, 1).await?;
        ensure!(
            rig.files(1).read(&used.target)? == data(held),
            "{held}: something else"
        );
        rig.files(1).write(&used.target, &data("own"))?;
        let stats = rig
            .clients(1)
            .await?
            .node
            .node_get_volume_stats(used.stats())
            .await?
            .into_inner();
        // The file system has grown with the copy: by far most of it is there.
        let total = stats.usage.first().map_or(0, |usage| usage.total);
        ensure!(total > gib * GIB / 10 * 8, "{stats:?}");
        rig.unmount(&used).await?;
        rig.delete(&copy.volume_id).await?;
    }
    let mut c = rig.clients(0).await?.controller;
    c.controller_expand_volume(ControllerExpandVolumeRequest {
        volume_id: source.volume_id.clone(),
        capacity_range: Some(CapacityRange {
            required_bytes: 2 * GIB,
            limit_bytes: 0,
        }),
        ..ControllerExpandVolumeRequest::default()
    })
    .await?;
    let smaller = CreateVolumeRequest {
        volume_content_source: Some(VolumeContentSource {
            r#type: Some(Type::Volume(VolumeSource {
                volume_id: source.volume_id.clone(),
            })),
        }),
        ..rig.wish(&rig.name("copy"), 1)
    };
    expect("smaller", Code::OutOfRange, c.create_volume(smaller).await)?;
    remove(rig, &snapshot.snapshot_id).await?;
    rig.delete(&source.volume_id).await?;
    Ok(())
}

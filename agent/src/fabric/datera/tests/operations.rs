//! What each operation asks for, and that repeating it changes nothing.

use berth_api::types::{DeletePolicy, Qos, SnapshotRef, VolumeSource, VolumeState};
use serde_json::json;

use super::*;

#[tokio::test]
async fn a_volume_is_made_by_options_and_found_again() {
    let stub = Stub::start().await;
    stub.model().slow_to_come = 4;
    let fabric = client(&stub);
    let request = VolumeRequest {
        size_bytes: Some(10 * GIB + 1),
        qos: Some(Qos {
            total_iops: Some(500),
            read_bytes_per_second: Some(1025),
            ..Qos::default()
        }),
        ..VolumeRequest::default()
    };
    let (volume, created) = create(&fabric, "vol-1", &request).await.unwrap();
    assert!(created);
    assert_eq!(volume.state, VolumeState::Available);
    assert_eq!(volume.size_bytes, 11 * GIB, "rounded up");
    assert_eq!(volume.units[0].qos.unwrap().total_iops, Some(500));
    assert_eq!(
        volume.units[0].qos.unwrap().read_bytes_per_second,
        Some(2048)
    );
    let (again, created) = create(&fabric, "vol-1", &request).await.unwrap();
    assert!(!created);
    assert_eq!(again, volume);
    assert_eq!(stub.count("POST /v2.2/app_instances"), 1);
    assert_eq!(stub.count("PUT /v2.2/login"), 1);
    let (_, body) = stub
        .model()
        .log
        .iter()
        .find(|(what, _)| what.starts_with("POST"))
        .unwrap()
        .clone();
    assert_eq!(
        body,
        json!({ "name": "vol-1", "access_control_mode": "deny_all", "storage_instances": [{
            "name": "storage-1", "ip_pool": { "path": "/access_network_ip_pools/default" }, "volumes": [{
                "name": "volume-1", "size": 11, "replica_count": 3, "performance_policy": {
                    "total_iops_max": 500, "read_iops_max": 0, "write_iops_max": 0, "total_bandwidth_max": 0,
                    "read_bandwidth_max": 2, "write_bandwidth_max": 0 } }] }] })
    );
    for other in [
        sized(12),
        VolumeRequest {
            replicas: Some(5),
            ..sized(1)
        },
        VolumeRequest {
            template: Some("gold".into()),
            ..VolumeRequest::default()
        },
        VolumeRequest {
            source: Some(VolumeSource::Volume(name("vol-2"))),
            ..VolumeRequest::default()
        },
    ] {
        let refused = create(&fabric, "vol-1", &other).await.unwrap_err();
        assert!(matches!(refused, FabricError::Conflict(_)), "{refused}");
    }
}

#[tokio::test]
async fn templates_are_overridden_where_the_fabric_can_and_grown_where_not() {
    for (software, posted) in [("3.3.0.0", 20), ("3.2.0.0", 10)] {
        let stub = Stub::start().await;
        stub.model().sw_version = software.into();
        stub.model().templates.push(
            json!({ "name": "gold", "storage_templates": [{ "name": "storage-1",
            "volume_templates": [{ "name": "volume-1", "size": 10, "replica_count": 3 }] }] }),
        );
        let fabric = client(&stub);
        let request = VolumeRequest {
            template: Some("gold".into()),
            ..sized(20)
        };
        let (volume, created) = create(&fabric, "vol-1", &request).await.unwrap();
        assert!(created);
        assert_eq!(
            (volume.size_bytes, volume.template.as_deref()),
            (20 * GIB, Some("gold")),
            "{software}"
        );
        let puts = stub
            .count("PUT /v2.2/app_instances/vol-1/storage_instances/storage-1/volumes/volume-1");
        assert_eq!(puts, usize::from(posted == 10), "{software}");
        let unknown = VolumeRequest {
            template: Some("lead".into()),
            ..sized(20)
        };
        let refused = create(&fabric, "vol-2", &unknown).await.unwrap_err();
        assert!(
            matches!(
                refused,
                FabricError::Invalid {
                    field: "template",
                    ..
                }
            ),
            "{refused}"
        );
        assert_eq!(
            fabric.all_templates(&op()).await.unwrap()[0].units[0].size_bytes,
            10 * GIB
        );
    }
}

#[tokio::test]
async fn copies_say_what_they_were_made_from() {
    let stub = Stub::start().await;
    let fabric = client(&stub);
    create(&fabric, "source", &sized(10)).await.unwrap();
    let (snapshot, _) = fabric
        .take_snapshot(&op(), &name("source"), "nightly")
        .await
        .unwrap();
    let from = |snapshot: &str| VolumeRequest {
        source: Some(VolumeSource::Snapshot(SnapshotRef {
            volume: name("source"),
            snapshot: snapshot.into(),
        })),
        ..sized(15)
    };
    let (copy, created) = create(&fabric, "copy", &from("nightly")).await.unwrap();
    assert!(created);
    assert_eq!(copy.size_bytes, 15 * GIB, "a copy is grown");
    assert_eq!(
        copy.description,
        Some(format!("copy of source at {}", snapshot.id))
    );
    let (_, created) = create(&fabric, "copy", &from(&snapshot.id)).await.unwrap();
    assert!(!created, "the same by its identifier");
    fabric
        .take_snapshot(&op(), &name("source"), "weekly")
        .await
        .unwrap();
    let refused = create(&fabric, "copy", &from("weekly")).await.unwrap_err();
    assert!(matches!(refused, FabricError::Conflict(_)), "{refused}");
    let missing = create(&fabric, "copy-2", &from("none")).await.unwrap_err();
    assert!(missing.is_not_found(), "{missing}");
    assert_eq!(stub.model().instances.len(), 2);
}

#[tokio::test]
async fn exactly_the_initiator_that_was_named_comes_and_goes() {
    let stub = Stub::start().await;
    let fabric = client(&stub);
    let volume = name("vol-1");
    create(&fabric, "vol-1", &sized(1)).await.unwrap();
    let [a, b] = ["iqn.2026-11.example:a", "iqn.2026-11.example:b"];
    for initiator in [a, b, a] {
        fabric.admit(&op(), &volume, initiator).await.unwrap();
    }
    let access = |stub: &Stub| {
        let model = stub.model();
        model.instances[0]["storage_instances"][0]["acl_policy"]["initiators"].clone()
    };
    let entry = |initiator| json!({ "path": format!("/initiators/{initiator}") });
    assert_eq!(access(&stub), json!([entry(a), entry(b)]));
    assert_eq!(stub.count("POST /v2.2/initiators"), 2);
    fabric.dismiss(&op(), &volume, a).await.unwrap();
    fabric.dismiss(&op(), &volume, a).await.unwrap();
    assert_eq!(access(&stub), json!([entry(b)]));
    fabric.dismiss(&op(), &volume, b).await.unwrap();
    assert_eq!(access(&stub), json!([]), "also the last one");
    fabric.dismiss(&op(), &name("absent"), b).await.unwrap();
    assert!(
        fabric
            .admit(&op(), &name("absent"), b)
            .await
            .unwrap_err()
            .is_not_found()
    );
}

#[tokio::test]
async fn volumes_grow_and_never_shrink_and_limits_come_and_go() {
    let stub = Stub::start().await;
    let fabric = client(&stub);
    let volume = name("vol-1");
    create(&fabric, "vol-1", &sized(10)).await.unwrap();
    assert_eq!(
        fabric
            .enlarge(&op(), &volume, 12 * GIB)
            .await
            .unwrap()
            .size_bytes,
        12 * GIB
    );
    fabric.enlarge(&op(), &volume, 12 * GIB).await.unwrap();
    for size in [11 * GIB, 0, u64::MAX] {
        let refused = fabric.enlarge(&op(), &volume, size).await.unwrap_err();
        assert!(
            matches!(refused, FabricError::OutOfRange { .. }),
            "{refused}"
        );
    }
    assert_eq!(
        stub.count("PUT /v2.2/app_instances/vol-1/storage_instances/storage-1/volumes/volume-1"),
        1
    );
    let qos = Qos {
        total_iops: Some(7),
        ..Qos::default()
    };
    for _ in 0..2 {
        let limited = fabric.limit(&op(), &volume, Some(qos)).await.unwrap();
        assert_eq!(limited.units[0].qos, Some(qos));
    }
    for none in [None, Some(Qos::default())] {
        assert_eq!(
            fabric.limit(&op(), &volume, none).await.unwrap().units[0].qos,
            None
        );
    }
}

#[tokio::test]
async fn a_volume_goes_only_when_nobody_uses_it() {
    let stub = Stub::start().await;
    let fabric = client(&stub);
    let volume = name("vol-1");
    let gone = |policy, snapshots| {
        let (fabric, volume) = (&fabric, &volume);
        async move { fabric.remove(&op(), volume, policy, snapshots).await }
    };
    gone(DeletePolicy::Delete, false).await.unwrap();
    create(&fabric, "vol-1", &sized(1)).await.unwrap();
    fabric
        .admit(&op(), &volume, "iqn.2026-11.example:a")
        .await
        .unwrap();
    let sessions = json!(["iqn.2026-11.example:a"]);
    stub.model().instances[0]["storage_instances"][0]["active_initiators"] = sessions;
    let refused = gone(DeletePolicy::Delete, true).await.unwrap_err();
    let FabricError::InUse { holder, .. } = &refused else {
        panic!("{refused}");
    };
    assert_eq!(holder.as_deref(), Some("iqn.2026-11.example:a"));
    assert_eq!(
        stub.model().instances[0]["admin_state"],
        "online",
        "nothing was done"
    );
    let refused = fabric
        .roll_back(&op(), &volume, "nightly")
        .await
        .unwrap_err();
    assert!(refused.is_not_found(), "{refused}");
    stub.model().instances[0]["storage_instances"][0]["active_initiators"] = json!([]);
    fabric
        .take_snapshot(&op(), &volume, "nightly")
        .await
        .unwrap();
    let refused = gone(DeletePolicy::Delete, false).await.unwrap_err();
    assert!(matches!(refused, FabricError::InUse { .. }), "{refused}");
    gone(DeletePolicy::Retain, false).await.unwrap();
    let kept = fabric.find(&op(), &volume).await.unwrap();
    assert_eq!(
        (kept.state, kept.units[0].access.len()),
        (VolumeState::Offline, 0)
    );
    gone(DeletePolicy::Delete, true).await.unwrap();
    assert!(stub.model().instances.is_empty());
}

#[tokio::test]
async fn snapshots_by_name() {
    let stub = Stub::start().await;
    let fabric = client(&stub);
    let volume = name("vol-1");
    create(&fabric, "vol-1", &sized(1)).await.unwrap();
    let (first, created) = fabric
        .take_snapshot(&op(), &volume, "nightly")
        .await
        .unwrap();
    assert!(created && first.ready && first.taken_unix_ms.is_some());
    let (again, created) = fabric
        .take_snapshot(&op(), &volume, "nightly")
        .await
        .unwrap();
    assert!(!created);
    assert_eq!(first, again);
    fabric
        .take_snapshot(&op(), &volume, "weekly")
        .await
        .unwrap();
    let all = fabric.all_snapshots(&op(), &volume).await.unwrap();
    assert_eq!(all.len(), 2);
    assert_eq!(all[0].id, first.id);
    fabric.roll_back(&op(), &volume, "nightly").await.unwrap();
    {
        let model = stub.model();
        let instance = &model.instances[0];
        let point = &instance["storage_instances"][0]["volumes"][0]["restore_point"];
        assert_eq!(*point, "1600000000.123456789");
        assert_eq!(instance["admin_state"], "online");
    }
    for _ in 0..2 {
        fabric
            .drop_snapshot(&op(), &volume, "nightly")
            .await
            .unwrap();
    }
    assert_eq!(fabric.all_snapshots(&op(), &volume).await.unwrap().len(), 1);
}

/// A deletion moves what lies behind it towards the beginning: what would go by unseen is found.
#[tokio::test]
async fn lists_are_whole_while_volumes_are_deleted() {
    let stub = Stub::start().await;
    let mut settings = stub.settings();
    settings.page_size = 5;
    let fabric = Datera::new(&settings, "berth-test").unwrap();
    for number in 0..40 {
        let name = format!("vol-{number:02}");
        create(&fabric, &name, &sized(1)).await.unwrap();
    }
    stub.model().vanishing = 7;
    let all = fabric.all(&op()).await.unwrap();
    let names: Vec<_> = all.iter().map(|volume| volume.name.to_string()).collect();
    for number in 7..40 {
        let name = format!("vol-{number:02}");
        assert!(names.contains(&name), "{name} in {names:?}");
    }
}

#[tokio::test]
async fn lists_are_read_page_by_page() {
    let stub = Stub::start().await;
    let fabric = client(&stub);
    for number in 0..23 {
        create(&fabric, &format!("vol-{number:02}"), &sized(1))
            .await
            .unwrap();
    }
    for page_max in [1, 7, 23, 100] {
        stub.model().page_max = page_max;
        let all = fabric.all(&op()).await.unwrap();
        let names: Vec<_> = all.iter().map(|volume| volume.name.to_string()).collect();
        let expected: Vec<_> = (0..23).map(|number| format!("vol-{number:02}")).collect();
        assert_eq!(names, expected, "{page_max}");
    }
    let health = fabric.system(&op()).await.unwrap();
    assert_eq!(
        (health.name.as_str(), health.version.as_str()),
        ("stub", "3.3.0.0")
    );
    assert_eq!(health.capacity.unwrap().available_bytes, 900);
}

#[tokio::test]
async fn requests_that_cannot_be_meant_are_refused_before_anything_is_sent() {
    let stub = Stub::start().await;
    let fabric = client(&stub);
    for (request, field) in [
        (VolumeRequest::default(), "size_bytes"),
        (
            VolumeRequest {
                template: Some("../x".into()),
                ..sized(1)
            },
            "template",
        ),
        (
            VolumeRequest {
                ip_pool: Some("a/b".into()),
                ..sized(1)
            },
            "ip_pool",
        ),
        (
            VolumeRequest {
                description: Some("a\"b".into()),
                ..sized(1)
            },
            "description",
        ),
        (
            VolumeRequest {
                template: Some("gold".into()),
                source: Some(VolumeSource::Volume(name("abc"))),
                ..sized(1)
            },
            "template",
        ),
    ] {
        match create(&fabric, "vol-1", &request).await.unwrap_err() {
            FabricError::Invalid { field: at, .. } => assert_eq!(at, field),
            other => panic!("{other}"),
        }
    }
    assert!(stub.model().log.is_empty());
    stub.model().sw_version = "3.2.9.9".into();
    let policy = VolumeRequest {
        placement_policy: Some("fast".into()),
        ..sized(1)
    };
    let refused = create(&fabric, "vol-1", &policy).await.unwrap_err();
    assert!(matches!(refused, FabricError::Unsupported(_)), "{refused}");
}

/// A volume that could not be deleted can be used again.
#[tokio::test]
async fn what_cannot_be_deleted_is_online_again() {
    let stub = Stub::start().await;
    let fabric = client(&stub);
    create(&fabric, "vol-1", &sized(1)).await.unwrap();
    let refusal = json!({ "name": "InvalidRequestError", "message": "not now" });
    stub.fault(
        "DELETE /v2.2/app_instances",
        stub::Fault::Status(400, refusal),
    );
    let volume = name("vol-1");
    let op = op();
    let delete = || fabric.remove(&op, &volume, DeletePolicy::Delete, false);
    assert!(matches!(delete().await, Err(FabricError::Refused { .. })));
    assert_eq!(stub.model().instances[0]["admin_state"], "online");
    delete().await.unwrap();
    assert!(stub.model().instances.is_empty());
}

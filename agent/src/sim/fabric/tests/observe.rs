//! Metrics, events and capacity.

use super::data_path::NodeDaemon;
use super::*;

/// The value of the only row's point.
fn latest(rig: &Rig, metric: &str, query: &str) -> f64 {
    let rows = rig
        .client
        .get(&format!("/metrics/io/{metric}/latest?{query}"));
    assert_eq!(rows.as_array().unwrap().len(), 1, "{rows}");
    assert!(rows[0]["point"]["time"].is_u64(), "{rows}");
    rows[0]["point"]["value"].as_f64().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_count_what_initiators_do() {
    // No sample ends by itself.
    let rig = Rig::with(|options| options.metrics_interval = DEADLINE * 60);
    let host = NodeDaemon::start().await;
    let busy = rig.client.volume("busy-1");
    rig.client.volume("idle-1");
    rig.client.grant("busy-1", NODE);
    let target = storage(&busy).clone();
    let mut disk = host.attach("busy", &rig, &target, 0).await;
    let id = busy["id"].as_str().unwrap();
    let reads = latest(&rig, "reads", &format!("uuid={id}"));
    for byte in 0..4 {
        data_path::write(&mut disk, 8192, byte).await;
    }
    disk.read(1 << 20, 65536).await.unwrap();
    let volume = &target["volumes"][0];
    let by_path = format!("path={}", path(volume));
    let by_uuid = format!("uuid={}", volume["uuid"].as_str().unwrap());
    for scope in [
        "path=/system",
        &by_path,
        &by_uuid,
        &format!("path={}", path(&target)),
    ] {
        assert_eq!(latest(&rig, "writes", scope), 4.0, "{scope}");
        assert_eq!(latest(&rig, "bytes_written", scope), 4.0 * 8192.0);
        assert!(latest(&rig, "reads", scope) >= reads + 1.0);
        assert!(latest(&rig, "bytes_read", scope) >= 65536.0);
    }
    for metric in [
        "iops_write",
        "thpt_write",
        "lat_avg_write",
        "lat_100_write",
        "iops_read",
    ] {
        assert!(latest(&rig, metric, &by_path) > 0.0, "{metric}");
    }
    let slowest = latest(&rig, "lat_100_write", &by_path);
    assert!(latest(&rig, "lat_50_write", &by_path) <= slowest);
    assert_eq!(latest(&rig, "writes", "path=/app_instances/idle-1"), 0.0);
    let rows = rig.client.get("/metrics/io/writes/latest?path=/volumes");
    assert_eq!(rows.as_array().unwrap().len(), 2, "{rows}");
    let node = rig.client.get("/metrics/hw/cpu_usage/latest");
    assert_eq!(node.as_array().unwrap().len(), 3);
    assert!(
        node[0]["entity_path"]
            .as_str()
            .unwrap()
            .starts_with("/storage_nodes/")
    );
    for wrong in ["path=/volumes/x", "uuid=x", "path=/app_instances/none-1"] {
        let refused = rig
            .client
            .refused("GET", &format!("/metrics/io/reads?{wrong}"), Value::Null);
        assert_eq!(
            (refused.0, refused.1.as_str()),
            (404, "NotFoundError"),
            "{wrong}"
        );
    }
    let (status, ..) = rig
        .client
        .refused("GET", "/metrics/io/reads?since=now", Value::Null);
    assert_eq!(status, 422);
    drop(disk);
    host.detach("busy").await;
    host.daemon.stop().await;
}

#[test]
fn samples_become_points() {
    let rig = Rig::with(|options| options.metrics_interval = Duration::from_millis(20));
    rig.client.volume("pv-1");
    let begun = std::time::Instant::now();
    let rows = loop {
        let rows = rig
            .client
            .get("/metrics/io/reads?path=/app_instances&since=1h");
        if rows[0]["points"].as_array().unwrap().len() >= 3 {
            break rows;
        }
        assert!(begun.elapsed() < DEADLINE, "{rows}");
    };
    assert_eq!(rows[0]["points"][0]["value"], json!(0.0));
    let long_ago = rig.client.get("/metrics/io/reads?to=1000000000");
    assert_eq!(long_ago[0]["points"], json!([]));
    let one = rig.client.get("/metrics/io/reads?ival=1h");
    assert_eq!(one[0]["points"].as_array().unwrap().len(), 1);
}

#[test]
fn changes_are_events() {
    let rig = Rig::new();
    let started = rig.client.get("/events/system");
    assert_eq!(started[0]["code"], "SYSTEM_START");
    let instance = rig.client.volume("pv-1");
    let volume = path(&storage(&instance)["volumes"][0]).to_owned();
    rig.client.put(&volume, json!({"size": 2}));
    rig.client.call("PUT", &volume, json!({"size": 1}));
    rig.client.post("/tenants", json!({"name": "other"}));
    let events = rig.client.get("/events/user?since=1h");
    let told =
        |event: &Value| format!("{} {}", event["code"], event["object_path"]).replace('"', "");
    let told: Vec<String> = events.as_array().unwrap().iter().map(told).collect();
    assert_eq!(
        told,
        [
            "TENANTS_CREATE /tenants/root/other".to_owned(),
            format!("VOLUMES_UPDATE {volume}"),
            format!("APP_INSTANCES_CREATE {}", path(&instance)),
        ],
        "what was refused is no event"
    );
    let event = &events[1];
    assert_eq!(rig.client.get(path(event)), *event);
    for member in [
        "time",
        "code",
        "severity",
        "message",
        "uuid",
        "last_seen_ts",
        "context",
    ] {
        assert!(event[member].is_string(), "{member}");
    }
    assert_eq!(
        rig.client
            .get("/events/user?limit=1")
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(rig.client.get("/events/user?to=1000000000"), json!([]));
    assert_eq!(rig.client.get("/events/debug"), json!([]));
    assert_eq!(
        rig.client.refused("GET", "/events/none", Value::Null).0,
        404
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn capacity_is_what_volumes_have_and_take() {
    const MIB: u64 = 1 << 20;
    let rig = Rig::with(|options| options.capacity_bytes = 10 << 30);
    let host = NodeDaemon::start().await;
    let number = |system: &Value, name: &str| system[name].as_u64().unwrap();
    let empty = rig.client.get("/system");
    assert_eq!(number(&empty, "total_capacity"), 10 << 30);
    assert_eq!(number(&empty, "available_capacity"), 10 << 30);
    assert_eq!(number(&empty, "total_provisioned_capacity"), 0);
    let instance = rig.client.volume("pv-1");
    rig.client.post("/app_instances", json!({"name": "fast-1", "storage_instances": [
        {"name": "storage-1", "volumes": [{"name": "volume-1", "size": 3, "placement_mode": "all_flash"}]},
    ]}));
    rig.client.grant("pv-1", NODE);
    let target = storage(&instance).clone();
    let mut disk = host.attach("pv", &rig, &target, 0).await;
    disk.write(0, berth_iobuf::Payload::from(vec![1; 4 << 20]), true)
        .await
        .unwrap();
    let volume = path(&target["volumes"][0]).to_owned();
    let full = rig.client.get("/system");
    assert_eq!(number(&full, "total_provisioned_capacity"), 4 << 30);
    assert_eq!(number(&full, "all_flash_provisioned_capacity"), 3 << 30);
    assert_eq!(number(&full, "hybrid_provisioned_capacity"), 1 << 30);
    let used = (10 << 30) - number(&full, "available_capacity");
    // The file system may add a little of its own.
    assert!((4 * MIB..5 * MIB).contains(&used), "{used}");
    assert_eq!(number(&full, "all_flash_available_capacity"), 5 << 30);
    assert_eq!(number(&full, "hybrid_available_capacity"), (5 << 30) - used);
    assert_eq!(number(&rig.client.get(&volume), "physical_size"), used);
    rig.client.post(&format!("{volume}/snapshots"), json!({}));
    let twice = (10 << 30) - number(&rig.client.get("/system"), "available_capacity");
    assert!(
        (8 * MIB..10 * MIB).contains(&twice),
        "the snapshot counts: {twice}"
    );
    drop(disk);
    host.detach("pv").await;
    host.daemon.stop().await;
}

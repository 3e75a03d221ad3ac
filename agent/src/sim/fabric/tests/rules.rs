//! What is refused, and by which name; what two versions do differently.

use super::*;

fn validation(client: &Client, method: &str, path: &str, body: Value) {
    let shown = body.to_string();
    let (status, answer) = client.call(method, path, body);
    assert_eq!(
        (status, &answer["name"]),
        (422, &json!("ValidationFailedError")),
        "{shown}: {answer}"
    );
    assert!(!answer["errors"].as_array().unwrap().is_empty());
}

#[test]
fn bodies_that_break_the_schema_are_refused() {
    let rig = Rig::new();
    let client = &rig.client;
    let volume = |size: Value| json!({"name": "pv-1", "storage_instances": [{"name": "storage-1", "volumes": [{"name": "volume-1", "size": size}]}]});
    for body in [
        json!({}),
        json!({"name": "ab"}),
        json!({"name": "pv-1", "colour": "red"}),
        json!({"name": "pv-1", "create_mode": "magic"}),
        json!({"name": "pv-1", "uuid": "nonsense"}),
        json!({"name": 7}),
        json!([]),
        volume(json!(0)),
        volume(json!(32_769)),
        volume(json!(1.5)),
        volume(json!("10")),
        json!({"name": "pv-1", "storage_instances": [{"name": "storage-1", "ip_pool": {"path": "/x", "name": "y"}}]}),
        json!({"name": "pv-1", "storage_instances": [{"name": "same-1"}, {"name": "same-1"}]}),
        json!({"name": "pv-1", "template_override": {}}),
        json!({"name": "pv-1", "app_template": {"path": "/app_templates/basic"}, "storage_instances": []}),
        json!({"name": "pv-1", "app_template": {"path": "/app_templates/basic"},
            "template_override": {"storage_instances": {"none": {}}}}),
    ] {
        validation(client, "POST", "/app_instances", body);
    }
    assert_eq!(client.get("/app_instances"), json!([]));
    let files = std::fs::read_dir(rig.dir.path().join("data"))
        .unwrap()
        .count();
    assert_eq!(files, 0, "a refusal leaves nothing behind");
    let instance = client.volume("pv-1");
    let si = path(storage(&instance)).to_owned();
    for body in [
        json!({"type": "chap"}),
        json!({"type": "chap", "target_user_name": "user", "target_pswd": "too-short"}),
        json!({"type": "chap", "target_user_name": "user", "target_pswd": "longer-than-sixteen"}),
        json!({"type": "mchap", "target_user_name": "user", "target_pswd": "twelve-bytes"}),
    ] {
        validation(client, "PUT", &format!("{si}/auth"), body);
    }
    validation(
        client,
        "POST",
        "/initiators",
        json!({"id": "node", "name": "node-1"}),
    );
    validation(
        client,
        "PUT",
        &format!("{si}/volumes/volume-1"),
        json!({"replica_count": 6}),
    );
    let policy = format!("{si}/volumes/volume-1/performance_policy");
    validation(
        client,
        "POST",
        &policy,
        json!({"total_iops_max": 10_000_001}),
    );
    let snapshot = json!({"snapshot_policies": [{"name": "nightly", "retention_count": 0, "interval": "1day"}]});
    validation(client, "PUT", path(&instance), snapshot);
    let (status, bytes) = client
        .exchange("POST", "/v2.2/initiators", "application/json", "{\"id\":")
        .unwrap();
    let answer: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(
        (status, &answer["name"]),
        (400, &json!("InvalidRequestError"))
    );
}

#[test]
fn what_is_not_there_is_told_exactly() {
    let rig = Rig::new();
    let client = &rig.client;
    client.volume("pv-1");
    for missing in [
        "/app_instances/none",
        "/app_instances/pv-1/storage_instances/none",
        "/app_instances/pv-1/storage_instances/storage-1/volumes/none",
        "/app_instances/pv-1/storage_instances/storage-1/volumes/volume-1/snapshots/1.1",
        "/initiators/iqn.1993-08.org.debian:none",
        "/app_templates/none",
        "/access_network_ip_pools/none",
        "/tenants/root/none",
    ] {
        let refused = client.refused("GET", missing, Value::Null);
        assert_eq!(
            (refused.0, refused.1.as_str()),
            (404, "NotFoundError"),
            "{missing}"
        );
    }
    assert_eq!(
        client.refused("GET", "/nonsense", Value::Null).1,
        "InvalidRouteError"
    );
    assert_eq!(
        client.refused("DELETE", "/app_instances", Value::Null).0,
        405
    );
    let acl = "/app_instances/pv-1/storage_instances/storage-1/acl_policy";
    let body = json!({"initiators": [{"path": "/initiators/iqn.1993-08.org.debian:none"}]});
    assert_eq!(client.refused("PUT", acl, body).0, 404);
    let pool = client.get("/access_network_ip_pools/default");
    assert_eq!(pool["network_paths"].as_array().unwrap().len(), 2);
    let ips: Vec<String> = rig
        .fabric
        .portals()
        .iter()
        .map(|p| p.ip().to_string())
        .collect();
    assert_eq!(pool["network_paths"][1]["start_ip"], ips[1]);
}

#[test]
fn v21_is_stricter_and_older() {
    let rig = Rig::new();
    let old = Client {
        version: "v2.1",
        ..Client::login(rig.fabric.http().unwrap())
    };
    validation(
        &old,
        "POST",
        "/initiators",
        json!({"id": NODE, "name": "node-1", "force": true}),
    );
    old.post("/initiators", json!({"id": NODE, "name": "node-1"}));
    let listed = old.ok("GET", "/initiators", Value::Null);
    assert_eq!(
        (&listed["metadata"], &listed["version"]),
        (&json!({"total": 1}), &json!("v2.1"))
    );
    let instance = old.volume("pv-1");
    let volume = &storage(&instance)["volumes"][0];
    assert!(volume.get("logical_size").is_none() && volume.get("placement_policy").is_none());
    assert_eq!(
        old.refused("GET", "/placement_policies", Value::Null).0,
        404
    );
}

#[test]
fn behaviour_changes_at_3_3() {
    let body = json!({"name": "pv-1", "storage_instances": [{"name": "storage-1", "volumes": [
        {"name": "volume-1", "size": 1, "placement_policy": {"path": "/placement_policies/fast"}},
    ]}]});
    let list = "/app_instances?filter=match(name,none.*)";
    let old = Rig::version("3.2.9.9");
    validation(&old.client, "POST", "/app_instances", body.clone());
    old.client.volume("pv-2");
    let total =
        |rig: &Rig| rig.client.ok("GET", list, Value::Null)["metadata"]["total_count"].clone();
    assert_eq!(total(&old), 1, "the total forgets the filter");
    assert_eq!(old.client.get("/system")["sw_version"], "3.2.9.9");
    let new = Rig::version("3.3.0.0");
    let instance = new.client.post("/app_instances", body);
    let policy = &storage(&instance)["volumes"][0]["placement_policy"];
    assert_eq!(policy["resolved_path"], "/placement_policies/fast");
    assert_eq!(total(&new), 0);
    let api = new.client.ok("GET", "/api", Value::Null);
    assert!(api.get("/app_instances/:id/int_ecosystem_data").is_some());
}

#[test]
fn one_fabric_a_state_directory() {
    let rig = Rig::new();
    let error = Fabric::start(Options::new(rig.dir.path())).unwrap_err();
    assert!(
        error.to_string().contains("another simulated fabric"),
        "{error}"
    );
    let fingerprint = rig.fabric.fingerprint().unwrap().to_owned();
    let rig = rig.restart();
    assert_eq!(rig.fabric.fingerprint(), Some(&*fingerprint));
    let Rig { fabric, dir, .. } = rig;
    fabric.stop();
    std::fs::write(dir.path().join("catalogue.json"), "{\"format\": 1").unwrap();
    let error = Fabric::start(Options::new(dir.path())).unwrap_err();
    assert!(error.to_string().contains("catalogue.json"), "{error}");
}

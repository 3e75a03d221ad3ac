//! The life of an app instance as each of the known clients leads it.

use super::*;

#[test]
fn login_expiry_and_logout() {
    let rig = Rig::new();
    let mut client = Client::login(rig.fabric.http().unwrap());
    assert_eq!(client.key.len(), 32);
    let form = "name=admin&password=password";
    let kind = "application/x-www-form-urlencoded";
    let (status, bytes) = client.exchange("PUT", "/v2.2/login", kind, form).unwrap();
    let answer: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!((status, &answer["version"]), (200, &json!("v2.2")));
    let wrong = json!({"name": "admin", "password": "wrong-one"});
    let (status, name, _) = client.refused("PUT", "/login", wrong);
    assert_eq!((status, name.as_str()), (401, "AuthFailedError"));

    rig.fabric.end_sessions();
    let (status, answer) = client.call("GET", "/system", Value::Null);
    assert_eq!(
        (status, &answer["name"]),
        (401, &json!("InvalidSessionKeyError"))
    );
    assert_eq!(
        answer["message"],
        "The key provided with the request does not correspond to a valid session."
    );
    client.key.clear();
    let (status, _, code) = client.refused("GET", "/system", Value::Null);
    assert_eq!((status, code), (401, 99));

    let client = Client::login(rig.fabric.http().unwrap());
    client.ok("PUT", "/logout", json!({}));
    assert_eq!(client.refused("GET", "/system", Value::Null).0, 401);
}

#[test]
fn versions_are_found() {
    let rig = Rig::new();
    let (status, bytes) = rig
        .client
        .exchange("GET", "/api_versions", "application/json", "")
        .unwrap();
    let answer: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(
        (status, answer),
        (200, json!({"api_versions": ["v2.1", "v2.2"]}))
    );
    let unknown = rig
        .client
        .exchange("PUT", "/v3/login", "application/json", "{}");
    assert_eq!(unknown.unwrap().0, 404);
    // A GET may have a body, which nobody looks at.
    let body = rig
        .client
        .exchange("GET", "/v2.2/system", "application/json", "{\"params\":{");
    assert_eq!(body.unwrap().0, 200);
}

#[test]
fn the_cinder_way() {
    let rig = Rig::version("3.2.0.0");
    let client = &rig.client;
    let (status, name, _) = client.refused("POST", "/tenants", json!({"name": "root"}));
    assert_eq!((status, name.as_str()), (409, "ConflictError"));
    let uuid = "5d0c4a7e-2f61-4b8e-9a53-1c7be0d2f944";
    let instance = client.post(
        "/app_instances",
        json!({
            "create_mode": "openstack", "uuid": uuid, "name": format!("OS-vol-{uuid}"),
            "access_control_mode": "deny_all",
            "storage_instances": [{
                "name": "storage-1", "ip_pool": {"path": "/access_network_ip_pools/default"},
                "volumes": [{
                    "name": "volume-1", "size": 2, "replica_count": 3, "snapshot_policies": [],
                    "placement_mode": "hybrid",
                }],
            }],
        }),
    );
    assert_eq!(instance["uuid"], uuid);
    assert_eq!(storage(&instance)["volumes"][0]["uuid"], uuid);
    let found = client.ok(
        "GET",
        &format!("/app_instances?filter=match(name,.*{uuid}.*)"),
        Value::Null,
    );
    assert_eq!(found["data"][0]["id"], instance["id"]);
    assert_eq!(found["metadata"]["request_count"], 1);
    let metadata = format!("{}/metadata", path(&instance));
    client.put(&metadata, json!({"host": "a", "multipath": true}));
    client.put(&metadata, json!({"host": "b"}));
    assert_eq!(
        client.get(&metadata),
        json!({"host": "b", "multipath": true})
    );
    let newer = format!("{}/int_ecosystem_data", path(&instance));
    assert_eq!(client.refused("GET", &newer, Value::Null).0, 404);
    let long = json!({"text": "x".repeat(2048)});
    assert_eq!(client.refused("PUT", &metadata, long).0, 400);

    let initiator = format!("/initiators/{NODE}");
    let missing = client.refused("GET", &initiator, Value::Null);
    assert_eq!((missing.0, missing.1.as_str()), (404, "NotFoundError"));
    client.post(
        "/initiators",
        json!({"id": NODE, "name": "OpenStack-1", "force": true}),
    );
    assert_eq!(client.get(&initiator)["tenant"], "/root");
    let acl = format!("{}/acl_policy", path(storage(&instance)));
    client.put(
        &acl,
        json!({"initiators": [{"path": initiator}], "initiator_groups": []}),
    );
    let again = client.refused(
        "PUT",
        &format!("{acl}/initiators"),
        json!({"op": "add", "path": initiator}),
    );
    assert_eq!((again.0, again.1.as_str()), (409, "ConflictError"));

    let volume = path(&storage(&instance)["volumes"][0]).to_owned();
    let policy = format!("{volume}/performance_policy");
    assert_eq!(client.refused("GET", &policy, Value::Null).0, 404);
    client.post(&policy, json!({"total_iops_max": 1000}));
    client.put(&policy, json!({"read_iops_max": 10}));
    let limits = client.get(&volume)["performance_policy"].clone();
    assert_eq!(
        (&limits["total_iops_max"], &limits["read_iops_max"]),
        (&json!(1000), &json!(10))
    );
    client.delete(&policy);
    assert!(client.get(&volume).get("performance_policy").is_none());

    client.put(path(&instance), json!({"admin_state": "offline"}));
    assert_eq!(
        client.get(path(&instance))["storage_instances"][0]["op_state"],
        "unavailable"
    );
    client.put(&volume, json!({"size": 3}));
    assert_eq!(client.refused("PUT", &volume, json!({"size": 2})).0, 400);
    client.put(&acl, json!({"initiators": []}));
    let deleted = client.ok("DELETE", path(&instance), json!({"force": true}));
    assert_eq!(deleted["data"]["id"], instance["id"]);
    client.delete(&initiator);
    let gone = client.call("GET", path(&instance), Value::Null);
    assert!(gone.0 == 404 && gone.1["message"].as_str().unwrap().contains("not exist"));
}

#[test]
fn the_csi_way() {
    let rig = Rig::new();
    let client = &rig.client;
    let missing = client.refused("GET", "/app_instances/CSI-pvc-1", Value::Null);
    assert_eq!(missing.0, 404);
    let instance = client.post(
        "/app_instances",
        json!({
            "name": "CSI-pvc-1", "create_mode": "kubernetes",
            "app_template": {"path": "/app_templates/basic_small"},
            "template_override": {"storage_instances": {"storage-1": {"volumes": {"volume-1": {"size": "20"}}}}},
        }),
    );
    let volume = storage(&instance)["volumes"][0].clone();
    assert_eq!(volume["size"], 20);
    assert_eq!(
        instance["app_template"]["resolved_path"],
        "/app_templates/basic_small"
    );
    let twice = client.refused("POST", "/app_instances", json!({"name": "CSI-pvc-1"}));
    assert_eq!(twice.0, 409);
    let ecosystem = format!("{}/int_ecosystem_data", path(&instance));
    client.put(&ecosystem, json!({"data": {"k": "v"}}));
    assert_eq!(
        client.get(&format!("{}/metadata", path(&instance))),
        json!({"k": "v"})
    );

    let snapshots = format!("{}/snapshots", path(&volume));
    let uuid = "5d0c4a7e-2f61-4b8e-9a53-1c7be0d2f944";
    let snapshot = client.post(&snapshots, json!({"uuid": uuid}));
    let twice = client.refused("POST", &snapshots, json!({"uuid": uuid}));
    assert_eq!(twice, (400, "InvalidRequestError".to_owned(), 15));
    let (seconds, nanos) = snapshot["utc_ts"]
        .as_str()
        .unwrap()
        .split_once('.')
        .unwrap();
    assert!(seconds.len() >= 10 && !nanos.is_empty());
    assert_eq!(client.get(&snapshots)[0]["uuid"], uuid);
    let embedded = client.get(path(&instance));
    assert_eq!(
        storage(&embedded)["volumes"][0]["snapshots"][0]["utc_ts"],
        snapshot["utc_ts"]
    );
    let online = client.refused("DELETE", path(&instance), Value::Null);
    assert_eq!(online.0, 400);
    let query = format!("{}?force=false&remote_provider_uuid=", path(&snapshot));
    client.ok("DELETE", &query, Value::Null);
    assert_eq!(client.get(&snapshots), json!([]));
    client.put(
        path(&instance),
        json!({"admin_state": "offline", "force": true}),
    );
    client.delete(path(&instance));
}

#[test]
fn templates_are_made_used_and_kept_while_they_are_used() {
    let rig = Rig::new();
    let client = &rig.client;
    let names: Vec<Value> = client
        .get("/app_templates")
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["name"].clone())
        .collect();
    assert_eq!(
        names,
        ["basic", "basic_small", "gold", "bronze", "database"]
    );
    let template = client.post(
        "/app_templates",
        json!({"name": "silver", "descr": "a test", "storage_templates": [{
            "name": "storage-1", "ip_pool": "/access_network_ip_pools/default",
            "volume_templates": [{"name": "volume-1", "size": 4, "replica_count": 2}],
        }]}),
    );
    let part = "/app_templates/silver/storage_templates/storage-1/volume_templates/volume-1";
    assert_eq!(client.get(part)["size"], 4);
    client.post(
        "/app_templates",
        json!({"name": "copied", "copy_from": {"path": path(&template)}}),
    );
    assert_eq!(
        client.get("/app_templates/copied")["storage_templates"][0]["volume_templates"][0]["size"],
        4
    );
    let body = json!({"name": "use-1", "app_template": {"path": "/app_templates/silver"}});
    let instance = client.post("/app_instances", body);
    assert_eq!(
        client.get("/app_templates/silver")["app_instances"][0]["path"],
        instance["path"]
    );
    assert_eq!(
        client
            .refused("DELETE", "/app_templates/silver", Value::Null)
            .0,
        400
    );
    client.ok("DELETE", path(&instance), json!({"force": true}));
    client.delete("/app_templates/silver");
    assert_eq!(
        client
            .refused("GET", "/app_templates/silver", Value::Null)
            .0,
        404
    );
}

#[test]
fn tenants_have_their_own_objects() {
    let rig = Rig::new();
    rig.client.post("/tenants", json!({"name": "ten-1"}));
    assert_eq!(
        rig.client
            .refused("POST", "/tenants", json!({"name": "ten-1"}))
            .0,
        409
    );
    let listed = rig.client.get("/tenants");
    assert_eq!(
        (&listed[0]["name"], &listed[1]["path"]),
        (&json!("root"), &json!("/tenants/root/ten-1"))
    );
    rig.client
        .post("/initiators", json!({"id": NODE, "name": "node-1"}));
    let below = Client {
        tenant: Some("/root/ten-1".to_owned()),
        ..Client::login(rig.fabric.http().unwrap())
    };
    // The parent's initiator is seen; an own one of the same name can be made, but says so.
    let initiator = format!("/initiators/{NODE}");
    assert_eq!(below.get(&initiator)["tenant"], "/root");
    let (status, answer) = below.call("POST", "/initiators", json!({"id": NODE, "name": "node-1"}));
    assert_eq!(status, 400);
    assert!(
        answer["message"]
            .as_str()
            .unwrap()
            .contains("override this warning")
    );
    below.post(
        "/initiators",
        json!({"id": NODE, "name": "node-1", "force": true}),
    );
    assert_eq!(below.get(&initiator)["tenant"], "/root/ten-1");
    rig.client.volume("same-name");
    below.volume("same-name");
    assert_eq!(below.get("/app_instances").as_array().unwrap().len(), 1);
    let all = Client {
        tenant: Some("all".to_owned()),
        ..Client::login(rig.fabric.http().unwrap())
    };
    assert_eq!(all.get("/app_instances").as_array().unwrap().len(), 2);
    let nobody = Client {
        tenant: Some("/root/none".to_owned()),
        ..Client::login(rig.fabric.http().unwrap())
    };
    assert_eq!(nobody.refused("GET", "/app_instances", Value::Null).0, 404);
    assert_eq!(
        rig.client
            .refused("DELETE", "/tenants/root/ten-1", Value::Null)
            .0,
        400
    );
}

#[test]
fn sixteen_clients_at_once_and_exact_pages() {
    const CLIENTS: usize = 16;
    const EACH: usize = 12;
    let rig = Rig::new();
    let address = rig.fabric.http().unwrap();
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            scope.spawn(move || {
                let client = Client::login(address);
                for volume in 0..EACH {
                    client.volume(&format!("pv-{number:02}-{volume:02}"));
                }
            });
        }
    });
    let mut names = Vec::new();
    loop {
        let query = format!("/app_instances?limit=50&offset={}&sort=name", names.len());
        let page = rig.client.ok("GET", &query, Value::Null);
        assert_eq!(page["metadata"]["total_count"], CLIENTS * EACH);
        let rows = page["data"].as_array().unwrap();
        assert_eq!(page["metadata"]["request_count"], rows.len());
        if rows.is_empty() {
            break;
        }
        names.extend(
            rows.iter()
                .map(|row| row["name"].as_str().unwrap().to_owned()),
        );
    }
    let wanted: Vec<String> = (0..CLIENTS)
        .flat_map(|number| (0..EACH).map(move |volume| format!("pv-{number:02}-{volume:02}")))
        .collect();
    assert_eq!(names, wanted);
    // Every target has a name of its own.
    let all = rig.client.get("/app_instances?limit=1000");
    let iqns: std::collections::BTreeSet<&str> = all
        .as_array()
        .unwrap()
        .iter()
        .map(|instance| storage(instance)["access"]["iqn"].as_str().unwrap())
        .collect();
    assert_eq!(iqns.len(), CLIENTS * EACH);
}

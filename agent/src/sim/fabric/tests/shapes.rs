//! Answers have the members and types of the fixtures, which are the reference's examples.

use super::*;

fn fixture(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Every member of the fixture is there with a value of the same kind; a list has elements like the fixture's first.
pub(super) fn same_shape(at: &str, found: &Value, wanted: &Value) {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => {
            for (name, wanted) in wanted {
                let member = found
                    .get(name)
                    .unwrap_or_else(|| panic!("{at}.{name} is not there"));
                same_shape(&format!("{at}.{name}"), member, wanted);
            }
        }
        (Value::Array(found), Value::Array(wanted)) => {
            if let Some(wanted) = wanted.first() {
                assert!(!found.is_empty(), "{at} is empty");
                for found in found {
                    same_shape(&format!("{at}[]"), found, wanted);
                }
            }
        }
        (Value::Number(found), Value::Number(wanted)) => {
            assert_eq!(found.is_u64(), wanted.is_u64(), "{at}: {found}");
        }
        (found, wanted) => assert_eq!(
            std::mem::discriminant(found),
            std::mem::discriminant(wanted),
            "{at}: {found} for {wanted}"
        ),
    }
}

/// An instance with everything a fixture can ask for.
fn rich() -> (Rig, Value) {
    let rig = Rig::new();
    let instance = rig.client.volume("kube-pv-datera-0");
    rig.client.grant("kube-pv-datera-0", NODE);
    let volume = path(&storage(&instance)["volumes"][0]).to_owned();
    rig.client.post(&format!("{volume}/snapshots"), json!({}));
    rig.client.post(
        &format!("{volume}/performance_policy"),
        json!({"total_iops_max": 100}),
    );
    let id = instance["id"].as_str().unwrap().to_owned();
    let answer = rig
        .client
        .ok("GET", &format!("/app_instances/{id}"), Value::Null);
    (rig, answer)
}

#[test]
fn app_instances_have_the_shape_of_the_captures() {
    let (rig, answer) = rich();
    same_shape(
        "answer",
        &answer,
        &fixture(include_str!("../fixtures/app_instance.json")),
    );
    let list = rig.client.ok("GET", "/app_instances?limit=5", Value::Null);
    same_shape(
        "list",
        &list,
        &fixture(include_str!("../fixtures/app_instance_list.json")),
    );
    assert_eq!(
        list["metadata"],
        json!({"limit": 5, "offset": 0, "request_count": 1, "total_count": 1})
    );
    let target = storage(&answer["data"]);
    let iqn = target["access"]["iqn"].as_str().unwrap();
    let digits = iqn
        .strip_prefix("iqn.2013-05.com.daterainc:tc:01:sn:")
        .unwrap();
    assert!(digits.len() == 16 && digits.chars().all(|c| c.is_ascii_hexdigit()));
    let ips: Vec<String> = rig
        .fabric
        .portals()
        .iter()
        .map(|p| p.ip().to_string())
        .collect();
    assert_eq!(target["access"]["ips"], json!(ips));
    // Elements of access lists have a path and nothing else; clients send them back.
    assert_eq!(
        target["acl_policy"]["initiators"],
        json!([{"path": format!("/initiators/{NODE}")}])
    );
}

#[test]
fn errors_have_all_their_members() {
    let rig = Rig::new();
    let (_, answer) = rig
        .client
        .call("GET", "/app_instances/pv-x?a=b", Value::Null);
    let wanted = fixture(include_str!("../fixtures/error.json"));
    same_shape("error", &answer, &wanted);
    let names =
        |value: &Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
    assert_eq!(names(&answer), names(&wanted));
    assert_eq!(answer["params"], json!({"a": "b"}));
    assert_eq!(
        (&answer["op"], &answer["path"]),
        (&json!("read"), &json!("/app_instances/pv-x"))
    );
}

#[test]
fn the_system_has_what_clients_read() {
    let rig = Rig::new();
    let system = rig.client.get("/system");
    same_shape(
        "system",
        &system,
        &fixture(include_str!("../fixtures/system.json")),
    );
    assert!(system.get("ntp_servers").is_none());
    let nodes = rig.client.get("/storage_nodes");
    let node = path(&nodes[0]).to_owned();
    assert_eq!(rig.client.get(&node)["uuid"], nodes[0]["uuid"]);
    let metrics = rig.client.get("/metrics/io/iops_read?path=/system");
    assert_eq!(
        metrics,
        json!([{"entity_path": "/system", "tenant": "/root", "points": []}])
    );
    assert_eq!(
        rig.client.refused("GET", "/metrics/io/none", Value::Null).0,
        404
    );
}

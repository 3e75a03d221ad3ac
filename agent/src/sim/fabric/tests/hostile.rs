//! Requests that nobody in their right mind sends, and many clients that want the same thing.

use std::sync::Barrier;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::super::describe;
use super::*;

/// Requests that are tried.
const REQUESTS: u32 = 3000;
/// Names of errors that a client may meet here; none of them is an internal one.
const ERRORS: [&str; 7] = [
    "InvalidRequestError",
    "InvalidRouteError",
    "AuthFailedError",
    "InvalidSessionKeyError",
    "NotFoundError",
    "ConflictError",
    "ValidationFailedError",
];

/// Members that bodies have, so that what is tried gets past the first check.
const MEMBERS: [&str; 34] = [
    "name",
    "descr",
    "create_mode",
    "uuid",
    "access_control_mode",
    "app_template",
    "path",
    "force",
    "template_override",
    "clone_src",
    "clone_volume_src",
    "clone_snapshot_src",
    "storage_instances",
    "volumes",
    "size",
    "replica_count",
    "placement_mode",
    "placement_policy",
    "performance_policy",
    "snapshot_policies",
    "admin_state",
    "restore_point",
    "acl_policy",
    "initiators",
    "op",
    "auth",
    "type",
    "target_pswd",
    "ip_pool",
    "id",
    "members",
    "storage_templates",
    "total_iops_max",
    "data",
];

fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => proptest::sample::select(vec![
            "pv-1", "storage-1", "volume-1", "gold", "basic", "default", "online", "offline", "add",
            "remove", "kubernetes", "openstack", "deny_all", "chap", "hybrid", "/app_templates/gold",
            "/initiators/iqn.1993-08.org.debian:01:a1b2c3d4e5f6", "/app_instances/pv-1",
            "/app_instances/pv-1/storage_instances/storage-1/volumes/volume-1", "/root", "root",
            "5d0c4a7e-2f61-4b8e-9a53-1c7be0d2f944", "1600000000.000000001", "1", "-1", "",
        ]).prop_map(str::to_owned),
        2 => "[a-z][a-z0-9_.-]{0,12}",
        1 => "\\PC{0,20}",
        1 => "[a-z/.%?=&#]{0,30}",
        1 => Just("x".repeat(10_000)),
    ]
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        1 => Just(Value::Null),
        1 => any::<bool>().prop_map(Value::from),
        2 => (-3i64..40_000).prop_map(Value::from),
        1 => any::<f64>().prop_map(|n| json!(n)),
        1 => any::<u64>().prop_map(Value::from),
        4 => word().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 48, 5, |inner| {
        let member = prop_oneof![
            9 => proptest::sample::select(MEMBERS.to_vec()).prop_map(str::to_owned),
            1 => word(),
        ];
        prop_oneof![
            1 => proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            3 => proptest::collection::vec((member, inner), 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

fn body() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => json_value().prop_map(|value| value.to_string()),
        1 => "\\PC{0,60}",
        1 => Just(String::new()),
        1 => (1usize..4000).prop_map(|depth| "[".repeat(depth)),
        1 => (1usize..4000).prop_map(|depth| r#"{"data":"#.repeat(depth)),
    ]
}

/// A route with something in place of its parameters.
fn request_path() -> impl Strategy<Value = String> {
    let routes: Vec<String> = match describe::api(super::super::answer::ApiVersion::V22, true) {
        // A session that is over would hide everything else.
        Value::Object(api) => api
            .into_iter()
            .map(|(route, _)| route)
            .filter(|r| r != "/logout")
            .collect(),
        _ => Vec::new(),
    };
    let query = prop_oneof![
        4 => Just(String::new()),
        1 => (proptest::sample::select(vec![
            "limit", "offset", "filter", "sort", "since", "from", "to", "ival", "path", "uuid", "force",
        ]), word()).prop_map(|(name, value)| format!("?{name}={}", escape(&value))),
        1 => word().prop_map(|pattern| format!("?filter=match(name,{})", escape(&pattern))),
    ];
    let words = proptest::collection::vec(word(), 8);
    (proptest::sample::select(routes), words, query, 0u8..20).prop_map(
        |(route, words, query, odd)| {
            let mut words = words.into_iter();
            let part = |part: &str| match part.strip_prefix(':') {
                // Most are of an object that is there.
                Some("id" | "name") if odd > 3 => "pv-1".to_owned(),
                Some("storage_instance_name") if odd > 1 => "storage-1".to_owned(),
                Some("volume_name") if odd > 1 => "volume-1".to_owned(),
                Some(_) => escape(&words.next().unwrap_or_default()),
                None => part.to_owned(),
            };
            let parts: Vec<String> = route.split('/').map(part).collect();
            format!("{}{query}", parts.join("/"))
        },
    )
}

/// As bytes that may stand in the first line of a request.
fn escape(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// Nothing that is sent makes it panic or hang, or answer with anything but JSON with a name of the list.
#[test]
fn whatever_is_sent_is_answered() {
    let rig = Rig::new();
    let mut runner = TestRunner::new_with_rng(
        Config {
            cases: REQUESTS,
            failure_persistence: None,
            ..Config::default()
        },
        // The same requests each time.
        TestRng::deterministic_rng(RngAlgorithm::ChaCha),
    );
    let methods =
        proptest::sample::select(vec!["GET", "POST", "PUT", "DELETE", "POST", "PUT", "PATCH"]);
    let request = (methods, request_path(), body());
    let mut seen = std::collections::BTreeMap::<(u16, String), u32>::new();
    let seen_by_runner = std::cell::RefCell::new(&mut seen);
    runner
        .run(&request, |(method, path, body)| {
            // It is there, whatever was done to it before.
            rig.client.call(
                "POST",
                "/app_instances",
                json!({"name": "pv-1", "storage_instances": [
                    {"name": "storage-1", "volumes": [{"name": "volume-1", "size": 1}]},
                ]}),
            );
            let path = format!("/v2.2{path}");
            let answer = rig
                .client
                .exchange(method, &path, "application/json", &body);
            let (status, bytes) = answer.ok_or_else(|| TestCaseError::fail("no answer"))?;
            let answer: Value = serde_json::from_slice(&bytes)
                .map_err(|error| TestCaseError::fail(format!("{status}: {error}")))?;
            let name = if status == 200 {
                String::new()
            } else {
                let name = answer["name"].as_str().unwrap_or("none");
                prop_assert!(ERRORS.contains(&name), "{status} {answer}");
                prop_assert_eq!(&answer["http"], &json!(status));
                prop_assert!(
                    answer["message"]
                        .as_str()
                        .is_some_and(|text| !text.is_empty())
                );
                name.to_owned()
            };
            *seen_by_runner
                .borrow_mut()
                .entry((status, name))
                .or_default() += 1;
            Ok(())
        })
        .unwrap();
    // They did get somewhere.
    for wanted in [
        (200, ""),
        (404, "NotFoundError"),
        (422, "ValidationFailedError"),
    ] {
        let count = seen.get(&(wanted.0, wanted.1.to_owned())).copied();
        assert!(
            count.is_some_and(|count| count > 20),
            "{wanted:?}: {seen:?}"
        );
    }
    // What came of it is still a fabric, also after a restart.
    let before = rig.client.get("/app_instances?limit=1000&sort=name");
    let rig = rig.restart();
    assert_eq!(
        rig.client.get("/app_instances?limit=1000&sort=name"),
        before
    );
}

#[test]
fn bytes_that_are_no_http_do_no_harm() {
    let rig = Rig::new();
    for bytes in [
        &b"\x00\x01\x02\x03\r\n\r\n"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v2.2/app_instances HTTP/1.1\r\ncontent-length: 18446744073709551615\r\n\r\n",
        b"POST /v2.2/app_instances HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
        b"GET /v2.2/%ff%fe HTTP/1.1\r\nconnection: close\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ] {
        let mut stream = TcpStream::connect(rig.client.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
    }
    let mut long = b"GET /v2.2/system HTTP/1.1\r\nx: ".to_vec();
    long.resize(1 << 20, b'a');
    let _ = TcpStream::connect(rig.client.address)
        .unwrap()
        .write_all(&long);
    assert_eq!(rig.client.get("/system")["op_state"], "running");
}

/// All at once, each for itself; gives what they got.
fn at_once<T: Send>(clients: usize, job: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let barrier = Barrier::new(clients);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..clients)
            .map(|number| {
                let (barrier, job) = (&barrier, &job);
                scope.spawn(move || {
                    barrier.wait();
                    job(number)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    })
}

#[test]
fn of_many_who_want_the_same_one_gets_it() {
    const CLIENTS: usize = 12;
    let rig = Rig::new();
    let client = &rig.client;
    let statuses = |mut got: Vec<(u16, Value)>| {
        got.sort_by_key(|(status, _)| *status);
        got.into_iter()
            .map(|(status, _)| status)
            .collect::<Vec<_>>()
    };
    let one = |refusal: u16| {
        let mut wanted = vec![200];
        wanted.resize(CLIENTS, refusal);
        wanted
    };
    let instance = json!({"name": "pv-1", "storage_instances": [
        {"name": "storage-1", "volumes": [{"name": "volume-1", "size": 1}]},
    ]});
    let got = at_once(CLIENTS, |_| {
        client.call("POST", "/app_instances", instance.clone())
    });
    assert_eq!(statuses(got), one(409));
    let volume = "/app_instances/pv-1/storage_instances/storage-1/volumes/volume-1";
    let uuid = json!({"uuid": "5d0c4a7e-2f61-4b8e-9a53-1c7be0d2f944"});
    let got = at_once(CLIENTS, |_| {
        client.call("POST", &format!("{volume}/snapshots"), uuid.clone())
    });
    assert_eq!(statuses(got), one(400));
    let initiator = json!({"id": NODE, "name": "node-1"});
    let got = at_once(CLIENTS, |_| {
        client.call("POST", "/initiators", initiator.clone())
    });
    assert_eq!(statuses(got), one(409));

    // Each adds another initiator to one list: none gets lost.
    let list = "/app_instances/pv-1/storage_instances/storage-1/acl_policy/initiators";
    let got = at_once(CLIENTS, |number| {
        let id = format!("iqn.2026-11.example:node-{number}");
        client.post("/initiators", json!({"id": id, "name": "a node"}));
        client.call(
            "PUT",
            list,
            json!({"op": "add", "path": format!("/initiators/{id}")}),
        )
    });
    assert_eq!(statuses(got), [200; CLIENTS]);
    assert_eq!(client.get(list).as_array().unwrap().len(), CLIENTS);

    // Sizes only grow, whatever the order; the end is the largest.
    let got = at_once(CLIENTS, |number| {
        client.call("PUT", volume, json!({"size": number + 2}))
    });
    assert!(got.iter().all(|(status, _)| [200, 400].contains(status)));
    assert_eq!(client.get(volume)["size"], CLIENTS + 1);

    client.put("/app_instances/pv-1", json!({"admin_state": "offline"}));
    let got = at_once(CLIENTS, |_| {
        client.call("DELETE", "/app_instances/pv-1", Value::Null)
    });
    assert_eq!(statuses(got), one(404));
    let left = std::fs::read_dir(rig.dir.path().join("data")).unwrap();
    assert_eq!(left.count(), 0);
}

//! `/v1/volumes` and `/v1/templates`, by router and by client.

#![allow(clippy::unwrap_used, reason = "helpers are test code too")]

mod common;

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use berth_api::client::Client;
use berth_api::server::{Api, Listener, UnixSocket};
use berth_api::types::{DeletePolicy, Qos, VolumePatch, VolumeRequest, VolumeState};
use berth_api::{Code, TargetName, VolumeName};
use common::Fake;
use common::harness::Harness;
use serde_json::{Value, json};

fn send(method: &str, path: &str, body: &Value) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(body.to_string()))
        .unwrap()
}

#[tokio::test]
async fn lists_come_page_by_page() {
    let harness = Harness::new();
    for name in ["vol-1", "vol-2", "vol-3"] {
        let body = json!({ "size_bytes": 1 << 30 });
        let path = format!("/v1/volumes/{name}");
        harness.send(send("PUT", &path, &body)).await;
        let snapshot = format!("{path}/snapshots/of-{name}");
        harness.send(send("PUT", &snapshot, &Value::Null)).await;
    }
    let names = |list: &Value, what: &str, field: &str| -> Vec<String> {
        let rows = list[what].as_array().unwrap().iter();
        rows.map(|row| row[field].as_str().unwrap().to_owned())
            .collect()
    };
    let first = harness.get("/v1/volumes?limit=2").await.json();
    assert_eq!(names(&first, "volumes", "name"), ["vol-1", "vol-2"]);
    assert_eq!(first["next"], "vol-2");
    // What the next page begins behind need not be there any more.
    harness
        .send(send("DELETE", "/v1/volumes/vol-2", &Value::Null))
        .await;
    let second = harness.get("/v1/volumes?limit=2&after=vol-2").await.json();
    assert_eq!(names(&second, "volumes", "name"), ["vol-3"]);
    assert_eq!(second["next"], Value::Null);
    let first = harness.get("/v1/snapshots?limit=2").await.json();
    assert_eq!(names(&first, "snapshots", "volume"), ["vol-1", "vol-2"]);
    let next = first["next"].as_str().unwrap().replace('/', "%2F");
    let second = harness.get(&format!("/v1/snapshots?after={next}")).await;
    assert_eq!(names(&second.json(), "snapshots", "volume"), ["vol-3"]);
    for wrong in [
        "/v1/volumes?limit=0",
        "/v1/volumes?limit=x",
        "/v1/volumes?after=a/b",
        "/v1/volumes?offset=1",
        "/v1/snapshots?after=vol-1",
    ] {
        let refused = harness.get(wrong).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{wrong}");
        assert_eq!(refused.json()["code"], "invalid-argument", "{wrong}");
    }
    let status = harness.get("/v1/fabric").await.json();
    assert_eq!(
        (&status["kind"], &status["reachable"]),
        (&json!("declared"), &json!(true))
    );
}

#[tokio::test]
async fn a_volume_is_made_looked_at_changed_and_deleted() {
    let harness = Harness::new();
    let body = json!({ "size_bytes": 1 << 30 });
    let made = harness.send(send("PUT", "/v1/volumes/vol-1", &body)).await;
    assert_eq!(made.status, StatusCode::CREATED);
    assert_eq!(made.header("location"), "/v1/volumes/vol-1");
    assert_eq!(made.json()["state"], "available");
    let again = harness.send(send("PUT", "/v1/volumes/vol-1", &body)).await;
    assert_eq!((again.status, again.json()), (StatusCode::OK, made.json()));
    assert_eq!(
        harness.get("/v1/volumes").await.json()["volumes"],
        json!([made.json()])
    );
    let patch = json!({ "qos": { "total_iops": 5 } });
    let changed = harness
        .send(send("PATCH", "/v1/volumes/vol-1", &patch))
        .await;
    assert_eq!(
        changed.json()["units"][0]["qos"],
        json!({ "total_iops": 5 })
    );
    let initiator = "/v1/volumes/vol-1/access/iqn.2026-11.example%3Aa";
    let granted = harness.send(send("PUT", initiator, &Value::Null)).await;
    assert_eq!(
        granted.json()["units"][0]["access"],
        json!(["iqn.2026-11.example:a"])
    );
    let revoked = harness.send(send("DELETE", initiator, &Value::Null)).await;
    assert_eq!(revoked.status, StatusCode::NO_CONTENT);
    let taken = harness
        .send(send(
            "PUT",
            "/v1/volumes/vol-1/snapshots/nightly",
            &Value::Null,
        ))
        .await;
    assert_eq!(taken.status, StatusCode::CREATED);
    assert_eq!(
        harness.get("/v1/volumes/vol-1/snapshots").await.json()["snapshots"][0]["name"],
        "nightly"
    );
    let restore = "/v1/volumes/vol-1/snapshots/nightly/restore";
    assert_eq!(
        harness
            .send(send("POST", restore, &Value::Null))
            .await
            .status,
        StatusCode::OK
    );
    let gone = harness
        .send(send(
            "DELETE",
            "/v1/volumes/vol-1/snapshots/nightly",
            &Value::Null,
        ))
        .await;
    assert_eq!(gone.status, StatusCode::NO_CONTENT);
    for _ in 0..2 {
        let deleted = harness
            .send(send("DELETE", "/v1/volumes/vol-1", &Value::Null))
            .await;
        assert_eq!(deleted.status, StatusCode::NO_CONTENT);
    }
    let missing = harness.get("/v1/volumes/vol-1").await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    missing.problem("not-found");
    assert_eq!(
        harness.get("/v1/templates").await.json()["templates"][0]["name"],
        "gold"
    );
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused_by_field() {
    let harness = Harness::new();
    for (method, path, body, field) in [
        ("PUT", "/v1/volumes/a", json!({}), Some("volume")),
        ("PUT", "/v1/volumes/-ab", json!({}), Some("volume")),
        (
            "PUT",
            "/v1/volumes/vol-1",
            json!({ "replicas": 9 }),
            Some("replicas"),
        ),
        ("PUT", "/v1/volumes/vol-1", json!({ "sizes": 9 }), None),
        (
            "PUT",
            "/v1/volumes/vol-1/access/worker",
            Value::Null,
            Some("initiator"),
        ),
        ("DELETE", "/v1/volumes/vol-1?policy=burn", Value::Null, None),
    ] {
        let reply = harness.send(send(method, path, &body)).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{method} {path}");
        let problem = reply.problem("invalid-argument");
        if let Some(field) = field {
            assert_eq!(problem["field"], field, "{problem}");
        }
    }
    let secret = json!({ "chap": { "user": "u", "secret": ["hunter2"] } });
    let reply = harness
        .send(send("PUT", "/v1/volumes/vol-1", &secret))
        .await;
    assert!(!reply.text.contains("hunter2"), "{}", reply.text);
    for code in ["fabric-unavailable", "deadline", "conflict-incompatible"] {
        let path = format!("/v1/volumes/{code}");
        let reply = harness
            .send(send("PUT", &path, &json!({ "size_bytes": 1 })))
            .await;
        reply.problem(code);
    }
}

#[tokio::test]
async fn the_client_says_what_the_router_takes() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new();
    let api = Api::new(Arc::clone(&fake));
    let path = dir.path().join("api.sock");
    let socket = UnixSocket::bind(&path, 0o660).unwrap();
    let serving = tokio::spawn({
        let api = api.clone();
        async move { api.serve(Listener::Unix(socket)).await }
    });
    let client = Client::unix(&path);
    let name: VolumeName = "vol-1".parse().unwrap();
    let initiator: TargetName = "iqn.2026-11.example:a".parse().unwrap();
    let request = VolumeRequest {
        size_bytes: Some(1 << 30),
        ..VolumeRequest::default()
    };
    let (volume, created) = client.create_volume(&name, &request).await.unwrap();
    assert!(created);
    assert_eq!(fake.volume_requests.lock().unwrap()[0], request);
    assert!(!client.create_volume(&name, &request).await.unwrap().1);
    assert_eq!(client.volume(&name).await.unwrap(), volume);
    assert_eq!(client.volumes().await.unwrap(), [volume]);
    let qos = Qos {
        read_iops: Some(1),
        ..Qos::default()
    };
    let patch = VolumePatch {
        size_bytes: Some(2 << 30),
        qos: Some(Some(qos)),
    };
    let changed = client.change_volume(&name, &patch).await.unwrap();
    assert_eq!(
        (changed.size_bytes, changed.units[0].qos),
        (2 << 30, Some(qos))
    );
    let none = VolumePatch {
        size_bytes: None,
        qos: Some(None),
    };
    assert_eq!(
        client.change_volume(&name, &none).await.unwrap().units[0].qos,
        None
    );
    let granted = client.grant(&name, &initiator).await.unwrap();
    assert_eq!(granted.units[0].access, [initiator.to_string()]);
    client.revoke(&name, &initiator).await.unwrap();
    assert!(
        client.volume(&name).await.unwrap().units[0]
            .access
            .is_empty()
    );
    assert!(client.take_snapshot(&name, "nightly").await.unwrap().1);
    assert_eq!(client.snapshots(&name).await.unwrap().len(), 1);
    client.restore_snapshot(&name, "nightly").await.unwrap();
    client.delete_snapshot(&name, "nightly").await.unwrap();
    assert_eq!(client.templates().await.unwrap()[0].name, "gold");
    client
        .delete_volume(&name, Some(DeletePolicy::Retain), false)
        .await
        .unwrap();
    assert_eq!(
        client.volume(&name).await.unwrap().state,
        VolumeState::Offline
    );
    client.delete_volume(&name, None, true).await.unwrap();
    let gone = client.volume(&name).await.unwrap_err();
    assert_eq!(gone.code(), Some(Code::NotFound));
    api.stop();
    serving.await.unwrap();
}

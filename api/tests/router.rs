//! Attachments and operations: every status, over a node that only pretends.

#![allow(clippy::unwrap_used, reason = "helpers are test code too")]

mod common;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header};
use berth_api::Code;
use common::body;
use common::harness::{Harness, preferring, put};
use serde_json::{Value, json};
use tower_service::Service as _;

#[tokio::test]
async fn attach_is_idempotent_and_detach_too() {
    let harness = Harness::new();
    let path = "/v1/attachments/disk0";
    let first = harness.put(path, &body()).await;
    assert_eq!(first.status, StatusCode::CREATED);
    assert_eq!(first.header("location"), path);
    assert_eq!(first.header("content-type"), "application/json");
    let attachment = first.json();
    assert_eq!(attachment["name"], "disk0");
    assert_eq!(attachment["state"], "attached");
    assert_eq!(attachment["source"]["iscsi"]["auth"]["chap"]["user"], "u");
    assert_eq!(attachment["device"], Value::Null);
    assert_eq!(
        attachment["digests"],
        json!({ "header": "prefer", "data": "require" })
    );

    // The same in another order and with defaults left out is the same.
    let mut same = body();
    same["source"]["iscsi"]["portals"] = json!(["[2001:DB8::1]", "192.0.2.10"]);
    same.as_object_mut().unwrap().remove("fence");
    let second = harness.put(path, &same).await;
    assert_eq!(second.status, StatusCode::OK);
    assert_eq!(second.json(), attachment);

    let mut other = body();
    other["source"]["iscsi"]["lun"] = json!(2);
    other["read_only"] = json!(true);
    let third = harness.put(path, &other).await;
    assert_eq!(third.status, StatusCode::CONFLICT);
    let problem = third.problem("conflict-incompatible");
    assert_eq!(
        problem["detail"],
        "disk0 differs in source.iscsi.lun, read_only"
    );
    assert_eq!(problem["attachment"], "disk0");

    assert_eq!(harness.get(path).await.json(), attachment);
    let list = harness.get("/v1/attachments").await;
    assert_eq!(list.json(), json!({ "attachments": [attachment] }));

    for _ in 0..2 {
        let gone = harness.delete(path).await;
        assert_eq!(
            (gone.status, gone.text.as_str()),
            (StatusCode::NO_CONTENT, "")
        );
    }
    let missing = harness.get(path).await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    assert_eq!(missing.problem("not-found")["attachment"], "disk0");
}

#[tokio::test]
async fn answers_hold_no_secrets() {
    let harness = Harness::new();
    harness.put("/v1/attachments/disk0", &body()).await;
    for path in [
        "/v1/attachments/disk0",
        "/v1/attachments",
        "/v1/operations",
        "/metrics",
    ] {
        let reply = harness.get(path).await;
        assert_eq!(reply.status, StatusCode::OK);
        assert!(
            !reply.text.contains("hunter2") && !reply.text.contains("sesame"),
            "{path}"
        );
    }
    let mut short = body();
    short["source"]["iscsi"]["auth"]["chap"]["secret"] = json!("hunter2");
    let reply = harness.put("/v1/attachments/disk1", &short).await;
    let problem = reply.problem("invalid-argument");
    assert_eq!(problem["field"], "source.iscsi.auth.chap");
    assert!(
        problem["detail"]
            .as_str()
            .unwrap()
            .contains("at least 12 bytes")
    );
    assert!(!reply.text.contains("hunter2"));
}

#[tokio::test]
async fn every_code_has_its_status() {
    let harness = Harness::new();
    for code in Code::all() {
        let reply = harness
            .put(&format!("/v1/attachments/{code}"), &body())
            .await;
        assert_eq!(reply.status, code.status(), "{code}");
        let problem = reply.problem(code.as_str());
        assert_eq!(problem["attachment"], code.as_str());
        assert_eq!(problem["retryable"], code.is_retryable());
        let wants_retry_after = matches!(
            code.as_str(),
            "operation-pending"
                | "throttled"
                | "unavailable"
                | "target-unreachable"
                | "fabric-unavailable"
        );
        assert_eq!(
            reply.headers.contains_key("retry-after"),
            wants_retry_after,
            "{code}"
        );
    }
}

#[tokio::test]
async fn a_change_is_a_merge_patch() {
    let harness = Harness::new();
    let patch = |media: &'static str, body: Value| {
        Request::patch("/v1/attachments/a")
            .header(header::CONTENT_TYPE, media)
            .body(Body::from(body.to_string()))
            .unwrap()
    };
    const MERGE: &str = "application/merge-patch+json";
    let timeout = json!({ "recovery_timeout_seconds": "forever" });
    let reply = harness.send(patch(MERGE, timeout.clone())).await;
    assert_eq!(reply.status, StatusCode::NOT_FOUND);
    reply.problem("not-found");
    let reply = harness.put("/v1/attachments/a", &body()).await;
    assert_eq!(reply.status, StatusCode::CREATED);
    let reply = harness.send(patch(MERGE, timeout)).await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(reply.json()["recovery_timeout_seconds"], "forever");
    let portals = json!({ "source": { "iscsi": { "portals": ["192.0.2.99"] } } });
    let reply = harness.send(patch("application/json", portals)).await;
    let attachment = reply.json();
    assert_eq!(
        attachment["source"]["iscsi"]["portals"],
        json!(["192.0.2.99:3260"])
    );
    assert_eq!(attachment["recovery_timeout_seconds"], "forever");
    for (field, wrong) in [
        ("read_only", json!({ "read_only": true })),
        (
            "source.iscsi.lun",
            json!({ "source": { "iscsi": { "portals": ["192.0.2.1"], "lun": 2 } } }),
        ),
        (
            "source.iscsi.portals",
            json!({ "source": { "iscsi": { "portals": [] } } }),
        ),
    ] {
        let reply = harness.send(patch(MERGE, wrong)).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{field}");
        assert_eq!(reply.problem("invalid-argument")["field"], field);
    }
    let reply = harness.send(patch("text/plain", json!({}))).await;
    assert_eq!(reply.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
}

#[tokio::test]
async fn a_takeover_needs_something_to_take_over() {
    let harness = Harness::new();
    let mut wish = body();
    wish["takeover"] = json!(true);
    let reply = harness.put("/v1/attachments/a", &wish).await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
    assert_eq!(reply.problem("invalid-argument")["field"], "takeover");
    wish["fence"] = json!("reservation");
    let reply = harness.put("/v1/attachments/a", &wish).await;
    assert_eq!(reply.status, StatusCode::CREATED);
}

#[tokio::test]
async fn detach_in_use_needs_force() {
    let harness = Harness::new();
    let reply = harness.delete("/v1/attachments/busy").await;
    assert_eq!(reply.status, StatusCode::PRECONDITION_FAILED);
    assert_eq!(reply.problem("in-use")["attachment"], "busy");
    let reply = harness.delete("/v1/attachments/busy?force=false").await;
    assert_eq!(reply.status, StatusCode::PRECONDITION_FAILED);
    let reply = harness.delete("/v1/attachments/busy?force=true").await;
    assert_eq!(reply.status, StatusCode::NO_CONTENT);
    for query in ["force=yes", "forced=true", "force"] {
        let reply = harness
            .delete(&format!("/v1/attachments/busy?{query}"))
            .await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{query}");
        let problem = reply.problem("invalid-argument");
        assert!(
            problem["detail"].as_str().unwrap().contains("force"),
            "{problem}"
        );
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_named() {
    let harness = Harness::new();
    let path = "/v1/attachments/disk0";
    let mut typo = body();
    typo["read-only"] = json!(true);
    let problem = harness.put(path, &typo).await.problem("invalid-argument");
    assert_eq!(problem["field"], "read-only");
    assert!(
        problem["detail"].as_str().unwrap().contains("`read_only`"),
        "{problem}"
    );

    let unnamed = Request::put(path)
        .body(Body::from(body().to_string()))
        .unwrap();
    let reply = harness.send(unnamed).await;
    assert_eq!(reply.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    reply.problem("unsupported-media-type");
    let mut utf8 = put(path, &body());
    utf8.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("Application/JSON; charset=utf-8"),
    );
    assert_eq!(harness.send(utf8).await.status, StatusCode::CREATED);

    let long = json!({ "source": "x".repeat(64 * 1024) });
    let reply = harness.put(path, &long).await;
    assert_eq!(reply.status, StatusCode::PAYLOAD_TOO_LARGE);
    reply.problem("payload-too-large");

    for bad in [
        "a%2Fb",
        "..%2f",
        "%20",
        "-x",
        "a%00",
        "%ff",
        &"x".repeat(129),
    ] {
        for reply in [
            harness
                .put(&format!("/v1/attachments/{bad}"), &body())
                .await,
            harness.get(&format!("/v1/attachments/{bad}")).await,
            harness.delete(&format!("/v1/attachments/{bad}")).await,
        ] {
            assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{bad}");
            assert_eq!(reply.problem("invalid-argument")["field"], "name", "{bad}");
        }
    }
    let reply = harness
        .send(preferring(put(path, &body()), "wait=soon"))
        .await;
    assert_eq!(reply.problem("invalid-argument")["field"], "Prefer");
}

#[tokio::test]
async fn unknown_paths_and_methods_are_problems_too() {
    let harness = Harness::new();
    for path in [
        "/v2/attachments",
        "/v1",
        "/v1/attachments/",
        "/v1/attachments/a/b",
        "/index.html",
    ] {
        let reply = harness.get(path).await;
        assert_eq!(reply.status, StatusCode::NOT_FOUND, "{path}");
        reply.problem("not-found");
    }
    for (method, path, allow) in [
        (
            Method::POST,
            "/v1/attachments/disk0",
            "GET,HEAD,PUT,PATCH,DELETE",
        ),
        (Method::PATCH, "/v1/node", "GET,HEAD"),
        (Method::DELETE, "/", "GET,HEAD"),
    ] {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .body(Body::empty())
            .unwrap();
        let reply = harness.send(request).await;
        assert_eq!(reply.status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
        reply.problem("method-not-allowed");
        let mut methods: Vec<_> = reply.header("allow").split(',').collect();
        let mut expected: Vec<_> = allow.split(',').collect();
        methods.sort_unstable();
        expected.sort_unstable();
        assert_eq!(methods, expected, "{path}");
    }
}

#[tokio::test]
async fn a_caller_need_not_wait() {
    let harness = Harness::new();
    let path = "/v1/attachments/slow";
    let reply = harness
        .send(preferring(put(path, &body()), "respond-async"))
        .await;
    assert_eq!(reply.status, StatusCode::ACCEPTED);
    assert_eq!(reply.header("preference-applied"), "respond-async");
    assert_eq!(reply.header("retry-after"), "1");
    let operation = reply.json();
    let location = reply.header("location").to_owned();
    assert_eq!(
        location,
        format!("/v1/operations/{}", operation["id"].as_str().unwrap())
    );
    assert_eq!(operation["state"], "running");
    assert_eq!(operation["kind"], "attach");
    assert_eq!(operation["attachment"], "slow");

    assert_eq!(harness.get(&location).await.json()["state"], "running");
    harness.fake.release();
    let wait = Request::get(&location).body(Body::empty()).unwrap();
    let ended = harness.send(preferring(wait, "wait=60")).await.json();
    assert_eq!(ended["state"], "succeeded");
    assert_eq!(ended["error"], Value::Null);
    assert!(ended["finished_unix_ms"].as_u64() >= ended["started_unix_ms"].as_u64());
    assert_eq!(harness.get(path).await.status, StatusCode::OK);
    let list = harness.get("/v1/operations").await.json();
    assert_eq!(list["operations"], json!([ended]));

    let reply = harness.get("/v1/operations/ffff").await;
    assert_eq!(reply.status, StatusCode::NOT_FOUND);
    reply.problem("not-found");
}

#[tokio::test(start_paused = true)]
async fn a_caller_waits_as_long_as_it_likes() {
    let harness = Harness::new();
    let path = "/v1/attachments/slow";
    let began = tokio::time::Instant::now();
    let reply = harness.send(preferring(put(path, &body()), "wait=7")).await;
    assert_eq!(reply.status, StatusCode::ACCEPTED);
    assert_eq!(reply.header("preference-applied"), "wait");
    assert_eq!(began.elapsed().as_secs(), 7);

    // Done within the time: the answer is the usual one.
    harness.fake.release();
    harness.fake.release();
    let reply = harness
        .send(preferring(put(path, &body()), "respond-async, wait=7"))
        .await;
    assert!(reply.status == StatusCode::OK || reply.status == StatusCode::CREATED);
    assert_eq!(began.elapsed().as_secs(), 7);
}

#[tokio::test]
async fn operations_tell_of_failure_and_panic() {
    let harness = Harness::new();
    for (name, code) in [("lun-not-found", "lun-not-found"), ("panics", "internal")] {
        let reply = harness
            .put(&format!("/v1/attachments/{name}"), &body())
            .await;
        reply.problem(code);
        let list = harness.get("/v1/operations").await.json();
        let ended = list["operations"]
            .as_array()
            .unwrap()
            .last()
            .unwrap()
            .clone();
        assert_eq!(ended["attachment"], name);
        assert_eq!(ended["state"], "failed", "{ended}");
        assert_eq!(ended["error"]["code"], code);
        assert_eq!(ended["error"]["instance"], reply.header("x-request-id"));
    }
}

#[tokio::test]
async fn an_attach_goes_on_when_its_caller_hangs_up() {
    let harness = Harness::new();
    let mut waiting = harness.fake.waiting.subscribe();
    let router = harness.router.clone();
    let caller = tokio::spawn(async move {
        router
            .clone()
            .call(put("/v1/attachments/slow", &body()))
            .await
    });
    waiting.wait_for(|&waiting| waiting == 1).await.unwrap();
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    let id = harness.get("/v1/operations").await.json()["operations"][0]["id"].clone();
    harness.fake.release();
    let location = format!("/v1/operations/{}", id.as_str().unwrap());
    let wait = Request::get(location).body(Body::empty()).unwrap();
    let ended = harness.send(preferring(wait, "wait=60")).await.json();
    assert_eq!(ended["state"], "succeeded");
    assert_eq!(
        harness.get("/v1/attachments/slow").await.status,
        StatusCode::OK
    );
}

#[tokio::test]
async fn operations_are_bounded() {
    let harness = Harness::new();
    for _ in 0..256 {
        let request = put("/v1/attachments/slow", &body());
        let reply = harness.send(preferring(request, "respond-async")).await;
        assert_eq!(reply.status, StatusCode::ACCEPTED);
    }
    let reply = harness.put("/v1/attachments/disk0", &body()).await;
    assert_eq!(reply.status, StatusCode::TOO_MANY_REQUESTS);
    reply.problem("throttled");
    for _ in 0..256 {
        harness.fake.release();
    }
    let ids = harness.get("/v1/operations").await.json();
    for operation in ids["operations"].as_array().unwrap() {
        let location = format!("/v1/operations/{}", operation["id"].as_str().unwrap());
        let wait = Request::get(location).body(Body::empty()).unwrap();
        harness.send(preferring(wait, "wait=60")).await;
    }
    for _ in 0..10 {
        assert_eq!(
            harness.delete("/v1/attachments/slow").await.status,
            StatusCode::NO_CONTENT
        );
    }
    let kept = harness.get("/v1/operations").await.json();
    assert_eq!(kept["operations"].as_array().unwrap().len(), 256);
}

#[tokio::test]
async fn stopping_answers_those_who_wait() {
    let harness = Harness::new();
    let mut waiting = harness.fake.waiting.subscribe();
    let router = harness.router.clone();
    let caller = tokio::spawn(async move {
        router
            .clone()
            .call(put("/v1/attachments/slow", &body()))
            .await
    });
    waiting.wait_for(|&waiting| waiting == 1).await.unwrap();
    harness.api.stop();
    let response = caller.await.unwrap().unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    let reply = harness.get("/readyz").await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(reply.text.contains("stopping"));
    // Alive it is, until it is gone.
    assert_eq!(harness.get("/livez").await.status, StatusCode::OK);
}

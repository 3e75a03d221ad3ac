//! Every other route, and what holds for all of them.

#![allow(clippy::unwrap_used, reason = "helpers are test code too")]

mod common;

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use berth_api::Peer;
use berth_api::types::CheckResult;
use common::body;
use common::harness::{Harness, put};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

#[tokio::test(start_paused = true)]
async fn discovery() {
    let harness = Harness::new();
    let reply = harness.get("/v1/discovery?portal=192.0.2.1").await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(
        reply.json(),
        json!({ "portal": "192.0.2.1:3260", "targets": [ {
            "target": "iqn.2026-11.example:open",
            "portals": [{ "address": "[2001:db8::1]:3260", "portal_group_tag": 1 }]
        }] })
    );
    let auth = json!({ "portal": "[::1]:3260",
        "auth": { "chap": { "user": "u", "secret": "hunter2hunter2" } } });
    let request = Request::post("/v1/discovery")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(auth.to_string()))
        .unwrap();
    let reply = harness.send(request).await;
    assert_eq!(
        reply.json()["targets"][0]["target"],
        "iqn.2026-11.example:closed"
    );

    for path in [
        "/v1/discovery",
        "/v1/discovery?portal=::1",
        "/v1/discovery?portal=a&secret=b",
    ] {
        let reply = harness.get(path).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{path}");
        let problem = reply.problem("invalid-argument");
        assert!(
            problem["detail"].as_str().unwrap().contains("portal"),
            "{problem}"
        );
    }
    let reply = harness.get("/v1/discovery?portal=silent").await;
    assert_eq!(reply.status, StatusCode::GATEWAY_TIMEOUT);
    reply.problem("deadline");
}

#[tokio::test]
async fn health_metrics_node_contract_and_page() {
    let harness = Harness::new();
    assert_eq!(harness.get("/livez").await.text, "ok\n");
    for path in ["/readyz", "/healthz"] {
        let reply = harness.get(path).await;
        assert_eq!(
            (reply.status, reply.text.as_str()),
            (StatusCode::OK, "ok\n")
        );
    }
    assert_eq!(
        harness.get("/readyz?verbose").await.text,
        "[+]state ok\nreadyz check passed\n"
    );
    let failed = CheckResult::fail("nbd-socket", "not open");
    harness.fake.ready.lock().unwrap().push(failed);
    let reply = harness.get("/readyz").await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        reply.text,
        "[+]state ok\n[-]nbd-socket failed: not open\nreadyz check failed\n"
    );
    let request = Request::get("/readyz")
        .header(header::ACCEPT, "application/json")
        .body(Body::empty())
        .unwrap();
    let reply = harness.send(request).await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(reply.json()["checks"][1]["name"], "nbd-socket");

    let metrics = harness.get("/metrics").await;
    assert_eq!(
        metrics.header("content-type"),
        "text/plain; version=0.0.4; charset=utf-8"
    );
    assert!(metrics.text.contains("berth_build_info"));
    assert_eq!(harness.get("/v1/node").await.json()["name"], "worker-1");
    assert_eq!(
        harness.get("/openapi.json").await.json()["openapi"],
        "3.1.0"
    );
    let page = harness.get("/").await;
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    assert!(
        page.header("content-security-policy")
            .contains("default-src 'none'")
    );
    assert!(
        !page.text.contains("innerHTML"),
        "names of targets must never be markup"
    );
}

/// What the contract lists is there, and paths of it take no other methods.
#[tokio::test]
async fn the_contract_lists_every_route() {
    let harness = Harness::new();
    let document = harness.get("/openapi.json").await.json();
    for (path, methods) in document["paths"].as_object().unwrap() {
        let path = path
            .replace("{name}", "disk0")
            .replace("{id}", "1")
            .replace("{volume}", "vol-1")
            .replace("{snapshot}", "nightly")
            .replace("{initiator}", "iqn.2026-11.example:a");
        for method in ["get", "put", "post", "delete", "patch"] {
            let listed = methods[method].is_object();
            let request = Request::builder()
                .method(method.to_uppercase().as_str())
                .uri(&path)
                .body(Body::empty())
                .unwrap();
            let status = harness.open(request).await.status();
            assert_eq!(
                status != StatusCode::METHOD_NOT_ALLOWED,
                listed,
                "{method} {path}"
            );
        }
    }
}

#[tokio::test]
async fn request_ids_and_traces_go_through() {
    let harness = Harness::new();
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let mut request = put("/v1/attachments/disk0", &body());
    request
        .headers_mut()
        .insert("x-request-id", "abc-1".parse().unwrap());
    request
        .headers_mut()
        .insert("traceparent", trace.parse().unwrap());
    let peer = Peer::Unix {
        uid: 7,
        gid: 8,
        pid: Some(9),
    };
    request.extensions_mut().insert(peer.clone());
    let reply = harness.send(request).await;
    assert_eq!(reply.header("x-request-id"), "abc-1");
    let call = harness.fake.calls.lock().unwrap()[0].clone();
    assert_eq!(call.request_id, "abc-1");
    assert_eq!(call.traceparent.as_deref(), Some(trace));
    assert_eq!(call.peer, peer);
    let ids: Vec<_> = [harness.get("/livez").await, harness.get("/nothing").await]
        .iter()
        .map(|reply| reply.header("x-request-id").to_owned())
        .collect();
    assert!(
        ids.iter().all(|id| id.len() == 16) && ids[0] != ids[1],
        "{ids:?}"
    );
}

#[tokio::test]
async fn over_tcp_a_token_is_needed() {
    let harness = Harness::with_token(Some("open-sesame"));
    let with = |authorization: &str| {
        Request::get("/v1/node")
            .header(header::AUTHORIZATION, authorization)
            .body(Body::empty())
            .unwrap()
    };
    assert_eq!(
        harness.send(with("Bearer open-sesame")).await.status,
        StatusCode::OK
    );
    assert_eq!(
        harness.send(with("bearer  open-sesame ")).await.status,
        StatusCode::OK
    );
    for wrong in [
        "Bearer open-sesam",
        "Bearer open-sesame2",
        "Bearer",
        "Basic open-sesame",
        "",
    ] {
        let reply = harness.send(with(wrong)).await;
        assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{wrong}");
        reply.problem("unauthenticated");
        assert_eq!(reply.header("www-authenticate"), "Bearer realm=\"berth\"");
        assert!(!reply.text.contains("sesam"), "{}", reply.text);
    }
    for closed in [
        "/v1/attachments",
        "/v1/events",
        "/metrics",
        "/readyz",
        "/nothing",
    ] {
        assert_eq!(
            harness.get(closed).await.status,
            StatusCode::UNAUTHORIZED,
            "{closed}"
        );
    }
    for open in ["/", "/livez", "/openapi.json"] {
        assert_eq!(harness.get(open).await.status, StatusCode::OK, "{open}");
    }
}

#[tokio::test]
async fn events_are_streamed_and_end_with_the_api() {
    let harness = Harness::new();
    let request = Request::get("/v1/events").body(Body::empty()).unwrap();
    let mut response = harness.open(request).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    harness.put("/v1/attachments/disk0", &body()).await;
    let frame = response.body_mut().frame().await.unwrap().unwrap();
    let text = String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap();
    let data = text
        .lines()
        .find_map(|line| line.strip_prefix("data: "))
        .unwrap();
    let event: Value = serde_json::from_str(data).unwrap();
    assert!(text.contains("event: state\n"), "{text}");
    assert!(text.contains(&format!("id: {}\n", event["id"])), "{text}");
    assert_eq!(event["attachment"], "disk0");

    // Who comes back with the id before this one gets it again; other attachments are left out.
    harness.put("/v1/attachments/disk1", &body()).await;
    let before = event["id"].as_u64().unwrap() - 1;
    let again = Request::get("/v1/events?attachment=disk1")
        .header("last-event-id", before)
        .body(Body::empty())
        .unwrap();
    let again = harness.open(again).await;
    harness.api.stop();
    assert!(
        response.body_mut().collect().await.is_ok(),
        "ends when the API stops"
    );
    drop(again);
    let after_stop = harness.get(&format!("/v1/events?after={before}")).await;
    assert_eq!(
        (after_stop.status, after_stop.text.as_str()),
        (StatusCode::OK, "")
    );

    let bad = Request::get("/v1/events")
        .header("last-event-id", "x")
        .body(Body::empty())
        .unwrap();
    let reply = harness.send(bad).await;
    assert_eq!(reply.problem("invalid-argument")["field"], "Last-Event-ID");
}

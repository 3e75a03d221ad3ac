//! A fabric in trouble: lost answers, ended sessions, slow, failing, garbage, wrong certificates.

use std::time::Instant;

use serde_json::json;

use super::stub::Fault;
use super::*;

const POST: &str = "POST /v2.2/app_instances";

#[tokio::test]
async fn an_answer_that_is_lost_makes_no_second_volume() {
    for fault in [
        Fault::Lost,
        Fault::Half,
        Fault::Slow(Duration::from_secs(60)),
        Fault::Garbage,
    ] {
        let stub = Stub::start().await;
        stub.fault(POST, fault.clone());
        let fabric = client(&stub);
        let (volume, _) = create(&fabric, "vol-1", &sized(3)).await.unwrap();
        assert_eq!(volume.size_bytes, 3 * GIB, "{fault:?}");
        assert_eq!(stub.count(POST), 2, "{fault:?}");
        assert_eq!(stub.model().instances.len(), 1, "{fault:?}");
    }
}

#[tokio::test]
async fn every_request_may_be_lost_once() {
    let whole = async |stub: &Stub, fabric: &Datera| -> Result<(), FabricError> {
        let volume = name("vol-1");
        create(fabric, "vol-1", &sized(3)).await?;
        fabric
            .admit(&op(), &volume, "iqn.2026-11.example:a")
            .await?;
        fabric.enlarge(&op(), &volume, 4 * GIB).await?;
        fabric.take_snapshot(&op(), &volume, "nightly").await?;
        let qos = berth_api::types::Qos {
            total_iops: Some(9),
            ..Default::default()
        };
        fabric.limit(&op(), &volume, Some(qos)).await?;
        fabric
            .dismiss(&op(), &volume, "iqn.2026-11.example:a")
            .await?;
        {
            let model = stub.model();
            assert_eq!(model.instances.len(), 1);
            let storage = &model.instances[0]["storage_instances"][0];
            assert_eq!(
                storage["volumes"][0]["snapshots"].as_array().unwrap().len(),
                1
            );
            assert_eq!(storage["volumes"][0]["size"], 4);
            assert_eq!(storage["acl_policy"]["initiators"], json!([]));
        }
        let with = berth_api::types::DeletePolicy::Delete;
        fabric.remove(&op(), &volume, with, true).await?;
        assert!(stub.model().instances.is_empty());
        Ok(())
    };
    let requests = {
        let stub = Stub::start().await;
        whole(&stub, &client(&stub)).await.unwrap();
        stub.model()
            .log
            .iter()
            .map(|(what, _)| what.clone())
            .collect::<Vec<_>>()
    };
    assert!(requests.len() >= 20, "{requests:?}");
    for at in 0..requests.len() {
        let stub = Stub::start().await;
        // The first so many of this kind go well.
        let before = requests[..at]
            .iter()
            .filter(|what| what.starts_with(requests[at].as_str()))
            .count();
        for _ in 0..before {
            stub.fault(&requests[at], Fault::Slow(Duration::ZERO));
        }
        stub.fault(&requests[at], Fault::Lost);
        let result = whole(&stub, &client(&stub)).await;
        result.unwrap_or_else(|error| panic!("{at} {}: {error}", requests[at]));
        assert!(stub.model().faults.is_empty(), "{at} {}", requests[at]);
    }
}

#[tokio::test]
async fn a_session_that_ends_is_renewed_once() {
    let stub = Stub::start().await;
    let fabric = client(&stub);
    create(&fabric, "vol-1", &sized(1)).await.unwrap();
    stub.model().key += 1;
    fabric.find(&op(), &name("vol-1")).await.unwrap();
    assert_eq!(stub.count("PUT /v2.2/login"), 2);
    // A fabric that ends every session is not asked for ever.
    let ended = json!({ "name": "InvalidSessionKeyError", "message": "gone" });
    for _ in 0..2 {
        stub.fault("GET /v2.2/app_instances", Fault::Status(401, ended.clone()));
    }
    let error = fabric.find(&op(), &name("vol-1")).await.unwrap_err();
    assert!(matches!(error, FabricError::LoginRefused { .. }), "{error}");
    assert_eq!(stub.count("PUT /v2.2/login"), 3);
    // Many at once share one login.
    stub.model().key += 1;
    let volume = name("vol-1");
    let (a, b, c) = tokio::join!(
        async { fabric.find(&op(), &volume).await },
        async { fabric.find(&op(), &volume).await },
        async { fabric.find(&op(), &volume).await },
    );
    assert!(a.is_ok() && b.is_ok() && c.is_ok());
    assert_eq!(stub.count("PUT /v2.2/login"), 4);
}

#[tokio::test]
async fn a_wrong_password_is_not_tried_again_and_again() {
    let stub = Stub::start().await;
    stub.set_password("wrong-pw");
    let mut settings = stub.settings();
    settings.breaker_pause.0 = Duration::from_secs(600);
    let fabric = Datera::new(&settings, "berth-test").unwrap();
    for _ in 0..3 {
        let error = fabric.find(&op(), &name("vol-1")).await.unwrap_err();
        assert!(matches!(error, FabricError::LoginRefused { .. }), "{error}");
        assert!(!format!("{error:?} {fabric:?}").contains("wrong-pw"));
    }
    assert_eq!(stub.count("PUT /v2.2/login"), 1, "fabrics lock accounts");
    stub.set_password("secret-pw");
    assert!(
        fabric.all(&op()).await.unwrap().is_empty(),
        "a new password is tried at once"
    );
}

#[tokio::test]
async fn the_newest_version_that_both_know_is_spoken() {
    for (known, version) in [
        (vec!["v2", "v2.1", "v2.2"], "v2.2"),
        (vec!["v2", "v2.1"], "v2.1"),
    ] {
        let stub = Stub::start().await;
        stub.model().versions = known;
        let fabric = client(&stub);
        create(&fabric, "vol-1", &sized(1)).await.unwrap();
        fabric
            .admit(&op(), &name("vol-1"), "iqn.2026-11.example:a")
            .await
            .unwrap();
        assert_eq!(stub.count(&format!("POST /{version}/app_instances")), 1);
        let model = stub.model();
        let (_, body) = model
            .log
            .iter()
            .find(|(what, _)| {
                what.ends_with("POST /v2.1/initiators") || what.ends_with("POST /v2.2/initiators")
            })
            .unwrap();
        assert_eq!(
            body.get("force").is_some(),
            version == "v2.2",
            "v2.1 knows no force"
        );
    }
    // Too old for the question: the versions are tried.
    let stub = Stub::start().await;
    stub.model().versions = vec!["v2.1"];
    stub.fault(
        "GET /api_versions",
        Fault::Status(400, json!({ "message": "what?" })),
    );
    assert!(client(&stub).all(&op()).await.is_ok());
    assert_eq!(stub.count("PUT /v2.1/login"), 1);
    let stub = Stub::start().await;
    stub.model().versions = vec!["v2"];
    let error = client(&stub).all(&op()).await.unwrap_err();
    assert!(
        error.to_string().contains("none of the versions"),
        "{error}"
    );
}

#[tokio::test]
async fn calls_end_by_their_deadline_with_what_went_wrong() {
    let stub = Stub::start().await;
    let mut settings = stub.settings();
    settings.request_timeout.0 = Duration::from_secs(3600);
    let fabric = Datera::new(&settings, "berth-test").unwrap();
    fabric.all(&op()).await.unwrap();
    stub.fault(
        "GET /v2.2/app_instances",
        Fault::Slow(Duration::from_secs(30)),
    );
    let started = Instant::now();
    let op = Op::within("slow", Duration::from_millis(300));
    let error = fabric.all(&op).await.unwrap_err();
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );
    assert!(matches!(error, FabricError::Deadline { .. }), "{error}");
    assert_eq!(
        berth_api::Error::from(error).code(),
        berth_api::Code::Deadline
    );
    fabric.all(&super::op()).await.unwrap();
}

#[tokio::test]
async fn failures_are_tried_again_within_bounds_and_refusals_are_not() {
    let stub = Stub::start().await;
    let fabric = client(&stub);
    fabric.all(&op()).await.unwrap();
    let message = json!({ "message": "REST server is still initializing" });
    for status in [500, 503, 502] {
        stub.fault(
            "GET /v2.2/app_instances",
            Fault::Status(status, message.clone()),
        );
    }
    fabric.all(&op()).await.unwrap();
    for _ in 0..4 {
        stub.fault(
            "GET /v2.2/app_instances",
            Fault::Status(500, message.clone()),
        );
    }
    let error = fabric.all(&op()).await.unwrap_err();
    assert!(error.to_string().contains("still initializing"), "{error}");
    assert!(matches!(error, FabricError::Unavailable { .. }), "{error}");
    let before = stub.model().log.len();
    let refusal = json!({ "name": "PermissionDeniedError", "code": 8, "message": "not \u{1b}[2J you", "errors": ["role"] });
    stub.fault("GET /v2.2/app_instances", Fault::Status(403, refusal));
    let error = fabric.all(&op()).await.unwrap_err();
    assert_eq!(stub.model().log.len(), before + 1);
    let text = error.to_string();
    assert!(
        text.contains("PermissionDeniedError") && text.contains("role"),
        "{text}"
    );
    assert!(!text.contains('\u{1b}'), "{text}");
    let (requests, retries) = (fabric.rest.stats.requests(), &fabric.rest.stats.retries);
    assert!(
        requests
            .iter()
            .any(|(_, outcome, count)| outcome.as_str() == "failed" && *count == 7),
        "{requests:?}"
    );
    assert!(retries.load(std::sync::atomic::Ordering::Relaxed) >= 6);
}

#[tokio::test]
async fn a_fabric_that_is_down_is_left_alone_and_found_again() {
    let stub = Stub::start().await;
    let mut settings = stub.settings();
    settings.breaker_failures = 4;
    let fabric = Datera::new(&settings, "berth-test").unwrap();
    fabric.all(&op()).await.unwrap();
    for _ in 0..4 {
        stub.fault("GET /v2.2/app_instances", Fault::Garbage);
    }
    fabric.all(&op()).await.unwrap_err();
    let asked = stub.model().log.len();
    let error = fabric.all(&op()).await.unwrap_err();
    assert!(
        matches!(error, FabricError::Resting { failures: 4, .. }),
        "{error}"
    );
    assert_eq!(stub.model().log.len(), asked, "nothing was sent");
    let healed = async {
        while fabric.all(&op()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), healed)
        .await
        .expect("it heals by itself");
}

#[tokio::test]
async fn nobody_there() {
    let stub = Stub::start().await;
    let mut settings = stub.settings();
    // A port that was ours and is closed now.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    settings.url = Some(format!("http://{port}"));
    let fabric = Datera::new(&settings, "berth-test").unwrap();
    let error = fabric.all(&op()).await.unwrap_err();
    assert!(error.to_string().contains("no connection"), "{error}");
    assert_eq!(
        berth_api::Error::from(error).code(),
        berth_api::Code::FabricUnavailable
    );
}

#[tokio::test]
async fn answers_are_bounded() {
    let stub = Stub::start().await;
    let mut settings = stub.settings();
    settings.answer_max = crate::config::Size(2000);
    let fabric = Datera::new(&settings, "berth-test").unwrap();
    fabric.all(&op()).await.unwrap();
    let long = json!({ "data": "x".repeat(5000) });
    stub.fault("GET /v2.2/app_instances", Fault::Status(200, long));
    let error = fabric.all(&op()).await.unwrap_err();
    assert!(error.to_string().contains("fabric.answer_max"), "{error}");
    let endless = json!({ "metadata": { "total_count": 1_000_000 }, "data": [] });
    stub.fault("GET /v2.2/app_instances", Fault::Status(200, endless));
    assert!(
        fabric.all(&op()).await.unwrap().is_empty(),
        "a list that gives no more ends"
    );
}

//! The switches that spoil answers, and the log of requests.

use super::super::{FaultAction, FaultRule};
use super::*;

fn list(client: &Client) -> Option<(u16, Vec<u8>)> {
    client.exchange("GET", "/v2.2/app_instances", "application/json", "")
}

#[test]
fn answers_are_spoiled_as_asked() {
    let rig = Rig::new();
    let whole = list(&rig.client).unwrap().1;
    let once = |rule: FaultRule| {
        rig.fabric.set_faults(vec![rule.times(1)]).unwrap();
        list(&rig.client)
    };
    for status in [401, 500, 503] {
        assert_eq!(once(FaultRule::status(status)).unwrap().0, status);
    }
    let garbage = once(FaultRule::new(FaultAction::Garbage)).unwrap();
    assert!(garbage.0 == 200 && serde_json::from_slice::<Value>(&garbage.1).is_err());
    let half = once(FaultRule::new(FaultAction::HalfJson).after_doing()).unwrap();
    assert!(half.0 == 200 && serde_json::from_slice::<Value>(&half.1).is_err());
    let cut = once(FaultRule::new(FaultAction::Cut).after_doing()).unwrap();
    assert!(!cut.1.is_empty() && cut.1.len() < whole.len());
    assert_eq!(once(FaultRule::new(FaultAction::Drop)), None);
    // The rule is used up.
    assert_eq!(list(&rig.client).unwrap().0, 200);
    let log = rig.fabric.requests();
    assert_eq!(log.iter().filter(|entry| entry.fault).count(), 7);
    assert_eq!(log.iter().filter(|entry| entry.status.is_none()).count(), 1);
}

#[test]
fn an_answer_can_be_lost_after_the_deed() {
    let rig = Rig::new();
    let rule = FaultRule::new(FaultAction::Drop)
        .only("POST", "/app_instances$")
        .times(1)
        .after_doing();
    rig.fabric.set_faults(vec![rule]).unwrap();
    let body = json!({"name": "pv-1"}).to_string();
    let post = || {
        let path = "/v2.2/app_instances";
        rig.client.exchange("POST", path, "application/json", &body)
    };
    assert_eq!(post(), None);
    assert_eq!(post().unwrap().0, 409);
    assert_eq!(rig.client.get("/app_instances/pv-1")["name"], "pv-1");
    // Without the deed nothing is there.
    let rule = FaultRule::new(FaultAction::Drop)
        .only("DELETE", "")
        .times(1);
    rig.fabric.set_faults(vec![rule]).unwrap();
    let path = "/v2.2/app_instances/pv-1";
    assert_eq!(
        rig.client.exchange("DELETE", path, "application/json", ""),
        None
    );
    assert_eq!(rig.client.get("/app_instances/pv-1")["name"], "pv-1");
}

#[test]
fn switches_and_log_are_reached_over_http() {
    let rig = Rig::new();
    let http = |method: &str, path: &str, body: &str| {
        rig.client
            .exchange(method, path, "application/json", body)
            .unwrap()
    };
    let rules = r#"[{"path": "/system$", "action": "status", "status": 500, "times": 1}]"#;
    assert_eq!(http("PUT", "/sim/faults", rules).0, 200);
    assert_eq!(http("GET", "/v2.2/system", "").0, 500);
    assert_eq!(http("GET", "/v2.2/system", "").0, 200);
    assert_eq!(http("PUT", "/sim/faults", r#"[{"path": "("}]"#).0, 400);
    assert_eq!(http("DELETE", "/sim/faults", "").0, 204);
    let (_, bytes) = http("GET", "/sim/requests?since=1", "");
    let log: Vec<Value> = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(log.len(), 2);
    assert_eq!(
        (&log[0]["error"], &log[1]["status"]),
        (&json!("InternalError"), &json!(200))
    );
    let (_, bytes) = http("GET", "/sim", "");
    let info: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(info["portals"][0], rig.fabric.portals()[0].to_string());
    assert_eq!(http("DELETE", "/sim/sessions", "").0, 200);
    assert_eq!(http("GET", "/v2.2/system", "").0, 401);
}

#[test]
fn the_log_can_be_kept_in_a_file() {
    let rig = Rig::with(|options| options.request_log = true);
    rig.client.get("/system");
    let text = std::fs::read_to_string(rig.dir.path().join("requests.jsonl")).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["body"]["password"], "(hidden)");
    assert_eq!(lines[1]["path"], "/v2.2/system");
}

#[test]
fn strange_input_is_answered_or_closed() {
    let rig = Rig::new();
    for request in [
        &b"\x16\x03\x01\x02\x00\x01\x00"[..],
        b"GET /v2.2/system HTTP/1.1\r\ncontent-length: x\r\n\r\n",
        b"BREW /v2.2/system HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        b"GET /v2.2/%ff%fe HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauth-token: x\r\n\r\n",
    ] {
        let answer = rig.client.raw(request);
        assert!(
            answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"),
            "{answer:?}"
        );
    }
    let deep = "[".repeat(100_000);
    let (status, _) = rig
        .client
        .exchange("POST", "/v2.2/app_instances", "application/json", &deep)
        .unwrap();
    assert_eq!(status, 400);
    rig.client.get("/system");
}

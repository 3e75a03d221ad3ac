//! Volumes that the configuration declares, for arrays without an API; and what the metrics say of a fabric that has one.

use anyhow::{Context as _, Result, ensure};
use berth_tests::Berthd;
use berth_tests::berthd::{INITIATOR, OTHER_INITIATOR};
use serde_json::{Value, json};

use crate::fabric_site::{GIB, Site, attach_body, call, check_data, volume, volumes};

const ATTACHMENT: &str = "/v1/attachments/data";

/// The value of a sample.
fn sample(metrics: &str, name: &str) -> Option<f64> {
    let line = metrics.lines().find(|line| line.starts_with(name))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// A volume made over the API by one node is a volume of any array for another.
#[test]
fn declared_volumes_are_listed_and_attached_and_managed_elsewhere() -> Result<()> {
    let site = Site::start()?;
    let manager = Berthd::start_node(INITIATOR, &site.config(&site.http()?, ""))?;
    let body = json!({ "size_bytes": GIB });
    call(&manager, "PUT", "/v1/volumes/vol-1", Some(&body), &[201])?;
    let path = format!(
        "/v1/volumes/vol-1/access/{}",
        OTHER_INITIATOR.replace(':', "%3A")
    );
    call(&manager, "PUT", &path, None, &[200])?;
    let unit = volume(&manager, "vol-1")?["units"][0].clone();
    let portals: Vec<&str> = unit["portals"]
        .as_array()
        .context("portals")?
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let target = unit["target"].as_str().context("a target")?;
    let declared = format!(
        "[[fabric.volume]]\nname = \"archive\"\nportals = {portals:?}\ntarget = \"{target}\"\nlun = 0\nsize = \"1GiB\"\n"
    );
    let node = Berthd::start_node(OTHER_INITIATOR, &declared)?;
    ensure!(volumes(&node)? == ["archive"]);
    let status = call(&node, "GET", "/v1/fabric", None, &[200])?.json()?;
    ensure!(
        status["kind"] == "declared" && status["reachable"] == true,
        "{status:#}"
    );
    let source = json!({ "volume": "archive", "revoke_on_detach": true });
    let mut alone = attach_body(&source);
    alone["fence"] = "acl".into();
    for (method, path, body) in [
        ("PUT", "/v1/volumes/other", Some(&body)),
        ("DELETE", "/v1/volumes/archive", None),
        ("PUT", "/v1/volumes/archive/snapshots/nightly", None),
        ("GET", "/v1/snapshots", None),
        ("PUT", ATTACHMENT, Some(&alone)),
    ] {
        let refused = call(&node, method, path, body, &[501])?.json()?;
        ensure!(refused["code"] == "not-implemented", "{refused:#}");
    }
    node.detach("data")?;
    node.attach_with("data", &attach_body(&source))?;
    check_data(&node, "data", 0x11)?;
    let seen = volume(&manager, "vol-1")?["units"][0]["sessions"].clone();
    ensure!(seen == json!([OTHER_INITIATOR]), "{seen}");
    node.detach("data")?;
    let absent = attach_body(&json!({ "volume": "no-such" }));
    call(&node, "PUT", ATTACHMENT, Some(&absent), &[404])?;
    node.stop()?;

    let metrics = call(&manager, "GET", "/metrics", None, &[200])?.text();
    for (name, least) in [
        (
            "berth_fabric_requests_total{method=\"POST\",outcome=\"ok\"}",
            2.0,
        ),
        (
            "berth_fabric_requests_total{method=\"GET\",outcome=\"refused\"}",
            1.0,
        ),
        ("berth_fabric_logins_total", 1.0),
        ("berth_fabric_request_duration_seconds_count", 8.0),
        ("berth_fabric_retries_total", 0.0),
    ] {
        let value = sample(&metrics, name).with_context(|| format!("{name} in {metrics}"))?;
        ensure!(value >= least, "{name} is {value}");
    }
    for name in ["berth_fabric_requests_in_flight", "berth_fabric_resting"] {
        ensure!(sample(&metrics, name) == Some(0.0), "{name} in {metrics}");
    }
    manager.stop()
}

//! `node`: facts, limits and health.

use berth_api::client::Client;
use berth_api::types::{CheckResult, Node};
use serde::Serialize;

use super::error::Failure;
use super::output::{Output, age, clean, size};

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    node: Node,
    checks: Vec<CheckResult>,
}

pub(super) async fn run(client: &Client, output: &Output) -> Result<(), Failure> {
    let node = client.node().await?;
    let health = client.ready().await?;
    let ready = health.is_ok();
    let report = Report {
        node,
        checks: health.checks,
    };
    if output.is_json() {
        output.json(&report)?;
    } else {
        output.text(&page(&report, output))?;
    }
    if ready {
        Ok(())
    } else {
        Err(Failure::Unsuccessful("the node is not ready".to_owned()))
    }
}

fn page(report: &Report, output: &Output) -> String {
    let node = &report.node;
    let kernel = match (node.kernel_nbd.available, &node.kernel_nbd.detail) {
        (true, _) => "available".to_owned(),
        (false, Some(why)) => format!("not available: {why}"),
        (false, None) => "not available".to_owned(),
    };
    let mut text = format!("{}\n", output.bold(&clean(&node.name)));
    for (name, value) in [
        ("Initiator name", node.initiator_name.clone()),
        ("Version", node.version.clone()),
        ("Running for", age(node.started_unix_ms)),
        (
            "Attachments",
            format!("{} of {}", node.attachments, node.limits.attachments_max),
        ),
        ("NBD socket", node.nbd_socket.clone()),
        ("Kernel devices", kernel),
        ("Data threads", node.limits.data_threads.to_string()),
        (
            "Longest request",
            size(node.limits.request_max_bytes.into()),
        ),
    ] {
        text.push_str(&format!(
            "  {}{}\n",
            output.dim(&format!("{name:18}")),
            clean(&value)
        ));
    }
    text.push_str(&format!("{}\n", output.bold("Health")));
    for check in &report.checks {
        let word = if check.ok { "ok" } else { "FAILED" };
        let detail = check.detail.as_deref().unwrap_or_default();
        let line = format!("  {:18}{word} {detail}", check.name);
        text.push_str(clean(&line).trim_end());
        text.push('\n');
    }
    text
}

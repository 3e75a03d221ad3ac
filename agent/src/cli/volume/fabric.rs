//! `fabric`: the storage fabric as a whole.

use berth_api::client::Client;
use berth_api::types::{Breaker, BreakerState, FabricStatus};

use super::args;
use crate::cli::error::Failure;
use crate::cli::output::{Output, clean, size, span};

pub(in crate::cli) async fn run(
    client: &Client,
    output: &Output,
    command: &args::Fabric,
) -> Result<(), Failure> {
    let args::Fabric::Show = command;
    let status = client.fabric().await?;
    if output.is_json() {
        output.json(&status)?;
    } else {
        output.text(&page(output, &status))?;
    }
    if status.reachable {
        return Ok(());
    }
    Err(Failure::Unsuccessful(
        "the fabric does not answer".to_owned(),
    ))
}

fn page(output: &Output, status: &FabricStatus) -> String {
    let name = status.name.as_deref().unwrap_or("the fabric");
    let answers = if status.reachable {
        "answers"
    } else {
        "does not answer"
    };
    let heading = format!("{name} {answers}");
    let mut text = format!("{}\n", output.bold(&clean(&heading)));
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let name = output.dim(&format!("{name:13}"));
            text.push_str(&format!("  {name}{}\n", clean(&value)));
        }
    };
    line("kind", Some(status.kind.as_str().to_owned()));
    line("url", status.url.clone());
    line(
        "reason",
        status.reason.as_ref().map(|reason| reason.detail.clone()),
    );
    line("health", status.health.clone());
    line("version", status.version.clone());
    line("api", status.api_version.clone());
    if let Some(capacity) = &status.capacity {
        line("total", Some(size(capacity.total_bytes)));
        line("available", Some(size(capacity.available_bytes)));
        line("provisioned", capacity.provisioned_bytes.map(size));
    }
    line("breaker", status.breaker.as_ref().map(breaker));
    text
}

fn breaker(breaker: &Breaker) -> String {
    let state = breaker.state.as_str();
    let failures = breaker.failures;
    match (breaker.state, breaker.retry_in_ms) {
        (BreakerState::Closed, _) if failures == 0 => state.to_owned(),
        (BreakerState::Open, Some(ms)) => {
            format!(
                "{state}: {failures} failures in a row, tried again in {}",
                span(ms)
            )
        }
        _ => format!("{state}: {failures} failures in a row"),
    }
}

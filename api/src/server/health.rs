//! `/livez`, `/readyz`, `/healthz` and `/metrics`.

use std::fmt::Write as _;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};

use super::Api;
use crate::error::Problem;
use crate::service::NodeService;
use crate::types::{CheckResult, Health};

/// How long all checks together may take.
const READY_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether the process is alive: answered from here, whatever targets and fabric do.
#[utoipa::path(
    get, path = "/livez", tag = "health", operation_id = "livez",
    responses((status = 200, description = "Alive", body = String, content_type = "text/plain"))
)]
pub(super) async fn livez() -> &'static str {
    "ok\n"
}

/// Whether the node can do its work. `?verbose` lists the checks; so does `Accept: application/json`,
/// for programs. `/healthz` is the same.
#[utoipa::path(
    get, path = "/readyz", tag = "health", operation_id = "readyz",
    params(("verbose" = Option<String>, Query, description = "List the checks")),
    responses(
        (status = 200, description = "Ready", content((Health = "application/json"), (String = "text/plain"))),
        (status = 503, description = "Not ready", content((Health = "application/json"), (String = "text/plain"))),
        (status = "default", description = "An error", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn readyz<S: NodeService>(
    State(api): State<Api<S>>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let health = if *api.shared.stop.borrow() {
        Health {
            checks: vec![CheckResult::fail("running", "the daemon is stopping")],
        }
    } else {
        tokio::time::timeout(READY_TIMEOUT, api.shared.service.ready())
            .await
            .unwrap_or_else(|_| Health {
                checks: vec![CheckResult::fail(
                    "checks",
                    format!("not done within {} s", READY_TIMEOUT.as_secs()),
                )],
            })
    };
    let status = if health.is_ok() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let wants_json = headers
        .get(ACCEPT)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|accept| accept.contains("application/json"));
    if wants_json {
        return (status, Json(health)).into_response();
    }
    let verbose = uri.query().is_some_and(|query| {
        query
            .split('&')
            .any(|part| matches!(part, "verbose" | "verbose=" | "verbose=1" | "verbose=true"))
    });
    (status, text(&health, verbose)).into_response()
}

/// The form that kube-apiserver uses: `[+]name ok`, `[-]name failed: why`.
fn text(health: &Health, verbose: bool) -> String {
    let mut text = String::new();
    if health.is_ok() && !verbose {
        text.push_str("ok\n");
        return text;
    }
    for check in &health.checks {
        let detail = check.detail.as_deref().unwrap_or_default();
        let line = match (check.ok, detail) {
            (true, "") => format!("[+]{} ok", check.name),
            (true, detail) => format!("[+]{} ok: {detail}", check.name),
            (false, detail) => format!("[-]{} failed: {detail}", check.name),
        };
        writeln!(text, "{line}").expect("writing to a string succeeds");
    }
    text.push_str(if health.is_ok() {
        "readyz check passed\n"
    } else {
        "readyz check failed\n"
    });
    text
}

/// Metrics in Prometheus text format.
#[utoipa::path(
    get, path = "/metrics", tag = "health", operation_id = "metrics",
    responses(
        (status = 200, description = "Prometheus text format 0.0.4", body = String, content_type = "text/plain"),
        (status = "default", description = "An error", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn metrics<S: NodeService>(State(api): State<Api<S>>) -> impl IntoResponse {
    let headers = [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (headers, api.shared.service.metrics().await)
}

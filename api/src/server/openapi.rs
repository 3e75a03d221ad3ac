//! `/openapi.json`: the contract, made from the code and checked in beside it.

use axum::http::header::{CONTENT_TYPE, HeaderName};
use utoipa::OpenApi;

use super::{attachments, events, health, node, operations, volumes};
use crate::error::Problem;
use crate::types::{CheckResult, Event, Health, NewEvent};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "berth",
        description = "Gives volumes of iSCSI storage a berth on this node, as block devices over NBD.\n\n\
            Errors are `application/problem+json` (RFC 9457) with `code` for programs and `retryable`. \
            Every answer has an `X-Request-Id`, taken over from the request or made anew; it is the \
            `instance` of a problem and stands in the daemon's log. `traceparent` (W3C Trace Context) is passed on. \
            Over the Unix socket the socket's mode decides who may call; over TCP every call needs \
            the bearer token, but for `/`, `/livez` and `/openapi.json`.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
        version = "1",
    ),
    paths(
        attachments::list, attachments::show, attachments::attach, attachments::change,
        attachments::detach,
        operations::list, operations::show,
        volumes::fabric, volumes::templates, volumes::list, volumes::show, volumes::create, volumes::change, volumes::delete,
        volumes::grant, volumes::revoke,
        volumes::all_snapshots, volumes::snapshots, volumes::take_snapshot, volumes::delete_snapshot, volumes::restore,
        node::discover, node::discover_with_auth, node::node,
        events::events,
        health::livez, health::readyz, health::metrics,
    ),
    components(schemas(Problem, Health, CheckResult, Event, NewEvent)),
    tags(
        (name = "attachments", description = "Volumes on this node"),
        (name = "operations", description = "Calls that go on after their answer"),
        (name = "volumes", description = "Volumes on the storage fabric"),
        (name = "discovery", description = "What a portal offers"),
        (name = "events", description = "What happens"),
        (name = "node", description = "Facts and limits"),
        (name = "health", description = "Is it alive, can it work, what does it do"),
    ),
)]
struct Document;

/// The document as checked in: `/openapi.json`.
const CHECKED_IN: &str = include_str!("../../openapi.json");

/// The document made from this code, as pretty JSON with a final newline.
#[must_use]
pub fn openapi_json() -> String {
    let mut json = Document::openapi()
        .to_pretty_json()
        .expect("the document has only string keys");
    json.push('\n');
    json
}

pub(super) async fn serve() -> ([(HeaderName, &'static str); 1], &'static str) {
    ([(CONTENT_TYPE, "application/json")], CHECKED_IN)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// To refresh the file: `BERTH_REFRESH=1 cargo test -p berth-api openapi`.
    #[test]
    fn the_checked_in_document_is_up_to_date() {
        let made = openapi_json();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
        if std::env::var_os("BERTH_REFRESH").is_some() {
            std::fs::write(path, &made).unwrap();
            return;
        }
        let kept = std::fs::read_to_string(path).unwrap();
        if kept != made {
            let line = kept
                .lines()
                .zip(made.lines())
                .position(|(a, b)| a != b)
                .map_or(0, |index| index + 1);
            panic!(
                "openapi.json is stale from line {line} on: the contract has changed. If that was \
                 meant, run BERTH_REFRESH=1 cargo test -p berth-api openapi and commit the file"
            );
        }
    }

    #[test]
    fn the_document_is_openapi_3_1_with_an_answer_for_errors_everywhere() {
        let document: serde_json::Value = serde_json::from_str(&openapi_json()).unwrap();
        assert_eq!(document["openapi"], "3.1.0");
        for (path, methods) in document["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                let default = &operation["responses"]["default"]["content"];
                assert!(
                    path == "/livez" || default["application/problem+json"].is_object(),
                    "{method} {path}"
                );
                assert!(operation["operationId"].is_string(), "{method} {path}");
            }
        }
    }

    /// Secrets are only in what is sent to the daemon.
    #[test]
    fn no_answer_has_a_secret() {
        let document: serde_json::Value = serde_json::from_str(&openapi_json()).unwrap();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let with_secret: Vec<_> = schemas
            .iter()
            .filter(|(_, schema)| schema["properties"]["secret"].is_object())
            .map(|(name, schema)| {
                assert_eq!(schema["properties"]["secret"]["writeOnly"], true, "{name}");
                name.as_str()
            })
            .collect();
        assert_eq!(with_secret, ["Chap", "FabricChap", "MutualChap"]);
    }
}

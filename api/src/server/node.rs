//! `/v1/node` and `/v1/discovery`.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;

use super::Api;
use super::context::Failure;
use super::extract::{Caller, Json as JsonBody, Parameters};
use crate::error::{Code, Error, Problem};
use crate::portal::Portal;
use crate::service::{Call, NodeService};
use crate::types::{Discovery, DiscoveryRequest, Node};

/// Facts and limits of this node.
#[utoipa::path(
    get, path = "/v1/node", tag = "node", operation_id = "get_node",
    responses(
        (status = 200, description = "The node", body = Node),
        (status = "default", description = "An error", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn node<S: NodeService>(State(api): State<Api<S>>) -> Result<Json<Node>, Failure> {
    Ok(Json(api.shared.service.node().await?))
}

/// Parameters of a discovery without authentication.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DiscoveryParameters {
    portal: Portal,
}

/// Asks a portal for its targets.
#[utoipa::path(
    get, path = "/v1/discovery", tag = "discovery", operation_id = "discover",
    params(("portal" = String, Query, description = "The portal to ask, `host:port` or `[v6]:port`")),
    responses(
        (status = 200, description = "What the portal offers", body = Discovery),
        (status = 503, description = "`target-unreachable`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "An error", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn discover<S: NodeService>(
    State(api): State<Api<S>>,
    Caller(call): Caller,
    Parameters(parameters): Parameters<DiscoveryParameters>,
) -> Result<Json<Discovery>, Failure> {
    ask(&api, &call, DiscoveryRequest::new(parameters.portal)).await
}

/// Asks a portal for its targets, with authentication: secrets have no place in a URL.
#[utoipa::path(
    post, path = "/v1/discovery", tag = "discovery", operation_id = "discover_with_auth",
    request_body = DiscoveryRequest,
    responses(
        (status = 200, description = "What the portal offers", body = Discovery),
        (status = 503, description = "`target-unreachable`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "An error", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn discover_with_auth<S: NodeService>(
    State(api): State<Api<S>>,
    Caller(call): Caller,
    JsonBody(request): JsonBody<DiscoveryRequest>,
) -> Result<Json<Discovery>, Failure> {
    ask(&api, &call, request).await
}

async fn ask<S: NodeService>(
    api: &Api<S>,
    call: &Call,
    request: DiscoveryRequest,
) -> Result<Json<Discovery>, Failure> {
    let timeout = request.timeout();
    match tokio::time::timeout(timeout, api.shared.service.discover(call, request)).await {
        Ok(found) => Ok(Json(found?)),
        Err(_) => Err(Failure(Error::new(
            Code::Deadline,
            format!("the portal did not answer within {} s", timeout.as_secs()),
        ))),
    }
}

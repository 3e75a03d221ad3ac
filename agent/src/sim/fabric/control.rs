//! `/sim`: what a test or an operator asks of the simulator itself. No session is needed.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::{delete, get};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::faults::FaultRule;
use super::log::LoggedRequest;
use super::server::Shared;

type Fabric = State<Arc<Shared>>;

/// The routes.
pub(super) fn router() -> Router<Arc<Shared>> {
    Router::new()
        .route("/sim", get(info))
        .route("/sim/requests", get(requests).delete(clear))
        .route("/sim/faults", get(faults).put(set_faults).delete(no_faults))
        .route("/sim/sessions", delete(end_sessions))
}

/// Addresses, version and fingerprint.
async fn info(State(fabric): Fabric) -> Json<Value> {
    Json(fabric.info.clone())
}

#[derive(Deserialize)]
struct Since {
    /// Number of the last request that is known already.
    #[serde(default)]
    since: u64,
}

async fn requests(
    State(fabric): Fabric,
    Query(Since { since }): Query<Since>,
) -> Json<Vec<LoggedRequest>> {
    Json(fabric.log().since(since))
}

async fn clear(State(fabric): Fabric) -> StatusCode {
    fabric.log().clear();
    StatusCode::NO_CONTENT
}

async fn faults(State(fabric): Fabric) -> Json<Vec<FaultRule>> {
    Json(fabric.faults().rules())
}

async fn set_faults(
    State(fabric): Fabric,
    Json(rules): Json<Vec<FaultRule>>,
) -> Result<Json<Vec<FaultRule>>, (StatusCode, String)> {
    let mut faults = fabric.faults();
    faults
        .set(rules)
        .map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?;
    Ok(Json(faults.rules()))
}

async fn no_faults(State(fabric): Fabric) -> StatusCode {
    // An empty list has nothing that could be wrong.
    let _ = fabric.faults().set(Vec::new());
    StatusCode::NO_CONTENT
}

/// Every session ends, as when all had expired.
async fn end_sessions(State(fabric): Fabric) -> Json<Value> {
    let ended = fabric.sessions().end_all();
    Json(json!({ "ended": ended }))
}

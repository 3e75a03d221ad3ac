//! `/sim`: what a test or an operator asks of the simulator itself. No session is needed.

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use berth_iscsi::target::faults::FaultPlan;
use berth_iscsi::target::lu::LuFaults;
use berth_iscsi::target::{AsyncNotice, ConnectionId, SessionInfo, SessionKind};
use serde::Deserialize;
use serde_json::{Value, json};

use super::faults::FaultRule;
use super::log::LoggedRequest;
use super::portal_faults::{ConnectionFaults, Message, VolumeFaults, Wrong};
use super::server::Shared;

type Fabric = State<Arc<Shared>>;

/// The routes.
pub(super) fn router() -> Router<Arc<Shared>> {
    Router::new()
        .route("/sim", get(info))
        .route("/sim/requests", get(requests).delete(clear))
        .route("/sim/faults", get(faults).put(set_faults).delete(no_faults))
        .route("/sim/sessions", delete(end_sessions))
        .route("/sim/portals", get(logins).delete(end_logins))
        .route(
            "/sim/portals/faults",
            put(connection_faults).delete(no_connection_faults),
        )
        .route("/sim/portals/messages", post(message))
        .route(
            "/sim/volumes/{uuid}/faults",
            put(volume_faults).delete(no_volume_faults),
        )
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

type Refusal = (StatusCode, String);

fn wrong(error: &Wrong) -> Refusal {
    (StatusCode::BAD_REQUEST, error.to_string())
}

/// The portals have gone.
fn gone(error: impl std::fmt::Display) -> Refusal {
    (StatusCode::SERVICE_UNAVAILABLE, error.to_string())
}

/// Which iSCSI sessions are meant; all of them unless said otherwise.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Whose {
    #[serde(default)]
    initiator: Option<String>,
    #[serde(default)]
    target: Option<String>,
}

impl Whose {
    fn holds(&self, session: &SessionInfo) -> bool {
        let same = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|w| w == is);
        same(&self.initiator, &session.nexus.initiator) && same(&self.target, &session.nexus.target)
    }
}

/// iSCSI sessions.
async fn logins(State(fabric): Fabric, Query(whose): Query<Whose>) -> Result<Json<Value>, Refusal> {
    let handle = fabric.portals().await;
    let sessions = handle.with(|portal, _| portal.sessions()).await;
    let sessions = sessions.map_err(gone)?.into_iter();
    let shown = sessions
        .filter(|session| whose.holds(session))
        .map(|session| {
            json!({
                "initiator": &*session.nexus.initiator, "target": &*session.nexus.target,
                "discovery": session.kind == SessionKind::Discovery,
            })
        });
    Ok(Json(shown.collect()))
}

/// Cuts iSCSI sessions without a word; their initiators may come again.
async fn end_logins(
    State(fabric): Fabric,
    Query(whose): Query<Whose>,
) -> Result<Json<Value>, Refusal> {
    let handle = fabric.portals().await;
    let ended = handle.with(move |portal, _| {
        let sessions = portal.sessions().into_iter();
        let ended: Vec<SessionInfo> = sessions.filter(|session| whose.holds(session)).collect();
        for session in &ended {
            portal.close(session.connection);
        }
        ended.len()
    });
    Ok(Json(json!({ "ended": ended.await.map_err(gone)? })))
}

async fn connection_faults(
    State(fabric): Fabric,
    Json(faults): Json<ConnectionFaults>,
) -> Result<StatusCode, Refusal> {
    let (now, coming) = faults.plans().map_err(|error| wrong(&error))?;
    let handle = fabric.portals().await;
    let done = handle.with(move |portal, _| {
        let there: Vec<ConnectionId> = portal.connections().collect();
        for id in there {
            portal.set_faults(id, now.clone());
        }
        portal.set_default_faults(coming);
    });
    done.await.map_err(gone)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Ends all faults of connections; what they held back goes on.
async fn no_connection_faults(State(fabric): Fabric) -> Result<StatusCode, Refusal> {
    let handle = fabric.portals().await;
    let done = handle.with(|portal, at| {
        let there: Vec<ConnectionId> = portal.connections().collect();
        for id in there {
            portal.set_faults(id, FaultPlan::default());
            portal.release(id, at);
        }
        portal.set_default_faults(FaultPlan::default());
    });
    done.await.map_err(gone)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Sends an asynchronous message to the sessions.
async fn message(
    State(fabric): Fabric,
    Query(whose): Query<Whose>,
    Json(message): Json<Message>,
) -> Result<Json<Value>, Refusal> {
    let handle = fabric.portals().await;
    let notice = AsyncNotice::new(message.event, message.parameters);
    let told = handle.with(move |portal, at| {
        let sessions = portal.sessions().into_iter();
        let told: Vec<SessionInfo> = sessions.filter(|session| whose.holds(session)).collect();
        for session in &told {
            portal.send_async(session.connection, at, &notice);
        }
        told.len()
    });
    Ok(Json(json!({ "told": told.await.map_err(gone)? })))
}

async fn volume_faults(
    State(fabric): Fabric,
    Path(uuid): Path<String>,
    Json(faults): Json<VolumeFaults>,
) -> Result<StatusCode, Refusal> {
    let faults = faults.faults().map_err(|error| wrong(&error))?;
    set_volume_faults(&fabric, &uuid, faults).await
}

async fn no_volume_faults(
    State(fabric): Fabric,
    Path(uuid): Path<String>,
) -> Result<StatusCode, Refusal> {
    set_volume_faults(&fabric, &uuid, LuFaults::default()).await
}

async fn set_volume_faults(
    fabric: &Shared,
    uuid: &str,
    faults: LuFaults,
) -> Result<StatusCode, Refusal> {
    let world = fabric.world.lock().await;
    let done = world.backend.set_faults(uuid, faults).await.map_err(gone)?;
    if done {
        Ok(StatusCode::NO_CONTENT)
    } else {
        let why = format!("no volume with uuid {uuid} is online");
        Err((StatusCode::NOT_FOUND, why))
    }
}

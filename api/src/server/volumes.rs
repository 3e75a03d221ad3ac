//! `/v1/volumes` and `/v1/templates`: the storage fabric.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::Api;
use super::context::Failure;
use super::extract::{Caller, Json as JsonBody, Parameters, Volume as VolumeInPath};
use crate::error::{Code, Error, Problem};
use crate::name::{TargetName, VolumeName};
use crate::service::NodeService;
use crate::types::{
    DeletePolicy, FabricStatus, PageRequest, Snapshot, SnapshotList, SnapshotPlace, TemplateList,
    Volume, VolumeList, VolumePatch, VolumeRequest,
};

/// Runs work of the fabric on a task of its own, which goes on when the caller hangs up: what was begun on a fabric is
/// best brought to its end.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::spawn(work).await {
        Ok(result) => result.map_err(Failure),
        Err(error) => Err(Failure(Error::internal(error))),
    }
}

/// How the storage fabric is, asked just now: whether it answers, its versions, its health, its space.
///
/// One that does not answer is told of (`reachable`, `reason`) and no error. Volumes that are attached do not need it.
#[utoipa::path(
    get, path = "/v1/fabric", tag = "volumes", operation_id = "get_fabric",
    responses(
        (status = 200, description = "How it is", body = FabricStatus),
        (status = 501, description = "`not-implemented`: no fabric is configured", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "An error", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn fabric<S: NodeService>(
    State(api): State<Api<S>>,
    Caller(call): Caller,
) -> Result<Json<FabricStatus>, Failure> {
    Ok(Json(api.shared.service.fabric(&call).await?))
}

/// What a page begins behind.
fn after<K: std::str::FromStr<Err: std::fmt::Display>>(
    page: &PageRequest,
) -> Result<Option<K>, Failure> {
    let parsed = page.after.as_deref().map(str::parse).transpose();
    parsed.map_err(|error: K::Err| {
        let detail = format!("after: {error}");
        Failure(Error::new(Code::InvalidArgument, detail).with_field("after"))
    })
}

/// The AppTemplates of the fabric, ordered by name.
#[utoipa::path(
    get, path = "/v1/templates", tag = "volumes", operation_id = "list_templates",
    responses(
        (status = 200, description = "The templates", body = TemplateList),
        (status = 501, description = "`not-implemented`: no fabric is configured", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`fabric-unavailable`", body = Problem, content_type = "application/problem+json"),
        (status = 504, description = "`deadline`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "An error", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn templates<S: NodeService>(
    State(api): State<Api<S>>,
    Caller(call): Caller,
) -> Result<Json<TemplateList>, Failure> {
    let templates = api.shared.service.templates(&call).await?;
    Ok(Json(TemplateList { templates }))
}

/// The volumes of the fabric, ordered by name; all, or page by page.
///
/// Pages are exact: a volume that is there from the first page to the last is on one of them, whatever is made or deleted
/// meanwhile.
#[utoipa::path(
    get, path = "/v1/volumes", tag = "volumes", operation_id = "list_volumes",
    params(PageRequest),
    responses(
        (status = 200, description = "The volumes", body = VolumeList),
        (status = 501, description = "`not-implemented`: no fabric is configured", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`fabric-unavailable`", body = Problem, content_type = "application/problem+json"),
        (status = 504, description = "`deadline`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "An error", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn list<S: NodeService>(
    State(api): State<Api<S>>,
    Caller(call): Caller,
    Parameters(page): Parameters<PageRequest>,
) -> Result<Json<VolumeList>, Failure> {
    let after = after::<VolumeName>(&page)?;
    let volumes = api.shared.service.volumes(&call).await?;
    let (volumes, next) = page.cut(volumes, after.as_ref(), |volume| volume.name.clone());
    let next = next.map(|name| name.to_string());
    Ok(Json(VolumeList { volumes, next }))
}

/// One volume.
#[utoipa::path(
    get, path = "/v1/volumes/{volume}", tag = "volumes", operation_id = "get_volume",
    params(("volume" = String, Path, description = "Name of the volume")),
    responses(
        (status = 200, description = "The volume", body = Volume),
        (status = 404, description = "`not-found`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "An error", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn show<S: NodeService>(
    State(api): State<Api<S>>,
    Caller(call): Caller,
    VolumeInPath(name): VolumeInPath,
) -> Result<Json<Volume>, Failure> {
    Ok(Json(api.shared.service.volume(&call, &name).await?))
}

/// Makes a volume on the fabric, and answers when it is available.
///
/// Idempotent: repeat it until it succeeds. A volume that is there is compared with what is asked for, as far as that
/// cannot change (it may have grown, and its limits may be others by now): 200 when it can be the same, 409 when not.
#[utoipa::path(
    put, path = "/v1/volumes/{volume}", tag = "volumes", operation_id = "create_volume",
    params(("volume" = String, Path, description = "Name of the volume: 3 to 64 letters, digits, `.`, `_`, `-`, a letter or `_` first; or a UUID in lower case")),
    request_body = VolumeRequest,
    responses(
        (status = 200, description = "It was there", body = Volume),
        (status = 201, description = "It was made", body = Volume, headers(("Location" = String, description = "Path of the volume"))),
        (status = 400, description = "`invalid-argument`; `field` names what is wrong", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`conflict-incompatible`: the name is that of another volume", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`out-of-range`", body = Problem, content_type = "application/problem+json"),
        (status = 501, description = "`not-implemented`: no fabric is configured, or it cannot do this", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`fabric-unavailable`", body = Problem, content_type = "application/problem+json"),
        (status = 504, description = "`deadline`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "Another error", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn create<S: NodeService>(
    State(api): State<Api<S>>,
    Caller(call): Caller,
    VolumeInPath(name): VolumeInPath,
    JsonBody(request): JsonBody<VolumeRequest>,
) -> Result<Response, Failure> {
    let service = api.shared.service.clone();
    let location = format!("/v1/volumes/{name}");
    let (volume, created) =
        to_its_end(async move { service.create_volume(&call, &name, request).await }).await?;
    Ok(made(volume, created, &location))
}

fn made(body: impl serde::Serialize, created: bool, location: &str) -> Response {
    if !created {
        return Json(body).into_response();
    }
    let mut response = (StatusCode::CREATED, Json(body)).into_response();
    if let Ok(location) = HeaderValue::from_str(location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// Changes a volume while it is in use: its size, its limits.
///
/// A JSON merge patch (RFC 7396): what is not named stays.
#[utoipa::path(
    patch, path = "/v1/volumes/{volume}", tag = "volumes", operation_id = "change_volume",
    params(("volume" = String, Path, description = "Name of the volume")),
    request_body(
        content((VolumePatch = "application/merge-patch+json"), (VolumePatch = "application/json")),
        description = "What is to change",
    ),
    responses(
        (status = 200, description = "It is changed", body = Volume),
        (status = 400, description = "`invalid-argument`; `field` names what is wrong", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "`not-found`", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`out-of-range`: a volume cannot shrink", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`fabric-unavailable`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "Another error", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn change<S: NodeService>(
    State(api): State<Api<S>>,
    Caller(call): Caller,
    VolumeInPath(name): VolumeInPath,
    JsonBody(patch): JsonBody<VolumePatch>,
) -> Result<Json<Volume>, Failure> {
    let service = api.shared.service.clone();
    to_its_end(async move { service.change_volume(&call, &name, patch).await })
        .await
        .map(Json)
}

/// Parameters of a deletion.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeleteParameters {
    policy: Option<DeletePolicy>,
    #[serde(default)]
    snapshots: bool,
}

/// Takes a volume away. Idempotent: succeeds when it was not there.
#[utoipa::path(
    delete, path = "/v1/volumes/{volume}", tag = "volumes", operation_id = "delete_volume",
    params(
        ("volume" = String, Path, description = "Name of the volume"),
        ("policy" = Option<DeletePolicy>, Query, description = "`delete`: with its data; `retain`: offline, nobody admitted, the data stays. Default: as configured"),
        ("snapshots" = Option<bool>, Query, description = "Also when it has snapshots, which go with it"),
    ),
    responses(
        (status = 204, description = "It is gone, or out of use"),
        (status = 412, description = "`in-use`: an initiator is logged in (`holder`), it is attached here, or it has snapshots", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`fabric-unavailable`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "An error", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn delete<S: NodeService>(
    State(api): State<Api<S>>,
    Caller(call): Caller,
    VolumeInPath(name): VolumeInPath,
    Parameters(parameters): Parameters<DeleteParameters>,
) -> Result<StatusCode, Failure> {
    let service = api.shared.service.clone();
    let DeleteParameters { policy, snapshots } = parameters;
    to_its_end(async move { service.delete_volume(&call, &name, policy, snapshots).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

type AccessPath = Result<Path<(String, String)>, axum::extract::rejection::PathRejection>;

/// A volume's name and what stands behind it in the path.
fn both(path: AccessPath) -> Result<(VolumeName, String), Failure> {
    let bad = |field: &str, detail: String| {
        Failure(Error::new(Code::InvalidArgument, detail).with_field(field))
    };
    let Path((volume, second)) = path.map_err(|error| bad("volume", error.body_text()))?;
    let volume = volume
        .parse()
        .map_err(|error: crate::name::VolumeNameError| bad("volume", error.to_string()))?;
    Ok((volume, second))
}

fn initiator(text: &str) -> Result<TargetName, Failure> {
    text.parse().map_err(|error: crate::name::TargetNameError| {
        let detail = format!("{error}, and so do names of initiators");
        Failure(Error::new(Code::InvalidArgument, detail).with_field("initiator"))
    })
}

/// Admits an initiator to the volume. Idempotent.
#[utoipa::path(
    put, path = "/v1/volumes/{volume}/access/{initiator}", tag = "volumes", operation_id = "grant_access",
    params(
        ("volume" = String, Path, description = "Name of the volume"),
        ("initiator" = String, Path, description = "iSCSI name of the initiator; `GET /v1/node` has that of this node"),
    ),
    responses(
        (status = 200, description = "It is admitted", body = Volume),
        (status = 404, description = "`not-found`: the volume", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`fabric-unavailable`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "An error", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn grant<S: NodeService>(
    State(api): State<Api<S>>,
    Caller(call): Caller,
    path: AccessPath,
) -> Result<Json<Volume>, Failure> {
    let (name, text) = both(path)?;
    let initiator = initiator(&text)?;
    let service = api.shared.service.clone();
    to_its_end(async move { service.grant(&call, &name, &initiator).await })
        .await
        .map(Json)
}

/// Does not admit an initiator any more: the fabric ends its session. Idempotent; touches no other initiator.
#[utoipa::path(
    delete, path = "/v1/volumes/{volume}/access/{initiator}", tag = "volumes", operation_id = "revoke_access",
    params(
        ("volume" = String, Path, description = "Name of the volume"),
        ("initiator" = String, Path, description = "iSCSI name of the initiator"),
    ),
    responses(
        (status = 204, description = "It is not admitted, or the volume is not there"),
        (status = 503, description = "`fabric-unavailable`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "An error", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn revoke<S: NodeService>(
    State(api): State<Api<S>>,
    Caller(call): Caller,
    path: AccessPath,
) -> Result<StatusCode, Failure> {
    let (name, text) = both(path)?;
    let initiator = initiator(&text)?;
    let service = api.shared.service.clone();
    to_its_end(async move { service.revoke(&call, &name, &initiator).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The snapshots of all volumes, ordered by volume and then by age; all, or page by page.
#[utoipa::path(
    get, path = "/v1/snapshots", tag = "volumes", operation_id = "list_all_snapshots",
    params(PageRequest),
    responses(
        (status = 200, description = "The snapshots", body = SnapshotList),
        (status = 501, description = "`not-implemented`: no fabric is configured, or it has no snapshots", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`fabric-unavailable`", body = Problem, content_type = "application/problem+json"),
        (status = 504, description = "`deadline`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "An error", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn all_snapshots<S: NodeService>(
    State(api): State<Api<S>>,
    Caller(call): Caller,
    Parameters(page): Parameters<PageRequest>,
) -> Result<Json<SnapshotList>, Failure> {
    let after = after::<SnapshotPlace>(&page)?;
    let snapshots = api.shared.service.all_snapshots(&call).await?;
    let (snapshots, next) = page.cut(snapshots, after.as_ref(), Snapshot::place);
    let next = next.map(|place| place.to_string());
    Ok(Json(SnapshotList { snapshots, next }))
}

/// The snapshots of a volume, oldest first.
#[utoipa::path(
    get, path = "/v1/volumes/{volume}/snapshots", tag = "volumes", operation_id = "list_snapshots",
    params(("volume" = String, Path, description = "Name of the volume")),
    responses(
        (status = 200, description = "The snapshots", body = SnapshotList),
        (status = 404, description = "`not-found`: the volume", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "An error", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn snapshots<S: NodeService>(
    State(api): State<Api<S>>,
    Caller(call): Caller,
    VolumeInPath(name): VolumeInPath,
) -> Result<Json<SnapshotList>, Failure> {
    let snapshots = api.shared.service.snapshots(&call, &name).await?;
    Ok(Json(SnapshotList {
        snapshots,
        next: None,
    }))
}

/// Takes a snapshot under this name, or finds the one that was taken under it. Answers when it can be used.
#[utoipa::path(
    put, path = "/v1/volumes/{volume}/snapshots/{snapshot}", tag = "volumes", operation_id = "take_snapshot",
    params(
        ("volume" = String, Path, description = "Name of the volume"),
        ("snapshot" = String, Path, description = "Name of the snapshot, by the rules of volume names; or a UUID"),
    ),
    responses(
        (status = 200, description = "It was there", body = Snapshot),
        (status = 201, description = "It was taken", body = Snapshot, headers(("Location" = String, description = "Path of the snapshot"))),
        (status = 404, description = "`not-found`: the volume", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "An error", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn take_snapshot<S: NodeService>(
    State(api): State<Api<S>>,
    Caller(call): Caller,
    path: AccessPath,
) -> Result<Response, Failure> {
    let (name, snapshot) = both(path)?;
    let location = format!("/v1/volumes/{name}/snapshots/{snapshot}");
    let service = api.shared.service.clone();
    let (taken, created) =
        to_its_end(async move { service.take_snapshot(&call, &name, &snapshot).await }).await?;
    Ok(made(taken, created, &location))
}

/// Takes a snapshot away. Idempotent: succeeds when it was not there.
#[utoipa::path(
    delete, path = "/v1/volumes/{volume}/snapshots/{snapshot}", tag = "volumes", operation_id = "delete_snapshot",
    params(
        ("volume" = String, Path, description = "Name of the volume"),
        ("snapshot" = String, Path, description = "Name or identifier of the snapshot"),
    ),
    responses(
        (status = 204, description = "It is gone"),
        (status = "default", description = "An error", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn delete_snapshot<S: NodeService>(
    State(api): State<Api<S>>,
    Caller(call): Caller,
    path: AccessPath,
) -> Result<StatusCode, Failure> {
    let (name, snapshot) = both(path)?;
    let service = api.shared.service.clone();
    to_its_end(async move { service.delete_snapshot(&call, &name, &snapshot).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Puts the volume back to what a snapshot holds; what was written since is lost. Not while it is in use.
#[utoipa::path(
    post, path = "/v1/volumes/{volume}/snapshots/{snapshot}/restore", tag = "volumes", operation_id = "restore_snapshot",
    params(
        ("volume" = String, Path, description = "Name of the volume"),
        ("snapshot" = String, Path, description = "Name or identifier of the snapshot"),
    ),
    responses(
        (status = 200, description = "It is as it was then", body = Volume),
        (status = 404, description = "`not-found`: the volume or the snapshot", body = Problem, content_type = "application/problem+json"),
        (status = 412, description = "`in-use`: an initiator is logged in (`holder`), or it is attached here", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "An error", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn restore<S: NodeService>(
    State(api): State<Api<S>>,
    Caller(call): Caller,
    path: AccessPath,
) -> Result<Json<Volume>, Failure> {
    let (name, snapshot) = both(path)?;
    let service = api.shared.service.clone();
    to_its_end(async move { service.restore_snapshot(&call, &name, &snapshot).await })
        .await
        .map(Json)
}

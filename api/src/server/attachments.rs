//! `/v1/attachments`.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::Api;
use super::context::Failure;
use super::extract::{Caller, Json as JsonBody, Name, Parameters};
use super::operations::{Outcome, Waited, accepted, stopping};
use super::prefer::Prefer;
use crate::error::{Code, Error, Problem};
use crate::service::NodeService;
use crate::types::{
    AttachRequest, Attachment, AttachmentList, AttachmentPatch, Fence, Operation, OperationKind,
};

/// All attachments of this node, ordered by name.
#[utoipa::path(
    get, path = "/v1/attachments", tag = "attachments", operation_id = "list_attachments",
    responses(
        (status = 200, description = "The attachments", body = AttachmentList),
        (status = "default", description = "An error", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn list<S: NodeService>(
    State(api): State<Api<S>>,
) -> Result<Json<AttachmentList>, Failure> {
    let attachments = api.shared.service.attachments().await?;
    Ok(Json(AttachmentList { attachments }))
}

/// One attachment.
#[utoipa::path(
    get, path = "/v1/attachments/{name}", tag = "attachments", operation_id = "get_attachment",
    params(("name" = String, Path, description = "Name of the attachment")),
    responses(
        (status = 200, description = "The attachment", body = Attachment),
        (status = 404, description = "`not-found`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "An error", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn show<S: NodeService>(
    State(api): State<Api<S>>,
    Name(name): Name,
) -> Result<Json<Attachment>, Failure> {
    Ok(Json(api.shared.service.attachment(&name).await?))
}

/// Attaches a volume and answers when it is there.
///
/// Idempotent: repeat it until it succeeds. The same request finds the attachment (200); another one
/// under the same name is refused (409). A caller that hangs up does not stop the attach.
#[utoipa::path(
    put, path = "/v1/attachments/{name}", tag = "attachments", operation_id = "attach",
    params(
        ("name" = String, Path, description = "Name of the attachment and of its NBD export: 1 to 128 letters, digits, `.`, `_`, `-`; a letter or digit first"),
        ("Prefer" = Option<String>, Header, description = "`respond-async`: answer 202 unless it ends at once; `wait=SECONDS`: answer 202 after this time"),
    ),
    request_body = AttachRequest,
    responses(
        (status = 200, description = "It was there with the same request", body = Attachment),
        (status = 201, description = "It is attached now", body = Attachment, headers(("Location" = String, description = "Path of the attachment"))),
        (status = 202, description = "It goes on: see `Location`", body = Operation, headers(("Location" = String, description = "Path of the operation"))),
        (status = 400, description = "`invalid-argument`; `field` names what is wrong", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`conflict-incompatible`: the name has another request; `operation-pending`: it is being detached", body = Problem, content_type = "application/problem+json"),
        (status = 412, description = "`attached-elsewhere`: another node holds the reservation, and no takeover was asked for; `fenced`: this node lost it", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "`payload-too-large`: above 64 KiB", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "`unsupported-media-type`", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`authentication-failed`, `access-denied`, `target-not-found`, `lun-not-found`, `out-of-range`", body = Problem, content_type = "application/problem+json"),
        (status = 502, description = "`target-incompatible`", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`target-unreachable`, `fabric-unavailable`, `unavailable`", body = Problem, content_type = "application/problem+json"),
        (status = 504, description = "`deadline`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "Another error", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn attach<S: NodeService>(
    State(api): State<Api<S>>,
    Caller(call): Caller,
    Name(name): Name,
    headers: HeaderMap,
    JsonBody(request): JsonBody<AttachRequest>,
) -> Result<Response, Failure> {
    if request.takeover && request.fence == Fence::None {
        let detail = "takeover: only with a fence is there anything to take over";
        let error = Error::new(Code::InvalidArgument, detail).with_field("takeover");
        return Err(Failure(error.with_attachment(&name)));
    }
    let prefer = Prefer::parse(&headers)?;
    let service = api.shared.service.clone();
    let request_id = call.request_id.clone();
    let work = {
        let name = name.clone();
        async move {
            service
                .attach(&call, &name, request)
                .await
                .map(|attached| Outcome::Attached(Box::new(attached)))
        }
    };
    let mut operation =
        api.shared
            .operations
            .start(OperationKind::Attach, &name, request_id, work)?;
    let waited = operation
        .wait(prefer.limit(), api.shared.stop.subscribe())
        .await;
    match waited {
        Waited::Ended(Ok(Outcome::Attached(attached))) => {
            let status = if attached.created {
                StatusCode::CREATED
            } else {
                StatusCode::OK
            };
            let mut response = (status, Json(attached.attachment)).into_response();
            if attached.created
                && let Ok(location) = HeaderValue::from_str(&format!("/v1/attachments/{name}"))
            {
                response.headers_mut().insert(header::LOCATION, location);
            }
            Ok(response)
        }
        Waited::Ended(Ok(Outcome::Detached)) => Ok(StatusCode::NO_CONTENT.into_response()),
        Waited::Ended(Err(error)) => Err(Failure(error.or_attachment(&name))),
        Waited::Running => Ok(accepted(&api, &operation.id, prefer)),
        Waited::Stopping => Err(Failure(stopping(&name))),
    }
}

/// Changes an attachment while it is attached: the recovery timeout, and the portals that are its paths.
///
/// A JSON merge patch (RFC 7396): what is not named stays. Kept over restarts; no I/O fails because of it.
#[utoipa::path(
    patch, path = "/v1/attachments/{name}", tag = "attachments", operation_id = "change_attachment",
    params(("name" = String, Path, description = "Name of the attachment")),
    request_body(
        content((AttachmentPatch = "application/merge-patch+json"), (AttachmentPatch = "application/json")),
        description = "What is to change",
    ),
    responses(
        (status = 200, description = "It is changed", body = Attachment),
        (status = 400, description = "`invalid-argument`; `field` names what is wrong or cannot be changed", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "`not-found`", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`operation-pending`: it is being detached", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "`payload-too-large`: above 64 KiB", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "`unsupported-media-type`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "Another error", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn change<S: NodeService>(
    State(api): State<Api<S>>,
    Caller(call): Caller,
    Name(name): Name,
    JsonBody(patch): JsonBody<AttachmentPatch>,
) -> Result<Json<Attachment>, Failure> {
    let changed = api.shared.service.change(&call, &name, patch).await;
    changed
        .map(Json)
        .map_err(|error| Failure(error.or_attachment(&name)))
}

/// Parameters of a detach.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DetachParameters {
    #[serde(default)]
    force: bool,
}

/// Takes an attachment away and answers when it is gone. Idempotent: succeeds when it was not there.
#[utoipa::path(
    delete, path = "/v1/attachments/{name}", tag = "attachments", operation_id = "detach",
    params(
        ("name" = String, Path, description = "Name of the attachment"),
        ("force" = Option<bool>, Query, description = "Also while it is in use: I/O that waits fails"),
        ("Prefer" = Option<String>, Header, description = "`respond-async`: answer 202 unless it ends at once; `wait=SECONDS`: answer 202 after this time"),
    ),
    responses(
        (status = 204, description = "It is gone"),
        (status = 202, description = "It goes on: see `Location`", body = Operation, headers(("Location" = String, description = "Path of the operation"))),
        (status = 412, description = "`in-use`: the device or the export is open", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "An error", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn detach<S: NodeService>(
    State(api): State<Api<S>>,
    Caller(call): Caller,
    Name(name): Name,
    Parameters(parameters): Parameters<DetachParameters>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let prefer = Prefer::parse(&headers)?;
    let service = api.shared.service.clone();
    let request_id = call.request_id.clone();
    let work = {
        let name = name.clone();
        async move {
            service
                .detach(&call, &name, parameters.force)
                .await
                .map(|()| Outcome::Detached)
        }
    };
    let mut operation =
        api.shared
            .operations
            .start(OperationKind::Detach, &name, request_id, work)?;
    let waited = operation
        .wait(prefer.limit(), api.shared.stop.subscribe())
        .await;
    match waited {
        Waited::Ended(Ok(_)) => Ok(StatusCode::NO_CONTENT.into_response()),
        Waited::Ended(Err(error)) => Err(Failure(error.or_attachment(&name))),
        Waited::Running => Ok(accepted(&api, &operation.id, prefer)),
        Waited::Stopping => Err(Failure(stopping(&name))),
    }
}

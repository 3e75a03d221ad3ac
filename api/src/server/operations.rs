//! Calls that go on when their caller hangs up or does not want to wait.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::watch;
use tracing::Instrument as _;
use utoipa::ToSchema;

use super::Api;
use super::context::{Failure, random_id};
use super::prefer::Prefer;
use crate::error::{Code, Error, Problem};
use crate::name::AttachmentName;
use crate::service::{Attached, NodeService};
use crate::types::{Operation, OperationKind, OperationState, unix_ms_now};

/// Most operations that run at a time; more calls are answered with `throttled`.
const RUNNING_MAX: usize = 256;
/// Ended operations that are kept for those who ask later.
const ENDED_MAX: usize = 256;

/// What an operation gives when it succeeds.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    Attached(Box<Attached>),
    Detached,
}

type Ended = Option<Result<Outcome, Error>>;

/// The operations of one API.
#[derive(Clone, Default)]
pub(super) struct Operations {
    /// Oldest first.
    table: Arc<Mutex<VecDeque<Entry>>>,
}

struct Entry {
    operation: Operation,
    ended: watch::Receiver<Ended>,
}

/// An operation that was started or found.
pub(super) struct Handle {
    pub(super) id: String,
    ended: watch::Receiver<Ended>,
}

impl Operations {
    fn table(&self) -> MutexGuard<'_, VecDeque<Entry>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` on a task of its own.
    ///
    /// # Errors
    /// `throttled` when [`RUNNING_MAX`] operations run.
    pub(super) fn start(
        &self,
        kind: OperationKind,
        name: &AttachmentName,
        request_id: String,
        work: impl Future<Output = Result<Outcome, Error>> + Send + 'static,
    ) -> Result<Handle, Error> {
        let id = random_id();
        let (sender, ended) = watch::channel(None);
        {
            let mut table = self.table();
            let running = table
                .iter()
                .filter(|entry| entry.operation.state == OperationState::Running)
                .count();
            if running >= RUNNING_MAX {
                return Err(Error::new(
                    Code::Throttled,
                    format!("{RUNNING_MAX} operations are under way on this node, try again soon"),
                )
                .with_attachment(name));
            }
            if table.len() - running >= ENDED_MAX
                && let Some(oldest) = table
                    .iter()
                    .position(|entry| entry.operation.state != OperationState::Running)
            {
                table.remove(oldest);
            }
            table.push_back(Entry {
                operation: Operation {
                    id: id.clone(),
                    kind,
                    attachment: name.clone(),
                    state: OperationState::Running,
                    started_unix_ms: unix_ms_now(),
                    finished_unix_ms: None,
                    error: None,
                },
                ended: ended.clone(),
            });
        }
        let mut finish = Finish {
            operations: self.clone(),
            id: id.clone(),
            request_id,
            sender,
            done: false,
        };
        tokio::spawn(
            async move {
                let result = work.await;
                finish.finish(result);
            }
            .in_current_span(),
        );
        Ok(Handle { id, ended })
    }

    fn get(&self, id: &str) -> Option<Operation> {
        self.table()
            .iter()
            .find(|entry| entry.operation.id == id)
            .map(|entry| entry.operation.clone())
    }

    fn handle(&self, id: &str) -> Option<Handle> {
        self.table()
            .iter()
            .find(|entry| entry.operation.id == id)
            .map(|entry| Handle {
                id: id.to_owned(),
                ended: entry.ended.clone(),
            })
    }

    fn set_ended(&self, id: &str, error: Option<Problem>) {
        let mut table = self.table();
        if let Some(entry) = table.iter_mut().find(|entry| entry.operation.id == id) {
            entry.operation.finished_unix_ms = Some(unix_ms_now());
            entry.operation.state = match error {
                None => OperationState::Succeeded,
                Some(_) => OperationState::Failed,
            };
            entry.operation.error = error;
        }
    }
}

/// Says how an operation ended, also when it panics or its runtime stops.
struct Finish {
    operations: Operations,
    id: String,
    request_id: String,
    sender: watch::Sender<Ended>,
    done: bool,
}

impl Finish {
    fn finish(&mut self, result: Result<Outcome, Error>) {
        self.done = true;
        let problem = result
            .as_ref()
            .err()
            .map(|error| error.to_problem(Some(&self.request_id)));
        if self.sender.receiver_count() <= 1
            && let Err(error) = &result
        {
            // Only the table listens: no answer will bring this error to the log.
            tracing::info!(operation = self.id, code = %error.code(), "operation failed: {error:?}");
        }
        // The table first: who is woken must find it there.
        self.operations.set_ended(&self.id, problem);
        self.sender.send_replace(Some(result));
    }
}

impl Drop for Finish {
    fn drop(&mut self) {
        if !self.done {
            self.finish(Err(Error::internal("the operation ended without a result")));
        }
    }
}

/// What came of waiting.
#[allow(
    clippy::large_enum_variant,
    reason = "one at a time, on the stack of its handler"
)]
pub(super) enum Waited {
    Ended(Result<Outcome, Error>),
    /// The limit is over.
    Running,
    /// The API stops.
    Stopping,
}

impl Handle {
    /// Waits for the end, at most for `limit`.
    pub(super) async fn wait(
        &mut self,
        limit: Option<Duration>,
        mut stop: watch::Receiver<bool>,
    ) -> Waited {
        let timeout = async {
            match limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            ended = self.ended.wait_for(Option::is_some) => {
                Waited::Ended(match ended.as_deref() {
                    Ok(Some(result)) => result.clone(),
                    Ok(None) | Err(_) => {
                        Err(Error::internal("the operation ended without a result"))
                    }
                })
            }
            _ = stop.wait_for(|&stop| stop) => Waited::Stopping,
            () = timeout => Waited::Running,
        }
    }
}

/// The answer to a call whose operation goes on: 202, `Location` and the operation.
pub(super) fn accepted<S: NodeService>(api: &Api<S>, id: &str, prefer: Prefer) -> Response {
    let Some(operation) = api.shared.operations.get(id) else {
        return Failure(no_operation(id)).into_response();
    };
    let mut response = (StatusCode::ACCEPTED, Json(operation)).into_response();
    let headers = response.headers_mut();
    if let Ok(location) = HeaderValue::from_str(&format!("/v1/operations/{id}")) {
        headers.insert(header::LOCATION, location);
    }
    headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    headers.insert(
        "preference-applied",
        HeaderValue::from_static(prefer.applied()),
    );
    response
}

/// The error of a call that was waiting when the daemon was told to stop.
pub(super) fn stopping(name: &AttachmentName) -> Error {
    Error::new(
        Code::Unavailable,
        "the daemon is stopping; what was asked for is kept and taken up after the restart",
    )
    .with_attachment(name)
}

fn no_operation(id: &str) -> Error {
    let mut id = id.to_owned();
    id.truncate(id.floor_char_boundary(64));
    Error::new(
        Code::NotFound,
        format!(
            "there is no operation {id}: operations are forgotten some time after their end and \
             when the daemon restarts; the attachment tells how it came out"
        ),
    )
}

/// The operations that run and those that ended last.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OperationList {
    operations: Vec<Operation>,
}

/// All operations that are kept, oldest first.
#[utoipa::path(
    get, path = "/v1/operations", tag = "operations", operation_id = "list_operations",
    responses(
        (status = 200, description = "The operations", body = OperationList),
        (status = "default", description = "An error", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn list<S: NodeService>(State(api): State<Api<S>>) -> Json<OperationList> {
    let operations = api
        .shared
        .operations
        .table()
        .iter()
        .map(|entry| entry.operation.clone())
        .collect();
    Json(OperationList { operations })
}

/// One operation; with `Prefer: wait=SECONDS` the answer comes when it has ended or the time is over.
#[utoipa::path(
    get, path = "/v1/operations/{id}", tag = "operations", operation_id = "get_operation",
    params(
        ("id" = String, Path, description = "Identifier, from the Location of a 202"),
        ("Prefer" = Option<String>, Header, description = "`wait=SECONDS`: answer when it has ended, or after this time"),
    ),
    responses(
        (status = 200, description = "The operation", body = Operation),
        (status = 404, description = "`not-found`: never was, or is forgotten", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "An error", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn show<S: NodeService>(
    State(api): State<Api<S>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Operation>, Failure> {
    let prefer = Prefer::parse(&headers)?;
    let operations = &api.shared.operations;
    if let Some(wait) = prefer.wait
        && let Some(mut handle) = operations.handle(&id)
    {
        handle.wait(Some(wait), api.shared.stop.subscribe()).await;
    }
    operations
        .get(&id)
        .map(Json)
        .ok_or_else(|| Failure(no_operation(&id)))
}

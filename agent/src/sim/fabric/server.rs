//! The REST side: connections, and the way of a request through faults, session and log.

use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use berth_api::Secret;
use berth_iscsi::net::listener::ServerHandle;
use hyper::service::Service as _;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::answer::{Answer, ApiError, ApiVersion, ErrorContext, Verb};
use super::call::{Call, Scope};
use super::control;
use super::faults::{FaultAction, FaultRule, Faults};
use super::log::{LoggedRequest, RequestLog, redacted};
use super::routes;
use super::session::Sessions;
use super::world::World;

/// Longest body in bytes.
const BODY_MAX_BYTES: usize = 1024 * 1024;
/// Longest log in bytes that is uploaded; it is not kept.
const UPLOAD_MAX_BYTES: usize = 16 * 1024 * 1024;
/// Connections of each listener at a time.
const CONNECTIONS_MAX: usize = 1024;
/// How long the head of a request, or a TLS handshake, may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after an accept that failed for want of resources.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What all connections share.
pub(super) struct Shared {
    pub(super) world: tokio::sync::Mutex<World>,
    sessions: Mutex<Sessions>,
    faults: Mutex<Faults>,
    log: Mutex<RequestLog>,
    user: String,
    password: Secret,
    requests: AtomicU64,
    /// What `/sim` says.
    pub(super) info: Value,
}

/// What is behind the lock is consistent at every point.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(
        world: World,
        sessions: Sessions,
        log: RequestLog,
        credentials: (String, Secret),
        info: Value,
    ) -> Self {
        Self {
            world: tokio::sync::Mutex::new(world),
            sessions: Mutex::new(sessions),
            faults: Mutex::default(),
            log: Mutex::new(log),
            user: credentials.0,
            password: credentials.1,
            requests: AtomicU64::new(0),
            info,
        }
    }

    /// Reaches the portals.
    pub(super) async fn portals(&self) -> ServerHandle {
        self.world.lock().await.backend.handle().clone()
    }

    pub(super) fn log(&self) -> MutexGuard<'_, RequestLog> {
        lock(&self.log)
    }

    pub(super) fn faults(&self) -> MutexGuard<'_, Faults> {
        lock(&self.faults)
    }

    pub(super) fn sessions(&self) -> MutexGuard<'_, Sessions> {
        lock(&self.sessions)
    }
}

/// Marks an answer that is not to be sent: the connection is closed instead.
#[derive(Debug, Clone, Copy)]
struct Dropped;

/// Whether a request came over TLS.
#[derive(Debug, Clone, Copy)]
struct OverTls(bool);

#[derive(Debug, thiserror::Error)]
#[error("a fault rule drops the connection")]
struct DropConnection;

/// Serves one address until the task is aborted.
pub(super) async fn listen(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let app = control::router()
        .fallback(api)
        .with_state(Arc::clone(&shared));
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the simulated fabric cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let (app, tls) = (app.clone(), tls.clone());
        connections.spawn(async move {
            let _place = place;
            match tls {
                None => serve(stream, app, false).await,
                Some(tls) => match tokio::time::timeout(HEAD_TIMEOUT, tls.accept(stream)).await {
                    Ok(Ok(stream)) => serve(stream, app, true).await,
                    Ok(Err(error)) => tracing::debug!(%error, "no TLS session"),
                    Err(_) => tracing::debug!("a TLS handshake took too long"),
                },
            }
        });
    }
}

async fn serve<S>(stream: S, app: axum::Router, tls: bool)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let app = TowerToHyperService::new(app);
    let service = hyper::service::service_fn(move |request: hyper::Request<_>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(OverTls(tls));
        let answer = app.call(request);
        async move {
            let response = answer
                .await
                .unwrap_or_else(|never: Infallible| match never {});
            match response.extensions().get::<Dropped>() {
                Some(Dropped) => Err(DropConnection),
                None => Ok(response),
            }
        }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection of the simulated fabric ends");
    }
}

/// A request, read whole.
struct Incoming {
    method: Method,
    path: String,
    query: Vec<(String, String)>,
    headers: HeaderMap,
    bytes: Bytes,
}

impl Incoming {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body: form or JSON; null when there is none or it is not looked at.
    fn body(&self) -> Result<Value, ApiError> {
        let kind = self.header("content-type").unwrap_or_default();
        if self.method == Method::GET || self.bytes.is_empty() || kind.starts_with("multipart/") {
            return Ok(Value::Null);
        }
        if kind.starts_with("application/x-www-form-urlencoded") {
            let pairs = form_urlencoded::parse(&self.bytes);
            return Ok(pairs
                .map(|(name, value)| (name.into_owned(), Value::from(value)))
                .collect());
        }
        serde_json::from_slice(&self.bytes)
            .map_err(|error| ApiError::invalid(format!("The body is no JSON: {error}")))
    }
}

/// Every request but those of [`control`].
async fn api(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let number = shared.requests.fetch_add(1, Ordering::Relaxed) + 1;
    let tls = request.extensions().get::<OverTls>().is_some_and(|o| o.0);
    let (parts, body) = request.into_parts();
    let limit = if parts.uri.path().ends_with("/logs_upload") {
        UPLOAD_MAX_BYTES
    } else {
        BODY_MAX_BYTES
    };
    let Ok(bytes) = axum::body::to_bytes(body, limit).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let query = parts.uri.query().unwrap_or_default();
    let incoming = Incoming {
        method: parts.method,
        path: parts.uri.path().to_owned(),
        query: form_urlencoded::parse(query.as_bytes())
            .into_owned()
            .collect(),
        headers: parts.headers,
        bytes,
    };
    let begun = Instant::now();
    let body = incoming.body();
    let rule = shared
        .faults()
        .hit(incoming.method.as_str(), &incoming.path);
    let mut entry = LoggedRequest {
        number,
        unix_ms: unix_time().as_millis().try_into().unwrap_or(u64::MAX),
        method: incoming.method.to_string(),
        path: incoming.path.clone(),
        query: incoming.query.clone(),
        tenant: incoming.header("tenant").map(str::to_owned),
        driver: incoming.header("datera-driver").map(str::to_owned),
        body: body
            .as_ref()
            .ok()
            .and_then(|body| redacted(body, incoming.bytes.len())),
        tls,
        status: None,
        error: None,
        duration_ms: 0,
        fault: rule.is_some(),
    };
    if let Some(rule) = &rule {
        tokio::time::sleep(Duration::from_millis(rule.delay_ms)).await;
    }
    let carried_out = rule
        .as_ref()
        .is_none_or(|rule| rule.done || rule.action == FaultAction::Pass);
    let mut outcome = if carried_out {
        let result = match body {
            Ok(body) => answer(&shared, &incoming, body).await,
            Err(error) => Err(error),
        };
        Outcome::of(result, &incoming, number, begun)
    } else {
        Outcome::default()
    };
    if let Some(rule) = &rule {
        tokio::time::sleep(Duration::from_millis(rule.answer_delay_ms)).await;
        outcome.spoil(rule, &incoming, number);
    }
    entry.status = (!outcome.dropped).then_some(outcome.status);
    entry.error.clone_from(&outcome.error);
    entry.duration_ms = begun.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
    shared.log().push(entry);
    outcome.into_response()
}

fn unix_time() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// An answer before it is sent.
#[derive(Debug)]
struct Outcome {
    status: u16,
    error: Option<String>,
    bytes: Vec<u8>,
    /// The connection breaks behind these bytes.
    cut: bool,
    dropped: bool,
}

impl Default for Outcome {
    fn default() -> Self {
        Self {
            status: 200,
            error: None,
            bytes: b"{}".to_vec(),
            cut: false,
            dropped: false,
        }
    }
}

impl Outcome {
    fn of(
        result: Result<(ApiVersion, Answer), ApiError>,
        incoming: &Incoming,
        number: u64,
        begun: Instant,
    ) -> Self {
        match result {
            Ok((version, answer)) => {
                let took = begun.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
                Self {
                    bytes: answer.into_json(version, took).to_string().into_bytes(),
                    ..Self::default()
                }
            }
            Err(error) => Self::error(&error, incoming, number),
        }
    }

    fn error(error: &ApiError, incoming: &Incoming, number: u64) -> Self {
        let (version, path) = split_version(&incoming.path);
        let params: Map<String, Value> = incoming
            .query
            .iter()
            .map(|(name, value)| (name.clone(), Value::from(value.as_str())))
            .collect();
        let now = unix_time();
        let context = ErrorContext {
            ts: format!("{}.{:09}", now.as_secs(), now.subsec_nanos()),
            version: version.map_or("", ApiVersion::text),
            op: verb(&incoming.method).map_or("", Verb::text),
            tenant: incoming.header("tenant").unwrap_or("/root"),
            path,
            params,
            client_type: incoming.header("datera-driver").unwrap_or_default(),
            api_req_id: number,
        };
        Self {
            status: error.http,
            error: Some(error.name.to_owned()),
            bytes: error.to_json(&context).to_string().into_bytes(),
            ..Self::default()
        }
    }

    /// Does to the answer what the rule says.
    fn spoil(&mut self, rule: &FaultRule, incoming: &Incoming, number: u64) {
        match rule.action {
            FaultAction::Pass => {}
            FaultAction::Status => *self = Self::status(rule.status, incoming, number),
            FaultAction::Garbage => {
                self.status = 200;
                self.bytes = b"\x00\xff<html>not what was asked for\x1b[0m".to_vec();
            }
            FaultAction::HalfJson => self.bytes.truncate(self.bytes.len() / 2),
            FaultAction::Cut => self.cut = true,
            FaultAction::Drop => self.dropped = true,
        }
    }

    fn status(status: u16, incoming: &Incoming, number: u64) -> Self {
        let error = match status {
            401 => ApiError::wrong_key(),
            503 => {
                return Self {
                    status,
                    bytes: json!({ "message": "The service is not available" })
                        .to_string()
                        .into_bytes(),
                    ..Self::default()
                };
            }
            _ => ApiError::internal("A fault rule says so"),
        };
        let http = if status == 0 { 500 } else { status };
        Self::error(&ApiError { http, ..error }, incoming, number)
    }

    fn into_response(self) -> Response {
        let mut response = if self.cut {
            let half = Bytes::copy_from_slice(&self.bytes[..self.bytes.len() / 2]);
            let len = self.bytes.len();
            let body = Body::from_stream(Broken {
                half: Some(half),
                sent: false,
            });
            let mut response = Response::new(body);
            let length = HeaderValue::from(len);
            response
                .headers_mut()
                .insert(header::CONTENT_LENGTH, length);
            response
        } else {
            Response::new(Body::from(self.bytes))
        };
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap_or(StatusCode::OK);
        let json = HeaderValue::from_static("application/json; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        if self.dropped {
            response.extensions_mut().insert(Dropped);
        }
        response
    }
}

/// The first half of a body, and then the end of the connection.
struct Broken {
    half: Option<Bytes>,
    sent: bool,
}

impl futures_core::Stream for Broken {
    type Item = io::Result<Bytes>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        use std::task::Poll::{Pending, Ready};
        if let Some(half) = self.half.take() {
            return Ready(Some(Ok(half)));
        }
        if !self.sent {
            // The server sends what it has before it asks again.
            self.sent = true;
            cx.waker().wake_by_ref();
            return Pending;
        }
        Ready(Some(Err(io::Error::other("a fault rule cuts the answer"))))
    }
}

fn verb(method: &Method) -> Option<Verb> {
    match *method {
        Method::POST => Some(Verb::Create),
        Method::GET => Some(Verb::Read),
        Method::PUT => Some(Verb::Update),
        Method::DELETE => Some(Verb::Delete),
        _ => None,
    }
}

/// The version that a path begins with, and the rest.
fn split_version(path: &str) -> (Option<ApiVersion>, &str) {
    let rest = path.strip_prefix('/').unwrap_or(path);
    let (first, below) = match rest.find('/') {
        Some(at) => (&rest[..at], &rest[at..]),
        None => (rest, ""),
    };
    match ApiVersion::parse(first) {
        Some(version) => (Some(version), below),
        None => (None, path),
    }
}

/// What a login says.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Login {
    name: String,
    password: String,
    #[serde(rename = "remote_server")]
    _remote_server: Option<String>,
}

async fn answer(
    shared: &Shared,
    incoming: &Incoming,
    body: Value,
) -> Result<(ApiVersion, Answer), ApiError> {
    let newest = ApiVersion::V22;
    if incoming.path == "/api_versions" {
        let versions = ApiVersion::ALL.map(ApiVersion::text);
        return Ok((newest, Answer::Bare(json!({ "api_versions": versions }))));
    }
    let (Some(version), path) = split_version(&incoming.path) else {
        return Err(ApiError::no_route(&incoming.path));
    };
    let path = path.trim_end_matches('/');
    let verb = verb(&incoming.method).ok_or_else(|| ApiError::no_route(path))?;
    let segments = path.split('/').skip(1).map(|segment| {
        let text = percent_encoding::percent_decode_str(segment).decode_utf8();
        text.map(std::borrow::Cow::into_owned)
            .map_err(|_| ApiError::no_route(path))
    });
    let call = Call {
        version,
        verb,
        segments: segments.collect::<Result<_, _>>()?,
        path: path.to_owned(),
        query: incoming
            .query
            .iter()
            .filter(|(_, value)| !value.is_empty())
            .cloned()
            .collect(),
        body,
        scope: Scope::parse(incoming.header("tenant")),
    };
    if (verb, path) == (Verb::Update, "/login") {
        return login(shared, &call).map(|answer| (version, answer));
    }
    let key = incoming
        .header("auth-token")
        .filter(|key| !key.is_empty())
        .ok_or_else(ApiError::no_key)?;
    if !shared.sessions().touch(key, Instant::now()) {
        return Err(ApiError::wrong_key());
    }
    let answer = match (verb, path) {
        (Verb::Update, "/logout") => {
            shared.sessions().end(key);
            Answer::entity("/logout", "/root", json!({}))
        }
        (Verb::Read, "/userinfo") => {
            let data = json!({ "path": format!("/users/{}", shared.user), "user_id": shared.user });
            Answer::entity("/userinfo", "/root", data)
        }
        _ => {
            let mut world = shared.world.lock().await;
            routes::handle(&mut world, &call)
                .await
                .inspect(|answer| routes::note(&mut world, &call, answer))?
        }
    };
    Ok((version, answer))
}

fn login(shared: &Shared, call: &Call) -> Result<Answer, ApiError> {
    let login: Login = call.body()?;
    if login.name != shared.user || Secret::new(login.password) != shared.password {
        return Err(ApiError::wrong_credentials());
    }
    let key = shared.sessions().begin(Instant::now());
    Ok(Answer::Bare(json!({
        "key": key, "version": call.version.text(), "request_time": 0,
    })))
}

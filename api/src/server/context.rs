//! Around every request: identifiers, the log, and the one place where errors become documents.

use std::fmt::Write as _;
use std::time::Instant;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{self, HeaderMap, HeaderValue};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::Instrument as _;

use crate::error::{Code, Error};
use crate::service::{Call, Peer};

/// Media type of errors (RFC 9457 3).
pub(crate) const PROBLEM_JSON: &str = "application/problem+json";
/// Longest request id that is taken over from a caller, in bytes.
const REQUEST_ID_LEN_MAX: usize = 128;
/// What `Retry-After` says, in seconds.
const RETRY_AFTER_SECONDS: &str = "1";

/// An error on its way out of a handler. [`context`] makes the document of it, because only there
/// the request id is known, and writes the cause to the log.
pub(super) struct Failure(pub(super) Error);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = self.0.code().status().into_response();
        response.extensions_mut().insert(self.0);
        response
    }
}

/// Gives every request its [`Call`] and span, every answer its `X-Request-Id`, every error its
/// document, and the log a line for each call that changes something.
pub(super) async fn context(mut request: Request, next: Next) -> Response {
    let call = Call {
        request_id: request_id(request.headers()),
        traceparent: traceparent(request.headers()),
        peer: request
            .extensions_mut()
            .remove::<Peer>()
            .unwrap_or_default(),
    };
    let method = request.method().clone();
    let span = tracing::info_span!(
        "http",
        request_id = %call.request_id,
        %method,
        path = request.uri().path(),
        trace_id = call.traceparent.as_deref().map(|parent| &parent[3..35]),
    );
    let began = Instant::now();
    request.extensions_mut().insert(call.clone());
    async move {
        let mut response = next.run(request).await;
        if let Some(error) = response.extensions_mut().remove::<Error>() {
            response = problem(response, &error, &call.request_id);
            log_error(&error);
        }
        log_call(&method, &call, response.status(), began);
        if let Ok(id) = HeaderValue::from_str(&call.request_id) {
            response.headers_mut().insert("x-request-id", id);
        }
        response
    }
    .instrument(span)
    .await
}

/// Replaces an answer by the document of its error; headers (`Allow`, `WWW-Authenticate`) stay.
fn problem(response: Response, error: &Error, request_id: &str) -> Response {
    let body = serde_json::to_vec(&error.to_problem(Some(request_id)))
        .expect("a problem has only strings, numbers and booleans");
    let (mut parts, _) = response.into_parts();
    parts
        .headers
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
    parts.headers.remove(header::CONTENT_LENGTH);
    if matches!(
        error.code(),
        Code::OperationPending
            | Code::Throttled
            | Code::Unavailable
            | Code::TargetUnreachable
            | Code::FabricUnavailable
    ) {
        parts.headers.insert(
            header::RETRY_AFTER,
            HeaderValue::from_static(RETRY_AFTER_SECONDS),
        );
    }
    Response::from_parts(parts, Body::from(body))
}

fn log_error(error: &Error) {
    let mut causes = String::new();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        let separator = if causes.is_empty() { "" } else { ": " };
        write!(causes, "{separator}{next}").expect("writing to a string succeeds");
        cause = next.source();
    }
    let code = error.code();
    let detail = error.detail();
    if matches!(
        code,
        Code::Internal | Code::DataUnsafe | Code::IdentityMismatch
    ) {
        tracing::error!(%code, cause = causes, "request failed: {detail}");
    } else {
        tracing::info!(%code, cause = causes, "request failed: {detail}");
    }
}

fn log_call(method: &Method, call: &Call, status: StatusCode, began: Instant) {
    let status = status.as_u16();
    let elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    if method.is_safe() {
        tracing::debug!(status, elapsed_ms, "answered");
        return;
    }
    match call.peer {
        Peer::Unix { uid, gid, pid } => {
            tracing::info!(status, elapsed_ms, uid, gid, pid, "answered");
        }
        Peer::Tcp(address) => tracing::info!(status, elapsed_ms, %address, "answered"),
        Peer::Local => tracing::info!(status, elapsed_ms, "answered"),
    }
}

/// The caller's request id if it is fit for logs, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    headers
        .get("x-request-id")
        .and_then(|value| value.to_str().ok())
        .filter(|id| {
            (1..=REQUEST_ID_LEN_MAX).contains(&id.len())
                && id.bytes().all(|byte| byte.is_ascii_graphic())
        })
        .map_or_else(random_id, str::to_owned)
}

/// 16 random hexadecimal digits.
pub(super) fn random_id() -> String {
    let number = getrandom::u64().unwrap_or_else(|_| {
        // Unique is enough here: without the system's randomness the clock has to do.
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos() as u64)
    });
    format!("{number:016x}")
}

/// The caller's `traceparent` if it has the form of version 00 (W3C Trace Context 3.2); anything
/// else starts no trace, as the recommendation asks.
fn traceparent(headers: &HeaderMap) -> Option<String> {
    let text = headers.get("traceparent")?.to_str().ok()?;
    let hex = |part: &str, len: usize| {
        part.len() == len
            && part
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let not_zero = |part: &str| part.bytes().any(|b| b != b'0');
    let mut parts = text.split('-');
    let (version, trace, parent, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    (version == "00"
        && hex(trace, 32)
        && not_zero(trace)
        && hex(parent, 16)
        && not_zero(parent)
        && hex(flags, 2)
        && parts.next().is_none())
    .then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(
            name.parse().unwrap(),
            HeaderValue::from_bytes(value.as_bytes()).unwrap(),
        )])
    }

    #[test]
    fn request_ids_are_taken_over_if_fit() {
        assert_eq!(request_id(&with("x-request-id", "abc-1")), "abc-1");
        for unfit in ["", "a b", "ä", &"x".repeat(129)] {
            let id = request_id(&with("x-request-id", unfit));
            assert_ne!(id, unfit);
            assert_eq!(id.len(), 16);
        }
        assert_ne!(random_id(), random_id());
    }

    /// W3C Trace Context 3.2.2: the example of the recommendation, and what is not valid.
    #[test]
    fn traceparents_are_checked() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(
            traceparent(&with("traceparent", good)).as_deref(),
            Some(good)
        );
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
        ] {
            assert_eq!(traceparent(&with("traceparent", bad)), None, "{bad}");
        }
    }
}

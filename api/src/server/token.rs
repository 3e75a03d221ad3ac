//! The bearer token of the TCP listener (RFC 6750).

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::HeaderValue;
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::context::Failure;
use crate::error::{Code, Error};
use crate::secret::Secret;

/// Paths that give nothing away: a page without data, a constant, the contract.
const OPEN_PATHS: [&str; 3] = ["/", "/livez", "/openapi.json"];

/// Lets only calls with the token through.
pub(super) async fn check(
    State(token): State<Arc<Secret>>,
    request: Request,
    next: Next,
) -> Response {
    if OPEN_PATHS.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    let given = request
        .headers()
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| Secret::new(token.trim().to_owned()));
    let detail = match given {
        Some(given) if given == *token => return next.run(request).await,
        Some(_) => "the token is wrong; it must be the one in the daemon's token_file",
        None => "over TCP every call needs the token: Authorization: Bearer TOKEN",
    };
    let mut response = Failure(Error::new(Code::Unauthenticated, detail)).into_response();
    response.headers_mut().insert(
        WWW_AUTHENTICATE,
        HeaderValue::from_static("Bearer realm=\"berth\""),
    );
    response
}

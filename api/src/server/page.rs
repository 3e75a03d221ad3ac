//! `/`: the status page, one file without anything to load from elsewhere.

use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, X_CONTENT_TYPE_OPTIONS,
};

/// The page; it reads `/v1/…` like any other client.
const PAGE: &str = include_str!("page.html");

/// What targets and fabrics call themselves is shown on the page: scripts from there must not run, and
/// nothing may be loaded from or sent to anywhere else.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                      connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

pub(super) async fn page() -> ([(HeaderName, &'static str); 4], &'static str) {
    (
        [
            (CONTENT_TYPE, "text/html; charset=utf-8"),
            (CONTENT_SECURITY_POLICY, POLICY),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (CACHE_CONTROL, "no-store"),
        ],
        PAGE,
    )
}

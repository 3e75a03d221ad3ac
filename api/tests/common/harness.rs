//! Requests to a router and what comes back, without sockets.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, Response, StatusCode, header};
use berth_api::Secret;
use berth_api::server::Api;
use http_body_util::BodyExt as _;
use serde_json::Value;
use tower_service::Service as _;

use super::Fake;

pub(crate) struct Harness {
    pub(crate) fake: Arc<Fake>,
    pub(crate) api: Api<Fake>,
    pub(crate) router: Router,
}

pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {:?}", self.text))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// The reply is a problem document that says the same in all its places.
    pub(crate) fn problem(&self, code: &str) -> Value {
        assert_eq!(
            self.header("content-type"),
            "application/problem+json",
            "{}",
            self.text
        );
        let problem = self.json();
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["type"], format!("urn:berth:problem:{code}"));
        assert_eq!(problem["status"], self.status.as_u16());
        assert_eq!(problem["instance"], self.header("x-request-id"));
        assert!(problem["retryable"].is_boolean());
        assert!(!self.text.contains("not for callers"), "{}", self.text);
        problem
    }
}

impl Harness {
    pub(crate) fn new() -> Self {
        Self::with_token(None)
    }

    pub(crate) fn with_token(token: Option<&str>) -> Self {
        let fake = Fake::new();
        let api = Api::new(Arc::clone(&fake));
        let router = api.router(token.map(|token| Secret::new(token.into())));
        Self { fake, api, router }
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Reply {
        let response = self.open(request).await;
        let status = response.status();
        let headers = response.headers().clone();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        Reply {
            status,
            headers,
            text,
        }
    }

    pub(crate) async fn open(&self, request: Request<Body>) -> Response<Body> {
        self.router.clone().call(request).await.unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(Request::get(path).body(Body::empty()).unwrap())
            .await
    }

    pub(crate) async fn delete(&self, path: &str) -> Reply {
        self.send(Request::delete(path).body(Body::empty()).unwrap())
            .await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Reply {
        self.send(put(path, body)).await
    }
}

pub(crate) fn put(path: &str, body: &Value) -> Request<Body> {
    Request::put(path)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(body.to_string()))
        .unwrap()
}

pub(crate) fn preferring(mut request: Request<Body>, prefer: &'static str) -> Request<Body> {
    request
        .headers_mut()
        .insert("prefer", header::HeaderValue::from_static(prefer));
    request
}

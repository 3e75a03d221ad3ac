//! The HTTP server over any [`NodeService`].
//!
//! ```text
//! listen (accept, timeouts, drain) -> context (ids, log, problem documents) -> token (TCP only)
//!     -> handlers -> operations (tasks that outlive their caller) -> NodeService
//! ```

mod attachments;
mod context;
mod events;
mod extract;
mod health;
mod listen;
mod node;
pub(crate) mod openapi;
mod operations;
mod page;
mod prefer;
mod token;
mod volumes;

use std::sync::Arc;

use axum::Router;
use axum::http::{Method, Uri};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post, put};
use tokio::sync::watch;

use crate::error::{Code, Error};
use crate::secret::Secret;
use crate::service::NodeService;
use context::Failure;
use operations::Operations;

pub use listen::{Listener, SocketError, UnixSocket};
pub use openapi::openapi_json;

/// The API of a node: builds routers and serves listeners that share operations and shutdown.
pub struct Api<S> {
    shared: Arc<Shared<S>>,
}

struct Shared<S> {
    service: Arc<S>,
    operations: Operations,
    /// True once the API is to stop.
    stop: watch::Sender<bool>,
}

impl<S> Clone for Api<S> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<S: NodeService> Api<S> {
    /// An API over this service.
    #[must_use]
    pub fn new(service: Arc<S>) -> Self {
        Self {
            shared: Arc::new(Shared {
                service,
                operations: Operations::default(),
                stop: watch::Sender::new(false),
            }),
        }
    }

    /// The routes. With a token every call needs it, but for those that give nothing away (`/`,
    /// `/livez`, `/openapi.json`).
    pub fn router(&self, token: Option<Secret>) -> Router {
        let routes = Router::new()
            .route("/v1/attachments", get(attachments::list::<S>))
            .route(
                "/v1/attachments/{name}",
                put(attachments::attach::<S>)
                    .get(attachments::show::<S>)
                    .patch(attachments::change::<S>)
                    .delete(attachments::detach::<S>),
            )
            .route("/v1/operations", get(operations::list::<S>))
            .route("/v1/operations/{id}", get(operations::show::<S>))
            .route(
                "/v1/discovery",
                get(node::discover::<S>).post(node::discover_with_auth::<S>),
            )
            .route("/v1/fabric", get(volumes::fabric::<S>))
            .route("/v1/snapshots", get(volumes::all_snapshots::<S>))
            .route("/v1/templates", get(volumes::templates::<S>))
            .route("/v1/volumes", get(volumes::list::<S>))
            .route(
                "/v1/volumes/{volume}",
                put(volumes::create::<S>)
                    .get(volumes::show::<S>)
                    .patch(volumes::change::<S>)
                    .delete(volumes::delete::<S>),
            )
            .route(
                "/v1/volumes/{volume}/access/{initiator}",
                put(volumes::grant::<S>).delete(volumes::revoke::<S>),
            )
            .route(
                "/v1/volumes/{volume}/snapshots",
                get(volumes::snapshots::<S>),
            )
            .route(
                "/v1/volumes/{volume}/snapshots/{snapshot}",
                put(volumes::take_snapshot::<S>).delete(volumes::delete_snapshot::<S>),
            )
            .route(
                "/v1/volumes/{volume}/snapshots/{snapshot}/restore",
                post(volumes::restore::<S>),
            )
            .route("/v1/events", get(events::events::<S>))
            .route("/v1/node", get(node::node::<S>))
            .route("/readyz", get(health::readyz::<S>))
            .route("/healthz", get(health::readyz::<S>))
            .route("/metrics", get(health::metrics::<S>))
            .route("/livez", get(health::livez))
            .route("/openapi.json", get(openapi::serve))
            .route("/", get(page::page))
            .fallback(no_route)
            .method_not_allowed_fallback(no_method)
            .with_state(self.clone());
        match token {
            Some(token) => routes.layer(from_fn_with_state(Arc::new(token), token::check)),
            None => routes,
        }
        .layer(from_fn(context::context))
    }

    /// Makes [`Api::serve`] return: no new connections, streams end, calls that wait are answered.
    /// Operations go on; what becomes of them is for the service to say.
    pub fn stop(&self) {
        self.shared.stop.send_replace(true);
    }
}

async fn no_route(uri: Uri) -> Failure {
    let mut path = uri.path().to_owned();
    path.truncate(200);
    Failure(Error::new(
        Code::NotFound,
        format!("there is nothing at {path}; /openapi.json lists what there is"),
    ))
}

async fn no_method(method: Method, uri: Uri) -> Failure {
    let mut path = uri.path().to_owned();
    path.truncate(200);
    Failure(Error::new(
        Code::MethodNotAllowed,
        format!("{method} is not allowed on {path}; the Allow header says what is"),
    ))
}

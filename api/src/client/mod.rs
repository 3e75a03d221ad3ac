//! The typed client: plugins, `berthctl` and tests speak to the daemon through this.

mod sse;
mod transport;
mod volumes;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{Method, StatusCode};
use serde::de::DeserializeOwned;

use crate::error::{Code, Problem};
use crate::name::AttachmentName;
use crate::secret::Secret;
use crate::service::Attached;
use crate::types::{
    AttachRequest, Attachment, AttachmentList, AttachmentPatch, Discovery, DiscoveryRequest,
    Health, Node, Operation,
};
use transport::{Answer, Outgoing};

pub use sse::EventReader;

/// How long a call that needs nothing from a target may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// What a call gets beyond the time that the daemon itself keeps to, so that the daemon's answer,
/// which knows more, comes first.
const MARGIN: Duration = Duration::from_secs(10);

/// A client of one daemon. Every call uses a connection of its own, so it can be shared freely and
/// survives restarts of the daemon.
#[derive(Debug, Clone)]
pub struct Client {
    endpoint: Endpoint,
    token: Option<Secret>,
    traceparent: Option<String>,
    request_id: Option<String>,
    timeout: Duration,
}

/// Where a daemon is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A Unix socket.
    Unix(PathBuf),
    /// TCP: `host:port` as in a URL.
    Tcp(String),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tcp(authority) => write!(f, "http://{authority}"),
        }
    }
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection: the daemon does not run, or we may not speak to it.
    #[error("cannot connect to {endpoint}")]
    Unreachable {
        /// Where to.
        endpoint: Endpoint,
        /// What the system said.
        source: std::io::Error,
    },
    /// The daemon did not answer in time. What was asked for may still happen.
    #[error("no answer within {} s", .0.as_secs_f32())]
    Timeout(Duration),
    /// The daemon answered with an error.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// The connection broke, or what answers there is not a berth daemon.
    #[error("{what}")]
    Protocol {
        /// What happened.
        what: String,
        /// What led to it.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The address of the daemon cannot be meant.
    #[error("{0:?} is not an address of a daemon, expected http://HOST:PORT")]
    Url(String),
}

impl ClientError {
    /// What went wrong, if the daemon said so.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Problem(problem) => Some(problem.code),
            _ => None,
        }
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Problem(problem) => problem.retryable,
            Self::Unreachable { .. } | Self::Timeout(_) => true,
            Self::Protocol { .. } | Self::Url(_) => false,
        }
    }

    fn protocol(what: impl Into<String>) -> Self {
        Self::Protocol {
            what: what.into(),
            source: None,
        }
    }
}

/// A call that may go on after its answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Started<T> {
    /// It has ended.
    Done(T),
    /// It goes on; ask for it with [`Client::operation`].
    Running(Box<Operation>),
}

impl Client {
    /// A client of the daemon on this Unix socket.
    #[must_use]
    pub fn unix(path: impl AsRef<Path>) -> Self {
        Self::new(Endpoint::Unix(path.as_ref().to_owned()))
    }

    /// A client of the daemon at `http://HOST:PORT`.
    ///
    /// # Errors
    /// [`ClientError::Url`].
    pub fn tcp(url: &str, token: Secret) -> Result<Self, ClientError> {
        let bad = || ClientError::Url(url.to_owned());
        let uri: http::Uri = url.parse().map_err(|_| bad())?;
        let authority = uri.authority().ok_or_else(bad)?;
        if uri.scheme_str() != Some("http")
            || authority.as_str().contains('@')
            || !matches!(uri.path(), "" | "/")
            || uri.query().is_some()
        {
            return Err(bad());
        }
        let port = authority.port_u16().unwrap_or(80);
        let mut client = Self::new(Endpoint::Tcp(format!("{}:{port}", authority.host())));
        client.token = Some(token);
        Ok(client)
    }

    fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            token: None,
            traceparent: None,
            request_id: None,
            timeout: CALL_TIMEOUT,
        }
    }

    /// The same client with another time limit for calls that need nothing from a target (default
    /// 30 s).
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The same client with a W3C trace context that goes with every call.
    #[must_use]
    pub fn with_traceparent(mut self, traceparent: impl Into<String>) -> Self {
        self.traceparent = Some(traceparent.into());
        self
    }

    /// The same client with a request id that goes with every call: the daemon's log has it. Up to 128 visible ASCII
    /// characters; the daemon replaces any other.
    #[must_use]
    pub fn with_request_id(mut self, request_id: impl Into<String>) -> Self {
        self.request_id = Some(request_id.into());
        self
    }

    /// Where the daemon is.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Attaches, and returns when it is attached.
    ///
    /// # Errors
    /// See [`ClientError`]. After a timeout the attach goes on; repeat the call to hear of it.
    pub async fn attach(
        &self,
        name: &AttachmentName,
        request: &AttachRequest,
    ) -> Result<Attached, ClientError> {
        let timeout = request.attach_timeout() + MARGIN;
        let outgoing = attach_call(name, request);
        let answer = self.call(outgoing, timeout).await?;
        attached(&answer)
    }

    /// Attaches, and returns when it is attached or `wait` (whole seconds, at most 600) is over.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn attach_within(
        &self,
        name: &AttachmentName,
        request: &AttachRequest,
        wait: Duration,
    ) -> Result<Started<Attached>, ClientError> {
        let outgoing = attach_call(name, request).wait(wait);
        let answer = self.call(outgoing, wait + MARGIN).await?;
        match answer.status {
            StatusCode::ACCEPTED => answer
                .json()
                .map(|operation| Started::Running(Box::new(operation))),
            _ => attached(&answer).map(Started::Done),
        }
    }

    /// Detaches, and returns when it is gone.
    ///
    /// # Errors
    /// See [`ClientError`]; `in-use` unless `force`.
    pub async fn detach(&self, name: &AttachmentName, force: bool) -> Result<(), ClientError> {
        // The daemon bounds it: flush and logout have deadlines of their own.
        let timeout = Duration::from_secs(120) + MARGIN;
        self.call(detach_call(name, force), timeout).await?;
        Ok(())
    }

    /// Detaches, and returns when it is gone or `wait` (whole seconds, at most 600) is over.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn detach_within(
        &self,
        name: &AttachmentName,
        force: bool,
        wait: Duration,
    ) -> Result<Started<()>, ClientError> {
        let outgoing = detach_call(name, force).wait(wait);
        let answer = self.call(outgoing, wait + MARGIN).await?;
        match answer.status {
            StatusCode::ACCEPTED => answer
                .json()
                .map(|operation| Started::Running(Box::new(operation))),
            _ => Ok(Started::Done(())),
        }
    }

    /// Changes an attachment while it is attached.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn change(
        &self,
        name: &AttachmentName,
        patch: &AttachmentPatch,
    ) -> Result<Attachment, ClientError> {
        let outgoing = Outgoing::new(Method::PATCH, format!("/v1/attachments/{name}")).body(patch);
        self.call(outgoing, self.timeout).await?.json()
    }

    /// All attachments, ordered by name.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn attachments(&self) -> Result<Vec<Attachment>, ClientError> {
        let list: AttachmentList = self.get("/v1/attachments").await?;
        Ok(list.attachments)
    }

    /// One attachment.
    ///
    /// # Errors
    /// See [`ClientError`]; `not-found`.
    pub async fn attachment(&self, name: &AttachmentName) -> Result<Attachment, ClientError> {
        self.get(&format!("/v1/attachments/{name}")).await
    }

    /// An operation, when it has ended or `wait` (whole seconds, at most 600) is over.
    ///
    /// # Errors
    /// See [`ClientError`]; `not-found` when it is forgotten.
    pub async fn operation(&self, id: &str, wait: Duration) -> Result<Operation, ClientError> {
        let outgoing = Outgoing::new(Method::GET, format!("/v1/operations/{}", escape(id)));
        self.call(outgoing.wait(wait), wait + MARGIN).await?.json()
    }

    /// Asks a portal for its targets.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn discover(&self, request: &DiscoveryRequest) -> Result<Discovery, ClientError> {
        let outgoing = Outgoing::new(Method::POST, "/v1/discovery").body(request);
        let timeout = request.timeout() + MARGIN;
        self.call(outgoing, timeout).await?.json()
    }

    /// Facts and limits of the node.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn node(&self) -> Result<Node, ClientError> {
        self.get("/v1/node").await
    }

    /// The checks of `/readyz`, whether they passed or not.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn ready(&self) -> Result<Health, ClientError> {
        let outgoing = Outgoing::new(Method::GET, "/readyz").accept("application/json");
        let answer = self.send(outgoing, self.timeout).await?;
        match answer.status {
            StatusCode::OK | StatusCode::SERVICE_UNAVAILABLE => answer.json(),
            _ => Err(answer.into_error()),
        }
    }

    /// Metrics in Prometheus text format.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn metrics(&self) -> Result<String, ClientError> {
        let outgoing = Outgoing::new(Method::GET, "/metrics").accept("text/plain");
        self.call(outgoing, self.timeout).await?.text()
    }

    /// Events after the one with this id (0: all that are kept), or from now on; of one attachment or
    /// of all.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn events(
        &self,
        after: Option<u64>,
        attachment: Option<&AttachmentName>,
    ) -> Result<EventReader, ClientError> {
        self.read_events(after, attachment, true).await
    }

    /// The events that the daemon still has, oldest first; of one attachment or of all. The reader
    /// ends after the last of them.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn past_events(
        &self,
        attachment: Option<&AttachmentName>,
    ) -> Result<EventReader, ClientError> {
        self.read_events(Some(0), attachment, false).await
    }

    async fn read_events(
        &self,
        after: Option<u64>,
        attachment: Option<&AttachmentName>,
        follow: bool,
    ) -> Result<EventReader, ClientError> {
        let mut path = format!("/v1/events?follow={follow}");
        if let Some(name) = attachment {
            path = format!("{path}&attachment={name}");
        }
        let mut outgoing = Outgoing::new(Method::GET, path).accept("text/event-stream");
        if let Some(after) = after {
            outgoing = outgoing.header("last-event-id", after.to_string());
        }
        let stream = self.stream(outgoing, self.timeout).await?;
        Ok(EventReader::new(stream))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let outgoing = Outgoing::new(Method::GET, path);
        self.call(outgoing, self.timeout).await?.json()
    }

    /// Sends a request and takes the answer, which is an error unless its status is 2xx.
    async fn call(&self, outgoing: Outgoing, timeout: Duration) -> Result<Answer, ClientError> {
        let answer = self.send(outgoing, timeout).await?;
        if answer.status.is_success() {
            Ok(answer)
        } else {
            Err(answer.into_error())
        }
    }
}

fn attach_call(name: &AttachmentName, request: &AttachRequest) -> Outgoing {
    Outgoing::new(Method::PUT, format!("/v1/attachments/{name}")).body(request)
}

fn attached(answer: &Answer) -> Result<Attached, ClientError> {
    Ok(Attached {
        attachment: answer.json()?,
        created: answer.status == StatusCode::CREATED,
    })
}

fn detach_call(name: &AttachmentName, force: bool) -> Outgoing {
    let query = if force { "?force=true" } else { "" };
    Outgoing::new(Method::DELETE, format!("/v1/attachments/{name}{query}"))
}

/// Keeps what a path segment may hold (RFC 3986 2.3) and escapes the rest.
fn escape(text: &str) -> String {
    use std::fmt::Write as _;
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            write!(escaped, "%{byte:02X}").expect("writing to a string succeeds");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let token = || Secret::new("t".into());
        for (url, endpoint) in [
            ("http://127.0.0.1:7780", "http://127.0.0.1:7780"),
            ("http://127.0.0.1:7780/", "http://127.0.0.1:7780"),
            ("http://[::1]:7780", "http://[::1]:7780"),
            ("http://node", "http://node:80"),
        ] {
            let client = Client::tcp(url, token()).unwrap();
            assert_eq!(client.endpoint().to_string(), endpoint);
        }
        for url in [
            "",
            "node:80",
            "https://node",
            "http://u:p@node",
            "http://node/v1",
            "/run/x",
        ] {
            assert!(
                matches!(Client::tcp(url, token()), Err(ClientError::Url(_))),
                "{url}"
            );
        }
    }

    #[test]
    fn segments_are_escaped() {
        assert_eq!(escape("ab-1.~_"), "ab-1.~_");
        assert_eq!(escape("../a?b"), "..%2Fa%3Fb");
    }

    #[test]
    fn the_token_is_not_seen() {
        let client = Client::tcp("http://node", Secret::new("hunter2".into())).unwrap();
        assert!(!format!("{client:?}").contains("hunter2"));
    }
}

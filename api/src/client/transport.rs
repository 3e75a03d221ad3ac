//! One HTTP/1.1 exchange over a connection of its own.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;

use super::{Client, ClientError, Endpoint};
use crate::error::Problem;

/// Longest answer that is taken, in bytes: some 4000 attachments.
const ANSWER_LEN_MAX: usize = 16 * 1024 * 1024;
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What `Accept` says unless told otherwise.
const ACCEPT_JSON: &str = "application/json, application/problem+json";

/// A request to be sent.
pub(super) struct Outgoing {
    method: Method,
    path: String,
    body: Bytes,
    accept: &'static str,
    headers: Vec<(&'static str, String)>,
}

impl Outgoing {
    pub(super) fn new(method: Method, path: impl Into<String>) -> Self {
        Self {
            method,
            path: path.into(),
            body: Bytes::new(),
            accept: ACCEPT_JSON,
            headers: Vec::new(),
        }
    }

    pub(super) fn body(mut self, body: &impl Serialize) -> Self {
        self.body = serde_json::to_vec(body)
            .expect("requests have only string keys")
            .into();
        self.headers
            .push(("content-type", "application/json".to_owned()));
        self
    }

    pub(super) fn accept(mut self, accept: &'static str) -> Self {
        self.accept = accept;
        self
    }

    pub(super) fn header(mut self, name: &'static str, value: String) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Asks for an answer within this time, whether the work is done or not.
    pub(super) fn wait(self, wait: Duration) -> Self {
        self.header("prefer", format!("respond-async, wait={}", wait.as_secs()))
    }
}

/// An answer, whole.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    content_type: String,
    body: Bytes,
}

impl Answer {
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        let mut json = serde_json::Deserializer::from_slice(&self.body);
        serde_path_to_error::deserialize(&mut json).map_err(|error| ClientError::Protocol {
            what: "the daemon's answer does not fit; is it another version?".to_owned(),
            source: Some(Box::new(error)),
        })
    }

    pub(super) fn text(self) -> Result<String, ClientError> {
        String::from_utf8(self.body.into())
            .map_err(|_| ClientError::protocol("the daemon's answer is not text"))
    }

    /// The error of an answer that is none of those hoped for.
    pub(super) fn into_error(self) -> ClientError {
        if self.content_type.starts_with("application/problem+json")
            && let Ok(problem) = serde_json::from_slice::<Problem>(&self.body)
        {
            return ClientError::Problem(Box::new(problem));
        }
        ClientError::protocol(format!(
            "{} was answered, and no reason given: is this a berth daemon?",
            self.status
        ))
    }
}

/// An answer whose body is read as it comes. The connection lives as long as this.
pub(super) struct Streaming {
    pub(super) body: Incoming,
    _connection: Connection,
}

/// The task that moves the bytes of a connection; ended when nobody waits for them.
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Client {
    /// Sends a request and takes the whole answer.
    pub(super) async fn send(
        &self,
        outgoing: Outgoing,
        timeout: Duration,
    ) -> Result<Answer, ClientError> {
        within(timeout, async {
            let (response, _connection) = self.exchange(outgoing).await?;
            collect(response).await
        })
        .await
    }

    /// Sends a request whose answer is a stream; the timeout is for its header only.
    pub(super) async fn stream(
        &self,
        outgoing: Outgoing,
        timeout: Duration,
    ) -> Result<Streaming, ClientError> {
        within(timeout, async {
            let (response, connection) = self.exchange(outgoing).await?;
            if !response.status().is_success() {
                return Err(collect(response).await?.into_error());
            }
            if !content_type(&response).starts_with("text/event-stream") {
                return Err(ClientError::protocol(
                    "the answer is not a stream of events: is this a berth daemon?",
                ));
            }
            Ok(Streaming {
                body: response.into_body(),
                _connection: connection,
            })
        })
        .await
    }

    async fn exchange(
        &self,
        outgoing: Outgoing,
    ) -> Result<(Response<Incoming>, Connection), ClientError> {
        let connect = async {
            Ok(match &self.endpoint {
                Endpoint::Unix(path) => Stream::Unix(UnixStream::connect(path).await?),
                Endpoint::Tcp(authority) => {
                    let stream = TcpStream::connect(authority.as_str()).await?;
                    stream.set_nodelay(true)?;
                    Stream::Tcp(stream)
                }
            })
        };
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connect)
            .await
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
            .map_err(|source| ClientError::Unreachable {
                endpoint: self.endpoint.clone(),
                source,
            })?;
        let request = self.request(outgoing)?;
        match stream {
            Stream::Unix(stream) => converse(stream, request).await,
            Stream::Tcp(stream) => converse(stream, request).await,
        }
    }

    fn request(&self, outgoing: Outgoing) -> Result<Request<Full<Bytes>>, ClientError> {
        let host = match &self.endpoint {
            // RFC 9112 3.2 asks for a Host; a socket has none of its own.
            Endpoint::Unix(_) => "localhost",
            Endpoint::Tcp(authority) => authority,
        };
        let mut request = Request::builder()
            .method(outgoing.method)
            .uri(outgoing.path)
            .header(header::HOST, host)
            .header(header::ACCEPT, outgoing.accept)
            .header(
                header::USER_AGENT,
                concat!("berth/", env!("CARGO_PKG_VERSION")),
            );
        for (name, value) in outgoing.headers {
            request = request.header(HeaderName::from_static(name), value);
        }
        if let Some(traceparent) = &self.traceparent {
            request = request.header("traceparent", traceparent);
        }
        if let Some(request_id) = &self.request_id {
            request = request.header("x-request-id", request_id);
        }
        if let Some(token) = &self.token {
            let mut value =
                HeaderValue::from_str(&format!("Bearer {}", token.expose())).map_err(|_| {
                    ClientError::protocol("the token has characters that HTTP cannot carry")
                })?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        request
            .body(Full::new(outgoing.body))
            .map_err(|error| ClientError::Protocol {
                what: "the request cannot be sent".to_owned(),
                source: Some(error.into()),
            })
    }
}

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<(Response<Incoming>, Connection), ClientError> {
    let broken = |error: hyper::Error| ClientError::Protocol {
        what: "the connection to the daemon broke".to_owned(),
        source: Some(error.into()),
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    let connection = Connection(tokio::spawn(async move {
        // Its error is that of the exchange, which reports it.
        let _ = connection.await;
    }));
    let response = sender.send_request(request).await.map_err(broken)?;
    Ok((response, connection))
}

async fn collect(response: Response<Incoming>) -> Result<Answer, ClientError> {
    let status = response.status();
    let content_type = content_type(&response).to_owned();
    let body = Limited::new(response.into_body(), ANSWER_LEN_MAX)
        .collect()
        .await
        .map_err(|error| ClientError::Protocol {
            what: "the daemon's answer did not arrive whole".to_owned(),
            source: Some(error),
        })?
        .to_bytes();
    Ok(Answer {
        status,
        content_type,
        body,
    })
}

fn content_type(response: &Response<Incoming>) -> &str {
    response
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

async fn within<T>(
    timeout: Duration,
    work: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    tokio::time::timeout(timeout, work)
        .await
        .unwrap_or(Err(ClientError::Timeout(timeout)))
}

//! gRPC over a Unix socket, or over a connection that somebody else makes.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, Result};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tonic::transport::{Channel, Endpoint, Uri};

/// Longest call: what kubelet waits.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(120);

/// A channel to the driver at this socket.
///
/// # Errors
/// When nobody serves it.
pub async fn channel(socket: &Path) -> Result<Channel> {
    let path = socket.to_owned();
    let dial = move || std::os::unix::net::UnixStream::connect(&path);
    connect(Dial::new(dial, UnixStream::from_std))
        .await
        .with_context(|| socket.display().to_string())
}

/// A channel over TCP connections that `dial` makes.
///
/// # Errors
/// Those of `dial`.
pub async fn channel_over(
    dial: impl Fn() -> Result<std::net::TcpStream> + Send + Sync + 'static,
) -> Result<Channel> {
    let dial = move || dial().map_err(std::io::Error::other);
    connect(Dial::new(dial, TcpStream::from_std)).await
}

async fn connect(dial: Dial) -> Result<Channel> {
    let endpoint = Endpoint::from_static("http://localhost").timeout(CALL_TIMEOUT);
    Ok(endpoint.connect_with_connector(dial).await?)
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Makes a connection, on a thread that may block.
#[derive(Clone)]
struct Dial(Arc<dyn Fn() -> std::io::Result<Box<dyn Duplex>> + Send + Sync>);

trait Nonblocking {
    fn make_nonblocking(&self) -> std::io::Result<()>;
}

impl Nonblocking for std::net::TcpStream {
    fn make_nonblocking(&self) -> std::io::Result<()> {
        self.set_nonblocking(true)
    }
}

impl Nonblocking for std::os::unix::net::UnixStream {
    fn make_nonblocking(&self) -> std::io::Result<()> {
        self.set_nonblocking(true)
    }
}

impl Dial {
    fn new<S: Nonblocking + 'static, A: Duplex + 'static>(
        dial: impl Fn() -> std::io::Result<S> + Send + Sync + 'static,
        adopt: fn(S) -> std::io::Result<A>,
    ) -> Self {
        Self(Arc::new(move || {
            let stream = dial()?;
            stream.make_nonblocking()?;
            Ok(Box::new(adopt(stream)?))
        }))
    }
}

impl tower_service::Service<Uri> for Dial {
    type Response = TokioIo<Box<dyn Duplex>>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let dial = Arc::clone(&self.0);
        Box::pin(async move {
            let dialled = tokio::task::spawn_blocking(move || dial()).await;
            Ok(TokioIo::new(dialled.map_err(std::io::Error::other)??))
        })
    }
}

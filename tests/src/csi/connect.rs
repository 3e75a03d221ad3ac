//! gRPC over a Unix socket.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, Result};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// Longest call: what kubelet waits.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(120);

/// A channel to the driver at this socket.
///
/// # Errors
/// When nobody serves it.
pub async fn channel(socket: &Path) -> Result<Channel> {
    Endpoint::from_static("http://localhost")
        .timeout(CALL_TIMEOUT)
        .connect_with_connector(Connect(socket.to_owned()))
        .await
        .with_context(|| socket.display().to_string())
}

#[derive(Debug, Clone)]
struct Connect(PathBuf);

impl tower_service::Service<Uri> for Connect {
    type Response = TokioIo<UnixStream>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let path = self.0.clone();
        Box::pin(async move { Ok(TokioIo::new(UnixStream::connect(path).await?)) })
    }
}

//! What carries a connection: a trait, so that the same driver runs over TCP and over a simulated network.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use berth_iobuf::ReceiveBuffer;
use bytes::BytesMut;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::options::{ConnectOptions, SocketOptions};
use super::portal;
use crate::name::Portal;

/// Probes that may stay unanswered before the connection is dead.
const KEEPALIVE_PROBES: u32 = 3;

/// One connected byte stream. It belongs to one task; dropping it closes the connection.
pub trait Socket: fmt::Debug + Send {
    /// Appends what has arrived to `into`, up to its spare capacity, which is not 0. `Ok(0)`: the other
    /// side sends no more. When it is pending the task is woken once there is something to read. A
    /// read that leaves spare capacity has emptied the socket.
    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut BytesMut) -> Poll<io::Result<usize>>;

    /// Ready when a read may bring something; a read may still find nothing.
    fn poll_read_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Writes what the socket takes at once.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when it takes nothing; anything else is the end of the connection.
    fn try_write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Ready when a write may be taken.
    fn poll_write_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// The address of this end.
    ///
    /// # Errors
    /// When the connection is gone.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// The address of the other end.
    ///
    /// # Errors
    /// When the connection is gone.
    fn peer_addr(&self) -> io::Result<SocketAddr>;
}

impl Socket for TcpStream {
    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut BytesMut) -> Poll<io::Result<usize>> {
        pin!(self.read_buf(into)).poll(cx)
    }

    fn poll_read_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::poll_read_ready(self, cx)
    }

    fn try_write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        Self::try_write_vectored(self, slices)
    }

    fn poll_write_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::poll_write_ready(self, cx)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Self::local_addr(self)
    }

    fn peer_addr(&self) -> io::Result<SocketAddr> {
        Self::peer_addr(self)
    }
}

/// What [`Network::dial`] gives: a connection, and the address that answered.
pub type Dialed = io::Result<(Box<dyn Socket>, SocketAddr)>;

/// What [`Network::dial`] does meanwhile.
pub type Dialing<'a> = Pin<Box<dyn Future<Output = Dialed> + 'a>>;

/// How portals are reached.
pub trait Network: fmt::Debug + Send + Sync {
    /// Connects to a portal; no iSCSI yet. Dropping the future gives the attempt up. One attempt ends
    /// after [`ConnectOptions::attempt_timeout`].
    fn dial<'a>(&'a self, portal: &'a Portal, options: &'a ConnectOptions) -> Dialing<'a>;
}

/// TCP: resolves the name, races its addresses (RFC 8305), sets the options of the socket.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpNetwork;

impl Network for TcpNetwork {
    fn dial<'a>(&'a self, portal: &'a Portal, options: &'a ConnectOptions) -> Dialing<'a> {
        Box::pin(async move {
            let addresses = portal::resolve(portal).await?;
            let (stream, address) = portal::connect(addresses, options).await?;
            Ok((Box::new(stream) as Box<dyn Socket>, address))
        })
    }
}

/// Waits for something to read and appends it to `receive`; 0 at the end of the stream.
pub(super) async fn read(
    socket: &mut dyn Socket,
    receive: &mut ReceiveBuffer,
) -> io::Result<usize> {
    poll_fn(|cx| socket.poll_read(cx, receive.room())).await
}

/// Writes some of `bytes`, waiting until the socket takes any.
pub(super) async fn write(socket: &mut dyn Socket, bytes: &[u8]) -> io::Result<usize> {
    poll_fn(|cx| {
        loop {
            match socket.try_write_vectored(&[IoSlice::new(bytes)]) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(socket.poll_write_ready(cx))?;
                }
                result => return Poll::Ready(result),
            }
        }
    })
    .await
}

/// Writes all of `bytes`.
pub(super) async fn write_all(socket: &mut dyn Socket, bytes: &[u8]) -> io::Result<()> {
    let mut left = bytes;
    while !left.is_empty() {
        let n = write(socket, left).await?;
        left = &left[n..];
    }
    Ok(())
}

pub(super) fn configure(stream: &TcpStream, options: &SocketOptions) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    if let Some(idle) = options.keepalive_idle {
        let keepalive = TcpKeepalive::new()
            .with_time(idle)
            .with_interval(options.keepalive_interval)
            .with_retries(KEEPALIVE_PROBES);
        socket.set_tcp_keepalive(&keepalive)?;
    }
    if let Some(timeout) = options.user_timeout {
        socket.set_tcp_user_timeout(Some(timeout))?;
    }
    if let Some(bytes) = options.send_buffer_bytes {
        socket.set_send_buffer_size(bytes)?;
    }
    if let Some(bytes) = options.receive_buffer_bytes {
        socket.set_recv_buffer_size(bytes)?;
    }
    Ok(())
}

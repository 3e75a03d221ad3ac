//! What carries a connection: a trait, so that the same driver runs over TCP and over a simulated network.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use berth_iobuf::ReceiveBuffer;
use bytes::BytesMut;

use super::options::ConnectOptions;
use crate::name::Portal;

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

//! A wire in memory: the two ends of a byte stream, and the network that dials one end of it.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use berth_iscsi::name::Portal;
use berth_iscsi::net::{ConnectOptions, Dialing, Network, Socket};
use bytes::BytesMut;
use tokio::sync::mpsc;

/// Bytes that one direction holds, as a socket buffer does.
const BUFFER_BYTES: usize = 256 * 1024;

/// Connections that wait to be accepted.
const DIALS_MAX: usize = 16;

/// One direction.
#[derive(Debug, Default)]
struct Lane {
    bytes: VecDeque<u8>,
    closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

type SharedLane = Arc<Mutex<Lane>>;

fn lock(lane: &SharedLane) -> MutexGuard<'_, Lane> {
    lane.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One end. Dropping it closes both directions.
#[derive(Debug)]
pub(crate) struct End {
    incoming: SharedLane,
    outgoing: SharedLane,
}

/// The portal that was dialed, and the target's end of the wire.
pub(crate) type Accepted = (Portal, End);

fn pair() -> (End, End) {
    let (one, two) = (SharedLane::default(), SharedLane::default());
    let end = |incoming: &SharedLane, outgoing: &SharedLane| End {
        incoming: incoming.clone(),
        outgoing: outgoing.clone(),
    };
    (end(&one, &two), end(&two, &one))
}

impl Drop for End {
    fn drop(&mut self) {
        for lane in [&self.incoming, &self.outgoing] {
            let mut lane = lock(lane);
            lane.closed = true;
            for waker in [lane.reader.take(), lane.writer.take()]
                .into_iter()
                .flatten()
            {
                waker.wake();
            }
        }
    }
}

impl Socket for End {
    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut BytesMut) -> Poll<io::Result<usize>> {
        let mut lane = lock(&self.incoming);
        if lane.bytes.is_empty() {
            if lane.closed {
                return Poll::Ready(Ok(0));
            }
            lane.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let n = lane.bytes.len().min(into.capacity() - into.len());
        into.extend(lane.bytes.drain(..n));
        if let Some(waker) = lane.writer.take() {
            waker.wake();
        }
        Poll::Ready(Ok(n))
    }

    fn poll_read_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut lane = lock(&self.incoming);
        if lane.bytes.is_empty() && !lane.closed {
            lane.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    fn try_write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut lane = lock(&self.outgoing);
        if lane.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut room = BUFFER_BYTES.saturating_sub(lane.bytes.len());
        if room == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut written = 0;
        for slice in slices {
            let n = slice.len().min(room);
            lane.bytes.extend(&slice[..n]);
            written += n;
            room -= n;
        }
        if let Some(waker) = lane.reader.take() {
            waker.wake();
        }
        Ok(written)
    }

    fn poll_write_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut lane = lock(&self.outgoing);
        if lane.bytes.len() >= BUFFER_BYTES && !lane.closed {
            lane.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::from(([192, 0, 2, 1], 40_000)))
    }

    fn peer_addr(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::from(([192, 0, 2, 2], 3260)))
    }
}

/// Every portal is reached at once; the target's end goes to whoever accepts.
#[derive(Debug)]
pub(crate) struct Memory {
    accepts: mpsc::Sender<Accepted>,
}

impl Memory {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Accepted>) {
        let (accepts, accepted) = mpsc::channel(DIALS_MAX);
        (Self { accepts }, accepted)
    }
}

impl Network for Memory {
    fn dial<'a>(&'a self, portal: &'a Portal, _: &'a ConnectOptions) -> Dialing<'a> {
        Box::pin(async move {
            let (ours, theirs) = pair();
            let address = ours.peer_addr()?;
            self.accepts
                .try_send((portal.clone(), theirs))
                .map_err(|_| io::ErrorKind::ConnectionRefused)?;
            Ok((Box::new(ours) as Box<dyn Socket>, address))
        })
    }
}

//! One NBD connection in the transmission phase: a task on the thread of its volume.
//!
//! The task is one `poll` function and has no select, channel or lock: each wake-up drains what is
//! readable, submits it as a batch, collects completions, and leaves with one vectored write. The waker
//! of the task is registered with the socket (both directions), the device and the [`Stop`].
//!
//! The negotiation happens elsewhere; its outcome arrives as a [`Handover`].

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use berth_iobuf::{ReceiveBuffer, SendQueue};
use bytes::BufMut as _;
use slab::Slab;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};

use super::export::ExportInfo;
use super::handshake::Negotiated;
use super::socket::Socket;
use super::transmission::{self, Limits, Transmission};
use crate::block::Client;

/// Slices of a usual write: header and data of 32 replies.
const SLICES_USUAL: usize = 64;

/// What the kernel shall hold of our answers: a whole 1 MiB read, so that it leaves in one write and the
/// client is not woken, nor waited for, part by part. The kernel's default of 208 KiB costs a third more
/// CPU at that size; 4 MiB costs more than this, too.
const SEND_BUFFER_BYTES: usize = 1 << 20;

/// What carries a connection.
pub enum Stream {
    /// A socket, non-blocking, belonging to no runtime.
    Unix(StdUnixStream),
    /// Something else, such as a pipe in memory.
    Other(Box<dyn ByteStream>),
}

/// A stream of bytes in both directions.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(stream) => f.debug_tuple("Unix").field(stream).finish(),
            Self::Other(_) => f.debug_tuple("Other").finish_non_exhaustive(),
        }
    }
}

impl Stream {
    /// Gives it to the runtime of this thread.
    fn register(self) -> io::Result<Box<dyn ByteStream>> {
        Ok(match self {
            Self::Unix(stream) => {
                widen(&stream);
                Box::new(Socket::register(stream)?)
            }
            Self::Other(stream) => stream,
        })
    }
}

/// Everything that a connection brings along when it moves to the thread of its volume.
#[derive(Debug)]
pub struct Handover {
    /// What carries it.
    pub stream: Stream,
    /// Bytes that came behind the negotiation.
    pub input: ReceiveBuffer,
    /// What was agreed.
    pub negotiated: Negotiated,
    /// Counts the connection as open for as long as it lives.
    pub permit: Option<tokio::sync::OwnedSemaphorePermit>,
    /// The client sends again, over another connection, what this one leaves unanswered. Then a drain stops at
    /// a message boundary ([`End::Parked`]), and the connection ends only when nothing that it took is under
    /// way any more: what comes again cannot be overtaken by its first copy.
    pub resends: bool,
}

impl Handover {
    /// A socket whose other end is (or will be) the kernel's client, which does not negotiate.
    ///
    /// # Errors
    /// If the socket cannot be made non-blocking.
    pub fn for_kernel(stream: StdUnixStream, export: &ExportInfo) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream: Stream::Unix(stream),
            input: ReceiveBuffer::new(),
            negotiated: Negotiated::for_kernel(export),
            permit: None,
            resends: true,
        })
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// The client said goodbye and everything was answered.
    #[error("the client disconnected")]
    Disconnected,
    /// The client closed its socket without saying goodbye; what was in flight was finished.
    #[error("the client closed the connection without a disconnect request")]
    Closed,
    /// Drained on request: everything taken was answered.
    #[error("stopped after everything was answered")]
    Drained,
    /// Drained on request of a client that sends again what is left unanswered: nothing was read in part
    /// either, so that whoever has the socket can go on with it.
    #[error("parked at a message boundary after everything was answered")]
    Parked,
    /// Cut on request.
    #[error("cut")]
    Cut,
    /// The client broke the protocol.
    #[error("protocol violation: {0}")]
    Violation(#[from] transmission::Error),
    /// The socket failed.
    #[error("socket: {0}")]
    Io(#[from] io::Error),
}

/// How a group of connections shall stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
enum StopMode {
    #[default]
    Run,
    Drain,
    Cut,
}

/// Stops the connections of a volume; shared by them on their thread.
#[derive(Debug, Clone, Default)]
pub struct Stop(Rc<RefCell<StopState>>);

#[derive(Debug, Default)]
struct StopState {
    mode: StopMode,
    waiting: Slab<Waker>,
}

impl Stop {
    /// A switch that is off.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Connections take no more requests, answer what is in flight, and close.
    pub fn drain(&self) {
        self.set(StopMode::Drain);
    }

    /// Connections close at once. Requests in flight go on in the device, unanswered.
    pub fn cut(&self) {
        self.set(StopMode::Cut);
    }

    fn set(&self, mode: StopMode) {
        let mut state = self.0.borrow_mut();
        state.mode = state.mode.max(mode);
        // They stay registered: a freed place could be taken by another connection.
        for (_, waker) in &state.waiting {
            waker.wake_by_ref();
        }
    }
}

/// A connection's place among those that wait for a [`Stop`].
#[derive(Debug)]
struct StopWatch {
    stop: Stop,
    key: Option<usize>,
}

impl StopWatch {
    fn poll(&mut self, cx: &Context<'_>) -> StopMode {
        let mut state = self.stop.0.borrow_mut();
        match self.key {
            Some(key) => state.waiting[key].clone_from(cx.waker()),
            None => self.key = Some(state.waiting.insert(cx.waker().clone())),
        }
        state.mode
    }
}

impl Drop for StopWatch {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.stop.0.borrow_mut().waiting.remove(key);
        }
    }
}

/// Serves one connection until it ends. Must run on the thread of `client`'s device. Gives back what it has received
/// in, for the next connection.
///
/// Requests that were taken when the connection ends early go on in the device; nobody is told.
pub async fn serve(
    handover: Handover,
    client: Client,
    limits: Limits,
    stop: Stop,
) -> (End, ReceiveBuffer) {
    let stream = match handover.stream.register() {
        Ok(stream) => stream,
        Err(error) => return (End::Io(error), handover.input),
    };
    let mut connection = Connection {
        transmission: Transmission::new(&handover.negotiated, limits),
        stream,
        input: handover.input,
        out: SendQueue::new(),
        client,
        stop: StopWatch { stop, key: None },
        resends: handover.resends,
        parking: false,
        end: End::Disconnected,
    };
    let _permit = handover.permit;
    let end = match poll_fn(|cx| connection.poll(cx)).await {
        Ok(()) => connection.end,
        Err(End::Cut) => End::Cut,
        Err(end) => {
            if connection.resends {
                poll_fn(|cx| connection.poll_settled(cx)).await;
            }
            end
        }
    };
    connection.input.clear();
    (end, connection.input)
}

struct Connection {
    stream: Box<dyn ByteStream>,
    transmission: Transmission,
    input: ReceiveBuffer,
    out: SendQueue,
    client: Client,
    stop: StopWatch,
    /// See [`Handover::resends`].
    resends: bool,
    /// To be parked at the next message boundary.
    parking: bool,
    /// What to say once everything is answered.
    end: End,
}

impl Connection {
    /// Does everything that can be done now. Ready when the connection is over.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        match self.stop.poll(cx) {
            StopMode::Run => {}
            StopMode::Drain if self.resends => self.parking = true,
            StopMode::Drain => self.take_no_more(End::Drained),
            StopMode::Cut => return Poll::Ready(Err(End::Cut)),
        }
        loop {
            let bounded = self.poll_requests(cx)?;
            let answered = self.poll_completions(cx);
            let sent = self.poll_send(cx)?;
            let idle = self.transmission.in_flight() == 0 && self.out.is_empty();
            if idle && self.transmission.is_ended() {
                return Poll::Ready(Ok(()));
            }
            // Answers and sent bytes make room for more requests.
            let go_on = bounded && (answered || sent);
            if !go_on {
                return Poll::Pending;
            }
        }
    }

    /// Takes requests until the socket is empty or a bound is reached, and submits them as a batch. True at a
    /// bound; else the task is woken when more arrives.
    fn poll_requests(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        if self.transmission.is_ended() {
            return Ok(false);
        }
        let geometry = self.client.geometry();
        loop {
            let client = &self.client;
            self.transmission.handle_input(
                &mut self.input,
                &mut self.out,
                &geometry,
                |request| client.submit(request),
            )?;
            if !self.transmission.wants_input() {
                return Ok(!self.transmission.is_ended());
            }
            // Only the rest of a message that has begun is read while parking.
            let most = if self.parking {
                self.transmission.rest_of_message(self.input.len())
            } else {
                usize::MAX
            };
            if most == 0 {
                self.take_no_more(End::Parked);
                return Ok(false);
            }
            // An answer makes room; without one to come there is nothing to wait for.
            if !self.input.has_room() && self.transmission.in_flight() > 0 {
                return Ok(true);
            }
            // A short read tells tokio that the socket is empty, so the next turn of this loop makes
            // no system call but leaves the waker. Its budget ends the loop under a flood.
            let mut room = self.input.room().limit(most);
            let read = pin!(self.stream.read_buf(&mut room));
            match Future::poll(read, cx) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Ok(0)) => {
                    self.take_no_more(End::Closed);
                    return Ok(false);
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) if is_hangup(&error) => {
                    self.take_no_more(End::Closed);
                    return Ok(false);
                }
                Poll::Ready(Err(error)) => return Err(End::Io(error)),
            }
        }
    }

    /// Queues the replies of what the device has finished. True if there were any.
    fn poll_completions(&mut self, cx: &mut Context<'_>) -> bool {
        let mut any = false;
        let mut geometry = None;
        loop {
            match self.client.poll_complete(cx) {
                Poll::Pending => return any,
                Poll::Ready(None) => {
                    self.take_no_more(End::Drained);
                    return any;
                }
                Poll::Ready(Some(completion)) => {
                    any = true;
                    let geometry = geometry.get_or_insert_with(|| self.client.geometry());
                    self.transmission
                        .complete(completion, geometry, &mut self.out);
                }
            }
        }
    }

    /// Waits until the device has finished everything that was taken; the answers have nobody to go to.
    fn poll_settled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.stop.poll(cx) == StopMode::Cut {
            return Poll::Ready(());
        }
        while self.client.in_flight() > 0 {
            if ready!(self.client.poll_complete(cx)).is_none() {
                break;
            }
        }
        Poll::Ready(())
    }

    /// Sends what is queued. True if something left.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let mut any = false;
        while !self.out.is_empty() {
            match self.poll_write(cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => return Err(End::Io(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(sent)) => {
                    any = true;
                    self.out.advance(sent);
                }
                Poll::Ready(Err(error)) if is_hangup(&error) => return Err(End::Closed),
                Poll::Ready(Err(error)) => return Err(End::Io(error)),
            }
        }
        Ok(any)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(SLICES_USUAL);
        self.out.io_slices(&mut slices);
        let sent = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, &slices))?;
        Poll::Ready(Ok(sent))
    }

    fn take_no_more(&mut self, end: End) {
        if !self.transmission.is_ended() {
            self.transmission.end();
            self.end = end;
        }
    }
}

/// Gives the socket [`SEND_BUFFER_BYTES`], or what the system lets us have; either works. Only root may
/// go beyond `net.core.wmem_max`.
fn widen(stream: &StdUnixStream) {
    use rustix::net::sockopt;
    if sockopt::set_socket_send_buffer_size_force(stream, SEND_BUFFER_BYTES).is_err() {
        let _ = sockopt::set_socket_send_buffer_size(stream, SEND_BUFFER_BYTES);
    }
}

/// The peer is gone; for it, not a failure of ours.
fn is_hangup(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected
    )
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;

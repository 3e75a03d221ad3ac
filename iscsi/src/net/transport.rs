//! The byte side of one connection: reads into the session, writes what it has to send.

use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use berth_iobuf::{ReceiveBuffer, SendQueue};

use super::socket::Socket;
use crate::session::Session;

/// Counts of one connection's socket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Times that the driver ran.
    pub wakeups: u64,
    /// Reads that brought bytes.
    pub reads: u64,
    /// Bytes received.
    pub read_bytes: u64,
    /// Vectored writes.
    pub writes: u64,
    /// Bytes sent.
    pub written_bytes: u64,
    /// Times that the socket took less than there was to send.
    pub writes_blocked: u64,
}

/// A socket with its buffers.
#[derive(Debug)]
pub(super) struct Transport {
    stream: Box<dyn Socket>,
    receive: ReceiveBuffer,
    send: SendQueue,
    pub(super) counters: Counters,
}

/// How an attempt to send ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// Nothing is left to send.
    All,
    /// The socket takes no more at present.
    Blocked,
    /// The budget is used up.
    Budget,
}

impl Transport {
    /// A connected socket, and what was received behind the login.
    pub(super) fn new(stream: Box<dyn Socket>, receive: ReceiveBuffer) -> Self {
        Self {
            stream,
            receive,
            send: SendQueue::new(),
            counters: Counters::default(),
        }
    }

    /// Hands the session what is here already.
    pub(super) fn take_in(&mut self, now: Instant, session: &mut Session) {
        if !self.receive.is_empty() {
            // The error is in the session's last event too.
            let _ = session.handle_input(now, &mut self.receive);
        }
    }

    /// One read, taken in by the session. Returns the bytes read and whether more may be there: a short
    /// read has emptied the socket, and asking again would cost a system call.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        session: &mut Session,
    ) -> Poll<io::Result<(usize, bool)>> {
        let room = self.receive.room();
        let capacity = room.capacity() - room.len();
        let n = ready!(self.stream.poll_read(cx, room))?;
        if n == 0 {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        self.counters.reads += 1;
        self.counters.read_bytes += n as u64;
        self.take_in(now, session);
        Poll::Ready(Ok((n, n == capacity)))
    }

    /// Drops what was built and not given to the socket. Returns how many bytes that is.
    pub(super) fn abandon(&mut self) -> usize {
        let bytes = self.send.len();
        self.send.clear();
        bytes
    }

    /// Asks to be woken when there is something to read; `Ready` if there is already.
    pub(super) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_read_ready(cx)
    }

    /// Asks to be woken when there is room to write; `Ready` if there is already.
    pub(super) fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_write_ready(cx)
    }

    /// Writes what the session wants to send, up to `budget` bytes, without waiting.
    pub(super) fn try_send(
        &mut self,
        now: Instant,
        session: &mut Session,
        budget: usize,
    ) -> io::Result<Sent> {
        let mut left = budget;
        loop {
            session.poll_transmit(now, &mut self.send);
            if self.send.is_empty() {
                return Ok(Sent::All);
            }
            if left == 0 {
                return Ok(Sent::Budget);
            }
            let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(SLICES_USUAL);
            self.send.io_slices(&mut slices);
            match self.stream.try_write_vectored(&slices) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    drop(slices);
                    self.send.advance(n);
                    self.counters.writes += 1;
                    self.counters.written_bytes += n as u64;
                    left = left.saturating_sub(n);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.counters.writes_blocked += 1;
                    return Ok(Sent::Blocked);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Slices of a usual write: headers and payload of some dozen commands.
const SLICES_USUAL: usize = 64;

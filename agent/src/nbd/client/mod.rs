//! A small NBD client: for measuring, for the demo and for tests.
//!
//! [`Connection`] keeps many requests in flight over one socket without tasks or channels: queue with
//! [`Connection::submit`], collect with [`Connection::next`]. Requests and answers are those of
//! [`crate::block`]. Several connections to one export are several values.
//!
//! - [`negotiate`]: the client's side of the negotiation;
//! - [`replies`]: replies of all three styles, put together without sockets.

pub mod negotiate;
pub mod replies;

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use berth_iobuf::{Payload, ReceiveBuffer, SendQueue};
use tokio::io::{AsyncReadExt as _, AsyncWrite as _};
use tokio::net::UnixStream;

use super::connection::ByteStream;
use super::handshake::ReplyMode;
use super::uri::Uri;
use super::wire::option::{OptionType, ReplyType};
use super::wire::reply::Errno;
use super::wire::request::{Command, RequestHeader};
use super::wire::{CommandFlags, MagicError, PAYLOAD_MAX_BYTES};
use crate::block::{Extent, Op, Output};
pub use negotiate::{ExportFacts, Wishes};
use replies::{Expect, Replies};

/// Why the connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The URI cannot be used by this client.
    #[error("{0} cannot be used: only Unix sockets without TLS are")]
    Unsupported(Uri),
    /// The socket failed.
    #[error("NBD socket: {0}")]
    Io(#[from] io::Error),
    /// The server closed the connection.
    #[error("the NBD server closed the connection")]
    Closed,
    /// The server is no NBD server, or out of step.
    #[error("NBD server: {0}")]
    Magic(#[from] MagicError),
    /// The server refused an option.
    #[error("the NBD server refused {option} with {reply}: {text}")]
    Refused {
        /// What was asked.
        option: OptionType,
        /// The kind of refusal.
        reply: ReplyType,
        /// The server's words; may be empty.
        text: String,
    },
    /// The server broke the protocol.
    #[error("the NBD server broke the protocol: {0}")]
    Violation(&'static str),
    /// The request cannot be expressed: too long, or not what the export offers.
    #[error("the request cannot be sent: {0}")]
    Unsendable(&'static str),
    /// The server refused a request.
    #[error("the NBD server answered {0}")]
    Request(#[from] RequestError),
}

/// A request that failed; the connection goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{errno}: {message}")]
pub struct RequestError {
    /// Error number.
    pub errno: Errno,
    /// The server's words; may be empty.
    pub message: String,
}

/// Names a request in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(pub(crate) u64);

/// The answer to one request.
#[derive(Debug)]
pub struct Completed {
    /// Which request.
    pub token: Token,
    /// What came of it.
    pub result: Result<Output, RequestError>,
}

/// One connection to an export.
pub struct Connection {
    stream: Box<dyn ByteStream>,
    input: ReceiveBuffer,
    out: SendQueue,
    replies: Replies,
    facts: ExportFacts,
    done: VecDeque<Completed>,
}

impl Connection {
    /// Connects and negotiates.
    ///
    /// # Errors
    /// If there is no server, or it does not have the export.
    pub async fn connect(uri: &Uri, wishes: Wishes) -> Result<Self, ClientError> {
        let mut stream = open(uri).await?;
        let mut input = ReceiveBuffer::new();
        let facts = negotiate::go(&mut stream, &mut input, &uri.export, wishes).await?;
        Ok(Self {
            input,
            ..Self::over(Box::new(stream), facts)
        })
    }

    /// A connection over a stream that both ends know everything about: nothing is negotiated.
    #[must_use]
    pub fn over(stream: Box<dyn ByteStream>, facts: ExportFacts) -> Self {
        Self {
            stream,
            input: ReceiveBuffer::new(),
            out: SendQueue::new(),
            replies: Replies::new(facts.mode),
            facts,
            done: VecDeque::new(),
        }
    }

    /// What the server told about the export.
    #[must_use]
    pub fn facts(&self) -> &ExportFacts {
        &self.facts
    }

    /// Requests that were submitted and not yet collected.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.replies.in_flight() + self.done.len()
    }

    /// Queues a request; it leaves with the next [`Connection::next`].
    ///
    /// # Errors
    /// If the request cannot be expressed; nothing was queued.
    pub fn submit(&mut self, op: &Op) -> Result<Token, ClientError> {
        let (command, flags, offset_bytes, len_bytes, expect) = express(op)?;
        let mode = self.facts.mode;
        let mut header = RequestHeader {
            flags,
            command,
            cookie: 0,
            offset_bytes,
            len_bytes,
        };
        if mode == ReplyMode::Extended && command == Command::WRITE {
            header.flags |= CommandFlags::PAYLOAD_LEN;
        } else if mode != ReplyMode::Extended && u32::try_from(len_bytes).is_err() {
            return Err(ClientError::Unsendable(
                "4 GiB and more need extended headers",
            ));
        }
        if command == Command::BLOCK_STATUS && !self.facts.base_allocation {
            return Err(ClientError::Unsendable(
                "the server does not offer base:allocation",
            ));
        }
        header.cookie = self.replies.expect(offset_bytes, expect);
        match mode {
            ReplyMode::Extended => self.out.put(&header.emit_extended()),
            _ => self
                .out
                .put(&header.emit_compact().expect("the length was checked")),
        }
        if let Op::Write { data, .. } = op {
            self.out.put_payload(data);
        }
        Ok(Token(header.cookie))
    }

    /// Sends what is queued and waits for the next answer, in the order of the server. Dropping the
    /// future loses nothing.
    ///
    /// # Errors
    /// If the connection is lost. With nothing in flight this is an error at once, not a hang.
    pub async fn next(&mut self) -> Result<Completed, ClientError> {
        if self.in_flight() == 0 {
            return Err(ClientError::Unsendable("nothing is in flight to wait for"));
        }
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Completed, ClientError>> {
        loop {
            if let Some(completed) = self.done.pop_front() {
                return Poll::Ready(Ok(completed));
            }
            self.poll_send(cx)?;
            let read = pin!(self.stream.read_buf(self.input.room()));
            match read.poll(cx)? {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(0) => return Poll::Ready(Err(ClientError::Closed)),
                Poll::Ready(_) => {
                    let done = &mut self.done;
                    self.replies.handle_input(&mut self.input, |completed| {
                        done.push_back(completed);
                    })?;
                }
            }
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Result<(), ClientError> {
        while !self.out.is_empty() {
            let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(64);
            self.out.io_slices(&mut slices);
            match Pin::new(&mut self.stream).poll_write_vectored(cx, &slices)? {
                Poll::Pending => break,
                Poll::Ready(0) => return Err(ClientError::Closed),
                Poll::Ready(sent) => self.out.advance(sent),
            }
        }
        Ok(())
    }

    /// Submits one request and waits for its answer; answers of others are kept for
    /// [`Connection::next`].
    ///
    /// # Errors
    /// If the request fails or the connection is lost.
    pub async fn call(&mut self, op: &Op) -> Result<Output, ClientError> {
        let token = self.submit(op)?;
        let mut others = std::mem::take(&mut self.done);
        loop {
            let completed = self.next().await?;
            if completed.token == token {
                others.append(&mut self.done);
                self.done = others;
                return Ok(completed.result?);
            }
            others.push_back(completed);
        }
    }

    /// Reads.
    ///
    /// # Errors
    /// If the request fails or the connection is lost.
    pub async fn read(
        &mut self,
        offset_bytes: u64,
        len_bytes: u32,
    ) -> Result<Payload, ClientError> {
        match self
            .call(&Op::Read {
                offset_bytes,
                len_bytes,
            })
            .await?
        {
            Output::Data(data) => Ok(data),
            _ => Err(ClientError::Violation("a READ was answered without data")),
        }
    }

    /// Writes; with `fua` the data is durable afterwards.
    ///
    /// # Errors
    /// If the request fails or the connection is lost.
    pub async fn write(
        &mut self,
        offset_bytes: u64,
        data: Payload,
        fua: bool,
    ) -> Result<(), ClientError> {
        self.call(&Op::Write {
            offset_bytes,
            data,
            fua,
        })
        .await
        .map(drop)
    }

    /// Makes everything durable that was answered before.
    ///
    /// # Errors
    /// If the request fails or the connection is lost.
    pub async fn flush(&mut self) -> Result<(), ClientError> {
        self.call(&Op::Flush).await.map(drop)
    }

    /// Gives a range up.
    ///
    /// # Errors
    /// If the request fails or the connection is lost.
    pub async fn trim(&mut self, offset_bytes: u64, len_bytes: u64) -> Result<(), ClientError> {
        self.call(&Op::Trim {
            offset_bytes,
            len_bytes,
            fua: false,
        })
        .await
        .map(drop)
    }

    /// Makes a range read as zeroes; space may be given back.
    ///
    /// # Errors
    /// If the request fails or the connection is lost.
    pub async fn zero(&mut self, offset_bytes: u64, len_bytes: u64) -> Result<(), ClientError> {
        let op = Op::WriteZeroes {
            offset_bytes,
            len_bytes,
            may_unmap: true,
            fast_only: false,
            fua: false,
        };
        self.call(&op).await.map(drop)
    }

    /// Tells how a range is provisioned; the answer may stop early, and its last extent may reach
    /// past the end.
    ///
    /// # Errors
    /// If the request fails or the connection is lost.
    pub async fn block_status(
        &mut self,
        offset_bytes: u64,
        len_bytes: u64,
    ) -> Result<Vec<Extent>, ClientError> {
        match self
            .call(&Op::BlockStatus {
                offset_bytes,
                len_bytes,
            })
            .await?
        {
            Output::Extents(extents) => Ok(extents),
            _ => Err(ClientError::Violation(
                "a BLOCK_STATUS was answered without extents",
            )),
        }
    }

    /// Says goodbye, and waits until the server has closed the connection. Answers that are still
    /// in flight are thrown away.
    ///
    /// # Errors
    /// If the socket fails.
    pub async fn disconnect(mut self) -> Result<(), ClientError> {
        let header = RequestHeader {
            flags: CommandFlags::empty(),
            command: Command::DISC,
            cookie: 0,
            offset_bytes: 0,
            len_bytes: 0,
        };
        match self.facts.mode {
            ReplyMode::Extended => self.out.put(&header.emit_extended()),
            _ => self
                .out
                .put(&header.emit_compact().expect("the length is 0")),
        }
        poll_fn(|cx| {
            loop {
                match self.poll_next(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(ClientError::Closed)) => return Poll::Ready(Ok(())),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                }
            }
        })
        .await
    }
}

/// Names and descriptions of all exports of a server.
///
/// # Errors
/// If there is no server, or it does not tell.
pub async fn list(uri: &Uri) -> Result<Vec<super::export::ExportSummary>, ClientError> {
    let mut stream = open(uri).await?;
    negotiate::list(&mut stream, &mut ReceiveBuffer::new()).await
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("facts", &self.facts)
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}

async fn open(uri: &Uri) -> Result<UnixStream, ClientError> {
    match uri.socket() {
        Some(path) if !uri.tls => Ok(UnixStream::connect(path).await?),
        _ => Err(ClientError::Unsupported(uri.clone())),
    }
}

type Expressed = (Command, CommandFlags, u64, u64, Expect);

/// A block request in the words of NBD.
fn express(op: &Op) -> Result<Expressed, ClientError> {
    let fua_flag = |fua: bool| {
        if fua {
            CommandFlags::FUA
        } else {
            CommandFlags::empty()
        }
    };
    let none = CommandFlags::empty();
    let too_long = || ClientError::Unsendable("reads and writes are at most 32 MiB");
    Ok(match *op {
        Op::Read {
            offset_bytes,
            len_bytes,
        }
        | Op::ReadToMerge {
            offset_bytes,
            len_bytes,
        } => {
            if len_bytes > PAYLOAD_MAX_BYTES {
                return Err(too_long());
            }
            let expect = Expect::Data { len_bytes };
            (
                Command::READ,
                none,
                offset_bytes,
                u64::from(len_bytes),
                expect,
            )
        }
        Op::Write {
            offset_bytes,
            ref data,
            fua,
        } => {
            if data.len() > PAYLOAD_MAX_BYTES as usize {
                return Err(too_long());
            }
            (
                Command::WRITE,
                fua_flag(fua),
                offset_bytes,
                data.len() as u64,
                Expect::Nothing,
            )
        }
        Op::Flush => (Command::FLUSH, none, 0, 0, Expect::Nothing),
        Op::Trim {
            offset_bytes,
            len_bytes,
            fua,
        } => (
            Command::TRIM,
            fua_flag(fua),
            offset_bytes,
            len_bytes,
            Expect::Nothing,
        ),
        Op::WriteZeroes {
            offset_bytes,
            len_bytes,
            may_unmap,
            fast_only,
            fua,
        } => {
            let mut flags = fua_flag(fua);
            flags.set(CommandFlags::NO_HOLE, !may_unmap);
            flags.set(CommandFlags::FAST_ZERO, fast_only);
            (
                Command::WRITE_ZEROES,
                flags,
                offset_bytes,
                len_bytes,
                Expect::Nothing,
            )
        }
        Op::BlockStatus {
            offset_bytes,
            len_bytes,
        } => (
            Command::BLOCK_STATUS,
            none,
            offset_bytes,
            len_bytes,
            Expect::Extents,
        ),
        Op::Cache {
            offset_bytes,
            len_bytes,
        } => (
            Command::CACHE,
            none,
            offset_bytes,
            len_bytes,
            Expect::Nothing,
        ),
    })
}

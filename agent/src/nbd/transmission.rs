//! The transmission phase of one connection, without sockets (NBD `proto.md`, Transmission).
//!
//! ```text
//! Header --+-> (submitted or refused) -> Header
//!          +-> Payload -> (submitted) -> Header      WRITE, BLOCK_STATUS with a list of contexts
//!          +-> Drain   -> (refused)   -> Header      a refused request that carries a payload
//!          +-> Ended                                 DISC, or stopped by us
//! ```
//!
//! Every request that was taken is answered exactly once: refused here, or submitted under the number
//! of its slot and answered by [`Transmission::complete`]. A FLUSH is submitted where it stands among
//! the requests; everything that was answered before it has been completed by the device before, so
//! the device's own promise is the protocol's. Flushes of several connections are joined further down,
//! where all of them are seen.

use berth_iobuf::{Payload, ReceiveBuffer, SendQueue};
use slab::Slab;

use super::check::{Refusal, Rules, check_status_range};
use super::handshake::{BASE_ALLOCATION_ID, Negotiated, ReplyMode};
use super::reply::{Replier, To, errno};
use super::status::{self, Shape};
use super::wire::request::{COMPACT_BYTES, Command, EXTENDED_BYTES, RequestHeader, StatusPayload};
use super::wire::{CommandFlags, EXTENTS_MAX, MagicError, reply::Errno};
use crate::block::{Completion, Error as BlockError, Geometry, Op, Output, Request};

/// Longest payload of a refused request that is read and thrown away, in bytes: all that a compact
/// header can announce. A client that announces more is not coming back in step.
const DRAIN_MAX_BYTES: u64 = u32::MAX as u64;

/// Payload is cut from the receive chunk in slices of at least this many bytes (but for the last).
/// Otherwise a client that sends a byte at a time would make a list of 32-byte slices of one byte.
const SLICE_MIN_BYTES: usize = 4096;

/// What a BLOCK_STATUS may bring is accounted for as this many bytes per extent.
const EXTENT_BYTES: usize = 16;

/// Bounds of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests in flight. The kernel's client has up to 128.
    pub requests_max: usize,
    /// Payload of requests in flight and replies not yet sent, in bytes. One request is always
    /// taken when nothing is held, however large.
    pub bytes_max: usize,
    /// Extents in one BLOCK_STATUS reply; a shorter answer than asked for is legal.
    pub extents_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests_max: 256,
            bytes_max: 64 * 1024 * 1024,
            extents_max: 16 * 1024,
        }
    }
}

/// The client broke the protocol so that the connection must be closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The stream is out of step.
    #[error(transparent)]
    Magic(#[from] MagicError),
    /// A payload that is too long even to be thrown away.
    #[error("{command:?} announces a payload of {len_bytes} bytes; 32 MiB are served")]
    PayloadTooLong {
        /// The request.
        command: Command,
        /// The announced length.
        len_bytes: u64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    /// Answered without data; `writes` as in [`errno`].
    Plain {
        writes: bool,
    },
    Status {
        one: bool,
    },
}

/// What is kept of a request in flight.
#[derive(Debug, Clone, Copy)]
struct Slot {
    to: To,
    len_bytes: u64,
    kind: Kind,
    /// Bytes accounted for.
    cost: usize,
}

#[derive(Debug)]
enum State {
    Header,
    /// The payload of a request that was admitted; its cost is accounted for.
    Payload {
        header: RequestHeader,
        left: usize,
        data: Payload,
    },
    Drain {
        to: To,
        left: u64,
        refusal: Refusal,
    },
    Ended,
}

/// One connection's requests and replies.
#[derive(Debug)]
pub struct Transmission {
    rules: Rules,
    limits: Limits,
    state: State,
    slots: Slab<Slot>,
    /// Bytes accounted for, of slots and of the payload being received.
    held_bytes: usize,
    /// The next request waits for room.
    blocked: bool,
    replier: Replier,
}

impl Transmission {
    /// Starts after a negotiation.
    #[must_use]
    pub fn new(negotiated: &Negotiated, limits: Limits) -> Self {
        Self {
            rules: Rules::new(negotiated),
            limits: Limits {
                requests_max: limits.requests_max.max(1),
                extents_max: limits.extents_max.clamp(1, EXTENTS_MAX),
                ..limits
            },
            state: State::Header,
            slots: Slab::new(),
            held_bytes: 0,
            blocked: false,
            replier: Replier::new(negotiated.mode),
        }
    }

    /// Requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.slots.len()
    }

    /// Whether more input is of use now. False at a bound (until something completes or is sent) and
    /// after the end.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        !self.blocked && !self.is_ended()
    }

    /// Whether no more requests are taken.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// Bytes that a message which has begun still lacks, or its header, with `unread_bytes` of input left; 0 at
    /// a message boundary. A header that has come may ask for more.
    #[must_use]
    pub fn rest_of_message(&self, unread_bytes: usize) -> usize {
        match &self.state {
            State::Header if unread_bytes == 0 => 0,
            State::Header => {
                let header_len = if self.rules.mode == ReplyMode::Extended {
                    EXTENDED_BYTES
                } else {
                    COMPACT_BYTES
                };
                header_len.saturating_sub(unread_bytes)
            }
            State::Payload { left, .. } => left.saturating_sub(unread_bytes),
            State::Drain { left, .. } => usize::try_from(*left).unwrap_or(usize::MAX),
            State::Ended => 0,
        }
    }

    /// Takes no more requests; one that has arrived in part is forgotten, as if the client had
    /// been cut off before it.
    pub fn end(&mut self) {
        self.state = State::Ended;
    }

    /// Takes what has arrived, request by request, until input runs out or a bound is reached.
    /// Refusals are queued to `out`; all others are given to `submit`.
    ///
    /// # Errors
    /// If the client broke the protocol; what is in flight still completes.
    pub fn handle_input(
        &mut self,
        input: &mut ReceiveBuffer,
        out: &mut SendQueue,
        device: &Geometry,
        mut submit: impl FnMut(Request),
    ) -> Result<(), Error> {
        self.blocked = false;
        loop {
            match &mut self.state {
                State::Ended => return Ok(()),
                State::Header => {
                    if !self.on_header(input, out, device, &mut submit)? {
                        return Ok(());
                    }
                }
                State::Drain { to, left, refusal } => {
                    let now = usize::try_from(*left).map_or(input.len(), |n| n.min(input.len()));
                    input.skip(now);
                    *left -= now as u64;
                    if *left > 0 {
                        return Ok(());
                    }
                    let (to, refusal) = (*to, *refusal);
                    self.state = State::Header;
                    self.replier.error(to, refusal.errno, refusal.text, out);
                }
                State::Payload { header, left, data } => {
                    let now = input.len().min(*left);
                    if now < (*left).min(SLICE_MIN_BYTES) {
                        return Ok(());
                    }
                    data.push(input.take(now));
                    *left -= now;
                    if *left > 0 {
                        return Ok(());
                    }
                    let (header, data) = (*header, std::mem::take(data));
                    self.state = State::Header;
                    self.on_payload(header, data, out, device, &mut submit);
                }
            }
        }
    }

    /// Takes a request header. False: more input or more room is needed.
    fn on_header(
        &mut self,
        input: &mut ReceiveBuffer,
        out: &mut SendQueue,
        device: &Geometry,
        submit: &mut impl FnMut(Request),
    ) -> Result<bool, Error> {
        let extended = self.rules.mode == ReplyMode::Extended;
        let header_len = if extended {
            EXTENDED_BYTES
        } else {
            COMPACT_BYTES
        };
        if input.len() < header_len {
            return Ok(false);
        }
        let header = if extended {
            RequestHeader::parse_extended(input.bytes())?
        } else {
            RequestHeader::parse_compact(input.bytes())?
        };
        let payload_len = match header.command {
            // With extended headers the flag PAYLOAD_LEN must be set, but QEMU (10.0) leaves it out; a
            // WRITE without data would mean nothing, so it is taken as one with.
            Command::WRITE => header.len_bytes,
            _ if extended && header.flags.contains(CommandFlags::PAYLOAD_LEN) => header.len_bytes,
            _ => 0,
        };
        if header.command == Command::DISC {
            self.state = State::Ended;
            return Ok(false);
        }
        let checked = self.rules.check(&header, device);
        let cost = match checked {
            Ok(()) => self.cost(&header),
            Err(_) => 0,
        };
        if !self.has_room(cost, out.len()) {
            self.blocked = true;
            return Ok(false);
        }
        input.skip(header_len);
        match checked {
            Ok(()) if payload_len > 0 => {
                self.held_bytes += cost;
                self.state = State::Payload {
                    header,
                    left: usize::try_from(payload_len).expect("checked to be at most 32 MiB"),
                    data: Payload::new(),
                };
            }
            Ok(()) => self.start(header, Payload::new(), out, submit),
            Err(refusal) if payload_len == 0 => {
                self.replier
                    .error(to(&header), refusal.errno, refusal.text, out);
            }
            Err(_) if payload_len > DRAIN_MAX_BYTES => {
                return Err(Error::PayloadTooLong {
                    command: header.command,
                    len_bytes: payload_len,
                });
            }
            Err(refusal) => {
                self.state = State::Drain {
                    to: to(&header),
                    left: payload_len,
                    refusal,
                };
            }
        }
        Ok(true)
    }

    fn has_room(&self, cost: usize, unsent: usize) -> bool {
        let held = self.held_bytes + unsent;
        self.slots.len() < self.limits.requests_max
            && (held == 0 || held + cost <= self.limits.bytes_max)
    }

    fn cost(&self, header: &RequestHeader) -> usize {
        match header.command {
            Command::READ | Command::WRITE => {
                usize::try_from(header.len_bytes).expect("checked to be at most 32 MiB")
            }
            Command::BLOCK_STATUS => self.limits.extents_max * EXTENT_BYTES,
            _ => 0,
        }
    }

    /// The payload of an admitted request is there.
    fn on_payload(
        &mut self,
        mut header: RequestHeader,
        data: Payload,
        out: &mut SendQueue,
        device: &Geometry,
        submit: &mut impl FnMut(Request),
    ) {
        self.held_bytes -= self.cost(&header);
        if header.command == Command::BLOCK_STATUS {
            let refusal = match StatusPayload::parse(&data.to_bytes()) {
                Some(payload) if payload.context_ids == [BASE_ALLOCATION_ID] => {
                    header.len_bytes = payload.effect_len_bytes;
                    check_status_range(header.offset_bytes, header.len_bytes, device).err()
                }
                _ => Some(Refusal {
                    errno: Errno::EINVAL,
                    text: "the payload names a context that was not agreed",
                }),
            };
            if let Some(refusal) = refusal {
                self.replier
                    .error(to(&header), refusal.errno, refusal.text, out);
                return;
            }
            self.start(header, Payload::new(), out, submit);
        } else {
            self.start(header, data, out, submit);
        }
    }

    /// Submits a checked request. A length of 0 is answered without I/O (what it means is left open
    /// by the protocol; disconnecting is not allowed).
    fn start(
        &mut self,
        header: RequestHeader,
        data: Payload,
        out: &mut SendQueue,
        submit: &mut impl FnMut(Request),
    ) {
        if header.len_bytes == 0 && header.command != Command::FLUSH {
            self.replier.done(to(&header), out);
            return;
        }
        let RequestHeader {
            flags,
            offset_bytes,
            len_bytes,
            ..
        } = header;
        let fua = flags.contains(CommandFlags::FUA);
        let (kind, op) = match header.command {
            Command::READ => {
                let len_bytes = u32::try_from(len_bytes).expect("checked to be at most 32 MiB");
                (
                    Kind::Read,
                    Op::Read {
                        offset_bytes,
                        len_bytes,
                    },
                )
            }
            Command::WRITE => (
                Kind::Plain { writes: true },
                Op::Write {
                    offset_bytes,
                    data,
                    fua,
                },
            ),
            Command::WRITE_ZEROES => {
                let op = Op::WriteZeroes {
                    offset_bytes,
                    len_bytes,
                    may_unmap: !flags.contains(CommandFlags::NO_HOLE),
                    fast_only: flags.contains(CommandFlags::FAST_ZERO),
                    fua,
                };
                (Kind::Plain { writes: true }, op)
            }
            Command::TRIM => (
                Kind::Plain { writes: false },
                Op::Trim {
                    offset_bytes,
                    len_bytes,
                    fua,
                },
            ),
            Command::CACHE => (
                Kind::Plain { writes: false },
                Op::Cache {
                    offset_bytes,
                    len_bytes,
                },
            ),
            Command::BLOCK_STATUS => {
                let one = flags.contains(CommandFlags::REQ_ONE);
                (
                    Kind::Status { one },
                    Op::BlockStatus {
                        offset_bytes,
                        len_bytes,
                    },
                )
            }
            _ => (Kind::Plain { writes: false }, Op::Flush),
        };
        let cost = self.cost(&header);
        self.held_bytes += cost;
        let id = self.slots.insert(Slot {
            to: to(&header),
            len_bytes,
            kind,
            cost,
        });
        submit(Request { id: id as u64, op });
    }

    /// Answers a request that was submitted.
    pub fn complete(&mut self, completion: Completion, device: &Geometry, out: &mut SendQueue) {
        let slot = usize::try_from(completion.id)
            .ok()
            .and_then(|id| self.slots.try_remove(id));
        let Some(slot) = slot else {
            debug_assert!(false, "completion {} of no request", completion.id);
            tracing::error!(id = completion.id, "a completion belongs to no request");
            return;
        };
        self.held_bytes -= slot.cost;
        match (slot.kind, completion.result) {
            (Kind::Plain { .. }, Ok(Output::Done)) => self.replier.done(slot.to, out),
            (Kind::Read, Ok(Output::Data(data))) if data.len() as u64 == slot.len_bytes => {
                self.replier.data(slot.to, &data, out);
            }
            (Kind::Status { one }, Ok(Output::Extents(extents))) => {
                self.status(&slot, one, &extents, device, out);
            }
            // The state of a range is advice: when it cannot be told, "data" is true enough.
            (Kind::Status { one }, Err(BlockError::NotSupported | BlockError::Medium)) => {
                self.status(&slot, one, &[], device, out);
            }
            (kind, Err(error)) => {
                let writes = matches!(kind, Kind::Plain { writes: true });
                let text = error.to_string();
                self.replier
                    .error(slot.to, errno(error, writes), &text, out);
            }
            (kind, Ok(output)) => {
                tracing::error!(?kind, ?output, "the device answered something else");
                let text = "the device answered something else";
                self.replier.error(slot.to, Errno::EIO, text, out);
            }
        }
    }

    fn status(
        &mut self,
        slot: &Slot,
        one: bool,
        extents: &[crate::block::Extent],
        device: &Geometry,
        out: &mut SendQueue,
    ) {
        // A device that shrank meanwhile must not make the reply empty.
        let to_end_bytes = device
            .size_bytes
            .saturating_sub(slot.to.offset_bytes)
            .max(slot.len_bytes);
        let shape = Shape {
            len_bytes: slot.len_bytes,
            to_end_bytes,
            one,
            wide: self.rules.mode == ReplyMode::Extended,
            extents_max: self.limits.extents_max,
        };
        let told = status::shape(extents, shape);
        self.replier.status(slot.to, told, out);
    }
}

fn to(header: &RequestHeader) -> To {
    To {
        cookie: header.cookie,
        offset_bytes: header.offset_bytes,
    }
}

#[cfg(test)]
#[path = "transmission_bench.rs"]
mod bench;
#[cfg(test)]
#[path = "transmission_tests.rs"]
mod tests;

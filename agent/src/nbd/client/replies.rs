//! Replies as a client sees them, without sockets: of any style, in any order, in many chunks.

use berth_iobuf::{Payload, ReceiveBuffer};
use slab::Slab;

use super::{ClientError, Completed, RequestError, Token};
use crate::block::{Extent, Output};
use crate::nbd::handshake::ReplyMode;
use crate::nbd::wire::chunk::{AllocationFlags, ErrorChunk, Hole, StatusChunk};
use crate::nbd::wire::reply::{
    ChunkHeader, ChunkType, EXTENDED_BYTES, Errno, SIMPLE_BYTES, STRUCTURED_BYTES, SimpleReply,
};
use crate::nbd::wire::{ChunkFlags, EXTENTS_MAX, SIMPLE_REPLY_MAGIC, STRING_MAX_BYTES, be32};

/// Data is cut from the receive chunk in slices of at least this many bytes (but for the last).
const SLICE_MIN_BYTES: usize = 4096;

/// What the answer to a request brings when it succeeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Nothing,
    /// That much data.
    Data {
        /// Length in bytes.
        len_bytes: u32,
    },
    /// Extents.
    Extents,
}

#[derive(Debug)]
struct Pending {
    cookie: u64,
    offset_bytes: u64,
    expect: Expect,
    /// Data by offset within the request, in the order received.
    pieces: Vec<(u64, Payload)>,
    extents: Vec<Extent>,
    error: Option<RequestError>,
}

/// Where data goes that is being received.
#[derive(Debug)]
struct Receiving {
    index: usize,
    /// Offset within the request.
    at: u64,
    left: usize,
    data: Payload,
    done: bool,
}

/// Puts replies together.
#[derive(Debug)]
pub struct Replies {
    mode: ReplyMode,
    pending: Slab<Pending>,
    /// Makes cookies differ over time, so that a reply that comes twice is noticed.
    generation: u32,
    receiving: Option<Receiving>,
}

impl Replies {
    /// Expects replies of this style.
    #[must_use]
    pub fn new(mode: ReplyMode) -> Self {
        Self {
            mode,
            pending: Slab::new(),
            generation: 0,
            receiving: None,
        }
    }

    /// Requests without an answer.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Notes a request; gives the cookie to send.
    pub fn expect(&mut self, offset_bytes: u64, expect: Expect) -> u64 {
        let entry = self.pending.vacant_entry();
        let index = u32::try_from(entry.key()).expect("fewer than 2^32 requests fit in memory");
        let cookie = u64::from(self.generation) << 32 | u64::from(index);
        self.generation = self.generation.wrapping_add(1);
        entry.insert(Pending {
            cookie,
            offset_bytes,
            expect,
            pieces: Vec::new(),
            extents: Vec::new(),
            error: None,
        });
        cookie
    }

    /// Takes what has arrived.
    ///
    /// # Errors
    /// If the server broke the protocol.
    pub fn handle_input(
        &mut self,
        input: &mut ReceiveBuffer,
        mut completed: impl FnMut(Completed),
    ) -> Result<(), ClientError> {
        loop {
            let more = match self.receiving.take() {
                Some(receiving) => self.on_data(receiving, input, &mut completed)?,
                None => self.on_header(input, &mut completed)?,
            };
            if !more {
                return Ok(());
            }
        }
    }

    fn on_data(
        &mut self,
        mut receiving: Receiving,
        input: &mut ReceiveBuffer,
        completed: &mut impl FnMut(Completed),
    ) -> Result<bool, ClientError> {
        let now = input.len().min(receiving.left);
        if now >= receiving.left.min(SLICE_MIN_BYTES) {
            receiving.data.push(input.take(now));
            receiving.left -= now;
        }
        if receiving.left > 0 {
            self.receiving = Some(receiving);
            return Ok(false);
        }
        let pending = &mut self.pending[receiving.index];
        pending.pieces.push((receiving.at, receiving.data));
        if receiving.done {
            self.finish(receiving.index, completed)?;
        }
        Ok(true)
    }

    fn on_header(
        &mut self,
        input: &mut ReceiveBuffer,
        completed: &mut impl FnMut(Completed),
    ) -> Result<bool, ClientError> {
        if input.len() < SIMPLE_BYTES {
            return Ok(false);
        }
        // Structured style allows simple replies where there is no data.
        if self.mode != ReplyMode::Extended && be32(input.bytes(), 0) == SIMPLE_REPLY_MAGIC {
            let reply = SimpleReply::parse(input.bytes())?;
            input.skip(SIMPLE_BYTES);
            return self.on_simple(reply, completed).map(|()| true);
        }
        let header_len = match self.mode {
            ReplyMode::Extended => EXTENDED_BYTES,
            _ => STRUCTURED_BYTES,
        };
        if input.len() < header_len {
            return Ok(false);
        }
        let header = match self.mode {
            ReplyMode::Extended => ChunkHeader::parse_extended(input.bytes())?,
            ReplyMode::Structured => ChunkHeader::parse_structured(input.bytes())?,
            ReplyMode::Simple => {
                SimpleReply::parse(input.bytes())?;
                return Err(ClientError::Violation("a chunk that was not agreed"));
            }
        };
        let index = self.index(header.cookie)?;
        self.on_chunk(index, header, header_len, input, completed)
    }

    fn on_simple(
        &mut self,
        reply: SimpleReply,
        completed: &mut impl FnMut(Completed),
    ) -> Result<(), ClientError> {
        let index = self.index(reply.cookie)?;
        let pending = &mut self.pending[index];
        if reply.errno != Errno::OK {
            pending.error = Some(RequestError {
                errno: reply.errno,
                message: String::new(),
            });
        } else if let Expect::Data { len_bytes } = pending.expect {
            if self.mode != ReplyMode::Simple {
                return Err(ClientError::Violation(
                    "a simple reply to a structured READ",
                ));
            }
            self.receiving = Some(Receiving {
                index,
                at: 0,
                left: len_bytes as usize,
                data: Payload::new(),
                done: true,
            });
            return Ok(());
        }
        self.finish(index, completed)
    }

    fn on_chunk(
        &mut self,
        index: usize,
        header: ChunkHeader,
        header_len: usize,
        input: &mut ReceiveBuffer,
        completed: &mut impl FnMut(Completed),
    ) -> Result<bool, ClientError> {
        let done = header.flags.contains(ChunkFlags::DONE);
        let pending = &mut self.pending[index];
        if self.mode == ReplyMode::Extended && header.offset_bytes != pending.offset_bytes {
            return Err(ClientError::Violation(
                "the offset is not that of the request",
            ));
        }
        let len = usize::try_from(header.len_bytes).unwrap_or(usize::MAX);
        if header.chunk_type == ChunkType::OFFSET_DATA {
            if input.len() < header_len + 8 {
                return Ok(false);
            }
            let offset = crate::nbd::wire::be64(input.bytes(), header_len);
            let left = len
                .checked_sub(8)
                .filter(|left| *left > 0)
                .ok_or(ClientError::Violation("an empty data chunk"))?;
            let at = within(pending, offset, left as u64)?;
            input.skip(header_len + 8);
            self.receiving = Some(Receiving {
                index,
                at,
                left,
                data: Payload::new(),
                done,
            });
            return Ok(true);
        }
        let len_max = match header.chunk_type {
            ChunkType::NONE => 0,
            ChunkType::OFFSET_HOLE => Hole::BYTES,
            ChunkType::BLOCK_STATUS | ChunkType::BLOCK_STATUS_EXT => {
                StatusChunk::len_bytes(header.chunk_type, EXTENTS_MAX)
            }
            _ => STRING_MAX_BYTES + 64,
        };
        if len > len_max {
            return Err(ClientError::Violation(
                "a chunk is longer than its type can be",
            ));
        }
        if input.len() < header_len + len {
            return Ok(false);
        }
        input.skip(header_len);
        let payload = input.take(len);
        match header.chunk_type {
            ChunkType::NONE if done => {}
            ChunkType::NONE => {
                return Err(ClientError::Violation("an empty chunk is not the last"));
            }
            ChunkType::OFFSET_HOLE => {
                let hole = Hole::parse(&payload)
                    .ok_or(ClientError::Violation("a hole chunk is malformed"))?;
                let at = within(pending, hole.offset_bytes, u64::from(hole.len_bytes))?;
                pending
                    .pieces
                    .push((at, Payload::zeroes(hole.len_bytes as usize)));
            }
            ChunkType::BLOCK_STATUS | ChunkType::BLOCK_STATUS_EXT => {
                let status = StatusChunk::parse(header.chunk_type, &payload)
                    .ok_or(ClientError::Violation("a block status chunk is malformed"))?;
                if pending.expect != Expect::Extents || !pending.extents.is_empty() {
                    return Err(ClientError::Violation(
                        "block status that was not asked for",
                    ));
                }
                pending.extents = status
                    .extents
                    .iter()
                    .map(|extent| Extent {
                        len_bytes: extent.len_bytes,
                        hole: extent.flags.contains(AllocationFlags::HOLE),
                        zero: extent.flags.contains(AllocationFlags::ZERO),
                    })
                    .collect();
            }
            kind if kind.is_error() => {
                let error = ErrorChunk::parse(kind, &payload)
                    .ok_or(ClientError::Violation("an error chunk is malformed"))?;
                pending.error = Some(RequestError {
                    errno: error.errno,
                    message: error.message,
                });
            }
            _ => return Err(ClientError::Violation("a chunk of an unknown type")),
        }
        if done {
            self.finish(index, completed)?;
        }
        Ok(true)
    }

    fn index(&self, cookie: u64) -> Result<usize, ClientError> {
        let index = (cookie & 0xffff_ffff) as usize;
        match self.pending.get(index) {
            Some(pending) if pending.cookie == cookie => Ok(index),
            _ => Err(ClientError::Violation("a reply to no request")),
        }
    }

    fn finish(
        &mut self,
        index: usize,
        completed: &mut impl FnMut(Completed),
    ) -> Result<(), ClientError> {
        let pending = self.pending.remove(index);
        let result = match (pending.error, pending.expect) {
            (Some(error), _) => Err(error),
            (None, Expect::Nothing) => Ok(Output::Done),
            (None, Expect::Data { len_bytes }) => {
                Ok(Output::Data(join(pending.pieces, u64::from(len_bytes))?))
            }
            (None, Expect::Extents) if pending.extents.is_empty() => {
                return Err(ClientError::Violation("a block status without extents"));
            }
            (None, Expect::Extents) => Ok(Output::Extents(pending.extents)),
        };
        completed(Completed {
            token: Token(pending.cookie),
            result,
        });
        Ok(())
    }
}

/// The place of a content chunk in its request.
fn within(pending: &Pending, offset_bytes: u64, len: u64) -> Result<u64, ClientError> {
    let Expect::Data { len_bytes } = pending.expect else {
        return Err(ClientError::Violation("data that was not asked for"));
    };
    let at = offset_bytes.checked_sub(pending.offset_bytes);
    at.filter(|at| {
        at.checked_add(len)
            .is_some_and(|end| end <= u64::from(len_bytes))
    })
    .ok_or(ClientError::Violation("data outside the request"))
}

/// Content chunks in order: they must cover the request without a gap or an overlap.
fn join(mut pieces: Vec<(u64, Payload)>, len: u64) -> Result<Payload, ClientError> {
    pieces.sort_by_key(|(at, _)| *at);
    let mut data = Payload::new();
    for (at, piece) in pieces {
        if at != data.len() as u64 {
            return Err(ClientError::Violation("data with a gap or an overlap"));
        }
        data.append(piece);
    }
    if data.len() as u64 != len {
        return Err(ClientError::Violation("less data than was asked for"));
    }
    Ok(data)
}

#[cfg(test)]
#[path = "replies_tests.rs"]
mod tests;

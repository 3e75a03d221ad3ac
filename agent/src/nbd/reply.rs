//! Replies in the style that was agreed: simple, structured or extended (NBD `proto.md`, Transmission
//! phase).

use berth_iobuf::{Payload, SendQueue};

use super::handshake::{BASE_ALLOCATION_ID, ReplyMode};
use super::wire::ChunkFlags;
use super::wire::chunk::{Hole, StatusChunk, StatusExtent, emit_error};
use super::wire::reply::{ChunkHeader, ChunkType, Errno, SimpleReply};
use crate::block;

/// Which request a reply belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct To {
    /// Cookie of the request.
    pub cookie: u64,
    /// Offset of the request in bytes; extended replies repeat it.
    pub offset_bytes: u64,
}

/// Emits replies; each call emits one whole reply.
#[derive(Debug)]
pub struct Replier {
    mode: ReplyMode,
    scratch: Vec<u8>,
}

impl Replier {
    /// Replies in this style.
    #[must_use]
    pub fn new(mode: ReplyMode) -> Self {
        Self {
            mode,
            scratch: Vec::new(),
        }
    }

    /// Success without data.
    ///
    /// In structured mode this is a chunk, although a simple reply would be legal and four bytes
    /// shorter: one style per connection is what clients test.
    pub fn done(&mut self, to: To, out: &mut SendQueue) {
        match self.mode {
            ReplyMode::Simple => simple(to, Errno::OK, out),
            _ => self.chunk(to, ChunkType::NONE, 0, out),
        }
    }

    /// The data of a READ, whole. Never empty in structured style; see [`Replier::done`].
    ///
    /// Data that is all zeroes leaves as OFFSET_HOLE where the style has one: looking at it stops at the
    /// first other byte, which costs nothing for ordinary data, and reading 4 KiB of zeroes is an order of
    /// magnitude cheaper than sending them. One look at the whole, one content chunk: so DF is
    /// honoured by construction, at any length.
    pub fn data(&mut self, to: To, data: &Payload, out: &mut SendQueue) {
        if self.mode == ReplyMode::Simple {
            simple(to, Errno::OK, out);
            out.put_payload(data);
        } else if data.is_empty() {
            self.done(to, out);
        } else if data.is_all_zero() {
            let hole = Hole {
                offset_bytes: to.offset_bytes,
                len_bytes: u32::try_from(data.len()).expect("reads are at most 32 MiB"),
            };
            self.chunk(to, ChunkType::OFFSET_HOLE, Hole::BYTES as u64, out);
            out.put(&hole.emit());
        } else {
            self.chunk(to, ChunkType::OFFSET_DATA, 8 + data.len() as u64, out);
            out.put(&to.offset_bytes.to_be_bytes());
            out.put_payload(data);
        }
    }

    /// The extents of a BLOCK_STATUS for `base:allocation`.
    pub fn status(&mut self, to: To, extents: Vec<StatusExtent>, out: &mut SendQueue) {
        let chunk_type = match self.mode {
            ReplyMode::Extended => ChunkType::BLOCK_STATUS_EXT,
            _ => ChunkType::BLOCK_STATUS,
        };
        let len = StatusChunk::len_bytes(chunk_type, extents.len());
        self.chunk(to, chunk_type, len as u64, out);
        let chunk = StatusChunk {
            context_id: BASE_ALLOCATION_ID,
            extents,
        };
        chunk.emit(chunk_type, out);
    }

    /// Failure. The text is for people and travels where the style has room for it.
    pub fn error(&mut self, to: To, errno: Errno, text: &str, out: &mut SendQueue) {
        if self.mode == ReplyMode::Simple {
            simple(to, errno, out);
        } else {
            self.scratch.clear();
            emit_error(errno, text, &mut self.scratch);
            let len = self.scratch.len() as u64;
            self.chunk(to, ChunkType::ERROR, len, out);
            out.put(&self.scratch);
        }
    }

    /// Every reply of ours is one chunk, so every chunk is the last one.
    fn chunk(&self, to: To, chunk_type: ChunkType, len_bytes: u64, out: &mut SendQueue) {
        let header = ChunkHeader {
            flags: ChunkFlags::DONE,
            chunk_type,
            cookie: to.cookie,
            offset_bytes: to.offset_bytes,
            len_bytes,
        };
        if self.mode == ReplyMode::Extended {
            header.emit_extended(out);
        } else {
            header.emit_structured(out);
        }
    }
}

fn simple(to: To, errno: Errno, out: &mut SendQueue) {
    let reply = SimpleReply {
        errno,
        cookie: to.cookie,
    };
    out.put(&reply.emit());
}

/// The error number for a failure of the device (`proto.md`, Error values). `writes`: the request
/// was a WRITE or WRITE_ZEROES, for which running past the end is a lack of space.
#[must_use]
pub fn errno(error: block::Error, writes: bool) -> Errno {
    match error {
        block::Error::OutOfRange if writes => Errno::ENOSPC,
        block::Error::OutOfRange | block::Error::Invalid => Errno::EINVAL,
        // Fenced off is "not permitted" rather than a failure of the medium: nothing is broken, and
        // trying again does not help.
        block::Error::ReadOnly | block::Error::Fenced => Errno::EPERM,
        block::Error::NoSpace => Errno::ENOSPC,
        block::Error::Medium | block::Error::Unavailable => Errno::EIO,
        block::Error::NotSupported => Errno::ENOTSUP,
        block::Error::Gone => Errno::ESHUTDOWN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    const TO: To = To {
        cookie: 0x11,
        offset_bytes: 0x200,
    };

    fn bytes(mode: ReplyMode, emit: impl FnOnce(&mut Replier, &mut SendQueue)) -> Vec<u8> {
        let mut out = SendQueue::new();
        emit(&mut Replier::new(mode), &mut out);
        out.to_vec()
    }

    const SIMPLE_OK: [u8; 16] = [
        0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x11,
    ];

    #[test]
    fn simple_replies() {
        let data = Payload::from(vec![7, 8, 9]);
        assert_eq!(
            bytes(ReplyMode::Simple, |r, out| r.done(TO, out)),
            SIMPLE_OK
        );
        assert_eq!(
            bytes(ReplyMode::Simple, |r, out| r.data(TO, &data, out)),
            [&SIMPLE_OK[..], &[7, 8, 9]].concat()
        );
        let error = bytes(ReplyMode::Simple, |r, out| {
            r.error(TO, Errno::EIO, "lost", out);
        });
        assert_eq!(error[4..8], [0, 0, 0, 5]);
        assert_eq!(error.len(), 16, "a simple reply has no room for a text");
        let zeroes = Payload::zeroes(64);
        let reply = bytes(ReplyMode::Simple, |r, out| r.data(TO, &zeroes, out));
        assert_eq!(reply.len(), 16 + 64, "nor for holes");
    }

    #[test]
    fn structured_replies() {
        let header = |kind: [u8; 2], len: u8| {
            let mut bytes = vec![0x66, 0x8e, 0x33, 0xef, 0, 1, kind[0], kind[1]];
            bytes.extend([0, 0, 0, 0, 0, 0, 0, 0x11, 0, 0, 0, len]);
            bytes
        };
        let offset = [0, 0, 0, 0, 0, 0, 2, 0];
        assert_eq!(
            bytes(ReplyMode::Structured, |r, out| r.done(TO, out)),
            header([0, 0], 0)
        );
        let data = Payload::from(vec![7, 8, 9]);
        assert_eq!(
            bytes(ReplyMode::Structured, |r, out| r.data(TO, &data, out)),
            [&header([0, 1], 11)[..], &offset, &[7, 8, 9]].concat()
        );
        assert_eq!(
            bytes(ReplyMode::Structured, |r, out| r.data(
                TO,
                &Payload::zeroes(5),
                out
            )),
            [&header([0, 2], 12)[..], &offset, &[0, 0, 0, 5]].concat()
        );
        assert_eq!(
            bytes(ReplyMode::Structured, |r, out| r.data(
                TO,
                &Payload::new(),
                out
            )),
            header([0, 0], 0),
            "OFFSET_DATA must not be empty"
        );
        assert_eq!(
            bytes(ReplyMode::Structured, |r, out| r.error(
                TO,
                Errno::EPERM,
                "no",
                out
            )),
            [&header([0x80, 1], 8)[..], &[0, 0, 0, 1, 0, 2, b'n', b'o']].concat()
        );
    }

    #[test]
    fn extended_replies_repeat_the_offset() {
        let reply = bytes(ReplyMode::Extended, |r, out| r.done(TO, out));
        assert_eq!(reply.len(), 32);
        assert_eq!(
            ChunkHeader::parse_extended(&reply).unwrap(),
            ChunkHeader {
                flags: ChunkFlags::DONE,
                chunk_type: ChunkType::NONE,
                cookie: 0x11,
                offset_bytes: 0x200,
                len_bytes: 0,
            }
        );
    }

    #[test]
    fn payload_leaves_by_reference() {
        let data = Bytes::from(vec![1; 4096]);
        let mut out = SendQueue::new();
        Replier::new(ReplyMode::Structured).data(TO, &Payload::from(data.clone()), &mut out);
        let mut slices = Vec::new();
        out.io_slices(&mut slices);
        assert_eq!(slices[1].as_ptr(), data.as_ptr());
    }

    // proto.md, Error values.
    #[test]
    fn every_device_error_has_a_number_of_the_protocol() {
        use block::Error;
        assert_eq!(errno(Error::OutOfRange, true), Errno::ENOSPC);
        assert_eq!(errno(Error::OutOfRange, false), Errno::EINVAL);
        assert_eq!(errno(Error::Invalid, true), Errno::EINVAL);
        assert_eq!(errno(Error::ReadOnly, true), Errno::EPERM);
        assert_eq!(errno(Error::Fenced, false), Errno::EPERM);
        assert_eq!(errno(Error::NoSpace, false), Errno::ENOSPC);
        assert_eq!(errno(Error::Medium, false), Errno::EIO);
        assert_eq!(errno(Error::Unavailable, true), Errno::EIO);
        assert_eq!(errno(Error::NotSupported, true), Errno::ENOTSUP);
        assert_eq!(errno(Error::Gone, false), Errno::ESHUTDOWN);
    }
}

//! Bytes to whole, checked PDUs, and PDUs to bytes.
//!
//! ```text
//!            48 bytes           whole data here             all data here
//!  Header ---------------> . --------------------> Frame <------------------ Data
//!                          |                                                  ^ | more data
//!                          +--------------------------------------------------+-+
//!                            part of the data is here
//! ```
//!
//! A header waits in the receive buffer until it is complete, at most 1072 bytes. Data is cut out of
//! the buffer as it comes, so a PDU may be larger than any buffer and nothing is copied.

use berth_iobuf::{Payload, ReceiveBuffer, SendQueue};
use bytes::Bytes;

use super::bhs::{BHS_LEN, Bhs, padded};
use super::digest::{Crc32c, DIGEST_LEN, Digests, crc32c};
use crate::error::{DigestError, Error};
use crate::mutation::{Mutation, is_planted};

/// Limit on a data segment before and during login, in bytes (RFC 7143 13.12).
pub const LOGIN_DATA_LEN_MAX_BYTES: u32 = 8192;

/// A part of a data segment shorter than this waits in the buffer for more. Otherwise a peer that
/// sends single bytes could make us keep a slice, some forty bytes, for each of them.
const PART_MIN_BYTES: usize = 4096;

/// A whole PDU, with lengths and digests checked, not yet interpreted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The basic header segment.
    pub bhs: Bhs,
    /// All additional header segments; nearly always empty.
    pub ahs: Bytes,
    /// The data segment without padding.
    pub data: Payload,
}

impl Frame {
    /// Appends the PDU to `out`, with the length fields set to what `ahs` and `data` have.
    ///
    /// # Panics
    /// If there are more than 1020 bytes of additional headers, or not a multiple of four, or more
    /// than 16 MiB - 1 of data.
    pub fn emit(&self, out: &mut SendQueue, digests: Digests) {
        emit(out, self.bhs, &self.ahs, &self.data, digests);
    }
}

/// What a [`Decoder`] has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// PDUs that were complete and whose digests matched.
    pub pdus: u64,
    /// Header digests that were compared.
    pub header_digests: u64,
    /// Data digests that were compared.
    pub data_digests: u64,
    /// Header digests that did not match; at most one.
    pub header_digest_errors: u64,
    /// Data digests that did not match.
    pub data_digest_errors: u64,
}

/// Cuts the bytes of one connection into [`Frame`]s.
#[derive(Debug)]
pub struct Decoder {
    digests: Digests,
    data_len_max_bytes: u32,
    state: State,
    damaged: Option<Frame>,
    counters: Counters,
}

#[derive(Debug)]
enum State {
    Header,
    Data(Pending),
    /// Where the next PDU starts is unknown; nothing can be read any more.
    Failed(Error),
}

/// A PDU whose data is still coming.
#[derive(Debug)]
struct Pending {
    frame: Frame,
    /// Data bytes that did not come yet, without padding.
    left: usize,
    crc: Crc32c,
    /// Whether a digest follows: fixed when the header was read.
    digest: bool,
}

impl Default for Decoder {
    /// As in login: no digests, data segments up to 8192 bytes.
    fn default() -> Self {
        Self::new(Digests::NONE, LOGIN_DATA_LEN_MAX_BYTES)
    }
}

impl Decoder {
    /// A decoder that stands before the first byte of a PDU. `data_len_max_bytes` is the longest data
    /// segment that we declared to take (MaxRecvDataSegmentLength).
    #[must_use]
    pub fn new(digests: Digests, data_len_max_bytes: u32) -> Self {
        Self {
            digests,
            data_len_max_bytes,
            state: State::Header,
            damaged: None,
            counters: Counters::default(),
        }
    }

    /// Changes what [`Decoder::new`] was told.
    ///
    /// Holds from the next header on: call it between the last frame of the login and the next
    /// [`Decoder::next`].
    pub fn configure(&mut self, digests: Digests, data_len_max_bytes: u32) {
        self.digests = digests;
        self.data_len_max_bytes = data_len_max_bytes;
    }

    /// The digests in force.
    #[must_use]
    pub fn digests(&self) -> Digests {
        self.digests
    }

    /// What was seen so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Whether the peer is in the middle of a PDU; a connection that ends now ends too early.
    #[must_use]
    pub fn is_mid_pdu(&self, input: &ReceiveBuffer) -> bool {
        matches!(self.state, State::Data(_)) || !input.is_empty()
    }

    /// The PDU whose data digest did not match, without its data, once after that error.
    pub fn take_damaged(&mut self) -> Option<Frame> {
        self.damaged.take()
    }

    /// Takes the next PDU out of `input`; `None` when more bytes are needed. Call it until it says so.
    ///
    /// # Errors
    /// - [`DigestError::Data`]: this PDU is lost and [`Decoder::take_damaged`] has its header; the
    ///   next call goes on with the next PDU.
    /// - [`DigestError::Header`] and [`Error::Malformed`]: the framing is lost; every further call
    ///   gives the same error.
    pub fn next(&mut self, input: &mut ReceiveBuffer) -> Result<Option<Frame>, Error> {
        match &self.state {
            State::Header => self.header(input),
            State::Data(_) => self.rest(input),
            State::Failed(error) => Err(error.clone()),
        }
    }

    fn header(&mut self, input: &mut ReceiveBuffer) -> Result<Option<Frame>, Error> {
        let bytes = input.bytes();
        let Some(bhs) = bytes.first_chunk::<BHS_LEN>() else {
            return Ok(None);
        };
        let bhs = Bhs(*bhs);
        let ahs_len = bhs.ahs_len_bytes();
        let covered = BHS_LEN + ahs_len;
        // Without a digest the lengths are all we can go by, and need no further bytes to be refused.
        if !self.digests.header {
            self.check_lengths(&bhs)?;
        }
        if bytes.len() < covered + self.digests.header_len() {
            return Ok(None);
        }
        if self.digests.header {
            let computed = crc32c(&bytes[..covered]);
            let got = wire_digest(&bytes[covered..]);
            self.counters.header_digests += 1;
            if got != computed {
                self.counters.header_digest_errors += 1;
                return Err(self.fail(Error::Digest(DigestError::Header { got, computed })));
            }
            self.check_lengths(&bhs)?;
        }
        let ahs = if ahs_len == 0 {
            input.skip(BHS_LEN + self.digests.header_len());
            Bytes::new()
        } else {
            input.skip(BHS_LEN);
            let ahs = input.take(ahs_len);
            input.skip(self.digests.header_len());
            ahs
        };
        let mut frame = Frame {
            bhs,
            ahs,
            data: Payload::new(),
        };
        let data_len = bhs.data_len_bytes();
        if data_len == 0 {
            self.counters.pdus += 1;
            return Ok(Some(frame));
        }
        let on_wire = padded(data_len) + self.digests.data_len();
        if input.len() < on_wire {
            self.state = State::Data(Pending {
                frame,
                left: data_len,
                crc: Crc32c::new(),
                digest: self.digests.data,
            });
            return self.rest(input);
        }
        let bytes = input.bytes();
        let digests = self.digests.data.then(|| {
            let (data, digest) = bytes.split_at(padded(data_len));
            (wire_digest(digest), crc32c(data))
        });
        frame.data.push(input.take(data_len));
        input.skip(on_wire - data_len);
        self.finish(frame, digests)
    }

    /// Goes on with a PDU whose data did not come at once.
    fn rest(&mut self, input: &mut ReceiveBuffer) -> Result<Option<Frame>, Error> {
        let State::Data(pending) = &mut self.state else {
            return Ok(None);
        };
        if pending.left > 0 {
            let n = pending.left.min(input.len());
            if n < pending.left && n < PART_MIN_BYTES {
                return Ok(None);
            }
            if pending.digest {
                pending.crc.update(&input.bytes()[..n]);
            }
            pending.frame.data.push(input.take(n));
            pending.left -= n;
            if pending.left > 0 {
                return Ok(None);
            }
        }
        let data_len = pending.frame.data.len();
        let pad = padded(data_len) - data_len;
        let trailer = pad + if pending.digest { DIGEST_LEN } else { 0 };
        if input.len() < trailer {
            return Ok(None);
        }
        let digests = pending.digest.then(|| {
            let (pad, digest) = input.bytes().split_at(pad);
            let mut crc = pending.crc;
            crc.update(pad);
            (wire_digest(digest), crc.finish())
        });
        input.skip(trailer);
        match std::mem::replace(&mut self.state, State::Header) {
            State::Data(pending) => self.finish(pending.frame, digests),
            _ => Ok(None),
        }
    }

    /// Gives out a complete PDU, unless `digests` (on the wire, computed) differ.
    fn finish(
        &mut self,
        mut frame: Frame,
        digests: Option<(u32, u32)>,
    ) -> Result<Option<Frame>, Error> {
        if let Some((got, computed)) = digests {
            self.counters.data_digests += 1;
            if got != computed && !is_planted(Mutation::IgnoreDataDigest) {
                self.counters.data_digest_errors += 1;
                let error = DigestError::Data {
                    got,
                    computed,
                    opcode: frame.bhs.opcode_byte(),
                    itt: frame.bhs.itt(),
                };
                // Nobody shall take damaged bytes for data.
                frame.data = Payload::new();
                self.damaged = Some(frame);
                return Err(Error::Digest(error));
            }
        }
        self.counters.pdus += 1;
        Ok(Some(frame))
    }

    fn check_lengths(&mut self, bhs: &Bhs) -> Result<(), Error> {
        let len = bhs.data_len_bytes();
        let max = self.data_len_max_bytes;
        if len > max as usize {
            let problem = format!(
                "data segment of {len} bytes with opcode {:#04x}; we take at most {max}",
                bhs.opcode_byte()
            );
            return Err(self.fail(Error::malformed("PDU", problem)));
        }
        Ok(())
    }

    #[cold]
    fn fail(&mut self, error: Error) -> Error {
        self.state = State::Failed(error.clone());
        error
    }
}

fn wire_digest(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(
        *bytes
            .first_chunk()
            .expect("callers wait for the whole digest"),
    )
}

/// Appends a PDU that is only a basic header segment.
#[inline]
pub(crate) fn emit_header(out: &mut SendQueue, bhs: &Bhs, digests: Digests) {
    if digests.header {
        let mut bytes = [0; BHS_LEN + DIGEST_LEN];
        bytes[..BHS_LEN].copy_from_slice(&bhs.0);
        bytes[BHS_LEN..].copy_from_slice(&crc32c(&bhs.0).to_le_bytes());
        out.put(&bytes);
    } else {
        out.put(&bhs.0);
    }
}

/// Appends a PDU with data and without additional headers; sets the length fields.
#[inline]
pub(crate) fn emit_data(out: &mut SendQueue, mut bhs: Bhs, data: &Payload, digests: Digests) {
    bhs.set_lengths(0, data.len());
    emit_header(out, &bhs, digests);
    put_data(out, data, digests);
}

/// Appends any PDU; sets the length fields.
pub(crate) fn emit(
    out: &mut SendQueue,
    mut bhs: Bhs,
    ahs: &[u8],
    data: &Payload,
    digests: Digests,
) {
    bhs.set_lengths(ahs.len(), data.len());
    if ahs.is_empty() {
        emit_header(out, &bhs, digests);
    } else {
        out.put(&bhs.0);
        out.put(ahs);
        if digests.header {
            let mut crc = Crc32c::new();
            crc.update(&bhs.0);
            crc.update(ahs);
            out.put(&crc.finish().to_le_bytes());
        }
    }
    put_data(out, data, digests);
}

/// Appends a data segment by reference, its padding and its digest.
fn put_data(out: &mut SendQueue, data: &Payload, digests: Digests) {
    if data.is_empty() {
        return;
    }
    out.put_payload(data);
    let pad = padded(data.len()) - data.len();
    let mut trailer = [0; 3 + DIGEST_LEN];
    let mut len = pad;
    if digests.data {
        let crc = match data.segments() {
            [one] if pad == 0 => crc32c(one),
            many => {
                let mut crc = Crc32c::new();
                many.iter().for_each(|segment| crc.update(segment));
                crc.update(&trailer[..pad]);
                crc.finish()
            }
        };
        trailer[pad..pad + DIGEST_LEN].copy_from_slice(&crc.to_le_bytes());
        len += DIGEST_LEN;
    }
    out.put(&trailer[..len]);
}

#[cfg(test)]
mod tests;

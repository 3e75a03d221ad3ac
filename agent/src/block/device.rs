//! What a request to a block device is, and what comes back.

use berth_iobuf::Payload;

/// Names a request towards the device below; unique among the requests in flight of one submitter.
pub type RequestId = u64;

/// One request to a block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Returned unchanged in the [`Completion`].
    pub id: RequestId,
    /// What to do.
    pub op: Op,
}

/// What a request asks for. Offsets and lengths are in bytes; a length of 0 is answered without I/O.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "fields are named for what they are, units last"
)]
pub enum Op {
    /// Read; answered by [`Output::Data`] of exactly `len_bytes`.
    Read { offset_bytes: u64, len_bytes: u32 },
    /// The same, of a range that is about to be written with what is read: it waits, as a write would, until no
    /// earlier write of unknown fate can still change the range.
    ReadToMerge { offset_bytes: u64, len_bytes: u32 },
    /// Write `data`; with `fua` the answer comes after it is durable.
    Write {
        offset_bytes: u64,
        data: Payload,
        fua: bool,
    },
    /// Everything that was answered before this was submitted is durable when this is answered.
    Flush,
    /// The contents of the range are no longer needed; a hint, rounded inward.
    Trim {
        offset_bytes: u64,
        len_bytes: u64,
        fua: bool,
    },
    /// The range reads as zeroes afterwards. `may_unmap`: space may be given back. `fast_only`: fail
    /// with [`Error::NotSupported`] rather than write zeroes one by one.
    WriteZeroes {
        offset_bytes: u64,
        len_bytes: u64,
        may_unmap: bool,
        fast_only: bool,
        fua: bool,
    },
    /// How the range is provisioned; answered by [`Output::Extents`] that starts at the offset and
    /// may stop early or, in the last extent, reach past the end of the range.
    BlockStatus { offset_bytes: u64, len_bytes: u64 },
    /// Prefetch hint.
    Cache { offset_bytes: u64, len_bytes: u64 },
}

/// The answer to one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// The id of the request.
    pub id: RequestId,
    /// What came of it.
    pub result: Result<Output, Error>,
}

/// What a successful request gives back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Done, with nothing to give back.
    Done,
    /// The data that was read.
    Data(Payload),
    /// How the range is provisioned.
    Extents(Vec<Extent>),
}

/// A run of bytes with one provisioning state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes, not 0.
    pub len_bytes: u64,
    /// Not backed by storage: a write may fail for want of space.
    pub hole: bool,
    /// Reads as zeroes.
    pub zero: bool,
}

/// Why a request failed. NBD error numbers and HTTP codes are each derived from this in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The range is not inside the device.
    #[error("the range is outside the device")]
    OutOfRange,
    /// The request is malformed for this device.
    #[error("the request is not valid for this device")]
    Invalid,
    /// The device does not accept writes.
    #[error("the device is read-only")]
    ReadOnly,
    /// Thin provisioning ran out of space.
    #[error("the device has no space left")]
    NoSpace,
    /// The medium could not be read or written.
    #[error("the medium failed")]
    Medium,
    /// The device cannot do this (or not fast).
    #[error("the device does not support this")]
    NotSupported,
    /// Another node holds a reservation: we have been fenced.
    #[error("another initiator holds a reservation")]
    Fenced,
    /// No path to the device within the recovery timeout.
    #[error("the device cannot be reached")]
    Unavailable,
    /// The device is being taken away.
    #[error("the device is going away")]
    Gone,
}

/// Size, limits and abilities of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    /// Size in bytes.
    pub size_bytes: u64,
    /// Smallest unit that the device can read and write, in bytes (a power of two, at least 512
    /// towards a LUN; 1 above the align layer is expressed by `Hub` users, not here).
    pub logical_block_bytes: u32,
    /// Unit below which the medium does read-modify-write, in bytes (a power of two).
    pub physical_block_bytes: u32,
    /// Preferred size of a request, in bytes (a power of two).
    pub optimal_io_bytes: u32,
    /// Longest read or write, in bytes, a multiple of the logical block size.
    pub transfer_max_bytes: u32,
    /// Writes fail.
    pub read_only: bool,
    /// There is a volatile write cache: FLUSH and FUA cost something.
    pub write_cache: bool,
    /// Spinning medium.
    pub rotational: bool,
    /// Whether and how TRIM works; `None`: it is accepted and does nothing.
    pub trim: Option<ZeroLimits>,
    /// Whether and how fast zeroing works; `None`: zeroes are written as data.
    pub write_zeroes: Option<ZeroLimits>,
    /// BLOCK STATUS tells holes from data.
    pub provisioning_map: bool,
}

/// Limits of TRIM or WRITE ZEROES.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZeroLimits {
    /// Longest range of one request, in bytes.
    pub max_bytes: u64,
    /// Granularity in bytes; finer heads and tails are left out (TRIM) or written (WRITE ZEROES).
    pub granularity_bytes: u64,
    /// Offset of the first aligned granule, in bytes.
    pub alignment_bytes: u64,
}

/// A device that takes requests and gives completions, each exactly once and in any order.
pub trait BlockDevice {
    /// Size, limits and abilities; may change between calls (resize).
    fn geometry(&self) -> &Geometry;

    /// Takes a request. Never blocks; the submitter bounds what it has in flight. It may stay here until
    /// [`BlockDevice::commit`].
    fn submit(&mut self, request: Request);

    /// Sends what was submitted, a whole batch in one piece. Whoever submits calls this before waiting.
    fn commit(&mut self);

    /// The next completion, if there is one.
    fn poll_complete(&mut self) -> Option<Completion>;
}

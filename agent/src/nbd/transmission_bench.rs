//! A connection whose device is the test.

use super::super::export::{ExportInfo, tests::geometry};
use super::super::wire::chunk::{ErrorChunk, StatusChunk};
use super::super::wire::reply::{ChunkHeader, ChunkType, SIMPLE_BYTES, SimpleReply};
use super::super::wire::{ChunkFlags, TransmissionFlags};
use super::*;

pub(super) const SIZE: u64 = 1 << 30;

/// A connection whose device is the test.
pub(super) struct Bench {
    pub(super) transmission: Transmission,
    pub(super) input: ReceiveBuffer,
    pub(super) out: SendQueue,
    pub(super) device: Geometry,
    pub(super) submitted: Vec<Request>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Done,
    Data(Vec<u8>),
    Hole(u64, u32),
    Status(Vec<(u64, u32)>),
    Error(Errno, String),
}

impl Bench {
    pub(super) fn new(mode: ReplyMode) -> Self {
        Self::with(mode, true, geometry(SIZE), Limits::default())
    }

    pub(super) fn with(mode: ReplyMode, context: bool, device: Geometry, limits: Limits) -> Self {
        let info = ExportInfo::new("a", "", &device);
        let mut negotiated = Negotiated::for_kernel(&info);
        negotiated.mode = mode;
        negotiated.base_allocation = context && mode != ReplyMode::Simple;
        negotiated
            .flags
            .set(TransmissionFlags::SEND_DF, mode != ReplyMode::Simple);
        negotiated.flags.set(
            TransmissionFlags::BLOCK_STATUS_PAYLOAD,
            context && mode == ReplyMode::Extended,
        );
        Self {
            transmission: Transmission::new(&negotiated, limits),
            input: ReceiveBuffer::new(),
            out: SendQueue::new(),
            device,
            submitted: Vec::new(),
        }
    }

    pub(super) fn header(
        &self,
        command: Command,
        flags: CommandFlags,
        offset: u64,
        len: u64,
    ) -> Vec<u8> {
        let header = RequestHeader {
            flags,
            command,
            cookie: 0xc0 | u64::from(command.0),
            offset_bytes: offset,
            len_bytes: len,
        };
        if self.transmission.rules.mode == ReplyMode::Extended {
            header.emit_extended().to_vec()
        } else {
            header.emit_compact().unwrap().to_vec()
        }
    }

    /// Brings bytes as a socket would: in pieces that fit the receive chunk.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let mut pieces = bytes.chunks(64 * 1024);
        loop {
            self.input.extend(pieces.next().unwrap_or_default());
            let Self {
                transmission,
                input,
                out,
                device,
                submitted,
            } = self;
            transmission.handle_input(input, out, device, |request| submitted.push(request))?;
            if pieces.len() == 0 {
                return Ok(());
            }
        }
    }

    pub(super) fn request(&mut self, command: Command, flags: CommandFlags, offset: u64, len: u64) {
        let header = self.header(command, flags, offset, len);
        self.receive(&header).unwrap();
    }

    pub(super) fn write(&mut self, flags: CommandFlags, offset: u64, data: &[u8]) {
        let flags = if self.transmission.rules.mode == ReplyMode::Extended {
            flags | CommandFlags::PAYLOAD_LEN
        } else {
            flags
        };
        let header = self.header(Command::WRITE, flags, offset, data.len() as u64);
        self.receive(&[&header[..], data].concat()).unwrap();
    }

    /// The one request that was submitted.
    pub(super) fn taken(&mut self) -> Request {
        assert_eq!(self.submitted.len(), 1, "one request expected");
        self.submitted.remove(0)
    }

    pub(super) fn complete(&mut self, id: u64, result: Result<Output, BlockError>) {
        let completion = Completion { id, result };
        self.transmission
            .complete(completion, &self.device, &mut self.out);
    }

    /// All replies, taken apart.
    pub(super) fn answers(&mut self) -> Vec<(u64, Answer)> {
        let bytes = self.out.to_vec();
        self.out.clear();
        let mut rest = &bytes[..];
        let mut answers = Vec::new();
        while !rest.is_empty() {
            let (len, cookie, answer) = match self.transmission.rules.mode {
                ReplyMode::Simple => {
                    let reply = SimpleReply::parse(rest).unwrap();
                    let answer = match reply.errno {
                        Errno::OK if reply.cookie & 0xff == 0xc0 => {
                            // A READ: everything else is its data; tests read one at a time.
                            let data = rest[SIMPLE_BYTES..].to_vec();
                            answers.push((reply.cookie, Answer::Data(data)));
                            return answers;
                        }
                        Errno::OK => Answer::Done,
                        errno => Answer::Error(errno, String::new()),
                    };
                    (SIMPLE_BYTES, reply.cookie, answer)
                }
                mode => {
                    let (header, at) = if mode == ReplyMode::Extended {
                        (ChunkHeader::parse_extended(rest).unwrap(), 32)
                    } else {
                        (ChunkHeader::parse_structured(rest).unwrap(), 20)
                    };
                    assert_eq!(header.flags, ChunkFlags::DONE);
                    let end = at + usize::try_from(header.len_bytes).unwrap();
                    (end, header.cookie, chunk(header.chunk_type, &rest[at..end]))
                }
            };
            answers.push((cookie, answer));
            rest = &rest[len..];
        }
        answers
    }

    pub(super) fn answer(&mut self) -> Answer {
        let mut answers = self.answers();
        assert_eq!(answers.len(), 1, "one reply expected: {answers:?}");
        answers.remove(0).1
    }

    pub(super) fn errno(&mut self) -> Errno {
        match self.answer() {
            Answer::Error(errno, _) => errno,
            other => panic!("{other:?}"),
        }
    }
}

fn chunk(chunk_type: ChunkType, payload: &[u8]) -> Answer {
    match chunk_type {
        ChunkType::NONE => Answer::Done,
        ChunkType::OFFSET_DATA => Answer::Data(payload[8..].to_vec()),
        ChunkType::OFFSET_HOLE => {
            let hole = super::super::wire::chunk::Hole::parse(payload).unwrap();
            Answer::Hole(hole.offset_bytes, hole.len_bytes)
        }
        ChunkType::BLOCK_STATUS | ChunkType::BLOCK_STATUS_EXT => {
            let status = StatusChunk::parse(chunk_type, payload).unwrap();
            assert_eq!(status.context_id, BASE_ALLOCATION_ID);
            Answer::Status(
                status
                    .extents
                    .iter()
                    .map(|e| (e.len_bytes, e.flags.bits()))
                    .collect(),
            )
        }
        ChunkType::ERROR => {
            let error = ErrorChunk::parse(chunk_type, payload).unwrap();
            Answer::Error(error.errno, error.message)
        }
        other => panic!("{other:?}"),
    }
}

pub(super) const NO: CommandFlags = CommandFlags::empty();
pub(super) const MODES: [ReplyMode; 3] = [
    ReplyMode::Simple,
    ReplyMode::Structured,
    ReplyMode::Extended,
];

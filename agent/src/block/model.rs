//! A model disk for the tests of the layers: answers in the order that the test asks for.

use std::collections::VecDeque;

use super::{BlockDevice, Completion, Error, Geometry, Op, Output, Payload, Request};

/// A disk in memory that checks alignment and length of everything it is asked.
pub(crate) struct ModelDevice {
    pub(crate) bytes: Vec<u8>,
    geometry: Geometry,
    queue: VecDeque<Request>,
    fail_next: Option<Error>,
    /// Requests that were answered, for tests that look at order.
    pub(crate) log: Vec<Op>,
    /// Nothing is answered while this is set.
    pub(crate) held: bool,
    /// Answer the youngest request first.
    pub(crate) reverse: bool,
}

impl ModelDevice {
    pub(crate) fn new(size_bytes: u64, logical_block_bytes: u32, transfer_max_bytes: u32) -> Self {
        Self {
            bytes: (0..size_bytes).map(|i| (i % 253) as u8).collect(),
            geometry: Geometry {
                size_bytes,
                logical_block_bytes,
                physical_block_bytes: logical_block_bytes,
                optimal_io_bytes: 4096.max(logical_block_bytes),
                transfer_max_bytes,
                read_only: false,
                write_cache: false,
                rotational: false,
                trim: None,
                write_zeroes: None,
                provisioning_map: false,
            },
            queue: VecDeque::new(),
            fail_next: None,
            log: Vec::new(),
            held: false,
            reverse: false,
        }
    }

    pub(crate) fn fail_next(&mut self, error: Error) {
        self.fail_next = Some(error);
    }

    fn run(&mut self, op: &Op) -> Result<Output, Error> {
        let block = u64::from(self.geometry.logical_block_bytes);
        let check = |offset: u64, len: u64| {
            assert!(
                offset.is_multiple_of(block) && len.is_multiple_of(block),
                "unaligned {offset}+{len}"
            );
            if offset + len > self.geometry.size_bytes {
                Err(Error::OutOfRange)
            } else {
                Ok(())
            }
        };
        match op {
            Op::Read {
                offset_bytes,
                len_bytes,
            }
            | Op::ReadToMerge {
                offset_bytes,
                len_bytes,
            } => {
                check(*offset_bytes, u64::from(*len_bytes))?;
                assert!(*len_bytes <= self.geometry.transfer_max_bytes);
                let at = *offset_bytes as usize;
                let data = self.bytes[at..at + *len_bytes as usize].to_vec();
                Ok(Output::Data(Payload::from(data)))
            }
            Op::Write {
                offset_bytes, data, ..
            } => {
                check(*offset_bytes, data.len() as u64)?;
                assert!(data.len() <= self.geometry.transfer_max_bytes as usize);
                let at = *offset_bytes as usize;
                data.copy_to(&mut self.bytes[at..at + data.len()]);
                Ok(Output::Done)
            }
            Op::WriteZeroes {
                offset_bytes,
                len_bytes,
                ..
            } => {
                check(*offset_bytes, *len_bytes)?;
                let at = *offset_bytes as usize;
                self.bytes[at..at + *len_bytes as usize].fill(0);
                Ok(Output::Done)
            }
            Op::Trim {
                offset_bytes,
                len_bytes,
                ..
            }
            | Op::Cache {
                offset_bytes,
                len_bytes,
            }
            | Op::BlockStatus {
                offset_bytes,
                len_bytes,
            } => {
                check(*offset_bytes, *len_bytes)?;
                Ok(Output::Done)
            }
            Op::Flush => Ok(Output::Done),
        }
    }
}

impl BlockDevice for ModelDevice {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn submit(&mut self, request: Request) {
        self.queue.push_back(request);
    }

    fn commit(&mut self) {}

    fn poll_complete(&mut self) -> Option<Completion> {
        if self.held {
            return None;
        }
        let request = if self.reverse {
            self.queue.pop_back()
        } else {
            self.queue.pop_front()
        }?;
        let result = match self.fail_next.take() {
            Some(error) => Err(error),
            None => self.run(&request.op),
        };
        self.log.push(request.op);
        Some(Completion {
            id: request.id,
            result,
        })
    }
}

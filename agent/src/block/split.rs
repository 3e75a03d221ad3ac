//! Splits reads and writes by the longest transfer of the device below.

use slab::Slab;

use super::{BlockDevice, Completion, Error, Geometry, Op, Output, Payload, Request, RequestId};

/// Marks the id of a part, so that it cannot be taken for an id from above.
const PART_FLAG: RequestId = 1 << 62;
/// Bits of a part's id that hold the part's number; the parent's slot is above them.
const PART_BITS: u32 = 24;

/// A layer that cuts reads and writes longer than the device's [`Geometry::transfer_max_bytes`] at
/// multiples of that length, so that every part but the first starts on an optimal boundary.
///
/// A request that fits passes untouched. Parts run side by side; a request is answered when all of
/// its parts are, and with the first error if one failed.
pub struct Split<D> {
    parents: Slab<Parent>,
    device: D,
}

struct Parent {
    id: RequestId,
    /// Parts not answered yet.
    pending: u32,
    /// What was read, by part number; empty for writes.
    data: Vec<Payload>,
    error: Option<Error>,
}

impl<D: BlockDevice> Split<D> {
    /// Puts the layer over `device`.
    pub fn new(device: D) -> Self {
        Self {
            parents: Slab::new(),
            device,
        }
    }

    fn submit_parts(
        &mut self,
        id: RequestId,
        offset_bytes: u64,
        len_bytes: u32,
        max: u32,
        kind: &Kind,
    ) {
        let cuts = Cuts {
            at: offset_bytes,
            end: offset_bytes + u64::from(len_bytes),
            max,
        };
        let count = cuts.count();
        debug_assert!(count > 1 && count < 1 << PART_BITS);
        let is_read = matches!(kind, Kind::Read);
        let slot = self.parents.insert(Parent {
            id,
            pending: count as u32,
            data: if is_read {
                vec![Payload::new(); count]
            } else {
                Vec::new()
            },
            error: None,
        });
        for (number, (at, len)) in cuts.enumerate() {
            let op = match kind {
                Kind::Read => Op::Read {
                    offset_bytes: at,
                    len_bytes: len,
                },
                Kind::Write { data, fua } => Op::Write {
                    offset_bytes: at,
                    data: data.slice((at - offset_bytes) as usize, len as usize),
                    fua: *fua,
                },
            };
            let id = PART_FLAG | (slot as u64) << PART_BITS | number as u64;
            self.device.submit(Request { id, op });
        }
    }
}

enum Kind {
    Read,
    Write { data: Payload, fua: bool },
}

/// The parts of a range: `(offset, length)` in bytes.
#[derive(Clone, Copy)]
struct Cuts {
    at: u64,
    end: u64,
    max: u32,
}

impl Iterator for Cuts {
    type Item = (u64, u32);

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.end {
            return None;
        }
        let max = u64::from(self.max);
        let boundary = self.at - self.at % max + max;
        let to = boundary.min(self.end);
        let part = (self.at, (to - self.at) as u32);
        self.at = to;
        Some(part)
    }
}

impl<D: BlockDevice> BlockDevice for Split<D> {
    fn geometry(&self) -> &Geometry {
        self.device.geometry()
    }

    fn submit(&mut self, request: Request) {
        let max = self.device.geometry().transfer_max_bytes;
        let Request { id, op } = request;
        match op {
            Op::Read {
                offset_bytes,
                len_bytes,
            } if len_bytes > max => {
                self.submit_parts(id, offset_bytes, len_bytes, max, &Kind::Read);
            }
            Op::Write {
                offset_bytes,
                data,
                fua,
            } if data.len() > max as usize => {
                let len = u32::try_from(data.len()).expect("a write fits 32 bits");
                self.submit_parts(id, offset_bytes, len, max, &Kind::Write { data, fua });
            }
            op => self.device.submit(Request { id, op }),
        }
    }

    fn commit(&mut self) {
        self.device.commit();
    }

    fn poll_complete(&mut self) -> Option<Completion> {
        loop {
            let completion = self.device.poll_complete()?;
            if completion.id & PART_FLAG == 0 {
                return Some(completion);
            }
            let part = completion.id & !PART_FLAG;
            let slot = (part >> PART_BITS) as usize;
            let parent = &mut self.parents[slot];
            match completion.result {
                Ok(Output::Data(data)) => {
                    parent.data[(part & ((1 << PART_BITS) - 1)) as usize] = data;
                }
                Ok(_) => {}
                Err(error) => {
                    parent.error.get_or_insert(error);
                }
            }
            parent.pending -= 1;
            if parent.pending > 0 {
                continue;
            }
            let parent = self.parents.remove(slot);
            let result = match parent.error {
                Some(error) => Err(error),
                None if parent.data.is_empty() => Ok(Output::Done),
                None => {
                    let mut all = Payload::new();
                    parent.data.into_iter().for_each(|data| all.append(data));
                    Ok(Output::Data(all))
                }
            };
            return Some(Completion {
                id: parent.id,
                result,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::ModelDevice;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_part_that_fails_fails_the_request_after_all_parts_are_answered() {
        let mut model = ModelDevice::new(1 << 20, 512, 4096);
        model.fail_next(Error::Medium);
        let mut split = Split::new(model);
        split.submit(Request {
            id: 9,
            op: Op::Read {
                offset_bytes: 512,
                len_bytes: 8192,
            },
        });
        let answer = split.poll_complete();
        assert_eq!(
            answer,
            Some(Completion {
                id: 9,
                result: Err(Error::Medium)
            })
        );
        assert_eq!(split.poll_complete(), None);
        assert!(split.parents.is_empty());
    }

    proptest! {
        #[test]
        fn split_transfers_move_the_same_bytes(
            offset in 0u64..512, blocks in 1u32..200, max_blocks in 1u32..64, seed in any::<u8>(),
        ) {
            let (offset, len) = (offset * 512, blocks * 512);
            let model = ModelDevice::new(1 << 20, 512, max_blocks * 512);
            let mut split = Split::new(model);
            let bytes: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect();
            split.submit(Request { id: 1, op: Op::Write { offset_bytes: offset, data: bytes.clone().into(), fua: false } });
            prop_assert_eq!(split.poll_complete(), Some(Completion { id: 1, result: Ok(Output::Done) }));
            split.submit(Request { id: 2, op: Op::Read { offset_bytes: offset, len_bytes: len } });
            let Some(Completion { id: 2, result: Ok(Output::Data(data)) }) = split.poll_complete() else {
                panic!("no data");
            };
            prop_assert_eq!(data.to_bytes(), bytes);
        }
    }
}

//! Serves requests that are finer than the device's logical block.

use std::collections::VecDeque;

use slab::Slab;

use super::{
    BlockDevice, Completion, Error, Extent, Geometry, Op, Output, Payload, Request, RequestId,
};
use crate::mutation::{Mutation, is_planted};

/// Marks the id of a step of this layer, so that it cannot be taken for an id from above.
const STEP_FLAG: RequestId = 1 << 63;

/// A layer that lets requests start and end anywhere, on a device that knows whole blocks only.
///
/// Reads fetch the whole blocks and give back the part that was asked for. Writes read the blocks at
/// their ragged ends, merge and write whole blocks (read-modify-write). Writes that overlap never run side
/// by side, whoever sent them: a read-modify-write touches bytes that its client did not name, and a
/// write that has to be sent again after a lost session must not be overtaken by a later one.
/// TRIM is rounded inward; WRITE ZEROES writes its ragged ends; BLOCK STATUS is rounded outward and
/// cut. Ranges beyond the device are refused here, before anything is sent.
pub struct Align<D> {
    steps: Slab<Step>,
    /// Ranges of whole blocks that are being written, with the id under which the device knows them.
    writing: Vec<Range>,
    /// Requests that wait for a range, oldest first. Whatever overlaps one of them waits behind it.
    waiting: VecDeque<Waiting>,
    done: VecDeque<Completion>,
    device: D,
}

#[derive(Clone, Copy)]
struct Range {
    id: RequestId,
    start: u64,
    end: u64,
}

struct Waiting {
    request: Request,
    start: u64,
    end: u64,
    ragged: bool,
}

/// What to do with an answer that belongs to a step of this layer.
enum Step {
    /// A read of whole blocks: cut this part out.
    Cut {
        id: RequestId,
        skip: usize,
        len: usize,
    },
    /// The old contents of the ragged blocks, then the merged write.
    Modify(Modify),
    /// The merged write of a read-modify-write.
    Merged { id: RequestId },
    /// The extents of whole blocks: drop this much at the start.
    Extents { id: RequestId, skip: u64 },
    /// Head, middle or tail of ragged zeroes; the number is the step of the whole.
    ZeroPart { whole: usize },
    /// Ragged zeroes: how many parts are still to be answered.
    Zeroes {
        id: RequestId,
        parts_pending: u8,
        error: Option<Error>,
    },
}

#[derive(Clone, Copy)]
struct RaggedZeroes {
    offset: u64,
    end: u64,
    may_unmap: bool,
    fast_only: bool,
    fua: bool,
}

struct Modify {
    id: RequestId,
    offset_bytes: u64,
    data: Payload,
    fua: bool,
    start: u64,
    end: u64,
    /// Old contents of the first and of the last block, when they are needed and have come.
    head: Option<Payload>,
    tail: Option<Payload>,
    reads_pending: u8,
    error: Option<Error>,
}

impl<D: BlockDevice> Align<D> {
    /// Puts the layer over `device`.
    pub fn new(device: D) -> Self {
        Self {
            steps: Slab::new(),
            writing: Vec::new(),
            waiting: VecDeque::new(),
            done: VecDeque::new(),
            device,
        }
    }

    fn answer(&mut self, id: RequestId, result: Result<Output, Error>) {
        if id & STEP_FLAG != 0 {
            self.on_step(id, result);
        } else {
            self.done.push_back(Completion { id, result });
        }
    }

    fn step(&mut self, step: Step) -> RequestId {
        STEP_FLAG | self.steps.insert(step) as u64
    }

    /// Whether a write to `start..end` must wait for one that is under way or waits already.
    fn must_wait(&self, start: u64, end: u64, ahead: usize) -> bool {
        if is_planted(Mutation::OvertakeGhost) {
            return false;
        }
        let hits = |s: u64, e: u64| s < end && start < e;
        self.writing.iter().any(|r| hits(r.start, r.end))
            || self
                .waiting
                .iter()
                .take(ahead)
                .any(|w| hits(w.start, w.end))
    }

    /// Starts a write-class request over the blocks `start..end`, now or when the range is free.
    fn start_write(&mut self, request: Request, start: u64, end: u64, ragged: bool) {
        if self.must_wait(start, end, self.waiting.len()) {
            self.waiting.push_back(Waiting {
                request,
                start,
                end,
                ragged,
            });
        } else {
            self.run_write(request, start, end, ragged);
        }
    }

    fn run_write(&mut self, request: Request, start: u64, end: u64, ragged: bool) {
        let id = request.id;
        self.writing.push(Range { id, start, end });
        if !ragged {
            self.device.submit(request);
            return;
        }
        let (offset_bytes, data, fua) = match request.op {
            Op::Write {
                offset_bytes,
                data,
                fua,
            } => (offset_bytes, data, fua),
            // Ragged zeroes are short at both ends; the middle goes on as zeroes (see `submit`).
            Op::WriteZeroes {
                offset_bytes,
                len_bytes,
                fua,
                ..
            } => {
                let len =
                    usize::try_from(len_bytes).expect("ragged zeroes are cut to whole blocks");
                (offset_bytes, Payload::zeroes(len), fua)
            }
            _ => unreachable!("only writes are ragged"),
        };
        let block = u64::from(self.device.geometry().logical_block_bytes);
        let need_head = offset_bytes != start;
        let need_tail = offset_bytes + data.len() as u64 != end;
        // One block that is ragged at both ends is read once.
        let one_block = end - start == block;
        let read_tail = need_tail && !(one_block && need_head);
        let slot = self.step(Step::Modify(Modify {
            id,
            offset_bytes,
            data,
            fua,
            start,
            end,
            head: None,
            tail: None,
            reads_pending: u8::from(need_head) + u8::from(read_tail),
            error: None,
        }));
        let len_bytes = block as u32;
        // The two reads share the step; which one an answer is follows from its place in the id.
        if need_head {
            self.device.submit(Request {
                id: slot,
                op: Op::ReadToMerge {
                    offset_bytes: start,
                    len_bytes,
                },
            });
        }
        if read_tail {
            let op = Op::ReadToMerge {
                offset_bytes: end - block,
                len_bytes,
            };
            self.device.submit(Request {
                id: slot | TAIL_FLAG,
                op,
            });
        }
    }

    fn finish_write(&mut self, id: RequestId) {
        let at = self.writing.iter().position(|range| range.id == id);
        let Some(at) = at else { return };
        let ended = self.writing.swap_remove(at);
        if self.waiting.is_empty() {
            return;
        }
        // In order of arrival; one that still must wait holds back what overlaps it behind it.
        let mut index = 0;
        while index < self.waiting.len() {
            let w = &self.waiting[index];
            let touched = w.start < ended.end && ended.start < w.end;
            if touched && !self.must_wait(w.start, w.end, index) {
                let w = self.waiting.remove(index).expect("the index is in range");
                self.run_write(w.request, w.start, w.end, w.ragged);
            } else {
                index += 1;
            }
        }
    }

    fn on_step(&mut self, id: RequestId, result: Result<Output, Error>) {
        let slot = (id & !STEP_FLAG & !TAIL_FLAG) as usize;
        match self.steps.get_mut(slot) {
            Some(Step::Cut { id, skip, len }) => {
                let (id, skip, len) = (*id, *skip, *len);
                self.steps.remove(slot);
                let result = result.map(|output| match output {
                    Output::Data(data) => Output::Data(data.slice(skip, len)),
                    other => other,
                });
                self.answer(id, result);
            }
            Some(Step::Extents { id, skip }) => {
                let (id, skip) = (*id, *skip);
                self.steps.remove(slot);
                let result = result.map(|output| match output {
                    Output::Extents(extents) => Output::Extents(drop_front(extents, skip)),
                    other => other,
                });
                self.answer(id, result);
            }
            Some(Step::Merged { id }) => {
                let id = *id;
                self.steps.remove(slot);
                self.answer(id, result);
                self.finish_write(id);
            }
            Some(Step::Modify(modify)) => {
                match result {
                    Ok(Output::Data(data)) if id & TAIL_FLAG != 0 => modify.tail = Some(data),
                    Ok(Output::Data(data)) => modify.head = Some(data),
                    Ok(_) => {}
                    Err(error) => modify.error = Some(error),
                }
                modify.reads_pending -= 1;
                if modify.reads_pending == 0 {
                    let Step::Modify(modify) = self.steps.remove(slot) else {
                        unreachable!()
                    };
                    self.write_merged(modify);
                }
            }
            Some(Step::ZeroPart { whole }) => {
                let whole = *whole;
                self.steps.remove(slot);
                self.finish_write(id);
                self.on_zero_part(whole, result.err());
            }
            Some(Step::Zeroes { .. }) | None => {
                debug_assert!(false, "an answer for no step: {id:#x}");
            }
        }
    }

    /// Zeroes whose ends are ragged: the ends are merged into their blocks, the middle stays zeroes.
    fn submit_ragged_zeroes(&mut self, id: RequestId, zeroes: RaggedZeroes, block: u64) {
        let RaggedZeroes {
            offset,
            end,
            may_unmap,
            fast_only,
            fua,
        } = zeroes;
        if fast_only && self.device.geometry().write_zeroes.is_none() {
            return self.answer(id, Err(Error::NotSupported));
        }
        let op = |from: u64, to: u64| Op::WriteZeroes {
            offset_bytes: from,
            len_bytes: to - from,
            may_unmap,
            fast_only,
            fua,
        };
        let (inner, inner_end) = (offset.div_ceil(block) * block, end - end % block);
        if inner >= inner_end {
            // At most the end of one block and the start of the next.
            let (start, stop) = (offset - offset % block, end.div_ceil(block) * block);
            return self.start_write(
                Request {
                    id,
                    op: op(offset, end),
                },
                start,
                stop,
                true,
            );
        }
        let parts = [
            (offset < inner).then(|| (offset, inner, inner - block, inner, true)),
            Some((inner, inner_end, inner, inner_end, false)),
            (inner_end < end).then_some((inner_end, end, inner_end, inner_end + block, true)),
        ];
        let parts_pending = parts.iter().flatten().count() as u8;
        let whole = self.steps.insert(Step::Zeroes {
            id,
            parts_pending,
            error: None,
        });
        for (from, to, start, stop, ragged) in parts.into_iter().flatten() {
            let id = self.step(Step::ZeroPart { whole });
            self.start_write(
                Request {
                    id,
                    op: op(from, to),
                },
                start,
                stop,
                ragged,
            );
        }
    }

    fn on_zero_part(&mut self, whole: usize, failure: Option<Error>) {
        let Some(Step::Zeroes {
            id,
            parts_pending,
            error,
        }) = self.steps.get_mut(whole)
        else {
            return debug_assert!(false, "a part of no zeroes");
        };
        *parts_pending -= 1;
        *error = error.or(failure);
        if *parts_pending == 0 {
            let (id, result) = (*id, error.map_or(Ok(Output::Done), Err));
            self.steps.remove(whole);
            self.answer(id, result);
        }
    }

    fn write_merged(&mut self, modify: Modify) {
        if let Some(error) = modify.error {
            self.answer(modify.id, Err(error));
            self.finish_write(modify.id);
            return;
        }
        let block = u64::from(self.device.geometry().logical_block_bytes) as usize;
        let data_end = modify.offset_bytes + modify.data.len() as u64;
        let mut merged = Payload::new();
        if let Some(head) = &modify.head {
            merged.append(head.slice(0, (modify.offset_bytes - modify.start) as usize));
        }
        merged.append(modify.data);
        let behind = (modify.end - data_end) as usize;
        if behind > 0 {
            let last = modify
                .tail
                .as_ref()
                .or(modify.head.as_ref())
                .expect("the last block was read");
            merged.append(last.slice(block - behind, behind));
        }
        debug_assert_eq!(merged.len() as u64, modify.end - modify.start);
        let id = self.step(Step::Merged { id: modify.id });
        let op = Op::Write {
            offset_bytes: modify.start,
            data: merged,
            fua: modify.fua,
        };
        self.device.submit(Request { id, op });
    }
}

/// Set in the id of the read of the last block of a read-modify-write.
const TAIL_FLAG: RequestId = 1 << 61;

fn drop_front(extents: Vec<Extent>, skip_bytes: u64) -> Vec<Extent> {
    let mut skip = skip_bytes;
    let mut out = Vec::with_capacity(extents.len());
    for mut extent in extents {
        let cut = skip.min(extent.len_bytes);
        skip -= cut;
        extent.len_bytes -= cut;
        if extent.len_bytes > 0 {
            out.push(extent);
        }
    }
    out
}

fn range_of(op: &Op) -> Option<(u64, u64)> {
    Some(match op {
        Op::Read {
            offset_bytes,
            len_bytes,
        }
        | Op::ReadToMerge {
            offset_bytes,
            len_bytes,
        } => (*offset_bytes, u64::from(*len_bytes)),
        Op::Write {
            offset_bytes, data, ..
        } => (*offset_bytes, data.len() as u64),
        Op::Trim {
            offset_bytes,
            len_bytes,
            ..
        }
        | Op::WriteZeroes {
            offset_bytes,
            len_bytes,
            ..
        }
        | Op::BlockStatus {
            offset_bytes,
            len_bytes,
        }
        | Op::Cache {
            offset_bytes,
            len_bytes,
        } => (*offset_bytes, *len_bytes),
        Op::Flush => return None,
    })
}

impl<D: BlockDevice> BlockDevice for Align<D> {
    fn geometry(&self) -> &Geometry {
        self.device.geometry()
    }

    fn submit(&mut self, request: Request) {
        let geometry = self.device.geometry();
        let (block, size, read_only) = (
            u64::from(geometry.logical_block_bytes),
            geometry.size_bytes,
            geometry.read_only,
        );
        let Request { id, op } = request;
        let Some((offset, len)) = range_of(&op) else {
            return self.device.submit(Request { id, op });
        };
        let Some(end) = offset.checked_add(len).filter(|end| *end <= size) else {
            return self.answer(id, Err(Error::OutOfRange));
        };
        let is_write = matches!(
            op,
            Op::Write { .. } | Op::Trim { .. } | Op::WriteZeroes { .. }
        );
        if is_write && read_only {
            return self.answer(id, Err(Error::ReadOnly));
        }
        if len == 0 {
            let output = match op {
                Op::Read { .. } | Op::ReadToMerge { .. } => Output::Data(Payload::new()),
                Op::BlockStatus { .. } => Output::Extents(Vec::new()),
                _ => Output::Done,
            };
            return self.answer(id, Ok(output));
        }
        let (start, stop) = (offset - offset % block, end.div_ceil(block) * block);
        let aligned = start == offset && stop == end;
        match op {
            Op::Write { .. } => self.start_write(Request { id, op }, start, stop, !aligned),
            // TRIM is only a hint, but it must not overtake a read-modify-write of its blocks.
            Op::Trim { fua, .. } => {
                let (inner, inner_end) = (offset.div_ceil(block) * block, end - end % block);
                if inner >= inner_end {
                    return self.answer(id, Ok(Output::Done));
                }
                let op = Op::Trim {
                    offset_bytes: inner,
                    len_bytes: inner_end - inner,
                    fua,
                };
                self.start_write(Request { id, op }, inner, inner_end, false);
            }
            Op::WriteZeroes { .. } if aligned => {
                self.start_write(Request { id, op }, start, stop, false);
            }
            Op::WriteZeroes {
                may_unmap,
                fast_only,
                fua,
                ..
            } => {
                let zeroes = RaggedZeroes {
                    offset,
                    end,
                    may_unmap,
                    fast_only,
                    fua,
                };
                self.submit_ragged_zeroes(id, zeroes, block);
            }
            _ if aligned => self.device.submit(Request { id, op }),
            Op::Read { len_bytes, .. } | Op::ReadToMerge { len_bytes, .. } => {
                let skip = (offset - start) as usize;
                let id = self.step(Step::Cut {
                    id,
                    skip,
                    len: len_bytes as usize,
                });
                let Ok(len_bytes) = u32::try_from(stop - start) else {
                    return self.on_step(id, Err(Error::Invalid));
                };
                self.device.submit(Request {
                    id,
                    op: Op::Read {
                        offset_bytes: start,
                        len_bytes,
                    },
                });
            }
            Op::BlockStatus { .. } => {
                let id = self.step(Step::Extents {
                    id,
                    skip: offset - start,
                });
                let op = Op::BlockStatus {
                    offset_bytes: start,
                    len_bytes: stop - start,
                };
                self.device.submit(Request { id, op });
            }
            Op::Cache { .. } => {
                let op = Op::Cache {
                    offset_bytes: start,
                    len_bytes: stop - start,
                };
                self.device.submit(Request { id, op });
            }
            Op::Flush => unreachable!("a flush has no range"),
        }
    }

    fn commit(&mut self) {
        self.device.commit();
    }

    fn poll_complete(&mut self) -> Option<Completion> {
        loop {
            if let Some(completion) = self.done.pop_front() {
                return Some(completion);
            }
            let completion = self.device.poll_complete()?;
            if completion.id & STEP_FLAG != 0 {
                self.on_step(completion.id, completion.result);
                continue;
            }
            if !self.writing.is_empty() {
                self.finish_write(completion.id);
            }
            return Some(completion);
        }
    }
}

#[cfg(test)]
#[path = "align_tests.rs"]
mod tests;

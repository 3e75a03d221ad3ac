//! Faults on purpose, so that an operator can rehearse them and a test can cause them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use super::{BlockDevice, Completion, Error, Geometry, Op, Request};

/// A layer that fails requests when its switches say so; without faults it costs one relaxed load.
pub struct Fault<D> {
    switches: Arc<FaultSwitches>,
    failed: VecDeque<Completion>,
    device: D,
}

/// Switches of a [`Fault`] layer; shared with the control plane.
#[derive(Debug, Default)]
pub struct FaultSwitches {
    /// How many requests are still to fail.
    remaining: AtomicU32,
    /// Which ones: bit 0 reads, bit 1 writes (also TRIM and WRITE ZEROES), bit 2 flushes.
    kinds: AtomicU8,
}

/// Which requests a fault hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultKinds {
    /// Reads.
    pub reads: bool,
    /// Writes, TRIM and WRITE ZEROES.
    pub writes: bool,
    /// Flushes.
    pub flushes: bool,
}

impl FaultSwitches {
    /// Fails the next `count` requests of these kinds with a medium error, before they reach the
    /// device; 0 ends the fault.
    pub fn fail_next(&self, count: u32, kinds: FaultKinds) {
        let bits =
            u8::from(kinds.reads) | u8::from(kinds.writes) << 1 | u8::from(kinds.flushes) << 2;
        self.kinds.store(bits, Ordering::Relaxed);
        self.remaining.store(count, Ordering::Relaxed);
    }

    fn hits(&self, op: &Op) -> bool {
        let bit = match op {
            Op::Read { .. } | Op::ReadToMerge { .. } => 1,
            Op::Write { .. } | Op::Trim { .. } | Op::WriteZeroes { .. } => 2,
            Op::Flush => 4,
            Op::BlockStatus { .. } | Op::Cache { .. } => 0,
        };
        self.kinds.load(Ordering::Relaxed) & bit != 0
            && self
                .remaining
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                    left.checked_sub(1)
                })
                .is_ok()
    }
}

impl<D: BlockDevice> Fault<D> {
    /// Puts the layer over `device`.
    pub fn new(device: D, switches: Arc<FaultSwitches>) -> Self {
        Self {
            switches,
            failed: VecDeque::new(),
            device,
        }
    }
}

impl<D: BlockDevice> BlockDevice for Fault<D> {
    fn geometry(&self) -> &Geometry {
        self.device.geometry()
    }

    fn submit(&mut self, request: Request) {
        if self.switches.remaining.load(Ordering::Relaxed) != 0 && self.switches.hits(&request.op) {
            self.failed.push_back(Completion {
                id: request.id,
                result: Err(Error::Medium),
            });
        } else {
            self.device.submit(request);
        }
    }

    fn commit(&mut self) {
        self.device.commit();
    }

    fn poll_complete(&mut self) -> Option<Completion> {
        self.failed
            .pop_front()
            .or_else(|| self.device.poll_complete())
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::ModelDevice;
    use super::*;

    #[test]
    fn only_the_named_kinds_fail_and_only_so_often() {
        let switches = Arc::new(FaultSwitches::default());
        let mut fault = Fault::new(ModelDevice::new(4096, 512, 4096), Arc::clone(&switches));
        switches.fail_next(
            1,
            FaultKinds {
                reads: false,
                writes: false,
                flushes: true,
            },
        );
        let mut results = Vec::new();
        for (id, op) in [
            (
                1,
                Op::Read {
                    offset_bytes: 0,
                    len_bytes: 512,
                },
            ),
            (2, Op::Flush),
            (3, Op::Flush),
        ] {
            fault.submit(Request { id, op });
            results.push(fault.poll_complete().expect("an answer"));
        }
        assert!(results[0].result.is_ok());
        assert_eq!(results[1].result, Err(Error::Medium));
        assert!(results[2].result.is_ok());
    }
}

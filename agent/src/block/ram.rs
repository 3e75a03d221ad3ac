//! A disk in memory: for the demo, for measurements without a target, and for tests.

use std::collections::{BTreeSet, HashMap, VecDeque};

use super::{
    BlockDevice, Completion, Error, Extent, Geometry, Op, Output, Payload, Request, ZeroLimits,
};

/// Unit of allocation in bytes; what was never written takes no memory.
const PAGE_BYTES: u64 = 64 * 1024;

/// A sparse disk in memory with a volatile write cache: what was written and not flushed is gone after
/// [`RamDevice::cut_power`]. Answers at once, in order.
#[derive(Debug)]
pub struct RamDevice {
    geometry: Geometry,
    pages: HashMap<u64, Box<[u8]>>,
    /// What survives a power cut, of the pages that differ from it: `None` for a hole.
    durable: HashMap<u64, Option<Box<[u8]>>>,
    done: VecDeque<Completion>,
}

impl RamDevice {
    /// A disk of `size_bytes` zeroes, all holes. Any alignment is served.
    #[must_use]
    pub fn new(size_bytes: u64) -> Self {
        let zeroes = ZeroLimits {
            max_bytes: u64::MAX,
            granularity_bytes: 1,
            alignment_bytes: 0,
        };
        Self {
            geometry: Geometry {
                size_bytes,
                logical_block_bytes: 512,
                physical_block_bytes: 4096,
                optimal_io_bytes: 65536,
                transfer_max_bytes: 32 * 1024 * 1024,
                read_only: false,
                write_cache: true,
                rotational: false,
                trim: Some(zeroes),
                write_zeroes: Some(zeroes),
                provisioning_map: true,
            },
            pages: HashMap::new(),
            durable: HashMap::new(),
            done: VecDeque::new(),
        }
    }

    /// Changes what the device says of itself; for read-only disks and other sizes.
    pub fn geometry_mut(&mut self) -> &mut Geometry {
        &mut self.geometry
    }

    /// Loses everything that was not flushed, as a disk does when its power fails.
    pub fn cut_power(&mut self) {
        for (page, content) in self.durable.drain() {
            match content {
                Some(content) => self.pages.insert(page, content),
                None => self.pages.remove(&page),
            };
        }
    }

    fn run(&mut self, op: Op) -> Result<Output, Error> {
        let (writes, fua) = match &op {
            Op::Write { fua, .. } | Op::Trim { fua, .. } | Op::WriteZeroes { fua, .. } => {
                (true, *fua)
            }
            _ => (false, false),
        };
        if writes && self.geometry.read_only {
            return Err(Error::ReadOnly);
        }
        let range = match op {
            Op::Read {
                offset_bytes,
                len_bytes,
            }
            | Op::ReadToMerge {
                offset_bytes,
                len_bytes,
            } => {
                self.check(offset_bytes, u64::from(len_bytes))?;
                return Ok(Output::Data(self.read(offset_bytes, len_bytes as usize)));
            }
            Op::BlockStatus {
                offset_bytes,
                len_bytes,
            } => {
                self.check(offset_bytes, len_bytes)?;
                return Ok(Output::Extents(self.extents(offset_bytes, len_bytes)));
            }
            Op::Cache {
                offset_bytes,
                len_bytes,
            } => {
                self.check(offset_bytes, len_bytes)?;
                return Ok(Output::Done);
            }
            Op::Flush => {
                self.durable.clear();
                return Ok(Output::Done);
            }
            Op::Write {
                offset_bytes, data, ..
            } => {
                self.check(offset_bytes, data.len() as u64)?;
                self.write(offset_bytes, &data);
                (offset_bytes, data.len() as u64)
            }
            Op::Trim {
                offset_bytes,
                len_bytes,
                ..
            } => {
                self.check(offset_bytes, len_bytes)?;
                self.zero(offset_bytes, len_bytes, true);
                (offset_bytes, len_bytes)
            }
            Op::WriteZeroes {
                offset_bytes,
                len_bytes,
                may_unmap,
                ..
            } => {
                self.check(offset_bytes, len_bytes)?;
                self.zero(offset_bytes, len_bytes, may_unmap);
                (offset_bytes, len_bytes)
            }
        };
        if fua {
            // Whole pages become durable, which is more than was asked for.
            let touched: BTreeSet<u64> =
                pages_of(range.0, range.1).map(|(page, ..)| page).collect();
            self.durable.retain(|page, _| !touched.contains(page));
        }
        Ok(Output::Done)
    }

    fn check(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), Error> {
        match offset_bytes.checked_add(len_bytes) {
            Some(end) if end <= self.geometry.size_bytes => Ok(()),
            _ => Err(Error::OutOfRange),
        }
    }

    fn read(&self, offset_bytes: u64, len: usize) -> Payload {
        let allocated =
            pages_of(offset_bytes, len as u64).any(|(page, ..)| self.pages.contains_key(&page));
        if !allocated {
            return Payload::zeroes(len);
        }
        let mut out = Vec::with_capacity(len);
        for (page, from, to) in pages_of(offset_bytes, len as u64) {
            match self.pages.get(&page) {
                Some(content) => out.extend_from_slice(&content[from..to]),
                None => out.resize(out.len() + (to - from), 0),
            }
        }
        Payload::from(out)
    }

    fn write(&mut self, offset_bytes: u64, data: &Payload) {
        let mut at = 0;
        for (page, from, to) in pages_of(offset_bytes, data.len() as u64) {
            data.slice(at, to - from)
                .copy_to(&mut self.page_mut(page)[from..to]);
            at += to - from;
        }
    }

    fn zero(&mut self, offset_bytes: u64, len_bytes: u64, may_unmap: bool) {
        for (page, from, to) in pages_of(offset_bytes, len_bytes) {
            if may_unmap && to - from == PAGE_BYTES as usize {
                let old = self.pages.remove(&page);
                self.durable.entry(page).or_insert(old);
            } else if !may_unmap || self.pages.contains_key(&page) {
                self.page_mut(page)[from..to].fill(0);
            }
        }
    }

    /// The page for writing; its durable content is kept aside the first time.
    fn page_mut(&mut self, page: u64) -> &mut [u8] {
        self.durable
            .entry(page)
            .or_insert_with(|| self.pages.get(&page).cloned());
        self.pages
            .entry(page)
            .or_insert_with(|| vec![0; PAGE_BYTES as usize].into_boxed_slice())
    }

    fn extents(&self, offset_bytes: u64, len_bytes: u64) -> Vec<Extent> {
        let mut out: Vec<Extent> = Vec::new();
        for (page, from, to) in pages_of(offset_bytes, len_bytes) {
            let hole = !self.pages.contains_key(&page);
            let len_bytes = (to - from) as u64;
            match out.last_mut() {
                Some(last) if last.hole == hole => last.len_bytes += len_bytes,
                _ => out.push(Extent {
                    len_bytes,
                    hole,
                    zero: hole,
                }),
            }
        }
        out
    }
}

/// The pages of a range: number, and first and last byte in it.
fn pages_of(offset_bytes: u64, len_bytes: u64) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset_bytes + len_bytes;
    let last = if len_bytes == 0 {
        offset_bytes / PAGE_BYTES
    } else {
        (end - 1) / PAGE_BYTES + 1
    };
    (offset_bytes / PAGE_BYTES..last).map(move |page| {
        let start = page * PAGE_BYTES;
        let from = offset_bytes.max(start) - start;
        let to = end.min(start + PAGE_BYTES) - start;
        (page, from as usize, to as usize)
    })
}

impl BlockDevice for RamDevice {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn submit(&mut self, request: Request) {
        let result = self.run(request.op);
        self.done.push_back(Completion {
            id: request.id,
            result,
        });
    }

    fn commit(&mut self) {}

    fn poll_complete(&mut self) -> Option<Completion> {
        self.done.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ask(device: &mut RamDevice, op: Op) -> Result<Output, Error> {
        device.submit(Request { id: 7, op });
        let completion = device.poll_complete().expect("answers at once");
        assert_eq!(completion.id, 7);
        completion.result
    }

    fn read(device: &mut RamDevice, offset_bytes: u64, len_bytes: u32) -> Vec<u8> {
        match ask(
            device,
            Op::Read {
                offset_bytes,
                len_bytes,
            },
        ) {
            Ok(Output::Data(data)) => data.to_bytes().to_vec(),
            other => panic!("{other:?}"),
        }
    }

    fn write(device: &mut RamDevice, offset_bytes: u64, data: Vec<u8>, fua: bool) {
        let op = Op::Write {
            offset_bytes,
            data: Payload::from(data),
            fua,
        };
        assert_eq!(ask(device, op), Ok(Output::Done));
    }

    #[test]
    fn what_was_not_flushed_is_lost() {
        let mut device = RamDevice::new(1 << 20);
        write(&mut device, 0, vec![1; 512], false);
        ask(&mut device, Op::Flush).unwrap();
        write(&mut device, 0, vec![2; 512], false);
        write(&mut device, 1 << 17, vec![3; 512], true);
        write(&mut device, 1 << 18, vec![4; 512], false);
        device.cut_power();
        assert_eq!(read(&mut device, 0, 512), vec![1; 512]);
        assert_eq!(read(&mut device, 1 << 17, 512), vec![3; 512]);
        assert_eq!(read(&mut device, 1 << 18, 512), vec![0; 512]);
    }

    #[test]
    fn extents_follow_allocation() {
        let mut device = RamDevice::new(1 << 20);
        write(&mut device, PAGE_BYTES, vec![1; 1], false);
        let op = Op::BlockStatus {
            offset_bytes: 0,
            len_bytes: 1 << 20,
        };
        let hole = |len_bytes| Extent {
            len_bytes,
            hole: true,
            zero: true,
        };
        let data = Extent {
            len_bytes: PAGE_BYTES,
            hole: false,
            zero: false,
        };
        assert_eq!(
            ask(&mut device, op.clone()),
            Ok(Output::Extents(vec![
                hole(PAGE_BYTES),
                data,
                hole((1 << 20) - 2 * PAGE_BYTES)
            ]))
        );
        let trim = Op::Trim {
            offset_bytes: 0,
            len_bytes: 1 << 20,
            fua: false,
        };
        ask(&mut device, trim).unwrap();
        assert_eq!(
            ask(&mut device, op),
            Ok(Output::Extents(vec![hole(1 << 20)]))
        );
    }

    #[test]
    fn refusals() {
        let mut device = RamDevice::new(1 << 20);
        let past = Op::Read {
            offset_bytes: u64::MAX,
            len_bytes: 1,
        };
        assert_eq!(ask(&mut device, past), Err(Error::OutOfRange));
        device.geometry_mut().read_only = true;
        let op = Op::Trim {
            offset_bytes: 0,
            len_bytes: 512,
            fua: false,
        };
        assert_eq!(ask(&mut device, op), Err(Error::ReadOnly));
    }

    proptest! {
        #[test]
        fn agrees_with_a_flat_disk(
            ops in proptest::collection::vec(
                (0u8..4, 0u64..200_000, 0u64..150_000, any::<u8>()), 1..20),
        ) {
            let mut device = RamDevice::new(400_000);
            let mut flat = vec![0u8; 400_000];
            for (kind, offset_bytes, len_bytes, byte) in ops {
                let range = offset_bytes as usize..(offset_bytes + len_bytes) as usize;
                match kind {
                    0 => {
                        write(&mut device, offset_bytes, vec![byte; len_bytes as usize], false);
                        flat[range].fill(byte);
                    }
                    1 => {
                        let op = Op::WriteZeroes {
                            offset_bytes, len_bytes,
                            may_unmap: byte & 1 == 0, fast_only: false, fua: false,
                        };
                        ask(&mut device, op).unwrap();
                        flat[range].fill(0);
                    }
                    _ => {
                        prop_assert_eq!(
                            &read(&mut device, offset_bytes, len_bytes as u32)[..],
                            &flat[range]
                        );
                    }
                }
            }
        }
    }
}

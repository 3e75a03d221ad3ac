//! From what a device tells about a range to a legal block status reply (NBD `proto.md`, Metadata
//! querying).

use super::wire::chunk::{AllocationFlags, StatusExtent};
use crate::block::Extent;

/// Longest extent in a reply with 32-bit lengths, in bytes: whole 64 KiB, so that a cut keeps any
/// legal block alignment.
const COMPACT_EXTENT_MAX_BYTES: u64 = 0xffff_0000;

/// What a block status reply may hold.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Length of the request in bytes, not 0.
    pub len_bytes: u64,
    /// From the start of the request to the end of the export, in bytes.
    pub to_end_bytes: u64,
    /// REQ_ONE: one extent, not longer than the request.
    pub one: bool,
    /// Lengths have 64 bits.
    pub wide: bool,
    /// Most extents.
    pub extents_max: usize,
}

/// The extents to send, at least one.
///
/// Neighbours of one state are merged. All but the last sum to less than the request; the last may
/// run past it (not with REQ_ONE), but never past the export. Stopping early is legal: the client asks
/// again from there. A device that says nothing is reported as data, which is always a safe answer.
#[must_use]
pub fn shape(device: &[Extent], shape: Shape) -> Vec<StatusExtent> {
    let limit = if shape.one {
        shape.len_bytes.min(shape.to_end_bytes)
    } else {
        shape.to_end_bytes
    };
    let longest = if shape.wide {
        u64::MAX
    } else {
        COMPACT_EXTENT_MAX_BYTES
    };
    let most = if shape.one { 1 } else { shape.extents_max };
    let mut out: Vec<StatusExtent> = Vec::new();
    let mut told = 0;
    for extent in device {
        let flags = flags(extent);
        let len_bytes = extent.len_bytes.min(limit - told);
        if len_bytes == 0 {
            continue;
        }
        let full = out.len() == most;
        match out.last_mut() {
            Some(last) if last.flags == flags => last.len_bytes += len_bytes,
            // Only merging may go on past the request or the bound: a new extent may not start there.
            _ if told >= shape.len_bytes || full => break,
            _ => out.push(StatusExtent { len_bytes, flags }),
        }
        told += len_bytes;
        let last = out.last_mut().expect("an extent was just added");
        if last.len_bytes > longest {
            last.len_bytes = longest;
            break;
        }
        if told == limit {
            break;
        }
    }
    if out.is_empty() {
        out.push(StatusExtent {
            len_bytes: shape.len_bytes.min(longest),
            flags: AllocationFlags::empty(),
        });
    }
    out
}

fn flags(extent: &Extent) -> AllocationFlags {
    let mut flags = AllocationFlags::empty();
    flags.set(AllocationFlags::HOLE, extent.hole);
    flags.set(AllocationFlags::ZERO, extent.zero);
    flags
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DATA: (bool, bool) = (false, false);
    const HOLE: (bool, bool) = (true, true);

    fn device(extents: &[(u64, (bool, bool))]) -> Vec<Extent> {
        extents
            .iter()
            .map(|&(len_bytes, (hole, zero))| Extent {
                len_bytes,
                hole,
                zero,
            })
            .collect()
    }

    fn told(extents: &[(u64, (bool, bool))], shape_of: Shape) -> Vec<(u64, u32)> {
        shape(&device(extents), shape_of)
            .iter()
            .map(|e| (e.len_bytes, e.flags.bits()))
            .collect()
    }

    const PLAIN: Shape = Shape {
        len_bytes: 4096,
        to_end_bytes: 1 << 40,
        one: false,
        wide: false,
        extents_max: 100,
    };

    #[test]
    fn equal_neighbours_are_merged() {
        let extents = [(512, DATA), (512, DATA), (1024, HOLE), (2048, DATA)];
        assert_eq!(told(&extents, PLAIN), [(1024, 0), (1024, 3), (2048, 0)]);
    }

    #[test]
    fn the_last_extent_may_run_past_the_request_and_no_other() {
        let extents = [(2048, DATA), (8192, HOLE), (512, DATA)];
        assert_eq!(told(&extents, PLAIN), [(2048, 0), (8192, 3)]);
        let end = Shape {
            to_end_bytes: 6144,
            ..PLAIN
        };
        assert_eq!(
            told(&extents, end),
            [(2048, 0), (4096, 3)],
            "the export ends there"
        );
    }

    #[test]
    fn req_one_is_one_extent_within_the_request() {
        let one = Shape { one: true, ..PLAIN };
        assert_eq!(told(&[(512, HOLE), (512, DATA)], one), [(512, 3)]);
        assert_eq!(told(&[(2048, HOLE), (8192, HOLE)], one), [(4096, 3)]);
    }

    #[test]
    fn silence_is_data() {
        assert_eq!(told(&[], PLAIN), [(4096, 0)]);
        assert_eq!(told(&[(0, HOLE)], PLAIN), [(4096, 0)]);
    }

    #[test]
    fn lengths_fit_the_header_style() {
        let extents = [(1 << 36, HOLE), (512, DATA)];
        let long = Shape {
            len_bytes: 0xffff_fe00,
            ..PLAIN
        };
        assert_eq!(told(&extents, long), [(COMPACT_EXTENT_MAX_BYTES, 3)]);
        let wide = Shape {
            wide: true,
            len_bytes: 1 << 37,
            ..PLAIN
        };
        assert_eq!(told(&extents, wide), [(1 << 36, 3), (512, 0)]);
    }

    #[test]
    fn the_number_of_extents_is_bounded() {
        let extents: Vec<_> = (0..1000)
            .map(|i| (4, if i % 2 == 0 { DATA } else { HOLE }))
            .collect();
        assert_eq!(told(&extents, PLAIN).len(), 100);
    }

    proptest! {
        #[test]
        fn replies_are_always_legal(
            extents in proptest::collection::vec((0u64..1 << 34, any::<(bool, bool)>()), 0..30),
            len in 1u64..1 << 36,
            more in 0u64..1 << 36,
            one: bool,
            wide: bool,
            extents_max in 1usize..10,
        ) {
            let len_bytes = if wide { len } else { len & 0xffff_ffff | 1 };
            let to_end_bytes = len_bytes + more;
            let told = shape(
                &device(&extents),
                Shape { len_bytes, to_end_bytes, one, wide, extents_max },
            );
            prop_assert!(!told.is_empty() && told.len() <= extents_max);
            prop_assert!(told.iter().all(|e| e.len_bytes > 0));
            prop_assert!(told.windows(2).all(|pair| pair[0].flags != pair[1].flags));
            let sum: u64 = told.iter().map(|e| e.len_bytes).sum();
            prop_assert!(sum <= to_end_bytes);
            prop_assert!(sum - told.last().unwrap().len_bytes < len_bytes);
            if one {
                prop_assert!(told.len() == 1 && sum <= len_bytes);
            }
            if !wide {
                prop_assert!(told.iter().all(|e| u32::try_from(e.len_bytes).is_ok()));
            }
            // Nothing is called zero or hole that the device did not call so.
            let mut at = 0;
            for extent in &told {
                let mut from = 0;
                for (len, (hole, zero)) in &extents {
                    if from < at + extent.len_bytes && at < from + len {
                        let flags = u32::from(*hole) | u32::from(*zero) << 1;
                        prop_assert_eq!(flags, extent.flags.bits());
                    }
                    from += len;
                }
                at += extent.len_bytes;
            }
        }
    }
}

//! Which places of a device are read to prove that it is blank.

use std::ops::Range;

/// What is read is a multiple of this, in bytes: no device has larger blocks.
pub(super) const UNIT: u64 = 4096;
/// Read at the beginning and at the end of a device: first superblocks, partition tables, labels of volume managers and both
/// copies of a GPT are there.
const ENDS: u64 = 1 << 20;
/// How many samples are taken all over a device.
const SAMPLES: u64 = 64;
/// Read around a place that depends on how a file system rounds.
const AROUND: u64 = 64 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// Ranges in bytes, in order and apart from each other, all within the device.
pub(super) fn places(size: u64) -> Vec<Range<u64>> {
    let mut places = vec![0..ENDS, size.saturating_sub(ENDS)..size];
    let mut spot = |at: u64, len: u64| places.push(at..at.saturating_add(len));
    // ext2/3/4: copies of the superblock in groups 1 and powers of 3, 5 and 7; a group has 8 blocks for each byte of a block
    // (Documentation/filesystems/ext4/blockgroup.rst of Linux).
    for block in [1 << 10, 2 << 10, 4 << 10, 64 << 10_u64] {
        let group = block * 8 * block;
        let first = if block == 1 << 10 { block } else { 0 };
        for number in [1, 3, 5, 7, 9, 25, 27, 49, 81, 125, 243, 343] {
            spot(group * number + first, UNIT);
        }
    }
    // btrfs: copies of the superblock at 64 KiB, 64 MiB and 256 GiB.
    spot(64 * MIB, UNIT);
    spot(256 * GIB, UNIT);
    // LUKS2: the second header follows the first, at powers of two up to 4 MiB.
    for at in [MIB, 2 * MIB, 4 * MIB] {
        spot(at, UNIT);
    }
    // XFS: one superblock for each allocation group, of which there are four up to 4 TiB; larger ones have 1 TiB each.
    for quarter in 1..4 {
        spot((size / 4 * quarter).saturating_sub(AROUND / 2), AROUND);
    }
    for tib in 1..=size.div_euclid(TIB).min(64) {
        spot((tib * TIB).saturating_sub(AROUND / 2), AROUND);
    }
    for sample in 0..SAMPLES {
        spot(size / SAMPLES * sample, UNIT);
    }
    merge(places, size)
}

/// Aligned, cut at the end of the device, in order, and what touches joined.
fn merge(places: Vec<Range<u64>>, size: u64) -> Vec<Range<u64>> {
    let mut places: Vec<_> = places
        .into_iter()
        .filter(|place| place.start < size)
        .map(|place| {
            let end = place.end.div_ceil(UNIT).saturating_mul(UNIT);
            place.start / UNIT * UNIT..end.min(size)
        })
        .collect();
    places.sort_by_key(|place| place.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(places.len());
    for place in places {
        match merged.last_mut() {
            Some(last) if place.start <= last.end => last.end = last.end.max(place.end),
            _ => merged.push(place),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn holds(places: &[Range<u64>], at: u64) -> bool {
        places.iter().any(|place| place.contains(&at))
    }

    #[test]
    fn a_small_device_is_read_whole() {
        for size in [1, 512, 4096, 1 << 20, (2 << 20) - 512] {
            let places = places(size);
            assert_eq!((places.len(), &places[0]), (1, &(0..size)));
        }
    }

    #[test]
    fn copies_of_superblocks_are_looked_for() {
        let places = places(10 * TIB);
        for at in [
            0,
            ENDS - 1,
            10 * TIB - 1,
            8193 << 10,          // ext4, 1 KiB blocks, group 1
            32768 << 12,         // ext4, 4 KiB blocks, group 1
            (32768 << 12) * 343, // ... group 343
            64 * MIB,
            256 * GIB,
            4 * MIB,
            TIB,
            9 * TIB,
        ] {
            assert!(holds(&places, at), "{at}");
        }
        let read: u64 = places.iter().map(|place| place.end - place.start).sum();
        assert!(
            places.len() < 200 && read < 8 * MIB,
            "{}, {read}",
            places.len()
        );
    }

    proptest! {
        #[test]
        fn ranges_are_in_order_aligned_and_within(size in 1..u64::MAX / 2) {
            let places = places(size);
            prop_assert_eq!(places[0].start, 0);
            prop_assert_eq!(places[places.len() - 1].end, size);
            for pair in places.windows(2) {
                prop_assert!(pair[0].end < pair[1].start);
            }
            for place in &places {
                prop_assert!(place.start < place.end && place.start % UNIT == 0);
                prop_assert!(place.end % UNIT == 0 || place.end == size);
            }
        }
    }
}

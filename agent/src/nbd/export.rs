//! What an export looks like to clients: transmission flags and block sizes, derived from the
//! device's geometry here and nowhere else.

use super::wire::option::BlockSizes;
use super::wire::{PAYLOAD_MAX_BYTES, TransmissionFlags};
use crate::block::Geometry;

/// Largest minimum block size that the protocol allows, in bytes.
const MINIMUM_BLOCK_MAX_BYTES: u32 = 65536;
/// What clients assume when nothing is said (`proto.md`, Block size constraints).
const PREFERRED_BLOCK_MIN_BYTES: u32 = 4096;

/// One line of the list of exports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportSummary {
    /// Name that clients ask for.
    pub name: String,
    /// Text for people; may be empty.
    pub description: String,
}

/// What a client may know about an export before it is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInfo {
    /// Canonical name: differs from what was asked for when an alias (such as the empty name of the
    /// default export) was used.
    pub name: String,
    /// Text for people; may be empty.
    pub description: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Flags that do not depend on the negotiation.
    pub flags: TransmissionFlags,
    /// Told to clients that ask.
    pub block_sizes: BlockSizes,
}

impl ExportInfo {
    /// Describes a device of this geometry.
    #[must_use]
    pub fn new(name: &str, description: &str, geometry: &Geometry) -> Self {
        Self {
            name: name.to_owned(),
            description: description.to_owned(),
            size_bytes: geometry.size_bytes,
            flags: flags(geometry),
            block_sizes: block_sizes(geometry),
        }
    }
}

/// Where a handshake finds exports. The answers to INFO and GO come from here, so they agree as long
/// as the export does not change in between.
pub trait Exports {
    /// All exports that clients may see.
    fn list(&self) -> Vec<ExportSummary>;

    /// The export of this name, if it can be used now. The empty name asks for the default export.
    fn open(&self, name: &str) -> Option<ExportInfo>;
}

/// Flags of a device, without those that depend on the negotiation (DF, BLOCK_STATUS_PAYLOAD).
///
/// FLUSH, FUA and TRIM are offered whatever the device is now: the kernel keeps the flags of its
/// connect for ever, and a write cache may be switched on later. Where they cost nothing or do
/// nothing, the device answers at once. FAST_ZERO may be offered always: an export that cannot
/// refuses quickly. CAN_MULTI_CONN holds because all connections of an export share one device and
/// nothing above it caches.
fn flags(geometry: &Geometry) -> TransmissionFlags {
    let mut flags = TransmissionFlags::HAS_FLAGS
        | TransmissionFlags::SEND_FLUSH
        | TransmissionFlags::SEND_FUA
        | TransmissionFlags::SEND_TRIM
        | TransmissionFlags::SEND_WRITE_ZEROES
        | TransmissionFlags::CAN_MULTI_CONN
        | TransmissionFlags::SEND_CACHE
        | TransmissionFlags::SEND_FAST_ZERO;
    flags.set(TransmissionFlags::READ_ONLY, geometry.read_only);
    flags.set(TransmissionFlags::ROTATIONAL, geometry.rotational);
    flags
}

/// Block sizes of a device.
///
/// The minimum told is the logical block size, although requests of any alignment are served (by
/// read-modify-write below). A client that asked is bound by the answer and then never causes a
/// read-modify-write, which costs two round trips and is not atomic against writes by other nodes.
/// Clients that never ask keep working with any alignment.
fn block_sizes(geometry: &Geometry) -> BlockSizes {
    let mut minimum = power_of_two(geometry.logical_block_bytes, MINIMUM_BLOCK_MAX_BYTES);
    // The size should be a multiple of the minimum; a client could not reach the tail otherwise.
    while !geometry.size_bytes.is_multiple_of(u64::from(minimum)) {
        minimum /= 2;
    }
    let preferred = power_of_two(geometry.optimal_io_bytes, PAYLOAD_MAX_BYTES)
        .max(power_of_two(
            geometry.physical_block_bytes,
            PAYLOAD_MAX_BYTES,
        ))
        .max(minimum)
        .max(PREFERRED_BLOCK_MIN_BYTES);
    BlockSizes {
        minimum,
        preferred,
        maximum_payload: PAYLOAD_MAX_BYTES,
    }
}

/// The largest power of two that is at most `value` and at most `max` (itself one), and at least 1.
fn power_of_two(value: u32, max: u32) -> u32 {
    let capped = value.clamp(1, max);
    1 << capped.ilog2()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn geometry(size_bytes: u64) -> Geometry {
        Geometry {
            size_bytes,
            logical_block_bytes: 512,
            physical_block_bytes: 4096,
            optimal_io_bytes: 65536,
            transfer_max_bytes: 1 << 20,
            read_only: false,
            write_cache: true,
            rotational: false,
            trim: None,
            write_zeroes: None,
            provisioning_map: false,
        }
    }

    #[test]
    fn flags_follow_the_geometry() {
        let flags = ExportInfo::new("a", "", &geometry(1 << 20)).flags;
        assert!(flags.contains(TransmissionFlags::SEND_FLUSH | TransmissionFlags::SEND_FUA));
        assert!(!flags.contains(TransmissionFlags::READ_ONLY));
        let read_only = Geometry {
            read_only: true,
            rotational: true,
            ..geometry(1 << 20)
        };
        let changed = ExportInfo::new("a", "", &read_only).flags;
        assert_eq!(
            changed.symmetric_difference(flags),
            TransmissionFlags::READ_ONLY | TransmissionFlags::ROTATIONAL
        );
    }

    #[test]
    fn a_write_through_device_still_offers_flush_and_fua() {
        let plain = Geometry {
            write_cache: false,
            ..geometry(1 << 20)
        };
        let flags = ExportInfo::new("a", "", &plain).flags;
        assert!(flags.contains(TransmissionFlags::SEND_FLUSH | TransmissionFlags::SEND_FUA));
    }

    #[test]
    fn the_logical_block_is_the_minimum() {
        let sizes = block_sizes(&Geometry {
            logical_block_bytes: 4096,
            ..geometry(1 << 30)
        });
        assert_eq!(sizes.minimum, 4096);
        assert_eq!(sizes.preferred, 65536);
        assert_eq!(sizes.maximum_payload, 32 << 20);
    }

    proptest! {
        #[test]
        fn block_sizes_always_obey_the_protocol(
            size_bytes: u64, logical: u32, physical: u32, optimal: u32,
        ) {
            let geometry = Geometry {
                size_bytes,
                logical_block_bytes: logical,
                physical_block_bytes: physical,
                optimal_io_bytes: optimal,
                ..geometry(0)
            };
            let sizes = block_sizes(&geometry);
            prop_assert!(sizes.is_valid(), "{:?}", sizes);
            prop_assert_eq!(size_bytes % u64::from(sizes.minimum), 0);
        }
    }
}

//! INQUIRY: the standard data and the vital product data pages (SPC-4 6.6 and 7.8, SBC-3 6.6).

mod designator;
mod vpd;

pub use designator::{Association, Designator, DeviceIdentification, Identity};
pub use vpd::{
    BlockCharacteristics, BlockLimits, LogicalBlockProvisioning, ProvisioningType, SupportedPages,
    UnitSerialNumber,
};

use super::ParseError;
use super::field::{be16, bit, byte, flag, range};

/// Allocation length of the first INQUIRY: some devices choke on larger ones.
pub const STANDARD_MIN_BYTES: u16 = 36;

/// Most version descriptors in the standard data.
const VERSION_DESCRIPTORS_MAX: usize = 8;

/// Asymmetric access that a device offers (TPGS).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tpgs {
    /// None, or vendor specific.
    #[default]
    None,
    /// The device changes states by itself.
    Implicit,
    /// Initiators change states with SET TARGET PORT GROUPS.
    Explicit,
    /// Both.
    Both,
}

/// Standard INQUIRY data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inquiry {
    /// Peripheral qualifier: 0 connected, 1 not connected, 3 no device possible at this LUN.
    pub qualifier: u8,
    /// Peripheral device type: 0 is a direct access block device, 1Fh unknown.
    pub device_type: u8,
    /// Removable medium.
    pub removable: bool,
    /// Version: 6 for SPC-4, 5 for SPC-3.
    pub version: u8,
    /// Asymmetric access.
    pub tpgs: Tpgs,
    /// EXTENDED COPY is there.
    pub third_party_copy: bool,
    /// Protection information is supported.
    pub protect: bool,
    /// More than one port.
    pub multi_port: bool,
    /// Full task management: commands can be queued.
    pub command_queue: bool,
    /// T10 vendor identification.
    pub vendor: [u8; 8],
    /// Product identification.
    pub product: [u8; 16],
    /// Product revision.
    pub revision: [u8; 4],
    /// Standards that the device claims to follow.
    pub version_descriptors: Vec<u16>,
}

impl Inquiry {
    /// Whether a logical unit is there: qualifier 0, and not type 1Fh.
    #[must_use]
    pub const fn is_connected(&self) -> bool {
        self.qualifier == 0 && self.device_type != 0x1f
    }

    /// Whether this is a block device (direct access, or its simplified form).
    #[must_use]
    pub const fn is_block_device(&self) -> bool {
        matches!(self.device_type, 0x00 | 0x0e)
    }

    /// Vendor identification for people: trimmed, and printable ASCII whatever the device sent.
    #[must_use]
    pub fn vendor_text(&self) -> String {
        text(&self.vendor)
    }

    /// Product identification for people.
    #[must_use]
    pub fn product_text(&self) -> String {
        text(&self.product)
    }

    /// Product revision for people.
    #[must_use]
    pub fn revision_text(&self) -> String {
        text(&self.revision)
    }

    /// Parses standard INQUIRY data; what was cut off reads as zero or blank.
    ///
    /// # Errors
    /// [`ParseError::Short`] below 5 bytes, [`ParseError::Value`] for a response data format other
    /// than 2 of a connected device that claims SPC-2 or later.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        const WHAT: &str = "standard INQUIRY data";
        super::need(WHAT, bytes, 5)?;
        let bytes = range(bytes, 0, 5 + usize::from(bytes[4]));
        let format = byte(bytes, 3) & 0x0f;
        let qualifier = bytes[0] >> 5;
        if qualifier == 0 && byte(bytes, 2) >= 4 && format != 2 {
            return Err(ParseError::Value {
                what: WHAT,
                field: "response data format",
                value: format.into(),
                expected: "2",
            });
        }
        let version_descriptors = range(bytes, 58, 2 * VERSION_DESCRIPTORS_MAX)
            .chunks_exact(2)
            .map(|pair| be16(pair, 0))
            .filter(|descriptor| *descriptor != 0)
            .collect();
        Ok(Self {
            qualifier,
            device_type: bytes[0] & 0x1f,
            removable: bit(bytes, 1, 7),
            version: byte(bytes, 2),
            tpgs: match byte(bytes, 5) >> 4 & 3 {
                0 => Tpgs::None,
                1 => Tpgs::Implicit,
                2 => Tpgs::Explicit,
                _ => Tpgs::Both,
            },
            third_party_copy: bit(bytes, 5, 3),
            protect: bit(bytes, 5, 0),
            multi_port: bit(bytes, 6, 4),
            command_queue: bit(bytes, 7, 1),
            vendor: padded(range(bytes, 8, 8)),
            product: padded(range(bytes, 16, 16)),
            revision: padded(range(bytes, 32, 4)),
            version_descriptors,
        })
    }

    /// The standard data as bytes: 36, or 74 with version descriptors (at most 8 of them).
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let len = if self.version_descriptors.is_empty() {
            36
        } else {
            58 + 2 * VERSION_DESCRIPTORS_MAX
        };
        let mut out = vec![0; len];
        out[0] = self.qualifier << 5 | self.device_type & 0x1f;
        out[1] = flag(self.removable, 7);
        out[2] = self.version;
        // HISUP: LUNs may be hierarchical; response data format 2.
        out[3] = 1 << 4 | 2;
        out[4] = (len - 5) as u8;
        let tpgs = match self.tpgs {
            Tpgs::None => 0,
            Tpgs::Implicit => 1,
            Tpgs::Explicit => 2,
            Tpgs::Both => 3,
        };
        out[5] = tpgs << 4 | flag(self.third_party_copy, 3) | flag(self.protect, 0);
        out[6] = flag(self.multi_port, 4);
        out[7] = flag(self.command_queue, 1);
        out[8..16].copy_from_slice(&self.vendor);
        out[16..32].copy_from_slice(&self.product);
        out[32..36].copy_from_slice(&self.revision);
        let descriptors = self
            .version_descriptors
            .iter()
            .take(VERSION_DESCRIPTORS_MAX);
        for (i, descriptor) in descriptors.enumerate() {
            out[58 + 2 * i..60 + 2 * i].copy_from_slice(&descriptor.to_be_bytes());
        }
        out
    }
}

/// `bytes` padded with blanks, or cut, to a fixed field (SPC-4 4.3.1).
#[must_use]
pub fn padded<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [b' '; N];
    let n = N.min(bytes.len());
    out[..n].copy_from_slice(&bytes[..n]);
    out
}

/// ASCII of a device for logs: trimmed of blanks and NULs, anything unprintable as `?`.
pub(super) fn text(bytes: &[u8]) -> String {
    let is_padding = |byte: &u8| *byte == b' ' || *byte == 0;
    let start = bytes.iter().take_while(|byte| is_padding(byte)).count();
    let end = bytes.len()
        - bytes
            .iter()
            .rev()
            .take_while(|byte| is_padding(byte))
            .count();
    bytes
        .get(start..end)
        .unwrap_or_default()
        .iter()
        .map(|byte| match byte {
            b' '..=b'~' => char::from(*byte),
            _ => '?',
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn disk() -> Inquiry {
        Inquiry {
            qualifier: 0,
            device_type: 0,
            removable: false,
            version: 6,
            tpgs: Tpgs::Implicit,
            third_party_copy: false,
            protect: false,
            multi_port: true,
            command_queue: true,
            vendor: padded(b"BERTH"),
            product: padded(b"RAM DISK"),
            revision: padded(b"1"),
            version_descriptors: vec![],
        }
    }

    /// SPC-4 6.6.2, table 176.
    #[test]
    fn known_bytes() {
        let bytes = b"\x00\x00\x06\x12\x1f\x10\x10\x02BERTH   RAM DISK        1   ";
        assert_eq!(Inquiry::parse(bytes).unwrap(), disk());
        assert_eq!(disk().emit(), bytes);
        assert_eq!(disk().product_text(), "RAM DISK");
    }

    #[test]
    fn an_absent_unit_is_not_connected() {
        let inquiry = Inquiry::parse(&[0x7f, 0, 5, 2, 31]).unwrap();
        assert!(!inquiry.is_connected());
        assert_eq!(inquiry.vendor_text(), "");
    }

    #[test]
    fn control_characters_stay_out_of_logs() {
        assert_eq!(text(b"  a\x1b[31m\0 "), "a?[31m");
        assert_eq!(text(b" \0 "), "");
    }

    proptest! {
        #[test]
        fn round_trip(
            bits: [bool; 5], tpgs in 0u8..4, version in 3u8..8,
            ids: ([u8; 8], [u8; 16], [u8; 4]),
            version_descriptors in proptest::collection::vec(1u16.., 0..8),
        ) {
            let inquiry = Inquiry {
                version,
                tpgs: [Tpgs::None, Tpgs::Implicit, Tpgs::Explicit, Tpgs::Both][usize::from(tpgs)],
                removable: bits[0],
                third_party_copy: bits[1],
                protect: bits[2],
                multi_port: bits[3],
                command_queue: bits[4],
                vendor: ids.0,
                product: ids.1,
                revision: ids.2,
                version_descriptors,
                ..disk()
            };
            prop_assert_eq!(Inquiry::parse(&inquiry.emit()), Ok(inquiry));
        }

        #[test]
        fn any_bytes_are_safe(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(inquiry) = Inquiry::parse(&bytes) {
                prop_assert!(inquiry.vendor_text().bytes().all(|b| (b' '..=b'~').contains(&b)));
                prop_assert!(inquiry.version_descriptors.len() <= VERSION_DESCRIPTORS_MAX);
            }
        }
    }
}

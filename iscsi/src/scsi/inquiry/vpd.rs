//! VPD pages 00h, 80h, B0h, B1h and B2h.

use super::super::ParseError;
use super::super::field::{be16, be32, be64, bit, byte, flag, range};
use super::text;

/// The body of page `page` after its 4-byte header, cut at the page length.
pub(super) fn body<'a>(
    what: &'static str,
    page: u8,
    bytes: &'a [u8],
) -> Result<&'a [u8], ParseError> {
    super::super::need(what, bytes, 4)?;
    if bytes[1] != page {
        return Err(ParseError::Value {
            what,
            field: "page code",
            value: bytes[1].into(),
            expected: "the page that was asked for",
        });
    }
    Ok(range(bytes, 4, be16(bytes, 2).into()))
}

/// A page with its header; `body` is far below 64 KiB.
pub(super) fn page(page: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 + body.len());
    out.extend_from_slice(&[0, page]);
    out.extend_from_slice(&u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend_from_slice(body);
    out
}

/// Page 00h: which pages there are (SPC-4 7.8.18).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SupportedPages {
    /// Page codes, ascending if the device follows the standard.
    pub pages: Vec<u8>,
}

impl SupportedPages {
    /// Whether `page` may be asked for.
    #[must_use]
    pub fn contains(&self, page: u8) -> bool {
        self.pages.contains(&page)
    }

    /// Parses the page.
    ///
    /// # Errors
    /// [`ParseError`] when it is shorter than its header or another page.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        body("VPD page 00h", 0x00, bytes).map(|body| Self {
            pages: body.to_vec(),
        })
    }

    /// The page as bytes.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        page(0x00, &self.pages)
    }
}

/// Page 80h: the unit serial number (SPC-4 7.8.17).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitSerialNumber {
    /// Trimmed, printable ASCII.
    pub serial: String,
}

impl UnitSerialNumber {
    /// Parses the page.
    ///
    /// # Errors
    /// [`ParseError`] when it is shorter than its header or another page.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        body("VPD page 80h", 0x80, bytes).map(|body| Self { serial: text(body) })
    }

    /// The page as bytes.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        page(0x80, self.serial.as_bytes())
    }
}

/// Page B0h: limits in logical blocks; 0 means "not stated" unless said otherwise (SBC-3 6.6.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlockLimits {
    /// WSNZ: WRITE SAME of 0 blocks is refused.
    pub write_same_nonzero: bool,
    /// Longest COMPARE AND WRITE; 0: none.
    pub compare_and_write_max: u8,
    /// Preferred granularity of a transfer.
    pub transfer_granularity: u16,
    /// Longest transfer.
    pub transfer_max: u32,
    /// Longest transfer without delay.
    pub transfer_optimal: u32,
    /// Longest PRE-FETCH.
    pub prefetch_max: u32,
    /// Most blocks in one UNMAP; 0: no UNMAP; FFFFFFFFh: no limit.
    pub unmap_blocks_max: u32,
    /// Most descriptors in one UNMAP; FFFFFFFFh: no limit.
    pub unmap_descriptors_max: u32,
    /// Preferred granularity of UNMAP.
    pub unmap_granularity: u32,
    /// LBA of the first granule, when UGAVALID.
    pub unmap_alignment: Option<u32>,
    /// Longest WRITE SAME.
    pub write_same_max: u64,
    /// Longest atomic write; 0: none.
    pub atomic_max: u32,
    /// Alignment of atomic writes.
    pub atomic_alignment: u32,
    /// Granularity of atomic writes.
    pub atomic_granularity: u32,
    /// Longest atomic write with a boundary.
    pub atomic_with_boundary_max: u32,
    /// Largest boundary of an atomic write.
    pub atomic_boundary_max: u32,
}

impl BlockLimits {
    /// Parses the page; SBC-2 devices send only its first 16 bytes.
    ///
    /// # Errors
    /// [`ParseError`] when it is shorter than its header or another page.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let body = body("VPD page B0h", 0xb0, bytes)?;
        let alignment = be32(body, 28);
        Ok(Self {
            write_same_nonzero: bit(body, 0, 0),
            compare_and_write_max: byte(body, 1),
            transfer_granularity: be16(body, 2),
            transfer_max: be32(body, 4),
            transfer_optimal: be32(body, 8),
            prefetch_max: be32(body, 12),
            unmap_blocks_max: be32(body, 16),
            unmap_descriptors_max: be32(body, 20),
            unmap_granularity: be32(body, 24),
            unmap_alignment: (alignment >> 31 == 1).then_some(alignment & 0x7fff_ffff),
            write_same_max: be64(body, 32),
            atomic_max: be32(body, 40),
            atomic_alignment: be32(body, 44),
            atomic_granularity: be32(body, 48),
            atomic_with_boundary_max: be32(body, 52),
            atomic_boundary_max: be32(body, 56),
        })
    }

    /// The page as bytes.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut body = vec![flag(self.write_same_nonzero, 0), self.compare_and_write_max];
        body.extend_from_slice(&self.transfer_granularity.to_be_bytes());
        let alignment = self.unmap_alignment.map_or(0, |lba| 1 << 31 | lba);
        for value in [
            self.transfer_max,
            self.transfer_optimal,
            self.prefetch_max,
            self.unmap_blocks_max,
            self.unmap_descriptors_max,
            self.unmap_granularity,
            alignment,
        ] {
            body.extend_from_slice(&value.to_be_bytes());
        }
        body.extend_from_slice(&self.write_same_max.to_be_bytes());
        for value in [
            self.atomic_max,
            self.atomic_alignment,
            self.atomic_granularity,
            self.atomic_with_boundary_max,
            self.atomic_boundary_max,
        ] {
            body.extend_from_slice(&value.to_be_bytes());
        }
        page(0xb0, &body)
    }
}

/// Page B1h: what the medium is (SBC-3 6.6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlockCharacteristics {
    /// 0 unknown, 1 not rotating, else turns per minute.
    pub rotation: u16,
    /// Form factor, 0 unknown.
    pub form_factor: u8,
    /// Zoned field: 0 not zoned or not reported.
    pub zoned: u8,
    /// FUAB: SYNCHRONIZE CACHE and FUA behave as SBC-3 says.
    pub fua_behavior: bool,
    /// VBULS: VERIFY BYTCHK may name unmapped blocks.
    pub verify_unmapped: bool,
}

impl BlockCharacteristics {
    /// Whether the medium is known not to rotate.
    #[must_use]
    pub const fn is_solid_state(&self) -> bool {
        self.rotation == 1
    }

    /// Parses the page.
    ///
    /// # Errors
    /// [`ParseError`] when it is shorter than its header or another page.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let body = body("VPD page B1h", 0xb1, bytes)?;
        Ok(Self {
            rotation: be16(body, 0),
            form_factor: byte(body, 3) & 0x0f,
            zoned: byte(body, 4) >> 4 & 3,
            fua_behavior: bit(body, 4, 1),
            verify_unmapped: bit(body, 4, 0),
        })
    }

    /// The page as bytes.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut body = vec![0; 60];
        body[..2].copy_from_slice(&self.rotation.to_be_bytes());
        body[3] = self.form_factor & 0x0f;
        body[4] =
            (self.zoned & 3) << 4 | flag(self.fua_behavior, 1) | flag(self.verify_unmapped, 0);
        page(0xb1, &body)
    }
}

/// How a logical unit gets its storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProvisioningType {
    /// Fully provisioned, or not reported.
    #[default]
    Full,
    /// Resource provisioned: no more storage is needed than there is.
    Resource,
    /// Thin provisioned: space may run out.
    Thin,
}

/// Page B2h: thin provisioning (SBC-3 6.6.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogicalBlockProvisioning {
    /// Threshold exponent; 0: no thresholds.
    pub threshold_exponent: u8,
    /// LBPU: UNMAP.
    pub unmap: bool,
    /// LBPWS: WRITE SAME (16) with the UNMAP bit.
    pub write_same16_unmap: bool,
    /// LBPWS10: WRITE SAME (10) with the UNMAP bit.
    pub write_same10_unmap: bool,
    /// LBPRZ: unmapped blocks read as zeroes.
    pub reads_zeroes: bool,
    /// Anchored blocks.
    pub anchor: bool,
    /// How storage is provisioned.
    pub provisioning: ProvisioningType,
}

impl LogicalBlockProvisioning {
    /// Parses the page.
    ///
    /// # Errors
    /// [`ParseError`] when it is shorter than its header or another page.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let body = body("VPD page B2h", 0xb2, bytes)?;
        Ok(Self {
            threshold_exponent: byte(body, 0),
            unmap: bit(body, 1, 7),
            write_same16_unmap: bit(body, 1, 6),
            write_same10_unmap: bit(body, 1, 5),
            // SBC-4 made this three bits; xx1b is "zeroes", 010b a vendor's pattern.
            reads_zeroes: bit(body, 1, 2),
            anchor: bit(body, 1, 1),
            provisioning: match byte(body, 2) & 7 {
                1 => ProvisioningType::Resource,
                2 => ProvisioningType::Thin,
                _ => ProvisioningType::Full,
            },
        })
    }

    /// The page as bytes.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let flags = flag(self.unmap, 7)
            | flag(self.write_same16_unmap, 6)
            | flag(self.write_same10_unmap, 5)
            | flag(self.reads_zeroes, 2)
            | flag(self.anchor, 1);
        let kind = match self.provisioning {
            ProvisioningType::Full => 0,
            ProvisioningType::Resource => 1,
            ProvisioningType::Thin => 2,
        };
        page(0xb2, &[self.threshold_exponent, flags, kind, 0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// SPC-4 7.8.18 and 7.8.17.
    #[test]
    fn pages_00_and_80_known_bytes() {
        let pages = SupportedPages::parse(&[0, 0, 0, 3, 0x00, 0x80, 0x83, 0xff]).unwrap();
        assert_eq!(pages.pages, [0x00, 0x80, 0x83]);
        assert_eq!(pages.emit(), [0, 0, 0, 3, 0x00, 0x80, 0x83]);
        let serial = UnitSerialNumber::parse(b"\0\x80\0\x08   beaf1").unwrap();
        assert_eq!(serial.serial, "beaf1");
        assert_eq!(serial.emit(), b"\0\x80\0\x05beaf1");
    }

    /// SBC-3 6.6.4, table 192.
    #[test]
    fn page_b0_known_bytes() {
        let mut bytes = vec![0; 64];
        bytes[1] = 0xb0;
        bytes[3] = 0x3c;
        bytes[4] = 1;
        bytes[5] = 8;
        bytes[8..12].copy_from_slice(&0x2000u32.to_be_bytes());
        bytes[20..24].copy_from_slice(&u32::MAX.to_be_bytes());
        bytes[24..28].copy_from_slice(&32u32.to_be_bytes());
        bytes[32..36].copy_from_slice(&0x8000_0007u32.to_be_bytes());
        bytes[36..44].copy_from_slice(&0x1_0000_0000u64.to_be_bytes());
        let limits = BlockLimits {
            write_same_nonzero: true,
            compare_and_write_max: 8,
            transfer_max: 0x2000,
            unmap_blocks_max: u32::MAX,
            unmap_descriptors_max: 32,
            unmap_alignment: Some(7),
            write_same_max: 0x1_0000_0000,
            ..BlockLimits::default()
        };
        assert_eq!(BlockLimits::parse(&bytes), Ok(limits));
        assert_eq!(limits.emit(), bytes);
        // SBC-2's short page: what is missing is "not stated".
        bytes[3] = 0x0c;
        let short = BlockLimits::parse(&bytes[..16]).unwrap();
        assert_eq!((short.transfer_max, short.unmap_blocks_max), (0x2000, 0));
    }

    /// SBC-3 6.6.2 and 6.6.5.
    #[test]
    fn pages_b1_and_b2_known_bytes() {
        let page = BlockCharacteristics::parse(&[0, 0xb1, 0, 60, 0, 1, 0, 3, 0x12]).unwrap();
        assert!(page.is_solid_state() && page.fua_behavior);
        assert_eq!((page.form_factor, page.zoned), (3, 1));
        let page = LogicalBlockProvisioning::parse(&[0, 0xb2, 0, 4, 0, 0xe4, 2, 0]).unwrap();
        assert!(page.unmap && page.write_same16_unmap && page.write_same10_unmap);
        assert!(page.reads_zeroes && !page.anchor);
        assert_eq!(page.provisioning, ProvisioningType::Thin);
        assert_eq!(page.emit(), [0, 0xb2, 0, 4, 0, 0xe4, 2, 0]);
    }

    #[test]
    fn another_page_is_refused() {
        assert!(BlockLimits::parse(&[0, 0xb1, 0, 60]).is_err());
        assert!(SupportedPages::parse(&[0, 0, 0]).is_err());
    }

    proptest! {
        #[test]
        fn limits_round_trip(a: (bool, u8, u16), b: [u32; 6], unmap_alignment in proptest::option::of(0..1u32 << 31), c: u64, d: [u32; 5]) {
            let limits = BlockLimits {
                write_same_nonzero: a.0,
                compare_and_write_max: a.1,
                transfer_granularity: a.2,
                transfer_max: b[0],
                transfer_optimal: b[1],
                prefetch_max: b[2],
                unmap_blocks_max: b[3],
                unmap_descriptors_max: b[4],
                unmap_granularity: b[5],
                unmap_alignment,
                write_same_max: c,
                atomic_max: d[0],
                atomic_alignment: d[1],
                atomic_granularity: d[2],
                atomic_with_boundary_max: d[3],
                atomic_boundary_max: d[4],
            };
            prop_assert_eq!(BlockLimits::parse(&limits.emit()), Ok(limits));
        }

        #[test]
        fn small_pages_round_trip(rotation: u16, bits: [bool; 8], n in 0u8..4, exponent: u8) {
            let page = BlockCharacteristics {
                rotation,
                form_factor: n,
                zoned: n,
                fua_behavior: bits[0],
                verify_unmapped: bits[1],
            };
            prop_assert_eq!(BlockCharacteristics::parse(&page.emit()), Ok(page));
            let page = LogicalBlockProvisioning {
                threshold_exponent: exponent,
                unmap: bits[2],
                write_same16_unmap: bits[3],
                write_same10_unmap: bits[4],
                reads_zeroes: bits[5],
                anchor: bits[6],
                provisioning: if bits[7] { ProvisioningType::Thin } else { ProvisioningType::Resource },
            };
            prop_assert_eq!(LogicalBlockProvisioning::parse(&page.emit()), Ok(page));
        }

        #[test]
        fn any_bytes_are_safe(mut bytes in proptest::collection::vec(any::<u8>(), 2..100)) {
            for page in [0x00, 0x80, 0xb0, 0xb1, 0xb2] {
                bytes[1] = page;
                let _ = (SupportedPages::parse(&bytes), UnitSerialNumber::parse(&bytes));
                let _ = (BlockLimits::parse(&bytes), BlockCharacteristics::parse(&bytes));
                let _ = LogicalBlockProvisioning::parse(&bytes);
            }
        }
    }
}

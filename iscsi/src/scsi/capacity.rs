//! READ CAPACITY (10) and (16) (SBC-3 5.15 and 5.16).

use super::ParseError;
use super::field::{be16, be32, be64, bit, byte, flag};

/// Length of the READ CAPACITY (16) data in bytes.
pub const CAPACITY16_BYTES: u32 = 32;

/// Size of a logical unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Number of logical blocks, not 0.
    pub blocks: u64,
    /// Length of a logical block in bytes, not 0.
    pub block_len_bytes: u32,
    /// Protection type 1 to 3 when protection information is on.
    pub protection: Option<u8>,
    /// Physical block = logical block << this.
    pub physical_exponent: u8,
    /// LBPME: thin or resource provisioned.
    pub provisioning: bool,
    /// LBPRZ: unmapped blocks read as zeroes.
    pub reads_zeroes: bool,
    /// First LBA that is aligned to a physical block.
    pub lowest_aligned_lba: u16,
}

impl Capacity {
    /// A plain disk of `blocks` blocks.
    #[must_use]
    pub const fn new(blocks: u64, block_len_bytes: u32) -> Self {
        Self {
            blocks,
            block_len_bytes,
            protection: None,
            physical_exponent: 0,
            provisioning: false,
            reads_zeroes: false,
            lowest_aligned_lba: 0,
        }
    }

    /// Size in bytes; the parsers made sure that it fits.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.blocks.saturating_mul(self.block_len_bytes as u64)
    }

    /// Parses READ CAPACITY (10) data. `None`: the device is too large for it, ask with (16).
    ///
    /// # Errors
    /// [`ParseError`] for fewer than 8 bytes or a block length of 0.
    pub fn parse10(bytes: &[u8]) -> Result<Option<Self>, ParseError> {
        const WHAT: &str = "READ CAPACITY (10) data";
        super::need(WHAT, bytes, 8)?;
        match be32(bytes, 0) {
            u32::MAX => Ok(None),
            last => Self::checked(WHAT, last.into(), be32(bytes, 4)).map(Some),
        }
    }

    /// Parses READ CAPACITY (16) data; old devices send only the first 12 bytes.
    ///
    /// # Errors
    /// [`ParseError`] for fewer than 12 bytes, a block length of 0 or more than 2^64 - 1 bytes.
    pub fn parse16(bytes: &[u8]) -> Result<Self, ParseError> {
        const WHAT: &str = "READ CAPACITY (16) data";
        super::need(WHAT, bytes, 12)?;
        let plain = Self::checked(WHAT, be64(bytes, 0), be32(bytes, 8))?;
        let protection = byte(bytes, 12);
        Ok(Self {
            protection: (protection & 1 == 1).then_some((protection >> 1 & 7) + 1),
            physical_exponent: byte(bytes, 13) & 0x0f,
            provisioning: bit(bytes, 14, 7),
            reads_zeroes: bit(bytes, 14, 6),
            lowest_aligned_lba: be16(bytes, 14) & 0x3fff,
            ..plain
        })
    }

    fn checked(what: &'static str, last: u64, block_len_bytes: u32) -> Result<Self, ParseError> {
        if block_len_bytes == 0 {
            return Err(ParseError::Value {
                what,
                field: "block length in bytes",
                value: 0,
                expected: "at least 1",
            });
        }
        let blocks = last
            .checked_add(1)
            .filter(|blocks| blocks.checked_mul(block_len_bytes.into()).is_some());
        match blocks {
            Some(blocks) => Ok(Self::new(blocks, block_len_bytes)),
            None => Err(ParseError::Value {
                what,
                field: "last LBA",
                value: last,
                expected: "fewer than 2^64 bytes in all",
            }),
        }
    }

    /// READ CAPACITY (10) data.
    #[must_use]
    pub fn emit10(&self) -> [u8; 8] {
        let last = u32::try_from(self.blocks.saturating_sub(1)).unwrap_or(u32::MAX);
        let mut out = [0; 8];
        out[..4].copy_from_slice(&last.to_be_bytes());
        out[4..].copy_from_slice(&self.block_len_bytes.to_be_bytes());
        out
    }

    /// READ CAPACITY (16) data.
    #[must_use]
    pub fn emit16(&self) -> [u8; CAPACITY16_BYTES as usize] {
        let mut out = [0; CAPACITY16_BYTES as usize];
        out[..8].copy_from_slice(&self.blocks.saturating_sub(1).to_be_bytes());
        out[8..12].copy_from_slice(&self.block_len_bytes.to_be_bytes());
        out[12] = self
            .protection
            .map_or(0, |kind| (kind.saturating_sub(1) & 7) << 1 | 1);
        out[13] = self.physical_exponent & 0x0f;
        out[14..16].copy_from_slice(&(self.lowest_aligned_lba & 0x3fff).to_be_bytes());
        out[14] |= flag(self.provisioning, 7) | flag(self.reads_zeroes, 6);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_bytes() {
        let ten = [0, 1, 0xff, 0xff, 0, 0, 2, 0];
        let capacity = Capacity::new(0x2_0000, 512);
        assert_eq!(Capacity::parse10(&ten), Ok(Some(capacity)));
        assert_eq!(capacity.emit10(), ten);
        assert_eq!(capacity.size_bytes(), 64 << 20);
        let mut sixteen = [0; 32];
        sixteen[..16].copy_from_slice(&[
            0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x10, 0, 0x03, 0x03, 0xc0, 0x07,
        ]);
        let thin = Capacity {
            protection: Some(2),
            physical_exponent: 3,
            provisioning: true,
            reads_zeroes: true,
            lowest_aligned_lba: 7,
            ..Capacity::new(0x1_0000_0001, 4096)
        };
        assert_eq!(Capacity::parse16(&sixteen), Ok(thin));
        assert_eq!(thin.emit16(), sixteen);
    }

    #[test]
    fn large_devices_ask_for_sixteen() {
        let large = Capacity::new(1 << 32, 512);
        assert_eq!(Capacity::parse10(&large.emit10()), Ok(None));
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert!(Capacity::parse10(&[0; 8]).is_err());
        let mut bytes = [0xff; 12];
        assert!(Capacity::parse16(&bytes).is_err());
        bytes[0] = 0;
        assert!(Capacity::parse16(&bytes).is_err());
        assert!(Capacity::parse16(&bytes[..11]).is_err());
    }

    proptest! {
        #[test]
        fn round_trip(blocks in 1u64..1 << 50, shift in 9u32..13, flags: [bool; 2],
            protection in proptest::option::of(1u8..4), physical_exponent in 0u8..16,
            lowest_aligned_lba in 0u16..0x4000) {
            let capacity = Capacity {
                blocks,
                block_len_bytes: 1 << shift,
                protection,
                physical_exponent,
                provisioning: flags[0],
                reads_zeroes: flags[1],
                lowest_aligned_lba,
            };
            prop_assert_eq!(Capacity::parse16(&capacity.emit16()), Ok(capacity));
        }

        #[test]
        fn any_bytes_are_safe(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            for capacity in [Capacity::parse10(&bytes), Capacity::parse16(&bytes).map(Some)] {
                if let Ok(Some(capacity)) = capacity {
                    prop_assert!(capacity.size_bytes() > 0);
                    prop_assert_eq!(capacity.size_bytes() / u64::from(capacity.block_len_bytes), capacity.blocks);
                }
            }
        }
    }
}

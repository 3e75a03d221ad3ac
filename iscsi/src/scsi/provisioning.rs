//! UNMAP parameter lists and GET LBA STATUS data (SBC-3 5.28 and 5.5).

use super::ParseError;
use super::field::{be16, be32, be64, byte, range};

/// Bytes before the first descriptor, in both lists.
const HEADER_BYTES: usize = 8;
/// Bytes of one descriptor, in both lists.
const DESCRIPTOR_BYTES: usize = 16;

/// Most descriptors that fit into one UNMAP parameter list, whose length field has 16 bits.
pub const UNMAP_DESCRIPTORS_MAX: usize = (u16::MAX as usize - HEADER_BYTES) / DESCRIPTOR_BYTES;

/// A run of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRange {
    /// First block.
    pub lba: u64,
    /// Number of blocks.
    pub blocks: u32,
}

/// The parameter list of UNMAP.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UnmapList {
    /// Runs to unmap, at most [`UNMAP_DESCRIPTORS_MAX`].
    pub ranges: Vec<BlockRange>,
}

impl UnmapList {
    /// Parses a list. As SBC-3 5.28.2 asks, an incomplete last descriptor is ignored.
    ///
    /// # Errors
    /// [`ParseError::Short`] when the header is not whole, or promises more than there is: the device
    /// answers PARAMETER LIST LENGTH ERROR.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        const WHAT: &str = "UNMAP parameter list";
        super::need(WHAT, bytes, HEADER_BYTES)?;
        let descriptors_len = usize::from(be16(bytes, 2));
        super::need(WHAT, bytes, HEADER_BYTES + descriptors_len / 16 * 16)?;
        let ranges = range(bytes, HEADER_BYTES, descriptors_len)
            .chunks_exact(DESCRIPTOR_BYTES)
            .map(|descriptor| BlockRange {
                lba: be64(descriptor, 0),
                blocks: be32(descriptor, 8),
            })
            .collect();
        Ok(Self { ranges })
    }

    /// The list as bytes; ranges beyond [`UNMAP_DESCRIPTORS_MAX`] are left out.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let n = self.ranges.len().min(UNMAP_DESCRIPTORS_MAX);
        let mut out = Vec::with_capacity(HEADER_BYTES + n * DESCRIPTOR_BYTES);
        // At most 65535, by the maximum above.
        let descriptors_len = (n * DESCRIPTOR_BYTES) as u16;
        out.extend_from_slice(&(descriptors_len + 6).to_be_bytes());
        out.extend_from_slice(&descriptors_len.to_be_bytes());
        out.extend_from_slice(&[0; 4]);
        for BlockRange { lba, blocks } in &self.ranges[..n] {
            out.extend_from_slice(&lba.to_be_bytes());
            out.extend_from_slice(&blocks.to_be_bytes());
            out.extend_from_slice(&[0; 4]);
        }
        out
    }
}

/// Whether blocks have storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provisioning {
    /// Mapped, or not known.
    Mapped,
    /// Deallocated: no storage, no promise of any.
    Deallocated,
    /// Anchored: no data, but storage is reserved.
    Anchored,
}

/// One run of blocks with one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LbaStatus {
    /// The blocks.
    pub range: BlockRange,
    /// Their state.
    pub provisioning: Provisioning,
}

/// GET LBA STATUS data.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LbaStatusList {
    /// Runs in ascending order, the first one holding the LBA that was asked for.
    pub runs: Vec<LbaStatus>,
}

impl LbaStatusList {
    /// Parses the data as far as there are bytes, up to the first run that makes no sense (empty, or
    /// not where the one before ended).
    ///
    /// # Errors
    /// [`ParseError::Short`] when the header is not whole.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        super::need("GET LBA STATUS data", bytes, HEADER_BYTES)?;
        let len = (be32(bytes, 0) as usize).saturating_sub(HEADER_BYTES - 4);
        let mut runs = Vec::new();
        let mut next = None;
        for descriptor in range(bytes, HEADER_BYTES, len).chunks_exact(DESCRIPTOR_BYTES) {
            let lba = be64(descriptor, 0);
            let blocks = be32(descriptor, 8);
            let end = lba.checked_add(blocks.into());
            if blocks == 0 || end.is_none() || next.is_some_and(|next| next != lba) {
                break;
            }
            next = end;
            runs.push(LbaStatus {
                range: BlockRange { lba, blocks },
                provisioning: match byte(descriptor, 12) & 0x0f {
                    1 => Provisioning::Deallocated,
                    2 => Provisioning::Anchored,
                    _ => Provisioning::Mapped,
                },
            });
        }
        Ok(Self { runs })
    }

    /// The data as bytes.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES + self.runs.len() * DESCRIPTOR_BYTES);
        let len = HEADER_BYTES - 4 + self.runs.len() * DESCRIPTOR_BYTES;
        out.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(&[0; 4]);
        for run in &self.runs {
            out.extend_from_slice(&run.range.lba.to_be_bytes());
            out.extend_from_slice(&run.range.blocks.to_be_bytes());
            let state = match run.provisioning {
                Provisioning::Mapped => 0,
                Provisioning::Deallocated => 1,
                Provisioning::Anchored => 2,
            };
            out.extend_from_slice(&[state, 0, 0, 0]);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// SBC-3 5.28.2, table 98.
    #[test]
    fn unmap_known_bytes() {
        let bytes = [
            0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 64, 0, 0, 0, 0,
        ];
        let list = UnmapList {
            ranges: vec![BlockRange {
                lba: 0x800,
                blocks: 64,
            }],
        };
        assert_eq!(UnmapList::parse(&bytes).as_ref(), Ok(&list));
        assert_eq!(list.emit(), bytes);
        assert!(UnmapList::parse(&bytes[..23]).is_err());
        assert!(UnmapList::parse(&bytes[..7]).is_err());
    }

    #[test]
    fn a_list_never_outgrows_its_length_field() {
        let range = BlockRange { lba: 1, blocks: 1 };
        let list = UnmapList {
            ranges: vec![range; UNMAP_DESCRIPTORS_MAX + 1],
        };
        let bytes = list.emit();
        assert!(bytes.len() <= usize::from(u16::MAX));
        assert_eq!(
            UnmapList::parse(&bytes).unwrap().ranges.len(),
            UNMAP_DESCRIPTORS_MAX
        );
    }

    /// SBC-3 5.5.2, table 43.
    #[test]
    fn lba_status_known_bytes() {
        let mut bytes = vec![0, 0, 0, 36, 0, 0, 0, 0];
        bytes.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 8, 1, 0, 0, 0]);
        bytes.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 24, 0, 0, 0, 1, 0, 0, 0, 0]);
        let list = LbaStatusList::parse(&bytes).unwrap();
        assert_eq!(list.runs.len(), 2);
        assert_eq!(list.runs[0].provisioning, Provisioning::Deallocated);
        assert_eq!(list.runs[1].range, BlockRange { lba: 24, blocks: 1 });
        assert_eq!(list.emit(), bytes);
        // A gap, an empty run or an overflow ends the list.
        bytes[31] = 25;
        assert_eq!(LbaStatusList::parse(&bytes).unwrap().runs.len(), 1);
        bytes[19] = 0;
        assert!(LbaStatusList::parse(&bytes).unwrap().runs.is_empty());
    }

    proptest! {
        #[test]
        fn unmap_round_trips(ranges in proptest::collection::vec(any::<(u64, u32)>(), 0..20)) {
            let ranges = ranges.into_iter().map(|(lba, blocks)| BlockRange { lba, blocks }).collect();
            let list = UnmapList { ranges };
            prop_assert_eq!(UnmapList::parse(&list.emit()), Ok(list));
        }

        #[test]
        fn lba_status_round_trips(start in 0u64..1 << 40, lens in proptest::collection::vec((1u32.., 0u8..3), 0..20)) {
            let mut lba = start;
            let runs = lens.into_iter().map(|(blocks, state)| {
                let range = BlockRange { lba, blocks };
                lba += u64::from(blocks);
                let provisioning = [
                    Provisioning::Mapped, Provisioning::Deallocated, Provisioning::Anchored,
                ][usize::from(state)];
                LbaStatus { range, provisioning }
            }).collect();
            let list = LbaStatusList { runs };
            prop_assert_eq!(LbaStatusList::parse(&list.emit()), Ok(list));
        }

        #[test]
        fn any_bytes_are_safe(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = UnmapList::parse(&bytes);
            if let Ok(list) = LbaStatusList::parse(&bytes) {
                prop_assert!(list.runs.iter().all(|run| run.range.blocks > 0));
            }
        }
    }
}

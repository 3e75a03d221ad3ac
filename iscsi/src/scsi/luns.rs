//! REPORT LUNS data (SPC-4 6.33).

use super::ParseError;
use super::field::{be32, range};
use crate::types::Lun;

/// Bytes before the first LUN.
const HEADER_BYTES: usize = 8;

/// The LUNs of a target.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LunList {
    /// The LUNs, each to be used exactly as it was reported.
    pub luns: Vec<Lun>,
    /// Allocation length in bytes that the whole list needs.
    pub needed_bytes: u32,
}

impl LunList {
    /// A whole list.
    #[must_use]
    pub fn new(luns: Vec<Lun>) -> Self {
        let needed_bytes = u32::try_from(HEADER_BYTES + 8 * luns.len()).unwrap_or(u32::MAX);
        Self { luns, needed_bytes }
    }

    /// Whether LUNs were left out for want of room: ask again with [`LunList::needed_bytes`].
    #[must_use]
    pub fn is_cut(&self) -> bool {
        let have = HEADER_BYTES as u64 + 8 * self.luns.len() as u64;
        have < u64::from(self.needed_bytes)
    }

    /// Parses the list as far as there are bytes.
    ///
    /// # Errors
    /// [`ParseError::Short`] for fewer than 8 bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        super::need("REPORT LUNS data", bytes, HEADER_BYTES)?;
        // The remainder of a length that is no multiple of 8 holds no LUN.
        let list_len = be32(bytes, 0) & !7;
        let luns = range(bytes, HEADER_BYTES, list_len as usize)
            .chunks_exact(8)
            .map(|lun| Lun(lun.try_into().expect("chunks of 8 bytes")))
            .collect();
        Ok(Self {
            luns,
            needed_bytes: list_len.saturating_add(HEADER_BYTES as u32),
        })
    }

    /// The list as bytes.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut out = vec![0; HEADER_BYTES];
        let len = u32::try_from(8 * self.luns.len()).unwrap_or(!7);
        out[..4].copy_from_slice(&len.to_be_bytes());
        for lun in &self.luns {
            out.extend_from_slice(&lun.0);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_bytes() {
        let bytes = [
            0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x41, 0x2c, 0, 0, 0, 0, 0, 0,
        ];
        let list = LunList::parse(&bytes).unwrap();
        assert_eq!(
            list.luns.iter().map(|l| l.number()).collect::<Vec<_>>(),
            [Some(0), Some(300)]
        );
        assert!(!list.is_cut());
        assert_eq!(list.emit(), bytes);
        let cut = LunList::parse(&bytes[..16]).unwrap();
        assert!(cut.is_cut());
        assert_eq!((cut.luns.len(), cut.needed_bytes), (1, 24));
    }

    #[test]
    fn a_lying_length_allocates_nothing() {
        let list = LunList::parse(&[0xff; 12]).unwrap();
        assert!(list.luns.is_empty() && list.is_cut());
    }

    proptest! {
        #[test]
        fn round_trip(luns in proptest::collection::vec(any::<[u8; 8]>(), 0..40)) {
            let list = LunList::new(luns.into_iter().map(Lun).collect());
            prop_assert_eq!(LunList::parse(&list.emit()), Ok(list));
        }

        #[test]
        fn any_bytes_are_safe(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(list) = LunList::parse(&bytes) {
                prop_assert!(list.luns.len() * 8 <= bytes.len());
            }
        }
    }
}

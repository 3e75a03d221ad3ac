//! Mode parameters: MODE SENSE replies and MODE SELECT lists (SPC-4 7.5, SBC-3 6.4).

use super::ParseError;
use super::field::{be16, bit, byte, flag, range};

/// Most pages that are taken from one reply; there are fewer than 64 page codes.
const PAGES_MAX: usize = 128;

/// Which of the two headers, that is, which of the two commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModeHeader {
    /// MODE SENSE (6), MODE SELECT (6): 4 bytes.
    Six,
    /// MODE SENSE (10), MODE SELECT (10): 8 bytes.
    Ten,
}

impl ModeHeader {
    const fn len(self) -> usize {
        match self {
            Self::Six => 4,
            Self::Ten => 8,
        }
    }
}

/// One mode page with its bytes after the page header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawPage {
    /// Page code, below 3Fh.
    pub page: u8,
    /// Subpage code in the subpage format, 0 in the short format.
    pub subpage: u8,
    /// Whether the page can be saved (PS; reserved in MODE SELECT).
    pub savable: bool,
    /// The parameters.
    pub data: Vec<u8>,
}

/// The caching page (08h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CachingPage {
    /// WCE: writes are acknowledged before they are on the medium.
    pub write_cache: bool,
    /// RCD: the read cache is off.
    pub read_cache_off: bool,
}

/// The control page (0Ah).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ControlPage {
    /// D_SENSE: sense data comes in descriptor format.
    pub descriptor_sense: bool,
    /// TST: 1 when each initiator has its own task set.
    pub task_set_type: u8,
    /// SWP: software write protection.
    pub write_protect: bool,
    /// TAS: tasks that another nexus aborts end with TASK ABORTED.
    pub task_aborted_status: bool,
}

impl CachingPage {
    /// Page code.
    pub const PAGE: u8 = 0x08;

    /// Parses the parameters of the page.
    #[must_use]
    pub fn parse(page: &RawPage) -> Self {
        Self {
            write_cache: bit(&page.data, 0, 2),
            read_cache_off: bit(&page.data, 0, 0),
        }
    }

    /// The page as SBC-3 lays it out.
    #[must_use]
    pub fn emit(self) -> RawPage {
        let mut data = vec![0; 18];
        data[0] = flag(self.write_cache, 2) | flag(self.read_cache_off, 0);
        RawPage::new(Self::PAGE, data)
    }
}

impl ControlPage {
    /// Page code.
    pub const PAGE: u8 = 0x0a;

    /// Parses the parameters of the page.
    #[must_use]
    pub fn parse(page: &RawPage) -> Self {
        Self {
            descriptor_sense: bit(&page.data, 0, 2),
            task_set_type: byte(&page.data, 0) >> 5,
            write_protect: bit(&page.data, 2, 3),
            task_aborted_status: bit(&page.data, 3, 6),
        }
    }

    /// The page as SPC-4 lays it out.
    #[must_use]
    pub fn emit(self) -> RawPage {
        let mut data = vec![0; 10];
        data[0] = (self.task_set_type & 7) << 5 | flag(self.descriptor_sense, 2);
        data[2] = flag(self.write_protect, 3);
        data[3] = flag(self.task_aborted_status, 6);
        RawPage::new(Self::PAGE, data)
    }
}

impl RawPage {
    /// A page of the short format that cannot be saved.
    #[must_use]
    pub const fn new(page: u8, data: Vec<u8>) -> Self {
        Self {
            page,
            subpage: 0,
            savable: false,
            data,
        }
    }

    fn emit(&self, out: &mut Vec<u8>) {
        let first = flag(self.savable, 7) | self.page & 0x3f;
        if self.subpage == 0 {
            let data = range(&self.data, 0, u8::MAX.into());
            out.extend_from_slice(&[first, data.len() as u8]);
            out.extend_from_slice(data);
        } else {
            let data = range(&self.data, 0, u16::MAX.into());
            out.extend_from_slice(&[first | 1 << 6, self.subpage]);
            out.extend_from_slice(&(data.len() as u16).to_be_bytes());
            out.extend_from_slice(data);
        }
    }
}

/// A mode parameter list: header, block descriptors, pages.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModeParameters {
    /// Medium type; 0 for disks.
    pub medium_type: u8,
    /// WP: the device refuses writes.
    pub write_protected: bool,
    /// DPOFUA: the DPO and FUA bits of READ and WRITE are honoured.
    pub dpo_fua: bool,
    /// Block descriptors as they are.
    pub block_descriptors: Vec<u8>,
    /// Pages in order.
    pub pages: Vec<RawPage>,
}

impl ModeParameters {
    /// The first page with this code in the short format.
    #[must_use]
    pub fn page(&self, page: u8) -> Option<&RawPage> {
        self.pages
            .iter()
            .find(|found| found.page == page && found.subpage == 0)
    }

    /// The caching page, if it is there.
    #[must_use]
    pub fn caching(&self) -> Option<CachingPage> {
        self.page(CachingPage::PAGE).map(CachingPage::parse)
    }

    /// The control page, if it is there.
    #[must_use]
    pub fn control(&self) -> Option<ControlPage> {
        self.page(ControlPage::PAGE).map(ControlPage::parse)
    }

    /// Parses a MODE SENSE reply; a page that is cut off is left out.
    ///
    /// # Errors
    /// [`ParseError::Short`] when the header is not whole.
    pub fn parse(header: ModeHeader, bytes: &[u8]) -> Result<Self, ParseError> {
        super::need("mode parameter header", bytes, header.len())?;
        let len = match header {
            ModeHeader::Six => 1 + usize::from(bytes[0]),
            ModeHeader::Ten => 2 + usize::from(be16(bytes, 0)),
        };
        let bytes = range(bytes, 0, len.max(header.len()));
        let (mut list, mut rest) = Self::parse_header(header, bytes);
        while let Some((page, len)) = parse_page(rest).filter(|_| list.pages.len() < PAGES_MAX) {
            list.pages.push(page);
            rest = &rest[len..];
        }
        Ok(list)
    }

    /// Parses a MODE SELECT parameter list, whose mode data length is reserved.
    ///
    /// # Errors
    /// [`ParseError::Short`] when the header, the block descriptors or a page is cut off: the device
    /// answers PARAMETER LIST LENGTH ERROR.
    pub fn parse_select(header: ModeHeader, bytes: &[u8]) -> Result<Self, ParseError> {
        super::need("mode parameter header", bytes, header.len())?;
        let (mut list, mut rest) = Self::parse_header(header, bytes);
        let descriptors_len = Self::descriptors_len(header, bytes);
        super::need("mode parameter list", bytes, header.len() + descriptors_len)?;
        while !rest.is_empty() {
            let Some((page, len)) = parse_page(rest) else {
                return Err(ParseError::Short {
                    what: "mode page",
                    need: rest.len() + 1,
                    got: rest.len(),
                });
            };
            list.pages.push(page);
            rest = &rest[len..];
        }
        Ok(list)
    }

    fn descriptors_len(header: ModeHeader, bytes: &[u8]) -> usize {
        match header {
            ModeHeader::Six => byte(bytes, 3).into(),
            ModeHeader::Ten => be16(bytes, 6).into(),
        }
    }

    /// The header, and what follows the block descriptors.
    fn parse_header(header: ModeHeader, bytes: &[u8]) -> (Self, &[u8]) {
        let at = match header {
            ModeHeader::Six => 1,
            ModeHeader::Ten => 2,
        };
        let descriptors_len = Self::descriptors_len(header, bytes);
        let list = Self {
            medium_type: byte(bytes, at),
            write_protected: bit(bytes, at + 1, 7),
            dpo_fua: bit(bytes, at + 1, 4),
            block_descriptors: range(bytes, header.len(), descriptors_len).to_vec(),
            pages: Vec::new(),
        };
        let rest = bytes
            .get(header.len() + descriptors_len..)
            .unwrap_or_default();
        (list, rest)
    }

    /// The list as bytes, with the mode data length of a MODE SENSE reply.
    #[must_use]
    pub fn emit(&self, header: ModeHeader) -> Vec<u8> {
        let device_specific = flag(self.write_protected, 7) | flag(self.dpo_fua, 4);
        let descriptors = range(&self.block_descriptors, 0, u8::MAX.into());
        let mut out = match header {
            ModeHeader::Six => vec![
                0,
                self.medium_type,
                device_specific,
                descriptors.len() as u8,
            ],
            ModeHeader::Ten => vec![
                0,
                0,
                self.medium_type,
                device_specific,
                0,
                0,
                0,
                descriptors.len() as u8,
            ],
        };
        out.extend_from_slice(descriptors);
        for page in &self.pages {
            page.emit(&mut out);
        }
        match header {
            // A list too long for MODE SENSE (6) says the most that it can.
            ModeHeader::Six => out[0] = u8::try_from(out.len() - 1).unwrap_or(u8::MAX),
            ModeHeader::Ten => {
                let len = u16::try_from(out.len() - 2).unwrap_or(u16::MAX);
                out[..2].copy_from_slice(&len.to_be_bytes());
            }
        }
        out
    }
}

/// The page at the start of `bytes` and its length with header, if it is whole.
fn parse_page(bytes: &[u8]) -> Option<(RawPage, usize)> {
    let first = *bytes.first()?;
    let (subpage, start, len) = if first & 1 << 6 == 0 {
        (0, 2, usize::from(*bytes.get(1)?))
    } else {
        (*bytes.get(1)?, 4, usize::from(be16(bytes.get(2..4)?, 0)))
    };
    let page = RawPage {
        page: first & 0x3f,
        subpage,
        savable: first & 0x80 != 0,
        data: bytes.get(start..start + len)?.to_vec(),
    };
    Some((page, start + len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// SPC-4 7.5.5, table 406, and SBC-3 6.4.5: WP, DPOFUA, WCE.
    #[test]
    fn known_bytes() {
        let mut six = vec![23, 0, 0x90, 0, 0x08, 0x12, 0x04];
        six.resize(24, 0);
        let list = ModeParameters::parse(ModeHeader::Six, &six).unwrap();
        assert!(list.write_protected && list.dpo_fua);
        let caching = CachingPage {
            write_cache: true,
            read_cache_off: false,
        };
        assert_eq!(list.caching(), Some(caching));
        assert_eq!(list.control(), None);
        assert_eq!(list.emit(ModeHeader::Six), six);
        let mut ten = vec![0, 26, 0, 0x90, 0, 0, 0, 0];
        ten.extend_from_slice(&six[4..]);
        assert_eq!(
            ModeParameters::parse(ModeHeader::Ten, &ten),
            Ok(list.clone())
        );
        assert_eq!(list.emit(ModeHeader::Ten), ten);
    }

    /// SPC-4 7.5.8: D_SENSE, SWP and TAS.
    #[test]
    fn control_page_known_bytes() {
        let control = ControlPage {
            descriptor_sense: true,
            task_set_type: 1,
            write_protect: true,
            task_aborted_status: true,
        };
        let page = control.emit();
        assert_eq!(page.data, [0x24, 0, 0x08, 0x40, 0, 0, 0, 0, 0, 0]);
        assert_eq!(ControlPage::parse(&page), control);
    }

    #[test]
    fn block_descriptors_are_skipped() {
        let mut bytes = vec![15, 0, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0x0a, 2, 4, 0];
        let list = ModeParameters::parse(ModeHeader::Six, &bytes).unwrap();
        assert_eq!(list.block_descriptors, [1, 2, 3, 4, 5, 6, 7, 8]);
        assert!(list.control().unwrap().descriptor_sense);
        // A descriptor length that lies leaves no page.
        bytes[3] = 200;
        assert!(
            ModeParameters::parse(ModeHeader::Six, &bytes)
                .unwrap()
                .pages
                .is_empty()
        );
        assert!(ModeParameters::parse_select(ModeHeader::Six, &bytes).is_err());
    }

    #[test]
    fn select_refuses_what_is_cut_off() {
        let whole = [0, 0, 0, 0, 0x0a, 2, 4, 0];
        assert!(ModeParameters::parse_select(ModeHeader::Six, &whole).is_ok());
        for cut in [1, 3, 5, 7] {
            let result = ModeParameters::parse_select(ModeHeader::Six, &whole[..cut]);
            assert!(result.is_err(), "{cut} bytes");
        }
        assert!(ModeParameters::parse_select(ModeHeader::Six, &whole[..4]).is_ok());
    }

    proptest! {
        #[test]
        fn round_trip(
            flags: [bool; 2],
            descriptors in prop_oneof![Just(vec![]), proptest::collection::vec(any::<u8>(), 8)],
            pages in proptest::collection::vec(
                (0u8..0x3f, 0u8..4, any::<bool>(), proptest::collection::vec(any::<u8>(), 0..30)), 0..6),
        ) {
            let list = ModeParameters {
                medium_type: 0,
                write_protected: flags[0],
                dpo_fua: flags[1],
                block_descriptors: descriptors,
                pages: pages.into_iter().map(|(page, subpage, savable, data)| RawPage {
                    page, subpage, savable, data,
                }).collect(),
            };
            for header in [ModeHeader::Six, ModeHeader::Ten] {
                let bytes = list.emit(header);
                prop_assert_eq!(ModeParameters::parse(header, &bytes), Ok(list.clone()));
                prop_assert_eq!(ModeParameters::parse_select(header, &bytes), Ok(list.clone()));
            }
        }

        #[test]
        fn any_bytes_are_safe(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for header in [ModeHeader::Six, ModeHeader::Ten] {
                let _ = ModeParameters::parse_select(header, &bytes);
                if let Ok(list) = ModeParameters::parse(header, &bytes) {
                    prop_assert!(list.pages.len() <= PAGES_MAX);
                    let _ = (list.caching(), list.control());
                }
            }
        }
    }
}

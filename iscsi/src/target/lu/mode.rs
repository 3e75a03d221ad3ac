//! Mode parameters (SPC-4 7.5, SBC-3 6.4): the caching and control pages.

use berth_iobuf::Payload;

use super::super::executor::Nexus;
use super::config::LuConfig;
use super::refusal::{PARAMETER_LIST_LENGTH, field_in_cdb, field_in_parameters};
use super::{Answer, LogicalUnit, cut};
use crate::scsi::cdb::{ModePage, PageControl};
use crate::scsi::mode::{CachingPage, ControlPage, ModeHeader, ModeParameters, RawPage};
use crate::scsi::{Code, Command, Sense, SenseFormat};

const ALL_PAGES: u8 = 0x3f;
const ALL_SUBPAGES: u8 = 0xff;

/// What MODE SELECT can change.
#[derive(Debug, Clone, Copy)]
pub(super) struct ModeState {
    write_cache: bool,
    descriptor_sense: bool,
    write_protect: bool,
}

impl ModeState {
    pub(super) const fn new(config: &LuConfig) -> Self {
        Self {
            write_cache: config.write_cache,
            descriptor_sense: false,
            write_protect: false,
        }
    }

    pub(super) const fn sense_format(self) -> SenseFormat {
        if self.descriptor_sense {
            SenseFormat::Descriptor
        } else {
            SenseFormat::Fixed
        }
    }

    fn pages(self) -> [RawPage; 2] {
        [
            CachingPage {
                write_cache: self.write_cache,
                read_cache_off: false,
            }
            .emit(),
            ControlPage {
                descriptor_sense: self.descriptor_sense,
                write_protect: self.write_protect,
                ..ControlPage::default()
            }
            .emit(),
        ]
    }

    /// The bits that MODE SELECT may change, as pages.
    const CHANGEABLE: Self = Self {
        write_cache: true,
        descriptor_sense: true,
        write_protect: true,
    };
}

impl LogicalUnit {
    pub(super) const fn is_write_protected(&self) -> bool {
        self.config.read_only || self.mode.write_protect
    }

    pub(super) const fn write_protection(&self) -> Code {
        let ascq = if self.config.read_only { 0x00 } else { 0x02 };
        Code::new(crate::scsi::SenseKey::DataProtect, 0x27, ascq)
    }

    pub(super) fn mode_sense6(
        &self,
        page: ModePage,
        no_block_descriptor: bool,
        allocation_len: u32,
    ) -> Answer {
        let list = self.mode_parameters(page, no_block_descriptor)?;
        Ok(cut(list.emit(ModeHeader::Six), allocation_len))
    }

    pub(super) fn mode_sense10(
        &self,
        page: ModePage,
        no_block_descriptor: bool,
        allocation_len: u32,
    ) -> Answer {
        let list = self.mode_parameters(page, no_block_descriptor)?;
        Ok(cut(list.emit(ModeHeader::Ten), allocation_len))
    }

    fn mode_parameters(
        &self,
        page: ModePage,
        no_block_descriptor: bool,
    ) -> Result<ModeParameters, super::Refusal> {
        let state = match page.control {
            PageControl::Current => self.mode,
            PageControl::Changeable => ModeState::CHANGEABLE,
            PageControl::Default => ModeState::new(&self.config),
            PageControl::Saved => return Err(Sense::new(Code::SAVING_NOT_SUPPORTED).into()),
        };
        // There are no subpages; asking for all of them is fine.
        if page.subpage != 0 && page.subpage != ALL_SUBPAGES {
            return Err(field_in_cdb(3, 7));
        }
        let pages: Vec<RawPage> = state
            .pages()
            .into_iter()
            .filter(|found| page.page == ALL_PAGES || found.page == page.page)
            .collect();
        if pages.is_empty() {
            return Err(field_in_cdb(2, 5));
        }
        let mut block_descriptors = Vec::new();
        if !no_block_descriptor {
            let blocks = u32::try_from(self.blocks).unwrap_or(u32::MAX);
            block_descriptors.extend_from_slice(&blocks.to_be_bytes());
            block_descriptors.extend_from_slice(&self.config.block_bytes.to_be_bytes());
        }
        Ok(ModeParameters {
            medium_type: 0,
            write_protected: self.is_write_protected(),
            dpo_fua: true,
            block_descriptors,
            pages,
        })
    }

    pub(super) fn mode_select(
        &mut self,
        nexus: &Nexus,
        command: &Command,
        data_out: &Payload,
    ) -> Answer {
        let (header, page_format, save) = match *command {
            Command::ModeSelect6 {
                page_format, save, ..
            } => (ModeHeader::Six, page_format, save),
            Command::ModeSelect10 {
                page_format, save, ..
            } => (ModeHeader::Ten, page_format, save),
            _ => return Err(Sense::new(Code::INVALID_OPCODE).into()),
        };
        if !page_format {
            return Err(field_in_cdb(1, 4));
        }
        if save {
            return Err(field_in_cdb(1, 0));
        }
        if data_out.is_empty() {
            return Ok(Payload::new());
        }
        let list = ModeParameters::parse_select(header, &data_out.to_bytes())
            .map_err(|_| PARAMETER_LIST_LENGTH)?;
        let mut wanted = self.mode;
        for page in &list.pages {
            let allowed = ModeState::CHANGEABLE.pages();
            let current = self.mode.pages();
            let Some(at) = current.iter().position(|found| {
                (found.page, found.subpage) == (page.page, page.subpage)
                    && found.data.len() == page.data.len()
            }) else {
                return Err(field_in_parameters(0));
            };
            let fixed =
                |(i, byte): (usize, &u8)| (byte ^ current[at].data[i]) & !allowed[at].data[i] == 0;
            if !page.data.iter().enumerate().all(fixed) {
                return Err(field_in_parameters(0));
            }
            match page.page {
                CachingPage::PAGE => wanted.write_cache = CachingPage::parse(page).write_cache,
                _ => {
                    let control = ControlPage::parse(page);
                    wanted.descriptor_sense = control.descriptor_sense;
                    wanted.write_protect = control.write_protect;
                }
            }
        }
        if self.mode.write_cache && !wanted.write_cache {
            // Nothing may be left in a cache that is switched off.
            self.flush_all()?;
        }
        self.mode = wanted;
        self.nexuses
            .attention_all(Code::MODE_PARAMETERS_CHANGED, Some(nexus));
        Ok(Payload::new())
    }
}

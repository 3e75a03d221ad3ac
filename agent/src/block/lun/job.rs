//! One block request as the SCSI commands that carry it out.

use std::time::Instant;

use berth_iobuf::Payload;
use berth_iscsi::mutation::{Mutation, is_planted};
use berth_iscsi::pdu::Residual;
use berth_iscsi::scsi::Cdb;
use berth_iscsi::scsi::cdb::Caching;
use berth_iscsi::scsi::provisioning::{BlockRange, UnmapList};
use berth_iscsi::session::Transfer;

use super::profile::Profile;
use crate::block::RequestId;

/// Room for the answer to GET LBA STATUS: 8 bytes and 16 for each descriptor.
pub(super) const LBA_STATUS_BYTES: u32 = 8 + 16 * 256;

/// A block request that is being carried out. One command of it is in flight at a time.
#[derive(Debug)]
pub(super) struct Job {
    /// Who asked.
    pub(super) id: RequestId,
    /// Place among all requests, by the time they came.
    pub(super) order: u64,
    /// The command in flight, or waiting to be sent again.
    pub(super) step: Step,
    /// The rest of a range that takes several commands.
    pub(super) rest: Option<Rest>,
    /// SYNCHRONIZE CACHE after the last command: FUA for a device without the FUA bit, or for a
    /// command that has none.
    pub(super) then_sync: bool,
    /// The form the command was last sent in, and whether the other one was tried before.
    pub(super) sent_ten_byte_form: bool,
    pub(super) form_switched: bool,
    /// Times that the present command was sent again.
    pub(super) retries: u32,
    /// When the present command failed for the first time, for limits on retrying.
    pub(super) failing_since: Option<Instant>,
    /// Where its command is in flight, and since when if that is measured.
    pub(super) path: Option<usize>,
    pub(super) sent_at: Option<Instant>,
    /// Counts its commands, so that the ending of one is not taken for that of another.
    pub(super) attempt: u32,
    /// What it did is in the unit's cache and not known to be durable.
    pub(super) cached: bool,
    /// The first command, to begin again when the cache was lost before the end, and the count of such
    /// losses when it was begun.
    pub(super) first: Option<Box<First>>,
}

/// How a job of several commands began.
#[derive(Debug, Clone)]
pub(super) struct First {
    pub(super) step: Step,
    pub(super) rest: Option<Rest>,
    pub(super) cache_losses: u64,
}

impl Job {
    pub(super) const fn new(id: RequestId, step: Step) -> Self {
        Self {
            id,
            order: 0,
            step,
            rest: None,
            then_sync: false,
            sent_ten_byte_form: false,
            form_switched: false,
            retries: 0,
            failing_since: None,
            path: None,
            sent_at: None,
            attempt: 0,
            cached: false,
            first: None,
        }
    }

    /// Gives the present command's blocks back to the range, to be done in another way.
    pub(super) fn rewind(&mut self, lba: u64) {
        self.retries = 0;
        self.form_switched = false;
        if let Some(rest) = &mut self.rest {
            rest.next = lba;
        }
    }
}

/// One SCSI command. LBAs and counts are in logical blocks.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Read {
        lba: u64,
        blocks: u32,
        /// See [`crate::block::Op::ReadToMerge`].
        to_merge: bool,
    },
    Write {
        lba: u64,
        blocks: u32,
        data: Payload,
        fua: bool,
    },
    /// Zeroes written as data.
    WriteZeroData {
        lba: u64,
        blocks: u32,
    },
    WriteSame {
        lba: u64,
        blocks: u32,
        unmap: bool,
    },
    Unmap {
        lba: u64,
        blocks: u32,
    },
    SyncAll,
    LbaStatus {
        lba: u64,
        blocks: u64,
    },
}

/// What is left of a range.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rest {
    pub(super) kind: RangeKind,
    /// First block that no command covers yet.
    pub(super) next: u64,
    /// End of the range.
    pub(super) end: u64,
}

/// What is done to a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RangeKind {
    Trim,
    Zero { may_unmap: bool, fast_only: bool },
}

impl Rest {
    /// Takes the next command's worth off the range; `None` when the range is done or when the device
    /// (by now) has no way to do it.
    pub(super) fn next_step(&mut self, profile: &Profile) -> Option<Step> {
        if self.next >= self.end {
            return None;
        }
        let lba = self.next;
        let (step, blocks) = match self.kind {
            RangeKind::Trim => {
                let blocks = self.take(profile.unmap_max_blocks()?);
                (Step::Unmap { lba, blocks }, blocks)
            }
            RangeKind::Zero {
                may_unmap,
                fast_only,
            } => match profile.write_same_max_blocks() {
                Some(max) => {
                    let blocks = self.take(max);
                    let unmap = may_unmap && profile.unmap_by_write_same();
                    (Step::WriteSame { lba, blocks, unmap }, blocks)
                }
                None if fast_only => return None,
                None => {
                    let blocks = self.take(u64::from(profile.transfer_max_blocks()));
                    (Step::WriteZeroData { lba, blocks }, blocks)
                }
            },
        };
        self.next += u64::from(blocks);
        Some(step)
    }

    fn take(&self, max: u64) -> u32 {
        let blocks = (self.end - self.next).min(max).min(u64::from(u32::MAX));
        blocks as u32
    }
}

impl Step {
    /// The command's bytes and data. `profile` chooses among the forms that do the same.
    pub(super) fn command(&self, profile: &Profile) -> (Cdb, Transfer) {
        let block_bytes = profile.block_bytes as usize;
        let bytes = |blocks: u32| blocks.saturating_mul(profile.block_bytes);
        let plain = Caching::default();
        match self {
            Self::Read { lba, blocks, .. } => (
                read(profile, *lba, *blocks),
                Transfer::Read {
                    len_bytes: bytes(*blocks),
                },
            ),
            Self::Write {
                lba,
                blocks,
                data,
                fua,
            } => {
                let caching = Caching { fua: *fua, ..plain };
                (
                    write(profile, *lba, *blocks, caching),
                    Transfer::Write(data.clone()),
                )
            }
            Self::WriteZeroData { lba, blocks } => {
                let data = Payload::zeroes(bytes(*blocks) as usize);
                (write(profile, *lba, *blocks, plain), Transfer::Write(data))
            }
            Self::WriteSame { lba, blocks, unmap } => {
                let data = Transfer::Write(Payload::zeroes(block_bytes));
                match short(profile, *lba, *blocks) {
                    Some((lba, blocks)) => (Cdb::write_same10(lba, blocks, *unmap), data),
                    None => (Cdb::write_same16(*lba, *blocks, *unmap, false), data),
                }
            }
            Self::Unmap { lba, blocks } => {
                let ranges = vec![BlockRange {
                    lba: *lba,
                    blocks: *blocks,
                }];
                let list = UnmapList { ranges }.emit();
                let len = u16::try_from(list.len()).expect("one descriptor is short");
                (Cdb::unmap(len), Transfer::Write(Payload::from(list)))
            }
            Self::SyncAll if profile.ten_byte_forms => {
                (Cdb::synchronize_cache10(0, 0), Transfer::None)
            }
            Self::SyncAll => (Cdb::synchronize_cache16(0, 0), Transfer::None),
            Self::LbaStatus { lba, .. } => (
                Cdb::get_lba_status(*lba, LBA_STATUS_BYTES),
                Transfer::Read {
                    len_bytes: LBA_STATUS_BYTES,
                },
            ),
        }
    }

    /// Whether GOOD status means that all was done: block I/O must have moved every byte. A truthful
    /// residual with GOOD status is still a torn read or write (RFC 7143 11.4.5).
    pub(super) fn is_whole(&self, data: &Payload, residual: Residual, block_bytes: u32) -> bool {
        match self {
            Self::Read { .. } if is_planted(Mutation::AcceptShortRead) => true,
            Self::Read { blocks, .. } => {
                residual == Residual::None
                    && data.len() as u64 == u64::from(*blocks) * u64::from(block_bytes)
            }
            Self::Write { .. } | Self::WriteZeroData { .. } | Self::WriteSame { .. } => {
                residual == Residual::None
            }
            // No data, or a list: one that is shorter than the room for it, or the ranges of an UNMAP,
            // which tgt answers with GOOD and a residual although it has carried all of them out.
            Self::SyncAll | Self::LbaStatus { .. } | Self::Unmap { .. } => true,
        }
    }

    /// Whether it may change what the medium holds.
    pub(super) fn changes_data(&self) -> bool {
        match self {
            Self::Write { .. }
            | Self::WriteZeroData { .. }
            | Self::WriteSame { .. }
            | Self::Unmap { .. } => true,
            Self::Read { .. } | Self::SyncAll | Self::LbaStatus { .. } => false,
        }
    }

    /// Whether it must not be sent while writes of unknown fate can still change its range: it changes that too,
    /// or what it reads is written back.
    pub(super) fn needs_settled_range(&self) -> bool {
        self.changes_data() || matches!(self, Self::Read { to_merge: true, .. })
    }

    /// The blocks that it touches: first, and behind the last.
    pub(super) fn range(&self) -> (u64, u64) {
        match self {
            Self::Read { lba, blocks, .. }
            | Self::Write { lba, blocks, .. }
            | Self::WriteZeroData { lba, blocks }
            | Self::WriteSame { lba, blocks, .. }
            | Self::Unmap { lba, blocks } => (*lba, lba.saturating_add(u64::from(*blocks))),
            Self::LbaStatus { lba, blocks } => (*lba, lba.saturating_add(*blocks)),
            Self::SyncAll => (0, u64::MAX),
        }
    }

    /// Bytes that move with it, as far as they matter for how long it takes.
    pub(super) fn len_bytes(&self, block_bytes: u32) -> u64 {
        match self {
            Self::Read { blocks, .. }
            | Self::Write { blocks, .. }
            | Self::WriteZeroData { blocks, .. } => u64::from(*blocks) * u64::from(block_bytes),
            Self::WriteSame { .. }
            | Self::Unmap { .. }
            | Self::SyncAll
            | Self::LbaStatus { .. } => 0,
        }
    }

    /// The command's name, for logs.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Read { .. } => "READ",
            Self::Write { .. } | Self::WriteZeroData { .. } => "WRITE",
            Self::WriteSame { .. } => "WRITE SAME",
            Self::Unmap { .. } => "UNMAP",
            Self::SyncAll => "SYNCHRONIZE CACHE",
            Self::LbaStatus { .. } => "GET LBA STATUS",
        }
    }

    /// Whether this step has a ten-byte form too, to fall back to.
    pub(super) fn has_two_forms(&self) -> bool {
        !matches!(self, Self::Unmap { .. } | Self::LbaStatus { .. })
    }
}

/// LBA and count for the ten-byte form, when the profile asks for it and they fit.
fn short(profile: &Profile, lba: u64, blocks: u32) -> Option<(u32, u16)> {
    if !profile.ten_byte_forms {
        return None;
    }
    Some((u32::try_from(lba).ok()?, u16::try_from(blocks).ok()?))
}

fn read(profile: &Profile, lba: u64, blocks: u32) -> Cdb {
    match short(profile, lba, blocks) {
        Some((lba, blocks)) => Cdb::read10(lba, blocks, Caching::default()),
        None => Cdb::read16(lba, blocks, Caching::default()),
    }
}

fn write(profile: &Profile, lba: u64, blocks: u32, caching: Caching) -> Cdb {
    match short(profile, lba, blocks) {
        Some((lba, blocks)) => Cdb::write10(lba, blocks, caching),
        None => Cdb::write16(lba, blocks, caching),
    }
}

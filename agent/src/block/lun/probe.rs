//! Bring-up: finds out what a logical unit is and can do.
//!
//! Only INQUIRY and capacity must succeed. Whatever else a target refuses is left out, and the
//! cautious answer is taken: writable, with a write cache, without thin provisioning. No answer is no
//! refusal: when the session is lost half-way, or a command is not answered in time, nothing was found out.

use std::cell::Cell;
use std::time::Duration;

use berth_iobuf::Payload;
use berth_iscsi::scsi::alua::{AccessState, TargetPortGroups};
use berth_iscsi::scsi::capacity::{CAPACITY16_BYTES, Capacity};
use berth_iscsi::scsi::inquiry::{
    BlockCharacteristics, BlockLimits, DeviceIdentification, Identity, Inquiry,
    LogicalBlockProvisioning, STANDARD_MIN_BYTES, SupportedPages, Tpgs, UnitSerialNumber,
};
use berth_iscsi::scsi::mode::{CachingPage, ModeHeader, ModeParameters};
use berth_iscsi::scsi::sense::{Refresh, Sense, Verdict};
use berth_iscsi::scsi::{Cdb, ScsiStatus};
use berth_iscsi::session::{TaskOutcome, Transfer};

use super::Error;
use super::paths::Preference;
use super::port::Port;
use super::profile::Profile;

/// Unit attentions that are cleared before a command counts as failed; a target may have one queued
/// for each reason.
const ATTENTIONS_MAX: u32 = 16;
/// Pause before a busy or not yet ready unit is asked again.
const PAUSE: Duration = Duration::from_millis(200);
/// Longest time that a unit is given to become ready.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// How often a unit is asked whose answer makes no sense: one may be cut short, with a residual that admits it.
const ASK_TRIES: u32 = 3;
/// Room for a VPD page: more than any that is read here.
const VPD_BYTES: u16 = 1024;
/// Room for REPORT TARGET PORT GROUPS: 64 groups of 7 ports.
const PORT_GROUPS_BYTES: u32 = 4 + 64 * 36;
/// Room for mode pages; some targets choke on more.
const MODE_BYTES: u8 = 192;
/// Largest logical block: the align layer reads whole blocks.
const BLOCK_BYTES_MAX: u32 = 64 << 10;

/// Why a logical unit cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// The target says that there is no such unit.
    #[error("there is no such logical unit")]
    NoLun,
    /// It is not a disk.
    #[error("it is not a disk: peripheral device type {0:#04x}")]
    NotADisk(u8),
    /// Its capacity makes no sense.
    #[error("{0}")]
    Capacity(String),
    /// A command that must succeed failed.
    #[error("{command} failed: {detail}")]
    Command {
        /// The command.
        command: &'static str,
        /// Status and sense.
        detail: String,
        /// The kind of failure.
        error: Error,
    },
}

/// How a control command ended, when not well.
struct Refused {
    detail: String,
    error: Error,
    /// 5/25/00: the LUN is not there.
    no_lun: bool,
    /// The unit itself has said no; if not, it was not heard.
    answered: bool,
}

impl Refused {
    fn of(self, command: &'static str) -> ProbeError {
        if self.no_lun {
            return ProbeError::NoLun;
        }
        ProbeError::Command {
            command,
            detail: self.detail,
            error: self.error,
        }
    }
}

/// What came of a command that a unit may refuse: `None` when it did.
fn unless_refused<T>(
    result: Result<T, Refused>,
    command: &'static str,
) -> Result<Option<T>, ProbeError> {
    match result {
        Ok(answer) => Ok(Some(answer)),
        Err(refused) if refused.answered => Ok(None),
        Err(refused) => Err(refused.of(command)),
    }
}

/// Sends a command, again after unit attentions and while the unit is busy.
async fn command(port: &Port, cdb: Cdb, read_len: u32) -> Result<Payload, Refused> {
    let refused = |detail: String, error| Refused {
        detail,
        error,
        no_lun: false,
        answered: false,
    };
    let mut attentions = 0;
    let mut waited = Duration::ZERO;
    let mut started = false;
    loop {
        let transfer = if read_len > 0 {
            Transfer::Read {
                len_bytes: read_len,
            }
        } else {
            Transfer::None
        };
        let outcome = port
            .execute(cdb, transfer)
            .await
            .map_err(|error| refused("the session was lost".to_owned(), error))?;
        let (status, sense) = match outcome {
            TaskOutcome::Completed {
                status: 0, data, ..
            } => return Ok(data),
            TaskOutcome::Completed { status, sense, .. } => (ScsiStatus(status), sense),
            // Lost on the way, most likely; a unit that always answers so has said all that it will.
            TaskOutcome::DataMismatch { .. } if attentions < ATTENTIONS_MAX => {
                attentions += 1;
                continue;
            }
            other => {
                return Err(Refused {
                    answered: matches!(other, TaskOutcome::DataMismatch { .. }),
                    ..refused(format!("{other:?}"), Error::Unavailable)
                });
            }
        };
        let verdict = match status {
            ScsiStatus::CHECK_CONDITION => match Sense::parse(&sense) {
                Ok(sense) => {
                    let action = sense.classify();
                    port.note_attention(action.refresh);
                    (action.verdict, sense.to_string(), is_no_lun(&sense))
                }
                Err(error) => return Err(refused(format!("{status}, {error}"), Error::Medium)),
            },
            ScsiStatus::RESERVATION_CONFLICT => {
                // An answer: to who is not registered, a target may refuse even what only asks (SPC-4 5.13.1).
                let detail = "another initiator holds a reservation".to_owned();
                return Err(Refused {
                    answered: true,
                    ..refused(detail, Error::Fenced)
                });
            }
            status => (Verdict::RetryFor { seconds: 60 }, status.to_string(), false),
        };
        let (verdict, detail, no_lun) = verdict;
        match verdict {
            Verdict::StartUnit if !started => {
                started = true;
                // Whether it worked shows in the answer to the command itself.
                let _ = port
                    .execute(Cdb::start_stop_unit(true), Transfer::None)
                    .await;
            }
            Verdict::Retry | Verdict::RetryOnce(_) if attentions < ATTENTIONS_MAX => {
                attentions += 1;
            }
            Verdict::RetryFor { seconds }
                if waited < READY_LIMIT.min(Duration::from_secs(seconds.into())) =>
            {
                tokio::time::sleep(PAUSE).await;
                waited += PAUSE;
            }
            _ => {
                let passes = matches!(
                    verdict,
                    Verdict::Retry
                        | Verdict::RetryOnce(_)
                        | Verdict::RetryFor { .. }
                        | Verdict::DropSession
                );
                return Err(Refused {
                    detail,
                    error: Error::Unavailable,
                    no_lun,
                    answered: !passes,
                });
            }
        }
    }
}

fn is_no_lun(sense: &Sense) -> bool {
    (sense.code.asc, sense.code.ascq) == (0x25, 0)
}

/// What was found on one path.
#[derive(Debug, Clone)]
pub struct Found {
    /// The unit.
    pub profile: Profile,
    /// How the path to it stands.
    pub access: Access,
    /// What unit attentions said meanwhile.
    pub attentions: Refresh,
    /// A reservation kept the mode pages from us: cautious answers stand in for them until this node is
    /// registered and looks again.
    pub mode_withheld: bool,
}

/// How a path to a unit stands (SPC-4 5.15).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Target port group of the path; `None` for units without asymmetric access.
    pub group: Option<u16>,
    /// Its state; such units are always active.
    pub state: AccessState,
    /// The unit would rather be used through this group.
    pub preferred: bool,
    /// How good it is to send to.
    pub preference: Preference,
}

impl Access {
    /// Of a unit without asymmetric access.
    pub const SYMMETRIC: Self = Self {
        group: None,
        state: AccessState::ActiveOptimized,
        preferred: false,
        preference: Some(1),
    };
}

/// Finds out everything about the unit, and how the path to it stands.
///
/// # Errors
/// When it is not there, is not a usable disk, or a command that must succeed fails.
pub async fn probe(port: &Port) -> Result<Found, ProbeError> {
    let inquiry = inquiry(port).await?;
    let supported = vpd(port, 0, SupportedPages::parse).await?;
    let has = |page| supported.as_ref().is_some_and(|pages| pages.contains(page));
    let page83 = if has(0x83) {
        vpd(port, 0x83, DeviceIdentification::parse).await?
    } else {
        None
    };
    let serial = if has(0x80) {
        vpd(port, 0x80, UnitSerialNumber::parse).await?
    } else {
        None
    };
    let serial = serial
        .map(|page| page.serial)
        .filter(|serial| !serial.is_empty());
    command(port, Cdb::test_unit_ready(), 0)
        .await
        .map_err(|r| r.of("TEST UNIT READY"))?;
    let (capacity, sixteen) = capacity(port).await?;
    let limits = if has(0xb0) {
        vpd(port, 0xb0, BlockLimits::parse).await?
    } else {
        None
    };
    let character = if has(0xb1) {
        vpd(port, 0xb1, BlockCharacteristics::parse).await?
    } else {
        None
    };
    let thin = if has(0xb2) {
        vpd(port, 0xb2, LogicalBlockProvisioning::parse).await?
    } else {
        None
    };
    let mode = mode(port).await?;
    let access = access(port, &inquiry, page83.as_ref()).await?;
    let profile = Profile {
        identity: Identity::choose(page83.as_ref(), serial.as_deref()),
        vendor: inquiry.vendor_text(),
        product: inquiry.product_text(),
        revision: inquiry.revision_text(),
        serial,
        block_bytes: capacity.block_len_bytes,
        blocks: capacity.blocks,
        physical_block_bytes: physical_block_bytes(&capacity),
        thin: capacity.provisioning,
        unmapped_reads_zero: capacity.reads_zeroes || thin.as_ref().is_some_and(|t| t.reads_zeroes),
        unmap: thin.as_ref().is_some_and(|t| t.unmap),
        write_same_unmap: thin.as_ref().is_some_and(|t| {
            if sixteen {
                t.write_same16_unmap
            } else {
                t.write_same10_unmap
            }
        }),
        write_same: true,
        lba_status: true,
        limits: limits.unwrap_or_default(),
        write_protected: mode.write_protected,
        write_cache: mode.write_cache,
        fua: mode.fua,
        rotational: character.is_some_and(|c| c.rotation > 1),
        ten_byte_forms: !sixteen,
        write_same_learned_blocks: None,
    };
    Ok(Found {
        profile,
        access,
        attentions: port.take_attentions(),
        mode_withheld: mode.withheld,
    })
}

/// The access state of this path's port group. A unit that does not tell is taken for active: I/O will tell.
async fn access(
    port: &Port,
    inquiry: &Inquiry,
    page83: Option<&DeviceIdentification>,
) -> Result<Access, ProbeError> {
    let (false, Some(page83)) = (inquiry.tpgs == Tpgs::None, page83) else {
        return Ok(Access::SYMMETRIC);
    };
    let report = match port_groups(port, true).await? {
        Some(report) => Some(report),
        // Older units refuse the extended header (5/24/00).
        None => port_groups(port, false).await?,
    };
    Ok(
        match report.as_ref().and_then(|report| report.of_path(page83)) {
            Some(found) => Access {
                group: Some(found.id),
                state: found.state,
                preferred: found.preferred,
                preference: found.preference(),
            },
            None => Access::SYMMETRIC,
        },
    )
}

async fn port_groups(port: &Port, extended: bool) -> Result<Option<TargetPortGroups>, ProbeError> {
    let cdb = Cdb::report_target_port_groups(extended, PORT_GROUPS_BYTES);
    let name = "REPORT TARGET PORT GROUPS";
    ask(port, cdb, PORT_GROUPS_BYTES, name, TargetPortGroups::parse).await
}

async fn inquiry(port: &Port) -> Result<Inquiry, ProbeError> {
    let bytes = command(
        port,
        Cdb::inquiry(STANDARD_MIN_BYTES),
        STANDARD_MIN_BYTES.into(),
    )
    .await
    .map_err(|r| r.of("INQUIRY"))?
    .to_bytes();
    let inquiry = Inquiry::parse(&bytes).map_err(|error| ProbeError::Command {
        command: "INQUIRY",
        detail: error.to_string(),
        error: Error::Medium,
    })?;
    if !inquiry.is_connected() {
        return Err(ProbeError::NoLun);
    }
    if !inquiry.is_block_device() {
        return Err(ProbeError::NotADisk(inquiry.device_type));
    }
    Ok(inquiry)
}

/// A VPD page; `None` when there is none.
async fn vpd<T, E>(
    port: &Port,
    page: u8,
    parse: impl Fn(&[u8]) -> Result<T, E>,
) -> Result<Option<T>, ProbeError> {
    let cdb = Cdb::inquiry_vpd(page, VPD_BYTES);
    ask(port, cdb, VPD_BYTES.into(), "INQUIRY for a VPD page", parse).await
}

/// An answer about the unit; `None` when the unit refuses it, or sends nonsense each time it is asked.
async fn ask<T, E>(
    port: &Port,
    cdb: Cdb,
    read_len: u32,
    name: &'static str,
    parse: impl Fn(&[u8]) -> Result<T, E>,
) -> Result<Option<T>, ProbeError> {
    for _ in 0..ASK_TRIES {
        let data = command(port, cdb, read_len).await;
        let Some(data) = unless_refused(data, name)? else {
            return Ok(None);
        };
        if let Ok(answer) = parse(&data.to_bytes()) {
            return Ok(Some(answer));
        }
    }
    Ok(None)
}

async fn capacity(port: &Port) -> Result<(Capacity, bool), ProbeError> {
    let cdb = Cdb::read_capacity16(CAPACITY16_BYTES);
    let name = "READ CAPACITY (16)";
    let long = ask(port, cdb, CAPACITY16_BYTES, name, Capacity::parse16).await?;
    let (capacity, sixteen) = match long {
        Some(capacity) => (capacity, true),
        None => {
            let data = command(port, Cdb::read_capacity10(), 8)
                .await
                .map_err(|r| r.of("READ CAPACITY"))?;
            let short = Capacity::parse10(&data.to_bytes())
                .map_err(|error| ProbeError::Capacity(error.to_string()))?;
            let too_large = || {
                ProbeError::Capacity("beyond 2 TiB, and READ CAPACITY (16) is refused".to_owned())
            };
            (short.ok_or_else(too_large)?, false)
        }
    };
    let block = capacity.block_len_bytes;
    if !(512..=BLOCK_BYTES_MAX).contains(&block) || !block.is_power_of_two() {
        return Err(ProbeError::Capacity(format!(
            "a block length of {block} bytes; a power of two from 512 to {BLOCK_BYTES_MAX} can be served"
        )));
    }
    if capacity
        .blocks
        .checked_mul(block.into())
        .is_none_or(|bytes| bytes > i64::MAX as u64)
    {
        let detail = format!(
            "{} blocks of {block} bytes are more than 8 EiB",
            capacity.blocks
        );
        return Err(ProbeError::Capacity(detail));
    }
    Ok((capacity, sixteen))
}

fn physical_block_bytes(capacity: &Capacity) -> u32 {
    // Beyond a megabyte it says nothing that a request size could follow.
    let shift = u32::from(capacity.physical_exponent.min(11));
    capacity.block_len_bytes.saturating_mul(1 << shift)
}

struct Mode {
    write_protected: bool,
    write_cache: bool,
    fua: bool,
    withheld: bool,
}

/// Write protection, cache and FUA. A unit that says nothing is taken for writable with a cache.
async fn mode(port: &Port) -> Result<Mode, ProbeError> {
    let withheld = Cell::new(false);
    let read = async |page| {
        let data = command(port, Cdb::mode_sense6(page, MODE_BYTES), MODE_BYTES.into()).await;
        if let Err(refused) = &data {
            withheld.set(refused.error == Error::Fenced);
        }
        let data = unless_refused(data, "MODE SENSE")?;
        Ok(data.and_then(|data| ModeParameters::parse(ModeHeader::Six, &data.to_bytes()).ok()))
    };
    let caching = match read(CachingPage::PAGE).await? {
        Some(parameters) if parameters.caching().is_some() => Some(parameters),
        // Page 3Fh asks for all pages.
        first => read(0x3f).await?.or(first),
    };
    Ok(Mode {
        write_protected: caching.as_ref().is_some_and(|p| p.write_protected),
        write_cache: caching
            .as_ref()
            .and_then(ModeParameters::caching)
            .is_none_or(|c| c.write_cache),
        fua: caching.as_ref().is_some_and(|p| p.dpo_fua),
        withheld: withheld.get(),
    })
}

//! What an initiator does about sense data: one total function.

use super::{Sense, SenseKey};

/// What to do with the command, and what else to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SenseAction {
    /// What becomes of the command.
    pub verdict: Verdict,
    /// What must be read again, before the command is sent again.
    pub refresh: Refresh,
    /// An operator wants to know, although the command may go on.
    pub alert: bool,
}

/// What becomes of a command. Each retry is bounded by a count and by the deadline of the I/O; both
/// belong to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is done.
    Success,
    /// Send it again at once, up to about ten times.
    Retry,
    /// Send it again after a pause, for at most this many seconds in all.
    RetryFor {
        /// Longest time in seconds that the condition is given to pass.
        seconds: u16,
    },
    /// Send it again once; a second time it has failed for this reason.
    RetryOnce(Failure),
    /// Send START UNIT once, then the command again.
    StartUnit,
    /// This path cannot serve the LUN now: use another, and fail with the reason when there is none.
    SwitchPath(Failure),
    /// It failed.
    Fail(Failure),
    /// The session state is not what both sides think it is: drop the session.
    DropSession,
}

/// Why a command failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// The medium: these blocks, on every path.
    Medium,
    /// The device, inside.
    Hardware,
    /// Thin provisioning ran out of space.
    NoSpace,
    /// Write protected.
    WriteProtected,
    /// The device does not know the command: do without it.
    UnsupportedCommand,
    /// A field or length is too much for the device: ask for less, or do without.
    UnsupportedField,
    /// Blocks beyond the end of the device.
    OutOfRange,
    /// The logical unit is not there.
    NoLogicalUnit,
    /// The logical unit is not ready and does not get ready by itself.
    NotReady,
    /// Protection information does not fit the data.
    ProtectionInformation,
    /// The data differs: the answer of COMPARE AND WRITE and VERIFY.
    Miscompare,
    /// The device lacks resources, such as room for a registration.
    Resources,
    /// Two sides disagree about the command: a bug here or there.
    Protocol,
    /// Any other.
    Other,
}

/// A set of things to read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Refresh(u16);

impl Refresh {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// READ CAPACITY.
    pub const CAPACITY: Self = Self(1);
    /// MODE SENSE: write protection, write cache.
    pub const MODE: Self = Self(1 << 1);
    /// INQUIRY and its pages: identity and limits.
    pub const INQUIRY: Self = Self(1 << 2);
    /// REPORT LUNS.
    pub const LUNS: Self = Self(1 << 3);
    /// REPORT TARGET PORT GROUPS.
    pub const PORT_GROUPS: Self = Self(1 << 4);
    /// Persistent reservations: registrations may be gone.
    pub const RESERVATION: Self = Self(1 << 5);
    /// With a volatile write cache, writes that were acknowledged and not flushed may be lost.
    pub const CACHE_LOSS: Self = Self(1 << 6);
    /// Other commands of the LUN may have been cleared without an answer.
    pub const TASKS: Self = Self(1 << 7);

    /// Both sets.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` is in this set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether nothing is to be read again.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl SenseAction {
    const fn new(verdict: Verdict) -> Self {
        Self {
            verdict,
            refresh: Refresh::NONE,
            alert: false,
        }
    }

    const fn refresh(mut self, refresh: Refresh) -> Self {
        self.refresh = refresh;
        self
    }

    const fn alert(mut self) -> Self {
        self.alert = true;
        self
    }
}

const SUCCESS: SenseAction = SenseAction::new(Verdict::Success);
const RETRY: SenseAction = SenseAction::new(Verdict::Retry);

/// What a becoming-ready unit is given, in seconds.
const BECOMING_READY_SECONDS: u16 = 60;
/// Default implicit transition time of an ALUA port group, in seconds (SPC-4 6.37).
const TRANSITION_SECONDS: u16 = 60;
/// What long operations (format, self-test, sanitize) are given, in seconds.
const OPERATION_SECONDS: u16 = 120;

const fn fail(failure: Failure) -> SenseAction {
    SenseAction::new(Verdict::Fail(failure))
}

const fn switch_path(failure: Failure) -> SenseAction {
    SenseAction::new(Verdict::SwitchPath(failure))
}

const fn retry_for(seconds: u16) -> SenseAction {
    SenseAction::new(Verdict::RetryFor { seconds })
}

pub(super) fn classify(sense: &Sense) -> SenseAction {
    if sense.deferred {
        // The present command was not done (SPC-4 4.5.7); what went wrong is an earlier write, and it is
        // lost unless the device mended it.
        return match sense.code.key {
            SenseKey::NoSense | SenseKey::RecoveredError | SenseKey::Completed => RETRY.alert(),
            _ => RETRY.refresh(Refresh::CACHE_LOSS).alert(),
        };
    }
    let (asc, ascq) = (sense.code.asc, sense.code.ascq);
    match sense.code.key {
        SenseKey::NoSense | SenseKey::Completed => SUCCESS,
        SenseKey::RecoveredError => match asc {
            // Failure prediction, warning.
            0x5d | 0x0b => SUCCESS.alert(),
            _ => SUCCESS,
        },
        SenseKey::NotReady => not_ready(asc, ascq),
        SenseKey::MediumError => match asc {
            0x03 | 0x0c => SenseAction::new(Verdict::RetryOnce(Failure::Medium)),
            _ => fail(Failure::Medium),
        },
        SenseKey::HardwareError => SenseAction::new(Verdict::RetryOnce(Failure::Hardware)),
        SenseKey::IllegalRequest => illegal_request(asc, ascq),
        SenseKey::UnitAttention => unit_attention(asc, ascq),
        SenseKey::DataProtect => match (asc, ascq) {
            (0x27, 0x07) => fail(Failure::NoSpace).alert(),
            (0x27, _) => fail(Failure::WriteProtected).refresh(Refresh::MODE),
            _ => fail(Failure::Other),
        },
        SenseKey::AbortedCommand => match (asc, ascq) {
            // Overlapped commands: a task tag was used twice.
            (0x4e, _) => SenseAction::new(Verdict::DropSession).alert(),
            (0x10, _) => fail(Failure::ProtectionInformation).alert(),
            // Data amount: the negotiated values are not what we think they are.
            (0x0c, 0x0c | 0x0d) => SenseAction::new(Verdict::RetryOnce(Failure::Protocol)).alert(),
            _ => RETRY,
        },
        SenseKey::Miscompare => fail(Failure::Miscompare),
        SenseKey::BlankCheck
        | SenseKey::VendorSpecific
        | SenseKey::CopyAborted
        | SenseKey::Reserved
        | SenseKey::VolumeOverflow => fail(Failure::Other),
    }
}

fn not_ready(asc: u8, ascq: u8) -> SenseAction {
    match (asc, ascq) {
        (0x04, 0x01) => retry_for(BECOMING_READY_SECONDS),
        (0x04, 0x02) => SenseAction::new(Verdict::StartUnit),
        (0x04, 0x0a) => retry_for(TRANSITION_SECONDS).refresh(Refresh::PORT_GROUPS),
        (0x04, 0x0b | 0x0c) => switch_path(Failure::NotReady).refresh(Refresh::PORT_GROUPS),
        (0x04, 0x04 | 0x05 | 0x06 | 0x07 | 0x08 | 0x09 | 0x14 | 0x1a | 0x1b) => {
            retry_for(OPERATION_SECONDS)
        }
        // Structure check required: a repair by hand, on every path.
        (0x04, 0x0d) => fail(Failure::NotReady).alert(),
        (0x04, 0x03 | 0x12) => switch_path(Failure::NotReady).alert(),
        (0x05 | 0x08, _) => switch_path(Failure::NotReady),
        (0x3a, _) => fail(Failure::NotReady),
        (0x04, _) => retry_for(BECOMING_READY_SECONDS),
        _ => switch_path(Failure::NotReady),
    }
}

fn illegal_request(asc: u8, ascq: u8) -> SenseAction {
    match (asc, ascq) {
        (0x20, _) => fail(Failure::UnsupportedCommand),
        (0x21, _) => fail(Failure::OutOfRange).refresh(Refresh::CAPACITY),
        (0x1a | 0x24 | 0x26, _) => fail(Failure::UnsupportedField),
        (0x25, _) => switch_path(Failure::NoLogicalUnit).refresh(Refresh::LUNS),
        (0x55, _) => fail(Failure::Resources),
        _ => fail(Failure::Other),
    }
}

fn unit_attention(asc: u8, ascq: u8) -> SenseAction {
    let after_reset = Refresh::CAPACITY
        .and(Refresh::MODE)
        .and(Refresh::INQUIRY)
        .and(Refresh::RESERVATION);
    match (asc, ascq) {
        // A nexus loss takes no cached data along.
        (0x29, 0x07) => RETRY.refresh(after_reset),
        // A reset, perhaps by another initiator, ends commands without an answer (SAM-5 6.3).
        (0x29, _) => RETRY.refresh(after_reset.and(Refresh::CACHE_LOSS).and(Refresh::TASKS)),
        (0x2a, 0x01 | 0x00) => RETRY.refresh(Refresh::MODE),
        (0x2a, 0x03..=0x05) => RETRY.refresh(Refresh::RESERVATION).alert(),
        (0x2a, 0x06 | 0x07) => RETRY.refresh(Refresh::PORT_GROUPS),
        (0x2a, 0x09) => RETRY.refresh(Refresh::CAPACITY),
        (0x3f, 0x01 | 0x02 | 0x03 | 0x05) => RETRY.refresh(Refresh::INQUIRY),
        // The LUN may lead to another unit now: compare the identity before anything is written.
        (0x3f, 0x0e) => RETRY.refresh(Refresh::LUNS.and(Refresh::INQUIRY)),
        (0x28, 0x00) => RETRY.refresh(Refresh::CAPACITY.and(Refresh::INQUIRY)),
        (0x2f, _) | (0x47, 0x7f) => RETRY.refresh(Refresh::TASKS),
        (0x38, 0x07) | (0x5d | 0x0b, _) => RETRY.alert(),
        _ => RETRY,
    }
}

#[cfg(test)]
#[path = "action_tests.rs"]
mod tests;

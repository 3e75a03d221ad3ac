//! What kind of access a command needs, and SPC-2 reservations.

use super::super::executor::Nexus;
use super::refusal::Refusal;
use crate::scsi::Command;

/// What a command does, as far as reservations and access states care (SPC-4 5.12, tables 66 to 68;
/// SBC-3 4.17).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// INQUIRY, REPORT LUNS, REQUEST SENSE: always.
    Identify,
    /// TEST UNIT READY: no reservation matters, readiness does.
    Ready,
    /// Questions about the device that no persistent reservation forbids.
    Ask,
    /// Questions that exclusive access forbids.
    Inspect,
    /// Reads the medium.
    Read,
    /// Writes the medium.
    Write,
    /// Changes the device, not the medium.
    Control,
    /// PERSISTENT RESERVE OUT, which has rules of its own.
    ReserveOut,
    /// RELEASE (6): from a nexus that does not hold the reservation it does nothing.
    Release,
    /// RESERVE (6).
    Reserve,
    /// About port groups, through any port that is not offline.
    PortGroups,
}

impl Access {
    pub(super) const fn of(command: &Command) -> Self {
        match command {
            Command::Inquiry { .. } | Command::ReportLuns { .. } | Command::RequestSense { .. } => {
                Self::Identify
            }
            Command::TestUnitReady => Self::Ready,
            Command::ReadCapacity10
            | Command::ReadCapacity16 { .. }
            | Command::ReportSupportedOpcodes { .. }
            | Command::PersistentReserveIn { .. }
            | Command::PreventAllowMediumRemoval { .. } => Self::Ask,
            Command::ModeSense6 { .. } | Command::ModeSense10 { .. } => Self::Inspect,
            Command::Read(_)
            | Command::Verify(_)
            | Command::Prefetch { .. }
            | Command::GetLbaStatus { .. } => Self::Read,
            // A flush changes what is on the medium.
            Command::SynchronizeCache { .. } => Self::Control,
            Command::Write(_)
            | Command::WriteAndVerify(_)
            | Command::OrWrite(_)
            | Command::Unmap { .. }
            | Command::WriteSame(_)
            | Command::CompareAndWrite(_) => Self::Write,
            Command::ModeSelect6 { .. }
            | Command::ModeSelect10 { .. }
            | Command::StartStopUnit(_) => Self::Control,
            Command::PersistentReserveOut { .. } => Self::ReserveOut,
            Command::Reserve6 => Self::Reserve,
            Command::Release6 => Self::Release,
            Command::ReportTargetPortGroups { .. } | Command::SetTargetPortGroups { .. } => {
                Self::PortGroups
            }
        }
    }

    /// Whether a stopped unit refuses it.
    pub(super) const fn needs_medium(self) -> bool {
        matches!(self, Self::Ready | Self::Read | Self::Write)
    }
}

/// A reservation by RESERVE (6) (SPC-2 7.21): one nexus has the unit for itself.
#[derive(Debug, Default)]
pub(super) struct Spc2Reservation {
    holder: Option<Nexus>,
}

impl Spc2Reservation {
    pub(super) fn admit(&self, nexus: &Nexus, access: Access) -> Result<(), Refusal> {
        match &self.holder {
            Some(holder) if holder != nexus => match access {
                Access::Identify | Access::Release => Ok(()),
                _ => Err(Refusal::CONFLICT),
            },
            _ => Ok(()),
        }
    }

    pub(super) const fn is_held(&self) -> bool {
        self.holder.is_some()
    }

    /// [`Spc2Reservation::admit`] has made sure that nobody else holds it.
    pub(super) fn take(&mut self, nexus: &Nexus) {
        self.holder = Some(nexus.clone());
    }

    pub(super) fn release(&mut self, nexus: &Nexus) {
        self.holder.take_if(|holder| holder == nexus);
    }
}

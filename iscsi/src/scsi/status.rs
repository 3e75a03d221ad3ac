//! The status byte of a SCSI command (SAM-5 5.3).

use std::fmt;

/// Status of a finished command; an open set, so a number with named constants.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ScsiStatus(pub u8);

impl ScsiStatus {
    /// Done.
    pub const GOOD: Self = Self(0x00);
    /// Sense data says what happened.
    pub const CHECK_CONDITION: Self = Self(0x02);
    /// Done; PRE-FETCH found all blocks in, or room for them in, the cache.
    pub const CONDITION_MET: Self = Self(0x04);
    /// The logical unit is busy: try again later.
    pub const BUSY: Self = Self(0x08);
    /// Obsolete: a linked command is done.
    pub const INTERMEDIATE: Self = Self(0x10);
    /// Obsolete: a linked command is done, condition met.
    pub const INTERMEDIATE_CONDITION_MET: Self = Self(0x14);
    /// Another initiator's reservation forbids the command.
    pub const RESERVATION_CONFLICT: Self = Self(0x18);
    /// Obsolete: the command was ended.
    pub const COMMAND_TERMINATED: Self = Self(0x22);
    /// No room for one more task: try again with fewer in flight.
    pub const TASK_SET_FULL: Self = Self(0x28);
    /// An auto contingent allegiance stands.
    pub const ACA_ACTIVE: Self = Self(0x30);
    /// Another initiator aborted the task.
    pub const TASK_ABORTED: Self = Self(0x40);

    /// Whether the command did what it was asked: GOOD, CONDITION MET and their obsolete linked forms.
    #[must_use]
    pub const fn is_success(self) -> bool {
        matches!(
            self,
            Self::GOOD
                | Self::CONDITION_MET
                | Self::INTERMEDIATE
                | Self::INTERMEDIATE_CONDITION_MET
        )
    }

    /// What an initiator does with a command that ended so.
    #[must_use]
    pub const fn action(self) -> StatusAction {
        match self {
            Self::GOOD
            | Self::CONDITION_MET
            | Self::INTERMEDIATE
            | Self::INTERMEDIATE_CONDITION_MET => StatusAction::Success,
            Self::CHECK_CONDITION | Self::COMMAND_TERMINATED => StatusAction::Sense,
            // We never set NACA, so the ACA is another initiator's and will end.
            Self::BUSY | Self::ACA_ACTIVE => StatusAction::Backoff,
            Self::TASK_SET_FULL => StatusAction::BackoffAndShrink,
            Self::RESERVATION_CONFLICT => StatusAction::Fenced,
            Self::TASK_ABORTED => StatusAction::Retry,
            _ => StatusAction::Unknown,
        }
    }

    /// The name the standard gives it, or `None`.
    #[must_use]
    pub const fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::GOOD => "GOOD",
            Self::CHECK_CONDITION => "CHECK CONDITION",
            Self::CONDITION_MET => "CONDITION MET",
            Self::BUSY => "BUSY",
            Self::INTERMEDIATE => "INTERMEDIATE",
            Self::INTERMEDIATE_CONDITION_MET => "INTERMEDIATE-CONDITION MET",
            Self::RESERVATION_CONFLICT => "RESERVATION CONFLICT",
            Self::COMMAND_TERMINATED => "COMMAND TERMINATED",
            Self::TASK_SET_FULL => "TASK SET FULL",
            Self::ACA_ACTIVE => "ACA ACTIVE",
            Self::TASK_ABORTED => "TASK ABORTED",
            _ => return None,
        })
    }
}

/// What an initiator does with a status. Every retry is bounded by a count and by the deadline of the
/// I/O; both belong to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusAction {
    /// The command is done.
    Success,
    /// The sense data decides.
    Sense,
    /// Send it again after a pause that grows.
    Backoff,
    /// The same, and keep fewer commands in flight on this LUN.
    BackoffAndShrink,
    /// Send it again.
    Retry,
    /// Another initiator holds a reservation: no retry, no other path.
    Fenced,
    /// A status that no standard knows: the command failed.
    Unknown,
}

impl fmt::Display for ScsiStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "status {:#04x}", self.0),
        }
    }
}

impl fmt::Debug for ScsiStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ScsiStatus({self})")
    }
}

impl From<u8> for ScsiStatus {
    fn from(value: u8) -> Self {
        Self(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn success_and_action_agree_for_every_byte() {
        for value in 0..=255 {
            let status = ScsiStatus(value);
            assert_eq!(
                status.is_success(),
                status.action() == StatusAction::Success
            );
            assert_eq!(
                status.name().is_none(),
                status.action() == StatusAction::Unknown
            );
        }
    }

    #[test]
    fn names_are_for_people() {
        assert_eq!(ScsiStatus(0x28).to_string(), "TASK SET FULL");
        assert_eq!(ScsiStatus(0x99).to_string(), "status 0x99");
    }
}

//! Why a command was not done.

use bytes::Bytes;

use super::super::disk::DiskError;
use super::super::executor::ScsiReply;
use crate::scsi::{Code, ScsiStatus, Sense, SenseFormat, SenseKey};

/// A status other than GOOD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// CHECK CONDITION.
    Sense(Sense),
    /// Another status, which has no sense data.
    Status(ScsiStatus),
}

impl Refusal {
    pub(super) const CONFLICT: Self = Self::Status(ScsiStatus::RESERVATION_CONFLICT);

    pub(super) fn reply(self, format: SenseFormat) -> ScsiReply {
        match self {
            Self::Status(status) => ScsiReply::status(status.0),
            Self::Sense(sense) => ScsiReply {
                sense: Bytes::from(sense.emit(format)),
                ..ScsiReply::status(ScsiStatus::CHECK_CONDITION.0)
            },
        }
    }
}

impl From<Sense> for Refusal {
    fn from(sense: Sense) -> Self {
        Self::Sense(sense)
    }
}

impl From<DiskError> for Refusal {
    fn from(error: DiskError) -> Self {
        Self::Sense(Sense::new(match error {
            DiskError::OutOfRange { .. } => Code::LBA_OUT_OF_RANGE,
            DiskError::NoSpace => Code::SPACE_ALLOCATION_FAILED,
            DiskError::Io(_) => Code::INTERNAL_TARGET_FAILURE,
        }))
    }
}

/// INVALID FIELD IN CDB that points at a field.
pub(super) const fn field_in_cdb(byte: u16, bit: u8) -> Refusal {
    Refusal::Sense(Sense::new(Code::INVALID_FIELD_IN_CDB).with_field(true, byte, Some(bit)))
}

/// INVALID FIELD IN PARAMETER LIST that points at a byte.
pub(super) const fn field_in_parameters(byte: u16) -> Refusal {
    Refusal::Sense(Sense::new(Code::INVALID_FIELD_IN_PARAMETER_LIST).with_field(false, byte, None))
}

/// PARAMETER LIST LENGTH ERROR.
pub(super) const PARAMETER_LIST_LENGTH: Refusal =
    Refusal::Sense(Sense::new(Code::PARAMETER_LIST_LENGTH_ERROR));

/// INVALID FIELD IN COMMAND INFORMATION UNIT: the initiator offers less data than the command takes.
pub(super) const DATA_OUT_LENGTH: Refusal =
    Refusal::Sense(Sense::new(Code::new(SenseKey::IllegalRequest, 0x0e, 0x03)));

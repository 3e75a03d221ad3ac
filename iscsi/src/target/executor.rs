//! The seam between the protocol and what is behind a LUN.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use berth_iobuf::Payload;
use bytes::Bytes;

use super::pace::Load;
use crate::types::Isid;

/// An I_T nexus: one initiator port seen by one target port (SAM-5 4.7). Two sessions of one initiator
/// differ in their ISID; a reinstated session is the same nexus.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Nexus {
    /// Normalised iSCSI name of the initiator.
    pub initiator: Arc<str>,
    /// ISID of the session; with the name it identifies the initiator port.
    pub isid: Isid,
    /// iSCSI name of the target.
    pub target: Arc<str>,
    /// Portal group tag; with the target's name it identifies the target port.
    pub portal_group: u16,
}

/// How a SCSI command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScsiReply {
    /// SCSI status byte.
    pub status: u8,
    /// Sense data, empty unless the status is CHECK CONDITION.
    pub sense: Bytes,
    /// All data that the command returns; what exceeds EDTL becomes an overflow residual.
    pub data_in: Payload,
}

impl ScsiReply {
    /// CHECK CONDITION with fixed-format sense data and no data.
    #[must_use]
    pub fn check_condition(key: u8, asc: u8, ascq: u8) -> Self {
        let mut sense = [0; 18];
        sense[0] = 0x70;
        sense[2] = key;
        sense[7] = 10;
        sense[12] = asc;
        sense[13] = ascq;
        Self {
            status: 0x02,
            sense: Bytes::copy_from_slice(&sense),
            data_in: Payload::new(),
        }
    }

    /// A status without sense and data.
    #[must_use]
    pub fn status(status: u8) -> Self {
        Self {
            status,
            sense: Bytes::new(),
            data_in: Payload::new(),
        }
    }
}

/// What the target role needs of a logical unit. Commands are executed at once: a unit that has to wait
/// belongs behind a queue of its own.
pub trait ScsiExecutor: Any + Send {
    /// Bytes of data-out that this CDB takes from the initiator; `None` when the CDB is not understood,
    /// and then nothing is taken.
    fn data_out_len_bytes(&self, cdb: &[u8]) -> Option<u64>;

    /// Judges a command whose initiator offers `offered_bytes` of data-out where it takes `wanted_bytes`: a
    /// reply ends it unexecuted. Without one it is executed with what there is of what it takes, and the
    /// response has the residual. By default too little is refused: part of a write would be worse than none.
    fn check_data_out(
        &self,
        _cdb: &[u8],
        offered_bytes: u64,
        wanted_bytes: u64,
    ) -> Option<ScsiReply> {
        // INVALID FIELD IN COMMAND INFORMATION UNIT, as FCP-4 has it for this case.
        (offered_bytes < wanted_bytes).then(|| ScsiReply::check_condition(0x05, 0x0e, 0x03))
    }

    /// What a command that reads or writes the medium costs, for units with [limits](super::Portal::set_limits); `None` for
    /// commands that are not limited.
    fn load(&self, _cdb: &[u8]) -> Option<Load> {
        None
    }

    /// A command had to wait for the limits for so long; it is executed next.
    fn waited(&mut self, _load: Load, _time: Duration) {}

    /// Executes one command. `data_out` holds at most what [`ScsiExecutor::data_out_len_bytes`] said.
    fn execute(&mut self, nexus: &Nexus, cdb: &[u8], data_out: &Payload) -> ScsiReply;

    /// A session of this nexus starts. `reinstated` when it replaces one that was still there.
    fn nexus_begins(&mut self, nexus: &Nexus, reinstated: bool);

    /// The session of this nexus is gone.
    fn nexus_ends(&mut self, nexus: &Nexus);

    /// LOGICAL UNIT RESET or TARGET WARM RESET (SAM-5 7.7): reservations of SPC-2, unit attentions 29/xx.
    fn reset(&mut self);

    /// Queues a unit attention for every nexus but `except`.
    fn unit_attention(&mut self, asc: u8, ascq: u8, except: Option<&Nexus>);
}

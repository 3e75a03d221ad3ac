//! Task Management Function Request and Response (RFC 7143 11.5, 11.6; RFC 7144 for functions 9 to 12).

use berth_iobuf::SendQueue;

use super::bhs::{Bhs, FINAL, Opcode};
use super::digest::Digests;
use super::frame::{Frame, emit_header};
use crate::error::Error;
use crate::types::{CmdSn, Itt, Lun, StatSn, TargetSn};

const REFERENCED_TASK: usize = 20;
const REF_CMD_SN: usize = 32;
const EXP_DATA_SN: usize = 36;
const RESPONSE: usize = 2;

/// Task Management Function Request (RFC 7143 11.5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskManagementRequest {
    /// Delivered at once, without using up `cmd_sn`.
    pub immediate: bool,
    /// The function, 7 bits; see the constants.
    pub function: u8,
    /// The logical unit, for functions 1 to 5.
    pub lun: Lun,
    /// Names this request.
    pub itt: Itt,
    /// The task that is meant, for functions 1 and 8; else [`Itt::NONE`].
    pub referenced_task: Itt,
    /// CmdSN of this request.
    pub cmd_sn: CmdSn,
    /// Next StatSN expected on the connection.
    pub exp_stat_sn: StatSn,
    /// CmdSN of the task that is meant, for function 1.
    pub ref_cmd_sn: CmdSn,
    /// First DataSN that is missing, for function 8.
    pub exp_data_sn: u32,
}

impl TaskManagementRequest {
    /// Ends one task.
    pub const ABORT_TASK: u8 = 1;
    /// Ends all our tasks on the LUN.
    pub const ABORT_TASK_SET: u8 = 2;
    /// Ends auto contingent allegiance.
    pub const CLEAR_ACA: u8 = 3;
    /// Ends all tasks of all initiators on the LUN.
    pub const CLEAR_TASK_SET: u8 = 4;
    /// Resets the LUN for all initiators.
    pub const LOGICAL_UNIT_RESET: u8 = 5;
    /// Resets all LUNs of the target.
    pub const TARGET_WARM_RESET: u8 = 6;
    /// Like a power cycle: closes every connection of every initiator.
    pub const TARGET_COLD_RESET: u8 = 7;
    /// Moves a task to this connection.
    pub const TASK_REASSIGN: u8 = 8;
    /// Asks whether a task is alive (RFC 7144).
    pub const QUERY_TASK: u8 = 9;
    /// Asks whether any task is alive (RFC 7144).
    pub const QUERY_TASK_SET: u8 = 10;
    /// As if the nexus were lost (RFC 7144).
    pub const I_T_NEXUS_RESET: u8 = 11;
    /// Asks for a unit attention (RFC 7144).
    pub const QUERY_ASYNC_EVENT: u8 = 12;

    /// Interprets a frame.
    ///
    /// # Errors
    /// None at present; what functions a target knows is for its response to say.
    pub fn parse(frame: Frame) -> Result<Self, Error> {
        let bhs = frame.bhs;
        Ok(Self {
            immediate: bhs.immediate(),
            function: bhs.flags() & !FINAL,
            lun: bhs.lun(),
            itt: bhs.itt(),
            referenced_task: Itt(bhs.u32(REFERENCED_TASK)),
            cmd_sn: bhs.cmd_sn(),
            exp_stat_sn: bhs.exp_stat_sn(),
            ref_cmd_sn: CmdSn(bhs.u32(REF_CMD_SN)),
            exp_data_sn: bhs.u32(EXP_DATA_SN),
        })
    }

    fn bhs(&self) -> Bhs {
        let mut bhs = Bhs::new(Opcode::TaskManagementRequest, FINAL | self.function);
        bhs.set_immediate(self.immediate);
        bhs.set_lun(self.lun);
        bhs.set_itt(self.itt);
        bhs.put_u32(REFERENCED_TASK, self.referenced_task.0);
        bhs.set_request_sn(self.cmd_sn, self.exp_stat_sn);
        bhs.put_u32(REF_CMD_SN, self.ref_cmd_sn.0);
        bhs.put_u32(EXP_DATA_SN, self.exp_data_sn);
        bhs
    }

    /// Appends the PDU to `out`.
    pub fn emit(&self, out: &mut SendQueue, digests: Digests) {
        emit_header(out, &self.bhs(), digests);
    }
}

/// Task Management Function Response (RFC 7143 11.6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskManagementResponse {
    /// How it went; see the constants.
    pub response: u8,
    /// The request that is answered.
    pub itt: Itt,
    /// Sequence numbers.
    pub sn: TargetSn,
}

impl TaskManagementResponse {
    /// Done.
    pub const COMPLETE: u8 = 0;
    /// No such task; for ABORT TASK as good as done.
    pub const TASK_DOES_NOT_EXIST: u8 = 1;
    /// No such LUN.
    pub const LUN_DOES_NOT_EXIST: u8 = 2;
    /// The task's connection is still there.
    pub const TASK_STILL_ALLEGIANT: u8 = 3;
    /// No TASK REASSIGN here.
    pub const REASSIGN_NOT_SUPPORTED: u8 = 4;
    /// No such function here.
    pub const NOT_SUPPORTED: u8 = 5;
    /// The initiator may not do that.
    pub const NOT_AUTHORIZED: u8 = 6;
    /// The answer to a query is yes (RFC 7144).
    pub const FUNCTION_SUCCEEDED: u8 = 7;
    /// Refused.
    pub const REJECTED: u8 = 255;

    /// Interprets a frame.
    ///
    /// # Errors
    /// None at present.
    pub fn parse(frame: Frame) -> Result<Self, Error> {
        let bhs = frame.bhs;
        Ok(Self {
            response: bhs.0[RESPONSE],
            itt: bhs.itt(),
            sn: bhs.target_sn(),
        })
    }

    fn bhs(&self) -> Bhs {
        let mut bhs = Bhs::new(Opcode::TaskManagementResponse, FINAL);
        bhs.0[RESPONSE] = self.response;
        bhs.set_itt(self.itt);
        bhs.set_target_sn(self.sn);
        bhs
    }

    /// Appends the PDU to `out`.
    pub fn emit(&self, out: &mut SendQueue, digests: Digests) {
        emit_header(out, &self.bhs(), digests);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pdu::testing::known_pdu;

    known_pdu! {
        /// ABORT TASK for immediate delivery.
        abort: TaskManagementRequest,
        Digests::NONE,
        "42810000 00000000 00020000 00000000 00000006 00000010 00000008 0000000a
         00000007 00000003 00000000 00000000",
        |bhs| {
            assert_eq!(bhs.opcode(), Some(Opcode::TaskManagementRequest));
            assert_eq!(bhs.flags() & 0x7f, TaskManagementRequest::ABORT_TASK);
            assert_eq!(bhs.u32(REF_CMD_SN), 7);
        },
        TaskManagementRequest {
            immediate: true,
            function: TaskManagementRequest::ABORT_TASK,
            lun: Lun([0, 2, 0, 0, 0, 0, 0, 0]),
            itt: Itt(6),
            referenced_task: Itt(0x10),
            cmd_sn: CmdSn(8),
            exp_stat_sn: StatSn(10),
            ref_cmd_sn: CmdSn(7),
            exp_data_sn: 3,
        }
    }

    known_pdu! {
        /// No such task.
        answer: TaskManagementResponse,
        Digests::NONE,
        "22800100 00000000 00000000 00000000 00000006 00000000 00000009 00000008
         00000047 00000000 00000000 00000000",
        |bhs| assert_eq!(bhs.0[RESPONSE], TaskManagementResponse::TASK_DOES_NOT_EXIST),
        TaskManagementResponse {
            response: TaskManagementResponse::TASK_DOES_NOT_EXIST,
            itt: Itt(6),
            sn: TargetSn {
                stat_sn: StatSn(9),
                exp_cmd_sn: CmdSn(8),
                max_cmd_sn: CmdSn(0x47),
            },
        }
    }
}

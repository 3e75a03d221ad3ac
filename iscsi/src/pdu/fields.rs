//! The PDUs as structs. Field order follows the wire; reserved fields have no name.
// Agreed interface: the per-opcode files own parse and emit, and take their struct with them.
#![allow(missing_docs)]

use berth_iobuf::Payload;
use bytes::Bytes;

use crate::types::{Cid, CmdSn, Isid, Itt, Lun, StatSn, TargetSn, Tsih, Ttt};

/// Any PDU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pdu {
    NopOut(NopOut),
    ScsiCommand(ScsiCommand),
    TaskManagementRequest(TaskManagementRequest),
    LoginRequest(LoginRequest),
    TextRequest(TextRequest),
    DataOut(DataOut),
    LogoutRequest(LogoutRequest),
    Snack(Snack),
    NopIn(NopIn),
    ScsiResponse(ScsiResponse),
    TaskManagementResponse(TaskManagementResponse),
    LoginResponse(LoginResponse),
    TextResponse(TextResponse),
    DataIn(DataIn),
    LogoutResponse(LogoutResponse),
    R2t(R2t),
    AsyncMessage(AsyncMessage),
    Reject(Reject),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NopOut {
    pub immediate: bool,
    pub lun: Lun,
    pub itt: Itt,
    pub ttt: Ttt,
    pub cmd_sn: CmdSn,
    pub exp_stat_sn: StatSn,
    pub data: Payload,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NopIn {
    pub lun: Lun,
    pub itt: Itt,
    pub ttt: Ttt,
    pub sn: TargetSn,
    pub data: Payload,
}

/// Task attribute (RFC 7143 11.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskAttribute {
    Untagged,
    Simple,
    Ordered,
    HeadOfQueue,
    Aca,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScsiCommand {
    pub immediate: bool,
    pub final_: bool,
    pub read: bool,
    pub write: bool,
    pub attribute: TaskAttribute,
    pub lun: Lun,
    pub itt: Itt,
    /// Expected Data Transfer Length in bytes.
    pub expected_len_bytes: u32,
    pub cmd_sn: CmdSn,
    pub exp_stat_sn: StatSn,
    /// First 16 bytes of the CDB.
    pub cdb: [u8; 16],
    /// Rest of a CDB longer than 16 bytes (AHS type 1).
    pub extended_cdb: Bytes,
    /// Bidirectional read length in bytes (AHS type 2).
    pub bidi_read_len_bytes: Option<u32>,
    /// Immediate data.
    pub data: Payload,
}

/// Residual count of a transfer (RFC 7143 11.4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Residual {
    #[default]
    None,
    /// Fewer bytes than expected were moved, by this many.
    Underflow(u32),
    /// The command wanted to move this many more.
    Overflow(u32),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScsiResponse {
    /// 0 completed at target, 1 target failure, 0x80..=0xff vendor.
    pub response: u8,
    pub status: u8,
    pub status_qualifier: u16,
    pub itt: Itt,
    pub snack_tag: u32,
    pub sn: TargetSn,
    pub exp_data_sn: u32,
    pub residual: Residual,
    pub bidi_read_residual: Residual,
    /// SenseLength, sense and response data, as on the wire (use `sense()`).
    pub data: Payload,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskManagementRequest {
    pub immediate: bool,
    pub function: u8,
    pub lun: Lun,
    pub itt: Itt,
    pub referenced_task: Itt,
    pub cmd_sn: CmdSn,
    pub exp_stat_sn: StatSn,
    pub ref_cmd_sn: CmdSn,
    pub exp_data_sn: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskManagementResponse {
    pub response: u8,
    pub itt: Itt,
    pub sn: TargetSn,
}

/// Login stage (RFC 7143 11.12.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Security = 0,
    Operational = 1,
    FullFeature = 3,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginRequest {
    pub transit: bool,
    pub continue_: bool,
    pub current_stage: Stage,
    pub next_stage: Stage,
    pub version_max: u8,
    pub version_min: u8,
    pub isid: Isid,
    pub tsih: Tsih,
    pub itt: Itt,
    pub cid: Cid,
    pub cmd_sn: CmdSn,
    pub exp_stat_sn: StatSn,
    /// key=value pairs, each ended by NUL
    pub data: Payload,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginResponse {
    pub transit: bool,
    pub continue_: bool,
    pub current_stage: Stage,
    pub next_stage: Stage,
    pub version_max: u8,
    pub version_active: u8,
    pub isid: Isid,
    pub tsih: Tsih,
    pub itt: Itt,
    pub sn: TargetSn,
    pub status_class: u8,
    pub status_detail: u8,
    pub data: Payload,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextRequest {
    pub immediate: bool,
    pub final_: bool,
    pub continue_: bool,
    pub lun: Lun,
    pub itt: Itt,
    pub ttt: Ttt,
    pub cmd_sn: CmdSn,
    pub exp_stat_sn: StatSn,
    pub data: Payload,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextResponse {
    pub final_: bool,
    pub continue_: bool,
    pub lun: Lun,
    pub itt: Itt,
    pub ttt: Ttt,
    pub sn: TargetSn,
    pub data: Payload,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataOut {
    pub final_: bool,
    pub lun: Lun,
    pub itt: Itt,
    pub ttt: Ttt,
    pub exp_stat_sn: StatSn,
    pub data_sn: u32,
    pub buffer_offset_bytes: u32,
    pub data: Payload,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataIn {
    pub final_: bool,
    /// A bit: the target asks for a DataACK SNACK (ERL > 0).
    pub acknowledge: bool,
    /// SCSI status, when the S bit is set (phase collapse); then `sn.stat_sn` and `residual` are valid.
    pub status: Option<u8>,
    pub residual: Residual,
    pub lun: Lun,
    pub itt: Itt,
    pub ttt: Ttt,
    pub sn: TargetSn,
    pub data_sn: u32,
    pub buffer_offset_bytes: u32,
    pub data: Payload,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct R2t {
    pub lun: Lun,
    pub itt: Itt,
    pub ttt: Ttt,
    pub sn: TargetSn,
    pub r2t_sn: u32,
    pub buffer_offset_bytes: u32,
    pub desired_len_bytes: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogoutRequest {
    pub immediate: bool,
    /// 0 close session, 1 close connection, 2 remove connection for recovery
    pub reason: u8,
    pub itt: Itt,
    pub cid: Cid,
    pub cmd_sn: CmdSn,
    pub exp_stat_sn: StatSn,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogoutResponse {
    pub response: u8,
    pub itt: Itt,
    pub sn: TargetSn,
    pub time2wait_s: u16,
    pub time2retain_s: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snack {
    pub kind: u8,
    pub lun: Lun,
    pub itt: Itt,
    pub ttt_or_tag: u32,
    pub exp_stat_sn: StatSn,
    pub beg_run: u32,
    pub run_len: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AsyncMessage {
    pub lun: Lun,
    pub sn: TargetSn,
    pub event: u8,
    pub vendor_code: u8,
    pub parameter1: u16,
    pub parameter2: u16,
    pub parameter3: u16,
    pub data: Payload,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    pub reason: u8,
    pub sn: TargetSn,
    pub data_sn: u32,
    /// The header of the refused PDU.
    pub data: Payload,
}

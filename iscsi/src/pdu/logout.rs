//! Logout Request and Logout Response (RFC 7143 11.14, 11.15).

use berth_iobuf::SendQueue;

use super::bhs::{Bhs, FINAL, Opcode};
use super::digest::Digests;
use super::frame::{Frame, emit_header};
use crate::error::Error;
use crate::types::{Cid, CmdSn, Itt, StatSn, TargetSn};

const CID: usize = 20;
const RESPONSE: usize = 2;
const TIME2WAIT: usize = 40;
const TIME2RETAIN: usize = 42;

/// Logout Request (RFC 7143 11.14).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogoutRequest {
    /// Delivered at once, without using up `cmd_sn`.
    pub immediate: bool,
    /// 0 close session, 1 close connection, 2 remove connection for recovery; 7 bits.
    pub reason: u8,
    /// Names this request.
    pub itt: Itt,
    /// The connection that is meant, for reasons 1 and 2.
    pub cid: Cid,
    /// CmdSN of the request.
    pub cmd_sn: CmdSn,
    /// Next StatSN expected on the connection.
    pub exp_stat_sn: StatSn,
}

impl LogoutRequest {
    /// All connections of the session end.
    pub const CLOSE_SESSION: u8 = 0;
    /// One connection ends.
    pub const CLOSE_CONNECTION: u8 = 1;
    /// One connection is gone and its tasks will be moved.
    pub const REMOVE_FOR_RECOVERY: u8 = 2;

    /// Interprets a frame.
    ///
    /// # Errors
    /// None at present; a reason that does not exist is for the target to reject.
    pub fn parse(frame: Frame) -> Result<Self, Error> {
        let bhs = frame.bhs;
        Ok(Self {
            immediate: bhs.immediate(),
            reason: bhs.flags() & !FINAL,
            itt: bhs.itt(),
            cid: Cid(bhs.u16(CID)),
            cmd_sn: bhs.cmd_sn(),
            exp_stat_sn: bhs.exp_stat_sn(),
        })
    }

    fn bhs(&self) -> Bhs {
        let mut bhs = Bhs::new(Opcode::LogoutRequest, FINAL | self.reason);
        bhs.set_immediate(self.immediate);
        bhs.set_itt(self.itt);
        bhs.put_u16(CID, self.cid.0);
        bhs.set_request_sn(self.cmd_sn, self.exp_stat_sn);
        bhs
    }

    /// Appends the PDU to `out`.
    pub fn emit(&self, out: &mut SendQueue, digests: Digests) {
        emit_header(out, &self.bhs(), digests);
    }
}

/// Logout Response (RFC 7143 11.15).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogoutResponse {
    /// How it went; see the constants.
    pub response: u8,
    /// The request that is answered.
    pub itt: Itt,
    /// Sequence numbers.
    pub sn: TargetSn,
    /// Seconds to wait before connecting again.
    pub time2wait_s: u16,
    /// Seconds after that in which tasks can be moved.
    pub time2retain_s: u16,
}

impl LogoutResponse {
    /// Closed.
    pub const CLOSED: u8 = 0;
    /// No such connection.
    pub const CID_NOT_FOUND: u8 = 1;
    /// The target cannot move tasks.
    pub const RECOVERY_NOT_SUPPORTED: u8 = 2;
    /// Something was left behind.
    pub const CLEANUP_FAILED: u8 = 3;

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
            time2wait_s: bhs.u16(TIME2WAIT),
            time2retain_s: bhs.u16(TIME2RETAIN),
        })
    }

    fn bhs(&self) -> Bhs {
        let mut bhs = Bhs::new(Opcode::LogoutResponse, FINAL);
        bhs.0[RESPONSE] = self.response;
        bhs.set_itt(self.itt);
        bhs.set_target_sn(self.sn);
        bhs.put_u16(TIME2WAIT, self.time2wait_s);
        bhs.put_u16(TIME2RETAIN, self.time2retain_s);
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
        /// The end of one connection.
        request: LogoutRequest,
        Digests::NONE,
        "46810000 00000000 00000000 00000000 00000008 00030000 00000008 0000000a
         00000000 00000000 00000000 00000000",
        |bhs| {
            assert_eq!(bhs.opcode(), Some(Opcode::LogoutRequest));
            assert_eq!(bhs.u16(CID), 3);
        },
        LogoutRequest {
            immediate: true,
            reason: LogoutRequest::CLOSE_CONNECTION,
            itt: Itt(8),
            cid: Cid(3),
            cmd_sn: CmdSn(8),
            exp_stat_sn: StatSn(10),
        }
    }

    known_pdu! {
        /// Something was left behind; come back after 2 seconds and within 20 more.
        response: LogoutResponse,
        Digests::NONE,
        "26800300 00000000 00000000 00000000 00000008 00000000 00000009 00000008
         00000047 00000000 00020014 00000000",
        |bhs| assert_eq!(bhs.0[RESPONSE], LogoutResponse::CLEANUP_FAILED),
        LogoutResponse {
            response: LogoutResponse::CLEANUP_FAILED,
            itt: Itt(8),
            sn: TargetSn {
                stat_sn: StatSn(9),
                exp_cmd_sn: CmdSn(8),
                max_cmd_sn: CmdSn(0x47),
            },
            time2wait_s: 2,
            time2retain_s: 20,
        }
    }
}

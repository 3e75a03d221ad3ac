//! Asynchronous Message (RFC 7143 11.9).

use berth_iobuf::{Payload, SendQueue};
use bytes::Bytes;

use super::bhs::{Bhs, FINAL, Opcode};
use super::digest::Digests;
use super::frame::{Frame, emit_data};
use super::scsi::split_sense;
use crate::error::Error;
use crate::types::{Itt, Lun, TargetSn};

const EVENT: usize = 36;
const VENDOR_CODE: usize = 37;
const PARAMETER1: usize = 38;
const PARAMETER2: usize = 40;
const PARAMETER3: usize = 42;

/// Asynchronous Message (RFC 7143 11.9). It has no task and consumes a StatSN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AsyncMessage {
    /// The logical unit, for events 0 and 5.
    pub lun: Lun,
    /// Sequence numbers.
    pub sn: TargetSn,
    /// What happened; see the constants.
    pub event: u8,
    /// Meaning depends on the vendor, for events 248 to 255.
    pub vendor_code: u8,
    /// Connection that will be dropped, for event 2.
    pub parameter1: u16,
    /// Time2Wait in seconds, for events 2 and 3.
    pub parameter2: u16,
    /// Time2Retain or time to act in seconds, for events 1 to 4.
    pub parameter3: u16,
    /// SenseLength, sense and event data, as on the wire (use [`AsyncMessage::sense`]).
    pub data: Payload,
}

impl AsyncMessage {
    /// Sense data for a logical unit.
    pub const SCSI_EVENT: u8 = 0;
    /// The target wants a logout within `parameter3` seconds.
    pub const LOGOUT_REQUEST: u8 = 1;
    /// The target will drop connection `parameter1`.
    pub const CONNECTION_DROP: u8 = 2;
    /// The target will drop all connections of the session.
    pub const SESSION_DROP: u8 = 3;
    /// The target wants to negotiate within `parameter3` seconds.
    pub const NEGOTIATE: u8 = 4;
    /// All tasks on the LUN were ended.
    pub const TASK_TERMINATION: u8 = 5;

    /// Interprets a frame.
    ///
    /// # Errors
    /// None at present; unknown events are to be acknowledged and ignored.
    pub fn parse(frame: Frame) -> Result<Self, Error> {
        let Frame { bhs, data, .. } = frame;
        Ok(Self {
            lun: bhs.lun(),
            sn: bhs.target_sn(),
            event: bhs.0[EVENT],
            vendor_code: bhs.0[VENDOR_CODE],
            parameter1: bhs.u16(PARAMETER1),
            parameter2: bhs.u16(PARAMETER2),
            parameter3: bhs.u16(PARAMETER3),
            data,
        })
    }

    fn bhs(&self) -> Bhs {
        let mut bhs = Bhs::new(Opcode::AsyncMessage, FINAL);
        bhs.set_lun(self.lun);
        bhs.set_itt(Itt::NONE);
        bhs.set_target_sn(self.sn);
        bhs.0[EVENT] = self.event;
        bhs.0[VENDOR_CODE] = self.vendor_code;
        bhs.put_u16(PARAMETER1, self.parameter1);
        bhs.put_u16(PARAMETER2, self.parameter2);
        bhs.put_u16(PARAMETER3, self.parameter3);
        bhs
    }

    /// Appends the PDU to `out`.
    pub fn emit(&self, out: &mut SendQueue, digests: Digests) {
        emit_data(out, self.bhs(), &self.data, digests);
    }

    /// The sense data; empty when there is none. A SenseLength beyond the data ends with the data.
    #[must_use]
    pub fn sense(&self) -> Bytes {
        split_sense(&self.data).0
    }

    /// What follows the sense data.
    #[must_use]
    pub fn event_data(&self) -> Payload {
        split_sense(&self.data).1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pdu::sense_data;
    use crate::pdu::testing::known_pdu;
    use crate::types::{CmdSn, StatSn};

    known_pdu! {
        /// The target will drop connection 3; come back after 2 seconds and within 20 more.
        drop: AsyncMessage,
        Digests::NONE,
        "32800000 00000000 00000000 00000000 ffffffff 00000000 00000009 00000008
         00000047 02000003 00020014 00000000",
        |bhs| {
            assert_eq!(bhs.opcode(), Some(Opcode::AsyncMessage));
            assert_eq!(bhs.0[EVENT], AsyncMessage::CONNECTION_DROP);
            assert!(bhs.itt().is_none());
        },
        AsyncMessage {
            lun: Lun::default(),
            sn: TargetSn {
                stat_sn: StatSn(9),
                exp_cmd_sn: CmdSn(8),
                max_cmd_sn: CmdSn(0x47),
            },
            event: AsyncMessage::CONNECTION_DROP,
            vendor_code: 0,
            parameter1: 3,
            parameter2: 2,
            parameter3: 20,
            data: Payload::new(),
        }
    }

    known_pdu! {
        /// The capacity of LUN 1 has changed, in descriptor sense.
        news: AsyncMessage,
        Digests::NONE,
        "32800000 0000000a 00010000 00000000 ffffffff 00000000 00000009 00000008
         00000047 00550000 00000000 00000000 00087206 2a090000 00000000",
        |bhs| assert_eq!(bhs.lun().number(), Some(1)),
        AsyncMessage {
            lun: Lun([0, 1, 0, 0, 0, 0, 0, 0]),
            sn: TargetSn {
                stat_sn: StatSn(9),
                exp_cmd_sn: CmdSn(8),
                max_cmd_sn: CmdSn(0x47),
            },
            event: AsyncMessage::SCSI_EVENT,
            vendor_code: 0x55,
            parameter1: 0,
            parameter2: 0,
            parameter3: 0,
            data: sense_data(&[0x72, 6, 0x2a, 9, 0, 0, 0, 0]),
        }
    }

    #[test]
    fn sense_and_event_data_come_apart() {
        // RFC 7143 11.9.3
        let message = AsyncMessage {
            lun: Lun::default(),
            sn: TargetSn::default(),
            event: AsyncMessage::SCSI_EVENT,
            vendor_code: 0,
            parameter1: 0,
            parameter2: 0,
            parameter3: 0,
            data: Payload::from(vec![0, 2, 0x72, 6, 7, 8]),
        };
        assert_eq!(message.sense(), &[0x72, 6][..]);
        assert_eq!(message.event_data().to_bytes(), &[7, 8][..]);
    }
}

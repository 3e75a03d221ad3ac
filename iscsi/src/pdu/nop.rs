//! NOP-Out and NOP-In: pings, answers to pings, and news of the command window (RFC 7143 11.18, 11.19).

use berth_iobuf::{Payload, SendQueue};

use super::bhs::{Bhs, FINAL, Opcode};
use super::digest::Digests;
use super::frame::{Frame, emit_data};
use crate::error::Error;
use crate::types::{CmdSn, Itt, Lun, StatSn, TargetSn, Ttt};

/// NOP-Out (RFC 7143 11.18).
///
/// A ping has an ITT and wants a NOP-In; an answer to the target's ping has its TTT and LUN; with
/// neither it only acknowledges StatSN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NopOut {
    /// Delivered at once, without using up `cmd_sn`; must be set when there is no ITT.
    pub immediate: bool,
    /// Copied from the NOP-In that is answered.
    pub lun: Lun,
    /// Names our ping; [`Itt::NONE`] when no answer is wanted.
    pub itt: Itt,
    /// Copied from the NOP-In that is answered; else [`Ttt::NONE`].
    pub ttt: Ttt,
    /// Next CmdSN of the session.
    pub cmd_sn: CmdSn,
    /// Next StatSN expected on the connection.
    pub exp_stat_sn: StatSn,
    /// What the target shall send back.
    pub data: Payload,
}

impl NopOut {
    /// Interprets a frame.
    ///
    /// # Errors
    /// None at present: no field of this PDU has a wrong value.
    pub fn parse(frame: Frame) -> Result<Self, Error> {
        let Frame { bhs, data, .. } = frame;
        Ok(Self {
            immediate: bhs.immediate(),
            lun: bhs.lun(),
            itt: bhs.itt(),
            ttt: bhs.ttt(),
            cmd_sn: bhs.cmd_sn(),
            exp_stat_sn: bhs.exp_stat_sn(),
            data,
        })
    }

    fn bhs(&self) -> Bhs {
        let mut bhs = Bhs::new(Opcode::NopOut, FINAL);
        bhs.set_immediate(self.immediate);
        bhs.set_lun(self.lun);
        bhs.set_itt(self.itt);
        bhs.set_ttt(self.ttt);
        bhs.set_request_sn(self.cmd_sn, self.exp_stat_sn);
        bhs
    }

    /// Appends the PDU to `out`.
    pub fn emit(&self, out: &mut SendQueue, digests: Digests) {
        emit_data(out, self.bhs(), &self.data, digests);
    }
}

/// NOP-In (RFC 7143 11.19).
///
/// With an ITT it answers our ping; with a TTT it is the target's ping and must be answered; with
/// neither it only carries numbers, and its StatSN is the next one, not consumed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NopIn {
    /// To be copied to the answer of the target's ping.
    pub lun: Lun,
    /// The ping that is answered, or [`Itt::NONE`].
    pub itt: Itt,
    /// The target's ping, or [`Ttt::NONE`].
    pub ttt: Ttt,
    /// Sequence numbers.
    pub sn: TargetSn,
    /// What our ping had.
    pub data: Payload,
}

impl NopIn {
    /// Interprets a frame.
    ///
    /// # Errors
    /// [`Error::Malformed`] when both tags are set (RFC 7143 11.19.1).
    pub fn parse(frame: Frame) -> Result<Self, Error> {
        let Frame { bhs, data, .. } = frame;
        let (itt, ttt) = (bhs.itt(), bhs.ttt());
        if !itt.is_none() && !ttt.is_none() {
            return Err(Error::malformed(
                "NOP-In",
                format!("it answers {itt:?} and asks with {ttt:?}; one of them must be 0xffffffff"),
            ));
        }
        Ok(Self {
            lun: bhs.lun(),
            itt,
            ttt,
            sn: bhs.target_sn(),
            data,
        })
    }

    fn bhs(&self) -> Bhs {
        let mut bhs = Bhs::new(Opcode::NopIn, FINAL);
        bhs.set_lun(self.lun);
        bhs.set_itt(self.itt);
        bhs.set_ttt(self.ttt);
        bhs.set_target_sn(self.sn);
        bhs
    }

    /// Appends the PDU to `out`.
    pub fn emit(&self, out: &mut SendQueue, digests: Digests) {
        emit_data(out, self.bhs(), &self.data, digests);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pdu::testing::{header, known_pdu};
    use bytes::Bytes;

    known_pdu! {
        /// The answer to a target's ping.
        answer: NopOut,
        Digests { header: true, data: true },
        "40800000 00000000 00010000 00000000 ffffffff 11223344 00000008 0000000a
         00000000 00000000 00000000 00000000 c24c4484",
        |bhs| {
            assert_eq!(bhs.opcode(), Some(Opcode::NopOut));
            assert!(bhs.immediate());
            assert!(bhs.itt().is_none());
            assert_eq!(bhs.ttt(), Ttt(0x1122_3344));
        },
        NopOut {
            immediate: true,
            lun: Lun([0, 1, 0, 0, 0, 0, 0, 0]),
            itt: Itt::NONE,
            ttt: Ttt(0x1122_3344),
            cmd_sn: CmdSn(8),
            exp_stat_sn: StatSn(10),
            data: Payload::new(),
        }
    }

    known_pdu! {
        /// The answer to our ping, with its data.
        pong: NopIn,
        Digests::NONE,
        "20800000 00000003 00000000 00000000 00000005 ffffffff 00000009 00000008
         00000047 00000000 00000000 00000000 61626300",
        |bhs| {
            assert_eq!(bhs.opcode(), Some(Opcode::NopIn));
            assert_eq!(bhs.data_len_bytes(), 3);
            assert!(bhs.ttt().is_none());
        },
        NopIn {
            lun: Lun::default(),
            itt: Itt(5),
            ttt: Ttt::NONE,
            sn: TargetSn {
                stat_sn: StatSn(9),
                exp_cmd_sn: CmdSn(8),
                max_cmd_sn: CmdSn(0x47),
            },
            data: Payload::from(&b"abc"[..]),
        }
    }

    #[test]
    fn a_nop_in_cannot_ask_and_answer() {
        // RFC 7143 11.19.1
        for (itt, ttt, ok) in [(1, 1, false), (1, u32::MAX, true), (u32::MAX, 1, true)] {
            let mut bhs = header(Opcode::NopIn, FINAL);
            bhs.set_itt(Itt(itt));
            bhs.set_ttt(Ttt(ttt));
            let frame = Frame {
                bhs,
                ahs: Bytes::new(),
                data: Payload::new(),
            };
            assert_eq!(NopIn::parse(frame).is_ok(), ok);
        }
    }
}

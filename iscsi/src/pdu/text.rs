//! Text Request and Text Response (RFC 7143 11.10, 11.11).

use berth_iobuf::{Payload, SendQueue};

use super::bhs::{Bhs, CONTINUE, FINAL, Opcode};
use super::digest::Digests;
use super::frame::{Frame, emit_data};
use crate::error::Error;
use crate::types::{CmdSn, Itt, Lun, StatSn, TargetSn, Ttt};

fn flags(what: &'static str, byte: u8) -> Result<(bool, bool), Error> {
    let (final_, continue_) = (byte & FINAL != 0, byte & CONTINUE != 0);
    if final_ && continue_ {
        return Err(Error::malformed(
            what,
            "F=1 and C=1; text that goes on cannot be the last",
        ));
    }
    Ok((final_, continue_))
}

fn byte(final_: bool, continue_: bool) -> u8 {
    (if final_ { FINAL } else { 0 }) | (if continue_ { CONTINUE } else { 0 })
}

/// Text Request (RFC 7143 11.10).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextRequest {
    /// Delivered at once, without using up `cmd_sn`.
    pub immediate: bool,
    /// F: the initiator has nothing more to say.
    pub final_: bool,
    /// C: the text goes on in the next PDU.
    pub continue_: bool,
    /// Copied from the response that is answered.
    pub lun: Lun,
    /// One tag for the whole exchange.
    pub itt: Itt,
    /// Copied from the response that is answered; [`Ttt::NONE`] starts a new exchange.
    pub ttt: Ttt,
    /// CmdSN of the request.
    pub cmd_sn: CmdSn,
    /// Next StatSN expected on the connection.
    pub exp_stat_sn: StatSn,
    /// key=value pairs, each ended by NUL.
    pub data: Payload,
}

impl TextRequest {
    /// Interprets a frame.
    ///
    /// # Errors
    /// [`Error::Malformed`] when F and C are both set.
    pub fn parse(frame: Frame) -> Result<Self, Error> {
        let Frame { bhs, data, .. } = frame;
        let (final_, continue_) = flags("Text Request", bhs.flags())?;
        Ok(Self {
            immediate: bhs.immediate(),
            final_,
            continue_,
            lun: bhs.lun(),
            itt: bhs.itt(),
            ttt: bhs.ttt(),
            cmd_sn: bhs.cmd_sn(),
            exp_stat_sn: bhs.exp_stat_sn(),
            data,
        })
    }

    fn bhs(&self) -> Bhs {
        let mut bhs = Bhs::new(Opcode::TextRequest, byte(self.final_, self.continue_));
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

/// Text Response (RFC 7143 11.11).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextResponse {
    /// F: the target has nothing more to say.
    pub final_: bool,
    /// C: the text goes on in the next PDU.
    pub continue_: bool,
    /// To be copied to the next request of the exchange.
    pub lun: Lun,
    /// The exchange.
    pub itt: Itt,
    /// To be copied to the next request of the exchange; [`Ttt::NONE`] when there is none.
    pub ttt: Ttt,
    /// Sequence numbers.
    pub sn: TargetSn,
    /// key=value pairs, each ended by NUL.
    pub data: Payload,
}

impl TextResponse {
    /// Interprets a frame.
    ///
    /// # Errors
    /// [`Error::Malformed`] when F and C are both set.
    pub fn parse(frame: Frame) -> Result<Self, Error> {
        let Frame { bhs, data, .. } = frame;
        let (final_, continue_) = flags("Text Response", bhs.flags())?;
        Ok(Self {
            final_,
            continue_,
            lun: bhs.lun(),
            itt: bhs.itt(),
            ttt: bhs.ttt(),
            sn: bhs.target_sn(),
            data,
        })
    }

    fn bhs(&self) -> Bhs {
        let mut bhs = Bhs::new(Opcode::TextResponse, byte(self.final_, self.continue_));
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
        /// SendTargets=All
        send_targets: TextRequest,
        Digests::NONE,
        "44800000 00000010 00000000 00000000 00000007 ffffffff 00000008 0000000a
         00000000 00000000 00000000 00000000 53656e64 54617267 6574733d 416c6c00",
        |bhs| {
            assert_eq!(bhs.opcode(), Some(Opcode::TextRequest));
            assert!(bhs.ttt().is_none());
            assert_eq!(bhs.data_len_bytes(), 16);
        },
        TextRequest {
            immediate: true,
            final_: true,
            continue_: false,
            lun: Lun::default(),
            itt: Itt(7),
            ttt: Ttt::NONE,
            cmd_sn: CmdSn(8),
            exp_stat_sn: StatSn(10),
            data: Payload::from(&b"SendTargets=All\0"[..]),
        }
    }

    known_pdu! {
        /// The first part of a long answer.
        part: TextResponse,
        Digests::NONE,
        "24400000 00000005 00010000 00000000 00000007 00000021 00000009 00000008
         00000047 00000000 00000000 00000000 54617267 65000000",
        |bhs| assert_eq!(bhs.flags(), CONTINUE),
        TextResponse {
            final_: false,
            continue_: true,
            lun: Lun([0, 1, 0, 0, 0, 0, 0, 0]),
            itt: Itt(7),
            ttt: Ttt(0x21),
            sn: TargetSn {
                stat_sn: StatSn(9),
                exp_cmd_sn: CmdSn(8),
                max_cmd_sn: CmdSn(0x47),
            },
            data: Payload::from(&b"Targe"[..]),
        }
    }

    #[test]
    fn text_that_goes_on_is_not_the_last() {
        // RFC 7143 11.10.1, 11.11.1
        let frame = |opcode, flags| Frame {
            bhs: header(opcode, flags),
            ahs: Bytes::new(),
            data: Payload::new(),
        };
        for (flags, ok) in [(0x00, true), (0x40, true), (0x80, true), (0xc0, false)] {
            assert_eq!(
                TextRequest::parse(frame(Opcode::TextRequest, flags)).is_ok(),
                ok
            );
            assert_eq!(
                TextResponse::parse(frame(Opcode::TextResponse, flags)).is_ok(),
                ok
            );
        }
    }
}

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

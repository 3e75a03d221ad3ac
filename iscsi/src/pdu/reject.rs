//! Reject (RFC 7143 11.17).

use berth_iobuf::{Payload, SendQueue};

use super::bhs::{BHS_LEN, Bhs, FINAL, Opcode};
use super::digest::Digests;
use super::frame::{Frame, emit_data};
use crate::error::{Error, RejectReason};
use crate::types::{Itt, TargetSn};

const REASON: usize = 2;
const DATA_SN: usize = 36;

/// Reject (RFC 7143 11.17). It has no task and consumes a StatSN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    /// Why; see [`Reject::reason`].
    pub reason: u8,
    /// Sequence numbers.
    pub sn: TargetSn,
    /// Next DataSN or R2TSN, when a SNACK was refused.
    pub data_sn: u32,
    /// The header of the refused PDU, without digest (use [`Reject::refused`]).
    pub data: Payload,
}

impl Reject {
    /// Interprets a frame. A header that is cut short is taken: the reason alone says enough.
    ///
    /// # Errors
    /// None at present.
    pub fn parse(frame: Frame) -> Result<Self, Error> {
        let Frame { bhs, data, .. } = frame;
        Ok(Self {
            reason: bhs.0[REASON],
            sn: bhs.target_sn(),
            data_sn: bhs.u32(DATA_SN),
            data,
        })
    }

    fn bhs(&self) -> Bhs {
        let mut bhs = Bhs::new(Opcode::Reject, FINAL);
        bhs.0[REASON] = self.reason;
        bhs.set_itt(Itt::NONE);
        bhs.set_target_sn(self.sn);
        bhs.put_u32(DATA_SN, self.data_sn);
        bhs
    }

    /// Appends the PDU to `out`.
    pub fn emit(&self, out: &mut SendQueue, digests: Digests) {
        emit_data(out, self.bhs(), &self.data, digests);
    }

    /// The reason as a type.
    #[must_use]
    pub const fn reason(&self) -> RejectReason {
        RejectReason(self.reason)
    }

    /// The header of the refused PDU; `None` when the target sent less than a header.
    #[must_use]
    pub fn refused(&self) -> Option<Bhs> {
        let mut bytes = [0; BHS_LEN];
        (self.data.len() >= BHS_LEN).then(|| {
            self.data.slice(0, BHS_LEN).copy_to(&mut bytes);
            Bhs(bytes)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pdu::testing::known_pdu;
    use crate::types::{CmdSn, StatSn};

    known_pdu! {
        /// Too many immediate commands: the NOP-Out with ITT 5 was refused.
        immediate: Reject,
        Digests::NONE,
        "3f800600 00000030 00000000 00000000 ffffffff 00000000 00000009 00000008
         00000047 00000000 00000000 00000000
         40800000 00000000 00000000 00000000 00000005 ffffffff 00000008 0000000a
         00000000 00000000 00000000 00000000",
        |bhs| {
            assert_eq!(bhs.opcode(), Some(Opcode::Reject));
            assert_eq!(bhs.0[REASON], 6);
        },
        Reject {
            reason: RejectReason::IMMEDIATE_COMMAND.0,
            sn: TargetSn {
                stat_sn: StatSn(9),
                exp_cmd_sn: CmdSn(8),
                max_cmd_sn: CmdSn(0x47),
            },
            data_sn: 0,
            data: {
                let mut bhs = Bhs::new(Opcode::NopOut, FINAL);
                bhs.set_immediate(true);
                bhs.set_itt(Itt(5));
                bhs.set_ttt(crate::types::Ttt::NONE);
                bhs.set_request_sn(CmdSn(8), StatSn(10));
                Payload::from(bhs.0.to_vec())
            },
        }
    }

    #[test]
    fn the_refused_header_is_found_when_it_is_whole() {
        // RFC 7143 11.17.4: it may be followed by additional headers.
        let mut reject = Reject {
            reason: 4,
            sn: TargetSn::default(),
            data_sn: 0,
            data: Payload::new(),
        };
        for (len, whole) in [(0, false), (47, false), (48, true), (52, true)] {
            reject.data = Payload::from(vec![0x41; len]);
            assert_eq!(
                reject.refused().and_then(|bhs| bhs.opcode()),
                whole.then_some(Opcode::ScsiCommand)
            );
        }
        assert_eq!(reject.reason(), RejectReason::PROTOCOL_ERROR);
    }
}

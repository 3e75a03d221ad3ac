//! Ready To Transfer (RFC 7143 11.8).

use berth_iobuf::SendQueue;

use super::bhs::{Bhs, FINAL, Opcode};
use super::digest::Digests;
use super::frame::{Frame, emit_header};
use crate::error::Error;
use crate::types::{Itt, Lun, TargetSn, Ttt};

const R2T_SN: usize = 36;
const BUFFER_OFFSET: usize = 40;
const DESIRED_LEN: usize = 44;

/// Ready To Transfer (RFC 7143 11.8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct R2t {
    /// To be copied to the Data-Outs.
    pub lun: Lun,
    /// The task.
    pub itt: Itt,
    /// To be copied to the Data-Outs; never [`Ttt::NONE`].
    pub ttt: Ttt,
    /// Sequence numbers; StatSN is the next one, not consumed.
    pub sn: TargetSn,
    /// Number of the R2T within the task, from 0.
    pub r2t_sn: u32,
    /// Where the wanted data starts within the whole transfer.
    pub buffer_offset_bytes: u32,
    /// How much data is wanted, at least 1.
    pub desired_len_bytes: u32,
}

impl R2t {
    const NAME: &str = "Ready To Transfer";

    /// Interprets a frame.
    ///
    /// # Errors
    /// [`Error::Malformed`] when the transfer tag is the reserved one, no data is wanted, or the data
    /// would end beyond 4 GiB.
    #[inline]
    pub fn parse(frame: Frame) -> Result<Self, Error> {
        let bhs = frame.bhs;
        let (offset, len) = (bhs.u32(BUFFER_OFFSET), bhs.u32(DESIRED_LEN));
        if bhs.ttt().is_none() {
            return Err(Error::malformed(
                Self::NAME,
                "transfer tag 0xffffffff is reserved",
            ));
        }
        if len == 0 || offset.checked_add(len).is_none() {
            return Err(Error::malformed(
                Self::NAME,
                format!("{len} bytes wanted at {offset}; at least 1, ending below 4 GiB"),
            ));
        }
        Ok(Self {
            lun: bhs.lun(),
            itt: bhs.itt(),
            ttt: bhs.ttt(),
            sn: bhs.target_sn(),
            r2t_sn: bhs.u32(R2T_SN),
            buffer_offset_bytes: offset,
            desired_len_bytes: len,
        })
    }

    fn bhs(&self) -> Bhs {
        let mut bhs = Bhs::new(Opcode::R2t, FINAL);
        bhs.set_lun(self.lun);
        bhs.set_itt(self.itt);
        bhs.set_ttt(self.ttt);
        bhs.set_target_sn(self.sn);
        bhs.put_u32(R2T_SN, self.r2t_sn);
        bhs.put_u32(BUFFER_OFFSET, self.buffer_offset_bytes);
        bhs.put_u32(DESIRED_LEN, self.desired_len_bytes);
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
    use crate::pdu::testing::{header, known_pdu};
    use crate::types::{CmdSn, StatSn};
    use berth_iobuf::Payload;
    use bytes::Bytes;

    known_pdu! {
        /// The second R2T of a task.
        second: R2t,
        Digests::NONE,
        "31800000 00000000 00010000 00000000 00000010 000000a5 00000009 00000008
         00000047 00000001 00040000 00020000",
        |bhs| {
            assert_eq!(bhs.opcode(), Some(Opcode::R2t));
            assert_eq!(bhs.u32(R2T_SN), 1);
        },
        R2t {
            lun: Lun([0, 1, 0, 0, 0, 0, 0, 0]),
            itt: Itt(0x10),
            ttt: Ttt(0xa5),
            sn: TargetSn {
                stat_sn: StatSn(9),
                exp_cmd_sn: CmdSn(8),
                max_cmd_sn: CmdSn(0x47),
            },
            r2t_sn: 1,
            buffer_offset_bytes: 0x4_0000,
            desired_len_bytes: 0x2_0000,
        }
    }

    #[test]
    fn impossible_wishes_are_refused() {
        // RFC 7143 11.8.3, 11.8.4
        for (ttt, offset, len, ok) in [
            (1, 0, 1, true),
            (u32::MAX, 0, 1, false),
            (1, 0, 0, false),
            (1, u32::MAX, 1, false),
            (1, u32::MAX - 1, 1, true),
            (1, 0x8000_0000, 0x8000_0000, false),
        ] {
            let mut bhs = header(Opcode::R2t, FINAL);
            bhs.set_ttt(Ttt(ttt));
            bhs.put_u32(BUFFER_OFFSET, offset);
            bhs.put_u32(DESIRED_LEN, len);
            let parsed = R2t::parse(Frame {
                bhs,
                ahs: Bytes::new(),
                data: Payload::new(),
            });
            assert_eq!(parsed.is_ok(), ok, "{offset}+{len}");
        }
    }
}

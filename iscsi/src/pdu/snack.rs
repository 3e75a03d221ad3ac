//! SNACK Request (RFC 7143 11.16).

use berth_iobuf::SendQueue;

use super::bhs::{Bhs, FINAL, Opcode, at};
use super::digest::Digests;
use super::frame::{Frame, emit_header};
use crate::error::Error;
use crate::types::{Itt, Lun, StatSn};

const BEG_RUN: usize = 40;
const RUN_LEN: usize = 44;

/// SNACK Request (RFC 7143 11.16).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snack {
    /// What is wanted, 4 bits; see the constants.
    pub kind: u8,
    /// Copied from the Data-In that a DataACK acknowledges.
    pub lun: Lun,
    /// The task, or [`Itt::NONE`] for status and DataACK.
    pub itt: Itt,
    /// TTT of a DataACK, SNACK Tag of R-Data, else 0xffffffff.
    pub ttt_or_tag: u32,
    /// Next StatSN expected on the connection.
    pub exp_stat_sn: StatSn,
    /// First number that is missing; with DataACK the next one expected.
    pub beg_run: u32,
    /// How many are missing; 0 means all from `beg_run` on.
    pub run_len: u32,
}

impl Snack {
    /// Send these Data-In or R2T PDUs again.
    pub const DATA_R2T: u8 = 0;
    /// Send these responses again.
    pub const STATUS: u8 = 1;
    /// All Data-In before `beg_run` arrived.
    pub const DATA_ACK: u8 = 2;
    /// Send all Data-In again, perhaps cut differently.
    pub const R_DATA: u8 = 3;

    /// Interprets a frame.
    ///
    /// # Errors
    /// None at present; a kind that does not exist is for the target to reject.
    pub fn parse(frame: Frame) -> Result<Self, Error> {
        let bhs = frame.bhs;
        Ok(Self {
            kind: bhs.flags() & 0x0f,
            lun: bhs.lun(),
            itt: bhs.itt(),
            ttt_or_tag: bhs.ttt().0,
            exp_stat_sn: bhs.exp_stat_sn(),
            beg_run: bhs.u32(BEG_RUN),
            run_len: bhs.u32(RUN_LEN),
        })
    }

    fn bhs(&self) -> Bhs {
        let mut bhs = Bhs::new(Opcode::Snack, FINAL | (self.kind & 0x0f));
        bhs.set_lun(self.lun);
        bhs.set_itt(self.itt);
        bhs.put_u32(at::TTT, self.ttt_or_tag);
        bhs.put_u32(at::EXP_STAT_SN, self.exp_stat_sn.0);
        bhs.put_u32(BEG_RUN, self.beg_run);
        bhs.put_u32(RUN_LEN, self.run_len);
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
        /// Two Data-In are missing.
        missing_data: Snack,
        Digests::NONE,
        "10800000 00000000 00000000 00000000 00000010 ffffffff 00000000 00000009
         00000000 00000000 00000004 00000002",
        |bhs| {
            assert_eq!(bhs.opcode(), Some(Opcode::Snack));
            assert_eq!(bhs.flags() & 0x0f, Snack::DATA_R2T);
        },
        Snack {
            kind: Snack::DATA_R2T,
            lun: Lun::default(),
            itt: Itt(0x10),
            ttt_or_tag: 0xffff_ffff,
            exp_stat_sn: StatSn(9),
            beg_run: 4,
            run_len: 2,
        }
    }

    known_pdu! {
        /// All data so far has arrived.
        acknowledgement: Snack,
        Digests::NONE,
        "10820000 00000000 00010000 00000000 ffffffff 000000a6 00000000 00000009
         00000000 00000000 00000005 00000000",
        |bhs| assert!(bhs.itt().is_none()),
        Snack {
            kind: Snack::DATA_ACK,
            lun: Lun([0, 1, 0, 0, 0, 0, 0, 0]),
            itt: Itt::NONE,
            ttt_or_tag: 0xa6,
            exp_stat_sn: StatSn(9),
            beg_run: 5,
            run_len: 0,
        }
    }
}

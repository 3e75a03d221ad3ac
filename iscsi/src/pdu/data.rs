//! SCSI Data-Out and Data-In (RFC 7143 11.7).

use berth_iobuf::{Payload, SendQueue};

use super::bhs::{Bhs, FINAL, Opcode, at};
use super::digest::Digests;
use super::frame::{Frame, emit_data};
use super::scsi::{OVERFLOW, Residual, UNDERFLOW};
use crate::error::Error;
use crate::types::{Itt, Lun, StatSn, TargetSn, Ttt};

const DATA_SN: usize = 36;
const BUFFER_OFFSET: usize = 40;
const RESIDUAL: usize = 44;
const STATUS: usize = 3;
const ACKNOWLEDGE: u8 = 0x40;
const HAS_STATUS: u8 = 0x01;

/// SCSI Data-Out (RFC 7143 11.7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataOut {
    /// Last PDU of the sequence: of the unsolicited data, or of the answer to one R2T.
    pub final_: bool,
    /// The R2T's LUN; else that of the command.
    pub lun: Lun,
    /// The task.
    pub itt: Itt,
    /// The R2T that is answered, or [`Ttt::NONE`] for unsolicited data.
    pub ttt: Ttt,
    /// Next StatSN expected on the connection.
    pub exp_stat_sn: StatSn,
    /// Number of the PDU within its sequence, from 0.
    pub data_sn: u32,
    /// Place of the data within the whole transfer.
    pub buffer_offset_bytes: u32,
    /// The data.
    pub data: Payload,
}

impl DataOut {
    /// Interprets a frame.
    ///
    /// # Errors
    /// [`Error::Malformed`] when the data would end beyond 4 GiB.
    #[inline]
    pub fn parse(frame: Frame) -> Result<Self, Error> {
        let Frame { bhs, data, .. } = frame;
        Ok(Self {
            final_: bhs.flags() & FINAL != 0,
            lun: bhs.lun(),
            itt: bhs.itt(),
            ttt: bhs.ttt(),
            exp_stat_sn: bhs.exp_stat_sn(),
            data_sn: bhs.u32(DATA_SN),
            buffer_offset_bytes: offset("SCSI Data-Out", &bhs, &data)?,
            data,
        })
    }

    fn bhs(&self) -> Bhs {
        let mut bhs = Bhs::new(Opcode::DataOut, if self.final_ { FINAL } else { 0 });
        bhs.set_lun(self.lun);
        bhs.set_itt(self.itt);
        bhs.set_ttt(self.ttt);
        bhs.put_u32(at::EXP_STAT_SN, self.exp_stat_sn.0);
        bhs.put_u32(DATA_SN, self.data_sn);
        bhs.put_u32(BUFFER_OFFSET, self.buffer_offset_bytes);
        bhs
    }

    /// Appends the PDU to `out`, the data by reference.
    pub fn emit(&self, out: &mut SendQueue, digests: Digests) {
        emit_data(out, self.bhs(), &self.data, digests);
    }
}

/// SCSI Data-In (RFC 7143 11.7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataIn {
    /// Last PDU of its sequence.
    pub final_: bool,
    /// A bit: the target asks for a DataACK SNACK (ERL > 0).
    pub acknowledge: bool,
    /// SCSI status, when the S bit is set (phase collapse); then `sn.stat_sn` and `residual` are valid.
    pub status: Option<u8>,
    /// Residual of the transfer; none without `status`.
    pub residual: Residual,
    /// To be copied to a DataACK; valid with `acknowledge`.
    pub lun: Lun,
    /// The task.
    pub itt: Itt,
    /// To be copied to a DataACK; valid with `acknowledge`.
    pub ttt: Ttt,
    /// Sequence numbers; StatSN is 0 without `status`.
    pub sn: TargetSn,
    /// Number of the PDU within the task, from 0.
    pub data_sn: u32,
    /// Place of the data within the whole transfer.
    pub buffer_offset_bytes: u32,
    /// The data.
    pub data: Payload,
}

impl DataIn {
    const NAME: &str = "SCSI Data-In";

    /// Interprets a frame.
    ///
    /// # Errors
    /// [`Error::Malformed`] when there is a status but F=0 (RFC 7143 11.7.3), when the residual is
    /// overflow and underflow at once, or when the data would end beyond 4 GiB.
    #[inline]
    pub fn parse(frame: Frame) -> Result<Self, Error> {
        let Frame { bhs, data, .. } = frame;
        let flags = bhs.flags();
        let final_ = flags & FINAL != 0;
        let mut sn = bhs.target_sn();
        let (status, residual) = if flags & HAS_STATUS != 0 {
            if !final_ {
                return Err(Error::malformed(
                    Self::NAME,
                    "S=1 and F=0; a status comes with the last data",
                ));
            }
            let residual = Residual::from_flags(
                Self::NAME,
                flags & OVERFLOW != 0,
                flags & UNDERFLOW != 0,
                bhs.u32(RESIDUAL),
            )?;
            (Some(bhs.0[STATUS]), residual)
        } else {
            sn.stat_sn = StatSn(0);
            (None, Residual::None)
        };
        Ok(Self {
            final_,
            acknowledge: flags & ACKNOWLEDGE != 0,
            status,
            residual,
            lun: bhs.lun(),
            itt: bhs.itt(),
            ttt: bhs.ttt(),
            sn,
            data_sn: bhs.u32(DATA_SN),
            buffer_offset_bytes: offset(Self::NAME, &bhs, &data)?,
            data,
        })
    }

    fn bhs(&self) -> Bhs {
        let mut flags = if self.final_ { FINAL } else { 0 };
        if self.acknowledge {
            flags |= ACKNOWLEDGE;
        }
        let mut bhs = Bhs::new(Opcode::DataIn, flags);
        bhs.set_lun(self.lun);
        bhs.set_itt(self.itt);
        bhs.set_ttt(self.ttt);
        let mut sn = self.sn;
        if let Some(status) = self.status {
            let (flag, residual) = self.residual.to_flags(OVERFLOW, UNDERFLOW);
            bhs.0[at::FLAGS] |= HAS_STATUS | flag;
            bhs.0[STATUS] = status;
            bhs.put_u32(RESIDUAL, residual);
        } else {
            sn.stat_sn = StatSn(0);
        }
        bhs.set_target_sn(sn);
        bhs.put_u32(DATA_SN, self.data_sn);
        bhs.put_u32(BUFFER_OFFSET, self.buffer_offset_bytes);
        bhs
    }

    /// Appends the PDU to `out`, the data by reference.
    pub fn emit(&self, out: &mut SendQueue, digests: Digests) {
        emit_data(out, self.bhs(), &self.data, digests);
    }
}

/// The buffer offset, when offset and length together fit 32 bits, as every transfer does.
#[inline]
fn offset(what: &'static str, bhs: &Bhs, data: &Payload) -> Result<u32, Error> {
    let offset = bhs.u32(BUFFER_OFFSET);
    if data.len() as u64 + u64::from(offset) > u64::from(u32::MAX) {
        return Err(Error::malformed(
            what,
            format!("{} bytes at {offset} end beyond 4 GiB", data.len()),
        ));
    }
    Ok(offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pdu::testing::{header, known_pdu};
    use crate::types::CmdSn;
    use bytes::Bytes;

    known_pdu! {
        /// Five bytes for an R2T.
        solicited: DataOut,
        Digests::BOTH,
        "05800000 00000005 00000000 00000000 00000010 000000a5 00000000 00000009
         00000000 00000000 00000000 00000000 f9b0dbce 68656c6c 6f000000 b3ed0390",
        |bhs| {
            assert_eq!(bhs.opcode(), Some(Opcode::DataOut));
            assert_eq!(bhs.ttt(), Ttt(0xa5));
            assert_eq!(bhs.data_len_bytes(), 5);
        },
        DataOut {
            final_: true,
            lun: Lun::default(),
            itt: Itt(0x10),
            ttt: Ttt(0xa5),
            exp_stat_sn: StatSn(9),
            data_sn: 0,
            buffer_offset_bytes: 0,
            data: Payload::from(&b"hello"[..]),
        }
    }

    known_pdu! {
        /// A middle part of a read, acknowledgement wanted.
        middle: DataIn,
        Digests::NONE,
        "25400000 00000004 00010000 00000000 00000010 000000a6 00000000 00000008
         00000047 00000002 00002000 00000000 01020304",
        |bhs| assert_eq!(bhs.flags(), ACKNOWLEDGE),
        DataIn {
            final_: false,
            acknowledge: true,
            status: None,
            residual: Residual::None,
            lun: Lun([0, 1, 0, 0, 0, 0, 0, 0]),
            itt: Itt(0x10),
            ttt: Ttt(0xa6),
            sn: TargetSn {
                stat_sn: StatSn(0),
                exp_cmd_sn: CmdSn(8),
                max_cmd_sn: CmdSn(0x47),
            },
            data_sn: 2,
            buffer_offset_bytes: 0x2000,
            data: Payload::from(&[1u8, 2, 3, 4][..]),
        }
    }

    known_pdu! {
        /// The last data with its status and an underflow (phase collapse).
        last: DataIn,
        Digests::NONE,
        "25830000 00000002 00000000 00000000 00000010 ffffffff 00000009 00000008
         00000047 00000003 00002004 00000006 05060000",
        |bhs| {
            assert_eq!(bhs.flags(), FINAL | UNDERFLOW | HAS_STATUS);
            assert_eq!(bhs.u32(RESIDUAL), 6);
        },
        DataIn {
            final_: true,
            acknowledge: false,
            status: Some(0),
            residual: Residual::Underflow(6),
            lun: Lun::default(),
            itt: Itt(0x10),
            ttt: Ttt::NONE,
            sn: TargetSn {
                stat_sn: StatSn(9),
                exp_cmd_sn: CmdSn(8),
                max_cmd_sn: CmdSn(0x47),
            },
            data_sn: 3,
            buffer_offset_bytes: 0x2004,
            data: Payload::from(&[5u8, 6][..]),
        }
    }

    fn frame(opcode: Opcode, flags: u8, offset: u32, len: usize) -> Frame {
        let mut bhs = header(opcode, flags);
        bhs.put_u32(BUFFER_OFFSET, offset);
        Frame {
            bhs,
            ahs: Bytes::new(),
            data: Payload::zeroes(len),
        }
    }

    #[test]
    fn a_status_needs_the_final_bit_and_one_residual() {
        // RFC 7143 11.7.3
        for (flags, ok) in [
            (HAS_STATUS, false),
            (FINAL | HAS_STATUS, true),
            (FINAL | HAS_STATUS | OVERFLOW, true),
            (FINAL | HAS_STATUS | OVERFLOW | UNDERFLOW, false),
            // Without a status they mean nothing.
            (FINAL | OVERFLOW | UNDERFLOW, true),
        ] {
            let parsed = DataIn::parse(frame(Opcode::DataIn, flags, 0, 0));
            assert_eq!(parsed.is_ok(), ok, "{flags:#x}");
        }
    }

    #[test]
    fn offsets_that_overflow_are_refused() {
        for (offset, len, ok) in [
            (u32::MAX, 0, true),
            (u32::MAX, 1, false),
            (u32::MAX - 512, 512, true),
            (u32::MAX - 511, 512, false),
        ] {
            let data_in = DataIn::parse(frame(Opcode::DataIn, 0, offset, len));
            assert_eq!(data_in.is_ok(), ok);
            let data_out = DataOut::parse(frame(Opcode::DataOut, 0, offset, len));
            assert_eq!(data_out.is_ok(), ok);
        }
    }
}

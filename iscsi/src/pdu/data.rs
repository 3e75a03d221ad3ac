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

//! SCSI Command and SCSI Response (RFC 7143 11.3, 11.4).

use berth_iobuf::{Payload, SendQueue};
use bytes::Bytes;

use super::bhs::{AHS_BIDI_READ_LEN, AHS_EXTENDED_CDB, Bhs, FINAL, Opcode, put_ahs, split_ahs};
use super::digest::Digests;
use super::frame::{Frame, emit, emit_data, emit_header};
use crate::error::Error;
use crate::types::{CmdSn, Itt, Lun, StatSn, TargetSn};

const READ: u8 = 0x40;
const WRITE: u8 = 0x20;
/// Most bytes of a CDB after its first 16: variable-length CDBs end at 260 (SPC-4 4.2.3).
const EXTENDED_CDB_MAX_BYTES: usize = 244;
const EXPECTED_LEN: usize = 20;
const CDB: usize = 32;

/// Task attribute (RFC 7143 11.3.1, SAM-5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TaskAttribute {
    /// None given; the target treats it as simple.
    Untagged = 0,
    /// The target may reorder it freely.
    Simple = 1,
    /// After all earlier and before all later tasks.
    Ordered = 2,
    /// Before all other tasks.
    HeadOfQueue = 3,
    /// For auto contingent allegiance.
    Aca = 4,
}

/// SCSI Command (RFC 7143 11.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScsiCommand {
    /// Delivered at once, without using up `cmd_sn`.
    pub immediate: bool,
    /// No unsolicited Data-Out follows.
    pub final_: bool,
    /// The command gets data.
    pub read: bool,
    /// The command brings data.
    pub write: bool,
    /// Order relative to other tasks.
    pub attribute: TaskAttribute,
    /// The logical unit.
    pub lun: Lun,
    /// Names the task.
    pub itt: Itt,
    /// Expected Data Transfer Length in bytes; of the write, when there are both directions.
    pub expected_len_bytes: u32,
    /// CmdSN of the command.
    pub cmd_sn: CmdSn,
    /// Next StatSN expected on the connection.
    pub exp_stat_sn: StatSn,
    /// First 16 bytes of the CDB.
    pub cdb: [u8; 16],
    /// Rest of a CDB longer than 16 bytes (AHS type 1).
    pub extended_cdb: Bytes,
    /// Bidirectional read length in bytes (AHS type 2).
    pub bidi_read_len_bytes: Option<u32>,
    /// Immediate data.
    pub data: Payload,
}

impl ScsiCommand {
    const NAME: &str = "SCSI Command";

    /// Interprets a frame; unknown additional headers are skipped.
    ///
    /// # Errors
    /// [`Error::Malformed`] when the flags contradict each other or the lengths (RFC 7143 11.3.1,
    /// 11.3.4), the task attribute is not one, or an additional header does not fit.
    #[inline]
    pub fn parse(frame: Frame) -> Result<Self, Error> {
        let Frame { bhs, ahs, data } = frame;
        let flags = bhs.flags();
        let (final_, read, write) = (flags & FINAL != 0, flags & READ != 0, flags & WRITE != 0);
        let expected_len_bytes = bhs.u32(EXPECTED_LEN);
        if !final_ && !write {
            return Err(Error::malformed(
                Self::NAME,
                "F=0 announces unsolicited data, but W=0",
            ));
        }
        if !read && !write && expected_len_bytes != 0 {
            return Err(Error::malformed(
                Self::NAME,
                format!("{expected_len_bytes} bytes expected with R=0 and W=0"),
            ));
        }
        if !data.is_empty() && (!write || data.len() > expected_len_bytes as usize) {
            return Err(Error::malformed(
                Self::NAME,
                format!(
                    "{} bytes of immediate data, W={}, {expected_len_bytes} bytes expected",
                    data.len(),
                    u8::from(write)
                ),
            ));
        }
        let attribute = match flags & 0x07 {
            0 => TaskAttribute::Untagged,
            1 => TaskAttribute::Simple,
            2 => TaskAttribute::Ordered,
            3 => TaskAttribute::HeadOfQueue,
            4 => TaskAttribute::Aca,
            other => {
                return Err(Error::malformed(
                    Self::NAME,
                    format!("task attribute {other}; 0 to 4 are defined"),
                ));
            }
        };
        let mut extended_cdb = Bytes::new();
        let mut bidi_read_len_bytes = None;
        for segment in split_ahs(ahs) {
            let segment = segment?;
            match segment.code {
                AHS_EXTENDED_CDB if segment.payload.len() > EXTENDED_CDB_MAX_BYTES => {
                    return Err(Error::malformed(
                        Self::NAME,
                        format!("CDB of {} bytes; at most 260", 16 + segment.payload.len()),
                    ));
                }
                AHS_EXTENDED_CDB if extended_cdb.is_empty() => extended_cdb = segment.payload,
                AHS_BIDI_READ_LEN if bidi_read_len_bytes.is_none() => {
                    let len: [u8; 4] = segment.payload[..].try_into().map_err(|_| {
                        Error::malformed(
                            Self::NAME,
                            format!(
                                "bidirectional read length of {} bytes; it has 4",
                                segment.payload.len()
                            ),
                        )
                    })?;
                    bidi_read_len_bytes = Some(u32::from_be_bytes(len));
                }
                AHS_EXTENDED_CDB | AHS_BIDI_READ_LEN => {
                    return Err(Error::malformed(
                        Self::NAME,
                        format!("two additional headers of type {}", segment.code),
                    ));
                }
                _ => {}
            }
        }
        Ok(Self {
            immediate: bhs.immediate(),
            final_,
            read,
            write,
            attribute,
            lun: bhs.lun(),
            itt: bhs.itt(),
            expected_len_bytes,
            cmd_sn: bhs.cmd_sn(),
            exp_stat_sn: bhs.exp_stat_sn(),
            cdb: *bhs.0[CDB..]
                .first_chunk()
                .expect("the CDB is the header's tail"),
            extended_cdb,
            bidi_read_len_bytes,
            data,
        })
    }

    fn bhs(&self) -> Bhs {
        let mut flags = self.attribute as u8;
        for (set, bit) in [(self.final_, FINAL), (self.read, READ), (self.write, WRITE)] {
            if set {
                flags |= bit;
            }
        }
        let mut bhs = Bhs::new(Opcode::ScsiCommand, flags);
        bhs.set_immediate(self.immediate);
        bhs.set_lun(self.lun);
        bhs.set_itt(self.itt);
        bhs.put_u32(EXPECTED_LEN, self.expected_len_bytes);
        bhs.set_request_sn(self.cmd_sn, self.exp_stat_sn);
        bhs.put(CDB, &self.cdb);
        bhs
    }

    /// Appends the PDU to `out`; a command without data and long CDB is one write of its header.
    ///
    /// # Panics
    /// If the CDB is longer than 260 bytes or the data than 16 MiB - 1.
    pub fn emit(&self, out: &mut SendQueue, digests: Digests) {
        if !self.extended_cdb.is_empty() || self.bidi_read_len_bytes.is_some() {
            self.emit_long(out, digests);
        } else if self.data.is_empty() {
            emit_header(out, &self.bhs(), digests);
        } else {
            emit_data(out, self.bhs(), &self.data, digests);
        }
    }

    #[cold]
    fn emit_long(&self, out: &mut SendQueue, digests: Digests) {
        let mut ahs = Vec::new();
        if !self.extended_cdb.is_empty() {
            assert!(
                self.extended_cdb.len() <= EXTENDED_CDB_MAX_BYTES,
                "CDB beyond 260 bytes"
            );
            put_ahs(&mut ahs, AHS_EXTENDED_CDB, &self.extended_cdb);
        }
        if let Some(len) = self.bidi_read_len_bytes {
            put_ahs(&mut ahs, AHS_BIDI_READ_LEN, &len.to_be_bytes());
        }
        emit(out, self.bhs(), &ahs, &self.data, digests);
    }
}

/// Residual count of a transfer (RFC 7143 11.4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Residual {
    /// As many bytes as expected were moved.
    #[default]
    None,
    /// Fewer bytes than expected were moved, by this many.
    Underflow(u32),
    /// The command wanted to move this many more.
    Overflow(u32),
}

impl Residual {
    /// From the two flag bits and the count.
    #[inline]
    pub(crate) fn from_flags(
        what: &'static str,
        overflow: bool,
        underflow: bool,
        count: u32,
    ) -> Result<Self, Error> {
        match (overflow, underflow) {
            (false, false) => Ok(Self::None),
            (false, true) => Ok(Self::Underflow(count)),
            (true, false) => Ok(Self::Overflow(count)),
            (true, true) => Err(Error::malformed(
                what,
                "residual overflow and underflow at the same time",
            )),
        }
    }

    /// The bit to set and the count.
    #[inline]
    pub(crate) const fn to_flags(self, overflow: u8, underflow: u8) -> (u8, u32) {
        match self {
            Self::None => (0, 0),
            Self::Underflow(count) => (underflow, count),
            Self::Overflow(count) => (overflow, count),
        }
    }
}

/// Bits of byte 1 of responses and Data-In: residual of the write, or of the only direction.
pub(crate) const OVERFLOW: u8 = 0x04;
pub(crate) const UNDERFLOW: u8 = 0x02;
const BIDI_OVERFLOW: u8 = 0x10;
const BIDI_UNDERFLOW: u8 = 0x08;

const RESPONSE: usize = 2;
const STATUS: usize = 3;
const STATUS_QUALIFIER: usize = 8;
const SNACK_TAG: usize = 20;
const EXP_DATA_SN: usize = 36;
const BIDI_RESIDUAL: usize = 40;
const RESIDUAL: usize = 44;

/// SCSI Response (RFC 7143 11.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScsiResponse {
    /// 0 completed at target, 1 target failure, 0x80..=0xff vendor.
    pub response: u8,
    /// SCSI status; valid only when `response` is 0.
    pub status: u8,
    /// Status qualifier (RFC 7144, protocol level 2); 0 before.
    pub status_qualifier: u16,
    /// The task that ends.
    pub itt: Itt,
    /// Tag of the R-Data SNACK that is answered, or 0.
    pub snack_tag: u32,
    /// Sequence numbers.
    pub sn: TargetSn,
    /// Number of Data-In PDUs (and R2Ts, if bidirectional) that the target sent.
    pub exp_data_sn: u32,
    /// Residual of the transfer; none when `response` is not 0.
    pub residual: Residual,
    /// Residual of the read of a bidirectional command.
    pub bidi_read_residual: Residual,
    /// SenseLength, sense and response data, as on the wire (use [`ScsiResponse::sense`]).
    pub data: Payload,
}

impl ScsiResponse {
    const NAME: &str = "SCSI Response";

    /// Interprets a frame.
    ///
    /// CHECK CONDITION without sense is taken, although RFC 7143 11.4.7 forbids it: targets send it,
    /// and the initiator can ask for the sense.
    ///
    /// # Errors
    /// [`Error::Malformed`] when a residual is overflow and underflow at once.
    #[inline]
    pub fn parse(frame: Frame) -> Result<Self, Error> {
        let Frame { bhs, data, .. } = frame;
        let response = bhs.0[RESPONSE];
        // With another response the flags mean nothing (RFC 7143 11.4.3).
        let flags = if response == 0 { bhs.flags() } else { 0 };
        let residual = |overflow, underflow, at| {
            Residual::from_flags(
                Self::NAME,
                flags & overflow != 0,
                flags & underflow != 0,
                bhs.u32(at),
            )
        };
        Ok(Self {
            response,
            status: bhs.0[STATUS],
            status_qualifier: bhs.u16(STATUS_QUALIFIER),
            itt: bhs.itt(),
            snack_tag: bhs.u32(SNACK_TAG),
            sn: bhs.target_sn(),
            exp_data_sn: bhs.u32(EXP_DATA_SN),
            residual: residual(OVERFLOW, UNDERFLOW, RESIDUAL)?,
            bidi_read_residual: residual(BIDI_OVERFLOW, BIDI_UNDERFLOW, BIDI_RESIDUAL)?,
            data,
        })
    }

    fn bhs(&self) -> Bhs {
        let (flag, residual) = self.residual.to_flags(OVERFLOW, UNDERFLOW);
        let (bidi_flag, bidi_residual) = self
            .bidi_read_residual
            .to_flags(BIDI_OVERFLOW, BIDI_UNDERFLOW);
        let mut bhs = Bhs::new(Opcode::ScsiResponse, FINAL | flag | bidi_flag);
        bhs.0[RESPONSE] = self.response;
        bhs.0[STATUS] = self.status;
        bhs.put_u16(STATUS_QUALIFIER, self.status_qualifier);
        bhs.set_itt(self.itt);
        bhs.put_u32(SNACK_TAG, self.snack_tag);
        bhs.set_target_sn(self.sn);
        bhs.put_u32(EXP_DATA_SN, self.exp_data_sn);
        bhs.put_u32(BIDI_RESIDUAL, bidi_residual);
        bhs.put_u32(RESIDUAL, residual);
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
    pub fn response_data(&self) -> Payload {
        split_sense(&self.data).1
    }
}

/// Cuts a data segment of SenseLength, sense and more (RFC 7143 11.4.7) without trusting the length.
pub(crate) fn split_sense(data: &Payload) -> (Bytes, Payload) {
    let Some(left) = data.len().checked_sub(2) else {
        return (Bytes::new(), Payload::new());
    };
    let mut len = [0; 2];
    data.slice(0, 2).copy_to(&mut len);
    let len = usize::from(u16::from_be_bytes(len)).min(left);
    (
        data.slice(2, len).to_bytes(),
        data.slice(2 + len, left - len),
    )
}

/// The data segment of a SCSI Response or Asynchronous Message that carries `sense`; longer sense than
/// the 16-bit length can say is cut off.
#[must_use]
pub fn sense_data(sense: &[u8]) -> Payload {
    let sense = &sense[..sense.len().min(usize::from(u16::MAX))];
    let len = u16::try_from(sense.len()).expect("cut to 16 bits");
    let mut data = Vec::with_capacity(2 + sense.len());
    data.extend(len.to_be_bytes());
    data.extend(sense);
    Payload::from(data)
}

#[cfg(test)]
mod tests;

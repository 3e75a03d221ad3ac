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
mod tests {
    use super::*;
    use crate::pdu::testing::{header, known_pdu};
    use proptest::prelude::*;

    known_pdu! {
        /// RFC 7143 A.4: READ(10), and its digest.
        read_10: ScsiCommand,
        Digests { header: true, data: false },
        "01c00000 00000000 00000000 00000000 14000000 00000400 00000014 00000018
         28000000 00000000 02000000 00000000 563a96d9",
        |bhs| {
            assert_eq!(bhs.opcode(), Some(Opcode::ScsiCommand));
            assert!(!bhs.immediate());
            assert_eq!(bhs.flags(), FINAL | READ);
            assert_eq!(bhs.itt(), Itt(0x1400_0000));
            assert_eq!(bhs.u32(EXPECTED_LEN), 1024);
            assert_eq!(bhs.0[CDB], 0x28);
        },
        ScsiCommand {
            immediate: false,
            final_: true,
            read: true,
            write: false,
            attribute: TaskAttribute::Untagged,
            lun: Lun::default(),
            itt: Itt(0x1400_0000),
            expected_len_bytes: 1024,
            cmd_sn: CmdSn(0x14),
            exp_stat_sn: StatSn(0x18),
            cdb: [0x28, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0],
            extended_cdb: Bytes::new(),
            bidi_read_len_bytes: None,
            data: Payload::new(),
        }
    }

    known_pdu! {
        /// A WRITE(10) that waits for R2T.
        write_10: ScsiCommand,
        Digests { header: true, data: true },
        "01a10000 00000000 00000000 00000000 00000010 00000200 00000007 00000009
         2a000000 00080000 01000000 00000000 87de5fa9",
        |bhs| {
            assert_eq!(bhs.flags(), FINAL | WRITE | TaskAttribute::Simple as u8);
            assert_eq!(bhs.cmd_sn(), CmdSn(7));
            assert_eq!(bhs.exp_stat_sn(), StatSn(9));
        },
        ScsiCommand {
            immediate: false,
            final_: true,
            read: false,
            write: true,
            attribute: TaskAttribute::Simple,
            lun: Lun::default(),
            itt: Itt(0x10),
            expected_len_bytes: 512,
            cmd_sn: CmdSn(7),
            exp_stat_sn: StatSn(9),
            cdb: [0x2a, 0, 0, 0, 0, 8, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
            extended_cdb: Bytes::new(),
            bidi_read_len_bytes: None,
            data: Payload::new(),
        }
    }

    known_pdu! {
        /// RFC 7143 11.2.2: a bidirectional command with a CDB of 18 bytes and immediate data.
        long_bidirectional: ScsiCommand,
        Digests::NONE,
        "41e20000 04000006 00010000 00000000 00000011 00000006 00000008 0000000a
         7f000000 0000000a 00000000 00000000
         00030100 aabb0000 00050200 00000400
         68656c6c 6f210000",
        |bhs| {
            assert!(bhs.immediate());
            assert_eq!(bhs.ahs_len_bytes(), 16);
            assert_eq!(bhs.data_len_bytes(), 6);
            assert_eq!(bhs.lun().number(), Some(1));
        },
        ScsiCommand {
            immediate: true,
            final_: true,
            read: true,
            write: true,
            attribute: TaskAttribute::Ordered,
            lun: Lun([0, 1, 0, 0, 0, 0, 0, 0]),
            itt: Itt(0x11),
            expected_len_bytes: 6,
            cmd_sn: CmdSn(8),
            exp_stat_sn: StatSn(10),
            cdb: [0x7f, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0],
            extended_cdb: Bytes::from_static(&[0xaa, 0xbb]),
            bidi_read_len_bytes: Some(1024),
            data: Payload::from(&b"hello!"[..]),
        }
    }

    known_pdu! {
        /// CHECK CONDITION, 06/2A/09, underflow 512.
        check_condition: ScsiResponse,
        Digests::BOTH,
        "21820002 00000014 00000000 00000000 00000010 00000000 00000009 00000008
         00000047 00000000 00000000 00000200 f356e6ec
         00127000 06000000 000a0000 00002a09 00000000 2dac5dd0",
        |bhs| {
            assert_eq!(bhs.flags(), FINAL | UNDERFLOW);
            assert_eq!(bhs.0[RESPONSE], 0);
            assert_eq!(bhs.0[STATUS], 2);
            assert_eq!(bhs.target_sn().max_cmd_sn, CmdSn(0x47));
            assert_eq!(bhs.u32(RESIDUAL), 512);
        },
        ScsiResponse {
            response: 0,
            status: 2,
            status_qualifier: 0,
            itt: Itt(0x10),
            snack_tag: 0,
            sn: TargetSn {
                stat_sn: StatSn(9),
                exp_cmd_sn: CmdSn(8),
                max_cmd_sn: CmdSn(0x47),
            },
            exp_data_sn: 0,
            residual: Residual::Underflow(512),
            bidi_read_residual: Residual::None,
            data: sense_data(&[0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x2a, 9, 0, 0, 0, 0]),
        }
    }

    known_pdu! {
        /// All fields, no data: both residuals, qualifier, SNACK tag.
        bidirectional_response: ScsiResponse,
        Digests::NONE,
        "21940008 00000000 12340000 00000000 00000010 00000077 00000009 00000008
         00000047 00000003 00000100 00000200",
        |bhs| {
            assert_eq!(bhs.flags(), FINAL | BIDI_OVERFLOW | OVERFLOW);
            assert_eq!(bhs.u32(SNACK_TAG), 0x77);
        },
        ScsiResponse {
            response: 0,
            status: 8,
            status_qualifier: 0x1234,
            itt: Itt(0x10),
            snack_tag: 0x77,
            sn: TargetSn {
                stat_sn: StatSn(9),
                exp_cmd_sn: CmdSn(8),
                max_cmd_sn: CmdSn(0x47),
            },
            exp_data_sn: 3,
            residual: Residual::Overflow(512),
            bidi_read_residual: Residual::Overflow(256),
            data: Payload::new(),
        }
    }

    fn command(
        flags: u8,
        expected_len: u32,
        ahs: &[u8],
        data: usize,
    ) -> Result<ScsiCommand, Error> {
        let mut bhs = Bhs::new(Opcode::ScsiCommand, flags);
        bhs.put_u32(EXPECTED_LEN, expected_len);
        ScsiCommand::parse(Frame {
            bhs,
            ahs: Bytes::copy_from_slice(ahs),
            data: Payload::zeroes(data),
        })
    }

    #[test]
    fn contradictions_in_commands_are_refused() {
        // RFC 7143 11.3.1: F or W; a length only with R or W. 11.3.4: immediate data fits the length.
        assert!(command(FINAL, 0, &[], 0).is_ok());
        assert!(command(WRITE, 8, &[], 4).is_ok());
        assert!(command(READ, 8, &[], 0).is_err());
        assert!(command(FINAL, 8, &[], 0).is_err());
        assert!(command(FINAL | READ, 8, &[], 4).is_err());
        assert!(command(FINAL | WRITE, 8, &[], 9).is_err());
        for attribute in 0..=7 {
            assert_eq!(
                command(FINAL | attribute, 0, &[], 0).is_ok(),
                attribute <= 4
            );
        }
    }

    #[test]
    fn additional_headers_are_skipped_or_refused() {
        // RFC 7143 11.2.2
        let both = FINAL | READ | WRITE;
        assert!(command(both, 8, &[0, 2, 0x3f, 0, 7, 0, 0, 0], 0).is_ok());
        let bidi = [0, 5, 2, 0, 0, 0, 0, 9];
        assert_eq!(
            command(both, 8, &bidi, 0).unwrap().bidi_read_len_bytes,
            Some(9)
        );
        assert!(command(both, 8, &bidi.repeat(2), 0).is_err());
        assert!(command(both, 8, &[0, 4, 2, 0, 0, 0, 0, 9], 0).is_err());
        assert!(command(both, 8, &[0, 6, 2, 0, 0, 0, 0, 9], 0).is_err());
        let mut long = vec![0, 246, 1, 0];
        long.resize(252, 0);
        assert!(command(both, 8, &long, 0).is_err());
    }

    #[test]
    fn a_response_that_was_not_delivered_has_no_residual() {
        // RFC 7143 11.4.3
        let mut bhs = header(Opcode::ScsiResponse, FINAL | OVERFLOW | UNDERFLOW);
        let parse = |bhs| {
            ScsiResponse::parse(Frame {
                bhs,
                ahs: Bytes::new(),
                data: Payload::new(),
            })
        };
        assert!(parse(bhs).is_err());
        bhs.0[RESPONSE] = 1;
        assert_eq!(parse(bhs).unwrap().residual, Residual::None);
        assert!(parse(header(Opcode::ScsiResponse, BIDI_OVERFLOW | BIDI_UNDERFLOW)).is_err());
    }

    #[test]
    fn sense_survives_lying_lengths() {
        // RFC 7143 11.4.7; CHECK CONDITION without data is a format error there, and common.
        let mut response = ScsiResponse::parse(Frame {
            bhs: header(Opcode::ScsiResponse, FINAL),
            ahs: Bytes::new(),
            data: Payload::new(),
        })
        .unwrap();
        assert!(response.sense().is_empty());
        for (data, sense, rest) in [
            (&[0u8][..], &[][..], &[][..]),
            (&[0, 0], &[], &[]),
            (&[0, 9, 0x70, 1], &[0x70, 1], &[]),
            (&[0xff, 0xff, 0x70], &[0x70], &[]),
            (&[0, 1, 0x70, 5, 6], &[0x70], &[5, 6]),
            (&[0, 0, 5], &[], &[5]),
        ] {
            response.data = Payload::from(data.to_vec());
            assert_eq!(response.sense(), sense);
            assert_eq!(response.response_data().to_bytes(), rest);
        }
    }

    proptest! {
        #[test]
        fn any_sense_segment_comes_apart(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            let (sense, rest) = split_sense(&Payload::from(data.clone()));
            prop_assert_eq!(sense.len() + rest.len(), data.len().saturating_sub(2));
            let built = sense_data(&sense);
            prop_assert_eq!(split_sense(&built).0, sense);
        }
    }
}

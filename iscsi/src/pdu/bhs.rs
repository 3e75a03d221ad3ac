//! The 48-byte basic header segment, its named offsets, and additional header segments (RFC 7143 11.2).

use std::fmt;

use bytes::Bytes;

use crate::error::Error;
use crate::types::{CmdSn, Itt, Lun, StatSn, TargetSn, Ttt};

/// Length of the basic header segment in bytes.
pub const BHS_LEN: usize = 48;
/// Most bytes that additional header segments can have: the length field counts 255 words.
pub const AHS_LEN_MAX_BYTES: usize = 1020;
/// Most bytes that a data segment can have: the length field has 24 bits.
pub const DATA_LEN_MAX_BYTES: usize = 0xff_ffff;

/// Bit 7 of byte 1: final (F) or transit (T).
pub(crate) const FINAL: u8 = 0x80;
/// Bit 6 of byte 1 in login and text PDUs: the text goes on in the next PDU (C).
pub(crate) const CONTINUE: u8 = 0x40;
const IMMEDIATE: u8 = 0x40;
const OPCODE_MASK: u8 = 0x3f;

/// Where fields are in the header; those that several PDUs share.
pub(crate) mod at {
    pub(crate) const OPCODE: usize = 0;
    pub(crate) const FLAGS: usize = 1;
    /// One byte, followed by the 24-bit length of the data.
    pub(crate) const AHS_LEN: usize = 4;
    pub(crate) const LUN: usize = 8;
    pub(crate) const ITT: usize = 16;
    pub(crate) const TTT: usize = 20;
    pub(crate) const CMD_SN: usize = 24;
    pub(crate) const STAT_SN: usize = 24;
    pub(crate) const EXP_STAT_SN: usize = 28;
    pub(crate) const EXP_CMD_SN: usize = 28;
    pub(crate) const MAX_CMD_SN: usize = 32;
}

macro_rules! opcodes {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        /// What a PDU is (RFC 7143 11.2.1.2).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Opcode {
            $($(#[$doc])* $name = $value,)*
        }

        impl Opcode {
            /// All opcodes, in the order of their numbers.
            pub const ALL: [Self; 18] = [$(Self::$name),*];

            /// The opcode of the low six bits of `byte`; `None` for those that are vendor-specific or
            /// not assigned.
            #[must_use]
            pub const fn from_byte(byte: u8) -> Option<Self> {
                match byte & OPCODE_MASK {
                    $($value => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// The name in the RFC.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

opcodes! {
    /// Ping, or answer to a ping, of the initiator.
    NopOut = 0x00, "NOP-Out";
    /// A SCSI command.
    ScsiCommand = 0x01, "SCSI Command";
    /// Abort, reset and the like.
    TaskManagementRequest = 0x02, "Task Management Function Request";
    /// A step of the login.
    LoginRequest = 0x03, "Login Request";
    /// Text keys in full feature phase.
    TextRequest = 0x04, "Text Request";
    /// Data of a write.
    DataOut = 0x05, "SCSI Data-Out";
    /// Wish to end a connection or session.
    LogoutRequest = 0x06, "Logout Request";
    /// Wish to have something again.
    Snack = 0x10, "SNACK Request";
    /// Ping, or answer to a ping, of the target.
    NopIn = 0x20, "NOP-In";
    /// End of a SCSI command.
    ScsiResponse = 0x21, "SCSI Response";
    /// End of a task management function.
    TaskManagementResponse = 0x22, "Task Management Function Response";
    /// Answer to a step of the login.
    LoginResponse = 0x23, "Login Response";
    /// Answer to text keys.
    TextResponse = 0x24, "Text Response";
    /// Data of a read, perhaps with the status.
    DataIn = 0x25, "SCSI Data-In";
    /// The connection or session may end now.
    LogoutResponse = 0x26, "Logout Response";
    /// Wish for data of a write.
    R2t = 0x31, "Ready To Transfer";
    /// News of the target.
    AsyncMessage = 0x32, "Asynchronous Message";
    /// A PDU was refused.
    Reject = 0x3f, "Reject";
}

/// `len` rounded up to the next multiple of four.
pub(crate) const fn padded(len: usize) -> usize {
    (len + 3) & !3
}

/// A basic header segment as on the wire.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Bhs(pub [u8; BHS_LEN]);

impl Bhs {
    /// A header of zeroes but for opcode and byte 1.
    #[inline]
    pub(crate) const fn new(opcode: Opcode, flags: u8) -> Self {
        let mut bytes = [0; BHS_LEN];
        bytes[at::OPCODE] = opcode as u8;
        bytes[at::FLAGS] = flags;
        Self(bytes)
    }

    /// The opcode, low six bits of byte 0, whether assigned or not.
    #[must_use]
    pub const fn opcode_byte(&self) -> u8 {
        self.0[at::OPCODE] & OPCODE_MASK
    }

    /// The opcode; `None` when it is not one of RFC 7143.
    #[must_use]
    pub const fn opcode(&self) -> Option<Opcode> {
        Opcode::from_byte(self.0[at::OPCODE])
    }

    /// The I bit: the command is for immediate delivery and does not use up a CmdSN.
    #[must_use]
    pub const fn immediate(&self) -> bool {
        self.0[at::OPCODE] & IMMEDIATE != 0
    }

    /// Byte 1: the final bit and what the opcode makes of the rest.
    #[must_use]
    pub const fn flags(&self) -> u8 {
        self.0[at::FLAGS]
    }

    /// Length of all additional header segments in bytes, a multiple of 4, at most 1020.
    #[must_use]
    pub const fn ahs_len_bytes(&self) -> usize {
        self.0[at::AHS_LEN] as usize * 4
    }

    /// Length of the data segment in bytes, without padding and digest.
    #[must_use]
    pub const fn data_len_bytes(&self) -> usize {
        let [_, a, b, c] = self.u32(at::AHS_LEN).to_be_bytes();
        u32::from_be_bytes([0, a, b, c]) as usize
    }

    /// Bytes 8 to 15, which most PDUs use for the LUN.
    #[must_use]
    pub fn lun(&self) -> Lun {
        Lun(*self.0[at::LUN..]
            .first_chunk()
            .expect("the header is longer"))
    }

    /// The initiator task tag.
    #[must_use]
    pub const fn itt(&self) -> Itt {
        Itt(self.u32(at::ITT))
    }

    /// Bytes 20 to 23, which several PDUs use for the target transfer tag.
    #[must_use]
    pub const fn ttt(&self) -> Ttt {
        Ttt(self.u32(at::TTT))
    }

    #[inline]
    pub(crate) const fn u16(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.0[at], self.0[at + 1]])
    }

    #[inline]
    pub(crate) const fn u32(&self, at: usize) -> u32 {
        u32::from_be_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    #[inline]
    pub(crate) const fn cmd_sn(&self) -> CmdSn {
        CmdSn(self.u32(at::CMD_SN))
    }

    #[inline]
    pub(crate) const fn exp_stat_sn(&self) -> StatSn {
        StatSn(self.u32(at::EXP_STAT_SN))
    }

    #[inline]
    pub(crate) const fn target_sn(&self) -> TargetSn {
        TargetSn {
            stat_sn: StatSn(self.u32(at::STAT_SN)),
            exp_cmd_sn: CmdSn(self.u32(at::EXP_CMD_SN)),
            max_cmd_sn: CmdSn(self.u32(at::MAX_CMD_SN)),
        }
    }

    #[inline]
    pub(crate) fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    #[inline]
    pub(crate) fn put_u16(&mut self, at: usize, value: u16) {
        self.put(at, &value.to_be_bytes());
    }

    #[inline]
    pub(crate) fn put_u32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_be_bytes());
    }

    #[inline]
    pub(crate) const fn set_immediate(&mut self, immediate: bool) {
        if immediate {
            self.0[at::OPCODE] |= IMMEDIATE;
        }
    }

    #[inline]
    pub(crate) fn set_lun(&mut self, lun: Lun) {
        self.put(at::LUN, &lun.0);
    }

    #[inline]
    pub(crate) fn set_itt(&mut self, itt: Itt) {
        self.put_u32(at::ITT, itt.0);
    }

    #[inline]
    pub(crate) fn set_ttt(&mut self, ttt: Ttt) {
        self.put_u32(at::TTT, ttt.0);
    }

    #[inline]
    pub(crate) fn set_request_sn(&mut self, cmd_sn: CmdSn, exp_stat_sn: StatSn) {
        self.put_u32(at::CMD_SN, cmd_sn.0);
        self.put_u32(at::EXP_STAT_SN, exp_stat_sn.0);
    }

    #[inline]
    pub(crate) fn set_target_sn(&mut self, sn: TargetSn) {
        self.put_u32(at::STAT_SN, sn.stat_sn.0);
        self.put_u32(at::EXP_CMD_SN, sn.exp_cmd_sn.0);
        self.put_u32(at::MAX_CMD_SN, sn.max_cmd_sn.0);
    }

    /// Sets both length fields.
    ///
    /// # Panics
    /// If a length does not fit its field: whoever builds PDUs keeps to negotiated limits far below.
    #[inline]
    pub(crate) fn set_lengths(&mut self, ahs_len: usize, data_len: usize) {
        assert!(
            ahs_len <= AHS_LEN_MAX_BYTES && ahs_len.is_multiple_of(4),
            "{ahs_len} bytes of additional headers"
        );
        assert!(data_len <= DATA_LEN_MAX_BYTES, "{data_len} bytes of data");
        self.put_u32(at::AHS_LEN, ((ahs_len as u32 / 4) << 24) | data_len as u32);
    }
}

impl fmt::Debug for Bhs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bhs(")?;
        for (i, byte) in self.0.iter().enumerate() {
            let gap = if i > 0 && i % 4 == 0 { " " } else { "" };
            write!(f, "{gap}{byte:02x}")?;
        }
        f.write_str(")")
    }
}

/// Type code of an extended CDB (RFC 7143 11.2.2.3).
pub(crate) const AHS_EXTENDED_CDB: u8 = 1;
/// Type code of a bidirectional read length (RFC 7143 11.2.2.4).
pub(crate) const AHS_BIDI_READ_LEN: u8 = 2;

/// One additional header segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ahs {
    /// Low six bits of the type byte.
    pub(crate) code: u8,
    /// What follows the type-specific byte, without padding.
    pub(crate) payload: Bytes,
}

/// Cuts additional header segments apart (RFC 7143 11.2.2).
///
/// AHSLength counts what follows the type byte, so the type-specific byte counts and padding does not.
pub(crate) fn split_ahs(mut all: Bytes) -> impl Iterator<Item = Result<Ahs, Error>> {
    std::iter::from_fn(move || {
        let [high, low, code, _] = *all.first_chunk::<4>()?;
        let len = usize::from(u16::from_be_bytes([high, low]));
        let whole = padded(3 + len);
        if len == 0 || whole > all.len() {
            let problem = format!("AHSLength {len}, expected 1 to {} here", all.len() - 3);
            all.clear();
            return Some(Err(Error::malformed("additional header segment", problem)));
        }
        let segment = all.split_to(whole);
        Some(Ok(Ahs {
            code: code & 0x3f,
            payload: segment.slice(4..3 + len),
        }))
    })
}

/// Appends an additional header segment with padding.
pub(crate) fn put_ahs(out: &mut Vec<u8>, code: u8, payload: &[u8]) {
    let len = u16::try_from(payload.len() + 1).expect("set_lengths allows 1020 bytes");
    out.extend(len.to_be_bytes());
    out.extend([code, 0]);
    out.extend(payload);
    out.resize(padded(out.len()), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn opcodes_are_those_of_the_rfc() {
        // RFC 7143 11.2.1.2
        let numbers: Vec<u8> = Opcode::ALL.iter().map(|opcode| *opcode as u8).collect();
        assert_eq!(
            numbers,
            [
                0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x10, 0x20, 0x21, 0x22, 0x23, 0x24, 0x25,
                0x26, 0x31, 0x32, 0x3f
            ]
        );
        for byte in 0..=255u8 {
            let known = numbers.contains(&(byte & 0x3f));
            assert_eq!(
                Opcode::from_byte(byte).map(|opcode| opcode as u8),
                known.then_some(byte & 0x3f)
            );
        }
    }

    #[test]
    fn lengths_share_four_bytes() {
        // RFC 7143 11.2.1.5, 11.2.1.6
        let mut bhs = Bhs::new(Opcode::NopOut, FINAL);
        bhs.set_lengths(1020, 0x12_3456);
        assert_eq!(bhs.0[4..8], [0xff, 0x12, 0x34, 0x56]);
        assert_eq!(bhs.ahs_len_bytes(), 1020);
        assert_eq!(bhs.data_len_bytes(), 0x12_3456);
    }

    #[test]
    fn additional_segments_are_cut_apart() {
        // RFC 7143 11.2.2: an extended CDB of 6 more bytes, an unknown type, a read length.
        let bytes = Bytes::from_static(&[
            0, 7, 1, 0, 1, 2, 3, 4, 5, 6, 0, 0, //
            0, 2, 0x3e, 9, 0xaa, 0, 0, 0, //
            0, 5, 2, 0, 0, 0, 2, 0,
        ]);
        let segments: Vec<(u8, Vec<u8>)> = split_ahs(bytes.clone())
            .map(|ahs| ahs.map(|ahs| (ahs.code, ahs.payload.to_vec())))
            .collect::<Result<_, _>>()
            .unwrap();
        assert_eq!(
            segments,
            [
                (1, vec![1, 2, 3, 4, 5, 6]),
                (0x3e, vec![0xaa]),
                (2, vec![0, 0, 2, 0])
            ]
        );
        let mut out = Vec::new();
        put_ahs(&mut out, 1, &[1, 2, 3, 4, 5, 6]);
        assert_eq!(out, bytes[..12]);
    }

    #[test]
    fn additional_segments_that_lie_are_refused() {
        for bytes in [
            &[0u8, 0, 1, 0][..],
            &[0, 9, 1, 0, 1, 2, 3, 4],
            &[255, 255, 2, 0],
        ] {
            let result: Result<Vec<_>, _> = split_ahs(Bytes::copy_from_slice(bytes)).collect();
            assert!(
                matches!(result, Err(Error::Malformed { .. })),
                "{bytes:02x?}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_additional_segments_end(words in proptest::collection::vec(any::<[u8; 4]>(), 0..255)) {
            prop_assert!(split_ahs(Bytes::from(words.concat())).count() <= 255);
        }
    }
}

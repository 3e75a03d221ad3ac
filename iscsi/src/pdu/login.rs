//! Login Request and Login Response (RFC 7143 11.12, 11.13). They never carry digests.

use berth_iobuf::{Payload, SendQueue};

use super::bhs::{Bhs, CONTINUE, FINAL, Opcode};
use super::digest::Digests;
use super::frame::{Frame, emit_data};
use crate::error::{Error, LoginStatus};
use crate::types::{Cid, CmdSn, Isid, Itt, StatSn, TargetSn, Tsih};

const VERSION_MAX: usize = 2;
/// VersionMin of a request, Version-active of a response.
const VERSION_OTHER: usize = 3;
const ISID: usize = 8;
const TSIH: usize = 14;
const CID: usize = 20;
const STATUS_CLASS: usize = 36;
const STATUS_DETAIL: usize = 37;

/// Login stage (RFC 7143 11.12.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// SecurityNegotiation
    Security = 0,
    /// LoginOperationalNegotiation
    Operational = 1,
    /// FullFeaturePhase
    FullFeature = 3,
}

impl Stage {
    const fn from_bits(bits: u8) -> Option<Self> {
        match bits & 0x03 {
            0 => Some(Self::Security),
            1 => Some(Self::Operational),
            3 => Some(Self::FullFeature),
            _ => None,
        }
    }
}

/// Byte 1 of both PDUs.
struct Bits {
    transit: bool,
    continue_: bool,
    current_stage: Stage,
    next_stage: Stage,
}

impl Bits {
    fn parse(what: &'static str, flags: u8) -> Result<Self, Error> {
        let (transit, continue_) = (flags & FINAL != 0, flags & CONTINUE != 0);
        if transit && continue_ {
            return Err(Error::malformed(
                what,
                "T=1 and C=1; text that goes on cannot end the stage",
            ));
        }
        let stage = |bits| {
            Stage::from_bits(bits).ok_or_else(|| {
                Error::malformed(what, "stage 2 is reserved; 0, 1 and 3 are defined")
            })
        };
        let current_stage = stage(flags >> 2)?;
        Ok(Self {
            transit,
            continue_,
            current_stage,
            // Without T the bits mean nothing.
            next_stage: if transit {
                stage(flags)?
            } else {
                current_stage
            },
        })
    }

    fn byte(&self) -> u8 {
        let next = if self.transit {
            FINAL | self.next_stage as u8
        } else {
            0
        };
        let continue_ = if self.continue_ { CONTINUE } else { 0 };
        next | continue_ | ((self.current_stage as u8) << 2)
    }
}

fn isid(bhs: &Bhs) -> Isid {
    Isid(*bhs.0[ISID..].first_chunk().expect("the header is longer"))
}

/// Login Request (RFC 7143 11.12).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginRequest {
    /// T: the initiator is ready for `next_stage`.
    pub transit: bool,
    /// C: the text goes on in the next PDU.
    pub continue_: bool,
    /// Where the login is.
    pub current_stage: Stage,
    /// Where it shall go; the same as `current_stage` without `transit`.
    pub next_stage: Stage,
    /// Highest version; 0.
    pub version_max: u8,
    /// Lowest version; 0.
    pub version_min: u8,
    /// Initiator part of the session's name.
    pub isid: Isid,
    /// Target part of the session's name; 0 for a new session.
    pub tsih: Tsih,
    /// One tag for the whole login.
    pub itt: Itt,
    /// The connection.
    pub cid: Cid,
    /// CmdSN of the first command after login.
    pub cmd_sn: CmdSn,
    /// Next StatSN expected on the connection; valid from the second request on.
    pub exp_stat_sn: StatSn,
    /// key=value pairs, each ended by NUL.
    pub data: Payload,
}

impl LoginRequest {
    /// Interprets a frame. The I bit is taken for granted.
    ///
    /// # Errors
    /// [`Error::Malformed`] when T and C are both set or a stage is the reserved one.
    pub fn parse(frame: Frame) -> Result<Self, Error> {
        let Frame { bhs, data, .. } = frame;
        let bits = Bits::parse("Login Request", bhs.flags())?;
        Ok(Self {
            transit: bits.transit,
            continue_: bits.continue_,
            current_stage: bits.current_stage,
            next_stage: bits.next_stage,
            version_max: bhs.0[VERSION_MAX],
            version_min: bhs.0[VERSION_OTHER],
            isid: isid(&bhs),
            tsih: Tsih(bhs.u16(TSIH)),
            itt: bhs.itt(),
            cid: Cid(bhs.u16(CID)),
            cmd_sn: bhs.cmd_sn(),
            exp_stat_sn: bhs.exp_stat_sn(),
            data,
        })
    }

    fn bhs(&self) -> Bhs {
        let bits = Bits {
            transit: self.transit,
            continue_: self.continue_,
            current_stage: self.current_stage,
            next_stage: self.next_stage,
        };
        let mut bhs = Bhs::new(Opcode::LoginRequest, bits.byte());
        bhs.set_immediate(true);
        bhs.0[VERSION_MAX] = self.version_max;
        bhs.0[VERSION_OTHER] = self.version_min;
        bhs.put(ISID, &self.isid.0);
        bhs.put_u16(TSIH, self.tsih.0);
        bhs.set_itt(self.itt);
        bhs.put_u16(CID, self.cid.0);
        bhs.set_request_sn(self.cmd_sn, self.exp_stat_sn);
        bhs
    }

    /// Appends the PDU to `out`; `digests` are none as long as the login lasts.
    pub fn emit(&self, out: &mut SendQueue, digests: Digests) {
        emit_data(out, self.bhs(), &self.data, digests);
    }
}

/// Login Response (RFC 7143 11.13).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginResponse {
    /// T: the target goes to `next_stage`.
    pub transit: bool,
    /// C: the text goes on in the next PDU.
    pub continue_: bool,
    /// Where the login is.
    pub current_stage: Stage,
    /// Where it goes; the same as `current_stage` without `transit`.
    pub next_stage: Stage,
    /// Highest version of the target.
    pub version_max: u8,
    /// Version in force.
    pub version_active: u8,
    /// Copy of the request's ISID.
    pub isid: Isid,
    /// The session's handle; valid in the last response.
    pub tsih: Tsih,
    /// Copy of the request's tag.
    pub itt: Itt,
    /// Sequence numbers; valid with status class 0.
    pub sn: TargetSn,
    /// 0 success, 1 redirection, 2 initiator error, 3 target error.
    pub status_class: u8,
    /// Meaning depends on the class; see [`LoginResponse::status`].
    pub status_detail: u8,
    /// key=value pairs, each ended by NUL.
    pub data: Payload,
}

impl LoginResponse {
    /// Interprets a frame.
    ///
    /// # Errors
    /// [`Error::Malformed`] when T and C are both set or a stage is the reserved one; not with a
    /// status other than success, which ends the login and leaves the stages without meaning.
    pub fn parse(frame: Frame) -> Result<Self, Error> {
        let Frame { bhs, data, .. } = frame;
        let status_class = bhs.0[STATUS_CLASS];
        let bits = match Bits::parse("Login Response", bhs.flags()) {
            Err(_) if status_class != 0 => Bits {
                transit: false,
                continue_: false,
                current_stage: Stage::Security,
                next_stage: Stage::Security,
            },
            bits => bits?,
        };
        Ok(Self {
            transit: bits.transit,
            continue_: bits.continue_,
            current_stage: bits.current_stage,
            next_stage: bits.next_stage,
            version_max: bhs.0[VERSION_MAX],
            version_active: bhs.0[VERSION_OTHER],
            isid: isid(&bhs),
            tsih: Tsih(bhs.u16(TSIH)),
            itt: bhs.itt(),
            sn: bhs.target_sn(),
            status_class,
            status_detail: bhs.0[STATUS_DETAIL],
            data,
        })
    }

    /// Class and detail.
    #[must_use]
    pub const fn status(&self) -> LoginStatus {
        LoginStatus::new(self.status_class, self.status_detail)
    }

    fn bhs(&self) -> Bhs {
        let bits = Bits {
            transit: self.transit,
            continue_: self.continue_,
            current_stage: self.current_stage,
            next_stage: self.next_stage,
        };
        let mut bhs = Bhs::new(Opcode::LoginResponse, bits.byte());
        bhs.0[VERSION_MAX] = self.version_max;
        bhs.0[VERSION_OTHER] = self.version_active;
        bhs.put(ISID, &self.isid.0);
        bhs.put_u16(TSIH, self.tsih.0);
        bhs.set_itt(self.itt);
        bhs.set_target_sn(self.sn);
        bhs.0[STATUS_CLASS] = self.status_class;
        bhs.0[STATUS_DETAIL] = self.status_detail;
        bhs
    }

    /// Appends the PDU to `out`; `digests` are none as long as the login lasts.
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
        /// The first request of a login without authentication.
        first: LoginRequest,
        Digests::NONE,
        "43810000 00000070 80123456 00010000 00000001 00000000 00000001 00000000
         00000000 00000000 00000000 00000000
         496e6974 6961746f 724e616d 653d6971 6e2e3230 32362d30 312e696f 2e657861
         6d706c65 3a683100 54617267 65744e61 6d653d69 716e2e32 3032362d 30312e69
         6f2e6578 616d706c 653a7431 00536573 73696f6e 54797065 3d4e6f72 6d616c00
         41757468 4d657468 6f643d4e 6f6e6500",
        |bhs| {
            assert_eq!(bhs.opcode(), Some(Opcode::LoginRequest));
            assert!(bhs.immediate());
            assert_eq!(bhs.flags(), FINAL | Stage::Operational as u8);
            assert_eq!(bhs.data_len_bytes(), 112);
            assert_eq!(isid(bhs), Isid::random([0x12, 0x34, 0x56], 1));
        },
        LoginRequest {
            transit: true,
            continue_: false,
            current_stage: Stage::Security,
            next_stage: Stage::Operational,
            version_max: 0,
            version_min: 0,
            isid: Isid::random([0x12, 0x34, 0x56], 1),
            tsih: Tsih(0),
            itt: Itt(1),
            cid: Cid(0),
            cmd_sn: CmdSn(1),
            exp_stat_sn: StatSn(0),
            data: Payload::from(
                &b"InitiatorName=iqn.2026-01.io.example:h1\0TargetName=iqn.2026-01.io.example:t1\0\
                   SessionType=Normal\0AuthMethod=None\0"[..]
            ),
        }
    }

    known_pdu! {
        /// The last response of a login.
        last: LoginResponse,
        Digests::NONE,
        "23870000 00000000 80123456 00010102 00000001 00000000 00000009 00000008
         00000047 00000000 00000000 00000000",
        |bhs| {
            assert_eq!(bhs.flags(), FINAL | 1 << 2 | Stage::FullFeature as u8);
            assert_eq!(bhs.u16(TSIH), 0x0102);
        },
        LoginResponse {
            transit: true,
            continue_: false,
            current_stage: Stage::Operational,
            next_stage: Stage::FullFeature,
            version_max: 0,
            version_active: 0,
            isid: Isid::random([0x12, 0x34, 0x56], 1),
            tsih: Tsih(0x0102),
            itt: Itt(1),
            sn: TargetSn {
                stat_sn: StatSn(9),
                exp_cmd_sn: CmdSn(8),
                max_cmd_sn: CmdSn(0x47),
            },
            status_class: 0,
            status_detail: 0,
            data: Payload::new(),
        }
    }

    known_pdu! {
        /// A request in the middle, with text that goes on, on an existing session.
        middle: LoginRequest,
        Digests::NONE,
        "43440000 00000004 80123456 00010102 00000001 00030000 00000001 00000005
         00000000 00000000 00000000 00000000 413d5965",
        |bhs| assert_eq!(bhs.flags(), CONTINUE | 1 << 2),
        LoginRequest {
            transit: false,
            continue_: true,
            current_stage: Stage::Operational,
            next_stage: Stage::Operational,
            version_max: 0,
            version_min: 0,
            isid: Isid::random([0x12, 0x34, 0x56], 1),
            tsih: Tsih(0x0102),
            itt: Itt(1),
            cid: Cid(3),
            cmd_sn: CmdSn(1),
            exp_stat_sn: StatSn(5),
            data: Payload::from(&b"A=Ye"[..]),
        }
    }

    fn frame(opcode: Opcode, flags: u8, status_class: u8) -> Frame {
        let mut bhs = header(opcode, flags);
        bhs.0[STATUS_CLASS] = status_class;
        Frame {
            bhs,
            ahs: Bytes::new(),
            data: Payload::new(),
        }
    }

    #[test]
    fn reserved_stages_and_contradictions_are_refused() {
        // RFC 7143 11.12.2, 11.12.3
        for (flags, ok) in [
            (0x87, true),
            (0xc7, false),
            (0x08, false),
            (0x8b, false),
            (0x86, false),
            // NSG means nothing without T.
            (0x06, true),
        ] {
            let request = LoginRequest::parse(frame(Opcode::LoginRequest, flags, 0));
            assert_eq!(request.is_ok(), ok, "{flags:#x}");
            let response = LoginResponse::parse(frame(Opcode::LoginResponse, flags, 0));
            assert_eq!(response.is_ok(), ok, "{flags:#x}");
        }
    }

    #[test]
    fn a_refusal_is_read_whatever_its_stages() {
        // RFC 7143 11.13.5: the class decides; targets leave rubbish in the stages.
        let refused = LoginResponse::parse(frame(Opcode::LoginResponse, 0xcb, 2)).unwrap();
        assert_eq!(refused.status(), LoginStatus::INITIATOR_ERROR);
        assert!(!refused.transit);
    }
}

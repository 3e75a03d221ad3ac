//! Sense data: what a CHECK CONDITION says (SPC-4 4.5).

mod action;
mod names;

use std::fmt;

pub use action::{Failure, Refresh, SenseAction, Verdict};

use super::ParseError;
use super::field::{be16, be32, be64, bit, byte, flag, range};

/// The longest sense data that SPC-4 allows, in bytes.
pub const SENSE_MAX_BYTES: usize = 252;

/// Sense key (SPC-4 4.5.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs, reason = "names of the standard")]
pub enum SenseKey {
    NoSense = 0x0,
    RecoveredError = 0x1,
    NotReady = 0x2,
    MediumError = 0x3,
    HardwareError = 0x4,
    IllegalRequest = 0x5,
    UnitAttention = 0x6,
    DataProtect = 0x7,
    BlankCheck = 0x8,
    VendorSpecific = 0x9,
    CopyAborted = 0xa,
    AbortedCommand = 0xb,
    Reserved = 0xc,
    VolumeOverflow = 0xd,
    Miscompare = 0xe,
    Completed = 0xf,
}

impl SenseKey {
    const ALL: [Self; 16] = [
        Self::NoSense,
        Self::RecoveredError,
        Self::NotReady,
        Self::MediumError,
        Self::HardwareError,
        Self::IllegalRequest,
        Self::UnitAttention,
        Self::DataProtect,
        Self::BlankCheck,
        Self::VendorSpecific,
        Self::CopyAborted,
        Self::AbortedCommand,
        Self::Reserved,
        Self::VolumeOverflow,
        Self::Miscompare,
        Self::Completed,
    ];

    /// The key in the low four bits.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        Self::ALL[(bits & 0x0f) as usize]
    }

    /// The name of the standard.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoSense => "NO SENSE",
            Self::RecoveredError => "RECOVERED ERROR",
            Self::NotReady => "NOT READY",
            Self::MediumError => "MEDIUM ERROR",
            Self::HardwareError => "HARDWARE ERROR",
            Self::IllegalRequest => "ILLEGAL REQUEST",
            Self::UnitAttention => "UNIT ATTENTION",
            Self::DataProtect => "DATA PROTECT",
            Self::BlankCheck => "BLANK CHECK",
            Self::VendorSpecific => "VENDOR SPECIFIC",
            Self::CopyAborted => "COPY ABORTED",
            Self::AbortedCommand => "ABORTED COMMAND",
            Self::Reserved => "RESERVED",
            Self::VolumeOverflow => "VOLUME OVERFLOW",
            Self::Miscompare => "MISCOMPARE",
            Self::Completed => "COMPLETED",
        }
    }
}

/// Sense key with additional sense code and qualifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code {
    /// Sense key.
    pub key: SenseKey,
    /// Additional sense code.
    pub asc: u8,
    /// Additional sense code qualifier.
    pub ascq: u8,
}

impl Code {
    /// A code from its parts.
    #[must_use]
    pub const fn new(key: SenseKey, asc: u8, ascq: u8) -> Self {
        Self { key, asc, ascq }
    }

    /// What the additional codes mean, in the standard's words; `None` when they are not known.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        names::name(self.asc, self.ascq)
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $key:ident $asc:literal $ascq:literal;)*) => {
        impl Code {
            $($(#[$doc])* pub const $name: Self = Self::new(SenseKey::$key, $asc, $ascq);)*
        }
    };
}

codes! {
    /// Nothing to report.
    NO_SENSE = NoSense 0x00 0x00;
    /// Becoming ready.
    BECOMING_READY = NotReady 0x04 0x01;
    /// START UNIT is needed.
    START_UNIT_REQUIRED = NotReady 0x04 0x02;
    /// ALUA: the port group changes its state.
    ALUA_TRANSITION = NotReady 0x04 0x0a;
    /// ALUA: the port group is standby.
    ALUA_STANDBY = NotReady 0x04 0x0b;
    /// ALUA: the port group is unavailable.
    ALUA_UNAVAILABLE = NotReady 0x04 0x0c;
    /// No medium.
    MEDIUM_NOT_PRESENT = NotReady 0x3a 0x00;
    /// The block cannot be read.
    UNRECOVERED_READ_ERROR = MediumError 0x11 0x00;
    /// The block cannot be written.
    WRITE_ERROR = MediumError 0x0c 0x00;
    /// The device failed inside.
    INTERNAL_TARGET_FAILURE = HardwareError 0x44 0x00;
    /// Parameter list ends in the middle of something.
    PARAMETER_LIST_LENGTH_ERROR = IllegalRequest 0x1a 0x00;
    /// No such command.
    INVALID_OPCODE = IllegalRequest 0x20 0x00;
    /// A block beyond the end.
    LBA_OUT_OF_RANGE = IllegalRequest 0x21 0x00;
    /// A CDB field is not valid.
    INVALID_FIELD_IN_CDB = IllegalRequest 0x24 0x00;
    /// No such logical unit.
    LU_NOT_SUPPORTED = IllegalRequest 0x25 0x00;
    /// A field of the parameter list is not valid.
    INVALID_FIELD_IN_PARAMETER_LIST = IllegalRequest 0x26 0x00;
    /// RELEASE of a persistent reservation with other scope or type.
    INVALID_RELEASE = IllegalRequest 0x26 0x04;
    /// Values cannot be saved.
    SAVING_NOT_SUPPORTED = IllegalRequest 0x39 0x00;
    /// No room for one more registration.
    INSUFFICIENT_REGISTRATION_RESOURCES = IllegalRequest 0x55 0x04;
    /// Power on, reset or bus device reset.
    POWER_ON_OR_RESET = UnitAttention 0x29 0x00;
    /// The device was reset (LUN RESET, TARGET RESET).
    DEVICE_RESET = UnitAttention 0x29 0x03;
    /// The I_T nexus was lost.
    NEXUS_LOSS = UnitAttention 0x29 0x07;
    /// Mode parameters changed.
    MODE_PARAMETERS_CHANGED = UnitAttention 0x2a 0x01;
    /// A persistent reservation was preempted.
    RESERVATIONS_PREEMPTED = UnitAttention 0x2a 0x03;
    /// A persistent reservation was released.
    RESERVATIONS_RELEASED = UnitAttention 0x2a 0x04;
    /// A registration was preempted.
    REGISTRATIONS_PREEMPTED = UnitAttention 0x2a 0x05;
    /// An ALUA state changed.
    ALUA_STATE_CHANGED = UnitAttention 0x2a 0x06;
    /// The capacity changed.
    CAPACITY_CHANGED = UnitAttention 0x2a 0x09;
    /// Another initiator cleared our commands.
    COMMANDS_CLEARED = UnitAttention 0x2f 0x00;
    /// A thin provisioning soft threshold was reached.
    SOFT_THRESHOLD_REACHED = UnitAttention 0x38 0x07;
    /// The map of logical units changed.
    REPORTED_LUNS_CHANGED = UnitAttention 0x3f 0x0e;
    /// The device is write protected.
    WRITE_PROTECTED = DataProtect 0x27 0x00;
    /// Thin provisioning ran out of space.
    SPACE_ALLOCATION_FAILED = DataProtect 0x27 0x07;
    /// COMPARE AND WRITE or VERIFY found other data.
    MISCOMPARE = Miscompare 0x1d 0x00;
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (asc, ascq) = (self.asc, self.ascq);
        write!(f, "{} {asc:02X}/{ascq:02X}", self.key.name())?;
        match self.name() {
            Some(name) => write!(f, " {name}"),
            None => Ok(()),
        }
    }
}

/// How sense data is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SenseFormat {
    /// 70h or 71h: 18 bytes; INFORMATION has 32 bits.
    #[default]
    Fixed,
    /// 72h or 73h: descriptors; INFORMATION has 64 bits.
    Descriptor,
}

/// Sense data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sense {
    /// What happened.
    pub code: Code,
    /// The error belongs to an earlier command (a write that was acknowledged); the present one was
    /// not done.
    pub deferred: bool,
    /// INFORMATION: for block devices usually the LBA, for a miscompare the byte offset.
    pub information: Option<u64>,
    /// COMMAND-SPECIFIC INFORMATION.
    pub command_specific: Option<u64>,
    /// Sense key specific bytes, when SKSV is set.
    pub key_specific: Option<[u8; 3]>,
    /// Field replaceable unit, 0 for none.
    pub fru: u8,
}

impl Sense {
    /// Sense data that has only a code.
    #[must_use]
    pub const fn new(code: Code) -> Self {
        Self {
            code,
            deferred: false,
            information: None,
            command_specific: None,
            key_specific: None,
            fru: 0,
        }
    }

    /// The same with INFORMATION.
    #[must_use]
    pub const fn with_information(mut self, information: u64) -> Self {
        self.information = Some(information);
        self
    }

    /// The same with a field pointer (SPC-4 4.5.2.4.2): `in_cdb`, else in the parameter list; `bit` is
    /// the highest bit of the field.
    #[must_use]
    pub const fn with_field(mut self, in_cdb: bool, byte: u16, bit: Option<u8>) -> Self {
        let [high, low] = byte.to_be_bytes();
        let pointer = match bit {
            Some(bit) => flag(true, 3) | bit & 7,
            None => 0,
        };
        self.key_specific = Some([flag(true, 7) | flag(in_cdb, 6) | pointer, high, low]);
        self
    }

    /// The field pointer of an ILLEGAL REQUEST: whether it points into the CDB, and the byte offset.
    #[must_use]
    pub fn field(&self) -> Option<(bool, u16)> {
        let pointer = self
            .key_specific
            .filter(|_| self.code.key == SenseKey::IllegalRequest)?;
        Some((pointer[0] & 1 << 6 != 0, be16(&pointer, 1)))
    }

    /// What an initiator does about it.
    #[must_use]
    pub fn classify(&self) -> SenseAction {
        action::classify(self)
    }

    /// Parses sense data of either format. Lengths inside are believed only as far as there are bytes.
    ///
    /// # Errors
    /// [`ParseError::Short`] for no bytes at all, or so few that the sense key is missing;
    /// [`ParseError::Value`] for a response code other than 70h to 73h.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        super::need("sense data", bytes, 1)?;
        let response_code = bytes[0] & 0x7f;
        let deferred = response_code & 1 == 1;
        let mut sense = match response_code {
            0x70 | 0x71 => Self::parse_fixed(bytes)?,
            0x72 | 0x73 => Self::parse_descriptors(bytes)?,
            _ => {
                return Err(ParseError::Value {
                    what: "sense data",
                    field: "response code",
                    value: response_code.into(),
                    expected: "0x70 to 0x73",
                });
            }
        };
        sense.deferred = deferred;
        Ok(sense)
    }

    fn parse_fixed(bytes: &[u8]) -> Result<Self, ParseError> {
        super::need("fixed format sense data", bytes, 3)?;
        // Without the additional length, or with a short one, what follows is not there.
        let bytes = match bytes.get(7) {
            Some(additional) => range(bytes, 0, 8 + usize::from(*additional)),
            None => bytes,
        };
        let key = SenseKey::from_bits(bytes[2]);
        let key_specific = [byte(bytes, 15), byte(bytes, 16), byte(bytes, 17)];
        Ok(Self {
            code: Code::new(key, byte(bytes, 12), byte(bytes, 13)),
            deferred: false,
            information: bit(bytes, 0, 7).then(|| be32(bytes, 3).into()),
            command_specific: Some(be32(bytes, 8).into()).filter(|value| *value != 0),
            key_specific: Some(key_specific).filter(|sks| sks[0] & 0x80 != 0),
            fru: byte(bytes, 14),
        })
    }

    fn parse_descriptors(bytes: &[u8]) -> Result<Self, ParseError> {
        super::need("descriptor format sense data", bytes, 2)?;
        let mut sense = Self::new(Code::new(
            SenseKey::from_bits(bytes[1]),
            byte(bytes, 2),
            byte(bytes, 3),
        ));
        let mut rest = range(bytes, 8, byte(bytes, 7).into());
        // Each turn takes at least the two header bytes, so this ends.
        while rest.len() >= 2 {
            let (kind, len) = (rest[0], usize::from(rest[1]));
            let descriptor = range(rest, 0, 2 + len);
            match kind {
                0x00 if descriptor.len() >= 12 && bit(descriptor, 2, 7) => {
                    sense.information = Some(be64(descriptor, 4));
                }
                0x01 if descriptor.len() >= 12 => {
                    sense.command_specific = Some(be64(descriptor, 4));
                }
                0x02 if descriptor.len() >= 7 && bit(descriptor, 4, 7) => {
                    sense.key_specific = Some([descriptor[4], descriptor[5], descriptor[6]]);
                }
                0x03 if descriptor.len() >= 4 => sense.fru = descriptor[3],
                _ => {}
            }
            rest = &rest[descriptor.len()..];
        }
        Ok(sense)
    }

    /// The sense data as bytes. Fixed format drops what does not fit its 32-bit fields, with the valid
    /// bit clear, as SPC-4 4.5.3 asks.
    #[must_use]
    pub fn emit(&self, format: SenseFormat) -> Vec<u8> {
        match format {
            SenseFormat::Fixed => self.emit_fixed(),
            SenseFormat::Descriptor => self.emit_descriptors(),
        }
    }

    fn emit_fixed(&self) -> Vec<u8> {
        let mut out = vec![0; 18];
        let information = self.information.and_then(|value| u32::try_from(value).ok());
        out[0] = flag(information.is_some(), 7) | 0x70 | u8::from(self.deferred);
        out[2] = self.code.key as u8;
        out[3..7].copy_from_slice(&information.unwrap_or(0).to_be_bytes());
        out[7] = 10;
        let specific = self.command_specific.map(u32::try_from);
        out[8..12].copy_from_slice(&specific.and_then(Result::ok).unwrap_or(0).to_be_bytes());
        out[12] = self.code.asc;
        out[13] = self.code.ascq;
        out[14] = self.fru;
        out[15..18].copy_from_slice(&self.key_specific.unwrap_or_default());
        out
    }

    fn emit_descriptors(&self) -> Vec<u8> {
        let mut out = vec![0; 8];
        out[0] = 0x72 | u8::from(self.deferred);
        out[1] = self.code.key as u8;
        out[2] = self.code.asc;
        out[3] = self.code.ascq;
        if let Some(information) = self.information {
            out.extend_from_slice(&[0x00, 0x0a, 0x80, 0]);
            out.extend_from_slice(&information.to_be_bytes());
        }
        if let Some(specific) = self.command_specific {
            out.extend_from_slice(&[0x01, 0x0a, 0, 0]);
            out.extend_from_slice(&specific.to_be_bytes());
        }
        if let Some([a, b, c]) = self.key_specific {
            out.extend_from_slice(&[0x02, 0x06, 0, 0, a, b, c, 0]);
        }
        if self.fru != 0 {
            out.extend_from_slice(&[0x03, 0x02, 0, self.fru]);
        }
        // At most 12 + 12 + 8 + 4 bytes.
        out[7] = (out.len() - 8) as u8;
        out
    }
}

impl fmt::Display for Sense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.deferred {
            f.write_str("deferred ")?;
        }
        write!(f, "{}", self.code)?;
        if let Some(information) = self.information {
            write!(f, ", information {information:#x}")?;
        }
        match self.field() {
            Some((true, byte)) => write!(f, ", CDB byte {byte}"),
            Some((false, byte)) => write!(f, ", parameter byte {byte}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
#[path = "sense_tests.rs"]
mod tests;

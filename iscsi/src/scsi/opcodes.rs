//! REPORT SUPPORTED OPERATION CODES data (SPC-4 6.35).

use super::ParseError;
use super::cdb::OpcodeInfo;
use super::field::{be16, be32, bit, byte, flag, range};

/// Whether a device has a command, as the one-command answer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpcodeSupport {
    /// The device cannot tell now, or gave a reserved value.
    Unknown,
    /// No.
    NotSupported,
    /// Yes; `usage` has a bit set where the device looks at the CDB.
    Supported {
        /// In the way that the standard describes, else in a vendor's way.
        standard: bool,
        /// CDB usage data.
        usage: Vec<u8>,
    },
}

impl OpcodeSupport {
    /// Parses the answer to [`super::Cdb::report_supported_opcode`].
    ///
    /// # Errors
    /// [`ParseError::Short`] for fewer than 4 bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        super::need("REPORT SUPPORTED OPERATION CODES data", bytes, 4)?;
        let support = byte(bytes, 1) & 7;
        Ok(match support {
            1 => Self::NotSupported,
            3 | 5 => Self::Supported {
                standard: support == 3,
                usage: range(bytes, 4, be16(bytes, 2).into()).to_vec(),
            },
            _ => Self::Unknown,
        })
    }

    /// The answer for a command that a device has (`Some`) or has not; with timeouts descriptor when
    /// `timeouts` (which says "no time told").
    #[must_use]
    pub fn emit(info: Option<&OpcodeInfo>, timeouts: bool) -> Vec<u8> {
        let Some(info) = info else {
            return vec![0, 1, 0, 0];
        };
        let mut out = vec![0, flag(timeouts, 7) | 3, 0, info.cdb_len() as u8];
        out.extend_from_slice(info.usage);
        if timeouts {
            out.extend_from_slice(&NO_TIMEOUTS);
        }
        out
    }
}

/// A timeouts descriptor that states no times.
const NO_TIMEOUTS: [u8; 12] = [0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// One command in the answer that lists all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedOpcode {
    /// Operation code.
    pub opcode: u8,
    /// Service action, where there are some.
    pub service_action: Option<u16>,
    /// CDB length in bytes.
    pub cdb_len: u16,
}

impl ListedOpcode {
    /// Parses the answer to [`super::Cdb::report_supported_opcodes`] as far as there are bytes.
    ///
    /// # Errors
    /// [`ParseError::Short`] for fewer than 4 bytes.
    pub fn parse_all(bytes: &[u8]) -> Result<Vec<Self>, ParseError> {
        super::need("REPORT SUPPORTED OPERATION CODES data", bytes, 4)?;
        let mut rest = range(bytes, 4, be32(bytes, 0) as usize);
        let mut out = Vec::new();
        while rest.len() >= 8 {
            out.push(Self {
                opcode: rest[0],
                service_action: bit(rest, 5, 0).then(|| be16(rest, 2)),
                cdb_len: be16(rest, 6),
            });
            let len = if bit(rest, 5, 1) { 20 } else { 8 };
            rest = rest.get(len..).unwrap_or_default();
        }
        Ok(out)
    }

    /// The answer that lists all of `commands`.
    #[must_use]
    pub fn emit_all<'a>(
        commands: impl IntoIterator<Item = &'a OpcodeInfo>,
        timeouts: bool,
    ) -> Vec<u8> {
        let mut out = vec![0; 4];
        for info in commands {
            let [a, b] = info.service_action.unwrap_or(0).to_be_bytes();
            let flags = flag(timeouts, 1) | flag(info.service_action.is_some(), 0);
            out.extend_from_slice(&[info.opcode, 0, a, b, 0, flags, 0, info.cdb_len() as u8]);
            if timeouts {
                out.extend_from_slice(&NO_TIMEOUTS);
            }
        }
        // A few dozen commands of 20 bytes at most.
        let len = (out.len() - 4) as u32;
        out[..4].copy_from_slice(&len.to_be_bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::super::cdb::OPCODES;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_command_known_bytes() {
        let bytes = [0, 3, 0, 6, 0x12, 3, 0xff, 0xff, 0xff, 4];
        let inquiry = OPCODES.iter().find(|info| info.opcode == 0x12);
        assert_eq!(OpcodeSupport::emit(inquiry, false), bytes);
        assert_eq!(
            OpcodeSupport::parse(&bytes),
            Ok(OpcodeSupport::Supported {
                standard: true,
                usage: bytes[4..].to_vec(),
            })
        );
        assert_eq!(
            OpcodeSupport::parse(&OpcodeSupport::emit(None, true)),
            Ok(OpcodeSupport::NotSupported)
        );
        assert_eq!(OpcodeSupport::parse(&[0; 4]), Ok(OpcodeSupport::Unknown));
    }

    #[test]
    fn all_commands_round_trip() {
        for timeouts in [false, true] {
            let listed =
                ListedOpcode::parse_all(&ListedOpcode::emit_all(OPCODES, timeouts)).unwrap();
            assert_eq!(listed.len(), OPCODES.len());
            for (listed, info) in listed.iter().zip(OPCODES) {
                assert_eq!(listed.opcode, info.opcode);
                assert_eq!(listed.service_action, info.service_action);
                assert_eq!(usize::from(listed.cdb_len), info.cdb_len());
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_safe(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = OpcodeSupport::parse(&bytes);
            if let Ok(list) = ListedOpcode::parse_all(&bytes) {
                prop_assert!(list.len() * 8 <= bytes.len());
            }
        }
    }
}

//! Target port groups: who may be spoken to through which port (SPC-4 5.15, 6.37, 6.45).

use std::fmt;

use super::ParseError;
use super::field::{be16, be32, bit, byte, flag, range};

/// Most groups that are taken from one reply; group identifiers have 16 bits.
const GROUPS_MAX: usize = 1024;

/// Asymmetric access state of a port group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum AccessState {
    /// Best.
    ActiveOptimized = 0x0,
    /// Works, perhaps more slowly.
    ActiveNonOptimized = 0x1,
    /// Answers questions about itself; no reads and writes.
    Standby = 0x2,
    /// Answers even fewer questions.
    Unavailable = 0x3,
    /// Differs by LBA.
    LbaDependent = 0x4,
    /// Gone.
    Offline = 0xe,
    /// On its way from one state to another.
    Transitioning = 0xf,
}

impl AccessState {
    /// The state in the low four bits; a reserved value is as good as unavailable.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        match bits & 0x0f {
            0x0 => Self::ActiveOptimized,
            0x1 => Self::ActiveNonOptimized,
            0x2 => Self::Standby,
            0x4 => Self::LbaDependent,
            0xe => Self::Offline,
            0xf => Self::Transitioning,
            _ => Self::Unavailable,
        }
    }

    /// Whether reads and writes work.
    #[must_use]
    pub const fn is_active(self) -> bool {
        matches!(
            self,
            Self::ActiveOptimized | Self::ActiveNonOptimized | Self::LbaDependent
        )
    }
}

impl fmt::Display for AccessState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ActiveOptimized => "active/optimized",
            Self::ActiveNonOptimized => "active/non-optimized",
            Self::Standby => "standby",
            Self::Unavailable => "unavailable",
            Self::LbaDependent => "LBA dependent",
            Self::Offline => "offline",
            Self::Transitioning => "transitioning",
        })
    }
}

/// One target port group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortGroup {
    /// Group identifier.
    pub id: u16,
    /// PREF: the group that the device would rather be used through.
    pub preferred: bool,
    /// Its state.
    pub state: AccessState,
    /// Bit mask of supported states: T_SUP 7, O_SUP 6, LBD_SUP 4, U_SUP 3, S_SUP 2, AN_SUP 1, AO_SUP 0.
    pub supported: u8,
    /// Why the state changed last: 0 none, 1 by SET TARGET PORT GROUPS, 2 implicitly.
    pub status_code: u8,
    /// Relative identifiers of its ports, at most 255.
    pub ports: Vec<u16>,
}

impl PortGroup {
    /// How good the group is to send to, smaller is better; `None`: not at all now.
    #[must_use]
    pub const fn preference(&self) -> Option<u8> {
        match (self.state, self.preferred) {
            (AccessState::ActiveOptimized, true) => Some(0),
            (AccessState::ActiveOptimized, false) => Some(1),
            (AccessState::LbaDependent, _) => Some(2),
            (AccessState::ActiveNonOptimized, true) => Some(3),
            (AccessState::ActiveNonOptimized, false) => Some(4),
            _ => None,
        }
    }
}

/// REPORT TARGET PORT GROUPS data.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TargetPortGroups {
    /// Longest implicit transition in seconds; only the extended header tells it, and 0 is "not told".
    pub transition_seconds: Option<u8>,
    /// The groups.
    pub groups: Vec<PortGroup>,
}

impl TargetPortGroups {
    /// The group with this identifier.
    #[must_use]
    pub fn group(&self, id: u16) -> Option<&PortGroup> {
        self.groups.iter().find(|group| group.id == id)
    }

    /// Parses the data. Which header it has stands in the data itself, so a device that ignores the
    /// format asked for is understood.
    ///
    /// # Errors
    /// [`ParseError::Short`] for fewer than 4 bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        super::need("REPORT TARGET PORT GROUPS data", bytes, 4)?;
        let body = range(bytes, 4, be32(bytes, 0) as usize);
        // In the short form bits 6..4 of a descriptor's first byte are reserved and zero.
        let extended = byte(body, 0) >> 4 & 7 == 1;
        let mut rest = if extended {
            body.get(4..).unwrap_or_default()
        } else {
            body
        };
        let mut groups = Vec::new();
        while rest.len() >= 8 && groups.len() < GROUPS_MAX {
            let ports_len = 4 * usize::from(rest[7]);
            let ports = range(rest, 8, ports_len)
                .chunks_exact(4)
                .map(|port| be16(port, 2))
                .collect();
            groups.push(PortGroup {
                id: be16(rest, 2),
                preferred: bit(rest, 0, 7),
                state: AccessState::from_bits(rest[0]),
                supported: rest[1],
                status_code: rest[5],
                ports,
            });
            rest = rest.get(8 + ports_len..).unwrap_or_default();
        }
        Ok(Self {
            transition_seconds: extended.then(|| byte(body, 1)),
            groups,
        })
    }

    /// The data as bytes, with the extended header when there is a transition time.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut out = vec![0; 4];
        if let Some(seconds) = self.transition_seconds {
            out.extend_from_slice(&[1 << 4, seconds, 0, 0]);
        }
        for group in &self.groups {
            let ports = &group.ports[..group.ports.len().min(255)];
            let [a, b] = group.id.to_be_bytes();
            out.extend_from_slice(&[
                flag(group.preferred, 7) | group.state as u8,
                group.supported,
                a,
                b,
                0,
                group.status_code,
                0,
                ports.len() as u8,
            ]);
            for port in ports {
                let [a, b] = port.to_be_bytes();
                out.extend_from_slice(&[0, 0, a, b]);
            }
        }
        let len = u32::try_from(out.len() - 4).unwrap_or(u32::MAX);
        out[..4].copy_from_slice(&len.to_be_bytes());
        out
    }
}

/// The parameter list of SET TARGET PORT GROUPS.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SetTargetPortGroups {
    /// Group and the state it shall have.
    pub states: Vec<(u16, AccessState)>,
}

impl SetTargetPortGroups {
    /// Parses the list.
    ///
    /// # Errors
    /// [`ParseError`] when the list is not a header and whole descriptors, or asks for a state that
    /// cannot be asked for.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        const WHAT: &str = "SET TARGET PORT GROUPS parameter list";
        super::need(WHAT, bytes, 4)?;
        let mut states = Vec::new();
        for descriptor in bytes[4..].chunks(4) {
            super::need(WHAT, descriptor, 4)?;
            let state = AccessState::from_bits(descriptor[0]);
            if matches!(descriptor[0] & 0x0f, 0x4..=0xd | 0xf) {
                return Err(ParseError::Value {
                    what: WHAT,
                    field: "access state",
                    value: (descriptor[0] & 0x0f).into(),
                    expected: "0 to 3 or 14",
                });
            }
            states.push((be16(descriptor, 2), state));
        }
        Ok(Self { states })
    }

    /// The list as bytes.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut out = vec![0; 4];
        for (id, state) in &self.states {
            let [a, b] = id.to_be_bytes();
            out.extend_from_slice(&[*state as u8, 0, a, b]);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// SPC-4 6.37, tables 296 and 299.
    #[test]
    fn known_bytes_in_both_forms() {
        let descriptors = [
            0x80, 0x0f, 0, 1, 0, 2, 0, 1, 0, 0, 0, 1, // group 1, optimized, preferred
            0x02, 0x0f, 0, 2, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 3, // group 2, standby
        ];
        let short = [&[0, 0, 0, 28][..], &descriptors].concat();
        let groups = TargetPortGroups::parse(&short).unwrap();
        assert_eq!(groups.transition_seconds, None);
        assert_eq!(groups.group(1).unwrap().preference(), Some(0));
        let second = groups.group(2).unwrap();
        assert_eq!(
            (second.state, second.preference()),
            (AccessState::Standby, None)
        );
        assert_eq!(second.ports, [2, 3]);
        assert_eq!(groups.emit(), short);
        let extended = [&[0, 0, 0, 32, 0x10, 60, 0, 0][..], &descriptors].concat();
        let parsed = TargetPortGroups::parse(&extended).unwrap();
        assert_eq!(parsed.transition_seconds, Some(60));
        assert_eq!(parsed.groups, groups.groups);
        assert_eq!(parsed.emit(), extended);
    }

    #[test]
    fn set_known_bytes() {
        let bytes = [0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 2];
        let list = SetTargetPortGroups::parse(&bytes).unwrap();
        assert_eq!(
            list.states,
            [(1, AccessState::ActiveOptimized), (2, AccessState::Standby)]
        );
        assert_eq!(list.emit(), bytes);
        assert!(SetTargetPortGroups::parse(&bytes[..10]).is_err());
        assert!(SetTargetPortGroups::parse(&[0, 0, 0, 0, 0xf, 0, 0, 1]).is_err());
    }

    #[test]
    fn a_reserved_state_is_not_usable() {
        for bits in 0..16 {
            let state = AccessState::from_bits(bits);
            assert_eq!(state.is_active(), matches!(bits, 0 | 1 | 4), "{bits}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(transition_seconds: Option<u8>, groups in proptest::collection::vec(
            (any::<(u16, bool, u8, u8)>(), 0usize..7, proptest::collection::vec(any::<u16>(), 0..5)), 0..6)) {
            const STATES: [AccessState; 7] = [
                AccessState::ActiveOptimized, AccessState::ActiveNonOptimized, AccessState::Standby,
                AccessState::Unavailable, AccessState::LbaDependent, AccessState::Offline,
                AccessState::Transitioning,
            ];
            let groups = groups.into_iter().map(|((id, preferred, supported, status_code), state, ports)| {
                PortGroup { id, preferred, state: STATES[state], supported, status_code, ports }
            }).collect();
            let groups = TargetPortGroups { transition_seconds, groups };
            prop_assert_eq!(TargetPortGroups::parse(&groups.emit()), Ok(groups));
        }

        #[test]
        fn any_bytes_are_safe(bytes in proptest::collection::vec(any::<u8>(), 0..200), len: u8) {
            let _ = SetTargetPortGroups::parse(&bytes);
            let _ = TargetPortGroups::parse(&bytes);
            let _ = TargetPortGroups::parse(&[&[0, 0, 0, len][..], &bytes].concat());
        }
    }
}

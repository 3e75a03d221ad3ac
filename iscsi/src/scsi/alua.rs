//! Target port groups: who may be spoken to through which port (SPC-4 5.15, 6.37, 6.45).

use std::fmt;
use std::time::Duration;

use super::ParseError;
use super::field::{be16, be32, bit, byte, flag, range};
use super::inquiry::DeviceIdentification;

/// Implicit transition time of a device that tells none, in seconds (SPC-4 6.37).
const TRANSITION_SECONDS_DEFAULT: u8 = 60;

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

    /// The group of the port that answered INQUIRY with this page 83h (SPC-4 7.8.6): by its target port group
    /// designator, failing that by its relative port among the ports of the groups. A device that names
    /// neither and has one group only means that one. `None`: it cannot be told.
    #[must_use]
    pub fn of_path(&self, page83: &DeviceIdentification) -> Option<&PortGroup> {
        if let Some(id) = page83.port_group() {
            return self.group(id);
        }
        if let Some(port) = page83.relative_port() {
            return self.groups.iter().find(|group| group.ports.contains(&port));
        }
        match &self.groups[..] {
            [only] => Some(only),
            _ => None,
        }
    }

    /// How long a group may be in transition (SPC-4 6.37): what the device says, else the default of 60 s.
    #[must_use]
    pub fn transition_time(&self) -> Duration {
        let told = self.transition_seconds.filter(|seconds| *seconds > 0);
        Duration::from_secs(told.unwrap_or(TRANSITION_SECONDS_DEFAULT).into())
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
    use super::super::inquiry::{Association, Designator};
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

    fn group(id: u16, ports: &[u16]) -> PortGroup {
        PortGroup {
            id,
            preferred: false,
            state: AccessState::ActiveOptimized,
            supported: 0,
            status_code: 0,
            ports: ports.to_vec(),
        }
    }

    /// SPC-4 7.8.6: designator types 4 and 5 with association 1 are of the port that answered.
    #[test]
    fn the_group_of_a_path_by_its_own_words() {
        let groups = TargetPortGroups {
            transition_seconds: None,
            groups: vec![group(1, &[1, 2]), group(2, &[3])],
        };
        let id = |path: Vec<Designator>| {
            let page83 = DeviceIdentification { designators: path };
            groups.of_path(&page83).map(|group| group.id)
        };
        let by_group = |id| Designator::of_port(Designator::PORT_GROUP, id);
        let by_port = |id| Designator::of_port(Designator::RELATIVE_PORT, id);
        assert_eq!(id(vec![by_port(1), by_group(2)]), Some(2));
        assert_eq!(id(vec![by_group(9), by_port(1)]), None, "it said which");
        assert_eq!(id(vec![by_port(2)]), Some(1));
        assert_eq!(id(vec![by_port(3)]), Some(2));
        assert_eq!(id(vec![by_port(4)]), None);
        assert_eq!(id(Vec::new()), None);
        // Numbers of other associations are of other things.
        let mut of_unit = by_group(1);
        of_unit.association = Association::LogicalUnit;
        assert_eq!(id(vec![of_unit]), None);
        // What is not four bytes long is not a number.
        let mut odd = by_group(1);
        odd.bytes.push(0);
        assert_eq!(id(vec![odd, by_port(3)]), Some(2));
    }

    #[test]
    fn one_group_is_the_group_of_a_device_that_does_not_say() {
        let groups = TargetPortGroups {
            transition_seconds: None,
            groups: vec![group(7, &[])],
        };
        let silent = DeviceIdentification::default();
        assert_eq!(groups.of_path(&silent).map(|group| group.id), Some(7));
        assert_eq!(TargetPortGroups::default().of_path(&silent), None);
    }

    /// SPC-4 6.37: 0 means that no time is told.
    #[test]
    fn the_transition_time_has_a_default() {
        let time = |transition_seconds| {
            let groups = TargetPortGroups {
                transition_seconds,
                groups: Vec::new(),
            };
            groups.transition_time().as_secs()
        };
        assert_eq!([None, Some(0), Some(5)].map(time), [60, 60, 5]);
    }

    /// SPC-4 5.15.2: optimized before the rest, among equals the preferred one, and what is not active not
    /// at all.
    #[test]
    fn groups_are_tried_in_this_order() {
        const STATES: [AccessState; 7] = [
            AccessState::ActiveNonOptimized,
            AccessState::Standby,
            AccessState::LbaDependent,
            AccessState::Offline,
            AccessState::ActiveOptimized,
            AccessState::Unavailable,
            AccessState::Transitioning,
        ];
        let mut groups: Vec<PortGroup> = STATES
            .iter()
            .flat_map(|state| {
                [false, true].map(|preferred| PortGroup {
                    preferred,
                    state: *state,
                    ..group(0, &[])
                })
            })
            .filter(|group| group.preference().is_some())
            .collect();
        groups.sort_by_key(PortGroup::preference);
        let order: Vec<_> = groups.iter().map(|g| (g.state, g.preferred)).collect();
        assert_eq!(
            order[..2],
            [
                (AccessState::ActiveOptimized, true),
                (AccessState::ActiveOptimized, false)
            ]
        );
        assert_eq!(order.len(), 6);
        assert_eq!(
            order[4..],
            [
                (AccessState::ActiveNonOptimized, true),
                (AccessState::ActiveNonOptimized, false)
            ]
        );
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

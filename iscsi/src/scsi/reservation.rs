//! PERSISTENT RESERVE IN and OUT data (SPC-4 6.15, 6.16).

use super::ParseError;
use super::field::{be16, be32, be64, bit, byte, flag, range};

mod transport_id;

pub use transport_id::TransportId;

/// Length of the basic PERSISTENT RESERVE OUT parameter list in bytes.
pub const PR_OUT_BYTES: u32 = 24;

/// Type of a persistent reservation (SPC-4 6.15.3.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ReservationType {
    /// Others may read.
    WriteExclusive = 1,
    /// Others may do nothing.
    ExclusiveAccess = 3,
    /// Registered nexuses may write, others read.
    WriteExclusiveRegistrantsOnly = 5,
    /// Registered nexuses may read and write, others nothing.
    ExclusiveAccessRegistrantsOnly = 6,
    /// The same as 5, and every registrant holds the reservation.
    WriteExclusiveAllRegistrants = 7,
    /// The same as 6, and every registrant holds the reservation.
    ExclusiveAccessAllRegistrants = 8,
}

impl ReservationType {
    /// All types.
    pub const ALL: [Self; 6] = [
        Self::WriteExclusive,
        Self::ExclusiveAccess,
        Self::WriteExclusiveRegistrantsOnly,
        Self::ExclusiveAccessRegistrantsOnly,
        Self::WriteExclusiveAllRegistrants,
        Self::ExclusiveAccessAllRegistrants,
    ];

    /// The type in the low four bits.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits & 0x0f {
            1 => Self::WriteExclusive,
            3 => Self::ExclusiveAccess,
            5 => Self::WriteExclusiveRegistrantsOnly,
            6 => Self::ExclusiveAccessRegistrantsOnly,
            7 => Self::WriteExclusiveAllRegistrants,
            8 => Self::ExclusiveAccessAllRegistrants,
            _ => return None,
        })
    }

    /// Whether every registrant holds the reservation.
    #[must_use]
    pub const fn is_all_registrants(self) -> bool {
        matches!(
            self,
            Self::WriteExclusiveAllRegistrants | Self::ExclusiveAccessAllRegistrants
        )
    }

    /// Whether registered nexuses have the holder's access.
    #[must_use]
    pub const fn admits_registrants(self) -> bool {
        !matches!(self, Self::WriteExclusive | Self::ExclusiveAccess)
    }

    /// Whether those who have no access may still read.
    #[must_use]
    pub const fn admits_reads(self) -> bool {
        matches!(
            self,
            Self::WriteExclusive
                | Self::WriteExclusiveRegistrantsOnly
                | Self::WriteExclusiveAllRegistrants
        )
    }
}

/// READ KEYS data.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RegisteredKeys {
    /// PRGENERATION: counts changes of the registrations.
    pub generation: u32,
    /// One key for each registered nexus.
    pub keys: Vec<u64>,
}

/// READ RESERVATION data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReservationReport {
    /// PRGENERATION.
    pub generation: u32,
    /// Holder's key (0 when all registrants hold it) and type, if there is a reservation.
    pub reservation: Option<(u64, Option<ReservationType>)>,
}

/// REPORT CAPABILITIES data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReservationCapabilities {
    /// CRH: RESERVE (6) and RELEASE (6) of registered nexuses do nothing instead of conflicting.
    pub compatible_handling: bool,
    /// SIP_C: SPEC_I_PT works.
    pub specify_initiator_ports: bool,
    /// ATP_C: ALL_TG_PT works.
    pub all_target_ports: bool,
    /// PTPL_C: reservations can persist through power loss.
    pub power_loss_capable: bool,
    /// PTPL_A: they do.
    pub power_loss_active: bool,
    /// ALLOW COMMANDS field.
    pub allow_commands: u8,
    /// Supported types, when TMV is set.
    pub types: Option<u16>,
}

/// One registered nexus in READ FULL STATUS data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FullStatus {
    /// Its key.
    pub key: u64,
    /// Registered through all target ports.
    pub all_target_ports: bool,
    /// Holds the reservation of this type.
    pub holds: Option<ReservationType>,
    /// Relative target port of the registration.
    pub relative_port: u16,
    /// The initiator port; `None` when it is of another transport or malformed.
    pub initiator: Option<TransportId>,
}

/// READ FULL STATUS data.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FullStatusReport {
    /// PRGENERATION.
    pub generation: u32,
    /// One entry for each registered nexus.
    pub registrations: Vec<FullStatus>,
}

/// Generation and body of READ KEYS, READ RESERVATION and READ FULL STATUS data.
fn split<'a>(what: &'static str, bytes: &'a [u8]) -> Result<(u32, &'a [u8]), ParseError> {
    super::need(what, bytes, 8)?;
    Ok((be32(bytes, 0), range(bytes, 8, be32(bytes, 4) as usize)))
}

fn join(generation: u32, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + body.len());
    out.extend_from_slice(&generation.to_be_bytes());
    out.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(body);
    out
}

impl RegisteredKeys {
    /// Parses READ KEYS data as far as there are bytes.
    ///
    /// # Errors
    /// [`ParseError::Short`] for fewer than 8 bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let (generation, body) = split("PERSISTENT RESERVE IN READ KEYS data", bytes)?;
        Ok(Self {
            generation,
            keys: body.chunks_exact(8).map(|key| be64(key, 0)).collect(),
        })
    }

    /// The data as bytes.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let body: Vec<u8> = self.keys.iter().flat_map(|key| key.to_be_bytes()).collect();
        join(self.generation, &body)
    }
}

impl ReservationReport {
    /// Parses READ RESERVATION data.
    ///
    /// # Errors
    /// [`ParseError::Short`] for fewer than 8 bytes, or a reservation that is cut off.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        const WHAT: &str = "PERSISTENT RESERVE IN READ RESERVATION data";
        let (generation, body) = split(WHAT, bytes)?;
        let reservation = if be32(bytes, 4) == 0 {
            None
        } else {
            super::need(WHAT, body, 14)?;
            Some((be64(body, 0), ReservationType::from_bits(body[13])))
        };
        Ok(Self {
            generation,
            reservation,
        })
    }

    /// The data as bytes.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut body = Vec::new();
        if let Some((key, kind)) = self.reservation {
            body.extend_from_slice(&key.to_be_bytes());
            body.extend_from_slice(&[0, 0, 0, 0, 0, kind.map_or(0, |kind| kind as u8), 0, 0]);
        }
        join(self.generation, &body)
    }
}

impl ReservationCapabilities {
    /// Bit of a type in the type mask, as byte 4 (high) and byte 5 (low) hold them.
    #[must_use]
    pub const fn type_bit(kind: ReservationType) -> u16 {
        match kind {
            ReservationType::WriteExclusiveAllRegistrants => 1 << 15,
            ReservationType::ExclusiveAccessRegistrantsOnly => 1 << 14,
            ReservationType::WriteExclusiveRegistrantsOnly => 1 << 13,
            ReservationType::ExclusiveAccess => 1 << 11,
            ReservationType::WriteExclusive => 1 << 9,
            ReservationType::ExclusiveAccessAllRegistrants => 1,
        }
    }

    /// Whether a type is supported; a device that has no mask may support it.
    #[must_use]
    pub const fn may_support(&self, kind: ReservationType) -> bool {
        match self.types {
            Some(mask) => mask & Self::type_bit(kind) != 0,
            None => true,
        }
    }

    /// Parses REPORT CAPABILITIES data.
    ///
    /// # Errors
    /// [`ParseError::Short`] for fewer than 8 bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        super::need("PERSISTENT RESERVE IN REPORT CAPABILITIES data", bytes, 8)?;
        Ok(Self {
            compatible_handling: bit(bytes, 2, 4),
            specify_initiator_ports: bit(bytes, 2, 3),
            all_target_ports: bit(bytes, 2, 2),
            power_loss_capable: bit(bytes, 2, 0),
            power_loss_active: bit(bytes, 3, 0),
            allow_commands: byte(bytes, 3) >> 4 & 7,
            types: bit(bytes, 3, 7).then(|| be16(bytes, 4)),
        })
    }

    /// The data as bytes.
    #[must_use]
    pub fn emit(&self) -> [u8; 8] {
        let [a, b] = self.types.unwrap_or(0).to_be_bytes();
        [
            0,
            8,
            flag(self.compatible_handling, 4)
                | flag(self.specify_initiator_ports, 3)
                | flag(self.all_target_ports, 2)
                | flag(self.power_loss_capable, 0),
            flag(self.types.is_some(), 7)
                | (self.allow_commands & 7) << 4
                | flag(self.power_loss_active, 0),
            a,
            b,
            0,
            0,
        ]
    }
}

impl FullStatusReport {
    /// Parses READ FULL STATUS data; an entry that is cut off ends the list.
    ///
    /// # Errors
    /// [`ParseError::Short`] for fewer than 8 bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let (generation, mut rest) = split("PERSISTENT RESERVE IN READ FULL STATUS data", bytes)?;
        let mut registrations = Vec::new();
        while rest.len() >= 24 {
            let Some(len) = 24usize.checked_add(be32(rest, 20) as usize) else {
                break;
            };
            let Some(entry) = rest.get(..len) else {
                break;
            };
            registrations.push(FullStatus {
                key: be64(entry, 0),
                all_target_ports: bit(entry, 12, 1),
                holds: ReservationType::from_bits(entry[13]).filter(|_| bit(entry, 12, 0)),
                relative_port: be16(entry, 18),
                initiator: TransportId::parse(&entry[24..]).ok().map(|(id, _)| id),
            });
            rest = &rest[len..];
        }
        Ok(Self {
            generation,
            registrations,
        })
    }

    /// The data as bytes.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut body = Vec::new();
        for entry in &self.registrations {
            let id = entry
                .initiator
                .as_ref()
                .map_or_else(Vec::new, TransportId::emit);
            body.extend_from_slice(&entry.key.to_be_bytes());
            body.extend_from_slice(&[0; 4]);
            body.push(flag(entry.all_target_ports, 1) | flag(entry.holds.is_some(), 0));
            body.push(entry.holds.map_or(0, |kind| kind as u8));
            body.extend_from_slice(&[0; 4]);
            body.extend_from_slice(&entry.relative_port.to_be_bytes());
            body.extend_from_slice(&u32::try_from(id.len()).unwrap_or(0).to_be_bytes());
            body.extend_from_slice(&id);
        }
        join(self.generation, &body)
    }
}

/// The basic PERSISTENT RESERVE OUT parameter list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PrOutParameters {
    /// The key that this nexus is registered with; 0 when it is not.
    pub key: u64,
    /// The key that the action is about: the new key, or the one to preempt.
    pub action_key: u64,
    /// SPEC_I_PT: initiator ports follow.
    pub specify_initiator_ports: bool,
    /// ALL_TG_PT: through all target ports.
    pub all_target_ports: bool,
    /// APTPL: persist through power loss.
    pub persist_through_power_loss: bool,
}

impl PrOutParameters {
    /// Parses the list.
    ///
    /// # Errors
    /// [`ParseError::Short`] for fewer than 24 bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        super::need(
            "PERSISTENT RESERVE OUT parameter list",
            bytes,
            PR_OUT_BYTES as usize,
        )?;
        Ok(Self {
            key: be64(bytes, 0),
            action_key: be64(bytes, 8),
            specify_initiator_ports: bit(bytes, 20, 3),
            all_target_ports: bit(bytes, 20, 2),
            persist_through_power_loss: bit(bytes, 20, 0),
        })
    }

    /// The list as bytes.
    #[must_use]
    pub fn emit(&self) -> [u8; PR_OUT_BYTES as usize] {
        let mut out = [0; PR_OUT_BYTES as usize];
        out[..8].copy_from_slice(&self.key.to_be_bytes());
        out[8..16].copy_from_slice(&self.action_key.to_be_bytes());
        out[20] = flag(self.specify_initiator_ports, 3)
            | flag(self.all_target_ports, 2)
            | flag(self.persist_through_power_loss, 0);
        out
    }
}

/// The REGISTER AND MOVE parameter list (SPC-4 6.16.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisterAndMove {
    /// The key that this nexus is registered with.
    pub key: u64,
    /// The key for the nexus that gets the reservation.
    pub action_key: u64,
    /// UNREG: this nexus is not registered any more afterwards.
    pub unregister: bool,
    /// APTPL: persist through power loss.
    pub persist_through_power_loss: bool,
    /// Target port of the new holder.
    pub relative_port: u16,
    /// Initiator port of the new holder.
    pub initiator: TransportId,
}

impl RegisterAndMove {
    /// Parses the list.
    ///
    /// # Errors
    /// [`ParseError`] when it is too short or does not name an iSCSI initiator.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        const WHAT: &str = "REGISTER AND MOVE parameter list";
        super::need(WHAT, bytes, 24)?;
        let id_len = be32(bytes, 20) as usize;
        super::need(WHAT, &bytes[24..], id_len)?;
        Ok(Self {
            key: be64(bytes, 0),
            action_key: be64(bytes, 8),
            unregister: bit(bytes, 17, 1),
            persist_through_power_loss: bit(bytes, 17, 0),
            relative_port: be16(bytes, 18),
            initiator: TransportId::parse(range(bytes, 24, id_len))?.0,
        })
    }

    /// The list as bytes.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let id = self.initiator.emit();
        let mut out = Vec::with_capacity(24 + id.len());
        out.extend_from_slice(&self.key.to_be_bytes());
        out.extend_from_slice(&self.action_key.to_be_bytes());
        out.push(0);
        out.push(flag(self.unregister, 1) | flag(self.persist_through_power_loss, 0));
        out.extend_from_slice(&self.relative_port.to_be_bytes());
        out.extend_from_slice(&u32::try_from(id.len()).unwrap_or(0).to_be_bytes());
        out.extend_from_slice(&id);
        out
    }
}

#[cfg(test)]
mod tests;

//! Persistent reservations (SPC-4 5.13): who may access the unit, by registered keys.
//!
//! A registration belongs to an I_T nexus and outlives its session. The reservation is held by one
//! registration, or, for the all-registrants types, by all of them.

use berth_iobuf::Payload;

use super::super::executor::Nexus;
use super::access::Access;
use super::attention::Nexuses;
use super::refusal::{PARAMETER_LIST_LENGTH, Refusal, field_in_cdb, field_in_parameters};
use crate::scsi::cdb::{PrInAction, PrOutAction};
use crate::scsi::reservation::{
    FullStatus, FullStatusReport, PR_OUT_BYTES, PrOutParameters, RegisterAndMove, RegisteredKeys,
    ReservationCapabilities, ReservationReport, ReservationType, TransportId,
};
use crate::scsi::{Code, ParseError, Sense};

/// Registrations of one unit, at most.
const REGISTRATIONS_MAX: usize = 256;

#[derive(Debug)]
struct Registration {
    nexus: Nexus,
    key: u64,
}

#[derive(Debug)]
struct Reservation {
    kind: ReservationType,
    /// `None`: all registrants hold it.
    holder: Option<Nexus>,
}

/// Registrations and the reservation.
#[derive(Debug, Default)]
pub(super) struct PersistentReservations {
    generation: u32,
    registrations: Vec<Registration>,
    reservation: Option<Reservation>,
}

impl PersistentReservations {
    pub(super) fn key_of(&self, nexus: &Nexus) -> Option<u64> {
        self.registrations
            .iter()
            .find(|registration| registration.nexus == *nexus)
            .map(|registration| registration.key)
    }

    pub(super) const fn has_registrations(&self) -> bool {
        !self.registrations.is_empty()
    }

    fn is_holder(&self, nexus: &Nexus) -> bool {
        match &self.reservation {
            Some(Reservation { holder: None, .. }) => self.key_of(nexus).is_some(),
            Some(Reservation {
                holder: Some(holder),
                ..
            }) => holder == nexus,
            None => false,
        }
    }

    /// SPC-4 tables 66 to 68.
    pub(super) fn admit(&self, nexus: &Nexus, access: Access) -> Result<(), Refusal> {
        let Some(reservation) = &self.reservation else {
            return Ok(());
        };
        let kind = reservation.kind;
        let conflicts = match access {
            Access::Identify
            | Access::Ready
            | Access::Ask
            | Access::PortGroups
            | Access::ReserveOut
            | Access::Reserve
            | Access::Release => return Ok(()),
            Access::Read => !kind.admits_reads(),
            Access::Write | Access::Control | Access::Inspect => true,
        };
        if !conflicts || self.is_holder(nexus) {
            return Ok(());
        }
        if kind.admits_registrants() && self.key_of(nexus).is_some() {
            return Ok(());
        }
        Err(Refusal::CONFLICT)
    }

    pub(super) fn report(&self, action: PrInAction) -> Vec<u8> {
        let generation = self.generation;
        match action {
            PrInAction::ReadKeys => RegisteredKeys {
                generation,
                keys: self.registrations.iter().map(|r| r.key).collect(),
            }
            .emit(),
            PrInAction::ReadReservation => ReservationReport {
                generation,
                reservation: self.reservation.as_ref().map(|reservation| {
                    let holder = reservation.holder.as_ref();
                    let key = holder.and_then(|nexus| self.key_of(nexus)).unwrap_or(0);
                    (key, Some(reservation.kind))
                }),
            }
            .emit(),
            PrInAction::ReportCapabilities => ReservationCapabilities {
                // TEST UNIT READY is allowed, MODE SENSE and the like are as the tables say.
                allow_commands: 1,
                types: Some(
                    ReservationType::ALL
                        .into_iter()
                        .map(ReservationCapabilities::type_bit)
                        .sum(),
                ),
                ..ReservationCapabilities::default()
            }
            .emit()
            .to_vec(),
            PrInAction::ReadFullStatus => FullStatusReport {
                generation,
                registrations: self
                    .registrations
                    .iter()
                    .map(|registration| FullStatus {
                        key: registration.key,
                        all_target_ports: false,
                        holds: self
                            .reservation
                            .as_ref()
                            .filter(|_| self.is_holder(&registration.nexus))
                            .map(|reservation| reservation.kind),
                        relative_port: registration.nexus.portal_group,
                        initiator: Some(TransportId {
                            name: registration.nexus.initiator.to_string(),
                            isid: Some(registration.nexus.isid),
                        }),
                    })
                    .collect(),
            }
            .emit(),
        }
    }

    pub(super) fn change(
        &mut self,
        nexus: &Nexus,
        action: PrOutAction,
        scope_and_type: u8,
        parameter_len: u32,
        data_out: &Payload,
        nexuses: &mut Nexuses,
    ) -> Result<(), Refusal> {
        let data = data_out.to_bytes();
        if action == PrOutAction::RegisterAndMove {
            return self.register_and_move(nexus, &data, nexuses);
        }
        if parameter_len != PR_OUT_BYTES {
            return Err(PARAMETER_LIST_LENGTH);
        }
        let parameters = PrOutParameters::parse(&data).map_err(|_| PARAMETER_LIST_LENGTH)?;
        let registers = matches!(
            action,
            PrOutAction::Register | PrOutAction::RegisterAndIgnoreExistingKey
        );
        if registers {
            let asks_more = parameters.specify_initiator_ports
                || parameters.all_target_ports
                || parameters.persist_through_power_loss;
            if asks_more {
                return Err(field_in_parameters(20));
            }
            return self.register(nexus, action, &parameters, nexuses);
        }
        // Everything else is for registered nexuses that know their key.
        if self.key_of(nexus) != Some(parameters.key) {
            return Err(Refusal::CONFLICT);
        }
        match action {
            PrOutAction::Reserve => self.reserve(nexus, scope_and_type),
            PrOutAction::Release => self.release(nexus, scope_and_type, nexuses),
            PrOutAction::Clear => {
                self.clear(nexus, nexuses);
                Ok(())
            }
            // Commands are executed whole when their turn comes, so there is never one to abort: what
            // still waits for its data meets the new reservation.
            _ => self.preempt(nexus, parameters.action_key, scope_and_type, nexuses),
        }
    }

    fn register(
        &mut self,
        nexus: &Nexus,
        action: PrOutAction,
        parameters: &PrOutParameters,
        nexuses: &mut Nexuses,
    ) -> Result<(), Refusal> {
        let registered = self.key_of(nexus);
        if action == PrOutAction::Register && registered.unwrap_or(0) != parameters.key {
            return Err(Refusal::CONFLICT);
        }
        match (registered, parameters.action_key) {
            (None, 0) => {}
            (None, key) => self.add(nexus, key)?,
            (Some(_), 0) => self.unregister(nexus, nexuses),
            (Some(_), key) => self.set_key(nexus, key),
        }
        self.generation = self.generation.wrapping_add(1);
        Ok(())
    }

    fn add(&mut self, nexus: &Nexus, key: u64) -> Result<(), Refusal> {
        if self.registrations.len() >= REGISTRATIONS_MAX {
            return Err(Sense::new(Code::INSUFFICIENT_REGISTRATION_RESOURCES).into());
        }
        self.registrations.push(Registration {
            nexus: nexus.clone(),
            key,
        });
        Ok(())
    }

    fn set_key(&mut self, nexus: &Nexus, key: u64) {
        for registration in &mut self.registrations {
            if registration.nexus == *nexus {
                registration.key = key;
            }
        }
    }

    /// Removes the registration of this nexus, and with it the reservation if it was the holder's, or the
    /// last one of all registrants.
    fn unregister(&mut self, nexus: &Nexus, nexuses: &mut Nexuses) {
        let was_holder = self.is_holder(nexus);
        self.registrations.retain(|r| r.nexus != *nexus);
        if !was_holder {
            return;
        }
        let Some(reservation) = self.reservation.take() else {
            return;
        };
        if reservation.kind.is_all_registrants() && !self.registrations.is_empty() {
            self.reservation = Some(reservation);
        } else if reservation.kind.admits_registrants() {
            self.tell_others(nexus, Code::RESERVATIONS_RELEASED, nexuses);
        }
    }

    /// Tells every registered nexus but this one.
    fn tell_others(&self, nexus: &Nexus, code: Code, nexuses: &mut Nexuses) {
        for other in &self.registrations {
            if other.nexus != *nexus {
                nexuses.attention(&other.nexus, code);
            }
        }
    }

    fn reserve(&mut self, nexus: &Nexus, scope_and_type: u8) -> Result<(), Refusal> {
        let kind = kind(scope_and_type)?;
        match &self.reservation {
            None => {
                self.reservation = Some(hold(kind, nexus));
                Ok(())
            }
            Some(reservation) if reservation.kind == kind && self.is_holder(nexus) => Ok(()),
            Some(_) => Err(Refusal::CONFLICT),
        }
    }

    fn release(
        &mut self,
        nexus: &Nexus,
        scope_and_type: u8,
        nexuses: &mut Nexuses,
    ) -> Result<(), Refusal> {
        if !self.is_holder(nexus) {
            return Ok(());
        }
        let wanted = kind(scope_and_type)?;
        if self.reservation.as_ref().map(|r| r.kind) != Some(wanted) {
            return Err(Sense::new(Code::INVALID_RELEASE).into());
        }
        self.reservation = None;
        if wanted.admits_registrants() {
            self.tell_others(nexus, Code::RESERVATIONS_RELEASED, nexuses);
        }
        Ok(())
    }

    fn clear(&mut self, nexus: &Nexus, nexuses: &mut Nexuses) {
        self.tell_others(nexus, Code::RESERVATIONS_PREEMPTED, nexuses);
        self.registrations.clear();
        self.reservation = None;
        self.generation = self.generation.wrapping_add(1);
    }

    /// SPC-4 5.13.11.4, figure 9.
    fn preempt(
        &mut self,
        nexus: &Nexus,
        victim: u64,
        scope_and_type: u8,
        nexuses: &mut Nexuses,
    ) -> Result<(), Refusal> {
        let holder_key = match &self.reservation {
            None => None,
            Some(Reservation { holder: None, .. }) => Some(0),
            Some(Reservation {
                holder: Some(holder),
                ..
            }) => self.key_of(holder),
        };
        if victim == 0 && holder_key != Some(0) {
            return Err(field_in_parameters(8));
        }
        let takes_over = holder_key == Some(victim);
        let kind = if takes_over {
            Some(kind(scope_and_type)?)
        } else {
            None
        };
        let is_victim = |r: &Registration| victim == 0 || r.key == victim;
        if !takes_over && !self.registrations.iter().any(is_victim) {
            return Err(Refusal::CONFLICT);
        }
        let old = self.reservation.as_ref().map(|r| r.kind);
        self.registrations.retain(|r| {
            // Whoever takes over stays registered, even under the key that it preempts.
            let stays = !is_victim(r) || takes_over && r.nexus == *nexus;
            if !stays && r.nexus != *nexus {
                nexuses.attention(&r.nexus, Code::REGISTRATIONS_PREEMPTED);
            }
            stays
        });
        if let Some(kind) = kind {
            self.reservation = Some(hold(kind, nexus));
            if old != Some(kind) {
                self.tell_others(nexus, Code::RESERVATIONS_RELEASED, nexuses);
            }
        } else if self.registrations.is_empty() {
            self.reservation = None;
        }
        self.generation = self.generation.wrapping_add(1);
        Ok(())
    }

    /// SPC-4 5.13.8. The new holder is a nexus through the same target port.
    fn register_and_move(
        &mut self,
        nexus: &Nexus,
        data: &[u8],
        nexuses: &mut Nexuses,
    ) -> Result<(), Refusal> {
        let list = RegisterAndMove::parse(data).map_err(|error| match error {
            ParseError::Short { .. } => PARAMETER_LIST_LENGTH,
            ParseError::Value { .. } => field_in_parameters(24),
        })?;
        let kind = match &self.reservation {
            Some(Reservation {
                kind,
                holder: Some(holder),
            }) if holder == nexus => *kind,
            // Without the reservation, or with one that all hold, there is nothing to move.
            _ => return Err(Refusal::CONFLICT),
        };
        if self.key_of(nexus) != Some(list.key) {
            return Err(Refusal::CONFLICT);
        }
        if list.action_key == 0 {
            return Err(field_in_parameters(8));
        }
        if list.persist_through_power_loss {
            return Err(field_in_parameters(17));
        }
        if list.relative_port != nexus.portal_group {
            return Err(field_in_parameters(18));
        }
        let Some(isid) = list.initiator.isid else {
            return Err(field_in_parameters(24));
        };
        let to = Nexus {
            initiator: list.initiator.name.as_str().into(),
            isid,
            target: nexus.target.clone(),
            portal_group: nexus.portal_group,
        };
        if to == *nexus {
            return Err(field_in_parameters(24));
        }
        match self.key_of(&to) {
            Some(_) => self.set_key(&to, list.action_key),
            None => self.add(&to, list.action_key)?,
        }
        self.reservation = Some(Reservation {
            kind,
            holder: Some(to),
        });
        if list.unregister {
            self.unregister(nexus, nexuses);
        }
        self.generation = self.generation.wrapping_add(1);
        Ok(())
    }
}

fn hold(kind: ReservationType, nexus: &Nexus) -> Reservation {
    Reservation {
        kind,
        holder: (!kind.is_all_registrants()).then(|| nexus.clone()),
    }
}

/// The type, if scope (logical unit) and type are valid.
fn kind(scope_and_type: u8) -> Result<ReservationType, Refusal> {
    if scope_and_type >> 4 != 0 {
        return Err(field_in_cdb(2, 7));
    }
    ReservationType::from_bits(scope_and_type).ok_or(field_in_cdb(2, 3))
}

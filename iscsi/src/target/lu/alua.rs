//! Asymmetric access: which port groups may be used (SPC-4 5.15).

use berth_iobuf::Payload;

use super::super::executor::Nexus;
use super::access::Access;
use super::refusal::{PARAMETER_LIST_LENGTH, Refusal, field_in_cdb, field_in_parameters};
use super::{Answer, LogicalUnit, cut};
use crate::scsi::alua::{AccessState, SetTargetPortGroups, TargetPortGroups};
use crate::scsi::{Code, ParseError, Sense};

/// Status code of a group: SET TARGET PORT GROUPS changed it.
const CHANGED_EXPLICITLY: u8 = 1;
/// Status code of a group: the device changed it.
pub(super) const CHANGED_IMPLICITLY: u8 = 2;

impl LogicalUnit {
    /// Whether the command may come through this port now. A nexus through a group that is not
    /// configured is not restricted.
    pub(super) fn admit_through_port(&self, nexus: &Nexus, access: Access) -> Result<(), Refusal> {
        if self.groups.is_empty() || access == Access::Identify {
            return Ok(());
        }
        let group = self
            .groups
            .iter()
            .find(|group| group.id == nexus.portal_group);
        let code = match group.map(|group| group.state) {
            None => return Ok(()),
            Some(state) if state.is_active() => return Ok(()),
            _ if access == Access::PortGroups => return Ok(()),
            Some(AccessState::Transitioning) => Code::ALUA_TRANSITION,
            // What tells about the device works through a standby port (SPC-4 5.15.2.4.4).
            Some(AccessState::Standby) => match access {
                Access::Inspect | Access::ReserveOut | Access::Ask => return Ok(()),
                _ => Code::ALUA_STANDBY,
            },
            Some(_) => Code::ALUA_UNAVAILABLE,
        };
        Err(Sense::new(code).into())
    }

    pub(super) fn report_port_groups(&self, extended: bool, allocation_len: u32) -> Answer {
        if self.groups.is_empty() {
            return Err(field_in_cdb(1, 4));
        }
        let report = TargetPortGroups {
            transition_seconds: extended.then_some(self.config.transition_seconds),
            groups: self.groups.clone(),
        };
        Ok(cut(report.emit(), allocation_len))
    }

    pub(super) fn set_port_groups(&mut self, nexus: &Nexus, data_out: &Payload) -> Answer {
        if self.groups.is_empty() || !self.config.explicit_alua {
            return Err(field_in_cdb(1, 4));
        }
        if data_out.is_empty() {
            return Ok(Payload::new());
        }
        let list =
            SetTargetPortGroups::parse(&data_out.to_bytes()).map_err(|error| match error {
                ParseError::Short { .. } => PARAMETER_LIST_LENGTH,
                ParseError::Value { .. } => field_in_parameters(4),
            })?;
        // All or nothing.
        let is_known = |id: u16| self.groups.iter().any(|group| group.id == id);
        if let Some(at) = list.states.iter().position(|(id, _)| !is_known(*id)) {
            return Err(field_in_parameters(
                u16::try_from(6 + 4 * at).unwrap_or(u16::MAX),
            ));
        }
        for (id, state) in list.states {
            for group in self.groups.iter_mut().filter(|group| group.id == id) {
                group.state = state;
                group.status_code = CHANGED_EXPLICITLY;
            }
        }
        self.nexuses
            .attention_all(Code::ALUA_STATE_CHANGED, Some(nexus));
        Ok(Payload::new())
    }
}

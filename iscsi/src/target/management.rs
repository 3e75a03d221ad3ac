//! Task management and logout (RFC 7143 11.5, 11.6, 11.14, 11.15, 4.2.3).

use std::time::Instant;

use super::connection::{CloseReason, Connection, Phase};
use super::portal::{Order, Shared};
use super::session::EarlyCommand;
use super::window::Arrival;
use crate::pdu::{
    LogoutRequest, LogoutResponse, Pdu, TaskManagementRequest, TaskManagementResponse,
};
use crate::types::{Itt, TargetSn};

/// Task management responses that may wait for data at a time; more are answered at once.
const PENDING_MAX: usize = 8;

/// A task management response that waits until the initiator has ended the data sequences of the tasks it
/// aborted (RFC 7143 4.2.3.2), or until the time is over.
#[derive(Debug)]
pub(super) struct PendingManagement {
    itt: Itt,
    response: u8,
    owed: Vec<Itt>,
    pub(super) until: Instant,
}

/// Responses (RFC 7143 11.6.1).
mod response {
    pub(super) const COMPLETE: u8 = 0;
    pub(super) const NO_TASK: u8 = 1;
    pub(super) const NO_LUN: u8 = 2;
    pub(super) const NO_REASSIGN: u8 = 4;
    pub(super) const NOT_SUPPORTED: u8 = 5;
}

impl Connection {
    pub(super) fn on_task_management(
        &mut self,
        shared: &mut Shared,
        now: Instant,
        pdu: &TaskManagementRequest,
    ) {
        let Some(session) = self.session else { return };
        let mut owed = Vec::new();
        let response = match pdu.function {
            1 => self.abort_task(shared, now, pdu),
            // ABORT TASK SET is about our tasks, CLEAR TASK SET and LOGICAL UNIT RESET about all.
            2 | 4 | 5 => match shared.unit_of(session, pdu.lun) {
                None => response::NO_LUN,
                Some(unit) => {
                    owed = self.abort_unit(shared, Some(unit));
                    if pdu.function != 2 {
                        shared.abort_elsewhere(self.id, unit);
                    }
                    if pdu.function == 4 {
                        // COMMANDS CLEARED BY ANOTHER INITIATOR
                        let nexus = shared.sessions[session].nexus.clone();
                        shared.units[unit].unit_attention(0x2f, 0x00, Some(&nexus));
                    }
                    if pdu.function == 5 {
                        shared.units[unit].reset();
                    }
                    response::COMPLETE
                }
            },
            6 => {
                owed = self.abort_unit(shared, None);
                for unit in shared.units_of(session) {
                    shared.abort_elsewhere(self.id, unit);
                    shared.units[unit].reset();
                }
                response::COMPLETE
            }
            8 => response::NO_REASSIGN,
            // CLEAR ACA: NACA is not offered. TARGET COLD RESET would end every session of every
            // initiator. 9 and up are RFC 7144's, which the negotiated protocol level does not include.
            _ => response::NOT_SUPPORTED,
        };
        if owed.is_empty() || self.pending_management.len() >= PENDING_MAX {
            self.respond(pdu.itt, response);
        } else {
            self.pending_management.push(PendingManagement {
                itt: pdu.itt,
                response,
                owed,
                until: now + shared.settings.abort_wait,
            });
        }
    }

    fn respond(&mut self, itt: Itt, response: u8) {
        self.queue(Pdu::TaskManagementResponse(TaskManagementResponse {
            response,
            itt,
            sn: TargetSn::default(),
        }));
    }

    /// Answers task management requests whose data has ended or whose time is over.
    pub(super) fn answer_management(&mut self, now: Instant) {
        let mut at = 0;
        while at < self.pending_management.len() {
            let pending = &self.pending_management[at];
            let waits = pending
                .owed
                .iter()
                .any(|owed| self.aborted.iter().any(|(itt, _)| itt == owed));
            if waits && now < pending.until {
                at += 1;
            } else {
                let pending = self.pending_management.remove(at);
                self.respond(pending.itt, pending.response);
            }
        }
    }

    /// RFC 7143 11.6.1: a task that is alive is aborted; a command that was never received, but may still
    /// come, counts as received from now on; anything else does not exist.
    fn abort_task(&mut self, shared: &mut Shared, now: Instant, pdu: &TaskManagementRequest) -> u8 {
        let Some(session) = self.session else {
            return response::NO_TASK;
        };
        if let Some(&task) = self.by_itt.get(&pdu.referenced_task) {
            if self.tasks[task].lun != pdu.lun {
                return response::NO_TASK;
            }
            self.abort(shared, task);
            return response::COMPLETE;
        }
        let window = &mut shared.sessions[session].window;
        if !pdu.ref_cmd_sn.is_before(pdu.cmd_sn) {
            return response::NO_TASK;
        }
        match window.arrival(pdu.ref_cmd_sn) {
            Arrival::Ignored => response::NO_TASK,
            Arrival::Early => {
                window.keep(pdu.ref_cmd_sn, EarlyCommand::Plug);
                response::COMPLETE
            }
            Arrival::Now => {
                self.advance(shared, now);
                response::COMPLETE
            }
        }
    }

    /// Aborts the tasks of one logical unit, or all. Gives the tags whose data is still owed.
    pub(super) fn abort_unit(&mut self, shared: &mut Shared, unit: Option<usize>) -> Vec<Itt> {
        let tasks: Vec<usize> = self
            .tasks
            .iter()
            .filter(|(_, task)| unit.is_none() || task.unit == unit)
            .map(|(key, _)| key)
            .collect();
        let mut owed = Vec::new();
        for task in tasks {
            // Aborting one task may have let another one go on, but never ends it.
            let itt = self.tasks[task].itt;
            if self.abort(shared, task) {
                owed.push(itt);
            }
        }
        owed
    }

    /// Ends a task without an answer. Says whether the initiator still owes data for it.
    fn abort(&mut self, shared: &mut Shared, task: usize) -> bool {
        self.counters.aborted_tasks += 1;
        if !self.tasks[task].delivered
            && let Some(session) = self.session
        {
            shared.sessions[session].window.replace_early(
                |early| matches!(early, EarlyCommand::Task(early) if *early == task),
                EarlyCommand::Plug,
            );
        }
        if let Some(at) = self.answers.iter().position(|answer| *answer == task) {
            self.answers.remove(at);
            self.answer_bytes -= self.tasks[task].unsent_bytes();
        }
        self.held.retain(|held| held.task != task);
        self.withdraw_paced(shared, task);
        self.waiting_writes.retain(|write| *write != task);
        let mut task = self.remove_task(shared, task);
        let Some(mut data) = task.data.take() else {
            return false;
        };
        data.withdraw(self.drop_r2ts(task.itt));
        let owed = data.is_owed();
        if owed {
            self.keep_aborted(task.itt, data);
        }
        owed
    }

    pub(super) fn on_logout(&mut self, shared: &mut Shared, pdu: &LogoutRequest) {
        let own = self
            .session
            .is_some_and(|session| shared.sessions[session].cid == pdu.cid);
        let (response, over) = match pdu.reason {
            0 => (0, true),
            1 if own => (0, true),
            1 => (1, false),
            // Recovery by logout needs error recovery level 2.
            _ => (2, false),
        };
        if over {
            self.drop_tasks(shared);
        }
        self.queue(Pdu::LogoutResponse(LogoutResponse {
            response,
            itt: pdu.itt,
            sn: TargetSn::default(),
            time2wait_s: self.rules.time2wait_s,
            time2retain_s: self.rules.time2retain_s,
        }));
        if over {
            self.logout_until = None;
            self.close(shared, CloseReason::Logout);
        }
    }

    /// Something another connection or the operator wants.
    pub(super) fn obey(&mut self, shared: &mut Shared, order: Order) {
        match order {
            Order::Close(reason) => {
                self.control.clear();
                self.close(shared, reason);
            }
            // The driver asks for the time after every order.
            Order::LookAtTheClock => {}
            Order::AbortUnit(unit) => {
                if matches!(self.phase, Phase::Full) {
                    self.abort_unit(shared, Some(unit));
                }
            }
        }
    }
}

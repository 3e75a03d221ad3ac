//! Commands that must end early, and task management (RFC 7143 4.2.3, 11.5, 11.6).
//!
//! ```text
//! deadline, abort() ──> ABORT TASK ── 0, 1 ─────────────> Aborted: nothing of it comes later
//!                          │ refused, or no answer within abort_timeout
//!                          v
//!                  LOGICAL UNIT RESET ── 0 ─────────────> Aborted, with all that the LUN had of ours
//!                          │ refused, no answer within logical_unit_reset_timeout, or switched off
//!                          v
//!                  Closed(Failed): the reinstatement ends what the target still has
//! ```
//!
//! A reset is sent once for all commands of a LUN whose aborts failed or still wait for their turn.

use std::time::Instant;

use berth_iobuf::SendQueue;

use super::api::{AbortCause, Event, Scope, TaskManagement, TaskManagementOutcome, TaskOutcome};
use super::connection::{Control, Phase};
use super::table::{Entry, ManagementRequest, PendingTaskManagement};
use super::task::{Sent, Task};
use super::{Session, after};
use crate::error::{Error, Misbehaviour, Misuse, RejectReason, Waiting};
use crate::pdu::{Opcode, TaskManagementRequest, TaskManagementResponse};
use crate::types::{CmdSn, Itt, Lun};

/// ABORT TASK (RFC 7143 11.5.1).
const ABORT_TASK: u8 = 1;
/// TMF response: done (RFC 7143 11.6.1).
const FUNCTION_COMPLETE: u8 = 0;
/// TMF response: the task is not there (any more).
const TASK_DOES_NOT_EXIST: u8 = 1;
/// Aborts without an answer that are remembered, for the answer may still come; a target that leaves
/// more of them open does not do task management.
const UNANSWERED_MAX: usize = 8;

impl Session {
    /// Aborts a command. One that was not sent ends at once; for a running one ABORT TASK is sent and
    /// [`Event::TaskDone`] tells how it ended: with its own answer, should that come first.
    ///
    /// Looks through all commands, so it is for rare use.
    ///
    /// # Errors
    /// If there is no such command, or the session is past the point where an abort can be sent.
    pub fn abort(&mut self, now: Instant, tag: u64) -> Result<(), Misuse> {
        if matches!(
            self.connection.phase,
            Phase::InLogout { .. } | Phase::Closed
        ) {
            return Err(Misuse::Closed);
        }
        let found = self.table.iter().find_map(|(itt, entry)| match entry {
            Entry::Scsi(task) if task.command.tag == tag => Some(itt),
            _ => None,
        });
        let Some(itt) = found else {
            return Err(Misuse::Command(
                format!("no command with tag {tag} is queued or running").into(),
            ));
        };
        self.end_early(now, itt, AbortCause::Requested);
        Ok(())
    }

    /// Sends a task management request; the answer comes as [`Event::TaskManagementDone`] with
    /// `tag`. Success ends this session's tasks that it reaches.
    ///
    /// # Errors
    /// If the session is logging out or over, or too many requests wait.
    pub fn task_management(
        &mut self,
        tag: u64,
        function: TaskManagement,
        lun: Lun,
    ) -> Result<(), Misuse> {
        self.must_be_logged_in()?;
        let limit = self.options.control_queue_max;
        if self.connection.management.len() >= limit.max(self.running) {
            return Err(Misuse::QueueFull { limit });
        }
        self.connection
            .management
            .push_back(ManagementRequest::User { tag, function, lun });
        Ok(())
    }

    /// Ends a command before it is done: at once if it was not sent.
    pub(super) fn end_early(&mut self, now: Instant, itt: Itt, cause: AbortCause) {
        let fast = self.options.fast_abort;
        let Some(task) = self.table.task_mut(itt) else {
            return;
        };
        if task.sent.is_none() {
            // Bounded by the queue, and rare.
            self.queue.retain(|queued| *queued != itt);
            self.urgent.retain(|queued| *queued != itt);
            self.finish_task(itt, TaskOutcome::Aborted { cause, sent: false });
            return;
        }
        if task.abort.is_none() {
            let under_way = task.refused.is_some();
            task.abort = Some(cause);
            if !under_way {
                if fast {
                    task.silence();
                }
                self.queue_abort(now, itt);
            }
        }
    }

    /// Asks for ABORT TASK; its answer ends the task.
    pub(super) fn queue_abort(&mut self, now: Instant, itt: Itt) {
        let until = after(now, self.options.abort_timeout);
        if let Some(task) = self.table.task_mut(itt) {
            task.abort_until = Some(until);
            self.note_deadline(until);
            self.connection
                .management
                .push_back(ManagementRequest::Abort { task: itt });
        }
    }

    /// ABORT TASK for this task was refused, or not answered in time: a reset of its LUN is next, or the
    /// end of the session.
    pub(super) fn on_abort_failed(
        &mut self,
        now: Instant,
        itt: Itt,
        why: Error,
    ) -> Result<(), Error> {
        self.counters.failed_aborts += 1;
        self.give_up_abort(itt)?;
        let lun_reset = self.options.lun_reset;
        let Some(task) = self.table.task_mut(itt) else {
            return Ok(());
        };
        // A refused command has left a hole in the numbering, and no reset fills it.
        if !lun_reset || task.refused.is_some() {
            return Err(why);
        }
        task.abort_until = None;
        task.escalated = true;
        let lun = task.command.lun;
        tracing::warn!(itt = itt.0, %lun, error = %why, "abort failed, the LUN is reset");
        self.reset_unit(now, lun, why)
    }

    /// The abort of this task is not waited for any more; its answer may come all the same.
    fn give_up_abort(&mut self, aborted: Itt) -> Result<(), Error> {
        self.connection.management.retain(
            |request| !matches!(request, ManagementRequest::Abort { task } if *task == aborted),
        );
        let mut unanswered = 0;
        let mut given_up = None;
        for (tag, entry) in self.table.iter() {
            if let Entry::TaskManagement(pending) = entry
                && let ManagementRequest::Abort { task } = pending.request
            {
                unanswered += usize::from(!pending.counted);
                if task == aborted && pending.counted {
                    given_up = Some(tag);
                }
            }
        }
        if let Some(tag) = given_up
            && let Some(Entry::TaskManagement(pending)) = self.table.get_mut(tag)
        {
            pending.counted = false;
            self.connection.management_in_flight -= 1;
            if unanswered >= UNANSWERED_MAX {
                return Err(Error::TimedOut(Waiting::Abort(aborted)));
            }
        }
        Ok(())
    }

    /// Asks for LOGICAL UNIT RESET, unless one is under way that everything of this LUN waits for.
    fn reset_unit(&mut self, now: Instant, lun: Lun, why: Error) -> Result<(), Error> {
        // Aborts that wait for their turn would wait for the same unit.
        let table = &mut self.table;
        self.connection.management.retain(|request| {
            let ManagementRequest::Abort { task } = *request else {
                return true;
            };
            let Some(task) = table
                .task_mut(task)
                .filter(|task| task.command.lun == lun && task.refused.is_none())
            else {
                return true;
            };
            task.abort_until = None;
            task.escalated = true;
            false
        });
        let under_way = self.table.iter().any(|(_, entry)| {
            matches!(entry, Entry::TaskManagement(pending)
                if matches!(pending.request, ManagementRequest::Reset { lun: other } if other == lun))
        });
        if under_way {
            return Ok(());
        }
        let until = after(now, self.options.logical_unit_reset_timeout);
        let pending = PendingTaskManagement {
            request: ManagementRequest::Reset { lun },
            send_order: 0,
            until: Some(until),
            counted: false,
        };
        let Some(itt) = self.table.insert(Entry::TaskManagement(pending)) else {
            return Err(why);
        };
        self.note_deadline(until);
        // Ahead of requests that wait: they may wait for the same unit.
        self.connection
            .control
            .push_front(Control::TaskManagement { itt });
        Ok(())
    }

    /// Moves waiting task management requests to the wire queue, a few at a time.
    pub(super) fn start_task_management(&mut self, now: Instant) {
        if self.connection.management.is_empty()
            || matches!(self.connection.phase, Phase::InLogout { .. })
        {
            return;
        }
        while self.connection.management_in_flight < self.options.task_management_in_flight_max {
            let Some(request) = self.connection.management.pop_front() else {
                return;
            };
            let until = match request {
                ManagementRequest::Abort { task } if self.table.task_mut(task).is_none() => {
                    continue;
                }
                ManagementRequest::Abort { .. } => None,
                ManagementRequest::Reset { .. } | ManagementRequest::User { .. } => {
                    Some(after(now, self.options.task_management_timeout))
                }
            };
            let pending = PendingTaskManagement {
                request,
                send_order: 0,
                until,
                counted: true,
            };
            let Some(itt) = self.table.insert(Entry::TaskManagement(pending)) else {
                self.connection.management.push_front(request);
                return;
            };
            self.connection.management_in_flight += 1;
            self.connection
                .control
                .push_back(Control::TaskManagement { itt });
            if let Some(until) = until {
                self.note_deadline(until);
            }
        }
    }

    pub(super) fn emit_task_management(&mut self, itt: Itt, out: &mut SendQueue) {
        let Some(Entry::TaskManagement(pending)) = self.table.get_mut(itt) else {
            return;
        };
        pending.send_order = self.sent_count;
        let (request, counted) = (pending.request, pending.counted);
        let cmd_sn = self.window.current();
        let no_task = (Itt::NONE, CmdSn(0));
        let (function, lun, (referenced_task, ref_cmd_sn)) = match request {
            ManagementRequest::Abort { task: aborted } => {
                let Some(task) = self.table.task_mut(aborted).filter(|_| counted) else {
                    // It ended while the request waited, or a reset has taken over.
                    self.end_task_management(itt);
                    return;
                };
                self.counters.aborts += 1;
                let ref_cmd_sn = match task.sent {
                    Some(sent) if !task.command.immediate => sent.cmd_sn,
                    // RFC 7143 11.5.5: for an immediate task, the CmdSN of the request itself.
                    _ => cmd_sn,
                };
                (ABORT_TASK, task.command.lun, (aborted, ref_cmd_sn))
            }
            ManagementRequest::Reset { lun } => {
                if !self.has_escalated(lun) {
                    // All of them ended meanwhile: others' commands on the unit shall live.
                    self.end_task_management(itt);
                    return;
                }
                self.counters.logical_unit_resets += 1;
                self.silence_reached(Scope::LogicalUnit, lun);
                (TaskManagement::LogicalUnitReset.code(), lun, no_task)
            }
            ManagementRequest::User { function, lun, .. } => {
                let lun = match function {
                    TaskManagement::TargetWarmReset => Lun::default(),
                    _ => lun,
                };
                if let Some(scope) = function.ends_tasks() {
                    self.silence_reached(scope, lun);
                }
                (function.code(), lun, no_task)
            }
        };
        let pdu = TaskManagementRequest {
            immediate: true,
            function,
            lun,
            itt,
            referenced_task,
            cmd_sn,
            exp_stat_sn: self.connection.exp_stat_sn,
            ref_cmd_sn,
            exp_data_sn: 0,
        };
        pdu.emit(out, self.connection.digests);
    }

    fn has_escalated(&self, lun: Lun) -> bool {
        self.table.iter().any(
            |(_, entry)| matches!(entry, Entry::Scsi(task) if task.escalated && task.command.lun == lun),
        )
    }

    /// With FastAbort the data of all tasks that a function reaches stops (RFC 7143 4.2.3.4).
    fn silence_reached(&mut self, scope: Scope, lun: Lun) {
        if !self.options.fast_abort {
            return;
        }
        for itt in self.reached(scope, lun, self.sent_count) {
            if let Some(task) = self.table.task_mut(itt) {
                task.silence();
            }
        }
    }

    /// Takes a task management request out of the table.
    fn end_task_management(&mut self, itt: Itt) -> Option<PendingTaskManagement> {
        let Some(Entry::TaskManagement(pending)) = self.table.get(itt) else {
            return None;
        };
        let pending = *pending;
        self.table.remove(itt);
        if pending.counted {
            self.connection.management_in_flight -= 1;
        }
        Some(pending)
    }

    pub(super) fn on_task_management_response(
        &mut self,
        now: Instant,
        pdu: &TaskManagementResponse,
    ) -> Result<(), Error> {
        if !self.take_numbers(&pdu.sn, pdu.itt)? {
            return Ok(());
        }
        let outcome = TaskManagementOutcome::Response(pdu.response);
        self.on_task_management_outcome(now, pdu.itt, outcome)
            .unwrap_or(Err(Error::TargetMisbehaved(Misbehaviour::UnknownTask {
                opcode: Opcode::TaskManagementResponse as u8,
                itt: pdu.itt,
            })))
    }

    /// A task management request has its answer, or was refused. `None`: there is no such request.
    pub(super) fn on_task_management_outcome(
        &mut self,
        now: Instant,
        itt: Itt,
        outcome: TaskManagementOutcome,
    ) -> Option<Result<(), Error>> {
        let pending = self.end_task_management(itt)?;
        Some(match pending.request {
            ManagementRequest::Abort { task } => self.on_abort_outcome(now, task, outcome),
            ManagementRequest::Reset { lun } => {
                self.on_reset_outcome(now, lun, pending.send_order, outcome)
            }
            ManagementRequest::User { tag, function, lun } => {
                let ended = match function.ends_tasks() {
                    Some(scope) if outcome.is_complete() => self.finish_reached(
                        AbortCause::TaskManagement(function),
                        scope,
                        lun,
                        pending.send_order,
                    ),
                    _ => Ok(()),
                };
                self.push_event(Event::TaskManagementDone {
                    tag,
                    function,
                    outcome,
                });
                ended
            }
        })
    }

    fn on_abort_outcome(
        &mut self,
        now: Instant,
        itt: Itt,
        outcome: TaskManagementOutcome,
    ) -> Result<(), Error> {
        let Some(task) = self.table.task_mut(itt) else {
            // Its own answer came first; that is what counts.
            return Ok(());
        };
        match outcome {
            TaskManagementOutcome::Response(FUNCTION_COMPLETE | TASK_DOES_NOT_EXIST) => {}
            // A reset is under way for it already.
            _ if task.escalated => return Ok(()),
            TaskManagementOutcome::Response(code) => {
                return self.on_abort_failed(now, itt, refused_function("ABORT TASK", code));
            }
            TaskManagementOutcome::Rejected(reason) => {
                return self.on_abort_failed(now, itt, Error::Rejected(RejectReason(reason)));
            }
        }
        let (sent, immediate) = (task.sent, task.command.immediate);
        let outcome = match (task.refused, task.abort) {
            (Some(reason), _) => TaskOutcome::Rejected { reason },
            (None, cause) => TaskOutcome::Aborted {
                cause: cause.unwrap_or(AbortCause::Requested),
                sent: true,
            },
        };
        self.no_hole(sent.filter(|_| !immediate))?;
        self.finish_task(itt, outcome);
        Ok(())
    }

    fn on_reset_outcome(
        &mut self,
        now: Instant,
        lun: Lun,
        send_order: u64,
        outcome: TaskManagementOutcome,
    ) -> Result<(), Error> {
        match outcome {
            TaskManagementOutcome::Response(FUNCTION_COMPLETE) => {}
            TaskManagementOutcome::Response(code) => {
                return Err(refused_function("LOGICAL UNIT RESET", code));
            }
            TaskManagementOutcome::Rejected(reason) => {
                return Err(Error::Rejected(RejectReason(reason)));
            }
        }
        let cause = AbortCause::TaskManagement(TaskManagement::LogicalUnitReset);
        self.finish_reached(cause, Scope::LogicalUnit, lun, send_order)?;
        if self.has_escalated(lun) {
            // Sent behind the reset, and overdue before its answer: that takes another one.
            return self.reset_unit(now, lun, Error::TimedOut(Waiting::LogicalUnitReset(lun)));
        }
        Ok(())
    }

    /// A target that still waits for the very command that it says is over would wait for ever, and
    /// everything behind that command with it (RFC 7143 11.6.1: the number counts as received).
    fn no_hole(&self, sent: Option<Sent>) -> Result<(), Error> {
        match sent {
            Some(sent) if self.window.waits_for(sent.cmd_sn) => {
                Err(Error::TargetMisbehaved(Misbehaviour::Exchange(
                    format!(
                        "CmdSN {:#x} was aborted and the target still waits for it",
                        sent.cmd_sn.0
                    )
                    .into(),
                )))
            }
            _ => Ok(()),
        }
    }

    /// Tasks that a function reaches: those sent before it; oldest first.
    fn reached(&self, scope: Scope, lun: Lun, send_order: u64) -> Vec<Itt> {
        let mut reached: Vec<(u64, Itt)> = self
            .table
            .iter()
            .filter_map(|(itt, entry)| match entry {
                Entry::Scsi(task) if scope == Scope::Target || task.command.lun == lun => task
                    .sent
                    .filter(|sent| sent.order < send_order)
                    .map(|sent| (sent.order, itt)),
                _ => None,
            })
            .collect();
        reached.sort_unstable_by_key(|(order, _)| *order);
        reached.into_iter().map(|(_, itt)| itt).collect()
    }

    /// A task management function succeeded: what it reaches is over, and gets no answer of its own
    /// (RFC 7143 4.2.3). A refused command never was there; the abort that fills its number ends it.
    fn finish_reached(
        &mut self,
        cause: AbortCause,
        scope: Scope,
        lun: Lun,
        send_order: u64,
    ) -> Result<(), Error> {
        for itt in self.reached(scope, lun, send_order) {
            let Some(task) = self.table.task_mut(itt).filter(|t| t.refused.is_none()) else {
                continue;
            };
            let (sent, immediate) = (task.sent, task.command.immediate);
            let cause = task.abort.unwrap_or(cause);
            self.no_hole(sent.filter(|_| !immediate))?;
            self.finish_task(itt, TaskOutcome::Aborted { cause, sent: true });
        }
        Ok(())
    }

    /// The target takes commands no more and said so for this one (RFC 7143 11.9.1, event 1; reject 0c): it
    /// was not executed. It belongs to the next session.
    pub(super) fn put_back(&mut self, itt: Itt, reason: u8) {
        if let Some(task) = self.table.task_mut(itt)
            && !task.put_back
        {
            task.put_back = true;
            task.refused = Some(reason);
            task.silence();
            self.put_back += 1;
        }
    }
}

fn refused_function(function: &str, code: u8) -> Error {
    Error::TargetMisbehaved(Misbehaviour::Exchange(
        format!("{function} was answered with response {code}").into(),
    ))
}

impl Task {
    /// When something has to be done about it; `None` while others have to act.
    pub(super) fn due(&self) -> Option<Instant> {
        if self.put_back {
            None
        } else if self.abort.is_some() || self.refused.is_some() {
            self.abort_until
        } else {
            self.command.deadline
        }
    }
}

//! What the user and the clock want besides commands: aborts, task management, pings, text, logout.

use std::time::Instant;

use super::api::{AbortCause, CloseReason, LogoutCause, Scope, TaskManagement, TaskOutcome};
use super::connection::{Control, Phase};
use super::table::{Entry, ManagementRequest};
use super::{Session, after};
use crate::error::{Error, Misbehaviour, Misuse, Waiting};
use crate::types::{Itt, Lun, Ttt};

impl Session {
    /// Aborts a command. One that was not sent ends at once; for a running one ABORT TASK is sent and
    /// [`super::Event::TaskDone`] tells how it ended: with its own answer, should that come first.
    ///
    /// Looks through all commands, so it is for rare use.
    ///
    /// # Errors
    /// If there is no such command, or the session is past the point where an abort can be sent.
    pub fn abort(&mut self, tag: u64) -> Result<(), Misuse> {
        if matches!(
            self.connection.phase,
            Phase::InLogout { .. } | Phase::Closed
        ) {
            return Err(Misuse::Closed);
        }
        let found = self.table.iter().find_map(|(itt, entry)| match entry {
            Entry::Scsi(task) if task.command.tag == tag => Some((itt, task.sent.is_some())),
            _ => None,
        });
        let Some((itt, sent)) = found else {
            return Err(Misuse::Command(
                format!("no command with tag {tag} is queued or running").into(),
            ));
        };
        self.end_early(itt, sent, AbortCause::Requested);
        Ok(())
    }

    /// Sends a task management request; the answer comes as [`super::Event::TaskManagementDone`] with
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

    /// Pings the target unless a ping is under way; the answer comes as [`super::Event::Pong`].
    ///
    /// # Errors
    /// If the session is logging out or over.
    pub fn ping(&mut self, now: Instant) -> Result<(), Misuse> {
        self.must_be_logged_in()?;
        self.queue_ping(now);
        Ok(())
    }

    /// Sends a Text Request, such as `SendTargets=All` with its ending NUL; the answer comes as
    /// [`super::Event::TextDone`].
    ///
    /// # Errors
    /// If another one is under way, it is longer than the target takes in one PDU, or the session is
    /// logging out or over.
    pub fn text(&mut self, now: Instant, data: Vec<u8>) -> Result<(), Misuse> {
        self.must_be_logged_in()?;
        if self.connection.text.is_some() {
            return Err(Misuse::Command(
                "a text exchange is under way; one at a time (RFC 7143 11.10)".into(),
            ));
        }
        let max = self.connection.target_recv_max_bytes;
        if data.len() > max as usize {
            return Err(Misuse::Command(
                format!(
                    "a text request of {} bytes; the target takes {max}",
                    data.len()
                )
                .into(),
            ));
        }
        let until = after(now, self.options.text_timeout);
        let entry = Entry::Text {
            answer: Vec::new(),
            until,
        };
        let itt = self.table.insert(entry).ok_or_else(|| self.full())?;
        self.connection.text = Some(itt);
        self.note_deadline(until);
        self.connection.control.push_back(Control::Text {
            itt,
            ttt: Ttt::NONE,
            lun: Lun::default(),
            data,
        });
        Ok(())
    }

    /// Ends the session: takes no more commands, lets those that were submitted end (up to
    /// [`super::SessionOptions::drain_timeout`]), logs out and closes. Calling it again, or on a session
    /// that is over, changes nothing.
    pub fn logout(&mut self, now: Instant) {
        if self.connection.phase == Phase::LoggedIn {
            self.connection.phase = Phase::Draining {
                cause: LogoutCause::User,
                until: after(now, self.options.drain_timeout),
            };
        }
    }

    /// Does what is due at `now`; see [`Session::poll_timeout`]. Read what the socket has before: what
    /// has arrived counts, even when we look late.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.connection.phase == Phase::Closed {
            return;
        }
        if self.deadline_floor.is_some_and(|floor| floor <= now) {
            self.check_deadlines(now);
        }
        match self.connection.phase {
            Phase::Draining { cause, until } if until <= now => self.queue_logout(now, cause),
            Phase::InLogout { cause, until } if until <= now => {
                self.close(CloseReason::LoggedOut {
                    cause,
                    response: None,
                    time2wait_s: self.login.negotiated.time2wait_s,
                });
            }
            _ => {}
        }
        if self.ping_due().is_some_and(|due| due <= now) {
            if self.connection.ping.is_some() {
                self.fail(Error::TimedOut(Waiting::Ping));
            } else {
                self.queue_ping(now);
            }
        }
    }

    /// Looks at every deadline, and finds the next.
    fn check_deadlines(&mut self, now: Instant) {
        let in_logout = matches!(self.connection.phase, Phase::InLogout { .. });
        let mut next: Option<Instant> = None;
        let mut overdue = Vec::new();
        let mut late = None;
        for (itt, entry) in self.table.iter() {
            let due = match entry {
                // Once it is being aborted, or we leave, other deadlines count.
                Entry::Scsi(task) if task.abort.is_some() || task.refused.is_some() => None,
                Entry::Scsi(_) if in_logout => None,
                Entry::Scsi(task) => task.command.deadline,
                Entry::TaskManagement(pending) => Some(pending.until),
                Entry::Text { until, .. } => Some(*until),
                Entry::Ping { .. } | Entry::Logout => None,
            };
            let Some(due) = due else { continue };
            if due > now {
                next = Some(next.map_or(due, |next| next.min(due)));
                continue;
            }
            match entry {
                Entry::Scsi(task) => overdue.push((itt, task.sent.is_some())),
                Entry::TaskManagement(_) => late = Some(Waiting::TaskManagement),
                Entry::Text { .. } => late = Some(Waiting::Text),
                Entry::Ping { .. } | Entry::Logout => {}
            }
        }
        self.deadline_floor = next;
        for (itt, sent) in overdue {
            self.counters.overdue += 1;
            self.end_early(itt, sent, AbortCause::Deadline);
        }
        if let Some(waiting) = late {
            self.fail(Error::TimedOut(waiting));
        }
    }

    fn must_be_logged_in(&self) -> Result<(), Misuse> {
        match self.connection.phase {
            Phase::LoggedIn => Ok(()),
            Phase::Draining { .. } | Phase::InLogout { .. } | Phase::Closed => Err(Misuse::Closed),
        }
    }

    fn end_early(&mut self, itt: Itt, sent: bool, cause: AbortCause) {
        if !sent {
            // Bounded by the queue, and rare.
            self.queue.retain(|queued| *queued != itt);
            self.urgent.retain(|queued| *queued != itt);
            self.finish_task(itt, TaskOutcome::Aborted { cause, sent });
            return;
        }
        let Some(task) = self.table.task_mut(itt) else {
            return;
        };
        if task.abort.is_none() {
            let abort_queued = task.refused.is_some();
            task.abort = Some(cause);
            if !abort_queued {
                self.queue_abort(itt);
            }
        }
    }

    /// Asks for ABORT TASK; its answer ends the task.
    pub(super) fn queue_abort(&mut self, itt: Itt) {
        self.connection
            .management
            .push_back(ManagementRequest::Abort { task: itt });
    }

    /// ABORT TASK succeeded.
    pub(super) fn finish_aborted(&mut self, itt: Itt) {
        let Some(task) = self.table.task_mut(itt) else {
            return;
        };
        let outcome = match (task.refused, task.abort) {
            (Some(reason), _) => TaskOutcome::Rejected { reason },
            (None, cause) => TaskOutcome::Aborted {
                cause: cause.unwrap_or(AbortCause::Requested),
                sent: true,
            },
        };
        self.finish_task(itt, outcome);
    }

    /// A task management function succeeded: what it reaches is over, and gets no answer of its own
    /// (RFC 7143 4.2.3). That is what was sent before the request.
    pub(super) fn finish_reached(
        &mut self,
        function: TaskManagement,
        scope: Scope,
        lun: Lun,
        send_order: u64,
    ) {
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
        for (_, itt) in reached {
            let outcome = TaskOutcome::Aborted {
                cause: AbortCause::TaskManagement(function),
                sent: true,
            };
            self.finish_task(itt, outcome);
        }
    }

    pub(super) fn push_control(&mut self, control: Control) -> Result<(), Error> {
        let limit = self.options.control_queue_max;
        if self.connection.control.len() >= limit {
            return Err(Error::TargetMisbehaved(Misbehaviour::TooMany {
                what: "requests of the target that wait for our answer to be read",
                limit,
            }));
        }
        self.connection.control.push_back(control);
        Ok(())
    }

    /// When the next ping is due, or when the one under way has waited too long. Any byte received
    /// since counts as life.
    pub(super) fn ping_due(&self) -> Option<Instant> {
        let interval = self.options.ping_interval?;
        if self.discovery
            || matches!(
                self.connection.phase,
                Phase::InLogout { .. } | Phase::Closed
            )
        {
            // Targets need not answer pings in a discovery session (RFC 7143 4.3).
            return None;
        }
        let last = self.connection.last_received;
        Some(match self.connection.ping {
            Some((_, sent_at)) => after(sent_at.max(last), self.options.ping_timeout),
            None => after(last, interval),
        })
    }

    fn queue_ping(&mut self, now: Instant) {
        if self.connection.ping.is_some() {
            return;
        }
        let Some(itt) = self.table.insert(Entry::Ping { sent_at: now }) else {
            return;
        };
        self.connection.ping = Some((itt, now));
        self.connection.control.push_back(Control::Ping { itt });
    }

    /// The last task of a draining session is done: log out.
    pub(super) fn start_logout_when_drained(&mut self, now: Instant) {
        let Phase::Draining { cause, .. } = self.connection.phase else {
            return;
        };
        let waits = cause == LogoutCause::User && self.queued() > 0;
        if self.running == 0 && !waits && self.connection.text.is_none() {
            self.queue_logout(now, cause);
        }
    }

    fn queue_logout(&mut self, now: Instant, cause: LogoutCause) {
        let until = after(now, self.options.logout_timeout);
        self.connection.phase = Phase::InLogout { cause, until };
        // Nothing else leaves any more (RFC 7143 11.14).
        self.connection.control.clear();
        self.connection.management.clear();
        match self.table.insert(Entry::Logout) {
            Some(itt) => self.connection.control.push_back(Control::Logout { itt }),
            // Slots are reserved for this; if they are gone all the same, leave without the courtesy.
            None => self.close(CloseReason::LoggedOut {
                cause,
                response: None,
                time2wait_s: self.login.negotiated.time2wait_s,
            }),
        }
    }
}

//! What the user and the clock want besides commands: pings, text, logout, deadlines.

use std::time::Instant;

use super::api::{AbortCause, CloseReason, LogoutCause};
use super::connection::{Control, Phase};
use super::table::{Entry, ManagementRequest};
use super::task::Task;
use super::{Session, after};
use crate::error::{Error, Misbehaviour, Misuse, Waiting};
use crate::types::{Lun, Ttt};

impl Session {
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
        if self.deadline_floor.is_some_and(|floor| floor <= now)
            && let Err(error) = self.check_deadlines(now)
        {
            self.fail(error);
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
    fn check_deadlines(&mut self, now: Instant) -> Result<(), Error> {
        self.deadline_floor = None;
        if matches!(self.connection.phase, Phase::InLogout { .. }) {
            // Nothing can be asked any more; the deadline of the logout counts.
            return Ok(());
        }
        let mut next: Option<Instant> = None;
        let mut overdue = Vec::new();
        let mut late = None;
        for (itt, entry) in self.table.iter() {
            let due = match entry {
                Entry::Scsi(task) => task.due(),
                Entry::TaskManagement(pending) => pending.until,
                Entry::Text { until, .. } => Some(*until),
                Entry::Ping { .. } | Entry::Logout => None,
            };
            let Some(due) = due else { continue };
            if due > now {
                next = Some(next.map_or(due, |next| next.min(due)));
                continue;
            }
            match entry {
                Entry::Scsi(task) => {
                    // In the order of the wire; what was not sent comes last.
                    let order = task.sent.map_or(u64::MAX, |sent| sent.order);
                    overdue.push((order, itt, task.abort_until.is_some()));
                }
                Entry::TaskManagement(pending) => {
                    late = Some(match pending.request {
                        ManagementRequest::Reset { lun } => Waiting::LogicalUnitReset(lun),
                        _ => Waiting::TaskManagement,
                    });
                }
                Entry::Text { .. } => late = Some(Waiting::Text),
                Entry::Ping { .. } | Entry::Logout => {}
            }
        }
        self.deadline_floor = next;
        if let Some(waiting) = late {
            return Err(Error::TimedOut(waiting));
        }
        overdue.sort_by_key(|(order, ..)| *order);
        for (_, itt, aborting) in overdue {
            if aborting {
                // One that failed takes those with it that wait for the same unit.
                let still = |task: &mut Task| task.abort_until.is_some_and(|until| until <= now);
                if self.table.task_mut(itt).is_some_and(still) {
                    self.on_abort_failed(now, itt, Error::TimedOut(Waiting::Abort(itt)))?;
                }
            } else {
                self.counters.overdue += 1;
                self.end_early(now, itt, AbortCause::Deadline);
            }
        }
        Ok(())
    }

    pub(super) fn must_be_logged_in(&self) -> Result<(), Misuse> {
        match self.connection.phase {
            Phase::LoggedIn => Ok(()),
            Phase::Draining { .. } | Phase::InLogout { .. } | Phase::Closed => Err(Misuse::Closed),
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
    /// since counts as life. A command window that stays closed is asked about however much is received:
    /// the NOP-In that opens it may have been forgotten (RFC 7143 4.2.2.1).
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
            None => {
                let since = self.closed_since.map_or(last, |closed| closed.min(last));
                after(since, interval)
            }
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
        if let Some(closed_since) = &mut self.closed_since {
            *closed_since = now;
        }
        self.connection.control.push_back(Control::Ping { itt });
    }

    /// The last task of a draining session is done: log out.
    pub(super) fn start_logout_when_drained(&mut self, now: Instant) {
        let Phase::Draining { cause, .. } = self.connection.phase else {
            return;
        };
        let waits = cause == LogoutCause::User && self.queued() > 0;
        if self.running == self.put_back && !waits && self.connection.text.is_none() {
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

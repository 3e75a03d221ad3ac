//! The initiator's session, sans-I/O: SCSI commands in, PDUs out; PDUs in, outcomes out.
//!
//! ```text
//! submit ─> queue ─> [command window] ─> command PDU (+ immediate, unsolicited data) ─┐
//! R2T ──────────────────────────────────> Data-Out, round robin among the tasks ──────┼─> poll_transmit
//! ping replies, task management, logout ─> ahead of both ─────────────────────────────┘
//! handle_input ─> PDU ─> numbers (window, StatSN) ─> task by ITT ─> Event ─> poll_event
//! ```
//!
//! Whoever owns the socket and the clock calls [`Session::handle_input`] after it read something,
//! [`Session::handle_timeout`] at [`Session::poll_timeout`], then fetches events and finally lets
//! [`Session::poll_transmit`] build what is to be sent. Nothing here blocks, and time is an argument.
//!
//! Error recovery level 0 with one connection: whatever breaks the numbering or the format ends the
//! session with [`Event::Closed`], and [`Session::take_unfinished`] hands back the commands without an
//! outcome, in order. Not implemented, because no target in use negotiates them: SNACK and TASK
//! REASSIGN (levels 1 and 2), further connections (MC/S), negotiated FastAbort, bidirectional commands and CDBs
//! longer than 16 bytes.

mod api;
mod connection;
mod control;
mod counters;
mod depth;
mod gather;
mod management;
mod options;
mod receive;
mod recovery;
mod table;
mod task;
mod transmit;
mod window;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

pub use api::{
    AbortCause, AsyncEvent, CloseReason, Command, Event, LogoutCause, TaskManagement,
    TaskManagementOutcome, TaskOutcome, Transfer,
};
pub use counters::Counters;
pub use depth::{QueueDepth, QueueDepthOptions};
pub use options::SessionOptions;
pub use recovery::Unfinished;

use connection::{Connection, Phase};
use table::{Entry, Table};
use task::{Limits, Task};
use window::Window;

use crate::error::{Error, Misuse};
use crate::login::{Negotiated, Outcome, SessionKind};
use crate::pdu::{Decoder, Digests};
use crate::types::Itt;

/// Slots of the table beyond the user's tasks, for pings, task management, text and logout.
const CONTROL_SLOTS: usize = 64;
/// Tags have 16 bits for the slot, and control requests need some.
const TASKS_MAX: usize = 32_768;

/// One iSCSI session in full feature phase, as its initiator. See the [module page](self).
#[derive(Debug)]
pub struct Session {
    login: Outcome,
    discovery: bool,
    options: SessionOptions,
    counters: Counters,
    limits: Limits,
    window: Window,
    connection: Connection,
    table: Table,
    /// Commands that wait for the command window, in the order of submission.
    queue: VecDeque<Itt>,
    /// Immediate commands that wait to be sent; the window does not hold them.
    urgent: VecDeque<Itt>,
    /// The task whose unsolicited data is being sent. It precedes the next command: targets expect the
    /// unsolicited data of several commands in the order of the commands.
    unsolicited: Option<Itt>,
    /// Tasks with solicited data to send; stale tags are skipped.
    data_queue: VecDeque<Itt>,
    /// Tasks that were sent and have no outcome.
    running: usize,
    /// Transfer bytes of all tasks.
    task_bytes: u64,
    sent_count: u64,
    /// No deadline of a task or request is earlier; found out by looking only when it is reached, so
    /// that a deadline per command costs nothing.
    deadline_floor: Option<Instant>,
    events: VecDeque<Event>,
    /// Events in the queue that are not task ends.
    other_events: usize,
    /// Commands wait for the window since then, or since it was last asked about.
    closed_since: Option<Instant>,
    /// Tasks that are handed back when the session is over; they count as running.
    put_back: usize,
    /// Bytes built for the connection so far, and where the present send queue begins in them.
    emitted_bytes: u64,
    emit_base: u64,
    /// Of these, the last ones that never reached the socket; known when it is gone.
    unwritten_bytes: u64,
}

impl Session {
    /// The session that begins with the end of a `login` for `kind`, at `now`.
    #[must_use]
    pub fn new(
        login: Outcome,
        kind: &SessionKind,
        mut options: SessionOptions,
        now: Instant,
    ) -> Self {
        // Bounds of 0 would be a session that never sends, and more requests than control slots one
        // that cannot ping.
        options.transmit_queue_bytes = options.transmit_queue_bytes.max(1);
        options.task_management_in_flight_max = options
            .task_management_in_flight_max
            .clamp(1, CONTROL_SLOTS / 2);
        let negotiated = &login.negotiated;
        let digests = Digests {
            header: negotiated.header_digest,
            data: negotiated.data_digest,
        };
        let decoder = Decoder::new(digests, negotiated.max_recv_data_segment_bytes);
        // A segment that is not the last of its sequence has a multiple of four bytes (RFC 7143 11.7.7).
        let target_recv_max_bytes = (negotiated.peer_max_recv_data_segment_bytes & !3).max(512);
        let own_max = u32::try_from(options.data_out_max_bytes).unwrap_or(u32::MAX) & !3;
        let connection = Connection {
            cid: login.cid,
            phase: Phase::LoggedIn,
            decoder,
            digests,
            exp_stat_sn: login.exp_stat_sn,
            data_out_max_bytes: target_recv_max_bytes.min(own_max).max(512),
            target_recv_max_bytes,
            control: VecDeque::new(),
            management: VecDeque::new(),
            management_in_flight: 0,
            last_received: now,
            ping: None,
            text: None,
        };
        Self {
            limits: Limits {
                max_burst_bytes: negotiated.max_burst_bytes,
                outstanding_r2ts: usize::from(negotiated.max_outstanding_r2t),
            },
            window: Window::new(login.cmd_sn, login.max_cmd_sn),
            connection,
            table: Table::new(options.tasks_max.min(TASKS_MAX) + CONTROL_SLOTS),
            queue: VecDeque::new(),
            urgent: VecDeque::new(),
            unsolicited: None,
            data_queue: VecDeque::new(),
            running: 0,
            task_bytes: 0,
            sent_count: 0,
            deadline_floor: None,
            events: VecDeque::new(),
            other_events: 0,
            closed_since: None,
            put_back: 0,
            emitted_bytes: 0,
            emit_base: 0,
            unwritten_bytes: 0,
            counters: Counters::default(),
            discovery: *kind == SessionKind::Discovery,
            login,
            options,
        }
    }

    /// Queues a command. It is sent when the command window lets it, in the order of submission.
    ///
    /// # Errors
    /// When the session is over or logging out, holds as many commands as it may, or the command is
    /// one that cannot be sent. The command is not queued then.
    pub fn submit(&mut self, command: Command) -> Result<(), Misuse> {
        match self.connection.phase {
            Phase::LoggedIn => {}
            Phase::Draining { .. } | Phase::InLogout { .. } | Phase::Closed => {
                return Err(Misuse::Closed);
            }
        }
        if self.discovery {
            return Err(Misuse::Command(
                "a discovery session carries no SCSI commands".into(),
            ));
        }
        let len = match &command.transfer {
            Transfer::None => 0,
            Transfer::Read { len_bytes } => *len_bytes,
            Transfer::Write(payload) => u32::try_from(payload.len()).map_err(|_| {
                Misuse::Command("a command carries at most 4294967295 bytes".into())
            })?,
        };
        if self.queue.len() + self.urgent.len() + self.running >= self.tasks_max()
            || self.task_bytes + u64::from(len) > self.options.task_bytes_max
        {
            return Err(self.full());
        }
        let (deadline, immediate) = (command.deadline, command.immediate);
        let Some(itt) = self.table.insert(Entry::Scsi(Task::new(command, len))) else {
            return Err(self.full());
        };
        self.task_bytes += u64::from(len);
        if immediate {
            self.urgent.push_back(itt);
        } else {
            self.queue.push_back(itt);
        }
        if let Some(deadline) = deadline {
            self.note_deadline(deadline);
        }
        Ok(())
    }

    fn tasks_max(&self) -> usize {
        self.options.tasks_max.min(TASKS_MAX)
    }

    fn full(&self) -> Misuse {
        Misuse::QueueFull {
            limit: self.tasks_max(),
        }
    }

    /// The next event. Task ends come in the order in which the target answered.
    pub fn poll_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        if !matches!(event, Event::TaskDone { .. }) {
            self.other_events -= 1;
        }
        Some(event)
    }

    /// Whether [`Session::poll_event`] has something.
    #[must_use]
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// When [`Session::handle_timeout`] wants to be called. It may move with every call; a timer that
    /// fires early does no harm, so it need not be set again when it moves away.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        [
            self.deadline_floor,
            self.connection.phase.until(),
            self.ping_due(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// What login agreed on.
    #[must_use]
    pub fn negotiated(&self) -> &Negotiated {
        &self.login.negotiated
    }

    /// The login that this session began with: its ISID and TSIH, and who proved what.
    #[must_use]
    pub fn login(&self) -> &Outcome {
        &self.login
    }

    /// What was counted so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What the decoder counted: PDUs and digests.
    #[must_use]
    pub fn decoder_counters(&self) -> crate::pdu::Counters {
        self.connection.decoder.counters()
    }

    /// Commands that were sent and have no outcome yet.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running
    }

    /// Commands that wait to be sent.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queue.len() + self.urgent.len()
    }

    /// How many commands the target would take now without making them wait.
    #[must_use]
    pub fn window_room(&self) -> u32 {
        self.window.room()
    }

    /// Whether the session is over: [`Event::Closed`] was queued.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.connection.phase == Phase::Closed
    }

    fn note_deadline(&mut self, deadline: Instant) {
        if self.deadline_floor.is_none_or(|floor| deadline < floor) {
            self.deadline_floor = Some(deadline);
        }
    }

    fn push_task_done(&mut self, tag: u64, outcome: TaskOutcome) {
        self.events.push_back(Event::TaskDone { tag, outcome });
    }

    /// Queues an event that the user must get.
    fn push_event(&mut self, event: Event) {
        self.other_events += 1;
        self.events.push_back(event);
    }

    /// Queues an event that a target can cause at will; bounded.
    fn push_report(&mut self, event: Event) {
        if self.other_events >= self.options.events_max {
            self.counters.async_dropped += 1;
        } else {
            self.push_event(event);
        }
    }

    /// Takes a task out of the table and tells how it ended.
    fn finish_task(&mut self, itt: Itt, outcome: TaskOutcome) {
        let Some(Entry::Scsi(task)) = self.table.remove(itt) else {
            debug_assert!(false, "only live tasks are finished");
            return;
        };
        if task.sent.is_some() {
            self.running -= 1;
        }
        self.task_bytes -= u64::from(task.expected_bytes);
        if self.unsolicited == Some(itt) {
            self.unsolicited = None;
        }
        self.push_task_done(task.command.tag, outcome);
    }

    fn close(&mut self, reason: CloseReason) {
        if self.connection.phase == Phase::Closed {
            return;
        }
        self.connection.phase = Phase::Closed;
        self.connection.control.clear();
        self.connection.management.clear();
        self.deadline_floor = None;
        self.push_event(Event::Closed(reason));
    }

    /// Ends the session and gives the error back, for `?`.
    fn fail(&mut self, error: Error) -> Error {
        self.close(CloseReason::Failed(error.clone()));
        error
    }
}

/// `now` plus a time from the options, which may be as long as one likes.
fn after(now: Instant, time: Duration) -> Instant {
    /// A century or so: never.
    const NEVER: Duration = Duration::from_secs(1 << 32);
    now.checked_add(time.min(NEVER)).unwrap_or(now)
}

//! One connection of the target role, sans-I/O.
//!
//! ```text
//!            login succeeded            Logout answered, fault, protocol error,
//!            (final response)           session reinstated, stopped
//! Login ───────────────────────> Full ─────────────────────────────> Closing ──> removed by the driver
//!   └───────── login failed, login timer ──────────────────────────────┘
//! ```
//!
//! Input is taken one PDU at a time. What is to be sent waits as tasks and small control PDUs and gets
//! its numbers only when [`Connection::poll_transmit`] builds it, so StatSN and MaxCmdSN are always those
//! of the moment, and an aborted task simply is not sent.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use berth_iobuf::{Payload, ReceiveBuffer};
use slab::Slab;

use super::counters::Counters;
use super::faults::{FaultPlan, LoginFault};
use super::login::LoginPhase;
use super::management::PendingManagement;
use super::paced::Paced;
use super::portal::{Link, Shared};
use super::session::{EarlyCommand, SessionKind};
use super::task::{ReadRules, Task};
use super::text::TextExchange;
use super::window::Arrival;
use super::write::{DataError, DataOutViolation, WriteData, WriteRules};
use crate::error::{DigestError, Error};
use crate::pdu::{
    AsyncMessage, Bhs, Decoder, Digests, Frame, LogoutRequest, NopIn, NopOut, Pdu, R2t, Reject,
    TaskManagementRequest, TextRequest,
};
use crate::types::{CmdSn, Itt, Lun, StatSn, TargetSn, Ttt};

/// Bytes of answers that may wait before no more input is taken.
const ANSWER_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Control PDUs that may wait before no more input is taken.
const CONTROL_PDUS_MAX: usize = 256;
/// Tasks that were aborted while the initiator still owed data; older ones are forgotten.
pub(super) const ABORTED_KEPT_MAX: usize = 256;

/// Names a connection of a [`super::Portal`]; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub(super) u64);

/// Why a connection of the target ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// The initiator logged out.
    #[error("logged out")]
    Logout,
    /// The login was refused with this status.
    #[error("login refused with status {class:02x}{detail:02x}")]
    LoginRefused {
        /// Status class.
        class: u8,
        /// Status detail.
        detail: u8,
    },
    /// The login did not finish in time.
    #[error("login not finished in time")]
    LoginTimeout,
    /// The same initiator port logged in again (RFC 7143 6.3.5).
    #[error("session reinstated by a newer login")]
    Reinstated,
    /// A header digest was wrong: where the next PDU starts is not known (RFC 7143 7.8).
    #[error("header digest wrong")]
    HeaderDigest,
    /// A PDU that cannot be right.
    #[error("{0}")]
    Malformed(String),
    /// A PDU that breaks the protocol.
    #[error("protocol error: {0}")]
    Protocol(&'static str),
    /// Data-Out out of order.
    #[error("{0}")]
    DataOut(DataOutViolation),
    /// A ping was not answered in time.
    #[error("ping not answered in time")]
    PingTimeout,
    /// The initiator was asked to log out and did not (RFC 7143 11.9.1, event 1).
    #[error("did not log out in time")]
    LogoutTimeout,
    /// A fault switch says so.
    #[error("cut by a fault switch")]
    Fault,
    /// The operator or the driver ends it.
    #[error("stopped")]
    Stopped,
}

#[derive(Debug)]
pub(super) enum Phase {
    Login(Box<LoginPhase>),
    Full,
    Closing(CloseReason),
}

/// What was negotiated, as far as the full feature phase needs it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub(super) write: WriteRules,
    pub(super) read: ReadRules,
    pub(super) digests: Digests,
    pub(super) time2wait_s: u16,
    pub(super) time2retain_s: u16,
}

/// A control PDU that waits to be sent.
#[derive(Debug)]
pub(super) enum Queued {
    /// Numbers are filled in when it is sent; the answer of a request consumes a StatSN.
    Pdu(Box<Pdu>),
    /// An R2T of this task.
    R2t { itt: Itt, pdu: R2t },
    /// The login is over after this response: digests start with the next PDU.
    LastLogin(Box<Pdu>),
    /// Bytes of a fault.
    Raw(Vec<u8>),
}

/// A task that a fault switch holds back.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) task: usize,
    /// `None`: until it is released.
    pub(super) until: Option<Instant>,
    /// The data to execute with; without it only the answer is held.
    pub(super) execute: Option<Result<Payload, DataError>>,
}

/// A ping of ours that was not answered yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ping {
    pub(super) ttt: Ttt,
    pub(super) until: Instant,
}

/// See the [module page](self).
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: ConnectionId,
    /// Address that the initiator connected to, as it is reported in discovery.
    pub(super) local: String,
    pub(super) group: u16,
    pub(super) phase: Phase,
    pub(super) decoder: Decoder,
    pub(super) session: Option<usize>,
    pub(super) rules: Rules,
    pub(super) stat_sn: StatSn,
    /// ExpCmdSN and MaxCmdSN while there is no session: before the login ends, and after it ended.
    pub(super) last_window: (CmdSn, CmdSn),
    /// Digests of what is sent; those of what is received are the decoder's.
    pub(super) send_digests: Digests,
    pub(super) tasks: Slab<Task>,
    pub(super) by_itt: HashMap<Itt, usize>,
    pub(super) immediate_tasks: usize,
    /// Finished tasks in the order in which they are answered.
    pub(super) answers: VecDeque<usize>,
    pub(super) answer_bytes: usize,
    /// Goes between the PDUs of `answers`.
    pub(super) control: VecDeque<Queued>,
    /// Writes that wait for room in the write buffer before their first R2T.
    pub(super) waiting_writes: VecDeque<usize>,
    pub(super) reserved_bytes: u64,
    pub(super) held: Vec<Held>,
    /// Commands that wait for the limits of their unit.
    pub(super) paced: VecDeque<Paced>,
    /// Aborted tasks whose data is still coming, oldest first.
    pub(super) aborted: VecDeque<(Itt, Box<WriteData>)>,
    pub(super) pending_management: Vec<PendingManagement>,
    pub(super) text: Option<TextExchange>,
    pub(super) next_ttt: u32,
    pub(super) ping: Option<Ping>,
    pub(super) last_received: Instant,
    pub(super) logout_until: Option<Instant>,
    pub(super) faults: Option<Box<FaultPlan>>,
    /// A fault of the link ends the connection: what is still to be sent is not.
    pub(super) cut: bool,
    pub(super) sent_bytes: u64,
    pub(super) received_bytes: u64,
    pub(super) counters: Box<Counters>,
}

impl Connection {
    /// A connection of which nothing has arrived.
    pub(super) fn new(
        shared: &Shared,
        id: ConnectionId,
        local: &str,
        group: u16,
        plan: FaultPlan,
        now: Instant,
    ) -> Self {
        let phase = Phase::Login(Box::new(LoginPhase::new(
            shared,
            group,
            plan.login.as_ref(),
            now,
        )));
        Self {
            id,
            local: local.to_owned(),
            group,
            phase,
            decoder: Decoder::default(),
            session: None,
            rules: Rules::before_login(),
            stat_sn: StatSn(0),
            last_window: (CmdSn(0), CmdSn(0)),
            send_digests: Digests::NONE,
            tasks: Slab::new(),
            by_itt: HashMap::new(),
            immediate_tasks: 0,
            answers: VecDeque::new(),
            answer_bytes: 0,
            control: VecDeque::new(),
            waiting_writes: VecDeque::new(),
            reserved_bytes: 0,
            held: Vec::new(),
            paced: VecDeque::new(),
            aborted: VecDeque::new(),
            pending_management: Vec::new(),
            text: None,
            next_ttt: 1,
            ping: None,
            last_received: now,
            logout_until: None,
            faults: (!plan.is_empty()).then(|| Box::new(plan)),
            cut: false,
            sent_bytes: 0,
            received_bytes: 0,
            counters: Box::default(),
        }
    }

    /// Whether more input can be taken.
    pub(super) fn wants_input(&self) -> bool {
        !matches!(self.phase, Phase::Closing(_))
            && self.answer_bytes < ANSWER_BYTES_MAX
            && self.control.len() < CONTROL_PDUS_MAX
    }

    /// Takes at most one PDU from `rx`. Says whether there may be more.
    pub(super) fn handle_one(
        &mut self,
        shared: &mut Shared,
        now: Instant,
        rx: &mut ReceiveBuffer,
    ) -> bool {
        if !self.wants_input() {
            return false;
        }
        let (frame, intact) = match self.decoder.next(rx) {
            Ok(Some(frame)) => (frame, true),
            Ok(None) => return false,
            Err(Error::Digest(DigestError::Data { .. })) => match self.decoder.take_damaged() {
                Some(frame) => (frame, false),
                None => return true,
            },
            Err(error) => {
                let reason = match error {
                    Error::Digest(_) => CloseReason::HeaderDigest,
                    other => CloseReason::Malformed(other.to_string()),
                };
                self.close(shared, reason);
                return false;
            }
        };
        self.last_received = now;
        self.counters.received[usize::from(frame.bhs.opcode_byte() & 0x3f)] += 1;
        if let Phase::Login(_) = self.phase {
            self.on_login_frame(shared, frame);
        } else if intact {
            self.on_frame(shared, now, frame);
        } else {
            self.on_damaged(shared, now, frame);
        }
        true
    }

    /// A PDU whose data digest was wrong (RFC 7143 7.8). A request counts as never received. A Data-Out
    /// keeps its place in the order, so that its task can end after all its data.
    fn on_damaged(&mut self, shared: &mut Shared, now: Instant, frame: Frame) {
        let header = frame.bhs;
        let len = header.data_len_bytes() as u32;
        self.counters.data_digest_errors += 1;
        self.reject(reject::DATA_DIGEST, &header);
        match Pdu::parse(frame) {
            Ok(Pdu::DataOut(pdu)) => {
                self.on_data_out(shared, now, pdu, len, false);
            }
            Ok(Pdu::ScsiCommand(pdu)) if !pdu.final_ => self.expect_orphans(&pdu),
            _ => {}
        }
    }

    fn on_frame(&mut self, shared: &mut Shared, now: Instant, frame: Frame) {
        let header = frame.bhs;
        let len = frame.data.len() as u32;
        let pdu = match Pdu::parse(frame) {
            Ok(pdu) => pdu,
            Err(error) => {
                if header.opcode().is_some() {
                    self.reject(reject::INVALID_FIELD, &header);
                    self.close(shared, CloseReason::Malformed(error.to_string()));
                } else {
                    self.reject(reject::NOT_SUPPORTED, &header);
                }
                return;
            }
        };
        if let Some(session) = self.session
            && shared.sessions[session].kind == SessionKind::Discovery
            && !matches!(
                pdu,
                Pdu::TextRequest(_) | Pdu::LogoutRequest(_) | Pdu::NopOut(_)
            )
        {
            self.reject(reject::PROTOCOL, &header);
            return;
        }
        match pdu {
            Pdu::ScsiCommand(pdu) => self.on_scsi_command(shared, now, pdu, &header),
            Pdu::DataOut(pdu) => {
                if !self.on_data_out(shared, now, pdu, len, true) {
                    self.reject(reject::PROTOCOL, &header);
                }
            }
            Pdu::NopOut(ref nop) if nop.itt.is_none() => self.on_pong(nop),
            Pdu::NopOut(NopOut {
                immediate, cmd_sn, ..
            })
            | Pdu::TaskManagementRequest(TaskManagementRequest {
                immediate, cmd_sn, ..
            })
            | Pdu::TextRequest(TextRequest {
                immediate, cmd_sn, ..
            })
            | Pdu::LogoutRequest(LogoutRequest {
                immediate, cmd_sn, ..
            }) => self.on_ordered(shared, now, immediate, cmd_sn, pdu, &header),
            Pdu::Snack(_) => self.reject(reject::NOT_SUPPORTED, &header),
            Pdu::LoginRequest(_) => {
                self.reject(reject::PROTOCOL, &header);
                self.close(
                    shared,
                    CloseReason::Protocol("Login Request in full feature phase"),
                );
            }
            _ => {
                self.reject(reject::PROTOCOL, &header);
                self.close(
                    shared,
                    CloseReason::Protocol("a target's PDU from an initiator"),
                );
            }
        }
    }

    /// A request other than a SCSI command, in its place of the CmdSN order.
    fn on_ordered(
        &mut self,
        shared: &mut Shared,
        now: Instant,
        immediate: bool,
        cmd_sn: CmdSn,
        pdu: Pdu,
        header: &Bhs,
    ) {
        if immediate {
            self.process(shared, now, pdu, header);
            return;
        }
        let Some(session) = self.session else { return };
        match shared.sessions[session].window.arrival(cmd_sn) {
            Arrival::Ignored => self.counters.ignored_commands += 1,
            Arrival::Early => shared.sessions[session]
                .window
                .keep(cmd_sn, EarlyCommand::Pdu(Box::new((pdu, *header)))),
            Arrival::Now => {
                self.process(shared, now, pdu, header);
                self.advance(shared, now);
            }
        }
    }

    /// The command that was next has been delivered: go on with those that came early.
    pub(super) fn advance(&mut self, shared: &mut Shared, now: Instant) {
        while let Some(session) = self.session {
            match shared.sessions[session].window.advance() {
                None => break,
                Some(EarlyCommand::Plug) => {}
                Some(EarlyCommand::Task(task)) => self.deliver(shared, now, task),
                Some(EarlyCommand::Pdu(early)) => {
                    let (pdu, header) = *early;
                    self.process(shared, now, pdu, &header);
                }
            }
        }
    }

    fn process(&mut self, shared: &mut Shared, now: Instant, pdu: Pdu, header: &Bhs) {
        match pdu {
            Pdu::NopOut(pdu) => self.on_ping(pdu),
            Pdu::TaskManagementRequest(pdu) => self.on_task_management(shared, now, &pdu),
            Pdu::TextRequest(pdu) => self.on_text(shared, &pdu, header),
            Pdu::LogoutRequest(pdu) => self.on_logout(shared, &pdu),
            _ => debug_assert!(false, "only ordered requests other than commands come here"),
        }
    }

    /// RFC 7143 11.18: echo, cut to what the initiator can receive.
    fn on_ping(&mut self, pdu: NopOut) {
        let len = pdu.data.len().min(self.rules.read.segment_bytes_max);
        let data = if len == pdu.data.len() {
            pdu.data
        } else {
            pdu.data.slice(0, len)
        };
        self.queue(Pdu::NopIn(NopIn {
            lun: Lun::default(),
            itt: pdu.itt,
            ttt: Ttt::NONE,
            sn: TargetSn::default(),
            data,
        }));
    }

    /// The answer to a ping of ours, or a bare acknowledgement.
    fn on_pong(&mut self, pdu: &NopOut) {
        if self.ping.is_some_and(|ping| ping.ttt == pdu.ttt) {
            self.ping = None;
            self.counters.pings_answered += 1;
        } else if !pdu.ttt.is_none() {
            self.counters.stray_pongs += 1;
        }
    }

    /// Pings the initiator; without an answer within `within` the connection is closed.
    pub(super) fn send_ping(&mut self, now: Instant, within: Duration) {
        if self.ping.is_some() || !matches!(self.phase, Phase::Full) {
            return;
        }
        let ttt = self.take_ttt();
        self.ping = Some(Ping {
            ttt,
            until: now + within,
        });
        self.counters.pings_sent += 1;
        self.queue(Pdu::NopIn(NopIn {
            lun: Lun::default(),
            itt: Itt::NONE,
            ttt,
            sn: TargetSn::default(),
            data: Payload::new(),
        }));
    }

    /// NOP-In without tags: only numbers (RFC 7143 11.19).
    pub(super) fn send_numbers(&mut self) {
        self.queue(Pdu::NopIn(NopIn {
            lun: Lun::default(),
            itt: Itt::NONE,
            ttt: Ttt::NONE,
            sn: TargetSn::default(),
            data: Payload::new(),
        }));
    }

    pub(super) fn send_async(&mut self, message: AsyncMessage) {
        if matches!(self.phase, Phase::Full) {
            self.queue(Pdu::AsyncMessage(message));
        }
    }

    pub(super) fn queue(&mut self, pdu: Pdu) {
        self.control.push_back(Queued::Pdu(Box::new(pdu)));
    }

    /// Queues a Reject with the header of the refused PDU (RFC 7143 11.17).
    pub(super) fn reject(&mut self, reason: u8, header: &Bhs) {
        self.counters.rejects += 1;
        self.queue(Pdu::Reject(Reject {
            reason,
            sn: TargetSn::default(),
            data_sn: 0,
            data: Payload::from(header.0.to_vec()),
        }));
    }

    pub(super) fn take_ttt(&mut self) -> Ttt {
        let ttt = Ttt(self.next_ttt);
        self.next_ttt = self.next_ttt.wrapping_add(1);
        if self.next_ttt == Ttt::NONE.0 {
            self.next_ttt = 0;
        }
        ttt
    }

    /// Ends the connection; at error recovery level 0 its session ends with it.
    pub(super) fn close(&mut self, shared: &mut Shared, reason: CloseReason) {
        if matches!(self.phase, Phase::Closing(_)) {
            return;
        }
        tracing::debug!(connection = self.id.0, %reason, "target closes a connection");
        self.phase = Phase::Closing(reason);
        self.drop_tasks(shared);
        // A reinstated session belongs to its new connection already.
        if let Some(session) = self.session.take()
            && shared
                .sessions
                .get(session)
                .is_some_and(|s| s.connection == self.id)
        {
            let window = &shared.sessions[session].window;
            self.last_window = (window.exp(), window.max());
            shared.end_session(session);
        }
    }

    /// Forgets all tasks without an answer.
    pub(super) fn drop_tasks(&mut self, shared: &mut Shared) {
        self.forget_paced(shared);
        self.tasks.clear();
        self.by_itt.clear();
        self.answers.clear();
        self.answer_bytes = 0;
        self.waiting_writes.clear();
        self.reserved_bytes = 0;
        self.immediate_tasks = 0;
        self.held.clear();
        self.control
            .retain(|queued| !matches!(queued, Queued::R2t { .. }));
    }

    /// When [`Connection::handle_timeout`] wants to be called.
    pub(super) fn poll_timeout(&self, shared: &Shared) -> Option<Instant> {
        let login = match &self.phase {
            Phase::Login(login) => Some(login.until),
            Phase::Full => None,
            Phase::Closing(_) => return None,
        };
        let next_ping = match (&self.phase, shared.settings.ping_interval, &self.ping) {
            (Phase::Full, Some(interval), None) => Some(self.last_received + interval),
            _ => None,
        };
        login
            .into_iter()
            .chain(self.ping.map(|ping| ping.until))
            .chain(next_ping)
            .chain(self.logout_until)
            .chain(self.held.iter().filter_map(|held| held.until))
            .chain(self.paced_due(shared))
            .chain(self.pending_management.iter().map(|pending| pending.until))
            .min()
    }

    /// Does what is due.
    pub(super) fn handle_timeout(&mut self, shared: &mut Shared, now: Instant) {
        match &self.phase {
            Phase::Login(login) if login.until <= now => {
                return self.close(shared, CloseReason::LoginTimeout);
            }
            Phase::Login(_) | Phase::Closing(_) => return,
            Phase::Full => {}
        }
        if self.ping.is_some_and(|ping| ping.until <= now) {
            return self.close(shared, CloseReason::PingTimeout);
        }
        if self.logout_until.is_some_and(|until| until <= now) {
            return self.close(shared, CloseReason::LogoutTimeout);
        }
        if let Some(interval) = shared.settings.ping_interval
            && self.last_received + interval <= now
        {
            self.send_ping(now, shared.settings.ping_timeout);
        }
        self.release_held(shared, now, |held| {
            held.until.is_some_and(|until| until <= now)
        });
        self.release_paced(shared, now);
        self.answer_management(now);
    }

    /// What fault switches let the driver do with the socket.
    pub(super) fn link(&self) -> Link {
        let Some(plan) = &self.faults else {
            return Link {
                read: true,
                write_bytes_max: usize::MAX,
                cut: false,
            };
        };
        let mut write_bytes_max = match plan.link.write_bytes_max {
            0 => usize::MAX,
            max => max,
        };
        if let Some(cut) = plan.link.cut_after_sent_bytes {
            let left = cut.saturating_sub(self.sent_bytes);
            write_bytes_max = write_bytes_max.min(usize::try_from(left).unwrap_or(usize::MAX));
        }
        if plan.link.stop_writing {
            write_bytes_max = 0;
        }
        Link {
            read: !plan.link.stop_reading,
            write_bytes_max,
            cut: self.cut,
        }
    }

    /// Counts bytes on the wire; the fault switches of the link act on them.
    pub(super) fn on_moved(&mut self, shared: &mut Shared, received: u64, sent: u64) {
        self.received_bytes += received;
        self.sent_bytes += sent;
        self.counters.wire_received_bytes += received;
        self.counters.wire_sent_bytes += sent;
        let Some(plan) = &self.faults else { return };
        let reached = |limit: Option<u64>, count| limit.is_some_and(|limit| count >= limit);
        if reached(plan.link.cut_after_sent_bytes, self.sent_bytes)
            || reached(plan.link.cut_after_received_bytes, self.received_bytes)
        {
            self.control.clear();
            self.cut = true;
            self.close(shared, CloseReason::Fault);
        }
    }

    /// The login fault of this connection, if any.
    pub(super) fn login_fault(&self) -> Option<&LoginFault> {
        self.faults.as_ref()?.login.as_ref()
    }
}

/// Reasons of a Reject (RFC 7143 11.17.1).
pub(super) mod reject {
    pub(in crate::target) const DATA_DIGEST: u8 = 0x02;
    pub(in crate::target) const PROTOCOL: u8 = 0x04;
    pub(in crate::target) const NOT_SUPPORTED: u8 = 0x05;
    pub(in crate::target) const TOO_MANY_IMMEDIATE: u8 = 0x06;
    pub(in crate::target) const TASK_IN_PROGRESS: u8 = 0x07;
    pub(in crate::target) const INVALID_FIELD: u8 = 0x09;
    pub(in crate::target) const WAITING_FOR_LOGOUT: u8 = 0x0c;
}

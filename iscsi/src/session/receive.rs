//! What the target sends (RFC 7143 4.2.2, 11).

use std::time::{Duration, Instant};

use berth_iobuf::ReceiveBuffer;
use bytes::Bytes;

use super::Session;
use super::api::{AsyncEvent, CloseReason, Event, LogoutCause, TaskManagementOutcome, TaskOutcome};
use super::connection::{Control, Phase, StatSnCheck};
use super::table::Entry;
use crate::error::{Error, Misbehaviour, RejectReason};
use crate::pdu::{
    AsyncMessage, DataIn, LogoutResponse, NopIn, Opcode, Pdu, R2t, Reject, ScsiResponse,
    TextResponse,
};
use crate::scsi::{Code, Sense};
use crate::types::{Itt, StatSn, TargetSn};

impl Session {
    /// Takes in what was received: parses every whole PDU in `input` and acts on it. To be called
    /// whenever bytes came, even if they complete no PDU, for any byte is a sign of life.
    ///
    /// # Errors
    /// What ended the session; [`Event::Closed`] says the same. Once it is closed further input is
    /// dropped without error.
    pub fn handle_input(&mut self, now: Instant, input: &mut ReceiveBuffer) -> Result<(), Error> {
        self.connection.last_received = now;
        while self.connection.phase != Phase::Closed {
            let pdu = match self.connection.decoder.next(input) {
                Ok(None) => return Ok(()),
                Ok(Some(frame)) => Pdu::parse(frame),
                // At ERL 0 a damaged PDU is not asked for again (RFC 7143 7.8).
                Err(error) => Err(error),
            };
            if let Err(error) = pdu.and_then(|pdu| self.handle_pdu(now, pdu)) {
                return Err(self.fail(error));
            }
        }
        let len = input.len();
        input.skip(len);
        Ok(())
    }

    /// The socket gave an end of file or an error. After a Logout was sent that is a fair way to end.
    pub fn handle_lost(&mut self, kind: std::io::ErrorKind) {
        match self.connection.phase {
            Phase::InLogout { cause, .. } => self.close(CloseReason::LoggedOut {
                cause,
                response: None,
                time2wait_s: self.login.negotiated.time2wait_s,
            }),
            Phase::LoggedIn | Phase::Draining { .. } => {
                self.fail(Error::Lost(kind));
            }
            Phase::Closed => {}
        }
    }

    fn handle_pdu(&mut self, now: Instant, pdu: Pdu) -> Result<(), Error> {
        match pdu {
            Pdu::DataIn(pdu) => self.on_data_in(pdu),
            Pdu::ScsiResponse(pdu) => self.on_scsi_response(&pdu),
            Pdu::R2t(pdu) => self.on_r2t(&pdu),
            Pdu::NopIn(pdu) => self.on_nop_in(now, &pdu),
            Pdu::TaskManagementResponse(pdu) => self.on_task_management_response(now, &pdu),
            Pdu::TextResponse(pdu) => self.on_text_response(&pdu),
            Pdu::LogoutResponse(pdu) => self.on_logout_response(&pdu),
            Pdu::AsyncMessage(pdu) => self.on_async_message(now, &pdu),
            Pdu::Reject(pdu) => self.on_reject(now, &pdu),
            Pdu::LoginResponse(_) => Err(unexpected(Opcode::LoginResponse)),
            Pdu::NopOut(_) => Err(unexpected(Opcode::NopOut)),
            Pdu::ScsiCommand(_) => Err(unexpected(Opcode::ScsiCommand)),
            Pdu::TaskManagementRequest(_) => Err(unexpected(Opcode::TaskManagementRequest)),
            Pdu::LoginRequest(_) => Err(unexpected(Opcode::LoginRequest)),
            Pdu::TextRequest(_) => Err(unexpected(Opcode::TextRequest)),
            Pdu::DataOut(_) => Err(unexpected(Opcode::DataOut)),
            Pdu::LogoutRequest(_) => Err(unexpected(Opcode::LogoutRequest)),
            Pdu::Snack(_) => Err(unexpected(Opcode::Snack)),
        }
    }

    /// The window, from every PDU of the target (RFC 7143 4.2.2.1).
    fn take_window(&mut self, sn: &TargetSn) -> Result<(), Error> {
        self.window.update(sn).map_err(|_| {
            Error::TargetMisbehaved(Misbehaviour::Exchange(
                format!(
                    "ExpCmdSN {:#x} acknowledges commands that were never sent, the next is {:#x}",
                    sn.exp_cmd_sn.0,
                    self.window.current().0
                )
                .into(),
            ))
        })
    }

    /// The numbers of a PDU that consumes a StatSN. Returns whether the PDU counts.
    ///
    /// An old StatSN is a duplicate, and ignored; but if it claims to answer something that is still
    /// open, ignoring it would leave that open for ever, so the sequence is broken.
    pub(super) fn take_numbers(&mut self, sn: &TargetSn, itt: Itt) -> Result<bool, Error> {
        self.take_window(sn)?;
        match self.connection.take_stat_sn(sn.stat_sn)? {
            StatSnCheck::Next => Ok(true),
            StatSnCheck::Duplicate if self.table.get(itt).is_some() => {
                Err(stat_sn_gap(self.connection.exp_stat_sn, sn.stat_sn))
            }
            StatSnCheck::Duplicate => {
                self.counters.duplicates += 1;
                Ok(false)
            }
        }
    }

    fn on_data_in(&mut self, pdu: DataIn) -> Result<(), Error> {
        let itt = pdu.itt;
        if pdu.status.is_some() {
            if !self.take_numbers(&pdu.sn, itt)? {
                return Ok(());
            }
        } else {
            self.take_window(&pdu.sn)?;
        }
        self.counters.data_in_pdus += 1;
        self.counters.read_bytes += pdu.data.len() as u64;
        let task = self
            .table
            .task_mut(itt)
            .filter(|task| task.is_with_target())
            .ok_or_else(|| unknown(Opcode::DataIn, itt))?;
        if let Some(outcome) = task.on_data_in(itt, pdu)? {
            self.answered(itt, outcome);
        }
        Ok(())
    }

    fn on_scsi_response(&mut self, pdu: &ScsiResponse) -> Result<(), Error> {
        let itt = pdu.itt;
        if !self.take_numbers(&pdu.sn, itt)? {
            return Ok(());
        }
        let task = self
            .table
            .task_mut(itt)
            .filter(|task| task.is_with_target())
            .ok_or_else(|| unknown(Opcode::ScsiResponse, itt))?;
        if pdu.response == 0 && !task.data_sn_agrees(pdu.exp_data_sn) {
            self.counters.data_sn_mismatches += 1;
        }
        let outcome = task.on_response(pdu);
        if self.is_asked_to_leave() && says_no_such_unit(&outcome) {
            // Some targets fail commands so between the request and the logout: of the path, not the LUN.
            self.put_back(itt, RejectReason::WAITING_FOR_LOGOUT.0);
            return Ok(());
        }
        self.answered(itt, outcome);
        Ok(())
    }

    fn is_asked_to_leave(&self) -> bool {
        matches!(
            self.connection.phase,
            Phase::Draining {
                cause: LogoutCause::Target,
                ..
            }
        )
    }

    fn answered(&mut self, itt: Itt, outcome: TaskOutcome) {
        self.counters.completed += 1;
        if matches!(outcome, TaskOutcome::DataMismatch { .. }) {
            self.counters.short_transfers += 1;
        }
        self.finish_task(itt, outcome);
    }

    fn on_r2t(&mut self, pdu: &R2t) -> Result<(), Error> {
        self.take_window(&pdu.sn)?;
        self.counters.r2ts += 1;
        let itt = pdu.itt;
        let limits = self.limits;
        let task = self
            .table
            .task_mut(itt)
            .filter(|task| task.is_with_target())
            .ok_or_else(|| unknown(Opcode::R2t, itt))?;
        task.on_r2t(itt, pdu, limits)?;
        if !task.in_data_queue {
            task.in_data_queue = true;
            self.data_queue.push_back(itt);
        }
        Ok(())
    }

    fn on_nop_in(&mut self, now: Instant, pdu: &NopIn) -> Result<(), Error> {
        match (pdu.itt.is_none(), pdu.ttt.is_none()) {
            // RFC 7143 11.19.1: our ping, answered.
            (false, true) => {
                if !self.take_numbers(&pdu.sn, pdu.itt)? {
                    return Ok(());
                }
                let Some(Entry::Ping { sent_at }) = self.table.get(pdu.itt) else {
                    return Err(unknown(Opcode::NopIn, pdu.itt));
                };
                let round_trip = now.saturating_duration_since(*sent_at);
                self.end_ping(pdu.itt);
                self.push_report(Event::Pong { round_trip });
                Ok(())
            }
            // The target's ping; its StatSN is the next one and is not consumed.
            (true, false) => {
                self.take_window(&pdu.sn)?;
                if matches!(self.connection.phase, Phase::InLogout { .. }) {
                    // Nothing follows a Logout on its connection (RFC 7143 11.14).
                    return Ok(());
                }
                self.push_control(Control::PingReply {
                    lun: pdu.lun,
                    ttt: pdu.ttt,
                })
            }
            // Only the numbers.
            (true, true) => self.take_window(&pdu.sn),
            (false, false) => Err(Error::malformed(
                "NOP-In",
                "initiator and target task tag are both set; one must be ffffffff",
            )),
        }
    }

    fn end_ping(&mut self, itt: Itt) {
        self.table.remove(itt);
        if self.connection.ping.is_some_and(|(ping, _)| ping == itt) {
            self.connection.ping = None;
        }
    }

    fn on_text_response(&mut self, pdu: &TextResponse) -> Result<(), Error> {
        if !self.take_numbers(&pdu.sn, pdu.itt)? {
            return Ok(());
        }
        let max = self.options.text_response_max_bytes;
        let Some(Entry::Text { answer, .. }) = self.table.get_mut(pdu.itt) else {
            return Err(unknown(Opcode::TextResponse, pdu.itt));
        };
        if answer.len() + pdu.data.len() > max {
            return Err(Error::TargetMisbehaved(Misbehaviour::TooMany {
                what: "bytes in the answer to a text request",
                limit: max,
            }));
        }
        for segment in pdu.data.segments() {
            answer.extend_from_slice(segment);
        }
        // RFC 7143 11.11.1; a TTT beside F=1 is wrong but means nothing, and some targets leave a 0.
        match (pdu.final_, pdu.continue_, pdu.ttt.is_none()) {
            (true, false, _) => {
                let answer = Bytes::from(std::mem::take(answer));
                self.end_text(pdu.itt, Ok(answer));
                Ok(())
            }
            (false, _, false) => self.push_control(Control::Text {
                itt: pdu.itt,
                ttt: pdu.ttt,
                lun: pdu.lun,
                data: Vec::new(),
            }),
            _ => Err(Error::malformed(
                "Text Response",
                "more is to come (F=0 goes with a target transfer tag and C=1 with F=0)",
            )),
        }
    }

    fn end_text(&mut self, itt: Itt, answer: Result<Bytes, u8>) {
        self.table.remove(itt);
        self.connection.text = None;
        self.push_event(Event::TextDone { answer });
    }

    fn on_logout_response(&mut self, pdu: &LogoutResponse) -> Result<(), Error> {
        if !self.take_numbers(&pdu.sn, pdu.itt)? {
            return Ok(());
        }
        let (Some(Entry::Logout), Phase::InLogout { cause, .. }) =
            (self.table.get(pdu.itt), self.connection.phase)
        else {
            return Err(unknown(Opcode::LogoutResponse, pdu.itt));
        };
        self.table.remove(pdu.itt);
        self.close(CloseReason::LoggedOut {
            cause,
            response: Some(pdu.response),
            time2wait_s: pdu.time2wait_s,
        });
        Ok(())
    }

    /// RFC 7143 11.9.1.
    fn on_async_message(&mut self, now: Instant, pdu: &AsyncMessage) -> Result<(), Error> {
        if !self.take_numbers(&pdu.sn, Itt::NONE)? {
            return Ok(());
        }
        self.counters.async_messages += 1;
        match pdu.event {
            0 => {
                // A copy: sense is short, and a slice would hold a whole receive chunk.
                let sense = Bytes::copy_from_slice(&pdu.sense());
                self.push_report(Event::Async(AsyncEvent::Scsi {
                    lun: pdu.lun,
                    sense,
                }));
            }
            1 => self.on_logout_wish(now, LogoutCause::Target, pdu.parameter3),
            2 if pdu.parameter1 != self.connection.cid.0 => {
                // A connection that is not ours.
            }
            2 | 3 => self.close(CloseReason::DroppedByTarget {
                time2wait_s: pdu.parameter2,
                time2retain_s: pdu.parameter3,
            }),
            // Negotiating in full feature phase or logging out are both lawful answers; a new login
            // negotiates everything.
            4 => self.on_logout_wish(now, LogoutCause::Negotiation, pdu.parameter3),
            5 => {
                self.push_report(Event::Async(AsyncEvent::TaskTermination { lun: pdu.lun }));
                self.push_control(Control::Acknowledge { lun: pdu.lun })?;
            }
            event => self.push_report(Event::Async(AsyncEvent::Other {
                event,
                vendor_code: pdu.vendor_code,
                parameters: [pdu.parameter1, pdu.parameter2, pdu.parameter3],
            })),
        }
        Ok(())
    }

    fn on_logout_wish(&mut self, now: Instant, cause: LogoutCause, within_s: u16) {
        match self.connection.phase {
            Phase::LoggedIn | Phase::Draining { .. } => {
                let within = Duration::from_secs(u64::from(within_s));
                self.connection.phase = Phase::Draining {
                    cause,
                    // What still runs may end, but the Logout must be out in time.
                    until: now + within / 2,
                };
                self.push_report(Event::LogoutRequested { cause, within });
            }
            Phase::InLogout { .. } | Phase::Closed => {}
        }
    }

    /// RFC 7143 11.17: the header of the refused PDU says what becomes of it.
    fn on_reject(&mut self, now: Instant, pdu: &Reject) -> Result<(), Error> {
        if !self.take_numbers(&pdu.sn, Itt::NONE)? {
            return Ok(());
        }
        self.counters.rejects += 1;
        let Some(header) = pdu.refused() else {
            return Err(Error::malformed(
                "Reject",
                format!(
                    "{} bytes of the refused header; there must be 48",
                    pdu.data.len()
                ),
            ));
        };
        let itt = header.itt();
        match (header.opcode(), self.table.get_mut(itt)) {
            (Some(Opcode::ScsiCommand), Some(Entry::Scsi(task))) if task.is_with_target() => {
                if task.refused.is_none() {
                    let immediate = task.command.immediate;
                    self.on_refused_command(now, itt, RejectReason(pdu.reason), immediate)?;
                }
                return Ok(());
            }
            (Some(Opcode::NopOut), Some(Entry::Ping { .. })) => self.end_ping(itt),
            (Some(Opcode::TaskManagementRequest), Some(Entry::TaskManagement(_))) => {
                let outcome = TaskManagementOutcome::Rejected(pdu.reason);
                return self
                    .on_task_management_outcome(now, itt, outcome)
                    .unwrap_or(Ok(()));
            }
            (Some(Opcode::TextRequest), Some(Entry::Text { .. })) => {
                self.end_text(itt, Err(pdu.reason));
                return Ok(());
            }
            (Some(Opcode::LogoutRequest), Some(Entry::Logout)) => {
                // It will not let us go: leave.
                return Err(Error::Rejected(RejectReason(pdu.reason)));
            }
            // Data-Out: a response still comes. Others: our ping reply, or nothing of ours.
            _ => {}
        }
        self.push_report(Event::Rejected {
            reason: pdu.reason,
            header: Bytes::copy_from_slice(&header.0),
        });
        Ok(())
    }

    /// A refused command was not executed, and no response follows (RFC 7143 11.17.1).
    fn on_refused_command(
        &mut self,
        now: Instant,
        itt: Itt,
        reason: RejectReason,
        immediate: bool,
    ) -> Result<(), Error> {
        match reason {
            // The tag is one of a task that the target still has and we have not: the two sides
            // disagree about what there is, and an abort would hit the other task.
            RejectReason::TASK_IN_PROGRESS => return Err(Error::Rejected(reason)),
            RejectReason::WAITING_FOR_LOGOUT => {
                self.put_back(itt, reason.0);
                if self.connection.phase == Phase::LoggedIn {
                    // The request itself was never seen; it is clear enough all the same.
                    let within = self.options.logout_timeout.as_secs();
                    let within_s = u16::try_from(within).unwrap_or(u16::MAX);
                    self.on_logout_wish(now, LogoutCause::Target, within_s);
                }
            }
            // It has no number of its own that could be missing.
            _ if immediate => self.finish_task(itt, TaskOutcome::Rejected { reason: reason.0 }),
            // Its CmdSN is missing at the target; ABORT TASK fills the hole.
            _ => {
                if let Some(task) = self.table.task_mut(itt) {
                    task.refused = Some(reason.0);
                    task.silence();
                    if task.abort.is_none() {
                        self.queue_abort(now, itt);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Whether this is CHECK CONDITION, LOGICAL UNIT NOT SUPPORTED (5/25/00).
fn says_no_such_unit(outcome: &TaskOutcome) -> bool {
    matches!(outcome, TaskOutcome::Completed { status: 0x02, sense, .. }
        if Sense::parse(sense).is_ok_and(|sense| sense.code == Code::LU_NOT_SUPPORTED && !sense.deferred))
}

fn stat_sn_gap(expected: StatSn, got: StatSn) -> Error {
    Error::TargetMisbehaved(Misbehaviour::StatSnGap { expected, got })
}

#[cold]
fn unknown(opcode: Opcode, itt: Itt) -> Error {
    Error::TargetMisbehaved(Misbehaviour::UnknownTask {
        opcode: opcode as u8,
        itt,
    })
}

#[cold]
fn unexpected(opcode: Opcode) -> Error {
    Error::TargetMisbehaved(Misbehaviour::UnexpectedPdu {
        opcode: opcode as u8,
        state: "full feature phase",
    })
}

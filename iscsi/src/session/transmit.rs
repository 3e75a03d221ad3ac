//! What is sent next (RFC 7143 4.2.5.2, 11.3, 11.7).

use std::time::Instant;

use berth_iobuf::{Payload, SendQueue};
use bytes::Bytes;

use super::Session;
use super::api::Transfer;
use super::connection::{Control, Phase};
use super::task::Sent;
use crate::pdu::{DataOut, LogoutRequest, NopOut, ScsiCommand, TextRequest};
use crate::types::{CmdSn, Itt, Lun, Ttt};

/// Room for control PDUs beyond the bound on unsent bytes.
const CONTROL_SLACK_BYTES: usize = 16 * 1024;
/// Logout reason: close the session (RFC 7143 11.14.1).
const CLOSE_SESSION: u8 = 0;

impl Session {
    /// Appends PDUs to `out` until nothing may be sent or `out` holds
    /// [`super::SessionOptions::transmit_queue_bytes`]. To be called again when `out` has drained.
    ///
    /// Control PDUs go first, then Data-Out (one PDU per task in turn) and commands take turns.
    pub fn poll_transmit(&mut self, now: Instant, out: &mut SendQueue) {
        if self.connection.phase == Phase::Closed {
            return;
        }
        let before = out.len() as u64;
        self.emit_base = self.emitted_bytes.wrapping_sub(before);
        self.start_logout_when_drained(now);
        self.start_task_management(now);
        self.send_control(out);
        // Nothing follows a Logout on its connection (RFC 7143 11.14).
        while out.len() < self.options.transmit_queue_bytes && !self.is_in_logout() {
            let data = self.send_solicited(out);
            let command = self.send_unsolicited(out) || self.send_command(now, out);
            if !data && !command {
                break;
            }
        }
        self.emitted_bytes = self.emit_base.wrapping_add(out.len() as u64);
    }

    fn is_in_logout(&self) -> bool {
        matches!(self.connection.phase, Phase::InLogout { .. })
    }

    /// Sends commands only while logged in, and while draining for the user's own logout.
    fn may_send_commands(&self) -> bool {
        match self.connection.phase {
            Phase::LoggedIn => true,
            Phase::Draining { cause, .. } => cause == super::LogoutCause::User,
            Phase::InLogout { .. } | Phase::Closed => false,
        }
    }

    fn send_control(&mut self, out: &mut SendQueue) {
        while out.len() < self.options.transmit_queue_bytes + CONTROL_SLACK_BYTES {
            let Some(control) = self.connection.control.pop_front() else {
                return;
            };
            self.emit_control(control, out);
        }
    }

    fn emit_control(&mut self, control: Control, out: &mut SendQueue) {
        let digests = self.connection.digests;
        let cmd_sn = self.window.current();
        let exp_stat_sn = self.connection.exp_stat_sn;
        match control {
            Control::PingReply { lun, ttt } => {
                // All eight LUN bytes and the TTT are the target's (RFC 7143 11.18.3).
                self.counters.target_pings += 1;
                nop_out(lun, Itt::NONE, ttt, cmd_sn, exp_stat_sn).emit(out, digests);
            }
            Control::Acknowledge { lun } => {
                nop_out(lun, Itt::NONE, Ttt::NONE, cmd_sn, exp_stat_sn).emit(out, digests);
            }
            Control::Ping { itt } => {
                self.counters.pings += 1;
                nop_out(Lun::default(), itt, Ttt::NONE, cmd_sn, exp_stat_sn).emit(out, digests);
            }
            Control::TaskManagement { itt } => self.emit_task_management(itt, out),
            Control::Text {
                itt,
                ttt,
                lun,
                data,
            } => {
                // Immediate: some targets do not count the text request of a discovery.
                let pdu = TextRequest {
                    immediate: true,
                    final_: true,
                    continue_: false,
                    lun,
                    itt,
                    ttt,
                    cmd_sn,
                    exp_stat_sn,
                    data: Payload::from(data),
                };
                pdu.emit(out, digests);
            }
            Control::Logout { itt } => {
                let pdu = LogoutRequest {
                    immediate: true,
                    reason: CLOSE_SESSION,
                    itt,
                    cid: self.connection.cid,
                    cmd_sn,
                    exp_stat_sn,
                };
                pdu.emit(out, digests);
            }
        }
    }

    /// One Data-Out for the task whose turn it is.
    fn send_solicited(&mut self, out: &mut SendQueue) -> bool {
        while let Some(itt) = self.data_queue.pop_front() {
            if self.send_data_out(itt, out) {
                let task = self.table.task_mut(itt);
                let more = task.is_some_and(|task| {
                    task.in_data_queue = task.has_data_to_send();
                    task.in_data_queue
                });
                if more {
                    self.data_queue.push_back(itt);
                }
                return true;
            }
        }
        false
    }

    /// One Data-Out of the unsolicited burst that is under way.
    fn send_unsolicited(&mut self, out: &mut SendQueue) -> bool {
        let Some(itt) = self.unsolicited else {
            return false;
        };
        // An R2T may have put the task into the other queue, and its turn there may have come first.
        let left = |session: &mut Self| {
            let task = session.table.task_mut(itt);
            task.is_some_and(|task| task.has_unsolicited_data())
        };
        let sent = left(self) && self.send_data_out(itt, out);
        if !left(self) {
            self.unsolicited = None;
        }
        sent
    }

    fn send_data_out(&mut self, itt: Itt, out: &mut SendQueue) -> bool {
        let Some(task) = self.table.task_mut(itt) else {
            return false;
        };
        let Some(chunk) = task.next_chunk(self.connection.data_out_max_bytes) else {
            return false;
        };
        self.counters.data_out_pdus += 1;
        self.counters.written_bytes += chunk.data.len() as u64;
        let pdu = DataOut {
            final_: chunk.last,
            lun: chunk.lun,
            itt,
            ttt: chunk.ttt,
            exp_stat_sn: self.connection.exp_stat_sn,
            data_sn: chunk.data_sn,
            buffer_offset_bytes: chunk.offset,
            data: chunk.data,
        };
        pdu.emit(out, self.connection.digests);
        true
    }

    /// The next command, if there is one and the window lets it.
    fn send_command(&mut self, now: Instant, out: &mut SendQueue) -> bool {
        // The unsolicited data of one command precedes the next command.
        if self.unsolicited.is_some() || !self.may_send_commands() {
            return false;
        }
        let itt = if let Some(itt) = self.urgent.pop_front() {
            itt
        } else if self.queue.is_empty() {
            self.closed_since = None;
            return false;
        } else if self.window.is_open() {
            self.closed_since = None;
            self.queue
                .pop_front()
                .expect("it was found not to be empty")
        } else {
            if self.closed_since.is_none() {
                self.closed_since = Some(now);
                self.counters.window_closed += 1;
            }
            return false;
        };
        self.emit_command(itt, out);
        true
    }

    fn emit_command(&mut self, itt: Itt, out: &mut SendQueue) {
        let negotiated = &self.login.negotiated;
        let target_recv_max = self.connection.target_recv_max_bytes;
        let task = self
            .table
            .task_mut(itt)
            .expect("whatever ends a queued task takes it out of the queue");
        let cmd_sn = if task.command.immediate {
            self.window.current()
        } else {
            self.window.take()
        };
        let total = task.expected_bytes;
        // RFC 7143 13.10, 13.11, 13.14: what may leave without being asked for.
        let (data, immediate, unsolicited_end) = match &task.command.transfer {
            Transfer::Write(payload) => {
                let first_burst = total.min(negotiated.first_burst_bytes);
                let immediate = if negotiated.immediate_data {
                    first_burst.min(target_recv_max)
                } else {
                    0
                };
                let unsolicited_end = if negotiated.initial_r2t {
                    immediate
                } else {
                    first_burst
                };
                let data = if immediate == total {
                    payload.clone()
                } else {
                    payload.slice(0, immediate as usize)
                };
                (data, immediate, unsolicited_end)
            }
            Transfer::None | Transfer::Read { .. } => (Payload::new(), 0, 0),
        };
        let sent = Sent {
            cid: self.connection.cid,
            cmd_sn,
            order: self.sent_count,
            end_byte: 0,
        };
        self.sent_count += 1;
        task.start(sent, immediate, unsolicited_end);
        let pdu = ScsiCommand {
            immediate: task.command.immediate,
            final_: unsolicited_end == immediate,
            // RFC 7143 11.3.1: without data both are 0.
            read: task.is_read() && total > 0,
            write: task.is_write() && total > 0,
            attribute: task.command.attribute,
            lun: task.command.lun,
            itt,
            expected_len_bytes: total,
            cmd_sn,
            exp_stat_sn: self.connection.exp_stat_sn,
            cdb: task.command.cdb,
            extended_cdb: Bytes::new(),
            bidi_read_len_bytes: None,
            data,
        };
        if unsolicited_end > immediate {
            self.unsolicited = Some(itt);
        }
        self.running += 1;
        self.counters.commands += 1;
        self.counters.written_bytes += u64::from(immediate);
        pdu.emit(out, self.connection.digests);
        let end_byte = self.emit_base.wrapping_add(out.len() as u64);
        if let Some(sent) = self.table.task_mut(itt).and_then(|task| task.sent.as_mut()) {
            sent.end_byte = end_byte;
        }
    }
}

fn nop_out(
    lun: Lun,
    itt: Itt,
    ttt: Ttt,
    cmd_sn: CmdSn,
    exp_stat_sn: crate::types::StatSn,
) -> NopOut {
    NopOut {
        immediate: true,
        lun,
        itt,
        ttt,
        cmd_sn,
        exp_stat_sn,
        data: Payload::new(),
    }
}

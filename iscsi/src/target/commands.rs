//! SCSI commands: arrival, data, execution.
//!
//! ```text
//! command PDU -> checks -> task -> [its turn by CmdSN] -> [R2T, Data-Out]* -> [limits] -> execute -> answers
//! ```

use std::time::Instant;

use berth_iobuf::Payload;

use super::connection::{ABORTED_KEPT_MAX, CloseReason, Connection, Held, Queued, reject};
use super::executor::ScsiReply;
use super::faults::{CommandFault, Subject};
use super::lun_map;
use super::portal::Shared;
use super::session::EarlyCommand;
use super::task::{Task, TaskFault};
use super::window::Arrival;
use super::write::{DataError, DataOutHeader, WriteData};
use crate::pdu::{Bhs, DataOut, R2t, ScsiCommand};
use crate::types::{Itt, TargetSn};

impl Connection {
    pub(super) fn on_scsi_command(
        &mut self,
        shared: &mut Shared,
        now: Instant,
        pdu: ScsiCommand,
        header: &Bhs,
    ) {
        let Some(session) = self.session else { return };
        let arrival = if pdu.immediate {
            Arrival::Now
        } else {
            shared.sessions[session].window.arrival(pdu.cmd_sn)
        };
        if arrival == Arrival::Ignored {
            self.counters.ignored_commands += 1;
            return;
        }
        // A rejected command counts as not received: the initiator must send its CmdSN again or plug the
        // hole (RFC 7143 11.17.1).
        if self.by_itt.contains_key(&pdu.itt) {
            return self.reject(reject::TASK_IN_PROGRESS, header);
        }
        if pdu.immediate && self.immediate_tasks >= shared.settings.immediate_max {
            self.expect_orphans(&pdu);
            return self.reject(reject::TOO_MANY_IMMEDIATE, header);
        }
        if self.logout_until.is_some() && shared.settings.refuse_while_logout_is_asked {
            self.expect_orphans(&pdu);
            return self.reject(reject::WAITING_FOR_LOGOUT, header);
        }
        let mut override_ = None;
        let mut fault = TaskFault::None;
        match self.command_fault(&pdu) {
            None => {}
            Some(CommandFault::Reject(reason)) => {
                self.expect_orphans(&pdu);
                return self.reject(reason, header);
            }
            Some(CommandFault::Cut) => return self.close(shared, CloseReason::Fault),
            Some(CommandFault::Status(status)) => override_ = Some(ScsiReply::status(status)),
            Some(CommandFault::Sense { key, asc, ascq }) => {
                override_ = Some(ScsiReply::check_condition(key, asc, ascq));
            }
            Some(CommandFault::DelayExecution(time)) => fault = TaskFault::DelayExecution(time),
            Some(CommandFault::HoldExecution) => fault = TaskFault::HoldExecution,
            Some(CommandFault::DelayResponse(time)) => fault = TaskFault::DelayResponse(time),
            Some(CommandFault::HoldResponse) => fault = TaskFault::HoldResponse,
            Some(CommandFault::Response(value)) => fault = TaskFault::Response(value),
            Some(CommandFault::ShortRead {
                missing_bytes,
                residual,
            }) => {
                fault = TaskFault::ShortRead {
                    missing_bytes,
                    residual,
                }
            }
            Some(CommandFault::ExecuteThenCut) => fault = TaskFault::CutAfterExecution,
        }
        // A tag that is used again belongs to the new task, whatever its last owner still owed.
        if !self.aborted.is_empty() {
            self.aborted.retain(|(itt, _)| *itt != pdu.itt);
        }
        let unit = shared.unit_of(session, pdu.lun);
        let data_out_wanted = match unit {
            Some(unit) if !lun_map::is_report_luns(&pdu.cdb) => {
                shared.units[unit].data_out_len_bytes(&pdu.cdb).unwrap_or(0)
            }
            _ => 0,
        };
        // Data of a command that writes nothing is collected too, and found to be wrong.
        let has_data = pdu.write || !pdu.data.is_empty() || !pdu.final_;
        let edtl = if pdu.write { pdu.expected_len_bytes } else { 0 };
        let mut ready = None;
        let mut collecting = None;
        if has_data {
            let wanted = u32::try_from(data_out_wanted).unwrap_or(u32::MAX);
            let mut data = WriteData::new(&self.rules.write, edtl, wanted, pdu.final_, pdu.data);
            if arrival == Arrival::Now && data.is_complete() {
                ready = Some(data.take());
            } else {
                collecting = Some(Box::new(data));
            }
        } else if arrival == Arrival::Now {
            ready = Some(Ok(Payload::new()));
        } else {
            // A command without data that came early is complete as it is.
            collecting = Some(Box::new(WriteData::new(
                &self.rules.write,
                0,
                0,
                true,
                Payload::new(),
            )));
        }
        let task = self.tasks.insert(Task {
            itt: pdu.itt,
            lun: pdu.lun,
            unit,
            cdb: pdu.cdb,
            immediate: pdu.immediate,
            read: pdu.read,
            write: pdu.write,
            edtl: pdu.expected_len_bytes,
            data_out_wanted,
            delivered: false,
            reserved_bytes: 0,
            data: collecting,
            answer: None,
            fault,
            override_: override_.map(Box::new),
        });
        self.by_itt.insert(pdu.itt, task);
        if pdu.immediate {
            self.immediate_tasks += 1;
        }
        match arrival {
            Arrival::Early => shared.sessions[session]
                .window
                .keep(pdu.cmd_sn, EarlyCommand::Task(task)),
            _ => {
                self.start(shared, now, task, ready);
                if !pdu.immediate {
                    self.advance(shared, now);
                }
            }
        }
    }

    /// The turn of an early command has come.
    pub(super) fn deliver(&mut self, shared: &mut Shared, now: Instant, task: usize) {
        let data = self.tasks[task].data.take_if(|data| data.is_complete());
        let ready = data.map(|mut data| data.take());
        self.start(shared, now, task, ready);
    }

    fn start(
        &mut self,
        shared: &mut Shared,
        now: Instant,
        task: usize,
        ready: Option<Result<Payload, DataError>>,
    ) {
        self.tasks[task].delivered = true;
        if !self.tasks[task].immediate
            && let Some(session) = self.session
        {
            shared.sessions[session].window.task_started();
        }
        match ready {
            Some(data) => self.run(shared, now, task, data),
            None => self.solicit(shared, task),
        }
    }

    /// Sends the R2Ts that may be sent now. The first of a task waits for room in the write buffer.
    fn solicit(&mut self, shared: &Shared, task: usize) {
        let Some(data) = self.tasks[task].data.as_deref() else {
            return;
        };
        if self.tasks[task].reserved_bytes == 0 {
            let need = u64::from(data.unsolicited_rest());
            let full = self.reserved_bytes + need > shared.settings.write_buffer_bytes;
            if full && self.reserved_bytes > 0 {
                self.waiting_writes.push_back(task);
                return;
            }
            self.reserved_bytes += need;
            self.tasks[task].reserved_bytes = need;
        }
        loop {
            let ttt = self.take_ttt();
            let rules = self.rules.write;
            let Some(solicit) = self.tasks[task]
                .data
                .as_mut()
                .and_then(|data| data.solicit(&rules, ttt))
            else {
                break;
            };
            let Task { itt, lun, .. } = self.tasks[task];
            self.control.push_back(Queued::R2t {
                itt,
                pdu: R2t {
                    lun,
                    itt,
                    ttt,
                    sn: TargetSn::default(),
                    r2t_sn: solicit.r2t_sn,
                    buffer_offset_bytes: solicit.offset,
                    desired_len_bytes: solicit.len,
                },
            });
        }
    }

    /// Takes a Data-Out; says whether anything was waiting for it. `len` is its length on the wire, also
    /// when the data is gone for a wrong digest.
    pub(super) fn on_data_out(
        &mut self,
        shared: &mut Shared,
        now: Instant,
        pdu: DataOut,
        len: u32,
        digest_ok: bool,
    ) -> bool {
        let header = DataOutHeader {
            final_: pdu.final_,
            ttt: pdu.ttt,
            data_sn: pdu.data_sn,
            offset: pdu.buffer_offset_bytes,
        };
        let Some(&task) = self.by_itt.get(&pdu.itt) else {
            return self.on_orphan(now, pdu.itt, &header, len);
        };
        let Some(data) = self.tasks[task].data.as_mut() else {
            return false;
        };
        if let Err(violation) = data.on_data_out(&header, pdu.data, len, digest_ok) {
            self.close(shared, CloseReason::DataOut(violation));
            return true;
        }
        if !self.tasks[task].delivered {
            return true;
        }
        match self.tasks[task].data.take_if(|data| data.is_complete()) {
            Some(mut data) => {
                if !self.waiting_writes.is_empty() {
                    self.waiting_writes.retain(|waiting| *waiting != task);
                }
                self.run(shared, now, task, data.take());
            }
            None => self.solicit(shared, task),
        }
        true
    }

    /// Data of a task that was aborted or refused: dropped, as long as the initiator was allowed to send it.
    fn on_orphan(&mut self, now: Instant, itt: Itt, header: &DataOutHeader, len: u32) -> bool {
        let Some(at) = self.aborted.iter().position(|(aborted, _)| *aborted == itt) else {
            return false;
        };
        let data = &mut self.aborted[at].1;
        let taken = data.on_data_out(header, Payload::new(), len, true).is_ok();
        if !taken || !data.is_owed() {
            self.aborted.remove(at);
            self.answer_management(now);
        }
        true
    }

    /// The initiator will send data for a command that was refused.
    pub(super) fn expect_orphans(&mut self, pdu: &ScsiCommand) {
        if !pdu.final_ {
            let len = pdu.expected_len_bytes;
            let data = WriteData::new(&self.rules.write, len, 0, false, pdu.data.clone());
            self.keep_aborted(pdu.itt, Box::new(data));
        }
    }

    pub(super) fn keep_aborted(&mut self, itt: Itt, data: Box<WriteData>) {
        if self.aborted.len() >= ABORTED_KEPT_MAX {
            self.aborted.pop_front();
        }
        self.aborted.push_back((itt, data));
    }

    /// All data is here, or the task failed before it got that far.
    fn run(
        &mut self,
        shared: &mut Shared,
        now: Instant,
        task: usize,
        data: Result<Payload, DataError>,
    ) {
        let until = match self.tasks[task].fault {
            TaskFault::HoldExecution => None,
            TaskFault::DelayExecution(time) => Some(now + time),
            _ => return self.pace(shared, now, task, data),
        };
        self.held.push(Held {
            task,
            until,
            execute: Some(data),
        });
    }

    /// Executes it now, or when the limits of its unit allow it.
    fn pace(
        &mut self,
        shared: &mut Shared,
        now: Instant,
        task: usize,
        data: Result<Payload, DataError>,
    ) {
        if !shared.pacing.is_empty()
            && let Ok(data) = &data
            && self.waits_for_limits(shared, now, task, data)
        {
            return;
        }
        self.execute(shared, now, task, data);
    }

    pub(super) fn execute(
        &mut self,
        shared: &mut Shared,
        now: Instant,
        task: usize,
        data: Result<Payload, DataError>,
    ) {
        let reply = self.reply(shared, task, data);
        let task_ref = &mut self.tasks[task];
        task_ref.finish(reply);
        let until = match task_ref.fault {
            TaskFault::CutAfterExecution => return self.close(shared, CloseReason::Fault),
            TaskFault::HoldResponse => None,
            TaskFault::DelayResponse(time) => Some(now + time),
            _ => return self.answer(task),
        };
        self.held.push(Held {
            task,
            until,
            execute: None,
        });
    }

    fn answer(&mut self, task: usize) {
        self.answer_bytes += self.tasks[task].unsent_bytes();
        self.answers.push_back(task);
    }

    fn reply(
        &mut self,
        shared: &mut Shared,
        task: usize,
        data: Result<Payload, DataError>,
    ) -> ScsiReply {
        let task = &mut self.tasks[task];
        let data = match data {
            Ok(data) => data,
            Err(error) => {
                let (key, asc, ascq) = error.sense();
                return ScsiReply::check_condition(key, asc, ascq);
            }
        };
        if let Some(reply) = task.override_.take() {
            return *reply;
        }
        let offered = if task.write { u64::from(task.edtl) } else { 0 };
        if task.read && task.write {
            // Bidirectional commands do not exist for block devices.
            return ScsiReply::check_condition(0x05, 0x0e, 0x03);
        }
        if task.data_out_wanted != offered
            && let Some(unit) = task.unit
            && let Some(reply) =
                shared.units[unit].check_data_out(&task.cdb, offered, task.data_out_wanted)
        {
            return reply;
        }
        let Some(session) = self.session else {
            return ScsiReply::status(0x40);
        };
        self.counters.executed[usize::from(task.cdb[0])] += 1;
        self.counters.data_out_bytes += data.len() as u64;
        shared.execute(session, task.lun, task.unit, &task.cdb, &data)
    }

    /// Releases what faults hold back.
    pub(super) fn release_held(
        &mut self,
        shared: &mut Shared,
        now: Instant,
        due: impl Fn(&Held) -> bool,
    ) {
        let mut at = 0;
        while at < self.held.len() {
            if !due(&self.held[at]) {
                at += 1;
                continue;
            }
            let Held { task, execute, .. } = self.held.remove(at);
            match execute {
                Some(data) => self.pace(shared, now, task, data),
                None => self.answer(task),
            }
        }
    }

    /// Removes a task and everything that waits for it. The window opens when the task was counted.
    pub(super) fn remove_task(&mut self, shared: &mut Shared, task: usize) -> Task {
        let task = self.tasks.remove(task);
        self.by_itt.remove(&task.itt);
        if task.immediate {
            self.immediate_tasks -= 1;
        } else if task.delivered
            && let Some(session) = self.session
        {
            shared.sessions[session].window.task_finished();
        }
        if task.reserved_bytes > 0 {
            self.reserved_bytes -= task.reserved_bytes;
            self.admit_writes(shared);
        }
        task
    }

    fn admit_writes(&mut self, shared: &Shared) {
        for _ in 0..self.waiting_writes.len() {
            let Some(task) = self.waiting_writes.pop_front() else {
                break;
            };
            let before = self.waiting_writes.len();
            self.solicit(shared, task);
            if self.waiting_writes.len() > before {
                // Still no room: it keeps its place at the head.
                self.waiting_writes.rotate_right(1);
                break;
            }
        }
    }

    fn command_fault(&mut self, pdu: &ScsiCommand) -> Option<CommandFault> {
        let plan = self.faults.as_mut()?;
        let subject = Subject {
            opcode: 0x01,
            task: Some((pdu.lun, &pdu.cdb)),
        };
        let rule = plan
            .commands
            .iter_mut()
            .find_map(|rule| rule.hits(&subject).then_some(rule))?;
        self.counters.faults += 1;
        rule.note(subject.opcode);
        Some(rule.fault.clone())
    }
}

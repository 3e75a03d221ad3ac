//! Building what is sent: order, numbers, faults.

use berth_iobuf::SendQueue;
use bytes::BytesMut;

use super::connection::{CloseReason, Connection, Phase, Queued};
use super::faults::{SendFault, Subject};
use super::portal::Shared;
use crate::pdu::{Digests, Pdu};
use crate::types::{Itt, Lun, TargetSn};

/// Bytes in the send queue at which no more PDUs are built; they get their numbers late.
const SEND_BYTES_ENOUGH: usize = 1024 * 1024;

impl Connection {
    /// Builds PDUs until `tx` has enough for one write, or nothing waits.
    pub(super) fn poll_transmit(&mut self, shared: &mut Shared, tx: &mut SendQueue) {
        while tx.len() < SEND_BYTES_ENOUGH {
            if let Some(queued) = self.control.pop_front() {
                self.transmit_control(shared, queued, tx);
            } else if let Some(&task) = self.answers.front() {
                self.transmit_answer(shared, task, tx);
            } else {
                break;
            }
        }
    }

    fn transmit_control(&mut self, shared: &mut Shared, queued: Queued, tx: &mut SendQueue) {
        match queued {
            Queued::Pdu(mut pdu) => {
                self.number(shared, &mut pdu);
                self.emit(shared, &pdu, None, tx);
            }
            Queued::R2t { itt, mut pdu } => {
                pdu.sn = self.numbers(shared, false);
                let subject = self
                    .by_itt
                    .get(&itt)
                    .map(|task| (self.tasks[*task].lun, self.tasks[*task].cdb));
                self.emit(shared, &Pdu::R2t(pdu), subject, tx);
            }
            Queued::Raw(bytes) => tx.put(&bytes),
            Queued::LastLogin(pdu) => {
                self.emit(shared, &pdu, None, tx);
                self.send_digests = self.rules.digests;
            }
        }
    }

    fn transmit_answer(&mut self, shared: &mut Shared, task: usize, tx: &mut SendQueue) {
        let rules = self.rules.read;
        let last = self.tasks[task].last_is_next(&rules);
        if last {
            // The response itself opens the window again.
            self.answers.pop_front();
            let bytes = self.tasks[task].unsent_bytes();
            self.answer_bytes -= bytes;
            self.counters.data_in_bytes += bytes as u64;
            let mut task = self.remove_task(shared, task);
            let sn = self.numbers(shared, true);
            let (pdu, _) = task.next_pdu(&rules, sn);
            self.emit(shared, &pdu, Some((task.lun, task.cdb)), tx);
            return;
        }
        let sn = self.numbers(shared, false);
        let task = &mut self.tasks[task];
        let before = task.unsent_bytes();
        let (pdu, _) = task.next_pdu(&rules, sn);
        let bytes = before - task.unsent_bytes();
        let subject = (task.lun, task.cdb);
        self.answer_bytes -= bytes;
        self.counters.data_in_bytes += bytes as u64;
        self.emit(shared, &pdu, Some(subject), tx);
    }

    /// The numbers of the next PDU (RFC 7143 4.2.2).
    fn numbers(&mut self, shared: &Shared, consume: bool) -> TargetSn {
        let stat_sn = self.stat_sn;
        if consume {
            self.stat_sn = stat_sn.next();
        }
        match self.session {
            Some(session) => {
                let window = &shared.sessions[session].window;
                TargetSn {
                    stat_sn,
                    exp_cmd_sn: window.exp(),
                    max_cmd_sn: window.max(),
                }
            }
            None => TargetSn {
                stat_sn,
                exp_cmd_sn: self.last_window.0,
                max_cmd_sn: self.last_window.1,
            },
        }
    }

    fn number(&mut self, shared: &Shared, pdu: &mut Pdu) {
        let consume = match pdu {
            // A NOP-In that answers no ping of the initiator carries the next StatSN.
            Pdu::NopIn(pdu) => !pdu.itt.is_none(),
            // The login machine numbers its own.
            Pdu::LoginResponse(_) => return,
            _ => true,
        };
        let numbers = self.numbers(shared, consume);
        match pdu {
            Pdu::NopIn(pdu) => pdu.sn = numbers,
            Pdu::TaskManagementResponse(pdu) => pdu.sn = numbers,
            Pdu::TextResponse(pdu) => pdu.sn = numbers,
            Pdu::LogoutResponse(pdu) => pdu.sn = numbers,
            Pdu::AsyncMessage(pdu) => pdu.sn = numbers,
            Pdu::Reject(pdu) => pdu.sn = numbers,
            _ => debug_assert!(false, "tasks number their own PDUs"),
        }
    }

    fn emit(
        &mut self,
        shared: &mut Shared,
        pdu: &Pdu,
        subject: Option<(Lun, [u8; 16])>,
        tx: &mut SendQueue,
    ) {
        let opcode = pdu.opcode() as u8;
        self.counters.sent[usize::from(opcode)] += 1;
        let faulty = self
            .faults
            .as_ref()
            .is_some_and(|plan| !plan.sends.is_empty());
        if faulty {
            self.emit_faulty(shared, pdu, opcode, subject, tx);
        } else {
            pdu.emit(tx, self.send_digests);
        }
    }

    /// The slow way out: the PDU as bytes, with every rule that fits applied.
    fn emit_faulty(
        &mut self,
        shared: &mut Shared,
        pdu: &Pdu,
        opcode: u8,
        task: Option<(Lun, [u8; 16])>,
        tx: &mut SendQueue,
    ) {
        let digests = self.send_digests;
        let subject = Subject {
            opcode,
            task: task.as_ref().map(|(lun, cdb)| (*lun, &cdb[..])),
        };
        let faults: Vec<SendFault> = self
            .faults
            .as_mut()
            .into_iter()
            .flat_map(|plan| &mut plan.sends)
            .filter_map(|rule| {
                rule.hits(&subject).then(|| {
                    rule.note(opcode);
                    rule.fault.clone()
                })
            })
            .collect();
        self.counters.faults += faults.len() as u64;
        let mut plain = SendQueue::new();
        pdu.emit(&mut plain, Digests::NONE);
        let mut bytes = plain.to_vec();
        for fault in &faults {
            overwrite(&mut bytes, fault);
        }
        let mut bytes = with_digests(&bytes, digests);
        let mut copies = 1;
        let mut cut = false;
        for fault in &faults {
            match fault {
                SendFault::Omit => copies = 0,
                SendFault::Duplicate => copies = 2,
                SendFault::Corrupt { offset, mask } => {
                    let len = bytes.len() as i64;
                    let at = i64::from(*offset) + if *offset < 0 { len } else { 0 };
                    if let Some(byte) = usize::try_from(at).ok().and_then(|at| bytes.get_mut(at)) {
                        *byte ^= mask;
                    }
                }
                SendFault::CutAfter => cut = true,
                SendFault::CutInside(len) => {
                    bytes.truncate(*len as usize);
                    cut = true;
                }
                SendFault::Field { .. } | SendFault::Add { .. } => {}
            }
        }
        for _ in 0..copies {
            tx.put(&bytes);
        }
        if cut {
            self.control.clear();
            self.close(shared, CloseReason::Fault);
        }
    }

    /// Whether nothing waits to be built into PDUs.
    pub(super) fn is_drained(&self) -> bool {
        self.control.is_empty() && self.answers.is_empty()
    }

    /// Whether the driver should close the socket once its send queue is empty.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Closing(_)) && self.is_drained()
    }

    /// Forgets R2Ts of one task that were not sent yet; gives their number.
    pub(super) fn drop_r2ts(&mut self, gone: Itt) -> usize {
        let before = self.control.len();
        self.control
            .retain(|queued| !matches!(queued, Queued::R2t { itt, .. } if *itt == gone));
        before - self.control.len()
    }
}

/// Applies the faults that make a well-formed, wrong header.
fn overwrite(bytes: &mut [u8], fault: &SendFault) {
    match *fault {
        SendFault::Field { offset, len, value } => {
            let value = value.to_be_bytes();
            let from = 4usize.saturating_sub(len.into());
            let at = usize::from(offset);
            if let Some(field) = bytes.get_mut(at..at + (4 - from)) {
                field.copy_from_slice(&value[from..]);
            }
        }
        SendFault::Add { offset, delta } => {
            let at = usize::from(offset);
            if let Some(field) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<4>) {
                *field = u32::from_be_bytes(*field)
                    .wrapping_add_signed(delta)
                    .to_be_bytes();
            }
        }
        _ => {}
    }
}

/// Puts digests into a PDU that was built without them. Target PDUs have no additional headers.
fn with_digests(bytes: &[u8], digests: Digests) -> Vec<u8> {
    let (header, data) = bytes.split_at(bytes.len().min(48));
    let mut out = BytesMut::with_capacity(bytes.len() + 8);
    out.extend_from_slice(header);
    if digests.header {
        out.extend_from_slice(&crate::pdu::crc32c(header).to_le_bytes());
    }
    out.extend_from_slice(data);
    if digests.data && !data.is_empty() {
        out.extend_from_slice(&crate::pdu::crc32c(data).to_le_bytes());
    }
    out.to_vec()
}

//! One SCSI task of a connection, from its command PDU to the last PDU of its answer.

use berth_iobuf::Payload;
use bytes::Bytes;

use super::executor::ScsiReply;
use super::write::WriteData;
use crate::pdu::{DataIn, Pdu, Residual, ScsiResponse, sense_data};
use crate::types::{Itt, Lun, TargetSn, Ttt};

/// A task that is alive: data is being collected, a fault holds it, or its answer is being sent.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) itt: Itt,
    pub(super) lun: Lun,
    /// The logical unit behind the LUN when the command came.
    pub(super) unit: Option<usize>,
    pub(super) cdb: [u8; 16],
    pub(super) immediate: bool,
    pub(super) read: bool,
    pub(super) write: bool,
    pub(super) edtl: u32,
    /// Bytes of data-out that the command wants; more than EDTL is an overflow.
    pub(super) data_out_wanted: u64,
    /// Its turn in CmdSN order has come.
    pub(super) delivered: bool,
    /// Bytes of the connection's write buffer that were set aside for it.
    pub(super) reserved_bytes: u64,
    pub(super) data: Option<Box<WriteData>>,
    pub(super) answer: Option<Answer>,
    pub(super) fault: TaskFault,
    /// What a fault switch answers instead of executing the command.
    pub(super) override_: Option<Box<ScsiReply>>,
}

/// What a command fault wants done later in the task's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum TaskFault {
    #[default]
    None,
    HoldExecution,
    DelayExecution(std::time::Duration),
    HoldResponse,
    DelayResponse(std::time::Duration),
    Response(u8),
    ShortRead {
        missing_bytes: u32,
        residual: bool,
    },
    CutAfterExecution,
}

/// The answer of a task and how much of it was sent.
#[derive(Debug)]
pub(super) struct Answer {
    response: u8,
    status: u8,
    sense: Bytes,
    residual: Residual,
    data: Payload,
    sent: usize,
    burst: usize,
    data_sn: u32,
}

/// Limits of Data-In PDUs.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReadRules {
    /// The initiator's MaxRecvDataSegmentLength.
    pub(super) segment_bytes_max: usize,
    pub(super) max_burst_bytes: usize,
    /// GOOD status rides on the last Data-In.
    pub(super) phase_collapse: bool,
}

impl Task {
    /// Turns what the logical unit said into what the initiator gets (RFC 7143 11.4.5): at most EDTL bytes
    /// of data, and the difference as residual.
    pub(super) fn finish(&mut self, reply: ScsiReply) {
        let edtl = self.edtl as usize;
        let mut data = reply.data_in;
        let (moved_wanted, residual_of_write) = if self.write {
            (self.data_out_wanted, true)
        } else {
            (data.len() as u64, false)
        };
        if residual_of_write || !self.read {
            data = Payload::new();
        }
        let mut residual = residual(u64::from(self.edtl), moved_wanted);
        if data.len() > edtl {
            data = data.slice(0, edtl);
        }
        let mut response = 0;
        match self.fault {
            TaskFault::Response(value) => response = value,
            TaskFault::ShortRead {
                missing_bytes,
                residual: admit,
            } => {
                let len = data.len().saturating_sub(missing_bytes as usize);
                let missing = data.len() - len;
                data = data.slice(0, len);
                if admit {
                    let before = match residual {
                        Residual::Underflow(n) => n,
                        _ => 0,
                    };
                    residual = Residual::Underflow(before + missing as u32);
                }
            }
            _ => {}
        }
        self.answer = Some(Answer {
            response,
            status: reply.status,
            sense: reply.sense,
            residual,
            data,
            sent: 0,
            burst: 0,
            data_sn: 0,
        });
    }

    /// Bytes of data that the answer still has to send.
    pub(super) fn unsent_bytes(&self) -> usize {
        self.answer
            .as_ref()
            .map_or(0, |answer| answer.data.len() - answer.sent)
    }

    /// Whether the next PDU is the last one of the task.
    pub(super) fn last_is_next(&self, rules: &ReadRules) -> bool {
        self.answer.as_ref().is_some_and(|answer| {
            answer.data.len() == answer.sent
                || (answer.collapses(rules)
                    && answer.data.len() - answer.sent <= answer.next_len(rules))
        })
    }

    /// The next PDU of the answer, and whether it is the last. `sn` counts for PDUs with status.
    pub(super) fn next_pdu(&mut self, rules: &ReadRules, sn: TargetSn) -> (Pdu, bool) {
        let itt = self.itt;
        let answer = self
            .answer
            .as_mut()
            .expect("only finished tasks are queued to be sent");
        if answer.sent == answer.data.len() {
            return (Pdu::ScsiResponse(answer.response(itt, sn)), true);
        }
        let len = answer.next_len(rules).min(answer.data.len() - answer.sent);
        let offset = answer.sent;
        let data = if offset == 0 && len == answer.data.len() {
            answer.data.clone()
        } else {
            answer.data.slice(offset, len)
        };
        answer.sent += len;
        answer.burst += len;
        let all = answer.sent == answer.data.len();
        let final_ = all || answer.burst == rules.max_burst_bytes;
        if final_ {
            answer.burst = 0;
        }
        let last = all && answer.collapses(rules);
        let pdu = DataIn {
            final_,
            acknowledge: false,
            status: last.then_some(answer.status),
            residual: if last {
                answer.residual
            } else {
                Residual::None
            },
            // LUN and TTT are only for the A bit, which error recovery level 0 does not have.
            lun: Lun::default(),
            itt,
            ttt: Ttt::NONE,
            sn,
            data_sn: answer.data_sn,
            buffer_offset_bytes: offset as u32,
            data,
        };
        answer.data_sn += 1;
        (Pdu::DataIn(pdu), last)
    }
}

impl Answer {
    fn collapses(&self, rules: &ReadRules) -> bool {
        rules.phase_collapse && self.status == 0 && self.response == 0
    }

    fn next_len(&self, rules: &ReadRules) -> usize {
        rules
            .segment_bytes_max
            .min(rules.max_burst_bytes - self.burst)
    }

    fn response(&mut self, itt: Itt, sn: TargetSn) -> ScsiResponse {
        let data = if self.sense.is_empty() {
            Payload::new()
        } else {
            sense_data(&self.sense)
        };
        ScsiResponse {
            response: self.response,
            status: self.status,
            status_qualifier: 0,
            itt,
            snack_tag: 0,
            sn,
            exp_data_sn: self.data_sn,
            residual: self.residual,
            bidi_read_residual: Residual::None,
            data,
        }
    }
}

/// The residual of a transfer (RFC 7143 11.4.5.1).
fn residual(edtl: u64, wanted: u64) -> Residual {
    let clamp = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
    match wanted.cmp(&edtl) {
        std::cmp::Ordering::Less => Residual::Underflow(clamp(edtl - wanted)),
        std::cmp::Ordering::Equal => Residual::None,
        std::cmp::Ordering::Greater => Residual::Overflow(clamp(wanted - edtl)),
    }
}

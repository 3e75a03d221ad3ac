//! One SCSI task: what was moved so far, and whether the next PDU fits (RFC 7143 4.2.5, 11.7, 11.8).

use std::time::Instant;

use bytes::Bytes;
use smallvec::SmallVec;

use super::api::{AbortCause, Command, TaskOutcome, Transfer};
use super::gather::Gather;
use crate::error::{Error, Misbehaviour};
use crate::mutation::{Mutation, is_planted};
use crate::pdu::{DataIn, R2t, Residual, ScsiResponse};
use crate::types::{Cid, CmdSn, Itt, Lun, Ttt};

use berth_iobuf::Payload;

/// SCSI status GOOD.
const GOOD: u8 = 0;
/// SCSI status CONDITION MET: like GOOD, for PRE-FETCH.
const CONDITION_MET: u8 = 4;

const OP_DATA_IN: u8 = 0x25;
const OP_R2T: u8 = 0x31;

/// A range of a write that may be sent: the unsolicited burst or the answer to one R2T.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Burst {
    /// Reserved for the unsolicited burst.
    pub(super) ttt: Ttt,
    /// LUN that the target gave with the TTT, to be echoed.
    pub(super) lun: Lun,
    pub(super) offset: u32,
    pub(super) end: u32,
    pub(super) data_sn: u32,
}

/// The next Data-Out of a task.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) ttt: Ttt,
    pub(super) lun: Lun,
    pub(super) data_sn: u32,
    pub(super) offset: u32,
    pub(super) data: Payload,
    pub(super) last: bool,
}

/// Limits that a task must keep to; the same for all tasks of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) max_burst_bytes: u32,
    pub(super) outstanding_r2ts: usize,
}

/// Where a task was put on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sent {
    /// Its connection: data and status stay there (RFC 7143 4.2.2: connection allegiance).
    pub(super) cid: Cid,
    pub(super) cmd_sn: CmdSn,
    /// Counts sent tasks; orders those that share a CmdSN.
    pub(super) order: u64,
    /// Where the command PDU ends in the stream of all bytes built for this connection.
    pub(super) end_byte: u64,
}

/// A task, from submission to its outcome.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) command: Command,
    pub(super) expected_bytes: u32,
    /// `None` while it waits in the queue.
    pub(super) sent: Option<Sent>,
    /// Set when its early end was asked for.
    pub(super) abort: Option<AbortCause>,
    /// When ABORT TASK must have been answered; `None` when none was asked for or it has failed.
    pub(super) abort_until: Option<Instant>,
    /// ABORT TASK failed: the reset of its LUN is to end it.
    pub(super) escalated: bool,
    /// Reason of a Reject for the command PDU: it was not executed.
    pub(super) refused: Option<u8>,
    /// The target does not want it in this session any more: it is handed back when that is over.
    pub(super) put_back: bool,
    /// Whether it is in the queue of tasks with data to send.
    pub(super) in_data_queue: bool,
    /// No more data is sent for it.
    silent: bool,
    received: Gather,
    next_data_sn: u32,
    /// Bytes that were put on the wire.
    emitted: u32,
    /// End of what was granted to be sent: immediate, unsolicited, then R2Ts in order.
    granted: u32,
    next_r2t_sn: u32,
    bursts: SmallVec<[Burst; 1]>,
}

impl Task {
    pub(super) fn new(command: Command, expected_bytes: u32) -> Self {
        Self {
            command,
            expected_bytes,
            sent: None,
            abort: None,
            abort_until: None,
            escalated: false,
            refused: None,
            put_back: false,
            in_data_queue: false,
            silent: false,
            received: Gather::default(),
            next_data_sn: 0,
            emitted: 0,
            granted: 0,
            next_r2t_sn: 0,
            bursts: SmallVec::new(),
        }
    }

    /// Whether the target may still send something for it.
    pub(super) fn is_with_target(&self) -> bool {
        self.sent.is_some() && !self.put_back
    }

    pub(super) fn is_read(&self) -> bool {
        matches!(self.command.transfer, Transfer::Read { .. })
    }

    pub(super) fn is_write(&self) -> bool {
        matches!(self.command.transfer, Transfer::Write(_))
    }

    /// Notes that the command leaves with `immediate` bytes, to be followed by unsolicited data up to
    /// `unsolicited_end`.
    pub(super) fn start(&mut self, sent: Sent, immediate: u32, unsolicited_end: u32) {
        debug_assert!(self.sent.is_none());
        debug_assert!(immediate <= unsolicited_end && unsolicited_end <= self.expected_bytes);
        self.sent = Some(sent);
        self.emitted = immediate;
        self.granted = unsolicited_end;
        if unsolicited_end > immediate {
            self.bursts.push(Burst {
                ttt: Ttt::NONE,
                lun: Lun::default(),
                offset: immediate,
                end: unsolicited_end,
                data_sn: 0,
            });
        }
    }

    /// Whether there is data that may be sent now.
    pub(super) fn has_data_to_send(&self) -> bool {
        !self.bursts.is_empty()
    }

    /// Whether the unsolicited burst is not all sent.
    pub(super) fn has_unsolicited_data(&self) -> bool {
        self.bursts.first().is_some_and(|burst| burst.ttt.is_none())
    }

    /// Sends no more data, and leaves further R2Ts unanswered.
    pub(super) fn silence(&mut self) {
        self.silent = true;
        self.bursts.clear();
    }

    /// The next Data-Out, at most `max_bytes` long.
    pub(super) fn next_chunk(&mut self, max_bytes: u32) -> Option<Chunk> {
        let Transfer::Write(payload) = &self.command.transfer else {
            return None;
        };
        let burst = self.bursts.first_mut()?;
        let len = (burst.end - burst.offset).min(max_bytes);
        let chunk = Chunk {
            ttt: burst.ttt,
            lun: burst.lun,
            data_sn: burst.data_sn,
            offset: burst.offset,
            data: payload.slice(burst.offset as usize, len as usize),
            last: burst.offset + len == burst.end,
        };
        burst.offset += len;
        burst.data_sn += 1;
        self.emitted += len;
        if chunk.last {
            self.bursts.remove(0);
        }
        Some(chunk)
    }

    /// A Data-In: it must be the next one, inside of what was asked for (RFC 7143 11.7). With status
    /// the task is over.
    pub(super) fn on_data_in(
        &mut self,
        itt: Itt,
        pdu: DataIn,
    ) -> Result<Option<TaskOutcome>, Error> {
        if !self.is_read() {
            return Err(Error::TargetMisbehaved(Misbehaviour::WrongTask {
                opcode: OP_DATA_IN,
                itt,
            }));
        }
        let gaps_pass = is_planted(Mutation::IgnoreDataSn);
        if pdu.data_sn != self.next_data_sn && !gaps_pass {
            return Err(Error::TargetMisbehaved(Misbehaviour::DataSnGap {
                itt,
                expected: self.next_data_sn,
                got: pdu.data_sn,
            }));
        }
        if gaps_pass && pdu.buffer_offset_bytes > self.received_bytes() {
            let gap = pdu.buffer_offset_bytes - self.received_bytes();
            self.received.append(Payload::from(vec![0; gap as usize]));
        }
        let have = self.received_bytes();
        let end = u64::from(pdu.buffer_offset_bytes) + pdu.data.len() as u64;
        // An empty PDU moves nothing; where it claims to be is of no importance.
        if !pdu.data.is_empty()
            && (pdu.buffer_offset_bytes != have || end > u64::from(self.expected_bytes))
        {
            return Err(Error::TargetMisbehaved(Misbehaviour::DataRange {
                itt,
                offset_bytes: pdu.buffer_offset_bytes,
                len_bytes: u32::try_from(pdu.data.len()).unwrap_or(u32::MAX),
                expected_offset_bytes: have,
                expected_len_bytes: self.expected_bytes,
            }));
        }
        self.next_data_sn = self.next_data_sn.wrapping_add(1);
        self.received.append(pdu.data);
        Ok(pdu
            .status
            .map(|status| self.finish(status, 0, Bytes::new(), pdu.residual)))
    }

    /// An R2T: the next range of a write, within every limit (RFC 7143 11.8).
    pub(super) fn on_r2t(&mut self, itt: Itt, pdu: &R2t, limits: Limits) -> Result<(), Error> {
        if !self.is_write() {
            return Err(Error::TargetMisbehaved(Misbehaviour::WrongTask {
                opcode: OP_R2T,
                itt,
            }));
        }
        if pdu.r2t_sn != self.next_r2t_sn {
            return Err(Error::TargetMisbehaved(Misbehaviour::R2tSnGap {
                itt,
                expected: self.next_r2t_sn,
                got: pdu.r2t_sn,
            }));
        }
        let end = u64::from(pdu.buffer_offset_bytes) + u64::from(pdu.desired_len_bytes);
        let outstanding = self.bursts.iter().filter(|b| !b.ttt.is_none()).count();
        let problem = if pdu.ttt.is_none() {
            "the target transfer tag is the reserved one"
        } else if pdu.desired_len_bytes == 0 {
            "it wants no data"
        } else if pdu.desired_len_bytes > limits.max_burst_bytes {
            "it is longer than MaxBurstLength"
        } else if end > u64::from(self.expected_bytes) {
            "it ends behind the data of the command"
        } else if pdu.buffer_offset_bytes != self.granted {
            "it does not start where the last data ended (DataSequenceInOrder=Yes)"
        } else if outstanding >= limits.outstanding_r2ts {
            "more are outstanding than MaxOutstandingR2T"
        } else {
            ""
        };
        if !problem.is_empty() {
            return Err(Error::TargetMisbehaved(Misbehaviour::BadR2t {
                itt,
                offset_bytes: pdu.buffer_offset_bytes,
                len_bytes: pdu.desired_len_bytes,
                problem,
            }));
        }
        self.next_r2t_sn = self.next_r2t_sn.wrapping_add(1);
        self.granted += pdu.desired_len_bytes;
        if self.silent {
            return Ok(());
        }
        self.bursts.push(Burst {
            ttt: pdu.ttt,
            lun: pdu.lun,
            offset: pdu.buffer_offset_bytes,
            end: self.granted,
            data_sn: 0,
        });
        Ok(())
    }

    /// The SCSI Response: the task is over.
    pub(super) fn on_response(&mut self, pdu: &ScsiResponse) -> TaskOutcome {
        if pdu.response != 0 {
            return TaskOutcome::TargetFailure {
                response: pdu.response,
            };
        }
        // A copy: sense is short and rare, and a slice would hold a whole receive chunk.
        let sense = Bytes::copy_from_slice(&pdu.sense());
        self.finish(pdu.status, pdu.status_qualifier, sense, pdu.residual)
    }

    /// Whether the target counted the same Data-In PDUs (RFC 7143 11.4.8). Some targets leave
    /// ExpDataSN 0; the byte count is what protects the data.
    pub(super) fn data_sn_agrees(&self, exp_data_sn: u32) -> bool {
        !self.is_read() || exp_data_sn == self.next_data_sn
    }

    fn finish(
        &mut self,
        status: u8,
        status_qualifier: u16,
        sense: Bytes,
        residual: Residual,
    ) -> TaskOutcome {
        let good = matches!(status, GOOD | CONDITION_MET);
        let short_passes = is_planted(Mutation::AcceptShortRead) && self.is_read();
        if good && !self.adds_up(residual) && !short_passes {
            return TaskOutcome::DataMismatch {
                expected_bytes: self.expected_bytes,
                moved_bytes: if self.is_write() {
                    self.emitted
                } else {
                    self.received_bytes()
                },
                residual,
            };
        }
        TaskOutcome::Completed {
            status,
            status_qualifier,
            sense,
            data: self.received.take(),
            residual,
        }
    }

    /// Whether a GOOD status can be true: every byte that the target does not report as residual has
    /// been moved (RFC 7143 11.4.5).
    fn adds_up(&self, residual: Residual) -> bool {
        let untouched = match residual {
            Residual::Underflow(bytes) => u64::from(bytes),
            Residual::None | Residual::Overflow(_) => 0,
        };
        let expected = u64::from(self.expected_bytes);
        match self.command.transfer {
            Transfer::None => true,
            Transfer::Read { .. } => u64::from(self.received_bytes()) + untouched == expected,
            // Data that was sent and not used counts as underflow too.
            Transfer::Write(_) => {
                untouched <= expected && u64::from(self.emitted) + untouched >= expected
            }
        }
    }

    fn received_bytes(&self) -> u32 {
        u32::try_from(self.received.len()).expect("checked against the 32-bit length")
    }
}

//! Fault switches: how an operator or a test makes this target misbehave, per connection.
//!
//! A [`FaultPlan`] is a list of rules, each with a filter, a count and an action, next to a few settings
//! of the link. Nothing here is random: a plan does the same thing every time. A connection without a
//! plan pays for one `Option` test per PDU.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::login::LoginFaults;
use crate::types::Lun;

/// The message of the debug event that says that a fault acts; its fields are `opcode` (of the PDU) and `fault`.
pub const ACTS: &str = "an injected fault acts";

/// Everything that one connection shall do wrong.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FaultPlan {
    /// During login.
    pub login: Option<LoginFault>,
    /// Applied to commands when they are received; the first rule that fits and is not used up acts.
    pub commands: Vec<Rule<CommandFault>>,
    /// Applied to PDUs when they are sent; every rule that fits acts.
    pub sends: Vec<Rule<SendFault>>,
    /// What happens to the bytes below the PDUs.
    pub link: LinkFault,
}

impl FaultPlan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// A plan with one rule for commands that applies `times` times.
    #[must_use]
    pub fn command(filter: Filter, times: u32, fault: CommandFault) -> Self {
        Self {
            commands: vec![Rule::new(filter, times, fault)],
            ..Self::default()
        }
    }

    /// A plan with one rule for PDUs sent that applies `times` times.
    #[must_use]
    pub fn send(filter: Filter, times: u32, fault: SendFault) -> Self {
        Self {
            sends: vec![Rule::new(filter, times, fault)],
            ..Self::default()
        }
    }

    /// A plan with a login fault.
    #[must_use]
    pub fn login(fault: LoginFault) -> Self {
        Self {
            login: Some(fault),
            ..Self::default()
        }
    }
}

/// A fault with the PDUs it applies to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule<F> {
    /// What it applies to.
    pub filter: Filter,
    /// So many matches are left alone first.
    pub skip: u32,
    /// So many matches are hit after that; [`Rule::ALWAYS`] for no end.
    pub times: u32,
    /// What is done to them.
    pub fault: F,
}

impl<F> Rule<F> {
    /// No end.
    pub const ALWAYS: u32 = u32::MAX;

    /// A rule for the first `times` matches.
    pub fn new(filter: Filter, times: u32, fault: F) -> Self {
        Self {
            filter,
            skip: 0,
            times,
            fault,
        }
    }

    /// Leaves the first `skip` matches alone.
    #[must_use]
    pub fn after(self, skip: u32) -> Self {
        Self { skip, ..self }
    }

    /// Whether the rule acts on this PDU; counts it.
    pub(super) fn hits(&mut self, subject: &Subject<'_>) -> bool {
        if self.times == 0 || !self.filter.matches(subject) {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        if self.times != Self::ALWAYS {
            self.times -= 1;
        }
        true
    }
}

impl<F: std::fmt::Debug> Rule<F> {
    /// Tells who listens that the rule acts on a PDU of this opcode; not of rules that always act.
    pub(super) fn note(&self, opcode: u8) {
        if self.times != Self::ALWAYS {
            tracing::debug!(opcode, fault = ?self.fault, "{}", ACTS);
        }
    }
}

/// Which PDUs a rule applies to. Empty fields fit everything; SCSI fields never fit a PDU that belongs
/// to no SCSI task.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// iSCSI opcode of the PDU, without the immediate bit.
    pub opcode: Option<u8>,
    /// Operation code of the task's CDB.
    pub scsi_opcode: Option<u8>,
    /// LBAs the task touches: its first block lies in this range.
    pub lbas: Option<RangeInclusive<u64>>,
    /// LUN of the task.
    pub lun: Option<Lun>,
}

impl Filter {
    /// Everything.
    #[must_use]
    pub fn any() -> Self {
        Self::default()
    }

    /// PDUs of one iSCSI opcode.
    #[must_use]
    pub fn opcode(opcode: u8) -> Self {
        Self {
            opcode: Some(opcode),
            ..Self::default()
        }
    }

    /// PDUs of tasks with one SCSI operation code.
    #[must_use]
    pub fn scsi(opcode: u8) -> Self {
        Self {
            scsi_opcode: Some(opcode),
            ..Self::default()
        }
    }

    /// Only tasks whose first block lies in `lbas`.
    #[must_use]
    pub fn at(self, lbas: RangeInclusive<u64>) -> Self {
        Self {
            lbas: Some(lbas),
            ..self
        }
    }

    fn matches(&self, subject: &Subject<'_>) -> bool {
        if self.opcode.is_some_and(|opcode| opcode != subject.opcode) {
            return false;
        }
        if self.scsi_opcode.is_none() && self.lbas.is_none() && self.lun.is_none() {
            return true;
        }
        let Some((lun, cdb)) = subject.task else {
            return false;
        };
        self.lun.is_none_or(|wanted| wanted == lun)
            && self
                .scsi_opcode
                .is_none_or(|wanted| cdb.first() == Some(&wanted))
            && self
                .lbas
                .as_ref()
                .is_none_or(|range| first_lba(cdb).is_some_and(|lba| range.contains(&lba)))
    }
}

/// What a filter looks at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) opcode: u8,
    pub(super) task: Option<(Lun, &'a [u8])>,
}

/// First logical block of a CDB, by the size its operation code implies (SPC-4 4.2.5.1).
fn first_lba(cdb: &[u8]) -> Option<u64> {
    let field = |at: usize, len: usize| -> Option<u64> {
        let bytes = cdb.get(at..at + len)?;
        Some(
            bytes
                .iter()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
        )
    };
    match cdb.first()? >> 5 {
        0 => field(1, 3).map(|lba| lba & 0x1f_ffff),
        1 | 2 | 5 => field(2, 4),
        4 => field(2, 8),
        _ => None,
    }
}

/// What goes wrong with a command when it is received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandFault {
    /// It is answered with this SCSI status and not executed (08 BUSY, 18 RESERVATION CONFLICT, 28 TASK
    /// SET FULL, 40 TASK ABORTED).
    Status(u8),
    /// It is answered with CHECK CONDITION and this sense, and not executed.
    Sense {
        /// Sense key.
        key: u8,
        /// Additional sense code.
        asc: u8,
        /// Its qualifier.
        ascq: u8,
    },
    /// It is executed after this time; others overtake it.
    DelayExecution(Duration),
    /// It is executed when the rule is released, or never.
    HoldExecution,
    /// It is executed at once, answered after this time.
    DelayResponse(Duration),
    /// It is executed at once, answered when held responses are released, or never.
    HoldResponse,
    /// It is rejected with this reason; its CmdSN counts as not received (RFC 7143 11.17.1).
    Reject(u8),
    /// The response carries this value in its Response field (RFC 7143 11.4.3), not 0.
    Response(u8),
    /// So many bytes at the end of a read are not sent. With `residual` the response admits it.
    ShortRead {
        /// Bytes that are missing.
        missing_bytes: u32,
        /// The response has the matching underflow.
        residual: bool,
    },
    /// The connection is cut when the command arrives; the command is not executed.
    Cut,
    /// The command is executed, then the connection is cut without an answer.
    ExecuteThenCut,
}

/// What goes wrong with a PDU when it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SendFault {
    /// It is left out; its numbers are used up.
    Omit,
    /// It is sent twice.
    Duplicate,
    /// The byte at this offset of the PDU (header, digests and data in wire order) is XORed with the mask,
    /// after the digests were computed.
    Corrupt {
        /// Offset in bytes from the start of the PDU; counted from its end when negative.
        offset: i32,
        /// Bits to flip.
        mask: u8,
    },
    /// A header field is overwritten before the digests are computed, so the PDU is well formed and wrong:
    /// `len` big-endian bytes at `offset`.
    Field {
        /// Offset in the basic header segment.
        offset: u8,
        /// 1, 2 or 4 bytes.
        len: u8,
        /// New value.
        value: u32,
    },
    /// A 32-bit header field is increased (wrapping) before the digests are computed.
    Add {
        /// Offset in the basic header segment.
        offset: u8,
        /// Increment.
        delta: i32,
    },
    /// The connection is closed after this PDU.
    CutAfter,
    /// The connection is closed after so many bytes of this PDU.
    CutInside(u32),
}

impl SendFault {
    /// Wrong DataSN of a Data-In or R2TSN of an R2T (bytes 36 to 39).
    #[must_use]
    pub const fn data_sn(delta: i32) -> Self {
        Self::Add { offset: 36, delta }
    }

    /// Wrong StatSN (bytes 24 to 27).
    #[must_use]
    pub const fn stat_sn(delta: i32) -> Self {
        Self::Add { offset: 24, delta }
    }

    /// Wrong buffer offset of a Data-In or R2T (bytes 40 to 43); large ones point beyond EDTL.
    #[must_use]
    pub const fn buffer_offset(delta: i32) -> Self {
        Self::Add { offset: 40, delta }
    }

    /// Another initiator task tag (bytes 16 to 19).
    #[must_use]
    pub const fn itt(value: u32) -> Self {
        Self::Field {
            offset: 16,
            len: 4,
            value,
        }
    }

    /// Another target transfer tag (bytes 20 to 23).
    #[must_use]
    pub const fn ttt(value: u32) -> Self {
        Self::Field {
            offset: 20,
            len: 4,
            value,
        }
    }
}

/// What goes wrong during login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoginFault {
    /// What the login machine can play: a status of any class, redirects (to this portal itself they make a
    /// loop), a login that never ends, keys split with the C bit.
    Machine(LoginFaults),
    /// No request is answered.
    Silent,
    /// These bytes are sent instead of the first response, then the connection is closed.
    Garbage(Vec<u8>),
}

/// What goes wrong below the PDUs. Byte counts are from the start of the connection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkFault {
    /// The connection is closed when this many bytes were sent.
    pub cut_after_sent_bytes: Option<u64>,
    /// The connection is closed when this many bytes were received.
    pub cut_after_received_bytes: Option<u64>,
    /// Nothing is read; the socket stays open.
    pub stop_reading: bool,
    /// Nothing is written; the socket stays open.
    pub stop_writing: bool,
    /// At most this many bytes per write; 1 is the slow trickle. 0 means no limit.
    pub write_bytes_max: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ10: [u8; 10] = [0x28, 0, 0, 0, 1, 0, 0, 0, 8, 0];

    fn task(opcode: u8) -> Subject<'static> {
        Subject {
            opcode,
            task: Some((Lun::default(), &READ10)),
        }
    }

    #[test]
    fn filters_look_at_opcode_cdb_and_lba() {
        assert!(Filter::any().matches(&task(1)));
        assert!(Filter::opcode(1).matches(&task(1)));
        assert!(!Filter::opcode(1).matches(&task(0x21)));
        assert!(Filter::scsi(0x28).at(256..=256).matches(&task(1)));
        assert!(!Filter::scsi(0x28).at(0..=255).matches(&task(1)));
        assert!(!Filter::scsi(0x2a).matches(&task(1)));
        let nop = Subject {
            opcode: 0,
            task: None,
        };
        assert!(!Filter::scsi(0x28).matches(&nop));
    }

    #[test]
    fn rules_count() {
        let mut rule = Rule::new(Filter::any(), 2, ()).after(1);
        let hits: Vec<bool> = (0..5).map(|_| rule.hits(&task(1))).collect();
        assert_eq!(hits, [false, true, true, false, false]);
        let mut rule = Rule::new(Filter::any(), Rule::<()>::ALWAYS, ());
        assert!((0..100).all(|_| rule.hits(&task(1))));
    }

    #[test]
    fn first_lba_by_cdb_size() {
        assert_eq!(first_lba(&[0x08, 0xff, 1, 2, 1, 0]), Some(0x1f_0102));
        assert_eq!(
            first_lba(&[0x88, 0, 1, 0, 0, 0, 0, 0, 0, 2]),
            Some(1 << 56 | 2)
        );
        assert_eq!(first_lba(&[0x28, 0, 1]), None);
        assert_eq!(first_lba(&[]), None);
    }
}

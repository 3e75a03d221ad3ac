//! What can go wrong in a run.

/// What can go wrong. Times in milliseconds; `portal` is the number of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant says what its numbers are")]
pub enum Fault {
    /// A connection ends for one side; the other one learns of it late, and takes what was sent before.
    Cut {
        portal: usize,
        side: usize,
        late_ms: u64,
    },
    /// A connection ends after so many more bytes from one side.
    CutAtByte {
        portal: usize,
        side: usize,
        bytes: usize,
    },
    /// Nothing arrives any more over the connections there are, and nobody is told.
    HalfOpen { portal: usize, both: bool },
    /// Nothing arrives for a while; then all of it does.
    Partition { portal: Option<usize>, ms: u64 },
    /// New connections are refused for a while.
    Refuse { portal: Option<usize>, ms: u64 },
    /// New connections get no answer for a while.
    Ignore { portal: Option<usize>, ms: u64 },
    /// So many bytes per millisecond for a while.
    Throttle { portal: usize, ms: u64, rate: u64 },
    /// Bytes take so much longer for a while.
    Delay { portal: usize, ms: u64, by_ms: u64 },
    /// The target restarts; its disk keeps everything.
    Restart { ms: u64 },
    /// Its power fails; unflushed blocks survive in so many of 100 cases.
    PowerCycle { ms: u64, survive_percent: u64 },
    /// A port group's access state changes for a while: 1 non-optimized, 2 standby, 3 unavailable, f transitioning.
    Alua { group: u16, state: u8, ms: u64 },
    /// The LUN leads to another unit for a while.
    Remap { ms: u64 },
    /// The LUN is not there for a while.
    Unmap { ms: u64 },
    /// The unit grows by so many blocks.
    Resize { blocks: u64 },
    /// The next commands end with a SCSI status: 8 BUSY, 28 TASK SET FULL, 40 TASK ABORTED.
    Status { status: u8, times: u32 },
    /// A command ends with sense data.
    Sense { key: u8, asc: u8, ascq: u8 },
    /// Thin provisioning has no space for a while.
    Full { ms: u64 },
    /// What happens to commands of a connection.
    Command {
        portal: usize,
        which: CommandFault,
        skip: u32,
    },
    /// A command hangs, and so many requests to end it fail: refused, or not answered.
    NoAbort {
        portal: usize,
        answered: bool,
        times: u32,
    },
    /// What happens to PDUs that the target sends.
    Send {
        portal: usize,
        which: SendFault,
        opcode: u8,
        skip: u32,
    },
    /// The next login is not what it should be.
    Login { which: LoginFault },
    /// An asynchronous message.
    Async { portal: usize, event: u8 },
    /// No new commands are granted for a while.
    Freeze { portal: usize, ms: u64 },
    /// A daemon dies, and comes back.
    /// What it had sent takes so long to arrive.
    Crash { node: usize, ms: u64, late_ms: u64 },
}

/// See [`berth_iscsi::target::faults::CommandFault`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "named like the fault switches")]
pub enum CommandFault {
    DelayExecution(u64),
    DelayResponse(u64),
    HoldExecution,
    HoldResponse,
    Reject(u8),
    Response(u8),
    ShortRead { admitted: bool },
    Cut,
    ExecuteThenCut,
}

/// See [`berth_iscsi::target::faults::SendFault`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "named like the fault switches")]
pub enum SendFault {
    Omit,
    Duplicate,
    /// Only where digests are on: nothing else can notice it.
    Corrupt {
        offset: i32,
    },
    DataSn,
    StatSn,
    BufferOffset,
    Itt,
    Ttt,
    CutAfter,
    CutInside(u32),
}

/// What a login gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "named like the fault switches")]
pub enum LoginFault {
    /// A status class and detail.
    Refused(u8, u8),
    Silent,
    Garbage,
    /// To another portal.
    Redirect {
        portal: usize,
        permanent: bool,
    },
}

impl Fault {
    /// The names of all.
    pub const NAMES: [&str; 51] = [
        "fault: connection lost by the initiator, late bytes",
        "fault: connection lost by the target",
        "fault: connection lost at a byte",
        "fault: half-open connection",
        "fault: partition",
        "fault: connect refused",
        "fault: connect unanswered",
        "fault: throttled link",
        "fault: slow link",
        "fault: target restart",
        "fault: power cut",
        "fault: ALUA change",
        "fault: LUN remapped",
        "fault: LUN unmapped",
        "fault: resize",
        "fault: BUSY",
        "fault: TASK SET FULL",
        "fault: TASK ABORTED",
        "fault: sense data",
        "fault: out of space",
        "fault: slow command",
        "fault: slow answer",
        "fault: command hangs",
        "fault: answer hangs",
        "fault: reject",
        "fault: target failure response",
        "fault: short read",
        "fault: cut at a command",
        "fault: cut after a command",
        "fault: abort refused",
        "fault: abort unanswered",
        "fault: PDU left out",
        "fault: PDU twice",
        "fault: PDU damaged",
        "fault: wrong DataSN",
        "fault: wrong StatSN",
        "fault: wrong buffer offset",
        "fault: wrong task tag",
        "fault: wrong transfer tag",
        "fault: cut at a PDU",
        "fault: login refused",
        "fault: login unanswered",
        "fault: login garbage",
        "fault: login redirected",
        "fault: asynchronous message 0",
        "fault: asynchronous message 1",
        "fault: asynchronous message 2",
        "fault: asynchronous message 3",
        "fault: asynchronous message 4",
        "fault: closed window",
        "fault: daemon crash",
    ];

    /// Whether it is set up now and happens later, if at all: then the target says when, and what
    /// ([`acted`]).
    #[must_use]
    pub fn happens_later(self) -> bool {
        matches!(
            self,
            Self::Command { .. } | Self::NoAbort { .. } | Self::Send { .. } | Self::Login { .. }
        )
    }

    /// The name under which it is counted.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cut { side: 0, .. } => "fault: connection lost by the initiator, late bytes",
            Self::Cut { .. } => "fault: connection lost by the target",
            Self::CutAtByte { .. } => "fault: connection lost at a byte",
            Self::HalfOpen { .. } => "fault: half-open connection",
            Self::Partition { .. } => "fault: partition",
            Self::Refuse { .. } => "fault: connect refused",
            Self::Ignore { .. } => "fault: connect unanswered",
            Self::Throttle { .. } => "fault: throttled link",
            Self::Delay { .. } => "fault: slow link",
            Self::Restart { .. } => "fault: target restart",
            Self::PowerCycle { .. } => "fault: power cut",
            Self::Alua { .. } => "fault: ALUA change",
            Self::Remap { .. } => "fault: LUN remapped",
            Self::Unmap { .. } => "fault: LUN unmapped",
            Self::Resize { .. } => "fault: resize",
            Self::Status { status: 0x08, .. } => "fault: BUSY",
            Self::Status { status: 0x28, .. } => "fault: TASK SET FULL",
            Self::Status { .. } => "fault: TASK ABORTED",
            Self::Sense { .. } => "fault: sense data",
            Self::Full { .. } => "fault: out of space",
            Self::Command { which, .. } => match which {
                CommandFault::DelayExecution(_) => "fault: slow command",
                CommandFault::DelayResponse(_) => "fault: slow answer",
                CommandFault::HoldExecution => "fault: command hangs",
                CommandFault::HoldResponse => "fault: answer hangs",
                CommandFault::Reject(_) => "fault: reject",
                CommandFault::Response(_) => "fault: target failure response",
                CommandFault::ShortRead { .. } => "fault: short read",
                CommandFault::Cut => "fault: cut at a command",
                CommandFault::ExecuteThenCut => "fault: cut after a command",
            },
            Self::NoAbort { answered: true, .. } => "fault: abort refused",
            Self::NoAbort { .. } => "fault: abort unanswered",
            Self::Send { which, .. } => match which {
                SendFault::Omit => "fault: PDU left out",
                SendFault::Duplicate => "fault: PDU twice",
                SendFault::Corrupt { .. } => "fault: PDU damaged",
                SendFault::DataSn => "fault: wrong DataSN",
                SendFault::StatSn => "fault: wrong StatSN",
                SendFault::BufferOffset => "fault: wrong buffer offset",
                SendFault::Itt => "fault: wrong task tag",
                SendFault::Ttt => "fault: wrong transfer tag",
                SendFault::CutAfter | SendFault::CutInside(_) => "fault: cut at a PDU",
            },
            Self::Login { which } => match which {
                LoginFault::Refused(..) => "fault: login refused",
                LoginFault::Silent => "fault: login unanswered",
                LoginFault::Garbage => "fault: login garbage",
                LoginFault::Redirect { .. } => "fault: login redirected",
            },
            Self::Async { event, .. } => match event {
                0 => "fault: asynchronous message 0",
                1 => "fault: asynchronous message 1",
                2 => "fault: asynchronous message 2",
                3 => "fault: asynchronous message 3",
                _ => "fault: asynchronous message 4",
            },
            Self::Freeze { .. } => "fault: closed window",
            Self::Crash { .. } => "fault: daemon crash",
        }
    }

    /// Whether a request may fail because of it, although every path comes back in time.
    #[must_use]
    pub fn may_fail_requests(self) -> bool {
        match self {
            // Medium errors and the like are passed on; out of space is, too.
            Self::Full { .. } | Self::Remap { .. } => true,
            // A target that calls a good command malformed will not like it better the next time.
            Self::Command { which, .. } => matches!(which, CommandFault::Reject(4 | 9)),
            Self::Sense { key, .. } => key == 3 || key == 4 || key == 0xb,
            _ => false,
        }
    }
}

/// The name of a fault by what the target says when it acts: the opcode of the PDU, and the switch.
#[must_use]
pub fn acted(opcode: u64, switch: &str) -> &'static str {
    const TASK_MANAGEMENT_RESPONSE: u64 = 0x22;
    let word = switch
        .split(|c: char| !c.is_alphanumeric())
        .next()
        .unwrap_or("");
    let is_at = |offset: u32| switch.contains(&format!("offset: {offset},"));
    match word {
        "DelayExecution" => "fault: slow command",
        "DelayResponse" => "fault: slow answer",
        "HoldExecution" => "fault: command hangs",
        "HoldResponse" => "fault: answer hangs",
        "Reject" => "fault: reject",
        "Response" => "fault: target failure response",
        "ShortRead" => "fault: short read",
        "Cut" => "fault: cut at a command",
        "ExecuteThenCut" => "fault: cut after a command",
        "Omit" if opcode == TASK_MANAGEMENT_RESPONSE => "fault: abort unanswered",
        "Omit" => "fault: PDU left out",
        "Duplicate" => "fault: PDU twice",
        "Corrupt" => "fault: PDU damaged",
        "Field" if opcode == TASK_MANAGEMENT_RESPONSE => "fault: abort refused",
        "Field" if is_at(16) => "fault: wrong task tag",
        "Field" if is_at(20) => "fault: wrong transfer tag",
        "Add" if is_at(24) => "fault: wrong StatSN",
        "Add" if is_at(36) => "fault: wrong DataSN",
        "Add" if is_at(40) => "fault: wrong buffer offset",
        "CutAfter" | "CutInside" => "fault: cut at a PDU",
        _ => "fault: unknown",
    }
}

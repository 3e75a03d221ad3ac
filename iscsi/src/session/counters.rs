//! What a session counts.

/// Counts since the session began; plain numbers, read at any time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// SCSI commands sent.
    pub commands: u64,
    /// Tasks that ended with an answer of the target.
    pub completed: u64,
    /// Data-In PDUs.
    pub data_in_pdus: u64,
    /// Data-Out PDUs.
    pub data_out_pdus: u64,
    /// R2Ts.
    pub r2ts: u64,
    /// Payload bytes received in Data-In.
    pub read_bytes: u64,
    /// Payload bytes sent, immediate data included.
    pub written_bytes: u64,
    /// Times that a command had to wait because the command window was closed.
    pub window_closed: u64,
    /// Pings sent.
    pub pings: u64,
    /// Pings of the target that were answered.
    pub target_pings: u64,
    /// Tasks that were still running at their deadline.
    pub overdue: u64,
    /// ABORT TASK requests sent.
    pub aborts: u64,
    /// ABORT TASK requests that were refused or not answered in time.
    pub failed_aborts: u64,
    /// LOGICAL UNIT RESET requests sent because an abort failed.
    pub logical_unit_resets: u64,
    /// Rejects received.
    pub rejects: u64,
    /// Asynchronous messages received.
    pub async_messages: u64,
    /// Asynchronous messages that were dropped because the user did not fetch events.
    pub async_dropped: u64,
    /// PDUs with a StatSN seen before; ignored.
    pub duplicates: u64,
    /// Status with a wrong ExpDataSN although every byte was there.
    pub data_sn_mismatches: u64,
    /// Answers with GOOD status whose byte counts do not add up.
    pub short_transfers: u64,
}

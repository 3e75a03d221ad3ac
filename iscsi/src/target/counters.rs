//! What a connection saw; read by tests and by operators.

/// Counts of one connection, or the sum of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counters {
    /// PDUs received, by iSCSI opcode.
    pub received: [u64; 64],
    /// PDUs sent, by iSCSI opcode.
    pub sent: [u64; 64],
    /// SCSI commands executed, by operation code.
    pub executed: [u64; 256],
    /// Bytes that the driver read from the socket.
    pub wire_received_bytes: u64,
    /// Bytes that it wrote.
    pub wire_sent_bytes: u64,
    /// Bytes of data-out handed to logical units.
    pub data_out_bytes: u64,
    /// Bytes of data-in sent.
    pub data_in_bytes: u64,
    /// PDUs whose data digest was wrong.
    pub data_digest_errors: u64,
    /// Commands outside of the window or received before (RFC 7143 4.2.2.1).
    pub ignored_commands: u64,
    /// Rejects sent.
    pub rejects: u64,
    /// Pings sent to the initiator.
    pub pings_sent: u64,
    /// Pings that it answered.
    pub pings_answered: u64,
    /// Answers to pings that nobody sent.
    pub stray_pongs: u64,
    /// Tasks that were aborted.
    pub aborted_tasks: u64,
    /// Times that a fault switch acted.
    pub faults: u64,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            received: [0; 64],
            sent: [0; 64],
            executed: [0; 256],
            wire_received_bytes: 0,
            wire_sent_bytes: 0,
            data_out_bytes: 0,
            data_in_bytes: 0,
            data_digest_errors: 0,
            ignored_commands: 0,
            rejects: 0,
            pings_sent: 0,
            pings_answered: 0,
            stray_pongs: 0,
            aborted_tasks: 0,
            faults: 0,
        }
    }
}

impl Counters {
    /// Adds `other` to this.
    pub fn add(&mut self, other: &Self) {
        let arrays = [
            (&mut self.received[..], &other.received[..]),
            (&mut self.sent[..], &other.sent[..]),
            (&mut self.executed[..], &other.executed[..]),
        ];
        for (mine, theirs) in arrays {
            for (sum, count) in mine.iter_mut().zip(theirs) {
                *sum += count;
            }
        }
        self.wire_received_bytes += other.wire_received_bytes;
        self.wire_sent_bytes += other.wire_sent_bytes;
        self.data_out_bytes += other.data_out_bytes;
        self.data_in_bytes += other.data_in_bytes;
        self.data_digest_errors += other.data_digest_errors;
        self.ignored_commands += other.ignored_commands;
        self.rejects += other.rejects;
        self.pings_sent += other.pings_sent;
        self.pings_answered += other.pings_answered;
        self.stray_pongs += other.stray_pongs;
        self.aborted_tasks += other.aborted_tasks;
        self.faults += other.faults;
    }
}

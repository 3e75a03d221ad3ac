//! What one side proposes, and what both sides agreed on (RFC 7143 13).

use super::keys::{LENGTH_BYTES_MAX, LENGTH_BYTES_MIN, LOGIN_SEGMENT_BYTES_MAX};

/// Whether we want a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DigestPolicy {
    /// Never: only `None` is offered and taken.
    #[default]
    Off,
    /// CRC32C when the peer has it; a peer that chooses first gets its choice.
    Prefer,
    /// CRC32C or no session.
    Require,
}

impl DigestPolicy {
    /// What is acceptable, in order of preference.
    #[must_use]
    pub const fn choices(self) -> &'static [&'static str] {
        match self {
            Self::Off => &["None"],
            Self::Prefer => &["CRC32C", "None"],
            Self::Require => &["CRC32C"],
        }
    }
}

/// How a target reports tasks that a multi-task abort ended (RFC 7143 13.23).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TaskReporting {
    /// As in RFC 3720; the default.
    #[default]
    Rfc3720,
    /// The response comes after all responses of affected tasks.
    ResponseFence,
    /// As above, and tasks may be ended without waiting for their data.
    FastAbort,
}

impl TaskReporting {
    /// The word on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rfc3720 => "RFC3720",
            Self::ResponseFence => "ResponseFence",
            Self::FastAbort => "FastAbort",
        }
    }

    /// The variant of a word.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Rfc3720, Self::ResponseFence, Self::FastAbort]
            .into_iter()
            .find(|t| t.name() == name)
    }
}

/// What one side wants: an initiator proposes it, a target answers with it as its limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// HeaderDigest.
    pub header_digest: DigestPolicy,
    /// DataDigest.
    pub data_digest: DigestPolicy,
    /// InitialR2T: whether unsolicited Data-Out is forbidden.
    pub initial_r2t: bool,
    /// ImmediateData.
    pub immediate_data: bool,
    /// Largest data segment we take, in bytes: 512..=16777215.
    pub max_recv_data_segment_bytes: u32,
    /// MaxBurstLength in bytes: 512..=16777215.
    pub max_burst_bytes: u32,
    /// FirstBurstLength in bytes: 512..=`max_burst_bytes`.
    pub first_burst_bytes: u32,
    /// MaxOutstandingR2T: 1..=65535; offered as 1 when `error_recovery_level` is above 0.
    pub max_outstanding_r2t: u16,
    /// MaxConnections: 1..=65535.
    pub max_connections: u16,
    /// ErrorRecoveryLevel: 0..=2.
    pub error_recovery_level: u8,
    /// DefaultTime2Wait in seconds: 0..=3600.
    pub time2wait_s: u16,
    /// DefaultTime2Retain in seconds: 0..=3600.
    pub time2retain_s: u16,
    /// DataPDUInOrder.
    pub data_pdu_in_order: bool,
    /// DataSequenceInOrder.
    pub data_sequence_in_order: bool,
    /// TaskReporting in order of preference; not offered when empty.
    pub task_reporting: Vec<TaskReporting>,
    /// iSCSIProtocolLevel (RFC 7144): 0..=31; not offered when `None`.
    pub protocol_level: Option<u8>,
}

impl Default for Offer {
    /// Large bursts, unsolicited data, level 0. Time2Retain is 0 because at level 0 nobody takes over
    /// tasks that a target would retain.
    fn default() -> Self {
        Self {
            header_digest: DigestPolicy::Off,
            data_digest: DigestPolicy::Off,
            initial_r2t: false,
            immediate_data: true,
            max_recv_data_segment_bytes: 262_144,
            max_burst_bytes: 16_776_192,
            first_burst_bytes: 262_144,
            max_outstanding_r2t: 16,
            max_connections: 1,
            error_recovery_level: 0,
            time2wait_s: 2,
            time2retain_s: 0,
            data_pdu_in_order: true,
            data_sequence_in_order: true,
            task_reporting: Vec::new(),
            protocol_level: None,
        }
    }
}

impl Offer {
    /// Names the first field that no peer could accept, with what would be right.
    ///
    /// # Errors
    /// The field's name and the legal range.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let length = LENGTH_BYTES_MIN..=LENGTH_BYTES_MAX;
        let checks = [
            (
                length.contains(&self.max_recv_data_segment_bytes),
                "max_recv_data_segment_bytes",
                "512 to 16777215",
            ),
            (
                length.contains(&self.max_burst_bytes),
                "max_burst_bytes",
                "512 to 16777215",
            ),
            (
                (LENGTH_BYTES_MIN..=self.max_burst_bytes).contains(&self.first_burst_bytes),
                "first_burst_bytes",
                "512 to max_burst_bytes",
            ),
            (
                self.max_outstanding_r2t >= 1,
                "max_outstanding_r2t",
                "1 to 65535",
            ),
            (self.max_connections >= 1, "max_connections", "1 to 65535"),
            (
                self.error_recovery_level <= 2,
                "error_recovery_level",
                "0 to 2",
            ),
            (self.time2wait_s <= 3600, "time2wait_s", "0 to 3600"),
            (self.time2retain_s <= 3600, "time2retain_s", "0 to 3600"),
            (
                self.protocol_level.is_none_or(|l| l <= 31),
                "protocol_level",
                "0 to 31",
            ),
        ];
        match checks.iter().find(|(fine, ..)| !fine) {
            Some((_, field, right)) => Err((field, right)),
            None => Ok(()),
        }
    }
}

/// What both sides agreed on; fields of both roles, so limits are "own" and "peer".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Negotiated {
    /// Whether every PDU has a header digest.
    pub header_digest: bool,
    /// Whether every PDU with data has a data digest.
    pub data_digest: bool,
    /// Whether unsolicited Data-Out is forbidden.
    pub initial_r2t: bool,
    /// Whether a command may carry data.
    pub immediate_data: bool,
    /// Largest sequence of Data-In or of Data-Out for one R2T, in bytes.
    pub max_burst_bytes: u32,
    /// Most unsolicited data of one command, immediate data included, in bytes; never above
    /// `max_burst_bytes`.
    pub first_burst_bytes: u32,
    /// R2Ts of one task that may be open at a time.
    pub max_outstanding_r2t: u16,
    /// Largest data segment that we take, in bytes.
    pub max_recv_data_segment_bytes: u32,
    /// Largest data segment that the peer takes, in bytes.
    pub peer_max_recv_data_segment_bytes: u32,
    /// Seconds to wait after a failure before connecting again.
    pub time2wait_s: u16,
    /// Seconds after that for which tasks are kept.
    pub time2retain_s: u16,
    /// 0, 1 or 2.
    pub error_recovery_level: u8,
    /// Connections of one session.
    pub max_connections: u16,
    /// Whether data PDUs of a sequence are at rising offsets.
    pub data_pdu_in_order: bool,
    /// Whether sequences are at rising offsets.
    pub data_sequence_in_order: bool,
    /// How multi-task aborts are reported.
    pub task_reporting: TaskReporting,
    /// 1 = RFC 7143, 2 = RFC 7144 features.
    pub protocol_level: u8,
    /// Tag of the portal group, when the target told.
    pub target_portal_group_tag: Option<u16>,
    /// The target's name for people, when it told.
    pub target_alias: Option<String>,
    /// The initiator's name for people, when it told.
    pub initiator_alias: Option<String>,
}

impl Default for Negotiated {
    /// The defaults of RFC 7143 13: in force for every key that nobody negotiates.
    fn default() -> Self {
        Self {
            header_digest: false,
            data_digest: false,
            initial_r2t: true,
            immediate_data: true,
            max_burst_bytes: 262_144,
            first_burst_bytes: 65_536,
            max_outstanding_r2t: 1,
            max_recv_data_segment_bytes: LOGIN_SEGMENT_BYTES_MAX,
            peer_max_recv_data_segment_bytes: LOGIN_SEGMENT_BYTES_MAX,
            time2wait_s: 2,
            time2retain_s: 20,
            error_recovery_level: 0,
            max_connections: 1,
            data_pdu_in_order: true,
            data_sequence_in_order: true,
            task_reporting: TaskReporting::Rfc3720,
            protocol_level: 1,
            target_portal_group_tag: None,
            target_alias: None,
            initiator_alias: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_offer_is_legal_and_bad_ones_are_named() {
        let offer = Offer::default();
        assert_eq!(offer.check(), Ok(()));
        let bad = |change: fn(&mut Offer)| {
            let mut offer = Offer::default();
            change(&mut offer);
            offer.check().unwrap_err().0
        };
        assert_eq!(
            bad(|o| o.max_recv_data_segment_bytes = 511),
            "max_recv_data_segment_bytes"
        );
        assert_eq!(bad(|o| o.max_burst_bytes = 1 << 24), "max_burst_bytes");
        assert_eq!(bad(|o| o.max_burst_bytes = 4096), "first_burst_bytes");
        assert_eq!(bad(|o| o.max_outstanding_r2t = 0), "max_outstanding_r2t");
        assert_eq!(bad(|o| o.max_connections = 0), "max_connections");
        assert_eq!(bad(|o| o.error_recovery_level = 3), "error_recovery_level");
        assert_eq!(bad(|o| o.time2wait_s = 3601), "time2wait_s");
        assert_eq!(bad(|o| o.time2retain_s = 3601), "time2retain_s");
        assert_eq!(bad(|o| o.protocol_level = Some(32)), "protocol_level");
    }
}

//! Every text key and its rule (RFC 7143 6.2, 12, 13).

use super::text::{BINARY_TEXT_BYTES_MAX, VALUE_BYTES_MAX};

/// Smallest and largest length for the keys that carry a data or burst length, in bytes.
pub const LENGTH_BYTES_MIN: u32 = 512;
/// See [`LENGTH_BYTES_MIN`]; 2^24 - 1.
pub const LENGTH_BYTES_MAX: u32 = 0xff_ffff;
/// Longest data segment during login, and before MaxRecvDataSegmentLength is declared.
pub const LOGIN_SEGMENT_BYTES_MAX: u32 = 8192;

/// A text key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the names are those of the standard; `KeySpec` documents each
pub enum Key {
    AuthMethod,
    ChapA,
    ChapI,
    ChapC,
    ChapN,
    ChapR,
    KrbApReq,
    KrbApRep,
    SrpU,
    TargetAuth,
    SrpGroup,
    SrpSalt,
    SrpA,
    SrpB,
    SrpM,
    SrpHm,
    HeaderDigest,
    DataDigest,
    MaxConnections,
    SendTargets,
    TargetName,
    InitiatorName,
    TargetAlias,
    InitiatorAlias,
    TargetAddress,
    TargetPortalGroupTag,
    InitialR2T,
    ImmediateData,
    MaxRecvDataSegmentLength,
    MaxBurstLength,
    FirstBurstLength,
    DefaultTime2Wait,
    DefaultTime2Retain,
    MaxOutstandingR2T,
    DataPduInOrder,
    DataSequenceInOrder,
    ErrorRecoveryLevel,
    SessionType,
    TaskReporting,
    ProtocolLevel,
    NodeArchitecture,
    IfMarker,
    OfMarker,
    IfMarkInt,
    OfMarkInt,
    RdmaExtensions,
    InitiatorRecvDataSegmentLength,
    TargetRecvDataSegmentLength,
    MaxOutstandingUnexpectedPdus,
    MaxAhsLength,
    TaggedBufferForSolicitedDataOnly,
    IserHelloRequired,
}

/// How the offer and the answer become one value (RFC 7143 6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// List in order of preference; the responder takes the first that it supports.
    FirstCommon,
    /// `Yes` only when both say `Yes`.
    And,
    /// `Yes` when either says `Yes`.
    Or,
    /// The smaller number of this range.
    Minimum {
        /// Smallest legal value.
        min: u64,
        /// Largest legal value.
        max: u64,
    },
    /// The larger number of this range.
    Maximum {
        /// Smallest legal value.
        min: u64,
        /// Largest legal value.
        max: u64,
    },
    /// Declared by one side, never answered.
    Declarative,
    /// Belongs to an authentication method.
    Authentication,
    /// A key of RFC 3720 that is answered `Reject` (RFC 7143 13.25, 13.26), or an authentication
    /// method that we do not have.
    Refused,
    /// Means something over RDMA only; answered `Irrelevant` on TCP (RFC 7145 6).
    RdmaOnly,
}

/// When a key may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Login of the first connection of a session.
    LeadingOnly,
    /// Login of any connection.
    InitialOnly,
    /// Login and full feature phase.
    All,
    /// Full feature phase.
    FullFeatureOnly,
}

/// Who may send a key first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Sender {
    Initiator,
    Target,
    Both,
}

/// What the value is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// One connection.
    Connection,
    /// The whole session.
    Session,
}

/// One row of the table of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeySpec {
    /// The key.
    pub key: Key,
    /// Its name on the wire, case-sensitive.
    pub name: &'static str,
    /// How values are combined.
    pub rule: Rule,
    /// When it may be sent.
    pub use_: Use,
    /// Whether it may be sent in the security stage (and in no other, for authentication keys).
    pub security_stage: bool,
    /// Who may send it first.
    pub sender: Sender,
    /// What it is about.
    pub scope: Scope,
    /// Value in force when nothing is negotiated; empty when there is none.
    pub default: &'static str,
    /// Whether it means nothing in a discovery session.
    pub irrelevant_in_discovery: bool,
    /// Longest value, as text.
    pub value_bytes_max: usize,
}

const LENGTH: Rule = Rule::Minimum {
    min: LENGTH_BYTES_MIN as u64,
    max: LENGTH_BYTES_MAX as u64,
};
const COUNT: Rule = Rule::Minimum { min: 1, max: 65535 };
const SECONDS_MIN: Rule = Rule::Minimum { min: 0, max: 3600 };
const SECONDS_MAX: Rule = Rule::Maximum { min: 0, max: 3600 };

const fn row(
    key: Key,
    name: &'static str,
    rule: Rule,
    use_: Use,
    default: &'static str,
) -> KeySpec {
    KeySpec {
        key,
        name,
        rule,
        use_,
        security_stage: matches!(rule, Rule::Authentication),
        sender: Sender::Both,
        scope: match use_ {
            Use::LeadingOnly => Scope::Session,
            Use::InitialOnly | Use::All => Scope::Connection,
            Use::FullFeatureOnly => Scope::Session,
        },
        default,
        irrelevant_in_discovery: false,
        value_bytes_max: VALUE_BYTES_MAX,
    }
}

impl KeySpec {
    const fn from(mut self, sender: Sender) -> Self {
        self.sender = sender;
        self
    }

    /// May be sent in any stage.
    const fn any_stage(mut self) -> Self {
        self.security_stage = true;
        self
    }

    const fn not_in_discovery(mut self) -> Self {
        self.irrelevant_in_discovery = true;
        self
    }

    const fn binary(mut self) -> Self {
        self.value_bytes_max = BINARY_TEXT_BYTES_MAX;
        self
    }

    const fn of_session(mut self) -> Self {
        self.scope = Scope::Session;
        self
    }
}

/// All keys of RFC 7143, RFC 7144 and RFC 7145, in the order of [`Key`].
#[rustfmt::skip] // one row a line, as in a table
pub static KEYS: [KeySpec; Key::IserHelloRequired as usize + 1] = {
    use Rule::*;
    use Sender::*;
    use Use::*;
    [
        // RFC 7143 12
        row(Key::AuthMethod, "AuthMethod", Authentication, InitialOnly, ""),
        row(Key::ChapA, "CHAP_A", Authentication, InitialOnly, ""),
        row(Key::ChapI, "CHAP_I", Authentication, InitialOnly, ""),
        row(Key::ChapC, "CHAP_C", Authentication, InitialOnly, "").binary(),
        row(Key::ChapN, "CHAP_N", Authentication, InitialOnly, ""),
        row(Key::ChapR, "CHAP_R", Authentication, InitialOnly, "").binary(),
        row(Key::KrbApReq, "KRB_AP_REQ", Refused, InitialOnly, "").binary(),
        row(Key::KrbApRep, "KRB_AP_REP", Refused, InitialOnly, "").binary(),
        row(Key::SrpU, "SRP_U", Refused, InitialOnly, "").binary(),
        row(Key::TargetAuth, "TargetAuth", Refused, InitialOnly, ""),
        row(Key::SrpGroup, "SRP_GROUP", Refused, InitialOnly, ""),
        row(Key::SrpSalt, "SRP_s", Refused, InitialOnly, "").binary(),
        row(Key::SrpA, "SRP_A", Refused, InitialOnly, "").binary(),
        row(Key::SrpB, "SRP_B", Refused, InitialOnly, "").binary(),
        row(Key::SrpM, "SRP_M", Refused, InitialOnly, "").binary(),
        row(Key::SrpHm, "SRP_HM", Refused, InitialOnly, "").binary(),
        // RFC 7143 13.1, 13.2
        row(Key::HeaderDigest, "HeaderDigest", FirstCommon, InitialOnly, "None"),
        row(Key::DataDigest, "DataDigest", FirstCommon, InitialOnly, "None"),
        row(Key::MaxConnections, "MaxConnections", COUNT, LeadingOnly, "1").not_in_discovery(),
        row(Key::SendTargets, "SendTargets", Declarative, FullFeatureOnly, "").from(Initiator),
        row(Key::TargetName, "TargetName", Declarative, InitialOnly, "").from(Initiator).any_stage(),
        row(Key::InitiatorName, "InitiatorName", Declarative, InitialOnly, "").from(Initiator).any_stage(),
        row(Key::TargetAlias, "TargetAlias", Declarative, All, "").from(Target).any_stage(),
        row(Key::InitiatorAlias, "InitiatorAlias", Declarative, All, "").from(Initiator).any_stage(),
        row(Key::TargetAddress, "TargetAddress", Declarative, All, "").from(Target).any_stage(),
        row(Key::TargetPortalGroupTag, "TargetPortalGroupTag", Declarative, InitialOnly, "").from(Target).any_stage(),
        // RFC 7143 13.10 to 13.20
        row(Key::InitialR2T, "InitialR2T", Or, LeadingOnly, "Yes").not_in_discovery(),
        row(Key::ImmediateData, "ImmediateData", And, LeadingOnly, "Yes").not_in_discovery(),
        row(Key::MaxRecvDataSegmentLength, "MaxRecvDataSegmentLength", Declarative, All, "8192"),
        row(Key::MaxBurstLength, "MaxBurstLength", LENGTH, LeadingOnly, "262144").not_in_discovery(),
        row(Key::FirstBurstLength, "FirstBurstLength", LENGTH, LeadingOnly, "65536").not_in_discovery(),
        row(Key::DefaultTime2Wait, "DefaultTime2Wait", SECONDS_MAX, LeadingOnly, "2"),
        row(Key::DefaultTime2Retain, "DefaultTime2Retain", SECONDS_MIN, LeadingOnly, "20"),
        row(Key::MaxOutstandingR2T, "MaxOutstandingR2T", COUNT, LeadingOnly, "1").not_in_discovery(),
        row(Key::DataPduInOrder, "DataPDUInOrder", Or, LeadingOnly, "Yes").not_in_discovery(),
        row(Key::DataSequenceInOrder, "DataSequenceInOrder", Or, LeadingOnly, "Yes").not_in_discovery(),
        row(Key::ErrorRecoveryLevel, "ErrorRecoveryLevel", Minimum { min: 0, max: 2 }, LeadingOnly, "0"),
        row(Key::SessionType, "SessionType", Declarative, LeadingOnly, "Normal").from(Initiator).any_stage(),
        row(Key::TaskReporting, "TaskReporting", FirstCommon, LeadingOnly, "RFC3720").not_in_discovery(),
        // RFC 7144 7.1
        row(Key::ProtocolLevel, "iSCSIProtocolLevel", Minimum { min: 0, max: 31 }, LeadingOnly, "1").not_in_discovery(),
        row(Key::NodeArchitecture, "X#NodeArchitecture", Declarative, LeadingOnly, ""),
        // RFC 7143 13.25, 13.26
        row(Key::IfMarker, "IFMarker", Refused, InitialOnly, "No"),
        row(Key::OfMarker, "OFMarker", Refused, InitialOnly, "No"),
        row(Key::IfMarkInt, "IFMarkInt", Refused, InitialOnly, ""),
        row(Key::OfMarkInt, "OFMarkInt", Refused, InitialOnly, ""),
        // RFC 7145 6
        row(Key::RdmaExtensions, "RDMAExtensions", And, LeadingOnly, "No"),
        row(Key::InitiatorRecvDataSegmentLength, "InitiatorRecvDataSegmentLength", RdmaOnly, InitialOnly, "8192"),
        row(Key::TargetRecvDataSegmentLength, "TargetRecvDataSegmentLength", RdmaOnly, InitialOnly, "8192"),
        row(Key::MaxOutstandingUnexpectedPdus, "MaxOutstandingUnexpectedPDUs", RdmaOnly, LeadingOnly, "0"),
        row(Key::MaxAhsLength, "MaxAHSLength", RdmaOnly, LeadingOnly, "256"),
        row(Key::TaggedBufferForSolicitedDataOnly, "TaggedBufferForSolicitedDataOnly", RdmaOnly, LeadingOnly, "No"),
        row(Key::IserHelloRequired, "iSERHelloRequired", RdmaOnly, InitialOnly, "No").of_session(),
    ]
};

impl Key {
    /// The key of a name, by exact spelling.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        KEYS.iter().find(|spec| spec.name == name).map(|s| s.key)
    }

    /// Its row of the table.
    #[must_use]
    pub fn spec(self) -> &'static KeySpec {
        &KEYS[self as usize]
    }

    /// Its name on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.spec().name
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::login::offer::Negotiated;

    #[test]
    fn rows_are_in_the_order_of_the_enum() {
        for (i, spec) in KEYS.iter().enumerate() {
            assert_eq!(spec.key as usize, i, "{}", spec.name);
            assert_eq!(Key::from_name(spec.name), Some(spec.key));
            assert_eq!(spec.key.spec(), spec);
        }
        assert_eq!(Key::from_name("headerdigest"), None);
        assert_eq!(Key::from_name("Header Digest"), None);
    }

    /// RFC 7143 13: the defaults of the table are those of [`Negotiated`].
    #[test]
    fn table_defaults_and_negotiated_defaults_agree() {
        let n = Negotiated::default();
        let yes = |b| if b { "Yes" } else { "No" };
        for (key, value) in [
            (Key::InitialR2T, yes(n.initial_r2t).to_owned()),
            (Key::ImmediateData, yes(n.immediate_data).to_owned()),
            (Key::MaxBurstLength, n.max_burst_bytes.to_string()),
            (Key::FirstBurstLength, n.first_burst_bytes.to_string()),
            (Key::MaxOutstandingR2T, n.max_outstanding_r2t.to_string()),
            (
                Key::MaxRecvDataSegmentLength,
                n.max_recv_data_segment_bytes.to_string(),
            ),
            (Key::DefaultTime2Wait, n.time2wait_s.to_string()),
            (Key::DefaultTime2Retain, n.time2retain_s.to_string()),
            (Key::ErrorRecoveryLevel, n.error_recovery_level.to_string()),
            (Key::MaxConnections, n.max_connections.to_string()),
            (Key::DataPduInOrder, yes(n.data_pdu_in_order).to_owned()),
            (
                Key::DataSequenceInOrder,
                yes(n.data_sequence_in_order).to_owned(),
            ),
            (Key::TaskReporting, n.task_reporting.name().to_owned()),
            (Key::ProtocolLevel, n.protocol_level.to_string()),
        ] {
            assert_eq!(key.spec().default, value, "{}", key.name());
        }
        assert_eq!(Key::HeaderDigest.spec().default, "None");
        assert_eq!(Key::DataDigest.spec().default, "None");
    }

    /// RFC 7143 13: "irrelevant when SessionType=Discovery".
    #[test]
    fn keys_without_meaning_in_discovery() {
        let names: Vec<_> = KEYS
            .iter()
            .filter(|s| s.irrelevant_in_discovery)
            .map(|s| s.name)
            .collect();
        assert_eq!(
            names,
            [
                "MaxConnections",
                "InitialR2T",
                "ImmediateData",
                "MaxBurstLength",
                "FirstBurstLength",
                "MaxOutstandingR2T",
                "DataPDUInOrder",
                "DataSequenceInOrder",
                "TaskReporting",
                "iSCSIProtocolLevel",
            ]
        );
    }
}

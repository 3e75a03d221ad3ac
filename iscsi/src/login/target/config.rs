//! What a target's login is told, whom it asks, and what comes out of it.

use crate::error::LoginStatus;
use crate::login::chap::{ChapAlgorithm, Secret};
use crate::login::offer::{Negotiated, Offer};
use crate::name::{IscsiName, TargetAddress};
use crate::pdu::{LoginResponse, Stage};
use crate::types::{Cid, CmdSn, Isid, StatSn, Tsih};

/// Who wants what, known after the first whole segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// InitiatorName.
    pub initiator_name: IscsiName,
    /// TargetName; `None` for a discovery session.
    pub target_name: Option<IscsiName>,
    /// Initiator's part of the session identifier.
    pub isid: Isid,
    /// 0 for a new session or a reinstatement (RFC 7143 6.3.1), else the session to join.
    pub tsih: Tsih,
    /// Connection ID.
    pub cid: Cid,
}

/// A CHAP name and its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// CHAP_N.
    pub user: String,
    /// The secret behind CHAP_R.
    pub secret: Secret,
}

/// How initiators have to authenticate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetAuth {
    /// Not at all: only `None` is taken.
    None,
    /// With CHAP.
    Chap {
        /// Any of these will do.
        accounts: Vec<Account>,
        /// What we answer with when the initiator asks for mutual authentication; without it such a
        /// login fails.
        mutual: Option<Account>,
        /// What we support; the initiator's order decides.
        algorithms: Vec<ChapAlgorithm>,
        /// Whether `None` is refused.
        required: bool,
    },
}

/// What a directory says about an identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// The login may go on.
    Admit {
        /// How to authenticate.
        auth: TargetAuth,
        /// Our limits for this session.
        offer: Offer,
        /// TargetAlias.
        alias: Option<String>,
    },
    /// Elsewhere.
    Redirect {
        /// Where; its portal group is left out on the wire.
        address: TargetAddress,
        /// Whether for good.
        permanent: bool,
    },
    /// No: target unknown (0203), initiator not allowed (0202), TSIH unknown (020A) and so on.
    Refuse(LoginStatus),
}

/// What a directory gives a session that it opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionGrant {
    /// The session's handle, not 0.
    pub tsih: Tsih,
    /// ExpCmdSN and MaxCmdSN of a session that exists already; `None` for a new one.
    pub window: Option<(CmdSn, CmdSn)>,
}

/// What a login has to ask the rest of the target.
pub trait Directory {
    /// Who is admitted, and how.
    fn admit(&mut self, identity: &Identity) -> Admission;

    /// Opens, reinstates or joins the session; called once, right before the final response.
    ///
    /// # Errors
    /// The status to refuse the login with.
    fn open(
        &mut self,
        identity: &Identity,
        negotiated: &Negotiated,
    ) -> Result<SessionGrant, LoginStatus>;
}

/// Faults to play on purpose.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoginFaults {
    /// Answer the first request of this stage with this status.
    pub status: Option<(Stage, LoginStatus)>,
    /// Redirect every login, whatever the directory says.
    pub redirect: Option<(TargetAddress, bool)>,
    /// Never agree to a next stage.
    pub never_ending: bool,
    /// Text bytes per response, so that keys are split over PDUs with the C bit.
    pub pdu_text_bytes: Option<usize>,
    /// Compute SHA-1 under the number of SHA-256, as tgt does.
    pub sha1_as_sha256: bool,
    /// Pairs added to the first response of the operational stage, as they are.
    pub extra_pairs: Vec<(String, String)>,
}

/// What a target's login needs to know before the first request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetLoginConfig {
    /// Tag of the portal group of the listener.
    pub portal_group_tag: u16,
    /// StatSN of the first response.
    pub stat_sn: StatSn,
    /// Commands that a new session may have outstanding.
    pub window: u32,
    /// Faults to play.
    pub faults: LoginFaults,
}

impl Default for TargetLoginConfig {
    fn default() -> Self {
        Self {
            portal_group_tag: 1,
            stat_sn: StatSn(1),
            window: 128,
            faults: LoginFaults::default(),
        }
    }
}

/// A finished login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Established {
    /// Who is there.
    pub identity: Identity,
    /// What both sides agreed on.
    pub negotiated: Negotiated,
    /// Handle of the session.
    pub tsih: Tsih,
    /// CHAP_N and algorithm of an initiator that proved itself.
    pub user: Option<(String, ChapAlgorithm)>,
    /// Whether the initiator asked us to prove ourselves, and we did.
    pub mutual: bool,
    /// StatSN of the next response.
    pub stat_sn: StatSn,
    /// CmdSN of the first command.
    pub exp_cmd_sn: CmdSn,
    /// Last CmdSN that is accepted.
    pub max_cmd_sn: CmdSn,
}

/// Why a login was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("login refused with {status}: {reason}")]
pub struct Refusal {
    /// What the initiator is told.
    pub status: LoginStatus,
    /// What only the log is told.
    pub reason: String,
}

/// What a request led to; the response is to be sent in every case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetStep {
    /// The login goes on.
    Respond(LoginResponse),
    /// Full feature phase starts after this response.
    Established(LoginResponse, Box<Established>),
    /// Close the connection after this response.
    Refused(LoginResponse, Refusal),
}

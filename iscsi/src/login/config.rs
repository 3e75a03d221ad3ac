//! What a login is told and what comes out of it.

use std::borrow::Cow;

use super::chap::{ChallengeLog, ChapAlgorithm, SECRET_BYTES_MIN, Secret};
use super::offer::{Negotiated, Offer};
use super::text::VALUE_BYTES_MAX;
use crate::error::{Error, Misuse};
use crate::name::{IscsiName, Portal};
use crate::types::{Cid, CmdSn, Isid, Itt, StatSn, Tsih};

/// What the session is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionKind {
    /// Commands to the LUNs of a target.
    Normal {
        /// The target.
        target_name: IscsiName,
    },
    /// SendTargets only.
    Discovery,
}

/// How to authenticate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InitiatorAuth {
    /// Offer `None` only.
    None,
    /// Offer CHAP.
    Chap(ChapConfig),
}

/// CHAP from the initiator's side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChapConfig {
    /// CHAP_N that we send.
    pub user: String,
    /// Our secret.
    pub secret: Secret,
    /// Demand that the target authenticates itself too.
    pub mutual: Option<MutualChap>,
    /// What to propose, in this order; see [`ChapAlgorithm::DEFAULT_ORDER`].
    pub algorithms: Vec<ChapAlgorithm>,
    /// Take secrets shorter than 12 bytes, against RFC 7143 9.2.1.
    pub allow_short_secrets: bool,
    /// Offer `None` after CHAP and go on without authentication when the target prefers that. Anybody
    /// who can pose as the target can then do without the secret.
    pub allow_none: bool,
}

impl ChapConfig {
    /// One-way CHAP with the default algorithms and no exceptions.
    #[must_use]
    pub fn new(user: impl Into<String>, secret: Secret) -> Self {
        Self {
            user: user.into(),
            secret,
            mutual: None,
            algorithms: ChapAlgorithm::DEFAULT_ORDER.to_vec(),
            allow_short_secrets: false,
            allow_none: false,
        }
    }
}

/// What the target has to prove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MutualChap {
    /// CHAP_N that the target must send; any when `None`.
    pub user: Option<String>,
    /// The target's secret; never the same as ours.
    pub secret: Secret,
}

/// Everything one login needs to know.
#[derive(Debug, Clone)]
pub struct LoginConfig {
    /// InitiatorName.
    pub initiator_name: IscsiName,
    /// InitiatorAlias: a name for people, at most 255 bytes.
    pub initiator_alias: Option<String>,
    /// What for.
    pub session: SessionKind,
    /// Persisted per path: a reconnect with the same ISID and TSIH 0 reinstates the session
    /// (RFC 7143 6.3.5), a fresh one leaves a ghost at the target.
    pub isid: Isid,
    /// 0 for a new session; else the session that this connection joins.
    pub tsih: Tsih,
    /// Connection ID.
    pub cid: Cid,
    /// Tag of all requests of this login.
    pub itt: Itt,
    /// CmdSN of all requests of this login, and of the first command after a leading login.
    pub cmd_sn: CmdSn,
    /// Authentication.
    pub auth: InitiatorAuth,
    /// What to propose.
    pub offer: Offer,
    /// Shared by all logins to one target that may overlap in time.
    pub challenges: ChallengeLog,
}

impl LoginConfig {
    /// A leading login without authentication, with the default offer.
    #[must_use]
    pub fn new(initiator_name: IscsiName, session: SessionKind, isid: Isid) -> Self {
        Self {
            initiator_name,
            initiator_alias: None,
            session,
            isid,
            tsih: Tsih(0),
            cid: Cid(0),
            itt: Itt(0),
            cmd_sn: CmdSn(1),
            auth: InitiatorAuth::None,
            offer: Offer::default(),
            challenges: ChallengeLog::new(),
        }
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        let setting = |setting, problem: Cow<'static, str>| {
            Err(Error::Misuse(Misuse::Setting { setting, problem }))
        };
        if let Err((field, right)) = self.offer.check() {
            return setting(field, format!("must be {right}").into());
        }
        if self.itt.is_none() {
            return setting("itt", "0xffffffff is reserved".into());
        }
        let text_fits = |s: &str| s.len() <= VALUE_BYTES_MAX && !s.contains('\0');
        if self
            .initiator_alias
            .as_deref()
            .is_some_and(|a| !text_fits(a))
        {
            return setting(
                "initiator_alias",
                "must be at most 255 bytes without NUL".into(),
            );
        }
        let InitiatorAuth::Chap(chap) = &self.auth else {
            return Ok(());
        };
        if chap.user.is_empty() || !text_fits(&chap.user) {
            return setting("chap user", "must be 1 to 255 bytes without NUL".into());
        }
        if chap.algorithms.is_empty() {
            return setting("chap algorithms", "must name at least one".into());
        }
        let secrets = [
            ("chap secret", Some(&chap.secret)),
            (
                "mutual chap secret",
                chap.mutual.as_ref().map(|m| &m.secret),
            ),
        ];
        for (name, secret) in secrets {
            let least = if chap.allow_short_secrets {
                1
            } else {
                SECRET_BYTES_MIN
            };
            if secret.is_some_and(|s| s.len() < least) {
                return setting(name, format!("must have at least {least} bytes").into());
            }
        }
        if chap
            .mutual
            .as_ref()
            .is_some_and(|m| m.secret == chap.secret)
        {
            // RFC 7143 9.2.1: a reflected challenge would be answered by ourselves.
            return setting(
                "mutual chap secret",
                "must differ from the chap secret".into(),
            );
        }
        Ok(())
    }
}

/// Who proved what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authentication {
    /// Nobody anything.
    None,
    /// CHAP.
    Chap {
        /// The algorithm that the target chose.
        algorithm: ChapAlgorithm,
        /// CHAP_N of a target that proved itself; `None` for one-way CHAP.
        target_user: Option<String>,
    },
}

/// A finished login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What both sides agreed on.
    pub negotiated: Negotiated,
    /// As sent.
    pub isid: Isid,
    /// The session's handle, given by the target.
    pub tsih: Tsih,
    /// As sent.
    pub cid: Cid,
    /// CmdSN of the first command.
    pub cmd_sn: CmdSn,
    /// The target's ExpCmdSN.
    pub exp_cmd_sn: CmdSn,
    /// The target's MaxCmdSN.
    pub max_cmd_sn: CmdSn,
    /// Next StatSN of this connection.
    pub exp_stat_sn: StatSn,
    /// Who proved what.
    pub authentication: Authentication,
}

/// The target sends us elsewhere (status class 1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// Where to log in, with TSIH 0 and the same ISID.
    pub portal: Portal,
    /// Whether to go there from now on; else the original portal comes first next time.
    pub permanent: bool,
}

/// What a response led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Send what [`InitiatorLogin::poll_transmit`](super::InitiatorLogin::poll_transmit) gives.
    Continue,
    /// Full feature phase: digests start with the next PDU in both directions.
    Done(Box<Outcome>),
    /// Close the connection and log in there. Count the hops.
    Redirect(Redirect),
}

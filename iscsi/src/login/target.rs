//! The target's side of a login (RFC 7143 6.3, 11.12, 11.13, 12.1).
//!
//! ```text
//! Identify --first whole segment: names, Directory::admit--> Method --CHAP--> Algorithm
//!    |                                                         |                 |  CHAP_A,I,C
//!    | CSG=1 and nobody has to authenticate                    | None            v
//!    +------------------------------------------------> Open <-+---CHAP_N,R--- Challenged
//!                                                        |
//!   stages: security -T=1-> operational -T=1-> full feature phase: Directory::open, TSIH, Established
//! ```

mod auth;
mod config;

use super::chap::{Challenge, ChapAlgorithm};
use super::keys::{Key, LOGIN_SEGMENT_BYTES_MAX};
use super::negotiate::{KeyError, Negotiator, Received, Role, excerpt};
use super::offer::{DigestPolicy, Offer};
use super::text::{Assembler, Outgoing, Pair, TextLimits, parse_pairs};
use crate::Payload;
use crate::error::LoginStatus;
use crate::name::{IscsiName, TargetAddress};
use crate::pdu::{LoginRequest, LoginResponse, Stage};
use crate::types::{Cid, CmdSn, Isid, Itt, StatSn, TargetSn, Tsih};

use auth::AuthPairs;
pub use config::{
    Account, Admission, Directory, Established, Identity, LoginFaults, Refusal, SessionGrant,
    TargetAuth, TargetLoginConfig, TargetStep,
};

#[derive(Debug)]
enum State {
    Identify,
    Method,
    Algorithm,
    Challenged {
        algorithm: ChapAlgorithm,
        challenge: Challenge,
    },
    Open,
    Ended,
}

/// One login from the target's side: hand in each request, send each response.
#[derive(Debug)]
pub struct TargetLogin {
    config: TargetLoginConfig,
    state: State,
    stage: Stage,
    /// Header of the first request; all others must agree with it.
    first: Option<(Isid, Tsih, Cid, Itt)>,
    identity: Option<Identity>,
    auth: TargetAuth,
    offer: Offer,
    negotiator: Negotiator,
    incoming: Assembler,
    outgoing: Outgoing,
    stat_sn: StatSn,
    user: Option<(String, ChapAlgorithm)>,
    mutual: bool,
    /// Our own keys of the operational stage went out.
    operational_begun: bool,
}

fn refuse(status: LoginStatus, reason: impl Into<String>) -> Refusal {
    Refusal {
        status,
        reason: reason.into(),
    }
}

fn initiator_error(reason: impl Into<String>) -> Refusal {
    refuse(LoginStatus::INITIATOR_ERROR, reason)
}

fn auth_failure(reason: impl Into<String>) -> Refusal {
    refuse(LoginStatus::AUTHENTICATION_FAILURE, reason)
}

impl From<KeyError> for Refusal {
    fn from(error: KeyError) -> Self {
        initiator_error(match error {
            KeyError::Broken { key, problem } => format!("key {key}: {problem}"),
            KeyError::DigestRefused { key, answer } => {
                format!("{key} is required and the initiator said {answer}")
            }
        })
    }
}

/// What a whole exchange leads to besides its text.
enum Verdict {
    Stay,
    Transit(Stage),
    Redirect(TargetAddress, bool),
}

impl TargetLogin {
    /// A login of which nothing has arrived.
    #[must_use]
    pub fn new(config: TargetLoginConfig) -> Self {
        Self {
            stat_sn: config.stat_sn,
            config,
            state: State::Identify,
            stage: Stage::Security,
            first: None,
            identity: None,
            auth: TargetAuth::None,
            offer: Offer::default(),
            negotiator: Negotiator::new(Role::Target, Offer::default(), false, true),
            incoming: Assembler::new(TextLimits::LOGIN),
            outgoing: Outgoing::new(),
            user: None,
            mutual: false,
            operational_begun: false,
        }
    }

    /// Takes the next request.
    pub fn on_request(
        &mut self,
        request: &LoginRequest,
        directory: &mut dyn Directory,
    ) -> TargetStep {
        let verdict = self.take_request(request, directory);
        let mut response = self.response(request);
        match verdict {
            Ok(Verdict::Stay) => {
                (response.data, response.continue_) = self.next_text();
                TargetStep::Respond(response)
            }
            Ok(Verdict::Transit(next_stage)) => {
                (response.data, _) = self.next_text();
                response.transit = true;
                response.next_stage = next_stage;
                self.stage = next_stage;
                if next_stage != Stage::FullFeature {
                    return TargetStep::Respond(response);
                }
                match self.establish(request, &mut response, directory) {
                    Ok(established) => TargetStep::Established(response, Box::new(established)),
                    Err(refusal) => {
                        TargetStep::Refused(self.refused(response, refusal.status), refusal)
                    }
                }
            }
            Ok(Verdict::Redirect(address, permanent)) => {
                let status = if permanent {
                    LoginStatus::MOVED_PERMANENTLY
                } else {
                    LoginStatus::MOVED_TEMPORARILY
                };
                let mut text = Outgoing::new();
                text.push(Key::TargetAddress.name(), &address.portal.to_string());
                let (data, _) = text.take(LOGIN_SEGMENT_BYTES_MAX as usize);
                let refusal = refuse(status, format!("redirected to {}", address.portal));
                let mut response = self.refused(response, status);
                response.data = data;
                TargetStep::Refused(response, refusal)
            }
            Err(refusal) => TargetStep::Refused(self.refused(response, refusal.status), refusal),
        }
    }

    fn refused(&mut self, mut response: LoginResponse, status: LoginStatus) -> LoginResponse {
        self.state = State::Ended;
        response.transit = false;
        response.continue_ = false;
        response.next_stage = Stage::Security;
        response.data = Payload::new();
        response.status_class = status.class;
        response.status_detail = status.detail;
        response
    }

    fn response(&mut self, request: &LoginRequest) -> LoginResponse {
        let stat_sn = self.stat_sn;
        self.stat_sn = stat_sn.next();
        LoginResponse {
            transit: false,
            continue_: false,
            current_stage: request.current_stage,
            next_stage: Stage::Security,
            version_max: 0,
            version_active: 0,
            isid: request.isid,
            tsih: request.tsih,
            itt: request.itt,
            sn: TargetSn {
                stat_sn,
                exp_cmd_sn: request.cmd_sn,
                max_cmd_sn: self.last_cmd_sn(request),
            },
            status_class: 0,
            status_detail: 0,
            data: Payload::new(),
        }
    }

    fn last_cmd_sn(&self, request: &LoginRequest) -> CmdSn {
        let window = self.config.window.max(1) - 1;
        CmdSn(request.cmd_sn.0.wrapping_add(window))
    }

    fn pdu_text_bytes(&self) -> usize {
        let most = LOGIN_SEGMENT_BYTES_MAX as usize;
        self.config
            .faults
            .pdu_text_bytes
            .map_or(most, |n| n.clamp(1, most))
    }

    fn next_text(&mut self) -> (Payload, bool) {
        if self.incoming.is_partial() {
            return (Payload::new(), false);
        }
        let taken = self.outgoing.take(self.pdu_text_bytes());
        if self.outgoing.is_empty() {
            self.negotiator.answers_sent();
        }
        taken
    }

    fn take_request(
        &mut self,
        request: &LoginRequest,
        directory: &mut dyn Directory,
    ) -> Result<Verdict, Refusal> {
        self.check_header(request)?;
        if let Some((stage, status)) = self.config.faults.status
            && stage == self.stage
        {
            return Err(refuse(status, "fault switch"));
        }
        let continuing = self.outgoing.is_partial();
        if continuing && !request.data.is_empty() {
            return Err(initiator_error(
                "keys in answer to a response with the C bit",
            ));
        }
        let segment = self
            .incoming
            .push(&request.data, request.continue_)
            .map_err(|e| initiator_error(e.to_string()))?;
        let Some(segment) = segment else {
            return Ok(Verdict::Stay);
        };
        if continuing {
            return Ok(Verdict::Stay);
        }
        let pairs = parse_pairs(&segment).map_err(|e| initiator_error(e.to_string()))?;
        if matches!(self.state, State::Identify)
            && let Some((address, permanent)) = self.identify(request, &pairs, directory)?
        {
            return Ok(Verdict::Redirect(address, permanent));
        }
        let mut auth = AuthPairs::default();
        for pair in pairs {
            match self.negotiator.receive(pair, &mut self.outgoing)? {
                Received::Authentication(key, value) => auth.set(key, value),
                Received::Declared(..) | Received::Done => {}
            }
        }
        if self.stage == Stage::Security {
            self.take_authentication(auth, request.transit)?;
        } else {
            if auth.any() {
                return Err(initiator_error(
                    "authentication keys after the security stage",
                ));
            }
            self.begin_operational();
        }
        let open = matches!(self.state, State::Open);
        let fits = self.outgoing.len() <= self.pdu_text_bytes();
        let may_transit = open && fits && !self.negotiator.awaits_answers();
        if request.transit && may_transit && !self.config.faults.never_ending {
            Ok(Verdict::Transit(request.next_stage))
        } else {
            Ok(Verdict::Stay)
        }
    }

    fn check_header(&mut self, request: &LoginRequest) -> Result<(), Refusal> {
        if matches!(self.state, State::Ended) || self.stage == Stage::FullFeature {
            return Err(refuse(
                LoginStatus::INVALID_DURING_LOGIN,
                "the login is over",
            ));
        }
        let ids = (request.isid, request.tsih, request.cid, request.itt);
        match self.first {
            None => {
                // RFC 7143 6.3: a login starts in either stage.
                if request.current_stage == Stage::FullFeature {
                    return Err(initiator_error(
                        "a login cannot start in full feature phase",
                    ));
                }
                self.stage = request.current_stage;
                self.first = Some(ids);
            }
            Some(first) if first != ids => {
                return Err(initiator_error(
                    "ISID, TSIH, CID or task tag changed during the login",
                ));
            }
            Some(_) => {}
        }
        if request.version_min > 0 {
            return Err(refuse(
                LoginStatus::UNSUPPORTED_VERSION,
                "only version 0 is spoken",
            ));
        }
        if request.current_stage != self.stage {
            return Err(initiator_error(format!(
                "request for stage {:?} in stage {:?}",
                request.current_stage, self.stage
            )));
        }
        if request.transit && request.continue_ {
            return Err(initiator_error("request with both T and C"));
        }
        if request.transit && request.next_stage <= request.current_stage {
            return Err(initiator_error("next stage is not after the current one"));
        }
        Ok(())
    }

    /// First whole segment: names, session type, admission, and the keys of the first response.
    fn identify(
        &mut self,
        request: &LoginRequest,
        pairs: &[Pair],
        directory: &mut dyn Directory,
    ) -> Result<Option<(TargetAddress, bool)>, Refusal> {
        let find = |key: Key| {
            let pair = pairs.iter().find(|pair| pair.key == key.name());
            pair.map(|pair| pair.value.as_str())
        };
        let missing = |key: Key| {
            let reason = format!("{} is missing in the first request", key.name());
            refuse(LoginStatus::MISSING_PARAMETER, reason)
        };
        let initiator = find(Key::InitiatorName).ok_or_else(|| missing(Key::InitiatorName))?;
        let initiator_name = IscsiName::parse(initiator)
            .map_err(|e| initiator_error(format!("InitiatorName: {e}")))?;
        let target_name = match find(Key::SessionType) {
            Some("Discovery") => None,
            None | Some("Normal") => {
                let name = find(Key::TargetName).ok_or_else(|| missing(Key::TargetName))?;
                let name = IscsiName::parse(name)
                    .map_err(|e| refuse(LoginStatus::NOT_FOUND, format!("TargetName: {e}")))?;
                Some(name)
            }
            Some(other) => {
                return Err(refuse(
                    LoginStatus::SESSION_TYPE_NOT_SUPPORTED,
                    format!("SessionType={}", excerpt(other)),
                ));
            }
        };
        let identity = Identity {
            initiator_name,
            target_name,
            isid: request.isid,
            tsih: request.tsih,
            cid: request.cid,
        };
        if let Some(redirect) = self.config.faults.redirect.clone() {
            return Ok(Some(redirect));
        }
        let alias = match directory.admit(&identity) {
            Admission::Admit { auth, offer, alias } => {
                self.auth = auth;
                self.offer = offer;
                alias
            }
            Admission::Redirect { address, permanent } => return Ok(Some((address, permanent))),
            Admission::Refuse(status) => return Err(refuse(status, "not admitted")),
        };
        let discovery = identity.target_name.is_none();
        let leading = request.tsih == Tsih(0);
        self.negotiator
            .set_session(self.offer.clone(), discovery, leading);
        if let Some(alias) = alias {
            self.negotiator
                .declare(Key::TargetAlias, &alias, &mut self.outgoing);
        }
        if !discovery {
            // RFC 7143 13.9: in the first response, so that the initiator knows the group early.
            let tag = self.config.portal_group_tag;
            self.negotiator.declare(
                Key::TargetPortalGroupTag,
                &tag.to_string(),
                &mut self.outgoing,
            );
            self.negotiator.result_mut().target_portal_group_tag = Some(tag);
        }
        self.identity = Some(identity);
        let must_authenticate = matches!(self.auth, TargetAuth::Chap { required: true, .. });
        self.state = match self.stage {
            Stage::Security => State::Method,
            _ if must_authenticate => {
                return Err(auth_failure(
                    "the security stage was skipped and CHAP is required",
                ));
            }
            _ => State::Open,
        };
        Ok(None)
    }

    fn begin_operational(&mut self) {
        if std::mem::replace(&mut self.operational_begun, true) {
            return;
        }
        self.negotiator.declare_receive_limit(&mut self.outgoing);
        // An initiator that offers no digest is asked for one when policy wants it.
        for (policy, key) in [
            (self.offer.header_digest, Key::HeaderDigest),
            (self.offer.data_digest, Key::DataDigest),
        ] {
            if policy == DigestPolicy::Require {
                self.negotiator.propose(key, &mut self.outgoing);
            }
        }
        for (key, value) in std::mem::take(&mut self.config.faults.extra_pairs) {
            self.outgoing.push(&key, &value);
        }
    }

    fn establish(
        &mut self,
        request: &LoginRequest,
        response: &mut LoginResponse,
        directory: &mut dyn Directory,
    ) -> Result<Established, Refusal> {
        let negotiated = self.negotiator.finish()?;
        let identity = self
            .identity
            .clone()
            .ok_or_else(|| refuse(LoginStatus::MISSING_PARAMETER, "no names"))?;
        let grant = directory
            .open(&identity, &negotiated)
            .map_err(|status| refuse(status, "session not opened"))?;
        let (exp_cmd_sn, max_cmd_sn) = grant
            .window
            .unwrap_or((request.cmd_sn, self.last_cmd_sn(request)));
        response.tsih = grant.tsih;
        response.sn.exp_cmd_sn = exp_cmd_sn;
        response.sn.max_cmd_sn = max_cmd_sn;
        self.state = State::Ended;
        Ok(Established {
            identity,
            negotiated,
            tsih: grant.tsih,
            user: self.user.clone(),
            mutual: self.mutual,
            stat_sn: self.stat_sn,
            exp_cmd_sn,
            max_cmd_sn,
        })
    }
}

#[cfg(test)]
mod tests;

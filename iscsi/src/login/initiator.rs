//! The initiator's side of a login (RFC 7143 6.3, 11.12, 12.1).
//!
//! ```text
//! Method ----AuthMethod=CHAP----> Algorithm --CHAP_A,I,C--> Proof --CHAP_N,R if mutual, T=1--+
//!   |                                                                                      |
//!   +--AuthMethod=None, when allowed--> Ready --T=1-------------------------------> Operational
//!                                                                                          |
//!             Ended <--T=1, NSG=FullFeaturePhase: Outcome; or an error; or a redirect-------+
//! ```
//!
//! Every state but `Ended` also goes round with T=0 answers and with the C bit; all rounds together
//! are bounded by [`TextLimits::LOGIN`].

use std::borrow::Cow;

use super::chap::{Challenge, ChapAlgorithm, ChapResponse};
use super::config::{
    Authentication, InitiatorAuth, LoginConfig, Outcome, Redirect, SessionKind, Step,
};
use super::keys::{Key, LOGIN_SEGMENT_BYTES_MAX};
use super::negotiate::{KeyError, Negotiator, Received, Role, excerpt};
use super::text::{
    Assembler, BINARY_BYTES_MAX, Outgoing, TextError, TextLimits, emit_hex, parse_binary,
    parse_number, parse_number_in, parse_pairs,
};
use crate::error::{Error, Incompatibility, LoginStatus, Misbehaviour, Misuse};
use crate::name::TargetAddress;
use crate::pdu::{LoginRequest, LoginResponse, Stage};
use crate::types::{StatSn, Tsih};

#[derive(Debug)]
enum State {
    Method,
    Algorithm,
    Proof(Option<ExpectedProof>),
    Ready,
    Operational,
    Ended,
}

/// What a target has to answer to our challenge.
#[derive(Debug)]
struct ExpectedProof {
    challenge: Challenge,
    response: ChapResponse,
    /// What we ourselves would answer: a sign of reflection.
    own_response: ChapResponse,
}

/// Pairs of the authentication exchange in one logical segment.
#[derive(Default)]
struct AuthPairs {
    method: Option<String>,
    algorithm: Option<String>,
    id: Option<String>,
    challenge: Option<String>,
    name: Option<String>,
    response: Option<String>,
}

/// One login from the initiator's side.
///
/// Send what [`poll_transmit`](Self::poll_transmit) gives, hand in each response, until the step says
/// [`Step::Done`] or [`Step::Redirect`] or there is an error; after the last two close the connection.
#[derive(Debug)]
pub struct InitiatorLogin {
    config: LoginConfig,
    state: State,
    stage: Stage,
    negotiator: Negotiator,
    incoming: Assembler,
    outgoing: Outgoing,
    /// A request has to go out.
    due: bool,
    /// The last request had T=1.
    asked_transit: bool,
    exp_stat_sn: StatSn,
    algorithm: Option<ChapAlgorithm>,
    authentication: Authentication,
    redirect_address: Option<String>,
}

fn misbehaved(problem: impl Into<Cow<'static, str>>) -> Error {
    Error::TargetMisbehaved(Misbehaviour::Exchange(problem.into()))
}

fn no_auth(problem: impl Into<Cow<'static, str>>) -> Error {
    Error::TargetIncompatible(Incompatibility::Authentication(problem.into()))
}

fn not_proven(problem: &'static str) -> Error {
    Error::TargetIncompatible(Incompatibility::TargetNotAuthenticated(problem.into()))
}

fn text_error(error: &TextError) -> Error {
    match error {
        TextError::TooManyBytes { max } => Error::TargetMisbehaved(Misbehaviour::TooMany {
            what: "bytes of login text",
            limit: *max,
        }),
        TextError::TooManyExchanges { max } => Error::TargetMisbehaved(Misbehaviour::TooMany {
            what: "login exchanges",
            limit: *max as usize,
        }),
        _ => Error::malformed("login text", error.to_string()),
    }
}

impl From<KeyError> for Error {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::Broken { key, problem } => {
                Self::TargetMisbehaved(Misbehaviour::Key { key, problem })
            }
            KeyError::DigestRefused { key, answer } => {
                Self::TargetIncompatible(Incompatibility::Digest { key, answer })
            }
        }
    }
}

impl InitiatorLogin {
    /// A login that has not sent anything.
    ///
    /// # Errors
    /// [`Misuse::Setting`] for settings that cannot work or that RFC 7143 9.2.1 forbids.
    pub fn new(config: LoginConfig) -> Result<Self, Error> {
        config.check()?;
        let discovery = config.session == SessionKind::Discovery;
        let mut negotiator = Negotiator::new(
            Role::Initiator,
            config.offer.clone(),
            discovery,
            config.tsih == Tsih(0),
        );
        let mut outgoing = Outgoing::new();
        let mut declare = |key, value: &str| negotiator.declare(key, value, &mut outgoing);
        declare(Key::InitiatorName, config.initiator_name.as_str());
        if let Some(alias) = &config.initiator_alias {
            declare(Key::InitiatorAlias, alias);
        }
        match &config.session {
            SessionKind::Normal { target_name } => {
                declare(Key::TargetName, target_name.as_str());
                declare(Key::SessionType, "Normal");
            }
            SessionKind::Discovery => declare(Key::SessionType, "Discovery"),
        }
        declare(
            Key::AuthMethod,
            match &config.auth {
                InitiatorAuth::None => "None",
                InitiatorAuth::Chap(chap) if chap.allow_none => "CHAP,None",
                InitiatorAuth::Chap(_) => "CHAP",
            },
        );
        Ok(Self {
            config,
            state: State::Method,
            stage: Stage::Security,
            negotiator,
            incoming: Assembler::new(TextLimits::LOGIN),
            outgoing,
            due: true,
            asked_transit: false,
            exp_stat_sn: StatSn(0),
            algorithm: None,
            authentication: Authentication::None,
            redirect_address: None,
        })
    }

    /// Whether the next request may ask for the next stage.
    fn wants_transit(&self) -> bool {
        match self.state {
            State::Method => self.config.auth == InitiatorAuth::None,
            State::Algorithm | State::Ended => false,
            State::Proof(_) | State::Ready | State::Operational => true,
        }
    }

    fn next_stage(&self) -> Stage {
        match self.stage {
            Stage::Security => Stage::Operational,
            _ => Stage::FullFeature,
        }
    }

    /// The request to send now, if any; there is one at a time.
    pub fn poll_transmit(&mut self) -> Option<LoginRequest> {
        if !std::mem::take(&mut self.due) {
            return None;
        }
        // While the target's segment is not over, it gets empty requests (RFC 7143 6.2).
        let (data, continue_) = if self.incoming.is_partial() {
            Default::default()
        } else {
            self.outgoing.take(LOGIN_SEGMENT_BYTES_MAX as usize)
        };
        if self.outgoing.is_empty() {
            self.negotiator.answers_sent();
        }
        let transit = !continue_ && !self.incoming.is_partial() && self.wants_transit();
        self.asked_transit = transit;
        Some(LoginRequest {
            transit,
            continue_,
            current_stage: self.stage,
            next_stage: if transit {
                self.next_stage()
            } else {
                Stage::Security
            },
            version_max: 0,
            version_min: 0,
            isid: self.config.isid,
            tsih: self.config.tsih,
            itt: self.config.itt,
            cid: self.config.cid,
            cmd_sn: self.config.cmd_sn,
            exp_stat_sn: self.exp_stat_sn,
            data,
        })
    }

    /// Takes the response to the last request.
    ///
    /// # Errors
    /// The login is over; close the connection. [`Error::LoginRejected`] carries the target's status,
    /// see [`LoginStatus::next_move`] and [`InitiatorLogin::retry_with_md5_after`].
    pub fn on_response(&mut self, response: &LoginResponse) -> Result<Step, Error> {
        let result = self.take_response(response);
        if !matches!(result, Ok(Step::Continue)) {
            self.end();
        }
        result
    }

    /// The login to try after `error`, when the error may come from tgt, which computes SHA-1 under
    /// the number of SHA-256: the same with MD5 only. `None` when that would not help or when the
    /// configured algorithms leave out MD5.
    #[must_use]
    pub fn retry_with_md5_after(&self, error: &Error) -> Option<LoginConfig> {
        let refused = *error == Error::LoginRejected(LoginStatus::AUTHENTICATION_FAILURE);
        if !refused || self.algorithm != Some(ChapAlgorithm::Sha256) {
            return None;
        }
        let mut config = self.config.clone();
        let InitiatorAuth::Chap(chap) = &mut config.auth else {
            return None;
        };
        chap.algorithms.retain(|a| *a == ChapAlgorithm::Md5);
        (!chap.algorithms.is_empty()).then_some(config)
    }

    fn end(&mut self) {
        if let State::Proof(Some(proof)) = &self.state {
            self.config.challenges.remove(&proof.challenge.bytes);
        }
        self.state = State::Ended;
        self.due = false;
    }

    fn take_response(&mut self, response: &LoginResponse) -> Result<Step, Error> {
        if matches!(self.state, State::Ended) || self.due {
            return Err(misbehaved("login response without a request"));
        }
        if response.itt != self.config.itt {
            return Err(misbehaved(format!(
                "login response with task tag {:#x} instead of {:#x}",
                response.itt.0, self.config.itt.0
            )));
        }
        let status = LoginStatus::new(response.status_class, response.status_detail);
        if status.is_redirect() {
            return self.take_redirect(response, status).map(Step::Redirect);
        }
        if !status.is_success() {
            return Err(Error::LoginRejected(status));
        }
        self.check_header(response)?;
        self.exp_stat_sn = response.sn.stat_sn.next();
        self.due = true;
        let segment = self
            .incoming
            .push(&response.data, response.continue_)
            .map_err(|e| text_error(&e))?;
        let Some(segment) = segment else {
            return Ok(Step::Continue);
        };
        let mut auth = AuthPairs::default();
        for pair in parse_pairs(&segment).map_err(|e| text_error(&e))? {
            match self.negotiator.receive(pair, &mut self.outgoing)? {
                Received::Done => {}
                Received::Authentication(key, value) => auth.set(key, value),
                Received::Declared(key, value) => self.take_declaration(key, value)?,
            }
        }
        if self.stage == Stage::Security {
            self.take_authentication(auth, response.transit)?;
        } else if auth.any() {
            return Err(misbehaved("authentication keys after the security stage"));
        }
        if response.transit {
            return self.transit(response);
        }
        Ok(Step::Continue)
    }

    fn check_header(&self, response: &LoginResponse) -> Result<(), Error> {
        if response.version_active != 0 {
            return Err(Error::TargetIncompatible(Incompatibility::Version {
                active: response.version_active,
            }));
        }
        if response.current_stage != self.stage {
            return Err(misbehaved(format!(
                "login response for stage {:?} in stage {:?}",
                response.current_stage, self.stage
            )));
        }
        if response.transit && response.continue_ {
            return Err(misbehaved("login response with both T and C"));
        }
        if response.transit && !self.asked_transit {
            return Err(misbehaved("login response with T=1 to a request with T=0"));
        }
        if response.transit && response.next_stage != self.next_stage() {
            return Err(misbehaved(format!(
                "next stage {:?}, asked was {:?}",
                response.next_stage,
                self.next_stage()
            )));
        }
        if self.outgoing.is_partial() && !response.data.is_empty() {
            return Err(misbehaved("keys in answer to a request with the C bit"));
        }
        Ok(())
    }

    fn take_redirect(
        &mut self,
        response: &LoginResponse,
        status: LoginStatus,
    ) -> Result<Redirect, Error> {
        let pairs = parse_pairs(&response.data.to_bytes()).map_err(|e| text_error(&e))?;
        let address = pairs
            .into_iter()
            .find(|pair| pair.key == Key::TargetAddress.name())
            .map(|pair| pair.value)
            .or_else(|| self.redirect_address.take())
            .ok_or_else(|| misbehaved("redirect without TargetAddress"))?;
        let portal = TargetAddress::parse(&address)
            .map_err(|error| {
                KeyError::broken(Key::TargetAddress, format!("in a redirect: {error}"))
            })?
            .portal;
        Ok(Redirect {
            portal,
            permanent: status == LoginStatus::MOVED_PERMANENTLY,
        })
    }

    fn take_declaration(&mut self, key: Key, value: String) -> Result<(), Error> {
        match key {
            Key::TargetPortalGroupTag => {
                let tag = parse_number_in(&value, 0, 65535).map_err(|e| KeyError::text(key, &e))?;
                self.negotiator.result_mut().target_portal_group_tag = Some(tag as u16);
            }
            // Some targets name the new address before the redirect itself.
            Key::TargetAddress => self.redirect_address = Some(value),
            _ => {}
        }
        Ok(())
    }

    fn take_authentication(&mut self, auth: AuthPairs, transit: bool) -> Result<(), Error> {
        match &self.state {
            State::Method => self.on_method(&auth, transit),
            State::Algorithm => self.on_challenge(auth),
            State::Proof(_) => self.on_proof(auth, transit),
            State::Ready if auth.any() => {
                Err(misbehaved("authentication keys after AuthMethod=None"))
            }
            State::Ready | State::Operational | State::Ended => Ok(()),
        }
    }

    fn on_method(&mut self, auth: &AuthPairs, transit: bool) -> Result<(), Error> {
        let (chap, none_is_fine) = match &self.config.auth {
            InitiatorAuth::None => (None, true),
            InitiatorAuth::Chap(chap) => (Some(chap), chap.allow_none),
        };
        match (auth.method.as_deref(), chap) {
            (Some("None"), _) if none_is_fine => self.state = State::Ready,
            (Some("None"), _) => {
                return Err(no_auth("CHAP is required and the target chose None"));
            }
            (Some("CHAP"), Some(chap)) => {
                let list: Vec<_> = chap
                    .algorithms
                    .iter()
                    .map(|a| a.number().to_string())
                    .collect();
                self.negotiator
                    .declare(Key::ChapA, &list.join(","), &mut self.outgoing);
                self.state = State::Algorithm;
            }
            (Some(word @ ("Reject" | "NotUnderstood" | "Irrelevant")), _) => {
                let offered = if chap.is_some() { "CHAP" } else { "None" };
                return Err(no_auth(format!(
                    "the target answered {word} to AuthMethod={offered}"
                )));
            }
            (Some(other), _) => {
                return Err(KeyError::broken(
                    Key::AuthMethod,
                    format!("answered {}, which was not offered", excerpt(other)),
                )
                .into());
            }
            // Without an answer to `None` the stage may end; without one to CHAP we wait, and the
            // bound on exchanges ends it.
            (None, _) if transit && !none_is_fine => {
                return Err(no_auth(
                    "the target skipped the authentication that is required",
                ));
            }
            (None, _) => {}
        }
        if !matches!(self.state, State::Algorithm) && auth.any_chap() {
            return Err(misbehaved("CHAP keys before CHAP was chosen"));
        }
        Ok(())
    }

    fn on_challenge(&mut self, auth: AuthPairs) -> Result<(), Error> {
        if !auth.any() {
            return Ok(());
        }
        let InitiatorAuth::Chap(chap) = &self.config.auth else {
            return Err(misbehaved("CHAP keys without CHAP"));
        };
        let need = |key: Key, value: Option<String>| {
            value.ok_or_else(|| {
                KeyError::broken(key, "missing; CHAP_A, CHAP_I, CHAP_C come together")
            })
        };
        let number = need(Key::ChapA, auth.algorithm)?;
        if matches!(number.as_str(), "Reject" | "NotUnderstood") {
            return Err(no_auth(
                "the target supports none of the CHAP algorithms offered",
            ));
        }
        let algorithm = parse_number(&number)
            .ok()
            .and_then(ChapAlgorithm::from_number)
            .filter(|a| chap.algorithms.contains(a))
            .ok_or_else(|| {
                KeyError::broken(
                    Key::ChapA,
                    format!("chose {}, which was not offered", excerpt(&number)),
                )
            })?;
        let id = parse_number_in(&need(Key::ChapI, auth.id)?, 0, 255)
            .map_err(|e| KeyError::text(Key::ChapI, &e))? as u8;
        let challenge = parse_binary(&need(Key::ChapC, auth.challenge)?, BINARY_BYTES_MAX)
            .map_err(|e| KeyError::text(Key::ChapC, &e))?;
        if challenge.is_empty() {
            return Err(KeyError::broken(Key::ChapC, "empty").into());
        }
        if self.config.challenges.contains(&challenge) {
            return Err(not_proven("it sent back a challenge of ours (reflection)"));
        }
        let response = algorithm.response(id, &chap.secret, &challenge);
        let mut send = |key, value: &str| self.negotiator.declare(key, value, &mut self.outgoing);
        send(Key::ChapN, &chap.user);
        send(Key::ChapR, &emit_hex(response.as_bytes()));
        let mut expected = None;
        if let Some(mutual) = &chap.mutual {
            let own = Challenge::random().ok_or(Error::Misuse(Misuse::Setting {
                setting: "random source",
                problem: "the operating system gives no random bytes for a challenge".into(),
            }))?;
            if own.bytes == challenge {
                return Err(not_proven("its challenge is ours (reflection)"));
            }
            send(Key::ChapI, &own.id.to_string());
            send(Key::ChapC, &emit_hex(&own.bytes));
            self.config.challenges.insert(&own.bytes);
            expected = Some(ExpectedProof {
                response: algorithm.response(own.id, &mutual.secret, &own.bytes),
                own_response: algorithm.response(own.id, &chap.secret, &own.bytes),
                challenge: own,
            });
        }
        self.algorithm = Some(algorithm);
        self.authentication = Authentication::Chap {
            algorithm,
            target_user: None,
        };
        self.state = State::Proof(expected);
        Ok(())
    }

    fn on_proof(&mut self, auth: AuthPairs, transit: bool) -> Result<(), Error> {
        let (InitiatorAuth::Chap(chap), State::Proof(expected)) = (&self.config.auth, &self.state)
        else {
            return Ok(());
        };
        let Some(mutual) = &chap.mutual else {
            return if auth.any() {
                Err(misbehaved("CHAP keys that were not asked for"))
            } else {
                Ok(())
            };
        };
        if auth.any() {
            let expected = expected
                .as_ref()
                .ok_or_else(|| misbehaved("CHAP keys after the proof"))?;
            let (Some(name), Some(response)) = (auth.name, auth.response) else {
                return Err(not_proven("CHAP_N and CHAP_R must come together"));
            };
            let response = parse_binary(&response, BINARY_BYTES_MAX)
                .map_err(|e| KeyError::text(Key::ChapR, &e))?;
            if expected.own_response.matches(&response) {
                return Err(not_proven("it answered with our own secret (reflection)"));
            }
            if !expected.response.matches(&response) {
                return Err(not_proven(
                    "its CHAP response does not fit the configured secret",
                ));
            }
            if mutual.user.as_ref().is_some_and(|user| *user != name) {
                return Err(not_proven("its CHAP name is not the configured one"));
            }
            self.config.challenges.remove(&expected.challenge.bytes);
            if let Authentication::Chap { target_user, .. } = &mut self.authentication {
                *target_user = Some(name);
            }
            self.state = State::Proof(None);
        } else if transit && expected.is_some() {
            return Err(not_proven(
                "it sent no CHAP_N and CHAP_R although mutual CHAP was asked for",
            ));
        }
        Ok(())
    }

    /// Both sides said T=1.
    fn transit(&mut self, response: &LoginResponse) -> Result<Step, Error> {
        if self.stage == Stage::Security {
            self.stage = Stage::Operational;
            self.state = State::Operational;
            self.negotiator.propose_all(&mut self.outgoing);
            return Ok(Step::Continue);
        }
        if self.negotiator.owes_answers() {
            return Err(misbehaved(
                "the target ended the login with an offer not answered yet",
            ));
        }
        let leading = self.config.tsih == Tsih(0);
        let normal = self.config.session != SessionKind::Discovery;
        if !leading && response.tsih != self.config.tsih {
            return Err(misbehaved("another TSIH than that of the session to join"));
        }
        if leading && normal && response.tsih == Tsih(0) {
            return Err(misbehaved("TSIH 0 for a new session"));
        }
        Ok(Step::Done(Box::new(Outcome {
            negotiated: self.negotiator.finish()?,
            isid: self.config.isid,
            tsih: response.tsih,
            cid: self.config.cid,
            cmd_sn: self.config.cmd_sn,
            exp_cmd_sn: response.sn.exp_cmd_sn,
            max_cmd_sn: response.sn.max_cmd_sn,
            exp_stat_sn: self.exp_stat_sn,
            authentication: self.authentication.clone(),
        })))
    }
}

/// A login that is given up must not leave its challenge behind.
impl Drop for InitiatorLogin {
    fn drop(&mut self) {
        self.end();
    }
}

impl AuthPairs {
    fn set(&mut self, key: Key, value: String) {
        let slot = match key {
            Key::AuthMethod => &mut self.method,
            Key::ChapA => &mut self.algorithm,
            Key::ChapI => &mut self.id,
            Key::ChapC => &mut self.challenge,
            Key::ChapN => &mut self.name,
            _ => &mut self.response,
        };
        *slot = Some(value);
    }

    fn any_chap(&self) -> bool {
        [
            &self.algorithm,
            &self.id,
            &self.challenge,
            &self.name,
            &self.response,
        ]
        .iter()
        .any(|value| value.is_some())
    }

    fn any(&self) -> bool {
        self.method.is_some() || self.any_chap()
    }
}

#[cfg(test)]
mod tests;

//! Negotiation of operational keys, the same for both roles (RFC 7143 6.2).
//!
//! A pair from the peer is either the answer to what we offered or an offer of the peer; which one is
//! known from what we sent before, so one function takes both.

use std::borrow::Cow;

use super::keys::{KEYS, Key, KeySpec, Rule, Sender, Use};
use super::offer::{DigestPolicy, Negotiated, Offer, TaskReporting};
use super::text::{
    Outgoing, Pair, TextError, emit_boolean, parse_boolean, parse_list, parse_number,
    parse_number_in,
};

/// Which side of the login we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Initiator,
    #[cfg(feature = "target")]
    Target,
}

/// A pair that breaks a rule, or that we cannot accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum KeyError {
    /// The peer broke the protocol.
    Broken {
        key: Cow<'static, str>,
        problem: Cow<'static, str>,
    },
    /// The peer refuses a digest that policy requires.
    DigestRefused { key: &'static str, answer: String },
}

impl KeyError {
    pub(super) fn broken(key: Key, problem: impl Into<Cow<'static, str>>) -> Self {
        Self::Broken {
            key: key.name().into(),
            problem: problem.into(),
        }
    }

    pub(super) fn text(key: Key, error: &TextError) -> Self {
        Self::broken(key, error.to_string())
    }
}

/// What the machine has to do with a pair.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// Nothing more.
    Done,
    /// A pair of the authentication exchange.
    Authentication(Key, String),
    /// A declaration that is not about data transfer: names, session type, aliases, addresses.
    Declared(Key, String),
}

#[derive(Debug, Clone, Copy, Default)]
struct KeyState {
    /// We sent it, as offer, answer or declaration.
    sent: bool,
    /// We offered it and the answer is still to come.
    pending: bool,
    /// The peer sent it.
    received: bool,
}

/// State of one login's negotiation.
#[derive(Debug)]
pub(super) struct Negotiator {
    role: Role,
    offer: Offer,
    discovery: bool,
    leading: bool,
    keys: [KeyState; KEYS.len()],
    unknown: Vec<String>,
    /// Answers were written that bind us and that the peer has not read yet.
    binding_answers: bool,
    result: Negotiated,
}

/// Unknown keys that one login may carry; each costs an answer and a place in the list of duplicates.
const UNKNOWN_KEYS_MAX: usize = 64;

/// What we offer for a list key.
fn choices(offer: &Offer, key: Key) -> Vec<&'static str> {
    match key {
        Key::HeaderDigest => offer.header_digest.choices().to_vec(),
        Key::DataDigest => offer.data_digest.choices().to_vec(),
        _ => offer.task_reporting.iter().map(|t| t.name()).collect(),
    }
}

fn is_answer_word(value: &str) -> bool {
    matches!(value, "NotUnderstood" | "Irrelevant" | "Reject")
}

/// At most 40 characters of a peer's value, escaped, for an error text.
pub(super) fn excerpt(value: &str) -> String {
    let short: String = value.chars().take(40).collect();
    format!("{short:?}")
}

impl Negotiator {
    pub(super) fn new(role: Role, offer: Offer, discovery: bool, leading: bool) -> Self {
        Self {
            role,
            offer,
            discovery,
            leading,
            keys: [KeyState::default(); KEYS.len()],
            unknown: Vec::new(),
            binding_answers: false,
            result: Negotiated::default(),
        }
    }

    /// For a target, which knows the kind of session only after the first request.
    #[cfg(feature = "target")]
    pub(super) fn set_session(&mut self, offer: Offer, discovery: bool, leading: bool) {
        self.offer = offer;
        self.discovery = discovery;
        self.leading = leading;
    }

    pub(super) fn was_sent(&self, key: Key) -> bool {
        self.keys[key as usize].sent
    }

    pub(super) fn result_mut(&mut self) -> &mut Negotiated {
        &mut self.result
    }

    /// Sends a pair that the machine itself is in charge of: authentication and declarations.
    pub(super) fn declare(&mut self, key: Key, value: &str, out: &mut Outgoing) {
        self.keys[key as usize].sent = true;
        out.push(key.name(), value);
    }

    /// Declares our receive limit, once.
    pub(super) fn declare_receive_limit(&mut self, out: &mut Outgoing) {
        if !self.was_sent(Key::MaxRecvDataSegmentLength) {
            let limit = self.offer.max_recv_data_segment_bytes;
            self.declare(Key::MaxRecvDataSegmentLength, &limit.to_string(), out);
            self.result.max_recv_data_segment_bytes = limit;
        }
    }

    /// Offers `key` unless it was sent, or settled by the peer, already.
    pub(super) fn propose(&mut self, key: Key, out: &mut Outgoing) {
        let spec = key.spec();
        let state = &mut self.keys[key as usize];
        let untimely = (self.discovery && spec.irrelevant_in_discovery)
            || (!self.leading && spec.use_ == Use::LeadingOnly);
        if state.sent || state.received || untimely {
            return;
        }
        let value = match spec.rule {
            Rule::FirstCommon => choices(&self.offer, key).join(","),
            Rule::And | Rule::Or => emit_boolean(self.own_boolean(key)).to_owned(),
            _ => self.own_number(key).to_string(),
        };
        let state = &mut self.keys[key as usize];
        state.sent = true;
        state.pending = true;
        out.push(spec.name, &value);
        if spec.rule == Rule::And && !self.own_boolean(key) {
            // RFC 7143 6.2.2: the answer to such an offer is optional, the result is `No` anyway.
            self.set_boolean(key, false);
        }
    }

    /// Offers everything an initiator has an opinion on.
    pub(super) fn propose_all(&mut self, out: &mut Outgoing) {
        self.propose(Key::HeaderDigest, out);
        self.propose(Key::DataDigest, out);
        self.declare_receive_limit(out);
        if self.discovery {
            return;
        }
        for key in [
            Key::InitialR2T,
            Key::ImmediateData,
            Key::MaxBurstLength,
            Key::FirstBurstLength,
            Key::MaxOutstandingR2T,
            Key::MaxConnections,
            Key::ErrorRecoveryLevel,
            Key::DefaultTime2Wait,
            Key::DefaultTime2Retain,
            Key::DataPduInOrder,
            Key::DataSequenceInOrder,
        ] {
            self.propose(key, out);
        }
        if !self.offer.task_reporting.is_empty() {
            self.propose(Key::TaskReporting, out);
        }
        if self.offer.protocol_level.is_some() {
            self.propose(Key::ProtocolLevel, out);
        }
    }

    fn own_boolean(&self, key: Key) -> bool {
        match key {
            Key::InitialR2T => self.offer.initial_r2t,
            Key::ImmediateData => self.offer.immediate_data,
            Key::DataPduInOrder => self.offer.data_pdu_in_order,
            Key::DataSequenceInOrder => self.offer.data_sequence_in_order,
            // RDMAExtensions
            _ => false,
        }
    }

    fn own_number(&self, key: Key) -> u64 {
        let offer = &self.offer;
        match key {
            Key::MaxConnections => u64::from(offer.max_connections),
            Key::MaxBurstLength => u64::from(offer.max_burst_bytes),
            Key::FirstBurstLength => u64::from(offer.first_burst_bytes),
            // RFC 7143 13.17: one at a time when sequences must stay in order for recovery.
            Key::MaxOutstandingR2T
                if offer.error_recovery_level > 0 && offer.data_sequence_in_order =>
            {
                1
            }
            Key::MaxOutstandingR2T => u64::from(offer.max_outstanding_r2t),
            Key::DefaultTime2Wait => u64::from(offer.time2wait_s),
            Key::DefaultTime2Retain => u64::from(offer.time2retain_s),
            Key::ErrorRecoveryLevel if self.discovery => 0,
            Key::ErrorRecoveryLevel => u64::from(offer.error_recovery_level),
            _ => u64::from(offer.protocol_level.unwrap_or(1)),
        }
    }

    /// Takes one pair of the peer; answers, when one is due, go to `out`.
    ///
    /// Operational keys are taken in the security stage too, although RFC 7143 6.3.2 reserves that
    /// stage: some targets start there, and refusing them helps nobody.
    pub(super) fn receive(&mut self, pair: Pair, out: &mut Outgoing) -> Result<Received, KeyError> {
        let Some(key) = Key::from_name(&pair.key) else {
            self.receive_unknown(pair, out)?;
            return Ok(Received::Done);
        };
        let spec = key.spec();
        if pair.value.len() > spec.value_bytes_max {
            return Err(KeyError::text(
                key,
                &TextError::ValueTooLong {
                    len: pair.value.len(),
                    max: spec.value_bytes_max,
                },
            ));
        }
        let state = &mut self.keys[key as usize];
        // RFC 7143 6.2: sending a key again is an error, except TargetAddress.
        if std::mem::replace(&mut state.received, true) && key != Key::TargetAddress {
            return Err(KeyError::broken(key, "sent twice in one login"));
        }
        let answers_us = std::mem::take(&mut state.pending);
        let wrong_sender = match self.role {
            Role::Initiator => Sender::Initiator,
            #[cfg(feature = "target")]
            Role::Target => Sender::Target,
        };
        if spec.sender == wrong_sender {
            return if is_answer_word(&pair.value) {
                // An answer to a declaration: needless, harmless.
                Ok(Received::Done)
            } else {
                Err(KeyError::broken(key, "sent by the wrong side"))
            };
        }
        if spec.use_ == Use::FullFeatureOnly {
            return Err(KeyError::broken(key, "not allowed during login"));
        }
        match spec.rule {
            Rule::Authentication => Ok(Received::Authentication(key, pair.value)),
            Rule::Declarative => self.receive_declaration(key, pair.value),
            _ if is_answer_word(&pair.value) => {
                self.receive_refusal(key, answers_us, &pair.value)?;
                Ok(Received::Done)
            }
            _ if answers_us => {
                self.receive_answer(spec, &pair.value)?;
                Ok(Received::Done)
            }
            _ => {
                let answer = self.answer(spec, &pair.value)?;
                let state = &mut self.keys[key as usize];
                state.sent = true;
                self.binding_answers |= !is_answer_word(&answer);
                out.push(spec.name, &answer);
                Ok(Received::Done)
            }
        }
    }

    fn receive_unknown(&mut self, pair: Pair, out: &mut Outgoing) -> Result<(), KeyError> {
        let broken = |problem: &'static str| KeyError::Broken {
            key: pair.key.clone().into(),
            problem: problem.into(),
        };
        if self.unknown.contains(&pair.key) {
            return Err(broken("sent twice in one login"));
        }
        if self.unknown.len() == UNKNOWN_KEYS_MAX {
            return Err(broken("one unknown key too many; 64 are tolerated"));
        }
        if !is_answer_word(&pair.value) {
            out.push(&pair.key, "NotUnderstood");
        }
        self.unknown.push(pair.key);
        Ok(())
    }

    fn receive_declaration(&mut self, key: Key, value: String) -> Result<Received, KeyError> {
        if is_answer_word(&value) && !matches!(key, Key::TargetAlias | Key::InitiatorAlias) {
            // X#NodeArchitecture=NotUnderstood, MaxRecvDataSegmentLength=Reject: defaults stay.
            return Ok(Received::Done);
        }
        match key {
            Key::MaxRecvDataSegmentLength => {
                let limit = parse_number_in(
                    &value,
                    u64::from(super::keys::LENGTH_BYTES_MIN),
                    u64::from(super::keys::LENGTH_BYTES_MAX),
                )
                .map_err(|e| KeyError::text(key, &e))?;
                self.result.peer_max_recv_data_segment_bytes = limit as u32;
                Ok(Received::Done)
            }
            Key::TargetAlias => {
                self.result.target_alias = Some(value);
                Ok(Received::Done)
            }
            Key::InitiatorAlias => {
                self.result.initiator_alias = Some(value);
                Ok(Received::Done)
            }
            Key::NodeArchitecture => Ok(Received::Done),
            _ => Ok(Received::Declared(key, value)),
        }
    }

    /// `NotUnderstood`, `Irrelevant` or `Reject`: the default stays in force (RFC 7143 6.2).
    fn receive_refusal(&self, key: Key, answers_us: bool, word: &str) -> Result<(), KeyError> {
        if answers_us && self.digest_policy(key) == Some(DigestPolicy::Require) {
            return Err(KeyError::DigestRefused {
                key: key.name(),
                answer: word.to_owned(),
            });
        }
        Ok(())
    }

    fn digest_policy(&self, key: Key) -> Option<DigestPolicy> {
        match key {
            Key::HeaderDigest => Some(self.offer.header_digest),
            Key::DataDigest => Some(self.offer.data_digest),
            _ => None,
        }
    }

    /// The peer's answer to our offer.
    fn receive_answer(&mut self, spec: &KeySpec, value: &str) -> Result<(), KeyError> {
        let key = spec.key;
        let text = |e: TextError| KeyError::text(key, &e);
        let not_offered = |offered: &str| {
            KeyError::broken(
                key,
                format!("answered {} to the offer {offered}", excerpt(value)),
            )
        };
        match spec.rule {
            Rule::FirstCommon => {
                let offered = choices(&self.offer, key);
                let Some(word) = offered.iter().find(|word| **word == value) else {
                    let required = self.digest_policy(key) == Some(DigestPolicy::Require);
                    return Err(if required && value == "None" {
                        KeyError::DigestRefused {
                            key: spec.name,
                            answer: value.to_owned(),
                        }
                    } else {
                        not_offered(&offered.join(","))
                    });
                };
                self.set_word(key, word);
            }
            Rule::And | Rule::Or => {
                let answer = parse_boolean(value).map_err(text)?;
                let own = self.own_boolean(key);
                // `No` fixes an AND, `Yes` fixes an OR.
                let fixed = own == (spec.rule == Rule::Or);
                if fixed && answer != own {
                    return Err(not_offered(emit_boolean(own)));
                }
                self.set_boolean(key, answer);
            }
            Rule::Minimum { min, max } => {
                let answer = parse_number_in(value, min, max).map_err(text)?;
                let own = self.own_number(key);
                // How long to wait is ours to decide and costs no data: no reason to give up a login.
                if answer > own && key != Key::DefaultTime2Retain {
                    return Err(not_offered(&own.to_string()));
                }
                self.set_number(key, answer.min(own));
            }
            Rule::Maximum { min, max } => {
                let answer = parse_number_in(value, min, max).map_err(text)?;
                self.set_number(key, answer.max(self.own_number(key)));
            }
            // Never offered by us.
            _ => return Err(KeyError::broken(key, "answered, but not offered")),
        }
        Ok(())
    }

    /// Our answer to the peer's offer.
    fn answer(&mut self, spec: &KeySpec, value: &str) -> Result<String, KeyError> {
        const REJECT: &str = "Reject";
        const IRRELEVANT: &str = "Irrelevant";
        let key = spec.key;
        let text = |e: TextError| KeyError::text(key, &e);
        if self.discovery && spec.irrelevant_in_discovery {
            return Ok(IRRELEVANT.to_owned());
        }
        if !self.leading && spec.use_ == Use::LeadingOnly {
            return Ok(REJECT.to_owned());
        }
        Ok(match spec.rule {
            Rule::FirstCommon => {
                let offered = parse_list(value)
                    .ok_or_else(|| KeyError::broken(key, "not a list of words"))?;
                let mut supported = choices(&self.offer, key);
                if key == Key::TaskReporting && supported.is_empty() {
                    supported.push(TaskReporting::Rfc3720.name());
                }
                match offered
                    .iter()
                    .find_map(|o| supported.iter().find(|s| *s == o))
                {
                    Some(word) => {
                        self.set_word(key, word);
                        (*word).to_owned()
                    }
                    None => match self.digest_policy(key) {
                        Some(DigestPolicy::Require) => {
                            return Err(KeyError::DigestRefused {
                                key: spec.name,
                                answer: excerpt(value),
                            });
                        }
                        _ => REJECT.to_owned(),
                    },
                }
            }
            Rule::And | Rule::Or => {
                let offered = parse_boolean(value).map_err(text)?;
                let own = self.own_boolean(key);
                let both = if spec.rule == Rule::And {
                    offered && own
                } else {
                    offered || own
                };
                self.set_boolean(key, both);
                emit_boolean(both).to_owned()
            }
            Rule::Minimum { min, max } | Rule::Maximum { min, max } => {
                let offered = parse_number(value).map_err(text)?;
                if offered < min || offered > max {
                    return Ok(REJECT.to_owned());
                }
                let own = self.own_number(key);
                let both = if matches!(spec.rule, Rule::Minimum { .. }) {
                    offered.min(own)
                } else {
                    offered.max(own)
                };
                self.set_number(key, both);
                both.to_string()
            }
            Rule::RdmaOnly => IRRELEVANT.to_owned(),
            Rule::Refused | Rule::Declarative | Rule::Authentication => REJECT.to_owned(),
        })
    }

    fn set_word(&mut self, key: Key, word: &str) {
        match key {
            Key::HeaderDigest => self.result.header_digest = word == "CRC32C",
            Key::DataDigest => self.result.data_digest = word == "CRC32C",
            _ => self.result.task_reporting = TaskReporting::from_name(word).unwrap_or_default(),
        }
    }

    fn set_boolean(&mut self, key: Key, value: bool) {
        match key {
            Key::InitialR2T => self.result.initial_r2t = value,
            Key::ImmediateData => self.result.immediate_data = value,
            Key::DataPduInOrder => self.result.data_pdu_in_order = value,
            Key::DataSequenceInOrder => self.result.data_sequence_in_order = value,
            // RDMAExtensions is always `No` here.
            _ => {}
        }
    }

    /// Values come from a range check, so they fit.
    fn set_number(&mut self, key: Key, value: u64) {
        let result = &mut self.result;
        match key {
            Key::MaxConnections => result.max_connections = value as u16,
            Key::MaxBurstLength => result.max_burst_bytes = value as u32,
            Key::FirstBurstLength => result.first_burst_bytes = value as u32,
            Key::MaxOutstandingR2T => result.max_outstanding_r2t = value as u16,
            Key::DefaultTime2Wait => result.time2wait_s = value as u16,
            Key::DefaultTime2Retain => result.time2retain_s = value as u16,
            Key::ErrorRecoveryLevel => result.error_recovery_level = value as u8,
            _ => result.protocol_level = value as u8,
        }
    }

    /// The peer has read our answers: a PDU went out with them.
    pub(super) fn answers_sent(&mut self) {
        self.binding_answers = false;
    }

    /// Whether the peer offered something that we agreed to, but has not read our answer.
    pub(super) fn owes_answers(&self) -> bool {
        self.binding_answers
    }

    /// Whether answers to our offers are still due.
    #[cfg(feature = "target")]
    pub(super) fn awaits_answers(&self) -> bool {
        self.keys.iter().any(|state| state.pending)
    }

    /// Ends the negotiation: defaults for whatever was not answered.
    pub(super) fn finish(&self) -> Result<Negotiated, KeyError> {
        for (policy, on, key) in [
            (
                self.offer.header_digest,
                self.result.header_digest,
                Key::HeaderDigest,
            ),
            (
                self.offer.data_digest,
                self.result.data_digest,
                Key::DataDigest,
            ),
        ] {
            if policy == DigestPolicy::Require && !on {
                return Err(KeyError::DigestRefused {
                    key: key.name(),
                    answer: "nothing".to_owned(),
                });
            }
        }
        let mut result = self.result.clone();
        // RFC 7143 13.14: never above MaxBurstLength; a default may be when a small burst was agreed.
        result.first_burst_bytes = result.first_burst_bytes.min(result.max_burst_bytes);
        Ok(result)
    }
}

#[cfg(test)]
mod tests;

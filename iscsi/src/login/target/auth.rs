//! The security stage: method, CHAP challenge, proof, and our own proof when it is asked for
//! (RFC 7143 12.1).

use super::{Refusal, State, TargetAuth, TargetLogin, auth_failure, initiator_error, refuse};
use crate::error::LoginStatus;
use crate::login::chap::{Challenge, ChapAlgorithm, Secret};
use crate::login::keys::Key;
use crate::login::negotiate::excerpt;
use crate::login::text::{
    BINARY_BYTES_MAX, emit_hex, parse_binary, parse_list, parse_number, parse_number_in,
};

/// Pairs of the authentication exchange in one logical segment.
#[derive(Default)]
pub(super) struct AuthPairs([Option<String>; 6]);

impl AuthPairs {
    fn take(&mut self, key: Key) -> Option<String> {
        self.0[key as usize - Key::AuthMethod as usize].take()
    }

    pub(super) fn set(&mut self, key: Key, value: String) {
        self.0[key as usize - Key::AuthMethod as usize] = Some(value);
    }

    pub(super) fn any(&self) -> bool {
        self.0.iter().any(Option::is_some)
    }
}

impl TargetLogin {
    pub(super) fn take_authentication(
        &mut self,
        mut auth: AuthPairs,
        transit: bool,
    ) -> Result<(), Refusal> {
        match &self.state {
            State::Method => self.on_method(&mut auth, transit)?,
            State::Algorithm => self.on_algorithm(&mut auth)?,
            State::Challenged { .. } => self.on_proof(&mut auth)?,
            State::Identify | State::Open | State::Ended => {}
        }
        if auth.any() {
            return Err(initiator_error("authentication keys out of order"));
        }
        Ok(())
    }

    fn on_method(&mut self, auth: &mut AuthPairs, transit: bool) -> Result<(), Refusal> {
        let supported: &[&str] = match &self.auth {
            TargetAuth::None => &["None"],
            TargetAuth::Chap { required: true, .. } => &["CHAP"],
            TargetAuth::Chap { .. } => &["CHAP", "None"],
        };
        let Some(offered) = auth.take(Key::AuthMethod) else {
            // RFC 7143 6.3.2: without the key the method is None.
            if !supported.contains(&"None") {
                return if transit {
                    Err(auth_failure("CHAP is required and was not offered"))
                } else {
                    Ok(())
                };
            }
            if transit {
                self.state = State::Open;
            }
            return Ok(());
        };
        let chosen = parse_list(&offered)
            .into_iter()
            .flatten()
            .find_map(|word| supported.iter().find(|s| **s == word));
        let Some(chosen) = chosen else {
            return Err(auth_failure(format!(
                "AuthMethod={} has none of {supported:?}",
                excerpt(&offered)
            )));
        };
        self.negotiator
            .declare(Key::AuthMethod, chosen, &mut self.outgoing);
        self.state = if *chosen == "CHAP" {
            State::Algorithm
        } else {
            State::Open
        };
        Ok(())
    }

    fn on_algorithm(&mut self, auth: &mut AuthPairs) -> Result<(), Refusal> {
        let TargetAuth::Chap { algorithms, .. } = &self.auth else {
            return Ok(());
        };
        let Some(offered) = auth.take(Key::ChapA) else {
            return Ok(());
        };
        let algorithm = parse_list(&offered)
            .into_iter()
            .flatten()
            .filter_map(|n| ChapAlgorithm::from_number(parse_number(n).ok()?))
            .find(|a| algorithms.contains(a))
            .ok_or_else(|| auth_failure(format!("no common algorithm in {}", excerpt(&offered))))?;
        let challenge = Challenge::random()
            .ok_or_else(|| refuse(LoginStatus::TARGET_ERROR, "no random bytes"))?;
        let mut send = |key, value: &str| self.negotiator.declare(key, value, &mut self.outgoing);
        send(Key::ChapA, &algorithm.number().to_string());
        send(Key::ChapI, &challenge.id.to_string());
        send(Key::ChapC, &emit_hex(&challenge.bytes));
        self.state = State::Challenged {
            algorithm,
            challenge,
        };
        Ok(())
    }

    fn on_proof(&mut self, auth: &mut AuthPairs) -> Result<(), Refusal> {
        let State::Challenged {
            algorithm,
            challenge,
        } = &self.state
        else {
            return Ok(());
        };
        let TargetAuth::Chap {
            accounts, mutual, ..
        } = &self.auth
        else {
            return Ok(());
        };
        let algorithm = *algorithm;
        // The number that is on the wire and the hash behind it differ only for the fault.
        let hash = match algorithm {
            ChapAlgorithm::Sha256 if self.config.faults.sha1_as_sha256 => ChapAlgorithm::Sha1,
            other => other,
        };
        let (name, response) = match (auth.take(Key::ChapN), auth.take(Key::ChapR)) {
            (Some(name), Some(response)) => (name, response),
            (None, None) => return Ok(()),
            _ => return Err(initiator_error("CHAP_N and CHAP_R come together")),
        };
        let response = parse_binary(&response, BINARY_BYTES_MAX)
            .map_err(|e| initiator_error(format!("CHAP_R: {e}")))?;
        // An unknown name costs as much as a known one.
        let nobody = Secret::new([0; 16]);
        let account = accounts.iter().find(|account| account.user == name);
        let secret = account.map_or(&nobody, |account| &account.secret);
        let proven = hash
            .response(challenge.id, secret, &challenge.bytes)
            .matches(&response);
        if account.is_none() || !proven {
            return Err(auth_failure(format!(
                "wrong user or secret for {}",
                excerpt(&name)
            )));
        }
        match (auth.take(Key::ChapI), auth.take(Key::ChapC)) {
            (None, None) => {}
            (Some(id), Some(peer)) => {
                let id = parse_number_in(&id, 0, 255)
                    .map_err(|e| initiator_error(format!("CHAP_I: {e}")))?;
                let peer = parse_binary(&peer, BINARY_BYTES_MAX)
                    .map_err(|e| initiator_error(format!("CHAP_C: {e}")))?;
                if peer.is_empty() || peer == challenge.bytes {
                    // RFC 7143 9.2.1: reflection.
                    return Err(auth_failure("the initiator's challenge is empty or ours"));
                }
                let Some(own) = mutual else {
                    return Err(auth_failure(
                        "mutual CHAP was asked for and is not configured",
                    ));
                };
                let answer = hash.response(id as u8, &own.secret, &peer);
                self.negotiator
                    .declare(Key::ChapN, &own.user, &mut self.outgoing);
                self.negotiator.declare(
                    Key::ChapR,
                    &emit_hex(answer.as_bytes()),
                    &mut self.outgoing,
                );
                self.mutual = true;
            }
            _ => return Err(initiator_error("CHAP_I and CHAP_C come together")),
        }
        self.user = Some((name, algorithm));
        self.state = State::Open;
        Ok(())
    }
}

//! One builder per state; tests grouped by state.

mod any;
mod operational;
mod security;

use super::*;
use crate::Payload;
use crate::login::config::{ChapConfig, MutualChap};
use crate::login::{ChallengeLog, DigestPolicy, Negotiated, Offer, Secret};
use crate::name::IscsiName;
use crate::types::{CmdSn, Isid, Itt, TargetSn};

fn name(text: &str) -> IscsiName {
    IscsiName::parse(text).unwrap()
}

fn normal() -> LoginConfig {
    let target_name = name("iqn.2026-01.io.example:t1");
    LoginConfig {
        itt: Itt(1),
        ..LoginConfig::new(
            name("iqn.2026-01.io.example:h1"),
            SessionKind::Normal { target_name },
            Isid::random([0x12, 0x34, 0x56], 1),
        )
    }
}

fn chap() -> ChapConfig {
    ChapConfig::new("user", Secret::new(*b"0123456789abcdef"))
}

fn mutual() -> ChapConfig {
    ChapConfig {
        mutual: Some(MutualChap {
            user: None,
            secret: Secret::new(*b"fedcba9876543210"),
        }),
        ..chap()
    }
}

fn with_chap(chap: ChapConfig) -> LoginConfig {
    LoginConfig {
        auth: InitiatorAuth::Chap(chap),
        ..normal()
    }
}

fn text(payload: &Payload) -> Vec<String> {
    parse_pairs(&payload.to_bytes())
        .unwrap()
        .into_iter()
        .map(|pair| format!("{}={}", pair.key, pair.value))
        .collect()
}

/// A response to `request` that goes along with it.
fn reply(request: &LoginRequest, pairs: &[&str]) -> LoginResponse {
    LoginResponse {
        transit: request.transit,
        continue_: false,
        current_stage: request.current_stage,
        next_stage: request.next_stage,
        version_max: 0,
        version_active: 0,
        isid: request.isid,
        tsih: if request.transit && request.next_stage == Stage::FullFeature {
            Tsih(7)
        } else {
            request.tsih
        },
        itt: request.itt,
        sn: TargetSn {
            stat_sn: request.exp_stat_sn,
            exp_cmd_sn: request.cmd_sn,
            max_cmd_sn: CmdSn(request.cmd_sn.0.wrapping_add(31)),
        },
        status_class: 0,
        status_detail: 0,
        data: Payload::from(
            pairs
                .iter()
                .flat_map(|p| [*p, "\0"])
                .collect::<String>()
                .into_bytes(),
        ),
    }
}

fn start(config: LoginConfig) -> (InitiatorLogin, LoginRequest) {
    let mut login = InitiatorLogin::new(config).unwrap();
    let request = login.poll_transmit().unwrap();
    assert!(login.poll_transmit().is_none());
    (login, request)
}

/// Sends a reply that lets the login go on, and returns its next request.
fn go_on(login: &mut InitiatorLogin, request: &LoginRequest, pairs: &[&str]) -> LoginRequest {
    assert_eq!(
        login.on_response(&reply(request, pairs)),
        Ok(Step::Continue)
    );
    login.poll_transmit().unwrap()
}

fn operational(config: LoginConfig) -> (InitiatorLogin, LoginRequest) {
    let (mut login, request) = start(config);
    let request = go_on(
        &mut login,
        &request,
        &["TargetPortalGroupTag=1", "AuthMethod=None"],
    );
    assert_eq!(request.current_stage, Stage::Operational);
    (login, request)
}

fn negotiated(offer: Offer, answers: &[&str]) -> Result<Negotiated, Error> {
    let (mut login, request) = operational(LoginConfig { offer, ..normal() });
    match login.on_response(&reply(&request, answers))? {
        Step::Done(outcome) => Ok(outcome.negotiated),
        other => panic!("{other:?}"),
    }
}

fn misbehaved_with(error: &Error, text: &str) {
    assert!(matches!(error, Error::TargetMisbehaved(_)), "{error:?}");
    assert!(error.to_string().contains(text), "{error}");
}

//! A hostile peer in a login, in both roles. It knows no secret, so it never gets in where one is demanded.
//!
//! Byte 0 chooses the roles and the keys; then messages of a flags byte, a length byte and text follow. A text may hold
//! `@C` for a challenge and `@R` for a response of a right length.
#![no_main]

use berth_iscsi::Payload;
use berth_iscsi::error::LoginStatus;
use berth_iscsi::login::{
    Account, Admission, Authentication, ChapAlgorithm, ChapConfig, Directory, Identity,
    InitiatorAuth, InitiatorLogin, LoginConfig, MutualChap, Negotiated, Offer, Secret,
    SessionGrant, SessionKind, Step, TargetAuth, TargetLogin, TargetLoginConfig, TargetStep,
};
use berth_iscsi::name::IscsiName;
use berth_iscsi::pdu::{LoginRequest, LoginResponse, Stage};
use berth_iscsi::types::{Cid, CmdSn, Isid, Itt, StatSn, TargetSn, Tsih};
use libfuzzer_sys::fuzz_target;

/// More exchanges than any honest login has; the machines must have given up before.
const EXCHANGES_MAX: usize = 64;

fn name(text: &str) -> IscsiName {
    IscsiName::parse(text).expect("a good name")
}

struct Message {
    flags: u8,
    text: Vec<u8>,
}

fn messages(mut rest: &[u8]) -> Vec<Message> {
    let mut messages = Vec::new();
    while let [flags, len, tail @ ..] = rest {
        // In units of 4, so that long texts fit.
        let (text, next) = tail.split_at(tail.len().min(usize::from(*len) * 4));
        messages.push(Message {
            flags: *flags,
            text: expand(text),
        });
        rest = next;
    }
    messages
}

fn expand(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        match rest {
            [b'@', b'C', next @ ..] => {
                out.extend_from_slice(b"0x00112233445566778899aabbccddeeff");
                rest = next;
            }
            [b'@', b'R', next @ ..] => {
                out.extend_from_slice(b"0x0123456789abcdef0123456789abcdef");
                rest = next;
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

fn stage(bits: u8) -> Stage {
    match bits & 3 {
        0 => Stage::Security,
        1 => Stage::Operational,
        _ => Stage::FullFeature,
    }
}

fn initiator(mode: u8, messages: &[Message]) {
    let kind = if mode & 2 == 0 {
        SessionKind::Normal {
            target_name: name("iqn.2026-11.example:t"),
        }
    } else {
        SessionKind::Discovery
    };
    let mut config = LoginConfig::new(
        name("iqn.2026-11.example:i"),
        kind,
        Isid([0x80, 1, 2, 3, 4, 5]),
    );
    let mut chap = ChapConfig::new("user", Secret::new(*b"initiator-secret"));
    if mode & 8 != 0 {
        let secret = Secret::new(*b"target-secret-1");
        chap.mutual = Some(MutualChap { user: None, secret });
    }
    if mode & 4 != 0 {
        config.auth = InitiatorAuth::Chap(chap);
    }
    let mut login = InitiatorLogin::new(config).expect("a legal configuration");
    let mut request = login.poll_transmit().expect("the first request");
    for (number, message) in messages.iter().enumerate() {
        assert!(number < EXCHANGES_MAX, "the login does not end");
        let response = LoginResponse {
            transit: message.flags & 1 != 0,
            continue_: message.flags & 2 != 0,
            current_stage: if message.flags & 4 != 0 {
                stage(message.flags >> 6)
            } else {
                request.current_stage
            },
            next_stage: if message.flags & 8 != 0 {
                stage(message.flags >> 4)
            } else {
                request.next_stage
            },
            version_max: 0,
            version_active: 0,
            isid: request.isid,
            tsih: Tsih(u16::from(message.flags & 1)),
            itt: request.itt,
            sn: TargetSn {
                stat_sn: StatSn(number as u32),
                exp_cmd_sn: CmdSn(1),
                max_cmd_sn: CmdSn(32),
            },
            status_class: if message.flags & 0xf0 == 0xf0 { 1 } else { 0 },
            status_detail: u8::from(message.flags & 0xf0 == 0xf0),
            data: Payload::from(message.text.clone()),
        };
        match login.on_response(&response) {
            Err(_) | Ok(Step::Redirect(_)) => {
                assert!(
                    login.poll_transmit().is_none(),
                    "a login that is over goes on"
                );
                return;
            }
            Ok(Step::Done(outcome)) => {
                // The fixed response is right for no challenge.
                assert!(mode & 12 != 12, "a target without the secret was let in");
                assert_eq!(
                    mode & 4 != 0,
                    matches!(outcome.authentication, Authentication::Chap { .. }),
                    "the target talked us out of CHAP"
                );
                let agreed = &outcome.negotiated;
                assert!(agreed.first_burst_bytes <= agreed.max_burst_bytes);
                assert!((512..=0xff_ffff).contains(&agreed.max_burst_bytes));
                assert!((512..=0xff_ffff).contains(&agreed.peer_max_recv_data_segment_bytes));
                assert!(agreed.max_outstanding_r2t >= 1);
                return;
            }
            Ok(Step::Continue) => {
                request = login
                    .poll_transmit()
                    .expect("a login that goes on has a request");
                assert!(request.data.len() <= 8192, "more than a target must take");
            }
        }
    }
}

struct Guard {
    auth: TargetAuth,
    opened: u32,
}

impl Directory for Guard {
    fn admit(&mut self, identity: &Identity) -> Admission {
        if identity
            .target_name
            .as_ref()
            .is_some_and(|name| name.as_str().ends_with(":t"))
        {
            let auth = self.auth.clone();
            Admission::Admit {
                auth,
                offer: Offer::default(),
                alias: Some("disk".into()),
            }
        } else {
            Admission::Refuse(LoginStatus::NOT_FOUND)
        }
    }

    fn open(&mut self, _: &Identity, agreed: &Negotiated) -> Result<SessionGrant, LoginStatus> {
        self.opened += 1;
        assert!(agreed.first_burst_bytes <= agreed.max_burst_bytes);
        Ok(SessionGrant {
            tsih: Tsih(7),
            window: None,
        })
    }
}

fn target(mode: u8, messages: &[Message]) {
    let required = mode & 4 != 0;
    let account = |user: &str, secret: &[u8]| Account {
        user: user.into(),
        secret: Secret::new(secret),
    };
    let auth = if required {
        TargetAuth::Chap {
            accounts: vec![account("user", b"initiator-secret")],
            mutual: (mode & 8 != 0).then(|| account("target", b"target-secret-1")),
            algorithms: ChapAlgorithm::DEFAULT_ORDER.to_vec(),
            required,
        }
    } else {
        TargetAuth::None
    };
    let mut guard = Guard { auth, opened: 0 };
    let mut login = TargetLogin::new(TargetLoginConfig::default());
    for (number, message) in messages.iter().enumerate() {
        assert!(number < EXCHANGES_MAX, "the login does not end");
        let request = LoginRequest {
            transit: message.flags & 1 != 0,
            continue_: message.flags & 2 != 0,
            current_stage: stage(message.flags >> 6),
            next_stage: stage(message.flags >> 4),
            version_max: 0,
            version_min: 0,
            isid: Isid([0x80, 1, 2, 3, 4, 5]),
            tsih: Tsih(0),
            itt: Itt(1),
            cid: Cid(u16::from(message.flags & 8 != 0)),
            cmd_sn: CmdSn(1),
            exp_stat_sn: StatSn(number as u32 + 1),
            data: Payload::from(message.text.clone()),
        };
        match login.on_request(&request, &mut guard) {
            TargetStep::Respond(_) => assert_eq!(guard.opened, 0),
            TargetStep::Established(_, established) => {
                assert!(!required, "an initiator without the secret was let in");
                assert_eq!(guard.opened, 1);
                assert!(established.user.is_none());
                return;
            }
            TargetStep::Refused(..) => {
                assert_eq!(guard.opened, 0, "a refused login has opened a session");
                return;
            }
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let [mode, rest @ ..] = bytes else { return };
    let messages = messages(rest);
    if mode & 1 == 0 {
        initiator(*mode, &messages);
    } else {
        target(*mode, &messages);
    }
});

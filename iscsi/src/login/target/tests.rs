//! Requests written by hand, for what a well-behaved initiator never sends.

use super::*;
use crate::login::chap::Secret;
use crate::login::offer::Negotiated;
use crate::login::text::{emit_hex, parse_binary};

const NAMES: &str =
    "InitiatorName=iqn.2026-01.io.example:h1\0TargetName=iqn.2026-01.io.example:t1\0";

struct Anybody {
    auth: TargetAuth,
    offer: Offer,
    opened: u32,
}

impl Anybody {
    fn new(auth: TargetAuth) -> Self {
        Self {
            auth,
            offer: Offer::default(),
            opened: 0,
        }
    }
}

impl Directory for Anybody {
    fn admit(&mut self, _: &Identity) -> Admission {
        Admission::Admit {
            auth: self.auth.clone(),
            offer: self.offer.clone(),
            alias: None,
        }
    }

    fn open(&mut self, _: &Identity, _: &Negotiated) -> Result<SessionGrant, LoginStatus> {
        self.opened += 1;
        Ok(SessionGrant {
            tsih: Tsih(3),
            window: None,
        })
    }
}

fn chap(required: bool) -> TargetAuth {
    TargetAuth::Chap {
        accounts: vec![Account {
            user: "user".to_owned(),
            secret: Secret::new(*b"0123456789abcdef"),
        }],
        mutual: Some(Account {
            user: "target".to_owned(),
            secret: Secret::new(*b"fedcba9876543210"),
        }),
        algorithms: vec![ChapAlgorithm::Sha256, ChapAlgorithm::Md5],
        required,
    }
}

/// From `stage`, with T=1 towards `next`.
fn request(stage: Stage, next: Option<Stage>, text: &str) -> LoginRequest {
    LoginRequest {
        transit: next.is_some(),
        continue_: false,
        current_stage: stage,
        next_stage: next.unwrap_or(Stage::Security),
        version_max: 0,
        version_min: 0,
        isid: Isid::random([1, 2, 3], 4),
        tsih: Tsih(0),
        itt: Itt(5),
        cid: Cid(0),
        cmd_sn: CmdSn(40),
        exp_stat_sn: StatSn(0),
        data: Payload::from(text.as_bytes().to_vec()),
    }
}

fn security(text: &str) -> LoginRequest {
    request(Stage::Security, None, text)
}

fn text(payload: &Payload) -> Vec<String> {
    parse_pairs(&payload.to_bytes())
        .unwrap()
        .into_iter()
        .map(|pair| format!("{}={}", pair.key, pair.value))
        .collect()
}

struct Login {
    machine: TargetLogin,
    directory: Anybody,
}

impl Login {
    fn new(auth: TargetAuth) -> Self {
        Self {
            machine: TargetLogin::new(TargetLoginConfig::default()),
            directory: Anybody::new(auth),
        }
    }

    fn send(&mut self, request: &LoginRequest) -> TargetStep {
        self.machine.on_request(request, &mut self.directory)
    }

    fn answer(&mut self, request: &LoginRequest) -> LoginResponse {
        match self.send(request) {
            TargetStep::Respond(response) => response,
            other => panic!("{other:?}"),
        }
    }

    fn refusal(&mut self, request: &LoginRequest) -> (LoginStatus, String) {
        let TargetStep::Refused(response, refusal) = self.send(request) else {
            panic!("not refused");
        };
        // RFC 7143 11.13.5: the status is in the response, and nothing opens afterwards.
        let status = LoginStatus::new(response.status_class, response.status_detail);
        assert_eq!(status, refusal.status);
        assert!(!response.transit && !response.continue_);
        assert!(matches!(self.send(request), TargetStep::Refused(..)));
        assert_eq!(self.directory.opened, 0);
        (refusal.status, refusal.reason)
    }
}

mod first_request {
    use super::*;

    /// RFC 7143 13.9, 6.3: group tag in the first response, TSIH and T only when it is time.
    #[test]
    fn is_answered_with_the_portal_group() {
        let mut login = Login::new(TargetAuth::None);
        let first = format!("{NAMES}SessionType=Normal\0AuthMethod=None\0");
        let response = login.answer(&security(&first));
        assert_eq!(
            text(&response.data),
            ["TargetPortalGroupTag=1", "AuthMethod=None"]
        );
        assert!(!response.transit);
        assert_eq!(response.tsih, Tsih(0));
        assert_eq!(response.sn.exp_cmd_sn, CmdSn(40));
        assert_eq!(response.sn.max_cmd_sn, CmdSn(167));
        let response = login.answer(&request(Stage::Security, Some(Stage::Operational), ""));
        assert!(response.transit);
        assert_eq!(response.next_stage, Stage::Operational);
        assert_eq!(response.sn.stat_sn, StatSn(2));
    }

    /// RFC 7143 6.3: straight to the full feature phase, and straight into the operational stage.
    #[test]
    fn may_skip_a_stage_when_nobody_has_to_authenticate() {
        let mut login = Login::new(TargetAuth::None);
        let step = login.send(&request(Stage::Security, Some(Stage::FullFeature), NAMES));
        let TargetStep::Established(response, established) = step else {
            panic!("{step:?}");
        };
        assert!(response.transit);
        assert_eq!(response.tsih, Tsih(3));
        let defaults = Negotiated {
            target_portal_group_tag: Some(1),
            ..Negotiated::default()
        };
        assert_eq!(established.negotiated, defaults);

        let mut login = Login::new(TargetAuth::None);
        let step = login.send(&request(
            Stage::Operational,
            Some(Stage::FullFeature),
            NAMES,
        ));
        assert!(matches!(step, TargetStep::Established(..)));
        let mut login = Login::new(chap(false));
        let step = login.send(&request(
            Stage::Operational,
            Some(Stage::FullFeature),
            NAMES,
        ));
        assert!(matches!(step, TargetStep::Established(..)));
    }

    /// No way around CHAP: another stage first, no method, T=1 early, another method.
    #[test]
    fn cannot_skip_authentication_that_is_required() {
        let none = format!("{NAMES}AuthMethod=None\0");
        let other = format!("{NAMES}AuthMethod=KRB5,SRP,None\0");
        for first in [
            request(Stage::Operational, Some(Stage::FullFeature), NAMES),
            request(Stage::Security, Some(Stage::FullFeature), NAMES),
            request(Stage::Security, Some(Stage::Operational), &none),
            request(Stage::Security, Some(Stage::Operational), &other),
            security(&none),
        ] {
            let (status, _) = Login::new(chap(true)).refusal(&first);
            assert_eq!(status, LoginStatus::AUTHENTICATION_FAILURE, "{first:?}");
        }
        let mut login = Login::new(chap(true));
        let early = format!("{NAMES}AuthMethod=CHAP\0");
        let response = login.answer(&request(Stage::Security, Some(Stage::FullFeature), &early));
        assert!(!response.transit);
        // T=1 again and again, with nothing to show.
        for _ in 0..20 {
            let response = login.answer(&request(Stage::Security, Some(Stage::FullFeature), ""));
            assert!(!response.transit);
        }
        assert_eq!(login.directory.opened, 0);
    }

    /// RFC 7143 11.13.5: the detail for each kind of mistake.
    #[test]
    fn mistakes_have_their_status() {
        let name = "InitiatorName=iqn.2026-01.io.example:h1\0";
        let kind = format!("{NAMES}SessionType=Management\0");
        let bad_name = "InitiatorName=nobody\0";
        let bad_target = format!("{name}TargetName=../../x\0");
        for (text, want) in [
            ("", LoginStatus::MISSING_PARAMETER),
            (
                "TargetName=iqn.2026-01.io.example:t1\0",
                LoginStatus::MISSING_PARAMETER,
            ),
            (name, LoginStatus::MISSING_PARAMETER),
            (&kind, LoginStatus::SESSION_TYPE_NOT_SUPPORTED),
            (bad_name, LoginStatus::INITIATOR_ERROR),
            (&bad_target, LoginStatus::NOT_FOUND),
            ("garbage", LoginStatus::INITIATOR_ERROR),
        ] {
            let (status, _) = Login::new(TargetAuth::None).refusal(&security(text));
            assert_eq!(status, want, "{text:?}");
        }
        let mut version = security(NAMES);
        version.version_min = 1;
        let (status, _) = Login::new(TargetAuth::None).refusal(&version);
        assert_eq!(status, LoginStatus::UNSUPPORTED_VERSION);
        let late = request(Stage::FullFeature, None, NAMES);
        let (status, _) = Login::new(TargetAuth::None).refusal(&late);
        assert_eq!(status, LoginStatus::INITIATOR_ERROR);
        let mut both = request(Stage::Security, Some(Stage::Operational), NAMES);
        both.continue_ = true;
        let (status, reason) = Login::new(TargetAuth::None).refusal(&both);
        assert_eq!(status, LoginStatus::INITIATOR_ERROR);
        assert!(reason.contains("T and C"));
        let backwards = request(Stage::Operational, Some(Stage::Security), NAMES);
        let (_, reason) = Login::new(TargetAuth::None).refusal(&backwards);
        assert!(reason.contains("next stage"));
    }
}

mod later_requests {
    use super::*;

    #[test]
    fn keep_their_identity() {
        for change in [
            |r: &mut LoginRequest| r.isid = Isid::random([9, 9, 9], 9),
            |r: &mut LoginRequest| r.tsih = Tsih(1),
            |r: &mut LoginRequest| r.cid = Cid(1),
            |r: &mut LoginRequest| r.itt = Itt(6),
            |r: &mut LoginRequest| r.current_stage = Stage::Operational,
        ] {
            let mut login = Login::new(TargetAuth::None);
            login.answer(&security(NAMES));
            let mut second = security("");
            change(&mut second);
            let (status, _) = login.refusal(&second);
            assert_eq!(status, LoginStatus::INITIATOR_ERROR);
        }
    }

    /// RFC 7143 6.2: long text of the initiator; the first segment counts as a whole.
    #[test]
    fn may_carry_the_rest_of_the_first_segment() {
        let mut login = Login::new(TargetAuth::None);
        let (a, b) = NAMES.split_at(20);
        let mut first = security(a);
        first.continue_ = true;
        let response = login.answer(&first);
        assert!(response.data.is_empty() && !response.transit && !response.continue_);
        let response = login.answer(&request(Stage::Security, Some(Stage::Operational), b));
        assert!(response.transit);
        assert_eq!(text(&response.data), ["TargetPortalGroupTag=1"]);
    }

    /// RFC 7143 6.2: a key twice, keys of a target, and text without end.
    #[test]
    fn that_break_the_text_rules_are_refused() {
        for pairs in [
            "InitiatorName=iqn.2026-01.io.example:h1\0",
            "TargetPortalGroupTag=1\0",
            "SendTargets=All\0",
            "MaxBurstLength=many\0",
            "CHAP_A=5\0",
        ] {
            let mut login = Login::new(TargetAuth::None);
            login.answer(&security(NAMES));
            let (status, _) = login.refusal(&security(pairs));
            assert_eq!(status, LoginStatus::INITIATOR_ERROR, "{pairs}");
        }
        let mut login = Login::new(TargetAuth::None);
        let mut more = security(&"A".repeat(8192));
        more.continue_ = true;
        for _ in 0..8 {
            login.answer(&more);
        }
        let (status, reason) = login.refusal(&more);
        assert_eq!(status, LoginStatus::INITIATOR_ERROR);
        assert!(reason.contains("65536"), "{reason}");
    }

    /// A digest that the target requires is asked for, and the stage waits for the answer.
    #[test]
    fn are_asked_for_a_required_digest() {
        let start = || {
            let mut login = Login::new(TargetAuth::None);
            login.directory.offer.data_digest = DigestPolicy::Require;
            let go = request(Stage::Operational, Some(Stage::FullFeature), NAMES);
            let response = login.answer(&go);
            assert!(!response.transit);
            assert_eq!(
                text(&response.data),
                [
                    "TargetPortalGroupTag=1",
                    "MaxRecvDataSegmentLength=262144",
                    "DataDigest=CRC32C"
                ]
            );
            login
        };
        let end = |text: &str| request(Stage::Operational, Some(Stage::FullFeature), text);
        let step = start().send(&end("DataDigest=CRC32C\0"));
        let TargetStep::Established(_, established) = step else {
            panic!("{step:?}");
        };
        assert!(established.negotiated.data_digest && !established.negotiated.header_digest);
        for word in ["None", "Reject", "NotUnderstood"] {
            let (status, reason) = start().refusal(&end(&format!("DataDigest={word}\0")));
            assert_eq!(status, LoginStatus::INITIATOR_ERROR);
            assert!(reason.contains("DataDigest"), "{reason}");
        }
    }
}

mod chap_exchange {
    use super::*;

    /// Up to the target's challenge: id and bytes.
    fn challenged(list: &str) -> (Login, u8, Vec<u8>) {
        let mut login = Login::new(chap(true));
        let response = login.answer(&security(&format!("{NAMES}AuthMethod=CHAP,None\0")));
        assert!(text(&response.data).contains(&"AuthMethod=CHAP".to_owned()));
        let response = login.answer(&security(&format!("CHAP_A={list}\0")));
        let pairs = text(&response.data);
        assert_eq!(pairs[0], "CHAP_A=5");
        let id = pairs[1].strip_prefix("CHAP_I=").unwrap().parse().unwrap();
        let challenge = pairs[2].strip_prefix("CHAP_C=").unwrap();
        let challenge = parse_binary(challenge, 1024).unwrap();
        assert!(challenge.len() >= 16);
        (login, id, challenge)
    }

    fn proof(id: u8, challenge: &[u8]) -> String {
        let secret = Secret::new(*b"0123456789abcdef");
        let response = ChapAlgorithm::Md5.response(id, &secret, challenge);
        format!("CHAP_N=user\0CHAP_R={}\0", emit_hex(response.as_bytes()))
    }

    fn last(text: &str) -> LoginRequest {
        request(Stage::Security, Some(Stage::Operational), text)
    }

    /// RFC 7143 12.1.3: the initiator's order decides; numbers nobody knows are passed over.
    #[test]
    fn with_the_right_secret_opens_the_next_stage() {
        for list in ["5,7", "9,5", "8,6,5", "0x5"] {
            let (mut login, id, challenge) = challenged(list);
            let response = login.answer(&last(&proof(id, &challenge)));
            assert!(response.transit && response.data.is_empty());
        }
    }

    #[test]
    fn with_anything_else_does_not() {
        let right = |id, challenge: &[u8]| proof(id, challenge);
        for make in [
            |_: u8, _: &[u8]| "CHAP_N=user\0CHAP_R=0x\0".to_owned(),
            |_: u8, _: &[u8]| format!("CHAP_N=user\0CHAP_R=0x{}\0", "00".repeat(16)),
            |_: u8, _: &[u8]| format!("CHAP_N=user\0CHAP_R=0x{}\0", "00".repeat(1024)),
            |id: u8, c: &[u8]| proof(id.wrapping_add(1), c),
            |id: u8, c: &[u8]| proof(id, &c[1..]),
            |id: u8, c: &[u8]| proof(id, c).replace("=user", "=User"),
            |id: u8, c: &[u8]| proof(id, c).replace("=user", "="),
        ] {
            let (mut login, id, challenge) = challenged("5");
            let (status, _) = login.refusal(&last(&make(id, &challenge)));
            assert_eq!(status, LoginStatus::AUTHENTICATION_FAILURE);
        }
        // Half an exchange, or one that is not text.
        for make in [
            |_: String| "CHAP_N=user\0".to_owned(),
            |_| "CHAP_R=0x00\0".to_owned(),
            |_| "CHAP_N=user\0CHAP_R=zz\0".to_owned(),
            |right: String| right + "CHAP_I=1\0",
            |right| right + "CHAP_C=0x00\0",
            |right| right + "CHAP_I=256\0CHAP_C=0x00\0",
        ] {
            let (mut login, id, challenge) = challenged("5");
            let (status, _) = login.refusal(&last(&make(right(id, &challenge))));
            assert_eq!(status, LoginStatus::INITIATOR_ERROR);
        }
    }

    /// RFC 7143 9.2.1: our own challenge must not come back.
    #[test]
    fn does_not_answer_its_own_challenge() {
        let (mut login, id, challenge) = challenged("5");
        let reflected = format!(
            "{}CHAP_I={id}\0CHAP_C={}\0",
            proof(id, &challenge),
            emit_hex(&challenge)
        );
        let (status, _) = login.refusal(&last(&reflected));
        assert_eq!(status, LoginStatus::AUTHENTICATION_FAILURE);
        let (mut login, id, challenge) = challenged("5");
        let empty = format!("{}CHAP_I=1\0CHAP_C=0x\0", proof(id, &challenge));
        let (status, _) = login.refusal(&last(&empty));
        assert_eq!(status, LoginStatus::AUTHENTICATION_FAILURE);
    }

    #[test]
    fn proves_the_target_when_asked() {
        let (mut login, id, challenge) = challenged("5");
        let asked = format!("{}CHAP_I=0x2a\0CHAP_C=0x0011\0", proof(id, &challenge));
        let response = login.answer(&last(&asked));
        assert!(response.transit);
        let secret = Secret::new(*b"fedcba9876543210");
        let want = ChapAlgorithm::Md5.response(0x2a, &secret, &[0x00, 0x11]);
        let want = format!("CHAP_R={}", emit_hex(want.as_bytes()));
        assert_eq!(text(&response.data), ["CHAP_N=target".to_owned(), want]);
    }

    #[test]
    fn without_a_common_algorithm_is_refused() {
        for list in ["6,8", "9", "", "MD5", ","] {
            let mut login = Login::new(chap(true));
            login.answer(&security(&format!("{NAMES}AuthMethod=CHAP\0")));
            let (status, _) = login.refusal(&security(&format!("CHAP_A={list}\0")));
            assert_eq!(status, LoginStatus::AUTHENTICATION_FAILURE, "{list}");
        }
    }
}

mod any_input {
    use super::*;
    use proptest::prelude::*;

    fn pair() -> impl Strategy<Value = String> {
        let keys = crate::login::keys::KEYS.iter().map(|spec| spec.name);
        let key = prop::sample::select(keys.collect::<Vec<_>>());
        let value = prop_oneof![
            Just("CHAP,None".to_owned()),
            Just("8,7,6,5".to_owned()),
            Just("Yes".to_owned()),
            Just("user".to_owned()),
            Just("0x00112233".to_owned()),
            Just("Reject".to_owned()),
            "[ -~]{0,12}",
        ];
        prop_oneof![
            8 => (key, value).prop_map(|(k, v)| format!("{k}={v}\0")),
            1 => "[A-Za-z-]{1,9}=[^\0]{0,9}\0",
            1 => "[^\0]{0,12}\0",
        ]
    }

    proptest! {
        /// RFC 7143 7.7, 9.2: whatever an initiator says, each request has one response, a login ends
        /// within its bounds, and nothing opens without the proof.
        #[test]
        fn a_hostile_initiator_gets_nowhere(
            polite in any::<bool>(),
            requests in proptest::collection::vec(
                (
                    proptest::collection::vec(pair(), 0..5),
                    prop::sample::select(vec![Stage::Security, Stage::Operational, Stage::FullFeature]),
                    0u8..8,
                ),
                1..40,
            ),
        ) {
            let mut login = Login::new(chap(true));
            if polite {
                login.answer(&security(&format!("{NAMES}AuthMethod=CHAP\0")));
            }
            for (pairs, next, bits) in requests {
                let mut hostile = security(&pairs.concat());
                hostile.transit = bits & 1 != 0;
                hostile.continue_ = bits == 4;
                hostile.next_stage = next;
                if bits == 7 {
                    hostile.current_stage = next;
                }
                match login.send(&hostile) {
                    TargetStep::Respond(response) => {
                        prop_assert!(response.data.len() <= 8192);
                        prop_assert!(!response.transit);
                        prop_assert_eq!(response.tsih, Tsih(0));
                    }
                    TargetStep::Established(..) => prop_assert!(false, "opened without proof"),
                    TargetStep::Refused(response, _) => prop_assert!(response.status_class != 0),
                }
            }
            prop_assert_eq!(login.directory.opened, 0);
        }
    }
}

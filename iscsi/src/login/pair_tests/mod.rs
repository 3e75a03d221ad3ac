//! Initiator and target joined in memory, under every combination that matters.

mod faults;

use super::*;
use crate::error::{Error, Incompatibility, LoginStatus, Misbehaviour};
use crate::name::{IscsiName, TargetAddress};
use crate::pdu::Stage;
use crate::types::{Cid, CmdSn, Isid, Itt, StatSn, Tsih};

const INITIATOR_SECRET: &[u8] = b"0123456789abcdef";
const TARGET_SECRET: &[u8] = b"fedcba9876543210";

fn name(text: &str) -> IscsiName {
    IscsiName::parse(text).unwrap()
}

fn initiator() -> LoginConfig {
    let target_name = name("iqn.2026-01.io.example:t1");
    LoginConfig {
        itt: Itt(1),
        ..LoginConfig::new(
            name("iqn.2026-01.io.example:h1"),
            SessionKind::Normal { target_name },
            Isid::random([1, 2, 3], 4),
        )
    }
}

fn chap_initiator(algorithms: &[ChapAlgorithm], mutual: bool) -> LoginConfig {
    LoginConfig {
        auth: InitiatorAuth::Chap(ChapConfig {
            algorithms: algorithms.to_vec(),
            mutual: mutual.then(|| MutualChap {
                user: Some("target".to_owned()),
                secret: Secret::new(TARGET_SECRET),
            }),
            ..ChapConfig::new("user", Secret::new(INITIATOR_SECRET))
        }),
        ..initiator()
    }
}

fn chap_target(algorithms: &[ChapAlgorithm]) -> TargetAuth {
    TargetAuth::Chap {
        accounts: vec![
            Account {
                user: "other".to_owned(),
                secret: Secret::new("another secret"),
            },
            Account {
                user: "user".to_owned(),
                secret: Secret::new(INITIATOR_SECRET),
            },
        ],
        mutual: Some(Account {
            user: "target".to_owned(),
            secret: Secret::new(TARGET_SECRET),
        }),
        algorithms: algorithms.to_vec(),
        required: true,
    }
}

/// A target with one name, and what it opened.
struct OneTarget {
    admission: Admission,
    grant: Result<SessionGrant, LoginStatus>,
    opened: Vec<Identity>,
}

impl OneTarget {
    fn new(auth: TargetAuth, offer: Offer) -> Self {
        Self {
            admission: Admission::Admit {
                auth,
                offer,
                alias: Some("disk of the tests".to_owned()),
            },
            grant: Ok(SessionGrant {
                tsih: Tsih(9),
                window: None,
            }),
            opened: Vec::new(),
        }
    }
}

impl Directory for OneTarget {
    fn admit(&mut self, identity: &Identity) -> Admission {
        match &identity.target_name {
            Some(target) if *target != name("iqn.2026-01.io.example:t1") => {
                Admission::Refuse(LoginStatus::NOT_FOUND)
            }
            _ => self.admission.clone(),
        }
    }

    fn open(&mut self, identity: &Identity, _: &Negotiated) -> Result<SessionGrant, LoginStatus> {
        self.opened.push(identity.clone());
        self.grant
    }
}

struct Pair {
    initiator: InitiatorLogin,
    target: TargetLogin,
    directory: OneTarget,
    exchanges: u32,
    established: Option<Established>,
    refusal: Option<Refusal>,
    /// Largest data segment seen in a response, in bytes.
    largest_response: usize,
    continued: bool,
}

impl Pair {
    fn new(initiator: LoginConfig, target: TargetLoginConfig, directory: OneTarget) -> Self {
        Self {
            initiator: InitiatorLogin::new(initiator).unwrap(),
            target: TargetLogin::new(target),
            directory,
            exchanges: 0,
            established: None,
            refusal: None,
            largest_response: 0,
            continued: false,
        }
    }

    fn run(&mut self) -> Result<Step, Error> {
        loop {
            let request = self.initiator.poll_transmit().expect("a request is due");
            self.exchanges += 1;
            assert!(self.exchanges < 100, "the login goes on for ever");
            let response = match self.target.on_request(&request, &mut self.directory) {
                TargetStep::Respond(response) => response,
                TargetStep::Established(response, established) => {
                    self.established = Some(*established);
                    response
                }
                TargetStep::Refused(response, refusal) => {
                    self.refusal = Some(refusal);
                    response
                }
            };
            // RFC 7143 11.13.4: TSIH in the final response only.
            assert_eq!(response.tsih == request.tsih, self.established.is_none());
            self.largest_response = self.largest_response.max(response.data.len());
            self.continued |= response.continue_;
            match self.initiator.on_response(&response)? {
                Step::Continue => {}
                step => return Ok(step),
            }
        }
    }

    fn login(&mut self) -> (Outcome, Established) {
        match self.run() {
            Ok(Step::Done(outcome)) => {
                (*outcome, self.established.take().expect("both sides agree"))
            }
            other => panic!("{other:?}, {:?}", self.refusal),
        }
    }
}

/// Both sides hold the same, seen from either end.
fn assert_agree(initiator: &Negotiated, target: &Negotiated) {
    let mirrored = Negotiated {
        max_recv_data_segment_bytes: target.peer_max_recv_data_segment_bytes,
        peer_max_recv_data_segment_bytes: target.max_recv_data_segment_bytes,
        target_alias: initiator.target_alias.clone(),
        initiator_alias: initiator.initiator_alias.clone(),
        ..target.clone()
    };
    assert_eq!(*initiator, mirrored);
}

/// RFC 7143 6.2, 6.3, 12.1, 13.1: every algorithm, one-way and mutual, every pair of digest policies,
/// whole and split keys.
#[test]
fn every_combination_logs_in_or_fails_for_its_reason() {
    use DigestPolicy::{Off, Prefer, Require};
    let algorithms = ChapAlgorithm::STRONGEST_FIRST.map(Some);
    for algorithm in algorithms.into_iter().chain([None]) {
        for mutual in [false, true] {
            for (ours, theirs) in [
                (Off, Off),
                (Off, Prefer),
                (Off, Require),
                (Prefer, Off),
                (Prefer, Prefer),
                (Prefer, Require),
                (Require, Off),
                (Require, Prefer),
                (Require, Require),
            ] {
                for split in [None, Some(48), Some(100)] {
                    let config = match algorithm {
                        Some(algorithm) => chap_initiator(&[algorithm], mutual),
                        None => initiator(),
                    };
                    let auth = match algorithm {
                        Some(algorithm) => chap_target(&[algorithm]),
                        None => TargetAuth::None,
                    };
                    combination(config, auth, (ours, theirs), split, (algorithm, mutual));
                }
            }
        }
    }
}

fn combination(
    config: LoginConfig,
    auth: TargetAuth,
    (ours, theirs): (DigestPolicy, DigestPolicy),
    split: Option<usize>,
    (algorithm, mutual): (Option<ChapAlgorithm>, bool),
) {
    use DigestPolicy::{Off, Require};
    let offer = |digest, recv| Offer {
        header_digest: digest,
        data_digest: digest,
        max_recv_data_segment_bytes: recv,
        ..Offer::default()
    };
    let config = LoginConfig {
        offer: offer(ours, 65536),
        ..config
    };
    let target = TargetLoginConfig {
        faults: LoginFaults {
            pdu_text_bytes: split,
            ..LoginFaults::default()
        },
        ..TargetLoginConfig::default()
    };
    let mut pair = Pair::new(config, target, OneTarget::new(auth, offer(theirs, 32768)));
    match (ours, theirs) {
        (Require, Off) => {
            assert!(matches!(
                pair.run(),
                Err(Error::TargetIncompatible(Incompatibility::Digest {
                    key: "HeaderDigest",
                    ..
                }))
            ));
            return;
        }
        (Off, Require) => {
            assert_eq!(
                pair.run(),
                Err(Error::LoginRejected(LoginStatus::INITIATOR_ERROR))
            );
            assert!(pair.refusal.unwrap().reason.contains("HeaderDigest"));
            return;
        }
        _ => {}
    }
    let (outcome, established) = pair.login();
    assert_agree(&outcome.negotiated, &established.negotiated);
    let digest = ours != Off && theirs != Off;
    assert_eq!(outcome.negotiated.header_digest, digest);
    assert_eq!(outcome.negotiated.data_digest, digest);
    assert_eq!(outcome.negotiated.max_recv_data_segment_bytes, 65536);
    assert_eq!(outcome.negotiated.peer_max_recv_data_segment_bytes, 32768);
    assert_eq!(outcome.negotiated.target_portal_group_tag, Some(1));
    assert_eq!(
        outcome.negotiated.target_alias.as_deref(),
        Some("disk of the tests")
    );
    assert_eq!(outcome.tsih, Tsih(9));
    assert_eq!(outcome.exp_stat_sn, established.stat_sn);
    assert_eq!(outcome.max_cmd_sn, CmdSn(128));
    assert_eq!(pair.directory.opened, [established.identity]);
    assert_eq!(pair.continued, split.is_some());
    match algorithm {
        None => {
            assert_eq!(outcome.authentication, Authentication::None);
            assert_eq!(established.user, None);
        }
        Some(algorithm) => {
            let target_user = mutual.then(|| "target".to_owned());
            let want = Authentication::Chap {
                algorithm,
                target_user,
            };
            assert_eq!(outcome.authentication, want);
            assert_eq!(established.user, Some(("user".to_owned(), algorithm)));
            assert_eq!(established.mutual, mutual);
        }
    }
    if let Some(split) = split {
        assert!(pair.largest_response <= split);
    }
}

fn plain() -> OneTarget {
    OneTarget::new(TargetAuth::None, Offer::default())
}

fn faulty(faults: LoginFaults) -> TargetLoginConfig {
    TargetLoginConfig {
        faults,
        ..TargetLoginConfig::default()
    }
}

/// RFC 7143 12.1.3: wrong secrets and names on either side, and methods that do not meet.
#[test]
fn wrong_credentials_fail_on_the_side_that_checks() {
    let all = ChapAlgorithm::STRONGEST_FIRST;
    let rejected = Err(Error::LoginRejected(LoginStatus::AUTHENTICATION_FAILURE));
    let run = |change: &dyn Fn(&mut ChapConfig), auth: TargetAuth| {
        let mut config = chap_initiator(&all, true);
        let InitiatorAuth::Chap(chap) = &mut config.auth else {
            unreachable!()
        };
        change(chap);
        let directory = OneTarget::new(auth, Offer::default());
        let mut pair = Pair::new(config, TargetLoginConfig::default(), directory);
        let result = pair.run();
        assert!(pair.directory.opened.is_empty() || result.is_ok());
        result
    };
    let good = || chap_target(&all);
    assert!(run(&|_| {}, good()).is_ok());
    assert_eq!(
        run(&|c| c.secret = Secret::new("not the secret"), good()),
        rejected
    );
    assert_eq!(run(&|c| c.user = "nobody".to_owned(), good()), rejected);
    assert_eq!(run(&|c| c.user = "other".to_owned(), good()), rejected);
    let mutual = |secret: &'static str, user: &'static str| {
        move |c: &mut ChapConfig| {
            c.mutual = Some(MutualChap {
                user: Some(user.to_owned()),
                secret: Secret::new(secret),
            });
        }
    };
    let not_proven = |result| {
        matches!(
            result,
            Err(Error::TargetIncompatible(
                Incompatibility::TargetNotAuthenticated(_)
            ))
        )
    };
    assert!(not_proven(run(&mutual("not its secret", "target"), good())));
    assert!(not_proven(run(
        &mutual("fedcba9876543210", "another"),
        good()
    )));
    // The target has nothing to prove itself with.
    let TargetAuth::Chap {
        accounts,
        algorithms,
        required,
        ..
    } = good()
    else {
        unreachable!()
    };
    let auth = TargetAuth::Chap {
        accounts,
        algorithms,
        required,
        mutual: None,
    };
    assert_eq!(run(&|_| {}, auth), rejected);
    // No common algorithm.
    assert_eq!(
        run(
            &|c| c.algorithms = vec![ChapAlgorithm::Md5],
            chap_target(&[ChapAlgorithm::Sha1])
        ),
        rejected
    );
    // The target wants nothing, the initiator wants CHAP.
    assert_eq!(run(&|_| {}, TargetAuth::None), rejected);
    assert!(run(&|c| c.allow_none = true, TargetAuth::None).is_ok());
    // The target wants CHAP, the initiator has none.
    let mut pair = Pair::new(
        initiator(),
        TargetLoginConfig::default(),
        OneTarget::new(good(), Offer::default()),
    );
    assert_eq!(pair.run(), rejected);
}

/// RFC 7143 6.2, 13: results of two different offers, key by key.
#[test]
fn limits_of_both_sides_are_combined() {
    let config = LoginConfig {
        initiator_alias: Some("worker".to_owned()),
        offer: Offer {
            task_reporting: vec![TaskReporting::FastAbort, TaskReporting::ResponseFence],
            protocol_level: Some(2),
            max_connections: 4,
            time2wait_s: 1,
            time2retain_s: 30,
            ..Offer::default()
        },
        ..initiator()
    };
    let offer = Offer {
        initial_r2t: true,
        immediate_data: false,
        max_burst_bytes: 131_072,
        first_burst_bytes: 65_536,
        max_outstanding_r2t: 2,
        max_connections: 2,
        time2wait_s: 5,
        time2retain_s: 10,
        error_recovery_level: 2,
        data_pdu_in_order: false,
        data_sequence_in_order: false,
        task_reporting: vec![TaskReporting::ResponseFence, TaskReporting::Rfc3720],
        protocol_level: Some(1),
        ..Offer::default()
    };
    let directory = OneTarget::new(TargetAuth::None, offer);
    let (outcome, established) = Pair::new(config, TargetLoginConfig::default(), directory).login();
    assert_agree(&outcome.negotiated, &established.negotiated);
    assert_eq!(
        outcome.negotiated,
        Negotiated {
            header_digest: false,
            data_digest: false,
            initial_r2t: true,
            immediate_data: false,
            max_burst_bytes: 131_072,
            first_burst_bytes: 65_536,
            max_outstanding_r2t: 2,
            max_recv_data_segment_bytes: 262_144,
            peer_max_recv_data_segment_bytes: 262_144,
            time2wait_s: 5,
            time2retain_s: 10,
            error_recovery_level: 0,
            max_connections: 2,
            data_pdu_in_order: true,
            data_sequence_in_order: true,
            task_reporting: TaskReporting::ResponseFence,
            protocol_level: 1,
            target_portal_group_tag: Some(1),
            target_alias: Some("disk of the tests".to_owned()),
            initiator_alias: None,
        }
    );
    assert_eq!(
        established.negotiated.initiator_alias.as_deref(),
        Some("worker")
    );
}

/// RFC 7143 13.17: one R2T at a time when recovery needs sequences in order.
#[test]
fn recovery_levels_keep_r2ts_to_one() {
    let offer = || Offer {
        error_recovery_level: 2,
        ..Offer::default()
    };
    let config = LoginConfig {
        offer: offer(),
        ..initiator()
    };
    let directory = OneTarget::new(TargetAuth::None, offer());
    let (outcome, _) = Pair::new(config, TargetLoginConfig::default(), directory).login();
    assert_eq!(outcome.negotiated.error_recovery_level, 2);
    assert_eq!(outcome.negotiated.max_outstanding_r2t, 1);
}

/// RFC 7143 13, "irrelevant when SessionType=Discovery".
#[test]
fn a_discovery_session_needs_no_target() {
    let config = LoginConfig {
        session: SessionKind::Discovery,
        ..initiator()
    };
    let (outcome, established) = Pair::new(config, TargetLoginConfig::default(), plain()).login();
    assert_eq!(established.identity.target_name, None);
    assert_agree(&outcome.negotiated, &established.negotiated);
    let want = Negotiated {
        max_recv_data_segment_bytes: 262_144,
        peer_max_recv_data_segment_bytes: 262_144,
        target_alias: Some("disk of the tests".to_owned()),
        ..Negotiated::default()
    };
    assert_eq!(outcome.negotiated, want);
}

/// RFC 7143 6.3.1: a second connection takes the session's numbers and offers no session-wide keys.
#[test]
fn a_connection_joins_a_session() {
    let config = LoginConfig {
        tsih: Tsih(9),
        cid: Cid(1),
        cmd_sn: CmdSn(700),
        ..initiator()
    };
    let mut directory = plain();
    directory.grant = Ok(SessionGrant {
        tsih: Tsih(9),
        window: Some((CmdSn(690), CmdSn(720))),
    });
    let mut pair = Pair::new(config, TargetLoginConfig::default(), directory);
    loop {
        let request = pair.initiator.poll_transmit().unwrap();
        let text = request.data.to_bytes();
        let text = String::from_utf8_lossy(&text);
        assert!(
            !text.contains("MaxBurstLength") && !text.contains("InitialR2T"),
            "{text}"
        );
        match pair.target.on_request(&request, &mut pair.directory) {
            TargetStep::Respond(response) => {
                assert_eq!(pair.initiator.on_response(&response), Ok(Step::Continue));
            }
            TargetStep::Established(response, established) => {
                let Ok(Step::Done(outcome)) = pair.initiator.on_response(&response) else {
                    panic!("not done");
                };
                assert_eq!(outcome.exp_cmd_sn, CmdSn(690));
                assert_eq!(outcome.max_cmd_sn, CmdSn(720));
                assert_eq!(outcome.cid, Cid(1));
                assert_eq!(established.identity.tsih, Tsih(9));
                assert_eq!(outcome.exp_stat_sn, StatSn(3));
                break;
            }
            other @ TargetStep::Refused(..) => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_a_login_prints_holds_no_secret() {
    let all = ChapAlgorithm::DEFAULT_ORDER;
    let directory = OneTarget::new(chap_target(&all), Offer::default());
    let mut pair = Pair::new(
        chap_initiator(&all, true),
        TargetLoginConfig::default(),
        directory,
    );
    let mut seen = format!("{:?} {:?}", pair.initiator, pair.directory.admission);
    pair.login();
    seen += &format!("{:?} {:?}", pair.initiator, pair.target);
    for secret in ["0123456789abcdef", "fedcba9876543210", "48, 49, 50, 51"] {
        assert!(!seen.contains(secret), "{seen}");
    }
}

//! The security stage.

use super::*;

mod method {
    use super::*;

    fn answer(config: LoginConfig, pairs: &[&str]) -> Result<Step, Error> {
        let (mut login, request) = start(config);
        login.on_response(&reply(&request, pairs))
    }

    /// RFC 7143 9.2: no way around CHAP when CHAP is demanded.
    #[test]
    fn there_is_no_downgrade() {
        let (mut login, request) = start(with_chap(chap()));
        assert!(!request.transit);
        assert!(text(&request.data).contains(&"AuthMethod=CHAP".to_owned()));
        let error = login
            .on_response(&reply(&request, &["AuthMethod=None"]))
            .unwrap_err();
        assert!(matches!(
            error,
            Error::TargetIncompatible(Incompatibility::Authentication(_))
        ));
        // T=1 although we sent T=0.
        let (mut login, request) = start(with_chap(chap()));
        let mut eager = reply(&request, &["AuthMethod=None"]);
        eager.transit = true;
        eager.next_stage = Stage::Operational;
        assert!(login.on_response(&eager).is_err());
    }

    #[test]
    fn none_is_taken_where_policy_allows() {
        let config = with_chap(ChapConfig {
            allow_none: true,
            ..chap()
        });
        let (mut login, request) = start(config);
        assert!(text(&request.data).contains(&"AuthMethod=CHAP,None".to_owned()));
        let request = go_on(&mut login, &request, &["AuthMethod=None"]);
        assert!(request.transit && request.data.is_empty());
        let request = go_on(&mut login, &request, &[]);
        assert_eq!(request.current_stage, Stage::Operational);
    }

    #[test]
    fn other_answers_are_typed_errors() {
        for (pairs, want) in [
            (&["AuthMethod=KRB5"][..], "not offered"),
            (&["AuthMethod=CHAP"], "not offered"),
            (
                &["CHAP_A=5", "CHAP_I=1", "CHAP_C=0x00"],
                "before CHAP was chosen",
            ),
        ] {
            misbehaved_with(&answer(normal(), pairs).unwrap_err(), want);
        }
        for word in ["Reject", "NotUnderstood", "Irrelevant"] {
            let pair = format!("AuthMethod={word}");
            assert!(matches!(
                answer(normal(), &[&pair]),
                Err(Error::TargetIncompatible(Incompatibility::Authentication(
                    _
                )))
            ));
        }
    }

    /// A target that never answers AuthMethod is asked again until the bound on exchanges.
    #[test]
    fn silence_ends() {
        for config in [with_chap(chap()), normal()] {
            let (mut login, mut request) = start(config);
            let mut rounds = 0;
            let error = loop {
                let mut response = reply(&request, &[]);
                response.transit = false;
                match login.on_response(&response) {
                    Ok(_) => request = login.poll_transmit().unwrap(),
                    Err(error) => break error,
                }
                rounds += 1;
                assert!(rounds <= 32);
            };
            misbehaved_with(&error, "login exchanges");
        }
    }

    /// Some targets start with operational keys here; they are answered, and not offered again.
    #[test]
    fn operational_keys_are_answered_here_too() {
        let (mut login, request) = start(normal());
        let mut response = reply(
            &request,
            &["AuthMethod=None", "MaxBurstLength=65536", "X-a=1"],
        );
        response.transit = false;
        assert_eq!(login.on_response(&response), Ok(Step::Continue));
        let request = login.poll_transmit().unwrap();
        assert_eq!(
            text(&request.data),
            ["MaxBurstLength=65536", "X-a=NotUnderstood"]
        );
        let request = go_on(&mut login, &request, &[]);
        assert!(
            text(&request.data)
                .iter()
                .all(|p| !p.starts_with("MaxBurstLength"))
        );
        let Ok(Step::Done(outcome)) = login.on_response(&reply(&request, &[])) else {
            panic!("not done");
        };
        assert_eq!(outcome.negotiated.max_burst_bytes, 65536);
    }
}

mod challenge {
    use super::*;

    fn challenged(
        chap: ChapConfig,
        pairs: &[&str],
    ) -> Result<(InitiatorLogin, LoginRequest), Error> {
        let (mut login, request) = start(with_chap(chap));
        let request = go_on(&mut login, &request, &["AuthMethod=CHAP"]);
        assert!(!request.transit);
        assert_eq!(text(&request.data), ["CHAP_A=8,6,5,7"]);
        login.on_response(&reply(&request, pairs))?;
        let request = login.poll_transmit().unwrap();
        Ok((login, request))
    }

    /// RFC 7143 12.1.3, with the known vectors, hex and Base64, number in hex.
    #[test]
    fn is_answered_with_the_known_response() {
        for (algorithm, response) in [
            ("5", "0fbee2a235349701655e644832d106bf"),
            ("6", "5617a555f0045171364ed82310b9c08c4d48faeb"),
            (
                "7",
                "d8c3aedd13f3e0017b09becc2da9c74a6d001ab22424256ad456063e668f5d14",
            ),
            (
                "8",
                "972a2f638a858f5d97206e79fdf525a79b427550f3b79af445c6664fea05b508",
            ),
        ] {
            for (id, challenge) in [
                ("42", "0x000102030405060708090a0b0c0d0e0f"),
                ("0x2A", "0bAAECAwQFBgcICQoLDA0ODw=="),
            ] {
                let (_, request) = challenged(
                    chap(),
                    &[
                        &format!("CHAP_A={algorithm}"),
                        &format!("CHAP_I={id}"),
                        &format!("CHAP_C={challenge}"),
                    ],
                )
                .unwrap();
                assert!(request.transit);
                let want = format!("CHAP_R=0x{response}");
                assert_eq!(text(&request.data), ["CHAP_N=user".to_owned(), want]);
            }
        }
    }

    #[test]
    fn that_is_wrong_is_a_typed_error() {
        let id = "CHAP_I=1";
        let c = "CHAP_C=0x0011";
        let long = format!("CHAP_C=0x{}", "00".repeat(1025));
        for (pairs, want) in [
            (&["CHAP_A=9", id, c][..], "CHAP_A"),
            (&["CHAP_A=8,5", id, c], "CHAP_A"),
            (&["CHAP_A=", id, c], "CHAP_A"),
            (&[id, c], "missing"),
            (&["CHAP_A=5", c], "missing"),
            (&["CHAP_A=5", id], "missing"),
            (&["CHAP_A=5", "CHAP_I=256", c], "CHAP_I"),
            (&["CHAP_A=5", "CHAP_I=-1", c], "CHAP_I"),
            (&["CHAP_A=5", id, "CHAP_C="], "CHAP_C"),
            (&["CHAP_A=5", id, "CHAP_C=0x"], "empty"),
            (&["CHAP_A=5", id, "CHAP_C=0xzz"], "CHAP_C"),
            (&["CHAP_A=5", id, "CHAP_C=0bA"], "CHAP_C"),
            (&["CHAP_A=5", id, &long], "CHAP_C"),
            (&["AuthMethod=CHAP"], "twice"),
        ] {
            let error = challenged(chap(), pairs).map(|_| ()).unwrap_err();
            misbehaved_with(&error, want);
        }
        for word in ["Reject", "NotUnderstood"] {
            let error = challenged(chap(), &[&format!("CHAP_A={word}")])
                .map(|_| ())
                .unwrap_err();
            assert!(matches!(
                error,
                Error::TargetIncompatible(Incompatibility::Authentication(_))
            ));
        }
    }

    /// RFC 7143 12.1.3: an algorithm that was not in our list is a protocol error.
    #[test]
    fn with_an_algorithm_that_was_not_offered_is_refused() {
        let config = with_chap(ChapConfig {
            algorithms: vec![ChapAlgorithm::Sha3_256, ChapAlgorithm::Sha256],
            ..chap()
        });
        let (mut login, request) = start(config);
        let request = go_on(&mut login, &request, &["AuthMethod=CHAP"]);
        let weak = ["CHAP_A=5", "CHAP_I=1", "CHAP_C=0x0011"];
        misbehaved_with(
            &login.on_response(&reply(&request, &weak)).unwrap_err(),
            "not offered",
        );
    }

    /// RFC 7143 9.2.1: the challenge that one login sends must not come back in another.
    #[test]
    fn of_another_login_of_ours_is_refused() {
        let challenges = ChallengeLog::new();
        let shared = || LoginConfig {
            challenges: challenges.clone(),
            ..with_chap(mutual())
        };
        let to_challenge = || {
            let (mut login, request) = start(shared());
            let request = go_on(&mut login, &request, &["AuthMethod=CHAP"]);
            (login, request)
        };
        let (mut first, request) = to_challenge();
        let request = go_on(
            &mut first,
            &request,
            &["CHAP_A=5", "CHAP_I=1", "CHAP_C=0x0011"],
        );
        let pairs = text(&request.data);
        let ours = pairs.iter().find(|p| p.starts_with("CHAP_C=")).unwrap();
        let reflect = ["CHAP_A=5", "CHAP_I=9", ours];
        let (mut second, request) = to_challenge();
        let error = second.on_response(&reply(&request, &reflect)).unwrap_err();
        assert!(error.to_string().contains("reflection"), "{error}");
        // When the first login is over its challenge is of no use to anybody.
        drop(first);
        let (mut third, request) = to_challenge();
        assert_eq!(
            third.on_response(&reply(&request, &reflect)),
            Ok(Step::Continue)
        );
    }
}

mod proof {
    use super::*;
    use crate::login::text::parse_binary;

    /// Up to the request that carries CHAP_N and CHAP_R.
    fn proving(chap: ChapConfig) -> (InitiatorLogin, LoginRequest) {
        let (mut login, request) = start(with_chap(chap));
        let request = go_on(&mut login, &request, &["AuthMethod=CHAP"]);
        let request = go_on(
            &mut login,
            &request,
            &["CHAP_A=7", "CHAP_I=1", "CHAP_C=0x00112233"],
        );
        (login, request)
    }

    fn response_for(request: &LoginRequest, secret: &[u8]) -> String {
        let pairs = text(&request.data);
        let value = |key: &str| {
            let pair = pairs.iter().find_map(|p| p.strip_prefix(key));
            pair.unwrap().to_owned()
        };
        let id = value("CHAP_I=").parse().unwrap();
        let challenge = parse_binary(&value("CHAP_C="), 1024).unwrap();
        assert!(challenge.len() >= 16);
        let secret = Secret::new(secret);
        let response = ChapAlgorithm::Sha256.response(id, &secret, &challenge);
        format!("CHAP_R={}", emit_hex(response.as_bytes()))
    }

    #[test]
    fn of_the_target_is_checked() {
        let (mut login, request) = proving(mutual());
        let good = response_for(&request, b"fedcba9876543210");
        let request = go_on(&mut login, &request, &["CHAP_N=target", &good]);
        assert_eq!(request.current_stage, Stage::Operational);
        let Ok(Step::Done(outcome)) = login.on_response(&reply(&request, &[])) else {
            panic!("not done");
        };
        let want = Authentication::Chap {
            algorithm: ChapAlgorithm::Sha256,
            target_user: Some("target".to_owned()),
        };
        assert_eq!(outcome.authentication, want);
    }

    /// RFC 7143 12.1.3: mutual CHAP that is asked for and not given fails, even with T=1.
    #[test]
    fn that_is_missing_wrong_or_our_own_is_refused() {
        let wrong_len = "CHAP_R=0x00".to_owned();
        for make in [
            |_: &LoginRequest| vec![],
            |_: &LoginRequest| vec!["CHAP_N=target".to_owned()],
            |r: &LoginRequest| vec![response_for(r, b"fedcba9876543210")],
            |r: &LoginRequest| vec!["CHAP_N=t".to_owned(), response_for(r, b"another secret 1")],
            |r: &LoginRequest| vec!["CHAP_N=t".to_owned(), response_for(r, b"0123456789abcdef")],
        ] {
            let (mut login, request) = proving(mutual());
            let pairs = make(&request);
            let pairs: Vec<&str> = pairs.iter().map(String::as_str).collect();
            let error = login.on_response(&reply(&request, &pairs)).unwrap_err();
            assert!(
                matches!(
                    error,
                    Error::TargetIncompatible(Incompatibility::TargetNotAuthenticated(_))
                ),
                "{error:?}"
            );
        }
        let (mut login, request) = proving(mutual());
        let error = login
            .on_response(&reply(&request, &["CHAP_N=t", &wrong_len]))
            .unwrap_err();
        assert!(matches!(error, Error::TargetIncompatible(_)));
    }

    /// With T=0 the proof may come later, but the stage cannot end without it.
    #[test]
    fn may_come_one_answer_later() {
        let (mut login, request) = proving(mutual());
        let good = response_for(&request, b"fedcba9876543210");
        let mut later = reply(&request, &[]);
        later.transit = false;
        assert_eq!(login.on_response(&later), Ok(Step::Continue));
        let request = login.poll_transmit().unwrap();
        assert!(request.transit && request.data.is_empty());
        let mut proof = reply(&request, &["CHAP_N=target", &good]);
        proof.transit = false;
        assert_eq!(login.on_response(&proof), Ok(Step::Continue));
        let request = login.poll_transmit().unwrap();
        let request = go_on(&mut login, &request, &[]);
        assert_eq!(request.current_stage, Stage::Operational);
    }

    #[test]
    fn that_nobody_asked_for_is_refused() {
        let (mut login, request) = proving(chap());
        let error = login
            .on_response(&reply(&request, &["CHAP_N=t", "CHAP_R=0x00"]))
            .unwrap_err();
        misbehaved_with(&error, "not asked for");
    }

    /// The quirk of tgt: see [`InitiatorLogin::retry_with_md5_after`].
    #[test]
    fn refused_under_seven_may_be_tried_with_five() {
        let (mut login, request) = proving(chap());
        let mut refusal = reply(&request, &[]);
        refusal.transit = false;
        (refusal.status_class, refusal.status_detail) = (2, 1);
        let error = login.on_response(&refusal).unwrap_err();
        let config = login.retry_with_md5_after(&error).unwrap();
        let InitiatorAuth::Chap(chap) = config.auth else {
            panic!("no CHAP");
        };
        assert_eq!(chap.algorithms, [ChapAlgorithm::Md5]);
        let other = Error::LoginRejected(LoginStatus::AUTHORIZATION_FAILURE);
        assert!(login.retry_with_md5_after(&other).is_none());
    }
}

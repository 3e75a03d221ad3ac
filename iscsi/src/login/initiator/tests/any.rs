//! What holds in every stage: long text, headers, statuses, hostile input.

use super::*;

mod long_text {
    use super::*;

    /// RFC 7143 6.2: the target's keys over several PDUs get empty requests, then the login goes on.
    #[test]
    fn of_the_target_is_collected_with_empty_requests() {
        let (mut login, request) = operational(normal());
        let mut first = reply(&request, &[]);
        first.transit = false;
        first.continue_ = true;
        first.data = Payload::from(&b"MaxBurst"[..]);
        assert_eq!(login.on_response(&first), Ok(Step::Continue));
        let request = login.poll_transmit().unwrap();
        assert!(request.data.is_empty() && !request.transit && !request.continue_);
        let mut second = reply(&request, &[]);
        second.data = Payload::from(&b"Length=4096\0"[..]);
        assert_eq!(login.on_response(&second), Ok(Step::Continue));
        let request = login.poll_transmit().unwrap();
        assert!(request.transit && request.data.is_empty());
        let Ok(Step::Done(outcome)) = login.on_response(&reply(&request, &[])) else {
            panic!("not done");
        };
        assert_eq!(outcome.negotiated.max_burst_bytes, 4096);
    }

    /// Ours is cut at 8192 bytes, with C=1 and T=0 on all PDUs but the last (RFC 7143 11.12.2).
    #[test]
    fn of_ours_is_cut_at_the_limit_of_a_login_pdu() {
        let (mut login, request) = operational(normal());
        // Answers to 64 unknown keys with long names fill one PDU; ask for more by hand.
        let pairs: Vec<String> = (0..64)
            .map(|i| format!("X-{}{i:02}=1", "k".repeat(58)))
            .collect();
        let refs: Vec<&str> = pairs.iter().map(String::as_str).collect();
        for _ in 0..100 {
            login.outgoing.push(&"K".repeat(40), &"v".repeat(40));
        }
        let mut more = reply(&request, &refs);
        more.transit = false;
        assert_eq!(login.on_response(&more), Ok(Step::Continue));
        let request = login.poll_transmit().unwrap();
        assert!(request.continue_ && !request.transit);
        assert_eq!(request.data.len(), 8192);
        // Keys in answer to it are out of order.
        let mut request = go_on(&mut login, &request, &[]);
        let mut total = 8192;
        loop {
            total += request.data.len();
            if !request.continue_ {
                break;
            }
            request = go_on(&mut login, &request, &[]);
        }
        assert!(request.transit);
        assert_eq!(total, 64 * (62 + 15) + 100 * 82);
    }

    #[test]
    fn keys_between_the_parts_of_ours_are_refused() {
        let (mut login, request) = operational(normal());
        for _ in 0..200 {
            login.outgoing.push(&"K".repeat(40), &"v".repeat(40));
        }
        let mut more = reply(&request, &[]);
        more.transit = false;
        let request = {
            assert_eq!(login.on_response(&more), Ok(Step::Continue));
            login.poll_transmit().unwrap()
        };
        assert!(request.continue_);
        let early = reply(&request, &["InitialR2T=Yes"]);
        misbehaved_with(&login.on_response(&early).unwrap_err(), "C bit");
    }

    /// 64 KiB of text in one login, whatever it says.
    #[test]
    fn without_end_is_refused() {
        let (mut login, mut request) = operational(normal());
        let mut bytes = 0;
        let error = loop {
            let mut response = reply(&request, &[]);
            response.transit = false;
            response.continue_ = true;
            response.data = Payload::from(vec![b'A'; 8192]);
            bytes += 8192;
            assert!(bytes <= 65536 + 8192);
            match login.on_response(&response) {
                Ok(_) => request = login.poll_transmit().unwrap(),
                Err(error) => break error,
            }
        };
        misbehaved_with(&error, "bytes of login text");
    }
}

mod any_stage {
    use super::*;

    /// RFC 7143 11.13: every field that has to agree with the request.
    #[test]
    fn headers_that_do_not_fit_are_refused() {
        let check = |change: fn(&mut LoginResponse), want: &str| {
            let (mut login, request) = operational(normal());
            let mut response = reply(&request, &[]);
            change(&mut response);
            let error = login.on_response(&response).unwrap_err();
            assert!(error.to_string().contains(want), "{error}");
            assert!(login.poll_transmit().is_none());
            assert!(login.on_response(&reply(&request, &[])).is_err());
        };
        check(|r| r.itt = Itt(2), "task tag");
        check(|r| r.version_active = 1, "version");
        check(|r| r.current_stage = Stage::Security, "stage");
        check(|r| r.next_stage = Stage::Operational, "next stage");
        check(|r| r.continue_ = true, "T and C");
        check(|r| r.tsih = Tsih(0), "TSIH");
        check(|r| r.data = Payload::from(&b"garbage"[..]), "key=value");
        check(|r| r.data = Payload::from(&b"A=\xff\0"[..]), "UTF-8");
    }

    #[test]
    fn a_response_without_a_request_is_refused() {
        let mut login = InitiatorLogin::new(normal()).unwrap();
        let (_, request) = start(normal());
        misbehaved_with(
            &login.on_response(&reply(&request, &[])).unwrap_err(),
            "without",
        );
    }

    /// RFC 7143 11.13.5: the header's other fields mean nothing when the class is not 0.
    #[test]
    fn a_status_counts_before_everything_else() {
        for (class, detail) in [(2, 0), (2, 1), (2, 3), (3, 0), (3, 1), (4, 0), (255, 255)] {
            let (mut login, request) = start(normal());
            let mut response = reply(&request, &[]);
            (response.status_class, response.status_detail) = (class, detail);
            response.version_active = 9;
            response.current_stage = Stage::FullFeature;
            response.data = Payload::from(&b"nonsense"[..]);
            let error = login.on_response(&response).unwrap_err();
            assert_eq!(error, Error::LoginRejected(LoginStatus::new(class, detail)));
        }
    }

    /// RFC 7143 11.13.5, class 1: at least one TargetAddress, without a portal group.
    #[test]
    fn redirects_need_an_address() {
        let redirect = |pairs: &[&str], detail| {
            let (mut login, request) = start(normal());
            let mut response = reply(&request, pairs);
            response.transit = false;
            (response.status_class, response.status_detail) = (1, detail);
            login.on_response(&response)
        };
        for (address, detail, want) in [
            ("192.0.2.1", 1, "192.0.2.1:3260"),
            ("[2001:db8::1]:860", 2, "[2001:db8::1]:860"),
            ("array.example.com:3261,7", 1, "array.example.com:3261"),
        ] {
            let Ok(Step::Redirect(step)) = redirect(&[&format!("TargetAddress={address}")], detail)
            else {
                panic!("no redirect to {address}");
            };
            assert_eq!(
                (step.portal.to_string().as_str(), step.permanent),
                (want, detail == 2)
            );
        }
        for pairs in [
            &[][..],
            &["TargetAddress="],
            &["TargetAddress=[fe80::1%1]"],
            &["A=b"],
        ] {
            assert!(
                matches!(redirect(pairs, 1), Err(Error::TargetMisbehaved(_))),
                "{pairs:?}"
            );
        }
    }

    /// StatSN of every response is acknowledged in the next request (RFC 7143 4.2.2.2).
    #[test]
    fn status_numbers_are_acknowledged() {
        let (mut login, request) = start(normal());
        let mut response = reply(&request, &["AuthMethod=None"]);
        response.sn.stat_sn = StatSn(0xffff_ffff);
        assert_eq!(login.on_response(&response), Ok(Step::Continue));
        let request = login.poll_transmit().unwrap();
        assert_eq!(request.exp_stat_sn, StatSn(0));
    }
}

mod any_input {
    use super::*;
    use proptest::prelude::*;

    fn pair() -> impl Strategy<Value = String> {
        let keys = crate::login::keys::KEYS.iter().map(|spec| spec.name);
        let key = prop::sample::select(keys.collect::<Vec<_>>());
        let value = prop_oneof![
            Just("CHAP".to_owned()),
            Just("None".to_owned()),
            Just("5".to_owned()),
            Just("Yes".to_owned()),
            Just("0x00112233".to_owned()),
            Just("Reject".to_owned()),
            "[ -~]{0,12}",
        ];
        prop_oneof![
            8 => (key, value).prop_map(|(k, v)| format!("{k}={v}")),
            1 => "[A-Za-z-]{1,9}=[^\0]{0,9}",
            1 => "[^\0]{0,12}",
        ]
    }

    fn stage() -> impl Strategy<Value = Stage> {
        prop::sample::select(vec![
            Stage::Security,
            Stage::Operational,
            Stage::FullFeature,
        ])
    }

    proptest! {
        /// RFC 7143 7.7: whatever a target says, a login ends within its bounds and never panics; it
        /// never ends well without the proof that was demanded.
        #[test]
        fn a_hostile_target_gets_nowhere(
            mutual_too in any::<bool>(),
            responses in proptest::collection::vec(
                (
                    proptest::collection::vec(pair(), 0..6),
                    proptest::option::weighted(0.2, any::<bool>()),
                    proptest::option::weighted(0.1, stage()),
                    any::<prop::sample::Index>(),
                    0u8..20,
                ),
                1..40,
            ),
        ) {
            let config = with_chap(if mutual_too { mutual() } else { chap() });
            let mut login = InitiatorLogin::new(config).unwrap();
            for (pairs, transit, next, cut, class) in responses {
                let Some(request) = login.poll_transmit() else { break };
                prop_assert!(request.data.len() <= 8192);
                prop_assert!(!(request.transit && request.continue_));
                let pairs: Vec<&str> = pairs.iter().map(String::as_str).collect();
                let mut response = reply(&request, &pairs);
                if let Some(transit) = transit {
                    response.transit = transit;
                    response.continue_ = !transit;
                }
                if let Some(next) = next {
                    response.next_stage = next;
                }
                if class == 0 {
                    response.status_class = 1;
                }
                if transit.is_some() {
                    let cut = cut.index(response.data.len() + 1);
                    response.data = response.data.slice(0, cut);
                }
                match login.on_response(&response) {
                    Ok(Step::Continue) => {}
                    Ok(Step::Done(outcome)) => {
                        prop_assert!(!mutual_too, "mutual proof cannot be guessed");
                        let proven = matches!(outcome.authentication, Authentication::Chap { .. });
                        prop_assert!(proven);
                    }
                    Ok(Step::Redirect(_)) | Err(_) => prop_assert!(login.poll_transmit().is_none()),
                }
            }
        }
    }
}

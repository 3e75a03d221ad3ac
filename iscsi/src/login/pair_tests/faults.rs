//! Logins that a target spoils on purpose, refuses, or sends elsewhere.

use super::*;

/// RFC 7143 6.2.3 wants some limit: a byte a PDU takes more exchanges than a login may have.
#[test]
fn a_trickle_of_text_ends() {
    let target = faulty(LoginFaults {
        pdu_text_bytes: Some(1),
        ..LoginFaults::default()
    });
    let mut pair = Pair::new(initiator(), target, plain());
    assert!(matches!(
        pair.run(),
        Err(
            Error::TargetMisbehaved(Misbehaviour::TooMany { limit: 32, .. })
                | Error::LoginRejected(LoginStatus::INITIATOR_ERROR)
        )
    ));
    assert!(pair.exchanges <= 33);
}

/// A target that never agrees to the next stage does not hold an initiator for ever.
#[test]
fn a_login_that_never_ends_ends() {
    let target = faulty(LoginFaults {
        never_ending: true,
        ..LoginFaults::default()
    });
    let mut pair = Pair::new(initiator(), target, plain());
    assert!(matches!(
        pair.run(),
        Err(
            Error::TargetMisbehaved(Misbehaviour::TooMany { limit: 32, .. })
                | Error::LoginRejected(LoginStatus::INITIATOR_ERROR)
        )
    ));
    assert!(pair.established.is_none());
}

/// RFC 7143 11.13.5: every status reaches the initiator, in either stage.
#[test]
fn a_forced_status_arrives_in_either_stage() {
    for status in [
        LoginStatus::INITIATOR_ERROR,
        LoginStatus::AUTHORIZATION_FAILURE,
        LoginStatus::NOT_FOUND,
        LoginStatus::TARGET_REMOVED,
        LoginStatus::TOO_MANY_CONNECTIONS,
        LoginStatus::SERVICE_UNAVAILABLE,
        LoginStatus::OUT_OF_RESOURCES,
        LoginStatus::new(2, 0x7f),
        LoginStatus::new(9, 9),
    ] {
        for (stage, exchanges) in [(Stage::Security, 1), (Stage::Operational, 2)] {
            let target = faulty(LoginFaults {
                status: Some((stage, status)),
                ..LoginFaults::default()
            });
            let mut pair = Pair::new(initiator(), target, plain());
            assert_eq!(pair.run(), Err(Error::LoginRejected(status)));
            assert_eq!(pair.exchanges, exchanges);
            assert!(pair.directory.opened.is_empty());
        }
    }
}

/// RFC 7143 11.13.5, class 1, with each form of address; the portal group is not on the wire.
#[test]
fn redirects_name_the_portal() {
    for (address, want) in [
        ("192.0.2.7:3261,4", "192.0.2.7:3261"),
        ("[2001:db8::7]", "[2001:db8::7]:3260"),
        ("array.example.com:860", "array.example.com:860"),
    ] {
        for permanent in [false, true] {
            let address = TargetAddress::parse(address).unwrap();
            let faults = LoginFaults {
                redirect: Some((address.clone(), permanent)),
                ..LoginFaults::default()
            };
            let mut by_fault = Pair::new(initiator(), faulty(faults), plain());
            let mut directory = plain();
            directory.admission = Admission::Redirect { address, permanent };
            let mut by_rule = Pair::new(initiator(), TargetLoginConfig::default(), directory);
            for pair in [&mut by_fault, &mut by_rule] {
                let Ok(Step::Redirect(redirect)) = pair.run() else {
                    panic!("no redirect");
                };
                assert_eq!(redirect.portal.to_string(), want);
                assert_eq!(redirect.permanent, permanent);
                assert!(pair.directory.opened.is_empty());
            }
        }
    }
}

/// tgt computes SHA-1 under 7. The default order avoids it; with 7 first, the second login is MD5.
#[test]
fn the_default_order_gets_along_with_tgt() {
    let tgt = [ChapAlgorithm::Md5, ChapAlgorithm::Sha256];
    let faults = || {
        faulty(LoginFaults {
            sha1_as_sha256: true,
            ..LoginFaults::default()
        })
    };
    let directory = || OneTarget::new(chap_target(&tgt), Offer::default());
    let first = chap_initiator(&ChapAlgorithm::DEFAULT_ORDER, true);
    let (outcome, _) = Pair::new(first, faults(), directory()).login();
    assert!(matches!(
        outcome.authentication,
        Authentication::Chap {
            algorithm: ChapAlgorithm::Md5,
            ..
        }
    ));

    let strongest = chap_initiator(&ChapAlgorithm::STRONGEST_FIRST, true);
    let mut pair = Pair::new(strongest, faults(), directory());
    let error = pair.run().unwrap_err();
    assert_eq!(
        error,
        Error::LoginRejected(LoginStatus::AUTHENTICATION_FAILURE)
    );
    let again = pair.initiator.retry_with_md5_after(&error).unwrap();
    let mut pair = Pair::new(again, faults(), directory());
    let (outcome, _) = pair.login();
    assert!(matches!(
        outcome.authentication,
        Authentication::Chap {
            algorithm: ChapAlgorithm::Md5,
            ..
        }
    ));
    // It was MD5 already: no third try.
    assert!(pair.initiator.retry_with_md5_after(&error).is_none());

    // Policy without MD5: no second login.
    let strict = chap_initiator(&[ChapAlgorithm::Sha3_256, ChapAlgorithm::Sha256], false);
    let mut pair = Pair::new(strict, faults(), directory());
    let error = pair.run().unwrap_err();
    assert!(pair.initiator.retry_with_md5_after(&error).is_none());
}

/// A directory that cannot open the session refuses in the final response, with status and without T.
#[test]
fn a_session_that_cannot_be_opened_is_refused_last() {
    let mut directory = plain();
    directory.grant = Err(LoginStatus::OUT_OF_RESOURCES);
    let mut pair = Pair::new(initiator(), TargetLoginConfig::default(), directory);
    assert_eq!(
        pair.run(),
        Err(Error::LoginRejected(LoginStatus::OUT_OF_RESOURCES))
    );
    assert_eq!(pair.exchanges, 2);
}

/// RFC 7143 11.13.5, 0203 and 0202.
#[test]
fn unknown_targets_and_initiators_are_refused() {
    let target_name = name("iqn.2026-01.io.example:absent");
    let config = LoginConfig {
        session: SessionKind::Normal { target_name },
        ..initiator()
    };
    let mut pair = Pair::new(config, TargetLoginConfig::default(), plain());
    assert_eq!(
        pair.run(),
        Err(Error::LoginRejected(LoginStatus::NOT_FOUND))
    );
    let mut directory = plain();
    directory.admission = Admission::Refuse(LoginStatus::AUTHORIZATION_FAILURE);
    let mut pair = Pair::new(initiator(), TargetLoginConfig::default(), directory);
    assert_eq!(
        pair.run(),
        Err(Error::LoginRejected(LoginStatus::AUTHORIZATION_FAILURE))
    );
}

/// Keys nobody knows, obsolete keys, and an offer of the target's own, all in one response.
#[test]
fn foreign_keys_are_answered_and_the_login_goes_on() {
    let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
    let target = faulty(LoginFaults {
        extra_pairs: vec![
            pair("X-com.example.speed", "fast"),
            pair("iSCSIProtocolLevel", "NotUnderstood"),
            pair("X#NodeArchitecture", "linux"),
        ],
        ..LoginFaults::default()
    });
    let mut pair = Pair::new(initiator(), target, plain());
    let (outcome, _) = pair.login();
    assert_eq!(outcome.negotiated.protocol_level, 1);
}

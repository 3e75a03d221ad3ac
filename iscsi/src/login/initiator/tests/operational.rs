//! Settings, the first request, the operational stage and the end.

use super::*;

mod first_request {
    use super::*;

    /// RFC 7143 6.3.1, 11.12: the first PDU of the golden set.
    #[test]
    fn carries_names_type_and_method() {
        let (_, request) = start(normal());
        assert_eq!(
            request,
            LoginRequest {
                transit: true,
                continue_: false,
                current_stage: Stage::Security,
                next_stage: Stage::Operational,
                version_max: 0,
                version_min: 0,
                isid: Isid([0x80, 0x12, 0x34, 0x56, 0, 1]),
                tsih: Tsih(0),
                itt: Itt(1),
                cid: crate::types::Cid(0),
                cmd_sn: CmdSn(1),
                exp_stat_sn: StatSn(0),
                data: Payload::from(
                    &b"InitiatorName=iqn.2026-01.io.example:h1\0TargetName=iqn.2026-01.io.example:t1\0\
                       SessionType=Normal\0AuthMethod=None\0"[..]
                ),
            }
        );
    }
}

mod settings {
    use super::*;

    fn refused(config: LoginConfig) -> &'static str {
        match InitiatorLogin::new(config).unwrap_err() {
            Error::Misuse(Misuse::Setting { setting, .. }) => setting,
            other => panic!("{other:?}"),
        }
    }

    /// RFC 7143 9.2.1: 96 bits, and never the same secret both ways.
    #[test]
    fn weak_or_equal_secrets_are_refused() {
        let short = || ChapConfig {
            secret: Secret::new(*b"0123456789a"),
            ..chap()
        };
        assert_eq!(refused(with_chap(short())), "chap secret");
        let allowed = ChapConfig {
            allow_short_secrets: true,
            ..short()
        };
        assert!(InitiatorLogin::new(with_chap(allowed)).is_ok());
        let with_mutual = |secret: &str| ChapConfig {
            mutual: Some(MutualChap {
                user: None,
                secret: Secret::new(secret),
            }),
            ..chap()
        };
        assert_eq!(
            refused(with_chap(with_mutual("short"))),
            "mutual chap secret"
        );
        assert_eq!(
            refused(with_chap(with_mutual("0123456789abcdef"))),
            "mutual chap secret"
        );
        let empty = ChapConfig {
            secret: Secret::new(""),
            allow_short_secrets: true,
            ..chap()
        };
        assert_eq!(refused(with_chap(empty)), "chap secret");
    }

    #[test]
    fn impossible_settings_are_named() {
        let user = |user: &str| ChapConfig {
            user: user.to_owned(),
            ..chap()
        };
        assert_eq!(refused(with_chap(user(""))), "chap user");
        assert_eq!(refused(with_chap(user("a\0CHAP_R=0x00"))), "chap user");
        assert_eq!(refused(with_chap(user(&"a".repeat(256)))), "chap user");
        let none = ChapConfig {
            algorithms: Vec::new(),
            ..chap()
        };
        assert_eq!(refused(with_chap(none)), "chap algorithms");
        let alias = LoginConfig {
            initiator_alias: Some("a\0b".to_owned()),
            ..normal()
        };
        assert_eq!(refused(alias), "initiator_alias");
        let itt = LoginConfig {
            itt: Itt::NONE,
            ..normal()
        };
        assert_eq!(refused(itt), "itt");
        let offer = LoginConfig {
            offer: Offer {
                max_burst_bytes: 100,
                ..Offer::default()
            },
            ..normal()
        };
        assert_eq!(refused(offer), "max_burst_bytes");
    }
}

mod operational_stage {
    use super::*;

    /// RFC 7143 6.3: T=0 goes on until the target agrees; its offers are answered.
    #[test]
    fn goes_on_while_the_target_has_more() {
        let (mut login, request) = operational(normal());
        let mut more = reply(
            &request,
            &["DataDigest=CRC32C,None", "IFMarker=No", "InitialR2T=Yes"],
        );
        // Ours was `None`: the pair is the answer to it and was not offered.
        more.transit = false;
        misbehaved_with(&login.on_response(&more).unwrap_err(), "DataDigest");

        let (mut login, request) = operational(normal());
        let mut more = reply(
            &request,
            &["IFMarker=No", "InitialR2T=Yes", "TaskReporting=RFC3720"],
        );
        more.transit = false;
        assert_eq!(login.on_response(&more), Ok(Step::Continue));
        let request = login.poll_transmit().unwrap();
        assert!(request.transit);
        assert_eq!(
            text(&request.data),
            ["IFMarker=Reject", "TaskReporting=RFC3720"]
        );
        assert!(matches!(
            login.on_response(&reply(&request, &[])),
            Ok(Step::Done(_))
        ));
    }

    /// An offer together with the final T=1 would leave the two sides with different values.
    #[test]
    fn cannot_end_with_an_open_offer() {
        let (mut login, request) = operational(normal());
        let last = reply(&request, &["TaskReporting=RFC3720"]);
        misbehaved_with(&login.on_response(&last).unwrap_err(), "not answered");
        // An unknown key binds nobody.
        let (mut login, request) = operational(normal());
        assert!(matches!(
            login.on_response(&reply(&request, &["X-a=1"])),
            Ok(Step::Done(_))
        ));
    }

    #[test]
    fn digests_that_are_required_are_required() {
        let require = || Offer {
            data_digest: DigestPolicy::Require,
            ..Offer::default()
        };
        for answers in [&[][..], &["DataDigest=None"], &["DataDigest=Reject"]] {
            assert!(matches!(
                negotiated(require(), answers),
                Err(Error::TargetIncompatible(Incompatibility::Digest {
                    key: "DataDigest",
                    ..
                }))
            ));
        }
        assert!(
            negotiated(require(), &["DataDigest=CRC32C"])
                .unwrap()
                .data_digest
        );
        assert!(matches!(
            negotiated(Offer::default(), &["MaxBurstLength=16777215"]),
            Err(Error::TargetMisbehaved(Misbehaviour::Key { .. }))
        ));
    }

    /// What tgt answers (its table of defaults).
    #[test]
    fn takes_the_answers_of_tgt() {
        let n = negotiated(
            Offer {
                task_reporting: vec![crate::login::TaskReporting::ResponseFence],
                protocol_level: Some(2),
                ..Offer::default()
            },
            &[
                "HeaderDigest=None",
                "DataDigest=None",
                "InitialR2T=Yes",
                "ImmediateData=Yes",
                "MaxBurstLength=262144",
                "FirstBurstLength=65536",
                "MaxOutstandingR2T=1",
                "MaxConnections=1",
                "ErrorRecoveryLevel=0",
                "DefaultTime2Wait=2",
                "DefaultTime2Retain=0",
                "DataPDUInOrder=Yes",
                "DataSequenceInOrder=Yes",
                "TaskReporting=NotUnderstood",
                "iSCSIProtocolLevel=NotUnderstood",
                "MaxRecvDataSegmentLength=8192",
            ],
        )
        .unwrap();
        let want = Negotiated {
            max_recv_data_segment_bytes: 262_144,
            time2retain_s: 0,
            target_portal_group_tag: Some(1),
            ..Negotiated::default()
        };
        assert_eq!(n, want);
    }

    #[test]
    fn authentication_is_over() {
        let (mut login, request) = operational(normal());
        let late = reply(&request, &["CHAP_A=5"]);
        misbehaved_with(
            &login.on_response(&late).unwrap_err(),
            "after the security stage",
        );
    }
}

mod whole_login {
    use super::*;

    /// RFC 7143 6.3: None, then the defaults for everything that is not answered (6.2).
    #[test]
    fn without_answers_defaults_stay() {
        let (mut login, request) = operational(normal());
        assert!(request.transit);
        assert_eq!(request.next_stage, Stage::FullFeature);
        assert_eq!(request.exp_stat_sn, StatSn(1));
        let Step::Done(outcome) = login.on_response(&reply(&request, &[])).unwrap() else {
            panic!("not done");
        };
        let want = Negotiated {
            max_recv_data_segment_bytes: 262_144,
            target_portal_group_tag: Some(1),
            ..Negotiated::default()
        };
        assert_eq!(outcome.negotiated, want);
        assert_eq!(outcome.tsih, Tsih(7));
        assert_eq!(outcome.exp_stat_sn, StatSn(2));
        assert_eq!(outcome.cmd_sn, CmdSn(1));
        assert_eq!(outcome.max_cmd_sn, CmdSn(32));
        assert!(login.on_response(&reply(&request, &[])).is_err());
    }
}

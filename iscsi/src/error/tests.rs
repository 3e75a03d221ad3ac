use super::*;

#[test]
fn format_and_protocol_errors_end_the_session() {
    // RFC 7143 7.6, 7.7
    let malformed = Error::malformed("R2T", "transfer tag is reserved");
    assert_eq!(malformed.recovery(), Recovery::Session);
    assert_eq!(
        malformed.to_string(),
        "malformed R2T: transfer tag is reserved"
    );
    let gap = Error::TargetMisbehaved(Misbehaviour::StatSnGap {
        expected: StatSn(4),
        got: StatSn(9),
    });
    assert_eq!(gap.recovery(), Recovery::Session);
    assert_eq!(
        gap.to_string(),
        "the target broke the protocol: StatSN 0x9, expected 0x4"
    );
}

#[test]
fn login_status_says_whether_to_come_back() {
    // RFC 7143 11.13.5: class 2 is not to be retried as it is, class 3 may be.
    for class in 0..=255 {
        for detail in 0..=255 {
            let status = LoginStatus::new(class, detail);
            let expected = match (class, detail) {
                (0 | 1 | 3, _) => Recovery::Session,
                (2, 3 | 6 | 8 | 10) => Recovery::Session,
                _ => Recovery::Fatal,
            };
            assert_eq!(
                Error::LoginRejected(status).recovery(),
                expected,
                "{status}"
            );
            assert!(
                status
                    .to_string()
                    .ends_with(&format!("({class:02x}{detail:02x})"))
            );
        }
    }
    assert_eq!(
        Error::LoginRejected(LoginStatus::AUTHENTICATION_FAILURE).recovery(),
        Recovery::Fatal
    );
    assert_eq!(
        Error::LoginRejected(LoginStatus::SERVICE_UNAVAILABLE).recovery(),
        Recovery::Session
    );
}

#[test]
fn reject_reasons_that_may_be_resent_end_a_task_only() {
    // RFC 7143 11.17.1: 02, 06 and 0a may be sent again.
    for reason in [0x02, 0x06, 0x0a] {
        assert_eq!(
            Error::Rejected(RejectReason(reason)).recovery(),
            Recovery::Task
        );
    }
    for reason in [0x04, 0x07, 0x09, 0x0b, 0x01, 0xff] {
        assert_eq!(
            Error::Rejected(RejectReason(reason)).recovery(),
            Recovery::Session
        );
    }
    assert_eq!(
        Error::Rejected(RejectReason::WAITING_FOR_LOGOUT).recovery(),
        Recovery::Connection
    );
    assert_eq!(RejectReason(0x77).to_string(), "unknown reason (0x77)");
}

#[test]
fn a_bad_digest_or_a_cut_ends_the_connection() {
    // RFC 7143 7.8
    let header = Error::Digest(DigestError::Header {
        got: 1,
        computed: 2,
    });
    assert_eq!(header.recovery(), Recovery::Connection);
    assert_eq!(
        header.to_string(),
        "header digest 0x00000001, computed 0x00000002"
    );
    let lost = Error::from(io::Error::from(io::ErrorKind::ConnectionReset));
    assert_eq!(lost, Error::Lost(io::ErrorKind::ConnectionReset));
    assert_eq!(lost.recovery(), Recovery::Connection);
}

#[test]
fn timeouts_escalate() {
    assert_eq!(
        Error::TimedOut(Waiting::Command(Itt(7))).recovery(),
        Recovery::Task
    );
    assert_eq!(
        Error::TimedOut(Waiting::TaskManagement).recovery(),
        Recovery::Session
    );
    for waiting in [
        Waiting::Connect,
        Waiting::Login,
        Waiting::Text,
        Waiting::Ping,
        Waiting::Logout,
    ] {
        assert_eq!(Error::TimedOut(waiting).recovery(), Recovery::Connection);
    }
    assert_eq!(
        Error::TimedOut(Waiting::Command(Itt(7))).to_string(),
        "timed out waiting for the end of task 0x00000007"
    );
}

#[test]
fn a_full_queue_costs_one_request_and_a_bad_setting_everything() {
    let full = Error::Misuse(Misuse::QueueFull { limit: 128 });
    assert_eq!(full.recovery(), Recovery::Task);
    let setting = Error::Misuse(Misuse::Setting {
        setting: "chap secret",
        problem: "11 bytes; at least 12".into(),
    });
    assert_eq!(setting.recovery(), Recovery::Fatal);
    assert_eq!(
        Error::TargetIncompatible(Incompatibility::Version { active: 1 }).recovery(),
        Recovery::Fatal
    );
}

#[test]
fn recovery_is_ordered_by_what_is_lost() {
    assert!(Recovery::Task < Recovery::Connection);
    assert!(Recovery::Connection < Recovery::Session);
    assert!(Recovery::Session < Recovery::Fatal);
}

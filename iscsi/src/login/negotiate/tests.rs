//! Every key's rule as a table: our offer and the peer's answer, the peer's offer and our answer.

use super::*;
use crate::login::keys::{LENGTH_BYTES_MAX, Scope};

/// An offer that differs from every default.
fn offer() -> Offer {
    Offer {
        header_digest: DigestPolicy::Prefer,
        data_digest: DigestPolicy::Off,
        initial_r2t: false,
        immediate_data: true,
        max_recv_data_segment_bytes: 131_072,
        max_burst_bytes: 1_048_576,
        first_burst_bytes: 131_072,
        max_outstanding_r2t: 8,
        max_connections: 4,
        error_recovery_level: 0,
        time2wait_s: 3,
        time2retain_s: 30,
        data_pdu_in_order: false,
        data_sequence_in_order: false,
        task_reporting: vec![TaskReporting::FastAbort, TaskReporting::ResponseFence],
        protocol_level: Some(2),
    }
}

fn negotiator(offer: Offer) -> Negotiator {
    Negotiator::new(Role::Initiator, offer, false, true)
}

fn sent(mut out: Outgoing) -> Vec<String> {
    let (data, more) = out.take(usize::MAX);
    assert!(!more);
    super::super::text::parse_pairs(&data.to_bytes())
        .unwrap()
        .into_iter()
        .map(|pair| format!("{}={}", pair.key, pair.value))
        .collect()
}

fn receive(n: &mut Negotiator, text: &str) -> Result<Vec<String>, KeyError> {
    let (key, value) = text.split_once('=').unwrap();
    let mut out = Outgoing::new();
    let pair = Pair {
        key: key.to_owned(),
        value: value.to_owned(),
    };
    n.receive(pair, &mut out)?;
    Ok(sent(out))
}

/// Offers everything, takes one answer, ends.
fn answered(offer: Offer, answer: &str) -> Result<Negotiated, KeyError> {
    let mut n = negotiator(offer);
    n.propose_all(&mut Outgoing::new());
    assert_eq!(
        receive(&mut n, answer)?,
        [""; 0],
        "an answer needs no answer: {answer}"
    );
    n.finish()
}

/// Takes one offer of the peer before we said anything.
fn asked(offer: Offer, text: &str) -> Result<(Vec<String>, Negotiated), KeyError> {
    let mut n = negotiator(offer);
    let answer = receive(&mut n, text)?;
    Ok((answer, n.finish()?))
}

fn field(n: &Negotiated, key: Key) -> String {
    let yes = |b| emit_boolean(b).to_owned();
    let crc = |b| if b { "CRC32C" } else { "None" }.to_owned();
    match key {
        Key::HeaderDigest => crc(n.header_digest),
        Key::DataDigest => crc(n.data_digest),
        Key::InitialR2T => yes(n.initial_r2t),
        Key::ImmediateData => yes(n.immediate_data),
        Key::DataPduInOrder => yes(n.data_pdu_in_order),
        Key::DataSequenceInOrder => yes(n.data_sequence_in_order),
        Key::MaxConnections => n.max_connections.to_string(),
        Key::MaxBurstLength => n.max_burst_bytes.to_string(),
        Key::FirstBurstLength => n.first_burst_bytes.to_string(),
        Key::MaxOutstandingR2T => n.max_outstanding_r2t.to_string(),
        Key::DefaultTime2Wait => n.time2wait_s.to_string(),
        Key::DefaultTime2Retain => n.time2retain_s.to_string(),
        Key::ErrorRecoveryLevel => n.error_recovery_level.to_string(),
        Key::TaskReporting => n.task_reporting.name().to_owned(),
        Key::ProtocolLevel => n.protocol_level.to_string(),
        Key::MaxRecvDataSegmentLength => n.peer_max_recv_data_segment_bytes.to_string(),
        other => panic!("no field for {other:?}"),
    }
}

/// RFC 7143 13 and 6.2: answers to the offer above, and the value in force afterwards; `!` marks an
/// answer that breaks the rule of its key.
#[test]
fn answers_to_our_offers() {
    use Key::*;
    for (key, answer, want) in [
        (HeaderDigest, "CRC32C", "CRC32C"),
        (HeaderDigest, "None", "None"),
        (HeaderDigest, "CRC32C,None", "!"),
        (HeaderDigest, "crc32c", "!"),
        (HeaderDigest, "", "!"),
        (DataDigest, "None", "None"),
        (DataDigest, "CRC32C", "!"),
        (InitialR2T, "Yes", "Yes"),
        (InitialR2T, "No", "No"),
        (InitialR2T, "yes", "!"),
        (ImmediateData, "Yes", "Yes"),
        (ImmediateData, "No", "No"),
        (MaxBurstLength, "1048576", "1048576"),
        (MaxBurstLength, "0x100000", "1048576"),
        (MaxBurstLength, "262144", "262144"),
        (MaxBurstLength, "1048577", "!"),
        (MaxBurstLength, "511", "!"),
        (MaxBurstLength, "0", "!"),
        (MaxBurstLength, "-1", "!"),
        (MaxBurstLength, "16777216", "!"),
        (MaxBurstLength, "big", "!"),
        (FirstBurstLength, "512", "512"),
        (FirstBurstLength, "131073", "!"),
        (MaxOutstandingR2T, "1", "1"),
        (MaxOutstandingR2T, "8", "8"),
        (MaxOutstandingR2T, "9", "!"),
        (MaxOutstandingR2T, "0", "!"),
        (MaxConnections, "2", "2"),
        (MaxConnections, "5", "!"),
        (MaxConnections, "65536", "!"),
        (ErrorRecoveryLevel, "0", "0"),
        (ErrorRecoveryLevel, "1", "!"),
        (ErrorRecoveryLevel, "3", "!"),
        (DefaultTime2Wait, "3", "3"),
        (DefaultTime2Wait, "10", "10"),
        (DefaultTime2Wait, "1", "3"),
        (DefaultTime2Wait, "3601", "!"),
        (DefaultTime2Retain, "5", "5"),
        (DefaultTime2Retain, "60", "30"),
        (DataPduInOrder, "Yes", "Yes"),
        (DataPduInOrder, "No", "No"),
        (DataSequenceInOrder, "Yes", "Yes"),
        (DataSequenceInOrder, "No", "No"),
        (TaskReporting, "ResponseFence", "ResponseFence"),
        (TaskReporting, "FastAbort", "FastAbort"),
        (TaskReporting, "RFC3720", "!"),
        (ProtocolLevel, "1", "1"),
        (ProtocolLevel, "2", "2"),
        (ProtocolLevel, "3", "!"),
        (ProtocolLevel, "32", "!"),
    ] {
        let text = format!("{}={answer}", key.name());
        match answered(offer(), &text) {
            Ok(n) => assert_eq!(field(&n, key), want, "{text}"),
            Err(KeyError::Broken { key: named, .. }) => {
                assert_eq!((named.as_ref(), want), (key.name(), "!"), "{text}");
            }
            Err(other) => panic!("{text}: {other:?}"),
        }
    }
}

/// RFC 7143 6.2.2: what `Yes` of an OR and `No` of an AND settle cannot be answered otherwise, and need
/// no answer.
#[test]
fn settled_booleans() {
    let settled = || Offer {
        initial_r2t: true,
        immediate_data: false,
        data_pdu_in_order: true,
        data_sequence_in_order: true,
        ..offer()
    };
    for (text, fine) in [
        ("InitialR2T=Yes", true),
        ("InitialR2T=No", false),
        ("ImmediateData=No", true),
        ("ImmediateData=Yes", false),
        ("DataPDUInOrder=No", false),
        ("DataSequenceInOrder=No", false),
        ("DataSequenceInOrder=Yes", true),
    ] {
        assert_eq!(answered(settled(), text).is_ok(), fine, "{text}");
    }
    let mut n = negotiator(settled());
    n.propose_all(&mut Outgoing::new());
    let n = n.finish().unwrap();
    assert!(n.initial_r2t && !n.immediate_data && n.data_pdu_in_order);
}

/// RFC 7143 6.2: without an answer, and after each of the three words, the default stays.
#[test]
fn defaults_stay_without_an_answer() {
    let keys = [
        Key::HeaderDigest,
        Key::DataDigest,
        Key::InitialR2T,
        Key::ImmediateData,
        Key::MaxBurstLength,
        Key::FirstBurstLength,
        Key::MaxOutstandingR2T,
        Key::MaxConnections,
        Key::ErrorRecoveryLevel,
        Key::DefaultTime2Wait,
        Key::DefaultTime2Retain,
        Key::DataPduInOrder,
        Key::DataSequenceInOrder,
        Key::TaskReporting,
        Key::ProtocolLevel,
    ];
    for key in keys {
        for word in ["NotUnderstood", "Irrelevant", "Reject"] {
            let n = answered(offer(), &format!("{}={word}", key.name())).unwrap();
            assert_eq!(field(&n, key), key.spec().default, "{key:?}");
        }
    }
}

/// RFC 7143 6.2: our answers to a peer that offers first, and the value in force.
#[test]
fn answers_to_the_peers_offers() {
    for (text, answer, want) in [
        ("HeaderDigest=None,CRC32C", "None", "None"),
        ("HeaderDigest=CRC32C,None", "CRC32C", "CRC32C"),
        (
            "HeaderDigest=X-com.example.crc64,CRC32C",
            "CRC32C",
            "CRC32C",
        ),
        ("HeaderDigest=X-com.example.crc64", "Reject", "None"),
        ("DataDigest=CRC32C,None", "None", "None"),
        ("DataDigest=CRC32C", "Reject", "None"),
        ("InitialR2T=Yes", "Yes", "Yes"),
        ("InitialR2T=No", "No", "No"),
        ("ImmediateData=Yes", "Yes", "Yes"),
        ("ImmediateData=No", "No", "No"),
        ("MaxBurstLength=262144", "262144", "262144"),
        ("MaxBurstLength=16777215", "1048576", "1048576"),
        ("MaxBurstLength=16777216", "Reject", "262144"),
        ("MaxBurstLength=0", "Reject", "262144"),
        ("FirstBurstLength=0x8000", "32768", "32768"),
        ("MaxOutstandingR2T=1", "1", "1"),
        ("MaxOutstandingR2T=100", "8", "8"),
        ("MaxConnections=16", "4", "4"),
        ("ErrorRecoveryLevel=2", "0", "0"),
        ("DefaultTime2Wait=1", "3", "3"),
        ("DefaultTime2Wait=20", "20", "20"),
        ("DefaultTime2Retain=3600", "30", "30"),
        ("DefaultTime2Retain=3601", "Reject", "20"),
        ("DataPDUInOrder=No", "No", "No"),
        ("DataSequenceInOrder=Yes", "Yes", "Yes"),
        (
            "TaskReporting=RFC3720,ResponseFence",
            "ResponseFence",
            "ResponseFence",
        ),
        ("iSCSIProtocolLevel=31", "2", "2"),
    ] {
        let (answers, n) = asked(offer(), text).unwrap();
        let (name, _) = text.split_once('=').unwrap();
        assert_eq!(answers, [format!("{name}={answer}")], "{text}");
        assert_eq!(field(&n, Key::from_name(name).unwrap()), want, "{text}");
    }
    for text in [
        "HeaderDigest=",
        "HeaderDigest=,None",
        "InitialR2T=maybe",
        "MaxBurstLength=1k",
    ] {
        assert!(
            matches!(asked(offer(), text), Err(KeyError::Broken { .. })),
            "{text}"
        );
    }
}

/// RFC 7143 13.25, 13.26 and RFC 7145 6: keys of other times and transports, and those nobody knows.
#[test]
fn keys_that_mean_nothing_here_get_their_word() {
    for (text, answer) in [
        ("IFMarker=Yes", "Reject"),
        ("OFMarker=No", "Reject"),
        ("IFMarkInt=2048~8192", "Reject"),
        ("OFMarkInt=1", "Reject"),
        ("SRP_U=me", "Reject"),
        ("KRB_AP_REQ=0x00", "Reject"),
        ("RDMAExtensions=Yes", "No"),
        ("InitiatorRecvDataSegmentLength=65536", "Irrelevant"),
        ("iSERHelloRequired=Yes", "Irrelevant"),
        ("X-com.example.speed=fast", "NotUnderstood"),
        ("MaxBurstlength=512", "NotUnderstood"),
    ] {
        let (answers, n) = asked(offer(), text).unwrap();
        let (name, _) = text.split_once('=').unwrap();
        assert_eq!(answers, [format!("{name}={answer}")]);
        assert_eq!(n, Negotiated::default());
    }
    // Refusals of what we never said, and declarations, need no answer.
    for text in [
        "X-com.example.speed=NotUnderstood",
        "MaxBurstLength=Irrelevant",
        "IFMarker=Reject",
        "X#NodeArchitecture=linux,7.1",
        "MaxRecvDataSegmentLength=65536",
        "TargetAlias=NotUnderstood",
        "InitiatorAlias=NotUnderstood",
    ] {
        assert_eq!(asked(offer(), text).unwrap().0, [""; 0], "{text}");
    }
}

/// RFC 7143 13.12: each side declares its own limit.
#[test]
fn receive_limits_are_declared_not_negotiated() {
    let mut n = negotiator(offer());
    let mut out = Outgoing::new();
    n.declare_receive_limit(&mut out);
    n.declare_receive_limit(&mut out);
    assert_eq!(sent(out), ["MaxRecvDataSegmentLength=131072"]);
    assert_eq!(
        receive(&mut n, "MaxRecvDataSegmentLength=16777215").unwrap(),
        [""; 0]
    );
    let n = n.finish().unwrap();
    assert_eq!(n.max_recv_data_segment_bytes, 131_072);
    assert_eq!(n.peer_max_recv_data_segment_bytes, LENGTH_BYTES_MAX);
    for value in ["511", "16777216", "0", "", "64k"] {
        let text = format!("MaxRecvDataSegmentLength={value}");
        assert!(
            matches!(asked(offer(), &text), Err(KeyError::Broken { .. })),
            "{text}"
        );
    }
}

/// Policy `require`: anything but CRC32C ends the login, whoever spoke first, also silence.
#[test]
fn a_required_digest_is_not_negotiable() {
    for key in ["HeaderDigest", "DataDigest"] {
        let offer = || {
            let mut offer = Offer::default();
            if key == "HeaderDigest" {
                offer.header_digest = DigestPolicy::Require;
            } else {
                offer.data_digest = DigestPolicy::Require;
            }
            offer
        };
        assert!(answered(offer(), &format!("{key}=CRC32C")).is_ok());
        for word in ["None", "Reject", "NotUnderstood", "Irrelevant"] {
            let want = KeyError::DigestRefused {
                key,
                answer: word.to_owned(),
            };
            assert_eq!(answered(offer(), &format!("{key}={word}")), Err(want));
        }
        assert!(matches!(
            asked(offer(), &format!("{key}=None")),
            Err(KeyError::DigestRefused { .. })
        ));
        let mut silent = negotiator(offer());
        silent.propose_all(&mut Outgoing::new());
        assert!(matches!(
            silent.finish(),
            Err(KeyError::DigestRefused { .. })
        ));
    }
}

/// RFC 7143 6.2: no key twice in one login, except TargetAddress; also for answers, words and
/// unknown keys.
#[test]
fn no_key_comes_twice() {
    for (first, second) in [
        ("HeaderDigest=None", "HeaderDigest=None"),
        ("MaxBurstLength=512", "MaxBurstLength=1024"),
        ("MaxBurstLength=Reject", "MaxBurstLength=512"),
        (
            "MaxRecvDataSegmentLength=512",
            "MaxRecvDataSegmentLength=512",
        ),
        ("TargetAlias=a", "TargetAlias=b"),
        ("TargetPortalGroupTag=1", "TargetPortalGroupTag=1"),
        ("X-a=1", "X-a=1"),
        ("X-a=NotUnderstood", "X-a=1"),
        ("AuthMethod=CHAP", "AuthMethod=None"),
    ] {
        let mut n = negotiator(offer());
        n.propose_all(&mut Outgoing::new());
        receive(&mut n, first).unwrap();
        assert!(
            matches!(receive(&mut n, second), Err(KeyError::Broken { .. })),
            "{second}"
        );
    }
    let mut n = negotiator(offer());
    receive(&mut n, "TargetAddress=192.0.2.1").unwrap();
    receive(&mut n, "TargetAddress=192.0.2.2").unwrap();
}

/// RFC 7143 12, 13: who may send what, and when.
#[test]
fn keys_come_from_the_right_side() {
    for text in [
        "InitiatorName=iqn.2026-01.io.example:a",
        "SessionType=Normal",
        "TargetName=x",
    ] {
        assert!(
            matches!(asked(offer(), text), Err(KeyError::Broken { .. })),
            "{text}"
        );
    }
    assert!(matches!(
        asked(offer(), "SendTargets=All"),
        Err(KeyError::Broken { .. })
    ));
    for spec in &KEYS {
        let text = format!("{}=Reject", spec.name);
        if spec.use_ != Use::FullFeatureOnly {
            assert!(asked(offer(), &text).is_ok(), "{text}");
        }
    }
    assert_eq!(Key::MaxBurstLength.spec().scope, Scope::Session);
    assert_eq!(
        Key::MaxRecvDataSegmentLength.spec().scope,
        Scope::Connection
    );
    assert_eq!(Key::HeaderDigest.spec().scope, Scope::Connection);
}

#[cfg(feature = "target")]
#[test]
fn a_target_takes_no_keys_of_a_target() {
    for text in [
        "TargetPortalGroupTag=1",
        "TargetAddress=192.0.2.1",
        "TargetAlias=a",
    ] {
        let mut n = Negotiator::new(Role::Target, offer(), false, true);
        assert!(
            matches!(receive(&mut n, text), Err(KeyError::Broken { .. })),
            "{text}"
        );
    }
}

/// RFC 7143 6.1: a value has at most 255 bytes, binaries of CHAP more.
#[test]
fn values_have_their_limits() {
    for (key, most) in [("TargetAlias", 255), ("CHAP_C", 2050), ("CHAP_N", 255)] {
        for (len, fine) in [(most, true), (most + 1, false)] {
            let text = format!("{key}={}", "a".repeat(len));
            assert_eq!(asked(offer(), &text).is_ok(), fine, "{key} of {len}");
        }
    }
    let mut n = negotiator(offer());
    for i in 0..UNKNOWN_KEYS_MAX {
        receive(&mut n, &format!("X-k{i}=1")).unwrap();
    }
    assert!(receive(&mut n, "X-more=1").is_err());
}

/// RFC 7143 13.14: FirstBurstLength never passes MaxBurstLength, also when only one was answered.
#[test]
fn the_first_burst_stays_below_the_burst() {
    let n = answered(offer(), "MaxBurstLength=4096").unwrap();
    assert_eq!((n.max_burst_bytes, n.first_burst_bytes), (4096, 4096));
}

/// RFC 7143 13: discovery sessions, and connections that join a session, have fewer keys.
#[test]
fn keys_out_of_place_are_not_offered_and_not_taken() {
    let mut out = Outgoing::new();
    let mut discovery = Negotiator::new(Role::Initiator, offer(), true, true);
    discovery.propose_all(&mut out);
    assert_eq!(
        sent(out),
        [
            "HeaderDigest=CRC32C,None",
            "DataDigest=None",
            "MaxRecvDataSegmentLength=131072"
        ]
    );
    let answer = receive(&mut discovery, "InitialR2T=Yes").unwrap();
    assert_eq!(answer, ["InitialR2T=Irrelevant"]);
    assert_eq!(
        receive(&mut discovery, "ErrorRecoveryLevel=2").unwrap(),
        ["ErrorRecoveryLevel=0"]
    );

    let mut out = Outgoing::new();
    let mut joining = Negotiator::new(Role::Initiator, offer(), false, false);
    joining.propose_all(&mut out);
    assert_eq!(
        sent(out),
        [
            "HeaderDigest=CRC32C,None",
            "DataDigest=None",
            "MaxRecvDataSegmentLength=131072"
        ]
    );
    let answer = receive(&mut joining, "MaxBurstLength=512").unwrap();
    assert_eq!(answer, ["MaxBurstLength=Reject"]);
}

/// RFC 7143 13: what goes out when everything is offered.
#[test]
fn the_whole_offer() {
    let mut out = Outgoing::new();
    let mut n = negotiator(Offer {
        error_recovery_level: 1,
        data_sequence_in_order: true,
        ..offer()
    });
    n.propose_all(&mut out);
    n.propose_all(&mut out);
    assert_eq!(
        sent(out),
        [
            "HeaderDigest=CRC32C,None",
            "DataDigest=None",
            "MaxRecvDataSegmentLength=131072",
            "InitialR2T=No",
            "ImmediateData=Yes",
            "MaxBurstLength=1048576",
            "FirstBurstLength=131072",
            "MaxOutstandingR2T=1",
            "MaxConnections=4",
            "ErrorRecoveryLevel=1",
            "DefaultTime2Wait=3",
            "DefaultTime2Retain=30",
            "DataPDUInOrder=No",
            "DataSequenceInOrder=Yes",
            "TaskReporting=FastAbort,ResponseFence",
            "iSCSIProtocolLevel=2",
        ]
    );
}

/// A key that the peer has settled is not offered again; that would be a redeclaration.
#[test]
fn settled_keys_are_not_offered_again() {
    let mut n = negotiator(offer());
    assert_eq!(
        receive(&mut n, "MaxBurstLength=4096").unwrap(),
        ["MaxBurstLength=4096"]
    );
    assert!(n.owes_answers());
    n.answers_sent();
    assert!(!n.owes_answers());
    let mut out = Outgoing::new();
    n.propose_all(&mut out);
    assert!(
        sent(out)
            .iter()
            .all(|pair| !pair.starts_with("MaxBurstLength="))
    );
    assert_eq!(n.finish().unwrap().max_burst_bytes, 4096);
}

use proptest::prelude::*;

use super::*;

/// SPC-4 4.5.3, table 48.
#[test]
fn fixed_format_known_bytes() {
    let bytes = [
        0xf0, 0, 0x03, 0x00, 0x01, 0x02, 0x03, 10, 0, 0, 0, 0, 0x11, 0x00, 7, 0, 0, 0,
    ];
    let sense = Sense::parse(&bytes).unwrap();
    assert_eq!(sense.code, Code::UNRECOVERED_READ_ERROR);
    assert_eq!(sense.information, Some(0x0001_0203));
    assert_eq!(
        (sense.deferred, sense.fru, sense.key_specific),
        (false, 7, None)
    );
    assert_eq!(sense.emit(SenseFormat::Fixed), bytes);
    assert_eq!(
        sense.to_string(),
        "MEDIUM ERROR 11/00 unrecovered read error, information 0x10203"
    );
}

/// SPC-4 4.5.2, tables 27 and following.
#[test]
fn descriptor_format_known_bytes() {
    let bytes = [
        0x72, 0x05, 0x24, 0x00, 0, 0, 0, 20, // header
        0x00, 0x0a, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 2, // information
        0x02, 0x06, 0, 0, 0xcf, 0, 2, 0, // sense key specific
    ];
    let sense = Sense::parse(&bytes).unwrap();
    assert_eq!(sense.code, Code::INVALID_FIELD_IN_CDB);
    assert_eq!(sense.information, Some(0x1_0000_0002));
    assert_eq!(sense.field(), Some((true, 2)));
    assert_eq!(sense.emit(SenseFormat::Descriptor), bytes);
}

/// The golden SCSI Response carries this one.
#[test]
fn capacity_change_reads_well() {
    let mut bytes = [0; 18];
    (bytes[0], bytes[2], bytes[7], bytes[12], bytes[13]) = (0x70, 6, 10, 0x2a, 9);
    let sense = Sense::parse(&bytes).unwrap();
    assert_eq!(
        sense.to_string(),
        "UNIT ATTENTION 2A/09 capacity data has changed"
    );
    assert!(sense.classify().refresh.contains(Refresh::CAPACITY));
}

#[test]
fn deferred_errors_tell_of_lost_writes() {
    for code in [0x71, 0x73] {
        // Key 3 in either format: byte 2 of the fixed one, byte 1 of the other.
        let mut bytes = [0; 18];
        (bytes[0], bytes[1], bytes[2]) = (code, 3, 3);
        let sense = Sense::parse(&bytes).unwrap();
        assert!(sense.deferred);
        let action = sense.classify();
        assert_eq!(action.verdict, Verdict::Retry);
        assert!(action.alert && action.refresh.contains(Refresh::CACHE_LOSS));
    }
}

#[test]
fn lying_lengths_are_not_believed() {
    // Fixed format whose additional length ends before the ASC: there is none.
    let mut bytes = [0xff; 18];
    (bytes[0], bytes[2], bytes[7]) = (0x70, 0x05, 2);
    assert_eq!(Sense::parse(&bytes).unwrap().code.asc, 0);
    // One that promises more than is there.
    bytes[7] = 0xff;
    assert_eq!(Sense::parse(&bytes[..14]).unwrap().code.asc, 0xff);
    // A descriptor that claims to be longer than the sense data, and one of length 0.
    let bytes = [0x72, 3, 0x11, 0, 0, 0, 0, 200, 0x44, 0, 0x00, 0xff, 0x80, 0];
    let sense = Sense::parse(&bytes).unwrap();
    assert_eq!((sense.code.asc, sense.information), (0x11, None));
}

#[test]
fn what_is_not_sense_data_is_refused_by_name() {
    let error = Sense::parse(&[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "sense data: 0 bytes, at least 1 are needed"
    );
    let error = Sense::parse(&[0x7f; 18]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "sense data: response code is 0x7f, expected 0x70 to 0x73"
    );
    assert!(Sense::parse(&[0x70, 0]).is_err());
    assert!(Sense::parse(&[0x72]).is_err());
}

#[test]
fn verdicts_of_the_common_codes() {
    let verdict = |code: Code| Sense::new(code).classify().verdict;
    let cases = [
        (Code::NO_SENSE, Verdict::Success),
        (Code::POWER_ON_OR_RESET, Verdict::Retry),
        (Code::NEXUS_LOSS, Verdict::Retry),
        (
            Code::SPACE_ALLOCATION_FAILED,
            Verdict::Fail(Failure::NoSpace),
        ),
        (
            Code::WRITE_PROTECTED,
            Verdict::Fail(Failure::WriteProtected),
        ),
        (Code::BECOMING_READY, Verdict::RetryFor { seconds: 60 }),
        (Code::START_UNIT_REQUIRED, Verdict::StartUnit),
        (Code::ALUA_TRANSITION, Verdict::RetryFor { seconds: 60 }),
        (Code::ALUA_STANDBY, Verdict::SwitchPath(Failure::NotReady)),
        (Code::UNRECOVERED_READ_ERROR, Verdict::Fail(Failure::Medium)),
        (Code::WRITE_ERROR, Verdict::RetryOnce(Failure::Medium)),
        (
            Code::INVALID_OPCODE,
            Verdict::Fail(Failure::UnsupportedCommand),
        ),
        (
            Code::INVALID_FIELD_IN_CDB,
            Verdict::Fail(Failure::UnsupportedField),
        ),
        (Code::LBA_OUT_OF_RANGE, Verdict::Fail(Failure::OutOfRange)),
        (
            Code::LU_NOT_SUPPORTED,
            Verdict::SwitchPath(Failure::NoLogicalUnit),
        ),
        (Code::MISCOMPARE, Verdict::Fail(Failure::Miscompare)),
        (
            Code::new(SenseKey::AbortedCommand, 0x47, 0x05),
            Verdict::Retry,
        ),
        (
            Code::new(SenseKey::AbortedCommand, 0x4e, 0x00),
            Verdict::DropSession,
        ),
        (
            Code::new(SenseKey::AbortedCommand, 0x10, 0x01),
            Verdict::Fail(Failure::ProtectionInformation),
        ),
    ];
    for (code, expected) in cases {
        assert_eq!(verdict(code), expected, "{code}");
    }
}

#[test]
fn a_reset_may_lose_cached_writes_and_a_nexus_loss_does_not() {
    let refresh = |code: Code| Sense::new(code).classify().refresh;
    assert!(refresh(Code::POWER_ON_OR_RESET).contains(Refresh::CACHE_LOSS));
    assert!(!refresh(Code::NEXUS_LOSS).contains(Refresh::CACHE_LOSS));
    assert!(refresh(Code::NEXUS_LOSS).contains(Refresh::RESERVATION));
}

fn any_sense() -> impl Strategy<Value = Sense> {
    (
        any::<(u8, u8, u8, bool, u8)>(),
        any::<Option<u64>>(),
        any::<Option<u64>>(),
        any::<Option<[u8; 3]>>(),
    )
        .prop_map(
            |((key, asc, ascq, deferred, fru), information, specific, sks)| Sense {
                code: Code::new(SenseKey::from_bits(key), asc, ascq),
                deferred,
                information,
                command_specific: specific,
                key_specific: sks.map(|[a, b, c]| [a | 0x80, b, c]),
                fru,
            },
        )
}

proptest! {
    #[test]
    fn descriptor_format_round_trips(sense in any_sense()) {
        let bytes = sense.emit(SenseFormat::Descriptor);
        prop_assert!(bytes.len() <= SENSE_MAX_BYTES);
        prop_assert_eq!(Sense::parse(&bytes), Ok(sense));
    }

    #[test]
    fn fixed_format_round_trips_but_for_wide_numbers(sense in any_sense()) {
        let narrow = |value: &u64| *value <= u64::from(u32::MAX);
        let expected = Sense {
            information: sense.information.filter(narrow),
            command_specific: sense.command_specific.filter(narrow).filter(|value| *value != 0),
            ..sense
        };
        prop_assert_eq!(Sense::parse(&sense.emit(SenseFormat::Fixed)), Ok(expected));
    }

    #[test]
    fn any_bytes_are_safe(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), code in 0x70u8..0x75) {
        if let Some(first) = bytes.first_mut() {
            *first = code;
        }
        if let Ok(sense) = Sense::parse(&bytes) {
            let _ = (sense.classify(), sense.to_string());
        }
    }
}

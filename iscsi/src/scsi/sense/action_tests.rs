//! The reaction to every code that an initiator has to know: SPC-4 4.5 and annex F for the codes, SBC-3 5 and
//! 4.7 for block devices, SPC-4 5.15 for ALUA, RFC 7143 11.4.7.2 for what iSCSI makes itself.

use super::super::{Code, Sense, SenseFormat};
use super::*;

const NONE: Refresh = Refresh::NONE;
const AFTER_NEXUS_LOSS: Refresh = Refresh::CAPACITY
    .and(Refresh::MODE)
    .and(Refresh::INQUIRY)
    .and(Refresh::RESERVATION);
const AFTER_RESET: Refresh = AFTER_NEXUS_LOSS
    .and(Refresh::CACHE_LOSS)
    .and(Refresh::TASKS);
const WAIT_60: Verdict = Verdict::RetryFor { seconds: 60 };
const WAIT_120: Verdict = Verdict::RetryFor { seconds: 120 };

/// Key, ASC, ASCQs, and what is done: verdict, what is read again, whether an operator is told.
type Row = (u8, u8, &'static [u8], Verdict, Refresh, bool);

/// Every ASCQ.
const ALL: &[u8] = &[0, 1, 2, 3, 0x7f, 0xff];

const TABLE: &[Row] = &[
    // SPC-4 4.5.6: no error, or one that the device mended.
    (0x0, 0x00, &[0], Verdict::Success, NONE, false),
    (0x1, 0x17, ALL, Verdict::Success, NONE, false),
    (0x1, 0x18, ALL, Verdict::Success, NONE, false),
    (0x1, 0x5d, ALL, Verdict::Success, NONE, true),
    (0x1, 0x0b, ALL, Verdict::Success, NONE, true),
    (0xf, 0x00, ALL, Verdict::Success, NONE, false),
    // NOT READY: what passes by itself, what another path helps with, what needs a person.
    (0x2, 0x04, &[0x00], WAIT_60, NONE, false),
    (0x2, 0x04, &[0x01], WAIT_60, NONE, false),
    (0x2, 0x04, &[0x02], Verdict::StartUnit, NONE, false),
    (
        0x2,
        0x04,
        &[0x03, 0x12],
        Verdict::SwitchPath(Failure::NotReady),
        NONE,
        true,
    ),
    (
        0x2,
        0x04,
        &[0x04, 0x05, 0x06, 0x07, 0x08, 0x09],
        WAIT_120,
        NONE,
        false,
    ),
    (0x2, 0x04, &[0x0a], WAIT_60, Refresh::PORT_GROUPS, false),
    (
        0x2,
        0x04,
        &[0x0b, 0x0c],
        Verdict::SwitchPath(Failure::NotReady),
        Refresh::PORT_GROUPS,
        false,
    ),
    (
        0x2,
        0x04,
        &[0x0d],
        Verdict::Fail(Failure::NotReady),
        NONE,
        true,
    ),
    (0x2, 0x04, &[0x14, 0x1a, 0x1b], WAIT_120, NONE, false),
    (
        0x2,
        0x05,
        &[0x00],
        Verdict::SwitchPath(Failure::NotReady),
        NONE,
        false,
    ),
    (
        0x2,
        0x08,
        ALL,
        Verdict::SwitchPath(Failure::NotReady),
        NONE,
        false,
    ),
    (
        0x2,
        0x3a,
        ALL,
        Verdict::Fail(Failure::NotReady),
        NONE,
        false,
    ),
    // MEDIUM ERROR: the same block on every path; a write may find another place.
    (0x3, 0x11, ALL, Verdict::Fail(Failure::Medium), NONE, false),
    (
        0x3,
        0x03,
        ALL,
        Verdict::RetryOnce(Failure::Medium),
        NONE,
        false,
    ),
    (
        0x3,
        0x0c,
        ALL,
        Verdict::RetryOnce(Failure::Medium),
        NONE,
        false,
    ),
    (0x3, 0x31, ALL, Verdict::Fail(Failure::Medium), NONE, false),
    // HARDWARE ERROR: once more, elsewhere if there is an elsewhere.
    (
        0x4,
        0x44,
        ALL,
        Verdict::RetryOnce(Failure::Hardware),
        NONE,
        false,
    ),
    (
        0x4,
        0x3e,
        ALL,
        Verdict::RetryOnce(Failure::Hardware),
        NONE,
        false,
    ),
    // ILLEGAL REQUEST
    (
        0x5,
        0x20,
        ALL,
        Verdict::Fail(Failure::UnsupportedCommand),
        NONE,
        false,
    ),
    (
        0x5,
        0x21,
        ALL,
        Verdict::Fail(Failure::OutOfRange),
        Refresh::CAPACITY,
        false,
    ),
    (
        0x5,
        0x24,
        ALL,
        Verdict::Fail(Failure::UnsupportedField),
        NONE,
        false,
    ),
    (
        0x5,
        0x26,
        ALL,
        Verdict::Fail(Failure::UnsupportedField),
        NONE,
        false,
    ),
    (
        0x5,
        0x1a,
        ALL,
        Verdict::Fail(Failure::UnsupportedField),
        NONE,
        false,
    ),
    (
        0x5,
        0x25,
        ALL,
        Verdict::SwitchPath(Failure::NoLogicalUnit),
        Refresh::LUNS,
        false,
    ),
    (
        0x5,
        0x55,
        &[0x03, 0x04],
        Verdict::Fail(Failure::Resources),
        NONE,
        false,
    ),
    (0x5, 0x39, ALL, Verdict::Fail(Failure::Other), NONE, false),
    // UNIT ATTENTION: the command was not done, something has changed.
    (
        0x6,
        0x28,
        &[0x00],
        Verdict::Retry,
        Refresh::CAPACITY.and(Refresh::INQUIRY),
        false,
    ),
    (
        0x6,
        0x29,
        &[0, 1, 2, 3, 4, 5, 6],
        Verdict::Retry,
        AFTER_RESET,
        false,
    ),
    (0x6, 0x29, &[7], Verdict::Retry, AFTER_NEXUS_LOSS, false),
    (
        0x6,
        0x2a,
        &[0x00, 0x01],
        Verdict::Retry,
        Refresh::MODE,
        false,
    ),
    (
        0x6,
        0x2a,
        &[0x03, 0x04, 0x05],
        Verdict::Retry,
        Refresh::RESERVATION,
        true,
    ),
    (
        0x6,
        0x2a,
        &[0x06, 0x07],
        Verdict::Retry,
        Refresh::PORT_GROUPS,
        false,
    ),
    (0x6, 0x2a, &[0x09], Verdict::Retry, Refresh::CAPACITY, false),
    (0x6, 0x2f, &[0, 1, 2], Verdict::Retry, Refresh::TASKS, false),
    (0x6, 0x38, &[0x07], Verdict::Retry, NONE, true),
    (
        0x6,
        0x3f,
        &[1, 2, 3, 5],
        Verdict::Retry,
        Refresh::INQUIRY,
        false,
    ),
    (
        0x6,
        0x3f,
        &[0x0e],
        Verdict::Retry,
        Refresh::LUNS.and(Refresh::INQUIRY),
        false,
    ),
    (0x6, 0x47, &[0x7f], Verdict::Retry, Refresh::TASKS, false),
    (0x6, 0x5d, ALL, Verdict::Retry, NONE, true),
    (0x6, 0x0b, ALL, Verdict::Retry, NONE, true),
    (0x6, 0x5a, ALL, Verdict::Retry, NONE, false),
    // DATA PROTECT; SBC-3 4.7.3.6 for the space that ran out.
    (
        0x7,
        0x27,
        &[0x07],
        Verdict::Fail(Failure::NoSpace),
        NONE,
        true,
    ),
    (
        0x7,
        0x27,
        &[0, 1, 2],
        Verdict::Fail(Failure::WriteProtected),
        Refresh::MODE,
        false,
    ),
    (0x7, 0x20, ALL, Verdict::Fail(Failure::Other), NONE, false),
    // ABORTED COMMAND; RFC 7143 11.4.7.2 for 0c, 47 and 11/13.
    (0xb, 0x00, ALL, Verdict::Retry, NONE, false),
    (0xb, 0x44, ALL, Verdict::Retry, NONE, false),
    (0xb, 0x4b, ALL, Verdict::Retry, NONE, false),
    (
        0xb,
        0x0c,
        &[0x0c, 0x0d],
        Verdict::RetryOnce(Failure::Protocol),
        NONE,
        true,
    ),
    (0xb, 0x47, &[0x03, 0x05], Verdict::Retry, NONE, false),
    (0xb, 0x11, &[0x13], Verdict::Retry, NONE, false),
    (0xb, 0x4e, &[0x00], Verdict::DropSession, NONE, true),
    (
        0xb,
        0x10,
        &[1, 2, 3],
        Verdict::Fail(Failure::ProtectionInformation),
        NONE,
        true,
    ),
    // MISCOMPARE: the usual "no" of COMPARE AND WRITE (SBC-3 5.2).
    (
        0xe,
        0x1d,
        &[0x00],
        Verdict::Fail(Failure::Miscompare),
        NONE,
        false,
    ),
    // Keys that a disk has no use for.
    (0x8, 0x00, ALL, Verdict::Fail(Failure::Other), NONE, false),
    (0x9, 0x80, ALL, Verdict::Fail(Failure::Other), NONE, false),
    (0xa, 0x00, ALL, Verdict::Fail(Failure::Other), NONE, false),
    (0xd, 0x00, ALL, Verdict::Fail(Failure::Other), NONE, false),
];

fn rows() -> impl Iterator<Item = (Code, SenseAction)> {
    TABLE
        .iter()
        .flat_map(|(key, asc, ascqs, verdict, refresh, alert)| {
            ascqs.iter().map(|ascq| {
                let code = Code::new(SenseKey::from_bits(*key), *asc, *ascq);
                let action = SenseAction {
                    verdict: *verdict,
                    refresh: *refresh,
                    alert: *alert,
                };
                (code, action)
            })
        })
}

#[test]
fn every_code_has_its_reaction_spc4_4_5_6() {
    for (code, expected) in rows() {
        assert_eq!(Sense::new(code).classify(), expected, "{code}");
    }
}

#[test]
fn the_format_makes_no_difference_spc4_4_5_2() {
    for (code, expected) in rows() {
        for format in [SenseFormat::Fixed, SenseFormat::Descriptor] {
            let bytes = Sense::new(code).with_information(7).emit(format);
            let parsed = Sense::parse(&bytes).unwrap();
            assert_eq!(parsed.classify(), expected, "{code} {format:?}");
        }
    }
}

#[test]
fn deferred_errors_belong_to_an_earlier_command_spc4_4_5_7() {
    // Whatever the code: the present command is sent again. What the device could not mend is a lost write.
    for (code, _) in rows() {
        for format in [SenseFormat::Fixed, SenseFormat::Descriptor] {
            let sense = Sense {
                deferred: true,
                ..Sense::new(code)
            };
            let action = Sense::parse(&sense.emit(format)).unwrap().classify();
            assert_eq!(action.verdict, Verdict::Retry, "{code}");
            assert!(action.alert, "{code}");
            let mended = matches!(
                code.key,
                SenseKey::NoSense | SenseKey::RecoveredError | SenseKey::Completed
            );
            assert_eq!(
                action.refresh.contains(Refresh::CACHE_LOSS),
                !mended,
                "{code}"
            );
        }
    }
}

#[test]
fn success_is_only_what_a_device_says_is_success() {
    // Of all 2^20 codes: a command with another key was not done, or not as a whole.
    for key in 0..16 {
        for asc in 0..=255 {
            for ascq in 0..=255 {
                let code = Code::new(SenseKey::from_bits(key), asc, ascq);
                let success = Sense::new(code).classify().verdict == Verdict::Success;
                assert_eq!(success, matches!(key, 0 | 1 | 0xf), "{code}");
            }
        }
    }
}

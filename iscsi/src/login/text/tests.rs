use super::*;
use proptest::prelude::*;

fn pair(key: &str, value: &str) -> Pair {
    Pair {
        key: key.to_owned(),
        value: value.to_owned(),
    }
}

mod pairs {
    use super::*;

    /// RFC 7143 6.1
    #[test]
    fn are_split_at_nul_and_at_the_first_equals_sign() {
        assert_eq!(
            parse_pairs(b"A=\0InitiatorAlias=a=b,c d\0X-com.example.k+@_=1\0").unwrap(),
            [
                pair("A", ""),
                pair("InitiatorAlias", "a=b,c d"),
                pair("X-com.example.k+@_", "1")
            ]
        );
        assert_eq!(parse_pairs(b"").unwrap(), []);
        // RFC 7144 7.1 starts with a small letter.
        assert_eq!(
            parse_pairs(b"iSCSIProtocolLevel=2\0X#NodeArchitecture=x\0").unwrap(),
            [
                pair("iSCSIProtocolLevel", "2"),
                pair("X#NodeArchitecture", "x")
            ]
        );
    }

    #[test]
    fn with_mistakes_are_errors_at_their_offset() {
        for (text, at) in [
            (&b"A=1"[..], 0),
            (b"A=1\0B=2", 4),
            (b"A=1\0B\0", 4),
            (b"=1\0", 0),
            (b"A=1\0\0B=2\0", 4),
            (b" A=1\0", 0),
            (b"A =1\0", 0),
            (b"1A=1\0", 0),
            (b"\xc3\x84=1\0", 0),
        ] {
            assert_eq!(
                parse_pairs(text),
                Err(TextError::NotPairs { at }),
                "{text:?}"
            );
        }
        assert_eq!(
            parse_pairs(b"A=1\0B=\xff\0"),
            Err(TextError::NotUtf8 { at: 4 })
        );
    }

    /// Targets that count their padding as data send zeroes after the last pair.
    #[test]
    fn may_be_followed_by_zeroes() {
        assert_eq!(parse_pairs(b"A=1\0\0\0\0").unwrap(), [pair("A", "1")]);
        assert_eq!(parse_pairs(b"\0\0").unwrap(), []);
    }

    /// RFC 7143 6.1: at most 63 characters.
    #[test]
    fn have_keys_of_63_bytes_at_most() {
        let key = "K".repeat(KEY_BYTES_MAX);
        let text = |key: &str| format!("{key}=v\0").into_bytes();
        assert_eq!(parse_pairs(&text(&key)).unwrap(), [pair(&key, "v")]);
        assert!(parse_pairs(&text(&(key + "K"))).is_err());
    }

    #[test]
    fn of_chap_are_not_printed() {
        let shown = format!("{:?} {:?}", pair("CHAP_R", "0xdeadbeef"), pair("A", "\x1b"));
        assert_eq!(shown, "CHAP_R=(10 bytes) A=\"\\u{1b}\"");
    }
}

mod values {
    use super::*;

    /// RFC 7143 6.1: decimal without leading zeros, hex, below 2^64.
    #[test]
    fn numbers() {
        for (text, want) in [
            ("0", 0),
            ("7", 7),
            ("18446744073709551615", u64::MAX),
            ("0x0", 0),
            ("0x00ff", 255),
            ("0XfF", 255),
            ("0xffffffffffffffff", u64::MAX),
        ] {
            assert_eq!(parse_number(text), Ok(want), "{text}");
        }
        for text in [
            "",
            "00",
            "01",
            "-1",
            "+1",
            " 1",
            "1 ",
            "1.0",
            "0x",
            "x1",
            "0b11",
            "0xg",
            "18446744073709551616",
            "0x10000000000000000",
            "1~2",
            "\u{661}",
        ] {
            assert_eq!(parse_number(text), Err(TextError::NotANumber), "{text}");
        }
        assert_eq!(parse_number_in("512", 512, 1024), Ok(512));
        assert_eq!(
            parse_number_in("511", 512, 1024),
            Err(TextError::OutOfRange {
                value: 511,
                min: 512,
                max: 1024
            })
        );
    }

    #[test]
    fn ranges_and_booleans() {
        assert_eq!(parse_range("512~0x400"), Ok((512, 1024)));
        assert_eq!(parse_range("7~7"), Ok((7, 7)));
        for text in ["", "1", "1~", "~1", "2~1", "1~2~3", "1-2", "1 ~ 2"] {
            assert_eq!(parse_range(text), Err(TextError::NotARange), "{text}");
        }
        assert_eq!(parse_boolean("Yes"), Ok(true));
        assert_eq!(parse_boolean("No"), Ok(false));
        for text in ["", "yes", "YES", "no", "1", "Yes ", "Yes,No"] {
            assert_eq!(parse_boolean(text), Err(TextError::NotABoolean), "{text}");
        }
    }

    #[test]
    fn lists() {
        assert_eq!(parse_list("a"), Some(vec!["a"]));
        assert_eq!(parse_list("CRC32C,None"), Some(vec!["CRC32C", "None"]));
        for text in ["", ",", "a,", ",a", "a,,b"] {
            assert_eq!(parse_list(text), None, "{text}");
        }
    }

    /// RFC 7143 6.1: hex with an odd digit first, Base64 of RFC 4648 with or without padding.
    #[test]
    fn binaries() {
        for (text, want) in [
            ("0x", &b""[..]),
            ("0xabc", &[0x0a, 0xbc]),
            ("0X00ff", &[0, 0xff]),
            ("0b", b""),
            ("0bZg==", b"f"),
            ("0bZg", b"f"),
            ("0bZm8=", b"fo"),
            ("0BZm9v", b"foo"),
            ("0bZm9vYg==", b"foob"),
            ("0bZm9vYmE=", b"fooba"),
            ("0bZm9vYmFy", b"foobar"),
            ("0b+/+/", &[0xfb, 0xff, 0xbf]),
        ] {
            assert_eq!(parse_binary(text, 8).as_deref(), Ok(want), "{text}");
        }
        for text in [
            "",
            "0",
            "00ff",
            "ff",
            "x00",
            "0xg0",
            "0x 00",
            "0b====",
            "0bZ",
            "0bZg=",
            "0bZm8==",
            "0bZm9v=",
            "0bZ=g=",
            "0bZh==",
            "0bZm9=",
            "0bZg-_",
            "0b Zg",
            "0bZg==Zg==",
        ] {
            assert_eq!(parse_binary(text, 8), Err(TextError::NotBinary), "{text}");
        }
    }

    #[test]
    fn binaries_have_a_limit_after_decoding() {
        for len in [7, 8] {
            assert!(parse_binary(&emit_hex(&vec![1; len]), 8).is_ok());
            assert!(parse_binary(&emit_base64(&vec![1; len]), 8).is_ok());
        }
        for len in [9, 10, 11, 12, 5000] {
            for text in [emit_hex(&vec![1; len]), emit_base64(&vec![1; len])] {
                let error = parse_binary(&text, 8).unwrap_err();
                assert!(
                    matches!(error, TextError::ValueTooLong { max: 8, .. }),
                    "{text}"
                );
            }
        }
        // RFC 7143 12.1.3: 1024 bytes fit as hex.
        let longest = emit_hex(&[0xa5; BINARY_BYTES_MAX]);
        assert_eq!(longest.len(), BINARY_TEXT_BYTES_MAX);
        assert_eq!(
            parse_binary(&longest, BINARY_BYTES_MAX).unwrap(),
            [0xa5; BINARY_BYTES_MAX]
        );
    }
}

mod segments {
    use super::*;

    fn payload(bytes: &[u8]) -> Payload {
        Payload::from(bytes.to_vec())
    }

    #[test]
    fn are_joined_until_the_c_bit_is_off() {
        let mut assembler = Assembler::new(TextLimits::LOGIN);
        assert_eq!(assembler.push(&payload(b"Max"), true), Ok(None));
        assert!(assembler.is_partial());
        assert_eq!(assembler.push(&payload(b""), true), Ok(None));
        assert!(assembler.is_partial());
        assert_eq!(
            assembler.push(&payload(b"=1\0"), false),
            Ok(Some(b"Max=1\0".to_vec()))
        );
        assert!(!assembler.is_partial());
        assert_eq!(
            assembler.push(&payload(b"B"), false),
            Ok(Some(b"B".to_vec()))
        );
    }

    #[test]
    fn are_bounded_over_the_whole_negotiation() {
        let limits = TextLimits {
            bytes_max: 10,
            exchanges_max: 4,
        };
        let mut assembler = Assembler::new(limits);
        assert!(assembler.push(&payload(b"123456"), false).is_ok());
        assert_eq!(
            assembler.push(&payload(b"12345"), true),
            Err(TextError::TooManyBytes { max: 10 })
        );
        let mut assembler = Assembler::new(limits);
        for _ in 0..4 {
            assert!(assembler.push(&payload(b""), true).is_ok());
        }
        assert_eq!(
            assembler.push(&payload(b""), true),
            Err(TextError::TooManyExchanges { max: 4 })
        );
    }

    proptest! {
        /// RFC 7143 6.2: a pair may be cut anywhere, also inside the key.
        #[test]
        fn survive_any_cut(
            pairs in proptest::collection::vec(("[A-Z][A-Za-z0-9.+@_-]{0,20}", "[^\0]{0,60}"), 0..10),
            pdu_bytes_max in 1usize..60,
        ) {
            let mut out = Outgoing::new();
            for (key, value) in &pairs {
                out.push(key, value);
            }
            let mut assembler = Assembler::new(TextLimits { bytes_max: 10_000, exchanges_max: 10_000 });
            let segment = loop {
                let (data, more) = out.take(pdu_bytes_max);
                prop_assert!(data.len() <= pdu_bytes_max);
                prop_assert_eq!(more, out.is_partial());
                if let Some(segment) = assembler.push(&data, more).unwrap() {
                    break segment;
                }
            };
            let want: Vec<_> = pairs.iter().map(|(k, v)| pair(k, v)).collect();
            prop_assert_eq!(parse_pairs(&segment).unwrap(), want);
            prop_assert!(out.is_empty() && !out.is_partial());
        }

        #[test]
        fn of_any_bytes_are_taken_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(pairs) = parse_pairs(&bytes) {
                let mut back = Outgoing::new();
                for pair in &pairs {
                    back.push(&pair.key, &pair.value);
                }
                let (data, more) = back.take(usize::MAX);
                prop_assert!(!more);
                prop_assert!(bytes.starts_with(&data.to_bytes()));
                prop_assert!(bytes[data.len()..].iter().all(|b| *b == 0));
            }
        }

        #[test]
        fn values_of_any_text_are_taken_or_refused(text in "(0x|0X|0b|0B|)[0-9a-fA-F~+/=g ]{0,30}") {
            if let Ok(number) = parse_number(&text) {
                prop_assert_eq!(parse_number(&number.to_string()), Ok(number));
            }
            if let Ok((low, high)) = parse_range(&text) {
                prop_assert!(low <= high);
            }
            if let Ok(bytes) = parse_binary(&text, 16) {
                prop_assert!(bytes.len() <= 16);
                prop_assert_eq!(parse_binary(&emit_hex(&bytes), 16), Ok(bytes));
            }
        }

        #[test]
        fn binaries_round_trip_both_ways(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(&parse_binary(&emit_hex(&bytes), 300).unwrap(), &bytes);
            let base64 = emit_base64(&bytes);
            prop_assert_eq!(&parse_binary(&base64, 300).unwrap(), &bytes);
            prop_assert_eq!(&parse_binary(base64.trim_end_matches('='), 300).unwrap(), &bytes);
        }

        #[test]
        fn numbers_round_trip_both_ways(n in any::<u64>()) {
            prop_assert_eq!(parse_number(&n.to_string()), Ok(n));
            prop_assert_eq!(parse_number(&format!("{n:#x}")), Ok(n));
        }
    }
}

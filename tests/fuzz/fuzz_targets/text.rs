//! key=value text: pairs, every kind of value, CHAP values, and answers to SendTargets.
#![no_main]

use berth_iscsi::Payload;
use berth_iscsi::discovery::{Discovered, Wanted, emit_targets};
use berth_iscsi::login::text::{
    Assembler, Outgoing, TextLimits, emit_base64, emit_hex, parse_binary, parse_boolean,
    parse_number, parse_number_in, parse_pairs, parse_range,
};
use libfuzzer_sys::fuzz_target;

const BINARY_MAX: usize = 1024;

fn value(text: &str) {
    if let Ok(number) = parse_number(text) {
        assert_eq!(parse_number(&number.to_string()), Ok(number));
        assert_eq!(parse_number(&format!("{number:#x}")), Ok(number));
    }
    if let Ok(number) = parse_number_in(text, 512, 0xff_ffff) {
        assert!((512..=0xff_ffff).contains(&number));
    }
    if let Ok((low, high)) = parse_range(text) {
        assert!(low <= high);
    }
    let _ = parse_boolean(text);
    // CHAP_C and CHAP_R: whatever is decoded, both ways of writing it lead back to it.
    if let Ok(bytes) = parse_binary(text, BINARY_MAX) {
        assert!(bytes.len() <= BINARY_MAX);
        assert_eq!(
            parse_binary(&emit_hex(&bytes), BINARY_MAX).as_ref(),
            Ok(&bytes)
        );
        assert_eq!(parse_binary(&emit_base64(&bytes), BINARY_MAX), Ok(bytes));
    }
    let _ = Wanted::parse(text);
}

fn pairs(segment: &[u8]) {
    let Ok(pairs) = parse_pairs(segment) else {
        return;
    };
    let mut out = Outgoing::new();
    for pair in &pairs {
        assert!((1..=63).contains(&pair.key.len()));
        out.push(&pair.key, &pair.value);
        value(&pair.value);
    }
    // Cut into small PDUs and joined again it is the same.
    let mut assembler = Assembler::new(TextLimits {
        bytes_max: 1 << 20,
        exchanges_max: 1 << 20,
    });
    while !out.is_empty() {
        let (data, more) = out.take(7);
        if let Some(whole) = assembler.push(&data, more).expect("within the limits") {
            assert_eq!(parse_pairs(&whole).as_ref(), Ok(&pairs));
        }
    }
}

fn limits(bytes: &[u8]) {
    let limits = TextLimits {
        bytes_max: 64,
        exchanges_max: 8,
    };
    let mut assembler = Assembler::new(limits);
    let mut taken = 0;
    for piece in bytes.chunks(9) {
        let more = piece.len() % 2 == 0;
        match assembler.push(&Payload::from(piece.to_vec()), more) {
            Ok(_) => taken += piece.len(),
            Err(_) => break,
        }
    }
    assert!(taken <= limits.bytes_max);
}

fn discovery(answer: &[u8]) {
    let Ok(found) = Discovered::parse(answer) else {
        return;
    };
    let again = emit_targets(
        found
            .targets
            .iter()
            .map(|t| (&t.name, t.addresses.as_slice())),
    );
    let again = Discovered::parse(&again).expect("we wrote it");
    assert_eq!(again.refused_count, 0);
    assert_eq!(again.targets.len(), found.targets.len());
    for (a, b) in again.targets.iter().zip(&found.targets) {
        assert_eq!((&a.name, &a.addresses), (&b.name, &b.addresses));
        assert!(a.addresses.len() <= 256);
    }
    for refused in &found.refused {
        assert!(
            !refused.to_string().contains(['\n', '\x1b']),
            "steers a terminal"
        );
    }
}

fuzz_target!(|bytes: &[u8]| {
    pairs(bytes);
    limits(bytes);
    discovery(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        value(text);
    }
});

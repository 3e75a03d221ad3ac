//! Sense data in both formats: it is taken or refused, what it means is decided, and what was taken can be sent.
#![no_main]

use berth_iscsi::scsi::{Sense, SenseFormat};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(sense) = Sense::parse(bytes) else {
        return;
    };
    let _ = sense.classify();
    let _ = sense.code.name();
    let _ = sense.field();
    // The descriptor format has room for everything.
    let emitted = sense.emit(SenseFormat::Descriptor);
    assert!(emitted.len() <= 252);
    assert_eq!(Sense::parse(&emitted), Ok(sense));
    let fixed = Sense::parse(&sense.emit(SenseFormat::Fixed)).expect("we wrote it");
    assert_eq!((fixed.code, fixed.deferred), (sense.code, sense.deferred));
});

//! Any CDB that an initiator may send: understood, or refused with sense data that points into it.
#![no_main]

use berth_iscsi::scsi::cdb::opcode_name;
use berth_iscsi::scsi::{Command, Sense, SenseFormat};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = opcode_name(bytes);
    if let Err(error) = Command::parse(bytes) {
        let sense = error.sense();
        let emitted = sense.emit(SenseFormat::Fixed);
        assert_eq!(Sense::parse(&emitted), Ok(sense));
        if let Some((in_cdb, byte)) = sense.field() {
            assert!(in_cdb && usize::from(byte) < 32, "{error}");
        }
    }
});

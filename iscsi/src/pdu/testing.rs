//! What the tests of all PDUs share.

use berth_iobuf::ReceiveBuffer;

use super::bhs::{Bhs, DATA_LEN_MAX_BYTES, Opcode};
use super::digest::Digests;
use super::frame::{Decoder, Frame};

/// Bytes from hexadecimal digits; spaces and line ends do not count.
pub(super) fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// The one PDU that `wire` holds.
pub(super) fn decode(wire: &[u8], digests: Digests) -> Frame {
    let mut input = ReceiveBuffer::new();
    input.extend(wire);
    let mut decoder = Decoder::new(digests, DATA_LEN_MAX_BYTES as u32);
    let frame = decoder.next(&mut input).unwrap().expect("a whole PDU");
    assert!(!decoder.is_mid_pdu(&input), "bytes after the PDU");
    frame
}

/// A header of zeroes but for opcode and byte 1.
pub(super) fn header(opcode: Opcode, flags: u8) -> Bhs {
    Bhs::new(opcode, flags)
}

/// The four tests of a PDU: take known bytes apart, build them, parse them, emit them among dirt.
macro_rules! known_pdu {
    (
        $(#[$doc:meta])*
        $name:ident: $type:ident, $digests:expr, $wire:expr, $apart:expr, $value:expr
    ) => {
        $(#[$doc])*
        mod $name {
            use super::*;
            use $crate::pdu::testing::{decode, hex};

            fn value() -> $type {
                $value
            }

            #[test]
            fn known_bytes_come_apart() {
                let apart: fn(&Bhs) = $apart;
                apart(&decode(&hex($wire), $digests).bhs);
            }

            #[test]
            fn the_header_is_built() {
                let frame = decode(&hex($wire), $digests);
                let mut bhs = value().bhs();
                bhs.set_lengths(frame.ahs.len(), frame.data.len());
                assert_eq!(bhs, frame.bhs);
            }

            #[test]
            fn known_bytes_are_parsed() {
                let frame = decode(&hex($wire), $digests);
                assert_eq!($type::parse(frame).unwrap(), value());
            }

            #[test]
            fn known_bytes_are_emitted_into_a_dirty_queue() {
                let mut out = SendQueue::new();
                out.put(&[0xa5; 4096]);
                out.advance(4096);
                out.put(&[0xa5; 61]);
                value().emit(&mut out, $digests);
                let bytes = out.to_vec();
                assert_eq!(bytes[..61], [0xa5; 61]);
                assert_eq!(bytes[61..], hex($wire));
            }
        }
    };
}
pub(super) use known_pdu;

//! Every PDU with arbitrary fields there and back, over any split of the bytes; and garbage.

mod strategies;

use berth_iobuf::{Payload, ReceiveBuffer, SendQueue};
use bytes::Bytes;
use proptest::prelude::*;

use self::strategies::{any_pdu, digests};
use super::*;
use crate::error::{DigestError, Error};

/// Feeds `wire` in pieces that end at `cuts` and gives every result until the stream fails.
fn feed(
    wire: &[u8],
    digests: Digests,
    cuts: &[prop::sample::Index],
) -> (Vec<Result<Pdu, Error>>, Decoder, ReceiveBuffer) {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(wire.len() + 1)).collect();
    ends.push(wire.len());
    ends.sort_unstable();
    let mut decoder = Decoder::new(digests, DATA_LEN_MAX_BYTES as u32);
    let mut input = ReceiveBuffer::new();
    let mut results = Vec::new();
    let mut at = 0;
    for end in ends {
        input.extend(&wire[at..end]);
        at = end;
        loop {
            match decoder.next(&mut input) {
                Ok(None) => break,
                Ok(Some(frame)) => results.push(Pdu::parse(frame)),
                Err(error @ Error::Digest(DigestError::Data { .. })) => {
                    assert!(decoder.take_damaged().is_some());
                    results.push(Err(error));
                }
                Err(error) => {
                    assert_eq!(
                        decoder.next(&mut input),
                        Err(error.clone()),
                        "it stays failed"
                    );
                    results.push(Err(error));
                    return (results, decoder, input);
                }
            }
        }
    }
    (results, decoder, input)
}

fn emit_all(pdus: &[Pdu], digests: Digests) -> Vec<u8> {
    let mut out = SendQueue::new();
    for pdu in pdus {
        let before = out.len();
        pdu.emit(&mut out, digests);
        assert_eq!((out.len() - before) % 4, 0, "PDUs are whole words");
    }
    out.to_vec()
}

proptest! {
    #[test]
    fn any_pdus_round_trip_over_any_split(
        pdus in proptest::collection::vec(any_pdu(), 1..8),
        digests in digests(),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..40),
    ) {
        let wire = emit_all(&pdus, digests);
        let (results, decoder, input) = feed(&wire, digests, &cuts);
        let parsed: Vec<Pdu> = results.into_iter().collect::<Result<_, _>>().unwrap();
        prop_assert_eq!(&parsed, &pdus);
        prop_assert!(!decoder.is_mid_pdu(&input));
        let counters = decoder.counters();
        prop_assert_eq!(counters.pdus, pdus.len() as u64);
        prop_assert_eq!(counters.header_digests, if digests.header { pdus.len() as u64 } else { 0 });
        prop_assert_eq!(counters.header_digest_errors + counters.data_digest_errors, 0);
        prop_assert!(digests.data || counters.data_digests == 0);
    }

    #[test]
    fn single_bytes_are_enough(pdu in any_pdu(), digests in digests()) {
        let wire = emit_all(std::slice::from_ref(&pdu), digests);
        let mut decoder = Decoder::new(digests, DATA_LEN_MAX_BYTES as u32);
        let mut input = ReceiveBuffer::new();
        for (i, byte) in wire.iter().enumerate() {
            prop_assert_eq!(decoder.next(&mut input), Ok(None), "at byte {}", i);
            input.extend(std::slice::from_ref(byte));
        }
        let frame = decoder.next(&mut input).unwrap().expect("all bytes are there");
        // Slices are few, or a slow peer could make us keep one for each byte.
        prop_assert!(frame.data.segments().len() <= frame.data.len() / 4096 + 1);
        prop_assert_eq!(Pdu::parse(frame), Ok(pdu));
    }

    #[test]
    fn with_digests_no_flipped_bit_gets_through(
        pdus in proptest::collection::vec(any_pdu(), 1..5),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..10),
        at in any::<prop::sample::Index>(),
        bit in 0..8u8,
    ) {
        // RFC 7143 7.8
        let mut wire = emit_all(&pdus, Digests::BOTH);
        let at = at.index(wire.len());
        wire[at] ^= 1 << bit;
        let (results, decoder, input) = feed(&wire, Digests::BOTH, &cuts);
        let mut good = pdus.iter();
        let mut delivered = 0;
        for pdu in results.iter().flatten() {
            prop_assert!(good.any(|sent| sent == pdu), "a PDU that nobody sent");
            delivered += 1;
        }
        prop_assert!(delivered < pdus.len());
        // Either an error tells, or the decoder still waits for what a bad length promised.
        prop_assert!(results.iter().any(Result::is_err) || decoder.is_mid_pdu(&input));
    }

    #[test]
    fn garbage_never_panics(
        wire in proptest::collection::vec(any::<u8>(), 0..3000),
        digests in digests(),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..10),
    ) {
        feed(&wire, digests, &cuts);
    }

    #[test]
    fn what_is_parsed_from_garbage_can_be_sent(
        header in proptest::collection::vec(any::<u8>(), BHS_LEN),
        opcode in proptest::sample::select(&Opcode::ALL[..]),
        ahs in proptest::collection::vec(any::<[u8; 4]>(), 0..20),
        long in any::<bool>(),
        data in proptest::collection::vec(any::<u8>(), 0..60),
        digests in digests(),
    ) {
        let mut bhs = Bhs(header.try_into().unwrap());
        bhs.0[0] = bhs.0[0] & 0xc0 | opcode as u8;
        let frame = Frame {
            bhs,
            ahs: if long { Bytes::from(ahs.concat()) } else { Bytes::new() },
            data: Payload::from(data),
        };
        if let Ok(pdu) = Pdu::parse(frame) {
            prop_assert_eq!(pdu.opcode(), opcode);
            if let Pdu::ScsiResponse(response) = &pdu {
                prop_assert!(response.sense().len() <= response.data.len());
            }
            let wire = emit_all(std::slice::from_ref(&pdu), digests);
            let (results, _, _) = feed(&wire, digests, &[]);
            // Snack, task management and the like carry no data, whatever the garbage had.
            prop_assert_eq!(results, vec![Ok(pdu)]);
        }
    }
}

#[test]
fn unknown_opcodes_are_refused() {
    // RFC 7143 11.2.1.2
    for byte in 0..0x40u8 {
        let mut bhs = Bhs([0; BHS_LEN]);
        bhs.0[0] = byte;
        let known = bhs.opcode().is_some();
        let result = Pdu::parse(Frame {
            bhs,
            ahs: Bytes::new(),
            data: Payload::new(),
        });
        let refused = matches!(
            &result,
            Err(Error::Malformed { what: "PDU", problem }) if problem.contains("opcode")
        );
        assert_eq!(refused, !known, "{byte:#x}: {result:?}");
    }
}

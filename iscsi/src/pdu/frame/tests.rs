use super::super::bhs::{FINAL, Opcode};
use super::*;
use crate::types::Itt;

fn data_in(len: usize) -> Frame {
    let mut bhs = Bhs::new(Opcode::DataIn, FINAL);
    bhs.set_itt(Itt(0x77));
    bhs.set_lengths(0, len);
    Frame {
        bhs,
        ahs: Bytes::new(),
        data: Payload::from((0..len).map(|i| (i % 251) as u8).collect::<Vec<_>>()),
    }
}

fn wire(frame: &Frame, digests: Digests) -> Vec<u8> {
    let mut out = SendQueue::new();
    frame.emit(&mut out, digests);
    out.to_vec()
}

fn buffer(bytes: &[u8]) -> ReceiveBuffer {
    let mut input = ReceiveBuffer::new();
    input.extend(bytes);
    input
}

#[test]
fn a_bad_header_digest_ends_the_stream() {
    // RFC 7143 7.8: framing cannot be trusted any more.
    let mut bytes = wire(&data_in(8), Digests::BOTH);
    bytes[50] ^= 1;
    bytes.extend(wire(&data_in(8), Digests::BOTH));
    let mut decoder = Decoder::new(Digests::BOTH, 8192);
    let mut input = buffer(&bytes);
    let error = decoder.next(&mut input).unwrap_err();
    assert!(matches!(error, Error::Digest(DigestError::Header { .. })));
    assert_eq!(decoder.next(&mut input), Err(error));
    assert!(decoder.take_damaged().is_none());
    assert_eq!(decoder.counters().header_digest_errors, 1);
    assert_eq!(decoder.counters().pdus, 0);
}

#[test]
fn a_bad_data_digest_loses_one_pdu_and_keeps_its_header() {
    // RFC 7143 7.8: the header is good and the framing holds.
    for (at, cut) in [(52, 0), (59, 0), (61, 0), (52, 55), (61, 60)] {
        let mut bytes = wire(&data_in(7), Digests::BOTH);
        bytes[at] ^= 0x10;
        bytes.extend(wire(&data_in(9), Digests::BOTH));
        let mut decoder = Decoder::new(Digests::BOTH, 8192);
        let mut input = buffer(&bytes[..cut]);
        assert_eq!(decoder.next(&mut input), Ok(None));
        input.extend(&bytes[cut..]);
        let error = decoder.next(&mut input).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Digest(DigestError::Data {
                    opcode: 0x25,
                    itt: Itt(0x77),
                    ..
                })
            ),
            "{error}"
        );
        let damaged = decoder.take_damaged().expect("the header is good");
        assert_eq!(damaged.bhs, data_in(7).bhs);
        assert!(damaged.data.is_empty(), "damaged bytes are given to nobody");
        assert!(decoder.take_damaged().is_none());
        assert_eq!(decoder.next(&mut input), Ok(Some(data_in(9))));
        assert_eq!(decoder.next(&mut input), Ok(None));
        let counters = decoder.counters();
        assert_eq!((counters.pdus, counters.data_digest_errors), (1, 1));
        assert_eq!((counters.header_digests, counters.data_digests), (2, 2));
    }
}

#[test]
fn padding_that_is_not_zero_is_hashed_as_it_came() {
    // RFC 7143 11.2.4: pad bytes should be zero; the digest covers what they are.
    let frame = data_in(5);
    let mut bytes = wire(&frame, Digests::NONE);
    bytes[53..56].copy_from_slice(&[1, 2, 3]);
    bytes.extend(crc32c(&bytes[48..]).to_le_bytes());
    let digests = Digests {
        header: false,
        data: true,
    };
    for cut in [0, 52, 54, 57] {
        let mut decoder = Decoder::new(digests, 8192);
        let mut input = buffer(&bytes[..cut]);
        assert_eq!(decoder.next(&mut input), Ok(None));
        input.extend(&bytes[cut..]);
        assert_eq!(decoder.next(&mut input), Ok(Some(frame.clone())));
    }
}

#[test]
fn an_empty_data_segment_has_no_digest() {
    // RFC 7143 11.2.3
    let bytes = wire(&data_in(0), Digests::BOTH);
    assert_eq!(bytes.len(), 52);
    let mut decoder = Decoder::new(Digests::BOTH, 8192);
    assert_eq!(decoder.next(&mut buffer(&bytes)), Ok(Some(data_in(0))));
    assert_eq!(decoder.counters().data_digests, 0);
}

#[test]
fn too_long_a_data_segment_is_refused_by_its_header() {
    // RFC 7143 13.12: our own MaxRecvDataSegmentLength.
    for digests in [Digests::NONE, Digests::BOTH] {
        let bytes = wire(&data_in(513), digests);
        let header = &bytes[..BHS_LEN + digests.header_len()];
        let mut decoder = Decoder::new(digests, 512);
        let mut input = buffer(header);
        let error = decoder.next(&mut input).unwrap_err();
        assert!(error.to_string().contains("513 bytes"), "{error}");
        assert!(error.to_string().contains("at most 512"), "{error}");
        assert_eq!(decoder.next(&mut input), Err(error));
        let mut decoder = Decoder::new(digests, 513);
        assert_eq!(decoder.next(&mut buffer(&bytes)), Ok(Some(data_in(513))));
    }
}

#[test]
fn a_damaged_length_is_a_digest_error_not_a_limit() {
    let mut bytes = wire(&data_in(8), Digests::BOTH);
    bytes[5] = 0xff;
    let error = Decoder::new(Digests::BOTH, 8192)
        .next(&mut buffer(&bytes))
        .unwrap_err();
    assert!(matches!(error, Error::Digest(DigestError::Header { .. })));
}

#[test]
fn digests_start_with_the_first_pdu_after_login() {
    // RFC 7143 6.3: never in login, from the first PDU of the full feature phase on; both may be in
    // the same read.
    let mut bytes = wire(&data_in(5), Digests::NONE);
    bytes.extend(wire(&data_in(9000), Digests::BOTH));
    let mut input = buffer(&bytes);
    let mut decoder = Decoder::default();
    assert_eq!(decoder.next(&mut input), Ok(Some(data_in(5))));
    decoder.configure(Digests::BOTH, 65536);
    assert_eq!(decoder.digests(), Digests::BOTH);
    assert_eq!(decoder.next(&mut input), Ok(Some(data_in(9000))));
    assert_eq!(decoder.next(&mut input), Ok(None));
}

#[test]
fn a_new_configuration_does_not_touch_a_pdu_half_read() {
    let frame = data_in(6000);
    let bytes = wire(&frame, Digests::BOTH);
    let mut decoder = Decoder::new(Digests::BOTH, 8192);
    let mut input = buffer(&bytes[..5000]);
    assert_eq!(decoder.next(&mut input), Ok(None));
    decoder.configure(Digests::NONE, 512);
    input.extend(&bytes[5000..]);
    assert_eq!(decoder.next(&mut input), Ok(Some(frame)));
    assert_eq!(decoder.counters().data_digests, 1);
}

#[test]
fn a_pdu_larger_than_any_buffer_comes_through_in_slices() {
    let frame = data_in(3 * 1024 * 1024 + 1);
    let bytes = wire(&frame, Digests::BOTH);
    let mut decoder = Decoder::new(Digests::BOTH, 4 << 20);
    let mut input = ReceiveBuffer::new();
    let mut got = None;
    for piece in bytes.chunks(100_000) {
        assert_eq!(got, None);
        input.extend(piece);
        got = decoder.next(&mut input).unwrap();
        assert!(input.len() < PART_MIN_BYTES, "payload is taken as it comes");
    }
    assert_eq!(got, Some(frame));
    assert!(input.is_empty());
}

#[test]
fn payload_is_not_copied() {
    let bytes = wire(&data_in(6000), Digests::BOTH);
    let mut input = buffer(&bytes);
    let start = input.bytes().as_ptr() as usize;
    let frame = Decoder::new(Digests::BOTH, 8192)
        .next(&mut input)
        .unwrap()
        .unwrap();
    let [segment] = frame.data.segments() else {
        panic!("{:?}", frame.data);
    };
    assert_eq!(segment.as_ptr() as usize, start + 52);
    let mut out = SendQueue::new();
    frame.emit(&mut out, Digests::BOTH);
    let mut slices = Vec::new();
    out.io_slices(&mut slices);
    assert_eq!(
        slices.iter().map(|s| s.len()).collect::<Vec<_>>(),
        [52, 6000, 4]
    );
    assert_eq!(slices[1].as_ptr() as usize, start + 52);
}

#[test]
fn many_pdus_of_one_read_come_out_one_by_one() {
    let mut bytes = Vec::new();
    for len in 0..200 {
        bytes.extend(wire(&data_in(len), Digests::BOTH));
    }
    let mut decoder = Decoder::new(Digests::BOTH, 8192);
    let mut input = buffer(&bytes);
    for len in 0..200 {
        assert_eq!(decoder.next(&mut input), Ok(Some(data_in(len))));
    }
    assert_eq!(decoder.next(&mut input), Ok(None));
    assert_eq!(decoder.counters().pdus, 200);
}

#[test]
fn additional_headers_are_kept_and_hashed() {
    // RFC 7143 11.2.3: the header digest covers them.
    let mut frame = data_in(4);
    frame.ahs = Bytes::from(vec![7; 1020]);
    frame.bhs.set_lengths(1020, 4);
    let bytes = wire(&frame, Digests::BOTH);
    let mut decoder = Decoder::new(Digests::BOTH, 8192);
    let mut input = buffer(&bytes[..1071]);
    assert_eq!(decoder.next(&mut input), Ok(None));
    input.extend(&bytes[1071..]);
    assert_eq!(decoder.next(&mut input), Ok(Some(frame)));
    let mut bad = bytes;
    bad[600] ^= 1;
    assert!(
        Decoder::new(Digests::BOTH, 8192)
            .next(&mut buffer(&bad))
            .is_err()
    );
}

#[test]
fn an_early_end_is_told_from_a_clean_one() {
    let bytes = wire(&data_in(5000), Digests::NONE);
    for (cut, mid) in [
        (0, false),
        (20, true),
        (48, true),
        (4500, true),
        (5048, false),
    ] {
        let mut decoder = Decoder::default();
        let mut input = buffer(&bytes[..cut]);
        let _ = decoder.next(&mut input).unwrap();
        assert_eq!(decoder.is_mid_pdu(&input), mid, "after {cut} bytes");
    }
}

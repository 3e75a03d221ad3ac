//! A peer's bytes, in reads of any size: every PDU is taken or refused, and what was taken can be sent and is the
//! same afterwards. Byte 0 chooses the digests and the limit, byte 1 the size of the reads.
#![no_main]

use berth_iobuf::{Payload, ReceiveBuffer, SendQueue};
use berth_iscsi::Error;
use berth_iscsi::error::DigestError;
use berth_iscsi::pdu::{BHS_LEN, Bhs, Decoder, Digests, Frame, Pdu};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fn check(frame: Frame, limit: u32) {
    assert!(frame.data.len() <= limit as usize);
    assert!(frame.ahs.len() <= 1020);
    let opcode = frame.bhs.opcode();
    let Ok(pdu) = Pdu::parse(frame) else { return };
    assert_eq!(Some(pdu.opcode()), opcode);
    match &pdu {
        Pdu::ScsiResponse(pdu) => {
            assert!(pdu.sense().len() + pdu.response_data().len() <= pdu.data.len());
        }
        Pdu::AsyncMessage(pdu) => {
            assert!(pdu.sense().len() + pdu.event_data().len() <= pdu.data.len());
        }
        Pdu::Reject(pdu) => assert_eq!(pdu.refused().is_some(), pdu.data.len() >= BHS_LEN),
        _ => {}
    }
    let mut out = SendQueue::new();
    pdu.emit(&mut out, Digests::BOTH);
    let mut input = ReceiveBuffer::new();
    input.extend(&out.to_vec());
    let again = Decoder::new(Digests::BOTH, limit)
        .next(&mut input)
        .expect("we sent it")
        .expect("all of it");
    assert_eq!(Pdu::parse(again), Ok(pdu));
    assert!(input.is_empty());
}

fuzz_target!(|bytes: &[u8]| {
    let [mode, size, wire @ ..] = bytes else {
        return;
    };
    let digests = Digests {
        header: mode & 1 != 0,
        data: mode & 2 != 0,
    };
    let limit = if mode & 4 != 0 { 512 } else { 0xff_ffff };
    let mut decoder = Decoder::new(digests, limit);
    let mut input = ReceiveBuffer::new();
    'reads: for piece in wire.chunks(usize::from(*size).pow(2) + 1) {
        input.extend(piece);
        loop {
            match decoder.next(&mut input) {
                Ok(None) => break,
                Ok(Some(frame)) => check(frame, limit),
                Err(Error::Digest(DigestError::Data { .. })) => {
                    let damaged = decoder.take_damaged().expect("its header is good");
                    assert!(damaged.data.is_empty());
                }
                Err(error) => {
                    assert_eq!(decoder.next(&mut input), Err(error));
                    break 'reads;
                }
            }
        }
    }
    // Once more without a length and a digest in the way of the fields.
    if let Some((header, rest)) = wire.split_first_chunk::<BHS_LEN>() {
        let ahs = rest.len().min(usize::from(size & 0x0f) * 4);
        check(
            Frame {
                bhs: Bhs(*header),
                ahs: Bytes::copy_from_slice(&rest[..ahs]),
                data: Payload::from(rest[ahs..].to_vec()),
            },
            0xff_ffff,
        );
    }
});

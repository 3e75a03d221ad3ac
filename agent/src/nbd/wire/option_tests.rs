use super::*;
use proptest::prelude::*;

fn bytes(emit: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    emit(&mut out);
    out
}

#[test]
fn greeting_known_bytes() {
    let flags = HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES;
    let greeting = emit_greeting(flags);
    assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\x00\x03");
    assert_eq!(parse_greeting(&greeting), Ok(flags));
}

#[test]
fn oldstyle_and_strangers_are_named() {
    let mut old = *b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53\x00\x00";
    assert_eq!(
        parse_greeting(&old),
        Err(MagicError::Style(0x0000_4202_8186_1253))
    );
    old[0] = b'H';
    assert!(matches!(parse_greeting(&old), Err(MagicError::Init(_))));
}

#[test]
fn option_header_known_bytes() {
    let header = OptionHeader {
        option: OptionType::GO,
        len_bytes: 0x102,
    };
    let known = b"IHAVEOPT\x00\x00\x00\x07\x00\x00\x01\x02";
    assert_eq!(&header.emit(), known);
    assert_eq!(OptionHeader::parse(known), Ok(header));
    assert!(OptionHeader::parse(b"IHAVEOPS\x00\x00\x00\x07\x00\x00\x01\x02").is_err());
}

#[test]
fn option_reply_header_known_bytes() {
    let header = OptionReplyHeader {
        option: OptionType::LIST,
        reply: ReplyType::ERR_UNSUP,
        len_bytes: 5,
    };
    let known = [
        0x00, 0x03, 0xe8, 0x89, 0x04, 0x55, 0x65, 0xa9, 0, 0, 0, 3, 0x80, 0, 0, 1, 0, 0, 0, 5,
    ];
    assert_eq!(header.emit(), known);
    assert_eq!(OptionReplyHeader::parse(&known), Ok(header));
    assert!(
        ReplyType(0x8000_0063).is_error(),
        "unknown errors are errors"
    );
}

#[test]
fn info_request_known_bytes() {
    let known = b"\x00\x00\x00\x02ab\x00\x02\x00\x03\x00\x01";
    let request = InfoRequest {
        name: "ab".into(),
        wants: vec![InfoType::BLOCK_SIZE, InfoType::NAME],
    };
    assert_eq!(InfoRequest::parse(known), Ok(request.clone()));
    assert_eq!(bytes(|out| request.emit(out)), known);
}

#[test]
fn info_request_lengths_are_checked() {
    for bad in [
        &b""[..],
        b"\x00\x00\x00",
        b"\x00\x00\x00\x05ab\x00\x00",
        b"\xff\xff\xff\xffab\x00\x00",
        b"\x00\x00\x00\x02ab",
        b"\x00\x00\x00\x02ab\x00\x01",
        b"\x00\x00\x00\x02ab\x00\x01\x00",
        b"\x00\x00\x00\x02ab\x00\x00\x00\x01",
    ] {
        assert_eq!(
            InfoRequest::parse(bad),
            Err(OptionError::Length),
            "{bad:x?}"
        );
    }
    assert_eq!(
        InfoRequest::parse(b"\x00\x00\x00\x02a\x00\x00\x00"),
        Err(OptionError::NotText)
    );
    assert_eq!(
        InfoRequest::parse(b"\x00\x00\x00\x01\xff\x00\x00"),
        Err(OptionError::NotText)
    );
}

#[test]
fn strings_have_a_bound() {
    assert!(parse_string(&[b'a'; 4096]).is_ok());
    assert_eq!(
        parse_string(&[b'a'; 4097]),
        Err(OptionError::StringTooLong(4097))
    );
}

#[test]
fn a_count_of_queries_allocates_nothing() {
    let bad = b"\x00\x00\x00\x00\xff\xff\xff\xff";
    assert_eq!(MetaContextRequest::parse(bad), Err(OptionError::Length));
}

#[test]
fn info_reply_known_bytes() {
    let export = InfoReply::Export {
        size_bytes: 1 << 20,
        flags: TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH,
    };
    assert_eq!(
        bytes(|out| export.emit(out)),
        [0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 5]
    );
    let sizes = BlockSizes {
        minimum: 512,
        preferred: 4096,
        maximum_payload: 1 << 25,
    };
    let known = [0, 3, 0, 0, 2, 0, 0, 0, 0x10, 0, 2, 0, 0, 0];
    assert_eq!(bytes(|out| InfoReply::BlockSize(sizes).emit(out)), known);
    assert_eq!(InfoReply::parse(&known), Ok(InfoReply::BlockSize(sizes)));
    assert_eq!(InfoReply::parse(&known[..13]), Err(OptionError::Length));
    assert_eq!(
        InfoReply::parse(&[0, 9, 1]),
        Ok(InfoReply::Other(InfoType(9)))
    );
}

#[test]
fn block_size_rules() {
    let good = BlockSizes {
        minimum: 1,
        preferred: 512,
        maximum_payload: u32::MAX,
    };
    assert!(good.is_valid());
    for bad in [
        BlockSizes { minimum: 3, ..good },
        BlockSizes {
            minimum: 131_072,
            preferred: 131_072,
            ..good
        },
        BlockSizes {
            preferred: 256,
            ..good
        },
        BlockSizes {
            minimum: 4096,
            preferred: 512,
            ..good
        },
        BlockSizes {
            maximum_payload: 511,
            ..good
        },
    ] {
        assert!(!bad.is_valid(), "{bad:?}");
    }
}

fn text() -> impl Strategy<Value = String> {
    "[^\\x00]{0,200}"
}

proptest! {
    #[test]
    fn headers_round_trip(option: u32, reply: u32, len_bytes: u32) {
        let option = OptionType(option);
        let header = OptionHeader { option, len_bytes };
        prop_assert_eq!(OptionHeader::parse(&header.emit()), Ok(header));
        let header = OptionReplyHeader { option, reply: ReplyType(reply), len_bytes };
        prop_assert_eq!(OptionReplyHeader::parse(&header.emit()), Ok(header));
    }

    #[test]
    fn info_requests_round_trip(name in text(), wants: Vec<u16>) {
        let wants = wants.into_iter().map(InfoType).collect();
        let request = InfoRequest { name, wants };
        prop_assert_eq!(InfoRequest::parse(&bytes(|out| request.emit(out))), Ok(request));
    }

    #[test]
    fn meta_requests_round_trip(
        name in text(), queries in proptest::collection::vec(text(), 0..6),
    ) {
        let request = MetaContextRequest { name, queries };
        prop_assert_eq!(MetaContextRequest::parse(&bytes(|out| request.emit(out))), Ok(request));
    }

    #[test]
    fn replies_round_trip(
        name in text(), description in text(), id: u32, size_bytes: u64, flags: u16,
        sizes: (u32, u32, u32),
    ) {
        let reply = ServerReply { name: name.clone(), description: description.clone() };
        prop_assert_eq!(ServerReply::parse(&bytes(|out| reply.emit(out))), Ok(reply));
        let reply = MetaContextReply { id, name: name.clone() };
        prop_assert_eq!(MetaContextReply::parse(&bytes(|out| reply.emit(out))), Ok(reply));
        let (minimum, preferred, maximum_payload) = sizes;
        for reply in [
            InfoReply::Export { size_bytes, flags: TransmissionFlags::from_bits_retain(flags) },
            InfoReply::Name(name),
            InfoReply::Description(description),
            InfoReply::BlockSize(BlockSizes { minimum, preferred, maximum_payload }),
        ] {
            prop_assert_eq!(InfoReply::parse(&bytes(|out| reply.emit(out))), Ok(reply));
        }
    }

    #[test]
    fn parsers_survive_anything(bytes: Vec<u8>) {
        let _ = InfoRequest::parse(&bytes);
        let _ = MetaContextRequest::parse(&bytes);
        let _ = ServerReply::parse(&bytes);
        let _ = InfoReply::parse(&bytes);
        let _ = MetaContextReply::parse(&bytes);
    }
}

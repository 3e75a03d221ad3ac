use super::super::export::{ExportSummary, tests::geometry};
use super::super::wire::option::BlockSizes;
use super::*;
use proptest::prelude::*;

struct Shelf;

impl Exports for Shelf {
    fn list(&self) -> Vec<ExportSummary> {
        ["alpha", "beta"]
            .map(|name| ExportSummary {
                name: name.into(),
                description: format!("disk {name}"),
            })
            .into()
    }

    fn open(&self, name: &str) -> Option<ExportInfo> {
        match name {
            "" | "alpha" => Some(ExportInfo::new("alpha", "disk alpha", &geometry(1 << 20))),
            "beta" => Some(ExportInfo::new("beta", "", &geometry(1 << 30))),
            _ => None,
        }
    }
}

/// A client that writes bytes and takes replies apart.
struct Peer {
    handshake: Handshake,
    input: ReceiveBuffer,
    out: SendQueue,
}

type Reply = (OptionType, ReplyType, Vec<u8>);

impl Peer {
    /// Connected, nothing sent yet.
    fn connected() -> Self {
        let mut out = SendQueue::new();
        let handshake = Handshake::new(&mut out);
        assert_eq!(out.to_vec(), b"NBDMAGICIHAVEOPT\x00\x03");
        out.clear();
        Self {
            handshake,
            input: ReceiveBuffer::new(),
            out,
        }
    }

    /// In option haggling.
    fn haggling() -> Self {
        let mut peer = Self::connected();
        assert_eq!(peer.send(&3u32.to_be_bytes()), Ok(Progress::Continue));
        peer
    }

    fn with_mode(option: OptionType) -> Self {
        let mut peer = Self::haggling();
        assert_eq!(peer.ask(option, &[]), [(option, ReplyType::ACK, vec![])]);
        peer
    }

    fn send(&mut self, bytes: &[u8]) -> Result<Progress, Error> {
        self.input.extend(bytes);
        self.handshake
            .handle_input(&mut self.input, &mut self.out, &Shelf)
    }

    fn send_option(&mut self, option: OptionType, data: &[u8]) -> Result<Progress, Error> {
        let len_bytes = u32::try_from(data.len()).unwrap();
        let header = OptionHeader { option, len_bytes };
        self.send(&[&header.emit()[..], data].concat())
    }

    fn replies(&mut self) -> Vec<Reply> {
        let bytes = self.out.to_vec();
        self.out.clear();
        let mut rest = &bytes[..];
        let mut replies = Vec::new();
        while !rest.is_empty() {
            let header = OptionReplyHeader::parse(rest).unwrap();
            let end = option::OPTION_REPLY_BYTES + header.len_bytes as usize;
            let data = rest[option::OPTION_REPLY_BYTES..end].to_vec();
            replies.push((header.option, header.reply, data));
            rest = &rest[end..];
        }
        replies
    }

    /// Sends an option that does not end the negotiation.
    fn ask(&mut self, option: OptionType, data: &[u8]) -> Vec<Reply> {
        assert_eq!(self.send_option(option, data), Ok(Progress::Continue));
        self.replies()
    }

    fn ask_error(&mut self, option: OptionType, data: &[u8]) -> ReplyType {
        let replies = self.ask(option, data);
        assert_eq!(replies.len(), 1, "exactly one final reply");
        assert_eq!(replies[0].0, option, "the option is echoed");
        assert!(!replies[0].2.is_empty(), "errors carry a text");
        replies[0].1
    }

    fn go(&mut self, name: &str) -> Negotiated {
        match self.send_option(OptionType::GO, &info(name, &[])) {
            Ok(Progress::Negotiated(negotiated)) => *negotiated,
            other => panic!("GO {name:?} gave {other:?}"),
        }
    }
}

fn info(name: &str, wants: &[InfoType]) -> Vec<u8> {
    let mut out = Vec::new();
    InfoRequest {
        name: name.into(),
        wants: wants.to_vec(),
    }
    .emit(&mut out);
    out
}

fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    let queries = queries.iter().map(|q| (*q).to_owned()).collect();
    MetaContextRequest {
        name: name.into(),
        queries,
    }
    .emit(&mut out);
    out
}

// proto.md, Newstyle negotiation: "the server MUST close the connection" on unknown client flags.
#[test]
fn unknown_client_flags_close() {
    let mut peer = Peer::connected();
    assert_eq!(peer.send(&7u32.to_be_bytes()), Err(Error::ClientFlags(7)));
}

#[test]
fn without_fixed_newstyle_only_export_name_is_possible() {
    let mut peer = Peer::connected();
    peer.send(&0u32.to_be_bytes()).unwrap();
    assert_eq!(
        peer.send_option(OptionType::LIST, &[]),
        Err(Error::NotFixedNewstyle(OptionType::LIST))
    );
    let mut peer = Peer::connected();
    peer.send(&0u32.to_be_bytes()).unwrap();
    assert!(matches!(
        peer.send_option(OptionType::EXPORT_NAME, b"beta"),
        Ok(Progress::Negotiated(_))
    ));
}

#[test]
fn a_wrong_option_magic_closes() {
    let mut peer = Peer::haggling();
    let sent = peer.send(b"HTTP/1.1 200 OK\r\n");
    assert!(
        matches!(sent, Err(Error::Magic(MagicError::Option(_)))),
        "{sent:?}"
    );
}

// proto.md, NBD_OPT_EXPORT_NAME: size, flags, 124 zeroes unless NO_ZEROES was agreed.
#[test]
fn export_name_is_padded_unless_agreed_otherwise() {
    for (client_flags, padding) in [(1u32, 124), (3, 0)] {
        let mut peer = Peer::connected();
        peer.send(&client_flags.to_be_bytes()).unwrap();
        let sent = peer.send_option(OptionType::EXPORT_NAME, b"alpha");
        let Ok(Progress::Negotiated(negotiated)) = sent else {
            panic!("{sent:?}");
        };
        assert_eq!(negotiated.export, "alpha");
        assert_eq!(negotiated.mode, ReplyMode::Simple);
        let bytes = peer.out.to_vec();
        assert_eq!(bytes.len(), 10 + padding);
        assert_eq!(&bytes[..8], &(1u64 << 20).to_be_bytes());
        assert_eq!(&bytes[8..10], &negotiated.flags.bits().to_be_bytes());
        assert!(bytes[10..].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn export_name_cannot_say_no() {
    assert_eq!(
        Peer::haggling().send_option(OptionType::EXPORT_NAME, b"gamma"),
        Err(Error::UnknownExport("gamma".into()))
    );
    assert_eq!(
        Peer::haggling().send_option(OptionType::EXPORT_NAME, b"\xff"),
        Err(Error::ExportName(OptionError::NotText))
    );
    let header = OptionHeader {
        option: OptionType::EXPORT_NAME,
        len_bytes: u32::MAX,
    };
    assert!(matches!(
        Peer::haggling().send(&header.emit()),
        Err(Error::ExportName(OptionError::StringTooLong(_)))
    ));
    let mut peer = Peer::with_mode(OptionType::EXTENDED_HEADERS);
    assert_eq!(
        peer.send_option(OptionType::EXPORT_NAME, b"alpha"),
        Err(Error::ExportNameExtended)
    );
}

#[test]
fn abort_is_acknowledged_with_or_without_data() {
    for data in [&b""[..], b"why"] {
        let mut peer = Peer::haggling();
        assert_eq!(
            peer.send_option(OptionType::ABORT, data),
            Ok(Progress::Aborted)
        );
        assert_eq!(
            peer.replies(),
            [(OptionType::ABORT, ReplyType::ACK, vec![])]
        );
    }
}

#[test]
fn list_names_every_export() {
    let mut peer = Peer::haggling();
    let replies = peer.ask(OptionType::LIST, &[]);
    let kinds: Vec<_> = replies.iter().map(|(_, kind, _)| *kind).collect();
    assert_eq!(
        kinds,
        [ReplyType::SERVER, ReplyType::SERVER, ReplyType::ACK]
    );
    let first = ServerReply::parse(&replies[0].2).unwrap();
    assert_eq!(
        (first.name.as_str(), first.description.as_str()),
        ("alpha", "disk alpha")
    );
}

#[test]
fn options_that_take_no_data_refuse_data() {
    for option in [
        OptionType::LIST,
        OptionType::STRUCTURED_REPLY,
        OptionType::EXTENDED_HEADERS,
        OptionType::STARTTLS,
    ] {
        let mut peer = Peer::haggling();
        assert_eq!(
            peer.ask_error(option, b"x"),
            ReplyType::ERR_INVALID,
            "{option}"
        );
        assert_eq!(
            peer.go("alpha").mode,
            ReplyMode::Simple,
            "refused is not agreed"
        );
    }
}

#[test]
fn what_is_unknown_is_refused_and_the_stream_stays_in_step() {
    let mut peer = Peer::haggling();
    for option in [
        OptionType::PEEK_EXPORT,
        OptionType::STARTTLS,
        OptionType(0),
        OptionType(99),
    ] {
        let data: &[u8] = if option == OptionType::STARTTLS {
            &[]
        } else {
            &[7; 1000]
        };
        assert_eq!(
            peer.ask_error(option, data),
            ReplyType::ERR_UNSUP,
            "{option}"
        );
    }
    assert_eq!(peer.go("beta").export, "beta");
}

#[test]
fn oversized_data_is_drained_and_refused() {
    let mut peer = Peer::haggling();
    let header = OptionHeader {
        option: OptionType::GO,
        len_bytes: OPTION_DATA_MAX_BYTES + 1,
    };
    peer.send(&header.emit()).unwrap();
    for _ in 0..16 {
        peer.send(&[0xee; 4096]).unwrap();
        assert!(peer.input.is_empty(), "drained data is not kept");
        assert!(peer.out.is_empty());
    }
    peer.send(&[0xee]).unwrap();
    let replies = peer.replies();
    assert_eq!((replies.len(), replies[0].1), (1, ReplyType::ERR_TOO_BIG));
    assert_eq!(peer.go("alpha").export, "alpha");
}

// proto.md, NBD_OPT_INFO and NBD_OPT_GO.
#[test]
fn info_and_go_answer_the_same() {
    let wants = [
        InfoType::NAME,
        InfoType(77),
        InfoType::BLOCK_SIZE,
        InfoType::DESCRIPTION,
        InfoType::BLOCK_SIZE,
    ];
    let mut peer = Peer::with_mode(OptionType::STRUCTURED_REPLY);
    let told = peer.ask(OptionType::INFO, &info("", &wants));
    let infos: Vec<_> = told[..told.len() - 1]
        .iter()
        .map(|(_, kind, data)| {
            assert_eq!(*kind, ReplyType::INFO);
            InfoReply::parse(data).unwrap()
        })
        .collect();
    let sizes = BlockSizes {
        minimum: 512,
        preferred: 65536,
        maximum_payload: 32 << 20,
    };
    let flags = ExportInfo::new("", "", &geometry(1 << 20)).flags | TransmissionFlags::SEND_DF;
    assert_eq!(
        infos,
        [
            InfoReply::Export {
                size_bytes: 1 << 20,
                flags
            },
            InfoReply::Name("alpha".into()),
            InfoReply::Description("disk alpha".into()),
            InfoReply::BlockSize(sizes),
        ]
    );
    let sent = peer.send_option(OptionType::GO, &info("", &wants));
    let Ok(Progress::Negotiated(negotiated)) = sent else {
        panic!("{sent:?}");
    };
    assert!(negotiated.block_sizes_told);
    assert_eq!(negotiated.flags, flags);
    let again: Vec<_> = peer
        .replies()
        .into_iter()
        .map(|(_, kind, data)| (kind, data))
        .collect();
    let told: Vec<_> = told
        .into_iter()
        .map(|(_, kind, data)| (kind, data))
        .collect();
    assert_eq!(again, told);
}

#[test]
fn go_refuses_and_negotiation_goes_on() {
    let mut peer = Peer::haggling();
    assert_eq!(
        peer.ask_error(OptionType::GO, &info("gamma", &[])),
        ReplyType::ERR_UNKNOWN
    );
    assert_eq!(
        peer.ask_error(OptionType::GO, b"\x00\x00\x00"),
        ReplyType::ERR_INVALID
    );
    assert_eq!(
        peer.ask_error(OptionType::INFO, b"\x00\x00\x00\x09ab\x00\x00"),
        ReplyType::ERR_INVALID
    );
    let long = info(&"n".repeat(4097), &[]);
    assert_eq!(
        peer.ask_error(OptionType::GO, &long),
        ReplyType::ERR_INVALID
    );
    assert_eq!(peer.go("").export, "alpha");
}

#[test]
fn bytes_after_go_belong_to_transmission() {
    let mut peer = Peer::haggling();
    let data = info("alpha", &[]);
    let len_bytes = u32::try_from(data.len()).unwrap();
    let header = OptionHeader {
        option: OptionType::GO,
        len_bytes,
    };
    let sent = peer.send(&[&header.emit()[..], &data, b"early"].concat());
    assert!(matches!(sent, Ok(Progress::Negotiated(_))));
    assert_eq!(peer.input.bytes(), b"early");
}

// proto.md, NBD_OPT_STRUCTURED_REPLY: refused once extended headers are on.
#[test]
fn extended_headers_override_structured_replies() {
    let mut peer = Peer::with_mode(OptionType::STRUCTURED_REPLY);
    assert_eq!(
        peer.ask(OptionType::STRUCTURED_REPLY, &[])[0].1,
        ReplyType::ACK
    );
    assert_eq!(
        peer.ask(OptionType::EXTENDED_HEADERS, &[])[0].1,
        ReplyType::ACK
    );
    assert_eq!(
        peer.ask_error(OptionType::STRUCTURED_REPLY, &[]),
        ReplyType::ERR_EXT_HEADER_REQD
    );
    assert_eq!(peer.go("alpha").mode, ReplyMode::Extended);
}

// proto.md, NBD_OPT_LIST_META_CONTEXT.
#[test]
fn listing_contexts_knows_wildcards() {
    for (queries, found) in [
        (&[][..], true),
        (&["base:"], true),
        (&["base:allocation"], true),
        (&["x-other:", "base:allocation", "base:"], true),
        (&["base:alloc"], false),
        (&["qemu:"], false),
        (&["base"], false),
    ] {
        let mut peer = Peer::haggling();
        let replies = peer.ask(OptionType::LIST_META_CONTEXT, &contexts("alpha", queries));
        assert_eq!(replies.len(), 1 + usize::from(found), "{queries:?}");
        assert_eq!(replies.last().unwrap().1, ReplyType::ACK);
        if found {
            let context = MetaContextReply::parse(&replies[0].2).unwrap();
            assert_eq!(
                context,
                MetaContextReply {
                    id: 0,
                    name: "base:allocation".into()
                }
            );
        }
    }
}

// proto.md, NBD_OPT_SET_META_CONTEXT.
#[test]
fn setting_contexts_takes_exact_names_only() {
    for (queries, found) in [
        (&[][..], false),
        (&["base:"], false),
        (&["base:allocation"], true),
        (&["x:y", "base:allocation", "base:allocation"], true),
    ] {
        let mut peer = Peer::with_mode(OptionType::STRUCTURED_REPLY);
        let replies = peer.ask(OptionType::SET_META_CONTEXT, &contexts("beta", queries));
        assert_eq!(replies.len(), 1 + usize::from(found), "{queries:?}");
        let negotiated = peer.go("beta");
        assert_eq!(negotiated.base_allocation, found, "{queries:?}");
        assert!(
            !negotiated
                .flags
                .contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD)
        );
    }
}

#[test]
fn contexts_need_a_reply_style_that_can_carry_them() {
    let mut peer = Peer::haggling();
    let data = contexts("alpha", &["base:allocation"]);
    assert_eq!(
        peer.ask_error(OptionType::SET_META_CONTEXT, &data),
        ReplyType::ERR_INVALID
    );
    assert!(!peer.go("alpha").base_allocation);
}

#[test]
fn contexts_belong_to_the_export_they_were_set_for() {
    let mut peer = Peer::with_mode(OptionType::EXTENDED_HEADERS);
    peer.ask(
        OptionType::SET_META_CONTEXT,
        &contexts("alpha", &["base:allocation"]),
    );
    let negotiated = peer.go("beta");
    assert!(!negotiated.base_allocation);
    assert!(
        !negotiated
            .flags
            .contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD)
    );

    let mut peer = Peer::with_mode(OptionType::EXTENDED_HEADERS);
    peer.ask(
        OptionType::SET_META_CONTEXT,
        &contexts("alpha", &["base:allocation"]),
    );
    let negotiated = peer.go("alpha");
    assert!(negotiated.base_allocation);
    assert!(
        negotiated
            .flags
            .contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD)
    );
}

#[test]
fn a_failed_selection_drops_the_earlier_one() {
    let good = contexts("alpha", &["base:allocation"]);
    for (bad, error) in [
        (
            contexts("gamma", &["base:allocation"]),
            ReplyType::ERR_UNKNOWN,
        ),
        (good[..good.len() - 1].to_vec(), ReplyType::ERR_INVALID),
        (
            vec![0; OPTION_DATA_MAX_BYTES as usize + 1],
            ReplyType::ERR_TOO_BIG,
        ),
    ] {
        let mut peer = Peer::with_mode(OptionType::STRUCTURED_REPLY);
        peer.ask(OptionType::SET_META_CONTEXT, &good);
        assert_eq!(peer.ask_error(OptionType::SET_META_CONTEXT, &bad), error);
        assert!(!peer.go("alpha").base_allocation);
    }
}

#[test]
fn a_client_that_never_reads_gets_bounded_memory() {
    let mut peer = Peer::haggling();
    let header = OptionHeader {
        option: OptionType::LIST,
        len_bytes: 0,
    };
    peer.send(&header.emit().repeat(10_000)).unwrap();
    assert!(peer.out.len() < REPLY_BACKLOG_MAX_BYTES + 4096);
    // Once the replies are sent, the rest of the options is taken.
    let mut lists = 0;
    while !peer.out.is_empty() {
        lists += peer
            .replies()
            .iter()
            .filter(|(_, kind, _)| *kind == ReplyType::ACK)
            .count();
        peer.send(&[]).unwrap();
    }
    assert_eq!(lists, 10_000);
}

proptest! {
    #[test]
    fn any_cut_of_the_input_gives_the_same_answers(
        cuts in proptest::collection::vec(0usize..200, 0..12),
    ) {
        let mut sent = 3u32.to_be_bytes().to_vec();
        for (option, data) in [
            (OptionType::STRUCTURED_REPLY, vec![]),
            (OptionType(55), vec![1; 30]),
            (OptionType::SET_META_CONTEXT, contexts("alpha", &["base:allocation"])),
            (OptionType::GO, info("alpha", &[InfoType::BLOCK_SIZE])),
        ] {
            let len_bytes = u32::try_from(data.len()).unwrap();
            sent.extend(OptionHeader { option, len_bytes }.emit());
            sent.extend(data);
        }
        let mut whole = Peer::connected();
        let expected = whole.send(&sent).unwrap();
        let mut parts = Peer::connected();
        let mut progress = Progress::Continue;
        let mut rest = &sent[..];
        for cut in cuts {
            let (now, later) = rest.split_at(cut.min(rest.len()));
            rest = later;
            if progress == Progress::Continue {
                progress = parts.send(now).unwrap();
            }
        }
        if progress == Progress::Continue {
            progress = parts.send(rest).unwrap();
        }
        prop_assert_eq!(progress, expected);
        prop_assert_eq!(parts.out.to_vec(), whole.out.to_vec());
    }

    #[test]
    fn garbage_never_panics(
        flags in 0u32..8,
        options in proptest::collection::vec((0u32..14, any::<Vec<u8>>(), any::<u32>(), 0..4), 0..8),
    ) {
        let mut sent = flags.to_be_bytes().to_vec();
        for (option, data, len, lie) in options {
            let len_bytes = if lie == 0 { len } else { u32::try_from(data.len()).unwrap() };
            sent.extend(OptionHeader { option: OptionType(option), len_bytes }.emit());
            sent.extend(data);
        }
        let _ = Peer::connected().send(&sent);
    }
}

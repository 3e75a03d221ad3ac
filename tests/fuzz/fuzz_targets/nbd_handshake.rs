//! An NBD client's negotiation, in reads of any size: every option is answered once and memory stays bounded.
//! Byte 0 is the size of the reads, byte 1 how much of what was queued the client takes.
#![no_main]

use berth_agent::block::Geometry;
use berth_agent::nbd::export::{ExportInfo, ExportSummary, Exports};
use berth_agent::nbd::handshake::{Handshake, Progress, REPLY_BACKLOG_MAX_BYTES};
use berth_agent::nbd::wire::option::{
    GREETING_BYTES, InfoReply, InfoRequest, MetaContextReply, MetaContextRequest,
    OPTION_REPLY_BYTES, OptionReplyHeader, ReplyType, ServerReply, parse_greeting,
};
use berth_iobuf::{ReceiveBuffer, SendQueue};
use libfuzzer_sys::fuzz_target;

struct Shelf;

fn geometry() -> Geometry {
    Geometry {
        size_bytes: 1 << 30,
        logical_block_bytes: 512,
        physical_block_bytes: 4096,
        optimal_io_bytes: 1 << 16,
        transfer_max_bytes: 1 << 20,
        read_only: false,
        write_cache: true,
        rotational: false,
        trim: None,
        write_zeroes: None,
        provisioning_map: true,
    }
}

impl Exports for Shelf {
    fn list(&self) -> Vec<ExportSummary> {
        ["a", "volume-0"]
            .map(|name| ExportSummary {
                name: name.into(),
                description: "a disk".into(),
            })
            .to_vec()
    }

    fn open(&self, name: &str) -> Option<ExportInfo> {
        let name = match name {
            "" | "a" => "a",
            "volume-0" => "volume-0",
            _ => return None,
        };
        Some(ExportInfo::new(name, "a disk", &geometry()))
    }
}

/// An answer to one option of at most 64 KiB: no more than this above the backlog.
const ONE_ANSWER_MAX_BYTES: usize = 512 * 1024;

/// Everything that a server says must be readable by a client.
fn read_replies(mut rest: &[u8]) {
    while rest.len() >= OPTION_REPLY_BYTES {
        let header = OptionReplyHeader::parse(rest).expect("we wrote it");
        let end = OPTION_REPLY_BYTES + header.len_bytes as usize;
        let Some(data) = rest.get(OPTION_REPLY_BYTES..end) else {
            panic!("a reply is cut off");
        };
        match header.reply {
            ReplyType::SERVER => drop(ServerReply::parse(data).expect("we wrote it")),
            ReplyType::INFO => drop(InfoReply::parse(data).expect("we wrote it")),
            ReplyType::META_CONTEXT => drop(MetaContextReply::parse(data).expect("we wrote it")),
            ReplyType::ACK => assert!(data.is_empty()),
            _ => {
                let text = std::str::from_utf8(data).expect("errors carry text");
                assert!(text.len() <= 4096);
            }
        }
        rest = &rest[end..];
    }
    assert!(rest.is_empty(), "half a header");
}

fuzz_target!(|bytes: &[u8]| {
    // A client's parsers, for what a hostile server may say; headers are parsed when they are whole.
    if let Some(greeting) = bytes.first_chunk::<GREETING_BYTES>() {
        let _ = parse_greeting(greeting);
    }
    if let Some(header) = bytes.first_chunk::<OPTION_REPLY_BYTES>() {
        let _ = OptionReplyHeader::parse(header);
    }
    let _ = (
        ServerReply::parse(bytes),
        InfoReply::parse(bytes),
        MetaContextReply::parse(bytes),
        InfoRequest::parse(bytes),
        MetaContextRequest::parse(bytes),
    );

    let [size, drain, wire @ ..] = bytes else {
        return;
    };
    let mut out = SendQueue::new();
    let mut handshake = Handshake::new(&mut out);
    let mut input = ReceiveBuffer::new();
    parse_greeting(&out.to_vec()).expect("our greeting");
    out.clear();
    let mut negotiated_in_vain = true;
    'reads: for piece in wire.chunks(usize::from(*size).pow(2) + 1) {
        input.extend(piece);
        loop {
            let before = (input.len(), out.len());
            match handshake.handle_input(&mut input, &mut out, &Shelf) {
                Ok(Progress::Continue) => {}
                Ok(Progress::Negotiated(negotiated)) => {
                    assert!(["a", "volume-0"].contains(&negotiated.export.as_str()));
                    assert_eq!(negotiated.size_bytes, 1 << 30);
                    // EXPORT_NAME ends with an answer that has no header.
                    negotiated_in_vain = false;
                    break 'reads;
                }
                Ok(Progress::Aborted) | Err(_) => break 'reads,
            }
            assert!(out.len() <= REPLY_BACKLOG_MAX_BYTES + ONE_ANSWER_MAX_BYTES);
            if !out.is_empty() && drain % 3 != 0 {
                read_replies(&out.to_vec());
                out.clear();
                continue;
            }
            if (input.len(), out.len()) == before || out.len() >= REPLY_BACKLOG_MAX_BYTES {
                break;
            }
        }
        // What a client that does not read makes us hold.
        if out.len() >= REPLY_BACKLOG_MAX_BYTES {
            break;
        }
    }
    if negotiated_in_vain {
        let bytes = out.to_vec();
        if !bytes.is_empty() {
            read_replies(&bytes);
        }
    }
});

//! The client's side of the negotiation.

use berth_iobuf::ReceiveBuffer;
use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::ClientError;
use crate::nbd::export::ExportSummary;
use crate::nbd::handshake::ReplyMode;
use crate::nbd::wire::option::{
    BlockSizes, GREETING_BYTES, InfoReply, InfoRequest, InfoType, MetaContextReply,
    MetaContextRequest, OPTION_REPLY_BYTES, OptionHeader, OptionReplyHeader, OptionType, ReplyType,
    ServerReply, parse_greeting,
};
use crate::nbd::wire::{
    BASE_ALLOCATION, ClientFlags, HandshakeFlags, STRING_MAX_BYTES, TransmissionFlags,
};

/// Longest data of an option reply, in bytes: a name and a description with their lengths.
const REPLY_DATA_MAX_BYTES: usize = 2 * STRING_MAX_BYTES + 16;

/// Most replies to one option; a server that goes on for ever is not listened to for ever.
const REPLIES_MAX: usize = 100_000;

/// What the client would like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wishes {
    /// The best style to ask for; a server that refuses gets the next simpler one.
    pub mode: ReplyMode,
    /// Ask for `base:allocation`.
    pub base_allocation: bool,
}

impl Default for Wishes {
    fn default() -> Self {
        Self {
            mode: ReplyMode::Structured,
            base_allocation: true,
        }
    }
}

/// What the server told about an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportFacts {
    /// Canonical name, if told.
    pub name: Option<String>,
    /// Text for people, if told.
    pub description: Option<String>,
    /// Size in bytes.
    pub size_bytes: u64,
    /// What the export can do.
    pub flags: TransmissionFlags,
    /// Block sizes, if told.
    pub block_sizes: Option<BlockSizes>,
    /// The style agreed.
    pub mode: ReplyMode,
    /// Whether block status can be asked for.
    pub base_allocation: bool,
}

/// Negotiates and chooses an export.
pub(super) async fn go(
    stream: &mut UnixStream,
    input: &mut ReceiveBuffer,
    name: &str,
    wishes: Wishes,
) -> Result<ExportFacts, ClientError> {
    if name.len() > STRING_MAX_BYTES {
        return Err(ClientError::Unsendable(
            "export names are at most 4096 bytes",
        ));
    }
    greet(stream, input).await?;
    let mut mode = ReplyMode::Simple;
    for (option, style) in [
        (OptionType::EXTENDED_HEADERS, ReplyMode::Extended),
        (OptionType::STRUCTURED_REPLY, ReplyMode::Structured),
    ] {
        if mode == ReplyMode::Simple
            && wishes.mode >= style
            && ask_politely(stream, input, option, &[]).await?.is_some()
        {
            mode = style;
        }
    }
    let mut base_allocation = false;
    if wishes.base_allocation && mode != ReplyMode::Simple {
        let mut data = Vec::new();
        MetaContextRequest {
            name: name.to_owned(),
            queries: vec![BASE_ALLOCATION.to_owned()],
        }
        .emit(&mut data);
        let option = OptionType::SET_META_CONTEXT;
        for context in ask_politely(stream, input, option, &data)
            .await?
            .unwrap_or_default()
        {
            let context = MetaContextReply::parse(&context)
                .map_err(|_| ClientError::Violation("a META_CONTEXT reply is malformed"))?;
            base_allocation |= context.name == BASE_ALLOCATION;
        }
    }
    let mut data = Vec::new();
    InfoRequest {
        name: name.to_owned(),
        wants: vec![InfoType::NAME, InfoType::DESCRIPTION, InfoType::BLOCK_SIZE],
    }
    .emit(&mut data);
    let mut facts = ExportFacts {
        name: None,
        description: None,
        size_bytes: 0,
        flags: TransmissionFlags::empty(),
        block_sizes: None,
        mode,
        base_allocation,
    };
    let mut told = false;
    for info in ask(stream, input, OptionType::GO, &data).await? {
        match InfoReply::parse(&info) {
            Ok(InfoReply::Export { size_bytes, flags }) => {
                (facts.size_bytes, facts.flags) = (size_bytes, flags);
                told = true;
            }
            Ok(InfoReply::Name(name)) => facts.name = Some(name),
            Ok(InfoReply::Description(text)) => facts.description = Some(text),
            Ok(InfoReply::BlockSize(sizes)) if sizes.is_valid() => facts.block_sizes = Some(sizes),
            Ok(InfoReply::BlockSize(_)) => {
                return Err(ClientError::Violation("the block sizes are impossible"));
            }
            Ok(InfoReply::Other(_)) => {}
            Err(_) => return Err(ClientError::Violation("an INFO reply is malformed")),
        }
    }
    if !told {
        return Err(ClientError::Violation(
            "GO was agreed to without telling the size",
        ));
    }
    Ok(facts)
}

/// Lists the exports and ends the negotiation.
pub(super) async fn list(
    stream: &mut UnixStream,
    input: &mut ReceiveBuffer,
) -> Result<Vec<ExportSummary>, ClientError> {
    greet(stream, input).await?;
    let mut exports = Vec::new();
    for server in ask(stream, input, OptionType::LIST, &[]).await? {
        let server = ServerReply::parse(&server)
            .map_err(|_| ClientError::Violation("a SERVER reply is malformed"))?;
        exports.push(ExportSummary {
            name: server.name,
            description: server.description,
        });
    }
    ask(stream, input, OptionType::ABORT, &[]).await?;
    Ok(exports)
}

async fn greet(stream: &mut UnixStream, input: &mut ReceiveBuffer) -> Result<(), ClientError> {
    fill(stream, input, GREETING_BYTES).await?;
    let flags = parse_greeting(input.bytes())?;
    input.skip(GREETING_BYTES);
    if !flags.contains(HandshakeFlags::FIXED_NEWSTYLE) {
        return Err(ClientError::Violation(
            "the server does not speak fixed newstyle",
        ));
    }
    let mut answer = ClientFlags::FIXED_NEWSTYLE;
    answer.set(
        ClientFlags::NO_ZEROES,
        flags.contains(HandshakeFlags::NO_ZEROES),
    );
    stream.write_all(&answer.bits().to_be_bytes()).await?;
    Ok(())
}

/// Asks; a refusal is `None`.
async fn ask_politely(
    stream: &mut UnixStream,
    input: &mut ReceiveBuffer,
    option: OptionType,
    data: &[u8],
) -> Result<Option<Vec<Bytes>>, ClientError> {
    match ask(stream, input, option, data).await {
        Ok(replies) => Ok(Some(replies)),
        Err(ClientError::Refused { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Asks, and collects the data of all replies before the ACK.
async fn ask(
    stream: &mut UnixStream,
    input: &mut ReceiveBuffer,
    option: OptionType,
    data: &[u8],
) -> Result<Vec<Bytes>, ClientError> {
    let len_bytes = u32::try_from(data.len()).expect("our options are short");
    let header = OptionHeader { option, len_bytes };
    stream.write_all(&[&header.emit(), data].concat()).await?;
    let expected = match option {
        OptionType::LIST => ReplyType::SERVER,
        OptionType::SET_META_CONTEXT => ReplyType::META_CONTEXT,
        _ => ReplyType::INFO,
    };
    let mut replies = Vec::new();
    loop {
        fill(stream, input, OPTION_REPLY_BYTES).await?;
        let header = OptionReplyHeader::parse(input.bytes())?;
        input.skip(OPTION_REPLY_BYTES);
        let len = header.len_bytes as usize;
        if header.option != option {
            return Err(ClientError::Violation(
                "the reply belongs to another option",
            ));
        }
        if len > REPLY_DATA_MAX_BYTES || replies.len() == REPLIES_MAX {
            return Err(ClientError::Violation("the reply to an option is too long"));
        }
        fill(stream, input, len).await?;
        let data = input.take(len);
        match header.reply {
            ReplyType::ACK => return Ok(replies),
            reply if reply == expected => replies.push(data),
            reply if reply.is_error() => {
                let text = String::from_utf8_lossy(&data).into_owned();
                return Err(ClientError::Refused {
                    option,
                    reply,
                    text,
                });
            }
            _ => return Err(ClientError::Violation("an unexpected kind of reply")),
        }
    }
}

/// Reads until `len` bytes are there.
async fn fill(
    stream: &mut UnixStream,
    input: &mut ReceiveBuffer,
    len: usize,
) -> Result<(), ClientError> {
    while input.len() < len {
        if stream.read_buf(input.room()).await? == 0 {
            return Err(ClientError::Closed);
        }
    }
    Ok(())
}

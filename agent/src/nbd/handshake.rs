//! The server's side of the negotiation (NBD `proto.md`, Fixed newstyle negotiation), without
//! sockets.
//!
//! ```text
//! ClientFlags -> Header -> Data --+-> Header            (any option that is answered)
//!                  |              +-> done: Negotiated  (GO, EXPORT_NAME)
//!                  |              +-> done: Aborted     (ABORT)
//!                  +-> Drain -> Header                  (data above the cap: ERR_TOO_BIG)
//! ```
//!
//! Every option that has a reply gets exactly one final reply and its data is consumed whole, known
//! or not, so the stream never gets out of step. What cannot be answered (a wrong magic number, an
//! unknown name in EXPORT_NAME) ends the connection with an [`Error`].

use berth_iobuf::{ReceiveBuffer, SendQueue};

use super::export::{ExportInfo, Exports};
use super::wire::option::{
    self, InfoReply, InfoRequest, InfoType, MetaContextReply, MetaContextRequest, OptionError,
    OptionHeader, OptionReplyHeader, OptionType, ReplyType, ServerReply,
};
use super::wire::{
    BASE_ALLOCATION, ClientFlags, EXPORT_NAME_PADDING_BYTES, HandshakeFlags, MagicError,
    TransmissionFlags, be32,
};

/// Longest data of an option, in bytes; more is read, thrown away and answered with `ERR_TOO_BIG`.
pub const OPTION_DATA_MAX_BYTES: u32 = 64 * 1024;

/// Replies that may wait to be sent before the next option is taken, in bytes. A client that asks
/// without reading gets no more memory than this and one answer.
pub const REPLY_BACKLOG_MAX_BYTES: usize = 64 * 1024;

/// Number of `base:allocation` in block status chunks. Any number would do; not 0, so that a client
/// that mixes it up with the 0 of a LIST answer shows.
pub const BASE_ALLOCATION_ID: u32 = 1;

/// How requests and replies look after the negotiation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReplyMode {
    /// Compact requests, simple replies.
    Simple,
    /// Compact requests, structured replies.
    Structured,
    /// Extended requests, extended replies.
    Extended,
}

/// The outcome of a negotiation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Negotiated {
    /// Canonical name of the export.
    pub export: String,
    /// Header style.
    pub mode: ReplyMode,
    /// Flags that the client was told.
    pub flags: TransmissionFlags,
    /// Size that the client was told, in bytes.
    pub size_bytes: u64,
    /// Whether `base:allocation` was chosen for this export.
    pub base_allocation: bool,
    /// Whether the client asked for the block sizes, and so is bound by them.
    pub block_sizes_told: bool,
    /// Whether the padding after EXPORT_NAME was left out.
    pub no_zeroes: bool,
}

impl Negotiated {
    /// What both sides take for agreed when there is no negotiation: the kernel's client gets its
    /// settings over netlink and speaks simple replies only.
    #[must_use]
    pub fn for_kernel(export: &ExportInfo) -> Self {
        Self {
            export: export.name.clone(),
            mode: ReplyMode::Simple,
            flags: export.flags,
            size_bytes: export.size_bytes,
            base_allocation: false,
            block_sizes_told: true,
            no_zeroes: true,
        }
    }
}

/// How far the handshake is after an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Send what is queued, then bring more input (or, with input left, call again).
    Continue,
    /// Send what is queued, then serve the export; input that is left belongs to transmission.
    Negotiated(Box<Negotiated>),
    /// Send what is queued, then close: the client has ended it.
    Aborted,
}

/// Why the connection must be closed without an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The stream is not NBD, or out of step.
    #[error(transparent)]
    Magic(#[from] MagicError),
    /// The client answered the greeting with flags that were not offered.
    #[error("client flags {0:#x}; only 0x1 and 0x2 were offered")]
    ClientFlags(u32),
    /// Without fixed newstyle only EXPORT_NAME may be sent.
    #[error("{0} from a client that does not speak fixed newstyle; only EXPORT_NAME is possible")]
    NotFixedNewstyle(OptionType),
    /// EXPORT_NAME cannot carry an error, so an unknown name closes the connection.
    #[error("EXPORT_NAME asks for {0:?}, which is not exported")]
    UnknownExport(String),
    /// EXPORT_NAME carries no usable name.
    #[error("EXPORT_NAME: {0}")]
    ExportName(OptionError),
    /// EXPORT_NAME after EXTENDED_HEADERS; GO is needed then.
    #[error("EXPORT_NAME after extended headers were agreed; GO is needed")]
    ExportNameExtended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    ClientFlags,
    Header,
    Data(OptionHeader),
    Drain { header: OptionHeader, left: u32 },
}

/// The server's side of one negotiation.
#[derive(Debug)]
pub struct Handshake {
    state: State,
    fixed_newstyle: bool,
    no_zeroes: bool,
    mode: ReplyMode,
    /// The export for which `base:allocation` is chosen, as the client named it.
    context_for: Option<String>,
    scratch: Vec<u8>,
}

impl Handshake {
    /// Starts a negotiation: queues the greeting.
    #[must_use]
    pub fn new(out: &mut SendQueue) -> Self {
        out.put(&option::emit_greeting(
            HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES,
        ));
        Self {
            state: State::ClientFlags,
            fixed_newstyle: false,
            no_zeroes: false,
            mode: ReplyMode::Simple,
            context_for: None,
            scratch: Vec::new(),
        }
    }

    /// Takes what has arrived, option by option, until input runs out, the backlog of replies is
    /// full, or the negotiation is over.
    ///
    /// # Errors
    /// If the connection must be closed without an answer.
    pub fn handle_input(
        &mut self,
        input: &mut ReceiveBuffer,
        out: &mut SendQueue,
        exports: &impl Exports,
    ) -> Result<Progress, Error> {
        while out.len() < REPLY_BACKLOG_MAX_BYTES {
            match self.state {
                State::ClientFlags => {
                    if input.len() < 4 {
                        break;
                    }
                    let bits = be32(input.bytes(), 0);
                    input.skip(4);
                    self.on_client_flags(bits)?;
                }
                State::Header => {
                    if input.len() < option::OPTION_BYTES {
                        break;
                    }
                    let header = OptionHeader::parse(input.bytes())?;
                    input.skip(option::OPTION_BYTES);
                    self.on_header(header)?;
                }
                State::Drain { header, left } => {
                    let now = input.len().min(left as usize);
                    input.skip(now);
                    // `now` is at most `left`, so it fits.
                    let left = left - now as u32;
                    if left > 0 {
                        self.state = State::Drain { header, left };
                        break;
                    }
                    self.state = State::Header;
                    let text = format!(
                        "{} bytes of option data; at most {OPTION_DATA_MAX_BYTES} are taken",
                        header.len_bytes
                    );
                    reply_error(header.option, ReplyType::ERR_TOO_BIG, &text, out);
                }
                State::Data(header) => {
                    let len = header.len_bytes as usize;
                    if input.len() < len {
                        break;
                    }
                    let data = input.take(len);
                    self.state = State::Header;
                    let progress = self.on_option(header.option, &data, out, exports)?;
                    if progress != Progress::Continue {
                        return Ok(progress);
                    }
                }
            }
        }
        Ok(Progress::Continue)
    }

    fn on_client_flags(&mut self, bits: u32) -> Result<(), Error> {
        let flags = ClientFlags::from_bits(bits).ok_or(Error::ClientFlags(bits))?;
        self.fixed_newstyle = flags.contains(ClientFlags::FIXED_NEWSTYLE);
        self.no_zeroes = flags.contains(ClientFlags::NO_ZEROES);
        self.state = State::Header;
        Ok(())
    }

    fn on_header(&mut self, header: OptionHeader) -> Result<(), Error> {
        if header.option != OptionType::EXPORT_NAME {
            if !self.fixed_newstyle {
                return Err(Error::NotFixedNewstyle(header.option));
            }
        } else if self.mode == ReplyMode::Extended {
            return Err(Error::ExportNameExtended);
        } else if header.len_bytes > OPTION_DATA_MAX_BYTES {
            let error = OptionError::StringTooLong(header.len_bytes as usize);
            return Err(Error::ExportName(error));
        }
        self.state = if header.len_bytes > OPTION_DATA_MAX_BYTES {
            // A selection of contexts falls even when the request for a new one is refused.
            if header.option == OptionType::SET_META_CONTEXT {
                self.context_for = None;
            }
            State::Drain {
                header,
                left: header.len_bytes,
            }
        } else {
            State::Data(header)
        };
        Ok(())
    }

    fn on_option(
        &mut self,
        option: OptionType,
        data: &[u8],
        out: &mut SendQueue,
        exports: &impl Exports,
    ) -> Result<Progress, Error> {
        match option {
            OptionType::EXPORT_NAME => return self.on_export_name(data, out, exports),
            OptionType::ABORT => {
                reply(option, ReplyType::ACK, &[], out);
                return Ok(Progress::Aborted);
            }
            OptionType::GO | OptionType::INFO => {
                return Ok(self.on_info(option, data, out, exports));
            }
            OptionType::LIST_META_CONTEXT | OptionType::SET_META_CONTEXT => {
                self.on_meta_context(option, data, out, exports);
            }
            OptionType::LIST
            | OptionType::STRUCTURED_REPLY
            | OptionType::EXTENDED_HEADERS
            | OptionType::STARTTLS
                if !data.is_empty() =>
            {
                let text = format!("{option} takes no data, got {} bytes", data.len());
                reply_error(option, ReplyType::ERR_INVALID, &text, out);
            }
            OptionType::LIST => self.on_list(out, exports),
            OptionType::STRUCTURED_REPLY if self.mode == ReplyMode::Extended => {
                let text = "extended headers are agreed and override structured replies";
                reply_error(option, ReplyType::ERR_EXT_HEADER_REQD, text, out);
            }
            OptionType::STRUCTURED_REPLY => {
                self.mode = ReplyMode::Structured;
                reply(option, ReplyType::ACK, &[], out);
            }
            OptionType::EXTENDED_HEADERS => {
                self.mode = ReplyMode::Extended;
                reply(option, ReplyType::ACK, &[], out);
            }
            OptionType::STARTTLS => {
                let text = "no TLS here; access is guarded by the socket's mode";
                reply_error(option, ReplyType::ERR_UNSUP, text, out);
            }
            _ => {
                let text = format!("{option} is not supported");
                reply_error(option, ReplyType::ERR_UNSUP, &text, out);
            }
        }
        Ok(Progress::Continue)
    }

    fn on_export_name(
        &mut self,
        data: &[u8],
        out: &mut SendQueue,
        exports: &impl Exports,
    ) -> Result<Progress, Error> {
        let name = option::parse_string(data).map_err(Error::ExportName)?;
        let export = exports
            .open(name)
            .ok_or_else(|| Error::UnknownExport(name.to_owned()))?;
        let flags = self.flags(&export, name);
        out.put(&export.size_bytes.to_be_bytes());
        out.put(&flags.bits().to_be_bytes());
        if !self.no_zeroes {
            out.put(&[0; EXPORT_NAME_PADDING_BYTES]);
        }
        Ok(self.negotiated(&export, name, false))
    }

    fn on_info(
        &mut self,
        option: OptionType,
        data: &[u8],
        out: &mut SendQueue,
        exports: &impl Exports,
    ) -> Progress {
        let request = match InfoRequest::parse(data) {
            Ok(request) => request,
            Err(error) => {
                reply_error(option, ReplyType::ERR_INVALID, &error.to_string(), out);
                return Progress::Continue;
            }
        };
        let Some(export) = exports.open(&request.name) else {
            reply_unknown(option, &request.name, out);
            return Progress::Continue;
        };
        let export_info = InfoReply::Export {
            size_bytes: export.size_bytes,
            flags: self.flags(&export, &request.name),
        };
        self.reply_info(option, &export_info, out);
        // Asked for twice is answered once; unknown requests are ignored.
        if request.wants.contains(&InfoType::NAME) {
            self.reply_info(option, &InfoReply::Name(export.name.clone()), out);
        }
        if request.wants.contains(&InfoType::DESCRIPTION) {
            let info = InfoReply::Description(export.description.clone());
            self.reply_info(option, &info, out);
        }
        let block_sizes_told = request.wants.contains(&InfoType::BLOCK_SIZE);
        if block_sizes_told {
            self.reply_info(option, &InfoReply::BlockSize(export.block_sizes), out);
        }
        reply(option, ReplyType::ACK, &[], out);
        if option == OptionType::GO {
            self.negotiated(&export, &request.name, block_sizes_told)
        } else {
            Progress::Continue
        }
    }

    fn on_list(&mut self, out: &mut SendQueue, exports: &impl Exports) {
        for export in exports.list() {
            self.scratch.clear();
            let server = ServerReply {
                name: export.name,
                description: export.description,
            };
            server.emit(&mut self.scratch);
            reply(OptionType::LIST, ReplyType::SERVER, &self.scratch, out);
        }
        reply(OptionType::LIST, ReplyType::ACK, &[], out);
    }

    /// `proto.md`, Metadata querying. A LIST may ask at any time; a SET replaces the earlier
    /// selection even when it fails.
    fn on_meta_context(
        &mut self,
        option: OptionType,
        data: &[u8],
        out: &mut SendQueue,
        exports: &impl Exports,
    ) {
        let set = option == OptionType::SET_META_CONTEXT;
        if set {
            self.context_for = None;
        }
        let request = match MetaContextRequest::parse(data) {
            Ok(request) => request,
            Err(error) => {
                reply_error(option, ReplyType::ERR_INVALID, &error.to_string(), out);
                return;
            }
        };
        if set && self.mode == ReplyMode::Simple {
            let text = "structured replies or extended headers must be agreed first";
            reply_error(option, ReplyType::ERR_INVALID, text, out);
            return;
        }
        if exports.open(&request.name).is_none() {
            reply_unknown(option, &request.name, out);
            return;
        }
        let selected = if set {
            request.queries.iter().any(|query| query == BASE_ALLOCATION)
        } else {
            request.queries.is_empty()
                || (request.queries.iter()).any(|q| q == BASE_ALLOCATION || q == "base:")
        };
        if selected {
            self.scratch.clear();
            let context = MetaContextReply {
                id: if set { BASE_ALLOCATION_ID } else { 0 },
                name: BASE_ALLOCATION.to_owned(),
            };
            context.emit(&mut self.scratch);
            reply(option, ReplyType::META_CONTEXT, &self.scratch, out);
        }
        reply(option, ReplyType::ACK, &[], out);
        if set && selected {
            self.context_for = Some(request.name);
        }
    }

    fn flags(&self, export: &ExportInfo, asked_name: &str) -> TransmissionFlags {
        let mut flags = export.flags;
        flags.set(TransmissionFlags::SEND_DF, self.mode != ReplyMode::Simple);
        flags.set(
            TransmissionFlags::BLOCK_STATUS_PAYLOAD,
            self.mode == ReplyMode::Extended && self.has_context(asked_name),
        );
        flags
    }

    fn has_context(&self, asked_name: &str) -> bool {
        self.context_for.as_deref() == Some(asked_name)
    }

    fn negotiated(&self, export: &ExportInfo, asked_name: &str, told: bool) -> Progress {
        Progress::Negotiated(Box::new(Negotiated {
            export: export.name.clone(),
            mode: self.mode,
            flags: self.flags(export, asked_name),
            size_bytes: export.size_bytes,
            base_allocation: self.has_context(asked_name),
            block_sizes_told: told,
            no_zeroes: self.no_zeroes,
        }))
    }

    fn reply_info(&mut self, option: OptionType, info: &InfoReply, out: &mut SendQueue) {
        self.scratch.clear();
        info.emit(&mut self.scratch);
        reply(option, ReplyType::INFO, &self.scratch, out);
    }
}

fn reply(option: OptionType, reply: ReplyType, data: &[u8], out: &mut SendQueue) {
    let header = OptionReplyHeader {
        option,
        reply,
        len_bytes: u32::try_from(data.len()).expect("replies are made of bounded strings"),
    };
    out.put(&header.emit());
    out.put(data);
}

fn reply_error(option: OptionType, error: ReplyType, text: &str, out: &mut SendQueue) {
    reply(option, error, text.as_bytes(), out);
}

fn reply_unknown(option: OptionType, name: &str, out: &mut SendQueue) {
    let mut shown: String = name.chars().take(64).collect();
    if shown.len() < name.len() {
        shown.push('…');
    }
    let text = format!("there is no export {shown:?}");
    reply_error(option, ReplyType::ERR_UNKNOWN, &text, out);
}

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;

//! Every PDU of RFC 7143 section 11, in both directions.
//!
//! ```text
//! ReceiveBuffer -> Decoder (length limits, digests) -> Frame -> Pdu::parse -> Pdu
//! Pdu -> emit -> SendQueue (header and digests inline, data by reference)
//! ```
//!
//! `parse` refuses what the RFC calls a format error, ignores reserved fields, and takes what targets
//! in the field are known to send (noted at each PDU). It never allocates for PDUs without additional
//! headers. Each struct has its own `parse` and `emit`; [`Pdu`] only finds the right one.
//!
//! Left out: vendor-specific opcodes (refused), obsolete markers.

// Every `parse` takes its frame by value: those with data need no reference count then.
#![allow(clippy::needless_pass_by_value)]

mod async_msg;
mod bhs;
mod data;
mod digest;
mod frame;
mod login;
mod logout;
mod nop;
mod r2t;
mod reject;
#[cfg(test)]
mod roundtrip;
mod scsi;
mod snack;
mod task_mgmt;
#[cfg(test)]
mod testing;
mod text;

use berth_iobuf::SendQueue;

pub use async_msg::AsyncMessage;
pub use bhs::{AHS_LEN_MAX_BYTES, BHS_LEN, Bhs, DATA_LEN_MAX_BYTES, Opcode};
pub use data::{DataIn, DataOut};
pub use digest::{Crc32c, DIGEST_LEN, Digests, crc32c};
pub use frame::{Counters, Decoder, Frame, LOGIN_DATA_LEN_MAX_BYTES};
pub use login::{LoginRequest, LoginResponse, Stage};
pub use logout::{LogoutRequest, LogoutResponse};
pub use nop::{NopIn, NopOut};
pub use r2t::R2t;
pub use reject::Reject;
pub use scsi::{Residual, ScsiCommand, ScsiResponse, TaskAttribute, sense_data};
pub use snack::Snack;
pub use task_mgmt::{TaskManagementRequest, TaskManagementResponse};
pub use text::{TextRequest, TextResponse};

use crate::error::Error;

macro_rules! pdus {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Any PDU.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Pdu {
            $($(#[$doc])* $name($name),)*
        }

        impl Pdu {
            /// Interprets a frame.
            ///
            /// # Errors
            /// [`Error::Malformed`] when the opcode is not known or the PDU has a format error.
            pub fn parse(frame: Frame) -> Result<Self, Error> {
                match frame.bhs.opcode() {
                    $(Some(Opcode::$name) => $name::parse(frame).map(Self::$name),)*
                    None => Err(Error::malformed(
                        "PDU",
                        format!(
                            "opcode {:#04x} is not one of RFC 7143 11.2.1.2",
                            frame.bhs.opcode_byte()
                        ),
                    )),
                }
            }

            /// Appends the PDU to `out`.
            ///
            /// # Panics
            /// If the data is longer than 16 MiB - 1.
            pub fn emit(&self, out: &mut SendQueue, digests: Digests) {
                match self {
                    $(Self::$name(pdu) => pdu.emit(out, digests),)*
                }
            }

            /// What the PDU is.
            #[must_use]
            pub const fn opcode(&self) -> Opcode {
                match self {
                    $(Self::$name(_) => Opcode::$name,)*
                }
            }
        }

        $(impl From<$name> for Pdu {
            fn from(pdu: $name) -> Self {
                Self::$name(pdu)
            }
        })*
    };
}

pdus! {
    /// Ping, or answer to a ping, of the initiator.
    NopOut,
    /// A SCSI command.
    ScsiCommand,
    /// Abort, reset and the like.
    TaskManagementRequest,
    /// A step of the login.
    LoginRequest,
    /// Text keys in full feature phase.
    TextRequest,
    /// Data of a write.
    DataOut,
    /// Wish to end a connection or session.
    LogoutRequest,
    /// Wish to have something again.
    Snack,
    /// Ping, or answer to a ping, of the target.
    NopIn,
    /// End of a SCSI command.
    ScsiResponse,
    /// End of a task management function.
    TaskManagementResponse,
    /// Answer to a step of the login.
    LoginResponse,
    /// Answer to text keys.
    TextResponse,
    /// Data of a read, perhaps with the status.
    DataIn,
    /// The connection or session may end now.
    LogoutResponse,
    /// Wish for data of a write.
    R2t,
    /// News of the target.
    AsyncMessage,
    /// A PDU was refused.
    Reject,
}

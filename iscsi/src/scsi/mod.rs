//! SCSI as data: typed commands, statuses, sense and parameter data, for both roles.
//!
//! Builders and parsers stand side by side: what the initiator builds the target parses, and the other
//! way round. Nothing here does I/O or keeps state.
//!
//! Parsers are total. A reply cut short by its allocation length reads as if the missing bytes were
//! zero, which is what SPC-4 4.3.5.6 asks of an initiator; an error is given only where the missing
//! part is what the reply is for. A length field inside a reply is never believed beyond the bytes
//! that are there.

pub mod alua;
pub mod capacity;
pub mod cdb;
mod field;
pub mod inquiry;
pub mod luns;
pub mod mode;
pub mod opcodes;
pub mod provisioning;
pub mod reservation;
pub mod sense;
pub mod status;

pub use cdb::{Cdb, CdbError, Command};
pub use sense::{Code, Sense, SenseAction, SenseFormat, SenseKey, Verdict};
pub use status::ScsiStatus;

/// A reply to a SCSI command that cannot be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Fewer bytes than the fixed part of the reply.
    #[error("{what}: {got} bytes, at least {need} are needed")]
    Short {
        /// What was parsed.
        what: &'static str,
        /// Bytes that are needed at least.
        need: usize,
        /// Bytes that are there.
        got: usize,
    },
    /// A field has a value that cannot be right.
    #[error("{what}: {field} is {value:#x}, expected {expected}")]
    Value {
        /// What was parsed.
        what: &'static str,
        /// The field.
        field: &'static str,
        /// The value found.
        value: u64,
        /// What would be right.
        expected: &'static str,
    },
}

/// Fails unless `bytes` has at least `need` bytes.
fn need(what: &'static str, bytes: &[u8], need: usize) -> Result<(), ParseError> {
    if bytes.len() < need {
        return Err(ParseError::Short {
            what,
            need,
            got: bytes.len(),
        });
    }
    Ok(())
}

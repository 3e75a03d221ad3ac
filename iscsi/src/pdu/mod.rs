//! Every PDU of RFC 7143 section 11, in both directions.
//!
//! ```text
//! ReceiveBuffer -> frame::Decoder (length limits, digests) -> Frame -> Pdu::parse -> Pdu
//! Pdu -> emit -> SendQueue (header and digests inline, data by reference)
//! ```

mod fields;

pub use fields::*;

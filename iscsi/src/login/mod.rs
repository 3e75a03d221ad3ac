//! Login in both roles: text keys, their negotiation, CHAP (RFC 7143 6, 11.12, 11.13, 12, 13).
//!
//! [`InitiatorLogin`] and (feature `target`) `TargetLogin` are machines without sockets or clocks:
//! one takes responses and hands out requests, the other the reverse. Deadlines are the driver's;
//! bytes and exchanges are bounded here.
//!
//! ```text
//! keys (table), offer (Offer, Negotiated) <- negotiate (offer, answer, combine) <- initiator, target
//! text (pairs, values, segments over PDUs) -------------------------------------^   chap ---^
//! ```
//!
//! Left out on purpose: Kerberos and SRP (nobody deploys them), markers (obsolete, RFC 7143 13.25),
//! the iSER keys (RDMA only).

pub mod chap;
mod config;
mod initiator;
pub mod keys;
mod negotiate;
mod offer;
mod status;
#[cfg(feature = "target")]
mod target;
pub mod text;

pub use chap::{ChallengeLog, ChapAlgorithm, Secret};
pub use config::{
    Authentication, ChapConfig, InitiatorAuth, LoginConfig, MutualChap, Outcome, Redirect,
    SessionKind, Step,
};
pub use initiator::InitiatorLogin;
pub use keys::Key;
pub use offer::{DigestPolicy, Negotiated, Offer, TaskReporting};
pub use status::NextMove;
#[cfg(feature = "target")]
pub use target::{
    Account, Admission, Directory, Established, Identity, LoginFaults, Refusal, SessionGrant,
    TargetAuth, TargetLogin, TargetLoginConfig, TargetStep,
};

#[cfg(test)]
#[cfg(feature = "target")]
mod pair_tests;

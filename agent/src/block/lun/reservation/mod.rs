//! Fencing with SCSI-3 persistent reservations: one writer, and the unit itself sees to it.

mod key;

pub use key::{Key, NodeId};

/// What an attachment may take, and from whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// A unit that nobody else holds, or that we held ourselves before a crash.
    Free,
    /// A unit from whoever holds it: the caller asked for that, and answers for it.
    Takeover,
    /// What we held when the daemon went down. It must still be ours: if our registration is gone,
    /// somebody took the unit meanwhile and may have written to it.
    Resume,
}

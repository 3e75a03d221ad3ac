//! Planted bugs that the simulation must find: each shows that a kind of mistake does not stay hidden.
//!
//! They exist with the feature `mutations` only, and are asleep until [`plant`] wakes one on its thread.
//! Without the feature [`is_planted`] is a constant `false`, and nothing of this is left in a program.

/// A planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "`what` says it")]
pub enum Mutation {
    ResendAtOnce,
    SkipIdentityCheck,
    OvertakeGhost,
    DropFlush,
    DropFua,
    SuccessOnLoss,
    IgnoreDataSn,
    IgnoreDataDigest,
    LoseRequeued,
    AcceptShortRead,
    ForgetTombs,
    IgnoreUnclean,
    ConflictIsSuccess,
    StaleAtOnce,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::ResendAtOnce,
        Self::SkipIdentityCheck,
        Self::OvertakeGhost,
        Self::DropFlush,
        Self::DropFua,
        Self::SuccessOnLoss,
        Self::IgnoreDataSn,
        Self::IgnoreDataDigest,
        Self::LoseRequeued,
        Self::AcceptShortRead,
        Self::ForgetTombs,
        Self::IgnoreUnclean,
        Self::ConflictIsSuccess,
        Self::StaleAtOnce,
    ];

    /// The name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ResendAtOnce => "resend-at-once",
            Self::SkipIdentityCheck => "skip-identity-check",
            Self::OvertakeGhost => "overtake-ghost",
            Self::DropFlush => "drop-flush",
            Self::DropFua => "drop-fua",
            Self::SuccessOnLoss => "success-on-loss",
            Self::IgnoreDataSn => "ignore-data-sn",
            Self::IgnoreDataDigest => "ignore-data-digest",
            Self::LoseRequeued => "lose-requeued",
            Self::AcceptShortRead => "accept-short-read",
            Self::ForgetTombs => "forget-tombs",
            Self::IgnoreUnclean => "ignore-unclean",
            Self::ConflictIsSuccess => "conflict-is-success",
            Self::StaleAtOnce => "stale-at-once",
        }
    }

    /// The mistake.
    #[must_use]
    pub const fn what(self) -> &'static str {
        match self {
            Self::ResendAtOnce => {
                "a write whose fate is unknown is sent again before its session is gone"
            }
            Self::SkipIdentityCheck => "whether a unit is the one it was is not looked at",
            Self::OvertakeGhost => "overlapping writes are not kept apart",
            Self::DropFlush => "a flush is answered without SYNCHRONIZE CACHE",
            Self::DropFua => "FUA is forgotten",
            Self::SuccessOnLoss => "a write in flight counts as done when its session is lost",
            Self::IgnoreDataSn => "gaps in the numbers of Data-In PDUs are not noticed",
            Self::IgnoreDataDigest => "wrong data digests are not noticed",
            Self::LoseRequeued => "a command of a lost session is forgotten now and then",
            Self::AcceptShortRead => "a read is answered although data is missing",
            Self::ForgetTombs => {
                "a write that was failed while it may still come holds back nothing"
            }
            Self::IgnoreUnclean => {
                "after a crash writes do not wait for the old sessions to be gone"
            }
            Self::ConflictIsSuccess => "RESERVATION CONFLICT counts as success",
            Self::StaleAtOnce => "a lost session counts as gone at once",
        }
    }

    /// The one of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }
}

#[cfg(feature = "mutations")]
mod planted {
    use super::Mutation;
    use std::cell::Cell;

    thread_local! {
        static PLANTED: Cell<Option<Mutation>> = const { Cell::new(None) };
    }

    /// Wakes one bug on this thread, or puts all to sleep.
    pub fn plant(mutation: Option<Mutation>) {
        PLANTED.set(mutation);
    }

    /// Whether this bug is awake.
    #[must_use]
    pub fn is_planted(mutation: Mutation) -> bool {
        PLANTED.get() == Some(mutation)
    }
}

#[cfg(feature = "mutations")]
pub use planted::{is_planted, plant};

/// Whether this bug is awake: never, in a build without them.
#[cfg(not(feature = "mutations"))]
#[inline(always)]
#[must_use]
pub const fn is_planted(_: Mutation) -> bool {
    false
}

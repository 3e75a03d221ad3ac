//! Fencing with SCSI-3 persistent reservations: one writer, and the unit itself sees to it.
//!
//! Every path of an attachment registers the same [`Key`]; one of them holds a reservation of the type
//! "write exclusive, registrants only" (SPC-4 5.13). Whoever is not registered can read and no more; whoever
//! takes over removes our registrations, and with them goes our right to write.
//!
//! ```text
//!   first path          every other path, and each one after its session was reinstated
//!     admit                readmit  <- key gone, or another holder -> Fenced
//!       |                     |
//!       +------- I/O ---------+---- a path is taken away: it just logs out
//!                 |
//!              release (detach)
//! ```
//!
//! A registration outlives its session, so that of a path that is down or was taken away keeps the reservation
//! ours; the last act on the unit removes all of them.
//!
//! PERSISTENT RESERVE OUT is never sent again while its outcome is unknown: after a lost session everything
//! starts with reading what is there. What is lost is not taken back by itself: a registration that is gone
//! was removed by somebody who may have written since.

mod command;
mod key;
#[cfg(test)]
mod tests;

use std::time::Duration;

use berth_iscsi::scsi::cdb::PrOutAction;

pub use command::Execute;
use command::{Failed, Status, reserve_out};
pub use key::{Key, NodeId};

/// Steps of one admission, at most; each registrant that is preempted takes one.
const STEPS_MAX: u32 = 1024;
/// Another registrant without reservation is given this time to finish what it is about: to withdraw,
/// or to take over.
const WAIT: Duration = Duration::from_millis(250);
/// Times that it is waited for.
const WAITS_MAX: u32 = 20;

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

/// The unit is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Held {
    /// Registrations outlive a loss of power (APTPL). If not, one fences us: the unit forgets that we
    /// held it, and cannot tell whether somebody else did meanwhile.
    pub persistent: bool,
    /// It was taken from somebody whose commands were not, or perhaps not, aborted along with that (the
    /// unit lacks PREEMPT AND ABORT, or an earlier attempt was cut off). They may still be carried out:
    /// before the first command of our own, CLEAR TASK SET (or else LOGICAL UNIT RESET) has to end them.
    pub must_clear_task_set: bool,
}

/// Why the unit is not ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FenceError {
    /// Others are registered or hold a reservation, and nobody asked for a takeover. Nothing of ours was
    /// left on the unit.
    #[error("another initiator holds it, with reservation key {}", list(.keys))]
    HeldBy {
        /// Their keys, the holder's first.
        keys: Vec<Key>,
    },
    /// We held it and do not any more, or were outdated from the start. Nothing may be sent.
    #[error("{0}")]
    Fenced(Fenced),
    /// The unit has no persistent reservations.
    #[error(
        "it has no persistent reservations ({command} is unknown to it); use fence \"none\", or a \
         unit that has them"
    )]
    Unsupported {
        /// The command that it does not know.
        command: &'static str,
    },
    /// The unit refuses a command that must succeed.
    #[error("{command} failed: {detail}")]
    Refused {
        /// The command.
        command: &'static str,
        /// Status and sense.
        detail: String,
    },
    /// The session was lost and with it the answer; begin again on the next one.
    #[error("{command} has no answer: the session was lost")]
    Lost {
        /// The command.
        command: &'static str,
    },
    /// Others register and preempt all the time.
    #[error("registrations on it do not come to rest; it is fought for by several nodes")]
    Unsettled,
}

/// How we were fenced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fenced {
    /// Another one took it over.
    #[error("this node was fenced: the unit was taken over with reservation key {}", list(.by))]
    TakenOver {
        /// The keys that are there now.
        by: Vec<Key>,
    },
    /// A later life of this node has it.
    #[error("this node was fenced: it attached the unit again, with reservation key {by}")]
    Outdated {
        /// The newer key.
        by: Key,
    },
    /// The unit knows nobody any more.
    #[error(
        "this node was fenced: its reservation is gone, and nobody else holds one; the unit lost it with \
         its power, or another node had it in between"
    )]
    Forgotten,
}

fn list(keys: &[Key]) -> String {
    if keys.is_empty() {
        return "unknown".to_owned();
    }
    let keys: Vec<String> = keys.iter().map(Key::to_string).collect();
    keys.join(", ")
}

impl FenceError {
    /// Whether nothing may be sent any more, ever.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Fenced(_))
    }
}

/// Makes the unit ours, on the first path that comes up; before any I/O.
///
/// # Errors
/// See [`FenceError`]. Unless the session was lost, nothing of ours is left on the unit then.
pub async fn admit(port: &impl Execute, key: Key, claim: Claim) -> Result<Held, FenceError> {
    check_claim(&Status::read(port).await?, key, claim)?;
    let persistent = register(port, key, PrOutAction::RegisterAndIgnoreExistingKey)
        .await
        .map_err(|failed| failed.of(REGISTER))?;
    match settle(port, key, claim).await {
        Ok(aborted) => Ok(Held {
            persistent,
            must_clear_task_set: claim == Claim::Takeover && !aborted,
        }),
        Err(error @ FenceError::Lost { .. }) => Err(error),
        Err(error) => {
            withdraw(port, key).await?;
            Err(error)
        }
    }
}

/// Registers a further path, or one whose session was reinstated; before any I/O over it. Takes nothing
/// over: the unit must be ours already.
///
/// # Errors
/// [`FenceError::Fenced`] when it is not ours any more; see [`FenceError`] for the rest.
pub async fn readmit(port: &impl Execute, key: Key) -> Result<(), FenceError> {
    check_held(&Status::read(port).await?, key)?;
    // Succeeds only on a nexus that is registered with this key: whoever was preempted meanwhile is not.
    match register(port, key, PrOutAction::Register).await {
        Ok(_) => {}
        Err(Failed::Conflict) => {
            // A new path, or a target that takes a reinstated session for another nexus. Looking again
            // and registering is not one step, but looking once more afterwards shows what happened between.
            check_held(&Status::read(port).await?, key)?;
            register(port, key, PrOutAction::RegisterAndIgnoreExistingKey)
                .await
                .map_err(|failed| failed.of(REGISTER))?;
        }
        Err(failed) => return Err(failed.of(REGISTER)),
    }
    match verify(port, key).await {
        Err(error @ FenceError::Fenced(_)) => {
            // Registered behind the back of whoever took over, or after our own release: not to stay.
            withdraw(port, key).await?;
            Err(error)
        }
        other => other,
    }
}

/// Looks whether the unit is still ours.
///
/// # Errors
/// [`FenceError::Fenced`] when it is not ours any more; see [`FenceError`] for the rest.
pub async fn verify(port: &impl Execute, key: Key) -> Result<(), FenceError> {
    check_held(&Status::read(port).await?, key)
}

/// Withdraws the registration of this path, and with it the reservation if this path holds it.
async fn withdraw(port: &impl Execute, key: Key) -> Result<(), FenceError> {
    match reserve_out(port, PrOutAction::Register, key, 0, false).await {
        // Not registered with this key: there is nothing to withdraw.
        Ok(()) | Err(Failed::Conflict) => Ok(()),
        Err(failed) => Err(failed.of(REGISTER)),
    }
}

/// Gives the unit back, on one path that is registered, after the last I/O: the reservation, and the
/// registrations of all paths, also of those that are down.
///
/// # Errors
/// When the session is lost or the unit refuses.
pub async fn release(port: &impl Execute, key: Key) -> Result<(), FenceError> {
    // Only a registrant with this key can do it, so it never hits whoever took over. A newcomer that
    // registered just now finds itself gone and begins again.
    match reserve_out(port, PrOutAction::Clear, key, 0, false).await {
        Ok(()) | Err(Failed::Conflict) => Ok(()),
        Err(Failed::Refused(_)) => {
            match reserve_out(port, PrOutAction::Release, key, 0, false).await {
                Ok(()) | Err(Failed::Conflict) => withdraw(port, key).await,
                Err(failed) => Err(failed.of("PERSISTENT RESERVE OUT, RELEASE")),
            }
        }
        Err(failed) => Err(failed.of("PERSISTENT RESERVE OUT, CLEAR")),
    }
}

const REGISTER: &str = "PERSISTENT RESERVE OUT, REGISTER";
const RESERVE: &str = "PERSISTENT RESERVE OUT, RESERVE";
const PREEMPT: &str = "PERSISTENT RESERVE OUT, PREEMPT";

/// Whether the claim holds before anything is changed.
fn check_claim(status: &Status, key: Key, claim: Claim) -> Result<(), FenceError> {
    if let Some(by) = status.newer(key) {
        return Err(FenceError::Fenced(Fenced::Outdated { by }));
    }
    let foreign = status.foreign(key);
    let all_registrants = status.holder.is_some_and(|holder| holder.key.as_u64() == 0);
    match claim {
        Claim::Takeover => Ok(()),
        Claim::Resume if status.older(key).is_none() && !status.has(key) => {
            Err(FenceError::Fenced(fenced_by(foreign)))
        }
        Claim::Resume
            if status
                .holder
                .is_some_and(|holder| !holder.key.same_node(key)) =>
        {
            Err(FenceError::Fenced(fenced_by(foreign)))
        }
        Claim::Free | Claim::Resume if !foreign.is_empty() || all_registrants => {
            Err(FenceError::HeldBy { keys: foreign })
        }
        Claim::Free | Claim::Resume => Ok(()),
    }
}

/// Whether the unit is ours: our key is registered and holds the reservation.
fn check_held(status: &Status, key: Key) -> Result<(), FenceError> {
    if let Some(by) = status.newer(key) {
        return Err(FenceError::Fenced(Fenced::Outdated { by }));
    }
    if status.has(key) && status.is_held_by(key) {
        return Ok(());
    }
    Err(FenceError::Fenced(fenced_by(status.foreign(key))))
}

fn fenced_by(by: Vec<Key>) -> Fenced {
    if by.is_empty() {
        Fenced::Forgotten
    } else {
        Fenced::TakenOver { by }
    }
}

/// Registers, with APTPL where the unit has it; whether it has.
///
/// The bit of the last registration counts for the whole unit, so that every path asks for it.
async fn register(port: &impl Execute, key: Key, action: PrOutAction) -> Result<bool, Failed> {
    match reserve_out(port, action, key, key.as_u64(), true).await {
        Ok(()) => Ok(true),
        Err(Failed::Refused(_) | Failed::Other(_)) => {
            reserve_out(port, action, key, key.as_u64(), false).await?;
            Ok(false)
        }
        Err(failed) => Err(failed),
    }
}

/// What is to be done next so that a unit on which we are registered is ours.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Done,
    Reserve,
    /// Take the reservation from the holder of this key, or just remove its registrations.
    Preempt(u64),
    /// Somebody is about to withdraw, or to take over.
    Wait(Vec<Key>),
    HeldBy(Vec<Key>),
}

fn next_step(status: &Status, key: Key, claim: Claim) -> Step {
    let foreign = status.foreign(key);
    let Some(holder) = status.holder else {
        return Step::Reserve; // Whoever comes first has it.
    };
    if !status.is_held_by(key) {
        return if holder.key.same_node(key) || claim == Claim::Takeover {
            Step::Preempt(holder.key.as_u64())
        } else {
            Step::HeldBy(foreign)
        };
    }
    if let Some(older) = status.older(key) {
        return Step::Preempt(older.as_u64());
    }
    match foreign.first() {
        None => Step::Done,
        Some(first) if claim == Claim::Takeover => Step::Preempt(first.as_u64()),
        // Registered, so it could write.
        Some(_) => Step::Wait(foreign),
    }
}

/// From registered to sole holder. Whether somebody was preempted, and everybody's commands were aborted
/// along with that.
async fn settle(port: &impl Execute, key: Key, claim: Claim) -> Result<bool, FenceError> {
    let (mut aborted, mut not_aborted, mut waits) = (false, false, 0);
    for _ in 0..STEPS_MAX {
        let status = Status::read(port).await?;
        if let Some(by) = status.newer(key) {
            return Err(FenceError::Fenced(Fenced::Outdated { by }));
        }
        if !status.has(key) {
            // Another one was quicker with its takeover; we never held it.
            return Err(FenceError::HeldBy {
                keys: status.foreign(key),
            });
        }
        // A conflict says that things have changed since they were read: look again.
        match next_step(&status, key, claim) {
            Step::Done => return Ok(aborted && !not_aborted),
            Step::Reserve => match reserve_out(port, PrOutAction::Reserve, key, 0, false).await {
                Ok(()) | Err(Failed::Conflict) => {}
                Err(failed) => return Err(failed.of(RESERVE)),
            },
            Step::Preempt(victim) => match preempt(port, key, victim).await? {
                Some(true) => aborted = true,
                Some(false) => not_aborted = true,
                None => {}
            },
            Step::HeldBy(keys) => return Err(FenceError::HeldBy { keys }),
            Step::Wait(keys) if waits >= WAITS_MAX => return Err(FenceError::HeldBy { keys }),
            Step::Wait(_) => {
                waits += 1;
                tokio::time::sleep(WAIT).await;
            }
        }
    }
    Err(FenceError::Unsettled)
}

/// Preempts, with PREEMPT AND ABORT where the unit has it. Whether it has; `None` when there was nobody to
/// preempt any more, or we are not registered any more.
async fn preempt(port: &impl Execute, key: Key, victim: u64) -> Result<Option<bool>, FenceError> {
    match reserve_out(port, PrOutAction::PreemptAndAbort, key, victim, false).await {
        Ok(()) => return Ok(Some(true)),
        Err(Failed::Conflict) => return Ok(None),
        Err(Failed::Refused(_)) => {}
        Err(failed) => return Err(failed.of("PERSISTENT RESERVE OUT, PREEMPT AND ABORT")),
    }
    match reserve_out(port, PrOutAction::Preempt, key, victim, false).await {
        Ok(()) => Ok(Some(false)),
        Err(Failed::Conflict) => Ok(None),
        Err(failed) => Err(failed.of(PREEMPT)),
    }
}

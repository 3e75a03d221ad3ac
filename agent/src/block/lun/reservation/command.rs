//! PERSISTENT RESERVE IN and OUT as calls, one after the other.

use std::future::Future;
use std::time::Duration;

use berth_iobuf::Payload;
use berth_iscsi::scsi::cdb::{PrInAction, PrOutAction};
use berth_iscsi::scsi::reservation::{
    PR_OUT_BYTES, PrOutParameters, RegisteredKeys, ReservationReport, ReservationType,
};
use berth_iscsi::scsi::{Cdb, Code, ScsiStatus, Sense, SenseKey, Verdict};
use berth_iscsi::session::{TaskOutcome, Transfer};

use super::super::Port;
use super::{FenceError, Key};
use crate::block::Error;

/// The type of every reservation that we make: all our paths may write, others only read.
pub(super) const KIND: ReservationType = ReservationType::WriteExclusiveRegistrantsOnly;
/// Unit attentions that are cleared before a command counts as failed; a target may have one queued
/// for each reason.
const ATTENTIONS_MAX: u32 = 16;
/// Pause before a busy unit is asked again.
const PAUSE: Duration = Duration::from_millis(200);
/// Times that a busy or not yet ready unit is asked: for a minute.
const PAUSES_MAX: u32 = 300;
/// Times that keys and reservation are read until they belong together; registering takes others longer
/// than that takes us.
const READS_MAX: u32 = 64;
/// Room for the list of keys: as many as the largest arrays take registrations.
const KEYS_BYTES: u16 = 8 + 8 * 4096;
/// Room for READ RESERVATION data: there is one reservation at most.
const RESERVATION_BYTES: u16 = 8 + 16;

/// What carries single commands to one unit over one path.
pub trait Execute {
    /// Sends a command and waits for its outcome.
    ///
    /// # Errors
    /// When the session is lost; the command may have been carried out.
    fn execute(
        &self,
        cdb: Cdb,
        transfer: Transfer,
    ) -> impl Future<Output = Result<TaskOutcome, Error>>;
}

impl Execute for Port {
    fn execute(
        &self,
        cdb: Cdb,
        transfer: Transfer,
    ) -> impl Future<Output = Result<TaskOutcome, Error>> {
        Self::execute(self, cdb, transfer)
    }
}

/// How a command ended when it did not end well.
#[derive(Debug)]
pub(super) enum Failed {
    /// RESERVATION CONFLICT: for PERSISTENT RESERVE OUT, this nexus is not registered with that key, or
    /// another one holds the reservation.
    Conflict,
    /// The unit does not know the command at all (5/20/00).
    Unsupported,
    /// The unit refuses it as it is: a field of it, its length, a service action.
    Refused(Sense),
    /// Anything else that is an answer, in words.
    Other(String),
    /// There is no answer: it may have been carried out, or may still be.
    Lost,
}

impl Failed {
    /// The error for whoever cannot do without the command.
    pub(super) fn of(self, command: &'static str) -> FenceError {
        let detail = match self {
            Self::Lost => return FenceError::Lost { command },
            Self::Unsupported => return FenceError::Unsupported { command },
            Self::Conflict => ScsiStatus::RESERVATION_CONFLICT.to_string(),
            Self::Refused(sense) => sense.to_string(),
            Self::Other(detail) => detail,
        };
        FenceError::Refused { command, detail }
    }
}

/// Sends a command; again only where the answer says that it was not carried out: after unit attentions
/// and while the unit is busy or not ready yet (SAM-5 5.3, 5.14). `repeatable`: also after other errors
/// that may pass, because doing it twice does no harm.
async fn call(
    port: &impl Execute,
    cdb: Cdb,
    transfer: Transfer,
    repeatable: bool,
) -> Result<Payload, Failed> {
    let (mut attentions, mut pauses) = (0, 0);
    loop {
        let outcome = port
            .execute(cdb, transfer.clone())
            .await
            .map_err(|_| Failed::Lost)?;
        let (status, sense) = match outcome {
            TaskOutcome::Completed {
                status: 0, data, ..
            } => return Ok(data),
            TaskOutcome::Completed { status, sense, .. } => (ScsiStatus(status), sense),
            TaskOutcome::Rejected { reason } => {
                return Err(Failed::Other(format!("rejected with reason {reason:#04x}")));
            }
            TaskOutcome::Aborted { sent: false, .. } => {
                return Err(Failed::Other("not sent in time".to_owned()));
            }
            // Nobody knows how far it got.
            TaskOutcome::Aborted { .. }
            | TaskOutcome::TargetFailure { .. }
            | TaskOutcome::DataMismatch { .. } => return Err(Failed::Lost),
        };
        let again_after_pause = match status {
            ScsiStatus::RESERVATION_CONFLICT => return Err(Failed::Conflict),
            ScsiStatus::BUSY | ScsiStatus::TASK_SET_FULL => true,
            ScsiStatus::CHECK_CONDITION => {
                let sense = Sense::parse(&sense)
                    .map_err(|error| Failed::Other(format!("{status}, {error}")))?;
                match (sense.code.key, sense.classify().verdict) {
                    (SenseKey::UnitAttention, _) if attentions < ATTENTIONS_MAX => {
                        attentions += 1;
                        false
                    }
                    (SenseKey::NotReady, Verdict::Retry | Verdict::RetryFor { .. }) => true,
                    (_, Verdict::Retry | Verdict::RetryOnce(_)) if repeatable => true,
                    (SenseKey::AbortedCommand, _) => return Err(Failed::Lost),
                    _ if sense.code == Code::INVALID_OPCODE => return Err(Failed::Unsupported),
                    (SenseKey::IllegalRequest, _) => return Err(Failed::Refused(sense)),
                    _ => return Err(Failed::Other(sense.to_string())),
                }
            }
            status => return Err(Failed::Other(status.to_string())),
        };
        if again_after_pause {
            if pauses >= PAUSES_MAX {
                return Err(Failed::Other(format!("{status}, for a minute")));
            }
            pauses += 1;
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// PERSISTENT RESERVE OUT with the basic parameter list (SPC-4 6.16.3). `key` is our own, `action_key`
/// what it is about. Never sent again when its outcome is not known.
pub(super) async fn reserve_out(
    port: &impl Execute,
    action: PrOutAction,
    key: Key,
    action_key: u64,
    persistent: bool,
) -> Result<(), Failed> {
    // What ignores the key that is there wants none; registering by an unregistered nexus needs 0.
    let ignores = action == PrOutAction::RegisterAndIgnoreExistingKey;
    let parameters = PrOutParameters {
        key: if ignores { 0 } else { key.as_u64() },
        action_key,
        persist_through_power_loss: persistent,
        ..PrOutParameters::default()
    };
    let cdb = Cdb::persistent_reserve_out(action, KIND as u8, PR_OUT_BYTES);
    let data = Payload::from(parameters.emit().to_vec());
    call(port, cdb, Transfer::Write(data), false)
        .await
        .map(drop)
}

/// Who is registered, and who holds the reservation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Status {
    /// One key for each registered nexus.
    pub(super) keys: Vec<Key>,
    /// The reservation.
    pub(super) holder: Option<Holder>,
}

/// A reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Holder {
    /// Of whom; 0 when all registrants hold it.
    pub(super) key: Key,
    /// Whether it is of the type that we make.
    pub(super) is_ours_in_kind: bool,
}

impl Status {
    /// Reads both; they belong together, which equal generations show (SPC-4 5.13.5).
    pub(super) async fn read(port: &impl Execute) -> Result<Self, FenceError> {
        const READ_KEYS: &str = "PERSISTENT RESERVE IN, READ KEYS";
        const READ_RESERVATION: &str = "PERSISTENT RESERVE IN, READ RESERVATION";
        let malformed = |command| {
            move |error: berth_iscsi::scsi::ParseError| FenceError::Refused {
                command,
                detail: error.to_string(),
            }
        };
        for _ in 0..READS_MAX {
            let keys = Self::read_in(port, PrInAction::ReadKeys, KEYS_BYTES)
                .await
                .map_err(|failed| failed.of(READ_KEYS))?;
            let keys = RegisteredKeys::parse(&keys).map_err(malformed(READ_KEYS))?;
            let report = Self::read_in(port, PrInAction::ReadReservation, RESERVATION_BYTES)
                .await
                .map_err(|failed| failed.of(READ_RESERVATION))?;
            let report = ReservationReport::parse(&report).map_err(malformed(READ_RESERVATION))?;
            if keys.generation != report.generation {
                continue; // Somebody registered between the two.
            }
            return Ok(Self {
                keys: keys.keys.into_iter().map(Key::from_u64).collect(),
                holder: report.reservation.map(|(key, kind)| Holder {
                    key: Key::from_u64(key),
                    is_ours_in_kind: kind == Some(KIND),
                }),
            });
        }
        Err(FenceError::Unsettled)
    }

    async fn read_in(
        port: &impl Execute,
        action: PrInAction,
        len: u16,
    ) -> Result<bytes::Bytes, Failed> {
        let cdb = Cdb::persistent_reserve_in(action, len);
        let transfer = Transfer::Read {
            len_bytes: len.into(),
        };
        call(port, cdb, transfer, true)
            .await
            .map(|data| data.to_bytes())
    }

    /// All keys that are there, the holder's first, each once.
    fn all(&self) -> Vec<Key> {
        let mut all = Vec::with_capacity(self.keys.len() + 1);
        let holder = self.holder.map(|holder| holder.key);
        for key in holder.into_iter().chain(self.keys.iter().copied()) {
            if key.as_u64() != 0 && !all.contains(&key) {
                all.push(key);
            }
        }
        all
    }

    /// Keys of others.
    pub(super) fn foreign(&self, own: Key) -> Vec<Key> {
        let mut keys = self.all();
        keys.retain(|key| !key.same_node(own));
        keys
    }

    /// A key of our own from before.
    pub(super) fn older(&self, own: Key) -> Option<Key> {
        self.all()
            .into_iter()
            .find(|key| key.same_node(own) && key.epoch() < own.epoch())
    }

    /// A key of our own from later: this is not our newest life.
    pub(super) fn newer(&self, own: Key) -> Option<Key> {
        self.all()
            .into_iter()
            .find(|key| key.same_node(own) && key.epoch() > own.epoch())
    }

    /// Whether this very key is registered, by whichever path.
    pub(super) fn has(&self, own: Key) -> bool {
        self.keys.contains(&own)
    }

    /// Whether the reservation is ours, as we make it.
    pub(super) fn is_held_by(&self, own: Key) -> bool {
        self.holder
            .is_some_and(|holder| holder.key == own && holder.is_ours_in_kind)
    }
}

//! What becomes of a command: from status and sense to one decision.

use std::time::Duration;

use berth_iscsi::scsi::ScsiStatus;
use berth_iscsi::scsi::sense::{Failure, Refresh, Sense, Verdict};
use berth_iscsi::scsi::status::StatusAction;
use berth_iscsi::session::TaskOutcome;

use crate::block::Error;

/// Most times that one command is sent again at once.
const RETRIES_MAX: u32 = 10;
/// Longest time that a busy LUN is given before the request fails.
const BUSY_LIMIT: Duration = Duration::from_secs(60);
/// First pause after BUSY or TASK SET FULL; doubled each time.
const BACKOFF_FIRST: Duration = Duration::from_millis(8);
/// Longest pause between two tries.
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// What to do about a command that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// It succeeded.
    Done,
    /// Send it again now.
    Retry,
    /// Send it again after a pause.
    RetryAfter(Duration),
    /// The unit does not take it on this path: send it another way, or when the path was looked at.
    SwitchPath,
    /// The session is out of step: end it, and send the command on the next one.
    DropSession,
    /// The LUN does not know the command: use another, if there is one.
    Unsupported,
    /// The LUN does not take a field or this length: use less, or another command.
    TooMuch,
    /// The request fails.
    Fail(Error),
}

/// A decision, and what else the outcome said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Judgement {
    pub(super) decision: Decision,
    /// What must be read again.
    pub(super) refresh: Refresh,
    /// The unit has as many commands as it takes.
    pub(super) shrink: bool,
    /// What an operator should know, for the log.
    pub(super) notice: Option<String>,
}

impl From<Decision> for Judgement {
    fn from(decision: Decision) -> Self {
        Self {
            decision,
            refresh: Refresh::NONE,
            shrink: false,
            notice: None,
        }
    }
}

/// How often and how long the command has been failing.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct History {
    pub(super) retries: u32,
    pub(super) failing_for: Duration,
    /// How long I/O waits for a path: conditions of a path are borne as long.
    pub(super) patience: Duration,
}

impl History {
    fn again(self, give_up: Error) -> Decision {
        if self.retries < RETRIES_MAX {
            Decision::Retry
        } else {
            Decision::Fail(give_up)
        }
    }

    /// As often as it takes, the later ones with pauses between them: for what says nothing about the
    /// command itself.
    fn persist(self) -> Decision {
        if self.retries < RETRIES_MAX {
            Decision::Retry
        } else {
            self.later(BUSY_LIMIT.max(self.patience), Error::Unavailable)
        }
    }

    /// Another way, for as long as I/O waits for a path.
    fn switch(self, give_up: Error) -> Decision {
        if self.failing_for < self.patience {
            Decision::SwitchPath
        } else {
            Decision::Fail(give_up)
        }
    }

    fn later(self, limit: Duration, give_up: Error) -> Decision {
        if self.failing_for >= limit {
            return Decision::Fail(give_up);
        }
        let pause = BACKOFF_FIRST * 2u32.pow(self.retries.min(16));
        Decision::RetryAfter(pause.min(BACKOFF_MAX))
    }
}

/// Judges how a command ended.
pub(super) fn judge(outcome: &TaskOutcome, history: History) -> Judgement {
    let (status, sense) = match outcome {
        TaskOutcome::Completed { status, sense, .. } => (ScsiStatus(*status), sense),
        TaskOutcome::TargetFailure { response } => {
            return Judgement {
                notice: Some(format!(
                    "the target failed to deliver, response {response:#04x}"
                )),
                ..history.persist().into()
            };
        }
        TaskOutcome::DataMismatch {
            expected_bytes,
            moved_bytes,
            ..
        } => {
            return Judgement {
                notice: Some(format!(
                    "{moved_bytes} bytes moved of {expected_bytes} with GOOD"
                )),
                // Data that went missing on the way comes with the next try; a target that always keeps it
                // back is not believed.
                ..history.again(Error::Medium).into()
            };
        }
        // Refused before it was executed; only a digest error or lack of resources lets it pass later.
        TaskOutcome::Rejected { reason } => {
            return Judgement {
                notice: Some(format!(
                    "the target rejected the command, reason {reason:#04x}"
                )),
                ..match reason {
                    // 0Ch, waiting for a logout: the session is about to end.
                    0x02 | 0x06 | 0x0a | 0x0c => history.later(BUSY_LIMIT, Error::Unavailable),
                    _ => Decision::Fail(Error::Unavailable),
                }
                .into()
            };
        }
        // Nothing of it comes later, so it can be sent again; the session ends by itself when the target
        // does not even abort.
        TaskOutcome::Aborted { cause, .. } => {
            return Judgement {
                notice: Some(format!("the command was aborted: {cause:?}")),
                ..history
                    .later(BUSY_LIMIT.max(history.patience), Error::Unavailable)
                    .into()
            };
        }
    };
    match status.action() {
        // Only a transfer that is not whole comes here with GOOD.
        StatusAction::Success => Judgement {
            notice: Some(format!("{status} with bytes missing")),
            ..history.again(Error::Medium).into()
        },
        StatusAction::Sense => judge_sense(sense, history),
        StatusAction::Backoff => history.later(BUSY_LIMIT, Error::Unavailable).into(),
        StatusAction::BackoffAndShrink => Judgement {
            shrink: true,
            ..history.later(BUSY_LIMIT, Error::Unavailable).into()
        },
        StatusAction::Retry => history.persist().into(),
        StatusAction::Fenced => Judgement {
            refresh: Refresh::RESERVATION,
            notice: Some("another initiator holds a reservation".to_owned()),
            ..Decision::Fail(Error::Fenced).into()
        },
        StatusAction::Unknown => Judgement {
            notice: Some(format!("{status} is not a status that a standard knows")),
            ..Decision::Fail(Error::Medium).into()
        },
    }
}

fn judge_sense(sense: &[u8], history: History) -> Judgement {
    let sense = match Sense::parse(sense) {
        Ok(sense) => sense,
        Err(error) => {
            return Judgement {
                notice: Some(format!(
                    "CHECK CONDITION without usable sense data: {error}"
                )),
                ..history.again(Error::Medium).into()
            };
        }
    };
    let action = sense.classify();
    let decision = match action.verdict {
        Verdict::Success => Decision::Done,
        Verdict::Retry => history.persist(),
        Verdict::RetryFor { seconds } => {
            history.later(Duration::from_secs(seconds.into()), Error::Unavailable)
        }
        Verdict::RetryOnce(failure) if history.retries > 0 => Decision::Fail(error_of(failure)),
        Verdict::RetryOnce(_) => Decision::Retry,
        Verdict::StartUnit => history.switch(Error::Unavailable),
        Verdict::DropSession => Decision::DropSession,
        Verdict::SwitchPath(failure) => history.switch(error_of(failure)),
        Verdict::Fail(Failure::UnsupportedCommand) => Decision::Unsupported,
        Verdict::Fail(Failure::UnsupportedField) => Decision::TooMuch,
        Verdict::Fail(failure) => Decision::Fail(error_of(failure)),
    };
    let worth_a_word = action.alert || matches!(decision, Decision::Fail(_));
    Judgement {
        decision,
        refresh: action.refresh,
        shrink: false,
        notice: worth_a_word.then(|| sense.to_string()),
    }
}

fn error_of(failure: Failure) -> Error {
    match failure {
        Failure::NoSpace => Error::NoSpace,
        Failure::WriteProtected => Error::ReadOnly,
        Failure::OutOfRange => Error::OutOfRange,
        Failure::NoLogicalUnit => Error::Gone,
        Failure::NotReady => Error::Unavailable,
        Failure::UnsupportedCommand | Failure::UnsupportedField => Error::NotSupported,
        Failure::Medium
        | Failure::Hardware
        | Failure::ProtectionInformation
        | Failure::Miscompare
        | Failure::Resources
        | Failure::Protocol
        | Failure::Other => Error::Medium,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_iobuf::Payload;
    use berth_iscsi::pdu::Residual;
    use bytes::Bytes;

    fn completed(status: u8, sense: &[u8]) -> TaskOutcome {
        TaskOutcome::Completed {
            status,
            status_qualifier: 0,
            sense: Bytes::copy_from_slice(sense),
            data: Payload::new(),
            residual: Residual::None,
        }
    }

    fn sense(key: u8, asc: u8, ascq: u8) -> TaskOutcome {
        completed(
            2,
            &[
                0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc, ascq, 0, 0, 0, 0,
            ],
        )
    }

    #[test]
    fn no_bare_status_is_success_here() {
        // GOOD with every byte moved never comes here.
        for status in 0..=255u8 {
            let decision = judge(&completed(status, &[]), History::default()).decision;
            assert_ne!(decision, Decision::Done, "{status:#x}");
        }
    }

    #[test]
    fn what_did_not_move_whole_is_tried_again_and_never_believed() {
        // Found by the simulation (seed 875): one Data-In that was lost made the read fail.
        let outcome = TaskOutcome::DataMismatch {
            expected_bytes: 512,
            moved_bytes: 0,
            residual: Residual::None,
        };
        let decide = |retries| {
            judge(
                &outcome,
                History {
                    retries,
                    ..History::default()
                },
            )
            .decision
        };
        assert_eq!(decide(0), Decision::Retry);
        assert_eq!(decide(RETRIES_MAX), Decision::Fail(Error::Medium));
    }

    #[test]
    fn retries_end_by_count_or_by_time() {
        let worn = History {
            retries: RETRIES_MAX,
            failing_for: BUSY_LIMIT,
            patience: Duration::ZERO,
        };
        for outcome in [
            sense(6, 0x29, 0),
            completed(8, &[]),
            completed(0x28, &[]),
            completed(2, &[]),
        ] {
            let first = judge(&outcome, History::default()).decision;
            assert!(
                matches!(first, Decision::Retry | Decision::RetryAfter(_)),
                "{first:?}"
            );
            assert!(matches!(judge(&outcome, worn).decision, Decision::Fail(_)));
        }
    }

    #[test]
    fn sense_codes_become_the_right_errors() {
        for (key, asc, ascq, expected) in [
            (7, 0x27, 0x07, Error::NoSpace),
            (7, 0x27, 0x00, Error::ReadOnly),
            (3, 0x11, 0x00, Error::Medium),
            (5, 0x21, 0x00, Error::OutOfRange),
            (5, 0x25, 0x00, Error::Gone),
        ] {
            let decision = judge(&sense(key, asc, ascq), History::default()).decision;
            assert_eq!(
                decision,
                Decision::Fail(expected),
                "{key:x}/{asc:02x}/{ascq:02x}"
            );
        }
        let conflict = judge(&completed(0x18, &[]), History::default()).decision;
        assert_eq!(conflict, Decision::Fail(Error::Fenced));
    }

    #[test]
    fn a_unit_attention_says_what_to_read_again() {
        let judgement = judge(&sense(6, 0x2a, 0x09), History::default());
        assert_eq!(judgement.decision, Decision::Retry);
        assert!(judgement.refresh.contains(Refresh::CAPACITY));
    }
}

//! The circuit breaker: a fabric that fails again and again is left alone for a while.
//!
//! ```text
//!            failures in a row            pause is over, one call tries
//!   closed ---------------------> open ---------------------------------> trying
//!     ^                            ^                                        |  |
//!     |                            +---------------- it fails --------------+  |
//!     +------------------------------------------------ it is answered --------+
//! ```

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_api::types::BreakerState;
use tokio::time::Instant;

use super::FabricError;

/// A circuit breaker.
#[derive(Debug)]
pub struct Breaker {
    state: Mutex<State>,
    failures_max: u32,
    pause: Duration,
}

#[derive(Debug, Default)]
struct State {
    /// In a row.
    failures: u32,
    /// Nothing is sent before.
    open_until: Option<Instant>,
    /// The one call that tries is under way.
    trying: bool,
}

/// A call that was let through; its outcome must be told, and dropping it says that none was had.
#[derive(Debug)]
pub struct Pass {
    breaker: Arc<Breaker>,
    trial: bool,
}

impl Breaker {
    /// Opens after so many failures in a row, for so long.
    #[must_use]
    pub fn new(failures_max: u32, pause: Duration) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            failures_max,
            pause,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Single assignments: whole even after a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a call through.
    ///
    /// # Errors
    /// [`FabricError::Resting`] while it is open, or while another call tries.
    pub fn admit(self: &Arc<Self>) -> Result<Pass, FabricError> {
        let mut state = self.state();
        let mut trial = false;
        if let Some(until) = state.open_until {
            let left = until.saturating_duration_since(Instant::now());
            if !left.is_zero() || state.trying {
                return Err(FabricError::Resting {
                    failures: state.failures,
                    retry_in: left,
                });
            }
            state.trying = true;
            trial = true;
        }
        Ok(Pass {
            breaker: Arc::clone(self),
            trial,
        })
    }

    /// How it stands, for people and metrics.
    #[must_use]
    pub fn view(&self) -> berth_api::types::Breaker {
        let state = self.state();
        let left = state.open_until.map(|until| {
            let left = until.saturating_duration_since(Instant::now());
            u64::try_from(left.as_millis()).unwrap_or(u64::MAX)
        });
        berth_api::types::Breaker {
            state: match left {
                None => BreakerState::Closed,
                Some(_) if state.trying => BreakerState::Trying,
                Some(_) => BreakerState::Open,
            },
            failures: state.failures,
            retry_in_ms: left.filter(|_| !state.trying),
        }
    }

    /// Whether calls are refused now.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state().open_until.is_some()
    }
}

impl Pass {
    /// The fabric answered.
    pub fn answered(mut self) {
        let mut state = self.breaker.state();
        state.failures = 0;
        if state.open_until.take().is_some() {
            tracing::info!("the fabric answers again");
        }
        state.trying = false;
        drop(state);
        self.trial = false;
    }

    /// The fabric failed.
    pub fn failed(mut self) {
        let mut state = self.breaker.state();
        state.failures = state.failures.saturating_add(1);
        if state.failures >= self.breaker.failures_max {
            if state.open_until.is_none() {
                let pause = self.breaker.pause;
                tracing::warn!(
                    failures = state.failures,
                    ?pause,
                    "the fabric is left alone for a while"
                );
            }
            state.open_until = Some(Instant::now() + self.breaker.pause);
        }
        if self.trial {
            state.trying = false;
        }
        drop(state);
        self.trial = false;
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if self.trial {
            self.breaker.state().trying = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_opens_lets_one_try_and_closes() {
        let breaker = Breaker::new(3, Duration::from_secs(10));
        for _ in 0..3 {
            assert!(!breaker.is_open());
            breaker.admit().unwrap().failed();
        }
        let error = breaker.admit().unwrap_err();
        assert!(
            matches!(error, FabricError::Resting { failures: 3, .. }),
            "{error}"
        );
        let view = breaker.view();
        assert_eq!(
            (view.state, view.failures, view.retry_in_ms),
            (BreakerState::Open, 3, Some(10_000))
        );
        tokio::time::advance(Duration::from_secs(10)).await;
        let trial = breaker.admit().unwrap();
        assert_eq!(breaker.view().state, BreakerState::Trying);
        assert!(breaker.admit().is_err(), "one at a time");
        drop(trial);
        breaker.admit().unwrap().failed();
        assert!(breaker.admit().is_err(), "it rests again");
        tokio::time::advance(Duration::from_secs(10)).await;
        breaker.admit().unwrap().answered();
        assert!(!breaker.is_open());
        assert_eq!(breaker.view().state, BreakerState::Closed);
        let (a, b) = (breaker.admit().unwrap(), breaker.admit().unwrap());
        a.failed();
        b.answered();
        breaker.admit().unwrap().failed();
        assert!(!breaker.is_open(), "an answer starts the count anew");
    }
}

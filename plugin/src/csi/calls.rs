//! One call: its identifiers, its log lines, its deadline, and the lock on what it changes.
//!
//! What changes something runs on a task of its own, which goes on when the caller gives up: the lock is held until it has ended,
//! another call for the same thing is answered with ABORTED meanwhile, and the one after it finds what was done.

use std::collections::HashSet;
use std::fmt::Debug;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use berth_api::client::Client;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};
use tracing::Instrument as _;

/// What an answer needs to get to the caller before his own deadline.
const ANSWER_MARGIN: Duration = Duration::from_millis(500);
/// Longest request id that is taken over from a caller.
const REQUEST_ID_LEN_MAX: usize = 128;

/// What all calls share.
#[derive(Debug)]
pub struct Calls {
    client: Client,
    answer_within: Duration,
    running: Arc<Semaphore>,
    busy: Arc<Mutex<HashSet<String>>>,
    /// Of this process: request ids of two runs differ.
    run: u64,
    count: AtomicU64,
}

/// One call of the orchestrator.
#[derive(Debug, Clone)]
pub struct Call {
    /// The daemon, told of this call's identifiers.
    pub client: Client,
    /// When it is answered at the latest.
    pub deadline: Instant,
}

impl Call {
    /// How long it still has.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

impl Calls {
    /// Calls that reach the daemon by `client`, are answered within `answer_within` (or sooner, if the caller says so), and of which
    /// `running_max` may change something at a time.
    #[must_use]
    pub fn new(client: Client, answer_within: Duration, running_max: usize) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            client,
            answer_within,
            running: Arc::new(Semaphore::new(running_max.min(Semaphore::MAX_PERMITS))),
            busy: Arc::default(),
            run: now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or_default()),
            count: AtomicU64::new(0),
        }
    }

    /// The daemon, for what belongs to no call.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Answers a call: gives it its identifiers and says in the log what came of it.
    ///
    /// # Errors
    /// What `handle` gives.
    pub async fn answer<Q: Debug, A, F>(
        &self,
        rpc: &'static str,
        request: Request<Q>,
        handle: impl FnOnce(Call, Q) -> F,
    ) -> Result<Response<A>, Status>
    where
        F: Future<Output = Result<A, Status>>,
    {
        let (metadata, _, request) = request.into_parts();
        let id = self.request_id(&metadata);
        let span = tracing::info_span!("call", rpc, request_id = id);
        let began = Instant::now();
        async {
            // Secrets and mount flags are left out by the types themselves.
            tracing::debug!(?request, "called");
            let mut client = self.client.clone().with_request_id(&id);
            if let Some(parent) = metadata.get("traceparent").and_then(|v| v.to_str().ok()) {
                client = client.with_traceparent(parent);
            }
            let within = patience(&metadata).map_or(self.answer_within, |patience| {
                patience.min(self.answer_within)
            });
            let deadline = began + within;
            let result = handle(Call { client, deadline }, request).await;
            let elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            match &result {
                Ok(_) => tracing::info!(elapsed_ms, "answered"),
                Err(status) => {
                    tracing::warn!(elapsed_ms, code = ?status.code(), "failed: {}", status.message());
                }
            }
            result.map(Response::new)
        }
        .instrument(span)
        .await
    }

    /// Does `work` alone for `key`, on a task of its own.
    ///
    /// # Errors
    /// ABORTED while there is other work for the key, and when this takes longer than the call has: it goes on then.
    /// UNAVAILABLE when too much is under way. And what `work` gives.
    pub async fn alone<T: Send + 'static>(
        &self,
        call: &Call,
        key: String,
        work: impl Future<Output = Result<T, Status>> + Send + 'static,
    ) -> Result<T, Status> {
        let held = self.hold(key)?;
        let task = async move {
            let result = work.await;
            drop(held);
            result
        };
        let task = tokio::spawn(task.in_current_span());
        match tokio::time::timeout_at(call.deadline, task).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Status::aborted(
                "the call was cut off; repeat it, and see the log of berth-csi",
            )),
            Err(_) => Err(Status::aborted(
                "it takes longer than the caller waits, and goes on: repeat the call",
            )),
        }
    }

    fn hold(&self, key: String) -> Result<Held, Status> {
        let permit = Arc::clone(&self.running).try_acquire_owned().map_err(|_| {
            Status::unavailable("too many calls are under way (--calls-max); repeat the call")
        })?;
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if !busy.insert(key.clone()) {
            return Err(Status::aborted(format!(
                "another call for {key} is under way; repeat the call"
            )));
        }
        Ok(Held {
            key,
            busy: Arc::clone(&self.busy),
            _permit: permit,
        })
    }

    /// The caller's own if it is fit for logs, else a new one.
    fn request_id(&self, metadata: &MetadataMap) -> String {
        let given = metadata.get("x-request-id").and_then(|id| id.to_str().ok());
        let fit = |id: &&str| {
            (1..=REQUEST_ID_LEN_MAX).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic())
        };
        given.filter(fit).map_or_else(
            || {
                let count = self.count.fetch_add(1, Ordering::Relaxed);
                format!("csi-{:x}-{count:x}", self.run)
            },
            str::to_owned,
        )
    }
}

/// The right to work on something, given back when dropped.
#[derive(Debug)]
struct Held {
    key: String,
    busy: Arc<Mutex<HashSet<String>>>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.remove(&self.key);
    }
}

/// How long the caller waits (gRPC over HTTP/2, `grpc-timeout`), less what the answer needs to get there.
fn patience(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if number.is_empty() || number.len() > 8 || !number.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = number.parse().ok()?;
    let patience = match unit {
        "H" => Duration::from_secs(number.saturating_mul(3600)),
        "M" => Duration::from_secs(number.saturating_mul(60)),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    };
    Some(patience.saturating_sub(ANSWER_MARGIN.min(patience / 4)))
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    fn calls() -> Arc<Calls> {
        let client = Client::unix("/nonexistent/api.sock");
        Arc::new(Calls::new(client, Duration::from_secs(60), 2))
    }

    fn call(calls: &Calls, within: Duration) -> Call {
        Call {
            client: calls.client().clone(),
            deadline: Instant::now() + within,
        }
    }

    #[test]
    fn deadlines_of_callers() {
        let waits = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            patience(&metadata)
        };
        assert_eq!(waits("15S"), Some(Duration::from_millis(14_500)));
        assert_eq!(waits("119999988u"), None, "nine digits are too many");
        assert_eq!(waits("1000m"), Some(Duration::from_millis(750)));
        assert_eq!(waits("2M"), Some(Duration::from_millis(119_500)));
        for wrong in ["", "S", "1", "-1S", "1x", "99999999999S", "1.5S"] {
            assert_eq!(waits(wrong), None, "{wrong:?}");
        }
        assert_eq!(patience(&MetadataMap::new()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn work_goes_on_when_the_caller_is_gone() {
        let calls = calls();
        let (go, wait) = oneshot::channel();
        let (done, finished) = oneshot::channel();
        let work = async move {
            wait.await.unwrap();
            done.send(()).unwrap();
            Ok(1)
        };
        let late = call(&calls, Duration::from_secs(1));
        let status = calls.alone(&late, "v".to_owned(), work).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Aborted);
        // It has the volume until it has ended; others are not in its way.
        let again = calls.alone(&late, "v".to_owned(), async { Ok(2) }).await;
        assert_eq!(again.unwrap_err().code(), tonic::Code::Aborted);
        let soon = call(&calls, Duration::from_secs(60));
        let other = calls.alone(&soon, "w".to_owned(), async { Ok(3) }).await;
        assert_eq!(other.unwrap(), 3);
        go.send(()).unwrap();
        finished.await.unwrap();
        tokio::task::yield_now().await;
        assert_eq!(
            calls
                .alone(&soon, "v".to_owned(), async { Ok(4) })
                .await
                .unwrap(),
            4
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_under_way_is_bounded_and_panics_free_the_volume() {
        let calls = calls();
        let late = call(&calls, Duration::from_millis(10));
        for key in ["a", "b"] {
            let stuck = calls.alone(
                &late,
                key.to_owned(),
                std::future::pending::<Result<(), Status>>(),
            );
            assert_eq!(stuck.await.unwrap_err().code(), tonic::Code::Aborted);
        }
        let third = calls.alone(&late, "c".to_owned(), async { Ok(()) }).await;
        assert_eq!(third.unwrap_err().code(), tonic::Code::Unavailable);
        let calls = self::calls();
        let soon = call(&calls, Duration::from_secs(60));
        let broken: Result<(), Status> = calls
            .alone(&soon, "a".to_owned(), async { panic!("on purpose") })
            .await;
        assert_eq!(broken.unwrap_err().code(), tonic::Code::Aborted);
        calls
            .alone(&soon, "a".to_owned(), async { Ok(()) })
            .await
            .unwrap();
    }
}

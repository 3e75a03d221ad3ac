//! One call of the REST API: session, tries with pauses, deadline, breaker, metrics.
//!
//! Every request of this client may be sent again: reads; updates that set what they name; deletes; and creations, since
//! names and identifiers are ours and a second creation is refused as existing. What the refusal means is for the
//! operation to say.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderValue};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::Instant;

use super::http::{Answer, Http, Missing, Outgoing};
use super::session::{Refusal, Session};
use super::wire;
use crate::config;
use crate::fabric::breaker::Breaker;
use crate::fabric::retry::Pauses;
use crate::fabric::stats::{Outcome, Stats};
use crate::fabric::{FabricError, Op};

/// What one try came to.
pub(super) type Try<T> = Result<T, TryError>;

/// Why a try failed, and what may be done about it.
#[derive(Debug, Clone)]
pub(super) struct TryError {
    pub(super) error: FabricError,
    pub(super) next: NextTry,
}

/// What may be done about a try that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NextTry {
    /// Nothing: the answer is final.
    None,
    /// Another one, after the usual pause, or at least this one.
    After(Option<Duration>),
    /// Log in, and try again at once; not twice.
    Login,
}

impl TryError {
    pub(super) fn last(error: FabricError) -> Self {
        Self {
            error,
            next: NextTry::None,
        }
    }

    fn again(what: String, least: Option<Duration>) -> Self {
        Self {
            error: FabricError::Unavailable { what },
            next: NextTry::After(least),
        }
    }

    /// The server knows neither route nor version.
    pub(super) fn tries_next_version(&self) -> bool {
        matches!(
            self.error,
            FabricError::Refused {
                status: 400 | 404 | 405 | 410 | 501,
                ..
            }
        )
    }

    /// The same of a login: there 401 and 403 are about user and password.
    pub(super) fn of_login(self, user: &str) -> Self {
        match self.error {
            FabricError::Refused {
                status: 401 | 403,
                message,
                ..
            } => Self::last(FabricError::LoginRefused {
                user: user.to_owned(),
                message,
            }),
            _ => self,
        }
    }
}

impl From<FabricError> for TryError {
    fn from(error: FabricError) -> Self {
        Self::last(error)
    }
}

/// What is asked within a session.
#[derive(Debug)]
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    /// After the version.
    pub(super) path: &'a str,
    pub(super) query: &'a [(&'a str, String)],
    pub(super) body: Option<&'a Value>,
}

/// The REST API of a fabric.
#[derive(Debug)]
pub(super) struct Rest {
    pub(super) http: Http,
    pub(super) settings: Arc<config::Fabric>,
    pub(super) user: String,
    tenant: HeaderValue,
    login: Mutex<Login>,
    breaker: Arc<Breaker>,
    gate: Semaphore,
    pub(super) stats: Stats,
}

#[derive(Debug, Default)]
struct Login {
    session: Option<Arc<Session>>,
    refusal: Option<Refusal>,
}

impl Rest {
    pub(super) fn new(settings: &config::Fabric, driver: &str) -> Result<Self, String> {
        let url = settings.url.as_deref().ok_or("fabric.url is missing")?;
        let tenant = HeaderValue::from_str(&settings.tenant)
            .map_err(|error| format!("fabric.tenant: {error}"))?;
        Ok(Self {
            http: Http::new(settings, url, driver)?,
            user: settings.user.clone().ok_or("fabric.user is missing")?,
            tenant,
            login: Mutex::default(),
            breaker: Breaker::new(settings.breaker_failures, settings.breaker_pause.0),
            gate: Semaphore::new(settings.requests_max),
            stats: Stats::default(),
            settings: Arc::new(settings.clone()),
        })
    }

    /// How the breaker stands.
    pub(super) fn breaker(&self) -> berth_api::types::Breaker {
        self.breaker.view()
    }

    /// GET of one thing; `data` of the envelope.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        op: &Op,
        path: &str,
    ) -> Result<T, FabricError> {
        self.get_with(op, path, &[])
            .await
            .and_then(|value| wire::data(value, path).map_err(|failed: TryError| failed.error))
    }

    /// GET with a query; the whole envelope.
    pub(super) async fn get_with(
        &self,
        op: &Op,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<Value, FabricError> {
        self.call(op, Method::GET, path, query, None).await
    }

    /// PUT; what is set is ours, so the answer is not looked at.
    pub(super) async fn put(&self, op: &Op, path: &str, body: &Value) -> Result<(), FabricError> {
        self.call(op, Method::PUT, path, &[], Some(body))
            .await
            .map(drop)
    }

    /// POST.
    pub(super) async fn post(&self, op: &Op, path: &str, body: &Value) -> Result<(), FabricError> {
        self.call(op, Method::POST, path, &[], Some(body))
            .await
            .map(drop)
    }

    /// DELETE; absent is fine.
    pub(super) async fn delete(&self, op: &Op, path: &str) -> Result<(), FabricError> {
        let body = Value::Object(serde_json::Map::new());
        match self.call(op, Method::DELETE, path, &[], Some(&body)).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The session, for what differs between versions.
    pub(super) async fn session(&self, op: &Op) -> Result<Arc<Session>, FabricError> {
        self.tries(op, None).await.map(|(session, _)| session)
    }

    async fn call(
        &self,
        op: &Op,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<&Value>,
    ) -> Result<Value, FabricError> {
        let ask = Ask {
            method,
            path,
            query,
            body,
        };
        self.tries(op, Some(&ask)).await.map(|(_, value)| value)
    }

    /// One try: the session, and what is asked in it, if anything is.
    async fn attempt(&self, op: &Op, ask: Option<&Ask<'_>>) -> Try<(Arc<Session>, Value)> {
        let session = self.session_try(op).await?;
        let Some(ask) = ask else {
            return Ok((session, Value::Null));
        };
        let result = self.ask(op, &session, ask).await;
        if let Err(TryError {
            next: NextTry::Login,
            ..
        }) = &result
        {
            self.forget(&session).await;
        }
        result.map(|value| (session, value))
    }

    /// Tries until it works, is refused, or must not be tried any more.
    async fn tries(
        &self,
        op: &Op,
        ask: Option<&Ask<'_>>,
    ) -> Result<(Arc<Session>, Value), FabricError> {
        let mut pauses = Pauses::new(self.settings.retry_first.0, self.settings.retry_max.0);
        let (mut tried, mut logged_in_again) = (0, false);
        let mut last: Option<FabricError> = None;
        loop {
            let outcome = tokio::time::timeout_at(op.deadline, self.attempt(op, ask)).await;
            let Ok(outcome) = outcome else {
                let last = last.map(|error| error.to_string());
                return Err(FabricError::Deadline { last });
            };
            let TryError { error, next } = match outcome {
                Ok(done) => return Ok(done),
                Err(failed) => failed,
            };
            tried += 1;
            let pause = match next {
                NextTry::None => return Err(error),
                NextTry::Login if logged_in_again => {
                    return Err(FabricError::LoginRefused {
                        user: self.user.clone(),
                        message: "it ends every session at once".to_owned(),
                    });
                }
                NextTry::Login => {
                    logged_in_again = true;
                    Duration::ZERO
                }
                NextTry::After(_) if tried >= self.settings.attempts_max => return Err(error),
                NextTry::After(least) => pauses.next(least),
            };
            if pause >= op.left() {
                let last = Some(error.to_string());
                return Err(FabricError::Deadline { last });
            }
            let what = ask.map_or("login", |ask| ask.path);
            tracing::debug!(what, tried, ?pause, %error, request_id = op.request_id, "asking the fabric again");
            self.stats.retries.fetch_add(1, Ordering::Relaxed);
            last = Some(error);
            tokio::time::sleep(pause).await;
        }
    }

    /// The session there is, or a new one. One login at a time; whoever comes meanwhile gets the same.
    async fn session_try(&self, op: &Op) -> Try<Arc<Session>> {
        let mut login = self.login.lock().await;
        if let Some(session) = &login.session {
            return Ok(Arc::clone(session));
        }
        let Login { session, refusal } = &mut *login;
        let made = Arc::new(self.login(op, refusal).await?);
        *session = Some(Arc::clone(&made));
        Ok(made)
    }

    /// Forgets a session that has ended, unless there is a newer one.
    async fn forget(&self, ended: &Arc<Session>) {
        let mut login = self.login.lock().await;
        if login
            .session
            .as_ref()
            .is_some_and(|now| Arc::ptr_eq(now, ended))
        {
            tracing::debug!("the session with the fabric has ended");
            login.session = None;
        }
    }

    /// Asks within a session.
    pub(super) async fn ask(&self, op: &Op, session: &Session, ask: &Ask<'_>) -> Try<Value> {
        let mut headers = HeaderMap::new();
        let mut key = HeaderValue::from_str(session.key.expose())
            .expect("a key was checked to be printable when it came");
        key.set_sensitive(true);
        headers.insert("auth-token", key);
        headers.insert("tenant", self.tenant.clone());
        let path = ask.path.trim_start_matches('/');
        let path = format!("{}/{path}", session.version.as_str());
        let outgoing = Outgoing {
            method: ask.method.clone(),
            path: &path,
            query: ask.query,
            headers,
            body: ask.body,
        };
        self.exchange(op, outgoing).await
    }

    /// Sends one request and judges its answer.
    pub(super) async fn exchange(&self, op: &Op, mut outgoing: Outgoing<'_>) -> Try<Value> {
        let pass = self.breaker.admit().inspect_err(|_| {
            self.stats.rested.fetch_add(1, Ordering::Relaxed);
        })?;
        let _permit = self.gate.acquire().await;
        if let Ok(id) = HeaderValue::from_str(&op.request_id) {
            outgoing.headers.insert("x-request-id", id);
        }
        let method = method_name(&outgoing.method);
        let what = format!("{method} /{}", outgoing.path);
        let limit = self.settings.request_timeout.0.min(op.left());
        let started = Instant::now();
        self.stats.in_flight.fetch_add(1, Ordering::Relaxed);
        let in_flight = InFlight(&self.stats);
        let answer = self.http.exchange(outgoing, limit).await;
        drop(in_flight);
        let (outcome, result) = match answer {
            Ok(answer) => judge(&what, &answer),
            Err(missing) => self.judge_missing(&what, missing),
        };
        let took = started.elapsed();
        self.stats.count(method, outcome, took);
        match outcome {
            Outcome::Ok | Outcome::Unauthenticated | Outcome::Refused => pass.answered(),
            Outcome::Failed | Outcome::Malformed | Outcome::TimedOut | Outcome::Lost => {
                pass.failed();
            }
        }
        self.stats
            .resting
            .store(self.breaker.is_open().into(), Ordering::Relaxed);
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        match &result {
            Ok(_) => tracing::debug!(what, took_ms, request_id = op.request_id, "fabric"),
            Err(failed) => {
                tracing::info!(what, took_ms, error = %failed.error, request_id = op.request_id, "fabric");
            }
        }
        result
    }

    fn judge_missing(&self, what: &str, missing: Missing) -> (Outcome, Try<Value>) {
        let again = |what: String| Err(TryError::again(what, None));
        match missing {
            Missing::Lost(how) => (Outcome::Lost, again(format!("{what}: {how}"))),
            Missing::TimedOut(limit) => {
                let limit = limit.as_secs_f32();
                (
                    Outcome::TimedOut,
                    again(format!("{what}: no answer within {limit:.1} s")),
                )
            }
            Missing::Certificate(message) => {
                let error = FabricError::Certificate { message };
                (Outcome::Lost, Err(TryError::last(error)))
            }
            Missing::TooLong(most) => {
                let error = FabricError::Malformed {
                    what: what.to_owned(),
                    detail: format!("more than {most} bytes (fabric.answer_max)"),
                };
                (Outcome::Malformed, Err(TryError::last(error)))
            }
        }
    }
}

/// Counts a request under way, also one whose caller went away.
struct InFlight<'a>(&'a Stats);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::PUT => "PUT",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        _ => "OTHER",
    }
}

/// What an answer means.
fn judge(what: &str, answer: &Answer) -> (Outcome, Try<Value>) {
    let parsed: Result<Value, _> = serde_json::from_slice(&answer.body);
    match answer.status {
        200..=299 => match parsed {
            Ok(value) if value.is_object() => (Outcome::Ok, Ok(value)),
            other => {
                let detail = match other {
                    Ok(_) => "JSON that is no object".to_owned(),
                    Err(error) => format!("no JSON ({error})"),
                };
                let error = FabricError::Malformed {
                    what: what.to_owned(),
                    detail,
                };
                // The answer was cut or belongs to something in between: as good as lost.
                let next = NextTry::After(None);
                (Outcome::Malformed, Err(TryError { error, next }))
            }
        },
        status => {
            let error = wire::refusal(status, parsed.ok().as_ref());
            match status {
                401 => (
                    Outcome::Unauthenticated,
                    Err(TryError {
                        error,
                        next: NextTry::Login,
                    }),
                ),
                429 | 503 => (
                    Outcome::Failed,
                    Err(TryError::again(
                        format!("{what}: {error}"),
                        answer.retry_after,
                    )),
                ),
                500..=599 => (
                    Outcome::Failed,
                    Err(TryError::again(format!("{what}: {error}"), None)),
                ),
                400..=499 => (Outcome::Refused, Err(TryError::last(error))),
                _ => (
                    Outcome::Malformed,
                    Err(TryError::last(FabricError::Malformed {
                        what: what.to_owned(),
                        detail: format!("status {status}"),
                    })),
                ),
            }
        }
    }
}

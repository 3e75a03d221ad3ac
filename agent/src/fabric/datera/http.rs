//! One request and its answer, of bounded length and within a bounded time.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Method, Url};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::config;
use crate::fabric::tls;

/// Idle connections that are kept, at most.
const IDLE_MAX: usize = 4;
/// How long an idle connection is kept: less than a server's usual minute, so that ours is seldom the one that is cut.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// The HTTP side of a fabric.
#[derive(Debug)]
pub(super) struct Http {
    client: reqwest::Client,
    base: Url,
    answer_max: usize,
}

/// A request.
#[derive(Debug)]
pub(super) struct Outgoing<'a> {
    pub(super) method: Method,
    /// With the version and without the first slash, as `v2.2/login`.
    pub(super) path: &'a str,
    pub(super) query: &'a [(&'a str, String)],
    pub(super) headers: HeaderMap,
    pub(super) body: Option<&'a Value>,
}

/// An answer, whatever its status.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Bytes,
    pub(super) retry_after: Option<Duration>,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Missing {
    /// No connection, or it broke.
    Lost(String),
    /// Its certificate is not trusted.
    Certificate(String),
    /// It did not come in time.
    TimedOut(Duration),
    /// It was longer than it may be.
    TooLong(usize),
}

impl Http {
    /// As the configuration says; `url` and `driver` (who we are) were checked.
    pub(super) fn new(settings: &config::Fabric, url: &str, driver: &str) -> Result<Self, String> {
        let mut base = Url::parse(url).map_err(|error| format!("fabric.url: {error}"))?;
        base.set_path("/");
        let mut headers = HeaderMap::new();
        let driver = HeaderValue::from_str(driver).map_err(|error| error.to_string())?;
        headers.insert("datera-driver", driver);
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::client_config(settings)?)
            .default_headers(headers)
            .connect_timeout(settings.connect_timeout.0)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_MAX)
            .redirect(reqwest::redirect::Policy::none())
            // Whether a request may be sent twice is decided one layer up.
            .retry(reqwest::retry::never())
            // A fabric is on the management network; a proxy would see the password.
            .no_proxy()
            .build()
            .map_err(|error| format!("cannot make an HTTP client: {error}"))?;
        Ok(Self {
            client,
            base,
            answer_max: usize::try_from(settings.answer_max.0).unwrap_or(usize::MAX),
        })
    }

    /// Sends a request and takes its answer, all within `limit`.
    pub(super) async fn exchange(
        &self,
        outgoing: Outgoing<'_>,
        limit: Duration,
    ) -> Result<Answer, Missing> {
        match tokio::time::timeout(limit, self.exchange_unbounded(outgoing)).await {
            Ok(result) => result,
            Err(_) => Err(Missing::TimedOut(limit)),
        }
    }

    async fn exchange_unbounded(&self, outgoing: Outgoing<'_>) -> Result<Answer, Missing> {
        let mut url = self.base.clone();
        url.set_path(outgoing.path);
        let mut request = self
            .client
            .request(outgoing.method, url)
            .headers(outgoing.headers);
        if !outgoing.query.is_empty() {
            request = request.query(outgoing.query);
        }
        if let Some(body) = outgoing.body {
            // It may hold a password; our own copy is cleared.
            let text = Zeroizing::new(body.to_string());
            request = request
                .header("content-type", "application/json; charset=utf-8")
                .body(text.as_bytes().to_vec());
        }
        let mut response = request.send().await.map_err(|error| lost(&error))?;
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| {
            let seconds = value.to_str().ok()?.trim().parse().ok()?;
            Some(Duration::from_secs(seconds))
        });
        let status = response.status().as_u16();
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| lost(&error))? {
            if body.len() + chunk.len() > self.answer_max {
                return Err(Missing::TooLong(self.answer_max));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer {
            status,
            body: body.freeze(),
            retry_after,
        })
    }
}

fn lost(error: &reqwest::Error) -> Missing {
    if let Some(what) = tls::certificate_problem(error) {
        return Missing::Certificate(what);
    }
    // The innermost cause says what happened ("connection refused"); the others repeat the URL.
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let how = if error.is_connect() {
        "no connection"
    } else {
        "the connection broke"
    };
    Missing::Lost(format!("{how}: {cause}"))
}

//! Login: which version of the API is spoken, under which key.

use berth_api::Secret;
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::call::{Ask, Rest, Try, TryError};
use super::http::Outgoing;
use super::wire;
use crate::config::ApiVersion;
use crate::fabric::FabricError;
use crate::fabric::Op;
use crate::fabric::error::text_of;

/// A session with the fabric.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) key: Secret,
    pub(super) version: Version,
    pub(super) software: Software,
}

/// Version of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    V21,
    V22,
}

impl Version {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::V21 => "v2.1",
            Self::V22 => "v2.2",
        }
    }
}

/// Version of the fabric's software: four numbers, compared one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Software(pub(super) [u32; 4]);

impl Software {
    /// From here on there are placement policies, and templates can be overridden.
    pub(super) const PLACEMENT_POLICIES: Self = Self([3, 3, 0, 0]);

    /// Takes the numbers that there are; what follows another character does not count.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = [0; 4];
        let mut words = text.trim().split('.');
        for (at, part) in parts.iter_mut().enumerate() {
            let Some(word) = words.next() else { break };
            let digits = word
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(word.len());
            match word[..digits].parse() {
                Ok(number) => *part = number,
                Err(_) if at == 0 => return None,
                Err(_) => break,
            }
        }
        Some(Self(parts))
    }
}

impl std::fmt::Display for Software {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d] = self.0;
        write!(f, "{a}.{b}.{c}.{d}")
    }
}

/// Credentials that were refused: they are not tried again at once, since fabrics lock accounts.
#[derive(Debug)]
pub(super) struct Refusal {
    until: Instant,
    password: Secret,
    error: FabricError,
}

#[derive(Deserialize)]
struct LoginAnswer {
    #[serde(default)]
    key: String,
}

impl Rest {
    /// Logs in: version, key, version of the software.
    pub(super) async fn login(&self, op: &Op, refusal: &mut Option<Refusal>) -> Try<Session> {
        let settings = self.settings.clone();
        let password = tokio::task::spawn_blocking(move || settings.password())
            .await
            .map_err(|error| TryError::last(FabricError::Failed(error.to_string())))?
            .map_err(|message| {
                TryError::last(FabricError::LoginRefused {
                    user: self.user.clone(),
                    message: format!("fabric.password_file: {message}"),
                })
            })?;
        if let Some(refused) = refusal
            && refused.password == password
            && refused.until > Instant::now()
        {
            return Err(TryError::last(refused.error.clone()));
        }
        *refusal = None;
        let mut last = None;
        for version in self.versions(op).await? {
            match self.login_with(op, version, &password).await {
                Ok(key) => return self.open(op, version, key).await,
                // This version is not known there, or is not what it was: the next one may be.
                Err(error) if error.tries_next_version() => last = Some(error),
                Err(error) => {
                    if let FabricError::LoginRefused { .. } = &error.error {
                        *refusal = Some(Refusal {
                            until: Instant::now() + self.settings.breaker_pause.0,
                            password,
                            error: error.error.clone(),
                        });
                    }
                    return Err(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| {
            let detail = "it knows none of the versions v2.2 and v2.1".to_owned();
            TryError::last(FabricError::Malformed {
                what: "api_versions".to_owned(),
                detail,
            })
        }))
    }

    /// The versions to try, best first.
    async fn versions(&self, op: &Op) -> Try<Vec<Version>> {
        match self.settings.api_version {
            ApiVersion::V21 => return Ok(vec![Version::V21]),
            ApiVersion::V22 => return Ok(vec![Version::V22]),
            ApiVersion::Auto => {}
        }
        let both = vec![Version::V22, Version::V21];
        let outgoing = Outgoing {
            method: Method::GET,
            path: "api_versions",
            query: &[],
            headers: HeaderMap::new(),
            body: None,
        };
        let value: Value = match self.exchange(op, outgoing).await {
            Ok(value) => value,
            // Too old for the question, which says nothing about the answer.
            Err(error) if error.tries_next_version() => return Ok(both),
            Err(error) => return Err(error),
        };
        let Some(known) = value.get("api_versions").and_then(Value::as_array) else {
            return Ok(both);
        };
        let known = |version: &Version| known.iter().any(|v| v.as_str() == Some(version.as_str()));
        Ok(both.into_iter().filter(known).collect())
    }

    async fn login_with(&self, op: &Op, version: Version, password: &Secret) -> Try<Secret> {
        let mut body = json!({ "name": self.user, "password": password.expose() });
        let path = format!("{}/login", version.as_str());
        let outgoing = Outgoing {
            method: Method::PUT,
            path: &path,
            query: &[],
            headers: HeaderMap::new(),
            body: Some(&body),
        };
        let result = self.exchange(op, outgoing).await;
        wire::wipe(&mut body);
        let answer: LoginAnswer = match result {
            Ok(value) => {
                serde_json::from_value(value).unwrap_or(LoginAnswer { key: String::new() })
            }
            Err(error) => return Err(error.of_login(&self.user)),
        };
        let key = Secret::new(answer.key);
        if key.is_empty() || !key.expose().bytes().all(|b| b.is_ascii_graphic()) {
            // The fabric's own clients take it for a failed login, too.
            return Err(TryError::last(FabricError::LoginRefused {
                user: self.user.clone(),
                message: "it answers the login without a key".to_owned(),
            }));
        }
        Ok(key)
    }

    /// Asks for the software's version, which decides about some routes.
    async fn open(&self, op: &Op, version: Version, key: Secret) -> Try<Session> {
        let mut session = Session {
            key,
            version,
            software: Software([0; 4]),
        };
        let ask = Ask {
            method: Method::GET,
            path: "/system",
            query: &[],
            body: None,
        };
        let value = self.ask(op, &session, &ask).await?;
        let system: wire::System = wire::data(value, "system")?;
        let text = system.sw_version.unwrap_or_default();
        session.software = Software::parse(&text).ok_or_else(|| {
            TryError::last(FabricError::Malformed {
                what: "system".to_owned(),
                detail: format!("sw_version {:?} is no version", text_of(&text)),
            })
        })?;
        self.stats
            .logins
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        tracing::info!(
            fabric = system.name.as_deref().unwrap_or_default(), api = version.as_str(),
            software = %session.software, user = self.user, request_id = op.request_id, "logged in to the fabric"
        );
        Ok(session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_software_compare_number_by_number() {
        let parse = |text| Software::parse(text).unwrap();
        assert_eq!(parse("3.2.10.1"), Software([3, 2, 10, 1]));
        assert!(parse("3.10.0.0") > Software::PLACEMENT_POLICIES);
        assert!(parse("3.2.99.99") < Software::PLACEMENT_POLICIES);
        assert!(parse("3.3.0.0-rc1") >= Software::PLACEMENT_POLICIES);
        assert_eq!(parse("3.3"), Software::PLACEMENT_POLICIES);
        assert_eq!(Software::parse("edf"), None);
        assert_eq!(Software::parse(""), None);
        assert_eq!(Software::parse("99999999999999.1"), None);
    }
}

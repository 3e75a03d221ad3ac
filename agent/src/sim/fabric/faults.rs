//! Faults of the REST side, to rehearse what clients do then.

use std::time::Duration;

use regex::Regex;
use serde::{Deserialize, Serialize};

/// Rules at a time.
const RULES_MAX: usize = 1000;

/// What happens to requests. The first rule acts that fits and is not used up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FaultRule {
    /// Method it is for; `None`: all.
    pub method: Option<String>,
    /// Regular expression that a part of the path must fit, such as `/volumes$`; `None`: all.
    pub path: Option<String>,
    /// Fitting requests that go by before the first one that is hit.
    pub skip: u64,
    /// Requests that are hit; `None`: all.
    pub times: Option<u64>,
    /// Wait in milliseconds before anything else.
    pub delay_ms: u64,
    /// Wait in milliseconds between the deed and the answer.
    pub answer_delay_ms: u64,
    /// The request is carried out before the action; else it is not.
    pub done: bool,
    /// What becomes of the answer.
    pub action: FaultAction,
    /// Status to answer with; for [`FaultAction::Status`].
    pub status: u16,
}

/// What becomes of an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultAction {
    /// It is as it should be; for delays.
    #[default]
    Pass,
    /// An error with the rule's status, or 500.
    Status,
    /// Status 200 and bytes that are no JSON.
    Garbage,
    /// The first half of the JSON, as if it were all.
    HalfJson,
    /// The connection breaks in the middle of the body.
    Cut,
    /// The connection is closed without an answer.
    Drop,
}

impl FaultRule {
    /// A rule with an action, for all requests.
    #[must_use]
    pub fn new(action: FaultAction) -> Self {
        Self {
            action,
            ..Self::default()
        }
    }

    /// A rule that answers with a status.
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self {
            status,
            ..Self::new(FaultAction::Status)
        }
    }

    /// A rule that delays requests, which are then as they should be.
    #[must_use]
    pub fn delay(delay: Duration) -> Self {
        Self {
            delay_ms: u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
            ..Self::default()
        }
    }

    /// The same rule for a method and a path only.
    #[must_use]
    pub fn only(mut self, method: &str, path: &str) -> Self {
        self.method = Some(method.to_owned());
        self.path = Some(path.to_owned());
        self
    }

    /// The same rule for so many requests.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = Some(times);
        self
    }

    /// The same rule, with the request carried out first.
    #[must_use]
    pub fn after_doing(mut self) -> Self {
        self.done = true;
        self
    }
}

/// A rule whose path is no regular expression, or too many rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct WrongRule(String);

/// Rules, with what is left of them.
#[derive(Debug, Default)]
pub(super) struct Faults {
    rules: Vec<(FaultRule, Option<Regex>)>,
}

impl Faults {
    /// Replaces all rules.
    pub(super) fn set(&mut self, rules: Vec<FaultRule>) -> Result<(), WrongRule> {
        if rules.len() > RULES_MAX {
            return Err(WrongRule(format!("there may be {RULES_MAX} rules")));
        }
        let compile = |rule: FaultRule| {
            let path = rule.path.as_deref().map(Regex::new).transpose();
            let path = path.map_err(|error| WrongRule(error.to_string()))?;
            if rule.action == FaultAction::Status
                && !(rule.status == 0 || (200..=599).contains(&rule.status))
            {
                return Err(WrongRule(format!("{} is no status", rule.status)));
            }
            Ok((rule, path))
        };
        self.rules = rules.into_iter().map(compile).collect::<Result<_, _>>()?;
        Ok(())
    }

    /// The rules, with what is left of `skip` and `times`.
    pub(super) fn rules(&self) -> Vec<FaultRule> {
        self.rules.iter().map(|(rule, _)| rule.clone()).collect()
    }

    /// The rule that hits this request.
    pub(super) fn hit(&mut self, method: &str, path: &str) -> Option<FaultRule> {
        for (rule, pattern) in &mut self.rules {
            let fits = rule
                .method
                .as_deref()
                .is_none_or(|wanted| wanted.eq_ignore_ascii_case(method))
                && pattern
                    .as_ref()
                    .is_none_or(|pattern| pattern.is_match(path))
                && rule.times != Some(0);
            if !fits {
                continue;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
                continue;
            }
            if let Some(times) = &mut rule.times {
                *times -= 1;
            }
            return Some(rule.clone());
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_fit_skip_and_run_out() {
        let mut faults = Faults::default();
        let mut rule = FaultRule::status(503)
            .only("post", "/app_instances$")
            .times(2);
        rule.skip = 1;
        faults.set(vec![rule]).unwrap();
        let path = "/v2.2/app_instances";
        assert_eq!(faults.hit("GET", path), None);
        assert_eq!(faults.hit("POST", "/v2.2/app_instances/x"), None);
        let hits: Vec<bool> = (0..4).map(|_| faults.hit("POST", path).is_some()).collect();
        assert_eq!(hits, [false, true, true, false]);
        assert_eq!(faults.rules()[0].times, Some(0));
        let wrong = FaultRule::default().only("GET", "(");
        assert!(faults.set(vec![wrong]).is_err());
    }

    #[test]
    fn rules_are_readable_json() {
        let rule: FaultRule =
            serde_json::from_str(r#"{"path": "/login", "action": "half_json", "times": 1}"#)
                .unwrap();
        assert_eq!((rule.action, rule.times), (FaultAction::HalfJson, Some(1)));
        assert!(serde_json::from_str::<FaultRule>(r#"{"paht": "x"}"#).is_err());
    }
}

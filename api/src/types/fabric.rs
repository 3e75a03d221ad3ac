//! The storage fabric as a whole, and pages of what is on it.

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::attachment::Reason;

/// How the storage fabric is, as of now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FabricStatus {
    /// What kind of fabric it is.
    pub kind: FabricKind,
    /// Where its REST API is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Whether it answered just now. Attached volumes do not need it.
    pub reachable: bool,
    /// Why it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Its name for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Version of its software, as `3.3.0.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Version of the REST API that is spoken with it, as `v2.2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
    /// What it says of its health, as `ok`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<String>,
    /// Its space, if it tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<FabricCapacity>,
    /// Whether anything is sent to it; missing where nothing ever is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breaker: Option<Breaker>,
}

/// A kind of fabric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FabricKind {
    /// It speaks the Datera REST API.
    Datera,
    /// Volumes that the configuration declares; their array is managed elsewhere.
    Declared,
}

impl FabricKind {
    /// The word that stands for it in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Datera => "datera",
            Self::Declared => "declared",
        }
    }
}

/// Space of a fabric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FabricCapacity {
    /// All there is.
    pub total_bytes: u64,
    /// What is left.
    pub available_bytes: u64,
    /// What was promised to volumes; more than there is with thin volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provisioned_bytes: Option<u64>,
}

/// The circuit breaker of the calls to a fabric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Breaker {
    /// How it stands.
    pub state: BreakerState,
    /// Requests that failed in a row; an answer sets it to 0.
    pub failures: u32,
    /// While it is open: when one request is let through again. 0: the next one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_in_ms: Option<u64>,
}

/// How a circuit breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    /// Requests are sent.
    Closed,
    /// The fabric failed too often in a row: nothing is sent for a while.
    Open,
    /// One request is under way to see whether it answers again.
    Trying,
}

impl BreakerState {
    /// The word that stands for it in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::Trying => "trying",
        }
    }
}

/// A part of a list: the entries behind one, and how many at most.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageRequest {
    /// Only what comes behind this: `next` of the page before. What it names may be gone by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(required = false)]
    pub after: Option<String>,
    /// At most so many, from 1; nothing: all.
    #[serde(
        default,
        deserialize_with = "limit",
        skip_serializing_if = "Option::is_none"
    )]
    #[param(required = false, minimum = 1)]
    pub limit: Option<u32>,
}

fn limit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let number = text.parse().ok().filter(|number| *number > 0);
    number
        .map(Some)
        .ok_or_else(|| serde::de::Error::custom(format!("limit: {text:?} is no number from 1 on")))
}

impl PageRequest {
    /// Cuts a list, ordered by `key`, down to the page. Gives the entries, and the key of the last one if there are
    /// more behind it. `after`: the key that the page begins behind.
    pub fn cut<T, K: Ord>(
        &self,
        mut all: Vec<T>,
        after: Option<&K>,
        key: impl Fn(&T) -> K,
    ) -> (Vec<T>, Option<K>) {
        if let Some(after) = after {
            let from = all.partition_point(|entry| key(entry) <= *after);
            all.drain(..from);
        }
        let limit = self.limit.map_or(usize::MAX, |limit| limit as usize);
        if all.len() <= limit {
            return (all, None);
        }
        all.truncate(limit);
        let next = all.last().map(key);
        (all, next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_each_other_whatever_goes_meanwhile() {
        let mut all: Vec<u32> = (0..10).collect();
        let page = PageRequest {
            limit: Some(4),
            ..PageRequest::default()
        };
        let (first, next) = page.cut(all.clone(), None, |n| *n);
        assert_eq!((first, next), (vec![0, 1, 2, 3], Some(3)));
        // The entry that the next page begins behind is deleted, and one before it.
        all.retain(|n| ![1, 3].contains(n));
        let (second, next) = page.cut(all.clone(), Some(&3), |n| *n);
        assert_eq!((second, next), (vec![4, 5, 6, 7], Some(7)));
        let (third, next) = page.cut(all.clone(), Some(&7), |n| *n);
        assert_eq!((third, next), (vec![8, 9], None));
        let (none, next) = page.cut(all, Some(&9), |n| *n);
        assert_eq!((none, next), (vec![], None));
    }

    #[test]
    fn a_page_that_is_just_full_is_the_last() {
        let page = PageRequest {
            limit: Some(3),
            ..PageRequest::default()
        };
        assert_eq!(page.cut(vec![1, 2, 3], None, |n| *n), (vec![1, 2, 3], None));
    }
}

//! What a portal offers.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::attach::Auth;
use crate::name::TargetName;
use crate::portal::Portal;

/// Asks a portal for its targets (SendTargets, RFC 7143 appendix C). The body of `POST
/// /v1/discovery`; `GET` carries only the portal, since secrets have no place in a URL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiscoveryRequest {
    /// The portal to ask.
    #[schema(value_type = String, example = "192.0.2.10:3260")]
    pub portal: Portal,
    /// How to prove who we are; nothing: the portal asks for no proof.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,
    /// How long it may take, in seconds, from 1 to 120.
    #[serde(
        default = "DiscoveryRequest::default_timeout",
        deserialize_with = "timeout"
    )]
    #[schema(minimum = 1, maximum = 120, default = 15)]
    pub timeout_seconds: u32,
}

impl DiscoveryRequest {
    /// A request without authentication.
    #[must_use]
    pub fn new(portal: Portal) -> Self {
        Self {
            portal,
            auth: None,
            timeout_seconds: Self::default_timeout(),
        }
    }

    const fn default_timeout() -> u32 {
        15
    }

    /// How long it may take.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds.into())
    }
}

fn timeout<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let seconds = u32::deserialize(deserializer)?;
    if !(1..=120).contains(&seconds) {
        return Err(serde::de::Error::custom(format!(
            "{seconds} is out of range, expected seconds from 1 to 120"
        )));
    }
    Ok(seconds)
}

/// What a portal offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Discovery {
    /// The portal that was asked.
    #[schema(value_type = String)]
    pub portal: Portal,
    /// Its targets, in its order.
    pub targets: Vec<DiscoveredTarget>,
}

/// A target that a portal offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiscoveredTarget {
    /// Its name.
    #[schema(value_type = String)]
    pub target: TargetName,
    /// Where it can be reached.
    pub portals: Vec<DiscoveredPortal>,
}

/// A way to a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiscoveredPortal {
    /// Its address, as the target gave it.
    #[schema(value_type = String)]
    pub address: Portal,
    /// The portal group that it belongs to.
    pub portal_group_tag: u16,
}

//! What a simulated fabric is started with.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use berth_api::Secret;

/// Name of the administrator unless told otherwise.
pub const DEFAULT_USER: &str = "admin";
/// Their password unless told otherwise. It guards simulated data.
pub const DEFAULT_PASSWORD: &str = "password";
/// A session without requests ends after so long.
pub const SESSION_LIFETIME: Duration = Duration::from_secs(15 * 60);
/// Version that is simulated unless told otherwise: the newest behaviour.
pub const DEFAULT_SW_VERSION: SwVersion = SwVersion([3, 3, 0, 0]);
/// New objects get available after so long: clients must wait, but not for long.
pub const SETTLE: Duration = Duration::from_millis(50);
/// What a volume with limits may do at once after a rest, as time at its limit: short enough that a limit shows within a
/// second, long enough that a queue of a few commands is no rush.
pub const QOS_BURST: Duration = Duration::from_millis(100);
/// Metrics are told in points of this length.
pub const METRICS_INTERVAL: Duration = Duration::from_secs(10);
/// What the fabric says it has: far more than the machine below it, as volumes are thin.
pub const CAPACITY_BYTES: u64 = 100 << 40;

/// Options of a simulated fabric.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where everything is kept. One running fabric at a time.
    pub state_dir: PathBuf,
    /// Where HTTP is served, if at all; port 0 takes a free one.
    pub http: Option<SocketAddr>,
    /// The same for HTTPS.
    pub https: Option<SocketAddr>,
    /// The two iSCSI portals. `None`: two free addresses of the loopback network with port 3260. Clients see
    /// the addresses without a port, and take 3260.
    pub portals: Option<[SocketAddr; 2]>,
    /// Version of the product that is simulated; behaviour changes at 3.3.0.0.
    pub sw_version: SwVersion,
    /// Name that logs in.
    pub user: String,
    /// Its password.
    pub password: Secret,
    /// A session without requests ends after so long.
    pub session_lifetime: Duration,
    /// New targets and snapshots get available after so long.
    pub settle: Duration,
    /// What a volume with limits may do at once after a rest, as time at its limit.
    pub qos_burst: Duration,
    /// What the fabric says it has.
    pub capacity_bytes: u64,
    /// Metrics are told in points of this length.
    pub metrics_interval: Duration,
    /// Every request is also appended to `requests.jsonl` in the state directory.
    pub request_log: bool,
}

impl Options {
    /// HTTP and HTTPS on free ports of 127.0.0.1 and portals on free loopback addresses.
    #[must_use]
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        let free = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        Self {
            state_dir: state_dir.into(),
            http: Some(free),
            https: Some(free),
            portals: None,
            sw_version: DEFAULT_SW_VERSION,
            user: DEFAULT_USER.to_owned(),
            password: Secret::new(DEFAULT_PASSWORD.to_owned()),
            session_lifetime: SESSION_LIFETIME,
            settle: SETTLE,
            qos_burst: QOS_BURST,
            capacity_bytes: CAPACITY_BYTES,
            metrics_interval: METRICS_INTERVAL,
            request_log: false,
        }
    }
}

/// A version of the product: four numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SwVersion(pub [u16; 4]);

impl SwVersion {
    /// From here on there are placement policies, overrides of templates and `int_ecosystem_data`.
    pub const SWITCH: Self = Self([3, 3, 0, 0]);
}

impl fmt::Display for SwVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d] = self.0;
        write!(f, "{a}.{b}.{c}.{d}")
    }
}

/// Text that is no version of the product.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a version of four numbers, such as 3.3.0.0")]
pub struct WrongVersion(String);

impl FromStr for SwVersion {
    type Err = WrongVersion;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<u16> = text
            .split('.')
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map_err(|_| WrongVersion(text.to_owned()))?;
        let parts = parts
            .try_into()
            .map_err(|_| WrongVersion(text.to_owned()))?;
        Ok(Self(parts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_have_four_numbers() {
        let version: SwVersion = "3.2.9.10".parse().unwrap();
        assert_eq!(version.to_string(), "3.2.9.10");
        assert!(version < SwVersion::SWITCH && DEFAULT_SW_VERSION >= SwVersion::SWITCH);
        for wrong in ["", "3.3", "3.3.0.0.0", "3.3.0.x", "3.3.0.70000"] {
            assert!(wrong.parse::<SwVersion>().is_err(), "{wrong}");
        }
    }
}

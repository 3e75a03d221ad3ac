//! The configuration of this node: a file that need not exist.

use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_api::types::Fence;
use serde::{Deserialize, Deserializer};

use crate::filesystem::FsType;

/// Where it is, unless `BERTH_FLEXVOLUME_CONFIG` says otherwise.
pub const CONFIG_FILE: &str = "/etc/berth/flexvolume.toml";
/// Longest time of a call, in seconds: kubelet gives up the pod after two minutes and tries again.
const DEADLINE_SECONDS_MAX: u64 = 110;

/// The configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where berthd listens.
    pub socket: PathBuf,
    /// Where it is written down which volume is mounted where. Nothing in it outlives the node's start.
    pub state_dir: PathBuf,
    /// `syslog`, `off`, or the path of a file.
    pub log: Log,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub log_level: Level,
    /// How long a call may take, in seconds, from 5 to 110.
    #[serde(deserialize_with = "deadline")]
    pub deadline_seconds: u64,
    /// How long berthd is tried for while nobody answers, as during its restart, in seconds.
    pub connect_retry_seconds: u64,
    /// How long a device has to show its new size after a volume grew, in seconds.
    pub resize_wait_seconds: u64,
    /// Answer to `init` that attaching and detaching are calls of their own.
    pub attach: bool,
    /// How other nodes are kept from writing.
    pub fence: Fence,
    /// Whether the fabric forgets this node when the volume is detached.
    pub revoke_on_detach: bool,
    /// The tenant that berthd works in: a volume that asks for another one is refused.
    pub tenant: String,
    /// The file system of volumes that name none.
    #[serde(deserialize_with = "fs_type")]
    pub default_fs: FsType,
    /// More mount options of every volume.
    pub mount_options: Vec<String>,
}

/// Where the log goes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Log {
    /// To the system's log.
    Syslog,
    /// Nowhere.
    Off,
    /// To the end of a file.
    File(PathBuf),
}

impl TryFrom<String> for Log {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "syslog" => Ok(Self::Syslog),
            "off" => Ok(Self::Off),
            _ if text.starts_with('/') => Ok(Self::File(PathBuf::from(text))),
            _ => Err(format!(
                "log is {text:?}, expected \"syslog\", \"off\" or the absolute path of a file"
            )),
        }
    }
}

/// From how serious on something is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names of tracing")]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl From<Level> for tracing::Level {
    fn from(level: Level) -> Self {
        match level {
            Level::Error => Self::ERROR,
            Level::Warn => Self::WARN,
            Level::Info => Self::INFO,
            Level::Debug => Self::DEBUG,
            Level::Trace => Self::TRACE,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            socket: PathBuf::from("/run/berth/api.sock"),
            // A directory of its own: berthd's is not ours to write in.
            state_dir: PathBuf::from("/run/berth-flexvolume"),
            log: Log::Syslog,
            log_level: Level::Info,
            // Below the two minutes of kubelet, with some left for what a busy node adds.
            deadline_seconds: 90,
            // A restart of berthd takes two or three.
            connect_retry_seconds: 10,
            // The daemon hears of a new size from the target, or asks within this time.
            resize_wait_seconds: 30,
            // kubelet does everything on the node: no driver, and no credentials, where the controller runs.
            attach: false,
            // Kubernetes 1.3 attaches on the new node before the old one has detached.
            fence: Fence::Reservation,
            revoke_on_detach: true,
            tenant: "/root".to_owned(),
            default_fs: FsType::Ext4,
            mount_options: Vec::new(),
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// What is in it cannot be meant.
    #[error("{}: {what}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and key.
        what: String,
    },
}

impl Config {
    /// Reads the configuration: the file that `BERTH_FLEXVOLUME_CONFIG` names, or the usual one if it is there. `BERTH_SOCKET`
    /// has the last word on where berthd is.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load() -> Result<Self, ConfigError> {
        let named = std::env::var_os("BERTH_FLEXVOLUME_CONFIG").map(PathBuf::from);
        let path = named.as_deref().unwrap_or(Path::new(CONFIG_FILE));
        let mut config = match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).map_err(|what| ConfigError::Content {
                path: path.to_owned(),
                what,
            })?,
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                Self::default()
            }
            Err(source) => {
                return Err(ConfigError::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        if let Some(socket) = std::env::var_os("BERTH_SOCKET").filter(|socket| !socket.is_empty()) {
            config.socket = PathBuf::from(socket);
        }
        Ok(config)
    }

    fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| {
                1 + text[..span.start.min(text.len())].matches('\n').count()
            });
            format!("line {line}: {}", error.message())
        })
    }

    /// How long a call may take.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        Duration::from_secs(self.deadline_seconds)
    }
}

fn deadline<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let seconds = u64::deserialize(deserializer)?;
    if (5..=DEADLINE_SECONDS_MAX).contains(&seconds) {
        return Ok(seconds);
    }
    Err(serde::de::Error::custom(format!(
        "deadline_seconds is {seconds}, expected 5 to {DEADLINE_SECONDS_MAX}: kubelet gives up after two minutes"
    )))
}

fn fs_type<'de, D: Deserializer<'de>>(deserializer: D) -> Result<FsType, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_the_defaults() {
        assert_eq!(Config::parse(""), Ok(Config::default()));
    }

    #[test]
    fn everything_can_be_said() {
        let config = Config::parse(
            "socket = '/s'\nstate_dir = '/d'\nlog = '/var/log/x'\nlog_level = 'debug'\ndeadline_seconds = 110\n\
             connect_retry_seconds = 0\nresize_wait_seconds = 1\nattach = true\nfence = 'none'\nrevoke_on_detach = false\n\
             tenant = '/root/a'\ndefault_fs = 'xfs'\nmount_options = ['noatime']\n",
        )
        .unwrap();
        assert_eq!(config.log, Log::File("/var/log/x".into()));
        assert_eq!(config.fence, Fence::None);
        assert_eq!(config.default_fs, FsType::Xfs);
        assert!(config.attach && !config.revoke_on_detach);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, says) in [
            ("\nsokket = '/s'", "sokket"),
            ("\ndeadline_seconds = 111", "5 to 110"),
            ("\ndeadline_seconds = 4", "5 to 110"),
            ("\ndefault_fs = 'ntfs'", "ntfs"),
            ("\nfence = 'moat'", "moat"),
            ("\nattach = 1", "boolean"),
            ("\nlog = 'stderr'", "absolute path"),
        ] {
            let error = Config::parse(text).unwrap_err();
            assert!(
                error.starts_with("line 2: ") && error.contains(says),
                "{error}"
            );
        }
    }
}

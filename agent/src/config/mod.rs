//! The configuration file: read and checked whole before any port opens.

mod credentials;
mod device;
mod fabric;
mod memory;
mod recovery;
mod units;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_api::Secret;
use serde::Deserialize;

pub use device::Device;
pub use fabric::{ApiVersion, DeclaredVolume, Fabric, Fingerprint};
pub use memory::{Effort, Memory};
pub use recovery::{Limit, Recovery};
pub use units::{Size, Span};

/// Where the configuration is looked for when no `--config` is given.
pub const DEFAULT_PATH: &str = "/etc/berth/berth.toml";

/// The whole configuration.
#[derive(Debug, Clone, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Facts about this node.
    pub node: Node,
    /// The local HTTP API.
    pub api: Api,
    /// The NBD server.
    pub nbd: Nbd,
    /// The iSCSI initiator.
    pub iscsi: Iscsi,
    /// The storage fabric; without it volumes are attached by target and LUN only.
    pub fabric: Option<Fabric>,
    /// Safety while memory is short.
    pub memory: Memory,
    /// Logging.
    pub log: Log,
}

/// `[node]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Node {
    /// Name of the node; default: the host name.
    pub name: Option<String>,
    /// iSCSI name of the initiator; default: made once and kept in the state directory.
    pub initiator_name: Option<String>,
    /// What must survive a restart: intents, secrets, the initiator name.
    pub state_dir: PathBuf,
    /// Sockets.
    pub runtime_dir: PathBuf,
    /// Threads that move data; each attachment lives on one of them. Default: the cores of the
    /// machine, at most 4, because one thread serves well over 100,000 requests a second.
    pub data_plane_threads: Option<usize>,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            name: None,
            initiator_name: None,
            state_dir: "/var/lib/berth".into(),
            runtime_dir: "/run/berth".into(),
            data_plane_threads: None,
        }
    }
}

/// `[api]`
#[derive(Debug, Clone, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Api {
    /// Unix socket of the API; default `RUNTIME_DIR/api.sock`.
    pub socket: Option<PathBuf>,
    /// TCP address of the API, loopback only; needs `token_file`.
    pub listen: Option<SocketAddr>,
    /// File with the bearer token that TCP clients must show. `$CREDENTIALS_DIRECTORY` at its start is
    /// where the service manager puts secrets (`LoadCredential=`).
    pub token_file: Option<PathBuf>,
}

/// `[nbd]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nbd {
    /// Unix socket of the NBD server; default `RUNTIME_DIR/nbd.sock`.
    pub socket: Option<PathBuf>,
    /// Whether attachments also become kernel devices (`/dev/nbdN`).
    pub kernel: KernelDevices,
    /// Most connections at a time (QEMU's server has the same default).
    pub connections_max: usize,
    /// A client must have finished its handshake within this time.
    pub handshake_timeout: Span,
    /// Most requests in flight of one connection; the kernel client has 128.
    pub requests_max: usize,
    /// Most bytes of requests in flight of one connection.
    pub bytes_max: Size,
    /// Kernel devices.
    pub device: Device,
}

impl Default for Nbd {
    fn default() -> Self {
        Self {
            socket: None,
            kernel: KernelDevices::Auto,
            connections_max: 100,
            handshake_timeout: Span(Duration::from_secs(10)),
            requests_max: 256,
            bytes_max: Size(64 << 20),
            device: Device::default(),
        }
    }
}

/// Whether attachments become kernel devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelDevices {
    /// Where the kernel has NBD; elsewhere the NBD socket serves alone.
    Auto,
    /// Unless an attachment wants the socket only; without NBD in the kernel attachments fail.
    Always,
    /// Never; attachments that insist on one are refused.
    Never,
}

/// `[iscsi]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Iscsi {
    /// Connect, login and bring-up of one attachment must end within this time.
    pub attach_timeout: Span,
    /// One TCP connect and login must end within this time.
    pub login_timeout: Span,
    /// A NOP-Out ping is sent after this time without anything received. The default is short, so that a path
    /// that stalls is found within one and a half times `ping_timeout`.
    pub ping_interval: Span,
    /// The connection counts as lost this long after an unanswered ping. Default 5 s, as other
    /// initiators have it; a busy link is never pinged.
    pub ping_timeout: Span,
    /// A SCSI command must be answered within this time; then it is aborted.
    pub command_timeout: Span,
    /// ABORT TASK must be answered within this time; then the LUN is reset, or the session ends.
    pub abort_timeout: Span,
    /// Whether a LUN is reset when an abort fails; off for LUNs that other nodes use too.
    pub lun_reset: bool,
    /// LOGICAL UNIT RESET must be answered within this time; then the session ends.
    pub lun_reset_timeout: Span,
    /// Whether data for a command stops when its abort is sent, which some targets like better.
    pub fast_abort: bool,
    /// Open commands are finished and the session is closed within this time on detach.
    pub logout_timeout: Span,
    /// Longest data segment that the target may send.
    pub max_recv_data_segment: Size,
    /// Longest sequence of data between two R2Ts, as offered.
    pub max_burst: Size,
    /// Most data sent without an R2T, as offered.
    pub first_burst: Size,
    /// What is done when paths are lost.
    pub recovery: Recovery,
}

impl Default for Iscsi {
    fn default() -> Self {
        Self {
            attach_timeout: Span(Duration::from_secs(60)),
            login_timeout: Span(Duration::from_secs(15)),
            ping_interval: Span(Duration::from_secs(2)),
            ping_timeout: Span(Duration::from_secs(5)),
            command_timeout: Span(Duration::from_secs(60)),
            abort_timeout: Span(Duration::from_secs(15)),
            lun_reset: true,
            lun_reset_timeout: Span(Duration::from_secs(30)),
            fast_abort: false,
            logout_timeout: Span(Duration::from_secs(15)),
            max_recv_data_segment: Size(256 << 10),
            max_burst: Size(16_776_192),
            first_burst: Size(256 << 10),
            recovery: Recovery::default(),
        }
    }
}

/// `[log]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,berth_iscsi=debug`.
    pub filter: String,
    /// `text` for people, `json` for programs.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            filter: "info".to_owned(),
            format: LogFormat::Text,
        }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One line of text.
    Text,
    /// One JSON object per line.
    Json,
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML, or has an unknown key or a wrong value; the message names line and key.
    #[error("{path}: {message}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Line, key, what was wrong and what would be right.
        message: String,
    },
    /// A key has a value that cannot work.
    #[error("{path}:{line}: {key}: {message}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line of the key, from 1; of its table when the key is missing.
        line: usize,
        /// The key, with its table.
        key: &'static str,
        /// What was wrong and what would be right.
        message: String,
    },
}

impl Config {
    /// Reads the file at `path`; without a path the default one, which may be absent.
    ///
    /// # Errors
    /// When the file cannot be read, is malformed or has values that cannot work.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let (path, required) = match path {
            Some(path) => (path, true),
            None => (Path::new(DEFAULT_PATH), false),
        };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if !required && error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(source) => {
                return Err(ConfigError::Unreadable {
                    path: path.into(),
                    source,
                });
            }
        };
        Self::parse(&text, path)
    }

    /// Parses and checks the text of a configuration; `path` is for messages.
    ///
    /// # Errors
    /// As for [`Config::load`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| ConfigError::Malformed {
            path: path.into(),
            message: error.to_string().trim_end().to_owned(),
        })?;
        config
            .check()
            .map_err(|(key, message)| ConfigError::Invalid {
                path: path.into(),
                line: line_of(text, key),
                key,
                message,
            })?;
        Ok(config)
    }

    /// The bearer token for TCP clients, if TCP is asked for.
    ///
    /// # Errors
    /// What is wrong with the file: it cannot be read, or holds too short a token.
    pub fn token(&self) -> Result<Option<Secret>, String> {
        let Some(path) = &self.api.token_file else {
            return Ok(None);
        };
        let path = credentials::resolve(path)?;
        let text = std::fs::read_to_string(&path)
            .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let token = text.trim();
        if token.len() < TOKEN_LEN_MIN {
            return Err(format!(
                "{} holds {} bytes; a token needs at least {TOKEN_LEN_MIN}, for example from \
                 `openssl rand -hex 16`",
                path.display(),
                token.len(),
            ));
        }
        Ok(Some(Secret::new(token.to_owned())))
    }

    /// Makes relative directories absolute, so that what is told to others (NBD URIs) holds anywhere.
    ///
    /// # Errors
    /// When there is no current directory.
    pub fn make_paths_absolute(&mut self) -> std::io::Result<()> {
        let sockets = [self.api.socket.as_mut(), self.nbd.socket.as_mut()];
        let dirs = [
            Some(&mut self.node.state_dir),
            Some(&mut self.node.runtime_dir),
        ];
        for path in dirs.into_iter().chain(sockets).flatten() {
            *path = std::path::absolute(&*path)?;
        }
        Ok(())
    }

    /// Path of the API socket.
    #[must_use]
    pub fn api_socket(&self) -> PathBuf {
        self.api
            .socket
            .clone()
            .unwrap_or_else(|| self.node.runtime_dir.join("api.sock"))
    }

    /// Path of the NBD socket.
    #[must_use]
    pub fn nbd_socket(&self) -> PathBuf {
        self.nbd
            .socket
            .clone()
            .unwrap_or_else(|| self.node.runtime_dir.join("nbd.sock"))
    }

    /// Number of data-plane threads.
    #[must_use]
    pub fn data_plane_threads(&self) -> usize {
        self.node.data_plane_threads.unwrap_or_else(|| {
            std::thread::available_parallelism()
                .map_or(1, usize::from)
                .min(4)
        })
    }

    /// Checks what types cannot: ranges, and keys that need each other.
    fn check(&self) -> Result<(), (&'static str, String)> {
        let range = |key, value: u64, min: u64, max: u64, unit: &str| {
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                Err((
                    key,
                    format!("{value}{unit} is out of range; use {min}{unit} to {max}{unit}"),
                ))
            }
        };
        let seconds = |key, span: Span, max: u64| {
            if span.0.is_zero() || span.0 > Duration::from_secs(max) {
                Err((
                    key,
                    format!("{span:?} is out of range; use more than 0s and at most {max}s"),
                ))
            } else {
                Ok(())
            }
        };
        if let Some(name) = &self.node.name
            && (name.is_empty() || name.len() > 253 || name.chars().any(char::is_control))
        {
            let message = format!("{name:?} is not a host name; use 1 to 253 printable characters");
            return Err(("node.name", message));
        }
        if let Some(name) = &self.node.initiator_name {
            name.parse::<berth_iscsi::name::IscsiName>()
                .map_err(|error| ("node.initiator_name", error.to_string()))?;
        }
        if let Some(threads) = self.node.data_plane_threads {
            range("node.data_plane_threads", threads as u64, 1, 256, "")?;
        }
        if let Some(listen) = self.api.listen {
            if !listen.ip().is_loopback() {
                let message = format!(
                    "{listen} is not a loopback address; the API is for this node only, use 127.0.0.1 or [::1]"
                );
                return Err(("api.listen", message));
            }
            if self.api.token_file.is_none() {
                let message = "is required with api.listen: every local user can reach a TCP port";
                return Err(("api.token_file", message.to_owned()));
            }
        }
        // A credential can be looked at only where the service manager has put it.
        let readable = |path: &PathBuf| !credentials::is_elsewhere(path);
        if self.api.token_file.as_ref().is_some_and(readable)
            && let Err(message) = self.token()
        {
            return Err(("api.token_file", message));
        }
        self.nbd.device.check()?;
        range(
            "nbd.connections_max",
            self.nbd.connections_max as u64,
            1,
            65_536,
            "",
        )?;
        range(
            "nbd.requests_max",
            self.nbd.requests_max as u64,
            1,
            65_536,
            "",
        )?;
        range(
            "nbd.bytes_max",
            self.nbd.bytes_max.0,
            32 << 20,
            16 << 30,
            " B",
        )?;
        seconds("nbd.handshake_timeout", self.nbd.handshake_timeout, 3600)?;
        seconds("iscsi.attach_timeout", self.iscsi.attach_timeout, 3600)?;
        seconds("iscsi.login_timeout", self.iscsi.login_timeout, 3600)?;
        seconds("iscsi.ping_interval", self.iscsi.ping_interval, 86_400)?;
        seconds("iscsi.ping_timeout", self.iscsi.ping_timeout, 3600)?;
        seconds("iscsi.command_timeout", self.iscsi.command_timeout, 86_400)?;
        seconds("iscsi.abort_timeout", self.iscsi.abort_timeout, 3600)?;
        let reset = self.iscsi.lun_reset_timeout;
        seconds("iscsi.lun_reset_timeout", reset, 3600)?;
        seconds("iscsi.logout_timeout", self.iscsi.logout_timeout, 3600)?;
        // RFC 7143 13.12 to 13.14 give the ranges.
        let max = (1 << 24) - 1;
        range(
            "iscsi.max_recv_data_segment",
            self.iscsi.max_recv_data_segment.0,
            512,
            max,
            " B",
        )?;
        range("iscsi.max_burst", self.iscsi.max_burst.0, 512, max, " B")?;
        range(
            "iscsi.first_burst",
            self.iscsi.first_burst.0,
            512,
            self.iscsi.max_burst.0,
            " B",
        )?;
        if let Some(fabric) = &self.fabric {
            fabric.check()?;
        }
        self.iscsi.recovery.check()
    }
}

/// Shorter tokens can be guessed over loopback.
const TOKEN_LEN_MIN: usize = 16;

/// The line of `table.key` in a TOML text that was parsed before; the line of the table, or 1, when the
/// key does not stand there.
fn line_of(text: &str, key: &str) -> usize {
    let (table, name) = key.rsplit_once('.').unwrap_or(("", key));
    let (mut current, mut found) = (String::new(), 1);
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[') {
            header
                .trim_matches(['[', ']'])
                .trim()
                .clone_into(&mut current);
            if current == table {
                found = index + 1;
            }
        } else if current == table
            && line
                .split_once('=')
                .is_some_and(|(left, _)| left.trim() == name)
        {
            return index + 1;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        let error = Config::parse(text, Path::new("berth.toml")).expect_err("it must be refused");
        error.to_string()
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        let config = Config::parse("", Path::new("berth.toml")).expect("valid");
        assert_eq!(config.api_socket(), Path::new("/run/berth/api.sock"));
        assert_eq!(config.nbd_socket(), Path::new("/run/berth/nbd.sock"));
        assert_eq!(config.iscsi.login_timeout.0, Duration::from_secs(15));
    }

    #[test]
    fn the_sample_configuration_is_valid() {
        let sample = include_str!("../../../systemd/berth.toml");
        Config::parse(sample, Path::new("systemd/berth.toml")).expect("the sample is valid");
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let message = refused("[node]\nname = \"a\"\nstate_dri = \"/tmp\"\n");
        assert!(message.contains("line 3"), "{message}");
        assert!(message.contains("state_dri"), "{message}");
        assert!(
            message.contains("state_dir"),
            "it says what would be right: {message}"
        );
    }

    #[test]
    fn a_wrong_unit_says_what_would_be_right() {
        let message = refused("[iscsi]\nlogin_timeout = \"15 seconds\"\n");
        assert!(
            message.contains("line 2") && message.contains("\"15s\""),
            "{message}"
        );
        let message = refused("[iscsi]\nlogin_timeout = 15\n");
        assert!(
            message.contains("line 2") && message.contains("\"15s\""),
            "{message}"
        );
    }

    #[test]
    fn values_that_cannot_work_are_refused_by_key() {
        for (text, key) in [
            ("[api]\nlisten = \"127.0.0.1:7780\"", "api.token_file"),
            (
                "[api]\nlisten = \"192.0.2.1:7780\"\ntoken_file = \"/t\"",
                "api.listen",
            ),
            (
                "[node]\ninitiator_name = \"nonsense\"",
                "node.initiator_name",
            ),
            ("[iscsi]\nfirst_burst = \"32MiB\"", "iscsi.first_burst"),
            ("[iscsi]\nping_timeout = \"0s\"", "iscsi.ping_timeout"),
            ("[nbd]\nrequests_max = 0", "nbd.requests_max"),
            ("[api]\ntoken_file = \"/nowhere/token\"", "api.token_file"),
        ] {
            let message = refused(text);
            assert!(message.contains(key), "{key}: {message}");
            let line = if text.contains("[api]\nlisten = \"127") {
                1
            } else {
                2
            };
            assert!(
                message.starts_with(&format!("berth.toml:{line}: ")),
                "{message}"
            );
        }
    }
}

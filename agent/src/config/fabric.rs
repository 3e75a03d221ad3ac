//! `[fabric]`: the storage fabric that volumes are provisioned on, and how patient we are with it.

use std::path::PathBuf;
use std::time::Duration;

use berth_api::types::DeletePolicy;
use berth_api::{Portal, Secret, TargetName, VolumeName};
use serde::Deserialize;

use super::credentials;
use super::units::{Size, Span};

/// `[fabric]`. With `url` a fabric that speaks the Datera REST API; with `[[fabric.volume]]` volumes of any iSCSI
/// array, declared here.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fabric {
    /// Where the REST API is, as `https://fabric.example:7718`.
    pub url: Option<String>,
    /// Who logs in.
    pub user: Option<String>,
    /// File with the password, read again at every login. `$CREDENTIALS_DIRECTORY` at its start is where the
    /// service manager puts secrets.
    pub password_file: Option<PathBuf>,
    /// Tenant that volumes belong to; default `/root`, which every fabric has.
    pub tenant: String,
    /// SHA-256 fingerprint of the fabric's own certificate: it is trusted, and no other.
    pub fingerprint: Option<Fingerprint>,
    /// PEM file with the certificates that may have signed that of the fabric. Without this and without
    /// `fingerprint` those that this system trusts.
    pub ca_file: Option<PathBuf>,
    /// Allow `http://` to other machines: password and volumes travel in clear text.
    pub plain_http: bool,
    /// Version of the REST API; default: the newest that both sides know.
    pub api_version: ApiVersion,
    /// Pool of addresses for new volumes that name none; default: that of the fabric.
    pub ip_pool: Option<String>,
    /// Port of the volumes' iSCSI portals, which the API does not tell. Default 3260, that of iSCSI.
    pub iscsi_port: u16,
    /// What deleting a volume does unless the call says otherwise; default `delete`.
    pub delete_policy: DeletePolicy,
    /// A connection, with TLS, must be there within this time. Default 5 s: a management network answers in
    /// milliseconds, one lost packet costs 1 to 3 s.
    pub connect_timeout: Span,
    /// One request must be answered within this time. Default 15 s: the slowest calls (create, delete) take a few.
    pub request_timeout: Span,
    /// One operation, all its requests and pauses, must end within this time. Default 60 s, what plugins wait.
    pub call_timeout: Span,
    /// Pause between looks at a volume that is being made. Default 1 s, as other clients of the fabric.
    pub poll_interval: Span,
    /// Most times that one request is sent. Default 4: with the pauses below a restart of a node is survived.
    pub attempts_max: u32,
    /// Pause before a request is sent again; doubled each time, and a random part of it is left out. Default 250 ms.
    pub retry_first: Span,
    /// Longest such pause. Default 5 s.
    pub retry_max: Span,
    /// After so many failures in a row nothing is sent for `breaker_pause`. Default 5: one operation alone does
    /// not get there.
    pub breaker_failures: u32,
    /// How long nothing is sent then; afterwards one request tries. Default 10 s.
    pub breaker_pause: Span,
    /// Most requests under way at a time. Default 16: enough for a node, harmless for a fabric of a hundred nodes.
    pub requests_max: usize,
    /// Longest answer. Default 32 MiB, some thousand volumes on one page.
    pub answer_max: Size,
    /// Entries that are asked for at a time. Default 100, the fabric's own page.
    pub page_size: u32,
    /// Volumes of an array without REST API.
    #[serde(rename = "volume")]
    pub volumes: Vec<DeclaredVolume>,
}

impl Default for Fabric {
    fn default() -> Self {
        let seconds = |seconds| Span(Duration::from_secs(seconds));
        Self {
            url: None,
            user: None,
            password_file: None,
            tenant: "/root".to_owned(),
            fingerprint: None,
            ca_file: None,
            plain_http: false,
            api_version: ApiVersion::Auto,
            ip_pool: None,
            iscsi_port: 3260,
            delete_policy: DeletePolicy::Delete,
            connect_timeout: seconds(5),
            request_timeout: seconds(15),
            call_timeout: seconds(60),
            poll_interval: seconds(1),
            attempts_max: 4,
            retry_first: Span(Duration::from_millis(250)),
            retry_max: seconds(5),
            breaker_failures: 5,
            breaker_pause: seconds(10),
            requests_max: 16,
            answer_max: Size(32 << 20),
            page_size: 100,
            volumes: Vec::new(),
        }
    }
}

/// Version of the REST API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum ApiVersion {
    /// The newest that both sides know.
    #[serde(rename = "auto")]
    Auto,
    /// 2.1.
    #[serde(rename = "v2.1")]
    V21,
    /// 2.2.
    #[serde(rename = "v2.2")]
    V22,
}

/// `[[fabric.volume]]`: a volume that exists and that this node may use.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeclaredVolume {
    /// Name by which it is attached.
    pub name: VolumeName,
    /// Where its target listens.
    pub portals: Vec<Portal>,
    /// Its target.
    pub target: TargetName,
    /// Its logical unit.
    #[serde(default)]
    pub lun: u16,
    /// Its size, if it is to be shown; the target has the last word.
    #[serde(default)]
    pub size: Option<Size>,
    /// Log in with CHAP as this user.
    #[serde(default)]
    pub chap_user: Option<String>,
    /// File with the CHAP secret.
    #[serde(default)]
    pub chap_secret_file: Option<PathBuf>,
}

/// SHA-256 of a certificate in DER form: 64 hexadecimal digits, with or without colons between the bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// Parses it; `None` when it is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        let digits: String = digits.chars().filter(|c| *c != ':').collect();
        if digits.len() != 64 || !digits.is_ascii() {
            return None;
        }
        let mut bytes = [0; 32];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[at * 2..at * 2 + 2], 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02X}", if at == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            serde::de::Error::custom(
                "expected the SHA-256 fingerprint of a certificate: 64 hexadecimal digits, as \
                 `openssl x509 -noout -fingerprint -sha256` prints them",
            )
        })
    }
}

type Wrong = (&'static str, String);

impl Fabric {
    /// The password.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn password(&self) -> Result<Secret, String> {
        let path = self.password_file.as_ref();
        secret_file(path.ok_or("is required with fabric.url")?)
    }

    /// Checks what types cannot; the key and what is wrong with it.
    pub(super) fn check(&self) -> Result<(), Wrong> {
        match (&self.url, self.volumes.is_empty()) {
            (Some(_), false) => {
                let message = "the fabric has a url, so its volumes are made there and not declared here; use \
                               either";
                return Err(("fabric.volume", message.to_owned()));
            }
            (None, true) => {
                let message = "is required: where the REST API of the fabric is, as \
                               \"https://fabric.example:7718\"; or declare volumes with [[fabric.volume]]";
                return Err(("fabric.url", message.to_owned()));
            }
            (Some(url), true) => self.check_rest(url)?,
            (None, false) => self.check_declared()?,
        }
        self.check_limits()
    }

    fn check_rest(&self, url: &str) -> Result<(), Wrong> {
        let wrong = |message: &str| Err(("fabric.url", format!("{url:?} {message}")));
        let Ok(parsed) = reqwest::Url::parse(url) else {
            return wrong("is not a URL; use one as \"https://fabric.example:7718\"");
        };
        let bare = matches!(parsed.path(), "" | "/") && parsed.query().is_none();
        if !bare || parsed.fragment().is_some() || parsed.host_str().is_none() {
            return wrong(
                "has more than scheme, host and port; use one as \"https://fabric.example:7718\"",
            );
        }
        if !parsed.username().is_empty() || parsed.password().is_some() {
            // Not repeated: it may hold the password.
            let message = "must not hold credentials; use fabric.user and fabric.password_file";
            return Err(("fabric.url", message.to_owned()));
        }
        let host = parsed.host_str().unwrap_or_default();
        let local = match host.trim_matches(['[', ']']).parse::<std::net::IpAddr>() {
            Ok(address) => address.is_loopback(),
            Err(_) => host == "localhost",
        };
        match parsed.scheme() {
            "https" => {}
            "http" if !local && !self.plain_http => {
                return wrong(
                    "sends the password in clear text; use https (port 7718), or set fabric.plain_http = true",
                );
            }
            "http" => {
                if self.fingerprint.is_some() || self.ca_file.is_some() {
                    return wrong(
                        "has no certificate to check; use https, or leave out fingerprint and ca_file",
                    );
                }
            }
            _ => return wrong("is neither https:// nor http://"),
        }
        if self.fingerprint.is_some() && self.ca_file.is_some() {
            let message =
                "and fabric.ca_file exclude each other: a pinned certificate needs no authority";
            return Err(("fabric.fingerprint", message.to_owned()));
        }
        if let Some(path) = &self.ca_file
            && !credentials::is_elsewhere(path)
        {
            crate::fabric::tls::authorities(path).map_err(|message| ("fabric.ca_file", message))?;
        }
        match &self.user {
            None => {
                return Err(("fabric.user", "is required with fabric.url".to_owned()));
            }
            Some(user) if !(1..=64).contains(&user.len()) || user.chars().any(char::is_control) => {
                let message =
                    format!("{user:?} is not a user name; use 1 to 64 printable characters");
                return Err(("fabric.user", message));
            }
            Some(_) => {}
        }
        let readable = |path: &PathBuf| !credentials::is_elsewhere(path);
        if self.password_file.as_ref().is_none_or(readable)
            && let Err(message) = self.password()
        {
            return Err(("fabric.password_file", message));
        }
        let segments = self.tenant.strip_prefix('/').unwrap_or_default();
        let fits = |segment: &str| {
            !segment.is_empty()
                && segment
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
        };
        if segments.split('/').next() != Some("root") || !segments.split('/').all(fits) {
            let message = format!(
                "{:?} is not a tenant; use \"/root\" or one below it, as \"/root/team-a\"",
                self.tenant
            );
            return Err(("fabric.tenant", message));
        }
        Ok(())
    }

    fn check_declared(&self) -> Result<(), Wrong> {
        let mut names = std::collections::BTreeSet::new();
        for volume in &self.volumes {
            let wrong = |message: String| Err(("fabric.volume", message));
            let name = &volume.name;
            if !names.insert(name) {
                return wrong(format!("{name} is declared twice; names are unique"));
            }
            if !(1..=16).contains(&volume.portals.len()) {
                return wrong(format!(
                    "{name} has {} portals; use 1 to 16",
                    volume.portals.len()
                ));
            }
            if volume.lun > berth_api::types::IscsiSource::LUN_MAX {
                return wrong(format!("{name}: lun {} is out of range", volume.lun));
            }
            match (&volume.chap_user, &volume.chap_secret_file) {
                (None, None) => {}
                (Some(_), Some(path)) if credentials::is_elsewhere(path) => {}
                (Some(_), Some(_)) => {
                    volume
                        .chap()
                        .map_err(|message| ("fabric.volume", format!("{name}: {message}")))?;
                }
                _ => {
                    return wrong(format!(
                        "{name}: chap_user and chap_secret_file go together"
                    ));
                }
            }
        }
        Ok(())
    }

    fn check_limits(&self) -> Result<(), Wrong> {
        let millisecond = Duration::from_millis(1);
        for (key, span) in [
            ("fabric.connect_timeout", self.connect_timeout),
            ("fabric.request_timeout", self.request_timeout),
            ("fabric.call_timeout", self.call_timeout),
            ("fabric.poll_interval", self.poll_interval),
            ("fabric.retry_first", self.retry_first),
            ("fabric.retry_max", self.retry_max),
            ("fabric.breaker_pause", self.breaker_pause),
        ] {
            if !(millisecond..=3_600_000 * millisecond).contains(&span.0) {
                return Err((key, format!("{span:?} is out of range; use 1ms to 1h")));
            }
        }
        if self.retry_max.0 < self.retry_first.0 {
            let message = format!("{:?} is less than fabric.retry_first", self.retry_max);
            return Err(("fabric.retry_max", message));
        }
        for (key, value, most) in [
            ("fabric.attempts_max", u64::from(self.attempts_max), 100),
            (
                "fabric.breaker_failures",
                self.breaker_failures.into(),
                1000,
            ),
            ("fabric.requests_max", self.requests_max as u64, 1024),
            ("fabric.page_size", self.page_size.into(), 1000),
            ("fabric.iscsi_port", self.iscsi_port.into(), 65_535),
        ] {
            if !(1..=most).contains(&value) {
                return Err((key, format!("{value} is out of range; use 1 to {most}")));
            }
        }
        if !(64 << 10..=1 << 30).contains(&self.answer_max.0) {
            let message = format!("{:?} is out of range; use 64KiB to 1GiB", self.answer_max);
            return Err(("fabric.answer_max", message));
        }
        Ok(())
    }
}

impl DeclaredVolume {
    /// Its credentials, if it has any.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn chap(&self) -> Result<Option<berth_api::types::Chap>, String> {
        let (Some(user), Some(path)) = (&self.chap_user, &self.chap_secret_file) else {
            return Ok(None);
        };
        let secret = secret_file(path)?;
        berth_api::types::Chap::new(user.clone(), secret, None, false)
            .map(Some)
            .map_err(|error| error.to_string())
    }
}

/// Longest secret that a file may hold, in bytes.
const SECRET_LEN_MAX: u64 = 4096;

fn secret_file(path: &std::path::Path) -> Result<Secret, String> {
    use std::io::Read as _;
    let path = credentials::resolve(path)?;
    let cannot = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    let file = std::fs::File::open(&path).map_err(cannot)?;
    let mut text = zeroize::Zeroizing::new(String::new());
    file.take(SECRET_LEN_MAX + 1)
        .read_to_string(&mut text)
        .map_err(cannot)?;
    let secret = text.trim_end_matches(['\r', '\n']);
    if secret.is_empty() || text.len() as u64 > SECRET_LEN_MAX {
        return Err(format!(
            "{} must hold one secret of 1 to {SECRET_LEN_MAX} bytes",
            path.display()
        ));
    }
    Ok(Secret::new(secret.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::path::Path;

    use super::super::Config;
    use super::*;

    fn parse(text: &str) -> Result<Config, super::super::ConfigError> {
        Config::parse(text, Path::new("berth.toml"))
    }

    fn password() -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "s3cret-pw").unwrap();
        file
    }

    fn fabric(file: &Path, more: &str) -> String {
        let file = file.display();
        format!(
            "[fabric]\nurl = \"https://fabric.example:7718\"\nuser = \"admin\"\npassword_file = \"{file}\"\n{more}\n"
        )
    }

    #[test]
    fn what_is_there_is_used_and_the_password_is_read_without_its_line_end() {
        let file = password();
        let config = parse(&fabric(file.path(), "call_timeout = \"5s\"\n")).expect("valid");
        let fabric = config.fabric.expect("it is there");
        assert_eq!(fabric.tenant, "/root");
        assert_eq!(fabric.call_timeout.0, Duration::from_secs(5));
        assert_eq!(fabric.password().unwrap().expose(), "s3cret-pw");
        assert!(!format!("{fabric:?}").contains("s3cret-pw"));
        assert!(parse("").unwrap().fabric.is_none());
    }

    #[test]
    fn what_cannot_work_is_refused_by_key() {
        let file = password();
        let pin = "00".repeat(32);
        for (more, key) in [
            ("tenant = \"team\"".to_owned(), "fabric.tenant"),
            ("attempts_max = 0".to_owned(), "fabric.attempts_max"),
            ("call_timeout = \"0s\"".to_owned(), "fabric.call_timeout"),
            ("retry_max = \"1ms\"".to_owned(), "fabric.retry_max"),
            ("answer_max = \"1KiB\"".to_owned(), "fabric.answer_max"),
            ("ca_file = \"/nowhere/ca.pem\"".to_owned(), "fabric.ca_file"),
            (
                format!("fingerprint = \"{pin}\"\nca_file = \"/nowhere\""),
                "fabric.fingerprint",
            ),
            ("fingerprint = \"00\"".to_owned(), "64 hexadecimal digits"),
            ("pasword = \"x\"".to_owned(), "unknown field `pasword`"),
        ] {
            let message = parse(&fabric(file.path(), &more))
                .expect_err(&more)
                .to_string();
            assert!(message.contains(key), "{more}: {message}");
        }
        for (text, key) in [
            ("[fabric]\n", "fabric.url"),
            ("[fabric]\nurl = \"https://f\"\n", "fabric.user"),
            (
                "[fabric]\nurl = \"https://f\"\nuser = \"a\"\n",
                "fabric.password_file",
            ),
            (
                "[fabric]\nurl = \"ftp://f\"\nuser = \"a\"\n",
                "neither https",
            ),
            (
                "[fabric]\nurl = \"http://192.0.2.1\"\nuser = \"a\"\n",
                "clear text",
            ),
            (
                "[fabric]\nurl = \"https://f/v2\"\nuser = \"a\"\n",
                "more than scheme",
            ),
            (
                "[fabric]\nurl = \"https://u:hunter2@f\"\nuser = \"a\"\n",
                "credentials",
            ),
        ] {
            let message = parse(text).expect_err(text).to_string();
            assert!(message.contains(key), "{text}: {message}");
            assert!(!message.contains("hunter2"), "{message}");
        }
        let local =
            fabric(file.path(), "").replace("https://fabric.example:7718", "http://[::1]:7717");
        parse(&local).expect("nobody listens on the way to ourselves");
    }

    /// What the sample configuration shows, without its comment signs, is valid and shows the defaults.
    #[test]
    fn the_sample_shows_the_defaults() {
        let sample = include_str!("../../../systemd/berth.toml");
        let from = sample.find("# [fabric]").unwrap();
        let to = sample.find("# [[fabric.volume]]").unwrap();
        let file = password();
        let needed = ["url =", "user =", "password_file", "fingerprint", "ca_file"];
        let lines = sample[from..to]
            .lines()
            .map(|line| line.trim_start_matches("# "));
        let lines = lines
            .skip(1)
            .filter(|line| !needed.iter().any(|key| line.starts_with(key)));
        let lines: Vec<_> = lines.filter(|line| *line != "#").collect();
        let config = parse(&fabric(file.path(), &lines.join("\n"))).expect("valid");
        let plain = parse(&fabric(file.path(), "ip_pool = \"default\"")).expect("valid");
        assert_eq!(
            format!("{:?}", config.fabric),
            format!("{:?}", plain.fabric)
        );
        assert!(lines.len() >= 16, "{lines:?}");
        let volume = sample[to..]
            .lines()
            .take_while(|line| line.starts_with("# "));
        let volume = volume
            .map(|line| line.trim_start_matches("# "))
            .filter(|line| !line.starts_with("chap"));
        parse(&volume.collect::<Vec<_>>().join("\n")).expect("valid");
    }

    #[test]
    fn fingerprints_are_read_as_openssl_prints_them() {
        let plain = "0123456789abcdef".repeat(4);
        let parsed = Fingerprint::parse(&plain).unwrap();
        let shown = parsed.to_string();
        assert!(shown.starts_with("01:23:45:67:89:AB"), "{shown}");
        assert_eq!(Fingerprint::parse(&shown), Some(parsed));
        assert_eq!(Fingerprint::parse(&format!("sha256:{plain}")), Some(parsed));
        for wrong in ["", "zz", &plain[1..], &"é".repeat(32)] {
            assert_eq!(Fingerprint::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn volumes_can_be_declared() {
        let volume = "[[fabric.volume]]\nname = \"archive\"\nportals = [\"192.0.2.1\"]\n\
                      target = \"iqn.2026-11.example:a\"\nlun = 3\nsize = \"10GiB\"\n";
        let config = parse(volume).expect("valid");
        let fabric = config.fabric.unwrap();
        assert_eq!(fabric.volumes[0].name.as_str(), "archive");
        for (text, what) in [
            (format!("{volume}{volume}"), "declared twice"),
            (format!("{volume}chap_user = \"u\"\n"), "go together"),
            (volume.replace("[\"192.0.2.1\"]", "[]"), "0 portals"),
        ] {
            let message = parse(&text).expect_err(what).to_string();
            assert!(message.contains(what), "{message}");
        }
    }
}

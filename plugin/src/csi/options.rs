//! Arguments of `berth-csi`, checked before any socket is opened.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;

use super::{Registration, ServiceMode, Settings};

/// The name that the driver has unless told otherwise.
pub const DRIVER_NAME: &str = "csi.berth.io";
/// Longest name of a driver (CSI, GetPluginInfo).
const DRIVER_NAME_LEN_MAX: usize = 63;

/// Serves the Container Storage Interface for berthd on this node, or for a whole cluster.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "berth-csi",
    version,
    after_help = "berth-csi migrate --help: PersistentVolumes of FlexVolume as such of CSI"
)]
pub struct Options {
    /// Which services are served besides Identity
    #[arg(long, value_enum, default_value = "all", env = "BERTH_CSI_MODE")]
    pub mode: ServiceMode,
    /// Socket to serve, as unix:///run/berth-csi/csi.sock
    #[arg(long, value_name = "URL", env = "CSI_ENDPOINT")]
    pub csi_endpoint: String,
    /// Socket of berthd
    #[arg(
        long,
        value_name = "PATH",
        env = "BERTH_SOCKET",
        default_value = "/run/berth/api.sock"
    )]
    pub socket: PathBuf,
    /// Name of the driver; it is kept in every PersistentVolume and cannot change
    #[arg(long, value_name = "NAME", env = "BERTH_CSI_DRIVER_NAME", default_value = DRIVER_NAME)]
    pub driver_name: String,
    /// Socket in kubelet's folder plugins_registry, where kubelet learns of the driver; without it a registrar has to tell
    #[arg(long, value_name = "PATH", env = "BERTH_CSI_REGISTRATION_SOCKET")]
    pub registration_socket: Option<PathBuf>,
    /// Where kubelet finds the driver's socket [default: the path of --csi-endpoint]
    #[arg(long, value_name = "PATH", env = "BERTH_CSI_KUBELET_ENDPOINT")]
    pub kubelet_endpoint: Option<PathBuf>,
    /// Label KEY=VALUE of the nodes that reach the fabric, the same on all instances; can be given several times
    #[arg(
        long,
        value_name = "KEY=VALUE",
        env = "BERTH_CSI_TOPOLOGY",
        value_delimiter = ','
    )]
    pub topology: Vec<String>,
    /// Most volumes on this node, 0 for no limit [default: what berthd can take]
    #[arg(long, value_name = "N", env = "BERTH_CSI_VOLUMES_MAX", value_parser = clap::value_parser!(i64).range(0..))]
    pub volumes_max: Option<i64>,
    /// Folder for what is remembered until the machine restarts
    #[arg(
        long,
        value_name = "DIR",
        env = "BERTH_CSI_RUN_DIR",
        default_value = "/run/berth-csi"
    )]
    pub run_dir: PathBuf,
    /// Seconds until a call is answered that says no limit itself; kubelet waits 120
    #[arg(long, value_name = "SECONDS", env = "BERTH_CSI_ANSWER_WITHIN", default_value_t = 110, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub answer_within: u64,
    /// Seconds that an attach may take; the call after it finds one that took longer
    #[arg(long, value_name = "SECONDS", env = "BERTH_CSI_ATTACH_TIMEOUT", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub attach_timeout: u64,
    /// Seconds that a detach may take before it is looked whether the volume is lost to this node; a flush takes some
    #[arg(long, value_name = "SECONDS", env = "BERTH_CSI_DETACH_TIMEOUT", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub detach_timeout: u64,
    /// Seconds that the fabric may take to end the sessions of a node that is shut out
    #[arg(long, value_name = "SECONDS", env = "BERTH_CSI_UNPUBLISH_TIMEOUT", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub unpublish_timeout: u64,
    /// Calls that may change something at a time
    #[arg(long, value_name = "N", env = "BERTH_CSI_CALLS_MAX", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub calls_max: u32,
    /// What is logged, as info or berth_plugin=debug
    #[arg(long, value_name = "FILTER", env = "BERTH_LOG", default_value = "info")]
    pub log: String,
    /// Log one JSON object a line
    #[arg(long, env = "BERTH_LOG_JSON")]
    pub log_json: bool,
}

impl Options {
    /// Checks the options.
    ///
    /// # Errors
    /// Which one is wrong, and what would be right.
    pub fn settings(&self) -> Result<Settings, String> {
        let endpoint = socket(&self.csi_endpoint)?;
        check_name(&self.driver_name)?;
        for (option, path) in [
            ("--socket", Some(&self.socket)),
            ("--run-dir", Some(&self.run_dir)),
            ("--registration-socket", self.registration_socket.as_ref()),
            ("--kubelet-endpoint", self.kubelet_endpoint.as_ref()),
        ] {
            if let Some(path) = path
                && !path.is_absolute()
            {
                return Err(format!(
                    "{option}: {} is not an absolute path",
                    path.display()
                ));
            }
        }
        if self.registration_socket.is_some() && self.mode == ServiceMode::Controller {
            return Err(
                "--registration-socket: kubelet has no use for --mode controller".to_owned(),
            );
        }
        let registration = self.registration_socket.clone().map(|socket| Registration {
            socket,
            endpoint: self
                .kubelet_endpoint
                .clone()
                .unwrap_or_else(|| endpoint.clone()),
        });
        Ok(Settings {
            mode: self.mode,
            driver_name: self.driver_name.clone(),
            endpoint,
            registration,
            topology: topology(&self.topology)?,
            volumes_max: self.volumes_max,
            run_dir: self.run_dir.clone(),
            answer_within: Duration::from_secs(self.answer_within),
            attach_timeout: Duration::from_secs(self.attach_timeout),
            detach_timeout: Duration::from_secs(self.detach_timeout),
            unpublish_timeout: Duration::from_secs(self.unpublish_timeout),
            calls_max: usize::try_from(self.calls_max).unwrap_or(usize::MAX),
        })
    }
}

/// `unix:///path`, `unix:/path` or `/path`.
fn socket(text: &str) -> Result<PathBuf, String> {
    let path = text.strip_prefix("unix:").unwrap_or(text);
    // An empty authority (RFC 3986 3.2) is allowed and means this machine.
    let path = match path.strip_prefix("//") {
        Some(rest) if rest.starts_with('/') => rest,
        Some(_) => "",
        None => path,
    };
    if !path.starts_with('/') || path.ends_with('/') {
        return Err(format!(
            "--csi-endpoint: {text:?} is not a Unix socket, expected unix:///path/csi.sock"
        ));
    }
    Ok(Path::new(path).to_owned())
}

fn check_name(name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    if name.len() > DRIVER_NAME_LEN_MAX
        || !name.chars().all(fits)
        || !ends(name.chars().next())
        || !ends(name.chars().next_back())
    {
        return Err(format!(
            "--driver-name: {name:?} is no name, expected at most {DRIVER_NAME_LEN_MAX} letters, digits, '-' and '.', as {DRIVER_NAME}"
        ));
    }
    Ok(())
}

fn topology(labels: &[String]) -> Result<BTreeMap<String, String>, String> {
    let mut all = BTreeMap::new();
    for label in labels {
        let wrong =
            || format!("--topology: {label:?} is not KEY=VALUE, as topology.berth.io/fabric=east");
        let (key, value) = label.split_once('=').ok_or_else(wrong)?;
        let name = key.rsplit('/').next().unwrap_or_default();
        let is_word = |text: &str| {
            let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
            (1..=63).contains(&text.len())
                && text
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
                && ends(text.chars().next())
                && ends(text.chars().next_back())
        };
        if key.len() > 317 || !is_word(name) || !is_word(value) {
            return Err(wrong());
        }
        all.insert(key.to_owned(), value.to_owned());
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(more: &[&str]) -> Result<Settings, String> {
        let words = ["berth-csi", "--csi-endpoint", "unix:///run/x/csi.sock"];
        Options::try_parse_from(words.iter().chain(more))
            .unwrap()
            .settings()
    }

    #[test]
    fn endpoints() {
        for good in ["unix:///a/csi.sock", "unix:/a/csi.sock", "/a/csi.sock"] {
            assert_eq!(socket(good).unwrap(), Path::new("/a/csi.sock"), "{good}");
        }
        for bad in [
            "",
            "unix://a/csi.sock",
            "tcp://1.2.3.4:1",
            "a.sock",
            "unix:a",
            "unix:///",
            "/",
        ] {
            assert!(socket(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (words, named) in [
            (&["--driver-name", "a_b"][..], "--driver-name"),
            (&["--driver-name", "a-"], "--driver-name"),
            (&["--topology", "a"], "--topology"),
            (&["--topology", "a=b c"], "--topology"),
            (&["--run-dir", "x"], "--run-dir"),
            (
                &["--mode", "controller", "--registration-socket", "/r.sock"],
                "--registration-socket",
            ),
        ] {
            let error = settings(words).unwrap_err();
            assert!(error.starts_with(named), "{error}");
        }
        let long = "x".repeat(64);
        assert!(settings(&["--driver-name", &long]).is_err());
    }

    #[test]
    fn defaults() {
        let settings = settings(&[
            "--registration-socket",
            "/r.sock",
            "--topology",
            "topology.berth.io/fabric=east,zone=a",
        ])
        .unwrap();
        assert_eq!(settings.driver_name, DRIVER_NAME);
        let registration = settings.registration.unwrap();
        assert_eq!(registration.endpoint, settings.endpoint);
        assert_eq!(settings.topology.len(), 2);
    }
}

//! `berthd sim`: the simulated fabric as a program.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use berth_api::Secret;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use super::Fabric;
use super::options::{DEFAULT_PASSWORD, DEFAULT_SW_VERSION, DEFAULT_USER, Options, SwVersion};

/// Options of `berthd sim`.
#[derive(Debug, Clone, clap::Args)]
pub struct SimOptions {
    /// Where volumes, state and certificate are kept; made when it is absent
    #[arg(long, value_name = "DIR")]
    pub state_dir: PathBuf,
    /// Where HTTP is served
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7717")]
    pub http: SocketAddr,
    /// Where HTTPS is served, with a self-signed certificate
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7718")]
    pub https: SocketAddr,
    /// An iSCSI portal; given twice, with two addresses. Clients take port 3260 [default: two free
    /// loopback addresses]
    #[arg(long = "portal", value_name = "ADDR")]
    pub portals: Vec<SocketAddr>,
    /// Version of the product that is simulated; behaviour changes at 3.3.0.0
    #[arg(long, value_name = "VERSION", default_value_t = DEFAULT_SW_VERSION)]
    pub sw_version: SwVersion,
    /// Name that logs in
    #[arg(long, value_name = "NAME", default_value = DEFAULT_USER)]
    pub user: String,
    /// File with the password, the whole content but one newline at the end [default: the password is
    /// "password"]
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// A session without requests ends after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    pub session_seconds: u64,
    /// New targets and snapshots get available after so many milliseconds
    #[arg(long, value_name = "MS", default_value_t = 50)]
    pub settle_ms: u64,
    /// What a volume with limits may do at once after a rest, as milliseconds at its limit
    #[arg(long, value_name = "MS", default_value_t = 100)]
    pub qos_burst_ms: u64,
    /// Capacity that the fabric says it has, in GiB; volumes are thin and may be larger than the machine's disk
    #[arg(long, value_name = "GIB", default_value_t = 102_400)]
    pub capacity_gib: u32,
    /// Append every request to requests.jsonl in the state directory
    #[arg(long)]
    pub request_log: bool,
}

impl SimOptions {
    fn options(&self) -> anyhow::Result<Options> {
        let portals = match self.portals.as_slice() {
            [] => None,
            [first, second] => Some([*first, *second]),
            _ => bail!("--portal must be given twice, with two addresses, or not at all"),
        };
        let password = match &self.password_file {
            None => Secret::new(DEFAULT_PASSWORD.to_owned()),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("--password-file {}", path.display()))?;
                let text = text.strip_suffix('\n').unwrap_or(&text);
                if text.is_empty() {
                    bail!("--password-file {} is empty", path.display());
                }
                Secret::new(text.to_owned())
            }
        };
        Ok(Options {
            http: Some(self.http),
            https: Some(self.https),
            portals,
            sw_version: self.sw_version,
            user: self.user.clone(),
            password,
            session_lifetime: Duration::from_secs(self.session_seconds),
            settle: Duration::from_millis(self.settle_ms),
            capacity_bytes: u64::from(self.capacity_gib) << 30,
            qos_burst: Duration::from_millis(self.qos_burst_ms),
            request_log: self.request_log,
            ..Options::new(&self.state_dir)
        })
    }
}

/// Runs a fabric until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot be started.
pub async fn run(options: &SimOptions) -> anyhow::Result<()> {
    raise_file_limit();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let options = options.options()?;
    let state_dir = options.state_dir.display().to_string();
    let fabric = Fabric::start(options).context("cannot start the simulated fabric")?;
    println!("simulated fabric, state in {state_dir}");
    if let Some(address) = fabric.http() {
        println!("http        http://{address}");
    }
    if let (Some(address), Some(fingerprint)) = (fabric.https(), fabric.fingerprint()) {
        println!("https       https://{address}");
        println!("fingerprint sha256:{fingerprint}");
    }
    for portal in fabric.portals() {
        println!("portal      {portal}");
    }
    println!("ready");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    fabric.stop();
    Ok(())
}

/// Every volume that is online holds a file open.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

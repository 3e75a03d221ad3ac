//! `berthd demo`: everything at work in one process.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use berth_api::client::Client;
use berth_api::types::{
    AttachRequest, Attachment, DigestPolicy, Digests, FabricSource, Source, VolumeRequest,
};
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use super::fabric::{DEFAULT_PASSWORD, DEFAULT_USER, Fabric, Options};
use super::workload::{self, Pace};
use crate::app::Daemon;
use crate::config::{self, Config, Fingerprint, KernelDevices};
use crate::nbd::uri::Uri;

/// Options of `berthd demo`.
#[derive(Debug, Clone, clap::Args)]
pub struct DemoOptions {
    /// End after the summary instead of serving until Ctrl-C
    #[arg(long)]
    pub once: bool,
    /// MiB that are written to each of the two volumes
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=65536))]
    pub size: u64,
    /// Length of the random reads in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
}

impl DemoOptions {
    /// Bytes that are written to each volume.
    const fn bytes(&self) -> u64 {
        self.size << 20
    }
}

/// The volume that is made by options.
const BY_OPTIONS: &str = "demo-a";
/// The volume that is made from an AppTemplate, and the template.
const FROM_TEMPLATE: (&str, &str) = ("demo-b", "basic_small");
/// Names of the two volumes.
const VOLUMES: [&str; 2] = [BY_OPTIONS, FROM_TEMPLATE.0];

/// What one volume did.
struct Report {
    name: &'static str,
    write: Pace,
    verify: Pace,
    random: Pace,
}

/// Runs the demo.
///
/// # Errors
/// When a part cannot be started, a request fails, or a byte that is read back differs.
pub async fn run(options: &DemoOptions) -> anyhow::Result<()> {
    let dir = tempfile::Builder::new().prefix("berth-demo-").tempdir()?;
    println!(
        "berth demo: a simulated fabric, two volumes made and attached over the HTTP API, data over NBD\n"
    );
    let fabric = Fabric::start(Options::new(dir.path().join("fabric")))
        .context("cannot start the simulated fabric")?;
    let mut config = Config::default();
    config.node.state_dir = dir.path().join("state");
    config.node.runtime_dir = dir.path().to_owned();
    config.fabric = Some(reach(&fabric, dir.path())?);
    // Nothing outside the directory is touched.
    config.nbd.kernel = KernelDevices::Never;
    let daemon = Daemon::start(&config).await?;
    let [first, second] = fabric.portals();
    step(
        "fabric",
        &format!("{}, portals {first} {second}", url(&fabric)?),
    );
    step("daemon", &format!("API {}", daemon.api_socket().display()));
    let result = work(options, &daemon).await;
    if result.is_ok() && !options.once {
        next_steps(&daemon, &fabric);
        println!("\nServing until Ctrl-C.");
        tokio::signal::ctrl_c().await?;
        println!();
    }
    daemon.stop().await;
    fabric.stop();
    result
}

fn url(fabric: &Fabric) -> anyhow::Result<String> {
    let address = fabric.https().context("the fabric serves no HTTPS")?;
    Ok(format!("https://{address}"))
}

/// What a configuration file would say in `[fabric]`.
fn reach(fabric: &Fabric, dir: &Path) -> anyhow::Result<config::Fabric> {
    let password_file = dir.join("fabric-password");
    write_secret(&password_file, DEFAULT_PASSWORD)?;
    let fingerprint = fabric.fingerprint().and_then(Fingerprint::parse);
    Ok(config::Fabric {
        url: Some(url(fabric)?),
        user: Some(DEFAULT_USER.to_owned()),
        password_file: Some(password_file),
        fingerprint: Some(fingerprint.context("the fabric has no certificate")?),
        iscsi_port: fabric.portals()[0].port(),
        // It makes a volume in milliseconds.
        poll_interval: config::Span(Duration::from_millis(50)),
        ..config::Fabric::default()
    })
}

fn write_secret(path: &Path, secret: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    let mut file = std::fs::File::options()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(secret.as_bytes())
}

/// How each volume is asked for.
fn wish(name: &str, options: &DemoOptions) -> VolumeRequest {
    if name == BY_OPTIONS {
        return VolumeRequest {
            size_bytes: Some(options.bytes()),
            replicas: Some(2),
            description: Some("made by options".to_owned()),
            ..VolumeRequest::default()
        };
    }
    VolumeRequest {
        template: Some(FROM_TEMPLATE.1.to_owned()),
        // The template's own size is 1 GiB.
        size_bytes: (options.bytes() > 1 << 30).then_some(options.bytes()),
        ..VolumeRequest::default()
    }
}

async fn work(options: &DemoOptions, daemon: &Daemon) -> anyhow::Result<()> {
    let client = Client::unix(daemon.api_socket());
    let templates = client.templates().await.context("cannot list templates")?;
    let names: Vec<&str> = templates.iter().map(|t| t.name.as_str()).collect();
    step("templates", &names.join(", "));
    for name in VOLUMES {
        let attached = attach(&client, name, options).await?;
        let how = match wish(name, options).template {
            Some(template) => format!("from template {template}"),
            None => "by options".to_owned(),
        };
        let (header, data) = digests_in_use(&attached);
        step(
            "attached",
            &format!(
                "{name}  made {how}, {}, {} paths, digests: header {header}, data {data}",
                HumanBytes(attached.size_bytes.unwrap_or(0)),
                attached.paths.len(),
            ),
        );
    }
    println!();
    let size = options.bytes();
    let mut reports = Vec::new();
    for (seed, name) in (1u64..).zip(VOLUMES) {
        let uri = Uri::unix(daemon.nbd_socket(), name);
        let bar = progress(name, "write", size);
        let write = workload::write_all(&uri, seed, size, |done| bar.set_position(done)).await?;
        finish(&bar, &write);
        let bar = progress(name, "verify", size);
        let verify = workload::verify_all(&uri, seed, size, |done| bar.set_position(done)).await?;
        finish(&bar, &verify);
        let length = Duration::from_secs(options.seconds);
        let bar = ProgressBar::new_spinner().with_message(format!("{name}  random 4 KiB reads"));
        bar.enable_steady_tick(Duration::from_millis(100));
        let random = workload::random_reads(&uri, seed, size, length).await?;
        bar.finish_and_clear();
        reports.push(Report {
            name,
            write,
            verify,
            random,
        });
    }
    summary(&client, &reports).await
}

async fn attach(client: &Client, name: &str, options: &DemoOptions) -> anyhow::Result<Attachment> {
    let source = Source::Fabric(FabricSource {
        create: Some(Box::new(wish(name, options))),
        ..FabricSource::new(name.parse()?)
    });
    let digests = Digests {
        header: DigestPolicy::Require,
        data: DigestPolicy::Require,
    };
    let request = AttachRequest {
        digests,
        ..AttachRequest::new(source)
    };
    let attached = client
        .attach(&name.parse()?, &request)
        .await
        .with_context(|| format!("cannot make and attach {name}"))?;
    Ok(attached.attachment)
}

fn digests_in_use(attachment: &Attachment) -> (String, String) {
    let key = |key: &str| {
        attachment
            .sessions
            .first()
            .and_then(|session| session.negotiated.get(key).cloned())
            .unwrap_or_else(|| "unknown".to_owned())
    };
    (key("HeaderDigest"), key("DataDigest"))
}

async fn summary(client: &Client, reports: &[Report]) -> anyhow::Result<()> {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY).set_header([
        "volume",
        "write",
        "read + verify",
        "4k random reads",
        "p50",
        "p99",
        "verified",
        "digests",
        "errors",
    ]);
    let mut wrong = 0;
    for report in reports {
        let attachment = client.attachment(&report.name.parse()?).await?;
        let counters = &attachment.counters;
        let errors = counters.read.errors + counters.write.errors + counters.flush.errors;
        wrong += errors + counters.digest_errors;
        let per_second = |pace: &Pace| format!("{}/s", HumanBytes(pace.bytes_per_second() as u64));
        let us = |fraction| {
            format!(
                "{} us",
                report.random.latency_us.value_at_quantile(fraction)
            )
        };
        table.add_row([
            report.name.to_owned(),
            per_second(&report.write),
            per_second(&report.verify),
            format!("{:.0} IOPS", report.random.requests_per_second()),
            us(0.5),
            us(0.99),
            HumanBytes(report.verify.bytes + report.random.bytes).to_string(),
            format!(
                "{} ok, {} bad",
                counters.digests_checked, counters.digest_errors
            ),
            errors.to_string(),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("\n{table}");
    anyhow::ensure!(wrong == 0, "{wrong} errors, see the table");
    println!("Every byte that was read back is the byte that was written.");
    Ok(())
}

fn next_steps(daemon: &Daemon, fabric: &Fabric) {
    let (api, nbd) = (daemon.api_socket().display(), daemon.nbd_socket().display());
    let ctl = std::env::current_exe()
        .ok()
        .map(|path: PathBuf| path.with_file_name("berthctl"))
        .filter(|path| path.exists())
        .map_or_else(
            || "cargo run --release --bin berthctl --".to_owned(),
            |p| p.display().to_string(),
        );
    println!("\nTry next, in another terminal:\n");
    println!("  export BERTH_SOCKET={api}");
    println!("  {ctl} template list");
    println!("  {ctl} volume list");
    println!("  {ctl} volume create mine --template bronze");
    println!("  {ctl} attach mine --volume mine");
    println!("  {ctl} list");
    println!("  {ctl} bench mine --seconds 5             # slow: the template limits it");
    println!("  {ctl} volume qos mine --total-iops 5000  # at once, while it runs");
    println!("  {ctl} volume snapshot take demo-a before-lunch");
    println!("  nbdinfo 'nbd+unix:///demo-a?socket={nbd}'");
    println!("  nbdcopy --progress 'nbd+unix:///demo-a?socket={nbd}' demo-a.img");
    if let Some(http) = fabric.http() {
        println!("  curl http://{http}/sim/requests           # what the fabric was asked");
    }
}

fn step(what: &str, detail: &str) {
    println!("  {what:<9} {detail}");
}

fn progress(name: &str, what: &str, size: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "  {prefix:<16} [{bar:30}] {bytes:>10} of {total_bytes}  {binary_bytes_per_sec}",
    )
    .unwrap_or_else(|_| ProgressStyle::default_bar())
    .progress_chars("=> ");
    ProgressBar::new(size)
        .with_style(style)
        .with_prefix(format!("{name} {what}"))
}

/// Leaves the full bar; where there is no terminal to draw it on, a line instead.
fn finish(bar: &ProgressBar, pace: &Pace) {
    bar.finish();
    if bar.is_hidden() {
        let rate = HumanBytes(pace.bytes_per_second() as u64);
        println!(
            "  {:<16} {} at {rate}/s",
            bar.prefix(),
            HumanBytes(pace.bytes)
        );
    }
}

//! `berthd demo`: everything at work in one process.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use berth_api::client::Client;
use berth_api::types::{AttachRequest, Attachment, DigestPolicy, Digests, IscsiSource, Source};
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use super::portal::{SimPortal, SimVolume};
use super::workload::{self, Pace};
use crate::app::Daemon;
use crate::config::{Config, KernelDevices};
use crate::nbd::uri::Uri;

/// Options of `berthd demo`.
#[derive(Debug, Clone, clap::Args)]
pub struct DemoOptions {
    /// End after the summary instead of serving until Ctrl-C
    #[arg(long)]
    pub once: bool,
    /// Size of each of the two volumes in MiB
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=65536))]
    pub size: u64,
    /// Length of the random reads in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
}

/// Names of the two volumes, and whether they have a write cache.
const VOLUMES: [(&str, bool); 2] = [("demo-a", false), ("demo-b", true)];

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
        "berth demo: a simulated portal, two volumes attached over the HTTP API, data over NBD\n"
    );
    let portal = start_portal(options)?;
    let mut config = Config::default();
    config.node.state_dir = dir.path().join("state");
    config.node.runtime_dir = dir.path().to_owned();
    // Nothing outside the directory is touched.
    config.nbd.kernel = KernelDevices::Never;
    let daemon = Daemon::start(&config).await?;
    step("portal", &format!("{} (in memory)", portal.address()));
    step("daemon", &format!("API {}", daemon.api_socket().display()));
    let result = work(options, &portal, &daemon).await;
    if result.is_ok() && !options.once {
        next_steps(daemon.api_socket(), daemon.nbd_socket());
        println!("\nServing until Ctrl-C.");
        tokio::signal::ctrl_c().await?;
        println!();
    }
    daemon.stop().await;
    drop(portal);
    result
}

fn start_portal(options: &DemoOptions) -> anyhow::Result<SimPortal> {
    let volumes = VOLUMES
        .iter()
        .map(|(name, write_cache)| {
            Ok(SimVolume {
                target: format!("iqn.2026-11.io.berth.demo:{name}").parse()?,
                serial: (*name).to_owned(),
                size_bytes: options.size << 20,
                write_cache: *write_cache,
            })
        })
        .collect::<anyhow::Result<_>>()?;
    SimPortal::start(volumes).context("cannot start the simulated portal")
}

async fn work(options: &DemoOptions, portal: &SimPortal, daemon: &Daemon) -> anyhow::Result<()> {
    let client = Client::unix(daemon.api_socket());
    let mut reports = Vec::new();
    for (name, write_cache) in VOLUMES {
        let attached = attach(&client, name, portal).await?;
        let (header, data) = digests_in_use(&attached);
        let cache = if write_cache { ", write cache" } else { "" };
        step(
            "attached",
            &format!(
                "{name}  {}, LUN {}, digests: header {header}, data {data}{cache}",
                HumanBytes(attached.size_bytes.unwrap_or(0)),
                attached
                    .identity
                    .and_then(|identity| identity.naa)
                    .map_or_else(|| "without NAA".to_owned(), |naa| format!("naa.{naa}")),
            ),
        );
    }
    println!();
    for (seed, (name, _)) in (1u64..).zip(VOLUMES) {
        let uri = Uri::unix(daemon.nbd_socket(), name);
        let size = options.size << 20;
        let bar = progress(name, "write", size);
        let write = workload::write_all(&uri, seed, |done| bar.set_position(done)).await?;
        finish(&bar, &write);
        let bar = progress(name, "verify", size);
        let verify = workload::verify_all(&uri, seed, |done| bar.set_position(done)).await?;
        finish(&bar, &verify);
        let length = Duration::from_secs(options.seconds);
        let bar = ProgressBar::new_spinner().with_message(format!("{name}  random 4 KiB reads"));
        bar.enable_steady_tick(Duration::from_millis(100));
        let random = workload::random_reads(&uri, seed, length).await?;
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

async fn attach(client: &Client, name: &str, portal: &SimPortal) -> anyhow::Result<Attachment> {
    let source = Source::Iscsi(IscsiSource {
        portals: vec![portal.address().to_string().parse()?],
        target: format!("iqn.2026-11.io.berth.demo:{name}").parse()?,
        lun: 0,
        auth: None,
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
        .with_context(|| format!("cannot attach {name}"))?;
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

fn next_steps(api: &Path, nbd: &Path) {
    let (api, nbd) = (api.display(), nbd.display());
    let ctl = std::env::current_exe()
        .ok()
        .map(|path| path.with_file_name("berthctl"))
        .filter(|path| path.exists())
        .map_or_else(
            || "cargo run --release --bin berthctl --".to_owned(),
            |p| p.display().to_string(),
        );
    println!("\nTry next, in another terminal:\n");
    println!("  export BERTH_SOCKET={api}");
    println!("  {ctl} list");
    println!("  {ctl} show demo-a");
    println!("  {ctl} bench demo-a --seconds 5");
    println!("  nbdinfo 'nbd+unix:///demo-a?socket={nbd}'");
    println!("  nbdcopy --progress 'nbd+unix:///demo-a?socket={nbd}' demo-a.img");
    println!("  curl --unix-socket {api} http://berth/v1/attachments");
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

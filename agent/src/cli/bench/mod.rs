//! `bench`: measures an attachment with our own NBD client, through the same socket as every other
//! client.

mod drive;
mod workload;

use std::time::Duration;

use berth_api::client::Client;
use berth_api::types::{Attachment, AttachmentState};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use self::drive::{Measured, drive};
use super::error::Failure;
use super::output::{Output, micros, size};
use crate::nbd::client::{Connection, Wishes};
use crate::nbd::handshake::ReplyMode;
use crate::nbd::uri::Uri;

pub(super) use self::workload::Bench;

/// How long connecting and negotiating may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What was asked for and what came of it, for programs.
#[derive(Debug, Serialize)]
struct Report {
    attachment: String,
    pattern: &'static str,
    request_bytes: u32,
    depth: u32,
    seconds: f64,
    requests: u64,
    iops: f64,
    bytes_per_second: f64,
    latency_us: Latency,
}

/// From handing a request to the client to having its answer, in microseconds.
#[derive(Debug, Serialize)]
struct Latency {
    min: f64,
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

pub(super) async fn run(
    client: &Client,
    output: &Output,
    arguments: &Bench,
) -> Result<(), Failure> {
    let attachment = client.attachment(&arguments.name).await?;
    let uri = check(&attachment, arguments)?;
    let wishes = Wishes {
        mode: ReplyMode::Structured,
        base_allocation: false,
    };
    let connect = tokio::time::timeout(CONNECT_TIMEOUT, Connection::connect(&uri, wishes));
    let mut connection = match connect.await {
        Ok(connected) => connected.map_err(|error| Failure::unsuccessful(&error))?,
        Err(_) => {
            return Err(Failure::Unsuccessful(format!(
                "{uri} did not answer within {} s",
                CONNECT_TIMEOUT.as_secs()
            )));
        }
    };
    let bar = progress(output, arguments.seconds);
    let measured = drive(&mut connection, arguments, &bar).await;
    bar.finish_and_clear();
    let measured = measured?;
    // The numbers are there; a goodbye that fails takes nothing from them.
    let _ = tokio::time::timeout(CONNECT_TIMEOUT, connection.disconnect()).await;
    let report = Report::new(arguments, &measured);
    if output.is_json() {
        output.json(&report)
    } else {
        output.text(&report.page(output))
    }
}

/// Whether the attachment can be measured so, and where it is.
fn check(attachment: &Attachment, arguments: &Bench) -> Result<Uri, Failure> {
    let name = &attachment.name;
    let refuse = |why: String| Err(Failure::Unsuccessful(format!("{name} {why}")));
    if attachment.state != AttachmentState::Attached {
        return refuse(format!(
            "is {}, and can be measured only when attached",
            attachment.state
        ));
    }
    if arguments.pattern.writes() {
        if !arguments.destructive {
            return Err(Failure::Usage(format!(
                "{} overwrites what {name} holds: say --destructive if that is meant",
                arguments.pattern.as_str()
            )));
        }
        if attachment.read_only {
            return refuse("is read-only".to_owned());
        }
        if attachment.nbd_clients > 0 {
            return refuse(format!(
                "is open by {} NBD client(s), who would find their data destroyed: close it first",
                attachment.nbd_clients
            ));
        }
    }
    let Some(uri) = &attachment.nbd_uri else {
        return refuse("has no NBD export".to_owned());
    };
    uri.parse()
        .map_err(|error| Failure::Unsuccessful(format!("{uri} cannot be used: {error}")))
}

fn progress(output: &Output, seconds: u32) -> ProgressBar {
    let bar = ProgressBar::new(u64::from(seconds) * 1000);
    if !output.is_terminal() || output.is_json() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let style = ProgressStyle::with_template("{bar:30.cyan} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style);
    bar
}

impl Report {
    fn new(arguments: &Bench, measured: &Measured) -> Self {
        let seconds = measured.elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
        let requests = measured.latency_ns.len();
        let us = |ns: u64| ns as f64 / 1000.0;
        let quantile = |q| us(measured.latency_ns.value_at_quantile(q));
        Self {
            attachment: arguments.name.to_string(),
            pattern: arguments.pattern.as_str(),
            request_bytes: arguments.size,
            depth: arguments.depth,
            seconds,
            requests,
            iops: requests as f64 / seconds,
            bytes_per_second: requests as f64 * f64::from(arguments.size) / seconds,
            latency_us: Latency {
                min: us(measured.latency_ns.min()),
                mean: measured.latency_ns.mean() / 1000.0,
                p50: quantile(0.5),
                p90: quantile(0.9),
                p99: quantile(0.99),
                p999: quantile(0.999),
                max: us(measured.latency_ns.max()),
            },
        }
    }

    fn page(&self, output: &Output) -> String {
        let mut text = format!(
            "{} {} of {}, {} in flight, {:.1} s\n",
            output.bold(&self.attachment),
            self.pattern,
            size(self.request_bytes.into()),
            self.depth,
            self.seconds
        );
        let latency = &self.latency_us;
        for (name, value) in [
            ("requests", self.requests.to_string()),
            ("per second", format!("{:.0}", self.iops)),
            (
                "throughput",
                format!(
                    "{:.1} MB/s ({}/s)",
                    self.bytes_per_second / 1e6,
                    size(self.bytes_per_second.round() as u64)
                ),
            ),
            (
                "latency",
                format!(
                    "mean {}, min {}, max {}",
                    micros(latency.mean),
                    micros(latency.min),
                    micros(latency.max)
                ),
            ),
            (
                "",
                format!(
                    "p50 {}, p90 {}, p99 {}, p99.9 {}",
                    micros(latency.p50),
                    micros(latency.p90),
                    micros(latency.p99),
                    micros(latency.p999)
                ),
            ),
        ] {
            text.push_str(&format!("  {}{value}\n", output.dim(&format!("{name:12}"))));
        }
        text
    }
}

//! `stats`: what went through, or what goes through now.

use std::time::{Duration, Instant};

use berth_api::client::Client;
use berth_api::types::{Attachment, Counters, OpCounters};
use serde::Serialize;

use super::args;
use super::error::Failure;
use super::output::{Output, micros, size, table};
use super::show::kinds;

/// Clears a terminal and puts the cursor into its corner.
const CLEAR: &str = "\x1b[H\x1b[2J";

pub(super) async fn run(
    client: &Client,
    output: &Output,
    arguments: &args::Stats,
) -> Result<(), Failure> {
    let Some(seconds) = arguments.watch else {
        let attachments = fetch(client, arguments).await?;
        if output.is_json() {
            let totals: Vec<_> = attachments.iter().map(Totals::of).collect();
            return output.json(&totals);
        }
        return output.text(&totals(&attachments));
    };
    let mut before = (Instant::now(), fetch(client, arguments).await?);
    let mut interval = tokio::time::interval(Duration::from_secs(seconds.into()));
    // The first tick is at once, and there is nothing to compare with yet.
    interval.tick().await;
    let mut left = arguments.count;
    while left != Some(0) {
        interval.tick().await;
        let now = (Instant::now(), fetch(client, arguments).await?);
        let rates = rates(&before.1, &now.1, now.0 - before.0);
        if output.is_json() {
            for rate in &rates {
                output.json_line(rate)?;
            }
        } else {
            let clear = if output.is_terminal() { CLEAR } else { "" };
            output.text(&format!("{clear}{}", rate_table(&rates)))?;
        }
        before = now;
        left = left.map(|left| left - 1);
    }
    Ok(())
}

async fn fetch(client: &Client, arguments: &args::Stats) -> Result<Vec<Attachment>, Failure> {
    Ok(match &arguments.name {
        Some(name) => vec![client.attachment(name).await?],
        None => client.attachments().await?,
    })
}

/// What went through an attachment, for programs.
#[derive(Serialize)]
struct Totals<'a> {
    name: &'a str,
    counters: &'a Counters,
}

impl<'a> Totals<'a> {
    fn of(attachment: &'a Attachment) -> Self {
        Self {
            name: attachment.name.as_str(),
            counters: &attachment.counters,
        }
    }
}

fn totals(attachments: &[Attachment]) -> String {
    let header = [
        "NAME",
        "READS",
        "READ",
        "WRITES",
        "WRITTEN",
        "FLUSHES",
        "TRIMS",
        "IN FLIGHT",
        "FAILED",
        "RECONNECTS",
    ];
    let rows = attachments.iter().map(|attachment| {
        let counters = &attachment.counters;
        vec![
            attachment.name.to_string(),
            counters.read.requests.to_string(),
            size(counters.read.bytes),
            counters.write.requests.to_string(),
            size(counters.write.bytes),
            counters.flush.requests.to_string(),
            (counters.trim.requests + counters.write_zeroes.requests).to_string(),
            counters.in_flight_requests.to_string(),
            failed(counters).to_string(),
            counters.reconnects.to_string(),
        ]
    });
    table(&header, &[1, 2, 3, 4, 5, 6, 7, 8, 9], rows.collect())
}

fn failed(counters: &Counters) -> u64 {
    kinds(counters).iter().map(|(_, op)| op.errors).sum()
}

/// What goes through an attachment, per second.
#[derive(Debug, Serialize, PartialEq)]
struct Rates {
    name: String,
    interval_seconds: f64,
    read: Rate,
    write: Rate,
    flush: Rate,
    in_flight_requests: u64,
    /// Requests that failed in the interval.
    failed: u64,
}

/// What goes through, of one kind of request.
#[derive(Debug, Serialize, PartialEq)]
struct Rate {
    requests_per_second: f64,
    bytes_per_second: f64,
    /// From request to answer; null without requests.
    average_us: Option<f64>,
}

impl Rate {
    /// Counters that went backwards began anew with the daemon: then what they show is what there was.
    fn of(before: OpCounters, now: OpCounters, seconds: f64) -> Self {
        let before = if now.requests < before.requests {
            OpCounters::default()
        } else {
            before
        };
        let requests = (now.requests - before.requests) as f64;
        let bytes = now.bytes.saturating_sub(before.bytes) as f64;
        let busy_us = now.busy_us.saturating_sub(before.busy_us) as f64;
        Self {
            requests_per_second: requests / seconds,
            bytes_per_second: bytes / seconds,
            average_us: (requests > 0.0).then(|| busy_us / requests),
        }
    }
}

/// Attachments that were there at both times.
fn rates(before: &[Attachment], now: &[Attachment], elapsed: Duration) -> Vec<Rates> {
    let seconds = elapsed.as_secs_f64().max(0.001);
    now.iter()
        .filter_map(|attachment| {
            let old = before.iter().find(|old| old.name == attachment.name)?;
            let (old, new) = (&old.counters, &attachment.counters);
            Some(Rates {
                name: attachment.name.to_string(),
                interval_seconds: seconds,
                read: Rate::of(old.read, new.read, seconds),
                write: Rate::of(old.write, new.write, seconds),
                flush: Rate::of(old.flush, new.flush, seconds),
                in_flight_requests: new.in_flight_requests,
                failed: failed(new).saturating_sub(failed(old)),
            })
        })
        .collect()
}

fn rate_table(rates: &[Rates]) -> String {
    let header = [
        "NAME",
        "READ/s",
        "READ B/s",
        "AVERAGE",
        "WRITE/s",
        "WRITE B/s",
        "AVERAGE",
        "FLUSH/s",
        "IN FLIGHT",
        "FAILED",
    ];
    let cells = |rate: &Rate| {
        [
            format!("{:.0}", rate.requests_per_second),
            size(rate.bytes_per_second.round() as u64),
            rate.average_us.map_or_else(|| "–".to_owned(), micros),
        ]
    };
    let rows = rates.iter().map(|rates| {
        let mut row = vec![rates.name.clone()];
        row.extend(cells(&rates.read));
        row.extend(cells(&rates.write));
        row.push(format!("{:.0}", rates.flush.requests_per_second));
        row.push(rates.in_flight_requests.to_string());
        row.push(rates.failed.to_string());
        row
    });
    table(&header, &[1, 2, 3, 4, 5, 6, 7, 8, 9], rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(requests: u64, bytes: u64, busy_us: u64) -> OpCounters {
        OpCounters {
            requests,
            bytes,
            errors: 0,
            busy_us,
        }
    }

    #[test]
    fn rates_are_differences_over_time() {
        let rate = Rate::of(op(100, 1000, 500), op(300, 5000, 2500), 2.0);
        assert_eq!(
            rate,
            Rate {
                requests_per_second: 100.0,
                bytes_per_second: 2000.0,
                average_us: Some(10.0)
            }
        );
        let idle = Rate::of(op(5, 5, 5), op(5, 5, 5), 1.0);
        assert_eq!(idle.average_us, None);
        // The daemon was restarted in between.
        let restarted = Rate::of(op(1000, 9000, 9000), op(10, 100, 50), 1.0);
        assert_eq!(restarted.requests_per_second, 10.0);
        assert_eq!(restarted.bytes_per_second, 100.0);
    }
}

//! Keeps so many requests in flight for so long, and measures them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use indicatif::ProgressBar;

use super::workload::{Bench, Workload};
use crate::cli::error::Failure;
use crate::nbd::client::{Connection, Token};

/// Longest latency that is told apart from longer ones, in nanoseconds: one hour.
const LATENCY_MAX_NS: u64 = 3_600_000_000_000;
/// How often the progress is shown.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// Silence after which the attachment is given up: longer than a path change takes.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// What was measured.
pub(super) struct Measured {
    /// From the first request to the last answer.
    pub(super) elapsed: Duration,
    /// Of every request.
    pub(super) latency_ns: Histogram<u64>,
}

/// Runs the workload that the arguments ask for; Ctrl-C ends it early, with what there is.
pub(super) async fn drive(
    connection: &mut Connection,
    arguments: &Bench,
    bar: &ProgressBar,
) -> Result<Measured, Failure> {
    let device_bytes = connection.facts().size_bytes;
    let seed = getrandom::u64().unwrap_or(0x9e37_79b9_7f4a_7c15);
    let mut workload = Workload::new(arguments.pattern, arguments.size, device_bytes, seed)
        .ok_or_else(|| {
            Failure::Usage(format!(
                "--size {} is more than the {device_bytes} bytes of {}",
                arguments.size, arguments.name
            ))
        })?;
    let mut latency_ns = Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3)
        .map_err(|error| Failure::unsuccessful(&error))?;
    let mut sent: HashMap<Token, Instant> = HashMap::with_capacity(arguments.depth as usize);
    let began = Instant::now();
    let end = began + Duration::from_secs(arguments.seconds.into());
    let mut shown = began;
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    let mut now = began;
    let mut going = true;
    loop {
        going = going && now < end;
        while going && sent.len() < arguments.depth as usize {
            let token = connection
                .submit(&workload.next_op())
                .map_err(|error| Failure::unsuccessful(&error))?;
            sent.insert(token, Instant::now());
        }
        if sent.is_empty() {
            break;
        }
        let next = tokio::select! {
            biased;
            next = tokio::time::timeout(SILENCE_MAX, connection.next()) => next,
            _ = &mut interrupted, if going => {
                going = false;
                continue;
            }
        };
        let completed = match next {
            Ok(completed) => completed.map_err(|error| Failure::unsuccessful(&error))?,
            Err(_) => {
                return Err(Failure::Unsuccessful(format!(
                    "no answer for {} s; \"berthctl show {}\" tells where it stands",
                    SILENCE_MAX.as_secs(),
                    arguments.name
                )));
            }
        };
        now = Instant::now();
        completed.result.map_err(|error| {
            Failure::Unsuccessful(format!("a request failed after {:?}: {error}", now - began))
        })?;
        if let Some(sent_at) = sent.remove(&completed.token) {
            let ns = u64::try_from((now - sent_at).as_nanos()).unwrap_or(LATENCY_MAX_NS);
            latency_ns.saturating_record(ns.max(1));
        }
        if now - shown >= PROGRESS_EVERY {
            shown = now;
            show(bar, began, now, &latency_ns);
        }
    }
    Ok(Measured {
        elapsed: now - began,
        latency_ns,
    })
}

fn show(bar: &ProgressBar, began: Instant, now: Instant, latency_ns: &Histogram<u64>) {
    let elapsed = now - began;
    bar.set_position(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
    bar.set_message(format!(
        "{:.0} requests/s, p99 {}",
        latency_ns.len() as f64 / elapsed.as_secs_f64(),
        crate::cli::output::micros(latency_ns.value_at_quantile(0.99) as f64 / 1000.0)
    ));
}

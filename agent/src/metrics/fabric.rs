//! What the storage fabric was asked.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Page;
use crate::fabric::Stats;
use crate::fabric::stats::EDGES_MS;

pub(super) fn render(page: &mut Page, stats: &Stats) {
    let name = "berth_fabric_requests_total";
    page.family(name, "counter", "Requests to the fabric by outcome.");
    for (method, outcome, count) in stats.requests() {
        let labels = [("method", method), ("outcome", outcome.as_str())];
        page.sample(name, &labels, count);
    }
    let name = "berth_fabric_request_duration_seconds";
    page.family(name, "histogram", "Time from request to answer or failure.");
    let (below, all, seconds) = stats.durations();
    for (edge_ms, count) in EDGES_MS.iter().zip(below) {
        let edge = (*edge_ms as f64 / 1e3).to_string();
        page.sample(&format!("{name}_bucket"), &[("le", edge.as_str())], count);
    }
    page.sample(&format!("{name}_bucket"), &[("le", "+Inf")], all);
    page.sample(&format!("{name}_sum"), &[], seconds);
    page.sample(&format!("{name}_count"), &[], all);
    let single: [(&str, &str, &str, &AtomicU64); 5] = [
        (
            "berth_fabric_retries_total",
            "counter",
            "Requests that were sent again.",
            &stats.retries,
        ),
        (
            "berth_fabric_logins_total",
            "counter",
            "Logins that succeeded.",
            &stats.logins,
        ),
        (
            "berth_fabric_calls_rested_total",
            "counter",
            "Requests that were not sent because the fabric is left alone for a while.",
            &stats.rested,
        ),
        (
            "berth_fabric_requests_in_flight",
            "gauge",
            "Requests under way.",
            &stats.in_flight,
        ),
        (
            "berth_fabric_resting",
            "gauge",
            "1 while the fabric is left alone because it failed again and again.",
            &stats.resting,
        ),
    ];
    for (name, kind, help, value) in single {
        page.family(name, kind, help);
        page.sample(name, &[], value.load(Ordering::Relaxed));
    }
}

//! Metrics in Prometheus text format 0.0.4, made afresh from the counters at each scrape.

mod fabric;

use std::fmt::Write as _;

use crate::block::stats::OpKind;
use crate::fabric::Stats;
use crate::plane::Snapshot;
use crate::plane::spec::{PathView, RecoveryCounters};
use crate::volume::Known;

/// Upper edges of the latency histogram that is shown, in seconds; the counters are finer.
const LATENCY_EDGES_S: [f64; 12] = [
    0.000_064, 0.000_128, 0.000_256, 0.000_512, 0.001, 0.002, 0.004, 0.016, 0.064, 0.256, 1.024,
    8.192,
];

/// Writes one family after another.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.text.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let _ = write!(self.text, "{}{label}=\"", if at == 0 { '{' } else { ',' });
            for c in text.chars() {
                match c {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    c => self.text.push(c),
                }
            }
            self.text.push('"');
        }
        let _ = writeln!(
            self.text,
            "{} {value}",
            if labels.is_empty() { "" } else { "}" }
        );
    }
}

/// The whole page. `uptime_ms`: since the daemon started.
pub(crate) fn render(
    all: &[(Known, Option<Snapshot>)],
    fabric: Option<&Stats>,
    uptime_ms: u64,
) -> String {
    let mut page = Page::default();
    page.family("berth_build_info", "gauge", "Version of the daemon.");
    page.sample(
        "berth_build_info",
        &[("version", env!("CARGO_PKG_VERSION"))],
        1,
    );
    page.family(
        "berth_uptime_seconds",
        "gauge",
        "Time since the daemon started.",
    );
    page.sample("berth_uptime_seconds", &[], uptime_ms as f64 / 1e3);
    page.family("berth_attachments", "gauge", "Attachments by state.");
    for state in [
        "connecting",
        "attached",
        "recovering",
        "detaching",
        "failed",
    ] {
        let count = all
            .iter()
            .filter(|(known, _)| known.state().0.as_str() == state)
            .count();
        page.sample("berth_attachments", &[("state", state)], count);
    }
    requests(&mut page, all);
    volumes(&mut page, all);
    recovery(&mut page, all);
    paths(&mut page, all);
    if let Some(stats) = fabric {
        fabric::render(&mut page, stats);
    }
    page.text
}

fn requests(page: &mut Page, all: &[(Known, Option<Snapshot>)]) {
    let counted = || {
        all.iter().flat_map(|(known, _)| {
            let stats = known.volume().map(|volume| volume.stats());
            stats.into_iter().flat_map(move |stats| {
                OpKind::ALL
                    .into_iter()
                    .map(move |kind| (known.name.as_str(), kind, stats.op(kind)))
            })
        })
    };
    page.family(
        "berth_nbd_requests_total",
        "counter",
        "Requests answered, failed ones too.",
    );
    for (volume, kind, op) in counted() {
        page.sample(
            "berth_nbd_requests_total",
            &[("volume", volume), ("op", kind.name())],
            op.requests(),
        );
    }
    page.family(
        "berth_nbd_request_bytes_total",
        "counter",
        "Bytes of requests that succeeded.",
    );
    for (volume, kind, op) in counted() {
        page.sample(
            "berth_nbd_request_bytes_total",
            &[("volume", volume), ("op", kind.name())],
            op.bytes(),
        );
    }
    page.family("berth_io_errors_total", "counter", "Requests that failed.");
    for (volume, kind, op) in counted() {
        page.sample(
            "berth_io_errors_total",
            &[("volume", volume), ("op", kind.name())],
            op.errors(),
        );
    }
    let name = "berth_nbd_request_duration_seconds";
    page.family(name, "histogram", "Time from request to answer.");
    for (volume, kind, op) in counted().filter(|(_, _, op)| op.requests() > 0) {
        let fine: Vec<(f64, u64)> = op.latency_cumulative().collect();
        let labels = [("volume", volume), ("op", kind.name())];
        for edge in LATENCY_EDGES_S {
            let below = fine.iter().take_while(|(upper, _)| *upper <= edge).last();
            let edge = edge.to_string();
            let labels = [labels[0], labels[1], ("le", edge.as_str())];
            page.sample(
                &format!("{name}_bucket"),
                &labels,
                below.map_or(0, |(_, count)| *count),
            );
        }
        let count = fine.last().map_or(0, |(_, count)| *count);
        page.sample(
            &format!("{name}_bucket"),
            &[labels[0], labels[1], ("le", "+Inf")],
            count,
        );
        page.sample(&format!("{name}_sum"), &labels, op.busy().as_secs_f64());
        page.sample(&format!("{name}_count"), &labels, count);
    }
}

fn volumes(page: &mut Page, all: &[(Known, Option<Snapshot>)]) {
    let mut each = |name: &str, kind: &str, help: &str, value: &dyn Fn(&Snapshot) -> u64| {
        page.family(name, kind, help);
        for (known, snapshot) in all {
            if let Some(snapshot) = snapshot {
                page.sample(name, &[("volume", known.name.as_str())], value(snapshot));
            }
        }
    };
    each(
        "berth_nbd_clients",
        "gauge",
        "NBD connections that have the export open.",
        &|s| s.clients.into(),
    );
    each(
        "berth_iscsi_commands_total",
        "counter",
        "SCSI commands sent.",
        &|s| s.commands,
    );
    each(
        "berth_iscsi_digests_checked_total",
        "counter",
        "Digests that were checked.",
        &|s| s.digests_checked,
    );
    each(
        "berth_iscsi_digest_errors_total",
        "counter",
        "Digests that were wrong.",
        &|s| s.digest_errors,
    );
}

/// Paths and what recovery had to do.
fn recovery(page: &mut Page, all: &[(Known, Option<Snapshot>)]) {
    type Value = fn(&RecoveryCounters) -> u64;
    const FAMILIES: [(&str, &str, &str, Value); 12] = [
        (
            "berth_sessions_lost_total",
            "counter",
            "Sessions that ended without being asked to.",
            |c| c.sessions_lost,
        ),
        (
            "berth_sessions_reinstated_total",
            "counter",
            "Sessions that were set up again.",
            |c| c.sessions_reinstated,
        ),
        (
            "berth_commands_resent_total",
            "counter",
            "Commands that were sent again.",
            |c| c.commands_resent,
        ),
        (
            "berth_ghost_writes_total",
            "counter",
            "Writes whose fate was unknown, and which waited for the end of their session.",
            |c| c.ghosts,
        ),
        (
            "berth_ghost_writes_waiting",
            "gauge",
            "Such writes that wait now.",
            |c| c.ghosts_waiting,
        ),
        (
            "berth_stalls_total",
            "counter",
            "Times that no path took I/O.",
            |c| c.stalls,
        ),
        (
            "berth_stall_longest_milliseconds",
            "gauge",
            "The longest of these times; counts the present one too.",
            |c| c.stall_longest_ms,
        ),
        (
            "berth_cache_losses_total",
            "counter",
            "Resets of a unit that had a volatile cache with unflushed writes.",
            |c| c.cache_losses,
        ),
        (
            "berth_recovery_timeouts_total",
            "counter",
            "Requests that failed because the recovery timeout was over.",
            |c| c.requests_timed_out,
        ),
        (
            "berth_commands_aborted_total",
            "counter",
            "Commands that were aborted because they took too long.",
            |c| c.aborts,
        ),
        (
            "berth_lun_resets_total",
            "counter",
            "Resets of the logical unit because commands could not be aborted.",
            |c| c.lun_resets,
        ),
        (
            "berth_reservation_conflicts_total",
            "counter",
            "Commands refused because another node holds a reservation.",
            |c| c.reservation_conflicts,
        ),
    ];
    for (name, kind, help, value) in FAMILIES {
        page.family(name, kind, help);
        for (known, snapshot) in all {
            if let Some(snapshot) = snapshot {
                let labels = [("volume", known.name.as_str())];
                page.sample(name, &labels, value(&snapshot.recovery));
            }
        }
    }
}

fn paths(page: &mut Page, all: &[(Known, Option<Snapshot>)]) {
    let each = || {
        all.iter().flat_map(|(known, snapshot)| {
            let paths = snapshot.iter().flat_map(|snapshot| &snapshot.paths);
            paths.map(move |path| (known.name.as_str(), path.status.portal.to_string(), path))
        })
    };
    page.family("berth_path_state", "gauge", "1 for the state of each path.");
    for (volume, portal, path) in each() {
        let labels = [
            ("volume", volume),
            ("portal", portal.as_str()),
            ("state", path.status.state.as_str()),
        ];
        page.sample("berth_path_state", &labels, 1);
    }
    type Value = fn(&PathView) -> f64;
    const FAMILIES: [(&str, &str, &str, Value); 4] = [
        (
            "berth_path_failures_total",
            "counter",
            "Times that a path was lost or could not be brought up.",
            |path| path.failures as f64,
        ),
        (
            "berth_path_in_flight_commands",
            "gauge",
            "Commands in flight on a path.",
            |path| path.in_flight.into(),
        ),
        (
            "berth_path_queue_depth",
            "gauge",
            "Most commands that are sent over a path at a time.",
            |path| path.queue_depth.into(),
        ),
        (
            "berth_path_service_seconds",
            "gauge",
            "Recent mean time from command to answer.",
            |path| path.service_time_us as f64 / 1e6,
        ),
    ];
    for (name, kind, help, value) in FAMILIES {
        page.family(name, kind, help);
        for (volume, portal, path) in each() {
            let labels = [("volume", volume), ("portal", portal.as_str())];
            page.sample(name, &labels, value(path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_are_escaped() {
        let mut page = Page::default();
        page.sample("m", &[("a", "q\"b\\s\nn"), ("b", "x")], 3);
        assert_eq!(page.text, "m{a=\"q\\\"b\\\\s\\nn\",b=\"x\"} 3\n");
    }

    #[test]
    fn a_node_without_attachments_has_a_page_too() {
        let text = render(&[], None, 1500);
        assert!(text.contains("berth_uptime_seconds 1.5\n"), "{text}");
        assert!(
            text.contains("berth_attachments{state=\"attached\"} 0\n"),
            "{text}"
        );
    }
}

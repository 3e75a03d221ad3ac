//! Everything about one attachment, on a page.

use std::fmt::Write as _;

use berth_api::types::{
    Attachment, AuthSummary, Counters, DigestPolicy, Fence, Identity, OpCounters, RecoveryTimeout,
    SourceSummary,
};

use super::output::{Output, age, clean, micros, or_dash, size, table};

/// Width of the names on the left, in characters.
const NAME_WIDTH: usize = 18;

pub(super) fn page(attachment: &Attachment, output: &Output) -> String {
    let mut page = Page {
        text: format!(
            "{} is {} for {}\n",
            output.bold(attachment.name.as_str()),
            output.state(attachment.state),
            age(attachment.since_unix_ms)
        ),
        output,
    };
    if let Some(reason) = &attachment.reason {
        let text = format!("  {} ({})", reason.detail, reason.code);
        page.line(&clean(&text));
    }
    page.device(attachment);
    page.source(attachment);
    page.paths(attachment);
    page.sessions(attachment);
    page.heading("I/O");
    for line in counters(&attachment.counters).lines() {
        page.line(&format!("  {line}"));
    }
    page.text
}

struct Page<'a> {
    text: String,
    output: &'a Output,
}

impl Page<'_> {
    fn line(&mut self, text: &str) {
        self.text.push_str(text);
        self.text.push('\n');
    }

    fn heading(&mut self, text: &str) {
        let heading = self.output.bold(text);
        self.line(&heading);
    }

    fn pair(&mut self, name: &str, value: &str) {
        let name = self.output.dim(&format!("{name:NAME_WIDTH$}"));
        self.line(&format!("  {name}{}", clean(value)));
    }

    fn device(&mut self, attachment: &Attachment) {
        if let Some(device) = &attachment.device {
            self.pair("Device", device);
        }
        if let Some(uri) = &attachment.nbd_uri {
            self.pair("NBD", uri);
        }
        if let Some(bytes) = attachment.size_bytes {
            let mut text = format!("{} ({bytes} bytes)", size(bytes));
            if let Some(block) = attachment.block_size_bytes {
                let _ = write!(text, ", blocks of {block}");
            }
            if let Some(block) = attachment.physical_block_size_bytes {
                let _ = write!(text, ", physical {block}");
            }
            self.pair("Size", &text);
        }
        self.pair(
            "Access",
            if attachment.read_only {
                "read-only"
            } else {
                "read-write"
            },
        );
        let clients = match attachment.nbd_clients {
            0 => "nobody".to_owned(),
            1 => "1 NBD client".to_owned(),
            many => format!("{many} NBD clients"),
        };
        self.pair("In use by", &clients);
        if let Some(volume) = &attachment.identity {
            let parts = [&volume.vendor, &volume.product, &volume.revision];
            let model: Vec<_> = parts.into_iter().flatten().map(String::as_str).collect();
            if !model.is_empty() {
                self.pair("Model", &model.join(" "));
            }
            if let Some(identity) = identity(volume) {
                self.pair("Identity", &identity);
            }
            if let Some(serial) = &volume.serial {
                self.pair("Serial", serial);
            }
        }
    }

    fn source(&mut self, attachment: &Attachment) {
        if let SourceSummary::Fabric(source) = &attachment.source {
            self.pair("Volume", source.volume.as_str());
            if let Some(unit) = &source.unit {
                self.pair("Unit", unit);
            }
            let after = if source.revoke_on_detach {
                "not admitted any more"
            } else {
                "stays admitted"
            };
            self.pair("After detach", after);
        }
        let source = attachment.source.iscsi();
        self.pair("Target", &or_dash(source.map(|source| &source.target)));
        self.pair("LUN", &or_dash(source.map(|source| source.lun)));
        let login = match source.and_then(|source| source.auth.as_ref()) {
            None => "without authentication".to_owned(),
            Some(AuthSummary::Chap(chap)) if chap.mutual => {
                format!("CHAP as {}, mutual", chap.user)
            }
            Some(AuthSummary::Chap(chap)) => format!("CHAP as {}", chap.user),
        };
        self.pair("Login", &login);
        let policy = |policy| match policy {
            DigestPolicy::Off => "off",
            DigestPolicy::Prefer => "preferred",
            DigestPolicy::Require => "required",
        };
        let digests = format!(
            "header {}, data {}",
            policy(attachment.digests.header),
            policy(attachment.digests.data)
        );
        self.pair("Digests", &digests);
        let timeout = match attachment.recovery_timeout_seconds {
            RecoveryTimeout::Forever => "forever".to_owned(),
            RecoveryTimeout::Seconds(0) => "not at all".to_owned(),
            RecoveryTimeout::Seconds(seconds) => format!("{seconds} s"),
        };
        self.pair("I/O waits", &timeout);
        let fence = match (attachment.fence, &attachment.reservation_key) {
            (Fence::None, _) => "none".to_owned(),
            (Fence::Acl, _) => "access list of the fabric".to_owned(),
            (Fence::Reservation, None) => "reservation".to_owned(),
            (Fence::Reservation, Some(key)) => format!("reservation, key {key}"),
        };
        self.pair("Fence", &fence);
    }

    fn paths(&mut self, attachment: &Attachment) {
        if attachment.paths.is_empty() {
            return;
        }
        self.heading("Paths");
        let rows = attachment.paths.iter().map(|path| {
            vec![
                path.portal.to_string(),
                path.state.to_string(),
                age(path.since_unix_ms),
                or_dash(path.access.as_ref().map(|access| {
                    let preferred = if path.preferred { ", preferred" } else { "" };
                    format!("{access}{preferred}")
                })),
                or_dash(path.portal_group_tag),
                format!("{}/{}", path.in_flight_commands, path.queue_depth),
                match path.service_time_us {
                    0 => "–".to_owned(),
                    time => micros(time as f64),
                },
                path.failures.to_string(),
            ]
        });
        let header = [
            "PORTAL", "STATE", "SINCE", "ACCESS", "GROUP", "QUEUE", "TIME", "FAILURES",
        ];
        for line in table(&header, &[4, 5, 6, 7], rows.collect()).lines() {
            self.line(&format!("  {line}"));
        }
        for path in &attachment.paths {
            if let Some(reason) = &path.reason {
                let text = format!("  {}: {} ({})", path.portal, reason.detail, reason.code);
                self.line(&clean(&text));
            }
        }
    }

    fn sessions(&mut self, attachment: &Attachment) {
        if attachment.sessions.is_empty() {
            return;
        }
        self.heading("Sessions");
        for session in &attachment.sessions {
            let mut text = format!("  ISID {}, TSIH {}", session.isid, session.tsih);
            if let Some(tag) = session.portal_group_tag {
                let _ = write!(text, ", portal group {tag}");
            }
            self.line(&clean(&text));
            for connection in &session.connections {
                let text = format!(
                    "    connection {}: {} -> {} for {}",
                    connection.cid,
                    connection.local,
                    connection.peer,
                    age(connection.since_unix_ms)
                );
                self.line(&clean(&text));
            }
            for keys in session.negotiated.iter().collect::<Vec<_>>().chunks(3) {
                let mut text = String::from("   ");
                for (key, value) in keys {
                    let _ = write!(text, " {key}={value}");
                }
                let text = clean(&text).into_owned();
                let text = self.output.dim(&text);
                self.line(&text);
            }
        }
    }
}

/// The five kinds of requests with their names.
pub(super) fn kinds(counters: &Counters) -> [(&'static str, OpCounters); 5] {
    [
        ("read", counters.read),
        ("write", counters.write),
        ("flush", counters.flush),
        ("trim", counters.trim),
        ("write zeroes", counters.write_zeroes),
    ]
}

/// The strongest name that a volume has.
pub(super) fn identity(identity: &Identity) -> Option<String> {
    None.or(identity.naa.as_ref().map(|id| format!("naa.{id}")))
        .or(identity.eui.as_ref().map(|id| format!("eui.{id}")))
        .or(identity.serial.as_ref().map(|id| format!("serial {id}")))
}

fn counters(counters: &Counters) -> String {
    let rows = kinds(counters).into_iter().map(|(name, op)| {
        let average = if op.requests == 0 {
            "–".to_owned()
        } else {
            micros(op.busy_us as f64 / op.requests as f64)
        };
        vec![
            name.to_owned(),
            op.requests.to_string(),
            size(op.bytes),
            average,
            op.errors.to_string(),
        ]
    });
    let header = ["", "REQUESTS", "BYTES", "AVERAGE", "FAILED"];
    let mut text = table(&header, &[1, 2, 3, 4], rows.collect());
    let _ = write!(
        text,
        "\nin flight {} ({}), reconnects {}, digests checked {}, digest errors {}",
        counters.in_flight_requests,
        size(counters.in_flight_bytes),
        counters.reconnects,
        counters.digests_checked,
        counters.digest_errors
    );
    let recovery = &counters.recovery;
    let told = [
        (recovery.sessions_lost, "sessions lost"),
        (recovery.commands_resent, "commands sent again"),
        (recovery.ghosts, "writes of unknown fate"),
        (recovery.ghosts_waiting, "of them waiting"),
        (recovery.stalls, "stalls"),
        (recovery.stall_longest_ms, "ms the longest stall"),
        (
            recovery.requests_timed_out,
            "requests failed by the recovery timeout",
        ),
        (recovery.cache_losses, "cache losses"),
        (recovery.aborts, "aborts"),
        (recovery.lun_resets, "LUN resets"),
        (recovery.reservation_conflicts, "reservation conflicts"),
    ];
    let told: Vec<String> = told
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    if !told.is_empty() {
        let _ = write!(text, "\nrecovery: {}", told.join(", "));
    }
    text
}

//! An attachment as the API shows it.

use std::collections::BTreeMap;

use berth_api::AttachmentName;
use berth_api::types::{
    Attachment, AttachmentState, Connection, Counters, OpCounters, Path, PathState, Reason,
    RecoveryCounters, RecoveryTimeout, Session, SourceSummary,
};

use crate::block::stats::{IoStats, OpKind};
use crate::initiator;
use crate::nbd::uri::Uri;
use crate::plane::spec::{self, PathView};
use crate::plane::{SessionView, Snapshot};
use crate::volume::Known;

/// Everything about one attachment; `default` is the recovery timeout where none was asked for.
pub(super) fn attachment(
    known: &Known,
    snapshot: Option<&Snapshot>,
    stats: Option<&IoStats>,
    nbd_socket: &std::path::Path,
    default: RecoveryTimeout,
) -> Attachment {
    let request = &known.request;
    let (state, since_unix_ms, reason) = known.state();
    let geometry = known.volume().map(|volume| volume.geometry());
    let up = known.volume().is_some();
    let paths = match snapshot {
        Some(snapshot) => snapshot.paths.iter().map(path).collect(),
        None => paths_without_volume(known),
    };
    let sessions = snapshot
        .iter()
        .flat_map(|snapshot| &snapshot.paths)
        .filter_map(|path| path.session.as_ref().map(|view| session(path, view)))
        .collect();
    Attachment {
        name: known.name.clone(),
        state,
        since_unix_ms,
        reason,
        device: known.device().map(str::to_owned),
        device_detail: known.device_detail().map(str::to_owned),
        nbd_uri: up.then(|| nbd_uri(&known.name, nbd_socket)),
        size_bytes: geometry.as_ref().map(|g| g.size_bytes),
        block_size_bytes: geometry.as_ref().map(|g| g.logical_block_bytes),
        physical_block_size_bytes: geometry.as_ref().map(|g| g.physical_block_bytes),
        read_only: geometry.as_ref().map_or(request.read_only, |g| g.read_only),
        identity: known.volume().map(|volume| volume.ready().facts.clone()),
        source: SourceSummary::from(&request.source),
        device_wish: request.device,
        fence: request.fence,
        reservation_key: known.reservation_key().map(|key| key.to_string()),
        digests: request.digests,
        recovery_timeout_seconds: request.recovery_timeout_seconds.unwrap_or(default),
        paths,
        sessions,
        nbd_clients: snapshot.map_or(0, |snapshot| snapshot.clients),
        counters: counters(stats, snapshot, known.reconnects()),
    }
}

/// The URI by which NBD clients find the export.
#[must_use]
pub fn nbd_uri(name: &AttachmentName, socket: &std::path::Path) -> String {
    Uri::unix(socket, name.as_str()).to_string()
}

fn path(view: &PathView) -> Path {
    let status = &view.status;
    Path {
        portal: initiator::api_portal(&status.portal),
        state: status.state,
        since_unix_ms: status.since_unix_ms,
        reason: status.reason.as_ref().map(Reason::from),
        access: view.access.map(|access| access.to_string()),
        preferred: view.preferred,
        portal_group_tag: status.portal_group,
        in_flight_commands: view.in_flight,
        queue_depth: view.queue_depth,
        service_time_us: view.service_time_us,
        failures: view.failures,
    }
}

/// What can be said while nothing is up, or nothing answers.
fn paths_without_volume(known: &Known) -> Vec<Path> {
    let (state, since_unix_ms, reason) = known.state();
    let source = known.request.source.iscsi();
    let path = |portal: &berth_api::Portal| Path {
        portal: portal.clone(),
        state: match state {
            AttachmentState::Connecting => PathState::Connecting,
            _ => PathState::Down,
        },
        since_unix_ms,
        reason: reason.clone(),
        access: None,
        preferred: false,
        portal_group_tag: None,
        in_flight_commands: 0,
        queue_depth: 0,
        service_time_us: 0,
        failures: 0,
    };
    source.map_or_else(Vec::new, |source| source.portals.iter().map(path).collect())
}

fn session(path: &PathView, view: &SessionView) -> Session {
    Session {
        portal: Some(initiator::api_portal(&path.status.portal)),
        isid: view.isid.to_string(),
        tsih: view.tsih,
        portal_group_tag: view.portal_group_tag,
        connections: vec![Connection {
            cid: view.cid,
            local: view.local.clone(),
            peer: view.peer.clone(),
            since_unix_ms: view.since_unix_ms,
        }],
        negotiated: view
            .negotiated
            .clone()
            .into_iter()
            .collect::<BTreeMap<_, _>>(),
    }
}

fn counters(stats: Option<&IoStats>, snapshot: Option<&Snapshot>, reconnects: u64) -> Counters {
    let op = |kind| {
        stats.map_or_else(OpCounters::default, |stats| {
            let op = stats.op(kind);
            OpCounters {
                requests: op.requests(),
                bytes: op.bytes(),
                errors: op.errors(),
                busy_us: u64::try_from(op.busy().as_micros()).unwrap_or(u64::MAX),
            }
        })
    };
    let recovery = snapshot.map_or_else(spec::RecoveryCounters::default, |s| s.recovery);
    Counters {
        read: op(OpKind::Read),
        write: op(OpKind::Write),
        flush: op(OpKind::Flush),
        trim: op(OpKind::Trim),
        write_zeroes: op(OpKind::WriteZeroes),
        in_flight_requests: stats.map_or(0, IoStats::in_flight),
        in_flight_bytes: stats.map_or(0, IoStats::in_flight_bytes),
        reconnects: reconnects + recovery.sessions_reinstated,
        digests_checked: snapshot.map_or(0, |s| s.digests_checked),
        digest_errors: snapshot.map_or(0, |s| s.digest_errors),
        recovery: recovery_counters(recovery),
    }
}

fn recovery_counters(counters: spec::RecoveryCounters) -> RecoveryCounters {
    let spec::RecoveryCounters {
        sessions_lost,
        sessions_reinstated,
        commands_resent,
        ghosts,
        ghosts_waiting,
        stalls,
        stall_longest_ms,
        cache_losses,
        requests_timed_out,
        aborts,
        lun_resets,
        reservation_conflicts,
    } = counters;
    RecoveryCounters {
        sessions_lost,
        sessions_reinstated,
        commands_resent,
        ghosts,
        ghosts_waiting,
        stalls,
        stall_longest_ms,
        cache_losses,
        requests_timed_out,
        aborts,
        lun_resets,
        reservation_conflicts,
    }
}

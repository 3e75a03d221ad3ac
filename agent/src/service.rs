//! The node as the API sees it: translate in, call, translate out.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use berth_api::events::EventLog;
use berth_api::types::{
    AttachRequest, Attachment, AttachmentState, CheckResult, Connection, Counters, DeviceWish,
    Discovery, DiscoveryRequest, Health, KernelNbd, Node, NodeLimits, OpCounters, Path, PathState,
    Reason, Session, Source, SourceSummary, unix_ms_now,
};
use berth_api::{Attached, AttachmentName, Call, Code, Error, EventStream, NodeService};

use crate::block::stats::{IoStats, OpKind};
use crate::discovery::Discoverer;
use crate::metrics;
use crate::nbd::uri::Uri;
use crate::nbd::wire::PAYLOAD_MAX_BYTES;
use crate::plane::spec::PathView;
use crate::plane::{SessionView, Snapshot};
use crate::volume::{Known, Manager};

/// Facts about the node that do not change while the daemon runs.
#[derive(Debug, Clone)]
pub struct NodeFacts {
    /// Name of the node.
    pub name: String,
    /// iSCSI name of the initiator.
    pub initiator_name: String,
    /// Path of the NBD socket.
    pub nbd_socket: PathBuf,
    /// Threads of the data plane.
    pub data_threads: usize,
    /// Most attachments.
    pub attachments_max: usize,
    /// When the daemon started.
    pub started_unix_ms: u64,
}

/// The daemon behind its API.
pub struct Service {
    manager: Arc<Manager>,
    events: Arc<EventLog>,
    facts: NodeFacts,
    discoverer: Discoverer,
}

impl Service {
    /// A service over the manager.
    #[must_use]
    pub fn new(
        manager: Arc<Manager>,
        events: Arc<EventLog>,
        facts: NodeFacts,
        discoverer: Discoverer,
    ) -> Self {
        Self {
            manager,
            events,
            facts,
            discoverer,
        }
    }

    async fn view(&self, known: Known) -> Attachment {
        let snapshot = match known.volume() {
            Some(volume) => volume.snapshot().await,
            None => None,
        };
        let stats = known.volume().map(|volume| Arc::clone(volume.stats()));
        view(
            &known,
            snapshot.as_ref(),
            stats.as_deref(),
            &self.facts.nbd_socket,
        )
    }
}

fn view(
    known: &Known,
    snapshot: Option<&Snapshot>,
    stats: Option<&IoStats>,
    nbd_socket: &std::path::Path,
) -> Attachment {
    let request = &known.request;
    let (state, since_unix_ms, reason) = known.state();
    let geometry = known.volume().map(|volume| volume.geometry());
    let Source::Iscsi(source) = &request.source;
    let up = known.volume().is_some();
    let paths = source
        .portals
        .iter()
        .map(|portal| {
            let asked = portal.to_string();
            let view = snapshot.and_then(|snapshot| {
                let found = |view: &&PathView| view.status.portal.to_string() == asked;
                snapshot.paths.iter().find(found)
            });
            match view {
                Some(view) => Path {
                    portal: portal.clone(),
                    state: view.status.state,
                    since_unix_ms: view.status.since_unix_ms,
                    reason: view.status.reason.as_ref().map(Reason::from),
                },
                None => Path {
                    portal: portal.clone(),
                    state: match state {
                        AttachmentState::Connecting => PathState::Connecting,
                        _ => PathState::Down,
                    },
                    since_unix_ms,
                    reason: reason.clone(),
                },
            }
        })
        .collect();
    let sessions = snapshot.map_or_else(Vec::new, |snapshot| {
        let sessions = snapshot
            .paths
            .iter()
            .filter_map(|path| path.session.as_ref());
        sessions.map(session_view).collect()
    });
    Attachment {
        name: known.name.clone(),
        state,
        since_unix_ms,
        reason,
        device: None,
        nbd_uri: up.then(|| nbd_uri(&known.name, nbd_socket)),
        size_bytes: geometry.as_ref().map(|g| g.size_bytes),
        block_size_bytes: geometry.as_ref().map(|g| g.logical_block_bytes),
        physical_block_size_bytes: geometry.as_ref().map(|g| g.physical_block_bytes),
        read_only: geometry.as_ref().map_or(request.read_only, |g| g.read_only),
        identity: known.volume().map(|volume| volume.ready().facts.clone()),
        source: SourceSummary::from(&request.source),
        device_wish: request.device,
        fence: request.fence,
        digests: request.digests,
        recovery_timeout_seconds: request.recovery_timeout_seconds,
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

fn session_view(view: &SessionView) -> Session {
    Session {
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
    Counters {
        read: op(OpKind::Read),
        write: op(OpKind::Write),
        flush: op(OpKind::Flush),
        trim: op(OpKind::Trim),
        write_zeroes: op(OpKind::WriteZeroes),
        in_flight_requests: stats.map_or(0, IoStats::in_flight),
        in_flight_bytes: stats.map_or(0, IoStats::in_flight_bytes),
        reconnects,
        digests_checked: snapshot.map_or(0, |s| s.digests_checked),
        digest_errors: snapshot.map_or(0, |s| s.digest_errors),
    }
}

impl NodeService for Service {
    async fn attach(
        &self,
        call: &Call,
        name: &AttachmentName,
        request: AttachRequest,
    ) -> Result<Attached, Error> {
        if request.device == DeviceWish::Kernel {
            let detail = "this berthd has no kernel devices; ask for device \"socket\" or \"auto\" \
                          and use the NBD socket";
            return Err(Error::new(Code::NotImplemented, detail)
                .with_field("device")
                .with_attachment(name));
        }
        tracing::info!(volume = %name, peer = ?call.peer, request_id = call.request_id, "attach asked for");
        let created = self.manager.attach(name, request).await?;
        let known = self
            .manager
            .get(name)
            .ok_or_else(|| Error::no_attachment(name))?;
        Ok(Attached {
            attachment: self.view(known).await,
            created,
        })
    }

    async fn detach(&self, call: &Call, name: &AttachmentName, force: bool) -> Result<(), Error> {
        tracing::info!(volume = %name, force, peer = ?call.peer, request_id = call.request_id, "detach asked for");
        self.manager.detach(name, force).await
    }

    async fn attachments(&self) -> Result<Vec<Attachment>, Error> {
        let mut all = Vec::new();
        for known in self.manager.list() {
            all.push(self.view(known).await);
        }
        Ok(all)
    }

    async fn attachment(&self, name: &AttachmentName) -> Result<Attachment, Error> {
        let known = self
            .manager
            .get(name)
            .ok_or_else(|| Error::no_attachment(name))?;
        Ok(self.view(known).await)
    }

    async fn discover(&self, _call: &Call, request: DiscoveryRequest) -> Result<Discovery, Error> {
        self.discoverer.discover(request).await
    }

    async fn node(&self) -> Result<Node, Error> {
        Ok(Node {
            name: self.facts.name.clone(),
            initiator_name: self.facts.initiator_name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_unix_ms: self.facts.started_unix_ms,
            nbd_socket: self.facts.nbd_socket.display().to_string(),
            kernel_nbd: KernelNbd {
                available: false,
                detail: Some("this berthd has no kernel devices yet".to_owned()),
            },
            limits: NodeLimits {
                attachments_max: u32::try_from(self.facts.attachments_max).unwrap_or(u32::MAX),
                data_threads: u32::try_from(self.facts.data_threads).unwrap_or(u32::MAX),
                request_max_bytes: PAYLOAD_MAX_BYTES,
            },
            attachments: u32::try_from(self.manager.count()).unwrap_or(u32::MAX),
        })
    }

    fn events(&self, after: Option<u64>) -> EventStream {
        self.events.subscribe(after)
    }

    async fn ready(&self) -> Health {
        // The sockets are bound and the state is loaded before the API answers at all; what is left to
        // check is that the data plane still takes work.
        let responsive = self.manager.data_plane_responds().await;
        let data_plane = if responsive {
            CheckResult::pass("data-plane")
        } else {
            CheckResult::fail(
                "data-plane",
                "a data-plane thread does not answer; see the log",
            )
        };
        Health {
            checks: vec![CheckResult::pass("state"), data_plane],
        }
    }

    async fn metrics(&self) -> String {
        let mut all = Vec::new();
        for known in self.manager.list() {
            let snapshot = match known.volume() {
                Some(volume) => volume.snapshot().await,
                None => None,
            };
            all.push((known, snapshot));
        }
        let up = unix_ms_now().saturating_sub(self.facts.started_unix_ms);
        metrics::render(&all, up)
    }
}

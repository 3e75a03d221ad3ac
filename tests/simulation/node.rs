//! One simulated node: the daemon's data plane, which can be killed, and the NBD clients that use it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use berth_agent::block::lun::CacheLossPolicy;
use berth_agent::block::lun::reservation::{Claim, Key, NodeId};
use berth_agent::block::{Op, Output};
use berth_agent::nbd::client::{Completed, Connection, ExportFacts};
use berth_agent::nbd::connection::{Handover, Stream};
use berth_agent::nbd::export::ExportInfo;
use berth_agent::nbd::handshake::{Negotiated, ReplyMode};
use berth_agent::nbd::transmission::Limits;
use berth_agent::plane::spec::{FenceSpec, Leave, PathSpec, Reconfigure, VolumeHealth};
use berth_agent::plane::{DataPlane, Ended, Volume, VolumeSpec};
use berth_agent::volume::intent::KnownIdentity;
use berth_iobuf::{Payload, ReceiveBuffer};
use berth_iscsi::login::{LoginConfig, SessionKind};
use berth_iscsi::net::ConnectOptions;
use berth_iscsi::session::SessionOptions;
use berth_iscsi::types::{Isid, Lun};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::{Instant, sleep};

use super::array::{LUN, TARGET, identity, target_name};
use super::history::{History, Outcome, bytes_of};
use super::net::{Net, portal_name};
use super::plan::{CELL_BYTES, Kind, Plan, PlannedRequest};
use super::trace;
use crate::event;

/// Requests that one client has in flight.
const DEPTH: usize = 32;
/// Pause before a daemon tries a failed attach again.
const ATTACH_PAUSE: Duration = Duration::from_secs(1);

/// A node.
#[derive(Clone)]
pub struct Node(Rc<Inner>);

struct Inner {
    number: usize,
    plan: Rc<Plan>,
    net: Net,
    history: Rc<RefCell<History>>,
    volume: RefCell<Option<Rc<Volume>>>,
    /// Counts the lives of the volume: a connection belongs to one of them.
    life: Cell<u64>,
    changed: Notify,
    daemon: RefCell<Option<JoinHandle<()>>>,
    /// Crashes from which it has not come back.
    crashes: Cell<u32>,
    /// It was told to end: no more attempts.
    ending: Cell<bool>,
    /// Kept by the daemon over its lives: what the unit is, whether sessions may be left over.
    identity: RefCell<Option<KnownIdentity>>,
    unclean: Cell<bool>,
    known_groups: RefCell<BTreeMap<usize, u16>>,
    /// Another node has the volume: no more attempts.
    gave_up: Cell<bool>,
    /// Why the volume cannot be used for good.
    refused: RefCell<Option<String>>,
}

impl Node {
    /// A node whose daemon is not started yet.
    #[must_use]
    pub fn new(number: usize, plan: Rc<Plan>, net: &Net, history: &Rc<RefCell<History>>) -> Self {
        Self(Rc::new(Inner {
            number,
            plan,
            net: net.clone(),
            history: Rc::clone(history),
            volume: RefCell::default(),
            life: Cell::new(0),
            changed: Notify::new(),
            daemon: RefCell::default(),
            crashes: Cell::new(0),
            ending: Cell::new(false),
            identity: RefCell::default(),
            unclean: Cell::new(false),
            known_groups: RefCell::default(),
            gave_up: Cell::new(false),
            refused: RefCell::default(),
        }))
    }

    /// Starts the daemon: a world of tasks of its own, so that it can be dropped as a whole. After several
    /// crashes at a time it starts when it was started as often.
    pub fn start(&self) {
        let crashes = self.0.crashes.get();
        self.0.crashes.set(crashes.saturating_sub(1));
        if crashes > 1 || self.0.gave_up.get() {
            return;
        }
        let node = self.clone();
        let daemon = spawn_local(async move {
            let tasks = LocalSet::new();
            tasks.run_until(node.serve()).await;
        });
        *self.0.daemon.borrow_mut() = Some(daemon);
    }

    /// Whether there is a daemon.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.0.daemon.borrow().is_some()
    }

    /// Kills the daemon: everything it has is dropped where it stands.
    pub async fn crash(&self) {
        self.0.crashes.set(self.0.crashes.get() + 1);
        let daemon = self.0.daemon.borrow_mut().take();
        if let Some(daemon) = daemon {
            daemon.abort();
            let _ = daemon.await;
        }
        self.set_volume(None);
    }

    async fn serve(self) {
        let plane = DataPlane::local();
        let mut trying_since = Instant::now();
        while !self.0.ending.get() {
            let mut spec = self.spec();
            if spec
                .stale_session_timeout
                .is_some_and(|limit| trying_since.elapsed() >= limit)
            {
                spec.paths
                    .iter_mut()
                    .for_each(|path| path.known_group = None);
            }
            // As the daemon does: whatever ends this life, the next one must take it for unclean.
            self.0.unclean.set(true);
            match Volume::attach(plane.place(), spec).await {
                Ok(volume) => {
                    event!("node.attached", "node {}", self.0.number);
                    trace::count("path: attached");
                    let known = volume.ready().identity.clone();
                    self.0.identity.borrow_mut().clone_from(&known);
                    if self.0.number == 1 && self.0.history.borrow().fenced_at.is_none() {
                        self.0.history.borrow_mut().fenced_at = Some(trace::tick());
                    }
                    let volume = Rc::new(volume);
                    self.set_volume(Some(Rc::clone(&volume)));
                    let ended = tokio::select! {
                        biased;
                        ended = volume.wait_ended() => ended,
                        never = self.keep_groups(&volume) => match never {},
                    };
                    event!("node.ended", "node {}", self.0.number);
                    self.set_volume(None);
                    trying_since = Instant::now();
                    match ended {
                        Ended::Detached { .. } => return,
                        Ended::Failed(error) => {
                            trace::count("path: volume ended by itself");
                            trace::line(format_args!("volume ended: {error}"));
                            if self.is_final(&error) {
                                return;
                            }
                        }
                    }
                }
                Err(error) => {
                    trace::count("path: attach failed");
                    event!("node.attach-failed", "node {}", self.0.number);
                    trace::line(format_args!("attach failed: {error}"));
                    *self.0.refused.borrow_mut() = Some(error.to_string());
                    if self.is_final(&error) {
                        return;
                    }
                }
            }
            sleep(ATTACH_PAUSE).await;
        }
    }

    /// Writes down which portal group each path is with, as the daemon does; a crash may come before it.
    async fn keep_groups(&self, volume: &Volume) -> std::convert::Infallible {
        let mut status = volume.status();
        loop {
            {
                let mut known = self.0.known_groups.borrow_mut();
                for path in &status.borrow_and_update().paths {
                    if let Some(group) = path.portal_group {
                        known.insert(path.index.into(), group);
                    }
                }
                let kept = known.iter().map(|(index, group)| (*index as u16, *group));
                volume.set_kept_groups(kept.collect());
            }
            if status.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// What the volume is, known from an attach long ago.
    fn known_identity(&self) -> KnownIdentity {
        let naa = identity().naa;
        let hex: String = naa.iter().map(|byte| format!("{byte:02x}")).collect();
        KnownIdentity {
            designator: format!("naa.{hex}"),
            block_bytes: self.0.plan.array.block_bytes,
        }
    }

    /// Whether the volume has moved: a node does not take it back on its own.
    fn is_final(&self, error: &berth_api::Error) -> bool {
        let moved = [berth_api::Code::Fenced, berth_api::Code::AttachedElsewhere];
        if !(moved.contains(&error.code()) && self.0.number == 0) {
            return false;
        }
        trace::count("path: fenced");
        self.0.gave_up.set(true);
        self.0.changed.notify_waiters();
        true
    }

    fn set_volume(&self, volume: Option<Rc<Volume>>) {
        self.0.life.set(self.0.life.get() + 1);
        *self.0.volume.borrow_mut() = volume;
        self.0.changed.notify_waiters();
    }

    /// The volume, while it is there.
    #[must_use]
    pub fn volume(&self) -> Option<Rc<Volume>> {
        self.0.volume.borrow().clone()
    }

    /// Waits until the volume is there and takes I/O.
    pub async fn is_up(&self) {
        loop {
            let changed = self.0.changed.notified();
            let Some(volume) = self.volume() else {
                changed.await;
                continue;
            };
            let mut status = volume.status();
            tokio::select! {
                biased;
                Ok(_) = status.wait_for(|status| matches!(status.health, VolumeHealth::Up)) => return,
                // Of a volume that has ended there is no other news.
                () = changed => {}
            }
        }
    }

    /// I/O waits from now on for as long as it takes.
    pub async fn be_patient(&self) {
        let Some(volume) = self.volume() else { return };
        let spec = self.spec();
        let change = Reconfigure {
            recovery_timeout: None,
            paths: spec.paths,
        };
        if let Err(error) = volume.configure(change).await {
            trace::line(format_args!("it cannot be configured: {error}"));
        }
    }

    /// Counts what recovery did.
    pub async fn count_recovery(&self) {
        let Some(volume) = self.volume() else { return };
        let Some(snapshot) = volume.snapshot().await else {
            return;
        };
        let did = snapshot.recovery;
        for (name, n) in [
            ("recovery: sessions lost", did.sessions_lost),
            ("recovery: sessions reinstated", did.sessions_reinstated),
            ("recovery: commands sent again", did.commands_resent),
            ("recovery: writes of unknown fate", did.ghosts),
            ("recovery: times without a path", did.stalls),
            ("recovery: cache losses noticed", did.cache_losses),
            ("recovery: requests timed out", did.requests_timed_out),
            ("recovery: commands aborted", did.aborts),
            ("recovery: LUN resets", did.lun_resets),
            ("recovery: reservation conflicts", did.reservation_conflicts),
        ] {
            trace::count_many(name, n);
        }
    }

    /// What the last failed attach said.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        self.0.refused.borrow().clone()
    }

    /// Ends the volume in good order; whether it did in time.
    pub async fn detach(&self, limit: Duration) -> bool {
        self.0.ending.set(true);
        let Some(volume) = self.volume() else {
            self.crash().await;
            return true;
        };
        let in_time = tokio::time::timeout(limit, volume.end(Leave::Detach))
            .await
            .is_ok();
        drop(volume);
        self.crash().await;
        in_time
    }

    fn spec(&self) -> VolumeSpec {
        let plan = &self.0.plan;
        let number = self.0.number;
        let name = format!("iqn.2026-11.io.berth:node{number}")
            .parse()
            .expect("it is a valid name");
        let kind = SessionKind::Normal {
            target_name: target_name(),
        };
        let isid = Isid::random([7, 7, 1 + number as u8], 0);
        let mut login = LoginConfig::new(name, kind, isid);
        login.offer = plan.offer.clone();
        let connect = ConnectOptions {
            deadline: Duration::from_secs(6),
            attempt_timeout: Duration::from_secs(3),
            session: SessionOptions {
                ping_interval: Some(plan.ping),
                ping_timeout: plan.ping,
                abort_timeout: plan.abort_timeout,
                logical_unit_reset_timeout: plan.abort_timeout,
                task_management_timeout: Duration::from_secs(3),
                drain_timeout: Duration::from_secs(5),
                logout_timeout: Duration::from_secs(3),
                ..SessionOptions::default()
            },
            ..ConnectOptions::default()
        };
        VolumeSpec {
            name: "simulated".to_owned(),
            network: Arc::new(self.0.net.of_node(number)),
            target: TARGET.to_owned(),
            paths: (0..plan.array.groups.len())
                .map(|index| PathSpec {
                    index: index as u16,
                    portal: portal_name(index),
                    isid: Isid::random([7, 7, 1 + number as u8], index as u16),
                    known_group: self.0.known_groups.borrow().get(&index).copied(),
                    retired: false,
                })
                .collect(),
            login,
            connect,
            lun: Lun::from_number(LUN).expect("it is a small number"),
            read_only: false,
            expected_identity: Some(self.known_identity()),
            unclean: self.0.unclean.get(),
            fence: self.fence(),
            recovery_timeout: plan.recovery_timeout,
            stale_session_timeout: plan.stale_session_timeout,
            retry_first: Duration::from_millis(500),
            retry_max: Duration::from_secs(8),
            seed: plan.seed ^ self.0.life.get(),
            cache_loss: CacheLossPolicy::Report,
            queue_depth_max: plan.queue_depth_max,
            command_timeout: plan.command_timeout,
            logout_timeout: Duration::from_secs(10),
            nbd: Limits::default(),
            // Nothing is received in it: the simulation has no kernel device.
            receive_pool_bytes: 0,
        }
    }

    /// The key is that of the attachment, and stays over crashes. The second node takes the volume over.
    fn fence(&self) -> Option<FenceSpec> {
        self.0.plan.takeover?;
        let number = self.0.number;
        let node = NodeId::of(&format!("iqn.2026-11.io.berth:node{number}"));
        Some(FenceSpec {
            key: Key::new(node, 1),
            claim: match (self.0.identity.borrow().is_some(), number) {
                (true, _) => Claim::Resume,
                (false, 0) => Claim::Free,
                (false, _) => Claim::Takeover,
            },
        })
    }

    /// Opens an NBD connection; waits until there is a volume. The number is that of the volume's life.
    /// `None`: there will be none any more.
    async fn open(&self) -> Option<(Connection, u64)> {
        loop {
            let changed = self.0.changed.notified();
            if self.0.gave_up.get() {
                return None;
            }
            let volume = self.0.volume.borrow().clone();
            match volume {
                Some(volume) => return Some((self.connect(&volume), self.0.life.get())),
                None => changed.await,
            }
        }
    }

    fn connect(&self, volume: &Volume) -> Connection {
        let plan = &self.0.plan;
        let info = ExportInfo::new("simulated", "", &volume.geometry());
        let (ours, theirs) = tokio::io::duplex(plan.nbd_buffer_bytes);
        volume.serve(Handover {
            stream: Stream::Other(Box::new(theirs)),
            input: ReceiveBuffer::new(),
            negotiated: Negotiated {
                mode: plan.nbd_mode,
                base_allocation: plan.nbd_mode != ReplyMode::Simple,
                ..Negotiated::for_kernel(&info)
            },
            permit: None,
            resends: false,
        });
        let facts = ExportFacts {
            name: None,
            description: None,
            size_bytes: info.size_bytes,
            flags: info.flags,
            block_sizes: Some(info.block_sizes),
            mode: plan.nbd_mode,
            base_allocation: plan.nbd_mode != ReplyMode::Simple,
        };
        Connection::over(Box::new(ours), facts)
    }

    /// One NBD client: issues these requests at their times, over as many connections as it takes. Returns when
    /// every one has an end.
    pub async fn client(self, requests: Vec<PlannedRequest>, begin: Instant) {
        let mut waiting: VecDeque<_> = requests.into();
        let mut in_flight: Vec<(berth_agent::nbd::client::Token, usize)> = Vec::new();
        while !waiting.is_empty() {
            let Some((mut connection, life)) = self.open().await else {
                return;
            };
            while !(waiting.is_empty() && in_flight.is_empty()) {
                let next_at = waiting.front().map(|request| begin + request.at);
                let may_submit = in_flight.len() < DEPTH;
                let has_waiting = !waiting.is_empty();
                tokio::select! {
                    biased;
                    () = self.life_ends(life) => break,
                    answer = connection.next(), if !in_flight.is_empty() => match answer {
                        Ok(completed) => self.completed(&mut in_flight, completed),
                        Err(error) => {
                            trace::line(format_args!("client loses its connection: {error}"));
                            if !matches!(
                                error,
                                berth_agent::nbd::client::ClientError::Closed
                                    | berth_agent::nbd::client::ClientError::Io(_)
                            ) {
                                let text = format!("an NBD client was told nonsense: {error}");
                                self.0.history.borrow_mut().violate(text);
                            }
                            break;
                        }
                    },
                    () = until(next_at), if may_submit && has_waiting => {
                        if let Some(request) = waiting.pop_front() {
                            let index = self.0.history.borrow_mut().begin(request);
                            let op = self.op(&request, index);
                            match connection.submit(&op) {
                                Ok(token) => in_flight.push((token, index)),
                                Err(error) => {
                                    let text = format!("a request cannot be sent: {error}");
                                    self.0.history.borrow_mut().violate(text);
                                }
                            }
                        }
                    }
                }
            }
            for (_, index) in in_flight.drain(..) {
                trace::count("client: request cut off");
                self.0.history.borrow_mut().end(index, Outcome::Cut);
            }
            if !waiting.is_empty() {
                // A connection that ended although the volume lives: not in a loop.
                sleep(Duration::from_millis(100)).await;
            }
        }
    }

    /// Ends with this life of the volume.
    async fn life_ends(&self, life: u64) {
        loop {
            let changed = self.0.changed.notified();
            if self.0.life.get() != life {
                return;
            }
            changed.await;
        }
    }

    fn op(&self, request: &PlannedRequest, index: usize) -> Op {
        let value = self.0.history.borrow().entries[index].value;
        let offset_bytes = request.cell * CELL_BYTES;
        let len_bytes = request.cells * CELL_BYTES;
        match request.kind {
            Kind::Read => Op::Read {
                offset_bytes,
                len_bytes: len_bytes as u32,
            },
            Kind::Write => Op::Write {
                offset_bytes,
                data: Payload::from(bytes_of(value, request.cell, request.cells)),
                fua: request.fua,
            },
            Kind::Flush => Op::Flush,
            Kind::Trim => Op::Trim {
                offset_bytes,
                len_bytes,
                fua: request.fua,
            },
            Kind::WriteZeroes { may_unmap } => Op::WriteZeroes {
                offset_bytes,
                len_bytes,
                may_unmap,
                fast_only: false,
                fua: request.fua,
            },
        }
    }

    fn completed(
        &self,
        in_flight: &mut Vec<(berth_agent::nbd::client::Token, usize)>,
        completed: Completed,
    ) {
        let Some(at) = in_flight
            .iter()
            .position(|(token, _)| *token == completed.token)
        else {
            let text = "an answer to no request".to_owned();
            return self.0.history.borrow_mut().violate(text);
        };
        let (_, index) = in_flight.remove(at);
        let history = &mut *self.0.history.borrow_mut();
        match completed.result {
            Ok(output) => {
                if let Output::Data(data) = output {
                    history.found(index, &data.to_bytes());
                }
                history.end(index, Outcome::Done);
            }
            Err(error) => history.end(index, Outcome::Failed(error.errno.0)),
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

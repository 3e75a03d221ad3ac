//! A volume on its thread: the session, the layers, the NBD connections.
//!
//! ```text
//! nbd::connection (one task each) -> Client -> Hub -> stats -> align -> split -> fault -> Lun
//!        ^                                      |                                         |
//!        +---- completions, waker --------------+ <- pump <- on_events <- Driver (a task) -+
//! ```

use std::cell::RefCell;
use std::rc::Rc;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use berth_api::types::{Identity, unix_ms_now};
use berth_api::{Code, Error};
use berth_iscsi::net::{self, Connected, Driver, DriverOptions, Handle};
use berth_iscsi::scsi::Cdb;
use berth_iscsi::session::{CloseReason, Transfer};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};

use super::keeper::Keeper;
use super::spec::{SessionView, VolumeSpec};
use super::transport::SessionTransport;
use super::volume::{Ended, InUse, Ready, Shared, Snapshot, VolumeCommand};
use crate::block::align::Align;
use crate::block::fault::Fault;
use crate::block::hub::DynHub;
use crate::block::lun::probe;
use crate::block::lun::{Lun, LunControl, Port, Profile};
use crate::block::split::Split;
use crate::block::stats::Stats;
use crate::block::{Client, Hub};
use crate::nbd;
use crate::nbd::connection::{End, Handover, Stop};
use crate::volume::failure;
use crate::volume::intent::KnownIdentity;

/// Brings a volume up, serves it until it ends, and says how it ended.
pub(super) async fn run(
    spec: VolumeSpec,
    commands: mpsc::Receiver<VolumeCommand>,
    mut ready: oneshot::Sender<Result<Ready, Error>>,
    shared: Arc<Shared>,
) {
    let up = tokio::select! {
        biased;
        up = bring_up(&spec, &shared) => up,
        // The attempt was given up.
        () = ready.closed() => return,
    };
    let (volume, facts) = match up {
        Ok(up) => up,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    let ended = if ready.send(Ok(facts)).is_ok() {
        volume.serve(commands).await
    } else {
        volume.end().await;
        Ended::Detached
    };
    shared.ended.send_replace(Some(ended));
}

/// Where the session's events go: to the bare LUN while it is brought up, then to the hub.
///
/// The session refers to this and this to the session's users, in a circle. It is opened by
/// [`SessionGuard`], at the end of the session in whatever way.
#[derive(Default)]
struct EventSink(RefCell<Option<Sink>>);

enum Sink {
    Port(Rc<Port>),
    Hub(Rc<RefCell<DynHub>>),
}

impl EventSink {
    fn set(&self, sink: Sink) {
        *self.0.borrow_mut() = Some(sink);
    }

    fn on_events(&self) {
        match &*self.0.borrow() {
            Some(Sink::Port(port)) => port.pump_control(),
            Some(Sink::Hub(hub)) => hub.borrow_mut().pump(),
            None => {}
        }
    }
}

/// A session with its driver; both end when this is dropped.
struct SessionGuard {
    handle: Rc<Handle>,
    driver: JoinHandle<()>,
    sink: Rc<EventSink>,
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        self.driver.abort();
        self.sink.0.borrow_mut().take();
    }
}

/// A volume that is up.
struct LocalVolume {
    spec: VolumeSpec,
    session: SessionGuard,
    hub: Rc<RefCell<DynHub>>,
    lun: LunControl,
    view: SessionView,
    close_reason: Rc<RefCell<Option<CloseReason>>>,
    /// Ends when the session is lost.
    keeper: JoinHandle<()>,
    connections: JoinSet<End>,
    stop: Stop,
    /// No new connections: it is being taken away.
    ending: bool,
}

/// Logs in at the first portal that lets us.
async fn connect(spec: &VolumeSpec) -> Result<(Connected, String), Error> {
    let mut first = None;
    for portal in spec.paths.iter().map(|path| &path.portal) {
        match net::connect(
            &*spec.network,
            slice::from_ref(portal),
            spec.login.clone(),
            &spec.connect,
        )
        .await
        {
            Ok(connected) => return Ok((connected, portal.to_string())),
            Err(error) => {
                tracing::warn!(volume = spec.name, %portal, %error, "portal cannot be used");
                first.get_or_insert_with(|| failure::from_connect(error, &spec.target));
            }
        }
    }
    Err(first.unwrap_or_else(|| Error::new(Code::InvalidArgument, "no portal was given")))
}

async fn bring_up(spec: &VolumeSpec, shared: &Arc<Shared>) -> Result<(LocalVolume, Ready), Error> {
    let (connected, portal) = connect(spec).await?;
    let view = session_view(&connected, portal);
    let sink = Rc::new(EventSink::default());
    let on_events = {
        let sink = Rc::clone(&sink);
        Box::new(move |_: &Handle| sink.on_events())
    };
    let Connected {
        stream,
        session,
        receive,
        ..
    } = connected;
    let (handle, driver) = Driver::new(
        stream,
        session,
        receive,
        DriverOptions::default(),
        on_events,
    );
    let driver = tokio::task::spawn_local(driver.run());
    let session = SessionGuard {
        handle,
        driver,
        sink,
    };
    let close_reason = Rc::default();
    let transport = SessionTransport::new(Rc::clone(&session.handle), Rc::clone(&close_reason));
    let port = Port::new(Box::new(transport), spec.lun, spec.command_timeout);
    session.sink.set(Sink::Port(Rc::clone(&port)));
    let profile = match probe::probe(&port).await {
        Ok(profile) => profile,
        Err(error) => {
            let reason = close_reason.borrow_mut().take();
            return Err(match reason {
                Some(reason) => lost(spec, reason),
                None => failure::from_probe(error, spec.lun, &spec.target),
            });
        }
    };
    let facts = ready(&profile);
    tracing::info!(
        volume = spec.name, target = spec.target, lun = %spec.lun, portal = view.portal,
        identity = facts.identity.as_ref().map(|i| i.designator.as_str()),
        size_bytes = profile.size_bytes(), "logged in"
    );
    let (lun, control) = Lun::new(port, profile, spec.read_only);
    let device = Fault::new(lun, Arc::clone(&shared.faults));
    let device = Stats::new(Align::new(Split::new(device)), Arc::clone(&shared.stats));
    shared.geometry.send_replace(Some(control.geometry()));
    let hub: Rc<RefCell<DynHub>> = Hub::new(device);
    session.sink.set(Sink::Hub(Rc::clone(&hub)));
    let keeper = Keeper {
        volume: spec.name.clone(),
        lun: control.clone(),
        hub: Rc::clone(&hub),
        shared: Arc::clone(shared),
    };
    let volume = LocalVolume {
        spec: spec.clone(),
        session,
        hub,
        lun: control,
        view,
        close_reason,
        keeper: tokio::task::spawn_local(keeper.run()),
        connections: JoinSet::new(),
        stop: Stop::new(),
        ending: false,
    };
    Ok((volume, facts))
}

impl LocalVolume {
    /// Serves until it is told to end or the session is lost.
    async fn serve(mut self, mut commands: mpsc::Receiver<VolumeCommand>) -> Ended {
        loop {
            let command = tokio::select! {
                biased;
                command = commands.recv() => command,
                Some(end) = self.connections.join_next() => {
                    log_end(&self.spec.name, end);
                    continue;
                }
                _ = &mut self.keeper => return self.session_lost(),
            };
            match command {
                Some(VolumeCommand::Serve(handover)) => self.serve_client(*handover),
                Some(VolumeCommand::Snapshot(answer)) => {
                    let _ = answer.send(self.snapshot());
                }
                Some(VolumeCommand::BeginDetach { force, answer }) => {
                    if !force {
                        self.wait_for_goodbyes().await;
                    }
                    let clients = self.clients();
                    if clients > 0 && !force {
                        let _ = answer.send(Err(InUse { clients }));
                    } else {
                        self.ending = true;
                        let _ = answer.send(Ok(()));
                    }
                }
                Some(VolumeCommand::End) | None => {
                    self.end().await;
                    return Ended::Detached;
                }
            }
        }
    }

    /// Gives clients that have just disconnected the moment that it takes to notice: a script that
    /// copies and then detaches must not be told that the export is open.
    async fn wait_for_goodbyes(&mut self) {
        let deadline = tokio::time::Instant::now() + GOODBYE_LIMIT;
        while let Ok(Some(end)) =
            tokio::time::timeout_at(deadline, self.connections.join_next()).await
        {
            log_end(&self.spec.name, end);
        }
    }

    fn clients(&self) -> u32 {
        u32::try_from(self.connections.len()).unwrap_or(u32::MAX)
    }

    fn serve_client(&mut self, handover: Handover) {
        if self.ending {
            return; // Dropping it closes the connection.
        }
        let client = Client::new(Rc::clone(&self.hub));
        let serve = nbd::connection::serve(handover, client, self.spec.nbd, self.stop.clone());
        self.connections.spawn_local(serve);
    }

    fn snapshot(&self) -> Snapshot {
        let (commands, decoder) = self
            .session
            .handle
            .with_session(|session, _| (session.counters().commands, session.decoder_counters()));
        Snapshot {
            session: self.view.clone(),
            clients: self.clients(),
            commands,
            digests_checked: decoder.header_digests + decoder.data_digests,
            digest_errors: decoder.header_digest_errors + decoder.data_digest_errors,
        }
    }

    fn session_lost(mut self) -> Ended {
        // Every request was answered with an error; clients get these answers before the end.
        self.hub.borrow_mut().pump();
        self.hub.borrow_mut().close();
        self.stop.drain();
        let reason = self.close_reason.borrow_mut().take();
        let error = match reason {
            Some(reason) => lost(&self.spec, reason),
            None => failure::identity_changed(&self.spec.target),
        };
        // The connections end by themselves once their clients have the answers.
        let mut connections = std::mem::take(&mut self.connections);
        tokio::task::spawn_local(async move {
            let all = async { while connections.join_next().await.is_some() {} };
            let _ = tokio::time::timeout(LAST_ANSWERS, all).await;
        });
        Ended::SessionLost(error)
    }

    /// Ends in good order: answers what is in flight, flushes the unit's cache, logs out.
    async fn end(mut self) {
        let deadline = tokio::time::Instant::now() + self.spec.logout_timeout;
        self.stop.drain();
        let drained = async { while self.connections.join_next().await.is_some() {} };
        if tokio::time::timeout_at(deadline, drained).await.is_err() {
            tracing::warn!(
                volume = self.spec.name,
                "I/O did not end in time and is given up"
            );
            self.stop.cut();
            self.lun.fail_all(crate::block::Error::Gone);
            self.hub.borrow_mut().pump();
        }
        if self.lun.profile().write_cache {
            // A client that did not flush has no claim to it, but it costs little.
            let port = self.lun.port();
            let flush = port.execute(Cdb::synchronize_cache10(0, 0), Transfer::None);
            let _ = tokio::time::timeout_at(deadline, flush).await;
        }
        self.keeper.abort();
        self.session
            .handle
            .with_session(|session, now| session.logout(now));
        let logged_out = &mut self.session.driver;
        if tokio::time::timeout_at(deadline, logged_out).await.is_err() {
            tracing::warn!(
                volume = self.spec.name,
                "the target did not answer the logout in time"
            );
        }
        tracing::info!(volume = self.spec.name, "logged out");
    }
}

/// Time for the end of connections to be noticed before an export counts as open.
const GOODBYE_LIMIT: Duration = Duration::from_millis(500);
/// Time for clients to take the last answers after the session was lost.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

fn log_end(volume: &str, end: Result<End, tokio::task::JoinError>) {
    match end {
        Ok(end @ (End::Disconnected | End::Drained)) => {
            tracing::debug!(volume, %end, "NBD connection ended");
        }
        Ok(end) => tracing::info!(volume, %end, "NBD connection ended"),
        Err(error) => tracing::error!(volume, %error, "NBD connection task failed"),
    }
}

fn lost(spec: &VolumeSpec, reason: CloseReason) -> Error {
    match reason {
        CloseReason::Failed(error) => failure::from_iscsi(error, &spec.target, None),
        CloseReason::DroppedByTarget { .. } => failure::lost("the target dropped it"),
        CloseReason::LoggedOut { cause, .. } => {
            failure::lost(format_args!("it was logged out ({cause:?})"))
        }
    }
}

fn ready(profile: &Profile) -> Ready {
    let designator = profile
        .identity
        .as_ref()
        .map(|identity| identity.as_str().to_owned());
    let part = |prefix: &str| {
        designator
            .as_ref()
            .and_then(|text| text.strip_prefix(prefix))
            .map(str::to_owned)
    };
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Ready {
        facts: Identity {
            naa: part("naa."),
            eui: part("eui."),
            serial: profile.serial.clone(),
            vendor: text(&profile.vendor),
            product: text(&profile.product),
            revision: text(&profile.revision),
        },
        identity: designator.map(|designator| KnownIdentity {
            designator,
            block_bytes: profile.block_bytes,
        }),
    }
}

fn session_view(connected: &Connected, portal: String) -> SessionView {
    let login = connected.session.login();
    let n = connected.session.negotiated();
    let yes_no = |yes| if yes { "Yes" } else { "No" }.to_owned();
    let digest = |on| if on { "CRC32C" } else { "None" }.to_owned();
    let negotiated = [
        ("HeaderDigest", digest(n.header_digest)),
        ("DataDigest", digest(n.data_digest)),
        ("InitialR2T", yes_no(n.initial_r2t)),
        ("ImmediateData", yes_no(n.immediate_data)),
        ("MaxBurstLength", n.max_burst_bytes.to_string()),
        ("FirstBurstLength", n.first_burst_bytes.to_string()),
        ("MaxOutstandingR2T", n.max_outstanding_r2t.to_string()),
        (
            "MaxRecvDataSegmentLength",
            n.max_recv_data_segment_bytes.to_string(),
        ),
        (
            "TargetMaxRecvDataSegmentLength",
            n.peer_max_recv_data_segment_bytes.to_string(),
        ),
        ("ErrorRecoveryLevel", n.error_recovery_level.to_string()),
        ("MaxConnections", n.max_connections.to_string()),
        ("DefaultTime2Wait", n.time2wait_s.to_string()),
        ("DefaultTime2Retain", n.time2retain_s.to_string()),
    ];
    SessionView {
        portal,
        isid: login.isid,
        tsih: login.tsih.0,
        cid: login.cid.0,
        portal_group_tag: n.target_portal_group_tag,
        local: connected
            .stream
            .local_addr()
            .map_or_else(|_| String::new(), |a| a.to_string()),
        peer: connected.address.to_string(),
        since_unix_ms: unix_ms_now(),
        negotiated: negotiated
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
    }
}

//! One session with a target: opened, driven, looked at, and ended.

use std::cell::RefCell;
use std::rc::Rc;

use berth_api::types::unix_ms_now;
use berth_iscsi::name::Portal;
use berth_iscsi::net::{self, Connected, Driver, DriverOptions, Handle};
use berth_iscsi::session::CloseReason;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::spec::{PathSpec, SessionView, VolumeSpec};
use super::timers;
use super::transport::SessionTransport;
use crate::block::hub::DynHub;
use crate::block::lun::Port;
use crate::block::lun::probe::{self, Found};
use crate::volume::failure;
use berth_api::Error;

/// Where a session's events go: to the bare port while the unit is looked at, then to the hub.
///
/// The session refers to this and this to the session's users, in a circle. It is opened by
/// [`Session`], at the end of the session in whatever way.
#[derive(Default)]
struct EventSink(RefCell<Option<Sink>>);

enum Sink {
    Port(Rc<Port>),
    Hub(Rc<RefCell<DynHub>>),
}

impl EventSink {
    fn on_events(&self) {
        match &*self.0.borrow() {
            Some(Sink::Port(port)) => port.pump_control(),
            Some(Sink::Hub(hub)) => hub.borrow_mut().pump(),
            None => {}
        }
    }
}

/// A session with its driver; both end when this is dropped.
pub(super) struct Session {
    handle: Rc<Handle>,
    driver: JoinHandle<()>,
    sink: Rc<EventSink>,
    reason: Rc<RefCell<Option<CloseReason>>>,
    pub(super) port: Rc<Port>,
    pub(super) view: SessionView,
    /// Where the login was done, perhaps after a redirect.
    pub(super) landed: Portal,
}

/// A session whose unit was looked at.
pub(super) struct Opened {
    pub(super) session: Session,
    pub(super) found: Found,
}

/// What came of an attempt to open a session.
pub(super) enum Attempt {
    /// There is one.
    Opened(Box<Opened>),
    /// The portal of the path cannot be reached. But a login on another portal of its group went well, and
    /// was logged out: the old session is gone.
    Detour,
    /// A login on the path's portal went well, so the old session is gone; but the unit cannot be used.
    Unusable(Error),
    /// There is none.
    Failed(Error),
}

/// What a login has to do besides opening a session: end the one before it, of which commands may be left at
/// the target.
#[derive(Debug, Clone, Default)]
pub(super) struct Old {
    /// The portal group of the old session. A login that lands in another one (a redirect may lead there)
    /// ends nothing: initiator, ISID, target and portal group make a session what it is (RFC 7143 4.4.1).
    pub(super) group: Option<u16>,
    /// Where to log in, in order of preference; empty: on the path's own portal.
    pub(super) portals: Vec<Portal>,
    /// Where else, when these lead to other groups: redirects may lead from anywhere to anywhere.
    pub(super) elsewhere: Vec<Portal>,
}

/// Logs in on the path and looks at the unit.
pub(super) async fn open(spec: &VolumeSpec, path: &PathSpec, old: Old) -> Attempt {
    let mut login = spec.login.clone();
    login.isid = path.isid;
    let mut elsewhere = old.elsewhere;
    let mut portals = if old.portals.is_empty() {
        vec![path.portal.clone()]
    } else {
        old.portals
    };
    let (session, on_the_way) = loop {
        let connected = net::connect(&*spec.network, &portals, login.clone(), &spec.connect).await;
        let connected = match connected {
            Ok(connected) => connected,
            Err(error) => {
                tracing::debug!(volume = spec.name, portal = %path.portal, %error, "no session");
                return Attempt::Failed(failure::from_connect(error, &spec.target));
            }
        };
        let through = connected.portal.clone();
        let session = Session::start(spec, path, connected);
        let group = session.view.portal_group_tag;
        match old.group {
            Some(wanted) if group != Some(wanted) => {
                session.end(Instant::now() + spec.logout_timeout).await;
                // Those before it cannot be reached; one after it may lead to the right group.
                let tried = portals.iter().position(|portal| *portal == through);
                portals.drain(..=tried.unwrap_or(portals.len() - 1));
                if portals.is_empty() {
                    portals = std::mem::take(&mut elsewhere);
                }
                if portals.is_empty() {
                    return Attempt::Failed(failure::other_group(&spec.target, wanted, group));
                }
            }
            _ => break (session, through != path.portal),
        }
    };
    if on_the_way {
        tracing::info!(
            volume = spec.name, portal = %path.portal, through = session.view.portal,
            "the old session was ended through another portal of its group"
        );
        session.end(Instant::now() + spec.logout_timeout).await;
        return Attempt::Detour;
    }
    match probe::probe(&session.port).await {
        Ok(found) => Attempt::Opened(Box::new(Opened { session, found })),
        Err(error) => {
            let error = match session.close_reason() {
                Some(reason) => lost(spec, reason),
                None => failure::from_probe(error, spec.lun, &spec.target),
            };
            session.end(Instant::now() + spec.logout_timeout).await;
            Attempt::Unusable(error)
        }
    }
}

impl Session {
    fn start(spec: &VolumeSpec, path: &PathSpec, connected: Connected) -> Self {
        let view = session_view(&connected, path);
        let landed = connected.landed.clone();
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
            DriverOptions {
                timers: timers::current(),
                ..DriverOptions::default()
            },
            on_events,
        );
        let driver = tokio::task::spawn_local(driver.run());
        let reason = Rc::default();
        let transport = SessionTransport::new(Rc::clone(&handle), spec.lun, Rc::clone(&reason));
        let port = Port::new(Box::new(transport), spec.lun, spec.command_timeout);
        *sink.0.borrow_mut() = Some(Sink::Port(Rc::clone(&port)));
        Self {
            handle,
            driver,
            sink,
            reason,
            port,
            view,
            landed,
        }
    }

    /// From now on the session serves I/O.
    pub(super) fn serve(&self, hub: &Rc<RefCell<DynHub>>) {
        *self.sink.0.borrow_mut() = Some(Sink::Hub(Rc::clone(hub)));
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Why it ended, once it has.
    pub(super) fn close_reason(&self) -> Option<CloseReason> {
        self.reason.borrow().clone()
    }

    /// Ends it without a word to the target.
    pub(super) fn cut(&self) {
        self.handle.with_session(|session, _| {
            session.handle_lost(std::io::ErrorKind::ConnectionAborted);
        });
    }

    /// Logs out, once what is in flight has ended. Returns whether the target confirmed it: then the session is
    /// gone there.
    pub(super) async fn end(mut self, deadline: Instant) -> bool {
        self.log_out(deadline).await
    }

    /// See [`Session::end`].
    pub(super) async fn log_out(&mut self, deadline: Instant) -> bool {
        self.handle.with_session(|session, now| session.logout(now));
        let ended = tokio::time::timeout_at(deadline, &mut self.driver).await;
        matches!(
            (ended, self.close_reason()),
            (
                Ok(_),
                Some(CloseReason::LoggedOut {
                    response: Some(0 | 1),
                    ..
                })
            )
        )
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
        self.sink.0.borrow_mut().take();
    }
}

/// Why a session was lost, for people.
pub(super) fn lost(spec: &VolumeSpec, reason: CloseReason) -> Error {
    match reason {
        CloseReason::Failed(error) => failure::from_iscsi(error, &spec.target, None),
        CloseReason::DroppedByTarget { .. } => failure::lost("the target dropped it"),
        CloseReason::LoggedOut { cause, .. } => {
            failure::lost(format_args!("it was logged out ({cause:?})"))
        }
    }
}

fn session_view(connected: &Connected, path: &PathSpec) -> SessionView {
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
        portal: path.portal.to_string(),
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

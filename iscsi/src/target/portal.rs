//! The target role as one machine: targets, logical units, sessions and connections of one thread.
//!
//! ```text
//! driver: accept -> handle_input / handle_timeout -> poll_transmit -> ... -> remove
//!                        |            |
//!                        v            v
//!            Connection (login, tasks) --- Shared (targets, units, sessions) --- orders to others
//! ```
//!
//! Everything is plain data behind `&mut self`: no lock, no clock, no socket. What one connection does to
//! another (reinstatement, resets) is an order, carried out before the call returns; the driver asks
//! [`Portal::poll_wake`] which other connections have something new to do.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_iobuf::{Payload, ReceiveBuffer, SendQueue};
use slab::Slab;

use super::config::{PortalSettings, TargetConfig, UnitId};
use super::connection::{CloseReason, Connection, ConnectionId, Phase};
use super::counters::Counters;
use super::executor::{Nexus, ScsiExecutor, ScsiReply};
use super::faults::FaultPlan;
use super::lun_map;
use super::pace::{Limits, Pacing};
use super::session::{Session, SessionInfo, SessionKind};
use crate::name::IscsiName;
use crate::pdu::AsyncMessage;
use crate::types::{Lun, TargetSn, Tsih};

/// What one connection wants of another.
#[derive(Debug)]
pub(super) enum Order {
    Close(CloseReason),
    /// Its tasks on this unit die without an answer; a unit attention tells.
    AbortUnit(usize),
    /// It is its turn at a limit, now or soon.
    LookAtTheClock,
}

#[derive(Debug)]
pub(super) struct Target {
    pub(super) config: TargetConfig,
}

/// Everything that connections share.
pub(super) struct Shared {
    pub(super) settings: PortalSettings,
    pub(super) targets: Slab<Target>,
    pub(super) units: Slab<Box<dyn ScsiExecutor>>,
    pub(super) sessions: Slab<Session>,
    pub(super) orders: Vec<(ConnectionId, Order)>,
    pub(super) pacing: Pacing,
    by_name: BTreeMap<String, usize>,
    last_tsih: u16,
}

impl Shared {
    pub(super) fn target_of(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// The unit behind a LUN of a session.
    pub(super) fn unit_of(&self, session: usize, lun: Lun) -> Option<usize> {
        let target = self.sessions[session].target?;
        let number = lun.number()?;
        let unit = self.targets.get(target)?.config.luns.get(&number)?;
        self.units.contains(unit.0).then_some(unit.0)
    }

    /// All units of a session's target, once each.
    pub(super) fn units_of(&self, session: usize) -> Vec<usize> {
        let target = self.sessions[session].target;
        let config = target.and_then(|target| self.targets.get(target));
        let units: BTreeSet<usize> = config
            .into_iter()
            .flat_map(|target| target.config.luns.values().map(|unit| unit.0))
            .collect();
        units.into_iter().collect()
    }

    pub(super) fn execute(
        &mut self,
        session: usize,
        lun: Lun,
        unit: Option<usize>,
        cdb: &[u8; 16],
        data_out: &Payload,
    ) -> ScsiReply {
        let session = &self.sessions[session];
        if lun_map::is_report_luns(cdb) {
            let luns = session
                .target
                .and_then(|target| self.targets.get(target))
                .into_iter()
                .flat_map(|target| target.config.luns.keys().copied());
            return lun_map::report_luns(cdb, luns);
        }
        match unit.and_then(|unit| self.units.get_mut(unit)) {
            Some(unit) => unit.execute(&session.nexus, cdb, data_out),
            None => {
                tracing::trace!(%lun, "command to a LUN that is not mapped");
                lun_map::absent(cdb)
            }
        }
    }

    /// The session of the same initiator port with the same target port.
    pub(super) fn session_of(&self, nexus: &Nexus, kind: SessionKind) -> Option<usize> {
        self.sessions
            .iter()
            .find(|(_, session)| session.kind == kind && *session.nexus == *nexus)
            .map(|(key, _)| key)
    }

    pub(super) fn end_session(&mut self, session: usize) {
        let units = self.units_of(session);
        let session = self.sessions.remove(session);
        for unit in units {
            self.units[unit].nexus_ends(&session.nexus);
        }
        tracing::info!(
            connection = session.connection.0,
            initiator = %session.nexus.initiator,
            target = %session.nexus.target,
            "target session ends"
        );
    }

    pub(super) fn take_tsih(&mut self) -> Option<Tsih> {
        for _ in 0..=u16::MAX {
            self.last_tsih = self.last_tsih.wrapping_add(1);
            let tsih = Tsih(self.last_tsih);
            if tsih.0 != 0 && self.sessions.iter().all(|(_, s)| s.tsih != tsih) {
                return Some(tsih);
            }
        }
        None
    }

    /// Aborts the tasks of all other connections on a unit.
    pub(super) fn abort_elsewhere(&mut self, own: ConnectionId, unit: usize) {
        for (_, session) in &self.sessions {
            if session.connection != own {
                self.orders
                    .push((session.connection, Order::AbortUnit(unit)));
            }
        }
    }
}

/// What the driver may do with the socket of a connection; all of it is set by fault switches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Read from the socket.
    pub read: bool,
    /// At most this many bytes in the next write; 0: write nothing.
    pub write_bytes_max: usize,
    /// Close now, whatever is still to be sent.
    pub cut: bool,
}

/// An asynchronous message to send (RFC 7143 11.9.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AsyncNotice {
    /// Event code: 0 SCSI event, 1 logout request, 2 connection drop, 3 session drop, 4 negotiation request.
    pub event: u8,
    /// LUN of a SCSI event.
    pub lun: Lun,
    /// Parameters 1 to 3, as the event defines them.
    pub parameters: [u16; 3],
    /// Sense data of a SCSI event.
    pub sense: Vec<u8>,
    /// Events 2 and 3: close the connection right after the message. Event 1: close it when the initiator has
    /// not logged out within parameter 3 seconds.
    pub enforce: bool,
}

impl AsyncNotice {
    /// A message without sense data that is enforced.
    #[must_use]
    pub fn new(event: u8, parameters: [u16; 3]) -> Self {
        Self {
            event,
            lun: Lun::default(),
            parameters,
            sense: Vec::new(),
            enforce: true,
        }
    }
}

/// A target name that is there already.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("target {0} exists already")]
pub struct TargetExists(pub String);

/// The targets of one place: their units, sessions and connections, without sockets.
pub struct Portal {
    shared: Shared,
    connections: BTreeMap<ConnectionId, Box<Connection>>,
    next_connection: u64,
    /// Connections that others gave something to do.
    wakes: VecDeque<ConnectionId>,
    /// Plans for the next connections, first come first served.
    next_faults: VecDeque<FaultPlan>,
    /// The plan of connections for which none of those is left.
    default_faults: FaultPlan,
    /// Counters of connections that are gone.
    past: Counters,
    accepted: u64,
}

impl std::fmt::Debug for Portal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Portal")
            .field("targets", &self.shared.by_name.keys())
            .field("sessions", &self.shared.sessions.len())
            .field("connections", &self.connections.len())
            .finish_non_exhaustive()
    }
}

impl Portal {
    /// A portal without targets.
    #[must_use]
    pub fn new(settings: PortalSettings) -> Self {
        Self {
            shared: Shared {
                settings,
                targets: Slab::new(),
                units: Slab::new(),
                sessions: Slab::new(),
                orders: Vec::new(),
                pacing: Pacing::default(),
                by_name: BTreeMap::new(),
                last_tsih: 0,
            },
            connections: BTreeMap::new(),
            next_connection: 0,
            wakes: VecDeque::new(),
            next_faults: VecDeque::new(),
            default_faults: FaultPlan::default(),
            past: Counters::default(),
            accepted: 0,
        }
    }

    /// The settings; changes count for what happens later, not for what was negotiated.
    pub fn settings_mut(&mut self) -> &mut PortalSettings {
        &mut self.shared.settings
    }

    /// Adds a logical unit. It is reached when a target maps it.
    pub fn add_unit(&mut self, unit: Box<dyn ScsiExecutor>) -> UnitId {
        UnitId(self.shared.units.insert(unit))
    }

    /// A logical unit as its own type, to resize it, change its ALUA state, cut its power and so on. `None`
    /// when there is no such unit or it has another type.
    pub fn unit_mut<U: ScsiExecutor>(&mut self, unit: UnitId) -> Option<&mut U> {
        let unit: &mut dyn Any = self.shared.units.get_mut(unit.0)?.as_mut();
        unit.downcast_mut()
    }

    /// Removes a logical unit that no target maps. Says whether it did. Sessions that may still have commands
    /// for it are the caller's to close before.
    pub fn remove_unit(&mut self, unit: UnitId) -> bool {
        let mut targets = self.shared.targets.iter();
        let mapped = targets.any(|(_, target)| target.config.luns.values().any(|u| *u == unit));
        let removed = !mapped && self.shared.units.try_remove(unit.0).is_some();
        if removed {
            self.shared.pacing.remove(unit.0);
        }
        removed
    }

    /// Limits what a logical unit starts in a second, from now on, also for commands that wait. A unit without limits
    /// pays nothing for those of others but one look-up. Says whether the unit is there.
    pub fn set_limits(&mut self, now: Instant, unit: UnitId, limits: &Limits) -> bool {
        let there = self.shared.units.contains(unit.0);
        if there {
            let Shared { pacing, orders, .. } = &mut self.shared;
            pacing.set(now, unit.0, limits, orders);
            self.carry_out();
        }
        there
    }

    /// Adds a target.
    ///
    /// # Errors
    /// When the name is taken.
    pub fn add_target(&mut self, config: TargetConfig) -> Result<(), TargetExists> {
        let name = config.name.normalized().to_owned();
        if self.shared.by_name.contains_key(&name) {
            return Err(TargetExists(name));
        }
        let key = self.shared.targets.insert(Target { config });
        self.shared.by_name.insert(name, key);
        Ok(())
    }

    /// Removes a target and ends its sessions. Says whether it was there.
    pub fn remove_target(&mut self, name: &IscsiName) -> bool {
        let Some(key) = self.shared.by_name.remove(name.normalized()) else {
            return false;
        };
        let connections: Vec<ConnectionId> = self
            .shared
            .sessions
            .iter()
            .filter(|(_, session)| session.target == Some(key))
            .map(|(_, session)| session.connection)
            .collect();
        for id in connections {
            self.close(id);
        }
        self.shared.targets.remove(key);
        true
    }

    /// Configuration of a target. Access, credentials and limits count from the next login on; to change LUNs
    /// use [`Portal::map_lun`].
    pub fn target_mut(&mut self, name: &IscsiName) -> Option<&mut TargetConfig> {
        let key = self.shared.target_of(name.normalized())?;
        Some(&mut self.shared.targets[key].config)
    }

    /// Maps `lun` of a target to a unit, or unmaps it. Every session learns of it by REPORTED LUNS DATA HAS
    /// CHANGED. Says whether the target is there.
    pub fn map_lun(&mut self, name: &IscsiName, lun: u16, unit: Option<UnitId>) -> bool {
        let Some(key) = self.shared.target_of(name.normalized()) else {
            return false;
        };
        let nexuses: Vec<Arc<Nexus>> = self
            .shared
            .sessions
            .iter()
            .filter(|(_, session)| session.target == Some(key))
            .map(|(_, session)| session.nexus.clone())
            .collect();
        let luns = &mut self.shared.targets[key].config.luns;
        match unit {
            Some(unit) => {
                let known = luns.values().any(|mapped| *mapped == unit);
                luns.insert(lun, unit);
                if !known && let Some(unit) = self.shared.units.get_mut(unit.0) {
                    for nexus in &nexuses {
                        unit.nexus_begins(nexus, false);
                    }
                }
            }
            None => {
                luns.remove(&lun);
            }
        }
        let units: BTreeSet<usize> = self.shared.targets[key]
            .config
            .luns
            .values()
            .map(|unit| unit.0)
            .collect();
        for unit in units {
            if let Some(unit) = self.shared.units.get_mut(unit) {
                unit.unit_attention(0x3f, 0x0e, None);
            }
        }
        true
    }

    /// A new connection on a portal of group `group`. `local` is its address as discovery reports it. `None`
    /// when there are too many.
    pub fn accept(&mut self, now: Instant, local: &str, group: u16) -> Option<ConnectionId> {
        if self.connections.len() >= self.shared.settings.connections_max {
            return None;
        }
        let id = ConnectionId(self.next_connection);
        self.next_connection += 1;
        self.accepted += 1;
        let plan = match self.next_faults.pop_front() {
            Some(plan) => plan,
            None => self.default_faults.clone(),
        };
        let connection = Connection::new(&self.shared, id, local, group, plan, now);
        self.connections.insert(id, Box::new(connection));
        Some(id)
    }

    /// Takes what was received. Input that cannot be taken now stays in `rx`; call again after
    /// [`Portal::poll_transmit`].
    pub fn handle_input(&mut self, id: ConnectionId, now: Instant, rx: &mut ReceiveBuffer) {
        while let Some(connection) = self.connections.get_mut(&id) {
            let more = connection.handle_one(&mut self.shared, now, rx);
            if !self.shared.orders.is_empty() {
                self.carry_out();
            }
            if !more {
                break;
            }
        }
    }

    /// Builds what is to be sent, up to about one large write.
    pub fn poll_transmit(&mut self, id: ConnectionId, tx: &mut SendQueue) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.poll_transmit(&mut self.shared, tx);
        }
        self.carry_out();
    }

    /// When [`Portal::handle_timeout`] wants to be called for this connection.
    #[must_use]
    pub fn poll_timeout(&self, id: ConnectionId) -> Option<Instant> {
        self.connections.get(&id)?.poll_timeout(&self.shared)
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, id: ConnectionId, now: Instant) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.handle_timeout(&mut self.shared, now);
        }
        self.carry_out();
    }

    /// Whether [`Portal::handle_input`] can take more now; if not, the driver stops reading.
    #[must_use]
    pub fn wants_input(&self, id: ConnectionId) -> bool {
        self.connections
            .get(&id)
            .is_some_and(|connection| connection.wants_input())
    }

    /// Whether everything was built and the connection is to be closed once it is sent.
    #[must_use]
    pub fn is_over(&self, id: ConnectionId) -> bool {
        self.connections
            .get(&id)
            .is_none_or(|connection| connection.is_over())
    }

    /// Why a connection ends, once it does.
    #[must_use]
    pub fn close_reason(&self, id: ConnectionId) -> Option<&CloseReason> {
        match &self.connections.get(&id)?.phase {
            Phase::Closing(reason) => Some(reason),
            _ => None,
        }
    }

    /// The socket is gone: the session ends, the connection is forgotten.
    pub fn remove(&mut self, id: ConnectionId) {
        if let Some(mut connection) = self.connections.remove(&id) {
            connection.close(&mut self.shared, CloseReason::Stopped);
            self.past.add(&connection.counters);
        }
        self.carry_out();
    }

    /// A connection that others gave something to do: call [`Portal::poll_transmit`] and look at
    /// [`Portal::is_over`] for it.
    pub fn poll_wake(&mut self) -> Option<ConnectionId> {
        self.wakes.pop_front()
    }

    /// What fault switches let the driver do with the socket.
    #[must_use]
    pub fn link(&self, id: ConnectionId) -> Link {
        self.connections.get(&id).map_or(
            Link {
                read: false,
                write_bytes_max: usize::MAX,
                cut: true,
            },
            |connection| connection.link(),
        )
    }

    /// Tells how many bytes the driver moved; cuts the connection when a fault switch says so.
    pub fn on_moved(&mut self, id: ConnectionId, received: usize, sent: usize) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.on_moved(&mut self.shared, received as u64, sent as u64);
        }
    }

    /// Sets the faults of a connection that is there. Says whether it is.
    pub fn set_faults(&mut self, id: ConnectionId, plan: FaultPlan) -> bool {
        let Some(connection) = self.connections.get_mut(&id) else {
            return false;
        };
        connection.faults = (!plan.is_empty()).then(|| Box::new(plan));
        self.wakes.push_back(id);
        true
    }

    /// Sets the faults of the next connection for which none were set yet.
    pub fn push_faults(&mut self, plan: FaultPlan) {
        self.next_faults.push_back(plan);
    }

    /// Forgets what [`Portal::push_faults`] set and no connection has taken yet.
    pub fn clear_pushed_faults(&mut self) {
        self.next_faults.clear();
    }

    /// Sets the faults of every connection to come, after those of [`Portal::push_faults`].
    pub fn set_default_faults(&mut self, plan: FaultPlan) {
        self.default_faults = plan;
    }

    /// Executes and answers everything that faults hold back on a connection.
    pub fn release(&mut self, id: ConnectionId, now: Instant) {
        self.with(id, |connection, shared| {
            connection.release_held(shared, now, |_| true);
        });
    }

    /// Pings the initiator; without an answer in time the connection is closed. [`Counters`] tell.
    pub fn ping(&mut self, id: ConnectionId, now: Instant, within: Duration) {
        self.with(id, |connection, _| connection.send_ping(now, within));
    }

    /// Sends an asynchronous message.
    pub fn send_async(&mut self, id: ConnectionId, now: Instant, notice: &AsyncNotice) {
        self.with(id, |connection, shared| {
            if !matches!(connection.phase, Phase::Full) {
                return;
            }
            let mut data = Payload::new();
            if !notice.sense.is_empty() {
                data = crate::pdu::sense_data(&notice.sense);
            }
            connection.send_async(AsyncMessage {
                lun: notice.lun,
                sn: TargetSn::default(),
                event: notice.event,
                vendor_code: 0,
                parameter1: notice.parameters[0],
                parameter2: notice.parameters[1],
                parameter3: notice.parameters[2],
                data,
            });
            match notice.event {
                1 if notice.enforce => {
                    let wait = Duration::from_secs(notice.parameters[2].into());
                    connection.logout_until = Some(now + wait);
                }
                2 | 3 if notice.enforce => connection.close(shared, CloseReason::Stopped),
                _ => {}
            }
        });
    }

    /// Grants no new commands until it is called with `false`; then NOP-In tells the initiator.
    pub fn freeze_window(&mut self, id: ConnectionId, frozen: bool) {
        self.with(id, |connection, shared| {
            if let Some(session) = connection.session {
                let window = &mut shared.sessions[session].window;
                let was_closed = window.is_closed();
                window.freeze(frozen);
                if was_closed && !window.is_closed() {
                    connection.send_numbers();
                }
            }
        });
    }

    /// Changes the number of commands that a session may have unfinished.
    pub fn resize_window(&mut self, id: ConnectionId, size: u32) {
        self.with(id, |connection, shared| {
            if let Some(session) = connection.session {
                shared.sessions[session].window.resize(size);
            }
        });
    }

    /// Closes a connection without a word.
    pub fn close(&mut self, id: ConnectionId) {
        self.with(id, |connection, shared| {
            connection.control.clear();
            connection.close(shared, CloseReason::Stopped);
        });
    }

    /// Sessions that are logged in.
    #[must_use]
    pub fn sessions(&self) -> Vec<SessionInfo> {
        self.shared
            .sessions
            .iter()
            .map(|(_, session)| SessionInfo {
                connection: session.connection,
                tsih: session.tsih,
                cid: session.cid,
                kind: session.kind,
                nexus: session.nexus.clone(),
            })
            .collect()
    }

    /// Connections that are there, oldest first.
    pub fn connections(&self) -> impl Iterator<Item = ConnectionId> + '_ {
        self.connections.keys().copied()
    }

    /// Connections accepted so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Tasks of a connection that are alive.
    #[must_use]
    pub fn tasks(&self, id: ConnectionId) -> usize {
        self.connections
            .get(&id)
            .map_or(0, |connection| connection.tasks.len())
    }

    /// Counters of one connection.
    #[must_use]
    pub fn counters(&self, id: ConnectionId) -> Option<&Counters> {
        self.connections
            .get(&id)
            .map(|connection| &*connection.counters)
    }

    /// Counters of all connections, also those that are gone.
    #[must_use]
    pub fn total_counters(&self) -> Counters {
        let mut total = self.past.clone();
        for connection in self.connections.values() {
            total.add(&connection.counters);
        }
        total
    }

    fn with(&mut self, id: ConnectionId, act: impl FnOnce(&mut Connection, &mut Shared)) {
        if let Some(connection) = self.connections.get_mut(&id) {
            act(connection, &mut self.shared);
            self.wakes.push_back(id);
        }
        self.carry_out();
    }

    fn carry_out(&mut self) {
        while let Some((id, order)) = self.shared.orders.pop() {
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.obey(&mut self.shared, order);
                if !self.wakes.contains(&id) {
                    self.wakes.push_back(id);
                }
            }
        }
    }
}

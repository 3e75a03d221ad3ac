//! The simulated storage array: the project's target role, driven under virtual time.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use berth_iobuf::{ReceiveBuffer, SendQueue};
use berth_iscsi::name::IscsiName;
use berth_iscsi::net::Socket;
use berth_iscsi::scsi::alua::{AccessState, PortGroup};
use berth_iscsi::target::disk::{Disk, DiskError, DiskExtent, RamDisk, ReadSink, WriteCache};
use berth_iscsi::target::faults::FaultPlan;
use berth_iscsi::target::lu::{LogicalUnit, LuConfig, LuIdentity};
use berth_iscsi::target::{
    CloseReason, ConnectionId, Portal, PortalGroup, PortalSettings, TargetConfig, UnitId,
};
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{Instant, Sleep, sleep_until};

use super::net::Net;
use super::rng::Rng;
use super::trace;
use crate::event;

/// Name of the target.
pub const TARGET: &str = "iqn.2026-11.io.berth:simulated";
/// The LUN that everything is about.
pub const LUN: u16 = 1;
/// Bytes read in one turn.
const READ_BUDGET_BYTES: usize = 256 * 1024;
/// Bytes that wait for a socket at which nothing more is read.
const SEND_BYTES_MAX: usize = 1024 * 1024;

/// How an array is made.
#[derive(Debug, Clone)]
pub struct ArraySpec {
    /// Logical block in bytes.
    pub block_bytes: u32,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Volatile write cache.
    pub write_cache: bool,
    /// Thin provisioned.
    pub thin: bool,
    /// Portal group tag of each portal.
    pub groups: Vec<u16>,
    /// Asymmetric access.
    pub alua: bool,
    /// Longest transfer in bytes.
    pub transfer_max_bytes: u32,
    /// Limits of the negotiation.
    pub settings: PortalSettings,
}

/// The array; clones are the same one.
#[derive(Clone)]
pub struct Array(Rc<Inner>);

struct Inner {
    net: Net,
    portal: RefCell<Portal>,
    unit: UnitId,
    decoy: UnitId,
    decoy_writes: Arc<AtomicU64>,
    wakers: RefCell<BTreeMap<ConnectionId, Waker>>,
    pumps: RefCell<BTreeMap<ConnectionId, AbortHandle>>,
    /// Target connections by number of the network's connection.
    by_wire: RefCell<BTreeMap<usize, ConnectionId>>,
    down: Cell<bool>,
    /// Names of the faults of the logins to come.
    spoilt: RefCell<VecDeque<&'static str>>,
}

/// A disk that counts what changes it.
struct Watched {
    disk: RamDisk,
    changes: Arc<AtomicU64>,
}

impl Disk for Watched {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn granule_bytes(&self) -> u32 {
        self.disk.granule_bytes()
    }

    fn read(&mut self, offset: u64, len: usize, out: &mut ReadSink) -> Result<(), DiskError> {
        self.disk.read(offset, len, out)
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.changes.fetch_add(1, Ordering::Relaxed);
        self.disk.write(offset, data)
    }

    fn unmap(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.changes.fetch_add(1, Ordering::Relaxed);
        self.disk.unmap(offset, len)
    }

    fn extent(&mut self, offset: u64) -> Result<DiskExtent, DiskError> {
        self.disk.extent(offset)
    }

    fn flush(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.disk.flush(offset, len)
    }

    fn resize(&mut self, size_bytes: u64) -> Result<(), DiskError> {
        self.disk.resize(size_bytes)
    }

    fn power_cut(&mut self, survives: &mut dyn FnMut(u64) -> bool) -> Result<(), DiskError> {
        self.disk.power_cut(survives)
    }
}

impl Array {
    /// An array that listens on every portal of the network. Call it inside of a `LocalSet`.
    #[must_use]
    pub fn start(net: &Net, spec: &ArraySpec) -> Self {
        let mut settings = spec.settings.clone();
        let mut tags = spec.groups.clone();
        tags.dedup();
        settings.groups = tags
            .iter()
            .map(|tag| PortalGroup {
                tag: *tag,
                addresses: Vec::new(),
            })
            .collect();
        let mut portal = Portal::new(settings);
        let config = |serial: &str| {
            let mut config = LuConfig::new(serial);
            config.block_bytes = spec.block_bytes;
            config.write_cache = spec.write_cache;
            config.thin = spec.thin;
            config.transfer_max_bytes = spec.transfer_max_bytes;
            config.write_same_max_bytes = spec.transfer_max_bytes;
            if spec.alua {
                config.port_groups = tags.iter().map(|tag| port_group(*tag)).collect();
            }
            config
        };
        let ram = RamDisk::new(spec.size_bytes);
        let disk: Box<dyn Disk> = if spec.write_cache {
            Box::new(WriteCache::new(ram, spec.block_bytes))
        } else {
            Box::new(ram)
        };
        let unit = portal.add_unit(Box::new(LogicalUnit::new(config("the volume"), disk)));
        let decoy_writes = Arc::new(AtomicU64::new(0));
        let decoy = Watched {
            disk: RamDisk::new(spec.size_bytes),
            changes: Arc::clone(&decoy_writes),
        };
        let decoy = LogicalUnit::new(config("somebody else's"), Box::new(decoy));
        let decoy = portal.add_unit(Box::new(decoy));
        portal
            .add_target(TargetConfig::new(target_name()).with_lun(LUN, unit))
            .expect("it is the first target");
        let array = Self(Rc::new(Inner {
            net: net.clone(),
            portal: RefCell::new(portal),
            unit,
            decoy,
            decoy_writes,
            wakers: RefCell::default(),
            pumps: RefCell::default(),
            by_wire: RefCell::default(),
            down: Cell::new(false),
            spoilt: RefCell::default(),
        }));
        for (index, group) in spec.groups.iter().enumerate() {
            spawn_local(array.clone().listen(index, *group));
        }
        array
    }

    async fn listen(self, index: usize, group: u16) {
        loop {
            let (wire, socket) = self.0.net.accept(index).await;
            if self.0.down.get() {
                continue; // Dropping the socket resets the connection.
            }
            let local = super::net::portal_name(index).to_string();
            let now = now();
            let Some(id) = self.0.portal.borrow_mut().accept(now, &local, group) else {
                trace::count("array: too many connections");
                continue;
            };
            if let Some(name) = self.0.spoilt.borrow_mut().pop_front() {
                trace::count(name);
            }
            event!("array.accept", "connection {} portal {}", wire, index);
            self.0.by_wire.borrow_mut().insert(wire, id);
            let pump = Pump::new(self.clone(), id, socket);
            let task = spawn_local(async move {
                let mut pump = pump;
                poll_fn(|cx| pump.poll(cx)).await;
            });
            self.0.pumps.borrow_mut().insert(id, task.abort_handle());
        }
    }

    /// Does something to the portal, and lets its connections see what it means for them.
    pub fn with<R>(&self, act: impl FnOnce(&mut Portal) -> R) -> R {
        let portal = &mut *self.0.portal.borrow_mut();
        let result = act(portal);
        self.wake_others(portal);
        result
    }

    /// Does something to the logical unit.
    pub fn with_unit<R>(&self, act: impl FnOnce(&mut LogicalUnit) -> R) -> R {
        let unit = self.0.unit;
        self.with(|portal| act(portal.unit_mut(unit).expect("it is never removed")))
    }

    /// The next login that has no fault yet gets this one, which is counted when it happens.
    pub fn spoil_login(&self, name: &'static str, plan: FaultPlan) {
        self.0.spoilt.borrow_mut().push_back(name);
        self.with(|portal| portal.push_faults(plan));
    }

    /// Login faults that nobody has met yet are off.
    pub fn clear_login_faults(&self) {
        self.0.spoilt.borrow_mut().clear();
        self.with(|portal| portal.clear_pushed_faults());
    }

    /// The target's side of a connection of the network.
    #[must_use]
    pub fn connection_of(&self, wire: usize) -> Option<ConnectionId> {
        self.0.by_wire.borrow().get(&wire).copied()
    }

    /// Maps the LUN to the volume, to somebody else's, or to nothing.
    pub fn map(&self, to: Mapping) {
        let unit = match to {
            Mapping::Volume => Some(self.0.unit),
            Mapping::Decoy => Some(self.0.decoy),
            Mapping::Nothing => None,
        };
        self.with(|portal| portal.map_lun(&target_name(), LUN, unit));
    }

    /// How often somebody else's volume was changed.
    #[must_use]
    pub fn decoy_writes(&self) -> u64 {
        self.0.decoy_writes.load(Ordering::Relaxed)
    }

    /// The array stops: connections are reset, sessions forgotten. With `survives` its power fails: blocks
    /// that were not flushed survive in so many of 100 cases.
    pub fn stop(&self, power: Option<(&mut Rng, u64)>) {
        self.0.down.set(true);
        for (_, pump) in std::mem::take(&mut *self.0.pumps.borrow_mut()) {
            pump.abort();
        }
        self.0.wakers.borrow_mut().clear();
        self.with(|portal| {
            let ids: Vec<_> = portal.connections().collect();
            for id in ids {
                portal.remove(id);
            }
        });
        if let Some((rng, percent)) = power {
            self.with_unit(|unit| {
                unit.power_cycle(&mut |_| rng.percent(percent))
                    .expect("memory does not fail");
            });
        }
    }

    /// Ends every connection at once: nothing that is under way is executed any more.
    pub fn hang_up(&self) {
        self.with(|portal| {
            let ids: Vec<_> = portal.connections().collect();
            for id in ids {
                portal.close(id);
            }
        });
    }

    /// It is there again.
    pub fn start_again(&self) {
        self.0.down.set(false);
    }

    /// What is on the disk.
    #[must_use]
    pub fn contents(&self) -> Vec<u8> {
        self.with_unit(|unit| {
            let mut sink = ReadSink::new();
            let len = unit.disk().size_bytes();
            unit.disk()
                .read(0, len as usize, &mut sink)
                .expect("it is inside");
            sink.take().to_bytes().to_vec()
        })
    }

    fn wake_others(&self, portal: &mut Portal) {
        while let Some(id) = portal.poll_wake() {
            if let Some(waker) = self.0.wakers.borrow().get(&id) {
                waker.wake_by_ref();
            }
        }
    }
}

/// What the LUN leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapping {
    /// The volume.
    Volume,
    /// Another unit with another identity.
    Decoy,
    /// Nothing.
    Nothing,
}

/// The name of the target.
///
/// # Panics
/// Never.
#[must_use]
pub fn target_name() -> IscsiName {
    TARGET.parse().expect("it is a valid name")
}

/// What the volume calls itself.
#[must_use]
pub fn identity() -> LuIdentity {
    LuIdentity::from_serial("the volume")
}

fn port_group(tag: u16) -> PortGroup {
    PortGroup {
        id: tag,
        preferred: false,
        state: if tag == 1 {
            AccessState::ActiveOptimized
        } else {
            AccessState::ActiveNonOptimized
        },
        supported: 0x8f,
        status_code: 0,
        ports: vec![tag],
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// One connection of the array.
struct Pump {
    array: Array,
    id: ConnectionId,
    socket: Box<dyn Socket>,
    rx: ReceiveBuffer,
    tx: SendQueue,
    timer: Option<Pin<Box<Sleep>>>,
    closing: Option<Instant>,
}

/// Time for the last bytes of a connection that ends.
const LINGER: Duration = Duration::from_secs(1);

impl Pump {
    fn new(array: Array, id: ConnectionId, socket: Box<dyn Socket>) -> Self {
        Self {
            array,
            id,
            socket,
            rx: ReceiveBuffer::new(),
            tx: SendQueue::new(),
            timer: None,
            closing: None,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.array
            .0
            .wakers
            .borrow_mut()
            .insert(self.id, cx.waker().clone());
        let array = self.array.clone();
        let mut portal = array.0.portal.borrow_mut();
        // An error is the end of the connection, whatever it is.
        let over = self.step(cx, &mut portal).unwrap_or(true);
        if over {
            portal.remove(self.id);
            array.0.wakers.borrow_mut().remove(&self.id);
            array.0.pumps.borrow_mut().remove(&self.id);
        }
        array.wake_others(&mut portal);
        if over { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Does what can be done; whether the connection is over.
    fn step(&mut self, cx: &mut Context<'_>, portal: &mut Portal) -> io::Result<bool> {
        let now = Instant::now();
        if portal
            .poll_timeout(self.id)
            .is_some_and(|due| due <= now.into_std())
        {
            portal.handle_timeout(self.id, now.into_std());
        }
        self.read(cx, portal, now)?;
        self.write(cx, portal)?;
        if portal.link(self.id).cut {
            return Ok(true);
        }
        let mut due = portal.poll_timeout(self.id).map(Instant::from_std);
        if portal.close_reason(self.id).is_some() {
            let all_is_sent = portal.is_over(self.id) && self.tx.is_empty();
            let until = *self.closing.get_or_insert(now + LINGER);
            if all_is_sent
                || now >= until
                || portal.close_reason(self.id) == Some(&CloseReason::Fault)
            {
                return Ok(true);
            }
            due = Some(due.map_or(until, |due| due.min(until)));
        }
        if let Some(due) = due {
            match &mut self.timer {
                Some(timer) => timer.as_mut().reset(due),
                none => *none = Some(Box::pin(sleep_until(due))),
            }
            if self
                .timer
                .as_mut()
                .is_some_and(|timer| timer.as_mut().poll(cx).is_ready())
            {
                cx.waker().wake_by_ref();
            }
        }
        Ok(false)
    }

    fn takes_input(&self, portal: &Portal) -> bool {
        portal.wants_input(self.id) && self.tx.len() < SEND_BYTES_MAX && portal.link(self.id).read
    }

    fn read(&mut self, cx: &mut Context<'_>, portal: &mut Portal, now: Instant) -> io::Result<()> {
        if !self.rx.is_empty() {
            portal.handle_input(self.id, now.into_std(), &mut self.rx);
        }
        let mut left = READ_BUDGET_BYTES;
        while self.takes_input(portal) {
            if left == 0 {
                cx.waker().wake_by_ref();
                break;
            }
            match self.socket.poll_read(cx, self.rx.room()) {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Poll::Ready(Ok(n)) => {
                    portal.on_moved(self.id, n, 0);
                    portal.handle_input(self.id, now.into_std(), &mut self.rx);
                    left = left.saturating_sub(n);
                }
                Poll::Ready(Err(error)) => return Err(error),
            }
        }
        Ok(())
    }

    fn write(&mut self, cx: &mut Context<'_>, portal: &mut Portal) -> io::Result<()> {
        loop {
            portal.poll_transmit(self.id, &mut self.tx);
            if self.tx.is_empty() {
                if !self.rx.is_empty() && portal.wants_input(self.id) {
                    let before = self.rx.len();
                    portal.handle_input(self.id, now(), &mut self.rx);
                    if self.rx.len() < before {
                        continue;
                    }
                }
                return Ok(());
            }
            let limit = portal.link(self.id).write_bytes_max;
            if limit == 0 {
                return Ok(());
            }
            let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(32);
            self.tx.io_slices(&mut slices);
            let head = self.tx.to_vec();
            let result = if limit < head.len() {
                self.socket
                    .try_write_vectored(&[IoSlice::new(&head[..limit])])
            } else {
                self.socket.try_write_vectored(&slices)
            };
            match result {
                Ok(n) => {
                    drop(slices);
                    self.tx.advance(n);
                    portal.on_moved(self.id, 0, n);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    match self.socket.poll_write_ready(cx) {
                        Poll::Pending => return Ok(()),
                        Poll::Ready(ready) => ready?,
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}

//! Many connections to targets that do everything wrong: nothing panics, nothing hangs, nothing grows.
//!
//! Half of the connections go to the target role with its fault switches, half to a peer that speaks bytes: garbage,
//! one byte at a time, logins without end, absurd lengths, floods, silence. The initiator is the one of the product
//! over real sockets, with its deadlines made short; each connection does what a volume does: log in, read, write, abort,
//! ping, log out. Every operation must end by its deadline, and every command must end once.
//!
//! `BERTH_HOSTILE_CONNECTIONS` (10,000) and `BERTH_HOSTILE_SEED` (random, printed) choose another run. What every single
//! connection does follows from the seed and its number.

mod initiator;
mod plans;
mod raw;
mod tally;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use berth_iscsi::name::{IscsiName, Portal as PortalName};
use berth_iscsi::net::listener::{Listening, Server, ServerHandle};
use berth_iscsi::target::disk::{RamDisk, WriteCache};
use berth_iscsi::target::lu::{LogicalUnit, LuConfig};
use berth_iscsi::target::{Portal, PortalSettings, TargetConfig};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::{LocalSet, spawn_local};

use tally::{Tally, resident_bytes};

const TARGET: &str = "iqn.2026-11.io.berth:hostile";
const CONNECTIONS: u64 = 10_000;
/// Connections at a time: two file descriptors each, of the usual 1024.
const AT_A_TIME: usize = 128;
/// What the process may grow by after the first tenth of the connections, in bytes. It is for the allocator's
/// slack; a leak of 10 KiB for each connection would be 90 MiB.
const GROWTH_MAX_BYTES: u64 = 64 << 20;
/// The whole run must be over by then, at 10,000 connections.
const RUN_MAX: Duration = Duration::from_secs(600);

/// A generator that is good enough and the same everywhere (SplitMix64).
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    /// The dice of one connection.
    pub(crate) fn new(seed: u64, number: u64) -> Self {
        let mut dice = Self(seed ^ number.wrapping_mul(0xd134_2543_de82_ef95));
        dice.next();
        dice
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// 0 to `bound` - 1.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// Where the targets are.
struct Targets {
    faulty: ServerHandle,
    faulty_portal: PortalName,
    raw_portal: PortalName,
}

/// Runs both targets on this thread until they are told to stop.
fn serve(seed: u64, ready: oneshot::Sender<Targets>, stop: oneshot::Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        let faulty = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let raw = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let name = |listener: &TcpListener| {
            let address = listener.local_addr().expect("it is bound");
            PortalName::parse(&address.to_string()).expect("an address")
        };
        let (faulty_portal, raw_portal) = (name(&faulty), name(&raw));
        let mut portal = Portal::new(PortalSettings {
            login_timeout: Duration::from_secs(2),
            ..PortalSettings::default()
        });
        let disk = WriteCache::new(RamDisk::new(4 << 20), 512);
        let unit = LogicalUnit::new(LuConfig::new("hostile"), Box::new(disk));
        let unit = portal.add_unit(Box::new(unit));
        let target = TargetConfig::new(IscsiName::parse(TARGET).expect("a name"));
        portal
            .add_target(target.with_lun(0, unit))
            .expect("the only one");
        let (server, handle) = Server::new(portal);
        let listening = Listening {
            listener: faulty,
            group: 1,
        };
        let server = spawn_local(server.serve(vec![listening]));
        let bytes = spawn_local(raw::serve(raw, seed));
        let targets = Targets {
            faulty: handle.clone(),
            faulty_portal,
            raw_portal,
        };
        assert!(ready.send(targets).is_ok(), "somebody waits for it");
        // Dropped without a word when the test fails.
        let _ = stop.await;
        bytes.abort();
        handle.stop().await.expect("it runs until now");
        server.await.expect("the target does not panic");
    });
}

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect("a number in the environment"))
}

#[test]
fn hostile_targets_for_ten_thousand_connections() {
    let count = setting("BERTH_HOSTILE_CONNECTIONS").unwrap_or(CONNECTIONS);
    let seed = setting("BERTH_HOSTILE_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now();
        let since = now.duration_since(std::time::UNIX_EPOCH);
        since.map_or(1, |since| since.as_nanos() as u64)
    });
    tally::say(&format!("hostile: seed {seed}, {count} connections"));
    let (ready, targets) = oneshot::channel();
    let (stop, stopped) = oneshot::channel();
    let server = thread::spawn(move || serve(seed, ready, stopped));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let started = Instant::now();
    let tally = LocalSet::new().block_on(&runtime, async {
        let targets = targets.await.expect("the targets start");
        let run = attack(targets, seed, count);
        tokio::time::timeout(RUN_MAX, run).await.expect("it ends")
    });
    stop.send(()).expect("the targets still run");
    server.join().expect("the targets do not panic");
    tally.print(started.elapsed());
    tally.check(count);
    let grown = tally.resident_end.saturating_sub(tally.resident_warm);
    assert!(
        grown <= GROWTH_MAX_BYTES,
        "grown by {grown} bytes since the first tenth"
    );
}

/// All connections, a few at a time.
async fn attack(targets: Targets, seed: u64, count: u64) -> Tally {
    let targets = Rc::new(targets);
    let tally = Rc::new(RefCell::new(Tally::new(resident_bytes())));
    let next = Rc::new(Cell::new(0));
    let workers: Vec<_> = (0..AT_A_TIME)
        .map(|_| {
            let (targets, tally, next) = (targets.clone(), tally.clone(), next.clone());
            spawn_local(async move {
                loop {
                    let number = next.get();
                    if number >= count {
                        return;
                    }
                    next.set(number + 1);
                    initiator::one(&targets, seed, number, &tally).await;
                    if number == count / 10 {
                        tally.borrow_mut().resident_warm = resident_bytes();
                    }
                    if number % 256 == 255 {
                        tidy_up(&targets.faulty).await;
                        tally.borrow_mut().note_resident(resident_bytes());
                    }
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.expect("no panic");
    }
    drop(targets);
    let mut tally = Rc::into_inner(tally).expect("all have ended").into_inner();
    tally.resident_end = resident_bytes();
    tally
}

/// The target's ends of connections that were told not to read never see that the other end is gone.
async fn tidy_up(faulty: &ServerHandle) {
    faulty
        .with(|portal, _| {
            let all: Vec<_> = portal.connections().collect();
            for id in &all[..all.len().saturating_sub(2 * AT_A_TIME)] {
                portal.remove(*id);
            }
        })
        .await
        .expect("the target runs");
}

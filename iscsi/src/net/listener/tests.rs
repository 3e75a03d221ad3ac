//! Both roles over real sockets.

use std::cell::RefCell;
use std::slice;

use super::*;
use crate::Payload;
use crate::error::Error;
use crate::login::{LoginConfig, LoginFaults, SessionKind};
use crate::name::{IscsiName, Portal as PortalName};
use crate::net::{
    ConnectError, ConnectOptions, Connected, Driver, DriverOptions, Handle, TcpNetwork, connect,
};
use crate::scsi::Cdb;
use crate::scsi::cdb::Caching;
use crate::session::{Command, Event, TaskOutcome, Transfer};
use crate::target::faults::{CommandFault, FaultPlan, Filter, LinkFault, LoginFault};
use crate::target::testing::{BLOCK_BYTES, RamUnit};
use crate::target::{PortalSettings, TargetConfig, UnitId};
use crate::types::{Isid, Lun};

const TARGET: &str = "iqn.2026-11.io.berth:t1";

struct Running {
    handle: ServerHandle,
    unit: UnitId,
    portal: PortalName,
    server: tokio::task::JoinHandle<Portal>,
}

async fn start(settings: PortalSettings) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let portal = PortalName::parse(&listener.local_addr().unwrap().to_string()).unwrap();
    let mut target = Portal::new(settings);
    let unit = target.add_unit(Box::new(RamUnit::new(8192)));
    let name = IscsiName::parse(TARGET).unwrap();
    target
        .add_target(TargetConfig::new(name).with_lun(0, unit))
        .unwrap();
    let (server, handle) = Server::new(target);
    let server = tokio::task::spawn_local(server.serve(vec![Listening { listener, group: 1 }]));
    Running {
        handle,
        unit,
        portal,
        server,
    }
}

impl Running {
    async fn connect(&self) -> Result<Connected, ConnectError> {
        let kind = SessionKind::Normal {
            target_name: IscsiName::parse(TARGET).unwrap(),
        };
        let name = IscsiName::parse("iqn.2026-11.io.berth:i1").unwrap();
        let config = LoginConfig::new(name, kind, Isid::random([1, 1, 1], 1));
        connect(
            &TcpNetwork,
            slice::from_ref(&self.portal),
            config,
            &ConnectOptions::default(),
        )
        .await
    }

    async fn session(&self) -> Client {
        let connected = self.connect().await.unwrap();
        let (events, outcomes) = mpsc::channel(1024);
        let events = RefCell::new(events);
        let (handle, driver) = Driver::new(
            connected.stream,
            connected.session,
            connected.receive,
            DriverOptions::default(),
            Box::new(move |handle: &Handle| {
                while let Some(event) = handle.poll_event() {
                    events.borrow_mut().try_send(event).unwrap();
                }
            }),
        );
        Client {
            handle,
            driver: tokio::task::spawn_local(driver.run()),
            outcomes,
        }
    }

    async fn stop(self) -> Portal {
        self.handle.stop().await.unwrap();
        self.server.await.unwrap()
    }
}

struct Client {
    handle: Rc<Handle>,
    driver: tokio::task::JoinHandle<()>,
    outcomes: mpsc::Receiver<Event>,
}

impl Client {
    fn read(&self, tag: u64, lba: u32, blocks: u16) {
        let cdb = Cdb::read10(lba, blocks, Caching::NONE).padded();
        let transfer = Transfer::Read {
            len_bytes: u32::from(blocks) * BLOCK_BYTES as u32,
        };
        self.handle
            .submit(Command::new(tag, Lun::default(), cdb, transfer))
            .unwrap();
    }

    fn write(&self, tag: u64, lba: u32, data: Vec<u8>) {
        let cdb = Cdb::write10(lba, (data.len() / BLOCK_BYTES) as u16, Caching::NONE).padded();
        let transfer = Transfer::Write(Payload::from(data));
        self.handle
            .submit(Command::new(tag, Lun::default(), cdb, transfer))
            .unwrap();
    }

    async fn done(&mut self) -> (u64, Payload) {
        match self.outcomes.recv().await {
            Some(Event::TaskDone {
                tag,
                outcome:
                    TaskOutcome::Completed {
                        status: 0, data, ..
                    },
            }) => (tag, data),
            other => panic!("{other:?}"),
        }
    }

    async fn closed(&mut self) {
        while let Some(event) = self.outcomes.recv().await {
            if matches!(event, Event::Closed(_)) {
                return;
            }
        }
        panic!("the driver ended without a word");
    }
}

/// Runs a test on one thread, with a deadline over everything.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(60), test)
            .await
            .expect("the test hangs");
    });
}

#[test]
fn writes_and_reads_of_all_sizes_over_a_socket() {
    run(async {
        let running = start(PortalSettings::default()).await;
        let mut client = running.session().await;
        let mut lba = 0;
        for (tag, blocks) in [1, 8, 64, 500, 2048].into_iter().enumerate() {
            let data: Vec<u8> = (0..blocks * BLOCK_BYTES)
                .map(|i| (i * 7 + tag) as u8)
                .collect();
            client.write(tag as u64, lba, data.clone());
            assert_eq!(client.done().await.0, tag as u64);
            client.read(tag as u64, lba, blocks as u16);
            assert!(client.done().await.1.to_bytes() == data);
            lba += blocks as u32;
        }
        // Many at once.
        for tag in 0..100 {
            client.read(tag, tag as u32, 8);
        }
        for _ in 0..100 {
            client.done().await;
        }
        let counters = running
            .handle
            .with(|portal, _| portal.total_counters())
            .await
            .unwrap();
        assert_eq!(counters.executed[0x28], 105);
        assert!(counters.wire_sent_bytes > counters.data_in_bytes);
        running.stop().await;
        client.closed().await;
        client.driver.await.unwrap();
    });
}

#[test]
fn several_connections_and_a_stop_that_answers_first() {
    run(async {
        let running = start(PortalSettings::default()).await;
        running
            .handle
            .with(|portal, _| {
                portal.set_default_faults(FaultPlan::command(
                    Filter::scsi(0x28),
                    1,
                    CommandFault::DelayResponse(Duration::from_millis(50)),
                ));
            })
            .await
            .unwrap();
        let mut client = running.session().await;
        client.read(1, 0, 1);
        client.read(2, 0, 1);
        assert_eq!(client.done().await.0, 2, "the first one is delayed");
        let portal = running.stop().await;
        assert_eq!(client.done().await.0, 1, "and answered before the end");
        client.closed().await;
        assert_eq!(portal.sessions(), []);
        assert_eq!(portal.connections().count(), 0);
    });
}

#[test]
fn one_byte_at_a_time_still_works() {
    run(async {
        let running = start(PortalSettings::default()).await;
        let plan = FaultPlan {
            link: LinkFault {
                write_bytes_max: 1,
                ..LinkFault::default()
            },
            ..FaultPlan::default()
        };
        running
            .handle
            .with(|portal, _| portal.push_faults(plan))
            .await
            .unwrap();
        let mut client = running.session().await;
        client.read(1, 0, 4);
        assert_eq!(client.done().await.1.len(), 4 * BLOCK_BYTES);
        running.stop().await;
    });
}

#[test]
fn a_connection_is_cut_at_a_byte() {
    run(async {
        let running = start(PortalSettings::default()).await;
        for cut in [1, 47, 48, 200] {
            let plan = FaultPlan {
                link: LinkFault {
                    cut_after_sent_bytes: Some(cut),
                    ..LinkFault::default()
                },
                ..FaultPlan::default()
            };
            running
                .handle
                .with(|portal, _| portal.push_faults(plan))
                .await
                .unwrap();
            let error = running.connect().await.unwrap_err().error;
            assert!(matches!(error, Error::Lost(_)), "{cut}: {error}");
        }
        let mut client = running.session().await;
        client.read(1, 0, 1);
        client.done().await;
        running.stop().await;
    });
}

#[test]
fn half_open_connections_stay_until_they_are_let_go() {
    run(async {
        let running = start(PortalSettings::default()).await;
        let mut client = running.session().await;
        let stuck = |stop_reading, stop_writing| FaultPlan {
            link: LinkFault {
                stop_reading,
                stop_writing,
                ..LinkFault::default()
            },
            ..FaultPlan::default()
        };
        for plan in [stuck(true, false), stuck(false, true)] {
            let set = |plan: FaultPlan| {
                running.handle.with(move |portal, _| {
                    let id = portal.connections().next().unwrap();
                    portal.set_faults(id, plan)
                })
            };
            assert!(set(plan).await.unwrap());
            client.read(1, 0, 1);
            let silent = tokio::time::timeout(Duration::from_millis(50), client.done()).await;
            assert!(silent.is_err());
            assert!(set(FaultPlan::default()).await.unwrap());
            assert_eq!(client.done().await.0, 1);
        }
        running.stop().await;
    });
}

#[test]
fn refusals_reach_the_initiator() {
    run(async {
        let running = start(PortalSettings::default()).await;
        let plan = FaultPlan::login(LoginFault::Machine(LoginFaults {
            status: Some((
                crate::pdu::Stage::Security,
                crate::error::LoginStatus::SERVICE_UNAVAILABLE,
            )),
            ..LoginFaults::default()
        }));
        running
            .handle
            .with(|portal, _| portal.push_faults(plan))
            .await
            .unwrap();
        let error = running.connect().await.unwrap_err().error;
        assert_eq!(
            error,
            Error::LoginRejected(crate::error::LoginStatus::SERVICE_UNAVAILABLE)
        );
        running.stop().await;
    });
}

#[test]
fn a_second_login_ends_the_first_session_at_once() {
    run(async {
        let running = start(PortalSettings::default()).await;
        let mut first = running.session().await;
        let mut second = running.session().await;
        first.closed().await;
        second.read(1, 0, 1);
        second.done().await;
        let unit = running.unit;
        let begun = running
            .handle
            .with(move |portal, _| {
                let unit: &mut RamUnit = portal.unit_mut(unit).unwrap();
                unit.begun
                    .iter()
                    .map(|(_, again)| *again)
                    .collect::<Vec<_>>()
            })
            .await
            .unwrap();
        assert_eq!(begun, [false, true]);
        let handle = running.handle.clone();
        running.stop().await;
        assert_eq!(handle.with(|_, _| ()).await, Err(Stopped));
    });
}

/// A peer that never takes what it is sent cannot keep a closed connection.
#[test]
fn a_deaf_peer_is_let_go() {
    run(async {
        let running = start(PortalSettings {
            ping_interval: Some(Duration::from_millis(50)),
            ping_timeout: Duration::from_millis(50),
            ..PortalSettings::default()
        })
        .await;
        // Keeps the socket and nothing else: no driver.
        let connected = running.connect().await.unwrap();
        let gone = async {
            loop {
                let left = running
                    .handle
                    .with(|portal, _| portal.connections().count());
                if left.await.unwrap() == 0 {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), gone)
            .await
            .expect("the connection is still there");
        drop(connected);
        running.stop().await;
    });
}

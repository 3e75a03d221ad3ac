//! Server, negotiation, connection and client together, over real sockets and a disk in memory.

use std::cell::RefCell;
use std::os::unix::fs::PermissionsExt as _;
use std::rc::Rc;

use super::super::client::{self, ClientError, Connection, Wishes};
use super::super::connection::{End, Stop, serve};
use super::super::export::{ExportInfo, ExportSummary};
use super::super::handshake::ReplyMode;
use super::super::transmission::Limits;
use super::super::uri::Uri;
use super::super::wire::reply::Errno;
use super::super::wire::request::{Command, RequestHeader};
use super::super::wire::{CommandFlags, option::ReplyType};
use super::*;
use crate::block::hub::DynHub;
use crate::block::ram::RamDevice;
use crate::block::{
    BlockDevice, Client, Completion, Extent, Geometry, Hub, Op, Output, Payload, Request,
};
use tokio::sync::mpsc;

/// Longest that a step may take; only ever reached by a failing test.
const DEADLINE: Duration = Duration::from_secs(120);

/// A RAM disk that the test can look into and that answers only when it is let.
#[derive(Clone)]
struct Disk(Rc<RefCell<DiskState>>, Geometry);

struct DiskState {
    ram: RamDevice,
    held: bool,
    taken: usize,
}

impl Disk {
    fn new(size_bytes: u64) -> Self {
        let ram = RamDevice::new(size_bytes);
        let geometry = ram.geometry().clone();
        let state = DiskState {
            ram,
            held: false,
            taken: 0,
        };
        Self(Rc::new(RefCell::new(state)), geometry)
    }
}

impl BlockDevice for Disk {
    fn geometry(&self) -> &Geometry {
        &self.1
    }

    fn submit(&mut self, request: Request) {
        let mut state = self.0.borrow_mut();
        state.taken += 1;
        state.ram.submit(request);
    }

    fn commit(&mut self) {}

    fn poll_complete(&mut self) -> Option<Completion> {
        let mut state = self.0.borrow_mut();
        if state.held {
            None
        } else {
            state.ram.poll_complete()
        }
    }
}

struct One(ExportInfo);

impl Exports for One {
    fn list(&self) -> Vec<ExportSummary> {
        vec![ExportSummary {
            name: self.0.name.clone(),
            description: "a disk".into(),
        }]
    }

    fn open(&self, name: &str) -> Option<ExportInfo> {
        (name == self.0.name).then(|| self.0.clone())
    }
}

/// A server with one export `disk`, on the thread of the test.
struct World {
    disk: Disk,
    hub: Rc<RefCell<DynHub>>,
    stop: Stop,
    uri: Uri,
    ends: mpsc::Receiver<End>,
    _dir: tempfile::TempDir,
}

impl World {
    fn start(server_limits: ServerLimits, limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd.sock");
        let disk = Disk::new(8 << 20);
        let info = ExportInfo::new("disk", "a disk", disk.geometry());
        let hub: Rc<RefCell<DynHub>> = Hub::new(disk.clone());
        let server = Server::bind(&path, 0o600, server_limits).unwrap();
        let (to_volume, mut handovers) = mpsc::channel(16);
        let (to_test, ends) = mpsc::channel(64);
        let stop = Stop::new();
        tokio::task::spawn_local(async move {
            let hand_over = move |handover| to_volume.try_send(handover).unwrap();
            server.run(Arc::new(One(info)), hand_over).await;
        });
        let (volume, switch) = (Rc::clone(&hub), stop.clone());
        tokio::task::spawn_local(async move {
            while let Some(handover) = handovers.recv().await {
                let client = Client::new(Rc::clone(&volume) as Rc<RefCell<DynHub>>);
                let (switch, to_test) = (switch.clone(), to_test.clone());
                tokio::task::spawn_local(async move {
                    let (end, _) = serve(handover, client, limits, switch).await;
                    let _ = to_test.try_send(end);
                });
            }
        });
        Self {
            disk,
            hub,
            stop,
            uri: Uri::unix(path, "disk"),
            ends,
            _dir: dir,
        }
    }

    async fn connect(&self, mode: ReplyMode) -> Connection {
        let wishes = Wishes {
            mode,
            base_allocation: true,
        };
        Connection::connect(&self.uri, wishes).await.unwrap()
    }

    async fn raw(&self) -> UnixStream {
        UnixStream::connect(self.uri.socket().unwrap())
            .await
            .unwrap()
    }

    /// Lets a held disk answer.
    fn release(&self) {
        self.disk.0.borrow_mut().held = false;
        self.hub.borrow_mut().pump();
    }

    /// Lets the other tasks run until the disk has taken `count` requests.
    async fn taken(&self, count: usize) {
        while self.disk.0.borrow().taken < count {
            tokio::task::yield_now().await;
        }
    }
}

/// Runs a test on one thread, as a volume does, within the deadline.
fn run<T: Future<Output = ()>>(test: impl FnOnce() -> T) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        tokio::time::timeout(DEADLINE, test())
            .await
            .expect("the test hangs");
    });
}

fn world() -> World {
    World::start(ServerLimits::default(), Limits::default())
}

const MODES: [ReplyMode; 3] = [
    ReplyMode::Simple,
    ReplyMode::Structured,
    ReplyMode::Extended,
];

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        })
        .collect()
}

#[test]
fn every_command_in_every_style() {
    run(|| async {
        let mut world = world();
        for mode in MODES {
            let mut client = world.connect(mode).await;
            assert_eq!(client.facts().mode, mode);
            assert_eq!(client.facts().size_bytes, 8 << 20);
            assert_eq!(client.facts().name.as_deref(), Some("disk"));
            client.zero(0, 8 << 20).await.unwrap();
            let data = noise(3 << 20, mode as u64);
            client
                .write(1 << 20, Payload::from(data.clone()), true)
                .await
                .unwrap();
            assert_eq!(
                client.read(1 << 20, 3 << 20).await.unwrap().to_bytes(),
                data
            );
            assert!(client.read(6 << 20, 4096).await.unwrap().is_all_zero());
            client.trim(2 << 20, 1 << 20).await.unwrap();
            assert_eq!(
                client.read(1 << 20, 1 << 20).await.unwrap().to_bytes(),
                &data[..1 << 20]
            );
            client.flush().await.unwrap();
            let cache = Op::Cache {
                offset_bytes: 0,
                len_bytes: 4096,
            };
            assert_eq!(client.call(&cache).await.unwrap(), Output::Done);
            if mode != ReplyMode::Simple {
                let extent = |len_bytes, hole| Extent {
                    len_bytes,
                    hole,
                    zero: hole,
                };
                assert_eq!(
                    client.block_status(0, 8 << 20).await.unwrap(),
                    [
                        extent(1 << 20, true),
                        extent(1 << 20, false),
                        extent(1 << 20, true),
                        extent(1 << 20, false),
                        extent(4 << 20, true),
                    ]
                );
            }
            match client.read(8 << 20, 512).await {
                Err(ClientError::Request(error)) => assert_eq!(error.errno, Errno::EINVAL),
                other => panic!("{other:?}"),
            }
            match client.write(8 << 20, Payload::zeroes(512), false).await {
                Err(ClientError::Request(error)) => assert_eq!(error.errno, Errno::ENOSPC),
                other => panic!("{other:?}"),
            }
            client.disconnect().await.unwrap();
            assert!(matches!(world.ends.recv().await, Some(End::Disconnected)));
        }
    });
}

#[test]
fn many_in_flight_agree_with_a_flat_disk() {
    run(|| async {
        let world = world();
        let limits = Limits {
            requests_max: 7,
            bytes_max: 100_000,
            ..Limits::default()
        };
        let tight = World::start(ServerLimits::default(), limits);
        for world in [&world, &tight] {
            let mut client = world.connect(ReplyMode::Structured).await;
            let mut flat = vec![0u8; 8 << 20];
            for round in 0..40u64 {
                let mut expected = std::collections::HashMap::new();
                // Writes of a round do not overlap, then reads see them.
                for i in 0..16u64 {
                    let len = 1 + (round * 7919 + i * 104_729) as usize % 60_000;
                    let at = (i << 19) + (round * 31) % 4096;
                    let data = noise(len, round * 16 + i);
                    flat[at as usize..at as usize + len].copy_from_slice(&data);
                    let data = Payload::from(data);
                    client
                        .submit(&Op::Write {
                            offset_bytes: at,
                            data,
                            fua: false,
                        })
                        .unwrap();
                }
                for _ in 0..16 {
                    assert_eq!(client.next().await.unwrap().result, Ok(Output::Done));
                }
                for i in 0..16u64 {
                    let (at, len) = ((i << 19) + 17, 70_000);
                    let op = Op::Read {
                        offset_bytes: at,
                        len_bytes: len,
                    };
                    expected.insert(client.submit(&op).unwrap(), (at as usize, len as usize));
                }
                for _ in 0..16 {
                    let completed = client.next().await.unwrap();
                    let (at, len) = expected.remove(&completed.token).unwrap();
                    let Ok(Output::Data(data)) = completed.result else {
                        panic!()
                    };
                    assert!(
                        data.to_bytes() == flat[at..at + len],
                        "round {round} at {at}"
                    );
                }
            }
        }
    });
}

// proto.md, NBD_FLAG_CAN_MULTI_CONN: a flush on one connection covers what was answered on all.
#[test]
fn a_flush_on_one_connection_covers_the_others() {
    run(|| async {
        let world = world();
        let mut one = world.connect(ReplyMode::Structured).await;
        let mut two = world.connect(ReplyMode::Simple).await;
        let data = |byte| Payload::from(vec![byte; 512]);
        one.write(0, data(1), false).await.unwrap();
        assert_eq!(
            two.read(0, 512).await.unwrap(),
            data(1),
            "reads see other connections' writes"
        );
        two.flush().await.unwrap();
        one.write(1 << 20, data(2), false).await.unwrap();
        two.write(2 << 20, data(3), true).await.unwrap();
        world.disk.0.borrow_mut().ram.cut_power();
        assert_eq!(two.read(0, 512).await.unwrap(), data(1));
        assert_eq!(
            one.read(1 << 20, 512).await.unwrap(),
            data(0),
            "nobody flushed this"
        );
        assert_eq!(one.read(2 << 20, 512).await.unwrap(), data(3), "FUA");
    });
}

#[test]
fn exports_are_listed_and_unknown_ones_refused() {
    run(|| async {
        let world = world();
        let exports = client::list(&world.uri).await.unwrap();
        assert_eq!(
            exports,
            One(ExportInfo::new("disk", "", &world.disk.1)).list()
        );
        let uri = Uri {
            export: "nothing".into(),
            ..world.uri.clone()
        };
        match Connection::connect(&uri, Wishes::default()).await {
            Err(ClientError::Refused { reply, text, .. }) => {
                assert_eq!(reply, ReplyType::ERR_UNKNOWN);
                assert!(text.contains("nothing"), "{text}");
            }
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn draining_answers_what_was_taken() {
    run(|| async {
        let mut world = world();
        world.disk.0.borrow_mut().held = true;
        let mut client = world.connect(ReplyMode::Structured).await;
        for i in 0..4 {
            let data = Payload::from(vec![9; 512]);
            client
                .submit(&Op::Write {
                    offset_bytes: i * 512,
                    data,
                    fua: false,
                })
                .unwrap();
        }
        let collect = async {
            for _ in 0..4 {
                assert_eq!(client.next().await.unwrap().result, Ok(Output::Done));
            }
            client.submit(&Op::Flush).unwrap();
            assert!(matches!(
                client.next().await,
                Err(ClientError::Closed | ClientError::Io(_))
            ));
        };
        let stop = async {
            world.taken(4).await;
            world.stop.drain();
            tokio::task::yield_now().await;
            assert!(
                world.ends.try_recv().is_err(),
                "there is something in flight"
            );
            world.release();
            assert!(matches!(world.ends.recv().await, Some(End::Drained)));
        };
        tokio::join!(collect, stop);
        assert_eq!(world.hub.borrow().client_count(), 0);
    });
}

#[test]
fn cutting_waits_for_nothing() {
    run(|| async {
        let mut world = world();
        world.disk.0.borrow_mut().held = true;
        let mut client = world.connect(ReplyMode::Simple).await;
        client.submit(&Op::Flush).unwrap();
        let wait = async {
            assert!(matches!(
                client.next().await,
                Err(ClientError::Closed | ClientError::Io(_))
            ));
        };
        let cut = async {
            world.taken(1).await;
            world.stop.cut();
            assert!(matches!(world.ends.recv().await, Some(End::Cut)));
        };
        tokio::join!(wait, cut);
        world.release();
        assert_eq!(
            world.hub.borrow().in_flight(),
            0,
            "the request went on and is forgotten"
        );
    });
}

#[test]
fn a_device_that_goes_away_ends_the_connection() {
    run(|| async {
        let mut world = world();
        let mut client = world.connect(ReplyMode::Simple).await;
        client.flush().await.unwrap();
        world.hub.borrow_mut().close();
        assert!(matches!(world.ends.recv().await, Some(End::Drained)));
    });
}

#[test]
fn a_client_that_does_not_read_gets_bounded_memory() {
    run(|| async {
        let limits = Limits {
            bytes_max: 1 << 20,
            ..Limits::default()
        };
        let world = World::start(ServerLimits::default(), limits);
        let mut client = world.connect(ReplyMode::Simple).await;
        client
            .write(0, Payload::from(noise(65536, 1)), false)
            .await
            .unwrap();
        let mut greedy = world.raw().await;
        negotiate_by_hand(&mut greedy).await;
        let header = RequestHeader {
            flags: CommandFlags::empty(),
            command: Command::READ,
            cookie: 1,
            offset_bytes: 0,
            len_bytes: 65536,
        };
        let requests = header.emit_compact().unwrap().repeat(1000);
        greedy.write_all(&requests).await.unwrap();
        // The other connection goes on; by the time it has made 200 rounds, the greedy one has long
        // been held up.
        for _ in 0..200 {
            client.read(0, 512).await.unwrap();
        }
        let taken = world.disk.0.borrow().taken - 201;
        assert!(
            taken < 1000 / 2,
            "{taken} reads of 64 KiB were taken, nothing was read"
        );
        // And when it reads at last, everything is there.
        let mut left = 1000 * (16 + 65536);
        let mut buffer = vec![0; 1 << 16];
        while left > 0 {
            let n = greedy.read(&mut buffer).await.unwrap();
            assert!(n > 0 && n <= left);
            left -= n;
        }
    });
}

async fn negotiate_by_hand(stream: &mut UnixStream) {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).await.unwrap();
    stream
        .write_all(b"\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x01\x00\x00\x00\x04disk")
        .await
        .unwrap();
    stream.read_exact(&mut [0; 10]).await.unwrap();
}

#[test]
fn garbage_closes_the_connection_and_nothing_else() {
    run(|| async {
        let mut world = world();
        let mut client = world.connect(ReplyMode::Simple).await;
        for round in 0..50 {
            let mut stream = world.raw().await;
            let _ = stream.write_all(&noise(3000, round)).await;
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
        }
        let mut stream = world.raw().await;
        negotiate_by_hand(&mut stream).await;
        stream.write_all(&[0x55; 28]).await.unwrap();
        assert_eq!(stream.read(&mut [0; 16]).await.unwrap(), 0);
        assert!(matches!(world.ends.recv().await, Some(End::Violation(_))));
        client.flush().await.unwrap();
    });
}

#[test]
fn a_client_that_says_nothing_is_closed_at_the_deadline() {
    run(|| async {
        let limits = ServerLimits {
            handshake_timeout: Duration::from_millis(20),
            ..ServerLimits::default()
        };
        let world = World::start(limits, Limits::default());
        let mut silent = world.raw().await;
        let mut greeting = Vec::new();
        silent.read_to_end(&mut greeting).await.unwrap();
        assert_eq!(greeting.len(), 18, "greeting, then the end");
    });
}

#[test]
fn connections_above_the_bound_are_closed_at_once() {
    run(|| async {
        let limits = ServerLimits {
            connections_max: 1,
            ..ServerLimits::default()
        };
        let mut world = World::start(limits, Limits::default());
        let mut first = world.connect(ReplyMode::Simple).await;
        assert_eq!(world.raw().await.read(&mut [0; 18]).await.unwrap(), 0);
        first.flush().await.unwrap();
        first.disconnect().await.unwrap();
        world.ends.recv().await.unwrap();
        world
            .connect(ReplyMode::Simple)
            .await
            .flush()
            .await
            .unwrap();
    });
}

#[test]
fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
    run(|| async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(StdUnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a listener that died leaves its socket");
        let server = Server::bind(&path, 0o640, ServerLimits::default()).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        let second = Server::bind(&path, 0o600, ServerLimits::default());
        assert!(matches!(second, Err(BindError::InUse(_))), "{second:?}");
        drop(server);
        assert!(!path.exists(), "removed at the end");

        let foreign = StdUnixListener::bind(&path).unwrap();
        let ours = Server::bind(&path, 0o600, ServerLimits::default());
        assert!(
            matches!(ours, Err(BindError::InUse(_))),
            "also without a lock: {ours:?}"
        );
        drop(foreign);

        let file = dir.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        let ours = Server::bind(&file, 0o600, ServerLimits::default());
        assert!(matches!(ours, Err(BindError::NotASocket(_))), "{ours:?}");
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");

        let long = dir.path().join("x".repeat(120));
        let ours = Server::bind(&long, 0o600, ServerLimits::default());
        assert!(matches!(ours, Err(BindError::PathTooLong(_))), "{ours:?}");
    });
}

//! Connections of a client that sends again what is left unanswered: the kernel.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::task::LocalSet;

use super::*;
use crate::block::hub::DynHub;
use crate::block::ram::RamDevice;
use crate::block::{BlockDevice, Completion, Geometry, Hub, Op, Request};
use crate::nbd::export::tests::geometry;
use crate::nbd::wire::CommandFlags;
use crate::nbd::wire::request::{Command, RequestHeader};

/// Longer than anything here takes.
const DEADLINE: Duration = Duration::from_secs(30);
const BLOCK: usize = 4096;
/// What a connection has to receive in.
const POOL_BYTES: usize = 1 << 20;

/// A device that answers when it is told to.
struct Held {
    geometry: Geometry,
    taken: Rc<RefCell<VecDeque<Request>>>,
    done: Rc<RefCell<VecDeque<Completion>>>,
}

impl BlockDevice for Held {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn submit(&mut self, request: Request) {
        self.taken.borrow_mut().push_back(request);
    }

    fn commit(&mut self) {}

    fn poll_complete(&mut self) -> Option<Completion> {
        self.done.borrow_mut().pop_front()
    }
}

fn header(command: Command, cookie: u64, len: usize) -> Vec<u8> {
    let header = RequestHeader {
        flags: CommandFlags::empty(),
        command,
        cookie,
        offset_bytes: 0,
        len_bytes: len as u64,
    };
    header.emit_compact().expect("fits").to_vec()
}

fn handover(stream: StdUnixStream) -> Handover {
    let info = ExportInfo::new("a", "", &geometry(1 << 20));
    let mut handover = Handover::for_kernel(stream, &info).expect("can be served");
    handover.input = ReceiveBuffer::with_pool(POOL_BYTES);
    handover
}

/// Our end, another handle of it, and the kernel's.
fn pair() -> (StdUnixStream, StdUnixStream, UnixStream) {
    let (ours, theirs) = StdUnixStream::pair().expect("a pair");
    let anchor = ours.try_clone().expect("another handle");
    theirs.set_nonblocking(true).expect("non-blocking");
    (
        ours,
        anchor,
        UnixStream::from_std(theirs).expect("registers"),
    )
}

/// The cookie of the next reply, which must be a success.
async fn reply(kernel: &mut UnixStream, data: usize) -> u64 {
    let mut reply = vec![0; 16 + data];
    kernel.read_exact(&mut reply).await.expect("a reply");
    assert_eq!(reply[4..8], [0; 4], "success");
    u64::from_be_bytes(reply[8..16].try_into().expect("8 bytes"))
}

async fn local<T>(body: impl Future<Output = T>) -> T {
    let limited = tokio::time::timeout(DEADLINE, body);
    LocalSet::new().run_until(limited).await.expect("it hangs")
}

#[tokio::test]
async fn a_drain_stops_at_a_message_boundary_and_the_next_life_goes_on_there() {
    local(async {
        let hub: Rc<RefCell<DynHub>> = Hub::new(RamDevice::new(1 << 20));
        let (ours, anchor, mut kernel) = pair();
        let stop = Stop::new();
        let client = Client::new(Rc::clone(&hub));
        let first = serve(handover(ours), client, Limits::default(), stop.clone());
        let first = tokio::task::spawn_local(first);

        kernel
            .write_all(&header(Command::WRITE, 1, BLOCK))
            .await
            .expect("sends");
        kernel.write_all(&[1; BLOCK]).await.expect("sends");
        assert_eq!(reply(&mut kernel, 0).await, 1);
        // The daemon is told to stop in the midst of the second request.
        let second = [header(Command::WRITE, 2, BLOCK), vec![2; BLOCK]].concat();
        kernel.write_all(&second[..1000]).await.expect("sends");
        while rustix::io::ioctl_fionread(&anchor).expect("a count") > 0 {
            tokio::task::yield_now().await;
        }
        stop.drain();
        tokio::task::yield_now().await;
        assert!(
            !first.is_finished(),
            "the rest of the request is waited for"
        );
        // It arrives together with the whole of the third.
        let third = header(Command::READ, 3, BLOCK);
        kernel
            .write_all(&[&second[1000..], &third].concat())
            .await
            .expect("sends");
        assert!(matches!(first.await.expect("no panic").0, End::Parked));
        assert_eq!(reply(&mut kernel, 0).await, 2);
        let left = rustix::io::ioctl_fionread(&anchor).expect("a count");
        assert_eq!(left, third.len() as u64, "nothing of the third was read");

        let client = Client::new(hub);
        let next = serve(handover(anchor), client, Limits::default(), Stop::new());
        let next = tokio::task::spawn_local(next);
        assert_eq!(reply(&mut kernel, BLOCK).await, 3);
        kernel
            .write_all(&header(Command::DISC, 0, 0))
            .await
            .expect("sends");
        assert!(matches!(next.await.expect("no panic").0, End::Disconnected));
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_breaks_does_not_end_before_what_it_took() {
    local(async {
        let (taken, done) = (Rc::default(), Rc::default());
        let device = Held {
            geometry: geometry(1 << 20),
            taken: Rc::clone(&taken),
            done: Rc::clone(&done),
        };
        let hub: Rc<RefCell<DynHub>> = Hub::new(device);
        let (ours, _anchor, mut kernel) = pair();
        let client = Client::new(Rc::clone(&hub));
        let served = serve(handover(ours), client, Limits::default(), Stop::new());
        let served = tokio::task::spawn_local(served);
        kernel
            .write_all(&header(Command::WRITE, 1, BLOCK))
            .await
            .expect("sends");
        kernel.write_all(&[1; BLOCK]).await.expect("sends");
        // Out of step: the connection is over, and the write is under way.
        kernel.write_all(&[0xff; 28]).await.expect("sends");
        while taken.borrow().is_empty() {
            tokio::task::yield_now().await;
        }
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(!served.is_finished(), "the write may still land");
        let request = taken.borrow_mut().pop_front().expect("taken");
        done.borrow_mut().push_back(Completion {
            id: request.id,
            result: Ok(crate::block::Output::Done),
        });
        hub.borrow_mut().pump();
        assert!(matches!(
            served.await.expect("no panic").0,
            End::Violation(_)
        ));
    })
    .await;
}

/// The kernel may be writing because there is no memory left.
#[tokio::test]
async fn what_is_received_stays_within_the_pool() {
    const WRITE: usize = 64 << 10;
    const WRITES: usize = 64;
    local(async {
        let (taken, done) = (Rc::default(), Rc::default());
        let device = Held {
            geometry: geometry(1 << 20),
            taken: Rc::clone(&taken),
            done: Rc::clone(&done),
        };
        let hub: Rc<RefCell<DynHub>> = Hub::new(device);
        let (ours, _anchor, kernel) = pair();
        let client = Client::new(Rc::clone(&hub));
        let served = serve(handover(ours), client, Limits::default(), Stop::new());
        let served = tokio::task::spawn_local(served);
        let (mut replies, mut requests) = kernel.into_split();
        let sender = tokio::task::spawn_local(async move {
            for cookie in 0..WRITES {
                let header = header(Command::WRITE, cookie as u64, WRITE);
                let data = vec![cookie as u8; WRITE];
                let request = [header, data].concat();
                requests.write_all(&request).await.expect("sends");
            }
            let goodbye = header(Command::DISC, 0, 0);
            requests.write_all(&goodbye).await.expect("sends");
        });
        let mut most = 0;
        for _ in 0..WRITES {
            // As many as come while nothing is answered.
            for _ in 0..1000 {
                tokio::task::yield_now().await;
            }
            most = most.max(taken.borrow().len());
            let request: Request = taken.borrow_mut().pop_front().expect("at least one");
            let Op::Write { data, .. } = request.op else {
                panic!("{request:?}");
            };
            let cookie = data.to_bytes()[0];
            assert_eq!(data.to_bytes().as_ref(), vec![cookie; WRITE]);
            drop(data);
            done.borrow_mut().push_back(Completion {
                id: request.id,
                result: Ok(crate::block::Output::Done),
            });
            hub.borrow_mut().pump();
            let mut reply = [0; 16];
            replies.read_exact(&mut reply).await.expect("a reply");
            assert_eq!(reply[15], cookie);
        }
        assert!(
            (POOL_BYTES / WRITE / 2..POOL_BYTES / WRITE).contains(&most),
            "{most}"
        );
        sender.await.expect("no panic");
        assert!(matches!(
            served.await.expect("no panic").0,
            End::Disconnected
        ));
    })
    .await;
}

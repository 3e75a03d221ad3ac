//! The driver: requests, blocked sockets, timers, ends.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::{JoinHandle, LocalSet, spawn_local};

use super::*;
use crate::error::{Error, Misuse, Waiting};
use crate::session::{AbortCause, CloseReason, Command, Event, LogoutCause, TaskOutcome, Transfer};

/// A driven session and its target.
struct Rig {
    handle: Rc<Handle>,
    events: Rc<RefCell<Vec<Event>>>,
    news: Rc<Notify>,
    driver: JoinHandle<()>,
    peer: Peer,
}

impl Rig {
    async fn new(keys: &str, options: ConnectOptions) -> Self {
        let (listener, portal) = listen().await;
        let target = async {
            let mut peer = Peer::accept(&listener).await;
            peer.log_in(keys).await;
            peer
        };
        let (connected, peer) = tokio::join!(
            connect(&TcpNetwork, slice::from_ref(&portal), normal(), &options),
            target
        );
        let connected = connected.unwrap();
        let events = Rc::new(RefCell::new(Vec::new()));
        let news = Rc::new(Notify::new());
        let on_events: OnEvents = {
            let (events, news) = (events.clone(), news.clone());
            Box::new(move |handle: &Handle| {
                events
                    .borrow_mut()
                    .extend(std::iter::from_fn(|| handle.poll_event()));
                news.notify_one();
            })
        };
        let (handle, driver) = Driver::new(
            connected.stream,
            connected.session,
            connected.receive,
            DriverOptions::default(),
            on_events,
        );
        Self {
            handle,
            events,
            news,
            driver: spawn_local(driver.run()),
            peer,
        }
    }

    /// The next `n` events.
    async fn events(&mut self, n: usize) -> Vec<Event> {
        while self.events.borrow().len() < n {
            self.news.notified().await;
        }
        let events: Vec<Event> = self.events.borrow_mut().drain(..).collect();
        assert_eq!(events.len(), n, "{events:?}");
        events
    }

    async fn event(&mut self) -> Event {
        self.events(1).await.remove(0)
    }

    async fn ended(self) {
        self.driver.await.unwrap();
        assert_eq!(
            self.handle.submit(read(99, 512)),
            Err(Misuse::Closed),
            "a session without a driver takes nothing"
        );
        assert!(self.handle.counters().written_bytes > 0);
        // The driver is gone with everything that its callback held.
        assert_eq!(Rc::strong_count(&self.handle), 1);
        assert_eq!(Rc::strong_count(&self.events), 1);
    }
}

fn read(tag: u64, len_bytes: u32) -> Command {
    Command::new(
        tag,
        Lun::default(),
        [0x88; 16],
        Transfer::Read { len_bytes },
    )
}

fn write(tag: u64, data: Vec<u8>) -> Command {
    Command::new(
        tag,
        Lun::default(),
        [0x8a; 16],
        Transfer::Write(Payload::from(data)),
    )
}

fn good(tag: u64, data: &[u8]) -> Event {
    Event::TaskDone {
        tag,
        outcome: TaskOutcome::Completed {
            status: 0,
            status_qualifier: 0,
            sense: bytes::Bytes::new(),
            data: Payload::from(data.to_vec()),
            residual: Residual::None,
        },
    }
}

async fn on_one_thread(test: impl Future<Output = ()>) {
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn reads_and_writes_pass() {
    on_one_thread(async {
        let mut rig = Rig::new("", ConnectOptions::default()).await;
        rig.handle.submit(read(1, 4096)).unwrap();
        rig.handle.submit(write(2, vec![7; 4096])).unwrap();
        let first = rig.peer.command().await;
        let second = rig.peer.command().await;
        assert_eq!(second.data.to_bytes(), vec![7; 4096]);
        // Both left in one write, behind the login.
        assert_eq!(rig.handle.counters().writes, 1);
        rig.peer.answer(second.itt).await;
        rig.peer.answer_read(first.itt, &[9; 4096]).await;
        assert_eq!(rig.events(2).await, [good(2, &[]), good(1, &[9; 4096])]);
        drop(rig.peer.stream);
        rig.news.notified().await;
        rig.driver.await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn commit_needs_no_task_switch() {
    on_one_thread(async {
        let mut rig = Rig::new("", ConnectOptions::default()).await;
        // The driver must have run once to be asleep.
        tokio::task::yield_now().await;
        rig.handle.submit(read(1, 512)).unwrap();
        assert_eq!(rig.handle.counters().writes, 0);
        rig.handle.commit();
        assert_eq!(rig.handle.counters().writes, 1);
        let itt = rig.peer.command().await.itt;
        rig.peer.answer_read(itt, &[1; 512]).await;
        assert_eq!(rig.event().await, good(1, &[1; 512]));
    })
    .await;
}

/// With others under way the driver sends, once for all that were queued in one turn of the runtime.
#[tokio::test]
async fn commits_in_one_turn_leave_in_one_write() {
    on_one_thread(async {
        let mut rig = Rig::new("", ConnectOptions::default()).await;
        tokio::task::yield_now().await;
        for tag in 1..=4 {
            rig.handle.queue(read(tag, 512)).unwrap();
            rig.handle.commit();
        }
        assert_eq!(rig.handle.counters().writes, 1, "the first, at once");
        for tag in 1..=4 {
            let itt = rig.peer.command().await.itt;
            rig.peer.answer_read(itt, &[1; 512]).await;
            assert_eq!(rig.event().await, good(tag, &[1; 512]));
        }
        assert_eq!(rig.handle.counters().writes, 2, "and the rest");
    })
    .await;
}

#[tokio::test]
async fn commands_from_inside_the_callback_leave_in_the_same_wake_up() {
    on_one_thread(async {
        let (listener, portal) = listen().await;
        let target = async {
            let mut peer = Peer::accept(&listener).await;
            peer.log_in("").await;
            peer
        };
        let options = ConnectOptions::default();
        let (connected, mut peer) = tokio::join!(
            connect(&TcpNetwork, slice::from_ref(&portal), normal(), &options),
            target
        );
        let connected = connected.unwrap();
        let left = Rc::new(RefCell::new(20u64));
        let on_events: OnEvents = {
            let left = left.clone();
            Box::new(move |handle: &Handle| {
                while let Some(event) = handle.poll_event() {
                    if let Event::TaskDone { tag, .. } = event {
                        *left.borrow_mut() -= 1;
                        if tag < 19 {
                            handle.submit(read(tag + 1, 512)).unwrap();
                            handle.commit();
                        }
                    }
                }
            })
        };
        let (handle, driver) = Driver::new(
            connected.stream,
            connected.session,
            connected.receive,
            DriverOptions::default(),
            on_events,
        );
        let driver = spawn_local(driver.run());
        handle.submit(read(0, 512)).unwrap();
        for _ in 0..20 {
            let itt = peer.command().await.itt;
            peer.answer_read(itt, &[1; 512]).await;
        }
        drop(peer);
        driver.await.unwrap();
        assert_eq!(*left.borrow(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_write_larger_than_every_buffer_gets_through() {
    on_one_thread(async {
        let keys = "MaxBurstLength=16776192\0MaxRecvDataSegmentLength=65536\0ImmediateData=No\0";
        let mut rig = Rig::new(keys, ConnectOptions::default()).await;
        let len = 15 << 20;
        let data: Vec<u8> = (0..len).map(|i| (i / 7) as u8).collect();
        rig.handle.submit(write(1, data.clone())).unwrap();
        let command = rig.peer.command().await;
        let mut sn = rig.peer.sn();
        rig.peer.stat_sn -= 1;
        sn.stat_sn = StatSn(rig.peer.stat_sn);
        rig.peer
            .send(R2t {
                lun: Lun::default(),
                itt: command.itt,
                ttt: Ttt(5),
                sn,
                r2t_sn: 0,
                buffer_offset_bytes: 0,
                desired_len_bytes: len as u32,
            })
            .await;
        // The target does not read for a while: the driver must wait for room, not spin or drop.
        while rig.handle.counters().writes_blocked == 0 {
            tokio::task::yield_now().await;
        }
        let mut received = Vec::new();
        while received.len() < len {
            match rig.peer.next().await {
                Some(Pdu::DataOut(pdu)) => received.extend_from_slice(&pdu.data.to_bytes()),
                other => panic!("{other:?}"),
            }
        }
        assert!(received == data);
        rig.peer.answer(command.itt).await;
        assert_eq!(rig.event().await, good(1, &[]));
    })
    .await;
}

#[tokio::test]
async fn a_cut_ends_the_session_and_hands_back_what_is_open() {
    on_one_thread(async {
        let mut rig = Rig::new("", ConnectOptions::default()).await;
        rig.handle.submit(read(1, 4096)).unwrap();
        rig.peer.command().await;
        drop(std::mem::replace(
            &mut rig.peer.stream,
            closed_stream().await,
        ));
        assert!(matches!(
            rig.event().await,
            Event::Closed(CloseReason::Failed(Error::Lost(
                ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
            )))
        ));
        let unfinished = rig.handle.take_unfinished();
        assert_eq!(unfinished.len(), 1);
        assert!(unfinished[0].sent);
        rig.ended().await;
    })
    .await;
}

/// A stream to put in the place of one that shall be closed.
async fn closed_stream() -> TcpStream {
    let (listener, portal) = listen().await;
    let Host::Ip(ip) = portal.host else { panic!() };
    let stream = TcpStream::connect((ip, portal.port)).await.unwrap();
    drop(listener);
    stream
}

#[tokio::test(start_paused = true)]
async fn a_dead_peer_is_found_out() {
    on_one_thread(async {
        let mut rig = Rig::new("", ConnectOptions::default()).await;
        let start = tokio::time::Instant::now();
        assert_eq!(
            rig.event().await,
            Event::Closed(CloseReason::Failed(Error::TimedOut(Waiting::Ping)))
        );
        assert_eq!(start.elapsed().as_secs(), 7);
        rig.ended().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn half_a_pdu_is_no_life_however_busy_the_user_is() {
    on_one_thread(async {
        let mut rig = Rig::new("", ConnectOptions::default()).await;
        rig.peer.stream.write_all(&[0x20; 10]).await.unwrap();
        let start = tokio::time::Instant::now();
        let mut tag = 0;
        while rig.handle.submit(read(tag, 512)).is_ok() {
            tag += 1;
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(start.elapsed().as_secs() < 15, "it is taken for alive");
        }
        assert!(matches!(
            rig.event().await,
            Event::Closed(CloseReason::Failed(Error::TimedOut(Waiting::Ping)))
        ));
        rig.ended().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_deadline_set_later_is_met_although_the_timer_was_armed_before() {
    on_one_thread(async {
        let options = ConnectOptions {
            session: crate::session::SessionOptions {
                ping_interval: Some(Duration::from_secs(60)),
                ..Default::default()
            },
            ..ConnectOptions::default()
        };
        let mut rig = Rig::new("", options).await;
        tokio::task::yield_now().await;
        let start = tokio::time::Instant::now();
        rig.handle
            .submit(Command {
                deadline: Some((start + Duration::from_secs(3)).into_std()),
                ..read(1, 512)
            })
            .unwrap();
        rig.handle.commit();
        let command = rig.peer.command().await;
        let Some(Pdu::TaskManagementRequest(abort)) = rig.peer.next().await else {
            panic!("no abort");
        };
        assert_eq!(start.elapsed().as_secs(), 3);
        assert_eq!(abort.referenced_task, command.itt);
        let sn = rig.peer.sn();
        rig.peer
            .send(TaskManagementResponse {
                response: 0,
                itt: abort.itt,
                sn,
            })
            .await;
        assert_eq!(
            rig.event().await,
            Event::TaskDone {
                tag: 1,
                outcome: TaskOutcome::Aborted {
                    cause: AbortCause::Deadline,
                    sent: true
                }
            }
        );
    })
    .await;
}

#[tokio::test]
async fn logout_closes_the_socket() {
    on_one_thread(async {
        let mut rig = Rig::new("", ConnectOptions::default()).await;
        rig.handle.with_session(|session, now| session.logout(now));
        let Some(Pdu::LogoutRequest(logout)) = rig.peer.next().await else {
            panic!("no logout");
        };
        let sn = rig.peer.sn();
        rig.peer
            .send(LogoutResponse {
                response: 0,
                itt: logout.itt,
                sn,
                time2wait_s: 3,
                time2retain_s: 0,
            })
            .await;
        assert_eq!(
            rig.event().await,
            Event::Closed(CloseReason::LoggedOut {
                cause: LogoutCause::User,
                response: Some(0),
                time2wait_s: 3
            })
        );
        assert_eq!(rig.peer.next().await, None, "the socket is closed");
        rig.ended().await;
    })
    .await;
}

#[tokio::test]
async fn a_dropped_driver_closes_the_session() {
    on_one_thread(async {
        let rig = Rig::new("", ConnectOptions::default()).await;
        tokio::task::yield_now().await;
        rig.driver.abort();
        assert!(rig.driver.await.unwrap_err().is_cancelled());
        assert_eq!(rig.handle.submit(read(1, 512)), Err(Misuse::Closed));
        rig.handle.commit();
        assert!(matches!(
            rig.handle.poll_event(),
            Some(Event::Closed(CloseReason::Failed(Error::Lost(_))))
        ));
    })
    .await;
}

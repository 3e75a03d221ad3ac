//! The target role on sockets: accept, and one task per connection that pumps it.
//!
//! ```text
//! TcpListener ─> accept ─> Pump (one task) ─┬─ read ─> Portal::handle_input
//!                                           └─ write <─ Portal::poll_transmit
//! ServerHandle (any thread) ─ bounded channel ─> Portal (one thread)
//! ```
//!
//! The portal and all its connections live on one thread, so there is no lock between a command and its
//! logical unit. Each wake-up takes in what is readable and leaves with one vectored write.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use berth_iobuf::{ReceiveBuffer, SendQueue};
use tokio::io::{AsyncReadExt as _, AsyncWrite as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::Sleep;

use crate::target::{CloseReason, ConnectionId, Portal};

/// Requests of handles that may wait.
const CONTROL_QUEUE: usize = 64;
/// Bytes read in one turn before they are answered; others get their turn then.
const READ_BUDGET_BYTES: usize = 1024 * 1024;
/// Writes in one turn before others get theirs.
const WRITES_MAX: usize = 16;
/// Bytes that wait for the socket at which nothing more is read.
const SEND_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How long a closed connection waits for the peer to take the last bytes. Closing a socket with unread input
/// resets it, and the peer would lose what was sent last.
const LINGER: Duration = Duration::from_secs(2);
/// How long a stop waits for commands that are being executed.
const DRAIN: Duration = Duration::from_secs(1);
/// Pause after an accept that failed for want of resources.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Slices of a usual write: headers and payload of some dozen answers.
const SLICES_USUAL: usize = 64;

type Job = Box<dyn FnOnce(&mut Portal, Instant) + Send>;

enum Request {
    Job(Job),
    Stop,
}

/// The server is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the target has stopped")]
pub struct Stopped;

/// Reaches the portal of a [`Server`] from any thread.
#[derive(Debug, Clone)]
pub struct ServerHandle {
    requests: mpsc::Sender<Request>,
}

impl ServerHandle {
    /// Runs `job` on the portal's thread and gives its result: resize a unit, change the LUN map, set
    /// faults, read counters. The job must be quick; all connections wait for it.
    ///
    /// # Errors
    /// When the server has stopped.
    pub async fn with<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Portal, Instant) -> R + Send + 'static,
    ) -> Result<R, Stopped> {
        let (answer, result) = oneshot::channel();
        let job = Box::new(move |portal: &mut Portal, now| {
            // Nobody may be waiting any more; the job was asked for all the same.
            let _ = answer.send(job(portal, now));
        });
        self.requests
            .send(Request::Job(job))
            .await
            .map_err(|_| Stopped)?;
        result.await.map_err(|_| Stopped)
    }

    /// Ends [`Server::serve`]: no new connections, running commands are answered, then all is closed.
    ///
    /// # Errors
    /// When the server has stopped.
    pub async fn stop(&self) -> Result<(), Stopped> {
        self.requests.send(Request::Stop).await.map_err(|_| Stopped)
    }
}

/// A listening socket and the portal group it belongs to.
#[derive(Debug)]
pub struct Listening {
    /// The socket.
    pub listener: TcpListener,
    /// Tag of the portal group.
    pub group: u16,
}

/// A [`Portal`] with sockets.
#[derive(Debug)]
pub struct Server {
    portal: Portal,
    requests: mpsc::Receiver<Request>,
}

impl Server {
    /// A server for `portal`, and a handle to it.
    #[must_use]
    pub fn new(portal: Portal) -> (Self, ServerHandle) {
        let (sender, requests) = mpsc::channel(CONTROL_QUEUE);
        (Self { portal, requests }, ServerHandle { requests: sender })
    }

    /// Serves until [`ServerHandle::stop`], or until every handle is dropped, on the current thread. Gives the
    /// portal back.
    pub async fn serve(self, listeners: Vec<Listening>) -> Portal {
        LocalSet::new()
            .run_until(serve(self.portal, self.requests, listeners))
            .await
    }
}

async fn serve(
    portal: Portal,
    mut requests: mpsc::Receiver<Request>,
    listeners: Vec<Listening>,
) -> Portal {
    let shared = Rc::new(Shared {
        portal: RefCell::new(portal),
        wakers: RefCell::new(HashMap::new()),
        stopping: RefCell::new(None),
    });
    let (accepted_sender, mut accepted) = mpsc::channel(16);
    let mut acceptors = JoinSet::new();
    for Listening { listener, group } in listeners {
        acceptors.spawn_local(accept(listener, group, accepted_sender.clone()));
    }
    drop(accepted_sender);
    let mut pumps = JoinSet::new();
    loop {
        tokio::select! {
            Some((stream, group)) = accepted.recv() => {
                if let Some(pump) = Pump::new(&shared, stream, group) {
                    pumps.spawn_local(pump);
                }
            }
            Some(_) = pumps.join_next(), if !pumps.is_empty() => {}
            request = requests.recv() => match request {
                Some(Request::Job(job)) => shared.with(job),
                Some(Request::Stop) | None => break,
            },
        }
    }
    acceptors.shutdown().await;
    *shared.stopping.borrow_mut() = Some(Instant::now() + DRAIN);
    shared.wake_all();
    while pumps.join_next().await.is_some() {}
    drop(pumps);
    match Rc::try_unwrap(shared) {
        Ok(shared) => shared.portal.into_inner(),
        Err(_) => unreachable!("every pump has ended and dropped its reference"),
    }
}

async fn accept(listener: TcpListener, group: u16, accepted: mpsc::Sender<(TcpStream, u16)>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if accepted.send((stream, group)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "target cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

struct Shared {
    portal: RefCell<Portal>,
    wakers: RefCell<HashMap<ConnectionId, Waker>>,
    /// Set when the server stops: how long commands may still run.
    stopping: RefCell<Option<Instant>>,
}

impl Shared {
    fn with(&self, job: impl FnOnce(&mut Portal, Instant)) {
        let mut portal = self.portal.borrow_mut();
        job(&mut portal, Instant::now());
        self.wake_others(&mut portal);
    }

    /// Wakes the connections that have something to do because of others.
    fn wake_others(&self, portal: &mut Portal) {
        while let Some(id) = portal.poll_wake() {
            if let Some(waker) = self.wakers.borrow().get(&id) {
                waker.wake_by_ref();
            }
        }
    }

    fn wake_all(&self) {
        for waker in self.wakers.borrow().values() {
            waker.wake_by_ref();
        }
    }
}

/// The address as discovery reports it; IPv4 mapped into IPv6 is reported as IPv4.
fn local_address(stream: &TcpStream) -> io::Result<String> {
    let address = stream.local_addr()?;
    let ip = match address.ip() {
        IpAddr::V6(ip) => ip.to_canonical(),
        ip => ip,
    };
    Ok(SocketAddr::new(ip, address.port()).to_string())
}

/// One connection; the future ends when it is closed.
struct Pump {
    shared: Rc<Shared>,
    id: ConnectionId,
    stream: TcpStream,
    rx: ReceiveBuffer,
    tx: SendQueue,
    timer: Option<(Instant, Pin<Box<Sleep>>)>,
    /// Set when everything was sent and only the peer's end is waited for.
    lingering: Option<Instant>,
    /// Set when the connection is to end and bytes are left to send.
    closing: Option<Instant>,
}

/// What a step of the pump led to.
enum Next {
    /// Nothing can be done now; wakers are registered.
    Wait,
    /// There is more to do, after others had their turn.
    Yield,
    Done,
}

impl Pump {
    fn new(shared: &Rc<Shared>, stream: TcpStream, group: u16) -> Option<Self> {
        // A peer that is gone already shows in the first read.
        let _ = stream.set_nodelay(true);
        let local = local_address(&stream).ok()?;
        let mut portal = shared.portal.borrow_mut();
        let Some(id) = portal.accept(Instant::now(), &local, group) else {
            tracing::warn!(%local, "target has too many connections, one more is refused");
            return None;
        };
        Some(Self {
            shared: shared.clone(),
            id,
            stream,
            rx: ReceiveBuffer::new(),
            tx: SendQueue::new(),
            timer: None,
            lingering: None,
            closing: None,
        })
    }

    fn register(&self, cx: &Context<'_>) {
        let mut wakers = self.shared.wakers.borrow_mut();
        match wakers.get(&self.id) {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            _ => {
                wakers.insert(self.id, cx.waker().clone());
            }
        }
    }

    fn step(&mut self, cx: &mut Context<'_>) -> io::Result<Next> {
        let shared = self.shared.clone();
        let mut portal = shared.portal.borrow_mut();
        let portal = &mut *portal;
        let now = Instant::now();
        if self.lingering.is_some() {
            return self.linger(cx, now);
        }
        if self.timer_is_due(cx, portal, now) {
            portal.handle_timeout(self.id, now);
        }
        let more_input = self.read(cx, portal, now)?;
        let held_back = !self.takes_input(portal);
        let more_output = self.write(cx, portal, now)?;
        // Nobody waits for input that was held back before the write.
        let more_input = more_input || (held_back && self.takes_input(portal));
        shared.wake_others(portal);
        if portal.link(self.id).cut {
            return Ok(Next::Done);
        }
        if let Some(until) = *shared.stopping.borrow() {
            if portal.tasks(self.id) == 0 || now >= until {
                portal.close(self.id);
            } else {
                self.set_timer(until);
                if self.poll_timer(cx) {
                    return Ok(Next::Yield);
                }
            }
        }
        if portal.is_over(self.id) && self.tx.is_empty() {
            if portal.close_reason(self.id) == Some(&CloseReason::Fault) {
                return Ok(Next::Done);
            }
            self.lingering = Some(now + LINGER);
            return Ok(Next::Yield);
        }
        if portal.close_reason(self.id).is_some() {
            // The peer may not take the last bytes at all.
            let until = *self.closing.get_or_insert(now + LINGER);
            if now >= until {
                return Ok(Next::Done);
            }
            self.set_timer(until);
            if self.poll_timer(cx) {
                return Ok(Next::Yield);
            }
        }
        if more_input || more_output || self.timer_is_due(cx, portal, now) {
            return Ok(Next::Yield);
        }
        Ok(Next::Wait)
    }

    fn takes_input(&self, portal: &Portal) -> bool {
        portal.wants_input(self.id) && self.tx.len() < SEND_BYTES_MAX && portal.link(self.id).read
    }

    /// Reads what is there; says whether there may be more.
    fn read(
        &mut self,
        cx: &mut Context<'_>,
        portal: &mut Portal,
        now: Instant,
    ) -> io::Result<bool> {
        // What could not be taken before goes first.
        if !self.rx.is_empty() {
            portal.handle_input(self.id, now, &mut self.rx);
        }
        let mut left = READ_BUDGET_BYTES;
        while self.takes_input(portal) {
            if left == 0 {
                return Ok(true);
            }
            let room = self.rx.room();
            let capacity = room.capacity() - room.len();
            match pin!(self.stream.read_buf(room)).poll(cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Poll::Ready(Ok(n)) => {
                    portal.on_moved(self.id, n, 0);
                    portal.handle_input(self.id, now, &mut self.rx);
                    left = left.saturating_sub(n);
                    // A short read has emptied the socket; asking it again would cost a system call, asking
                    // tokio costs none.
                    if n < capacity && self.stream.poll_read_ready(cx)?.is_pending() {
                        break;
                    }
                }
                Poll::Ready(Err(error)) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Writes what there is; says whether to come back soon.
    fn write(
        &mut self,
        cx: &mut Context<'_>,
        portal: &mut Portal,
        now: Instant,
    ) -> io::Result<bool> {
        for _ in 0..WRITES_MAX {
            portal.poll_transmit(self.id, &mut self.tx);
            if self.tx.is_empty() {
                // Answers that are gone may let waiting input in.
                let waiting = !self.rx.is_empty() && portal.wants_input(self.id);
                if waiting {
                    let before = self.rx.len();
                    portal.handle_input(self.id, now, &mut self.rx);
                    if self.rx.len() < before {
                        continue;
                    }
                }
                return Ok(false);
            }
            let limit = portal.link(self.id).write_bytes_max;
            if limit == 0 {
                return Ok(false);
            }
            let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(SLICES_USUAL);
            self.tx.io_slices(&mut slices);
            let written = if limit < self.tx.len() {
                self.stream.try_write(&head(&slices, limit))
            } else {
                self.stream.try_write_vectored(&slices)
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    drop(slices);
                    self.tx.advance(n);
                    portal.on_moved(self.id, 0, n);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    match self.stream.poll_write_ready(cx) {
                        Poll::Pending => return Ok(false),
                        Poll::Ready(ready) => ready?,
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Waits until the peer has closed its side, so that it got everything.
    fn linger(&mut self, cx: &mut Context<'_>, now: Instant) -> io::Result<Next> {
        let until = self.lingering.unwrap_or(now);
        if now >= until || self.shared.stopping.borrow().is_some() {
            return Ok(Next::Done);
        }
        if let Poll::Ready(result) = Pin::new(&mut self.stream).poll_shutdown(cx) {
            result?;
        }
        let mut scrap = Vec::with_capacity(64 * 1024);
        match pin!(self.stream.read_buf(&mut scrap)).poll(cx) {
            Poll::Ready(Ok(0)) => Ok(Next::Done),
            Poll::Ready(Ok(_)) => Ok(Next::Yield),
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => {
                self.set_timer(until);
                let _ = self.poll_timer(cx);
                Ok(Next::Wait)
            }
        }
    }

    fn timer_is_due(&mut self, cx: &mut Context<'_>, portal: &Portal, now: Instant) -> bool {
        let Some(until) = portal.poll_timeout(self.id) else {
            return false;
        };
        if until <= now {
            return true;
        }
        self.set_timer(until);
        self.poll_timer(cx)
    }

    /// Sets the timer to `until` unless it goes off earlier: a timer that fires early does no harm, and most
    /// deadlines move away again before they are reached.
    fn set_timer(&mut self, until: Instant) {
        match &mut self.timer {
            Some((at, _)) if *at <= until && *at > Instant::now() => {}
            Some((at, sleep)) => {
                *at = until;
                sleep.as_mut().reset(until.into());
            }
            None => {
                let sleep = Box::pin(tokio::time::sleep_until(until.into()));
                self.timer = Some((until, sleep));
            }
        }
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> bool {
        match &mut self.timer {
            Some((_, sleep)) => sleep.as_mut().poll(cx).is_ready(),
            None => false,
        }
    }
}

impl Future for Pump {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.register(cx);
        match self.step(cx) {
            Ok(Next::Wait) => Poll::Pending,
            Ok(Next::Yield) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Ok(Next::Done) => Poll::Ready(()),
            Err(error) => {
                tracing::debug!(connection = ?self.id, %error, "target lost a connection");
                Poll::Ready(())
            }
        }
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.shared.wakers.borrow_mut().remove(&self.id);
        // Also runs when the whole runtime is dropped in the middle of a turn of somebody else.
        if let Ok(mut portal) = self.shared.portal.try_borrow_mut() {
            portal.remove(self.id);
            self.shared.wake_others(&mut portal);
        }
    }
}

/// The first `limit` bytes of the slices; copied, because only faults ask for it.
fn head(slices: &[IoSlice<'_>], limit: usize) -> Vec<u8> {
    slices
        .iter()
        .flat_map(|slice| slice.iter().copied())
        .take(limit)
        .collect()
}

#[cfg(test)]
mod tests;

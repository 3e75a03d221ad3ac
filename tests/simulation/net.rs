//! The simulated network: connections whose bytes take their time, arrive in pieces, late or not at all.
//!
//! ```text
//! SimSocket (initiator) -- pipe: segments with arrival times --> SimSocket (target)
//!                       <-------------------- pipe -------------
//! ```
//!
//! A socket that is dropped still delivers what it has sent, as TCP does: the bytes may reach a target long
//! after the initiator gave the connection up. [`LATE_MAX`] bounds that, as TCP's user timeout does.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use berth_iscsi::name::{Host, Portal};
use berth_iscsi::net::{ConnectOptions, Dialing, Network, Socket};
use bytes::{Buf as _, Bytes, BytesMut};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::rng::Rng;
use super::trace;
use crate::event;

/// Bytes reach the other end at most this long after their sender has closed the connection or lost it.
pub const LATE_MAX: Duration = Duration::from_secs(12);
/// Connections of one run; far more than any makes.
const CONNECTIONS_MAX: usize = 5_000;

/// What happens to new connections on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// They are made.
    Open,
    /// They are refused at once.
    Refuse,
    /// There is no answer.
    Ignore,
}

/// The way from one node to one portal.
#[derive(Debug, Clone)]
pub struct Link {
    /// Time of a byte on the way.
    pub latency: Duration,
    /// Added to it at random.
    pub jitter: Duration,
    /// Bytes per millisecond; 0: no limit.
    pub rate: u64,
    /// Nothing arrives before this time.
    pub stalled_until: Instant,
    /// What happens to new connections.
    pub admission: Admission,
}

#[derive(Debug)]
enum Chunk {
    Data(Bytes),
    Fin,
    Reset,
}

#[derive(Debug, Default)]
struct Pipe {
    queue: VecDeque<(Instant, Chunk)>,
    queued_bytes: usize,
    last_arrival: Option<Instant>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// Nothing arrives any more, and nobody is told.
    black_hole: bool,
    /// The connection is cut after so many more bytes.
    cut_after: Option<usize>,
    /// It was: what is written goes nowhere.
    is_cut: bool,
    fin_read: bool,
}

#[derive(Debug, Default)]
struct End {
    /// Its socket was dropped, at this time.
    closed_at: Option<Instant>,
    broken: Option<io::ErrorKind>,
}

/// One connection. End 0 is the initiator's; pipe 0 leads from it to the target.
#[derive(Debug)]
struct Connection {
    node: usize,
    portal: usize,
    pipes: [Pipe; 2],
    ends: [End; 2],
    capacity_bytes: usize,
    segment_bytes_max: usize,
}

#[derive(Debug)]
struct State {
    rng: Rng,
    /// By node, then by portal.
    links: Vec<Vec<Link>>,
    connections: Vec<Connection>,
    /// Connections that each portal has not accepted yet, and who waits for them.
    backlogs: Vec<(VecDeque<usize>, Option<Waker>)>,
}

/// The network; clones are the same one.
#[derive(Debug, Clone)]
pub struct Net(Arc<Mutex<State>>);

/// The name of a portal in the simulation.
#[must_use]
pub fn portal_name(index: usize) -> Portal {
    Portal {
        host: Host::Ip(address(index).ip()),
        port: address(index).port(),
    }
}

fn address(index: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 10 + index as u8], 3260))
}

impl Net {
    /// A network of so many nodes and portals.
    #[must_use]
    pub fn new(mut rng: Rng, nodes: usize, portals: usize) -> Self {
        let now = Instant::now();
        let mut link = |_| Link {
            latency: rng.ms(0..4),
            jitter: rng.ms(0..6),
            rate: 0,
            stalled_until: now,
            admission: Admission::Open,
        };
        let links = (0..nodes)
            .map(|_| (0..portals).map(&mut link).collect())
            .collect();
        Self(Arc::new(Mutex::new(State {
            rng,
            links,
            connections: Vec::new(),
            backlogs: (0..portals).map(|_| Default::default()).collect(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nobody panics while holding it")
    }

    /// Changes the links of a node (or of all) to a portal (or to all).
    pub fn with_links(
        &self,
        node: Option<usize>,
        portal: Option<usize>,
        mut change: impl FnMut(&mut Link),
    ) {
        let state = &mut *self.state();
        for (n, links) in state.links.iter_mut().enumerate() {
            for (p, link) in links.iter_mut().enumerate() {
                if node.is_none_or(|wanted| wanted == n) && portal.is_none_or(|wanted| wanted == p)
                {
                    change(link);
                }
            }
        }
    }

    /// Nothing arrives over these links before `until`, in neither direction.
    pub fn stall(&self, node: Option<usize>, portal: Option<usize>, until: Instant) {
        self.with_links(node, portal, |link| {
            link.stalled_until = link.stalled_until.max(until);
        });
        let state = &mut *self.state();
        for connection in &mut state.connections {
            let concerned = node.is_none_or(|wanted| wanted == connection.node)
                && portal.is_none_or(|wanted| wanted == connection.portal);
            if concerned {
                let resent = until + state.rng.ms(0..300);
                connection.delay(resent);
            }
        }
    }

    /// Connections of a link that are alive at both ends.
    #[must_use]
    pub fn live(&self, node: Option<usize>, portal: Option<usize>) -> Vec<usize> {
        let state = self.state();
        let concerned = |connection: &Connection| {
            node.is_none_or(|wanted| wanted == connection.node)
                && portal.is_none_or(|wanted| wanted == connection.portal)
                && connection
                    .ends
                    .iter()
                    .all(|end| end.closed_at.is_none() && end.broken.is_none())
        };
        let all = state.connections.iter().enumerate();
        all.filter(|(_, connection)| concerned(connection))
            .map(|(id, _)| id)
            .collect()
    }

    /// Ends a connection for one side (0 initiator, 1 target) now, for the other after `late`, during which
    /// what was sent before still arrives there.
    pub fn cut(&self, id: usize, side: usize, late: Duration) {
        event!(
            "net.cut",
            "connection {} side {} late {} ms",
            id,
            side,
            late.as_millis()
        );
        let state = &mut *self.state();
        let connection = &mut state.connections[id];
        connection.break_end(side, io::ErrorKind::ConnectionReset);
        let at = Instant::now() + late.min(LATE_MAX);
        connection.pipes[side].spread(Instant::now(), at, &mut state.rng);
        connection.pipes[side].push(at, Chunk::Reset);
    }

    /// What a node has sent takes until somewhere in this time to arrive; for a node that is about to die.
    pub fn linger(&self, node: usize, late: Duration) {
        let live = self.live(Some(node), None);
        let state = &mut *self.state();
        let now = Instant::now();
        let until = now + late.min(LATE_MAX);
        for id in live {
            let pipe = &mut state.connections[id].pipes[0];
            pipe.spread(now, until, &mut state.rng);
            // Whatever comes behind, the end of the connection above all, comes later.
            pipe.last_arrival = Some(until);
        }
    }

    /// Cuts a connection once so many more bytes have gone from `side`.
    pub fn cut_after(&self, id: usize, side: usize, bytes: usize) {
        event!(
            "net.cut-after",
            "connection {} side {} bytes {}",
            id,
            side,
            bytes
        );
        self.state().connections[id].pipes[side].cut_after = Some(bytes);
    }

    /// Nothing arrives any more in one direction (from 0 the initiator, 1 the target), nobody is told.
    pub fn black_hole(&self, id: usize, side: usize) {
        event!("net.black-hole", "connection {} from side {}", id, side);
        self.state().connections[id].pipes[side].black_hole = true;
    }

    /// The next connection to a portal: its number, the node it comes from, the target's end.
    pub async fn accept(&self, portal: usize) -> (usize, Box<dyn Socket>) {
        poll_fn(|cx| {
            let (backlog, waker) = &mut self.state().backlogs[portal];
            match backlog.pop_front() {
                Some(id) => Poll::Ready((id, self.socket(id, 1))),
                None => {
                    *waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    fn socket(&self, id: usize, side: usize) -> Box<dyn Socket> {
        Box::new(SimSocket {
            net: self.clone(),
            id,
            side,
            timer: None,
        })
    }

    fn connect(&self, node: usize, portal: usize) -> usize {
        let state = &mut *self.state();
        let id = state.connections.len();
        assert!(id < CONNECTIONS_MAX, "connections are made without end");
        let rng = &mut state.rng;
        let connection = Connection {
            node,
            portal,
            pipes: Default::default(),
            ends: Default::default(),
            capacity_bytes: rng.one_of(&[4 << 10, 32 << 10, 256 << 10]),
            segment_bytes_max: rng.one_of(&[1 << 20, 1 << 20, 1448, 200]),
        };
        state.connections.push(connection);
        let (backlog, waker) = &mut state.backlogs[portal];
        backlog.push_back(id);
        if let Some(waker) = waker.take() {
            waker.wake();
        }
        event!(
            "net.connect",
            "connection {} node {} portal {}",
            id,
            node,
            portal
        );
        id
    }

    /// The network as one node sees it.
    #[must_use]
    pub fn of_node(&self, node: usize) -> NodeNetwork {
        NodeNetwork {
            net: self.clone(),
            node,
        }
    }
}

impl Connection {
    /// Nothing arrives before `until`; what would come too late after its sender is gone never does.
    fn delay(&mut self, until: Instant) {
        for (pipe, end) in self.pipes.iter_mut().zip(&self.ends) {
            for (arrival, _) in &mut pipe.queue {
                *arrival = (*arrival).max(until);
            }
            if let Some(closed_at) = end.closed_at {
                pipe.drop_later_than(closed_at + LATE_MAX);
            }
            pipe.last_arrival = pipe.queue.back().map(|(arrival, _)| *arrival);
        }
    }

    fn break_end(&mut self, side: usize, kind: io::ErrorKind) {
        let end = &mut self.ends[side];
        end.broken.get_or_insert(kind);
        end.closed_at.get_or_insert_with(Instant::now);
        self.pipes[side].is_cut = true;
        self.pipes[1 - side].queue.clear();
        self.pipes[1 - side].queued_bytes = 0;
        for waker in [
            self.pipes[side].writer.take(),
            self.pipes[1 - side].reader.take(),
        ]
        .into_iter()
        .flatten()
        {
            waker.wake();
        }
    }
}

impl Pipe {
    fn push(&mut self, at: Instant, chunk: Chunk) {
        let at = self.last_arrival.map_or(at, |last| last.max(at));
        self.last_arrival = Some(at);
        if let Chunk::Data(data) = &chunk {
            self.queued_bytes += data.len();
        }
        self.queue.push_back((at, chunk));
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }

    /// What is on the way takes until somewhere between now and `until`.
    fn spread(&mut self, now: Instant, until: Instant, rng: &mut Rng) {
        let mut at = now;
        let left_ms = until.saturating_duration_since(now).as_millis() as u64;
        for (arrival, _) in &mut self.queue {
            at = at.max(now + rng.ms(0..left_ms + 1));
            *arrival = (*arrival).max(at).min(until);
        }
        self.last_arrival = self.queue.back().map(|(arrival, _)| *arrival);
    }

    fn drop_later_than(&mut self, limit: Instant) {
        let mut lost = 0;
        self.queue.retain(|(arrival, chunk)| match chunk {
            Chunk::Data(data) if *arrival > limit => {
                lost += data.len();
                false
            }
            _ => true,
        });
        self.queued_bytes -= lost;
        if lost > 0 {
            // A hole in the stream: nothing behind it may be read as data.
            self.queue
                .retain(|(arrival, chunk)| *arrival <= limit || !matches!(chunk, Chunk::Fin));
            self.queue.push_back((limit, Chunk::Reset));
        }
    }
}

/// The network from the place of one node.
#[derive(Debug, Clone)]
pub struct NodeNetwork {
    net: Net,
    node: usize,
}

impl Network for NodeNetwork {
    fn dial<'a>(&'a self, portal: &'a Portal, options: &'a ConnectOptions) -> Dialing<'a> {
        Box::pin(async move {
            let portals = self.net.state().backlogs.len();
            let index = (0..portals)
                .find(|index| portal_name(*index) == *portal)
                .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
            let deadline = Instant::now() + options.attempt_timeout;
            loop {
                let (round_trip, admission, stalled_until) = {
                    let state = &mut *self.net.state();
                    let link = &state.links[self.node][index];
                    let jitter = link.jitter.as_millis() as u64 + 1;
                    let round_trip = link.latency * 2 + state.rng.ms(0..jitter);
                    (round_trip, link.admission, link.stalled_until)
                };
                let now = Instant::now();
                if admission == Admission::Ignore || stalled_until > now {
                    trace::count("net: connect without an answer");
                    // A lost SYN is sent again a second later.
                    if now + Duration::from_secs(1) >= deadline {
                        sleep_until(deadline).await;
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    sleep(Duration::from_secs(1)).await;
                    continue;
                }
                sleep(round_trip).await;
                let link = self.net.state().links[self.node][index].clone();
                match link.admission {
                    Admission::Refuse => {
                        trace::count("net: connect refused");
                        return Err(io::ErrorKind::ConnectionRefused.into());
                    }
                    Admission::Open if link.stalled_until <= Instant::now() => {
                        let id = self.net.connect(self.node, index);
                        return Ok((self.net.socket(id, 0), address(index)));
                    }
                    _ => {}
                }
            }
        })
    }
}

/// One end of a connection.
#[derive(Debug)]
struct SimSocket {
    net: Net,
    id: usize,
    side: usize,
    timer: Option<Pin<Box<Sleep>>>,
}

impl SimSocket {
    /// Wakes the task when the first segment is there.
    fn wait_until(&mut self, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.timer {
            Some(timer) if timer.deadline() == at => {}
            Some(timer) => timer.as_mut().reset(at),
            none => *none = Some(Box::pin(sleep_until(at))),
        }
        self.timer
            .as_mut()
            .map_or(Poll::Pending, |timer| timer.as_mut().poll(cx))
    }

    /// Ready when a read would give something: data, the end, an error.
    fn poll_arrived(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let at = {
                let state = &mut *self.net.state();
                let connection = &mut state.connections[self.id];
                if connection.ends[self.side].broken.is_some() {
                    return Poll::Ready(());
                }
                let pipe = &mut connection.pipes[1 - self.side];
                if pipe.fin_read {
                    return Poll::Ready(());
                }
                match pipe.queue.front() {
                    Some((at, _)) if !pipe.black_hole => {
                        if *at <= Instant::now() {
                            return Poll::Ready(());
                        }
                        pipe.reader = Some(cx.waker().clone());
                        *at
                    }
                    _ => {
                        pipe.reader = Some(cx.waker().clone());
                        return Poll::Pending;
                    }
                }
            };
            ready!(self.wait_until(at, cx));
        }
    }
}

impl Socket for SimSocket {
    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut BytesMut) -> Poll<io::Result<usize>> {
        ready!(self.poll_arrived(cx));
        let state = &mut *self.net.state();
        let connection = &mut state.connections[self.id];
        if let Some(kind) = connection.ends[self.side].broken {
            return Poll::Ready(Err(kind.into()));
        }
        let pipe = &mut connection.pipes[1 - self.side];
        let room = into.capacity() - into.len();
        let n = match pipe.queue.front_mut() {
            _ if pipe.fin_read => 0,
            Some((_, Chunk::Data(data))) => {
                let n = data.len().min(room);
                into.extend_from_slice(&data[..n]);
                data.advance(n);
                let is_empty = data.is_empty();
                pipe.queued_bytes -= n;
                if is_empty {
                    pipe.queue.pop_front();
                }
                n
            }
            Some((_, Chunk::Fin)) => {
                pipe.fin_read = true;
                0
            }
            Some((_, Chunk::Reset)) => {
                connection.break_end(self.side, io::ErrorKind::ConnectionReset);
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            None => return Poll::Pending,
        };
        if let Some(waker) = pipe.writer.take() {
            waker.wake();
        }
        trace::note("read", &[self.id as u64, self.side as u64, n as u64]);
        Poll::Ready(Ok(n))
    }

    fn poll_read_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_arrived(cx).map(Ok)
    }

    fn try_write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let state = &mut *self.net.state();
        let rng = &mut state.rng;
        let connection = &mut state.connections[self.id];
        if let Some(kind) = connection.ends[self.side].broken {
            return Err(kind.into());
        }
        let now = Instant::now();
        let link = &state.links[connection.node][connection.portal];
        let start = now.max(link.stalled_until) + link.latency;
        let peer_is_gone = connection.ends[1 - self.side].closed_at.is_some();
        let (first, second) = connection.pipes.split_at_mut(1);
        let (out, back) = if self.side == 0 {
            (&mut first[0], &mut second[0])
        } else {
            (&mut second[0], &mut first[0])
        };
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        let room = connection.capacity_bytes.saturating_sub(out.queued_bytes);
        let n = total.min(room);
        if n == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if out.is_cut {
            return Ok(n);
        }
        let mut data = BytesMut::with_capacity(n);
        for slice in slices {
            let take = slice.len().min(n - data.len());
            data.extend_from_slice(&slice[..take]);
        }
        let mut data = data.freeze();
        let cut = match &mut out.cut_after {
            Some(left) if *left <= n => Some(*left),
            Some(left) => {
                *left -= n;
                None
            }
            None => None,
        };
        if let Some(left) = cut {
            data.truncate(left);
        }
        let jitter_ms = link.jitter.as_millis() as u64 + 1;
        while !data.is_empty() {
            let len = if data.len() > 1 && rng.percent(20) {
                1 + rng.skewed(data.len() as u64 - 1) as usize
            } else {
                data.len()
            };
            let piece = data.split_to(len.min(connection.segment_bytes_max));
            let mut at = start + rng.ms(0..jitter_ms);
            if let Some(ms) = (piece.len() as u64).checked_div(link.rate) {
                let before = out.last_arrival.map_or(at, |last| last.max(at));
                at = before + Duration::from_millis(ms);
            }
            out.push(at, Chunk::Data(piece));
        }
        trace::note("write", &[self.id as u64, self.side as u64, n as u64]);
        if cut.is_some() {
            trace::count("net: cut inside of the stream");
            event!("net.cut-now", "connection {} side {}", self.id, self.side);
            out.is_cut = true;
            out.push(start, Chunk::Reset);
            back.push(start + link.latency, Chunk::Reset);
        } else if peer_is_gone {
            // Nobody is there: the answer is a reset.
            back.push(start + link.latency, Chunk::Reset);
        }
        Ok(n)
    }

    fn poll_write_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let state = &mut *self.net.state();
        let connection = &mut state.connections[self.id];
        let pipe = &mut connection.pipes[self.side];
        if pipe.queued_bytes < connection.capacity_bytes
            || connection.ends[self.side].broken.is_some()
        {
            return Poll::Ready(Ok(()));
        }
        pipe.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::from(([198, 51, 100, 1], 40000)))
    }

    fn peer_addr(&self) -> io::Result<SocketAddr> {
        Ok(address(self.net.state().connections[self.id].portal))
    }
}

impl Drop for SimSocket {
    fn drop(&mut self) {
        let Ok(mut state) = self.net.0.lock() else {
            return; // A panic is on its way already.
        };
        let state = &mut *state;
        let now = Instant::now();
        let connection = &mut state.connections[self.id];
        trace::note("close", &[self.id as u64, self.side as u64]);
        let end = &mut connection.ends[self.side];
        if end.broken.is_some() {
            return;
        }
        end.closed_at.get_or_insert(now);
        let incoming = &mut connection.pipes[1 - self.side];
        // As TCP: unread input makes it a reset.
        let unread = incoming.queued_bytes > 0;
        incoming.queue.clear();
        incoming.queued_bytes = 0;
        if let Some(waker) = incoming.writer.take() {
            waker.wake();
        }
        let link = &state.links[connection.node][connection.portal];
        let out = &mut connection.pipes[self.side];
        let at = now.max(link.stalled_until) + link.latency;
        out.push(at, if unread { Chunk::Reset } else { Chunk::Fin });
        out.drop_later_than(now + LATE_MAX);
        out.last_arrival = out.queue.back().map(|(arrival, _)| *arrival);
    }
}

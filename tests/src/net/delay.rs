//! Delay of packets: they go through a netfilter queue into this process, which lets them go when their time has come.
//!
//! The kernel's own way is the qdisc `netem`, which small kernels lack; a netfilter queue they have. Spoken is the
//! little of nfnetlink that this takes (linux/netfilter/nfnetlink_queue.h): bind a queue, read the number of each packet,
//! accept all packets up to a number. Packets are held back and never changed, in order.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use super::Netns;

const AF_NETLINK: i32 = 16;
const NETLINK_NETFILTER: i32 = 12;
/// `NFNL_SUBSYS_QUEUE << 8`.
const SUBSYSTEM: u16 = 3 << 8;
const MSG_PACKET: u16 = SUBSYSTEM;
const MSG_CONFIG: u16 = SUBSYSTEM | 2;
const MSG_VERDICT_BATCH: u16 = SUBSYSTEM | 3;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const ATTR_PACKET_HDR: u16 = 1;
const ATTR_VERDICT_HDR: u16 = 2;
const CFG_CMD: u16 = 1;
const CFG_PARAMS: u16 = 2;
const CFG_QUEUE_MAXLEN: u16 = 3;
const NF_ACCEPT: u32 = 1;
/// Packets in the queue before the kernel drops: far above what one link holds in a second.
const QUEUE_MAX: u32 = 16_384;
/// How often an idle thread looks whether it shall stop.
const IDLE: Duration = Duration::from_millis(50);

/// A queue of one namespace whose packets are held back. Ends when dropped.
#[derive(Debug)]
pub struct Delay {
    micros: Arc<AtomicU64>,
    held: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Delay {
    /// Serves queue `number` of `netns`; so far without delay.
    ///
    /// # Errors
    /// When the kernel has no netfilter queues.
    pub fn start(netns: &Netns, number: u16) -> Result<Self> {
        let (micros, held) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, is_ready) = mpsc::sync_channel(1);
        let shared = (Arc::clone(&micros), Arc::clone(&held), Arc::clone(&stop));
        let thread = netns.spawn(move || {
            let queue = match Queue::bind(number) {
                Ok(queue) => queue,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            let _ = ready.send(Ok(()));
            // Only the end of the namespace or of this value ends it.
            let _ = serve(queue, &shared.0, &shared.1, &shared.2);
        });
        is_ready
            .recv()
            .map_err(|_| anyhow!("the delay thread could not enter its namespace"))?
            .context("no netfilter queue: the kernel needs CONFIG_NETFILTER_NETLINK_QUEUE")?;
        Ok(Self {
            micros,
            held,
            stop,
            thread: Some(thread),
        })
    }

    /// How long each packet is held back from now on; zero lets those go that wait.
    pub fn set(&self, delay: Duration) {
        let micros = u64::try_from(delay.as_micros()).expect("delays are short");
        self.micros.store(micros, Ordering::Relaxed);
    }

    /// Packets held back so far.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(mut queue: Queue, micros: &AtomicU64, held: &AtomicU64, stop: &AtomicBool) -> Result<()> {
    let mut waiting: VecDeque<(Instant, u32)> = VecDeque::new();
    while !stop.load(Ordering::Relaxed) {
        let delay = Duration::from_micros(micros.load(Ordering::Relaxed));
        let now = Instant::now();
        let mut last = None;
        while let Some(&(arrived, id)) = waiting.front() {
            if arrived + delay > now {
                break;
            }
            waiting.pop_front();
            last = Some(id);
        }
        if let Some(id) = last {
            queue.accept_up_to(id)?;
        }
        let pause = waiting.front().map_or(IDLE, |&(arrived, _)| {
            (arrived + delay).saturating_duration_since(now).min(IDLE)
        });
        for id in queue.packets(pause)? {
            waiting.push_back((Instant::now(), id));
            held.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// A bound netfilter queue.
struct Queue {
    socket: Socket,
    number: u16,
    buffer: Box<[u8; 65_536]>,
}

impl Queue {
    fn bind(number: u16) -> Result<Self> {
        let domain = Domain::from(AF_NETLINK);
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(NETLINK_NETFILTER)))
            .context("netlink socket")?;
        // The default holds some hundred notices; a burst has more packets.
        socket.set_recv_buffer_size(4 << 20)?;
        let mut queue = Self {
            socket,
            number,
            buffer: Box::new([0; 65_536]),
        };
        // Bind: command, padding, protocol family (none).
        queue.configure(CFG_CMD, &[1, 0, 0, 0]).context("bind")?;
        // Copy nothing but metadata: range, mode.
        queue.configure(CFG_PARAMS, &[0, 0, 0, 0, 1])?;
        queue.configure(CFG_QUEUE_MAXLEN, &QUEUE_MAX.to_be_bytes())?;
        Ok(queue)
    }

    fn configure(&mut self, attribute: u16, value: &[u8]) -> Result<()> {
        self.send(MSG_CONFIG, NLM_F_REQUEST | NLM_F_ACK, attribute, value)?;
        self.socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        loop {
            let len = (&self.socket).read(&mut self.buffer[..])?;
            for (kind, body) in messages(&self.buffer[..len]) {
                if kind == NLMSG_ERROR {
                    let code = body.get(..4).context("error without a number")?;
                    let code = i32::from_ne_bytes(code.try_into()?);
                    ensure!(
                        code == 0,
                        "netfilter queue: {}",
                        std::io::Error::from_raw_os_error(-code)
                    );
                    return Ok(());
                }
            }
        }
    }

    fn send(&self, kind: u16, flags: u16, attribute: u16, value: &[u8]) -> Result<()> {
        let attribute_len = 4 + value.len();
        let len = 16 + 4 + attribute_len.next_multiple_of(4);
        let mut bytes = Vec::with_capacity(len);
        bytes.extend_from_slice(&u32::try_from(len)?.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]); // sequence number and port: nobody else speaks on this socket
        bytes.extend_from_slice(&[0, 0]); // family, version
        bytes.extend_from_slice(&self.number.to_be_bytes());
        bytes.extend_from_slice(&u16::try_from(attribute_len)?.to_ne_bytes());
        bytes.extend_from_slice(&attribute.to_ne_bytes());
        bytes.extend_from_slice(value);
        bytes.resize(len, 0);
        self.socket.send(&bytes).context("netlink")?;
        Ok(())
    }

    fn accept_up_to(&self, id: u32) -> Result<()> {
        let mut value = NF_ACCEPT.to_be_bytes().to_vec();
        value.extend_from_slice(&id.to_be_bytes());
        self.send(MSG_VERDICT_BATCH, NLM_F_REQUEST, ATTR_VERDICT_HDR, &value)
    }

    /// Numbers of the packets that arrive within `pause`, as soon as there are any.
    fn packets(&mut self, pause: Duration) -> Result<Vec<u32>> {
        // Zero would mean for ever.
        let pause = pause.max(Duration::from_millis(1));
        self.socket.set_read_timeout(Some(pause))?;
        let len = match (&self.socket).read(&mut self.buffer[..]) {
            Ok(len) => len,
            // ENOBUFS: the kernel had more notices than room and has dropped packets, as a full link does.
            Err(error) if error.raw_os_error() == Some(105) => return Ok(Vec::new()),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {
                    return Ok(Vec::new());
                }
                _ => return Err(error.into()),
            },
        };
        let packets = messages(&self.buffer[..len]).filter(|(kind, _)| *kind == MSG_PACKET);
        Ok(packets.filter_map(|(_, body)| packet_id(body)).collect())
    }
}

/// Type and body of each netlink message.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let body = bytes.get(16..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// The packet's number, from the attribute of a queue's notice.
fn packet_id(body: &[u8]) -> Option<u32> {
    let mut rest = body.get(4..)?;
    loop {
        let len = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
        if kind == ATTR_PACKET_HDR {
            return Some(u32::from_be_bytes(rest.get(4..8)?.try_into().ok()?));
        }
        rest = rest.get(len.max(4).next_multiple_of(4)..)?;
    }
}

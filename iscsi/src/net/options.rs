//! Times and sizes of connections, each with the reason for its default.

use std::time::Duration;

use crate::session::SessionOptions;

/// How a connection is made and kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectOptions {
    /// Time for the whole of [`super::connect`]: resolving, TCP, login, redirects. Default 15 s, the
    /// login time that targets grant.
    pub deadline: Duration,
    /// Time for one TCP connection attempt. Default 5 s: three lost SYNs. Other addresses are tried
    /// meanwhile.
    pub attempt_timeout: Duration,
    /// Head start of one address over the next. Default 250 ms (RFC 8305 8).
    pub attempt_delay: Duration,
    /// Login redirects that are followed. Default 5: a group address, a node, and some patience.
    pub redirects_max: u32,
    /// Time for discovery's answer and logout, after the login. Default 15 s.
    pub discovery_timeout: Duration,
    /// Settings of the socket.
    pub socket: SocketOptions,
    /// Limits and times of the session.
    pub session: SessionOptions,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(15),
            attempt_timeout: Duration::from_secs(5),
            attempt_delay: Duration::from_millis(250),
            redirects_max: 5,
            discovery_timeout: Duration::from_secs(15),
            socket: SocketOptions::default(),
            session: SessionOptions::default(),
        }
    }
}

/// Settings of a TCP socket. TCP_NODELAY is always on: whatever is written is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketOptions {
    /// Idle time before the first keepalive probe; `None`: no keepalive. Default 30 s; pings find a dead
    /// peer sooner, this is for sessions that have them switched off.
    pub keepalive_idle: Option<Duration>,
    /// Time between probes; the connection is dead after three. Default 10 s.
    pub keepalive_interval: Duration,
    /// Time for which sent data may stay unacknowledged; `None`: the kernel's (15 minutes). Default
    /// 30 s.
    pub user_timeout: Option<Duration>,
    /// SO_SNDBUF in bytes; `None`: the kernel tunes it, which measured no worse than 4 MiB. Default
    /// `None`.
    pub send_buffer_bytes: Option<usize>,
    /// SO_RCVBUF in bytes; `None`: the kernel tunes it. Default `None`.
    pub receive_buffer_bytes: Option<usize>,
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self {
            keepalive_idle: Some(Duration::from_secs(30)),
            keepalive_interval: Duration::from_secs(10),
            user_timeout: Some(Duration::from_secs(30)),
            send_buffer_bytes: None,
            receive_buffer_bytes: None,
        }
    }
}

/// How much a driver does before it lets other tasks of its thread run.
#[derive(Debug, Clone)]
pub struct DriverOptions {
    /// Bytes read per wake-up. Default 1 MiB: four full reads.
    pub read_budget_bytes: usize,
    /// Bytes written per wake-up. Default 4 MiB: more than a socket buffer takes at once.
    pub write_budget_bytes: usize,
    /// Runtime whose clock wakes the driver, which has to outlive it; `None` (the default): the one that it
    /// runs on. With another's, its own can wait for sockets without a timeout, which costs less.
    pub timers: Option<tokio::runtime::Handle>,
}

impl Default for DriverOptions {
    fn default() -> Self {
        Self {
            read_budget_bytes: 1 << 20,
            write_budget_bytes: 4 << 20,
            timers: None,
        }
    }
}

//! Limits and times of a session, each with the reason for its default.

use std::time::Duration;

/// What a user may set about a session. Every field has a working default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionOptions {
    /// Silence after which the target is pinged; `None`: never. Any received byte counts as life, so
    /// a busy link is never pinged. Default 5 s, as other initiators do.
    pub ping_interval: Option<Duration>,
    /// Silence after a ping that means the connection is dead. Default 5 s; slow targets need more.
    pub ping_timeout: Duration,
    /// Time for the target to answer a task management request; then the session ends. Default 15 s:
    /// the target may have to wait for its medium.
    pub task_management_timeout: Duration,
    /// Time for a whole text exchange such as SendTargets. Default 15 s.
    pub text_timeout: Duration,
    /// Time for tasks in flight to end before a logout that the user asked for. Default 15 s.
    pub drain_timeout: Duration,
    /// Time for the target to answer a Logout; then the connection is closed all the same. Default
    /// 15 s.
    pub logout_timeout: Duration,
    /// Tasks that a session holds, queued and running. Default 4096: beyond any device queue, and
    /// about 2 MiB of memory. At most 32768, so that task tags always have a free index.
    pub tasks_max: usize,
    /// Sum of the transfer lengths of these tasks, in bytes. Default 1 GiB.
    pub task_bytes_max: u64,
    /// Unsent bytes at which no further PDU is built. Default 1 MiB: enough for one vectored write
    /// to fill a socket buffer, small enough that a ping reply waits for little.
    pub transmit_queue_bytes: usize,
    /// Longest data segment of one Data-Out, whatever the target accepts. Default 256 KiB: between two
    /// PDUs other tasks and control PDUs get their turn.
    pub data_out_max_bytes: usize,
    /// Control PDUs (ping replies above all) that wait to be sent; beyond it the target asks without
    /// reading answers and the connection is dropped. Default 256.
    pub control_queue_max: usize,
    /// Task management requests in flight; others wait. Default 1: a target must take two immediate
    /// requests at a time (RFC 7143 4.2.2.1), and the other one is a ping. Kept within 1 and 32.
    pub task_management_in_flight_max: usize,
    /// Longest answer to a Text Request, in bytes. Default 1 MiB: ten thousand targets.
    pub text_response_max_bytes: usize,
    /// Events besides task ends that wait to be fetched; more are counted and dropped. Default 256.
    pub events_max: usize,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            ping_interval: Some(Duration::from_secs(5)),
            ping_timeout: Duration::from_secs(5),
            task_management_timeout: Duration::from_secs(15),
            text_timeout: Duration::from_secs(15),
            drain_timeout: Duration::from_secs(15),
            logout_timeout: Duration::from_secs(15),
            tasks_max: 4096,
            task_bytes_max: 1 << 30,
            transmit_queue_bytes: 1 << 20,
            data_out_max_bytes: 256 << 10,
            control_queue_max: 256,
            task_management_in_flight_max: 1,
            text_response_max_bytes: 1 << 20,
            events_max: 256,
        }
    }
}

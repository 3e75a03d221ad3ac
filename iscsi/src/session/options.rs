//! Limits and times of a session, each with the reason for its default.

use std::time::Duration;

/// What a user may set about a session. Every field has a working default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionOptions {
    /// Silence after which the target is pinged; `None`: never. Any received byte counts as life, so
    /// a busy link is never pinged; a command window that stays closed for as long is pinged too, for
    /// the answer shows whether it has opened. Default 2 s: together with `ping_timeout` a stalled link is
    /// found within 7 s, less than one and a half times the latter.
    pub ping_interval: Option<Duration>,
    /// Silence after a ping that means the connection is dead. Default 5 s, as other initiators do; slow
    /// targets need more.
    pub ping_timeout: Duration,
    /// Time for ABORT TASK, counted from when the command was to end; then the LUN is reset or, without
    /// `lun_reset`, the session ends. Default 15 s: the target may have to wait for its medium.
    pub abort_timeout: Duration,
    /// Whether a LUN is reset (LOGICAL UNIT RESET) when ABORT TASK does not help, before the session is
    /// given up. Default on: a volume belongs to one node at a time, and a reset frees commands that are
    /// stuck inside the target, which a new login only leaves behind. Switch it off for LUNs that other
    /// nodes or other paths use at the same time: a reset ends their commands too, without an answer.
    pub lun_reset: bool,
    /// Time for LOGICAL UNIT RESET; then the session ends. Default 30 s: the unit has all its commands to
    /// end, and may have to start its medium.
    pub logical_unit_reset_timeout: Duration,
    /// Whether Data-Out of a command stops as soon as its abort, or a function that reaches it, is asked for.
    /// Default off: RFC 7143 4.2.3.2 wants R2Ts to be answered until the function is. Some targets answer
    /// sooner without.
    pub fast_abort: bool,
    /// Time for the target to answer a task management function that the user asked for; then the session
    /// ends. Default 15 s, as for `abort_timeout`.
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
            ping_interval: Some(Duration::from_secs(2)),
            ping_timeout: Duration::from_secs(5),
            abort_timeout: Duration::from_secs(15),
            lun_reset: true,
            logical_unit_reset_timeout: Duration::from_secs(30),
            fast_abort: false,
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

//! What a volume is told when it is brought up or changed, and what it tells about itself.

use std::sync::Arc;
use std::time::Duration;

use berth_api::Error;
use berth_api::types::PathState;
use berth_iscsi::login::LoginConfig;
use berth_iscsi::name::Portal;
use berth_iscsi::net::{ConnectOptions, Network};
use berth_iscsi::scsi::alua::AccessState;
use berth_iscsi::types::{Isid, Lun};

pub use crate::block::lun::CacheLossPolicy;
use crate::block::lun::reservation::{Claim, Key};
use crate::nbd;
use crate::volume::intent::KnownIdentity;

/// How to bring a volume up.
#[derive(Debug, Clone)]
pub struct VolumeSpec {
    /// Name of the attachment, for logs.
    pub name: String,
    /// How its portals are reached.
    pub network: Arc<dyn Network>,
    /// Name of the target, for messages.
    pub target: String,
    /// The paths, one for each portal, in the order in which they were asked for. At least one is not
    /// retired.
    pub paths: Vec<PathSpec>,
    /// Who logs in where, with what offer. Its ISID is that of the first path; each path has its own.
    pub login: LoginConfig,
    /// Times and limits of connections and sessions.
    pub connect: ConnectOptions,
    /// The logical unit.
    pub lun: Lun,
    /// Refuse writes whatever the unit allows.
    pub read_only: bool,
    /// What the unit was when it was attached for the first time; any other is refused before anything
    /// is written. `None`: it never was attached.
    pub expected_identity: Option<KnownIdentity>,
    /// Sessions of an earlier life may still have commands under way: no write is sent before the
    /// session of every path was reinstated, or is taken for gone (`stale_session_timeout`).
    pub unclean: bool,
    /// How other nodes are kept from writing; `None`: they are not.
    pub fence: Option<FenceSpec>,
    /// I/O waits for so long while no path works, then it fails; `None`: for ever.
    pub recovery_timeout: Option<Duration>,
    /// After so long a session whose target cannot be reached is taken for gone, with all that it had
    /// under way; `None`: never.
    pub stale_session_timeout: Option<Duration>,
    /// Pause before a lost path is tried again; doubled with each failure, and with jitter.
    pub retry_first: Duration,
    /// The longest such pause.
    pub retry_max: Duration,
    /// Seed of the jitter; the only randomness there is.
    pub seed: u64,
    /// What is done when the unit lost a write cache with unflushed writes.
    pub cache_loss: CacheLossPolicy,
    /// Most commands in flight on one path; a full or busy target lowers what is used.
    pub queue_depth_max: u32,
    /// A SCSI command must be answered within this time.
    pub command_timeout: Duration,
    /// I/O in flight is finished and the sessions are closed within this time at the end.
    pub logout_timeout: Duration,
    /// Bounds of each NBD connection.
    pub nbd: nbd::transmission::Limits,
    /// Memory for what the kernel writes to the volume's device, in bytes: made with its first connection, and kept.
    pub receive_pool_bytes: usize,
}

/// One path: a portal, and a session of our own with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathSpec {
    /// Its number in the attachment; never given to another path while the attachment lives.
    pub index: u16,
    /// Where the target listens.
    pub portal: Portal,
    /// The ISID of its session; made from `index`, and the same for ever.
    pub isid: Isid,
    /// The portal group that the target named at the last login here.
    pub known_group: Option<u16>,
    /// It was taken away: no I/O goes over it. It is listed because its session may still have commands
    /// under way ([`VolumeSpec::unclean`]), and ends when that session is gone.
    pub retired: bool,
}

/// A fence by persistent reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FenceSpec {
    /// The key that every path registers.
    pub key: Key,
    /// What may be taken, and from whom. For the first path that comes up; later ones join it.
    pub claim: Claim,
}

/// What is changed while a volume is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reconfigure {
    /// The new recovery timeout, counted from when the last path was lost; `None`: for ever.
    pub recovery_timeout: Option<Duration>,
    /// All paths that it is to have. What is not listed and not retired yet is new; what is retired is
    /// drained, logged out and forgotten. Answered once new paths are being tried and retired ones take
    /// no more I/O.
    pub paths: Vec<PathSpec>,
}

/// Why a volume ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// It is not wanted here any more: its reservation is given back.
    Detach,
    /// It comes back (the daemon stops, or tries anew): its reservation stays, so that nobody else gets it
    /// meanwhile without asking for that.
    Stop,
}

/// How a volume stands, for its owner; each change wakes the owner, quick ones may be seen as one.
#[derive(Debug, Clone)]
pub struct VolumeStatus {
    /// Whether I/O works.
    pub health: VolumeHealth,
    /// Its paths, by index. Retired ones are listed until their session is gone.
    pub paths: Vec<PathStatus>,
    /// Resets of the unit that may have lost writes which were not flushed, so far.
    pub cache_losses: u64,
}

/// Whether a volume's I/O works.
#[derive(Debug, Clone)]
pub enum VolumeHealth {
    /// At least one path takes I/O.
    Up,
    /// No path does.
    Recovering {
        /// Since when, in milliseconds of Unix time.
        since_unix_ms: u64,
        /// Why the path that was lost last was lost, or what its last attempt met.
        reason: Error,
        /// The recovery timeout is over: I/O fails at once until a path is back.
        io_fails: bool,
    },
    /// It never will again: fenced (`fenced`), or the unit is another one (`identity-mismatch`). All I/O
    /// fails and nothing is sent.
    Failed {
        /// Why.
        reason: Error,
    },
}

/// How a path stands.
#[derive(Debug, Clone)]
pub struct PathStatus {
    /// Its number in the attachment.
    pub index: u16,
    /// Its portal.
    pub portal: Portal,
    /// Whether it works.
    pub state: PathState,
    /// Since when it is in this state, in milliseconds of Unix time.
    pub since_unix_ms: u64,
    /// Why it does not work.
    pub reason: Option<Error>,
    /// The portal group that the target named at login.
    pub portal_group: Option<u16>,
    /// It was taken away and ends when its session is gone.
    pub retired: bool,
}

/// Everything there is to see of a path.
#[derive(Debug, Clone)]
pub struct PathView {
    /// How it stands.
    pub status: PathStatus,
    /// The state of its target port group (SPC-4 5.15); `None` where the target has no such groups.
    pub access: Option<AccessState>,
    /// The target would rather be used through it.
    pub preferred: bool,
    /// Commands in flight.
    pub in_flight: u32,
    /// Most commands that are sent at a time, as learned from a full or busy target.
    pub queue_depth: u32,
    /// Recent mean time from command to answer, in microseconds; 0 until there was one.
    pub service_time_us: u64,
    /// Times that it was lost or could not be brought up.
    pub failures: u64,
    /// Its session, while there is one.
    pub session: Option<SessionView>,
}

/// A session, for people.
#[derive(Debug, Clone)]
pub struct SessionView {
    /// The portal that was asked for, as `host:port`.
    pub portal: String,
    /// Our part of the session's identifier.
    pub isid: Isid,
    /// The target's part.
    pub tsih: u16,
    /// Connection ID.
    pub cid: u16,
    /// Target portal group.
    pub portal_group_tag: Option<u16>,
    /// Our end of the connection.
    pub local: String,
    /// The target's end.
    pub peer: String,
    /// When it was logged in.
    pub since_unix_ms: u64,
    /// What login settled, by the names of RFC 7143 13.
    pub negotiated: Vec<(String, String)>,
}

/// What recovery had to do. Counts only grow while the volume is up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecoveryCounters {
    /// Sessions that ended without being asked to.
    pub sessions_lost: u64,
    /// Sessions that were set up again.
    pub sessions_reinstated: u64,
    /// Commands that were sent a second time, or more often.
    pub commands_resent: u64,
    /// Writes whose fate was unknown, and which therefore waited for the end of their session.
    pub ghosts: u64,
    /// Such writes that wait now.
    pub ghosts_waiting: u64,
    /// Times that no path took I/O.
    pub stalls: u64,
    /// The longest of these times, in milliseconds; counts the present one too.
    pub stall_longest_ms: u64,
    /// Resets of a unit that had a volatile cache with unflushed writes.
    pub cache_losses: u64,
    /// Requests that failed because the recovery timeout was over.
    pub requests_timed_out: u64,
    /// ABORT TASK that were sent.
    pub aborts: u64,
    /// LOGICAL UNIT RESET that were sent.
    pub lun_resets: u64,
    /// Commands that the target refused with RESERVATION CONFLICT.
    pub reservation_conflicts: u64,
}

//! A volume from outside of its thread: attach, hand over connections, look, detach.

use std::sync::Arc;
use std::time::Duration;

use berth_api::Error;
use berth_api::types::Identity;
use tokio::sync::{mpsc, oneshot, watch};

use super::local;
use super::spec::{
    Leave, PathView, Reconfigure, RecoveryCounters, VolumeHealth, VolumeSpec, VolumeStatus,
};
use super::thread::Place;
use crate::block::Geometry;
use crate::block::fault::FaultSwitches;
use crate::block::stats::IoStats;
use crate::nbd;
use crate::volume::intent::KnownIdentity;

/// Commands that may wait for one volume's task; connections handed over are the most of them.
const COMMANDS_MAX: usize = 256;
/// A look at a volume that is not answered in this time is not answered at all.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(1);

/// What is known once a volume is up.
#[derive(Debug, Clone)]
pub struct Ready {
    /// What the unit says it is, for comparison after a restart.
    pub identity: Option<KnownIdentity>,
    /// The same for people.
    pub facts: Identity,
}

/// How a volume stands at this moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Its paths, by index.
    pub paths: Vec<PathView>,
    /// NBD connections that have it open.
    pub clients: u32,
    /// SCSI commands sent.
    pub commands: u64,
    /// Digests that were checked.
    pub digests_checked: u64,
    /// Digests that were wrong.
    pub digest_errors: u64,
    /// What recovery had to do.
    pub recovery: RecoveryCounters,
}

/// How a volume ended.
#[derive(Debug, Clone)]
pub enum Ended {
    /// On request.
    Detached {
        /// Nothing of it is left at the target: every session was logged out.
        clean: bool,
    },
    /// It cannot go on: another node took it over, or it is another unit.
    Failed(Error),
}

/// The volume is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InUse {
    /// Number of NBD connections.
    pub clients: u32,
}

/// What a volume's task is asked for.
pub(super) enum VolumeCommand {
    Serve(Box<nbd::connection::Handover>),
    /// The connection of the volume's kernel device; it is no client that keeps the volume open.
    ServeKernel {
        handover: Box<nbd::connection::Handover>,
        ended: oneshot::Sender<nbd::connection::End>,
    },
    Snapshot(oneshot::Sender<Snapshot>),
    Configure {
        change: Reconfigure,
        answer: oneshot::Sender<Result<(), Error>>,
    },
    BeginDetach {
        force: bool,
        answer: oneshot::Sender<Result<(), InUse>>,
    },
    /// Undoes [`VolumeCommand::BeginDetach`].
    KeepOn,
    /// [`Volume::fence`].
    Fence(Error),
    End(Leave),
}

/// A path, by its index, and the tag of the portal group that its session is with.
pub type PathGroup = (u16, u16);

/// What the volume's task and its owner share.
pub(super) struct Shared {
    pub(super) stats: Arc<IoStats>,
    pub(super) faults: Arc<FaultSwitches>,
    pub(super) geometry: watch::Sender<Option<Geometry>>,
    pub(super) status: watch::Sender<VolumeStatus>,
    pub(super) ended: watch::Sender<Option<Ended>>,
    /// Portal groups of paths that the owner has written down.
    pub(super) kept_groups: watch::Sender<Vec<PathGroup>>,
}

/// A volume that is up. Dropping it ends it at once; [`Volume::end`] does so in good order.
pub struct Volume {
    commands: mpsc::Sender<VolumeCommand>,
    shared: Arc<Shared>,
    ready: Ready,
    _place: Place,
}

impl Volume {
    /// Connects, logs in, finds out what the unit is, and makes it ready to serve. Dropping the future
    /// ends the attempt.
    ///
    /// # Errors
    /// What the first portal said when every path failed; or at once when the reason will not pass.
    pub async fn attach(place: Place, spec: VolumeSpec) -> Result<Self, Error> {
        let (commands, queue) = mpsc::channel(COMMANDS_MAX);
        let (up, ready) = oneshot::channel();
        let kept = spec.paths.iter();
        let kept = kept.filter_map(|path| Some((path.index, path.known_group?)));
        let kept = kept.collect();
        let shared = Arc::new(Shared {
            stats: Arc::default(),
            faults: Arc::default(),
            geometry: watch::Sender::new(None),
            status: watch::Sender::new(VolumeStatus {
                health: VolumeHealth::Up,
                paths: Vec::new(),
                cache_losses: 0,
            }),
            ended: watch::Sender::new(None),
            kept_groups: watch::Sender::new(kept),
        });
        let theirs = Arc::clone(&shared);
        let stopped = |_| Error::internal("the data plane has stopped");
        place
            .thread()
            .spawn(move || local::run(spec, queue, up, theirs))
            .await
            .map_err(|stopped| Error::internal(stopped.to_string()))?;
        let ready = ready.await.map_err(stopped)??;
        Ok(Self {
            commands,
            shared,
            ready,
            _place: place,
        })
    }

    /// What was found at bring-up.
    #[must_use]
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Size, limits and abilities, as of now.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.shared
            .geometry
            .borrow()
            .clone()
            .expect("known before the volume is ready")
    }

    /// The same, and whenever it changes.
    #[must_use]
    pub fn geometry_changes(&self) -> watch::Receiver<Option<Geometry>> {
        self.shared.geometry.subscribe()
    }

    /// Counters of its I/O.
    #[must_use]
    pub fn stats(&self) -> &Arc<IoStats> {
        &self.shared.stats
    }

    /// Switches that make its requests fail.
    #[must_use]
    pub fn faults(&self) -> &Arc<FaultSwitches> {
        &self.shared.faults
    }

    /// Lets the volume serve an NBD connection. When it cannot (it is ending, or far too many wait)
    /// the connection is closed.
    pub fn serve(&self, handover: nbd::connection::Handover) {
        let _ = self
            .commands
            .try_send(VolumeCommand::Serve(Box::new(handover)));
    }

    /// Lets the volume serve the connection of its kernel device. Says how that ended once it has; without a
    /// word when it could not be served.
    pub fn serve_kernel(
        &self,
        handover: nbd::connection::Handover,
    ) -> oneshot::Receiver<nbd::connection::End> {
        let (ended, receiver) = oneshot::channel();
        let handover = Box::new(handover);
        let _ = self
            .commands
            .try_send(VolumeCommand::ServeKernel { handover, ended });
        receiver
    }

    /// How it stands; `None` when it has ended or does not answer at once.
    pub async fn snapshot(&self) -> Option<Snapshot> {
        let (sender, receiver) = oneshot::channel();
        let look = async {
            self.commands
                .send(VolumeCommand::Snapshot(sender))
                .await
                .ok()?;
            receiver.await.ok()
        };
        tokio::time::timeout(SNAPSHOT_TIMEOUT, look).await.ok()?
    }

    /// How it stands, from now on.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<VolumeStatus> {
        self.shared.status.subscribe()
    }

    /// Takes note of the portal groups that the owner has written down, of all paths. A path is not used
    /// before: a login of the next life ends the path's session only in the same group (RFC 7143 4.4.1), so
    /// that life must know which one it is. [`VolumeStatus::paths`] tells what is to be written down.
    pub fn set_kept_groups(&self, groups: Vec<PathGroup>) {
        self.shared.kept_groups.send_if_modified(|kept| {
            let changed = *kept != groups;
            *kept = groups;
            changed
        });
    }

    /// Changes it while it is up.
    ///
    /// # Errors
    /// When it has ended.
    pub async fn configure(&self, change: Reconfigure) -> Result<(), Error> {
        let ended = || Error::internal("the volume has ended meanwhile");
        let (answer, receiver) = oneshot::channel();
        self.commands
            .send(VolumeCommand::Configure { change, answer })
            .await
            .map_err(|_| ended())?;
        receiver.await.map_err(|_| ended())?
    }

    /// Takes no more NBD connections, unless some are open and `force` is not set. That of the kernel device
    /// does not count: who has the device open is another question.
    ///
    /// # Errors
    /// When it is open; nothing has changed then.
    pub async fn begin_detach(&self, force: bool) -> Result<(), InUse> {
        let (answer, receiver) = oneshot::channel();
        if self
            .commands
            .send(VolumeCommand::BeginDetach { force, answer })
            .await
            .is_err()
        {
            return Ok(()); // It has ended already.
        }
        receiver.await.unwrap_or(Ok(()))
    }

    /// It is not detached after all: takes NBD connections again.
    pub async fn keep_on(&self) {
        let _ = self.commands.send(VolumeCommand::KeepOn).await;
    }

    /// It is not this node's any more: all I/O fails from now on, nothing is sent to the unit, and `reason` is what its
    /// status says.
    pub async fn fence(&self, reason: Error) {
        let _ = self.commands.send(VolumeCommand::Fence(reason)).await;
    }

    /// Ends it in good order: I/O in flight is finished, the cache is flushed, the reservation is given back
    /// if it is not to stay, sessions are logged out; all within the logout timeout. Returns when it is gone,
    /// with whether nothing of it is left at the target.
    pub async fn end(&self, leave: Leave) -> bool {
        let _ = self.commands.send(VolumeCommand::End(leave)).await;
        matches!(self.wait_ended().await, Ended::Detached { clean: true })
    }

    /// Waits until it has ended, and says how.
    pub async fn wait_ended(&self) -> Ended {
        let mut ended = self.shared.ended.subscribe();
        match ended.wait_for(Option::is_some).await {
            Ok(ended) => ended.clone().unwrap_or(Ended::Detached { clean: false }),
            Err(_) => Ended::Detached { clean: false },
        }
    }
}

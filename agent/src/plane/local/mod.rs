//! A volume on its thread: the paths, the layers, the NBD connections.
//!
//! ```text
//! nbd::connection (one task each) -> Client -> Hub -> stats -> align -> split -> fault -> Lun -> paths
//!        ^                                      |                                                |
//!        +---- completions, waker --------------+ <- pump <- on_events <- Driver (a task each) <-+
//!
//! PathTask (one each): sessions          keeper: timers, status
//! ```

mod bring_up;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use berth_api::Error;
use berth_iobuf::ReceiveBuffer;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use super::context::Context;
use super::handle::{Live, Orders, PathHandle};
use super::path::{FirstAttempt, PathTask};
use super::session::{self, Old};
use super::spec::{Leave, PathSpec, Reconfigure, VolumeSpec};
use super::volume::{Ended, InUse, Ready, Shared, VolumeCommand};
use crate::block::lun::reservation;
use crate::block::{Client, Completion, Op, Request};
use crate::nbd;
use crate::nbd::connection::{End, Handover, Stop};
use crate::volume::failure;

/// Time for the end of connections to be noticed before an export counts as open.
const GOODBYE_LIMIT: Duration = Duration::from_millis(500);
/// Time for clients to take the last answers of a volume that cannot go on.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// Brings a volume up, serves it until it ends, and says how it ended.
pub(super) async fn run(
    spec: VolumeSpec,
    commands: mpsc::Receiver<VolumeCommand>,
    mut ready: oneshot::Sender<Result<Ready, Error>>,
    shared: Arc<Shared>,
) {
    let up = tokio::select! {
        biased;
        up = bring_up::bring_up(spec, &shared) => up,
        // The attempt was given up.
        () = ready.closed() => return,
    };
    let (volume, facts) = match up {
        Ok(up) => up,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    let ended = if ready.send(Ok(facts)).is_ok() {
        volume.serve(commands).await
    } else {
        // Given up at the last moment: what was ours before stays so, the rest is given back.
        let resumed = volume
            .context
            .spec
            .fence
            .is_some_and(|fence| fence.claim == reservation::Claim::Resume);
        let leave = if resumed { Leave::Stop } else { Leave::Detach };
        volume.end(leave).await
    };
    shared.ended.send_replace(Some(ended));
}

/// A volume that is up.
struct LocalVolume {
    context: Rc<Context>,
    /// Each ends with whether nothing of its path is left at the target.
    paths: JoinSet<(u16, bool)>,
    /// Paths of which something may be left.
    unclean: bool,
    keeper: JoinHandle<()>,
    connections: JoinSet<End>,
    /// Of the kernel device; each ends with what it has received in.
    kernel: JoinSet<ReceiveBuffer>,
    /// What the next connection of the kernel device receives in, once one has ended. Kept, because there may
    /// be no other memory then.
    receive_pool: Option<ReceiveBuffer>,
    stop: Stop,
    /// No new connections: it is being taken away.
    ending: bool,
    /// I/O in flight has no claim to be finished.
    forced: bool,
}

impl LocalVolume {
    fn add_path(&mut self, spec: &PathSpec, haunted: bool, first: Option<FirstAttempt>) {
        let context = &self.context;
        context.board.add(spec);
        let handle = PathHandle {
            id: context.lun.add_path(haunted),
            spec: spec.clone(),
            orders: Rc::<Orders>::default(),
            live: Rc::<Live>::default(),
        };
        let task = PathTask {
            volume: Rc::clone(context),
            spec: spec.clone(),
            id: handle.id,
            orders: Rc::clone(&handle.orders),
            live: Rc::clone(&handle.live),
        };
        context.paths.borrow_mut().push(handle);
        let first = first.unwrap_or_else(|| {
            let (context, spec) = (Rc::clone(context), spec.clone());
            Box::pin(async move { session::open(&context.spec, &spec, Old::default()).await })
        });
        let index = spec.index;
        self.paths
            .spawn_local(async move { (index, task.run(first).await) });
    }

    /// Serves until it is told to end or cannot go on.
    async fn serve(mut self, mut commands: mpsc::Receiver<VolumeCommand>) -> Ended {
        let context = Rc::clone(&self.context);
        loop {
            let command = tokio::select! {
                biased;
                () = context.over.notified() => return self.give_up().await,
                command = commands.recv() => command,
                Some(end) = self.connections.join_next() => {
                    log_end(&context.spec.name, end);
                    continue;
                }
                Some(end) = self.kernel.join_next() => {
                    self.receive_pool = end.ok();
                    continue;
                }
                Some(end) = self.paths.join_next() => {
                    self.on_path_end(end);
                    continue;
                }
            };
            match command {
                Some(VolumeCommand::Serve(handover)) => self.serve_client(*handover),
                Some(VolumeCommand::ServeKernel { handover, ended }) => {
                    self.serve_kernel(*handover, ended);
                }
                Some(VolumeCommand::Snapshot(answer)) => {
                    let kernel = u32::from(!self.kernel.is_empty());
                    let _ = answer.send(context.snapshot(self.clients() + kernel));
                }
                Some(VolumeCommand::Configure { change, answer }) => {
                    self.configure(change);
                    let _ = answer.send(Ok(()));
                }
                Some(VolumeCommand::BeginDetach { force, answer }) => {
                    if !force {
                        self.wait_for_goodbyes().await;
                    }
                    let clients = self.clients();
                    if clients > 0 && !force {
                        let _ = answer.send(Err(InUse { clients }));
                    } else {
                        self.ending = true;
                        self.forced = force;
                        let _ = answer.send(Ok(()));
                    }
                }
                Some(VolumeCommand::KeepOn) => {
                    self.ending = false;
                    self.forced = false;
                }
                Some(VolumeCommand::Fence(reason)) => {
                    self.context.end(crate::block::Error::Fenced, reason);
                }
                Some(VolumeCommand::End(leave)) => return self.end(leave).await,
                // Dropped without a word, as when the daemon dies: what is kept says that it comes back.
                None => return self.end(Leave::Stop).await,
            }
        }
    }

    /// Changes what may be changed while it serves.
    fn configure(&mut self, change: Reconfigure) {
        let context = Rc::clone(&self.context);
        context.lun.set_recovery_timeout(change.recovery_timeout);
        let by = Instant::now() + context.spec.logout_timeout;
        let mut known = Vec::new();
        for path in context.paths.borrow_mut().iter_mut() {
            known.push(path.spec.index);
            let kept = change
                .paths
                .iter()
                .any(|wanted| wanted.index == path.spec.index && !wanted.retired);
            if !kept && !path.spec.retired {
                path.spec.retired = true;
                context.board.retire(path.spec.index);
                path.orders.stop(by);
            }
        }
        for path in change.paths {
            if !path.retired && !known.contains(&path.index) {
                self.add_path(&path, false, None);
            }
        }
    }

    /// A path's task has ended: it was told to, or it can never work again.
    fn on_path_end(&mut self, end: Result<(u16, bool), tokio::task::JoinError>) {
        let (index, clean) = match end {
            Ok(end) => end,
            Err(error) => {
                tracing::error!(volume = self.context.spec.name, %error, "a path's task failed");
                self.unclean = true;
                return;
            }
        };
        self.unclean |= !clean;
        let mut paths = self.context.paths.borrow_mut();
        let Some(at) = paths.iter().position(|path| path.spec.index == index) else {
            return;
        };
        // A failed path stays on the board, for people; one whose old session may live on stays a haunt.
        if paths[at].spec.retired && clean {
            let path = paths.remove(at);
            drop(paths);
            self.context.lun.remove_path(path.id);
            self.context.board.remove(index);
        }
    }

    /// Gives clients that have just disconnected the moment that it takes to notice: a script that
    /// copies and then detaches must not be told that the export is open.
    async fn wait_for_goodbyes(&mut self) {
        let deadline = Instant::now() + GOODBYE_LIMIT;
        while let Ok(Some(end)) =
            tokio::time::timeout_at(deadline, self.connections.join_next()).await
        {
            log_end(&self.context.spec.name, end);
        }
    }

    fn clients(&self) -> u32 {
        u32::try_from(self.connections.len()).unwrap_or(u32::MAX)
    }

    fn serve_client(&mut self, handover: Handover) {
        if self.ending {
            return; // Dropping it closes the connection.
        }
        let client = Client::new(Rc::clone(&self.context.hub));
        let limits = self.context.spec.nbd;
        let serve = nbd::connection::serve(handover, client, limits, self.stop.clone());
        self.connections.spawn_local(async { serve.await.0 });
    }

    fn serve_kernel(&mut self, mut handover: Handover, ended: oneshot::Sender<End>) {
        // Whoever hands in the next one knows of the last one's end, perhaps before we do.
        while let Some(end) = self.kernel.try_join_next() {
            self.receive_pool = end.ok();
        }
        let pool_bytes = self.context.spec.receive_pool_bytes;
        handover.input = self
            .receive_pool
            .take()
            .unwrap_or_else(|| ReceiveBuffer::with_pool(pool_bytes));
        let client = Client::new(Rc::clone(&self.context.hub));
        let limits = self.context.spec.nbd;
        let serve = nbd::connection::serve(handover, client, limits, self.stop.clone());
        let volume = self.context.spec.name.clone();
        self.kernel.spawn_local(async move {
            let (end, pool) = serve.await;
            tracing::info!(volume, %end, "the connection of the kernel device ended");
            // Whoever asked may have gone.
            let _ = ended.send(end);
            pool
        });
    }

    /// It cannot go on: every request was answered with an error; clients get these answers before the end.
    async fn give_up(mut self) -> Ended {
        self.context.hub.borrow_mut().pump();
        self.context.hub.borrow_mut().close();
        self.stop.drain();
        // The connections end by themselves once their clients have the answers.
        let mut connections = std::mem::take(&mut self.connections);
        let mut kernel = std::mem::take(&mut self.kernel);
        tokio::task::spawn_local(async move {
            let all = async {
                while connections.join_next().await.is_some() {}
                while kernel.join_next().await.is_some() {}
            };
            let _ = tokio::time::timeout(LAST_ANSWERS, all).await;
        });
        // Users of the device get their errors after this. A session that is left is ended by the next attach.
        self.stop_paths(Instant::now() + LAST_WORDS).await;
        let failed = self.context.board.failed();
        Ended::Failed(failed.unwrap_or_else(|| failure::lost("the volume cannot go on")))
    }

    /// Ends in good order: answers what is in flight, flushes the unit's cache, gives the reservation back,
    /// logs out.
    async fn end(mut self, leave: Leave) -> Ended {
        let context = Rc::clone(&self.context);
        let deadline = Instant::now() + context.spec.logout_timeout;
        self.stop.drain();
        if self.forced || !self.drain_until(deadline).await {
            tracing::warn!(volume = context.spec.name, "I/O in flight is given up");
            self.stop.cut();
            context.lun.fail_all(crate::block::Error::Gone);
            context.hub.borrow_mut().pump();
        }
        // With I/O given up there is no claim to much more time, nor none at all.
        let last_words = Instant::now() + LAST_WORDS;
        let deadline = if self.forced {
            last_words
        } else {
            deadline.max(last_words)
        };
        if context.lun.can_flush() {
            // A client that did not flush has no claim to it, but it costs little.
            let _ = tokio::time::timeout_at(deadline, flush_last(&context)).await;
        }
        if leave == Leave::Detach {
            context.release(deadline).await;
        }
        self.stop_paths(deadline).await;
        let clean = !self.unclean;
        tracing::info!(volume = context.spec.name, clean, "volume ended");
        Ended::Detached { clean }
    }

    /// Waits for the connections to end. Returns whether they did.
    async fn drain_until(&mut self, deadline: Instant) -> bool {
        let drained = async {
            while self.connections.join_next().await.is_some() {}
            while self.kernel.join_next().await.is_some() {}
        };
        tokio::time::timeout_at(deadline, drained).await.is_ok()
    }

    /// Ends all paths, at the deadline at the latest.
    async fn stop_paths(&mut self, deadline: Instant) {
        for path in self.context.paths.borrow().iter() {
            path.orders.stop(deadline);
        }
        while let Some(end) = self.paths.join_next().await {
            self.on_path_end(end);
        }
        self.keeper.abort();
    }
}

impl Drop for LocalVolume {
    fn drop(&mut self) {
        // The keeper holds the context, which would outlive everything else.
        self.keeper.abort();
    }
}

/// Makes durable what clients wrote and did not flush; on whatever path, after whatever happens meanwhile.
async fn flush_last(context: &Context) {
    let client = Client::new(Rc::clone(&context.hub));
    client.submit(Request {
        id: 0,
        op: Op::Flush,
    });
    let answer = std::future::poll_fn(|cx| client.poll_complete(cx)).await;
    if let Some(Completion {
        result: Err(error), ..
    }) = answer
    {
        tracing::warn!(volume = context.spec.name, %error, "the last flush failed");
    }
}

/// Least time for the last words to a target, when I/O used up the logout timeout.
const LAST_WORDS: Duration = Duration::from_secs(2);

fn log_end(volume: &str, end: Result<End, tokio::task::JoinError>) {
    match end {
        Ok(end @ (End::Disconnected | End::Drained)) => {
            tracing::debug!(volume, %end, "NBD connection ended");
        }
        Ok(end) => tracing::info!(volume, %end, "NBD connection ended"),
        Err(error) => tracing::error!(volume, %error, "NBD connection task failed"),
    }
}

//! The life of one attachment, owned by one task.
//!
//! ```text
//!              attach              up                    detach
//!   (absent) ---------> connecting ----> attached ------------------> detaching --> (absent)
//!                        |     ^           ^  | no path works            ^
//!                        |     |           |  v                          |
//!                        |     | attach   recovering -- detach ----------+
//!                        v     |              | fenced, another unit     |
//!                        failed <-------------+ ---------- detach -------+
//! ```
//!
//! Sessions come and go below, in the data plane; here it only shows whether any path works.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use berth_api::events::EventLog;
use berth_api::types::{
    AttachRequest, AttachmentPatch, AttachmentState, EventKind, Fence, NewEvent, Reason,
    RecoveryTimeout, Source, unix_ms_now,
};
use berth_api::{AttachmentName, Code, Error};
use tokio::sync::{mpsc, oneshot, watch};

use super::attempt::{Prepared, Terms, attempt, lost_before};
use super::device::Served;
use super::intent::{Intent, Intents};
use super::left::Leftovers;
use super::provision::{FabricAccess, Located};
use super::serving::ChangeAnswer;
use crate::block::lun::reservation::{Key, NodeId};
use crate::nbd::kernel::KernelNbd;
use crate::plane::{DataPlane, Volume, VolumeSpec};

/// Calls that may wait for one attachment's task.
const CALLS_MAX: usize = 64;
/// Pauses between attempts to take an attachment on again after a restart of the daemon.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// An attachment, from outside of its task.
#[derive(Clone)]
pub(super) struct Attachment {
    calls: mpsc::Sender<Call>,
    pub(super) view: watch::Receiver<View>,
}

/// How an attachment stands.
#[derive(Clone)]
pub(super) struct View {
    /// What was asked for, as changed since.
    pub(super) request: Arc<AttachRequest>,
    /// What it registers with, if it is fenced by reservation.
    pub(super) reservation_key: Option<Key>,
    pub(super) state: AttachmentState,
    pub(super) since_unix_ms: u64,
    pub(super) reason: Option<Reason>,
    /// There while attached.
    pub(super) volume: Option<Arc<Volume>>,
    /// Its kernel device, as `/dev/nbd3`.
    pub(super) device: Option<String>,
    /// Why there is none, where one was wanted.
    pub(super) device_detail: Option<String>,
    /// Times that a session was set up.
    pub(super) attached_times: u64,
}

pub(super) enum Call {
    Attach {
        takeover: bool,
        answer: oneshot::Sender<Result<(), Error>>,
    },
    Change {
        patch: Box<AttachmentPatch>,
        answer: ChangeAnswer,
    },
    Detach {
        force: bool,
        answer: oneshot::Sender<Result<(), Error>>,
    },
    /// The daemon stops: finish I/O and log out, keep the intent.
    Stop(oneshot::Sender<()>),
}

/// Why the task is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// A call asked for it: the first failure is the answer.
    Asked,
    /// The intent was there when the daemon started: try until it works or is detached.
    Restored,
}

/// Makes the plan for the data plane out of an intent.
pub(crate) type MakeSpec = Box<dyn Fn(&AttachmentName, &Intent, Terms) -> VolumeSpec + Send + Sync>;

/// What the task needs from the daemon.
pub(super) struct Context {
    pub(super) intents: Arc<Intents>,
    /// What detaches left on targets.
    pub(super) left: Arc<Leftovers>,
    pub(super) plane: Arc<DataPlane>,
    pub(super) events: Arc<EventLog>,
    pub(super) spec: MakeSpec,
    /// Kernel devices of this node.
    pub(super) kernel: KernelNbd,
    /// The node's number in reservation keys.
    pub(super) node_id: NodeId,
    /// The storage fabric, if one is configured.
    pub(super) fabric: Option<FabricAccess>,
    /// For attachments that do not say how long I/O waits.
    pub(super) recovery_timeout: RecoveryTimeout,
    /// Called when the attachment is gone, before anybody is told so.
    pub(super) forget: Box<dyn Fn(&AttachmentName) + Send + Sync>,
}

impl Attachment {
    /// Starts the task of an attachment.
    pub(super) fn spawn(
        name: AttachmentName,
        intent: Intent,
        origin: Origin,
        context: Arc<Context>,
    ) -> Self {
        let (calls, queue) = mpsc::channel(CALLS_MAX);
        let (view_sender, view) = watch::channel(View {
            request: Arc::new(intent.request.clone()),
            reservation_key: None,
            state: AttachmentState::Connecting,
            since_unix_ms: unix_ms_now(),
            reason: None,
            volume: None,
            device: None,
            device_detail: None,
            attached_times: 0,
        });
        let task = Task {
            name,
            intent,
            context,
            calls: queue,
            view: view_sender,
            waiting: Vec::new(),
            takeover: false,
            detaching: VecDeque::new(),
            forced: false,
            unasked: origin == Origin::Restored,
            trying_since: None,
            device: None,
        };
        tokio::spawn(task.run(origin));
        Self { calls, view }
    }

    async fn call<T>(&self, make: impl FnOnce(oneshot::Sender<T>) -> Call) -> Option<T> {
        let (sender, receiver) = oneshot::channel();
        self.calls.send(make(sender)).await.ok()?;
        receiver.await.ok()
    }

    /// Waits until it is attached or has failed; `takeover`: from whoever holds it. `None`: it is gone.
    pub(super) async fn attach(&self, takeover: bool) -> Option<Result<(), Error>> {
        self.call(|answer| Call::Attach { takeover, answer }).await
    }

    /// Changes it. `None`: it is gone.
    pub(super) async fn change(&self, patch: AttachmentPatch) -> Option<Result<(), Error>> {
        let patch = Box::new(patch);
        self.call(|answer| Call::Change { patch, answer }).await
    }

    /// Takes it away. `None`: it was gone already.
    pub(super) async fn detach(&self, force: bool) -> Option<Result<(), Error>> {
        self.call(|answer| Call::Detach { force, answer }).await
    }

    /// Ends its task and keeps the intent.
    pub(super) async fn stop(&self) {
        let _ = self.call(Call::Stop).await;
    }
}

pub(super) struct Task {
    pub(super) name: AttachmentName,
    pub(super) intent: Intent,
    pub(super) context: Arc<Context>,
    pub(super) calls: mpsc::Receiver<Call>,
    pub(super) view: watch::Sender<View>,
    /// Who waits for the attach under way.
    pub(super) waiting: Vec<oneshot::Sender<Result<(), Error>>>,
    /// One of them asked for a takeover.
    pub(super) takeover: bool,
    /// Who waits for the detach under way.
    pub(super) detaching: VecDeque<oneshot::Sender<Result<(), Error>>>,
    /// One of them said that it has to be.
    pub(super) forced: bool,
    /// Nobody has asked for it since the daemon started: the fabric is not asked to admit this node again.
    pub(super) unasked: bool,
    /// Since when attempts are made to bring it up.
    pub(super) trying_since: Option<tokio::time::Instant>,
    /// The kernel device, while a volume serves it.
    pub(super) device: Option<Served>,
}

/// What the task does next.
pub(super) enum Next {
    Connect { retry: bool },
    Attached(Arc<Volume>),
    Failed(Error),
    Detach,
    Stop(oneshot::Sender<()>),
}

impl Task {
    async fn run(mut self, origin: Origin) {
        if origin == Origin::Asked
            && let Err(error) = self.keep_first().await
        {
            // Nothing was promised and nothing was done: as if it had never been asked for.
            self.answer_waiting(&Err(error.clone()));
            (self.context.forget)(&self.name);
            return self.drain(&error);
        }
        let mut next = if origin == Origin::Restored && lost_before(&self.intent) {
            // Whoever took it may still have it, or may have written to it: that is for people to say.
            let detail = "another node took the volume over, or this node was shut out of it, or it was deleted, before \
                          the daemon was started; attach it again if it is to be used here";
            Next::Failed(Error::new(Code::Fenced, detail).with_attachment(&self.name))
        } else if self.intent.leaving {
            Next::Detach
        } else {
            Next::Connect {
                retry: origin == Origin::Restored,
            }
        };
        loop {
            next = match next {
                Next::Connect { retry } => self.connect(retry).await,
                Next::Attached(volume) => self.serve(volume).await,
                Next::Failed(error) => self.failed(error).await,
                Next::Detach => match self.gone().await {
                    Some(next) => next,
                    None => return,
                },
                Next::Stop(answer) => {
                    let _ = answer.send(());
                    return;
                }
            };
        }
    }

    /// Writes the intent for the first time; from then on it stands for what the last attach had left.
    async fn keep_first(&self) -> Result<(), Error> {
        let kept = self.keep_intent().await;
        let (left, isid, is_kept) = (
            Arc::clone(&self.context.left),
            self.intent.isid,
            kept.is_ok(),
        );
        let settled = blocking(move || left.settle(isid, is_kept)).await;
        if let Err(error) = settled {
            // The next start of the daemon finds the intent, and does it then.
            tracing::warn!(volume = %self.name, %error, "what was left is still on disk");
        }
        kept
    }

    /// Writes the intent; durable when it returns.
    pub(super) async fn keep_intent(&self) -> Result<(), Error> {
        let (intents, name, intent) = (
            Arc::clone(&self.context.intents),
            self.name.clone(),
            self.intent.clone(),
        );
        blocking(move || intents.put(&name, &intent)).await
    }

    /// Shows what is wanted now.
    pub(super) fn show_request(&self) {
        self.view.send_modify(|view| {
            view.request = Arc::new(self.intent.request.clone());
        });
    }

    pub(super) fn set_state(
        &self,
        state: AttachmentState,
        reason: Option<Reason>,
        volume: Option<Arc<Volume>>,
    ) {
        let previous = self.view.borrow().state;
        let fence = self.intent.fence;
        let fence = fence.filter(|_| self.intent.request.fence == Fence::Reservation);
        let mut told_before = false;
        self.view.send_modify(|view| {
            told_before = view.state == state && view.reason == reason && reason.is_some();
            if previous != state {
                view.since_unix_ms = unix_ms_now();
            }
            if previous == AttachmentState::Connecting && state == AttachmentState::Attached {
                view.attached_times += 1;
            }
            view.state = state;
            view.reason.clone_from(&reason);
            view.volume = volume;
            view.reservation_key = fence.map(|fence| Key::new(self.context.node_id, fence.epoch));
        });
        if told_before {
            return;
        }
        tracing::info!(
            volume = %self.name, %state, %previous,
            reason = reason.as_ref().map(|r| r.detail.as_str()), "attachment state"
        );
        let message = match &reason {
            Some(reason) => format!("{} is {state}: {}", self.name, reason.detail),
            None => format!("{} is {state}", self.name),
        };
        self.context.events.publish(NewEvent {
            attachment: Some(self.name.clone()),
            state: Some(state),
            previous_state: (previous != state).then_some(previous),
            reason,
            ..NewEvent::new(EventKind::State, message)
        });
    }

    pub(super) fn answer_waiting(&mut self, result: &Result<(), Error>) {
        for waiting in self.waiting.drain(..) {
            let _ = waiting.send(result.clone());
        }
    }

    /// `connecting`: one attempt, or attempts until one works.
    async fn connect(&mut self, retry: bool) -> Next {
        let takeover = std::mem::take(&mut self.takeover);
        let mut pause = RETRY_FIRST;
        loop {
            let by = tokio::time::Instant::now() + self.intent.request.attach_timeout();
            match self.locate(retry, takeover, by).await {
                Ok(Located::Known) => {}
                Ok(Located::Next(next)) => {
                    self.takeover |= takeover;
                    return next;
                }
                Err(error) => match self.after_failure(error, retry, &mut pause).await {
                    Some(next) => return next,
                    None => continue,
                },
            }
            let Prepared { spec, before } = match self.prepare(takeover).await {
                Ok(prepared) => prepared,
                Err(error) => return Next::Failed(error),
            };
            let reason = self.view.borrow().reason.clone().filter(|_| retry);
            self.set_state(AttachmentState::Connecting, reason, None);
            let attempt = attempt(
                Arc::clone(&self.context),
                self.name.clone(),
                by,
                self.intent.request.attach_timeout(),
                spec,
            );
            tokio::pin!(attempt);
            // Dropping the attempt ends it on the data plane.
            let outcome = loop {
                tokio::select! {
                    biased;
                    outcome = &mut attempt => break outcome,
                    call = self.calls.recv() => match self.on_call_while_connecting(call).await {
                        Some(Next::Connect { .. }) => {
                            self.takeover |= takeover;
                            return Next::Connect { retry };
                        }
                        Some(next) => {
                            // Nothing was written: an attempt only looks.
                            self.intent.clean = before.clean;
                            return next;
                        }
                        None => {}
                    },
                }
            };
            let error = match self.conclude(outcome, before).await {
                Ok(volume) => match self.bring_device_up(&volume).await {
                    Ok(()) => return Next::Attached(volume),
                    Err(error) => {
                        self.end_unused(&volume, before).await;
                        error
                    }
                },
                Err(error) => error,
            };
            if let Some(next) = self.after_failure(error, retry, &mut pause).await {
                return next;
            }
        }
    }

    /// What follows an attempt that failed; `None`: another one.
    async fn after_failure(
        &mut self,
        error: Error,
        retry: bool,
        pause: &mut Duration,
    ) -> Option<Next> {
        if !retry || !error.is_retryable() {
            return Some(Next::Failed(error));
        }
        // Whoever waits learns of the failure; the task goes on trying.
        self.answer_waiting(&Err(error.clone()));
        let reason = Some(Reason::from(&error));
        self.set_state(AttachmentState::Connecting, reason, None);
        tokio::select! {
            biased;
            call = self.calls.recv() => match self.on_call_while_connecting(call).await {
                Some(Next::Connect { .. }) => Some(Next::Connect { retry }),
                next => next,
            },
            () = tokio::time::sleep(*pause) => {
                *pause = (*pause * 2).min(RETRY_MAX);
                None
            }
        }
    }

    /// [`Next::Connect`]: another attempt is to be made instead of this one.
    pub(super) async fn on_call_while_connecting(&mut self, call: Option<Call>) -> Option<Next> {
        match call {
            Some(Call::Attach { takeover, answer }) => {
                self.waiting.push(answer);
                let anew = std::mem::take(&mut self.unasked)
                    && matches!(self.intent.request.source, Source::Fabric(_));
                if !anew && (!takeover || self.takeover) {
                    return None;
                }
                self.takeover |= takeover;
                Some(Next::Connect { retry: false })
            }
            Some(Call::Change { patch, answer }) => {
                let result = self.change_intent(&patch).await.map(drop);
                let changed = result.is_ok();
                let _ = answer.send(result);
                changed.then_some(Next::Connect { retry: false })
            }
            Some(Call::Detach { force, answer }) => {
                if let Err(error) = self.release_device_unserved(force).await {
                    let _ = answer.send(Err(error));
                    return None;
                }
                self.forced |= force;
                self.detaching.push_back(answer);
                Some(Next::Detach)
            }
            Some(Call::Stop(answer)) => Some(Next::Stop(answer)),
            None => std::future::pending().await,
        }
    }

    /// `failed`, until somebody asks for something.
    async fn failed(&mut self, error: Error) -> Next {
        self.set_state(AttachmentState::Failed, Some(Reason::from(&error)), None);
        let give_up = self.device_patience(&error);
        self.answer_waiting(&Err(error));
        let give_up = give_up.map(|patience| tokio::time::Instant::now() + patience);
        let mut given_up = false;
        loop {
            let call = match give_up.filter(|_| !given_up) {
                None if self.intent.leaving => {
                    match tokio::time::timeout(RETRY_MAX, self.calls.recv()).await {
                        Ok(call) => call,
                        Err(_) => return Next::Detach,
                    }
                }
                None => self.calls.recv().await,
                Some(by) => match tokio::time::timeout_at(by, self.calls.recv()).await {
                    Ok(call) => call,
                    Err(_) => {
                        given_up = true;
                        self.give_device_up().await;
                        continue;
                    }
                },
            };
            match call {
                Some(Call::Attach { takeover, answer }) => {
                    self.waiting.push(answer);
                    self.takeover |= takeover;
                    self.intent.leaving = false;
                    return Next::Connect { retry: false };
                }
                Some(Call::Change { patch, answer }) => {
                    let _ = answer.send(self.change_intent(&patch).await.map(drop));
                }
                Some(Call::Detach { force, answer }) => {
                    if let Err(error) = self.release_device_unserved(force).await {
                        let _ = answer.send(Err(error));
                        continue;
                    }
                    self.forced |= force;
                    self.detaching.push_back(answer);
                    return Next::Detach;
                }
                Some(Call::Stop(answer)) => return Next::Stop(answer),
                None => return std::future::pending().await,
            }
        }
    }

    /// The volume is away: forgets the intent and ends, unless the intent cannot be removed.
    async fn gone(&mut self) -> Option<Next> {
        let pending = Error::new(
            Code::OperationPending,
            format!("{} is being detached; try again when it is gone", self.name),
        )
        .with_attachment(&self.name);
        self.answer_waiting(&Err(pending.clone()));
        if self.view.borrow().state != AttachmentState::Detaching {
            self.set_state(AttachmentState::Detaching, None, None);
        }
        if let Err(error) = self.leave_fabric().await {
            for answer in self.detaching.drain(..) {
                let _ = answer.send(Err(error.clone()));
            }
            return Some(Next::Failed(error));
        }
        let (intents, name) = (Arc::clone(&self.context.intents), self.name.clone());
        let (left, intent) = (Arc::clone(&self.context.left), self.intent.clone());
        let result = blocking(move || {
            left.remember(&intent)?;
            intents.remove(&name)
        })
        .await;
        if let Err(error) = &result {
            // The intent is still there: a restart would bring the attachment back. Say so, keep it.
            for answer in self.detaching.drain(..) {
                let _ = answer.send(Err(error.clone()));
            }
            return Some(Next::Failed(error.clone()));
        }
        (self.context.forget)(&self.name);
        let message = format!("{} is detached", self.name);
        self.context.events.publish(NewEvent {
            attachment: Some(self.name.clone()),
            previous_state: Some(AttachmentState::Detaching),
            ..NewEvent::new(EventKind::State, message)
        });
        for answer in self.detaching.drain(..) {
            let _ = answer.send(Ok(()));
        }
        self.drain(&pending);
        None
    }

    /// Answers what arrived after the end.
    fn drain(&mut self, attach_error: &Error) {
        self.calls.close();
        while let Ok(call) = self.calls.try_recv() {
            match call {
                Call::Attach { answer, .. } | Call::Change { answer, .. } => {
                    drop(answer.send(Err(attach_error.clone())));
                }
                Call::Detach { answer, .. } => drop(answer.send(Ok(()))),
                Call::Stop(answer) => drop(answer.send(())),
            }
        }
    }
}

/// Runs file work off the runtime's threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, super::store::StoreError> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(Error::internal(error)),
        Err(error) => Err(Error::internal(error)),
    }
}

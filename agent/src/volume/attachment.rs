//! The life of one attachment, owned by one task.
//!
//! ```text
//!              attach              up                 detach
//!   (absent) ---------> connecting ----> attached ---------------> detaching --> (absent)
//!                        |     ^            | session lost             ^
//!                        v     | attach     v                          |
//!                        failed <-----------+ -------- detach ---------+
//! ```
//!
//! Recovery of a lost session will stand between `attached` and `failed`; it has its place in
//! [`Task::attached`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use berth_api::events::EventLog;
use berth_api::types::{AttachRequest, AttachmentState, EventKind, NewEvent, Reason, unix_ms_now};
use berth_api::{AttachmentName, Code, Error};
use tokio::sync::{mpsc, oneshot, watch};

use super::failure;
use super::intent::{Intent, Intents};
use crate::plane::{DataPlane, Ended, Volume, VolumeSpec};

/// Calls that may wait for one attachment's task.
const CALLS_MAX: usize = 64;
/// Pauses between attempts to take an attachment on again after a restart of the daemon.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// An attachment, from outside of its task.
#[derive(Clone)]
pub(super) struct Attachment {
    /// What was asked for when it was made.
    pub(super) request: Arc<AttachRequest>,
    calls: mpsc::Sender<Call>,
    pub(super) view: watch::Receiver<View>,
}

/// How an attachment stands.
#[derive(Clone)]
pub(super) struct View {
    pub(super) state: AttachmentState,
    pub(super) since_unix_ms: u64,
    pub(super) reason: Option<Reason>,
    /// There while attached.
    pub(super) volume: Option<Arc<Volume>>,
    /// Times that a session was set up.
    pub(super) attached_times: u64,
}

enum Call {
    Attach(oneshot::Sender<Result<(), Error>>),
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
pub(crate) type MakeSpec = Box<dyn Fn(&AttachmentName, &Intent) -> VolumeSpec + Send + Sync>;

/// What the task needs from the daemon.
pub(super) struct Context {
    pub(super) intents: Arc<Intents>,
    pub(super) plane: Arc<DataPlane>,
    pub(super) events: Arc<EventLog>,
    pub(super) spec: MakeSpec,
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
            state: AttachmentState::Connecting,
            since_unix_ms: unix_ms_now(),
            reason: None,
            volume: None,
            attached_times: 0,
        });
        let request = Arc::new(intent.request.clone());
        let task = Task {
            name,
            intent,
            context,
            calls: queue,
            view: view_sender,
            waiting: Vec::new(),
            detaching: VecDeque::new(),
        };
        tokio::spawn(task.run(origin));
        Self {
            request,
            calls,
            view,
        }
    }

    async fn call<T>(&self, make: impl FnOnce(oneshot::Sender<T>) -> Call) -> Option<T> {
        let (sender, receiver) = oneshot::channel();
        self.calls.send(make(sender)).await.ok()?;
        receiver.await.ok()
    }

    /// Waits until it is attached or has failed. `None`: it is gone.
    pub(super) async fn attach(&self) -> Option<Result<(), Error>> {
        self.call(Call::Attach).await
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

struct Task {
    name: AttachmentName,
    intent: Intent,
    context: Arc<Context>,
    calls: mpsc::Receiver<Call>,
    view: watch::Sender<View>,
    /// Who waits for the attach under way.
    waiting: Vec<oneshot::Sender<Result<(), Error>>>,
    /// Who waits for the detach under way.
    detaching: VecDeque<oneshot::Sender<Result<(), Error>>>,
}

/// What the task does next.
enum Next {
    Connect { retry: bool },
    Attached(Arc<Volume>),
    Failed(Error),
    Detach,
    Stop(oneshot::Sender<()>),
}

impl Task {
    async fn run(mut self, origin: Origin) {
        if origin == Origin::Asked
            && let Err(error) = self.keep_intent().await
        {
            // Nothing was promised and nothing was done: as if it had never been asked for.
            self.answer_waiting(&Err(error.clone()));
            (self.context.forget)(&self.name);
            return self.drain(&error);
        }
        let mut next = Next::Connect {
            retry: origin == Origin::Restored,
        };
        loop {
            next = match next {
                Next::Connect { retry } => self.connect(retry).await,
                Next::Attached(volume) => self.attached(volume).await,
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

    /// Writes the intent; durable when it returns.
    async fn keep_intent(&self) -> Result<(), Error> {
        let (intents, name, intent) = (
            Arc::clone(&self.context.intents),
            self.name.clone(),
            self.intent.clone(),
        );
        blocking(move || intents.put(&name, &intent)).await
    }

    fn set_state(
        &self,
        state: AttachmentState,
        reason: Option<Reason>,
        volume: Option<Arc<Volume>>,
    ) {
        let (previous, mut attached_times) = {
            let view = self.view.borrow();
            (view.state, view.attached_times)
        };
        if state == AttachmentState::Attached {
            attached_times += 1;
        }
        self.view.send_replace(View {
            state,
            since_unix_ms: unix_ms_now(),
            reason: reason.clone(),
            volume,
            attached_times,
        });
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

    fn answer_waiting(&mut self, result: &Result<(), Error>) {
        for waiting in self.waiting.drain(..) {
            let _ = waiting.send(result.clone());
        }
    }

    /// `connecting`: one attempt, or attempts until one works.
    async fn connect(&mut self, retry: bool) -> Next {
        self.set_state(AttachmentState::Connecting, None, None);
        let mut pause = RETRY_FIRST;
        loop {
            let attempt = attempt(
                Arc::clone(&self.context),
                self.name.clone(),
                self.intent.clone(),
            );
            tokio::pin!(attempt);
            let outcome = loop {
                tokio::select! {
                    outcome = &mut attempt => break outcome,
                    call = self.calls.recv() => match call {
                        Some(Call::Attach(answer)) => self.waiting.push(answer),
                        Some(Call::Detach { answer, .. }) => {
                            // Dropping the attempt ends it on the data plane.
                            self.detaching.push_back(answer);
                            return Next::Detach;
                        }
                        Some(Call::Stop(answer)) => return Next::Stop(answer),
                        None => return std::future::pending().await,
                    },
                }
            };
            let error = match outcome {
                Ok(volume) => match self.note_identity(&volume).await {
                    Ok(()) => return Next::Attached(volume),
                    Err(error) => {
                        volume.end().await;
                        error
                    }
                },
                Err(error) => error,
            };
            if !retry || !error.is_retryable() {
                return Next::Failed(error);
            }
            // Whoever waits learns of the failure; the task goes on trying.
            self.answer_waiting(&Err(error.clone()));
            self.set_state(
                AttachmentState::Connecting,
                Some(Reason::from(&error)),
                None,
            );
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(RETRY_MAX),
                call = self.calls.recv() => match call {
                    Some(Call::Attach(answer)) => self.waiting.push(answer),
                    Some(Call::Detach { answer, .. }) => {
                        self.detaching.push_back(answer);
                        return Next::Detach;
                    }
                    Some(Call::Stop(answer)) => return Next::Stop(answer),
                    None => return std::future::pending().await,
                },
            }
        }
    }

    /// Compares the volume with what it was, or keeps what it is. Before anything is written to it.
    async fn note_identity(&mut self, volume: &Volume) -> Result<(), Error> {
        let found = volume.ready().identity.clone();
        match (&self.intent.identity, found) {
            (None, Some(found)) => {
                self.intent.identity = Some(found);
                self.keep_intent().await
            }
            (Some(known), Some(found)) if *known == found => Ok(()),
            (None, None) => Ok(()),
            (Some(known), found) => Err(Error::new(
                Code::IdentityMismatch,
                format!(
                    "LUN was {}, now it is {}; nothing was written to it",
                    known.designator,
                    found.map_or("without identity".to_owned(), |found| found.designator),
                ),
            )
            .with_attachment(&self.name)),
        }
    }

    /// `attached`, until the volume ends or somebody takes it away.
    async fn attached(&mut self, volume: Arc<Volume>) -> Next {
        self.set_state(AttachmentState::Attached, None, Some(Arc::clone(&volume)));
        self.answer_waiting(&Ok(()));
        loop {
            tokio::select! {
                ended = volume.wait_ended() => {
                    let error = match ended {
                        Ended::Failed(error) => error,
                        Ended::Detached { .. } => failure::lost("the data plane has stopped"),
                    };
                    return Next::Failed(error.with_attachment(&self.name));
                }
                call = self.calls.recv() => match call {
                    Some(Call::Attach(answer)) => {
                        let _ = answer.send(Ok(()));
                    }
                    Some(Call::Detach { force, answer }) => {
                        let clients = match volume.begin_detach(force).await {
                            Ok(()) => 0,
                            Err(in_use) => in_use.clients,
                        };
                        if clients > 0 {
                            let _ = answer.send(Err(failure::in_use(&self.name, clients)));
                            continue;
                        }
                        self.detaching.push_back(answer);
                        self.set_state(AttachmentState::Detaching, None, Some(Arc::clone(&volume)));
                        volume.end().await;
                        return Next::Detach;
                    }
                    Some(Call::Stop(answer)) => {
                        let _ = volume.begin_detach(true).await;
                        volume.end().await;
                        return Next::Stop(answer);
                    }
                    None => return std::future::pending().await,
                },
            }
        }
    }

    /// `failed`, until somebody asks for something.
    async fn failed(&mut self, error: Error) -> Next {
        self.set_state(AttachmentState::Failed, Some(Reason::from(&error)), None);
        self.answer_waiting(&Err(error));
        match self.calls.recv().await {
            Some(Call::Attach(answer)) => {
                self.waiting.push(answer);
                Next::Connect { retry: false }
            }
            Some(Call::Detach { answer, .. }) => {
                self.detaching.push_back(answer);
                Next::Detach
            }
            Some(Call::Stop(answer)) => Next::Stop(answer),
            None => std::future::pending().await,
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
        let (intents, name) = (Arc::clone(&self.context.intents), self.name.clone());
        let result = blocking(move || intents.remove(&name)).await;
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
                Call::Attach(answer) => drop(answer.send(Err(attach_error.clone()))),
                Call::Detach { answer, .. } => drop(answer.send(Ok(()))),
                Call::Stop(answer) => drop(answer.send(())),
            }
        }
    }
}

/// One attempt to bring the volume up, within the request's own time.
async fn attempt(
    context: Arc<Context>,
    name: AttachmentName,
    intent: Intent,
) -> Result<Arc<Volume>, Error> {
    let timeout = intent.request.attach_timeout();
    let spec = (context.spec)(&name, &intent);
    match tokio::time::timeout(timeout, Volume::attach(context.plane.place(), spec)).await {
        Ok(Ok(volume)) => Ok(Arc::new(volume)),
        Ok(Err(error)) => Err(error.with_attachment(&name)),
        Err(_) => Err(failure::deadline(timeout).with_attachment(&name)),
    }
}

/// Runs file work off the runtime's threads.
async fn blocking(
    work: impl FnOnce() -> Result<(), super::store::StoreError> + Send + 'static,
) -> Result<(), Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Error::internal(error)),
        Err(error) => Err(Error::internal(error)),
    }
}

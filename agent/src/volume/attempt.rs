//! One attempt to bring an attachment's volume up: what is written down before, and what after.
//!
//! Before the first packet the intent says that sessions may be left on the target and which epoch the
//! reservation key has; after a failure it says what it said before. A crash at any point leaves an intent
//! that is at worst too cautious.

use std::sync::Arc;

use berth_api::types::Fence;
use berth_api::{AttachmentName, Code, Error};

use super::attachment::{Context, Task, blocking};
use super::failure;
use super::intent::{Intent, KnownFence, Standing};
use crate::block::lun::reservation::Claim;
use crate::plane::spec::Leave;
use crate::plane::{Volume, VolumeSpec};

/// What an attempt may do, besides what the intent says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// What it may take, and from whom.
    pub claim: Claim,
    /// Sessions of an earlier life may still have commands under way.
    pub unclean: bool,
}

/// An attempt that is about to be made.
pub(super) struct Prepared {
    pub(super) spec: VolumeSpec,
    pub(super) before: Before,
}

/// How things were before an attempt, to be put back: nothing but a look at the unit happens before the volume is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Before {
    /// No session was left on the target.
    pub(super) clean: bool,
    /// The reservation was ours; it stays so, for the next attempt to resume.
    held: bool,
}

impl Before {
    /// How a volume that was of no use is to be left.
    fn leave(self) -> Leave {
        if self.held {
            Leave::Stop
        } else {
            Leave::Detach
        }
    }
}

impl Task {
    /// Writes down what an attempt needs and may leave behind. `takeover`: whoever waits asked for it.
    pub(super) async fn prepare(&mut self, takeover: bool) -> Result<Prepared, Error> {
        let clean = self.intent.clean;
        let mut claim = Claim::Free;
        if self.intent.request.fence == Fence::Reservation {
            let intents = Arc::clone(&self.context.intents);
            let epoch = blocking(move || intents.next_epoch()).await?;
            let standing = match self.standing() {
                // What was lost stays so until the volume is ours again.
                Some(Standing::Lost) => Standing::Lost,
                Some(Standing::Held) if !takeover => Standing::Held,
                _ => Standing::Asked,
            };
            claim = match standing {
                _ if takeover => Claim::Takeover,
                Standing::Held => Claim::Resume,
                Standing::Asked | Standing::Lost => Claim::Free,
            };
            self.intent.fence = Some(KnownFence { epoch, standing });
        }
        self.intent.clean = false;
        self.keep_intent().await?;
        let terms = Terms {
            claim,
            unclean: !clean,
        };
        let mut spec = (self.context.spec)(&self.name, &self.intent, terms);
        let since = *self
            .trying_since
            .get_or_insert_with(tokio::time::Instant::now);
        if spec
            .stale_session_timeout
            .is_some_and(|limit| since.elapsed() >= limit)
        {
            // Nothing leads to where the old sessions were, and by now the target has ended them.
            for path in &mut spec.paths {
                path.known_group = None;
            }
        }
        let held = self.standing() == Some(Standing::Held);
        let before = Before { clean, held };
        Ok(Prepared { spec, before })
    }

    /// Takes in how an attempt ended; a volume that is up may serve afterwards.
    pub(super) async fn conclude(
        &mut self,
        outcome: Result<Arc<Volume>, Error>,
        before: Before,
    ) -> Result<Arc<Volume>, Error> {
        let volume = match outcome {
            Ok(volume) => volume,
            Err(error) => {
                self.intent.clean = before.clean;
                self.note_fenced(&error);
                self.keep_intent_or_log().await;
                return Err(error);
            }
        };
        if let Err(error) = self.note_volume(&volume).await {
            let clean = volume.end(before.leave()).await;
            self.intent.clean = clean;
            self.keep_intent_or_log().await;
            return Err(error);
        }
        self.trying_since = None;
        Ok(volume)
    }

    /// Ends a volume that works and is of no use, because there is no device for it.
    pub(super) async fn end_unused(&mut self, volume: &Volume, before: Before) {
        let _ = volume.begin_detach(true).await;
        self.intent.clean = volume.end(before.leave()).await;
        if self.intent.request.fence == Fence::Reservation
            && let Some(fence) = self.intent.fence.as_mut().filter(|_| !before.held)
        {
            fence.standing = Standing::Asked;
        }
        self.keep_intent_or_log().await;
    }

    /// How it stands with its reservation, if that is its fence.
    fn standing(&self) -> Option<Standing> {
        let fence = self.intent.fence;
        fence
            .filter(|_| self.intent.request.fence == Fence::Reservation)
            .map(|fence| fence.standing)
    }

    /// Compares the volume with what it was, or keeps what it is, and that it is ours now. Before anything
    /// is written to it.
    async fn note_volume(&mut self, volume: &Volume) -> Result<(), Error> {
        let found = volume.ready().identity.clone();
        match (&self.intent.identity, found) {
            (None, found) => self.intent.identity = found,
            (Some(known), Some(found)) if *known == found => {}
            (Some(known), found) => {
                let is = found.map_or("without identity".to_owned(), |found| found.designator);
                let was = &known.designator;
                let detail = format!("LUN was {was}, now it is {is}; nothing was written to it");
                return Err(Error::new(Code::IdentityMismatch, detail).with_attachment(&self.name));
            }
        }
        if self.intent.request.fence == Fence::Reservation
            && let Some(fence) = &mut self.intent.fence
        {
            fence.standing = Standing::Held;
        }
        self.note_paths(&volume.status().borrow().paths);
        self.keep_intent().await?;
        self.tell_kept(volume);
        Ok(())
    }

    /// Notes that the volume was lost to another node, if that is what `error` says.
    pub(super) fn note_fenced(&mut self, error: &Error) {
        if error.code() == Code::Fenced
            && self.intent.request.fence == Fence::Reservation
            && let Some(fence) = &mut self.intent.fence
        {
            fence.standing = Standing::Lost;
        }
    }

    /// For what the next life would find out by itself, only later.
    pub(super) async fn keep_intent_or_log(&self) {
        if let Err(error) = self.keep_intent().await {
            tracing::error!(volume = %self.name, %error, "the intent cannot be written");
        }
    }
}

/// Whether the last life ended with the volume lost to another node; then nothing is tried by itself.
pub(super) fn lost_before(intent: &Intent) -> bool {
    intent
        .fence
        .is_some_and(|fence| fence.standing == Standing::Lost)
}

/// The attempt itself, by the end of the request's own time.
pub(super) async fn attempt(
    context: Arc<Context>,
    name: AttachmentName,
    by: tokio::time::Instant,
    timeout: std::time::Duration,
    spec: VolumeSpec,
) -> Result<Arc<Volume>, Error> {
    match tokio::time::timeout_at(by, Volume::attach(context.plane.place(), spec)).await {
        Ok(Ok(volume)) => Ok(Arc::new(volume)),
        Ok(Err(error)) => Err(error.with_attachment(&name)),
        Err(_) => Err(failure::deadline(timeout).with_attachment(&name)),
    }
}

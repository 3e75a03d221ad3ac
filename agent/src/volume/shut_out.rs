//! Whether this node was shut out of a volume of the fabric, or the volume is gone: the target refuses logins, and the fabric
//! says why.
//!
//! A target that does not admit us may do so again in a moment: it restarts, or its list is on its way. I/O waits then, as
//! with any other outage. When the fabric itself says that this node is not on the list any more, or that there is no such volume,
//! somebody wanted it so, and waiting helps nobody: what waits fails, and nothing is tried until somebody asks anew.

use std::pin::Pin;
use std::time::Duration;

use berth_api::types::Source;
use berth_api::{Code, Error};

use super::attachment::Task;
use super::intent::{KnownFence, Standing};
use super::provision::{FabricAccess, is_admitted, unit_of};
use crate::fabric::Op;
use crate::plane::Volume;
use crate::plane::spec::{VolumeHealth, VolumeStatus};

/// Pause between two questions while the target refuses us and the fabric has nothing against us, or is away.
const ASK_INTERVAL: Duration = Duration::from_secs(2);

/// A question to the fabric that only ends when this node is shut out or the volume is gone.
#[derive(Default)]
pub(super) struct Doubt {
    question: Option<Pin<Box<dyn Future<Output = Error> + Send>>>,
}

impl Doubt {
    /// Asks the fabric while the target refuses us, and not otherwise.
    pub(super) fn look(&mut self, task: &Task, status: &VolumeStatus) {
        // The reason of the volume is that of the loss; those of the paths are of their last logins.
        let refused = matches!(status.health, VolumeHealth::Recovering { .. })
            && status.paths.iter().any(|path| {
                let code = path.reason.as_ref().map(Error::code);
                matches!(code, Some(Code::AccessDenied | Code::TargetNotFound))
            });
        if !refused {
            self.question = None;
        } else if self.question.is_none() {
            self.question = task.ask_why();
        }
    }

    /// Ends when this node has lost the volume for good: with the reason, once. Can be dropped and called again.
    pub(super) async fn confirmed(&mut self) -> Error {
        match &mut self.question {
            Some(question) => {
                let error = question.await;
                self.question = None;
                error
            }
            None => std::future::pending().await,
        }
    }
}

impl Task {
    fn ask_why(&self) -> Option<Pin<Box<dyn Future<Output = Error> + Send>>> {
        let Source::Fabric(source) = &self.intent.request.source else {
            return None;
        };
        let (access, source) = (self.context.fabric.clone()?, source.clone());
        let name = self.name.clone();
        let question = async move {
            let FabricAccess {
                fabric,
                initiator,
                call_timeout,
            } = access;
            loop {
                let op = Op::within(format!("refused-{name}"), call_timeout);
                match fabric.volume(&op, &source.volume).await {
                    Ok(volume) => {
                        let unit = unit_of(&volume, &source).ok();
                        if let Some(unit) = unit.filter(|unit| !is_admitted(unit, &initiator)) {
                            let detail = format!(
                                "volume {} does not admit this node any more; nothing is sent to it until it is \
                                 attached anew",
                                volume.name
                            );
                            let error = Error::new(Code::Fenced, detail).with_attachment(&name);
                            return match unit.access.first() {
                                Some(holder) => error.with_holder(holder.clone()),
                                None => error,
                            };
                        }
                    }
                    Err(error) if error.code() == Code::NotFound => {
                        let detail =
                            format!("volume {} is not on the fabric any more", source.volume);
                        return Error::new(Code::NotFound, detail).with_attachment(&name);
                    }
                    Err(error) => {
                        tracing::debug!(volume = %name, %error, "the fabric cannot say why we are refused");
                    }
                }
                tokio::time::sleep(ASK_INTERVAL).await;
            }
        };
        Some(Box::pin(question))
    }

    /// Fences the volume: what waits fails, and nothing of it comes back by itself.
    pub(super) async fn shut_out(&mut self, volume: &Volume, error: Error) {
        tracing::warn!(volume = %self.name, %error, "this node has lost the volume");
        if let Some(fence) = &mut self.intent.fence {
            fence.standing = Standing::Lost;
        } else {
            self.intent.fence = Some(KnownFence {
                epoch: 0,
                standing: Standing::Lost,
            });
        }
        self.keep_intent_or_log().await;
        volume.fence(error).await;
    }
}

//! An attachment whose volume is on the storage fabric: made if need be, this node admitted, its place asked for.
//!
//! The intent is there before anything is asked of the fabric, and every step finds what an earlier life has done. What the
//! fabric said is kept, so that a restart needs no fabric; who was shut out meanwhile stays shut out until somebody
//! asks for an attach anew.

use std::sync::Arc;
use std::time::Duration;

use berth_api::types::{
    AttachmentState, Auth, FabricChap, FabricSource, Fence, IscsiSource, Source, Volume,
    VolumeRequest, VolumeState, VolumeUnit,
};
use berth_api::{AttachmentName, Code, Error};
use tokio::time::Instant;

use super::attachment::{Context, Next, Task, blocking};
use super::intent::{KnownFence, Standing};
use crate::fabric::{Fabric, Hold, Op};

/// Pause between looks at a volume that the fabric is not done with.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The fabric, and who asks it.
#[derive(Clone)]
pub struct FabricAccess {
    /// The fabric.
    pub fabric: Arc<dyn Fabric>,
    /// iSCSI name of this node.
    pub initiator: String,
    /// How long a call may take that nobody else limits.
    pub call_timeout: Duration,
}

/// A claim by the fabric's list is under way: who is admitted is not known. The epoch is of reservations only.
const CLAIMING: KnownFence = KnownFence {
    epoch: 0,
    standing: Standing::Asked,
};
/// The fabric admits this node, and nobody else.
const CLAIMED: KnownFence = KnownFence {
    epoch: 0,
    standing: Standing::Held,
};

/// What is to be done about who is admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Admission {
    /// This node is admitted, besides whoever is.
    Besides,
    /// This node alone is admitted, or nobody is asked to change that.
    LookAlone,
    /// This node alone is to be admitted.
    Alone {
        /// Whoever else is admitted is not any more.
        takeover: bool,
    },
}

/// What came of asking the fabric.
pub(super) enum Located {
    /// It is known where the volume is.
    Known,
    /// Something else was asked for meanwhile.
    Next(Next),
}

impl Task {
    /// Asks the fabric where the volume is, if that is where it comes from, and does what is needed there. `takeover`:
    /// with a fence by the fabric, whoever else is admitted is not any more.
    pub(super) async fn locate(
        &mut self,
        retry: bool,
        takeover: bool,
        by: Instant,
    ) -> Result<Located, Error> {
        let Source::Fabric(source) = &self.intent.request.source else {
            return Ok(Located::Known);
        };
        let known = source.found.is_some();
        let alone = self.fenced_by_fabric();
        let claimed = self.intent.fence == Some(CLAIMED);
        if retry && self.unasked && known && (claimed || !alone) {
            return Ok(Located::Known);
        }
        if !alone {
            let outcome = match self.ask(retry, Admission::Besides, by).await {
                Ok(outcome) => outcome,
                Err(next) => return Ok(Located::Next(next)),
            };
            return self.take_in(outcome, true).await.map(|()| Located::Known);
        }
        if known && claimed && !takeover {
            match self.ask(retry, Admission::LookAlone, by).await {
                Ok(outcome) if outcome.as_ref().err().is_none_or(is_away) => {
                    return self.take_in(outcome, true).await.map(|()| Located::Known);
                }
                Ok(_) => {} // It is ours no more: it has to be claimed again.
                Err(next) => return Ok(Located::Next(next)),
            }
        }
        // A claim that is cut off may leave this node admitted beside another: the next life has to look.
        self.intent.fence = Some(CLAIMING);
        self.keep_intent().await?;
        match self.ask(retry, Admission::Alone { takeover }, by).await {
            Ok(outcome) => self.take_in(outcome, false).await.map(|()| Located::Known),
            Err(next) => Ok(Located::Next(next)),
        }
    }

    /// Asks the fabric; or what to do instead, if somebody wants something else meanwhile.
    async fn ask(
        &mut self,
        retry: bool,
        admission: Admission,
        by: Instant,
    ) -> Result<Result<IscsiSource, Error>, Next> {
        let Source::Fabric(source) = &self.intent.request.source else {
            return Ok(Err(no_fabric())); // Nobody asks for other sources.
        };
        let by = match (&source.found, admission) {
            // The fabric may be down and the volume there: some time is for the attempt itself.
            (Some(_), Admission::Besides | Admission::LookAlone) => {
                Instant::now() + by.saturating_duration_since(Instant::now()) / 2
            }
            _ => by,
        };
        let (context, name, source) =
            (Arc::clone(&self.context), self.name.clone(), source.clone());
        let search = async move {
            find(&context, &name, &source, admission, by)
                .await
                .map_err(|error| error.with_attachment(&name))
        };
        let reason = self.view.borrow().reason.clone().filter(|_| retry);
        self.set_state(AttachmentState::Connecting, reason, None);
        tokio::pin!(search);
        loop {
            tokio::select! {
                biased;
                outcome = &mut search => return Ok(outcome),
                call = self.calls.recv() => {
                    if let Some(next) = self.on_call_while_connecting(call).await {
                        return Err(match next {
                            Next::Connect { .. } => Next::Connect { retry },
                            next => next,
                        });
                    }
                }
            }
        }
    }

    /// Whether the access list of the fabric is what keeps other nodes out.
    fn fenced_by_fabric(&self) -> bool {
        self.intent.request.fence == Fence::Acl
    }

    /// Takes in and keeps what the fabric said. `may_be_away`: what it said last will do if it cannot be asked.
    async fn take_in(
        &mut self,
        outcome: Result<IscsiSource, Error>,
        may_be_away: bool,
    ) -> Result<(), Error> {
        let Source::Fabric(source) = &mut self.intent.request.source else {
            return Ok(());
        };
        let mut found = match outcome {
            Ok(found) => found,
            Err(error) if source.found.is_some() && may_be_away && is_away(&error) => {
                tracing::warn!(volume = %self.name, %error, "the fabric cannot be asked; what it said last is used");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if let Some(known) = &source.found {
            if (&known.target, known.lun) != (&found.target, found.lun) {
                let detail = format!(
                    "volume {} was {} LUN {}, now it is {} LUN {}: another volume under the same name; detach it, \
                     and attach it again if that is meant",
                    source.volume, known.target, known.lun, found.target, found.lun
                );
                return Err(Error::new(Code::IdentityMismatch, detail).with_attachment(&self.name));
            }
            let portals = std::mem::replace(&mut found.portals, known.portals.clone());
            source.found = Some(Box::new(found));
            self.set_portals(&portals)?;
        } else {
            source.found = Some(Box::new(found));
            self.first_paths()?;
        }
        match self.intent.request.fence {
            Fence::Acl => self.intent.fence = Some(CLAIMED),
            // It may have been shut out before.
            Fence::None => self.intent.fence = None,
            Fence::Reservation => {}
        }
        let kept = self.keep_intent().await;
        let (left, isid, is_kept) = (
            Arc::clone(&self.context.left),
            self.intent.isid,
            kept.is_ok(),
        );
        if let Err(error) = blocking(move || left.settle(isid, is_kept)).await {
            tracing::warn!(volume = %self.name, %error, "what was left is still on disk");
        }
        kept?;
        self.show_request();
        Ok(())
    }

    /// The paths of a volume whose place was not known before: where the last attachment of the LUN left sessions, it
    /// goes on there.
    fn first_paths(&mut self) -> Result<(), Error> {
        let used_up = |error: super::intent::PathsUsedUp| {
            Error::new(Code::Exhausted, error.to_string()).with_retryable(false)
        };
        let request = self.intent.request.clone();
        if let Some(resumed) = self.context.left.resume(&request).map_err(used_up)? {
            tracing::info!(
                volume = %self.name, isid = %resumed.isid,
                "the last detach left sessions on the target: they are ended first"
            );
            self.intent = resumed;
            return Ok(());
        }
        let portals = self.intent.portals().to_vec();
        self.set_portals(&portals)
    }

    fn set_portals(&mut self, portals: &[berth_api::Portal]) -> Result<(), Error> {
        self.intent.set_portals(portals).map_err(|used_up| {
            let error = Error::new(Code::Exhausted, used_up.to_string());
            error.with_retryable(false).with_attachment(&self.name)
        })
    }

    /// Has this node not admitted any more, if that was asked for. By force a fabric that cannot be asked is left as it is.
    pub(super) async fn leave_fabric(&mut self) -> Result<(), Error> {
        let Source::Fabric(source) = &self.intent.request.source else {
            return Ok(());
        };
        // Who holds it alone gives it back, or nobody else could have it.
        let holds = self.fenced_by_fabric() && source.grant;
        if !source.revoke_on_detach && !holds {
            return Ok(());
        }
        let source = source.clone();
        if !self.intent.leaving {
            // The next life goes on with this, and does not attach again.
            self.intent.leaving = true;
            self.keep_intent_or_log().await;
        }
        let revoked = match &self.context.fabric {
            None => Err(no_fabric()),
            Some(access) => {
                let op = Op::within(format!("detach-{}", self.name), access.call_timeout);
                let revoke = access.fabric.revoke(&op, &source.volume, &access.initiator);
                revoke.await.map_err(Error::from)
            }
        };
        match revoked {
            Err(error) if self.forced => {
                tracing::warn!(
                    volume = %self.name, %error,
                    "this node stays admitted to the volume: the fabric could not be told, and the detach is by force"
                );
                Ok(())
            }
            result => result.map_err(|error| error.with_attachment(&self.name)),
        }
    }
}

fn no_fabric() -> Error {
    let detail = "no storage fabric is configured; see [fabric] in berth.toml";
    Error::new(Code::NotImplemented, detail).with_field("source.fabric")
}

/// Whether this says that the fabric is away, and nothing about the volume.
fn is_away(error: &Error) -> bool {
    matches!(
        error.code(),
        Code::FabricUnavailable | Code::Deadline | Code::NotImplemented
    )
}

/// Makes the volume if need be and that is asked for, has this node admitted, and asks where it is.
async fn find(
    context: &Context,
    name: &AttachmentName,
    source: &FabricSource,
    admission: Admission,
    by: Instant,
) -> Result<IscsiSource, Error> {
    let access = context.fabric.as_ref().ok_or_else(no_fabric)?;
    let op = Op {
        request_id: format!("attach-{name}"),
        deadline: by,
    };
    let (fabric, volume) = (&access.fabric, &source.volume);
    if let Some(create) = &source.create {
        let request = VolumeRequest {
            chap: chap_of(source.auth.as_ref())?,
            ..create.as_ref().clone()
        };
        let (_, created) = fabric.create(&op, volume, &request).await?;
        if created {
            tracing::info!(volume = %name, fabric_volume = %volume, "volume made on the fabric");
        }
    }
    let initiator = &access.initiator;
    let hold = |grant, takeover| {
        let terms = Hold { grant, takeover };
        fabric.hold(&op, volume, initiator, terms)
    };
    let mut found = match admission {
        Admission::Besides if source.grant => fabric.grant(&op, volume, initiator).await?,
        Admission::Besides => fabric.volume(&op, volume).await?,
        Admission::LookAlone => hold(false, false).await?,
        Admission::Alone { takeover } => hold(source.grant, takeover).await?,
    };
    while found.state == VolumeState::Preparing {
        if LOOK_INTERVAL >= op.left() {
            let detail = format!("volume {volume} is not available yet on the fabric");
            return Err(Error::new(Code::Deadline, detail));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
        found = fabric.volume(&op, volume).await?;
    }
    if found.state != VolumeState::Available {
        let detail = format!("volume {volume} is {} on the fabric", found.state.as_str());
        return Err(Error::new(Code::FabricUnavailable, detail));
    }
    let unit = unit_of(&found, source)?;
    if !source.grant {
        check_admitted(&found, unit, initiator)?;
    }
    let auth = match &source.auth {
        Some(auth) => Some(auth.clone()),
        None => fabric.credentials(volume).map(Auth::Chap),
    };
    if unit.chap && auth.is_none() {
        let detail =
            format!("volume {volume} asks for CHAP credentials; give them as source.fabric.auth");
        return Err(Error::new(Code::AuthenticationFailed, detail).with_field("source.fabric.auth"));
    }
    let Some(target) = unit.target.clone().filter(|_| !unit.portals.is_empty()) else {
        let detail = format!("the fabric does not say where volume {volume} is");
        return Err(Error::new(Code::FabricUnavailable, detail));
    };
    let mut portals = unit.portals.clone();
    portals.truncate(IscsiSource::PORTALS_MAX);
    Ok(IscsiSource {
        portals,
        target,
        lun: unit.lun,
        auth,
    })
}

/// The unit that is asked for, or the only one.
pub(super) fn unit_of<'a>(
    volume: &'a Volume,
    source: &FabricSource,
) -> Result<&'a VolumeUnit, Error> {
    let found = match (&source.unit, volume.units.as_slice()) {
        (None, [unit]) => Some(unit),
        (None, _) => None,
        (Some(wanted), units) => units.iter().find(|unit| unit.name == *wanted),
    };
    found.ok_or_else(|| {
        let names: Vec<_> = volume.units.iter().map(|unit| unit.name.as_str()).collect();
        let detail = format!(
            "source.fabric.unit: volume {} has {}; name one of them",
            volume.name,
            names.join(", ")
        );
        Error::new(Code::InvalidArgument, detail).with_field("source.fabric.unit")
    })
}

/// Whether the initiator is admitted, as far as the list says: a group on it may hold the initiator.
pub(super) fn is_admitted(unit: &VolumeUnit, initiator: &str) -> bool {
    let mut listed = unit.access.iter();
    unit.open
        || !unit.access_groups.is_empty()
        || listed.any(|name| name.eq_ignore_ascii_case(initiator))
}

/// Refuses when this node is not admitted and nobody is to admit it.
fn check_admitted(volume: &Volume, unit: &VolumeUnit, initiator: &str) -> Result<(), Error> {
    if is_admitted(unit, initiator) {
        return Ok(());
    }
    let detail = format!(
        "volume {} does not admit {initiator}, and source.fabric.grant is false: whoever publishes it has to admit this \
         node first",
        volume.name
    );
    Err(Error::new(Code::AccessDenied, detail).with_field("source.fabric.grant"))
}

/// The credentials that a new volume asks for: those that we have.
fn chap_of(auth: Option<&Auth>) -> Result<Option<FabricChap>, Error> {
    let Some(Auth::Chap(chap)) = auth else {
        return Ok(None);
    };
    let (mut mutual_user, mut mutual_secret) = (None, None);
    if let Some(mutual) = &chap.mutual {
        let user = mutual.user.clone().ok_or_else(|| {
            let detail = "a volume that is made needs the name of the target, too";
            Error::new(Code::InvalidArgument, detail)
                .with_field("source.fabric.auth.chap.mutual.user")
        })?;
        mutual_user = Some(user);
        mutual_secret = Some(mutual.secret.clone());
    }
    Ok(Some(FabricChap {
        user: chap.user.clone(),
        secret: chap.secret.clone(),
        mutual_user,
        mutual_secret,
    }))
}

#[cfg(all(test, feature = "sim"))]
#[path = "provision_tests.rs"]
mod tests;

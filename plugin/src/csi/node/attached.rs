//! The attachment of a volume: made when it is staged, taken away when it is unstaged.

use std::path::PathBuf;
use std::time::Duration;

use berth_api::Code;
use berth_api::client::Started;
use berth_api::types::{
    AttachRequest, Attachment, AttachmentState, FabricSource, Fence, Source, SourceSummary,
};
use tonic::Status;

use super::Shared;
use super::record::Terms;
use crate::csi::calls::Call;
use crate::csi::names::VolumeId;
use crate::csi::status::{self, Told as _};

/// Longest attach that the daemon takes.
const ATTACH_MAX: Duration = Duration::from_secs(600);

/// How long a daemon that has just started may take to serve an attachment again.
const TAKE_UP_TIMEOUT: Duration = Duration::from_secs(30);
/// How often that is looked at.
const TAKE_UP_POLL: Duration = Duration::from_millis(100);

/// An attachment with its device.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) attachment: Attachment,
    pub(super) device: PathBuf,
}

impl Shared {
    /// What is asked of the daemon: the fabric must have admitted this node already, and for a single node nobody else.
    fn request(
        &self,
        id: &VolumeId,
        terms: &Terms,
        auth: Option<berth_api::types::Auth>,
    ) -> AttachRequest {
        let mut source = FabricSource::new(id.volume.clone());
        source.unit = id.unit.clone();
        source.auth = auth;
        source.grant = false;
        let mut request = AttachRequest::new(Source::Fabric(source));
        request.device = self.host.wish();
        request.read_only = terms.read_only;
        request.fence = if terms.mode.is_single_node() {
            Fence::Acl
        } else {
            Fence::None
        };
        request
    }

    /// Attaches, and looks whether it is the volume that was published.
    pub(super) async fn attach(
        &self,
        call: &Call,
        id: &VolumeId,
        terms: &Terms,
        auth: Option<berth_api::types::Auth>,
        serial: Option<&str>,
    ) -> Result<Ready, Status> {
        let name = id.attachment();
        self.refuse_second(call, id).await?;
        let mut request = self.request(id, terms, auth);
        let within = self
            .driver
            .settings
            .attach_timeout
            .min(call.remaining())
            .min(ATTACH_MAX);
        let seconds = within.as_secs().max(1);
        request.attach_timeout_seconds = u32::try_from(seconds).unwrap_or(1);
        let wait = Duration::from_secs(seconds);
        let attached = match call
            .client
            .attach_within(&name, &request, wait)
            .await
            .told()?
        {
            Started::Done(attached) => attached.attachment,
            Started::Running(_) => {
                return Err(Status::aborted(format!(
                    "{id} is still being attached; repeat the call"
                )));
            }
        };
        let found = attached
            .identity
            .as_ref()
            .and_then(|identity| identity.serial.as_deref());
        if let (Some(wanted), Some(found)) = (serial, found)
            && !found.trim().eq_ignore_ascii_case(wanted.trim())
        {
            return Err(Status::internal(format!(
                "{id} was published with serial number {wanted}, and what is attached says {found}: it is not touched"
            )));
        }
        let device = self.host.device(&attached).ok_or_else(|| {
            let why = attached
                .device_detail
                .as_deref()
                .unwrap_or("this kernel has no NBD");
            Status::failed_precondition(format!("{id} is attached without a device: {why}"))
        })?;
        Ok(Ready {
            attachment: attached,
            device,
        })
    }

    /// Refuses a volume that this node has attached under another name (by FlexVolume, by hand): a file system that is mounted through
    /// two devices is lost.
    async fn refuse_second(&self, call: &Call, id: &VolumeId) -> Result<(), Status> {
        let ours = id.attachment();
        let all = call.client.attachments().await.told()?;
        let is_same = |attachment: &&Attachment| match &attachment.source {
            SourceSummary::Fabric(source) => {
                let unit = |unit: &Option<String>| unit.is_none() || *unit == id.unit;
                source.volume == id.volume && (unit(&source.unit) || id.unit.is_none())
            }
            SourceSummary::Iscsi(_) => false,
        };
        match all.iter().filter(|other| other.name != ours).find(is_same) {
            None => Ok(()),
            Some(other) => Err(Status::failed_precondition(format!(
                "{id} is attached to this node already, as {}; detach that first",
                other.name
            ))),
        }
    }

    /// The attachment with its device; nothing when there is none. A daemon that has just started takes its attachments up one by one:
    /// that is waited for.
    pub(super) async fn ready(&self, call: &Call, id: &VolumeId) -> Result<Option<Ready>, Status> {
        let until = tokio::time::Instant::now() + TAKE_UP_TIMEOUT.min(call.remaining());
        loop {
            let Some(attachment) = self.attachment(call, id).await? else {
                return Ok(None);
            };
            if let Some(device) = self.host.device(&attachment) {
                return Ok(Some(Ready { attachment, device }));
            }
            if tokio::time::Instant::now() + TAKE_UP_POLL > until {
                return Err(Status::aborted(format!(
                    "{id} has no device yet ({}); repeat the call",
                    attachment.state
                )));
            }
            tokio::time::sleep(TAKE_UP_POLL).await;
        }
    }

    /// The attachment as it is; nothing when there is none.
    pub(super) async fn attachment(
        &self,
        call: &Call,
        id: &VolumeId,
    ) -> Result<Option<Attachment>, Status> {
        status::found(call.client.attachment(&id.attachment()).await)
    }

    /// Detaches. What is open stays; what cannot be flushed or reached is given up when nothing can be lost by that, or the
    /// storage does not take it anyway.
    ///
    /// Everything that was written is on the storage by now if it could be: file systems are unmounted before.
    pub(super) async fn detach(&self, call: &Call, id: &VolumeId) -> Result<(), Status> {
        let name = id.attachment();
        let wait = self.wait(call);
        match call.client.detach_within(&name, false, wait).await {
            Ok(Started::Done(())) => return Ok(()),
            Ok(Started::Running(_)) if self.is_lost(call, id).await? => {
                tracing::warn!(volume = %id, "detaching takes long and the volume cannot be reached; by force now");
            }
            Ok(Started::Running(_)) => {
                return Err(Status::aborted(format!(
                    "{id} is still being detached; repeat the call"
                )));
            }
            Err(error) => match error.code() {
                Some(Code::NotFound) => return Ok(()),
                Some(Code::InUse | Code::OperationPending) => {
                    return Err(Status::aborted(format!("berthd: {error}; repeat the call")));
                }
                None | Some(Code::Unavailable | Code::Throttled | Code::Deadline) => {
                    return Err(status::of(&error));
                }
                Some(_) => {
                    tracing::warn!(volume = %id, %error, "it cannot be detached in order; by force now");
                }
            },
        }
        self.force(call, id).await
    }

    /// Detaches by force: I/O that waits fails.
    pub(super) async fn force(&self, call: &Call, id: &VolumeId) -> Result<(), Status> {
        let wait = self.wait(call);
        match call
            .client
            .detach_within(&id.attachment(), true, wait)
            .await
        {
            Ok(Started::Done(())) => Ok(()),
            Ok(Started::Running(_)) => Err(Status::aborted(format!(
                "{id} is still being detached; repeat the call"
            ))),
            Err(error) if error.code() == Some(Code::NotFound) => Ok(()),
            Err(error) => Err(status::of(&error)),
        }
    }

    fn wait(&self, call: &Call) -> Duration {
        let within = self.driver.settings.detach_timeout.min(call.remaining());
        Duration::from_secs(within.as_secs().max(1))
    }

    /// Whether nothing that this node still has can get to the volume: it is fenced, or shut out, or the volume is gone.
    pub(super) async fn is_lost(&self, call: &Call, id: &VolumeId) -> Result<bool, Status> {
        let Some(attachment) = self.attachment(call, id).await? else {
            return Ok(false);
        };
        if attachment.state == AttachmentState::Attached {
            return Ok(false);
        }
        if attachment.state == AttachmentState::Failed {
            return Ok(true);
        }
        // No path works. Whether one may again, the fabric knows; when it does not answer, nobody does.
        let node = call.client.node().await.told()?;
        let Some(volume) = status::found(call.client.volume(&id.volume).await)? else {
            return Ok(true);
        };
        let admits = |name: &String| name.eq_ignore_ascii_case(&node.initiator_name);
        Ok(!volume
            .units
            .iter()
            .any(|unit| unit.open || unit.access.iter().any(admits)))
    }
}

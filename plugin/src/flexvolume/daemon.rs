//! berthd, as one call of kubelet needs it: tried again while it restarts, and within the time of the call.

use std::path::Path;
use std::time::Duration;

use berth_api::client::{Client, ClientError};
use berth_api::types::{
    AttachRequest, Attachment, AttachmentState, DeviceWish, FabricSource, Fence, Source,
    SourceSummary, VolumePatch,
};
use berth_api::{AttachmentName, Code, VolumeName};
use tokio::time::{Instant, sleep, timeout_at};

use super::config::Config;
use super::options::Options;
use super::reply::chain;

/// Before the name of the volume in the name of its attachment.
const PREFIX: &str = "flex.";
/// The first pause before berthd is tried again; it doubles.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// What the API takes as the time of an attach, in seconds.
const ATTACH_SECONDS_MAX: u64 = 600;

/// Why berthd did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Nobody answers.
    #[error(
        "berthd is not reachable at {socket}: {detail}; is berthd.service running on this node?"
    )]
    Unreachable {
        /// Where it should be.
        socket: String,
        /// What the system said.
        detail: String,
    },
    /// The time of the call is over.
    #[error(
        "berthd had not answered when the time of this call was over; what was asked for may still happen"
    )]
    TooLate,
    /// It said no, and why.
    #[error("{0}")]
    Refused(String, Option<Code>),
    /// It has attached the volume, but in a way that cannot be mounted.
    #[error("{0}")]
    Unfit(String),
}

impl DaemonError {
    /// What went wrong, if berthd said so.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused(_, code) => *code,
            _ => None,
        }
    }

    /// Whether what was asked for may still happen.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self, Self::TooLate) || self.code() == Some(Code::Deadline)
    }
}

/// Name of the attachment of a volume that kubelet uses through this driver: `flex.` and the name of the volume.
#[must_use]
pub fn attachment_name(volume: &VolumeName) -> AttachmentName {
    format!("{PREFIX}{volume}")
        .parse()
        .expect("a name of a volume has only characters that attachments may have, and is shorter")
}

/// Whether an attachment was made by this driver.
pub(super) fn is_ours(name: &AttachmentName) -> bool {
    name.as_str().starts_with(PREFIX)
}

/// A connection to berthd, for one call of kubelet.
#[derive(Debug, Clone)]
pub(super) struct Daemon {
    client: Client,
    connect_retry: Duration,
    deadline: Instant,
}

/// A volume that is attached and has a kernel device.
#[derive(Debug, Clone)]
pub(super) struct Device {
    pub(super) path: std::path::PathBuf,
    pub(super) size_bytes: Option<u64>,
}

impl Daemon {
    pub(super) fn new(config: &Config, request_id: &str, deadline: Instant) -> Self {
        Self {
            client: Client::unix(&config.socket)
                .with_request_id(request_id)
                .with_timeout(config.deadline()),
            connect_retry: Duration::from_secs(config.connect_retry_seconds),
            deadline,
        }
    }

    /// The same with more or less time.
    pub(super) fn until(&self, deadline: Instant) -> Self {
        Self {
            deadline,
            ..self.clone()
        }
    }

    /// Attaches the volume, makes it before if it does not exist and is to be made, and says where its device is.
    pub(super) async fn attach(
        &self,
        name: &AttachmentName,
        options: &Options,
        config: &Config,
    ) -> Result<Device, DaemonError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let mut request = AttachRequest::new(Source::Fabric(FabricSource {
            unit: options.unit.clone(),
            create: options.create.clone().map(Box::new),
            revoke_on_detach: config.revoke_on_detach,
            ..FabricSource::new(options.volume.clone())
        }));
        request.device = DeviceWish::Kernel;
        request.read_only = options.read_only;
        // Who only reads needs no others kept away, and must not take the writer's place.
        request.fence = if options.read_only {
            Fence::None
        } else {
            config.fence
        };
        request.attach_timeout_seconds =
            u32::try_from(left.as_secs().clamp(1, ATTACH_SECONDS_MAX)).unwrap_or(1);
        let attached = self
            .call(async |client: &Client| client.attach(name, &request).await)
            .await;
        let attachment = match attached {
            Ok(attached) => attached.attachment,
            Err(error) if error.code() == Some(Code::ConflictIncompatible) => {
                self.as_it_is(name, options, error).await?
            }
            Err(error) => return Err(error),
        };
        device(&attachment)
    }

    /// A volume that is attached already, with other options: the pod before had them otherwise, or reads only. What is attached
    /// will do if it is the same volume and can be written to if need be.
    async fn as_it_is(
        &self,
        name: &AttachmentName,
        options: &Options,
        error: DaemonError,
    ) -> Result<Attachment, DaemonError> {
        let Some(found) = self.attachment(name).await? else {
            return Err(error);
        };
        let SourceSummary::Fabric(source) = &found.source else {
            return Err(error);
        };
        let same = source.volume == options.volume && source.unit == options.unit;
        let up = matches!(
            found.state,
            AttachmentState::Attached | AttachmentState::Recovering
        );
        if same && up && (options.read_only || !found.read_only) {
            tracing::info!(%name, "used as it is attached, though it was asked for otherwise");
            return Ok(found);
        }
        Err(error)
    }

    /// Detaches a volume that is mounted nowhere; success when there is no such attachment.
    ///
    /// A device that cannot be flushed is given up: what its file system had was written when it was unmounted, or was refused
    /// then. While I/O waits for a path that may come back, so does this, and the call is made again.
    pub(super) async fn detach(&self, name: &AttachmentName) -> Result<(), DaemonError> {
        let detached = self
            .call(async |client: &Client| client.detach(name, false).await)
            .await;
        let detached = match detached {
            Err(error) if error.code() == Some(Code::DeviceFailed) => {
                tracing::warn!(%name, %error, "detached by force: the volume takes nothing any more");
                self.call(async |client: &Client| client.detach(name, true).await)
                    .await
            }
            detached => detached,
        };
        match detached {
            Err(error) if error.code() == Some(Code::NotFound) => Ok(()),
            detached => detached,
        }
    }

    pub(super) async fn attachment(
        &self,
        name: &AttachmentName,
    ) -> Result<Option<Attachment>, DaemonError> {
        let found = self
            .call(async |client: &Client| client.attachment(name).await)
            .await;
        match found {
            Ok(attachment) => Ok(Some(attachment)),
            Err(error) if error.code() == Some(Code::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The attachment that has this device.
    pub(super) async fn attachment_on(
        &self,
        device: &Path,
    ) -> Result<Option<Attachment>, DaemonError> {
        let all = self
            .call(async |client: &Client| client.attachments().await)
            .await?;
        Ok(all.into_iter().find(|attachment| {
            let found = attachment.device.as_deref().map(Path::new);
            found == Some(device)
        }))
    }

    /// Makes the volume at least so large; returns how large it is.
    pub(super) async fn expand(&self, volume: &VolumeName, bytes: u64) -> Result<u64, DaemonError> {
        let now = self
            .call(async |client: &Client| client.volume(volume).await)
            .await?;
        if now.size_bytes >= bytes {
            return Ok(now.size_bytes);
        }
        let patch = VolumePatch {
            size_bytes: Some(bytes),
            ..VolumePatch::default()
        };
        let grown = self
            .call(async |client: &Client| client.change_volume(volume, &patch).await)
            .await?;
        Ok(grown.size_bytes)
    }

    /// What berthd calls this node.
    pub(super) async fn node_name(&self) -> Result<String, DaemonError> {
        let node = self
            .call(async |client: &Client| client.node().await)
            .await?;
        Ok(node.name)
    }

    /// One call, again while berthd starts or another call about the same thing is under way, all within the time there is.
    async fn call<T>(
        &self,
        call: impl AsyncFn(&Client) -> Result<T, ClientError>,
    ) -> Result<T, DaemonError> {
        let patience = self.deadline.min(Instant::now() + self.connect_retry);
        let mut pause = PAUSE_MIN;
        loop {
            let error = match timeout_at(self.deadline, call(&self.client)).await {
                Err(_) => return Err(DaemonError::TooLate),
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => error,
            };
            let passing = match error.code() {
                None => matches!(error, ClientError::Unreachable { .. }),
                Some(code) => matches!(code, Code::Unavailable | Code::OperationPending),
            };
            if !passing || Instant::now() + pause >= patience {
                return Err(self.error(&error));
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn error(&self, error: &ClientError) -> DaemonError {
        match error {
            ClientError::Unreachable { endpoint, source } => DaemonError::Unreachable {
                socket: endpoint.to_string(),
                detail: source.to_string(),
            },
            ClientError::Timeout(_) => DaemonError::TooLate,
            ClientError::Problem(problem) => {
                let mut text = format!("berthd: {problem}");
                if let Some(holder) = &problem.holder {
                    text = format!("{text}; held by {holder}");
                }
                DaemonError::Refused(text, Some(problem.code))
            }
            other => DaemonError::Refused(format!("berthd: {}", chain(other)), None),
        }
    }
}

fn device(attachment: &Attachment) -> Result<Device, DaemonError> {
    let unfit = |what: &str| {
        let detail = attachment.device_detail.as_deref().unwrap_or(what);
        DaemonError::Unfit(format!(
            "{} has no kernel device: {detail}",
            attachment.name
        ))
    };
    let path = attachment
        .device
        .as_ref()
        .ok_or_else(|| unfit("berthd does not say why"))?;
    Ok(Device {
        path: path.into(),
        size_bytes: attachment.size_bytes,
    })
}

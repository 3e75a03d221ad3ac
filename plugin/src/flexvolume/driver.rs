//! What each call does.

use std::path::Path;
use std::time::Duration;

use berth_api::AttachmentName;
use berth_api::types::AttachmentState;
use tokio::time::Instant;

use super::call::Call;
use super::config::Config;
use super::daemon::{Daemon, DaemonError, attachment_name};
use super::host::Host;
use super::options::Options;
use super::record::{Record, RecordError, Store, Way};
use super::reply::{Capabilities, Reply};
use crate::filesystem;
use crate::limits::Limits;
use crate::mount;

/// What is kept of a call's time for undoing what did not succeed.
const UNDO: Duration = Duration::from_secs(15);
/// The largest part of a call's time that is kept for that.
const UNDO_PART: u32 = 4;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// berthd.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// What is written down.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A mount.
    #[error(transparent)]
    Mount(#[from] mount::Error),
    /// A file system.
    #[error(transparent)]
    Filesystem(#[from] filesystem::Error),
    /// The directory to mount at.
    #[error("cannot make {}: {source}", path.display())]
    Directory {
        /// The directory.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It would not be safe, or cannot be meant.
    #[error("{0}")]
    Refused(String),
}

/// How much time a call has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget {
    /// Until then it works.
    pub(super) work: Instant,
    /// Until then it undoes what did not succeed.
    pub(super) end: Instant,
}

impl Budget {
    /// From now on.
    pub(super) fn of(whole: Duration) -> Self {
        let now = Instant::now();
        let undo = UNDO.min(whole / UNDO_PART);
        Self {
            work: now + (whole - undo),
            end: now + whole,
        }
    }
}

/// Does the calls.
#[derive(Debug)]
pub(super) struct Driver<H> {
    pub(super) config: Config,
    pub(super) host: H,
    pub(super) store: Store,
    pub(super) daemon: Daemon,
    pub(super) budget: Budget,
    limits: Limits,
}

impl<H: Host> Driver<H> {
    pub(super) fn new(
        config: Config,
        host: H,
        store: Store,
        request_id: &str,
        budget: Budget,
    ) -> Self {
        Self {
            daemon: Daemon::new(&config, request_id, budget.work),
            config,
            host,
            store,
            budget,
            limits: Limits::default(),
        }
    }

    /// Limits for a step of the work.
    pub(super) fn limits(&self) -> Limits {
        let left = self.budget.work.saturating_duration_since(Instant::now());
        self.limits.within(left)
    }

    /// Limits for undoing something.
    pub(super) fn undo_limits(&self) -> Limits {
        let left = self.budget.end.saturating_duration_since(Instant::now());
        self.limits.within(left)
    }

    /// Does one call.
    pub(super) async fn answer(&self, call: Call) -> Result<Reply, Error> {
        match call {
            Call::Init => Ok(init(&self.config)),
            Call::GetVolumeName(options) => Ok(Reply {
                volume_name: Some(options.volume.to_string()),
                ..Reply::success()
            }),
            Call::Attach { options, node } => {
                let way = match node {
                    None => Way::EarlyCalls,
                    Some(node) => {
                        self.expect_here(&node).await?;
                        Way::LateCalls
                    }
                };
                self.attach(&options, way).await
            }
            Call::WaitForAttach(options) => self.attach(&options, Way::LateCalls).await,
            Call::IsAttached { options, node } => self.is_attached(&options, &node).await,
            Call::MountDevice { dir, options } => {
                self.mount_device(&dir, &options).await?;
                Ok(Reply::success())
            }
            Call::Mount {
                dir,
                device,
                options,
            } => {
                let way = match device {
                    Some(_) => Way::EarlyCalls,
                    None => Way::LastUnmount,
                };
                self.mount(&dir, &options, way).await?;
                Ok(Reply::success())
            }
            Call::Unmount(dir) | Call::UnmountDevice(dir) => {
                self.unmount(&dir).await?;
                Ok(Reply::success())
            }
            Call::DetachDevice(device) => self.detach_device(&device).await,
            Call::Detach { name, node } => self.detach(&name, &node).await,
            Call::ExpandVolume { options, new_bytes } => {
                self.expand_volume(&options, new_bytes).await
            }
            Call::ExpandFs {
                options,
                dir,
                new_bytes,
            } => self.expand_fs(&options, &dir, new_bytes).await,
            Call::Install(_) | Call::Unknown => Ok(Reply::not_supported()),
        }
    }

    async fn attach(&self, options: &Options, way: Way) -> Result<Reply, Error> {
        self.expect_tenant(options)?;
        let name = attachment_name(&options.volume);
        let _lock = self.store.lock(&name, self.budget.work).await?;
        let mut record = self.record(&name, options, way)?;
        record.released = false;
        self.store.save(&record)?;
        let attached = self.daemon.attach(&name, options, &self.config).await;
        let device = match attached {
            Ok(device) => device,
            Err(error) => {
                self.give_up(record).await;
                return Err(error.into());
            }
        };
        record.device = Some(device.path.clone());
        self.store.save(&record)?;
        Ok(Reply {
            device: Some(device.path),
            ..Reply::success()
        })
    }

    async fn is_attached(&self, options: &Options, node: &str) -> Result<Reply, Error> {
        self.expect_here(node).await?;
        let name = attachment_name(&options.volume);
        let found = self.daemon.attachment(&name).await?;
        let attached = found.is_some_and(|found| {
            let up = matches!(
                found.state,
                AttachmentState::Attached | AttachmentState::Recovering
            );
            up && found.device.is_some()
        });
        Ok(Reply {
            attached: Some(attached),
            ..Reply::success()
        })
    }

    /// `detach DEVICE`, which names no volume: heeded only for a volume that its last pod has unmounted and nobody has attached
    /// since. A device that belongs to another volume by now is left alone.
    async fn detach_device(&self, device: &Path) -> Result<Reply, Error> {
        let mut records = self.store.all()?;
        records.retain(|record| record.device.as_deref() == Some(device));
        let (released, held): (Vec<_>, Vec<_>) =
            records.into_iter().partition(|record| record.released);
        if released.is_empty() {
            let volume = match held.into_iter().next() {
                Some(record) => record.volume.to_string(),
                None => match self.daemon.attachment_on(device).await? {
                    Some(attachment) => attachment.name.to_string(),
                    None => return Ok(Reply::success().with_message("it is not attached")),
                },
            };
            return Err(Error::Refused(format!(
                "{} belongs to {volume}, which no pod has unmounted: it is not detached; if nobody needs it, run \
                 berthctl detach",
                device.display()
            )));
        }
        for record in released {
            let name = record.attachment;
            let _lock = self.store.lock(&name, self.budget.work).await?;
            let Some(record) = self.store.load(&name)? else {
                continue;
            };
            if record.released {
                self.detach_unused(&record).await?;
            }
        }
        Ok(Reply::success())
    }

    /// `detach NAME NODE`: the name is that of the PersistentVolume, or that of the volume within its pod.
    async fn detach(&self, name: &str, node: &str) -> Result<Reply, Error> {
        let mut records = self.store.all()?;
        records.retain(|record| {
            record.kubernetes_names.contains(name) || record.volume.as_str() == name
        });
        if records.is_empty() {
            return Ok(Reply::success().with_message("it is not attached"));
        }
        self.expect_here(node).await?;
        for record in records {
            let name = record.attachment;
            let _lock = self.store.lock(&name, self.budget.work).await?;
            if let Some(record) = self.store.load(&name)? {
                self.detach_unused(&record).await?;
            }
        }
        Ok(Reply::success())
    }

    /// Detaches a volume that is mounted nowhere, and forgets it.
    pub(super) async fn detach_unused(&self, record: &Record) -> Result<(), Error> {
        if let Some(place) = self.mounted_at(record)? {
            return Err(Error::Refused(format!(
                "{} is mounted at {}: it is not detached",
                record.volume,
                place.display()
            )));
        }
        self.daemon.detach(&record.attachment).await?;
        self.store.forget(&record.attachment)?;
        Ok(())
    }

    /// A place where a volume is mounted: by its device, and where the record says.
    fn mounted_at(&self, record: &Record) -> Result<Option<std::path::PathBuf>, Error> {
        let table = self.host.table()?;
        let written = |target: &Path| {
            record.targets.contains(target) || record.staged.as_deref() == Some(target)
        };
        let ours = table.into_iter().find(|mount| match &record.device {
            Some(device) => self.host.is_of(mount, device),
            None => written(&mount.target),
        });
        Ok(ours.map(|mount| mount.target))
    }

    /// After a failure: takes back what this call was the only user of. What cannot be taken back is left to the next call.
    pub(super) async fn give_up(&self, record: Record) {
        let mounted = self.mounted_at(&record);
        if !record.is_unused() || record.way == Way::LateCalls && record.device.is_some() {
            return;
        }
        if !matches!(mounted, Ok(None)) {
            return;
        }
        let daemon = self.daemon.until(self.budget.end);
        match daemon.detach(&record.attachment).await {
            Ok(()) => {
                if let Err(error) = self.store.forget(&record.attachment) {
                    tracing::warn!(%error, "a record is left");
                }
            }
            Err(error) => {
                tracing::warn!(attachment = %record.attachment, %error, "it could not be detached again");
            }
        }
    }

    /// The record of a volume as this call wants it; not saved yet.
    pub(super) fn record(
        &self,
        name: &AttachmentName,
        options: &Options,
        way: Way,
    ) -> Result<Record, Error> {
        let found = self.store.load(name)?;
        let mut record =
            found.unwrap_or_else(|| Record::new(name.clone(), options.volume.clone(), way));
        record.way = match (way, record.way) {
            // Attached by a call of its own: `mount` is only the last step, and another call detaches.
            (Way::LastUnmount, Way::LateCalls) => Way::LateCalls,
            (way, _) => way,
        };
        record
            .kubernetes_names
            .extend(options.kubernetes_name.clone());
        Ok(record)
    }

    /// berthd works in one tenant: in another one, the volume would be another one.
    pub(super) fn expect_tenant(&self, options: &Options) -> Result<(), Error> {
        match &options.tenant {
            Some(tenant) if *tenant != self.config.tenant => Err(Error::Refused(format!(
                "the volume is to be in tenant {tenant}, but berthd of this node works in {}: say the tenant in [fabric] of \
                 berth.toml, and in flexvolume.toml",
                self.config.tenant
            ))),
            _ => Ok(()),
        }
    }

    /// Only this node can be attached to from here.
    async fn expect_here(&self, node: &str) -> Result<(), Error> {
        let kernel = self.host.node_name();
        let short = |name: &str| {
            name.split('.')
                .next()
                .unwrap_or_default()
                .to_ascii_lowercase()
        };
        if short(&kernel) == short(node) {
            return Ok(());
        }
        let name = self.daemon.node_name().await?;
        if name.eq_ignore_ascii_case(node) {
            return Ok(());
        }
        Err(Error::Refused(format!(
            "this is node {kernel} (berthd calls it {name}), and {node} cannot be attached to from here: let kubelet attach \
             (--enable-controller-attach-detach=false), or leave attach at false in flexvolume.toml"
        )))
    }
}

/// The answer to `init`: from the configuration alone.
pub(super) fn init(config: &Config) -> Reply {
    Reply {
        capabilities: Some(Capabilities {
            attach: config.attach,
            selinux_relabel: true,
            supports_metrics: true,
            fs_group: true,
            requires_fs_resize: true,
        }),
        ..Reply::success()
    }
}

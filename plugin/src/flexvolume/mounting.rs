//! Mounting, unmounting and growing: what each call does with the file system.

use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::daemon::{Device, attachment_name, is_ours};
use super::driver::{Driver, Error};
use super::host::{Host, MountWish};
use super::options::Options;
use super::record::{Record, Way};
use super::reply::Reply;
use crate::filesystem::{self, Content, FsType};
use crate::mount::Mount;

/// How long between two looks at the size of a device that is to grow.
const SIZE_PAUSE: Duration = Duration::from_millis(250);

impl<H: Host> Driver<H> {
    /// Mounts a volume for a pod: attached if it is not yet, with a file system if it is blank.
    pub(super) async fn mount(&self, dir: &Path, options: &Options, way: Way) -> Result<(), Error> {
        self.expect_tenant(options)?;
        let name = attachment_name(&options.volume);
        let _lock = self.store.lock(&name, self.budget.work).await?;
        let mut record = self.record(&name, options, way)?;
        record.targets.insert(dir.to_owned());
        let staged = record.staged.clone();
        let place = Place { dir, options };
        self.bring_up(&mut record, place, async |device| match &staged {
            Some(staged) => {
                let read_only = options.read_only;
                let limits = self.limits();
                Ok(self.host.bind(staged, dir, read_only, &limits).await?)
            }
            None => self.mount_file_system(device, place).await,
        })
        .await
    }

    /// Mounts a volume once for all pods of this node.
    pub(super) async fn mount_device(&self, dir: &Path, options: &Options) -> Result<(), Error> {
        self.expect_tenant(options)?;
        let name = attachment_name(&options.volume);
        let _lock = self.store.lock(&name, self.budget.work).await?;
        let mut record = self.record(&name, options, Way::LateCalls)?;
        record.staged = Some(dir.to_owned());
        let place = Place { dir, options };
        self.bring_up(&mut record, place, async |device| {
            self.mount_file_system(device, place).await
        })
        .await
    }

    /// Writes down what is to be, attaches, and mounts with `work`. A call that fails leaves nothing behind that was not there
    /// before: no mount, no directory, and no attachment of which it was the only user.
    async fn bring_up(
        &self,
        record: &mut Record,
        place: Place<'_>,
        work: impl AsyncFn(&Device) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let dir = place.dir;
        let before = self.host.at(dir)?;
        record.released = false;
        self.store.save(record)?;
        let brought = self.try_bring_up(record, place, &before, work).await;
        let Err(error) = brought else {
            return Ok(());
        };
        if before.is_empty() {
            if let Err(trouble) = self.host.unmount_all(dir, &self.undo_limits()).await {
                tracing::warn!(dir = %dir.display(), error = %trouble, "a mount is left");
                return Err(error);
            }
            // kubelet wants it empty or gone; in the early dialect nobody else made it.
            let _ = self.host.remove_dir(dir);
            record.targets.remove(dir);
            if record.staged.as_deref() == Some(dir) {
                record.staged = None;
            }
            self.store.save(record)?;
            self.give_up(record.clone()).await;
        }
        Err(error)
    }

    async fn try_bring_up(
        &self,
        record: &mut Record,
        place: Place<'_>,
        before: &[Mount],
        work: impl AsyncFn(&Device) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let attached = self
            .daemon
            .attach(&record.attachment, place.options, &self.config);
        let device = attached.await?;
        record.device = Some(device.path.clone());
        self.store.save(record)?;
        if let Some(top) = before.last() {
            if self.host.is_of(top, &device.path) {
                return Ok(());
            }
            return Err(Error::Refused(format!(
                "{} is mounted at {} already, which is not {}",
                top.source,
                place.dir.display(),
                device.path.display()
            )));
        }
        let made = self.host.make_dir(place.dir);
        made.map_err(|source| Error::Directory {
            path: place.dir.to_owned(),
            source,
        })?;
        work(&device).await
    }

    /// Mounts the file system of a device. One that is mounted on this node already is only shown at another place: what is on the
    /// device is in use then, and neither looked at nor checked.
    async fn mount_file_system(&self, device: &Device, place: Place<'_>) -> Result<(), Error> {
        let Place { dir, options } = place;
        let mut mounts = self.host.table()?;
        mounts.retain(|mount| self.host.is_of(mount, &device.path) && mount.root == Path::new("/"));
        if let Some(any) = mounts.first() {
            let fit = mounts
                .iter()
                .find(|mount| options.read_only || !mount.is_read_only());
            let Some(fit) = fit else {
                return Err(Error::Refused(format!(
                    "the volume is mounted at {}, where it can only be read: it cannot be written elsewhere on this node",
                    any.target.display()
                )));
            };
            let limits = self.limits();
            let bound = self.host.bind(&fit.target, dir, options.read_only, &limits);
            return Ok(bound.await?);
        }
        let fs = self.prepare(device, options).await?;
        let mut flags = self.config.mount_options.clone();
        flags.extend(options.mount_options.iter().cloned());
        let wish = MountWish {
            device: device.path.clone(),
            target: dir.to_owned(),
            fs,
            flags,
            read_only: options.read_only,
        };
        Ok(self.host.mount_device(&wish, &self.limits()).await?)
    }

    /// Makes sure that the device has the right file system, in order: one is made only on a device that is proven blank and is as
    /// large as the volume.
    async fn prepare(&self, device: &Device, options: &Options) -> Result<FsType, Error> {
        let path = &device.path;
        let size = self.host.size(path, &self.limits()).await?;
        if let Some(expected) = device.size_bytes
            && expected != size
        {
            return Err(Error::Refused(format!(
                "{} has {size} bytes, and the volume {expected}: it is not touched",
                path.display()
            )));
        }
        let wanted = options.fs.unwrap_or(self.config.default_fs);
        let content = self.host.probe(path, &self.limits()).await?;
        let fs = match content {
            Content::Blank if options.read_only => {
                return Err(Error::Refused(format!(
                    "{} is blank, and it is to be read only: no file system is made",
                    path.display()
                )));
            }
            Content::Blank => {
                tracing::info!(device = %path.display(), fs = %wanted, "blank: a file system is made");
                self.host.make(path, wanted, &self.limits()).await?;
                return Ok(wanted);
            }
            // No wish is no reason to refuse what is there.
            Content::FileSystem(found) => match found.parse() {
                Ok(fs) if options.fs.is_none_or(|wish| wish == fs) => fs,
                _ => {
                    return Err(Error::Refused(format!(
                        "{} has a file system of type {found}, and {wanted} is asked for: it is not touched",
                        path.display()
                    )));
                }
            },
            content => {
                return Err(filesystem::Error::NotBlank {
                    device: path.clone(),
                    content,
                }
                .into());
            }
        };
        if !options.read_only {
            self.host.check(path, fs, &self.limits()).await?;
        }
        Ok(fs)
    }

    /// Unmounts, from the path alone. When nobody calls for it otherwise, the volume is detached with its last mount.
    pub(super) async fn unmount(&self, dir: &Path) -> Result<(), Error> {
        let record = match self.store.all() {
            Ok(records) => records.into_iter().find(|record| {
                record.targets.contains(dir) || record.staged.as_deref() == Some(dir)
            }),
            Err(error) => {
                tracing::warn!(%error, "unmounting without knowing what for");
                None
            }
        };
        match record {
            Some(record) => self.unmount_known(dir, &record).await,
            None => self.unmount_unknown(dir).await,
        }
    }

    async fn unmount_known(&self, dir: &Path, found: &Record) -> Result<(), Error> {
        let name = &found.attachment;
        let _lock = self.store.lock(name, self.budget.work).await?;
        let mut record = self.store.load(name)?.unwrap_or_else(|| found.clone());
        self.host.unmount_all(dir, &self.limits()).await?;
        let mut after = record.clone();
        after.targets.remove(dir);
        if after.staged.as_deref() == Some(dir) {
            after.staged = None;
        }
        match record.way {
            Way::LastUnmount if after.is_unused() && !self.is_mounted(&after)? => {
                // Until it is detached the path stays in the record: if this fails, the call comes again.
                after.released = true;
                self.detach_unused(&after).await
            }
            Way::EarlyCalls => {
                after.released = after.is_unused();
                Ok(self.store.save(&after)?)
            }
            Way::LastUnmount | Way::LateCalls => {
                record = after;
                Ok(self.store.save(&record)?)
            }
        }
    }

    /// Nothing is written down about this path: what is mounted there says what it is.
    async fn unmount_unknown(&self, dir: &Path) -> Result<(), Error> {
        let top = self.host.at(dir)?.pop();
        self.host.unmount_all(dir, &self.limits()).await?;
        let Some(top) = top.filter(|top| top.source.starts_with("/dev/")) else {
            return Ok(());
        };
        let device = Path::new(&top.source);
        let still = |mount: &Mount| self.host.is_of(mount, device);
        if self.host.table()?.iter().any(still) {
            return Ok(());
        }
        // It is unmounted, which is what was asked for; detaching is tidiness, and may fail.
        match self.daemon.attachment_on(device).await {
            Ok(Some(attachment)) if is_ours(&attachment.name) => {
                let _lock = self.store.lock(&attachment.name, self.budget.work).await?;
                let record = self.store.load(&attachment.name)?;
                if record.as_ref().is_none_or(Record::is_unused)
                    && let Err(error) = self.daemon.detach(&attachment.name).await
                {
                    tracing::warn!(attachment = %attachment.name, %error, "it is left attached");
                }
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "whether it is attached is not known"),
        }
        Ok(())
    }

    fn is_mounted(&self, record: &Record) -> Result<bool, Error> {
        let Some(device) = &record.device else {
            return Ok(false);
        };
        let table = self.host.table()?;
        Ok(table.iter().any(|mount| self.host.is_of(mount, device)))
    }

    /// Makes the volume larger on the fabric.
    pub(super) async fn expand_volume(
        &self,
        options: &Options,
        bytes: u64,
    ) -> Result<Reply, Error> {
        self.expect_tenant(options)?;
        let size = self.daemon.expand(&options.volume, bytes).await?;
        Ok(Reply {
            volume_new_size: Some(size),
            ..Reply::success()
        })
    }

    /// Makes the file system as large as its device, once the device has its new size.
    pub(super) async fn expand_fs(
        &self,
        options: &Options,
        dir: &Path,
        bytes: u64,
    ) -> Result<Reply, Error> {
        let name = attachment_name(&options.volume);
        let _lock = self.store.lock(&name, self.budget.work).await?;
        let attachment = self.daemon.attachment(&name).await?;
        let device = attachment.and_then(|attachment| attachment.device);
        let Some(device) = device else {
            return Err(Error::Refused(format!(
                "{} is not attached to this node",
                options.volume
            )));
        };
        let device = Path::new(&device);
        let mounts = self.host.at(dir)?;
        let Some(mount) = mounts.last().filter(|top| self.host.is_of(top, device)) else {
            return Err(Error::Refused(format!(
                "{} is not mounted at {}",
                options.volume,
                dir.display()
            )));
        };
        let fs: FsType = mount.fs_type.parse().map_err(|_| {
            Error::Refused(format!(
                "the file system at {} is of type {}, which cannot be grown here",
                dir.display(),
                mount.fs_type
            ))
        })?;
        self.wait_for_size(device, bytes).await?;
        let size = self.host.grow(device, dir, fs, &self.limits()).await?;
        Ok(Reply {
            volume_new_size: Some(size),
            ..Reply::success()
        })
    }

    async fn wait_for_size(&self, device: &Path, bytes: u64) -> Result<(), Error> {
        let wait = Duration::from_secs(self.config.resize_wait_seconds);
        let deadline = self.budget.work.min(Instant::now() + wait);
        loop {
            let size = self.host.size(device, &self.limits()).await?;
            if size >= bytes {
                return Ok(());
            }
            if Instant::now() + SIZE_PAUSE >= deadline {
                return Err(Error::Refused(format!(
                    "{} still has {size} bytes and not {bytes}: the volume has not grown, or the node has not heard of it",
                    device.display()
                )));
            }
            sleep(SIZE_PAUSE).await;
        }
    }
}

/// What to mount, and where.
#[derive(Debug, Clone, Copy)]
struct Place<'a> {
    dir: &'a Path,
    options: &'a Options,
}

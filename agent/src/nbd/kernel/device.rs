//! The steps of a device's life: made, found again, given a new connection, resized, taken away.
//!
//! Each step is safe to repeat and says what is true afterwards. When they are taken is decided elsewhere.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, oneshot};
use tokio::time::Instant;

use super::driver::{
    Connect, Driver, DriverError, Facts, LinkLimits, Replace, Size, Tuning, Unavailable,
};
use super::error::{DeviceError, failed};
use super::link::{self, Ending, Link};
use super::release::Released;
use crate::config::KernelDevices;
use crate::nbd::connection::{End, Handover};
use crate::nbd::export::ExportInfo;
use crate::nbd::wire::TransmissionFlags;
use crate::service_manager::FdStore;

/// What identifiers of our devices begin with; rules for device names rely on it.
pub(crate) const BACKEND_PREFIX: &str = "berth.";
/// Pause before a device that is not as it should be is looked at again.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Longest wait for a notice of a connection's death, which may have been missed.
const NOTICE_LIMIT: Duration = Duration::from_millis(200);
/// Attempts to connect while somebody (udev) has the chosen device open for a moment.
const BUSY_ATTEMPTS: u32 = 10;

/// What is decided by configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Timers of the driver.
    pub limits: LinkLimits,
    /// Settings of the block queue.
    pub tuning: Tuning,
    /// A new device must answer its first read, and a device that was found must take its new connection,
    /// within this time.
    pub ready_timeout: Duration,
    /// What the kernel holds of a device must be written within this time on detach.
    pub flush_timeout: Duration,
    /// A device that was taken away must be free within this time.
    pub release_timeout: Duration,
    /// Which attachments get a device.
    pub policy: KernelDevices,
}

/// Serves our end of a connection; says how it ended once it has.
pub type Serve<'a> = &'a (dyn Fn(Handover) -> oneshot::Receiver<End> + Send + Sync);

/// Kernel devices of this node. Clones are the same.
#[derive(Debug, Clone)]
pub struct KernelNbd {
    driver: Arc<dyn Driver>,
    pub(super) store: FdStore,
    pub(super) settings: Arc<Settings>,
}

/// What does not change while a device lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Tells it from all other devices; the kernel keeps it.
    pub backend: String,
    /// Name of its export.
    pub export: String,
    /// Transmission flags that it was connected with.
    pub flags: u16,
}

/// A device that is connected.
#[derive(Debug)]
pub struct Device {
    kernel: KernelNbd,
    index: u32,
    identity: Identity,
    link: Link,
    size_bytes: u64,
}

/// Name of the only connection of a device in the service manager's store.
pub(super) fn stored_name(backend: &str) -> String {
    format!("{STORED_PREFIX}{backend}.0")
}

/// What names of connections in the store begin with.
const STORED_PREFIX: &str = "nbd.";

impl KernelNbd {
    /// Devices of this driver, with connections that survive in `store`.
    #[must_use]
    pub fn new(driver: Arc<dyn Driver>, store: FdStore, settings: Settings) -> Self {
        Self {
            driver,
            store,
            settings: Arc::new(settings),
        }
    }

    /// Runs a call of the driver where it may block. It goes on when the caller stops waiting.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn Driver) -> T + Send + 'static,
    ) -> T {
        let driver = Arc::clone(&self.driver);
        match tokio::task::spawn_blocking(move || call(&*driver)).await {
            Ok(done) => done,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime ends, and with it whoever waits here.
                Err(_) => std::future::pending().await,
            },
        }
    }

    /// Whether the kernel has NBD, as of now.
    ///
    /// # Errors
    /// What is missing.
    pub async fn available(&self) -> Result<(), Unavailable> {
        if self.settings.policy == KernelDevices::Never {
            return Err(Unavailable::SwitchedOff);
        }
        self.call(|driver| driver.available()).await
    }

    /// Whether every attachment that leaves it open gets a device, or fails.
    #[must_use]
    pub fn is_always(&self) -> bool {
        self.settings.policy == KernelDevices::Always
    }

    /// Whether the service manager keeps connections for the next life.
    #[must_use]
    pub fn keeps_connections(&self) -> bool {
        self.store.is_kept()
    }

    /// The device of this identifier, if it is connected.
    ///
    /// # Errors
    /// When sysfs cannot be read.
    pub async fn find(&self, backend: &str) -> Result<Option<Facts>, DeviceError> {
        let devices = self.call(|driver| driver.devices()).await;
        let devices = devices.map_err(failed("list the NBD devices"))?;
        let ours = |facts: &Facts| facts.backend.as_deref() == Some(backend) && facts.pid.is_some();
        Ok(devices.into_iter().find(ours))
    }

    /// Devices that are connected under an identifier of ours which is none of `known`: nobody serves them, and
    /// I/O on them waits.
    ///
    /// # Errors
    /// When sysfs cannot be read.
    pub async fn strangers(&self, known: &[String]) -> Result<Vec<Facts>, DeviceError> {
        let devices = self.call(|driver| driver.devices()).await;
        let mut devices = devices.map_err(failed("list the NBD devices"))?;
        devices.retain(|facts| {
            let backend = facts.backend.as_ref().filter(|_| facts.pid.is_some());
            backend.is_some_and(|name| name.starts_with(BACKEND_PREFIX) && !known.contains(name))
        });
        Ok(devices)
    }

    /// The node of a device.
    #[must_use]
    pub fn node(&self, index: u32) -> String {
        self.driver.node(index)
    }

    fn handover(
        identity: &Identity,
        info: &ExportInfo,
        stream: UnixStream,
    ) -> io::Result<Handover> {
        let info = ExportInfo {
            // The kernel acts by the flags of the first connect, whatever they would be today.
            flags: TransmissionFlags::from_bits_retain(identity.flags),
            ..info.clone()
        };
        Handover::for_kernel(stream, &info)
    }

    /// Makes a device. The connection is served before the kernel has it, because I/O may come at once.
    ///
    /// # Errors
    /// Nothing is left of the device then.
    pub async fn connect(
        &self,
        identity: Identity,
        info: &ExportInfo,
        size: Size,
        serve: Serve<'_>,
    ) -> Result<Device, DeviceError> {
        let pair = link::pair();
        let (ours, theirs) = pair.map_err(failed("make a pair of sockets"))?;
        let link = Link::start(ours, |ours| {
            Ok(serve(Self::handover(&identity, info, ours)?))
        })
        .map_err(failed("serve a socket"))?;
        let index = match self.connect_once(&identity, size, theirs).await {
            Ok(index) => index,
            Err(error) => {
                link.shut();
                return Err(error.into());
            }
        };
        let device = Device {
            kernel: self.clone(),
            index,
            identity,
            link,
            size_bytes: size.size_bytes,
        };
        self.keep(&device.identity, &device.link);
        if let Err(error) = device.make_ready().await {
            // Nobody uses it yet, so that nothing is lost.
            let released = self.release(index, &device.identity, Some(&device.link), true, false);
            if let Err(left) = released.await {
                tracing::error!(device = index, error = %left, "a device that failed cannot be taken away");
            }
            return Err(error);
        }
        Ok(device)
    }

    async fn connect_once(
        &self,
        identity: &Identity,
        size: Size,
        theirs: OwnedFd,
    ) -> Result<u32, DriverError> {
        let theirs = Arc::new(theirs);
        let (flags, limits) = (identity.flags, self.settings.limits);
        let mut attempt = 1;
        loop {
            let (backend, theirs) = (identity.backend.clone(), Arc::clone(&theirs));
            let connected = self
                .call(move |driver| {
                    driver.connect(&Connect {
                        backend: &backend,
                        size,
                        flags,
                        limits,
                        socket: theirs.as_fd(),
                    })
                })
                .await;
            match connected {
                // Somebody has just looked into the device that was chosen.
                Err(error)
                    if error.errno() == Some(rustix::io::Errno::BUSY)
                        && attempt < BUSY_ATTEMPTS =>
                {
                    attempt += 1;
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                result => return result,
            }
        }
    }

    /// Keeps our end for the next life, if somebody keeps such things.
    fn keep(&self, identity: &Identity, link: &Link) {
        let name = stored_name(&identity.backend);
        if let Err(error) = self.store.put(&name, link.anchor().as_fd()) {
            tracing::warn!(
                device = identity.backend, %error,
                "the connection of the device will not survive a restart; it will be replaced then"
            );
        }
    }

    /// Goes on with a device of an earlier life. `parked`: that life has left its connection at a message
    /// boundary, with nothing unanswered.
    ///
    /// Without that the connection of the earlier life is ended, for both sides: what it had read may be lost,
    /// and what it had sent may be cut off. The kernel sends again what was not answered.
    ///
    /// # Errors
    /// [`DeviceError::Lost`] when the device went away meanwhile.
    pub async fn adopt(
        &self,
        index: u32,
        identity: Identity,
        info: &ExportInfo,
        parked: bool,
        serve: Serve<'_>,
    ) -> Result<(Device, Adopted), DeviceError> {
        let name = stored_name(&identity.backend);
        let mut stored = self.store.take(&name);
        let facts = self.facts(index).await?;
        if parked && stored.len() == 1 && !link::is_abandoned(&stored[0]) {
            let socket = UnixStream::from(stored.remove(0));
            let link = Link::start(socket, |ours| {
                Ok(serve(Self::handover(&identity, info, ours)?))
            })
            .map_err(failed("serve a socket"))?;
            let device = Device {
                kernel: self.clone(),
                index,
                identity,
                link,
                size_bytes: facts.size_bytes,
            };
            return Ok((device, Adopted::Kept));
        }
        // Subscribed before the end that is to be noticed.
        let mut notices = self.driver.dead_links();
        for old in stored {
            let _ = rustix::net::shutdown(&old, rustix::net::Shutdown::Both);
        }
        self.store.remove(&name);
        let link = self
            .replace(index, &identity, info, &mut notices, serve)
            .await?;
        let device = Device {
            kernel: self.clone(),
            index,
            identity,
            link,
            size_bytes: facts.size_bytes,
        };
        device.tune().await;
        Ok((device, Adopted::Replaced))
    }

    /// Gives a device whose connection is dead a new one, and makes sure that it took it.
    async fn replace(
        &self,
        index: u32,
        identity: &Identity,
        info: &ExportInfo,
        notices: &mut broadcast::Receiver<u32>,
        serve: Serve<'_>,
    ) -> Result<Link, DeviceError> {
        let limit = self.settings.ready_timeout;
        let deadline = Instant::now() + limit;
        loop {
            if let Some(ours) = self.hand_in(index, identity).await? {
                let link = Link::start(ours, |ours| {
                    Ok(serve(Self::handover(identity, info, ours)?))
                })
                .map_err(failed("serve a socket"))?;
                self.keep(identity, &link);
                return Ok(link);
            }
            if Instant::now() >= deadline {
                return Err(DeviceError::TimedOut {
                    what: "the end of the device's old connection",
                    limit,
                });
            }
            // No slot was dead. Its death is told, or was told before we listened: look again either way.
            let notice =
                async { while !matches!(notices.recv().await, Ok(dead) if dead == index) {} };
            let _ = tokio::time::timeout(NOTICE_LIMIT, notice).await;
        }
    }

    /// One attempt to hand in a new socket. `None`: the driver said yes and dropped it.
    async fn hand_in(
        &self,
        index: u32,
        identity: &Identity,
    ) -> Result<Option<UnixStream>, DeviceError> {
        let pair = link::pair();
        let (ours, theirs) = pair.map_err(failed("make a pair of sockets"))?;
        let (backend, limits) = (identity.backend.clone(), self.settings.limits);
        let result = self
            .call(move |driver| {
                driver.replace(&Replace {
                    index,
                    backend: &backend,
                    limits,
                    socket: theirs.as_fd(),
                })
            })
            .await;
        if let Err(error) = result {
            // The driver does not say which of many things is wrong; what can be seen is whose device it is.
            return match self.check_ours(index, identity).await {
                Err(lost @ DeviceError::Lost { .. }) => Err(lost),
                _ => Err(error.into()),
            };
        }
        Ok((!link::is_abandoned(&ours)).then_some(ours))
    }

    pub(super) async fn facts(&self, index: u32) -> Result<Facts, DeviceError> {
        self.call(move |driver| driver.facts(index))
            .await
            .map_err(failed("look at the device"))
    }

    pub(super) async fn check_ours(
        &self,
        index: u32,
        identity: &Identity,
    ) -> Result<Facts, DeviceError> {
        let facts = self.facts(index).await?;
        if facts.pid.is_none() || facts.backend.as_deref() != Some(&identity.backend) {
            let node = self.node(index);
            return Err(DeviceError::Lost { node });
        }
        Ok(facts)
    }

    /// Drops connections that the last life had kept, but for those of devices with these identifiers.
    pub fn keep_only(&self, backends: &[String]) {
        let wanted: Vec<_> = backends
            .iter()
            .map(|backend| stored_name(backend))
            .collect();
        for name in self.store.inherited_names() {
            if name.starts_with(STORED_PREFIX) && !wanted.contains(&name) {
                tracing::warn!(
                    name,
                    "a connection of an earlier life belongs to no attachment; it is dropped"
                );
                self.store.remove(&name);
            }
        }
    }
}

/// How a device of an earlier life was taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adopted {
    /// With the connection that it had.
    Kept,
    /// With a new connection; what was not answered comes again.
    Replaced,
}

impl Device {
    /// Its number.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Its node, as `/dev/nbd3`.
    #[must_use]
    pub fn node(&self) -> String {
        self.kernel.node(self.index)
    }

    /// What does not change.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Size that the kernel was told, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Sets the queue up and waits until the device answers.
    async fn make_ready(&self) -> Result<(), DeviceError> {
        self.tune().await;
        let (index, limit) = (self.index, self.kernel.settings.ready_timeout);
        let probe = self.kernel.call(move |driver| driver.probe(index));
        match tokio::time::timeout(limit, probe).await {
            Ok(probed) => probed.map_err(failed("read the first block of the device")),
            Err(_) => Err(DeviceError::TimedOut {
                what: "the first read of the device",
                limit,
            }),
        }
    }

    async fn tune(&self) {
        let (index, tuning) = (self.index, self.kernel.settings.tuning);
        if let Err(error) = self
            .kernel
            .call(move |driver| driver.tune(index, &tuning))
            .await
        {
            tracing::warn!(
                device = index, %error,
                "the queue of the device cannot be set up: requests in flight at a restart may wait for 30 s"
            );
        }
    }

    /// Waits for the end of its connection. As [`Link::wait_ended`].
    pub async fn wait_link_ended(&mut self) -> Ending {
        self.link.wait_ended().await
    }

    /// Gives it a new connection. Everything that was taken from the last one must have come to its end.
    ///
    /// # Errors
    /// [`DeviceError::Lost`] when it was taken away from outside.
    pub async fn reconnect(
        &mut self,
        info: &ExportInfo,
        serve: Serve<'_>,
    ) -> Result<(), DeviceError> {
        let kernel = self.kernel.clone();
        let mut notices = kernel.driver.dead_links();
        kernel.check_ours(self.index, &self.identity).await?;
        self.link.shut();
        kernel.store.remove(&stored_name(&self.identity.backend));
        self.link = kernel
            .replace(self.index, &self.identity, info, &mut notices, serve)
            .await?;
        Ok(())
    }

    /// Gives it another size, in a message of its own: together with a socket it could wait for itself.
    ///
    /// # Errors
    /// When the driver refuses, or is not done in time; it may still be done later.
    pub async fn resize(&mut self, size: Size) -> Result<(), DeviceError> {
        let (index, backend) = (self.index, self.identity.backend.clone());
        let limit = self.kernel.settings.ready_timeout;
        let resize = self
            .kernel
            .call(move |driver| driver.resize(index, &backend, size));
        match tokio::time::timeout(limit, resize).await {
            Ok(result) => result?,
            Err(_) => {
                let what = "the change of the device's size";
                return Err(DeviceError::TimedOut { what, limit });
            }
        }
        self.size_bytes = size.size_bytes;
        Ok(())
    }

    /// Takes it away, as [`KernelNbd::release`].
    ///
    /// # Errors
    /// As there.
    pub async fn release(&self, force: bool, answers: bool) -> Result<Released, DeviceError> {
        let link = Some(&self.link);
        self.kernel
            .release(self.index, &self.identity, link, force, answers)
            .await
    }
}

//! An attachment's kernel device: when it is made, found again, given a new connection, resized, taken away.
//!
//! ```text
//!            identifier written           first read answered
//!  (none) ----------------------> CONNECT --------------------> served --- detach: flush, DISCONNECT ---> (none)
//!                                                               |   ^
//!    daemon stops: parked, or its connection just ends          |   | connection over: once nothing of it is
//!    daemon dies                                                v   | under way, RECONFIGURE with a new one
//!  (found by its identifier) --- volume up again -------------> served
//! ```
//!
//! What the device's users may see: a pause. Errors only when it is detached by force, taken away from outside,
//! or when its volume can never work again.

use std::sync::Arc;
use std::time::Duration;

use berth_api::types::{DeviceWish, EventKind, NewEvent};
use berth_api::{AttachmentName, Code, Error};
use tokio::time::Instant;

use super::attachment::{Next, Task};
use super::failure;
use super::intent::KnownDevice;
use crate::nbd::export::ExportInfo;
use crate::nbd::kernel::device::{Adopted, BACKEND_PREFIX, Identity};
use crate::nbd::kernel::driver::{Facts, Size};
use crate::nbd::kernel::link::Ending;
use crate::nbd::kernel::release::Released;
use crate::nbd::kernel::{Device, DeviceError, Unavailable};
use crate::plane::Volume;
use crate::plane::spec::{Leave, VolumeHealth};

/// Pauses between attempts to give a device a new connection.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// A connection that broke before this age is not replaced at once: the next one may break as soon.
const LIVED: Duration = Duration::from_secs(1);

/// A device whose connection the volume serves, or should.
pub(super) struct Served {
    device: Device,
    /// Its connection is over; when the next attempt to replace it is due.
    retry: Option<Instant>,
    /// Pause before the attempt after that.
    pause: Duration,
    /// When it got its present connection.
    since: Instant,
}

impl Served {
    fn new(device: Device) -> Self {
        Self {
            device,
            retry: None,
            pause: RETRY_FIRST,
            since: Instant::now(),
        }
    }

    /// Replaces its connection after a pause, which grows.
    fn retry_later(&mut self) {
        self.retry = Some(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(RETRY_MAX);
    }
}

/// What became of a device.
pub(super) enum DeviceEvent {
    /// Its connection is over.
    LinkOver(Ending),
    /// Its connection is to be replaced now.
    RetryDue,
}

/// The next thing to do about the device, if there is one. Can be dropped and called again.
pub(super) async fn next_event(device: &mut Option<Served>) -> DeviceEvent {
    match device {
        None => std::future::pending().await,
        Some(Served {
            retry: Some(at), ..
        }) => {
            tokio::time::sleep_until(*at).await;
            DeviceEvent::RetryDue
        }
        Some(served) => {
            let ending = served.device.wait_link_ended().await;
            // Until it is replaced there is nothing to wait for. One that lived long is replaced at once.
            if served.since.elapsed() > LIVED {
                served.pause = Duration::ZERO;
            }
            served.retry_later();
            served.pause = served.pause.max(RETRY_FIRST);
            DeviceEvent::LinkOver(ending)
        }
    }
}

/// The identifier of a new device: unique for ever, and it names the attachment.
fn new_backend(name: &AttachmentName) -> Result<String, Error> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| Error::internal(error.to_string()))?;
    Ok(format!(
        "{BACKEND_PREFIX}{:016x}.{name}",
        u64::from_ne_bytes(random)
    ))
}

fn size_of(volume: &Volume) -> Size {
    let geometry = volume.geometry();
    Size {
        size_bytes: geometry.size_bytes,
        block_bytes: geometry.logical_block_bytes,
    }
}

impl Task {
    fn export(&self, volume: &Volume) -> ExportInfo {
        ExportInfo::new(self.name.as_str(), "", &volume.geometry())
    }

    fn identity(&self, known: &KnownDevice) -> Identity {
        Identity {
            backend: known.backend.clone(),
            export: self.name.to_string(),
            flags: known.flags,
        }
    }

    /// Makes the device of a volume that is up, or takes the one over that there is.
    pub(super) async fn bring_device_up(&mut self, volume: &Arc<Volume>) -> Result<(), Error> {
        debug_assert!(self.device.is_none(), "the last one was left");
        let kernel = self.context.kernel.clone();
        if self.intent.request.device == DeviceWish::Socket {
            self.show_device(None);
            return Ok(());
        }
        if let Err(reason) = kernel.available().await {
            return self.do_without(&reason);
        }
        let device = match self.find_device().await? {
            Some((facts, known)) => self.adopt_device(volume, &facts, known).await,
            None => self.make_device(volume).await,
        };
        let device = device?;
        tracing::info!(
            volume = %self.name, device = device.node(), backend = device.identity().backend,
            "the kernel device is up"
        );
        self.device = Some(Served::new(device));
        self.show_device(None);
        self.sync_device_size(volume).await;
        Ok(())
    }

    /// There can be no device: fails, or leaves it at the socket.
    fn do_without(&mut self, reason: &Unavailable) -> Result<(), Error> {
        let must =
            self.intent.request.device == DeviceWish::Kernel || self.context.kernel.is_always();
        if must {
            // After a start of the node the module may come a moment later.
            let error = failure::no_device(reason).with_retryable(true);
            return Err(error.with_attachment(&self.name));
        }
        self.show_device(Some(format!("{reason}; the NBD socket serves alone")));
        Ok(())
    }

    /// The device of an earlier life.
    async fn find_device(&self) -> Result<Option<(Facts, KnownDevice)>, Error> {
        let Some(known) = self.intent.device.clone() else {
            return Ok(None);
        };
        let found = self.context.kernel.find(&known.backend).await;
        let found = found.map_err(|error| failure::from_device(error, &self.name))?;
        Ok(found.map(|facts| (facts, known)))
    }

    async fn make_device(&mut self, volume: &Arc<Volume>) -> Result<Device, Error> {
        let info = self.export(volume);
        let known = KnownDevice {
            backend: new_backend(&self.name)?,
            flags: info.flags.bits(),
            parked: false,
        };
        // First what it will be known by: a crash at any point after this leaves a device that is found.
        self.intent.device = Some(known.clone());
        self.keep_intent().await?;
        let serving = Arc::clone(volume);
        let serve = move |handover| serving.serve_kernel(handover);
        let (identity, size) = (self.identity(&known), size_of(volume));
        let made = self.context.kernel.connect(identity, &info, size, &serve);
        made.await
            .map_err(|error| failure::from_device(error, &self.name))
    }

    async fn adopt_device(
        &mut self,
        volume: &Arc<Volume>,
        facts: &Facts,
        mut known: KnownDevice,
    ) -> Result<Device, Error> {
        // From here on the connection is in use: after a crash nobody knows where its stream stands.
        let parked = std::mem::take(&mut known.parked);
        if parked {
            self.intent.device = Some(known.clone());
            self.keep_intent().await?;
        }
        let serving = Arc::clone(volume);
        let info = self.export(volume);
        let serve = move |handover| serving.serve_kernel(handover);
        let kernel = self.context.kernel.clone();
        let identity = self.identity(&known);
        let adopted = kernel
            .adopt(facts.index, identity, &info, parked, &serve)
            .await;
        match adopted {
            Ok((device, Adopted::Kept)) => {
                tracing::info!(volume = %self.name, device = device.node(), "the device's connection was kept");
                Ok(device)
            }
            Ok((device, Adopted::Replaced)) => {
                tracing::info!(volume = %self.name, device = device.node(), "the device has a new connection");
                Ok(device)
            }
            Err(error) => Err(failure::from_device(error, &self.name)),
        }
    }

    /// Shows the device, or why there is none.
    fn show_device(&self, detail: Option<String>) {
        let node = self.device.as_ref().map(|served| served.device.node());
        self.view.send_modify(|view| {
            view.device.clone_from(&node);
            view.device_detail = detail;
        });
    }

    /// Tells the kernel the size of the volume, if it is another one and I/O works: on newer kernels it waits
    /// for what is in flight.
    pub(super) async fn sync_device_size(&mut self, volume: &Volume) {
        let Some(served) = &mut self.device else {
            return;
        };
        let size = size_of(volume);
        let works = matches!(volume.status().borrow().health, VolumeHealth::Up);
        if served.device.size_bytes() == size.size_bytes || !works {
            return;
        }
        match served.device.resize(size).await {
            Ok(()) => {
                tracing::info!(volume = %self.name, size_bytes = size.size_bytes, "the device was resized");
            }
            Err(error) => {
                tracing::error!(volume = %self.name, %error, "the device cannot be resized");
            }
        }
    }

    /// Deals with a connection that is over. Gives what is next when the device is gone.
    pub(super) async fn on_device_event(
        &mut self,
        volume: &Arc<Volume>,
        event: DeviceEvent,
    ) -> Option<Next> {
        match event {
            DeviceEvent::LinkOver(Ending::Disconnected) => {
                let node = self.device.as_ref()?.device.node();
                return Some(self.device_lost(volume, DeviceError::Lost { node }).await);
            }
            DeviceEvent::LinkOver(Ending::Over(why)) => {
                tracing::warn!(volume = %self.name, why, "the connection of the device is over");
                return None; // It is replaced when that is due.
            }
            DeviceEvent::LinkOver(Ending::Parked) => return None,
            DeviceEvent::RetryDue => {}
        }
        if !matches!(volume.status().borrow().health, VolumeHealth::Failed { .. }) {
            let info = self.export(volume);
            let serving = Arc::clone(volume);
            let serve = move |handover| serving.serve_kernel(handover);
            let served = self.device.as_mut()?;
            match served.device.reconnect(&info, &serve).await {
                Ok(()) => {
                    served.retry = None;
                    served.since = Instant::now();
                    let node = served.device.node();
                    self.notice(format!("{}: {node} has a new connection", self.name), None);
                    return None;
                }
                Err(error @ DeviceError::Lost { .. }) => {
                    return Some(self.device_lost(volume, error).await);
                }
                Err(error) => {
                    tracing::error!(volume = %self.name, %error, "the device has no connection; its I/O waits");
                }
            }
        }
        if let Some(served) = &mut self.device {
            served.retry_later();
        }
        None
    }

    /// Somebody else has disconnected it.
    async fn device_lost(&mut self, volume: &Volume, error: DeviceError) -> Next {
        let error = failure::from_device(error, &self.name);
        self.device = None;
        self.intent.device = None;
        self.show_device(Some(error.detail().to_owned()));
        let _ = volume.begin_detach(true).await;
        self.intent.clean = volume.end(Leave::Stop).await;
        self.keep_intent_or_log().await;
        Next::Failed(error)
    }

    /// Takes the device of a volume that is up away, for a detach.
    pub(super) async fn release_device(
        &mut self,
        volume: &Volume,
        force: bool,
    ) -> Result<(), Error> {
        let Some(served) = &self.device else {
            return Ok(());
        };
        let answers =
            served.retry.is_none() && matches!(volume.status().borrow().health, VolumeHealth::Up);
        let released = served.device.release(force, answers).await;
        let released = released.map_err(|error| failure::from_device(error, &self.name))?;
        let node = served.device.node();
        self.forget_device(&node, &released);
        Ok(())
    }

    /// The same while no volume is up: the device of an earlier life.
    pub(super) async fn release_device_unserved(&mut self, force: bool) -> Result<(), Error> {
        let Some((facts, known)) = self.find_device().await? else {
            return Ok(());
        };
        let kernel = self.context.kernel.clone();
        let released = kernel
            .release(facts.index, &self.identity(&known), None, force, false)
            .await
            .map_err(|error| failure::from_device(error, &self.name))?;
        self.forget_device(&kernel.node(facts.index), &released);
        Ok(())
    }

    fn forget_device(&mut self, node: &str, released: &Released) {
        self.device = None;
        // The next device is another one, even if this one is still open somewhere.
        self.intent.device = None;
        let detail = match released {
            Released::Free => None,
            Released::StillOpen => {
                let detail =
                    format!("{node} was taken away and is still open: its users get errors");
                self.notice(format!("{}: {detail}", self.name), None);
                Some(detail)
            }
        };
        self.show_device(detail);
    }

    /// The volume has ended: keeps whether the device's connection can be gone on with.
    pub(super) async fn leave_device(&mut self) {
        let Some(mut served) = self.device.take() else {
            return;
        };
        // It has ended with the volume.
        let parked =
            served.retry.is_none() && served.device.wait_link_ended().await == Ending::Parked;
        if let Some(known) = &mut self.intent.device {
            known.parked = parked && self.context.kernel.keeps_connections();
        }
        self.show_device(None);
    }

    /// How long users of the device wait before they get errors, when the attachment has failed; `None`: for
    /// ever, or there is no device.
    pub(super) fn device_patience(&self, error: &Error) -> Option<Duration> {
        self.intent.device.as_ref()?;
        match error.code() {
            // It will not come back, or not as what it was.
            Code::Fenced | Code::IdentityMismatch | Code::NotFound => Some(Duration::ZERO),
            _ => self
                .intent
                .recovery_timeout(self.context.recovery_timeout)
                .as_duration(),
        }
    }

    /// The attachment has failed for good: whoever uses the device gets errors, and does not wait for ever.
    pub(super) async fn give_device_up(&mut self) {
        let found = matches!(self.find_device().await, Ok(Some(_)));
        if let Err(error) = self.release_device_unserved(true).await {
            tracing::error!(volume = %self.name, %error, "the device of a failed attachment cannot be taken away");
            return;
        }
        self.intent.device = None;
        self.keep_intent_or_log().await;
        if found {
            let message = format!(
                "{}: its device was taken away, because the attachment has failed",
                self.name
            );
            self.notice(message, Some(Code::DeviceLost));
        }
    }

    fn notice(&self, message: String, code: Option<Code>) {
        tracing::info!(volume = %self.name, code = code.map(Code::as_str), "{message}");
        self.context.events.publish(NewEvent {
            attachment: Some(self.name.clone()),
            ..NewEvent::new(EventKind::Notice, message)
        });
    }
}

#[cfg(all(test, feature = "sim"))]
#[path = "device_tests.rs"]
mod tests;

//! The NBD driver of the running kernel: netlink, sysfs and the device nodes.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command as Program, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;

use super::driver::{
    Claim, Connect, Driver, DriverError, Facts, LinkLimits, Replace, Size, Tuning, Unavailable,
};
use super::netlink::{
    Attribute, Client, Command, Family, NetlinkError, Notices, attribute, held_devices, index_of,
    socket_attribute,
};
use super::sysfs::Sysfs;
use super::users::{self, User};

/// Notices kept for a listener that is busy; each is for one death, and a missed one is made up for by looking.
const NOTICES_KEPT: usize = 256;
/// Pause after netlink could not be read, so that a failure that lasts does not spin.
const NOTICES_RETRY: Duration = Duration::from_secs(1);
/// First kernel with identifiers of devices (`BACKEND_IDENTIFIER`), without which a device cannot be found again.
const KERNEL_MIN: (u32, u32) = (5, 14);

/// The driver of the running kernel.
#[derive(Debug)]
pub struct LinuxDriver {
    client: Result<Client, Unavailable>,
    sysfs: Sysfs,
    dead_links: broadcast::Sender<u32>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    family: Option<Family>,
    listener: Option<JoinHandle<()>>,
}

impl LinuxDriver {
    /// Opens it. When it is `wanted` and the kernel has no NBD, `modprobe` is asked for it, this once. To be
    /// called within a runtime, where it may block.
    #[must_use]
    pub fn open(wanted: bool) -> Self {
        let driver = Self {
            client: Client::open().map_err(|error| Unavailable::Failed(error.to_string())),
            sysfs: Sysfs::system(),
            dead_links: broadcast::Sender::new(NOTICES_KEPT),
            state: Mutex::default(),
        };
        if wanted && driver.available() == Err(Unavailable::NoFamily) {
            load_module();
        }
        driver
    }

    /// The family as it is now; a module that was loaded meanwhile is found.
    fn family(&self) -> Result<(&Client, Family), Unavailable> {
        let client = self.client.as_ref().map_err(Clone::clone)?;
        let family = client
            .family()
            .map_err(|error| Unavailable::Failed(error.to_string()))?
            .ok_or(Unavailable::NoFamily)?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.family != Some(family) {
            self.listen(&mut state, family)?;
            state.family = Some(family);
        }
        Ok((client, family))
    }

    /// Listens to notices of this family, instead of an older one.
    fn listen(&self, state: &mut State, family: Family) -> Result<(), Unavailable> {
        let runtime = tokio::runtime::Handle::try_current()
            .map_err(|error| Unavailable::Failed(error.to_string()))?;
        let _inside = runtime.enter();
        let notices = Notices::subscribe(family)
            .map_err(|error| Unavailable::Failed(format!("no notices: {error}")))?;
        let sender = self.dead_links.clone();
        let listener = runtime.spawn(async move {
            loop {
                match notices.dead_links().await {
                    Ok(dead) => {
                        for index in dead {
                            tracing::debug!(device = index, "a connection of the device is dead");
                            let _ = sender.send(index);
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "notices of the kernel's NBD cannot be read");
                        tokio::time::sleep(NOTICES_RETRY).await;
                    }
                }
            }
        });
        if let Some(old) = state.listener.replace(listener) {
            old.abort();
        }
        Ok(())
    }

    fn request(
        &self,
        what: &'static str,
        command: Command,
        attributes: Result<Vec<neli::genl::Nlattr<u16, neli::types::Buffer>>, NetlinkError>,
    ) -> Result<Option<u32>, DriverError> {
        let failed = |detail: String| DriverError::Failed { what, detail };
        let (client, family) = self.family().map_err(|error| failed(error.to_string()))?;
        let attributes = attributes.map_err(|error| failed(error.to_string()))?;
        match client.request(family, command, attributes) {
            Ok(answers) => Ok(answers.iter().find_map(index_of)),
            Err(NetlinkError::Refused(errno)) => Err(DriverError::Refused { what, errno }),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    fn path(&self, index: u32) -> PathBuf {
        self.node(index).into()
    }

    /// Whether somebody holds a configuration of the device: the connection, or an opener.
    fn held(&self, index: u32) -> io::Result<bool> {
        let other = |error: &dyn std::fmt::Display| io::Error::other(error.to_string());
        let (client, family) = self.family().map_err(|error| other(&error))?;
        let index_attribute =
            attribute(Attribute::Index as u16, index).map_err(|error| other(&error))?;
        let answers = match client.request(family, Command::Status, vec![index_attribute]) {
            Ok(answers) => answers,
            // No such device.
            Err(NetlinkError::Refused(Errno::INVAL | Errno::NODEV)) => return Ok(false),
            Err(error) => return Err(other(&error)),
        };
        Ok(answers
            .iter()
            .flat_map(held_devices)
            .any(|(device, held)| device == index && held))
    }
}

impl Drop for LinuxDriver {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(listener) = state.listener.take() {
            listener.abort();
        }
    }
}

/// Attributes that CONNECT (`first`) and RECONFIGURE share.
///
/// A timeout of zero is not said again: the driver would put the device's `io_timeout` back to 30 s, and what is sent before it
/// is set anew, and lost once more, would wait as long.
fn limits(
    limits: &LinkLimits,
    first: bool,
) -> Result<Vec<neli::genl::Nlattr<u16, neli::types::Buffer>>, NetlinkError> {
    let seconds = |duration: Duration| {
        // Rounded up: a fraction must not become "never".
        duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
    };
    let mut attributes = vec![attribute(
        Attribute::DeadConnTimeout as u16,
        seconds(limits.dead_conn_timeout),
    )?];
    if first || !limits.request_timeout.is_zero() {
        attributes.push(attribute(
            Attribute::Timeout as u16,
            seconds(limits.request_timeout),
        )?);
    }
    Ok(attributes)
}

impl Driver for LinuxDriver {
    fn available(&self) -> Result<(), Unavailable> {
        let release = rustix::system::uname();
        let release = release.release().to_string_lossy();
        let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>());
        if let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next())
            && (major, minor) < KERNEL_MIN
        {
            return Err(Unavailable::TooOld("devices have no identifiers"));
        }
        self.family().map(drop)
    }

    fn connect(&self, device: &Connect<'_>) -> Result<u32, DriverError> {
        let attributes = || {
            let mut attributes = limits(&device.limits, true)?;
            attributes.extend([
                attribute(Attribute::SizeBytes as u16, device.size.size_bytes)?,
                attribute(
                    Attribute::BlockSizeBytes as u16,
                    u64::from(device.size.block_bytes),
                )?,
                attribute(Attribute::ServerFlags as u16, u64::from(device.flags))?,
                attribute(Attribute::BackendIdentifier as u16, device.backend)?,
                socket_attribute(device.socket.as_raw_fd())?,
            ]);
            Ok(attributes)
        };
        self.request("CONNECT", Command::Connect, attributes())?
            .ok_or_else(|| DriverError::Failed {
                what: "CONNECT",
                detail: "the answer does not name the device".to_owned(),
            })
    }

    fn replace(&self, replace: &Replace<'_>) -> Result<(), DriverError> {
        let attributes = || {
            let mut attributes = limits(&replace.limits, false)?;
            attributes.extend([
                attribute(Attribute::Index as u16, replace.index)?,
                attribute(Attribute::BackendIdentifier as u16, replace.backend)?,
                socket_attribute(replace.socket.as_raw_fd())?,
            ]);
            Ok(attributes)
        };
        self.request("RECONFIGURE", Command::Reconfigure, attributes())
            .map(drop)
    }

    fn resize(&self, index: u32, backend: &str, size: Size) -> Result<(), DriverError> {
        let attributes = || {
            Ok(vec![
                attribute(Attribute::Index as u16, index)?,
                attribute(Attribute::BackendIdentifier as u16, backend)?,
                attribute(Attribute::SizeBytes as u16, size.size_bytes)?,
                attribute(
                    Attribute::BlockSizeBytes as u16,
                    u64::from(size.block_bytes),
                )?,
            ])
        };
        self.request(
            "RECONFIGURE of the size",
            Command::Reconfigure,
            attributes(),
        )
        .map(drop)
    }

    fn disconnect(&self, index: u32) -> Result<(), DriverError> {
        let attributes = || Ok(vec![attribute(Attribute::Index as u16, index)?]);
        self.request("DISCONNECT", Command::Disconnect, attributes())
            .map(drop)
    }

    fn devices(&self) -> io::Result<Vec<Facts>> {
        let mut devices = Vec::new();
        for index in self.sysfs.indices()? {
            let facts = self.sysfs.facts(index)?;
            if facts.pid.is_some() || facts.backend.is_some() {
                devices.push(facts);
            }
        }
        Ok(devices)
    }

    fn facts(&self, index: u32) -> io::Result<Facts> {
        let mut facts = self.sysfs.facts(index)?;
        facts.held |= self.held(index)?;
        Ok(facts)
    }

    fn users(&self, index: u32) -> io::Result<Vec<User>> {
        let holders = self.sysfs.holders(index)?;
        let numbers = self.sysfs.numbers(index)?;
        let node = self.node(index);
        let mut users = users::of(Path::new("/proc"), &numbers, &[node])?;
        users.extend(holders.into_iter().map(|device| User::Holder { device }));
        Ok(users)
    }

    fn claim(&self, index: u32) -> io::Result<Option<Claim>> {
        // Without O_CREAT the flag means a claim on the block device: mounts, swap and device mapper hold one.
        let exclusive = i32::try_from(rustix::fs::OFlags::EXCL.bits()).unwrap_or(0);
        let node = OpenOptions::new()
            .read(true)
            .custom_flags(exclusive)
            .open(self.path(index));
        match node {
            Ok(node) => Ok(Some(Claim::new(Some(node)))),
            Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn flush(&self, index: u32) -> io::Result<()> {
        // Read-only: udev looks at devices again that were open for writing.
        File::open(self.path(index))?.sync_all()
    }

    fn probe(&self, index: u32) -> io::Result<()> {
        let mut block = [0; 512];
        File::open(self.path(index))?.read_exact(&mut block)
    }

    fn tune(&self, index: u32, tuning: &Tuning) -> io::Result<()> {
        // Apart from each other: one of them may be refused.
        let announced = self.sysfs.announce(index);
        self.sysfs.tune(index, tuning).and(announced)
    }

    fn dead_links(&self) -> broadcast::Receiver<u32> {
        self.dead_links.subscribe()
    }
}

/// Asks for the module. What comes of it shows when the family is looked up.
fn load_module() {
    let modprobe = Program::new("modprobe")
        .args(["-q", "nbd"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match modprobe {
        Ok(status) if status.success() => tracing::info!("the kernel module nbd was loaded"),
        Ok(status) => tracing::info!(%status, "the kernel module nbd was not loaded"),
        Err(error) => {
            tracing::info!(%error, "modprobe cannot be run; the module nbd was not loaded");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by killing the daemon 200 times: I/O that waited for 30 and 60 s.
    #[test]
    fn a_new_connection_does_not_put_the_resend_interval_back() {
        let sent = |request_timeout, first| {
            let limits = LinkLimits {
                request_timeout,
                dead_conn_timeout: Duration::from_secs(86_400),
            };
            let sent = super::limits(&limits, first).expect("attributes");
            let mut kinds: Vec<u16> = sent
                .iter()
                .map(|sent| *sent.nla_type().nla_type())
                .collect();
            kinds.sort_unstable();
            kinds
        };
        let (timeout, dead) = (Attribute::Timeout as u16, Attribute::DeadConnTimeout as u16);
        let both = if timeout < dead {
            vec![timeout, dead]
        } else {
            vec![dead, timeout]
        };
        assert_eq!(sent(Duration::ZERO, true), both);
        assert_eq!(sent(Duration::ZERO, false), [dead]);
        assert_eq!(sent(Duration::from_secs(20), false), both);
    }
}

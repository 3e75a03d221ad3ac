//! What the Node service does to the node: devices, file systems and mounts, behind a trait so that the rules can be tested where
//! there are no kernel devices.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_api::types::{Attachment, DeviceWish};
use tokio::sync::Semaphore;
use tonic::Status;

use crate::command::Program;
use crate::filesystem::{self, Content, FsType};
use crate::limits::Limits;
use crate::mount;

/// How long a file system may take to say how full it is: one that does not answer is not asked for longer.
const USAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// File systems that are asked at a time.
const USAGE_CHILDREN_MAX: usize = 16;

/// What is mounted at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Type of the file system; of a device that is shown at a file the one that the device node is on.
    pub fs: String,
    /// Whether nothing can be written there.
    pub read_only: bool,
    /// Whether it is the file system, or the node, of the device that was asked about.
    pub is_of_device: bool,
}

/// How full a file system is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Size, what is free for users, and what is used, in bytes.
    pub bytes: [u64; 3],
    /// The same for inodes; nothing where the file system has no fixed number of them.
    pub inodes: Option<[u64; 3]>,
}

/// Devices, file systems and mounts of a node. Nothing here takes longer than its own limit, whatever the device does.
#[tonic::async_trait]
pub trait Host: Debug + Send + Sync + 'static {
    /// What an attach asks for.
    fn wish(&self) -> DeviceWish;

    /// The device of an attachment, if it has one.
    fn device(&self, attachment: &Attachment) -> Option<PathBuf>;

    /// What is on a device.
    async fn content(&self, device: &Path) -> Result<Content, Status>;

    /// Makes a file system on a device that is proven blank.
    async fn make(&self, device: &Path, fs: FsType) -> Result<(), Status>;

    /// Checks a file system that is not mounted.
    async fn check(&self, device: &Path, fs: FsType) -> Result<(), Status>;

    /// Grows a mounted file system to its device's size, which it gives.
    async fn grow(&self, device: &Path, at: &Path, fs: FsType) -> Result<u64, Status>;

    /// Mounts a file system.
    async fn mount(
        &self,
        device: &Path,
        at: &Path,
        fs: FsType,
        flags: &[String],
        read_only: bool,
    ) -> Result<(), Status>;

    /// Shows what is mounted at `from` at the directory `to`, too.
    async fn bind(&self, from: &Path, to: &Path, read_only: bool) -> Result<(), Status>;

    /// Shows a device at the file `to`, which is made.
    async fn bind_block(&self, device: &Path, to: &Path) -> Result<(), Status>;

    /// Takes away all that is mounted at a path.
    async fn unmount(&self, at: &Path) -> Result<(), Status>;

    /// What is on top of a path; nothing when nothing is mounted there.
    fn mounted(&self, at: &Path, device: Option<&Path>) -> Result<Option<Mounted>, Status>;

    /// How full the file system is; nothing when it does not answer.
    async fn usage(&self, at: &Path) -> Result<Option<Usage>, Status>;
}

/// The node itself.
#[derive(Debug)]
pub struct RealHost {
    limits: Limits,
    asking: Semaphore,
}

impl RealHost {
    /// The node, on which nothing takes longer than this.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            asking: Semaphore::new(USAGE_CHILDREN_MAX),
        }
    }
}

fn of_fs(error: &filesystem::Error) -> Status {
    use filesystem::Error as E;
    let text = error.to_string();
    match error {
        E::NotBlank { .. } | E::Damaged { .. } => Status::failed_precondition(text),
        E::InUse { .. } => Status::aborted(text),
        _ if error.is_timeout() => Status::deadline_exceeded(text),
        // What is on the device is not known; it may be next time.
        E::Device { .. } => Status::unavailable(text),
        _ => Status::internal(text),
    }
}

fn of_mount(error: &mount::Error) -> Status {
    use mount::Error as E;
    let text = error.to_string();
    match error {
        E::Flag(_) => Status::invalid_argument(text),
        E::Busy { .. } => Status::aborted(text),
        _ if error.is_timeout() => Status::deadline_exceeded(text),
        _ => Status::internal(text),
    }
}

#[tonic::async_trait]
impl Host for RealHost {
    fn wish(&self) -> DeviceWish {
        DeviceWish::Kernel
    }

    fn device(&self, attachment: &Attachment) -> Option<PathBuf> {
        attachment.device.as_ref().map(PathBuf::from)
    }

    async fn content(&self, device: &Path) -> Result<Content, Status> {
        let content = filesystem::probe(device, &self.limits).await;
        content.map_err(|error| of_fs(&error))
    }

    async fn make(&self, device: &Path, fs: FsType) -> Result<(), Status> {
        let made = filesystem::make(device, fs, &[], &self.limits).await;
        made.map_err(|error| of_fs(&error))
    }

    async fn check(&self, device: &Path, fs: FsType) -> Result<(), Status> {
        let checked = filesystem::check(device, fs, &self.limits).await;
        checked.map_err(|error| of_fs(&error))
    }

    async fn grow(&self, device: &Path, at: &Path, fs: FsType) -> Result<u64, Status> {
        let grown = filesystem::grow(device, at, fs, &self.limits).await;
        grown.map_err(|error| of_fs(&error))
    }

    async fn mount(
        &self,
        device: &Path,
        at: &Path,
        fs: FsType,
        flags: &[String],
        read_only: bool,
    ) -> Result<(), Status> {
        let mounted = mount::mount_device(device, at, fs, flags, read_only, &self.limits).await;
        mounted.map_err(|error| of_mount(&error))
    }

    async fn bind(&self, from: &Path, to: &Path, read_only: bool) -> Result<(), Status> {
        let bound = mount::bind(from, to, read_only, &self.limits).await;
        bound.map_err(|error| of_mount(&error))
    }

    async fn bind_block(&self, device: &Path, to: &Path) -> Result<(), Status> {
        let bound = mount::bind_block(device, to, &self.limits).await;
        bound.map_err(|error| of_mount(&error))
    }

    async fn unmount(&self, at: &Path) -> Result<(), Status> {
        let unmounted = mount::unmount_all(at, &self.limits).await;
        unmounted.map_err(|error| of_mount(&error))
    }

    fn mounted(&self, at: &Path, device: Option<&Path>) -> Result<Option<Mounted>, Status> {
        let mut mounts = mount::at(at).map_err(|error| of_mount(&error))?;
        Ok(mounts.pop().map(|top| {
            // A device that is shown at a file: a bind of its node, which lies in a file system of nodes.
            let is_node = |device: &Path| {
                top.root.file_name() == device.file_name() && top.root != Path::new("/")
            };
            Mounted {
                read_only: top.is_read_only(),
                is_of_device: device.is_some_and(|device| top.is_of(device) || is_node(device)),
                fs: top.fs_type,
            }
        }))
    }

    async fn usage(&self, at: &Path) -> Result<Option<Usage>, Status> {
        // In a process of its own, as all that may wait for a device.
        let Ok(_permit) = self.asking.try_acquire() else {
            return Ok(None);
        };
        let asked = Program::new("stat", "coreutils")
            .args(["--file-system", "--format", USAGE_FORMAT, "--"])
            .arg(at)
            .succeed(USAGE_TIMEOUT)
            .await;
        match asked {
            Ok(output) => parse_usage(&output.stdout).map(Some).ok_or_else(|| {
                Status::internal(format!("{}: stat gave {:?}", at.display(), output.stdout))
            }),
            Err(error) if error.is_timeout() => Ok(None),
            Err(error) => Err(Status::internal(format!("{}: {error}", at.display()))),
        }
    }
}

/// What `stat` is asked for: the unit, all blocks, free ones, those free for users, all inodes, free ones.
const USAGE_FORMAT: &str = "%S %b %f %a %c %d";

fn parse_usage(text: &str) -> Option<Usage> {
    let numbers: Option<Vec<u64>> = text
        .split_whitespace()
        .map(|word| word.parse().ok())
        .collect();
    let [unit, all, free, available, inodes, inodes_free] = *numbers?.as_slice() else {
        return None;
    };
    let bytes = |blocks: u64| blocks.saturating_mul(unit);
    let used = all.saturating_sub(free);
    Some(Usage {
        bytes: [bytes(all), bytes(available), bytes(used)],
        inodes: (inodes > 0).then(|| [inodes, inodes_free, inodes.saturating_sub(inodes_free)]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stat_says() {
        let usage = parse_usage("4096 1000 400 350 64 60\n").unwrap();
        assert_eq!(usage.bytes, [4_096_000, 1_433_600, 2_457_600]);
        assert_eq!(usage.inodes, Some([64, 60, 4]));
        assert_eq!(parse_usage("4096 1 1 1 0 0").unwrap().inodes, None);
        for wrong in ["", "1 2 3", "1 2 3 4 5 x", "1 2 3 4 5 6 7", "-1 0 0 0 0 0"] {
            assert_eq!(parse_usage(wrong), None, "{wrong}");
        }
    }

    #[tokio::test]
    async fn the_root_has_a_size() {
        let host = RealHost::new(Limits::default());
        let usage = host.usage(Path::new("/")).await.unwrap().unwrap();
        let [total, available, used] = usage.bytes;
        assert!(
            total > 0 && available <= total && used <= total,
            "{usage:?}"
        );
        assert!(host.usage(Path::new("/no/such/path")).await.is_err());
    }
}

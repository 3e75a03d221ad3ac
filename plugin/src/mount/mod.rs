//! Mounts: what is mounted where, mounting devices and parts of the tree, and undoing it.
//!
//! Mounting is left to `mount(8)` and `umount(8)`, as kubelet does: each is a process that can be given a deadline (a system
//! call that waits for a dead device cannot), they know all options of all file systems, and what they leave behind for other
//! tools is what those expect. What came of it is read from the mount table, not from their words.

mod flags;
mod table;

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::command::{self, Output, Program};
use crate::filesystem::FsType;
use crate::limits::Limits;

pub use flags::FlagError;
pub use table::{Mount, at, table};

/// Most mounts on one path that [`unmount_all`] takes away before it gives up: more means that somebody mounts as fast.
const STACK_MAX: usize = 64;
/// How long between two tries to unmount what is busy.
const BUSY_PAUSE: Duration = Duration::from_millis(100);
/// Kept by `mount(8)` for other tools: on a network. The service manager unmounts it while berthd still serves, when the machine goes
/// down; without it the daemon would go first, and what is not written yet could not leave.
const ON_NETWORK: &str = "_netdev";
/// The package of `mount(8)`.
const MOUNT_PACKAGE: &str = "mount";

/// Why a mount could not be made or undone.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The mount table cannot be read or understood.
    #[error("the table of mounts cannot be used: {what}")]
    Table {
        /// What is wrong with it.
        what: String,
    },
    /// A mount flag cannot be meant.
    #[error(transparent)]
    Flag(#[from] FlagError),
    /// Something is wrong with the path to mount at.
    #[error("cannot use {}: {source}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Something else than what was wanted is mounted there now.
    #[error("after the mount, {found} is mounted at {} and not {wanted}", target.display())]
    Other {
        /// Where.
        target: PathBuf,
        /// What should be there.
        wanted: String,
        /// What is.
        found: String,
    },
    /// Something has it open.
    #[error("{} is in use: a process has files open there or works in it", target.display())]
    Busy {
        /// Where.
        target: PathBuf,
    },
    /// `mount(8)` or `umount(8)` failed or took too long.
    #[error("{}: {source}", target.display())]
    Command {
        /// Where.
        target: PathBuf,
        /// What happened.
        source: command::Error,
    },
}

impl Error {
    /// Whether it took too long, so that nobody knows yet what will come of it.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Command { source, .. } if source.is_timeout())
    }
}

/// Mounts the file system of a device. The directory has to exist.
///
/// The flags are mount options, one each, as `noatime`; they may hold secrets and are never shown. An XFS is mounted with
/// `nouuid`: a clone of a volume that is mounted here has the same UUID, and which volume this is has been made sure of
/// otherwise.
///
/// # Errors
/// See [`Error`]. After an error other than a timeout nothing of it is mounted.
pub async fn mount_device(
    device: &Path,
    target: &Path,
    fs: FsType,
    flags: &[String],
    read_only: bool,
    limits: &Limits,
) -> Result<(), Error> {
    let mut options = vec![if read_only { "ro" } else { "rw" }, ON_NETWORK];
    if fs == FsType::Xfs && !flags.iter().any(|flag| flag == "nouuid") {
        options.push("nouuid");
    }
    let options = flags::join(&options, flags)?;
    let program = mount()
        .args(["-t", fs.as_str(), "-o"])
        .arg(options)
        .arg("--")
        .args([device, target]);
    run(program, target, limits).await?;
    expect_top(target, &device.display().to_string(), |mount| {
        mount.is_of(device)
    })
    .await
}

/// Shows a directory at another place too. Both have to exist; `read_only` holds for the new place only.
///
/// # Errors
/// See [`Error`]. After an error other than a timeout the new place is as before.
pub async fn bind(
    source: &Path,
    target: &Path,
    read_only: bool,
    limits: &Limits,
) -> Result<(), Error> {
    let before = at(target)?.len();
    let program = mount()
        .args(["--bind", "-o", ON_NETWORK, "--"])
        .args([source, target]);
    run(program, target, limits).await?;
    if at(target)?.len() <= before {
        return Err(Error::Other {
            target: target.to_owned(),
            wanted: source.display().to_string(),
            found: "nothing new".to_owned(),
        });
    }
    if !read_only {
        return Ok(());
    }
    // The kernel takes no other flag together with a bind: that needs a second step (mount(2)).
    let options = format!("remount,bind,ro,{ON_NETWORK}");
    let program = mount().args(["-o", &options, "--"]).arg(target);
    let remounted = match run(program, target, limits).await {
        Ok(()) => expect_top(target, "a mount that is read only", Mount::is_read_only).await,
        failed => failed,
    };
    if remounted.is_err() {
        // The first error tells more.
        let _ = unmount_once(target, limits.unmount).await;
    }
    remounted
}

/// Shows a device node at a file, which is made if it does not exist: a volume without a file system.
///
/// # Errors
/// See [`Error`]. After an error other than a timeout the file is as before.
pub async fn bind_block(device: &Path, target: &Path, limits: &Limits) -> Result<(), Error> {
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(target);
    let made = match made {
        Ok(_) => true,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => false,
        Err(source) => {
            return Err(Error::Path {
                path: target.to_owned(),
                source,
            });
        }
    };
    let bound = bind(device, target, false, limits).await;
    if bound.is_err() && made {
        let _ = std::fs::remove_file(target);
    }
    bound
}

/// Takes away every mount that is stacked on a path, the last one first. Nothing mounted, or no such path, is a success.
///
/// # Errors
/// [`Error::Busy`]; [`Error::Command`] when it takes too long: what is not written yet waits for the device, and the kernel
/// goes on with it by itself.
pub async fn unmount_all(target: &Path, limits: &Limits) -> Result<(), Error> {
    let deadline = Instant::now() + limits.unmount;
    let mut busy_until = None;
    for _ in 0..STACK_MAX {
        let left = deadline.saturating_duration_since(Instant::now());
        let before = at(target)?.len();
        if before == 0 {
            return Ok(());
        }
        let output = match unmount_once(target, left).await {
            Ok(output) => output,
            // The kernel may be through with it all the same.
            Err(_) if at(target)?.is_empty() => return Ok(()),
            Err(error) => return Err(error),
        };
        if at(target)?.len() < before {
            busy_until = None;
            continue;
        }
        if !output.stderr.contains("busy") {
            return Err(Error::Command {
                target: target.to_owned(),
                source: command::failed("umount", &output),
            });
        }
        let until = *busy_until.get_or_insert(Instant::now() + limits.busy);
        if Instant::now() + BUSY_PAUSE > until.min(deadline) {
            return Err(Error::Busy {
                target: target.to_owned(),
            });
        }
        sleep(BUSY_PAUSE).await;
    }
    if at(target)?.is_empty() {
        return Ok(());
    }
    Err(Error::Other {
        target: target.to_owned(),
        wanted: "nothing".to_owned(),
        found: format!("more than {STACK_MAX} mounts"),
    })
}

async fn unmount_once(target: &Path, limit: Duration) -> Result<Output, Error> {
    // Not looking at the path itself: what is mounted there may not answer.
    Program::new("umount", MOUNT_PACKAGE)
        .args(["--no-canonicalize", "--"])
        .arg(table::resolved(target))
        .output(limit)
        .await
        .map_err(|source| Error::Command {
            target: target.to_owned(),
            source,
        })
}

fn mount() -> Program {
    Program::new("mount", MOUNT_PACKAGE)
}

async fn run(program: Program, target: &Path, limits: &Limits) -> Result<(), Error> {
    program
        .succeed(limits.mount)
        .await
        .map(drop)
        .map_err(|source| Error::Command {
            target: target.to_owned(),
            source,
        })
}

/// What is on top of the path must be what was mounted: otherwise somebody else mounted there at the same time.
async fn expect_top(
    target: &Path,
    wanted: &str,
    fits: impl Fn(&Mount) -> bool,
) -> Result<(), Error> {
    let top = at(target)?.pop();
    if top.as_ref().is_some_and(fits) {
        return Ok(());
    }
    Err(Error::Other {
        target: target.to_owned(),
        wanted: wanted.to_owned(),
        found: top.map_or_else(
            || "nothing".to_owned(),
            |mount| format!("{} ({})", mount.source, mount.options),
        ),
    })
}

//! File systems: what is on a device, and making, checking and growing file systems.
//!
//! A file system is made only on a device that is proven blank: see [`make`]. A read error is never blank.

mod blkid;
pub mod helper;
mod places;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::command::{self, Program};
use crate::limits::Limits;

use helper::{Order, Report};

/// A file system that can be made, checked and grown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FsType {
    /// The default.
    Ext4,
    /// XFS.
    Xfs,
    /// Btrfs, on one device.
    Btrfs,
}

impl FsType {
    /// Its name, as `mount -t` has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// Debian's package with its programs.
    fn package(self) -> &'static str {
        match self {
            Self::Ext4 => "e2fsprogs",
            Self::Xfs => "xfsprogs",
            Self::Btrfs => "btrfs-progs",
        }
    }

    /// The program that makes it, without the device. None is told to overwrite anything (`-f`, `-F`): each looks for itself, too.
    /// None discards: a blank volume has nothing to discard, and telling a fabric so takes time that the call may not have.
    fn mkfs(self) -> Program {
        match self {
            // No blocks are kept for root: it is a volume of data.
            Self::Ext4 => {
                Program::new("mkfs.ext4", self.package()).args(["-q", "-m", "0", "-E", "nodiscard"])
            }
            Self::Xfs => Program::new("mkfs.xfs", self.package()).args(["-q", "-K"]),
            Self::Btrfs => Program::new("mkfs.btrfs", self.package()).args(["-q", "-K"]),
        }
    }
}

impl fmt::Display for FsType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A file system that is not known here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a file system that can be made here, expected ext4, xfs or btrfs")]
pub struct UnknownFsType(pub String);

impl FromStr for FsType {
    type Err = UnknownFsType;

    fn from_str(text: &str) -> Result<Self, UnknownFsType> {
        match text {
            "ext4" => Ok(Self::Ext4),
            "xfs" => Ok(Self::Xfs),
            "btrfs" => Ok(Self::Btrfs),
            other => Err(UnknownFsType(other.to_owned())),
        }
    }
}

/// What is on a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// Nothing: every place that could tell of something was read and holds zeros.
    Blank,
    /// A file system of this type.
    FileSystem(String),
    /// A partition table of this kind (`gpt`, `dos`).
    PartitionTable(String),
    /// An encrypted volume.
    Luks,
    /// Something else that has a name, as `swap` or `LVM2_member`.
    Other(String),
    /// Something without a name.
    Unknown {
        /// Where the first byte is that is not zero, of those that were read.
        at_bytes: u64,
    },
}

impl Content {
    /// Whether it is a file system of this type.
    #[must_use]
    pub fn is(&self, fs: FsType) -> bool {
        matches!(self, Self::FileSystem(found) if found == fs.as_str())
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blank => f.write_str("nothing"),
            Self::FileSystem(kind) => write!(f, "a file system ({kind})"),
            Self::PartitionTable(kind) => write!(f, "a partition table ({kind})"),
            Self::Luks => f.write_str("an encrypted volume (LUKS)"),
            Self::Other(kind) => write!(f, "something else ({kind})"),
            Self::Unknown { at_bytes } => write!(f, "unknown data (at byte {at_bytes})"),
        }
    }
}

/// Why something about a file system could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device cannot be opened, read or used: what is on it is not known.
    #[error("{}: {what}", device.display())]
    Device {
        /// The device.
        device: PathBuf,
        /// What happened.
        what: String,
    },
    /// The device is in use by something else.
    #[error("{} is in use: it is mounted, or something else has taken hold of it", device.display())]
    InUse {
        /// The device.
        device: PathBuf,
    },
    /// No file system is made, because the device is not blank.
    #[error(
        "{} holds {content}: no file system is made on it; if none of it is needed, wipe it by hand (wipefs, blkdiscard)",
        device.display()
    )]
    NotBlank {
        /// The device.
        device: PathBuf,
        /// What was found.
        content: Content,
    },
    /// The file system is damaged, and mending it by itself could lose data.
    #[error("the {fs} on {} needs a person to repair it: {said}", device.display())]
    Damaged {
        /// The device.
        device: PathBuf,
        /// Which file system.
        fs: FsType,
        /// What the check said.
        said: String,
    },
    /// An option for making a file system cannot be meant.
    #[error("option {index} for making the file system is empty, has a NUL, or names a device")]
    MakeOption {
        /// Which one, counted from 1.
        index: usize,
    },
    /// A program failed or took too long.
    #[error("{}: {source}", device.display())]
    Command {
        /// The device.
        device: PathBuf,
        /// What happened.
        source: command::Error,
    },
}

impl Error {
    /// Whether it took too long.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Command { source, .. } if source.is_timeout())
    }
}

/// Says what is on a device.
///
/// [`Content::Blank`] is proven: the device has a size, `blkid` knows nothing on it, and every place that could tell of
/// something was read from the device itself, past caches, and holds zeros: the first and the last MiB, where file systems
/// keep copies of their superblocks, and samples all over it.
///
/// # Errors
/// [`Error::Device`] for whatever cannot be read, [`Error::Command`].
pub async fn probe(device: &Path, limits: &Limits) -> Result<Content, Error> {
    let order = Order::Probe;
    match ask(&order, device, limits, limits.probe).await?.0 {
        Report::Content(content) => Ok(content),
        report => Err(unexpected(device, &report)),
    }
}

/// The size of a device in bytes.
///
/// # Errors
/// [`Error::Device`], also for a device without a size: nothing is connected to it.
pub async fn size(device: &Path, limits: &Limits) -> Result<u64, Error> {
    match ask(&Order::Size, device, limits, limits.probe).await?.0 {
        Report::Size(bytes) => Ok(bytes),
        report => Err(unexpected(device, &report)),
    }
}

/// Makes a file system on a device that is proven blank ([`probe`]) in the same breath: one process opens the device for itself
/// alone (`O_EXCL`), takes its lock (`flock`, which udev and every other berth honours), proves it blank, and turns into
/// mkfs while it still has the lock.
///
/// # Errors
/// [`Error::NotBlank`], and as [`probe`].
pub async fn make(
    device: &Path,
    fs: FsType,
    options: &[String],
    limits: &Limits,
) -> Result<(), Error> {
    for (at, option) in options.iter().enumerate() {
        if option.is_empty() || option.contains('\0') || option.starts_with('/') {
            return Err(Error::MakeOption { index: at + 1 });
        }
    }
    let program = fs.mkfs().args(options).arg(device);
    let order = Order::Make(program.into_words().collect());
    let (report, output) = ask(&order, device, limits, limits.make).await?;
    match report {
        Report::Content(Content::Blank) if output.status.success() => Ok(()),
        Report::Content(Content::Blank) => Err(Error::Command {
            device: device.to_owned(),
            source: command::failed(&format!("mkfs.{fs}"), &output),
        }),
        Report::Content(content) => Err(Error::NotBlank {
            device: device.to_owned(),
            content,
        }),
        report => Err(unexpected(device, &report)),
    }
}

/// Checks a file system that is not mounted, and mends what can be mended without a question.
///
/// For ext4 that is `e2fsck -p`; what it mended (exit code 1) is well. XFS and btrfs replay their logs when they are mounted
/// and want no check before; their repair programs are for persons.
///
/// # Errors
/// [`Error::Damaged`], [`Error::Command`].
pub async fn check(device: &Path, fs: FsType, limits: &Limits) -> Result<(), Error> {
    /// Bits of the exit code of e2fsck that do not stand in the way: mended, and mended so that a root file system wants a restart.
    const MENDED: i32 = 1 | 2;
    /// Errors are left that need a person.
    const LEFT: i32 = 4;

    if fs != FsType::Ext4 {
        return Ok(());
    }
    let program = Program::new("e2fsck", fs.package()).arg("-p").arg(device);
    let failed = |source| Error::Command {
        device: device.to_owned(),
        source,
    };
    let output = program.output(limits.check).await.map_err(failed)?;
    match output.code() {
        Some(code) if code & !MENDED == 0 => Ok(()),
        Some(code) if code & LEFT != 0 => Err(Error::Damaged {
            device: device.to_owned(),
            fs,
            said: command::one_line(&format!("{} {}", output.stdout, output.stderr)),
        }),
        _ => Err(failed(command::failed("e2fsck", &output))),
    }
}

/// Grows a mounted file system to the size of its device, which is returned in bytes. Nothing happens when it is as large.
///
/// # Errors
/// [`Error::Command`], [`Error::Device`].
pub async fn grow(
    device: &Path,
    mounted_at: &Path,
    fs: FsType,
    limits: &Limits,
) -> Result<u64, Error> {
    let program = match fs {
        FsType::Ext4 => Program::new("resize2fs", fs.package()).arg(device),
        FsType::Xfs => Program::new("xfs_growfs", fs.package())
            .arg("-d")
            .arg(mounted_at),
        FsType::Btrfs => Program::new("btrfs", fs.package())
            .args(["filesystem", "resize", "max"])
            .arg(mounted_at),
    };
    let grown = program.succeed(limits.grow).await;
    grown.map_err(|source| Error::Command {
        device: device.to_owned(),
        source,
    })?;
    size(device, limits).await
}

async fn ask(
    order: &Order,
    device: &Path,
    limits: &Limits,
    limit: std::time::Duration,
) -> Result<(Report, command::Output), Error> {
    let program = Program::new(&limits.helper.to_string_lossy(), "berth")
        .called(order.as_people_say())
        .args(order.arguments(device));
    let output = program
        .output(limit)
        .await
        .map_err(|source| Error::Command {
            device: device.to_owned(),
            source,
        })?;
    let Some(report) = Report::parse(&output.stdout) else {
        return Err(Error::Device {
            device: device.to_owned(),
            what: format!(
                "the process that reads it left no report ({}): {}",
                output.status,
                command::one_line(&output.stderr)
            ),
        });
    };
    match report {
        Report::Failed(what) => Err(Error::Device {
            device: device.to_owned(),
            what,
        }),
        Report::InUse => Err(Error::InUse {
            device: device.to_owned(),
        }),
        report => Ok((report, output)),
    }
}

fn unexpected(device: &Path, report: &Report) -> Error {
    Error::Device {
        device: device.to_owned(),
        what: format!("the process that reads it gave another answer than asked for: {report:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_by_name() {
        for fs in [FsType::Ext4, FsType::Xfs, FsType::Btrfs] {
            assert_eq!(fs.to_string().parse(), Ok(fs));
            assert!(Content::FileSystem(fs.to_string()).is(fs));
        }
        let error = "ntfs".parse::<FsType>().unwrap_err().to_string();
        assert!(
            error.contains("\"ntfs\"") && error.contains("btrfs"),
            "{error}"
        );
        assert!(!Content::FileSystem("ext3".into()).is(FsType::Ext4));
        assert!(!Content::Blank.is(FsType::Ext4));
    }

    #[tokio::test]
    async fn options_that_name_devices_are_refused() {
        for options in [["-O", "/dev/sda"], ["-O", ""], ["-O", "a\0b"]] {
            let options = options.map(str::to_owned);
            let limits = Limits::default();
            let made = make(Path::new("/none"), FsType::Ext4, &options, &limits).await;
            let error = made.unwrap_err();
            assert!(matches!(error, Error::MakeOption { index: 2 }), "{error}");
        }
    }
}

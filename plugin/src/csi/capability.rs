//! How a volume is going to be used: the checked form of a `VolumeCapability`.

use serde::{Deserialize, Serialize};
use tonic::Status;

use super::proto::v1::VolumeCapability;
use super::proto::v1::volume_capability::access_mode::Mode as Wire;
use super::proto::v1::volume_capability::{AccessType, MountVolume};
use super::status;

/// File system when none is named, as the standard wants the driver to choose.
const FS_DEFAULT: &str = "ext4";
/// File systems that can be made and mounted.
pub const FILE_SYSTEMS: [&str; 3] = ["ext4", "xfs", "btrfs"];
/// Most that the mount flags of one volume may have, in bytes (CSI: a map or list has at most 4 KiB).
const FLAGS_LEN_MAX: usize = 4096;

/// How a volume is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// As a device or as a file system.
    pub access: Access,
    /// By whom, and whether they write.
    pub mode: Mode,
}

/// As what a volume is used.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// As a raw device.
    Block,
    /// As a file system.
    Mount {
        /// Its kind: one of [`FILE_SYSTEMS`].
        fs: String,
        /// Options of the mount, each one word.
        flags: Vec<String>,
    },
}

impl std::fmt::Debug for Access {
    /// Without the flags, which may hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Block => f.write_str("Block"),
            Self::Mount { fs, flags } => write!(f, "Mount({fs}, {} flags)", flags.len()),
        }
    }
}

/// By whom a volume is used, and whether they write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// One node, which writes; how many users it has there is not said.
    SingleNodeWriter,
    /// One node, which reads.
    SingleNodeReader,
    /// One node, and one user there, who writes.
    SingleNodeSingleWriter,
    /// One node, and several users there, who write.
    SingleNodeMultiWriter,
    /// Several nodes, which read.
    MultiNodeReader,
}

impl Mode {
    /// Whether only one node may have the volume.
    #[must_use]
    pub fn is_single_node(self) -> bool {
        self != Self::MultiNodeReader
    }

    /// Whether nobody writes.
    #[must_use]
    pub fn is_read_only(self) -> bool {
        matches!(self, Self::SingleNodeReader | Self::MultiNodeReader)
    }
}

impl Usage {
    /// Checks a capability.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for what is missing, malformed or not supported.
    pub fn parse(capability: Option<&VolumeCapability>) -> Result<Self, Status> {
        let capability = capability.ok_or_else(|| status::missing("volume_capability"))?;
        let access = match &capability.access_type {
            None => return Err(status::missing("volume_capability.access_type")),
            Some(AccessType::Block(_)) => Access::Block,
            Some(AccessType::Mount(mount)) => mounted(mount)?,
        };
        let mode = capability
            .access_mode
            .as_ref()
            .ok_or_else(|| status::missing("volume_capability.access_mode"))?;
        let mode = match mode.mode() {
            Wire::Unknown => {
                return Err(Status::invalid_argument(format!(
                    "volume_capability.access_mode: {} is not known here",
                    mode.mode
                )));
            }
            Wire::SingleNodeWriter => Mode::SingleNodeWriter,
            Wire::SingleNodeReaderOnly => Mode::SingleNodeReader,
            Wire::SingleNodeSingleWriter => Mode::SingleNodeSingleWriter,
            Wire::SingleNodeMultiWriter => Mode::SingleNodeMultiWriter,
            Wire::MultiNodeReaderOnly => Mode::MultiNodeReader,
            mode @ (Wire::MultiNodeSingleWriter | Wire::MultiNodeMultiWriter) => {
                return Err(Status::invalid_argument(format!(
                    "access mode {} is not supported: while one node writes, no other may have the volume",
                    mode.as_str_name()
                )));
            }
        };
        Ok(Self { access, mode })
    }

    /// Checks a list of them, which must not be empty.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_all(capabilities: &[VolumeCapability]) -> Result<Vec<Self>, Status> {
        if capabilities.is_empty() {
            return Err(status::missing("volume_capabilities"));
        }
        capabilities
            .iter()
            .map(|capability| Self::parse(Some(capability)))
            .collect()
    }
}

fn mounted(mount: &MountVolume) -> Result<Access, Status> {
    let fs = match mount.fs_type.as_str() {
        "" => FS_DEFAULT,
        other => other,
    };
    if !FILE_SYSTEMS.contains(&fs) {
        return Err(Status::invalid_argument(format!(
            "file system {fs:?} is not supported, expected one of {}",
            FILE_SYSTEMS.join(", ")
        )));
    }
    if !mount.volume_mount_group.is_empty() {
        return Err(Status::invalid_argument(
            "volume_mount_group is not supported: kubelet sets the group (fsGroupPolicy: File)",
        ));
    }
    let len: usize = mount.mount_flags.iter().map(String::len).sum();
    let is_odd =
        |flag: &String| flag.is_empty() || flag.chars().any(|c| c.is_control() || c == ',');
    // Values may be secret, so none is shown.
    if len > FLAGS_LEN_MAX || mount.mount_flags.iter().any(is_odd) {
        return Err(Status::invalid_argument(format!(
            "mount_flags: each is one option without commas and control characters, all of them have at most \
             {FLAGS_LEN_MAX} bytes"
        )));
    }
    Ok(Access::Mount {
        fs: fs.to_owned(),
        flags: mount.mount_flags.clone(),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::proto::v1::volume_capability::{AccessMode, BlockVolume};
    use super::*;

    pub(crate) fn mount(mode: Wire, fs: &str, flags: &[&str]) -> VolumeCapability {
        VolumeCapability {
            access_mode: Some(AccessMode { mode: mode.into() }),
            access_type: Some(AccessType::Mount(MountVolume {
                fs_type: fs.to_owned(),
                mount_flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
                volume_mount_group: String::new(),
            })),
        }
    }

    pub(crate) fn block(mode: Wire) -> VolumeCapability {
        VolumeCapability {
            access_mode: Some(AccessMode { mode: mode.into() }),
            access_type: Some(AccessType::Block(BlockVolume {})),
        }
    }

    #[test]
    fn what_is_supported() {
        let usage = Usage::parse(Some(&mount(Wire::SingleNodeWriter, "", &["noatime"]))).unwrap();
        assert_eq!(
            usage.access,
            Access::Mount {
                fs: "ext4".to_owned(),
                flags: vec!["noatime".to_owned()]
            }
        );
        let usage = Usage::parse(Some(&block(Wire::MultiNodeReaderOnly))).unwrap();
        assert!(usage.mode.is_read_only() && !usage.mode.is_single_node());
    }

    #[test]
    fn what_is_not() {
        let refused = |capability: Option<&VolumeCapability>| {
            let status = Usage::parse(capability).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
            status.message().to_owned()
        };
        refused(None);
        refused(Some(&VolumeCapability::default()));
        refused(Some(&mount(Wire::Unknown, "", &[])));
        refused(Some(&mount(Wire::MultiNodeMultiWriter, "", &[])));
        refused(Some(&block(Wire::MultiNodeSingleWriter)));
        assert!(refused(Some(&mount(Wire::SingleNodeWriter, "ntfs", &[]))).contains("ntfs"));
        for flag in ["", "a,b", "a\nb", "a\0"] {
            refused(Some(&mount(Wire::SingleNodeWriter, "xfs", &[flag])));
        }
        let long = "x".repeat(5000);
        let said = refused(Some(&mount(Wire::SingleNodeWriter, "xfs", &[&long])));
        assert!(!said.contains("xxx"));
        assert!(Usage::parse_all(&[]).is_err());
    }

    #[test]
    fn flags_are_not_shown() {
        let capability = mount(Wire::SingleNodeWriter, "xfs", &["password=hunter2"]);
        let usage = Usage::parse(Some(&capability)).unwrap();
        assert!(!format!("{capability:?} {usage:?}").contains("hunter2"));
    }
}

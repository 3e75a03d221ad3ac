//! The arguments of `berthctl volume` and `berthctl template`.

use std::path::PathBuf;

use berth_api::types::{PlacementMode, Qos};
use berth_api::{TargetName, VolumeName};
use clap::{Args, Subcommand, ValueEnum};

use crate::config::Size;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Volume {
    /// Make a volume on the fabric and wait until it is available; repeating it is safe
    Create(Create),
    /// Make a volume that begins with the data of another one, or of a snapshot
    Clone(Clone),
    /// List the volumes of the fabric
    #[command(visible_alias = "ls")]
    List,
    /// Show everything about one volume
    Show {
        /// Name of the volume
        name: VolumeName,
    },
    /// Make a volume larger while it is in use; it never shrinks
    Grow {
        /// Name of the volume
        name: VolumeName,
        /// Its new size, as 20GiB; rounded up to whole GiB
        #[arg(value_parser = size)]
        size: u64,
    },
    /// Set or remove the limits of a volume while it is in use
    Qos(SetQos),
    /// Take, list, delete and restore snapshots
    #[command(subcommand)]
    Snapshot(Snapshot),
    /// Admit an initiator to a volume
    Grant(Access),
    /// Do not admit an initiator any more; the fabric ends its session
    Revoke(Access),
    /// Delete a volume; succeeds when it was not there
    #[command(visible_alias = "rm")]
    Delete {
        /// Name of the volume
        name: VolumeName,
        /// Take it offline and keep its data
        #[arg(long, conflicts_with = "with_snapshots")]
        retain: bool,
        /// Also when it has snapshots, which go with it
        #[arg(long)]
        with_snapshots: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Template {
    /// List the AppTemplates of the fabric
    #[command(visible_alias = "ls")]
    List,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Fabric {
    /// Show whether it answers, its versions, health and space; fails when it does not answer
    Show,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Create {
    /// Name of the volume
    pub(super) name: VolumeName,
    /// Its size, as 100GiB; rounded up to whole GiB
    #[arg(long, value_parser = size, required_unless_present = "template")]
    pub(super) size: Option<u64>,
    /// AppTemplate that says how it is
    #[arg(long, value_name = "NAME")]
    pub(super) template: Option<String>,
    /// Copies that the fabric keeps
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=5))]
    pub(super) replicas: Option<u8>,
    /// Media that it is kept on
    #[arg(long, value_enum, value_name = "MODE")]
    pub(super) placement_mode: Option<PlacementArgument>,
    /// Placement policy of the fabric
    #[arg(long, value_name = "NAME", conflicts_with = "placement_mode")]
    pub(super) placement_policy: Option<String>,
    /// Pool that its portals' addresses come from
    #[arg(long, value_name = "NAME", conflicts_with = "template")]
    pub(super) ip_pool: Option<String>,
    /// What it is for
    #[arg(long, value_name = "TEXT")]
    pub(super) description: Option<String>,
    #[command(flatten)]
    pub(super) limits: Limits,
    #[command(flatten)]
    pub(super) chap: Chap,
}

/// Credentials of a new volume. Secrets come from files.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "CHAP")]
pub(super) struct Chap {
    /// Name that initiators have to log in with
    #[arg(long, value_name = "USER", requires = "chap_secret_file")]
    pub(super) chap_user: Option<String>,
    /// File with their secret of 12 to 16 characters
    #[arg(long, value_name = "FILE", requires = "chap_user")]
    pub(super) chap_secret_file: Option<PathBuf>,
    /// Name that the target gives in turn
    #[arg(long, value_name = "USER", requires = "mutual_secret_file")]
    pub(super) mutual_user: Option<String>,
    /// File with the target's secret of 12 to 16 characters
    #[arg(long, value_name = "FILE", requires = "mutual_user")]
    pub(super) mutual_secret_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Clone {
    /// The volume to copy
    pub(super) source: VolumeName,
    /// Name of the new volume
    pub(super) name: VolumeName,
    /// Copy this snapshot of it (name or identifier), not what it holds now
    #[arg(long)]
    pub(super) snapshot: Option<String>,
    /// Size of the new volume, if it is to be larger
    #[arg(long, value_parser = size)]
    pub(super) size: Option<u64>,
    #[command(flatten)]
    pub(super) limits: Limits,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true)
    .args(["none", "total_iops", "read_iops", "write_iops", "total_bandwidth", "read_bandwidth", "write_bandwidth"]))]
pub(in crate::cli) struct SetQos {
    /// Name of the volume
    pub(super) name: VolumeName,
    /// Remove all limits
    #[arg(long, conflicts_with_all = ["total_iops", "read_iops", "write_iops", "total_bandwidth", "read_bandwidth",
        "write_bandwidth"])]
    pub(super) none: bool,
    #[command(flatten)]
    pub(super) limits: Limits,
}

/// Limits; those that are not named are none.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Limits")]
pub(super) struct Limits {
    /// Reads and writes per second
    #[arg(long, value_name = "N")]
    total_iops: Option<u64>,
    /// Reads per second
    #[arg(long, value_name = "N")]
    read_iops: Option<u64>,
    /// Writes per second
    #[arg(long, value_name = "N")]
    write_iops: Option<u64>,
    /// Read and written per second, as 200MiB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    total_bandwidth: Option<u64>,
    /// Read per second, as 200MiB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    read_bandwidth: Option<u64>,
    /// Written per second, as 200MiB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    write_bandwidth: Option<u64>,
}

impl Limits {
    /// The limits, if any was named.
    pub(super) fn qos(&self) -> Option<Qos> {
        let qos = Qos {
            total_iops: self.total_iops,
            read_iops: self.read_iops,
            write_iops: self.write_iops,
            total_bytes_per_second: self.total_bandwidth,
            read_bytes_per_second: self.read_bandwidth,
            write_bytes_per_second: self.write_bandwidth,
        };
        (qos != Qos::default()).then_some(qos)
    }
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Snapshot {
    /// Take a snapshot, or find the one that was taken under this name
    Take(OneSnapshot),
    /// List the snapshots of a volume, oldest first, or of all volumes
    #[command(visible_alias = "ls")]
    List {
        /// Name of the volume
        name: Option<VolumeName>,
    },
    /// Delete a snapshot; succeeds when it was not there
    #[command(visible_alias = "rm")]
    Delete(OneSnapshot),
    /// Put the volume back to what the snapshot holds; what was written since is lost
    Restore(OneSnapshot),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct OneSnapshot {
    /// Name of the volume
    pub(super) name: VolumeName,
    /// Name or identifier of the snapshot
    pub(super) snapshot: String,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Access {
    /// Name of the volume
    pub(super) name: VolumeName,
    /// iSCSI name of the initiator [default: that of this node]
    pub(super) initiator: Option<TargetName>,
}

/// [`PlacementMode`] on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum PlacementArgument {
    /// Flash in front of disks
    Hybrid,
    /// One copy on flash, the others on disks
    SingleFlash,
    /// Every copy on flash
    AllFlash,
}

impl From<PlacementArgument> for PlacementMode {
    fn from(argument: PlacementArgument) -> Self {
        match argument {
            PlacementArgument::Hybrid => Self::Hybrid,
            PlacementArgument::SingleFlash => Self::SingleFlash,
            PlacementArgument::AllFlash => Self::AllFlash,
        }
    }
}

pub(in crate::cli) fn size(text: &str) -> Result<u64, String> {
    Size::parse(text)
        .map(|size| size.0)
        .filter(|size| *size > 0)
        .ok_or_else(|| "expected a size such as 10GiB, 500MiB or 2TiB".to_owned())
}

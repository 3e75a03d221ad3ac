//! A volume of a scenario: a target, the attachment with its kernel device, and a file system on that.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use berth_tests::Berthd;
use berth_tests::berthd::attach_body;
use berth_tests::peers::{Digests, Peer};
use berth_tests::process::wait_for;
use berth_tests::tool;
use serde_json::json;

/// mkfs, fsck and mount, on a guest's one processor under load.
pub(crate) const DEADLINE: Duration = Duration::from_secs(180);

/// Kinds of file systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// ext4.
    Ext4,
    /// XFS; at least 300 MiB.
    Xfs,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
}

/// An attachment with a kernel device, as the daemon reports it.
#[derive(Debug, Clone)]
pub(crate) struct Volume {
    /// Name of the attachment.
    pub(crate) name: String,
    /// As /dev/nbd3.
    pub(crate) device: PathBuf,
}

impl Volume {
    /// Attaches the first LUN of `peer` as a kernel device, with I/O waiting for the target as long as it takes.
    pub(crate) fn attach(daemon: &Berthd, name: &str, peer: &dyn Peer) -> Result<Self> {
        let mut body = attach_body(peer, Digests::Prefer);
        body["device"] = "kernel".into();
        body["recovery_timeout_seconds"] = json!("forever");
        let attachment = daemon.attach_with(name, &body)?;
        let device = attachment["device"]
            .as_str()
            .with_context(|| format!("no device: {attachment:#}"))?;
        Ok(Self {
            name: name.to_owned(),
            device: device.into(),
        })
    }

    /// Size of the kernel device in bytes.
    pub(crate) fn size_bytes(&self) -> Result<u64> {
        let device = self.device.file_name().context("name of the device")?;
        let path = Path::new("/sys/block").join(device).join("size");
        let sectors: u64 = std::fs::read_to_string(&path)
            .with_context(|| path.display().to_string())?
            .trim()
            .parse()?;
        Ok(sectors * 512)
    }
}

/// A mounted file system; unmounted, forgiving errors, when the value goes.
#[derive(Debug)]
pub(crate) struct Mounted {
    pub(crate) kind: Kind,
    pub(crate) device: PathBuf,
    /// Where.
    pub(crate) folder: PathBuf,
    mounted: bool,
}

impl Mounted {
    /// Makes a file system and mounts it.
    pub(crate) fn new(volume: &Volume, kind: Kind) -> Result<Self> {
        make(kind, &volume.device)?;
        let folder = Path::new("/run/lab").join(&volume.name);
        std::fs::create_dir_all(&folder)?;
        let mut mounted = Self {
            kind,
            device: volume.device.clone(),
            folder,
            mounted: false,
        };
        mounted.mount()?;
        Ok(mounted)
    }

    pub(crate) fn mount(&mut self) -> Result<()> {
        let (device, folder) = (self.device.as_os_str(), self.folder.as_os_str());
        let words = ["-t".as_ref(), self.kind.name().as_ref(), device, folder];
        tool::run("mount", &words, DEADLINE)?;
        self.mounted = true;
        Ok(())
    }

    pub(crate) fn unmount(&mut self) -> Result<()> {
        // Whoever looked into it, for example to name what is mounted, may still hold it for a moment.
        wait_for("unmount", DEADLINE, || {
            let output = tool::try_run("umount", &[&self.folder], DEADLINE)?;
            ensure!(
                output.status.success() || output.text.contains("busy"),
                "{}",
                output.text
            );
            Ok(output.status.success().then_some(()))
        })?;
        self.mounted = false;
        Ok(())
    }

    /// Unmounts, and fails unless there is nothing at all to repair.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.unmount()?;
        let device = self.device.as_os_str();
        match self.kind {
            Kind::Ext4 => tool::run("e2fsck", &["-f".as_ref(), "-n".as_ref(), device], DEADLINE)?,
            Kind::Xfs => tool::run("xfs_repair", &["-n".as_ref(), device], DEADLINE)?,
        };
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.mounted {
            // Lazily: what is below may be what has failed.
            let _ = tool::try_run(
                "umount",
                &["-l".as_ref(), self.folder.as_os_str()],
                DEADLINE,
            );
        }
    }
}

fn make(kind: Kind, device: &Path) -> Result<()> {
    let device = device.as_os_str();
    match kind {
        // Without lazy initialisation, which would go on in the background for minutes.
        Kind::Ext4 => tool::run(
            "mkfs.ext4",
            &[
                "-q".as_ref(),
                "-F".as_ref(),
                "-E".as_ref(),
                "lazy_itable_init=0,lazy_journal_init=0".as_ref(),
                device,
            ],
            DEADLINE,
        )?,
        Kind::Xfs => tool::run(
            "mkfs.xfs",
            &["-q".as_ref(), "-f".as_ref(), device],
            DEADLINE,
        )?,
    };
    Ok(())
}

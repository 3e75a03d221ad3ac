//! This node, as far as mounts and file systems are concerned.

use std::io;
use std::path::{Path, PathBuf};

use crate::filesystem::{self, Content, FsType};
use crate::limits::Limits;
use crate::mount::{self, Mount};

/// What the driver does on the node; tests have another one.
pub(super) trait Host {
    /// See [`mount::table`].
    fn table(&self) -> Result<Vec<Mount>, mount::Error>;
    /// See [`mount::at`].
    fn at(&self, path: &Path) -> Result<Vec<Mount>, mount::Error>;
    /// See [`Mount::is_of`].
    fn is_of(&self, mount: &Mount, device: &Path) -> bool;
    /// Makes a directory with all above it, for root only; `true` when it was not there.
    fn make_dir(&self, dir: &Path) -> io::Result<bool>;
    /// Removes an empty directory.
    fn remove_dir(&self, dir: &Path) -> io::Result<()>;
    /// Name of the node, as the kernel has it.
    fn node_name(&self) -> String;
    /// See [`filesystem::size`].
    async fn size(&self, device: &Path, limits: &Limits) -> Result<u64, filesystem::Error>;
    /// See [`filesystem::probe`].
    async fn probe(&self, device: &Path, limits: &Limits) -> Result<Content, filesystem::Error>;
    /// See [`filesystem::make`].
    async fn make(
        &self,
        device: &Path,
        fs: FsType,
        limits: &Limits,
    ) -> Result<(), filesystem::Error>;
    /// See [`filesystem::check`].
    async fn check(
        &self,
        device: &Path,
        fs: FsType,
        limits: &Limits,
    ) -> Result<(), filesystem::Error>;
    /// See [`filesystem::grow`].
    async fn grow(
        &self,
        device: &Path,
        at: &Path,
        fs: FsType,
        limits: &Limits,
    ) -> Result<u64, filesystem::Error>;
    /// See [`mount::mount_device`].
    async fn mount_device(&self, wish: &MountWish, limits: &Limits) -> Result<(), mount::Error>;
    /// See [`mount::bind`].
    async fn bind(
        &self,
        source: &Path,
        target: &Path,
        read_only: bool,
        limits: &Limits,
    ) -> Result<(), mount::Error>;
    /// See [`mount::unmount_all`].
    async fn unmount_all(&self, target: &Path, limits: &Limits) -> Result<(), mount::Error>;
}

/// What to mount where.
#[derive(Debug, Clone)]
pub(super) struct MountWish {
    pub(super) device: PathBuf,
    pub(super) target: PathBuf,
    pub(super) fs: FsType,
    pub(super) flags: Vec<String>,
    pub(super) read_only: bool,
}

/// The real one.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ThisHost;

impl Host for ThisHost {
    fn table(&self) -> Result<Vec<Mount>, mount::Error> {
        mount::table()
    }

    fn at(&self, path: &Path) -> Result<Vec<Mount>, mount::Error> {
        mount::at(path)
    }

    fn is_of(&self, mount: &Mount, device: &Path) -> bool {
        mount.is_of(device)
    }

    fn make_dir(&self, dir: &Path) -> io::Result<bool> {
        use std::os::unix::fs::DirBuilderExt as _;
        // What is mounted there may not answer, so it is not looked at.
        match std::fs::symlink_metadata(dir) {
            Ok(_) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // As kubelet makes it.
                std::fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o750)
                    .create(dir)?;
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        std::fs::remove_dir(dir)
    }

    fn node_name(&self) -> String {
        rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned()
    }

    async fn size(&self, device: &Path, limits: &Limits) -> Result<u64, filesystem::Error> {
        filesystem::size(device, limits).await
    }

    async fn probe(&self, device: &Path, limits: &Limits) -> Result<Content, filesystem::Error> {
        filesystem::probe(device, limits).await
    }

    async fn make(
        &self,
        device: &Path,
        fs: FsType,
        limits: &Limits,
    ) -> Result<(), filesystem::Error> {
        filesystem::make(device, fs, &[], limits).await
    }

    async fn check(
        &self,
        device: &Path,
        fs: FsType,
        limits: &Limits,
    ) -> Result<(), filesystem::Error> {
        filesystem::check(device, fs, limits).await
    }

    async fn grow(
        &self,
        device: &Path,
        at: &Path,
        fs: FsType,
        limits: &Limits,
    ) -> Result<u64, filesystem::Error> {
        filesystem::grow(device, at, fs, limits).await
    }

    async fn mount_device(&self, wish: &MountWish, limits: &Limits) -> Result<(), mount::Error> {
        mount::mount_device(
            &wish.device,
            &wish.target,
            wish.fs,
            &wish.flags,
            wish.read_only,
            limits,
        )
        .await
    }

    async fn bind(
        &self,
        source: &Path,
        target: &Path,
        read_only: bool,
        limits: &Limits,
    ) -> Result<(), mount::Error> {
        mount::bind(source, target, read_only, limits).await
    }

    async fn unmount_all(&self, target: &Path, limits: &Limits) -> Result<(), mount::Error> {
        mount::unmount_all(target, limits).await
    }
}

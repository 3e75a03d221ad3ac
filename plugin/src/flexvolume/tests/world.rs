//! A node and a fabric that only pretend: disks by volume, devices that volumes come and go on, mounts in a table.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::filesystem::{self, Content, FsType};
use crate::flexvolume::host::{Host, MountWish};
use crate::limits::Limits;
use crate::mount::{self, Mount};

/// What is on a volume.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    pub(super) content: Result<Content, String>,
    pub(super) size: u64,
    /// What the device says that it has, if that is something else.
    pub(super) device_size: Option<u64>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) disks: BTreeMap<String, Disk>,
    /// Which volume is on which device.
    pub(super) devices: BTreeMap<PathBuf, String>,
    pub(super) mounts: Vec<Mount>,
    pub(super) dirs: BTreeSet<PathBuf>,
    /// What was done, one line each.
    pub(super) done: Vec<String>,
    /// The next step whose line begins with this fails.
    pub(super) fail: Option<&'static str>,
}

impl State {
    fn step(&mut self, line: String) -> Result<(), String> {
        let failed = self.fail.is_some_and(|start| line.starts_with(start));
        self.done.push(line);
        if failed {
            self.fail = None;
            return Err("the test wants it to fail".to_owned());
        }
        Ok(())
    }

    fn disk(&mut self, device: &Path) -> Result<&mut Disk, String> {
        let volume = self
            .devices
            .get(device)
            .ok_or("nothing is connected to it")?;
        let disk = self.disks.get_mut(volume);
        disk.ok_or_else(|| "it is gone".to_owned())
    }
}

#[derive(Debug, Clone, Default)]
pub(super) struct World(Arc<Mutex<State>>);

impl World {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// What was done since the last time.
    pub(super) fn done(&self) -> Vec<String> {
        std::mem::take(&mut self.state().done)
    }

    pub(super) fn fail(&self, start: &'static str) {
        self.state().fail = Some(start);
    }

    pub(super) fn content(&self, volume: &str) -> Content {
        self.state().disks[volume].content.clone().unwrap()
    }

    pub(super) fn mounted(&self) -> Vec<PathBuf> {
        let state = self.state();
        state
            .mounts
            .iter()
            .map(|mount| mount.target.clone())
            .collect()
    }

    pub(super) fn step(&self, line: String) -> Result<(), String> {
        self.state().step(line)
    }

    fn fs<T>(
        &self,
        device: &Path,
        work: impl FnOnce(&mut State) -> Result<T, String>,
    ) -> Result<T, filesystem::Error> {
        work(&mut self.state()).map_err(|what| filesystem::Error::Device {
            device: device.to_owned(),
            what,
        })
    }

    fn add(&self, target: &Path, source: String, fs_type: String, read_only: bool) {
        self.state().mounts.push(Mount {
            id: 1,
            parent: 1,
            device: (43, 0),
            root: "/".into(),
            target: target.to_owned(),
            options: if read_only { "ro" } else { "rw" }.to_owned(),
            fs_type,
            source,
            super_options: "rw".to_owned(),
        });
    }
}

fn mount_error(what: String) -> mount::Error {
    mount::Error::Table { what }
}

impl Host for World {
    fn table(&self) -> Result<Vec<Mount>, mount::Error> {
        Ok(self.state().mounts.clone())
    }

    fn at(&self, path: &Path) -> Result<Vec<Mount>, mount::Error> {
        let mut mounts = self.table()?;
        mounts.retain(|mount| mount.target == path);
        Ok(mounts)
    }

    fn is_of(&self, mount: &Mount, device: &Path) -> bool {
        Path::new(&mount.source) == device
    }

    fn make_dir(&self, dir: &Path) -> io::Result<bool> {
        Ok(self.state().dirs.insert(dir.to_owned()))
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        self.state().dirs.remove(dir);
        Ok(())
    }

    fn node_name(&self) -> String {
        "worker-1.example".to_owned()
    }

    async fn size(&self, device: &Path, _: &Limits) -> Result<u64, filesystem::Error> {
        self.fs(device, |state| {
            let disk = state.disk(device)?;
            Ok(disk.device_size.unwrap_or(disk.size))
        })
    }

    async fn probe(&self, device: &Path, _: &Limits) -> Result<Content, filesystem::Error> {
        self.fs(device, |state| state.disk(device)?.content.clone())
    }

    async fn make(&self, device: &Path, fs: FsType, _: &Limits) -> Result<(), filesystem::Error> {
        // Long enough for another call to come between, if it could.
        tokio::task::yield_now().await;
        self.fs(device, |state| {
            state.step(format!("make {fs} {}", device.display()))?;
            let disk = state.disk(device)?;
            assert_eq!(
                disk.content,
                Ok(Content::Blank),
                "made on what is not blank"
            );
            disk.content = Ok(Content::FileSystem(fs.to_string()));
            Ok(())
        })
    }

    async fn check(&self, device: &Path, fs: FsType, _: &Limits) -> Result<(), filesystem::Error> {
        self.fs(device, |state| {
            let mounted = |mount: &Mount| Path::new(&mount.source) == device;
            assert!(!state.mounts.iter().any(mounted), "checked while mounted");
            state.step(format!("check {fs} {}", device.display()))
        })
    }

    async fn grow(
        &self,
        device: &Path,
        _: &Path,
        fs: FsType,
        _: &Limits,
    ) -> Result<u64, filesystem::Error> {
        self.fs(device, |state| {
            state.step(format!("grow {fs} {}", device.display()))?;
            Ok(state.disk(device)?.size)
        })
    }

    async fn mount_device(&self, wish: &MountWish, _: &Limits) -> Result<(), mount::Error> {
        let line = format!(
            "mount {} {} {} {}",
            wish.device.display(),
            wish.target.display(),
            wish.fs,
            wish.flags.join(",")
        );
        self.step(line.trim_end().to_owned()).map_err(mount_error)?;
        assert!(self.state().dirs.contains(&wish.target), "no directory");
        let source = wish.device.display().to_string();
        self.add(&wish.target, source, wish.fs.to_string(), wish.read_only);
        Ok(())
    }

    async fn bind(
        &self,
        source: &Path,
        target: &Path,
        read_only: bool,
        _: &Limits,
    ) -> Result<(), mount::Error> {
        let line = format!("bind {} {}", source.display(), target.display());
        self.step(line).map_err(mount_error)?;
        let shown = self.at(source)?.pop().expect("mounted");
        self.add(target, shown.source, shown.fs_type, read_only);
        Ok(())
    }

    async fn unmount_all(&self, target: &Path, _: &Limits) -> Result<(), mount::Error> {
        if self.at(target)?.is_empty() {
            return Ok(());
        }
        let line = format!("unmount {}", target.display());
        self.step(line).map_err(mount_error)?;
        self.state().mounts.retain(|mount| mount.target != target);
        Ok(())
    }
}

//! Pretended file systems and mounts, for kernels without NBD: a "device" is the NBD URI of an attachment, a "file system" a line at
//! its beginning, a "mount" an entry in a file that outlives the driver as mounts do.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use berth_api::types::{Attachment, DeviceWish};
use berth_plugin::csi::host::{Host, Mounted, Usage};
use berth_plugin::filesystem::{Content, FsType};
use serde::{Deserialize, Serialize};
use tonic::{Status, async_trait};

use crate::process::wait_for;
use crate::raw_nbd::{CMD_READ, CMD_WRITE, RawClient};

/// For one request.
const TIMEOUT: Duration = Duration::from_secs(10);
/// At the beginning of a "file system".
const MAGIC: &str = "pretended ";
/// Bytes that are looked at, and written.
const HEADER: u32 = 4096;
/// Where data is kept; what is before belongs to the "file system".
pub const DATA_OFFSET: u64 = 1 << 20;

/// A device, reached by NBD.
#[derive(Debug)]
pub struct Device {
    client: RawClient,
    /// Its size in bytes.
    pub size: u64,
}

impl Device {
    /// Opens the device of this URI.
    ///
    /// # Errors
    /// When it is not served.
    pub fn open(uri: &Path) -> Result<Self> {
        let uri = uri.to_str().context("URI")?;
        let rest = uri
            .strip_prefix("nbd+unix:///")
            .with_context(|| uri.to_owned())?;
        let (export, socket) = rest.split_once("?socket=").context("socket")?;
        // A daemon that has just started serves it in a moment; a kernel device would wait, too.
        wait_for("the export", TIMEOUT, || {
            let opened = RawClient::connect(Path::new(socket), TIMEOUT).and_then(|mut client| {
                let size = client.go(export)?;
                Ok(Self { client, size })
            });
            Ok(opened.ok())
        })
    }

    /// Reads.
    ///
    /// # Errors
    /// Those of the device.
    pub fn read(&mut self, offset: u64, len: u32) -> Result<Vec<u8>> {
        self.client.request(CMD_READ, 1, offset, len)?;
        let (error, _) = self.client.reply()?;
        ensure!(error == 0, "read: error {error}");
        let mut bytes = vec![0; len as usize];
        std::io::Read::read_exact(&mut self.client.0, &mut bytes)?;
        Ok(bytes)
    }

    /// Writes and flushes.
    ///
    /// # Errors
    /// Those of the device.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let len = u32::try_from(data.len())?;
        self.client.request(CMD_WRITE, 1, offset, len)?;
        std::io::Write::write_all(&mut self.client.0, data)?;
        let (error, _) = self.client.reply()?;
        ensure!(error == 0, "write: error {error}");
        self.client.request(3, 2, 0, 0)?;
        let (error, _) = self.client.reply()?;
        ensure!(error == 0, "flush: error {error}");
        Ok(())
    }
}

/// A "mount".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where.
    pub at: PathBuf,
    /// Of what.
    pub device: PathBuf,
    /// Type of the "file system"; nothing: a device at a file.
    pub fs: Option<String>,
    /// No writes.
    pub read_only: bool,
}

/// The host.
#[derive(Debug)]
pub struct PretendedHost {
    table: Mutex<PathBuf>,
}

/// All "mounts" of the host that keeps them in this folder, the latest last.
///
/// # Errors
/// When they cannot be read.
pub fn entries(dir: &Path) -> Result<Vec<Entry>> {
    match std::fs::read(dir.join("mounts.json")) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error.into()),
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
    }
}

impl PretendedHost {
    /// The host that keeps its "mounts" in this folder.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        Ok(Self {
            table: Mutex::new(dir.to_owned()),
        })
    }

    fn change<T>(&self, change: impl FnOnce(&mut Vec<Entry>) -> Result<T>) -> Result<T, Status> {
        let dir = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = || -> Result<T> {
            let mut all = entries(&dir)?;
            let result = change(&mut all)?;
            let new = dir.join("mounts.new");
            std::fs::write(&new, serde_json::to_vec(&all)?)?;
            std::fs::rename(new, dir.join("mounts.json"))?;
            Ok(result)
        };
        changed().map_err(|error| Status::internal(format!("pretended host: {error:#}")))
    }
}

fn on<T>(device: &Path, work: impl FnOnce(&mut Device) -> Result<T>) -> Result<T, Status> {
    tokio::task::block_in_place(|| Device::open(device).and_then(|mut device| work(&mut device)))
        .map_err(|error| Status::unavailable(format!("{}: {error:#}", device.display())))
}

fn header(fs: FsType, size: u64) -> Vec<u8> {
    let mut header = format!("{MAGIC}{fs} {size}\n").into_bytes();
    header.resize(HEADER as usize, 0);
    header
}

#[async_trait]
impl Host for PretendedHost {
    fn wish(&self) -> DeviceWish {
        DeviceWish::Socket
    }

    fn device(&self, attachment: &Attachment) -> Option<PathBuf> {
        attachment.nbd_uri.as_ref().map(PathBuf::from)
    }

    async fn content(&self, device: &Path) -> Result<Content, Status> {
        on(device, |device| {
            let bytes = device.read(0, HEADER)?;
            if let Some(rest) = bytes.strip_prefix(MAGIC.as_bytes()) {
                let name = rest.split(|byte| *byte == b' ').next().unwrap_or_default();
                return Ok(Content::FileSystem(
                    String::from_utf8_lossy(name).into_owned(),
                ));
            }
            let data = device.read(DATA_OFFSET, HEADER)?;
            let first = bytes.iter().position(|byte| *byte != 0);
            let later = data.iter().position(|byte| *byte != 0);
            Ok(match (first, later) {
                (None, None) => Content::Blank,
                (Some(at), _) => Content::Unknown {
                    at_bytes: at as u64,
                },
                (None, Some(at)) => Content::Unknown {
                    at_bytes: DATA_OFFSET + at as u64,
                },
            })
        })
    }

    async fn make(&self, device: &Path, fs: FsType) -> Result<(), Status> {
        on(device, |device| {
            let header = header(fs, device.size);
            device.write(0, &header)
        })
    }

    async fn check(&self, _: &Path, _: FsType) -> Result<(), Status> {
        Ok(())
    }

    async fn grow(&self, device: &Path, _: &Path, fs: FsType) -> Result<u64, Status> {
        on(device, |device| {
            let header = header(fs, device.size);
            device.write(0, &header)?;
            Ok(device.size)
        })
    }

    async fn mount(
        &self,
        device: &Path,
        at: &Path,
        fs: FsType,
        _: &[String],
        read_only: bool,
    ) -> Result<(), Status> {
        self.change(|all| {
            all.push(Entry {
                at: at.to_owned(),
                device: device.to_owned(),
                fs: Some(fs.to_string()),
                read_only,
            });
            Ok(())
        })
    }

    async fn bind(&self, from: &Path, to: &Path, read_only: bool) -> Result<(), Status> {
        ensure_dir(to)?;
        self.change(|all| {
            let mut entry = all
                .iter()
                .rfind(|entry| entry.at == from)
                .context("nothing there")?
                .clone();
            to.clone_into(&mut entry.at);
            entry.read_only |= read_only;
            all.push(entry);
            Ok(())
        })
    }

    async fn bind_block(&self, device: &Path, to: &Path) -> Result<(), Status> {
        if let Err(error) = std::fs::File::options().create(true).append(true).open(to) {
            return Err(Status::internal(format!("{}: {error}", to.display())));
        }
        self.change(|all| {
            all.push(Entry {
                at: to.to_owned(),
                device: device.to_owned(),
                fs: None,
                read_only: false,
            });
            Ok(())
        })
    }

    async fn unmount(&self, at: &Path) -> Result<(), Status> {
        self.change(|all| {
            all.retain(|entry| entry.at != at);
            Ok(())
        })
    }

    fn mounted(&self, at: &Path, device: Option<&Path>) -> Result<Option<Mounted>, Status> {
        self.change(|all| {
            let top = all.iter().rfind(|entry| entry.at == at);
            Ok(top.map(|entry| Mounted {
                fs: entry.fs.clone().unwrap_or_else(|| "devtmpfs".to_owned()),
                read_only: entry.read_only,
                is_of_device: device.is_some_and(|device| device == entry.device),
            }))
        })
    }

    async fn usage(&self, at: &Path) -> Result<Option<Usage>, Status> {
        let entry = self.change(|all| {
            all.iter()
                .rfind(|entry| entry.at == at)
                .cloned()
                .context("nothing there")
        })?;
        let bytes = on(&entry.device, |device| device.read(0, HEADER))?;
        let text = String::from_utf8_lossy(&bytes);
        let size = text
            .lines()
            .next()
            .and_then(|line| line.rsplit(' ').next()?.parse().ok());
        let size: u64 = size.ok_or_else(|| Status::internal("no file system"))?;
        Ok(Some(Usage {
            bytes: [size, size - DATA_OFFSET, DATA_OFFSET],
            inodes: Some([1000, 990, 10]),
        }))
    }
}

fn ensure_dir(path: &Path) -> Result<(), Status> {
    if path.is_dir() {
        return Ok(());
    }
    Err(Status::internal(format!(
        "{} is no directory",
        path.display()
    )))
}

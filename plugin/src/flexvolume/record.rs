//! What this node remembers from one call to the next: which volume is where, and for whom.
//!
//! `unmount` gets only a path and `detach` only a device, so what they belong to is written down, before it happens. One
//! file for each volume, and one lock: calls about one volume come one after the other, those about others do not wait. All of it
//! is about things that end with the node's life, so it lives where nothing outlives it.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_api::{AttachmentName, VolumeName};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

/// The layout of the files.
const VERSION: u32 = 1;
/// Longest file that is read, in bytes.
const RECORD_LEN_MAX: u64 = 1 << 20;
/// How long between two looks at a lock that another call holds.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Who detaches the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Way {
    /// kubelet of Kubernetes 1.2 to 1.5, by `detach DEVICE` after the last `unmount`.
    EarlyCalls,
    /// kubelet or the controller, by `detach NAME NODE`.
    LateCalls,
    /// Nobody calls for it: the last `unmount` does it.
    LastUnmount,
}

/// A volume that is attached here for kubelet, or on the way there or back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    version: u32,
    /// The attachment.
    pub(super) attachment: AttachmentName,
    /// What is attached.
    pub(super) volume: VolumeName,
    /// Names that Kubernetes has for it.
    pub(super) kubernetes_names: BTreeSet<String>,
    /// Where it was last.
    pub(super) device: Option<PathBuf>,
    /// Who detaches it.
    pub(super) way: Way,
    /// In the early dialect: the last pod has unmounted it, and no one has attached it since. Only then `detach` is heeded.
    pub(super) released: bool,
    /// Where it is mounted for all pods of the node.
    pub(super) staged: Option<PathBuf>,
    /// Where it is mounted, or about to be, for a pod.
    pub(super) targets: BTreeSet<PathBuf>,
}

impl Record {
    pub(super) fn new(attachment: AttachmentName, volume: VolumeName, way: Way) -> Self {
        Self {
            version: VERSION,
            attachment,
            volume,
            kubernetes_names: BTreeSet::new(),
            device: None,
            way,
            released: false,
            staged: None,
            targets: BTreeSet::new(),
        }
    }

    /// Nothing is mounted, as far as is written down.
    pub(super) fn is_unused(&self) -> bool {
        self.targets.is_empty() && self.staged.is_none()
    }
}

/// Why records cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file system says no.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another call about the same volume takes too long.
    #[error("another call about {attachment} has been under way for {} s", waited.as_secs())]
    Locked {
        /// The attachment.
        attachment: AttachmentName,
        /// For how long this call has waited.
        waited: Duration,
    },
}

/// The records of this node.
#[derive(Debug, Clone)]
pub(super) struct Store {
    dir: PathBuf,
}

/// While it lives, no other call deals with the volume.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "it is held, not used")] File);

impl Store {
    /// Records in this directory, which is made if need be.
    pub(super) fn open(dir: &Path) -> Result<Self, RecordError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|source| io_error("make", dir, source))?;
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    /// Takes the lock of a volume, and waits for it no longer than until `deadline`.
    pub(super) async fn lock(
        &self,
        attachment: &AttachmentName,
        deadline: Instant,
    ) -> Result<Lock, RecordError> {
        let path = self.dir.join(format!("{attachment}.lock"));
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|source| io_error("open", &path, source))?;
        let began = Instant::now();
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Lock(file)),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() + LOCK_PAUSE < deadline => {
                    sleep(LOCK_PAUSE).await;
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(RecordError::Locked {
                        attachment: attachment.clone(),
                        waited: began.elapsed(),
                    });
                }
                Err(error) => return Err(io_error("lock", &path, error.into())),
            }
        }
    }

    /// The record of a volume, if there is one.
    pub(super) fn load(&self, attachment: &AttachmentName) -> Result<Option<Record>, RecordError> {
        let path = self.path(attachment);
        match fs::metadata(&path) {
            Ok(metadata) if metadata.len() > RECORD_LEN_MAX => {
                let source = io::Error::new(io::ErrorKind::InvalidData, "it is too long");
                return Err(io_error("read", &path, source));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Ok(_) | Err(_) => {}
        }
        let bytes = fs::read(&path).map_err(|source| io_error("read", &path, source))?;
        let record: Record = serde_json::from_slice(&bytes)
            .map_err(|error| io_error("understand", &path, error.into()))?;
        if record.version != VERSION || record.attachment != *attachment {
            let source = io::Error::new(
                io::ErrorKind::InvalidData,
                "it is of another version or of another volume",
            );
            return Err(io_error("understand", &path, source));
        }
        Ok(Some(record))
    }

    /// Keeps a record, whole or not at all.
    pub(super) fn save(&self, record: &Record) -> Result<(), RecordError> {
        let path = self.path(&record.attachment);
        let new = self.dir.join(format!("{}.new", record.attachment));
        let bytes =
            serde_json::to_vec(record).map_err(|error| io_error("write", &path, error.into()))?;
        let write = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&new)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&new, &path)
        };
        write().map_err(|source| io_error("write", &path, source))
    }

    /// Forgets a record.
    pub(super) fn forget(&self, attachment: &AttachmentName) -> Result<(), RecordError> {
        let path = self.path(attachment);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(io_error("remove", &path, error))
            }
            _ => Ok(()),
        }
    }

    /// All records that can be read, in order.
    pub(super) fn all(&self) -> Result<Vec<Record>, RecordError> {
        let listed =
            fs::read_dir(&self.dir).map_err(|source| io_error("list", &self.dir, source))?;
        let mut names = Vec::new();
        for entry in listed {
            let entry = entry.map_err(|source| io_error("list", &self.dir, source))?;
            let name = entry.file_name();
            let name = name.to_str().and_then(|name| name.strip_suffix(".json"));
            names.extend(name.and_then(|name| name.parse::<AttachmentName>().ok()));
        }
        names.sort();
        let mut records = Vec::new();
        for name in names {
            match self.load(&name) {
                Ok(record) => records.extend(record),
                Err(error) => tracing::warn!(%error, "a record is passed over"),
            }
        }
        Ok(records)
    }

    fn path(&self, attachment: &AttachmentName) -> PathBuf {
        self.dir.join(format!("{attachment}.json"))
    }
}

fn io_error(what: &'static str, path: &Path, source: io::Error) -> RecordError {
    RecordError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str) -> Record {
        let volume = "vol".parse().unwrap();
        Record::new(name.parse().unwrap(), volume, Way::LastUnmount)
    }

    #[tokio::test]
    async fn records_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("a/b")).unwrap();
        assert_eq!(store.all().unwrap(), []);
        let mut one = record("flex.one");
        one.targets.insert("/pods/1".into());
        store.save(&one).unwrap();
        store.save(&record("flex.two")).unwrap();
        assert_eq!(store.all().unwrap(), [one.clone(), record("flex.two")]);
        assert_eq!(store.load(&one.attachment).unwrap(), Some(one.clone()));
        store.forget(&one.attachment).unwrap();
        store.forget(&one.attachment).unwrap();
        assert_eq!(store.load(&one.attachment).unwrap(), None);
    }

    /// What cannot be read is an error for its own volume, and no hindrance for others.
    #[test]
    fn damage_is_contained() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let one = record("flex.one");
        store.save(&one).unwrap();
        fs::write(dir.path().join("flex.bad.json"), "{").unwrap();
        fs::write(dir.path().join("..json"), "{}").unwrap();
        let other = fs::read(dir.path().join("flex.one.json")).unwrap();
        fs::write(dir.path().join("flex.two.json"), other).unwrap();
        assert_eq!(store.all().unwrap(), [one]);
        for name in ["flex.bad", "flex.two"] {
            let error = store.load(&name.parse().unwrap()).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[tokio::test]
    async fn one_call_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let name: AttachmentName = "flex.one".parse().unwrap();
        let soon = || Instant::now() + Duration::from_millis(100);
        let held = store.lock(&name, soon()).await.unwrap();
        let error = store.lock(&name, soon()).await.unwrap_err();
        assert!(matches!(error, RecordError::Locked { .. }), "{error}");
        let other = store.lock(&"flex.two".parse().unwrap(), soon()).await;
        assert!(other.is_ok());
        drop(held);
        assert!(store.lock(&name, soon()).await.is_ok());
    }
}

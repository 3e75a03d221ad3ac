//! What the Node service remembers of a volume: how it was staged and where it is published. One small file each, in a folder that
//! a restart of the machine empties, as it undoes the mounts.
//!
//! It is written, and synced, before what it says is done: who was killed finds on return what may have been begun. Whether it was done
//! is seen from the mounts themselves.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::csi::capability::{Access, Mode, Usage};
use crate::csi::names::{VolumeId, digits};

/// Of the files; another one is not understood.
const VERSION: u32 = 1;
/// Longest file that is read, in bytes.
const LEN_MAX: u64 = 1 << 20;

/// How a volume is used, without the mount flags, which may hold secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Terms {
    /// File system; nothing: the raw device.
    pub(super) fs: Option<String>,
    /// By whom.
    pub(super) mode: Mode,
    /// Nothing is written.
    pub(super) read_only: bool,
    /// Stands for the mount flags.
    pub(super) flags: String,
}

impl Terms {
    pub(super) fn new(usage: &Usage, read_only: bool) -> Self {
        let (fs, flags) = match &usage.access {
            Access::Block => (None, String::new()),
            Access::Mount { fs, flags } => (Some(fs.clone()), flags.join("\n")),
        };
        Self {
            fs,
            mode: usage.mode,
            read_only: read_only || usage.mode.is_read_only(),
            flags: digits(&flags, 32),
        }
    }
}

/// What is remembered of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    version: u32,
    /// Which volume.
    pub(super) volume_id: String,
    /// Where it is staged.
    pub(super) staging: PathBuf,
    /// How.
    pub(super) terms: Terms,
    /// Staging came to its end.
    pub(super) staged: bool,
    /// Where it is published, or was going to be, and how.
    pub(super) published: BTreeMap<PathBuf, Terms>,
}

impl Record {
    pub(super) fn new(id: &VolumeId, staging: &Path, terms: Terms) -> Self {
        Self {
            version: VERSION,
            volume_id: id.to_string(),
            staging: staging.to_owned(),
            terms,
            staged: false,
            published: BTreeMap::new(),
        }
    }
}

/// The folder of the records.
#[derive(Debug, Clone)]
pub(super) struct Records {
    dir: PathBuf,
}

impl Records {
    /// The records in this folder, which is made if it is not there.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    fn path(&self, id: &VolumeId) -> PathBuf {
        // An identifier may have a slash.
        self.dir
            .join(format!("{}.json", digits(&id.to_string(), 40)))
    }

    /// What is remembered; nothing when nothing is, or it cannot be understood (that is logged).
    pub(super) fn read(&self, id: &VolumeId) -> io::Result<Option<Record>> {
        let path = self.path(id);
        let bytes = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
            Ok(file) => {
                let mut bytes = Vec::new();
                io::Read::read_to_end(&mut io::Read::take(file, LEN_MAX), &mut bytes)?;
                bytes
            }
        };
        match serde_json::from_slice::<Record>(&bytes) {
            Ok(record) if record.version == VERSION && record.volume_id == id.to_string() => {
                Ok(Some(record))
            }
            Ok(_) | Err(_) => {
                tracing::error!(path = %path.display(), "the record is not understood, and left out of account");
                Ok(None)
            }
        }
    }

    /// Remembers, synced.
    pub(super) fn write(&self, id: &VolumeId, record: &Record) -> io::Result<()> {
        let path = self.path(id);
        let new = path.with_extension("new");
        let json = serde_json::to_vec(record).expect("paths of kubelet are text");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&json)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        self.sync()
    }

    /// Forgets; nothing there is fine.
    pub(super) fn remove(&self, id: &VolumeId) -> io::Result<()> {
        match fs::remove_file(self.path(id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => self.sync(),
        }
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(flags: &[&str]) -> Usage {
        Usage {
            access: Access::Mount {
                fs: "xfs".to_owned(),
                flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            },
            mode: Mode::SingleNodeWriter,
        }
    }

    #[test]
    fn records_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(&dir.path().join("a/b")).unwrap();
        let id: VolumeId = "vol/storage-1/volume-1".parse().unwrap();
        assert_eq!(records.read(&id).unwrap(), None);
        records.remove(&id).unwrap();
        let mut record = Record::new(&id, Path::new("/s"), Terms::new(&usage(&[]), false));
        record
            .published
            .insert("/p".into(), Terms::new(&usage(&[]), true));
        records.write(&id, &record).unwrap();
        assert_eq!(records.read(&id).unwrap(), Some(record));
        assert_eq!(records.read(&"vol".parse().unwrap()).unwrap(), None);
        records.remove(&id).unwrap();
        assert_eq!(records.read(&id).unwrap(), None);
    }

    #[test]
    fn what_is_not_understood_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let id: VolumeId = "vol".parse().unwrap();
        for bytes in [&b""[..], b"{}", b"\0\xff", b"{\"version\":9}"] {
            fs::write(records.path(&id), bytes).unwrap();
            assert_eq!(records.read(&id).unwrap(), None);
        }
    }

    #[test]
    fn flags_are_compared_and_not_kept() {
        let secret = Terms::new(&usage(&["password=hunter2"]), false);
        assert_ne!(secret, Terms::new(&usage(&["noatime"]), false));
        assert_eq!(secret, Terms::new(&usage(&["password=hunter2"]), false));
        assert!(!serde_json::to_string(&secret).unwrap().contains("hunter2"));
    }
}

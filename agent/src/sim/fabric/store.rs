//! The state directory: what is known is on the disk, synced, before it is answered.
//!
//! ```text
//! lock                  held while a fabric runs
//! catalogue.json        tenants, initiators, groups, pools, templates, policies
//! app_instances/ID.json
//! data/NAME.img         volumes and snapshots, sparse
//! tls/cert.pem key.pem
//! requests.jsonl        the log of requests, when it is asked for
//! ```

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::data::DataDir;
use super::model::{AppInstance, Catalogue};
use crate::volume::store::write_synced;

/// Format of the documents that are written, and the only one that is read.
pub(super) const FORMAT: u32 = 1;

/// The state directory of one running fabric.
#[derive(Debug)]
pub(super) struct Store {
    dir: PathBuf,
    _lock: File,
}

impl Store {
    /// Opens or makes the directory; no other fabric can open it until this value goes.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir.join("app_instances"))?;
        fs::create_dir_all(dir.join("tls"))?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(dir.join("lock"))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            let why = format!("another simulated fabric uses {}", dir.display());
            io::Error::new(io::ErrorKind::ResourceBusy, why)
        })?;
        Ok(Self {
            dir: dir.to_owned(),
            _lock: lock,
        })
    }

    /// The folder of the data files.
    pub(super) fn data(&self) -> io::Result<DataDir> {
        DataDir::open(self.dir.join("data"))
    }

    /// The folder of certificate and key.
    pub(super) fn tls(&self) -> PathBuf {
        self.dir.join("tls")
    }

    /// What [`Store::put_catalogue`] wrote last.
    pub(super) fn catalogue(&self) -> io::Result<Option<Catalogue>> {
        let path = self.dir.join("catalogue.json");
        let Some(catalogue) = read::<Catalogue>(&path)? else {
            return Ok(None);
        };
        check_format(&path, catalogue.format)?;
        Ok(Some(catalogue))
    }

    pub(super) fn put_catalogue(&self, catalogue: &Catalogue) -> io::Result<()> {
        write(&self.dir.join("catalogue.json"), catalogue)
    }

    /// All app instances, in the order of their creation.
    pub(super) fn instances(&self) -> io::Result<Vec<AppInstance>> {
        let mut instances = Vec::new();
        for entry in fs::read_dir(self.dir.join("app_instances"))? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                // Left by a write that did not finish.
                let _ = fs::remove_file(&path);
                continue;
            }
            if let Some(instance) = read::<AppInstance>(&path)? {
                check_format(&path, instance.format)?;
                instances.push(instance);
            }
        }
        instances.sort_by_key(|instance| instance.number);
        Ok(instances)
    }

    pub(super) fn put_instance(&self, instance: &AppInstance) -> io::Result<()> {
        write(&self.instance_path(&instance.id), instance)
    }

    /// Forgets an app instance.
    pub(super) fn remove_instance(&self, id: &str) -> io::Result<()> {
        fs::remove_file(self.instance_path(id))?;
        File::open(self.dir.join("app_instances"))?.sync_all()
    }

    fn instance_path(&self, id: &str) -> PathBuf {
        // Ids are made here, never by a client.
        self.dir.join("app_instances").join(format!("{id}.json"))
    }
}

fn write<T: Serialize>(path: &Path, document: &T) -> io::Result<()> {
    let json = serde_json::to_vec(document)?;
    write_synced(path, &json).map_err(io::Error::other)
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // The message of serde_json can quote a value, and the value can be a password: only the place.
    let document = serde_json::from_slice(&bytes).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        damaged(path, &format!("line {line}, column {column}"))
    })?;
    Ok(Some(document))
}

fn check_format(path: &Path, found: u32) -> io::Result<()> {
    if found == FORMAT {
        return Ok(());
    }
    let why = format!("it has format {found}, this program knows {FORMAT}");
    Err(damaged(path, &why))
}

fn damaged(path: &Path, why: &str) -> io::Error {
    let text = format!("{} cannot be used ({why})", path.display());
    io::Error::new(io::ErrorKind::InvalidData, text)
}

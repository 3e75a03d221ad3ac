//! What survives a restart: one file for each attachment, and its secrets apart.
//!
//! A file is written beside its place, synced, moved over it, and the directory is synced: after
//! [`Store::put`] returns, the intent is there even if the machine loses power.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Version of the files that are written. Version 1 had no paths and no fence, version 2 no kernel device, version 3 no
/// volumes of a fabric; all are read. A file of any other version is refused, never guessed at.
const VERSION: u32 = 4;
const OLDEST: u32 = 1;

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or directory cannot be read or written.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file is not what this program wrote.
    #[error("{path} is damaged ({message}); restore it, or remove it and attach again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A file was written by another version.
    #[error("{path} has version {found}, this berthd reads {OLDEST} to {VERSION}")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { what, path, source }
}

/// A directory of versioned JSON documents, each with a name.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
}

#[derive(Serialize)]
struct Envelope<'a, T> {
    version: u32,
    #[serde(flatten)]
    document: &'a T,
}

impl Store {
    /// Opens the directory `dir` and makes it (mode 0700) when it is absent.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let dir = dir.into();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(io_error("make the directory", &dir))?;
        Ok(Self { dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        // Names are validated by the API; the store adds nothing that a name could escape by.
        debug_assert!(!name.contains('/') && !name.starts_with('.'), "{name}");
        self.dir.join(format!("{name}.json"))
    }

    /// Writes the document, replacing an older one of this name; durable when it returns.
    ///
    /// # Errors
    /// When anything could not be written or synced; the older document is then still there.
    pub fn put<T: Serialize>(&self, name: &str, document: &T) -> Result<(), StoreError> {
        let path = self.path(name);
        let json = serde_json::to_vec_pretty(&Envelope {
            version: VERSION,
            document,
        })
        .expect("documents have string keys only");
        write_synced(&path, &json)
    }

    /// Removes the document; absent is fine. Durable when it returns.
    ///
    /// # Errors
    /// When the file is there and cannot be removed.
    pub fn remove(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Ok(()) => sync_dir(&self.dir),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io_error("remove", &path)(error)),
        }
    }

    /// Reads the document of this name, if there is one.
    ///
    /// # Errors
    /// When it cannot be read, is damaged or of another version.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StoreError> {
        let path = self.path(name);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("read", &path)(error)),
        };
        // A message of serde_json can quote a value, and the value can be a secret: only the place.
        let damaged = |error: &serde_json::Error| StoreError::Damaged {
            path: path.clone(),
            message: format!("line {}, column {}", error.line(), error.column()),
        };
        let mut value: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|error| damaged(&error))?;
        let found = value
            .as_object_mut()
            .and_then(|object| object.remove("version"));
        match found.as_ref().and_then(serde_json::Value::as_u64) {
            Some(version) if (OLDEST.into()..=VERSION.into()).contains(&version) => {}
            Some(found) => return Err(StoreError::Version { path, found }),
            None => {
                return Err(StoreError::Damaged {
                    path,
                    message: "no version".to_owned(),
                });
            }
        }
        serde_json::from_value(value)
            .map(Some)
            .map_err(|error| damaged(&error))
    }

    /// Names of all documents, sorted. Files left by a write that did not finish are removed.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn names(&self) -> Result<Vec<String>, StoreError> {
        let error = |source| io_error("list", &self.dir)(source);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(error)? {
            let file_name = entry.map_err(error)?.file_name();
            let Some(file_name) = file_name.to_str() else {
                continue;
            };
            if file_name.ends_with(TEMPORARY_SUFFIX) {
                // A crash before the move: the document was never promised to anybody.
                let _ = fs::remove_file(self.dir.join(file_name));
            } else if let Some(name) = file_name.strip_suffix(".json") {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }
}

const TEMPORARY_SUFFIX: &str = ".tmp";

/// Writes a file of mode 0600 so that after a crash either the old or the new contents are there.
///
/// # Errors
/// When anything could not be written or synced.
pub fn write_synced(path: &Path, contents: &[u8]) -> Result<(), StoreError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(TEMPORARY_SUFFIX);
    let temporary = PathBuf::from(temporary);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(io_error("write", path))?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(io_error("sync", dir))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::os::unix::fs::PermissionsExt as _;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Document {
        text: String,
    }

    fn document(text: &str) -> Document {
        Document {
            text: text.to_owned(),
        }
    }

    #[test]
    fn documents_are_replaced_listed_and_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path().join("a/b")).expect("opens");
        store.put("two", &document("2")).expect("writes");
        store.put("one", &document("1")).expect("writes");
        store.put("one", &document("one")).expect("replaces");
        assert_eq!(store.names().expect("lists"), ["one", "two"]);
        assert_eq!(store.get("one").expect("reads"), Some(document("one")));
        let mode = fs::metadata(store.path("one"))
            .expect("is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        store.remove("one").expect("removes");
        store.remove("one").expect("absent is fine");
        assert_eq!(store.get::<Document>("one").expect("reads"), None);
    }

    #[test]
    fn a_write_that_did_not_finish_leaves_the_old_document() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).expect("opens");
        store.put("one", &document("old")).expect("writes");
        fs::write(dir.path().join("one.json.tmp"), b"{\"version\":1,\"te").expect("writes");
        assert_eq!(store.names().expect("lists"), ["one"]);
        assert_eq!(store.get("one").expect("reads"), Some(document("old")));
        assert!(!dir.path().join("one.json.tmp").exists());
    }

    #[test]
    fn damaged_files_and_other_versions_are_refused_without_their_contents() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).expect("opens");
        for (contents, expected) in [
            ("{\"version\":1,\"text\":\"secret", "damaged"),
            ("{\"text\":\"secret\"}", "no version"),
            ("{\"version\":1,\"text\":[\"secret\"]}", "damaged"),
            ("{\"version\":9,\"text\":\"secret\"}", "version 9"),
        ] {
            fs::write(dir.path().join("one.json"), contents).expect("writes");
            let message = store
                .get::<Document>("one")
                .expect_err("refused")
                .to_string();
            assert!(message.contains(expected), "{message}");
            assert!(!message.contains("secret"), "{message}");
        }
    }
}

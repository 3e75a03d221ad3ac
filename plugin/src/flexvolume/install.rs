//! Puts this program where kubelet looks for it, so that no kubelet ever sees half of it.
//!
//! A kubelet of Kubernetes 1.3 reads the plugin directory when it starts, takes every directory in it for a driver, also hidden
//! ones, and does not start when one cannot be run. So a directory appears there with the program in it: it is made beside the
//! plugin directory and moved in. Later kubelets watch for changes, and forget a driver that is gone for a moment: what is there
//! is replaced in one step, by a file whose name they do not look at.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Where kubelet looks unless `--volume-plugin-dir` says otherwise.
pub const PLUGIN_DIR: &str = "/usr/libexec/kubernetes/kubelet-plugins/volume/exec";
/// The driver of the manifests of 2016, and our own name.
const DRIVERS: [&str; 2] = ["datera/iscsi", "berth/volume"];
/// This program.
const PROGRAM: &str = "/proc/self/exe";
/// What is installed may be run by everybody and changed by root.
const MODE: u32 = 0o755;

/// Why it was not installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The arguments.
    #[error("{0}; usage: install [--dir DIR] [VENDOR/DRIVER...]")]
    Usage(String),
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
}

/// Installs this program for the drivers that are named, or for both of its names; returns where.
///
/// # Errors
/// See [`InstallError`].
pub fn install(arguments: &[String]) -> Result<Vec<PathBuf>, InstallError> {
    let (dir, drivers) = parse(arguments)?;
    let program = read_program()?;
    make_dir(&dir)?;
    let mut installed = Vec::new();
    for (vendor, driver) in drivers {
        let home = dir.join(format!("{vendor}~{driver}"));
        let target = home.join(&driver);
        if fs::read(&target).is_ok_and(|there| there == program) && is_executable(&target) {
            // Not touched, so that no kubelet starts it anew.
        } else if home.exists() {
            replace(&home, &driver, &program)?;
        } else {
            move_in(&dir, &home, &driver, &program)?;
        }
        installed.push(target);
    }
    Ok(installed)
}

type Drivers = Vec<(String, String)>;

fn parse(arguments: &[String]) -> Result<(PathBuf, Drivers), InstallError> {
    let mut dir = PathBuf::from(PLUGIN_DIR);
    let mut drivers = Vec::new();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        if word == "--dir" {
            let value = words.next();
            let value = value.ok_or_else(|| usage("--dir needs a directory"))?;
            dir = PathBuf::from(value);
            if !dir.is_absolute() {
                return Err(usage(format!("{value:?} is not an absolute path")));
            }
        } else {
            drivers.push(driver(word)?);
        }
    }
    if drivers.is_empty() {
        drivers = DRIVERS
            .iter()
            .map(|name| driver(name))
            .collect::<Result<_, _>>()?;
    }
    Ok((dir, drivers))
}

fn usage(what: impl Into<String>) -> InstallError {
    InstallError::Usage(what.into())
}

fn driver(text: &str) -> Result<(String, String), InstallError> {
    let is_name = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
    };
    match text.split_once('/') {
        Some((vendor, driver)) if is_name(vendor) && is_name(driver) => {
            Ok((vendor.to_owned(), driver.to_owned()))
        }
        _ => Err(usage(format!(
            "{text:?} is not the name of a driver, as datera/iscsi"
        ))),
    }
}

fn io_error(what: &'static str, path: &Path, source: io::Error) -> InstallError {
    InstallError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

fn read_program() -> Result<Vec<u8>, InstallError> {
    let path = Path::new(PROGRAM);
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|mut file| file.read_to_end(&mut bytes))
        .map_err(|source| io_error("read", path, source))?;
    Ok(bytes)
}

fn make_dir(dir: &Path) -> Result<(), InstallError> {
    fs::create_dir_all(dir).map_err(|source| io_error("make", dir, source))
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o111 == 0o111)
}

/// Writes the program whole, on the disk, and with its mode, under a name of its own.
fn write(path: &Path, program: &[u8]) -> Result<(), InstallError> {
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(MODE)
            .open(path)?;
        file.write_all(program)?;
        // The mode at opening is cut by the umask.
        file.set_permissions(fs::Permissions::from_mode(MODE))?;
        file.sync_all()
    };
    write().map_err(|source| io_error("write", path, source))
}

fn sync_dir(dir: &Path) -> Result<(), InstallError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|source| io_error("sync", dir, source))
}

fn replace(home: &Path, driver: &str, program: &[u8]) -> Result<(), InstallError> {
    let new = home.join(format!(".{driver}"));
    let target = home.join(driver);
    write(&new, program)?;
    fs::rename(&new, &target).map_err(|source| io_error("replace", &target, source))?;
    sync_dir(home)
}

fn move_in(dir: &Path, home: &Path, driver: &str, program: &[u8]) -> Result<(), InstallError> {
    let beside = dir.parent().unwrap_or(dir);
    let stage = beside.join(format!(".berth-flexvolume-{}", std::process::id()));
    make_dir(&stage)?;
    let set_mode = fs::set_permissions(&stage, fs::Permissions::from_mode(MODE));
    let moved = set_mode
        .map_err(|source| io_error("open up", &stage, source))
        .and_then(|()| write(&stage.join(driver), program))
        .and_then(|()| sync_dir(&stage))
        .and_then(|()| {
            fs::rename(&stage, home).map_err(|source| io_error("move in", home, source))
        });
    if moved.is_err() {
        let _ = fs::remove_dir_all(&stage);
    }
    moved?;
    sync_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn it_is_there_whole_and_nothing_else_is() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("volume/exec");
        let arguments = words(&["--dir", dir.to_str().unwrap()]);
        let installed = install(&arguments).unwrap();
        assert_eq!(
            installed,
            [
                dir.join("datera~iscsi/iscsi"),
                dir.join("berth~volume/volume")
            ]
        );
        let listed = |dir: &Path| {
            let mut names: Vec<_> = fs::read_dir(dir)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        let check = || {
            assert_eq!(listed(&dir), ["berth~volume", "datera~iscsi"]);
            assert_eq!(listed(dir.parent().unwrap()), ["exec"]);
            for target in &installed {
                assert!(is_executable(target));
                assert_eq!(fs::read(target).unwrap(), fs::read(PROGRAM).unwrap());
                assert_eq!(listed(target.parent().unwrap()).len(), 1);
            }
        };
        check();
        // What is there and whole is not touched; what is not, is replaced by another file.
        let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
        let before = inode(&installed[0]);
        install(&arguments).unwrap();
        assert_eq!(inode(&installed[0]), before);
        fs::write(&installed[0], "old").unwrap();
        install(&arguments).unwrap();
        check();
        assert_ne!(inode(&installed[0]), before);
    }

    #[test]
    fn arguments() {
        let parsed = parse(&words(&["a.b/c-d", "--dir", "/x"])).unwrap();
        assert_eq!(parsed.0, Path::new("/x"));
        assert_eq!(parsed.1, [("a.b".to_owned(), "c-d".to_owned())]);
        for bad in [
            &["--dir"][..],
            &["--dir", "x"],
            &["--force"],
            &["a"],
            &["a/b/c"],
            &["../b"],
            &["a/.."],
            &[""],
        ] {
            assert!(
                matches!(parse(&words(bad)), Err(InstallError::Usage(_))),
                "{bad:?}"
            );
        }
    }
}

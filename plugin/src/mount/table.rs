//! The mount table of this process (`/proc/self/mountinfo`, proc(5)).

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::Error;

/// Where the kernel has the table.
const MOUNTINFO: &str = "/proc/self/mountinfo";

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its number.
    pub id: u64,
    /// The number of the mount that it is on.
    pub parent: u64,
    /// Major and minor number of the file system's device; of btrfs and of file systems without a device they are made up.
    pub device: (u32, u32),
    /// What of the file system is seen there: `/`, or a directory for a bind.
    pub root: PathBuf,
    /// Where it is mounted.
    pub target: PathBuf,
    /// Options of this mount, as `rw,relatime`.
    pub options: String,
    /// Type of the file system.
    pub fs_type: String,
    /// What it was mounted from, as `/dev/nbd3`.
    pub source: String,
    /// Options of the file system, as `rw,errors=remount-ro`.
    pub super_options: String,
}

impl Mount {
    /// Whether nothing can be written through this mount.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        has_option(&self.options, "ro") || has_option(&self.super_options, "ro")
    }

    /// Whether it is the file system of this device, by its number or by its name.
    #[must_use]
    pub fn is_of(&self, device: &Path) -> bool {
        Path::new(&self.source) == device
            || device_number(device).is_some_and(|number| number == self.device)
    }
}

fn has_option(options: &str, wanted: &str) -> bool {
    options.split(',').any(|option| option == wanted)
}

/// Major and minor number of a device node; nothing for what is none.
fn device_number(path: &Path) -> Option<(u32, u32)> {
    let metadata = fs::metadata(path).ok()?;
    metadata.file_type().is_block_device().then(|| {
        (
            rustix::fs::major(metadata.rdev()),
            rustix::fs::minor(metadata.rdev()),
        )
    })
}

/// All mounts that this process sees, in the order of the kernel: of those on one path the last one is on top.
///
/// # Errors
/// [`Error::Table`].
pub fn table() -> Result<Vec<Mount>, Error> {
    let bytes = fs::read(MOUNTINFO).map_err(|error| Error::Table {
        what: format!("{MOUNTINFO}: {error}"),
    })?;
    parse(&bytes)
}

/// The mounts that are stacked on a path, the one on top last. None when the path does not exist.
///
/// # Errors
/// [`Error::Table`].
pub fn at(path: &Path) -> Result<Vec<Mount>, Error> {
    let target = resolved(path);
    let mut mounts = table()?;
    mounts.retain(|mount| mount.target == target);
    Ok(mounts)
}

/// The path as the table has it: without symbolic links, and without looking at what is mounted at the path itself, which
/// may not answer.
pub(super) fn resolved(path: &Path) -> PathBuf {
    if let Ok(link) = fs::read_link(path) {
        let link = path.parent().unwrap_or(Path::new("/")).join(link);
        return fs::canonicalize(&link).unwrap_or(link);
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => fs::canonicalize(parent)
            .unwrap_or_else(|_| parent.to_owned())
            .join(name),
        _ => path.to_owned(),
    }
}

fn parse(bytes: &[u8]) -> Result<Vec<Mount>, Error> {
    let lines = bytes.split(|&byte| byte == b'\n');
    lines
        .filter(|line| !line.is_empty())
        .map(|line| {
            parse_line(line).ok_or_else(|| Error::Table {
                what: format!("line {:?}", String::from_utf8_lossy(line)),
            })
        })
        .collect()
}

/// Ten fields and more, of which those from the seventh on are optional and end with `-`.
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let mut next = || fields.next();
    let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse::<u64>().ok();
    let id = number(next()?)?;
    let parent = number(next()?)?;
    let device = std::str::from_utf8(next()?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let root = path(next()?);
    let target = path(next()?);
    let options = text(next()?);
    while next()? != b"-" {}
    let fs_type = text(next()?);
    let source = text(next()?);
    let super_options = text(next()?);
    Some(Mount {
        id,
        parent,
        device: (major.parse().ok()?, minor.parse().ok()?),
        root,
        target,
        options,
        fs_type,
        source,
        super_options,
    })
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(decode(field)))
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(OsString::from_vec(decode(field)).as_bytes()).into_owned()
}

/// The kernel writes blank, tab, newline and backslash as three octal digits after a backslash.
fn decode(field: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first == b'\\'
            && let [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] = tail
        {
            decoded.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
            rest = tail;
        } else {
            decoded.push(*first);
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_of_the_kernel() {
        let text = b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 shared:7 - ext4 /dev/nbd3 rw,errors=continue\n\
            66 65 0:4 net:[4026532177] /run/netns/a ro - nsfs nsfs rw\n\
            70 65 0:44 / /mnt\\0402 rw - tmpfs  rw,size=1k\n";
        let mounts = parse(text).unwrap();
        assert_eq!(
            mounts[0],
            Mount {
                id: 36,
                parent: 35,
                device: (98, 0),
                root: "/mnt1".into(),
                target: "/mnt 2".into(),
                options: "rw,noatime".into(),
                fs_type: "ext4".into(),
                source: "/dev/nbd3".into(),
                super_options: "rw,errors=continue".into(),
            }
        );
        assert!(mounts[0].is_of(Path::new("/dev/nbd3")));
        assert!(!mounts[0].is_of(Path::new("/dev/nbd30")));
        assert!(mounts[1].is_read_only() && !mounts[0].is_read_only());
        assert_eq!(mounts[2].source, "");
    }

    #[test]
    fn what_is_no_table_is_an_error() {
        for line in [
            "a",
            "36 35 98:0 / /a rw",
            "36 35 98 / /a rw - ext4 /dev/a rw",
            "36 35 98:0 / /a rw - ext4 /dev/a",
            "x 35 98:0 / /a rw - ext4 /dev/a rw",
        ] {
            assert!(parse(line.as_bytes()).is_err(), "{line}");
        }
    }

    #[test]
    fn the_real_table_has_a_root() {
        let mounts = table().unwrap();
        assert!(mounts.iter().any(|mount| mount.target == Path::new("/")));
        assert!(!at(Path::new("/proc")).unwrap().is_empty());
        assert!(!at(Path::new("/proc/../proc")).unwrap().is_empty());
        assert!(at(Path::new("/no/such/path")).unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn escapes_come_back(path in proptest::collection::vec(1_u8.., 0..40)) {
            let mut escaped = Vec::new();
            for &byte in &path {
                match byte {
                    b' ' | b'\t' | b'\n' | b'\\' => escaped.extend(format!("\\{byte:03o}").bytes()),
                    _ => escaped.push(byte),
                }
            }
            prop_assert_eq!(decode(&escaped), path);
        }

        #[test]
        fn any_bytes_are_taken(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }
}

//! Files with the bytes of volumes and snapshots: sparse, and copied by reference where the file system can.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// Piece of a copy where neither file system nor kernel copy by themselves.
const PIECE_BYTES: usize = 1024 * 1024;

/// A folder of data files.
#[derive(Debug, Clone)]
pub(super) struct DataDir {
    dir: PathBuf,
}

impl DataDir {
    /// Opens or makes the folder.
    pub(super) fn open(dir: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        Ok(Self { dir })
    }

    /// Where a file is.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.img"))
    }

    /// Makes a file that is one hole.
    pub(super) fn create(&self, name: &str, size_bytes: u64) -> io::Result<()> {
        let file = File::create_new(self.path(name))?;
        file.set_len(size_bytes)?;
        file.sync_all()?;
        self.sync()
    }

    /// Makes a file with the bytes of another one.
    pub(super) fn copy(&self, from: &str, to: &str) -> io::Result<()> {
        let source = File::open(self.path(from))?;
        let copy = File::create_new(self.path(to))?;
        copy_contents(&source, &copy)?;
        copy.sync_all()?;
        self.sync()
    }

    /// Removes a file; one that is not there is fine.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Bytes that the file takes on the disk; those that copies share count for each.
    pub(super) fn used_bytes(&self, name: &str) -> u64 {
        fs::metadata(self.path(name)).map_or(0, |file| file.blocks() * 512)
    }

    /// Names of all files.
    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            if let Some(name) = name.to_str().and_then(|name| name.strip_suffix(".img")) {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn sync(&self) -> io::Result<()> {
        sync_dir(&self.dir)
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Shares the extents (a reflink) where the file system can; else copies those that are no holes.
fn copy_contents(source: &File, copy: &File) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(copy, source).is_ok() {
        return Ok(());
    }
    let size = source.metadata()?.len();
    copy.set_len(size)?;
    let mut at = 0;
    while at < size {
        let data = match rustix::fs::seek(source, SeekFrom::Data(at)) {
            Ok(data) => data,
            // Nothing but a hole from here on.
            Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let hole = rustix::fs::seek(source, SeekFrom::Hole(data))?.min(size);
        copy_range(source, copy, data, hole)?;
        at = hole.max(data + 1);
    }
    Ok(())
}

fn copy_range(source: &File, copy: &File, from: u64, to: u64) -> io::Result<()> {
    let (mut read_at, mut write_at) = (from, from);
    while read_at < to {
        let len = usize::try_from(to - read_at).unwrap_or(usize::MAX);
        let copied =
            rustix::fs::copy_file_range(source, Some(&mut read_at), copy, Some(&mut write_at), len);
        match copied {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::NOSYS | Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL) => {
                return copy_by_hand(source, copy, read_at, to);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_by_hand(source: &File, copy: &File, from: u64, to: u64) -> io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    let mut at = from;
    while at < to {
        let len = usize::try_from(to - at).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
        source.read_exact_at(&mut piece[..len], at)?;
        copy.write_all_at(&piece[..len], at)?;
        at += len as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_have_the_bytes_and_the_holes() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path().join("data")).unwrap();
        data.create("a", 1 << 30).unwrap();
        let file = File::options().write(true).open(data.path("a")).unwrap();
        file.write_all_at(b"first", 0).unwrap();
        file.write_all_at(&[7; 9000], 500_000_001).unwrap();
        data.copy("a", "b").unwrap();
        // The copy is on its own from here on.
        file.write_all_at(b"later", 0).unwrap();
        let copy = File::open(data.path("b")).unwrap();
        let mut bytes = [0; 5];
        copy.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"first");
        let mut bytes = [1; 9002];
        copy.read_exact_at(&mut bytes, 500_000_000).unwrap();
        assert!(bytes[1..9001].iter().all(|byte| *byte == 7));
        assert_eq!((bytes[0], bytes[9001]), (0, 0));
        assert_eq!(fs::metadata(data.path("b")).unwrap().len(), 1 << 30);
        assert!(data.used_bytes("b") < 1 << 20, "holes stay holes");
        let mut names = data.names().unwrap();
        names.sort();
        assert_eq!(names, ["a", "b"]);
        data.remove("b").unwrap();
        data.remove("b").unwrap();
        assert!(data.copy("b", "c").is_err());
    }

    #[test]
    fn copying_by_hand_moves_every_byte() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let bytes: Vec<u8> = (0..PIECE_BYTES + 77).map(|n| (n % 251) as u8).collect();
        fs::write(&a, &bytes).unwrap();
        let copy = File::create(&b).unwrap();
        copy_by_hand(&File::open(&a).unwrap(), &copy, 0, bytes.len() as u64).unwrap();
        assert!(fs::read(&b).unwrap() == bytes);
    }
}

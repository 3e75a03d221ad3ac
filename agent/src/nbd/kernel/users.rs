//! Who has a block device open: mounts, swap, devices built on it, processes.
//!
//! Nothing in Linux lists this in one place. Mounts of other namespaces are found through the processes that
//! live there; whatever stays hidden (another kernel user) still shows as a claim that is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::Path;

/// Processes named in a list; more are counted.
const PROCESSES_MAX: usize = 8;

/// Somebody who has a device open.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum User {
    /// A file system is mounted.
    Mount {
        /// Where, as seen in `namespace_of`.
        at: String,
        /// A process that sees the mount, when we do not.
        namespace_of: Option<u32>,
    },
    /// It is swap.
    Swap,
    /// Another block device is built on it.
    Holder {
        /// Its name, as `dm-0`.
        device: String,
    },
    /// A process has it open.
    Process {
        /// Its number.
        pid: u32,
        /// Its name.
        name: String,
    },
    /// More processes than are named.
    MoreProcesses(usize),
    /// Somebody who cannot be named: a mount in a place we cannot see, or the kernel itself.
    Unknown,
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mount {
                at,
                namespace_of: None,
            } => write!(f, "mounted at {at}"),
            Self::Mount {
                at,
                namespace_of: Some(pid),
            } => write!(f, "mounted at {at} in the mount namespace of process {pid}"),
            Self::Swap => f.write_str("in use as swap"),
            Self::Holder { device } => write!(f, "held by {device}"),
            Self::Process { pid, name } => write!(f, "open in process {pid} ({name})"),
            Self::MoreProcesses(count) => write!(f, "open in {count} more processes"),
            Self::Unknown => f.write_str("held by somebody who cannot be named"),
        }
    }
}

/// Looks for users of the block devices with these numbers (`43:0`), below `proc`.
pub(super) fn of(proc: &Path, numbers: &[String], nodes: &[String]) -> io::Result<Vec<User>> {
    let mut users = Vec::new();
    let own = std::fs::read_to_string(proc.join("self/mountinfo")).unwrap_or_default();
    let mounts = mounts(&own, numbers);
    users.extend(mounts.iter().map(|at| User::Mount {
        at: at.clone(),
        namespace_of: None,
    }));
    let swaps = std::fs::read_to_string(proc.join("swaps")).unwrap_or_default();
    let swap = |line: &str| {
        let first = line.split_whitespace().next();
        first.is_some_and(|first| nodes.iter().any(|node| node == first))
    };
    if swaps.lines().any(swap) {
        users.push(User::Swap);
    }
    let mut processes = Vec::new();
    let mut elsewhere: BTreeMap<String, u32> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let namespace = |dir: &Path| std::fs::read_link(dir.join("ns/mnt")).ok();
    seen.extend(namespace(&proc.join("self")));
    for entry in std::fs::read_dir(proc)? {
        let entry = entry?;
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let dir = entry.path();
        if has_open(&dir, numbers) && pid != std::process::id() {
            let name = std::fs::read_to_string(dir.join("comm")).unwrap_or_default();
            processes.push(User::Process {
                pid,
                name: name.trim().to_owned(),
            });
        }
        // One look for each mount namespace.
        if namespace(&dir).is_some_and(|namespace| seen.insert(namespace)) {
            let theirs = std::fs::read_to_string(dir.join("mountinfo")).unwrap_or_default();
            for at in self::mounts(&theirs, numbers) {
                elsewhere.entry(at).or_insert(pid);
            }
        }
    }
    users.extend(elsewhere.into_iter().map(|(at, pid)| User::Mount {
        at,
        namespace_of: Some(pid),
    }));
    processes.sort();
    let more = processes.len().saturating_sub(PROCESSES_MAX);
    processes.truncate(PROCESSES_MAX);
    users.append(&mut processes);
    if more > 0 {
        users.push(User::MoreProcesses(more));
    }
    Ok(users)
}

/// Mount points of the devices with these numbers (`proc_pid_mountinfo(5)`).
fn mounts(mountinfo: &str, numbers: &[String]) -> Vec<String> {
    let mount = |line: &str| {
        let mut fields = line.split(' ').skip(2);
        let (number, _root, at) = (fields.next()?, fields.next()?, fields.next()?);
        let ours = numbers.iter().any(|ours| ours == number);
        ours.then(|| unescape(at))
    };
    mountinfo.lines().filter_map(mount).collect()
}

/// Blanks and backslashes are written as octal numbers there.
fn unescape(text: &str) -> String {
    let mut plain = text.to_owned();
    for (code, character) in [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ] {
        plain = plain.replace(code, character);
    }
    plain
}

/// Whether a process has a device open. Processes end while they are looked at.
fn has_open(process: &Path, numbers: &[String]) -> bool {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    let Ok(entries) = std::fs::read_dir(process.join("fd")) else {
        return false;
    };
    entries.flatten().any(|entry| {
        // The link's text is looked at first: opening what it leads to, even for a look, may block.
        let leads = std::fs::read_link(entry.path());
        if !leads.is_ok_and(|leads| leads.starts_with("/dev")) {
            return false;
        }
        std::fs::metadata(entry.path()).is_ok_and(|found| {
            let number = found.rdev();
            let number = format!(
                "{}:{}",
                rustix::fs::major(number),
                rustix::fs::minor(number)
            );
            found.file_type().is_block_device() && numbers.contains(&number)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_number_and_unescaped() {
        let info = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                    90 22 43:32 / /mnt/with\\040blank rw - ext4 /dev/nbd1 rw\n\
                    91 22 43:32 /sub /mnt/bind rw - ext4 /dev/nbd1 rw\n";
        assert_eq!(
            mounts(info, &["43:32".to_owned()]),
            ["/mnt/with blank", "/mnt/bind"]
        );
        assert!(mounts(info, &["43:0".to_owned()]).is_empty());
    }

    #[test]
    fn a_process_that_has_the_device_open_is_named() {
        // Any block or character device would do; a look at ourselves must not count.
        let numbers = ["1:3".to_owned()];
        let _null = std::fs::File::open("/dev/null").expect("opens");
        assert!(
            !has_open(Path::new("/proc/self"), &numbers),
            "not a block device"
        );
    }

    #[test]
    fn swap_is_found_by_its_node() {
        let proc = tempfile::tempdir().expect("a directory");
        let swaps = "Filename\t\t\tType\t\tSize\n/dev/nbd3   partition\t100\n";
        std::fs::write(proc.path().join("swaps"), swaps).expect("writes");
        let of_node = |node: &str| of(proc.path(), &[], &[node.to_owned()]).expect("reads");
        assert_eq!(of_node("/dev/nbd3"), [User::Swap]);
        assert_eq!(of_node("/dev/nbd30"), []);
    }
}

//! The process that reads devices.
//!
//! A read of a device whose storage is gone waits in the kernel, where nothing ends it, and neither does the process that
//! waits end. So this is never done by the plugin itself, but by another process of the same program, which is given up when it
//! takes too long. Programs that use [`super::probe`] and its siblings call [`run_if_asked`] as the first thing they do.

use std::ffi::OsString;
use std::fs::{File, FileType, OpenOptions};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::FdFlags;
use serde::{Deserialize, Serialize};

use super::places::{UNIT, places};
use super::{Content, blkid};

/// The first argument by which a program knows that it is to be this helper.
const ASKED: &str = "device-helper";
/// Most that is read at a time, in bytes.
const READ_LEN: usize = 256 << 10;

/// What the helper is to do.
pub(super) enum Order {
    /// Tell the size.
    Size,
    /// Tell what is on the device.
    Probe,
    /// Prove that it is blank and turn into this program.
    Make(Vec<OsString>),
}

impl Order {
    pub(super) fn as_people_say(&self) -> &'static str {
        match self {
            Self::Size => "asking for the size of the device",
            Self::Probe => "reading what is on the device",
            Self::Make(_) => "making the file system",
        }
    }

    pub(super) fn arguments(&self, device: &Path) -> Vec<OsString> {
        let (word, program) = match self {
            Self::Size => ("size", &[][..]),
            Self::Probe => ("probe", &[][..]),
            Self::Make(program) => ("make", program.as_slice()),
        };
        let mut arguments = vec![ASKED.into(), word.into(), device.into()];
        arguments.extend_from_slice(program);
        arguments
    }
}

/// What the helper found, as one line of JSON on its standard output.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Report {
    Size(u64),
    Content(Content),
    InUse,
    Failed(String),
}

impl Report {
    pub(super) fn parse(stdout: &str) -> Option<Self> {
        serde_json::from_str(stdout.lines().next()?).ok()
    }

    fn emit(&self) -> io::Result<()> {
        let line = serde_json::to_string(self).expect("a report has only string keys");
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{line}")?;
        stdout.flush()
    }
}

/// Does the work of the helper and ends the process, if that is what this process was started for. To be called before anything
/// else, threads above all.
pub fn run_if_asked() {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == ASKED) {
        let code = run(arguments);
        // Not a return from main: nothing of the program itself is to run.
        std::process::exit(i32::from(code != ExitCode::SUCCESS));
    }
}

fn run(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let order = arguments.next().unwrap_or_default();
    let device = PathBuf::from(arguments.next().unwrap_or_default());
    let program: Vec<OsString> = arguments.collect();
    let report = match order.to_str() {
        Some("size") => Device::open(&device, false).map(|device| Report::Size(device.size)),
        Some("probe") => Device::open(&device, false)
            .and_then(|opened| look(&device, &opened))
            .map(Report::Content),
        Some("make") => match make(&device, &program) {
            // Only a program that did not start comes back.
            Ok(report) => Ok(report),
            Err(trouble) => Err(trouble),
        },
        _ => Err(Trouble::Other(format!("there is no order {order:?}"))),
    };
    let report = report.unwrap_or_else(Report::from);
    let done = !matches!(report, Report::Failed(_) | Report::InUse);
    match report.emit() {
        Ok(()) if done => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Why the device cannot be read or used.
enum Trouble {
    InUse,
    Other(String),
}

impl From<Trouble> for Report {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::InUse => Self::InUse,
            Trouble::Other(what) => Self::Failed(what),
        }
    }
}

fn cannot(what: &str, error: &io::Error) -> Trouble {
    Trouble::Other(format!("cannot {what}: {error}"))
}

fn make(path: &Path, program: &[OsString]) -> Result<Report, Trouble> {
    let [name, arguments @ ..] = program else {
        return Err(Trouble::Other("no program to run was named".to_owned()));
    };
    // What is said to stderr is seen when this takes too long.
    kind_of(path)?;
    eprintln!("waiting for the lock of the device");
    let lock = lock(path)?;
    eprintln!("proving that the device is blank");
    let device = Device::open(path, true)?;
    let content = look(path, &device)?;
    let blank = content == Content::Blank;
    let report = Report::Content(content);
    if !blank {
        return Ok(report);
    }
    report.emit().map_err(|error| cannot("report", &error))?;
    eprintln!("the device is blank");
    // Every mkfs opens the device for itself alone, so ours goes; the lock stays open in what this process becomes.
    drop(device);
    rustix::io::fcntl_setfd(&lock, FdFlags::empty())
        .map_err(|error| cannot("keep the lock", &error.into()))?;
    let error = Command::new(name).args(arguments).exec();
    // The report is out: this is for stderr, and the exit status says the rest.
    eprintln!("cannot run {}: {error}", name.display());
    std::process::exit(127);
}

/// The lock by which programs agree who changes what is on a device
/// (systemd, "Locking Block Device Access"). It is held as long as the file is open.
fn lock(path: &Path) -> Result<File, Trouble> {
    let file = File::open(path).map_err(|error| cannot("open it", &error))?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive)
        .map_err(|error| cannot("lock it", &error.into()))?;
    Ok(file)
}

/// Opening anything else could wait, or do something.
fn kind_of(path: &Path) -> Result<FileType, Trouble> {
    let metadata = std::fs::metadata(path).map_err(|error| cannot("look at it", &error))?;
    let kind = metadata.file_type();
    if kind.is_block_device() || kind.is_file() {
        return Ok(kind);
    }
    Err(Trouble::Other(
        "it is neither a block device nor a file".to_owned(),
    ))
}

/// A device, open for reading past all caches.
struct Device {
    file: File,
    size: u64,
}

impl Device {
    fn open(path: &Path, alone: bool) -> Result<Self, Trouble> {
        let kind = kind_of(path)?;
        let mut flags = OFlags::DIRECT;
        if alone && kind.is_block_device() {
            flags |= OFlags::EXCL;
        }
        let open = |flags: OFlags| {
            OpenOptions::new()
                .read(true)
                .custom_flags(flags.bits().cast_signed())
                .open(path)
        };
        let file = match open(flags) {
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()) => {
                return Err(Trouble::InUse);
            }
            // Files on some file systems cannot be read past the cache; devices can.
            Err(error) if kind.is_file() && error.kind() == io::ErrorKind::InvalidInput => {
                open(OFlags::empty())
            }
            opened => opened,
        };
        let mut file = file.map_err(|error| cannot("open it", &error))?;
        let size = file
            .seek(SeekFrom::End(0))
            .map_err(|error| cannot("ask for its size", &error))?;
        if size == 0 {
            return Err(Trouble::Other(
                "it has no size: nothing is connected to it".to_owned(),
            ));
        }
        Ok(Self { file, size })
    }

    /// Where the first byte is that is not zero.
    fn first_data(&self, place: &Range<u64>, buffer: &mut Aligned) -> io::Result<Option<u64>> {
        let mut at = place.start;
        while at < place.end {
            let wanted = usize::try_from(place.end - at)
                .unwrap_or(READ_LEN)
                .min(READ_LEN);
            let bytes = self.read(at, wanted, buffer)?;
            if let Some(offset) = bytes.iter().position(|&byte| byte != 0) {
                return Ok(Some(at + offset as u64));
            }
            at += bytes.len() as u64;
        }
        Ok(None)
    }

    /// Reads so many bytes; fewer are an error. `at` is aligned, and `wanted` unless it ends with the device.
    fn read<'a>(&self, at: u64, wanted: usize, buffer: &'a mut Aligned) -> io::Result<&'a [u8]> {
        let rounded = wanted.next_multiple_of(UNIT as usize);
        let space = buffer.space(rounded);
        let mut len = 0;
        while len < wanted {
            let got = match self.file.read_at(&mut space[len..], at + len as u64) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                got => got?,
            };
            len += got;
            // Reading past caches goes on at aligned places only: a short read that is none is the end.
            if got == 0 || (len < wanted && !len.is_multiple_of(UNIT as usize)) {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!(
                        "the device says that it has {} bytes, but ends before",
                        self.size
                    ),
                ));
            }
        }
        Ok(&space[..wanted])
    }
}

/// Memory at an address that reading past caches takes.
struct Aligned(Vec<u8>);

impl Aligned {
    fn new() -> Self {
        Self(vec![0xff; READ_LEN + 2 * UNIT as usize])
    }

    fn space(&mut self, len: usize) -> &mut [u8] {
        let skip = self.0.as_ptr().align_offset(UNIT as usize);
        &mut self.0[skip..skip + len]
    }
}

/// What is on the device: what blkid knows, or that the places hold zeros.
fn look(path: &Path, device: &Device) -> Result<Content, Trouble> {
    let output = Command::new("blkid")
        .args(blkid::ARGUMENTS)
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| cannot("run blkid (package util-linux)", &error))?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    let known = blkid::understand(output.status.code(), &stdout).map_err(Trouble::Other)?;
    if let Some(content) = known {
        return Ok(content);
    }
    let mut buffer = Aligned::new();
    for place in places(device.size) {
        match device.first_data(&place, &mut buffer) {
            Ok(None) => {}
            Ok(Some(at_bytes)) => return Ok(Content::Unknown { at_bytes }),
            Err(error) => {
                return Err(Trouble::Other(format!(
                    "cannot read bytes {} to {}, so what is on it is not known: {error}",
                    place.start, place.end
                )));
            }
        }
    }
    Ok(Content::Blank)
}

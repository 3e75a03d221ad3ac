//! fio over NBD or in files: a load whose every block is checked.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::process::Process;
use crate::{programs, tool};

/// Jobs of [`Verify`], each with an NBD connection and an area of its own, or with a file of its own.
const JOBS: [(&str, &str); 4] = [
    // All of it is written, then all of it is read: what a late write has spoiled meanwhile shows.
    ("random", "rw=randwrite"),
    ("synced", "rw=randwrite\nfsync=16"),
    // Blocks are read soon after they were written, and prove themselves by their checksums.
    (
        "mixed",
        "rw=randrw\nrwmixread=30\nverify=crc32c\nverify_backlog=32",
    ),
    ("sequential", "rw=write\nbs=128k\niodepth=2"),
];

/// What fio writes to.
#[derive(Debug, Clone)]
pub enum Place {
    /// An export: the areas lie one behind the other from its start on.
    Nbd(String),
    /// A folder: each area is a file, and the page cache is left out.
    Folder(PathBuf),
}

/// One pass: every job writes its area once, in blocks of mixed sizes, and reads all of it back.
#[derive(Debug, Clone)]
pub struct Verify {
    /// What to write to.
    pub place: Place,
    /// Order and contents depend on it: every block is filled with its offset and this number, so that old data is
    /// recognised as wrong. (A checksum would not do: fio takes what an earlier pass has written for right.)
    pub seed: u64,
    /// Of each job.
    pub area_bytes: u64,
    /// Bytes per second that each job writes, at most, so that a pass takes its time and leaves the processors to others;
    /// it reads four times as much.
    pub write_rate_bytes: u64,
}

/// What passes have done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Done {
    /// Passes.
    pub passes: u32,
    /// Blocks written.
    pub writes: u64,
    /// Blocks read, all of them checked.
    pub reads: u64,
    /// The longest that any of the requests was waited for.
    pub longest: Duration,
}

impl std::ops::AddAssign for Done {
    fn add_assign(&mut self, other: Self) {
        self.passes += other.passes;
        self.writes += other.writes;
        self.reads += other.reads;
        self.longest = self.longest.max(other.longest);
    }
}

impl std::fmt::Display for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            passes,
            writes,
            reads,
            longest,
        } = self;
        write!(
            f,
            "{passes} passes of fio, {writes} blocks written, {reads} read, no error, longest wait {longest:.2?}"
        )
    }
}

/// A running pass.
#[derive(Debug)]
pub struct Pass {
    process: Process,
    report: PathBuf,
    _dir: TempDir,
}

impl Verify {
    /// Bytes from the start of the export that the jobs use together.
    #[must_use]
    pub fn all_areas_bytes(&self) -> u64 {
        self.area_bytes * JOBS.len() as u64
    }

    /// Starts a pass.
    ///
    /// # Errors
    /// When fio is not installed.
    pub fn start(&self) -> Result<Pass> {
        let dir = TempDir::with_prefix("fio-")?;
        let (jobs, report) = (dir.path().join("jobs.fio"), dir.path().join("report.json"));
        std::fs::write(&jobs, self.job_file())?;
        let output = format!("--output={}", report.display());
        let args = ["--output-format=json", &output, &jobs.to_string_lossy()];
        let log = dir.path().join("log");
        Ok(Pass {
            process: Process::start("fio", &programs::system("fio")?, args, &[], &log)?,
            report,
            _dir: dir,
        })
    }

    fn job_file(&self) -> String {
        let Self {
            place,
            seed,
            area_bytes,
            write_rate_bytes,
        } = self;
        let engine = match place {
            Place::Nbd(uri) => format!("ioengine=nbd\nuri={uri}"),
            Place::Folder(folder) => format!(
                "ioengine=libaio\ndirect=1\nfilename_format=$jobname\ndirectory={}",
                folder.display()
            ),
        };
        // Not rate_iops: fio takes every block for as small as the smallest.
        let read_rate_bytes = write_rate_bytes * 4;
        let mut text = format!(
            "[global]\n{engine}\nthread\niodepth=8\nsize={area_bytes}\n\
             bssplit=4k/50:12k/20:64k/20:256k/10\nrandseed={seed}\n\
             rate={read_rate_bytes},{write_rate_bytes}\n\
             verify=pattern\nverify_pattern=%o\"pass-{seed}\"\ndo_verify=1\nverify_fatal=1\nverify_state_save=0\nerror_dump=1\n"
        );
        for (number, (name, lines)) in (0_u64..).zip(JOBS) {
            let offset = match place {
                Place::Nbd(_) => number * area_bytes,
                Place::Folder(_) => 0,
            };
            let _ = writeln!(text, "[{name}]\noffset={offset}\n{lines}");
        }
        text
    }
}

impl Pass {
    /// Whether it is over.
    ///
    /// # Errors
    /// When the process cannot be waited for.
    pub fn is_over(&mut self) -> Result<bool> {
        Ok(self.process.status()?.is_some())
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// When the end does not come in time, when any job reports any error, when fio's exit code is not 0, and when not
    /// every block that was written has also been read.
    pub fn finish(mut self, within: Duration) -> Result<Done> {
        let status = self.process.wait_end(within)?;
        let text = std::fs::read_to_string(&self.report).unwrap_or_default();
        let said = || format!("fio: {status}\n{}\n{text}", self.process.log());
        ensure!(status.success(), said());
        // Notes may stand before the report.
        let start = text.find('{').with_context(said)?;
        let report: Value = serde_json::from_str(&text[start..]).with_context(said)?;
        let jobs = report["jobs"].as_array().with_context(said)?;
        ensure!(jobs.len() == JOBS.len(), said());
        let mut done = Done {
            passes: 1,
            ..Done::default()
        };
        for job in jobs {
            ensure!(job["error"] == 0, said());
            let count = |kind: &str| job[kind]["total_ios"].as_u64().with_context(said);
            let (reads, writes) = (count("read")?, count("write")?);
            ensure!(writes > 0 && reads >= writes, said());
            done.reads += reads;
            done.writes += writes;
            for kind in ["read", "write"] {
                let longest = job[kind]["lat_ns"]["max"].as_u64().with_context(said)?;
                done.longest = done.longest.max(Duration::from_nanos(longest));
            }
        }
        Ok(done)
    }
}

/// Bytes per second, reads and writes together, of a load without checks: 64 KiB at random, half reads, 32 at a time over two
/// connections. It overwrites `size_bytes` from `offset_bytes` on.
///
/// # Errors
/// When fio fails or sees an error.
pub fn throughput(
    nbd_uri: &str,
    offset_bytes: u64,
    size_bytes: u64,
    time: Duration,
) -> Result<f64> {
    let report = tempfile::NamedTempFile::new()?;
    let args = [
        format!("--output={}", report.path().display()),
        "--output-format=json".to_owned(),
        "--name=throughput".to_owned(),
        "--ioengine=nbd".to_owned(),
        format!("--uri={nbd_uri}"),
        "--thread".to_owned(),
        "--numjobs=2".to_owned(),
        "--group_reporting".to_owned(),
        "--iodepth=16".to_owned(),
        "--rw=randrw".to_owned(),
        "--bs=64k".to_owned(),
        format!("--offset={offset_bytes}"),
        format!("--size={size_bytes}"),
        "--time_based".to_owned(),
        format!("--runtime={}ms", time.as_millis()),
    ];
    tool::run("fio", &args, time + Duration::from_secs(60))?;
    let text = std::fs::read_to_string(report.path())?;
    let report: Value =
        serde_json::from_str(&text[text.find('{').with_context(|| text.clone())?..])?;
    let job = &report["jobs"][0];
    ensure!(job["error"] == 0, "{report:#}");
    let rate = |kind: &str| job[kind]["bw_bytes"].as_f64().context("bw_bytes");
    Ok(rate("read")? + rate("write")?)
}

//! `memory`: 64 MiB are free, the page cache holds several times as much that is to be written to our device, and
//! more is written and asked for all the time. The kernel can only get memory by writing to us, and everything that we need for
//! that is there.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use berth_tests::Berthd;
use berth_tests::peers::{Peer, Spec};
use berth_tests::tool;

use crate::figures::Random;
use crate::volume::{DEADLINE, Kind, Mounted, Volume};
use crate::{Options, figures, kernel};

/// What is left when the page cache is full of dirty pages.
const FREE_BYTES: u64 = 64 << 20;
/// As many dirty pages may there be before writers have to wait. In bytes: a ratio follows what memory there is
/// only slowly, and dirty pages would take all of it before.
const DIRTY_BYTES: u64 = 256 << 20;
/// So many, and the kernel begins to write by itself.
const DIRTY_BACKGROUND_BYTES: u64 = 192 << 20;
/// Of each of the writers.
const FILE_BYTES: u64 = 160 << 20;
const WRITERS: u64 = 3;
/// A writeback that takes longer hangs.
const ROUND: Duration = Duration::from_secs(100);
const SAMPLE: Duration = Duration::from_millis(50);
const CHUNK: usize = 1 << 20;
/// Taken and given back all the time, by somebody who has nothing to do with us.
const CHURN_BYTES: usize = 8 << 20;

/// A target that is not in the guest.
#[derive(Debug)]
struct Outside {
    portal: String,
    target: String,
    spec: Spec,
}

impl Peer for Outside {
    fn portal(&self) -> String {
        self.portal.clone()
    }
    fn target(&self) -> &str {
        &self.target
    }
    fn lun(&self) -> u64 {
        0
    }
    fn spec(&self) -> &Spec {
        &self.spec
    }
    fn backing(&self) -> Option<&Path> {
        None
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    kernel::load_nbd()?;
    let mut log = kernel::Log::follow()?;
    let outside = Outside {
        portal: options.portal.clone().context("--portal is missing")?,
        target: options.target.clone().context("--target is missing")?,
        spec: Spec::open(0),
    };
    let daemon = Berthd::start()?;
    // As the daemon's unit has it; and whoever judges must live too.
    for pid in [daemon.pid(), std::process::id()] {
        fs::write(format!("/proc/{pid}/oom_score_adj"), "-1000")?;
    }
    let volume = Volume::attach(&daemon, "volume", &outside)?;
    let mut mounted = Mounted::new(&volume, Kind::Ext4)?;
    fs::write("/proc/sys/vm/dirty_bytes", DIRTY_BYTES.to_string())?;
    fs::write(
        "/proc/sys/vm/dirty_background_bytes",
        DIRTY_BACKGROUND_BYTES.to_string(),
    )?;
    let hog = Hog::new()?;
    hog.leave(FREE_BYTES + DIRTY_BYTES)?;
    let mut times = Vec::new();
    for round in 1..=options.rounds {
        let seed = options.seed + u64::from(round) * 1000;
        let figures = writeback(&mounted.folder, seed)
            .with_context(|| format!("round {round}\n{}", daemon.log()))?;
        println!("round {round}: {figures}");
        ensure!(
            figures.dirty_most >= DIRTY_BYTES * 3 / 4 && figures.free_least <= FREE_BYTES,
            "that was too easy"
        );
        times.push(figures.took);
        compare(&mounted.folder, seed)?;
        log.check()?;
        let killed = log.take("Out of memory")?;
        // The hog cannot be killed: memory was short for us, or for the kernel.
        ensure!(killed.is_empty(), "{}", killed.join("\n"));
    }
    figures::print("writeback", times);
    drop(hog);
    mounted.check()?;
    log.check()?;
    let log = daemon.log();
    ensure!(!log.contains("panicked"), "{log}");
    daemon.detach(&volume.name)?;
    daemon.stop()
}

/// Memory that nobody can take back: there is no swap.
struct Hog(PathBuf);

impl Hog {
    fn new() -> Result<Self> {
        let folder = PathBuf::from("/run/lab/hog");
        fs::create_dir_all(&folder)?;
        let words = ["-t", "tmpfs", "-o", "size=100%", "tmpfs", "/run/lab/hog"];
        tool::run("mount", &words, DEADLINE)?;
        Ok(Self(folder))
    }

    fn leave(&self, bytes: u64) -> Result<()> {
        fs::write("/proc/sys/vm/drop_caches", "3")?;
        let mut file = File::create(self.0.join("hog"))?;
        let chunk = vec![0x55; CHUNK];
        while meminfo("MemAvailable")? > bytes {
            file.write_all(&chunk)?;
        }
        Ok(())
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        let _ = tool::try_run("umount", &[&self.0], DEADLINE);
    }
}

fn meminfo(field: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let kib: u64 = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .and_then(|value| value.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("{field} in /proc/meminfo"))?;
    Ok(kib * 1024)
}

/// What a writeback was like.
struct Figures {
    took: Duration,
    free_least: u64,
    dirty_most: u64,
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} MiB written back in {:.1} s; dirty at most {} MiB, free at least {} MiB",
            (WRITERS * FILE_BYTES) >> 20,
            self.took.as_secs_f64(),
            self.dirty_most >> 20,
            self.free_least >> 20
        )
    }
}

fn writeback(folder: &Path, seed: u64) -> Result<Figures> {
    let started = Instant::now();
    let mut figures = Figures {
        took: Duration::ZERO,
        free_least: u64::MAX,
        dirty_most: 0,
    };
    let (done, ended) = sync_channel(WRITERS as usize);
    let mut open = WRITERS;
    for writer in 0..WRITERS {
        let path = folder.join(writer.to_string());
        let done = done.clone();
        // Not scoped: a writer that hangs cannot be waited for.
        std::thread::spawn(move || {
            let _ = done.send(write(&path, seed + writer));
        });
    }
    let over = std::sync::Arc::new(AtomicBool::new(false));
    let their = std::sync::Arc::clone(&over);
    std::thread::spawn(move || churn(&their));
    while open > 0 {
        figures.free_least = figures.free_least.min(meminfo("MemFree")?);
        figures.dirty_most = figures
            .dirty_most
            .max(meminfo("Dirty")? + meminfo("Writeback")?);
        match ended.recv_timeout(SAMPLE) {
            Ok(result) => {
                result?;
                open -= 1;
            }
            Err(RecvTimeoutError::Timeout) if started.elapsed() < ROUND => {}
            Err(_) => bail!("{open} of {WRITERS} writers hang: {}", stuck()?),
        }
    }
    over.store(true, Ordering::Relaxed);
    figures.took = started.elapsed();
    Ok(figures)
}

fn churn(over: &AtomicBool) {
    let mut sum = 0_u64;
    while !over.load(Ordering::Relaxed) {
        let memory = vec![1_u8; CHURN_BYTES];
        // Read, so that it is not optimised away.
        sum += memory
            .iter()
            .step_by(4096)
            .map(|&byte| u64::from(byte))
            .sum::<u64>();
        std::hint::black_box(sum);
    }
}

/// Where the threads of this process wait, for whoever has to find out.
fn stuck() -> Result<String> {
    let mut text = String::new();
    for thread in fs::read_dir("/proc/self/task")? {
        let stack = thread?.path().join("stack");
        text += &fs::read_to_string(stack).unwrap_or_default();
        text += "\n";
    }
    Ok(text)
}

fn write(path: &Path, seed: u64) -> Result<()> {
    let mut file = File::create(path)?;
    let mut chunks = Chunks::new(seed);
    for _ in 0..FILE_BYTES / CHUNK as u64 {
        file.write_all(chunks.next()).context("write")?;
    }
    file.sync_all().context("sync")
}

/// Reads everything back from the device.
fn compare(folder: &Path, seed: u64) -> Result<()> {
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    for writer in 0..WRITERS {
        let path = folder.join(writer.to_string());
        let mut file = File::open(&path)?;
        let mut chunks = Chunks::new(seed + writer);
        let mut found = vec![0; CHUNK];
        for number in 0..FILE_BYTES / CHUNK as u64 {
            file.read_exact(&mut found)?;
            if found != chunks.next() {
                return Err(anyhow!("{}: MiB {number} is wrong", path.display()));
            }
        }
        fs::remove_file(&path)?;
    }
    Ok(())
}

/// Contents, chunk by chunk; made from few random numbers, since the one processor is wanted elsewhere.
struct Chunks {
    random: Random,
    chunk: Vec<u8>,
}

impl Chunks {
    fn new(seed: u64) -> Self {
        Self {
            random: Random(seed),
            chunk: vec![0; CHUNK],
        }
    }

    fn next(&mut self) -> &[u8] {
        // Each block of 4 KiB is another.
        for block in self.chunk.chunks_exact_mut(4096) {
            let number = self.random.next().to_le_bytes();
            for word in block.chunks_exact_mut(8) {
                word.copy_from_slice(&number);
            }
        }
        &self.chunk
    }
}

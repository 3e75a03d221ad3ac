//! One small request after the other, over an NBD connection of its own or in a file: how long does a client wait, and is
//! what it wrote what it reads?

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rustix::fs::OFlags;

use crate::raw_nbd::{CMD_READ, CMD_WRITE, RawClient};

/// Bytes of a request.
const BLOCK: usize = 4096;
/// Blocks that are used in turn.
const BLOCKS: u64 = 64;
/// Bytes that a prober needs for itself.
pub const AREA_BYTES: u64 = BLOCKS * BLOCK as u64;
/// A request without an answer for so long hangs.
const HANG: Duration = Duration::from_secs(180);

/// One request.
#[derive(Debug, Clone, Copy)]
pub struct Probe {
    /// When it was due. Requests that were due while another one waited are among the probes too, with the time that they
    /// would have had to wait: else a stall of a minute would count as one slow request among many quick ones.
    pub due: Instant,
    /// From then to the answer.
    pub took: Duration,
}

/// Writes and reads 4 KiB in turn, one request each interval, until it is finished.
#[derive(Debug)]
pub struct Prober {
    shared: Arc<Mutex<Shared>>,
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    probes: Vec<Probe>,
    /// When the last request that was answered had been sent.
    answered: Option<Instant>,
    failed: Option<String>,
}

impl Prober {
    /// Connects and starts; uses [`AREA_BYTES`] of the export from `offset_bytes` on.
    ///
    /// # Errors
    /// When the export cannot be opened.
    pub fn start(
        socket: &Path,
        export: &str,
        offset_bytes: u64,
        interval: Duration,
    ) -> Result<Self> {
        let mut client = RawClient::connect(socket, HANG)?;
        client.go(export)?;
        Ok(Self::run(interval, move |number| {
            exchange(&mut client, offset_bytes, number)
        }))
    }

    /// The same in a file, past the page cache: what answers is the file system and the device below it.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn start_in(path: &Path, interval: Duration) -> Result<Self> {
        let flags = i32::try_from(OFlags::DIRECT.bits()).context("O_DIRECT")?;
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .custom_flags(flags)
            .open(path)
            .with_context(|| path.display().to_string())?;
        let mut memory = vec![0; 2 * BLOCK];
        Ok(Self::run(interval, move |number| {
            let aligned = memory.as_ptr().align_offset(BLOCK);
            file_exchange(&file, &mut memory[aligned..aligned + BLOCK], number)
        }))
    }

    /// Calls `exchange` with 0, 1, 2 ... on a thread of its own.
    fn run(
        interval: Duration,
        mut exchange: impl FnMut(u64) -> Result<()> + Send + 'static,
    ) -> Self {
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (stop, stopped) = sync_channel(1);
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let mut due = Instant::now();
            for number in 0.. {
                let pause = due.saturating_duration_since(Instant::now());
                if stopped.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                    break;
                }
                let sent = Instant::now();
                if let Err(error) = exchange(number) {
                    lock(&theirs).failed = Some(format!("request {number}: {error:#}"));
                    return Err(error);
                }
                let mut shared = lock(&theirs);
                shared.answered = Some(sent);
                let now = Instant::now();
                while due <= now {
                    shared.probes.push(Probe {
                        due,
                        took: now - due,
                    });
                    due += interval;
                }
            }
            Ok(())
        });
        Self {
            shared,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Whether a request has been answered that was sent at `time` or later.
    ///
    /// # Errors
    /// When a request has failed.
    pub fn answered_since(&self, time: Instant) -> Result<bool> {
        let shared = lock(&self.shared);
        if let Some(failure) = &shared.failed {
            bail!("prober: {failure}");
        }
        Ok(shared.answered.is_some_and(|sent| sent >= time))
    }

    /// The answered requests that were due from `time` on.
    #[must_use]
    pub fn probes_since(&self, time: Instant) -> Vec<Probe> {
        let shared = lock(&self.shared);
        let from = shared.probes.partition_point(|probe| probe.due < time);
        shared.probes[from..].to_vec()
    }

    /// Stops and gives all probes.
    ///
    /// # Errors
    /// When a request has failed or has not been answered in time.
    pub fn finish(mut self) -> Result<Vec<Probe>> {
        self.stop = None;
        let thread = self.thread.take().context("is finished only once")?;
        thread
            .join()
            .map_err(|_| anyhow!("the prober panicked"))??;
        Ok(std::mem::take(&mut lock(&self.shared).probes))
    }
}

/// A value that is only ever appended to stays whole, whoever panicked.
fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(|poison| poison.into_inner())
}

/// Even numbers write, odd ones read what the number before has written.
fn exchange(client: &mut RawClient, offset_bytes: u64, number: u64) -> Result<()> {
    let round = number / 2;
    let offset = offset_bytes + round % BLOCKS * BLOCK as u64;
    let pattern = pattern(round);
    if number.is_multiple_of(2) {
        client.request(CMD_WRITE, number, offset, BLOCK as u32)?;
        client.0.write_all(&pattern)?;
        answer(client, number)
    } else {
        client.request(CMD_READ, number, offset, BLOCK as u32)?;
        answer(client, number)?;
        let mut data = vec![0; BLOCK];
        client.0.read_exact(&mut data).context("data")?;
        check(&data, &pattern, offset)
    }
}

/// As [`exchange`], in a file; `memory` is one block and aligned as direct I/O wants it.
fn file_exchange(file: &File, memory: &mut [u8], number: u64) -> Result<()> {
    let round = number / 2;
    let offset = round % BLOCKS * BLOCK as u64;
    let pattern = pattern(round);
    if number.is_multiple_of(2) {
        memory.copy_from_slice(&pattern);
        file.write_all_at(memory, offset).context("write")
    } else {
        file.read_exact_at(memory, offset).context("read")?;
        check(memory, &pattern, offset)
    }
}

fn pattern(round: u64) -> Vec<u8> {
    (round + 1).to_le_bytes().repeat(BLOCK / 8)
}

fn check(data: &[u8], pattern: &[u8], offset: u64) -> Result<()> {
    ensure!(
        data == pattern,
        "offset {offset} reads {:02x?} instead of {:02x?}",
        &data[..16],
        &pattern[..16]
    );
    Ok(())
}

fn answer(client: &mut RawClient, number: u64) -> Result<()> {
    let (error, cookie) = client.reply()?;
    ensure!(error == 0, "NBD error {error}");
    ensure!(cookie == number, "the answer is to {cookie}");
    Ok(())
}

/// The longest, and the one that so many of a hundred do not exceed; zero without probes.
#[must_use]
pub fn percentile(probes: &[Probe], percent: u32) -> Duration {
    let mut took: Vec<_> = probes.iter().map(|probe| probe.took).collect();
    took.sort_unstable();
    let rank = (took.len() * percent as usize).div_ceil(100);
    took.get(rank.saturating_sub(1))
        .copied()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let probes: Vec<_> = (1..=200)
            .map(|n| Probe {
                due: Instant::now(),
                took: Duration::from_millis(n),
            })
            .collect();
        assert_eq!(percentile(&probes, 50), Duration::from_millis(100));
        assert_eq!(percentile(&probes, 99), Duration::from_millis(198));
        assert_eq!(percentile(&probes, 100), Duration::from_millis(200));
        assert_eq!(percentile(&[], 99), Duration::ZERO);
    }
}

//! A load like that of `git checkout`: many small files are created, synced now and then, renamed, read again and removed.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rustix::fs::{Advice, fadvise};

use crate::figures::Random;

const FOLDERS: u64 = 10;
const FILES: u64 = 12;
const FILE_BYTES_MAX: u64 = 16 << 10;
/// Every so many files are synced.
const SYNC_EVERY: u64 = 8;
/// Between two files: the other loads want the processor too.
const PAUSE: Duration = Duration::from_millis(4);
/// The file that says which generation is the last whole one; replaced as git replaces its index.
const INDEX: &str = "index";

/// A running tree load.
#[derive(Debug)]
pub(crate) struct Tree {
    shared: Arc<Shared>,
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    written: AtomicU64,
    compared: AtomicU64,
    failed: Mutex<Option<String>>,
}

/// What it has done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Done {
    /// Files written.
    pub(crate) written: u64,
    /// Files compared with what was written.
    pub(crate) compared: u64,
}

impl Tree {
    /// Starts in `folder`.
    pub(crate) fn start(folder: &Path, seed: u64) -> Result<Self> {
        let folder = folder.join("tree");
        fs::create_dir_all(&folder)?;
        let shared = Arc::new(Shared::default());
        let (stop, stopped) = sync_channel(1);
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let work = Work {
                folder,
                seed,
                shared: &theirs,
                stopped,
            };
            if let Err(error) = work.run()
                && let Ok(mut failed) = theirs.failed.lock()
            {
                *failed = Some(format!("{error:#}"));
            }
        });
        Ok(Self {
            shared,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Fails when a file was not what had been written, or an operation failed.
    pub(crate) fn check(&self) -> Result<()> {
        let failed = self.shared.failed.lock().map_err(|_| anyhow!("poisoned"))?;
        if let Some(failure) = &*failed {
            bail!("tree of files: {failure}");
        }
        Ok(())
    }

    /// Stops after the file in hand.
    pub(crate) fn finish(mut self) -> Result<Done> {
        self.stop = None;
        let thread = self.thread.take().context("is finished only once")?;
        thread.join().map_err(|_| anyhow!("tree panicked"))?;
        self.check()?;
        Ok(Done {
            written: self.shared.written.load(Ordering::Relaxed),
            compared: self.shared.compared.load(Ordering::Relaxed),
        })
    }
}

/// Compares the last whole generation, from the device: for after a new mount.
pub(crate) fn compare_last(folder: &Path, seed: u64) -> Result<u64> {
    let folder = folder.join("tree");
    let index = fs::read_to_string(folder.join(INDEX)).context("index")?;
    let generation = index.trim().parse().context("index")?;
    let mut count = 0;
    compare(&folder, seed, generation, &mut || {
        count += 1;
        Ok(())
    })?;
    Ok(count)
}

struct Work<'a> {
    folder: PathBuf,
    seed: u64,
    shared: &'a Shared,
    stopped: Receiver<()>,
}

/// The load is to end: not a failure.
#[derive(Debug, thiserror::Error)]
#[error("stopped")]
struct Stopped;

impl Work<'_> {
    fn run(&self) -> Result<()> {
        for generation in 0.. {
            match self.generation(generation) {
                Err(error) if error.is::<Stopped>() => return Ok(()),
                result => result.with_context(|| format!("generation {generation}"))?,
            }
        }
        Ok(())
    }

    fn pause(&self) -> Result<()> {
        match self.stopped.recv_timeout(PAUSE) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            _ => Err(Stopped.into()),
        }
    }

    fn generation(&self, generation: u64) -> Result<()> {
        let new = self.folder.join("new");
        if new.exists() {
            fs::remove_dir_all(&new)?;
        }
        fs::create_dir(&new)?;
        for folder in 0..FOLDERS {
            let path = new.join(folder.to_string());
            fs::create_dir(&path)?;
            for file in 0..FILES {
                self.write(&path, generation, folder, file)?;
                self.pause()?;
            }
            File::open(&path)?.sync_all()?;
        }
        fs::rename(&new, self.folder.join(generation.to_string())).context("rename")?;
        self.write_index(generation)?;
        compare(&self.folder, self.seed, generation, &mut || {
            self.shared.compared.fetch_add(1, Ordering::Relaxed);
            self.pause()
        })?;
        if let Some(old) = generation.checked_sub(1) {
            fs::remove_dir_all(self.folder.join(old.to_string())).context("removal")?;
        }
        Ok(())
    }

    /// Under another name first, as an editor does.
    fn write(&self, path: &Path, generation: u64, folder: u64, file: u64) -> Result<()> {
        let content = content(self.seed, generation, folder, file);
        let temporary = path.join(format!("{file}.new"));
        let mut open = File::create(&temporary)?;
        open.write_all(&content)?;
        if file.is_multiple_of(SYNC_EVERY) {
            open.sync_all()?;
        }
        fs::rename(&temporary, path.join(file.to_string()))?;
        self.shared.written.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn write_index(&self, generation: u64) -> Result<()> {
        // Only a generation that is whole on the disk may be named: all of it is synced first.
        rustix::fs::syncfs(File::open(&self.folder)?).context("syncfs")?;
        let lock = self.folder.join("index.lock");
        let mut open = File::create(&lock)?;
        writeln!(open, "{generation}")?;
        open.sync_all()?;
        fs::rename(&lock, self.folder.join(INDEX))?;
        File::open(&self.folder)?.sync_all()?;
        Ok(())
    }
}

/// Every file of a generation, past the page cache where the kernel lets go of it.
fn compare(
    folder: &Path,
    seed: u64,
    generation: u64,
    each: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    let path = folder.join(generation.to_string());
    for folder in 0..FOLDERS {
        let path = path.join(folder.to_string());
        let count = fs::read_dir(&path)?.count() as u64;
        ensure!(
            count == FILES,
            "{}: {count} files instead of {FILES}",
            path.display()
        );
        for file in 0..FILES {
            let path = path.join(file.to_string());
            let mut open = File::open(&path).with_context(|| path.display().to_string())?;
            fadvise(&open, 0, None, Advice::DontNeed)?;
            let mut found = Vec::new();
            open.read_to_end(&mut found)?;
            let content = content(seed, generation, folder, file);
            ensure!(
                found == content,
                "{}: {} bytes, not the {} that were written (first difference at {:?})",
                path.display(),
                found.len(),
                content.len(),
                found.iter().zip(&content).position(|(a, b)| a != b)
            );
            each()?;
        }
    }
    Ok(())
}

/// What a file holds: nothing but its place and the seed decide it.
fn content(seed: u64, generation: u64, folder: u64, file: u64) -> Vec<u8> {
    let mut random = Random(seed ^ generation << 32 ^ folder << 16 ^ file);
    let len = random.below(FILE_BYTES_MAX) as usize;
    let mut content = Vec::with_capacity(len + 8);
    while content.len() < len {
        content.extend_from_slice(&random.next().to_le_bytes());
    }
    content.truncate(len);
    content
}

//! Blocks that say who has written them: which node's writes are on a disk, and that nothing acknowledged is missing.
//!
//! Block `i` belongs to thread `i % THREADS`, which writes its blocks round and round. A block holds a mark, which names the
//! writer, and the thread's sequence number, repeated to its end: half a block shows.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use berth_tests::tool;
use rustix::fs::OFlags;

use crate::Options;

const BLOCK: usize = 4096;
const THREADS: u64 = 4;
const DEADLINE: Duration = Duration::from_secs(60);

/// Writes until a write fails, or every block was written so often as there are rounds (0: no end). Each thread keeps the
/// number of its last acknowledged write in `--record`, at 8 times its own number; prints how it has ended.
pub(crate) fn write(options: &Options) -> Result<()> {
    let Marks {
        device,
        mark,
        blocks,
    } = Marks::of(options)?;
    let record = options.record.as_deref().context("--record")?;
    let record = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .open(record)?;
    let dsync = i32::try_from(OFlags::DSYNC.bits()).context("O_DSYNC")?;
    let failure = Mutex::new(None);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (record, failure) = (&record, &failure);
            scope.spawn(move || {
                let result = File::options()
                    .write(true)
                    .custom_flags(dsync)
                    .open(device)
                    .context("open")
                    .and_then(|disk| {
                        let own = blocks / THREADS;
                        let rounds = u64::from(options.rounds);
                        for number in 1.. {
                            if rounds > 0 && number > rounds * own {
                                break;
                            }
                            let block = ((number - 1) % own) * THREADS + thread;
                            disk.write_all_at(&content(mark, number), block * BLOCK as u64)
                                .with_context(|| format!("write {number} of thread {thread}"))?;
                            record.write_all_at(&number.to_le_bytes(), thread * 8)?;
                        }
                        Ok(())
                    });
                if let Err(error) = result {
                    failure.lock().expect("nobody panics").get_or_insert(error);
                }
            });
        }
    });
    match failure.into_inner().expect("nobody panics") {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Prints a line for each block: mark and number, or `mixed`. Of a device it is what is on the disk, of a file it may be what
/// is in this node's memory.
pub(crate) fn read(options: &Options) -> Result<()> {
    let Marks { device, blocks, .. } = Marks::of(options)?;
    let disk = File::open(device)?;
    if disk.metadata()?.file_type().is_block_device() {
        let words = ["--flushbufs".as_ref(), device.as_os_str()];
        tool::run("blockdev", &words, DEADLINE)?;
    }
    let mut block = vec![0; BLOCK];
    for number in 0..blocks {
        disk.read_exact_at(&mut block, number * BLOCK as u64)?;
        match parse(&block) {
            Some((mark, number)) => println!("{mark} {number}"),
            None => println!("mixed"),
        }
    }
    Ok(())
}

struct Marks<'a> {
    device: &'a Path,
    mark: u64,
    blocks: u64,
}

impl<'a> Marks<'a> {
    fn of(options: &'a Options) -> Result<Self> {
        let device = options.device.as_deref().context("--device")?;
        let (mark, blocks) = (options.seed, options.blocks);
        ensure!(
            blocks > 0 && blocks.is_multiple_of(THREADS),
            "--blocks is a multiple of {THREADS}"
        );
        Ok(Self {
            device,
            mark,
            blocks,
        })
    }
}

fn content(mark: u64, number: u64) -> Vec<u8> {
    let unit = [mark.to_le_bytes(), number.to_le_bytes()].concat();
    unit.repeat(BLOCK / unit.len())
}

fn parse(block: &[u8]) -> Option<(u64, u64)> {
    let (mark, rest) = block.split_first_chunk::<8>()?;
    let (number, _) = rest.split_first_chunk::<8>()?;
    let (mark, number) = (u64::from_le_bytes(*mark), u64::from_le_bytes(*number));
    (block == content(mark, number)).then_some((mark, number))
}

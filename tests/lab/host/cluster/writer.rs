//! Marks that a node writes: who has written what is on a disk. The guest's part is its module `marks`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use berth_tests::process::wait_for;

use super::member::Member;

/// Blocks of 4 KiB that are marked.
pub(crate) const BLOCKS: u64 = 256;
/// Threads that write them, each its own.
const THREADS: usize = 4;
/// A step of a node under load.
const STEP: Duration = Duration::from_secs(120);

/// A block as it is on the disk: who has written it, and as its how manieth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) mark: u64,
    pub(crate) number: u64,
}

/// A program on a node that writes without end, each write waiting until it is durable.
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    member: &'a Member,
    name: String,
    record: PathBuf,
    mark: u64,
}

impl<'a> Writer<'a> {
    /// Starts one with a mark that no other has, on a device or on a file of [`BLOCKS`] blocks.
    pub(crate) fn start(member: &'a Member, disk: &Path, mark: u64) -> Result<Self> {
        let (name, record) = (format!("writer-{mark}"), format!("record-{mark}"));
        let (guest, word) = (member.program("lab-guest")?, mark.to_string());
        let path = format!("/mnt/{record}");
        let disk = disk.to_str().context("path is text")?;
        let words = ["write-marks", "--rounds", "0", "--seed", &word];
        let more = ["--device", disk, "--record", &path];
        let argv = [&[guest.as_str()][..], &words, &more].concat();
        member.node.start(&name, &argv)?;
        let record = member.folder.join(record);
        Ok(Self {
            member,
            name,
            record,
            mark,
        })
    }

    /// Waits until each of its threads has so many writes acknowledged.
    pub(crate) fn wait_acknowledged(&self, least: u64) -> Result<()> {
        wait_for("acknowledged writes", STEP, || {
            let (ended, text) = self.member.node.look(&self.name)?;
            ensure!(ended.is_none(), "the writer has ended: {text}");
            let counts = counts(&self.record);
            Ok(counts.filter(|counts| counts.iter().all(|&count| count >= least)))
        })?;
        Ok(())
    }

    /// How many writes of each thread were acknowledged.
    pub(crate) fn acknowledged(&self) -> Result<Vec<u64>> {
        counts(&self.record).context("the record is gone")
    }

    /// Waits until it is refused to write.
    pub(crate) fn wait_refused(&self) -> Result<()> {
        let text = wait_for("the end of the writer", STEP, || {
            let (ended, text) = self.member.node.look(&self.name)?;
            Ok(ended.map(|_| text))
        })?;
        ensure!(
            text.contains("write "),
            "it has ended for another reason: {text}"
        );
        Ok(())
    }

    /// Fails unless `found` is what it has left: each thread writes one block after the other, so what it has written last is
    /// what was acknowledged last, or the one after.
    pub(crate) fn compare(&self, found: &[Block], acknowledged: &[u64]) -> Result<()> {
        for (thread, &acknowledged) in acknowledged.iter().enumerate() {
            let own: Vec<_> = found.iter().skip(thread).step_by(THREADS).collect();
            let written = own.iter().filter(|block| block.mark == self.mark);
            let last = written.map(|block| block.number).max().unwrap_or_default();
            ensure!(
                last == acknowledged || last == acknowledged + 1,
                "thread {thread}: {acknowledged} writes acknowledged, the last on the disk is {last}"
            );
            let count = own.len() as u64;
            for number in last.saturating_sub(count - 1).max(1)..=last {
                let block = *own[((number - 1) % count) as usize];
                let mark = self.mark;
                ensure!(
                    block == Block { mark, number },
                    "thread {thread}: write {number} is lost, there is {block:?}"
                );
            }
        }
        Ok(())
    }
}

/// Writes every block once.
pub(crate) fn fill(member: &Member, disk: &Path, mark: u64) -> Result<()> {
    let mark = mark.to_string();
    let words = ["--rounds", "1", "--seed", &mark, "--record", "/run/record"];
    marks(member, "write-marks", disk, &words).map(drop)
}

/// Every block.
pub(crate) fn read(member: &Member, disk: &Path) -> Result<Vec<Block>> {
    let text = marks(
        member,
        "read-marks",
        disk,
        &["--rounds", "1", "--seed", "0"],
    )?;
    let parse = |line: &str| {
        let (mark, number) = line.split_once(' ').with_context(|| line.to_owned())?;
        let (mark, number) = (mark.parse()?, number.parse()?);
        anyhow::Ok(Block { mark, number })
    };
    let blocks: Vec<_> = text.lines().map(parse).collect::<Result<_>>()?;
    ensure!(blocks.len() as u64 == BLOCKS, "{} blocks", blocks.len());
    Ok(blocks)
}

/// Fails if a block is anybody else's.
pub(crate) fn ensure_all(found: &[Block], mark: u64) -> Result<()> {
    let others = found.iter().filter(|block| block.mark != mark);
    let others: Vec<_> = others.collect();
    ensure!(others.is_empty(), "not of {mark}: {others:?}");
    Ok(())
}

fn marks(member: &Member, word: &str, disk: &Path, more: &[&str]) -> Result<String> {
    let disk = disk.to_str().context("path is text")?;
    let words = [&[word, "--device", disk][..], more].concat();
    member.node.run(&member.program("lab-guest")?, &words, STEP)
}

fn counts(record: &Path) -> Option<Vec<u64>> {
    let bytes = std::fs::read(record).ok()?;
    let (counts, _) = bytes.as_chunks::<8>();
    let counts = counts.iter().map(|&count| u64::from_le_bytes(count));
    let counts: Vec<_> = counts.collect();
    (counts.len() == THREADS).then_some(counts)
}

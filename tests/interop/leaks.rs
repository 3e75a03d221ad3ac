//! Two hundred rounds of good and bad use: as many descriptors and threads afterwards as before, and no more memory.

use std::time::Duration;

use anyhow::{Result, ensure};
use berth_tests::Berthd;
use berth_tests::peers::{Digests, Spec, Tgt};
use berth_tests::process::{Usage, wait_for};

use crate::bad_input::{BadAttach, BadPeers, bad_attaches, bad_nbd_clients, refuse};

const MIB: u64 = 1 << 20;
const ROUNDS: usize = 200;
/// Before the first count: pools, buffers and the allocator's arenas are filled once.
const WARM_UP_ROUNDS: usize = 40;
/// Attaches that wait for a silent portal are sent side by side, or 200 of them would take minutes.
const SIDE_BY_SIDE: usize = 10;
const WITHIN: Duration = Duration::from_secs(20);
/// Allocators keep what was freed; 200 leaked sessions or buffers would be far more.
const GROWTH_MAX_BYTES: u64 = 12 * MIB;

fn bad_rounds(daemon: &Berthd, table: &[BadAttach], rounds: usize) -> Result<()> {
    for _ in 0..rounds / SIDE_BY_SIDE {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..SIDE_BY_SIDE)
                .map(|number| {
                    scope.spawn(move || -> Result<()> {
                        for bad in table {
                            refuse(daemon, &format!("bad-{number}"), bad, WITHIN)?;
                        }
                        Ok(())
                    })
                })
                .collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().expect("no panic"))
        })?;
    }
    Ok(())
}

fn good_rounds(daemon: &Berthd, tgt: &Tgt, rounds: usize) -> Result<()> {
    for _ in 0..rounds {
        daemon.attach("good", tgt, Digests::Prefer)?;
        bad_nbd_clients(daemon, "good")?;
        daemon.detach("good")?;
    }
    Ok(())
}

/// The count once closed connections are gone; they close on their own time.
fn settled(daemon: &Berthd, at_most: Option<Usage>) -> Result<Usage> {
    let Some(limit) = at_most else {
        return daemon.usage();
    };
    wait_for("descriptors and threads as before", WITHIN, || {
        let now = daemon.usage()?;
        Ok((now.fds <= limit.fds && now.threads <= limit.threads).then_some(now))
    })
    .map_err(|error| match daemon.usage() {
        Ok(now) => anyhow::anyhow!("{error:#}: {now:?} instead of {limit:?}"),
        Err(gone) => gone,
    })
}

#[test]
fn nothing_is_left_of_200_rounds() -> Result<()> {
    let tgt = Tgt::start(Spec::chap(16 * MIB))?;
    let peers = BadPeers::start()?;
    let daemon = Berthd::start()?;
    let table = bad_attaches(&tgt, &peers, 1);
    let idle = settled(&daemon, None)?;
    bad_rounds(&daemon, &table, WARM_UP_ROUNDS)?;
    good_rounds(&daemon, &tgt, WARM_UP_ROUNDS)?;
    // Threads and descriptors that stay for good are there after the first use; none beyond those.
    let before = settled(&daemon, None)?;
    let few = Usage {
        fds: idle.fds + 16,
        threads: idle.threads + 8,
        ..idle
    };
    settled(&daemon, Some(few))?;
    bad_rounds(&daemon, &table, ROUNDS)?;
    good_rounds(&daemon, &tgt, ROUNDS)?;
    let after = settled(&daemon, Some(before))?;
    let grown = after.rss_bytes.saturating_sub(before.rss_bytes);
    ensure!(
        grown <= GROWTH_MAX_BYTES,
        "{grown} bytes more than before: {before:?}, {after:?}"
    );
    ensure!(!daemon.log().contains("panicked"), "{}", daemon.log());
    daemon.stop()
}

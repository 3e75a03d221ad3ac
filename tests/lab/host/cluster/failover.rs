//! A volume that goes from node to node, each time while the one that has it is cut off and writes.
//!
//! What is proved, each round: everything that was acknowledged to the first node is there on the second; and of what the first
//! node sends once it is back, nothing lands on what the second has written since.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use berth_tests::csi::rig::{Access, GIB, Used};

use super::Cluster;
use super::writer::{Writer, ensure_all, fill, read};

/// Writes of the first node before it is cut off, by the least busy thread: at least, and how many more at most.
const WRITES_BEFORE: u64 = 5;
const WRITES_MORE: u64 = 60;
/// Marks of what the second node writes are above this, those of the first node's endless writing below.
const TAKEN: u64 = 1 << 32;

/// Leads it.
pub(crate) fn run(folder: &Path, rounds: u32, seed: u64) -> Result<()> {
    let cluster = Cluster::start("failover", 2, folder)?;
    let kubernetes = &cluster.kubernetes;
    let class = [("replicas", "1")];
    let volume = kubernetes.provision("failover-0", GIB, &class, Access::Block)?;
    let mut figures = Figures::default();
    let mut held = kubernetes.place(&volume.volume_id, 0, Access::Block)?;
    for round in 1..=u64::from(rounds) {
        let writes =
            WRITES_BEFORE + (seed ^ round).wrapping_mul(0x9e37_79b9_7f4a_7c15) % WRITES_MORE;
        let taken = take(&cluster, round, &held, writes, &mut figures);
        held = taken.with_context(|| format!("round {round}, {writes} writes before the cut"))?;
        if round.is_multiple_of(10) {
            println!(
                "round {round}: {} writes found so far",
                figures.acknowledged
            );
        }
    }
    kubernetes.remove(&held)?;
    kubernetes.delete(&volume.volume_id)?;
    figures.print();
    cluster.finish()
}

#[derive(Debug, Default)]
struct Figures {
    acknowledged: u64,
    takeovers: Vec<Duration>,
    refusals: Vec<Duration>,
}

impl Figures {
    fn print(&mut self) {
        let count = self.acknowledged;
        println!(
            "{count} writes acknowledged before the cuts, all found; no late write has landed"
        );
        let times = [
            (
                "from the cut to all read on the other node",
                &mut self.takeovers,
            ),
            (
                "from the end of the cut to the refusal of the late write",
                &mut self.refusals,
            ),
        ];
        for (what, times) in times {
            times.sort();
            let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64();
            println!(
                "{what}: p50 {:.2} s, p95 {:.2} s, longest {:.2} s",
                at(0.5),
                at(0.95),
                at(1.0)
            );
        }
    }
}

/// One round: the volume goes from one node to the other.
fn take(
    cluster: &Cluster,
    round: u64,
    held: &Used,
    writes: u64,
    figures: &mut Figures,
) -> Result<Used> {
    let (kubernetes, old) = (&cluster.kubernetes, &cluster.members[held.node]);
    let writer = Writer::start(old, &held.target, round)?;
    writer.wait_acknowledged(writes)?;

    let cut = Instant::now();
    old.cut_off()?;
    // Kubelet does not answer: the volume is detached from the node without it.
    kubernetes.detach(held)?;
    let taken = kubernetes.place(&held.id, 1 - held.node, Access::Block)?;
    let new = &cluster.members[taken.node];
    let found = read(new, &taken.target)?;
    figures.takeovers.push(cut.elapsed());
    let acknowledged = writer.acknowledged()?;
    writer.compare(&found, &acknowledged)?;
    figures.acknowledged += acknowledged.iter().sum::<u64>();
    fill(new, &taken.target, TAKEN + round)?;

    let healed = Instant::now();
    old.heal()?;
    writer.wait_refused()?;
    figures.refusals.push(healed.elapsed());
    kubernetes.unmount(held)?;
    let left = old.attachments()?;
    anyhow::ensure!(left.is_empty(), "left attached: {left:?}");
    ensure_all(&read(new, &taken.target)?, TAKEN + round).context("late writes have landed")?;
    Ok(taken)
}

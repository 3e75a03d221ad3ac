//! A PetSet, which is a StatefulSet today: each ordinal has a volume of its own, made from a template, which follows its pod.
//!
//! Two pods, scaled to three; pods moved from node to node, each time with what they have written, and nothing left behind;
//! scaled down and up again, the volume kept; and a node cut off while its pods write, whose late writes never land.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use berth_tests::csi::rig::{Access, Used};

use super::Cluster;
use super::member::Member;
use super::writer::{BLOCKS, Block, Writer, ensure_all, fill, read};

/// The AppTemplate of the StorageClass; the fabric has it from the start.
const TEMPLATE: &str = "basic_small";
/// Writes of each pod before its node is cut off, by the least busy thread.
const WRITES_BEFORE: u64 = 20;
/// A short command on a node.
const COMMAND: Duration = Duration::from_secs(60);

/// Leads it.
pub(crate) fn run(folder: &Path, rounds: u32, seed: u64) -> Result<()> {
    let cluster = Cluster::start("petset", 2, folder)?;
    let mut set = PetSet::new(&cluster);
    set.scale_to(2)?;
    set.scale_to(3)?;
    set.each_has_its_own()?;
    println!("3 pods from the template {TEMPLATE:?}, each with a volume of its own");
    for round in 0..u64::from(rounds) {
        set.move_one((seed + round) as usize % 3)?;
    }
    println!("{rounds} pods moved, with what they had written");
    set.scale_to(2)?;
    set.scale_to(3)?;
    println!("scaled to 2 and to 3 again, the third volume kept");
    for round in 0..rounds {
        let node = round as usize % 2;
        let lost = set
            .lose_node(node)
            .with_context(|| format!("round {round}, node {node} cut off"))?;
        println!(
            "node {node} cut off with {lost} pods that write: all on the other node, no late write has landed"
        );
    }
    set.end()?;
    cluster.finish()
}

/// One pod, whose volume stays when it ends.
#[derive(Debug)]
struct Pet {
    volume: String,
    placed: Option<Used>,
    /// What its file is full of.
    mark: u64,
}

#[derive(Debug)]
struct PetSet<'a> {
    cluster: &'a Cluster,
    pets: Vec<Pet>,
    marks: u64,
}

impl<'a> PetSet<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        Self {
            cluster,
            pets: Vec::new(),
            marks: 0,
        }
    }

    fn next_mark(&mut self) -> u64 {
        self.marks += 1;
        self.marks
    }

    /// As the controller of the set does: in the order of the ordinals, from the last when there are less.
    fn scale_to(&mut self, count: usize) -> Result<()> {
        for ordinal in (count..self.pets.len()).rev() {
            self.stop(ordinal)?;
        }
        for ordinal in 0..count {
            if self.pets.len() == ordinal {
                self.provision(ordinal)?;
            } else if self.pets[ordinal].placed.is_none() {
                self.start(ordinal, ordinal % 2)?;
            }
        }
        Ok(())
    }

    fn provision(&mut self, ordinal: usize) -> Result<()> {
        let name = format!("pvc-data-db-{ordinal}");
        let class = [("template", TEMPLATE)];
        let volume = self
            .cluster
            .kubernetes
            .provision(&name, 0, &class, Access::Mount)?;
        ensure!(volume.capacity_bytes > 0, "without a size: {volume:?}");
        let mark = self.next_mark();
        self.pets.push(Pet {
            volume: volume.volume_id,
            placed: None,
            mark,
        });
        self.place(ordinal, ordinal % 2)?;
        // A file system that was made just now is empty.
        let file = self.file(ordinal)?;
        let size = (BLOCKS * 4096).to_string();
        self.node(ordinal)?.node.run(
            "truncate",
            &["-s", &size, &file.to_string_lossy()],
            COMMAND,
        )?;
        self.write(ordinal)
    }

    fn placed(&self, ordinal: usize) -> Result<&Used> {
        self.pets[ordinal]
            .placed
            .as_ref()
            .with_context(|| format!("pod {ordinal} runs nowhere"))
    }

    fn node(&self, ordinal: usize) -> Result<&'a Member> {
        Ok(&self.cluster.members[self.placed(ordinal)?.node])
    }

    /// What a pod keeps.
    fn file(&self, ordinal: usize) -> Result<PathBuf> {
        Ok(self.placed(ordinal)?.target.join("data"))
    }

    fn place(&mut self, ordinal: usize, node: usize) -> Result<()> {
        let pet = &mut self.pets[ordinal];
        pet.placed = Some(
            self.cluster
                .kubernetes
                .place(&pet.volume, node, Access::Mount)?,
        );
        Ok(())
    }

    /// The pod runs on a node, where it finds what it has written last.
    fn start(&mut self, ordinal: usize, node: usize) -> Result<()> {
        self.place(ordinal, node)?;
        let found = self.read(ordinal)?;
        ensure_all(&found, self.pets[ordinal].mark).with_context(|| format!("pod {ordinal}"))?;
        let admitted = self.cluster.admitted(&self.pets[ordinal].volume)?;
        let only = &self.cluster.members[node].initiator;
        ensure!(admitted == [only.as_str()], "admitted: {admitted:?}");
        Ok(())
    }

    /// The pod ends, and nothing of its volume is left where it was.
    fn stop(&mut self, ordinal: usize) -> Result<()> {
        let placed = self.pets[ordinal].placed.take().context("runs nowhere")?;
        self.cluster.kubernetes.remove(&placed)?;
        let name = format!("csi.{}", placed.id);
        let left = self.cluster.members[placed.node].attachments()?;
        ensure!(
            !left.contains(&name),
            "pod {ordinal} is gone, left attached: {left:?}"
        );
        let admitted = self.cluster.admitted(&placed.id)?;
        ensure!(
            admitted.is_empty(),
            "pod {ordinal} is gone, admitted: {admitted:?}"
        );
        Ok(())
    }

    fn read(&self, ordinal: usize) -> Result<Vec<Block>> {
        read(self.node(ordinal)?, &self.file(ordinal)?)
    }

    fn write(&self, ordinal: usize) -> Result<()> {
        fill(
            self.node(ordinal)?,
            &self.file(ordinal)?,
            self.pets[ordinal].mark,
        )
    }

    fn each_has_its_own(&self) -> Result<()> {
        for (ordinal, pet) in self.pets.iter().enumerate() {
            ensure_all(&self.read(ordinal)?, pet.mark).with_context(|| format!("pod {ordinal}"))?;
        }
        let mut volumes = self.cluster.volumes()?;
        volumes.sort();
        let ours: Vec<_> = self.pets.iter().map(|pet| pet.volume.clone()).collect();
        ensure!(volumes == ours, "volumes {volumes:?}, of pods {ours:?}");
        Ok(())
    }

    fn move_one(&mut self, ordinal: usize) -> Result<()> {
        let node = self.placed(ordinal)?.node;
        self.stop(ordinal)?;
        self.start(ordinal, 1 - node)?;
        self.pets[ordinal].mark = self.next_mark();
        self.write(ordinal)
    }

    /// All pods of a node write, and the node is cut off: they are placed on the other one. Gives how many they were.
    fn lose_node(&mut self, node: usize) -> Result<usize> {
        let (cluster, old) = (self.cluster, &self.cluster.members[node]);
        let there = |pet: &Pet| {
            pet.placed
                .as_ref()
                .is_some_and(|placed| placed.node == node)
        };
        let lost: Vec<_> = (0..self.pets.len())
            .filter(|&ordinal| there(&self.pets[ordinal]))
            .collect();
        let mut writers = Vec::new();
        for &ordinal in &lost {
            let (file, mark) = (self.file(ordinal)?, self.next_mark());
            writers.push(Writer::start(old, &file, mark)?);
        }
        for writer in &writers {
            writer.wait_acknowledged(WRITES_BEFORE)?;
        }
        old.cut_off()?;
        let mut left = Vec::new();
        for (&ordinal, writer) in lost.iter().zip(&writers) {
            let placed = self.pets[ordinal].placed.take().context("runs nowhere")?;
            cluster.kubernetes.detach(&placed)?;
            left.push(placed);
            self.place(ordinal, 1 - node)?;
            writer.compare(&self.read(ordinal)?, &writer.acknowledged()?)?;
            self.pets[ordinal].mark = self.next_mark();
            self.write(ordinal)?;
        }
        old.heal()?;
        for writer in &writers {
            writer.wait_refused()?;
        }
        for placed in &left {
            cluster.kubernetes.unmount(placed)?;
        }
        let still = old.attachments()?;
        ensure!(still.is_empty(), "left attached: {still:?}");
        // What is on the disk, and not in the memory of who has written it.
        for &ordinal in &lost {
            self.stop(ordinal)?;
            self.start(ordinal, node)?;
        }
        Ok(lost.len())
    }

    fn end(mut self) -> Result<()> {
        self.scale_to(0)?;
        for pet in &self.pets {
            self.cluster.kubernetes.delete(&pet.volume)?;
        }
        let left = self.cluster.volumes()?;
        ensure!(left.is_empty(), "volumes left: {left:?}");
        Ok(())
    }
}

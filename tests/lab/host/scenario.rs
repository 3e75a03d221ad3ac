//! What scenarios there are, and what each needs.

use std::time::Duration;

use crate::{cluster, kubelet, package};

/// One scenario. What it does is in the guest's program, in the module of its name.
#[derive(Debug)]
pub(crate) struct Scenario {
    /// Its name, which is also the first argument of the guest's program.
    pub(crate) name: &'static str,
    /// What it shows.
    pub(crate) shows: &'static str,
    /// Where it runs.
    pub(crate) place: Place,
    /// Memory of the guest in MiB.
    pub(crate) memory_mib: u32,
    /// Rounds of a whole run.
    pub(crate) rounds: u32,
    /// Rounds of a quick one.
    pub(crate) quick_rounds: u32,
    /// Longest time without rounds, on a busy machine: boot, set-up, checks at the end, power-off.
    pub(crate) base: Duration,
    /// Longest time of a round.
    pub(crate) round: Duration,
}

impl Scenario {
    /// Longest time of so many rounds.
    pub(crate) fn limit(&self, rounds: u32) -> Duration {
        self.base + self.round * rounds
    }
}

/// A guest, and where the target is.
#[derive(Debug)]
pub(crate) enum Place {
    /// User-mode Linux on the host's root, and nothing of the scenario outside.
    Uml,
    /// The same, with more in the folder that the guest sees as /mnt.
    UmlWith {
        /// Makes it; gets the folder.
        prepare: fn(&std::path::Path) -> anyhow::Result<()>,
    },
    /// The same as the first, with the target on the host: as in real life its memory is not the node's.
    UmlTargetOutside {
        /// Size of its LUN in MiB.
        lun_mib: u64,
    },
    /// A machine with Debian and systemd. The scenario's program is run again after a reboot.
    Debian {
        /// Makes more for the payload, below its folder; gets that folder. What it makes is in /lab of the machine.
        prepare: fn(&std::path::Path) -> anyhow::Result<()>,
    },
    /// Several guests, led from the host by a function that gets their folder, the rounds and the seed.
    Nodes(fn(&std::path::Path, u32, u64) -> anyhow::Result<()>),
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// In the order in which `all` runs them.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "crash",
        shows: "file systems survive kill -9 of berthd at random moments, under load",
        place: Place::Uml,
        memory_mib: 2048,
        rounds: 200,
        quick_rounds: 8,
        base: seconds(300),
        round: seconds(30),
    },
    Scenario {
        name: "restart",
        shows: "file systems survive planned restarts of berthd, under load",
        place: Place::Uml,
        memory_mib: 2048,
        rounds: 200,
        quick_rounds: 8,
        base: seconds(300),
        round: seconds(30),
    },
    Scenario {
        name: "absent",
        shows: "I/O waits for a berthd that is away, 9 s a round, and goes on",
        place: Place::Uml,
        memory_mib: 2048,
        rounds: 20,
        quick_rounds: 2,
        base: seconds(300),
        round: seconds(20),
    },
    Scenario {
        name: "resize",
        shows: "a LUN that grows makes the device and its file system grow, online",
        place: Place::Uml,
        memory_mib: 1024,
        rounds: 4,
        quick_rounds: 2,
        base: seconds(200),
        round: seconds(60),
    },
    Scenario {
        name: "memory",
        shows: "writeback to the device completes when there is no memory for anything else",
        place: Place::UmlTargetOutside { lun_mib: 1024 },
        memory_mib: 1024,
        rounds: 10,
        quick_rounds: 1,
        base: seconds(200),
        round: seconds(120),
    },
    Scenario {
        name: "detach",
        shows: "a device in use is not taken away unless forced, and numbers are used again safely",
        place: Place::Uml,
        memory_mib: 1024,
        rounds: 1000,
        quick_rounds: 20,
        base: seconds(300),
        round: seconds(20),
    },
    Scenario {
        name: "blank",
        shows: "a file system is made on a device that is proven blank, and on nothing else",
        place: Place::Uml,
        memory_mib: 1536,
        rounds: 1,
        quick_rounds: 1,
        base: seconds(600),
        round: seconds(0),
    },
    Scenario {
        name: "kubelet",
        shows: "the volume manager of a real kubelet drives berth-flexvolume, and the calls of Kubernetes 1.3 are replayed",
        place: Place::UmlWith {
            prepare: kubelet::build,
        },
        memory_mib: 1536,
        rounds: 2,
        quick_rounds: 1,
        base: seconds(900),
        round: seconds(1000),
    },
    Scenario {
        name: "teardown",
        shows: "pods on FlexVolume end in order when session, device, volume, right, daemon or the driver's notes are gone",
        place: Place::Uml,
        memory_mib: 1536,
        rounds: 2,
        quick_rounds: 1,
        base: seconds(300),
        round: seconds(600),
    },
    Scenario {
        name: "csi",
        shows: "the CSI driver keeps all rules with kernel devices and real file systems, and when it or berthd is killed",
        place: Place::Uml,
        memory_mib: 2048,
        rounds: 2,
        quick_rounds: 1,
        base: seconds(300),
        round: seconds(900),
    },
    Scenario {
        name: "systemd",
        shows: "the installed service: restarts, kills and hangs under load, and a reboot that brings the mount back",
        place: Place::Debian {
            prepare: package::make_two,
        },
        memory_mib: 1024,
        rounds: 8,
        quick_rounds: 1,
        base: seconds(1200),
        round: seconds(240),
    },
    Scenario {
        name: "upgrade",
        shows: "packages installed over each other under load, and none removed while something is attached",
        place: Place::Debian {
            prepare: package::make_two,
        },
        memory_mib: 1024,
        rounds: 6,
        quick_rounds: 1,
        base: seconds(1200),
        round: seconds(240),
    },
    Scenario {
        name: "petset",
        shows: "pods of a PetSet have volumes of their own, which follow them from node to node, also from one that is cut off",
        place: Place::Nodes(cluster::petset::run),
        memory_mib: 1024,
        rounds: 10,
        quick_rounds: 2,
        base: seconds(300),
        round: seconds(120),
    },
    Scenario {
        name: "failover",
        shows: "a volume goes to another node while the first is cut off and writes; none of its late writes lands",
        place: Place::Nodes(cluster::failover::run),
        memory_mib: 1024,
        rounds: 100,
        quick_rounds: 2,
        base: seconds(300),
        round: seconds(60),
    },
];

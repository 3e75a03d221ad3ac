//! A cable between two namespaces, and its faults.
//!
//! All faults but one are the kernel's own, and sit at the target's end of the cable, so that the node sees what it would see
//! of a broken network: silence, a lost carrier, a slow or lossy line, a reset.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::delay::Delay;
use super::{Netns, netns};

/// Where targets listen on a link.
pub(crate) const PORT: u16 = 3260;

/// What goes wrong on a link.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// Every packet is lost, both ways, without a word (nft drop).
    Cut,
    /// The cable is pulled: no carrier.
    Unplug,
    /// Every packet takes so much longer, half of it each way.
    Delay(Duration),
    /// Both ways carry no more than this.
    Throttle {
        /// Bits per second, each way.
        bits_per_second: u32,
    },
    /// So many of a hundred packets are lost, each way.
    Loss {
        /// From 1 to 100.
        percent: u8,
    },
    /// Whatever the node sends is answered with a TCP reset, connections and attempts alike. The target does not
    /// learn of it: there the connection stays open.
    Refuse,
    /// The open connections are reset once, and both ends learn of it.
    Reset,
}

impl Fault {
    /// Its kind in one word.
    #[must_use]
    pub fn kind(self) -> &'static str {
        match self {
            Self::Cut => "cut",
            Self::Unplug => "unplug",
            Self::Delay(_) => "delay",
            Self::Throttle { .. } => "throttle",
            Self::Loss { .. } => "loss",
            Self::Refuse => "refuse",
            Self::Reset => "reset",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())?;
        match self {
            Self::Delay(delay) => write!(f, " by {delay:?}"),
            Self::Throttle { bits_per_second } => {
                write!(f, " to {} Mbit/s", f64::from(*bits_per_second) / 1e6)
            }
            Self::Loss { percent } => write!(f, " of {percent} %"),
            Self::Cut | Self::Unplug | Self::Refuse | Self::Reset => Ok(()),
        }
    }
}

/// Bytes that a link has carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// From the node to the target.
    pub to_target_bytes: u64,
    /// From the target to the node.
    pub to_node_bytes: u64,
}

impl Traffic {
    /// Both ways.
    #[must_use]
    pub fn total_bytes(self) -> u64 {
        self.to_target_bytes + self.to_node_bytes
    }
}

/// A veth pair with addresses: link N is 198.51.100.(4N+1) at the node and 198.51.100.(4N+2) at the target.
///
/// The namespaces take the devices along when they go.
#[derive(Debug)]
pub struct Link {
    // The thread leaves before its namespace goes.
    delay: Mutex<Option<Delay>>,
    node: Arc<Netns>,
    target: Arc<Netns>,
    number: u8,
}

impl Link {
    /// Lays link `number` (0 to 62) between two namespaces.
    ///
    /// # Errors
    /// When the kernel lacks veth or the tools are missing.
    pub fn create(node: &Arc<Netns>, target: &Arc<Netns>, number: u8) -> Result<Self> {
        netns::need(&["tc", "ss", "nft", "iptables-nft"])?;
        assert!(number < 63, "the addresses end there");
        let link = Self {
            delay: Mutex::new(None),
            node: Arc::clone(node),
            target: Arc::clone(target),
            number,
        };
        let (ours, theirs) = (link.node_device(), link.target_device());
        let name = target.name();
        node.ip(&format!(
            "link add {ours} type veth peer name {theirs} netns {name}"
        ))
        .context("veth")?;
        node.ip(&format!("addr add {}/30 dev {ours}", link.node_address()))?;
        target.ip(&format!(
            "addr add {}/30 dev {theirs}",
            link.target_address()
        ))?;
        node.ip(&format!("link set {ours} up"))?;
        target.ip(&format!("link set {theirs} up"))?;
        Ok(link)
    }

    /// The node's end.
    #[must_use]
    pub fn node_address(&self) -> IpAddr {
        Ipv4Addr::new(198, 51, 100, self.number * 4 + 1).into()
    }

    /// The target's end.
    #[must_use]
    pub fn target_address(&self) -> IpAddr {
        Ipv4Addr::new(198, 51, 100, self.number * 4 + 2).into()
    }

    /// `ADDRESS:PORT` of a target at the far end.
    #[must_use]
    pub fn portal(&self) -> String {
        format!("{}:{PORT}", self.target_address())
    }

    fn node_device(&self) -> String {
        format!("node{}", self.number)
    }

    fn target_device(&self) -> String {
        format!("target{}", self.number)
    }

    /// Number of the netfilter queue that delays packets.
    fn queue(&self) -> u16 {
        100 + u16::from(self.number)
    }

    /// Lets `fault` begin. It stays until [`Link::heal`]; only a reset is over at once.
    ///
    /// # Errors
    /// When the kernel cannot do it; the message says what it lacks.
    pub fn apply(&self, fault: Fault) -> Result<()> {
        let (node, target) = (&self.node, &self.target);
        let device = self.target_device();
        let both_ways = |rule: &str| {
            format!(
                "add table netdev {device}; \
                 add chain netdev {device} in {{ type filter hook ingress device {device} priority 0; }}; \
                 add chain netdev {device} out {{ type filter hook egress device {device} priority 0; }}; \
                 add rule netdev {device} in {rule}; add rule netdev {device} out {rule}"
            )
        };
        match fault {
            Fault::Cut => nft(target, &both_ways("counter drop")),
            // ARP must go through: its loss would be a cut of seconds, which is another fault.
            Fault::Loss { percent } => nft(
                target,
                &both_ways(&format!(
                    "meta protocol ip numgen random mod 100 < {percent} counter drop"
                )),
            ),
            Fault::Unplug => target.ip(&format!("link set {device} down")),
            Fault::Delay(delay) => self.delay(delay),
            Fault::Throttle { bits_per_second } => {
                let own = self.node_device();
                for (netns, device) in [(node, &own), (target, &device)] {
                    let rate = format!("{bits_per_second}bit");
                    let qdisc = ["qdisc", "add", "dev", device.as_str(), "root"];
                    let tbf = ["tbf", "rate", &rate, "burst", "32kb", "latency", "400ms"];
                    netns
                        .run("tc", &[&qdisc[..], &tbf].concat())
                        .context("throttling needs the qdisc tbf (CONFIG_NET_SCH_TBF)")?;
                }
                Ok(())
            }
            Fault::Refuse => nft(
                target,
                &format!(
                    "add table inet {device}; \
                     add chain inet {device} in {{ type filter hook prerouting priority -150; }}; \
                     add rule inet {device} in iifname {device} meta l4proto tcp counter reject with tcp reset"
                ),
            ),
            Fault::Reset => {
                let source = self.node_address().to_string();
                // Kills nothing and says nothing without CONFIG_INET_DIAG_DESTROY.
                node.run("ss", &["-K", "-t", "-n", "src", &source])
                    .map(drop)
            }
        }
    }

    fn delay(&self, delay: Duration) -> Result<()> {
        let mut queue = self.delay.lock().expect("no test panics in here");
        if queue.is_none() {
            *queue = Some(Delay::start(&self.target, self.queue())?);
        }
        if let Some(queue) = &*queue {
            queue.set(delay / 2);
        }
        self.queue_rules("-A")
            .context("delay needs NFQUEUE (CONFIG_NETFILTER_XT_TARGET_NFQUEUE, CONFIG_NFT_COMPAT)")
    }

    fn queue_rules(&self, operation: &str) -> Result<()> {
        let (device, number) = (self.target_device(), self.queue().to_string());
        for (chain, direction) in [("PREROUTING", "-i"), ("POSTROUTING", "-o")] {
            let place = ["-t", "mangle", operation, chain, direction, &device];
            let action = ["-j", "NFQUEUE", "--queue-num", &number];
            self.target
                .run("iptables-nft", &[&place[..], &action].concat())?;
        }
        Ok(())
    }

    /// Ends `fault`.
    ///
    /// # Errors
    /// When it cannot be ended, for example because it has not begun.
    pub fn heal(&self, fault: Fault) -> Result<()> {
        let (node, target) = (&self.node, &self.target);
        let device = self.target_device();
        match fault {
            Fault::Cut | Fault::Loss { .. } => {
                nft(target, &format!("delete table netdev {device}"))
            }
            Fault::Unplug => target.ip(&format!("link set {device} up")),
            Fault::Delay(_) => {
                self.queue_rules("-D")?;
                if let Some(queue) = &*self.delay.lock().expect("no test panics in here") {
                    queue.set(Duration::ZERO);
                }
                Ok(())
            }
            Fault::Throttle { .. } => {
                let own = self.node_device();
                for (netns, device) in [(node, &own), (target, &device)] {
                    netns.run("tc", &["qdisc", "del", "dev", device, "root"])?;
                }
                Ok(())
            }
            Fault::Refuse => nft(target, &format!("delete table inet {device}")),
            Fault::Reset => Ok(()),
        }
    }

    /// What it has carried so far, as the node's device counts it: a witness that is not berth.
    ///
    /// # Errors
    /// When the device is gone.
    pub fn traffic(&self) -> Result<Traffic> {
        // Not /proc/net: that is the network of the process, not of the thread.
        let table = self
            .node
            .within(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
        let device = self.node_device();
        let line = table
            .lines()
            .find_map(|line| line.trim_start().strip_prefix(&device)?.strip_prefix(':'))
            .with_context(|| format!("{device} is gone"))?;
        let numbers: Vec<u64> = line
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        ensure!(numbers.len() == 16, "columns of /proc/net/dev: {line}");
        Ok(Traffic {
            to_node_bytes: numbers[0],
            to_target_bytes: numbers[8],
        })
    }
}

fn nft(netns: &Netns, script: &str) -> Result<()> {
    netns
        .run("nft", &[script])
        .map(drop)
        .context("needs nf_tables (CONFIG_NF_TABLES with families inet and netdev)")
}

//! A network of our own for node and target, and what can go wrong with it.
//!
//! [`Netns`] is a network namespace, [`Link`] a cable between two of them: it can be cut, pulled, delayed, throttled, made
//! lossy, refused and reset, and healed again. Everything goes when the values go, and what a killed test program left
//! behind goes with the next one.
//!
//! Needs root, and of the kernel: network namespaces, veth, nf_tables, `tbf`, and a netfilter queue. `netem` would do for delay,
//! but small kernels lack it, so [`delay`] holds packets back in this process.

use std::sync::Arc;

use anyhow::Result;

pub mod delay;
mod link;
mod netns;

pub use link::{Fault, Link, Traffic};
pub use netns::Netns;

/// A node, a target, and the links between them.
#[derive(Debug)]
pub struct Network {
    /// From link 0 on.
    pub links: Vec<Link>,
    /// Where the daemon under test runs.
    pub node: Arc<Netns>,
    /// Where the target runs, or what leads to it.
    pub target: Arc<Netns>,
}

impl Network {
    /// A node and a target with so many links. Needs root.
    ///
    /// # Errors
    /// When the kernel or the rights do not allow it, or a tool is missing.
    pub fn new(links: u8) -> Result<Self> {
        Self::to(&Arc::new(Netns::create("target")?), links)
    }

    /// A node with so many links to a namespace that is there.
    ///
    /// # Errors
    /// As [`Network::new`].
    pub fn to(target: &Arc<Netns>, links: u8) -> Result<Self> {
        let node = Arc::new(Netns::create("node")?);
        let links = (0..links).map(|number| Link::create(&node, target, number));
        Ok(Self {
            links: links.collect::<Result<_>>()?,
            node,
            target: Arc::clone(target),
        })
    }
}

//! Two nodes that are guests, and what they share: a simulated fabric and a controller, on the host's side of their cables.
//!
//! ```text
//!  guest 0: kubelet's part, berth-csi --mode node, berthd, /dev/nbdN --+
//!                                                                       +-- switch -- berthd sim (REST, two portals)
//!  guest 1: the same ---------------------------------------------------+             berthd + berth-csi --mode controller
//! ```
//!
//! The scenario, on the host, makes the calls that Kubernetes would make.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use berth_tests::fabric::{Addresses, Sim};
use berth_tests::guest::uml::Tap;
use serde_json::Value;

use self::controller::Controller;
use self::kubernetes::Kubernetes;
use self::member::Member;

/// Where the fabric serves REST.
const FABRIC: &str = "192.0.2.100";
/// Its iSCSI portals.
const PORTALS: [&str; 2] = ["192.0.2.101", "192.0.2.102"];
/// From a program's start until it is ready, on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(90);
mod controller;
pub(crate) mod failover;
mod kubernetes;
mod member;
pub(crate) mod petset;
mod writer;

/// The whole of it; everything ends with the value.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) kubernetes: Kubernetes,
    pub(crate) members: Vec<Member>,
    // What the nodes need goes after them.
    controller: Controller,
    fabric: Sim,
}

impl Cluster {
    /// Boots so many nodes, with a fabric and a controller beside them. `folder` is shared with the guests.
    pub(crate) fn start(name: &str, nodes: u8, folder: &Path) -> Result<Self> {
        let addresses = [&[FABRIC][..], &PORTALS].concat();
        let taps = Tap::on_a_switch("lab", nodes, &addresses)?;
        let netns = Arc::clone(taps.first().context("no nodes")?.netns());
        let fabric = Sim::start_in(&netns, &fabric_addresses()?, &[])?;
        let controller = Controller::start(netns, folder, &fabric)?;
        // All boot at the same time.
        let boot = |(number, tap)| Member::boot(name, number, tap, folder, &fabric);
        let booting = taps.into_iter().enumerate().map(boot);
        let booting = booting.collect::<Result<Vec<_>>>()?;
        let members = booting.into_iter().map(Member::join);
        let members = members.collect::<Result<Vec<_>>>()?;
        let nodes: Vec<_> = members
            .iter()
            .map(|member| Arc::clone(&member.node))
            .collect();
        Ok(Self {
            kubernetes: Kubernetes::connect(&controller.csi_socket(), &nodes)?,
            members,
            controller,
            fabric,
        })
    }

    /// The initiators that the fabric admits to a volume.
    pub(crate) fn admitted(&self, volume: &str) -> Result<Vec<String>> {
        let volume = self.controller.berthctl(&["volume", "show", volume])?;
        let lists = volume["units"].as_array().context("no units")?.iter();
        let names = lists.flat_map(|unit| unit["access"].as_array().cloned().unwrap_or_default());
        Ok(names
            .filter_map(|name| name.as_str().map(str::to_owned))
            .collect())
    }

    /// The names of the volumes that the fabric has.
    pub(crate) fn volumes(&self) -> Result<Vec<String>> {
        names(&self.controller.berthctl(&["volume", "list"])?)
    }

    /// Ends everything in order, and fails if something does not end so.
    pub(crate) fn finish(mut self) -> Result<()> {
        for member in &self.members {
            for program in ["berth-csi", "berthd"] {
                let log = member.node.stop(program, "TERM")?;
                ensure!(!log.contains("panicked"), "{program} has panicked: {log}");
            }
        }
        drop(self.members);
        self.controller.finish()?;
        self.fabric.stop()
    }
}

fn fabric_addresses() -> Result<Addresses> {
    let portals = PORTALS.map(|portal| format!("{portal}:3260").parse());
    Ok(Addresses {
        http: format!("{FABRIC}:7717").parse()?,
        https: format!("{FABRIC}:7718").parse()?,
        portals: portals.into_iter().collect::<Result<_, _>>()?,
    })
}

/// The names in a list that berthctl has printed as JSON.
fn names(list: &Value) -> Result<Vec<String>> {
    let items = list.as_array().or_else(|| {
        let mut lists = list.as_object()?.values().filter_map(Value::as_array);
        lists.next()
    });
    let items = items.with_context(|| format!("no list: {list}"))?.iter();
    let names = items.map(|item| item["name"].as_str().map(str::to_owned));
    names.collect::<Option<_>>().context("no name")
}

/// How a node is called by the fabric.
fn initiator(node: &str) -> String {
    format!("iqn.2026-11.io.berth.lab:{node}")
}

fn configuration(node: &str, dir: &str, fabric: &str) -> String {
    let initiator = initiator(node);
    format!(
        "[node]\nname = \"{node}\"\ninitiator_name = \"{initiator}\"\n\
         state_dir = \"{dir}/state\"\nruntime_dir = \"{dir}/run\"\n\
         [api]\nsocket = \"{dir}/run/api.sock\"\n{fabric}"
    )
}

//! The rules that a CSI driver has to keep, each a function that a fresh volume or two is made for.

mod changes;
mod concurrency;
mod controller;
mod create;
mod fence;
mod lifecycle;
mod node;
mod snapshots;

use std::pin::Pin;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use super::rig::{Access, Rig};
use super::site::{Kernel, Site};

type Running<'a> = Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// A rule.
pub struct Rule {
    /// Its name: module and function.
    pub name: &'static str,
    run: for<'a> fn(&'a mut Rig) -> Running<'a>,
}

impl std::fmt::Debug for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

macro_rules! rules {
    ($($module:ident: $($function:ident),*;)*) => {
        /// All rules, in the order in which they are tried.
        pub const RULES: &[Rule] = &[$($(Rule {
            name: concat!(stringify!($module), "::", stringify!($function)),
            run: |rig| Box::pin($module::$function(rig)),
        },)*)*];
    };
}

rules! {
    controller: identity, what_is_missing, what_is_unknown, validate, list, paging, capacity, topology;
    changes: expand, modify, online;
    create: again_and_again, sizes, names, templates, parameters, what_cannot_be, delete;
    snapshots: life, names_of_snapshots, copies;
    node: info, what_is_missing, again_and_again, another_way, single_writer, read_only, many_readers, stats, contents;
    fence: one_node, late_writes, attached_in_another_way, everybody_out, teardown_of_what_is_gone;
    concurrency: one_name, many_volumes, one_volume;
    lifecycle: move_between_nodes, driver_killed_between_calls, daemon_killed_between_calls, driver_killed_during_calls, stopped_in_order;
}

/// Tries all rules whose name contains `filter`, and says for each how long it took.
///
/// # Errors
/// Names those that do not hold, with the reason and the logs of the last one.
pub fn run(kernel: Kernel, access: Access, filter: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let mut rig = Rig::new(Site::start(kernel)?, access);
    let mut broken = Vec::new();
    for rule in RULES.iter().filter(|rule| rule.name.contains(filter)) {
        let began = Instant::now();
        let result = runtime.block_on((rule.run)(&mut rig));
        let took = began.elapsed().as_secs_f32();
        match result {
            Ok(()) => println!("{access:?} {}: holds ({took:.1} s)", rule.name),
            Err(error) => {
                println!("{access:?} {}: {error:#}\n{}", rule.name, rig.site.logs());
                broken.push(rule.name);
            }
        }
    }
    for node in &rig.site.nodes {
        if node.log().contains("panicked") {
            bail!("a driver panicked:\n{}", node.log());
        }
    }
    if broken.is_empty() {
        return Ok(());
    }
    Err(anyhow::anyhow!(
        "{} of {} rules do not hold: {}",
        broken.len(),
        RULES.len(),
        broken.join(", ")
    ))
    .context(format!("{access:?}"))
}

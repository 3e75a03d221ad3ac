//! `kubelet`: the volume manager of a real kubelet drives `berth-flexvolume`, with attaching as calls of its own and without, and
//! the calls of a kubelet of Kubernetes 1.3 are replayed.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use berth_tests::process::Process;

use super::{Node, early};
use crate::{Options, kernel};

/// The test program, which the host has built.
const PROGRAM: &str = "/mnt/kubelet.test";
/// All of its tests, in one way of attaching. kubelet waits longer after each failure, and failures are part of them.
const TESTS: Duration = Duration::from_secs(900);

pub(crate) fn run(options: &Options) -> Result<()> {
    let node = Node::start()?;
    let mut log = kernel::Log::follow()?;
    let result = (|| {
        tests(&node, false, ".")?;
        // The second round is all of it again, with attaching as calls of its own; else only the order of calls is looked at.
        tests(
            &node,
            true,
            if options.rounds > 1 {
                "."
            } else {
                "^TestLife$"
            },
        )?;
        early::replay(&node)?;
        log.check()
    })();
    let _ = std::fs::copy(node.driver_log(), "/mnt/logs/driver");
    let _ = std::fs::write("/mnt/logs/berthd", node.daemon.log());
    result?;
    node.daemon.stop()
}

fn tests(node: &Node, attach: bool, which: &str) -> Result<()> {
    node.configure(attach, "")?;
    let config = node.config();
    let (plugins, driver_log, api) = (node.plugins(), node.driver_log(), node.daemon.api_socket());
    let driver = plugins.join("datera~iscsi/iscsi");
    let word = attach.to_string();
    let envs = [
        ("BERTH_FLEXVOLUME_CONFIG", config.as_path()),
        ("BERTH_API", api.as_path()),
        ("PLUGIN_DIR", plugins.as_path()),
        ("DRIVER", driver.as_path()),
        ("DRIVER_LOG", driver_log.as_path()),
        ("DRIVER_ATTACH", Path::new(&word)),
    ];
    let log = format!("/mnt/logs/kubelet-attach-{attach}");
    let which = format!("-test.run={which}");
    let words = ["-test.v", "-test.failfast", "-test.timeout=14m", &which];
    let program = Path::new(PROGRAM);
    let mut process = Process::start("kubelet", program, words, &envs, Path::new(&log))?;
    let ended = process.wait_end(TESTS);
    let text = process.log();
    let lines: Vec<&str> = text.lines().collect();
    let passed = lines
        .iter()
        .filter(|line| line.starts_with("--- PASS"))
        .count();
    let interesting =
        |line: &&&str| line.trim_start().starts_with("---") || line.contains("_test.go:");
    for line in lines.iter().filter(interesting) {
        println!("attach={attach} {line}");
    }
    let status = ended.context("kubelet's tests")?;
    ensure!(status.success() && passed > 0, "attach={attach}: {status}");
    ensure!(node.attached()?.is_empty(), "{:?}", node.attached()?);
    println!("kubelet, attach={attach}: {passed} tests passed");
    node.delete_volumes()
}

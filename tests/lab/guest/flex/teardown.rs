//! `teardown`: pods that end when something of their volume is gone already: every call that takes down succeeds, as often as it is made.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{Node, is_mounted, options};
use crate::Options;

/// A request to the daemon or to the fabric, which may wait for the end of sessions.
const REQUEST: Duration = Duration::from_secs(60);

/// What is gone when the pod ends.
#[derive(Debug, Clone, Copy)]
enum Gone {
    /// The fabric does not admit the node any more.
    Right,
    /// The target is offline: the session is lost and none can be made.
    Session,
    /// Somebody has detached by force: the device is gone below the mount.
    Device,
    /// The fabric has deleted the volume.
    Volume,
    /// The daemon was killed, and is a new one.
    Daemon,
    /// What the driver had written down.
    Record,
}

const ALL: [Gone; 6] = [
    Gone::Right,
    Gone::Session,
    Gone::Device,
    Gone::Volume,
    Gone::Daemon,
    Gone::Record,
];

/// In both dialects.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut node = Node::start()?;
    let result: Result<()> = (|| {
        for round in 0..options.rounds {
            for (gone, early) in ALL
                .into_iter()
                .flat_map(|gone| [(gone, true), (gone, false)])
            {
                let started = Instant::now();
                one(&mut node, round, gone, early)
                    .with_context(|| format!("{gone:?}, Kubernetes 1.3: {early}"))?;
                let seconds = started.elapsed().as_secs_f64();
                let dialect = if early { "1.3" } else { "1.6" };
                println!(
                    "{gone:?} gone, dialect {dialect}: all calls succeed, twice; {seconds:.1} s"
                );
            }
        }
        Ok(())
    })();
    let _ = std::fs::copy(node.driver_log(), "/mnt/logs/driver");
    let _ = std::fs::write("/mnt/logs/berthd", node.daemon.log());
    result?;
    node.daemon.stop()
}

fn one(node: &mut Node, round: u32, gone: Gone, early: bool) -> Result<()> {
    let word = format!("{gone:?}-{early}-{round}").to_lowercase();
    let volume = format!("gone-{word}");
    let dir = node.path(&format!("gone/{word}"));
    let path = dir.to_str().context("path is text")?;
    let json = options(&volume, "ext4");
    let mut device = None;
    if early {
        let answer = node.ok(&["attach", &json])?;
        let path_of = answer["device"].as_str().context("a device")?.to_owned();
        node.ok(&["mount", path, &path_of, &json])?;
        device = Some(path_of);
    } else {
        node.ok(&["mount", path, &json])?;
    }
    // It is in memory only when things go wrong.
    std::fs::write(dir.join("file"), "written by the pod")?;
    gone.happens(node, &volume)?;
    for round in 0..2 {
        let undone = node.ok(&["unmount", path]);
        undone.with_context(|| format!("unmount, round {round}"))?;
        ensure!(!is_mounted(&dir)?, "round {round}: it is mounted");
        if let Some(device) = &device {
            let undone = node.ok(&["detach", device]);
            undone.with_context(|| format!("detach, round {round}"))?;
        }
    }
    let left = node.attached()?;
    // Without its notes the driver does not know, in the early dialect, whose a device is that nobody has mounted.
    if matches!((gone, early), (Gone::Record, true)) {
        for name in left {
            berthd(node, "DELETE", &format!("/v1/attachments/{name}"), None)?;
        }
    } else {
        ensure!(left.is_empty(), "left attached: {left:?}");
    }
    gone.undone(node, &volume)?;
    node.delete_volumes()
}

impl Gone {
    fn happens(self, node: &mut Node, volume: &str) -> Result<()> {
        let attachment = format!("/v1/attachments/flex.{volume}");
        match self {
            Self::Right => revoke(node, volume),
            Self::Session => {
                // Else I/O of the mount waits for the target to come back.
                let soon = json!({ "recovery_timeout_seconds": 3 });
                berthd(node, "PATCH", &attachment, Some(&soon))?;
                node.sim.log_in()?.set_online(volume, false)
            }
            Self::Device => {
                berthd(node, "DELETE", &format!("{attachment}?force=true"), None).map(drop)
            }
            Self::Volume => {
                revoke(node, volume)?;
                let fabric = node.sim.log_in()?;
                fabric.set_online(volume, false)?;
                let path = format!("/app_instances/{volume}");
                fabric.ok("DELETE", &path, None).map(drop)
            }
            Self::Daemon => node.daemon.restart(Signal::KILL),
            Self::Record => remove(&node.driver_state()),
        }
    }

    fn undone(self, node: &Node, volume: &str) -> Result<()> {
        match self {
            Self::Session => node.sim.log_in()?.set_online(volume, true),
            _ => Ok(()),
        }
    }
}

fn remove(dir: &Path) -> Result<()> {
    std::fs::remove_dir_all(dir).with_context(|| dir.display().to_string())
}

fn revoke(node: &Node, volume: &str) -> Result<()> {
    let answer = berthd(node, "GET", "/v1/node", None)?;
    let initiator = answer["initiator_name"].as_str().context("a name")?;
    let fabric = node.sim.log_in()?;
    let path = format!("/app_instances/{volume}/storage_instances/storage-1/acl_policy");
    let none = json!({ "initiators": [] });
    let before = fabric.ok("GET", &path, None)?;
    ensure!(before.to_string().contains(initiator), "{before}");
    fabric.ok("PUT", &path, Some(&none)).map(drop)
}

fn berthd(node: &Node, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
    let answer = node.daemon.request(method, path, body, REQUEST)?;
    ensure!(
        (200..300).contains(&answer.status),
        "{method} {path}: {} {answer:?}",
        answer.status
    );
    if answer.status == 204 {
        return Ok(Value::Null);
    }
    answer.json()
}

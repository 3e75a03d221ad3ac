//! What a kubelet of Kubernetes 1.3 does, call by call: it looks into the mount table, counts, and detaches by the device.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::{Node, is_mounted, mounts, options};

/// Starts a pod: nothing is called when the directory is a mount point; else attach, then mount.
fn set_up(node: &Node, json: &str, dir: &Path) -> Result<()> {
    if is_mounted(dir)? {
        return Ok(());
    }
    let answer = node.ok(&["attach", json])?;
    let device = answer["device"].as_str().context("a device")?;
    node.ok(&["mount", text(dir)?, device, json]).map(drop)
}

/// Ends a pod: what is no mount point is only removed. Else the device of the mount is looked up, the lines with that device are
/// counted, and it is detached after the unmount if there was one. A directory that is gone then is an error, for ever.
fn tear_down(node: &Node, dir: &Path) -> Result<Option<String>> {
    if !is_mounted(dir)? {
        std::fs::remove_dir(dir)?;
        return Ok(None);
    }
    let table = mounts()?;
    let line = table.iter().find(|(_, target)| target == dir);
    let device = line.context("its line")?.0.clone();
    let count = table.iter().filter(|(source, _)| *source == device).count();
    node.ok(&["unmount", text(dir)?])?;
    let last = count == 1;
    if last {
        node.ok(&["detach", &device])?;
    }
    ensure!(dir.is_dir(), "{} is gone", dir.display());
    ensure!(!is_mounted(dir)?, "{} is mounted", dir.display());
    std::fs::remove_dir(dir)?;
    Ok(last.then_some(device))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("path is text")
}

pub(super) fn replay(node: &Node) -> Result<()> {
    node.configure(false, "")?;
    node.ok(&["init"])?;
    let json = options("kube-pv-datera-0", "xfs");
    let [one, two, three] = ["early/1", "early/2", "early/3"].map(|name| node.path(name));
    set_up(node, &json, &one)?;
    std::fs::write(one.join("file"), "from the first pod")?;
    set_up(node, &json, &two)?;
    ensure!(tear_down(node, &one)?.is_none(), "detached too early");
    let read = std::fs::read_to_string(two.join("file"))?;
    ensure!(read == "from the first pod", "{read:?}");
    let device = tear_down(node, &two)?.context("the last pod detaches")?;
    ensure!(node.attached()?.is_empty(), "{:?}", node.attached()?);
    // The device now belongs to another volume; a detach that comes late must not take that one.
    let other = options("kube-pv-datera-1", "ext4");
    set_up(node, &other, &three)?;
    let (now, _) = mounts()?
        .into_iter()
        .find(|(_, target)| *target == three)
        .context("mounted")?;
    ensure!(now == device, "{now} instead of {device}: nothing is shown");
    let message = node.fails(&["detach", &device], "not detached")?;
    println!("detach of a device that was used again: {message}");
    std::fs::write(three.join("file"), "here")?;
    ensure!(node.attached()? == ["flex.kube-pv-datera-1"]);
    tear_down(node, &three)?.context("the last pod detaches")?;
    // Twice, as after a kubelet that was killed before it heard the answer.
    node.ok(&["detach", &device])?;
    set_up(node, &json, &one)?;
    let read = std::fs::read_to_string(one.join("file"))?;
    ensure!(read == "from the first pod", "{read:?}");
    tear_down(node, &one)?;
    ensure!(node.attached()?.is_empty(), "{:?}", node.attached()?);
    println!("Kubernetes 1.3: two pods, detach by device, a device used again, data found again");
    Ok(())
}

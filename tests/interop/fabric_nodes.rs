//! Two nodes, one volume of the fabric: whoever is shut out is cut off for real, its writes fail, and it does not come back by
//! itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_tests::Berthd;
use berth_tests::berthd::{INITIATOR, OTHER_INITIATOR};
use berth_tests::process::wait_for;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::fabric_site::{DEADLINE, Disk, GIB, Site, attach_body, call, volume};

const NAME: &str = "data";
const ATTACHMENT: &str = "/v1/attachments/data";
/// Writes that are answered before anything happens.
const WARM_UP: u64 = 50;
/// Blocks that both nodes write.
const BLOCKS: u64 = 16;
/// A node that is shut out learns of it, asks the fabric and fails what waits. Its recovery timeout is two minutes.
const SHUT_OUT_WITHIN: Duration = Duration::from_secs(15);

/// Writes one block after the other until a write fails.
struct Writer {
    written: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Option<Failed>>>,
}

/// The first write that failed.
#[derive(Debug)]
struct Failed {
    error: Option<u32>,
    sent: Instant,
    at: Instant,
}

impl Writer {
    fn start(node: &Berthd, byte: u8) -> Result<Self> {
        let mut disk = Disk::open(node, NAME)?;
        let written = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let (count, stopped) = (Arc::clone(&written), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let sent = Instant::now();
                let block = count.load(Ordering::Relaxed) % BLOCKS;
                match disk.write(block, byte) {
                    Ok(0) => count.fetch_add(1, Ordering::Relaxed),
                    outcome => {
                        return Ok(Some(Failed {
                            error: outcome.ok(),
                            sent,
                            at: Instant::now(),
                        }));
                    }
                };
            }
            Ok(None)
        });
        let writer = Self {
            written,
            stop,
            thread,
        };
        writer.goes_on()?;
        Ok(writer)
    }

    /// Waits until more was written.
    fn goes_on(&self) -> Result<()> {
        let before = self.written.load(Ordering::Relaxed);
        wait_for("writes", DEADLINE, || {
            let now = self.written.load(Ordering::Relaxed);
            Ok((now >= before + WARM_UP).then_some(()))
        })
    }

    fn join(self) -> Result<Option<Failed>> {
        let thread = self.thread.join();
        thread.map_err(|_| anyhow::anyhow!("the writer panicked"))?
    }
}

fn body(fence: &str, takeover: bool) -> Value {
    let mut body = attach_body(&json!({ "volume": "vol-1", "create": { "size_bytes": GIB } }));
    body["fence"] = fence.into();
    body["takeover"] = takeover.into();
    body
}

/// Waits until the attachment is fenced: failed, and said so.
fn fenced(node: &Berthd) -> Result<()> {
    wait_for("the end of the attachment", DEADLINE, || {
        let now = node.attachment(NAME)?;
        if now["state"] == "failed" {
            ensure!(now["reason"]["code"] == "fenced", "{now:#}");
            return Ok(Some(()));
        }
        Ok(None)
    })
    .with_context(|| node.log())
}

/// The write that was under way when the node was shut out at `since` fails, and tells so.
fn check_failed(writer: Writer, since: Instant, what: &str) -> Result<()> {
    let failed = writer.join()?.context("a write fails")?;
    let waited = failed.at.saturating_duration_since(since);
    println!(
        "{what}: first write failed after {} ms with NBD error {:?}; it was sent {} ms before",
        waited.as_millis(),
        failed.error,
        failed.at.saturating_duration_since(failed.sent).as_millis()
    );
    ensure!(failed.error.is_some_and(|error| error != 0), "{failed:?}");
    ensure!(waited < SHUT_OUT_WITHIN, "{failed:?}");
    Ok(())
}

/// The other node has the volume alone, reads what it writes, and goes on doing so.
fn check_other(node: &Berthd) -> Result<()> {
    let volume = volume(node, "vol-1")?;
    let unit = &volume["units"][0];
    ensure!(unit["access"] == json!([OTHER_INITIATOR]), "{volume:#}");
    ensure!(unit["sessions"] == json!([OTHER_INITIATOR]), "{volume:#}");
    let mut disk = Disk::open(node, NAME)?;
    for block in 0..BLOCKS {
        ensure!(disk.read(block)? == 0xbb, "block {block} is not ours");
    }
    Ok(())
}

fn write_all(node: &Berthd) -> Result<()> {
    let mut disk = Disk::open(node, NAME)?;
    for block in 0..BLOCKS {
        ensure!(disk.write(block, 0xbb)? == 0, "block {block}");
    }
    Ok(())
}

#[test]
fn whoever_is_revoked_is_cut_off_and_its_writes_fail() -> Result<()> {
    let site = Site::start()?;
    let config = site.config(&site.http()?, "");
    let mut first = Berthd::start_node(INITIATOR, &config)?;
    let other = Berthd::start_node(OTHER_INITIATOR, &config)?;
    first.attach_with(NAME, &body("none", false))?;
    let writer = Writer::start(&first, 0xaa)?;
    let path = format!("/v1/volumes/vol-1/access/{}", INITIATOR.replace(':', "%3A"));
    let since = Instant::now();
    call(&other, "DELETE", &path, None, &[204])?;
    let unit = &volume(&other, "vol-1")?["units"][0];
    ensure!(unit["sessions"] == json!([]), "{unit:#}");
    other.attach_with(NAME, &body("acl", false))?;
    write_all(&other)?;
    check_failed(writer, since, "revoked")?;
    fenced(&first)?;
    check_other(&other)?;
    // Its next life does not come back by itself.
    first.restart(Signal::KILL)?;
    fenced(&first)?;
    check_other(&other)?;
    let detached = call(&first, "DELETE", ATTACHMENT, None, &[204]);
    detached?;
    other.stop()?;
    first.stop()
}

#[test]
fn a_takeover_shuts_the_other_node_out() -> Result<()> {
    let site = Site::start()?;
    let config = site.config(&site.http()?, "");
    let mut first = Berthd::start_node(INITIATOR, &config)?;
    let other = Berthd::start_node(OTHER_INITIATOR, &config)?;
    first.attach_with(NAME, &body("acl", false))?;
    let writer = Writer::start(&first, 0xaa)?;
    let refused = call(&other, "PUT", ATTACHMENT, Some(&body("acl", false)), &[412])?.json()?;
    ensure!(
        refused["code"] == "attached-elsewhere" && refused["holder"] == INITIATOR,
        "{refused:#}"
    );
    writer.goes_on()?;
    let since = Instant::now();
    other.attach_with(NAME, &body("acl", true))?;
    write_all(&other)?;
    check_failed(writer, since, "taken over")?;
    fenced(&first)?;
    check_other(&other)?;
    first.restart(Signal::KILL)?;
    fenced(&first)?;
    let refused = call(&first, "PUT", ATTACHMENT, Some(&body("acl", false)), &[412])?.json()?;
    ensure!(
        refused["code"] == "attached-elsewhere" && refused["holder"] == OTHER_INITIATOR,
        "{refused:#}"
    );
    check_other(&other)?;
    // Whoever leaves gives it back; then it can be had again.
    other.detach(NAME)?;
    first.attach_with(NAME, &body("acl", false))?;
    let mut disk = Disk::open(&first, NAME)?;
    ensure!(disk.read(0)? == 0xbb, "what the other node wrote is there");
    drop(disk);
    other.stop()?;
    first.stop()
}

/// A target that refuses us while the fabric has nothing against us: I/O waits, as with any outage.
#[test]
fn a_refusal_that_the_fabric_knows_nothing_of_is_waited_out() -> Result<()> {
    let site = Site::start()?;
    let node = Berthd::start_node(INITIATOR, &site.config(&site.http()?, ""))?;
    node.attach_with(NAME, &body("none", false))?;
    let writer = Writer::start(&node, 0xaa)?;
    let path = "/v2.2/app_instances/vol-1";
    let state =
        |state: &str| site.rest("PUT", path, &json!({ "admin_state": state, "force": true }));
    ensure!(state("offline")? == 200);
    wait_for("the end of the sessions", DEADLINE, || {
        Ok((node.attachment(NAME)?["state"] == "recovering").then_some(()))
    })?;
    wait_for("the refusal", DEADLINE, || {
        let paths = node.attachment(NAME)?["paths"].clone();
        let code = paths[0]["reason"]["code"].clone();
        let refused = code == "target-not-found" || code == "access-denied";
        Ok(refused.then_some(()))
    })
    .with_context(|| node.log())?;
    ensure!(state("online")? == 200);
    writer.goes_on()?;
    writer.stop.store(true, Ordering::Relaxed);
    let failed = writer.join()?;
    ensure!(failed.is_none(), "{failed:?}");
    node.stop()
}

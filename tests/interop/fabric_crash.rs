//! `berthd sim` is killed in the middle of its work: what it has answered is there, and nothing else is left over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use berth_tests::fabric::{Rest, Sim};
use berth_tests::process::{Process, wait_for};
use berth_tests::{Berthd, programs, tool};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(120);
/// Clients that change things while it dies.
const CLIENTS: usize = 8;
/// Times that it dies.
const LIVES: usize = 4;
/// Changes that are answered in a life before it is killed.
const CHANGES: usize = 60;

/// What was answered: volumes by name with their size, and volumes that are gone.
#[derive(Default)]
struct Answered {
    sizes: BTreeMap<String, u64>,
    deleted: BTreeSet<String>,
    /// Asked for without an answer: may be there or not, or larger than it was.
    unsure: BTreeSet<String>,
}

/// Makes a volume, grows it, takes a snapshot, and deletes every third.
fn live(rest: &Rest, life: usize, number: usize, answered: &Mutex<Answered>) -> Result<()> {
    let name = format!("pv-{life}-{number:03}");
    let path = format!("/app_instances/{name}");
    let volume = format!("{path}/storage_instances/storage-1/volumes/volume-1");
    let note = |size: u64| {
        let mut answered = answered.lock().expect("no client has panicked");
        answered.sizes.insert(name.clone(), size);
    };
    answered
        .lock()
        .expect("no client has panicked")
        .unsure
        .insert(name.clone());
    let body = json!({"name": name, "storage_instances": [
        {"name": "storage-1", "volumes": [{"name": "volume-1", "size": 1, "replica_count": 1}]},
    ]});
    rest.ok("POST", "/app_instances", Some(&body))?;
    note(1);
    rest.ok("PUT", &volume, Some(&json!({"size": 2})))?;
    note(2);
    rest.ok("POST", &format!("{volume}/snapshots"), Some(&json!({})))?;
    if number.is_multiple_of(3) {
        rest.ok("PUT", &path, Some(&json!({"admin_state": "offline"})))?;
        rest.ok("DELETE", &path, None)?;
        let mut answered = answered.lock().expect("no client has panicked");
        answered.sizes.remove(&name);
        answered.deleted.insert(name.clone());
    }
    answered
        .lock()
        .expect("no client has panicked")
        .unsure
        .remove(&name);
    Ok(())
}

/// What is there is what was answered; each data file belongs to somebody.
fn check(sim: &Sim, answered: &Answered) -> Result<()> {
    let rest = sim.log_in()?;
    let list = rest.ok("GET", "/app_instances?limit=1000", None)?;
    let rows = list["data"].as_array().context("data")?;
    let mut files = 0;
    let mut there = BTreeMap::new();
    for row in rows {
        let name = row["name"].as_str().context("name")?;
        let volume = &row["storage_instances"][0]["volumes"][0];
        files += 1 + volume["snapshots"].as_array().map_or(0, Vec::len);
        there.insert(name.to_owned(), volume["size"].as_u64().context("size")?);
    }
    for (name, size) in &answered.sizes {
        if answered.unsure.contains(name) {
            // It may have grown, or be gone, without an answer.
            ensure!(
                there.get(name).is_none_or(|is| is >= size),
                "{name}: {there:?}"
            );
        } else {
            ensure!(
                there.get(name) == Some(size),
                "{name} has not {size} GiB: {there:?}"
            );
        }
    }
    for name in there.keys() {
        let known = answered.sizes.contains_key(name) || answered.unsure.contains(name);
        ensure!(
            known && !answered.deleted.contains(name),
            "{name} should not be there"
        );
    }
    let left = std::fs::read_dir(sim.state_dir().join("data"))?.count();
    ensure!(
        left == files,
        "{left} data files for {files} volumes and snapshots"
    );
    Ok(())
}

#[test]
fn what_was_answered_survives_a_kill() -> Result<()> {
    let mut sim = Sim::start(&[])?;
    let answered = Mutex::new(Answered::default());
    for life in 0..LIVES {
        let rest = sim.log_in()?;
        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let over = AtomicBool::new(false);
        sim = std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    while !over.load(Ordering::SeqCst) {
                        let number = next.fetch_add(1, Ordering::SeqCst);
                        // An error is the kill.
                        if live(&rest, life, number, &answered).is_err() {
                            return;
                        }
                        done.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
            let enough = wait_for("changes", DEADLINE, || {
                Ok((done.load(Ordering::SeqCst) * 3 >= CHANGES).then_some(()))
            });
            let restarted = enough.and_then(|()| sim.kill_and_restart());
            over.store(true, Ordering::SeqCst);
            restarted
        })?;
        check(&sim, &answered.lock().expect("no client has panicked"))?;
    }
    sim.stop()
}

/// The fabric dies while a volume is written: the daemon waits and goes on, and every byte is there.
#[test]
fn a_volume_is_written_over_the_death_of_the_fabric() -> Result<()> {
    const SIZE_BYTES: usize = 96 << 20;
    let mut sim = Sim::start(&[])?;
    let daemon = Berthd::start_with(&sim.config(), None)?;
    let create: Value = json!({"size_bytes": 1 << 30, "qos": {"total_bytes_per_second": 32 << 20}});
    let source = json!({"fabric": {"volume": "pv-1", "create": create}});
    daemon.attach_with("disk", &json!({"source": source, "device": "socket"}))?;
    let dir = tempfile::tempdir()?;
    let (wanted, found) = (dir.path().join("wanted"), dir.path().join("found"));
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    let bytes = std::iter::repeat_with(|| {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        word.to_le_bytes()
    });
    std::fs::write(
        &wanted,
        bytes.take(SIZE_BYTES / 8).flatten().collect::<Vec<u8>>(),
    )?;
    let uri = daemon.nbd_uri("disk");
    let log = dir.path().join("log");
    let words = [
        "convert".to_owned(),
        "-n".to_owned(),
        "-f".to_owned(),
        "raw".to_owned(),
        "-O".to_owned(),
        "raw".to_owned(),
        wanted.display().to_string(),
        uri.clone(),
    ];
    let mut copy = Process::start("qemu-img", &programs::system("qemu-img")?, words, &[], &log)?;
    // Limited to 32 MiB/s the copy takes seconds; the first bytes show that it is under way.
    let written = |sim: &Sim| -> Result<u64> {
        let rest = sim.log_in()?;
        let rows = rest.ok(
            "GET",
            "/metrics/io/bytes_written/latest?path=/app_instances/pv-1",
            None,
        )?;
        Ok(rows["data"][0]["point"]["value"]
            .as_f64()
            .context("value")? as u64)
    };
    wait_for("the first writes", DEADLINE, || {
        Ok((written(&sim)? > 4 << 20).then_some(()))
    })?;
    ensure!(
        copy.status()?.is_none(),
        "the copy was over before the fabric died"
    );
    sim = sim.kill_and_restart()?;
    let status = copy.wait_end(DEADLINE)?;
    ensure!(status.success(), "{}\n{}", copy.log(), daemon.log());
    let read = [
        "convert".to_owned(),
        "-f".to_owned(),
        "raw".to_owned(),
        "-O".to_owned(),
        "raw".to_owned(),
        uri,
        found.display().to_string(),
    ];
    sim.log_in()?.ok(
        "DELETE",
        "/app_instances/pv-1/storage_instances/storage-1/volumes/volume-1/performance_policy",
        None,
    )?;
    tool::run("qemu-img", &read, DEADLINE)?;
    let found = std::fs::read(&found)?;
    ensure!(
        found[..SIZE_BYTES] == std::fs::read(&wanted)?[..],
        "the data is not what was written"
    );
    daemon.detach("disk")?;
    daemon.stop()?;
    sim.stop()
}

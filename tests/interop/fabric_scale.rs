//! Many volumes, many clients at once: `berthd` and `berthd sim` as processes.
//!
//! `BERTH_FABRIC_VOLUMES` is the number of volumes (100; 1,000 is the full size), `BERTH_FABRIC_CLIENTS` that of the clients (16).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_tests::Berthd;
use berth_tests::fabric::{Rest, Sim};
use serde_json::{Value, json};

/// One call, however busy the machine is.
const CALL: Duration = Duration::from_secs(120);
/// One volume of so many is attached.
const ATTACHED_EACH: usize = 5;
const GIB: u64 = 1 << 30;

fn setting(name: &str, default: usize) -> Result<usize> {
    match std::env::var(name) {
        Err(_) => Ok(default),
        Ok(text) => text.parse().with_context(|| format!("{name}={text}")),
    }
}

/// How long each call of a step took, sorted.
struct Step {
    name: &'static str,
    took: Vec<Duration>,
    whole: Duration,
}

impl Step {
    /// Does `count` jobs with so many clients, each on a connection of its own; the first error ends all.
    fn run(
        name: &'static str,
        clients: usize,
        count: usize,
        job: impl Fn(usize) -> Result<()> + Sync,
    ) -> Result<Self> {
        let next = AtomicUsize::new(0);
        let took = Mutex::new(Vec::new());
        let failed = Mutex::new(None);
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..clients {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= count {
                            return;
                        }
                        let begun = Instant::now();
                        if let Err(error) = job(number) {
                            next.store(count, Ordering::Relaxed);
                            failed
                                .lock()
                                .expect("no client has panicked")
                                .get_or_insert(error);
                            return;
                        }
                        took.lock()
                            .expect("no client has panicked")
                            .push(begun.elapsed());
                    }
                });
            }
        });
        if let Some(error) = failed.into_inner().expect("no client has panicked") {
            return Err(error.context(name));
        }
        let mut took = took.into_inner().expect("no client has panicked");
        took.sort();
        ensure!(took.len() == count, "{} of {count} were done", took.len());
        let whole = begun.elapsed();
        Ok(Self { name, took, whole })
    }

    fn percentile(&self, percent: usize) -> f64 {
        let rank = (self.took.len() * percent).div_ceil(100).max(1);
        self.took[rank - 1].as_secs_f64() * 1e3
    }

    fn print(&self) {
        println!(
            "{:<22} {:>6} {:>9.1} {:>9.1} {:>9.1} {:>9.2}",
            self.name,
            self.took.len(),
            self.percentile(50),
            self.percentile(99),
            self.percentile(100),
            self.whole.as_secs_f64(),
        );
    }
}

fn name(number: usize) -> String {
    format!("load-{number:04}")
}

/// What is asked for, and how many GiB it has then: three of four by options, the others from a template.
fn wish(number: usize) -> (Value, u64) {
    let gib = 1 + (number % 3) as u64;
    match number % 4 {
        0 => (json!({"template": "basic_small"}), 1),
        1 => (json!({"size_bytes": gib * GIB, "replicas": 2}), gib),
        2 => (
            json!({"size_bytes": gib * GIB, "qos": {"total_iops": 5000}}),
            gib,
        ),
        _ => (json!({"template": "bronze", "size_bytes": 21 * GIB}), 21),
    }
}

fn put(daemon: &Berthd, path: &str, body: &Value, wanted: u16) -> Result<Value> {
    let answer = daemon.request("PUT", path, Some(body), CALL)?;
    ensure!(
        answer.status == wanted,
        "{path}: {} {}",
        answer.status,
        answer.text()
    );
    answer.json()
}

fn get(daemon: &Berthd, path: &str) -> Result<Value> {
    let answer = daemon.request("GET", path, None, CALL)?;
    ensure!(
        answer.status == 200,
        "{path}: {} {}",
        answer.status,
        answer.text()
    );
    answer.json()
}

fn names(rows: &Value) -> Result<Vec<String>> {
    let rows = rows.as_array().context("no list")?;
    let name = |row: &Value| row["name"].as_str().map(str::to_owned);
    rows.iter()
        .map(|row| name(row).context("no name"))
        .collect()
}

/// Every page of a list; also that the pages are as long as they should be and tell the right total.
fn pages(rest: &Rest, query: &str, limit: usize) -> Result<Vec<String>> {
    let mut found = Vec::new();
    loop {
        let offset = found.len();
        let path = format!("/app_instances?limit={limit}&offset={offset}{query}");
        let answer = rest.ok("GET", &path, None)?;
        let page = names(&answer["data"])?;
        let about = &answer["metadata"];
        let total = about["total_count"].as_u64().context("total_count")? as usize;
        ensure!(page.len() == limit.min(total - offset), "{path}: {about}");
        ensure!(about["request_count"] == page.len(), "{path}: {about}");
        found.extend(page);
        if found.len() >= total {
            return Ok(found);
        }
    }
}

/// Lists, pages and filters against the set that was made.
fn check_lists(daemon: &Berthd, rest: &Rest, made: &BTreeMap<String, u64>) -> Result<()> {
    let list = get(daemon, "/v1/volumes")?;
    let sizes: BTreeMap<String, u64> = list["volumes"]
        .as_array()
        .context("volumes")?
        .iter()
        .map(|volume| {
            let name = volume["name"].as_str().context("name")?.to_owned();
            Ok((name, volume["size_bytes"].as_u64().context("size")? / GIB))
        })
        .collect::<Result<_>>()?;
    ensure!(sizes == *made, "the daemon's list is not what was made");
    // The daemon's own pages, in the order of the names.
    for limit in [9, 100] {
        let (mut found, mut after) = (Vec::new(), String::new());
        loop {
            let page = get(daemon, &format!("/v1/volumes?limit={limit}{after}"))?;
            let rows = names(&page["volumes"])?;
            ensure!(rows.len() <= limit, "{} in a page of {limit}", rows.len());
            found.extend(rows);
            match page["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => break,
            }
        }
        ensure!(
            found.iter().eq(made.keys()),
            "the daemon's pages of {limit}: {found:?}"
        );
    }
    let all: BTreeSet<&str> = made.keys().map(String::as_str).collect();
    for limit in [7, 100, 1000] {
        let found = pages(rest, "", limit)?;
        let set: BTreeSet<&str> = found.iter().map(String::as_str).collect();
        ensure!(set == all && found.len() == all.len(), "pages of {limit}");
    }
    for (filter, fits) in [
        (
            "match(name,.*7)",
            &(|n: &str| n.ends_with('7')) as &dyn Fn(&str) -> bool,
        ),
        ("match(name,load-00.*)", &|n: &str| n.starts_with("load-00")),
        ("name=load-0042", &|n: &str| n == "load-0042"),
        ("match(name,none.*)", &|_: &str| false),
    ] {
        let found = pages(rest, &format!("&filter={filter}&sort=name"), 10)?;
        let wanted: Vec<&str> = all.iter().copied().filter(|name| fits(name)).collect();
        ensure!(found == wanted, "{filter}: {found:?} for {wanted:?}");
    }
    Ok(())
}

#[test]
fn many_volumes_and_many_clients() -> Result<()> {
    let count = setting("BERTH_FABRIC_VOLUMES", 100)?;
    let clients = setting("BERTH_FABRIC_CLIENTS", 16)?;
    let sim = Sim::start(&[])?;
    let daemon = Berthd::start_with(&sim.config(), None)?;
    let made: BTreeMap<String, u64> = (0..count).map(|n| (name(n), wish(n).1)).collect();
    let volume = |n: usize| format!("/v1/volumes/{}", name(n));
    let mut steps = vec![Step::run("create", clients, count, |n| {
        let made = put(&daemon, &volume(n), &wish(n).0, 201)?;
        ensure!(made["state"] == "available", "{made}");
        Ok(())
    })?];
    steps.push(Step::run("create again", clients, count, |n| {
        put(&daemon, &volume(n), &wish(n).0, 200).map(drop)
    })?);
    steps.push(Step::run("show", clients, count, |n| {
        get(&daemon, &volume(n)).map(drop)
    })?);
    steps.push(Step::run("list of all", clients, clients, |_| {
        get(&daemon, "/v1/volumes").map(drop)
    })?);
    let rest = sim.log_in()?;
    check_lists(&daemon, &rest, &made)?;

    let attached = count.div_ceil(ATTACHED_EACH);
    let path = |n: usize| format!("/v1/attachments/{}", name(n * ATTACHED_EACH));
    steps.push(Step::run("attach", clients, attached, |n| {
        let source = json!({"fabric": {"volume": name(n * ATTACHED_EACH)}});
        let body = json!({"source": source, "device": "socket"});
        let made = put(&daemon, &path(n), &body, 201)?;
        ensure!(made["state"] == "attached", "{made}");
        let unit = &get(&daemon, &volume(n * ATTACHED_EACH))?["units"][0];
        ensure!(
            made["identity"]["serial"] == unit["serial"],
            "{made} {unit}"
        );
        Ok(())
    })?);
    let (of_daemon, of_sim) = (daemon.usage()?, sim.usage()?);
    steps.push(Step::run("attach by making", clients, attached, |n| {
        let name = format!("new-{n:04}");
        let source = json!({"fabric": {"volume": name, "create": {"size_bytes": GIB}}});
        let body = json!({"source": source, "device": "socket"});
        put(&daemon, &format!("/v1/attachments/{name}"), &body, 201).map(drop)
    })?);
    let detach = |path: &str| {
        let answer = daemon.request("DELETE", path, None, CALL)?;
        ensure!(answer.status == 204, "{path}: {}", answer.text());
        Ok(())
    };
    steps.push(Step::run("detach", clients, attached, |n| {
        detach(&path(n))
    })?);
    steps.push(Step::run("detach what was made", clients, attached, |n| {
        detach(&format!("/v1/attachments/new-{n:04}"))?;
        detach(&format!("/v1/volumes/new-{n:04}"))
    })?);
    check_lists(&daemon, &rest, &made)?;
    steps.push(Step::run("delete", clients, count, |n| detach(&volume(n)))?);
    check_lists(&daemon, &rest, &BTreeMap::new())?;
    let left = std::fs::read_dir(sim.state_dir().join("data"))?.count();
    ensure!(left == 0, "{left} data files are left");

    println!("{count} volumes, {clients} clients at once, {attached} attached");
    println!(
        "{:<22} {:>6} {:>9} {:>9} {:>9} {:>9}",
        "", "calls", "p50 ms", "p99 ms", "max ms", "all s"
    );
    for step in &steps {
        step.print();
    }
    for (who, usage) in [("berthd", of_daemon), ("berthd sim", of_sim)] {
        println!(
            "{who} with {attached} attached: {} MiB, {} threads, {} descriptors",
            usage.rss_bytes >> 20,
            usage.threads,
            usage.fds
        );
    }
    daemon.stop()?;
    sim.stop()
}

//! Several portals of one LUN are paths to it: one is cut under load and nobody waits longer than it takes to notice; it
//! heals and carries I/O again.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_tests::berthd::{Berthd, attach_body};
use berth_tests::fio;
use berth_tests::net::{Fault, Network, Traffic};
use berth_tests::peers::{Digests, Peer, Portal, Spec, Tgt};
use berth_tests::prober::percentile;
use berth_tests::process::wait_for;
use berth_tests::tool;
use serde_json::{Value, json};

use crate::load::{Load, PASS, USED_BYTES};

const MIB: u64 = 1 << 20;
const SIZE_BYTES: u64 = 256 * MIB;
/// A silent path is noticed an interval and a timeout after its last word: below one and a half timeouts.
const PING_INTERVAL: Duration = Duration::from_secs(1);
const PING_TIMEOUT: Duration = Duration::from_secs(4);
/// Where the old session cannot be ended through another portal, its writes wait for this.
const STALE_SESSION: Duration = Duration::from_secs(5);
/// Of each of fio's four jobs.
const WRITE_RATE_BYTES: u64 = 8 << 20;
const CUT: Duration = Duration::from_secs(9);
const MEASURE: Duration = Duration::from_secs(4);
/// A path that was cut for [`CUT`] is tried again within twice that time, and then has to log in.
const FAILBACK: Duration = Duration::from_secs(60);

/// Two links, a target with a portal on each, and a daemon with both as paths of `disk`.
struct Lab<P> {
    peer: P,
    daemon: Berthd,
    network: Network,
}

impl<P: Peer> Lab<P> {
    fn new(start: impl FnOnce(Spec, &Network) -> Result<P>) -> Result<Self> {
        let network = Network::new(2)?;
        let peer = start(Spec::open(SIZE_BYTES), &network)?;
        let config = format!(
            "[iscsi]\nping_interval = \"{}s\"\nping_timeout = \"{}s\"\n\
             [iscsi.recovery]\nstale_session_timeout = \"{}s\"\n",
            PING_INTERVAL.as_secs(),
            PING_TIMEOUT.as_secs(),
            STALE_SESSION.as_secs()
        );
        let daemon = Berthd::start_with(&config, Some(network.node.name()))?;
        daemon.attach_with("disk", &attach_body(&peer, Digests::Prefer))?;
        let lab = Self {
            peer,
            daemon,
            network,
        };
        lab.wait_paths(["up", "up"])?;
        Ok(lab)
    }

    /// State of each path, in the order of the links.
    fn paths(&self) -> Result<Vec<String>> {
        let attachment = self.daemon.attachment("disk")?;
        let paths = attachment["paths"].as_array().context("paths")?;
        let state = |portal: &String| -> Result<String> {
            let path = paths.iter().find(|path| path["portal"] == **portal);
            let path = path.with_context(|| format!("no path {portal}: {attachment:#}"))?;
            Ok(path["state"].as_str().context("state")?.to_owned())
        };
        self.peer.portals().iter().map(state).collect()
    }

    fn wait_paths(&self, wanted: [&str; 2]) -> Result<Duration> {
        let started = Instant::now();
        let mut seen = Vec::new();
        wait_for(&format!("paths {wanted:?}"), FAILBACK, || {
            seen = self.paths()?;
            Ok((seen == wanted).then_some(()))
        })
        .with_context(|| format!("the paths are {seen:?}\n{}", self.daemon.log()))?;
        Ok(started.elapsed())
    }

    /// Throughput of all paths in bytes per second; fails unless each has carried its part.
    fn measure(&self) -> Result<f64> {
        let traffic = || -> Result<Vec<Traffic>> {
            self.network
                .links
                .iter()
                .map(|link| link.traffic())
                .collect()
        };
        let before = traffic()?;
        let uri = self.daemon.nbd_uri("disk");
        let rate = fio::throughput(&uri, USED_BYTES, SIZE_BYTES - USED_BYTES, MEASURE)?;
        let carried: Vec<_> = traffic()?
            .iter()
            .zip(&before)
            .map(|(after, before)| after.total_bytes() - before.total_bytes())
            .collect();
        let all: u64 = carried.iter().sum();
        println!(
            "{:.0} MB/s; the links carried {} and {} MB",
            rate / 1e6,
            carried[0] / 1_000_000,
            carried[1] / 1_000_000
        );
        // Which path is the quicker one is chance; that one is forgotten is not.
        ensure!(
            carried.iter().all(|bytes| bytes * 10 > all),
            "{carried:?} bytes"
        );
        Ok(rate)
    }

    /// Cuts each link in turn under load. No request may wait for `limit`.
    fn cut_each(self, name: &str, limit: Duration) -> Result<()> {
        let before = self.measure()?;
        for (number, fault) in [(0, Fault::Cut), (1, Fault::Cut), (0, Fault::Unplug)] {
            let mut load = Load::start(&self.daemon, number as u64 + 1, WRITE_RATE_BYTES)?;
            load.go_on_for(Duration::from_secs(2))?;
            let begun = Instant::now();
            self.network.links[number].apply(fault)?;
            load.go_on_for(CUT)?;
            let mut wanted = ["up", "up"];
            wanted[number] = "down";
            ensure!(self.paths()? == wanted, "{:?}", self.paths()?);
            let attachment = self.daemon.attachment("disk")?;
            ensure!(attachment["state"] == "attached", "{attachment:#}");
            self.network.links[number].heal(fault)?;
            let ended = Instant::now();
            load.wait_answered_since(ended)?;
            self.wait_paths(["up", "up"])?;
            let failback = ended.elapsed();
            let probed = percentile(&load.prober.probes_since(begun), 100);
            // The prober has one request at a time, and seldom on the wire of the bad path; fio always has some.
            let done = load.finish()?;
            println!(
                "{name}: link {number}, {fault} for {CUT:?}: failback {failback:.2?} after its end; {done}; \
                 longest wait of the prober {probed:.2?} (ping timeout {PING_TIMEOUT:?})"
            );
            let stall = done.longest.max(probed);
            ensure!(stall < limit, "a request waited {stall:?}");
            // Noticed it was: else the test has not tested what it says.
            ensure!(stall > PING_TIMEOUT / 2, "no request was on the bad path");
        }
        let after = self.measure()?;
        println!(
            "{name}: throughput {:.0} MB/s before, {:.0} MB/s after: ratio {:.2}",
            before / 1e6,
            after / 1e6,
            after / before
        );
        // The measure of work is the two counters above; this only tells a path that limps.
        ensure!(after > before / 4.0, "throughput is not back");
        self.finish()
    }

    fn finish(self) -> Result<()> {
        let copy = tempfile::NamedTempFile::new()?;
        let path = copy.path().to_str().context("temporary path")?;
        tool::run("nbdcopy", &[&self.daemon.nbd_uri("disk"), path], PASS)?;
        self.daemon.detach("disk")?;
        let backing = self.peer.backing().context("serves a file")?;
        ensure!(
            tool::sha256(copy.path(), PASS)? == tool::sha256(backing, PASS)?,
            "the file behind the LUN is not what was read over NBD"
        );
        let log = self.daemon.log();
        ensure!(!log.contains("panicked"), "{log}");
        self.daemon.stop()
    }
}

#[test]
fn tgt_with_two_portals_of_one_group() -> Result<()> {
    let limit = PING_TIMEOUT.mul_f64(1.5);
    Lab::new(Tgt::start_on)?.cut_each("tgt, two portals", limit)
}

/// A session can only be ended through its own portal group: writes that were sent on the lost path wait for the time that is
/// configured for this case.
#[test]
fn own_target_with_two_portal_groups() -> Result<()> {
    let limit = PING_TIMEOUT.mul_f64(1.5) + STALE_SESSION;
    Lab::new(Portal::start_on)?.cut_each("own target, two portal groups", limit)
}

/// The sessions of an attachment are as many as its paths, each with an ISID of its own that stays the same.
#[test]
fn each_path_has_a_session_that_keeps_its_name() -> Result<()> {
    let lab = Lab::new(Tgt::start_on)?;
    let isids = || -> Result<Vec<Value>> {
        let attachment = lab.daemon.attachment("disk")?;
        let sessions = attachment["sessions"].as_array().context("sessions")?;
        let mut isids: Vec<_> = sessions.iter().map(|s| s["isid"].clone()).collect();
        isids.sort_by_key(Value::to_string);
        Ok(isids)
    };
    let before = isids()?;
    ensure!(before.len() == 2 && before[0] != before[1], "{before:?}");
    for link in &lab.network.links {
        link.apply(Fault::Reset)?;
    }
    wait_for("both sessions again", FAILBACK, || {
        Ok((lab.paths()? == ["up", "up"] && isids()? == before).then_some(()))
    })?;
    lab.finish()
}

/// Paths come and go at run time under load: no request fails, what is taken away is logged out, and what is added carries I/O.
#[test]
fn paths_are_removed_and_added_under_load() -> Result<()> {
    let lab = Lab::new(Tgt::start_on)?;
    let portals = lab.peer.portals();
    let patch = |portals: &[String]| -> Result<Value> {
        let body = json!({ "source": { "iscsi": { "portals": portals } } });
        let path = "/v1/attachments/disk";
        let answer = lab.daemon.request("PATCH", path, Some(&body), FAILBACK)?;
        ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
        answer.json()
    };
    let mut load = Load::start(&lab.daemon, 1, WRITE_RATE_BYTES)?;
    // Each alone in turn, so that every path is both removed under load and added under load.
    for number in [0, 1, 0] {
        patch(&portals[number..=number])?;
        wait_for("one path and one session", FAILBACK, || {
            load.check()?;
            let now = lab.daemon.attachment("disk")?;
            let is_one = |list: &Value| list.as_array().is_some_and(|list| list.len() == 1);
            Ok((is_one(&now["paths"]) && is_one(&now["sessions"])).then_some(()))
        })?;
        // The one that was removed is silent: nothing is left on its wire.
        let other = &lab.network.links[1 - number];
        let (before, used) = (other.traffic()?, lab.network.links[number].traffic()?);
        load.go_on_for(Duration::from_secs(2))?;
        ensure!(
            other.traffic()?.total_bytes() - before.total_bytes() < 4096,
            "the removed path carries something: {before:?} {:?}",
            other.traffic()?
        );
        ensure!(lab.network.links[number].traffic()?.total_bytes() > used.total_bytes() + MIB);
        patch(&portals)?;
        lab.wait_paths(["up", "up"])?;
        let before = other.traffic()?;
        load.go_on_for(Duration::from_secs(2))?;
        ensure!(
            other.traffic()?.total_bytes() > before.total_bytes() + MIB,
            "the added path carries nothing"
        );
    }
    let done = load.finish()?;
    println!("paths removed and added: {done}");
    // Nothing was lost, so nothing had to be waited for.
    ensure!(
        done.longest < PING_TIMEOUT,
        "a request waited {:?}",
        done.longest
    );
    lab.finish()
}

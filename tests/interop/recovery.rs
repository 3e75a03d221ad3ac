//! Nothing is lost and nothing fails while targets die and links break (`recovery_timeout` is not reached).
//!
//! fio writes over NBD and reads everything back; every few seconds something breaks, from a seeded list, and heals. A
//! prober measures meanwhile how long one small request has to wait.
//!
//! `BERTH_RECOVERY_SECONDS`: how long each target is troubled (60; every kind of trouble comes at least once, so it may take
//! longer). `BERTH_RECOVERY_SEED`: another order of troubles.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_tests::berthd::{Berthd, attach_body};
use berth_tests::net::{Fault, Link, Network};
use berth_tests::peers::{Digests, Lio, Mortal, Spec, Tgt};
use berth_tests::prober::{Probe, percentile};
use berth_tests::process::wait_for;
use berth_tests::tool;

use crate::load::{Load, PASS};

const SIZE_BYTES: u64 = 192 << 20;
/// Of each of fio's four jobs: a pass takes about half a minute.
const WRITE_RATE_BYTES: u64 = 2 << 20;
/// Short, so that silence is noticed soon: a minute has room for more troubles.
const CONFIG: &str = "[iscsi]\nping_interval = \"1s\"\nping_timeout = \"2s\"\n";

fn variable(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .with_context(|| format!("{name}={text} is not a whole number")),
        Err(_) => Ok(default),
    }
}

/// SplitMix64: the same seed gives the same troubles on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.next() % (to - from + 1)
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.between(from, to))
    }
}

#[derive(Debug, Clone, Copy)]
enum Trouble {
    /// `kill -9` of the target, then a new start.
    Kill,
    /// The target lives and does not serve.
    Suspend,
    Link(Fault),
}

impl Trouble {
    const KINDS: u64 = 9;

    fn draw(kind: u64, random: &mut Random) -> Self {
        match kind {
            0 => Self::Kill,
            1 => Self::Suspend,
            2 => Self::Link(Fault::Cut),
            3 => Self::Link(Fault::Unplug),
            4 => Self::Link(Fault::Delay(random.millis(50, 600))),
            5 => Self::Link(Fault::Throttle {
                bits_per_second: random.between(4, 24) as u32 * 1_000_000,
            }),
            6 => Self::Link(Fault::Loss {
                percent: random.between(1, 20) as u8,
            }),
            7 => Self::Link(Fault::Refuse),
            _ => Self::Link(Fault::Reset),
        }
    }

    /// How long it lasts: 1 to 15 s where the issue is silence, less in the first round so that a short run sees all.
    fn lasts(self, round: u64, random: &mut Random) -> Duration {
        match self {
            Self::Kill => random.millis(0, 3000),
            Self::Link(Fault::Reset) => Duration::ZERO,
            _ if round == 0 => random.millis(1000, 5000),
            Self::Link(Fault::Cut | Fault::Unplug) | Self::Suspend => random.millis(1000, 15_000),
            Self::Link(_) => random.millis(1000, 8000),
        }
    }

    fn begin(self, target: &mut dyn Mortal, link: &Link) -> Result<()> {
        match self {
            Self::Kill => target.kill(),
            Self::Suspend => target.suspend(),
            Self::Link(fault) => link.apply(fault),
        }
    }

    fn end(self, target: &mut dyn Mortal, link: &Link) -> Result<()> {
        match self {
            Self::Kill => target.revive(),
            Self::Suspend => target.resume(),
            Self::Link(fault) => link.heal(fault),
        }
    }

    fn kind(self, target: &dyn Mortal) -> &'static str {
        match self {
            Self::Kill => "kill -9",
            Self::Suspend => target.suspension(),
            Self::Link(fault) => fault.kind(),
        }
    }
}

const DEADLINE: Duration = Duration::from_secs(20);

/// One row of the table.
#[derive(Default)]
struct Row {
    count: u32,
    longest_lasting: Duration,
    longest_recovery: Duration,
    probes: Vec<Probe>,
}

fn print_table(name: &str, rows: &BTreeMap<&str, Row>) {
    let ms = |time: Duration| format!("{:.0}", time.as_secs_f64() * 1e3);
    println!(
        "{name}: how long a request of 4 KiB waited, from the start of a trouble until the first answer after its end"
    );
    println!(
        "  {:<10}{:>6}{:>14}{:>14}{:>10}{:>10}{:>17}",
        "trouble", "count", "lasted up to", "longest stall", "p99", "median", "recovery up to"
    );
    for (kind, row) in rows {
        println!(
            "  {kind:<10}{:>6}{:>11} ms{:>11} ms{:>7} ms{:>7} ms{:>14} ms",
            row.count,
            ms(row.longest_lasting),
            ms(percentile(&row.probes, 100)),
            ms(percentile(&row.probes, 99)),
            ms(percentile(&row.probes, 50)),
            ms(row.longest_recovery),
        );
    }
}

fn survives(name: &str, target: &mut dyn Mortal, network: &Network) -> Result<()> {
    let daemon = Berthd::start_with(CONFIG, target.netns())?;
    let result = trouble(name, target, network, &daemon);
    let log = daemon.log();
    // For whoever wants to know how it went.
    let kept = format!("{}/recovery-{name}.log", env!("CARGO_TARGET_TMPDIR"));
    std::fs::write(&kept, &log)?;
    result.with_context(|| format!("log of berthd: {kept}"))?;
    ensure!(!log.contains("panicked"), "{log}");
    daemon.stop()
}

fn trouble(name: &str, target: &mut dyn Mortal, network: &Network, daemon: &Berthd) -> Result<()> {
    let seconds = variable("BERTH_RECOVERY_SECONDS", 60)?;
    let seed = variable("BERTH_RECOVERY_SEED", 20_261_122)?;
    println!("{name}: {seconds} s of troubles, BERTH_RECOVERY_SEED={seed}");
    let mut random = Random(seed);
    let mut body = attach_body(target, Digests::Prefer);
    body["recovery_timeout_seconds"] = 120.into();
    daemon.attach_with("disk", &body)?;
    let mut load = Load::start(daemon, seed, WRITE_RATE_BYTES)?;
    load.go_on_for(Duration::from_secs(2))?;

    let started = Instant::now();
    let mut rows: BTreeMap<&str, Row> = BTreeMap::new();
    let mut round = 0;
    while round == 0 || started.elapsed() < Duration::from_secs(seconds) {
        let mut kinds: Vec<u64> = (0..Trouble::KINDS).collect();
        while !kinds.is_empty() && (round == 0 || started.elapsed() < Duration::from_secs(seconds))
        {
            let at = random.between(0, kinds.len() as u64 - 1) as usize;
            let trouble = Trouble::draw(kinds.swap_remove(at), &mut random);
            let lasts = trouble.lasts(round, &mut random);
            let number = random.between(0, network.links.len() as u64 - 1) as usize;
            let link = &network.links[number];
            let begun = Instant::now();
            trouble.begin(target, link)?;
            load.go_on_for(lasts)?;
            trouble.end(target, link)?;
            let ended = Instant::now();
            load.wait_answered_since(ended)
                .with_context(|| format!("{trouble:?} for {lasts:?}"))?;
            let recovery = ended.elapsed();
            let probes = load.prober.probes_since(begun);
            println!(
                "{:>6.1} s  {trouble:?} (link {number}) for {:.1} s: stall {:.2} s, recovery {:.2} s",
                (begun - started).as_secs_f64(),
                (ended - begun).as_secs_f64(),
                percentile(&probes, 100).as_secs_f64(),
                recovery.as_secs_f64()
            );
            let row = rows.entry(trouble.kind(target)).or_default();
            row.count += 1;
            row.longest_lasting = row.longest_lasting.max(ended - begun);
            row.longest_recovery = row.longest_recovery.max(recovery);
            row.probes.extend(probes);
            load.go_on_for(random.millis(500, 2500))?;
        }
        round += 1;
    }
    let done = load.finish()?;
    print_table(name, &rows);
    println!("{name}: {:.0?}: {done}", started.elapsed());

    let attachment = daemon.attachment("disk")?;
    ensure!(attachment["state"] == "attached", "{attachment:#}");
    println!("{name}: counters {}", attachment["counters"]);
    // The last word: what clients read is what the target has when berth is gone.
    let copy = tempfile::NamedTempFile::new()?;
    let path = copy.path().to_str().context("temporary path")?;
    tool::run("nbdcopy", &[&daemon.nbd_uri("disk"), path], PASS)?;
    daemon.detach("disk")?;
    let backing = target.backing().context("serves a file")?;
    ensure!(
        tool::sha256(copy.path(), PASS)? == tool::sha256(backing, PASS)?,
        "the file behind the LUN is not what was read over NBD"
    );
    Ok(())
}

#[test]
fn tgt_dies_and_its_link_breaks_under_load() -> Result<()> {
    let network = Network::new(1)?;
    let mut tgt = Tgt::start_on(Spec::mutual_chap(SIZE_BYTES), &network)?;
    survives("tgt", &mut tgt, &network)
}

#[test]
fn lio_dies_and_its_link_breaks_under_load() -> Result<()> {
    // A guest that is killed loses what it has not synced: rightly so with a write cache, but then nothing can be verified.
    let mut lio = Lio::start(Spec {
        durable: true,
        ..Spec::mutual_chap(SIZE_BYTES)
    })?;
    let network = lio.move_behind(1)?;
    survives("lio", &mut lio, &network)
}

/// Troubles of one link while the other serves, and deaths that both paths die: writes that were sent over a path that is lost
/// must not be overtaken by what goes over the other.
#[test]
fn tgt_with_two_paths_dies_and_its_links_break_under_load() -> Result<()> {
    let network = Network::new(2)?;
    let mut tgt = Tgt::start_on(Spec::mutual_chap(SIZE_BYTES), &network)?;
    survives("tgt-two-paths", &mut tgt, &network)
}

/// What the tests above rely on: with nothing to wait for, errors reach the clients, and the clients tell.
#[test]
fn errors_are_seen_by_fio_and_by_the_prober() -> Result<()> {
    let network = Network::new(1)?;
    let tgt = Tgt::start_on(Spec::open(SIZE_BYTES), &network)?;
    let daemon = Berthd::start_with(CONFIG, Some(network.node.name()))?;
    let mut body = attach_body(&tgt, Digests::Prefer);
    body["recovery_timeout_seconds"] = 0.into();
    daemon.attach_with("disk", &body)?;
    let Load {
        prober, mut pass, ..
    } = Load::start(&daemon, 1, WRITE_RATE_BYTES)?;
    network.links[0].apply(Fault::Cut)?;
    let failure = wait_for("the prober fails", DEADLINE, || {
        Ok(prober.answered_since(Instant::now()).err())
    })?;
    ensure!(
        format!("{failure:#}").contains("NBD error 5"),
        "{failure:#}"
    );
    let pass = pass.take().context("runs")?;
    let failure = pass.finish(DEADLINE).expect_err("fio fails");
    ensure!(
        format!("{failure:#}").contains("Input/output error"),
        "{failure:#}"
    );
    network.links[0].heal(Fault::Cut)
}

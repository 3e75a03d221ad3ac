//! Two nodes and one LUN that they fence with persistent reservations, on targets that others wrote: whoever takes over gets
//! the LUN while the other one writes, every late write is refused by the target and told as fenced, and the data is that of the
//! new owner.
//!
//! `BERTH_FENCE_ROUNDS` says how often (100).

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_tests::Berthd;
use berth_tests::berthd::{OTHER_INITIATOR, attach_body};
use berth_tests::net::{Fault, Network};
use berth_tests::peers::{Digests, Lio, Peer, Spec, Tgt};
use berth_tests::process::wait_for;
use berth_tests::raw_nbd::{CMD_READ, CMD_WRITE, RawClient};
use rustix::process::Signal;
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(30);
const NAME: &str = "disk";
const BLOCK_BYTES: u32 = 4096;
/// Blocks that both nodes write: few, so that a late write would hit what the new owner wrote.
const BLOCKS: u64 = 64;
/// Writes in flight; all to different blocks.
const DEPTH: u64 = 16;
/// Writes that the owner has answered before the other one comes.
const WARM_UP: u64 = 100;
/// Writes that the old owner still tries after the first refusal, if its connection lasts that long.
const LATE_WRITES: u32 = 64;
/// `NBD_EPERM`: not permitted, which is what a fenced write is.
const EPERM: u32 = 1;

fn rounds() -> Result<u32> {
    match std::env::var("BERTH_FENCE_ROUNDS") {
        Ok(text) => text.parse().context("BERTH_FENCE_ROUNDS"),
        Err(_) => Ok(100),
    }
}

/// What a block holds that `who` wrote in a round.
fn stamp(round: u32, who: u32, block: u64) -> Vec<u8> {
    let unit = [
        round.to_be_bytes(),
        who.to_be_bytes(),
        (block as u32).to_be_bytes(),
        (!round).to_be_bytes(),
    ];
    unit.concat().repeat(BLOCK_BYTES as usize / 16)
}

fn open(socket: &Path) -> Result<RawClient> {
    let mut client = RawClient::connect(socket, DEADLINE)?;
    client.go(NAME)?;
    Ok(client)
}

fn write(client: &mut RawClient, cookie: u64, block: u64, data: &[u8]) -> Result<()> {
    let offset = block * u64::from(BLOCK_BYTES);
    client.request(CMD_WRITE, cookie, offset, BLOCK_BYTES)?;
    Ok(client.0.write_all(data)?)
}

/// A write of the old owner: when it was sent, when it was answered and how.
struct Written {
    sent: Instant,
    answered: Instant,
    error: u32,
}

/// Keeps writing until it is refused or cut off.
struct Writer {
    acknowledged: Arc<AtomicU64>,
    thread: JoinHandle<Result<Vec<Written>>>,
}

impl Writer {
    fn start(node: &Berthd, round: u32, who: u32) -> Result<Self> {
        let mut client = open(&node.nbd_socket())?;
        let acknowledged = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&acknowledged);
        let thread = std::thread::spawn(move || -> Result<Vec<Written>> {
            let (mut sent, mut all, mut refused) = (BTreeMap::new(), Vec::new(), 0);
            let mut next = 0_u64;
            while refused < LATE_WRITES {
                // A connection that the daemon has closed takes no more; what was sent still counts.
                while sent.len() < DEPTH as usize {
                    let block = next % BLOCKS;
                    if write(&mut client, next, block, &stamp(round, who, block)).is_err() {
                        break;
                    }
                    sent.insert(next, Instant::now());
                    next += 1;
                }
                let Ok((error, cookie)) = client.reply() else {
                    break;
                };
                let at = sent.remove(&cookie).context("an answer to nothing")?;
                all.push(Written {
                    sent: at,
                    answered: Instant::now(),
                    error,
                });
                if error == 0 {
                    count.fetch_add(1, Ordering::Relaxed);
                } else {
                    refused += 1;
                }
            }
            Ok(all)
        });
        Ok(Self {
            acknowledged,
            thread,
        })
    }

    fn wait_warm(&self) -> Result<()> {
        wait_for("writes of the owner", DEADLINE, || {
            let enough = self.acknowledged.load(Ordering::Relaxed) >= WARM_UP;
            Ok(enough.then_some(()))
        })
    }

    fn join(self) -> Result<Vec<Written>> {
        self.thread
            .join()
            .map_err(|_| anyhow::anyhow!("the writer panicked"))?
    }
}

/// Writes every block, and fails unless each write succeeds.
fn write_all(node: &Berthd, round: u32, who: u32) -> Result<()> {
    let mut client = open(&node.nbd_socket())?;
    for block in 0..BLOCKS {
        write(&mut client, block, block, &stamp(round, who, block))?;
    }
    for _ in 0..BLOCKS {
        let (error, cookie) = client.reply()?;
        ensure!(error == 0, "block {cookie}: error {error}\n{}", node.log());
    }
    Ok(())
}

/// Reads every block, and fails unless each is as this node wrote it.
fn check_all(node: &Berthd, round: u32, who: u32, when: &str) -> Result<()> {
    let mut client = open(&node.nbd_socket())?;
    let mut data = vec![0; BLOCK_BYTES as usize];
    for block in 0..BLOCKS {
        let offset = block * u64::from(BLOCK_BYTES);
        client.request(CMD_READ, block, offset, BLOCK_BYTES)?;
        let (error, _) = client.reply()?;
        ensure!(error == 0, "{when}: block {block}: error {error}");
        client.0.read_exact(&mut data)?;
        ensure!(
            data == stamp(round, who, block),
            "{when}: round {round}, block {block} holds {:02x?}, which node {who} did not write",
            &data[..16]
        );
    }
    Ok(())
}

fn body(peer: &dyn Peer, takeover: bool) -> Value {
    let mut body = attach_body(peer, Digests::Prefer);
    body["fence"] = "reservation".into();
    body["takeover"] = takeover.into();
    body
}

fn reason_code(node: &Berthd) -> Result<Option<String>> {
    let attachment = node.attachment(NAME)?;
    let failed = attachment["state"] == "failed";
    let code = attachment["reason"]["code"].as_str();
    Ok(code.filter(|_| failed).map(str::to_owned))
}

/// What one takeover was like.
struct Told {
    took: Duration,
    in_flight: usize,
    refused: usize,
}

fn take_over(peer: &dyn Peer, owner: &Berthd, thief: &Berthd, round: u32) -> Result<Told> {
    let (old, new) = (round % 2, (round + 1) % 2);
    let writer = Writer::start(owner, round, old)?;
    writer.wait_warm()?;
    let asked = Instant::now();
    thief.attach_with(NAME, &body(peer, true))?;
    let taken = Instant::now();
    write_all(thief, round, new)?;
    check_all(thief, round, new, "at once")?;

    let written = writer.join()?;
    // Under way when the fence fell: refused, or carried out before and answered after.
    let under_way = |w: &&Written| w.sent < taken && (w.error != 0 || w.answered > taken);
    let in_flight = written.iter().filter(under_way);
    let in_flight = in_flight.count();
    ensure!(in_flight > 0, "no write was in flight\n{}", owner.log());
    let late = written.iter().filter(|w| w.sent > taken && w.error == 0);
    ensure!(
        late.count() == 0,
        "a write that was sent after the takeover was acknowledged\n{}",
        owner.log()
    );
    let refused: Vec<u32> = written
        .iter()
        .map(|w| w.error)
        .filter(|e| *e != 0)
        .collect();
    ensure!(!refused.is_empty(), "no write was refused\n{}", owner.log());
    ensure!(
        refused.iter().all(|error| *error == EPERM),
        "not all are told as fenced: {refused:?}\n{}",
        owner.log()
    );
    let code = wait_for("the old owner to know", DEADLINE, || reason_code(owner))?;
    ensure!(code == "fenced", "{code}\n{}", owner.log());
    check_all(thief, round, new, "after the last late write")?;
    owner.detach(NAME)?;
    Ok(Told {
        took: taken - asked,
        in_flight,
        refused: refused.len(),
    })
}

fn duel(peer: &dyn Peer) -> Result<()> {
    let rounds = rounds()?;
    let started = Instant::now();
    let nodes = [
        Berthd::start_for(peer)?,
        Berthd::start_as(OTHER_INITIATOR, peer)?,
    ];
    nodes[0].attach_with(NAME, &body(peer, false))?;
    let mut told = Vec::new();
    for round in 0..rounds {
        let (owner, thief) = (&nodes[round as usize % 2], &nodes[(round as usize + 1) % 2]);
        if round == 0 {
            refused_without_takeover(peer, owner, thief)?;
        }
        let context = || format!("round {round}\n{}", thief.log());
        told.push(take_over(peer, owner, thief, round).with_context(context)?);
    }
    let longest = told.iter().map(|t| t.took).max().unwrap_or_default();
    let in_flight: usize = told.iter().map(|t| t.in_flight).sum();
    let refused: usize = told.iter().map(|t| t.refused).sum();
    println!(
        "{rounds} takeovers in {:?}: longest attach {longest:?}; {in_flight} writes were under way when the fence fell, \
         {refused} were refused",
        started.elapsed()
    );
    // Given back by the last owner, it is free for the other one, without any takeover.
    let (last, other) = (
        &nodes[rounds as usize % 2],
        &nodes[(rounds as usize + 1) % 2],
    );
    last.detach(NAME)?;
    other.attach_with(NAME, &body(peer, false))?;
    other.detach(NAME)?;
    let [a, b] = nodes;
    a.stop()?;
    b.stop()
}

/// Whoever does not ask for a takeover gets nothing, and the owner notices nothing.
fn refused_without_takeover(peer: &dyn Peer, owner: &Berthd, thief: &Berthd) -> Result<()> {
    write_all(owner, 0, 0)?;
    let path = format!("/v1/attachments/{NAME}");
    let answer = thief.request("PUT", &path, Some(&body(peer, false)), DEADLINE)?;
    ensure!(answer.status == 412, "{}", answer.text());
    let problem = answer.json()?;
    ensure!(problem["code"] == "attached-elsewhere", "{problem:#}");
    let key = owner.attachment(NAME)?["reservation_key"].clone();
    ensure!(
        key.is_string() && problem["holder"] == key,
        "{problem:#} {key}"
    );
    thief.detach(NAME)?;
    check_all(owner, 0, 0, "after an attach that was refused")
}

/// The owner's daemon dies and comes back: it goes on where it was. Its unit is taken over while it is away: it does not
/// come back by itself.
fn restarts(peer: &dyn Peer) -> Result<()> {
    let mut owner = Berthd::start_for(peer)?;
    let other = Berthd::start_as(OTHER_INITIATOR, peer)?;
    owner.attach_with(NAME, &body(peer, false))?;
    for (round, signal) in [(1, Signal::KILL), (2, Signal::TERM)] {
        write_all(&owner, round, 0)?;
        owner.restart(signal)?;
        // The same wish finds the attachment and waits until it is there.
        owner.attach_with(NAME, &body(peer, false))?;
        check_all(&owner, round, 0, "after a restart")?;
        write_all(&owner, round + 10, 0)?;
    }
    for signal in [Signal::KILL, Signal::TERM] {
        other.attach_with(NAME, &body(peer, true))?;
        write_all(&other, 20, 1)?;
        owner.restart(signal)?;
        let code = wait_for("the old owner to know", DEADLINE, || reason_code(&owner))?;
        ensure!(code == "fenced", "{code}\n{}", owner.log());
        check_all(&other, 20, 1, "after the old owner came back")?;
        // Not by a restart either.
        owner.restart(signal)?;
        let code = wait_for("the old owner to know", DEADLINE, || reason_code(&owner))?;
        ensure!(code == "fenced", "{code}\n{}", owner.log());
        other.detach(NAME)?;
        // Who asks anew gets what is free.
        owner.attach_with(NAME, &body(peer, false))?;
        check_all(&owner, 20, 1, "in the hands of the old owner")?;
    }
    owner.detach(NAME)?;
    owner.stop()?;
    other.stop()
}

/// Sessions are lost on every path, in two ways: both ends learn of it, or only ours. A target may take what comes back for
/// another nexus; the unit is ours all the same, and nothing of it stays behind after the detach.
fn reset_links(peer: &dyn Peer, network: &Network) -> Result<()> {
    let owner = Berthd::start_for(peer)?;
    let other = Berthd::start_as(OTHER_INITIATOR, peer)?;
    owner.attach_with(NAME, &body(peer, false))?;
    for round in 0..6 {
        let lost = lost_sessions(&owner)?;
        let fault = if round % 2 == 0 {
            Fault::Reset
        } else {
            Fault::Refuse
        };
        for link in &network.links {
            link.apply(fault)?;
        }
        wait_for("loss of the sessions", DEADLINE, || {
            // An idle session is pinged, which meets the reset.
            let lost_all = lost_sessions(&owner)? >= lost + network.links.len() as u64;
            Ok(lost_all.then_some(()))
        })?;
        for link in &network.links {
            link.heal(fault)?;
        }
        // It waits for a session, and for the registration on it.
        write_all(&owner, round, 0)?;
        check_all(&owner, round, 0, "after a reset")?;
        let all_up = || {
            let attachment = owner.attachment(NAME)?;
            let paths = attachment["paths"].as_array().cloned().unwrap_or_default();
            let up = paths.iter().filter(|path| path["state"] == "up").count();
            Ok((up == network.links.len()).then_some(()))
        };
        wait_for("all paths", DEADLINE, all_up)?;
    }
    let path = format!("/v1/attachments/{NAME}");
    let answer = other.request("PUT", &path, Some(&body(peer, false)), DEADLINE)?;
    ensure!(answer.status == 412, "{}", answer.text());
    other.detach(NAME)?;
    check_all(&owner, 5, 0, "at the end")?;
    owner.detach(NAME)?;
    other.attach_with(NAME, &body(peer, false))?;
    other.detach(NAME)?;
    owner.stop()?;
    other.stop()
}

fn lost_sessions(node: &Berthd) -> Result<u64> {
    let attachment = node.attachment(NAME)?;
    let lost = &attachment["counters"]["recovery"]["sessions_lost"];
    lost.as_u64().context("sessions_lost")
}

const SIZE_BYTES: u64 = 16 << 20;

#[test]
fn tgt_a_fence_outlives_lost_sessions_on_two_paths() -> Result<()> {
    let network = Network::new(2)?;
    let tgt = Tgt::start_on(Spec::open(SIZE_BYTES), &network)?;
    reset_links(&tgt, &network)
}

#[test]
fn lio_a_fence_outlives_lost_sessions() -> Result<()> {
    let mut lio = Lio::start(Spec::open(SIZE_BYTES))?;
    let network = lio.move_behind(1)?;
    reset_links(&lio, &network)
}

#[test]
fn tgt_two_nodes_take_over_from_each_other() -> Result<()> {
    duel(&Tgt::start(Spec::open(SIZE_BYTES))?)
}

#[test]
fn lio_two_nodes_take_over_from_each_other() -> Result<()> {
    duel(&Lio::start(Spec::open(SIZE_BYTES))?)
}

#[test]
fn tgt_a_daemon_that_restarts_goes_on_unless_it_was_fenced() -> Result<()> {
    restarts(&Tgt::start(Spec::open(SIZE_BYTES))?)
}

#[test]
fn lio_a_daemon_that_restarts_goes_on_unless_it_was_fenced() -> Result<()> {
    restarts(&Lio::start(Spec::open(SIZE_BYTES))?)
}

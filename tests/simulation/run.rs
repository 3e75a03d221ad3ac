//! One run: from a plan to a verdict.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Once;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, timeout};

use super::array::Array;
use super::capture::{self, Capture};
use super::check;
use super::fault::{World, slowness};
use super::history::{Entry, History, Outcome, parse_cell};
use super::net::Net;
use super::node::Node;
use super::plan::{CELL_BYTES, Kind, Plan, PlannedRequest};
use super::rng::Rng;
use super::trace;

/// Once everything is well again, every request must have its answer within this time: a partition's resends,
/// the longest pause between attempts, a login, a command and its escalation.
const ANSWERS_WITHIN: Duration = Duration::from_secs(180);
/// A detach in good order ends within this time.
const DETACH_WITHIN: Duration = Duration::from_secs(60);
/// Cells of one read of the last look at the disk.
const LAST_LOOK_CELLS: u64 = 256;

/// What came of a run.
#[derive(Debug)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// What must not be; empty is good.
    pub violations: Vec<String>,
    /// Of everything that happened: the same for the same plan.
    pub hash: u64,
    /// What was hit, and how often.
    pub counts: BTreeMap<String, u64>,
    /// What happened, if it was asked for.
    pub lines: Vec<String>,
    /// Requests issued.
    pub requests: u64,
}

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    static WATCHES_PANICS: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Tasks swallow the panics of their futures; the hook does not.
fn watch_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if WATCHES_PANICS.get() {
                PANICS.with_borrow_mut(|panics| panics.push(info.to_string()));
            } else {
                before(info);
            }
        }));
    });
    WATCHES_PANICS.set(true);
    PANICS.take();
}

/// Runs a plan. `keep`: keep the text of what happens.
#[must_use]
pub fn run(plan: &Plan, keep: bool) -> Report {
    berth_iscsi::mutation::plant(plan.mutation);
    watch_panics();
    let history = Rc::new(RefCell::new(History::default()));
    let seed = plan.seed;
    let (hash, lines, mut counts) =
        tracing::subscriber::with_default(Capture, || in_runtime(keep, simulate(plan, &history)));
    WATCHES_PANICS.set(false);
    berth_iscsi::mutation::plant(None);
    let mut history = history.take();
    for panic in PANICS.take() {
        history.violations.push(format!("panic: {panic}"));
    }
    check::check(&mut history, plan.cells());
    judge_answers(plan, &mut history, &mut counts);
    counts.extend(capture::take_counts());
    Report {
        seed,
        violations: history.violations,
        hash,
        counts,
        lines,
        requests: history.entries.len() as u64,
    }
}

/// The hash of what happened, its text, its counters.
pub(super) type Traced = (u64, Vec<String>, BTreeMap<String, u64>);

/// Runs to its end what happens in a world of its own, whose clock is virtual.
pub(super) fn in_runtime(keep: bool, work: impl Future<Output = ()>) -> Traced {
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without sockets needs nothing");
    let local = LocalSet::new();
    let result = catch_unwind(AssertUnwindSafe(|| {
        local.block_on(&runtime, async {
            trace::begin(keep);
            work.await;
        });
    }));
    drop(result); // The hook has its message.
    // What is left is dropped inside of the runtime, as it was born.
    runtime.block_on(async { drop(local) });
    let (hash, lines, counts) = trace::end();
    let counts = counts
        .into_iter()
        .map(|(name, n)| (name.to_owned(), n))
        .collect();
    (hash, lines, counts)
}

async fn simulate(plan: &Plan, history: &Rc<RefCell<History>>) {
    let plan = Rc::new(plan.clone());
    let net = Net::new(Rng::new(plan.seed, 4), plan.nodes, plan.array.groups.len());
    let array = Array::start(&net, &plan.array);
    let nodes: Vec<Node> = (0..plan.nodes)
        .map(|number| Node::new(number, Rc::clone(&plan), &net, history))
        .collect();
    let world = World {
        plan: Rc::clone(&plan),
        net,
        array: array.clone(),
        nodes: nodes.clone(),
        history: Rc::clone(history),
    };
    array.with(|portal| portal.set_default_faults(slowness(plan.slow)));
    let begin = Instant::now();
    for (number, node) in nodes.iter().enumerate() {
        let node = node.clone();
        let at = begin + plan.takeover.filter(|_| number > 0).unwrap_or_default();
        tokio::task::spawn_local(async move {
            tokio::time::sleep_until(at).await;
            node.start();
        });
    }
    let mut clients = JoinSet::new();
    for (number, node) in nodes.iter().enumerate() {
        for client in 0..plan.clients {
            let requests: Vec<PlannedRequest> = plan
                .requests
                .iter()
                .filter(|request| request.node == number && request.client == client)
                .copied()
                .collect();
            clients.spawn_local(node.clone().client(requests, begin));
        }
    }
    let mut faults = JoinSet::new();
    for fault in &plan.faults {
        faults.spawn_local(world.clone().inflict(*fault, begin));
    }
    while faults.join_next().await.is_some() {}
    world.heal();
    let all = async { while clients.join_next().await.is_some() {} };
    if timeout(ANSWERS_WITHIN, all).await.is_err() {
        report_hang(history, &nodes);
    }
    let last_node = &nodes[nodes.len() - 1];
    for node in &nodes {
        node.count_recovery().await;
    }
    if !look_at_everything(&plan, last_node).await {
        report_hang(history, &nodes);
    }
    if !last_node.detach(DETACH_WITHIN).await {
        let text = format!("the detach took longer than {DETACH_WITHIN:?}");
        history.borrow_mut().violate(text);
    }
    for node in &nodes {
        node.crash().await;
    }
    look_at_the_disk(&plan, &array, history);
}

/// Reads the whole disk; whether it came to an end.
async fn look_at_everything(plan: &Plan, node: &Node) -> bool {
    let mut requests = Vec::new();
    let mut cell = 0;
    while cell < plan.cells() {
        let cells = LAST_LOOK_CELLS.min(plan.cells() - cell);
        requests.push(PlannedRequest {
            number: usize::MAX,
            at: Duration::ZERO,
            node: plan.nodes - 1,
            client: 0,
            kind: Kind::Read,
            cell,
            cells,
            fua: false,
        });
        cell += cells;
    }
    let look = async {
        node.is_up().await;
        node.be_patient().await;
        node.clone().client(requests, Instant::now()).await;
    };
    timeout(ANSWERS_WITHIN, look).await.is_ok()
}

fn report_hang(history: &Rc<RefCell<History>>, nodes: &[Node]) {
    let history = &mut *history.borrow_mut();
    let open: Vec<String> = history
        .entries
        .iter()
        .enumerate()
        .filter(|(_, entry)| entry.outcome == Outcome::Pending)
        .map(|(index, entry)| {
            format!(
                "#{} ({:?}) since {} ms",
                index + 1,
                entry.request.kind,
                entry.start_ms
            )
        })
        .collect();
    let up = nodes.iter().filter(|node| node.volume().is_some()).count();
    let refusal = nodes.iter().find_map(Node::refusal).unwrap_or_default();
    let text = format!(
        "hang: {} requests have no answer {ANSWERS_WITHIN:?} after the last fault ({} of {} volumes are up; \
         last refusal: {refusal:?}): {}",
        open.len(),
        up,
        nodes.len(),
        open.into_iter().take(4).collect::<Vec<_>>().join(", "),
    );
    history.violate(text);
}

/// After a detach everything is durable: a power cut leaves what was read last, or a write whose fate was open
/// then. The disk is one more read, to be judged with the others.
fn look_at_the_disk(plan: &Plan, array: &Array, history: &Rc<RefCell<History>>) {
    let history = &mut *history.borrow_mut();
    if array.decoy_writes() > 0 {
        let text = format!(
            "{} writes went to a unit of another identity",
            array.decoy_writes()
        );
        history.violate(text);
    }
    if !history.violations.is_empty() {
        return;
    }
    array.stop(Some((&mut Rng::new(0, 0), 0)));
    let contents = array.contents();
    let reads = history.entries.len() - plan.cells().div_ceil(LAST_LOOK_CELLS) as usize;
    let mut wrong = None;
    let mut on_the_disk = Vec::new();
    for entry in &history.entries[reads..] {
        if entry.outcome != Outcome::Done {
            wrong = Some(format!(
                "a read failed although everything was well: {:?}",
                entry.outcome
            ));
            break;
        }
        let now = trace::tick();
        let mut after = Entry {
            start: now,
            end: now,
            found: Vec::new(),
            ..entry.clone()
        };
        for (cell, value) in (entry.request.cell..).zip(&entry.found) {
            let at = (cell * CELL_BYTES) as usize;
            let on_disk = parse_cell(cell, &contents[at..at + CELL_BYTES as usize]);
            match on_disk {
                Some(value) => after.found.push(value),
                None => {
                    wrong = Some(format!(
                        "cell {cell}: the disk has garbage after the detach, the last read found #{value}"
                    ));
                    break;
                }
            }
        }
        on_the_disk.push(after);
    }
    match wrong {
        Some(text) => history.violate(text),
        None => history.entries.extend(on_the_disk),
    }
}

/// Whether answers came as they had to, and how.
fn judge_answers(plan: &Plan, history: &mut History, counts: &mut BTreeMap<String, u64>) {
    let may_fail = plan.may_fail_requests();
    let mut violations = Vec::new();
    for (index, entry) in history.entries.iter().enumerate() {
        let took_ms = entry.end_ms.saturating_sub(entry.start_ms);
        let name = match &entry.outcome {
            Outcome::Pending => continue,
            Outcome::Done if took_ms >= 1_000 => "client: done after a stall of more than 1 s",
            Outcome::Done => "client: done",
            Outcome::Cut => "client: cut off",
            Outcome::Failed(errno) => {
                // The first node loses the volume to the second.
                let moved = plan.takeover.is_some_and(|at| {
                    entry.request.node == 0 && u128::from(entry.end_ms) >= at.as_millis()
                });
                if !may_fail && !moved && violations.len() < 4 {
                    violations.push(format!(
                        "#{} ({:?}) failed with {errno} after {took_ms} ms, and nothing gave reason for it",
                        index + 1,
                        entry.request.kind
                    ));
                }
                "client: failed"
            }
        };
        *counts.entry(name.to_owned()).or_default() += 1;
    }
    history.violations.append(&mut violations);
}

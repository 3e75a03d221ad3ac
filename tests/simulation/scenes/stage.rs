//! What a scene needs: a world without faults of its own, and short words for what happens in it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use berth_api::types::PathState;
use berth_iscsi::login::{LoginFaults, Offer};
use berth_iscsi::name::TargetAddress;
use berth_iscsi::target::faults::{CommandFault, FaultPlan, Filter, LoginFault, Rule};
use berth_iscsi::target::{ConnectionId, PortalSettings};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{Instant, sleep, timeout};

use super::super::array::{Array, ArraySpec};
use super::super::capture;
use super::super::check;
use super::super::history::{Entry, History, Outcome, parse_cell};
use super::super::net::{Net, portal_name};
use super::super::node::Node;
use super::super::plan::{CELL_BYTES, Kind, Plan, PlannedRequest};
use super::super::rng::Rng;
use super::super::run::in_runtime;
use super::super::trace;

/// Virtual time within which anything of a scene must come about.
const SOON: Duration = Duration::from_secs(60);
/// Blocks of the disk, of 512 bytes.
pub(super) const BLOCKS: u64 = 64;
const CELLS_PER_BLOCK: u64 = 512 / CELL_BYTES;
pub(super) const WRITE_16: u8 = 0x8a;

/// Two portals in two groups, a daemon with one NBD client; nothing goes wrong by itself.
pub(super) fn plain() -> Plan {
    let mut plan = Plan::new(0);
    plan.requests.clear();
    plan.faults.clear();
    plan.nodes = 1;
    plan.clients = 1;
    plan.takeover = None;
    plan.slow = None;
    plan.offer = Offer::default();
    plan.ping = Duration::from_secs(1);
    plan.command_timeout = Duration::from_secs(30);
    plan.recovery_timeout = None;
    plan.stale_session_timeout = None;
    plan.queue_depth_max = 32;
    plan.array = ArraySpec {
        block_bytes: 512,
        size_bytes: BLOCKS * 512,
        write_cache: false,
        thin: false,
        groups: vec![1, 2],
        alua: true,
        transfer_max_bytes: 64 << 10,
        settings: PortalSettings::default(),
    };
    plan
}

/// What a scene is played on.
pub(super) struct Stage {
    pub(super) net: Net,
    pub(super) array: Array,
    pub(super) nodes: Vec<Node>,
    history: Rc<RefCell<History>>,
}

/// Plays a scene; then the history must be one of a disk. Returns what was counted.
pub(super) fn play(plan: Plan, scene: impl AsyncFnOnce(&Stage)) -> BTreeMap<String, u64> {
    let history = Rc::new(RefCell::new(History::default()));
    let cells = plan.cells();
    let (_, lines, mut counts) = tracing::subscriber::with_default(capture::Capture, || {
        in_runtime(true, async {
            let plan = Rc::new(plan);
            let net = Net::new(Rng::new(plan.seed, 4), plan.nodes, plan.array.groups.len());
            let array = Array::start(&net, &plan.array);
            let nodes: Vec<Node> = (0..plan.nodes)
                .map(|number| Node::new(number, Rc::clone(&plan), &net, &history))
                .collect();
            let stage = Stage {
                net,
                array,
                nodes,
                history: Rc::clone(&history),
            };
            scene(&stage).await;
            for node in &stage.nodes {
                node.count_recovery().await;
                node.crash().await;
            }
            trace::line(format_args!("the scene is over"));
        })
    });
    counts.extend(capture::take_counts());
    let story = lines.join("\n");
    assert!(
        story.ends_with("the scene is over"),
        "it broke off:\n{story}"
    );
    let history = &mut *history.borrow_mut();
    check::check(history, cells);
    assert_eq!(history.violations, [""; 0], "{story}");
    counts
}

impl Stage {
    /// Starts the first daemon and waits until all of its paths are up.
    pub(super) async fn begin(&self) {
        self.nodes[0].start();
        self.all_paths_up().await;
    }

    pub(super) async fn all_paths_up(&self) {
        let all_up = async {
            self.nodes[0].is_up().await;
            let volume = self.nodes[0].volume().expect("it is up");
            let mut status = volume.status();
            let up = status
                .wait_for(|status| status.paths.iter().all(|path| path.state == PathState::Up));
            up.await.expect("the volume lives");
        };
        timeout(SOON, all_up).await.expect("every path comes up");
    }

    /// Issues a write of one block.
    pub(super) fn write(&self, block: u64) -> JoinHandle<()> {
        self.issue(Kind::Write, block)
    }

    pub(super) fn issue(&self, kind: Kind, block: u64) -> JoinHandle<()> {
        self.issue_cells(kind, block * CELLS_PER_BLOCK, CELLS_PER_BLOCK)
    }

    /// Issues a request of so many cells; a block has several.
    pub(super) fn issue_cells(&self, kind: Kind, cell: u64, cells: u64) -> JoinHandle<()> {
        let request = PlannedRequest {
            number: 0,
            at: Duration::ZERO,
            node: 0,
            client: 0,
            kind,
            cell,
            cells,
            fua: false,
        };
        spawn_local(self.nodes[0].clone().client(vec![request], Instant::now()))
    }

    /// Issues a request and waits for its answer, which must be success.
    pub(super) async fn done(&self, kind: Kind, block: u64) {
        self.answered(self.issue(kind, block)).await;
    }

    /// Waits for a request; it and all before it must have gone well.
    pub(super) async fn answered(&self, request: JoinHandle<()>) {
        let answer = timeout(SOON, request).await;
        answer.expect("an answer in time").expect("no panic");
        let is_bad = |entry: &&Entry| !matches!(entry.outcome, Outcome::Done | Outcome::Pending);
        let history = self.history.borrow();
        assert_eq!(
            history
                .entries
                .iter()
                .find(is_bad)
                .map(|entry| &entry.outcome),
            None
        );
    }

    /// Requests that ended well so far.
    pub(super) fn count_done(&self) -> usize {
        let history = self.history.borrow();
        let done = |entry: &&Entry| matches!(entry.outcome, Outcome::Done);
        history.entries.iter().filter(done).count()
    }

    /// The value of a block's first cell on the disk.
    pub(super) fn on_disk(&self, block: u64) -> Option<u64> {
        let at = (block * 512) as usize;
        let bytes = &self.array.contents()[at..at + CELL_BYTES as usize];
        parse_cell(block * CELLS_PER_BLOCK, bytes)
    }

    /// Live connections to a portal, the oldest first.
    pub(super) fn connections(&self, portal: usize) -> Vec<usize> {
        self.net.live(None, Some(portal))
    }

    fn at_array(&self, wire: usize) -> ConnectionId {
        self.array.connection_of(wire).expect("it was accepted")
    }

    /// The target does this to commands of a connection.
    pub(super) fn spoil(&self, wire: usize, scsi_opcode: u8, times: u32, fault: CommandFault) {
        let plan = FaultPlan::command(Filter::scsi(scsi_opcode), times, fault);
        let id = self.at_array(wire);
        self.array.with(|portal| portal.set_faults(id, plan));
    }

    /// The next login is redirected.
    pub(super) fn redirect_next_login(&self, to: usize) {
        let address = TargetAddress {
            portal: portal_name(to),
            tpgt: None,
        };
        let faults = LoginFaults {
            redirect: Some((address, false)),
            ..LoginFaults::default()
        };
        self.array.spoil_login(
            "login redirected",
            FaultPlan::login(LoginFault::Machine(faults)),
        );
    }

    /// Virtual time passes.
    pub(super) async fn pass(&self, ms: u64) {
        sleep(Duration::from_millis(ms)).await;
    }
}

/// A rule for a SCSI operation code.
pub(super) fn on_scsi(opcode: u8, times: u32, fault: CommandFault) -> Rule<CommandFault> {
    Rule::new(Filter::scsi(opcode), times, fault)
}

//! Fencing against a unit of the target role, with several nodes and paths, each step failing in turn.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use berth_iobuf::Payload;
use berth_iscsi::pdu::Residual;
use berth_iscsi::scsi::cdb::{Caching, PrOutAction};
use berth_iscsi::scsi::{Cdb, ScsiStatus};
use berth_iscsi::session::{TaskOutcome, Transfer};
use berth_iscsi::target::disk::RamDisk;
use berth_iscsi::target::lu::{LogicalUnit, LuConfig};
use berth_iscsi::target::{Nexus, ScsiExecutor as _, ScsiReply};
use berth_iscsi::types::Isid;

use super::*;
use crate::block::Error;

type Unit = Rc<RefCell<LogicalUnit>>;

const OUT: u8 = 0x5f;
const PREEMPT_AND_ABORT: u8 = PrOutAction::PreemptAndAbort as u8;

/// One path of one node to the unit.
struct Path {
    unit: Unit,
    nexus: Nexus,
    /// PERSISTENT RESERVE OUT commands sent.
    outs: Cell<u32>,
    /// With this one the session is lost; before or after it was carried out.
    lose: Cell<Option<(u32, bool)>>,
    lost: Cell<bool>,
    /// Answers that the unit gives before it looks at any command.
    answers: RefCell<VecDeque<ScsiReply>>,
    /// The unit is as tgt is: no PREEMPT AND ABORT, no APTPL.
    modest: bool,
    /// Done once, just before the PERSISTENT RESERVE OUT with this number.
    meanwhile: RefCell<Option<(u32, Act)>>,
}

type Act = Box<dyn FnOnce()>;

impl Path {
    fn new(unit: &Unit, node: &str, path: u8) -> Self {
        let nexus = Nexus {
            initiator: format!("iqn.2026-11.example:{node}").into(),
            isid: Isid([0x80, 0, 0, 0, 0, path]),
            target: "iqn.2026-11.example:target".into(),
            portal_group: 1,
        };
        unit.borrow_mut().nexus_begins(&nexus, false);
        Self {
            unit: Rc::clone(unit),
            nexus,
            outs: Cell::new(0),
            lose: Cell::new(None),
            lost: Cell::new(false),
            answers: RefCell::default(),
            modest: true,
            meanwhile: RefCell::default(),
        }
    }

    /// The same nexus after its session was reinstated.
    fn reinstate(&self) {
        let mut unit = self.unit.borrow_mut();
        unit.nexus_ends(&self.nexus);
        unit.nexus_begins(&self.nexus, true);
        self.lost.set(false);
        self.lose.set(None);
    }

    fn raw(&self, cdb: &Cdb, data: &[u8]) -> ScsiReply {
        let data = Payload::from(data.to_vec());
        self.unit
            .borrow_mut()
            .execute(&self.nexus, cdb.as_bytes(), &data)
    }

    fn can_write(&self) -> bool {
        let cdb = Cdb::write10(0, 1, Caching::NONE);
        let mut reply = self.raw(&cdb, &[7; 512]);
        while reply.status == 2 {
            reply = self.raw(&cdb, &[7; 512]); // a unit attention
        }
        match reply.status {
            0 => true,
            0x18 => false,
            status => panic!("status {status:#x}"),
        }
    }

    fn is_registered(&self) -> bool {
        self.unit.borrow().registered_key(&self.nexus).is_some()
    }
}

impl Execute for Path {
    async fn execute(&self, cdb: Cdb, transfer: Transfer) -> Result<TaskOutcome, Error> {
        tokio::task::yield_now().await;
        if self.lost.get() {
            return Err(Error::Unavailable);
        }
        let out = cdb.as_bytes()[0] == OUT;
        let mut number = 0;
        if out {
            number = self.outs.get() + 1;
            self.outs.set(number);
            let due = matches!(&*self.meanwhile.borrow(), Some((at, _)) if *at == number);
            if due && let Some((_, act)) = self.meanwhile.take() {
                act();
            }
        }
        let losing = self.lose.get().filter(|(at, _)| out && *at == number);
        if let Some((_, false)) = losing {
            self.lost.set(true);
            return Err(Error::Unavailable);
        }
        let data = match transfer {
            Transfer::Write(data) => data.to_bytes().to_vec(),
            _ => Vec::new(),
        };
        let scripted = self.answers.borrow_mut().pop_front();
        let refused = self.modest && out && cdb.as_bytes()[1] & 0x1f == PREEMPT_AND_ABORT;
        let reply = match scripted {
            Some(reply) => reply,
            None if refused => ScsiReply::check_condition(5, 0x24, 0),
            None => self.raw(&cdb, &data),
        };
        if losing.is_some() {
            self.lost.set(true);
            return Err(Error::Unavailable);
        }
        Ok(TaskOutcome::Completed {
            status: reply.status,
            status_qualifier: 0,
            sense: reply.sense,
            data: reply.data_in,
            residual: Residual::None,
        })
    }
}

fn unit() -> Unit {
    let disk = RamDisk::new(1 << 20);
    Rc::new(RefCell::new(LogicalUnit::new(
        LuConfig::new("serial-1"),
        Box::new(disk),
    )))
}

fn key(node: &str, epoch: u32) -> Key {
    Key::new(NodeId::of(node), epoch)
}

async fn status(path: &Path) -> Status {
    Status::read(path).await.expect("the unit answers")
}

async fn assert_held(path: &Path, key: Key) {
    let status = status(path).await;
    assert!(status.is_held_by(key), "{status:?}");
    assert!(status.keys.iter().all(|one| *one == key), "{status:?}");
    assert!(path.can_write());
}

#[tokio::test]
async fn a_free_unit_becomes_ours_and_others_cannot_write() {
    let unit = unit();
    let (a, b) = (Path::new(&unit, "a", 1), Path::new(&unit, "b", 1));
    assert!(b.can_write());
    let held = admit(&a, key("a", 1), Claim::Free).await.expect("free");
    assert!(!held.persistent, "the unit has no APTPL");
    assert!(!held.must_clear_task_set);
    assert_held(&a, key("a", 1)).await;
    assert!(!b.can_write());
    release(&a, key("a", 1)).await.expect("ours");
    let status = status(&b).await;
    assert_eq!((status.keys, status.holder), (vec![], None));
    assert!(b.can_write());
}

#[tokio::test]
async fn a_unit_of_another_is_refused_and_left_as_it_was() {
    let unit = unit();
    let (a, b) = (Path::new(&unit, "a", 1), Path::new(&unit, "b", 1));
    let _ = admit(&a, key("a", 1), Claim::Free).await.expect("free");
    let before = status(&a).await;
    let error = admit(&b, key("b", 1), Claim::Free).await.expect_err("held");
    let keys = vec![key("a", 1)];
    assert_eq!(error, FenceError::HeldBy { keys });
    assert!(error.to_string().contains(&key("a", 1).to_string()));
    assert_eq!(b.outs.get(), 0, "nothing was changed");
    assert_eq!(status(&a).await, before);
    assert_held(&a, key("a", 1)).await;
}

#[tokio::test]
async fn a_takeover_fences_the_other_at_the_unit_and_it_learns_so() {
    for modest in [false, true] {
        let unit = unit();
        let (a1, a2) = (Path::new(&unit, "a", 1), Path::new(&unit, "a", 2));
        let mut b = Path::new(&unit, "b", 1);
        b.modest = modest;
        let (old, new) = (key("a", 1), key("b", 1));
        let _ = admit(&a1, old, Claim::Free).await.expect("free");
        readmit(&a2, old).await.expect("a second path");
        let held = admit(&b, new, Claim::Takeover).await.expect("taken over");
        // Without PREEMPT AND ABORT what the other had under way may still be carried out.
        assert_eq!(held.must_clear_task_set, modest);
        assert_held(&b, new).await;
        for path in [&a1, &a2] {
            assert!(!path.can_write());
            let by = vec![new];
            let fenced = FenceError::Fenced(Fenced::TakenOver { by });
            assert_eq!(verify(path, old).await, Err(fenced.clone()));
            path.reinstate();
            assert_eq!(readmit(path, old).await, Err(fenced.clone()));
            assert!(fenced.is_final());
            // Neither can it come back as what it was before a restart.
            let again = admit(path, key("a", 2), Claim::Resume).await;
            assert_eq!(again.expect_err("moved"), fenced);
            assert!(!path.is_registered() && !path.can_write());
        }
        assert_held(&b, new).await;
    }
}

#[tokio::test]
async fn after_a_crash_the_unit_is_still_ours_whatever_the_claim() {
    for claim in [Claim::Free, Claim::Resume, Claim::Takeover] {
        let unit = unit();
        let (a1, a2) = (Path::new(&unit, "a", 1), Path::new(&unit, "a", 2));
        let _ = admit(&a1, key("a", 1), Claim::Free).await.expect("free");
        readmit(&a2, key("a", 1)).await.expect("a second path");
        // The other path comes up first this time; the old registrations go.
        a2.reinstate();
        let _ = admit(&a2, key("a", 2), claim).await.expect("ours");
        assert_held(&a2, key("a", 2)).await;
        assert!(!a1.is_registered());
        a1.reinstate();
        readmit(&a1, key("a", 2)).await.expect("ours");
        assert_held(&a1, key("a", 2)).await;
    }
}

#[tokio::test]
async fn a_newer_life_of_this_node_fences_an_older_one() {
    let unit = unit();
    let (a1, a2) = (Path::new(&unit, "a", 1), Path::new(&unit, "a", 2));
    let _ = admit(&a1, key("a", 5), Claim::Free).await.expect("free");
    for claim in [Claim::Free, Claim::Resume, Claim::Takeover] {
        let error = admit(&a2, key("a", 4), claim).await.expect_err("older");
        let by = key("a", 5);
        assert_eq!(error, FenceError::Fenced(Fenced::Outdated { by }));
    }
    assert_eq!(a2.outs.get(), 0);
    assert_held(&a1, key("a", 5)).await;
}

#[tokio::test]
async fn what_is_gone_is_not_taken_back() {
    // The unit lost its registrations, or somebody had it in between: nobody can tell.
    for cleared_by_reset in [true, false] {
        let (mut memory, ours, next) = (unit(), key("a", 1), key("a", 2));
        let a = Path::new(&memory, "a", 1);
        let _ = admit(&a, ours, Claim::Free).await.expect("free");
        if cleared_by_reset {
            memory = unit();
        } else {
            let b = Path::new(&memory, "b", 1);
            let other = key("b", 1);
            let _ = admit(&b, other, Claim::Takeover).await.expect("taken");
            release(&b, other).await.expect("given back");
        }
        let a = Path::new(&memory, "a", 1);
        let fenced = FenceError::Fenced(Fenced::Forgotten);
        assert_eq!(readmit(&a, ours).await, Err(fenced.clone()));
        assert_eq!(verify(&a, ours).await, Err(fenced.clone()));
        let resumed = admit(&a, next, Claim::Resume).await;
        assert_eq!(resumed.expect_err("gone"), fenced);
        assert_eq!(status(&a).await.keys, vec![]);
        // Somebody who asks for it anew gets it.
        let _ = admit(&a, next, Claim::Free).await.expect("free");
        assert_held(&a, next).await;
    }
}

#[tokio::test]
async fn the_path_that_holds_the_reservation_may_go() {
    let unit = unit();
    let key = key("a", 1);
    let (a1, a2) = (Path::new(&unit, "a", 1), Path::new(&unit, "a", 2));
    let _ = admit(&a1, key, Claim::Free).await.expect("free");
    readmit(&a2, key).await.expect("a second path");
    unit.borrow_mut().nexus_ends(&a1.nexus);
    assert_held(&a2, key).await;
    a2.reinstate();
    readmit(&a2, key).await.expect("ours");
    assert_held(&a2, key).await;
    // The last act removes both registrations; what comes late does not bring them back.
    release(&a2, key).await.expect("ours");
    let after = status(&a2).await;
    assert_eq!((after.keys, after.holder), (vec![], None));
    let forgotten = FenceError::Fenced(Fenced::Forgotten);
    assert_eq!(readmit(&a1, key).await, Err(forgotten));
    // Releasing from a path that is not registered does nothing.
    release(&a1, key).await.expect("nothing to release");
    assert_eq!(status(&a2).await.keys, vec![]);
}

/// A path that comes up while another one gives the unit back must not leave anything behind.
#[tokio::test]
async fn a_release_at_any_point_of_a_readmission_leaves_nothing() {
    for step in 1..=2 {
        let unit = unit();
        let key = key("a", 1);
        let first = Rc::new(Path::new(&unit, "a", 1));
        let _ = admit(&*first, key, Claim::Free).await.expect("free");
        let late = Path::new(&unit, "a", 2);
        let act = {
            let first = Rc::clone(&first);
            Box::new(move || assert_eq!(at_once(release(&*first, key)), Ok(())))
        };
        late.meanwhile.replace(Some((step, act)));
        let error = readmit(&late, key)
            .await
            .expect_err("it is not ours any more");
        assert!(error.is_final(), "{error}");
        let after = status(&late).await;
        assert_eq!((after.keys, after.holder), (vec![], None), "step {step}");
    }
}

/// A target may take a reinstated session for another nexus (tgt does); the old registration stays.
#[tokio::test]
async fn a_registration_that_stays_with_a_dead_nexus_is_ours_all_the_same() {
    let unit = unit();
    let key = key("a", 1);
    let before = Path::new(&unit, "a", 1);
    let _ = admit(&before, key, Claim::Free).await.expect("free");
    let after = Path::new(&unit, "a", 9);
    readmit(&after, key).await.expect("ours");
    assert!(after.can_write());
    release(&after, key).await.expect("ours");
    assert_eq!(status(&after).await.keys, vec![]);
    assert_eq!(status(&after).await.holder, None);
}

/// Every PERSISTENT RESERVE OUT of an admission is lost in turn, carried out or not; the next session ends
/// up with what was wanted, and never with less safety.
#[tokio::test]
async fn each_step_may_lose_its_answer() {
    for claim in [Claim::Free, Claim::Resume, Claim::Takeover] {
        for carried_out in [false, true] {
            for step in 1.. {
                let unit = unit();
                let (a, b) = (Path::new(&unit, "a", 1), Path::new(&unit, "b", 1));
                match claim {
                    Claim::Free => {}
                    Claim::Resume => drop(admit(&a, key("a", 1), Claim::Free).await),
                    Claim::Takeover => drop(admit(&b, key("b", 1), Claim::Free).await),
                }
                a.outs.set(0);
                a.lose.set(Some((step, carried_out)));
                let context = format!("{claim:?}, step {step}, carried out: {carried_out}");
                match admit(&a, key("a", 2), claim).await {
                    Ok(_) => {
                        assert!(step > 1, "{context}: nothing was lost");
                        break;
                    }
                    Err(FenceError::Lost { .. }) => {}
                    Err(error) => panic!("{context}: {error}"),
                }
                a.reinstate();
                let held = admit(&a, key("a", 2), claim).await.expect(&context);
                assert_held(&a, key("a", 2)).await;
                if claim == Claim::Takeover {
                    assert!(held.must_clear_task_set, "{context}");
                    assert!(!b.can_write(), "{context}");
                }
            }
        }
    }
}

#[tokio::test]
async fn each_step_of_a_readmission_may_lose_its_answer() {
    for fresh_path in [false, true] {
        for carried_out in [false, true] {
            for step in 1.. {
                let unit = unit();
                let key = key("a", 1);
                let first = Path::new(&unit, "a", 1);
                let _ = admit(&first, key, Claim::Free).await.expect("free");
                let other = Path::new(&unit, "a", 2);
                let path = if fresh_path { &other } else { &first };
                path.outs.set(0);
                path.lose.set(Some((step, carried_out)));
                match readmit(path, key).await {
                    Ok(()) => {
                        assert!(step > 1);
                        break;
                    }
                    Err(error) => assert!(matches!(error, FenceError::Lost { .. }), "{error}"),
                }
                path.reinstate();
                readmit(path, key).await.expect("ours");
                assert_held(path, key).await;
            }
        }
    }
}

/// Another node takes over at each point of our readmission: we never end up able to write.
#[tokio::test]
async fn a_takeover_at_any_point_of_a_readmission_wins() {
    for fresh_path in [false, true] {
        for step in 1..=2 {
            let unit = unit();
            let (ours, theirs) = (key("a", 1), key("b", 1));
            let first = Path::new(&unit, "a", 1);
            let _ = admit(&first, ours, Claim::Free).await.expect("free");
            let other = Path::new(&unit, "a", 2);
            let path = if fresh_path { &other } else { &first };
            path.outs.set(0);
            let thief = Path::new(&unit, "b", 1);
            let thief = Rc::new(thief);
            let act = {
                let thief = Rc::clone(&thief);
                Box::new(move || {
                    let held = at_once(admit(&*thief, theirs, Claim::Takeover));
                    assert!(held.is_ok());
                })
            };
            path.meanwhile.replace(Some((step, act)));
            match readmit(path, ours).await {
                Ok(()) => assert!(path.meanwhile.borrow().is_some(), "it came too late"),
                Err(FenceError::Fenced(_)) => {
                    assert!(!path.is_registered(), "withdrawn again");
                    assert!(!path.can_write() && !first.can_write());
                    assert_held(&thief, theirs).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// Two nodes that ask for the same free unit, in every interleaving of their commands: one gets it.
#[tokio::test(start_paused = true)]
async fn two_newcomers_do_not_both_get_it() {
    for claim in [Claim::Free, Claim::Takeover] {
        for head_start in 0..40 {
            let unit = unit();
            let (a, b) = (Path::new(&unit, "a", 1), Path::new(&unit, "b", 1));
            let late = async {
                for _ in 0..head_start {
                    tokio::task::yield_now().await;
                }
                admit(&b, key("b", 1), claim).await
            };
            let (first, second) = tokio::join!(admit(&a, key("a", 1), claim), late);
            // With a takeover the later one may win over one that held it for a moment.
            let winners = [a.can_write(), b.can_write()];
            assert_eq!(
                winners.iter().filter(|can| **can).count(),
                1,
                "{claim:?} {head_start}: {first:?} {second:?} {:?}",
                status(&a).await
            );
            if claim == Claim::Free {
                assert_eq!(winners, [first.is_ok(), second.is_ok()]);
                let loser = if winners[0] { second } else { first };
                assert!(matches!(loser, Err(FenceError::HeldBy { .. })), "{loser:?}");
                assert_eq!(status(&a).await.keys.len(), 1);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn unit_attentions_and_a_busy_unit_are_waited_out() {
    let unit = unit();
    let a = Path::new(&unit, "a", 1);
    for _ in 0..3 {
        let mut answers = a.answers.borrow_mut();
        answers.push_back(ScsiReply::check_condition(6, 0x2a, 0x05));
        answers.push_back(ScsiReply::status(ScsiStatus::BUSY.0));
        answers.push_back(ScsiReply::status(ScsiStatus::TASK_SET_FULL.0));
        answers.push_back(ScsiReply::check_condition(2, 0x04, 0x01));
    }
    let _ = admit(&a, key("a", 1), Claim::Free).await.expect("free");
    assert_held(&a, key("a", 1)).await;
}

#[tokio::test]
async fn a_unit_without_persistent_reservations_is_named_as_such() {
    let unit = unit();
    let a = Path::new(&unit, "a", 1);
    a.answers
        .borrow_mut()
        .push_back(ScsiReply::check_condition(5, 0x20, 0));
    let error = admit(&a, key("a", 1), Claim::Free).await.expect_err("none");
    assert!(matches!(error, FenceError::Unsupported { .. }));
    assert!(error.to_string().contains("no persistent reservations"));
}

#[tokio::test(start_paused = true)]
async fn a_unit_that_never_answers_well_ends_the_attempt() {
    for answer in [
        ScsiReply::status(ScsiStatus::BUSY.0),
        ScsiReply::check_condition(6, 0x29, 0x00),
        ScsiReply::check_condition(4, 0x44, 0x00),
        ScsiReply::check_condition(0xb, 0x4b, 0x00),
        ScsiReply::status(0x30),
    ] {
        let unit = unit();
        let a = Path::new(&unit, "a", 1);
        let forever = std::iter::repeat_n(answer, 10_000);
        a.answers.borrow_mut().extend(forever);
        assert!(admit(&a, key("a", 1), Claim::Free).await.is_err());
    }
}

/// Runs a future whose waiting is all yielding.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    for _ in 0..10_000 {
        if let std::task::Poll::Ready(done) = future.as_mut().poll(&mut context) {
            return done;
        }
    }
    panic!("it waits for something");
}

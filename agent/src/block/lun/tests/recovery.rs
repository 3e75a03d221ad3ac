//! Lost sessions, several paths, and the time without any.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

impl Script {
    /// The session ends; what it had is given back as lost.
    fn lose(&self, sent: bool) {
        for command in self.commands.borrow_mut().drain(..) {
            let ending = Ending::Lost { sent };
            self.done.borrow_mut().push_back((command.tag, ending));
        }
        self.closed.set(true);
    }
}

struct Rig {
    lun: Lun,
    control: LunControl,
    paths: Vec<PathId>,
    scripts: Vec<Rc<Script>>,
}

impl Rig {
    /// A unit with so many paths, all up.
    fn new(paths: usize, options: LunOptions) -> Self {
        let (lun, control) = Lun::new(profile(), options);
        let mut rig = Self {
            lun,
            control,
            paths: Vec::new(),
            scripts: Vec::new(),
        };
        for _ in 0..paths {
            rig.paths.push(rig.control.add_path(false));
            rig.scripts.push(Rc::default());
            rig.up(rig.paths.len() - 1);
        }
        rig
    }

    /// The path gets a new session, which is not a reinstatement by itself.
    fn up(&mut self, path: usize) {
        self.scripts[path] = Rc::default();
        let port = port(&self.scripts[path]);
        self.control.path_up(self.paths[path], port, Some(1));
    }

    fn reinstate(&mut self, path: usize) {
        self.control.path_reinstated(self.paths[path]);
        self.up(path);
    }

    fn write_at(&mut self, id: RequestId, offset_bytes: u64) {
        let data = Payload::from(vec![id as u8; 512]);
        let op = Op::Write {
            offset_bytes,
            data,
            fua: false,
        };
        self.lun.submit(Request { id, op });
    }

    fn read(&mut self, id: RequestId) {
        let op = Op::Read {
            offset_bytes: 0,
            len_bytes: 512,
        };
        self.lun.submit(Request { id, op });
    }

    fn answers(&mut self) -> Vec<(RequestId, Result<(), Error>)> {
        std::iter::from_fn(|| self.lun.poll_complete())
            .map(|c| (c.id, c.result.map(|_| ())))
            .collect()
    }

    fn opcodes(&self, path: usize) -> Vec<u8> {
        self.scripts[path].opcodes()
    }

    /// LBAs of the commands that a path has.
    fn lbas(&self, path: usize) -> Vec<u64> {
        let commands = self.scripts[path].commands.borrow();
        let lba = |c: &Command| u64::from_be_bytes(c.cdb[2..10].try_into().expect("eight bytes"));
        commands.iter().map(lba).collect()
    }

    async fn pass(&mut self, time: Duration) {
        tokio::time::advance(time).await;
        self.control.handle_timeout(crate::block::now());
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_of_unknown_fate_is_sent_again_only_when_its_session_is_gone() {
    // RFC 7143 6.3.5: reinstatement is what ends the old session's tasks.
    let mut rig = Rig::new(1, LunOptions::default());
    rig.write_at(1, 0);
    rig.scripts[0].lose(true);
    assert_eq!(rig.answers(), []);
    assert_eq!(rig.control.health(), Health::Waiting);
    rig.up(0);
    assert!(rig.opcodes(0).is_empty(), "a new session is not enough");
    assert!(rig.control.is_haunted(rig.paths[0]));
    rig.control.path_reinstated(rig.paths[0]);
    assert_eq!(rig.opcodes(0), [WRITE16]);
    rig.scripts[0].good();
    assert_eq!(rig.answers(), [(1, Ok(()))]);
    assert_eq!(rig.control.health(), Health::Up);
    let counters = rig.control.counters();
    assert_eq!((counters.ghosts, counters.resent), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn reads_and_what_was_never_sent_go_to_the_other_path_at_once() {
    let mut rig = Rig::new(2, LunOptions::default());
    rig.control.path_quiesce(rig.paths[1]);
    rig.read(1);
    rig.write_at(2, 4096);
    rig.control.path_examined(rig.paths[1], Some(1));
    let commands = std::mem::take(&mut *rig.scripts[0].commands.borrow_mut());
    for (command, sent) in commands.into_iter().zip([true, false]) {
        let ending = Ending::Lost { sent };
        rig.scripts[0]
            .done
            .borrow_mut()
            .push_back((command.tag, ending));
    }
    rig.scripts[0].closed.set(true);
    assert_eq!(rig.answers(), []);
    assert_eq!(rig.opcodes(1), [READ16, WRITE16]);
    assert_eq!(rig.control.counters().ghosts, 0);
}

#[tokio::test(start_paused = true)]
async fn a_ghost_goes_to_another_path_when_its_own_was_reinstated_and_in_the_old_order() {
    let mut rig = Rig::new(2, LunOptions::default());
    rig.control.path_quiesce(rig.paths[1]);
    for (id, offset) in [(1, 4096), (2, 0), (3, 8192)] {
        rig.write_at(id, offset);
    }
    rig.control.path_examined(rig.paths[1], Some(1));
    rig.scripts[0].lose(true);
    assert_eq!(rig.answers(), []);
    assert!(rig.opcodes(1).is_empty(), "rule 4 holds across paths");
    rig.control.path_reinstated(rig.paths[0]);
    assert_eq!(rig.lbas(1), [8, 0, 16]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_ghost_keeps_its_blocks_closed() {
    let options = LunOptions {
        recovery_timeout: Some(10 * SECOND),
        stale_session_timeout: None,
        ..LunOptions::default()
    };
    let mut rig = Rig::new(2, options);
    rig.control.path_quiesce(rig.paths[1]);
    rig.write_at(1, 0);
    rig.scripts[0].lose(true);
    assert_eq!(rig.answers(), []);
    rig.pass(10 * SECOND).await;
    assert_eq!(rig.answers(), [(1, Err(Error::Unavailable))]);
    rig.up(1);
    rig.write_at(2, 0);
    rig.write_at(3, 512);
    rig.read(4);
    assert_eq!(rig.lbas(1), [1, 0], "the other block, and the read");
    assert_eq!(rig.opcodes(1), [WRITE16, READ16]);
    rig.control.path_reinstated(rig.paths[0]);
    assert_eq!(rig.lbas(1), [1, 0, 0], "now nothing old can come later");
}

#[tokio::test(start_paused = true)]
async fn io_waits_for_the_recovery_timeout_and_then_fails_until_a_path_is_back() {
    let options = LunOptions {
        recovery_timeout: Some(10 * SECOND),
        ..LunOptions::default()
    };
    let mut rig = Rig::new(1, options);
    rig.scripts[0].lose(true);
    assert_eq!(rig.answers(), []);
    rig.read(1);
    rig.lun.submit(Request {
        id: 2,
        op: Op::Flush,
    });
    rig.pass(9 * SECOND).await;
    assert_eq!(rig.answers(), []);
    rig.pass(SECOND).await;
    let failed = Err(Error::Unavailable);
    assert_eq!(rig.answers(), [(1, failed), (2, failed)]);
    assert_eq!(rig.control.health(), Health::Failing);
    rig.read(3);
    assert_eq!(rig.answers(), [(3, failed)]);
    rig.reinstate(0);
    assert_eq!(rig.control.health(), Health::Up);
    rig.read(4);
    assert_eq!(rig.opcodes(0), [READ16]);
    assert_eq!(rig.control.counters().longest_outage_ms, 10_000);
}

#[tokio::test(start_paused = true)]
async fn what_a_session_gives_back_after_the_timeout_fails_too() {
    let options = LunOptions {
        recovery_timeout: Some(10 * SECOND),
        ..LunOptions::default()
    };
    let mut rig = Rig::new(1, options);
    rig.write_at(1, 0);
    rig.read(2);
    // The path is not usable, but its session lives and has these two.
    rig.control.path_quiesce(rig.paths[0]);
    rig.pass(10 * SECOND).await;
    assert_eq!(rig.answers(), []);
    rig.scripts[0].lose(true);
    let mut answers = rig.answers();
    answers.sort_by_key(|(id, _)| *id);
    let failed = Err(Error::Unavailable);
    assert_eq!(answers, [(1, failed), (2, failed)]);
}

#[tokio::test(start_paused = true)]
async fn without_patience_io_fails_at_once() {
    let options = LunOptions {
        recovery_timeout: Some(Duration::ZERO),
        ..LunOptions::default()
    };
    let mut rig = Rig::new(1, options);
    rig.write_at(1, 0);
    rig.scripts[0].lose(true);
    assert_eq!(rig.answers(), [(1, Err(Error::Unavailable))]);
}

#[tokio::test(start_paused = true)]
async fn a_unit_that_is_looked_at_again_is_no_outage() {
    // Old bug (found by simulation): with a recovery timeout of 0 every unit attention failed I/O.
    let options = LunOptions {
        recovery_timeout: Some(Duration::ZERO),
        ..LunOptions::default()
    };
    let mut rig = Rig::new(1, options);
    rig.write_at(1, 0);
    rig.scripts[0].check(6, 0x29, 0x00);
    assert_eq!(rig.answers(), []);
    assert!(rig.opcodes(0).is_empty());
    assert_eq!(rig.control.health(), Health::Up);
    rig.control.path_examined(rig.paths[0], Some(1));
    rig.scripts[0].good();
    assert_eq!(rig.answers(), [(1, Ok(()))]);
    rig.write_at(2, 0);
    rig.control.path_unusable(rig.paths[0]);
    rig.scripts[0].good();
    assert_eq!(rig.answers(), [(2, Ok(()))], "it was under way");
    rig.write_at(3, 0);
    assert_eq!(rig.answers(), [(3, Err(Error::Unavailable))]);
}

#[tokio::test(start_paused = true)]
async fn the_recovery_timeout_can_be_changed_while_io_waits() {
    let mut rig = Rig::new(1, LunOptions::default());
    rig.scripts[0].lose(true);
    assert_eq!(rig.answers(), []);
    rig.read(1);
    rig.control.set_recovery_timeout(None);
    rig.pass(1000 * SECOND).await;
    assert_eq!(rig.answers(), []);
    assert_eq!(rig.control.poll_timeout(), None);
    rig.control.set_recovery_timeout(Some(SECOND));
    rig.pass(Duration::ZERO).await;
    assert_eq!(rig.answers(), [(1, Err(Error::Unavailable))]);
    rig.control.set_recovery_timeout(None);
    rig.read(2);
    assert_eq!(rig.answers(), [], "what comes now waits again");
}

#[tokio::test(start_paused = true)]
async fn a_session_that_cannot_be_ended_is_taken_for_gone_after_its_time() {
    let mut rig = Rig::new(2, LunOptions::default());
    rig.control.path_quiesce(rig.paths[1]);
    rig.write_at(1, 0);
    rig.control.path_examined(rig.paths[1], Some(1));
    rig.scripts[0].lose(true);
    assert_eq!(rig.answers(), []);
    rig.pass(59 * SECOND).await;
    assert!(rig.opcodes(1).is_empty());
    rig.pass(SECOND).await;
    assert_eq!(rig.opcodes(1), [WRITE16]);
    assert_eq!(rig.control.counters().presumed_gone, 1);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_before_the_sessions_of_an_earlier_daemon_are_gone() {
    let (lun, control) = Lun::new(profile(), LunOptions::default());
    let paths = vec![control.add_path(true), control.add_path(true)];
    let scripts = vec![Rc::default(), Rc::default()];
    let mut rig = Rig {
        lun,
        control,
        paths,
        scripts,
    };
    rig.reinstate(0);
    rig.write_at(1, 0);
    rig.read(2);
    assert_eq!(
        rig.opcodes(0),
        [READ16],
        "the other path has an old session"
    );
    rig.control.path_reinstated(rig.paths[1]);
    assert_eq!(rig.opcodes(0), [READ16, WRITE16]);
}

#[tokio::test(start_paused = true)]
async fn a_path_in_standby_is_left_and_used_again_when_it_was_looked_at() {
    // SPC-4 5.15.2.4.3: 02/04/0B.
    let mut rig = Rig::new(2, LunOptions::default());
    rig.control.path_examined(rig.paths[1], Some(4));
    rig.write_at(1, 0);
    assert_eq!(rig.opcodes(0), [WRITE16], "the better path");
    rig.scripts[0].check(2, 0x04, 0x0b);
    assert_eq!(rig.answers(), []);
    assert_eq!(rig.opcodes(1), [WRITE16]);
    let mut cx = Context::from_waker(Waker::noop());
    let news = rig.control.poll_path(rig.paths[0], &mut cx);
    assert!(
        matches!(news, Poll::Ready(PathNews::Examine { in_doubt: true, .. })),
        "{news:?}"
    );
    rig.control.path_examined(rig.paths[0], None);
    rig.write_at(2, 512);
    assert_eq!(rig.opcodes(1), [WRITE16, WRITE16]);
    rig.control.path_examined(rig.paths[0], Some(1));
    rig.write_at(3, 1024);
    assert_eq!(rig.opcodes(0), [WRITE16]);
}

#[tokio::test(start_paused = true)]
async fn a_full_unit_gets_fewer_commands_at_a_time() {
    // SAM-5 5.3.1, TASK SET FULL.
    let mut rig = Rig::new(1, LunOptions::default());
    for id in 0..8 {
        rig.write_at(id, id * 512);
    }
    rig.scripts[0].answer(0x28, &[], Vec::new());
    assert_eq!(rig.answers(), []);
    assert_eq!(rig.control.path_view(rig.paths[0]).queue_depth, 7);
    rig.write_at(8, 8 * 512);
    assert_eq!(rig.opcodes(0).len(), 7, "no more than it took before");
    let due = rig.control.poll_timeout().expect("a pause");
    for _ in 0..7 {
        rig.scripts[0].good();
    }
    assert_eq!(rig.answers().len(), 7);
    rig.control.handle_timeout(due);
    assert_eq!(rig.opcodes(0).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_aborted_command_is_sent_again_and_its_late_answer_is_not_taken() {
    let mut rig = Rig::new(1, LunOptions::default());
    rig.write_at(1, 0);
    let command = rig.scripts[0]
        .commands
        .borrow_mut()
        .pop_front()
        .expect("a command");
    let aborted = TaskOutcome::Aborted {
        cause: berth_iscsi::session::AbortCause::Deadline,
        sent: true,
    };
    let script = Rc::clone(&rig.scripts[0]);
    script
        .done
        .borrow_mut()
        .push_back((command.tag, Ending::Outcome(aborted)));
    assert_eq!(rig.answers(), []);
    rig.pass(SECOND).await;
    assert_eq!(rig.opcodes(0), [WRITE16]);
    // A target that answers the aborted one all the same.
    script
        .done
        .borrow_mut()
        .push_back((command.tag, Ending::Lost { sent: true }));
    assert_eq!(rig.answers(), []);
    rig.scripts[0].good();
    assert_eq!(rig.answers(), [(1, Ok(()))]);
}

#[tokio::test(start_paused = true)]
async fn fua_by_a_flush_begins_again_when_the_cache_was_lost_in_between() {
    let (lun, control) = Lun::new(
        Profile {
            fua: false,
            ..profile()
        },
        LunOptions::default(),
    );
    let mut rig = Rig {
        paths: vec![control.add_path(false)],
        lun,
        control,
        scripts: vec![Rc::default()],
    };
    rig.up(0);
    rig.lun.submit(write(1, true));
    rig.scripts[0].good();
    assert_eq!(rig.answers(), []);
    assert_eq!(rig.opcodes(0), [SYNC16]);
    rig.scripts[0].check(6, 0x29, 0x01); // power on
    assert_eq!(rig.answers(), []);
    rig.control.path_examined(rig.paths[0], Some(1));
    assert_eq!(rig.opcodes(0), [SYNC16]);
    rig.scripts[0].good();
    assert_eq!(rig.answers(), [], "what it made durable was lost before");
    assert_eq!(rig.opcodes(0), [WRITE16]);
    rig.scripts[0].good();
    assert_eq!(rig.answers(), []);
    rig.scripts[0].good();
    assert_eq!(rig.answers(), [(1, Ok(()))]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_cache_is_counted_and_fails_the_next_flush_when_asked_to() {
    for policy in [CacheLossPolicy::Report, CacheLossPolicy::FailFlush] {
        let mut rig = Rig::new(
            1,
            LunOptions {
                cache_loss: policy,
                ..LunOptions::default()
            },
        );
        let flush = |rig: &mut Rig, id| {
            rig.lun.submit(Request { id, op: Op::Flush });
            rig.scripts[0].good();
            rig.answers()
        };
        rig.control.note_cache_loss();
        assert_eq!(rig.control.counters().cache_losses, 0, "nothing was in it");
        rig.write_at(1, 0);
        rig.scripts[0].good();
        assert_eq!(rig.answers(), [(1, Ok(()))]);
        rig.control.note_cache_loss();
        assert_eq!(rig.control.counters().cache_losses, 1);
        let expected = match policy {
            CacheLossPolicy::Report => Ok(()),
            CacheLossPolicy::FailFlush => Err(Error::Medium),
        };
        assert_eq!(flush(&mut rig, 2), [(2, expected)]);
        assert_eq!(flush(&mut rig, 3), [(3, Ok(()))]);
    }
}

#[tokio::test(start_paused = true)]
async fn every_request_is_answered_once_when_the_lun_is_taken_away() {
    let mut rig = Rig::new(1, LunOptions::default());
    rig.scripts[0].room.set(Some(2));
    for id in 1..=3 {
        rig.write_at(id, id * 512);
    }
    for id in 4..=5 {
        rig.lun.submit(Request { id, op: Op::Flush });
    }
    rig.control.fail_all(Error::Gone);
    let mut answers = rig.answers();
    answers.sort_by_key(|(id, _)| *id);
    let gone: Vec<_> = (1..=5).map(|id| (id, Err(Error::Gone))).collect();
    assert_eq!(answers, gone);
    rig.scripts[0].lose(true);
    assert_eq!(rig.answers(), []);
    rig.write_at(6, 0);
    assert_eq!(rig.answers(), [(6, Err(Error::Gone))]);
}

#[tokio::test(start_paused = true)]
async fn the_faster_of_two_equal_paths_gets_more() {
    let mut rig = Rig::new(2, LunOptions::default());
    let mut counts = [0usize; 2];
    for id in 0..400 {
        rig.read(id);
        if id < 4 {
            continue;
        }
        // The second path takes ten times as long.
        for (path, every) in [(0, 1), (1, 10)] {
            if id % every == 0 && !rig.opcodes(path).is_empty() {
                rig.scripts[path].answer(0, &[], vec![0; 512]);
                counts[path] += 1;
            }
        }
        rig.pass(Duration::from_micros(100)).await;
        let _ = rig.answers();
    }
    assert!(counts[0] > 3 * counts[1], "{counts:?}");
    assert!(counts[1] > 0, "{counts:?}");
}

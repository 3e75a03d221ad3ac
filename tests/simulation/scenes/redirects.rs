//! Redirects between portal groups while the fate of writes is unknown.

use std::time::Duration;

use berth_iscsi::target::faults::CommandFault;

use super::super::net::Admission;
use super::super::plan::{Kind, STALE_AFTER};
use super::stage::{Stage, WRITE_16, plain, play};

/// Longer than anything else of a scene takes.
const LATE: Duration = Duration::from_secs(8);

/// The initiator of this connection loses it; the target only hears of that much later, and until then does
/// what it was told, slowly.
fn lose_with_slow_writes(stage: &Stage, wire: usize) {
    stage.net.cut(wire, 0, LATE);
}

/// Found by seeds 1009789, 1039524 and 1107146: a login that was redirected into another portal group was taken
/// for the end of the path's old session. That session lived on in its own group, and its late write came back
/// over a newer one (RFC 7143 4.4.1: the group is part of what a session is).
#[test]
fn a_login_in_another_portal_group_does_not_end_the_old_session() {
    let counts = play(plain(), async |stage| {
        stage.begin().await;
        let wire = stage.connections(0)[0];
        stage.spoil(
            wire,
            WRITE_16,
            1,
            CommandFault::DelayExecution(Duration::from_secs(5)),
        );
        let old = stage.write(3);
        stage.pass(200).await;
        stage.redirect_next_login(1);
        lose_with_slow_writes(stage, wire);
        stage.answered(old).await;
        stage.done(Kind::Write, 3).await;
        // The old session would carry its write out by now, if it were still there.
        stage.pass(10_000).await;
        stage.done(Kind::Read, 3).await;
    });
    assert_eq!(counts["login redirected"], 1);
    assert!(counts["recovery: writes of unknown fate"] >= 1);
}

/// Found by seed 1004131: the session of a path had landed in another portal group by a redirect. When it was
/// lost with writes under way, the path asked its own portal for ever, which could not end that session.
#[test]
fn the_old_session_of_a_redirected_path_is_ended_where_it_had_landed() {
    let counts = play(redirected(), async |stage| {
        let wire = redirect_first_path(stage).await;
        stage.spoil(wire, WRITE_16, u32::MAX, CommandFault::HoldExecution);
        let writes: Vec<_> = (0..16).map(|block| stage.write(block)).collect();
        stage.pass(200).await;
        lose_with_slow_writes(stage, wire);
        for write in writes {
            stage.answered(write).await;
        }
        for block in 0..16 {
            stage.done(Kind::Write, block).await;
        }
        stage.pass(10_000).await;
        stage.done(Kind::Read, 0).await;
    });
    assert!(counts["recovery: writes of unknown fate"] >= 1);
    assert!(counts["recovery: sessions reinstated"] >= 2, "{counts:?}");
}

/// The other side of the same: where a redirect had led to is gone for good. Once the old session may be taken
/// for gone, the path asks its own portal again, and nothing hangs on the wrong one.
#[test]
fn a_path_whose_redirect_leads_nowhere_asks_its_own_portal_again() {
    let mut plan = redirected();
    plan.stale_session_timeout = Some(STALE_AFTER);
    let counts = play(plan, async |stage| {
        let wire = redirect_first_path(stage).await;
        stage.spoil(wire, WRITE_16, u32::MAX, CommandFault::HoldExecution);
        let writes: Vec<_> = (0..16).map(|block| stage.write(block)).collect();
        stage.pass(200).await;
        stage
            .net
            .with_links(None, Some(1), |link| link.admission = Admission::Ignore);
        for wire in stage.connections(1) {
            stage.net.cut(wire, 0, Duration::from_secs(1));
        }
        for write in writes {
            stage.answered(write).await;
        }
        assert_eq!(stage.connections(0).len(), 1, "the way over its own portal");
        stage.done(Kind::Read, 0).await;
    });
    assert!(counts["recovery: writes of unknown fate"] >= 1);
}

/// Found by seed 5004442: the daemon died while a redirect had led a path into another portal group, and the next
/// life did not know. It logged in on the path's own portal, took that for the end of the old session, and a
/// late write of it came back over a newer one. Now a session is used only when its portal group is written down.
#[test]
fn the_next_life_ends_a_redirected_session_where_it_was() {
    play(redirected(), async |stage| {
        let wire = redirect_first_path(stage).await;
        let slow = CommandFault::DelayExecution(Duration::from_secs(5));
        stage.spoil(wire, WRITE_16, u32::MAX, slow);
        for block in 0..16 {
            drop(stage.write(block)); // It goes on by itself, and nobody will hear of it.
        }
        stage.pass(200).await;
        stage.net.linger(0, LATE);
        stage.nodes[0].crash().await;
        let before = stage.count_done();
        stage.nodes[0].start();
        stage.all_paths_up().await;
        for kind in [Kind::Write, Kind::Read] {
            for block in 0..16 {
                stage.issue(kind, block).await.expect("no panic");
            }
            // The old session would carry its writes out by now, if it were still there.
            stage.pass(10_000).await;
        }
        assert_eq!(stage.count_done() - before, 32);
    });
}

/// Found by seed 8033208: redirects had led each of two paths into the portal group of the other one. The next life
/// looked for each old session over the path's own portal, where it was not, and no attach worked ever again. Now one
/// works once the old sessions may be taken for gone.
#[test]
fn the_next_life_does_not_look_for_ever_for_sessions_that_redirects_had_crossed() {
    let mut plan = redirected();
    plan.stale_session_timeout = Some(STALE_AFTER);
    play(plan, async |stage| {
        redirect_first_path(stage).await;
        stage.redirect_next_login(0);
        // The other one of the two there: that of the second path.
        let second = stage.connections(1)[0];
        stage.net.cut(second, 0, Duration::from_millis(1));
        stage.pass(10).await;
        stage.all_paths_up().await;
        let crossed = [stage.connections(0), stage.connections(1)].concat();
        assert_eq!(crossed.len(), 2, "one on each portal");
        let slow = CommandFault::DelayExecution(Duration::from_secs(5));
        for wire in crossed {
            stage.spoil(wire, WRITE_16, u32::MAX, slow.clone());
        }
        for block in 0..16 {
            drop(stage.write(block)); // It goes on by itself, and nobody will hear of it.
        }
        stage.pass(200).await;
        stage.net.linger(0, LATE);
        stage.nodes[0].crash().await;
        let before = stage.count_done();
        stage.nodes[0].start();
        stage.all_paths_up().await;
        for kind in [Kind::Write, Kind::Read] {
            for block in 0..16 {
                stage.issue(kind, block).await.expect("no panic");
            }
            stage.pass(10_000).await;
        }
        assert_eq!(stage.count_done() - before, 32);
    });
}

/// Both portals are equally good, so that writes go over both paths.
fn redirected() -> super::super::plan::Plan {
    let mut plan = plain();
    plan.array.alua = false;
    plan
}

/// The first path loses its idle session and lands on the second portal; its connection there.
async fn redirect_first_path(stage: &Stage) -> usize {
    stage.begin().await;
    stage.redirect_next_login(1);
    let wire = stage.connections(0)[0];
    stage.net.cut(wire, 0, Duration::from_millis(1));
    stage.pass(10).await;
    stage.all_paths_up().await;
    let landed = stage.connections(1);
    assert_eq!(landed.len(), 2, "both paths are on the second portal");
    landed[1]
}

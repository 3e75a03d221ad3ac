//! Writes of less than a block: the rest of it is read first and written back.

use std::time::Duration;

use berth_iscsi::target::faults::CommandFault;

use super::super::net::Admission;
use super::super::plan::Kind;
use super::stage::{Stage, WRITE_16, plain, play};

/// Found by seed 7146433: a write had failed after the recovery timeout, and its old session was still to carry it
/// out. A later write of a part of its block read the rest before that happened, was held back until it had,
/// and then put the older rest over it.
#[test]
fn the_rest_of_a_block_is_read_when_nothing_can_change_it_any_more() {
    let mut plan = plain();
    plan.recovery_timeout = Some(Duration::from_secs(1));
    play(plan, async |stage| {
        stage.begin().await;
        stage.done(Kind::Write, 0).await;
        let wire = stage.connections(0)[0];
        let slow = CommandFault::DelayExecution(Duration::from_secs(5));
        stage.spoil(wire, WRITE_16, 1, slow);
        let fails = stage.write(0);
        stage.pass(200).await;
        admit(stage, 0, Admission::Ignore);
        admit(stage, 1, Admission::Ignore);
        stage.net.cut(wire, 0, Duration::from_secs(12));
        let other = stage.connections(1)[0];
        stage.net.cut(other, 0, Duration::from_millis(1));
        fails.await.expect("no panic");
        // The other path comes back; it cannot end the old session, which is of another portal group.
        admit(stage, 1, Admission::Open);
        stage.nodes[0].is_up().await;
        let part = stage.issue_cells(Kind::Write, 0, 1);
        stage.pass(6_000).await;
        let before = stage.count_done();
        stage.issue(Kind::Read, 0).await.expect("no panic");
        admit(stage, 0, Admission::Open);
        part.await.expect("no panic");
        stage.issue(Kind::Read, 0).await.expect("no panic");
        assert_eq!(stage.count_done() - before, 3, "both reads and the part");
    });
}

fn admit(stage: &Stage, portal: usize, admission: Admission) {
    stage
        .net
        .with_links(None, Some(portal), |link| link.admission = admission);
}

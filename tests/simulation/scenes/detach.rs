//! The end of an attachment.

use std::time::Duration;

use berth_iscsi::target::faults::CommandFault;

use super::super::plan::Kind;
use super::super::rng::Rng;
use super::stage::{plain, play};

const SYNCHRONIZE_CACHE: [u8; 2] = [0x35, 0x91];

/// Found by seed 1114743: the flush at detach went over one path, and when that one was lost meanwhile it was
/// left out. What a client had written and not flushed was gone with the power of the array.
#[test]
fn the_last_flush_goes_over_any_path_that_works() {
    for opcode in SYNCHRONIZE_CACHE {
        let mut plan = plain();
        plan.array.write_cache = true;
        play(plan, async |stage| {
            stage.begin().await;
            stage.done(Kind::Write, 5).await;
            // The preferred path is lost with the flush.
            let wire = stage.connections(0)[0];
            stage.spoil(wire, opcode, 1, CommandFault::Cut);
            assert!(
                stage.nodes[0].detach(Duration::from_secs(60)).await,
                "it ends in time"
            );
            stage.array.stop(Some((&mut Rng::new(0, 0), 0)));
            assert_eq!(stage.on_disk(5), Some(1), "the write survives a power cut");
        });
    }
}

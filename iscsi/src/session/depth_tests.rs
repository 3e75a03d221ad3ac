//! The depth that a target has shown to take.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn depth(depth_max: usize) -> (QueueDepth, Instant) {
    let options = QueueDepthOptions {
        depth_max,
        successes_per_step: 10,
        step_time: 5 * SECOND,
    };
    (QueueDepth::new(options), Instant::now())
}

#[test]
fn it_starts_at_the_maximum_and_stays_there() {
    let (mut depth, now) = depth(32);
    assert!(depth.has_room(31) && !depth.has_room(32));
    for _ in 0..1000 {
        depth.on_success(now + 60 * SECOND);
    }
    assert_eq!((depth.limit(), depth.shrinks()), (32, 0));
}

/// SAM-5 5.3.1: a unit without room for the command says so; what it did hold is what it can hold.
#[test]
fn task_set_full_shrinks_to_what_was_in_flight() {
    let (mut depth, now) = depth(32);
    depth.on_task_set_full(now, 20);
    assert_eq!(depth.limit(), 20);
    // Of a burst of 32 the unit took 16 and refused 16, one answer after the other.
    for others in (16..=31).rev() {
        depth.on_task_set_full(now, others);
    }
    assert_eq!(depth.limit(), 16);
    // An answer that comes late does not lift the limit.
    depth.on_task_set_full(now, 25);
    assert_eq!((depth.limit(), depth.shrinks()), (16, 18));
}

#[test]
fn one_command_may_always_be_sent() {
    let (mut depth, now) = depth(0);
    assert_eq!(depth.limit(), 1);
    depth.on_task_set_full(now, 0);
    assert!(depth.has_room(0));
}

#[test]
fn successes_give_it_back_one_by_one_up_to_the_maximum() {
    let (mut depth, now) = depth(8);
    depth.on_task_set_full(now, 5);
    for expected in [5, 6, 7, 8, 8] {
        assert_eq!(depth.limit(), expected);
        for _ in 0..10 {
            depth.on_success(now);
        }
    }
}

#[test]
fn time_gives_it_back_too() {
    let (mut depth, now) = depth(8);
    depth.on_task_set_full(now, 2);
    depth.on_success(now + 4 * SECOND);
    assert_eq!(depth.limit(), 2);
    depth.on_success(now + 5 * SECOND);
    assert_eq!(depth.limit(), 3);
    depth.on_success(now + 9 * SECOND);
    assert_eq!(depth.limit(), 3);
    // An idle night is many steps, not one.
    depth.on_success(now + 40_000 * SECOND);
    assert_eq!(depth.limit(), 8);
}

#[test]
fn being_full_again_starts_the_count_anew() {
    let (mut depth, now) = depth(32);
    depth.on_task_set_full(now, 4);
    for _ in 0..9 {
        depth.on_success(now);
    }
    depth.on_task_set_full(now, 4);
    for _ in 0..9 {
        depth.on_success(now);
    }
    assert_eq!(depth.limit(), 4);
    depth.on_success(now);
    assert_eq!(depth.limit(), 5);
}

#[test]
fn a_new_maximum_keeps_what_was_learnt() {
    let (mut depth, now) = depth(32);
    depth.set_max(now, 64);
    assert_eq!(depth.limit(), 64);
    depth.on_task_set_full(now, 40);
    depth.set_max(now, 128);
    assert_eq!(depth.limit(), 40);
    depth.set_max(now, 16);
    assert_eq!(depth.limit(), 16);
}

#[test]
fn a_clock_that_stands_still_or_goes_back_does_no_harm() {
    let (mut depth, now) = depth(32);
    depth.on_task_set_full(now + SECOND, 4);
    depth.on_success(now);
    assert_eq!(depth.limit(), 4);
}

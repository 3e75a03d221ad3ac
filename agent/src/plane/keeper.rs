//! Looks after a volume while it serves: what is due, and what has changed.

use std::future::poll_fn;
use std::rc::Rc;
use std::time::Instant;

use super::context::Context;
use crate::block::now;

/// Does what the LUN wants to be done at its times, and tells the owner what has changed. Never returns.
pub(super) async fn keep(volume: Rc<Context>) {
    loop {
        let due = volume.lun.poll_timeout();
        tokio::select! {
            biased;
            () = poll_fn(|cx| volume.lun.poll_changed(cx)) => {
                volume.board.set_health(volume.lun.health());
                volume.board.set_cache_losses(volume.lun.counters().cache_losses);
                let geometry = volume.lun.geometry();
                volume.shared.geometry.send_if_modified(|known| {
                    let changed = known.as_ref() != Some(&geometry);
                    if changed {
                        *known = Some(geometry);
                    }
                    changed
                });
                volume.hub.borrow_mut().pump();
            }
            () = sleep_until(due) => {
                volume.lun.handle_timeout(now());
                volume.hub.borrow_mut().pump();
            }
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

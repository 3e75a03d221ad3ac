//! The watchdog is fed by the data plane: only after every one of its threads has done something new.

use std::time::Duration;

use super::notify::Notifier;
use crate::plane::DataPlane;

/// Heartbeats in one period of the watchdog: one may be late without harm.
const BEATS: u32 = 4;
/// A thread that has not answered after this part of the period is reported as stuck. It is still asked
/// until the manager ends the daemon.
const PATIENCE: u32 = 2;

/// The period in which the manager wants a sign of life (`WatchdogSec=`), if it wants any.
#[must_use]
pub fn period() -> Option<Duration> {
    sd_notify::watchdog_enabled().filter(|period| !period.is_zero())
}

/// Feeds the watchdog as long as every data-plane thread answers heartbeats through its own event loop.
/// A thread that hangs stops the feeding, and the manager ends the daemon and starts it again.
/// Ends never.
pub async fn feed(notifier: &Notifier, plane: &DataPlane, period: Duration) {
    let mut was_stuck = false;
    loop {
        let stuck = plane.stuck_threads(period / PATIENCE).await;
        if stuck.is_empty() {
            if was_stuck {
                tracing::warn!("every data-plane thread works again");
            }
            was_stuck = false;
            notifier.feed_watchdog();
        } else {
            was_stuck = true;
            tracing::error!(
                threads = ?stuck,
                period_s = period.as_secs_f64(),
                "data-plane threads do nothing; the watchdog is not fed"
            );
        }
        tokio::time::sleep(period / BEATS).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::service_manager::fake::FakeManager;

    #[test]
    fn a_hung_thread_stops_the_feeding_and_work_starts_it_again() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let mut manager = FakeManager::new();
        let notifier = Notifier::to(manager.socket());
        let plane = std::sync::Arc::new(DataPlane::start(2).unwrap());
        let feeding = runtime.spawn({
            let plane = std::sync::Arc::clone(&plane);
            async move { feed(&notifier, &plane, Duration::from_millis(100)).await }
        });
        assert_eq!(manager.receive(), "WATCHDOG=1\n");
        assert_eq!(manager.receive(), "WATCHDOG=1\n");

        // One of two threads hangs until told otherwise; the other one, and we, go on.
        let (go_on, wait) = mpsc::sync_channel::<()>(0);
        let (hangs, hung) = mpsc::sync_channel(0);
        let place = plane.place();
        runtime
            .block_on(place.thread().spawn(move || async move {
                hangs.send(()).unwrap();
                wait.recv().unwrap();
            }))
            .unwrap();
        hung.recv().unwrap();
        assert_eq!(
            runtime.block_on(plane.stuck_threads(Duration::from_millis(50))),
            [0]
        );
        // What was sent before the hang is read; then nothing comes.
        manager.drain();
        assert_eq!(
            manager.receive_within(Duration::from_millis(500)),
            None,
            "five periods without food"
        );
        go_on.send(()).unwrap();
        assert_eq!(manager.receive(), "WATCHDOG=1\n", "fed again");
        feeding.abort();
        let _ = runtime.block_on(feeding);
        drop(place);
        std::sync::Arc::into_inner(plane).unwrap().stop();
    }
}

//! The recent events, numbered, for those who listen and those who come back.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::service::EventStream;
use crate::types::{Event, EventKind, NewEvent, unix_ms_now};

/// Keeps the last events and hands them to any number of readers.
///
/// Publishing never waits: a reader that is too slow finds a [`EventKind::Gap`] in its stream instead
/// of what it missed. Memory is bounded by the capacity, whatever readers do.
#[derive(Clone)]
pub struct EventLog {
    shared: Arc<Shared>,
}

struct Shared {
    ring: Mutex<Ring>,
    /// Id of the newest event: what readers wait on.
    newest: watch::Sender<u64>,
}

struct Ring {
    events: VecDeque<Event>,
    capacity: usize,
    next_id: u64,
    closed: bool,
}

impl EventLog {
    /// A log that keeps the last `capacity` events.
    ///
    /// Ids begin at the present time in microseconds, so that they grow over restarts too and stay
    /// exact in the numbers of JavaScript.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self::starting_at(capacity, unix_ms_now().saturating_mul(1000).max(1))
    }

    fn starting_at(capacity: usize, next_id: u64) -> Self {
        Self {
            shared: Arc::new(Shared {
                ring: Mutex::new(Ring {
                    events: VecDeque::with_capacity(capacity),
                    capacity: capacity.max(1),
                    next_id,
                    closed: false,
                }),
                newest: watch::Sender::new(next_id - 1),
            }),
        }
    }

    /// Adds an event and returns its id.
    pub fn publish(&self, what: NewEvent) -> u64 {
        let mut ring = self.shared.ring();
        let id = ring.next_id;
        ring.next_id += 1;
        if ring.events.len() == ring.capacity {
            ring.events.pop_front();
        }
        ring.events.push_back(Event {
            id,
            time_unix_ms: unix_ms_now(),
            what,
        });
        self.shared.newest.send_replace(id);
        id
    }

    /// Ends all streams once they have given what there is.
    pub fn close(&self) {
        let mut ring = self.shared.ring();
        ring.closed = true;
        self.shared.newest.send_modify(|_| {});
    }

    /// Events after the one with this id (0: all that are kept), or from now on. Where events are
    /// missing, a [`EventKind::Gap`] stands for them.
    #[must_use]
    pub fn subscribe(&self, after: Option<u64>) -> EventStream {
        let mut newest = self.shared.newest.subscribe();
        let newest_id = *newest.borrow_and_update();
        let oldest_kept = {
            let ring = self.shared.ring();
            ring.events.front().map_or(newest_id, |event| event.id - 1)
        };
        Box::pin(Reader {
            last_id: match after {
                None => newest_id,
                Some(0) => oldest_kept,
                // An id from the future is one of another node or of a clock that was set back.
                Some(id) => id.min(newest_id),
            },
            shared: Arc::clone(&self.shared),
            wait: tokio_stream::wrappers::WatchStream::from_changes(newest),
        })
    }
}

impl Shared {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        // Nothing in there can be half done when a panic poisons the lock.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    /// The event that follows `last_id` for a reader, or a gap.
    fn after(&self, last_id: u64) -> Option<Event> {
        let first = self.events.front()?;
        if last_id + 1 < first.id {
            return Some(Event {
                id: first.id - 1,
                time_unix_ms: unix_ms_now(),
                what: NewEvent::new(
                    EventKind::Gap,
                    "events are missing here: read the list of attachments again",
                ),
            });
        }
        let index = usize::try_from(last_id + 1 - first.id).ok()?;
        self.events.get(index).cloned()
    }
}

struct Reader {
    shared: Arc<Shared>,
    last_id: u64,
    wait: tokio_stream::wrappers::WatchStream<u64>,
}

impl futures_core::Stream for Reader {
    type Item = Event;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Event>> {
        use std::task::Poll;
        loop {
            let (next, closed) = {
                let ring = self.shared.ring();
                (ring.after(self.last_id), ring.closed)
            };
            if let Some(event) = next {
                self.last_id = event.id;
                return Poll::Ready(Some(event));
            }
            if closed {
                return Poll::Ready(None);
            }
            match std::pin::Pin::new(&mut self.wait).poll_next(cx) {
                Poll::Ready(Some(_)) => {}
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_stream::StreamExt as _;

    fn notice(text: &str) -> NewEvent {
        NewEvent::new(EventKind::Notice, text)
    }

    #[tokio::test]
    async fn readers_get_what_comes_after_they_came() {
        let log = EventLog::new(8);
        log.publish(notice("before"));
        let mut reader = log.subscribe(None);
        let id = log.publish(notice("after"));
        let event = reader.next().await.unwrap();
        assert_eq!((event.id, event.what.message.as_str()), (id, "after"));
        let waiting = tokio::spawn(async move { reader.next().await });
        tokio::task::yield_now().await;
        log.publish(notice("later"));
        assert_eq!(waiting.await.unwrap().unwrap().what.message, "later");
    }

    #[tokio::test]
    async fn who_comes_back_misses_nothing() {
        let log = EventLog::starting_at(8, 100);
        for text in ["a", "b", "c"] {
            log.publish(notice(text));
        }
        log.close();
        let texts: Vec<_> = log
            .subscribe(Some(100))
            .map(|event| event.what.message)
            .collect()
            .await;
        assert_eq!(texts, ["b", "c"]);
    }

    #[tokio::test]
    async fn who_is_late_gets_a_gap_and_then_the_rest() {
        let log = EventLog::starting_at(2, 100);
        for text in ["a", "b", "c", "d"] {
            log.publish(notice(text));
        }
        log.close();
        let ids: Vec<_> = log
            .subscribe(Some(99))
            .map(|event| (event.id, event.what.kind))
            .collect()
            .await;
        assert_eq!(
            ids,
            [
                (101, EventKind::Gap),
                (102, EventKind::Notice),
                (103, EventKind::Notice)
            ]
        );
    }

    #[tokio::test]
    async fn zero_means_all_that_are_kept() {
        let log = EventLog::starting_at(2, 100);
        for text in ["a", "b", "c"] {
            log.publish(notice(text));
        }
        log.close();
        let texts: Vec<_> = log
            .subscribe(Some(0))
            .map(|event| event.what.message)
            .collect()
            .await;
        assert_eq!(texts, ["b", "c"]);
    }

    #[tokio::test]
    async fn an_id_from_the_future_means_now() {
        let log = EventLog::starting_at(2, 100);
        log.publish(notice("a"));
        let mut reader = log.subscribe(Some(u64::MAX));
        log.publish(notice("b"));
        assert_eq!(reader.next().await.unwrap().what.message, "b");
    }
}

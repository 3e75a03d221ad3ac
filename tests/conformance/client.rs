//! The user's side of a session that its driver pumps.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use berth_iscsi::net::{Connected, Driver, DriverOptions, Handle};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_local};

use super::*;

/// A driven session and the events it told.
pub(crate) struct Client {
    pub(crate) handle: Rc<Handle>,
    events: Rc<RefCell<VecDeque<Event>>>,
    news: Rc<Notify>,
    driver: JoinHandle<()>,
}

impl Client {
    pub(crate) fn new(connected: Connected) -> Self {
        let events = Rc::new(RefCell::new(VecDeque::new()));
        let news = Rc::new(Notify::new());
        let on_events = {
            let (events, news) = (events.clone(), news.clone());
            Box::new(move |handle: &Handle| {
                let told = std::iter::from_fn(|| handle.poll_event());
                events.borrow_mut().extend(told);
                news.notify_one();
            })
        };
        let (handle, driver) = Driver::new(
            connected.stream,
            connected.session,
            connected.receive,
            DriverOptions::default(),
            on_events,
        );
        Self {
            handle,
            events,
            news,
            driver: spawn_local(driver.run()),
        }
    }

    pub(crate) fn submit(&self, command: Command) {
        self.handle.submit(command).expect("it is taken");
    }

    /// The same, with this long until its deadline.
    pub(crate) fn submit_within(&self, time: Duration, command: Command) {
        let deadline = Some((tokio::time::Instant::now() + time).into_std());
        self.submit(Command {
            deadline,
            ..command
        });
    }

    /// The next event that is not the answer to a ping.
    pub(crate) async fn event(&self) -> Event {
        loop {
            let next = self.events.borrow_mut().pop_front();
            match next {
                Some(Event::Pong { .. }) => {}
                Some(event) => return event,
                None => self.news.notified().await,
            }
        }
    }

    /// How the next command ended.
    pub(crate) async fn done(&self) -> (u64, TaskOutcome) {
        match self.event().await {
            Event::TaskDone { tag, outcome } => (tag, outcome),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn outcome(&self) -> TaskOutcome {
        self.done().await.1
    }

    /// The end of the session, which must be the next event, and what it left behind.
    pub(crate) async fn closed(self) -> (CloseReason, Vec<Unfinished>) {
        let reason = match self.event().await {
            Event::Closed(reason) => reason,
            other => panic!("{other:?}"),
        };
        let unfinished = self.handle.take_unfinished();
        self.driver.await.expect("the driver does not panic");
        assert!(self.events.borrow().is_empty(), "events after the last");
        (reason, unfinished)
    }

    /// The same, for an error.
    pub(crate) async fn failed(self) -> Error {
        match self.closed().await.0 {
            CloseReason::Failed(error) => error,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn counters(&self) -> berth_iscsi::session::Counters {
        self.handle.with_session(|session, _| session.counters())
    }
}

//! The task that pumps one session, and its user's handle.
//!
//! Each wake-up reads what is there, tells the user once, and leaves with what is to be sent in one
//! vectored write. The user is on the same thread, so nothing is locked: the session is in a
//! `RefCell` that is borrowed for the length of one call, and never while user code runs.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use berth_iobuf::ReceiveBuffer;
use tokio::time::Sleep;

use super::options::DriverOptions;
use super::socket::Socket;
use super::transport::{Counters, Sent, Transport};
use crate::error::Misuse;
use crate::session::{Command, Event, Session, Unfinished};

/// Called by the driver when the session has events: fetch them with [`Handle::poll_event`]. Commands
/// that are submitted from inside leave in the same wake-up. It is not called while one of the
/// user's own calls into the handle runs.
pub type OnEvents = Box<dyn Fn(&Handle)>;

/// The user's side of a driven session.
pub struct Handle {
    session: RefCell<Session>,
    /// `None` once the connection is closed.
    transport: RefCell<Option<Transport>>,
    options: DriverOptions,
    waker: RefCell<Option<Waker>>,
    /// The driver runs, and looks at everything before it stops: nobody needs to wake it.
    driving: Cell<bool>,
    /// When the driver's timer fires.
    armed: Cell<Option<Instant>>,
    last_counters: Cell<Counters>,
}

impl Handle {
    /// Queues a command; see [`Session::submit`]. It leaves with [`Handle::commit`], or else when the driver
    /// runs next, which is soon.
    ///
    /// # Errors
    /// As [`Session::submit`].
    pub fn submit(&self, command: Command) -> Result<(), Misuse> {
        self.queue(command)?;
        self.wake();
        Ok(())
    }

    /// As [`Handle::submit`], for who is sure to call [`Handle::commit`]: the driver is not woken for it.
    ///
    /// # Errors
    /// As [`Session::submit`].
    pub fn queue(&self, command: Command) -> Result<(), Misuse> {
        self.session.borrow_mut().submit(command)
    }

    /// The next event of the session.
    pub fn poll_event(&self) -> Option<Event> {
        self.session.borrow_mut().poll_event()
    }

    /// Anything else that a session can do: aborts, task management, logout, numbers. Gets the time.
    ///
    /// # Panics
    /// If `f` uses this handle.
    pub fn with_session<R>(&self, f: impl FnOnce(&mut Session, Instant) -> R) -> R {
        let result = f(&mut self.session.borrow_mut(), now());
        self.wake();
        result
    }

    /// Sends what was queued; does nothing inside of [`OnEvents`], as the driver sends right after it.
    ///
    /// With nothing else under way it leaves right now, which saves a task switch. Otherwise the driver
    /// sends it in this turn of the runtime, after it has read what has arrived: so batches grow with the
    /// depth, and there are fewer wake-ups on both sides.
    pub fn commit(&self) {
        if self.driving.get() {
            return;
        }
        if self.session.borrow().running() > 0 {
            return self.wake();
        }
        let now = now();
        let result = {
            let mut session = self.session.borrow_mut();
            let mut transport = self.transport.borrow_mut();
            let Some(transport) = transport.as_mut() else {
                return;
            };
            let result = transport.try_send(now, &mut session, self.options.write_budget_bytes);
            if let Err(error) = &result {
                session.handle_lost(error.kind());
            }
            result
        };
        let session = self.session.borrow();
        let timer_is_late = match (session.poll_timeout(), self.armed.get()) {
            (Some(due), Some(armed)) => due < armed,
            (Some(_), None) => true,
            (None, _) => false,
        };
        if !matches!(result, Ok(Sent::All)) || timer_is_late || session.has_events() {
            // The rest is the driver's: to wait for room, to set its timer, to tell what happened.
            self.wake();
        }
    }

    /// Takes the commands that have no outcome; see [`Session::take_unfinished`]. Closes the
    /// connection.
    #[must_use]
    pub fn take_unfinished(&self) -> Vec<Unfinished> {
        self.discard_unwritten();
        let unfinished = self.session.borrow_mut().take_unfinished();
        self.wake();
        unfinished
    }

    /// What the socket counted.
    #[must_use]
    pub fn counters(&self) -> Counters {
        match self.transport.borrow().as_ref() {
            Some(transport) => transport.counters,
            None => self.last_counters.get(),
        }
    }

    /// Wakes the driver: a push onto the run queue of this thread, no system call.
    fn wake(&self) {
        if !self.driving.get()
            && let Some(waker) = self.waker.borrow().as_ref()
        {
            waker.wake_by_ref();
        }
    }

    /// Drops what is not on its way, and ends the session with it: a command that did not leave is known not
    /// to have been executed.
    fn discard_unwritten(&self) {
        if let Some(transport) = self.transport.borrow_mut().as_mut() {
            let bytes = transport.abandon();
            self.session.borrow_mut().discard_unwritten(bytes);
        }
    }

    /// Closes the socket, and ends the session if it has not ended.
    fn hang_up(&self) {
        self.discard_unwritten();
        if let Some(transport) = self.transport.borrow_mut().take() {
            self.last_counters.set(transport.counters);
        }
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("connected", &self.transport.borrow().is_some())
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}

/// The task side. Not `Send`: run it where its user runs.
pub struct Driver {
    handle: Rc<Handle>,
    /// Here and not in the handle: what it refers to usually owns the handle, and both shall go.
    on_events: OnEvents,
    /// Made by the first poll, inside of the runtime.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Driver {
    /// A driver for a connected session and its user's handle. `receive` may hold what came behind the
    /// login.
    #[must_use]
    pub fn new(
        stream: Box<dyn Socket>,
        mut session: Session,
        receive: ReceiveBuffer,
        options: DriverOptions,
        on_events: OnEvents,
    ) -> (Rc<Handle>, Self) {
        let mut transport = Transport::new(stream, receive);
        // Once only: bytes that wait for more must not count as a sign of life at every wake-up.
        transport.take_in(now(), &mut session);
        let handle = Rc::new(Handle {
            session: RefCell::new(session),
            transport: RefCell::new(Some(transport)),
            options,
            waker: RefCell::new(None),
            driving: Cell::new(false),
            armed: Cell::new(None),
            last_counters: Cell::new(Counters::default()),
        });
        let driver = Self {
            handle: handle.clone(),
            on_events,
            timer: None,
        };
        (handle, driver)
    }

    /// Pumps until the session is closed; the last event that the user is told of is
    /// [`Event::Closed`]. The socket is closed when this returns or is dropped.
    pub async fn run(mut self) {
        poll_fn(|cx| self.poll(cx)).await;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let handle = self.handle.clone();
        handle.driving.set(true);
        let result = self.drive(cx, &handle);
        handle.driving.set(false);
        result
    }

    fn drive(&mut self, cx: &mut Context<'_>, handle: &Handle) -> Poll<()> {
        let mut waker = handle.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|old| old.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        drop(waker);

        let now = now();
        // What has arrived counts before the clock does.
        let mut again = self.read(cx, handle, now);
        {
            let mut session = handle.session.borrow_mut();
            if session.poll_timeout().is_some_and(|due| due <= now) {
                session.handle_timeout(now);
            }
        }
        if handle.session.borrow().is_closed() {
            // Before the user asks what became of the commands, and before anything else is written.
            handle.discard_unwritten();
        }
        self.tell_user(handle);
        again |= self.write(cx, handle, now);
        // Sending can end a session too, and then the user has to know.
        if handle.session.borrow().is_closed() {
            handle.hang_up();
            self.tell_user(handle);
            return Poll::Ready(());
        }
        again |= self.arm(cx, handle);
        if again {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn tell_user(&self, handle: &Handle) {
        if handle.session.borrow().has_events() {
            (self.on_events)(handle);
        }
    }

    /// Reads until the socket has no more, or the budget is used up. Returns whether to come back.
    fn read(&mut self, cx: &mut Context<'_>, handle: &Handle, now: Instant) -> bool {
        let mut session = handle.session.borrow_mut();
        let mut transport = handle.transport.borrow_mut();
        let Some(transport) = transport.as_mut() else {
            return false;
        };
        transport.counters.wakeups += 1;
        let mut left = handle.options.read_budget_bytes;
        while !session.is_closed() {
            if left == 0 {
                return true;
            }
            match transport.poll_read(cx, now, &mut session) {
                Poll::Pending => return false,
                Poll::Ready(Err(error)) => {
                    session.handle_lost(error.kind());
                    return false;
                }
                Poll::Ready(Ok((n, more))) => {
                    left = left.saturating_sub(n);
                    if !more {
                        match transport.poll_readable(cx) {
                            Poll::Pending => return false,
                            // More came meanwhile, or the connection ended: the next read tells.
                            Poll::Ready(_) => {}
                        }
                    }
                }
            }
        }
        false
    }

    /// Writes what there is to send. Returns whether to come back.
    fn write(&mut self, cx: &mut Context<'_>, handle: &Handle, now: Instant) -> bool {
        let mut session = handle.session.borrow_mut();
        let mut transport = handle.transport.borrow_mut();
        let Some(transport) = transport.as_mut() else {
            return false;
        };
        loop {
            match transport.try_send(now, &mut session, handle.options.write_budget_bytes) {
                Ok(Sent::All) => return false,
                Ok(Sent::Budget) => return true,
                Ok(Sent::Blocked) => match transport.poll_writable(cx) {
                    Poll::Pending => return false,
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => {
                        session.handle_lost(error.kind());
                        return false;
                    }
                },
                Err(error) => {
                    session.handle_lost(error.kind());
                    return false;
                }
            }
        }
    }

    /// Sets the timer if it would fire too late; firing too early is cheaper than setting it for every
    /// I/O. Returns whether it has fired already.
    fn arm(&mut self, cx: &mut Context<'_>, handle: &Handle) -> bool {
        let Some(due) = handle.session.borrow().poll_timeout() else {
            return false;
        };
        let timer = self.timer.get_or_insert_with(|| {
            handle.armed.set(Some(due));
            let timers = handle.options.timers.as_ref();
            let _context = timers.map(tokio::runtime::Handle::enter);
            Box::pin(tokio::time::sleep_until(due.into()))
        });
        if timer.is_elapsed() || handle.armed.get().is_none_or(|armed| due < armed) {
            timer.as_mut().reset(due.into());
            handle.armed.set(Some(due));
        }
        timer.as_mut().poll(cx).is_ready()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Nobody pumps any more: what is submitted from now on is refused.
        self.handle.hang_up();
        self.handle
            .session
            .borrow_mut()
            .handle_lost(io::ErrorKind::ConnectionAborted);
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("handle", &self.handle)
            .finish_non_exhaustive()
    }
}

/// The runtime's clock, which tests can stop.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

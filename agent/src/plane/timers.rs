//! Timers of the threads that move data, on a thread of their own.
//!
//! A thread that waits for its sockets with a timeout sets a timer of the processor before, and takes it back
//! after; in a virtual machine that is work for the hypervisor. At depth 1, with two waits per I/O, a bare
//! relay spent 34 us of CPU per I/O with a timeout and 30 us without, and did 13 % more I/O. So timers that
//! are nearly always there and nearly never fire are kept here, and the threads that move data wait without.

use std::cell::RefCell;
use std::io;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

thread_local! {
    static CURRENT: RefCell<Option<Handle>> = const { RefCell::new(None) };
}

/// The thread of the timers; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Timers {
    handle: Handle,
    /// Dropped to end it.
    _running: oneshot::Sender<()>,
}

impl Timers {
    /// Starts the thread.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_time().build()?;
        let handle = runtime.handle().clone();
        let (running, ended) = oneshot::channel::<()>();
        std::thread::Builder::new()
            .name("berth-timers".to_owned())
            .spawn(move || runtime.block_on(ended))?;
        Ok(Self {
            handle,
            _running: running,
        })
    }

    /// From now on these are the calling thread's. They must be kept until its last timer is gone.
    pub(super) fn serve_this_thread(&self) {
        CURRENT.set(Some(self.handle.clone()));
    }
}

/// The timers that serve the calling thread; `None`: its own runtime's do.
pub(super) fn current() -> Option<Handle> {
    CURRENT.with_borrow(Clone::clone)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// A timer of theirs fires on a thread whose runtime has none.
    #[test]
    fn they_fire_elsewhere() {
        let timers = Timers::start().expect("starts");
        timers.serve_this_thread();
        let runtime = Builder::new_current_thread().build().expect("builds");
        runtime.block_on(async {
            let sleep = {
                let timers = current().expect("they serve");
                let _context = timers.enter();
                Box::pin(tokio::time::sleep(Duration::from_millis(1)))
            };
            sleep.await;
        });
        CURRENT.set(None);
    }
}

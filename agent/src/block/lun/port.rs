//! One logical unit of a session, shared by I/O and control commands.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use berth_iscsi::scsi::Cdb;
use berth_iscsi::session::{Command, TaskOutcome, Transfer};
use berth_iscsi::types::Lun as LunAddress;
use slab::Slab;

use super::Error;

/// Set in the tag of a control command; I/O commands have the slot of their job as tag.
const CONTROL_FLAG: u64 = 1 << 63;

/// Why a transport takes no commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The session is over.
    Closed,
    /// It holds as many commands as it may; the same command will be taken when some have ended.
    Full,
}

/// What carries commands to the target: a session in the product, a model in tests.
pub trait Transport {
    /// Queues a command.
    ///
    /// # Errors
    /// When the session is over or full; the command is given back by cloning beforehand.
    fn submit(&self, command: Command) -> Result<(), Refusal>;

    /// The next command that ended. Each submitted command ends exactly once, also when the session
    /// is lost (then as `Aborted`).
    fn poll_done(&self) -> Option<(u64, TaskOutcome)>;

    /// Whether the session is over: nothing more will end, nothing more is taken.
    fn is_closed(&self) -> bool;
}

/// Where commands for one LUN go in and their outcomes come out.
///
/// I/O outcomes are polled by the [`super::Lun`]; control commands (bring-up, refresh) are futures.
pub struct Port {
    transport: Box<dyn Transport>,
    address: LunAddress,
    command_timeout: Cell<Duration>,
    control: RefCell<Slab<Control>>,
}

#[derive(Default)]
struct Control {
    outcome: Option<TaskOutcome>,
    waker: Option<Waker>,
}

impl Port {
    /// A port for the LUN at `address`; each command must be answered within `command_timeout`.
    pub fn new(
        transport: Box<dyn Transport>,
        address: LunAddress,
        command_timeout: Duration,
    ) -> Rc<Self> {
        Rc::new(Self {
            transport,
            address,
            command_timeout: Cell::new(command_timeout),
            control: RefCell::default(),
        })
    }

    fn command(&self, tag: u64, cdb: &Cdb, transfer: Transfer) -> Command {
        let mut command = Command::new(tag, self.address, cdb.padded(), transfer);
        command.deadline = Some(crate::block::now() + self.command_timeout.get());
        command
    }

    /// Sends the command of a job.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub(super) fn submit_io(
        &self,
        slot: usize,
        cdb: &Cdb,
        transfer: Transfer,
    ) -> Result<(), Refusal> {
        self.transport
            .submit(self.command(slot as u64, cdb, transfer))
    }

    /// The next job whose command ended. Outcomes of control commands go to their futures.
    pub(super) fn poll_io(&self) -> Option<(usize, TaskOutcome)> {
        loop {
            let (tag, outcome) = self.transport.poll_done()?;
            if tag & CONTROL_FLAG == 0 {
                return Some((tag as usize, outcome));
            }
            self.finish_control((tag & !CONTROL_FLAG) as usize, outcome);
        }
    }

    /// Hands out the outcomes of control commands while there is no [`super::Lun`] yet.
    pub fn pump_control(&self) {
        while let Some((slot, _)) = self.poll_io() {
            debug_assert!(
                false,
                "an outcome for job {slot}, and there are no jobs yet"
            );
        }
        if self.is_closed() {
            self.wake_control();
        }
    }

    fn finish_control(&self, slot: usize, outcome: TaskOutcome) {
        let mut control = self.control.borrow_mut();
        // The future may have been dropped (its deadline was over); then nobody wants the outcome.
        if let Some(entry) = control.get_mut(slot) {
            entry.outcome = Some(outcome);
            if let Some(waker) = entry.waker.take() {
                waker.wake();
            }
        }
    }

    /// Whether the session is over.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.transport.is_closed()
    }

    /// Wakes everything that waits for an outcome, after the session was lost.
    pub(super) fn wake_control(&self) {
        for (_, entry) in &mut *self.control.borrow_mut() {
            if let Some(waker) = entry.waker.take() {
                waker.wake();
            }
        }
    }

    /// Sends a control command and waits for its outcome.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the session is lost or too full for the command.
    pub async fn execute(&self, cdb: Cdb, transfer: Transfer) -> Result<TaskOutcome, Error> {
        let slot = self.control.borrow_mut().insert(Control::default());
        let entry = ControlSlot { port: self, slot };
        let command = self.command(CONTROL_FLAG | slot as u64, &cdb, transfer);
        self.transport
            .submit(command)
            .map_err(|_| Error::Unavailable)?;
        poll_fn(|cx| {
            let mut control = entry.port.control.borrow_mut();
            let entry = &mut control[entry.slot];
            if let Some(outcome) = entry.outcome.take() {
                return Poll::Ready(Ok(outcome));
            }
            if self.transport.is_closed() {
                return Poll::Ready(Err(Error::Unavailable));
            }
            entry.waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}

/// Frees the slot of a control command, also when its future is dropped half-way.
struct ControlSlot<'a> {
    port: &'a Port,
    slot: usize,
}

impl Drop for ControlSlot<'_> {
    fn drop(&mut self) {
        self.port.control.borrow_mut().remove(self.slot);
    }
}

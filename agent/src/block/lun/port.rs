//! One logical unit as one session shows it, shared by I/O and control commands.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use berth_iscsi::scsi::Cdb;
use berth_iscsi::scsi::sense::Refresh;
use berth_iscsi::session::{Command, TaskManagement, TaskManagementOutcome, TaskOutcome, Transfer};
use berth_iscsi::types::Lun as LunAddress;

use super::Error;
use crate::block::now;

/// Set in the tag of a control command; tags of I/O commands leave it clear.
const CONTROL_FLAG: u64 = 1 << 63;

/// Why a transport takes no commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The session is over.
    Closed,
    /// It holds as many commands as it may; the same command will be taken when some have ended.
    Full,
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// It is over: nothing of it comes later.
    Outcome(TaskOutcome),
    /// The session ended before it had an outcome.
    Lost {
        /// It may have reached the target, which may carry it out, wholly or in part, at any time
        /// until the session is gone there too.
        sent: bool,
    },
    /// A task management request was answered.
    Managed(TaskManagementOutcome),
}

/// What carries commands to the target: a session in the product, a model in tests.
pub trait Transport {
    /// Queues a command, which leaves with [`Transport::commit`].
    ///
    /// # Errors
    /// When the session is over or full; the command is given back by cloning beforehand.
    fn submit(&self, command: Command) -> Result<(), Refusal>;

    /// Sends what is queued.
    fn commit(&self);

    /// Queues a task management request; it ends as [`Ending::Managed`], or not at all when the session ends.
    ///
    /// # Errors
    /// When the session is over or full.
    fn manage(&self, tag: u64, function: TaskManagement) -> Result<(), Refusal>;

    /// The next command that ended. Each submitted command ends exactly once.
    fn poll_done(&self) -> Option<(u64, Ending)>;

    /// Whether the session is over: nothing more will end, nothing more is taken.
    fn is_closed(&self) -> bool;

    /// What the target reported about the unit outside of any command (asynchronous event 0, RFC 7143
    /// 11.9.1), since this was asked last; it counts like a unit attention.
    fn take_reported(&self) -> Refresh {
        Refresh::NONE
    }
}

/// Where commands for one LUN of one session go in and their endings come out.
///
/// I/O endings are polled by the [`super::Lun`]; control commands (bring-up, refresh) are futures.
pub struct Port {
    transport: Box<dyn Transport>,
    address: LunAddress,
    command_timeout: Cell<Duration>,
    /// By number, which is never used again: what comes late for a command that was given up must not be
    /// taken for the answer to another one.
    control: RefCell<BTreeMap<u64, Control>>,
    next_control: Cell<u64>,
    /// What unit attentions said that control commands met.
    attentions: Cell<Refresh>,
}

#[derive(Default)]
struct Control {
    ending: Option<Ending>,
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
            next_control: Cell::new(0),
            attentions: Cell::new(Refresh::NONE),
        })
    }

    fn command(&self, tag: u64, cdb: &Cdb, transfer: Transfer) -> Command {
        let mut command = Command::new(tag, self.address, cdb.padded(), transfer);
        command.deadline = Some(now() + self.command_timeout.get());
        command
    }

    /// Queues an I/O command, which leaves with [`Port::commit`]; the top bit of its tag is clear.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub(super) fn submit_io(&self, tag: u64, cdb: &Cdb, transfer: Transfer) -> Result<(), Refusal> {
        debug_assert!(
            tag & CONTROL_FLAG == 0,
            "the top bit marks control commands"
        );
        self.transport.submit(self.command(tag, cdb, transfer))
    }

    /// Sends what is queued.
    pub(super) fn commit(&self) {
        self.transport.commit();
    }

    /// The next I/O command that ended. Endings of control commands go to their futures.
    pub(super) fn poll_io(&self) -> Option<(u64, Ending)> {
        loop {
            let (tag, ending) = self.transport.poll_done()?;
            if tag & CONTROL_FLAG == 0 {
                return Some((tag, ending));
            }
            self.finish_control(tag & !CONTROL_FLAG, ending);
        }
    }

    /// Hands out the endings of control commands while no [`super::Lun`] uses the port.
    pub fn pump_control(&self) {
        while let Some((tag, _)) = self.poll_io() {
            debug_assert!(false, "an ending for {tag}, and there is no I/O yet");
        }
        if self.is_closed() {
            self.wake_control();
        }
    }

    fn finish_control(&self, number: u64, ending: Ending) {
        let mut control = self.control.borrow_mut();
        // The future may have been dropped (its deadline was over); then nobody wants the ending.
        if let Some(entry) = control.get_mut(&number) {
            entry.ending = Some(ending);
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

    /// See [`Transport::take_reported`].
    pub(super) fn take_reported(&self) -> Refresh {
        self.transport.take_reported()
    }

    /// Wakes everything that waits for an ending, after the session was lost.
    pub(super) fn wake_control(&self) {
        for entry in self.control.borrow_mut().values_mut() {
            if let Some(waker) = entry.waker.take() {
                waker.wake();
            }
        }
    }

    /// Notes what a unit attention said that a control command met and cleared.
    pub(super) fn note_attention(&self, refresh: Refresh) {
        self.attentions.set(self.attentions.get().and(refresh));
    }

    /// What was noted since this was asked last.
    pub(super) fn take_attentions(&self) -> Refresh {
        self.attentions.replace(Refresh::NONE)
    }

    /// Sends a control command and waits for its outcome.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the session is lost or too full for the command.
    pub async fn execute(&self, cdb: Cdb, transfer: Transfer) -> Result<TaskOutcome, Error> {
        let entry = ControlEntry::new(self);
        let command = self.command(CONTROL_FLAG | entry.number, &cdb, transfer);
        self.transport
            .submit(command)
            .map_err(|_| Error::Unavailable)?;
        self.transport.commit();
        match entry.ending().await {
            Some(Ending::Outcome(outcome)) => Ok(outcome),
            _ => Err(Error::Unavailable),
        }
    }

    /// Carries out a task management function on the unit.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the session is lost; [`Error::NotSupported`] when the target refuses.
    pub async fn manage(&self, function: TaskManagement) -> Result<(), Error> {
        let entry = ControlEntry::new(self);
        self.transport
            .manage(CONTROL_FLAG | entry.number, function)
            .map_err(|_| Error::Unavailable)?;
        match entry.ending().await {
            Some(Ending::Managed(outcome)) if outcome.is_complete() => Ok(()),
            Some(Ending::Managed(_)) => Err(Error::NotSupported),
            _ => Err(Error::Unavailable),
        }
    }
}

/// Forgets a control command, also when its future is dropped half-way.
struct ControlEntry<'a> {
    port: &'a Port,
    number: u64,
}

impl<'a> ControlEntry<'a> {
    fn new(port: &'a Port) -> Self {
        let number = port.next_control.get();
        port.next_control.set(number + 1);
        port.control.borrow_mut().insert(number, Control::default());
        Self { port, number }
    }

    /// How it ended; `None` when the session ended before.
    async fn ending(&self) -> Option<Ending> {
        poll_fn(|cx| {
            let mut control = self.port.control.borrow_mut();
            let entry = control
                .get_mut(&self.number)
                .expect("it is removed when this is dropped");
            if let Some(ending) = entry.ending.take() {
                return Poll::Ready(Some(ending));
            }
            if self.port.transport.is_closed() {
                return Poll::Ready(None);
            }
            entry.waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}

impl Drop for ControlEntry<'_> {
    fn drop(&mut self) {
        self.port.control.borrow_mut().remove(&self.number);
    }
}

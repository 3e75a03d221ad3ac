//! One device shared by several clients on one thread.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use slab::Slab;

use super::{BlockDevice, Completion, Geometry, Request};

/// Bits of a [`super::RequestId`] that a client may use; the hub keeps the client's number above them.
const CLIENT_ID_BITS: u32 = 32;

/// Shares one device among clients (NBD connections) that live on the same thread.
///
/// Each client gets back its own completions and no others. There is no lock and no channel: a
/// completion is put into its client's queue and the client's task is woken.
pub struct Hub<D: ?Sized> {
    clients: Slab<ClientState>,
    /// Clients that got completions in the present pump and are to be woken once.
    to_wake: Vec<usize>,
    closed: bool,
    /// Something was submitted since the last pump.
    submitted: bool,
    device: D,
}

#[derive(Default)]
struct ClientState {
    completions: VecDeque<Completion>,
    in_flight: usize,
    waker: Option<Waker>,
    queued_for_wake: bool,
    /// The handle is gone; the slot is kept until the last completion has come.
    abandoned: bool,
}

/// The device of a hub, whatever its layers are.
pub type DynHub = Hub<dyn BlockDevice>;

impl<D: BlockDevice> Hub<D> {
    /// Puts a hub over `device`.
    pub fn new(device: D) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self {
            clients: Slab::new(),
            to_wake: Vec::new(),
            closed: false,
            submitted: false,
            device,
        }))
    }
}

impl<D: BlockDevice + ?Sized> Hub<D> {
    /// The device below.
    pub fn device(&mut self) -> &mut D {
        &mut self.device
    }

    /// Requests in flight of all clients.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.clients
            .iter()
            .map(|(_, client)| client.in_flight)
            .sum()
    }

    /// Number of clients.
    #[must_use]
    pub fn client_count(&self) -> usize {
        self.clients
            .iter()
            .filter(|(_, client)| !client.abandoned)
            .count()
    }

    /// Tells all clients that the device is going away: [`Client::poll_complete`] answers `None` once
    /// their requests are answered.
    pub fn close(&mut self) {
        self.closed = true;
        for (_, client) in &mut self.clients {
            if let Some(waker) = client.waker.take() {
                waker.wake();
            }
        }
    }

    /// Moves completions from the device to their clients and wakes those clients; what was submitted, or is
    /// because of them, leaves. To be called after the device made progress (its session received
    /// something, a timer fired).
    pub fn pump(&mut self) {
        self.submitted = false;
        while let Some(mut completion) = self.device.poll_complete() {
            let index = (completion.id >> CLIENT_ID_BITS) as usize;
            completion.id &= (1 << CLIENT_ID_BITS) - 1;
            let client = self
                .clients
                .get_mut(index)
                .expect("a slot is kept while it has requests");
            debug_assert!(client.in_flight > 0, "a request was answered twice");
            client.in_flight -= 1;
            if client.abandoned {
                if client.in_flight == 0 {
                    self.clients.remove(index);
                }
                continue;
            }
            client.completions.push_back(completion);
            if !client.queued_for_wake {
                client.queued_for_wake = true;
                self.to_wake.push(index);
            }
        }
        self.device.commit();
        for index in self.to_wake.drain(..) {
            if let Some(client) = self.clients.get_mut(index) {
                client.queued_for_wake = false;
                if let Some(waker) = client.waker.take() {
                    waker.wake();
                }
            }
        }
    }
}

/// One user of a shared device; lives on the device's thread.
pub struct Client {
    hub: Rc<RefCell<DynHub>>,
    index: usize,
}

impl Client {
    /// Registers a new client.
    pub fn new(hub: Rc<RefCell<DynHub>>) -> Self {
        let index = hub.borrow_mut().clients.insert(ClientState::default());
        Self { hub, index }
    }

    /// Size, limits and abilities of the device, as of now.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.hub.borrow().device.geometry().clone()
    }

    /// Submits a request. Its id must fit 32 bits and be unique among this client's requests in
    /// flight. It leaves, with all that were submitted before, when a client waits: see
    /// [`Client::poll_complete`].
    pub fn submit(&self, mut request: Request) {
        let hub = &mut *self.hub.borrow_mut();
        debug_assert!(
            request.id >> CLIENT_ID_BITS == 0,
            "request id {:#x} is too large",
            request.id
        );
        request.id |= (self.index as u64) << CLIENT_ID_BITS;
        hub.clients[self.index].in_flight += 1;
        hub.submitted = true;
        hub.device.submit(request);
    }

    /// Requests that are not answered yet (completions that wait to be polled not counted).
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.hub.borrow().clients[self.index].in_flight
    }

    /// The next completion; `None` when the device is going away and nothing is in flight any more.
    ///
    /// Sends what was submitted, and gives what the device answers at once.
    pub fn poll_complete(&self, cx: &mut Context<'_>) -> Poll<Option<Completion>> {
        let hub = &mut *self.hub.borrow_mut();
        if hub.submitted {
            hub.pump();
        }
        let client = &mut hub.clients[self.index];
        if let Some(completion) = client.completions.pop_front() {
            return Poll::Ready(Some(completion));
        }
        if hub.closed && client.in_flight == 0 {
            return Poll::Ready(None);
        }
        match &mut client.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Requests in flight go on: they were taken. Only their answers have nobody to go to.
        let hub = &mut *self.hub.borrow_mut();
        if hub.submitted {
            hub.pump();
        }
        let client = &mut hub.clients[self.index];
        if client.in_flight == 0 {
            hub.clients.remove(self.index);
        } else {
            client.abandoned = true;
            client.completions.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Op;
    use super::super::ram::RamDevice;
    use super::*;
    use std::cell::Cell;

    /// Answers what was committed, and counts how often that was.
    struct Committed {
        ram: RamDevice,
        waiting: Vec<Request>,
        commits: Rc<Cell<u32>>,
    }

    impl BlockDevice for Committed {
        fn geometry(&self) -> &Geometry {
            self.ram.geometry()
        }

        fn submit(&mut self, request: Request) {
            self.waiting.push(request);
        }

        fn commit(&mut self) {
            self.commits.set(self.commits.get() + 1);
            for request in self.waiting.drain(..) {
                self.ram.submit(request);
            }
        }

        fn poll_complete(&mut self) -> Option<Completion> {
            self.ram.poll_complete()
        }
    }

    fn hub() -> (Rc<RefCell<DynHub>>, Rc<Cell<u32>>) {
        let commits = Rc::new(Cell::new(0));
        let device = Committed {
            ram: RamDevice::new(1 << 20),
            waiting: Vec::new(),
            commits: Rc::clone(&commits),
        };
        (Hub::new(device), commits)
    }

    fn flush(id: u64) -> Request {
        Request { id, op: Op::Flush }
    }

    #[test]
    fn a_batch_leaves_in_one_piece_when_its_client_waits() {
        let (hub, commits) = hub();
        let client = Client::new(Rc::clone(&hub));
        let mut cx = Context::from_waker(Waker::noop());
        for id in 0..3 {
            client.submit(flush(id));
        }
        assert_eq!(commits.get(), 0);
        assert!(client.poll_complete(&mut cx).is_pending());
        assert_eq!(commits.get(), 1);
        hub.borrow_mut().pump();
        for id in 0..3 {
            let Poll::Ready(Some(done)) = client.poll_complete(&mut cx) else {
                panic!("an answer");
            };
            assert_eq!(done.id, id);
        }
        assert!(client.poll_complete(&mut cx).is_pending());
        assert_eq!(commits.get(), 2, "waiting alone sends nothing");
    }

    /// A connection that ends before it waits has submitted all the same.
    #[test]
    fn what_was_submitted_leaves_without_its_client() {
        let (hub, commits) = hub();
        let client = Client::new(Rc::clone(&hub));
        client.submit(flush(1));
        drop(client);
        assert_eq!(commits.get(), 1);
        hub.borrow_mut().pump();
        assert_eq!(hub.borrow().in_flight(), 0);
    }
}

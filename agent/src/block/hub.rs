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

    /// Moves completions from the device to their clients and wakes those clients. To be called
    /// after the device made progress (its session received something, a timer fired).
    pub fn pump(&mut self) {
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
    /// flight.
    pub fn submit(&self, mut request: Request) {
        let hub = &mut *self.hub.borrow_mut();
        debug_assert!(
            request.id >> CLIENT_ID_BITS == 0,
            "request id {:#x} is too large",
            request.id
        );
        request.id |= (self.index as u64) << CLIENT_ID_BITS;
        hub.clients[self.index].in_flight += 1;
        hub.device.submit(request);
    }

    /// Requests that are not answered yet (completions that wait to be polled not counted).
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.hub.borrow().clients[self.index].in_flight
    }

    /// Collects what the device can answer at once. To be called after a batch of
    /// [`Client::submit`] (a layer may answer without I/O).
    pub fn pump(&self) {
        self.hub.borrow_mut().pump();
    }

    /// The next completion; `None` when the device is going away and nothing is in flight any more.
    pub fn poll_complete(&self, cx: &mut Context<'_>) -> Poll<Option<Completion>> {
        let hub = &mut *self.hub.borrow_mut();
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
        let client = &mut hub.clients[self.index];
        if client.in_flight == 0 {
            hub.clients.remove(self.index);
        } else {
            client.abandoned = true;
            client.completions.clear();
        }
    }
}

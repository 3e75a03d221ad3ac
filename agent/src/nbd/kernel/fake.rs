//! A kernel for tests: devices whose pitfalls are those of the real driver.
//!
//! - I/O arrives before CONNECT is answered, so a connection that is not served yet makes CONNECT hang.
//! - RECONFIGURE with a socket succeeds without a dead slot, and drops the socket.
//! - A wrong identifier, and a device that is not there, are `EINVAL`.
//! - What was in flight on a dead connection is sent again on the next one, under another cookie.
//! - DISCONNECT fails what is in flight; the device stays until its last user is gone.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tokio::sync::broadcast;

use super::driver::{
    Claim, Connect, Driver, DriverError, Facts, Replace, Size, Tuning, Unavailable,
};
use super::users::User;
use crate::nbd::wire::CommandFlags;
use crate::nbd::wire::request::{Command, RequestHeader};

/// Longest wait for I/O that must be answered.
const LIMIT: Duration = Duration::from_secs(30);

/// The kernel. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct FakeKernel(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// A request was answered, or a connection or a device has gone.
    changed: Condvar,
    dead_links: broadcast::Sender<u32>,
}

#[derive(Debug, Default)]
struct State {
    missing: bool,
    /// Errors that the next CONNECTs meet.
    refuse: VecDeque<Errno>,
    devices: BTreeMap<u32, Device>,
    /// What was asked for, in order.
    asked: Vec<String>,
    cookies: u64,
}

#[derive(Debug)]
struct Device {
    backend: String,
    flags: u16,
    size: Size,
    /// The slot; `None` when its connection is dead.
    socket: Option<UnixStream>,
    /// Counts connections: a reader of an older one must not touch a newer one.
    generation: u64,
    disconnected: bool,
    users: Vec<User>,
    in_flight: BTreeMap<u64, Io>,
    done: BTreeMap<u64, Result<Vec<u8>, u32>>,
}

/// A request of a user of the device, under its own number.
#[derive(Debug, Clone)]
struct Io {
    number: u64,
    header: RequestHeader,
    data: Vec<u8>,
}

impl FakeKernel {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            dead_links: broadcast::Sender::new(64),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The module is not there, or comes.
    pub(crate) fn set_missing(&self, missing: bool) {
        self.lock().missing = missing;
    }

    /// The next CONNECT is refused.
    pub(crate) fn refuse_connect(&self, errno: Errno) {
        self.lock().refuse.push_back(errno);
    }

    /// What was asked for so far.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.lock().asked.clone()
    }

    /// Somebody opens the device, or all close it.
    pub(crate) fn set_users(&self, index: u32, users: Vec<User>) {
        let mut state = self.lock();
        let Some(device) = state.devices.get_mut(&index) else {
            return;
        };
        device.users = users;
        if device.disconnected && device.users.is_empty() {
            state.devices.remove(&index);
        }
    }

    /// The flags that a device was connected with.
    pub(crate) fn flags(&self, index: u32) -> u16 {
        self.lock().devices[&index].flags
    }

    /// Somebody else disconnects it (`nbd-client -d`).
    pub(crate) fn disconnect_from_outside(&self, index: u32) {
        self.take_away(index).expect("the device is there");
    }

    /// Ends the connection from the kernel's side, as after a malformed answer.
    pub(crate) fn cut(&self, index: u32) {
        if let Some(socket) = &self.lock().devices[&index].socket {
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Writes, waiting as long as the device has no connection.
    pub(crate) fn write(&self, index: u32, offset_bytes: u64, data: &[u8]) -> Result<(), u32> {
        let len_bytes = data.len() as u64;
        self.submit(index, Command::WRITE, offset_bytes, len_bytes, data)
            .map(drop)
    }

    /// Reads, waiting as long as the device has no connection.
    pub(crate) fn read(&self, index: u32, offset_bytes: u64, len: usize) -> Result<Vec<u8>, u32> {
        self.submit(index, Command::READ, offset_bytes, len as u64, &[])
    }

    fn submit(
        &self,
        index: u32,
        command: Command,
        offset_bytes: u64,
        len_bytes: u64,
        data: &[u8],
    ) -> Result<Vec<u8>, u32> {
        let mut state = self.lock();
        state.cookies += 1;
        let number = state.cookies;
        let io = Io {
            number,
            header: RequestHeader {
                flags: CommandFlags::empty(),
                command,
                cookie: number,
                offset_bytes,
                len_bytes,
            },
            data: data.to_vec(),
        };
        let device = state.devices.get_mut(&index).ok_or(5_u32)?;
        if device.disconnected {
            return Err(5);
        }
        device.send(io);
        let deadline = Instant::now() + LIMIT;
        loop {
            let device = state.devices.get_mut(&index).ok_or(5_u32)?;
            if let Some(done) = device.done.remove(&number) {
                return done;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "request {number} of nbd{index} hangs");
            let waited = self.0.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Puts a connection into the slot and sends what waits.
    fn plug(&self, index: u32, socket: OwnedFd) {
        let mut state = self.lock();
        let device = state.devices.get_mut(&index).expect("checked");
        let socket = UnixStream::from(socket);
        let reader = socket.try_clone().expect("another handle");
        device.socket = Some(socket);
        device.generation += 1;
        let generation = device.generation;
        let kernel = self.clone();
        std::thread::spawn(move || kernel.receive(index, generation, reader));
        for io in std::mem::take(&mut device.in_flight).into_values() {
            device.send(io);
        }
    }

    /// Takes answers until the connection is over.
    fn receive(&self, index: u32, generation: u64, mut socket: UnixStream) {
        let mut receive = || -> io::Result<()> {
            loop {
                let mut header = [0; 16];
                socket.read_exact(&mut header)?;
                let error = u32::from_be_bytes(header[4..8].try_into().expect("4 bytes"));
                let cookie = u64::from_be_bytes(header[8..].try_into().expect("8 bytes"));
                let mut state = self.lock();
                let device = state
                    .devices
                    .get_mut(&index)
                    .ok_or(io::ErrorKind::NotFound)?;
                let io = device
                    .in_flight
                    .remove(&cookie)
                    .unwrap_or_else(|| panic!("an answer to {cookie}, which nobody sent"));
                drop(state);
                let mut data = Vec::new();
                if io.header.command == Command::READ && error == 0 {
                    data = vec![0; usize::try_from(io.header.len_bytes).expect("small")];
                    socket.read_exact(&mut data)?;
                }
                let result = if error == 0 { Ok(data) } else { Err(error) };
                let mut state = self.lock();
                let device = state
                    .devices
                    .get_mut(&index)
                    .ok_or(io::ErrorKind::NotFound)?;
                device.done.insert(io.number, result);
                self.0.changed.notify_all();
            }
        };
        let _ = receive();
        let mut state = self.lock();
        if let Some(device) = state.devices.get_mut(&index)
            && device.generation == generation
            && !device.disconnected
        {
            device.socket = None;
            let _ = self.0.dead_links.send(index);
        }
    }

    fn take_away(&self, index: u32) -> Result<(), DriverError> {
        let mut state = self.lock();
        let device = state.ours(index, None)?;
        device.disconnected = true;
        if let Some(socket) = device.socket.take() {
            let header = RequestHeader {
                flags: CommandFlags::empty(),
                command: Command::DISC,
                cookie: 0,
                offset_bytes: 0,
                len_bytes: 0,
            };
            let _ = (&socket).write_all(&header.emit_compact().expect("fits"));
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
        for (_, io) in std::mem::take(&mut device.in_flight) {
            device.done.insert(io.number, Err(5));
        }
        if device.users.is_empty() {
            state.devices.remove(&index);
        }
        self.0.changed.notify_all();
        Ok(())
    }
}

impl Device {
    /// Sends it under a new cookie, or keeps it for the next connection.
    fn send(&mut self, mut io: Io) {
        // The number in the low half, as the driver's tag; the count of connections in the high half.
        let cookie = io.number | self.generation << 32;
        io.header.cookie = cookie;
        if let Some(mut socket) = self.socket.as_ref() {
            let header = io.header.emit_compact().expect("fits");
            // An error ends the connection, which the reader sees; the request stays.
            let _ = socket
                .write_all(&header)
                .and_then(|()| socket.write_all(&io.data));
        }
        self.in_flight.insert(cookie, io);
    }
}

impl State {
    fn ours(&mut self, index: u32, backend: Option<&str>) -> Result<&mut Device, DriverError> {
        let refused = || DriverError::Refused {
            what: "the request",
            errno: Errno::INVAL,
        };
        let device = self.devices.get_mut(&index).ok_or_else(refused)?;
        let matches = backend.is_none_or(|backend| backend == device.backend);
        if device.disconnected || !matches {
            return Err(refused());
        }
        Ok(device)
    }
}

impl Driver for FakeKernel {
    fn available(&self) -> Result<(), Unavailable> {
        match self.lock().missing {
            true => Err(Unavailable::NoFamily),
            false => Ok(()),
        }
    }

    fn connect(&self, connect: &Connect<'_>) -> Result<u32, DriverError> {
        let mut state = self.lock();
        state.asked.push(format!("connect {}", connect.backend));
        if let Some(errno) = state.refuse.pop_front() {
            return Err(DriverError::Refused {
                what: "CONNECT",
                errno,
            });
        }
        let index = (0..).find(|index| !state.devices.contains_key(index));
        let index = index.expect("numbers do not end");
        let device = Device {
            backend: connect.backend.to_owned(),
            flags: connect.flags,
            size: connect.size,
            socket: None,
            generation: 0,
            disconnected: false,
            users: Vec::new(),
            in_flight: BTreeMap::new(),
            done: BTreeMap::new(),
        };
        state.devices.insert(index, device);
        drop(state);
        self.plug(
            index,
            connect.socket.try_clone_to_owned().expect("a handle"),
        );
        // udev looks into the device before anybody knows that it is there.
        self.read(index, 0, 512).expect("the first read");
        Ok(index)
    }

    fn replace(&self, replace: &Replace<'_>) -> Result<(), DriverError> {
        let mut state = self.lock();
        state.asked.push(format!("replace {}", replace.index));
        let device = state.ours(replace.index, Some(replace.backend))?;
        if device.socket.is_some() {
            return Ok(()); // And the socket is dropped.
        }
        drop(state);
        let socket = replace.socket.try_clone_to_owned().expect("a handle");
        self.plug(replace.index, socket);
        Ok(())
    }

    fn resize(&self, index: u32, backend: &str, size: Size) -> Result<(), DriverError> {
        let mut state = self.lock();
        state
            .asked
            .push(format!("resize {index} {}", size.size_bytes));
        state.ours(index, Some(backend))?.size = size;
        Ok(())
    }

    fn disconnect(&self, index: u32) -> Result<(), DriverError> {
        self.lock().asked.push(format!("disconnect {index}"));
        self.take_away(index)
    }

    fn devices(&self) -> io::Result<Vec<Facts>> {
        let indices: Vec<u32> = self.lock().devices.keys().copied().collect();
        indices.into_iter().map(|index| self.facts(index)).collect()
    }

    fn facts(&self, index: u32) -> io::Result<Facts> {
        let state = self.lock();
        let Some(device) = state.devices.get(&index) else {
            return Ok(Facts {
                index,
                ..Facts::default()
            });
        };
        Ok(Facts {
            index,
            pid: Some(1),
            backend: Some(device.backend.clone()),
            size_bytes: device.size.size_bytes,
            held: true,
        })
    }

    fn users(&self, index: u32) -> io::Result<Vec<User>> {
        let state = self.lock();
        Ok(state
            .devices
            .get(&index)
            .map_or_else(Vec::new, |device| device.users.clone()))
    }

    fn claim(&self, index: u32) -> io::Result<Option<Claim>> {
        Ok(self.users(index)?.is_empty().then(|| Claim::new(None)))
    }

    fn flush(&self, index: u32) -> io::Result<()> {
        self.lock().asked.push(format!("flush {index}"));
        self.submit(index, Command::FLUSH, 0, 0, &[])
            .map(drop)
            .map_err(|_| io::Error::from_raw_os_error(5))
    }

    fn probe(&self, index: u32) -> io::Result<()> {
        let read = self.read(index, 0, 512).map(drop);
        read.map_err(|_| io::Error::from_raw_os_error(5))
    }

    fn tune(&self, index: u32, _tuning: &Tuning) -> io::Result<()> {
        self.lock().asked.push(format!("tune {index}"));
        Ok(())
    }

    fn dead_links(&self) -> broadcast::Receiver<u32> {
        self.0.dead_links.subscribe()
    }
}

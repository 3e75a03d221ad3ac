//! Generic netlink, family `nbd`: requests to the driver, and its notices.

use std::sync::{Mutex, PoisonError};

use neli::consts::nl::{GenlId, NlmF};
use neli::consts::socket::NlFamily;
use neli::err::SocketError;
use neli::genl::{AttrTypeBuilder, Genlmsghdr, GenlmsghdrBuilder, Nlattr, NlattrBuilder};
use neli::nl::{NlPayload, NlmsghdrBuilder};
use neli::socket::asynchronous::NlSocketHandle as AsyncSocket;
use neli::socket::synchronous::NlSocketHandle;
use neli::types::{Buffer, GenlBuffer};
use neli::utils::Groups;
use rustix::io::Errno;

/// Name of the family.
const FAMILY: &str = "nbd";
/// Name of the multicast group that notices come from.
const GROUP: &str = "nbd_mc_group";
/// Version of the family.
const VERSION: u8 = 1;
/// Version of the controller that families are looked up with.
const CONTROL_VERSION: u8 = 2;

/// Requests and notices of the family (`linux/nbd-netlink.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Command {
    Connect = 1,
    Disconnect = 2,
    Reconfigure = 3,
    LinkDead = 4,
    Status = 5,
}

/// Attributes of the family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Attribute {
    Index = 1,
    SizeBytes = 2,
    BlockSizeBytes = 3,
    Timeout = 4,
    ServerFlags = 5,
    Sockets = 7,
    DeadConnTimeout = 8,
    DeviceList = 9,
    BackendIdentifier = 10,
}

/// Inside of [`Attribute::Sockets`] and of each item in it.
const SOCK_ITEM: u16 = 1;
const SOCK_FD: u16 = 1;
/// Inside of [`Attribute::DeviceList`] and of each item in it.
const DEVICE_ITEM: u16 = 1;
const DEVICE_INDEX: u16 = 1;
const DEVICE_CONNECTED: u16 = 2;

/// Commands and attributes of the controller (`linux/genetlink.h`).
const CTRL_GETFAMILY: u8 = 3;
const CTRL_FAMILY_ID: u16 = 1;
const CTRL_FAMILY_NAME: u16 = 2;
const CTRL_MCAST_GROUPS: u16 = 7;
const CTRL_GROUP_NAME: u16 = 1;
const CTRL_GROUP_ID: u16 = 2;

type Attr = Nlattr<u16, Buffer>;
type Message = Genlmsghdr<u8, u16>;

/// Why there was no answer to a request.
#[derive(Debug, thiserror::Error)]
pub(super) enum NetlinkError {
    /// The kernel refused.
    #[error("{0}")]
    Refused(Errno),
    /// The socket failed, or what came was no answer.
    #[error("netlink: {0}")]
    Socket(#[from] SocketError),
    /// A message could not be made.
    #[error("netlink: {0}")]
    Message(String),
    /// The answer lacks something.
    #[error("the answer has no {0}")]
    Missing(&'static str),
}

fn unmade(error: impl std::fmt::Debug) -> NetlinkError {
    NetlinkError::Message(format!("{error:?}"))
}

/// The family as the kernel knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Family {
    id: u16,
    pub(super) group: u32,
}

/// A socket for requests, which are carried out one at a time. It stays open for as long as the daemon lives:
/// kernels to come may end a device's connections with the socket that made them.
pub(super) struct Client {
    /// With the sequence number of the last request.
    socket: Mutex<(NlSocketHandle, u32)>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// Opens the socket. Needs no rights.
    pub(super) fn open() -> Result<Self, NetlinkError> {
        let socket = NlSocketHandle::connect(NlFamily::Generic, None, Groups::empty())?;
        Ok(Self {
            socket: Mutex::new((socket, 0)),
        })
    }

    /// Looks the family up; `None` when the kernel does not know it.
    pub(super) fn family(&self) -> Result<Option<Family>, NetlinkError> {
        let name = attribute(CTRL_FAMILY_NAME, FAMILY)?;
        let answer = self.call(
            GenlId::Ctrl.into(),
            CTRL_GETFAMILY,
            CONTROL_VERSION,
            vec![name],
        );
        let answers = match answer {
            Ok(answers) => answers,
            Err(NetlinkError::Refused(Errno::NOENT)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut family = (None, None);
        for message in &answers {
            for attr in message.attrs().iter() {
                match *attr.nla_type().nla_type() {
                    CTRL_FAMILY_ID => family.0 = integer(attr, u16::from_ne_bytes),
                    CTRL_MCAST_GROUPS => family.1 = group_of(attr),
                    _ => {}
                }
            }
        }
        Ok(Some(Family {
            id: family.0.ok_or(NetlinkError::Missing("family number"))?,
            group: family.1.ok_or(NetlinkError::Missing("multicast group"))?,
        }))
    }

    /// Sends a request of the family and gives the answers. The request has been carried out when this
    /// returns.
    pub(super) fn request(
        &self,
        family: Family,
        command: Command,
        attributes: Vec<Attr>,
    ) -> Result<Vec<Message>, NetlinkError> {
        self.call(family.id, command as u8, VERSION, attributes)
    }

    fn call(
        &self,
        family: u16,
        command: u8,
        version: u8,
        attributes: Vec<Attr>,
    ) -> Result<Vec<Message>, NetlinkError> {
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let (socket, last) = &mut *socket;
        *last = last.wrapping_add(1);
        let payload = GenlmsghdrBuilder::default()
            .cmd(command)
            .version(version)
            .attrs(attributes.into_iter().collect::<GenlBuffer<_, _>>())
            .build()
            .map_err(unmade)?;
        let message = NlmsghdrBuilder::default()
            .nl_type(family)
            .nl_flags(NlmF::REQUEST | NlmF::ACK)
            .nl_pid(socket.pid())
            .nl_seq(*last)
            .nl_payload(NlPayload::Payload(payload))
            .build()
            .map_err(unmade)?;
        socket.send(&message)?;
        let mut answers = Vec::new();
        // Every request is acknowledged, so this ends.
        loop {
            let (messages, _) = socket.recv_all::<u16, Message>()?;
            for message in messages {
                if message.nl_seq() != last {
                    continue; // Of a request that was given up.
                }
                match message.nl_payload() {
                    NlPayload::Ack(_) => return Ok(answers),
                    NlPayload::Err(error) => {
                        let errno = Errno::from_raw_os_error(error.error().wrapping_neg());
                        return Err(NetlinkError::Refused(errno));
                    }
                    NlPayload::Payload(payload) => answers.push(payload.clone()),
                    NlPayload::DumpExtAck(_) | NlPayload::Empty => {}
                }
            }
        }
    }
}

/// Listens to notices of the family.
pub(super) struct Notices {
    socket: AsyncSocket,
}

impl Notices {
    /// Subscribes. Needs a runtime.
    pub(super) fn subscribe(family: Family) -> Result<Self, NetlinkError> {
        let socket = AsyncSocket::connect(NlFamily::Generic, None, Groups::empty())?;
        socket.add_mcast_membership(Groups::new_groups(&[family.group]))?;
        Ok(Self { socket })
    }

    /// The next devices of which a connection has died. An error may mean that some were missed.
    pub(super) async fn dead_links(&self) -> Result<Vec<u32>, NetlinkError> {
        let (messages, _) = self.socket.recv_all::<u16, Message>().await?;
        let mut dead = Vec::new();
        for message in messages {
            if let NlPayload::Payload(payload) = message.nl_payload()
                && *payload.cmd() == Command::LinkDead as u8
            {
                dead.extend(index_of(payload));
            }
        }
        Ok(dead)
    }
}

/// An attribute with a value.
pub(super) fn attribute(
    kind: u16,
    value: impl neli::Size + neli::ToBytes,
) -> Result<Attr, NetlinkError> {
    let kind = AttrTypeBuilder::default()
        .nla_type(kind)
        .build()
        .map_err(unmade)?;
    NlattrBuilder::default()
        .nla_type(kind)
        .nla_payload(value)
        .build()
        .map_err(unmade)
}

/// The attribute that names one socket of ours.
pub(super) fn socket_attribute(fd: i32) -> Result<Attr, NetlinkError> {
    let fd = attribute(SOCK_FD, u32::try_from(fd).map_err(unmade)?)?;
    let item = attribute(SOCK_ITEM, Buffer::from(Vec::new()))?
        .nest(&fd)
        .map_err(unmade)?;
    attribute(Attribute::Sockets as u16, Buffer::from(Vec::new()))?
        .nest(&item)
        .map_err(unmade)
}

/// The device that an answer or a notice is about.
pub(super) fn index_of(message: &Message) -> Option<u32> {
    let mut attributes = message.attrs().iter();
    let index = attributes.find(|attr| *attr.nla_type().nla_type() == Attribute::Index as u16)?;
    integer(index, u32::from_ne_bytes)
}

/// What an answer to [`Command::Status`] says: whether somebody holds each device.
pub(super) fn held_devices(message: &Message) -> Vec<(u32, bool)> {
    let mut devices = Vec::new();
    for list in message.attrs().iter() {
        if *list.nla_type().nla_type() != Attribute::DeviceList as u16 {
            continue;
        }
        let Ok(items) = list.get_attr_handle::<u16>() else {
            continue;
        };
        for item in items.iter() {
            if *item.nla_type().nla_type() != DEVICE_ITEM {
                continue;
            }
            let Ok(fields) = item.get_attr_handle::<u16>() else {
                continue;
            };
            let (mut index, mut held) = (None, None);
            for field in fields.iter() {
                match *field.nla_type().nla_type() {
                    DEVICE_INDEX => index = integer(field, u32::from_ne_bytes),
                    DEVICE_CONNECTED => held = integer(field, u8::from_ne_bytes),
                    _ => {}
                }
            }
            devices.extend(index.zip(held.map(|held| held != 0)));
        }
    }
    devices
}

fn group_of(groups: &Attr) -> Option<u32> {
    let groups = groups.get_attr_handle::<u16>().ok()?;
    for group in groups.iter() {
        let Ok(fields) = group.get_attr_handle::<u16>() else {
            continue;
        };
        let (mut name, mut id) = (false, None);
        for field in fields.iter() {
            match *field.nla_type().nla_type() {
                CTRL_GROUP_NAME => {
                    let text: &[u8] = field.nla_payload().as_ref();
                    name = text.strip_suffix(b"\0").unwrap_or(text) == GROUP.as_bytes();
                }
                CTRL_GROUP_ID => id = integer(field, u32::from_ne_bytes),
                _ => {}
            }
        }
        if name {
            return id;
        }
    }
    None
}

/// A number of exactly the right length.
fn integer<const N: usize, T>(attr: &Attr, from: impl Fn([u8; N]) -> T) -> Option<T> {
    let bytes: &[u8] = attr.nla_payload().as_ref();
    bytes.try_into().ok().map(from)
}

//! From a portal to a session: TCP, login, redirects, within one deadline.

use std::cell::Cell;
use std::net::SocketAddr;

use berth_iobuf::{ReceiveBuffer, SendQueue};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::options::ConnectOptions;
use super::portal;
use crate::error::{Error, Incompatibility, Misbehaviour, Waiting};
use crate::login::{InitiatorLogin, LoginConfig, Outcome, Step};
use crate::name::Portal;
use crate::pdu::{Decoder, Digests, LOGIN_DATA_LEN_MAX_BYTES, Pdu};
use crate::session::Session;

/// A session that has just begun, and its connection.
#[derive(Debug)]
pub struct Connected {
    /// The socket.
    pub stream: TcpStream,
    /// The session.
    pub session: Session,
    /// What was received behind the login.
    pub receive: ReceiveBuffer,
    /// The address at the other end.
    pub address: SocketAddr,
    /// The portal to which the target has moved for good, if it said so; ask there next time.
    pub moved_to: Option<Portal>,
}

/// Why there is no session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("portal {portal}{}: {error}", at(address))]
pub struct ConnectError {
    /// The portal that was tried last: the one asked for, or where it redirected to.
    pub portal: Portal,
    /// The address that answered, if one did.
    pub address: Option<SocketAddr>,
    /// What went wrong.
    pub error: Error,
}

fn at(address: &Option<SocketAddr>) -> String {
    address.map_or_else(String::new, |address| format!(" ({address})"))
}

/// Logs in at `portal` as `config` says and follows redirects; at the end of
/// [`ConnectOptions::deadline`] it is over, whatever the other side does or fails to do.
///
/// When a target refuses CHAP in the way of those that compute SHA-1 where SHA-256 was agreed, a second
/// login offers MD5 only, if `config` has MD5 among its algorithms.
///
/// # Errors
/// The first thing that went wrong; with several addresses, what the last one said.
pub async fn connect(
    portal: &Portal,
    config: LoginConfig,
    options: &ConnectOptions,
) -> Result<Connected, ConnectError> {
    let attempt = Attempt {
        progress: Cell::new(Waiting::Connect),
        portal: Cell::new(Some(portal.clone())),
        address: Cell::new(None),
    };
    let deadline = Instant::now() + options.deadline;
    let result = timeout_at(deadline, attempt.run(portal, config, options)).await;
    let error = match result {
        Ok(Ok(connected)) => return Ok(connected),
        Ok(Err(error)) => error,
        Err(_) => Error::TimedOut(attempt.progress.get()),
    };
    Err(ConnectError {
        portal: attempt.portal.take().unwrap_or_else(|| portal.clone()),
        address: attempt.address.get(),
        error,
    })
}

/// How far a connect got; for the error, also when the deadline cuts it off.
struct Attempt {
    progress: Cell<Waiting>,
    portal: Cell<Option<Portal>>,
    address: Cell<Option<SocketAddr>>,
}

impl Attempt {
    async fn run(
        &self,
        portal: &Portal,
        mut config: LoginConfig,
        options: &ConnectOptions,
    ) -> Result<Connected, Error> {
        let mut at = portal.clone();
        let mut visited = vec![portal.clone()];
        let mut moved_to = None;
        loop {
            self.portal.set(Some(at.clone()));
            self.address.set(None);
            self.progress.set(Waiting::Connect);
            let addresses = portal::resolve(&at).await?;
            let (mut stream, address) = portal::connect(addresses, options).await?;
            self.address.set(Some(address));
            self.progress.set(Waiting::Login);
            let mut receive = ReceiveBuffer::new();
            let mut login = InitiatorLogin::new(config.clone())?;
            match log_in(&mut stream, &mut receive, &mut login).await {
                Ok(Ended::LoggedIn(outcome)) => {
                    let session = Session::new(
                        *outcome,
                        &config.session,
                        options.session.clone(),
                        Instant::now().into_std(),
                    );
                    return Ok(Connected {
                        stream,
                        session,
                        receive,
                        address,
                        moved_to,
                    });
                }
                Ok(Ended::Redirected(redirect)) => {
                    tracing::debug!(from = %at, to = %redirect.portal, "login redirected");
                    let hops = u32::try_from(visited.len()).unwrap_or(u32::MAX);
                    if hops > options.redirects_max || visited.contains(&redirect.portal) {
                        return Err(Error::TargetIncompatible(Incompatibility::RedirectLoop {
                            hops,
                            last: redirect.portal.to_string(),
                        }));
                    }
                    // A permanent move counts as long as every step on the way was one.
                    let so_far = visited.len() == 1 || moved_to.is_some();
                    moved_to = (redirect.permanent && so_far).then(|| redirect.portal.clone());
                    visited.push(redirect.portal.clone());
                    at = redirect.portal;
                }
                Err(error) => match login.retry_with_md5_after(&error) {
                    Some(md5) => {
                        tracing::debug!(portal = %at, "login refused; again with CHAP MD5 only");
                        config = md5;
                    }
                    None => return Err(error),
                },
            }
        }
    }
}

enum Ended {
    LoggedIn(Box<Outcome>),
    Redirected(crate::login::Redirect),
}

async fn log_in(
    stream: &mut TcpStream,
    receive: &mut ReceiveBuffer,
    login: &mut InitiatorLogin,
) -> Result<Ended, Error> {
    let mut decoder = Decoder::new(Digests::NONE, LOGIN_DATA_LEN_MAX_BYTES);
    loop {
        let mut send = SendQueue::new();
        while let Some(request) = login.poll_transmit() {
            request.emit(&mut send, Digests::NONE);
        }
        stream.write_all(&send.to_vec()).await?;
        let frame = loop {
            if let Some(frame) = decoder.next(receive)? {
                break frame;
            }
            if stream.read_buf(receive.room()).await? == 0 {
                return Err(Error::Lost(std::io::ErrorKind::UnexpectedEof));
            }
        };
        let response = match Pdu::parse(frame)? {
            Pdu::LoginResponse(response) => response,
            Pdu::Reject(reject) => return Err(Error::Rejected(reject.reason())),
            other => {
                return Err(Error::TargetMisbehaved(Misbehaviour::UnexpectedPdu {
                    opcode: other.opcode() as u8,
                    state: "login",
                }));
            }
        };
        match login.on_response(&response)? {
            Step::Continue => {}
            Step::Done(outcome) => return Ok(Ended::LoggedIn(outcome)),
            Step::Redirect(redirect) => return Ok(Ended::Redirected(redirect)),
        }
    }
}

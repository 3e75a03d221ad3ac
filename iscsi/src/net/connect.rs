//! From portals to a session: TCP, login, redirects, within one deadline.

use std::cell::Cell;
use std::future::{Future as _, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::task::Poll;

use berth_iobuf::{ReceiveBuffer, SendQueue};
use tokio::time::{Instant, sleep, timeout_at};

use super::options::ConnectOptions;
use super::socket::{self, Dialing, Network, Socket};
use crate::error::{Error, Incompatibility, Misbehaviour, Waiting};
use crate::login::{InitiatorLogin, LoginConfig, Outcome, Step};
use crate::name::Portal;
use crate::pdu::{Decoder, Digests, LOGIN_DATA_LEN_MAX_BYTES, Pdu};
use crate::session::Session;

/// A session that has just begun, and its connection.
#[derive(Debug)]
pub struct Connected {
    /// The socket.
    pub stream: Box<dyn Socket>,
    /// The session.
    pub session: Session,
    /// What was received behind the login.
    pub receive: ReceiveBuffer,
    /// The portal that was asked, one of the candidates.
    pub portal: Portal,
    /// Where the login was done: that portal, or where it redirected to.
    pub landed: Portal,
    /// The address at the other end; after a redirect, of where it led.
    pub address: SocketAddr,
    /// The portal to which the target has moved for good, if it said so; ask there next time.
    pub moved_to: Option<Portal>,
}

/// Why there is no session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("portal {portal}{}: {error}", at(address))]
pub struct ConnectError {
    /// The portal whose error this is: a candidate, or where it redirected to.
    pub portal: Portal,
    /// The address that answered, if one did.
    pub address: Option<SocketAddr>,
    /// What went wrong.
    pub error: Error,
}

fn at(address: &Option<SocketAddr>) -> String {
    address.map_or_else(String::new, |address| format!(" ({address})"))
}

/// Logs in at one of `portals` as `config` says and follows redirects; at the end of
/// [`ConnectOptions::deadline`] it is over, whatever the other side does or fails to do.
///
/// The portals are candidates in order of preference. TCP connections to them are raced, each with a
/// head start of [`ConnectOptions::attempt_delay`] over the next; the login is done on the first that is
/// there, and on no other: a second login with the same ISID would end the session of the first
/// (RFC 7143 6.3.5).
///
/// When a target refuses CHAP in the way of those that compute SHA-1 where SHA-256 was agreed, a second
/// login offers MD5 only, if `config` has MD5 among its algorithms.
///
/// # Errors
/// When no portal could be reached, why the first could not; else what went wrong at the login.
///
/// # Panics
/// If `portals` is empty.
pub async fn connect(
    network: &dyn Network,
    portals: &[Portal],
    config: LoginConfig,
    options: &ConnectOptions,
) -> Result<Connected, ConnectError> {
    let first = portals
        .first()
        .expect("a caller names at least one portal: there is nothing to connect to otherwise");
    let attempt = Attempt {
        network,
        progress: Cell::new(Waiting::Connect),
        portal: Cell::new(Some(first.clone())),
        address: Cell::new(None),
    };
    let deadline = Instant::now() + options.deadline;
    let result = timeout_at(deadline, attempt.run(portals, config, options)).await;
    let error = match result {
        Ok(Ok(connected)) => return Ok(connected),
        Ok(Err(error)) => error,
        Err(_) => Error::TimedOut(attempt.progress.get()),
    };
    Err(ConnectError {
        portal: attempt.portal.take().unwrap_or_else(|| first.clone()),
        address: attempt.address.get(),
        error,
    })
}

/// How far a connect got; for the error, also when the deadline cuts it off.
struct Attempt<'a> {
    network: &'a dyn Network,
    progress: Cell<Waiting>,
    portal: Cell<Option<Portal>>,
    address: Cell<Option<SocketAddr>>,
}

impl Attempt<'_> {
    async fn run(
        &self,
        portals: &[Portal],
        mut config: LoginConfig,
        options: &ConnectOptions,
    ) -> Result<Connected, Error> {
        let mut candidates = portals.to_vec();
        let mut asked = None;
        let mut visited = Vec::new();
        let mut moved_to = None;
        loop {
            self.portal.set(candidates.first().cloned());
            self.address.set(None);
            self.progress.set(Waiting::Connect);
            let (which, mut stream, address) = race(self.network, &candidates, options).await?;
            let at = candidates.swap_remove(which);
            if visited.is_empty() {
                visited.push(at.clone());
            }
            let asked = asked.get_or_insert_with(|| at.clone()).clone();
            self.portal.set(Some(at.clone()));
            self.address.set(Some(address));
            self.progress.set(Waiting::Login);
            let mut receive = ReceiveBuffer::new();
            let mut login = InitiatorLogin::new(config.clone())?;
            match log_in(&mut *stream, &mut receive, &mut login).await {
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
                        portal: asked,
                        landed: at,
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
                    candidates = vec![redirect.portal];
                }
                Err(error) => match login.retry_with_md5_after(&error) {
                    Some(md5) => {
                        tracing::debug!(portal = %at, "login refused; again with CHAP MD5 only");
                        config = md5;
                        candidates = vec![at];
                    }
                    None => return Err(error),
                },
            }
        }
    }
}

/// The first of the portals to which there is a connection. Each next one is tried a little later than
/// the one before, or as soon as all that were tried have failed.
async fn race(
    network: &dyn Network,
    portals: &[Portal],
    options: &ConnectOptions,
) -> io::Result<(usize, Box<dyn Socket>, SocketAddr)> {
    let mut attempts: Vec<Option<Dialing<'_>>> = Vec::with_capacity(portals.len());
    let mut first_error = None;
    let mut head_start = Box::pin(sleep(options.attempt_delay));
    poll_fn(|cx| {
        loop {
            for (which, slot) in attempts.iter_mut().enumerate() {
                let Some(dialing) = slot else { continue };
                match dialing.as_mut().poll(cx) {
                    Poll::Pending => {}
                    Poll::Ready(Ok((socket, address))) => {
                        return Poll::Ready(Ok((which, socket, address)));
                    }
                    Poll::Ready(Err(error)) => {
                        *slot = None;
                        // Of the most preferred one that has failed.
                        if first_error.as_ref().is_none_or(|(of, _)| which < *of) {
                            first_error = Some((which, error));
                        }
                    }
                }
            }
            let none_is_left = attempts.iter().all(Option::is_none);
            let Some(next) = portals.get(attempts.len()) else {
                if !none_is_left {
                    return Poll::Pending;
                }
                let error = first_error.take().map(|(_, error)| error);
                return Poll::Ready(Err(error.unwrap_or_else(|| io::ErrorKind::NotFound.into())));
            };
            if !none_is_left && head_start.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            attempts.push(Some(network.dial(next, options)));
            let next_at = Instant::now() + options.attempt_delay;
            head_start.as_mut().reset(next_at);
        }
    })
    .await
}

enum Ended {
    LoggedIn(Box<Outcome>),
    Redirected(crate::login::Redirect),
}

async fn log_in(
    stream: &mut dyn Socket,
    receive: &mut ReceiveBuffer,
    login: &mut InitiatorLogin,
) -> Result<Ended, Error> {
    let mut decoder = Decoder::new(Digests::NONE, LOGIN_DATA_LEN_MAX_BYTES);
    loop {
        let mut send = SendQueue::new();
        while let Some(request) = login.poll_transmit() {
            request.emit(&mut send, Digests::NONE);
        }
        socket::write_all(stream, &send.to_vec()).await?;
        let frame = loop {
            if let Some(frame) = decoder.next(receive)? {
                break frame;
            }
            if socket::read(stream, receive).await? == 0 {
                return Err(Error::Lost(io::ErrorKind::UnexpectedEof));
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

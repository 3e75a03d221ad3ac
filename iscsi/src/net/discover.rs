//! Discovery: log in, ask SendTargets, log out (RFC 7143 4.3, Appendix C).

use std::slice;

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use berth_iobuf::SendQueue;

use super::connect::{ConnectError, Connected, connect};
use super::options::ConnectOptions;
use super::socket::{self, Network};
use crate::discovery::Discovered;
use crate::error::{Error, RejectReason, Waiting};
use crate::login::LoginConfig;
use crate::name::Portal;
use crate::session::{CloseReason, Event};

/// Asks a portal for its targets. `config` must be for a discovery session.
///
/// The connection has ended when this returns; a target that does not answer the Logout does not
/// spoil the answer.
///
/// # Errors
/// Whatever keeps the list from coming, within [`ConnectOptions::deadline`] for the login and
/// [`ConnectOptions::discovery_timeout`] for the rest.
pub async fn discover(
    network: &dyn Network,
    portal: &Portal,
    config: LoginConfig,
    options: &ConnectOptions,
) -> Result<Discovered, ConnectError> {
    let mut connected = connect(network, slice::from_ref(portal), config, options).await?;
    let deadline = Instant::now() + options.discovery_timeout;
    let answer = ask(&mut connected, deadline).await;
    answer
        .and_then(|text| Discovered::parse(&text))
        .map_err(|error| ConnectError {
            portal: portal.clone(),
            address: Some(connected.address),
            error,
        })
}

/// Pumps the session until it has answered and is closed.
async fn ask(connected: &mut Connected, deadline: Instant) -> Result<Bytes, Error> {
    let Connected {
        stream,
        session,
        receive,
        ..
    } = connected;
    session
        .text(now(), b"SendTargets=All\0".to_vec())
        .map_err(Error::Misuse)?;
    let mut send = SendQueue::new();
    let mut answer = None;
    let mut arrived = !receive.is_empty();
    loop {
        if std::mem::take(&mut arrived) {
            // The session's last event has the error too.
            let _ = session.handle_input(now(), receive);
        }
        session.handle_timeout(now());
        while let Some(event) = session.poll_event() {
            match (event, &answer) {
                (Event::TextDone { answer: text }, None) => {
                    answer = Some(text.map_err(|reason| Error::Rejected(RejectReason(reason)))?);
                    session.logout(now());
                }
                (Event::Closed(_), Some(text)) => return Ok(Bytes::clone(text)),
                (Event::Closed(reason), None) => return Err(ended(&reason)),
                _ => {}
            }
        }
        session.poll_transmit(now(), &mut send);
        let wake_at = session
            .poll_timeout()
            .map_or(deadline, |due| deadline.min(due.into()));
        let io = async {
            // Whatever moment this is cut off at, what was written is no longer in the queue.
            while !send.is_empty() {
                let n = socket::write(&mut **stream, &send.to_vec()).await?;
                send.advance(n);
            }
            socket::read(&mut **stream, receive).await
        };
        match timeout_at(wake_at, io).await {
            Ok(Ok(0)) => session.handle_lost(std::io::ErrorKind::UnexpectedEof),
            Ok(Ok(_)) => arrived = true,
            Ok(Err(error)) => session.handle_lost(error.kind()),
            Err(_) if Instant::now() >= deadline => {
                return answer.ok_or(Error::TimedOut(Waiting::Text));
            }
            // The session's own timer.
            Err(_) => {}
        }
    }
}

fn ended(reason: &CloseReason) -> Error {
    match reason {
        CloseReason::Failed(error) => error.clone(),
        CloseReason::LoggedOut { .. } | CloseReason::DroppedByTarget { .. } => {
            Error::Lost(std::io::ErrorKind::ConnectionAborted)
        }
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

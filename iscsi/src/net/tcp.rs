//! TCP: from a portal to a connection, and a connection as a [`Socket`].

use std::future::Future as _;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::options::{ConnectOptions, SocketOptions};
use super::socket::{Dialing, Network, Socket};
use crate::name::{Host, Portal};

/// Addresses of one name that are tried; a name with more is a mistake or an attack.
const ADDRESSES_MAX: usize = 16;

/// Probes that may stay unanswered before the connection is dead.
const KEEPALIVE_PROBES: u32 = 3;

/// TCP: resolves the name, races its addresses (RFC 8305), sets the options of the socket.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpNetwork;

impl Network for TcpNetwork {
    fn dial<'a>(&'a self, portal: &'a Portal, options: &'a ConnectOptions) -> Dialing<'a> {
        Box::pin(async move {
            let addresses = resolve(portal).await?;
            let (stream, address) = connect(addresses, options).await?;
            Ok((Box::new(stream) as Box<dyn Socket>, address))
        })
    }
}

/// The addresses of a portal, in the order in which to try them: the resolver's, with the families
/// taking turns so that one family without a route costs little (RFC 8305 4).
///
/// # Errors
/// If the name cannot be resolved, or has no address.
pub async fn resolve(portal: &Portal) -> io::Result<Vec<SocketAddr>> {
    let name = match &portal.host {
        Host::Ip(ip) => return Ok(vec![SocketAddr::new(*ip, portal.port)]),
        Host::Name(name) => name.clone(),
    };
    let found = tokio::net::lookup_host((&*name, portal.port)).await?;
    let addresses = take_turns(found);
    if addresses.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("{name} has no address"),
        ));
    }
    Ok(addresses)
}

fn take_turns(found: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for address in found {
        let same = first
            .first()
            .is_none_or(|a: &SocketAddr| a.is_ipv6() == address.is_ipv6());
        let family = if same { &mut first } else { &mut second };
        if !family.contains(&address) {
            family.push(address);
        }
    }
    let mut second = second.into_iter();
    let mut all = Vec::new();
    for address in first {
        all.push(address);
        all.extend(second.next());
    }
    all.extend(second);
    all.truncate(ADDRESSES_MAX);
    all
}

/// Connects to the first address that answers. Each next one starts a little later than the one
/// before, or as soon as all that started have failed.
pub(super) async fn connect(
    addresses: Vec<SocketAddr>,
    options: &ConnectOptions,
) -> io::Result<(TcpStream, SocketAddr)> {
    let mut attempts = JoinSet::new();
    let mut waiting = addresses.into_iter();
    let mut last_error = io::Error::new(io::ErrorKind::NotFound, "no address to connect to");
    loop {
        let started = waiting.next().map(|address| {
            attempts.spawn(attempt(address, options.attempt_timeout));
        });
        if attempts.is_empty() {
            return Err(last_error);
        }
        let head_start = sleep(options.attempt_delay);
        tokio::pin!(head_start);
        loop {
            tokio::select! {
                biased;
                done = attempts.join_next() => match done {
                    Some(Ok(Ok((stream, address)))) => {
                        configure(&stream, &options.socket)?;
                        return Ok((stream, address));
                    }
                    Some(Ok(Err(error))) => {
                        last_error = error;
                        if attempts.is_empty() { break }
                    }
                    // The attempt was cancelled or panicked; there are others, or none.
                    Some(Err(error)) => {
                        last_error = io::Error::other(error);
                        if attempts.is_empty() { break }
                    }
                    None => break,
                },
                () = &mut head_start, if started.is_some() => break,
            }
        }
    }
}

async fn attempt(address: SocketAddr, time: Duration) -> io::Result<(TcpStream, SocketAddr)> {
    match timeout(time, TcpStream::connect(address)).await {
        Ok(stream) => Ok((stream?, address)),
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer from {address}"),
        )),
    }
}

pub(super) fn configure(stream: &TcpStream, options: &SocketOptions) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    if let Some(idle) = options.keepalive_idle {
        let keepalive = TcpKeepalive::new()
            .with_time(idle)
            .with_interval(options.keepalive_interval)
            .with_retries(KEEPALIVE_PROBES);
        socket.set_tcp_keepalive(&keepalive)?;
    }
    if let Some(timeout) = options.user_timeout {
        socket.set_tcp_user_timeout(Some(timeout))?;
    }
    if let Some(bytes) = options.send_buffer_bytes {
        socket.set_send_buffer_size(bytes)?;
    }
    if let Some(bytes) = options.receive_buffer_bytes {
        socket.set_recv_buffer_size(bytes)?;
    }
    Ok(())
}

impl Socket for TcpStream {
    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut BytesMut) -> Poll<io::Result<usize>> {
        pin!(self.read_buf(into)).poll(cx)
    }

    fn poll_read_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::poll_read_ready(self, cx)
    }

    fn try_write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        Self::try_write_vectored(self, slices)
    }

    fn poll_write_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::poll_write_ready(self, cx)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Self::local_addr(self)
    }

    fn peer_addr(&self) -> io::Result<SocketAddr> {
        Self::peer_addr(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn families_take_turns_and_duplicates_go() {
        let found = addresses(&[
            "[2001:db8::1]:1",
            "[2001:db8::2]:1",
            "[2001:db8::1]:1",
            "192.0.2.1:1",
            "[2001:db8::3]:1",
        ]);
        assert_eq!(
            take_turns(found.into_iter()),
            addresses(&[
                "[2001:db8::1]:1",
                "192.0.2.1:1",
                "[2001:db8::2]:1",
                "[2001:db8::3]:1"
            ])
        );
    }

    #[test]
    fn a_name_with_a_thousand_addresses_is_cut() {
        let found = (0..1000u32).map(|i| SocketAddr::from((i.to_be_bytes(), 3260)));
        assert_eq!(take_turns(found).len(), ADDRESSES_MAX);
    }

    #[tokio::test]
    async fn addresses_need_no_resolver() {
        for (text, expected) in [
            ("192.0.2.1", "192.0.2.1:3260"),
            ("[2001:db8::1]:860", "[2001:db8::1]:860"),
        ] {
            let portal = Portal::parse(text).unwrap();
            assert_eq!(resolve(&portal).await.unwrap(), addresses(&[expected]));
        }
    }
}

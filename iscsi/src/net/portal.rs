//! From a portal to a TCP connection.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::options::ConnectOptions;
use super::socket;
use crate::name::{Host, Portal};

/// Addresses of one name that are tried; a name with more is a mistake or an attack.
const ADDRESSES_MAX: usize = 16;

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
                        socket::configure(&stream, &options.socket)?;
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

//! The faults of the harness themselves: a plain TCP connection sees what they promise, so that a recovery test that passes has
//! been through them.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use berth_tests::net::{Fault, Link, Network};

/// For whatever must happen.
const DEADLINE: Duration = Duration::from_secs(20);
/// For what must not happen: an answer through a healthy link takes less than a millisecond.
const SILENCE: Duration = Duration::from_millis(500);

/// Sends back what it gets, to one client after the other, until a client sends nothing.
struct Echo {
    address: SocketAddr,
    thread: JoinHandle<Result<Result<()>>>,
}

impl Echo {
    fn start(network: &Network) -> Result<Self> {
        let link = &network.links[0];
        let address = SocketAddr::new(link.target_address(), 7);
        let listener = network.target.within(|| TcpListener::bind(address))??;
        let thread = network.target.spawn(move || -> Result<()> {
            loop {
                let (mut stream, _) = listener.accept()?;
                let mut buffer = [0; 65_536];
                let mut total = 0;
                // A reset ends the client, not the server.
                while let Ok(len @ 1..) = stream.read(&mut buffer) {
                    total += len;
                    if stream.write_all(&buffer[..len]).is_err() {
                        break;
                    }
                }
                if total == 0 {
                    return Ok(());
                }
            }
        });
        Ok(Self { address, thread })
    }

    fn connect(&self, network: &Network) -> Result<TcpStream> {
        let connect = || TcpStream::connect_timeout(&self.address, DEADLINE);
        let stream = network.node.within(connect)??;
        stream.set_nodelay(true)?;
        let mut client = stream;
        // Proves that it works before the fault, and that the server knows us.
        round_trip(&mut client)?;
        Ok(client)
    }

    fn stop(self, network: &Network) -> Result<()> {
        drop(network.node.within(|| TcpStream::connect(self.address))??);
        match self.thread.join() {
            Ok(result) => result?,
            Err(_) => bail!("the echo server panicked"),
        }
    }
}

fn send(stream: &mut TcpStream) -> Result<()> {
    Ok(stream.write_all(b"ping")?)
}

fn receive(stream: &mut TcpStream, within: Duration) -> std::io::Result<()> {
    stream.set_read_timeout(Some(within))?;
    stream.read_exact(&mut [0; 4])
}

fn round_trip(stream: &mut TcpStream) -> Result<Duration> {
    let started = Instant::now();
    send(stream)?;
    receive(stream, DEADLINE)?;
    Ok(started.elapsed())
}

/// Nothing comes through, and what was sent comes through after the healing.
fn is_silent_until_healed(link: &Link, stream: &mut TcpStream, fault: Fault) -> Result<()> {
    link.apply(fault)?;
    send(stream)?;
    let error = receive(stream, SILENCE).expect_err("the link is silent");
    ensure!(error.kind() == ErrorKind::WouldBlock, "{error}");
    link.heal(fault)?;
    receive(stream, DEADLINE).with_context(|| format!("after {fault}"))
}

#[test]
fn a_cut_and_an_unplugged_link_are_silent_and_heal() -> Result<()> {
    let network = Network::new(1)?;
    let echo = Echo::start(&network)?;
    let mut stream = echo.connect(&network)?;
    // Twice, since what is left of the first must not stand in the way.
    for fault in [Fault::Cut, Fault::Unplug, Fault::Cut, Fault::Unplug] {
        is_silent_until_healed(&network.links[0], &mut stream, fault)?;
    }
    drop(stream);
    echo.stop(&network)
}

#[test]
fn a_delayed_link_takes_its_time_and_loses_nothing() -> Result<()> {
    let network = Network::new(1)?;
    let echo = Echo::start(&network)?;
    let mut stream = echo.connect(&network)?;
    let fault = Fault::Delay(Duration::from_millis(200));
    for _ in 0..2 {
        network.links[0].apply(fault)?;
        for _ in 0..3 {
            let took = round_trip(&mut stream)?;
            ensure!(took >= Duration::from_millis(195), "{took:?}");
        }
        network.links[0].heal(fault)?;
        round_trip(&mut stream)?;
        let took = round_trip(&mut stream)?;
        ensure!(took < Duration::from_millis(195), "healed: {took:?}");
    }
    // What is held back when the link is healed comes through.
    network.links[0].apply(fault)?;
    send(&mut stream)?;
    network.links[0].heal(fault)?;
    receive(&mut stream, DEADLINE)?;
    drop(stream);
    echo.stop(&network)
}

#[test]
fn a_throttled_link_is_slow() -> Result<()> {
    let network = Network::new(1)?;
    let echo = Echo::start(&network)?;
    let stream = echo.connect(&network)?;
    let fault = Fault::Throttle {
        bits_per_second: 8_000_000,
    };
    network.links[0].apply(fault)?;
    let before = network.links[0].traffic()?;
    let started = Instant::now();
    let bytes = vec![0x5a; 1_000_000];
    let mut reader = stream.try_clone()?;
    reader.set_read_timeout(Some(DEADLINE))?;
    std::thread::scope(|scope| -> Result<()> {
        let writer = scope.spawn(|| (&stream).write_all(&bytes));
        let mut back = vec![0; bytes.len()];
        reader.read_exact(&mut back)?;
        ensure!(back == bytes, "other bytes come back");
        Ok(writer.join().expect("no panic")?)
    })?;
    // A megabyte is eight megabits; what is queued in devices and sockets goes faster.
    let took = started.elapsed();
    ensure!(took > Duration::from_millis(700), "{took:?}");
    let after = network.links[0].traffic()?;
    ensure!(
        after.to_target_bytes >= before.to_target_bytes + 1_000_000
            && after.to_node_bytes >= before.to_node_bytes + 1_000_000,
        "{before:?} {after:?}"
    );
    network.links[0].heal(fault)?;
    drop((stream, reader));
    echo.stop(&network)
}

#[test]
fn a_lossy_link_loses_some_and_not_all() -> Result<()> {
    let network = Network::new(1)?;
    let link = &network.links[0];
    let address = SocketAddr::new(link.target_address(), 7);
    let server = network.target.within(|| UdpSocket::bind(address))??;
    server.set_read_timeout(Some(SILENCE))?;
    let from = SocketAddr::new(link.node_address(), 0);
    let client = network.node.within(|| UdpSocket::bind(from))??;
    let fault = Fault::Loss { percent: 30 };
    link.apply(fault)?;
    let mut arrived = 0;
    for _ in 0..300 {
        client.send_to(b"x", address)?;
    }
    while server.recv(&mut [0; 16]).is_ok() {
        arrived += 1;
    }
    // 210 are expected, and 8 are the standard deviation.
    ensure!((130..290).contains(&arrived), "{arrived} of 300 arrived");
    link.heal(fault)?;
    client.send_to(b"x", address)?;
    server.set_read_timeout(Some(DEADLINE))?;
    server.recv(&mut [0; 16])?;
    Ok(())
}

#[test]
fn a_refusing_link_resets_and_a_reset_is_seen_by_both_ends() -> Result<()> {
    let network = Network::new(1)?;
    let echo = Echo::start(&network)?;
    let link = &network.links[0];

    let mut stream = echo.connect(&network)?;
    link.apply(Fault::Refuse)?;
    send(&mut stream)?;
    let error = receive(&mut stream, DEADLINE).expect_err("refused");
    ensure!(error.kind() == ErrorKind::ConnectionReset, "{error}");
    let connect = || TcpStream::connect_timeout(&echo.address, DEADLINE);
    let error = network.node.within(connect)?.expect_err("refused");
    ensure!(error.kind() == ErrorKind::ConnectionRefused, "{error}");
    link.heal(Fault::Refuse)?;
    drop(stream);

    // The server still waits for the client that was refused: a reset of that end lets it go.
    network.target.run("ss", &["-K", "-t", "-n"])?;
    let mut stream = echo.connect(&network)?;
    link.apply(Fault::Reset)?;
    let error = receive(&mut stream, DEADLINE).expect_err("reset");
    let kinds = [ErrorKind::ConnectionAborted, ErrorKind::ConnectionReset];
    ensure!(kinds.contains(&error.kind()), "{error}");
    link.heal(Fault::Reset)?;
    // The server takes one client at a time, so it has seen the reset.
    drop(echo.connect(&network)?);
    echo.stop(&network)
}

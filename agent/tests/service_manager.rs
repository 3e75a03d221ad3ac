//! The real `berthd` under a service manager that only pretends: what it says, and what it is handed.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, reason = "this is all test code")]

#[allow(dead_code, reason = "the unit tests use the rest")]
#[path = "../src/service_manager/fake.rs"]
mod fake;

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use fake::FakeManager;
use rustix::process::{Pid, Signal};

/// What the manager asks for; short, so that the test is.
const WATCHDOG: Duration = Duration::from_millis(400);

/// A daemon that is killed when the test ends early.
struct Berthd(Child);

impl Berthd {
    /// Starts it as the manager does; `sockets` become LISTEN_FDS.
    fn start(dir: &Path, manager: &FakeManager, sockets: [OwnedFd; 2]) -> Self {
        // The shell gives LISTEN_PID its value and the sockets their numbers.
        let script = r#"exec 3<&0 4<&1 0</dev/null 1>/dev/null; LISTEN_PID=$$ exec "$0" "$@""#;
        let [first, second] = sockets;
        let child = Command::new("sh")
            .args(["-c", script, env!("CARGO_BIN_EXE_berthd")])
            .arg("--state-dir")
            .arg(dir.join("state"))
            .arg("--runtime-dir")
            .arg(dir)
            .arg("--config")
            .arg(dir.join("berth.toml"))
            .env("NOTIFY_SOCKET", manager.socket())
            .env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string())
            .env("LISTEN_FDS", "2")
            .env("LISTEN_FDNAMES", "berthd.socket:berthd.socket")
            .env("BERTH_FAULT_SIGNALS", "true")
            .env("CREDENTIALS_DIRECTORY", dir)
            .stdin(first)
            .stdout(second)
            .stderr(Stdio::inherit())
            .spawn()
            .expect("berthd starts");
        Self(child)
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.0);
        rustix::process::kill_process(pid, signal).expect("it is there");
    }

    fn wait(mut self) -> ExitStatus {
        self.0.wait().expect("it ends")
    }
}

impl Drop for Berthd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory with a configuration, and the listening sockets as the socket unit has them.
fn sockets(dir: &Path) -> [UnixListener; 2] {
    std::fs::write(dir.join("token"), "0123456789abcdef0123456789abcdef").unwrap();
    let config = "[api]\ntoken_file = \"$CREDENTIALS_DIRECTORY/token\"\n\
                  [memory]\nlock = \"never\"\nio_flusher = \"never\"\n";
    std::fs::write(dir.join("berth.toml"), config).unwrap();
    ["api.sock", "nbd.sock"].map(|name| UnixListener::bind(dir.join(name)).unwrap())
}

fn duplicates(sockets: &[UnixListener; 2]) -> [OwnedFd; 2] {
    [0, 1].map(|index: usize| sockets[index].try_clone().unwrap().into())
}

/// A client of the API that has sent its question, whether anybody listens or not.
fn ask(dir: &Path) -> UnixStream {
    let mut client = UnixStream::connect(dir.join("api.sock")).expect("there is a queue");
    client
        .write_all(b"GET /livez HTTP/1.1\r\nhost: berth\r\nconnection: close\r\n\r\n")
        .expect("the queue takes it");
    client
        .set_read_timeout(Some(Duration::from_secs(30)))
        .expect("takes a timeout");
    client
}

fn answer(mut client: UnixStream) -> String {
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("it is answered");
    answer
}

#[test]
fn a_client_that_comes_between_two_lives_is_served_by_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = FakeManager::new();
    let sockets = sockets(dir.path());
    let early = ask(dir.path());
    let first = Berthd::start(dir.path(), &manager, duplicates(&sockets));
    assert_eq!(manager.receive(), "READY=1\nSTATUS=no attachments\n");
    assert!(answer(early).starts_with("HTTP/1.1 200 "));
    first.signal(Signal::TERM);
    while !manager.receive().starts_with("STOPPING=1\n") {}
    assert!(first.wait().success());
    assert!(dir.path().join("api.sock").exists(), "the manager's socket");
    assert!(dir.path().join("nbd.sock").exists(), "the manager's socket");

    let between = ask(dir.path());
    let second = Berthd::start(dir.path(), &manager, duplicates(&sockets));
    assert!(answer(between).starts_with("HTTP/1.1 200 "));
    drop(second);
}

#[test]
fn a_hung_data_plane_stops_the_watchdog_food() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = FakeManager::new();
    let berthd = Berthd::start(dir.path(), &manager, duplicates(&sockets(dir.path())));
    assert!(manager.receive().starts_with("READY=1\n"));
    for _ in 0..3 {
        assert_eq!(manager.receive(), "WATCHDOG=1\n");
    }
    berthd.signal(Signal::USR2);
    // Food that was on its way comes; then, for longer than the manager would wait, nothing.
    let mut late = 0;
    while manager.receive_within(3 * WATCHDOG).is_some() {
        late += 1;
        assert!(late < 10_000, "it is still fed");
    }
    // The process is alive: without the watchdog nobody would have noticed.
    berthd.signal(Signal::KILL);
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&berthd.wait()),
        Some(Signal::KILL.as_raw())
    );
}
